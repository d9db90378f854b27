package natslog

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

// A backlog is what a stream has accepted and not yet in the log: batches in the
// making, of which the first is sent when the one before it is acknowledged.
// Publish encodes a notification into the last of them, so that it is copied once,
// by the NATS client, on its way to the server.
//
// It tells the caller of each notification what became of it, once, from the
// sender's goroutine, and counts that before.
type backlog struct {
	// immutable after init
	p      *Publisher
	linger time.Duration
	laneNo notification.Priority
	wake   chan struct{} // capacity 1: rung for take

	// mu is held for what Publish takes to encode, never while waiting or calling
	// back. Several are taken in the order of the partitions. No other lock is taken
	// under it.
	mu        sync.Mutex
	queue     []*batch   // guarded by mu: the last has room
	sent      *batch     // guarded by mu: on its way
	since     time.Time  // guarded by mu: when it was taken
	failure   error      // guarded by mu: why it was not acknowledged at the last attempt
	asleep    bool       // guarded by mu: take waits for wake
	closed    bool       // guarded by mu: nothing is accepted any more
	ended     bool       // guarded by mu: nothing is sent any more
	dead      int        // guarded by mu: calls withdrawn, and still in queue
	abandoned []*batch   // guarded by mu: counted, and to be told
	counts    sendCounts // guarded by mu
}

// A batch is a block in the making: archives end to end, and who waits for each.
type batch struct {
	data  []byte
	items []item
	first time.Time // when its first notification came
	err   error     // what its callers are told, once resolve was called
}

// An item is one archive of a batch.
type item struct {
	size uint32      // bytes
	done func(error) // of Publish; nil: nobody is told
	call *call       // of PublishWait, or of AllUsers in several partitions
}

// A call is a notification that may be withdrawn, or has copies in several
// partitions.
type call struct {
	state   atomic.Int32
	left    atomic.Int32 // copies of which it is not yet known what becomes of them
	untold  atomic.Int32 // copies whose batch has not come to them in tell
	missed  atomic.Bool  // of a copy it will not be known
	verdict error        // set by who brings left to zero; told by who brings untold there
	done    func(error)  // of Publish; nil: result
	result  chan error   // of PublishWait, capacity 1
}

// The states of a call. It leaves queued once.
const (
	queued    int32 = iota // no copy has been sent
	joined                 // one has: it may be in the log
	withdrawn              // PublishWait has given up, and none will be
	dropped                // the Publisher has ended, and none will be
)

func (q *backlog) init(p *Publisher, lane notification.Priority) {
	q.p, q.laneNo, q.linger, q.wake = p, lane, p.cfg.Linger[lane], make(chan struct{}, 1)
}

// put accepts n, or returns ErrClosed or ErrInvalid. mu is held.
func (q *backlog) put(n *notification.Notification, done func(error), c *call) error {
	if q.closed {
		return notification.ErrClosed
	}
	b := q.last()
	data, err := n.AppendBinary(b.data)
	size := len(data) - len(b.data)
	if err == nil && size > q.p.maxArchive {
		err = fmt.Errorf("%w: an archive of %d bytes is over what the server takes, %d", notification.ErrInvalid, size, q.p.maxArchive)
	}
	if err != nil {
		if len(b.items) == 0 {
			q.recycle(b)
		}
		return err
	}
	if c != nil {
		c.left.Store(1)
		c.untold.Store(1)
	}
	q.counts.accepted++
	if q.fits(b, size) {
		b.data = data
	} else {
		b.data, data = data[:len(b.data)], data[len(b.data):]
		b = q.batch()
		b.data = append(b.data, data...)
	}
	q.add(b, item{size: uint32(size), done: done, call: c})
	return nil
}

