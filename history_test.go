package notification

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// keeping is a GatewayConfig with history whose sessions never expire, so that
// only HistoryTTL moves in a bubble's time.
func keeping(cfg GatewayConfig) GatewayConfig {
	cfg.HistoryMessages = cmp.Or(cfg.HistoryMessages, 1024)
	cfg.SessionTimeout = cmp.Or(cfg.SessionTimeout, -1)
	return cfg
}

// feed puts notifications into the inbox, each into its lane.
func feed(g *Gateway, notes ...*Notification) {
	for _, n := range notes {
		g.Inbox()[n.Priority] <- NewMessage(n)
	}
}

// feedAll feeds notes of one user and lane.
func feedAll(g *Gateway, userID string, p Priority, ids []string) {
	for _, id := range ids {
		feed(g, note(id, userID, p))
	}
}

// on is note with a payload of that channel.
func on(ch Channel, id, userID string, p Priority) *Notification {
	n := note(id, userID, p)
	switch ch {
	case ChannelTrade:
		n.Payload = OrderFilled{OrderID: id}
	case ChannelPosition:
		n.Payload = PositionUpdate{UserID: userID}
	case ChannelRisk:
		n.Payload = RiskAlert{UserID: userID}
	case ChannelSystem:
		n.Payload = SystemNotice{Title: id}
	}
	return n
}

// A device is what a user connects with, again and again. Like a client of the
// real thing it remembers the cursor behind the last batch that it took.
type device struct {
	g        *Gateway
	userID   string
	channels []Channel
	push     func(ctx context.Context, batch []*Message) error // first, if set; the batch is taken if it returns nil

	mu     sync.Mutex
	got    [NumPriorities][]string
	cursor Cursor
	conns  int
}

// A conn is one of its connections.
type conn struct {
	d     *device
	s     *Session
	ready chan struct{} // s is set: a replay may be pushed before RegisterSession has returned
}

func (c *conn) Push(ctx context.Context, batch []*Message) error {
	<-c.ready
	if c.d.push != nil {
		if err := c.d.push(ctx, batch); err != nil {
			return err
		}
	}
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for _, m := range batch {
		c.d.got[m.priority] = append(c.d.got[m.priority], m.n.ID)
	}
	c.d.cursor = c.s.Cursor()
	return nil
}

func (c *conn) Close(error) {}

// dial registers a session behind a cursor.
func (d *device) dial(after Cursor) (*Session, error) {
	d.mu.Lock()
	d.conns++
	id := fmt.Sprintf("%s-%p-%d", d.userID, d, d.conns)
	d.mu.Unlock()
	c := &conn{d: d, ready: make(chan struct{})}
	s, err := d.g.RegisterSession(SessionConfig{ID: id, UserID: d.userID, Sink: c, Channels: d.channels, After: after})
	c.s = s
	close(c.ready)
	return s, err
}

// connect goes on where the device has got to, the first time from now on.
func (d *device) connect(t testing.TB) *Session {
	t.Helper()
	d.mu.Lock()
	after := d.cursor
	d.mu.Unlock()
	s, err := d.dial(after)
	require.NoError(t, err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cursor == (Cursor{}) { // not even a first batch yet
		d.cursor = s.Cursor()
	}
	return s
}

// lane returns what the device took of a lane since it was last asked.
func (d *device) lane(p Priority) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	got := d.got[p]
	d.got[p] = nil
	return got
}

// balanced requires that what went into the outboxes of a Gateway at rest came
// out of them or was counted.
func balanced(t testing.TB, g *Gateway) {
	t.Helper()
	for p, l := range g.Stats().Lanes {
		require.Equal(t, l.Enqueued+l.Replayed, l.Taken+l.DroppedSlow+l.DroppedEnded+uint64(l.Pending), "P%d: Enqueued + Replayed = Taken + DroppedSlow + DroppedEnded + Pending", p)
	}
}

// bubble runs f with a Gateway that runs, in virtual time.
func bubble(t *testing.T, cfg GatewayConfig, f func(t *testing.T, g *Gateway)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, "g", keeping(cfg))
		runGateway(t, g)
		f(t, g)
		synctest.Wait()
		balanced(t, g)
	})
}

func TestResume(t *testing.T) {
	t.Run("what was missed comes per lane in its order, then what is live", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			var want [NumPriorities][]string
			send := func(phase string) {
				for i := range 40 {
					for p := P0; p <= P3; p++ {
						n := note(fmt.Sprint(phase, i, p), "u", p)
						if i%7 == int(p) {
							n = notice(n.ID, p)
						}
						feed(g, n, note(n.ID, "somebody else", p))
						want[p] = append(want[p], n.ID)
					}
				}
				pass(time.Second)
			}
			s := d.connect(t)
			send("before")
			require.NoError(t, s.Close())
			send("missed")
			d.connect(t)
			pass(time.Second)
			send("after")
			for p := P0; p <= P3; p++ {
				require.Equal(t, want[p], d.lane(p), "P%d", p)
			}
			for p, l := range g.Stats().Lanes {
				require.EqualValues(t, 40, l.Replayed, "P%d", p)
				require.EqualValues(t, 80, l.Enqueued, "P%d", p)
			}
		})
	})
	t.Run("what becomes live while the replay runs comes behind it, once", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 95))
			pass(time.Second)
			next := 95
			d.push = func(context.Context, []*Message) error {
				if next < 200 { // more than the batch takes away, so that the replay is chased
					for range 12 {
						next++
						feed(g, note(fmt.Sprint("m", next), "u", P1))
					}
					nap(time.Millisecond)
				}
				return nil
			}
			d.connect(t)
			pass(time.Minute)
			require.Equal(t, series("m", next), d.lane(P1))
		})
	})
	t.Run("a Push that failed is repeated, one that returned nil is not", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 4}, func(t *testing.T, g *Gateway) {
			fail := errors.New("fail")
			d := &device{g: g, userID: "u"}
			pushes := 0
			d.push = func(context.Context, []*Message) error {
				if pushes++; pushes%3 == 0 {
					return fail
				}
				return nil
			}
			s := d.connect(t)
			feedAll(g, "u", P2, series("m", 100))
			for {
				pass(time.Second)
				if s.Err() == nil {
					break
				}
				require.Equal(t, fail, s.Err())
				s = d.connect(t)
			}
			require.Equal(t, series("m", 100), d.lane(P2))
			require.Positive(t, g.Stats().Ended.Failed)
		})
	})
	t.Run("the filter of the new session decides on what is replayed", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 3}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			var risks, others []string
			for i := range 50 {
				ch := ChannelTrade + Channel(i%4)
				n := on(ch, fmt.Sprint("m", i), "u", P1)
				feed(g, n)
				if ch == ChannelRisk {
					risks = append(risks, n.ID)
				} else {
					others = append(others, n.ID)
				}
			}
			pass(time.Second)
			from := d.cursor
			d.channels = []Channel{ChannelRisk}
			require.NoError(t, closed(d.connect(t)))
			require.Equal(t, risks, d.lane(P1))

			d.cursor, d.channels = from, []Channel{ChannelTrade, ChannelAccount, ChannelPosition}
			require.NoError(t, closed(d.connect(t)))
			require.Equal(t, others, d.lane(P1))

			d.cursor, d.channels = from, []Channel{}
			s := d.connect(t)
			pass(time.Second)
			require.Empty(t, d.lane(P1))
			// What that session did not want is behind its cursor.
			d.cursor, d.channels = s.Cursor(), nil
			require.NoError(t, closed(d.connect(t)))
			require.Empty(t, d.lane(P1))
		})
	})
	t.Run("a filter that changes in the middle of a replay decides from there on", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 4}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			var want []string
			for i := range 40 {
				ch := ChannelTrade + Channel(i%2)
				feed(g, on(ch, fmt.Sprint("m", i), "u", P1))
				if i < 4 || ch == ChannelTrade {
					want = append(want, fmt.Sprint("m", i))
				}
			}
			pass(time.Second)
			d.push = func(context.Context, []*Message) error {
				for s := range g.UserSessions("u") {
					s.Subscribe(ChannelTrade)
				}
				return nil
			}
			d.connect(t)
			pass(time.Second)
			require.Equal(t, want, d.lane(P1))
		})
	})
	t.Run("a batch of the replay gives every lane its share", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			for p := P0; p <= P3; p++ {
				feedAll(g, "u", p, series("m", 50))
			}
			pass(time.Second)
			var first []*Message
			d.push = func(_ context.Context, batch []*Message) error {
				if first == nil {
					first = slices.Clone(batch)
					require.True(t, slices.IsSortedFunc(batch, func(x, y *Message) int { return cmp.Compare(x.priority, y.priority) }), "P0 first")
				}
				return nil
			}
			d.connect(t)
			pass(time.Second)
			var counts [NumPriorities]int
			for _, m := range first {
				counts[m.priority]++
			}
			require.Equal(t, [NumPriorities]int{7, 1, 1, 1}, counts)
		})
	})
	t.Run("two devices of a user resume each behind its own cursor", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5}, func(t *testing.T, g *Gateway) {
			phone, desk := &device{g: g, userID: "u"}, &device{g: g, userID: "u"}
			s := phone.connect(t)
			desk.connect(t)
			feedAll(g, "u", P1, series("a", 12))
			pass(time.Second)
			require.NoError(t, s.Close())
			feedAll(g, "u", P1, series("b", 12))
			pass(time.Second)
			phone.connect(t)
			feedAll(g, "u", P1, series("c", 12))
			pass(time.Second)
			want := slices.Concat(series("a", 12), series("b", 12), series("c", 12))
			require.Equal(t, want, phone.lane(P1))
			require.Equal(t, want, desk.lane(P1))
		})
	})
	t.Run("two sessions that resume behind one cursor both get everything", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 60))
			pass(time.Second)
			twins := [2]*device{{g: g, userID: "u", cursor: d.cursor}, {g: g, userID: "u", cursor: d.cursor}}
			for _, twin := range twins {
				go twin.connect(t)
			}
			pass(time.Second)
			for _, twin := range twins {
				require.Equal(t, series("m", 60), twin.lane(P1))
			}
		})
	})
	t.Run("a session resumes behind a cursor of a session that lives", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			feedAll(g, "u", P1, series("a", 3))
			pass(time.Second)
			other := &device{g: g, userID: "u", cursor: s.Cursor()}
			feedAll(g, "u", P1, series("b", 3))
			pass(time.Second)
			other.connect(t)
			pass(time.Second)
			require.Equal(t, series("b", 3), other.lane(P1))
		})
	})
	t.Run("a session registered before Run resumes as well", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, "g", keeping(GatewayConfig{}))
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			d.connect(t)
			feedAll(g, "u", P1, series("m", 5))
			runGateway(t, g)
			pass(time.Second)
			require.Equal(t, series("m", 5), d.lane(P1))
		})
	})
}

