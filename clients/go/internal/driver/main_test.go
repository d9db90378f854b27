package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// TestDrive is the driver's own; what the client does is what clients/conformance
// tests with it.
func TestDrive(t *testing.T) {
	commands := make(chan string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"notification.batch.v1"}})
		if err != nil {
			return
		}
		defer func() { _ = ws.CloseNow() }()
		say := func(text string) { _ = ws.Write(context.Background(), websocket.MessageText, []byte(text)) }
		say(`{"action":"welcome","cursor":"c0","resumed":false,"heartbeat_ms":600000}`)
		say(`{"action":"live"}`)
		say(`{"cursor":"c1","notifications":[{"message_id":"n-1","message_type":"order_dreamt","timestamp":1700000000000000123,"x":1.50}]}`)
		for {
			_, text, err := ws.Read(context.Background())
			if err != nil {
				close(commands)
				return
			}
			commands <- string(text)
			say(`{"action":"error","id":1,"code":"unknown_channel","message":"no"}`)
		}
	}))
	defer server.Close()

	in, say := io.Pipe()
	out, lines := io.Pipe()
	drove := make(chan error, 1)
	go func() {
		drove <- drive(in, lines)
		lines.Close()
	}()
	events := bufio.NewScanner(out)
	next := func() (event map[string]any) {
		require.True(t, events.Scan())
		require.NoError(t, json.Unmarshal(events.Bytes(), &event))
		return event
	}
	options, err := json.Marshal(map[string]any{"url": server.URL, "credentials": []any{map[string]string{"token": "x"}}})
	require.NoError(t, err)
	go say.Write(append(options, '\n'))
	for _, want := range []map[string]any{
		{"event": "state", "state": "connecting"},
		{"event": "credentials", "why": "start"},
		{"event": "state", "state": "replaying"},
		{"event": "snapshot", "reason": "start"},
		{"event": "snapshot_done"},
		{"event": "cursor", "cursor": "c0"},
		{"event": "state", "state": "live"},
		{"event": "notification", "message_id": "n-1", "type": "order_dreamt", "timestamp": "1700000000000000123",
			"raw": map[string]any{"message_id": "n-1", "message_type": "order_dreamt", "timestamp": 1700000000000000123.0, "x": 1.5}},
		{"event": "cursor", "cursor": "c1"},
	} {
		require.Equal(t, want, next())
	}
	go io.WriteString(say, `{"do":"subscribe","channels":["risk"]}`+"\n")
	select {
	case c := <-commands:
		require.JSONEq(t, `{"action":"subscribe","channels":["risk"],"id":1}`, c)
	case <-time.After(time.Minute):
		t.Fatal("no command")
	}
	require.Equal(t, "error", next()["event"])
	go io.WriteString(say, `{"do":"stop"}`+"\n")
	require.Equal(t, map[string]any{"event": "state", "state": "stopped", "reason": "closed", "code": 1000.0}, next())
	require.Equal(t, map[string]any{"event": "stopped", "reason": "closed", "code": 1000.0, "cursor": "c1"}, next())
	require.NoError(t, <-drove)
	require.NoError(t, say.Close())
	for range commands {
	}
}
