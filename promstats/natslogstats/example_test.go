package natslogstats_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/promstats/natslogstats"
)

// What a process publishes and what it serves, on the page that Prometheus scrapes.
func Example() {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		natslogstats.NewPublisherCollector(publisher{}), // a *natslog.Publisher
		natslogstats.NewEdgeCollector(edge{}),           // a *natslog.Edge
	} {
		if err := registry.Register(c); err != nil {
			log.Fatal(err)
		}
	}
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})

	// What Prometheus gets:
	page := httptest.NewRecorder()
	handler.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(page.Body.String()) {
		if strings.HasPrefix(line, `notification_log_publisher_acknowledged_total{lane="P1"}`) ||
			strings.HasPrefix(line, "notification_log_edge_warm{") {
			fmt.Print(line)
		}
	}
	// Output:
	// notification_log_edge_warm{edge="edge-1"} 1
	// notification_log_publisher_acknowledged_total{lane="P1"} 14
}

// publisher and edge stand for those of natslog, which want a server.
type (
	publisher struct{}
	edge      struct{}
)

func (publisher) Stats() (s natslog.PublisherStats) {
	s.Lanes[1].Accepted, s.Lanes[1].Acknowledged = 14, 14
	return s
}

func (edge) Stats() natslog.EdgeStats { return natslog.EdgeStats{ID: "edge-1", Warm: true} }