// closed lets what is under way arrive and closes s.
func closed(s *Session) error {
	pass(time.Second)
	return s.Close()
}

func TestSessionCursor(t *testing.T) {
	t.Run("there is one before the first batch, and it resumes", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return errors.New("never") })})
			require.NoError(t, err)
			s, _ := g.Session("s")
			require.NotZero(t, s.Cursor())
			d := &device{g: g, userID: "u", cursor: s.Cursor()}
			feedAll(g, "u", P0, series("m", 3))
			pass(time.Second)
			require.Error(t, s.Err())
			d.connect(t)
			pass(time.Second)
			require.Equal(t, series("m", 3), d.lane(P0))
		})
	})
	t.Run("it is behind the batch inside Push, behind it from outside while that runs, and before it once it has failed", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			fail, open := errors.New("fail"), make(chan error)
			var inside Cursor
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			first := s.Cursor()
			d.push = func(context.Context, []*Message) error {
				inside = s.Cursor()
				return <-open
			}
			feedAll(g, "u", P0, series("m", 1))
			pass(time.Second)
			require.NotEqual(t, first, inside)
			require.Equal(t, inside, s.Cursor(), "from outside")
			feedAll(g, "u", P0, series("n", 1))
			pass(time.Second)
			require.Equal(t, inside, s.Cursor(), "what waits is not behind it")
			open <- nil
			pass(time.Second)
			require.Equal(t, uint64(2), s.Cursor().numbers[P0])
			open <- fail
			pass(time.Second)
			require.Equal(t, fail, s.Err())
			require.Equal(t, d.cursor, s.Cursor(), "what was taken last")
			require.Equal(t, inside.run, s.Cursor().run)
			require.Equal(t, uint64(1), s.Cursor().numbers[P0])
		})
	})
	t.Run("it is per lane: what overtakes does not move the others", func(t *testing.T) {
		bubble(t, GatewayConfig{MaxDelay: [NumPriorities]time.Duration{0, time.Hour, time.Hour, time.Hour}}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			feed(g, note("p3", "u", P3), note("p1", "u", P1))
			pass(time.Second)
			require.Equal(t, [NumPriorities]uint64{}, s.Cursor().numbers, "they wait")
			require.NoError(t, s.Close())
			require.Equal(t, [NumPriorities]uint64{}, s.Cursor().numbers, "they were dropped")
			d.connect(t)
			pass(time.Second)
			require.Equal(t, []string{"p1"}, d.lane(P1))
			require.Equal(t, []string{"p3"}, d.lane(P3))
		})
	})

	// Each row ends a session that has taken a1 and a2 and whose Push of b1 is
	// running while c1 waits. repeated says whether b1 was not taken.
	var fail = errors.New("fail")
	ends := []struct {
		name     string
		reason   error
		cfg      GatewayConfig
		end      func(t *testing.T, g *Gateway, s *Session)
		returns  func(ctx context.Context) error
		repeated bool
	}{
		{name: "closed while Push takes the batch", reason: ErrSessionClosed,
			end: func(t *testing.T, g *Gateway, s *Session) { require.NoError(t, s.Close()) }},
		{name: "closed, at which Push gives up", reason: ErrSessionClosed, repeated: true,
			end:     func(t *testing.T, g *Gateway, s *Session) { require.NoError(t, g.UnregisterSession(s.ID())) },
			returns: func(ctx context.Context) error { return context.Cause(ctx) }},
		{name: "expired", reason: ErrSessionExpired, cfg: GatewayConfig{SessionTimeout: time.Minute, SweepInterval: time.Second},
			end: func(t *testing.T, g *Gateway, s *Session) { pass(2 * time.Minute) }},
		{name: "replaced", reason: ErrSessionReplaced, cfg: GatewayConfig{MaxSessionsPerUser: 1}, repeated: true,
			end: func(t *testing.T, g *Gateway, s *Session) {
				_, err := (&device{g: g, userID: "u", channels: []Channel{}}).dial(Cursor{})
				require.NoError(t, err)
			},
			returns: func(ctx context.Context) error { return ctx.Err() }},
		{name: "slow", reason: ErrSlowConsumer, cfg: GatewayConfig{BatchSize: 2, OutboxMessages: 4}, repeated: true,
			end: func(t *testing.T, g *Gateway, s *Session) {
				for i := range 4 {
					feed(g, note(fmt.Sprint("c", i+2), "u", P0))
				}
				pass(time.Second)
			},
			returns: func(ctx context.Context) error { return ctx.Err() }},
		{name: "failed", reason: fail, repeated: true, end: func(*testing.T, *Gateway, *Session) {},
			returns: func(context.Context) error { return fail }},
		{name: "panicked", reason: ErrSinkPanic, repeated: true, end: func(*testing.T, *Gateway, *Session) {},
			returns: func(context.Context) error { panic("sink") }},
		{name: "lost to a Goexit", reason: ErrSinkPanic, repeated: true, end: func(*testing.T, *Gateway, *Session) {},
			returns: func(context.Context) error { runtime.Goexit(); return nil }},
	}
	for _, row := range ends {
		t.Run("it stands behind what was taken after the session was "+row.name, func(t *testing.T) {
			bubble(t, row.cfg, func(t *testing.T, g *Gateway) {
				goOn := make(chan struct{})
				d := &device{g: g, userID: "u"}
				s := d.connect(t)
				feedAll(g, "u", P0, series("a", 2))
				pass(time.Second)
				d.push = func(ctx context.Context, _ []*Message) error {
					<-goOn
					if row.returns != nil {
						return row.returns(ctx)
					}
					return nil
				}
				feedAll(g, "u", P0, series("b", 1))
				pass(time.Second)
				feedAll(g, "u", P0, series("c", 1))
				pass(time.Second)
				row.end(t, g, s)
				d.mu.Lock()
				close(goOn)
				d.mu.Unlock()
				<-s.Done()
				require.ErrorIs(t, s.Err(), row.reason)
				want := series("a", 2)
				if !row.repeated {
					want = append(want, "b1")
				}
				require.Equal(t, want, d.lane(P0))
				end := s.Cursor()
				require.Equal(t, uint64(len(want)), end.numbers[P0])

				d.push, d.cursor = nil, end
				d.connect(t)
				pass(time.Second)
				var rest []string
				if row.repeated {
					rest = append(rest, "b1")
				}
				rest = append(rest, "c1")
				if row.reason == ErrSlowConsumer {
					rest = append(rest, "c2", "c3", "c4", "c5")
				}
				require.Equal(t, rest, d.lane(P0))
				require.Equal(t, end, s.Cursor(), "it moves no more")
			})
		})
	}
	t.Run("it is void after a Gap", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			feedAll(g, "u", P0, series("a", 2))
			pass(time.Second)
			g.Gap()
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			require.Equal(t, d.cursor, s.Cursor(), "it still tells where the session had got to")
			_, err := d.dial(s.Cursor())
			require.ErrorIs(t, err, ErrCursorGone)
			_, err = d.dial(Cursor{})
			require.NoError(t, err, "anew")
		})
	})
	t.Run("it can be had after Shutdown, which another Gateway does not take", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, h := newGateway(t, "g", keeping(GatewayConfig{})), newGateway(t, "g", keeping(GatewayConfig{}))
			runGateway(t, g)
			runGateway(t, h)
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			feedAll(g, "u", P0, series("a", 2))
			synctest.Wait()
			drain(t, g)
			require.Equal(t, ErrGatewayClosed, s.Err())
			require.Equal(t, series("a", 2), d.lane(P0))
			require.Equal(t, d.cursor, s.Cursor())
			_, err := d.dial(s.Cursor())
			require.ErrorIs(t, err, ErrClosed)
			d.g = h
			(&device{g: h, userID: "u"}).connect(t)
			_, err = d.dial(s.Cursor())
			require.ErrorIs(t, err, ErrCursorGone)
		})
	})
}

