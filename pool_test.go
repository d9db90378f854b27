package notification

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// bareSessions returns n Sessions that have nothing but what a pool needs.
func bareSessions(n int) []*Session {
	all := make([]*Session, n)
	for i, id := range series("s", n) {
		all[i] = &Session{id: id}
	}
	return all
}

// barePool returns a pool of the test's own: keep 0, so that next never waits,
// and what rouses the reader shows in the channel.
func barePool(most int, limit int64) (*pushPool, chan struct{}) {
	wake := make(chan struct{}, 1)
	q := newPushPool(0, most, limit, wake)
	q.starvedAt.Store(-never / 2) // no CPU is missing
	return q, wake
}

// enlist returns n pushers more, which the test plays.
func enlist(q *pushPool, n int, clock int64) []*pusher {
	pushers := make([]*pusher, n)
	for i := range pushers {
		pushers[i] = new(pusher)
	}
	q.join(pushers, clock)
	return pushers
}

// roused reports whether the reader has been roused since it was asked last.
func roused(wake chan struct{}) bool {
	select {
	case <-wake:
		return true
	default:
		return false
	}
}

// takeAll returns the IDs of all sessions that are due, in the order in which a
// single pusher gets them.
func takeAll(q *pushPool) (order []string) {
	p := enlist(q, 1, 0)[0]
	for s := q.next(p); s != nil; s = q.next(p) {
		order = append(order, s.id)
	}
	return order
}

func TestPoolOrder(t *testing.T) {
	t.Run("in a lane those that have been due the longest go first", func(t *testing.T) {
		for p := P0; p <= P3; p++ {
			q, _ := barePool(1, 0)
			sessions := bareSessions(100)
			for _, s := range sessions {
				q.add(s, p, 0)
			}
			require.Equal(t, series("s", 100), takeAll(q))
			require.True(t, q.quiet())
		}
	})
	t.Run("P0 goes before all others, and of ten turns one goes to each of P2 and P3", func(t *testing.T) {
		q, _ := barePool(1, 0)
		lanes := make(map[string]Priority)
		for i, s := range bareSessions(200) {
			p := Priority(i % 4)
			lanes[s.id] = p
			q.add(s, p, 0)
		}
		var counts [NumPriorities]int
		for i, id := range takeAll(q) {
			p := lanes[id]
			counts[p]++
			if i < 50 {
				require.Equal(t, P0, p, "turn %d", i)
			}
			if i == 50+40-1 { // four times ten turns; P1 has eight of ten
				require.Equal(t, [NumPriorities]int{50, 32, 4, 4}, counts)
			}
		}
		require.Equal(t, [NumPriorities]int{50, 50, 50, 50}, counts)
	})
	t.Run("a promotion moves a session to the end of the higher lane", func(t *testing.T) {
		q, _ := barePool(1, 0)
		s := bareSessions(4)
		q.add(s[0], P0, 0)
		q.add(s[1], P3, 0)
		q.add(s[2], P3, 0)
		q.add(s[3], P3, 0)
		q.promote(s[2], P0, 5)
		require.Equal(t, int64(5), s[2].due.at, "from then on it waits as a P0")
		require.Equal(t, []string{"s1", "s3", "s2", "s4"}, takeAll(q))
	})
	t.Run("a promotion of a session that a pusher has taken changes nothing", func(t *testing.T) {
		q, _ := barePool(1, 0)
		s := bareSessions(1)[0]
		q.add(s, P3, 0)
		p := enlist(q, 1, 0)[0]
		require.Same(t, s, q.next(p))
		q.promote(s, P0, 0)
		require.Nil(t, q.next(p))
		require.True(t, q.quiet())
	})
	t.Run("it agrees with a list for each lane under random calls", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		q, _ := barePool(1, 0)
		p := enlist(q, 1, 0)[0]
		var model [NumPriorities][]*Session
		var ts turns // of P1 to P3
		idle := bareSessions(50)
		for range sized(100_000, 20_000) {
			at := Priority(random.IntN(4))
			switch op := random.IntN(10); {
			case op < 4 && len(idle) > 0:
				i := random.IntN(len(idle))
				s := idle[i]
				idle = slices.Delete(idle, i, i+1)
				q.add(s, at, 0)
				model[at] = append(model[at], s)
			case op < 6 && at > P0 && len(model[at]) > 0:
				s := model[at][random.IntN(len(model[at]))]
				to := Priority(random.IntN(int(at)))
				q.promote(s, to, 0)
				model[at] = slices.DeleteFunc(model[at], func(x *Session) bool { return x == s })
				model[to] = append(model[to], s)
			case op >= 6:
				from := P0
				if len(model[P0]) == 0 {
					counts := [NumPriorities]int{P1: len(model[P1]), P2: len(model[P2]), P3: len(model[P3])}
					if counts == [NumPriorities]int{} {
						continue
					}
					from = ts.next(&counts)
				}
				want := model[from][0]
				model[from] = model[from][1:]
				require.Same(t, want, q.next(p))
				require.Same(t, p, want.pusher)
				idle = append(idle, want)
			}
			n := 0
			for lane := range model {
				require.Equal(t, len(model[lane]), q.due[lane].n)
				n += len(model[lane])
			}
			require.Equal(t, n, q.n)
		}
	})
}

