package ssegateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// TestOrderAtConnect has requests with everything wrong from one point on.
func TestOrderAtConnect(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1, Authenticate: func(r *http.Request) (Identity, error) {
		asked.Add(1)
		return authenticate(r)
	}})
	foreign := http.Header{"Origin": {"https://foe.example"}}
	do := func(method, body string) int {
		req, err := http.NewRequest(method, "http://"+s.addr+"/?channels=gossip", strings.NewReader(body))
		require.NoError(t, err)
		req.Header = foreign
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode == 405 {
			require.Equal(t, "GET", resp.Header.Get("Allow"))
		}
		return resp.StatusCode
	}
	full := s.begin("user=alice")
	before := asked.Load()
	t.Run("a body comes first of all", func(t *testing.T) {
		require.Equal(t, 400, do("POST", "x"))
		require.Equal(t, 400, do("GET", "x"))
	})
	t.Run("then another method", func(t *testing.T) {
		for _, method := range []string{"POST", "HEAD", "OPTIONS", "DELETE"} {
			require.Equal(t, 405, do(method, ""))
		}
	})
	t.Run("a foreign origin is refused before anybody is asked who it is", func(t *testing.T) {
		require.Equal(t, 403, s.status("channels=gossip", foreign))
		require.Equal(t, 403, s.status("channels=gossip", http.Header{"Sec-Fetch-Site": {"cross-site"}}))
	})
	require.Equal(t, before, asked.Load())
	t.Run("with no room left, who has no stream here is to come back later", func(t *testing.T) {
		require.Equal(t, 1013, s.open("user=bob", "").goodbye().Code)
	})
	t.Run("and nobody gives way to a bad query", func(t *testing.T) {
		require.Equal(t, 400, s.status("user=alice&channels=gossip", nil))
		require.Equal(t, 1, s.gateway.Stats().Sessions)
	})
	full.close()
	s.noStreams()
	t.Run("credentials come before the query", func(t *testing.T) {
		require.Equal(t, 401, s.status("channels=gossip", nil))
	})
	t.Run("and the query before the session", func(t *testing.T) {
		require.Equal(t, 400, s.status("user=alice&channels=gossip", nil))
		require.Equal(t, 400, s.status("user=alice&batch=2", nil))
	})
	t.Run("none of them left anything behind", func(t *testing.T) {
		s.noStreams()
		require.Zero(t, s.gateway.Stats().Sessions)
		require.EqualValues(t, 1, s.handler.Stats().Accepted)
	})
}

func TestBodies(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 3, Authenticate: func(r *http.Request) (Identity, error) {
		asked.Add(1)
		return authenticate(r)
	}})
	for _, header := range []string{"Content-Length: 30\r\n", "Transfer-Encoding: chunked\r\n"} {
		t.Run("a request with a body that never comes gets 400, and holds nothing: "+strings.TrimSpace(header), func(t *testing.T) {
			for range 3 {
				nc, err := net.Dial("tcp", s.addr)
				require.NoError(t, err)
				defer nc.Close()
				require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
				_, err = fmt.Fprintf(nc, "GET /?user=mallory HTTP/1.1\r\nHost: x\r\n%s\r\nhalf a b", header)
				require.NoError(t, err)
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				require.NoError(t, err)
				require.Equal(t, 400, resp.StatusCode)
				require.True(t, resp.Close)
			}
			require.Zero(t, taken(s))
			require.Zero(t, asked.Load())
		})
	}
	t.Run("the door is open, and the http.Server ends", func(t *testing.T) {
		s.begin("user=alice").close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, s.http.Shutdown(ctx))
	})
}

