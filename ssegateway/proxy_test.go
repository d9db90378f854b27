package ssegateway

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

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

// What stands between most clients and a server is nginx. The configuration is
// the one in the README: what these tests prove is that page.

// program returns the path of the first of the programs that is here, or skips.
func program(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("skipped: there is no %s here", strings.Join(names, ", nor "))
	return ""
}

// startNginx starts nginx before two servers, which may be the same, and returns
// its address. Each more is for README's location of the streams.
func startNginx(t *testing.T, first, second string, more ...string) (addr string) {
	t.Helper()
	nginx := program(t, "nginx", "/usr/sbin/nginx")
	config := block(t, "nginx", "@later")
	addr = ownAddress(t)
	dir := t.TempDir()
	var temps strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temps, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	const pass = "proxy_pass http://exchange;"
	for _, r := range [][2]string{
		{"listen 8080;", "listen " + addr + ";"},
		{"127.0.0.1:8081", first},
		{"127.0.0.1:8082", second},
		{pass, pass + strings.Join(more, " ")},
	} {
		require.Contains(t, config, r[0])
		config = strings.Replace(config, r[0], r[1], 1)
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
			`+temps.String()+config+`
		}`), 0o600))
	cmd := exec.Command(nginx, "-p", dir, "-c", path, "-e", "stderr")
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
	return addr
}

// ownAddress returns an address for somebody who cannot listen on port 0. Between
// the choice of a port and its use, and while a server restarts, anybody might
// take it; so it is on a host that only this process knows.
func ownAddress(t testing.TB) string {
	t.Helper()
	pid := os.Getpid()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64|pid>>16&63, pid>>8&255, max(pid&255, 1)))
	if err != nil {
		t.Skipf("skipped: 127.0.0.0/8 is not all this host's: %v", err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestBehindNginx(t *testing.T) {
	for _, buffering := range []string{"on", "off"} {
		t.Run("each event comes at once, and a stream goes on where it was, with proxy_buffering "+buffering, func(t *testing.T) {
			s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: time.Hour})
			s.addr = startNginx(t, s.addr, s.addr, "proxy_buffering "+buffering+";") + "/events"
			c := s.begin("user=alice") // it would not come if it were held back
			for range 3 {
				n := s.publish("alice", notification.RiskAlert{})
				require.Equal(t, n.ID, c.want("").frame(t).MessageID)
			}
			c.close()
			s.noSession("alice")
			n := s.publish("alice", notification.RiskAlert{})
			s.routed()
			c = s.open("user=alice", c.lastID)
			require.True(t, c.want("welcome").frame(t).Resumed)
			require.Equal(t, n.ID, c.want("").frame(t).MessageID)
			c.want("live")
			s.gateway.Gap()
			require.Equal(t, 4100, c.goodbye().Code)
			require.Equal(t, 401, s.status("", nil))
		})
	}
	t.Run("the same origin is let in, another one is not", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		front := startNginx(t, s.addr, s.addr)
		s.addr = front + "/events"
		for origin, want := range map[string]int{"http://" + front: 200, "http://127.0.0.1": 403, "https://foe.example": 403} {
			require.Equal(t, want, s.status("user=alice", http.Header{"Origin": {origin}}), origin)
		}
	})
	t.Run("a quiet stream outlives proxy_read_timeout by its heartbeats, and without them it is cut", func(t *testing.T) {
		for _, interval := range []time.Duration{100 * time.Millisecond, time.Hour} {
			s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: interval})
			s.addr = startNginx(t, s.addr, s.addr, "proxy_read_timeout 3s;") + "/events"
			c := s.begin("user=alice")
			begun, ok := time.Now(), true
			for ok && time.Since(begun) < 6*time.Second {
				_, ok = c.next()
			}
			require.Equal(t, interval < time.Hour, ok)
		}
	})
	t.Run("with no server up it tells to come back, until there is one", func(t *testing.T) {
		s := &server{t: t, addr: ownAddress(t)}
		there := s.addr
		s.addr = startNginx(t, s.addr, s.addr) + "/events"
		for range 3 {
			c := s.open("user=alice", "")
			require.Equal(t, "no-store", c.resp.Header.Get("Cache-Control"))
			e, _ := c.next()
			require.Empty(t, e, "it dispatches nothing")
			require.Equal(t, "2000", c.retry)
			_, ok := c.next()
			require.False(t, ok)
		}
		startBackend(t, there)
		eventually(t, "a stream", func() bool {
			c := s.open("user=alice", "")
			defer c.close()
			e, ok := c.next()
			return ok && e.Name == "welcome"
		})
	})
}

// backendEnv holds the address for a process that is a server.
const backendEnv = "SSEGATEWAY_TEST_BACKEND"

// drainTime is what a server has to send its clients away.
const drainTime = 2 * time.Second

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
		_ = within(drainTime, handler.Shutdown) // whom it had to cut comes back too
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
	const clients, reconnects = 100, 300
	addrs := [2]string{ownAddress(t), ownAddress(t)}
	s := &server{t: t, addr: startNginx(t, addrs[0], addrs[1]) + "/events"}
	processes := [2]*process{startBackend(t, addrs[0]), startBackend(t, addrs[1])}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hc := httpClient(t, false)
	var connected, came, sent, later atomic.Int64
	var failure atomic.Pointer[error]
	// visit does as an EventSource does: for it, all but a stream is final.
	visit := func(user, lastID string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+"?user="+user, nil)
		if err != nil {
			return "", err
		}
		if lastID != "" {
			req.Header.Set("Last-Event-ID", lastID)
		}
		resp, err := hc.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
			return "", errors.New(resp.Status + " " + resp.Header.Get("Content-Type"))
		}
		in := bufio.NewScanner(resp.Body)
		welcome := false
		for in.Scan() {
			switch field, value, _ := strings.Cut(in.Text(), ": "); {
			case field == "id":
				lastID = value
			case field == "event" && value == "welcome":
				welcome = true
				came.Add(1)
				connected.Add(1)
				defer connected.Add(-1)
			case field == "event" && value == "close":
				sent.Add(1)
			}
		}
		if !welcome {
			later.Add(1)
		}
		return lastID, nil
	}
	var visiting sync.WaitGroup
	for i := range clients {
		visiting.Go(func() { // ends with ctx
			lastID := ""
			for ctx.Err() == nil {
				var err error
				if lastID, err = visit(fmt.Sprint("user-", i), lastID); err != nil && ctx.Err() == nil {
					failure.Store(&err)
					return
				}
				select {
				case <-time.After(rand.N(500 * time.Millisecond)): // in a hurry: retry is longer
				case <-ctx.Done():
				}
			}
		})
	}
	failed := func() error {
		if err := failure.Load(); err != nil {
			return *err
		}
		return nil
	}
	everybody := func() {
		eventually(t, "everybody has a stream", func() bool { return connected.Load() == clients || failed() != nil })
	}
	everybody()
	restarts := 0
	for ; came.Load() < clients+reconnects && failed() == nil; restarts++ {
		i := restarts % 2
		require.NoError(t, processes[i].stop())
		processes[i] = startBackend(t, addrs[i])
		everybody()
	}
	cancel()
	visiting.Wait()
	t.Logf("%d restarts, %d reconnects; %d were told by a close event, %d by nginx to come later", restarts, came.Load()-clients, sent.Load(), later.Load())
	require.NoError(t, failed(), "what a client saw in place of a stream")
}
