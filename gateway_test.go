package notification

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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
			desolate(t, g)
		}
	})
	require.NoError(t, b.RegisterGateway(g))
	runBroker(t, b)
	runGateway(t, g)
	for !running(b.life) || !running(g.life) {
		runtime.Gosched() // a test that ends at once must not overtake Run
	}
	return b, g
}

func running(l *lifecycle) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

// desolate requires that a Gateway that has stopped holds nothing any more.
func desolate(t testing.TB, g *Gateway) {
	t.Helper()
	st := g.Stats()
	require.Zero(t, st.Sessions, "Sessions")
	require.Empty(t, g.byID)
	require.Nil(t, g.first)
	require.Nil(t, g.last)
	require.Zero(t, g.behind.Load(), "messages of sessions that wait for a pusher")
	require.True(t, g.due.empty(), "nothing is due")
	require.Equal(t, [numCursors]*Session{}, g.cursors)
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

func TestNewGateway(t *testing.T) {
	t.Run("the zero configuration is that of the documentation", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		g.cfg.Logger = nil
		require.Equal(t, GatewayConfig{
			BatchSize: 100, MaxDelay: [NumPriorities]time.Duration{0, time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond},
			OutboxMessages: 1024, SlowPolicy: SlowClose, SessionTimeout: 5 * time.Minute, SweepInterval: 30 * time.Second,
			Pushers: 2 * runtime.GOMAXPROCS(0), MaxPushers: 65_536, InboxCapacity: 1024,
			HistoryTTL: g.cfg.HistoryTTL, HistoryTotal: g.cfg.HistoryTotal,
		}, g.cfg)
		require.Equal(t, "g", g.ID())
		for p, ch := range g.Inbox() {
			require.Equal(t, 1024, cap(ch), "lane %d", p)
		}
	})
	for field, cfg := range map[string]GatewayConfig{
		"BatchSize":          {BatchSize: -1},
		"OutboxMessages":     {BatchSize: 10, OutboxMessages: 9},
		"MaxSessions":        {MaxSessions: -1},
		"MaxSessionsPerUser": {MaxSessionsPerUser: -1},
		"Pushers":            {Pushers: -1},
		"MaxPushers":         {Pushers: 4, MaxPushers: 3},
		"InboxCapacity":      {InboxCapacity: -1},
		"SweepInterval":      {SweepInterval: -1},
		"SlowPolicy":         {SlowPolicy: SlowDropOldest + 1},
	} {
		t.Run("a bad "+field+" is ErrInvalid and named", func(t *testing.T) {
			_, err := NewGateway("g", cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, field)
		})
	}
	for _, id := range []string{"", strings.Repeat("x", 257)} {
		t.Run(fmt.Sprintf("an ID of %d bytes is ErrInvalid", len(id)), func(t *testing.T) {
			_, err := NewGateway(id, GatewayConfig{})
			require.ErrorIs(t, err, ErrInvalid)
		})
	}
}

func TestRegisterSession(t *testing.T) {
	t.Run("what cannot be is ErrInvalid, names the field and registers nothing", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		sink := SinkFunc(func(context.Context, []*Message) error { return nil })
		for field, cfg := range map[string]SessionConfig{
			"SessionConfig.ID is empty":            {UserID: "u", Sink: sink},
			"SessionConfig.ID has 257":             {ID: strings.Repeat("x", 257), UserID: "u", Sink: sink},
			"SessionConfig.UserID is empty":        {ID: "s", Sink: sink},
			"SessionConfig.UserID has 257":         {ID: "s", UserID: strings.Repeat("x", 257), Sink: sink},
			"SessionConfig.UserID is AllUsers":     {ID: "s", UserID: AllUsers, Sink: sink},
			"SessionConfig.Sink":                   {ID: "s", UserID: "u"},
			"SessionConfig.Channels[1]":            {ID: "s", UserID: "u", Sink: sink, Channels: []Channel{ChannelRisk, 6}},
			"SessionConfig.Channels[0] Channel(0)": {ID: "s", UserID: "u", Sink: sink, Channels: []Channel{0}},
		} {
			s, err := g.RegisterSession(cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, field)
			require.Nil(t, s)
		}
		require.Zero(t, g.Stats().Sessions)
		require.Zero(t, g.Stats().Users)
	})
	inBubble(t, "an ID that lives is ErrSessionExists and the first session lives on", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessionsPerUser: 1})
		s, sink := join(t, g, "s", "u")
		for _, user := range []string{"u", "another"} {
			_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: user, Sink: newLedger(t, g)})
			require.ErrorIs(t, err, ErrSessionExists)
		}
		require.NoError(t, s.Err())
		publishTo(t, b, "u", P0, "a")
		publishTo(t, b, "another", P0, "b")
		synctest.Wait()
		require.Equal(t, []string{"a"}, sink.ids())
		require.Equal(t, uint64(1), b.Stats().Lanes[P0].Unrouted, "the refused one left no route")
	})
	inBubble(t, "the ID of a session that has ended is free at once, even while its Push runs", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		held := newGate(t)
		first, old := join(t, g, "s", "u", hooked(held.deaf))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, first.Close())
		second, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.Equal(t, []string{"b"}, sink.ids())
		require.Equal(t, ErrSessionClosed, first.Err())
		require.NoError(t, second.Err())
		found, ok := g.Session("s")
		require.True(t, ok)
		require.Same(t, second, found)
		held.open()
		<-first.Done()
		require.Equal(t, []string{"a"}, old.ids())
		require.NoError(t, second.Err(), "the end of the first is not the end of the second")
	})
	inBubble(t, "one over MaxSessionsPerUser ends the user's oldest with ErrSessionReplaced", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessionsPerUser: 2})
		oldest, sinkA := join(t, g, "a", "u")
		older, _ := join(t, g, "b", "u")
		other, _ := join(t, g, "o", "other")
		newest, _ := join(t, g, "c", "u")
		<-oldest.Done()
		require.Equal(t, ErrSessionReplaced, oldest.Err())
		n, reason := sinkA.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionReplaced, reason)
		for _, s := range []*Session{older, other, newest} {
			require.NoError(t, s.Err())
		}
		require.Equal(t, uint64(1), g.Stats().Ended.Replaced)
		require.Equal(t, 3, g.Stats().Sessions)
		require.Equal(t, 2, g.Stats().Users)
		require.Equal(t, 2, b.Stats().Users)
	})
	inBubble(t, "over MaxSessions it is ErrTooManySessions, until one ends", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessions: 2})
		s, _ := join(t, g, "a", "u")
		join(t, g, "b", "v")
		_, err := g.RegisterSession(SessionConfig{ID: "c", UserID: "w", Sink: newLedger(t, g)})
		require.ErrorIs(t, err, ErrTooManySessions)
		require.Equal(t, 2, b.Stats().Users, "and no route is left")
		require.NoError(t, s.Close())
		join(t, g, "c", "w")
	})
	inBubble(t, "a user may replace his own session at MaxSessions", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessions: 1, MaxSessionsPerUser: 1})
		s, _ := join(t, g, "a", "u")
		join(t, g, "b", "u")
		require.Equal(t, ErrSessionReplaced, s.Err())
		require.Equal(t, 1, g.Stats().Sessions)
	})
	inBubble(t, "after Shutdown began it is ErrClosed", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		require.NoError(t, g.Shutdown(t.Context()))
		_, err := g.RegisterSession(SessionConfig{ID: "a", UserID: "u", Sink: newLedger(t, g)})
		require.ErrorIs(t, err, ErrClosed)
	})
	inBubble(t, "what is published after it returned arrives", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		for i := range 1000 {
			user := strconv.Itoa(i)
			_, sink := join(t, g, user, user)
			publishTo(t, b, user, Priority(i%4), "m"+user)
			synctest.Wait()
			require.Len(t, sink.ids(), 1)
		}
	})
}

func TestSessions(t *testing.T) {
	inBubble(t, "Session, Sessions and UserSessions tell of those that live, in the order of registration", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		list := func(seq func(yield func(*Session) bool)) (all []string) {
			for s := range seq {
				all = append(all, s.ID())
			}
			return all
		}
		for i, id := range series("s", 6) {
			join(t, g, id, []string{"u", "v"}[i%2])
		}
		require.Equal(t, series("s", 6), list(g.Sessions()))
		require.Equal(t, []string{"s1", "s3", "s5"}, list(g.UserSessions("u")))
		for _, id := range []string{"s1", "s6", "s4"} { // the first, the last, one between
			require.NoError(t, g.UnregisterSession(id))
			require.ErrorIs(t, g.UnregisterSession(id), ErrUnknownSession)
			_, ok := g.Session(id)
			require.False(t, ok)
		}
		require.Equal(t, []string{"s2", "s3", "s5"}, list(g.Sessions()))
		require.Equal(t, []string{"s2"}, list(g.UserSessions("v")))
		require.Empty(t, list(g.UserSessions("nobody")))
		for s := range g.Sessions() { // no lock is held
			require.NoError(t, s.Close())
			break
		}
		for s := range g.UserSessions("u") {
			require.NoError(t, s.Close())
		}
		require.Empty(t, list(g.Sessions()))
		require.Equal(t, uint64(6), g.Stats().Ended.Closed)
	})
}

