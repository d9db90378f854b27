package ssegateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/settle"
	"github.com/qaexchange/notification/notificationtest"
)

// What the tests share: a server with everything behind it, and a reader of
// streams. All of it is real sockets on 127.0.0.1. Time is real too, so it is
// never asserted that something was quick: the tests wait for events, with a
// bound for what never comes.

const patience = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(clientsEnv) != "" {
		os.Exit(clients()) // we are the other process of the load test
	}
	if addr := os.Getenv(backendEnv); addr != "" {
		os.Exit(backend(addr)) // we are a server behind nginx
	}
	flag.Parse()
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if n := goroutines(before); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, stacks())
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had
// a while to end.
func goroutines(want int) int {
	for give := time.Now().Add(patience); runtime.NumGoroutine() > want && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	return runtime.NumGoroutine()
}

// underRace tells whether the race detector is on, which makes everything ten
// times slower.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}()

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

// noneHung runs what is to leave no pusher behind, and returns how many there
// were, until there was none: while a busy machine stands still for a second every
// sink looks as if it hung.
func noneHung(t *testing.T, run func() (hung uint64)) {
	t.Helper()
	for range 10 {
		if run() == 0 {
			return
		}
	}
	t.Error("a pusher was left behind, each time")
}

// A server is a Broker, a Gateway and a Handler behind an http.Server.
type server struct {
	t       testing.TB
	broker  *notification.Broker
	gateway *notification.Gateway
	handler *Handler
	http    *http.Server
	addr    string
	serial  atomic.Int64
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
	return serveOn(t, listen(t), g, cfg, nil)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return ln
}

// smallBuffers makes the kernel hold little for a peer that does not read.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// serveOn is serve with an http.Server that the test adjusts, if adjust is not
// nil.
func serveOn(t testing.TB, ln net.Listener, g notification.GatewayConfig, cfg Config, adjust func(*http.Server)) *server {
	t.Helper()
	s := &server{t: t, addr: ln.Addr().String()}
	var err error
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
	s.listen(ln, adjust)
	return s
}

// patient returns another server, of the same Gateway, whose deadlines are the
// default: a busy machine makes who is well behaved slow too, and must not have
// it taken for one of those that the test has in mind.
func (s *server) patient() *server {
	s.t.Helper()
	h, err := New(s.gateway, Config{Authenticate: authenticate})
	require.NoError(s.t, err)
	ln := listen(s.t)
	other := &server{t: s.t, gateway: s.gateway, handler: h, addr: ln.Addr().String()}
	other.listen(ln, nil)
	return other
}

// listen serves until the end of the test, and then ends whoever is connected.
func (s *server) listen(ln net.Listener, adjust func(*http.Server)) {
	s.http = &http.Server{
		Handler: s.handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), ReadHeaderTimeout: patience,
	}
	if adjust != nil {
		adjust(s.http)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.http.Serve(ln) })
	s.t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background()) // nobody is left, or need be
		cancel()
		_ = s.handler.Shutdown(ended)
		_ = s.http.Close()
		serving.Wait()
		s.noStreams()
	})
}

// taken returns how many streams and requests there are.
func taken(s *server) int {
	all, _ := s.handler.door.Inside()
	return all
}

// noStreams waits until every place is free again.
func (s *server) noStreams() {
	s.t.Helper()
	eventually(s.t, "no stream is counted", func() bool { return taken(s) == 0 })
}

// session waits for the user's only session.
func (s *server) session(user string) *notification.Session {
	s.t.Helper()
	var found *notification.Session
	eventually(s.t, "a session of "+user, func() bool {
		for session := range s.gateway.UserSessions(user) {
			found = session
		}
		return found != nil
	})
	return found
}

// routed waits until the Gateway has dealt with all that was published.
func (s *server) routed() {
	s.t.Helper()
	require.NoError(s.t, settle.Wait(context.Background(), s.broker, s.gateway, notification.P0, notification.P1, notification.P2, notification.P3))
}

func (s *server) publish(user string, p notification.Payload) *notification.Notification {
	s.t.Helper()
	n := notification.New(user, p, "test")
	n.ID = fmt.Sprintf("n-%d", s.serial.Add(1))
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
	resp, err := s.tryGet(http.DefaultClient, query, header)
	require.NoError(s.t, err)
	return resp
}

func (s *server) tryGet(c *http.Client, query string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+"/?"+query, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	return c.Do(req)
}

// status asks for what is refused, and returns the status.
func (s *server) status(query string, header http.Header) int {
	s.t.Helper()
	resp := s.get(query, header)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// open opens a stream that must succeed, behind lastID if there is one.
func (s *server) open(query, lastID string) *client {
	s.t.Helper()
	header := http.Header{}
	if lastID != "" {
		header.Set("Last-Event-ID", lastID)
	}
	return s.stream(s.get(query, header), lastID)
}

// stream reads the answer to a request, which must be a stream.
func (s *server) stream(resp *http.Response, lastID string) *client {
	s.t.Helper()
	require.Equal(s.t, 200, resp.StatusCode)
	require.Equal(s.t, "text/event-stream", resp.Header.Get("Content-Type"))
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return &client{t: s.t, resp: resp, r: bufio.NewReaderSize(resp.Body, 64<<10), lastID: lastID}
}

// begin is open with what comes before what is new: welcome, live, nothing else
// but heartbeats.
func (s *server) begin(query string) *client {
	s.t.Helper()
	c := s.open(query, "")
	c.want("welcome")
	require.Equal(s.t, "live", c.hear().Name)
	return c
}

// rawOpen asks for a stream and reads nothing: that is up to the test.
func (s *server) rawOpen(query string) net.Conn {
	s.t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = nc.Close() })
	require.NoError(s.t, nc.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(nc, "GET /?%s HTTP/1.1\r\nHost: %s\r\n\r\n", query, s.addr)
	require.NoError(s.t, err)
	return nc
}

// readRaw begins to read what rawOpen left.
func (s *server) readRaw(nc net.Conn) *client {
	s.t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	require.NoError(s.t, err)
	resp.Body = io.NopCloser(resp.Body) // to close it is to read on; rawOpen has the connection closed
	return s.stream(resp, "")
}

func (c *client) close() { _ = c.resp.Body.Close() }

// goodbye reads until the stream ends and returns what its close event had. The
// code is 0 if there was none.
func (c *client) goodbye() (f frame) {
	c.t.Helper()
	for {
		e, ok := c.next()
		if !ok {
			return f
		}
		require.Zero(c.t, f.Code, "an event behind close: %v", e)
		if e.Name == "close" {
			f = e.frame(c.t)
			require.NotZero(c.t, f.Code)
		}
	}
}

// hear is next for what must come, heartbeats apart, of which one may come at any
// time.
func (c *client) hear() event {
	c.t.Helper()
	for {
		e, ok := c.next()
		require.True(c.t, ok, "the stream ended")
		if e.Name != "heartbeat" {
			return e
		}
	}
}

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
