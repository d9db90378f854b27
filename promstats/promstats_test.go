package promstats

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" && !settles(before) {
		stacks := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, more after:\n%s\n", before, stacks[:runtime.Stack(stacks, true)])
		code = 1
	}
	os.Exit(code)
}

// settles reports whether there are at most so many goroutines, once they have
// had a while to end.
func settles(goroutines int) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines; <-tick.C {
		if time.Now().After(give) {
			return false
		}
	}
	return true
}

func newBroker(t testing.TB, cfg notification.BrokerConfig) *notification.Broker {
	t.Helper()
	b, err := notification.NewBroker(cfg)
	require.NoError(t, err)
	return b
}

func newGateway(t testing.TB, id string, cfg notification.GatewayConfig) *notification.Gateway {
	t.Helper()
	g, err := notification.NewGateway(id, cfg)
	require.NoError(t, err)
	return g
}

// run starts Broker and Gateways and stops them at the end of the test.
func run(t testing.TB, b *notification.Broker, gateways ...*notification.Gateway) {
	t.Helper()
	for _, g := range gateways {
		require.NoError(t, b.RegisterGateway(g))
	}
	notificationtest.Start(t, b, gateways...)
}

// eventually waits for what has no channel to wait on. How long that takes is
// not asserted: the bound is for what never comes.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	give := time.After(3 * time.Minute)
	for !holds() {
		select {
		case <-tick.C:
		case <-give:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// payloads has one payload for each lane.
var payloads = [notification.NumPriorities]notification.Payload{
	notification.MarginCall{Message: "margin"},
	notification.TradeExecuted{TradeID: "t"},
	notification.AccountUpdate{Balance: 1},
	notification.OrderExpired{OrderID: "o"},
}

func publish(t testing.TB, b *notification.Broker, p notification.Priority, userID string) {
	t.Helper()
	n := notification.New(userID, payloads[p], "test")
	require.Equal(t, p, n.Priority)
	require.NoError(t, b.Publish(n))
}

func gather(t testing.TB, c prometheus.Collector) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(c))
	all, err := r.Gather()
	require.NoError(t, err)
	byName := make(map[string]*dto.MetricFamily)
	for _, f := range all {
		byName[f.GetName()] = f
	}
	return byName
}

// scrape returns the text that a server without native histograms gets.
func scrape(t testing.TB, c prometheus.Collector) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(c))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, "%s", w.Body)
	return w.Body.String()
}

