package notification

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// SessionConfig describes a session to Gateway.RegisterSession.
type SessionConfig struct {
	// ID is unique among the living sessions of the Gateway, at most 256 bytes.
	ID string
	// UserID is whose notifications it gets, at most 256 bytes.
	UserID string
	// Sink takes its batches.
	Sink Sink
	// Channels is the filter to begin with: nil admits every channel, an empty
	// slice none.
	Channels []Channel
	// After makes the session go on right behind a Cursor of an earlier session
	// of this user; zero: from now on. It needs GatewayConfig.HistoryMessages. If
	// the history evicts what is still to be replayed, the session ends with
	// ErrSlowConsumer.
	After Cursor
	// Timeout is how long the session may stay silent; 0: the Gateway's
	// SessionTimeout; negative: for ever.
	Timeout time.Duration
}

// A Session is one connection of one user to a Gateway, until it ends.
// Gateway.RegisterSession makes it. Its methods may be called from anywhere,
// from inside Push too.
type Session struct {
	// immutable after RegisterSession
	g         *Gateway
	user      *user
	id        string
	sink      Sink
	timeout   time.Duration // not positive: never
	connected int64         // Unix nanoseconds
	serial    uint64        // the order of registration, from 1
	ctx       context.Context
	cancel    context.CancelCauseFunc

	// guarded by roster.mu, those among the user's sessions by user.mu as well
	links [numSessionLists]sessionLink

	// atomic
	filter  atomic.Uint32 // bit c for Channel c, everyChannel for no filter
	touched atomic.Bool   // Touch was called: being pushed to is no sign of life then
	heard   atomic.Int64  // the last sign of life, as now tells it

	mu       sync.Mutex
	state    sessionState         // guarded by mu
	lane     Priority             // guarded by mu: in which it is queued
	turns    turns                // guarded by mu: of the lanes in its batches
	announce bool                 // guarded by mu: Live is still to be called
	delayed  uint8                // guarded by mu, written by the reader alone: a bit for each delay list that it is in, or will be at once
	out      outbox               // guarded by mu: empty once err is set
	deadline [NumPriorities]int64 // guarded by mu, written by the reader alone: when what came first into an empty lane has waited MaxDelay
	since    int64                // guarded by mu: while running, when that began
	err      error                // guarded by mu: why it ended
	done     chan struct{}        // guarded by mu: made when somebody asks for it
	dropped  uint64               // guarded by mu
	resume   *resume              // immutable, what it points to is guarded by mu; nil without a history
	hold     *hold                // what it points to is guarded by mu, and made by the reader; nil until needed

	// owned by the reader: its places among the sessions that wait for MaxDelay
	delays [NumPriorities]delayLink

	// guarded by pushPool.mu
	due    dueLink
	pusher *pusher // that calls the sink
}

// The states of a session:
//
//	          something is due             a pusher takes it
//	idle ────────────────────────▶ queued ──────────────────▶ running ──▶ closed
//	  ▲                              ▲  something is due again  │   its sink was closed
//	  │                              └──────────────────────────┤
//	  └─────────────────────────────────────────────────────────┘
//
// An ended session (err is set) is queued once more, in whatever state it is, so
// that a pusher closes its sink.
type sessionState uint8

const (
	sessionIdle    sessionState = iota // nothing waits, or it waits for company
	sessionQueued                      // in a list of the pool, or taken from it this moment
	sessionRunning                     // a pusher calls the sink, or deals with what it returned
	sessionClosed                      // Sink.Close has returned
)

// newSession returns a session that is not on the roster yet.
func newSession(g *Gateway, cfg *SessionConfig) *Session {
	s := &Session{
		g: g, id: cfg.ID, sink: cfg.Sink,
		timeout:   cmp.Or(cfg.Timeout, g.cfg.SessionTimeout),
		connected: time.Now().UnixNano(),
	}
	if g.history != nil {
		s.resume = new(resume) // before anybody sees s
	}
	_, s.announce = cfg.Sink.(liveSink)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.heard.Store(now())
	s.filter.Store(everyChannel)
	if cfg.Channels != nil {
		s.filter.Store(filterOf(cfg.Channels))
	}
	return s
}

// register puts the session on the roster, and makes it due if there is
// something to replay, or Live to be called.
func (s *Session) register(cfg *SessionConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.g.roster.register(s, cfg.UserID, cfg.After); err != nil {
		return err
	}
	if at := now(); s.isDue(at) {
		s.enqueue(at)
	}
	return nil
}

// outboxFactor is how many times OutboxMessages may wait for a session in P1 to
// P3 together, and as many in P0.
const outboxFactor = 8

// ID returns the session's ID.
func (s *Session) ID() string { return s.id }

// UserID returns whose session it is.
func (s *Session) UserID() string { return s.user.id }

// ConnectedAt returns when it was registered.
func (s *Session) ConnectedAt() time.Time { return time.Unix(0, s.connected) }