func TestBatching(t *testing.T) {
	ms := time.Millisecond
	for _, row := range []struct {
		name     string
		given    [NumPriorities]time.Duration
		expected [NumPriorities]time.Duration
	}{
		{"by default", [NumPriorities]time.Duration{}, [NumPriorities]time.Duration{0, ms, 50 * ms, 100 * ms}},
		{"as configured", [NumPriorities]time.Duration{ms, 7 * ms, 3, time.Hour}, [NumPriorities]time.Duration{0, 7 * ms, 3, time.Hour}},
		{"negative is at once", lanes(-time.Second), [NumPriorities]time.Duration{}},
	} {
		for p, want := range row.expected {
			inBubble(t, fmt.Sprintf("a lone message waits MaxDelay exactly/%s/P%d %s", row.name, p, want), func(t *testing.T) {
				b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: row.given, SessionTimeout: -1})
				_, sink := join(t, g, "s", "u")
				for _, id := range series("m", 3) { // the second and third time too
					pass(17 * time.Microsecond)
					published := time.Now()
					publishTo(t, b, "u", Priority(p), id)
					if want > 0 {
						pass(want - 1)
						require.Empty(t, sink.ids(), "1 ns before")
						pass(1)
					}
					synctest.Wait()
					require.Len(t, sink.got(), 1)
					require.Equal(t, want, sink.got()[0].at.Sub(published))
					require.Equal(t, []string{id}, sink.take())
				}
			})
		}
	}
	inBubble(t, "what follows within MaxDelay shares the batch of the first", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P2, "a")
		pass(49 * ms)
		publishTo(t, b, "u", P2, "b")
		publishTo(t, b, "u", P3, "c")
		pass(ms)
		require.Len(t, sink.got(), 1)
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
	})
	inBubble(t, "the lane with the nearest deadline decides", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "c")
		pass(60 * ms)
		publishTo(t, b, "u", P2, "b")
		pass(39 * ms)
		require.Empty(t, sink.ids())
		pass(ms)
		require.Equal(t, []string{"b", "c"}, sink.ids(), "P3 has waited 100 ms, P2 40 ms")
	})
	inBubble(t, "a message that came after its lane had been emptied has a delay of its own", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P2, "a")
		pass(10 * ms)
		publishTo(t, b, "u", P0, "now")
		synctest.Wait()
		require.Equal(t, []string{"now", "a"}, sink.take())
		pass(10 * ms)
		publishTo(t, b, "u", P2, "b")
		pass(50*ms - 1)
		require.Empty(t, sink.take(), "neither at the deadline of the first nor before its own")
		pass(1)
		require.Equal(t, []string{"b"}, sink.take())
	})
	inBubble(t, "a session that was first in line is not once its delay begins anew", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, renewed := join(t, g, "a", "a")
		_, other := join(t, g, "b", "b")
		publishTo(t, b, "a", P2, "a1")
		pass(10 * ms)
		publishTo(t, b, "a", P0, "a2") // takes a1 along
		pass(5 * ms)
		publishTo(t, b, "b", P2, "b1")
		pass(5 * ms)
		publishTo(t, b, "a", P2, "a3")
		pass(45 * ms)
		require.Equal(t, []string{"b1"}, other.ids())
		require.NotContains(t, renewed.ids(), "a3")
		pass(5 * ms)
		require.Contains(t, renewed.ids(), "a3")
	})
	inBubble(t, "a P0 goes at once and takes along whatever waits", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		for p := P3; p > P0; p-- {
			publishTo(t, b, "u", p, p.String())
		}
		synctest.Wait() // a P0 would overtake them on the way as well
		publishTo(t, b, "u", P0, "P0")
		synctest.Wait()
		require.Equal(t, [][]string{{"P0", "P1", "P2", "P3"}}, [][]string{sink.got()[0].ids})
	})
	for _, size := range []int{1, 3, 10} {
		inBubble(t, fmt.Sprintf("BatchSize %d messages are due at once, one fewer are not", size), func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: size, MaxDelay: lanes(time.Hour), SessionTimeout: -1})
			_, sink := join(t, g, "s", "u")
			all := series("m", size)
			publishTo(t, b, "u", P3, all[:size-1]...)
			pass(time.Minute)
			require.Empty(t, sink.ids())
			publishTo(t, b, "u", P3, all[size-1])
			synctest.Wait()
			require.Len(t, sink.got(), 1)
			require.Equal(t, all, sink.ids())
		})
	}
	inBubble(t, "the size counts over all lanes", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3, MaxDelay: lanes(time.Hour), SessionTimeout: -1})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "c")
		publishTo(t, b, "u", P2, "b")
		publishTo(t, b, "u", P1, "a")
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
	})
	inBubble(t, "what a full batch leaves over waits no longer than MaxDelay", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, MaxDelay: lanes(50 * ms)})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "first")
		synctest.Wait()
		publishTo(t, b, "u", P1, series("m", 9)...) // while Push runs
		pass(ms)
		held.open()
		synctest.Wait()
		require.Equal(t, append([]string{"first"}, series("m", 8)...), sink.ids(), "two full ones, and one is left")
		pass(49 * ms)
		require.Equal(t, append([]string{"first"}, series("m", 9)...), sink.ids())
	})
	inBubble(t, "what came while Push ran and is overdue goes when it returns", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "u", P3, "b")
		pass(time.Second)
		held.open()
		synctest.Wait()
		require.Equal(t, []string{"a", "b"}, sink.ids())
	})
	inBubble(t, "size and time at the same instant: each message once, and no timer left behind", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3})
		s, sink := join(t, g, "s", "u")
		for i := range 500 {
			p := Priority(1 + random.IntN(3))
			all := series(fmt.Sprintf("m%d-", i), 3+random.IntN(3))
			publishTo(t, b, "u", p, all[0], all[1])
			nap(g.cfg.MaxDelay[p]) // without a Wait: the timer of the reader fires now
			publishTo(t, b, "u", p, all[2:]...)
			pass(100 * ms)
			require.Equal(t, all, sink.take())
		}
		for p := range g.delays {
			require.Nil(t, g.delays[p].first, "the list of lane %d", p)
		}
		require.Equal(t, int64(math.MaxInt64), g.nextWatch(g.cfg.MaxPushers), "nothing to look after")
		require.False(t, s.queued || s.running)
		require.Equal(t, outbox{}, emptied(s), "an idle session holds no buffers")
	})
	inBubble(t, "Batches and Latency tell of each Push and each message", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		join(t, g, "s", "u")
		publishTo(t, b, "u", P2, series("m", 250)...)
		pass(50 * ms)
		st := g.Stats()
		require.Equal(t, uint64(3), st.Batches)
		require.Equal(t, uint64(250), st.Lanes[P2].Latency.Count())
		require.Equal(t, 50*ms, st.Lanes[P2].Latency.Max())
	})
}

// waits returns how many messages wait for s, those in a running Push left out.
func waits(s *Session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.total
}

// emptied returns the outbox of s with the places in chunks that it no longer
// has set to zero.
func emptied(s *Session) outbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.out
	for p := range o.lanes {
		o.lanes[p].read, o.lanes[p].write = 0, 0
	}
	return o
}

func TestBatchOrder(t *testing.T) {
	for _, size := range []int{1, 3, 10, 100} {
		inBubble(t, fmt.Sprintf("P0 first, publish order in each lane, one slot in ten for each that waits/BatchSize %d", size), func(t *testing.T) {
			const each = 200
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: size, OutboxMessages: 4*each + 1})
			_, sink := join(t, g, "s", "u", hooked(held.pass))
			publishTo(t, b, "u", P0, "first")
			synctest.Wait()
			for p := P3; p < NumPriorities; p-- {
				publishTo(t, b, "u", p, series(p.String()+"-", each)...)
			}
			pass(time.Second)
			held.open()
			pass(time.Second)
			got := sink.ids()[1:]
			require.Len(t, got, 4*each)
			var left [NumPriorities]int
			for p := range left {
				left[p] = each
			}
			var seen []Priority
			for _, id := range got {
				var p Priority
				var n int
				_, err := fmt.Sscanf(id, "P%d-%d", &p, &n)
				require.NoError(t, err)
				require.Equal(t, each-left[p]+1, n, "%s: the order of lane %s", id, p)
				left[p]--
				seen = append(seen, p)
			}
			// The slots are counted in the order in which they are given away: a
			// batch is sorted, so only its bounds are windows of that order.
			window := max(10, size)
			if window%size != 0 {
				window = 10 * size
			}
			var gone [NumPriorities]int
			for at := 0; at+window <= len(seen); at += window {
				var counts [NumPriorities]int
				for _, p := range seen[at : at+window] {
					counts[p]++
				}
				for p := range counts {
					if gone[p] += counts[p]; gone[p] < each {
						require.GreaterOrEqual(t, counts[p], window/10, "lane %d in slots %d to %d: %v", p, at, at+window, counts)
					}
				}
				if gone[P0] < each {
					require.Equal(t, window-3*(window/10), counts[P0], "the rest is P0's: %v", counts)
				}
			}
		})
	}
	inBubble(t, "due sessions with a P0 first, the others in the order in which they came due", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		join(t, g, "held", "held", hooked(held.pass))
		publishTo(t, b, "held", P0, "x")
		synctest.Wait()
		var mu sync.Mutex
		var order []string
		for _, user := range []string{"a", "b", "c", "d", "e"} {
			join(t, g, user, user, hooked(func(_ context.Context, ms []*Message) error {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, user+":"+strings.Join(ids(ms), ","))
				return nil
			}))
			publishTo(t, b, user, P1, user+"1")
			pass(2 * time.Millisecond)
		}
		publishTo(t, b, "d", P0, "d0") // is due already
		publishTo(t, b, "e", P0, "e0")
		join(t, g, "f", "f", hooked(func(context.Context, []*Message) error {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, "f")
			return nil
		}))
		publishTo(t, b, "f", P0, "f0")
		synctest.Wait()
		held.open()
		synctest.Wait()
		require.Equal(t, []string{"d:d0,d1", "e:e0,e1", "f", "a:a1", "b:b1", "c:c1"}, order)
	})
}