// seriesOf returns the series of a scrape without their values.
func seriesOf(text string) (series []string) {
	for line := range strings.Lines(text) {
		if name, _, ok := cutLast(line, " "); ok && !strings.HasPrefix(line, "#") {
			series = append(series, name)
		}
	}
	return series
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// metricsOf is a Collector of what f sends.
type metricsOf func(chan<- prometheus.Metric)

func (metricsOf) Describe(chan<- *prometheus.Desc)      {}
func (f metricsOf) Collect(ch chan<- prometheus.Metric) { f(ch) }

func TestEveryNumberOfStats(t *testing.T) {
	// Each number gets a value of its own, that must then be somebody's.
	next := 1000
	want := map[float64]string{}
	var fill func(v reflect.Value, path string)
	fill = func(v reflect.Value, path string) {
		if v.Type() == reflect.TypeFor[notification.Histogram]() {
			return
		}
		if v.CanInt() || v.CanUint() {
			next++
			want[float64(next)] = path
		}
		switch {
		case v.Type() == reflect.TypeFor[time.Duration]():
			v.SetInt(int64(next) * int64(time.Second))
		case v.CanInt():
			v.SetInt(int64(next))
		case v.CanUint():
			v.SetUint(uint64(next))
		case v.Kind() == reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
		case v.Kind() == reflect.Array || v.Kind() == reflect.Slice:
			for i := range v.Len() {
				fill(v.Index(i), fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
	broker := notification.BrokerStats{Receivers: make([]notification.ReceiverStats, 2)}
	fill(reflect.ValueOf(&broker).Elem(), "BrokerStats")
	broker.Receivers[0].ID, broker.Receivers[1].ID = "a", "b"
	broker.Receivers[1].Stuck = true
	gateways := []notification.GatewayStats{{}, {}}
	fill(reflect.ValueOf(gateways).Index(0), "GatewayStats")
	gateways[0].ID, gateways[1].ID = "g", "h"

	families := gather(t, metricsOf(func(ch chan<- prometheus.Metric) {
		NewCollector(nil).collectBroker(ch, broker)
		collectGateways(ch, gateways)
	}))
	for name, f := range families {
		for _, m := range f.Metric {
			if name == "notification_broker_dropped_total" {
				continue
			}
			delete(want, m.GetCounter().GetValue())
			delete(want, m.GetGauge().GetValue())
		}
	}
	require.Empty(t, want, "not shown")

	t.Run("drops are summed over those that are there and those that left", func(t *testing.T) {
		sum := broker.Departed.Dropped + broker.Receivers[0].Dropped + broker.Receivers[1].Dropped
		require.EqualValues(t, sum, families["notification_broker_dropped_total"].Metric[0].GetCounter().GetValue())
	})
	t.Run("the stuck receiver is named", func(t *testing.T) {
		for _, m := range families["notification_receiver_stuck"].Metric {
			stuck := 0.0
			if label(m, "receiver") == "b" {
				stuck = 1
			}
			require.Equal(t, stuck, m.GetGauge().GetValue())
		}
	})
	t.Run("the labels are lane, gateway, receiver with global, and reason", func(t *testing.T) {
		for name, f := range families {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					require.Contains(t, []string{"lane", "gateway", "receiver", "global", "reason"}, l.GetName(), name)
				}
			}
		}
	})
}

func TestGatewaysOfOthers(t *testing.T) {
	g := newGateway(t, "g", notification.GatewayConfig{})
	own := gather(t, NewCollector(nil, g))
	others := gather(t, NewGatewaysCollector(func() []notification.GatewayStats { return []notification.GatewayStats{g.Stats()} }))
	require.Equal(t, len(own), len(others))
	for name, f := range own {
		require.Equal(t, len(f.Metric), len(others[name].Metric), name)
	}
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func TestDroppedNeverGoesBack(t *testing.T) {
	c := NewCollector(newBroker(t, notification.BrokerConfig{}))
	dropped := func(s notification.BrokerStats) float64 {
		families := gather(t, metricsOf(func(ch chan<- prometheus.Metric) { c.collectBroker(ch, s) }))
		return families["notification_broker_dropped_total"].Metric[0].GetCounter().GetValue()
	}
	there := notification.BrokerStats{Receivers: []notification.ReceiverStats{{ID: "r", Dropped: 7}}}
	require.EqualValues(t, 7, dropped(there))
	require.EqualValues(t, 7, dropped(notification.BrokerStats{}), "between leaving and being counted as departed")
	require.EqualValues(t, 7, dropped(notification.BrokerStats{Departed: notification.ReceiverStats{Dropped: 7}}))
	require.EqualValues(t, 8, dropped(notification.BrokerStats{Departed: notification.ReceiverStats{Dropped: 8}}))
}

func TestLatency(t *testing.T) {
	// In a bubble a Broker that is started late makes latencies exact to the
	// nanosecond: what passes between each notification and the start.
	latencies := []time.Duration{0, 90 * time.Microsecond, 400 * time.Microsecond, 980 * time.Microsecond,
		4 * time.Millisecond, 90 * time.Millisecond, 950 * time.Millisecond, 3 * time.Second, 20 * time.Second, time.Hour}
	var h, empty *dto.Histogram
	var later []*dto.Histogram // as ever longer latencies come
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, notification.BrokerConfig{})
		snapshot := func(lane notification.Priority) *dto.Histogram {
			synctest.Wait()
			return histogramOf(t, NewCollector(b), "notification_broker_latency_seconds", lane)
		}
		start := time.Now().Add(latencies[len(latencies)-1])
		for _, l := range slices.Backward(latencies) {
			<-time.After(time.Until(start.Add(-l)))
			publish(t, b, notification.P1, "u")
		}
		run(t, b)
		h, empty = snapshot(notification.P1), snapshot(notification.P3)

		for _, pause := range []time.Duration{970 * time.Microsecond, 990 * time.Microsecond, 1010 * time.Microsecond, 5100 * time.Microsecond} {
			later = append(later, snapshot(notification.P2))
			m := newMute("mute")
			require.NoError(t, b.RegisterReceiver(m))
			require.NoError(t, b.Subscribe("v", m.id))
			publish(t, b, notification.P2, "v")
			publish(t, b, notification.P2, "v") // finds the inbox full, and waits
			<-time.After(pause)
			require.NoError(t, b.Unregister(m.id))
		}
		later = append(later, snapshot(notification.P2))
	})
	require.EqualValues(t, len(latencies), h.GetSampleCount())

	t.Run("the targets are among the bounds", func(t *testing.T) {
		var bounds []float64
		for _, bucket := range h.Bucket {
			bounds = append(bounds, bucket.GetUpperBound())
		}
		require.True(t, slices.IsSorted(bounds))
		require.Subset(t, bounds, []float64{0.001, 0.005, 0.1, 1})
	})
	t.Run("a classic bucket holds what is not over its bound", func(t *testing.T) {
		for _, bucket := range h.Bucket {
			var n uint64
			for _, l := range latencies {
				if l.Seconds() <= bucket.GetUpperBound() {
					n++
				}
			}
			require.Equal(t, n, bucket.GetCumulativeCount(), "le=%v", bucket.GetUpperBound())
		}
	})
	t.Run("each latency is in its native bucket or the next", func(t *testing.T) {
		require.EqualValues(t, 1, h.GetZeroCount(), "the one that took no time")
		uppers := nativeUppers(h)
		require.Len(t, uppers, len(latencies)-1)
		for i, l := range latencies[1:] {
			require.GreaterOrEqual(t, uppers[i], l.Seconds())
			require.Less(t, uppers[i], l.Seconds()*1.0625*math.Exp2(1.0/8))
		}
	})
	t.Run("the sum is at most a sixteenth too high", func(t *testing.T) {
		var sum float64
		for _, l := range latencies {
			sum += l.Seconds()
		}
		require.GreaterOrEqual(t, h.GetSampleSum(), sum)
		require.LessOrEqual(t, h.GetSampleSum(), sum*1.0625)
	})
	t.Run("no time of creation is made up", func(t *testing.T) {
		require.Nil(t, h.CreatedTimestamp)
	})
	t.Run("an empty one has every classic bucket and is native too", func(t *testing.T) {
		require.Zero(t, empty.GetSampleCount())
		require.Len(t, empty.Bucket, len(bounds))
		require.Positive(t, empty.GetZeroThreshold())
	})
	t.Run("no count falls when a longer latency comes", func(t *testing.T) {
		for i, now := range later[1:] {
			before := later[i]
			require.Greater(t, now.GetSampleCount(), before.GetSampleCount())
			require.GreaterOrEqual(t, now.GetSampleSum(), before.GetSampleSum())
			for j, bucket := range now.Bucket {
				require.GreaterOrEqual(t, bucket.GetCumulativeCount(), before.Bucket[j].GetCumulativeCount())
			}
			old := nativeUppers(before)
			for _, upper := range nativeUppers(now) {
				if k := slices.Index(old, upper); k >= 0 {
					old = slices.Delete(old, k, k+1)
				}
			}
			require.Empty(t, old, "what was in a native bucket stays there")
		}
	})
}

var discard = notification.SinkFunc(func(context.Context, []*notification.Message) error { return nil })

func histogramOf(t testing.TB, c prometheus.Collector, name string, lane notification.Priority) *dto.Histogram {
	t.Helper()
	for _, m := range gather(t, c)[name].GetMetric() {
		if label(m, "lane") == lane.String() {
			return m.GetHistogram()
		}
	}
	t.Fatalf("no %s of lane %s", name, lane)
	return nil
}

// nativeUppers returns the upper bound of the native bucket of each latency, in
// ascending order.
func nativeUppers(h *dto.Histogram) (uppers []float64) {
	index, delta, n := int32(0), 0, int64(0)
	for _, span := range h.PositiveSpan {
		index += span.GetOffset()
		for range span.GetLength() {
			n += h.PositiveDelta[delta]
			for range n {
				uppers = append(uppers, math.Exp2(float64(index)/math.Exp2(float64(h.GetSchema()))))
			}
			delta++
			index++
		}
	}
	return uppers
}

func TestNames(t *testing.T) {
	for name, ids := range map[string][]string{
		"a valid ID is its own name":                     {"gw-1", "网关", "with \"quotes\"\nand \\ lines", "\x00"},
		"IDs that are not valid UTF-8 stay apart":        {"gw-\xff", "gw-\xfe", "gw-\xff\xfe", "gw-\uFFFD"},
		"an ID may be what another one would be called":  {"gw-\xff", names([]string{"gw-\xff"}, itself)[0]},
		"an ID may be called as two others would be too": {"\xff", names([]string{"\xff"}, itself)[0], names([]string{"\xff"}, itself)[0] + "~"},
	} {
		t.Run(name, func(t *testing.T) {
			got := names(ids, itself)
			for i, name := range got {
				require.True(t, utf8.ValidString(name))
				require.Equal(t, i, slices.Index(got, name), "%q is there twice", name)
				if utf8.ValidString(ids[i]) {
					require.Equal(t, ids[i], name)
				}
			}
		})
	}
	t.Run("a name stays when another one leaves", func(t *testing.T) {
		require.Equal(t, names([]string{"\xfe", "\xff"}, itself)[1], names([]string{"\xff"}, itself)[0])
	})
}

func itself(id string) string { return id }

func FuzzNames(f *testing.F) {
	f.Add("a", "b", "c")
	f.Add("\xff", "\xfe", "\uFFFD")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ids := slices.Compact(slices.Sorted(slices.Values([]string{a, b, c})))
		got := names(ids, itself)
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), len(ids))
		for _, name := range got {
			require.True(t, utf8.ValidString(name))
		}
	})
}

