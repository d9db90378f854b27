package notification

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A machine is a Broker or a Gateway with something to do.
type machine struct {
	runner
	// load gives it three messages of which it can deliver none before release
	// is called, or one at most (which stands in somebody's channel or Push).
	load func(t *testing.T) (release func())
}

func machines() map[string]func(t *testing.T) machine {
	return map[string]func(t *testing.T) machine{
		"Broker": func(t *testing.T) machine {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			return machine{b, func(t *testing.T) func() {
				s := newStation("r", 0)
				require.NoError(t, b.RegisterReceiver(s))
				require.NoError(t, b.Subscribe("u", "r"))
				for _, id := range series("m", 3) {
					require.NoError(t, b.Publish(note(id, "u", P1)))
				}
				open, over := make(chan struct{}), t.Context().Done()
				go func() { // ends with the test
					select {
					case <-open:
						stop := s.consume(func(*Message) {})
						<-over
						stop()
					case <-over:
					}
				}()
				return sync.OnceFunc(func() { close(open) })
			}}
		},
		"Gateway": func(t *testing.T) machine {
			g := newGateway(t, "g", GatewayConfig{BatchSize: 1, SessionTimeout: -1})
			return machine{g, func(t *testing.T) func() {
				open := make(chan struct{})
				_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(func(ctx context.Context, _ []*Message) error {
					select {
					case <-open:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})})
				require.NoError(t, err)
				for _, id := range series("m", 3) {
					g.Inbox()[P1] <- NewMessage(note(id, "u", P1))
				}
				return sync.OnceFunc(func() { close(open) })
			}}
		},
	}
}

// onBoth runs f with a Broker and with a Gateway, each in a bubble.
func onBoth(t *testing.T, name string, f func(t *testing.T, m machine)) {
	for kind, made := range machines() {
		inBubble(t, kind+"/"+name, func(t *testing.T) { f(t, made(t)) })
	}
}

var errStop = errors.New("stop")

func TestLifecycleStart(t *testing.T) {
	t.Run("New starts nothing", func(t *testing.T) {
		before := runtime.NumGoroutine()
		for _, made := range machines() {
			made(t)
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before)
	})

	onBoth(t, "Shutdown before Run returns nil and Run is ErrClosed", func(t *testing.T, m machine) {
		require.NoError(t, m.Shutdown(t.Context()))
		require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
		require.NoError(t, m.Shutdown(t.Context()))
	})

	onBoth(t, "Shutdown before Run has nothing to wait for, so that an ended ctx is no error", func(t *testing.T, m machine) {
		require.NoError(t, m.Shutdown(canceled))
	})

	onBoth(t, "Shutdown before Run discards what waits and says so", func(t *testing.T, m machine) {
		m.load(t)
		require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed)
		require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed, "the second time too")
		require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
	})

	onBoth(t, "a second Run is ErrRunning and the first goes on", func(t *testing.T, m machine) {
		done := start(t.Context(), m)
		synctest.Wait()
		require.ErrorIs(t, m.Run(t.Context()), ErrRunning)
		require.Empty(t, done)
		require.NoError(t, m.Shutdown(t.Context()))
		require.NoError(t, <-done)
	})

	onBoth(t, "a Run after the end is ErrClosed, whatever ended the first", func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := start(ctx, m)
		cancel(errStop)
		require.ErrorIs(t, <-done, errStop)
		require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
	})

	onBoth(t, "of eight Runs at once one runs", func(t *testing.T, m machine) {
		results := make(chan error, 8)
		for range 8 {
			go func() { results <- m.Run(context.Background()) }()
		}
		synctest.Wait()
		require.Len(t, results, 7)
		for range 7 {
			require.ErrorIs(t, <-results, ErrRunning)
		}
		require.NoError(t, m.Shutdown(t.Context()))
		require.NoError(t, <-results)
	})

	onBoth(t, "Run and Shutdown at once end, whichever comes first", func(t *testing.T, m machine) {
		done := start(t.Context(), m)
		require.NoError(t, m.Shutdown(t.Context()))
		if err := <-done; err != nil {
			require.ErrorIs(t, err, ErrClosed)
		}
	})
}

func TestLifecycleDrain(t *testing.T) {
	onBoth(t, "Shutdown of one that idles returns nil at once, and again", func(t *testing.T, m machine) {
		done := start(t.Context(), m)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, m.Shutdown(t.Context()))
		require.NoError(t, <-done)
		require.NoError(t, m.Shutdown(t.Context()))
		require.NoError(t, m.Shutdown(canceled), "what is over needs no ctx")
		require.Zero(t, time.Since(began))
	})

	onBoth(t, "eight Shutdowns at once all return nil when the drain is over", func(t *testing.T, m machine) {
		release := m.load(t)
		done := start(t.Context(), m)
		synctest.Wait()
		results := make(chan error, 8)
		for range 8 {
			go func() { results <- m.Shutdown(context.Background()) }()
		}
		pass(time.Second)
		require.Empty(t, results)
		release()
		for range 8 {
			require.NoError(t, <-results)
		}
		require.NoError(t, <-done)
	})

	onBoth(t, "a drain that is held up for 3 s and goes on loses nothing", func(t *testing.T, m machine) {
		release := m.load(t)
		done := start(t.Context(), m)
		synctest.Wait()
		began := time.Now()
		time.AfterFunc(3*time.Second, release)
		require.NoError(t, m.Shutdown(t.Context()))
		require.Equal(t, 3*time.Second, time.Since(began))
		require.NoError(t, <-done)
	})
}

