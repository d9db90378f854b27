package natslog

import (
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

// PublisherStats is a snapshot of a Publisher's counters. They count notifications
// from NewPublisher on, one for AllUsers once, and never go back. At rest these hold:
//
//	calls of Publish and PublishWait = ΣAccepted + ΣRejected + Invalid + RefusedClosed
//	Accepted, in each lane           = Acknowledged + Withdrawn + Discarded + Uncertain + Queued
type PublisherStats struct {
	Lanes         [notification.NumPriorities]PublisherLane
	Invalid       uint64 // refused with ErrInvalid
	RefusedClosed uint64 // refused with ErrClosed
}

// PublisherLane counts one lane, over all partitions.
type PublisherLane struct {
	Queued, Capacity int           // accepted, and not yet in the log
	Stalled          time.Duration // how long the block is on its way that has been the longest
	Failure          string        // why it was not acknowledged at the last attempt; empty if there was one only

	Accepted     uint64
	Rejected     uint64 // refused with ErrQueueFull
	Acknowledged uint64 // in the log
	Withdrawn    uint64 // calls of PublishWait that ended with their ctx before they were sent
	Discarded    uint64 // not sent when the Publisher ended
	Uncertain    uint64 // on their way when the Publisher ended

	Blocks     uint64 // acknowledged
	Bytes      uint64 // of archives in them
	Failures   uint64 // attempts to send a block that were not acknowledged: no connection, no answer, no room on the disk
	Recognized uint64 // blocks that were sent again and had been in the log already
	Collisions uint64 // blocks that were sent once and taken for others: sent again under a new Msg-Id. Anything but 0 is a fault

	Latency notification.Histogram // per block: from the call of Publish of the first in it until it was acknowledged
}

// A sendCounts is what a backlog counts.
type sendCounts struct {
	accepted, acknowledged, discarded, uncertain    uint64
	blocks, bytes, failures, recognized, collisions uint64
}

// A laneCount is what all partitions of a lane count together.
type laneCount struct {
	queued    atomic.Int64
	rejected  atomic.Uint64
	withdrawn atomic.Uint64
	latency   notification.HistogramRecorder
}

// Stats returns a snapshot. It takes some microseconds per lane, and for each
// partition a short lock that Publish takes too.
func (p *Publisher) Stats() PublisherStats {
	s := PublisherStats{Invalid: p.invalid.Load(), RefusedClosed: p.refused.Load()}
	for i := range s.Lanes {
		l, count := &s.Lanes[i], &p.lanes[i]
		l.Capacity = p.cfg.QueueCapacity[i]
		l.Queued = min(int(count.queued.Load()), l.Capacity) // over it for as long as one is being rejected
		l.Rejected, l.Withdrawn = count.rejected.Load(), count.withdrawn.Load()
		l.Latency = count.latency.Snapshot()
		for _, q := range p.senders[i] {
			q.mu.Lock()
			c := q.counts
			if q.sent != nil {
				if d := time.Since(q.since); d > l.Stalled {
					l.Stalled, l.Failure = d, ""
					if q.failure != nil {
						l.Failure = q.failure.Error()
					}
				}
			}
			q.mu.Unlock()
			l.Accepted += c.accepted
			l.Acknowledged += c.acknowledged
			l.Discarded += c.discarded
			l.Uncertain += c.uncertain
			l.Blocks += c.blocks
			l.Bytes += c.bytes
			l.Failures += c.failures
			l.Recognized += c.recognized
			l.Collisions += c.collisions
		}
	}
	return s
}
