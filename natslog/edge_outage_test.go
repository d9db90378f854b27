package natslog

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// What clients notice of what happens to servers, edges and streams.

var away = flag.Duration("away", 0, "how long the server is away in TestEdgeServerAway after everybody has noticed")

// A scene is a server with two edges, each with connections of its own, and a
// publisher.
type scene struct {
	t        testing.TB
	server   *natstest.Server
	cfg      Config
	l        *Log // of the publisher
	p        *Publisher
	one, two *Edge
	serial   int
}

func newScene(t testing.TB, cfg Config) *scene {
	x := &scene{t: t, server: natstest.Start(t, natstest.Config{}), cfg: cfg}
	x.cfg.URL = x.server.URL
	x.cfg.pace = hurried
	x.l = open(t, x.cfg)
	x.p = publisher(t, x.l, PublisherConfig{ackWait: time.Second})
	x.one, x.two = x.edge("one"), x.edge("two")
	return x
}

// edge returns one more edge.
func (x *scene) edge(id string) *Edge {
	x.t.Helper()
	return edge(x.t, open(x.t, x.cfg), id, EdgeConfig{})
}

// say publishes n notifications to a user and waits until they are in the log.
func (x *scene) say(user string, lane notification.Priority, n int) (ids []string) {
	x.t.Helper()
	for range n {
		x.serial++
		id := fmt.Sprint("n", x.serial)
		require.NoError(x.t, x.p.PublishWait(patient(x.t), note(id, user, lane)))
		ids = append(ids, id)
	}
	return ids
}

// fill publishes until a stream has lost all that it had, by its size. It waits for
// edges that are not to lose anything, which a busy machine may hold up for as long as
// all of it takes.
func (x *scene) fill(user string, lane notification.Priority, readers ...*Edge) {
	x.t.Helper()
	before, err := x.l.conn(lane).state(x.t.Context(), x.l.stream(lane, 0))
	require.NoError(x.t, err)
	content := strings.Repeat("x", 60_000)
	done := make(chan error)
	for more := true; more; {
		for range 16 {
			x.serial++
			n := notification.New(user, notification.SystemNotice{Title: "t", Content: content, Level: "info"}, "test")
			n.ID, n.Priority = fmt.Sprint("n", x.serial), lane
			require.NoError(x.t, x.p.Publish(n, func(err error) { done <- err }))
		}
		for range 16 {
			require.NoError(x.t, <-done)
		}
		for _, e := range readers {
			x.catchesUp(e)
		}
		state, err := x.l.conn(lane).state(x.t.Context(), x.l.stream(lane, 0))
		require.NoError(x.t, err)
		more = state.first <= before.last
	}
}

// catchesUp waits until an edge has read all that there is.
func (x *scene) catchesUp(e *Edge) {
	x.t.Helper()
	natstest.Eventually(x.t, e.id+" has read all", func() bool {
		ctx, cancel := context.WithTimeout(x.t.Context(), 10*time.Second) // what is asked while a server ends is never answered
		defer cancel()
		for _, part := range e.partitions {
			at := part.index.At()
			for p := range notification.Priority(notification.NumPriorities) {
				s, err := x.l.conn(p).state(ctx, x.l.stream(p, part.number))
				if err != nil || at[p] < endOf(s.last) {
					return false
				}
			}
		}
		return true
	})
}

// settled waits until both edges are warm in an epoch that is not this one, and that
// is the one there is.
func (x *scene) settled(not uint64) {
	x.t.Helper()
	natstest.Eventually(x.t, "both edges have come to the same epoch", func() bool {
		one, two := x.one.Stats(), x.two.Stats()
		return one.Epoch == two.Epoch && one.Epoch != not && one.Warm && two.Warm && one.Epoch == epochOf(x.t, x.l)
	})
}

