package notification

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// docs/sizing.md says how much memory a process takes. Its formulas are evaluated
// here as they stand there, so that page and tests cannot disagree.

// A sizing is the page: its text, and its formulas by name.
type sizing struct {
	text     string
	formulas map[string]string
}

func sizingPage(t testing.TB) sizing {
	t.Helper()
	text, err := os.ReadFile("docs/sizing.md")
	require.NoError(t, err)
	p := sizing{string(text), map[string]string{}}
	for _, f := range regexp.MustCompile(`(?m)^    (\w+) += (.+)$`).FindAllStringSubmatch(p.text, -1) {
		require.NotContains(t, p.formulas, f[1], "two formulas")
		p.formulas[f[1]] = f[2]
	}
	require.NotEmpty(t, p.formulas)
	return p
}

// given are quantities by the names of the page.
type given map[string]float64

// eval returns what a formula of the page, or an expression, comes to.
func (p sizing) eval(t testing.TB, formula string, g given) float64 {
	t.Helper()
	text := regexp.MustCompile(`(\d),(\d{3})`).ReplaceAllString(strings.ReplaceAll(formula, "×", "*"), "$1$2")
	e, err := parser.ParseExpr(text)
	require.NoError(t, err, formula)
	return p.value(t, e, g)
}

func (p sizing) value(t testing.TB, e ast.Expr, g given) float64 {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		v, err := strconv.ParseFloat(e.Value, 64)
		require.NoError(t, err)
		return v
	case *ast.ParenExpr:
		return p.value(t, e.X, g)
	case *ast.Ident:
		if v, ok := g[e.Name]; ok {
			return v
		}
		require.Contains(t, p.formulas, e.Name, "is neither given nor a formula")
		return p.eval(t, p.formulas[e.Name], g)
	case *ast.BinaryExpr:
		x, y := p.value(t, e.X, g), p.value(t, e.Y, g)
		switch e.Op {
		case token.ADD:
			return x + y
		case token.MUL:
			return x * y
		case token.QUO:
			return x / y
		}
	case *ast.CallExpr:
		var args []float64
		for _, a := range e.Args {
			args = append(args, p.value(t, a, g))
		}
		switch name := e.Fun.(*ast.Ident).Name; name {
		case "ceil":
			return math.Ceil(args[0])
		case "pow2":
			return math.Exp2(math.Ceil(math.Log2(args[0])))
		case "min":
			return min(args[0], args[1])
		case "max":
			return max(args[0], args[1])
		}
	}
	require.Fail(t, "the page has an expression that is not known", "%T", e)
	return 0
}

// bySize skips where the formulas do not hold, or need not be tried.
func bySize(t testing.TB) {
	t.Helper()
	if underRace {
		t.Skip("skipped: the race detector changes no size, and takes a minute and a half for this")
	}
	if strconv.IntSize != 64 {
		t.Skip("skipped: the formulas are for 64 bits")
	}
}

// least returns what f makes from its call of begin on, and returns: the least of three
// measurements of used. Anything else that is allocated meanwhile makes one larger, and nothing
// that is kept can be missing from one.
func least(t *testing.T, used func() int64, f func(t *testing.T, begin func()) (kept any)) int64 {
	t.Helper()
	bytes := int64(math.MaxInt64)
	for range 3 {
		t.Run("measured", func(t *testing.T) {
			var before int64
			kept := f(t, func() { before = used() })
			bytes = min(bytes, used()-before)
			runtime.KeepAlive(kept)
		})
	}
	return bytes
}

// takes requires that what f makes is within 20 % of what the page says.
func takes(t *testing.T, want float64, f func(t *testing.T, begin func()) (kept any)) (got int64) {
	t.Helper()
	got = least(t, heap, f)
	t.Logf("%.0f bytes by the page, %d measured: %+.1f %%", want, got, 100*(float64(got)/want-1))
	require.InEpsilon(t, want, float64(got), 0.2, "the page says %.0f bytes, it takes %d", want, got)
	return got
}

