package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// program returns where Debian's package has put a program, or skips.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("the real thing was not asked: %v (on Debian: apt-get install prometheus)", err)
	}
	return path
}

var listening = regexp.MustCompile(`msg="?Listening on"? address=(127\.0\.0\.1:\d+)`)

func TestPrometheus(t *testing.T) {
	x, web := serve(t)
	admin := administer(t, x, web)
	done := make(chan struct{})
	go func() { // the market, which ends with the test
		defer close(done)
		newEngine(len(x.members), 1, newBurst(x)).run(t.Context(), 1000)
	}()
	t.Cleanup(func() { <-done })

	t.Run("promtool has nothing to say about the metrics", func(t *testing.T) {
		check := exec.Command(program(t, "promtool"), "check", "metrics")
		answer, err := http.Get("http://" + admin.addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		// The names of the Go runtime's metrics are not ours to mend.
		var ours []string
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "notification_") {
				ours = append(ours, line)
			}
		}
		check.Stdin = strings.NewReader(strings.Join(ours, ""))
		if said, err := check.CombinedOutput(); err != nil || len(said) > 0 {
			t.Errorf("%v: %s", err, said)
		}
	})

	t.Run("Prometheus scrapes it under load and can tell the latency of each lane, and that nothing is lost", func(t *testing.T) {
		path, dir := program(t, "prometheus"), t.TempDir()
		config := fmt.Sprintf("global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs: [{job_name: exchange, static_configs: [{targets: [%q]}]}]\n", admin.addr)
		if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
		log, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It says which port it was given.
		var address string
		lines := bufio.NewScanner(log)
		for address == "" && lines.Scan() {
			t.Log("prometheus: ", lines.Text())
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				address = found[1]
			}
		}
		logged := make(chan struct{})
		go func() { // ends with the process
			defer close(logged)
			for lines.Scan() {
				t.Log("prometheus: ", lines.Text())
			}
		}()
		defer func() {
			cmd.Process.Kill()
			<-logged
			cmd.Wait()
		}()
		if address == "" {
			t.Fatal("prometheus does not say where it is")
		}

		// answer is the value of an expression, once there is one.
		answer := func(expr string) float64 {
			t.Helper()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for range patience / (100 * time.Millisecond) {
				var r struct {
					Data struct {
						Result []struct{ Value [2]any }
					}
				}
				if resp, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(expr)); err == nil {
					err = json.NewDecoder(resp.Body).Decode(&r)
					resp.Body.Close()
					if err == nil && len(r.Data.Result) == 1 {
						if v, err := strconv.ParseFloat(fmt.Sprint(r.Data.Result[0].Value[1]), 64); err == nil && v == v {
							return v
						}
					}
				}
				<-tick.C
			}
			t.Fatalf("no answer to %s", expr)
			return 0
		}
		for _, lane := range []string{"P0", "P1", "P2"} {
			if v := answer(`histogram_quantile(0.99, sum by (le) (rate(notification_gateway_latency_seconds_bucket{lane="` + lane + `"}[30s])))`); v <= 0 {
				t.Errorf("p99 of %s is %v", lane, v)
			}
		}
		if v := answer(`sum(notification_broker_published_total) > 0`); v <= 0 {
			t.Error("nothing was published")
		}
		if v := answer(`sum(notification_broker_dropped_total)`); v != 0 {
			t.Errorf("%v were dropped", v)
		}
	})
}
