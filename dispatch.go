package notification

import (
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// dispatchClock is after how many messages of P1 to P3 the dispatcher looks at the
// clock: so many of them, some microseconds, a latency may be too small.
const dispatchClock = 8

// A dispatcher takes messages off the lanes and hands each to the receivers of
// its user. It is one goroutine, that of Broker.Run. Whoever publishes wakes it;
// idle it uses no CPU.
//
// A lane holds at most one unfinished hand-over, its head: the message, and the
// receivers that have yet to get it. While the first of those has no room, this
// lane stands still and the others go on; with nothing else to do the dispatcher
// sleeps in one select over the heads. So no hand-over runs inside another's
// wait, and leaving or stopping breaks off just what it must.
type dispatcher struct {
	// immutable after newDispatcher
	cfg       *BrokerConfig
	log       *slog.Logger
	life      *lifecycle
	admission *admission
	routes    *routes
	wake      chan struct{} // cap 1

	// atomic
	asleep atomic.Uint32 // a bit for each lane whose publishers must ring wake

	// written by run alone, atomic
	routed, unrouted, discarded [NumPriorities]tally
	latency                     [NumPriorities]HistogramRecorder

	// owned by run
	heads [NumPriorities]head
	clock int64 // now, a little old
	age   int   // messages since clock was read; dispatchClock: it has yet to be
	yield yielder
	timer *time.Timer

	gaps sync.WaitGroup // calls of Receiver.Gap
}

// A head is the unfinished hand-over of a lane; without a message there is none.
type head struct {
	m       *Message
	targets []*receiver // who has yet to get it: of its user, then of the global subscribers
	last    bool        // targets are the global subscribers
	waiting bool        // for targets[0], which has no room
	since   int64       // while waiting: when that began
}

func newDispatcher(cfg *BrokerConfig, life *lifecycle, a *admission, t *routes) *dispatcher {
	return &dispatcher{cfg: cfg, log: cfg.Logger, life: life, admission: a, routes: t, wake: make(chan struct{}, 1), age: dispatchClock, yield: yielder{every: dispatchYield}}
}

// run delivers until the drain is over, or until it is stopped.
func (d *dispatcher) run() {
	d.timer = time.NewTimer(time.Hour)
	d.timer.Stop()
	defer d.timer.Stop()
	for !d.life.stopped() {
		if d.round() {
			continue
		}
		if d.drained() {
			return
		}
		d.park()
	}
}

// ring wakes the dispatcher if it sleeps and cares for this lane.
//
// A publisher pushes first and looks at asleep after that; the dispatcher says
// that it sleeps first and looks at the lanes after that. So one of the two sees
// the other.
func (d *dispatcher) ring(p Priority) {
	if s := d.asleep.Load(); s&(1<<p) != 0 && d.asleep.CompareAndSwap(s, 0) {
		rouse(d.wake)
	}
}

// drained reports whether Shutdown has begun and nothing is left. Nothing is
// accepted once life says that it drains.
func (d *dispatcher) drained() bool {
	if !d.life.closing() || !d.admission.empty() {
		return false
	}
	for p := range d.heads {
		if d.heads[p].m != nil {
			return false
		}
	}
	return true
}

// round gives each of P1, P2 and P3 its turn, with P0 looked at before every
// message of theirs, and reports whether there was anything to do.
func (d *dispatcher) round() (moved bool) {
	for p := P1; p <= P3; p++ {
		for range d.quota(p) {
			moved = d.urgent() || moved
			if d.life.stopped() || !d.take(p) {
				break
			}
			moved = true
		}
	}
	return d.urgent() || moved
}

// urgent takes what has arrived in P0.
func (d *dispatcher) urgent() (moved bool) {
	for range d.quota(P0) {
		if d.life.stopped() || !d.take(P0) {
			break
		}
		moved = true
	}
	return moved
}

// quota is how many messages a lane may have taken in one turn. The head counts,
// and is in no lane any longer.
func (d *dispatcher) quota(p Priority) int {
	if n := d.cfg.RoundQuota[p]; n >= 0 {
		return n
	}
	n := d.admission.lanes[p].len()
	if d.heads[p].m != nil {
		n++
	}
	return n
}

// take finishes the head of a lane, or takes the next message. It reports false
// if there is none, or if it has to wait.
func (d *dispatcher) take(p Priority) bool {
	h := &d.heads[p]
	if h.m == nil {
		m := d.admission.pop(p)
		if m == nil {
			return false
		}
		d.begin(h, m)
	}
	if !d.advance(h) {
		return false
	}
	d.yield.after(1)
	return true
}

// begin makes m the head of its lane, and looks up who gets it.
func (d *dispatcher) begin(h *head, m *Message) {
	to := d.routes.of(m.n.UserID)
	h.m, h.targets, m.user = m, to.targets, to.user
	for _, r := range h.targets {
		if r.left() { // its routes are still being removed
			h.targets = slices.DeleteFunc(slices.Clone(h.targets), (*receiver).left)
			break
		}
	}
	if len(h.targets) > 0 {
		d.routed[m.priority].inc()
	} else {
		d.unrouted[m.priority].inc()
	}
}

// advance hands the head to those who have yet to get it, and reports whether it
// is done.
func (d *dispatcher) advance(h *head) bool {
	for {
		for len(h.targets) > 0 {
			if !d.hand(h, h.targets[0]) {
				return false
			}
			h.targets = h.targets[1:]
		}
		if h.last {
			break
		}
		h.last, h.targets = true, *d.routes.subscribers.Load()
	}
	if d.age++; d.age >= dispatchClock || h.m.priority == P0 {
		d.clock, d.age = now(), 0
	}
	d.latency[h.m.priority].Record(time.Duration(d.clock - h.m.entered))
	*h = head{}
	return true
}

// An outcome is what came of the attempt to hand a message over.
type outcome uint8

const (
	handed  outcome = iota
	dropped         // the receiver is stuck, or does not want to be waited for
	noRoom          // to be tried again
)

// hand tries to send the head to r and counts what came of it. It reports false
// if r has no room and must be waited for.
func (d *dispatcher) hand(h *head, r *receiver) bool {
	if h.waiting {
		if r.left() {
			d.breakOff(h, r)
			return true
		}
	} else if !r.enter() {
		d.routes.lost() // it left between the look-up and now
		d.life.lose(1)
		return true
	}
	switch d.try(h, r) {
	case handed:
		d.handed(h, r)
	case dropped:
		r.dropped.inc()
		d.life.lose(1)
		// Sessions that came after the last Gap have not been told yet.
		if r.gateway != nil && r.gateway.roster.tell() {
			d.callGap(r)
		}
	case noRoom:
		if !h.waiting {
			h.waiting, h.since = true, now()
			r.budget[r.channel(h.m.priority)].begin(h.since)
		}
		return false
	}
	d.done(h, r)
	return true
}

// handed counts a send that succeeded, and ends the episode of a receiver that
// was stuck.
func (d *dispatcher) handed(h *head, r *receiver) {
	r.handed.inc()
	if c := r.channel(h.m.priority); r.stuck[c].Load() {
		r.stuck[c].Store(false)
		d.log.Info("receiver recovered", "receiver", r.id, "global", r.global, "lane", h.m.priority, "dropped", r.dropped.value())
	}
}

// done ends the hand-over to r.
func (d *dispatcher) done(h *head, r *receiver) {
	if h.waiting {
		h.waiting = false
		r.budget[r.channel(h.m.priority)].end(now())
	}
	r.exit()
}

// breakOff ends a hand-over to a receiver that leaves while it is waited for. A
// Gateway gets the message all the same, and drains; another's channel may be
// closed any moment.
func (d *dispatcher) breakOff(h *head, r *receiver) {
	if r.gateway != nil {
		r.gateway.reader.complete(h.m)
		r.handed.inc()
	} else {
		r.dropped.inc()
		d.life.lose(1)
	}
	d.done(h, r)
}

// try sends the head to r if there is room. If there is none, r's budget and the
// drain decide whether it is waited for.
func (d *dispatcher) try(h *head, r *receiver) outcome {
	p := h.m.priority
	ch, c := r.inbox[p], r.channel(p)
	stuck := r.stuck[c].Load() && !d.life.closing() && !r.patient()
	half := len(ch) <= cap(ch)/2
	if stuck && (!half || r.gaps.Load() > 0) {
		return dropped
	}
	if r.global && d.yields(h, r) {
		return noRoom // and whether the budget is spent shows when the other is tried
	}
	select {
	case ch <- h.m:
		if half && (!h.waiting || r.global) { // a global's head may have waited for another lane, and not for room
			r.budget[c].refill()
		}
		return handed
	default:
	}
	switch {
	case stuck, r.global && r.overflow == DropNewest:
		return dropped
	case d.life.closing(), r.patient():
		return noRoom
	case r.budget[c].left(d.cfg.StallTimeout, now()) > 0:
		return noRoom
	}
	r.stuck[c].Store(true)
	d.log.Warn("receiver is stuck, dropping what is for it", "receiver", r.id, "global", r.global, "lane", p, "budget", d.cfg.StallTimeout)
	if r.gap != nil {
		if r.gateway != nil {
			r.gateway.roster.tell()
		}
		d.callGap(r)
	}
	return dropped
}

// yields reports whether another lane goes first to the one channel of a global
// subscriber: P0, then who has waited the longest.
func (d *dispatcher) yields(h *head, r *receiver) bool {
	if r.budget[0].waiting == 0 || h.m.priority == P0 {
		return false
	}
	for p := range d.heads {
		o := &d.heads[p]
		if o == h || !o.waiting || o.targets[0] != r {
			continue
		}
		if Priority(p) == P0 || !h.waiting || o.since < h.since {
			return true
		}
	}
	return false
}

// park sleeps until there is something to do: a message in a lane that has no
// head, room for a head that waits, a receiver that leaves, a budget that is
// spent, or the end.
func (d *dispatcher) park() {
	lanes, waiting := uint32(0), false
	for p := range d.heads {
		if d.heads[p].m == nil {
			lanes |= 1 << p
		} else {
			waiting = true
		}
	}
	d.age = dispatchClock // afterwards the clock is old
	d.asleep.Store(lanes)
	pauseAt(parking)
	defer d.asleep.Store(0)
	for p, q := range d.admission.lanes {
		if lanes&(1<<p) != 0 && q.len() > 0 {
			return
		}
	}
	if d.life.stopped() || d.drained() {
		return
	}
	if !waiting {
		<-d.wake
		return
	}
	d.parkAtHeads()
}

// parkAtHeads is park with at least one head that waits.
func (d *dispatcher) parkAtHeads() {
	var (
		to   [NumPriorities]chan<- *Message
		m    [NumPriorities]*Message
		gone [NumPriorities]<-chan struct{}
		next = time.Duration(math.MaxInt64)
		at   = now()
	)
	for p := range d.heads {
		h := &d.heads[p]
		if h.m == nil {
			continue
		}
		r := h.targets[0]
		m[p], gone[p] = h.m, r.gone
		if !r.global || !d.yields(h, r) {
			to[p] = r.inbox[p]
		}
		if !d.life.closing() && !r.patient() { // Shutdown rings wake, and then no budget counts
			next = min(next, r.budget[r.channel(Priority(p))].left(d.cfg.StallTimeout, at))
		}
	}
	var spent <-chan time.Time
	if next != math.MaxInt64 {
		d.timer.Reset(max(next, 0))
		defer d.timer.Stop()
		spent = d.timer.C
	}
	sent := -1
	select {
	case to[P0] <- m[P0]:
		sent = 0
	case to[P1] <- m[P1]:
		sent = 1
	case to[P2] <- m[P2]:
		sent = 2
	case to[P3] <- m[P3]:
		sent = 3
	case <-gone[P0]:
	case <-gone[P1]:
	case <-gone[P2]:
	case <-gone[P3]:
	case <-spent:
	case <-d.wake:
	case <-d.life.stopping:
	}
	if sent >= 0 {
		h := &d.heads[sent]
		r := h.targets[0]
		d.handed(h, r)
		d.done(h, r)
		h.targets = h.targets[1:]
	}
}

// settle counts what is left in the lanes as discarded, and what is left of the
// heads as dropped. That will not arrive: who was to get a head is told, and if
// anything was in a lane, every receiver; then settle reports true. It is called
// once, when run is over or if there never will be a run.
func (d *dispatcher) settle() (told bool) {
	dropped, discarded := 0, 0
	missing := make(map[*receiver]struct{})
	for p := range d.heads {
		h := &d.heads[p]
		if h.m == nil {
			continue
		}
		if !h.last {
			h.targets = append(h.targets[:len(h.targets):len(h.targets)], *d.routes.subscribers.Load()...)
		}
		for _, r := range h.targets {
			if h.waiting && r.left() {
				d.breakOff(h, r)
				continue
			}
			dropped++
			if !h.waiting && !r.enter() { // it left between the look-up and now
				d.routes.lost()
				continue
			}
			r.dropped.inc()
			if r.gap != nil {
				missing[r] = struct{}{}
			}
			d.done(h, r)
		}
		d.latency[p].Record(time.Duration(now() - h.m.entered))
		*h = head{}
	}
	for p := range d.admission.lanes {
		for d.admission.pop(Priority(p)) != nil {
			d.discarded[p].inc()
			discarded++
		}
	}
	d.life.lose(dropped + discarded)
	if discarded > 0 {
		for _, r := range *d.routes.all.Load() {
			missing[r] = struct{}{}
		}
	}
	for r := range missing {
		d.callGap(r)
	}
	return len(missing) > 0
}

// callGap calls r.gap on a goroutine of its own, one call after the other.
func (d *dispatcher) callGap(r *receiver) {
	if r.gaps.Add(1) == 1 {
		d.gaps.Go(func() { d.gap(r) }) // ends with the call; awaitGaps waits for it, for a while
	}
}

// gap calls r.gap once. If that is due again a goroutine of its own does it,
// because this one may be at its end: user code may have called runtime.Goexit.
func (d *dispatcher) gap(r *receiver) {
	defer func() {
		if v := recover(); v != nil {
			d.log.Error("Receiver.Gap panicked", "receiver", r.id, "panic", v, "stack", string(debug.Stack()))
		}
		if r.gaps.Add(-1) > 0 {
			d.gaps.Go(func() { d.gap(r) })
		}
	}()
	r.gap()
}

// awaitGaps waits for the calls of Gap. They are user code: one that does not
// return must not keep Run.
func (d *dispatcher) awaitGaps() {
	over := make(chan struct{})
	go func() { d.gaps.Wait(); close(over) }() // ends with the last Gap
	late := time.NewTimer(abandonAfter)
	defer late.Stop()
	select {
	case <-over:
	case <-late.C:
		d.log.Error("broker abandoned a call of Receiver.Gap", "waited", abandonAfter)
	}
}

// stats fills in what the dispatcher counts.
func (d *dispatcher) stats(s *BrokerStats) {
	for p := range s.Lanes {
		l := &s.Lanes[p]
		l.Capacity = d.cfg.QueueCapacity[p]
		l.Routed, l.Unrouted, l.Discarded = d.routed[p].value(), d.unrouted[p].value(), d.discarded[p].value()
		l.Latency = d.latency[p].Snapshot()
	}
}