// withStacks is heap with the stacks, once those of goroutines that have ended are
// gone: they go with a collection, and not all with the first.
func withStacks() int64 {
	var m runtime.MemStats
	for before := uint64(math.MaxUint64); ; before = m.StackInuse {
		bytes := heap()
		runtime.ReadMemStats(&m)
		if m.StackInuse >= before {
			return bytes + int64(m.StackInuse)
		}
	}
}

var discarding = SinkFunc(func(context.Context, []*Message) error { return nil })

func TestSizingOfBroker(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, c := range []struct{ dedup, lane int }{{10_000, 50_000}, {65_536, 1_000}, {65_537, 1_000}, {300_000, 100_000}} {
		t.Run(fmt.Sprintf("a Broker with a window of %d and lanes of %d", c.dedup, c.lane), func(t *testing.T) {
			want := p.eval(t, "broker", given{"DedupSize": float64(c.dedup), "QueueCapacity": float64(4 * c.lane)})
			takes(t, want, func(t *testing.T, begin func()) any {
				begin()
				return newBroker(t, BrokerConfig{DedupSize: c.dedup, QueueCapacity: lanes(c.lane)})
			})
		})
	}
	for _, c := range []struct{ n, length, rounded int }{{20_000, 52, 64}, {50_000, 96, 96}, {80_000, 128, 128}} {
		t.Run(fmt.Sprintf("%d IDs of %d bytes, in place of as many before them", c.n, c.length), func(t *testing.T) {
			long := p.eval(t, "long", given{"id": float64(c.rounded)}) * float64(c.n)
			window := p.eval(t, "window", given{"DedupSize": float64(c.n)})
			takes(t, window+long, func(_ *testing.T, begin func()) any {
				begin()
				d := newDedup(c.n)
				for i := range 2 * c.n {
					id := fmt.Sprintf("%0*d", c.length, i)
					d.add(d.hash(id), id, 0)
				}
				return d
			})
		})
	}
}

func TestSizingOfGateway(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, c := range []struct{ cpus, inbox int }{{1, 1024}, {2, 1024}, {8, 1024}, {2, 50_000}} {
		t.Run(fmt.Sprintf("a Gateway with %d CPUs and an inbox of %d", c.cpus, c.inbox), func(t *testing.T) {
			before := runtime.GOMAXPROCS(c.cpus)
			t.Cleanup(func() { runtime.GOMAXPROCS(before) })
			want := p.eval(t, "gateway", given{"CPUs": float64(c.cpus), "InboxCapacity": float64(c.inbox)})
			const n = 10
			takes(t, n*want, func(t *testing.T, begin func()) any {
				begin()
				var kept [n]*Gateway
				for i := range kept {
					kept[i] = newGateway(t, "g", GatewayConfig{InboxCapacity: c.inbox})
				}
				return &kept
			})
		})
	}
}

func TestSizingOfPeople(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, c := range []struct{ users, each, history int }{
		{6_000, 1, 0}, {11_000, 1, 0}, {20_000, 1, 0}, {5_000, 4, 0},
		{6_000, 1, 1024}, {11_000, 1, 1024}, {20_000, 1, 1024}, {5_000, 4, 1024},
	} {
		t.Run(fmt.Sprintf("%d users with %d sessions each, a history of %d", c.users, c.each, c.history), func(t *testing.T) {
			g := given{"users": float64(c.users), "sessions": float64(c.users * c.each)}
			want := p.eval(t, "people", g)
			if c.history > 0 {
				want += p.eval(t, "places", g)
			}
			names, sessions := series("user-", c.users), series("session-", c.users*c.each)
			takes(t, want, func(t *testing.T, begin func()) any {
				_, g := pair(t, BrokerConfig{}, GatewayConfig{HistoryMessages: c.history})
				begin()
				for i, id := range sessions {
					_, err := g.RegisterSession(SessionConfig{ID: id, UserID: names[i/c.each], Sink: discarding})
					require.NoError(t, err)
				}
				return g
			})
		})
	}
	for _, n := range []int{6_000, 20_000} {
		t.Run(fmt.Sprintf("%d users that are gone, with a history", n), func(t *testing.T) {
			g := given{"users": float64(n), "sessions": 0}
			names := series("user-", n)
			want := p.eval(t, "people", g) + p.eval(t, "places", g)
			got := takes(t, want, func(t *testing.T, begin func()) any {
				_, g := pair(t, BrokerConfig{}, GatewayConfig{HistoryMessages: 1024})
				begin()
				for _, id := range names {
					_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: discarding})
					require.NoError(t, err)
				}
				for s := range g.Sessions() {
					require.NoError(t, s.Close())
					<-s.Done()
				}
				require.Equal(t, n, g.Stats().Users)
				return g
			})
			t.Logf("%.0f bytes of each session stay", (float64(got)-want)/float64(n))
		})
	}
}

