// A program of somebody who has found the library: publishes and receives.
package main

import (
	"context"
	"log"
	"time"

	"github.com/qaexchange/notification"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	must(err)
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	must(err)
	must(broker.RegisterGateway(gateway))
	go func() { must(broker.Run(context.Background())) }()
	go func() { must(gateway.Run(context.Background())) }()

	sink, messages := notification.ChannelSink(1)
	_, err = gateway.RegisterSession(notification.SessionConfig{ID: "session-1", UserID: "alice", Sink: sink})
	must(err)
	must(broker.Publish(notification.New("alice", notification.TradeExecuted{TradeID: "t1", Price: 50100, Volume: 2}, "MatchingEngine")))
	select {
	case m := <-messages:
		if trade := m.Notification().Payload.(notification.TradeExecuted); trade.TradeID != "t1" {
			log.Fatalf("received %+v", trade)
		}
	case <-ctx.Done():
		log.Fatal("nothing was received")
	}
	must(broker.Shutdown(ctx))
	must(gateway.Shutdown(ctx))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