func TestEdgeServerAway(t *testing.T) {
	x := newScene(t, Config{})
	alice, bob := newListener(t, "alice"), newListener(t, "bob")
	require.NoError(t, alice.connect(x.one))
	require.NoError(t, bob.connect(x.two))
	wantA, wantB := x.say("alice", notification.P1, 3), x.say("bob", notification.P0, 3)
	bob.want(3)
	bob.leave()

	x.server.Kill()
	for _, l := range []*Log{x.l, x.one.log, x.two.log} {
		for _, c := range []*conn{l.urgent, l.bulk} {
			natstest.Eventually(t, "everybody has noticed", func() bool { return !c.nc.IsConnected() })
		}
	}
	done := make(chan error)
	const n = 50
	for i := range n {
		wantA, wantB = append(wantA, fmt.Sprint("a", i)), append(wantB, fmt.Sprint("b", i))
		require.NoError(t, x.p.Publish(note(fmt.Sprint("a", i), "alice", notification.P1), func(err error) { done <- err }))
		require.NoError(t, x.p.Publish(note(fmt.Sprint("b", i), "bob", notification.P0), func(err error) { done <- err }))
	}
	<-time.After(*away)
	select {
	case err := <-done:
		t.Fatal("nobody can have stored it", err)
	case <-alice.s.Done():
		t.Fatal("the session has ended:", alice.s.Err())
	default:
	}
	require.Len(t, alice.want(3), 3)
	require.NoError(t, bob.connect(x.two), "what an edge has read serves those who come meanwhile")
	x.server.Restart()
	for range 2 * n {
		require.NoError(t, <-done)
	}
	require.Equal(t, wantA, alice.want(len(wantA)))
	require.Equal(t, wantB, bob.want(len(wantB)))
	alice.leave()
	alice.resumes(x.two)
	more := x.say("alice", notification.P1, 1)
	require.Equal(t, append(wantA, more...), alice.want(len(wantA)+1))
	for _, e := range []*Edge{x.one, x.two} {
		for _, s := range e.Stats().Streams {
			require.Zero(t, s.Gaps+s.Epochs, "%+v", s)
		}
	}
}

func TestSlowEdge(t *testing.T) {
	const P0, P1 = notification.P0, notification.P1
	x := newScene(t, Config{MaxBytes: 4 << 20})
	slow := edge(t, open(t, x.cfg), "slow", EdgeConfig{Gateway: notification.GatewayConfig{BatchSize: 1, OutboxMessages: 1, InboxCapacity: 1, SlowAfter: time.Hour}})
	blocked := func() *listener {
		c := newListener(t, "alice")
		c.free = make(chan struct{})
		require.NoError(t, c.connect(slow))
		return c
	}
	t.Run("is late in the lane of a sink that blocks, and nowhere else, and nothing is lost", func(t *testing.T) {
		alice, quick, bob := blocked(), newListener(t, "alice"), newListener(t, "bob")
		require.NoError(t, quick.connect(x.one))
		require.NoError(t, bob.connect(slow))
		want := x.say("alice", P1, 50)
		var urgent []string
		for range 50 { // one by one: of P0 no more than eight may wait with these bounds
			urgent = append(urgent, x.say("bob", P0, 1)...)
			require.Equal(t, urgent, bob.want(len(urgent)), "P0 goes on")
		}
		require.Equal(t, want, quick.want(50), "and so do other edges")
		late := slow.Stats()
		require.Less(t, late.Streams[P1].Sent, uint64(50))
		require.NoError(t, alice.s.Err())
		close(alice.free)
		require.Equal(t, want, alice.want(50))
		alice.leave()
		quick.leave()
		bob.leave()
	})
	t.Run("that is behind the limit of a stream ends its sessions with a gap; an edge that was quicker has it all", func(t *testing.T) {
		alice := blocked()
		before := alice.cursor
		want := x.say("alice", P1, 20)
		natstest.Eventually(t, "the lane waits", func() bool { return len(slow.partitions[0].inbox[P1]) == 1 })
		for range 4 { // what has been sent to the edge, and waits there, does not count
			x.fill("carol", P1, x.one)
		}
		x.catchesUp(x.one)
		close(alice.free)
		alice.loses()
		natstest.Eventually(t, "the edge is up to date", func() bool { return slow.Stats().Streams[P1].Gaps > 0 })
		x.catchesUp(slow)
		require.NotZero(t, slow.Stats().Streams[P1].Missing)
		alice = newListener(t, "alice")
		alice.cursor = before
		alice.gone(slow)
		alice.cursor = before
		alice.resumes(x.one)
		want = append(want, x.say("alice", P1, 2)...)
		require.Equal(t, want, alice.want(len(want)), "without a hole")
		alice.leave()
		alice.resumes(slow) // and from then on it is good again
		want = append(want, x.say("alice", P1, 2)...)
		require.Equal(t, want, alice.want(len(want)))
	})
}