func TestCursorText(t *testing.T) {
	cursors := []Cursor{
		{},
		{run: 1},
		{user: 1},
		{numbers: [NumPriorities]uint64{0, 0, 0, 1}},
		{run: 1 << 63, user: 77, numbers: [NumPriorities]uint64{1, 127, 128, 1 << 40}},
		{run: math.MaxUint64, user: math.MaxUint64, numbers: lanes[uint64](math.MaxUint64)},
	}
	t.Run("every cursor is read back as it was written", func(t *testing.T) {
		for _, c := range cursors {
			text := c.String()
			require.LessOrEqual(t, len(text), 80)
			require.Equal(t, text, strings.Trim(text, "+/=& %"), "it goes into a URL as it is")
			back, err := ParseCursor(text)
			require.NoError(t, err)
			require.Equal(t, c, back)
			raw, err := c.MarshalText()
			require.NoError(t, err)
			require.Equal(t, text, string(raw))
			back = Cursor{run: 99}
			require.NoError(t, back.UnmarshalText(raw))
			require.Equal(t, c, back)
		}
	})
	t.Run("the zero Cursor is the empty text", func(t *testing.T) {
		require.Empty(t, Cursor{}.String())
		c, err := ParseCursor("")
		require.NoError(t, err)
		require.Zero(t, c)
	})
	t.Run("it is a string in JSON", func(t *testing.T) {
		type hello struct {
			Cursor Cursor `json:"cursor"`
		}
		for _, c := range cursors {
			b, err := json.Marshal(hello{c})
			require.NoError(t, err)
			require.Equal(t, `{"cursor":"`+c.String()+`"}`, string(b))
			var back hello
			require.NoError(t, json.Unmarshal(b, &back))
			require.Equal(t, c, back.Cursor)
		}
		require.ErrorIs(t, json.Unmarshal([]byte(`{"cursor":"x"}`), &hello{}), ErrInvalid)
	})
	good := cursors[4].String()
	encode := base64.RawURLEncoding.EncodeToString
	head := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte{cursorVersion}, 5), 6)
	bad := map[string]string{
		"garbage":                           "not a cursor",
		"one character":                     "A",
		"of another version":                encode(append([]byte{cursorVersion + 1}, append(head[1:], 1, 2, 3, 4)...)),
		"without its numbers":               encode(head),
		"with a lane too few":               encode(append(slices.Clip(head), 1, 2, 3)),
		"with a lane too many":              encode(append(slices.Clip(head), 1, 2, 3, 4, 5)),
		"with a number that does not end":   encode(append(slices.Clip(head), 1, 2, 3, 0x80)),
		"with a number over 64 bits":        encode(append(slices.Clip(head), 1, 2, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2)),
		"with a number longer than need be": encode(append(slices.Clip(head), 1, 2, 3, 0x84, 0)),
		"of zero, written out":              encode(append(append([]byte{cursorVersion}, make([]byte, 16)...), 0, 0, 0, 0)),
		"with a line break":                 good[:8] + "\n" + good[8:],
		"with a carriage return at the end": good + "\r",
		"with padding":                      encode(append(slices.Clip(head), 1, 2, 3, 4, 0x81)) + "=",
		"in the alphabet that URLs spoil":   strings.Repeat("+/", 10) + good,
		"with bits set that say nothing":    strings.TrimSuffix(encode(append(slices.Clip(head), 1, 2, 3, 0x80, 1)), "Q") + "R",
		"with a zero byte":                  good + "\x00",
		"with a space before it":            " " + good,
		"that is no UTF-8":                  "\xff\xfe" + good,
		"of 81 bytes":                       strings.Repeat("A", 81),
		"of a megabyte":                     strings.Repeat("A", 1<<20),
	}
	for i := 1; i < len(good); i++ {
		bad[fmt.Sprintf("cut after %d characters", i)] = good[:i]
	}
	for name, text := range bad {
		t.Run("a text "+name+" is ErrInvalid", func(t *testing.T) {
			c, err := ParseCursor(text)
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, c)
			require.Less(t, len(err.Error()), 400, "it does not repeat all that was sent")
			before := Cursor{run: 3}
			c = before
			require.ErrorIs(t, c.UnmarshalText([]byte(text)), ErrInvalid)
			require.Equal(t, before, c, "a failed read changes nothing")
		})
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add("")
	f.Add("A")
	f.Add(Cursor{run: 1}.String())
	f.Add(Cursor{run: 1 << 63, user: 77, numbers: [NumPriorities]uint64{1, 127, 128, 1 << 40}}.String())
	f.Add(Cursor{run: math.MaxUint64, user: math.MaxUint64, numbers: lanes[uint64](math.MaxUint64)}.String())
	g, err := NewGateway("g", GatewayConfig{HistoryMessages: 1024})
	require.NoError(f, err)
	_, err = g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(nil)})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCursor(text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, c)
			return
		}
		require.Equal(t, text, c.String(), "one text for one cursor")
		if c == (Cursor{}) {
			return
		}
		_, err = g.RegisterSession(SessionConfig{ID: "t", UserID: "u", Sink: SinkFunc(nil), After: c})
		require.ErrorIs(t, err, ErrCursorGone)
		require.Equal(t, 1, g.Stats().Sessions)
	})
}

func TestCursorGone(t *testing.T) {
	// cursorOf returns where a new session of the user stands.
	cursorOf := func(t *testing.T, g *Gateway, userID string) Cursor {
		s, err := g.RegisterSession(SessionConfig{ID: "probe", UserID: userID, Sink: SinkFunc(nil), Channels: []Channel{}})
		require.NoError(t, err)
		defer s.Close()
		return s.Cursor()
	}
	rows := []struct {
		name   string
		cursor func(t *testing.T, g *Gateway) Cursor
	}{
		{"of another Gateway", func(t *testing.T, _ *Gateway) Cursor {
			return cursorOf(t, newGateway(t, "other", keeping(GatewayConfig{})), "u")
		}},
		{"of an earlier run of a Gateway with this ID", func(t *testing.T, _ *Gateway) Cursor {
			return cursorOf(t, newGateway(t, "g", keeping(GatewayConfig{})), "u")
		}},
		{"of another user", func(t *testing.T, g *Gateway) Cursor {
			(&device{g: g, userID: "v"}).connect(t)
			return cursorOf(t, g, "v")
		}},
		{"from before a Gap", func(t *testing.T, g *Gateway) Cursor {
			c := cursorOf(t, g, "u")
			g.Gap()
			(&device{g: g, userID: "u"}).connect(t)
			return c
		}},
		{"with a number from the future", func(t *testing.T, g *Gateway) Cursor {
			c := cursorOf(t, g, "u")
			c.numbers[P2]++
			return c
		}},
		{"with the greatest numbers", func(t *testing.T, g *Gateway) Cursor {
			c := cursorOf(t, g, "u")
			c.numbers = lanes[uint64](math.MaxUint64)
			return c
		}},
		{"from before the user's first session", func(t *testing.T, g *Gateway) Cursor {
			c := cursorOf(t, g, "u")
			c.numbers = lanes[uint64](0)
			return c
		}},
		{"of a user who is not known", func(t *testing.T, g *Gateway) Cursor {
			c := cursorOf(t, g, "u")
			c.user++
			return c
		}},
	}
	for _, row := range rows {
		t.Run("a cursor "+row.name+" is refused and nothing has changed", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t, BrokerConfig{})
				g := newGateway(t, "g", keeping(GatewayConfig{MaxSessionsPerUser: 2}))
				require.NoError(t, b.RegisterGateway(g))
				runBroker(t, b)
				runGateway(t, g)
				w := &device{g: g, userID: "w"} // so that no number is zero
				w.connect(t)
				for p := P0; p <= P3; p++ {
					require.NoError(t, b.Publish(note(fmt.Sprint("first", p), "w", p)))
				}
				pass(time.Second)
				u := &device{g: g, userID: "u"}
				s := u.connect(t)
				cursor := row.cursor(t, g)
				require.NoError(t, s.Close())
				pass(time.Second)

				snapshot := func() []any {
					gs, bs := g.Stats(), b.Stats()
					for p := range gs.Lanes {
						gs.Lanes[p].Latency = Histogram{}
						bs.Lanes[p] = counters(bs.Lanes[p])
					}
					bs.DedupSpan = 0
					var away []string
					for u := g.away.first; u != nil; u = u.next {
						away = append(away, fmt.Sprint(u.id, u.awaySince))
					}
					return []any{gs, bs, away, g.awayUntil.Load(), g.kept.Load(), len(g.byID), g.serial, runtime.NumGoroutine()}
				}
				for _, user := range []string{"u", "nobody"} {
					if user == "nobody" && row.name != "of a user who is not known" {
						continue
					}
					nap(time.Second)
					before := snapshot()
					s, err := g.RegisterSession(SessionConfig{ID: "r", UserID: user, After: cursor, Sink: SinkFunc(func(context.Context, []*Message) error {
						t.Error("pushed to")
						return nil
					})})
					require.ErrorIs(t, err, ErrCursorGone)
					require.Nil(t, s)
					require.Equal(t, before, snapshot())
				}
			})
		})
	}
	t.Run("a cursor from before its user was forgotten is refused, though not one number has been given since", func(t *testing.T) {
		bubble(t, GatewayConfig{HistoryTTL: time.Minute}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			pass(time.Minute)
			feedAll(g, "u", P1, series("m", 1)) // nobody keeps it
			pass(time.Second)
			(&device{g: g, userID: "u"}).connect(t)
			_, err := d.dial(d.cursor)
			require.ErrorIs(t, err, ErrCursorGone)
		})
	})
	t.Run("a user who is forgotten was not kept waiting for by a refused cursor", func(t *testing.T) {
		bubble(t, GatewayConfig{HistoryTTL: time.Minute}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			bad := d.cursor
			bad.run++
			pass(time.Minute - time.Nanosecond)
			_, err := d.dial(bad)
			require.ErrorIs(t, err, ErrCursorGone)
			pass(time.Nanosecond)
			require.Zero(t, g.Stats().Users)
		})
	})
	t.Run("a number that only the filter passes over is not missed", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 8}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u", channels: []Channel{ChannelTrade}}
			require.NoError(t, d.connect(t).Close())
			for i := range 100 { // of another channel, and to all: evicted many times over
				feed(g, on(ChannelAccount, fmt.Sprint("a", i), "u", P1), notice(fmt.Sprint("n", i), P1))
			}
			for _, id := range series("t", 3) {
				feed(g, on(ChannelTrade, id, "u", P1))
			}
			pass(time.Second)
			d.connect(t)
			pass(time.Second)
			require.Equal(t, series("t", 3), d.lane(P1))

			start := Cursor{run: d.cursor.run, user: d.cursor.user}
			for _, ch := range []Channel{ChannelAccount, ChannelSystem} {
				other := &device{g: g, userID: "u", channels: []Channel{ch}}
				_, err := other.dial(start)
				require.ErrorIs(t, err, ErrCursorGone, "this one has missed something")
			}
		})
	})
	t.Run("what a replay filtered away is behind its cursor, evicted or not", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 4, HistoryTotal: 4}, func(t *testing.T, g *Gateway) {
			hog := &device{g: g, userID: "hog"}
			hog.connect(t)
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			start := s.Cursor()
			feedAll(g, "hog", P1, series("h", 4)) // from here on u's history keeps nothing
			feedAll(g, "u", P1, series("m", 5))
			pass(time.Second)
			require.Equal(t, series("m", 5), d.lane(P1))
			d.channels = []Channel{}
			quiet, err := d.dial(start)
			require.NoError(t, err)
			pass(time.Second)
			d.channels = nil
			_, err = d.dial(quiet.Cursor())
			require.NoError(t, err, "nothing was missed that was not filtered away")
		})
	})
	t.Run("a filtered session that is quiet for long resumes behind its cursor", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 8}, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u", channels: []Channel{ChannelRisk}}
			s := d.connect(t)
			for i := range 100 {
				for p := P0; p <= P3; p++ {
					feed(g, note(fmt.Sprint("m", p, i), "u", p), notice(fmt.Sprint("n", p, i), p), note(fmt.Sprint("o", p, i), "other", p))
				}
				if i%8 == 0 {
					pass(time.Second)
				}
			}
			pass(time.Second)
			require.NoError(t, s.Close())
			require.Equal(t, lanes[uint64](200), s.Cursor().numbers, "over all that was filtered")
			for p := P0; p <= P3; p++ {
				require.Empty(t, d.lane(p))
			}
			d.cursor, d.channels = s.Cursor(), nil
			d.connect(t)
			pass(time.Second)
			for p := P0; p <= P3; p++ {
				require.Empty(t, d.lane(p), "there was nothing to miss")
			}
		})
	})
}

