package notification

import (
	"context"
	"fmt"
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

// Flow control: who waits for whom, who is slow, and what nobody may be made to
// pay for. These tests use what the package exports and what the other tests
// share, so that they say nothing about how it is done. The bounds on time are
// all of virtual time.

// unharmed requires that no session has ended and that nothing was lost on the
// way from Publish to the sinks.
func unharmed(t testing.TB, b *Broker, g *Gateway) {
	t.Helper()
	st := g.Stats()
	require.Equal(t, SessionEnds{}, st.Ended, "sessions that ended")
	for p, l := range st.Lanes {
		require.Zero(t, l.DroppedSlow+l.DroppedEnded+l.Discarded, "P%d: dropped or discarded", p)
	}
	r := receiverStats(t, b, g.ID())
	require.False(t, r.Stuck, "the Broker calls the Gateway stuck")
	require.Zero(t, r.Dropped, "the Broker dropped what was for the Gateway")
}

// A stopwatch keeps the longest time that a stamped message took to its Push.
type stopwatch struct {
	mu    sync.Mutex
	worst [NumPriorities]time.Duration
}

// stamped returns n with the time of now.
func stamped(n *Notification) *Notification {
	n.Timestamp = time.Now().UnixNano()
	return n
}

// look is a hook for join.
func (w *stopwatch) look(_ context.Context, ms []*Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range ms {
		n := m.Notification()
		if n.Timestamp != 0 {
			w.worst[n.Priority] = max(w.worst[n.Priority], time.Duration(time.Now().UnixNano()-n.Timestamp))
		}
	}
	return nil
}

// longest returns the longest time of a lane so far.
func (w *stopwatch) longest(p Priority) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.worst[p]
}

// A turnstile lets as many Pushes pass as it was given turns.
type turnstile chan struct{}

func newTurnstile() turnstile { return make(turnstile, 1<<17) }

// pass is a hook for join: it waits for a turn, or the end of the session.
func (c turnstile) pass(ctx context.Context, _ []*Message) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// let gives n turns, and lets a bubble come to rest.
func (c turnstile) let(n int) {
	for range n {
		c <- struct{}{}
	}
	synctest.Wait()
}

// napping is a hook for join: each Push takes d.
func napping(d time.Duration) func(context.Context, []*Message) error {
	return func(context.Context, []*Message) error { nap(d); return nil }
}

// spin uses a CPU for d, or waits for one.
func spin(d time.Duration) {
	for began := time.Now(); time.Since(began) < d; {
	}
}

func TestBroadcast(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "a notice to 20,000 slow sinks holds up nobody's P1", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var sinks []*ledger
		for i := range sized(20_000, 6_000) {
			id := strconv.Itoa(i)
			_, sink := join(t, g, id, id, hooked(napping(time.Duration(5+i%11)*ms)))
			sinks = append(sinks, sink)
		}
		var watch stopwatch
		_, trader := join(t, g, "trader", "trader", hooked(watch.look), func(cfg *SessionConfig, _ *ledger) {
			cfg.Channels = []Channel{ChannelAccount}
		})
		require.NoError(t, b.Publish(notice("to all", P3)))
		want := series("m", sized(12_000, 3_000))
		for _, id := range want { // 10,000 a second
			require.NoError(t, b.Publish(stamped(note(id, "trader", P1))))
			nap(100 * time.Microsecond)
		}
		pass(5 * time.Second)
		unharmed(t, b, g)
		require.Equal(t, want, trader.ids())
		require.LessOrEqual(t, watch.longest(P1), 5*ms, "P1's target")
		for _, sink := range sinks {
			require.Equal(t, []string{"to all"}, sink.ids())
		}
	})
	inBubble(t, "hundreds of notices to sinks that cannot keep up hold up P3 alone, in the Broker too", func(t *testing.T) {
		// Some are always due: two in five have no pusher.
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 25, OutboxMessages: 256, InboxCapacity: 16, Pushers: 4, MaxPushers: sized(300, 180)})
		n := sized(500, 300)
		var sinks []*ledger
		for i := range n {
			id := strconv.Itoa(i)
			_, sink := join(t, g, id, id, hooked(napping(5*ms+time.Duration(i*37%1000)*10*time.Microsecond)))
			sinks = append(sinks, sink)
		}
		var watch stopwatch
		join(t, g, "trader", "trader", hooked(watch.look), func(cfg *SessionConfig, _ *ledger) {
			cfg.Channels = []Channel{ChannelAccount}
		})
		notices := series("n", 600)
		for _, id := range notices {
			require.NoError(t, b.Publish(notice(id, P3)))
		}
		standing := 0
		for i := range 600 {
			require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("p1-%d", i), "trader", P1))))
			require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("p2-%d", i), "trader", P2))))
			pass(ms)
			st := b.Stats()
			if st.Lanes[P3].Queued > 0 {
				standing++
			}
			require.Zero(t, st.Lanes[P1].Queued, "P1 waits in the Broker")
			require.Zero(t, st.Lanes[P2].Queued, "P2 waits in the Broker")
		}
		require.Greater(t, standing, 10, "P3 waits in the Broker, or this test shows nothing")
		pass(10 * time.Second)
		unharmed(t, b, g)
		require.LessOrEqual(t, watch.longest(P1), 10*ms, "while a pusher may be as far away as the longest Push is long")
		require.LessOrEqual(t, watch.longest(P2), 100*ms, "P2's target")
		for _, sink := range sinks {
			require.Equal(t, notices, sink.ids())
		}
	})
}

