package notification

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A Broker and a Gateway whose inbox is full.

// A jam is a Broker and a Gateway that runs and takes no more of P1 until the
// gate is opened: its only pusher stands in a Push, behind that waits all that
// it may owe, its inbox is full, and the Broker stands still at the next
// message. Everything happens within no time.
type jam struct {
	gate
	b        *Broker
	g        *Gateway
	sessions []*Session // of u1, u2 …
	sinks    []*ledger
	sent     [][]string // what was published to them
}

// jamSize is how many P1s newJam publishes: more than a Gateway with default
// bounds takes while nothing is pushed.
const jamSize = 5000

func newJam(t testing.TB, bc BrokerConfig, gc GatewayConfig) *jam {
	t.Helper()
	gc.Pushers, gc.MaxPushers, gc.InboxCapacity, gc.MaxDelay = 1, 1, 8, lanes(time.Duration(-1))
	j := &jam{gate: newGate(t)}
	j.b, j.g = pair(t, bc, gc)
	join(t, j.g, "busy", "busy", hooked(j.pass))
	publishTo(t, j.b, "busy", P0, "busy")
	synctest.Wait()
	for _, u := range series("u", 10) {
		s, sink := join(t, j.g, u, u)
		j.sessions, j.sinks, j.sent = append(j.sessions, s), append(j.sinks, sink), append(j.sent, nil)
	}
	for i := range jamSize {
		k, id := i%10, fmt.Sprint("m", i)
		publishTo(t, j.b, j.sessions[k].UserID(), P1, id)
		j.sent[k] = append(j.sent[k], id)
	}
	synctest.Wait()
	require.Less(t, receiverStats(t, j.b, "g").Handed, uint64(jamSize), "it stands still")
	return j
}

// arrived requires that each session got the first of what was sent to it, in
// order, and returns how many those are in all.
func (j *jam) arrived(t testing.TB) (sum int) {
	t.Helper()
	for k, sink := range j.sinks {
		got := sink.ids()
		for i, id := range got {
			require.Equal(t, j.sent[k][i], id, "message %d of u%d", i, k+1)
		}
		sum += len(got)
	}
	return sum
}

// resultOf waits for the result of a call, for so long that it means never.
func resultOf(t testing.TB, what string, result <-chan error) error {
	t.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(5 * time.Minute):
		t.Fatalf("%s does not return", what)
		return nil
	}
}

// slowly is a change for join: a sink that takes d for each Push.
func slowly(d time.Duration) func(*SessionConfig, *ledger) {
	return hooked(func(context.Context, []*Message) error { nap(d); return nil })
}