func TestSlowSessions(t *testing.T) {
	t.Run("5,000 messages at once for a session whose sink is idle and quick are all delivered", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			s, sink := join(t, g, "s", "u")
			for p := P0; p <= P3; p++ {
				for range 10 {
					all := series(fmt.Sprintf("m%d-", lane(g, p).Taken), 5000)
					publishTo(t, b, "u", p, all...)
					eventually(t, "all 5,000", func() bool { return lane(g, p).Pending == 0 && len(sink.ids()) == 5000 || s.Err() != nil })
					require.NoError(t, s.Err())
					require.Equal(t, all, sink.take())
				}
			}
		})
	})
	t.Run("a sink that blocks in real time is found to be slow, though nothing more comes for it", func(t *testing.T) {
		noLeaks(t)
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 7})
		s, _ := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "taken")
		eventually(t, "Push", func() bool { return g.Stats().Lanes[P0].Latency.Count() == 1 })
		publishTo(t, b, "u", P0, series("m", 8)...)
		<-s.Done()
		require.Equal(t, ErrSlowConsumer, s.Err())
	})
	inBubble(t, "while Push runs OutboxMessages may wait, with one more it is ErrSlowConsumer", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 7})
		s, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "taken")
		synctest.Wait()
		for i, id := range series("m", 7) {
			publishTo(t, b, "u", Priority(i%4), id)
		}
		pass(time.Minute)
		require.NoError(t, s.Err())
		publishTo(t, b, "u", P3, "too much")
		synctest.Wait()
		require.Equal(t, ErrSlowConsumer, s.Err())
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSlowConsumer, reason)
		require.Equal(t, uint64(1), g.Stats().Ended.Slow)
		var dropped uint64
		for p := P0; p <= P3; p++ {
			dropped += lane(g, p).DroppedEnded
		}
		require.Equal(t, uint64(9), dropped, "those that waited, and the one in the Push that failed")
		require.Equal(t, outbox{}, emptied(s))
	})
	inBubble(t, "what waited when Push began is no fault of the sink's", func(t *testing.T) {
		blocker, held := newGate(t), newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 8, Pushers: 1, MaxPushers: 1})
		join(t, g, "blocker", "blocker", hooked(blocker.pass))
		s, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "blocker", P0, "x")
		synctest.Wait()
		publishTo(t, b, "u", P0, series("a", 40)...)
		synctest.Wait()
		blocker.open()
		synctest.Wait() // Push has 4, 36 wait
		publishTo(t, b, "u", P0, series("b", 8)...)
		synctest.Wait()
		require.NoError(t, s.Err(), "eight came during Push")
		held.open()
		synctest.Wait()
		require.Equal(t, append(series("a", 40), series("b", 8)...), sink.ids())
	})
	for _, policy := range []SlowPolicy{SlowClose, SlowDropOldest} {
		inBubble(t, fmt.Sprintf("while none runs eight times OutboxMessages may wait/policy %d", policy), func(t *testing.T) {
			blocker := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 7, SlowPolicy: policy, Pushers: 1, MaxPushers: 1})
			join(t, g, "blocker", "blocker", hooked(blocker.pass))
			publishTo(t, b, "blocker", P0, "x")
			synctest.Wait()
			s, sink := join(t, g, "s", "u")
			all := series("m", 8*7)
			publishTo(t, b, "u", P1, all...)
			pass(time.Minute)
			require.NoError(t, s.Err())
			require.Zero(t, s.Dropped())
			publishTo(t, b, "u", P1, "one more")
			synctest.Wait()
			if policy == SlowClose {
				require.Equal(t, ErrSlowConsumer, s.Err())
				blocker.open()
				<-s.Done()
				require.Empty(t, sink.ids())
				return
			}
			require.Equal(t, uint64(1), s.Dropped())
			blocker.open()
			synctest.Wait()
			require.Equal(t, append(all[1:], "one more"), sink.ids(), "without the oldest")
		})
	}
	inBubble(t, "SlowDropOldest drops the oldest of the lowest lane, and counts", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		for round := range 50 {
			const bound = 6
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 2, OutboxMessages: bound, SlowPolicy: SlowDropOldest})
			s, sink := join(t, g, "s", "u", hooked(held.pass))
			publishTo(t, b, "u", P0, "first")
			synctest.Wait()
			var model [NumPriorities][]string
			var dropped [NumPriorities]uint64
			for i := range 30 {
				p := Priority(random.IntN(4))
				id := fmt.Sprintf("%d-%d", round, i)
				publishTo(t, b, "u", p, id)
				synctest.Wait()
				model[p] = append(model[p], id)
				if i >= bound {
					low := P3
					for len(model[low]) == 0 {
						low--
					}
					model[low] = model[low][1:]
					dropped[low]++
				}
			}
			require.NoError(t, s.Err())
			require.Equal(t, uint64(30-bound), s.Dropped())
			for p := range dropped {
				require.Equal(t, dropped[p], lane(g, Priority(p)).DroppedSlow)
			}
			held.open()
			pass(time.Second)
			got := sink.ids()[1:]
			require.Len(t, got, bound)
			for p := range model {
				require.Equal(t, append([]string{}, model[p]...), slices.DeleteFunc(slices.Clone(got), func(id string) bool { return !slices.Contains(model[p], id) }), "lane %d", p)
			}
			drain(t, b)
			require.ErrorIs(t, g.Shutdown(t.Context()), nil)
		}
	})
	inBubble(t, "what waits for a pusher and is dropped does not count as waiting", func(t *testing.T) {
		blocker := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 2, OutboxMessages: 2, SlowPolicy: SlowDropOldest, Pushers: 1, MaxPushers: 1})
		join(t, g, "blocker", "blocker", hooked(blocker.pass))
		publishTo(t, b, "blocker", P0, "x")
		synctest.Wait()
		s, _ := join(t, g, "s", "u")
		publishTo(t, b, "u", P1, series("m", 50)...)
		pass(time.Second) // the reader stops for a while when so much waits
		require.Equal(t, uint64(34), s.Dropped())
		require.Equal(t, int64(16), g.behind.Load())
		require.NoError(t, s.Close())
		require.Zero(t, g.behind.Load())
		blocker.open()
	})
}

func TestStandIns(t *testing.T) {
	const others = 100
	for _, row := range []struct {
		name  string
		stuck int
		deaf  bool
	}{
		{"one sink that never returns", 1, false},
		{"a thousand sinks that never return", 1000, false},
		{"a thousand sinks that ignore the end of ctx as well", 1000, true},
	} {
		inBubble(t, row.name+": the others miss nothing and are not slower", func(t *testing.T) {
			before := runtime.NumGoroutine()
			held := newGate(t)
			hook := held.pass
			if row.deaf {
				hook = held.deaf
			}
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, OutboxMessages: 8, Pushers: 4, SessionTimeout: -1})
			synctest.Wait()
			idle := runtime.NumGoroutine()
			var stuck, well []*Session
			var closed, sinks []*ledger
			for i := range row.stuck {
				s, sink := join(t, g, fmt.Sprintf("stuck%d", i), fmt.Sprintf("stuck%d", i), hooked(hook))
				stuck, closed = append(stuck, s), append(closed, sink)
			}
			for i := range others {
				s, sink := join(t, g, fmt.Sprintf("well%d", i), fmt.Sprintf("well%d", i))
				well, sinks = append(well, s), append(sinks, sink)
			}
			require.NoError(t, b.Publish(notice("held up", P1))) // to all, the stuck ones first
			published := time.Now()
			publishTo(t, b, "well0", P0, "urgent")
			pass(time.Millisecond)
			require.Contains(t, sinks[0].ids(), "urgent")
			require.LessOrEqual(t, sinks[0].got()[0].at.Sub(published), time.Millisecond, "a P0 while everybody is blocked")
			pass(20 * time.Millisecond) // ten doublings
			for _, sink := range sinks {
				require.Contains(t, sink.take(), "held up")
			}
			require.GreaterOrEqual(t, g.due.size(), row.stuck, "each stuck one has a pusher")
			for i := range 11 { // 4 fill the Push or its batch, 8 the outbox
				for j := range stuck {
					publishTo(t, b, stuck[j].UserID(), P1, fmt.Sprintf("stuck%d-%d", j, i))
				}
				synctest.Wait()
				for j := range well {
					publishTo(t, b, well[j].UserID(), P1, fmt.Sprintf("well%d-%d", j, i))
					publishTo(t, b, well[j].UserID(), P0, fmt.Sprintf("well%d-%d!", j, i))
				}
				sent := time.Now()
				pass(2 * time.Millisecond)
				for j, sink := range sinks {
					for _, batch := range sink.got() { // as if nobody were stuck
						if strings.HasSuffix(batch.ids[0], "!") {
							require.Zero(t, batch.at.Sub(sent))
						} else {
							require.Equal(t, time.Millisecond, batch.at.Sub(sent))
						}
					}
					require.ElementsMatch(t, []string{fmt.Sprintf("well%d-%d", j, i), fmt.Sprintf("well%d-%d!", j, i)}, sink.take())
				}
				for _, s := range stuck {
					require.LessOrEqual(t, waits(s), 8, "OutboxMessages")
				}
			}
			for i, s := range stuck {
				require.Equal(t, ErrSlowConsumer, s.Err())
				_, there := g.Session(s.ID())
				require.False(t, there)
				n, _ := closed[i].ended()
				require.Equal(t, !row.deaf, n == 1, "Close comes after Push")
			}
			for _, s := range well {
				require.NoError(t, s.Err())
			}
			pass(2 * time.Second)
			if row.deaf {
				require.Equal(t, uint64(row.stuck), g.Stats().Hung)
			} else {
				require.Zero(t, g.Stats().Hung)
			}
			held.open()
			for i, s := range stuck {
				<-s.Done()
				_, reason := closed[i].ended()
				require.Equal(t, ErrSlowConsumer, reason)
			}
			synctest.Wait()
			require.Equal(t, 4, g.due.size(), "the stand-ins have gone")
			require.LessOrEqual(t, runtime.NumGoroutine(), idle, "the stand-ins have gone; others of the process may have, too")
			require.Greater(t, idle, before)
			for i := range others {
				publishTo(t, b, well[i].UserID(), P0, fmt.Sprintf("after%d", i))
			}
			synctest.Wait()
			for i, sink := range sinks {
				require.Equal(t, []string{fmt.Sprintf("after%d", i)}, sink.take())
			}
		})
	}
	inBubble(t, "MarketHalt to 10,000 sessions while every pusher is blocked is delivered within milliseconds", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for i := range g.cfg.Pushers {
			id := fmt.Sprintf("stuck%d", i)
			join(t, g, id, id, hooked(held.pass))
			publishTo(t, b, id, P0, id)
		}
		synctest.Wait()
		var most, got atomic.Int64
		var last atomic.Int64
		sink := SinkFunc(func(context.Context, []*Message) error {
			got.Add(1)
			last.Store(time.Now().UnixNano())
			most.Store(max(most.Load(), int64(g.due.size())))
			return nil
		})
		for i := range 10_000 {
			id := strconv.Itoa(i)
			_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: sink})
			require.NoError(t, err)
		}
		published := time.Now().UnixNano()
		require.NoError(t, b.Publish(&Notification{ID: "halt", UserID: AllUsers, Priority: P0, Payload: MarketHalt{InstrumentID: "cu2512"}}))
		pass(time.Second)
		require.Equal(t, int64(10_000), got.Load())
		require.LessOrEqual(t, time.Duration(last.Load()-published), 2*time.Millisecond)
		require.LessOrEqual(t, most.Load(), int64(4*g.cfg.Pushers), "a few that are not blocked do it all")
		held.open()
	})
	t.Run("MarketHalt to 10,000 sessions while every pusher is busy but not blocked starts no thousand goroutines", func(t *testing.T) {
		for _, procs := range []int{1, 2} {
			t.Run(fmt.Sprintf("GOMAXPROCS %d", procs), func(t *testing.T) {
				before := runtime.GOMAXPROCS(procs)
				defer runtime.GOMAXPROCS(before)
				b, g := pair(t, BrokerConfig{}, GatewayConfig{})
				var most atomic.Int64
				sink := SinkFunc(func(context.Context, []*Message) error {
					for i := range sized(20_000, 2_000) {
						most.CompareAndSwap(-int64(i)-1, 0) // work, not waiting
					}
					if n := int64(g.due.size()); n > most.Load() {
						most.Store(n)
					}
					return nil
				})
				n := sized(10_000, 3_000)
				for i := range n {
					id := strconv.Itoa(i)
					_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: sink})
					require.NoError(t, err)
				}
				require.NoError(t, b.Publish(notice("busy", P1)))
				require.NoError(t, b.Publish(&Notification{ID: "halt", UserID: AllUsers, Priority: P0, Payload: MarketHalt{InstrumentID: "cu2512"}}))
				eventually(t, "all have both", func() bool {
					return lane(g, P0).Taken == uint64(n) && lane(g, P1).Taken == uint64(n)
				})
				require.Less(t, most.Load(), int64(1000))
				t.Logf("at most %d pushers, of which %d are always there", most.Load(), g.cfg.Pushers)
			})
		}
	})
	inBubble(t, "MaxPushers is the most there are, and what waits goes on when one returns", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 2, MaxPushers: 5})
		for _, id := range series("s", 5) {
			join(t, g, id, id, hooked(held.pass))
			publishTo(t, b, id, P0, id)
		}
		_, sink := join(t, g, "s", "u")
		pass(time.Second)
		publishTo(t, b, "u", P0, "a")
		pass(time.Second)
		require.Equal(t, 5, g.due.size())
		require.Empty(t, sink.ids())
		s, _ := g.Session("s1")
		require.NoError(t, s.Close()) // its Push returns
		synctest.Wait()
		require.Equal(t, []string{"a"}, sink.ids())
		held.open()
		pass(time.Second)
		require.Equal(t, 2, g.due.size())
	})
	inBubble(t, "the only pusher there may be hangs: after a second it is left behind and another takes its place", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		s, _ := join(t, g, "hangs", "hangs", hooked(held.deaf))
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "hangs", P0, "x")
		synctest.Wait()
		publishTo(t, b, "u", P0, "a")
		pass(time.Minute)
		require.Empty(t, sink.ids(), "it may block for ever, as long as its session lives")
		require.NoError(t, s.Close())
		publishTo(t, b, "u", P0, "b") // only so that the reader looks
		pass(time.Second - 1)
		require.Zero(t, g.Stats().Hung)
		pass(2 * time.Millisecond)
		require.Equal(t, uint64(1), g.Stats().Hung)
		require.Equal(t, []string{"a", "b"}, sink.ids())
		held.open()
		<-s.Done()
		publishTo(t, b, "u", P0, "c")
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
		require.Equal(t, 1, g.due.size())
	})
	inBubble(t, "a hung one is found without any traffic", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1, SweepInterval: time.Hour})
		s, _ := join(t, g, "s", "u", hooked(held.deaf))
		publishTo(t, b, "u", P0, "x")
		synctest.Wait()
		require.NoError(t, s.Close())
		pass(time.Second)
		require.Equal(t, uint64(1), g.Stats().Hung)
		held.open()
		<-s.Done()
	})
}