// LastActive returns when it was last heard of, in terms of the present wall
// clock: the last Touch, or for a session that was never touched, the last Push
// that returned nil.
func (s *Session) LastActive() time.Time {
	heard := s.heard.Load()
	return time.Now().Add(time.Duration(heard - now()))
}

// Dropped returns how many messages SlowDropOldest has dropped so far.
func (s *Session) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Touch says that something was heard of the session's peer, and that from now
// on only Touch tells so. It is cheap enough for every frame.
func (s *Session) Touch() {
	s.heard.Store(now())
	if !s.touched.Load() {
		s.touched.Store(true)
	}
}

// Close ends the session with ErrSessionClosed; what waits for it is dropped
// and counted. It does not wait for Sink.Close: Done does. To close a session
// that has ended does nothing. The error is always nil, as io.Closer wants one.
func (s *Session) Close() error {
	s.g.end(s, ErrSessionClosed)
	return nil
}

// Done is closed when the session has ended and Sink.Close has returned.
func (s *Session) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.state == sessionClosed {
			close(s.done)
		}
	}
	return s.done
}

// Err returns why the session ended, nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// An offer is what became of a message that was offered to a session.
type offer uint8

const (
	offerNotMeant offer = iota // the session has ended, or gets it from the history
	offerFiltered              // the filter does not admit it
	offerTaken                 // it is in the outbox
	offerFirst                 // it is the first of its lane there: it may have to wait for company
	offerNoRoom                // nothing has changed: to be offered again when there is room
	offerSlow                  // it is in the outbox, and the session is slow
)

// offer puts m into the outbox if the filter admits it and there is room. Only
// the reader calls it.
func (s *Session) offer(m *Message, seq uint64, clock int64) offer {
	p := m.priority
	wanted := admits(s.filter.Load(), m.typ.Channel())
	if !wanted && s.g.history == nil { // s.resume may be about to be set
		return offerFiltered
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.resume != nil && !s.isNew(p, seq, clock) {
		return offerNotMeant
	}
	cfg := &s.g.cfg
	bound, trims := int64(cfg.OutboxMessages), cfg.SlowPolicy == SlowDropOldest
	if wanted && p != P0 && s.out.lower() >= outboxFactor*bound && !(trims && s.state == sessionRunning) {
		return offerNoRoom
	}
	if s.resume != nil {
		s.resume.at.seqs[p] = seq
	}
	if !wanted {
		return offerFiltered
	}
	full := int64(s.out.total) >= bound
	result := offerTaken
	if s.out.push(m, seq) {
		s.deadline[p] = addTime(clock, cfg.MaxDelay[p])
		result = offerFirst
		if cfg.MaxDelay[p] > 0 {
			s.delayed |= 1 << p
		}
	}
	switch s.state {
	case sessionIdle:
		if p == P0 || s.isDue(clock) {
			s.enqueue(clock)
		}
	case sessionQueued:
		s.g.pool.owe(p, 1)
		s.promote(p, clock)
	}
	overP0 := p == P0 && int64(s.out.lanes[P0].n) > outboxFactor*bound
	switch {
	case trims && (overP0 || full && s.state == sessionRunning):
		s.dropOldest()
	case overP0, s.isSlow(clock):
		result = offerSlow
	}
	return result
}

// isSlow reports whether its sink is at fault: more than OutboxMessages wait
// behind a Push that has lasted SlowAfter. SlowDropOldest ends nobody. mu is
// held.
func (s *Session) isSlow(clock int64) bool {
	cfg := &s.g.cfg
	return cfg.SlowPolicy == SlowClose && s.state == sessionRunning &&
		s.out.total > cfg.OutboxMessages && clock-s.since >= int64(cfg.SlowAfter)
}

// dropOldest drops the oldest of the lowest lane. mu is held.
func (s *Session) dropOldest() {
	p := s.out.lowest()
	s.out.pop(p)
	s.dropped++
	s.g.lose(&s.g.droppedSlow[p], 1)
	if s.state == sessionQueued {
		s.g.pool.owe(p, -1)
	}
}

// enqueue makes an idle session due. mu is held.
func (s *Session) enqueue(clock int64) {
	s.state = sessionQueued
	s.lane = s.out.highest()
	if s.announce || s.resume != nil && s.resume.replaying {
		s.lane = min(s.lane, P1)
	}
	s.g.pool.oweAll(s.out.counts(), 1)
	s.g.pool.add(s, s.lane, clock)
}

// promote moves a queued session up if p is higher than its lane. mu is held.
func (s *Session) promote(p Priority, clock int64) {
	if p < s.lane {
		s.lane = p
		s.g.pool.promote(s, p, clock)
	}
}

// isDue reports whether the sink should be called now. mu is held.
func (s *Session) isDue(clock int64) bool {
	switch {
	case s.announce, s.resume != nil && s.resume.replaying:
		return true
	case s.out.total == 0:
		return false
	case s.out.lanes[P0].n > 0, s.out.total >= s.g.cfg.BatchSize, s.g.life.closing():
		return true
	}
	for p := P1; p <= P3; p++ {
		if s.out.lanes[p].n > 0 && s.deadline[p] <= clock {
			return true
		}
	}
	return false
}

// expire makes the session, which has left its delay list, due if something has
// waited MaxDelay. A Push may have taken it long since, and a later one may wait,
// with its own deadline.
func (s *Session) expire(p Priority, clock int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delayed &^= 1 << p
	if s.err == nil && s.state == sessionIdle && s.isDue(clock) {
		s.enqueue(clock)
	}
}

// An act is a call of a sink.
type act uint8

const (
	actNone  act = iota // nothing is due after all
	actPush             // Push a batch
	actLive             // Live
	actEnd              // none: end the session for the reason
	actClose            // Close for the reason
)

func (a act) String() string { return [...]string{"nothing", "Push", "Live", "end", "Close"}[a] }

// A delivery is what a pusher has to do for a session.
type delivery struct {
	act      act
	replayed bool               // the batch is from the history
	messages []*Message         // the batch
	counts   [NumPriorities]int // of messages
	reason   error              // of actEnd and actClose
}

// begin moves a queued session to running, and takes the next batch off the
// outbox, or out of the history, into p's buffer.
func (s *Session) begin(p *pusher, at int64) (d delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.out.counts()
	s.g.pool.oweAll(waiting, -1)
	s.state, s.since = sessionRunning, at
	if s.hold != nil && s.hold.lanes != 0 { // its own time begins to count, and there may be room when mu is free
		rouse(s.g.wake)
	}
	switch r := s.resume; {
	case s.err != nil:
		return delivery{act: actNone} // finish tells that it has ended
	case r != nil && r.replaying:
		r.before, r.caller, r.pushing = s.position(), p.id, true
		return s.replay(p)
	case s.announce:
		s.announce = false
		return delivery{act: actLive}
	case s.out.total == 0:
		return delivery{act: actNone}
	case r != nil:
		r.before, r.caller, r.pushing = s.position(), p.id, true
	}
	buf := p.room(min(s.out.total, s.g.cfg.BatchSize))
	d = delivery{act: actPush, messages: buf[:0], counts: s.turns.share(waiting, len(buf))}
	for lane, n := range d.counts {
		for range n {
			d.messages = append(d.messages, s.out.pop(Priority(lane)))
		}
	}
	return d
}

// failed says that Push has not taken its batch.
func (s *Session) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resume.pushed(false)
}