func TestSizingOfMessages(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	id := func(kind string, i int) string { return fmt.Sprintf("%s-%08d", kind, i) } // 14 to 16 bytes
	for _, c := range []struct {
		name string
		g    given
		make func(i int) *Notification
	}{
		{"AccountUpdates", given{"payload": 80, "text": 0, "json": 384}, func(i int) *Notification {
			return New("alice", AccountUpdate{UserID: "alice", Balance: 1e6 + float64(i), Available: 9e5, Frozen: 1e5, Margin: 5e4, RiskRatio: 0.1}, "AccountSystem")
		}},
		{"TradeExecuteds with IDs of their own", given{"payload": 144, "text": 48, "json": 480}, func(i int) *Notification {
			return New("alice", TradeExecuted{
				TradeID: id("trade", i), OrderID: id("order", i), ExchangeOrderID: id("exord", i), InstrumentID: "SHFE.cu2501",
				Direction: "BUY", Offset: "OPEN", Price: 50123.5, Volume: 3, Commission: 12.75, FillType: "FULL", Timestamp: 1_760_000_000_000_000_000,
			}, "MatchingEngine")
		}},
	} {
		for _, n := range []int{5_000, 30_000} {
			for _, asked := range []struct {
				name string
				of   func(*Message)
				keep string // besides
			}{
				{"nobody asked for JSON", func(*Message) {}, "0"},
				{"AppendJSON", func(m *Message) { m.AppendJSON(nil) }, "0"},
				{"JSON", func(m *Message) { m.JSON() }, "json"},
			} {
				t.Run(fmt.Sprintf("%d %s, %s", n, c.name, asked.name), func(t *testing.T) {
					takes(t, p.eval(t, "message + "+asked.keep, c.g)*float64(n), func(t *testing.T, begin func()) any {
						kept := make([]*Message, n)
						begin()
						for i := range kept {
							kept[i] = NewMessage(c.make(i))
							asked.of(kept[i])
						}
						return kept
					})
				})
				t.Run(fmt.Sprintf("%d %s from archives, %s", n, c.name, asked.name), func(t *testing.T) {
					a := make([]Archive, n)
					for i := range a {
						b, err := c.make(i).AppendBinary(nil)
						require.NoError(t, err)
						a[i], err = OpenArchive(b)
						require.NoError(t, err)
					}
					g := given{"payload": c.g["payload"], "text": 48 + 24, "json": c.g["json"]} // ID and user; the rest
					if c.g["text"] > 0 {
						g["text"] = 48 + 96
					}
					takes(t, p.eval(t, "edgeMessage + "+asked.keep, g)*float64(n), func(t *testing.T, begin func()) any {
						kept := make([]*Message, n)
						begin()
						for i := range kept {
							kept[i] = NewMessageAt(a[i].Notification(), uint64(i+1))
							asked.of(kept[i])
						}
						return kept
					})
					runtime.KeepAlive(a)
				})
			}
		}
	}
	t.Run("the payloads have the sizes that the page names", func(t *testing.T) {
		least, most := uintptr(math.MaxInt), uintptr(0)
		for typ := Type(1); typ < numTypes; typ++ {
			size := reflect.TypeOf(catalog[typ].payload).Size()
			least, most = min(least, size), max(most, size)
		}
		require.Contains(t, p.text, fmt.Sprintf("from %d (MarketHalt) to %d\n(TradeExecuted), AccountUpdate %d.", least, most, reflect.TypeFor[AccountUpdate]().Size()))
		require.Equal(t, least, reflect.TypeFor[MarketHalt]().Size())
		require.Equal(t, most, reflect.TypeFor[TradeExecuted]().Size())
	})
	t.Run("lanes that are full", func(t *testing.T) {
		for _, n := range []int{2_000, 20_000} {
			want := p.eval(t, "broker", given{"DedupSize": 10_000, "QueueCapacity": float64(4 * n)}) + float64(4*n)*p.eval(t, "message", given{"payload": 80, "text": 0})
			takes(t, want, func(t *testing.T, begin func()) any {
				begin()
				b := newBroker(t, BrokerConfig{QueueCapacity: lanes(n)})
				for i := range 4 * n {
					m := New("alice", AccountUpdate{UserID: "alice", Balance: float64(i)}, "")
					m.Priority = Priority(i % 4)
					require.NoError(t, b.Publish(m))
				}
				return b
			})
		}
	})
}

