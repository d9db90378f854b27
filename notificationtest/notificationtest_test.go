package notificationtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestPipeline(t *testing.T) {
	everywhere(t, "what is published reaches the session of the user, and Published", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice, bob := Connect(t, p.Gateway, "alice"), Connect(t, p.Gateway, "bob")
		publish(t, p.Broker, "alice", trades(3)...)
		publish(t, p.Broker, "carol", notification.RiskAlert{})
		require.Equal(t, trades(3), payloadsOf(alice.Wait(t, 3)))
		require.Len(t, p.Published.Wait(t, 4), 4)
		p.Shutdown(t)
		require.Empty(t, bob.Messages())
	})
	everywhere(t, "a test that ends at once loses nothing", func(t *testing.T) {
		var alice *Recorder
		require.Empty(t, failuresOf(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			alice = Connect(t, p.Gateway, "alice")
			publish(t, p.Broker, "alice", trades(100)...)
		}))
		require.Equal(t, trades(100), payloadsOf(alice.Messages()))
	})
	inBubble(t, "nothing waits for company, and no session expires", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		start := time.Now()
		for i, payload := range []notification.Payload{notification.OrderExpired{}, notification.AccountUpdate{}, notification.TradeExecuted{}, notification.RiskAlert{}} {
			publish(t, p.Broker, "alice", payload)
			alice.Wait(t, i+1)
		}
		require.Zero(t, time.Since(start))
		<-time.After(24 * time.Hour)
		publish(t, p.Broker, "alice", notification.RiskAlert{})
		alice.Wait(t, 5)
	})
	inBubble(t, "no receiver is stuck, even if somebody sits at a debugger", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		_, release := p.Published.Block()
		publish(t, p.Broker, "alice", trades(100)...)
		<-time.After(50 * time.Minute)
		release()
		p.Published.Wait(t, 100)
	})
	inBubble(t, "what Config says is kept", func(t *testing.T) {
		var cfg Config
		cfg.Broker.QueueCapacity = lanes(3)
		cfg.Gateway.MaxDelay[notification.P1] = time.Second
		cfg.Gateway.SessionTimeout = time.Minute
		p := NewPipeline(t, cfg)
		require.Equal(t, 3, p.Broker.Stats().Lanes[notification.P1].Capacity)
		alice := Connect(t, p.Gateway, "alice")
		start := time.Now()
		publish(t, p.Broker, "alice", notification.TradeExecuted{})
		alice.Wait(t, 1)
		require.Equal(t, time.Second, time.Since(start))
		<-time.After(2 * time.Minute)
		require.Equal(t, notification.ErrSessionExpired, alice.WaitClose(t))
	})
	t.Run("a Config that cannot be fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) { NewPipeline(t, Config{Broker: notification.BrokerConfig{DedupSize: -1}}) }, "Config.Broker", "DedupSize")
		fails(t, func(t testing.TB) { NewPipeline(t, Config{Gateway: notification.GatewayConfig{BatchSize: -1}}) }, "Config.Gateway", "BatchSize")
	})
	inBubble(t, "what a receiver does not take before the end fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			require.NoError(t, p.Broker.RegisterReceiver(deaf{}))
			require.NoError(t, p.Broker.Subscribe("alice", "deaf"))
			publish(t, p.Broker, "alice", notification.TradeExecuted{})
		}, "the Broker", context.DeadlineExceeded.Error())
	})
	inBubble(t, "what a sink does not take before the end fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			_, err := p.Gateway.RegisterSession(notification.SessionConfig{ID: "s", UserID: "alice",
				Sink: notification.SinkFunc(func(ctx context.Context, _ []*notification.Message) error { <-ctx.Done(); return ctx.Err() })})
			require.NoError(t, err)
			publish(t, p.Broker, "alice", notification.TradeExecuted{})
		}, `Gateway "gateway"`, context.DeadlineExceeded.Error())
	})
	inBubble(t, "what a sink refuses on the way down fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			_, err := p.Gateway.RegisterSession(notification.SessionConfig{ID: "s", UserID: "alice",
				Sink: notification.SinkFunc(func(context.Context, []*notification.Message) error {
					<-time.After(time.Second)
					return errors.New("no")
				})})
			require.NoError(t, err)
			publish(t, p.Broker, "alice", notification.TradeExecuted{})
		}, `Gateway "gateway"`, "lost")
	})
	t.Run("a counter that does not fit fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			p.Gateway.Inbox()[notification.P0] <- messages(notification.P0)[0] // not from the Broker
		}, "Handed 0 is not Received 1")
	})
	inBubble(t, "a test that has failed is ended at once, and nothing more is reported", func(t *testing.T) {
		start := time.Now()
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			require.NoError(t, p.Broker.RegisterReceiver(deaf{}))
			require.NoError(t, p.Broker.Subscribe("alice", "deaf"))
			publish(t, p.Broker, "alice", notification.TradeExecuted{})
			t.Fatalf("enough")
		}, "enough")
		require.Zero(t, time.Since(start))
	})
}

