package notification

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"unsafe"

	"github.com/stretchr/testify/require"
)

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

func TestOutbox(t *testing.T) {
	t.Run("it is four queues, whatever the order of pushes and pops, and holds nothing when it is empty", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		var o outbox
		var model [NumPriorities][]*Message
		for i := range 100_000 {
			p := Priority(random.IntN(4))
			total := 0
			for _, lane := range model {
				total += len(lane)
			}
			// In waves, so that it runs empty and grows over many chunks.
			if push := random.IntN(100) < 50+45*((i/500)%2*2-1); push || total == 0 {
				m := NewMessage(note(strconv.Itoa(i), "u", p))
				require.Equal(t, len(model[p]) == 0, o.push(m, 0))
				model[p] = append(model[p], m)
				total++
			} else {
				low := P3
				for len(model[low]) == 0 {
					low--
				}
				require.Equal(t, low, o.lowest())
				for len(model[p]) == 0 {
					p = Priority(random.IntN(4))
				}
				require.Same(t, model[p][0], o.pop(p))
				model[p] = model[p][1:]
				total--
			}
			require.Equal(t, total, o.total)
			for p := range model {
				require.Equal(t, len(model[p]), int(o.lanes[p].n))
				if len(model[p]) == 0 {
					require.Nil(t, o.lanes[p].first)
					require.Nil(t, o.lanes[p].last)
				}
			}
		}
	})
	t.Run("a chunk fills the size class that it is made for", func(t *testing.T) {
		if strconv.IntSize == 64 {
			require.LessOrEqual(t, unsafe.Sizeof(chunk{}), uintptr(256))
			require.Greater(t, unsafe.Sizeof(chunk{}), uintptr(240), "the next smaller class")
		}
	})
}

