// Package door is what the transports to browsers share of letting connections
// in: how many there are, who may come beyond that, and what is counted.
package door

import (
	"context"
	"sync"
	"time"
)

const (
	// maxBeyond bounds the connections beyond the limit, none of which lasts
	// longer than a handshake in one direction: those that are asked who they
	// are, or that gave way.
	maxBeyond = 100
	// maxTold bounds those that are told by an upgrade why they were refused, and
	// toldPerSecond how often that begins. They are counted apart: who has no
	// credentials can hold up as many as there are, and must not keep out a user
	// who has.
	maxTold       = 100
	toldPerSecond = 100
)

// A Connection is a connection, or a request on its way to become one.
type Connection interface {
	comparable
	User() string          // whose it is; asked from Claim on
	LastActive() time.Time // when it was last heard of; asked from Add on
}

// A Door counts who is connected. A connection takes one of a number of places
// before it is asked for credentials, and gives it back when its socket is
// closed. All methods may be called at any time, from anywhere.
type Door[C Connection] struct {
	// immutable after New
	places int           // 0: no bound
	idle   chan struct{} // closed when closing and nobody is here

	mu      sync.Mutex
	closing bool           // guarded by mu: nobody comes in any more
	taken   [3]int         // guarded by mu: how many guests have each share
	told    Bucket         // guarded by mu
	guests  map[C]standing // guarded by mu
}

// A share is what a guest takes a part of.
type share uint8

const (
	sharePlace  share = iota // of the places
	shareBeyond              // of maxBeyond
	shareTold                // of maxTold
)

// A standing is what a Door knows of a connection.
type standing struct {
	share     share
	connected bool // it is no request any more
}

// New returns a Door with so many places; 0: no bound.
func New[C Connection](places int) *Door[C] {
	return &Door[C]{places: places, idle: make(chan struct{}), guests: make(map[C]standing), told: NewBucket(toldPerSecond)}
}

// Enter lets a request in, beyond the limit too: who it is decides then. It
// reports false if there is no room for that either, or the Door is closed; else
// Leave must follow.
func (d *Door[C]) Enter(c C) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := standing{share: sharePlace}
	if d.places > 0 && d.taken[sharePlace] >= d.places {
		s.share = shareBeyond
	}
	if d.closing || s.share == shareBeyond && d.taken[shareBeyond] >= maxBeyond {
		return false
	}
	d.taken[s.share]++
	d.guests[c] = s
	return true
}

// move gives a request another share. d.mu is held.
func (d *Door[C]) move(c C, to share) {
	d.taken[d.guests[c].share]--
	d.taken[to]++
	d.guests[c] = standing{share: to}
}

// Claim gives a request that is beyond the limit a place, now that its user is
// known. If there is none, the user's own connection that was not heard of for
// the longest gives way: it is half-open, most likely, and whoever comes back
// over a new network must not wait until that is noticed. Claim returns that one,
// which the caller ends, or zero; and false if there is no place.
func (d *Door[C]) Claim(c C) (giveWay C, ok bool) {
	var none C
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.guests[c].share == sharePlace {
		return none, true
	}
	if d.taken[sharePlace] < d.places {
		d.move(c, sharePlace)
		return none, true
	}
	var heard time.Time
	for o, its := range d.guests {
		if !its.connected || its.share != sharePlace || o.User() != c.User() {
			continue
		}
		if at := o.LastActive(); giveWay == none || at.Before(heard) {
			giveWay, heard = o, at
		}
	}
	if giveWay == none {
		return none, false
	}
	d.guests[giveWay], d.guests[c] = standing{share: shareBeyond, connected: true}, standing{share: sharePlace}
	return giveWay, true
}

// Refuse reports whether a request may be upgraded to be told why it is refused,
// for which it needs no place.
func (d *Door[C]) Refuse(c C) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.taken[shareTold] >= maxTold || !d.told.Take() {
		return false
	}
	d.move(c, shareTold)
	return true
}

// Connected says that c is a connection now, which Close and All return. It
// reports false if Close was called before.
func (d *Door[C]) Connected(c C) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.guests[c]
	s.connected = true
	d.guests[c] = s
	return !d.closing
}

// Leave ends what Enter began.
func (d *Door[C]) Leave(c C) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken[d.guests[c].share]--
	delete(d.guests, c)
	if d.closing && len(d.guests) == 0 {
		close(d.idle)
	}
}

// Close lets nobody in any more and returns the connections.
func (d *Door[C]) Close() []C {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closing && len(d.guests) == 0 {
		close(d.idle)
	}
	d.closing = true
	return d.list()
}

// defaultSpread is over how long Shutdown spreads the endings if its ctx has no
// deadline.
const defaultSpread = 10 * time.Second

// Shutdown lets nobody in any more and ends the connections, spread evenly over
// three quarters of the time until ctx's deadline, or 10 s if it has none, so that
// the clients do not all come back at once. It returns nil as soon as all have
// left. If ctx ends first it cuts the rest and returns ctx's error.
//
// end is told until when the peer may take to say goodbye, zero for as long as
// usual; that is a little before the deadline. It must not block, nor may cut.
func (d *Door[C]) Shutdown(ctx context.Context, end func(c C, by time.Time), cut func(C)) error {
	start := time.Now()
	spread, by := defaultSpread, time.Time{}
	if deadline, ok := ctx.Deadline(); ok {
		have := max(deadline.Sub(start), 0)
		spread, by = have*3/4, deadline.Add(-have/20)
	}
	conns := d.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for i, c := range conns {
		at := start.Add(time.Duration(float64(spread) * float64(i) / float64(len(conns))))
		if wait := time.Until(at); wait >= time.Millisecond {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-d.idle: // the peers went by themselves
			case <-ctx.Done():
			}
		}
		end(c, by)
	}
	select {
	case <-d.idle:
		return nil
	case <-ctx.Done():
	}
	for _, c := range d.All() {
		cut(c)
	}
	return context.Cause(ctx)
}

// Closing reports whether Close was called.
func (d *Door[C]) Closing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closing
}

// All returns the connections.
func (d *Door[C]) All() []C {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list()
}

// Inside returns how many connections and requests there are, and how many of
// them beyond the limit.
func (d *Door[C]) Inside() (all, beyond int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.guests), d.taken[shareBeyond] + d.taken[shareTold]
}

// list copies, so that the lock is free meanwhile. d.mu is held.
func (d *Door[C]) list() []C {
	conns := make([]C, 0, len(d.guests))
	for c, s := range d.guests {
		if s.connected {
			conns = append(conns, c)
		}
	}
	return conns
}