func TestSizingOfHistory(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	const perLane = 256
	m := NewMessage(note("n", "u", P1)) // everywhere the same: its own memory is not what is asked
	for _, kept := range []int{1, 20, 100, 300} {
		for _, n := range []int{2_000, 6_000} {
			t.Run(fmt.Sprintf("%d users who got %d messages", n, kept), func(t *testing.T) {
				takes(t, p.eval(t, "ring", given{"kept": float64(kept), "HistoryMessages": perLane})*float64(n), func(t *testing.T, begin func()) any {
					st := newHistoryStore(perLane, 1<<30, nil)
					all := make([]*history, n)
					for i := range all {
						all[i] = st.newHistory()
					}
					begin()
					for _, h := range all {
						for range kept {
							st.append(h, m)
						}
					}
					return all
				})
			})
		}
	}
	for _, kept := range []int{1, 33, 65, 129, 257} { // one more than a ring has room for, which doubles then
		t.Run(fmt.Sprintf("%d messages in each lane take no more than the most for all rings", kept), func(t *testing.T) {
			const n = 500
			var each [NumPriorities]*Message
			for p := range each {
				each[p] = NewMessage(note("n", "u", Priority(p)))
			}
			got := least(t, heap, func(t *testing.T, begin func()) any {
				st := newHistoryStore(1024, 1<<30, nil)
				all := make([]*history, n)
				for i := range all {
					all[i] = st.newHistory()
				}
				begin()
				for _, h := range all {
					for range kept {
						for _, m := range each {
							st.append(h, m)
						}
					}
				}
				return all
			})
			most := p.eval(t, "rings", given{"HistoryTotal": float64(n * NumPriorities * kept), "users": n})
			require.LessOrEqual(t, float64(got), most)
		})
	}
}

func TestSizingOfOutboxes(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, waiting := range []int{2, 20, 150} {
		for _, n := range []int{1_000, 3_000} {
			t.Run(fmt.Sprintf("%d messages wait for each of %d sessions", waiting, n), func(t *testing.T) {
				want := p.eval(t, "outbox", given{"waiting": float64(waiting)}) * float64(n)
				names := series("u", n)
				messages := make([]*Message, n)
				for i, id := range names {
					messages[i] = NewMessage(note("n", id, P1))
				}
				got := takes(t, want, func(t *testing.T, begin func()) any {
					g := newGateway(t, "g", GatewayConfig{MaxDelay: lanes(time.Hour), BatchSize: 1024})
					runGateway(t, g)
					for _, id := range names {
						_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: discarding})
						require.NoError(t, err)
					}
					begin()
					for range waiting {
						for _, m := range messages {
							g.Inbox()[P1] <- m
						}
					}
					eventually(t, "all wait", func() bool { return g.Stats().Lanes[P1].Pending == waiting*n })
					return g
				})
				most := p.eval(t, "outboxes", given{"waiting": float64(waiting * n), "lanes": float64(n)})
				require.LessOrEqual(t, float64(got), most, "the most for all")
			})
		}
	}
}

