package notification

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// Gateways whose messages come from a Log: what a session gets that goes from one
// to another, which cursors are taken, and for how long it is waited. Epochs and
// places that move on are in log_epoch_test.go and log_cursor_test.go, everything
// at once is in log_chaos_test.go.

// A logTest is a log and its edges, which run in a bubble until the test is over.
type logTest struct {
	*memoryLog
	t     *testing.T
	edges []*memoryEdge
}

// withLog runs f in virtual time.
func withLog(t *testing.T, f func(t *testing.T, l *logTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &logTest{memoryLog: newMemoryLog(), t: t}
		f(t, l)
		synctest.Wait()
		for _, e := range l.edges {
			e.conserved(t)
			for p, lane := range e.g.Stats().Lanes {
				require.Zero(t, lane.Invalid, "P%d", p)
			}
		}
	})
}

// open makes an edge whose Gateway runs.
func (l *logTest) open(id string, cfg GatewayConfig) *memoryEdge {
	l.t.Helper()
	e := newMemoryEdge(l.t, l.memoryLog, id, cfg)
	l.edges = append(l.edges, e)
	l.t.Cleanup(func() {
		if !l.t.Failed() {
			e.conserved(l.t)
			holdsNothing(l.t, e.g)
		}
	})
	runGateway(l.t, e.g)
	return e
}

// catchUp lets all edges feed what there is, and everything come to rest.
func (l *logTest) catchUp() {
	for _, e := range l.edges {
		e.catchUp()
	}
	pass(time.Second)
}

// say publishes notes of one user and lane, each as a block, and lets them arrive.
func (l *logTest) say(userID string, p Priority, ids ...string) {
	for _, id := range ids {
		l.publish(note(id, userID, p))
	}
	l.catchUp()
}

// tryJoin is join for what may fail.
func tryJoin(t testing.TB, g *Gateway, userID string, c Cursor, channels ...Channel) (*ledger, error) {
	sink := newLedger(t, g)
	_, err := g.RegisterSession(SessionConfig{ID: "try", UserID: userID, Channels: channels, After: c, Sink: sink})
	return sink, err
}

