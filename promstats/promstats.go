// Package promstats shows the Stats of a Broker and its Gateways to Prometheus.
//
// A Collector reads Stats when it is scraped and keeps nothing in between, so
// it costs the way of a notification nothing. How many series there are depends
// on how many gateways and receivers there are, never on users or sessions:
// the labels are lane, gateway, receiver with global, and reason.
//
// A collector is registered with a prometheus.Registry, and that is all: no goroutine
// runs for it, and there is nothing to stop.
//
// README.md lists every metric. Beside it stand alerts.yml, the alert rules,
// and dashboard.json, a Grafana dashboard, both over these metrics alone.
package promstats

import (
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/qaexchange/notification"
)

// A Collector is a prometheus.Collector for one Broker and its Gateways.
// NewCollector makes one. Its methods may be called from anywhere at any time.
//
// Two Collectors cannot be registered side by side: their series would be the
// same. Tell them apart with prometheus.WrapRegistererWith.
type Collector struct {
	// immutable after NewCollector
	broker *notification.Broker

	mu       sync.Mutex
	gateways map[string]*notification.Gateway // guarded by mu: by ID
	dropped  uint64                           // guarded by mu: the most that was ever reported
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns a Collector for b and the gateways, which need not have
// been registered with b, nor run. A nil b stands for a process that feeds its
// Gateways itself: then only they are shown.
func NewCollector(b *notification.Broker, gateways ...*notification.Gateway) *Collector {
	c := &Collector{broker: b, gateways: make(map[string]*notification.Gateway)}
	for _, g := range gateways {
		c.Add(g)
	}
	return c
}

// NewGatewaysCollector returns a collector for Gateways that are somebody else's and
// shows what a Collector shows of its own. stats is called at each scrape, and returns
// what there is of all of them, each with an ID of its own.
func NewGatewaysCollector(stats func() []notification.GatewayStats) prometheus.Collector {
	return gatewaysCollector{stats}
}

type gatewaysCollector struct {
	stats func() []notification.GatewayStats
}

// Describe implements prometheus.Collector.
func (c gatewaysCollector) Describe(ch chan<- *prometheus.Desc) { describeGateways(ch) }

// Collect implements prometheus.Collector.
func (c gatewaysCollector) Collect(ch chan<- prometheus.Metric) {
	collectGateways(ch, slices.Clone(c.stats()))
}

// Add shows g from the next scrape on, in the place of another Gateway with its
// ID: one that has been stopped and built anew, say. A nil g is ignored.
func (c *Collector) Add(g *notification.Gateway) {
	if g == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gateways[g.ID()] = g
}

// Remove shows the Gateway with this ID no more; if there is none it does
// nothing. Remove it after its Shutdown and one more scrape, or what was lost
// on the way down is never seen.
func (c *Collector) Remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.gateways, id)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, ofBroker)
	describe(ch, ofBrokerLane)
	describe(ch, ofReceiver)
	ch <- brokerDropped
	ch <- brokerLatency
	describeGateways(ch)
}

func describeGateways(ch chan<- *prometheus.Desc) {
	describe(ch, ofGateway)
	describe(ch, ofGatewayLane)
	ch <- gatewayLatency
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	gateways := slices.Collect(maps.Values(c.gateways))
	c.mu.Unlock()
	if c.broker != nil {
		c.collectBroker(ch, c.broker.Stats())
	}
	stats := make([]notification.GatewayStats, len(gateways))
	for i, g := range gateways {
		stats[i] = g.Stats()
	}
	collectGateways(ch, stats)
}

