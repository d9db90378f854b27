package notification

import (
	"context"
	"errors"
	"fmt"
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

func TestPushThatFails(t *testing.T) {
	errPipe := errors.New("broken pipe")
	for name, row := range map[string]struct {
		push   func() error
		reason error
		tells  string
	}{
		"returns an error":     {func() error { return errPipe }, errPipe, ""},
		"returns a sentinel":   {func() error { return ErrGap }, ErrGap, ""},
		"panics":               {func() error { panic("oops") }, ErrSinkPanic, "oops"},
		"panics with nil":      {func() error { panic(nil) }, ErrSinkPanic, "nil"},
		"panics with an error": {func() error { panic(errPipe) }, ErrSinkPanic, "broken pipe"},
		"calls runtime.Goexit": {func() error { runtime.Goexit(); return nil }, ErrSinkPanic, "Goexit"},
		"dereferences nothing": {func() error { var s *Session; s.id = ""; return nil }, ErrSinkPanic, "nil pointer"},
	} {
		for _, n := range []int{1, 4} {
			inBubble(t, fmt.Sprintf("a Push that %s ends its session with that reason, everybody else goes on in order/%d pushers", name, n), func(t *testing.T) {
				log, logs := logged()
				b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: n, MaxPushers: n, BatchSize: 10, Logger: log})
				_, well := join(t, g, "well", "u")
				s, sink := join(t, g, "s", "u", hooked(func(_ context.Context, ms []*Message) error {
					if slices.Contains(ids(ms), "m25") {
						return row.push()
					}
					return nil
				}))
				_, other := join(t, g, "other", "v")
				for _, id := range series("m", 60) {
					publishTo(t, b, "u", P1, id)
					publishTo(t, b, "v", P1, id+"v")
				}
				pass(time.Second)
				<-s.Done()
				require.ErrorIs(t, s.Err(), row.reason)
				require.ErrorContains(t, s.Err(), row.tells)
				closes, reason := sink.ended()
				require.Equal(t, 1, closes)
				require.Equal(t, s.Err(), reason)
				require.Equal(t, series("m", 20), sink.ids(), "the batches before")
				require.Equal(t, series("m", 60), well.ids())
				require.Len(t, other.ids(), 60)
				require.Equal(t, uint64(1), g.Stats().Ended.Failed+g.Stats().Ended.Gap)
				l := lane(g, P1)
				require.Equal(t, uint64(20+120), l.Taken)
				require.GreaterOrEqual(t, l.DroppedEnded, uint64(10), "the batch that failed is lost, not taken")
				require.Zero(t, l.Pending)
				if row.tells != "" {
					require.Contains(t, logs(), "session=s")
					require.Contains(t, logs(), "stack=")
					require.Contains(t, logs(), row.tells)
				}
				_, again := join(t, g, "s", "u") // the ID is free
				publishTo(t, b, "u", P0, "again")
				synctest.Wait()
				require.Equal(t, []string{"again"}, again.ids())
				require.Equal(t, n, pushers(g))
			})
		}
	}
	inBubble(t, "the batch of a Push that ended its goroutine is not overwritten by the next one", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		var kept []*Message
		join(t, g, "s", "u", hooked(func(_ context.Context, ms []*Message) error {
			defer func() {
				go func() { kept = ms }() // forbidden, but it must not see another user's messages
			}()
			runtime.Goexit()
			return nil
		}))
		join(t, g, "well", "v", hooked(func(context.Context, []*Message) error {
			for _, m := range kept {
				if m != nil && m.n.UserID != "u" {
					t.Error("it sees the next batch")
				}
			}
			return nil
		}))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "v", P0, "b")
		synctest.Wait()
		for _, m := range kept {
			require.True(t, m == nil || m.n.UserID == "u")
		}
	})
}

