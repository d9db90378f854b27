package notification

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// abandonAfter is how long a call of user code (Push, Live, Close, Gap) may go
// on after it should have ended. Then nobody waits for it any longer.
const abandonAfter = time.Second

// A lifecycle is what Broker and Gateway have in common: started at most once,
// drained by Shutdown, cut short by a ctx.
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

	// atomic
	going    atomic.Bool   // Run is going
	stop     atomic.Bool   // stopping is closed, for loops to look at
	shutting atomic.Bool   // draining is closed or Run has been cut short
	over     atomic.Bool   // done is closed
	lost     atomic.Uint64 // messages discarded or dropped since shutting
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
		return fmt.Errorf("%w: Run comes too late", ErrClosed)
	case l.started:
		return ErrRunning
	}
	l.started = true
	l.going.Store(true)
	return nil
}

// shut begins the drain. It reports true, once, if there is no Run that would
// do it: the caller settles and finishes.
func (l *lifecycle) shut() (orphaned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.draining:
	default:
		l.shutting.Store(true)
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
	if !l.stop.Load() {
		l.cause = cause
		l.shutting.Store(true)
		l.stop.Store(true)
		close(l.stopping)
	}
}

// wait is the end of Shutdown: until all is done, or until ctx ends and cuts it
// short.
func (l *lifecycle) wait(ctx context.Context, rouse func()) error {
	select {
	case <-l.done: // even if ctx has ended as well
	default:
		select {
		case <-l.done:
		case <-ctx.Done():
			l.cut(nil)
			rouse()
			<-l.settled // soon: no user code is waited for
			return ctx.Err()
		}
	}
	if n := l.lost.Load(); n > 0 {
		return fmt.Errorf("%w: %d messages were lost on the way down", ErrClosed, n)
	}
	return nil
}

// settle says that whatever is lost has been counted.
func (l *lifecycle) settle() {
	l.going.Store(false)
	close(l.settled)
}

// finish is the end of Run, and what it returns.
func (l *lifecycle) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.over.Store(true)
	close(l.done)
	return l.cause
}

// running reports whether Run is going.
func (l *lifecycle) running() bool { return l.going.Load() }

// closing reports whether the end has begun, stopped whether it is to be at once.
func (l *lifecycle) closing() bool { return l.shutting.Load() }
func (l *lifecycle) stopped() bool { return l.stop.Load() }

// lose counts n messages that the end did not deliver. What is lost after the
// end, in a call that was abandoned, has been counted.
func (l *lifecycle) lose(n int) {
	if n > 0 && l.closing() && !l.over.Load() {
		l.lost.Add(uint64(n))
	}
}

// rouse wakes whoever sleeps on a channel of capacity 1.
func rouse(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default: // it has been told
	}
}

// pause lets tests act in the middle of a race; it is nil otherwise. None of
// its points is passed for every message.
var pause func(point)

type point int

const (
	parking point = iota // the dispatcher has said that it sleeps, and will look once more
	joining              // PublishWait has found its lane full, and will wait
	closing              // Shutdown has refused what comes, and will drain
)

func pauseAt(p point) {
	if pause != nil {
		pause(p)
	}
}
