package notification

import (
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
	connected time.Time
	serial    uint64 // the order of registration, from 1
	ctx       context.Context
	cancel    context.CancelCauseFunc
	done      chan struct{}

	// guarded by Gateway.mu: its place among all sessions
	next, prev *Session

	// atomic
	filter  atomic.Uint32 // bit c for Channel c, everyChannel for no filter
	touched atomic.Bool   // Touch was called: being pushed to is no sign of life then
	heard   atomic.Int64  // the last sign of life, as now tells it

	// guarded by mu. A session is idle, queued (for a pusher) or running (in
	// Push, or its pusher is dealing with what Push returned). Once err is set
	// the outbox stays empty and the next pusher to see it closes the sink.
	mu       sync.Mutex
	out      outbox
	deadline [NumPriorities]int64 // when what came first into an empty lane has waited MaxDelay
	queued   bool
	running  bool
	patient  bool  // the reader has given the running Push its chance to return
	behind   int   // of what waits, how much is counted in Gateway.behind
	arrived  int   // since the running Push began
	slot     uint8 // of the batches, modulo 10, for the shares of the lanes
	err      error
	dropped  uint64

	// owned by the Gateway's reader: its places among the sessions that wait
	// for MaxDelay
	delays [NumPriorities]delayLink

	// guarded by dueQueue.mu
	due dueLink
}

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
func (s *Session) ConnectedAt() time.Time { return s.connected }

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
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session ended, nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// isDue reports whether what waits should be pushed now. s.mu is held.
func (s *Session) isDue(clock int64) bool {
	switch {
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
// returns none if the session has ended, or if nothing waits after all.
func (s *Session) begin(buf []*Message) (batch []*Message, counts [NumPriorities]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued = false
	s.g.caughtUp(s.behind)
	s.behind = 0
	if s.err != nil || s.out.total == 0 {
		return nil, counts
	}
	s.running, s.patient, s.arrived = true, false, 0
	counts = s.shares(len(buf))
	batch = buf[:0]
	for p, n := range counts {
		for range n {
			batch = append(batch, s.out.pop(Priority(p)))
		}
	}
	return batch, counts
}

// shares divides a batch of size slots among the lanes: to the highest lane
// that has something, but of every ten slots one to P1, one to P2 and one to
// P3, so that none of them waits for ever. The count of ten goes on from batch
// to batch, because a batch may be smaller than that. s.mu is held.
func (s *Session) shares(size int) (counts [NumPriorities]int) {
	var waiting [NumPriorities]int
	for p := range waiting {
		waiting[p] = s.out.lanes[p].n
	}
	if s.out.total <= size {
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
	n           int
	read, write int // the places in first and last
}

// A chunk fills the 256-byte size class.
type chunk struct {
	next     *chunk
	messages [31]*Message
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// push appends m to its lane and reports whether that was empty.
func (o *outbox) push(m *Message) (first bool) {
	l := &o.lanes[m.priority]
	if l.last == nil {
		l.first = chunks.Get().(*chunk)
		l.last, l.read, l.write = l.first, 0, 0
	} else if l.write == len(l.last.messages) {
		l.last.next = chunks.Get().(*chunk)
		l.last, l.write = l.last.next, 0
	}
	l.last.messages[l.write] = m
	l.write++
	l.n++
	o.total++
	return l.n == 1
}

// pop takes the oldest of a lane that is not empty.
func (o *outbox) pop(p Priority) *Message {
	l := &o.lanes[p]
	c := l.first
	m := c.messages[l.read]
	c.messages[l.read] = nil // a pooled chunk keeps nothing alive
	l.read++
	l.n--
	o.total--
	if l.n == 0 || l.read == len(c.messages) {
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
