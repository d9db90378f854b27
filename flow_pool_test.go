package notification

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurns(t *testing.T) {
	// queue returns a Gateway whose only pusher is held up until open is called,
	// and where the users are told whom it pushes to then, in this order.
	queue := func(t *testing.T) (b *Broker, g *Gateway, enter func(user string), open func(), order *[]string) {
		held := newGate(t)
		b, g = pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, MaxDelay: lanes(time.Duration(-1)), Pushers: 1, MaxPushers: 1, SlowAfter: time.Hour})
		join(t, g, "blocker", "blocker", hooked(held.pass))
		publishTo(t, b, "blocker", P0, "x")
		synctest.Wait()
		order = new([]string)
		enter = func(user string) {
			join(t, g, user, user, hooked(func(_ context.Context, ms []*Message) error { // one pusher: no lock
				*order = append(*order, ms[0].Notification().ID)
				return nil
			}))
		}
		return b, g, enter, func() { held.open(); synctest.Wait() }, order
	}
	inBubble(t, "of ten turns at least one goes to each of P1, P2 and P3 with somebody due", func(t *testing.T) {
		b, _, enter, open, order := queue(t)
		left := [NumPriorities]int{5, 400, 40, 40}
		total := 0
		for _, p := range []Priority{P1, P2, P3, P0} {
			for _, id := range series(p.String()+"-", left[p]) {
				enter(id)
				publishTo(t, b, id, p, id)
				synctest.Wait()
			}
			total += left[p]
		}
		open()
		require.Len(t, *order, total)
		var gone [NumPriorities]int
		for i, id := range *order {
			var p Priority
			_, err := fmt.Sscanf(id, "P%d-", &p)
			require.NoError(t, err)
			gone[p]++
			if i < left[P0] {
				require.Equal(t, P0, p, "those with a P0 first")
				continue
			}
			for p := P1; p <= P3; p++ {
				if gone[p] < left[p] {
					require.GreaterOrEqual(t, gone[p], (i+1-left[P0])/10-1, "%s after %d turns", p, i+1)
				}
			}
		}
		require.Less(t, slices.Index(*order, "P2-40"), slices.Index(*order, "P1-400"))
	})
	for _, p := range []Priority{P0, P1, P2, P3} {
		inBubble(t, fmt.Sprintf("who has been due the longest is pushed first/%s", p), func(t *testing.T) {
			b, _, enter, open, order := queue(t)
			users := series("u", 200)
			for _, user := range users {
				enter(user)
			}
			rand.New(rand.NewPCG(seed(t), 0)).Shuffle(len(users), func(i, j int) { users[i], users[j] = users[j], users[i] })
			for _, user := range users {
				publishTo(t, b, user, p, user)
				synctest.Wait()
			}
			open()
			require.Equal(t, users, *order)
		})
	}
	inBubble(t, "whoever gets something of a higher lane while it is due moves to the end of that lane", func(t *testing.T) {
		b, _, enter, open, order := queue(t)
		due := func(user string, p Priority) {
			enter(user)
			publishTo(t, b, user, p, user)
			synctest.Wait()
		}
		for _, user := range series("low", 300) {
			due(user, P3)
		}
		due("promoted", P3)
		for _, user := range series("high", 30) {
			due(user, P1)
		}
		publishTo(t, b, "promoted", P1, "again")
		synctest.Wait()
		open()
		require.Len(t, *order, 332)
		at := slices.Index(*order, "again")
		require.Greater(t, at, slices.Index(*order, "high30"))
		require.Less(t, at, 45, "31 turns of P1, and the others' shares")
	})
	t.Run("in real time, a pusher gives others a turn by time and not by count", func(t *testing.T) {
		noLeaks(t)
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		const pushes = 1_000
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, MaxDelay: lanes(time.Duration(-1)), Pushers: 1, MaxPushers: 1, SlowAfter: time.Hour})
		join(t, g, "blocker", "blocker", hooked(held.pass))
		publishTo(t, b, "blocker", P0, "x")
		var done atomic.Int64
		for _, user := range series("u", pushes) {
			join(t, g, user, user, hooked(func(context.Context, []*Message) error {
				spin(20 * time.Microsecond)
				done.Add(1)
				return nil
			}))
			publishTo(t, b, user, P1, user)
		}
		eventually(t, "all are due", func() bool { return lane(g, P1).Enqueued == pushes })
		held.open()
		// With one thread for all, each turn of ours is one that somebody gave up.
		var row, last int64
		for give := time.Now().Add(5 * time.Minute); last < pushes && time.Now().Before(give); runtime.Gosched() {
			n := done.Load()
			row, last = max(row, n-last), n
		}
		require.Equal(t, int64(pushes), last)
		require.LessOrEqual(t, row, int64(20), "Pushes in a row; five take 100 µs")
	})
}

