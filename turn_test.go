package notification

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// woken reports whether f, and what follows from it, wakes the reader.
func woken(g *Gateway, f func()) bool {
	synctest.Wait()
	before := g.reader.turn.naps.Load()
	f()
	synctest.Wait()
	return g.reader.turn.naps.Load() != before
}

func TestTurn(t *testing.T) {
	inBubble(t, "a P0 does not wake the reader", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{HistoryMessages: 1024})
		s, sink := join(t, g, "s", "u")
		require.True(t, woken(g, func() { publishTo(t, b, "u", P0, "0") }), "only the first")
		for _, id := range []string{"1", "2"} {
			require.False(t, woken(g, func() { publishTo(t, b, "u", P0, id) }))
		}
		require.Equal(t, []string{"0", "1", "2"}, sink.ids())
		require.Equal(t, GatewayLane{Received: 3, Enqueued: 3, Taken: 3}, lane(g, P0))

		cursor := s.Cursor()
		require.NoError(t, s.Close())
		require.True(t, woken(g, func() { publishTo(t, b, "u", P0, "3") }), "there is nobody to give it to")
		_, again := join(t, g, "again", "u", func(cfg *SessionConfig, _ *ledger) { cfg.After = cursor })
		synctest.Wait()
		require.Equal(t, []string{"3"}, again.ids(), "it is numbered and kept all the same")
		drain(t, b)
		drain(t, g)
	})

	inBubble(t, "one that the filter does not admit is counted", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u", func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{ChannelSystem} })
		publishTo(t, b, "u", P0, "first")
		require.False(t, woken(g, func() { publishTo(t, b, "u", P0, "filtered") }))
		require.Empty(t, sink.ids())
		require.Equal(t, GatewayLane{Received: 2, Filtered: 2}, lane(g, P0))
		drain(t, b)
		drain(t, g)
	})

	inBubble(t, "another lane's does, unless it waits for no company", func(t *testing.T) {
		for p := P1; p <= P3; p++ {
			var delays [NumPriorities]time.Duration
			delays[p] = -1
			for _, cfg := range []GatewayConfig{{}, {MaxDelay: delays}} {
				b, g := pair(t, BrokerConfig{}, cfg)
				_, sink := join(t, g, "s", "u")
				publishTo(t, b, "u", p, "a")
				pass(time.Second)
				require.Equal(t, cfg.MaxDelay[p] == 0, woken(g, func() { publishTo(t, b, "u", p, "b") }))
				pass(time.Second)
				require.Equal(t, []string{"a", "b"}, sink.ids())
				drain(t, b)
				drain(t, g)
			}
		}
	})

	for name, f := range map[string]func(t *testing.T, b *Broker, g *Gateway){
		"for all users": func(t *testing.T, b *Broker, g *Gateway) {
			require.NoError(t, b.Publish(notice("all", P0)))
		},
		"for a user with two sessions": func(t *testing.T, b *Broker, g *Gateway) {
			join(t, g, "second", "u")
			publishTo(t, b, "u", P0, "both")
		},
		"for somebody who is not there": func(t *testing.T, b *Broker, g *Gateway) {
			require.NoError(t, b.Subscribe("nobody", "g"))
			publishTo(t, b, "nobody", P0, "gone")
		},
		"for a session without space": func(t *testing.T, b *Broker, g *Gateway) {
			gate := newGate(t)
			join(t, g, "busy", "v", hooked(gate.pass))
			publishTo(t, b, "v", P0, "in the Push")
			synctest.Wait()
			publishTo(t, b, "v", P0, series("waits-", g.cfg.OutboxMessages)...)
			require.True(t, woken(g, func() { publishTo(t, b, "v", P0, "one more") }))
			gate.open()
		},
		"behind another": func(t *testing.T, b *Broker, g *Gateway) {
			n, err := b.PublishBatch([]*Notification{note("a", "u", P0), note("b", "u", P0)})
			require.Equal(t, 2, n)
			require.NoError(t, err)
		},
	} {
		inBubble(t, "one "+name+" goes through the reader", func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			_, sink := join(t, g, "s", "u")
			publishTo(t, b, "u", P0, "first")
			require.True(t, woken(g, func() { f(t, b, g) }))
			publishTo(t, b, "u", P0, "last")
			synctest.Wait()
			got := sink.ids()
			require.Equal(t, "last", got[len(got)-1])
			drain(t, b)
			drain(t, g)
		})
	}

	t.Run("those that go both ways keep their order", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{OutboxMessages: 1 << 20})
			const users = 3
			sinks := make([]*ledger, users)
			for u := range sinks {
				_, sinks[u] = join(t, g, fmt.Sprint(u), fmt.Sprint(u))
			}
			r := rand.New(rand.NewPCG(seed(t), 0))
			var want [users][]string
			for i := 0; i < sized(100_000, 20_000); {
				burst := make([]*Notification, 1+r.IntN(3))
				for k := range burst {
					u := r.IntN(users)
					id := fmt.Sprintf("%d-%d", u, i)
					want[u] = append(want[u], id)
					burst[k] = note(id, fmt.Sprint(u), P0)
					i++
				}
				for len(burst) > 0 {
					n, err := b.PublishBatch(burst)
					if burst = burst[n:]; err != nil {
						require.ErrorIs(t, err, ErrQueueFull)
						runtime.Gosched()
					}
				}
				for range r.IntN(100) { // the reader falls asleep, or is about to
					runtime.Gosched()
				}
			}
			drain(t, b)
			drain(t, g)
			for u, sink := range sinks {
				if got := sink.ids(); !slices.Equal(want[u], got) {
					t.Fatalf("user %d: %d of %d, in another order", u, len(got), len(want[u]))
				}
			}
			require.NotZero(t, g.reader.turn.naps.Load())
		})
	})

	t.Run("one that came as the reader fell asleep, and with which it has yet to wake up, is not overtaken", func(t *testing.T) {
		noLeaks(t)
		var stage atomic.Int32 // of the race: not yet, about to sleep, about to wake up, over
		var at [3]func()
		pause = func(p point) {
			switch {
			case p == dozing && stage.CompareAndSwap(1, 2):
				at[1]()
			case p == waking && stage.CompareAndSwap(2, 3):
				at[2]()
			}
		}
		t.Cleanup(func() { pause = nil })
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		handed := func(n uint64, id string) func() {
			return func() {
				publishTo(t, b, "u", P0, id)
				eventually(t, "it is handed over", func() bool { return b.Stats().Receivers[0].Handed == n })
			}
		}
		asleep := func() bool { return g.reader.turn.naps.Load()%2 == 1 }
		handed(1, "a")() // wakes the reader
		eventually(t, "it sleeps again", func() bool { return len(sink.ids()) == 1 && asleep() })
		handed(2, "b")() // does not
		at[1], at[2] = handed(3, "c"), handed(4, "d")
		stage.Store(1)
		rouse(g.wake)
		eventually(t, "all", func() bool { return len(sink.ids()) == 4 })
		require.EqualValues(t, 3, stage.Load())
		require.Equal(t, "a b c d", strings.Join(sink.ids(), " "))
		drain(t, b)
		drain(t, g)
	})

	t.Run("nothing is taken while something is in the way", func(t *testing.T) {
		for name, bar := range map[string]func(g *Gateway){
			"nothing":                              func(*Gateway) {},
			"the reader, which is awake":           func(g *Gateway) { g.reader.turn.mu.Lock() },
			"one that the reader has in its sleep": func(g *Gateway) { g.reader.turn.naps.Store(1) },
			"one in the inbox":                     func(g *Gateway) { g.inbox[P0] <- NewMessage(note("before", "u", P0)) },
			"one that was handed over":             func(g *Gateway) { g.reader.complete(NewMessage(note("before", "u", P0))) },
			"one at the head of the lane":          func(g *Gateway) { g.reader.lanes[P0].m = NewMessage(note("before", "u", P0)) },
			"the debt of the lane":                 func(g *Gateway) { g.pool.throttled[P0].Store(true) },
			"the end":                              func(g *Gateway) { g.reader.draining = true },
		} {
			g := newGateway(t, "g", GatewayConfig{})
			_, _ = join(t, g, "s", "u")
			g.reader.turn.naps.Store(3) // as if the reader slept, for the second time
			g.reader.turn.mu.Unlock()
			bar(g)
			require.Equal(t, name == "nothing", g.reader.tryTake(NewMessage(note("a", "u", P0)), 1), name)
			require.Equal(t, name == "nothing", lane(g, P0).Enqueued == 1, name)
		}
	})

	t.Run("what an earlier registration has sent counts", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		g.reader.turn.naps.Store(7)
		require.NoError(t, b.RegisterGateway(g))
		r, _ := b.routes.receiver("g")
		require.Equal(t, lanes[uint64](7), r.sent)
		require.NoError(t, b.Unregister("g"))
		g.reader.turn.naps.Store(8) // awake, and perhaps about to sleep
		require.NoError(t, b.RegisterGateway(g))
		r, _ = b.routes.receiver("g")
		require.Equal(t, lanes[uint64](9), r.sent)
	})

	inBubble(t, "a Gateway that comes back goes on where it was", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, old := join(t, g, "s", "u")
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, b.Unregister("g"))
		require.NoError(t, b.RegisterGateway(g))
		synctest.Wait()
		_, reason := old.ended()
		require.ErrorIs(t, reason, ErrGap)
		_, sink := join(t, g, "t", "u")
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.Equal(t, "a b", strings.Join(append(old.ids(), sink.ids()...), " "))
		drain(t, b)
		drain(t, g)
	})
}