func TestEdgeEnds(t *testing.T) {
	x := newScene(t, Config{})
	t.Run("killed, and its clients go on elsewhere exactly", func(t *testing.T) {
		e, err := open(t, x.cfg).NewEdge("killed", EdgeConfig{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }() // ends with cancel; waited for below
		alice := newListener(t, "alice")
		alice.resumes(e)
		want := x.say("alice", notification.P1, 10)
		alice.want(1)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		<-alice.s.Done()
		require.ErrorIs(t, alice.s.Err(), notification.ErrGatewayClosed)
		want = append(want, x.say("alice", notification.P1, 10)...)
		alice.resumes(x.one)
		require.Equal(t, want, alice.want(len(want)))
		alice.leave()
		conservedEdge(t, e)
	})
	t.Run("shut down, it pushes what it has read", func(t *testing.T) {
		e, err := open(t, x.cfg).NewEdge("drained", EdgeConfig{})
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(context.Background()) }() // ends with Shutdown; waited for below
		alice := newListener(t, "alice")
		alice.free = make(chan struct{})
		alice.resumes(e)
		want := x.say("alice", notification.P1, 10)
		x.catchesUp(e)
		down := make(chan error, 1)
		go func() { down <- e.Shutdown(patient(t)) }() // ends when alice is free; waited for below
		close(alice.free)
		require.NoError(t, <-down)
		require.NoError(t, <-ended)
		require.Equal(t, want, alice.want(10))
		require.ErrorIs(t, e.Run(t.Context()), notification.ErrClosed)
		require.ErrorIs(t, alice.connect(e), notification.ErrClosed)
		conservedEdge(t, e)
	})
	t.Run("with its Log closed it ends, for it would be silent for ever", func(t *testing.T) {
		l := open(t, x.cfg)
		e, err := l.NewEdge("cut off", EdgeConfig{})
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(context.Background()) }() // ends with the Log; waited for below
		alice := newListener(t, "alice")
		alice.resumes(e)
		require.NoError(t, l.Close())
		require.ErrorIs(t, <-ended, notification.ErrClosed)
		<-alice.s.Done()
		require.ErrorIs(t, alice.s.Err(), notification.ErrGatewayClosed)
		conservedEdge(t, e)
	})
	t.Run("before Run it is cold, and Shutdown is all there is", func(t *testing.T) {
		e, err := x.l.NewEdge("idle", EdgeConfig{})
		require.NoError(t, err)
		require.ErrorIs(t, newListener(t, "alice").connect(e), notification.ErrTryAgain)
		require.NoError(t, e.Shutdown(t.Context()))
		require.NoError(t, e.Shutdown(t.Context()))
		require.ErrorIs(t, e.Run(t.Context()), notification.ErrClosed)
	})
}

