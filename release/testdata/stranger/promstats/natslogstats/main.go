// A program of somebody who watches an edge with Prometheus: gathers. It has no NATS
// server, so the numbers are its own.
package main

import (
	"log"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/promstats/natslogstats"
)

type edge struct{}

func (edge) Stats() natslog.EdgeStats {
	return natslog.EdgeStats{
		ID: "edge-1", Warm: true,
		Streams:  []natslog.EdgeStreamStats{{Lane: notification.P0, Lag: 7}},
		Gateways: []notification.GatewayStats{{ID: "edge-1/0"}},
	}
}

func main() {
	registry := prometheus.NewRegistry()
	must(registry.Register(natslogstats.NewEdgeCollector(edge{})))
	families, err := registry.Gather()
	must(err)
	for _, family := range families {
		if family.GetName() == "notification_log_edge_lag_blocks" && family.GetMetric()[0].GetGauge().GetValue() == 7 {
			return
		}
	}
	log.Fatal("the edge's lag is not shown")
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