func TestResumeOfTheSlow(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 10, OutboxMessages: 20, HistoryMessages: 64, Pushers: 2}
	t.Run("a session that ended as slow gets what its outbox held", func(t *testing.T) {
		for _, gaveUp := range []bool{false, true} {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				d := &device{g: g, userID: "u"}
				d.push = func(ctx context.Context, _ []*Message) error {
					<-ctx.Done()
					if gaveUp {
						return ctx.Err()
					}
					return nil
				}
				s := d.connect(t)
				n := 0
				for s.Err() == nil {
					n++
					feed(g, note(fmt.Sprint("m", n), "u", P1))
					if n%10 == 0 {
						pass(time.Millisecond)
					}
				}
				require.Equal(t, ErrSlowConsumer, s.Err())
				require.Equal(t, context.Canceled, s.ctx.Err())
				<-s.Done()
				d.push, d.cursor = nil, s.Cursor()
				d.connect(t)
				feedAll(g, "u", P1, []string{"live"})
				pass(time.Second)
				require.Equal(t, append(series("m", n), "live"), d.lane(P1))
				require.EqualValues(t, 1, g.Stats().Ended.Slow)
			})
		}
	})
	t.Run("a replay of many times the outbox is nobody's slowness", func(t *testing.T) {
		cfg := cfg
		cfg.HistoryMessages = 2000
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 1000))
			pass(time.Second)
			d.push = func(context.Context, []*Message) error { nap(time.Second); return nil }
			s := d.connect(t)
			for i := range 100 { // and what comes meanwhile is not either
				feed(g, note(fmt.Sprint("m", 1001+i), "u", P1))
				pass(time.Second / 2)
			}
			pass(time.Hour)
			require.NoError(t, s.Err())
			require.Equal(t, series("m", 1100), d.lane(P1))
			require.GreaterOrEqual(t, g.Stats().Lanes[P1].Replayed, uint64(1000))
		})
	})
	t.Run("a sink that is slow after the replay still ends as slow", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 10))
			pass(time.Second)
			d.push = func(ctx context.Context, _ []*Message) error { <-ctx.Done(); return ctx.Err() }
			s := d.connect(t)
			pass(time.Second)
			feedAll(g, "u", P1, series("n", 21))
			pass(time.Second)
			require.Equal(t, ErrSlowConsumer, s.Err())
			require.Equal(t, d.cursor, s.Cursor())
		})
	})
	for _, row := range []struct {
		name string
		make func(id string) *Notification
	}{
		{"the user's messages", func(id string) *Notification { return note(id, "u", P1) }},
		{"messages to all", func(id string) *Notification { return notice(id, P1) }},
	} {
		t.Run("a replay that is overtaken by the eviction of "+row.name+" ends as slow, with no hole before it", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				d := &device{g: g, userID: "u"}
				require.NoError(t, d.connect(t).Close())
				n := 0
				send := func(count int) {
					for range count {
						n++
						feed(g, row.make(fmt.Sprint("m", n)))
					}
				}
				send(60)
				pass(time.Second)
				d.push = func(context.Context, []*Message) error { nap(time.Second); return nil }
				s := d.connect(t)
				pass(1500 * time.Millisecond) // in the second batch of ten
				send(60)
				pass(time.Second)
				<-s.Done()
				require.Equal(t, ErrSlowConsumer, s.Err())
				require.Equal(t, series("m", 20), d.lane(P1))
				require.Equal(t, uint64(20), s.Cursor().numbers[P1])
				d.cursor = s.Cursor()
				_, err := d.dial(d.cursor)
				require.ErrorIs(t, err, ErrCursorGone)
				require.EqualValues(t, 1, g.Stats().Ended.Slow)
			})
		})
		t.Run("a replay that is not meant by the eviction of "+row.name+" goes on", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				d := &device{g: g, userID: "u", channels: []Channel{ChannelRisk}}
				require.NoError(t, d.connect(t).Close())
				for _, id := range series("r", 60) {
					feed(g, on(ChannelRisk, id, "u", P0))
				}
				pass(time.Second)
				d.push = func(context.Context, []*Message) error { nap(time.Second); return nil }
				d.connect(t)
				for i := range 500 {
					feed(g, row.make(fmt.Sprint("x", i)))
				}
				pass(time.Minute)
				require.Equal(t, series("r", 60), d.lane(P0))
				require.Empty(t, d.lane(P1))
			})
		})
	}
	t.Run("what SlowDropOldest dropped is behind the cursor, and counted", func(t *testing.T) {
		cfg := cfg
		cfg.SlowPolicy = SlowDropOldest
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			stop := make(chan struct{})
			d.push = func(context.Context, []*Message) error { <-stop; return nil }
			s := d.connect(t)
			feedAll(g, "u", P0, series("a", 1))
			pass(time.Second)
			feedAll(g, "u", P1, series("m", 30))
			pass(time.Second)
			require.Equal(t, uint64(10), s.Dropped())
			require.Equal(t, uint64(10), s.Cursor().numbers[P1])
			close(stop)
			pass(time.Second)
			require.Equal(t, series("m", 30)[10:], d.lane(P1))
			d.connect(t)
			pass(time.Second)
			require.Empty(t, d.lane(P1))
		})
	})
}

