package notification

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Where the cursor of a session stands, and which cursors are taken.

func TestSessionCursor(t *testing.T) {
	t.Run("there is one before the first batch, and it resumes", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u", hooked(func(context.Context, []*Message) error { return errors.New("never") }))
			from := s.Cursor()
			require.NotZero(t, from)
			feedAll(g, "u", P0, series("m", 3))
			pass(time.Second)
			require.Error(t, s.Err())
			require.Equal(t, series("m", 3), behind(t, g, "u", from))
		})
	})
	t.Run("it is per lane: what overtakes does not move the others", func(t *testing.T) {
		bubble(t, GatewayConfig{MaxDelay: [NumPriorities]time.Duration{0, time.Hour, time.Hour, time.Hour}}, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u")
			feed(g, note("p3", "u", P3), note("p1", "u", P1))
			pass(time.Second)
			require.Equal(t, [NumPriorities]uint64{}, s.Cursor().seqs, "they wait")
			require.NoError(t, s.Close())
			require.Equal(t, [NumPriorities]uint64{}, s.Cursor().seqs, "they were dropped")
			require.Equal(t, []string{"p1", "p3"}, behind(t, g, "u", s.Cursor()))
		})
	})
	t.Run("it is void after a Gap, and still tells where the session had got to", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u")
			feedAll(g, "u", P0, series("a", 2))
			pass(time.Second)
			before := s.Cursor()
			g.Gap()
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			require.Equal(t, before, s.Cursor())
			gone(t, g, "u", before)
			join(t, g, "anew", "u")
		})
	})
	inBubble(t, "it can be had after Shutdown, and another Gateway does not take it", func(t *testing.T) {
		g, other := newGateway(t, "g", keeping(GatewayConfig{})), newGateway(t, "g", keeping(GatewayConfig{}))
		runGateway(t, g)
		runGateway(t, other)
		s, sink := join(t, g, "s", "u")
		feedAll(g, "u", P0, series("a", 2))
		synctest.Wait()
		before := s.Cursor()
		require.Equal(t, uint64(2), before.seqs[P0])
		drain(t, g)
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, series("a", 2), sink.ids())
		require.Equal(t, before, s.Cursor())
		_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", After: before, Sink: SinkFunc(nil)})
		require.ErrorIs(t, err, ErrClosed)
		join(t, other, "s", "u")
		gone(t, other, "u", before)
	})
}

