package notification

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v3"
)

const (
	// yieldEvery is after how many messages the two loops that can keep a core
	// busy, the dispatcher and a Gateway's reader, let others run: with every
	// core taken, a P0 would otherwise wait for a whole time slice of theirs,
	// 10 ms.
	yieldEvery = 64

	// straggle is how long a stopping Broker or Gateway waits for user code
	// (Gap, Push, Close) before it leaves it behind.
	straggle = time.Second
)

// BrokerConfig configures a Broker. The zero value is ready to use.
type BrokerConfig struct {
	// DedupSize is how many accepted IDs are remembered, default 10,000. Their
	// memory, some 64 bytes each beside the IDs, is taken by NewBroker.
	DedupSize int
	// QueueCapacity is how many messages each lane holds, exactly; default
	// 10,000, 50,000, 100,000 and 50,000. NewBroker takes 8 bytes for each.
	QueueCapacity [NumPriorities]int
	// RoundQuota is how many messages each of P1, P2 and P3 may have taken
	// before it is the next one's turn, and how many P0s may overtake each
	// message of those; default all, 1000, 100, 50. Negative: all that wait
	// when the turn comes.
	RoundQuota [NumPriorities]int
	// StallTimeout is how long, in sum since it was last half empty, a full
	// inbox lane may hold up the dispatcher before its receiver is stuck;
	// default 1 s.
	StallTimeout time.Duration
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger
}