func TestHistoryIsBounded(t *testing.T) {
	small := GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 8}
	t.Run("by HistoryMessages per user and lane", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			from := d.cursor
			for p := P0; p <= P3; p++ {
				feedAll(g, "u", p, series("m", 8))
			}
			pass(time.Second)
			require.EqualValues(t, 32, g.kept.Load())
			require.NoError(t, closed(d.connect(t)))
			for p := P0; p <= P3; p++ {
				require.Equal(t, series("m", 8), d.lane(p))
			}
			for p := P0; p <= P3; p++ { // one more in any lane is one too many for the first cursor
				feedAll(g, "u", p, []string{"m9"})
				pass(time.Second)
				require.EqualValues(t, 32, g.kept.Load())
				_, err := d.dial(from)
				require.ErrorIs(t, err, ErrCursorGone, "P%d", p)
				from.numbers[p]++
				require.NoError(t, closed(must(d.dial(from))))
				for p := P0; p <= P3; p++ {
					d.lane(p)
				}
			}
		})
	})
	t.Run("by HistoryMessages per lane for what goes to all, which is kept once", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			var all []*device
			for i := range 50 {
				d := &device{g: g, userID: fmt.Sprint("u", i)}
				require.NoError(t, d.connect(t).Close())
				all = append(all, d)
			}
			for i := range 8 {
				feed(g, notice(fmt.Sprint("n", i), P3))
			}
			pass(time.Second)
			require.Zero(t, g.kept.Load())
			require.Equal(t, 8, g.everyone.lanes[P3].n)
			require.Len(t, g.everyone.lanes[P3].ring, 8)
			for _, d := range all[:25] {
				d.connect(t)
			}
			pass(time.Second)
			for _, d := range all[:25] {
				require.Len(t, d.lane(P3), 8)
			}
			feed(g, notice("n9", P3))
			pass(time.Second)
			require.Equal(t, 8, g.everyone.lanes[P3].n)
			for _, d := range all[25:] {
				_, err := d.dial(d.cursor)
				require.ErrorIs(t, err, ErrCursorGone)
			}
		})
	})
	t.Run("by HistoryTotal: who left first is forgotten first, those with a session last", func(t *testing.T) {
		cfg := small
		cfg.HistoryTotal = 24
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			stay := &device{g: g, userID: "stay"}
			stay.connect(t)
			feedAll(g, "stay", P1, series("m", 6))
			pass(time.Second)
			gone := make(map[string]*device)
			for _, id := range []string{"c", "a", "b"} { // the order in which they leave
				d := &device{g: g, userID: id}
				require.NoError(t, d.connect(t).Close())
				gone[id] = d
				pass(time.Second)
				feedAll(g, id, P1, series("m", 6))
				pass(time.Second)
			}
			require.EqualValues(t, 24, g.kept.Load())
			require.Equal(t, 4, g.Stats().Users)

			feedAll(g, "a", P1, []string{"m7"})
			pass(time.Second)
			require.EqualValues(t, 19, g.kept.Load(), "c's are gone")
			require.Equal(t, 3, g.Stats().Users)
			_, err := gone["c"].dial(gone["c"].cursor)
			require.ErrorIs(t, err, ErrCursorGone)
			require.NoError(t, closed(gone["a"].connect(t)), "and leaves again, so that now b is the first")
			require.Equal(t, series("m", 7), gone["a"].lane(P1))

			feedAll(g, "stay", P2, series("m", 6))
			pass(time.Second)
			require.EqualValues(t, 19, g.kept.Load(), "b's are gone")
			_, err = gone["b"].dial(gone["b"].cursor)
			require.ErrorIs(t, err, ErrCursorGone)
			gone["a"].connect(t)

			feedAll(g, "stay", P3, series("m", 5))
			pass(time.Second)
			require.EqualValues(t, 24, g.kept.Load())
			start := stay.cursor
			feedAll(g, "stay", P3, series("n", 1))
			pass(time.Second)
			require.EqualValues(t, 24, g.kept.Load(), "nobody is away: it lost its own oldest")
			require.Equal(t, 5, historyOf(g, "stay").lanes[P3].n)
			require.Equal(t, 7, historyOf(g, "a").lanes[P1].n)
			start.numbers[P3] = 0
			_, err = stay.dial(start)
			require.ErrorIs(t, err, ErrCursorGone)
		})
	})
	t.Run("by HistoryTotal: the appending user is forgotten as well if it is its turn", func(t *testing.T) {
		cfg := small
		cfg.HistoryTotal = 4
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 5))
			pass(time.Second)
			require.Zero(t, g.kept.Load())
			require.Zero(t, g.Stats().Users)
			_, err := d.dial(d.cursor)
			require.ErrorIs(t, err, ErrCursorGone)
		})
	})
	t.Run("in time by HistoryTTL, exactly, and then nothing is left of it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			cfg := small
			cfg.HistoryTTL = time.Minute
			g := newGateway(t, "g", keeping(cfg))
			require.NoError(t, b.RegisterGateway(g))
			runBroker(t, b)
			runGateway(t, g)
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			other := d.connect(t)
			pass(time.Hour)
			require.NoError(t, s.Close())
			pass(time.Hour)
			require.Equal(t, 1, b.Stats().Users, "the last session counts")
			require.NoError(t, other.Close())
			pass(time.Minute - time.Nanosecond)
			require.NoError(t, b.Publish(note("m1", "u", P0)))
			synctest.Wait()
			require.EqualValues(t, 1, b.Stats().Lanes[P0].Routed, "the route stays that long")
			require.EqualValues(t, 1, g.kept.Load())
			require.Equal(t, 1, g.Stats().Users)
			require.Zero(t, g.Stats().Sessions)
			require.Zero(t, g.Stats().Lanes[P0].NoSession)

			s = d.connect(t)
			pass(time.Hour)
			require.Equal(t, []string{"m1"}, d.lane(P0), "it was in time")
			require.NoError(t, s.Close())
			pass(time.Minute - time.Nanosecond)
			require.Equal(t, 1, b.Stats().Users, "the time begins again")
			pass(time.Nanosecond)
			require.NoError(t, b.Publish(note("m2", "u", P0)))
			synctest.Wait()
			require.EqualValues(t, 1, b.Stats().Lanes[P0].Unrouted)
			forgotten(t, g)
			require.Zero(t, b.Stats().Users)
			_, err := d.dial(d.cursor)
			require.ErrorIs(t, err, ErrCursorGone)
			d.cursor = Cursor{}
			d.connect(t)
			conserved(t, b, g)
		})
	})
	t.Run("in time for ten thousand users, each when its own time has come", func(t *testing.T) {
		cfg := small
		cfg.HistoryTTL = time.Minute
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			const users = 10_000
			for i := range users {
				s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: fmt.Sprint("u", i), Sink: SinkFunc(nil)})
				require.NoError(t, err)
				require.NoError(t, s.Close())
				feed(g, note(fmt.Sprint("m", i), fmt.Sprint("u", i), P1))
				if i%100 == 99 {
					nap(time.Millisecond)
				}
			}
			synctest.Wait()
			require.EqualValues(t, users, g.kept.Load())
			pass(time.Minute - 101*time.Millisecond)
			for i := range 100 {
				pass(time.Millisecond)
				require.Equal(t, users-100*(i+1), g.Stats().Users)
				require.EqualValues(t, users-100*(i+1), g.kept.Load())
			}
			forgotten(t, g)
		})
	})
	t.Run("a user who is back is not forgotten when those who left later are", func(t *testing.T) {
		cfg := small
		cfg.HistoryTTL = time.Minute
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			a, b := &device{g: g, userID: "a"}, &device{g: g, userID: "b"}
			require.NoError(t, a.connect(t).Close())
			require.NoError(t, b.connect(t).Close())
			pass(time.Second)
			a.connect(t)
			pass(time.Minute - time.Second)
			require.Equal(t, 1, g.Stats().Users)
			feedAll(g, "a", P0, series("m", 2))
			pass(time.Hour)
			require.Equal(t, series("m", 2), a.lane(P0))
		})
	})
	t.Run("a Gap lets it go at once", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			(&device{g: g, userID: "v"}).connect(t)
			feedAll(g, "u", P1, series("m", 3))
			feedAll(g, "v", P1, series("m", 3))
			feed(g, notice("n", P1))
			pass(time.Second)
			require.EqualValues(t, 6, g.kept.Load())
			g.Gap()
			pass(time.Second)
			require.Zero(t, g.kept.Load())
			require.Zero(t, g.everyone.lanes[P1].n)
			pass(2 * time.Minute)
			forgotten(t, g)
		})
	})
	t.Run("a message that a Gap overtakes on its way into the history is not counted for ever", func(t *testing.T) {
		g := newGateway(t, "g", keeping(small))
		d := &device{g: g, userID: "u"}
		require.NoError(t, d.connect(t).Close())
		u, _ := g.users.Load("u") // as the reader does, just before
		g.Gap()
		g.keep(u.history, u, NewMessage(note("m", "u", P1)))
		require.Zero(t, g.kept.Load())
	})
	t.Run("Shutdown leaves nobody in the indexes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			g := newGateway(t, "g", keeping(small))
			require.NoError(t, b.RegisterGateway(g))
			runBroker(t, b)
			runGateway(t, g)
			require.NoError(t, (&device{g: g, userID: "u"}).connect(t).Close())
			(&device{g: g, userID: "v"}).connect(t)
			require.NoError(t, b.Publish(note("m", "u", P1)))
			synctest.Wait()
			drain(t, b)
			drain(t, g)
			require.Zero(t, b.Stats().Users)
			require.Zero(t, g.Stats().Users)
			require.Nil(t, g.away.first)
		})
	})
	t.Run("a million accounts that reconnect cannot pin more than HistoryTotal", func(t *testing.T) {
		const total = 1000
		cfg := small
		cfg.HistoryTotal = total
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			for i := range sized(1_000_000, 50_000) {
				user := fmt.Sprint("u", i)
				s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: user, Sink: SinkFunc(nil)})
				require.NoError(t, err)
				after := s.Cursor()
				require.NoError(t, s.Close())
				feed(g, note(fmt.Sprint("m", i), user, P1))
				if i%97 == 0 {
					synctest.Wait()
					s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: user, Channels: []Channel{}, Sink: SinkFunc(nil), After: after})
					require.NoError(t, err)
					require.NoError(t, s.Close())
				}
				if kept := g.kept.Load(); kept > total+1 {
					t.Fatalf("%d messages are kept, over %d", kept, total)
				}
			}
			synctest.Wait()
			var sum, rings int
			for _, u := range g.users.Range {
				for _, l := range u.history.lanes {
					sum += l.n
					rings += len(l.ring)
				}
			}
			require.EqualValues(t, sum, g.kept.Load(), "the count is right")
			require.LessOrEqual(t, sum, total)
			require.LessOrEqual(t, rings, 4*total, "four places for one message at worst")
			require.LessOrEqual(t, g.Stats().Users, total+1)
			pass(2 * time.Minute)
			forgotten(t, g)
		})
	})
}

// must is s of a call that has to succeed.
func must(s *Session, err error) *Session {
	if err != nil {
		panic(err)
	}
	return s
}

func historyOf(g *Gateway, userID string) *history {
	u, _ := g.users.Load(userID)
	return u.history
}

// forgotten requires that the indexes of g hold no user any more.
func forgotten(t testing.TB, g *Gateway) {
	t.Helper()
	st := g.Stats()
	require.Zero(t, st.Users)
	require.Zero(t, st.Sessions)
	require.Zero(t, g.kept.Load())
	require.Nil(t, g.away.first)
	require.Nil(t, g.away.last)
	require.Nil(t, g.first)
	require.Nil(t, g.last)
	require.Equal(t, int64(math.MaxInt64), g.awayUntil.Load(), "the reader waits for nobody")
}

func TestHistoryConfig(t *testing.T) {
	overInt32 := int(int64(math.MaxInt32) + int64(math.MaxInt>>32&1)) // one more, where an int holds it
	for _, row := range []struct {
		name string
		cfg  GatewayConfig
		ok   bool
	}{
		{"none is the default", GatewayConfig{}, true},
		{"as many as the outbox holds", GatewayConfig{OutboxMessages: 500, HistoryMessages: 500}, true},
		{"one fewer than the outbox holds", GatewayConfig{OutboxMessages: 500, HistoryMessages: 499}, false},
		{"one fewer than the outbox holds by default", GatewayConfig{HistoryMessages: 1023}, false},
		{"a negative number", GatewayConfig{HistoryMessages: -1}, false},
		{"more than a ring can have", GatewayConfig{HistoryMessages: overInt32}, math.MaxInt == math.MaxInt32},
		{"a negative total", GatewayConfig{HistoryTotal: -1}, false},
		{"a total of one", GatewayConfig{HistoryTotal: 1}, true},
		{"a negative TTL", GatewayConfig{HistoryTTL: -1}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := NewGateway("g", row.cfg)
			if row.ok {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrInvalid)
			}
		})
	}
	t.Run("without history there are no cursors, none is taken, and no user holds more than its sessions", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, with := newGateway(t, "g", GatewayConfig{SessionTimeout: -1}), newGateway(t, "g", keeping(GatewayConfig{}))
			runGateway(t, g)
			d := &device{g: g, userID: "u"}
			s := d.connect(t)
			feedAll(g, "u", P0, series("m", 3))
			feed(g, notice("n", P0))
			pass(time.Second)
			require.Equal(t, append(series("m", 3), "n"), d.lane(P0))
			require.Zero(t, s.Cursor())
			require.Nil(t, s.resume)
			require.Nil(t, g.everyone)
			require.Nil(t, historyOf(g, "u"))
			other := (&device{g: with, userID: "u"}).connect(t)
			for _, c := range []Cursor{{run: 1}, {user: 1}, other.Cursor()} {
				_, err := d.dial(c)
				require.ErrorIs(t, err, ErrCursorGone)
			}
			require.NoError(t, s.Close())
			require.Zero(t, s.Cursor())
			require.Zero(t, g.Stats().Users)
			for p, l := range g.Stats().Lanes {
				require.Zero(t, l.Replayed, "P%d", p)
				require.Zero(t, g.numbers[p].Load(), "P%d", p)
			}
			feedAll(g, "u", P0, series("m", 3))
			pass(time.Second)
			require.EqualValues(t, 3, g.Stats().Lanes[P0].NoSession)
		})
	})
}