func TestBackpressure(t *testing.T) {
	t.Run("with the pushers far behind only P0 is read, until half has gone", func(t *testing.T) {
		// By hand: no Run, one message at a time, pushers of which none is idle.
		g := newGateway(t, "g", GatewayConfig{OutboxMessages: 100, InboxCapacity: 2000, MaxDelay: lanes(time.Duration(-1))})
		g.due.open(g.cfg.Pushers)
		for _, user := range series("u", 20) {
			join(t, g, user, user)
		}
		for i := range 1000 {
			g.inbox[P1] <- NewMessage(note(fmt.Sprintf("m%d", i), fmt.Sprintf("u%d", i%20+1), P1))
		}
		for g.round() {
		}
		require.InDelta(t, 400, int(g.behind.Load()), sliceSize, "four times OutboxMessages, seen once in a slice")
		read := 1000 - len(g.inbox[P1])
		g.inbox[P0] <- NewMessage(note("urgent", "u7", P0))
		require.True(t, g.round())
		require.Empty(t, g.inbox[P0])
		require.Equal(t, read, 1000-len(g.inbox[P1]))

		p := &pusher{g: g, shard: &g.shards[0], buf: make([]*Message, g.cfg.BatchSize)}
		var served *Session
		for g.behind.Load() > 200 {
			require.False(t, g.round(), "still more than half")
			served, _ = g.due.next(served, g.cfg.Pushers)
			p.serve(served)
		}
		require.Len(t, g.wake, 1, "the pusher that got it below half roused the reader")
		require.True(t, g.round())
		require.Less(t, len(g.inbox[P1]), 1000-read)
		require.NoError(t, ended(g))
	})
	t.Run("each lane has its turn and P0 is looked at before every message", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{OutboxMessages: 10_000})
		_, sink := join(t, g, "s", "u")
		for p := P1; p <= P3; p++ {
			for i := range 500 {
				g.inbox[p] <- NewMessage(note(fmt.Sprintf("%s-%d", p, i), "u", p))
			}
		}
		for round := 1; round <= 3; round++ {
			require.True(t, g.round())
			for p := P1; p <= P3; p++ {
				require.Equal(t, uint64(round*sliceSize), g.received[p].value(), "lane %s", p)
			}
		}
		for i := range 10 {
			g.inbox[P0] <- NewMessage(note(fmt.Sprintf("P0-%d", i), "u", P0))
		}
		g.urgent()
		require.Equal(t, uint64(10), g.received[P0].value())
		require.Empty(t, sink.ids())
		require.NoError(t, ended(g))
	})
	t.Run("a P0 that arrives in the middle of another lane's turn is read before its next message", func(t *testing.T) {
		var g *Gateway
		// A session that ends is logged by the reader: the only moment at which
		// a test can be sure to be in the middle of something.
		log := slog.New(slog.NewTextHandler(writerFunc(func([]byte) {
			if len(g.inbox[P0]) == 0 && g.received[P0].value() == 0 {
				g.inbox[P0] <- NewMessage(note("urgent", "u", P0))
			}
		}), &slog.HandlerOptions{Level: slog.LevelDebug}))
		g = newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 1, Logger: log})
		join(t, g, "slow", "slow")
		for i := range 60 {
			g.inbox[P1] <- NewMessage(note(strconv.Itoa(i), "slow", P1)) // the ninth is too much
		}
		require.True(t, g.round())
		require.Equal(t, uint64(1), g.Stats().Ended.Slow)
		require.Equal(t, uint64(60), g.received[P1].value())
		require.Equal(t, uint64(1), g.received[P0].value(), "in the same turn")
		require.NoError(t, ended(g))
	})
	t.Run("a P0 is read between two slices of a big fan-out", func(t *testing.T) {
		for _, all := range []bool{false, true} {
			g := newGateway(t, "g", GatewayConfig{InboxCapacity: 10})
			nop := SinkFunc(func(context.Context, []*Message) error { return nil })
			n := sized(10_000, 2_000) // to register them takes the square of it
			for i := range n {
				_, err := g.RegisterSession(SessionConfig{ID: strconv.Itoa(i), UserID: "big", Sink: nop})
				require.NoError(t, err)
			}
			join(t, g, "single", "single")
			if all {
				g.inbox[P1] <- NewMessage(notice("to all", P1))
			} else {
				g.inbox[P1] <- NewMessage(note("to one", "big", P1))
			}
			require.True(t, g.take(P1))
			require.Equal(t, uint64(sliceSize), g.enqueued[P1].value())
			g.inbox[P0] <- NewMessage(note("urgent", "single", P0))
			g.inbox[P2] <- NewMessage(note("other lane", "single", P2))
			require.True(t, g.round())
			require.Equal(t, uint64(1), g.enqueued[P0].value(), "delivered")
			require.Equal(t, uint64(1), g.enqueued[P2].value(), "another lane goes on too")
			require.LessOrEqual(t, g.enqueued[P1].value(), uint64(3*sliceSize), "and the fan-out is far from its end")
			g.inbox[P1] <- NewMessage(note("behind it", "single", P1))
			for g.round() {
			}
			want := uint64(n)
			if all {
				want++
			}
			require.Equal(t, want+1, g.enqueued[P1].value(), "each session once")
			require.NoError(t, ended(g))
		}
	})
}

