package notification

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair returns a Broker and a Gateway of it, both running. When the test is over
// and both have stopped, everything must add up and the Gateway must have let go
// of everything.
func pair(t testing.TB, bc BrokerConfig, gc GatewayConfig) (*Broker, *Gateway) {
	t.Helper()
	b, g := newBroker(t, bc), newGateway(t, "g", gc)
	t.Cleanup(func() {
		if !t.Failed() {
			conserved(t, b, g)
			holdsNothing(t, g)
		}
	})
	require.NoError(t, b.RegisterGateway(g))
	runBroker(t, b)
	runGateway(t, g)
	return b, g
}

// holdsNothing requires that a Gateway that has stopped holds nothing any more.
func holdsNothing(t testing.TB, g *Gateway) {
	t.Helper()
	st := g.Stats()
	require.Zero(t, st.Sessions, "Sessions")
	require.Empty(t, g.roster.byID)
	require.Equal(t, sessionList{}, g.roster.sessions)
	require.Empty(t, g.roster.walks, "walks")
	require.Nil(t, g.roster.first)
	for p := range g.pool.debt {
		require.Zero(t, g.pool.debt[p].Load(), "P%d: debt", p)
	}
	require.True(t, g.pool.quiet(), "nothing is due")
}

// A ledger is a Sink that keeps what it gets and insists on what Sink promises.
type ledger struct {
	t    testing.TB
	most int                                               // BatchSize
	hook func(ctx context.Context, batch []*Message) error // what Push does beside that; nil: nothing
	shut func(reason error)                                // what Close does beside that; nil: nothing

	mu      sync.Mutex
	inside  bool
	batches []batch
	closes  int
	reason  error
}

// A batch is what one Push took.
type batch struct {
	at  time.Time
	ids []string
	ms  []*Message
}

func newLedger(t testing.TB, g *Gateway) *ledger { return &ledger{t: t, most: g.cfg.BatchSize} }

func (s *ledger) Push(ctx context.Context, ms []*Message) error {
	s.mu.Lock()
	switch {
	case s.inside:
		s.t.Error("two calls of Push at once")
	case s.closes > 0:
		s.t.Error("Push after Close")
	case len(ms) == 0 || len(ms) > s.most:
		s.t.Errorf("a batch of %d, BatchSize is %d", len(ms), s.most)
	case !slices.IsSortedFunc(ms, func(a, b *Message) int { return int(a.priority) - int(b.priority) }):
		s.t.Error("a batch that is not in the order of its lanes")
	}
	s.inside = true
	s.mu.Unlock()
	returned := false
	var err error
	defer func() { // of a hook that panics or ends its goroutine too
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inside = false
		if returned && err == nil {
			s.batches = append(s.batches, batch{time.Now(), ids(ms), slices.Clone(ms)})
		}
	}()
	if s.hook != nil {
		err = s.hook(ctx, ms)
	}
	returned = true
	return err
}

func (s *ledger) Close(reason error) {
	s.mu.Lock()
	if s.inside {
		s.t.Error("Close during Push")
	}
	if s.closes++; s.closes > 1 {
		s.t.Error("a second Close")
	}
	if reason == nil {
		s.t.Error("Close without a reason")
	}
	s.reason = reason
	s.mu.Unlock()
	if s.shut != nil {
		s.shut(reason)
	}
}

// got returns the batches so far.
func (s *ledger) got() []batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.batches)
}

// ids returns the IDs in the order in which they were taken.
func (s *ledger) ids() (all []string) {
	for _, b := range s.got() {
		all = append(all, b.ids...)
	}
	return all
}

// take returns the IDs so far and forgets them.
func (s *ledger) take() (all []string) {
	all = s.ids()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = nil
	return all
}

// ended returns how often Close was called and the last reason.
func (s *ledger) ended() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closes, s.reason
}

// A gate holds Pushes up until it is opened, by the end of the test at the latest.
type gate struct {
	ch   chan struct{}
	open func()
}

func newGate(t testing.TB) gate {
	ch := make(chan struct{})
	g := gate{ch, sync.OnceFunc(func() { close(ch) })}
	t.Cleanup(g.open)
	return g
}

// pass waits until the gate is open or the session ends.
func (g gate) pass(ctx context.Context, _ []*Message) error {
	select {
	case <-g.ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deaf waits until the gate is open, and for nothing else.
func (g gate) deaf(context.Context, []*Message) error { <-g.ch; return nil }

// join registers a session of userID, whose sink is a ledger.
func join(t testing.TB, g *Gateway, id, userID string, change ...func(*SessionConfig, *ledger)) (*Session, *ledger) {
	t.Helper()
	sink := newLedger(t, g)
	cfg := SessionConfig{ID: id, UserID: userID, Sink: sink}
	for _, f := range change {
		f(&cfg, sink)
	}
	s, err := g.RegisterSession(cfg)
	require.NoError(t, err)
	return s, sink
}

// hooked is a change for join.
func hooked(hook func(ctx context.Context, batch []*Message) error) func(*SessionConfig, *ledger) {
	return func(_ *SessionConfig, sink *ledger) { sink.hook = hook }
}

// publishTo publishes notifications with these IDs.
func publishTo(t testing.TB, b *Broker, userID string, p Priority, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, b.Publish(note(id, userID, p)))
	}
}

// lane returns the counters of one lane.
func lane(g *Gateway, p Priority) GatewayLane {
	l := g.Stats().Lanes[p]
	l.Latency = Histogram{}
	return l
}

// waits returns how many messages wait for s, without those in a running Push.
func waits(s *Session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.total
}

// idleAndEmpty requires that s is idle and holds no buffers.
func idleAndEmpty(t testing.TB, s *Session) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Equal(t, sessionIdle, s.state)
	require.Zero(t, s.out.total)
	noChunks(t, &s.out)
}

// noChunks requires that the empty lanes of an outbox hold no chunk.
func noChunks(t testing.TB, o *outbox) {
	t.Helper()
	for p := range o.lanes {
		if l := &o.lanes[p]; l.n == 0 {
			require.Nil(t, l.first, "P%d", p)
			require.Nil(t, l.last, "P%d", p)
		}
	}
}

// pushers returns how many pushers there are.
func pushers(g *Gateway) int {
	g.pool.mu.Lock()
	defer g.pool.mu.Unlock()
	return g.pool.size
}

// discard shuts a Gateway down that never ran, whatever it holds.
func discard(t testing.TB, g *Gateway) {
	t.Helper()
	if err := g.Shutdown(context.Background()); !errors.Is(err, ErrClosed) {
		require.NoError(t, err)
	}
}

// logged makes a Logger and returns what it has logged so far.
func logged() (*slog.Logger, func() string) {
	w := new(lockedBuffer)
	return slog.New(slog.NewTextHandler(w, nil)), w.String
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *lockedBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *lockedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}