func TestOrigins(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{OriginPatterns: []string{"*.Friend.example", "https://only.example", "10.0.0.1:*"}})
	everybody := serve(t, notification.GatewayConfig{}, Config{OriginPatterns: []string{"*"}})
	foreign := uint64(0)
	for _, test := range []struct {
		name   string
		s      *server
		header http.Header
		status int
		cors   bool
	}{
		{"a program, which sends neither", s, http.Header{}, 200, false},
		{"a page of the host, whose GET has no Origin", s, http.Header{"Sec-Fetch-Site": {"same-origin"}}, 200, false},
		{"an address that a user typed", s, http.Header{"Sec-Fetch-Site": {"none"}}, 200, false},
		{"an image in a foreign page", s, http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403, false},
		{"an image in a page of a neighbour", s, http.Header{"Sec-Fetch-Site": {"same-site"}}, 403, false},
		{"the same host in another scheme, as behind a proxy", s, http.Header{"Origin": {"https://" + s.addr}}, 200, false},
		{"a host that a pattern has", s, http.Header{"Origin": {"http://a.friend.EXAMPLE"}, "Sec-Fetch-Site": {"cross-site"}}, 200, true},
		{"a scheme and host that a pattern has", s, http.Header{"Origin": {"https://only.example"}}, 200, true},
		{"another scheme", s, http.Header{"Origin": {"http://only.example"}}, 403, false},
		{"another port", s, http.Header{"Origin": {"http://a.friend.example:8080"}}, 403, false},
		{"a host that only begins so", s, http.Header{"Origin": {"http://a.friend.example.foe.example"}}, 403, false},
		{"an opaque origin", s, http.Header{"Origin": {"null"}}, 403, false},
		{"an opaque origin where all are listed", everybody, http.Header{"Origin": {"null"}}, 403, false},
		{"any where all are listed", everybody, http.Header{"Origin": {"http://foe.example:1"}}, 200, true},
		{"what is no origin", s, http.Header{"Origin": {"http://[::1"}}, 403, false},
	} {
		t.Run(fmt.Sprintf("%s gets %d", test.name, test.status), func(t *testing.T) {
			resp := test.s.get("user=alice", test.header)
			defer resp.Body.Close()
			require.Equal(t, test.status, resp.StatusCode)
			if test.status == 403 {
				foreign++
			}
			require.Equal(t, []string{"Origin"}, resp.Header.Values("Vary"))
			allowed, credentials := resp.Header.Get("Access-Control-Allow-Origin"), resp.Header.Get("Access-Control-Allow-Credentials")
			if test.cors {
				require.Equal(t, test.header.Get("Origin"), allowed)
				require.Equal(t, "true", credentials)
			} else {
				require.Empty(t, allowed)
				require.Empty(t, credentials)
			}
		})
	}
	t.Run("a listed page can read refusals too", func(t *testing.T) {
		header := http.Header{"Origin": {"https://only.example"}}
		for query, status := range map[string]int{"": 401, "user=alice&channels=gossip": 400} {
			resp := s.get(query, header)
			_ = resp.Body.Close()
			require.Equal(t, status, resp.StatusCode)
			require.Equal(t, "https://only.example", resp.Header.Get("Access-Control-Allow-Origin"))
			require.Equal(t, "Origin", resp.Header.Get("Vary"))
		}
	})
	require.Equal(t, foreign, s.handler.Stats().Refused.Origin+everybody.handler.Stats().Refused.Origin)
}