// A writerFunc is an io.Writer.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// ended shuts a Gateway down that never ran, whatever it holds.
func ended(g *Gateway) error {
	if err := g.Shutdown(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

func TestFanOut(t *testing.T) {
	inBubble(t, "AllUsers reaches every session whose filter admits it, in each lane once", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var sinks []*ledger
		for i := range 300 {
			_, sink := join(t, g, strconv.Itoa(i), fmt.Sprintf("u%d", i%200), func(cfg *SessionConfig, _ *ledger) {
				if i%3 == 0 {
					cfg.Channels = []Channel{ChannelTrade}
				}
			})
			sinks = append(sinks, sink)
		}
		for p := P0; p <= P3; p++ {
			require.NoError(t, b.Publish(notice(p.String(), p)))
		}
		pass(time.Second)
		for i, sink := range sinks {
			if i%3 == 0 {
				require.Empty(t, sink.ids())
			} else {
				require.Equal(t, []string{"P0", "P1", "P2", "P3"}, sink.ids())
			}
		}
		for p := P0; p <= P3; p++ {
			require.Equal(t, GatewayLane{Received: 1, Filtered: 100, Enqueued: 200, Taken: 200}, lane(g, p))
		}
	})
	t.Run("a session that registers during a fan-out to all is not meant, one that ends is left out", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		var sessions []*Session
		for _, id := range series("s", 300) {
			s, _ := join(t, g, id, id)
			sessions = append(sessions, s)
		}
		g.inbox[P3] <- NewMessage(notice("a", P3))
		g.inbox[P2] <- NewMessage(notice("b", P2)) // two walks at once
		require.True(t, g.take(P3))
		require.True(t, g.take(P2))
		for _, i := range []int{0, 63, 64, 65, 150, 299} { // passed, last passed, next, behind it, far, last
			require.NoError(t, sessions[i].Close())
		}
		late, _ := join(t, g, "late", "late")
		for g.round() {
		}
		for i, s := range sessions {
			if s.Err() == nil {
				require.Equal(t, 2, waits(s), "session %d", i)
			} else {
				require.Zero(t, waits(s))
			}
		}
		require.Zero(t, waits(late))
		for _, p := range []Priority{P2, P3} {
			l := lane(g, p)
			require.Equal(t, uint64(296), l.Enqueued, "300, without the four that ended before their turn")
			require.Equal(t, uint64(2), l.DroppedEnded)
			require.Equal(t, 294, l.Pending)
		}
		require.NoError(t, ended(g))
	})
	t.Run("all sessions end during a fan-out to all", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		for _, id := range series("s", 300) {
			join(t, g, id, id)
		}
		g.inbox[P3] <- NewMessage(notice("a", P3))
		require.True(t, g.take(P3))
		g.Gap()
		for g.round() {
		}
		require.Equal(t, fanOut{}, g.fans[P3])
		require.Equal(t, uint64(64), lane(g, P3).DroppedEnded)
		require.NoError(t, ended(g))
	})
	inBubble(t, "AllUsers to nobody counts as NoSession", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		require.NoError(t, b.Publish(notice("a", P1)))
		synctest.Wait()
		require.Equal(t, GatewayLane{Received: 1, NoSession: 1}, lane(g, P1))
		require.NoError(t, b.Subscribe("u", "g"))
		publishTo(t, b, "u", P1, "b")
		synctest.Wait()
		require.Equal(t, GatewayLane{Received: 2, NoSession: 2}, lane(g, P1))
	})
	inBubble(t, "the order of a lane is kept between fan-outs and what follows them", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{OutboxMessages: 4096})
		var sinks []*ledger
		for i := range 500 { // of one user: more than a slice
			_, sink := join(t, g, strconv.Itoa(i), "u")
			sinks = append(sinks, sink)
		}
		var want []string
		for i := range 200 {
			id := strconv.Itoa(i)
			if want = append(want, id); i%3 == 0 {
				require.NoError(t, b.Publish(notice(id, P2)))
			} else {
				publishTo(t, b, "u", P2, id)
			}
		}
		pass(time.Second)
		for _, sink := range sinks {
			require.Equal(t, want, sink.ids())
		}
	})
}

func TestGatewayGap(t *testing.T) {
	inBubble(t, "Gap ends every session with ErrGap and drops what waits; new ones may come", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for _, id := range series("s", 200) {
			join(t, g, id, id)
			publishTo(t, b, id, P3, "m"+id)
		}
		synctest.Wait()
		var all []*Session
		for s := range g.Sessions() {
			all = append(all, s)
		}
		g.Gap()
		for _, s := range all {
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
		}
		require.Equal(t, uint64(200), g.Stats().Ended.Gap)
		require.Equal(t, GatewayLane{Received: 200, Enqueued: 200, DroppedEnded: 200}, lane(g, P3))
		require.Zero(t, b.Stats().Users)
		_, sink := join(t, g, "s1", "s1")
		publishTo(t, b, "s1", P0, "after")
		synctest.Wait()
		require.Equal(t, []string{"after"}, sink.ids())
	})
	inBubble(t, "the Broker calls it when it had to drop, also for sessions that came since", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{StallTimeout: time.Second}), newGateway(t, "g", GatewayConfig{InboxCapacity: 2})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b) // g does not run: it takes nothing
		first, _ := join(t, g, "first", "u")
		publishTo(t, b, "u", P1, series("m", 3)...)
		pass(time.Second - 1)
		require.NoError(t, first.Err())
		require.False(t, receiverStats(t, b, "g").Stuck)
		pass(1)
		require.Equal(t, ErrGap, first.Err())
		require.True(t, receiverStats(t, b, "g").Stuck)
		publishTo(t, b, "u", P1, "to nobody")
		synctest.Wait()

		second, _ := join(t, g, "second", "u")
		synctest.Wait()
		require.NoError(t, second.Err(), "it has missed nothing so far")
		publishTo(t, b, "u", P1, "missed")
		synctest.Wait()
		require.Equal(t, ErrGap, second.Err())

		third, sink := join(t, g, "third", "u")
		runGateway(t, g) // takes what its inbox holds
		synctest.Wait()
		require.NoError(t, third.Err())
		publishTo(t, b, "u", P1, "a", "b")
		pass(time.Second)
		require.NoError(t, third.Err())
		require.False(t, receiverStats(t, b, "g").Stuck)
		require.Equal(t, []string{"m1", "m2", "a", "b"}, sink.ids())
		require.Equal(t, uint64(2), g.Stats().Ended.Gap)
		conserved(t, b, g)
	})
}

func TestSweep(t *testing.T) {
	cfg := GatewayConfig{SessionTimeout: 25 * time.Second, SweepInterval: 10 * time.Second}
	// lives lets time pass up to a sweep and requires that s lives up to it.
	lives := func(t *testing.T, s *Session, sweep int, began time.Time) {
		t.Helper()
		pass(time.Until(began.Add(time.Duration(sweep)*10*time.Second)) - 1)
		require.NoError(t, s.Err(), "1 ns before the sweep")
		pass(1)
	}
	inBubble(t, "a silent session ends at the first sweep after its timeout", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		began := time.Now()
		s, sink := join(t, g, "s", "u")
		lives(t, s, 3, began)
		require.Equal(t, ErrSessionExpired, s.Err())
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionExpired, reason)
		require.Equal(t, uint64(1), g.Stats().Ended.Expired)
	})
	for _, row := range []struct {
		touched time.Duration
		sweep   int
	}{
		{3 * time.Second, 3}, {5*time.Second - 1, 3}, {5 * time.Second, 3}, {5*time.Second + 1, 4}, {29 * time.Second, 6}, {30*time.Second - 1, 6},
	} {
		inBubble(t, fmt.Sprintf("a session touched at %s ends at sweep %d, with traffic or without", row.touched, row.sweep), func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, cfg)
			began := time.Now()
			s, _ := join(t, g, "s", "u")
			busy, sink := join(t, g, "busy", "v")
			pass(time.Until(began.Add(row.touched)))
			s.Touch()
			busy.Touch()
			require.Equal(t, time.Now(), s.LastActive())
			for at := began.Add(row.touched); at.Before(began.Add(time.Duration(row.sweep)*10*time.Second - time.Second)); at = at.Add(time.Second) {
				pass(time.Until(at))
				publishTo(t, b, "v", P0, at.String())
			}
			require.Equal(t, began.Add(row.touched), busy.LastActive().Round(0), "being pushed to is no sign of life")
			lives(t, s, row.sweep, began)
			require.Equal(t, ErrSessionExpired, s.Err())
			require.Equal(t, ErrSessionExpired, busy.Err())
			require.NotEmpty(t, sink.ids())
		})
	}
	inBubble(t, "Touch within the timeout keeps a session for ever", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		s, _ := join(t, g, "s", "u")
		for range 100 {
			pass(24 * time.Second)
			s.Touch()
		}
		require.NoError(t, s.Err())
	})
	inBubble(t, "one never touched is kept by each Push that returned nil, and by nothing else", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, cfg)
		began := time.Now()
		kept, _ := join(t, g, "kept", "kept")
		filtered, _ := join(t, g, "filtered", "kept", func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{} })
		held := newGate(t)
		blocked, _ := join(t, g, "blocked", "kept", hooked(held.pass))
		for i := range 100 {
			pass(9 * time.Second)
			publishTo(t, b, "kept", P0, strconv.Itoa(i))
			if i == 0 {
				for _, s := range []*Session{filtered, blocked} {
					require.NoError(t, s.Err())
				}
			}
		}
		synctest.Wait()
		require.NoError(t, kept.Err())
		require.Equal(t, ErrSessionExpired, filtered.Err())
		require.Equal(t, ErrSessionExpired, blocked.Err())
		last := began.Add(900 * time.Second)
		require.Equal(t, last, kept.LastActive().Round(0))
		lives(t, kept, 93, began)
		require.Equal(t, ErrSessionExpired, kept.Err())
	})
	inBubble(t, "with a negative timeout, of the gateway or of the session, it is never swept", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1})
		timeout := func(d time.Duration) func(*SessionConfig, *ledger) {
			return func(cfg *SessionConfig, _ *ledger) { cfg.Timeout = d }
		}
		byGateway, _ := join(t, g, "a", "u")
		own, _ := join(t, g, "b", "u", timeout(time.Hour))
		_, g2 := pair(t, BrokerConfig{}, GatewayConfig{})
		bySession, _ := join(t, g2, "a", "u", timeout(-1))
		byDefault, _ := join(t, g2, "b", "u")
		pass(5 * time.Minute)
		require.Equal(t, ErrSessionExpired, byDefault.Err())
		require.NoError(t, own.Err())
		pass(100 * time.Hour)
		require.NoError(t, byGateway.Err())
		require.NoError(t, bySession.Err())
		require.Equal(t, ErrSessionExpired, own.Err(), "its own timeout counts, not the gateway's")
	})
	inBubble(t, "a sweep finds all that are silent, however many, at one moment", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		var silent, loud []*Session
		for i := range 1000 {
			s, _ := join(t, g, strconv.Itoa(i), strconv.Itoa(i%300))
			if i%5 == 0 {
				loud = append(loud, s)
			} else {
				silent = append(silent, s)
			}
		}
		pass(20 * time.Second)
		for _, s := range loud {
			s.Touch()
		}
		pass(10*time.Second - 1)
		require.Equal(t, 1000, g.Stats().Sessions)
		pass(1)
		require.Equal(t, len(loud), g.Stats().Sessions)
		for _, s := range silent {
			require.Equal(t, ErrSessionExpired, s.Err())
		}
	})
	t.Run("the wall clock is asked for what is shown only, so that setting it moves nothing", func(t *testing.T) {
		// A reading of time.Now is compared with the wall clock by whoever drops
		// its monotonic part. So: only now, which subtracts two monotonic
		// readings, may decide anything.
		require.Contains(t, clockStart.String(), " m=", "clockStart has a monotonic reading, and so has a difference to it")
		for file, shown := range map[string][]string{
			"broker.go":  nil,
			"queue.go":   nil,
			"dedup.go":   nil,
			"stats.go":   nil,
			"gateway.go": {"register"},                  // for ConnectedAt
			"session.go": {"LastActive", "ConnectedAt"}, // shown
		} {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, d := range parsed.Decls {
				name := ""
				if f, ok := d.(*ast.FuncDecl); ok {
					name = f.Name.Name
				}
				ast.Inspect(d, func(n ast.Node) bool {
					if s, ok := n.(*ast.SelectorExpr); ok {
						if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Unix"}, s.Sel.Name) {
							require.Contains(t, shown, name, "%s: %s asks for time.%s", file, name, s.Sel.Name)
						}
					}
					return true
				})
			}
		}
	})
}

