package notification

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
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
	// of this user; zero: from now on. It needs GatewayConfig.HistoryMessages.
	After Cursor
	// Timeout is how long the session may stay silent; 0: the Gateway's
	// SessionTimeout; negative: for ever.
	Timeout time.Duration
}

// A Sink takes the batches of one session.
type Sink interface {
	// Push takes a batch: never empty, at most BatchSize messages, P0 first.
	// The slice is valid during the call, the messages for good. It may block;
	// there is one call at a time, and ctx ends when the session does. An error
	// ends the session with that error, and so does a panic, with ErrSinkPanic.
	Push(ctx context.Context, batch []*Message) error
	// Close is called once, after the last Push has returned, with the reason
	// for which the session ended.
	Close(reason error)
}

// SinkFunc is a Sink whose Close does nothing.
type SinkFunc func(ctx context.Context, batch []*Message) error

// Push calls f.
func (f SinkFunc) Push(ctx context.Context, batch []*Message) error { return f(ctx, batch) }

// Close does nothing.
func (f SinkFunc) Close(error) {}

// ChannelSink returns a Sink that sends each message to the channel, which it
// returns too and closes at the end; what was sent before can still be read.
// While the channel is full Push waits, and the session's outbox fills.
func ChannelSink(capacity int) (Sink, <-chan *Message) {
	ch := make(chan *Message, max(capacity, 0))
	return channelSink(ch), ch
}

type channelSink chan *Message