// clocked is a pool whose size pushers are all in a call, with a session that has
// been due since 0.
func clocked(t *testing.T, size, most int, lane Priority) (*pushPool, []*pusher) {
	q, _ := barePool(most, 0)
	running := enlist(q, size, 0)
	for i, s := range bareSessions(size) {
		q.add(s, lane, 0)
		require.Same(t, s, q.next(running[i]))
	}
	for _, s := range bareSessions(100) {
		q.add(s, lane, 0)
	}
	return q, running
}

func TestPoolGrowth(t *testing.T) {
	for lane, after := range map[Priority]time.Duration{P0: 100 * time.Microsecond, P1: time.Millisecond, P2: time.Millisecond, P3: time.Millisecond} {
		t.Run("the pool doubles once somebody has been due for "+after.String()+" in "+lane.String(), func(t *testing.T) {
			q, _ := clocked(t, 4, 100, lane)
			d := q.ask(int64(after)-1, 100)
			require.Zero(t, d.pushers)
			require.Equal(t, int64(after), d.at, "when to ask again")
			d = q.ask(int64(after), 100)
			require.Equal(t, 4, d.pushers)
			enlist(q, d.pushers, int64(after))
			d = q.ask(int64(after)+1, 100)
			require.Zero(t, d.pushers, "the new ones have their time first")
			d = q.ask(2*int64(after), 100)
			require.Equal(t, 8, d.pushers)
		})
	}
	t.Run("no more are asked for than there are sessions due, nor than there may be", func(t *testing.T) {
		q, running := clocked(t, 4, 6, P1)
		require.Equal(t, 2, q.ask(int64(time.Hour), 6).pushers)
		for q.n > 1 {
			require.NotNil(t, q.next(running[0]))
		}
		q.sampleReturns = q.returns
		require.Equal(t, 1, q.ask(2*int64(time.Hour), 6).pushers)
	})
	t.Run("an idle pusher, or nobody due, is no reason to grow", func(t *testing.T) {
		q, _ := barePool(100, 0)
		enlist(q, 4, 0)
		require.Equal(t, demand{at: never}, q.ask(int64(time.Hour), 100), "nobody is due")
		q.add(bareSessions(1)[0], P1, 0)
		q.idle = 1
		require.Equal(t, demand{at: never}, q.ask(int64(time.Hour), 100), "one is idle")
	})
	t.Run("a pool of which half comes back in that time is busy and not blocked", func(t *testing.T) {
		ms := int64(time.Millisecond)
		q, running := clocked(t, 4, 100, P1)
		require.NotNil(t, q.next(running[0]))
		require.NotNil(t, q.next(running[1]))
		require.Zero(t, q.ask(ms, 100).pushers, "two of four")
		require.NotNil(t, q.next(running[2]))
		require.Equal(t, 4, q.ask(2*ms, 100).pushers, "one of four")
	})
	t.Run("with all that there may be in a call it names the call that lasts the longest", func(t *testing.T) {
		q, running := clocked(t, 4, 4, P1)
		oldest := q.calls[running[0].slot].session
		d := q.ask(int64(time.Hour), 4)
		require.Same(t, oldest, d.longest)
		require.Zero(t, d.pushers)
		next := q.calls[running[1].slot].session
		require.NotNil(t, q.next(running[0]), "it has come back, and has another")
		require.Same(t, next, q.ask(int64(time.Hour), 4).longest)
	})
	t.Run("while CPUs are missing the pool grows after 10 ms, and twice as long for each doubling", func(t *testing.T) {
		ms := int64(time.Millisecond)
		q, _ := clocked(t, 4, 100, P1)
		q.keep = 4
		q.starvedAt.Store(0)
		require.Zero(t, q.ask(10*ms-1, 100).pushers)
		require.Equal(t, 4, q.ask(12*ms, 100).pushers)
		enlist(q, 4, 12*ms)
		require.Zero(t, q.ask(32*ms-1, 100).pushers)
		require.Equal(t, 8, q.ask(34*ms, 100).pushers)
		require.Equal(t, 8, q.ask(36*ms, 100).pushers, "nobody has come back: all are blocked, and not waiting for a CPU")
	})
	t.Run("while CPUs are missing a pool that has grown in vain waits for much longer", func(t *testing.T) {
		ms := int64(time.Millisecond)
		q, running := clocked(t, 4, 100, P1)
		q.keep = 4
		q.starvedAt.Store(100 * ms)
		require.NotNil(t, q.next(running[0]))
		enlist(q, 4, 100*ms) // one return in 100 ms so far
		require.NotNil(t, q.next(running[0]))
		require.Zero(t, q.ask(200*ms, 100).pushers, "one in 100 ms again")
		require.Zero(t, q.ask(100*ms+16*20*ms-1, 100).pushers)
		require.Equal(t, 8, q.ask(100*ms+16*20*ms+2*ms, 100).pushers)
	})
	t.Run("while CPUs are missing a P0 gets one more pusher once nobody has come back for 10 ms, however many are blocked", func(t *testing.T) {
		ms := int64(time.Millisecond)
		for lane, want := range map[Priority]int{P0: 1, P1: 0} {
			q, running := clocked(t, 4, 100, lane)
			q.keep = 1 // the pool doubles after 40 ms
			q.starvedAt.Store(0)
			require.NotNil(t, q.next(running[0]), "one has come back")
			require.Zero(t, q.ask(1*ms, 100).pushers, "it is seen to have")
			require.Zero(t, q.ask(11*ms-1, 100).pushers)
			require.Equal(t, want, q.ask(12*ms, 100).pushers, "%s", lane)
		}
	})
	t.Run("a second after the last pusher that waited for a CPU none is missing", func(t *testing.T) {
		q, _ := clocked(t, 4, 100, P1)
		q.keep = 1
		second := int64(time.Second)
		q.starvedAt.Store(0)
		q.grownAt = second - 1 // so that it would be early
		require.Equal(t, 4, q.ask(second, 100).pushers)
	})
	t.Run("it tells once that a pusher was woken for a P0", func(t *testing.T) {
		q, _ := barePool(1, 0)
		s := bareSessions(4)
		q.add(s[0], P0, 0)
		require.False(t, q.woke(), "nobody sleeps")
		q.idle = 1
		q.add(s[1], P1, 0)
		require.False(t, q.woke())
		q.add(s[2], P0, 0)
		q.add(s[3], P1, 0)
		require.True(t, q.woke())
		require.False(t, q.woke())
		q.promote(s[1], P0, 0)
		require.True(t, q.woke(), "who was woken for it may not run yet")
	})
	t.Run("the reader is roused once when sessions begin to wait for a pusher", func(t *testing.T) {
		q, wake := barePool(100, 0)
		s := bareSessions(3)
		q.add(s[0], P1, 0)
		require.False(t, roused(wake), "there is no Run yet")
		enlist(q, 1, 0)
		q.add(s[1], P1, 0)
		require.True(t, roused(wake))
		q.add(s[2], P1, 0)
		require.False(t, roused(wake), "it knows")
	})
	t.Run("pushers that have nothing to do go, but for those that stay", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := newPushPool(2, 10, 0, make(chan struct{}, 1))
			var wg sync.WaitGroup
			for _, p := range enlist(q, 5, 0) {
				wg.Go(func() {
					for q.next(p) != nil {
					}
				})
			}
			synctest.Wait()
			require.Equal(t, 2, q.size)
			require.Equal(t, 2, q.idle)
			require.True(t, q.close(), "they are still there")
			wg.Wait()
			require.False(t, q.close())
		})
	})
}

