// Package natslog keeps notifications in a log that many processes share: NATS
// JetStream. Several publishers write to it, several edges and readers read it,
// and what a Publish acknowledged survives the crash of any of them.
//
//	Publisher ──block──▶ stream of a lane and partition ──▶ Edge: Gateway ─▶ Session ─▶ Sink
//	Publisher ──block──▶          (JetStream)           ──▶ Reader: storage, audit
//
// [Open] connects to the servers and creates the streams, or verifies those that
// are there. A [Publisher] puts notifications into the log and says when each is
// in it. An [Edge] serves the users of some partitions, who may resume at any other
// edge. A [Reader] reads the log whole, from a place that its caller keeps.
//
// A process opens one Log, and makes of it what it needs: a Publisher where the
// matching engine is, an Edge where clients connect. Each has a Run, which blocks,
// owns its goroutines, and outlasts outages of NATS. On the way down the publishers
// are first, then come the transports, the edges and [Log.Close]. The package example
// is all of that in one process. Package embedded has the server too, and examples of
// a client that comes back and of a Reader.
//
// # Streams, partitions and lanes
//
// A user belongs to one of Config.Partitions, by a hash of UserID, and each
// partition has a stream for each of the four lanes. A notification for AllUsers
// has a copy in every partition. A message of a stream is a block: up to 1,024
// archives, end to end. BLOCK.md shows it byte by byte, so that programs in other
// languages can publish.
//
// # Ordering
//
// Per publisher, user and lane the order of the calls of Publish is the order in
// the log, and so at every edge. Across lanes there is none: P0 has streams and a
// connection of its own, so that it overtakes the rest.
//
// # Repeats
//
// A notification is in the log once per call of Publish that was acknowledged,
// perhaps oftener; readers recognize repeats by their ID. One is a repeat if its ID
// stands, repeat or not, among the Config.DedupSize entries before it in its stream.
// That depends on nothing but the log, so all readers decide alike. An ID that is
// published in two lanes is delivered twice.
package natslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
)

// The errors of this package, beside those of package notification.
var (
	// ErrConfig: a stream or a server is not what Config says; the text names the
	// field.
	ErrConfig = errors.New("natslog: not as configured")
	// ErrUncertain: the notification was on its way when the wait for it ended, and
	// may be in the log or not. Publish it again with the same ID.
	ErrUncertain = errors.New("natslog: uncertain")
)

const (
	maxPartitions = 64 // more would split the blocks, and what they save would be lost
	maxReplicas   = 5  // JetStream's own limit
	maxDedupSize  = 1 << 24

	// duplicates is how long a server remembers the Msg-Id of a block: JetStream's
	// own default. It must cover a resend after a reconnect, and nothing else.
	duplicates = 2 * time.Minute
)

// Config configures a Log. The zero value means a server at nats.DefaultURL and the
// defaults below. Everything but URL, NATS and Logger describes the streams and
// must be the same in all processes.
type Config struct {
	// URL is where the servers are, separated by commas; default nats.DefaultURL.
	URL string
	// NATS are options of the two connections: credentials, TLS, timeouts. The
	// Log itself sees to it that they reconnect for ever.
	NATS []nats.Option
	// Name begins the names of all streams and subjects; default "notification".
	// 1 to 32 of A-Z, a-z, 0-9, _ and -.
	Name string
	// Partitions is among how many partitions the users are divided; default 1, at
	// most 64. Another number needs another Name.
	Partitions int
	// Replicas is on how many servers each stream is kept; default 1, at most 5.
	Replicas int
	// Retention is how long a block is kept; default 15 min, at least 2 min.
	Retention time.Duration
	// MaxBytes is how large each stream may grow before its oldest blocks go, in
	// bytes; default 256 MiB, at least 4 MiB. The server reserves it: there are 4 ×
	// Partitions streams.
	MaxBytes int64
	// DedupSize is among how many entries before it in its stream a repeat is
	// recognized; default 65,536, at most 2^24.
	DedupSize int
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger

	duplicates time.Duration // for tests
	pace       pace          // for tests
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

func (c *Config) setDefaults() error {
	c.URL = cmp.Or(c.URL, nats.DefaultURL)
	c.Name = cmp.Or(c.Name, "notification")
	c.Partitions = cmp.Or(c.Partitions, 1)
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.Retention = cmp.Or(c.Retention, 15*time.Minute)
	c.MaxBytes = cmp.Or(c.MaxBytes, 256<<20)
	c.DedupSize = cmp.Or(c.DedupSize, 1<<16)
	c.duplicates = cmp.Or(c.duplicates, duplicates)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case !validName.MatchString(c.Name):
		return fmt.Errorf("%w: Name %q is not 1 to 32 of A-Z, a-z, 0-9, _ and -", notification.ErrInvalid, c.Name)
	case c.Partitions < 1 || c.Partitions > maxPartitions:
		return fmt.Errorf("%w: Partitions %d is not within 1 and %d", notification.ErrInvalid, c.Partitions, maxPartitions)
	case c.Replicas < 1 || c.Replicas > maxReplicas:
		return fmt.Errorf("%w: Replicas %d is not within 1 and %d", notification.ErrInvalid, c.Replicas, maxReplicas)
	case c.Retention < duplicates:
		return fmt.Errorf("%w: Retention %s is under %s", notification.ErrInvalid, c.Retention, duplicates)
	case c.MaxBytes < 4<<20:
		return fmt.Errorf("%w: MaxBytes %d is under 4 MiB", notification.ErrInvalid, c.MaxBytes)
	case c.DedupSize < 1 || c.DedupSize > maxDedupSize:
		return fmt.Errorf("%w: DedupSize %d is not within 1 and 2^24", notification.ErrInvalid, c.DedupSize)
	}
	return nil
}