func (c *BrokerConfig) setDefaults() error {
	c.DedupSize = cmp.Or(c.DedupSize, 10_000)
	if c.DedupSize < 0 || c.DedupSize > 1<<30 {
		return fmt.Errorf("%w: DedupSize %d is not within 1 and 2^30", ErrInvalid, c.DedupSize)
	}
	for p := range c.QueueCapacity {
		c.QueueCapacity[p] = cmp.Or(c.QueueCapacity[p], [...]int{10_000, 50_000, 100_000, 50_000}[p])
		if c.QueueCapacity[p] < 0 {
			return fmt.Errorf("%w: QueueCapacity[%s] %d is negative", ErrInvalid, Priority(p), c.QueueCapacity[p])
		}
		c.RoundQuota[p] = cmp.Or(c.RoundQuota[p], [...]int{-1, 1000, 100, 50}[p])
	}
	c.StallTimeout = cmp.Or(c.StallTimeout, time.Second)
	if c.StallTimeout < 0 {
		return fmt.Errorf("%w: StallTimeout %s is negative", ErrInvalid, c.StallTimeout)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// A Receiver takes what the Broker routes to it, as a Gateway does: a bridge to
// another process, say. It must take from all four channels, P0 first.
type Receiver interface {
	// ID is unique among the gateways and receivers of a Broker.
	ID() string
	// Inbox returns the channels, none of them nil, always the same.
	Inbox() Inbox
	// Gap says that the receiver was stuck and messages for it are being
	// dropped: whoever is behind it must learn that something is missing. It is
	// called once per episode and lane, on a goroutine of its own and never
	// twice at once.
	Gap()
}

// An Inbox holds a channel for each lane, so that a P0 never stands behind
// anything else. Their capacity is the receiver's to choose.
type Inbox [NumPriorities]chan<- *Message

// Overflow says what happens to a message for a global subscriber whose channel
// is full.
type Overflow uint8

const (
	// DropNewest drops it and counts; nobody is ever delayed. For monitoring.
	DropNewest Overflow = iota
	// Wait lets the dispatcher wait, on a budget of StallTimeout as for
	// receivers. For storage.
	Wait
)

// A receiver is what the dispatcher knows of a gateway, a receiver or a global
// subscriber.
type receiver struct {
	// immutable after newReceiver
	id       string
	inbox    Inbox
	global   bool
	overflow Overflow
	gap      func()        // nil for global subscribers
	gateway  *Gateway      // nil for others
	sole     [4][]target   // the routes of users that have this receiver alone, by target.why
	gone     chan struct{} // closed by leave: breaks off a hand-over
	quiet    chan struct{} // closed by the dispatcher when it has broken one off

	// guarded by Broker.regMu
	explicit map[string]struct{} // users that Subscribe routed here

	// owned by run
	nested int                          // hand-overs in progress: a P0's may run inside another one's wait
	spent  [NumPriorities]time.Duration // of the budget; a global subscriber has one channel and uses the first

	// atomic
	state   atomic.Int32 // idle, sending, leaving, gone
	stuck   [NumPriorities]atomic.Bool
	gaps    atomic.Int32 // calls of gap that are due or running
	handed  tally
	dropped tally
}

// The states of a receiver. The dispatcher moves it between idle and sending;
// leave makes idle gone, or sending leaving, which the dispatcher makes gone.
const (
	receiverIdle int32 = iota
	receiverSending
	receiverLeaving
	receiverGone
)

// A target is a receiver of a user's messages, and why it is.
type target struct {
	r   *receiver
	why uint8
}

const (
	subscribed uint8 = 1 << iota // by Subscribe
	held                         // the Gateway has a session of the user, or history
)

func newReceiver(id string, inbox Inbox) *receiver {
	r := &receiver{
		id: id, inbox: inbox,
		gone: make(chan struct{}), quiet: make(chan struct{}),
		explicit: make(map[string]struct{}),
	}
	for why := range r.sole {
		r.sole[why] = []target{{r, uint8(why)}}
	}
	return r
}

// enter begins a hand-over and reports false if the receiver has left.
func (r *receiver) enter() bool {
	if r.nested == 0 && !r.state.CompareAndSwap(receiverIdle, receiverSending) {
		return false
	}
	r.nested++
	return true
}

func (r *receiver) exit() {
	if r.nested--; r.nested == 0 && !r.state.CompareAndSwap(receiverSending, receiverIdle) {
		r.state.Store(receiverGone)
		close(r.quiet)
	}
}

// leave returns when the dispatcher sends nothing more to r, which it breaks
// off if need be. It is called once.
func (r *receiver) leave() {
	close(r.gone)
	for !r.state.CompareAndSwap(receiverIdle, receiverGone) {
		if r.state.CompareAndSwap(receiverSending, receiverLeaving) {
			<-r.quiet
			return
		}
	}
}

// A Broker accepts notifications, each once, and routes them to gateways,
// receivers and global subscribers. NewBroker makes one.
//
// One goroutine, that of Run, takes messages off the lanes and hands them over.
// Whoever publishes wakes it; idle it uses no CPU.
type Broker struct {
	// immutable after NewBroker
	cfg   BrokerConfig
	log   *slog.Logger
	lanes [NumPriorities]*queue // producers hold mu, run is the consumer
	full  [NumPriorities]error  // what a full lane answers, made once: a flood of it must be cheap
	life  *lifecycle
	wake  chan struct{} // cap 1: run sleeps on it

	// mu is admission: to see that an ID is new, find room, queue and remember
	// is one step, and so is to close. Held for some 100 ns, never while
	// waiting; no other lock is taken under it.
	mu        sync.Mutex
	closed    bool                     // guarded by mu
	seen      *dedup                   // guarded by mu
	waiters   [NumPriorities]list.List // guarded by mu: of *waiter
	published [NumPriorities]uint64    // guarded by mu
	rejected  [NumPriorities]uint64    // guarded by mu
	repeated  uint64                   // guarded by mu
	refused   uint64                   // guarded by mu

	// regMu guards every change of the tables below. Lock order: Gateway.mu
	// before regMu. The dispatcher reads the tables without it.
	regMu     sync.Mutex
	receivers map[string]*receiver // guarded by regMu: gateways and receivers
	globals   map[string]*receiver // guarded by regMu
	departed  ReceiverStats        // guarded by regMu
	leaving   map[*receiver]bool   // guarded by regMu: off their table, not yet in departed

	// atomic
	invalid  atomic.Uint64
	waiting  [NumPriorities]atomic.Int32 // the lengths of waiters, for run to look at
	state    atomic.Int32                // running, parked, blocked: who must ring wake
	everyone atomic.Pointer[[]*receiver] // receivers, copied on write
	globally atomic.Pointer[[]*receiver] // globals, copied on write
	users    *xsync.MapOf[string, []target]

	// written by run alone, atomic
	routed, unrouted, discarded [NumPriorities]tally
	latency                     [NumPriorities]recorder

	// owned by run
	turn   int // messages since the last yield
	timer  *time.Timer
	gapsWG sync.WaitGroup
}

// The states of the dispatcher. Whoever pushes a message and finds it parked
// makes it running and rings; while it is blocked on a full inbox only a P0
// does. The dispatcher looks at the lanes once more after it has said that it
// parks, so that either it sees the message or the publisher sees it parked.
const (
	dispatcherRunning int32 = iota
	dispatcherParked
	dispatcherBlocked
)

// NewBroker returns a Broker that takes notifications at once and delivers
// them when Run is called. A value of cfg that cannot be is ErrInvalid.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	b := &Broker{
		cfg: cfg, log: cfg.Logger,
		life:      newLifecycle(),
		wake:      make(chan struct{}, 1),
		seen:      newDedup(cfg.DedupSize),
		receivers: make(map[string]*receiver),
		globals:   make(map[string]*receiver),
		leaving:   make(map[*receiver]bool),
		users:     xsync.NewMapOf[string, []target](),
	}
	for p := range b.lanes {
		b.lanes[p] = newQueue(cfg.QueueCapacity[p])
		b.full[p] = fmt.Errorf("%w: lane %s holds %d", ErrQueueFull, Priority(p), cfg.QueueCapacity[p])
	}
	b.everyone.Store(new([]*receiver))
	b.globally.Store(new([]*receiver))
	return b, nil
}

