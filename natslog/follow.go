package natslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
)

// A pace is how often a follower does what it does. The zero value is the default;
// tests are in a hurry.
type pace struct {
	heartbeat time.Duration // of the server, when there is nothing to send; default 1 s
	check     time.Duration // between two looks at the stream without a reason; default 10 s
	request   time.Duration // for how long an answer is waited for; default 5 s
	quiet     time.Duration // after which a stream gets an empty block; default Retention/4
	elsewhere time.Duration // of failures, after which another server is tried; default 10 s
}

func (p pace) withDefaults(retention time.Duration) pace {
	p.heartbeat = cmp.Or(p.heartbeat, time.Second)
	p.check = cmp.Or(p.check, 10*time.Second)
	p.request = cmp.Or(p.request, 5*time.Second)
	p.quiet = cmp.Or(p.quiet, retention/4)
	p.elsewhere = cmp.Or(p.elsewhere, 10*time.Second)
	return p
}

// errAgain: the stream must be looked at again. It is no failure.
var errAgain = errors.New("natslog: look again")

// A place is where to begin to read a stream in an epoch.
type place struct {
	// known is a block of this epoch that was read before, and whose like must
	// still be there; zero if there is none.
	known known
	next  uint64 // the first block that is wanted; 0: the oldest of those that there are, when it comes to be read
	warm  int    // how many entries, at least, of the blocks before it are handed over first, if they are still there
}

// An event is what a follower hands over. Between two blocks of which the second is
// not the next one there is always a gap or a new place.
type event struct {
	kind     eventKind
	block    block  // of blockEvent and corruptEvent, which has only seq, stored and what its header says is count
	err      error  // of corruptEvent: wraps errBlock
	from, to uint64 // of gapEvent: the first and the last sequence that is not there any more
}

type eventKind uint8

const (
	blockEvent   eventKind = iota // the next block
	corruptEvent                  // the next message, which is no block
	gapEvent                      // blocks that are wanted are gone: by age, by size, by an operator
	warmEvent                     // all has been handed over that there was when this epoch began; once per epoch
)

// A follower reads one stream in order and without holes, from a place on, for as
// long as it runs, through restarts of servers and changes of leaders.
//
// It trusts neither the consumer nor the connection. Before each consumer is made,
// and every now and then, it looks: which epoch is it (by the bucket, and by when
// the streams were created); and does the leader have the block that was read last,
// with the same time? If not, the tail was lost and its numbers are used again, which
// the sequence does not show; then the epoch is changed, for everybody. While it
// reads, each sequence must be the one after the last. If it is not, all is looked at
// again and read from there: what is still there comes now, what is not is a gap.
//
// A stream in which nothing was stored for a while gets an empty block, so that there
// is always a block to compare with.
//
// The two functions are called by the goroutine of run, and may take their time:
// nothing more is asked of the server meanwhile.
type follower struct {
	// immutable
	log           *Log
	c             *conn
	pace          pace
	name, subject string // of the stream
	// begin is called when an epoch begins for this follower, the first one
	// included. It returns where to read from; what was read before belongs to
	// another numbering. An error lets it be called again after a pause.
	begin func(ctx context.Context, epoch uint64, s streamState) (place, error)
	// handle takes an event. An error, which is that of ctx, lets it have the event
	// once more, unless ctx has ended.
	handle func(ctx context.Context, e event) error

	// owned by run
	epoch   epoch
	known   known
	wanted  uint64 // what is gone of the blocks before it is no gap
	oldest  bool   // nothing was handed over yet, and all before wanted is to be
	warm    int    // place.warm
	next    uint64 // what is read next; 0: not known yet
	end     uint64 // the last sequence when the epoch began
	isWarm  bool
	jumped  uint64          // the consumer jumped over this one, which should be there
	stored  time.Time       // when the last block came, or there was a try to break the silence
	failing time.Time       // since when no consumer could be made; zero: the last one could
	back    <-chan struct{} // closed when the connection has come back since this pass began
	leaders chan struct{}   // rung when the stream has a new leader
	lostIn  uint64          // the epoch in which a lost tail was counted; of run, or of the check that it waits for

	counts followerCounts
}

