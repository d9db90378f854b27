package wsgateway

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
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
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
	"github.com/stretchr/testify/require"
)

// What the tests share: a server with everything behind it, a well-behaved
// client, and a raw one that can send anything. All of it is real sockets on
// 127.0.0.1. Time is real too, so it is never asserted that something was quick:
// the tests wait for events, with a bound for what never comes.

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
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // its workers are not ours, and would be waited for
	}
	if n := goroutines(before); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, stacks())
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had
// a while to end.
func goroutines(want int) int {
	for give := time.Now().Add(time.Minute); runtime.NumGoroutine() > want && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	return runtime.NumGoroutine()
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
	timeout time.Duration // the http.Server's WriteTimeout
	headers time.Duration // its ReadHeaderTimeout, if not patience, which no busy machine exceeds
	serial  int
}

// authenticate believes who says "Bearer USER", or "Bearer USER until TIME".
func authenticate(r *http.Request) (Identity, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return Identity{}, errors.New("no token")
	}
	user, until, ok := strings.Cut(token, " until ")
	if !ok {
		return Identity{UserID: user}, nil
	}
	expires, err := time.Parse(time.RFC3339Nano, until)
	return Identity{UserID: user, Expires: expires}, err
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

func serve(t testing.TB, g notification.GatewayConfig, cfg Config) *server {
	t.Helper()
	return serveOn(t, listen(t), g, cfg)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return ln
}

func serveOn(t testing.TB, ln net.Listener, g notification.GatewayConfig, cfg Config) *server {
	t.Helper()
	s := newServer(t, ln, g, cfg)
	s.listen(ln)
	t.Cleanup(s.atRest) // for what is under way to who has left is lost on the way down
	return s
}

// newServer is serveOn for a test that calls listen itself.
func newServer(t testing.TB, ln net.Listener, g notification.GatewayConfig, cfg Config) *server {
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
	return s
}

// serveHandler serves a Handler whose sessions are the test's.
func serveHandler(t testing.TB, h *Handler) *server {
	t.Helper()
	ln := listen(t)
	s := &server{t: t, handler: h, addr: ln.Addr().String()}
	s.listen(ln)
	return s
}

// patient returns another server, of the same Gateway, whose deadlines are the
// default: a busy machine makes who is well behaved slow too, and must not have
// it taken for one of those that the test has in mind.
func (s *server) patient() *server {
	s.t.Helper()
	h, err := New(s.gateway, Config{Authenticate: authenticate})
	require.NoError(s.t, err)
	return serveHandler(s.t, h)
}

// listen serves until the end of the test, and then ends whoever is connected.
func (s *server) listen(ln net.Listener) {
	s.http = &http.Server{Handler: s.handler, ReadHeaderTimeout: cmp.Or(s.headers, patience), WriteTimeout: s.timeout, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.http.Serve(ln) })
	s.t.Cleanup(func() {
		_ = s.http.Close()
		serving.Wait()
		ended, cancel := context.WithCancel(context.Background()) // nobody is left, or need be
		cancel()
		_ = s.handler.Shutdown(ended)
	})
}

func (s *server) publish(user string, p notification.Payload) *notification.Notification {
	s.t.Helper()
	s.serial++
	n := notification.New(user, p, "test")
	n.ID = fmt.Sprintf("n-%d", s.serial)
	require.NoError(s.t, s.broker.Publish(n))
	return n
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

// noConnections waits until every place is free again.
func (s *server) noConnections() {
	s.t.Helper()
	eventually(s.t, "no connection is counted", func() bool { return taken(s) == 0 })
}

// taken returns how many connections and handshakes there are.
func taken(s *server) int {
	all, _ := s.handler.door.Inside()
	return all
}

func (s *server) noSessions() {
	s.t.Helper()
	eventually(s.t, "no sessions", func() bool { return s.gateway.Stats().Sessions == 0 })
}

// atRest waits until there are no sessions, and no Push to one that has ended.
func (s *server) atRest() {
	s.t.Helper()
	eventually(s.t, "no sessions, and nothing under way", func() bool {
		st := s.gateway.Stats()
		pending := 0
		for _, l := range st.Lanes {
			pending += l.Pending
		}
		return st.Sessions == 0 && pending == 0
	})
}

// A client is well behaved.
type client struct {
	t  testing.TB
	ws *websocket.Conn
}

// dial connects a user. What the header and the query hold is up to the test.
func (s *server) dial(user string, batches bool, query string) *client {
	s.t.Helper()
	ws, _, err := s.tryDial(user, batches, query, nil)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = ws.CloseNow() })
	return &client{s.t, ws}
}

func (s *server) tryDial(user string, batches bool, query string, header http.Header) (*websocket.Conn, *http.Response, error) {
	opts := &websocket.DialOptions{HTTPHeader: header.Clone()}
	if opts.HTTPHeader == nil {
		opts.HTTPHeader = http.Header{}
	}
	if user != "" {
		opts.HTTPHeader.Set("Authorization", "Bearer "+user)
	}
	if batches {
		opts.Subprotocols = []string{batchProtocol}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, "ws://"+s.addr+"/?"+query, opts)
	if ws != nil {
		ws.SetReadLimit(-1)
	}
	return ws, resp, err
}

