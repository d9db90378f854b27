package wsgateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/settle"
	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

// A foreigner is a WebSocket client that others wrote, in a process of its own.
// It does what it is told and tells what it sees, so that the tests are written
// once for all of them. testdata/foreign has its side.
type foreigner struct {
	name  string
	pid   int                     // of its process group
	order func(line []byte) error // one at a time; guarded by mu

	mu      sync.Mutex
	last    int                    // guarded by mu: the last ID given to a socket
	sockets map[int]*foreignSocket // guarded by mu
	gone    error                  // guarded by mu: why nothing more will be told
}

// An event is what a foreigner tells.
type event struct {
	ID    int
	Event string // open, message or close
	Text  string // the subprotocol, the message, or the reason
	Code  int    // of close
}

// foreigners starts one of each kind. To start is to skip if it is not here.
var foreigners = []struct {
	name   string
	status bool // it sees the status of an answer that is no upgrade; a page does not
	start  func(t *testing.T) *foreigner
}{
	{"ws of Node", true, func(t *testing.T) *foreigner {
		dir := copyForeign(t)
		npm := exec.Command(program(t, "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
		npm.Dir = dir
		if out, err := npm.CombinedOutput(); err != nil {
			t.Skipf("skipped: npm ci: %v\n%s", err, out)
		}
		return startForeigner(t, dir, program(t, "node"), "node.js", "ws")
	}},
	{"undici in Node", false, func(t *testing.T) *foreigner {
		node := program(t, "node")
		const flag = "--experimental-websocket" // Node 20 needs it; later ones have it without
		if out, err := exec.Command(node, flag, "-e", "new WebSocket('ws://127.0.0.1:1').onerror = () => {}").CombinedOutput(); err != nil {
			t.Skipf("skipped: this Node has no WebSocket: %v\n%s", err, out)
		}
		return startForeigner(t, "testdata/foreign", node, flag, "node.js", "undici")
	}},
	{"websockets of Python", true, func(t *testing.T) *foreigner {
		for _, python := range []string{"/usr/bin/python3", "python3"} { // the first has Debian's packages
			if exec.Command(python, "-c", "import websockets").Run() == nil {
				return startForeigner(t, "testdata/foreign", python, "python.py")
			}
		}
		t.Skip("skipped: no python3 here has the package websockets")
		return nil
	}},
	{chromium, false, func(t *testing.T) *foreigner { return startChromium(t, "") }},
}

// eachForeigner runs a test with one foreigner of each kind, all at once.
func eachForeigner(t *testing.T, test func(t *testing.T, f *foreigner, status bool)) {
	for _, f := range foreigners {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			test(t, f.start(t), f.status)
		})
	}
}

// program returns the path of the first of the programs that is here, or skips.
func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("skipped: there is no %s here", strings.Join(names, ", nor "))
	return ""
}

// copyForeign copies the foreigners' side to where packages may be installed.
func copyForeign(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "node.js", "obey.js"} {
		text, err := os.ReadFile(filepath.Join("testdata/foreign", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return dir
}

// startForeigner starts a foreigner that reads orders from its stdin.
func startForeigner(t *testing.T, dir, name string, args ...string) *foreigner {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	f := &foreigner{
		name:    filepath.Base(name),
		sockets: map[int]*foreignSocket{},
		order: func(line []byte) error {
			_, err := stdin.Write(append(line, '\n'))
			return err
		},
	}
	events := json.NewDecoder(stdout)
	f.run(t, cmd, func() (e event, err error) { return e, events.Decode(&e) })
	return f
}

const chromium = "Chromium"

// startChromium starts a Chromium that shows testdata/foreign/page.html, from an
// origin that has it. Its orders go through a WebSocket of a server of their own,
// which has the page too; its origin is the default.
func startChromium(t *testing.T, origin string) *foreigner {
	t.Helper()
	path := program(t, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
	controls := make(chan *websocket.Conn, 1)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir("testdata/foreign")))
	mux.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err == nil {
			ws.SetReadLimit(-1)
			controls <- ws
		}
	})
	ln := listen(t)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	var serving sync.WaitGroup
	serving.Go(func() { _ = hs.Serve(ln) }) // ends with Close
	t.Cleanup(func() { _ = hs.Close(); serving.Wait() })

	// Not t.TempDir: a Chromium that is killed may leave a process that still
	// writes there for a moment.
	profile, err := os.MkdirTemp("", "chromium")
	require.NoError(t, err)
	t.Cleanup(func() {
		eventually(t, "the profile can be removed", func() bool { return os.RemoveAll(profile) == nil })
	})
	// The pipe ends with us, even if we are killed, and Chromium with the pipe.
	args := []string{"--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions",
		"--remote-debugging-pipe", "--user-data-dir=" + profile}
	theirs, ours, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	if os.Geteuid() == 0 { // it has no sandbox for root
		args = append(args, "--no-sandbox")
	}
	control := "ws://" + ln.Addr().String() + "/control"
	page := cmp.Or(origin, "http://"+ln.Addr().String()) + "/page.html?control=" + url.QueryEscape(control)
	f := &foreigner{name: chromium, sockets: map[int]*foreignSocket{}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var ws *websocket.Conn
	f.order = func(line []byte) error { return ws.Write(ctx, websocket.MessageText, line) }
	came := make(chan struct{})
	cmd := exec.Command(path, append(args, page)...)
	cmd.ExtraFiles = []*os.File{theirs, os.Stderr} // 3, which it reads, and 4, which it does not write to
	f.run(t, cmd, func() (e event, err error) {
		<-came
		if ws == nil {
			return e, errors.New("Chromium does not show the page")
		}
		_, text, err := ws.Read(ctx)
		if err != nil {
			return e, err
		}
		return e, json.Unmarshal(text, &e)
	})
	defer close(came)
	select {
	case ws = <-controls:
		t.Cleanup(func() { _ = ws.CloseNow() })
	case <-time.After(2 * patience):
		t.Fatal("Chromium does not show the page")
	}
	return f
}

