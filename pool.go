package notification

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A session that has been due for so long, with no pusher idle, asks for
	// more pushers.
	growAfter       = time.Millisecond
	growAfterUrgent = 100 * time.Microsecond // in P0

	growMost = 1024 // pushers at once: thousands would keep everybody else from a CPU

	// A pusher gives up its CPU from time to time. If it then waits for so long,
	// CPUs are missing, and more pushers would not help: they wait for one too.
	// (A pusher whose sinks block does not get as far as to give up its CPU.)
	cpuMissing    = 50 * time.Microsecond
	cpuMissingFor = time.Second // after the last time that one waited
	// While CPUs are missing the pool doubles after a time that grows with it, and
	// much later if doubling it the last time has not helped: a busy machine is
	// not given ever more goroutines.
	cpuPatience   = 10 * time.Millisecond
	helplessTimes = 16
)

// A pushPool holds the sessions that are due, and the pushers that take them.
// Its lock is a leaf, held for some ten nanoseconds.
//
// What waits in the sessions that are due is the Gateway's debt.
type pushPool struct {
	// immutable after newPushPool
	keep int           // pushers that stay while nothing is due
	most int           // pushers there may be
	wake chan struct{} // rouses the reader

	debts

	mu       sync.Mutex
	cond     sync.Cond // of mu: a pusher is needed
	due      [NumPriorities]dueList
	n        int   // sessions in due
	turns    turns // of the lists in due
	size     int   // pushers, without the abandoned ones
	idle     int   // of those, how many sleep
	started  int   // pushers ever
	returns  uint64
	opened   bool // pushers may be started
	draining bool // the reader waits until all is quiet
	closed   bool // pushers go when nothing is due
	finished bool // and are gone
	watched  bool // the reader knows that sessions wait for a pusher
	woken    bool // a pusher was, for a P0, and the reader has yet to ask
	callTable
	growth

	starvedAt atomic.Int64 // when a pusher last found that CPUs are missing
}

// A growth is what the pool knows of how it grew. It is guarded by pushPool.mu.
type growth struct {
	grownAt       int64   // when it last grew, or nothing had to wait
	grownReturns  uint64  // what pushPool.returns was then
	grownRate     float64 // returns per ns before that
	sampleAt      int64   // when returns was looked at
	sampleReturns uint64  // and what it was
	stillAt       int64   // since when it has not changed, the pool has not grown and somebody has waited
}

// dueLink is a session's place in one of the lists of sessions that are due. It
// is guarded by pushPool.mu.
type dueLink struct {
	next, prev *Session
	in         *dueList
	at         int64 // since when
}

type dueList struct {
	first, last *Session
	n           int
}

func (l *dueList) pushBack(s *Session) {
	s.due.in, s.due.prev, s.due.next = l, l.last, nil
	if l.last != nil {
		l.last.due.next = s
	} else {
		l.first = s
	}
	l.last = s
	l.n++
}

func (l *dueList) remove(s *Session) {
	if s.due.prev != nil {
		s.due.prev.due.next = s.due.next
	} else {
		l.first = s.due.next
	}
	if s.due.next != nil {
		s.due.next.due.prev = s.due.prev
	} else {
		l.last = s.due.prev
	}
	s.due.in, s.due.next, s.due.prev = nil, nil, nil
	l.n--
}

func newPushPool(keep, most int, limit int64, wake chan struct{}) *pushPool {
	q := &pushPool{keep: keep, most: most, wake: wake, debts: debts{limit: limit, wake: wake}}
	q.cond.L = &q.mu
	q.starvedAt.Store(now() - int64(cpuMissingFor))
	return q
}

// add makes a session due in a lane from at on.
func (q *pushPool) add(s *Session, p Priority, at int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(s, p, at)
}

func (q *pushPool) addLocked(s *Session, p Priority, at int64) {
	s.due.at = at
	q.due[p].pushBack(s)
	q.n++
	if q.idle > 0 {
		q.cond.Signal()
		q.woken = q.woken || p == P0
	} else if q.opened && !q.watched { // they may all be blocked, and the reader asleep
		q.watched = true
		rouse(q.wake)
	}
}

