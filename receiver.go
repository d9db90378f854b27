package notification

import (
	"sync/atomic"
	"time"
)

// A Receiver takes what the Broker routes to it, as a Gateway does: a bridge to
// another process, say. It must take from all four channels, P0 first.
type Receiver interface {
	// ID is unique among the gateways and receivers of a Broker.
	ID() string
	// Inbox returns the channels, none of them nil, always the same.
	Inbox() Inbox
	// Gap says that something accepted will not arrive: the receiver was stuck,
	// and messages for it are being dropped, or the Broker stopped with messages
	// in its lanes. Whoever is behind the receiver must learn that something is
	// missing. Gap is called once per episode and lane, on a goroutine of its
	// own and never twice at once.
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
	// Wait lets the message's lane wait, on a budget of StallTimeout as for
	// receivers; with that spent, it is dropped and counted. For storage. The
	// subscriber has one channel for all lanes, so a full one holds up P0 as well,
	// for StallTimeout at most.
	Wait
)

// A receiver is what the Broker knows of a gateway, a receiver or a global
// subscriber.
type receiver struct {
	// immutable after newReceiver
	id       string
	inbox    Inbox
	global   bool
	overflow Overflow
	gap      func()        // nil for global subscribers
	gateway  *Gateway      // nil for others
	sole     []*receiver   // the route of a user that has this receiver alone
	gone     chan struct{} // closed by leave: breaks off a hand-over
	quiet    chan struct{} // closed by the dispatcher when it has broken one off

	// guarded by routes.mu
	explicit map[string]struct{} // users that Subscribe routed here

	// owned by the dispatcher
	handing int                   // hand-overs in progress: one per lane at most
	budget  [NumPriorities]budget // a global subscriber has one channel, and uses the first

	// atomic
	state   atomic.Int32 // of receiverState
	stuck   [NumPriorities]atomic.Bool
	gaps    atomic.Int32 // calls of gap that are due or running
	handed  tally
	dropped tally
}

// The states of a receiver:
//
//	idle ◀──▶ sending        by the dispatcher, around its hand-overs
//	idle ───▶ gone           by leave
//	sending ▶ leaving ▶ gone by leave, then by the dispatcher, which lets go
const (
	receiverIdle int32 = iota
	receiverSending
	receiverLeaving
	receiverGone
)

func newReceiver(id string, inbox Inbox) *receiver {
	r := &receiver{
		id: id, inbox: inbox,
		gone: make(chan struct{}), quiet: make(chan struct{}),
		explicit: make(map[string]struct{}),
	}
	r.sole = []*receiver{r}
	return r
}

// channel returns the index of the lane's channel among the receiver's.
func (r *receiver) channel(p Priority) Priority {
	if r.global {
		return 0
	}
	return p
}

// enter begins a hand-over and reports false if the receiver has left.
func (r *receiver) enter() bool {
	if r.handing == 0 && !r.state.CompareAndSwap(receiverIdle, receiverSending) {
		return false
	}
	if r.handing > 0 && r.state.Load() != receiverSending {
		return false // it waits for the other hand-overs to be broken off
	}
	r.handing++
	return true
}

// exit ends a hand-over.
func (r *receiver) exit() {
	if r.handing--; r.handing == 0 && !r.state.CompareAndSwap(receiverSending, receiverIdle) {
		r.state.Store(receiverGone)
		close(r.quiet)
	}
}

// left reports whether leave was called.
func (r *receiver) left() bool { return r.state.Load() >= receiverLeaving }

// leave returns when the dispatcher sends nothing more to r. The dispatcher
// breaks off its hand-overs and waits for nothing else. It is called once.
func (r *receiver) leave() {
	close(r.gone)
	for !r.state.CompareAndSwap(receiverIdle, receiverGone) {
		if r.state.CompareAndSwap(receiverSending, receiverLeaving) {
			<-r.quiet
			return
		}
	}
}

// patient reports whether the dispatcher may wait for r without end: a Gateway
// whose Run is going always moves.
func (r *receiver) patient() bool { return r.gateway != nil && r.gateway.life.running() }

// user returns the user as the Gateway that r is knows him; nil if it does not,
// has left, or is no Gateway.
func (r *receiver) user(userID string) *user {
	if r.gateway == nil || r.left() {
		return nil
	}
	u, _ := r.gateway.roster.users.Load(userID)
	return u
}

// A budget is how long a receiver's full channel may hold up its lanes.
type budget struct {
	spent   time.Duration // since the channel was last half empty
	waiting int           // hand-overs that wait
	since   int64         // the first of them; of no meaning without one
}

// begin charges from now on, if nothing did already.
func (b *budget) begin(at int64) {
	if b.waiting++; b.waiting == 1 {
		b.since = at
	}
}

// end is due once for each begin.
func (b *budget) end(at int64) {
	b.spent += time.Duration(at - b.since)
	b.since = at
	b.waiting--
}

// refill says that the channel was at most half full. Who waits all the same, for
// another lane to go first, is charged from now on.
func (b *budget) refill() {
	if b.spent = 0; b.waiting > 0 {
		b.since = now()
	}
}

// left returns what is left of most.
func (b *budget) left(most time.Duration, at int64) time.Duration {
	if b.waiting > 0 {
		return most - b.spent - time.Duration(at-b.since)
	}
	return most - b.spent
}