func TestLifecycleCutShort(t *testing.T) {
	onBoth(t, "the end of Run's ctx stops it and its cause is what Run returns", func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := start(ctx, m)
		pass(time.Minute)
		require.Empty(t, done)
		cancel(errStop)
		require.Equal(t, errStop, <-done)
		require.NoError(t, m.Shutdown(t.Context()), "nothing was lost")
	})

	onBoth(t, "a Run whose ctx has ended returns its cause", func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errStop)
		require.Equal(t, errStop, m.Run(ctx))
	})

	onBoth(t, "a Shutdown after the end of Run's ctx tells that something was lost", func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancel(t.Context())
		m.load(t)
		done := start(ctx, m)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed)
	})

	onBoth(t, "the end of Run's ctx during a drain breaks it off", func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancelCause(t.Context())
		m.load(t)
		done := start(ctx, m)
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- m.Shutdown(context.Background()) }()
		pass(time.Minute)
		require.Empty(t, done)
		require.Empty(t, down)
		cancel(errStop)
		require.Equal(t, errStop, <-done)
		require.ErrorIs(t, <-down, ErrClosed)
	})

	onBoth(t, "a drain that is held up for good ends at the deadline of Shutdown with its error", func(t *testing.T, m machine) {
		m.load(t)
		done := start(t.Context(), m)
		synctest.Wait()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, m.Shutdown(ctx))
		require.Equal(t, 2*time.Second, time.Since(began))
		require.NoError(t, <-done)
		require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed, "afterwards it is known what was lost")
	})

	onBoth(t, "Shutdown with an ended ctx stops at once", func(t *testing.T, m machine) {
		m.load(t)
		done := start(t.Context(), m)
		synctest.Wait()
		began := time.Now()
		require.Equal(t, context.Canceled, m.Shutdown(canceled))
		require.NoError(t, <-done)
		require.Zero(t, time.Since(began))
	})

	onBoth(t, "the first deadline of several Shutdowns ends the drain for all", func(t *testing.T, m machine) {
		m.load(t)
		done := start(t.Context(), m)
		synctest.Wait()
		patient := make(chan error, 1)
		go func() { patient <- m.Shutdown(context.Background()) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, m.Shutdown(ctx))
		require.ErrorIs(t, <-patient, ErrClosed)
		require.NoError(t, <-done)
	})
}

// A lifecycle by itself, without a Broker or a Gateway.
func TestLifecycleAlone(t *testing.T) {
	t.Run("it runs from start to settle, and is closing from shut on", func(t *testing.T) {
		l := newLifecycle()
		require.False(t, l.running())
		require.NoError(t, l.start())
		require.True(t, l.running())
		require.False(t, l.closing())
		require.False(t, l.shut(), "Run does what there is to do")
		require.True(t, l.closing())
		require.False(t, l.stopped())
		require.True(t, l.running())
		l.settle()
		require.False(t, l.running())
		require.NoError(t, l.finish())
	})

	t.Run("it starts once, and not after shut", func(t *testing.T) {
		l := newLifecycle()
		require.NoError(t, l.start())
		require.ErrorIs(t, l.start(), ErrRunning)
		l.settle()
		require.NoError(t, l.finish())
		require.ErrorIs(t, l.start(), ErrClosed)

		l = newLifecycle()
		require.True(t, l.shut())
		require.ErrorIs(t, l.start(), ErrClosed)
	})

	t.Run("of several calls of shut before start one has to finish", func(t *testing.T) {
		l := newLifecycle()
		require.True(t, l.shut())
		require.False(t, l.shut())
		<-l.draining
	})

	t.Run("finish returns the first cause, and shut is none", func(t *testing.T) {
		l, first := newLifecycle(), errors.New("first")
		require.NoError(t, l.start())
		l.shut()
		l.cut(first)
		l.cut(errors.New("second"))
		<-l.stopping
		require.True(t, l.stopped())
		require.True(t, l.closing())
		l.settle()
		require.Equal(t, first, l.finish())
	})

	t.Run("only what is lost between shut and finish counts", func(t *testing.T) {
		l := newLifecycle()
		require.NoError(t, l.start())
		l.lose(1)
		l.shut()
		l.lose(2)
		l.lose(0)
		l.lose(-1)
		l.lose(3)
		l.settle()
		require.NoError(t, l.finish())
		l.lose(4)
		require.EqualValues(t, 5, l.lost.Load())
		require.ErrorIs(t, l.wait(canceled, func() {}), ErrClosed, "what is over needs no ctx")
	})

	inBubble(t, "wait ends with finish, or cuts it short when ctx ends and is back when the losses are counted", func(t *testing.T) {
		l := newLifecycle()
		require.NoError(t, l.start())
		l.shut()
		patient := make(chan error, 1)
		go func() { patient <- l.wait(context.Background(), func() { t.Error("nothing to rouse") }) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		roused := 0
		hasty := make(chan error, 1)
		go func() { hasty <- l.wait(ctx, func() { roused++ }) }()
		pass(time.Second - 1)
		require.False(t, l.stopped())
		pass(1)
		require.True(t, l.stopped())
		require.Equal(t, 1, roused)
		require.Empty(t, hasty, "what is lost is not counted yet")
		l.settle()
		require.Equal(t, context.DeadlineExceeded, <-hasty)
		synctest.Wait()
		require.Empty(t, patient)
		require.NoError(t, l.finish())
		require.NoError(t, <-patient, "nothing was lost")
	})

	t.Run("to rouse twice what sleeps is to rouse it once, and blocks nobody", func(t *testing.T) {
		wake := make(chan struct{}, 1)
		rouse(wake)
		rouse(wake)
		<-wake
		require.Empty(t, wake)
	})
}
