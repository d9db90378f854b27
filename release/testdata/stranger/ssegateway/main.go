// A program of somebody who serves notifications as server-sent events, and its
// client.
package main

import (
	"bufio"
	"context"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/ssegateway"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	must(err)
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024})
	must(err)
	must(broker.RegisterGateway(gateway))
	go func() { must(broker.Run(context.Background())) }()
	go func() { must(gateway.Run(context.Background())) }()
	handler, err := ssegateway.New(gateway, ssegateway.Config{
		Authenticate: func(*http.Request) (ssegateway.Identity, error) {
			return ssegateway.Identity{UserID: "alice"}, nil
		},
	})
	must(err)
	server := httptest.NewServer(handler)

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	must(err)
	response, err := http.DefaultClient.Do(request)
	must(err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	await(lines, "event: welcome")
	must(broker.Publish(notification.New("alice", notification.MarginCall{UserID: "alice", Message: "deposit until noon"}, "RiskControl")))
	await(lines, "deposit until noon")

	must(broker.Shutdown(ctx))
	must(handler.Shutdown(ctx))
	must(gateway.Shutdown(ctx))
}

// await reads lines until one holds text.
func await(lines *bufio.Scanner, text string) {
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	log.Fatalf("the stream ended before %q: %v", text, lines.Err())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