func TestIdle(t *testing.T) {
	inBubble(t, "ten idle seconds wake nobody", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for i := range 10_000 {
			id := strconv.Itoa(i)
			_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
			require.NoError(t, err)
		}
		require.NoError(t, b.Publish(notice("a", P3)))
		pass(time.Second)
		require.Equal(t, uint64(10_000), lane(g, P3).Taken)
		before := scheduled()
		pass(10 * time.Second)
		require.Less(t, scheduled()-before, uint64(100), "a look around every millisecond would be more than 1,000")
		require.Equal(t, dispatcherParked, b.state.Load())
		require.Equal(t, int64(math.MaxInt64), g.nextWatch(g.cfg.MaxPushers))
	})
}

func TestGatewayShutdown(t *testing.T) {
	inBubble(t, "Broker first, then Gateway: all that was accepted is taken, and at once", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Hour), SessionTimeout: -1})
		s, sink := join(t, g, "s", "u")
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String()+"-", 120)...)
		}
		drain(t, b)
		drain(t, g)
		require.Len(t, sink.ids(), 480)
		require.Zero(t, time.Since(began))
		<-s.Done()
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, uint64(1), g.Stats().Ended.Shutdown)
	})
	inBubble(t, "Gateway first: it leaves the Broker, what comes later is Unrouted", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		require.NoError(t, b.Subscribe("v", "g"))
		publishTo(t, b, "u", P3, "a")
		synctest.Wait()
		drain(t, g)
		require.Equal(t, []string{"a"}, sink.ids())
		require.Zero(t, b.Stats().Users)
		require.Empty(t, b.Stats().Receivers)
		publishTo(t, b, "u", P1, "b")
		publishTo(t, b, "v", P1, "c")
		drain(t, b)
		require.Equal(t, uint64(2), b.Stats().Lanes[P1].Unrouted)
		require.Equal(t, uint64(1), b.Stats().Departed.Handed)
		require.ErrorIs(t, b.Unregister("g"), ErrUnknownReceiver)
		require.ErrorIs(t, b.RegisterGateway(g), ErrClosed)
	})
	inBubble(t, "it leaves when the drain begins, not when it ends", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- g.Shutdown(context.Background()) }()
		pass(time.Second)
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.Equal(t, uint64(1), b.Stats().Lanes[P0].Unrouted)
		held.open()
		require.NoError(t, <-down)
		require.Equal(t, []string{"a"}, sink.ids())
	})
	inBubble(t, "a Gateway whose ctx ends leaves its Broker, ends its sessions and counts what its inbox held", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 100})
		require.NoError(t, b.RegisterGateway(g))
		s, sink := join(t, g, "s", "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("m", 50)...)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, g.Run(ctx), context.Canceled)
		<-s.Done()
		require.Equal(t, ErrGatewayClosed, s.Err())
		l := lane(g, P1)
		require.Len(t, sink.ids(), int(l.Taken))
		require.Equal(t, uint64(50), l.Received+l.Discarded, "the reader may have begun before it heard of the end")
		require.Equal(t, l.Enqueued, l.Taken+l.DroppedEnded)
		if l.Taken < 50 {
			require.ErrorIs(t, g.Shutdown(t.Context()), ErrClosed)
		}
		require.Zero(t, b.Stats().Users)
		require.Empty(t, b.Stats().Receivers)
		synctest.Wait() // until the dispatcher has let go of it
		conserved(t, b, g)
		desolate(t, g)
	})
	inBubble(t, "a sink that pauses for 3 s and goes on: both return nil and nothing is lost", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{InboxCapacity: 16, OutboxMessages: 1000})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P1, series("m", 900)...)
		began := time.Now()
		time.AfterFunc(3*time.Second, held.open)
		drain(t, b)
		drain(t, g)
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Equal(t, series("m", 900), sink.ids())
	})
	inBubble(t, "a sink that ignores ctx: Shutdown is back at its deadline, Run a second later, and Hung says so", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		s, sink := join(t, g, "s", "u", hooked(held.deaf))
		other, well := join(t, g, "other", "v")
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "u", P0, "b")
		publishTo(t, b, "v", P0, "c")
		drain(t, b)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, g.Shutdown(ctx))
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, []string{"c"}, well.ids(), "the others had theirs")
		<-other.Done()
		require.NoError(t, <-done)
		require.Equal(t, 6*time.Second, time.Since(began))
		require.Equal(t, uint64(1), g.Stats().Hung)
		require.Equal(t, GatewayLane{Received: 3, Enqueued: 3, Taken: 1, DroppedEnded: 1, Pending: 1}, lane(g, P0))
		held.open()
		<-s.Done()
		require.Equal(t, []string{"a"}, sink.ids())
		conserved(t, b, g)
	})
	inBubble(t, "a drain does not wait for a Push that was left behind", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		s, _ := join(t, g, "s", "u", hooked(held.deaf))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, s.Close())
		pass(time.Second)
		require.Equal(t, uint64(1), g.Stats().Hung)
		drain(t, b)
		require.ErrorIs(t, g.Shutdown(t.Context()), ErrClosed, "not everything was taken")
		require.NoError(t, <-done)
		require.Equal(t, 1, lane(g, P0).Pending)
		held.open()
		<-s.Done()
		require.Zero(t, lane(g, P0).Pending)
		require.Zero(t, g.abandoned.Load())
	})
	inBubble(t, "a Close that does not return keeps neither the others nor Run", func(t *testing.T) {
		held := newGate(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		done := start(t.Context(), g)
		synctest.Wait()
		s, _ := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		other, _ := join(t, g, "other", "v")
		drain(t, b)
		began := time.Now()
		require.NoError(t, g.Shutdown(t.Context()), "nothing was lost")
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), time.Second)
		<-other.Done()
		require.Equal(t, uint64(1), g.Stats().Hung)
		held.open()
		<-s.Done()
	})
	inBubble(t, "a Close that does not return, of a Gateway that never ran: Shutdown is back at its deadline", func(t *testing.T) {
		held := newGate(t)
		g := newGateway(t, "g", GatewayConfig{})
		join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		time.AfterFunc(time.Hour, held.open)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_ = g.Shutdown(ctx)
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
		pass(time.Hour)
	})
	for name, f := range map[string]func(s *Session) error{
		"a Push that fails":               func(*Session) error { return errors.New("broken pipe") },
		"a Push that panics":              func(*Session) error { panic("oops") },
		"a Push that calls Goexit":        func(*Session) error { runtime.Goexit(); return nil },
		"a session that closes itself":    func(s *Session) error { return s.Close() },
		"a session that closes and fails": func(s *Session) error { return errors.Join(s.Close(), errors.New("broken pipe")) },
		"a session that unregisters and blocks": func(s *Session) error {
			_ = s.g.UnregisterSession(s.ID())
			nap(time.Second / 2)
			return nil
		},
	} {
		inBubble(t, name+" as the last of the drain does not hold it up", func(t *testing.T) {
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			var s *Session
			s, _ = join(t, g, "s", "u", hooked(func(ctx context.Context, ms []*Message) error {
				<-held.ch
				return f(s)
			}))
			publishTo(t, b, "u", P0, "a")
			synctest.Wait()
			drain(t, b)
			time.AfterFunc(time.Second, held.open)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if err := g.Shutdown(ctx); err != nil {
				require.ErrorIs(t, err, ErrClosed, "the batch was lost, and that is all")
			}
			require.LessOrEqual(t, time.Since(began), 3*time.Second/2, "the Push alone, not until somebody happens to look")
			<-s.Done()
		})
	}
	inBubble(t, "sessions that are closed while they wait for the drain do not hold it up", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		first, _ := join(t, g, "first", "first", hooked(held.pass))
		publishTo(t, b, "first", P0, "x")
		synctest.Wait()
		waiting, _ := join(t, g, "waiting", "u")
		publishTo(t, b, "u", P0, "a")
		drain(t, b)
		down := make(chan error, 1)
		go func() { down <- g.Shutdown(context.Background()) }()
		pass(time.Minute)
		require.NoError(t, waiting.Close())
		pass(time.Minute)
		require.Empty(t, down)
		require.NoError(t, first.Close())
		pass(time.Second)
		require.ErrorIs(t, <-down, ErrClosed)
	})
}

