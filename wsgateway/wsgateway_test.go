package wsgateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestNew(t *testing.T) {
	gateway, err := notification.NewGateway("gateway", notification.GatewayConfig{})
	require.NoError(t, err)
	for _, test := range []struct {
		name    string
		gateway Sessions
		change  func(*Config)
		field   string
	}{
		{"no Gateway", nil, func(*Config) {}, "Gateway"},
		{"a Gateway that is a nil pointer", (*notification.Gateway)(nil), func(*Config) {}, "Gateway"},
		{"no Authenticate", gateway, func(c *Config) { c.Authenticate = nil }, "Authenticate"},
		{"a pattern that is none", gateway, func(c *Config) { c.OriginPatterns = []string{"example.com", "[a"} }, "OriginPatterns[1]"},
		{"a negative HeartbeatInterval", gateway, func(c *Config) { c.HeartbeatInterval = -1 }, "HeartbeatInterval"},
		{"a negative PingInterval", gateway, func(c *Config) { c.PingInterval = -1 }, "PingInterval"},
		{"a negative PongTimeout", gateway, func(c *Config) { c.PongTimeout = -1 }, "PongTimeout"},
		{"a negative WriteTimeout", gateway, func(c *Config) { c.WriteTimeout = -1 }, "WriteTimeout"},
		{"a negative ReadLimit", gateway, func(c *Config) { c.ReadLimit = -1 }, "ReadLimit"},
		{"a ReadLimit without end", gateway, func(c *Config) { c.ReadLimit = 1 << 40 }, "ReadLimit"},
		{"a negative CommandsPerSecond", gateway, func(c *Config) { c.CommandsPerSecond = -1 }, "CommandsPerSecond"},
		{"a negative MaxConnections", gateway, func(c *Config) { c.MaxConnections = -1 }, "MaxConnections"},
	} {
		t.Run(test.name+" is an error that names the field", func(t *testing.T) {
			cfg := Config{Authenticate: authenticate}
			test.change(&cfg)
			_, err := New(test.gateway, cfg)
			require.ErrorIs(t, err, notification.ErrInvalid)
			require.ErrorContains(t, err, test.field)
		})
	}
	t.Run("the zero values are the documented defaults", func(t *testing.T) {
		h, err := New(gateway, Config{Authenticate: authenticate})
		require.NoError(t, err)
		got := h.cfg
		got.Authenticate, got.Logger = nil, nil
		require.Equal(t, Config{
			HeartbeatInterval: 20 * time.Second, PingInterval: 20 * time.Second, PongTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
			ReadLimit: 16 << 10, CommandsPerSecond: 10,
		}, got)
	})
	t.Run("the configuration is copied", func(t *testing.T) {
		cfg := Config{Authenticate: authenticate, OriginPatterns: []string{"one.example"}}
		h, err := New(gateway, cfg)
		require.NoError(t, err)
		cfg.OriginPatterns[0] = "*"
		require.Equal(t, []string{"one.example"}, h.cfg.OriginPatterns)
	})
}

func TestBeforeTheUpgrade(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{OriginPatterns: []string{"*.friend.example"}})
	status := func(user string, header http.Header) int {
		t.Helper()
		ws, resp, err := s.tryDial(user, false, "", header)
		if err == nil {
			_ = ws.Close(websocket.StatusNormalClosure, "")
		}
		require.NotNil(t, resp, "%v", err)
		return resp.StatusCode
	}
	origin := func(o string) http.Header { return http.Header{"Origin": {o}} }

	t.Run("no credentials get 401", func(t *testing.T) {
		require.Equal(t, 401, status("", nil))
	})
	t.Run("bad credentials get 401 and no reason", func(t *testing.T) {
		_, resp, err := s.tryDial("alice until tomorrow", false, "", nil)
		require.Error(t, err)
		require.Equal(t, 401, resp.StatusCode)
		body := make([]byte, 100)
		n, _ := resp.Body.Read(body)
		require.Equal(t, "Unauthorized\n", string(body[:n]))
	})
	t.Run("credentials that have expired get 401", func(t *testing.T) {
		require.Equal(t, 401, status("alice until "+time.Now().Add(-time.Second).Format(time.RFC3339Nano), nil))
	})
	t.Run("nobody, everybody and an endless name get 401", func(t *testing.T) {
		require.Equal(t, 401, status(" until "+time.Now().Add(time.Hour).Format(time.RFC3339Nano), nil))
		require.Equal(t, 401, status(notification.AllUsers, nil))
		require.Equal(t, 401, status(strings.Repeat("x", 257), nil))
	})
	t.Run("a foreign origin gets 403", func(t *testing.T) {
		require.Equal(t, 403, status("alice", origin("https://foe.example")))
		require.Equal(t, 403, status("alice", origin("null")))
	})
	t.Run("the same origin, a pattern's and none are let in", func(t *testing.T) {
		require.Equal(t, 101, status("alice", origin("http://"+s.addr)))
		require.Equal(t, 101, status("alice", origin("https://Www.Friend.example")))
		require.Equal(t, 101, status("alice", nil))
	})
	t.Run("what is no handshake gets 426", func(t *testing.T) {
		req, err := http.NewRequest("GET", "http://"+s.addr, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer alice")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, 426, resp.StatusCode)
	})
	t.Run("a ResponseWriter that cannot be hijacked gets 501, not half an upgrade", func(t *testing.T) {
		req := httptest.NewRequest("GET", "/", nil)
		for k, v := range map[string]string{"Authorization": "Bearer alice", "Connection": "Upgrade", "Upgrade": "websocket",
			"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
			req.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, req)
		require.Equal(t, 501, w.Code)
	})
	t.Run("none of it made a session, and every place is free again", func(t *testing.T) {
		s.noConnections()
		s.noSessions()
	})
}