func TestLogResume(t *testing.T) {
	t.Run("a session goes on at another Gateway exactly, lane by lane", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			var want [NumPriorities][]string
			send := func(phase string) {
				for i := range 40 {
					for p := P0; p <= P3; p++ {
						n := note(fmt.Sprint(phase, i, p), "u", p)
						if i%7 == int(p) {
							n = notice(n.ID, p)
						}
						l.publish(n, note(n.ID, "somebody else", p))
						want[p] = append(want[p], n.ID)
					}
				}
				l.catchUp()
			}
			s, first := join(t, a.g, "s", "u")
			send("before")
			require.NoError(t, s.Close())
			send("missed")
			_, second := join(t, b.g, "s", "u", after(s.Cursor()))
			pass(time.Second)
			send("live")
			for p := P0; p <= P3; p++ {
				require.Equal(t, want[p], append(took(first, p), took(second, p)...), "P%d", p)
			}
			for p, lane := range b.g.Stats().Lanes {
				require.EqualValues(t, 40, lane.Replayed, "P%d", p)
				require.EqualValues(t, 40, lane.Enqueued, "P%d", p)
			}
			require.EqualValues(t, 1, b.asks.Load())
		})
	})
	t.Run("it hops from one to the next with each message", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			at := offline(t, a.g, "u")
			var got []string
			for i := range 20 {
				l.say("u", Priority(i%2), fmt.Sprint("m", i+1))
				e := []*memoryEdge{b, a}[i%2]
				s, sink := join(t, e.g, "s", "u", after(at))
				pass(time.Second)
				require.NoError(t, s.Close())
				got, at = append(got, sink.ids()...), s.Cursor()
			}
			require.Equal(t, series("m", 20), got)
		})
	})
	t.Run("it goes on at a Gateway that was not there yet, and at the one that comes after its own", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			s, _ := join(t, a.g, "s", "u")
			l.say("u", P1, "seen")
			drain(t, a.g)
			l.say("u", P1, series("m", 3)...)
			require.Equal(t, ErrGatewayClosed, s.Err())
			require.Equal(t, series("m", 3), behind(t, l.open("a", GatewayConfig{}).g, "u", s.Cursor()))
		})
	})
	t.Run("what the Gateway still has of it, it does not ask the Log for", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			at := offline(t, a.g, "u")
			l.say("u", P1, series("m", 3)...)
			require.Equal(t, series("m", 3), behind(t, a.g, "u", at))
			require.Zero(t, a.asks.Load())
		})
	})
	t.Run("what has left the history comes from the Log, the rest from the history, once", func(t *testing.T) {
		for _, made := range []func(id string) *Notification{
			func(id string) *Notification { return note(id, "u", P1) },
			func(id string) *Notification { return notice(id, P1) },
		} {
			withLog(t, func(t *testing.T, l *logTest) {
				a := l.open("a", GatewayConfig{BatchSize: 4, OutboxMessages: 16, HistoryMessages: 16})
				at := offline(t, a.g, "u")
				for _, id := range series("m", 25) { // of which 9 have left
					l.publish(made(id))
				}
				l.catchUp()
				require.Equal(t, series("m", 25), behind(t, a.g, "u", at))
				require.EqualValues(t, 1, a.asks.Load())
			})
		}
	})
	t.Run("what was missed is pushed by priority, each lane with its share", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{BatchSize: 10})
			at := offline(t, a.g, "u")
			for p := P3; p < NumPriorities; p-- {
				l.say("u", p, series("m", 50)...)
			}
			_, sink := join(t, b.g, "s", "u", after(at))
			pass(time.Second)
			var counts [NumPriorities]int
			for _, m := range sink.got()[0].ms { // a ledger insists on the order of the lanes
				counts[m.priority]++
			}
			require.Equal(t, [NumPriorities]int{7, 1, 1, 1}, counts)
			for p := P0; p <= P3; p++ {
				require.Equal(t, series("m", 50), took(sink, p))
			}
		})
	})
	t.Run("Live is called once, when what was missed has been pushed, and no batch mixes that with what is live", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{BatchSize: 10})
			at := offline(t, a.g, "u")
			l.say("u", P1, series("m", 25)...)
			l.publish(note("m26", "u", P1)) // on its way
			s, sink := joinLive(t, b.g, "s", "u", at, slowly(time.Millisecond))
			l.catchUp()
			l.say("u", P1, "live")
			require.Equal(t, []int{26}, sink.called())
			require.Equal(t, append(series("m", 26), "live"), sink.ids())
			require.NoError(t, s.Close())

			_, sink = joinLive(t, a.g, "again", "u", s.Cursor())
			synctest.Wait()
			l.say("u", P1, "more")
			require.Equal(t, []int{0}, sink.called(), "at once if there is nothing")
			require.Equal(t, []string{"more"}, sink.ids())
		})
	})
	t.Run("with SlowDropOldest what was dropped is behind the cursor, here and elsewhere", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			cfg := GatewayConfig{BatchSize: 10, OutboxMessages: 20, SlowPolicy: SlowDropOldest}
			a, b := l.open("a", cfg), l.open("b", cfg)
			held := newGate(t)
			s, sink := join(t, a.g, "s", "u", hooked(held.pass))
			l.say("u", P0, "a")
			l.say("u", P1, series("m", 30)...)
			require.Equal(t, uint64(10), s.Dropped())
			require.Equal(t, append([]string{"a"}, series("m", 30)...), behind(t, b.g, "u", s.Cursor()), "the Push that goes on may fail")
			held.open()
			pass(time.Second)
			require.Equal(t, series("m", 30)[10:], took(sink, P1))
			require.Empty(t, behind(t, b.g, "u", s.Cursor()))
		})
	})
	t.Run("one who is new begins with what is published from then on", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			l.say("u", P1, "before")
			_, sink := join(t, a.g, "s", "u")
			l.say("u", P1, "after")
			l.publish(notice("to all", P1))
			l.catchUp()
			require.Equal(t, []string{"after", "to all"}, sink.ids())
		})
	})
	t.Run("a filter decides on what is asked for, and on how much that is", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			cfg := GatewayConfig{BatchSize: 3, OutboxMessages: 16, HistoryMessages: 16}
			a, b := l.open("a", cfg), l.open("b", cfg)
			at := offline(t, a.g, "u")
			for i := range 100 {
				l.publish(on(ChannelAccount, fmt.Sprint("a", i), "u", P1), notice(fmt.Sprint("n", i), P1))
			}
			for _, id := range series("t", 16) {
				l.publish(on(ChannelTrade, id, "u", P1))
			}
			l.catchUp()
			for _, e := range []*memoryEdge{a, b} {
				require.Equal(t, series("t", 16), behind(t, e.g, "u", at, wanting(ChannelTrade)), "at %s", e.g.ID())
				gone(t, e.g, "u", at, ChannelAccount)
				gone(t, e.g, "u", at, ChannelSystem)
				s, sink := join(t, e.g, "none", "u", after(at), wanting())
				pass(time.Second)
				require.Empty(t, sink.ids())
				require.Empty(t, behind(t, e.g, "u", s.Cursor()), "what it did not want is behind its cursor")
				require.NoError(t, s.Close())
			}
		})
	})
	t.Run("two sessions of a user resume each behind its own cursor", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{BatchSize: 5})
			desk, phone := offline(t, a.g, "u"), Cursor{}
			l.say("u", P1, series("m", 12)...)
			s, _ := join(t, a.g, "s", "u", after(desk))
			pass(time.Second)
			phone = s.Cursor()
			l.say("u", P1, series("n", 12)...)
			_, one := join(t, b.g, "phone", "u", after(phone))
			_, other := join(t, b.g, "desk", "u", after(desk))
			l.say("u", P1, "live")
			require.Equal(t, append(series("n", 12), "live"), one.ids())
			require.Equal(t, slices.Concat(series("m", 12), series("n", 12), []string{"live"}), other.ids())
		})
	})
	t.Run("a Push that failed is repeated, wherever the session goes on", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{BatchSize: 4}), l.open("b", GatewayConfig{BatchSize: 4})
			at, pushes := offline(t, a.g, "u"), 0
			l.say("u", P2, series("m", 100)...)
			var got []string
			for i := 0; len(got) < 100; i++ {
				e := []*memoryEdge{b, a}[i%2]
				s, sink := join(t, e.g, "s", "u", after(at), hooked(func(context.Context, []*Message) error {
					if pushes++; pushes%3 == 0 {
						return errors.New("fail")
					}
					return nil
				}))
				pass(time.Second)
				_ = s.Close()
				got, at = append(got, sink.ids()...), s.Cursor()
			}
			require.Equal(t, series("m", 100), got)
		})
	})
}

