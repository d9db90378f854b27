package natslogstats

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qaexchange/notification/natslog"
)

// Every metric, in the order of the fields of Stats. None of these variables ever
// changes.

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("notification_log_"+name, help, labels, nil)
}

func counter[S any](d *prometheus.Desc, value func(*S) uint64, reason ...string) series[S] {
	return series[S]{d, prometheus.CounterValue, reason, func(s *S) float64 { return float64(value(s)) }}
}

func gauge[S any](d *prometheus.Desc, value func(*S) float64) series[S] {
	return series[S]{d, prometheus.GaugeValue, nil, value}
}

func lanes(name, help string, labels ...string) *prometheus.Desc {
	return desc("publisher_"+name, help, append([]string{"lane"}, labels...)...)
}

var (
	publisherRefused = desc("publisher_refused_total", "Calls of Publish and PublishWait refused because the notification was invalid or the Publisher closed.", "reason")
	publisherLatency = lanes("latency_seconds", "Of a block: from the call of Publish of the first notification in it until it was acknowledged.")

	ofPublisher = []series[natslog.PublisherStats]{
		counter(publisherRefused, func(s *natslog.PublisherStats) uint64 { return s.Invalid }, "invalid"),
		counter(publisherRefused, func(s *natslog.PublisherStats) uint64 { return s.RefusedClosed }, "closed"),
	}

	ofPublisherLane = []series[natslog.PublisherLane]{
		gauge(lanes("queued_messages", "Notifications accepted and not yet in the log."),
			func(l *natslog.PublisherLane) float64 { return float64(l.Queued) }),
		gauge(lanes("queue_capacity_messages", "Notifications the lane can hold."),
			func(l *natslog.PublisherLane) float64 { return float64(l.Capacity) }),
		gauge(lanes("stalled_seconds", "For how long the block has been on its way that was sent first."),
			func(l *natslog.PublisherLane) float64 { return l.Stalled.Seconds() }),
		counter(lanes("accepted_total", "Notifications accepted."),
			func(l *natslog.PublisherLane) uint64 { return l.Accepted }),
		counter(lanes("rejected_total", "Calls of Publish and PublishWait refused because the lane was full."),
			func(l *natslog.PublisherLane) uint64 { return l.Rejected }),
		counter(lanes("acknowledged_total", "Notifications that are in the log."),
			func(l *natslog.PublisherLane) uint64 { return l.Acknowledged }),
		counter(lanes("withdrawn_total", "Calls of PublishWait that gave up before they were sent."),
			func(l *natslog.PublisherLane) uint64 { return l.Withdrawn }),
		counter(lanes("discarded_total", "Notifications not sent when the Publisher ended."),
			func(l *natslog.PublisherLane) uint64 { return l.Discarded }),
		counter(lanes("uncertain_total", "Notifications on their way when the Publisher ended: in the log or not."),
			func(l *natslog.PublisherLane) uint64 { return l.Uncertain }),
		counter(lanes("blocks_total", "Blocks acknowledged."),
			func(l *natslog.PublisherLane) uint64 { return l.Blocks }),
		counter(lanes("bytes_total", "Bytes of archives in acknowledged blocks."),
			func(l *natslog.PublisherLane) uint64 { return l.Bytes }),
		counter(lanes("failures_total", "Attempts to send a block that were not acknowledged."),
			func(l *natslog.PublisherLane) uint64 { return l.Failures }),
		counter(lanes("recognized_total", "Blocks sent again that the server had already."),
			func(l *natslog.PublisherLane) uint64 { return l.Recognized }),
		counter(lanes("collisions_total", "Blocks sent once that the server took for others: a fault."),
			func(l *natslog.PublisherLane) uint64 { return l.Collisions }),
	}
)

func ofStream(name, help string) *prometheus.Desc {
	return desc("edge_"+name, help, "edge", "partition", "lane")
}

var (
	edgeOldest = ofStream("backlog_oldest_timestamp_seconds", "When the oldest block was stored that is kept for resuming, by the server's clock.")

	ofEdge = []series[natslog.EdgeStats]{
		gauge(desc("edge_warm", "1 while sessions are taken in all partitions; else 0.", "edge"),
			func(s *natslog.EdgeStats) float64 {
				if s.Warm {
					return 1
				}
				return 0
			}),
		gauge(desc("edge_backlog_bytes", "Bytes of archives that are kept for resuming.", "edge"),
			func(s *natslog.EdgeStats) float64 { return float64(s.Backlog) }),
	}

	ofEdgeStream = []series[natslog.EdgeStreamStats]{
		counter(ofStream("blocks_total", "Blocks read."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Blocks }),
		counter(ofStream("entries_total", "Notifications in the blocks that were read."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Entries }),
		counter(ofStream("repeats_total", "Entries that were repeats."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Repeats }),
		counter(ofStream("misplaced_total", "Entries of another lane, or of a user of another partition."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Misplaced }),
		counter(ofStream("warmed_up_total", "Entries read before there were sessions."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.WarmedUp }),
		counter(ofStream("strangers_total", "Entries of users without sessions here."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Strangers }),
		counter(ofStream("unknown_total", "Entries of a type that this edge does not know; each has ended the sessions of its user."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Unknown }),
		counter(ofStream("sent_total", "Entries that the Gateway was fed with."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Sent }),
		counter(ofStream("marks_total", "Times that the Gateway was told that the log goes on."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Marks }),
		counter(ofStream("cut_total", "Entries not sent because the edge was stopped, or the log began anew, while the Gateway had no room."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Cut }),
		counter(ofStream("corrupt_total", "Messages of the stream that are no blocks."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Corrupt }),
		counter(ofStream("gaps_total", "Times that all sessions were ended because blocks were gone before they were read."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Gaps }),
		counter(ofStream("missing_blocks_total", "Blocks that were gone before they were read."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Missing }),
		counter(ofStream("holes_total", "Times that a block did not follow the one before, and the stream was read again."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Holes }),
		counter(ofStream("epochs_total", "Times that the log began anew."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.Epochs }),
		counter(ofStream("lost_tails_total", "Times that this edge found that the stream had lost its tail."),
			func(s *natslog.EdgeStreamStats) uint64 { return s.LostTails }),
		gauge(ofStream("lag_blocks", "Blocks by which the edge is behind the stream."),
			func(s *natslog.EdgeStreamStats) float64 { return float64(s.Lag) }),
	}

	ofReader = []series[natslog.ReaderStats]{
		counter(desc("reader_blocks_total", "Blocks read.", "reader"),
			func(s *natslog.ReaderStats) uint64 { return s.Blocks }),
		gauge(desc("reader_lag_blocks", "Blocks by which the reader is behind the log.", "reader"),
			func(s *natslog.ReaderStats) float64 { return float64(s.Lag) }),
		counter(desc("reader_holes_total", "Times that a block did not follow the one before, and the stream was read again.", "reader"),
			func(s *natslog.ReaderStats) uint64 { return s.Holes }),
	}
)
