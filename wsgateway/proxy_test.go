package wsgateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// What stands between most clients and a server is nginx. The configuration is
// the one in the README: what these tests prove is that page.

// nginxConfig is README's, with the addresses and whatever else is replaced: old
// and new in turns, each old being there.
func nginxConfig(t testing.TB, replace ...string) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, config, ok := strings.Cut(string(readme), "```nginx\n")
	require.True(t, ok, "the README has no configuration of nginx")
	config, _, _ = strings.Cut(config, "```")
	for i := 0; i < len(replace); i += 2 {
		require.Contains(t, config, replace[i])
		config = strings.ReplaceAll(config, replace[i], replace[i+1])
	}
	return config
}

// What README's configuration has where a test has its own.
const (
	listenHere  = "listen 8080;"
	firstThere  = "127.0.0.1:8081"
	secondThere = "127.0.0.1:8082"
	readTimeout = "proxy_read_timeout 60s;"
)

// startNginx starts nginx with a configuration that listens on addr.
func startNginx(t *testing.T, addr, config string) {
	t.Helper()
	dir := t.TempDir()
	var temps strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temps, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	path := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(path, []byte(`
		daemon off;
		master_process off; # one process, which the test can end
		pid nginx.pid;
		error_log stderr crit;
		events { worker_connections 4096; }
		http {
			access_log off;
			types { text/html html; text/javascript js; }
			`+temps.String()+config+`
		}`), 0o600))
	cmd := exec.Command(program(t, "nginx", "/usr/sbin/nginx"), "-p", dir, "-c", path, "-e", "stderr")
	var complaints strings.Builder
	cmd.Stderr = &complaints
	require.NoError(t, cmd.Start())
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // waited for below
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Log("nginx says:", complaints.String())
		}
	})
	eventually(t, "nginx listens", func() bool {
		select {
		case <-exited:
			t.Fatal("nginx does not start: ", complaints.String())
		default:
		}
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
}

// ownAddress returns an address for somebody who cannot listen on port 0. Between
// the choice of a port and its use, and while a server restarts, anybody might
// take it; so it is on a host that only this process knows.
func ownAddress(t *testing.T) string {
	t.Helper()
	pid := os.Getpid()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64|pid>>16&63, pid>>8&255, max(pid&255, 1)))
	if err != nil {
		t.Skipf("skipped: 127.0.0.0/8 is not all this host's: %v", err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// behind puts nginx before the server and another, which may be the same. Its
// address is nginx's from then on.
func (s *server) behind(t *testing.T, other *server, replace ...string) {
	t.Helper()
	addr := ownAddress(t)
	files, err := filepath.Abs("testdata/foreign")
	require.NoError(t, err)
	startNginx(t, addr, nginxConfig(t, append(replace,
		listenHere, "listen "+addr+"; root "+files+";", firstThere, s.addr, secondThere, other.addr)...))
	s.addr = addr + "/notifications"
}

func TestBehindNginx(t *testing.T) {
	t.Run("foreign clients get everything, close codes too", func(t *testing.T) {
		for _, kind := range foreigners {
			t.Run(kind.name, func(t *testing.T) {
				// No origin is allowed but the same.
				s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{Authenticate: foreignIdentity})
				s.behind(t, s)
				start := kind.start
				if kind.name == chromium { // its page comes from nginx too
					start = func(t *testing.T) *foreigner {
						return startChromium(t, "http://"+strings.TrimSuffix(s.addr, "/notifications"))
					}
				}
				f := start(t)
				c := f.connect(t, s.url(""), "alice", true)
				c.begin()
				n := s.publish("alice", notification.RiskAlert{})
				seen := c.until(n.ID)
				require.Equal(t, []string{n.ID}, seen.ids)
				c.close()
				n = s.publish("alice", notification.RiskAlert{})
				c = f.connect(t, s.url("cursor="+seen.cursor), "alice", true).opened()
				require.True(t, *c.hear().Resumed)
				require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
				s.gateway.Gap()
				code, _ := c.goodbye()
				require.Equal(t, 4100, code)
				code, _ = f.connect(t, s.url(""), "nobody", true).goodbye()
				require.Equal(t, 4401, code)
			})
		}
	})
	t.Run("the same origin is let in, another one is not", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		s.behind(t, s)
		for origin, want := range map[string]int{
			"http://" + strings.TrimSuffix(s.addr, "/notifications"): http.StatusSwitchingProtocols,
			"http://127.0.0.1":    http.StatusForbidden,
			"https://foe.example": http.StatusForbidden,
		} {
			ws, resp, err := s.tryDial("alice", true, "", http.Header{"Origin": {origin}})
			if err == nil {
				_ = ws.CloseNow()
			}
			require.NotNil(t, resp, "%v", err)
			require.Equal(t, want, resp.StatusCode, origin)
		}
	})
	t.Run("a server that is full leaves clients to the other one", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{MaxConnections: 1})
		other := serve(t, notification.GatewayConfig{}, Config{})
		s.behind(t, other)
		for i := range 6 {
			s.dial(fmt.Sprint("user-", i), true, "")
		}
		require.Equal(t, 1, s.gateway.Stats().Sessions)
		require.Equal(t, 5, other.gateway.Stats().Sessions)
	})
	t.Run("a quiet connection outlives proxy_read_timeout by its heartbeats", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: 100 * time.Millisecond, PingInterval: time.Hour})
		s.behind(t, s, readTimeout, "proxy_read_timeout 3s;")
		quiet := s.dial("alice", true, "")
		quiet.say(`{"action":"ping","id":"begun"}`)
		for string(quiet.frame().ID) != `"begun"` {
		}
		// One without heartbeats is cut meanwhile, as a look at this nginx tells.
		dead := s.dial("bob", false, "")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, _, err := dead.ws.Read(ctx)
		require.Error(t, err)
		require.NoError(t, ctx.Err())
		quiet.say(`{"action":"ping","id":"still here"}`)
		for string(quiet.frame().ID) != `"still here"` {
		}
	})
}

