// Package natslogstats shows the Stats of natslog's Publishers, Edges and Readers to
// Prometheus.
//
// A collector reads Stats when it is scraped and keeps nothing in between. How many
// series there are depends on the partitions, never on users or sessions: the labels
// are lane, edge, partition, reader and reason. It is registered with a
// prometheus.Registry; no goroutine runs for it, and there is nothing to stop.
//
// README.md lists every metric, and the equations that hold between them. Beside it
// stands alerts.yml, the alert rules.
package natslogstats

import (
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/promstats"
)

// A Publisher is a *natslog.Publisher.
type Publisher interface{ Stats() natslog.PublisherStats }

// An Edge is a *natslog.Edge.
type Edge interface{ Stats() natslog.EdgeStats }

// A Reader is a *natslog.Reader.
type Reader interface{ Stats() natslog.ReaderStats }

var (
	_ Publisher = (*natslog.Publisher)(nil)
	_ Edge      = (*natslog.Edge)(nil)
	_ Reader    = (*natslog.Reader)(nil)
)

// NewPublisherCollector returns a collector for p. Two Publishers in one process need
// a label of their own, with prometheus.WrapRegistererWith.
func NewPublisherCollector(p Publisher) prometheus.Collector { return publisherCollector{p} }

type publisherCollector struct{ publisher Publisher }

// Describe implements prometheus.Collector.
func (publisherCollector) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, ofPublisher)
	describe(ch, ofPublisherLane)
	ch <- publisherLatency
}

// Collect implements prometheus.Collector.
func (c publisherCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.publisher.Stats()
	send(ch, ofPublisher, &s)
	for p := range s.Lanes {
		lane := notification.Priority(p).String()
		send(ch, ofPublisherLane, &s.Lanes[p], lane)
		ch <- promstats.NewLatency(publisherLatency, s.Lanes[p].Latency, lane)
	}
}

// NewEdgeCollector returns a collector for e and its Gateways, which it shows as
// promstats does: with the same names, rules and dashboard. The label edge is its ID,
// with U+FFFD for what is not valid UTF-8; two edges in one process need two IDs.
func NewEdgeCollector(e Edge) prometheus.Collector { return edgeCollector{e} }

type edgeCollector struct{ edge Edge }

// Describe implements prometheus.Collector.
func (c edgeCollector) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, ofEdge)
	describe(ch, ofEdgeStream)
	ch <- edgeOldest
	gatewaysOf(natslog.EdgeStats{}).Describe(ch)
}

// Collect implements prometheus.Collector.
func (c edgeCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.edge.Stats()
	id := strings.ToValidUTF8(s.ID, "\uFFFD")
	send(ch, ofEdge, &s, id)
	for i := range s.Streams {
		stream := &s.Streams[i]
		labels := []string{id, strconv.Itoa(stream.Partition), stream.Lane.String()}
		send(ch, ofEdgeStream, stream, labels...)
		if !stream.Oldest.IsZero() { // else nothing is kept of this stream
			ch <- prometheus.MustNewConstMetric(edgeOldest, prometheus.GaugeValue, float64(stream.Oldest.UnixNano())/1e9, labels...)
		}
	}
	gatewaysOf(s).Collect(ch)
}

func gatewaysOf(s natslog.EdgeStats) prometheus.Collector {
	return promstats.NewGatewaysCollector(func() []notification.GatewayStats { return s.Gateways })
}

// NewReaderCollector returns a collector for r. The name is the value of the label
// reader in its series, by which several are told apart: audit, say. It must be valid
// UTF-8.
func NewReaderCollector(name string, r Reader) prometheus.Collector {
	return readerCollector{strings.ToValidUTF8(name, "\uFFFD"), r}
}

type readerCollector struct {
	name   string
	reader Reader
}

// Describe implements prometheus.Collector.
func (readerCollector) Describe(ch chan<- *prometheus.Desc) { describe(ch, ofReader) }

// Collect implements prometheus.Collector.
func (c readerCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.reader.Stats()
	send(ch, ofReader, &s, c.name)
}

// A series is one number of S and how Prometheus gets it. Those of one name differ in
// reason.
type series[S any] struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	reason []string // the value of the label reason, if the metric has it
	value  func(*S) float64
}

func describe[S any](ch chan<- *prometheus.Desc, all []series[S]) {
	for _, m := range all {
		ch <- m.desc
	}
}

func send[S any](ch chan<- prometheus.Metric, all []series[S], s *S, labels ...string) {
	for _, m := range all {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), slices.Concat(labels, m.reason)...)
	}
}
