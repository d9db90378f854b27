package notification

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// clockEvery is after how many messages the reader looks at the clock: a
	// delay may begin by the time of so many messages too early.
	clockEvery = 16

	// contestedFor is how long a lane counts as contested after a message for
	// somebody else came through it.
	contestedFor = time.Second
)

// A reader takes messages from the inbox to the outboxes of the sessions. It is
// one goroutine, that of Gateway.Run, and does all that depends on time as well:
// the delays, the growth of the pool, the sweep. It sleeps on the inbox, one
// timer and a wake channel.
//
// A lane that cannot go on stands still by itself, for one of three reasons: its
// debt is over the limit (it is throttled), sessions whose delay has ended have
// yet to be let in (it is late), or a message waits at its head for room in an
// outbox (a hold).
type reader struct {
	g *Gateway // immutable

	// What the dispatcher was about to send when the Gateway left its Broker: at
	// most one message a lane each time. It comes behind what the inbox holds,
	// because it was sent last.
	handed [NumPriorities]mailbox[*Message]
	// Sessions that have ended and are still in a delay list, which only the reader
	// may change: MaxDelay may be for ever, and they would be kept alive.
	ended mailbox[*Session]

	// written by the reader alone, atomic
	received, noSession, invalid, filtered, enqueued [NumPriorities]tally
	discarded                                        [NumPriorities]atomic.Uint64

	// owned by the reader
	lanes    [NumPriorities]readLane
	clock    int64 // now, a little old
	clockAge int   // messages since clock was read
	yield    yielder
	timersAt int64 // when the timers had their last turn
	askAt    int64 // when to ask the pool again
	timer    *time.Timer
	sweepAt  int64
	sweep    walk
	sweeping bool // a walk is under way
	draining bool
}

// A readLane is what the reader knows of one.
type readLane struct {
	// The message that is being offered to sessions; nil: none. The lane waits
	// for it, so that the order is kept; others go on.
	m       *Message
	seq     uint64              // in the history
	epoch   uint64              // of the Log, as far as the lane has come; 0 without one
	last    uint64              // number in that epoch
	rest    []*Session          // who is next
	buf     [sliceSize]*Session // of rest
	walk    walk                // to those after rest
	walking bool                // there are perhaps some
	shared  bool                // several sessions get it
	hold    *Session            // rest[0], which has no room
	holdAt  int64               // when to look at the hold again

	delays delayList

	// Whether others' messages come through: whose was the last, when, and when
	// was the last of somebody else.
	user            *user // nil: AllUsers
	cameAt, otherAt int64
}

func newReader(g *Gateway) *reader {
	r := &reader{g: g, yield: yielder{every: readYield}}
	for p := range r.lanes {
		r.lanes[p].delays.lane = Priority(p)
		if g.cfg.Log != nil {
			r.lanes[p].epoch = g.history.epoch.Load()
		}
	}
	return r
}

// run reads until the drain is over, or until it is stopped.
func (r *reader) run() {
	r.timer = time.NewTimer(time.Hour)
	r.clock = now()
	r.sweepAt = addTime(r.clock, r.g.cfg.SweepInterval)
	for p := range r.lanes {
		l := &r.lanes[p]
		l.cameAt = r.clock - int64(contestedFor)
		l.otherAt = l.cameAt
	}
	for !r.g.life.stopped() {
		r.clock, r.clockAge = now(), 0
		if !r.draining && r.g.life.closing() {
			r.draining = true
			r.g.leave()
			r.g.pool.drain()
		}
		r.timers()
		if r.round() {
			continue
		}
		if r.draining && r.drained() {
			return
		}
		r.sleep()
	}
}

// drained reports whether everything was taken that will ever come.
func (r *reader) drained() bool {
	for p := range r.lanes {
		if r.lanes[p].m != nil || r.lanes[p].delays.first != nil || len(r.g.inbox[p]) > 0 || r.handed[p].some.Load() {
			return false
		}
	}
	return r.g.pool.quiet()
}

// round gives each lane its turn and reports whether there was anything to do.
func (r *reader) round() bool {
	moved := r.urgent() > 0
	for p := P1; p <= P3; p++ {
		for range sliceSize {
			if r.g.life.stopped() || !r.take(p) {
				break
			}
			moved = true
			// A slice of a message to many is a turn, and so is one message beside a
			// flood of P0.
			if r.urgent() > sliceSize || r.lanes[p].m != nil {
				break
			}
		}
	}
	return moved
}

// urgent takes what has arrived in P0, but not what arrives meanwhile: others
// must have their turn. It returns how much that was.
func (r *reader) urgent() (n int) {
	for most := len(r.g.inbox[P0]) + 1; n < most && !r.g.life.stopped() && r.take(P0); n++ {
	}
	return n
}