// A tape says what was published at which place of each lane, so that nothing
// need be remembered to know what a session must have got between two cursors.
// Everybody on it is known to the Gateway from first to last, so that the
// numbers of the history are the places on the tape.
type tape struct {
	seed  uint64
	total uint64 // in each lane
}

var tapeUsers = []string{"u", "v", "w"}

func (a tape) at(p Priority, place uint64) (userID string, ch Channel) {
	h := (a.seed ^ place<<2 ^ uint64(p)) * 0x9e3779b97f4a7c15 // SplitMix64's finish
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	if h%10 == 0 || place == a.total {
		return AllUsers, ChannelSystem
	}
	return tapeUsers[h>>8%3], ChannelTrade + Channel(h>>16%5)
}

func (a tape) note(p Priority, place uint64) *Notification {
	userID, ch := a.at(p, place)
	n := on(ch, fmt.Sprint(uint8(p), "-", place), userID, p)
	n.Timestamp = int64(place)
	return n
}

// A chaos is a client whose connection ends at random points, in every way there
// is, and whose filter changes; it knows the tape and checks each batch.
type chaos struct {
	t      *testing.T
	b      *Broker
	g      *Gateway
	tape   tape
	userID string
	rng    *rand.Rand // owned by whoever runs: the loop between connections, Push during one
	over   <-chan struct{}

	at                      Cursor
	always, ever            uint32 // the channels that the filter admitted all the time, and at any time
	conns, resets, repeated int
	failed                  bool
	taken                   uint64
	behind                  [NumPriorities]atomic.Uint64 // up to where it has got, for those who publish
}

func (c *chaos) bad(format string, args ...any) {
	if !c.failed {
		c.failed = true
		c.t.Errorf("%s: %s", c.userID, fmt.Sprintf(format, args...))
	}
}

// check compares a batch with what the tape has between two cursors.
func (c *chaos) check(batch []*Message, to Cursor) {
	var lanes [NumPriorities][]uint64
	for _, m := range batch {
		lanes[m.priority] = append(lanes[m.priority], uint64(m.n.Timestamp))
	}
	for p, got := range lanes {
		for place := c.at.numbers[p] + 1; place <= to.numbers[p]; place++ {
			userID, ch := c.tape.at(Priority(p), place)
			mine := userID == c.userID || userID == AllUsers
			here := len(got) > 0 && got[0] == place
			switch {
			case here && (!mine || !admits(c.ever, ch)):
				c.bad("P%d: place %d, of %s for %s, is not for it", p, place, ch, userID)
			case !here && mine && admits(c.always, ch):
				c.bad("P%d: place %d is missing between %d and %d", p, place, c.at.numbers[p], to.numbers[p])
			}
			if here {
				got = got[1:]
			}
		}
		if len(got) > 0 {
			c.bad("P%d: place %d comes again or out of turn, between %d and %d", p, got[0], c.at.numbers[p], to.numbers[p])
		}
	}
	c.taken += uint64(len(batch))
	c.at = to
	for p, n := range to.numbers {
		c.behind[p].Store(n)
	}
}

func (c *chaos) filter() (channels []Channel, bits uint32) {
	if c.rng.IntN(3) == 0 {
		return nil, allChannels
	}
	for ch := ChannelTrade; ch < numChannels; ch++ {
		if c.rng.IntN(2) == 0 {
			channels = append(channels, ch)
		}
	}
	if channels == nil {
		channels = []Channel{ChannelRisk}
	}
	return channels, filterOf(channels)
}

// sink returns what takes one connection's batches.
func (c *chaos) sink(session func() *Session, calm bool) SinkFunc {
	return func(ctx context.Context, batch []*Message) error {
		s := session()
		fate := c.rng.IntN(60)
		if calm {
			fate = -1
		}
		if fate == 0 {
			c.repeated++
			return errors.New("dropped before the batch was taken")
		}
		if fate == 1 { // a reader that hangs until it is called slow; during a replay nobody would
			for polls := 0; polls < 50 && ctx.Err() == nil; polls++ {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Microsecond):
				}
			}
			if c.rng.IntN(2) == 0 {
				c.repeated++
				return errors.New("dropped after it had hung")
			}
		}
		c.check(batch, s.Cursor())
		switch fate {
		case 2:
			_ = s.Close()
		case 3:
			_ = c.g.UnregisterSession(s.ID())
		case 4:
			s.SubscribeAll()
		case 5:
			s.Unsubscribe(ChannelTrade + Channel(c.rng.IntN(5)))
		case 6: // narrows one that receives everything, and widens any other
			s.Subscribe(ChannelTrade + Channel(c.rng.IntN(5)))
		}
		bits := filterOf(s.Subscriptions())
		c.always &= bits
		c.ever |= bits
		if fate == 5 && bits == 0 { // nothing would come any more, the end of this connection included
			_ = s.Close()
		}
		return nil
	}
}

func (c *chaos) connect(after Cursor, channels []Channel, sink func(func() *Session) SinkFunc) (*Session, error) {
	c.conns++
	ready := make(chan *Session, 1)
	s, err := c.g.RegisterSession(SessionConfig{
		ID: fmt.Sprintf("%p-%d", c, c.conns), UserID: c.userID, Channels: channels, After: after,
		Sink: sink(sync.OnceValue(func() *Session { return <-ready })),
	})
	ready <- s
	return s, err
}

// run goes on until the tape is over and everything has arrived.
func (c *chaos) run() {
	silent := func(func() *Session) SinkFunc { return nil }
	reset := func() {
		s, err := c.connect(Cursor{}, []Channel{}, silent)
		if err != nil {
			c.bad("cannot begin: %v", err)
			return
		}
		c.at = s.Cursor()
		c.check(nil, c.at)
		_ = s.Close()
	}
	reset()
	for calm := false; !c.failed; {
		select {
		case <-c.over:
			calm = true
		default:
		}
		var channels []Channel
		c.always = allChannels
		if !calm {
			channels, c.always = c.filter()
		}
		c.ever = c.always
		from := c.at
		s, err := c.connect(from, channels, func(session func() *Session) SinkFunc { return c.sink(session, calm) })
		if errors.Is(err, ErrCursorGone) {
			if !c.evicted(from) {
				c.bad("the cursor %v is said to be gone with nothing evicted behind it", from.numbers)
			}
			c.resets++
			reset()
			continue
		}
		if err != nil {
			c.bad("cannot resume: %v", err)
			return
		}
		if calm { // the last place of each lane is for everybody
			for s.Cursor().numbers != lanes(c.tape.total) && s.Err() == nil {
				runtime.Gosched()
			}
			_ = s.Close()
		} else {
			select {
			case <-s.Done():
			case <-c.over:
				_ = s.Close()
			}
		}
		<-s.Done()
		if end := s.Cursor(); c.rng.IntN(2) == 0 || calm { // over what it did not want
			c.check(nil, end)
		}
		if calm && s.Err() != ErrSlowConsumer && c.at.numbers == lanes(c.tape.total) {
			return
		}
	}
}

// evicted reports whether more of this user's messages, or of those to all, came
// behind a cursor than a history keeps.
func (c *chaos) evicted(from Cursor) bool {
	for p := P0; p <= P3; p++ {
		var mine, all int
		for place := from.numbers[p] + 1; place <= c.g.numbers[p].Load(); place++ {
			switch userID, _ := c.tape.at(p, place); userID {
			case c.userID:
				mine++
			case AllUsers:
				all++
			}
		}
		if max(mine, all) > c.g.cfg.HistoryMessages {
			return true
		}
	}
	return false
}