// addEnded makes a session due whose sink is to be closed. It reports false if
// there are no pushers that could.
func (q *pushPool) addEnded(s *Session, at int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.opened || q.finished {
		return false
	}
	q.addLocked(s, P3, at)
	return true
}

// withdraw takes a session that has ended off its list, if there are no pushers
// yet that would close its sink, and reports whether it did.
func (q *pushPool) withdraw(s *Session) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.opened || s.due.in == nil {
		return false
	}
	s.due.in.remove(s)
	q.n--
	return true
}

// promote moves a session to a higher lane if no pusher has taken it yet.
func (q *pushPool) promote(s *Session, p Priority, at int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.due.in != nil {
		s.due.in.remove(s)
		s.due.at = at
		q.due[p].pushBack(s)
		q.woken = q.woken || p == P0 && q.idle > 0 // it may not have run yet
	}
}

// end says that a session has ended whose sink is perhaps being called.
func (q *pushPool) end(s *Session, at int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := s.pusher; p != nil && !p.ending && !p.abandoned {
		q.removeCall(&q.running, p.slot)
		p.ending, p.endedAt = true, at
		q.pushCall(&q.ending, p.slot)
		if q.ending.first == p.slot+1 { // the reader may be asleep, with nothing else to wake it up
			rouse(q.wake)
		}
	}
}

// next takes the next session for a pusher, which may have served one before,
// and waits for one if need be. It returns nil to a pusher that should end: one
// that was abandoned, one more than keep that has nothing to do, or any once the
// pool is closed.
func (q *pushPool) next(p *pusher) *Session {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.stop(p); s != nil {
		q.returns++
		if s.pusher == p {
			s.pusher = nil
		}
		if q.draining && q.quietLocked() {
			rouse(q.wake)
		}
	}
	if p.abandoned {
		q.discharge(p)
		rouse(q.wake)
		return nil
	}
	for q.n == 0 {
		if q.closed || q.idle >= q.keep {
			q.size--
			q.discharge(p)
			if q.closed {
				rouse(q.wake)
			}
			return nil
		}
		q.idle++
		q.cond.Wait()
		q.idle--
		p.rested = true
	}
	s := q.take()
	s.pusher = p
	q.start(p, s)
	if q.n > 0 && q.idle == 0 && !q.watched {
		q.watched = true
		rouse(q.wake)
	}
	return s
}

// take takes the next of the sessions that are due, of which there is one: with
// a P0 before the others, and those in turn.
func (q *pushPool) take() *Session {
	l := &q.due[P0]
	if l.n == 0 {
		l = &q.due[q.turns.next(&[NumPriorities]int{P1: q.due[P1].n, P2: q.due[P2].n, P3: q.due[P3].n})]
	}
	s := l.first
	l.remove(s)
	q.n--
	return s
}

// A demand is what the pool asks of the reader.
type demand struct {
	pushers int      // so many more
	abandon bool     // somebody in ending may have to be abandoned
	longest *Session // all pushers that there may be are in a call, others are due, and this call lasts the longest
	at      int64    // when to ask again
}

// ask returns what the pool asks for, with most pushers at the most. Pushers are
// wanted when the session that has been due the longest has waited for growAfter,
// none is idle, and those that there are do not come back. Only the reader calls
// it.
func (q *pushPool) ask(clock int64, most int) (d demand) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d.at = never
	if q.ending.first != 0 {
		d.at = q.pushers[q.ending.first-1].endedAt + int64(abandonAfter)
		d.abandon = d.at <= clock
	}
	if q.watched = q.n > 0 && q.idle == 0; !q.watched {
		q.grew(clock, 0)
		return d
	}
	if q.size == 0 { // all were abandoned
		d.pushers, d.at = 1, min(d.at, clock+int64(growAfter))
		return d
	}
	at, wait := q.lateAt()
	if clock < at {
		d.at = min(d.at, at)
		return d
	}
	if q.size >= most {
		// Those in ending come back or are abandoned soon, and those that were only
		// just started come: who is due beside that needs a session to end.
		if q.running.first != 0 && q.ending.n < q.n {
			d.longest = q.calls[q.running.first-1].session
		} else {
			d.at = min(d.at, clock+int64(growAfter))
		}
		return d
	}
	at = max(at, q.sampleAt+int64(wait))
	if clock < at {
		d.at = min(d.at, at)
		return d
	}
	// Half of the pool back within wait is a pool that is busy and not blocked.
	back := 2 * int64(q.returns-q.sampleReturns) * int64(wait) / max(clock-q.sampleAt, 1)
	if q.returns != q.sampleReturns {
		q.stillAt = clock
	}
	q.sampleAt, q.sampleReturns = clock, q.returns
	d.at = min(d.at, clock+int64(wait))
	switch {
	case back >= int64(q.size):
	case clock-q.starvedAt.Load() >= int64(cpuMissingFor) || !q.early(clock):
		d.pushers = min(q.n, q.size, most-q.size, growMost)
	case q.due[P0].n > 0 && clock-q.stillAt >= int64(cpuPatience): // a P0 must not wait for thousands that are blocked
		d.pushers = 1
	}
	return d
}

