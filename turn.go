package notification

import (
	"sync"
	"sync/atomic"
)

// A turn is the right to act as a Gateway's reader, who has it whenever it does not
// sleep. While it sleeps the dispatcher may have it, for one message of a lane in
// which nothing waits for company: that is with a pusher then, and the reader has not
// been woken up for it.
type turn struct {
	mu   sync.Mutex
	naps atomic.Uint64 // one more whenever the reader falls asleep or wakes up: odd while it sleeps
}

// await sleeps until there is a message in one of these channels, or something else
// to do. Meanwhile the turn is free.
func (r *reader) await(in *[NumPriorities]chan *Message) (m *Message, p Priority, ok bool) {
	pauseAt(dozing)
	r.turn.naps.Add(1)
	r.turn.mu.Unlock()
	defer func() {
		pauseAt(waking)
		r.turn.mu.Lock()
		r.turn.naps.Add(1)
	}()
	select {
	case m = <-in[P0]:
		return m, P0, true
	case m = <-in[P1]:
		return m, P1, true
	case m = <-in[P2]:
		return m, P2, true
	case m = <-in[P3]:
		return m, P3, true
	case <-r.g.wake:
	case <-r.timer.C:
	}
	return nil, 0, false
}

// sent returns the nap in which the reader may be given, and have yet to wake up with,
// what has just been put into its inbox: this one, or the next if it is awake, because
// it may have looked into the inbox for the last time before that.
func (t *turn) sent() uint64 { return t.naps.Load() | 1 }

// tryTake does what the reader would do with m if it sleeps and m's lane is free: its
// user has one session here, and that has room. It reports whether it did. Only the
// dispatcher calls it.
//
// sent is what turn.sent was after something had last been put into the lane's inbox:
// until that nap is over m must go the same way.
func (r *reader) tryTake(m *Message, sent uint64) bool {
	p := m.priority
	if r.turn.naps.Load() <= sent || !r.turn.mu.TryLock() {
		return false
	}
	defer r.turn.mu.Unlock()
	l := &r.lanes[p]
	if r.draining || l.m != nil || len(r.g.inbox[p]) > 0 || r.handed[p].some.Load() || r.g.pool.throttled[p].Load() {
		return false
	}
	u, ok := r.g.roster.users.Load(m.n.UserID)
	if !ok {
		return false
	}
	s := u.only.Load()
	if s == nil || !s.hasSpace() {
		return false
	}
	r.clock = now()
	r.received[p].inc()
	l.m, l.seq = m, 0
	r.acceptFor(p, u, m)
	if l.walking || len(l.rest) != 1 || l.rest[0] != s { // another session has just come
		rouse(r.g.wake)
		return true
	}
	r.offer(p, s)
	l.rest[0] = nil // keep nobody alive
	l.m, l.rest = nil, nil
	return true
}
