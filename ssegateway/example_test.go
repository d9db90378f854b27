package ssegateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/ssegateway"
)

// verify stands for the check of a signed token; what it returns is all that the
// server believes.
func verify(token string) (user string, expires time.Time, err error) {
	if token != "alice's token" {
		return "", time.Time{}, errors.New("bad token")
	}
	return "alice", time.Now().Add(15 * time.Minute), nil
}

// An exchange is a server as it runs in production: everything has an owner and
// goes down in order.
type exchange struct {
	broker  *notification.Broker
	gateway *notification.Gateway
	handler *ssegateway.Handler
	server  *http.Server
	running sync.WaitGroup
}

func start(ln net.Listener) (*exchange, error) {
	x := new(exchange)
	var err error
	if x.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		return nil, err
	}
	// With a history, clients that reconnect go on behind their last event.
	x.gateway, err = notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024})
	if err != nil {
		return nil, err
	}
	if err := x.broker.RegisterGateway(x.gateway); err != nil {
		return nil, err
	}
	x.handler, err = ssegateway.New(x.gateway, ssegateway.Config{
		Authenticate: func(r *http.Request) (ssegateway.Identity, error) {
			cookie, err := r.Cookie("session") // an EventSource sets no header
			if err != nil {
				return ssegateway.Identity{}, err
			}
			user, expires, err := verify(cookie.Value)
			return ssegateway.Identity{UserID: user, Expires: expires}, err
		},
		MaxConnections: 20_000,
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /events", x.handler)
	x.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second, // these two do not hold for streams:
		WriteTimeout:      10 * time.Second, // the handler has its own
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}

	x.running.Go(func() { _ = x.broker.Run(context.Background()) })
	x.running.Go(func() { _ = x.gateway.Run(context.Background()) })
	x.running.Go(func() { _ = x.server.Serve(ln) })
	return x, nil
}

// stop lets nobody in any more, delivers what was accepted, and ends the streams
// one after the other. Each step has a time of its own: one that takes all of it
// must not cost the next one.
func (x *exchange) stop() error {
	step := func(shutdown func(context.Context) error, within time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		return shutdown(ctx)
	}
	closed := make(chan error, 1)
	go func() { closed <- step(x.server.Shutdown, 30*time.Second) }() // it waits for the streams, and nobody new comes in
	err := errors.Join(
		step(x.broker.Shutdown, 5*time.Second),
		step(x.handler.Shutdown, 10*time.Second),
		<-closed,
		step(x.gateway.Shutdown, 5*time.Second),
	)
	x.running.Wait()
	return err
}

// A source reads events, as the EventSource of a browser does.
type source struct {
	body   *bufio.Scanner
	lastID string
}

func connect(ctx context.Context, addr, query, lastID string) (*source, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/events?"+query, nil)
	if err != nil {
		return nil, err
	}
	req.AddCookie(&http.Cookie{Name: "session", Value: "alice's token", Quoted: true})
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	return &source{body: bufio.NewScanner(resp.Body), lastID: lastID}, nil
}

// next returns the next event but for live; one without a name is a notification.
func (s *source) next() (name, data string) {
	for s.body.Scan() {
		switch field, value, _ := strings.Cut(s.body.Text(), ": "); field {
		case "event":
			name = value
		case "data":
			data = value
		case "id":
			s.lastID = value
		case "":
			if name != "live" {
				return name, data
			}
			name = "" // what was missed came before it, what is new comes behind it
		}
	}
	return "end", ""
}

// A server with a Gateway behind a Handler, and a client that loses its
// connection and goes on behind the last event that it has seen.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	x, err := start(ln)
	if err != nil {
		panic(err)
	}
	publish := func(payload notification.Payload) {
		if err := x.broker.Publish(notification.New("alice", payload, "RiskControl")); err != nil {
			panic(err)
		}
	}
	show := func(s *source) {
		name, data := s.next()
		if name != "" {
			fmt.Println(name)
			return
		}
		var n notification.Notification
		if err := json.Unmarshal([]byte(data), &n); err != nil {
			panic(err)
		}
		fmt.Println(n.Type(), n.Priority, n.Payload.(notification.MarginCall).Message)
	}

	short, cut := context.WithCancel(ctx)
	events, err := connect(short, ln.Addr().String(), "channels=risk", "")
	if err != nil {
		panic(err)
	}
	show(events)
	publish(notification.OrderFilled{OrderID: "order-1"}) // of another channel
	publish(notification.MarginCall{UserID: "alice", Message: "deposit until noon"})
	show(events)
	cut()

	publish(notification.MarginCall{UserID: "alice", Message: "deposit now"})
	events, err = connect(ctx, ln.Addr().String(), "channels=risk", events.lastID)
	if err != nil {
		panic(err)
	}
	show(events)
	show(events)

	stopped := make(chan error)
	go func() { stopped <- x.stop() }()
	fmt.Println(events.next())
	fmt.Println(<-stopped)
	// Output:
	// welcome
	// margin_call P0 deposit until noon
	// welcome
	// margin_call P0 deposit now
	// close {"code":1001,"reason":"server going away"}
	// <nil>
}