func TestCursorDuringPush(t *testing.T) {
	t.Run("inside Push it is behind the batch, for everybody else behind the last whose Push returned nil", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			goOn := make(chan error)
			var s *Session
			var inside, aside Cursor
			s, _ = join(t, g, "s", "u", hooked(func(ctx context.Context, _ []*Message) error {
				inside = s.Cursor()
				other := make(chan Cursor)
				go func() { other <- s.Cursor() }()
				aside = <-other
				select {
				case err := <-goOn:
					return err
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}))
			begin := s.Cursor()
			feedAll(g, "u", P1, series("a", 2)) // company for each other: one batch
			pass(time.Second)
			require.Equal(t, begin, s.Cursor())
			require.Equal(t, begin, aside, "on a goroutine that Push started")
			require.Equal(t, begin.epoch, inside.epoch)
			require.Equal(t, [NumPriorities]uint64{P1: 2}, inside.seqs)
			feedAll(g, "u", P1, series("b", 1)) // waits
			pass(time.Second)
			require.Equal(t, begin, s.Cursor())

			first := inside
			goOn <- nil
			synctest.Wait() // the next Push goes on
			require.Equal(t, first, s.Cursor())
			require.Equal(t, first, aside)
			require.Equal(t, [NumPriorities]uint64{P1: 3}, inside.seqs)
			second := inside
			require.Equal(t, []string{"a1", "a2", "b1"}, behind(t, g, "u", begin))
			require.Equal(t, []string{"b1"}, behind(t, g, "u", first))
			require.Empty(t, behind(t, g, "u", second))

			goOn <- context.Canceled
			<-s.Done()
			require.Equal(t, first, s.Cursor(), "that Push has failed")
		})
	})
	t.Run("what waits behind the Push is not behind the cursor inside of it", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			var s *Session
			goOn := make(chan struct{})
			var inside []Cursor
			s, _ = join(t, g, "s", "u", hooked(func(context.Context, []*Message) error {
				<-goOn // the others have come meanwhile
				inside = append(inside, s.Cursor())
				return nil
			}))
			feedAll(g, "u", P0, series("m", 1))
			pass(time.Second)
			feedAll(g, "u", P0, series("n", 4))
			pass(time.Second)
			close(goOn)
			pass(time.Second)
			require.Len(t, inside, 2)
			require.Equal(t, uint64(1), inside[0].seqs[P0])
			require.Equal(t, uint64(5), inside[1].seqs[P0])
		})
	})
	t.Run("whoever resumes while a Push goes on gets what that Push may not deliver", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5, MaxDelay: lanes(time.Duration(-1))}, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u", hooked(newGate(t).pass))
			feedAll(g, "u", P1, series("m", 12))
			pass(time.Second)
			require.Equal(t, series("m", 12), behind(t, g, "u", s.Cursor()))
		})
	})
	t.Run("at first it is where the session began, also if it resumes", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5}, func(t *testing.T, g *Gateway) {
			begin := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 12))
			pass(time.Second)
			goOn := make(chan error)
			s, _ := join(t, g, "again", "u", after(begin), told(goOn))
			pass(time.Second) // in the first Push of the replay
			require.Equal(t, series("m", 12), behind(t, g, "u", s.Cursor()))
			goOn <- nil
			pass(time.Second) // in the second
			require.Equal(t, series("m", 12)[5:], behind(t, g, "u", s.Cursor()))
			goOn <- nil
			pass(time.Second) // in the third and last
			require.Equal(t, series("m", 12)[10:], behind(t, g, "u", s.Cursor()))
			goOn <- nil
			pass(time.Second)
			require.Empty(t, behind(t, g, "u", s.Cursor()))
		})
	})
	t.Run("it never goes back, whoever asks and whenever", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 3}, func(t *testing.T, g *Gateway) {
			s, sink := join(t, g, "s", "u", slowly(time.Millisecond))
			seen := []Cursor{s.Cursor()}
			for i := range 100 {
				feed(g, note(fmt.Sprint("m", i), "u", Priority(i%NumPriorities)))
				pass(500 * time.Microsecond)
				if c := s.Cursor(); c != seen[len(seen)-1] {
					require.NotContains(t, seen, c)
					seen = append(seen, c)
				}
			}
			pass(time.Second)
			require.Greater(t, len(seen), 10)
			require.Len(t, sink.ids(), 100)
			left := 101
			for _, c := range append(seen, s.Cursor()) {
				n := len(behind(t, g, "u", c))
				require.LessOrEqual(t, n, left)
				left = n
			}
			require.Zero(t, left)
		})
	})
}