func TestPoolGrows(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "it grows for as long as somebody due waits, though pushers return all the time", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 4})
		n := sized(5_000, 3_000)
		for i := range n {
			user := strconv.Itoa(i)
			join(t, g, user, user, hooked(napping(time.Duration(5+i%11)*ms)))
		}
		i := 0
		second := func(d time.Duration) { // each user has one message in 100 ms
			for range d / ms {
				for range n / 100 {
					publishTo(t, b, strconv.Itoa(i*7919%n), P1, strconv.Itoa(i))
					i++
				}
				pass(ms)
			}
		}
		second(200 * ms) // it grows
		before := g.Stats().Lanes[P1].Latency
		second(300 * ms)
		h := g.Stats().Lanes[P1].Latency.Sub(before)
		require.LessOrEqual(t, h.Quantile(.99), 5*ms, "P1's target")
		pass(time.Second)
		unharmed(t, b, g)
		require.Equal(t, uint64(i), lane(g, P1).Taken)
	})
}

func TestAllPushersInACall(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "with MaxPushers in Pushes that do not return the oldest ends as slow, and the Gateway goes on", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 4, SweepInterval: time.Second, SessionTimeout: -1})
		var stuck []*Session
		for _, id := range series("stuck", 4) {
			s, _ := join(t, g, id, id, hooked(held.pass))
			stuck = append(stuck, s)
			publishTo(t, b, id, P1, id)
			pass(25 * ms)
			publishTo(t, b, id, P1, id+" waits")
			pass(25 * ms)
		}
		_, well := join(t, g, "well", "well")
		publishTo(t, b, "well", P1, "m")
		pass(500 * ms)
		require.Empty(t, well.ids())
		require.Equal(t, SessionEnds{}, g.Stats().Ended, "SlowAfter is not over")
		pass(2 * time.Second)
		require.Equal(t, []string{"m"}, well.ids())
		require.Equal(t, ErrSlowConsumer, stuck[0].Err())
		publishTo(t, b, "well", P0, "n")
		pass(5 * time.Second)
		require.Equal(t, []string{"m", "n"}, well.ids())
		for _, s := range stuck { // the oldest first, and as many as it takes
			if s.Err() != nil {
				require.Equal(t, ErrSlowConsumer, s.Err())
			}
		}
		require.True(t, slices.IsSortedFunc(stuck, func(a, b *Session) int {
			switch {
			case a.Err() == nil && b.Err() != nil:
				return 1
			case a.Err() != nil && b.Err() == nil:
				return -1
			}
			return 0
		}), "the oldest ends first")
	})
	inBubble(t, "a Push that publishes, and waits for itself with its ctx, ends with its session", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{QueueCapacity: lanes(1)}, GatewayConfig{
			BatchSize: 1, OutboxMessages: 1, InboxCapacity: 1, MaxDelay: lanes(time.Duration(-1)),
			Pushers: 2, MaxPushers: 2, SweepInterval: time.Second, SessionTimeout: -1,
		})
		var inside, serial atomic.Int64
		both := newGate(t)
		var selfish []*Session
		for _, user := range series("selfish", 2) {
			s, _ := join(t, g, user, user, hooked(func(ctx context.Context, _ []*Message) error {
				inside.Add(1)
				defer inside.Add(-1)
				if err := both.pass(ctx, nil); err != nil { // until both are in a Push
					return err
				}
				for range 20 { // more than fits on the way
					if err := b.PublishWait(ctx, note(strconv.FormatInt(serial.Add(1), 10), user, P1)); err != nil {
						return err
					}
				}
				return nil
			}))
			selfish = append(selfish, s)
			publishTo(t, b, user, P1, user)
			synctest.Wait()
		}
		both.open()
		_, sink := join(t, g, "s", "u")
		pass(30 * time.Second)
		require.Zero(t, inside.Load(), "Pushes that hang")
		for _, s := range selfish {
			require.Equal(t, ErrSlowConsumer, s.Err())
		}
		for _, p := range []Priority{P0, P1, P2, P3} {
			publishTo(t, b, "u", p, p.String())
			pass(time.Second)
		}
		require.Equal(t, []string{"P0", "P1", "P2", "P3"}, sink.ids())
	})
}