// run starts cmd, and reads what it tells until the end of the test.
func (f *foreigner) run(t *testing.T, cmd *exec.Cmd, next func() (event, error)) {
	t.Helper()
	var complaints strings.Builder
	cmd.Stderr = &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Chromium has children
	cmd.WaitDelay = patience
	require.NoError(t, cmd.Start())
	f.pid = cmd.Process.Pid
	var reading sync.WaitGroup
	reading.Go(func() { // ends with the process, or its control connection
		for {
			e, err := next()
			f.mu.Lock()
			if err != nil {
				f.gone = fmt.Errorf("%s tells nothing more: %w", f.name, err)
				for _, s := range f.sockets {
					close(s.events)
				}
				f.mu.Unlock()
				return
			}
			s := f.sockets[e.ID]
			if e.Event == "close" {
				delete(f.sockets, e.ID)
			}
			f.mu.Unlock()
			if s != nil {
				s.events <- e
			}
		}
	})
	t.Cleanup(func() {
		_ = syscall.Kill(-f.pid, syscall.SIGKILL)
		reading.Wait()
		_ = cmd.Wait()
		if t.Failed() && f.name != chromium { // which always complains
			t.Log(f.name, "says:", complaints.String())
		}
	})
}

// freeze stops the process: it is a laptop whose lid is closed. thaw opens it.
func (f *foreigner) freeze(t testing.TB) {
	t.Helper()
	require.NoError(t, syscall.Kill(-f.pid, syscall.SIGSTOP))
	t.Cleanup(func() { f.thaw(t) })
}

func (f *foreigner) thaw(t testing.TB) {
	t.Helper()
	require.NoError(t, syscall.Kill(-f.pid, syscall.SIGCONT))
}

