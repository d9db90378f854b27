package notification

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNewGateway(t *testing.T) {
	t.Run("the zero configuration is that of the documentation", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		g.cfg.Logger = nil
		require.Equal(t, GatewayConfig{
			BatchSize: 100, MaxDelay: [NumPriorities]time.Duration{0, time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond},
			OutboxMessages: 1024, SlowPolicy: SlowClose, SlowAfter: time.Second, SessionTimeout: 5 * time.Minute, SweepInterval: 30 * time.Second,
			Pushers: 2 * runtime.GOMAXPROCS(0), MaxPushers: 65_536, InboxCapacity: 1024,
			HistoryTTL: 2 * time.Minute, HistoryTotal: 1_000_000,
		}, g.cfg)
		require.Equal(t, "g", g.ID())
		for p, ch := range g.Inbox() {
			require.Equal(t, 1024, cap(ch), "lane %d", p)
		}
	})
	for field, cfg := range map[string]GatewayConfig{
		"BatchSize":          {BatchSize: -1},
		"OutboxMessages":     {BatchSize: 10, OutboxMessages: 9},
		"MaxSessions":        {MaxSessions: -1},
		"MaxSessionsPerUser": {MaxSessionsPerUser: -1},
		"Pushers":            {Pushers: -1},
		"MaxPushers":         {Pushers: 4, MaxPushers: 3},
		"InboxCapacity":      {InboxCapacity: -1},
		"SweepInterval":      {SweepInterval: -1},
		"SlowPolicy":         {SlowPolicy: SlowDropOldest + 1},
		"SlowAfter":          {SlowAfter: -1},
		"HistoryTTL":         {HistoryTTL: -1},
		"HistoryTotal":       {HistoryTotal: -1},
		"HistoryMessages":    {HistoryMessages: 1023},
	} {
		t.Run("a bad "+field+" is ErrInvalid and named", func(t *testing.T) {
			_, err := NewGateway("g", cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, field)
		})
	}
	for _, id := range []string{"", strings.Repeat("x", 257)} {
		t.Run(fmt.Sprintf("an ID of %d bytes is ErrInvalid", len(id)), func(t *testing.T) {
			_, err := NewGateway(id, GatewayConfig{})
			require.ErrorIs(t, err, ErrInvalid)
		})
	}
}

func TestGatewayGap(t *testing.T) {
	inBubble(t, "Gap ends every session with ErrGap and drops what waits; new ones may come", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for _, id := range series("s", 200) {
			join(t, g, id, id)
			publishTo(t, b, id, P3, "m"+id)
		}
		synctest.Wait()
		var all []*Session
		for s := range g.Sessions() {
			all = append(all, s)
		}
		g.Gap()
		for _, s := range all {
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
		}
		require.Equal(t, uint64(200), g.Stats().Ended.Gap)
		require.Equal(t, GatewayLane{Received: 200, Enqueued: 200, DroppedEnded: 200}, lane(g, P3))
		require.Zero(t, b.Stats().Users)
		_, sink := join(t, g, "s1", "s1")
		publishTo(t, b, "s1", P0, "after")
		synctest.Wait()
		require.Equal(t, []string{"after"}, sink.ids())
	})
	inBubble(t, "it ends slice by slice whoever lives when it is called, whoever comes and goes meanwhile", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var before []*Session
		for _, id := range series("s", 200) {
			// Each that ends makes room for another, which has missed nothing.
			s, _ := join(t, g, id, id, func(_ *SessionConfig, sink *ledger) {
				sink.shut = func(reason error) {
					if reason == ErrGap {
						join(t, g, "again "+id, id)
					}
				}
			})
			before = append(before, s)
		}
		g.Gap()
		synctest.Wait()
		for _, s := range before {
			require.Equal(t, ErrGap, s.Err())
		}
		require.Equal(t, SessionEnds{Gap: 200}, g.Stats().Ended)
		require.Equal(t, 200, g.Stats().Sessions)
	})
}