// Publish accepts n exactly once and takes ownership of it: neither n nor what
// it points to may change afterwards. It never blocks. Nil means that n is in
// its lane, or that one with its ID is among the last DedupSize accepted.
// Otherwise the error is ErrInvalid, ErrClosed or ErrQueueFull, and nothing was
// remembered: a retry with the same ID is a first publish.
func (b *Broker) Publish(n *Notification) error {
	m, err := b.message(n)
	if err != nil {
		return err
	}
	h := b.seen.hash(n.ID)
	b.mu.Lock()
	done, err := b.tryAccept(m, h)
	if !done {
		b.rejected[m.priority]++
		err = b.full[m.priority]
	}
	b.mu.Unlock()
	b.ring(m.priority)
	return err
}

// PublishWait is Publish that waits for room in the lane. Waiters of a lane are
// served in the order of their calls and before later calls of Publish. It ends
// with ctx's error, counted as Rejected, or with ErrClosed when Shutdown begins;
// ctx bounds the waiting only, and is not looked at if there is room.
func (b *Broker) PublishWait(ctx context.Context, n *Notification) error {
	m, err := b.message(n)
	if err != nil {
		return err
	}
	p := m.priority
	w := &waiter{m: m, hash: b.seen.hash(n.ID), done: make(chan struct{})}
	b.mu.Lock()
	done, err := b.tryAccept(m, w.hash)
	if !done {
		pauseAt(joining)
		w.elem = b.waiters[p].PushBack(w)
		// The dispatcher looks at waiting after it has made room. Either it sees
		// this or the second look sees the room; without it a waiter that came
		// between the two would be stranded in a lane that has just run empty.
		b.waiting[p].Add(1)
		b.admit(p)
	}
	b.mu.Unlock()
	b.ring(p)
	if done {
		return err
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.elem == nil { // served while ctx ended: the message is in
		return w.err
	}
	b.serve(w, nil)
	b.rejected[p]++
	return ctx.Err()
}

// A waiter is a PublishWait that found its lane full.
type waiter struct {
	m    *Message
	hash uint32
	done chan struct{} // closed when served, after err is set

	elem *list.Element // guarded by mu: nil once served
	err  error         // guarded by mu, then by done
}

// message checks n and makes the Message of it.
func (b *Broker) message(n *Notification) (*Message, error) {
	t, err := n.check()
	if err != nil {
		b.invalid.Add(1)
		return nil, err
	}
	return newMessage(n, t, now()), nil
}

// tryAccept is the one step: refuse, or recognize, or queue and remember. It
// reports false, having changed nothing, if there is no room. b.mu is held.
func (b *Broker) tryAccept(m *Message, h uint32) (done bool, err error) {
	p := m.priority
	if b.closed {
		b.refused++
		return true, ErrClosed
	}
	if b.seen.has(h, m.n.ID) {
		b.repeated++
		return true, nil
	}
	if b.waiting[p].Load() > 0 {
		if b.admit(p); b.waiting[p].Load() > 0 {
			return false, nil
		}
	}
	if !b.lanes[p].tryPush(m) {
		return false, nil
	}
	b.seen.add(h, m.n.ID, m.entered)
	b.published[p]++
	return true, nil
}

// admit serves the waiters of a lane as far as there is room. b.mu is held.
func (b *Broker) admit(p Priority) {
	for e := b.waiters[p].Front(); e != nil; e = b.waiters[p].Front() {
		w := e.Value.(*waiter)
		switch {
		case b.closed:
			b.refused++
			b.serve(w, ErrClosed)
		case b.seen.has(w.hash, w.m.n.ID): // somebody else's retry came first
			b.repeated++
			b.serve(w, nil)
		case b.lanes[p].tryPush(w.m):
			b.seen.add(w.hash, w.m.n.ID, w.m.entered)
			b.published[p]++
			b.serve(w, nil)
		default:
			return
		}
	}
}

// serve takes w off its list with this result. b.mu is held.
func (b *Broker) serve(w *waiter, err error) {
	b.waiters[w.m.priority].Remove(w.elem)
	b.waiting[w.m.priority].Add(-1)
	w.elem, w.err = nil, err
	close(w.done)
}

// ring wakes the dispatcher if it sleeps and cares for this lane.
func (b *Broker) ring(p Priority) {
	s := b.state.Load()
	if s == dispatcherParked || s == dispatcherBlocked && p == P0 {
		if b.state.CompareAndSwap(s, dispatcherRunning) {
			b.rouse()
		}
	}
}

func (b *Broker) rouse() {
	select {
	case b.wake <- struct{}{}:
	default: // it has been told
	}
}

// RegisterGateway routes the users of g's sessions, present and future, to g.
// It is ErrReceiverExists if g's ID is taken, ErrInvalid if g belongs to another
// Broker, ErrClosed if either is shutting down.
func (b *Broker) RegisterGateway(g *Gateway) error {
	if g == nil {
		return fmt.Errorf("%w: Gateway is nil", ErrInvalid)
	}
	r := newReceiver(g.id, g.Inbox())
	r.gap, r.gateway = g.Gap, g
	return g.attach(b, r)
}

// RegisterReceiver adds a receiver, to which Subscribe then routes users. It is
// ErrInvalid if r's ID cannot be or a channel is nil, ErrReceiverExists if its
// ID is taken, ErrClosed if the Broker is shutting down.
func (b *Broker) RegisterReceiver(r Receiver) error {
	if g, ok := r.(*Gateway); ok {
		return b.RegisterGateway(g)
	}
	if r == nil {
		return fmt.Errorf("%w: Receiver is nil", ErrInvalid)
	}
	id, inbox := r.ID(), r.Inbox() // user code: before the lock
	if err := checkID("receiver ID", id); err != nil {
		return err
	}
	for p, ch := range inbox {
		if ch == nil {
			return fmt.Errorf("%w: Inbox[%s] of receiver %q is nil", ErrInvalid, Priority(p), id)
		}
	}
	n := newReceiver(id, inbox)
	n.gap = r.Gap
	b.regMu.Lock()
	defer b.regMu.Unlock()
	return b.addLocked(n)
}

// addLocked puts a receiver or global subscriber into its table. b.regMu is
// held.
func (b *Broker) addLocked(r *receiver) error {
	if b.life.closing() {
		return fmt.Errorf("%w: no more receivers", ErrClosed)
	}
	table := b.receivers
	if r.global {
		table = b.globals
	}
	if table[r.id] != nil {
		return fmt.Errorf("%w: %q", ErrReceiverExists, r.id)
	}
	table[r.id] = r
	b.publishTable(r.global)
	return nil
}

// publishTable shows a changed table to the dispatcher. b.regMu is held.
func (b *Broker) publishTable(global bool) {
	table, to := b.receivers, &b.everyone
	if global {
		table, to = b.globals, &b.globally
	}
	all := make([]*receiver, 0, len(table))
	for _, r := range table {
		all = append(all, r)
	}
	slices.SortFunc(all, func(x, y *receiver) int { return strings.Compare(x.id, y.id) })
	to.Store(&all)
}

// Unregister removes a gateway or receiver and every route to it. When it
// returns nothing more is sent there and the channels may be closed; a
// hand-over in progress was broken off and counted as Dropped. The sessions of a
// Gateway live on: if anything may have been published for them before it is
// registered again, call its Gap; its cursors are void in any case. It is
// ErrUnknownReceiver if there is none.
func (b *Broker) Unregister(id string) error {
	b.regMu.Lock()
	r := b.receivers[id]
	if r != nil && r.gateway == nil {
		b.dropRoutes(r)
		b.regMu.Unlock()
	} else {
		b.regMu.Unlock()
		// A Gateway's lock comes first, so that its sessions and their routes
		// agree; whether it is still there must then be asked again.
		if r == nil || !r.gateway.detach(b, r) {
			return fmt.Errorf("%w: %q", ErrUnknownReceiver, id)
		}
	}
	b.depart(r)
	return nil
}

// dropRoutes takes r off its table and the routes that Subscribe made.
// b.regMu is held.
func (b *Broker) dropRoutes(r *receiver) {
	delete(b.receivers, r.id)
	b.leaving[r] = true
	b.publishTable(false)
	for u := range r.explicit {
		b.reroute(u, r, 0, subscribed)
	}
}

// depart waits until nothing more is sent to r, which is off its table, and
// keeps its sums.
func (b *Broker) depart(r *receiver) {
	r.leave()
	b.regMu.Lock()
	defer b.regMu.Unlock()
	delete(b.leaving, r)
	b.departed.add(r)
}

// Subscribe routes a user's messages to a gateway or receiver, whether or not
// the user has a session there. To do it again changes nothing. It is
// ErrInvalid for a user ID that cannot be, ErrUnknownReceiver if there is no
// such receiver.
func (b *Broker) Subscribe(userID, receiverID string) error {
	return b.subscribe(userID, receiverID, subscribed, 0)
}

// Unsubscribe undoes Subscribe; a user that has sessions at the Gateway stays
// routed there. It is nil if there was nothing to undo, ErrUnknownReceiver if
// there is no such receiver.
func (b *Broker) Unsubscribe(userID, receiverID string) error {
	return b.subscribe(userID, receiverID, 0, subscribed)
}

func (b *Broker) subscribe(userID, receiverID string, add, remove uint8) error {
	if err := checkUser("UserID", userID); err != nil {
		return err
	}
	b.regMu.Lock()
	defer b.regMu.Unlock()
	r := b.receivers[receiverID]
	if r == nil {
		return fmt.Errorf("%w: %q", ErrUnknownReceiver, receiverID)
	}
	b.reroute(userID, r, add, remove)
	return nil
}

// reroute changes why userID is routed to r: not at all, once nothing is left.
// b.regMu is held.
func (b *Broker) reroute(userID string, r *receiver, add, remove uint8) {
	old, _ := b.users.Load(userID)
	at := slices.IndexFunc(old, func(t target) bool { return t.r == r })
	var was uint8
	if at >= 0 {
		was = old[at].why
	}
	why := was&^remove | add
	if why == was {
		return
	}
	if why&subscribed != 0 {
		r.explicit[userID] = struct{}{}
	} else {
		delete(r.explicit, userID)
	}
	targets := slices.DeleteFunc(slices.Clone(old), func(t target) bool { return t.r == r })
	if why != 0 {
		targets = append(targets, target{r, why})
	}
	switch len(targets) {
	case 0:
		b.users.Delete(userID)
	case 1: // nearly every user: the slice is shared, and stays in the cache
		b.users.Store(userID, targets[0].r.sole[targets[0].why])
	default:
		b.users.Store(userID, targets)
	}
}

// SubscribeGlobal sends every message of every user to ch, after the user's own
// receivers; overflow says what happens when ch is full. IDs are unique among
// global subscribers: ErrReceiverExists. A nil channel is ErrInvalid.
func (b *Broker) SubscribeGlobal(id string, ch chan<- *Message, overflow Overflow) error {
	if err := checkID("subscriber ID", id); err != nil {
		return err
	}
	if ch == nil {
		return fmt.Errorf("%w: channel of global subscriber %q is nil", ErrInvalid, id)
	}
	if overflow > Wait {
		return fmt.Errorf("%w: Overflow %d of global subscriber %q is unknown", ErrInvalid, overflow, id)
	}
	r := newReceiver(id, Inbox{ch, ch, ch, ch})
	r.global, r.overflow = true, overflow
	b.regMu.Lock()
	defer b.regMu.Unlock()
	return b.addLocked(r)
}

// UnsubscribeGlobal removes a global subscriber. When it returns nothing more
// is sent to its channel, which may be closed; a hand-over in progress was
// broken off and counted as Dropped. It is ErrUnknownReceiver if there is none.
func (b *Broker) UnsubscribeGlobal(id string) error {
	b.regMu.Lock()
	r := b.globals[id]
	if r == nil {
		b.regMu.Unlock()
		return fmt.Errorf("%w: global subscriber %q", ErrUnknownReceiver, id)
	}
	delete(b.globals, id)
	b.leaving[r] = true
	b.publishTable(true)
	b.regMu.Unlock()
	b.depart(r)
	return nil
}

// Run delivers until Shutdown has drained the Broker, and returns nil then, or
// until ctx ends, and returns its cause; what is queued at that moment is
// counted as Discarded. A second Run is ErrRunning, one after the end ErrClosed.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.life.start(); err != nil {
		return err
	}
	b.timer = time.NewTimer(time.Hour)
	b.timer.Stop()
	defer b.timer.Stop()
	unwatch := context.AfterFunc(ctx, func() { b.life.cut(context.Cause(ctx)); b.rouse() })
	defer unwatch()

	b.log.Info("broker running")
	for !b.life.stopped() {
		before := b.turn
		b.round()
		if b.turn == before && b.drained() {
			break
		}
		if b.turn == before {
			b.park()
		}
	}
	b.refuse()
	b.settle()

	// Gap is user code: a call of it that hangs must not keep Run.
	gone := make(chan struct{})
	go func() { b.gapsWG.Wait(); close(gone) }() // ends with the last Gap
	select {
	case <-gone:
	case <-time.After(straggle):
		b.log.Error("broker left a call of Receiver.Gap behind", "waited", straggle)
	}
	b.log.Info("broker stopped", "lost", b.life.lost.Load())
	return b.life.finish()
}

