package notificationclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// What the tests share. An edge is a server that says what the test tells it to,
// over connections in memory, so that a bubble of testing/synctest can hold all of
// it and its time: a wait of 30 s takes no time, and when nothing moves any more
// everything that follows from what was said has happened.

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	for give := time.Now().Add(time.Minute); runtime.NumGoroutine() > before && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// pipes are connections in memory, as a listener.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return &rawConn{Conn: c, closed: make(chan struct{})}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, here := net.Pipe()
	there, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		carry(here, there)
		carry(there, here)
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// carry brings what comes from one pipe to another, with some room in between, as
// every network has it: with none, two that write to each other at the same moment
// wait for each other. Its goroutines end when both pipes are closed at the far end.
func carry(from, to net.Conn) {
	room := make(chan []byte, 64)
	go func() {
		defer close(room)
		for {
			b := make([]byte, 4096)
			n, err := from.Read(b)
			if err != nil {
				return
			}
			room <- b[:n]
		}
	}()
	go func() {
		for b := range room {
			_, _ = to.Write(b) // nobody hears that it was lost
		}
		_ = to.Close()
	}()
}

type rawKey struct{} // of a request's context: its rawConn

// An edge is the server.
type edge struct {
	t      *testing.T
	pipes  *pipes
	visits chan *visit
	status func(*http.Request) int // in place of an upgrade; nil or 0: none

	location string // with a status: where it redirects to; empty: nowhere

	mu   sync.Mutex
	asks int // handshakes that came
}

// newEdge serves until the end of the test.
func newEdge(t *testing.T) *edge {
	e := &edge{t: t, pipes: newPipes(), visits: make(chan *visit, 100)}
	server := &http.Server{
		Handler: e,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, rawKey{}, c)
		},
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(e.pipes) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return e
}

// ServeHTTP makes each request a visit.
func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	e.asks++
	e.mu.Unlock()
	if e.status != nil {
		if status := e.status(r); status != 0 {
			if e.location != "" {
				w.Header().Set("Location", e.location)
			}
			http.Error(w, http.StatusText(status), status)
			return
		}
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{batchProtocol}})
	if err != nil {
		return
	}
	v := &visit{
		t: e.t, ws: ws, query: r.URL.Query(), header: r.Header, raw: r.Context().Value(rawKey{}).(*rawConn),
		said: make(chan string, 100), gone: make(chan struct{}),
	}
	select {
	case e.visits <- v:
	case <-e.t.Context().Done(): // the test does not wait for it
	}
	go v.listen() // until the connection ends
}

// handshakes is how many have come.
func (e *edge) handshakes() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asks
}

// next waits for the next connection.
func (e *edge) next() *visit {
	e.t.Helper()
	select {
	case v := <-e.visits:
		return v
	case <-time.After(24 * time.Hour):
		e.t.Fatal("nobody connects")
		return nil
	}
}

// nobody requires that for a day nobody connects.
func (e *edge) nobody() {
	e.t.Helper()
	select {
	case <-e.visits:
		e.t.Fatal("somebody connects")
	case <-time.After(24 * time.Hour):
	}
}

// A visit is a connection, as the server sees it.
type visit struct {
	t      *testing.T
	ws     *websocket.Conn
	raw    *rawConn
	query  url.Values
	header http.Header
	said   chan string   // by the client
	gone   chan struct{} // closed when nothing more comes
	ended  error         // written before gone is closed: what reading ended with
}