// A lazyWriter is a middleware's: it can be unwrapped, and keeps the status to
// itself until it is told to write it.
type lazyWriter struct {
	http.ResponseWriter
	status int
}

func (w *lazyWriter) WriteHeader(status int)      { w.status = status }
func (w *lazyWriter) WriteHeaderNow()             { w.ResponseWriter.WriteHeader(w.status) }
func (w *lazyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestBehindMiddleware(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	wrapped := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handler.ServeHTTP(&lazyWriter{ResponseWriter: w}, r)
	}))
	defer wrapped.Close()
	s.addr = wrapped.Listener.Addr().String()
	t.Run("a ResponseWriter that is wrapped, and lazy, is upgraded", func(t *testing.T) {
		c := s.dial("alice", false, "")
		c.say(`{"action":"ping"}`)
		require.Equal(t, "pong", c.frame().Action)
	})
}

func TestMaxConnections(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 2, Authenticate: func(r *http.Request) (Identity, error) {
		if r.Header.Get("Authorization") == "Bearer panic" {
			panic(http.ErrAbortHandler)
		}
		return authenticate(r)
	}})
	t.Run("an Authenticate that panics gives its place back", func(t *testing.T) {
		for range 3 {
			_, _, err := s.tryDial("panic", false, "", nil)
			require.Error(t, err)
		}
	})
	first := s.dial("alice", false, "")
	s.dial("bob", false, "")
	t.Run("one more gets 503", func(t *testing.T) {
		_, resp, err := s.tryDial("carol", false, "", nil)
		require.Error(t, err)
		require.Equal(t, 503, resp.StatusCode)
	})
	t.Run("one that goes makes room", func(t *testing.T) {
		require.NoError(t, first.ws.Close(websocket.StatusNormalClosure, ""))
		eventually(t, "room", func() bool {
			ws, _, err := s.tryDial("carol", false, "", nil)
			if err == nil {
				_ = ws.CloseNow()
			}
			return err == nil
		})
	})
}

