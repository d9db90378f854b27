package natslog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/qaexchange/notification"
)

// A partition is what an edge does for the users of one partition: it reads the
// four streams, keeps the newest blocks in the index, and feeds a Gateway with what
// that has sessions for.
//
// Each lane is read by a goroutine of its own. A lane is cold until it has read what
// there was at its beginning; while one of the four is, nothing is fed and nobody is
// let in. When the log gets another epoch the lanes come to a halt, one by one, and
// the last one clears the table for all of them.
type partition struct {
	// immutable after NewEdge
	log     *Log
	number  int
	gateway *notification.Gateway
	inbox   notification.Inbox
	index   *index
	lanes   [notification.NumPriorities]partitionLane
	backlog int64  // bytes that the index keeps
	ready   func() // called when it is warm, each time

	mu      sync.Mutex
	arrived [notification.NumPriorities]uint64      // guarded by mu: the epoch before which a lane has halted; 0: it reads
	states  [notification.NumPriorities]streamState // guarded by mu: of the streams of those
	gate    chan struct{}                           // guarded by mu: closed, and replaced, when all have arrived

	// atomic
	cold    atomic.Int32 // lanes that have not caught up
	feeding atomic.Bool
}

// A partitionLane belongs to the goroutine that reads its stream.
type partitionLane struct {
	follower *follower // immutable
	window   *window
	from     uint64   // the first block of the backlog: what comes before it is for the window alone
	begun    bool     // the index knows where it begins
	before   block    // the last that was read, or is corrupt, without what stands in it
	placed   []placed // of a block; kept for the next one

	// written by that goroutine, atomic
	counts laneCounts
}

// newPartition returns one whose Gateway has config, but for its Log.
func newPartition(l *Log, number int, backlog int64, id string, config notification.GatewayConfig) (*partition, error) {
	t := &partition{log: l, number: number, backlog: backlog, gate: make(chan struct{}), ready: func() {}}
	t.index = newIndex(backlog, func(ctx context.Context, lane notification.Priority) (uint64, error) {
		s, err := l.conn(lane).state(ctx, l.stream(lane, number))
		return s.last, err
	})
	config.Log = t.index
	var err error
	if t.gateway, err = notification.NewGateway(id, config); err != nil {
		return nil, err
	}
	t.inbox = t.gateway.Inbox()
	for i := range t.lanes {
		p, lane := notification.Priority(i), &t.lanes[i]
		lane.follower = l.newFollower(p, number)
		lane.follower.begin = func(ctx context.Context, epoch uint64, s streamState) (place, error) {
			return t.begin(ctx, p, epoch, s)
		}
		lane.follower.handle = func(ctx context.Context, e event) error { return t.handle(ctx, p, e) }
	}
	return t, nil
}

// read reads the streams until ctx ends, or the connection is closed for good, and
// returns why.
func (t *partition) read(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	var errs [notification.NumPriorities]error
	for i := range t.lanes {
		all.Go(func() { // ends when ctx does; waited for below
			defer cancel() // the others wait for it whenever an epoch begins
			errs[i] = t.lanes[i].follower.run(ctx)
		})
	}
	all.Wait()
	for _, err := range errs {
		if errors.Is(err, notification.ErrClosed) {
			return err
		}
	}
	return errs[0]
}

// begin halts a lane at the beginning of an epoch until all lanes have halted, so
// that nothing of another one is read any more, and returns where it begins.
func (t *partition) begin(ctx context.Context, p notification.Priority, epoch uint64, s streamState) (place, error) {
	at, err := t.halt(ctx, p, epoch, s)
	if err == nil {
		t.lanes[p].from = at.next
	}
	return at, err
}

