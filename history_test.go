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
	"runtime"
	"slices"
	"strings"
	"sync"
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
	s, err := d.dial(d.cursor)
	require.NoError(t, err)
	if d.cursor == (Cursor{}) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.cursor == (Cursor{}) {
			d.cursor = s.Cursor()
		}
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
					time.Sleep(time.Millisecond)
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
