// A program of somebody who receives notifications in Go, and of the server that it
// receives them from.
package main

import (
	"context"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server := httptest.NewServer(http.HandlerFunc(serve))

	arrived := make(chan string, 1)
	client, err := notificationclient.New(notificationclient.Config{
		URL: server.URL,
		OnNotifications: func(_ context.Context, batch notificationclient.Batch) error {
			for _, n := range batch.Notifications {
				arrived <- n.Payload.(notification.MarginCall).Message
			}
			return nil
		},
	})
	must(err)
	ran := make(chan error)
	go func() { ran <- client.Run(ctx) }()
	select {
	case message := <-arrived:
		if message != "deposit until noon" {
			log.Fatalf("arrived: %q", message)
		}
	case <-ctx.Done():
		log.Fatal("nothing arrived")
	}
	must(client.Shutdown(ctx))
	must(<-ran)
	server.Close()
}

// serve says what a server of wsgateway says, which is a module of its own.
func serve(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"notification.batch.v1"}})
	must(err)
	n := notification.New("alice", notification.MarginCall{UserID: "alice", Message: "deposit until noon"}, "RiskControl")
	for _, frame := range []string{
		`{"action":"welcome","session_id":"s","cursor":"c0","resumed":false,"channels":["risk"],"heartbeat_ms":20000,"refresh":false}`,
		`{"action":"live"}`,
		`{"cursor":"c1","notifications":[` + string(n.AppendJSON(nil)) + `]}`,
	} {
		must(ws.Write(r.Context(), websocket.MessageText, []byte(frame)))
	}
	_, _, err = ws.Read(r.Context())
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		log.Fatalf("the client left with %v", err)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
