package natslog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// An engine commits trades to a journal of its own and publishes them, as OUTBOX.md
// says: it remembers up to where all are in the log, and begins there when it is
// started again.
type engine struct {
	journal []*notification.Notification // what was committed; survives

	mu     sync.Mutex
	mark   int          // guarded by mu; survives: all before it are in the log
	beyond map[int]bool // guarded by mu: those behind it that are, too
}

// acknowledged is what done says of entry i of the journal.
func (e *engine) acknowledged(i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.beyond[i] = true
	for e.beyond[e.mark] {
		delete(e.beyond, e.mark)
		e.mark++
	}
}

// run publishes the journal from the mark on until ctx ends.
func (e *engine) run(ctx context.Context, t *testing.T, l *Log, commit func() bool) {
	p, err := l.NewPublisher(PublisherConfig{BlockBytes: 1 << 10, QueueCapacity: all(100)})
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) }) // ends with ctx
	defer wg.Wait()
	natstest.Eventually(t, "it runs", func() bool { return running(p.life) }) // a Shutdown before would discard
	e.mu.Lock()
	e.beyond = make(map[int]bool)
	next := e.mark
	e.mu.Unlock()
	for ctx.Err() == nil && (next < len(e.journal) || commit()) {
		i := next
		err := p.Publish(e.journal[i], func(err error) {
			if err == nil {
				e.acknowledged(i)
			}
		})
		switch {
		case err == nil:
			next++
		case errors.Is(err, notification.ErrQueueFull):
			<-time.After(100 * time.Microsecond)
		default:
			require.ErrorIs(t, err, notification.ErrClosed)
			return
		}
	}
	p.Shutdown(ctx)
}

func TestOutbox(t *testing.T) {
	r := seed(t)
	s := natstest.Start(t, natstest.Config{})
	// What may be repeated is what was accepted and is not below the mark: the lane's
	// capacity, and what the other engine stores between the two.
	cfg := Config{URL: s.URL, MaxBytes: 64 << 20, DedupSize: 1000}
	l := open(t, cfg)
	e := &engine{}
	var committed atomic.Int64
	commit := func() bool {
		i := len(e.journal)
		e.journal = append(e.journal, note(fmt.Sprint("trade-", i), fmt.Sprint("user", i%3), notification.P1))
		committed.Add(1)
		return true
	}
	for range 30 {
		ctx, kill := context.WithCancel(t.Context())
		until := committed.Load() + int64(r.IntN(400))
		go func() { // ends soon after
			for committed.Load() < until && ctx.Err() == nil {
				<-time.After(100 * time.Microsecond)
			}
			kill()
		}()
		e.run(ctx, t, l, commit)
		kill()
	}
	e.run(patient(t), t, l, func() bool { return false })
	require.Equal(t, len(e.journal), e.mark)

	var want []string
	for _, n := range e.journal {
		want = append(want, n.ID)
	}
	w, repeats := newWindow(cfg.DedupSize), 0
	var got []string
	for _, id := range ids(t, l, notification.P1, 0) {
		if w.repeat(id) {
			repeats++
		} else {
			got = append(got, id)
		}
	}
	require.Equal(t, want, got, "all that was committed, once, in order")
	require.NotZero(t, repeats, "it was killed with something on its way")
}