func TestFilter(t *testing.T) {
	all := []Channel{ChannelTrade, ChannelAccount, ChannelPosition, ChannelRisk, ChannelSystem}
	for _, row := range []struct {
		name     string
		channels []Channel
		change   func(s *Session)
		want     []Channel
	}{
		{"nil at registration is everything", nil, func(*Session) {}, all},
		{"empty at registration is nothing", []Channel{}, func(*Session) {}, []Channel{}},
		{"some at registration are those", []Channel{ChannelRisk, ChannelTrade, ChannelRisk}, func(*Session) {}, []Channel{ChannelTrade, ChannelRisk}},
		{"Subscribe on everything narrows it to those named", nil, func(s *Session) { s.Subscribe(ChannelRisk, ChannelSystem) }, []Channel{ChannelRisk, ChannelSystem}},
		{"further ones add", nil, func(s *Session) { s.Subscribe(ChannelRisk); s.Subscribe(ChannelTrade) }, []Channel{ChannelTrade, ChannelRisk}},
		{"Unsubscribe takes away from everything too", nil, func(s *Session) { s.Unsubscribe(ChannelRisk) }, []Channel{ChannelTrade, ChannelAccount, ChannelPosition, ChannelSystem}},
		{"Unsubscribe from the only one leaves nothing", nil, func(s *Session) { s.Subscribe(ChannelRisk); s.Unsubscribe(ChannelRisk) }, []Channel{}},
		{"Unsubscribe from all one by one leaves nothing", nil, func(s *Session) {
			for _, c := range all {
				s.Unsubscribe(c)
			}
		}, []Channel{}},
		{"SubscribeAll removes the filter", []Channel{}, func(s *Session) { s.SubscribeAll() }, all},
		{"Subscribe after nothing is that one", []Channel{}, func(s *Session) { s.Subscribe(ChannelAccount) }, []Channel{ChannelAccount}},
		{"naming nothing changes nothing", nil, func(s *Session) { s.Subscribe(); s.Unsubscribe() }, all},
		{"what is no channel is ignored", nil, func(s *Session) { s.Subscribe(0, 6, 255); s.Unsubscribe(0, 6, 255) }, all},
	} {
		inBubble(t, row.name, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			s, sink := join(t, g, "s", "u", func(cfg *SessionConfig, _ *ledger) { cfg.Channels = row.channels })
			row.change(s)
			require.Equal(t, row.want, s.Subscriptions())
			want := []string(nil)
			for _, c := range all {
				require.Equal(t, slices.Contains(row.want, c), s.IsSubscribed(c))
				if slices.Contains(row.want, c) {
					want = append(want, c.String())
				}
			}
			require.False(t, s.IsSubscribed(0))
			require.False(t, s.IsSubscribed(6))
			require.False(t, s.IsSubscribed(32), "no shift goes round")
			for _, n := range []*Notification{
				{ID: "trade", UserID: "u", Payload: TradeExecuted{}},
				{ID: "account", UserID: "u", Payload: AccountUpdate{}},
				{ID: "position", UserID: "u", Payload: PositionUpdate{}},
				{ID: "risk", UserID: "u", Payload: RiskAlert{}},
				{ID: "system", UserID: AllUsers, Payload: MarketHalt{}},
			} {
				require.NoError(t, b.Publish(n))
			}
			synctest.Wait()
			require.Equal(t, want, sink.ids())
			l := lane(g, P0)
			require.Equal(t, uint64(5-len(want)), l.Filtered)
			require.Equal(t, uint64(len(want)), l.Enqueued)
		})
	}
	inBubble(t, "it decides when a message reaches the outbox, not when that is pushed", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "before")
		synctest.Wait()
		s.Unsubscribe(ChannelAccount)
		publishTo(t, b, "u", P3, "without")
		synctest.Wait()
		s.SubscribeAll()
		publishTo(t, b, "u", P3, "after")
		pass(time.Second)
		require.Equal(t, []string{"before", "after"}, sink.ids())
	})
	t.Run("it is a set, or everything, under any sequence of changes", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		g := newGateway(t, "g", GatewayConfig{})
		s, _ := join(t, g, "s", "u")
		every, set := true, map[Channel]bool{}
		for range 10_000 {
			var some []Channel
			for range random.IntN(4) {
				some = append(some, Channel(random.IntN(7)))
			}
			valid := slices.DeleteFunc(slices.Clone(some), func(c Channel) bool { return c < 1 || c > 5 })
			switch op := random.IntN(7); {
			case op < 3:
				s.Subscribe(some...)
				for _, c := range valid {
					if every {
						every, set = false, map[Channel]bool{}
					}
					set[c] = true
				}
			case op < 6:
				s.Unsubscribe(some...)
				for _, c := range valid {
					if every {
						every = false
						for _, c := range all {
							set[c] = true
						}
					}
					delete(set, c)
				}
			default:
				s.SubscribeAll()
				every = true
			}
			want := []Channel{}
			for _, c := range all {
				if every || set[c] {
					want = append(want, c)
				}
			}
			require.Equal(t, want, s.Subscriptions())
		}
		require.NoError(t, ended(g))
	})
}

