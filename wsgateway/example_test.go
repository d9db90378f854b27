package wsgateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
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
	handler *wsgateway.Handler
	server  *http.Server
	running sync.WaitGroup
}

func start(ln net.Listener) (*exchange, error) {
	x := new(exchange)
	var err error
	if x.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		return nil, err
	}
	// With a history, clients that reconnect resume behind their cursor.
	x.gateway, err = notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024})
	if err != nil {
		return nil, err
	}
	if err := x.broker.RegisterGateway(x.gateway); err != nil {
		return nil, err
	}
	x.handler, err = wsgateway.New(x.gateway, wsgateway.Config{
		Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
			cookie, err := r.Cookie("session") // browsers cannot set a header here
			if err != nil {
				return wsgateway.Identity{}, err
			}
			user, expires, err := verify(cookie.Value)
			return wsgateway.Identity{UserID: user, Expires: expires}, err
		},
		MaxConnections: 20_000,
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/notifications", x.handler)
	x.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second, // these end with the upgrade: the handler has its own
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}

	x.running.Go(func() { _ = x.broker.Run(context.Background()) })
	x.running.Go(func() { _ = x.gateway.Run(context.Background()) })
	x.running.Go(func() { _ = x.server.Serve(ln) })
	return x, nil
}

// stop lets nobody in any more, delivers what was accepted, and closes the
// WebSockets one after the other. Each step has a time of its own: one that takes
// all of it must not cost the next one.
func (x *exchange) stop() error {
	step := func(shutdown func(context.Context) error, within time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		return shutdown(ctx)
	}
	closed := make(chan error, 1)
	go func() { closed <- step(x.server.Shutdown, 30*time.Second) }() // it waits for requests, and nobody new comes in
	err := errors.Join(
		step(x.broker.Shutdown, 5*time.Second),
		step(x.handler.Shutdown, 10*time.Second),
		<-closed,
		step(x.gateway.Shutdown, 5*time.Second),
	)
	x.running.Wait()
	return err
}

// awaitNobody returns when the Gateway knows that every client has left. Until
// then it sends to those that are gone as well, and what it is about to send them
// when it is shut down counts as lost on the way down.
func (x *exchange) awaitNobody() {
	for x.gateway.Stats().Sessions > 0 {
		<-time.After(time.Millisecond)
	}
}

// dial connects as a browser would, and asks for batches.
func dial(ctx context.Context, addr string, query url.Values) (*websocket.Conn, error) {
	ws, _, err := websocket.Dial(ctx, "ws://"+addr+"/notifications?"+query.Encode(), &websocket.DialOptions{
		HTTPHeader:   http.Header{"Cookie": {`session="alice's token"`}},
		Subprotocols: []string{"notification.batch.v1"},
	})
	return ws, err
}

// A frame is all that a client needs to understand.
type frame struct {
	Action        string                       `json:"action"` // welcome, reset, live, …; empty for a batch
	Cursor        string                       `json:"cursor"`
	Notifications []*notification.Notification `json:"notifications"`
}

func read(ctx context.Context, ws *websocket.Conn) (f frame, err error) {
	_, text, err := ws.Read(ctx)
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	return f, err
}

// A server with a Gateway behind a WebSocket handler, and a client that wants
// one channel.
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

	ws, err := dial(ctx, ln.Addr().String(), url.Values{"channels": {"risk"}})
	if err != nil {
		panic(err)
	}
	for range 2 {
		f, err := read(ctx, ws)
		if err != nil {
			panic(err)
		}
		fmt.Println(f.Action)
	}

	for _, payload := range []notification.Payload{
		notification.OrderFilled{OrderID: "order-1"}, // of another channel
		notification.MarginCall{UserID: "alice", Message: "deposit until noon"},
	} {
		if err := x.broker.Publish(notification.New("alice", payload, "RiskControl")); err != nil {
			panic(err)
		}
	}
	f, err := read(ctx, ws)
	if err != nil {
		panic(err)
	}
	for _, n := range f.Notifications {
		fmt.Println(n.Type(), n.Priority, n.Payload.(notification.MarginCall).Message)
	}

	stopped := make(chan error)
	go func() { stopped <- x.stop() }()
	_, err = read(ctx, ws)
	fmt.Println("closed with", int(websocket.CloseStatus(err)))
	fmt.Println(<-stopped)
	// Output:
	// welcome
	// live
	// margin_call P0 deposit until noon
	// closed with 1001
	// <nil>
}

// A client that loses its connection goes on behind the last cursor it has seen.
func Example_resume() {
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
	publish := func(order string) {
		if err := x.broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: order}, "MatchingEngine")); err != nil {
			panic(err)
		}
	}

	cursor := ""
	connect := func() *websocket.Conn {
		ws, err := dial(ctx, ln.Addr().String(), url.Values{"cursor": {cursor}})
		if err != nil {
			panic(err)
		}
		welcome, err := read(ctx, ws)
		if err != nil {
			panic(err)
		}
		cursor = welcome.Cursor
		return ws
	}
	// receive reads until what is called last has come: an action, or an order.
	// What was published a moment ago may come before the frame live or after it.
	receive := func(ws *websocket.Conn, last string) {
		for came := ""; came != last; {
			f, err := read(ctx, ws)
			if err != nil {
				panic(err)
			}
			if came = f.Action; came == "reset" { // the cursor was gone
				fmt.Println("load a snapshot")
			}
			for _, n := range f.Notifications {
				came = n.Payload.(notification.OrderFilled).OrderID
				fmt.Println(came)
			}
			if f.Cursor != "" {
				cursor = f.Cursor // only now: what it covers has been dealt with
			}
		}
	}

	ws := connect()
	receive(ws, "live")
	_ = ws.CloseNow() // the network fails
	x.awaitNobody()
	publish("order-1")
	publish("order-2")

	ws = connect()
	receive(ws, "order-2")
	_ = ws.CloseNow()

	x.gateway.Gap() // messages may have been lost: no cursor holds any more
	ws = connect()
	receive(ws, "reset")
	_ = ws.CloseNow()
	fmt.Println(x.stop())
	// Output:
	// order-1
	// order-2
	// load a snapshot
	// <nil>
}
