//go:build unix

package promstats

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

const sessions = 100_000

// crowd is a Broker and a Gateway with as many users, each with a session.
func crowd(b *testing.B) (*notification.Broker, *notification.Gateway, http.Handler) {
	broker := newBroker(b, notification.BrokerConfig{})
	g := newGateway(b, "gw", notification.GatewayConfig{})
	run(b, broker, g)
	for i := range sessions {
		id := fmt.Sprintf("user-%d", i)
		_, err := g.RegisterSession(notification.SessionConfig{ID: id, UserID: id, Sink: notification.SinkFunc(encode)})
		require.NoError(b, err)
	}
	r := prometheus.NewRegistry()
	require.NoError(b, r.Register(NewCollector(broker, g)))
	return broker, g, promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

func encode(_ context.Context, batch []*notification.Message) error {
	for _, m := range batch {
		m.JSON()
	}
	return nil
}

func mixed(b *notification.Broker) error {
	p := 0
	switch n := rand.IntN(10); {
	case n >= 8:
		p = n - 6 // P2 or P3
	case n >= 2:
		p = 1
	}
	return b.Publish(notification.New(fmt.Sprintf("user-%d", rand.IntN(sessions)), payloads[p], "bench"))
}

func get(handler http.Handler, accept string) *httptest.ResponseRecorder {
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	handler.ServeHTTP(w, r)
	return w
}

// BenchmarkScrape is the whole of a scrape, Stats to bytes, with 100,000
// sessions and filled histograms.
func BenchmarkScrape(b *testing.B) {
	broker, g, handler := crowd(b)
	for range 20_000 {
		require.NoError(b, mixed(broker))
	}
	eventually(b, "all are taken", func() bool {
		taken := 0
		for _, l := range g.Stats().Lanes {
			taken += int(l.Taken)
		}
		return taken == 20_000
	})
	for _, form := range []struct{ name, accept string }{
		{"text", "text/plain"},
		{"protobuf", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"},
	} {
		b.Run(form.name, func(b *testing.B) {
			b.ReportAllocs()
			size, before := 0, cpu(b)
			for b.Loop() {
				size = get(handler, form.accept).Body.Len()
			}
			b.ReportMetric(float64(size), "bytes/scrape")
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/scrape")
		})
	}
}

// cpu returns the processor time of this process: what a scrape costs, garbage
// collection included, however busy others keep the machine.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkP0 is P0's latency at 2,000 mixed messages a second with 100,000
// sessions, from the call of Publish to the start of Push. Spells with a scrape
// every second and spells without take turns, so that both see the same
// machine; the Stats at their ends are the only other look at it.
func BenchmarkP0(b *testing.B) {
	const spell, interval = 5 * time.Second, time.Second
	broker, g, handler := crowd(b)

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup // of the publisher, which ends with ctx
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				for range 10 {
					_ = mixed(broker)
				}
			}
		}
	})
	defer wg.Wait()
	defer cancel()

	var latency [2]notification.Histogram // without, with
	var p99 [2][]time.Duration            // of each spell
	scrapes := 0
	order := []int{0, 1}
	for b.Loop() {
		for _, with := range order {
			before := g.Stats().Lanes[notification.P0].Latency
			over := time.After(spell)
			// Half an interval in, so that a spell has as many as it has seconds.
			scrape := time.NewTimer(interval / 2)
			for running := true; running; {
				select {
				case <-over:
					running = false
				case <-scrape.C:
					scrape.Reset(interval)
					if with == 1 {
						get(handler, "text/plain")
						scrapes++
					}
				}
			}
			scrape.Stop()
			l := g.Stats().Lanes[notification.P0].Latency.Sub(before)
			latency[with] = latency[with].Add(l)
			p99[with] = append(p99[with], l.Quantile(0.99))
		}
		slices.Reverse(order) // neither always comes first
	}
	for with, name := range []string{"quiet", "scraped"} {
		slices.Sort(p99[with])
		b.ReportMetric(float64(latency[with].Quantile(0.5).Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(latency[with].Quantile(0.99).Microseconds()), name+"-p99-µs")
		b.ReportMetric(float64(p99[with][len(p99[with])/2].Microseconds()), name+"-p99-median-of-spells-µs")
		b.ReportMetric(float64(latency[with].Count()), name+"-messages")
	}
	b.ReportMetric(float64(scrapes), "scrapes")
}