func TestPoolAbandon(t *testing.T) {
	second := int64(time.Second)
	t.Run("a pusher whose session ended is abandoned a second later, the first to end first", func(t *testing.T) {
		q, wake := barePool(4, 0)
		sessions := bareSessions(4)
		pushers := enlist(q, 4, 0)
		for i, s := range sessions {
			q.add(s, P1, 0)
			q.next(pushers[i])
		}
		roused(wake)
		q.end(sessions[2], 10)
		require.True(t, roused(wake), "the reader must look after it")
		q.end(sessions[0], 20)
		require.False(t, roused(wake), "it does already")
		q.end(sessions[0], 30) // again: it counts from the first time
		d := q.ask(9+second, 4)
		require.False(t, d.abandon)
		require.Equal(t, 10+second, d.at)
		d = q.ask(10+second, 4)
		require.True(t, d.abandon)
		require.Equal(t, []*Session{sessions[2]}, q.abandon(10))
		require.Equal(t, 3, q.size)
		require.Equal(t, 20+second, q.ask(11+second, 4).at)
		require.Equal(t, []*Session{sessions[0]}, q.abandon(29))
		require.Equal(t, 2, q.size)
		require.Empty(t, q.abandon(never))
	})
	t.Run("an abandoned pusher gets nothing more when its call returns", func(t *testing.T) {
		q, wake := barePool(1, 0)
		p := enlist(q, 1, 0)[0]
		s := bareSessions(2)
		q.add(s[0], P1, 0)
		q.next(p)
		q.end(s[0], 0)
		q.abandon(0)
		q.add(s[1], P1, 0)
		roused(wake)
		require.Nil(t, q.next(p))
		require.True(t, roused(wake))
		require.Nil(t, s[0].pusher)
		require.Equal(t, 1, q.n, "the other is still due")
	})
	t.Run("with all pushers abandoned one is asked for at once", func(t *testing.T) {
		q, _ := barePool(1, 0)
		p := enlist(q, 1, 0)[0]
		s := bareSessions(2)
		q.add(s[0], P1, 0)
		q.next(p)
		q.end(s[0], 0)
		q.abandon(0)
		q.add(s[1], P1, second)
		require.Equal(t, 1, q.ask(second, 1).pushers)
	})
	t.Run("a session that is due again before its first pusher is back has a pusher of its own", func(t *testing.T) {
		q, _ := barePool(4, 0)
		pushers := enlist(q, 2, 0)
		first, second := pushers[0], pushers[1]
		s := bareSessions(1)[0]
		q.add(s, P1, 0)
		require.Same(t, s, q.next(first))
		q.add(s, P1, 0)
		require.Same(t, s, q.next(second))
		require.Nil(t, q.next(first))
		require.Same(t, second, s.pusher, "the first does not let go of the second's session")
		require.False(t, q.quiet())
		require.Nil(t, q.next(second))
		require.Nil(t, s.pusher)
		require.True(t, q.quiet())
	})
}

