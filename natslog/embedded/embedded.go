// Package embedded runs a NATS server inside the process, with its streams in
// files: the log of a single machine in one binary.
//
//	server, err := embedded.Start(embedded.Options{Dir: "/var/lib/exchange"})
//	log, err := natslog.Open(ctx, natslog.Config{NATS: server.NATS()})
//	…
//	log.Close()
//	server.Shutdown(ctx)
//
// What the server acknowledged has been fsynced, unless Options.SyncInterval says
// otherwise, and is there when a process is started again on the same folder,
// however the last one ended.
//
// It listens nowhere unless it is told to: connections with the options that NATS
// returns are in memory, and cost neither a port nor a socket. With Listen, others
// share the log: publishers and edges in processes of their own. There is no
// password then unless Configure sets one.
//
// A folder belongs to one server at a time. A second one, of this process or
// another, is refused (not on the few systems that have neither flock nor the
// exclusive files of Windows); a folder on a network file system is not meant.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
)

// MaxPayload is the largest message of the server, in bytes, unless
// Options.Configure sets another: NATS' own default, 1 MiB, is less than an
// archive may have.
const MaxPayload = 8 << 20

// ErrLocked is returned by Start when another server has the folder.
var ErrLocked = errors.New("embedded: another server has this folder")

// Options configures a server.
type Options struct {
	// Dir is the folder of all that is stored. It is made if it is not there. Not
	// empty.
	Dir string
	// SyncInterval is how often the files are fsynced. 0, the default, is before
	// every acknowledgement: a power failure loses nothing that was acknowledged.
	// With an interval it loses up to that much; a process that is killed loses
	// nothing either way. Not negative.
	SyncInterval time.Duration
	// MaxStore bounds what all streams together reserve and use on disk, in bytes.
	// Default: three quarters of what is free. Not negative.
	MaxStore int64
	// Listen is the address, "host:port", at which others may connect. Empty, the
	// default: nowhere. Port 0 is any that is free; URL tells which.
	Listen string
	// Logger gets what the server has to say: its errors as Error, its warnings as
	// Warn, the rest, which is little, as Debug. nil discards it.
	Logger *slog.Logger
	// Configure, if not nil, may change anything of what the server is started
	// with: users and passwords, TLS, a cluster. It is called once, in Start, after
	// all that the other options say. What it breaks is its own affair.
	Configure func(*server.Options)
}

func (o Options) check() error {
	switch {
	case o.Dir == "":
		return fmt.Errorf("%w: Options.Dir is empty", notification.ErrInvalid)
	case o.SyncInterval < 0:
		return fmt.Errorf("%w: Options.SyncInterval %v is negative", notification.ErrInvalid, o.SyncInterval)
	case o.MaxStore < 0:
		return fmt.Errorf("%w: Options.MaxStore %d is negative", notification.ErrInvalid, o.MaxStore)
	}
	return nil
}

// A Server is a NATS server in this process. It is safe for concurrent use.
type Server struct {
	nats *server.Server // immutable after Start
	lock *os.File       // immutable after Start

	shutdown sync.Once
	stopped  chan struct{} // closed when nothing is left of it, and the folder is free
}

// Start starts a server and returns when it can be used: it blocks while what the
// folder holds is read, which takes the longer the more there is.
//
// The error is notification.ErrInvalid if o is invalid, with the name of the
// field, or ErrLocked if another server has the folder. Other errors are those of
// the system or of nats-server, which says a folder that cannot be written to, or
// an address that is in use.
func Start(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName:             "embedded",
		DontListen:             true,
		MaxPayload:             MaxPayload,
		NoSigs:                 true,
		JetStream:              true,
		StoreDir:               o.Dir,
		SyncInterval:           cmp.Or(o.SyncInterval, time.Minute),
		SyncAlways:             o.SyncInterval == 0,
		JetStreamMaxStore:      o.MaxStore,
		DisableJetStreamBanner: true,
	}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return nil, fmt.Errorf("%w: Options.Listen: %v", notification.ErrInvalid, err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%w: Options.Listen: port %q is not a number up to 65535", notification.ErrInvalid, port)
		}
		opts.DontListen, opts.Host, opts.Port = false, host, int(n)
		if n == 0 {
			opts.Port = server.RANDOM_PORT
		}
	}
	if o.Configure != nil {
		o.Configure(opts)
	}

	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s, err := start(opts, o.Logger)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("embedded: %w", err)
	}
	return &Server{nats: s, lock: lock, stopped: make(chan struct{})}, nil
}

func start(opts *server.Options, logger *slog.Logger) (*server.Server, error) {
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	said := &sayings{logger: logger}
	s.SetLoggerV2(said, false, false, false)
	s.Start() // returns when it has started, or has said what is fatal
	err = said.fatal()
	if err == nil && !s.ReadyForConnections(time.Minute) {
		err = errors.New("nats-server is not ready after a minute")
	}
	if err == nil && !s.JetStreamEnabled() {
		err = errors.New("nats-server runs without JetStream")
	}
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, err
	}
	return s, nil
}

// lockDir makes the folder the caller's alone, until the file is closed, or the
// process ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	name := filepath.Join(dir, "LOCK")
	f, err := openLocked(name)
	if errors.Is(err, errInUse) {
		by := ""
		if pid, _ := os.ReadFile(name); len(pid) > 0 {
			by = ", process " + strings.TrimSpace(string(pid))
		}
		return nil, fmt.Errorf("%w: %s%s", ErrLocked, dir, by)
	}
	if err != nil {
		return nil, fmt.Errorf("embedded: locking %s: %w", dir, err)
	}
	// For whoever looks; that it is written is of no importance.
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	return f, nil
}

// NATS returns the options with which nats.Connect connects to the server in
// memory, whatever URL it is given: natslog.Config.NATS. From it natslog also learns
// whether the server syncs.
func (s *Server) NATS() []nats.Option { return []nats.Option{nats.InProcessServer(inProcess{s.nats})} }

// inProcess connects in memory.
type inProcess struct{ *server.Server }

// SyncAlways reports whether what is acknowledged is on the disk.
func (p inProcess) SyncAlways() bool { return p.JetStreamConfig().SyncAlways }

// URL returns where others connect to, or "" if the server listens nowhere.
func (s *Server) URL() string {
	addr, ok := s.nats.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	return "nats://" + addr.String()
}

// Shutdown ends the server: connections are closed, files are written and the
// folder is free again. It blocks until that is done, or ctx is; then it goes on
// behind the caller's back, and the error is that of ctx. Close the Log before, or
// what it still has to write is refused. Calls after the first one wait as well.
func (s *Server) Shutdown(ctx context.Context) error {
	s.shutdown.Do(func() {
		go func() { // ends when the server has; who calls Shutdown waits for it
			s.nats.Shutdown()
			s.nats.WaitForShutdown()
			_ = s.lock.Close()
			close(s.stopped)
		}()
	})
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
