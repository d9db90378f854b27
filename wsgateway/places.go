package wsgateway

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// maxBeyond bounds the connections beyond MaxConnections, none of which lasts
	// longer than a handshake in one direction: those that are asked who they
	// are, that are told why they were refused, or that gave way.
	maxBeyond = 100
	// refusalsPerSecond bounds how often a refusal is upgraded to be told.
	refusalsPerSecond = 100
)

// places are who is connected. A connection takes one of MaxConnections before
// it is asked for credentials, and gives it back when its socket is closed.
type places struct {
	// immutable
	most int           // MaxConnections; 0: no bound
	idle chan struct{} // closed when closing and nobody is here

	mu       sync.Mutex
	closing  bool               // guarded by mu: no more connections
	taken    int                // guarded by mu: of most
	beyond   int                // guarded by mu: of maxBeyond
	refusals bucket             // guarded by mu
	conns    map[*conn]struct{} // guarded by mu: those that are upgraded
}

func newPlaces(most int) places {
	return places{most: most, idle: make(chan struct{}), conns: make(map[*conn]struct{}), refusals: newBucket(refusalsPerSecond)}
}

// enter lets a handshake in, beyond the limit too: who it is decides then.
// leave gives the place back.
func (p *places) enter(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closing:
		return false
	case p.most == 0 || p.taken < p.most:
		p.taken++
	case p.beyond < maxBeyond:
		p.beyond++
		c.beyond = true
	default:
		return false
	}
	return true
}

// claim gives a handshake that is beyond the limit a place, now that its user is
// known. If there is none, the user's own connection that was not heard of for
// the longest gives way: it is half-open, most likely, and whoever comes back
// over a new network must not wait until that is noticed. It returns the one that
// has to go, if any, and false if there is no place.
func (p *places) claim(c *conn) (giveWay *conn, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.beyond {
		return nil, true
	}
	if p.taken < p.most {
		p.taken++
		p.beyond--
		c.beyond = false
		return nil, true
	}
	var heard time.Time
	for o := range p.conns {
		if o.user != c.user || o.beyond {
			continue
		}
		if at := o.session.LastActive(); giveWay == nil || at.Before(heard) {
			giveWay, heard = o, at
		}
	}
	if giveWay == nil {
		return nil, false
	}
	giveWay.beyond, c.beyond = true, false
	return giveWay, true
}

// refuse reports whether a handshake may be upgraded to be told why it is
// refused, for which it needs no place.
func (p *places) refuse(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.beyond && p.beyond >= maxBeyond || !p.refusals.take() {
		return false
	}
	if !c.beyond {
		p.taken--
		p.beyond++
		c.beyond = true
	}
	return true
}

// add makes c one that Shutdown sees, and reports false if that has begun.
func (p *places) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return !p.closing
}

func (p *places) leave(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if c.beyond {
		p.beyond--
	} else {
		p.taken--
	}
	if p.closing {
		p.closeIdle()
	}
}

// close lets nobody in any more and returns who is here.
func (p *places) close() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closing {
		p.closing = true
		p.closeIdle()
	}
	return p.list()
}

// closeIdle closes idle if nobody is here. p.mu is held.
func (p *places) closeIdle() {
	if p.taken == 0 && p.beyond == 0 {
		close(p.idle)
	}
}

// all returns who is connected.
func (p *places) all() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list()
}

// list copies, so that the lock is free meanwhile. p.mu is held.
func (p *places) list() []*conn {
	conns := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	return conns
}

// fullEvery is how often it is logged that there is no room.
const fullEvery = time.Minute

// A fullLog writes one line a minute at most about requests that found no room,
// however many there are.
type fullLog struct {
	mu    sync.Mutex
	since time.Time // guarded by mu: of the last line
	muted int       // guarded by mu: requests since then
}

func (f *fullLog) note(log *slog.Logger, why string) {
	f.mu.Lock()
	now := time.Now()
	muted := f.muted
	quiet := !f.since.IsZero() && now.Sub(f.since) < fullEvery
	if quiet {
		f.muted++
	} else {
		f.since, f.muted = now, 0
	}
	f.mu.Unlock()
	if !quiet {
		log.Warn("websockets refused with 503", "reason", why, "refused since the last such line", muted)
	}
}

// A bucket bounds how many of something there are per second, and at once.
type bucket struct {
	rate, tokens float64
	at           time.Time
}

func newBucket(perSecond int) bucket {
	return bucket{rate: float64(perSecond), tokens: float64(perSecond), at: time.Now()}
}

func (b *bucket) take() bool {
	now := time.Now()
	b.tokens = min(b.tokens+b.rate*now.Sub(b.at).Seconds(), b.rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
