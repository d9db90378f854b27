package natslogstats

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
)

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	give := time.Now().Add(time.Minute)
	for code == 0 && flag.Lookup("test.fuzz").Value.String() == "" && runtime.NumGoroutine() > before {
		if time.Now().After(give) {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines before the tests, more after:\n%s\n", before, stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
		<-time.After(time.Millisecond)
	}
	os.Exit(code)
}

// A table tells what the test has made up.
type table struct {
	mu        sync.Mutex
	publisher natslog.PublisherStats // guarded by mu, as are those below
	edge      natslog.EdgeStats
	reader    natslog.ReaderStats
}

// ask returns one of the three.
func ask[S any](t *table, which *S) S {
	t.mu.Lock()
	defer t.mu.Unlock()
	return *which
}

type (
	ofTablePublisher struct{ *table }
	ofTableEdge      struct{ *table }
	ofTableReader    struct{ *table }
)

func (t ofTablePublisher) Stats() natslog.PublisherStats { return ask(t.table, &t.publisher) }
func (t ofTableEdge) Stats() natslog.EdgeStats           { return ask(t.table, &t.edge) }
func (t ofTableReader) Stats() natslog.ReaderStats       { return ask(t.table, &t.reader) }

// newTable returns one in which every number has a value of its own, by its path.
func newTable() (*table, map[float64]string) {
	t := &table{}
	t.edge.Streams = make([]natslog.EdgeStreamStats, 2)
	t.edge.Gateways = make([]notification.GatewayStats, 2)
	next := 1000
	want := map[float64]string{}
	var fill func(v reflect.Value, path string)
	fill = func(v reflect.Value, path string) {
		switch v.Type() {
		case reflect.TypeFor[notification.Histogram]():
			return
		case reflect.TypeFor[notification.Priority]():
			return
		case reflect.TypeFor[time.Time]():
			next++
			v.Set(reflect.ValueOf(time.Unix(int64(next), 0)))
			want[float64(next)] = path
			return
		}
		if path == "Edge.Epoch" || strings.HasSuffix(path, ".Partition") { // a name, and a label
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
	fill(reflect.ValueOf(&t.publisher).Elem(), "Publisher")
	fill(reflect.ValueOf(&t.edge).Elem(), "Edge")
	fill(reflect.ValueOf(&t.reader).Elem(), "Reader")
	t.edge.ID, t.edge.Warm = "edge", true
	t.edge.Streams[1].Partition, t.edge.Streams[1].Lane = 3, notification.P2
	t.edge.Gateways[0].ID, t.edge.Gateways[1].ID = "edge/0", "edge/3"
	var h notification.HistogramRecorder
	h.Record(3 * time.Millisecond)
	t.publisher.Lanes[notification.P1].Latency = h.Snapshot()
	return t, want
}

// registry returns one with the three collectors of a table.
func registry(t testing.TB, of *table) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	for _, c := range []prometheus.Collector{
		NewPublisherCollector(ofTablePublisher{of}), NewEdgeCollector(ofTableEdge{of}), NewReaderCollector("audit", ofTableReader{of}),
	} {
		require.NoError(t, r.Register(c))
	}
	return r
}

func gather(t testing.TB, of *table) map[string]*dto.MetricFamily {
	t.Helper()
	all, err := registry(t, of).Gather()
	require.NoError(t, err)
	families := map[string]*dto.MetricFamily{}
	for _, f := range all {
		families[f.GetName()] = f
	}
	return families
}

func labels(m *dto.Metric) map[string]string {
	all := map[string]string{}
	for _, l := range m.Label {
		all[l.GetName()] = l.GetValue()
	}
	return all
}

func TestMetrics(t *testing.T) {
	of, want := newTable()
	families := gather(t, of)
	t.Run("every number of Stats is shown", func(t *testing.T) {
		for _, f := range families {
			for _, m := range f.Metric {
				delete(want, m.GetCounter().GetValue())
				delete(want, m.GetGauge().GetValue())
			}
		}
		require.Empty(t, want)
	})
	t.Run("a stream is told by edge, partition and lane", func(t *testing.T) {
		for _, m := range families["notification_log_edge_lag_blocks"].Metric {
			if m.GetGauge().GetValue() == float64(of.edge.Streams[1].Lag) {
				require.Equal(t, map[string]string{"edge": "edge", "partition": "3", "lane": "P2"}, labels(m))
			}
		}
	})
	t.Run("the Gateways are shown as promstats shows them", func(t *testing.T) {
		gateways := map[string]bool{}
		for _, m := range families["notification_gateway_sessions"].Metric {
			gateways[labels(m)["gateway"]] = true
		}
		require.Equal(t, map[string]bool{"edge/0": true, "edge/3": true}, gateways)
	})
	t.Run("blocks' latencies are histograms", func(t *testing.T) {
		n := uint64(0)
		for _, m := range families["notification_log_publisher_latency_seconds"].Metric {
			n += m.GetHistogram().GetSampleCount()
		}
		require.EqualValues(t, 1, n)
	})
	t.Run("warm is 1 or 0", func(t *testing.T) {
		require.EqualValues(t, 1, families["notification_log_edge_warm"].Metric[0].GetGauge().GetValue())
		require.Zero(t, gather(t, &table{})["notification_log_edge_warm"].Metric[0].GetGauge().GetValue())
	})
	t.Run("a stream of which nothing is kept has no oldest block", func(t *testing.T) {
		require.Nil(t, gather(t, &table{edge: natslog.EdgeStats{Streams: make([]natslog.EdgeStreamStats, 1)}})["notification_log_edge_backlog_oldest_timestamp_seconds"])
	})
	t.Run("an ID that is not valid UTF-8 does not fail the scrape", func(t *testing.T) {
		gather(t, &table{edge: natslog.EdgeStats{ID: "edge\xff", Gateways: []notification.GatewayStats{{ID: "edge\xff/0"}}}})
	})
	t.Run("their names are as Prometheus wants them", func(t *testing.T) {
		problems, err := testutil.GatherAndLint(registry(t, of))
		require.NoError(t, err)
		require.Empty(t, problems)
	})
	t.Run("what has no servers yet is shown all the same", func(t *testing.T) {
		require.NotEmpty(t, gather(t, &table{}))
	})
}

var metricName = regexp.MustCompile(`\bnotification_log_[a-z_]*[a-z]`)

func file(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

func TestDocuments(t *testing.T) {
	of, _ := newTable()
	shown := map[string]bool{}
	for name := range gather(t, of) {
		if strings.HasPrefix(name, "notification_log_") {
			shown[name] = true
		}
	}
	t.Run("README.md lists every metric, and none that is not there", func(t *testing.T) {
		listed := map[string]bool{}
		for line := range strings.Lines(file(t, "README.md")) {
			if name, ok := strings.CutPrefix(line, "| `"); ok && strings.HasPrefix(name, "notification_log_") {
				listed[metricName.FindString(name)] = true
			}
		}
		require.Equal(t, shown, listed)
	})
	t.Run("alerts.yml asks for none that is not there", func(t *testing.T) {
		for _, path := range []string{"alerts.yml", "alerts_test.yml"} {
			for _, name := range metricName.FindAllString(file(t, path), -1) {
				require.True(t, shown[name], "%s: %s", path, name)
			}
		}
	})
	t.Run("README.md has a row for every alert", func(t *testing.T) {
		text := file(t, "README.md")
		for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(file(t, "alerts.yml"), -1) {
			require.Contains(t, text, "| "+m[1], m[1])
		}
	})
}

// The equations of README.md hold at the end of every test of natslog, for the numbers
// themselves; here they hold for what is shown of them.
func TestEquations(t *testing.T) {
	of := &table{edge: natslog.EdgeStats{Streams: []natslog.EdgeStreamStats{
		{Entries: 28, Repeats: 1, Misplaced: 2, WarmedUp: 3, Strangers: 4, Unknown: 5, Sent: 6, Cut: 7},
	}}}
	of.publisher.Lanes[0] = natslog.PublisherLane{Accepted: 15, Acknowledged: 1, Withdrawn: 2, Discarded: 3, Uncertain: 4, Queued: 5}
	families := gather(t, of)
	sum := func(names ...string) (sum float64) {
		for _, name := range names {
			for _, m := range families["notification_log_"+name].Metric {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return sum
	}
	text := strings.ReplaceAll(file(t, "README.md"), "\n    ", " ")
	equations := regexp.MustCompile(`(?m)(publisher|edge)_(\w+) = ([a-z_ +]+)`).FindAllStringSubmatch(text, -1)
	require.Len(t, equations, 2)
	for _, e := range equations {
		var right []string
		for _, name := range strings.Split(strings.TrimSpace(e[3]), " + ") {
			right = append(right, e[1]+"_"+strings.TrimSpace(name))
		}
		require.Greater(t, len(right), 4)
		require.Equal(t, sum(e[1]+"_"+e[2]), sum(right...), e[0])
		require.NotZero(t, sum(right...))
	}
}
