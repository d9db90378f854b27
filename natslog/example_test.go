package natslog_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
)

// A matching engine publishes, an edge serves a client, and the log is between them:
// here in one process, there in many.
func Example() {
	url, stop := startServer() // yours runs already, with sync_interval: always
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	events, err := natslog.Open(ctx, natslog.Config{URL: url, NATS: []nats.Option{nats.Timeout(time.Minute)}})
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := events.NewPublisher(natslog.PublisherConfig{})
	if err != nil {
		log.Fatal(err)
	}
	edge, err := events.NewEdge("edge-1", natslog.EdgeConfig{})
	if err != nil {
		log.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = publisher.Run(context.Background()) }) // both end with Shutdown
	running.Go(func() { _ = edge.Run(context.Background()) })

	// Where clients connect; wsgateway.New(edge, …) registers a session for each.
	<-edge.Ready()
	sink, messages := notification.ChannelSink(16)
	if _, err := edge.RegisterSession(notification.SessionConfig{ID: "connection-1", UserID: "alice", Sink: sink}); err != nil {
		log.Fatal(err)
	}

	// Where trades are made. The trade's own ID makes a retry idempotent.
	trade := notification.New("alice", notification.TradeExecuted{TradeID: "t1", Price: 50_100, Volume: 2}, "MatchingEngine")
	trade.ID = "trade-t1"
	if err := publisher.PublishWait(ctx, trade); err != nil { // ErrUncertain: again
		log.Fatal(err)
	}
	fmt.Println((<-messages).Notification().ID)

	if err := errors.Join(publisher.Shutdown(ctx), edge.Shutdown(ctx), events.Close()); err != nil {
		log.Fatal(err)
	}
	running.Wait()
	// Output: trade-t1
}
