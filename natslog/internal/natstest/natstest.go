// Package natstest runs real NATS servers for the tests of natslog, each a process
// of its own, so that it can be killed, frozen, restarted on what it left behind,
// and set back to what it had before. All end with the test.
//
//	s := natstest.Start(t, natstest.Config{})
//	log, err := natslog.Open(ctx, natslog.Config{URL: s.URL})
//	s.Kill()
//	s.Restart()
//
// Nothing here sleeps and hopes: what returns has happened. What does not happen
// within Patience fails the test. All functions that take a testing.TB or belong
// to something that was made with one call FailNow, so they belong to the
// goroutine of the test.
package natstest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Patience is how long anything is waited for that must come.
const Patience = 4 * time.Minute

// Config configures servers. The zero value is one with JetStream in files, and
// without fsync after each message: a process that is killed loses nothing that
// it wrote to the kernel.
type Config struct {
	SyncAlways bool   // fsync before each acknowledgement
	MaxPayload int    // bytes; default 8 MiB
	MaxStore   int64  // bytes of all streams together; default 1 TiB: streams reserve what they never use
	More       string // lines of a NATS configuration file, at its top level

	NATS []nats.Option // how the tests get in, if More lets not everybody in
}

// A Server is a NATS server with JetStream that listens on 127.0.0.1, or on an
// address of its own if it is one of a cluster with namespaces. It is for the
// goroutine of the test.
type Server struct {
	Name string
	URL  string // the same after a restart
	Dir  string // of JetStream; touch it only while the server does not run

	t       testing.TB
	args    []string
	options []nats.Option // of its own connections
	space   *space        // nil: it lives in the test's own network
	logFile string
	cmd     *exec.Cmd
	stdin   io.Closer // the server ends with it
	frozen  bool
	exited  chan struct{} // closed when cmd has ended
}

// Start starts a server and returns when JetStream answers.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	port := freePort(t)
	s := newServer(t, "alone", "127.0.0.1", port, cfg, "")
	s.start()
	s.ready()
	return s
}

func newServer(t testing.TB, name, host string, port int, cfg Config, more string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{
		Name: name, URL: fmt.Sprintf("nats://%s:%d", host, port), Dir: filepath.Join(dir, "data"),
		t: t, logFile: filepath.Join(dir, "log"), options: cfg.NATS,
	}
	sync := "2m" // quoted: 2m is a number to this parser
	if cfg.SyncAlways {
		sync = "always"
	}
	config := fmt.Sprintf("server_name: %s\nlisten: %q\nmax_payload: %d\njetstream {\n store_dir: %q\n sync_interval: %q\n max_file_store: %d\n max_memory_store: %d\n}\n%s\n%s\n",
		name, net.JoinHostPort(host, strconv.Itoa(port)), cmp.Or(cfg.MaxPayload, 8<<20), s.Dir, sync, cmp.Or(cfg.MaxStore, 1<<40), 1<<30, more, cfg.More)
	file := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"-c", file}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			b, _ := os.ReadFile(s.logFile)
			t.Logf("the last words of NATS server %s:\n%s", s.Name, b[max(0, len(b)-4096):])
		}
	})
	return s
}

// start starts the process; that it answers is another matter.
func (s *Server) start() {
	s.t.Helper()
	if s.cmd != nil {
		s.t.Fatalf("NATS server %s runs already", s.Name)
	}
	log, err := os.OpenFile(s.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close() // the process has its own
	cmd := exec.Command(program(s.t), s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes(s.space != nil)
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("starting NATS server %s: %v", s.Name, err)
	}
	s.cmd, s.frozen = cmd, false
	exited := make(chan struct{})
	s.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }() // ends with the process, which Kill waits for
	if s.space != nil {
		s.space.enter(s.t, cmd.Process.Pid)
	}
}

