package natslog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A machine is what has a Run and a Shutdown, with something to do.
type machine struct {
	run      func(context.Context) error
	shutdown func(context.Context) error
	life     *lifecycle
	// load gives it three notifications of which it can put none into the log before
	// release is called.
	load func(t *testing.T) (release func())
	told func() int // how many it has told what became of them
}

// newMachine returns a Publisher whose connections are cut.
func newMachine(t *testing.T, s *natstest.Server) machine {
	proxy := natstest.NewProxy(t, s.URL)
	l := open(t, Config{URL: proxy.URL, MaxBytes: 4 << 20})
	p, err := l.NewPublisher(PublisherConfig{BlockBytes: 1 << 10})
	require.NoError(t, err)
	r := newResults()
	t.Cleanup(func() {
		p.Shutdown(canceled())
		natstest.Eventually(t, "Run has ended", func() bool {
			select {
			case <-p.life.done:
				return true
			default:
				return false
			}
		})
		conserved(t, p)
	})
	return machine{p.Run, p.Shutdown, p.life, func(t *testing.T) func() {
		proxy.Cut()
		natstest.Eventually(t, "the connection notices", func() bool { return !l.bulk.nc.IsConnected() })
		for i := range 3 {
			id := fmt.Sprint("m", i)
			require.NoError(t, p.Publish(note(id, "alice", notification.P1), r.done(id)))
		}
		return proxy.Mend
	}, func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.told)
	}}
}

// begin runs m.
func (m machine) begin(t *testing.T, ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }() // ends with Shutdown at the end of the test
	natstest.Eventually(t, "it runs", func() bool { return running(m.life) })
	return done
}

// still fails if something comes; there is no event for what does not.
func still[T any](t *testing.T, ch <-chan T) {
	t.Helper()
	select {
	case v := <-ch:
		t.Fatalf("there came %v", v)
	case <-time.After(20 * time.Millisecond):
	}
}

func TestLifecycle(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	errStop := errors.New("stop")
	for name, f := range map[string]func(t *testing.T, m machine){
		"Shutdown before Run returns nil, even with an ended ctx, and Run is ErrClosed": func(t *testing.T, m machine) {
			require.NoError(t, m.shutdown(canceled()))
			require.ErrorIs(t, m.run(t.Context()), notification.ErrClosed)
			require.NoError(t, m.shutdown(t.Context()))
		},
		"Shutdown before Run discards what waits, tells it and says so": func(t *testing.T, m machine) {
			m.load(t)
			require.ErrorIs(t, m.shutdown(patient(t)), notification.ErrClosed)
			require.Equal(t, 3, m.told())
			require.ErrorIs(t, m.shutdown(t.Context()), notification.ErrClosed, "the second time too")
			require.ErrorIs(t, m.run(t.Context()), notification.ErrClosed)
		},
		"a second Run is ErrRunning and the first goes on": func(t *testing.T, m machine) {
			done := m.begin(t, t.Context())
			require.ErrorIs(t, m.run(t.Context()), notification.ErrRunning)
			still(t, done)
			require.NoError(t, m.shutdown(patient(t)))
			require.NoError(t, <-done)
		},
		"a Run after the end is ErrClosed, whatever ended the first": func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := m.begin(t, ctx)
			cancel(errStop)
			require.ErrorIs(t, <-done, errStop)
			require.ErrorIs(t, m.run(t.Context()), notification.ErrClosed)
		},
		"of eight Runs at once one runs": func(t *testing.T, m machine) {
			results := make(chan error, 8)
			for range 8 {
				go func() { results <- m.run(context.Background()) }() // ends with Shutdown
			}
			for range 7 {
				require.ErrorIs(t, <-results, notification.ErrRunning)
			}
			require.NoError(t, m.shutdown(patient(t)))
			require.NoError(t, <-results)
		},
		"Run and Shutdown at once end both": func(t *testing.T, m machine) {
			done := make(chan error, 1)
			go func() { done <- m.run(context.Background()) }() // ends with Shutdown
			require.NoError(t, m.shutdown(patient(t)))
			if err := <-done; err != nil {
				require.ErrorIs(t, err, notification.ErrClosed)
			}
		},
		"Shutdown of one that idles returns nil, and again": func(t *testing.T, m machine) {
			done := m.begin(t, t.Context())
			require.NoError(t, m.shutdown(patient(t)))
			require.NoError(t, <-done)
			require.NoError(t, m.shutdown(canceled()), "what is over needs no ctx")
		},
		"eight Shutdowns at once all return nil when the drain is over, and all was told": func(t *testing.T, m machine) {
			release := m.load(t)
			done := m.begin(t, t.Context())
			results := make(chan error, 8)
			for range 8 {
				go func() { results <- m.shutdown(context.Background()) }() // ends with the drain
			}
			still(t, results)
			release()
			for range 8 {
				require.NoError(t, <-results)
				require.Equal(t, 3, m.told())
			}
			require.NoError(t, <-done)
		},
		"a Run whose ctx has ended returns its cause": func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errStop)
			require.Equal(t, errStop, m.run(ctx))
			require.NoError(t, m.shutdown(t.Context()), "nothing was lost")
		},
		"a Shutdown after the end of Run's ctx tells that something was lost": func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancel(t.Context())
			m.load(t)
			done := m.begin(t, ctx)
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
			require.Equal(t, 3, m.told())
			require.ErrorIs(t, m.shutdown(t.Context()), notification.ErrClosed)
		},
		"the end of Run's ctx during a drain breaks it off": func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			m.load(t)
			done := m.begin(t, ctx)
			down := make(chan error, 1)
			go func() { down <- m.shutdown(context.Background()) }() // ends with Run
			still(t, down)
			cancel(errStop)
			require.Equal(t, errStop, <-done)
			require.ErrorIs(t, <-down, notification.ErrClosed)
		},
		"a drain that is held up for good ends at the deadline of Shutdown with its error": func(t *testing.T, m machine) {
			m.load(t)
			done := m.begin(t, t.Context())
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			require.Equal(t, context.DeadlineExceeded, m.shutdown(ctx))
			require.NoError(t, <-done)
			require.ErrorIs(t, m.shutdown(t.Context()), notification.ErrClosed, "afterwards it is known what was lost")
		},
		"the first deadline of several Shutdowns ends the drain for all": func(t *testing.T, m machine) {
			m.load(t)
			done := m.begin(t, t.Context())
			patience := make(chan error, 1)
			go func() { patience <- m.shutdown(context.Background()) }() // ends with the other
			still(t, patience)
			require.Equal(t, context.Canceled, m.shutdown(canceled()))
			require.ErrorIs(t, <-patience, notification.ErrClosed)
			require.NoError(t, <-done)
		},
	} {
		t.Run(name, func(t *testing.T) { f(t, newMachine(t, s)) })
	}
}