func TestStuckSinks(t *testing.T) {
	ms := time.Millisecond
	for _, row := range []struct {
		name  string
		stuck int
		deaf  bool
	}{
		{"one sink that never returns", 1, false},
		{"a thousand sinks that never return", 1_000, false},
		{"a thousand sinks that ignore the end of ctx as well", 1_000, true},
	} {
		inBubble(t, row.name+": the others miss nothing and are not slower, and the stuck ones end", func(t *testing.T) {
			held := newGate(t)
			hook := held.pass
			if row.deaf {
				hook = held.deaf
			}
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 8, Pushers: 4, SessionTimeout: -1})
			synctest.Wait()
			var stuck []*Session
			for _, id := range series("stuck", row.stuck) {
				s, _ := join(t, g, id, id, hooked(hook))
				stuck = append(stuck, s)
			}
			var watch stopwatch
			var sinks []*ledger
			well := series("well", 100)
			for _, id := range well {
				_, sink := join(t, g, id, id, hooked(watch.look))
				sinks = append(sinks, sink)
			}
			require.NoError(t, b.Publish(stamped(notice("notice", P0)))) // to all
			pass(20 * ms)                                                // a doubling takes 0.1 ms
			require.LessOrEqual(t, watch.longest(P0), 3*ms, "a P0 while ever more are blocked")
			watch = stopwatch{}
			for i := range 12 { // more than the outbox has room for
				for _, s := range stuck {
					publishTo(t, b, s.UserID(), P1, fmt.Sprintf("%s-%d", s.ID(), i))
				}
				synctest.Wait()
				for _, id := range well {
					require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("%s-%d", id, i), id, P1))))
					require.NoError(t, b.Publish(stamped(note(fmt.Sprintf("%s-%d!", id, i), id, P0))))
				}
				pass(10 * ms)
			}
			require.Equal(t, SessionEnds{}, g.Stats().Ended, "SlowAfter is not over")
			pass(time.Second)
			for _, s := range stuck {
				publishTo(t, b, s.UserID(), P1, s.ID()+" too much")
			}
			pass(ms)
			for _, s := range stuck {
				require.Equal(t, ErrSlowConsumer, s.Err())
			}
			require.Equal(t, SessionEnds{Slow: uint64(row.stuck)}, g.Stats().Ended)
			pass(2 * time.Second)
			if row.deaf {
				require.Equal(t, uint64(row.stuck), g.Stats().Hung)
			} else {
				require.Zero(t, g.Stats().Hung)
			}
			held.open()
			for _, s := range stuck {
				<-s.Done()
			}
			pass(time.Second)
			require.LessOrEqual(t, pushers(g), 4, "the pool has shrunk")
			for _, id := range well {
				publishTo(t, b, id, P0, id+" after")
			}
			synctest.Wait()
			for i, sink := range sinks {
				require.Len(t, sink.ids(), 1+2*12+1)
				require.Contains(t, sink.ids(), well[i]+" after")
			}
			require.LessOrEqual(t, watch.longest(P0), ms, "P0's target")
			require.LessOrEqual(t, watch.longest(P1), 5*ms, "P1's target")
		})
	}
}

