package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
	"github.com/qaexchange/notification/web"
	"github.com/qaexchange/notification/wsgateway"
	"github.com/stretchr/testify/require"
)

// A server is a real one, with a Broker, a Gateway and a Handler of wsgateway.
type server struct {
	protocol protocol
	broker   *notification.Broker
	gateway  *notification.Gateway
	handler  *wsgateway.Handler
	url      string
	gates    sync.Map      // of a user whose Pushes wait: a gate
	asked    chan struct{} // Refresh waits for release
	release  chan struct{}
}

// serve starts a server that believes who says ?user=, until ?until= if there is
// one; with changes its Config.
func serve(t *testing.T, with ...func(*wsgateway.Config)) *server {
	s := &server{protocol: frames(t), asked: make(chan struct{}), release: make(chan struct{})}
	var err error
	s.broker, err = notification.NewBroker(notification.BrokerConfig{})
	require.NoError(t, err)
	s.gateway, err = notification.NewGateway("gateway", notification.GatewayConfig{
		HistoryMessages: 1024, OutboxMessages: 128, SlowPolicy: notification.SlowDropOldest,
	})
	require.NoError(t, err)
	require.NoError(t, s.broker.RegisterGateway(s.gateway))
	cfg := wsgateway.Config{
		Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
			q := r.URL.Query()
			switch q.Get("user") {
			case "":
				return wsgateway.Identity{}, errors.New("nobody")
			case "mallory":
				return wsgateway.Identity{}, web.ErrForbidden
			}
			id := wsgateway.Identity{UserID: q.Get("user")}
			if until := q.Get("until"); until != "" {
				id.Expires, err = time.Parse(time.RFC3339Nano, until)
			}
			return id, err
		},
		Refresh: func(ctx context.Context, id wsgateway.Identity, token string) (wsgateway.Identity, error) {
			switch token {
			case "wait":
				s.asked <- struct{}{}
				<-s.release
				return wsgateway.Identity{UserID: id.UserID}, nil
			case "another":
				return wsgateway.Identity{UserID: "bob"}, nil
			case "an hour":
				return wsgateway.Identity{UserID: id.UserID, Expires: time.Now().Add(time.Hour)}, nil
			}
			return wsgateway.Identity{}, errors.New("no such token")
		},
		HeartbeatInterval: 20 * time.Millisecond,
		CommandsPerSecond: 1_000_000,
	}
	for _, change := range with {
		change(&cfg)
	}
	s.handler, err = wsgateway.New(s, cfg)
	require.NoError(t, err)
	notificationtest.Start(t, s.broker, s.gateway)
	h := httptest.NewServer(s.handler)
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.handler.Shutdown(ended)
		h.Close()
		s.awaitRest(t)
		http.DefaultClient.CloseIdleConnections()
	})
	s.url = "ws" + strings.TrimPrefix(h.URL, "http") + "/notifications?"
	return s
}

// awaitRest waits until nothing is under way to a client that has left: a Gateway
// that is shut down meanwhile says that it was lost.
func (s *server) awaitRest(t *testing.T) {
	busy := func() int {
		st := s.gateway.Stats()
		n := st.Sessions
		for _, lane := range st.Lanes {
			n += lane.Pending
		}
		return n
	}
	for give := time.Now().Add(patience); busy() > 0; <-time.After(time.Millisecond) {
		require.True(t, time.Now().Before(give), "there are sessions, or Pushes")
	}
}

// RegisterSession makes the Handler's sessions at the Gateway, each behind the
// gate of its user if there is one.
func (s *server) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	if g, ok := s.gates.Load(cfg.UserID); ok {
		cfg.Sink = gated{cfg.Sink, g.(gate)}
	}
	return s.gateway.RegisterSession(cfg)
}

// A gate tells that a Push has begun, which waits until open is closed.
type gate struct{ begun, open chan struct{} }

// A gated Sink does not push before its gate is open.
type gated struct {
	notification.Sink
	gate
}