func TestProtocol(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{CommandsPerSecond: 1000})

	t.Run("without a subprotocol a frame is exactly one notification", func(t *testing.T) {
		c := s.dial("plain", false, "")
		s.session("plain")
		for range 3 {
			n := s.publish("plain", notification.TradeExecuted{TradeID: "ü\xff\"", Price: 1.5})
			require.Equal(t, string(n.AppendJSON(nil)), c.hear())
		}
	})
	t.Run("with the subprotocol there is a welcome, then a frame for each batch", func(t *testing.T) {
		c := s.dial("batch", true, "")
		require.Equal(t, batchProtocol, c.ws.Subprotocol())
		session := s.session("batch")
		require.Equal(t, `{"action":"welcome","session_id":"`+session.ID()+`","cursor":"","resumed":false,`+
			`"channels":["trade","account","position","risk","system"],"heartbeat_ms":20000,"refresh":false}`, c.hear())
		require.Equal(t, `{"action":"live"}`, c.hear())
		n := s.publish("batch", notification.RiskAlert{Message: "now"})
		require.Equal(t, `{"cursor":"","notifications":[`+string(n.AppendJSON(nil))+`]}`, c.hear())
	})
	t.Run("a subprotocol that we do not know is not agreed on", func(t *testing.T) {
		ws, _, err := s.tryDial("other", false, "", http.Header{"Sec-Websocket-Protocol": {"graphql-ws"}})
		require.NoError(t, err)
		defer ws.CloseNow()
		require.Empty(t, ws.Subprotocol())
	})

	const (
		badJSON     = `{"action":"error","code":"bad_json",`
		noChannels  = `{"action":"error","code":"no_channels",`
		badChannel  = `{"action":"error","code":"unknown_channel",`
		badAction   = `{"action":"error","code":"unknown_action",`
		all         = `{"action":"subscriptions_response","channels":["trade","account","position","risk","system"]}`
		tradeRisk   = `{"action":"subscriptions_response","channels":["trade","risk"]}`
		onlyRisk    = `{"action":"subscriptions_response","channels":["risk"]}`
		none        = `{"action":"subscriptions_response","channels":[]}`
		allButTrade = `{"action":"subscriptions_response","channels":["account","position","risk","system"]}`
	)
	get := `{"action":"get_subscriptions"}`
	for _, test := range []struct {
		name string
		say  []string
		hear []string // how the answers begin
	}{
		{"a session begins with every channel", []string{get}, []string{all}},
		{"ping is answered with pong", []string{`{"action":"ping"}`}, []string{`{"action":"pong"}`}},
		{"subscribe narrows, then adds", []string{`{"action":"subscribe","channels":["risk"]}`, get, `{"action":"subscribe","channels":["trade"]}`, get}, []string{onlyRisk, tradeRisk}},
		{"unsubscribe takes away, from every channel too", []string{`{"action":"unsubscribe","channels":["trade"]}`, get}, []string{allButTrade}},
		{"the last one taken away leaves none", []string{`{"action":"subscribe","channels":["risk"]}`, `{"action":"unsubscribe","channels":["risk"]}`, get}, []string{none}},
		{"unsubscribe_all removes the filter", []string{`{"action":"subscribe","channels":["risk"]}`, `{"action":"unsubscribe_all"}`, get}, []string{all}},
		{"an unknown channel changes nothing, not even for those beside it", []string{`{"action":"subscribe","channels":["risk","gossip"]}`, get}, []string{badChannel, all}},
		{"subscribe without channels is an error", []string{`{"action":"subscribe"}`, `{"action":"unsubscribe","channels":[]}`, get}, []string{noChannels, noChannels, all}},
		{"anything else is an error, and the session lives on", []string{``, `nonsense`, `[]`, `7`, `"x"`, `{"action":7}`, `{"channels":"risk"}`, `{}`, `{"action":"sudo"}`, `null`, get},
			[]string{badJSON, badJSON, badJSON, badJSON, badJSON, badJSON, badJSON, badAction, badAction, badAction, all}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial("speaker", false, "")
			for _, text := range test.say {
				c.say(text)
			}
			for _, want := range test.hear {
				got := c.hear()
				require.True(t, strings.HasPrefix(got, want), "%s does not begin with %s", got, want)
			}
		})
	}
	t.Run("a binary message is an error, and the session lives on", func(t *testing.T) {
		c := s.dial("binary", false, "")
		require.NoError(t, c.ws.Write(context.Background(), websocket.MessageBinary, []byte(get)))
		require.Equal(t, "not_text", c.frame().Code)
		c.say(get)
		require.Equal(t, all, c.hear())
	})
	t.Run("a message in many frames, with a ping in between, is one command", func(t *testing.T) {
		c := s.rawDial("fragments")
		frames := masked(opText, []byte(get[:5]))
		for _, b := range []byte(get[5:]) {
			frames = append(frames, masked(0, []byte{b})...)
		}
		frames = append(frames, masked(fin|opPing, []byte("hello"))...)
		frames = append(frames, masked(fin, nil)...)
		_, err := c.Write(frames)
		require.NoError(t, err)
		opcode, payload, err := c.read()
		require.NoError(t, err)
		require.Equal(t, byte(opPong), opcode)
		require.Equal(t, "hello", string(payload))
		_, payload, err = c.read()
		require.NoError(t, err)
		require.Equal(t, all, string(payload))
	})
	t.Run("a command right behind the handshake is not lost", func(t *testing.T) {
		nc, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		defer nc.Close()
		_, err = fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer early\r\n\r\n%s", masked(fin|opText, []byte(get)))
		require.NoError(t, err)
		c := &rawClient{t, nc, nil}
		c.r = bufio.NewReader(nc)
		resp, err := http.ReadResponse(c.r, nil)
		require.NoError(t, err)
		require.Equal(t, 101, resp.StatusCode)
		_, payload, err := c.read()
		require.NoError(t, err)
		require.Equal(t, all, string(payload))
	})
	t.Run("a filter holds for what is published after its answer", func(t *testing.T) {
		c := s.dial("filter", false, "")
		c.say(`{"action":"subscribe","channels":["risk"]}`)
		c.say(get)
		require.Equal(t, onlyRisk, c.hear())
		s.publish("filter", notification.OrderFilled{})
		n := s.publish("filter", notification.MarginCall{})
		require.Equal(t, n.ID, c.frame().MessageID)
	})
}

