package notificationclient_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
	"github.com/qaexchange/notification/wsgateway"
)

// A server is a small exchange, so that the examples have something to talk to.
type server struct {
	broker  *notification.Broker
	gateway *notification.Gateway
	handler *wsgateway.Handler
	http    *httptest.Server
	running sync.WaitGroup
	began   bool
}

func serve() (*server, error) {
	s := new(server)
	var err error
	if s.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		return nil, err
	}
	if s.gateway, err = notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024}); err != nil {
		return nil, err
	}
	if err := s.broker.RegisterGateway(s.gateway); err != nil {
		return nil, err
	}
	s.handler, err = wsgateway.New(s.gateway, wsgateway.Config{Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
		user, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer token of ")
		if !ok {
			return wsgateway.Identity{}, errors.New("no token")
		}
		return wsgateway.Identity{UserID: user}, nil
	}})
	if err != nil {
		return nil, err
	}
	s.running.Go(func() { _ = s.broker.Run(context.Background()) })
	s.running.Go(func() { _ = s.gateway.Run(context.Background()) })
	s.http = httptest.NewServer(s.handler)
	return s, nil
}

func (s *server) publish(user string, payload notification.Payload) {
	if err := s.broker.Publish(notification.New(user, payload, "MatchingEngine")); err != nil {
		panic(err)
	}
}

// awaitNobody returns when the gateway knows that every client has left. Until
// then it would send what is published to one that is gone as well, and miss it
// in Shutdown.
func (s *server) awaitNobody() {
	for s.gateway.Stats().Sessions > 0 {
		<-time.After(time.Millisecond)
	}
}

// once is true the first time.
func (s *server) once() bool {
	first := !s.began
	s.began = true
	return first
}

func (s *server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(s.broker.Shutdown(ctx), s.handler.Shutdown(ctx), s.gateway.Shutdown(ctx)); err != nil {
		panic(err)
	}
	s.http.Close()
	s.running.Wait()
}

// signIn and loadOrders stand for the requests that an exchange has beside its
// notifications.
func signIn(context.Context, notificationclient.Why) (notificationclient.Credentials, error) {
	return notificationclient.Credentials{Token: "token of alice"}, nil
}

func loadOrders(context.Context, notificationclient.SnapshotReason) error {
	fmt.Println("orders loaded")
	return nil
}

// The whole of a client: where, as whom, what to load, and what to do with what
// arrives.
func Example() {
	exchange, err := serve()
	if err != nil {
		panic(err)
	}
	defer exchange.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	client, err := notificationclient.New(notificationclient.Config{
		URL:         exchange.http.URL,
		Credentials: signIn,
		Snapshot:    loadOrders,
		OnNotifications: func(ctx context.Context, batch notificationclient.Batch) error {
			for _, n := range batch.Notifications {
				switch p := n.Payload.(type) {
				case notification.OrderFilled:
					fmt.Println(p.OrderID, "filled at", p.AveragePrice)
				default:
					fmt.Println(n.TypeName) // there will be new types
				}
			}
			return nil
		},
		OnCursor: func(string) { // the snapshot first, then the batch
			if exchange.once() {
				exchange.publish("alice", notification.OrderFilled{OrderID: "order-1", AveragePrice: 50100})
			} else {
				cancel()
			}
		},
	})
	if err != nil {
		panic(err)
	}
	err = client.Run(ctx) // until ctx ends, or it is told to stop
	fmt.Println(err)
	// Output:
	// orders loaded
	// order-1 filled at 50100
	// context canceled
}

// A program that stores Batch.Cursor in the transaction that stores what the batch
// led to sees each notification exactly once, crashes included: here Shutdown
// stands for a crash.
func ExampleBatch() {
	exchange, err := serve()
	if err != nil {
		panic(err)
	}
	defer exchange.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var database struct { // in one transaction each
		cursor string
		trades []string
	}
	run := func(until string) {
		done := make(chan struct{})
		client, err := notificationclient.New(notificationclient.Config{
			URL:    exchange.http.URL,
			Header: http.Header{"Authorization": {"Bearer token of alice"}},
			Cursor: database.cursor,
			Snapshot: func(context.Context, notificationclient.SnapshotReason) error {
				database.trades = nil
				return nil
			},
			OnNotifications: func(_ context.Context, batch notificationclient.Batch) error {
				for _, n := range batch.Notifications {
					if p, ok := n.Payload.(notification.TradeExecuted); ok {
						database.trades = append(database.trades, p.TradeID)
						if p.TradeID == until {
							close(done)
						}
					}
				}
				database.cursor = batch.Cursor
				return nil
			},
			OnCursor: func(cursor string) { database.cursor = cursor },
			OnState: func(s notificationclient.State) {
				if s.Status == notificationclient.StatusLive && until == "t2" {
					exchange.publish("alice", notification.TradeExecuted{TradeID: "t1"})
					exchange.publish("alice", notification.TradeExecuted{TradeID: "t2"})
				}
			},
		})
		if err != nil {
			panic(err)
		}
		ran := make(chan error)
		go func() { ran <- client.Run(ctx) }()
		<-done
		if err := errors.Join(client.Shutdown(ctx), <-ran); err != nil {
			panic(err)
		}
	}
	run("t2")
	exchange.awaitNobody()
	exchange.publish("alice", notification.TradeExecuted{TradeID: "t3"}) // while nobody is there
	run("t3")
	fmt.Println(database.trades)
	// Output: [t1 t2 t3]
}

// What ends a client for good says why.
func ExampleStopError() {
	exchange, err := serve()
	if err != nil {
		panic(err)
	}
	defer exchange.stop()
	client, err := notificationclient.New(notificationclient.Config{
		URL:             exchange.http.URL, // and nothing to show there
		OnNotifications: func(context.Context, notificationclient.Batch) error { return nil },
		BackoffBase:     time.Millisecond,
	})
	if err != nil {
		panic(err)
	}
	err = client.Run(context.Background())
	fmt.Println(errors.Is(err, notificationclient.ErrCredentials))
	fmt.Println(err)
	// Output:
	// true
	// notificationclient: stopped: server, close code 4401: unauthorized
}