func (g gated) Push(ctx context.Context, batch []*notification.Message) error {
	select {
	case g.begun <- struct{}{}:
		<-g.open
	case <-g.open:
	}
	return g.Sink.Push(ctx, batch)
}

func (g gated) Live() { g.Sink.(interface{ Live() }).Live() }

func (s *server) publish(t *testing.T, n *notification.Notification) {
	t.Helper()
	require.NoError(t, s.broker.Publish(n))
}

// A client checks every frame that it reads or writes against the AsyncAPI
// document.
type client struct {
	t      *testing.T
	ws     *websocket.Conn
	any    string // the schema of every frame that it may get
	schema protocol
	seen   map[string]int // what it got, by the name of the message
}

func (s *server) dial(t *testing.T, seen map[string]int, batches bool, query url.Values) *client {
	t.Helper()
	c := &client{t: t, any: "PlainFrameFromServer", schema: s.protocol, seen: seen}
	options := &websocket.DialOptions{}
	if batches {
		c.any, options.Subprotocols = "FrameFromServer", []string{subprotocol}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, s.url+query.Encode(), options)
	require.NoError(t, err)
	ws.SetReadLimit(-1)
	c.ws = ws
	t.Cleanup(func() { _ = ws.CloseNow() })
	return c
}

// messageOf returns the name of the message that a frame is.
func messageOf(f map[string]any) string {
	action, _ := f["action"].(string)
	for _, known := range append(fromServer(""), fromClient("")...) {
		if action != "" && known.action == action {
			return known.name
		}
	}
	if _, ok := f["notifications"]; ok {
		return "Batch"
	}
	return "Notification"
}

// read returns the next frame, which must be a valid one, and its name.
func (c *client) read() (name string, f map[string]any, err error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kind, text, err := c.ws.Read(ctx)
	if err != nil {
		return "", nil, err
	}
	require.Equal(c.t, websocket.MessageText, kind)
	v := decode(c.t, text)
	require.NoError(c.t, c.schema[c.any].Validate(v), "%s", text)
	f = v.(map[string]any)
	name = messageOf(f)
	require.NoError(c.t, c.schema[name].Validate(v), "%s", text)
	c.seen[name]++
	return name, f, nil
}

// hear returns the next frame with that name, and passes over others.
func (c *client) hear(name string) map[string]any {
	c.t.Helper()
	for {
		got, f, err := c.read()
		require.NoError(c.t, err, "waiting for %s", name)
		if got == name {
			return f
		}
	}
}

// say sends a command, which must be a valid one.
func (c *client) say(text string) {
	c.t.Helper()
	require.NoError(c.t, c.schema["FrameFromClient"].Validate(decode(c.t, []byte(text))), text)
	c.write(websocket.MessageText, text)
}

// blurt sends something that is none.
func (c *client) blurt(text string) {
	c.t.Helper()
	if json.Valid([]byte(text)) {
		require.Error(c.t, c.schema["FrameFromClient"].Validate(decode(c.t, []byte(text))), text)
	}
	c.write(websocket.MessageText, text)
}

func (c *client) write(kind websocket.MessageType, text string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(c.t, c.ws.Write(ctx, kind, []byte(text)))
}

// goodbye reads to the end, which the server makes, and returns its code.
func (c *client) goodbye() int {
	c.t.Helper()
	for {
		if _, _, err := c.read(); err != nil {
			require.NotEqual(c.t, websocket.StatusCode(-1), websocket.CloseStatus(err), err)
			return int(websocket.CloseStatus(err))
		}
	}
}

// noRefresh is the code that only a server without Refresh says.
const noRefresh = "no_refresh"