func TestRefusals(t *testing.T) {
	later := func(t *testing.T, s *server, query string) {
		t.Helper()
		c := s.open(query, "")
		f := c.goodbye()
		require.Equal(t, 1013, f.Code)
		require.Equal(t, "try again later", f.Reason)
		ms, err := strconv.Atoi(c.retry)
		require.NoError(t, err)
		require.GreaterOrEqual(t, ms, 500)
		require.Less(t, ms, 10_000)
		require.Empty(t, c.lastID, "the client keeps the one it has")
		require.Equal(t, "no-store", c.resp.Header.Get("Cache-Control"))
	}
	t.Run("401 and 403 are statuses, and tell no reason", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{Authenticate: func(r *http.Request) (Identity, error) {
			if r.FormValue("user") == "outlaw" {
				return Identity{}, fmt.Errorf("%w: the reason", web.ErrForbidden)
			}
			return authenticate(r)
		}})
		for query, status := range map[string]int{
			"": 401, "user=*": 401, "user=" + strings.Repeat("x", 257): 401, "user=alice&until=2020-01-01T00:00:00Z": 401, "user=outlaw": 403,
		} {
			resp := s.get(query, nil)
			text := new(strings.Builder)
			_, err := bufio.NewReader(resp.Body).WriteTo(text)
			require.NoError(t, err)
			require.Equal(t, status, resp.StatusCode, query)
			require.Equal(t, http.StatusText(status)+"\n", text.String())
		}
		refused := s.handler.Stats().Refused
		require.EqualValues(t, 4, refused.Credentials)
		require.EqualValues(t, 1, refused.Forbidden)
	})
	t.Run("a Gateway that is full or closed, and a Handler that is shut down, is 200: come back later", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{MaxSessions: 1}, Config{})
		s.begin("user=alice")
		later(t, s, "user=bob")
		require.NoError(t, s.gateway.Shutdown(t.Context()))
		later(t, s, "user=bob")
		s.noStreams()
		require.NoError(t, s.handler.Shutdown(t.Context()))
		later(t, s, "user=bob")
		require.EqualValues(t, 3, s.handler.Stats().Refused.Full)
	})
	t.Run("a log that has to be waited for, and a user of another server, are 200: come back later", func(t *testing.T) {
		for _, reason := range []error{notification.ErrTryAgain, web.ErrElsewhere} {
			s := serve(t, notification.GatewayConfig{}, Config{})
			s.handler.sessions = sessions(func(notification.SessionConfig) (*notification.Session, error) {
				return nil, fmt.Errorf("%w: for a reason", reason)
			})
			later(t, s, "user=bob")
			s.noStreams()
			refused := s.handler.Stats().Refused
			require.EqualValues(t, 1, refused.Full+refused.Elsewhere)
			require.Equal(t, errors.Is(reason, web.ErrElsewhere), refused.Elsewhere == 1)
		}
	})
	t.Run("whatever else keeps a session from being made is 500, and the log says why", func(t *testing.T) {
		var log lockedBuffer
		h, err := New(sessions(func(notification.SessionConfig) (*notification.Session, error) {
			return nil, errors.New("no edge is up")
		}), Config{Authenticate: authenticate, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.NoError(t, err)
		w := httptest.NewServer(h)
		defer w.Close()
		resp, err := http.Get(w.URL + "/?user=alice")
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, 500, resp.StatusCode)
		require.Contains(t, log.String(), "no edge is up")
	})
	t.Run("that there is no room is logged once a minute, however often", func(t *testing.T) {
		var log lockedBuffer
		s := serve(t, notification.GatewayConfig{MaxSessions: 1}, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s.begin("user=alice")
		for range 20 {
			later(t, s, "user=bob")
		}
		require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
		require.Contains(t, log.String(), "too many sessions")
	})
	t.Run("an Authenticate that panics gives its place back", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1, Authenticate: func(r *http.Request) (Identity, error) {
			if r.FormValue("user") == "mallory" {
				panic("at the disco")
			}
			return authenticate(r)
		}})
		for range 3 {
			_, err := s.tryGet(http.DefaultClient, "user=mallory", nil)
			require.Error(t, err)
		}
		s.noStreams()
		s.begin("user=alice")
	})
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

// What a middleware may make of a ResponseWriter.
type (
	plain    struct{ http.ResponseWriter } // hides what else there is
	wrapped  struct{ http.ResponseWriter } // with Unwrap
	noFlush  struct{ w http.ResponseWriter }
	deadline interface {
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}
)

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w noFlush) Header() http.Header                { return w.w.Header() }
func (w noFlush) Write(p []byte) (int, error)        { return w.w.Write(p) }
func (w noFlush) WriteHeader(status int)             { w.w.WriteHeader(status) }
func (w noFlush) SetReadDeadline(at time.Time) error { return w.w.(deadline).SetReadDeadline(at) }
func (w noFlush) SetWriteDeadline(at time.Time) error {
	return w.w.(deadline).SetWriteDeadline(at)
}

