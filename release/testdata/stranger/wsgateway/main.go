// A program of somebody who serves notifications over WebSocket, and its client.
package main

import (
	"bytes"
	"context"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	must(err)
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	must(err)
	must(broker.RegisterGateway(gateway))
	go func() { must(broker.Run(context.Background())) }()
	go func() { must(gateway.Run(context.Background())) }()
	handler, err := wsgateway.New(gateway, wsgateway.Config{
		Authenticate: func(*http.Request) (wsgateway.Identity, error) {
			return wsgateway.Identity{UserID: "alice"}, nil
		},
	})
	must(err)
	server := httptest.NewServer(handler)

	ws, _, err := websocket.Dial(ctx, server.URL, &websocket.DialOptions{Subprotocols: []string{"notification.batch.v1"}})
	must(err)
	await(ctx, ws, `"action":"welcome"`)
	must(broker.Publish(notification.New("alice", notification.MarginCall{UserID: "alice", Message: "deposit until noon"}, "RiskControl")))
	await(ctx, ws, "deposit until noon")

	must(broker.Shutdown(ctx))
	closed := make(chan error)
	go func() { closed <- handler.Shutdown(ctx) }()
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		log.Fatalf("not told that the server goes away: %v", err)
	}
	must(<-closed)
	must(gateway.Shutdown(ctx))
	server.Close()
}

// await reads frames until one holds text.
func await(ctx context.Context, ws *websocket.Conn, text string) {
	for {
		_, frame, err := ws.Read(ctx)
		if err != nil {
			log.Fatalf("waiting for %s: %v", text, err)
		}
		if bytes.Contains(frame, []byte(text)) {
			return
		}
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