func (f *foreigner) tell(t testing.TB, order map[string]any) {
	t.Helper()
	line, err := json.Marshal(order)
	require.NoError(t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NoError(t, f.gone)
	require.NoError(t, f.order(line))
}

// A foreignSocket is one WebSocket of a foreigner.
type foreignSocket struct {
	t      testing.TB
	f      *foreigner
	id     int
	events chan event
	closed bool // the test has heard so
}

// connect has the foreigner open a WebSocket. It does not wait for that.
func (f *foreigner) connect(t testing.TB, url, user string, batches bool) *foreignSocket {
	t.Helper()
	// There is room for all that a test does not want to read.
	s := &foreignSocket{t: t, f: f, events: make(chan event, 1<<12)}
	f.mu.Lock()
	f.last++
	s.id = f.last
	f.sockets[s.id] = s
	f.mu.Unlock()
	protocols := []string{}
	if batches {
		protocols = append(protocols, batchProtocol)
	}
	f.tell(t, map[string]any{"id": s.id, "open": url, "protocols": protocols, "user": user})
	t.Cleanup(func() {
		if s.closed {
			return
		}
		if s.leave(); !t.Failed() {
			s.goodbye()
		}
	})
	return s
}

func (s *foreignSocket) event() event {
	s.t.Helper()
	select {
	case e, ok := <-s.events:
		if !ok {
			s.t.Fatal(s.f.gone)
		}
		s.closed = s.closed || e.Event == "close"
		return e
	case <-time.After(patience):
		s.t.Fatalf("waited in vain for an event of %s", s.f.name)
	}
	return event{}
}

// opened waits until the WebSocket is open.
func (s *foreignSocket) opened() *foreignSocket {
	s.t.Helper()
	e := s.event()
	require.Equal(s.t, "open", e.Event, "%v", e)
	return s
}

func (s *foreignSocket) say(text string) {
	s.t.Helper()
	s.f.tell(s.t, map[string]any{"id": s.id, "say": text})
}

// close closes the WebSocket as a client that leaves does.
func (s *foreignSocket) close() {
	s.t.Helper()
	s.leave()
	s.goodbye()
}

func (s *foreignSocket) leave() {
	s.t.Helper()
	s.f.tell(s.t, map[string]any{"id": s.id, "close": 1000})
}

// goodbye reads until the WebSocket is closed, and returns its code and reason.
func (s *foreignSocket) goodbye() (code int, reason string) {
	s.t.Helper()
	for {
		if e := s.event(); e.Event == "close" {
			return e.Code, e.Text
		}
	}
}

// A message is whatever the server may send.
type message struct {
	text string // as it came

	Action        string
	ID            json.RawMessage
	SessionID     string `json:"session_id"`
	Cursor        string
	Resumed       *bool
	Channels      []string
	Heartbeat     int64 `json:"heartbeat_ms"`
	Refresh       *bool
	Reason        string
	Code          string
	ExpiresIn     int64  `json:"expires_in_ms"`
	In            int64  `json:"in_ms"`
	MessageID     string `json:"message_id"`
	Notifications []struct {
		MessageID string `json:"message_id"`
	}
}

func (m *message) parse(text []byte) error {
	m.text = string(text)
	return json.Unmarshal(text, m)
}

// frame returns the next message.
func (s *foreignSocket) frame() message {
	s.t.Helper()
	return s.parse(s.event())
}

func (s *foreignSocket) parse(e event) message {
	s.t.Helper()
	require.Equal(s.t, "message", e.Event, "%v", e)
	var m message
	require.NoError(s.t, m.parse([]byte(e.Text)), e.Text)
	return m
}

// hear is frame, but for heartbeats, of which one may come at any time.
func (s *foreignSocket) hear() message {
	s.t.Helper()
	for {
		if m := s.frame(); m.Action != "heartbeat" {
			return m
		}
	}
}

// answer says a command and returns what comes next.
func (s *foreignSocket) answer(command string) message {
	s.t.Helper()
	s.say(command)
	return s.hear()
}

// begin waits for all that comes before what is new: welcome, live, nothing
// else. It returns the welcome.
func (s *foreignSocket) begin() message {
	s.t.Helper()
	s.opened()
	welcome := s.hear()
	require.Equal(s.t, "welcome", welcome.Action, welcome.text)
	m := s.hear()
	require.Equal(s.t, `{"action":"live"}`, m.text)
	return welcome
}

// A delivery is what a client has got, up to the notification with some ID.
type delivery struct {
	ids    []string
	cursor string // of the last batch
	live   []int  // how many IDs had come before each live
}

// until reads batches up to the notification with this ID.
func (s *foreignSocket) until(id string) (d delivery) {
	s.t.Helper()
	for {
		m := s.hear()
		if m.Action == "live" {
			d.live = append(d.live, len(d.ids))
			continue
		}
		require.Empty(s.t, m.Action, m.text)
		require.NotEmpty(s.t, m.Notifications, m.text)
		d.cursor = m.Cursor
		for _, n := range m.Notifications {
			d.ids = append(d.ids, n.MessageID)
		}
		if d.ids[len(d.ids)-1] == id {
			return d
		}
	}
}

// foreignIdentity believes "USER" and "USER for DURATION", from a program's
// header or a page's cookie. A duration begins now, not when the test said so, so
// that a slow machine does not shorten it.
func foreignIdentity(r *http.Request) (Identity, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if cookie, err := r.Cookie("user"); !ok && err == nil {
		token, err = url.QueryUnescape(cookie.Value)
		ok = err == nil
	}
	if !ok {
		return Identity{}, errors.New("no token")
	}
	return believe(token)
}

func believe(token string) (Identity, error) {
	user, lasts, ok := strings.Cut(token, " for ")
	switch {
	case user == "nobody":
		return Identity{}, errors.New("bad token")
	case user == "banned":
		return Identity{}, fmt.Errorf("%w: banned", web.ErrForbidden)
	case !ok:
		return Identity{UserID: user}, nil
	}
	d, err := time.ParseDuration(lasts)
	return Identity{UserID: user, Expires: time.Now().Add(d)}, err
}

// serveForeigners is a server with a history for clients of all kinds, pages of
// other ports of this machine among them.
func serveForeigners(t testing.TB, g notification.GatewayConfig, cfg Config) *server {
	t.Helper()
	if g.HistoryMessages == 0 {
		g.HistoryMessages = 1 << 14
	}
	if cfg.Authenticate == nil {
		cfg.Authenticate = foreignIdentity
	}
	cfg.OriginPatterns = []string{"127.0.0.1:*"}
	return serveOn(t, smallBuffers{listen(t)}, g, cfg)
}

// routed waits until the Gateway has dealt with all that was published.
func (s *server) routed() {
	s.t.Helper()
	require.NoError(s.t, settle.Wait(context.Background(), s.broker, s.gateway, notification.P0, notification.P1, notification.P2, notification.P3))
}

// url is the server's address with a query.
func (s *server) url(query string) string { return "ws://" + s.addr + "/?" + query }