// drained reports whether Shutdown has begun and nothing is left. closed is set
// before life says that it drains, and nothing is accepted after closed.
func (b *Broker) drained() bool {
	if !b.life.closing() {
		return false
	}
	for _, q := range b.lanes {
		if q.len() > 0 {
			return false
		}
	}
	return true
}

// refuse makes every Publish from now on ErrClosed, and those that wait too.
func (b *Broker) refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for p := range b.waiters {
		b.admit(Priority(p))
	}
}

// settle counts what is left in the lanes as discarded. Only run calls it, or
// Shutdown if there never was and never will be a run.
func (b *Broker) settle() {
	for p, q := range b.lanes {
		for q.pop() != nil {
			b.discarded[p].inc()
			b.life.lost.Add(1)
		}
	}
	b.life.settle()
}

// Shutdown refuses new work, delivers what was accepted and returns nil if all
// of it was handed over. If ctx ends first, it stops at once, counts what is
// left as Discarded and returns ctx's error. Otherwise, if something was
// dropped or discarded, the error wraps ErrClosed. It may be called any number
// of times; before Run it discards what is queued, and Run is ErrClosed.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.refuse()
	pauseAt(closing)
	if b.life.shut() {
		b.settle()
		b.life.finish()
	}
	b.rouse()
	return b.life.wait(ctx, b.rouse)
}