// A Log is a connection to the log: two, because P0 has one of its own, so that it
// does not stand behind the blocks of other lanes. It is safe for concurrent use.
type Log struct {
	// immutable after Open
	cfg    Config
	urgent *conn // of P0
	bulk   *conn // of the other lanes
	epochs *epochs
}

// Open connects to the servers, and creates the streams or verifies those that are
// there; two processes may do so at once. ctx bounds that and nothing later. It
// returns ErrInvalid if cfg is invalid, ErrConfig if a stream or a server is not as
// cfg says, and otherwise the error of NATS or of ctx; what has been created stays.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg}
	l.epochs = newEpochs(l)
	var err error
	if l.urgent, err = dial(ctx, &l.cfg, "P0"); err == nil {
		l.bulk, err = dial(ctx, &l.cfg, "P1 to P3")
	}
	if err == nil {
		err = l.openStreams(ctx)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close closes the connections. Shut down first what uses them: a Publisher that
// still runs will not get anything acknowledged any more. It returns nil, and may be
// called any number of times.
func (l *Log) Close() error {
	for _, c := range []*conn{l.urgent, l.bulk} {
		if c != nil {
			c.nc.Close()
		}
	}
	return nil
}

// conn returns the connection of a lane.
func (l *Log) conn(lane notification.Priority) *conn {
	if lane == notification.P0 {
		return l.urgent
	}
	return l.bulk
}

// subject returns what the blocks of a lane and partition are published to.
func (l *Log) subject(lane notification.Priority, partition int) string {
	return l.cfg.Name + "." + lane.String() + "." + strconv.Itoa(partition)
}

// stream returns the name of the stream that keeps them.
func (l *Log) stream(lane notification.Priority, partition int) string {
	return l.cfg.Name + "_" + lane.String() + "_" + strconv.Itoa(partition)
}

// partitionOf returns the partition of a user: FNV-1a, 64 bit, over the bytes of
// the UserID, modulo the number of partitions. Load balancers compute it too.
func partitionOf(userID string, partitions int) int {
	return int(fnv1a(userID) % uint64(partitions))
}

const fnvPrime = 1099511628211

// fnv1a is FNV-1a, 64 bit. hash/fnv has it for bytes, and would allocate.
func fnv1a(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}

// A conn is one connection, that comes back for ever, and tells when it has.
type conn struct {
	// immutable after dial
	nc *nats.Conn
	js jetstream.JetStream

	mu    sync.Mutex
	back  chan struct{} // guarded by mu: closed, and replaced, with each reconnect
	moved time.Time     // guarded by mu: the last time of elsewhere
}

// dial connects.
func dial(ctx context.Context, cfg *Config, what string) (*conn, error) {
	c := &conn{back: make(chan struct{})}
	o := nats.GetDefaultOptions()
	for url := range strings.SplitSeq(cfg.URL, ",") {
		o.Servers = append(o.Servers, strings.TrimSpace(url))
	}
	o.Name = cfg.Name + " " + what
	o.ReconnectWait = 100 * time.Millisecond // a server is back in less than its default, 2 s
	o.PingInterval = 5 * time.Second         // and a dead one noticed before its default, 4 min
	o.FlusherTimeout = 10 * time.Second      // how long a write to a server that stands still may take
	for _, set := range cfg.NATS {
		if set == nil {
			continue
		}
		if err := set(&o); err != nil {
			return nil, fmt.Errorf("natslog: Config.NATS: %w", err)
		}
	}
	// What follows is not the caller's to choose. A Publisher keeps its blocks
	// itself and counts how often each was sent: what the client library kept and
	// sent later would be sent behind its back.
	o.AllowReconnect, o.MaxReconnect, o.ReconnectBufSize = true, -1, -1
	o.IgnoreAuthErrorAbort, o.RetryOnFailedConnect = true, false
	if o.AsyncErrorCB == nil { // its default writes to standard error
		o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) {
			cfg.Logger.Warn("NATS reports an error", "connection", o.Name, "error", err)
		}
	}
	then := o.ReconnectedCB
	o.ReconnectedCB = func(nc *nats.Conn) {
		c.mu.Lock()
		close(c.back)
		c.back = make(chan struct{})
		c.mu.Unlock()
		if then != nil {
			then(nc)
		}
	}
	type result struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with Connect, which has timeouts of its own; dial waits for it unless ctx ends
		nc, err := o.Connect()
		done <- result{nc, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("natslog: %w", r.err)
		}
		c.nc = r.nc
	case <-ctx.Done():
		go func() { // ends right after the other
			if r := <-done; r.nc != nil {
				r.nc.Close()
			}
		}()
		return nil, ctx.Err()
	}
	js, err := jetstream.New(c.nc)
	if err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("natslog: %w", err)
	}
	c.js = js
	return c, nil
}

// reconnect returns a channel that is closed when the connection has come back the
// next time. Who wants to miss none takes it before looking at the connection.
func (c *conn) reconnect() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.back
}

// elsewhere lets the connection go to another server, if one is known: this one may
// be cut off from the others, which its clients do not notice. Within pause it does
// so once, whoever asks.
func (c *conn) elsewhere(pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.nc.Servers()) > 1 && time.Since(c.moved) > pause {
		c.moved = time.Now()
		_ = c.nc.ForceReconnect() // fails if it has been closed
	}
}