func (c *client) say(text string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(c.t, c.ws.Write(ctx, websocket.MessageText, []byte(text)))
}

// hear returns the next frame.
func (c *client) hear() string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kind, text, err := c.ws.Read(ctx)
	require.NoError(c.t, err)
	require.Equal(c.t, websocket.MessageText, kind)
	return string(text)
}

// A frame is any JSON that the server sends.
type frame struct {
	Action        string
	SessionID     string `json:"session_id"`
	Cursor        string
	Resumed       bool
	HeartbeatMS   int `json:"heartbeat_ms"`
	Refresh       bool
	InMS          *int `json:"in_ms"`
	ExpiresInMS   *int `json:"expires_in_ms"`
	ID            json.RawMessage
	Reason        string
	Code          string
	Message       string
	Channels      []string
	Dropped       int
	MessageID     string `json:"message_id"`
	UserID        string `json:"user_id"`
	Notifications []struct {
		MessageID string `json:"message_id"`
		UserID    string `json:"user_id"`
		Type      string `json:"message_type"`
	}
}

func (c *client) frame() frame {
	c.t.Helper()
	return parse(c.t, []byte(c.hear()))
}

// beyondHeartbeats returns the next frame that is no heartbeat, of which one may come at
// any time, before live too.
func (c *client) beyondHeartbeats() frame {
	c.t.Helper()
	for {
		if f := c.frame(); f.Action != "heartbeat" {
			return f
		}
	}
}

// batch returns the next frame with notifications, whatever comes before it.
func (c *client) batch() frame {
	c.t.Helper()
	for {
		if f := c.frame(); len(f.Notifications) > 0 {
			return f
		}
	}
}

// goodbye reads until the connection ends, and returns the close frame.
func (c *client) goodbye() websocket.CloseError {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		if _, _, err := c.ws.Read(ctx); err != nil {
			var e websocket.CloseError
			require.ErrorAs(c.t, err, &e)
			return e
		}
	}
}

// A rawClient speaks TCP.
type rawClient struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

// rawDial makes the handshake and leaves the rest to the test.
func (s *server) rawDial(user string) *rawClient {
	s.t.Helper()
	c, err := s.tryRawDial(user)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *server) tryRawDial(user string) (*rawClient, error) {
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(nc)
	if err := handshake(nc, r, user, ""); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return &rawClient{s.t, nc, r}, nil
}

func handshake(w io.Writer, r *bufio.Reader, user, protocol string) error {
	if protocol != "" {
		protocol = "Sec-WebSocket-Protocol: " + protocol + "\r\n"
	}
	_, err := fmt.Fprintf(w, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%sAuthorization: Bearer %s\r\n\r\n", protocol, user)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = errors.New(resp.Status)
	}
	return err
}

// masked is a client's frame. The mask is zero: the text stays readable.
func masked(first byte, payload []byte) []byte {
	b := appendHeader(nil, 0, len(payload))
	b[0], b[1] = first, b[1]|0x80
	return append(append(b, 0, 0, 0, 0), payload...)
}

const fin = 0x80

// read returns the next frame from the server.
func (c *rawClient) read() (opcode byte, payload []byte, err error) {
	return readFrame(c.r, nil)
}

func readFrame(r *bufio.Reader, buf []byte) (opcode byte, payload []byte, err error) {
	var h [8]byte
	if _, err = io.ReadFull(r, h[:2]); err != nil {
		return 0, nil, err
	}
	opcode = h[0] & 0xf
	length := uint64(h[1])
	switch length {
	case 126:
		_, err = io.ReadFull(r, h[:2])
		length = uint64(binary.BigEndian.Uint16(h[:2]))
	case 127:
		_, err = io.ReadFull(r, h[:8])
		length = binary.BigEndian.Uint64(h[:8])
	}
	if err != nil {
		return 0, nil, err
	}
	if uint64(cap(buf)) < length {
		buf = make([]byte, length)
	}
	payload = buf[:length]
	_, err = io.ReadFull(r, payload)
	return opcode, payload, err
}

// goodbye reads until the server has closed the socket, and returns the code of
// its close frame, 0 if there was none, and the opcodes of the other frames.
func (c *rawClient) goodbye() (code int, heard []byte) {
	for {
		opcode, payload, err := c.read()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			c.t.Errorf("the server does not close the socket")
			return code, heard
		}
		switch {
		case err != nil:
			return code, heard
		case code != 0:
			c.t.Errorf("a frame with opcode %d after the close frame", opcode)
		case opcode == 8 && len(payload) >= 2:
			code = int(binary.BigEndian.Uint16(payload))
		default:
			heard = append(heard, opcode)
		}
	}
}

func parse(t testing.TB, text []byte) frame {
	t.Helper()
	var f frame
	require.NoError(t, json.Unmarshal(text, &f))
	return f
}
