package natslog

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

const (
	// headerRoom is what the headers of a block take of the server's max_payload, in
	// bytes; they are some 150.
	headerRoom = 512

	// ackWait is how long a block that was sent waits for its acknowledgement before
	// it is sent again on a connection that is there, at first: a leader that died
	// never answers, and another server's connection does not tell. It doubles up to
	// lastWait, because a server that syncs to a slow disk must not be sent everything
	// again and again.
	ackWait, lastWait = 500 * time.Millisecond, 4 * time.Second

	// The pauses after the server said no: the disk is full, there is no leader.
	firstPause, lastPause = 10 * time.Millisecond, time.Second
)

// PublisherConfig configures a Publisher. The zero value is ready to use.
type PublisherConfig struct {
	// QueueCapacity is how many notifications each lane holds that were accepted and
	// are not yet in the log, exactly, over all partitions; default 10,000, 50,000,
	// 100,000 and 50,000, at most 2^27. They are held as archives, some 200 bytes each
	// unless they hold long texts; one for AllUsers counts once, and is held once per
	// partition.
	QueueCapacity [notification.NumPriorities]int
	// Linger is how long a notification waits for others to share its block, unless
	// another block is on its way, for which it waits in any case; default 0, 1 ms,
	// 10 ms and 20 ms. Negative: not at all.
	Linger [notification.NumPriorities]time.Duration
	// BlockBytes is how large a block may get, in bytes; an archive that is larger has
	// a block of its own. Default 256 KiB, at least 1 KiB, and at most what the server
	// takes in a message (its max_payload) less 512, and a quarter of Config.MaxBytes.
	BlockBytes int
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger

	ackWait time.Duration // for tests
	run     string        // for tests: begins each Msg-Id, in place of 128 random bits
}

func (c *PublisherConfig) setDefaults(maxPayload, maxBytes int64) error {
	for p := range c.QueueCapacity {
		c.QueueCapacity[p] = cmp.Or(c.QueueCapacity[p], [...]int{10_000, 50_000, 100_000, 50_000}[p])
		if c.QueueCapacity[p] < 0 || c.QueueCapacity[p] > 1<<27 {
			return fmt.Errorf("%w: QueueCapacity[%s] %d is not within 1 and 2^27", notification.ErrInvalid, notification.Priority(p), c.QueueCapacity[p])
		}
		c.Linger[p] = max(cmp.Or(c.Linger[p], [...]time.Duration{0, time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond}[p]), 0)
	}
	c.BlockBytes = cmp.Or(c.BlockBytes, 256<<10)
	if c.BlockBytes < 1<<10 || int64(c.BlockBytes) > maxBytes/4 {
		return fmt.Errorf("%w: BlockBytes %d is not within 1 KiB and a quarter of Config.MaxBytes, %d", notification.ErrInvalid, c.BlockBytes, maxBytes/4)
	}
	if int64(c.BlockBytes) > maxPayload-headerRoom {
		return fmt.Errorf("%w: BlockBytes %d and %d for headers are over the server's max_payload, %d", ErrConfig, c.BlockBytes, headerRoom, maxPayload)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.ackWait = cmp.Or(c.ackWait, ackWait)
	return nil
}

// A Publisher puts notifications into the log. NewPublisher makes one; a process
// needs one, and may have several.
//
// Publish encodes a notification into the block that its stream fills at the
// moment; each stream has a sender, a goroutine with one block on its way, which
// sends it until it is acknowledged. So what comes in meanwhile is the next block:
// batches are as large as the server is busy, and nothing waits for a timer but a
// block with room, for Linger.
type Publisher struct {
	// immutable after NewPublisher
	cfg        PublisherConfig
	log        *Log
	life       *lifecycle
	maxArchive int // bytes that the server takes
	senders    [notification.NumPriorities][]*sender
	lanes      [notification.NumPriorities]laneCount
	full       [notification.NumPriorities]error // what a full lane answers, made once: a flood of it must be cheap

	batches sync.Pool // of *batch
	calls   sync.Pool // of *call

	// atomic
	invalid atomic.Uint64
	refused atomic.Uint64
	failing atomic.Int32 // senders whose block was not acknowledged at the first attempt
}

// NewPublisher returns a Publisher that takes notifications at once and puts them
// into the log when Run is called. It returns ErrInvalid if cfg is invalid, and
// ErrConfig if the server does not take blocks of BlockBytes; the text names the
// field.
func (l *Log) NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	maxPayload := min(l.urgent.nc.MaxPayload(), l.bulk.nc.MaxPayload())
	if err := cfg.setDefaults(maxPayload, l.cfg.MaxBytes); err != nil {
		return nil, err
	}
	if cfg.run == "" {
		cfg.run = newRun()
	}
	p := &Publisher{cfg: cfg, log: l, life: newLifecycle(), maxArchive: int(min(maxPayload-headerRoom, maxArchive))}
	p.batches.New = func() any { return new(batch) }
	p.calls.New = func() any { return &call{result: make(chan error, 1)} }
	for lane := range p.senders {
		p.full[lane] = fmt.Errorf("%w: lane %s holds %d", notification.ErrQueueFull, notification.Priority(lane), cfg.QueueCapacity[lane])
		p.senders[lane] = make([]*sender, l.cfg.Partitions)
		for i := range p.senders[lane] {
			p.senders[lane][i] = newSender(p, notification.Priority(lane), i)
		}
	}
	return p, nil
}