func TestGapOfAStuckGateway(t *testing.T) {
	inBubble(t, "the Broker calls it when it had to drop, also for sessions that came since", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{StallTimeout: time.Second}), newGateway(t, "g", GatewayConfig{InboxCapacity: 2})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b) // g does not run: it takes nothing
		first, _ := join(t, g, "first", "u")
		publishTo(t, b, "u", P1, series("m", 3)...)
		pass(time.Second - 1)
		require.NoError(t, first.Err())
		require.False(t, receiverStats(t, b, "g").Stuck)
		pass(1)
		require.Equal(t, ErrGap, first.Err())
		require.True(t, receiverStats(t, b, "g").Stuck)
		publishTo(t, b, "u", P1, "to nobody")
		synctest.Wait()

		second, _ := join(t, g, "second", "u")
		synctest.Wait()
		require.NoError(t, second.Err(), "it has missed nothing so far")
		publishTo(t, b, "u", P1, "missed")
		synctest.Wait()
		require.Equal(t, ErrGap, second.Err())

		third, sink := join(t, g, "third", "u")
		runGateway(t, g) // takes what its inbox holds
		synctest.Wait()
		require.NoError(t, third.Err())
		publishTo(t, b, "u", P1, "a", "b")
		pass(time.Second)
		require.NoError(t, third.Err())
		require.False(t, receiverStats(t, b, "g").Stuck)
		require.Equal(t, []string{"m1", "m2", "a", "b"}, sink.ids())
		require.Equal(t, uint64(2), g.Stats().Ended.Gap)
		conserved(t, b, g)
	})
}

func TestGatewayShutdown(t *testing.T) {
	inBubble(t, "Broker first, then Gateway: all that was accepted is taken, and at once", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Hour), SessionTimeout: -1})
		s, sink := join(t, g, "s", "u")
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String()+"-", 120)...)
		}
		drain(t, b)
		drain(t, g)
		require.Len(t, sink.ids(), 480)
		require.Zero(t, time.Since(began))
		<-s.Done()
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, uint64(1), g.Stats().Ended.Shutdown)
	})
	inBubble(t, "Gateway first: it leaves the Broker, what comes later is Unrouted", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		require.NoError(t, b.Subscribe("v", "g"))
		publishTo(t, b, "u", P3, "a")
		synctest.Wait()
		drain(t, g)
		require.Equal(t, []string{"a"}, sink.ids())
		require.Zero(t, b.Stats().Users)
		require.Empty(t, b.Stats().Receivers)
		publishTo(t, b, "u", P1, "b")
		publishTo(t, b, "v", P1, "c")
		drain(t, b)
		require.Equal(t, uint64(2), b.Stats().Lanes[P1].Unrouted)
		require.Equal(t, uint64(1), b.Stats().Departed.Handed)
		require.ErrorIs(t, b.Unregister("g"), ErrUnknownReceiver)
		require.ErrorIs(t, b.RegisterGateway(g), ErrClosed)
	})
	inBubble(t, "it leaves when the drain begins, not when it ends", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- g.Shutdown(context.Background()) }()
		pass(time.Second)
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.Equal(t, uint64(1), b.Stats().Lanes[P0].Unrouted)
		held.open()
		require.NoError(t, <-down)
		require.Equal(t, []string{"a"}, sink.ids())
	})
	inBubble(t, "a Gateway whose ctx ends leaves its Broker, ends its sessions and counts what its inbox held", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 100})
		require.NoError(t, b.RegisterGateway(g))
		s, sink := join(t, g, "s", "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("m", 50)...)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, g.Run(ctx), context.Canceled)
		<-s.Done()
		require.Equal(t, ErrGatewayClosed, s.Err())
		l := lane(g, P1)
		require.Len(t, sink.ids(), int(l.Taken))
		require.Equal(t, uint64(50), l.Received+l.Discarded, "the reader may have begun before it heard of the end")
		require.Zero(t, l.Pending)
		if l.Taken < 50 {
			require.ErrorIs(t, g.Shutdown(t.Context()), ErrClosed)
		}
		require.Zero(t, b.Stats().Users)
		require.Empty(t, b.Stats().Receivers)
		synctest.Wait() // until the dispatcher has let go of it
		conserved(t, b, g)
		holdsNothing(t, g)
	})
}