func TestPublisherEnd(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("what is queued is told ErrClosed, what is on its way ErrUncertain as well", func(t *testing.T) {
		p, _, _ := cutOff(t, s, "end", 2, PublisherConfig{})
		r := newResults()
		alice := partitionOf("alice", 2)
		require.NoError(t, p.Publish(note("sent", "alice", notification.P1), r.done("sent")))
		taken(t, p, notification.P1, alice)
		waiting := make(chan error, 1)
		go func() { waiting <- p.PublishWait(context.Background(), note("wait", "alice", notification.P1)) }() // ends with Shutdown
		natstest.Eventually(t, "it waits", func() bool { return p.Stats().Lanes[notification.P1].Queued == 2 })
		require.NoError(t, p.Publish(note("queued", "alice", notification.P1), r.done("queued")))
		require.NoError(t, p.Publish(note("all", notification.AllUsers, notification.P1), r.done("all")))
		taken(t, p, notification.P1, 1-alice)
		require.Equal(t, context.Canceled, p.Shutdown(canceled()))
		require.ErrorIs(t, <-waiting, notification.ErrClosed)
		require.ElementsMatch(t, []string{"sent: " + errOnItsWay.Error(), "queued: " + errLeft.Error(), "all: " + errOnItsWay.Error()}, r.await(t, 3))
		require.ErrorIs(t, errOnItsWay, ErrUncertain)
		require.ErrorIs(t, errOnItsWay, notification.ErrClosed)
		require.NotErrorIs(t, errLeft, ErrUncertain)
		lane := p.Stats().Lanes[notification.P1]
		require.EqualValues(t, 2, lane.Uncertain)
		require.EqualValues(t, 2, lane.Discarded)
		require.Zero(t, lane.Queued)
		require.ErrorIs(t, p.Publish(note("late", "alice", notification.P1), nil), notification.ErrClosed)
		require.ErrorIs(t, p.Publish(note("late", notification.AllUsers, notification.P1), nil), notification.ErrClosed)
		require.ErrorIs(t, p.PublishWait(t.Context(), note("late", "alice", notification.P1)), notification.ErrClosed)
		require.EqualValues(t, 3, p.Stats().RefusedClosed)
	})

	t.Run("a copy for AllUsers that is nowhere on its way is told ErrClosed", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "nowhere", Partitions: 2, MaxBytes: 4 << 20})
		p, err := l.NewPublisher(PublisherConfig{})
		require.NoError(t, err)
		r := newResults()
		require.NoError(t, p.Publish(note("all", notification.AllUsers, notification.P1), r.done("all")))
		require.ErrorIs(t, p.Shutdown(t.Context()), notification.ErrClosed)
		require.Equal(t, []string{"all: " + errLeft.Error()}, r.await(t, 1))
		require.EqualValues(t, 1, p.Stats().Lanes[notification.P1].Discarded)
		conserved(t, p)
	})

	t.Run("a Shutdown does not wait for a callback that hangs once its ctx has ended", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "hangs", MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{})
		hang, hanging := make(chan struct{}), make(chan struct{})
		require.NoError(t, p.Publish(note("a", "alice", notification.P1), func(error) { close(hanging); <-hang }))
		<-hanging
		require.NoError(t, p.Publish(note("b", "alice", notification.P1), nil))
		require.Equal(t, context.Canceled, p.Shutdown(canceled()))
		lane := p.Stats().Lanes[notification.P1]
		require.EqualValues(t, 1, lane.Acknowledged)
		require.EqualValues(t, 1, lane.Discarded)
		close(hang)
	})

	t.Run("a Log that is closed ends it with an error", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "closed", MaxBytes: 4 << 20})
		p, err := l.NewPublisher(PublisherConfig{})
		require.NoError(t, err)
		r := newResults()
		require.NoError(t, p.Publish(note("a", "alice", notification.P1), r.done("a")))
		require.NoError(t, l.Close())
		require.ErrorIs(t, p.Run(t.Context()), notification.ErrClosed)
		require.Len(t, r.await(t, 1), 1)
		conserved(t, p)
	})

	t.Run("a Log that is closed while it runs ends it with an error", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "closed", MaxBytes: 4 << 20})
		p, err := l.NewPublisher(PublisherConfig{})
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- p.Run(context.Background()) }() // ends with the Log
		require.NoError(t, p.PublishWait(patient(t), note("a", "alice", notification.P1)))
		require.NoError(t, l.Close())
		p.Publish(note("b", "alice", notification.P1), nil) // refused, or counted
		require.ErrorIs(t, <-done, notification.ErrClosed)
		conserved(t, p)
	})

	t.Run("publishing and ending at once, nothing is lost from the count", func(t *testing.T) {
		for range 20 {
			l := open(t, Config{URL: s.URL, Name: "race", Partitions: 3, MaxBytes: 4 << 20})
			p, err := l.NewPublisher(PublisherConfig{BlockBytes: 1 << 10})
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { p.Run(ctx) }) // ends with cancel
			var mu sync.Mutex
			calls, told, taken := 0, 0, 0
			for g := range 4 {
				wg.Go(func() { // ends soon after cancel
					for i := 0; ; i++ {
						user := fmt.Sprint("user", i)
						if i%5 == 0 {
							user = notification.AllUsers
						}
						n := note(fmt.Sprint(g, "-", i), user, notification.Priority(i%4))
						var err error
						if i%2 == 0 {
							err = p.Publish(n, func(error) { mu.Lock(); told++; mu.Unlock() })
							if err == nil {
								mu.Lock()
								taken++
								mu.Unlock()
							}
						} else {
							wait, stop := context.WithTimeout(context.Background(), time.Duration(i%7)*100*time.Microsecond)
							err = p.PublishWait(wait, n)
							stop()
						}
						mu.Lock()
						calls++
						mu.Unlock()
						if errors.Is(err, notification.ErrClosed) {
							return
						}
					}
				})
			}
			natstest.Eventually(t, "some are in the log", func() bool { return p.Stats().Lanes[notification.P1].Acknowledged > 20 })
			cancel()
			wg.Wait()
			conserved(t, p)
			st := p.Stats()
			sum := st.Invalid + st.RefusedClosed
			for _, lane := range st.Lanes {
				require.Zero(t, lane.Queued)
				sum += lane.Accepted + lane.Rejected
			}
			require.EqualValues(t, calls, sum)
			require.Equal(t, taken, told)
			require.NoError(t, l.Close())
		}
	})
}