func TestResumeChaos(t *testing.T) {
	noLeaks(t)
	start := seed(t)
	b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
	g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 64, OutboxMessages: 512, HistoryMessages: 2048}))
	require.NoError(t, b.RegisterGateway(g))
	runGateway(t, g)
	runBroker(t, b)
	_, err := g.RegisterSession(SessionConfig{ID: "w", UserID: "w", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
	require.NoError(t, err)
	a := tape{seed: start, total: uint64(sized(1_000_000, 200_000)) / NumPriorities}
	over := make(chan struct{})
	var clients sync.WaitGroup
	var all []*chaos
	for i, userID := range []string{"u", "u", "v"} {
		s, err := g.RegisterSession(SessionConfig{ID: fmt.Sprint("first", i), UserID: userID, Channels: []Channel{}, Sink: SinkFunc(nil)})
		require.NoError(t, err)
		c := &chaos{t: t, b: b, g: g, tape: a, userID: userID, rng: rand.New(rand.NewPCG(start, uint64(i))), over: over}
		all = append(all, c)
		require.NoError(t, s.Close())
	}
	for _, c := range all {
		clients.Go(c.run)
	}
	var publishers sync.WaitGroup
	for p := P0; p <= P3; p++ {
		publishers.Go(func() {
			for place := uint64(1); place <= a.total; place++ {
				for _, c := range all { // not much faster than the slowest client, unless it waits for us to go on
					for polls := 0; place%256 == 0 && c.behind[p].Load()+5000 < place && polls < 20; polls++ {
						<-time.After(100 * time.Microsecond)
					}
				}
				if err := b.PublishWait(context.Background(), a.note(p, place)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	publishers.Wait()
	close(over)
	clients.Wait()
	t.Logf("sessions ended: %+v", g.Stats().Ended)
	for _, c := range all {
		t.Logf("%s: %d connections, %d begun anew, %d batches repeated, %d messages taken", c.userID, c.conns, c.resets, c.repeated, c.taken)
	}
	drain(t, b)
	drain(t, g)
	conserved(t, b, g)
	for p, l := range g.Stats().Lanes {
		require.Equal(t, a.total, l.Received, "P%d", p)
	}
}

// A follower reconnects all the time while somebody gets in its way. Of each
// stream, which is one lane of its user or of all, it must see every message
// from the first on that was published after it had begun, and none twice,
// unless it was told that it must begin anew.
type follower struct {
	t      *testing.T
	g      *Gateway
	f      *flow
	userID string
	rng    *rand.Rand
	quit   atomic.Bool // no more drops
	gaps   bool        // there are Gaps, of which it may hear late

	mu           sync.Mutex
	cursor       Cursor
	last         [2 * NumPriorities]uint64 // of the user's lanes, then of those to all
	floor        [2 * NumPriorities]uint64 // published before it had begun: may be missed, or still come
	conns, anew  int
	doubt        error // nothing is wrong if a Gap is what it hears next
	wrong, ended error
}

// A flow publishes streams of numbered messages.
type flow struct {
	b         *Broker
	published map[string]*[NumPriorities]atomic.Uint64 // by user; read-only
}

func (f *flow) publish(userID string, p Priority) {
	n := f.published[userID][p].Add(1)
	m := on(ChannelSystem, fmt.Sprint(userID, "-", uint8(p), "-", n), userID, p)
	m.Timestamp = int64(n)
	_ = f.b.PublishWait(context.Background(), m)
}

func (w *follower) published() (n [2 * NumPriorities]uint64) {
	for p := range NumPriorities {
		n[p] = w.f.published[w.userID][p].Load()
		n[NumPriorities+p] = w.f.published[AllUsers][p].Load()
	}
	return n
}

func (w *follower) connect() *Session {
	w.conns++
	ready := make(chan *Session, 1)
	session := sync.OnceValue(func() *Session { return <-ready })
	cfg := SessionConfig{ID: fmt.Sprintf("%p-%d", w, w.conns), UserID: w.userID, After: w.cursor}
	cfg.Sink = SinkFunc(func(_ context.Context, batch []*Message) error {
		s := session()
		w.mu.Lock()
		defer w.mu.Unlock()
		fate := w.rng.IntN(16)
		if fate == 0 && !w.quit.Load() {
			return errors.New("dropped")
		}
		for _, m := range batch {
			i := int(m.priority)
			if m.n.UserID == AllUsers {
				i += NumPriorities
			}
			n := uint64(m.n.Timestamp)
			if n <= w.last[i] || n-1 > max(w.last[i], w.floor[i]) {
				w.doubt = cmp.Or(w.doubt, fmt.Errorf("stream %d: %d after %d, begun at %d", i, n, w.last[i], w.floor[i]))
			}
			w.last[i] = n
		}
		w.cursor = s.Cursor()
		if fate == 1 && !w.quit.Load() {
			_ = s.Close()
		}
		return nil
	})
	s, err := w.g.RegisterSession(cfg)
	if errors.Is(err, ErrCursorGone) {
		w.anew++
		w.cursor = Cursor{}
		w.mu.Lock()
		if w.gaps {
			w.doubt = nil
		}
		w.mu.Unlock()
		cfg.After = Cursor{}
		s, err = w.g.RegisterSession(cfg)
	}
	if err != nil {
		w.ended = err
		ready <- nil
		return nil
	}
	if cfg.After == (Cursor{}) {
		w.mu.Lock()
		w.floor = w.published() // what is published from here on must come
		w.cursor = s.Cursor()
		w.mu.Unlock()
	}
	ready <- s
	return s
}

// run reconnects until w.quit; then it waits for what was published last.
func (w *follower) run(over <-chan struct{}) {
	for {
		s := w.connect()
		if s == nil {
			return
		}
		select {
		case <-s.Done():
			w.mu.Lock()
			w.cursor = s.Cursor()
			w.mu.Unlock()
			if s.Err() == ErrGap { // to be told so is to begin anew
				w.cursor, w.doubt = Cursor{run: 1}, nil
			}
		case <-over:
			_ = s.Close()
			<-s.Done()
			w.wrong = cmp.Or(w.wrong, w.doubt)
			return
		}
	}
}

func TestResumeRaces(t *testing.T) {
	yield := func() { <-time.After(200 * time.Microsecond) }
	rows := []struct {
		name  string
		cfg   GatewayConfig
		gaps  bool
		getIn func(t *testing.T, b *Broker, g *Gateway) // again and again
	}{
		{name: "other sessions of the user", cfg: GatewayConfig{MaxSessionsPerUser: 4}, getIn: func(t *testing.T, _ *Broker, g *Gateway) {
			for range 5 { // which replace those of the follower, too
				_, err := g.RegisterSession(SessionConfig{ID: newID(), UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
				require.NoError(t, err)
			}
			yield()
		}},
		{name: "the expiry of its history", cfg: GatewayConfig{HistoryTTL: 20 * time.Microsecond}, getIn: func(*testing.T, *Broker, *Gateway) { yield() }},
		{name: "HistoryTotal", cfg: GatewayConfig{HistoryTotal: 40}, getIn: func(*testing.T, *Broker, *Gateway) { yield() }},
		{name: "Gap", gaps: true, getIn: func(_ *testing.T, _ *Broker, g *Gateway) { yield(); g.Gap() }},
		{name: "the Gateway's leaving the Broker and coming back", gaps: true, getIn: func(t *testing.T, b *Broker, g *Gateway) {
			yield()
			require.NoError(t, b.Unregister("g"))
			yield()
			require.NoError(t, b.RegisterGateway(g))
			g.Gap() // the sessions lived through it
		}},
		{name: "eviction", cfg: GatewayConfig{HistoryMessages: 16}, getIn: func(*testing.T, *Broker, *Gateway) { yield() }},
	}
	for _, row := range rows {
		t.Run("a reconnect that races publishing and "+row.name+" misses nothing unawares", func(t *testing.T) {
			noLeaks(t)
			start := seed(t)
			row.cfg.BatchSize, row.cfg.OutboxMessages = 8, 16
			row.cfg.HistoryMessages = cmp.Or(row.cfg.HistoryMessages, 4096)
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			g := newGateway(t, "g", keeping(row.cfg))
			require.NoError(t, b.RegisterGateway(g))
			runGateway(t, g)
			runBroker(t, b)
			f := &flow{b: b, published: map[string]*[NumPriorities]atomic.Uint64{"u": {}, "v": {}, AllUsers: {}}}
			over, done := make(chan struct{}), make(chan struct{})
			var clients, others sync.WaitGroup
			var all []*follower
			for i, userID := range []string{"u", "u", "v"} {
				w := &follower{t: t, g: g, f: f, userID: userID, rng: rand.New(rand.NewPCG(start, uint64(i))), gaps: row.gaps}
				all = append(all, w)
				clients.Go(func() { w.run(over) })
			}
			others.Go(func() { // ends with done
				for {
					select {
					case <-done:
						return
					default:
						row.getIn(t, b, g)
					}
				}
			})
			var publishers sync.WaitGroup
			for p := P0; p <= P3; p++ {
				publishers.Go(func() {
					for i := range sized(8000, 2000) {
						f.publish([]string{"u", "v", "u", AllUsers}[i%4], p)
						if i%50 == 0 {
							yield()
						}
					}
				})
			}
			publishers.Wait()
			close(done)
			others.Wait()
			for _, w := range all {
				w.quit.Store(true)
			}
			// Whoever lives now must get what is published now, with nothing missing
			// before it. Who is just being told that it must begin anew may miss it, so
			// the end is repeated until all have seen it.
			eventually(t, "everybody is at the end", func() bool {
				for userID := range f.published {
					for p := P0; p <= P3; p++ {
						f.publish(userID, p)
					}
				}
				for range 200 {
					there := true
					for _, w := range all {
						w.mu.Lock()
						there = there && (w.last == w.published() || w.wrong != nil)
						w.mu.Unlock()
					}
					if there {
						return true
					}
					<-time.After(100 * time.Microsecond)
				}
				return false
			})
			close(over)
			clients.Wait()
			for _, w := range all {
				t.Logf("%s: %d connections, %d begun anew", w.userID, w.conns, w.anew)
				require.NoError(t, w.wrong)
				require.NoError(t, w.ended)
			}
			drain(t, b)
			drain(t, g)
			conserved(t, b, g)
		})
	}
	t.Run("a Shutdown that returns nil has let every replay come to its end", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for range sized(40, 10) {
				g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 4, OutboxMessages: 4}))
				run := start(context.Background(), g)
				d := &device{g: g, userID: "u"}
				require.NoError(t, d.connect(t).Close())
				feedAll(g, "u", P1, series("m", 200))
				eventually(t, "all is kept", func() bool { return g.kept.Load() == 200 })
				devices := make([]*device, 20)
				for i := range devices {
					devices[i] = &device{g: g, userID: "u", cursor: d.cursor}
					devices[i].connect(t)
				}
				drain(t, g)
				require.NoError(t, <-run)
				for _, d := range devices {
					got := d.lane(P1)
					require.Len(t, got, 200)
					require.Equal(t, series("m", 200), got)
				}
				balanced(t, g)
			}
		})
	})
	t.Run("a Shutdown that races reconnects ends them all", func(t *testing.T) {
		noLeaks(t)
		for range sized(200, 40) {
			g := newGateway(t, "g", keeping(GatewayConfig{}))
			run := start(context.Background(), g)
			d := &device{g: g, userID: "u"}
			require.NoError(t, d.connect(t).Close())
			feedAll(g, "u", P1, series("m", 30))
			var clients sync.WaitGroup
			for range 3 {
				clients.Go(func() {
					d := &device{g: g, userID: "u", cursor: d.cursor}
					for {
						d.mu.Lock()
						after := d.cursor
						d.mu.Unlock()
						s, err := d.dial(after)
						if err != nil {
							if !errors.Is(err, ErrClosed) {
								t.Error(err)
							}
							return
						}
						runtime.Gosched()
						_ = s.Close()
						<-s.Done()
					}
				})
			}
			runtime.Gosched()
			_ = g.Shutdown(context.Background()) // what a client's Close drops is lost, and said to be
			clients.Wait()
			if err := <-run; err != nil { // it had not even begun
				require.ErrorIs(t, err, ErrClosed)
			}
			require.Zero(t, g.Stats().Users)
			balanced(t, g)
		}
	})
}

func TestResumeHerd(t *testing.T) {
	noLeaks(t)
	h := newHerd(t, sized(10_000, 1500))
	h.away(5)
	stop := h.traffic()
	h.back()
	stop()
	drain(t, h.b)
	drain(t, h.g)
	require.GreaterOrEqual(t, h.g.Stats().Lanes[P1].Replayed, uint64(5*len(h.users)))
	h.whole(t)
	conserved(t, h.b, h.g)
}

// A herd is many users whose connections all end at once and come back at once.
type herd struct {
	t       testing.TB
	b       *Broker
	g       *Gateway
	users   []string
	cursors []Cursor
	mu      []sync.Mutex
	seen    [][]uint64 // the Timestamps, by user, in the order of their coming
	sent    []uint64   // by user, the last Timestamp
}

func newHerd(t testing.TB, n int) *herd {
	h := &herd{t: t, users: make([]string, n), cursors: make([]Cursor, n), mu: make([]sync.Mutex, n), seen: make([][]uint64, n), sent: make([]uint64, n)}
	h.b = newBroker(t, BrokerConfig{StallTimeout: time.Hour})
	h.g = newGateway(t, "g", keeping(GatewayConfig{}))
	require.NoError(t, h.b.RegisterGateway(h.g))
	runGateway(t, h.g)
	runBroker(t, h.b)
	for i := range h.users {
		h.users[i] = fmt.Sprintf("user_%05d", i)
		h.register(i)
	}
	return h
}

func (h *herd) register(i int) {
	s, err := h.g.RegisterSession(SessionConfig{ID: h.users[i], UserID: h.users[i], After: h.cursors[i], Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
		h.mu[i].Lock()
		defer h.mu[i].Unlock()
		for _, m := range batch {
			if m.priority == P1 {
				h.seen[i] = append(h.seen[i], uint64(m.n.Timestamp))
			}
		}
		return nil
	})})
	if err != nil {
		h.t.Error(err)
		return
	}
	h.cursors[i] = s.Cursor()
}