// Each row ends a session that has taken a1 and a2 and whose Push of b1 goes on
// while c1 waits.
func TestCursorOfAnEndedSession(t *testing.T) {
	var fail = errors.New("fail")
	taken := func(context.Context) error { return nil }
	nothing := func(*testing.T, *Gateway, *Session) {}
	for _, row := range []struct {
		name    string
		reason  error
		cfg     GatewayConfig
		end     func(t *testing.T, g *Gateway, s *Session)
		returns func(ctx context.Context) error // what Push does after that
		rest    []string                        // what comes again or is still to come
	}{
		{name: "closed while Push takes the batch", reason: ErrSessionClosed, rest: []string{"c1"},
			end:     func(t *testing.T, g *Gateway, s *Session) { require.NoError(t, s.Close()) },
			returns: taken},
		{name: "closed, at which Push gives up", reason: ErrSessionClosed, rest: []string{"b1", "c1"},
			end:     func(t *testing.T, g *Gateway, s *Session) { require.NoError(t, g.UnregisterSession(s.ID())) },
			returns: context.Cause},
		{name: "expired", reason: ErrSessionExpired, rest: []string{"c1"},
			cfg:     GatewayConfig{SessionTimeout: time.Minute, SweepInterval: time.Second},
			end:     func(t *testing.T, g *Gateway, s *Session) { pass(2 * time.Minute) },
			returns: taken},
		{name: "replaced", reason: ErrSessionReplaced, rest: []string{"b1", "c1"},
			cfg:     GatewayConfig{MaxSessionsPerUser: 1},
			end:     func(t *testing.T, g *Gateway, s *Session) { join(t, g, "other", "u", wanting()) },
			returns: context.Cause},
		{name: "slow", reason: ErrSlowConsumer, rest: []string{"b1", "c1", "c2", "c3", "c4", "c5"},
			cfg: GatewayConfig{BatchSize: 2, OutboxMessages: 4},
			end: func(t *testing.T, g *Gateway, s *Session) {
				feedAll(g, "u", P0, series("c", 5)[1:])
				pass(time.Second)
			},
			returns: context.Cause},
		{name: "failed", reason: fail, rest: []string{"b1", "c1"}, end: nothing,
			returns: func(context.Context) error { return fail }},
		{name: "ended by a panic", reason: ErrSinkPanic, rest: []string{"b1", "c1"}, end: nothing,
			returns: func(context.Context) error { panic("sink") }},
		{name: "ended by a Goexit", reason: ErrSinkPanic, rest: []string{"b1", "c1"}, end: nothing,
			returns: func(context.Context) error { runtime.Goexit(); return nil }},
	} {
		t.Run("it stands behind what was taken after the session was "+row.name, func(t *testing.T) {
			bubble(t, row.cfg, func(t *testing.T, g *Gateway) {
				goOn := make(chan struct{})
				s, sink := join(t, g, "s", "u", hooked(func(ctx context.Context, batch []*Message) error {
					if batch[0].n.ID[0] == 'a' {
						return nil
					}
					<-goOn
					return row.returns(ctx)
				}))
				for _, ids := range [][]string{{"a1", "a2"}, {"b1"}, {"c1"}} {
					feedAll(g, "u", P0, ids)
					pass(time.Second)
				}
				row.end(t, g, s)
				close(goOn)
				<-s.Done()
				require.ErrorIs(t, s.Err(), row.reason)
				want := []string{"a1", "a2"}
				if row.rest[0] != "b1" {
					want = append(want, "b1")
				}
				require.Equal(t, want, sink.ids())
				end := s.Cursor()
				require.Equal(t, uint64(len(want)), end.seqs[P0])
				require.Equal(t, row.rest, behind(t, g, "u", end))
				require.Equal(t, end, s.Cursor(), "it moves no more")
			})
		})
	}
}

