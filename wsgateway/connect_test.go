package wsgateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

func TestNothingIsMissedAfterOpen(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("what is published as soon as the client sees its connection open arrives (batches %v)", batches), func(t *testing.T) {
			s := serve(t, notification.GatewayConfig{}, Config{})
			for i := range 400 {
				c := s.dial(fmt.Sprint("user-", i), batches, "")
				n := s.publish(fmt.Sprint("user-", i), notification.OrderFilled{})
				for {
					f := c.frame()
					if f.Action != "" {
						continue
					}
					if batches {
						f.MessageID = f.Notifications[0].MessageID
					}
					require.Equal(t, n.ID, f.MessageID)
					break
				}
				require.NoError(t, c.ws.CloseNow())
			}
		})
	}
}

// TestOrderAtConnect has requests with everything wrong from one point on.
func TestOrderAtConnect(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1, Authenticate: func(r *http.Request) (Identity, error) {
		asked.Add(1)
		return authenticate(r)
	}})
	foreign := http.Header{"Origin": {"https://foe.example"}}
	status := func(user, query string, header http.Header) int {
		t.Helper()
		ws, resp, err := s.tryDial(user, false, query, header)
		if err == nil {
			_ = ws.CloseNow()
		}
		require.NotNil(t, resp, "%v", err)
		return resp.StatusCode
	}
	require.Equal(t, 101, status("alice", "", nil))
	s.noConnections()
	full := s.dial("alice", false, "")
	before := asked.Load()

	t.Run("a foreign origin is refused before anybody is asked who it is, upgraded never", func(t *testing.T) {
		require.Equal(t, 403, status("", "channels=gossip", foreign))
		ws, resp, err := s.tryDial("", true, "channels=gossip", foreign)
		require.Error(t, err)
		require.Nil(t, ws)
		require.Equal(t, 403, resp.StatusCode)
	})
	t.Run("a handshake that is none comes first of all", func(t *testing.T) {
		req, err := http.NewRequest("GET", "http://"+s.addr, nil)
		require.NoError(t, err)
		req.Header = foreign
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, 426, resp.StatusCode)
	})
	require.Equal(t, before, asked.Load())
	t.Run("with no room left, who has no connection here gets 503", func(t *testing.T) {
		require.Equal(t, 503, status("bob", "", nil))
	})
	t.Run("nobody gives way to a request that is refused", func(t *testing.T) {
		require.Equal(t, 400, status("alice", "channels=gossip", nil))
		full.say(`{"action":"ping"}`)
		require.Equal(t, `{"action":"pong"}`, full.hear())
	})
	require.NoError(t, full.ws.CloseNow())
	s.noConnections()
	t.Run("credentials come before the query", func(t *testing.T) {
		require.Equal(t, 401, status("", "channels=gossip", nil))
	})
	t.Run("and the query before the session", func(t *testing.T) {
		require.Equal(t, 400, status("alice", "channels=gossip", nil))
		require.Equal(t, 400, status("alice", "channels=%zz", nil))
	})
	t.Run("none of them left anything behind", func(t *testing.T) {
		s.noConnections()
		s.noSessions()
	})
}