// commands sends every command there is, well and badly, and hears the answers.
func (s *server) commands(c *client) {
	c.say(`{"action":"subscribe","channels":["trade","risk"],"id":{"n":[1,"x",null]}}`)
	require.Equal(c.t, []any{"trade", "risk"}, c.hear("Ok")["channels"])
	c.say(`{"action":"unsubscribe","channels":["trade","risk"],"id":"x"}`)
	require.Equal(c.t, []any{}, c.hear("Ok")["channels"])
	c.say(`{"action":"get_subscriptions"}`)
	c.hear("SubscriptionsResponse")
	c.say(`{"action":"unsubscribe_all","id":null}`)
	c.say(`{"action":"get_subscriptions","id":false}`)
	require.Len(c.t, c.hear("Ok")["channels"], 5)
	c.say(`{"action":"ping"}`)
	require.NotContains(c.t, c.hear("Pong"), "id")
	c.say(`{"action":"ping","id":1.5}`)
	require.Equal(c.t, json.Number("1.5"), c.hear("Pong")["id"])
	c.say(`{"action":"authenticate","token":"an hour","id":7}`)
	require.Contains(c.t, c.hear("Ok"), "expires_in_ms")
	c.say(`{"action":"authenticate","token":"wait"}`)
	<-s.asked
	c.say(`{"action":"authenticate","token":"wait"}`)
	codes := []string{c.hear("Error")["code"].(string)}
	s.release <- struct{}{}
	require.NotContains(c.t, c.hear("Ok"), "expires_in_ms")

	for _, well := range []string{`{"action":"authenticate","token":"no"}`, `{"action":"authenticate","token":"another","id":[]}`} {
		c.say(well)
		codes = append(codes, c.hear("Error")["code"].(string))
	}
	for _, bad := range []string{
		`{"action":`, `{"action":"eat"}`, `{"action":"subscribe"}`, `{"action":"subscribe","channels":["gossip"],"id":1}`,
		`{"action":"authenticate","token":""}`, `{"action":"ping","id":"` + strings.Repeat("x", 63) + `"}`,
	} {
		c.blurt(bad)
		codes = append(codes, c.hear("Error")["code"].(string))
	}
	c.write(websocket.MessageBinary, "text")
	codes = append(codes, c.hear("Error")["code"].(string), noRefresh)
	require.ElementsMatch(c.t, errorCodes(c.t), codes, "every code was heard")
}