func TestCursorGone(t *testing.T) {
	for _, row := range []struct {
		name   string
		user   string                                          // who comes with it; default u
		cursor func(t *testing.T, g *Gateway, u Cursor) Cursor // u is a good one
	}{
		{name: "of another Gateway", cursor: func(t *testing.T, _ *Gateway, _ Cursor) Cursor {
			return offline(t, newGateway(t, "other", keeping(GatewayConfig{})), "u")
		}},
		{name: "of an earlier Gateway with this ID", cursor: func(t *testing.T, _ *Gateway, _ Cursor) Cursor {
			return offline(t, newGateway(t, "g", keeping(GatewayConfig{})), "u")
		}},
		{name: "of another user", cursor: func(t *testing.T, g *Gateway, _ Cursor) Cursor {
			join(t, g, "v", "v")
			return offline(t, g, "v")
		}},
		{name: "from before a Gap", cursor: func(t *testing.T, g *Gateway, u Cursor) Cursor {
			g.Gap()
			join(t, g, "again", "u")
			return u
		}},
		{name: "with a number from the future", cursor: func(_ *testing.T, _ *Gateway, u Cursor) Cursor {
			u.seqs[P2]++
			return u
		}},
		{name: "with the greatest numbers", cursor: func(_ *testing.T, _ *Gateway, u Cursor) Cursor {
			u.seqs = lanes[uint64](math.MaxUint64)
			return u
		}},
		{name: "from before the user's first session", cursor: func(_ *testing.T, _ *Gateway, u Cursor) Cursor {
			u.seqs = [NumPriorities]uint64{}
			return u
		}},
		{name: "of an earlier life of the user", cursor: func(_ *testing.T, _ *Gateway, u Cursor) Cursor {
			u.user++
			return u
		}},
		{name: "of a user who is not known", user: "nobody", cursor: func(_ *testing.T, _ *Gateway, u Cursor) Cursor { return u }},
	} {
		inBubble(t, "a cursor "+row.name+" is refused and nothing has changed", func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, keeping(GatewayConfig{MaxSessionsPerUser: 2}))
			join(t, g, "w", "w")
			for p := P0; p <= P3; p++ { // so that no number is zero
				publishTo(t, b, "w", p, fmt.Sprint("first", p))
			}
			pass(time.Second)
			cursor := row.cursor(t, g, offline(t, g, "u"))
			pass(time.Second)

			snapshot := func() []any {
				gs, bs := g.Stats(), b.Stats()
				for p := range gs.Lanes {
					gs.Lanes[p].Latency = Histogram{}
					bs.Lanes[p] = counters(bs.Lanes[p])
				}
				bs.DedupSpan = 0
				var offline []string
				for u := g.roster.offline.first; u != nil; u = u.next {
					offline = append(offline, fmt.Sprint(u.id, u.since))
				}
				return []any{gs, bs, offline, g.roster.forgets.Load(), g.history.kept.Load(), len(g.roster.byID), g.roster.serial}
			}
			nap(time.Second)
			before, goroutines := snapshot(), runtime.NumGoroutine()
			user := row.user
			if user == "" {
				user = "u"
			}
			gone(t, g, user, cursor)
			synctest.Wait()
			require.Equal(t, before, snapshot())
			require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
		})
	}
	t.Run("a cursor from before its user was forgotten is refused, though not one number was given since", func(t *testing.T) {
		bubble(t, GatewayConfig{HistoryTTL: time.Minute}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			pass(time.Minute)
			feedAll(g, "u", P1, series("m", 1)) // nobody keeps it
			pass(time.Second)
			join(t, g, "again", "u")
			gone(t, g, "u", from)
		})
	})
}

func TestCursorsOfAGatewayThatLeaves(t *testing.T) {
	for _, row := range []struct {
		name    string
		between func(t *testing.T, b *Broker)
	}{
		{"something was published since", func(t *testing.T, b *Broker) { publishTo(t, b, "u", P1, "missed") }},
		{"nothing was published since", func(*testing.T, *Broker) {}},
	} {
		inBubble(t, "they are void from the moment it leaves, also when "+row.name, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, keeping(GatewayConfig{}))
			s, _ := join(t, g, "s", "u")
			publishTo(t, b, "u", P1, series("m", 3)...)
			pass(time.Second)
			before := s.Cursor()
			require.NoError(t, b.Unregister("g"))
			gone(t, g, "u", before)
			row.between(t, b)
			pass(time.Second)
			gone(t, g, "u", before)
			require.NoError(t, s.Err(), "the session lives on")
			gone(t, g, "u", s.Cursor())
			young, _ := join(t, g, "young", "u")
			between := young.Cursor()
			require.NoError(t, b.RegisterGateway(g))
			pass(time.Second)
			for _, c := range []Cursor{before, between, s.Cursor(), young.Cursor()} {
				gone(t, g, "u", c)
			}
			require.Equal(t, ErrGap, s.Err())
			require.Equal(t, ErrGap, young.Err())

			s, _ = join(t, g, "s", "u")
			from := s.Cursor()
			publishTo(t, b, "u", P1, series("n", 3)...)
			pass(time.Second)
			require.Equal(t, series("n", 3), behind(t, g, "u", from), "new ones are good")
		})
	}
	inBubble(t, "a user who is offline is told so too", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, keeping(GatewayConfig{}))
		cursor := offline(t, g, "u")
		require.NoError(t, b.Unregister("g"))
		publishTo(t, b, "u", P1, "missed")
		pass(time.Second)
		require.NoError(t, b.RegisterGateway(g))
		pass(time.Second)
		gone(t, g, "u", cursor)
		publishTo(t, b, "u", P1, "later")
		pass(time.Second)
		gone(t, g, "u", cursor)
	})
}