// A hearer checks, for the sessions whose sinks it is, that each publisher's
// messages arrive in the order in which they were published, lane by lane. The
// publisher is a message's Source, its number there the Timestamp.
type hearer struct {
	t     testing.TB
	whole bool // nothing may be missing either
	last  map[string]int64
	count int
}

func newHearer(t testing.TB, whole bool) *hearer {
	return &hearer{t: t, whole: whole, last: make(map[string]int64)}
}

// hear is a hook of a ledger; nobody else may read h meanwhile.
func (h *hearer) hear(_ context.Context, batch []*Message) error {
	for _, m := range batch {
		h.count++
		key := m.n.Source + m.priority.String()
		if m.n.UserID == AllUsers { // numbered apart
			key += AllUsers
		}
		if last := h.last[key]; m.n.Timestamp <= last || h.whole && m.n.Timestamp != last+1 {
			h.t.Errorf("%s: number %d of %s after %d", m.n.ID, m.n.Timestamp, key, last)
		}
		h.last[key] = m.n.Timestamp
	}
	return nil
}

func TestEndToEnd(t *testing.T) {
	// flow publishes messages for users from as many goroutines, number each in
	// its lane, user by user and for all, and returns how many each user was sent.
	const publishers = 8
	flow := func(t *testing.T, b *Broker, users, each int) (perUser []int, all int) {
		sent := make([][]int, publishers)
		toAll := make([]int, publishers)
		var wg sync.WaitGroup
		for pub := range publishers {
			sent[pub] = make([]int, users)
			random := rand.New(rand.NewPCG(seed(t), uint64(pub)))
			wg.Go(func() {
				numbers := make(map[string]int64)
				for i := range each {
					user, p := random.IntN(users), Priority(random.IntN(4))
					n := note(fmt.Sprintf("%d-%d", pub, i), fmt.Sprintf("u%d", user), p)
					if i%100 == 99 {
						n = notice(n.ID, p)
						toAll[pub]++
					} else {
						sent[pub][user]++
					}
					key := n.UserID + p.String()
					numbers[key]++
					n.Source, n.Timestamp = fmt.Sprintf("p%d", pub), numbers[key]
					if err := b.PublishWait(context.Background(), n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		perUser = make([]int, users)
		for pub := range publishers {
			for user, n := range sent[pub] {
				perUser[user] += n
			}
			all += toAll[pub]
		}
		return perUser, all
	}
	t.Run("many publishers: each session gets all that is its own, in the order of each publisher and lane", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for _, size := range []int{1, 7, 100} {
				b, g := pair(t, BrokerConfig{QueueCapacity: lanes(300)}, GatewayConfig{BatchSize: size, OutboxMessages: 100_000, InboxCapacity: 64})
				const users = 50
				var hearers [users]*hearer
				var sinks [users]*ledger
				for i := range users {
					hearers[i] = newHearer(t, true)
					_, sinks[i] = join(t, g, fmt.Sprintf("s%d", i), fmt.Sprintf("u%d", i), hooked(hearers[i].hear))
					join(t, g, fmt.Sprintf("t%d", i), fmt.Sprintf("u%d", i), hooked(newHearer(t, true).hear)) // a second device
				}
				perUser, all := flow(t, b, users, sized(5_000, 1_000))
				drain(t, b)
				drain(t, g)
				for i, h := range hearers {
					require.Equal(t, perUser[i]+all, h.count, "user %d", i)
					require.Len(t, sinks[i].ids(), h.count)
				}
				accounted(t, b, uint64(publishers*sized(5_000, 1_000)))
			}
		})
	})
	t.Run("sinks that fail, panic and dawdle, sessions that come and go: nothing is uncounted, no order is broken", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for _, policy := range []SlowPolicy{SlowClose, SlowDropOldest} {
				b, g := pair(t, BrokerConfig{QueueCapacity: lanes(300)}, GatewayConfig{
					BatchSize: 5, OutboxMessages: 20, InboxCapacity: 64, SlowPolicy: policy, Pushers: 3, MaxPushers: 30,
					MaxSessionsPerUser: 4, MaxSessions: 150, SweepInterval: time.Millisecond, SessionTimeout: time.Hour,
				})
				const users = 40
				s := seed(t)
				var serial atomic.Int64
				register := func(random *rand.Rand) {
					id := serial.Add(1)
					user := fmt.Sprintf("u%d", random.IntN(users))
					h, fate := newHearer(t, false), random.IntN(12)
					var own *Session
					ready := make(chan struct{})
					sink := newLedger(t, g)
					sink.hook = func(ctx context.Context, ms []*Message) error {
						if err := h.hear(ctx, ms); err != nil {
							return err
						}
						<-ready
						switch pushes := h.count % 50; {
						case pushes != 0 || own == nil:
						case fate == 0:
							return errors.New("broken pipe")
						case fate == 1:
							panic("oops")
						case fate == 2:
							runtime.Goexit()
						case fate == 3:
							own.Close()
						case fate == 4:
							<-ctx.Done() // until somebody ends it
						case fate < 8:
							for range 1000 {
								runtime.Gosched()
							}
						}
						return nil
					}
					cfg := SessionConfig{ID: fmt.Sprintf("s%d", id%200), UserID: user, Sink: sink}
					if random.IntN(20) == 0 {
						cfg.Timeout = time.Millisecond
					}
					var err error
					own, err = g.RegisterSession(cfg)
					close(ready)
					if err != nil && !errors.Is(err, ErrSessionExists) && !errors.Is(err, ErrTooManySessions) {
						t.Error(err)
					}
				}
				stop := make(chan struct{})
				var churn sync.WaitGroup
				for i := range 3 {
					random := rand.New(rand.NewPCG(s, uint64(i)))
					churn.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							switch random.IntN(8) {
							case 0, 1, 2:
								register(random)
							case 3:
								_ = g.UnregisterSession(fmt.Sprintf("s%d", random.IntN(200)))
							case 4:
								if s, ok := g.Session(fmt.Sprintf("s%d", random.IntN(200))); ok {
									s.Unsubscribe(ChannelAccount)
									s.Touch()
									s.SubscribeAll()
								}
							case 5:
								_ = b.Subscribe(fmt.Sprintf("u%d", random.IntN(users)), "g")
							case 6:
								_ = b.Unsubscribe(fmt.Sprintf("u%d", random.IntN(users)), "g")
							case 7:
								g.Stats()
								b.Stats()
								runtime.Gosched()
							}
						}
					})
				}
				flow(t, b, users, sized(5_000, 1_000))
				close(stop)
				churn.Wait()
				drain(t, b)
				agrees(t, b, g)
				for s := range g.Sessions() { // of those who dawdle for ever
					s.Close()
				}
				if err := g.Shutdown(t.Context()); err != nil {
					require.ErrorIs(t, err, ErrClosed)
				}
				// Who dawdles for a second after the end is left behind, and comes late.
				for p := P0; p <= P3; p++ {
					eventually(t, "the last Push", func() bool { return lane(g, p).Pending == 0 })
				}
				t.Logf("%+v", g.Stats().Ended)
				accounted(t, b, uint64(publishers*sized(5_000, 1_000)))
			}
		})
	})
	t.Run("with P1 saturated P2 and P3 move at their quota into the sinks, and nobody is called stuck", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			// A short lane, which is full even where delivery is quicker than two publishers.
			b, g := pair(t, BrokerConfig{QueueCapacity: [NumPriorities]int{P1: 32}}, GatewayConfig{OutboxMessages: 1 << 17})
			var seen [NumPriorities]atomic.Int64
			var sessions []*Session
			for _, user := range series("u", 20) {
				s, _ := join(t, g, user, user, func(cfg *SessionConfig, _ *ledger) {
					cfg.Sink = SinkFunc(func(_ context.Context, ms []*Message) error {
						for _, m := range ms {
							seen[m.priority].Add(1)
						}
						return nil
					})
				})
				sessions = append(sessions, s)
			}
			stop := make(chan struct{})
			end := sync.OnceFunc(func() { close(stop) })
			t.Cleanup(end)
			var flood sync.WaitGroup
			for pub := range 2 {
				flood.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						// Whoever is refused comes again: the lane is always full.
						if err := b.Publish(note(fmt.Sprintf("p%d-%d", pub, i), fmt.Sprintf("u%d", i%20+1), P1)); errors.Is(err, ErrQueueFull) {
							runtime.Gosched()
						}
					}
				})
			}
			n := sized(1_000, 200)
			eventually(t, "P1 is saturated", func() bool { return b.Stats().Lanes[P1].Rejected > 0 })
			from := seen[P1].Load()
			for i := range n {
				publishTo(t, b, fmt.Sprintf("u%d", i%20+1), P2, fmt.Sprintf("p2-%d", i))
				publishTo(t, b, fmt.Sprintf("u%d", i%20+1), P3, fmt.Sprintf("p3-%d", i))
			}
			publishTo(t, b, "u1", P0, "urgent")
			eventually(t, "all of P0, P2 and P3 while P1 goes on", func() bool {
				return seen[P0].Load() == 1 && seen[P2].Load() == int64(n) && seen[P3].Load() == int64(n)
			})
			t.Logf("%d of P1 meanwhile", seen[P1].Load()-from)
			require.False(t, receiverStats(t, b, "g").Stuck)
			require.Zero(t, receiverStats(t, b, "g").Dropped)
			for _, s := range sessions {
				require.NoError(t, s.Err())
			}
			end()
			flood.Wait()
			drain(t, b)
			drain(t, g)
		})
	})
	inBubble(t, "the quota is the Broker's: of 1,150 messages 1,000 are P1, 100 P2, 50 P3", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{BatchSize: 1, Pushers: 1, MaxPushers: 1, OutboxMessages: 1 << 17, MaxDelay: lanes(time.Duration(-1))})
		require.NoError(t, b.RegisterGateway(g))
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P1, series("P1-", 20_000)...)
		publishTo(t, b, "u", P2, series("P2-", 1_000)...)
		publishTo(t, b, "u", P3, series("P3-", 500)...)
		runBroker(t, b)
		runGateway(t, g)
		pass(time.Second)
		got := sink.ids()
		require.Len(t, got, 21_500)
		lastP2, lastP3 := slices.Index(got, "P2-1000"), slices.Index(got, "P3-500")
		// Ten rounds of the Broker hold them; the Gateway takes from the three
		// lanes in turn, and up to an inbox lane of each waits there.
		require.Less(t, lastP2, 10*1150+3*1024)
		require.Less(t, lastP3, 10*1150+3*1024)
		conserved(t, b, g)
	})
	t.Run("on one thread everything moves", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		_, sink := join(t, g, "s", "u")
		for i := range 1000 { // each wakes everybody from their sleep
			id := strconv.Itoa(i)
			publishTo(t, b, "u", Priority(i%4), id)
			for len(sink.ids()) <= i {
				runtime.Gosched()
			}
		}
	})
}