// A channel that is added while what was missed is replayed counts from then on.
func TestSubscribeDuringReplayFromALog(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 4}
	t.Run("what came of it before is not replayed, what comes is", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", cfg), l.open("b", cfg)
			at := offline(t, a.g, "u")
			for _, id := range series("t", 20) {
				l.publish(on(ChannelTrade, id, "u", P1), on(ChannelAccount, "before"+id, "u", P1))
			}
			l.catchUp()
			held := newGate(t)
			s, sink := join(t, b.g, "s", "u", wanting(ChannelTrade), after(at), hooked(held.pass))
			pass(time.Second)
			l.publish(on(ChannelAccount, "before", "u", P1), notice("before to all", P1))
			l.catchUp()
			s.Subscribe(ChannelAccount, ChannelSystem)
			l.publish(on(ChannelTrade, "trade", "u", P1), on(ChannelAccount, "later", "u", P1), notice("notice", P1))
			l.catchUp()
			held.open()
			pass(time.Second)
			require.NoError(t, s.Err())
			require.Equal(t, append(series("t", 20), "trade", "later", "notice"), sink.ids())
			require.Empty(t, behind(t, a.g, "u", s.Cursor()))
		})
	})
	t.Run("it is no reason to end, though the reader is behind the feeder", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			at := offline(t, a.g, "u")
			e := newMemoryEdge(t, l.memoryLog, "e", cfg) // whose reader has yet to begin
			l.publish(on(ChannelAccount, "missed", "u", P1))
			l.edges = append(l.edges, e)
			l.catchUp()
			s, sink := join(t, e.g, "s", "u", wanting(), after(at))
			s.Subscribe(ChannelAccount, ChannelSystem)
			runGateway(t, e.g)
			pass(time.Second)
			require.NoError(t, s.Err())
			l.publish(on(ChannelAccount, "account", "u", P1), notice("notice", P1))
			l.catchUp()
			require.Equal(t, []string{"account", "notice"}, sink.ids())
		})
	})
}