func TestTheUserComesFromAuthenticateAlone(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	const users = 8
	clients := make([]*client, users)
	for u := range clients {
		clients[u] = s.dial(fmt.Sprint("user-", u), u%2 == 0, "user=user-0&user_id=user-0&session_id=mine")
		clients[u].say(`{"action":"subscribe","channels":["trade","system"],"user_id":"user-0","session_id":"mine"}`)
		s.session(fmt.Sprint("user-", u))
	}
	for u := range clients {
		eventually(t, "the filter", func() bool {
			return !s.session(fmt.Sprint("user-", u)).IsSubscribed(notification.ChannelRisk)
		})
	}
	for range 20 {
		for u := range clients {
			s.publish(fmt.Sprint("user-", u), notification.OrderAccepted{})
		}
	}
	last := s.publish(notification.AllUsers, notification.SystemNotice{})

	t.Run("each client gets what is its own or everybody's, and nothing else", func(t *testing.T) {
		for u, c := range clients {
			own := 0
			for done := false; own < 20 || !done; { // the lanes overtake each other
				f := c.frame()
				if f.MessageID != "" {
					f.Notifications = append(f.Notifications, struct {
						MessageID string `json:"message_id"`
						UserID    string `json:"user_id"`
						Type      string `json:"message_type"`
					}{f.MessageID, f.UserID, ""})
				}
				for _, n := range f.Notifications {
					if n.MessageID == last.ID {
						done = true
						continue
					}
					own++
					require.Equal(t, fmt.Sprint("user-", u), n.UserID)
				}
			}
			require.Equal(t, 20, own)
		}
	})
	t.Run("session IDs are random, never the client's", func(t *testing.T) {
		seen := map[string]bool{}
		for session := range s.gateway.Sessions() {
			require.GreaterOrEqual(t, len(session.ID()), 20)
			require.False(t, seen[session.ID()])
			seen[session.ID()] = true
		}
		require.Len(t, seen, users)
	})
}

func TestCloseCodes(t *testing.T) {
	quiet := Config{} // no ping within a test
	for _, test := range []struct {
		name    string
		gateway notification.GatewayConfig
		cfg     Config
		cause   func(t *testing.T, s *server, c *client)
		code    int
	}{
		{"1000 when the session is unregistered", notification.GatewayConfig{}, quiet, func(t *testing.T, s *server, _ *client) {
			require.NoError(t, s.gateway.UnregisterSession(s.session("alice").ID()))
		}, 1000},
		{"1001 when the Gateway shuts down", notification.GatewayConfig{}, quiet, func(t *testing.T, s *server, _ *client) {
			require.NoError(t, s.gateway.Shutdown(t.Context()))
		}, 1001},
		{"1007 for text that is not UTF-8", notification.GatewayConfig{}, quiet, func(t *testing.T, s *server, c *client) {
			c.say("{\"action\":\"ping\xff\"}")
		}, 1007},
		{"1008 for a flood of commands", notification.GatewayConfig{}, Config{CommandsPerSecond: 3}, func(t *testing.T, s *server, c *client) {
			for range 4 { // in less than a third of a second, or again
				c.say(`{"action":"ping"}`)
			}
			for c.ws.Write(t.Context(), websocket.MessageText, []byte(`{"action":"ping"}`)) == nil && s.gateway.Stats().Sessions > 0 {
			}
		}, 1008},
		{"1009 for a message over ReadLimit", notification.GatewayConfig{}, Config{ReadLimit: 100}, func(t *testing.T, s *server, c *client) {
			c.say(`{"action":"ping"}` + strings.Repeat(" ", 83)) // 100 bytes: not yet
			require.Equal(t, "pong", c.frame().Action)
			c.say(`{"action":"ping"}` + strings.Repeat(" ", 84))
		}, 1009},
		{"4001 when the session was silent for too long", notification.GatewayConfig{SessionTimeout: 20 * time.Millisecond, SweepInterval: 10 * time.Millisecond}, quiet, func(*testing.T, *server, *client) {}, 4001},
		{"4409 when a newer session takes its place", notification.GatewayConfig{MaxSessionsPerUser: 1}, quiet, func(t *testing.T, s *server, _ *client) {
			s.session("alice")
			s.dial("alice", false, "")
		}, 4409},
		{"4100 when there may be a gap", notification.GatewayConfig{}, quiet, func(t *testing.T, s *server, _ *client) {
			s.session("alice")
			s.gateway.Gap()
		}, 4100},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, test.gateway, test.cfg)
			c := s.dial("alice", false, "")
			test.cause(t, s, c)
			require.Equal(t, test.code, int(c.goodbye().Code))
		})
	}
	t.Run("1011 for whatever else ended the session", func(t *testing.T) {
		for reason, code := range map[error]int{
			notification.ErrSinkPanic:                                  1011,
			errors.New("broken pipe"):                                  1011,
			fmt.Errorf("wrapped: %w", notification.ErrSlowConsumer):    4000,
			fmt.Errorf("wrapped: %w", notification.ErrSessionReplaced): 4409,
			fmt.Errorf("%w: and more", notification.ErrGatewayClosed):  1001,
		} {
			require.Equal(t, code, int(endingOf(reason).code), "%v", reason)
		}
	})
	t.Run("the peer's own close is answered with its code, and its session ends", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, quiet)
		c := s.rawDial("alice")
		s.session("alice")
		_, err := c.Write(masked(fin|8, []byte{4321 >> 8, 4321 & 0xff}))
		require.NoError(t, err)
		code, _ := c.goodbye()
		require.Equal(t, 4321, code)
		s.noSessions()
		require.EqualValues(t, 1, s.gateway.Stats().Ended.Closed)
	})
	t.Run("a peer that goes without a word ends its session", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, quiet)
		c := s.dial("alice", false, "")
		s.session("alice")
		require.NoError(t, c.ws.CloseNow())
		s.noSessions()
	})
}