func TestEdgeElsewhere(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, Partitions: 3, pace: hurried})
	left, right := edge(t, l, "left", EdgeConfig{Partitions: []int{2, 0}}), edge(t, l, "right", EdgeConfig{Partitions: []int{1}})
	p := publisher(t, l, PublisherConfig{})
	var there [3]bool
	for i := range 20 {
		user := fmt.Sprint("user", i)
		number := partitionOf(user, 3)
		there[number] = true
		at, other := left, right
		if number == 1 {
			at, other = right, left
		}
		c := newListener(t, user)
		err := c.connect(other)
		require.ErrorIs(t, err, ErrElsewhere)
		require.ErrorContains(t, err, fmt.Sprint("partition ", number))
		require.NoError(t, c.connect(at))
		require.NoError(t, p.PublishWait(patient(t), note(fmt.Sprint("n", i), user, notification.P1)))
		c.want(1)
	}
	require.Equal(t, [3]bool{true, true, true}, there)
	require.NoError(t, p.PublishWait(patient(t), note("to all", notification.AllUsers, notification.P1)))
	for _, e := range []*Edge{left, right} {
		natstest.Eventually(t, "all partitions have it", func() bool {
			n := 0
			for _, st := range e.Stats().Streams {
				n += int(st.Sent)
			}
			return n == map[*Edge]int{left: 2, right: 1}[e]+map[*Edge]int{left: users(20, 0, 2), right: users(20, 1)}[e]
		})
	}
}

// users returns how many of n users belong to some of three partitions.
func users(n int, partitions ...int) (sum int) {
	for i := range n {
		for _, p := range partitions {
			if partitionOf(fmt.Sprint("user", i), 3) == p {
				sum++
			}
		}
	}
	return sum
}

func TestEdgeConfigInvalid(t *testing.T) {
	l := &Log{cfg: Config{Partitions: 3}}
	require.NoError(t, l.cfg.setDefaults())
	l.urgent, l.bulk = new(conn), new(conn)
	l.epochs = newEpochs(l)
	for field, cfg := range map[string]EdgeConfig{
		"Partitions is empty":            {Partitions: []int{}},
		"Partitions [-1]":                {Partitions: []int{-1}},
		"Partitions [0 3]":               {Partitions: []int{3, 0}},
		"names one twice":                {Partitions: []int{1, 2, 1}},
		"Backlog":                        {Backlog: 1<<20 - 1},
		"EdgeConfig.Gateway: ":           {Gateway: notification.GatewayConfig{BatchSize: -1}},
		"Gateway.Log is the edge's":      {Gateway: notification.GatewayConfig{Log: newIndex(0, nil)}},
		"HistoryMessages 5 is neither 0": {Gateway: notification.GatewayConfig{HistoryMessages: 5}},
	} {
		_, err := l.NewEdge("e", cfg)
		require.ErrorIs(t, err, notification.ErrInvalid, field)
		require.ErrorContains(t, err, field)
	}
	_, err := l.NewEdge("", EdgeConfig{})
	require.ErrorIs(t, err, notification.ErrInvalid)
	given := []int{2, 0}
	e, err := l.NewEdge("e", EdgeConfig{Partitions: given})
	require.NoError(t, err)
	require.Equal(t, []int{2, 0}, given, "the caller's is not sorted")
	require.Len(t, e.partitions, 2)
	require.NoError(t, e.Shutdown(t.Context()))
}

// A limit that the edge may have, each of its Gateways may have a part of.
func TestEdgeDividesLimits(t *testing.T) {
	cfg := EdgeConfig{Gateway: notification.GatewayConfig{MaxPushers: 2 * runtime.GOMAXPROCS(0), MaxSessions: 10}}
	require.NoError(t, cfg.setDefaults(4))
	g := cfg.gateway(4)
	_, err := notification.NewGateway("g", g)
	require.NoError(t, err)
	require.Equal(t, 3, g.MaxSessions)
	require.LessOrEqual(t, g.Pushers, g.MaxPushers)
	require.Equal(t, 1_000_000/4, g.HistoryTotal)
	cfg.Gateway.MaxPushers = 0
	require.Equal(t, 65_536/4, cfg.gateway(4).MaxPushers)
}

