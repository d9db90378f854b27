package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
	"github.com/qaexchange/notification/wsgateway"
)

// ready tells the parent that the process can be relied upon.
func ready() { fmt.Println("ready") }

// within gives a step of the way down a time of its own.
func within(d time.Duration, shutdown func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return shutdown(ctx)
}

// runNATS is the log: it syncs before it acknowledges.
func runNATS(ctx context.Context, args []string) error {
	server, err := embedded.Start(embedded.Options{Dir: args[0], Listen: args[1], Logger: slog.Default()})
	if err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return within(settle, server.Shutdown)
}

// openLog opens the log, however long the server takes to be back.
func openLog(ctx context.Context, url string) (*natslog.Log, error) {
	for {
		log, err := natslog.Open(ctx, natslog.Config{URL: url, Logger: slog.Default()})
		if err == nil || ctx.Err() != nil || errors.Is(err, notification.ErrInvalid) || errors.Is(err, natslog.ErrConfig) {
			return log, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// runEdge is an edge: a door for clients, which opens when it is warm.
func runEdge(ctx context.Context, args []string) error {
	name, url, addr := edgeName(args[0]), args[1], args[2]
	log, err := openLog(ctx, url)
	if err != nil {
		return err
	}
	defer log.Close()
	edge, err := log.NewEdge(name, natslog.EdgeConfig{Gateway: notification.GatewayConfig{Logger: slog.Default()}})
	if err != nil {
		return err
	}
	sockets, err := wsgateway.New(edge, wsgateway.Config{
		Authenticate:      authenticate,
		HeartbeatInterval: 2 * time.Second,
		Logger:            slog.Default(),
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = edge.Run(context.Background()) }) // ends with Shutdown, below
	down := func() error {
		_ = within(3*time.Second, sockets.Shutdown) // who is cut off then goes on at another edge
		return within(settle, edge.Shutdown)
	}
	select {
	case <-edge.Ready():
	case <-ctx.Done():
		return down()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return errors.Join(err, down())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /ws", sockets)
	mux.HandleFunc("GET /api/session", func(w http.ResponseWriter, r *http.Request) { tellSession(w, r, name) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	running.Go(func() { _ = server.Serve(l) }) // ends with Shutdown, below
	ready()
	<-ctx.Done()
	_ = within(5*time.Second, server.Shutdown)
	return down()
}

// runPublisher stands for a matching engine. What it has to say it writes into its
// outbox first, in the transaction that makes the trade, so to speak, and a mark when
// that is in the log. Started again it publishes once more what has no mark: with the
// same IDs, so that nobody gets it twice.
func runPublisher(ctx context.Context, args []string) error {
	name, url := args[0], args[1]
	users, err1 := strconv.Atoi(args[3])
	rate, err2 := strconv.Atoi(args[4])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	box, err := openOutbox(args[2])
	if err != nil {
		return err
	}
	defer box.file.Close()
	log, err := openLog(ctx, url)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := log.NewPublisher(natslog.PublisherConfig{Logger: slog.Default()})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = p.Run(context.Background()) }) // ends with Shutdown, below
	ready()
	for _, e := range box.open {
		box.publish(p, name, e)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began, said := time.Now(), 0; ctx.Err() == nil; {
		for due := int(time.Since(began).Seconds() * float64(rate)); said < due; said++ {
			to := stream{notification.P1, userName(rand.IntN(users))}
			switch r := rand.IntN(1000); {
			case r == 0:
				to = stream{notification.P3, notification.AllUsers}
			case r < 20:
				to.lane = notification.P0
			case r < 200:
				to.lane = notification.P2
			}
			e, err := box.write(to)
			if err != nil {
				return err
			}
			box.publish(p, name, e)
		}
		<-tick.C
	}
	return within(settle, p.Shutdown) // until all of it is in the log
}

// userName is the ID of a user, from 0.
func userName(i int) string { return fmt.Sprintf("u%05d", i+1) }

// edgeName is the name of an edge, from 0.
func edgeName(id string) string { return "edge-" + id }
