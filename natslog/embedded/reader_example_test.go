package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
)

// Storage reads the whole log: what was published is there when the process is started
// again, however it ended.
func Example_reader() {
	dir, err := os.MkdirTemp("", "exchange") // yours is one that stays
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	server, err := embedded.Start(embedded.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	l, err := natslog.Open(ctx, natslog.Config{NATS: server.NATS()})
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := l.NewPublisher(natslog.PublisherConfig{})
	if err != nil {
		log.Fatal(err)
	}
	go publisher.Run(ctx) // ends with Shutdown

	n := notification.New("alice", notification.TradeExecuted{TradeID: "t1", Price: 50100, Volume: 2}, "MatchingEngine")
	n.ID = "trade-t1"
	if err := publisher.PublishWait(ctx, n); err != nil {
		log.Fatal(err)
	}

	// Storage reads the whole log, and keeps the Position beside what it stored.
	reader, err := l.NewReader(natslog.Position{})
	if err != nil {
		log.Fatal(err)
	}
	archive, position, err := reader.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(archive.ID(), archive.UserID(), position.IsZero())

	// On the way down: who writes, who reads, the connections, the server.
	if err := errors.Join(publisher.Shutdown(ctx), reader.Close(), l.Close(), server.Shutdown(ctx)); err != nil {
		log.Fatal(err)
	}
	// Output: trade-t1 alice false
}