func TestCloseThatFails(t *testing.T) {
	for name, shut := range map[string]func(error){
		"panics":               func(error) { panic("oops") },
		"calls runtime.Goexit": func(error) { runtime.Goexit() },
	} {
		inBubble(t, "a Close that "+name+" is logged, and nobody else notices", func(t *testing.T) {
			log, logs := logged()
			b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1, Logger: log})
			for i, end := range []func(s *Session){
				func(s *Session) { require.NoError(t, s.Close()) },
				func(s *Session) { publishTo(t, b, "s", P0, "panic") }, // in Push as well
				func(s *Session) { g.Gap() },
			} {
				s, sink := join(t, g, "s", "s", func(_ *SessionConfig, sink *ledger) {
					sink.shut = shut
					sink.hook = func(context.Context, []*Message) error { panic("before") }
				})
				end(s)
				<-s.Done()
				n, _ := sink.ended()
				require.Equal(t, 1, n)
				require.Contains(t, logs(), "call=Close")
				_, well := join(t, g, "well", "u")
				publishTo(t, b, "u", P0, strconv.Itoa(i))
				synctest.Wait()
				require.Equal(t, []string{strconv.Itoa(i)}, well.ids())
				require.NoError(t, g.UnregisterSession("well"))
				require.Equal(t, 1, pushers(g))
			}
		})
		t.Run("of a Gateway that does not run, a Close that "+name+" ends nobody else", func(t *testing.T) {
			noLeaks(t)
			g := newGateway(t, "g", GatewayConfig{})
			for _, id := range series("s", 3) {
				join(t, g, id, "u", func(_ *SessionConfig, sink *ledger) { sink.shut = shut })
			}
			s, _ := g.Session("s2")
			require.NoError(t, s.Close())
			<-s.Done()
			require.NoError(t, g.Shutdown(t.Context()))
		})
	}
}

func TestCallThatHangs(t *testing.T) {
	inBubble(t, "a Push that ignores ctx keeps nobody else, and Done waits for it and for Close", func(t *testing.T) {
		held := newGate(t)
		log, logs := logged()
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, Logger: log})
		s, sink := join(t, g, "s", "u", hooked(held.deaf))
		_, well := join(t, g, "well", "v")
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, s.Close())
		publishTo(t, b, "v", P0, "b")
		pass(time.Second)
		require.Equal(t, []string{"b"}, well.ids())
		require.Equal(t, uint64(1), g.Stats().Hung)
		require.Contains(t, logs(), "sink abandoned")
		require.Contains(t, logs(), "session=s")
		n, _ := sink.ended()
		require.Zero(t, n, "Close comes after Push")
		require.Equal(t, 1, lane(g, P0).Pending)
		held.open()
		<-s.Done()
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionClosed, reason)
		require.Equal(t, []string{"a"}, sink.ids(), "and it has taken its batch after all")
		require.Equal(t, GatewayLane{Received: 2, Enqueued: 2, Taken: 2}, lane(g, P0))
	})
	inBubble(t, "a Close that hangs counts as well, however its session ended", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 2, BatchSize: 1, OutboxMessages: 1})
		for i, end := range []func(s *Session){
			func(s *Session) { require.NoError(t, s.Close()) },
			func(s *Session) { publishTo(t, b, s.UserID(), P0, s.ID()) }, // Push fails
			func(*Session) { g.Gap() },
		} {
			id := strconv.Itoa(i)
			s, _ := join(t, g, id, id, func(_ *SessionConfig, sink *ledger) {
				sink.hook = func(context.Context, []*Message) error { return errors.New("broken pipe") }
				sink.shut = func(error) { <-held.ch }
			})
			end(s)
			pass(time.Second)
			require.Equal(t, uint64(i+1), g.Stats().Hung)
			_, well := join(t, g, "well"+id, "well"+id)
			publishTo(t, b, "well"+id, P0, "m"+id)
			synctest.Wait()
			require.Equal(t, []string{"m" + id}, well.ids())
		}
		held.open()
	})
	inBubble(t, "before Run a Close that hangs is counted and nobody waits for it", func(t *testing.T) {
		held := newGate(t)
		g := newGateway(t, "g", GatewayConfig{})
		s, _ := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		require.NoError(t, s.Close())
		pass(time.Second - 1)
		require.Zero(t, g.Stats().Hung)
		pass(1)
		require.Equal(t, uint64(1), g.Stats().Hung)
		discard(t, g)
		held.open()
		<-s.Done()
	})
}

