// A program of somebody who watches a Broker with Prometheus: gathers.
package main

import (
	"log"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/promstats"
)

func main() {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	must(err)
	must(broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: "order-1"}, "MatchingEngine")))
	registry := prometheus.NewRegistry()
	must(registry.Register(promstats.NewCollector(broker)))
	families, err := registry.Gather()
	must(err)
	published := 0.0
	for _, family := range families {
		if family.GetName() == "notification_broker_published_total" {
			for _, metric := range family.GetMetric() {
				published += metric.GetCounter().GetValue()
			}
		}
	}
	if published != 1 {
		log.Fatalf("%v published", published)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