// round gives each of P1, P2 and P3 its turn, with P0 looked at before every
// message of theirs.
func (b *Broker) round() {
	for p := P1; p <= P3; p++ {
		quota := b.cfg.RoundQuota[p]
		if quota < 0 {
			quota = b.lanes[p].len()
		}
		for range quota {
			b.urgent()
			if b.life.stopped() || !b.take(p) {
				break
			}
		}
	}
	b.urgent()
}

// urgent takes what has arrived in P0.
func (b *Broker) urgent() {
	quota := b.cfg.RoundQuota[P0]
	if quota < 0 {
		quota = math.MaxInt
	}
	for range quota {
		if b.life.stopped() || !b.take(P0) {
			return
		}
	}
}

// take delivers the next message of a lane, if there is one.
func (b *Broker) take(p Priority) bool {
	m := b.lanes[p].pop()
	if m == nil {
		return false
	}
	if b.waiting[p].Load() > 0 {
		b.mu.Lock()
		b.admit(p)
		b.mu.Unlock()
	}
	b.deliver(m)
	if b.turn++; b.turn%yieldEvery == 0 {
		runtime.Gosched()
	}
	return true
}

// park sleeps until something is published, or the end begins.
func (b *Broker) park() {
	b.state.Store(dispatcherParked)
	pauseAt(parking)
	for _, q := range b.lanes {
		if q.len() > 0 {
			b.state.Store(dispatcherRunning)
			return
		}
	}
	if !b.life.stopped() && !b.drained() {
		<-b.wake
	}
	b.state.Store(dispatcherRunning)
}