func TestLogWaits(t *testing.T) {
	// ahead returns a cursor of u from behind m1, m2 and m3, which a has and b has
	// yet to read.
	ahead := func(t *testing.T, l *logTest) (b *memoryEdge, at Cursor) {
		a := l.open("a", GatewayConfig{})
		b = newMemoryEdge(t, l.memoryLog, "b", GatewayConfig{})
		runGateway(t, b.g)
		s, _ := join(t, a.g, "s", "u")
		l.say("u", P1, series("m", 3)...)
		l.edges = append(l.edges, b)
		return b, s.Cursor()
	}
	t.Run("a cursor from a Gateway that was faster waits for this one", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := ahead(t, l)
			fed := make(chan struct{})
			go func() { // ends after 4 s
				nap(4 * time.Second)
				b.catchUp()
				close(fed)
			}()
			began := time.Now()
			_, sink := join(t, b.g, "s", "u", after(at))
			require.GreaterOrEqual(t, time.Since(began), 4*time.Second)
			<-fed
			l.say("u", P1, "live")
			require.Equal(t, []string{"live"}, sink.ids())
		})
	})
	t.Run("what it has seen elsewhere is not repeated though it is still in the inbox", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			b := newMemoryEdge(t, l.memoryLog, "b", GatewayConfig{}) // whose reader has yet to begin
			from := offline(t, b.g, "u")
			s, _ := join(t, a.g, "s", "u")
			l.say("u", P1, series("m", 3)...)
			l.edges = append(l.edges, b)
			b.catchUp()
			_, sink := join(t, b.g, "s", "u", after(s.Cursor()))
			_, other := join(t, b.g, "other", "u", after(from))
			runGateway(t, b.g)
			l.say("u", P1, "live")
			require.Equal(t, []string{"live"}, sink.ids())
			require.Equal(t, append(series("m", 3), "live"), other.ids())
		})
	})
	t.Run("after 5 s it is ErrTryAgain, and later it is good", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := ahead(t, l)
			began := time.Now()
			_, err := tryJoin(t, b.g, "u", at)
			require.ErrorIs(t, err, ErrTryAgain)
			require.Equal(t, 5*time.Second, time.Since(began).Truncate(10*time.Millisecond))
			require.Zero(t, b.g.Stats().Sessions)
			l.catchUp()
			require.Empty(t, behind(t, b.g, "u", at))
		})
	})
	for name, stop := range map[string]func(t *testing.T, g *Gateway){
		"Shutdown":       func(t *testing.T, g *Gateway) { drain(t, g) },
		"the end of Run": func(_ *testing.T, g *Gateway) { g.life.cut(nil); rouse(g.wake) },
	} {
		t.Run("it does not keep anybody behind "+name, func(t *testing.T) {
			withLog(t, func(t *testing.T, l *logTest) {
				b, at := ahead(t, l)
				began, stopped := time.Now(), make(chan struct{})
				go func() { // ends after a second
					nap(time.Second)
					stop(t, b.g)
					close(stopped)
				}()
				_, err := tryJoin(t, b.g, "u", at)
				require.ErrorIs(t, err, ErrClosed)
				require.Equal(t, time.Second, time.Since(began))
				<-stopped
			})
		})
	}
	t.Run("a cursor from beyond the end of the log is gone at once", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := ahead(t, l)
			l.lose(P1)
			began := time.Now()
			gone(t, b.g, "u", at)
			require.Equal(t, began, time.Now())
		})
	})
	t.Run("it is gone at once when the log begins anew meanwhile", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := ahead(t, l)
			fed := make(chan struct{})
			go func() { // ends after a second
				nap(time.Second)
				l.renew()
				b.catchUp()
				close(fed)
			}()
			began := time.Now()
			gone(t, b.g, "u", at)
			require.Less(t, time.Since(began), 2*time.Second)
			<-fed
		})
	})
}

