package notification

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// A pusher is a goroutine that calls sinks.
type pusher struct {
	// immutable
	g     *Gateway
	shard *shard

	// owned by the goroutine
	buf       []*Message // grows up to BatchSize
	id        uint64     // of the goroutine, for Session.Cursor; zero without a history
	servedAt  int64      // when the last turn began
	yieldedAt int64      // when it last gave up its CPU
	rested    bool       // it has, since servedAt
	as        error      // what the error of the call that has returned counts as

	// guarded by pushPool.mu
	slot      int32 // among the pool's calls; its own until it goes
	ticket    int   // how many were started before it
	ending    bool  // its session has ended: its call is in pushPool.ending
	endedAt   int64 // since when
	abandoned bool  // it no longer counts, and goes when its call returns
}

// A shard counts what some of the pushers do, apart from the others' so that
// their caches need not agree on every message.
type shard struct {
	taken   [NumPriorities]atomic.Uint64
	batches atomic.Uint64
	latency [NumPriorities]HistogramRecorder
	_       [64]byte
}

// startPushers starts n pushers. Each ends when the pool tells it to; Run waits
// for that unless it is abandoned.
func (g *Gateway) startPushers(n int, clock int64) {
	pushers := make([]*pusher, n)
	for i := range pushers {
		pushers[i] = &pusher{g: g}
	}
	g.pool.join(pushers, clock)
	for _, p := range pushers {
		p.shard = &g.shards[p.ticket%len(g.shards)]
		go p.run()
	}
}

// run serves sessions until the pool has no work for this pusher.
func (p *pusher) run() {
	if p.g.history != nil {
		p.id = goroutineID()
	}
	p.rested = true
	for {
		if !p.rested && p.servedAt-p.yieldedAt > int64(pushYield) {
			p.yield()
		}
		s := p.g.pool.next(p)
		if s == nil {
			return
		}
		p.serve(s)
	}
}

// yield gives up the CPU, and notes if it is long in coming back.
func (p *pusher) yield() {
	p.rested = true
	before := now()
	runtime.Gosched()
	if at := now(); at-before > int64(cpuMissing) {
		p.g.pool.starvedAt.Store(at)
	}
}

// serve does what is next for s: a Push, mostly.
func (p *pusher) serve(s *Session) {
	at := now()
	if p.servedAt = at; p.rested {
		p.rested, p.yieldedAt = false, at
	}
	d := s.begin(p, at)
	for _, m := range d.messages {
		if !d.replayed { // its age says how long the client was away, not how late we are
			p.shard.latency[m.priority].Record(time.Duration(at - m.entered))
		}
	}
	p.returned(s, d, p.call(s, d))
}

// room returns a buffer for n messages.
func (p *pusher) room(n int) []*Message {
	if n > len(p.buf) {
		p.buf = make([]*Message, min(max(64, 2*n), p.g.cfg.BatchSize))
	}
	return p.buf[:n]
}

// call makes the call of the sink that d asks for, whatever the sink does. If it
// ends this goroutine another one takes over from here, and call does not return.
func (p *pusher) call(s *Session, d delivery) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		what := recover()
		err = p.failed(d.act, s, what)
		if what != nil {
			return
		}
		p.buf = nil
		lost := err         // captured itself, err would be on the heap for every Push
		if p.shard == nil { // closeAlone's: nothing is left to do after this
			p.returned(s, d, lost)
			return
		}
		go func() { // as startPushers'
			p.returned(s, d, lost)
			p.run()
		}()
	}()
	switch d.act {
	case actPush:
		err = s.sink.Push(s.ctx, d.messages)
		if p.as = err; err != nil && errors.Is(err, ErrSlowConsumer) { // calls methods of err
			p.as = ErrSlowConsumer
		}
	case actLive:
		s.sink.(liveSink).Live()
	case actEnd:
		err, p.as = d.reason, d.reason
	case actClose:
		s.sink.Close(d.reason)
	}
	returned = true
	return err
}

// failed is the error for a call of a sink that did not return.
func (p *pusher) failed(act act, s *Session, what any) error {
	if what == nil {
		what = "runtime.Goexit"
	}
	p.as = ErrSinkPanic
	if muted, ok := p.g.panicked.begin(); ok {
		p.g.log.Error("sink panicked", "call", act, "session", s.id, "panic", what, "muted", muted, "stack", string(debug.Stack()))
	}
	return fmt.Errorf("%w: %s: %v", ErrSinkPanic, act, what)
}

// returned deals with the end of a call: it does the accounting, ends the session
// if the call failed, and lets go of it.
func (p *pusher) returned(s *Session, d delivery, err error) {
	g := p.g
	if d.act == actClose {
		s.closed()
		return
	}
	if d.act == actPush {
		p.count(s, d, err)
		clear(d.messages)
	}
	if err != nil {
		if g.endAs(s, err, p.as) && d.act != actEnd && p.as != ErrSinkPanic {
			g.log.Debug("session ended: sink failed", "session", s.id, "user", s.user.id, "error", err)
		}
		p.as = nil
	}
	if reason := s.finish(); reason != nil {
		p.close(s, reason)
	}
}

// count does the accounting of a Push, before the session is seen to be idle, so
// that at rest everything adds up.
func (p *pusher) count(s *Session, d delivery, err error) {
	if err != nil {
		s.failed()
		for lane, n := range d.counts {
			p.g.lose(&p.g.droppedEnded[lane], n)
		}
		return
	}
	for lane, n := range d.counts {
		if n > 0 {
			p.shard.taken[lane].Add(uint64(n))
		}
	}
	p.shard.batches.Add(1)
	if !s.touched.Load() {
		s.heard.Store(now())
	}
}

// close closes the sink of an ended session, once.
func (p *pusher) close(s *Session, reason error) {
	if p.shard != nil {
		p.g.pool.end(s, now()) // from now on it has abandonAfter
	}
	d := delivery{act: actClose, reason: reason}
	p.returned(s, d, p.call(s, d))
}

// closeAlone closes the sink of a session that ended while there are no pushers:
// before Run, that is. Nobody waits for it.
func (g *Gateway) closeAlone(s *Session) {
	go func() { // ends with Close
		late := time.AfterFunc(abandonAfter, func() { g.abandon(s) })
		defer late.Stop()
		(&pusher{g: g}).close(s, s.Err())
	}()
}