// deliver hands m to its user's receivers, then to the global subscribers.
func (b *Broker) deliver(m *Message) {
	p := m.priority
	if m.n.UserID == AllUsers {
		all := *b.everyone.Load()
		b.count(p, len(all))
		for _, r := range all {
			b.hand(r, m)
		}
	} else {
		targets, _ := b.users.Load(m.n.UserID)
		b.count(p, len(targets))
		for _, t := range targets {
			b.hand(t.r, m)
		}
	}
	for _, r := range *b.globally.Load() {
		b.hand(r, m)
	}
	b.latency[p].record(time.Duration(now() - m.entered))
}

func (b *Broker) count(p Priority, targets int) {
	if targets > 0 {
		b.routed[p].inc()
	} else {
		b.unrouted[p].inc()
	}
}

// hand sends m to r, within r's budget, and counts what came of it.
func (b *Broker) hand(r *receiver, m *Message) {
	if !r.enter() { // it left between the look-up and now
		b.regMu.Lock()
		b.departed.Dropped++
		b.regMu.Unlock()
		b.life.lose()
		return
	}
	if b.send(r, m) {
		r.handed.inc()
	} else {
		r.dropped.inc()
		b.life.lose()
		// Sessions that came after the last Gap have not been told yet.
		if r.gateway != nil && r.gateway.fresh.Load() && r.gateway.fresh.CompareAndSwap(true, false) {
			b.callGap(r)
		}
	}
	r.exit()
}