// backendEnv holds the address for a process that is a server.
const backendEnv = "WSGATEWAY_TEST_BACKEND"

// drainTime is what a server has to send its clients away.
const drainTime = 3 * time.Second

// backend is the main function of a process that is a server, until its stdin
// ends. It goes down as docs/operating.md says.
func backend(addr string) int {
	err := func() error {
		broker, err := notification.NewBroker(notification.BrokerConfig{})
		if err != nil {
			return err
		}
		gateway, err := notification.NewGateway("gateway", notification.GatewayConfig{HistoryMessages: 1024})
		if err != nil {
			return err
		}
		if err := broker.RegisterGateway(gateway); err != nil {
			return err
		}
		handler, err := New(gateway, Config{Authenticate: authenticate})
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		hs := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		var running sync.WaitGroup
		running.Go(func() { _ = broker.Run(context.Background()) })
		running.Go(func() { _ = gateway.Run(context.Background()) })
		running.Go(func() { _ = hs.Serve(ln) })
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)

		within := func(d time.Duration, shutdown func(context.Context) error) error {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			return shutdown(ctx)
		}
		down := make(chan error, 1)
		go func() { down <- within(patience, hs.Shutdown) }() // waited for below
		err = within(patience, broker.Shutdown)
		if late := within(drainTime, handler.Shutdown); late != nil { // clients that took too long to answer were cut
			fmt.Fprintln(os.Stderr, "backend:", late)
		}
		err = errors.Join(err, <-down, within(patience, gateway.Shutdown))
		running.Wait()
		return err
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "backend:", err)
		return 1
	}
	return 0
}

// A process is a backend from outside.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startBackend(t *testing.T, addr string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), backendEnv+"="+addr)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{cmd, stdin}
	t.Cleanup(func() { _ = p.stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return p
}

// stop sends its clients away and waits for its end.
func (p *process) stop() error {
	_ = p.stdin.Close()
	return p.cmd.Wait()
}

func TestRollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped because of -short")
	}
	const clients, reconnects = 250, 500
	addr := ownAddress(t)
	addrs := [2]string{ownAddress(t), ownAddress(t)}
	startNginx(t, addr, nginxConfig(t, listenHere, "listen "+addr+";", firstThere, addrs[0], secondThere, addrs[1]))
	processes := [2]*process{startBackend(t, addrs[0]), startBackend(t, addrs[1])}
	s := &server{t: t, addr: addr + "/notifications"}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var connected, came atomic.Int64
	var codes [2]atomic.Int64 // 1001, and others
	var mu sync.Mutex
	failures := map[string]int{} // guarded by mu
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(failures) > 0
	}
	sentAway := func(err error) {
		switch {
		case websocket.CloseStatus(err) == websocket.StatusGoingAway:
			codes[0].Add(1)
		case ctx.Err() == nil:
			codes[1].Add(1)
		}
	}
	// visit connects, sees that it is served, and waits until it is sent away.
	visit := func(user, cursor string) (next string) {
		ws, resp, err := s.tryDial(user, true, "cursor="+cursor, nil)
		if err != nil {
			if resp != nil {
				err = errors.New(resp.Status)
			}
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() == nil {
				failures[err.Error()]++
			}
			return cursor
		}
		defer ws.CloseNow()
		next, err = greeted(ctx, t, ws)
		if err != nil { // it came to one that was about to go down
			sentAway(err)
			return cursor
		}
		came.Add(1)
		connected.Add(1)
		defer connected.Add(-1)
		for err == nil {
			_, _, err = ws.Read(ctx)
		}
		sentAway(err)
		return next
	}
	var visiting sync.WaitGroup
	for i := range clients {
		visiting.Go(func() { // ends with ctx
			cursor := ""
			for ctx.Err() == nil {
				cursor = visit(fmt.Sprint("user-", i), cursor)
				select {
				case <-time.After(rand.N(500 * time.Millisecond)): // as README asks clients to
				case <-ctx.Done():
				}
			}
		})
	}
	everybody := func() {
		eventually(t, "everybody is served", func() bool { return connected.Load() == clients || failed() })
	}
	everybody()
	restarts := 0
	for ; came.Load() < clients+reconnects && !failed(); restarts++ {
		i := restarts % 2
		require.NoError(t, processes[i].stop())
		processes[i] = startBackend(t, addrs[i])
	}
	everybody()
	cancel()
	visiting.Wait()
	t.Logf("%d restarts, %d reconnects; 1001 %d times, cut %d times", restarts, came.Load()-clients, codes[0].Load(), codes[1].Load())
	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, failures, "what clients saw in place of a 101 and a welcome")
}

// greeted reads what comes first, has a command answered, and returns the cursor
// of the welcome, or why it was cut short.
func greeted(ctx context.Context, t *testing.T, ws *websocket.Conn) (cursor string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = ws.Write(ctx, websocket.MessageText, []byte(`{"action":"ping"}`))
	for first := true; err == nil; first = false {
		var text []byte
		if _, text, err = ws.Read(ctx); err != nil {
			break
		}
		var m message
		if err = m.parse(text); err != nil || first != (m.Action == "welcome") {
			t.Errorf("a welcome is first and comes once, not this: %s", text)
		}
		switch m.Action {
		case "welcome":
			cursor = m.Cursor
		case "pong":
			return cursor, nil
		}
	}
	return "", err
}
