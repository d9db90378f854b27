package ssegateway

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

// Clients that nobody here wrote: Chromium's EventSource, and curl.

// A page is testdata/page.html in a Chromium. It gets its orders from a server of
// their own, and tells it what happens.
type page struct {
	t      testing.TB
	orders chan map[string]string
	told   chan told
}

// What a page tells: the event's name, "error", "loaded" or "closed".
type told struct {
	Name, Text, ID string
	State          int // readyState: 0 connecting, 1 open, 2 closed
}

// showPage starts a Chromium that shows the page, which a server at origin has.
func showPage(t *testing.T, origin string, flags ...string) *page {
	t.Helper()
	path := program(t, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
	p := &page{t: t, orders: make(chan map[string]string), told: make(chan told, 1<<12)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /order", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		select {
		case order := <-p.orders:
			_ = json.NewEncoder(w).Encode(order)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("POST /told", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		var what told
		if json.NewDecoder(r.Body).Decode(&what) == nil {
			p.told <- what
		}
	})
	ln := listen(t)
	control := &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	var serving sync.WaitGroup
	serving.Go(func() { _ = control.Serve(ln) }) // ends with Close
	t.Cleanup(func() { _ = control.Close(); serving.Wait() })

	// Not t.TempDir: a Chromium that is killed may leave a process that still
	// writes there for a moment.
	profile, err := os.MkdirTemp("", "chromium")
	require.NoError(t, err)
	t.Cleanup(func() {
		eventually(t, "the profile can be removed", func() bool { return os.RemoveAll(profile) == nil })
	})
	// The pipe ends with us, even if we are killed, and Chromium with the pipe.
	theirs, ours, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	args := append([]string{"--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions",
		"--remote-debugging-pipe", "--user-data-dir=" + profile}, flags...)
	if os.Geteuid() == 0 { // it has no sandbox for root
		args = append(args, "--no-sandbox")
	}
	args = append(args, origin+"/page.html?control="+url.QueryEscape("http://"+ln.Addr().String()))
	cmd := exec.Command(path, args...)
	cmd.ExtraFiles = []*os.File{theirs, os.Stderr}        // 3, which it reads, and 4, which it does not write to
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	cmd.WaitDelay = patience
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	require.Equal(t, "loaded", p.next(3*patience).Name)
	return p
}

func (p *page) next(within time.Duration) told {
	p.t.Helper()
	select {
	case what := <-p.told:
		return what
	case <-time.After(within):
		p.t.Fatal("Chromium tells nothing")
		return told{}
	}
}

// want waits for the next that is told, which must have this name.
func (p *page) want(name string) told {
	p.t.Helper()
	what := p.next(2 * patience)
	require.Equal(p.t, name, what.Name, "%+v", what)
	return what
}

func (p *page) order(order map[string]string) {
	p.t.Helper()
	select {
	case p.orders <- order:
	case <-time.After(2 * patience):
		p.t.Fatal("Chromium asks for no order")
	}
}

func (p *page) open(query, listener string) {
	p.t.Helper()
	p.order(map[string]string{"do": "open", "url": "/events?" + query, "listener": listener})
}

// close closes the page's EventSource, and forgets its cursor.
func (p *page) close() {
	p.t.Helper()
	p.order(map[string]string{"do": "close"})
	for p.next(2*patience).Name != "closed" {
	}
}

func messageID(t testing.TB, text string) string {
	t.Helper()
	return event{Data: text}.frame(t).MessageID
}

// A restartable server is replaced at its address, by the same Gateway.
type restartable struct {
	gate    sync.RWMutex // held by a test until who was cut may come back
	current atomic.Pointer[Handler]
	conns   sync.Map // net.Conn: those that are open
}

func (r *restartable) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.gate.RLock()
	handler := r.current.Load()
	r.gate.RUnlock()
	handler.ServeHTTP(w, req)
}

// cut closes every connection, as a network does.
func (r *restartable) cut() {
	r.conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
}

func (r *restartable) follow(c net.Conn, state http.ConnState) {
	if state == http.StateNew {
		r.conns.Store(c, nil)
	} else if state == http.StateClosed {
		r.conns.Delete(c)
	}
}