func TestShutdownWithSlowSinks(t *testing.T) {
	inBubble(t, "a sink that pauses for 3 s and goes on: both return nil and nothing is lost", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{InboxCapacity: 16, OutboxMessages: 1000})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P1, series("m", 900)...)
		began := time.Now()
		time.AfterFunc(3*time.Second, held.open)
		drain(t, b)
		drain(t, g)
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Equal(t, series("m", 900), sink.ids())
	})
	inBubble(t, "a sink that ignores ctx: Shutdown is back at its deadline, Run a second later, and Hung says so", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		s, sink := join(t, g, "s", "u", hooked(held.deaf))
		other, well := join(t, g, "other", "v")
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "u", P0, "b")
		publishTo(t, b, "v", P0, "c")
		drain(t, b)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, g.Shutdown(ctx))
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, []string{"c"}, well.ids(), "the others had theirs")
		<-other.Done()
		require.NoError(t, <-done)
		require.Equal(t, 6*time.Second, time.Since(began))
		require.Equal(t, uint64(1), g.Stats().Hung)
		require.Equal(t, GatewayLane{Received: 3, Enqueued: 3, Taken: 1, DroppedEnded: 1, Pending: 1}, lane(g, P0))
		held.open()
		<-s.Done()
		require.Equal(t, []string{"a"}, sink.ids())
		conserved(t, b, g)
	})
	inBubble(t, "a drain does not wait for a Push that was abandoned", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		s, _ := join(t, g, "s", "u", hooked(func(context.Context, []*Message) error {
			<-held.ch
			return errors.New("broken pipe")
		}))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, s.Close())
		pass(time.Second)
		require.Equal(t, uint64(1), g.Stats().Hung)
		drain(t, b)
		lost := g.Shutdown(t.Context())
		require.ErrorIs(t, lost, ErrClosed, "not everything was taken")
		require.NoError(t, <-done)
		require.Equal(t, 1, lane(g, P0).Pending)
		held.open()
		<-s.Done()
		require.Zero(t, lane(g, P0).Pending)
		require.True(t, g.pool.quiet())
		require.EqualError(t, g.Shutdown(t.Context()), lost.Error(), "what it lost has been counted")
	})
	inBubble(t, "a Close that does not return keeps neither the others nor Run", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		synctest.Wait()
		s, _ := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		other, _ := join(t, g, "other", "v")
		drain(t, b)
		began := time.Now()
		require.NoError(t, g.Shutdown(t.Context()), "nothing was lost")
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), time.Second)
		<-other.Done()
		require.Equal(t, uint64(1), g.Stats().Hung)
		held.open()
		<-s.Done()
	})
	inBubble(t, "a Close that does not return, of a Gateway that never ran: Shutdown is back at its deadline", func(t *testing.T) {
		held := newGate(t)
		g := newGateway(t, "g", GatewayConfig{})
		join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		time.AfterFunc(time.Hour, held.open)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_ = g.Shutdown(ctx)
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
		pass(time.Hour)
	})
}