// TestOrigins has what browsers send, and what they never would.
func TestOrigins(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{OriginPatterns: []string{"*.friend.example", "https://exact.example:8443"}})
	for _, test := range []struct {
		name, host, origin string
		in                 bool
	}{
		{"the host itself", "here.example", "https://here.example", true},
		{"the host in other letters", "Here.Example", "https://hERE.example", true},
		{"the host and its port", "here.example:8080", "http://here.example:8080", true},
		{"an address of IPv6", "[::1]:8080", "http://[::1]:8080", true},
		{"a friend in other letters", "here.example", "https://WWW.Friend.Example", true},
		{"a friend with scheme and port", "here.example", "https://exact.example:8443", true},
		{"the host with another port", "here.example:8080", "http://here.example:8081", false},
		{"another address of IPv6", "[::1]:8080", "http://[::2]:8080", false},
		{"the host as the user of another", "here.example", "https://here.example@foe.example", false},
		{"the host as a beginning", "here.example", "https://here.example.foe.example", false},
		{"the host as an end", "here.example", "https://foe-here.example", false},
		{"the host in the path of another", "here.example", "https://foe.example/here.example", false},
		{"a friend's end alone", "here.example", "https://foefriend.example", false},
		{"a friend over another scheme", "here.example", "http://exact.example:8443", false},
		{"a page without an origin", "here.example", "null", false},
		{"what is no URL", "here.example", "https://[here.example", false},
		{"a name without a scheme", "here.example", "here.example", false},
	} {
		t.Run(fmt.Sprintf("%s is let in: %v", test.name, test.in), func(t *testing.T) {
			nc, err := net.Dial("tcp", s.addr)
			require.NoError(t, err)
			defer nc.Close()
			require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
			_, err = fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer alice\r\nOrigin: %s\r\n\r\n", test.host, test.origin)
			require.NoError(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
			require.NoError(t, err)
			require.Equal(t, map[bool]int{true: 101, false: 403}[test.in], resp.StatusCode)
		})
	}
}

func TestBodies(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 3, Authenticate: func(r *http.Request) (Identity, error) {
		asked.Add(1)
		return authenticate(r)
	}})
	for _, header := range []string{"Content-Length: 30\r\n", "Transfer-Encoding: chunked\r\n"} {
		t.Run("a handshake with a body that never comes gets 400, and holds nothing: "+strings.TrimSpace(header), func(t *testing.T) {
			for range 3 {
				nc, err := net.Dial("tcp", s.addr)
				require.NoError(t, err)
				defer nc.Close()
				require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
				_, err = fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
					"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer mallory\r\n%s\r\nhalf a b", header)
				require.NoError(t, err)
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				require.NoError(t, err)
				require.Equal(t, 400, resp.StatusCode)
			}
			require.Zero(t, taken(s))
			require.Zero(t, asked.Load())
		})
	}
	t.Run("the door is open, and the http.Server ends", func(t *testing.T) {
		c := s.dial("alice", false, "")
		require.NoError(t, c.ws.CloseNow())
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, s.http.Shutdown(ctx))
	})
}

func TestChannelsAtConnect(t *testing.T) {
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{})
	publish := func(user string) (trade, risk string) {
		return s.publish(user, notification.OrderFilled{}).ID, s.publish(user, notification.MarginCall{}).ID
	}
	// until returns the notifications before one of the system channel.
	until := func(c *client, user string) (ids []string) {
		last := s.publish(user, notification.TradingSessionEnd{}).ID
		for {
			for _, n := range c.frame().Notifications {
				if n.MessageID == last {
					return ids
				}
				ids = append(ids, n.MessageID)
			}
		}
	}
	t.Run("those that are named are in the welcome, and filter from the first frame", func(t *testing.T) {
		c := s.dial("alice", true, "channels=risk,system")
		require.Equal(t, []string{"risk", "system"}, c.frame().Channels)
		_, risk := publish("alice")
		require.Equal(t, []string{risk}, until(c, "alice"))
	})
	t.Run("a replay is filtered too", func(t *testing.T) {
		c := s.dial("bob", true, "channels=risk,system")
		cursor := c.frame().Cursor
		require.NoError(t, c.ws.CloseNow())
		s.noSession("bob")
		_, risk := publish("bob")
		c = s.dial("bob", true, "channels=risk,system&cursor="+cursor)
		require.True(t, c.frame().Resumed)
		require.Equal(t, []string{risk}, until(c, "bob"))
	})
	t.Run("an empty list is none, and none at all is every one", func(t *testing.T) {
		require.Equal(t, []string{}, s.dial("carol", true, "channels=").frame().Channels)
		require.Len(t, s.dial("dave", true, "").frame().Channels, 5)
	})
	t.Run("an unknown one is 4400, or 400 without subprotocol", func(t *testing.T) {
		for _, list := range []string{"gossip", "risk,gossip", "risk,", ",", "Risk", "risk trade"} {
			query := "channels=" + strings.ReplaceAll(list, " ", "+")
			require.Equal(t, 4400, int(s.dial("eve", true, query).goodbye().Code), list)
			_, resp, err := s.tryDial("eve", false, query, nil)
			require.Error(t, err)
			require.Equal(t, 400, resp.StatusCode)
		}
	})
}

