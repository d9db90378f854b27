package ssegateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

// What the tests share: a server with everything behind it, and a reader of
// streams. All of it is real sockets on 127.0.0.1. Time is real too, so it is
// never asserted that something was quick: the tests wait for events, with a
// bound for what never comes.

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	for give := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, stacks())
		code = 1
	}
	os.Exit(code)
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// eventually waits for what has no channel to wait on.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(patience); !holds(); {
		if time.Now().After(give) {
			t.Fatalf("waited in vain: %s\n%s", what, stacks())
		}
		<-time.After(time.Millisecond)
	}
}

// A server is a Broker, a Gateway and a Handler behind an http.Server.
type server struct {
	t       testing.TB
	broker  *notification.Broker
	gateway *notification.Gateway
	handler *Handler
	http    *http.Server
	addr    string
	serial  int
}

// authenticate believes ?user=USER, and ?until=TIME.
func authenticate(r *http.Request) (Identity, error) {
	id := Identity{UserID: r.FormValue("user")}
	if id.UserID == "" {
		return Identity{}, errors.New("no user")
	}
	if until := r.FormValue("until"); until != "" {
		var err error
		if id.Expires, err = time.Parse(time.RFC3339Nano, until); err != nil {
			return Identity{}, err
		}
	}
	return id, nil
}

func serve(t testing.TB, g notification.GatewayConfig, cfg Config) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{t: t, addr: ln.Addr().String()}
	s.broker, err = notification.NewBroker(notification.BrokerConfig{})
	require.NoError(t, err)
	s.gateway, err = notification.NewGateway("gateway", g)
	require.NoError(t, err)
	require.NoError(t, s.broker.RegisterGateway(s.gateway))
	if cfg.Authenticate == nil {
		cfg.Authenticate = authenticate
	}
	s.handler, err = New(s.gateway, cfg)
	require.NoError(t, err)
	notificationtest.Start(t, s.broker, s.gateway)
	// Deadlines that would cut every stream, if they were the streams'.
	s.http = &http.Server{
		Handler: s.handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		ReadHeaderTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second,
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.http.Serve(ln) })
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background()) // nobody is left, or need be
		cancel()
		_ = s.handler.Shutdown(ended)
		_ = s.http.Close()
		serving.Wait()
		eventually(t, "no streams", func() bool { all, _ := s.handler.door.Inside(); return all == 0 })
	})
	return s
}

func (s *server) publish(user string, p notification.Payload) *notification.Notification {
	s.t.Helper()
	s.serial++
	n := notification.New(user, p, "test")
	n.ID = fmt.Sprintf("n-%d", s.serial)
	require.NoError(s.t, s.broker.Publish(n))
	return n
}

// noSession waits until the user has none.
func (s *server) noSession(user string) {
	s.t.Helper()
	eventually(s.t, "no session of "+user, func() bool {
		for range s.gateway.UserSessions(user) {
			return false
		}
		return true
	})
}

// A client reads a stream as an EventSource does.
type client struct {
	t      testing.TB
	resp   *http.Response
	r      *bufio.Reader
	lastID string // as the browser keeps it
	retry  string // the last
}

// An event is one as a page sees it.
type event struct {
	Name, Data, ID string // ID: lastEventId
}

// frame is all that data may be.
type frame struct {
	SessionID     string `json:"session_id"`
	Cursor        string
	Resumed       bool
	Channels      []string
	HeartbeatMS   int `json:"heartbeat_ms"`
	Reason        string
	Code          int
	Dropped       int
	MessageID     string `json:"message_id"`
	Notifications []struct {
		MessageID string `json:"message_id"`
	}
}

func (e event) frame(t testing.TB) (f frame) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(e.Data), &f), e.Data)
	return f
}

// get asks for a stream. What the header and the query hold is up to the test.
func (s *server) get(query string, header http.Header) *http.Response {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+"/?"+query, nil)
	require.NoError(s.t, err)
	if header != nil {
		req.Header = header
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	return resp
}

// open opens a stream that must succeed, behind lastID if there is one.
func (s *server) open(query, lastID string) *client {
	s.t.Helper()
	header := http.Header{}
	if lastID != "" {
		header.Set("Last-Event-ID", lastID)
	}
	resp := s.get(query, header)
	require.Equal(s.t, 200, resp.StatusCode)
	require.Equal(s.t, "text/event-stream", resp.Header.Get("Content-Type"))
	return &client{t: s.t, resp: resp, r: bufio.NewReader(resp.Body), lastID: lastID}
}

func (c *client) close() { _ = c.resp.Body.Close() }

// next returns the next event, false at the end of the stream.
func (c *client) next() (e event, ok bool) {
	c.t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return event{}, false
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "":
			e.ID = c.lastID
			return e, true
		case "event":
			e.Name = value
		case "id":
			c.lastID = value
		case "data":
			e.Data = value
		case "retry":
			c.retry = value
		default:
			c.t.Fatalf("no field of an event: %q", line)
		}
	}
}

// want returns the next event, which must have this name.
func (c *client) want(name string) event {
	c.t.Helper()
	e, ok := c.next()
	require.True(c.t, ok, "the stream ended before %q", name)
	require.Equal(c.t, name, e.Name, e.Data)
	return e
}
