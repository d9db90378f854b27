package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
	"github.com/stretchr/testify/require"
)

const patience = 2 * time.Minute

// dirEnv makes this test binary another process: a publisher with a server in the
// folder.
const dirEnv = "EMBEDDED_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirEnv); dir != "" {
		if err := publishForEver(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	for give := time.Now().Add(patience); runtime.NumGoroutine() > before && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

func start(t *testing.T, o embedded.Options) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx))
}

// patient returns a ctx for what must come: without a deadline JetStream has five
// seconds for what it is asked, which a disk that syncs may need for a stream.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// open opens a log at the server and returns a Publisher that runs.
func open(t *testing.T, options []nats.Option) (*natslog.Log, *natslog.Publisher) {
	t.Helper()
	l, err := natslog.Open(patient(t), natslog.Config{NATS: append(options, nats.Timeout(patience))})
	require.NoError(t, err)
	p, err := l.NewPublisher(natslog.PublisherConfig{})
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = p.Run(context.Background()) }) // ends with Shutdown
	t.Cleanup(func() {
		_ = p.Shutdown(context.Background())
		running.Wait()
		_ = l.Close()
	})
	return l, p
}

func note(id string) *notification.Notification {
	n := notification.New("alice", notification.OrderFilled{OrderID: id}, "MatchingEngine")
	n.ID = id
	return n
}

// ids reads the log from its beginning until it has seen the ID last.
func ids(t *testing.T, l *natslog.Log, last string) []string {
	t.Helper()
	r, err := l.NewReader(natslog.Position{})
	require.NoError(t, err)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []string
	for len(all) == 0 || all[len(all)-1] != last {
		a, _, err := r.Next(ctx)
		require.NoError(t, err)
		all = append(all, a.ID())
	}
	return all
}

func TestServer(t *testing.T) {
	dir := t.TempDir()
	s, err := embedded.Start(embedded.Options{Dir: dir})
	require.NoError(t, err)

	t.Run("it listens nowhere", func(t *testing.T) {
		require.Empty(t, s.URL())
	})
	t.Run("a Log in the same process takes it by NATS, and needs no URL", func(t *testing.T) {
		l, p := open(t, s.NATS())
		require.NoError(t, p.PublishWait(patient(t), note("1")))
		require.Equal(t, []string{"1"}, ids(t, l, "1"))
	})
	t.Run("it takes messages of 8 MiB", func(t *testing.T) {
		nc, err := nats.Connect("", append(s.NATS(), nats.Timeout(patience))...)
		require.NoError(t, err)
		defer nc.Close()
		require.EqualValues(t, 8<<20, nc.MaxPayload())
	})
	t.Run("its folder is taken, and the error says by whom", func(t *testing.T) {
		_, err := embedded.Start(embedded.Options{Dir: dir})
		require.ErrorIs(t, err, embedded.ErrLocked)
		require.ErrorContains(t, err, dir)
		require.ErrorContains(t, err, "process "+strconv.Itoa(os.Getpid()))
	})
	t.Run("after Shutdown, which may be called twice, the folder is free, and what was stored is there", func(t *testing.T) {
		stop(t, s)
		stop(t, s)
		s := start(t, embedded.Options{Dir: dir})
		l, p := open(t, s.NATS())
		require.NoError(t, p.PublishWait(patient(t), note("2")))
		require.Equal(t, []string{"1", "2"}, ids(t, l, "2"))
	})
}

func TestListen(t *testing.T) {
	s := start(t, embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	t.Run("others connect to its URL", func(t *testing.T) {
		l, err := natslog.Open(patient(t), natslog.Config{URL: s.URL(), NATS: []nats.Option{nats.Timeout(patience)}})
		require.NoError(t, err)
		require.NoError(t, l.Close())
	})
	t.Run("an address that is in use is an error, and leaves the folder free", func(t *testing.T) {
		dir := t.TempDir()
		_, err := embedded.Start(embedded.Options{Dir: dir, Listen: strings.TrimPrefix(s.URL(), "nats://")})
		require.ErrorContains(t, err, "in use")
		start(t, embedded.Options{Dir: dir})
	})
}

func TestSync(t *testing.T) {
	for _, c := range []struct {
		name     string
		interval time.Duration
		always   bool
	}{
		{"by default it syncs before each acknowledgement", 0, true},
		{"with an interval it does not", time.Minute, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, embedded.Options{Dir: t.TempDir(), SyncInterval: c.interval})
			var log bytes.Buffer
			l, err := natslog.Open(patient(t), natslog.Config{NATS: append(s.NATS(), nats.Timeout(patience)), Logger: slog.New(slog.NewTextHandler(&log, nil))})
			require.NoError(t, err)
			require.NoError(t, l.Close())
			require.Equal(t, !c.always, strings.Contains(log.String(), "sync_always"), "natslog warns if it cannot tell that it does: %s", &log)
		})
	}
}

