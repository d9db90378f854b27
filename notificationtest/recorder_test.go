package notificationtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestRecorder(t *testing.T) {
	t.Run("it keeps what it gets, and not the slice", func(t *testing.T) {
		r := NewRecorder(t)
		batch := messages(notification.P0, notification.P0, notification.P1)
		all := append([]*notification.Message(nil), batch...)
		require.NoError(t, r.Push(t.Context(), batch))
		clear(batch)
		got := r.Messages()
		require.Equal(t, all, got)
		clear(got)
		require.Equal(t, all, r.Messages())
	})
	everywhere(t, "many may use it at once", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { publish(t, p.Broker, "alice", trades(100)...) })
			wg.Go(func() {
				alice.Messages()
				alice.Delay(0)
			})
		}
		alice.Wait(t, 400)
		wg.Wait()
	})

	for _, test := range []struct {
		name, want string
		f          func(r *Recorder)
	}{
		{"an empty batch", "an empty batch", func(r *Recorder) {
			_ = r.Push(context.Background(), nil)
		}},
		{"a batch that is not in the order of the lanes", "highest lane", func(r *Recorder) {
			_ = r.Push(context.Background(), messages(notification.P1, notification.P2, notification.P0))
		}},
		{"a Push after Close", "a Push after Close", func(r *Recorder) {
			r.Close(notification.ErrSessionClosed)
			_ = r.Push(context.Background(), messages(notification.P0))
		}},
		{"two Pushes at once", "two calls of Push at once", func(r *Recorder) {
			blocked, release := r.Block()
			var wg sync.WaitGroup
			wg.Go(func() { _ = r.Push(context.Background(), messages(notification.P0)) })
			<-blocked
			ended, cancel := context.WithCancel(context.Background())
			cancel() // so that this one does not wait
			_ = r.Push(ended, messages(notification.P0))
			release()
			wg.Wait()
		}},
		{"a Close during a Push", "a Close during a Push", func(r *Recorder) {
			blocked, release := r.Block()
			var wg sync.WaitGroup
			wg.Go(func() { _ = r.Push(context.Background(), messages(notification.P0)) })
			<-blocked
			r.Close(notification.ErrSessionClosed)
			release()
			wg.Wait()
		}},
		{"a second Close", "a second Close", func(r *Recorder) {
			r.Close(notification.ErrSessionClosed)
			r.Close(notification.ErrSessionClosed)
		}},
		{"a Close without a reason", "without a reason", func(r *Recorder) {
			r.Close(nil)
		}},
	} {
		t.Run(test.name+" fails the test", func(t *testing.T) {
			fails(t, func(t testing.TB) { test.f(NewRecorder(t)) }, test.want)
		})
	}
	t.Run("to be the sink of two sessions fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			r := NewRecorder(t)
			for _, id := range []string{"1", "2"} {
				_, err := p.Gateway.RegisterSession(notification.SessionConfig{ID: id, UserID: "alice", Sink: r})
				require.NoError(t, err)
			}
		}, "a second Close")
	})
}

func TestConnect(t *testing.T) {
	everywhere(t, "a user may have several sessions, and each gets everything", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		first, second := Connect(t, p.Gateway, "alice"), Connect(t, p.Gateway, "alice")
		publish(t, p.Broker, "alice", trades(2)...)
		first.Wait(t, 2)
		second.Wait(t, 2)
	})
	t.Run("a Gateway that takes no session fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{Gateway: notification.GatewayConfig{MaxSessions: 1}})
			Connect(t, p.Gateway, "alice")
			Connect(t, p.Gateway, "bob")
		}, `"bob"`, notification.ErrTooManySessions.Error())
	})
}

func TestWait(t *testing.T) {
	everywhere(t, "it returns all there is when there is enough", func(t *testing.T) {
		r := NewRecorder(t)
		require.Empty(t, r.Wait(t, 0))
		require.NoError(t, r.Push(t.Context(), messages(notification.P0, notification.P1)))
		require.Len(t, r.Wait(t, 1), 2)
	})
	inBubble(t, "it waits as long as it takes", func(t *testing.T) {
		r := NewRecorder(t)
		for i := range 3 {
			time.AfterFunc(time.Duration(i+1)*time.Second, func() { _ = r.Push(t.Context(), messages(notification.P0)) })
		}
		start := time.Now()
		require.Len(t, r.Wait(t, 3), 3)
		require.Equal(t, 3*time.Second, time.Since(start))
	})
	inBubble(t, "too few fail the test after 30 s", func(t *testing.T) {
		start := time.Now()
		fails(t, func(t testing.TB) {
			r := NewRecorder(t)
			_ = r.Push(context.Background(), messages(notification.P0))
			r.Wait(t, 2)
		}, "1 messages, not 2", "within 30s", `"trade_id":"1"`)
		require.Equal(t, 30*time.Second, time.Since(start))
	})
	t.Run("the end of the recording fails the test at once", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			r := NewRecorder(t)
			r.Close(notification.ErrSlowConsumer)
			r.Wait(t, 1)
		}, notification.ErrSlowConsumer.Error(), "nothing")
	})
	t.Run("of many messages a failure shows the last 20", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			r := NewRecorder(t)
			for range 21 {
				_ = r.Push(context.Background(), messages(notification.P0, notification.P0))
			}
			r.Close(notification.ErrSessionClosed)
			r.Wait(t, 43)
		}, "42 messages", "22 more")
	})
}

