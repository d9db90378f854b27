package promstats_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/promstats"
	"github.com/qaexchange/notification/web"
)

// A Broker, its Gateways and what connects browsers to them, on the page that
// Prometheus scrapes.
func Example() {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		panic(err)
	}
	gateway, err := notification.NewGateway("gw-1", notification.GatewayConfig{})
	if err != nil {
		panic(err)
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(
		promstats.NewCollector(broker, gateway),
		promstats.NewTransportCollector("websocket", sockets{}), // a *wsgateway.Handler
	)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	// What Prometheus gets:
	page := httptest.NewRecorder()
	http.DefaultServeMux.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(page.Body.String()) {
		if strings.HasPrefix(line, "notification_broker_queue_capacity_messages{") ||
			strings.HasPrefix(line, "notification_web_connections{") {
			fmt.Print(line)
		}
	}
	// Output:
	// notification_broker_queue_capacity_messages{lane="P0"} 10000
	// notification_broker_queue_capacity_messages{lane="P1"} 50000
	// notification_broker_queue_capacity_messages{lane="P2"} 100000
	// notification_broker_queue_capacity_messages{lane="P3"} 50000
	// notification_web_connections{transport="websocket"} 3
}

// sockets stands for a transport.
type sockets struct{}

func (sockets) Stats() web.Stats { return web.Stats{Connections: 3, Accepted: 3} }

// Two Brokers in one process are told apart by a label of their own.
func ExampleNewCollector_several() {
	registry := prometheus.NewRegistry()
	for _, market := range []string{"futures", "options"} {
		broker, err := notification.NewBroker(notification.BrokerConfig{})
		if err != nil {
			panic(err)
		}
		prometheus.WrapRegistererWith(prometheus.Labels{"market": market}, registry).
			MustRegister(promstats.NewCollector(broker))
	}
	families, err := registry.Gather()
	fmt.Println(len(families) > 0, err)
	// Output: true <nil>
}