// finish moves a running session to idle, or to queued if more is due. If the
// session has ended it stays running, and finish returns the reason: then its
// sink is to be closed.
func (s *Session) finish() (reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resume.pushed(true)
	if s.err != nil {
		return s.err
	}
	s.state = sessionIdle
	held := s.hold != nil && s.hold.lanes != 0
	if s.out.total == 0 && !s.announce && !held && (s.resume == nil || !s.resume.replaying) {
		return nil
	}
	at := now()
	if held {
		s.hold.busy += time.Duration(max(at-max(s.since, s.hold.from), 0))
	}
	if s.isDue(at) {
		s.enqueue(at)
	}
	return nil
}

// end ends a session that lives, and reports whether it did: it is off the roster
// then, no Push begins, and what waited is dropped. orphaned says that there is
// no pusher that would close the sink: the caller must. It is counted for the
// reason that it counts as.
func (s *Session) end(reason, as error) (ended, orphaned bool) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return false, false
	}
	s.g.roster.remove(s, as)
	if s.resume != nil {
		s.resume.at.seqs = s.position()
		s.resume.replaying = false
	}
	counts := s.out.counts()
	if s.state == sessionQueued {
		s.g.pool.oweAll(counts, -1)
	}
	for p, n := range counts {
		for range n {
			s.out.pop(Priority(p))
		}
		s.g.lose(&s.g.droppedEnded[p], n)
	}
	s.err = reason
	if s.delayed != 0 {
		if first, _ := s.g.reader.ended.put(s); first {
			rouse(s.g.wake)
		}
	}
	if s.hold != nil && s.hold.lanes != 0 { // the reader must not wait for room here
		s.hold.lanes = 0
		rouse(s.g.wake)
	}
	switch s.state {
	case sessionRunning:
		s.g.pool.end(s, now())
	case sessionQueued:
		orphaned = s.g.pool.withdraw(s)
	case sessionIdle:
		if s.g.pool.addEnded(s, now()) {
			s.state = sessionQueued
		} else {
			orphaned = true
		}
	}
	if orphaned {
		s.state = sessionRunning
	}
	s.mu.Unlock()
	s.cancel(reason)
	return true, orphaned
}

// closed says that Sink.Close has returned.
func (s *Session) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = sessionClosed
	if s.done != nil {
		close(s.done)
	}
}

// slow is isSlow for the sweep.
func (s *Session) slow(clock int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && s.isSlow(clock)
}

// runs reports whether the sink of a living session is being called, and since
// when.
func (s *Session) runs() (since int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, s.err == nil && s.state == sessionRunning
}