func TestMarketHalt(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "a MarketHalt to 10,000 sessions while every pusher is blocked is delivered within milliseconds by a few", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 4})
		for _, id := range series("stuck", 4) {
			join(t, g, id, id, hooked(held.pass))
			publishTo(t, b, id, P0, id)
		}
		synctest.Wait()
		idle := runtime.NumGoroutine()
		var watch stopwatch
		var most atomic.Int64
		n := sized(10_000, 3_000)
		for i := range n {
			id := strconv.Itoa(i)
			join(t, g, id, id, hooked(func(ctx context.Context, ms []*Message) error {
				most.Store(max(most.Load(), int64(runtime.NumGoroutine())))
				return watch.look(ctx, ms)
			}))
		}
		require.NoError(t, b.Publish(stamped(&Notification{ID: "halt", UserID: AllUsers, Priority: P0, Payload: MarketHalt{InstrumentID: "cu2512"}})))
		pass(time.Second)
		require.Equal(t, uint64(n), lane(g, P0).Taken)
		require.LessOrEqual(t, watch.longest(P0), 2*ms)
		require.LessOrEqual(t, most.Load(), int64(idle+100), "goroutines")
		unharmed(t, b, g)
		held.open()
	})
	t.Run("in real time, a MarketHalt to 10,000 sessions while every pusher is busy starts no thousand goroutines", func(t *testing.T) {
		for _, procs := range []int{1, 2} {
			t.Run(fmt.Sprintf("GOMAXPROCS %d", procs), func(t *testing.T) {
				noLeaks(t)
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				b, g := pair(t, BrokerConfig{}, GatewayConfig{})
				idle := runtime.NumGoroutine()
				var most atomic.Int64
				n := sized(10_000, 2_000)
				for i := range n {
					id := strconv.Itoa(i)
					join(t, g, id, id, hooked(func(context.Context, []*Message) error {
						spin(20 * time.Microsecond)
						if n := int64(runtime.NumGoroutine()); n > most.Load() {
							most.Store(n)
						}
						return nil
					}))
				}
				require.NoError(t, b.Publish(notice("busy", P1)))
				require.NoError(t, b.Publish(&Notification{ID: "halt", UserID: AllUsers, Priority: P0, Payload: MarketHalt{InstrumentID: "cu2512"}}))
				eventually(t, "all have both", func() bool { return lane(g, P0).Taken == uint64(n) && lane(g, P1).Taken == uint64(n) })
				unharmed(t, b, g)
				require.Less(t, most.Load(), int64(idle+1_000))
				t.Logf("%d goroutines before, at most %d", idle, most.Load())
			})
		}
	})
}

func TestUrgentFlood(t *testing.T) {
	// flood keeps P0 of an inbox full until stop is called: straight to the inbox,
	// and for nobody, so that the reader does nothing but read.
	flood := func(t *testing.T, g *Gateway) (stop func()) {
		over := make(chan struct{})
		var publishers sync.WaitGroup
		for range 2 {
			publishers.Go(func() {
				m := NewMessage(note("flood", "nobody", P0))
				for {
					select {
					case g.Inbox()[P0] <- m:
					case <-over:
						return
					}
				}
			})
		}
		stop = sync.OnceFunc(func() { close(over); publishers.Wait() })
		t.Cleanup(stop)
		eventually(t, "the flood", func() bool { return lane(g, P0).Received > 10_000 })
		return stop
	}
	low := []Priority{P1, P2, P3}
	for _, row := range []struct {
		name  string
		delay time.Duration
		early bool
	}{
		{"what waited for its delay when it began is delivered in the middle of it", 300 * time.Millisecond, true},
		{"what comes in other lanes is delivered in the middle of it", -1, false},
	} {
		t.Run("in real time, "+row.name, func(t *testing.T) {
			withProcs(t, func(t *testing.T) {
				g := newGateway(t, "g", GatewayConfig{MaxDelay: lanes(row.delay)})
				runGateway(t, g)
				var sinks []*ledger
				for _, p := range low {
					_, sink := join(t, g, p.String(), p.String())
					sinks = append(sinks, sink)
				}
				send := func() {
					for _, p := range low {
						g.Inbox()[p] <- NewMessage(note(p.String(), p.String(), p))
					}
				}
				var stop func()
				if row.early {
					send()
					eventually(t, "all wait", func() bool { return lane(g, P1).Received+lane(g, P2).Received+lane(g, P3).Received == 3 })
					stop = flood(t, g)
				} else {
					stop = flood(t, g)
					send()
				}
				eventually(t, "P1, P2 and P3 in the middle of it", func() bool {
					return !slices.ContainsFunc(sinks, func(sink *ledger) bool { return len(sink.ids()) == 0 })
				})
				seen := lane(g, P0).Received
				eventually(t, "the flood goes on", func() bool { return lane(g, P0).Received > seen })
				stop()
				for i, p := range low {
					require.Equal(t, []string{p.String()}, sinks[i].ids())
				}
				require.Equal(t, SessionEnds{}, g.Stats().Ended)
			})
		})
	}
}

