package promstats

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

// The tests of this file ask the real Prometheus, on a real socket and in real
// time.

var metricNames = regexp.MustCompile(`\bnotification_[a-z_]*[a-z]`)

func file(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// need returns the path of a program, or skips.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("the real thing was not asked: %v (on Debian: apt-get install prometheus)", err)
	}
	return path
}

func TestPromtool(t *testing.T) {
	promtool := need(t, "promtool")
	tool := func(t *testing.T, stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	t.Run("it has nothing to say about the metrics", func(t *testing.T) {
		b := newBroker(t, notification.BrokerConfig{})
		require.NoError(t, b.SubscribeGlobal("audit\xff", make(chan *notification.Message, 1), notification.Wait))
		text := scrape(t, NewCollector(b, newGateway(t, "gw\xff", notification.GatewayConfig{})))
		require.Empty(t, tool(t, text, "check", "metrics"))
	})
	t.Run("it accepts the rules", func(t *testing.T) {
		require.Contains(t, tool(t, "", "check", "rules", "--lint=all", "alerts.yml"), "SUCCESS")
	})
	t.Run("their unit tests pass", func(t *testing.T) {
		require.Contains(t, tool(t, "", "test", "rules", "alerts_test.yml"), "SUCCESS")
	})
}

// A bridge is a receiver that can be made to hang.
type bridge struct {
	inbox [notification.NumPriorities]chan *notification.Message
	hung  chan struct{} // cap 1: full while it hangs
}

func newBridge() *bridge {
	b := &bridge{hung: make(chan struct{}, 1)}
	for p := range b.inbox {
		// Five seconds of the load, which a busy machine may well take away.
		b.inbox[p] = make(chan *notification.Message, 512)
	}
	return b
}

func (b *bridge) ID() string { return "bridge" }
func (b *bridge) Gap()       {}

func (b *bridge) Inbox() (in notification.Inbox) {
	for p, ch := range b.inbox {
		in[p] = ch
	}
	return in
}

func (b *bridge) run(ctx context.Context) {
	for {
		select {
		case <-b.inbox[notification.P0]:
		case <-b.inbox[notification.P1]:
		case <-b.inbox[notification.P2]:
		case <-b.inbox[notification.P3]:
		case <-ctx.Done():
			return
		}
		select {
		case b.hung <- struct{}{}:
			<-b.hung
		case <-ctx.Done():
			return
		}
	}
}

// exchange is a Broker under load in all lanes, with a Gateway, a bridge and a
// global subscriber, on a server that Prometheus can scrape in both forms.
func exchange(t *testing.T) (*bridge, *notification.Gateway, *httptest.Server) {
	const users = 100
	b := newBroker(t, notification.BrokerConfig{StallTimeout: 20 * time.Millisecond})
	g := newGateway(t, "gw-1", notification.GatewayConfig{})
	br := newBridge()
	audit := make(chan *notification.Message, 1024)
	reading, stopReading := context.WithCancel(context.Background())
	var readers sync.WaitGroup // of the two, which end with reading
	t.Cleanup(func() {         // after the Shutdown of the Broker, which loses nothing then
		stopReading()
		readers.Wait()
	})
	readers.Go(func() { br.run(reading) })
	readers.Go(func() {
		for {
			select {
			case <-audit:
			case <-reading.Done():
				return
			}
		}
	})
	run(t, b, g)
	require.NoError(t, b.RegisterReceiver(br))
	for i := range users {
		id := fmt.Sprintf("user-%d", i)
		_, err := g.RegisterSession(notification.SessionConfig{ID: id, UserID: id, Sink: discard})
		require.NoError(t, err)
		require.NoError(t, b.Subscribe(id, br.ID()))
	}
	require.NoError(t, b.SubscribeGlobal("audit", audit, notification.Wait))

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup // of the publisher, which ends with ctx
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for _, payload := range payloads {
				_ = b.Publish(notification.New(fmt.Sprintf("user-%d", i%users), payload, "test"))
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})

	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(NewCollector(b, g)))
	metrics := promhttp.HandlerFor(r, promhttp.HandlerOpts{})
	mux := http.NewServeMux()
	mux.Handle("/metrics", metrics)
	// A server that asks for native histograms gets no classic ones stored; so
	// here the same page for one that does not ask.
	mux.HandleFunc("/classic", func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept")
		metrics.ServeHTTP(w, r)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return br, g, server
}