// take lets sessions in whose delay has ended, or works off the next message of a
// lane, or the next slice of one. It reports false if there is nothing to do, or
// if the lane stands still.
func (r *reader) take(p Priority) bool {
	l := &r.lanes[p]
	switch {
	case r.g.pool.throttle(p):
		return false
	case r.late(p):
		r.expire(p)
		return true
	case l.hold != nil && !r.release(p):
		return false
	case l.m != nil:
		r.work(p)
		return true
	}
	select {
	case m := <-r.g.inbox[p]:
		r.accept(p, m)
	default:
		var one [1]*Message
		if len(r.handed[p].take(one[:])) == 0 {
			return false
		}
		r.accept(p, one[0])
	}
	return true
}

// late reports whether sessions wait to be let in whose delay in this lane has
// ended. They go first.
func (r *reader) late(p Priority) bool {
	s := r.lanes[p].delays.first
	return s != nil && (r.draining || s.deadline[p] <= r.clock)
}

// tick is due after n messages × sessions.
func (r *reader) tick(n int) {
	if r.clockAge += n; r.clockAge >= clockEvery {
		r.clock, r.clockAge = now(), 0
		if r.clock-r.timersAt >= int64(timersEvery) {
			r.timers()
		}
	}
	r.yield.after(n)
}

// accept begins with a message off the inbox.
func (r *reader) accept(p Priority, m *Message) {
	l := &r.lanes[p]
	if r.g.cfg.Log != nil && r.acceptMark(p, m) {
		r.tick(1)
		return
	}
	if m == nil || m.invalid || m.priority != p || r.g.cfg.Log != nil && !l.follows(m) {
		r.invalid[p].inc()
		r.tick(1)
		return
	}
	r.received[p].inc()
	l.m, l.seq = m, 0
	if m.n.UserID == AllUsers {
		r.acceptForAll(p, m)
	} else {
		r.acceptForUser(p, m)
	}
	if l.m == nil {
		r.tick(1)
		return
	}
	r.work(p)
}

func (r *reader) acceptForAll(p Priority, m *Message) {
	l := &r.lanes[p]
	l.came(nil, r.clock)
	if r.g.history != nil {
		r.keep(p, r.g.history.all, m)
	} else if r.g.roster.empty() {
		r.noSession[p].inc()
	}
	r.g.roster.beginAnywhere(&l.walk)
	l.walking = true
}

func (r *reader) acceptForUser(p Priority, m *Message) {
	l := &r.lanes[p]
	u := r.g.roster.addressee(m)
	if u == nil {
		r.noSession[p].inc()
		l.m = nil
		if r.g.cfg.Log != nil {
			r.g.history.pass(p, l.last, l.epoch)
		}
		return
	}
	l.came(u, r.clock)
	if u.history != nil && r.keep(p, u.history, m) && !r.g.roster.evictOffline() {
		u.history.evictOldest(p)
	}
	var few bool
	if l.rest, few = u.few(l.buf[:]); !few {
		r.g.roster.beginOfUser(&l.walk, u)
		l.walking = true
	} else if len(l.rest) == 0 {
		r.g.roster.keptOffline(u)
	}
	l.shared = l.walking || len(l.rest) > 1
}

// came notes that a message for a user came through the lane.
func (l *readLane) came(u *user, at int64) {
	if u != l.user {
		l.user, l.otherAt = u, l.cameAt
	}
	l.cameAt = at
}

// contested reports whether somebody else wants to pass: the message at the head
// is for other sessions as well, which must then wait for the next one, or others'
// came through within the last second.
func (l *readLane) contested(clock int64) bool {
	return l.user == nil || l.shared || clock-l.otherAt < int64(contestedFor)
}

// work offers the message at the head of a lane to the next slice of sessions.
func (r *reader) work(p Priority) {
	l := &r.lanes[p]
	if len(l.rest) == 0 && l.walking {
		l.rest = r.g.roster.step(&l.walk, l.buf[:])
		l.walking = len(l.rest) == sliceSize
	}
	n := 1
	for ; len(l.rest) > 0; n++ {
		if !r.offer(p, l.rest[0]) {
			l.hold, l.holdAt = l.rest[0], r.clock
			l.hold.startHold(p, r.clock)
			r.tick(n)
			return
		}
		l.rest[0] = nil // keep nobody alive
		l.rest = l.rest[1:]
	}
	if !l.walking {
		l.m, l.rest = nil, nil
		if r.g.cfg.Log != nil {
			r.g.history.pass(p, l.last, l.epoch)
		}
	}
	r.tick(n)
}

// offer offers the message at the head of a lane to s. It reports false if s has
// no room for it.
func (r *reader) offer(p Priority, s *Session) bool {
	l := &r.lanes[p]
	if r.g.cfg.Log != nil && s.user.history.epoch != l.epoch { // its numbers mean nothing to s
		return true
	}
	switch s.offer(l.m, l.seq, r.clock) {
	case offerFiltered:
		r.filtered[p].inc()
	case offerTaken:
		r.enqueued[p].inc()
	case offerFirst:
		r.enqueued[p].inc()
		if r.g.cfg.MaxDelay[p] > 0 {
			l.delays.moveBack(s)
		}
	case offerSlow:
		r.enqueued[p].inc()
		r.endSlow(s)
	case offerNoRoom:
		return false
	}
	if p == P0 && r.g.pool.woke() { // the pusher may need this core
		r.yield.hurry()
	}
	return true
}