func TestLastPushOfADrain(t *testing.T) {
	for name, f := range map[string]func(s *Session) error{
		"a Push that fails":               func(*Session) error { return errors.New("broken pipe") },
		"a Push that panics":              func(*Session) error { panic("oops") },
		"a Push that calls Goexit":        func(*Session) error { runtime.Goexit(); return nil },
		"a session that closes itself":    func(s *Session) error { return s.Close() },
		"a session that closes and fails": func(s *Session) error { return errors.Join(s.Close(), errors.New("broken pipe")) },
		"a session that unregisters and blocks": func(s *Session) error {
			_ = s.g.UnregisterSession(s.ID())
			nap(time.Second / 2)
			return nil
		},
	} {
		inBubble(t, name+" as the last of the drain does not hold it up", func(t *testing.T) {
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			var s *Session
			s, _ = join(t, g, "s", "u", hooked(func(ctx context.Context, ms []*Message) error {
				<-held.ch
				return f(s)
			}))
			publishTo(t, b, "u", P0, "a")
			synctest.Wait()
			drain(t, b)
			time.AfterFunc(time.Second, held.open)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if err := g.Shutdown(ctx); err != nil {
				require.ErrorIs(t, err, ErrClosed, "the batch was lost, and that is all")
			}
			require.LessOrEqual(t, time.Since(began), 3*time.Second/2, "the Push alone, not until somebody happens to look")
			<-s.Done()
		})
	}
	inBubble(t, "sessions that are closed while they wait for the drain do not hold it up", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1, SlowAfter: time.Hour})
		first, _ := join(t, g, "first", "first", hooked(held.pass))
		publishTo(t, b, "first", P0, "x")
		synctest.Wait()
		waiting, _ := join(t, g, "waiting", "u")
		publishTo(t, b, "u", P0, "a")
		drain(t, b)
		down := make(chan error, 1)
		go func() { down <- g.Shutdown(context.Background()) }()
		pass(time.Minute)
		require.NoError(t, waiting.Close())
		pass(time.Minute)
		require.Empty(t, down)
		require.NoError(t, first.Close())
		pass(time.Second)
		require.ErrorIs(t, <-down, ErrClosed)
	})
}

func TestSlowSessions(t *testing.T) {
	t.Run("5,000 messages at once in P2 or P3 for a session whose sink is idle and quick are all delivered", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{SlowAfter: patient})
			s, sink := join(t, g, "s", "u")
			for _, p := range []Priority{P2, P3} {
				for i := range sized(10, 2) {
					all := series(fmt.Sprintf("%s-%d-", p, i), 5000)
					publishTo(t, b, "u", p, all...)
					eventually(t, "all 5,000", func() bool { return lane(g, p).Pending == 0 && len(sink.ids()) == 5000 || s.Err() != nil })
					require.NoError(t, s.Err())
					require.Equal(t, all, sink.take())
				}
			}
		})
	})
	inBubble(t, "the end of a slow session drops what waits and what its Push had, and counts it", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 7})
		s, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "taken")
		synctest.Wait()
		for i, id := range series("m", 7) {
			publishTo(t, b, "u", Priority(i%4), id)
		}
		pass(time.Minute)
		require.NoError(t, s.Err(), "OutboxMessages may wait")
		publishTo(t, b, "u", P3, "too much")
		synctest.Wait()
		require.Equal(t, ErrSlowConsumer, s.Err())
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSlowConsumer, reason)
		require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
		var dropped uint64
		for p := P0; p <= P3; p++ {
			dropped += lane(g, p).DroppedEnded
		}
		require.Equal(t, uint64(9), dropped, "those that waited, and the one in the Push that failed")
		require.Zero(t, waits(s))
	})
	inBubble(t, "SlowDropOldest drops the oldest of the lowest lane, and counts", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		for round := range 50 {
			const bound = 6
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 2, OutboxMessages: bound, SlowPolicy: SlowDropOldest})
			s, sink := join(t, g, "s", "u", hooked(held.pass))
			publishTo(t, b, "u", P0, "first")
			synctest.Wait()
			var model [NumPriorities][]string
			var dropped [NumPriorities]uint64
			for i := range 30 {
				p := Priority(random.IntN(4))
				id := fmt.Sprintf("%d-%d", round, i)
				publishTo(t, b, "u", p, id)
				synctest.Wait()
				model[p] = append(model[p], id)
				if i >= bound {
					low := P3
					for len(model[low]) == 0 {
						low--
					}
					model[low] = model[low][1:]
					dropped[low]++
				}
			}
			require.NoError(t, s.Err())
			require.Equal(t, uint64(30-bound), s.Dropped())
			for p := range dropped {
				require.Equal(t, dropped[p], lane(g, Priority(p)).DroppedSlow)
			}
			held.open()
			pass(time.Second)
			got := sink.ids()[1:]
			require.Len(t, got, bound)
			for p := range model {
				require.Equal(t, append([]string{}, model[p]...), slices.DeleteFunc(slices.Clone(got), func(id string) bool { return !slices.Contains(model[p], id) }), "lane %d", p)
			}
			drain(t, b)
			drain(t, g)
		}
	})
}