func TestRefusals(t *testing.T) {
	forbid := func(r *http.Request) (Identity, error) {
		if r.Header.Get("Authorization") == "Bearer outlaw" {
			return Identity{}, fmt.Errorf("%w: outlaw", web.ErrForbidden)
		}
		return authenticate(r)
	}
	t.Run("with the subprotocol they are close codes, which a browser can read, and no session", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{Authenticate: forbid, MaxConnections: 1})
		s.dial("alice", true, "") // there is no place left, and none is needed
		for user, code := range map[string]int{"": 4401, "*": 4401, "alice until yesterday": 4401, "outlaw": 4403} {
			e := s.dial(user, true, "").goodbye()
			require.Equal(t, code, int(e.Code), user)
		}
		eventually(t, "only alice", func() bool { return taken(s) == 1 })
		require.Equal(t, 1, s.gateway.Stats().Sessions)
	})
	t.Run("without it they are HTTP statuses", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{Authenticate: forbid})
		for user, status := range map[string]int{"": 401, "outlaw": 403} {
			_, resp, err := s.tryDial(user, false, "", nil)
			require.Error(t, err)
			require.Equal(t, status, resp.StatusCode)
		}
	})
	t.Run("a hundred are told at a time, the others get the status", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		leave := s.holdRefusals()
		_, resp, err := s.tryDial("", true, "", nil)
		require.Error(t, err)
		require.Equal(t, 401, resp.StatusCode)
		leave()
		eventually(t, "another is told", func() bool {
			ws, _, err := s.tryDial("", true, "", nil)
			if err != nil {
				return false // so many a second too
			}
			return (&client{t, ws}).goodbye().Code == 4401
		})
	})
	t.Run("who does not close is gone soon", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		for range 20 {
			nc, err := net.Dial("tcp", s.addr)
			require.NoError(t, err)
			defer nc.Close()
			require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
			require.NoError(t, handshake(nc, bufio.NewReader(nc), "alice until yesterday", batchProtocol))
		}
		s.noConnections()
		require.EqualValues(t, 20, s.handler.Stats().Refused.Credentials)
		require.Zero(t, s.handler.Stats().Accepted)
	})
	t.Run("a Gateway that is full or closed is 503 with either, so that a proxy tries the next server", func(t *testing.T) {
		for _, batches := range []bool{false, true} {
			s := serve(t, notification.GatewayConfig{MaxSessions: 1}, Config{})
			refused := func() int {
				_, resp, err := s.tryDial("bob", batches, "", nil)
				require.Error(t, err)
				return resp.StatusCode
			}
			s.dial("alice", batches, "")
			require.Equal(t, 503, refused())
			require.NoError(t, s.gateway.Shutdown(t.Context()))
			require.Equal(t, 503, refused())
			s.noConnections()
		}
	})
	t.Run("a log that has to be waited for is 503, and a user of another server 421, with either", func(t *testing.T) {
		for status, reason := range map[int]error{503: notification.ErrTryAgain, 421: web.ErrElsewhere} {
			h, err := New(sessions(func(notification.SessionConfig) (*notification.Session, error) {
				return nil, fmt.Errorf("%w: for a reason", reason)
			}), Config{Authenticate: authenticate})
			require.NoError(t, err)
			s := serveHandler(t, h)
			for _, batches := range []bool{false, true} {
				_, resp, err := s.tryDial("alice", batches, "", nil)
				require.Error(t, err)
				require.Equal(t, status, resp.StatusCode)
			}
			s.noConnections()
			refused := h.Stats().Refused
			require.EqualValues(t, 2, refused.Full+refused.Elsewhere)
			require.Equal(t, status == 421, refused.Elsewhere == 2)
		}
	})
	t.Run("whatever else keeps a session from being made is 500, and the log says why", func(t *testing.T) {
		var log lockedBuffer
		h, err := New(sessions(func(notification.SessionConfig) (*notification.Session, error) {
			return nil, errors.New("no edge is up")
		}),
			Config{Authenticate: authenticate, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.NoError(t, err)
		s := serveHandler(t, h)
		_, resp, err := s.tryDial("alice", true, "", nil)
		require.Error(t, err)
		require.Equal(t, 500, resp.StatusCode)
		require.Contains(t, log.String(), "no edge is up")
		s.noConnections()
	})
	t.Run("503 is logged once a minute, however many there are", func(t *testing.T) {
		var log lockedBuffer
		s := serve(t, notification.GatewayConfig{MaxSessions: 1}, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s.dial("alice", false, "")
		for range 20 {
			_, _, err := s.tryDial("bob", false, "", nil)
			require.Error(t, err)
		}
		require.Equal(t, 1, strings.Count(log.String(), "503"))
		require.Contains(t, log.String(), "too many sessions")
	})
}

// holdRefusals takes all that there is for clients which are told why they are
// refused, as a hundred that do not close would, until the function that it
// returns is called.
func (s *server) holdRefusals() (leave func()) {
	s.t.Helper()
	held := make([]*conn, 100)
	for i := range held {
		held[i] = newConn(s.handler)
		require.True(s.t, s.handler.door.Enter(held[i]))
		require.True(s.t, s.handler.door.Refuse(held[i]))
	}
	return func() {
		for _, c := range held {
			s.handler.door.Leave(c)
		}
	}
}

// sessions makes a function a Sessions.
type sessions func(notification.SessionConfig) (*notification.Session, error)

func (f sessions) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	return f(cfg)
}

// A lockedBuffer is what a logger writes to.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestWhoComesBackGetsIn(t *testing.T) {
	t.Run("to a full house: the connection of the same user that was not heard of for the longest gives way", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 3, WriteTimeout: time.Second})
		halfOpen := s.rawDial("alice") // whose network is gone: it says nothing more
		lively := s.dial("alice", true, "")
		other := s.rawDial("bob")
		eventually(t, "all are connected", func() bool { return s.handler.Stats().Accepted == 3 })
		for range 2 { // welcome, live
			lively.frame()
		}
		lively.say(`{"action":"ping"}`)
		require.Equal(t, "pong", lively.frame().Action)
		back := s.dial("alice", true, "")
		require.Equal(t, "welcome", back.frame().Action)
		code, _ := halfOpen.goodbye()
		require.Equal(t, 4409, code)
		n := s.publish(notification.AllUsers, notification.MarketHalt{})
		require.Contains(t, lively.hear(), n.ID)
		_, payload, err := other.read()
		require.NoError(t, err)
		require.Contains(t, string(payload), n.ID)
		eventually(t, "three places taken", func() bool { return taken(s) == 3 })
		_, resp, err := s.tryDial("carol", true, "", nil)
		require.Error(t, err)
		require.Equal(t, 503, resp.StatusCode, "who is not here yet stays out")
	})
	t.Run("also while as many as can be told that they are refused do not go", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1, WriteTimeout: time.Second})
		halfOpen := s.rawDial("alice")
		eventually(t, "it is connected", func() bool { return s.handler.Stats().Accepted == 1 })
		defer s.holdRefusals()()
		back := s.dial("alice", true, "")
		require.Equal(t, "welcome", back.frame().Action)
		code, _ := halfOpen.goodbye()
		require.Equal(t, 4409, code)
	})
	t.Run("again and again, with nothing left behind", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1, WriteTimeout: 200 * time.Millisecond})
		for i := range 20 {
			s.rawDial("alice")
			eventually(t, "it is connected", func() bool { return s.handler.Stats().Accepted == uint64(i+1) })
		}
		eventually(t, "the last one stays", func() bool { return taken(s) == 1 && s.gateway.Stats().Sessions == 1 })
		require.EqualValues(t, 19, s.handler.Stats().Closed[web.CodeReplaced])
	})
	t.Run("over MaxSessionsPerUser too, and the older one is told to stop", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{MaxSessionsPerUser: 1}, Config{MaxConnections: 2})
		old := s.dial("alice", true, "")
		s.dial("alice", true, "")
		require.Equal(t, websocket.StatusCode(4409), old.goodbye().Code)
	})
}