// newRun returns 128 random bits, which no other run has had.
func newRun() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Publish accepts n; done, which may be nil, tells later whether it is in the log.
// Publish never blocks, and keeps nothing of n. Nil means that done will be called, once;
// an error is ErrInvalid, ErrClosed or ErrQueueFull, done is not called, and nothing
// was remembered. What has an archive over the server's max_payload is ErrInvalid.
//
// done's error is nil when n is in the log, in every partition if it is for
// AllUsers. It is ErrClosed when the Publisher has ended before n was sent, so that
// it is not in the log, and wraps both ErrUncertain and ErrClosed when it ended with
// n on its way.
//
// done is called by the goroutine of n's stream, in the order of the calls of
// Publish within a lane and user. Until it returns nothing else of its lane and
// partition gets on: it may call Publish, and must not wait, not even for
// PublishWait or Shutdown. A panic in it ends the process.
//
// An ID that is published again while the first is on its way is put into the log
// twice; readers recognize the repeat.
func (p *Publisher) Publish(n *notification.Notification, done func(error)) error {
	return p.publish(n, done, nil)
}

// PublishWait is Publish that waits until n is in the log, and returns nil then: it
// is on the disk, if the server was told to sync, or will be recognized as a repeat.
// If ctx ends first it returns ctx's error if n was not sent, and is not in the log;
// else an error that wraps both ErrUncertain and ctx's error: publish n again with
// the same ID. Otherwise it returns what Publish or done would. It does not wait
// for room in a full lane: that is ErrQueueFull at once.
func (p *Publisher) PublishWait(ctx context.Context, n *notification.Notification) error {
	if err := ctx.Err(); err != nil && n.Validate() == nil {
		p.tooLate(n.Priority)
		return err
	}
	c := p.calls.Get().(*call)
	c.state.Store(queued)
	if err := p.publish(n, nil, c); err != nil {
		p.calls.Put(c)
		return err
	}
	select {
	case err := <-c.result:
		p.calls.Put(c)
		return err
	case <-ctx.Done():
	}
	if c.state.CompareAndSwap(queued, withdrawn) {
		p.withdraw(n)
		return ctx.Err()
	}
	select {
	case err := <-c.result: // at the same time
		return err
	default:
		return fmt.Errorf("%w: its block is on its way: %w", ErrUncertain, ctx.Err())
	}
}