// agrees requires that users are routed to g exactly while they have a session
// there or were subscribed, and that gauges and indexes tell the same.
func agrees(t testing.TB, b *Broker, g *Gateway) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	b.regMu.Lock()
	defer b.regMu.Unlock()
	want := make(map[string]uint8)
	linked := 0
	for s := g.first; s != nil; s = s.next {
		linked++
		if g.byID[s.id] != s || s.Err() != nil {
			t.Errorf("session %q is in the list, not in the index", s.id)
		}
		want[s.user.id] |= held
		if u, ok := g.users.Load(s.user.id); !ok || u != s.user || !slices.Contains(*u.sessions.Load(), s) {
			t.Errorf("session %q is not among those of its user", s.id)
		}
	}
	if linked != len(g.byID) {
		t.Errorf("%d sessions in the list, %d in the index", linked, len(g.byID))
	}
	if n := g.users.Size(); n != len(want) {
		t.Errorf("%d users, %d of them with a session", n, len(want))
	}
	if g.link != nil {
		for user := range g.link.explicit {
			want[user] |= subscribed
		}
	}
	routed := 0
	b.users.Range(func(user string, targets []target) bool {
		for _, to := range targets {
			if to.r == g.link {
				routed++
				if want[user] != to.why {
					t.Errorf("user %q is routed because of %b, should be of %b", user, to.why, want[user])
				}
			}
		}
		return true
	})
	if g.link != nil && routed != len(want) {
		t.Errorf("%d users routed, should be %d", routed, len(want))
	}
}

func TestRoutes(t *testing.T) {
	t.Run("a user is routed exactly while there is a session or a subscription, however they race", func(t *testing.T) {
		rounds := sized(1_000_000, 30_000) / 3
		t.Logf("%d rounds with each number of threads", rounds)
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			sink := SinkFunc(func(context.Context, []*Message) error { return nil })
			register := func(id string) *Session {
				s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: sink})
				require.NoError(t, err)
				return s
			}
			last := register("0")
			var begin, end sync.WaitGroup
			work := make([]chan func(), 2)
			for i := range work {
				work[i] = make(chan func(), 1)
				end.Go(func() {
					for f := range work[i] {
						f()
						begin.Done()
					}
				})
			}
			for i := range rounds {
				explicit := i%4 < 2
				begin.Add(2)
				ending := last
				work[0] <- func() { ending.Close() }
				work[1] <- func() {
					if explicit {
						_ = b.Subscribe("u", "g")
					} else {
						_ = b.Unsubscribe("u", "g")
					}
				}
				if i%3 == 0 { // nobody comes in its place
					begin.Wait()
					targets, _ := b.users.Load("u")
					require.Equal(t, explicit, len(targets) == 1, "without a session")
					last = register(strconv.Itoa(i + 1))
				} else {
					last = register(strconv.Itoa(i + 1))
					begin.Wait()
				}
				targets, _ := b.users.Load("u")
				require.Len(t, targets, 1)
				require.NotZero(t, targets[0].why&held)
				require.Equal(t, explicit, targets[0].why&subscribed != 0)
			}
			for _, w := range work {
				close(w)
			}
			end.Wait()
			last.Close()
			_ = b.Unsubscribe("u", "g")
			agrees(t, b, g)
			require.Zero(t, b.Stats().Users)
		})
	})
	t.Run("Subscribe, Unsubscribe and Close racing pushes leave indexes and gauges that agree", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3, OutboxMessages: 10_000, MaxDelay: lanes(time.Duration(-1))})
			s := seed(t)
			var wg sync.WaitGroup
			for w := range 4 {
				random := rand.New(rand.NewPCG(s, uint64(w)))
				wg.Go(func() {
					for i := range sized(3_000, 500) {
						user := fmt.Sprintf("u%d", random.IntN(5))
						switch random.IntN(6) {
						case 0:
							_, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("%d-%d", w, i), UserID: user, Sink: newLedger(t, g)})
							if err != nil {
								t.Error(err)
							}
						case 1:
							for s := range g.UserSessions(user) {
								s.Close()
								break
							}
						case 2:
							for s := range g.UserSessions(user) {
								s.Subscribe(ChannelTrade)
								s.SubscribeAll()
							}
						case 3:
							_ = b.Subscribe(user, "g")
						case 4:
							_ = b.Unsubscribe(user, "g")
						case 5:
							_ = b.Publish(note(fmt.Sprintf("m%d-%d", w, i), user, Priority(random.IntN(4))))
							_ = b.Publish(notice(fmt.Sprintf("n%d-%d", w, i), Priority(random.IntN(4))))
						}
					}
				})
			}
			wg.Wait()
			agrees(t, b, g)
			drain(t, b)
			st := g.Stats()
			ended := st.Ended.Closed + st.Ended.Slow
			require.Equal(t, g.serial, uint64(st.Sessions)+ended)
		})
	})
	inBubble(t, "a Gateway moves from one Broker to another, and its users with it", func(t *testing.T) {
		b1, b2, g := newBroker(t, BrokerConfig{}), newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b1.RegisterGateway(g))
		runBroker(t, b1)
		runBroker(t, b2)
		runGateway(t, g)
		_, sink := join(t, g, "s", "u")
		require.NoError(t, b1.Subscribe("v", "g"))
		require.ErrorIs(t, b2.RegisterGateway(g), ErrInvalid, "it belongs to another")
		publishTo(t, b1, "u", P0, "one")
		synctest.Wait()
		require.NoError(t, b1.Unregister("g"))
		require.Zero(t, b1.Stats().Users)
		require.NoError(t, b2.RegisterGateway(g))
		require.Equal(t, 1, b2.Stats().Users, "those with a session; subscriptions were the first Broker's")
		publishTo(t, b1, "u", P0, "nowhere")
		publishTo(t, b2, "u", P0, "two")
		synctest.Wait()
		require.Equal(t, []string{"one", "two"}, sink.ids())
		agrees(t, b2, g)
		join(t, g, "t", "w")
		require.Equal(t, 2, b2.Stats().Users)
		require.Zero(t, b1.Stats().Users)
		require.Equal(t, uint64(1), b1.Stats().Lanes[P0].Unrouted)
		require.Equal(t, uint64(1), receiverStats(t, b2, "g").Handed)
		drain(t, b1)
		drain(t, b2)
		drain(t, g)
		conserved(t, b1)
		conserved(t, b2)
		require.Equal(t, b1.Stats().Departed.Handed+b2.Stats().Departed.Handed, lane(g, P0).Received)
	})
	inBubble(t, "Unregister of a Gateway ends nobody's session", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "on its way")
		synctest.Wait()
		require.NoError(t, b.Unregister("g"))
		require.ErrorIs(t, b.Unregister("g"), ErrUnknownReceiver)
		pass(time.Second)
		require.NoError(t, s.Err())
		require.Equal(t, []string{"on its way"}, sink.ids())
		g.Inbox()[P0] <- NewMessage(note("without a Broker", "u", P0))
		synctest.Wait()
		require.Equal(t, []string{"on its way", "without a Broker"}, sink.ids())
		require.NoError(t, b.RegisterGateway(g))
		publishTo(t, b, "u", P0, "again")
		synctest.Wait()
		require.Equal(t, []string{"on its way", "without a Broker", "again"}, sink.take())
	})
	t.Run("a million users come and go, at most a hundred at once, and leave nothing", func(t *testing.T) {
		n := sized(1_000_000, 50_000)
		t.Logf("%d users", n)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		var taken atomic.Int64
		sink := SinkFunc(func(_ context.Context, ms []*Message) error { taken.Add(int64(len(ms))); return nil })
		come := func(from, to int) {
			var there [100]*Session
			for i := from; i < to; i++ {
				if s := there[i%100]; s != nil {
					s.Close()
				}
				s, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("s%d", i), UserID: fmt.Sprintf("u%d", i), Sink: sink})
				require.NoError(t, err)
				there[i%100] = s
				if i%10 == 0 {
					require.NoError(t, b.PublishWait(t.Context(), note(fmt.Sprintf("m%d", i), fmt.Sprintf("u%d", i-i%7), Priority(i/10%4))))
				}
			}
			for _, s := range there {
				s.Close()
			}
			eventually(t, "every Close", func() bool {
				g.due.mu.Lock()
				defer g.due.mu.Unlock()
				return g.due.urgent.n+g.due.others.n+g.due.limbo.n == 0 && g.due.idle == g.due.pool && b.Stats().Lanes[P0].Queued == 0
			})
		}
		come(0, 20_000) // the dedup window is full, and the tables have their size
		before := heap()
		come(20_000, 20_000+n)
		eventually(t, "nothing is queued", func() bool {
			s := b.Stats()
			return s.Lanes[P0].Queued+s.Lanes[P1].Queued+s.Lanes[P2].Queued+s.Lanes[P3].Queued == 0
		})
		grown := heap() - before
		t.Logf("%d bytes more", grown)
		require.Less(t, grown, int64(8<<20))
		require.NotZero(t, taken.Load())
		agrees(t, b, g)
		st := g.Stats()
		require.Zero(t, st.Sessions)
		require.Zero(t, st.Users)
		require.Zero(t, b.Stats().Users)
		require.Equal(t, uint64(n+20_000), st.Ended.Closed)
	})
}