// A rawConn is what a connection of the server is made of. Once it is stuck, the
// server hears nothing more, and so says nothing and does not close either.
type rawConn struct {
	net.Conn
	stuck  atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *rawConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.stuck.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *rawConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (v *visit) listen() {
	defer close(v.gone)
	for {
		_, text, err := v.ws.Read(context.Background())
		if err != nil {
			v.ended = err
			return
		}
		v.said <- string(text)
	}
}

// say sends frames.
func (v *visit) say(frames ...string) {
	v.t.Helper()
	for _, f := range frames {
		if err := v.ws.Write(context.Background(), websocket.MessageText, []byte(f)); err != nil {
			v.t.Fatalf("saying %.80s: %v", f, err)
		}
	}
}

// hear waits for a command.
func (v *visit) hear() (c struct {
	Action   string          `json:"action"`
	ID       json.RawMessage `json:"id"`
	Channels []string        `json:"channels"`
	Token    string          `json:"token"`
}) {
	v.t.Helper()
	select {
	case text := <-v.said:
		require.NoError(v.t, json.Unmarshal([]byte(text), &c))
	case <-time.After(24 * time.Hour):
		v.t.Fatal("the client says nothing")
	}
	return c
}

// close closes with a code.
func (v *visit) close(code int) { _ = v.ws.Close(websocket.StatusCode(code), "") }

// cut ends the connection as a network does.
func (v *visit) cut() { _ = v.raw.Close() }

// left waits until the client has gone, and returns its close code, -1 for none.
func (v *visit) left() int {
	v.t.Helper()
	select {
	case <-v.gone:
		return int(websocket.CloseStatus(v.ended))
	case <-time.After(24 * time.Hour):
		v.t.Fatal("the client stays")
		return 0
	}
}

// welcome promises a heartbeat a week, so that only the tests of the watchdog need
// one.
func welcome(cursor string, resumed bool) string {
	return fmt.Sprintf(`{"action":"welcome","session_id":"s","cursor":%q,"resumed":%t,"channels":["trade"],"heartbeat_ms":604800000,"refresh":false}`, cursor, resumed)
}

const live = `{"action":"live"}`

func heartbeat(cursor string) string {
	return fmt.Sprintf(`{"action":"heartbeat","cursor":%q}`, cursor)
}

// batch is a frame with an OrderFilled for each ID.
func batch(cursor string, ids ...string) string {
	list := make([]json.RawMessage, len(ids))
	for i, id := range ids {
		list[i] = json.RawMessage(fmt.Sprintf(`{"message_id":%q,"message_type":"order_filled","user_id":"alice","priority":1,"timestamp":1700000000000000123,"source":"MatchingEngine","payload":{"type":"order_filled","order_id":%q}}`, id, id))
	}
	text, err := json.Marshal(map[string]any{"cursor": cursor, "notifications": list})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// dropped is a batch that says that one before it was dropped.
func dropped(cursor string, ids ...string) string {
	return strings.TrimSuffix(batch(cursor, ids...), "}") + `,"dropped":1}`
}

// A subscriber is a Client whose callbacks write down what they are told.
type subscriber struct {
	*Client
	t    *testing.T
	edge *edge
	ran  chan error // what Run returned

	mu    sync.Mutex
	notes []string // guarded by mu
}

func (s *subscriber) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// subscribe makes one and does not run it. What cfg has is called as well.
func (e *edge) subscribe(cfg Config) *subscriber {
	e.t.Helper()
	s := &subscriber{t: e.t, edge: e, ran: make(chan error, 1)}
	given := cfg
	cfg.URL = "ws://edge/notifications?v=7"
	cfg.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: e.pipes.dial, DisableKeepAlives: true}}
	cfg.OnState = func(st State) {
		text := string(st.Status)
		if st.Reason != "" {
			text += fmt.Sprintf(" %s %d", st.Reason, st.Code)
		}
		if st.Status == StatusWaiting {
			text += " " + st.Retry.String()
		}
		s.note("%s", text)
	}
	cfg.OnNotifications = func(ctx context.Context, b Batch) error {
		for _, n := range b.Notifications {
			s.note("got %s", n.ID)
		}
		if given.OnNotifications != nil {
			return given.OnNotifications(ctx, b)
		}
		return nil
	}
	cfg.Snapshot = func(ctx context.Context, reason SnapshotReason) error {
		s.note("snapshot %s", reason)
		if given.Snapshot != nil {
			return given.Snapshot(ctx, reason)
		}
		return nil
	}
	cfg.OnCursor = func(cursor string) { s.note("cursor %s", cursor) }
	cfg.Credentials = func(ctx context.Context, why Why) (Credentials, error) {
		if given.Credentials == nil {
			return Credentials{}, nil
		}
		s.note("credentials %s", why)
		return given.Credentials(ctx, why)
	}
	var err error
	s.Client, err = New(cfg)
	require.NoError(e.t, err)
	s.random = func() float64 { return 0.5 }
	return s
}

// run makes one and runs it until the end of the test.
func (e *edge) run(cfg Config) *subscriber {
	e.t.Helper()
	s := e.subscribe(cfg)
	s.start(e.t.Context())
	return s
}

func (s *subscriber) start(ctx context.Context) {
	go func() { s.ran <- s.Run(ctx) }()
	s.t.Cleanup(func() { // before the edge's
		require.NoError(s.t, s.Shutdown(context.Background()))
	})
}

// told waits until nothing moves any more, and returns what was noted since the
// last call.
func (s *subscriber) told() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	notes := s.notes
	s.notes = nil
	return notes
}

// stopped waits for the end of Run and returns its error.
func (s *subscriber) stopped() error {
	s.t.Helper()
	select {
	case err := <-s.ran:
		return err
	case <-time.After(24 * time.Hour):
		s.t.Fatal("Run goes on")
		return nil
	}
}

// connected is a client that is live behind cursor c0.
func (e *edge) connected(cfg Config) (*subscriber, *visit) {
	e.t.Helper()
	s := e.run(cfg)
	v := e.next()
	v.say(welcome("c0", false), live)
	s.told()
	return s, v
}