func TestExpiry(t *testing.T) {
	t.Run("the connection ends with 4401 when its credentials do, however lively it is", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{CommandsPerSecond: 1 << 20, WriteTimeout: patience})
		var expires time.Time
		var c *client
		for life := 300 * time.Millisecond; c == nil; life *= 2 { // on a busy machine a dial takes longer than that
			expires = time.Now().Add(life)
			if ws, _, err := s.tryDial("alice until "+expires.Format(time.RFC3339Nano), false, "", nil); err == nil {
				c = &client{t, ws}
			}
		}
		var talking sync.WaitGroup
		talking.Go(func() {
			// Not without a pause: who is cut in the middle of a frame gets no close frame.
			for c.ws.Write(context.Background(), websocket.MessageText, []byte(`{"action":"ping"}`)) == nil {
				<-time.After(time.Millisecond)
			}
		})
		require.Equal(t, 4401, int(c.goodbye().Code))
		require.False(t, time.Now().Before(expires), "too early")
		t.Logf("%s after its time", time.Since(expires).Round(time.Microsecond))
		_ = c.ws.CloseNow()
		talking.Wait()
		s.noSessions()
	})
	t.Run("a silent one too", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		expires := time.Now().Add(100 * time.Millisecond)
		c := s.dial("alice until "+expires.Format(time.RFC3339Nano), true, "")
		require.Equal(t, 4401, int(c.goodbye().Code))
		require.False(t, time.Now().Before(expires), "too early")
	})
}

