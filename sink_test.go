package notification

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestChannelSink(t *testing.T) {
	inBubble(t, "a full channel blocks only its session; at the end it is closed and what was sent before can be read", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 2})
		sink, ch := ChannelSink(3)
		s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: sink})
		require.NoError(t, err)
		_, well := join(t, g, "well", "u")
		for _, id := range series("m", 6) {
			publishTo(t, b, "u", P1, id)
		}
		pass(time.Minute)
		require.Equal(t, series("m", 6), well.ids())
		require.Len(t, ch, 3)
		require.Equal(t, "m1", (<-ch).n.ID)
		synctest.Wait()
		require.Len(t, ch, 3)
		require.NoError(t, s.Close())
		<-s.Done()
		var rest []string
		for m := range ch { // it is closed
			rest = append(rest, m.n.ID)
		}
		require.Equal(t, []string{"m2", "m3", "m4"}, rest)
		require.Equal(t, GatewayLane{Received: 6, Enqueued: 12, Taken: 10, DroppedEnded: 2}, lane(g, P1), "whole batches: m1 to m4, and all six of the other")
	})
	inBubble(t, "without a capacity it hands over; a negative one is none", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		sink, ch := ChannelSink(-1)
		s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: sink})
		require.NoError(t, err)
		publishTo(t, b, "u", P0, series("m", 100)...)
		for _, id := range series("m", 100) {
			require.Equal(t, id, (<-ch).n.ID)
		}
		synctest.Wait()
		require.Equal(t, uint64(100), lane(g, P0).Taken)
		require.NoError(t, s.Close())
		_, open := <-ch
		require.False(t, open)
	})
	t.Run("a batch that the end of ctx breaks off is an error, with the cause", func(t *testing.T) {
		sink, ch := ChannelSink(1)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(ErrSessionReplaced)
		batch := []*Message{NewMessage(note("a", "u", P0)), NewMessage(note("b", "u", P0))}
		require.Equal(t, ErrSessionReplaced, sink.Push(ctx, batch))
		sink.Close(ErrSessionReplaced)
		n := 0
		for range ch {
			n++
		}
		require.LessOrEqual(t, n, 1)
	})
}

func TestSinkFunc(t *testing.T) {
	errPipe := errors.New("broken pipe")
	var got []*Message
	sink := SinkFunc(func(_ context.Context, ms []*Message) error { got = ms; return errPipe })
	batch := []*Message{NewMessage(note("a", "u", P0))}
	require.Equal(t, errPipe, sink.Push(t.Context(), batch))
	require.Equal(t, batch, got)
	sink.Close(errPipe)
}

// A liveLedger is a ledger with a method Live.
type liveLedger struct {
	*ledger
	lives atomic.Int32
	hook  func() // what Live does beside counting; nil: nothing
}

func (s *liveLedger) Live() {
	if n, _ := s.ended(); n > 0 {
		s.t.Error("Live after Close")
	}
	s.mu.Lock()
	inside := s.inside
	s.mu.Unlock()
	if inside {
		s.t.Error("Live during Push")
	}
	s.lives.Add(1)
	if s.hook != nil {
		s.hook()
	}
}

func TestLive(t *testing.T) {
	// announced registers a session whose sink has a method Live.
	announced := func(t *testing.T, g *Gateway, hook func()) (*Session, *liveLedger) {
		sink := &liveLedger{ledger: newLedger(t, g), hook: hook}
		s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: sink})
		require.NoError(t, err)
		return s, sink
	}
	inBubble(t, "it is called once, at once if there is nothing to replay", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := announced(t, g, nil)
		synctest.Wait()
		require.Equal(t, int32(1), sink.lives.Load(), "before anything was published")
		publishTo(t, b, "u", P0, series("m", 3)...)
		pass(time.Minute)
		require.Equal(t, int32(1), sink.lives.Load())
		require.Equal(t, series("m", 3), sink.ids())
		idleAndEmpty(t, s)
	})
	inBubble(t, "it comes before the first live batch, also of a session that waited for Run", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		var sink *liveLedger
		var before []string
		_, sink = announced(t, g, func() { before = sink.ids() })
		for _, id := range series("m", 3) {
			g.Inbox()[P0] <- NewMessage(note(id, "u", P0))
		}
		runGateway(t, g)
		synctest.Wait()
		require.Equal(t, int32(1), sink.lives.Load())
		require.Empty(t, before)
		require.Equal(t, series("m", 3), sink.ids())
	})
	inBubble(t, "a Live that panics ends the session as a Push that panics does", func(t *testing.T) {
		log, logs := logged()
		_, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1, Logger: log})
		s, sink := announced(t, g, func() { panic("oops") })
		<-s.Done()
		require.ErrorIs(t, s.Err(), ErrSinkPanic)
		require.ErrorContains(t, s.Err(), "oops")
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, s.Err(), reason)
		require.Contains(t, logs(), "call=Live")
	})
	inBubble(t, "a session that ends before its turn does not hear it", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		s, sink := announced(t, g, nil)
		require.NoError(t, s.Close())
		<-s.Done()
		require.Zero(t, sink.lives.Load())
		runGateway(t, g)
		synctest.Wait()
		require.Zero(t, sink.lives.Load())
	})
}