func TestChromium(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped because of -short")
	}
	var front restartable
	// One stream for each user: two of them replace each other.
	g := notification.GatewayConfig{HistoryMessages: 1024, MaxSessionsPerUser: 1, HistoryTTL: time.Hour}
	s := serveOn(t, listen(t), g, Config{HeartbeatInterval: time.Hour}, func(h *http.Server) {
		mux := http.NewServeMux()
		mux.Handle("/", http.FileServer(http.Dir("testdata")))
		mux.Handle("/events", &front)
		mux.Handle("/events/", &front) // for clients of these tests
		h.Handler, h.ConnState = mux, front.follow
	})
	front.current.Store(s.handler)
	p := showPage(t, "http://"+s.addr)
	s.addr += "/events"
	listener := block(t, "js", "events.close()") // README's, which tells when to stop
	// missed is published while nobody is here: the gate is locked, because a
	// browser may be back before a busy machine has seen that it was away.
	missed := func(user string) *notification.Notification {
		t.Helper()
		s.noSession(user)
		n := s.publish(user, notification.RiskAlert{})
		s.routed()
		return n
	}
	begin := func(user string) {
		t.Helper()
		p.open("user="+user, listener)
		hello := p.want("welcome")
		require.Equal(t, 1, hello.State)
		require.NotEmpty(t, hello.ID)
		p.want("live")
	}
	// resumed is what a page sees when it is back.
	resumed := func(n *notification.Notification) {
		t.Helper()
		require.Contains(t, p.want("welcome").Text, `"resumed":true`)
		require.Equal(t, n.ID, messageID(t, p.want("message").Text))
		p.want("live")
	}

	t.Run("a cut costs nothing: the browser comes back by itself, behind its last event", func(t *testing.T) {
		begin("alice")
		n := s.publish("alice", notification.RiskAlert{})
		require.Equal(t, n.ID, messageID(t, p.want("message").Text))
		front.gate.Lock()
		front.cut()
		n = missed("alice")
		front.gate.Unlock()
		require.Equal(t, 0, p.want("error").State)
		resumed(n)
		p.close()
	})
	t.Run("not even before the first notification", func(t *testing.T) {
		begin("bob")
		front.gate.Lock()
		front.cut()
		n := missed("bob")
		front.gate.Unlock()
		require.Equal(t, 0, p.want("error").State)
		resumed(n)
		p.close()
	})
	t.Run("nor does a reload of a page that has stored its cursor", func(t *testing.T) {
		begin("carol")
		p.order(map[string]string{"do": "reload"})
		n := missed("carol")
		for p.next(2*patience).Name != "loaded" { // an error of the old page may come before
		}
		p.open("user=carol", listener)
		resumed(n)
		p.close()
	})
	t.Run("when its cursor is gone it hears reset, and then what is new", func(t *testing.T) {
		begin("dave")
		s.gateway.Gap()
		require.JSONEq(t, `{"code":4100,"reason":"gap"}`, p.want("close").Text)
		require.Equal(t, 0, p.want("error").State)
		require.Contains(t, p.want("welcome").Text, `"resumed":false`)
		p.want("reset")
		p.want("live")
		n := s.publish("dave", notification.RiskAlert{})
		require.Equal(t, n.ID, messageID(t, p.want("message").Text))
		p.close()
	})
	t.Run("with README's listener, one that was replaced stays away", func(t *testing.T) {
		begin("eve")
		other := s.begin("user=eve")
		require.Contains(t, p.want("close").Text, "4409")
		// It would be back within 3 s, and the other one would hear of it.
		select {
		case what := <-p.told:
			t.Fatalf("after close: %+v", what)
		case <-time.After(retryAfter + time.Second):
		}
		n := s.publish("eve", notification.RiskAlert{})
		require.Equal(t, n.ID, other.want("").frame(t).MessageID)
		other.close()
		s.noSession("eve")
		p.close()
	})
	t.Run("without it, the two replace each other for ever", func(t *testing.T) {
		p.open("user=frank", "")
		p.want("welcome")
		p.want("live")
		other := s.begin("user=frank")
		require.Contains(t, p.want("close").Text, "4409")
		require.Equal(t, 0, p.want("error").State)
		p.want("welcome")
		require.Equal(t, 4409, other.goodbye().Code)
		p.want("live")
		p.close()
	})
	t.Run("expired credentials end in 401, which is final", func(t *testing.T) {
		for life := 6 * time.Second; ; life *= 2 { // on a busy machine the page opens no stream in that time
			until := time.Now().Add(life).UTC().Format(time.RFC3339Nano)
			p.open("user=grace&until="+until, listener)
			first := p.next(2 * patience)
			if first.Name == "welcome" {
				break
			}
			require.Equal(t, "error", first.Name, "%+v", first)
			require.Equal(t, 2, first.State)
			p.close()
		}
		p.want("live")
		require.Contains(t, p.want("close").Text, "4401")
		require.Equal(t, 0, p.want("error").State)
		require.Equal(t, 2, p.want("error").State)
		p.close()
	})
	t.Run("after a drain it is back, and nothing is missing", func(t *testing.T) {
		begin("heidi")
		next, err := New(s.gateway, s.handler.cfg)
		require.NoError(t, err)
		old := s.handler
		front.gate.Lock()
		require.NoError(t, old.Shutdown(t.Context()))
		require.Contains(t, p.want("close").Text, "1001")
		n := missed("heidi")
		front.current.Store(next)
		front.gate.Unlock()
		defer func() { require.NoError(t, next.Shutdown(t.Context())) }()
		require.Equal(t, 0, p.want("error").State)
		resumed(n)
		p.close()
	})
}