func TestResume(t *testing.T) {
	// There is room for all that is published while a client connects, however long that takes.
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1 << 18, OutboxMessages: 1 << 16}, Config{})
	// collect reads batches until the notification with this ID, and returns the
	// IDs and the last cursor.
	collect := func(c *client, last string) (ids []string, cursor string) {
		for {
			f := c.frame()
			cursor = f.Cursor
			for _, n := range f.Notifications {
				if ids = append(ids, n.MessageID); n.MessageID == last {
					return ids, cursor
				}
			}
		}
	}
	gone := func(c *client) {
		require.NoError(s.t, c.ws.CloseNow())
		s.noSessions()
	}
	publish := func(user string, n int) (ids []string) {
		for range n {
			ids = append(ids, s.publish(user, notification.OrderFilled{}).ID)
		}
		return ids
	}

	t.Run("a client goes on behind the cursor of its last batch, and misses nothing", func(t *testing.T) {
		c := s.dial("alice", true, "")
		welcome := c.frame()
		require.NotEmpty(t, welcome.Cursor)
		before := publish("alice", 3)
		got, cursor := collect(c, before[2])
		require.Equal(t, before, got)
		gone(c)
		missed := publish("alice", 500)
		c = s.dial("alice", true, "cursor="+cursor)
		again := c.frame()
		require.Equal(t, "welcome", again.Action)
		require.NotEqual(t, welcome.SessionID, again.SessionID)
		require.Equal(t, cursor, again.Cursor)
		require.True(t, again.Resumed)
		got, _ = collect(c, missed[499])
		require.Equal(t, missed, got)
		live := publish("alice", 1)
		got, _ = collect(c, live[0])
		require.Equal(t, live, got)
		gone(c)
	})
	t.Run("the cursor of the welcome is good before the first batch", func(t *testing.T) {
		c := s.dial("bob", true, "")
		cursor := c.frame().Cursor
		gone(c)
		missed := publish("bob", 2)
		c = s.dial("bob", true, "cursor="+cursor)
		require.Equal(t, cursor, c.frame().Cursor)
		got, _ := collect(c, missed[1])
		require.Equal(t, missed, got)
		gone(c)
	})
	t.Run("the cursor of the welcome never promises a batch that comes after it", func(t *testing.T) {
		// Notifications are under way while the client connects; it takes the
		// welcome alone, goes, and comes back with its cursor. From there on it
		// must get an unbroken row up to the last one.
		for range 50 {
			stop, stopped := make(chan struct{}), make(chan struct{})
			var ids []string
			go func() { // ends with stop; waited for below
				defer close(stopped)
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
						n := notification.New("eve", notification.RiskAlert{}, "test")
						if s.broker.Publish(n) == nil {
							ids = append(ids, n.ID)
						}
						<-time.After(10 * time.Microsecond)
					}
				}
			}()
			c := s.dial("eve", true, "")
			cursor := c.frame().Cursor
			first := c.frame()
			for first.Action != "" { // live
				first = c.frame()
			}
			// That was a batch, which the client does not get round to.
			gone(c)
			close(stop)
			<-stopped
			c = s.dial("eve", true, "cursor="+cursor)
			require.Equal(t, "welcome", c.frame().Action)
			got, _ := collect(c, ids[len(ids)-1])
			require.Equal(t, ids[len(ids)-len(got):], got)
			require.Contains(t, got, first.Notifications[0].MessageID)
			gone(c)
		}
	})
	cursors := map[string]func() string{
		"is nonsense": func() string { return "nonsense" },
		"is another user's": func() string {
			c := s.dial("mallory", true, "")
			defer gone(c)
			return c.frame().Cursor
		},
		"was voided by a gap": func() string {
			c := s.dial("carol", true, "")
			cursor := c.frame().Cursor
			s.gateway.Gap()
			require.Equal(t, 4100, int(c.goodbye().Code))
			s.noSessions()
			return cursor
		},
	}
	for name, cursor := range cursors {
		t.Run("a cursor that "+name+" gets a welcome, a reset, live, and then what is new", func(t *testing.T) {
			c := s.dial("carol", true, "cursor="+cursor())
			welcome := c.frame()
			require.Equal(t, "welcome", welcome.Action)
			require.False(t, welcome.Resumed)
			require.NotEmpty(t, welcome.Cursor)
			require.Equal(t, `{"action":"reset","reason":"cursor_gone"}`, c.hear())
			require.Equal(t, `{"action":"live"}`, c.hear())
			n := s.publish("carol", notification.RiskAlert{})
			require.Contains(t, c.hear(), `"message_id":"`+n.ID+`"`)
			gone(c)
		})
		t.Run("a cursor that "+name+" gets 410 without a subprotocol, which has no reset", func(t *testing.T) {
			_, resp, err := s.tryDial("carol", false, "cursor="+cursor(), nil)
			require.Error(t, err)
			require.Equal(t, http.StatusGone, resp.StatusCode)
			s.noConnections()
		})
	}
	t.Run("without a history every cursor is gone, and the welcome has none", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		c := s.dial("alice", true, "cursor=AQAAAAAAAAAAAAAAAAAAAAAAAAAA")
		welcome := c.frame()
		require.Equal(t, "welcome", welcome.Action)
		require.Empty(t, welcome.Cursor)
		require.Equal(t, "reset", c.frame().Action)
	})
}