func (r *reader) endSlow(s *Session) {
	if r.g.end(s, ErrSlowConsumer) {
		r.g.log.Debug("session ended: slow consumer", "session", s.id, "user", s.user.id)
	}
}

// contested reports whether somebody else wants to pass in a lane that s holds
// up. What that costs is charged once for all of its lanes.
func (r *reader) contested(s *Session) bool {
	for p := range r.lanes {
		if l := &r.lanes[p]; l.hold == s && l.contested(r.clock) {
			return true
		}
	}
	return false
}

// release reports whether the hold of a lane is over.
func (r *reader) release(p Priority) bool {
	l := &r.lanes[p]
	over, slow, left := l.hold.held(p, r.clock, r.contested(l.hold))
	if slow {
		r.endSlow(l.hold)
	}
	if !over && !slow {
		l.holdAt = addTime(r.clock, left)
		return false
	}
	l.hold = nil
	return true
}

// expire makes sessions due whose oldest message in a lane has waited MaxDelay:
// no more than the pushers take.
func (r *reader) expire(p Priority) {
	l := &r.lanes[p].delays
	for n := 0; n < sliceSize && r.late(p) && !r.g.pool.throttle(p); n++ {
		s := l.first
		l.remove(s)
		s.expire(p, r.clock)
	}
}

// sleep waits for the next message that may be read, or the next thing to do.
func (r *reader) sleep() {
	next := r.askAt
	if !r.draining {
		next = min(next, r.sweepAt, r.g.roster.forgets.Load())
	}
	if r.ended.some.Load() { // more than a slice
		next = r.clock
	}
	var in [NumPriorities]chan *Message
	for p := range in {
		l := &r.lanes[p]
		if r.g.pool.throttle(Priority(p)) { // whoever pays the debt rouses us
			continue
		}
		if s := l.delays.first; s != nil {
			next = min(next, s.deadline[p])
		}
		if l.hold != nil {
			next = min(next, l.holdAt)
		}
		if l.m == nil && !r.late(Priority(p)) {
			in[p] = r.g.inbox[p]
		}
	}
	r.setTimer(next)
	p := P0
	var m *Message
	select {
	case m = <-in[P0]:
	case m = <-in[P1]:
		p = P1
	case m = <-in[P2]:
		p = P2
	case m = <-in[P3]:
		p = P3
	case <-r.g.wake:
		return
	case <-r.timer.C:
		return
	}
	r.clock, r.clockAge = now(), 0
	r.accept(p, m)
}

func (r *reader) setTimer(at int64) {
	if at == never {
		r.timer.Stop()
		return
	}
	r.timer.Reset(until(at))
}

// complete takes over a message that the dispatcher was about to send when the
// Gateway left its Broker.
func (r *reader) complete(m *Message) {
	if _, ok := r.handed[m.priority].put(m); ok {
		rouse(r.g.wake)
		return
	}
	r.discarded[m.priority].Add(1)
	r.g.life.lose(1)
}

// dropHanded discards what complete took over, and reports whether there was
// anything: the Gateway comes back to a Broker, and what is sent from now on may
// be taken before it. The order would be broken for sessions that begin after the
// Gap; those that are there end with it.
func (r *reader) dropHanded() (dropped bool) {
	for p := range r.handed {
		n := r.handed[p].drop(false)
		r.discarded[p].Add(uint64(n))
		dropped = dropped || n > 0
	}
	return dropped
}

// settle counts what is left as discarded. The sessions have ended.
func (r *reader) settle() {
	for p, ch := range r.g.inbox {
		n := r.handed[p].drop(true)
		for more := true; more; {
			select {
			case m := <-ch:
				if !m.isFence() {
					n++
				}
			default:
				more = false
			}
		}
		r.discarded[p].Add(uint64(n))
		r.g.life.lose(n)
		l := &r.lanes[p]
		if l.walking {
			r.g.roster.endWalk(&l.walk)
		}
		if l.m != nil { // some sessions have it, the others have ended
			r.g.life.lose(1)
		}
		*l = readLane{}
	}
	r.ended.drop(true)
	if r.sweeping {
		r.g.roster.endWalk(&r.sweep)
	}
}

// awaitPushers returns when the pushers have closed the sinks and are gone, but
// for those that are abandoned.
func (r *reader) awaitPushers() {
	if r.timer == nil { // there never was a run
		r.timer = time.NewTimer(time.Hour)
	}
	defer r.timer.Stop()
	for r.g.pool.close() {
		r.clock = now()
		r.tend(math.MaxInt) // sinks are only closed now, and must be
		r.setTimer(r.askAt)
		select {
		case <-r.g.wake:
		case <-r.timer.C:
		}
	}
}

// stats fills in what the reader counts.
func (r *reader) stats(st *GatewayStats) {
	for p := range st.Lanes {
		l := &st.Lanes[p]
		l.Received, l.NoSession, l.Invalid = r.received[p].value(), r.noSession[p].value(), r.invalid[p].value()
		l.Discarded = r.discarded[p].Load()
		l.Filtered, l.Enqueued = r.filtered[p].value(), r.enqueued[p].value()
	}
}