func TestLogFails(t *testing.T) {
	// missing returns an edge that does not have what u missed.
	missing := func(t *testing.T, l *logTest, cfg GatewayConfig) (b *memoryEdge, at Cursor) {
		a, b := l.open("a", GatewayConfig{}), l.open("b", cfg)
		at = offline(t, a.g, "u")
		l.say("u", P1, series("m", 5)...)
		return b, at
	}
	t.Run("an error of Missed is ErrTryAgain, and tells what it was", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{})
			fail := errors.New("disk")
			b.onMissed = func(context.Context) error { return fail }
			_, err := tryJoin(t, b.g, "u", at)
			require.ErrorIs(t, err, ErrTryAgain)
			require.ErrorIs(t, err, fail)
			require.NotErrorIs(t, err, ErrCursorGone)
			require.Zero(t, b.g.Stats().Sessions)
			b.onMissed = nil
			require.Equal(t, series("m", 5), behind(t, b.g, "u", at))
		})
	})
	t.Run("a Missed that does not answer is told to stop after 5 s", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{})
			b.onMissed = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			began := time.Now()
			_, err := tryJoin(t, b.g, "u", at)
			require.ErrorIs(t, err, ErrTryAgain)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 5*time.Second, time.Since(began))
		})
	})
	t.Run("ErrCursorGone of Missed is ErrCursorGone", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{})
			l.trim(P1, 3)
			gone(t, b.g, "u", at)
			require.EqualValues(t, 1, b.asks.Load())
		})
	})
	t.Run("a Gateway whose index begins later says so", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{})
			b.from = l.ends()
			gone(t, b.g, "u", at)
		})
	})
	t.Run("what Missed should not have returned is ErrTryAgain", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			at := offline(t, a.g, "u")
			l.say("u", P1, series("m", 5)...)
			b := newMemoryEdge(t, l.memoryLog, "b", GatewayConfig{})
			g := newGateway(t, "g", keeping(GatewayConfig{Log: wrongLog{b}}))
			_, err := tryJoin(t, g, "u", at)
			require.ErrorIs(t, err, ErrTryAgain)
			require.ErrorIs(t, err, ErrInvalid)
		})
	})
	t.Run("more than HistoryMessages of what was missed is ErrCursorGone", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{BatchSize: 4, OutboxMessages: 6, HistoryMessages: 6})
			l.say("u", P0, "m6")
			require.Equal(t, append([]string{"m6"}, series("m", 5)...), behind(t, b.g, "u", at))
			b = l.open("c", GatewayConfig{BatchSize: 4, OutboxMessages: 5, HistoryMessages: 5})
			gone(t, b.g, "u", at)
		})
	})
	t.Run("what left the history while Missed was asked is asked for again", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{BatchSize: 4, OutboxMessages: 16, HistoryMessages: 16})
			b.onMissed = func(context.Context) error {
				b.onMissed = nil
				for i := range 20 { // four more than the history keeps
					l.publish(note(fmt.Sprint("m", 6+i), "u", P1))
				}
				l.catchUp()
				return nil
			}
			require.Equal(t, series("m", 25), behind(t, b.g, "u", at))
			require.EqualValues(t, 2, b.asks.Load())
		})
	})
	t.Run("a Gap while Missed is asked lets it be asked again", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{})
			b.onMissed = func(context.Context) error {
				b.onMissed = nil
				l.publish(note("m6", "u", P1))
				l.catchUp()
				b.g.Gap()
				return nil
			}
			require.Equal(t, series("m", 6), behind(t, b.g, "u", at))
			require.EqualValues(t, 2, b.asks.Load())
		})
	})
	t.Run("a history that evicts faster than Missed answers is ErrTryAgain", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			b, at := missing(t, l, GatewayConfig{HistoryTotal: 10})
			b.onMissed = func(context.Context) error {
				l.say("u", P1, series("more", 12)...)
				return nil
			}
			_, err := tryJoin(t, b.g, "u", at)
			require.ErrorIs(t, err, ErrTryAgain)
			require.EqualValues(t, 4, b.asks.Load())
		})
	})
}

