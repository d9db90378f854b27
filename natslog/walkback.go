package natslog

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// walkBack returns the greatest sequence of which the blocks from there up to, and
// without, before are enough, or the first of the stream if all are not. It reads
// their headers, from the end: 64 blocks, then twice as many, and so on, because
// nobody knows how large blocks are. enough gets the entries and bytes of archives of
// those between.
func (f *follower) walkBack(ctx context.Context, s streamState, before uint64, enough func(entries int, bytes int64) bool) (uint64, error) {
	before = min(before, s.last+1)
	var entries int
	var bytes int64
	for high, step := before, uint64(64); ; step *= 2 {
		low := max(s.first, high-min(step, high-1))
		if low >= high {
			return high, nil
		}
		sizes, err := f.sizes(ctx, low, high)
		if err != nil {
			return 0, err
		}
		for seq := high; seq > low; seq-- {
			size := sizes[seq-1-low]
			entries, bytes = entries+size.entries, bytes+size.bytes
			if enough(entries, bytes) {
				return seq - 1, nil
			}
		}
		high = low
	}
}

// A blockSize is what the header of a block says of it; of what is no block, or not
// there, zero.
type blockSize struct {
	entries int
	bytes   int64
}

// sizes returns those of the blocks from low up to, and without, high.
func (f *follower) sizes(ctx context.Context, low, high uint64) ([]blockSize, error) {
	rctx, cancel := f.patience(ctx)
	p, err := f.c.pull(rctx, f.name, low, true, f.pace.heartbeat)
	cancel()
	if err != nil {
		return nil, err
	}
	defer p.close()
	sizes := make([]blockSize, high-low)
	for {
		if err := p.ask(); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2*f.pace.heartbeat + f.pace.heartbeat/2):
			return nil, fmt.Errorf("%w: no heartbeat", errPull)
		case m := <-p.msgs:
			meta, err := p.accept(m)
			if err != nil {
				return nil, err
			}
			if meta == nil {
				if m.Header.Get("Status") == "100" {
					return nil, fmt.Errorf("%w: it has nothing to bring", errPull) // all has aged away meanwhile
				}
				continue
			}
			if seq := meta.Sequence.Stream; seq >= low && seq < high {
				n, _ := entryCount(m.Header)
				size, _ := strconv.ParseInt(m.Header.Get(nats.MsgSize), 10, 64)
				sizes[seq-low] = blockSize{n, size}
			}
			if meta.Sequence.Stream >= high-1 || meta.NumPending == 0 {
				return sizes, nil
			}
		}
	}
}
