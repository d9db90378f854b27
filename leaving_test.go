package notification

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLeavingTwice(t *testing.T) {
	inBubble(t, "a drain takes what is being handed over to a Gateway that somebody else unregisters", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{StallTimeout: time.Hour}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1, MaxDelay: lanes(time.Duration(-1))})
		require.NoError(t, b.RegisterGateway(g))
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P1, "1", "2")
		hold, atPark := make(chan struct{}), make(chan struct{})
		var once sync.Once
		pause = func(p point) {
			if p == parking && receiverStatsOf(b, "g").Handed == 1 { // 2 is being handed over
				once.Do(func() { close(atPark); <-hold })
			}
		}
		t.Cleanup(func() { pause = nil })
		runBroker(t, b)
		<-atPark
		left, down := make(chan error, 1), make(chan error, 1)
		go func() { left <- b.Unregister("g") }()
		synctest.Wait()
		runGateway(t, g)
		synctest.Wait()
		go func() { down <- g.Shutdown(context.Background()) }()
		synctest.Wait()
		close(hold)
		require.NoError(t, <-left)
		require.NoError(t, <-down)
		require.Equal(t, []string{"1", "2"}, sink.ids())
		require.EqualValues(t, 2, b.Stats().Departed.Handed)
		require.Zero(t, len(g.inbox[P1]))
	})

	t.Run("no route stays for a Gateway that two unregister at once", func(t *testing.T) {
		noLeaks(t)
		b := newBroker(t, BrokerConfig{})
		stop := make(chan struct{})
		var busy sync.WaitGroup
		other := newStation("other", 1)
		require.NoError(t, b.RegisterReceiver(other))
		for k := range 2 {
			busy.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = b.Subscribe(fmt.Sprint("x", k), "other")
						_ = b.Unsubscribe(fmt.Sprint("x", k), "other")
					}
				}
			})
		}
		give := time.Now().Add(2 * time.Second)
		for i := 0; time.Now().Before(give); i++ {
			g := newGateway(t, "g", GatewayConfig{})
			require.NoError(t, b.RegisterGateway(g))
			require.NoError(t, b.Subscribe("u", "g"))
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() { _ = b.Unregister("g") })
			}
			both.Wait()
			_, there := b.routes.users.Load("u")
			if there {
				t.Errorf("round %d: a route to a Gateway that has left", i)
				break
			}
		}
		close(stop)
		busy.Wait()
	})
}

func receiverStatsOf(b *Broker, id string) ReceiverStats {
	for _, r := range b.Stats().Receivers {
		if r.ID == id {
			return r
		}
	}
	return ReceiverStats{}
}

func TestBackAtABroker(t *testing.T) {
	inBubble(t, "what a Gateway was being handed when it left does not come behind what is published after it is back", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{StallTimeout: time.Hour}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		join(t, g, "before", "u")
		publishTo(t, b, "u", P1, "1", "2")
		synctest.Wait()
		require.NoError(t, b.Unregister("g"))
		require.NoError(t, b.RegisterGateway(g))
		_, sink := join(t, g, "after", "u")
		publishTo(t, b, "u", P1, "3")
		synctest.Wait()
		runGateway(t, g)
		pass(time.Second)
		got := sink.ids()
		require.Equal(t, "3", got[len(got)-1], "%v", got)
		conserved(t, b)
	})
}

func TestStopDuringUnregister(t *testing.T) {
	t.Run("nothing is sent to a Gateway whose Run has returned", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		eventually(t, "Run is going", g.life.running)
		r := g.roster.receiver
		b.routes.mu.Lock() // Unregister stands still in the middle
		unlock := sync.OnceFunc(b.routes.mu.Unlock)
		defer unlock()
		var wg sync.WaitGroup
		wg.Go(func() { g.detach(r) })
		eventually(t, "the Gateway is leaving", func() bool {
			g.roster.mu.Lock()
			defer g.roster.mu.Unlock()
			return g.roster.left
		})
		wg.Go(func() { _ = g.Shutdown(context.Background()) })
		select {
		case <-done:
			require.NoError(t, b.Publish(notice("m", P0)))
			eventually(t, "the message has been routed", func() bool { return b.dispatch.routed[P0].value()+b.dispatch.unrouted[P0].value() > 0 })
			require.Empty(t, g.inbox[P0])
		case <-time.After(100 * time.Millisecond):
		}
		unlock()
		finished(t, "Unregister and Shutdown", &wg)
	})
}