func TestDropped(t *testing.T) {
	t.Run("a batch tells how many were dropped since the one before", func(t *testing.T) {
		b := appendBatch(nil, []*notification.Message{notification.NewMessage(notification.New("a", notification.OrderFilled{}, ""))}, "c", 7)
		require.Contains(t, string(b), `],"dropped":7}`)
		_, payload, err := readFrame(bufio.NewReader(strings.NewReader(string(b))), nil)
		require.NoError(t, err)
		require.Len(t, payload, len(b)-4)
	})
	t.Run("a slow client of SlowDropOldest lives on, and every notification is delivered or told as dropped", func(t *testing.T) {
		// Without pings, which this client does not answer.
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8, SlowPolicy: notification.SlowDropOldest}, Config{WriteTimeout: patience, PingInterval: time.Hour})
		nc, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		defer nc.Close()
		r := bufio.NewReader(nc)
		require.NoError(t, handshake(nc, r, "alice", batchProtocol))
		session := s.session("alice")
		sent, reason := 0, strings.Repeat("x", 512<<10)
		eventually(t, "drops", func() bool { // none as long as Push has yet to begin, or the kernel to be full
			for range 8 {
				s.publish("alice", notification.OrderRejected{Reason: reason})
				sent++
			}
			return session.Dropped() >= 10
		})
		last := s.publish("alice", notification.OrderRejected{Reason: "last"})
		sent++
		delivered, dropped := 0, 0
		for done := false; !done; {
			_, payload, err := readFrame(r, nil)
			require.NoError(t, err)
			f := parse(t, payload)
			dropped += f.Dropped
			delivered += len(f.Notifications)
			for _, n := range f.Notifications {
				done = done || n.MessageID == last.ID
			}
		}
		require.Equal(t, sent, delivered+dropped)
		require.GreaterOrEqual(t, dropped, 10)
	})
}

func TestShutdown(t *testing.T) {
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("without connections it is done at once, as often as it is called", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		for range 3 {
			require.NoError(t, s.handler.Shutdown(within(patience)))
		}
		_, resp, err := s.tryDial("alice", false, "", nil)
		require.Error(t, err)
		require.Equal(t, 503, resp.StatusCode)
	})
	t.Run("its 1001s are spread over the time, and those who wait are served", func(t *testing.T) {
		t.Parallel() // it waits for most of its time
		s := serve(t, notification.GatewayConfig{}, Config{})
		const n = 100
		const window = 16 * time.Second // a quarter of it is for peers that a busy machine makes slow
		ends := make(chan time.Time, n)
		served := make(chan struct{}, n)
		for i := range n {
			c := s.dial(fmt.Sprint("user-", i), false, "")
			s.session(fmt.Sprint("user-", i))
			go func() { // ends with the connection; waited for below
				_, _, err := c.ws.Read(context.Background())
				if err == nil {
					served <- struct{}{}
					_, _, err = c.ws.Read(context.Background())
				}
				if websocket.CloseStatus(err) != websocket.StatusGoingAway {
					t.Errorf("not 1001: %v", err)
				}
				ends <- time.Now()
			}()
		}
		ctx := within(window)
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(ctx) }()
		first := <-ends
		s.publish(notification.AllUsers, notification.SystemNotice{})
		last := first
		quarter := [4]int{}
		for range n - 1 {
			last = <-ends
			quarter[min(int(last.Sub(first)*4/(window*3/4)), 3)]++
		}
		require.NoError(t, <-done)
		require.NoError(t, ctx.Err(), "it is back before its deadline")
		require.NotEmpty(t, served)
		require.GreaterOrEqual(t, last.Sub(first), window/2)
		t.Logf("%d connections closed over %s, in quarters %v; %d were served meanwhile", n, last.Sub(first).Round(time.Millisecond), quarter, len(served))
		s.noSessions()
	})
	t.Run("it is back by its deadline whatever the peers do", func(t *testing.T) {
		// In virtual time: half a second is left for those that end last.
		synctest.Test(t, func(t *testing.T) {
			ln := make(pipes)
			s := serveOn(t, ln, notification.GatewayConfig{}, Config{})
			for i := range 20 {
				nc := ln.dial()
				defer nc.Close()
				require.NoError(t, handshake(nc, bufio.NewReader(nc), fmt.Sprint("user-", i), ""))
				go func() { _, _ = io.Copy(io.Discard, nc) }() // ends with nc; never answers
				if i%2 == 0 {
					_, err := nc.Write([]byte{fin | opText, 0x80 | 126, 0x0f, 0xff, 0, 0, 0, 0, 'x'}) // and promises more
					require.NoError(t, err)
				}
			}
			require.Equal(t, 20, s.gateway.Stats().Sessions)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, s.handler.Shutdown(ctx))
			require.NoError(t, ctx.Err())
			s.noSessions()
		})
	})
	t.Run("when its ctx ends it cuts the rest and says so", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		c := s.rawDial("alice")
		s.session("alice")
		ctx, cancel := context.WithCancelCause(context.Background())
		enough := errors.New("enough")
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(ctx) }()
		_, _, err := c.read() // the close frame, which is not answered
		require.NoError(t, err)
		cancel(enough)
		require.ErrorIs(t, <-done, enough)
		c.goodbye()
		s.noSessions()
		require.NoError(t, s.handler.Shutdown(within(patience)), "now all are gone")
	})
	t.Run("a connection that is being upgraded meanwhile is closed too", func(t *testing.T) {
		asked, answer := make(chan struct{}), make(chan struct{})
		s := serve(t, notification.GatewayConfig{}, Config{WriteTimeout: 2 * time.Second, Authenticate: func(r *http.Request) (Identity, error) {
			close(asked)
			<-answer
			return authenticate(r)
		}})
		code := make(chan int, 1)
		go func() {
			if c, err := s.tryRawDial("alice"); err == nil {
				n, _ := c.goodbye()
				_ = c.Close()
				code <- n
			}
			close(code)
		}()
		<-asked
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(within(patience)) }()
		eventually(t, "closing", s.handler.door.Closing)
		close(answer)
		require.Equal(t, 1001, <-code)
		require.NoError(t, <-done)
	})
}