func TestBroadcastInRealTime(t *testing.T) {
	ms := time.Millisecond
	t.Run("in real time, a notice to sinks that use a CPU ends nobody and loses nothing", func(t *testing.T) {
		noLeaks(t)
		// A Gateway that runs has no budget to spend, however small that is.
		b, g := pair(t, BrokerConfig{StallTimeout: 20 * ms}, GatewayConfig{InboxCapacity: 64, SlowAfter: patient})
		n := sized(20_000, 5_000)
		var got atomic.Int64
		for i := range n {
			id := strconv.Itoa(i)
			join(t, g, id, id, hooked(func(context.Context, []*Message) error {
				spin(20 * time.Microsecond)
				got.Add(1)
				return nil
			}))
		}
		_, trader := join(t, g, "trader", "trader", func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{ChannelAccount} })
		require.NoError(t, b.Publish(notice("to all", P3)))
		var sent []string
		tick := time.NewTicker(ms)
		defer tick.Stop()
		for give := time.Now().Add(5 * time.Minute); got.Load() < int64(n) && time.Now().Before(give) && g.Stats().Ended == (SessionEnds{}); <-tick.C {
			for range 6 { // 6,000 a second, or fewer
				sent = append(sent, strconv.Itoa(len(sent)))
				require.NoError(t, b.PublishWait(t.Context(), note(sent[len(sent)-1], "trader", P1)))
			}
		}
		drain(t, b)
		eventually(t, "the trader has everything", func() bool { return len(trader.ids()) == len(sent) || g.Stats().Sessions <= n })
		unharmed(t, b, g)
		require.Equal(t, sent, trader.ids())
		require.Equal(t, int64(n), got.Load())
		drain(t, g)
	})
	t.Run("in real time, delays of many sessions that end together end with one Push each", func(t *testing.T) {
		noLeaks(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var sinks []*ledger
		for i := range sized(50_000, 5_000) {
			id := strconv.Itoa(i)
			_, sink := join(t, g, id, id)
			sinks = append(sinks, sink)
		}
		require.NoError(t, b.Publish(notice("a", P3)))
		require.NoError(t, b.Publish(notice("b", P2)))
		eventually(t, "all have both", func() bool {
			return lane(g, P2).Taken == uint64(len(sinks)) && lane(g, P3).Taken == uint64(len(sinks))
		})
		unharmed(t, b, g)
		for _, sink := range sinks {
			require.ElementsMatch(t, []string{"a", "b"}, sink.ids())
		}
	})
}