func (c channelSink) Push(ctx context.Context, batch []*Message) error {
	for _, m := range batch {
		select {
		case c <- m:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (c channelSink) Close(error) { close(c) }

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

	// guarded by Gateway.mu: its place among all sessions
	next, prev *Session

	// atomic
	filter  atomic.Uint32 // bit c for Channel c, everyChannel for no filter
	touched atomic.Bool   // Touch was called: being pushed to is no sign of life then
	heard   atomic.Int64  // the last sign of life, as now tells it

	// guarded by mu. A session is idle, queued (for a pusher) or running (in
	// Push, or its pusher is dealing with what Push returned). Once err is set
	// the outbox stays empty and the next pusher to see it closes the sink.
	mu        sync.Mutex
	out       outbox
	deadline  [NumPriorities]int64 // when what came first into an empty lane has waited MaxDelay; the reader writes it, and may read it without mu
	queued    bool
	running   bool
	doubt     doubt // of the running Push
	behind    int   // of what waits, how much is counted in Gateway.behind
	arrived   int   // since the running Push began
	pushes    uint32
	pushing   int32 // messages in the running Push
	abandoned int32 // of those, how many are counted in Gateway.abandoned
	slot      uint8 // of the batches, modulo 10, for the shares of the lanes
	err       error
	done      chan struct{} // made when somebody asks for it
	finished  bool          // Sink.Close has returned
	dropped   uint64
	resume    *resume // what is written here is guarded by mu; nil without HistoryMessages

	// owned by the Gateway's reader: its places among the sessions that wait
	// for MaxDelay
	delays [NumPriorities]delayLink

	// guarded by dueQueue.mu
	due dueLink
}

// doubt is what the reader thinks of a Push during which the outbox ran over.
type doubt uint8

const (
	trusted   doubt = iota
	suspected       // until its time is up
	convicted
)

// everyChannel is the bit of Session.filter that stands for all channels. No
// Channel is zero.
const everyChannel = 1

// allChannels has the bits of the channels.
const allChannels = 1<<numChannels - 2

// filterOf returns the bits of those channels that exist.
func filterOf(channels []Channel) (bits uint32) {
	for _, c := range channels {
		if c.valid() {
			bits |= 1 << c
		}
	}
	return bits
}

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

// Subscribe narrows a session that receives every channel to those named, and
// adds them to the others' filter. It decides on what reaches the outbox from
// now on. Values that are no channels are ignored.
func (s *Session) Subscribe(ch ...Channel) {
	if bits := filterOf(ch); bits != 0 {
		s.refilter(func(f uint32) uint32 { return f&^everyChannel | bits })
	}
}

// Unsubscribe takes channels away, from every channel too. With the last one
// gone nothing arrives.
func (s *Session) Unsubscribe(ch ...Channel) {
	if bits := filterOf(ch); bits != 0 {
		s.refilter(func(f uint32) uint32 {
			if f&everyChannel != 0 {
				f = allChannels
			}
			return f &^ bits
		})
	}
}

// SubscribeAll removes the filter.
func (s *Session) SubscribeAll() { s.filter.Store(everyChannel) }

func (s *Session) refilter(f func(uint32) uint32) {
	for {
		old := s.filter.Load()
		if s.filter.CompareAndSwap(old, f(old)) {
			return
		}
	}
}

// Subscriptions returns the channels that the filter admits, in the order of
// their declaration.
func (s *Session) Subscriptions() []Channel {
	subscriptions := []Channel{}
	for c := ChannelTrade; c < numChannels; c++ {
		if s.IsSubscribed(c) {
			subscriptions = append(subscriptions, c)
		}
	}
	return subscriptions
}

// IsSubscribed reports whether the filter admits ch.
func (s *Session) IsSubscribed(ch Channel) bool {
	return ch.valid() && admits(s.filter.Load(), ch)
}

func admits(filter uint32, ch Channel) bool { return filter&(everyChannel|1<<ch) != 0 }

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
		if s.finished {
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

// isDue reports whether what waits should be pushed now. s.mu is held.
func (s *Session) isDue(clock int64) bool {
	switch {
	case s.resume != nil && s.resume.replaying:
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

// begin fills buf with the next batch and marks the session running. It
// returns none if the session has ended, or if nothing waits after all, or, with
// ErrSlowConsumer, if what should be replayed next is no longer there.
func (s *Session) begin(buf []*Message) (b delivery, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued = false
	s.g.caughtUp(s.behind)
	s.behind = 0
	if s.err != nil {
		return b, nil
	}
	s.running, s.doubt, s.arrived = true, trusted, 0
	s.pushes++
	if s.resume != nil {
		s.resume.before = s.position()
	}
	if s.resume != nil && s.resume.replaying {
		b, err = s.replay(buf)
	} else {
		var waiting [NumPriorities]int
		for p := range waiting {
			waiting[p] = int(s.out.lanes[p].n)
		}
		b.counts = s.shares(waiting, len(buf))
		b.messages = buf[:0]
		for p, n := range b.counts {
			for range n {
				b.messages = append(b.messages, s.out.pop(Priority(p)))
			}
		}
	}
	s.pushing = int32(len(b.messages))
	return b, err
}

// A delivery is a batch for one Push.
type delivery struct {
	messages []*Message
	counts   [NumPriorities]int // of messages
	replayed bool               // from the history
}

// A resume is what a session of a Gateway with history has beside the others.
// It is guarded by Session.mu.
type resume struct {
	run       uint64                // of the Gateway, for the cursor
	at        [NumPriorities]uint64 // up to which number messages were replayed, offered or filtered away; at the end: the cursor
	before    [NumPriorities]uint64 // the cursor before the running Push
	failed    bool                  // that Push failed
	replaying bool                  // the next batch comes from the history
	counted   bool                  // in Gateway.replays
}

// position returns the numbers of the cursor behind the running Push, or else
// behind the last. s.mu is held.
func (s *Session) position() (numbers [NumPriorities]uint64) {
	r := s.resume
	if r.failed {
		return r.before
	}
	numbers = r.at
	for p := range s.out.lanes {
		if l := &s.out.lanes[p]; l.n > 0 { // the number before the first that waits
			numbers[p] = l.first.entries[l.read].number - 1
		}
	}
	return numbers
}

// replay is begin for a session that has not caught up with the history. The
// reader puts a message into the history first and offers it then, and we hold
// the locks of both histories: what it adds later, it offers to a session that
// takes it; what it added before and has yet to offer is not new then. s.mu is
// held.
func (s *Session) replay(buf []*Message) (b delivery, err error) {
	own, all, r := s.user.history, s.g.everyone, s.resume
	own.mu.Lock()
	defer own.mu.Unlock()
	all.mu.Lock()
	defer all.mu.Unlock()
	filter := s.filter.Load()
	var waiting [NumPriorities]int // up to a batch, and one to know that there is more
	for p := range waiting {
		if own.lost(p, filter, r.at[p]) || all.lost(p, filter, r.at[p]) {
			return b, ErrSlowConsumer
		}
		for e := range missed(&own.lanes[p], &all.lanes[p], r.at[p]) {
			if admits(filter, e.m.typ.Channel()) {
				if waiting[p]++; waiting[p] > len(buf) {
					break
				}
			}
		}
	}
	b = delivery{messages: buf[:0], counts: s.shares(waiting, len(buf)), replayed: true}
	more := false
	for p := range b.counts {
		left, whole := b.counts[p], true
		for e := range missed(&own.lanes[p], &all.lanes[p], r.at[p]) {
			if admits(filter, e.m.typ.Channel()) {
				if left == 0 {
					more, whole = true, false
					break
				}
				left--
				b.messages = append(b.messages, e.m)
			}
			r.at[p] = e.number
		}
		if whole { // over what was evicted, too, that the filter does not admit
			r.at[p] = s.g.numbers[p].Load()
		}
		s.g.replayed[p].Add(uint64(b.counts[p]))
	}
	if !more {
		s.g.endReplay(r)
	}
	return b, nil
}

// Cursor returns where the session has got to: behind the last batch that was
// taken, and while a Push runs, inside it above all, behind its batch. It is the
// zero Cursor if the Gateway keeps no history.
func (s *Session) Cursor() Cursor {
	if s.resume == nil {
		return Cursor{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return Cursor{run: s.resume.run, user: s.user.history.key, numbers: s.position()}
}

// A Cursor is a place in what a user gets from a Gateway: for each lane a
// number up to which everything was taken, or filtered away. It is bound to the
// Gateway, to the time since its start or last Gap, and to the user. Cursors
// compare with ==; the zero Cursor is no place.
type Cursor struct {
	run     uint64
	user    uint64
	numbers [NumPriorities]uint64
}

// cursorVersion is the first byte of a Cursor's text form.
const cursorVersion = 1

// String returns the text form: opaque, safe in URLs, at most 80 bytes, empty
// for the zero Cursor.
func (c Cursor) String() string {
	if c == (Cursor{}) {
		return ""
	}
	b := []byte{cursorVersion}
	b = binary.LittleEndian.AppendUint64(b, c.run)
	b = binary.LittleEndian.AppendUint64(b, c.user)
	for _, n := range c.numbers {
		b = binary.AppendUvarint(b, n)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads what String wrote; anything else is ErrInvalid.
func ParseCursor(s string) (Cursor, error) {
	var c Cursor
	if s == "" {
		return c, nil
	}
	bad := func() (Cursor, error) {
		return Cursor{}, fmt.Errorf("%w: cursor %q", ErrInvalid, clip(s))
	}
	if len(s) > 80 {
		return bad()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 17 || b[0] != cursorVersion {
		return bad()
	}
	c.run, c.user = binary.LittleEndian.Uint64(b[1:]), binary.LittleEndian.Uint64(b[9:])
	b = b[17:]
	for p := range c.numbers {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return bad()
		}
		c.numbers[p], b = v, b[n:]
	}
	if len(b) > 0 || c.String() != s { // one text for one cursor
		return bad()
	}
	return c, nil
}

// MarshalText is String.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseCursor.
func (c *Cursor) UnmarshalText(b []byte) error {
	v, err := ParseCursor(string(b))
	if err == nil {
		*c = v
	}
	return err
}

// shares divides a batch of size slots among the lanes: to the highest lane
// that has something, but of every ten slots one to P1, one to P2 and one to
// P3, so that none of them waits for ever. The count of ten goes on from batch
// to batch, because a batch may be smaller than that. s.mu is held.
func (s *Session) shares(waiting [NumPriorities]int, size int) (counts [NumPriorities]int) {
	if waiting[P0]+waiting[P1]+waiting[P2]+waiting[P3] <= size {
		return waiting
	}
	for range size {
		p := P0
		if s.slot >= 7 && waiting[s.slot-6] > 0 {
			p = Priority(s.slot - 6)
		}
		for waiting[p] == 0 {
			p++
		}
		waiting[p]--
		counts[p]++
		s.slot = (s.slot + 1) % 10
	}
	return counts
}

// An outbox is what waits for a session: four queues in chunks, none of which
// it holds on to when it is empty.
type outbox struct {
	lanes [NumPriorities]outboxLane
	total int
}

type outboxLane struct {
	first, last *chunk
	n           int32
	read, write uint8 // the places in first and last
}

// A chunk fills the 256-byte size class. The numbers are those of the history,
// zero without one.
type chunk struct {
	next    *chunk
	entries [15]numbered
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// push appends m to its lane and reports whether that was empty.
func (o *outbox) push(m *Message, number uint64) (first bool) {
	l := &o.lanes[m.priority]
	if l.last == nil {
		l.first = chunks.Get().(*chunk)
		l.last, l.read, l.write = l.first, 0, 0
	} else if int(l.write) == len(l.last.entries) {
		l.last.next = chunks.Get().(*chunk)
		l.last, l.write = l.last.next, 0
	}
	l.last.entries[l.write] = numbered{number, m}
	l.write++
	l.n++
	o.total++
	return l.n == 1
}

// pop takes the oldest of a lane that is not empty.
func (o *outbox) pop(p Priority) *Message {
	l := &o.lanes[p]
	c := l.first
	m := c.entries[l.read].m
	c.entries[l.read] = numbered{} // a pooled chunk keeps nothing alive
	l.read++
	l.n--
	o.total--
	if l.n == 0 || int(l.read) == len(c.entries) {
		if l.first, l.read = c.next, 0; l.first == nil {
			l.last = nil
		}
		c.next = nil
		chunks.Put(c)
	}
	return m
}

// lowest returns the lowest lane that is not empty.
func (o *outbox) lowest() Priority {
	p := P3
	for o.lanes[p].n == 0 {
		p--
	}
	return p
}

// A pusher is a goroutine that calls sinks.
type pusher struct {
	g     *Gateway
	shard *shard
	buf   []*Message
	turn  int // messages since the last yield
}

// startPusher starts a pusher that the due queue counts already. It ends when
// the queue tells it to, and Run waits for that unless it hangs in a sink.
func (g *Gateway) startPusher() {
	p := &pusher{g: g, shard: &g.shards[g.due.ticket()%len(g.shards)], buf: make([]*Message, g.cfg.BatchSize)}
	go p.run(nil)
}

// run serves sessions until the queue has no work for this pusher; served is
// the one that a Goexit interrupted.
func (p *pusher) run(served *Session) {
	for {
		s, rouse := p.g.due.next(served, p.g.cfg.Pushers)
		if rouse {
			p.g.rouse()
		}
		if s == nil {
			return
		}
		p.serve(s)
		served = s
	}
}

// serve pushes a batch of s, or closes its sink.
func (p *pusher) serve(s *Session) {
	b, err := s.begin(p.buf)
	if len(b.messages) == 0 {
		if err != nil {
			p.g.end(s, err)
		}
		p.rest(s)
		return
	}
	if !b.replayed { // its age says how long the client was away, not how late we are
		at := now()
		for _, m := range b.messages {
			p.shard.latency[m.priority].record(time.Duration(at - m.entered))
		}
	}
	err = p.push(s, b)
	p.pushed(s, b, err)
	clear(b.messages)
	if p.turn += len(b.messages); p.turn >= yieldEvery {
		p.turn = 0
		runtime.Gosched()
	}
}

// push calls the sink, whatever it does.
func (p *pusher) push(s *Session, b delivery) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		what := recover()
		err = p.wreck("Push", s, what)
		if what == nil { // Goexit: this goroutine is lost, the pusher is not
			p.buf = make([]*Message, len(p.buf))
			lost := err // captured itself, err would be on the heap for every Push
			go func() { // as startPusher's
				p.pushed(s, b, lost)
				p.run(s)
			}()
		}
	}()
	err = s.sink.Push(s.ctx, b.messages)
	returned = true
	return err
}

// wreck is the error for a call of a sink that did not return.
func (p *pusher) wreck(call string, s *Session, what any) error {
	if what == nil {
		what = "runtime.Goexit"
	}
	if muted, ok := p.g.panicked.begin(); ok {
		p.g.log.Error("sink panicked", "call", call, "session", s.id, "panic", what, "muted", muted, "stack", string(debug.Stack()))
	}
	return fmt.Errorf("%w: %s: %v", ErrSinkPanic, call, what)
}

// pushed deals with what Push returned. It does the accounting before the
// session is seen to be idle, so that at rest everything adds up.
func (p *pusher) pushed(s *Session, b delivery, err error) {
	g := p.g
	if err != nil {
		if s.resume != nil {
			s.mu.Lock()
			s.resume.failed = true
			s.mu.Unlock()
		}
		for lane, n := range b.counts {
			g.lose(&g.droppedEnd[lane], n)
		}
		if g.end(s, err) && !errors.Is(err, ErrSinkPanic) {
			g.log.Debug("session ended: sink failed", "session", s.id, "user", s.user.id, "error", err)
		}
	} else {
		for lane, n := range b.counts {
			if n > 0 {
				p.shard.taken[lane].Add(uint64(n))
			}
		}
		p.shard.batches.Add(1)
		if !s.touched.Load() {
			s.heard.Store(now())
		}
	}
	p.rest(s)
}

// rest ends the turn of s: closed if it has ended, else idle, or due again.
func (p *pusher) rest(s *Session) {
	s.mu.Lock()
	s.pushing = 0
	if s.abandoned > 0 { // it has come back after all
		p.g.abandoned.Add(-int64(s.abandoned))
		s.abandoned = 0
	}
	if s.err != nil {
		s.mu.Unlock()
		if p.g.life.closing() {
			p.g.rouse() // what was lost with it may have been the last it waits for
		}
		p.closeSink(s)
		return
	}
	s.running = false
	if (s.out.total > 0 || s.resume != nil && s.resume.replaying) && s.isDue(now()) {
		p.g.enqueue(s)
	}
	s.mu.Unlock()
	if p.g.life.closing() {
		p.g.rouse() // it waits for the last one
	}
}

// closeSink closes the sink of an ended session, once, whatever it does.
func (p *pusher) closeSink(s *Session) {
	if p.shard != nil { // a pusher, not an orphan's goroutine
		p.g.observe(s)
	}
	returned := false
	defer func() {
		if !returned {
			what := recover()
			p.wreck("Close", s, what)
			if what == nil && p.shard != nil {
				p.buf = make([]*Message, len(p.buf))
				go p.run(s) // as startPusher's
			}
		}
		s.mu.Lock()
		s.finished = true
		if s.done != nil {
			close(s.done)
		}
		s.mu.Unlock()
	}()
	s.sink.Close(s.Err())
	returned = true
}

// A dueQueue holds the sessions that are due, and the count of the pushers that
// take them. Its lock is held for some ten nanoseconds.
type dueQueue struct {
	mu      sync.Mutex
	cond    sync.Cond // of mu: a pusher is needed
	urgent  dueList   // guarded by mu: with a P0
	others  dueList   // guarded by mu: in the order in which they came due, and those to be closed
	limbo   dueList   // guarded by mu: ended while in user code, oldest first
	pool    int       // guarded by mu: pushers, without those left behind
	idle    int       // guarded by mu: of those, how many sleep
	started int       // guarded by mu: ever
	returns uint64    // guarded by mu: how often one came for more
	opened  bool      // guarded by mu: Run has begun
	closed  bool      // guarded by mu: pushers go when nothing is due
	watched bool      // guarded by mu: the reader knows that something waits
}

// dueLink is a session's place in one of the lists.
type dueLink struct {
	next, prev *Session
	in         *dueList
	at         int64 // limbo: when the session ended
	hung       bool  // its pusher has been left behind
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

func (q *dueQueue) init() { q.cond.L = &q.mu }

// open says that n pushers are about to be started.
func (q *dueQueue) open(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.opened = true
	q.pool = n
	q.cond.Broadcast()
}

// push reports whether there are pushers at all, and whether the reader should
// be roused to watch those that are busy.
func (q *dueQueue) push(s *Session, urgent bool) (ok, unwatched bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.opened {
		return false, false
	}
	if urgent {
		q.urgent.pushBack(s)
	} else {
		q.others.pushBack(s)
	}
	if q.idle > 0 {
		q.cond.Signal()
		return true, false
	}
	unwatched = !q.watched
	q.watched = true
	return true, unwatched
}

// promote moves s ahead if it is still waiting.
func (q *dueQueue) promote(s *Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.due.in == &q.others {
		q.others.remove(s)
		q.urgent.pushBack(s)
	}
}

// next takes the next session for a pusher, which has served the last one, and
// waits for one if need be. It returns none to a pusher that should end: one
// that was left behind, one more than keep that has nothing to do, or any once
// the queue is closed. rouse says that the reader should be roused.
func (q *dueQueue) next(served *Session, keep int) (s *Session, rouse bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.returns++
	if served != nil {
		if served.due.in == &q.limbo {
			q.limbo.remove(served)
		}
		if served.due.hung {
			return nil, true
		}
	}
	for {
		for _, l := range []*dueList{&q.urgent, &q.others} {
			if s = l.first; s != nil {
				l.remove(s)
				if q.urgent.n+q.others.n > 0 && q.idle == 0 && !q.watched {
					q.watched, rouse = true, true
				}
				return s, rouse
			}
		}
		if q.closed || q.idle >= keep {
			q.pool--
			return nil, q.closed
		}
		q.idle++
		q.cond.Wait()
		q.idle--
	}
}

// watch puts a session that ended while user code runs under observation, and
// reports whether it is the only one there.
func (q *dueQueue) watch(s *Session) (only bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.due.in == nil && !s.due.hung {
		s.due.at = now()
		q.limbo.pushBack(s)
		return q.limbo.n == 1
	}
	return false
}

// abandon gives up the pushers of sessions that ended at or before then and
// returns the sessions.
func (q *dueQueue) abandon(then int64) (left []*Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for s := q.limbo.first; s != nil && s.due.at <= then; s = q.limbo.first {
		q.limbo.remove(s)
		s.due.hung = true
		q.pool--
		left = append(left, s)
	}
	return left
}

// abandonAt is when abandon should be called next.
func (q *dueQueue) abandonAt(after int64) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.limbo.first == nil {
		return math.MaxInt64
	}
	return q.limbo.first.due.at + after
}

// waiting returns how many sessions wait while no pusher is idle, whether one
// of them has a P0, and how often a pusher has come back so far. The reader
// calls it and is then taken to watch.
func (q *dueQueue) waiting() (n int, urgent bool, returns uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = q.urgent.n + q.others.n
	if q.idle > 0 {
		n = 0
	}
	q.watched = n > 0
	return n, q.urgent.n > 0, q.returns
}

// grow counts up to n pushers more, and returns how many.
func (q *dueQueue) grow(n int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = max(n, 0)
	if q.pool == 0 { // all were left behind
		n = max(n, 1)
	}
	q.pool += n
	return n
}

// size returns how many pushers there are.
func (q *dueQueue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pool
}

// ticket numbers the pushers.
func (q *dueQueue) ticket() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.started++
	return q.started
}

// exhausted reports whether there are as many pushers as may be.
func (q *dueQueue) exhausted(most int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pool >= most && q.idle == 0
}

// empty reports whether nothing is due.
func (q *dueQueue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.urgent.n+q.others.n == 0
}

// close lets the pushers go once nothing is due, and reports whether some are
// still there.
func (q *dueQueue) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
	return q.pool > 0 || q.urgent.n+q.others.n > 0
}
