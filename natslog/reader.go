package natslog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/qaexchange/notification"
)

// A Reader reads the whole log, all users and lanes: for storage, audit, a drop
// copy. Nothing of it is kept anywhere but in the Position that the caller keeps.
//
// Next is for one goroutine at a time; Close and Stats are for any. The goroutines
// of a Reader, one per stream, begin with the first Next and end with Close.
type Reader struct {
	// immutable after NewReader
	log       *Log
	from      Position
	followers []*follower // partition by partition, lane by lane
	ctx       context.Context
	cancel    context.CancelCauseFunc
	urgent    chan readBlock // of P0, which comes first
	bulk      chan readBlock
	begun     chan struct{} // closed when every stream has begun
	failed    chan struct{} // closed when failure is set

	following sync.WaitGroup

	mu      sync.Mutex
	started bool     // guarded by mu
	closed  bool     // guarded by mu
	waiting int      // guarded by mu: how many streams have not begun
	failure *failure // guarded by mu: the first

	// owned by Next
	epoch  uint64
	places []streamPlace // what was returned
	shared []streamPlace // a copy of places as they were when rest began; nil if there is none yet
	block  readBlock     // the one that is being returned
	rest   []readEntry   // what is left of it

	// guarded by mu until begun is closed, then Next's
	firstEpoch  uint64
	firstPlaces []streamPlace
}

// A readBlock is what is to be returned of a block.
type readBlock struct {
	stream  int
	seq     uint64
	stored  int64
	entries []readEntry
}

type readEntry struct {
	number  uint64
	archive notification.Archive
	err     error // instead of an archive
}

// A failure is why a Reader cannot go on, and from where another could.
type failure struct {
	err    error
	stream int    // of the gap; -1: all of them
	to     uint64 // the last sequence that is gone
}

// ReaderStats is a snapshot of a Reader.
type ReaderStats struct {
	Blocks uint64 // read, those before the Position included: they tell what is a repeat
	Lag    uint64 // blocks that the servers are known to have and that were not read yet
	Holes  uint64 // times that a block did not follow the last one, and the stream was read again
}

// NewReader returns a Reader that goes on behind from. It asks nobody yet, so the
// only error is notification.ErrInvalid: from is of a log with another number of
// partitions. Close it, before the Log is closed.
func (l *Log) NewReader(from Position) (*Reader, error) {
	n := l.cfg.Partitions * notification.NumPriorities
	if !from.IsZero() && len(from.streams) != n {
		return nil, fmt.Errorf("%w: the position is of a log of %d streams, this has %d", notification.ErrInvalid, len(from.streams), n)
	}
	r := &Reader{
		log: l, from: from, waiting: n,
		urgent: make(chan readBlock), bulk: make(chan readBlock),
		begun: make(chan struct{}), failed: make(chan struct{}),
		firstPlaces: make([]streamPlace, n),
	}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	for i := range n {
		r.followers = append(r.followers, r.newFollower(i))
	}
	return r, nil
}

// Next returns the next archive that is no repeat, and the Position behind it. It
// waits for one until ctx ends. The order is that of each stream; between streams
// there is none, but P0 comes first of what is there. The archive may be kept for as
// long as it is needed, and keeps its block, of 256 KiB or so, in memory.
//
// An error that wraps notification.ErrGap says that the log does not have all that
// comes behind the last Position: it is gone by age or size, or the log was made
// anew or lost its tail. Nothing is ever left out without it. Whoever sees it decides:
// he tells those who rely on him, loads what he missed from elsewhere, and makes
// another Reader of the Position that came with the error. It is behind the hole or,
// if the numbering is a new one, zero: then all that is kept comes, with much that
// he may have had. This Reader stays where it is, and returns the same again.
//
// An error that wraps notification.ErrCorrupt is about one archive, of a type that
// this program does not know, say, or about a message that is no block at all. The
// next call goes on behind it; so who cannot do without it stops here, and begins at
// the Position before when he can read it.
//
// Other errors: that of ctx, which changes nothing, and notification.ErrClosed after
// Close, or when the Log is closed. Failures of NATS are no errors but waited out.
func (r *Reader) Next(ctx context.Context) (a notification.Archive, at Position, err error) {
	if err := ctx.Err(); err != nil {
		return notification.Archive{}, Position{}, err
	}
	if err := r.start(); err != nil {
		return notification.Archive{}, Position{}, err
	}
	if r.epoch == 0 {
		// None before all have begun, because until then it is not known where the
		// others are, and each Position has all.
		select {
		case <-r.begun:
			r.epoch, r.places = r.firstEpoch, r.firstPlaces
		case <-r.failed:
			return r.fail()
		case <-ctx.Done():
			return notification.Archive{}, Position{}, ctx.Err()
		}
	}
	for {
		for len(r.rest) > 0 {
			e := r.rest[0]
			r.rest = r.rest[1:]
			at := r.position(e)
			if len(r.rest) == 0 {
				r.finish()
			}
			return e.archive, at, e.err
		}
		select {
		case r.block = <-r.urgent:
		default:
			select {
			case r.block = <-r.urgent:
			case r.block = <-r.bulk:
			case <-r.failed:
				return r.fail()
			case <-ctx.Done():
				return notification.Archive{}, Position{}, ctx.Err()
			}
		}
		if r.rest = r.block.entries; len(r.rest) == 0 {
			r.finish()
		}
	}
}