// A wrongLog returns what was missed twice.
type wrongLog struct{ *memoryEdge }

func (w wrongLog) Missed(ctx context.Context, userID string, channels []Channel, after, upTo [NumPriorities]uint64, most int) ([]*Message, error) {
	list, err := w.memoryEdge.Missed(ctx, userID, channels, after, upTo, most)
	return append(list, list...), err
}

func TestLogIsNotAskedInVain(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  GatewayConfig
		want error
		mar  func(t *testing.T, b *memoryEdge, c *Cursor)
	}{
		{"MaxSessions", GatewayConfig{MaxSessions: 1}, ErrTooManySessions, func(t *testing.T, b *memoryEdge, _ *Cursor) { join(t, b.g, "other", "v") }},
		{"the session's ID", GatewayConfig{}, ErrSessionExists, func(t *testing.T, b *memoryEdge, _ *Cursor) { join(t, b.g, "try", "v") }},
		{"Shutdown", GatewayConfig{}, ErrClosed, func(t *testing.T, b *memoryEdge, _ *Cursor) { drain(t, b.g) }},
		{"the epoch", GatewayConfig{}, ErrCursorGone, func(_ *testing.T, _ *memoryEdge, c *Cursor) { c.epoch++ }},
		{"a cursor without a Log", GatewayConfig{}, ErrCursorGone, func(_ *testing.T, _ *memoryEdge, c *Cursor) { c.sealed = false }},
	} {
		t.Run(row.name+" is looked at before it, and nothing is left behind", func(t *testing.T) {
			withLog(t, func(t *testing.T, l *logTest) {
				a, b := l.open("a", GatewayConfig{}), l.open("b", row.cfg)
				at := offline(t, a.g, "u")
				l.say("u", P1, series("m", 5)...)
				row.mar(t, b, &at)
				before := b.g.Stats()
				_, err := tryJoin(t, b.g, "u", at)
				require.ErrorIs(t, err, row.want)
				require.Zero(t, b.asks.Load())
				require.Equal(t, before.Users, b.g.Stats().Users)
				require.Equal(t, before.Sessions, b.g.Stats().Sessions)
			})
		})
	}
	t.Run("a user that has MaxSessionsPerUser at MaxSessions replaces its oldest all the same", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{MaxSessions: 1, MaxSessionsPerUser: 1})
			at := offline(t, a.g, "u")
			l.say("u", P1, series("m", 5)...)
			old, _ := join(t, b.g, "old", "u")
			require.Equal(t, series("m", 5), behind(t, b.g, "u", at))
			require.Equal(t, ErrSessionReplaced, old.Err())
		})
	})
}

// Whoever is new at a Gateway comes into its table before At is read, and the
// feeder raises At before it looks into the table: each message reaches the user
// one way or the other. Here something comes at each moment in between.
func TestLogAndANewUser(t *testing.T) {
	for _, resumes := range []bool{true, false} {
		t.Run(fmt.Sprintf("nothing is lost that is fed whenever At is read, resumed %t", resumes), func(t *testing.T) {
			withLog(t, func(t *testing.T, l *logTest) {
				a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
				var from Cursor
				if resumes {
					from = offline(t, a.g, "u")
				}
				n := 0
				b.onAt = func() {
					n++
					l.publish(note(fmt.Sprint("m", n), "u", P1))
					b.catchUp() // as the feeder does, which is a goroutine of its own
				}
				s, sink := join(t, b.g, "s", "u", after(from))
				b.onAt = nil
				if !resumes {
					from = s.Cursor() // of before the first Push: nothing has let it run
				}
				l.say("u", P1, "last")
				require.Greater(t, n, 1)
				require.Equal(t, behind(t, a.g, "u", from), sink.ids(), "what the log has behind %v", from.seqs)
				if resumes {
					require.Equal(t, append(series("m", n), "last"), sink.ids())
				}
			})
		})
		t.Run(fmt.Sprintf("nothing is lost of a piece that is in At when the user comes, resumed %t", resumes), func(t *testing.T) {
			withLog(t, func(t *testing.T, l *logTest) {
				a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
				var from Cursor
				if resumes {
					from = offline(t, a.g, "u")
				}
				var s *Session
				var sink *ledger
				b.onRaised = func(Priority) {
					b.onRaised = nil
					s, sink = join(t, b.g, "s", "u", after(from))
				}
				var block []*Notification
				for _, id := range series("m", 5) {
					block = append(block, note(id, "u", P1))
				}
				l.publish(block...)
				b.catchUp()
				if !resumes {
					from = s.Cursor()
				}
				l.say("u", P1, "last")
				require.Equal(t, behind(t, a.g, "u", from), sink.ids(), "what the log has behind %v", from.seqs)
				if resumes {
					require.Equal(t, append(series("m", 5), "last"), sink.ids())
				}
			})
		})
	}
	t.Run("a user who was forgotten in between is new again", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			b := l.open("b", GatewayConfig{HistoryTTL: time.Minute})
			from := offline(t, b.g, "u")
			l.say("u", P1, "m1")
			pass(time.Hour)
			require.False(t, b.g.Holds("u"))
			l.say("u", P1, "m2")
			_, sink := join(t, b.g, "s", "u")
			l.say("u", P1, "m3")
			require.Equal(t, []string{"m3"}, sink.ids())
			require.Equal(t, series("m", 3), behind(t, b.g, "u", from))
			require.Equal(t, series("m", 3), behind(t, a.g, "u", from))
		})
	})
}