func TestPending(t *testing.T) {
	inBubble(t, "it is what stands in outboxes and in running Pushes", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3, MaxDelay: lanes(time.Hour), SessionTimeout: -1})
		busy, _ := join(t, g, "busy", "u", hooked(held.pass))
		idle, _ := join(t, g, "idle", "v")
		publishTo(t, b, "u", P1, series("m", 5)...)
		publishTo(t, b, "v", P1, series("n", 2)...)
		synctest.Wait()
		require.Equal(t, []int{2, 2}, []int{waits(busy), waits(idle)})
		require.Equal(t, GatewayLane{Received: 7, Enqueued: 7, Pending: 7}, lane(g, P1))
		held.open()
		synctest.Wait()
		require.Equal(t, GatewayLane{Received: 7, Enqueued: 7, Taken: 3, Pending: 4}, lane(g, P1))
		require.NoError(t, busy.Close())
		require.Equal(t, GatewayLane{Received: 7, Enqueued: 7, Taken: 3, DroppedEnded: 2, Pending: 2}, lane(g, P1))
	})
}

// flowPublishers is how many goroutines flow publishes from.
const flowPublishers = 8

// flow publishes messages for users u0, u1, … and for all of them, from many
// goroutines, and returns how many each user was sent, and all of them together.
// A message's Source is its publisher, its Timestamp the publisher's count for
// this user (or all) and lane.
func flow(t testing.TB, b *Broker, users, each int) (perUser []int, all int) {
	sent := make([][]int, flowPublishers)
	toAll := make([]int, flowPublishers)
	var wg sync.WaitGroup
	s := seed(t)
	for pub := range flowPublishers {
		sent[pub] = make([]int, users)
		random := rand.New(rand.NewPCG(s, uint64(pub)))
		wg.Go(func() {
			numbers := make(map[string]int64)
			for i := range each {
				user, p := random.IntN(users), Priority(random.IntN(4))
				n := note(fmt.Sprintf("%d-%d", pub, i), fmt.Sprintf("u%d", user), p)
				if i%100 == 99 {
					n = notice(n.ID, p)
					toAll[pub]++
				} else {
					sent[pub][user]++
				}
				key := n.UserID + p.String()
				numbers[key]++
				n.Source, n.Timestamp = fmt.Sprintf("p%d", pub), numbers[key]
				if err := b.PublishWait(context.Background(), n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	perUser = make([]int, users)
	for pub := range flowPublishers {
		for user, n := range sent[pub] {
			perUser[user] += n
		}
		all += toAll[pub]
	}
	return perUser, all
}

// inOrder requires that what a sink took of flow's messages came in the order of
// each publisher, lane by lane; and if whole, that none is missing.
func inOrder(t testing.TB, sink *ledger, whole bool) {
	t.Helper()
	last := make(map[string]int64)
	for _, b := range sink.got() {
		for _, m := range b.ms {
			key := m.n.Source + m.priority.String()
			if m.n.UserID == AllUsers { // numbered apart
				key += AllUsers
			}
			if n := m.n.Timestamp; n <= last[key] || whole && n != last[key]+1 {
				t.Errorf("%s: number %d of %s after %d", m.n.ID, n, key, last[key])
			}
			last[key] = m.n.Timestamp
		}
	}
}

func TestEndToEnd(t *testing.T) {
	t.Run("many publishers: each session gets all that is its own, in the order of each publisher and lane", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for _, size := range []int{1, 7, 100} {
				b, g := pair(t, BrokerConfig{QueueCapacity: lanes(300)}, GatewayConfig{BatchSize: size, OutboxMessages: 100_000, InboxCapacity: 64})
				const users = 50
				var sinks [2 * users]*ledger // everybody has two sessions
				for i := range sinks {
					_, sinks[i] = join(t, g, fmt.Sprintf("s%d", i), fmt.Sprintf("u%d", i%users))
				}
				perUser, all := flow(t, b, users, sized(5_000, 1_000))
				drain(t, b)
				drain(t, g)
				for i, sink := range sinks {
					require.Len(t, sink.ids(), perUser[i%users]+all, "session %d", i)
					inOrder(t, sink, true)
				}
				accounted(t, b, uint64(flowPublishers*sized(5_000, 1_000)))
			}
		})
	})
	t.Run("on one thread everything moves", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		_, sink := join(t, g, "s", "u")
		for i := range 1000 { // each wakes everybody from their sleep
			id := strconv.Itoa(i)
			publishTo(t, b, "u", Priority(i%4), id)
			for len(sink.ids()) <= i {
				runtime.Gosched()
			}
		}
	})
}

func TestStress(t *testing.T) {
	t.Run("sinks that fail, panic and are slow, sessions that come and go: everything is counted, no order is broken", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for _, policy := range []SlowPolicy{SlowClose, SlowDropOldest} {
				b, g := pair(t, BrokerConfig{QueueCapacity: lanes(300)}, GatewayConfig{
					BatchSize: 5, OutboxMessages: 20, InboxCapacity: 64, SlowPolicy: policy, Pushers: 3, MaxPushers: 30,
					MaxSessionsPerUser: 4, MaxSessions: 150, SweepInterval: time.Millisecond, SessionTimeout: time.Hour, SlowAfter: 10 * time.Millisecond,
				})
				const users = 40
				s := seed(t)
				var serial atomic.Int64
				var mu sync.Mutex
				var sinks []*ledger
				register := func(random *rand.Rand) {
					id := serial.Add(1)
					user := fmt.Sprintf("u%d", random.IntN(users))
					fate, seen := random.IntN(12), 0
					var own *Session
					ready := make(chan struct{})
					sink := newLedger(t, g)
					sink.hook = func(ctx context.Context, ms []*Message) error {
						<-ready
						switch seen += len(ms); {
						case seen < 10 || own == nil:
						case fate == 0:
							return errors.New("broken pipe")
						case fate == 1:
							panic("oops")
						case fate == 2:
							runtime.Goexit()
						case fate == 3:
							own.Close()
						case fate == 4:
							<-ctx.Done() // until somebody ends it
						case fate < 8:
							for range 50 {
								runtime.Gosched()
							}
						}
						return nil
					}
					cfg := SessionConfig{ID: fmt.Sprintf("s%d", id%200), UserID: user, Sink: sink}
					if random.IntN(20) == 0 {
						cfg.Timeout = time.Millisecond
					}
					var err error
					own, err = g.RegisterSession(cfg)
					close(ready)
					if err == nil {
						mu.Lock()
						sinks = append(sinks, sink)
						mu.Unlock()
					}
					if err != nil && !errors.Is(err, ErrSessionExists) && !errors.Is(err, ErrTooManySessions) {
						t.Error(err)
					}
				}
				stop := make(chan struct{})
				var churn sync.WaitGroup
				for i := range 3 {
					random := rand.New(rand.NewPCG(s, uint64(i)))
					churn.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							switch random.IntN(8) {
							case 0, 1, 2:
								register(random)
							case 3:
								_ = g.UnregisterSession(fmt.Sprintf("s%d", random.IntN(200)))
							case 4:
								if s, ok := g.Session(fmt.Sprintf("s%d", random.IntN(200))); ok {
									s.Unsubscribe(ChannelAccount)
									s.Touch()
									s.SubscribeAll()
								}
							case 5:
								_ = b.Subscribe(fmt.Sprintf("u%d", random.IntN(users)), "g")
							case 6:
								_ = b.Unsubscribe(fmt.Sprintf("u%d", random.IntN(users)), "g")
							case 7:
								g.Stats()
								b.Stats()
								runtime.Gosched()
							}
						}
					})
				}
				flow(t, b, users, sized(5_000, 1_000))
				close(stop)
				churn.Wait()
				drain(t, b)
				agrees(t, b, g)
				for s := range g.Sessions() { // of those whose Push does not return
					s.Close()
				}
				if err := g.Shutdown(t.Context()); err != nil {
					require.ErrorIs(t, err, ErrClosed)
				}
				// A Push that lasts for a second after the end was abandoned, and returns late.
				for p := P0; p <= P3; p++ {
					eventually(t, "the last Push", func() bool { return lane(g, p).Pending == 0 })
				}
				for _, sink := range sinks {
					inOrder(t, sink, false)
				}
				conserved(t, b, g)
				t.Logf("%+v", g.Stats().Ended)
				accounted(t, b, uint64(flowPublishers*sized(5_000, 1_000)))
			}
		})
	})
}