// A mute receiver is never read from.
type mute struct {
	id    string
	inbox notification.Inbox
}

func newMute(id string) mute {
	m := mute{id: id}
	for p := range m.inbox {
		m.inbox[p] = make(chan *notification.Message, 1)
	}
	return m
}

func (m mute) ID() string                { return m.id }
func (m mute) Inbox() notification.Inbox { return m.inbox }
func (m mute) Gap()                      {}

func TestIDsBreakNoScrape(t *testing.T) {
	b := newBroker(t, notification.BrokerConfig{})
	c := NewCollector(b)
	var gateways []*notification.Gateway
	for _, id := range []string{"gw\xff", "gw\xfe", "gw\uFFFD", "both"} {
		g := newGateway(t, id, notification.GatewayConfig{})
		c.Add(g)
		gateways = append(gateways, g)
	}
	run(t, b, gateways...)
	require.NoError(t, b.RegisterReceiver(newMute("receiver\xff")))
	for _, id := range []string{"both", "gw\xff", "receiver\xff"} { // IDs that receivers have too
		require.NoError(t, b.SubscribeGlobal(id, make(chan *notification.Message, 1), notification.DropNewest))
	}
	text := scrape(t, c)
	require.Contains(t, text, `notification_receiver_stuck{global="false",receiver="both"} 0`)
	require.Contains(t, text, `notification_receiver_stuck{global="true",receiver="both"} 0`)
	require.Equal(t, 8, strings.Count(text, "\nnotification_receiver_stuck{"))
	require.Equal(t, 4, strings.Count(text, "\nnotification_gateway_sessions{"))
}