func TestLogConfig(t *testing.T) {
	t.Run("a Log without HistoryMessages is refused", func(t *testing.T) {
		e := &memoryEdge{log: newMemoryLog()}
		_, err := NewGateway("g", GatewayConfig{Log: e})
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "HistoryMessages")
	})
	t.Run("a Broker takes no Gateway that has a Log", func(t *testing.T) {
		e := newMemoryEdge(t, newMemoryLog(), "e", GatewayConfig{})
		require.ErrorIs(t, newBroker(t, BrokerConfig{}).RegisterGateway(e.g), ErrInvalid)
	})
	t.Run("Holds tells whose messages are to come: of those with a session, of those with a history, and of all", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			e := l.open("e", GatewayConfig{HistoryTTL: time.Minute})
			require.True(t, e.g.Holds(AllUsers))
			require.False(t, e.g.Holds("u"))
			s, _ := join(t, e.g, "s", "u")
			require.True(t, e.g.Holds("u"))
			require.NoError(t, s.Close())
			require.True(t, e.g.Holds("u"))
			pass(time.Minute)
			require.False(t, e.g.Holds("u"))
		})
	})
	t.Run("what has no number, a number that does not ascend, or no place in this lane is Invalid, and nothing else suffers", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			e := newMemoryEdge(t, l.memoryLog, "e", GatewayConfig{})
			runGateway(t, e.g)
			_, sink := join(t, e.g, "s", "u")
			send := func(p Priority, m *Message) { e.send(p, m, nil) }
			send(P1, NewMessageAt(note("m1", "u", P1), 5))
			bad := []*Message{
				NewMessage(note("without", "u", P1)),
				nil,
				NewMessageAt(note("zero", "u", P1), 0),
				NewMessageAt(note("again", "u", P1), 5),
				NewMessageAt(note("back", "u", P1), 4),
				NewMessageAt(note("another lane", "u", P2), 6),
				NewMessageAt(&Notification{ID: "not valid", UserID: "u", Priority: P1}, 6),
				NewMessageAt(nil, 5),
				NewMessageAt(nil, 0),
			}
			for _, m := range bad {
				send(P1, m)
			}
			send(P1, NewMessageAt(note("m2", "u", P1), 6))
			send(P1, NewMessageAt(nil, 9))
			send(P1, NewMessageAt(note("over the mark", "u", P1), 9))
			send(P1, NewMessageAt(note("m3", "u", P1), 10))
			pass(time.Second)
			require.Equal(t, series("m", 3), sink.ids())
			require.Equal(t, GatewayLane{Received: 4, NoSession: 1, Invalid: uint64(len(bad) + 1), Enqueued: 3, Taken: 3}, lane(e.g, P1))
			e.conserved(t)
		})
	})
}