func TestFullPool(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "who was due before Run is served though the first call that all of MaxPushers make does not return", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // the reader looks before the pushers have begun
		held := newGate(t)
		g := newGateway(t, "g", GatewayConfig{Pushers: 1, MaxPushers: 1, SessionTimeout: -1})
		var live atomic.Int64
		for _, id := range series("s", 2) {
			join(t, g, id, id, withLive(func() { live.Add(1); <-held.ch }))
		}
		runGateway(t, g)
		pass(5 * time.Second)
		require.Equal(t, int64(2), live.Load())
	})
	for range 10 {
		inBubble(t, "one message that waits for a pusher ends one session and not all", func(t *testing.T) {
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 8, MaxPushers: 8, SweepInterval: time.Hour, SessionTimeout: -1})
			for _, id := range series("stuck", 8) {
				join(t, g, id, id, hooked(held.pass))
				publishTo(t, b, id, P0, id)
			}
			pass(ms)
			_, well := join(t, g, "well", "well")
			publishTo(t, b, "well", P0, "m")
			pass(1500 * ms)
			require.Equal(t, []string{"m"}, well.ids())
			require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
			for _, id := range series("more", 3) {
				join(t, g, id, id)
				publishTo(t, b, id, P0, id)
			}
			pass(1500 * ms)
			require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended, "there is a pusher that does not block")
		})
	}
}

func TestThousandsOfPushers(t *testing.T) {
	inBubble(t, "those that do not return are abandoned in slices, all of them at their time", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1})
		n := 2_000
		for _, id := range series("s", n) {
			join(t, g, id, id, hooked(held.deaf))
		}
		require.NoError(t, b.Publish(notice("m", P3)))
		pass(time.Second)
		g.Gap()
		pass(abandonAfter - 1)
		require.Zero(t, g.Stats().Hung)
		g.pool.mu.Lock()
		require.Equal(t, n, g.pool.ending.n)
		g.pool.mu.Unlock()
		require.Len(t, g.pool.abandon(never), sliceSize, "in one piece")
		pass(1)
		require.Equal(t, uint64(n-sliceSize), g.Stats().Hung)
		held.open()
		pass(time.Second)
	})
}

func TestUrgentBehindAThousandBlocked(t *testing.T) {
	t.Run("in real time, with a thousand Pushes blocked and every CPU busy a P0 gets a pusher", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1, MaxDelay: lanes(time.Duration(-1))})
		held := newGate(t)
		for _, id := range series("stuck", 1_000+8) {
			join(t, g, id, id, hooked(held.deaf))
		}
		came := make(chan time.Time, 1)
		join(t, g, "s", "u", hooked(func(context.Context, []*Message) error { came <- time.Now(); return nil }))
		blocked := func(n int) bool {
			g.pool.mu.Lock()
			defer g.pool.mu.Unlock()
			return g.pool.running.n >= n
		}
		for i, id := range series("stuck", 1_000) {
			publishTo(t, b, id, P1, id)
			if i%100 == 99 {
				eventually(t, "they are blocked", func() bool { return blocked(i + 1) })
			}
		}
		var over atomic.Bool
		var wg sync.WaitGroup
		for range 2 * runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for !over.Load() {
				}
			})
		}
		defer wg.Wait()
		defer over.Store(true)
		for i, id := range series("stuck", 1_000+8)[1_000:] { // whoever is idle is taken, and a P0 needs a new one
			publishTo(t, b, id, P1, id)
			if i%2 == 1 {
				began := time.Now()
				publishTo(t, b, "u", P0, "urgent"+id)
				require.Less(t, (<-came).Sub(began), 10*time.Second, "some 50 ms, but each step waits for a CPU, and so may this process")
			}
		}
	})
}
