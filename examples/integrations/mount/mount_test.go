package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
	"github.com/qaexchange/notification/wsgateway"
)

var orders = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "no orders") })

// bare is a middleware as it is often written: its writer hides what it embeds.
func bare(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	})
}

// A lockedBuffer can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestMount(t *testing.T) {
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	notificationtest.Start(t, nil, gateway) // returns when it runs, and shuts it down after what is deferred
	sockets, err := wsgateway.New(gateway, wsgateway.Config{
		Authenticate: func(*http.Request) (wsgateway.Identity, error) { return wsgateway.Identity{UserID: "alice"}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := sockets.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()

	var log lockedBuffer
	mux := Mux(sockets, orders, slog.New(slog.NewTextHandler(&log, nil)))
	for _, c := range []struct {
		name   string
		router http.Handler
		status int
	}{
		{"net/http, behind a writer with Unwrap", mux, http.StatusSwitchingProtocols},
		{"chi, behind its own middleware", Chi(sockets, orders), http.StatusSwitchingProtocols},
		{"a writer without Unwrap is said, not hung up on", bare(mux), http.StatusNotImplemented},
		{"so is a buffering timeout", http.TimeoutHandler(mux, time.Minute, ""), http.StatusNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.router)
			defer server.Close()
			ws, answer, err := websocket.Dial(t.Context(), server.URL+"/notifications", &websocket.DialOptions{Subprotocols: []string{"notification.batch.v1"}})
			if answer == nil || answer.StatusCode != c.status {
				t.Fatalf("%+v, %v", answer, err)
			}
			if err == nil {
				defer ws.CloseNow()
				var first struct {
					Action string `json:"action"`
				}
				if _, text, err := ws.Read(t.Context()); err != nil || json.Unmarshal(text, &first) != nil || first.Action != "welcome" {
					t.Errorf("%s, %v", text, err)
				}
			}
			other, err := http.Get(server.URL + "/orders")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Body.Close()
			if body, err := io.ReadAll(other.Body); err != nil || string(body) != "no orders" {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
	// The client may have its answer before the middleware has its turn again.
	for late := time.Now().Add(time.Minute); !strings.Contains(log.String(), "path=/notifications status=101"); <-time.After(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("the upgrade was not logged:\n%s", log.String())
		}
	}
}