func TestBatchBuffer(t *testing.T) {
	for size, want := range map[int][]int{
		100: {64, 64, 100, 100},
		10:  {10, 10, 10, 10},
		300: {64, 64, 200, 200},
	} {
		t.Run(fmt.Sprintf("it grows as batches ask for it, up to BatchSize/%d", size), func(t *testing.T) {
			p := &pusher{g: &Gateway{cfg: GatewayConfig{BatchSize: size}}}
			for i, n := range []int{1, 33, 100, 150} {
				n = min(n, size)
				require.Len(t, p.room(n), n)
				require.Len(t, p.buf, want[i])
			}
		})
	}
}

// TestInsidePush calls everything that may be called from inside Push and Close.
func TestInsidePush(t *testing.T) {
	// Close is called on the way down too, when there is nobody to talk to.
	fine := func(t *testing.T, err error) {
		if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrUnknownReceiver) && !errors.Is(err, ErrSessionExists) {
			t.Error(err)
		}
	}
	for name, call := range map[string]func(t *testing.T, b *Broker, g *Gateway, s *Session){
		"Publish": func(t *testing.T, b *Broker, _ *Gateway, _ *Session) {
			fine(t, b.Publish(note(freshID(), "u", P0)))
			fine(t, b.Publish(notice(freshID(), P3)))
		},
		"PublishWait": func(t *testing.T, b *Broker, _ *Gateway, _ *Session) {
			fine(t, b.PublishWait(t.Context(), note(freshID(), "u", P1)))
		},
		"Subscribe": func(t *testing.T, b *Broker, g *Gateway, s *Session) {
			fine(t, b.Subscribe("u", "g"))
			fine(t, b.Unsubscribe("u", "g"))
			s.Subscribe(ChannelRisk)
			s.Unsubscribe(ChannelRisk)
			s.SubscribeAll()
		},
		"Touch and the rest": func(t *testing.T, b *Broker, g *Gateway, s *Session) {
			s.Touch()
			_, _, _, _, _, _ = s.Subscriptions(), s.LastActive(), s.Dropped(), s.Err(), s.Done(), s.Cursor()
			_, _ = b.Stats(), g.Stats()
			for range g.Sessions() {
			}
			for range g.UserSessions("u") {
			}
		},
		"Close":             func(t *testing.T, _ *Broker, _ *Gateway, s *Session) { require.NoError(t, s.Close()) },
		"UnregisterSession": func(_ *testing.T, _ *Broker, g *Gateway, s *Session) { _ = g.UnregisterSession(s.ID()) },
		"RegisterSession": func(t *testing.T, _ *Broker, g *Gateway, s *Session) {
			_, err := g.RegisterSession(SessionConfig{ID: freshID(), UserID: "u", Sink: newLedger(t, g)})
			fine(t, err)
		},
		"RegisterSession that replaces": func(t *testing.T, _ *Broker, g *Gateway, s *Session) {
			for range 3 {
				_, err := g.RegisterSession(SessionConfig{ID: freshID(), UserID: s.UserID(), Sink: newLedger(t, g)})
				fine(t, err)
			}
		},
		"the end of its session and the same ID anew": func(t *testing.T, _ *Broker, g *Gateway, s *Session) {
			if s.Close(); s.Err() == ErrSessionClosed {
				_, err := g.RegisterSession(SessionConfig{ID: s.ID(), UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
				fine(t, err)
			}
		},
		"Gap": func(_ *testing.T, _ *Broker, g *Gateway, _ *Session) { g.Gap() },
		"Unregister of its Gateway": func(t *testing.T, b *Broker, g *Gateway, _ *Session) {
			if b.Unregister("g") == nil {
				fine(t, b.RegisterGateway(g))
			}
		},
		"global subscribers": func(t *testing.T, b *Broker, g *Gateway, _ *Session) {
			id := freshID()
			fine(t, b.SubscribeGlobal(id, make(chan *Message, 1), DropNewest))
			fine(t, b.UnsubscribeGlobal(id))
		},
	} {
		for _, n := range []int{1, 4} {
			inBubble(t, fmt.Sprintf("%s/%d pushers", name, n), func(t *testing.T) {
				b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: n, MaxSessionsPerUser: 3, InboxCapacity: 2})
				var calls atomic.Int32
				for _, id := range series("s", 3) {
					var s *Session
					ready := make(chan struct{})
					s, _ = join(t, g, id, "u", func(_ *SessionConfig, sink *ledger) {
						inside := func() {
							<-ready
							if calls.Add(1) <= 20 {
								call(t, b, g, s)
							}
						}
						sink.hook = func(context.Context, []*Message) error { inside(); return nil }
						sink.shut = func(error) { inside() }
					})
					close(ready)
				}
				publishTo(t, b, "u", P1, series("m", 30)...)
				publishTo(t, b, "u", P0, series("n", 30)...)
				pass(time.Minute)
				require.NotZero(t, calls.Load())
				require.NoError(t, b.Shutdown(t.Context()))
				if err := g.Shutdown(t.Context()); err != nil {
					require.ErrorIs(t, err, ErrClosed)
				}
			})
		}
	}
}