// The stream is read through a proxy that drops blocks for a while, as a connection
// does that is slow: what comes behind them shows that they are missing.
func TestEdgeHole(t *testing.T) {
	const P1 = notification.P1
	x := newScene(t, Config{})
	way := natstest.NewProxy(t, x.server.URL)
	cfg := x.cfg
	cfg.URL = way.URL
	late := edge(t, open(t, cfg), "late", EdgeConfig{})
	drop := func(s string) bool { return s == x.l.subject(P1, 0) }
	at := func(e *Edge) uint64 { return e.partitions[0].index.At()[P1] }

	t.Run("is repaired by reading again, and nobody notices", func(t *testing.T) {
		alice := newListener(t, "alice")
		require.NoError(t, alice.connect(late))
		want := x.say("alice", P1, 3)
		alice.want(3)
		way.Drop(drop)
		want = append(want, x.say("alice", P1, 3)...)
		x.catchesUp(x.one)
		require.Less(t, at(late), at(x.one))
		way.Drop(nil)
		want = append(want, x.say("alice", P1, 3)...)
		require.Equal(t, want, alice.want(len(want)))
		require.NoError(t, alice.s.Err())
		st := late.Stats().Streams[P1]
		require.Zero(t, st.Gaps)
		alice.leave()
	})
	t.Run("with a cursor from an edge that is ahead a client waits, and gets the rest exactly", func(t *testing.T) {
		alice := newListener(t, "alice")
		require.NoError(t, alice.connect(x.one))
		way.Drop(drop)
		want := x.say("alice", P1, 5)
		alice.want(5)
		alice.leave()
		require.Less(t, at(late), at(x.one))
		want = append(want, x.say("alice", P1, 5)...)
		came := make(chan error, 1)
		go func() { came <- alice.connect(late) }() // ends after 5 s at the latest; waited for below
		select {
		case err := <-came:
			require.ErrorIs(t, err, notification.ErrTryAgain, "it must not begin before the edge has got there")
			came <- err
		case <-time.After(20 * time.Millisecond): // gives it time to be wrong
		}
		way.Drop(nil)
		if err := <-came; err != nil { // a busy machine
			require.ErrorIs(t, err, notification.ErrTryAgain)
			alice.resumes(late)
		}
		want = append(want, x.say("alice", P1, 1)...)
		require.Equal(t, want, alice.want(len(want)))
		alice.leave()
	})
	t.Run("while the edge cannot ask the servers, a client with such a cursor is told to try again", func(t *testing.T) {
		x.catchesUp(x.one)
		alice := newListener(t, "alice")
		require.NoError(t, alice.connect(x.one))
		way.Cut()
		want := x.say("alice", P1, 2)
		alice.want(2)
		alice.leave()
		require.ErrorIs(t, alice.connect(late), notification.ErrTryAgain)
		way.Mend()
		alice.resumes(late)
		want = append(want, x.say("alice", P1, 1)...)
		require.Equal(t, want, alice.want(3))
		alice.leave()
	})
}

func TestEdgeStreamLimit(t *testing.T) {
	const P1 = notification.P1
	x := newScene(t, Config{MaxBytes: 4 << 20})
	alice := newListener(t, "alice")
	require.NoError(t, alice.connect(x.one))
	begin := alice.cursor
	want := x.say("alice", P1, 3)
	alice.want(3)
	x.fill("bob", P1, x.one, x.two)
	want = append(want, x.say("alice", P1, 1)...)
	alice.want(4)
	alice.leave() // behind the flood
	want = append(want, x.say("alice", P1, 3)...)

	t.Run("has no influence on what an edge has read", func(t *testing.T) {
		again := newListener(t, "alice")
		again.cursor = begin
		again.resumes(x.two)
		require.Equal(t, want, again.want(len(want)))
		again.leave()
	})
	t.Run("ends how far back a client can resume at an edge that begins later", func(t *testing.T) {
		late := x.edge("late")
		again := newListener(t, "alice")
		again.cursor = begin
		again.gone(late)
		alice.resumes(late)
		require.Equal(t, want, alice.want(len(want)))
		alice.leave()
	})
	t.Run("that is overrun during a replay does not make a hole in it", func(t *testing.T) {
		x.say("carol", P1, 50)
		carol := newListener(t, "carol")
		carol.free, carol.cursor = make(chan struct{}), begin
		require.ErrorIs(t, carol.connect(x.one), notification.ErrCursorGone, "a cursor is its user's")
		carol.cursor = notification.Cursor{}
		tight := edge(t, open(t, x.cfg), "tight", EdgeConfig{Backlog: 1 << 20, Gateway: notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8}})
		x.catchesUp(tight)
		require.NoError(t, carol.connect(tight))
		carol.leave()
		want := x.say("carol", P1, 50)
		x.catchesUp(tight)
		carol.resumes(tight) // begins to replay, and blocks
		for range 2 {
			x.fill("bob", P1, tight)
		}
		close(carol.free)
		want = append(want, x.say("carol", P1, 2)...)
		require.Equal(t, want, carol.want(len(want)))
		require.NoError(t, carol.s.Err())
		carol.leave()
	})
}

