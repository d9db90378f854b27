package natslog

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Whether what was read is still there, and how it stays so that this can be told.

// A known block is one that was read: if the stream has another one in its place, or
// does not reach so far, its tail was lost.
type known struct {
	seq    uint64
	stored time.Time // zero if only the place is known
}

// look asks for the epoch first, and then for the state of the stream, which is that
// of this epoch or of a later one. The epoch may be one that was seen so long ago.
//
// The epoch cannot be told while one of all the streams is away, which must not hold
// up the others: who is in an epoch already stays in it if the bucket still has its
// value. If a stream is made anew meanwhile, its own follower stands still until all
// are there.
func (f *follower) look(ctx context.Context, in epoch, age time.Duration) (epoch, streamState, error) {
	gctx, cancel := f.patience(ctx)
	e, err := f.log.epochs.glance(gctx, f.c, age)
	cancel()
	ctx, cancel = f.patience(ctx)
	defer cancel()
	if err != nil && in.id != 0 && f.log.epochs.goesOn(ctx, f.c, in) {
		e, err = in, nil
	}
	if err != nil {
		return epoch{}, streamState{}, err
	}
	s, err := f.c.state(ctx, f.name)
	if err != nil {
		return epoch{}, streamState{}, err
	}
	if !s.created.Equal(e.created[f.name]) {
		return epoch{}, streamState{}, errAgain // created anew in between
	}
	return e, s, nil
}

// lostTail reports whether the stream, in this state, has lost the block k that was
// read in the epoch e, and changes the epoch if it has.
func (f *follower) lostTail(ctx context.Context, e epoch, k known, s streamState) (bool, error) {
	ctx, cancel := f.patience(ctx)
	defer cancel()
	var lost bool
	switch {
	case k.seq == 0:
	case s.last < k.seq:
		// A leader that was deposed and does not know it yet says such things, too.
		// But nobody acknowledges a block to it, and the sequence of one that is
		// acknowledged leaves no doubt.
		ack, err := f.storeEmpty(ctx, rand.Text())
		if err != nil {
			return false, err
		}
		if lost = ack.Sequence <= k.seq; !lost {
			return false, errAgain
		}
	case k.stored.IsZero(), s.first > k.seq: // nothing to compare with
	case s.last == k.seq && s.lastStored.Equal(k.stored):
	default:
		m, found, err := f.c.message(ctx, f.name, k.seq)
		if err != nil {
			return false, err
		}
		lost = found && !m.Stored.Equal(k.stored)
	}
	if !lost {
		return false, nil
	}
	f.log.cfg.Logger.Error("the stream has lost its tail", "stream", f.name, "read", k.seq, "last", s.last, "epoch", e)
	if f.lostIn != e.id { // before the epoch is changed: that may happen, and its answer get lost
		f.lostIn = e.id
		f.counts.lost.Add(1)
	}
	if err := f.log.epochs.lost(ctx, f.c, e); err != nil {
		return false, err
	}
	return true, nil
}

// check looks at the stream while a consumer reads it: a leader's change may go
// unheard, and a consumer at a server that was cut off, or behind the end of a
// stream that lost its tail, waits in silence. It has a goroutine of its own, so that
// an answer that takes its time holds up nobody; e and k are what run knew when it
// began. The error is errAgain if the epoch has changed.
func (f *follower) check(ctx context.Context, e epoch, k known) (streamState, error) {
	now, s, err := f.look(ctx, e, f.pace.check)
	if err != nil {
		return streamState{}, err
	}
	if now.id != e.id {
		return streamState{}, errAgain
	}
	lost, err := f.lostTail(ctx, e, k, s)
	if lost {
		err = errAgain
	}
	return s, err
}

// breakSilence stores an empty block behind the last, unless another reader has done
// so, and reports whether it has. That it fails is of no importance: there is another
// time.
func (f *follower) breakSilence(ctx context.Context, e epoch, last uint64) bool {
	ctx, cancel := f.patience(ctx)
	defer cancel()
	slot := time.Now().UnixNano() / int64(f.pace.quiet)
	id := "quiet-" + e.String() + "-" + f.name + "-" + strconv.FormatInt(slot, 10)
	// The Msg-Id makes one of those that come together, and the sequence one of all
	// that come after the same block, whatever the clocks say.
	ack, err := f.storeEmpty(ctx, id, jetstream.WithExpectLastSequence(last))
	if err == nil && !ack.Duplicate {
		f.counts.empty.Add(1)
	}
	return err == nil
}

// storeEmpty stores a block without entries.
func (f *follower) storeEmpty(ctx context.Context, id string, options ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := f.c.js.PublishMsg(ctx, newBlockMsg(f.subject, id, 0, nil), options...)
	if err != nil {
		return nil, fmt.Errorf("natslog: storing an empty block in %s: %w", f.name, err)
	}
	return ack, nil
}