func TestInsideGlobalSubscriber(t *testing.T) {
	inBubble(t, "a global subscriber that publishes, registers and unregisters", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{InboxCapacity: 1})
		ch := make(chan *Message)
		require.NoError(t, b.SubscribeGlobal("storage", ch, Wait))
		join(t, g, "s", "u")
		done := make(chan int)
		go func() {
			seen := 0
			for m := range ch {
				if seen++; seen <= 100 && !strings.HasPrefix(m.n.ID, "echo") {
					require.NoError(t, b.Publish(note("echo"+m.n.ID, "u", P0)))
					id := "r" + m.n.ID
					require.NoError(t, b.RegisterReceiver(newStation(id, 100)))
					require.NoError(t, b.Subscribe("u", id))
					require.NoError(t, b.Unregister(id))
					require.NoError(t, b.SubscribeGlobal(id, make(chan *Message, 100), DropNewest))
					require.NoError(t, b.UnsubscribeGlobal(id))
					s, _ := join(t, g, id, "u")
					require.NoError(t, s.Close())
				}
			}
			done <- seen
		}()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 10)...)
		}
		pass(time.Second)
		drain(t, b)
		require.NoError(t, b.UnsubscribeGlobal("storage"))
		close(ch)
		require.Equal(t, 80, <-done, "forty and their echoes")
	})
}

// brittle is an error whose nil pointer is returned by mistake, as happens to
// many a program: err != nil, and its methods panic.
type brittle struct{ cause error }

func (e *brittle) Error() string { return "brittle" }

func (e *brittle) Unwrap() error { return e.cause }

// curious is an error that asks around when it is compared.
type curious struct{ ask func() }

func (e curious) Error() string { return "curious" }

func (e curious) Is(error) bool { e.ask(); return false }

func TestErrorsAreUserCode(t *testing.T) {
	inBubble(t, "an error that panics when it is looked at ends its session and nothing else", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := join(t, g, "s", "u", hooked(func(context.Context, []*Message) error { var err *brittle; return err }))
		_, other := join(t, g, "other", "other")
		publishTo(t, b, "u", P0, "m")
		synctest.Wait()
		require.ErrorIs(t, s.Err(), ErrSinkPanic)
		n, _ := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, SessionEnds{Failed: 1}, g.Stats().Ended)
		publishTo(t, b, "other", P0, "m2")
		synctest.Wait()
		require.Equal(t, []string{"m2"}, other.ids())
	})
	t.Run("an error may ask the Gateway and the session when it is looked at", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		known := make(chan *Session, 1)
		s, _ := join(t, g, "s", "u", hooked(func(context.Context, []*Message) error {
			s := <-known
			return curious{func() { s.Err(); g.Stats(); g.Session("s") }}
		}))
		known <- s
		publishTo(t, b, "u", P0, "m")
		var wg sync.WaitGroup
		wg.Go(func() { <-s.Done() })
		finished(t, "the end of the session", &wg)
		require.ErrorAs(t, s.Err(), new(curious))
		require.Equal(t, SessionEnds{Failed: 1}, g.Stats().Ended)
	})
	inBubble(t, "one that Is ErrSlowConsumer counts as slow", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		err := fmt.Errorf("my queue is full: %w", ErrSlowConsumer)
		s, _ := join(t, g, "s", "u", hooked(func(context.Context, []*Message) error { return err }))
		publishTo(t, b, "u", P0, "m")
		synctest.Wait()
		require.Equal(t, err, s.Err())
		require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
	})
}