func TestBroadcastAndOthers(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "a notice begins at a random session and reaches each once", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		const n, rounds = 1_000, 64
		first := make(map[string]string) // by notice: who heard first
		for i := range n {
			id := strconv.Itoa(i)
			join(t, g, id, id, hooked(func(_ context.Context, ms []*Message) error { // one pusher: no lock
				if about := ms[0].Notification().ID; first[about] == "" {
					first[about] = id
				}
				return nil
			}))
		}
		for _, id := range series("n", rounds) {
			require.NoError(t, b.Publish(notice(id, P0)))
			synctest.Wait()
		}
		require.Equal(t, uint64(n*rounds), lane(g, P0).Taken)
		who := make(map[string]bool)
		for _, id := range first {
			who[id] = true
		}
		require.Len(t, first, rounds)
		require.GreaterOrEqual(t, len(who), 8, "of %d notices", rounds)
	})
	inBubble(t, "a user with 10,000 sessions costs the others no P0", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		n := sized(10_000, 2_000)
		for i := range n {
			join(t, g, fmt.Sprintf("big%d", i), "big", hooked(napping(5*ms)))
		}
		var watch stopwatch
		others := series("u", 100)
		for _, user := range others {
			join(t, g, user, user, hooked(watch.look))
		}
		for i := range 100 {
			if i%20 == 0 {
				publishTo(t, b, "big", P1, fmt.Sprintf("big%d", i))
			}
			require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("m%d", i), others[i], P0))))
			pass(ms)
		}
		pass(time.Second)
		unharmed(t, b, g)
		require.Equal(t, uint64(5*n), lane(g, P1).Taken)
		require.Equal(t, uint64(len(others)), lane(g, P0).Taken)
		require.LessOrEqual(t, watch.longest(P0), ms, "P0's target")
	})
}

func TestQuickSinks(t *testing.T) {
	encoding := hooked(func(_ context.Context, ms []*Message) error {
		for _, m := range ms {
			m.JSON()
		}
		return nil
	})
	for _, n := range []int{20_000, 40_000} {
		t.Run(fmt.Sprintf("%d messages at once for one user are all delivered", n), func(t *testing.T) {
			withProcs(t, func(t *testing.T) {
				b, g := pair(t, BrokerConfig{}, GatewayConfig{SlowAfter: patient})
				s, sink := join(t, g, "s", "u", encoding)
				want := series("m", n)
				publishTo(t, b, "u", P1, want...)
				eventually(t, "all of them", func() bool { return lane(g, P1).Taken == uint64(n) || s.Err() != nil })
				unharmed(t, b, g)
				require.Equal(t, want, sink.ids())
			})
		})
	}
	t.Run("one user with all of the flow is slowed down and not ended", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{QueueCapacity: lanes(1_000)}, GatewayConfig{SlowAfter: patient})
			s, sink := join(t, g, "s", "u", encoding)
			want := series("m", sized(200_000, 20_000))
			for _, id := range want {
				require.NoError(t, b.PublishWait(t.Context(), note(id, "u", P1)))
				if s.Err() != nil {
					break
				}
			}
			drain(t, b)
			eventually(t, "all of them", func() bool { return lane(g, P1).Taken == uint64(len(want)) || s.Err() != nil })
			unharmed(t, b, g)
			require.Equal(t, want, sink.ids())
		})
	})
	t.Run("eight times OutboxMessages of P0 at once are all delivered", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{SlowAfter: patient})
			s, sink := join(t, g, "s", "u", encoding)
			want := series("m", 8*1024)
			publishTo(t, b, "u", P0, want...)
			eventually(t, "all of them", func() bool { return lane(g, P0).Taken == uint64(len(want)) || s.Err() != nil })
			unharmed(t, b, g)
			require.Equal(t, want, sink.ids())
		})
	})
}

// busyPush returns a session in whose Push is one message, and an ever patient
// Gateway around it.
func busyPush(t *testing.T, cfg GatewayConfig, hook func(context.Context, []*Message) error) (*Broker, *Gateway, *Session, *ledger) {
	cfg.BatchSize, cfg.OutboxMessages, cfg.SessionTimeout = 4, 10, -1
	if cfg.SweepInterval == 0 {
		cfg.SweepInterval = 24 * time.Hour
	}
	b, g := pair(t, BrokerConfig{}, cfg)
	s, sink := join(t, g, "s", "u", hooked(hook))
	publishTo(t, b, "u", P0, "taken")
	synctest.Wait()
	return b, g, s, sink
}