// publish is both: c is set for PublishWait.
func (p *Publisher) publish(n *notification.Notification, done func(error), c *call) error {
	if n == nil || n.Priority >= notification.NumPriorities {
		p.invalid.Add(1)
		return n.Validate()
	}
	senders := p.senders[n.Priority]
	if n.UserID != notification.AllUsers {
		i := partitionOf(n.UserID, len(senders))
		senders = senders[i : i+1]
	}
	lane := &p.lanes[n.Priority]
	if lane.queued.Add(1) > int64(p.cfg.QueueCapacity[n.Priority]) {
		lane.queued.Add(-1)
		lane.rejected.Add(1)
		return p.full[n.Priority]
	}
	var err error
	if len(senders) == 1 {
		s := senders[0]
		s.mu.Lock()
		err = s.put(n, done, c)
		s.mu.Unlock()
	} else {
		err = putAll(senders, n, done, c)
	}
	if err != nil {
		lane.queued.Add(-1)
		if err == notification.ErrClosed {
			p.refused.Add(1)
		} else {
			p.invalid.Add(1)
		}
	}
	return err
}

// withdraw counts a call of PublishWait that has given up before n was sent. Its
// senders find that out, and pass it over.
func (p *Publisher) withdraw(n *notification.Notification) {
	lane, senders := &p.lanes[n.Priority], p.senders[n.Priority]
	lane.queued.Add(-1)
	lane.withdrawn.Add(1)
	if n.UserID != notification.AllUsers {
		i := partitionOf(n.UserID, len(senders))
		senders = senders[i : i+1]
	}
	for _, s := range senders {
		s.mu.Lock()
		s.withdrew()
		s.mu.Unlock()
	}
}

// tooLate counts a call of PublishWait whose ctx had ended before: nothing is sent,
// were it only because the sender was quicker than the look at ctx.
func (p *Publisher) tooLate(lane notification.Priority) {
	p.lanes[lane].withdrawn.Add(1)
	s := p.senders[lane][0]
	s.bump(&s.counts.accepted)
}

// Run puts into the log what is accepted until Shutdown has drained the Publisher,
// and returns nil then, or until ctx ends, and returns its cause. What is queued at
// that moment is counted as Discarded and what is on its way as Uncertain, and their
// dones are called before Run returns. It returns an error that wraps ErrClosed when
// it has something to send and the Log has been closed. A second Run returns ErrRunning, one after the end
// ErrClosed.
func (p *Publisher) Run(ctx context.Context) error {
	if err := p.life.start(); err != nil {
		return err
	}
	unwatch := context.AfterFunc(ctx, func() { p.life.cut(context.Cause(ctx)) })
	defer unwatch()

	p.cfg.Logger.Info("publisher running", "log", p.log.cfg.Name)
	var wg sync.WaitGroup
	for s := range p.all {
		wg.Go(s.run) // ends when drained or stopping; Run waits for it below
	}
	drained := make(chan struct{})
	go func() { wg.Wait(); close(drained) }() // ends with them; Run waits for it
	select {
	case <-drained:
	case <-p.life.stopping:
	}
	p.abandon()
	p.life.settle()
	<-drained // what was abandoned is told by its senders
	p.cfg.Logger.Info("publisher stopped", "log", p.log.cfg.Name, "lost", p.life.lost.Load())
	return p.life.finish()
}

// Shutdown refuses new work, puts into the log what was accepted, and returns nil if
// all of it is there and was told. If ctx ends first, it stops at once as the end of
// Run's ctx does, and returns ctx's error. Otherwise, if something was left, the
// error wraps ErrClosed. It may be called any number of times; before Run it discards
// what is queued, and Run returns ErrClosed.
func (p *Publisher) Shutdown(ctx context.Context) error {
	for s := range p.all {
		s.close()
	}
	if p.life.shut() {
		p.abandon()
		p.life.settle()
		if p.life.lost.Load() == 0 {
			p.life.finish()
		} else {
			go func() { // ends with the callbacks; wait waits for it
				for s := range p.all {
					s.tellAbandoned()
				}
				p.life.finish()
			}()
		}
	}
	return p.life.wait(ctx)
}

// abandon counts what is left at the end.
func (p *Publisher) abandon() {
	for s := range p.all {
		s.end()
	}
	for s := range p.all {
		s.abandon()
	}
}

// all yields the senders, P0's first.
func (p *Publisher) all(yield func(*sender) bool) {
	for _, lane := range p.senders {
		for _, s := range lane {
			if !yield(s) {
				return
			}
		}
	}
}