// putAll accepts n in all partitions, or in none. It takes all their locks, so that
// what is for AllUsers has the same order everywhere.
func putAll(senders []*sender, n *notification.Notification, done func(error), c *call) error {
	for _, s := range senders {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	for _, s := range senders {
		if s.closed {
			return notification.ErrClosed
		}
	}
	if c == nil {
		c = &call{done: done}
		if done == nil {
			c.done = func(error) {}
		}
	}
	first := senders[0]
	if err := first.put(n, nil, c); err != nil {
		return err
	}
	c.left.Store(int32(len(senders)))
	c.untold.Store(int32(len(senders)))
	b := first.queue[len(first.queue)-1]
	archive := b.data[len(b.data)-int(b.items[len(b.items)-1].size):]
	for _, s := range senders[1:] {
		b := s.last()
		if !s.fits(b, len(archive)) {
			b = s.batch()
		}
		b.data = append(b.data, archive...)
		s.add(b, item{size: uint32(len(archive)), call: c})
	}
	return nil
}

// last returns the batch to put something into; one that is not in queue yet if
// there is none. mu is held.
func (q *backlog) last() *batch {
	if len(q.queue) == 0 {
		return q.batch()
	}
	return q.queue[len(q.queue)-1]
}

// fits reports whether an archive of this size may be added to b: a large one only
// to one that is empty.
func (q *backlog) fits(b *batch, size int) bool {
	return len(b.items) == 0 || len(b.items) < maxEntries && len(b.data)+size <= q.p.cfg.BlockBytes
}

// add adds the item whose archive was appended to b. mu is held.
func (q *backlog) add(b *batch, it item) {
	b.items = append(b.items, it)
	if len(b.items) == 1 {
		b.first = time.Now()
		q.queue = append(q.queue, b)
	} else if len(b.items) < maxEntries {
		return // whoever sleeps waits for the first, or for it to be full
	}
	if q.asleep {
		q.asleep = false
		rouse(q.wake)
	}
}

func (q *backlog) batch() *batch { return q.p.batches.Get().(*batch) }

// recycle keeps a batch for the next to come, unless it has grown large.
func (q *backlog) recycle(b *batch) {
	if cap(b.data) > 2*q.p.cfg.BlockBytes {
		return
	}
	clear(b.items)
	*b = batch{data: b.data[:0], items: b.items[:0]}
	q.p.batches.Put(b)
}

// take waits for a batch that is to be sent. It returns nil when there will be none.
func (q *backlog) take(timer *time.Timer) *batch {
	for {
		q.mu.Lock()
		b, wait := q.next()
		if b != nil {
			q.sent, q.since = b, time.Now()
		}
		over := q.ended || q.closed && b == nil
		q.asleep = b == nil && !over
		q.mu.Unlock()
		if b != nil || over {
			return b
		}
		timer.Reset(wait)
		select {
		case <-q.wake:
		case <-timer.C:
		case <-q.p.life.stopping:
			return nil
		}
	}
}

// next takes the first batch off the queue if it need not wait, and tells how long
// it must. mu is held.
func (q *backlog) next() (b *batch, wait time.Duration) {
	for len(q.queue) > 0 && !q.ended {
		b = q.queue[0]
		if len(q.queue) == 1 && len(b.items) < maxEntries && !q.closed && q.linger > 0 {
			if wait = q.linger - time.Since(b.first); wait > 0 {
				return nil, wait
			}
		}
		q.queue = slices.Delete(q.queue, 0, 1)
		q.seal(b)
		if len(b.items) > 0 {
			return b, 0
		}
		q.recycle(b)
	}
	return nil, time.Hour
}

// seal fixes what is in b: what was withdrawn is not. mu is held.
func (q *backlog) seal(b *batch) {
	q.dead -= b.keep(func(c *call) bool {
		return c.state.CompareAndSwap(queued, joined) || c.state.Load() != withdrawn
	})
}

// keep removes the items, and their archives, whose call is not alive, and returns
// how many there were.
func (b *batch) keep(alive func(*call) bool) (removed int) {
	from, to, n := 0, 0, 0
	for i, it := range b.items {
		size := int(it.size)
		if it.call == nil || alive(it.call) {
			if from != to {
				copy(b.data[to:], b.data[from:from+size])
				b.items[n] = b.items[i]
			}
			n++
			to += size
		}
		from += size
	}
	removed = len(b.items) - n
	clear(b.items[n:])
	b.items, b.data = b.items[:n], b.data[:to]
	return removed
}

// withdrew is told of a call that was withdrawn. Its archive goes when its batch is
// sent, or, so that callers who give up again and again in an outage do not fill the
// memory, when more than half of the queue is such. mu is held.
func (q *backlog) withdrew() {
	q.dead++
	if q.dead < maxEntries {
		return
	}
	var items int
	for _, b := range q.queue {
		items += len(b.items)
	}
	if q.dead*2 < items {
		return
	}
	old := q.queue
	q.queue = nil
	for _, b := range old {
		q.dead -= b.keep(func(c *call) bool { return c.state.Load() != withdrawn })
		at := 0
		for _, it := range b.items {
			to := q.last()
			if !q.fits(to, int(it.size)) {
				to = q.batch()
			}
			to.data = append(to.data, b.data[at:at+int(it.size)]...)
			at += int(it.size)
			to.items = append(to.items, it)
			if len(to.items) == 1 {
				to.first = b.first
				q.queue = append(q.queue, to)
			}
		}
		q.recycle(b)
	}
}

// acknowledged counts b, which is in the log, and tells its callers.
func (q *backlog) acknowledged(b *batch) {
	q.mu.Lock()
	if q.ended && q.sent == nil { // it was abandoned a moment ago, and that has been counted
		q.mu.Unlock()
		return
	}
	q.sent = nil
	q.counts.blocks++
	q.counts.bytes += uint64(len(b.data))
	q.resolve(b, nil)
	q.mu.Unlock()
	q.p.lanes[q.laneNo].latency.Record(time.Since(b.first))
	b.tell()
	q.recycle(b)
}

// resolve says what has become of b: nil, errLeft or errOnItsWay. It counts; tell
// tells. mu is held.
func (q *backlog) resolve(b *batch, err error) {
	b.err = err
	for i := range b.items {
		it, verdict := &b.items[i], err
		if c := it.call; c != nil {
			if err != nil {
				c.missed.Store(true)
			}
			if c.left.Add(-1) > 0 {
				continue
			}
			if c.missed.Load() {
				verdict = errLeft
				if c.state.Load() == joined {
					verdict = errOnItsWay
				}
			}
			c.verdict = verdict
		}
		q.p.lanes[q.laneNo].queued.Add(-1)
		switch verdict {
		case nil:
			q.counts.acknowledged++
		case errLeft:
			q.counts.discarded++
			q.p.life.lost.Add(1)
		default:
			q.counts.uncertain++
			q.p.life.lost.Add(1)
		}
	}
}

var (
	errLeft     = fmt.Errorf("%w: it was not sent", notification.ErrClosed)
	errOnItsWay = fmt.Errorf("%w: its block is on its way: %w", ErrUncertain, notification.ErrClosed)
)

// tell tells the callers, in the order of b. A call with copies in several partitions
// is told by the last that comes to it here, and not by the last to resolve it: that
// one would overtake another that has resolved an earlier call and not told it yet.
// No lock is held.
func (b *batch) tell() {
	for i := range b.items {
		switch it := &b.items[i]; {
		case it.call == nil:
			if it.done != nil {
				it.done(b.err)
			}
		case it.call.untold.Add(-1) > 0:
		case it.call.done != nil:
			it.call.done(it.call.verdict)
		default:
			it.call.result <- it.call.verdict // never blocks: it is the only one
		}
	}
}

// close refuses what comes from now on.
func (q *backlog) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	rouse(q.wake)
}

// end sees to it that no batch is sealed any more.
func (q *backlog) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.ended = true, true
}

// abandon counts what has not been acknowledged when the Publisher ends. All
// backlogs of the lane have ended before, so that no copy of a call that is dropped
// here is sent there.
func (q *backlog) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b := q.sent; b != nil {
		q.sent = nil
		q.abandoned = append(q.abandoned, b)
		q.resolve(b, errOnItsWay)
	}
	for _, b := range q.queue {
		b.keep(func(c *call) bool {
			return c.state.CompareAndSwap(queued, dropped) || c.state.Load() != withdrawn
		})
		q.abandoned = append(q.abandoned, b)
		q.resolve(b, errLeft)
	}
	q.queue = nil
}

// tellAbandoned tells the callers of what abandon has counted.
func (q *backlog) tellAbandoned() {
	q.mu.Lock()
	bs := q.abandoned
	q.abandoned = nil
	q.mu.Unlock()
	for _, b := range bs {
		b.tell()
	}
}

// bump counts one more.
func (q *backlog) bump(n *uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	*n++
}