func TestSlowAfter(t *testing.T) {
	ms := time.Millisecond
	for given, want := range map[time.Duration]time.Duration{0: time.Second, 200 * ms: 200 * ms, time.Minute: time.Minute} {
		inBubble(t, fmt.Sprintf("more than OutboxMessages waiting make a session slow once the Push has lasted SlowAfter/%s", want), func(t *testing.T) {
			held := newGate(t)
			b, g, s, sink := busyPush(t, GatewayConfig{SlowAfter: given}, held.pass)
			for i, id := range series("m", 11) {
				publishTo(t, b, "u", Priority(i%4), id)
			}
			synctest.Wait()
			require.NoError(t, s.Err(), "the Push has just begun")
			pass(want - ms)
			publishTo(t, b, "u", P1, "before")
			synctest.Wait()
			require.NoError(t, s.Err(), "1 ms before")
			pass(2 * ms)
			publishTo(t, b, "u", P1, "after")
			synctest.Wait()
			require.Equal(t, ErrSlowConsumer, s.Err())
			n, reason := sink.ended()
			require.Equal(t, 1, n)
			require.Equal(t, ErrSlowConsumer, reason)
			require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
		})
	}
	inBubble(t, "the sweep finds a slow session for which nothing arrives", func(t *testing.T) {
		held := newGate(t)
		b, _, s, _ := busyPush(t, GatewayConfig{SweepInterval: 5 * time.Second}, held.pass)
		publishTo(t, b, "u", P1, series("m", 11)...)
		pass(999 * ms)
		require.NoError(t, s.Err(), "1 ms before SlowAfter")
		pass(5 * time.Second)
		require.Equal(t, ErrSlowConsumer, s.Err())
	})
	inBubble(t, "OutboxMessages may wait for as long as the Push lasts", func(t *testing.T) {
		held := newGate(t)
		b, g, s, sink := busyPush(t, GatewayConfig{SweepInterval: time.Second}, held.pass)
		want := series("m", 10)
		publishTo(t, b, "u", P1, want...)
		pass(time.Hour)
		require.NoError(t, s.Err())
		held.open()
		pass(time.Second)
		require.Equal(t, append([]string{"taken"}, want...), sink.ids())
		unharmed(t, b, g)
	})
	inBubble(t, "a session whose Pushes return within SlowAfter is never slow, however much waits", func(t *testing.T) {
		b, g, s, sink := busyPush(t, GatewayConfig{SweepInterval: 100 * ms}, napping(990*ms))
		want := series("m", 70+19)
		publishTo(t, b, "u", P1, want[:70]...)
		for _, id := range want[70:] {
			pass(500 * ms)
			publishTo(t, b, "u", P1, id) // so that the reader looks
			synctest.Wait()
			require.NoError(t, s.Err())
		}
		pass(time.Minute)
		require.Equal(t, append([]string{"taken"}, want...), sink.ids())
		unharmed(t, b, g)
	})
}

func TestSlowDropOldest(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "SlowDropOldest ends nobody, however long the Push lasts", func(t *testing.T) {
		held := newGate(t)
		b, g, s, sink := busyPush(t, GatewayConfig{SlowPolicy: SlowDropOldest, SweepInterval: time.Second}, held.pass)
		for i, id := range series("m", 100) {
			publishTo(t, b, "u", P1, id)
			pass(100 * ms)
			require.NoError(t, s.Err())
			require.Equal(t, uint64(max(0, i+1-10)), s.Dropped())
		}
		held.open()
		pass(time.Second)
		require.Equal(t, append([]string{"taken"}, series("m", 100)[90:]...), sink.ids())
		require.Equal(t, uint64(90), lane(g, P1).DroppedSlow)
	})
	inBubble(t, "SlowDropOldest with more waiting than OutboxMessages when the Push began drops one for one", func(t *testing.T) {
		blocker, held := newGate(t), newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, OutboxMessages: 10, SlowPolicy: SlowDropOldest, Pushers: 1, MaxPushers: 1})
		join(t, g, "blocker", "blocker", hooked(blocker.pass))
		s, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "blocker", P0, "x")
		synctest.Wait()
		before := series("before", 40)
		publishTo(t, b, "u", P1, before...)
		synctest.Wait()
		blocker.open()
		synctest.Wait() // the Push has one, 39 wait
		during := series("during", 25)
		for i, id := range during {
			publishTo(t, b, "u", P1, id)
			synctest.Wait()
			require.Equal(t, uint64(i+1), s.Dropped())
		}
		held.open()
		synctest.Wait()
		require.Equal(t, slices.Concat(before[:1], before[26:], during), sink.ids())
		require.Equal(t, uint64(25), lane(g, P1).DroppedSlow)
	})
	inBubble(t, "SlowDropOldest with fewer waiting when the Push began drops beyond OutboxMessages", func(t *testing.T) {
		blocker, held := newGate(t), newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, OutboxMessages: 10, SlowPolicy: SlowDropOldest, Pushers: 1, MaxPushers: 1})
		join(t, g, "blocker", "blocker", hooked(blocker.pass))
		s, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "blocker", P0, "x")
		synctest.Wait()
		before := series("before", 5)
		publishTo(t, b, "u", P1, before...)
		synctest.Wait()
		blocker.open()
		synctest.Wait() // the Push has one, four wait
		during := series("during", 20)
		for i, id := range during {
			publishTo(t, b, "u", P1, id)
			synctest.Wait()
			require.Equal(t, uint64(max(0, 4+i+1-10)), s.Dropped())
		}
		held.open()
		synctest.Wait()
		require.Equal(t, slices.Concat(before[:1], during[10:]), sink.ids())
	})
}