// followerCounts are written by run and read by anybody.
type followerCounts struct {
	read   atomic.Uint64 // sequence of the last block handed over
	last   atomic.Uint64 // the greatest sequence that the server has told of
	blocks atomic.Uint64 // handed over
	holes  atomic.Uint64 // sequences that did not follow, for which the stream was read again
	gaps   atomic.Uint64 // blocks that were gone
	epochs atomic.Uint64 // epochs begun after the first
	lost   atomic.Uint64 // tails found lost by this follower, one per epoch
	passes atomic.Uint64 // consumers made
	silent atomic.Uint64 // times that a consumer missed its heartbeats
	empty  atomic.Uint64 // empty blocks stored
}

func (l *Log) newFollower(lane notification.Priority, partition int) *follower {
	return &follower{
		log: l, c: l.conn(lane), pace: l.cfg.pace.withDefaults(l.cfg.Retention),
		name: l.stream(lane, partition), subject: l.subject(lane, partition),
		leaders: make(chan struct{}, 1),
	}
}

// lag returns how many blocks the follower is behind what it knows the server has.
func (f *follower) lag() uint64 {
	read, last := f.counts.read.Load(), f.counts.last.Load()
	return max(last, read) - read
}

// patience returns the ctx of what is asked of the servers. It ends with the
// connection that it is asked through, too, because then the answer is lost.
func (f *follower) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, f.pace.request)
	back := f.back
	go func() { // ends with ctx
		select {
		case <-back:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// run reads until ctx ends, and returns its cause, or until the connection is closed
// for good, and returns an error that wraps notification.ErrClosed.
func (f *follower) run(ctx context.Context) error {
	if f.log.cfg.Replicas > 1 {
		// Of what NATS says of a leader only that there is a new one is of interest.
		s, err := f.c.nc.Subscribe("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED."+f.name, func(*nats.Msg) { rouse(f.leaders) })
		if err != nil {
			return fmt.Errorf("%w: %w", notification.ErrClosed, err)
		}
		defer s.Unsubscribe()
	}
	const firstPause, lastPause = 10 * time.Millisecond, time.Second
	pause := firstPause
	f.stored = time.Now()
	for {
		f.back = f.c.reconnect() // before anything is looked at, so that what is seen is not older
		worked, err := f.pass(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if f.c.nc.IsClosed() {
			return fmt.Errorf("%w: the connection of stream %s", notification.ErrClosed, f.name)
		}
		if worked {
			pause = firstPause
		}
		switch {
		case worked || err == nil || errors.Is(err, errAgain) || isClosed(f.back): // what was asked went with the connection
		case f.failing.IsZero():
			f.failing = time.Now()
			f.log.cfg.Logger.Warn("reading has to wait", "stream", f.name, "error", err)
		case time.Since(f.failing) > f.pace.elsewhere:
			f.c.elsewhere(f.pace.elsewhere)
		}
		select {
		case <-time.After(pause):
		case <-f.back:
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pass looks at the stream and reads it until there is a reason to look again. It
// reports whether it got anywhere.
func (f *follower) pass(ctx context.Context) (worked bool, err error) {
	select {
	case <-f.leaders: // before the look
	default:
	}
	e, s, err := f.look(ctx, f.epoch, 0)
	if err != nil {
		return false, err
	}
	now, changed := f.log.epochs.now()
	if now.id != e.id {
		return false, errAgain
	}
	if e.id != f.epoch.id {
		// Of a stream from which all has aged away nobody knows when its last block
		// was stored, and who begins there has no place that a cursor can name.
		if s.first > s.last && s.last > 0 && f.breakSilence(ctx, e, s.last) {
			return false, errAgain
		}
		if err := f.adopt(ctx, e, s); err != nil {
			return false, err
		}
	}
	if lost, err := f.lostTail(ctx, f.epoch, f.known, s); lost || err != nil {
		return false, err
	}
	if err := f.start(ctx, s); err != nil {
		return false, err
	}
	if err := f.skip(ctx, s); err != nil {
		return false, err
	}
	f.counts.last.Store(s.last)
	if err := f.tellWarm(ctx); err != nil {
		return false, err
	}
	rctx, cancel := f.patience(ctx)
	p, err := f.c.pull(rctx, f.name, f.next, false, f.pace.heartbeat)
	cancel()
	if err != nil {
		return false, err
	}
	defer p.close()
	f.counts.passes.Add(1)
	if !f.failing.IsZero() {
		f.failing = time.Time{}
		f.log.cfg.Logger.Info("reading goes on", "stream", f.name)
	}
	return f.read(ctx, p, changed)
}

// adopt begins an epoch.
func (f *follower) adopt(ctx context.Context, e epoch, s streamState) error {
	p, err := f.begin(ctx, e.id, s)
	if err != nil {
		return err
	}
	if f.epoch.id != 0 {
		f.counts.epochs.Add(1)
		f.log.cfg.Logger.Warn("the log begins anew: another epoch", "stream", f.name, "epoch", e)
	}
	f.epoch, f.known, f.warm = e, p.known, p.warm
	f.wanted, f.oldest = cmp.Or(p.next, s.last+1), p.next == 0
	f.next, f.end, f.isWarm, f.jumped = 0, s.last, false, 0
	return nil
}

// start finds out where to begin, if that is not known yet: so far before the first
// block that is wanted that there are enough entries in between.
func (f *follower) start(ctx context.Context, s streamState) error {
	if f.next != 0 {
		return nil
	}
	next := f.wanted
	switch {
	case s.first >= f.wanted:
	case f.oldest:
		next = s.first
	case f.warm > 0:
		var err error
		next, err = f.walkBack(ctx, s, f.wanted, func(entries int, _ int64) bool { return entries >= f.warm })
		if err != nil {
			return err
		}
	}
	f.next = next
	f.counts.read.Store(next - 1)
	return nil
}

// skip tells what is gone of what would be next, and goes on behind it.
func (f *follower) skip(ctx context.Context, s streamState) error {
	to := f.next - 1
	switch {
	case s.first > f.next:
		to = s.first - 1
	case f.jumped == f.next && f.next <= s.last:
		// It should be there, and a consumer jumped over it. Is there a hole in
		// the stream itself? Whoever may delete single messages makes some.
		rctx, cancel := f.patience(ctx)
		m, found, err := f.c.nextMessage(rctx, f.name, f.subject, f.next)
		cancel()
		if err != nil {
			return err
		}
		if to = s.last; found {
			to = m.Seq - 1
		}
	}
	if from := max(f.next, f.wanted); to >= from {
		f.log.cfg.Logger.Error("blocks are gone that were not read yet", "stream", f.name, "from", from, "to", to)
		if err := f.handle(ctx, event{kind: gapEvent, from: from, to: to}); err != nil {
			return err
		}
		f.counts.gaps.Add(to - from + 1)
		f.known = known{seq: to}
		f.counts.read.Store(to)
	}
	f.next, f.jumped = to+1, 0
	return nil
}

// tellWarm tells, once per epoch, that the end has been reached that was seen at its
// beginning.
func (f *follower) tellWarm(ctx context.Context) error {
	if f.isWarm || f.next <= f.end {
		return nil
	}
	if err := f.handle(ctx, event{kind: warmEvent}); err != nil {
		return err
	}
	f.isWarm = true
	return nil
}

// read hands over what the consumer brings, until there is a reason to look again.
func (f *follower) read(ctx context.Context, p *puller, changed <-chan struct{}) (worked bool, err error) {
	type checked struct {
		s   streamState
		err error
	}
	checks := make(chan checked, 1)
	cctx, cancel := context.WithCancel(ctx)
	var checking sync.WaitGroup
	defer checking.Wait()
	defer cancel()
	now := time.Now()
	heard, due := now, now.Add(f.pace.check)
	asked := uint64(0)   // what was next when the check began that goes on; 0: none does
	stalled := uint64(0) // what was next after the last check, if there was more then
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := p.ask(); err != nil {
			return worked, err
		}
		silence := heard.Add(2*f.pace.heartbeat + f.pace.heartbeat/2)
		timer.Reset(time.Until(earliest(silence, due, f.stored.Add(f.pace.quiet))))
		select {
		case <-ctx.Done():
			return worked, ctx.Err()
		case <-f.back:
			return worked, errAgain
		case <-changed:
			return worked, errAgain
		case <-f.leaders:
			return worked, errAgain
		case m := <-p.msgs:
			meta, err := p.accept(m)
			if err != nil {
				return worked, err
			}
			if meta != nil {
				if err := f.take(ctx, m, meta); err != nil {
					return worked, err
				}
				f.stored = time.Now()
			}
			worked, heard = true, time.Now() // after take, which may have waited
			continue
		case c := <-checks:
			// A question that is not answered takes away no consumer that brings
			// something.
			if c.err != nil && (errors.Is(c.err, errAgain) || f.next == asked) {
				return worked, c.err
			}
			asked, due = 0, time.Now().Add(f.pace.check)
			f.counts.last.Store(max(f.counts.last.Load(), c.s.last))
			if c.s.last < f.next {
				stalled = 0
				continue
			}
			if stalled == f.next {
				return worked, fmt.Errorf("%w: it does not bring what there is", errPull)
			}
			stalled = f.next
			continue
		case <-timer.C:
		}
		now := time.Now()
		if now.After(silence) && len(p.msgs) == 0 {
			f.counts.silent.Add(1)
			return worked, fmt.Errorf("%w: no heartbeat", errPull)
		}
		if now.After(due) {
			asked, due = f.next, now.Add(time.Hour) // until its answer is there
			e, k := f.epoch, f.known
			checking.Go(func() { // ends with cctx, at the latest, and is waited for above
				s, err := f.check(cctx, e, k)
				checks <- checked{s, err} // there is one at a time
			})
		}
		if now.After(f.stored.Add(f.pace.quiet)) {
			f.breakSilence(ctx, f.epoch, f.next-1)
			f.stored = time.Now()
		}
	}
}

func earliest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if o.Before(t) {
			t = o
		}
	}
	return t
}

// take hands over a message if it is the next one.
func (f *follower) take(ctx context.Context, m *nats.Msg, meta *nats.MsgMetadata) error {
	seq := meta.Sequence.Stream
	if f.next < seq && seq <= f.wanted {
		// What comes before may go while it is read, all the time if the stream is
		// full: to begin anew for that would never end.
		rctx, cancel := f.patience(ctx)
		s, err := f.c.state(rctx, f.name)
		cancel()
		if err == nil && s.first >= seq {
			f.next = seq
		}
	}
	if seq != f.next {
		if seq > f.next {
			f.counts.holes.Add(1)
			f.jumped = f.next
		}
		return errAgain
	}
	if seq == f.known.seq && !f.known.stored.IsZero() && !f.known.stored.Equal(meta.Timestamp) {
		return errAgain // another block than the one that was read: the look says so, too
	}
	f.counts.last.Store(max(f.counts.last.Load(), seq+meta.NumPending))
	ev := event{kind: blockEvent}
	if ev.block, ev.err = openBlock(seq, meta.Timestamp, m.Header, m.Data); ev.err != nil {
		n, _ := entryCount(m.Header) // which walkBack has counted, too
		ev.kind, ev.block = corruptEvent, block{seq: seq, stored: meta.Timestamp, count: n}
	}
	if err := f.handle(ctx, ev); err != nil {
		return err
	}
	if seq >= f.known.seq {
		f.known = known{seq, meta.Timestamp}
	}
	if f.oldest {
		f.oldest, f.wanted = false, seq
	}
	f.next = seq + 1
	f.counts.read.Store(seq)
	f.counts.blocks.Add(1)
	return f.tellWarm(ctx)
}