func TestSeriesDoNotGrowWithUsers(t *testing.T) {
	b := newBroker(t, notification.BrokerConfig{})
	g := newGateway(t, "gw", notification.GatewayConfig{})
	run(t, b, g)
	c := NewCollector(b, g)
	users := 0
	with := func(n int) []string {
		for ; users < n; users++ {
			id := fmt.Sprintf("user-%d", users)
			_, err := g.RegisterSession(notification.SessionConfig{ID: id, UserID: id, Sink: discard})
			require.NoError(t, err)
			require.NoError(t, b.PublishWait(t.Context(), notification.New(id, payloads[users%len(payloads)], "test")))
		}
		eventually(t, "all are taken", func() bool {
			taken := 0
			for _, l := range g.Stats().Lanes {
				taken += int(l.Taken)
			}
			return taken == n
		})
		text := scrape(t, c)
		require.Contains(t, text, fmt.Sprintf("notification_broker_users %g\n", float64(n)))
		require.NotContains(t, text, "user-")
		return seriesOf(text)
	}
	few := with(10)
	require.NotEmpty(t, few)
	require.Equal(t, few, with(10_000))
}

func TestGatewaysComeAndGo(t *testing.T) {
	b := newBroker(t, notification.BrokerConfig{})
	shown := func(c *Collector) (ids []string) {
		for _, m := range gather(t, c)["notification_gateway_sessions"].GetMetric() {
			ids = append(ids, label(m, "gateway"))
		}
		return ids
	}
	t.Run("one that is added is shown until it is removed", func(t *testing.T) {
		c := NewCollector(b, newGateway(t, "a", notification.GatewayConfig{}))
		c.Add(newGateway(t, "b", notification.GatewayConfig{}))
		c.Add(nil)
		require.Equal(t, []string{"a", "b"}, shown(c))
		c.Remove("a")
		c.Remove("never there")
		require.Equal(t, []string{"b"}, shown(c))
	})
	t.Run("one with the same ID takes the other's place", func(t *testing.T) {
		c := NewCollector(b, newGateway(t, "a", notification.GatewayConfig{}))
		g := newGateway(t, "a", notification.GatewayConfig{})
		_, err := g.RegisterSession(notification.SessionConfig{ID: "s", UserID: "u", Sink: discard})
		require.NoError(t, err)
		c.Add(g)
		require.Contains(t, scrape(t, c), `notification_gateway_sessions{gateway="a"} 1`)
	})
	t.Run("without a Broker there are only gateways", func(t *testing.T) {
		text := scrape(t, NewCollector(nil, newGateway(t, "a", notification.GatewayConfig{})))
		require.Contains(t, text, "notification_gateway_sessions")
		require.NotContains(t, text, "notification_broker_")
	})
	t.Run("while others scrape and messages move", func(t *testing.T) {
		b := newBroker(t, notification.BrokerConfig{})
		g := newGateway(t, "stays", notification.GatewayConfig{})
		run(t, b, g)
		_, err := g.RegisterSession(notification.SessionConfig{ID: "s", UserID: "u", Sink: discard})
		require.NoError(t, err)
		c := NewCollector(b, g)
		r := prometheus.NewPedanticRegistry()
		require.NoError(t, r.Register(c))
		comes := newGateway(t, "comes and goes", notification.GatewayConfig{})
		var over atomic.Bool
		var wg sync.WaitGroup // of the four, which end with over or by themselves
		wg.Go(func() {
			for !over.Load() {
				c.Add(comes)
				c.Remove(comes.ID())
			}
		})
		wg.Go(func() {
			for !over.Load() {
				_ = b.Publish(notification.New("u", payloads[0], "test"))
			}
		})
		for range 2 {
			wg.Go(func() {
				for range 50 {
					if _, err := r.Gather(); err != nil {
						t.Error(err)
					}
				}
				over.Store(true)
			})
		}
		wg.Wait()
	})
}