// pipes is a listener whose network is memory, for virtual time.
type pipes chan net.Conn

func (l pipes) dial() net.Conn {
	here, there := net.Pipe()
	l <- there
	return here
}

func (l pipes) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l pipes) Close() error   { close(l); return nil }
func (l pipes) Addr() net.Addr { return &net.UnixAddr{} }

func TestWhatIsForEverybodyIsEncodedOnce(t *testing.T) {
	// A first notice waits for a second one, which makes the batch full.
	cfg := notification.GatewayConfig{BatchSize: 2}
	cfg.MaxDelay[notification.P3] = time.Hour
	s := serve(t, cfg, Config{})
	published := make(chan *notification.Message, 2)
	require.NoError(t, s.broker.SubscribeGlobal("published", published, notification.Wait))
	const sockets = 50
	var clients []*client
	for i := range sockets {
		clients = append(clients, s.dial(fmt.Sprint("user-", i), i%2 == 0, ""))
		s.session(fmt.Sprint("user-", i))
	}
	s.publish(notification.AllUsers, notification.MarketHalt{Reason: "genuine"})
	m := <-published
	// A forged encoding, which nobody can have who encodes again.
	copy(m.JSON()[bytes.Index(m.JSON(), []byte("genuine")):], "forgery")
	s.publish(notification.AllUsers, notification.MarketHalt{})
	for i, c := range clients {
		text := c.hear()
		if i%2 == 0 {
			c.hear() // live
			text = c.hear()
		}
		require.Contains(t, text, string(m.JSON()))
		require.Contains(t, text, `"forgery"`)
	}
}

// Nothing is allocated for messages that nobody has encoded before, so the frames are
// all that there is of their text.
func TestFramesAreAppendedWithoutAllocation(t *testing.T) {
	const runs = 20
	var fresh [][]*notification.Message
	for range runs + 1 { // one more to begin with
		fresh = append(fresh, batchOf(100))
	}
	buf := appendBatch(nil, batchOf(100), "cursor", 0)
	for name, frames := range map[string]func(batch []*notification.Message){
		"one each":    func(batch []*notification.Message) { buf = appendSingles(buf[:0], batch) },
		"one for all": func(batch []*notification.Message) { buf = appendBatch(buf[:0], batch, "cursor", 0) },
	} {
		i := 0
		require.Zero(t, testing.AllocsPerRun(runs, func() { frames(fresh[i]); i++ }), name)
	}
}

func TestFrameHeaders(t *testing.T) {
	for _, length := range []int{0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20} {
		text := strings.Repeat("x", length)
		b := endFrame(append(beginFrame([]byte("before")), text...), len("before"))
		want := append(appendHeader([]byte("before"), opText, length), text...)
		require.True(t, bytes.Equal(want, b), "of %d bytes: %.20x, not %.20x", length, b, want)
	}
}

func batchOf(n int) []*notification.Message {
	var batch []*notification.Message
	for i := range n {
		batch = append(batch, notification.NewMessage(notification.New("alice", notification.TradeExecuted{TradeID: fmt.Sprint(i), Price: 1.25}, "test")))
	}
	return batch
}

// BenchmarkFrames is a frame of 100 notifications: of one user's, and of such as have
// been encoded, as those for everybody are.
func BenchmarkFrames(b *testing.B) {
	encoded := batchOf(100)
	for _, m := range encoded {
		m.JSON()
	}
	for name, batch := range map[string][]*notification.Message{"alice": batchOf(100), "everybody": encoded} {
		b.Run(name, func(b *testing.B) {
			buf := appendBatch(nil, batch, "cursor", 0)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = appendBatch(buf[:0], batch, "cursor", 0)
			}
		})
	}
}
