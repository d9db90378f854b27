package natslogstats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
)

// The tests of this file ask the real Prometheus, on a real socket and in real time.

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
		of, _ := newTable()
		w := httptest.NewRecorder()
		promhttp.HandlerFor(registry(t, of), promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		require.Empty(t, tool(t, w.Body.String(), "check", "metrics"))
	})
	t.Run("it accepts the rules", func(t *testing.T) {
		require.Contains(t, tool(t, "", "check", "rules", "--lint=all", "alerts.yml"), "SUCCESS")
	})
	t.Run("their unit tests pass", func(t *testing.T) {
		require.Contains(t, tool(t, "", "test", "rules", "alerts_test.yml"), "SUCCESS")
	})
	t.Run("there is one for every rule", func(t *testing.T) {
		tests := file(t, "alerts_test.yml")
		for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(file(t, "alerts.yml"), -1) {
			require.Contains(t, tests, `alertname="`+m[1]+`"`)
		}
	})
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

func TestPrometheus(t *testing.T) {
	program := need(t, "prometheus")
	of, _ := newTable()
	of.edge.Warm = true
	for i := range of.edge.Streams {
		of.edge.Streams[i].Lag = 0
	}
	of.publisher, of.reader.Lag = natslog.PublisherStats{}, 0
	server := httptest.NewServer(promhttp.HandlerFor(registry(t, of), promhttp.HandlerOpts{}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	rules := regexp.MustCompile(`for: \d+m`).ReplaceAllString(file(t, "alerts.yml"), "for: 0s")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(rules), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 200ms}
rule_files: [alerts.yml]
scrape_configs:
  - {job_name: natslog, static_configs: [{targets: ["`+strings.TrimPrefix(server.URL, "http://")+`"]}]}
`), 0o600))
	address := freeAddress(t)
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
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
	// query returns how many series there are, and false while nobody answers.
	query := func(expr string) (int, bool) {
		resp, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err != nil {
			select {
			case <-exited:
				t.Fatalf("prometheus has ended: %s", &output)
			default:
			}
			return 0, false
		}
		defer resp.Body.Close()
		var answer struct {
			Status string
			Data   struct{ Result []any }
		}
		if json.NewDecoder(resp.Body).Decode(&answer) != nil || answer.Status != "success" {
			return 0, false
		}
		return len(answer.Data.Result), true
	}
	becomes := func(t *testing.T, expr string, want int) {
		t.Helper()
		for give := time.Now().Add(2 * time.Minute); ; <-time.After(50 * time.Millisecond) {
			n, ok := query(expr)
			if ok && n == want {
				return
			}
			require.True(t, time.Now().Before(give), "%s: %d, not %d", expr, n, want)
		}
	}
	change := func(f func()) {
		of.mu.Lock()
		defer of.mu.Unlock()
		f()
	}
	firing := func(name string) string { return `ALERTS{alertstate="firing",alertname="` + name + `"}` }

	t.Run("it has every stream, lane and Gateway", func(t *testing.T) {
		becomes(t, `notification_log_edge_lag_blocks`, 2)
		becomes(t, `notification_log_publisher_accepted_total`, notification.NumPriorities)
		becomes(t, `notification_gateway_sessions`, 2)
	})
	t.Run("an edge that is behind is told, and nothing else, and no longer when it has caught up", func(t *testing.T) {
		change(func() { of.edge.Streams[0].Lag = 5000 })
		becomes(t, firing("NotificationLogLag"), 1)
		becomes(t, `ALERTS{alertstate="firing"}`, 1)
		change(func() { of.edge.Streams[0].Lag = 3 })
		becomes(t, firing("NotificationLogLag"), 0)
	})
	t.Run("another epoch is told, and stays told", func(t *testing.T) {
		change(func() { of.edge.Streams[1].Epochs++ })
		becomes(t, firing("NotificationLogEpoch"), 1)
	})
	t.Run("a publisher whose servers are away is told", func(t *testing.T) {
		change(func() { of.publisher.Lanes[notification.P0].Stalled = time.Minute })
		becomes(t, firing("NotificationLogStalled"), 1)
	})
}
