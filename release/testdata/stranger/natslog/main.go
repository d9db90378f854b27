// A program of somebody whose processes share a log: the matching engine has a
// publisher, the process that clients connect to has an edge, and storage reads all
// of it. Here all three are connected over TCP to one server.
package main

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "log")
	must(err)
	server, err := embedded.Start(embedded.Options{Dir: dir, Listen: "127.0.0.1:0"})
	must(err)

	engine, err := natslog.Open(ctx, natslog.Config{URL: server.URL()})
	must(err)
	publisher, err := engine.NewPublisher(natslog.PublisherConfig{})
	must(err)
	go func() { must(publisher.Run(context.Background())) }()

	front, err := natslog.Open(ctx, natslog.Config{URL: server.URL()})
	must(err)
	edge, err := front.NewEdge("edge-1", natslog.EdgeConfig{})
	must(err)
	go func() { must(edge.Run(context.Background())) }()
	select {
	case <-edge.Ready():
	case <-ctx.Done():
		log.Fatal("the edge is not warm")
	}

	sink, messages := notification.ChannelSink(1)
	_, err = edge.RegisterSession(notification.SessionConfig{ID: "session-1", UserID: "alice", Sink: sink})
	must(err)
	must(publisher.PublishWait(ctx, notification.New("alice", notification.OrderFilled{OrderID: "o1"}, "MatchingEngine")))
	select {
	case m := <-messages:
		if filled := m.Notification().Payload.(notification.OrderFilled); filled.OrderID != "o1" {
			log.Fatalf("received %+v", filled)
		}
	case <-ctx.Done():
		log.Fatal("nothing was received")
	}

	reader, err := front.NewReader(natslog.Position{})
	must(err)
	archive, _, err := reader.Next(ctx)
	must(err)
	if archive.UserID() != "alice" {
		log.Fatalf("the log has a notification of %s", archive.UserID())
	}

	must(publisher.Shutdown(ctx))
	must(edge.Shutdown(ctx))
	must(reader.Close())
	must(front.Close())
	must(engine.Close())
	must(server.Shutdown(ctx))
	must(os.RemoveAll(dir))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