// freeAddress returns an address on loopback that nobody listens on, with a port below
// those that the system gives to whoever asks for any, so that it is still free when
// Prometheus listens, seconds later.
func freeAddress(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err == nil {
			require.NoError(t, l.Close())
			return l.Addr().String()
		}
	}
}

// A client asks a Prometheus through its HTTP API.
type client struct{ base string }

// startPrometheus starts one on loopback that scrapes target as two jobs,
// native and classic, and evaluates the rules, hurried.
func startPrometheus(t *testing.T, target string) client {
	t.Helper()
	program := need(t, "prometheus")
	dir := t.TempDir()

	rules := regexp.MustCompile(`for: \d+m`).ReplaceAllString(file(t, "alerts.yml"), "for: 0s")
	rules = strings.ReplaceAll(rules, "[2m]", "[10s]")
	require.NotEqual(t, file(t, "alerts.yml"), rules)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(rules), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), fmt.Appendf(nil, `
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 200ms}
rule_files: [alerts.yml]
scrape_configs:
  - {job_name: native, metrics_path: /metrics, static_configs: [{targets: [%[1]q]}]}
  - {job_name: classic, metrics_path: /classic, static_configs: [{targets: [%[1]q]}]}
`, target), 0o600))

	address := freeAddress(t)
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address,
		"--enable-feature=native-histograms", "--log.level=warn")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	require.NoError(t, cmd.Start())
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // ends with the process, which the clean-up kills and waits for
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("prometheus: %s", &output)
		}
	})
	c := client{"http://" + address}
	eventually(t, "prometheus is ready", func() bool {
		select {
		case <-exited:
			t.Fatalf("prometheus has ended: %s", &output)
		default:
		}
		resp, err := http.Get(c.base + "/-/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return c
}

// get decodes the data of an answer.
func (c client) get(t *testing.T, path string, data any) {
	t.Helper()
	resp, err := http.Get(c.base + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
	require.Equal(t, "success", answer.Status, "%s: %s", path, answer.Error)
}

type sample struct {
	labels map[string]string
	value  float64
}

func (c client) query(t *testing.T, expr string) (result []sample) {
	t.Helper()
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	c.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &data)
	for _, r := range data.Result {
		v, err := strconv.ParseFloat(r.Value[1].(string), 64)
		require.NoError(t, err)
		result = append(result, sample{r.Metric, v})
	}
	return result
}

// firing returns how many alerts with these labels fire.
func (c client) firing(t *testing.T, labels string) int {
	t.Helper()
	return len(c.query(t, `ALERTS{alertstate="firing",`+labels+`}`))
}

func TestPrometheus(t *testing.T) {
	need(t, "prometheus")
	br, g, server := exchange(t)
	prom := startPrometheus(t, strings.TrimPrefix(server.URL, "http://"))

	for _, form := range []struct{ name, expr string }{
		{"classic", `histogram_quantile(0.99, sum by (lane, le) (rate(notification_gateway_latency_seconds_bucket{job="classic"}[10s])))`},
		{"native", `histogram_quantile(0.99, sum by (lane) (rate(notification_gateway_latency_seconds{job="native"}[10s])))`},
	} {
		t.Run("it knows each lane's p99 from "+form.name+" buckets", func(t *testing.T) {
			eventually(t, "a p99 of four lanes", func() bool {
				result := prom.query(t, form.expr)
				for _, s := range result {
					if math.IsNaN(s.value) || s.value <= 0 {
						return false
					}
				}
				return len(result) == int(notification.NumPriorities)
			})
		})
	}
	t.Run("it counts what the Gateway counts, in both forms", func(t *testing.T) {
		for _, expr := range []string{
			`sum(notification_gateway_latency_seconds_count{job="classic"})`,
			`sum(histogram_count(notification_gateway_latency_seconds{job="native"}))`,
		} {
			var counted float64
			for _, l := range g.Stats().Lanes {
				counted += float64(l.Latency.Count())
			}
			eventually(t, expr, func() bool {
				result := prom.query(t, expr)
				return len(result) == 1 && result[0].value >= counted
			})
		}
	})
	t.Run("every rule can be evaluated", func(t *testing.T) {
		var data struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError string }
			}
		}
		eventually(t, "every rule has been evaluated", func() bool {
			prom.get(t, "/api/v1/rules", &data)
			for _, group := range data.Groups {
				for _, r := range group.Rules {
					require.NotEqual(t, "err", r.Health, "%s: %s", r.Name, r.LastError)
					if r.Health != "ok" {
						return false
					}
				}
			}
			return len(data.Groups) > 0
		})
	})
	t.Run("every panel of the dashboard shows something", func(t *testing.T) {
		for _, expr := range dashboardExpressions(t) {
			expr = strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*").Replace(expr)
			eventually(t, expr, func() bool { return len(prom.query(t, expr)) > 0 })
		}
	})
	t.Run("nothing is lost and nobody stuck while everybody keeps up", func(t *testing.T) {
		for _, s := range prom.query(t, `notification_broker_dropped_total or notification_broker_rejected_total or notification_gateway_dropped_total`) {
			require.Zero(t, s.value, "%v", s.labels)
		}
		eventually(t, "gateway, bridge and audit are there, in both jobs", func() bool {
			return len(prom.query(t, `notification_receiver_stuck == 0`)) == 2*3
		})
		require.Zero(t, prom.firing(t, `alertname=~"NotificationLost|NotificationReceiverStuck"`))
	})

	br.hung <- struct{}{}
	t.Run("a receiver that hangs is named, and alerts fire", func(t *testing.T) {
		eventually(t, "somebody is stuck", func() bool {
			result := prom.query(t, `notification_receiver_stuck{job="classic"} == 1`)
			for _, s := range result {
				require.Equal(t, "bridge", s.labels["receiver"])
			}
			return len(result) == 1
		})
		eventually(t, "the alert for a stuck receiver fires", func() bool {
			return prom.firing(t, `alertname="NotificationReceiverStuck",receiver="bridge"`) > 0
		})
		eventually(t, "the alert for a loss fires", func() bool {
			return prom.firing(t, `alertname="NotificationLost",reason="receiver"`) > 0
		})
	})
	<-br.hung
	t.Run("once it takes again, nobody is stuck and what was lost stays counted", func(t *testing.T) {
		eventually(t, "nobody is stuck, and the alert is over", func() bool {
			return len(prom.query(t, `notification_receiver_stuck == 1`)) == 0 &&
				prom.firing(t, `alertname="NotificationReceiverStuck"`) == 0
		})
		eventually(t, "what was lost is still known", func() bool {
			return len(prom.query(t, `notification_receiver_dropped_total{receiver="bridge"} > 0`)) > 0 &&
				prom.firing(t, `alertname="NotificationLost",reason="receiver"`) > 0
		})
	})
}

