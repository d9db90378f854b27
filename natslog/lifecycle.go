package natslog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/qaexchange/notification"
)

// A lifecycle is Run and Shutdown as they are for a Broker and a Gateway: started
// at most once, drained by Shutdown, cut short by a ctx.
type lifecycle struct {
	mu      sync.Mutex
	started bool  // guarded by mu: Run was called
	ended   bool  // guarded by mu: Run has returned, or will never be called
	cause   error // guarded by mu: why Run was cut short; nil for Shutdown

	// immutable
	draining chan struct{} // closed by shut
	stopping chan struct{} // closed by cut: everything that waits lets go
	settled  chan struct{} // closed by settle: what is lost has been counted
	done     chan struct{} // closed by finish: every goroutine is gone

	lost atomic.Uint64 // notifications that the end left outside of the log, or may have
}

func newLifecycle() *lifecycle {
	return &lifecycle{
		draining: make(chan struct{}), stopping: make(chan struct{}),
		settled: make(chan struct{}), done: make(chan struct{}),
	}
}

// start is the beginning of Run.
func (l *lifecycle) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return fmt.Errorf("%w: Run comes too late", notification.ErrClosed)
	case l.started:
		return notification.ErrRunning
	}
	l.started = true
	return nil
}

// shut begins the drain. It reports true, once, if there is no Run that would do
// it: the caller settles and finishes.
func (l *lifecycle) shut() (orphaned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.draining:
	default:
		close(l.draining)
	}
	if l.started || l.ended {
		return false
	}
	l.ended = true
	return true
}

// cut stops at once, for the first of the causes that come.
func (l *lifecycle) cut(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.stopping:
	default:
		l.cause = cause
		close(l.stopping)
	}
}

// wait is the end of Shutdown: until all is done, or until ctx ends and cuts it
// short.
func (l *lifecycle) wait(ctx context.Context) error {
	select {
	case <-l.done: // even if ctx has ended as well
	default:
		select {
		case <-l.done:
		case <-ctx.Done():
			l.cut(nil)
			<-l.settled // soon: neither the network nor user code is waited for
			return ctx.Err()
		}
	}
	if n := l.lost.Load(); n > 0 {
		return fmt.Errorf("%w: %d notifications were left on the way down", notification.ErrClosed, n)
	}
	return nil
}

// settle says that whatever is lost has been counted.
func (l *lifecycle) settle() { close(l.settled) }

// finish is the end of Run, and what it returns.
func (l *lifecycle) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.done)
	return l.cause
}

// rouse wakes whoever sleeps on a channel of capacity 1.
func rouse(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default: // it has been told
	}
}
