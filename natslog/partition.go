package natslog

import (
	"context"
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
	begun    bool     // the index knows where it begins
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

// read reads the streams until ctx ends, or the connection is closed for good.
func (t *partition) read(ctx context.Context) {
	var all sync.WaitGroup
	for i := range t.lanes {
		all.Go(func() { _ = t.lanes[i].follower.run(ctx) }) // ends when ctx does; waited for below
	}
	all.Wait()
}

// begin halts a lane at the beginning of an epoch until all lanes have halted, so
// that nothing of another one is read any more, and returns where it begins.
func (t *partition) begin(ctx context.Context, p notification.Priority, epoch uint64, s streamState) (place, error) {
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
		l.window, l.begun = newWindow(t.log.cfg.DedupSize), false
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
	share := min(1.25*float64(t.backlog)/float64(max(bytes, 1)), 1)
	for p, s := range t.states {
		at[p] = place{next: s.last + 1 - uint64(share*float64(s.last+1-s.first)), warm: t.log.cfg.DedupSize}
	}
	return at
}

// handle takes what happens in a lane.
func (t *partition) handle(ctx context.Context, p notification.Priority, e event) error {
	switch l := &t.lanes[p]; e.kind {
	case blockEvent:
		if !l.begun {
			t.index.begin(p, e.block.seq)
			l.begun = true
		}
		return t.take(ctx, p, e.block)
	case corruptEvent:
		l.counts.corrupt.Add(1)
		t.log.cfg.Logger.Error("a message of the stream is no block", "stream", l.follower.name, "sequence", e.block.seq, "error", e.err)
		t.goOn(p, e.block.seq+1)
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
	t.index.begin(p, seq)
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

// take takes the next block of a lane. It waits while the Gateway's inbox is full; if
// ctx ends meanwhile, nothing more of the log is fed, and it returns ctx's error.
func (t *partition) take(ctx context.Context, p notification.Priority, b block) error {
	l := &t.lanes[p]
	t.place(p, b)
	t.index.add(p, b, l.placed)
	l.counts.blocks.Add(1)
	l.counts.entries.Add(uint64(b.count))
	if !t.feeding.Load() {
		l.counts.warming.Add(uint64(len(l.placed)))
		return nil
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
		case t.send(ctx, p, notification.NewMessageAt(e.archive.Notification(), e.number)):
			l.counts.sent.Add(1)
			last = e.number
		default:
			l.counts.cut.Add(uint64(len(l.placed) - i))
			return ctx.Err()
		}
	}
	// Of what was not sent the Gateway must learn, too, or the cursors of quiet users
	// would grow old.
	if b.count == 0 || last != number(b.seq, b.count-1) {
		if !t.send(ctx, p, notification.NewMessageAt(nil, endOf(b.seq))) {
			return ctx.Err()
		}
		l.counts.marks.Add(1)
	}
	return nil
}

func (t *partition) send(ctx context.Context, p notification.Priority, m *notification.Message) bool {
	select {
	case t.inbox[p] <- m:
		return true
	default:
	}
	select {
	case t.inbox[p] <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

// place sets placed to what a block has for somebody.
func (t *partition) place(p notification.Priority, b block) {
	l := &t.lanes[p]
	clear(l.placed) // keep no block alive
	l.placed = l.placed[:0]
	at := 0
	for n, e := range b.entries() {
		here := at
		size, _ := nextArchive(b.data[at:]) // openBlock checked it
		at += size
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
		l.placed = append(l.placed, placed{e, n, here})
	}
}

// registerSession is Edge.RegisterSession for a user of this partition.
func (t *partition) registerSession(cfg notification.SessionConfig) (*notification.Session, error) {
	if !t.index.warm.Load() {
		return nil, fmt.Errorf("%w: %w", notification.ErrTryAgain, errCold)
	}
	return t.gateway.RegisterSession(cfg)
}