func TestBehindMiddleware(t *testing.T) {
	behind := func(wrap func(http.ResponseWriter) http.ResponseWriter) *server {
		return serveOn(t, listen(t), notification.GatewayConfig{}, Config{}, func(h *http.Server) {
			inner := h.Handler
			h.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(wrap(w), r) })
		})
	}
	t.Run("one with Unwrap is no obstacle", func(t *testing.T) {
		behind(func(w http.ResponseWriter) http.ResponseWriter { return wrapped{w} }).begin("user=alice")
	})
	t.Run("one that hides the deadlines, or Flush alone, gets 501, not half a stream", func(t *testing.T) {
		for _, wrap := range []func(http.ResponseWriter) http.ResponseWriter{
			func(w http.ResponseWriter) http.ResponseWriter { return plain{w} },
			func(w http.ResponseWriter) http.ResponseWriter { return wrapped{noFlush{w}} },
		} {
			s := behind(wrap)
			require.Equal(t, 501, s.status("user=alice", nil))
			require.EqualValues(t, 1, s.handler.Stats().Refused.Failed)
			require.Zero(t, s.handler.Stats().Accepted)
		}
	})
	t.Run("so does a http.TimeoutHandler", func(t *testing.T) {
		s := serveOn(t, listen(t), notification.GatewayConfig{}, Config{}, func(h *http.Server) {
			h.Handler = http.TimeoutHandler(h.Handler, patience, "")
		})
		require.Equal(t, 501, s.status("user=alice", nil))
	})
}

func TestWhoComesBackGetsIn(t *testing.T) {
	t.Run("to a full house: the stream of the same user that was not heard of for the longest gives way", func(t *testing.T) {
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{}, Config{MaxConnections: 3, HeartbeatInterval: time.Hour}, nil)
		halfOpen := s.rawOpen("user=alice")
		eventually(t, "its welcome and live are written", func() bool { return s.handler.Stats().FramesOut == 2 })
		lively := s.begin("user=alice")
		other := s.begin("user=bob")
		eventually(t, "all are streams", func() bool { return s.handler.Stats().Connections == 3 })
		back := s.begin("user=alice")
		require.Equal(t, 4409, s.readRaw(halfOpen).goodbye().Code)
		n := s.publish(notification.AllUsers, notification.MarketHalt{})
		for _, c := range []*client{lively, other, back} {
			require.Equal(t, n.ID, c.hear().frame(t).MessageID)
		}
		eventually(t, "three places taken", func() bool { return taken(s) == 3 })
		require.Equal(t, 1013, s.open("user=carol", "").goodbye().Code, "who is not here yet stays out")
	})
	t.Run("again and again, from peers that read nothing, with nothing left behind", func(t *testing.T) {
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{}, Config{MaxConnections: 1, WriteTimeout: time.Hour}, nil)
		for i := range 20 {
			s.rawOpen("user=alice")
			eventually(t, "it is a stream", func() bool { return s.handler.Stats().Accepted == uint64(i+1) })
			for range 16 {
				s.publish("alice", large)
			}
		}
		eventually(t, "the last one stays", func() bool { return taken(s) == 1 && s.gateway.Stats().Sessions == 1 })
		require.EqualValues(t, 19, s.handler.Stats().Closed[web.CodeReplaced])
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
		s.begin("ticket=" + ticket)
		s.session("alice")
		require.Equal(t, 401, s.status("ticket="+ticket, nil))
	})
	t.Run("and is not logged", func(t *testing.T) {
		require.Contains(t, log.String(), "refused")
		require.NotContains(t, log.String(), ticket)
	})
}