func TestChromiumOverHTTP2(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped because of -short")
	}
	cert := httptest.NewTLSServer(nil)
	cert.Close()
	ln := tls.NewListener(listen(t), &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}})
	var old atomic.Int32 // requests over HTTP/1
	cfg := Config{HeartbeatInterval: time.Hour, Authenticate: func(r *http.Request) (Identity, error) {
		if r.ProtoMajor < 2 {
			old.Add(1)
		}
		return authenticate(r)
	}}
	s := serveOn(t, ln, notification.GatewayConfig{}, cfg, func(h *http.Server) {
		mux := http.NewServeMux()
		mux.Handle("/", http.FileServer(http.Dir("testdata")))
		mux.Handle("/events", h.Handler)
		h.Handler = mux
	})
	p := showPage(t, "https://"+s.addr, "--ignore-certificate-errors")
	t.Run("a page may have more than the six streams of HTTP/1.1", func(t *testing.T) {
		const streams = 8
		for i := range streams {
			p.open(fmt.Sprint("user=user-", i), "")
			p.want("welcome")
			p.want("live")
		}
		n := s.publish(notification.AllUsers, notification.MarketHalt{})
		for range streams {
			require.Equal(t, n.ID, messageID(t, p.want("message").Text))
		}
		require.Zero(t, old.Load())
	})
}

func TestCurl(t *testing.T) {
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: time.Hour})
	curl := func(args ...string) (*client, *exec.Cmd) {
		cmd := exec.Command(program(t, "curl"), append([]string{"--no-buffer", "--silent", "--include", "--http1.1"}, args...)...)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		resp := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: stdout}
		c := s.stream(resp, "")
		line, err := c.r.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1 200 OK", strings.TrimSpace(line))
		for strings.TrimSpace(line) != "" { // the header
			line, err = c.r.ReadString('\n')
			require.NoError(t, err)
		}
		return c, cmd
	}
	address := fmt.Sprintf("http://%s/?user=alice", s.addr)
	t.Run("it shows each event as it comes, and goes on where it was", func(t *testing.T) {
		c, cmd := curl(address)
		c.want("welcome")
		c.want("live")
		n := s.publish("alice", notification.RiskAlert{})
		require.Equal(t, n.ID, c.want("").frame(t).MessageID)
		require.NoError(t, cmd.Process.Kill())
		s.noSession("alice")
		n = s.publish("alice", notification.RiskAlert{})
		s.routed()
		c, cmd = curl("--header", "Last-Event-ID: "+c.lastID, address)
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, n.ID, c.want("").frame(t).MessageID)
		c.want("live")
		require.NoError(t, s.session("alice").Close())
		require.Equal(t, 1000, c.goodbye().Code)
		require.NoError(t, cmd.Wait(), "the answer is whole")
	})
	t.Run("a process that is stopped is a peer that does not read", func(t *testing.T) {
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{}, Config{WriteTimeout: 500 * time.Millisecond}, nil)
		cmd := exec.Command(program(t, "curl"), "--no-buffer", "--silent", "--output", filepath.Join(t.TempDir(), "out"), "http://"+s.addr+"/?user=bob")
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		session := s.session("bob")
		require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
		for range 64 {
			s.publish("bob", large)
		}
		<-session.Done()
		require.ErrorIs(t, session.Err(), notification.ErrSlowConsumer)
		s.noStreams()
	})
}