func (c *Collector) collectBroker(ch chan<- prometheus.Metric, s notification.BrokerStats) {
	send(ch, ofBroker, &s)
	for p := range s.Lanes {
		lane := notification.Priority(p).String()
		send(ch, ofBrokerLane, &s.Lanes[p], lane)
		ch <- NewLatency(brokerLatency, s.Lanes[p].Latency, lane)
	}
	dropped := s.Departed.Dropped
	// Gateways and receivers share one set of IDs, global subscribers have
	// another: an ID may be in both, and the label global keeps them apart.
	for _, global := range []bool{false, true} {
		some := slices.DeleteFunc(slices.Clone(s.Receivers), func(r notification.ReceiverStats) bool { return r.Global != global })
		for i, name := range names(some, func(r notification.ReceiverStats) string { return r.ID }) {
			dropped += some[i].Dropped
			send(ch, ofReceiver, &some[i], name, strconv.FormatBool(global))
		}
	}
	ch <- prometheus.MustNewConstMetric(brokerDropped, prometheus.CounterValue, float64(c.highest(dropped)))
}

// highest returns n, or what it returned before if that was more. A receiver
// that leaves is for a moment neither among the receivers nor in the sum of the
// departed; a counter that went back would look restarted to Prometheus, and
// all that was ever dropped would count as dropped just now.
func (c *Collector) highest(n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped = max(c.dropped, n)
	return c.dropped
}

func collectGateways(ch chan<- prometheus.Metric, stats []notification.GatewayStats) {
	slices.SortFunc(stats, func(a, b notification.GatewayStats) int { return strings.Compare(a.ID, b.ID) })
	for i, name := range names(stats, func(s notification.GatewayStats) string { return s.ID }) {
		s := &stats[i]
		send(ch, ofGateway, s, name)
		for p := range s.Lanes {
			lane := notification.Priority(p).String()
			send(ch, ofGatewayLane, &s.Lanes[p], name, lane)
			ch <- NewLatency(gatewayLatency, s.Lanes[p].Latency, name, lane)
		}
	}
}

// names returns a label value for each of all, whose IDs differ: the ID itself
// if it is valid UTF-8, as one value that is not fails the whole scrape. What
// replaces it carries a hash of the ID, lest two become equal or one change its
// name when the other leaves. An ID may be such a name by chance or by malice,
// so equal ones are still told apart; two series alike fail the scrape too.
func names[T any](all []T, id func(T) string) []string {
	result := make([]string, len(all))
	taken := make(map[string]bool, len(all))
	for i, t := range all {
		if utf8.ValidString(id(t)) {
			result[i] = id(t)
			taken[result[i]] = true
		}
	}
	for i, t := range all {
		if utf8.ValidString(id(t)) {
			continue
		}
		h := fnv.New64a()
		h.Write([]byte(id(t)))
		name := strings.ToValidUTF8(id(t), "\uFFFD") + "~" + strconv.FormatUint(h.Sum64(), 16)
		for taken[name] {
			name += "~"
		}
		result[i] = name
		taken[name] = true
	}
	return result
}

// A series is one number of S and how Prometheus gets it. Those of one name
// differ in reason.
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

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("notification_"+name, help, labels, nil)
}

func counter[S any](d *prometheus.Desc, value func(*S) uint64, reason ...string) series[S] {
	return series[S]{d, prometheus.CounterValue, reason, func(s *S) float64 { return float64(value(s)) }}
}

func gauge[S any](d *prometheus.Desc, value func(*S) float64) series[S] {
	return series[S]{d, prometheus.GaugeValue, nil, value}
}