func TestOrderOfAGatewayThatComesBack(t *testing.T) {
	inBubble(t, "nothing that it was handed when it left comes after what is published once it has come back", func(t *testing.T) {
		const full = 256
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, OutboxMessages: 1, InboxCapacity: full, SessionTimeout: -1})
		join(t, g, "stuck", "u", hooked(newGate(t).pass))
		// One in the Push, eight behind it, one that waits for room, a full inbox, and
		// one that the dispatcher is about to send.
		old := series("old", 1+8+1+full+1)
		publishTo(t, b, "u", P1, old...)
		synctest.Wait()
		require.NoError(t, b.Unregister("g"))
		require.NoError(t, b.RegisterGateway(g)) // which ends the session
		_, sink := join(t, g, "young", "u")
		young := series("young", 20*full)
		publishTo(t, b, "u", P1, young...)
		pass(time.Second)
		// Of the old ones it may get those that had yet to be read, but not the last:
		// that was in nobody's hands when the Gateway came back.
		got := sink.ids()
		first := slices.Index(got, "young1")
		require.GreaterOrEqual(t, first, 0)
		require.Equal(t, young, got[first:])
		require.Equal(t, old[len(old)-1-first:len(old)-1], got[:first])
		require.Equal(t, uint64(1), lane(g, P1).Discarded)
	})
}

func TestEpochOfASessionThatResumes(t *testing.T) {
	t.Run("a session that resumes while Gap voids the cursors does not get a cursor that is valid", func(t *testing.T) {
		noLeaks(t)
		g := newGateway(t, "g", keeping(GatewayConfig{}))
		runGateway(t, g)
		nop := SinkFunc(func(context.Context, []*Message) error { return nil })
		s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: nop})
		require.NoError(t, err)
		u, _ := g.roster.users.Load("u")
		var both sync.WaitGroup
		var second *Session
		epoch := g.history.epoch.Load()
		u.history.mu.Lock()
		both.Go(func() {
			second, err = g.RegisterSession(SessionConfig{ID: "t", UserID: "u", Sink: nop, After: s.Cursor()})
		})
		eventually(t, "it registers", func() bool {
			if g.roster.mu.TryLock() {
				g.roster.mu.Unlock()
				return false
			}
			return true
		})
		both.Go(g.Gap)
		voided := time.Now().Add(100 * time.Millisecond)
		for time.Now().Before(voided) && g.history.epoch.Load() == epoch {
			<-time.After(time.Millisecond)
		}
		u.history.mu.Unlock()
		both.Wait()
		if err != nil {
			require.ErrorIs(t, err, ErrCursorGone)
			return
		}
		require.Equal(t, ErrGap, second.Err())
		_, err = g.RegisterSession(SessionConfig{ID: "v", UserID: "u", Sink: nop, After: second.Cursor()})
		require.ErrorIs(t, err, ErrCursorGone)
	})
}
