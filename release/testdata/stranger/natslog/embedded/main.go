// A program of somebody whose one process must not lose what it acknowledged:
// publishes into a folder, is started again on it, and goes on where it was.
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
	cursor := run(ctx, dir, notification.Cursor{}, "first", "second")
	run(ctx, dir, cursor, "third")
	must(os.RemoveAll(dir))
}

// run is one life of the process: what it publishes, a session of alice's receives,
// and nothing else. It returns the session's cursor.
func run(ctx context.Context, dir string, after notification.Cursor, orders ...string) notification.Cursor {
	server, err := embedded.Start(embedded.Options{Dir: dir})
	must(err)
	events, err := natslog.Open(ctx, natslog.Config{NATS: server.NATS()})
	must(err)
	publisher, err := events.NewPublisher(natslog.PublisherConfig{})
	must(err)
	edge, err := events.NewEdge("edge-1", natslog.EdgeConfig{})
	must(err)
	go func() { must(publisher.Run(context.Background())) }()
	go func() { must(edge.Run(context.Background())) }()
	select {
	case <-edge.Ready():
	case <-ctx.Done():
		log.Fatal("the edge is not warm")
	}

	sink, messages := notification.ChannelSink(1)
	session, err := edge.RegisterSession(notification.SessionConfig{ID: "session-1", UserID: "alice", Sink: sink, After: after})
	must(err)
	for _, order := range orders {
		must(publisher.PublishWait(ctx, notification.New("alice", notification.OrderFilled{OrderID: order}, "MatchingEngine")))
		select {
		case m := <-messages:
			if filled := m.Notification().Payload.(notification.OrderFilled); filled.OrderID != order {
				log.Fatalf("received %+v, not %s", filled, order)
			}
		case <-ctx.Done():
			log.Fatalf("%s was not received", order)
		}
	}

	must(publisher.Shutdown(ctx))
	must(edge.Shutdown(ctx))
	cursor := session.Cursor()
	must(events.Close())
	must(server.Shutdown(ctx))
	return cursor
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
