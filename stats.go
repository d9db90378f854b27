package notification

import (
	"iter"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// BrokerStats is a snapshot of a Broker's counters. They count from New on and
// never go back. While messages move, counters read a moment apart may disagree
// by what moved; at rest these hold:
//
//	calls of Publish and PublishWait = ΣPublished + Deduplicated + ΣRejected + Invalid + RefusedClosed
//	Published, in each lane          = Routed + Unrouted + Discarded + Queued
//
// PublishBatch is a call for each that it accepts, and for the one that it refuses.
type BrokerStats struct {
	Lanes         [NumPriorities]BrokerLane
	Deduplicated  uint64          // accepted before: Publish returned nil and did nothing
	Invalid       uint64          // refused with ErrInvalid
	RefusedClosed uint64          // refused with ErrClosed
	DedupSpan     time.Duration   // age of the oldest ID remembered: must exceed the producers' retry horizon
	Users         int             // users that are routed somewhere
	Receivers     []ReceiverStats // gateways, receivers and global subscribers, by ID
	Departed      ReceiverStats   // the sum of those that were unregistered
}

// BrokerLane counts the messages of one lane.
type BrokerLane struct {
	Queued, Capacity int
	Published        uint64    // accepted
	Rejected         uint64    // refused with ErrQueueFull, and PublishWait calls that gave up
	Routed           uint64    // taken off the lane for at least one gateway or receiver
	Unrouted         uint64    // taken off the lane for nobody but global subscribers
	Discarded        uint64    // left in the lane when the Broker stopped
	Latency          Histogram // from the call of Publish until handed to the inboxes
}

// ReceiverStats counts what one gateway, receiver or global subscriber got.
type ReceiverStats struct {
	ID      string
	Global  bool   // a global subscriber
	Stuck   bool   // its budget is spent in at least one lane, and what is for it is dropped
	Handed  uint64 // messages sent to its channels
	Dropped uint64 // was full for too long, or left during the hand-over
}

func (s *ReceiverStats) add(r *receiver) {
	s.Handed += r.handed.value()
	s.Dropped += r.dropped.value()
}

// GatewayStats is a snapshot of a Gateway's counters, which count from New on.
// At rest these hold in each lane:
//
//	Handed to this gateway = ΣReceived + ΣInvalid + ΣDiscarded + what its inbox holds
//	Enqueued + Replayed    = Taken + DroppedSlow + DroppedEnded + Pending
type GatewayStats struct {
	ID       string
	Lanes    [NumPriorities]GatewayLane
	Sessions int
	Users    int         // users with a session, or with history to be resumed
	Batches  uint64      // Push calls that returned nil
	Hung     uint64      // Push and Close calls that had not returned 1 s after their session ended
	Ended    SessionEnds // sessions that ended, by reason
}

// GatewayLane counts one lane: messages, then messages × sessions.
type GatewayLane struct {
	Pending int // in outboxes and in running Pushes

	Received  uint64 // taken from the inbox
	NoSession uint64 // of those: nobody was there to get it, nor history to keep it
	Discarded uint64 // left in the inbox when the Gateway stopped
	Invalid   uint64 // fed to the inbox by hand, and refused: not valid, or in another's lane

	Filtered     uint64 // the session's filter did not admit it
	Enqueued     uint64 // put into an outbox
	Replayed     uint64 // taken from the history
	Taken        uint64 // a Push with it returned nil
	DroppedSlow  uint64 // by SlowDropOldest
	DroppedEnded uint64 // was waiting, or in the Push that failed, when its session ended

	Latency Histogram // from the call of Publish to the start of Push; replayed messages are left out
}

// SessionEnds counts the sessions that ended.
type SessionEnds struct {
	Closed   uint64 // ErrSessionClosed
	Expired  uint64 // ErrSessionExpired
	Replaced uint64 // ErrSessionReplaced
	Slow     uint64 // ErrSlowConsumer
	Gap      uint64 // ErrGap
	Failed   uint64 // the sink's error, ErrSinkPanic among them
	Shutdown uint64 // ErrGatewayClosed
}

// The buckets of a Histogram are log-linear, as HdrHistogram's are: 16 to an
// octave, so that none is wider than 1/16 of its lower bound. They cover every
// Duration, in 7.5 KiB: a last bucket for all that took long could not tell an
// hour from a year.
const (
	subBits    = 4
	octaves    = 63 // of a Duration that is not negative
	numBuckets = (octaves - subBits + 1) << subBits
)

// bucketOf returns the bucket of d; what is negative counts as zero.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// bucketMax returns the largest duration that falls into bucket i.
func bucketMax(i int) time.Duration {
	if i < 2<<subBits {
		return time.Duration(i)
	}
	shift := i>>subBits - 1
	return time.Duration((uint64(i-shift<<subBits)+1)<<shift - 1)
}

// A Histogram is a distribution of latencies, in buckets of at most 6.25 %
// width, however long they are. The zero value is empty. It is a value: no method
// changes it.
type Histogram struct {
	counts []uint64 // nil or numBuckets long, never written after the snapshot
	total  uint64
	max    time.Duration
}

// Count returns how many latencies were recorded.
func (h Histogram) Count() uint64 { return h.total }

// Quantile returns the latency that a share q of all, 0 to 1, did not exceed,
// at most 6.25 % too high; zero if nothing was recorded.
func (h Histogram) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(h.total)))
	rank = min(max(rank, 1), h.total)
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank && n > 0 {
			return min(bucketMax(i), h.max)
		}
	}
	return 0
}