func TestPoolEnd(t *testing.T) {
	t.Run("it is quiet when nothing is due and no call is waited for, and tells a reader that drains", func(t *testing.T) {
		q, wake := barePool(4, 0)
		pushers := enlist(q, 2, 0)
		first, second := pushers[0], pushers[1]
		require.True(t, q.quiet())
		s := bareSessions(2)
		q.add(s[0], P1, 0)
		require.False(t, q.quiet(), "one is due")
		q.next(first)
		require.False(t, q.quiet(), "one is in a call")
		q.drain()
		q.add(s[1], P1, 0)
		q.next(second)
		q.end(s[1], 0)
		roused(wake)
		q.next(first)
		require.False(t, roused(wake))
		require.False(t, q.quiet(), "a call of a session that has ended is waited for")
		q.next(second)
		require.True(t, roused(wake))
		require.True(t, q.quiet())
	})
	t.Run("a drain does not wait for an abandoned pusher", func(t *testing.T) {
		q, _ := barePool(4, 0)
		p := enlist(q, 1, 0)[0]
		s := bareSessions(1)[0]
		q.add(s, P1, 0)
		q.next(p)
		q.end(s, 0)
		require.False(t, q.quiet())
		q.abandon(0)
		require.True(t, q.quiet())
		require.False(t, q.close())
	})
	t.Run("a session that ends while there are no pushers is not due: its caller closes the sink", func(t *testing.T) {
		q, _ := barePool(4, 0)
		s := bareSessions(2)
		require.False(t, q.addEnded(s[0], 0))
		q.add(s[1], P1, 0)
		require.True(t, q.withdraw(s[1]))
		require.Zero(t, q.n)
		enlist(q, 1, 0)
		require.True(t, q.addEnded(s[0], 0))
		require.False(t, q.withdraw(s[0]), "a pusher will come")
		require.Equal(t, []string{"s1"}, takeAll(q))
	})
	t.Run("a closed pool serves what is due and lets its pushers go, and then takes nothing more", func(t *testing.T) {
		q, wake := barePool(4, 0)
		p := enlist(q, 1, 0)[0]
		s := bareSessions(2)
		q.add(s[0], P1, 0)
		require.True(t, q.close())
		roused(wake)
		require.Same(t, s[0], q.next(p))
		require.Nil(t, q.next(p))
		require.True(t, roused(wake), "who waits for the pushers hears of the last")
		require.False(t, q.close())
		require.False(t, q.addEnded(s[1], 0))
	})
	t.Run("sessions that are added, taken and ended at random by many are served by one pusher each", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			wake := make(chan struct{}, 1)
			q := newPushPool(4, 4, 0, wake)
			var pushers sync.WaitGroup
			back := make(chan *Session, 100)
			served := make(map[*Session]*int) // an int belongs to whoever has its session
			for _, s := range bareSessions(100) {
				served[s] = new(int)
				back <- s
			}
			for _, p := range enlist(q, 4, 0) {
				pushers.Go(func() {
					for s := q.next(p); s != nil; s = q.next(p) {
						*served[s]++
						back <- s
					}
				})
			}
			total := sized(50_000, 10_000)
			for i := range total {
				q.add(<-back, Priority(i%4), 0)
			}
			for range 100 {
				<-back
			}
			for q.close() {
				runtime.Gosched()
			}
			pushers.Wait()
			require.True(t, q.quiet())
			sum := 0
			for _, n := range served {
				sum += *n
			}
			require.Equal(t, total, sum)
		})
	})
}

