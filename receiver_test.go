package notification

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A receiver by itself: the test is the dispatcher.
func TestReceiverAlone(t *testing.T) {
	receive := func() *receiver { return newReceiver("r", newStation("r", 1).Inbox()) }
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}

	t.Run("hand-overs of several lanes go on side by side, and it is idle after the last", func(t *testing.T) {
		r := receive()
		for range NumPriorities {
			require.True(t, r.enter())
		}
		require.Equal(t, receiverSending, r.state.Load())
		for range NumPriorities - 1 {
			r.exit()
			require.Equal(t, receiverSending, r.state.Load())
		}
		r.exit()
		require.Equal(t, receiverIdle, r.state.Load())
		require.False(t, r.left())
	})

	t.Run("one that is idle leaves at once, and cannot be entered", func(t *testing.T) {
		r := receive()
		require.True(t, r.enter())
		r.exit()
		r.leave()
		require.True(t, closed(r.gone))
		require.True(t, r.left())
		require.False(t, r.enter())
		require.Equal(t, receiverGone, r.state.Load())
	})

	inBubble(t, "one that leaves waits for every hand-over to end, and none begins meanwhile", func(t *testing.T) {
		r := receive()
		require.True(t, r.enter())
		require.True(t, r.enter())
		left := make(chan struct{})
		go func() { r.leave(); close(left) }()
		synctest.Wait()
		require.True(t, closed(r.gone), "the dispatcher is told to break off")
		require.True(t, r.left())
		require.False(t, r.enter())
		r.exit()
		synctest.Wait()
		require.False(t, closed(left))
		require.False(t, r.enter())
		r.exit()
		<-left
		require.False(t, r.enter())
		require.Equal(t, receiverGone, r.state.Load())
	})

	t.Run("when leave has returned nothing is sent, whenever it comes", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for range sized(20_000, 3_000) {
				r, ch := receive(), make(chan int, 1)
				var wg sync.WaitGroup
				wg.Go(func() {
					for r.enter() {
						select {
						case ch <- 1: // panics if it is closed
						default:
						}
						r.exit()
					}
				})
				r.leave()
				close(ch)
				wg.Wait()
			}
		})
	})

	t.Run("a global subscriber has one channel for all lanes", func(t *testing.T) {
		r := receive()
		for p := P0; p <= P3; p++ {
			require.Equal(t, p, r.channel(p))
		}
		r.global = true
		for p := P0; p <= P3; p++ {
			require.Equal(t, P0, r.channel(p))
		}
	})

	t.Run("only a Gateway whose Run is going is waited for without end", func(t *testing.T) {
		r, g := receive(), newGateway(t, "g", GatewayConfig{})
		require.False(t, r.patient())
		r.gateway = g
		require.False(t, r.patient(), "nobody runs it")
		done := start(context.Background(), g)
		eventually(t, "Run has begun", r.patient)
		drain(t, g)
		require.NoError(t, <-done)
		require.False(t, r.patient())
	})
}

func TestBudget(t *testing.T) {
	const most = 1000

	t.Run("it is charged while somebody waits, and not between", func(t *testing.T) {
		var b budget
		require.EqualValues(t, 1000, b.left(most, 50))
		b.begin(100)
		require.EqualValues(t, 1000, b.left(most, 100))
		require.EqualValues(t, 700, b.left(most, 400))
		b.end(500)
		require.EqualValues(t, 600, b.left(most, 500))
		require.EqualValues(t, 600, b.left(most, 9000))
		b.begin(10_000)
		require.EqualValues(t, 1, b.left(most, 10_599))
		require.EqualValues(t, 0, b.left(most, 10_600))
		require.EqualValues(t, -1, b.left(most, 10_601))
	})

	t.Run("what several lanes wait for at one time is charged once", func(t *testing.T) {
		var b budget
		b.begin(0)
		b.begin(100)
		b.begin(200)
		require.EqualValues(t, 700, b.left(most, 300))
		b.end(300)
		b.end(400)
		require.EqualValues(t, 500, b.left(most, 500), "one still waits")
		b.end(600)
		require.EqualValues(t, 400, b.left(most, 5000))
	})

	t.Run("once the channel was half empty it has all of it again", func(t *testing.T) {
		var b budget
		b.begin(0)
		b.end(900)
		b.spent = 0 // the channel was half empty
		b.begin(1000)
		require.EqualValues(t, 100, b.left(most, 1900))
	})
}