func TestDeadPeers(t *testing.T) {
	ms := time.Millisecond
	t.Run("in real time, dead peers over their bound at the same notice end, and nobody else", func(t *testing.T) {
		noLeaks(t)
		held := newGate(t)
		// The healthy ones get one message at a time: nothing waits for them.
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 8, SlowAfter: ms, MaxDelay: lanes(time.Duration(-1))})
		var dead, well []*Session
		var sinks []*ledger
		for i := range sized(4_000, 500) {
			id := fmt.Sprintf("dead%d", i)
			s, _ := join(t, g, id, id, hooked(held.pass))
			dead = append(dead, s)
		}
		for _, id := range series("well", 5) {
			s, sink := join(t, g, id, id)
			well, sinks = append(well, s), append(sinks, sink)
		}
		var want []string
		for i := range 16 {
			id := strconv.Itoa(i)
			want = append(want, "all"+id, "own"+id)
			require.NoError(t, b.Publish(notice("all"+id, P3)))
			eventually(t, "the healthy have the notice", func() bool {
				return !slices.ContainsFunc(sinks, func(sink *ledger) bool { return len(sink.ids()) < len(want)-1 })
			})
			for _, s := range well {
				require.NoError(t, b.Publish(note("own"+id+s.UserID(), s.UserID(), P0)))
			}
			eventually(t, "the healthy have their P0", func() bool {
				return !slices.ContainsFunc(sinks, func(sink *ledger) bool { return len(sink.ids()) < len(want) })
			})
		}
		eventually(t, "the dead have ended", func() bool { return g.Stats().Sessions == len(well) })
		for _, s := range dead {
			require.Equal(t, ErrSlowConsumer, s.Err())
		}
		for i, s := range well {
			require.NoError(t, s.Err())
			for j, id := range sinks[i].ids() {
				require.True(t, strings.HasPrefix(id, want[j]), "%s instead of %s", id, want[j])
			}
		}
		require.Equal(t, SessionEnds{Slow: uint64(len(dead))}, g.Stats().Ended)
	})
}

