package settle

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestWait(t *testing.T) {
	lanes := []notification.Priority{notification.P0, notification.P1, notification.P2, notification.P3}
	// waiting has published three of P1, and waits for a Gateway that does not run.
	waiting := func(t *testing.T, f func(b *notification.Broker, g *notification.Gateway, run func(func(context.Context) error), done chan error)) {
		synctest.Test(t, func(t *testing.T) {
			b, err := notification.NewBroker(notification.BrokerConfig{})
			require.NoError(t, err)
			g, err := notification.NewGateway("g", notification.GatewayConfig{})
			require.NoError(t, err)
			require.NoError(t, b.RegisterGateway(g))
			_, err = g.RegisterSession(notification.SessionConfig{ID: "s", UserID: "alice", Sink: notification.SinkFunc(func(context.Context, []*notification.Message) error { return nil })})
			require.NoError(t, err)
			var running sync.WaitGroup
			run := func(f func(context.Context) error) { running.Go(func() { _ = f(context.Background()) }) }
			run(b.Run)
			for range 3 {
				require.NoError(t, b.Publish(notification.New("alice", notification.OrderFilled{}, "test")))
			}
			done := make(chan error, 1)
			running.Go(func() { done <- Wait(t.Context(), b, g, lanes...) })
			synctest.Wait()
			require.Empty(t, done)
			f(b, g, run, done)
			require.NoError(t, b.Shutdown(context.Background()))
			_ = g.Shutdown(context.Background()) // has lost something if it never ran
			running.Wait()
		})
	}
	t.Run("all that was published before has been received, in each lane", func(t *testing.T) {
		waiting(t, func(_ *notification.Broker, g *notification.Gateway, run func(func(context.Context) error), done chan error) {
			run(g.Run)
			require.NoError(t, <-done)
			stats := g.Stats()
			for _, lane := range lanes {
				want := 1
				if lane == notification.P1 {
					want = 4
				}
				require.EqualValues(t, want, stats.Lanes[lane].Received, lane)
			}
			require.Equal(t, 1, stats.Sessions, "its own is gone")
		})
	})
	t.Run("a Gateway that ends its sessions", func(t *testing.T) {
		waiting(t, func(_ *notification.Broker, g *notification.Gateway, _ func(func(context.Context) error), done chan error) {
			g.Gap()
			require.ErrorIs(t, <-done, notification.ErrGap)
		})
	})
	t.Run("a Broker that takes nothing, or a session that cannot be", func(t *testing.T) {
		waiting(t, func(b *notification.Broker, g *notification.Gateway, run func(func(context.Context) error), done chan error) {
			run(g.Run)
			require.NoError(t, <-done)
			require.NoError(t, b.Shutdown(context.Background()))
			require.ErrorIs(t, Wait(t.Context(), b, g, lanes...), notification.ErrClosed)
			require.NoError(t, g.Shutdown(context.Background()))
			require.ErrorIs(t, Wait(t.Context(), b, g, lanes...), notification.ErrClosed)
		})
	})
}