func TestTickets(t *testing.T) {
	tickets, err := web.NewTickets(web.TicketConfig{})
	require.NoError(t, err)
	var log lockedBuffer
	s := serve(t, notification.GatewayConfig{}, Config{
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Authenticate: func(r *http.Request) (Identity, error) {
			return tickets.Redeem(r.Context(), web.TicketOf(r))
		},
	})
	ticket, err := tickets.Issue(t.Context(), Identity{UserID: "alice"})
	require.NoError(t, err)
	t.Run("a ticket in the URL opens once", func(t *testing.T) {
		require.Equal(t, "welcome", s.dial("", true, "ticket="+ticket).frame().Action)
		s.session("alice")
		require.Equal(t, 4401, int(s.dial("", true, "ticket="+ticket).goodbye().Code))
	})
	t.Run("and is not logged", func(t *testing.T) {
		require.Contains(t, log.String(), "refused")
		require.NotContains(t, log.String(), ticket)
	})
}

// TestAnEndBeforeTheUpgrade has a session end between RegisterSession and the 101.
func TestAnEndBeforeTheUpgrade(t *testing.T) {
	for _, batches := range []bool{false, true} {
		for _, test := range []struct {
			name string
			code int
			end  func(h *Handler, g *notification.Gateway, s *notification.Session)
		}{
			{"a gap", 4100, func(_ *Handler, g *notification.Gateway, _ *notification.Session) { g.Gap() }},
			{"its Close", 1000, func(_ *Handler, _ *notification.Gateway, s *notification.Session) { _ = s.Close() }},
			{"the Shutdown of the Handler", 1001, func(h *Handler, _ *notification.Gateway, _ *notification.Session) {
				over, cancel := context.WithCancel(t.Context()) // it does not wait, and finds nobody to end
				cancel()
				require.ErrorIs(t, h.Shutdown(over), context.Canceled)
			}},
		} {
			t.Run(fmt.Sprintf("by %s is told behind the welcome (batches %v)", test.name, batches), func(t *testing.T) {
				s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{})
				s.handler.sessions = sessions(func(cfg notification.SessionConfig) (*notification.Session, error) {
					session, err := s.gateway.RegisterSession(cfg)
					if err == nil {
						test.end(s.handler, s.gateway, session)
					}
					return session, err
				})
				c := s.dial("alice", batches, "cursor=")
				if batches {
					require.Equal(t, "welcome", c.frame().Action)
				}
				require.Equal(t, test.code, int(c.goodbye().Code))
				s.noConnections()
				s.noSessions()
				stats := s.handler.Stats()
				require.EqualValues(t, 1, stats.Accepted)
				require.Zero(t, stats.Connections)
				require.Equal(t, map[web.Code]uint64{web.Code(test.code): 1}, stats.Closed)
			})
		}
	}
}

// TestASlowAuthenticate takes longer than the http.Server allows for an answer.
func TestASlowAuthenticate(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("is upgraded all the same (TLS %v)", secure), func(t *testing.T) {
			t.Parallel()
			g, err := notification.NewGateway("gateway", notification.GatewayConfig{})
			require.NoError(t, err)
			const timeout = 5 * time.Second // has room for a TLS handshake beside other programs
			h, err := New(g, Config{Authenticate: func(r *http.Request) (Identity, error) {
				<-time.After(timeout + 200*time.Millisecond)
				return authenticate(r)
			}})
			require.NoError(t, err)
			ln := listen(t)
			if secure {
				ln = secureListener(t, ln)
			}
			s := &server{t: t, handler: h, addr: ln.Addr().String(), timeout: timeout}
			s.listen(ln)
			nc := dial(t, s, "alice", secure) // fails if there is no 101
			require.NoError(t, nc.Close())
			s.noConnections()
			require.NoError(t, g.Shutdown(t.Context()))
		})
	}
}