// A server whose data folder is put back loses the tails of all streams, and of the
// bucket with them.
func TestEdgesLoseTail(t *testing.T) {
	const P1 = notification.P1
	x := newScene(t, Config{})
	alice, bob := newListener(t, "alice"), newListener(t, "bob")
	require.NoError(t, alice.connect(x.one))
	require.NoError(t, bob.connect(x.two))
	wantA := x.say("alice", P1, 3)
	alice.want(3)
	early := alice.cursor
	old := x.server.Copy()
	wantA = append(wantA, x.say("alice", P1, 3)...)
	x.say("bob", P1, 3)
	require.Equal(t, wantA, alice.want(6))
	bob.want(3)
	x.catchesUp(x.one)
	x.catchesUp(x.two)
	before := x.one.Stats().Epoch

	x.server.Kill()
	x.server.SetBack(old)
	x.server.Restart()
	x.say("carol", P1, 20) // the numbers are used again
	alice.loses()
	bob.loses()
	x.settled(before)
	for _, e := range []*Edge{x.one, x.two} {
		x.catchesUp(e)
		for _, cursor := range []notification.Cursor{early, alice.cursor} {
			again := newListener(t, "alice")
			again.cursor = cursor
			again.gone(e)
		}
	}
	lost := uint64(0)
	for _, e := range []*Edge{x.one, x.two} {
		for _, s := range e.Stats().Streams {
			lost += s.LostTails
			require.Zero(t, s.Gaps, "%+v", s)
		}
	}
	require.NotZero(t, lost)
	alice = newListener(t, "alice")
	alice.resumes(x.one)
	want := x.say("alice", P1, 2)
	require.Equal(t, want, alice.want(2))
	alice.leave()
	want = append(want, x.say("alice", P1, 2)...)
	alice.resumes(x.two) // cursors of the new epoch hold everywhere
	require.Equal(t, want, alice.want(4))
	alice.leave()
}

// Once more, with all edges restarted, so that nobody knows what there was: the
// epoch stays, and the Seal of each cursor tells.
func TestEdgesLoseTailAndMemory(t *testing.T) {
	const P1 = notification.P1
	for _, again := range []struct {
		name string
		n    int
	}{
		{"whose numbers were not used again", 0},
		{"of which some numbers were used again", 2},
		{"whose numbers were all used again", 9},
	} {
		t.Run("a cursor from a tail "+again.name+" is refused, one from before it is good", func(t *testing.T) {
			x := &scene{t: t, server: natstest.Start(t, natstest.Config{})}
			x.cfg = Config{URL: x.server.URL, pace: hurried}
			var old string
			alice := newListener(t, "alice")
			var early notification.Cursor
			var want []string
			t.Run("before", func(t *testing.T) { // all that runs ends with it
				x := *x
				x.t = t
				x.l = open(t, x.cfg)
				x.p = publisher(t, x.l, PublisherConfig{})
				one := x.edge("one")
				require.NoError(t, alice.connect(one))
				want = x.say("alice", P1, 3)
				alice.want(3)
				early = alice.cursor
				old = x.server.Copy()
				want = append(want, x.say("alice", P1, 5)...)
				require.Equal(t, want, alice.want(8))
			})
			x.server.Kill()
			x.server.SetBack(old)
			x.server.Restart()
			x.l = open(t, x.cfg)
			x.p = publisher(t, x.l, PublisherConfig{})
			x.serial = 100
			two := x.edge("two")
			x.say("bob", P1, again.n)
			x.catchesUp(two)
			alice.gone(two)
			alice = newListener(t, "alice")
			alice.cursor = early
			want = x.say("alice", P1, 2)
			alice.resumes(two)
			require.Equal(t, want, alice.want(2))
			alice.leave()
		})
	}
}