// ready waits until JetStream answers.
func (s *Server) ready() {
	s.t.Helper()
	Eventually(s.t, "NATS server "+s.Name+" answers", func() bool {
		select {
		case <-s.exited:
			s.t.Fatalf("NATS server %s has ended by itself", s.Name)
		default:
		}
		nc, err := nats.Connect(s.URL, append([]nats.Option{nats.Timeout(Patience), nats.NoReconnect()}, s.options...)...)
		if err != nil {
			return false
		}
		defer nc.Close()
		reply, err := nc.Request("$JS.API.INFO", nil, 5*time.Second)
		return err == nil && !bytes.Contains(reply.Data, []byte(`"error"`))
	})
}

// Kill ends the server as kill -9 does, if it runs, and waits for its end.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
	_ = s.stdin.Close()
	s.cmd = nil
}

// Stop ends the server as its operator does, in order, and waits for its end.
func (s *Server) Stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(Patience):
		s.t.Fatalf("NATS server %s does not end", s.Name)
	}
	s.Kill()
}

// Launch starts a server that does not run on what it left behind, and does not
// wait until it answers.
func (s *Server) Launch() {
	s.t.Helper()
	s.start()
}

// Restart kills the server if it runs, starts it on what it left behind, and
// returns when JetStream answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.start()
	s.ready()
}

// Freeze stops the server's time: its connections stay, and nobody answers.
func (s *Server) Freeze() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	s.frozen = true
	awaitStop(s.t, s.cmd.Process.Pid)
}

// Thaw lets it go on.
func (s *Server) Thaw() {
	s.t.Helper()
	s.signal(syscall.SIGCONT)
	s.frozen = false
}

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		s.t.Fatalf("NATS server %s does not run", s.Name)
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("%v to NATS server %s: %v", sig, s.Name, err)
	}
}

// Runs tells whether the server runs, frozen or not.
func (s *Server) Runs() bool { return s.cmd != nil }

// Copy kills the server, copies all that it has on disk, starts it again, and
// returns the copy, for SetBack.
func (s *Server) Copy() string {
	s.t.Helper()
	s.Kill()
	dir := s.CopyKilled()
	s.Restart()
	return dir
}

// CopyKilled copies what a server that does not run has on disk.
func (s *Server) CopyKilled() string {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.Dir)); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// SetBack lets a server that does not run have what the copy holds and nothing
// else, as a disk does that lost its tail. The copy can be used again.
func (s *Server) SetBack(dir string) {
	s.t.Helper()
	if s.cmd != nil {
		s.t.Fatalf("NATS server %s runs", s.Name)
	}
	if err := errors.Join(os.RemoveAll(s.Dir), os.CopyFS(s.Dir, os.DirFS(dir))); err != nil {
		s.t.Fatal(err)
	}
}

// Connect returns a connection that lasts until the end of the test, through
// restarts of the server.
func (s *Server) Connect(options ...nats.Option) *nats.Conn {
	s.t.Helper()
	return connect(s.t, s.URL, append(slices.Clone(s.options), options...))
}

func connect(t testing.TB, url string, options []nats.Option) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	Eventually(t, "a connection to "+url, func() bool { // the server gives a handshake two seconds
		var err error
		nc, err = nats.Connect(url, append([]nats.Option{
			nats.MaxReconnects(-1), nats.ReconnectWait(10 * time.Millisecond), nats.ReconnectJitter(0, 0), nats.Timeout(Patience),
		}, options...)...)
		if err != nil {
			t.Logf("connecting to %s: %v", url, err)
		}
		return err == nil
	})
	t.Cleanup(nc.Close)
	return nc
}

// JetStream is jetstream.New for tests: what it asks has Patience to be answered,
// unless the ctx says otherwise, and not five seconds.
func JetStream(t testing.TB, nc *nats.Conn, options ...jetstream.JetStreamOpt) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc, append([]jetstream.JetStreamOpt{jetstream.WithDefaultTimeout(Patience)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Eventually waits for what has no event to wait for.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(Patience); !holds(); {
		if time.Now().After(give) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// freePort returns a port that nobody listens on, below those from which the
// kernel takes the ports of outgoing connections, so that it is still free when
// the server is started, and started again.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if _, taken := ports.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

var ports sync.Map // those that freePort has given away in this process