// TestEveryFrame makes a real server say all that there is to say, and checks
// each frame.
func TestEveryFrame(t *testing.T) {
	t.Parallel()
	s := serve(t)
	r := newRand(t)
	// everything publishes a notification of each type, to be heard by c.
	everything := func(t *testing.T, user string) (ids map[string]bool) {
		ids = map[string]bool{}
		for _, typ := range payloadTypes() {
			n := random(t, r, typ, user)
			n.ID = fmt.Sprintf("%s-%s", user, typ)
			s.publish(t, n)
			ids[n.ID] = true
		}
		return ids
	}
	t.Run("with the subprotocol", func(t *testing.T) {
		seen := map[string]int{}
		c := s.dial(t, seen, true, url.Values{"user": {"alice"}})
		welcome := c.hear("Welcome")
		require.Equal(t, false, welcome["resumed"])
		c.hear("Live")
		for waiting := everything(t, "alice"); len(waiting) > 0; {
			for _, n := range c.hear("Batch")["notifications"].([]any) {
				delete(waiting, n.(map[string]any)["message_id"].(string))
			}
		}
		c.hear("Heartbeat")
		s.commands(c)
		require.NoError(t, c.ws.CloseNow())

		c = s.dial(t, seen, true, url.Values{"user": {"alice"}, "cursor": {welcome["cursor"].(string)}, "channels": {""}})
		again := c.hear("Welcome")
		require.Equal(t, true, again["resumed"])
		require.Empty(t, again["channels"])
		c = s.dial(t, seen, true, url.Values{"user": {"alice"}, "cursor": {"of yesterday"}})
		c.hear("Reset")

		soon := time.Now().Add(30 * time.Second).Format(time.RFC3339Nano)
		c = s.dial(t, seen, true, url.Values{"user": {"alice"}, "until": {soon}})
		c.hear("Expiring")

		carols := gate{make(chan struct{}), make(chan struct{})}
		s.gates.Store("carol", carols)
		c = s.dial(t, seen, true, url.Values{"user": {"carol"}})
		dropped := func() (n uint64) {
			for session := range s.gateway.UserSessions("carol") {
				n += session.Dropped()
			}
			return n
		}
		s.publish(t, notification.New("carol", notification.OrderFilled{}, "test"))
		<-carols.begun    // nothing is dropped before
		for range 1_000 { // more than her outbox holds, and less than the inbox
			s.publish(t, notification.New("carol", notification.OrderFilled{}, "test"))
		}
		for give := time.Now().Add(patience); dropped() == 0; <-time.After(time.Millisecond) {
			require.True(t, time.Now().Before(give), "nothing is dropped")
		}
		close(carols.open)
		for c.hear("Batch")["dropped"] == nil {
		}
		requireAll(t, seen, fromServer(""))
	})
	t.Run("with a server that does not extend credentials", func(t *testing.T) {
		s := serve(t, func(c *wsgateway.Config) { c.Refresh = nil })
		c := s.dial(t, map[string]int{}, true, url.Values{"user": {"alice"}})
		require.Equal(t, false, c.hear("Welcome")["refresh"])
		c.say(`{"action":"authenticate","token":"an hour"}`)
		require.Equal(t, noRefresh, c.hear("Error")["code"])
		require.NoError(t, c.ws.CloseNow())
	})
	t.Run("without a subprotocol", func(t *testing.T) {
		seen := map[string]int{}
		c := s.dial(t, seen, false, url.Values{"user": {"dave"}})
		for waiting := everything(t, "dave"); len(waiting) > 0; {
			delete(waiting, c.hear("Notification")["message_id"].(string))
		}
		s.commands(c)
		requireAll(t, seen, append(plain(fromServer("")), frame{name: "Notification"}))
	})
	t.Run("close codes and refusals", func(t *testing.T) {
		codes, err := closeCodes()
		require.NoError(t, err)
		known := map[int]string{}
		for _, c := range codes {
			known[c.code] = c.client()
		}
		nobody := url.Values{}
		for _, c := range []struct {
			query  url.Values
			status int
			code   int // in place of the status, with the subprotocol
			client string
		}{
			{nobody, 401, 4401, credentials},
			{url.Values{"user": {"mallory"}}, 403, 4403, stop},
			{url.Values{"user": {"alice"}, "channels": {"gossip"}}, 400, 4400, stop},
		} {
			got := s.dial(t, map[string]int{}, true, c.query).goodbye()
			require.Equal(t, c.code, got)
			require.Equal(t, c.client, known[got])
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			_, resp, err := websocket.Dial(ctx, s.url+c.query.Encode(), nil)
			cancel()
			require.Error(t, err)
			require.Equal(t, c.status, resp.StatusCode)
			require.True(t, hasRefusal("batch", t, c.status, c.code), "x-refusals has %d and %d", c.status, c.code)
			require.True(t, hasRefusal("plain", t, c.status, 0), "x-refusals has %d", c.status)
		}
		resp, err := http.Get("http" + strings.TrimPrefix(s.url, "ws") + "user=alice")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusUpgradeRequired, resp.StatusCode)

		c := s.dial(t, map[string]int{}, true, url.Values{"user": {"erin"}})
		c.hear("Live")
		for session := range s.gateway.UserSessions("erin") {
			require.NoError(t, session.Close())
		}
		got := c.goodbye()
		require.Equal(t, stop, known[got], got)

		c = s.dial(t, map[string]int{}, true, url.Values{"user": {"frank"}})
		c.hear("Live")
		down := make(chan struct{})
		go func() { // ends when all connections have, and the test waits for it
			defer close(down)
			_ = s.handler.Shutdown(context.Background()) // a deadline would cut who is late
		}()
		got = c.goodbye()
		<-down
		require.Equal(t, reconnect, known[got], got)
	})
}