func TestLeaving(t *testing.T) {
	inBubble(t, "what a receiver was being handed in each lane is broken off and counted, and its channels may be closed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		other := route(t, b, newStation("other", 9), "v")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 2)...)
		}
		publishTo(t, b, "v", P1, "behind")
		synctest.Wait()
		require.Empty(t, other.in[P1])
		began := time.Now()
		require.NoError(t, b.Unregister("r"))
		for _, ch := range s.in {
			close(ch)
		}
		synctest.Wait()
		require.Zero(t, time.Since(began))
		require.Equal(t, []string{"behind"}, ids(other.poll()))
		st := b.Stats()
		require.Equal(t, ReceiverStats{Dropped: 4}, st.Departed)
		for p, l := range st.Lanes {
			require.EqualValues(t, 1, l.Unrouted, "P%d: the second had nowhere to go", p)
		}
		conserved(t, b)
	})

	for p := P0; p <= P3; p++ {
		inBubble(t, "Unregister returns at once if nothing but a "+p.String()+" waits for the receiver", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			route(t, b, newStation("r", 0), "u")
			runBroker(t, b)
			publishTo(t, b, "u", p, "1")
			synctest.Wait()
			began := time.Now()
			require.NoError(t, b.Unregister("r"))
			require.Zero(t, time.Since(began))
			require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		})
	}

	inBubble(t, "the other receivers of a message that was broken off get it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		route(t, b, newStation("a", 0), "u")
		second, third := route(t, b, newStation("b", 9), "u"), route(t, b, newStation("c", 9), "u")
		all := listen(t, b, "all", 9, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2")
		synctest.Wait()
		require.NoError(t, b.Unregister("a"))
		synctest.Wait()
		for _, got := range [][]string{ids(second.poll()), ids(third.poll()), ids(poll(all))} {
			require.Equal(t, []string{"1", "2"}, got)
		}
	})

	inBubble(t, "one that leaves while the message waits for another receiver misses it, counted", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		first, second := route(t, b, newStation("r1", 0), "u"), route(t, b, newStation("r2", 9), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait() // for the first
		require.NoError(t, b.Unregister("r2"))
		for _, ch := range second.in {
			close(ch)
		}
		<-first.in[P1]
		synctest.Wait()
		require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		require.EqualValues(t, 1, receiverStats(t, b, "r1").Handed)
		conserved(t, b)
	})

	inBubble(t, "the counters of one that is leaving are already among those of the departed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait()
		r := b.routes.receivers["r"]
		require.True(t, r.enter()) // a hand-over that goes on for as long as this test likes
		left := make(chan error, 1)
		go func() { left <- b.Unregister("r") }()
		synctest.Wait()
		require.Empty(t, left)
		require.Empty(t, b.Stats().Receivers)
		require.Equal(t, ReceiverStats{Handed: 1}, b.Stats().Departed)
		r.exit()
		require.NoError(t, <-left)
		require.Equal(t, ReceiverStats{Handed: 1}, b.Stats().Departed)
		require.Len(t, s.poll(), 1)
	})

	inBubble(t, "of two Unregisters at once one does it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait()
		results := make(chan error, 2)
		for range 2 {
			go func() { results <- b.Unregister("r") }()
		}
		x, y := <-results, <-results
		if x == nil {
			x, y = y, x
		}
		require.ErrorIs(t, x, ErrUnknownReceiver)
		require.NoError(t, y)
		require.EqualValues(t, 1, b.Stats().Departed.Dropped)
	})

	inBubble(t, "after Run nothing is sent, whatever was in progress", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		for _, ch := range s.in {
			close(ch)
		}
		synctest.Wait()
		require.EqualValues(t, 1, receiverStats(t, b, "r").Dropped)
		require.EqualValues(t, 2, b.Stats().Lanes[P1].Discarded)
		conserved(t, b)
		require.NoError(t, b.Unregister("r"), "which has nobody to wait for")
	})
}