// A dashboard is what the tests look at of Grafana's JSON.
type dashboard struct {
	Panels []struct {
		Title      string
		Datasource struct{ UID string }
		GridPos    struct{ H, W, X, Y int }
		Targets    []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name, Type string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(file(t, "dashboard.json")), &d))
	require.NotEmpty(t, d.Panels)
	return d
}

func dashboardExpressions(t *testing.T) (all []string) {
	t.Helper()
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	require.NotEmpty(t, all)
	return all
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	t.Run("the data source is a variable, and every panel uses it", func(t *testing.T) {
		require.Equal(t, "datasource", d.Templating.List[0].Name)
		require.Equal(t, "datasource", d.Templating.List[0].Type)
		for _, p := range d.Panels {
			require.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		}
	})
	t.Run("it is one screen, and no panel covers another", func(t *testing.T) {
		const width, height = 24, 24 // Grafana's columns; rows that a 1080p screen shows
		var covered [height][width]string
		for _, p := range d.Panels {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
					require.Less(t, y, height, p.Title)
					require.Less(t, x, width, p.Title)
					require.Empty(t, covered[y][x], p.Title)
					covered[y][x] = p.Title
				}
			}
		}
	})
	t.Run("the lanes stand side by side", func(t *testing.T) {
		rows := map[string][]int{} // what of the lanes: where their panels begin
		for _, p := range d.Panels {
			lane, what, _ := strings.Cut(p.Title, " ")
			if !regexp.MustCompile(`^P[0-3]$`).MatchString(lane) {
				continue
			}
			what, _, _ = strings.Cut(what, ",")
			rows[what] = append(rows[what], p.GridPos.X)
			for _, target := range p.Targets {
				require.Contains(t, target.Expr, `lane="`+lane+`"`)
			}
		}
		require.NotEmpty(t, rows)
		for what, at := range rows {
			require.Equal(t, []int{0, 6, 12, 18}, at, what)
		}
	})
}