func TestSession(t *testing.T) {
	inBubble(t, "it tells who and since when it is", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		began := time.Now()
		s, _ := join(t, g, "s", "u")
		require.Equal(t, "s", s.ID())
		require.Equal(t, "u", s.UserID())
		require.True(t, began.Equal(s.ConnectedAt()))
		require.True(t, began.Equal(s.LastActive()))
		require.Zero(t, s.Dropped())
		require.NoError(t, s.Err())
		pass(time.Second)
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.True(t, began.Add(time.Second).Equal(s.LastActive()), "a Push that returned nil")
		pass(time.Second)
		s.Touch()
		require.True(t, began.Add(2*time.Second).Equal(s.LastActive()))
		pass(time.Second)
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.True(t, began.Add(2*time.Second).Equal(s.LastActive()), "Touch alone, from the first on")
		require.True(t, began.Equal(s.ConnectedAt()))
	})
	inBubble(t, "Close ends it once, drops what waits and counts it, and is nil however often it is called", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := join(t, g, "s", "u")
		other, _ := join(t, g, "t", "u")
		publishTo(t, b, "u", P3, "a", "b")
		synctest.Wait()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				require.NoError(t, s.Close())
				_ = g.UnregisterSession("s")
			})
		}
		wg.Wait()
		<-s.Done()
		require.Equal(t, ErrSessionClosed, s.Err())
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionClosed, reason)
		require.Empty(t, sink.ids())
		require.Equal(t, GatewayLane{Received: 2, Enqueued: 4, DroppedEnded: 2, Pending: 2}, lane(g, P3))
		require.Equal(t, uint64(1), g.Stats().Ended.Closed)
		require.NoError(t, other.Err())
		require.Equal(t, 1, b.Stats().Users)
		require.NoError(t, s.Close(), "long after")
		s.Touch()
		s.Subscribe(ChannelRisk)
		require.Equal(t, ErrSessionClosed, s.Err())
	})
	inBubble(t, "ctx of a running Push ends when the session does, with its reason as the cause", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var cause error
		s, sink := join(t, g, "s", "u", hooked(func(ctx context.Context, _ []*Message) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}))
		publishTo(t, b, "u", P0, "a")
		pass(time.Minute)
		require.NoError(t, g.UnregisterSession("s"))
		<-s.Done()
		require.Equal(t, ErrSessionClosed, cause)
		require.Equal(t, []string{"a"}, sink.ids())
		require.Equal(t, GatewayLane{Received: 1, Enqueued: 1, Taken: 1}, lane(g, P0), "what a Push took is taken, even if its session ended meanwhile")
	})
	inBubble(t, "Done waits for Close, the ID does not", func(t *testing.T) {
		held := newGate(t)
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, _ := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		require.NoError(t, s.Close())
		synctest.Wait()
		require.Empty(t, s.Done())
		select {
		case <-s.Done():
			t.Fatal("Close has not returned")
		default:
		}
		join(t, g, "s", "u")
		held.open()
		<-s.Done()
		<-s.Done()
	})
	t.Run("of a Gateway that does not run it ends as well", func(t *testing.T) {
		noLeaks(t)
		g := newGateway(t, "g", GatewayConfig{})
		for _, end := range []func(s *Session){
			func(s *Session) { require.NoError(t, s.Close()) },
			func(s *Session) { require.NoError(t, g.UnregisterSession(s.ID())) },
			func(*Session) { g.Gap() },
			func(*Session) { require.NoError(t, g.Shutdown(t.Context())) },
		} {
			s, sink := join(t, g, "s", "u")
			end(s)
			<-s.Done()
			n, reason := sink.ended()
			require.Equal(t, 1, n)
			require.Equal(t, s.Err(), reason)
		}
		require.Equal(t, SessionEnds{Closed: 2, Gap: 1, Shutdown: 1}, g.Stats().Ended)
	})
}

