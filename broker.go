package notification

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// BrokerConfig configures a Broker. The zero value is ready to use.
type BrokerConfig struct {
	// DedupSize is how many accepted IDs are remembered, default 10,000, at most
	// 2^27 (2^24-1 with 32 bits). Their memory, some 90 bytes each, is taken by
	// NewBroker; that of IDs over 51 bytes comes on top.
	DedupSize int
	// QueueCapacity is how many messages each lane holds, exactly; default
	// 10,000, 50,000, 100,000 and 50,000, at most 2^27. NewBroker takes 8 bytes
	// for each.
	QueueCapacity [NumPriorities]int
	// RoundQuota is how many messages each of P1, P2 and P3 may have taken
	// before it is the next one's turn, and how many P0s may overtake each
	// message of those; default all, 1000, 100, 50. Negative: all that wait
	// when the turn comes.
	RoundQuota [NumPriorities]int
	// StallTimeout is how long, in sum since it was last half empty, a full
	// inbox lane may hold up the dispatcher before its receiver is stuck;
	// default 1 s. A Gateway that runs is waited for, however long.
	StallTimeout time.Duration
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger
}

func (c *BrokerConfig) setDefaults() error {
	c.DedupSize = cmp.Or(c.DedupSize, 10_000)
	if c.DedupSize < 0 || c.DedupSize > maxDedup {
		return fmt.Errorf("%w: DedupSize %d is not within 1 and %d", ErrInvalid, c.DedupSize, maxDedup)
	}
	for p := range c.QueueCapacity {
		c.QueueCapacity[p] = cmp.Or(c.QueueCapacity[p], [...]int{10_000, 50_000, 100_000, 50_000}[p])
		if c.QueueCapacity[p] < 0 || c.QueueCapacity[p] > maxQueue {
			return fmt.Errorf("%w: QueueCapacity[%s] %d is not within 1 and 2^27", ErrInvalid, Priority(p), c.QueueCapacity[p])
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

// A Broker accepts notifications, each once, and routes them to gateways,
// receivers and global subscribers. NewBroker makes one.
//
// Publishers meet at its admission; one goroutine, the dispatcher, takes the
// messages off the lanes and hands them over; the routes say to whom.
type Broker struct {
	// immutable after NewBroker
	cfg       BrokerConfig
	log       *slog.Logger
	life      *lifecycle
	admission *admission
	routes    *routes
	dispatch  *dispatcher

	invalid atomic.Uint64
}

// NewBroker returns a Broker that takes notifications at once and delivers
// them when Run is called. It returns ErrInvalid if cfg is invalid; the text
// names the field.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	b := &Broker{cfg: cfg, log: cfg.Logger, life: newLifecycle()}
	b.admission = newAdmission(cfg.DedupSize, cfg.QueueCapacity)
	b.routes = newRoutes(b.life.closing)
	b.dispatch = newDispatcher(&b.cfg, b.life, b.admission, b.routes)
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
	err = b.admission.admit(m)
	b.dispatch.ring(m.priority)
	return err
}

// PublishWait is Publish that waits for room in the lane. Waiters of a lane are
// served in the order of their calls and before later calls of Publish. It ends
// with ctx's error, counted as Rejected, or with ErrClosed when Shutdown begins;
// ctx bounds the waiting only, and is not looked at if there is room. From
// inside Push give it the Push's ctx: with every pusher waiting for room in a
// full lane nobody makes any, and that ctx ends when the session does.
func (b *Broker) PublishWait(ctx context.Context, n *Notification) error {
	m, err := b.message(n)
	if err != nil {
		return err
	}
	err = b.admission.admitWait(ctx, m)
	b.dispatch.ring(m.priority)
	return err
}

// PublishBatch is Publish for several, in their order, for a little less: it
// accepts the first of them up to the first that is refused, returns how many that
// were (a repeat counts as accepted), and why the next one was refused; the rest is
// untouched, and ns stays the caller's. It never blocks, and lets other publishers
// in after every 64.
func (b *Broker) PublishBatch(ns []*Notification) (accepted int, err error) {
	for accepted < len(ns) && err == nil {
		var n int
		n, err = b.publishSlice(ns[accepted:min(accepted+sliceSize, len(ns))])
		accepted += n
	}
	return accepted, err
}

// publishSlice is PublishBatch for sliceSize at the most.
func (b *Broker) publishSlice(ns []*Notification) (accepted int, err error) {
	var buf [sliceSize]*Message
	ms := buf[:0]
	var invalid error
	for _, n := range ns {
		t, err := n.check()
		if err != nil {
			invalid = err
			break
		}
		ms = append(ms, newMessage(n, t, now()))
	}
	accepted, err = b.admission.admitAll(ms)
	var rung [NumPriorities]bool
	for _, m := range ms[:accepted] {
		if p := m.priority; !rung[p] {
			rung[p] = true
			b.dispatch.ring(p)
		}
	}
	if err == nil && invalid != nil {
		b.invalid.Add(1)
		err = invalid
	}
	return accepted, err
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

// RegisterGateway routes the users of g's sessions, present and future, to g.
// It returns ErrReceiverExists if g's ID is taken, ErrInvalid if g is nil, has a
// Log or belongs to another Broker, ErrClosed if either is shutting down. A Gateway that
// was registered before has missed what was published since: its Gap is called.
func (b *Broker) RegisterGateway(g *Gateway) error {
	if g == nil {
		return fmt.Errorf("%w: Gateway is nil", ErrInvalid)
	}
	if g.cfg.Log != nil {
		return fmt.Errorf("%w: gateway %q has a Log, and a Broker's messages have no numbers of it", ErrInvalid, g.id)
	}
	r := newReceiver(g.id, g.Inbox())
	r.gap, r.gateway = g.Gap, g
	return g.attach(b.routes, r)
}

// RegisterReceiver adds a receiver, to which Subscribe then routes users. It
// returns ErrInvalid if r is nil, its ID is empty or too long, or a channel is
// nil, ErrReceiverExists if its ID is taken, ErrClosed if the Broker is shutting
// down. A *Gateway is registered as RegisterGateway does; a type that embeds one
// is ErrInvalid, because its users could not be routed to it.
func (b *Broker) RegisterReceiver(r Receiver) error {
	if r == nil {
		return fmt.Errorf("%w: Receiver is nil", ErrInvalid)
	}
	if g, ok := r.(*Gateway); ok {
		return b.RegisterGateway(g)
	}
	if _, ok := r.(interface{ isGateway() }); ok {
		return fmt.Errorf("%w: Receiver %T embeds a Gateway: register the Gateway itself", ErrInvalid, r)
	}
	id, inbox := r.ID(), r.Inbox() // user code: before any lock
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
	return b.routes.add(n)
}

// Unregister removes a gateway or receiver and every route to it, and waits for
// no other receiver. When it returns nothing more is sent there and the channels
// may be closed. A hand-over in progress is completed if it is for a Gateway,
// and otherwise broken off and counted as Dropped. The sessions of a Gateway live
// on and get nothing; their cursors are void. It returns ErrUnknownReceiver if
// there is no such gateway or receiver.
func (b *Broker) Unregister(id string) error {
	r, ok := b.routes.receiver(id)
	if ok && r.gateway != nil {
		ok = r.gateway.detach(r)
	} else if ok {
		ok = b.routes.remove(r)
		b.routes.forget(r)
	}
	if !ok {
		return fmt.Errorf("%w: %q", ErrUnknownReceiver, clip(id))
	}
	return nil
}

// Subscribe routes a user's messages to a gateway or receiver, whether or not
// the user has a session there. To do it again changes nothing. It returns
// ErrInvalid if userID is empty, too long or AllUsers, ErrUnknownReceiver if
// there is no such gateway or receiver.
func (b *Broker) Subscribe(userID, receiverID string) error {
	return b.routes.subscribe(userID, receiverID, true)
}

// Unsubscribe undoes Subscribe; a user that has sessions at the Gateway stays
// routed there. It returns nil if there was nothing to undo, ErrInvalid if
// userID is empty, too long or AllUsers, ErrUnknownReceiver if there is no such
// gateway or receiver.
func (b *Broker) Unsubscribe(userID, receiverID string) error {
	return b.routes.subscribe(userID, receiverID, false)
}

// SubscribeGlobal sends every message of every user to ch, after the user's own
// receivers; overflow says what happens when ch is full. It returns
// ErrReceiverExists if a global subscriber has this ID, ErrInvalid if the ID is
// empty or too long, ch is nil or overflow is unknown, ErrClosed if the Broker is
// shutting down. ch stays the caller's: it may be closed when UnsubscribeGlobal or
// Run has returned.
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
	return b.routes.add(r)
}

// UnsubscribeGlobal removes a global subscriber. When it returns nothing more
// is sent to its channel, which may be closed; a hand-over in progress was
// broken off and counted as Dropped. It returns ErrUnknownReceiver if there is
// no such subscriber.
func (b *Broker) UnsubscribeGlobal(id string) error {
	r, ok := b.routes.global(id)
	if !ok || !b.routes.remove(r) {
		return fmt.Errorf("%w: global subscriber %q", ErrUnknownReceiver, clip(id))
	}
	return nil
}

// Run delivers until Shutdown has drained the Broker, and returns nil then, or
// until ctx ends, and returns its cause; what is queued at that moment is
// counted as Discarded, and Gap of every gateway and receiver is called. A second
// Run returns ErrRunning, one after the end ErrClosed.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.life.start(); err != nil {
		return err
	}
	unwatch := context.AfterFunc(ctx, func() { b.life.cut(context.Cause(ctx)); rouse(b.dispatch.wake) })
	defer unwatch()

	b.log.Info("broker running")
	b.dispatch.run()
	b.admission.close()
	b.dispatch.settle()
	b.life.settle()
	b.dispatch.awaitGaps()
	b.log.Info("broker stopped", "lost", b.life.lost.Load())
	return b.life.finish()
}

// Shutdown refuses new work, delivers what was accepted and returns nil if all
// of it was handed over. If ctx ends first, it stops at once, counts what is
// left as Discarded and returns ctx's error. Otherwise, if something was
// dropped or discarded, the error wraps ErrClosed. It may be called any number
// of times; before Run it discards what is queued, and Run returns ErrClosed.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.admission.close()
	pauseAt(closing)
	if b.life.shut() {
		told := b.dispatch.settle()
		b.life.settle()
		if told {
			go func() { b.dispatch.awaitGaps(); b.life.finish() }() // ends soon after the calls of Gap; wait waits for it
		} else {
			b.life.finish()
		}
	}
	rouse(b.dispatch.wake)
	return b.life.wait(ctx, func() { rouse(b.dispatch.wake) })
}

// Stats returns a snapshot. It takes some microseconds and a short lock that
// Publish takes too.
func (b *Broker) Stats() BrokerStats {
	s := BrokerStats{Invalid: b.invalid.Load()}
	b.admission.stats(&s)
	b.dispatch.stats(&s)
	b.routes.stats(&s)
	return s
}