func TestGatewayBehindAFullInbox(t *testing.T) {
	// One pusher that takes 10 ms for each message: 100 a second.
	trickle := GatewayConfig{BatchSize: 1, Pushers: 1, MaxPushers: 1, InboxCapacity: 8, MaxDelay: lanes(time.Duration(-1))}
	joinTen := func(t *testing.T, g *Gateway) (sinks []*ledger) {
		for _, u := range series("u", 10) {
			_, sink := join(t, g, u, u, slowly(10*time.Millisecond))
			sinks = append(sinks, sink)
		}
		return sinks
	}

	inBubble(t, "a Gateway whose Run is going is never stuck however long it is full, and Publish says that it is", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{StallTimeout: 100 * time.Millisecond, QueueCapacity: lanes(1000)}, trickle)
		sinks := joinTen(t, g)
		sent := make([][]string, 10)
		accepted := 0
		full := func() bool {
			for range 2 { // the first may have come before the dispatcher had its turn
				k, id := accepted%10, fmt.Sprint("m", accepted)
				switch err := b.Publish(note(id, fmt.Sprint("u", k+1), P1)); {
				case err == nil:
					sent[k] = append(sent[k], id)
					accepted++
					return false
				case !errors.Is(err, ErrQueueFull):
					t.Fatal(err)
				}
				synctest.Wait()
			}
			return true
		}
		for !full() {
		}
		require.Less(t, accepted, 7000)
		for range 100 {
			pass(100 * time.Millisecond)
			require.True(t, full())
			require.Equal(t, ReceiverStats{ID: "g", Handed: receiverStats(t, b, "g").Handed}, receiverStats(t, b, "g"), "neither stuck nor dropped")
		}
		require.Equal(t, SessionEnds{}, g.Stats().Ended)
		drain(t, b)
		drain(t, g)
		for k, sink := range sinks {
			require.Equal(t, sent[k], sink.ids())
		}
		require.Equal(t, SessionEnds{Shutdown: 10}, g.Stats().Ended)
	})

	inBubble(t, "a full Gateway holds up its lane for the other receivers, and no other lane", func(t *testing.T) {
		j := newJam(t, BrokerConfig{StallTimeout: 10 * time.Millisecond}, GatewayConfig{})
		other := route(t, j.b, newStation("other", 9), "v")
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, j.b, "v", p, "v"+p.String())
		}
		synctest.Wait()
		require.Equal(t, []string{"vP0", "vP2", "vP3"}, ids(other.poll()))
		pass(500 * time.Millisecond)
		require.Empty(t, other.poll())
		j.open()
		synctest.Wait()
		require.Equal(t, []string{"vP1"}, ids(other.poll()))
		require.Equal(t, 500*time.Millisecond, time.Since(began))
		require.Equal(t, jamSize, j.arrived(t))
		require.Equal(t, ReceiverStats{ID: "g", Handed: jamSize + 1}, receiverStats(t, j.b, "g"))
	})

	inBubble(t, "a Gateway that nobody runs has the budget of any receiver", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		s, _ := join(t, g, "s", "u")
		require.NoError(t, b.Subscribe("u", "g")) // it stays routed when s has ended
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 3)...)
		}
		pass(time.Second - 1)
		require.NoError(t, s.Err())
		require.Equal(t, ReceiverStats{ID: "g", Handed: 4}, receiverStats(t, b, "g"))
		pass(1)
		require.Equal(t, ErrGap, s.Err())
		require.Equal(t, ReceiverStats{ID: "g", Stuck: true, Handed: 4, Dropped: 8}, receiverStats(t, b, "g"))
		conserved(t, b, g)
		require.ErrorIs(t, g.Shutdown(t.Context()), ErrClosed)
	})

	inBubble(t, "a Gateway whose Run begins before its budget is spent has none from then on", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", trickle)
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		sinks := joinTen(t, g)
		for i := range 6000 {
			publishTo(t, b, fmt.Sprint("u", i%10+1), P1, fmt.Sprint("m", i))
		}
		pass(900 * time.Millisecond)
		runGateway(t, g)
		pass(10 * time.Second)
		r := receiverStats(t, b, "g")
		require.Less(t, r.Handed, uint64(6000), "it is full again")
		require.Equal(t, ReceiverStats{ID: "g", Handed: r.Handed}, r)
		drain(t, b)
		drain(t, g)
		sum := 0
		for _, sink := range sinks {
			sum += len(sink.ids())
		}
		require.Equal(t, 6000, sum)
		conserved(t, b, g)
	})

	inBubble(t, "a Gateway that was stuck and then runs gets what comes, and nobody is told of another gap", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 2})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		join(t, g, "first", "u")
		require.NoError(t, b.Subscribe("u", "g"))
		publishTo(t, b, "u", P1, series("m", 5)...)
		pass(time.Second)
		require.True(t, receiverStats(t, b, "g").Stuck)
		runGateway(t, g)
		synctest.Wait()
		_, sink := join(t, g, "second", "u")
		publishTo(t, b, "u", P1, series("n", 50)...)
		pass(time.Second)
		require.Equal(t, series("n", 50), sink.ids())
		require.Equal(t, ReceiverStats{ID: "g", Handed: 52, Dropped: 3}, receiverStats(t, b, "g"))
		require.Equal(t, SessionEnds{Gap: 1}, g.Stats().Ended)
	})
}