// Every metric, in the order of the fields of Stats. None of these variables
// ever changes.
var (
	brokerRefused  = desc("broker_refused_total", "Calls of Publish refused because the notification was invalid or the Broker closed.", "reason")
	brokerDropped  = desc("broker_dropped_total", "Messages that gateways, receivers and global subscribers did not get, those included that have left.")
	brokerLatency  = desc("broker_latency_seconds", "From the call of Publish until handed to the inboxes.", "lane")
	gatewayEnded   = desc("gateway_sessions_ended_total", "Sessions that ended.", "gateway", "reason")
	gatewayDropped = desc("gateway_dropped_total", "Messages × sessions lost from an outbox: the session was slow, or ended with them waiting.", "gateway", "lane", "reason")
	gatewayLatency = desc("gateway_latency_seconds", "From the call of Publish to the start of Push.", "gateway", "lane")

	ofBrokerLane = []series[notification.BrokerLane]{
		gauge(desc("broker_queued_messages", "Messages waiting in the lane.", "lane"),
			func(l *notification.BrokerLane) float64 { return float64(l.Queued) }),
		gauge(desc("broker_queue_capacity_messages", "Messages the lane can hold.", "lane"),
			func(l *notification.BrokerLane) float64 { return float64(l.Capacity) }),
		counter(desc("broker_published_total", "Notifications accepted.", "lane"),
			func(l *notification.BrokerLane) uint64 { return l.Published }),
		counter(desc("broker_rejected_total", "Calls of Publish refused because the lane was full, and of PublishWait that gave up.", "lane"),
			func(l *notification.BrokerLane) uint64 { return l.Rejected }),
		counter(desc("broker_routed_total", "Messages taken off the lane for at least one gateway or receiver.", "lane"),
			func(l *notification.BrokerLane) uint64 { return l.Routed }),
		counter(desc("broker_unrouted_total", "Messages taken off the lane for nobody but global subscribers.", "lane"),
			func(l *notification.BrokerLane) uint64 { return l.Unrouted }),
		counter(desc("broker_discarded_total", "Messages left in the lane when the Broker stopped.", "lane"),
			func(l *notification.BrokerLane) uint64 { return l.Discarded }),
	}

	ofBroker = []series[notification.BrokerStats]{
		counter(desc("broker_deduplicated_total", "Calls of Publish with an ID that had been accepted before."),
			func(s *notification.BrokerStats) uint64 { return s.Deduplicated }),
		counter(brokerRefused, func(s *notification.BrokerStats) uint64 { return s.Invalid }, "invalid"),
		counter(brokerRefused, func(s *notification.BrokerStats) uint64 { return s.RefusedClosed }, "closed"),
		gauge(desc("broker_dedup_window_seconds", "Age of the oldest ID that is remembered."),
			func(s *notification.BrokerStats) float64 { return s.DedupSpan.Seconds() }),
		gauge(desc("broker_users", "Users that are routed somewhere."),
			func(s *notification.BrokerStats) float64 { return float64(s.Users) }),
		counter(desc("broker_departed_handed_total", "Messages handed to gateways, receivers and global subscribers that have left."),
			func(s *notification.BrokerStats) uint64 { return s.Departed.Handed }),
		counter(desc("broker_departed_dropped_total", "Messages not handed to gateways, receivers and global subscribers that have left."),
			func(s *notification.BrokerStats) uint64 { return s.Departed.Dropped }),
	}

	ofReceiver = []series[notification.ReceiverStats]{
		gauge(desc("receiver_stuck", "1 while what is for it is dropped, as its inbox was full for too long; else 0.", "receiver", "global"),
			func(r *notification.ReceiverStats) float64 {
				if r.Stuck {
					return 1
				}
				return 0
			}),
		counter(desc("receiver_handed_total", "Messages handed to it.", "receiver", "global"),
			func(r *notification.ReceiverStats) uint64 { return r.Handed }),
		counter(desc("receiver_dropped_total", "Messages it did not get.", "receiver", "global"),
			func(r *notification.ReceiverStats) uint64 { return r.Dropped }),
	}

	ofGatewayLane = []series[notification.GatewayLane]{
		gauge(desc("gateway_pending_messages", "Messages × sessions in outboxes and running Pushes.", "gateway", "lane"),
			func(l *notification.GatewayLane) float64 { return float64(l.Pending) }),
		counter(desc("gateway_received_total", "Messages taken from the inbox.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Received }),
		counter(desc("gateway_no_session_total", "Messages taken from the inbox that nobody was there to get.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.NoSession }),
		counter(desc("gateway_invalid_total", "Messages fed to the inbox by hand, and refused.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Invalid }),
		counter(desc("gateway_discarded_total", "Messages left in the inbox when the Gateway stopped.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Discarded }),
		counter(desc("gateway_filtered_total", "Messages × sessions that the session's filter did not admit.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Filtered }),
		counter(desc("gateway_enqueued_total", "Messages × sessions put into an outbox.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Enqueued }),
		counter(desc("gateway_replayed_total", "Messages × sessions taken from the history.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Replayed }),
		counter(desc("gateway_taken_total", "Messages × sessions that a Push took.", "gateway", "lane"),
			func(l *notification.GatewayLane) uint64 { return l.Taken }),
		counter(gatewayDropped, func(l *notification.GatewayLane) uint64 { return l.DroppedSlow }, "slow"),
		counter(gatewayDropped, func(l *notification.GatewayLane) uint64 { return l.DroppedEnded }, "ended"),
	}

	ofGateway = []series[notification.GatewayStats]{
		gauge(desc("gateway_sessions", "Sessions that live.", "gateway"),
			func(s *notification.GatewayStats) float64 { return float64(s.Sessions) }),
		gauge(desc("gateway_users", "Users with a session, or with history to be resumed.", "gateway"),
			func(s *notification.GatewayStats) float64 { return float64(s.Users) }),
		counter(desc("gateway_batches_total", "Calls of Push that took their batch.", "gateway"),
			func(s *notification.GatewayStats) uint64 { return s.Batches }),
		counter(desc("gateway_hung_total", "Calls of Push and Close that were abandoned because they did not return.", "gateway"),
			func(s *notification.GatewayStats) uint64 { return s.Hung }),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Closed }, "closed"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Expired }, "expired"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Replaced }, "replaced"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Slow }, "slow"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Gap }, "gap"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Failed }, "failed"),
		counter(gatewayEnded, func(s *notification.GatewayStats) uint64 { return s.Ended.Shutdown }, "shutdown"),
	}
)

// bounds are those of the classic buckets. The lanes' targets, 1 ms, 5 ms,
// 100 ms and 1 s, are among them: so histogram_quantile is over a target
// exactly when too many latencies are, although inside a bucket it guesses.
var bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// schema 3 makes eight native buckets of an octave, each 9 % wide. The Histogram
// has sixteen, but one finer would double what a scrape carries to gain two per
// cent.
const schema = 3

// A latency is a Histogram in both forms that Prometheus knows, so that one
// server reads the classic buckets and another, which asks for it, the native
// ones. A bucket of the Histogram counts as its upper bound everywhere, never
// as the largest latency seen, which moves: what had once counted as within a
// bound would not any more, and a cumulative count must not go back.
type latency struct {
	prometheus.Metric
	classic []*dto.Bucket
}

// NewLatency returns a metric of a Histogram of this library in both forms, for
// collectors of other Stats. d is a description with as many variable labels.
func NewLatency(d *prometheus.Desc, h notification.Histogram, labels ...string) prometheus.Metric {
	native := make(map[int]int64)
	cumulative := make([]uint64, len(bounds))
	var zero uint64
	var sum float64
	for longest, n := range h.Buckets() {
		for i := len(bounds) - 1; i >= 0 && longest <= bounds[i]; i-- {
			cumulative[i] += n
		}
		sum += longest.Seconds() * float64(n)
		if longest == 0 {
			zero += n
			continue
		}
		native[nativeBucket(longest)] += int64(n)
	}
	l := latency{
		Metric: prometheus.MustNewConstNativeHistogram(d, h.Count(), sum, native, nil, zero,
			schema, prometheus.DefNativeHistogramZeroThreshold, time.Time{}, labels...),
		classic: make([]*dto.Bucket, len(bounds)),
	}
	for i, n := range cumulative {
		bound := bounds[i].Seconds()
		l.classic[i] = &dto.Bucket{UpperBound: &bound, CumulativeCount: &n}
	}
	return l
}

// Write implements prometheus.Metric.
func (l latency) Write(out *dto.Metric) error {
	if err := l.Metric.Write(out); err != nil {
		return err
	}
	out.Histogram.Bucket = l.classic
	out.Histogram.CreatedTimestamp = nil // Stats does not tell; the year 1 would be a lie
	return nil
}

// nativeBucket returns the index of the native bucket that d falls into: i for
// what is over 2^((i-1)/8) seconds and not over 2^(i/8).
func nativeBucket(d time.Duration) int {
	return int(math.Ceil(math.Log2(d.Seconds()) * (1 << schema)))
}
