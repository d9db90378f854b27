package natslog

import (
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

// EdgeStats is what an Edge has counted. At rest, in each stream:
//
//	Entries = Repeats + Misplaced + WarmedUp + Strangers + Unknown + Sent + Cut
//
// and in each lane, over the partition's stream and its Gateway:
//
//	Sent + Marks = Received + Invalid + Discarded, and what the Gateway's inbox holds
type EdgeStats struct {
	ID       string
	Warm     bool                        // it takes sessions in all partitions
	Epoch    uint64                      // of the log
	Backlog  int64                       // bytes of archives that are kept for resuming
	Streams  []EdgeStreamStats           // by partition and lane
	Gateways []notification.GatewayStats // by partition
}

// EdgeStreamStats is what an Edge has counted of one stream.
type EdgeStreamStats struct {
	Partition int
	Lane      notification.Priority

	Blocks  uint64
	Entries uint64
	// Repeats are entries of which the ID stood among the DedupSize before it.
	Repeats uint64
	// Misplaced are entries of another priority, or of a user of another partition: of
	// a publisher that does not keep to BLOCK.md.
	Misplaced uint64
	// WarmedUp are entries that were read before there were sessions.
	WarmedUp uint64
	// Strangers are entries of users without sessions here.
	Strangers uint64
	// Unknown are entries that could not be read, of a type that is newer than this
	// edge: each has ended the sessions of its user.
	Unknown uint64
	// Sent are entries that the Gateway was fed with, and Marks what told it that the
	// log goes on.
	Sent, Marks uint64
	// Cut are entries that were not sent because the edge was stopped, or the log began
	// anew, while the Gateway had no room.
	Cut uint64
	// Corrupt are messages of the stream that are no blocks.
	Corrupt uint64
	// Gaps is how often all sessions were ended because blocks were gone before they
	// were read, and Missing how many blocks that were. Holes is how often the stream
	// was read again because a block did not follow the one before: repaired.
	Gaps, Missing, Holes uint64
	// Epochs is how often the log began anew, and LostTails how often it was this
	// stream of this edge that found out.
	Epochs, LostTails uint64
	// Lag is by how many blocks the edge is behind the stream, as far as it knows.
	Lag uint64
	// Oldest is when the oldest block of the backlog was stored, by the server's
	// clock; zero without one.
	Oldest time.Time
}

// laneCounts are written by one goroutine.
type laneCounts struct {
	blocks, entries, repeats, misplaced, warming, strangers, unknown, sent, marks, cut, corrupt, gaps atomic.Uint64
}

// Stats returns a snapshot. It takes some microseconds for each partition.
func (e *Edge) Stats() EdgeStats {
	st := EdgeStats{ID: e.id, Warm: true}
	for _, t := range e.partitions {
		st.Warm = st.Warm && t.index.warm.Load()
		st.Epoch = t.index.Epoch()
		st.Backlog += t.index.size.Load()
		for p := range t.lanes {
			st.Streams = append(st.Streams, t.lanes[p].stats(t, notification.Priority(p)))
		}
		st.Gateways = append(st.Gateways, t.gateway.Stats())
	}
	return st
}

func (l *partitionLane) stats(t *partition, p notification.Priority) EdgeStreamStats {
	c, f := &l.counts, &l.follower.counts
	return EdgeStreamStats{
		Partition: t.number, Lane: p,
		Blocks: c.blocks.Load(), Entries: c.entries.Load(),
		Repeats: c.repeats.Load(), Misplaced: c.misplaced.Load(), WarmedUp: c.warming.Load(), Strangers: c.strangers.Load(),
		Unknown: c.unknown.Load(), Sent: c.sent.Load(), Marks: c.marks.Load(), Cut: c.cut.Load(), Corrupt: c.corrupt.Load(),
		Gaps: c.gaps.Load(), Missing: f.gaps.Load(), Holes: f.holes.Load(), Epochs: f.epochs.Load(), LostTails: f.lost.Load(),
		Lag: l.follower.lag(), Oldest: t.index.lanes[p].since(),
	}
}