// lateAt returns when the session that has been due the longest will have waited
// for too long, and how long that is: for growAfter, less in P0. mu is held, and
// some session is due.
func (q *pushPool) lateAt() (at int64, wait time.Duration) {
	at, wait = never, growAfter
	for p := range q.due {
		if s := q.due[p].first; s != nil {
			w := growAfter
			if Priority(p) == P0 {
				w = growAfterUrgent
				wait = w
			}
			at = min(at, s.due.at+int64(w))
		}
	}
	return at, wait
}

// early reports whether it is too early to start more pushers while CPUs are
// missing. mu is held.
func (q *pushPool) early(clock int64) bool {
	wait := int64(cpuPatience) * int64(q.size) / int64(q.keep)
	// Blocked sinks return in proportion to the pushers, those that want a CPU do
	// not. Where nobody returns all are blocked.
	if q.returns > q.grownReturns && q.rate(clock) < 1.25*q.grownRate {
		wait *= helplessTimes
	}
	return clock-q.grownAt < wait
}

// rate is how many pushers have returned per ns since the pool last grew. mu is
// held.
func (q *pushPool) rate(clock int64) float64 {
	return float64(q.returns-q.grownReturns) / float64(max(clock-q.grownAt, 1))
}

// join counts pushers that the caller starts after this, and gives each a slot.
func (q *pushPool) join(pushers []*pusher, clock int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.opened = true
	if 2*len(pushers) >= q.size { // one for a P0 is no growth
		q.grew(clock, q.rate(clock))
	}
	q.size += len(pushers)
	for _, p := range pushers {
		p.ticket = q.started
		q.started++
		q.enlist(p)
	}
}

// grew begins the next sample. mu is held.
func (q *pushPool) grew(clock int64, rate float64) {
	q.grownAt, q.grownReturns, q.grownRate = clock, q.returns, rate
	q.sampleAt, q.sampleReturns, q.stillAt = clock, q.returns, clock
}

// abandon gives up pushers whose session ended at or before then, a slice at a
// call, and returns their sessions. They are no longer waited for.
func (q *pushPool) abandon(then int64) (abandoned []*Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.ending.first != 0 && len(abandoned) < sliceSize {
		slot := q.ending.first - 1
		p := q.pushers[slot]
		if p.endedAt > then {
			break
		}
		q.removeCall(&q.ending, slot)
		p.ending, p.abandoned = false, true
		q.size--
		abandoned = append(abandoned, q.calls[slot].session)
	}
	return abandoned
}

// woke reports whether a pusher was woken for a P0 since it was last asked.
func (q *pushPool) woke() (woken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	woken, q.woken = q.woken, false
	return woken
}

// drain makes the pushers rouse the reader when all is quiet.
func (q *pushPool) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
}

// quiet reports whether nothing is due and no pusher is in a call that is waited
// for.
func (q *pushPool) quiet() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.quietLocked()
}

func (q *pushPool) quietLocked() bool {
	return q.n == 0 && q.running.first == 0 && q.ending.first == 0
}

// close lets the pushers go once nothing is due, and reports whether some are
// still there.
func (q *pushPool) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
	q.finished = q.size == 0 && q.n == 0
	return !q.finished
}
