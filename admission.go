package notification

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// An admission is the entrance of a Broker: the window of IDs and the four
// lanes. To see that an ID is new, to find room, to queue and to remember is
// one step, and to close the entrance is another, so that nothing is accepted
// behind a drain.
type admission struct {
	// immutable after newAdmission
	lanes [NumPriorities]*queue // whoever holds mu is the producer, the dispatcher is the consumer
	full  [NumPriorities]error  // what a full lane answers, made once: a flood of it must be cheap

	// mu is held for some 100 ns, never while waiting. No other lock is taken
	// under it.
	mu        sync.Mutex
	closed    bool                     // guarded by mu
	seen      *dedup                   // guarded by mu
	waiters   [NumPriorities]list.List // guarded by mu: of *waiter
	published [NumPriorities]uint64    // guarded by mu
	rejected  [NumPriorities]uint64    // guarded by mu
	repeated  uint64                   // guarded by mu
	refused   uint64                   // guarded by mu

	// atomic
	waiting [NumPriorities]atomic.Int32 // the lengths of waiters, for the dispatcher to look at
}

// A waiter is a PublishWait that found its lane full.
type waiter struct {
	m    *Message
	hash uint32
	done chan struct{} // closed when served, after err is set

	elem *list.Element // guarded by mu: nil once served
	err  error         // guarded by mu, then by done
}

func newAdmission(dedupSize int, capacity [NumPriorities]int) *admission {
	a := &admission{seen: newDedup(dedupSize)}
	for p := range a.lanes {
		a.lanes[p] = newQueue(capacity[p])
		a.full[p] = fmt.Errorf("%w: lane %s holds %d", ErrQueueFull, Priority(p), capacity[p])
	}
	return a
}

// admit accepts m, or returns ErrClosed or ErrQueueFull. It never blocks.
func (a *admission) admit(m *Message) error {
	h := a.seen.hash(m.n.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.admitLocked(m, h)
}

// admitLocked is admit. mu is held.
func (a *admission) admitLocked(m *Message, h uint32) error {
	done, err := a.tryAdmit(m, h, m.entered)
	if !done {
		a.rejected[m.priority]++
		err = a.full[m.priority]
	}
	return err
}

// admitAll is admit for several, in one step: it returns how many of them, from
// the first on, were accepted, and why the next one was not.
func (a *admission) admitAll(ms []*Message) (accepted int, err error) {
	var hashes [sliceSize]uint32
	for i, m := range ms {
		hashes[i] = a.seen.hash(m.n.ID)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, m := range ms {
		if err := a.admitLocked(m, hashes[i]); err != nil {
			return i, err
		}
	}
	return len(ms), nil
}

// admitWait is admit that waits for room until ctx ends.
func (a *admission) admitWait(ctx context.Context, m *Message) error {
	p := m.priority
	w := &waiter{m: m, hash: a.seen.hash(m.n.ID), done: make(chan struct{})}
	a.mu.Lock()
	done, err := a.tryAdmit(m, w.hash, m.entered)
	if !done {
		pauseAt(joining)
		w.elem = a.waiters[p].PushBack(w)
		// The dispatcher looks at waiting after it has made room. Either it sees
		// this or the second look sees the room; without it a waiter that came
		// between the two would be stranded in a lane that has just run empty.
		a.waiting[p].Add(1)
		a.serve(p)
	}
	a.mu.Unlock()
	if done {
		return err
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.elem == nil { // served while ctx ended: the message is in
		return w.err
	}
	a.answer(w, nil)
	a.rejected[p]++
	return ctx.Err()
}

// tryAdmit is the one step: refuse, or recognize, or queue and remember. It
// reports false, having changed nothing, if there is no room. mu is held.
func (a *admission) tryAdmit(m *Message, h uint32, at int64) (done bool, err error) {
	p := m.priority
	if a.closed {
		a.refused++
		return true, ErrClosed
	}
	if a.seen.has(h, m.n.ID) {
		a.repeated++
		return true, nil
	}
	if a.waiting[p].Load() > 0 {
		if a.serve(p); a.waiting[p].Load() > 0 {
			return false, nil
		}
	}
	return a.push(m, h, at), nil
}

// push queues and remembers m if there is room. mu is held.
func (a *admission) push(m *Message, h uint32, at int64) bool {
	if !a.lanes[m.priority].tryPush(m) {
		return false
	}
	a.seen.add(h, m.n.ID, at)
	a.published[m.priority]++
	return true
}

// serve answers the waiters of a lane as far as there is room. mu is held.
func (a *admission) serve(p Priority) {
	for e := a.waiters[p].Front(); e != nil; e = a.waiters[p].Front() {
		w := e.Value.(*waiter)
		switch {
		case a.closed:
			a.refused++
			a.answer(w, ErrClosed)
		case a.seen.has(w.hash, w.m.n.ID): // somebody else's retry came first
			a.repeated++
			a.answer(w, nil)
		case a.push(w.m, w.hash, now()): // it may have waited for long
			a.answer(w, nil)
		default:
			return
		}
	}
}

// answer takes w off its list with this result. mu is held.
func (a *admission) answer(w *waiter, err error) {
	a.waiters[w.m.priority].Remove(w.elem)
	a.waiting[w.m.priority].Add(-1)
	w.elem, w.err = nil, err
	close(w.done)
}

// pop takes the next message of a lane, nil if there is none, and lets a waiter
// have its place. Only the dispatcher calls it.
func (a *admission) pop(p Priority) *Message {
	m := a.lanes[p].pop()
	if m != nil && a.waiting[p].Load() > 0 {
		a.mu.Lock()
		a.serve(p)
		a.mu.Unlock()
	}
	return m
}

// empty reports whether no lane holds anything. It is final once close was
// called.
func (a *admission) empty() bool {
	for _, q := range a.lanes {
		if q.len() > 0 {
			return false
		}
	}
	return true
}

// close makes every call from now on ErrClosed, and those that wait too.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for p := range a.waiters {
		a.serve(Priority(p))
	}
}

// stats fills in what admission counts.
func (a *admission) stats(s *BrokerStats) {
	a.mu.Lock()
	for p := range s.Lanes {
		s.Lanes[p].Published, s.Lanes[p].Rejected = a.published[p], a.rejected[p]
	}
	s.Deduplicated, s.RefusedClosed = a.repeated, a.refused
	if at, ok := a.seen.oldest(); ok {
		s.DedupSpan = time.Duration(now() - at)
	}
	a.mu.Unlock()
	for p, q := range a.lanes {
		s.Lanes[p].Queued = q.len()
	}
}