func (t *partition) halt(ctx context.Context, p notification.Priority, epoch uint64, s streamState) (place, error) {
	now, changed := t.log.epochs.now()
	t.mu.Lock()
	t.arrived[p], t.states[p] = epoch, s
	all := true
	for _, other := range t.arrived {
		all = all && other == epoch
	}
	gate := t.gate
	if all {
		t.restart(epoch)
		t.arrived = [notification.NumPriorities]uint64{}
		t.gate = make(chan struct{})
		close(gate)
	}
	at := t.places()[p]
	t.mu.Unlock()
	if all {
		return at, nil
	}
	var err error
	if now.id != epoch {
		err = errAgain
	} else {
		select {
		case <-gate:
		case <-changed:
			err = errAgain
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-gate: // whatever else: the others have begun with this one
		return t.places()[p], nil
	default:
		t.arrived[p] = 0
		return place{}, err
	}
}

// restart forgets everything. Nothing is read meanwhile. mu is held.
func (t *partition) restart(epoch uint64) {
	t.feeding.Store(false)
	t.cold.Store(notification.NumPriorities)
	t.index.reset(epoch)
	for p := range t.lanes {
		l := &t.lanes[p]
		l.window, l.begun, l.before = newWindow(t.log.cfg.DedupSize), false, block{}
	}
	t.gateway.Gap()
}

// places returns where each lane begins: all at the first block, if the backlog
// holds that much, or else so far back in each stream as it holds of all of them, a
// little more, since a stream's bytes are more than its archives'. mu is held.
func (t *partition) places() (at [notification.NumPriorities]place) {
	var bytes int64
	for _, s := range t.states {
		bytes += s.bytes
	}
	share := 1.25 * float64(t.backlog) / float64(max(bytes, 1))
	for p, s := range t.states {
		if share < 1 { // else next is 0, the oldest that there is
			at[p] = place{next: s.last + 1 - uint64(share*float64(s.last+1-s.first)), warm: t.log.cfg.DedupSize}
		}
	}
	return at
}

// handle takes what happens in a lane.
func (t *partition) handle(ctx context.Context, p notification.Priority, e event) error {
	switch l := &t.lanes[p]; e.kind {
	case blockEvent:
		if e.block.seq >= l.from {
			if !l.begun {
				t.index.begin(p, e.block.seq, l.before)
				l.begun = true
			}
			if err := t.take(ctx, p, e.block); err != nil {
				return err
			}
		} else {
			t.warmUp(p, e.block)
		}
		l.before = block{seq: e.block.seq, stored: e.block.stored, count: e.block.count}
	case corruptEvent:
		l.counts.corrupt.Add(1)
		t.log.cfg.Logger.Error("a message of the stream is no block", "stream", l.follower.name, "sequence", e.block.seq, "error", e.err)
		l.window.passAll(e.block.count)
		l.before = block{seq: e.block.seq, stored: e.block.stored, count: maxEntries} // nobody knows how many
		if e.block.seq >= l.from {
			t.goOn(p, e.block.seq+1)
		}
	case gapEvent:
		t.goOn(p, e.to+1)
	case warmEvent:
		if !l.begun {
			t.goOn(p, l.follower.next)
		}
		t.caughtUp()
	}
	return nil
}

// goOn says that a lane goes on with this sequence, and that what was before it is
// gone.
func (t *partition) goOn(p notification.Priority, seq uint64) {
	t.index.begin(p, seq, t.lanes[p].before)
	t.lanes[p].begun = true
	if t.feeding.Load() {
		t.lanes[p].counts.gaps.Add(1)
		t.gateway.Gap()
	}
}

// caughtUp says that a lane is warm. With the last of them sessions may come. What
// the Gateway has been fed before is all behind At, which Gap reads after feeding is
// set, and whoever reads a block later than that feeds it.
func (t *partition) caughtUp() {
	if t.cold.Add(-1) > 0 {
		return
	}
	t.feeding.Store(true)
	t.gateway.Gap()
	t.index.warm.Store(true)
	t.ready()
}

// warmUp takes a block that stands before the backlog. It only makes the window
// complete: which of its own entries are repeats cannot be told.
func (t *partition) warmUp(p notification.Priority, b block) {
	l := &t.lanes[p]
	t.place(p, b)
	l.counts.warming.Add(uint64(len(l.placed)))
}

// take takes the next block of a lane. It waits while the Gateway's inbox is full; if
// ctx ends meanwhile, nothing more of the log is fed, and it returns ctx's error. If
// the log begins anew meanwhile, it does not wait any more, for a sink would hold up
// all the others: the sessions are about to end, and do so at once.
func (t *partition) take(ctx context.Context, p notification.Priority, b block) error {
	l := &t.lanes[p]
	t.place(p, b)
	t.index.add(p, b, l.placed)
	if !t.feeding.Load() {
		l.counts.warming.Add(uint64(len(l.placed)))
		return nil
	}
	now, over := t.log.epochs.now()
	if now.id != 0 && now.id != t.index.Epoch() {
		ended := make(chan struct{})
		close(ended)
		over = ended
	}
	// All that follows is behind At, which add has raised: who becomes known to the
	// Gateway after it was asked finds it in the index.
	last := uint64(0)
	for i, e := range l.placed {
		switch {
		case !t.gateway.Holds(e.user):
			l.counts.strangers.Add(1)
		case e.err != nil:
			l.counts.unknown.Add(1)
			t.log.cfg.Logger.Error("an archive that cannot be read ends its user's sessions", "stream", l.follower.name, "number", e.number, "error", e.err)
			t.gateway.GapUser(e.user)
		case t.send(ctx, over, p, notification.NewMessageAt(e.archive.Notification(), e.number)):
			l.counts.sent.Add(1)
			last = e.number
		default:
			l.counts.cut.Add(uint64(len(l.placed) - i))
			return t.letGo(ctx)
		}
	}
	// Of what was not sent the Gateway must learn, too, or the cursors of quiet users
	// would grow old.
	if b.count == 0 || last != number(b.seq, b.count-1) {
		if !t.send(ctx, over, p, notification.NewMessageAt(nil, endOf(b.seq))) {
			return t.letGo(ctx)
		}
		l.counts.marks.Add(1)
	}
	return nil
}

// send sends a message to the Gateway. It reports false if there is no room, and
// ctx ends or the epoch is over.
func (t *partition) send(ctx context.Context, over <-chan struct{}, p notification.Priority, m *notification.Message) bool {
	select {
	case t.inbox[p] <- m:
		return true
	default:
	}
	select {
	case t.inbox[p] <- m:
		return true
	case <-over:
		return false
	case <-ctx.Done():
		return false
	}
}

// letGo says that the rest of a block is not sent.
func (t *partition) letGo(ctx context.Context) error {
	if ctx.Err() == nil {
		t.gateway.Gap()
	}
	return ctx.Err()
}

// place counts a block, and sets placed to what it has for somebody.
func (t *partition) place(p notification.Priority, b block) {
	l := &t.lanes[p]
	clear(l.placed) // keep no block alive
	l.placed = l.placed[:0]
	l.counts.blocks.Add(1)
	l.counts.entries.Add(uint64(b.count))
	for n, e := range b.entries() {
		switch {
		case e.err != nil: // its ID cannot be told
			l.window.pass()
		case l.window.repeat(e.archive.ID()):
			l.counts.repeats.Add(1)
			continue
		case e.archive.Priority() != p, e.user != notification.AllUsers && partitionOf(e.user, t.log.cfg.Partitions) != t.number:
			l.counts.misplaced.Add(1)
			continue
		}
		l.placed = append(l.placed, placed{e, n})
	}
}

// registerSession is Edge.RegisterSession for a user of this partition.
func (t *partition) registerSession(cfg notification.SessionConfig) (*notification.Session, error) {
	if !t.index.warm.Load() {
		return nil, fmt.Errorf("%w: %w", notification.ErrTryAgain, errCold)
	}
	return t.gateway.RegisterSession(cfg)
}