func TestHold(t *testing.T) {
	tight := GatewayConfig{BatchSize: 1, OutboxMessages: 10, MaxDelay: lanes(time.Duration(-1)), SessionTimeout: -1}
	enqueued := func(g *Gateway, lanes ...Priority) (sum uint64) {
		for _, p := range lanes {
			sum += lane(g, p).Enqueued
		}
		return sum
	}
	inBubble(t, "P1 to P3 together are eight times OutboxMessages at most, what is beyond waits in its lane alone", func(t *testing.T) {
		turns := newTurnstile()
		b, g := pair(t, BrokerConfig{}, tight)
		s, _ := join(t, g, "s", "u", hooked(turns.pass))
		_, other := join(t, g, "other", "other")
		publishTo(t, b, "u", P0, "taken")
		synctest.Wait()
		publishTo(t, b, "u", P1, series("a", 30)...)
		publishTo(t, b, "u", P2, series("b", 30)...)
		publishTo(t, b, "u", P3, series("c", 20)...)
		synctest.Wait()
		require.Equal(t, uint64(80), enqueued(g, P1, P2, P3))
		publishTo(t, b, "u", P1, "beyond")
		publishTo(t, b, "other", P1, "behind it")
		synctest.Wait()
		require.Equal(t, uint64(80), enqueued(g, P1, P2, P3))
		require.Empty(t, other.ids(), "the order of a lane is kept")
		publishTo(t, b, "other", P3, "other3")
		publishTo(t, b, "other", P2, "other2")
		publishTo(t, b, "other", P0, "other0")
		synctest.Wait()
		require.ElementsMatch(t, []string{"other0", "other2", "other3"}, other.take(), "other lanes go on")
		publishTo(t, b, "u", P2, "beyond too")
		publishTo(t, b, "other", P2, "behind that")
		synctest.Wait()
		require.Equal(t, uint64(80+2), enqueued(g, P1, P2, P3), "the two are the other's")
		require.NoError(t, s.Err())
		turns.let(1 << 10)
		pass(time.Second)
		require.ElementsMatch(t, []string{"behind it", "behind that"}, other.ids())
		unharmed(t, b, g)
	})
	inBubble(t, "a message that is held waits until OutboxMessages of room are free", func(t *testing.T) {
		turns := newTurnstile()
		b, g := pair(t, BrokerConfig{}, tight)
		_, sink := join(t, g, "s", "u", hooked(turns.pass))
		_, other := join(t, g, "other", "other")
		want := series("m", 1+80+15)
		publishTo(t, b, "u", P1, want[0])
		synctest.Wait()
		publishTo(t, b, "u", P1, want[1:]...)
		publishTo(t, b, "other", P1, "behind them")
		synctest.Wait()
		require.Equal(t, uint64(81), enqueued(g, P1), "one in the Push, 80 wait")
		turns.let(8)
		require.Equal(t, uint64(81), enqueued(g, P1), "room for eight")
		turns.let(3)
		require.InDelta(t, 91, int(enqueued(g, P1)), 1, "room for ten, which is used at once")
		require.Empty(t, other.ids())
		turns.let(8)
		require.InDelta(t, 91, int(enqueued(g, P1)), 1, "and so on")
		turns.let(1 << 10)
		require.Equal(t, want, sink.ids())
		require.Equal(t, []string{"behind them"}, other.ids())
		unharmed(t, b, g)
	})
	inBubble(t, "with an outbox full of P1, a P0 for somebody else goes at once, and one for itself next", func(t *testing.T) {
		turns := newTurnstile()
		b, g := pair(t, BrokerConfig{}, tight)
		s, sink := join(t, g, "s", "u", hooked(turns.pass))
		_, other := join(t, g, "other", "other")
		publishTo(t, b, "u", P1, series("m", 200)...)
		synctest.Wait()
		publishTo(t, b, "other", P0, "urgent")
		publishTo(t, b, "u", P0, "urgent too")
		synctest.Wait()
		require.NoError(t, s.Err())
		require.Equal(t, []string{"urgent"}, other.ids())
		require.Equal(t, uint64(2), enqueued(g, P0))
		turns.let(2)
		require.Equal(t, []string{"m1", "urgent too"}, sink.ids())
		turns.let(1 << 10)
		require.Len(t, sink.ids(), 201)
		unharmed(t, b, g)
	})
	inBubble(t, "P0 has a bound of its own, and beyond it the session is slow", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, tight)
		s, _ := join(t, g, "s", "u", hooked(held.pass))
		_, other := join(t, g, "other", "other")
		publishTo(t, b, "u", P1, "taken")
		synctest.Wait()
		publishTo(t, b, "u", P1, series("m", 80)...)
		publishTo(t, b, "u", P1, "held")
		publishTo(t, b, "other", P1, "behind it")
		publishTo(t, b, "u", P0, series("urgent", 80)...)
		synctest.Wait()
		require.NoError(t, s.Err())
		require.Equal(t, uint64(81), enqueued(g, P1))
		require.Equal(t, uint64(80), enqueued(g, P0))
		publishTo(t, b, "u", P0, "too much")
		synctest.Wait()
		require.Equal(t, ErrSlowConsumer, s.Err())
		require.Equal(t, []string{"behind it"}, other.ids(), "the end of a session ends its hold")
		require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
	})
}

