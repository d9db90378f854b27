package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// patiently ends a test that waits in vain.
func patiently(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestByHand is what "serve" offers to somebody without a driver.
func TestByHand(t *testing.T) {
	all, err := load()
	require.NoError(t, err)
	s, err := serve("127.0.0.1:0", all, true, nil)
	require.NoError(t, err)
	t.Cleanup(s.close)
	ctx := patiently(t)
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+path, nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	dial := func(query string) *websocket.Conn {
		ws, _, err := websocket.Dial(ctx, "ws://"+s.addr+"/s/close-4001?"+query, &websocket.DialOptions{Subprotocols: []string{batchProtocol}})
		require.NoError(t, err)
		t.Cleanup(func() { _ = ws.CloseNow() })
		return ws
	}
	hear := func(ws *websocket.Conn) string {
		_, text, err := ws.Read(ctx)
		require.NoError(t, err)
		return string(text)
	}
	journal := func(user string) *journal {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.runs[user].journal
	}
	t.Run("a user begins with the first connection, and goes on with the next", func(t *testing.T) {
		ws := dial("user=me")
		require.Contains(t, hear(ws), `"action":"welcome"`)
		require.Contains(t, hear(ws), `"action":"live"`)
		require.Contains(t, hear(ws), `"message_id":"n-3"`)
		_, _, err := ws.Read(ctx)
		require.Equal(t, websocket.StatusCode(4001), websocket.CloseStatus(err))
		ws = dial("user=me&cursor=c3")
		require.Contains(t, hear(ws), `"resumed":true`)
		require.Contains(t, hear(ws), `"action":"live"`) // or the script's write might fail
		require.NoError(t, ws.Close(websocket.StatusNormalClosure, ""))
	})
	t.Run("what was seen is told as lines of JSON, once", func(t *testing.T) {
		require.NoError(t, journal("me").await(ctx, pattern{"server": "left", "connection": decimal(2)}))
		status, text := get("/s/close-4001/journal?user=me")
		require.Equal(t, http.StatusOK, status)
		var kinds []string
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			v, err := decode(lines.Bytes())
			require.NoError(t, err)
			kinds = append(kinds, entry{fields: v.(map[string]any)}.text("server"))
		}
		require.Equal(t, []string{"connected", "welcome", "ending", "connected", "welcome", "left"}, kinds)
		status, _ = get("/s/close-4001/journal?user=me")
		require.Equal(t, http.StatusNotFound, status)
	})
	t.Run("what is wrong is among it", func(t *testing.T) {
		dial("user=you")
		_, _ = get("/s/close-4001?user=you&cursor=c3") // which is no WebSocket
		require.NoError(t, journal("you").await(ctx, pattern{"server": "failed"}))
		_, text := get("/s/close-4001/journal?user=you")
		require.Contains(t, text, "asks for the subprotocol")
	})
	t.Run("a scenario that is not there, and a user that is not named, are 404", func(t *testing.T) {
		for _, path := range []string{"/s/nothing?user=x", "/s/hello", "/s/hello?user=a&user=b"} {
			status, _ := get(path)
			require.Equal(t, http.StatusNotFound, status, path)
		}
	})
}

// TestDriverThatIsWrong runs programs that are no drivers.
func TestDriverThatIsWrong(t *testing.T) {
	sh, err := program("sh")
	if err != nil {
		t.Skip(err)
	}
	all, err := load()
	require.NoError(t, err)
	hello := named(all, []string{"hello"})[0]
	s, err := serve("127.0.0.1:0", all, false, nil)
	require.NoError(t, err)
	t.Cleanup(s.close)
	const endless = "it has not ended after"
	for name, c := range map[string]struct{ script, says string }{
		"one that says nothing, and ends":      {"exit 0", "it does not tell that it has stopped"},
		"one that ends with another code":      {"echo why >&2; exit 3", "exit status 3; on stderr: why"},
		"one that does not speak JSON":         {"echo hello", "does not tell an event in a line of JSON"},
		"one that tells two things in a line":  {`echo '{} {}'`, "does not tell an event in a line of JSON"},
		"one that never ends":                  {"exec sleep 3600", endless},
		"one that leaves a child that has its": {"sleep 3600 & exit 0", endless},
		"one that only claims to have stopped": {`echo '{"event":"stopped","reason":"closed","cursor":"c6"}'`, "0 connections were made, not 1"},
	} {
		t.Run(name+" fails", func(t *testing.T) {
			t.Parallel()
			r := &readyClient{client: client{name: "wrong"}, command: []string{sh, "-c", c.script}}
			given := patience
			if c.says == endless {
				given = 3 * time.Second
			}
			o := s.play(context.Background(), hello, r, given)
			require.False(t, o.passed())
			require.Contains(t, o.story(), c.says)
		})
	}
}