func TestLeavingWaitsForNobody(t *testing.T) {
	inBubble(t, "Unregister waits for no other receiver", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		r1, r2 := route(t, b, newStation("r1", 0), "u"), route(t, b, newStation("r2", 0), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait()
		publishTo(t, b, "v", P0, "2")
		synctest.Wait()
		left := make(chan error, 1)
		go func() { left <- b.Unregister("r1") }() // as r2's consumer might, before it takes the P0
		synctest.Wait()
		require.Len(t, left, 1)
		require.NoError(t, <-left)
		for _, ch := range r1.in {
			close(ch)
		}
		require.Equal(t, []string{"2"}, ids(r2.poll()))
		synctest.Wait()
		conserved(t, b)
	})

	inBubble(t, "Unregister waits for no other receiver during a drain either", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r1, r2 := route(t, b, newStation("r1", 0), "u"), route(t, b, newStation("r2", 0), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait()
		publishTo(t, b, "v", P0, "2")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- b.Shutdown(context.Background()) }()
		pass(time.Minute)
		require.Empty(t, down)
		left := make(chan error, 1)
		go func() { left <- b.Unregister("r1") }()
		synctest.Wait()
		require.Len(t, left, 1)
		require.NoError(t, <-left)
		for _, ch := range r1.in {
			close(ch)
		}
		require.Equal(t, []string{"2"}, ids(r2.poll()))
		require.ErrorIs(t, <-down, ErrClosed, "the drain has dropped one")
		conserved(t, b)
	})

	inBubble(t, "UnsubscribeGlobal waits for no receiver", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		all := listen(t, b, "all", 0, Wait)
		runBroker(t, b)
		publishTo(t, b, "nobody", P1, "1")
		synctest.Wait()
		publishTo(t, b, "u", P0, "2")
		synctest.Wait()
		left := make(chan error, 1)
		go func() { left <- b.UnsubscribeGlobal("all") }()
		synctest.Wait()
		require.Len(t, left, 1)
		require.NoError(t, <-left)
		close(all)
		require.Equal(t, []string{"2"}, ids(s.poll()))
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Departed.Dropped)
		conserved(t, b)
	})

	inBubble(t, "what a global subscriber was being handed is broken off and counted, and its channel may be closed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		ch := listen(t, b, "all", 0, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		synctest.Wait()
		require.NoError(t, b.UnsubscribeGlobal("all"))
		close(ch)
		require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		require.ErrorIs(t, b.UnsubscribeGlobal("all"), ErrUnknownReceiver)
		synctest.Wait()
		require.Zero(t, b.Stats().Lanes[P1].Queued)
	})
}

func TestReceiversComeAndGo(t *testing.T) {
	t.Run("thousands of receivers come, go and close their channels under a flood", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(64)})
			runBroker(t, b)
			var over atomic.Bool
			var wg sync.WaitGroup
			for k := range 2 {
				wg.Go(func() {
					for i := 0; !over.Load(); i++ {
						if b.Publish(note(fmt.Sprint(k, "-", i), fmt.Sprint("u", i%4), Priority(i%NumPriorities))) != nil {
							runtime.Gosched()
						}
					}
				})
			}
			var taken atomic.Uint64
			var comers sync.WaitGroup
			s := seed(t)
			for k := range 4 { // each user has one receiver at a time
				comers.Go(func() {
					r := rand.New(rand.NewPCG(s, uint64(k)))
					for range sized(500, 100) {
						s := newStation(fmt.Sprint("r", k), r.IntN(3))
						if err := b.RegisterReceiver(s); err != nil {
							t.Error(err)
						}
						if err := b.Subscribe(fmt.Sprint("u", k), s.id); err != nil {
							t.Error(err)
						}
						for range r.IntN(4) {
							select {
							case <-s.in[P1]:
							case <-s.in[P2]:
							case <-s.in[P3]:
							case <-s.in[P0]:
							}
							taken.Add(1)
						}
						if err := b.Unregister(s.id); err != nil {
							t.Error(err)
						}
						for _, ch := range s.in {
							close(ch)
							for range ch {
								taken.Add(1)
							}
						}
					}
				})
			}
			finished(t, "receivers", &comers)
			over.Store(true)
			finished(t, "publishers", &wg)
			drain(t, b)
			st := b.Stats()
			require.Equal(t, taken.Load(), st.Departed.Handed)
			var routed uint64
			for _, l := range st.Lanes {
				routed += l.Routed
			}
			require.Equal(t, routed, st.Departed.Handed+st.Departed.Dropped, "nobody had two receivers")
			conserved(t, b)
		})
	})
}