func TestHoldBudget(t *testing.T) {
	ms := time.Millisecond
	// The flood of these is twice what its sink takes, 15,000 a second.
	cfg := GatewayConfig{BatchSize: 10, OutboxMessages: 100, SessionTimeout: -1}
	takes := napping(667 * time.Microsecond)
	for name, hook := range map[string]func(context.Context, []*Message) error{
		"that takes half of its flood": takes,
		"that takes nothing":           func(ctx context.Context, _ []*Message) error { <-ctx.Done(); return context.Cause(ctx) },
	} {
		inBubble(t, "a session "+name+" costs the others of its lane 50 ms, then it is slow", func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, cfg)
			s, _ := join(t, g, "flooded", "flooded", hooked(hook))
			var watch stopwatch
			others := series("u", 10)
			for _, user := range others {
				join(t, g, user, user, hooked(watch.look))
			}
			for i := range 1_000 { // a second
				for j := range 30 {
					_ = b.Publish(note(fmt.Sprintf("flood%d-%d", i, j), "flooded", P1))
				}
				require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("m%d", i), others[i%len(others)], P1))))
				require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("other lane%d", i), others[i%len(others)], P2))))
				pass(ms)
			}
			pass(time.Second)
			require.Equal(t, ErrSlowConsumer, s.Err())
			require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
			require.Zero(t, receiverStats(t, b, "g").Dropped)
			require.Equal(t, uint64(1_000), lane(g, P2).Taken)
			require.LessOrEqual(t, watch.longest(P1), 75*ms, "50 ms, and the hold in which they ended")
			require.LessOrEqual(t, watch.longest(P2), 100*ms, "P2's target")
			// Nobody else has lost anything.
			l := lane(g, P1)
			require.Equal(t, l.Enqueued, l.Taken+l.DroppedEnded)
			for _, user := range others {
				for s := range g.UserSessions(user) {
					require.NoError(t, s.Err())
				}
			}
		})
	}
	inBubble(t, "a session that is alone in its lane may hold it up for as long as its Pushes return", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{QueueCapacity: lanes(2_000)}, cfg)
		s, sink := join(t, g, "flooded", "flooded", hooked(takes))
		var watch stopwatch
		join(t, g, "other", "other", hooked(watch.look))
		var want []string
		full := false
		for i := range sized(3_000, 2_000) {
			for j := range 30 {
				id := fmt.Sprintf("flood%d-%d", i, j)
				if err := b.Publish(note(id, "flooded", P1)); err == nil {
					want = append(want, id)
				} else {
					require.ErrorIs(t, err, ErrQueueFull)
					full = true
				}
			}
			require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("m%d", i), "other", P2))))
			pass(ms)
			require.NoError(t, s.Err())
		}
		require.True(t, full, "the lane stands still, or this test shows nothing")
		pass(10 * time.Second)
		unharmed(t, b, g)
		require.Equal(t, want, sink.ids())
		require.LessOrEqual(t, watch.longest(P2), 100*ms, "P2's target")
	})
}

