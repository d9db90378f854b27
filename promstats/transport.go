package promstats

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qaexchange/notification/web"
)

// A Transport is what connects browsers: a Handler of wsgateway or ssegateway.
type Transport interface{ Stats() web.Stats }

// A TransportCollector is a prometheus.Collector for one transport.
// NewTransportCollector makes one.
type TransportCollector struct {
	// immutable
	transport Transport
	numbers   []series[web.Stats]
	closed    *prometheus.Desc
	write     *prometheus.Desc
}

var _ prometheus.Collector = (*TransportCollector)(nil)

// NewTransportCollector returns a Collector for t. The name is the value of the
// label transport in all its series, by which several are told apart: websocket,
// say. It must be valid UTF-8.
func NewTransportCollector(name string, t Transport) *TransportCollector {
	d := func(metric, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("notification_web_"+metric, help, labels, prometheus.Labels{"transport": name})
	}
	refused := d("refused_total", "Requests that got no session.", "reason")
	frames := d("frames_total", "Messages and control frames; a batch is one.", "direction")
	bytes := d("bytes_total", "Bytes behind the handshake, below TLS.", "direction")
	return &TransportCollector{
		transport: t,
		closed:    d("closed_total", "Connections that ended, by the code that either side sent first; 0 is a peer's own.", "code"),
		write:     d("write_latency_seconds", "Of one write to a connection, until the kernel had taken it."),
		numbers: []series[web.Stats]{
			gauge(d("connections", "Connections that are open."), func(s *web.Stats) float64 { return float64(s.Connections) }),
			counter(d("accepted_total", "Requests that became a connection with a session."), func(s *web.Stats) uint64 { return s.Accepted }),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.BadRequest }, "bad_request"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Origin }, "origin"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Full }, "full"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Credentials }, "credentials"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Forbidden }, "forbidden"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.CursorGone }, "cursor_gone"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Elsewhere }, "elsewhere"),
			counter(refused, func(s *web.Stats) uint64 { return s.Refused.Failed }, "failed"),
			counter(frames, func(s *web.Stats) uint64 { return s.FramesIn }, "in"),
			counter(frames, func(s *web.Stats) uint64 { return s.FramesOut }, "out"),
			counter(bytes, func(s *web.Stats) uint64 { return s.BytesIn }, "in"),
			counter(bytes, func(s *web.Stats) uint64 { return s.BytesOut }, "out"),
			counter(d("commands_total", "Commands that clients sent."), func(s *web.Stats) uint64 { return s.Commands }),
			counter(d("command_errors_total", "Commands that were answered with an error."), func(s *web.Stats) uint64 { return s.CommandErrors }),
		},
	}
}

// Describe implements prometheus.Collector.
func (c *TransportCollector) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, c.numbers)
	ch <- c.closed
	ch <- c.write
}

// Collect implements prometheus.Collector.
func (c *TransportCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.transport.Stats()
	send(ch, c.numbers, &s)
	for code, n := range s.Closed {
		ch <- prometheus.MustNewConstMetric(c.closed, prometheus.CounterValue, float64(n), code.String())
	}
	ch <- NewLatency(c.write, s.WriteLatency)
}