// position returns the one behind an entry of the block that is being returned.
func (r *Reader) position(e readEntry) Position {
	if r.shared == nil {
		r.shared = slices.Clone(r.places)
	}
	place := streamPlace{e.number, r.block.stored}
	if len(r.rest) == 0 { // what comes behind it is repeats
		place.number = number(r.block.seq, lastOf)
	}
	return Position{r.epoch, r.shared, r.block.stream, place}
}

// finish is called when all of a block has been returned.
func (r *Reader) finish() {
	r.places[r.block.stream] = streamPlace{number(r.block.seq, lastOf), r.block.stored}
	r.shared = nil
}

// fail returns why the Reader cannot go on.
func (r *Reader) fail() (notification.Archive, Position, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return notification.Archive{}, Position{}, notification.ErrClosed
	}
	var at Position
	if f := r.failure; f.stream >= 0 {
		// Before the first archive, the others are where they were.
		at = Position{r.epoch, slices.Clone(r.places), f.stream, streamPlace{number(f.to, lastOf), 0}}
		if r.epoch == 0 {
			at.epoch, at.streams = r.from.epoch, make([]streamPlace, len(r.from.streams))
			for i := range at.streams {
				at.streams[i] = r.from.at(i)
			}
		}
	}
	return notification.Archive{}, at, r.failure.err
}

// start starts the followers, once.
func (r *Reader) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return notification.ErrClosed
	}
	if r.started {
		return nil
	}
	r.started = true
	for _, f := range r.followers {
		r.following.Go(func() { // ends with r.ctx, or the connection; Close waits for it
			if err := f.run(r.ctx); errors.Is(err, notification.ErrClosed) {
				r.stop(&failure{err: err, stream: -1})
			}
		})
	}
	return nil
}

// stop lets Next return the failure, unless there is one already.
func (r *Reader) stop(f *failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure == nil {
		r.failure = f
		close(r.failed)
		r.cancel(f.err)
	}
}

// Close ends the Reader: a Next that waits, or is called later, returns
// notification.ErrClosed. It waits until nothing of it runs any more, which takes no
// longer than an answer of NATS. It returns nil, and may be called any number of
// times.
func (r *Reader) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop(&failure{err: notification.ErrClosed, stream: -1})
	r.following.Wait()
	return nil
}

// Stats returns a snapshot.
func (r *Reader) Stats() ReaderStats {
	var s ReaderStats
	for _, f := range r.followers {
		s.Blocks += f.counts.blocks.Load()
		s.Lag += f.lag()
		s.Holes += f.counts.holes.Load()
	}
	return s
}

// newFollower returns the one of a stream, which does all that can be done beside
// Next.
func (r *Reader) newFollower(stream int) *follower {
	lane := notification.Priority(stream % notification.NumPriorities)
	f := r.log.newFollower(lane, stream/notification.NumPriorities)
	to := r.bulk
	if lane == notification.P0 {
		to = r.urgent
	}
	seen := newWindow(r.log.cfg.DedupSize)
	var from streamPlace // all up to it was returned by another Reader
	f.begin = func(_ context.Context, epoch uint64, s streamState) (place, error) {
		if !r.from.IsZero() {
			from = r.from.at(stream)
		}
		return r.begin(stream, epoch, s)
	}
	f.handle = func(ctx context.Context, e event) error {
		switch e.kind {
		case gapEvent:
			r.stop(&failure{fmt.Errorf("%w: blocks %d to %d of %s are gone", notification.ErrGap, e.from, e.to, f.name), stream, e.to})
			return ctx.Err()
		case warmEvent:
			return nil
		}
		b := readBlock{stream: stream, seq: e.block.seq, stored: e.block.stored.UnixNano()}
		if e.kind == corruptEvent {
			seen.passAll(e.block.count)
			b.entries = []readEntry{{number: number(b.seq, lastOf), err: fmt.Errorf("%w: message %d of %s: %w", notification.ErrCorrupt, b.seq, f.name, e.err)}}
		}
		for n, entry := range e.block.entries() {
			if seen.repeat(entry.archive.ID()) && entry.err == nil || n <= from.number {
				continue
			}
			if entry.err != nil {
				entry.err = fmt.Errorf("entry %d of block %d of %s: %w", n%maxEntries, b.seq, f.name, entry.err)
			}
			b.entries = append(b.entries, readEntry{n, entry.archive, entry.err})
		}
		if number(b.seq, lastOf) <= from.number {
			return nil // it was read before
		}
		select {
		case to <- b:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f
}

// begin tells a follower where to begin. All must begin in the same epoch, and in
// that of the Position; afterwards there is no other for this Reader.
func (r *Reader) begin(stream int, epoch uint64, s streamState) (place, error) {
	if want := r.expect(epoch); epoch != want {
		err := fmt.Errorf("%w: the numbering of the log is not that of the position any more: a stream lost its tail or was made anew", notification.ErrGap)
		r.stop(&failure{err: err, stream: -1})
		return place{}, err
	}
	p := place{} // with the oldest
	at := streamPlace{number: number(s.first-1, lastOf)}
	if !r.from.IsZero() {
		at = r.from.at(stream)
		p = place{known: at.known(), next: at.next(), warm: r.log.cfg.DedupSize}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.firstPlaces[stream] = at
	if r.waiting--; r.waiting == 0 {
		close(r.begun)
	}
	return p, nil
}

// expect returns the epoch that all must begin in: that of the Position, or else of
// the first that begins.
func (r *Reader) expect(epoch uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.firstEpoch == 0 {
		if r.firstEpoch = r.from.epoch; r.firstEpoch == 0 {
			r.firstEpoch = epoch
		}
	}
	return r.firstEpoch
}