func TestNewMessageAt(t *testing.T) {
	t.Run("it is a Message like any other, with its number behind it", func(t *testing.T) {
		n := specimen(TypeTradeExecuted)
		m, plain := NewMessageAt(n, 1<<63), NewMessage(n)
		require.Same(t, n, m.Notification())
		require.Equal(t, string(plain.JSON()), string(m.JSON()))
		require.EqualValues(t, uint64(1)<<63, numberedOf(m).number)
		require.Same(t, m, &numberedOf(m).Message)
		require.Nil(t, numberedOf(plain))
		require.Nil(t, numberedOf(newMessage(n, TypeTradeExecuted, 0)))
		require.Zero(t, unsafe.Offsetof(numbered{}.Message))
	})
	t.Run("it keeps the whole of it alive", func(t *testing.T) {
		var ms []*Message
		for i := range uint64(1000) {
			ms = append(ms, NewMessageAt(note("m", "u", P1), i))
		}
		runtime.GC()
		garbage := make([][]byte, 1000)
		for i := range garbage {
			garbage[i] = bytes.Repeat([]byte{0xff}, int(unsafe.Sizeof(numbered{})))
		}
		for i, m := range ms {
			require.EqualValues(t, i, numberedOf(m).number)
		}
		runtime.KeepAlive(garbage)
	})
	t.Run("a Gateway without a Log takes it as one without a number", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			s, sink := join(t, g, "s", "u")
			for _, number := range []uint64{7, 7, 3, 0} { // means nothing
				g.Inbox()[P1] <- NewMessageAt(note("m", "u", P1), number)
			}
			pass(time.Second)
			require.Len(t, sink.ids(), 4)
			require.Equal(t, [NumPriorities]uint64{P1: 4}, s.Cursor().seqs)
		})
	})
	t.Run("one that is no message is Invalid there", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			g.Inbox()[P0] <- NewMessageAt(nil, 7)
			g.Inbox()[P2] <- NewMessageAt(nil, 7)
			pass(time.Second)
			require.Equal(t, GatewayLane{Invalid: 1}, lane(g, P0))
			require.Equal(t, GatewayLane{Invalid: 1}, lane(g, P2))
		})
	})
	t.Run("one that is no message can be asked what it holds", func(t *testing.T) {
		m := NewMessageAt(nil, 7)
		require.Equal(t, new(Notification), m.Notification())
		require.NotPanics(t, func() { m.JSON() })
	})
}

func TestNewMissed(t *testing.T) {
	after, upTo := [NumPriorities]uint64{10, 10, 10, 10}, [NumPriorities]uint64{20, 20, 10, 20}
	at := func(p Priority, number uint64) *Message { return NewMessageAt(note("m", "u", p), number) }
	t.Run("each lane by itself, in its order", func(t *testing.T) {
		list := []*Message{at(P3, 20), at(P0, 11), at(P1, 15), at(P0, 20), at(P1, 16)}
		m, err := newMissed(list, after, upTo)
		require.NoError(t, err)
		require.Equal(t, upTo, m.upTo)
		require.Equal(t, [NumPriorities][]sequenced{
			P0: {{11, list[1]}, {20, list[3]}},
			P1: {{15, list[2]}, {16, list[4]}},
			P3: {{20, list[0]}},
		}, m.lanes)
	})
	t.Run("nothing", func(t *testing.T) {
		m, err := newMissed(nil, after, upTo)
		require.NoError(t, err)
		require.Equal(t, &missed{upTo: upTo}, m)
	})
	for name, list := range map[string][]*Message{
		"nil":                    {at(P0, 11), nil},
		"one without a number":   {NewMessage(note("m", "u", P1))},
		"one that is not valid":  {NewMessageAt(&Notification{ID: "m", UserID: "u"}, 11)},
		"one that is no message": {NewMessageAt(nil, 11)},
		"one from before":        {at(P0, 10)},
		"one from beyond":        {at(P0, 21)},
		"one that was not asked": {at(P2, 11)},
		"one twice":              {at(P0, 11), at(P1, 12), at(P0, 11)},
		"two out of order":       {at(P0, 12), at(P0, 11)},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			_, err := newMissed(list, after, upTo)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, fmt.Sprint("message ", len(list)-1, " "))
		})
	}
}
