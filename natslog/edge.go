package natslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// ErrElsewhere: another edge has the partition of this user. It is web.ErrElsewhere,
// so that wsgateway answers 421, and ssegateway tells to come back.
var ErrElsewhere = web.ErrElsewhere

// EdgeConfig configures an Edge. The zero value is ready to use.
type EdgeConfig struct {
	// Partitions are those whose users this edge has; nil: all. More than four are not
	// meant, because P0 does not overtake across them.
	Partitions []int
	// Backlog is how many bytes of archives are kept in memory for sessions that
	// resume, over all partitions and lanes, where a block counts for 128 at least;
	// default 256 MiB, at least 1 MiB. What finds them again takes about a third more.
	Backlog int64
	// Gateway configures the Gateways, one for each partition. Its limits are those of
	// the edge and are divided among them: MaxSessions, Pushers, MaxPushers and
	// HistoryTotal. HistoryMessages has the default 4,096 here, or OutboxMessages if
	// that is more: that a session that ended as slow finds all that its outbox held
	// wants 8 × OutboxMessages. Log must be nil.
	Gateway notification.GatewayConfig
}

func (c *EdgeConfig) setDefaults(partitions int) error {
	if c.Partitions == nil {
		for i := range partitions {
			c.Partitions = append(c.Partitions, i)
		}
	}
	c.Partitions = slices.Clone(c.Partitions)
	slices.Sort(c.Partitions)
	c.Backlog = cmp.Or(c.Backlog, 256<<20)
	switch n := len(c.Partitions); {
	case n == 0:
		return fmt.Errorf("%w: Partitions is empty", notification.ErrInvalid)
	case c.Partitions[0] < 0 || c.Partitions[n-1] >= partitions:
		return fmt.Errorf("%w: Partitions %d are not within 0 and %d", notification.ErrInvalid, c.Partitions, partitions-1)
	case len(slices.Compact(slices.Clone(c.Partitions))) < n:
		return fmt.Errorf("%w: Partitions %d names one twice", notification.ErrInvalid, c.Partitions)
	case c.Backlog < 1<<20:
		return fmt.Errorf("%w: Backlog %d is under 1 MiB", notification.ErrInvalid, c.Backlog)
	case c.Gateway.Log != nil:
		return fmt.Errorf("%w: Gateway.Log is the edge's to set", notification.ErrInvalid)
	}
	return nil
}

// gateway returns the config of one of n Gateways.
func (c *EdgeConfig) gateway(n int) notification.GatewayConfig {
	g := c.Gateway
	g.HistoryMessages = cmp.Or(g.HistoryMessages, max(4096, g.OutboxMessages))
	// The Gateway's own defaults, which would be those of each of them.
	g.Pushers = cmp.Or(g.Pushers, 2*runtime.GOMAXPROCS(0))
	g.MaxPushers = cmp.Or(g.MaxPushers, max(65_536, g.Pushers))
	for _, limit := range []*int{&g.MaxSessions, &g.Pushers, &g.MaxPushers} {
		if *limit > 0 {
			*limit = (*limit + n - 1) / n
		}
	}
	g.HistoryTotal = cmp.Or(g.HistoryTotal, 1_000_000)
	g.HistoryTotal = (g.HistoryTotal + n - 1) / n
	return g
}

// An Edge serves the users of some partitions out of the log: clients are connected
// to it, through wsgateway or ssegateway, and may resume at any edge that has their
// partition, with a cursor from any other. NewEdge makes one; a process needs one.
//
// It keeps nothing but what it has read: one that is killed is replaced by another
// that warms up from the log. A slow edge is late, and holds up nobody else.
type Edge struct {
	// immutable after NewEdge
	id         string
	log        *Log
	life       *lifecycle
	partitions []*partition // by number
	ready      chan struct{}

	waiting atomic.Int32 // partitions that have never been warm

	mu   sync.Mutex
	down error // guarded by mu: what was lost on the way down
}