// publish gives user i its next message.
func (h *herd) publish(i int) {
	h.sent[i]++
	n := on(ChannelTrade, newID(), h.users[i], P1)
	n.Timestamp = int64(h.sent[i])
	if err := h.b.PublishWait(context.Background(), n); err != nil {
		h.t.Error(err)
	}
}

// away ends the session of every user, and each misses n messages.
func (h *herd) away(n int) {
	for _, userID := range h.users {
		for s := range h.g.UserSessions(userID) {
			_ = s.Close()
			<-s.Done()
		}
	}
	for range n {
		for i := range h.users {
			h.publish(i)
		}
	}
	eventually(h.t, "all is kept", func() bool { return h.g.kept.Load() >= int64(n*len(h.users)) })
}

// traffic goes on until it is told to stop.
func (h *herd) traffic() (stop func()) {
	quit := make(chan struct{})
	var publisher sync.WaitGroup
	publisher.Go(func() { // ends with stop, which waits for it
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			h.publish(i * 7919 % len(h.users))
			if i%100 == 0 {
				_ = h.b.PublishWait(context.Background(), notice(newID(), P3))
			}
			if i%10 == 0 {
				_ = h.b.PublishWait(context.Background(), note(newID(), h.users[i%len(h.users)], P0))
			}
			if i%32 == 0 { // some ten thousand a second, not all there is
				<-time.After(time.Millisecond)
			}
		}
	})
	return func() { close(quit); publisher.Wait() }
}

// back lets all resume, eight at a time, and returns when nothing waits.
func (h *herd) back() {
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := c; i < len(h.users); i += 8 {
				h.register(i)
			}
		})
	}
	clients.Wait()
}

// whole requires that every user has got all that was published, in order.
func (h *herd) whole(t testing.TB) {
	t.Helper()
	for i, seen := range h.seen {
		require.Len(t, seen, int(h.sent[i]), "user %d", i)
		for n, at := range seen {
			require.EqualValues(t, n+1, at, "user %d", i)
		}
	}
}

// BenchmarkHistoryOff and BenchmarkHistoryOn stand side by side: the same way,
// from New to the JSON in the sink, for 10,000 users.
func BenchmarkHistoryOff(b *testing.B) { benchmarkHistory(b, 0) }
func BenchmarkHistoryOn(b *testing.B)  { benchmarkHistory(b, 1024) }

func benchmarkHistory(b *testing.B, messages int) {
	br := newBroker(b, BrokerConfig{StallTimeout: time.Hour})
	g := newGateway(b, "g", GatewayConfig{HistoryMessages: messages})
	require.NoError(b, br.RegisterGateway(g))
	runGateway(b, g)
	runBroker(b, br)
	var size atomic.Int64
	users := make([]string, 10_000)
	for i := range users {
		users[i] = fmt.Sprintf("user_%05d", i)
		_, err := g.RegisterSession(SessionConfig{ID: users[i], UserID: users[i], Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
			n := 0
			for _, m := range batch {
				n += len(m.JSON())
			}
			size.Add(int64(n))
			return nil
		})})
		require.NoError(b, err)
	}
	b.ReportAllocs()
	began, n := time.Now(), 0
	for b.Loop() {
		if err := br.PublishWait(context.Background(), New(users[n*7919%len(users)], AccountUpdate{Balance: 1e6, Available: 9e5, Margin: 1e5}, "AccountSystem")); err != nil {
			b.Fatal(err)
		}
		n++
	}
	drain(b, br)
	drain(b, g)
	b.ReportMetric(float64(time.Since(began))/float64(n), "ns/msg") // until the last one is in its sink
	b.ReportMetric(float64(size.Load())/float64(n), "JSON-B/msg")
}

// BenchmarkResumeHerd lets 10,000 users come back at once, each to 20 messages,
// and tells how long a P0 takes meanwhile, for a user who was there all the time
// and for all, those included who have yet to come back, which is what theirs
// waits for. Beside it stands how long it took just before, while the 200,000
// messages were published flat out.
func BenchmarkResumeHerd(b *testing.B) {
	var before, during, all Histogram
	for b.Loop() {
		b.StopTimer()
		h := newHerd(b, 10_000)
		var phases [2]recorder
		var phase atomic.Int32
		_, err := h.g.RegisterSession(SessionConfig{ID: "there", UserID: "there", Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
			for _, m := range batch {
				phases[phase.Load()].record(time.Duration(now() - m.entered))
			}
			return nil
		})})
		require.NoError(b, err)
		quit := make(chan struct{})
		var probe sync.WaitGroup
		probe.Go(func() { // ends with quit
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				case <-time.After(time.Millisecond):
				}
				_ = h.b.PublishWait(context.Background(), note(newID(), "there", P0))
				if phase.Load() == 1 {
					_ = h.b.PublishWait(context.Background(), note(newID(), h.users[i%len(h.users)], P0))
				}
			}
		})
		h.away(20)
		phase.Store(1)
		was := h.g.Stats().Lanes[P0].Latency
		b.StartTimer()
		h.back()
		want := uint64(20 * len(h.users))
		eventually(b, "all is replayed", func() bool {
			l := h.g.Stats().Lanes[P1]
			return l.Replayed >= want && l.Pending == 0
		})
		b.StopTimer()
		close(quit)
		probe.Wait()
		drain(b, h.b)
		drain(b, h.g)
		h.whole(b)
		before, during = before.Add(phases[0].snapshot()), during.Add(phases[1].snapshot())
		all = all.Add(h.g.Stats().Lanes[P0].Latency.Sub(was))
		b.StartTimer()
	}
	b.ReportMetric(float64(during.Quantile(0.5))/1e3, "P0-p50-µs")
	b.ReportMetric(float64(during.Quantile(0.99))/1e3, "P0-p99-µs")
	b.ReportMetric(float64(all.Quantile(0.99))/1e3, "P0-p99-all-µs")
	b.ReportMetric(float64(before.Quantile(0.99))/1e3, "P0-p99-before-µs")
}

// BenchmarkHistoryMemory tells what a message that is kept costs, all included:
// the notification, its strings, its encoding if there is one, and its place.
func BenchmarkHistoryMemory(b *testing.B) {
	for _, users := range []int{100, 10_000, 100_000} {
		for _, encoded := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d users, JSON %t", users, encoded), func(b *testing.B) {
				const kept = 100_000
				for b.Loop() {
					heap := func() uint64 {
						runtime.GC()
						runtime.GC()
						var m runtime.MemStats
						runtime.ReadMemStats(&m)
						return m.HeapAlloc
					}
					g := newGateway(b, "g", GatewayConfig{HistoryMessages: 1024, HistoryTotal: kept})
					ids := make([]string, users)
					for i := range ids {
						ids[i] = fmt.Sprintf("user_%05d", i)
						s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: ids[i], Sink: SinkFunc(nil)})
						require.NoError(b, err)
						require.NoError(b, s.Close())
					}
					before := heap()
					for i := range kept {
						n := New(ids[i%users], AccountUpdate{UserID: ids[i%users], Balance: 1e6, Available: 9e5, Margin: 1e5, Timestamp: int64(i)}, "AccountSystem")
						m := NewMessage(n)
						if encoded {
							m.JSON()
						}
						g.accept(m)
					}
					require.EqualValues(b, kept, g.kept.Load())
					b.ReportMetric(float64(heap()-before)/kept, "B/msg")
					runtime.KeepAlive(g)
				}
			})
		}
	}
}
