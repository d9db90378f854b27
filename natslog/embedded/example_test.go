package embedded_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
)

// A whole log in one process: what PublishWait has returned nil for is on the disk.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir) // yours is not temporary

	server, err := embedded.Start(embedded.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Shutdown(ctx)
	events, err := natslog.Open(ctx, natslog.Config{NATS: server.NATS()})
	if err != nil {
		log.Fatal(err)
	}
	defer events.Close()
	publisher, err := events.NewPublisher(natslog.PublisherConfig{})
	if err != nil {
		log.Fatal(err)
	}
	edge, err := events.NewEdge("edge-1", natslog.EdgeConfig{})
	if err != nil {
		log.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { publisher.Run(ctx) })
	running.Go(func() { edge.Run(ctx) })
	<-edge.Ready() // only then open the door

	sink, messages := notification.ChannelSink(1)
	session, err := edge.RegisterSession(notification.SessionConfig{ID: "s1", UserID: "alice", Sink: sink})
	if err != nil {
		log.Fatal(err)
	}
	trade := notification.New("alice", notification.TradeExecuted{TradeID: "t1", Price: 50_100, Volume: 2}, "MatchingEngine")
	if err := publisher.PublishWait(ctx, trade); err != nil {
		log.Fatal(err)
	}
	fmt.Println((<-messages).Notification().Payload.Type())

	// The client is away, and comes back; to another edge, or after a crash, all
	// the same.
	session.Close()
	<-session.Done()
	cursor := session.Cursor()
	notice := notification.New("alice", notification.OrderFilled{OrderID: "o1"}, "MatchingEngine")
	if err := publisher.PublishWait(ctx, notice); err != nil {
		log.Fatal(err)
	}
	sink, messages = notification.ChannelSink(1)
	if _, err := edge.RegisterSession(notification.SessionConfig{ID: "s2", UserID: "alice", Sink: sink, After: cursor}); err != nil {
		log.Fatal(err)
	}
	fmt.Println((<-messages).Notification().Payload.Type())

	if err := publisher.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	if err := edge.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	running.Wait()
	// Output:
	// trade_executed
	// order_filled
}