// send reports whether it could hand m to r.
func (b *Broker) send(r *receiver, m *Message) bool {
	ch, lane := r.inbox[m.priority], m.priority
	if r.global {
		lane = 0
	}
	half := len(ch) <= cap(ch)/2
	if r.stuck[lane].Load() && !b.life.closing() && (!half || r.gaps.Load() > 0) {
		return false
	}
	select {
	case ch <- m:
		if half && r.spent[lane] != 0 {
			r.spent[lane] = 0
		}
		b.recovered(r, m, lane)
		return true
	default:
	}
	if r.overflow == DropNewest && r.global {
		return false
	}
	if r.stuck[lane].Load() && !b.life.closing() {
		return false
	}
	return b.sendWait(r, m, ch, lane)
}

// recovered ends an episode, if there is one, now that m got through.
func (b *Broker) recovered(r *receiver, m *Message, lane Priority) {
	if r.stuck[lane].Load() {
		r.stuck[lane].Store(false)
		b.log.Info("receiver recovered", "receiver", r.id, "global", r.global, "lane", m.priority, "dropped", r.dropped.value())
	}
}

// sendWait waits for room in ch as long as r's budget lasts, or, once the Broker
// drains, as long as Shutdown's ctx does. Unless m is a P0 itself, what arrives
// in P0 is delivered meanwhile.
func (b *Broker) sendWait(r *receiver, m *Message, ch chan<- *Message, lane Priority) bool {
	for {
		if m.priority != P0 {
			b.state.Store(dispatcherBlocked)
			for b.lanes[P0].len() > 0 && !b.life.stopped() {
				b.state.Store(dispatcherRunning)
				b.urgent()
				b.state.Store(dispatcherBlocked)
			}
		}
		var spent <-chan time.Time
		if !b.life.closing() { // Shutdown rings wake, to take the budget away
			left := b.cfg.StallTimeout - r.spent[lane]
			if left <= 0 {
				b.state.Store(dispatcherRunning)
				return b.judge(r, m, ch, lane)
			}
			b.timer.Reset(left)
			spent = b.timer.C
		}
		since := now()
		sent, over := false, false
		select {
		case ch <- m:
			sent = true
		case <-r.gone:
			over = true
		case <-b.life.stopping:
			over = true
		case <-b.wake:
		case <-spent:
		}
		b.timer.Stop()
		b.state.Store(dispatcherRunning)
		r.spent[lane] += time.Duration(now() - since)
		if sent { // a drain waits for those that were stuck too
			b.recovered(r, m, lane)
		}
		if sent || over {
			return sent
		}
	}
}