// Streams that were made anew while sessions live at edges that run.
func TestEdgesBeginAnew(t *testing.T) {
	const P1 = notification.P1
	x := newScene(t, Config{})
	js := x.l.bulk.js
	remake := func(lane notification.Priority) {
		require.NoError(t, js.DeleteStream(patient(t), x.l.stream(lane, 0)))
		_, err := js.CreateStream(patient(t), x.l.streamConfig(lane, 0))
		require.NoError(t, err)
	}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"a stream that was made anew", func() { remake(P1) }},
		{"streams that were made anew one right after the other, and the bucket with them", func() {
			for lane := range notification.Priority(notification.NumPriorities) {
				remake(lane)
			}
			require.NoError(t, js.DeleteKeyValue(patient(t), x.l.epochs.bucket()))
		}},
		{"an epoch that an operator has changed", func() { // which is how all clients are made to load anew
			kv, err := js.KeyValue(patient(t), x.l.epochs.bucket())
			require.NoError(t, err)
			_, err = kv.PutString(patient(t), epochKey, "another")
			require.NoError(t, err)
		}},
	} {
		t.Run(c.name+" ends the sessions everywhere, and voids their cursors", func(t *testing.T) {
			before := x.one.Stats().Epoch
			alice, bob, stuck := newListener(t, "alice"), newListener(t, "bob"), newListener(t, "carol")
			alice.resumes(x.one)
			bob.resumes(x.two)
			stuck.free = make(chan struct{})
			stuck.resumes(x.two)
			x.say("alice", P1, 2)
			x.say("bob", P1, 2)
			alice.want(2)
			bob.want(2)
			x.say("carol", P1, 2)
			c.do()
			alice.loses()
			bob.loses()
			close(stuck.free)
			stuck.loses()
			x.settled(before)
			alice.gone(x.two)
			bob.gone(x.one)
			alice = newListener(t, "alice")
			alice.resumes(x.one)
			want := x.say("alice", P1, 2)
			alice.want(2)
			alice.leave()
			want = append(want, x.say("alice", P1, 2)...)
			alice.resumes(x.two)
			require.Equal(t, want, alice.want(4))
			alice.leave()
		})
	}
}

func TestEdgesInCluster(t *testing.T) {
	besideOthers(t)
	c := natstest.StartCluster(t, natstest.Config{})
	x := &scene{t: t, cfg: Config{URL: c.URL, Replicas: 3, pace: hurried}}
	x.l = open(t, x.cfg)
	x.p = publisher(t, x.l, PublisherConfig{})
	one, two := x.edge("one"), x.edge("two")
	nc := c.Connect()
	alice := newListener(t, "alice")
	require.NoError(t, alice.connect(one))
	var want []string
	for i, what := range []func(stream string){
		func(stream string) { c.StepDown(nc, stream) },
		func(stream string) { c.Leader(nc, stream).Restart() },
	} {
		want = append(want, x.say("alice", notification.P1, 3)...)
		what(x.l.stream(notification.P1, 0))
		want = append(want, x.say("alice", notification.P1, 3)...)
		alice.want(len(want))
		alice.leave()
		want = append(want, x.say("alice", notification.P1, 3)...)
		alice.resumes([]*Edge{two, one}[i%2])
	}
	require.Equal(t, want, alice.want(len(want)))
	alice.leave()
	for _, e := range []*Edge{one, two} {
		for _, s := range e.Stats().Streams {
			require.Zero(t, s.Gaps+s.Epochs+s.LostTails, "another leader is nothing to clients: %+v", s)
		}
	}
}
