package notification

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGap(t *testing.T) {
	inBubble(t, "a Gap that blocks holds up nobody, and is not called a second time meanwhile", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		release, running := make(chan struct{}), 0
		s.onGap = func() {
			running++
			require.Equal(t, 1, running)
			<-release
			running--
		}
		route(t, b, s, "u")
		all := listen(t, b, "all", 99, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		publishTo(t, b, "u", P2, "4", "5", "6")
		pass(2 * time.Second)
		require.Len(t, poll(all), 6)
		require.EqualValues(t, 1, s.gaps.Load(), "P2's waits for P1's")
		require.Equal(t, strings.Fields("1 4"), ids(s.poll()))
		publishTo(t, b, "u", P1, "7")
		synctest.Wait()
		require.Empty(t, s.poll(), "until everybody was told, what comes is part of the hole")
		release <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 2, s.gaps.Load())
		release <- struct{}{}
		synctest.Wait()
		publishTo(t, b, "u", P1, "8")
		synctest.Wait()
		require.Equal(t, []string{"8"}, ids(s.poll()))
	})

	inBubble(t, "a Gap that panics is logged, and the next is called all the same", func(t *testing.T) {
		var log strings.Builder
		b := newBroker(t, BrokerConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s := newStation("r", 1)
		s.onGap = func() { panic("gap of sighs") }
		route(t, b, s, "u")
		runBroker(t, b)
		for i := range int32(2) {
			publishTo(t, b, "u", P1, fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))
			pass(time.Second)
			require.Equal(t, i+1, s.gaps.Load())
			s.poll()
		}
		require.Equal(t, 2, strings.Count(log.String(), "gap of sighs"))
	})

	inBubble(t, "a Gap that does not return is abandoned by Run after a second", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		release := make(chan struct{})
		defer close(release)
		s.onGap = func() { <-release }
		route(t, b, s, "u")
		done := start(t.Context(), b)
		publishTo(t, b, "u", P1, "1", "2")
		pass(time.Second)
		require.EqualValues(t, 1, s.gaps.Load())
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()), "what was dropped before it is not its loss")
		require.NoError(t, <-done)
		require.Equal(t, time.Second, time.Since(began))
	})

	inBubble(t, "a Gap may unregister its own receiver", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		s.onGap = func() { require.NoError(t, b.Unregister("r")) }
		route(t, b, s, "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		pass(time.Second)
		st := b.Stats()
		require.Empty(t, st.Receivers)
		require.EqualValues(t, 1, st.Departed.Handed)
		require.EqualValues(t, 2, st.Departed.Dropped+st.Lanes[P1].Unrouted, "3 was perhaps in time to be dropped too")
		conserved(t, b)
	})

	inBubble(t, "a Gateway that is stuck ends its sessions with ErrGap, those that come during the episode too", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1}) // whose Run is never called
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		register := func(id string) *Session {
			s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
			require.NoError(t, err)
			return s
		}
		first := register("first")
		publishTo(t, b, "u", P1, "1", "2")
		pass(time.Second - 1)
		require.NoError(t, first.Err())
		pass(1)
		require.Equal(t, ErrGap, first.Err())
		second := register("second")
		synctest.Wait()
		require.NoError(t, second.Err(), "nothing that it should have had is missing yet")
		publishTo(t, b, "u", P1, "3")
		synctest.Wait()
		require.Equal(t, ErrGap, second.Err())
		require.EqualValues(t, 2, g.Stats().Ended.Gap)
		conserved(t, b, g)
	})
}

// brokerEnds are the ways to end a Broker before it has delivered everything.
var brokerEnds = map[string]func(t *testing.T, b *Broker){
	"Run's ctx ends": func(t *testing.T, b *Broker) {
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	},
	"the ctx of Shutdown ends": func(t *testing.T, b *Broker) {
		done := start(context.Background(), b)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_ = b.Shutdown(ctx)
		require.NoError(t, <-done)
	},
	"Shutdown comes before Run": func(t *testing.T, b *Broker) { _ = b.Shutdown(t.Context()) },
}