func TestPipelineShutdown(t *testing.T) {
	everywhere(t, "it delivers all that was accepted and ends every recording", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		publish(t, p.Broker, "alice", trades(100)...)
		p.Shutdown(t)
		require.Len(t, alice.Messages(), 100)
		require.Len(t, p.Published.Messages(), 100)
		require.Equal(t, notification.ErrGatewayClosed, alice.WaitClose(t))
		require.Equal(t, notification.ErrClosed, p.Published.WaitClose(t))
		require.ErrorIs(t, p.Broker.Publish(notification.New("alice", notification.RiskAlert{}, "test")), notification.ErrClosed)
		p.Shutdown(t)
	})
	inBubble(t, "it waits for a Published that is slow", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		p.Published.Delay(time.Second)
		publish(t, p.Broker, "alice", trades(10)...)
		p.Shutdown(t)
		require.Len(t, p.Published.Messages(), 10)
	})
	inBubble(t, "it reports what is lost, and the end of the test does not say it again", func(t *testing.T) {
		for _, who := range []string{"a session", "Published"} {
			reported := false
			fails(t, func(t testing.TB) {
				p := NewPipeline(t, Config{})
				r := p.Published
				if who == "a session" {
					r = Connect(t, p.Gateway, "alice")
				}
				r.Block()
				publish(t, p.Broker, "alice", trades(100)...)
				p.Shutdown(t)
				reported = t.Failed()
			}, context.DeadlineExceeded.Error())
			require.True(t, reported)
		}
	})
}

// A deaf receiver takes nothing.
type deaf struct{}

func (deaf) ID() string { return "deaf" }
func (deaf) Gap()       {}

func (deaf) Inbox() (in notification.Inbox) {
	for p := range in {
		in[p] = make(chan *notification.Message)
	}
	return in
}

func TestStart(t *testing.T) {
	newBroker := func(t testing.TB) *notification.Broker {
		b, err := notification.NewBroker(notification.BrokerConfig{})
		require.NoError(t, err)
		return b
	}
	newGateway := func(t testing.TB, id string) *notification.Gateway {
		g, err := notification.NewGateway(id, notification.GatewayConfig{})
		require.NoError(t, err)
		return g
	}
	everywhere(t, "it runs a Broker with several gateways", func(t *testing.T) {
		b, g, h := newBroker(t), newGateway(t, "g"), newGateway(t, "h")
		require.NoError(t, b.RegisterGateway(g))
		require.NoError(t, b.RegisterGateway(h))
		Start(t, b, g, h)
		first, second := Connect(t, g, "alice"), Connect(t, h, "alice")
		publish(t, b, "alice", trades(2)...)
		first.Wait(t, 2)
		second.Wait(t, 2)
	})
	everywhere(t, "it runs a Broker alone, and a Gateway that the test feeds", func(t *testing.T) {
		b, g := newBroker(t), newGateway(t, "g")
		Start(t, b)
		Start(t, nil, g)
		alice := Connect(t, g, "alice")
		g.Inbox()[notification.P0] <- messages(notification.P0)[0]
		alice.Wait(t, 1)
	})
	everywhere(t, "the test may shut down itself, and register a Gateway again", func(t *testing.T) {
		b, g := newBroker(t), newGateway(t, "g")
		require.NoError(t, b.RegisterGateway(g))
		Start(t, b, g)
		alice := Connect(t, g, "alice")
		publish(t, b, "alice", trades(1)...)
		alice.Wait(t, 1)
		require.NoError(t, b.Unregister("g"))
		require.NoError(t, b.RegisterGateway(g))
		require.ErrorIs(t, alice.WaitClose(t), notification.ErrGap)
		alice = Connect(t, g, "alice")
		publish(t, b, "alice", trades(1)...)
		alice.Wait(t, 1)
		require.NoError(t, b.Shutdown(t.Context()))
		require.NoError(t, g.Shutdown(t.Context()))
	})
	t.Run("what has stopped before fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			b := newBroker(t)
			require.NoError(t, b.Shutdown(context.Background()))
			Start(t, b)
		}, "Broker", "closed")
	})
	everywhere(t, "what somebody else runs fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			b := newBroker(t)
			Start(t, b)
			Start(t, b)
		}, "Run of *notification.Broker returned")
	})
	inBubble(t, "to lose something on the way down fails the test, whoever shuts down", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			b, g := newBroker(t), newGateway(t, "g")
			require.NoError(t, b.RegisterGateway(g))
			Start(t, b, g)
			alice := Connect(t, g, "alice")
			alice.Block()
			publish(t, b, "alice", trades(1)...)
			synctest.Wait()
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			require.ErrorIs(t, g.Shutdown(ended), context.Canceled)
		}, `Gateway "g"`, "lost")
	})
}

func TestPatience(t *testing.T) {
	t.Run("it is 30 s", func(t *testing.T) {
		require.Equal(t, 30*time.Second, patience(&fakeTB{TB: t}))
	})
	t.Run("it ends before the test binary does", func(t *testing.T) {
		d := patience(deadlineTB{t, time.Now().Add(10 * time.Second)})
		require.Less(t, d, 10*time.Second)
		require.Greater(t, d, time.Duration(0))
	})
	inBubble(t, "it is 30 s of the bubble's time", func(t *testing.T) {
		require.Equal(t, 30*time.Second, patience(t))
	})
}

// A deadlineTB has a deadline of its own.
type deadlineTB struct {
	testing.TB
	end time.Time
}

func (t deadlineTB) Deadline() (time.Time, bool) { return t.end, true }