func TestSizingOfPushers(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, n := range []int{500, 2_000} {
		t.Run(fmt.Sprintf("%d pushers in a sink that does not return", n), func(t *testing.T) {
			const batch = 100
			names := series("u", n)
			var messages []*Message
			for _, id := range names {
				for range batch {
					messages = append(messages, NewMessage(note("n", id, P1)))
				}
			}
			waiting := func(t *testing.T, begin func()) any {
				g := newGateway(t, "g", GatewayConfig{Pushers: n, BatchSize: batch, MaxDelay: lanes(time.Hour)})
				stuck := newGate(t)
				for _, id := range names {
					_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: SinkFunc(stuck.pass)})
					require.NoError(t, err)
				}
				begin()
				runGateway(t, g)
				for _, m := range messages {
					g.Inbox()[P1] <- m
				}
				eventually(t, "all are in a Push", func() bool {
					g.pool.mu.Lock()
					defer g.pool.mu.Unlock()
					return g.pool.running.n == n
				})
				return g
			}
			// The least has what the runtime kept of the goroutines before.
			takes(t, float64(n)*p.eval(t, "pusher", given{"stack": 0, "BatchSize": batch}), waiting)
			// Stacks shrink when the collector finds them too large, and begin with the
			// average of those there are: they are bounded here.
			goroutines(16) // those of the tests before this one have ended
			most := float64(n) * p.eval(t, "pusher", given{"stack": 4500, "BatchSize": batch})
			require.LessOrEqual(t, float64(least(t, withStacks, waiting)), 1.2*most)
		})
	}
}

func TestSizingOfProcess(t *testing.T) {
	bySize(t)
	p := sizingPage(t)
	for _, mib := range []int{32, 96} {
		t.Run(fmt.Sprintf("what the heap may grow to, with %d MiB", mib), func(t *testing.T) {
			kept := make([]*[4096]byte, mib<<8)
			for i := range kept {
				kept[i] = new([4096]byte)
			}
			runtime.GC()
			read := func(name string) float64 {
				s := []metrics.Sample{{Name: name}}
				metrics.Read(s)
				require.Equal(t, metrics.KindUint64, s[0].Value.Kind(), name)
				return float64(s[0].Value.Uint64())
			}
			live := read("/gc/heap/live:bytes") + read("/gc/scan/stack:bytes") + read("/gc/scan/globals:bytes")
			percent := read("/gc/gogc:percent")
			if percent > 1000 || read("/gc/gomemlimit:bytes") < 1<<40 {
				t.Skip("skipped: GOGC or GOMEMLIMIT are set to something else here")
			}
			want := live * (1 + percent/100)
			require.InEpsilon(t, want, read("/gc/heap/goal:bytes"), 0.2)
			f := p.formulas["resident"]
			require.InEpsilon(t, want, p.eval(t, strings.Replace(f, "live", "(mark)", 1), given{"mark": live, "GOGC": percent}), 1e-9)
			runtime.KeepAlive(kept)
		})
	}
	t.Run("the names of the runtime's metrics exist", func(t *testing.T) {
		known := map[string]bool{}
		for _, d := range metrics.All() {
			known[d.Name] = true
		}
		names := regexp.MustCompile("`(/[a-z/]+:[a-z]+)`").FindAllStringSubmatch(p.text, -1)
		require.NotEmpty(t, names)
		for _, name := range names {
			require.True(t, known[name[1]], name[1])
		}
	})
}