func TestDebt(t *testing.T) {
	// One pusher, which passes a turnstile with each Push: who is due waits for it.
	single := GatewayConfig{BatchSize: 10, InboxCapacity: 16, MaxDelay: lanes(time.Duration(-1)), Pushers: 1, MaxPushers: 1, SlowAfter: time.Hour, SessionTimeout: -1}
	const slack = 64 + 16 // what may be on its way when the reader looks
	for outbox, bound := range map[int]int{100: 4096, 1024: 4096, 2000: 8000} {
		inBubble(t, fmt.Sprintf("over %d messages in debt only that lane stands still, until half is left/OutboxMessages %d", bound, outbox), func(t *testing.T) {
			cfg := single
			cfg.OutboxMessages = outbox
			turns := newTurnstile()
			b, g := pair(t, BrokerConfig{}, cfg)
			join(t, g, "blocker", "blocker", hooked(turns.pass))
			_, other := join(t, g, "other", "other", hooked(turns.pass))
			publishTo(t, b, "blocker", P0, "x")
			synctest.Wait()
			users := series("u", bound/10+200) // ten messages each, one Push
			for _, user := range users {
				join(t, g, user, user, hooked(turns.pass))
				publishTo(t, b, user, P1, series(user+"-", 10)...)
			}
			synctest.Wait()
			read := lane(g, P1).Received
			require.InDelta(t, bound, int(read), slack)

			publishTo(t, b, "other", P3, "other3")
			publishTo(t, b, "other", P2, "other2")
			publishTo(t, b, users[0], P2, "their own too")
			synctest.Wait()
			require.Equal(t, uint64(2), lane(g, P2).Received, "P2 goes on")
			require.Equal(t, uint64(1), lane(g, P3).Received, "P3 goes on")
			require.Equal(t, read, lane(g, P1).Received)
			publishTo(t, b, "other", P0, "other0")
			synctest.Wait()
			turns.let(1 + 1) // the blocker, then the P0 that takes along the others
			require.Equal(t, []string{"other0", "other2", "other3"}, other.ids())

			turns.let(bound/2/10 - slack/10)
			require.Equal(t, read, lane(g, P1).Received, "a little more than half is left")
			turns.let(2 * slack / 10)
			require.Greater(t, lane(g, P1).Received, read, "a little less than half is left")
			turns.let(2 * len(users))
			pass(time.Second)
			require.Equal(t, uint64(10*len(users)), lane(g, P1).Taken)
			unharmed(t, b, g)
		})
	}
	inBubble(t, "a Gateway that is late fills its inbox, then the Broker's lane, then Publish is ErrQueueFull, and nobody ends", func(t *testing.T) {
		turns := newTurnstile()
		b, g := pair(t, BrokerConfig{QueueCapacity: lanes(100)}, single)
		users := series("u", 1_000)
		for _, user := range users {
			join(t, g, user, user, hooked(turns.pass))
		}
		accepted := 0
		for full := false; !full; {
			for i := 0; i < 100 && !full; i++ {
				err := b.Publish(note(fmt.Sprintf("m%d", accepted), users[accepted%len(users)], P1))
				if full = err != nil; full {
					require.ErrorIs(t, err, ErrQueueFull)
				} else {
					accepted++
				}
			}
			require.Less(t, accepted, 10_000, "no end of it")
			pass(time.Millisecond)
		}
		require.InDelta(t, 4096+16+100, accepted, slack+10)
		pass(time.Minute)
		require.ErrorIs(t, b.Publish(note("one more", users[0], P1)), ErrQueueFull)
		for _, p := range []Priority{P0, P2, P3} {
			publishTo(t, b, users[1], p, p.String())
			synctest.Wait()
			require.Equal(t, uint64(1), lane(g, p).Received)
		}
		unharmed(t, b, g)
		turns.let(2 * accepted)
		pass(time.Second)
		require.Equal(t, uint64(accepted), lane(g, P1).Taken)
		unharmed(t, b, g)
	})
	inBubble(t, "while delays that have ended wait for a pusher nothing new of their lane is read", func(t *testing.T) {
		cfg := single
		cfg.MaxDelay = [NumPriorities]time.Duration{}
		turns := newTurnstile()
		b, g := pair(t, BrokerConfig{}, cfg)
		join(t, g, "blocker", "blocker", hooked(turns.pass), func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{ChannelAccount} })
		publishTo(t, b, "blocker", P0, "x")
		n := sized(10_000, 6_000)
		for i := range n {
			id := strconv.Itoa(i)
			join(t, g, id, id, hooked(turns.pass))
		}
		require.NoError(t, b.Publish(notice("to all", P3)))
		pass(99 * time.Millisecond)
		publishTo(t, b, "0", P3, "in time")
		synctest.Wait()
		require.Equal(t, uint64(2), lane(g, P3).Received)
		pass(10 * time.Millisecond)
		publishTo(t, b, "1", P3, "too late")
		publishTo(t, b, "1", P2, "another lane")
		publishTo(t, b, "1", P1, "and another")
		synctest.Wait()
		require.Equal(t, uint64(2), lane(g, P3).Received)
		require.Equal(t, uint64(1), lane(g, P2).Received)
		require.Equal(t, uint64(1), lane(g, P1).Received)
		turns.let(2*n + 100)
		pass(time.Second)
		require.Equal(t, uint64(n+2), lane(g, P3).Taken)
		unharmed(t, b, g)
	})
}