func TestWaitClose(t *testing.T) {
	everywhere(t, "it returns why the session ended", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		p.Gateway.Gap()
		require.Equal(t, notification.ErrGap, alice.WaitClose(t))
	})
	inBubble(t, "a session that lives on fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) { NewRecorder(t).WaitClose(t) }, "within 30s")
	})
}

func TestBlock(t *testing.T) {
	everywhere(t, "Push waits until it is released", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		blocked, release := alice.Block()
		publish(t, p.Broker, "alice", trades(1)...)
		<-blocked
		require.Empty(t, alice.Messages())
		release()
		release()
		alice.Wait(t, 1)
		publish(t, p.Broker, "alice", trades(1)...)
		alice.Wait(t, 2)
	})
	everywhere(t, "Push waits until the session ends", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		blocked, _ := alice.Block()
		publish(t, p.Broker, "alice", trades(1)...)
		<-blocked
		p.Gateway.Gap()
		require.Equal(t, notification.ErrGap, alice.WaitClose(t))
		require.Empty(t, alice.Messages())
	})
	everywhere(t, "Push waits until the test ends, and nothing is lost", func(t *testing.T) {
		var alice *Recorder
		require.Empty(t, failuresOf(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			alice = Connect(t, p.Gateway, "alice")
			alice.Block()
			p.Published.Block()
			publish(t, p.Broker, "alice", trades(200)...)
		}))
		require.Len(t, alice.Messages(), 200)
	})
	inBubble(t, "a session that stays blocked is slow", func(t *testing.T) {
		p := NewPipeline(t, Config{Gateway: notification.GatewayConfig{OutboxMessages: 4, BatchSize: 1}})
		alice := Connect(t, p.Gateway, "alice")
		blocked, _ := alice.Block()
		publish(t, p.Broker, "alice", trades(1)...)
		<-blocked
		for range 20 {
			publish(t, p.Broker, "alice", trades(1)...)
			<-time.After(time.Second)
		}
		require.Equal(t, notification.ErrSlowConsumer, alice.WaitClose(t))
	})
	everywhere(t, "while Published is blocked, Publish comes to say that the queue is full", func(t *testing.T) {
		p := NewPipeline(t, Config{Broker: notification.BrokerConfig{QueueCapacity: lanes(1)}})
		blocked, release := p.Published.Block()
		publish(t, p.Broker, "alice", trades(1)...)
		<-blocked
		accepted := 1
		var err error
		for err == nil {
			if err = p.Broker.Publish(notification.New("alice", notification.TradeExecuted{}, "test")); err == nil {
				accepted++
			}
		}
		require.ErrorIs(t, err, notification.ErrQueueFull)
		release()
		p.Shutdown(t)
		require.Len(t, p.Published.Messages(), accepted)
	})
	everywhere(t, "a Delay, a Fail or another Block takes its place", func(t *testing.T) {
		r := NewRecorder(t)
		_, release := r.Block()
		r.Fail(nil)
		require.NoError(t, r.Push(t.Context(), messages(notification.P0)))
		release()
	})
}

func TestDelay(t *testing.T) {
	inBubble(t, "each Push takes so long", func(t *testing.T) {
		p := NewPipeline(t, Config{Gateway: notification.GatewayConfig{BatchSize: 1}})
		alice := Connect(t, p.Gateway, "alice")
		alice.Delay(time.Second)
		start := time.Now()
		publish(t, p.Broker, "alice", trades(3)...)
		alice.Wait(t, 3)
		require.Equal(t, 3*time.Second, time.Since(start))
		alice.Delay(0)
		publish(t, p.Broker, "alice", trades(1)...)
		alice.Wait(t, 4)
		require.Equal(t, 3*time.Second, time.Since(start))
	})
	inBubble(t, "it ends with the session", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		alice.Delay(time.Hour)
		publish(t, p.Broker, "alice", trades(1)...)
		synctest.Wait()
		p.Gateway.Gap()
		require.Equal(t, notification.ErrGap, alice.WaitClose(t))
	})
}

func TestFail(t *testing.T) {
	everywhere(t, "the session ends with the error, and nothing of the batch is recorded", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		broken := errors.New("broken pipe")
		alice.Fail(broken)
		publish(t, p.Broker, "alice", trades(1)...)
		require.Equal(t, broken, alice.WaitClose(t))
		require.Empty(t, alice.Messages())
	})
	t.Run("to make Published fail fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			p.Published.Fail(errors.New("broken pipe"))
			publish(t, p.Broker, "alice", trades(1)...)
		}, "Published must not fail", "broken pipe")
	})
}