// What a Broker drops as it ends: whoever may miss something is told, and nobody
// else.
func TestGapWhenTheBrokerEnds(t *testing.T) {
	nop := SinkFunc(func(context.Context, []*Message) error { return nil })
	for name, end := range brokerEnds {
		inBubble(t, "with something queued everybody is told when "+name, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			g, idle := newGateway(t, "g", keeping(GatewayConfig{})), newGateway(t, "idle", GatewayConfig{})
			require.NoError(t, b.RegisterGateway(g))
			require.NoError(t, b.RegisterGateway(idle))
			runGateway(t, g)
			mine, _ := join(t, g, "mine", "u")
			others, _ := join(t, g, "others", "v")
			unrun, _ := join(t, idle, "unrun", "w")
			cursor := others.Cursor()
			full := route(t, b, newStation("full", 0), "x")
			calm := route(t, b, newStation("calm", 9))
			publishTo(t, b, "x", P1, series("x", 3)...) // the lane stands still at the first
			publishTo(t, b, "u", P1, "for u")
			end(t, b)
			pass(time.Second)
			require.Positive(t, full.gaps.Load())
			require.EqualValues(t, 1, calm.gaps.Load(), "what was queued may have been for it")
			for _, s := range []*Session{mine, others, unrun} {
				require.Equal(t, ErrGap, s.Err(), s.ID())
			}
			_, err := g.RegisterSession(SessionConfig{ID: "again", UserID: "v", Sink: nop, After: cursor})
			require.ErrorIs(t, err, ErrCursorGone)
			conserved(t, b, g)
		})
		inBubble(t, "with nothing queued nobody is told when "+name, func(t *testing.T) {
			b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", keeping(GatewayConfig{}))
			require.NoError(t, b.RegisterGateway(g))
			runGateway(t, g)
			s, _ := join(t, g, "s", "u")
			cursor := s.Cursor()
			calm := route(t, b, newStation("calm", 9), "u")
			end(t, b)
			pass(time.Second)
			require.Zero(t, calm.gaps.Load())
			require.NoError(t, s.Err())
			_, err := g.RegisterSession(SessionConfig{ID: "again", UserID: "u", Sink: nop, After: cursor})
			require.NoError(t, err)
		})
	}
}

func TestGapOfTheLastMessage(t *testing.T) {
	inBubble(t, "nobody is told by a drain that delivered everything", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := join(t, g, "s", "u")
		slow := route(t, b, newStation("slow", 0), "u")
		publishTo(t, b, "u", P1, series("m", 5)...)
		publishTo(t, b, "u", P3, series("n", 5)...)
		time.AfterFunc(time.Minute, func() {
			slow.fetch(t, P1, 5)
			slow.fetch(t, P3, 5)
		})
		drainWithin(t, b, time.Hour)
		pass(time.Minute)
		require.Zero(t, slow.gaps.Load())
		require.NoError(t, s.Err())
		require.Len(t, sink.ids(), 10)
	})

	inBubble(t, "a receiver is told of a message that it was being handed, though no other was left", func(t *testing.T) {
		for name, end := range brokerEnds {
			if name == "Shutdown comes before Run" {
				continue // then nothing is handed over
			}
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			full := route(t, b, newStation("full", 0), "u")
			publishTo(t, b, "u", P1, "1")
			end(t, b)
			synctest.Wait()
			require.EqualValues(t, 1, full.gaps.Load(), name)
			conserved(t, b)
		}
	})

	inBubble(t, "Run returns after the calls of Gap that it is the reason for", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		full := route(t, b, newStation("full", 0), "u")
		calm := newStation("calm", 1)
		calm.onGap = func() { nap(100 * time.Millisecond) }
		require.NoError(t, b.RegisterReceiver(calm))
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		publishTo(t, b, "u", P1, "1", "2")
		synctest.Wait()
		began := time.Now()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Equal(t, 100*time.Millisecond, time.Since(began))
		require.Positive(t, full.gaps.Load())
		require.EqualValues(t, 1, calm.gaps.Load())
	})
}

func TestGapThatEndsItsGoroutine(t *testing.T) {
	inBubble(t, "a receiver whose Gap ends its goroutine recovers like any other", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 2), "u")
		s.onGap = runtime.Goexit
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("m", 4)...)
		pass(2 * time.Second)
		require.EqualValues(t, 1, s.gaps.Load())
		require.Len(t, s.poll(), 2)
		publishTo(t, b, "u", P1, "again")
		synctest.Wait()
		require.Equal(t, []string{"again"}, ids(s.poll()))
	})
}

func TestWhoIsToldAtTheEnd(t *testing.T) {
	inBubble(t, "nobody is told of a message at the end that everybody has but a global subscriber", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		g := newGateway(t, "g", keeping(GatewayConfig{}))
		require.NoError(t, b.RegisterGateway(g))
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		calm := route(t, b, newStation("calm", 9))
		require.NoError(t, b.SubscribeGlobal("storage", make(chan *Message), Wait))
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		publishTo(t, b, "u", P1, "1")
		pass(time.Second)
		require.Equal(t, []string{"1"}, sink.ids())
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		synctest.Wait()
		require.Zero(t, calm.gaps.Load())
		require.NoError(t, s.Err(), "nothing is missing")
		conserved(t, b, g)
	})

	inBubble(t, "at the end only those are told who miss something, if nothing was queued", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		full, calm := route(t, b, newStation("full", 0), "u"), route(t, b, newStation("calm", 9))
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		publishTo(t, b, "u", P1, "1")
		pass(time.Second)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		synctest.Wait()
		require.EqualValues(t, 1, full.gaps.Load())
		require.Zero(t, calm.gaps.Load())
	})
}