func TestConventions(t *testing.T) {
	b := newBroker(t, notification.BrokerConfig{})
	require.NoError(t, b.SubscribeGlobal("audit", make(chan *notification.Message, 1), notification.Wait))
	core, transport := NewCollector(b, newGateway(t, "gw", notification.GatewayConfig{})), NewTransportCollector("websocket", someTransport())
	c := metricsOf(func(ch chan<- prometheus.Metric) {
		core.Collect(ch)
		transport.Collect(ch)
	})
	problems, err := promlint.New(strings.NewReader(scrape(t, c))).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)

	t.Run("README lists every metric", func(t *testing.T) {
		readme := file(t, "README.md")
		for name := range gather(t, c) {
			require.Contains(t, readme, "`"+name+"`")
		}
	})
	t.Run("nothing is named that there is not", func(t *testing.T) {
		there := gather(t, c)
		for _, path := range []string{"README.md", "alerts.yml", "alerts_test.yml", "dashboard.json"} {
			used := metricNames.FindAllString(file(t, path), -1)
			require.NotEmpty(t, used, path)
			for _, name := range used {
				f := there[name]
				for _, suffix := range []string{"_bucket", "_count", "_sum"} {
					if base, ok := strings.CutSuffix(name, suffix); ok && f == nil && there[base].GetType() == dto.MetricType_HISTOGRAM {
						f = there[base]
					}
				}
				require.NotNil(t, f, "%s names %s", path, name)
			}
		}
	})
}