func TestMaxPushers(t *testing.T) {
	inBubble(t, "there are never more, and what waits goes on when a Push returns", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 2, MaxPushers: 5, SlowAfter: time.Hour})
		for _, id := range series("s", 5) {
			join(t, g, id, id, hooked(held.pass))
			publishTo(t, b, id, P0, id)
		}
		_, sink := join(t, g, "s", "u")
		pass(time.Second)
		publishTo(t, b, "u", P0, "a")
		pass(time.Second)
		require.Equal(t, 5, pushers(g))
		require.Empty(t, sink.ids())
		s, _ := g.Session("s1")
		require.NoError(t, s.Close()) // its Push returns
		synctest.Wait()
		require.Equal(t, []string{"a"}, sink.ids())
		held.open()
		pass(time.Second)
		require.Equal(t, 2, pushers(g))
	})
}

func TestAbandonedPushers(t *testing.T) {
	inBubble(t, "the only pusher there may be hangs: a second after the end of its session another takes its place", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1, SlowAfter: time.Hour})
		s, _ := join(t, g, "hangs", "hangs", hooked(held.deaf))
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "hangs", P0, "x")
		synctest.Wait()
		publishTo(t, b, "u", P0, "a")
		pass(time.Minute)
		require.Empty(t, sink.ids(), "within SlowAfter it may block as long as its session lives")
		require.NoError(t, s.Close())
		publishTo(t, b, "u", P0, "b")
		pass(time.Second - 1)
		require.Zero(t, g.Stats().Hung)
		pass(2 * time.Millisecond)
		require.Equal(t, uint64(1), g.Stats().Hung)
		require.Equal(t, []string{"a", "b"}, sink.ids())
		held.open()
		<-s.Done()
		publishTo(t, b, "u", P0, "c")
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
		require.Equal(t, 1, pushers(g))
	})
	inBubble(t, "one that hangs is found without any traffic", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1, SweepInterval: time.Hour})
		s, _ := join(t, g, "s", "u", hooked(held.deaf))
		publishTo(t, b, "u", P0, "x")
		synctest.Wait()
		require.NoError(t, s.Close())
		pass(time.Second)
		require.Equal(t, uint64(1), g.Stats().Hung)
		held.open()
		<-s.Done()
	})
}