func TestSinkFailures(t *testing.T) {
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
		for _, pushers := range []int{1, 4} {
			inBubble(t, fmt.Sprintf("a Push that %s ends its session with that reason, everybody else goes on in order/%d pushers", name, pushers), func(t *testing.T) {
				log, logs := logged()
				b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: pushers, MaxPushers: pushers, BatchSize: 10, Logger: log})
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
				n, reason := sink.ended()
				require.Equal(t, 1, n)
				require.Equal(t, s.Err(), reason)
				require.Equal(t, series("m", 20), sink.ids(), "the batches before")
				require.Equal(t, series("m", 60), well.ids())
				require.Len(t, other.ids(), 60)
				require.Equal(t, uint64(1), g.Stats().Ended.Failed+g.Stats().Ended.Gap)
				l := lane(g, P1)
				require.Equal(t, uint64(20+120), l.Taken)
				require.GreaterOrEqual(t, l.DroppedEnded, uint64(10), "the batch that failed is lost, not taken")
				require.Equal(t, l.Enqueued, l.Taken+l.DroppedEnded)
				if row.tells != "" {
					require.Contains(t, logs(), "session=s")
					require.Contains(t, logs(), "stack=")
					require.Contains(t, logs(), row.tells)
				}
				_, again := join(t, g, "s", "u") // the ID is free
				publishTo(t, b, "u", P0, "again")
				synctest.Wait()
				require.Equal(t, []string{"again"}, again.ids())
				require.Equal(t, pushers, g.due.size())
			})
		}
	}
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
				require.Equal(t, 1, g.due.size())
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
	inBubble(t, "the batch that a Goexit left behind is not overwritten by the next one", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: 1, MaxPushers: 1})
		var kept []*Message
		join(t, g, "s", "u", hooked(func(_ context.Context, ms []*Message) error {
			defer func() {
				go func() { kept = ms }() // wrong, but it must not see another user's messages
			}()
			runtime.Goexit()
			return nil
		}))
		join(t, g, "well", "v")
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "v", P0, "b")
		synctest.Wait()
		for _, m := range kept {
			require.True(t, m == nil || m.n.UserID == "u")
		}
	})
}

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
		l := lane(g, P1)
		require.Equal(t, l.Enqueued, l.Taken+l.DroppedEnded)
		require.Equal(t, uint64(10), l.Taken, "whole batches: m1 to m4, and all six of the other")
	})
	inBubble(t, "without a capacity it hands over, a negative one is none", func(t *testing.T) {
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
			fine(t, b.Publish(note(newID(), "u", P0)))
			fine(t, b.Publish(notice(newID(), P3)))
		},
		"PublishWait": func(t *testing.T, b *Broker, _ *Gateway, _ *Session) {
			fine(t, b.PublishWait(t.Context(), note(newID(), "u", P1)))
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
			_, err := g.RegisterSession(SessionConfig{ID: newID(), UserID: "u", Sink: newLedger(t, g)})
			fine(t, err)
		},
		"RegisterSession that replaces": func(t *testing.T, _ *Broker, g *Gateway, s *Session) {
			for range 3 {
				_, err := g.RegisterSession(SessionConfig{ID: newID(), UserID: s.UserID(), Sink: newLedger(t, g)})
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
			id := newID()
			fine(t, b.SubscribeGlobal(id, make(chan *Message, 1), DropNewest))
			fine(t, b.UnsubscribeGlobal(id))
		},
	} {
		for _, pushers := range []int{1, 4} {
			inBubble(t, fmt.Sprintf("%s/%d pushers", name, pushers), func(t *testing.T) {
				b, g := pair(t, BrokerConfig{}, GatewayConfig{Pushers: pushers, MaxSessionsPerUser: 3, InboxCapacity: 2})
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

func TestSessionMemory(t *testing.T) {
	t.Run("a Session stays within the 480-byte size class", func(t *testing.T) {
		if strconv.IntSize != 64 {
			t.Skip("the claim is about 64 bits")
		}
		require.LessOrEqual(t, unsafe.Sizeof(Session{}), uintptr(480))
	})
	t.Run("100,000 idle sessions, indexes included, take at most 1 KiB each and no goroutine", func(t *testing.T) {
		if underRace {
			t.Skip("the race detector's own memory is many times that")
		}
		const n = 100_000
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		sink := SinkFunc(func(context.Context, []*Message) error { return nil })
		goroutines, before := runtime.NumGoroutine(), heap()
		for i := range n {
			_, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("session-%08d", i), UserID: fmt.Sprintf("user-%08d", i), Sink: sink})
			require.NoError(t, err)
		}
		for p := P0; p <= P3; p++ { // each has had something, and has nothing any more
			require.NoError(t, b.Publish(notice(p.String(), p)))
		}
		eventually(t, "all have all four", func() bool {
			for p := P0; p <= P3; p++ {
				if lane(g, p).Taken != n {
					return false
				}
			}
			return true
		})
		each := (heap() - before) / n
		t.Logf("%d bytes each", each)
		require.LessOrEqual(t, each, int64(1024))
		require.LessOrEqual(t, runtime.NumGoroutine(), goroutines+8, "pushers may have had stand-ins")
		runtime.KeepAlive(g)
	})
}