func TestInvalid(t *testing.T) {
	for says, o := range map[string]embedded.Options{
		"Options.Dir":          {},
		"Options.SyncInterval": {Dir: "x", SyncInterval: -1},
		"Options.MaxStore":     {Dir: "x", MaxStore: -1},
		"Options.Listen: address here: missing port": {Dir: "x", Listen: "here"},
		"Options.Listen: port \"http\"":              {Dir: "x", Listen: "here:http"},
	} {
		t.Run(says, func(t *testing.T) {
			_, err := embedded.Start(o)
			require.ErrorIs(t, err, notification.ErrInvalid)
			require.ErrorContains(t, err, says)
			require.NoDirExists(t, "x")
		})
	}
	t.Run("a folder that is a file is an error of the system", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o644))
		_, err := embedded.Start(embedded.Options{Dir: file})
		require.ErrorContains(t, err, file)
	})
	t.Run("what nats-server calls fatal is an error, and the process lives", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o644))
		var log bytes.Buffer
		_, err := embedded.Start(embedded.Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.ErrorContains(t, err, "storage directory is not a directory")
		require.Contains(t, log.String(), "level=ERROR")
	})
}

func TestConfigure(t *testing.T) {
	s := start(t, embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Configure: func(o *server.Options) {
		o.Username, o.Password, o.AuthTimeout = "exchange", "secret", patience.Seconds() // not the two seconds of its default
	}})
	_, err := nats.Connect(s.URL(), nats.NoReconnect(), nats.Timeout(patience))
	require.ErrorIs(t, err, nats.ErrAuthorization)
	nc, err := nats.Connect(s.URL(), nats.UserInfo("exchange", "secret"), nats.Timeout(patience))
	require.NoError(t, err)
	nc.Close()
}

func TestLogger(t *testing.T) {
	var log bytes.Buffer
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	require.NoError(t, err)
	stop(t, s)
	require.Contains(t, log.String(), "level=DEBUG msg=\"nats-server: Starting nats-server\"")
	require.NotContains(t, log.String(), "level=INFO")
}

// publishForEver says each ID that was acknowledged, until it is killed.
func publishForEver(dir string) error {
	s, err := embedded.Start(embedded.Options{Dir: dir})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l, err := natslog.Open(ctx, natslog.Config{NATS: append(s.NATS(), nats.Timeout(patience))})
	if err != nil {
		return err
	}
	p, err := l.NewPublisher(natslog.PublisherConfig{})
	if err != nil {
		return err
	}
	go p.Run(context.Background()) // dies with the process
	for i := 1; ; i++ {
		id := strconv.Itoa(i)
		if err := p.PublishWait(context.Background(), note(id)); err != nil {
			return err
		}
		fmt.Println(id)
	}
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	lines := bufio.NewScanner(out)
	var acknowledged []string
	for len(acknowledged) < 50 && lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
	}
	require.Len(t, acknowledged, 50, "%v", acknowledged)

	t.Run("another process is refused its folder", func(t *testing.T) {
		_, err := embedded.Start(embedded.Options{Dir: dir})
		require.ErrorIs(t, err, embedded.ErrLocked)
		require.ErrorContains(t, err, "process "+strconv.Itoa(cmd.Process.Pid))
	})
	t.Run("after kill -9 the folder is free, and all is there that was acknowledged, in order", func(t *testing.T) {
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() {
			acknowledged = append(acknowledged, lines.Text())
		}
		_ = cmd.Wait()
		s := start(t, embedded.Options{Dir: dir})
		l, _ := open(t, s.NATS())
		last := acknowledged[len(acknowledged)-1]
		require.Equal(t, acknowledged, ids(t, l, last))
	})
}

func TestShutdownThatIsNotWaitedFor(t *testing.T) {
	s := start(t, embedded.Options{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); err != nil { // or it was quicker
		require.ErrorIs(t, err, context.Canceled)
	}
}

func TestConnectionsEnd(t *testing.T) {
	s := start(t, embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	closed := make(chan struct{})
	nc, err := nats.Connect("", append(s.NATS(), nats.NoReconnect(), nats.Timeout(patience), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))...)
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.AccountInfo(patient(t))
	require.NoError(t, err)
	url := s.URL()
	stop(t, s)
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("the connection outlives the server")
	}
	_, err = net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	require.ErrorContains(t, err, "refused")
}