func TestFullGatewayLeaves(t *testing.T) {
	inBubble(t, "what a running Gateway was being handed is completed into its inbox", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		left := make(chan error, 1)
		go func() { left <- j.b.Unregister("g") }()
		pass(500 * time.Millisecond)
		j.open()
		require.NoError(t, <-left)
		pass(time.Second)
		arrived := j.arrived(t)
		st := j.b.Stats()
		require.Equal(t, ReceiverStats{Handed: uint64(arrived) + 1}, st.Departed, "nothing was dropped")
		require.EqualValues(t, jamSize-arrived, st.Lanes[P1].Unrouted, "the rest was for nobody")
		for _, s := range j.sessions {
			require.NoError(t, s.Err(), "sessions live on")
		}
	})

	inBubble(t, "the drain of a running Gateway that stops takes what it was being handed, and nobody is told of a gap", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		down := make(chan error, 1)
		go func() { down <- j.g.Shutdown(context.Background()) }()
		pass(500 * time.Millisecond)
		for _, s := range j.sessions {
			require.NoError(t, s.Err(), "while the drain goes on")
		}
		j.open()
		require.NoError(t, <-down)
		arrived := j.arrived(t)
		synctest.Wait()
		st := j.b.Stats()
		require.Equal(t, ReceiverStats{Handed: uint64(arrived) + 1}, st.Departed)
		require.EqualValues(t, jamSize-arrived, st.Lanes[P1].Unrouted)
		for _, s := range j.sessions {
			require.Equal(t, ErrGatewayClosed, s.Err())
		}
		require.Equal(t, SessionEnds{Shutdown: 11}, j.g.Stats().Ended)
	})

	inBubble(t, "a running Gateway that leaves does not wait for what another receiver is being handed", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{StallTimeout: time.Hour}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		full := route(t, b, newStation("a", 0), "u", "v")
		atOnce := func(leave func() error) {
			t.Helper()
			left := make(chan error, 1)
			go func() { left <- leave() }()
			synctest.Wait()
			require.Len(t, left, 1)
			require.NoError(t, <-left)
		}
		publishTo(t, b, "v", P0, "1")
		publishTo(t, b, "u", P1, "2")
		synctest.Wait()
		atOnce(func() error { return b.Unregister("g") })
		atOnce(func() error { return g.Shutdown(context.Background()) })
		full.poll()
		synctest.Wait()
		require.LessOrEqual(t, len(sink.ids()), 1)
	})

	inBubble(t, "Unregister ends when the Gateway stops in the middle of it", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		left := make(chan error, 1)
		go func() { left <- j.b.Unregister("g") }()
		pass(100 * time.Millisecond)
		_ = j.g.Shutdown(canceled)
		require.NoError(t, resultOf(t, "Unregister", left))
		synctest.Wait()
		st := j.b.Stats()
		require.Empty(t, st.Receivers)
		require.Zero(t, st.Lanes[P1].Queued)
		require.EqualValues(t, jamSize+1, st.Departed.Handed+st.Departed.Dropped+st.Lanes[P1].Unrouted)
	})

	inBubble(t, "Unregister from inside a Push of its Gateway, which is full, ends", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		left := make(chan error, 1)
		join(t, j.g, "caller", "caller", hooked(func(context.Context, []*Message) error {
			left <- j.b.Unregister("g")
			return nil
		}))
		publishTo(t, j.b, "caller", P0, "go")
		synctest.Wait()
		j.open() // the caller is the next: P0 goes first, and everything else still waits
		require.NoError(t, resultOf(t, "Unregister", left))
		pass(time.Second)
		st := j.b.Stats()
		require.Empty(t, st.Receivers)
		require.Zero(t, st.Lanes[P1].Queued)
		require.Zero(t, st.Departed.Dropped)
	})
}

func TestFullGatewayEnds(t *testing.T) {
	inBubble(t, "Shutdown of a Gateway returns when its ctx ends, whoever else the Broker is waiting for", func(t *testing.T) {
		for name, running := range map[string]bool{"it runs": true, "it never ran": false} {
			b, g := newBroker(t, BrokerConfig{StallTimeout: time.Hour}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1, BatchSize: 1})
			require.NoError(t, b.RegisterGateway(g))
			runBroker(t, b)
			other := route(t, b, newStation("other", 0), "v")
			held := newGate(t)
			join(t, g, "s", "u", hooked(held.deaf))
			if running {
				runGateway(t, g)
			}
			publishTo(t, b, "u", P1, series("m", 10)...)
			synctest.Wait()
			publishTo(t, b, "v", P0, "x")
			synctest.Wait()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			down := make(chan error, 1)
			go func() { down <- g.Shutdown(ctx) }()
			pass(time.Second)
			require.Len(t, down, 1, name)
			require.Error(t, <-down)
			require.Equal(t, time.Second, time.Since(began))
			cancel()
			held.open()
			other.poll()
			synctest.Wait()
		}
	})

	inBubble(t, "Shutdown of a Gateway whose inbox is full returns when its ctx ends", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		require.Equal(t, context.DeadlineExceeded, j.g.Shutdown(ctx))
		require.Equal(t, 300*time.Millisecond, time.Since(began))
		synctest.Wait()
		require.Empty(t, j.b.Stats().Receivers)
		require.Zero(t, j.b.Stats().Lanes[P1].Queued, "the Broker has gone on")
	})

	inBubble(t, "a drain whose last message the Broker does not hand over any more comes to its end", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		down := make(chan error, 1)
		go func() { down <- j.g.Shutdown(context.Background()) }()
		pass(100 * time.Millisecond)
		require.Empty(t, down)
		_ = j.b.Shutdown(canceled)
		synctest.Wait()
		j.open()
		if err := resultOf(t, "Shutdown", down); err != nil {
			require.ErrorIs(t, err, ErrClosed, "it was the message that is missing")
		}
		st := j.b.Stats()
		require.LessOrEqual(t, st.Departed.Dropped, uint64(1))
		require.EqualValues(t, jamSize+1, st.Departed.Handed+st.Departed.Dropped+st.Lanes[P1].Discarded+st.Lanes[P1].Unrouted)
	})

	inBubble(t, "the sessions of a running Gateway that was full are told", func(t *testing.T) {
		j := newJam(t, BrokerConfig{}, GatewayConfig{})
		require.Equal(t, context.Canceled, j.b.Shutdown(canceled))
		synctest.Wait()
		for _, s := range j.sessions {
			require.Equal(t, ErrGap, s.Err())
		}
		r := receiverStats(t, j.b, "g")
		require.EqualValues(t, jamSize+1, r.Handed+r.Dropped+j.b.Stats().Lanes[P1].Discarded)
		require.LessOrEqual(t, r.Dropped, uint64(1))
	})
}
