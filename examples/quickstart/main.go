// Quickstart is the program of the README's quick start, which a test compares
// with what follows.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/qaexchange/notification"
)

func main() {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		log.Fatal(err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		log.Fatal(err)
	}
	go broker.Run(context.Background()) // both end with Shutdown
	go gateway.Run(context.Background())

	// A session for each connection. Load the snapshot that it builds on after
	// this: what is published from now on arrives.
	sink, messages := notification.ChannelSink(16) // or your own: Push and Close
	if _, err := gateway.RegisterSession(notification.SessionConfig{
		ID: "connection-1", UserID: "alice", Sink: sink,
	}); err != nil {
		log.Fatal(err)
	}

	// The matching engine. An ID of the trade's own makes a retry idempotent; each
	// side of the trade has one of its own.
	n := notification.New("alice", notification.TradeExecuted{TradeID: "t1", Price: 50100, Volume: 2}, "MatchingEngine")
	n.ID = "trade-t1-alice"
	if err := broker.Publish(n); err != nil {
		log.Fatal(err)
	}
	m := <-messages
	fmt.Printf("%s\n", m.JSON()) // encoded once, however many sessions

	// On the way out the Broker first, so that the Gateway gets what is under way.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(broker.Shutdown(ctx), gateway.Shutdown(ctx)); err != nil {
		log.Fatal(err)
	}
}