// NewEdge returns an Edge that takes sessions once it is warm: after Run was called
// and Ready is closed. It returns ErrInvalid if the ID is empty or too long or cfg is
// invalid; the text names the field. The ID is that of its Gateways, with the number
// of the partition behind a slash.
func (l *Log) NewEdge(id string, cfg EdgeConfig) (*Edge, error) {
	if id == "" {
		return nil, fmt.Errorf("%w: the edge's ID is empty", notification.ErrInvalid)
	}
	if err := cfg.setDefaults(l.cfg.Partitions); err != nil {
		return nil, err
	}
	e := &Edge{id: id, log: l, life: newLifecycle(), ready: make(chan struct{})}
	n := len(cfg.Partitions)
	e.waiting.Store(int32(n))
	for _, number := range cfg.Partitions {
		t, err := newPartition(l, number, cfg.Backlog/int64(n), id+"/"+strconv.Itoa(number), cfg.gateway(n))
		if err != nil {
			return nil, fmt.Errorf("EdgeConfig.Gateway: %w", err)
		}
		var once sync.Once
		t.ready = func() { once.Do(e.oneReady) }
		e.partitions = append(e.partitions, t)
	}
	return e, nil
}

func (e *Edge) oneReady() {
	if e.waiting.Add(-1) == 0 {
		close(e.ready)
	}
}

// Ready is closed when the edge has read enough of the log to take sessions, with
// cursors and without: only then open the door. When the log gets another epoch it
// is cold again for a moment, and RegisterSession returns ErrTryAgain.
func (e *Edge) Ready() <-chan struct{} { return e.ready }

// RegisterSession is Gateway.RegisterSession at the Gateway of the user's partition.
// Besides that it returns ErrElsewhere if the partition is not one of this edge, and
// ErrTryAgain if it is not warm. cfg.After may come from any edge of the log.
func (e *Edge) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	number := partitionOf(cfg.UserID, e.log.cfg.Partitions)
	i, ok := slices.BinarySearchFunc(e.partitions, number, func(t *partition, number int) int { return t.number - number })
	if !ok {
		return nil, fmt.Errorf("%w: partition %d", ErrElsewhere, number)
	}
	return e.partitions[i].registerSession(cfg)
}

// Run reads the log and serves the sessions until Shutdown, and returns nil then, or
// until ctx ends, and returns its cause, or until the Log is closed, and returns an
// error that wraps ErrClosed. In each case every session ends with ErrGatewayClosed:
// its client goes on at another edge. Outages of the servers are waited for. A second
// Run returns ErrRunning, one after the end ErrClosed.
func (e *Edge) Run(ctx context.Context) error {
	if err := e.life.start(); err != nil {
		return err
	}
	unwatch := context.AfterFunc(ctx, func() { e.life.cut(context.Cause(ctx)) })
	defer unwatch()
	// Reading ends first, then the Gateways have what there is of time to push what
	// they were fed.
	reading, stopReading := context.WithCancel(context.Background())
	defer stopReading()
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	var readers, gateways sync.WaitGroup
	for _, t := range e.partitions {
		readers.Go(func() { // ends when reading does; waited for below
			if err := t.read(reading); reading.Err() == nil {
				e.life.cut(err) // nothing more would come, and nobody would notice
			}
		})
		gateways.Go(func() { _ = t.gateway.Run(serving) }) // ends with Gateway.Shutdown, or when serving ends; waited for below
	}
	select {
	case <-e.life.draining:
	case <-e.life.stopping:
	}
	stopReading()
	readers.Wait()
	stopped := make(chan struct{})
	go func() { // ends with the drain, for which Run waits
		defer close(stopped)
		e.drain(serving)
	}()
	select {
	case <-stopped:
	case <-e.life.stopping:
		stopServing()
		<-stopped
	}
	e.life.settle() // a Shutdown whose ctx has ended does not wait for sinks
	gateways.Wait()
	return e.life.finish()
}

// drain shuts the Gateways down, and notes what they lose.
func (e *Edge) drain(ctx context.Context) {
	errs := make([]error, len(e.partitions))
	var all sync.WaitGroup
	for i, t := range e.partitions {
		all.Go(func() { errs[i] = t.gateway.Shutdown(ctx) }) // ends when ctx does; waited for below
	}
	all.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = errors.Join(errs...)
}

// Shutdown stops reading the log, pushes what was read, ends the sessions with
// ErrGatewayClosed and returns nil if the sinks have taken all of it. If ctx ends
// first, it stops at once and returns ctx's error; otherwise, if something was not
// taken, an error that wraps ErrClosed. What was not taken is in the log: clients
// get it at another edge. It may be called any number of times; before Run nothing
// was begun, and Run returns ErrClosed. From inside Push it would wait for itself.
func (e *Edge) Shutdown(ctx context.Context) error {
	if e.life.shut() {
		e.drain(ctx)
		e.life.settle()
		_ = e.life.finish()
	}
	if err := e.life.wait(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.down
}