// judge has the last word on a receiver whose budget is spent.
func (b *Broker) judge(r *receiver, m *Message, ch chan<- *Message, lane Priority) bool {
	select {
	case ch <- m:
		return true
	default:
	}
	r.stuck[lane].Store(true)
	b.log.Warn("receiver is stuck, dropping what is for it", "receiver", r.id, "global", r.global, "lane", m.priority, "budget", b.cfg.StallTimeout)
	if r.gap != nil {
		if r.gateway != nil {
			r.gateway.fresh.Store(false)
		}
		b.callGap(r)
	}
	return false
}

// callGap calls r.gap on a goroutine of its own, one call after the other.
func (b *Broker) callGap(r *receiver) {
	if r.gaps.Add(1) > 1 {
		return // the goroutine that runs will
	}
	b.gapsWG.Add(1)
	go func() { // ends with the last call; Run waits for it, for a while
		defer b.gapsWG.Done()
		for {
			b.gapOnce(r)
			if r.gaps.Add(-1) == 0 {
				return
			}
		}
	}()
}

func (b *Broker) gapOnce(r *receiver) {
	defer func() {
		if v := recover(); v != nil {
			b.log.Error("Receiver.Gap panicked", "receiver", r.id, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r.gap()
}

// Stats returns a snapshot. It takes some microseconds and a short lock that
// Publish takes too.
func (b *Broker) Stats() BrokerStats {
	var s BrokerStats
	b.mu.Lock()
	for p := range s.Lanes {
		s.Lanes[p].Published, s.Lanes[p].Rejected = b.published[p], b.rejected[p]
	}
	s.Deduplicated, s.RefusedClosed = b.repeated, b.refused
	if at, ok := b.seen.oldest(); ok {
		s.DedupSpan = time.Duration(now() - at)
	}
	b.mu.Unlock()
	s.Invalid = b.invalid.Load()
	for p := range s.Lanes {
		l := &s.Lanes[p]
		l.Queued, l.Capacity = b.lanes[p].len(), b.cfg.QueueCapacity[p]
		l.Routed, l.Unrouted, l.Discarded = b.routed[p].value(), b.unrouted[p].value(), b.discarded[p].value()
		l.Latency = b.latency[p].snapshot()
	}
	s.Users = b.users.Size()

	b.regMu.Lock()
	defer b.regMu.Unlock()
	for _, table := range []map[string]*receiver{b.receivers, b.globals} {
		for _, r := range table {
			rs := ReceiverStats{ID: r.id, Global: r.global, Handed: r.handed.value(), Dropped: r.dropped.value()}
			for p, ch := range r.inbox {
				// It may have recovered since the last message for it. A channel
				// without a buffer does not tell.
				drained := cap(ch) > 0 && len(ch) <= cap(ch)/2
				rs.Stuck = rs.Stuck || r.stuck[p].Load() && !drained
			}
			s.Receivers = append(s.Receivers, rs)
		}
	}
	slices.SortFunc(s.Receivers, func(x, y ReceiverStats) int { return strings.Compare(x.ID, y.ID) })
	s.Departed = b.departed
	for r := range b.leaving {
		s.Departed.add(r)
	}
	return s
}

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
	stop     atomic.Bool   // stopping is closed, for loops to look at
	shutting atomic.Bool   // draining is closed or Run has been cut short
	lost     atomic.Uint64 // discarded or dropped since shutting
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
	return nil
}

// shut begins the drain. It reports true, once, if there is nothing running
// that would do it: the caller settles and finishes.
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

// wait is the end of Shutdown: until all is done, or ctx ends and cuts it short.
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

func (l *lifecycle) settle() { close(l.settled) }

// finish is the end of Run, and what it returns.
func (l *lifecycle) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.done)
	return l.cause
}

// closing reports whether the end has begun, stopped whether it is to be at once.
func (l *lifecycle) closing() bool { return l.shutting.Load() }
func (l *lifecycle) stopped() bool { return l.stop.Load() }

// lose counts a message that the drain did not deliver.
func (l *lifecycle) lose() {
	if l.closing() {
		l.lost.Add(1)
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