// hasRefusal reports whether a channel's x-refusals has a status, with that code
// in its place; 0: with none.
func hasRefusal(channel string, t *testing.T, status, code int) bool {
	t.Helper()
	c := read(t, "asyncapi.json")["channels"].(map[string]any)[channel].(map[string]any)
	for _, r := range c["x-refusals"].([]any) {
		r := r.(map[string]any)
		there := 0
		if n, ok := r["code"].(json.Number); ok {
			there = atoi(t, n)
		}
		if atoi(t, r["status"].(json.Number)) == status && there == code {
			return true
		}
	}
	return false
}

func atoi(t *testing.T, n json.Number) int {
	t.Helper()
	i, err := n.Int64()
	require.NoError(t, err)
	return int(i)
}

func requireAll(t *testing.T, seen map[string]int, frames []frame) {
	t.Helper()
	for _, f := range frames {
		require.Positive(t, seen[f.name], "%s was never sent", f.name)
		delete(seen, f.name)
	}
	require.Empty(t, seen, "frames that should not have come")
}

// TestAWrongFrameIsRefused changes what is valid: the examples of the document.
func TestAWrongFrameIsRefused(t *testing.T) {
	p := frames(t)
	for where, list := range map[string][]frame{"FrameFromServer": fromServer(""), "FrameFromClient": fromClient("")} {
		for _, f := range list {
			t.Run(f.name, func(t *testing.T) {
				for _, example := range f.examples {
					require.NoError(t, p[where].Validate(decode(t, []byte(example))))
					refused := func(what string, change func(map[string]any)) {
						t.Helper()
						v := changed(t, []byte(example), change)
						require.Error(t, p[f.name].Validate(v), "%s: %v", what, v)
						require.Error(t, p[where].Validate(v), "%s: %v", what, v)
					}
					refused("a key more", func(m map[string]any) { m["more"] = 1 })
					if f.action != "" {
						refused("no action", func(m map[string]any) { delete(m, "action") })
						refused("an unknown action", func(m map[string]any) { m["action"] = "eat" })
					}
					for _, k := range f.keys {
						if !k.optional {
							refused("no "+k.name, func(m map[string]any) { delete(m, k.name) })
						}
						switch k.name {
						case "id":
							refused("too long an id", func(m map[string]any) { m["id"] = strings.Repeat("x", 63) })
						case "channels":
							refused("an unknown channel", func(m map[string]any) { m["channels"] = []any{"gossip"} })
						case "notifications":
							refused("no notification", func(m map[string]any) { m["notifications"] = []any{} })
							refused("a wrong notification", func(m map[string]any) {
								m["notifications"].([]any)[0].(map[string]any)["payload"].(map[string]any)["price"] = "50100"
							})
							refused("a dropped that says nothing", func(m map[string]any) { m["dropped"] = 0 })
						case "in_ms", "heartbeat_ms":
							refused("a negative time", func(m map[string]any) { m[k.name] = -1 })
						}
						if k.name != "id" {
							refused(k.name+" of another kind", func(m map[string]any) { m[k.name] = map[string]any{} })
						}
					}
				}
			})
		}
	}
}

// TestTheREADMEOfWsgateway checks every frame that it shows.
func TestTheREADMEOfWsgateway(t *testing.T) {
	text, err := os.ReadFile("../wsgateway/README.md")
	require.NoError(t, err)
	p := frames(t)
	shown := map[string]int{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\{.*?\\})` \\|").FindAllStringSubmatch(string(text), -1) {
		v := decode(t, []byte(strings.ReplaceAll(m[1], "[…]", "["+example()+"]")))
		name := messageOf(v.(map[string]any))
		require.NoError(t, p[name].Validate(v), m[1])
		shown[name]++
	}
	requireAll(t, shown, append(fromServer(""), fromClient("")...))
}