func TestSaturatedLane(t *testing.T) {
	t.Run("with P1 saturated P2 and P3 move into the sinks, and nobody is called stuck", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			// A short lane, which is full even where delivery is quicker than two publishers.
			b, g := pair(t, BrokerConfig{QueueCapacity: [NumPriorities]int{P1: 32}}, GatewayConfig{OutboxMessages: 1 << 17})
			var seen [NumPriorities]atomic.Int64
			var sessions []*Session
			for _, user := range series("u", 20) {
				s, _ := join(t, g, user, user, func(cfg *SessionConfig, _ *ledger) {
					cfg.Sink = SinkFunc(func(_ context.Context, ms []*Message) error {
						for _, m := range ms {
							seen[m.priority].Add(1)
						}
						return nil
					})
				})
				sessions = append(sessions, s)
			}
			stop := make(chan struct{})
			end := sync.OnceFunc(func() { close(stop) })
			t.Cleanup(end)
			var flood sync.WaitGroup
			for pub := range 2 {
				flood.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						// Whoever is refused comes again: the lane is always full.
						if err := b.Publish(note(fmt.Sprintf("p%d-%d", pub, i), fmt.Sprintf("u%d", i%20+1), P1)); errors.Is(err, ErrQueueFull) {
							runtime.Gosched()
						}
					}
				})
			}
			n := sized(1_000, 200)
			eventually(t, "P1 is saturated", func() bool { return b.Stats().Lanes[P1].Rejected > 0 })
			from := seen[P1].Load()
			for i := range n {
				publishTo(t, b, fmt.Sprintf("u%d", i%20+1), P2, fmt.Sprintf("p2-%d", i))
				publishTo(t, b, fmt.Sprintf("u%d", i%20+1), P3, fmt.Sprintf("p3-%d", i))
			}
			publishTo(t, b, "u1", P0, "urgent")
			eventually(t, "all of P0, P2 and P3 while P1 goes on", func() bool {
				return seen[P0].Load() == 1 && seen[P2].Load() == int64(n) && seen[P3].Load() == int64(n)
			})
			t.Logf("%d of P1 meanwhile", seen[P1].Load()-from)
			require.False(t, receiverStats(t, b, "g").Stuck)
			require.Zero(t, receiverStats(t, b, "g").Dropped)
			for _, s := range sessions {
				require.NoError(t, s.Err())
			}
			end()
			flood.Wait()
			drain(t, b)
			drain(t, g)
		})
	})
	inBubble(t, "the quota is the Broker's: of 1,150 messages 1,000 are P1, 100 P2, 50 P3", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{BatchSize: 1, Pushers: 1, MaxPushers: 1, OutboxMessages: 1 << 17, MaxDelay: lanes(time.Duration(-1))})
		require.NoError(t, b.RegisterGateway(g))
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P1, series("P1-", 20_000)...)
		publishTo(t, b, "u", P2, series("P2-", 1_000)...)
		publishTo(t, b, "u", P3, series("P3-", 500)...)
		runBroker(t, b)
		runGateway(t, g)
		pass(time.Second)
		got := sink.ids()
		require.Len(t, got, 21_500)
		lastP2, lastP3 := slices.Index(got, "P2-1000"), slices.Index(got, "P3-500")
		// Ten rounds of the Broker hold them; the Gateway takes from the three
		// lanes in turn, and up to an inbox lane of each waits there.
		require.Less(t, lastP2, 10*1150+3*1024)
		require.Less(t, lastP3, 10*1150+3*1024)
		conserved(t, b, g)
	})
}