// Max returns the largest latency: exactly, or for a difference the upper
// bound of its highest bucket.
func (h Histogram) Max() time.Duration { return h.max }

// Sub returns what was recorded since earlier, a previous snapshot of the same
// Histogram. Of anything else the result is meaningless, though no panic.
func (h Histogram) Sub(earlier Histogram) Histogram {
	return h.combine(earlier, func(a, b uint64) uint64 { return a - min(a, b) })
}

// Add returns the two together: two lanes, say, or two gateways.
func (h Histogram) Add(o Histogram) Histogram {
	sum := h.combine(o, func(a, b uint64) uint64 { return a + b })
	if sum.total > 0 {
		sum.max = max(h.max, o.max)
	}
	return sum
}

func (h Histogram) combine(o Histogram, f func(a, b uint64) uint64) Histogram {
	if h.counts == nil && o.counts == nil {
		return Histogram{}
	}
	r := Histogram{counts: make([]uint64, numBuckets)}
	copy(r.counts, h.counts)
	for i := range r.counts {
		var n uint64
		if o.counts != nil {
			n = o.counts[i]
		}
		r.counts[i] = f(r.counts[i], n)
		r.total += r.counts[i]
		if r.counts[i] > 0 {
			r.max = min(bucketMax(i), h.max)
		}
	}
	return r
}

// Buckets yields the buckets that are not empty, in ascending order: the
// largest latency that falls into the bucket, and how many did.
func (h Histogram) Buckets() iter.Seq2[time.Duration, uint64] {
	return func(yield func(time.Duration, uint64) bool) {
		for i, n := range h.counts {
			if n > 0 && !yield(bucketMax(i), n) {
				return
			}
		}
	}
}

// A HistogramRecorder collects a Histogram: that of a transport's writes, say,
// beside the Broker's and the Gateway's own. The zero value is ready, for any
// number of writers and readers at once; it takes 7.5 KiB and must not be copied.
type HistogramRecorder struct {
	counts [numBuckets]atomic.Uint64
	max    atomic.Int64
}

// Record counts d; what is negative counts as zero. It does not allocate.
func (r *HistogramRecorder) Record(d time.Duration) {
	r.counts[bucketOf(d)].Add(1)
	for m := r.max.Load(); int64(d) > m && !r.max.CompareAndSwap(m, int64(d)); {
		m = r.max.Load()
	}
}

// Snapshot returns what was recorded so far. It leaves out what is recorded while
// it reads, or part of it.
func (r *HistogramRecorder) Snapshot() Histogram {
	h := Histogram{counts: make([]uint64, numBuckets), max: time.Duration(r.max.Load())}
	for i := range r.counts {
		h.counts[i] = r.counts[i].Load()
		h.total += h.counts[i]
	}
	return h
}

// A tally is a counter with one writer, at whose side a locked instruction per
// message would be waste; anybody may read.
type tally struct{ n atomic.Uint64 }

func (t *tally) inc()          { t.n.Store(t.n.Load() + 1) }
func (t *tally) value() uint64 { return t.n.Load() }
