package notification

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a session gets that resumes behind a cursor. Where cursors stand is in
// resume_cursor_test.go, Live in resume_live_test.go, and who resumes while
// everything else goes on in resume_chaos_test.go.

// keeping is a GatewayConfig with history whose sessions never expire, so that
// only HistoryTTL moves in a bubble's time.
func keeping(cfg GatewayConfig) GatewayConfig {
	cfg.HistoryMessages = cmp.Or(cfg.HistoryMessages, 1024)
	cfg.SessionTimeout = cmp.Or(cfg.SessionTimeout, -1)
	return cfg
}

// bubble runs f with a Gateway with history that runs, in virtual time.
func bubble(t *testing.T, cfg GatewayConfig, f func(t *testing.T, g *Gateway)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, "g", keeping(cfg))
		t.Cleanup(func() {
			if !t.Failed() {
				balanced(t, g)
				holdsNothing(t, g)
			}
		})
		runGateway(t, g)
		f(t, g)
		synctest.Wait()
		balanced(t, g)
	})
}

// feed puts notifications into the inbox, each into its lane.
func feed(g *Gateway, notes ...*Notification) {
	for _, n := range notes {
		g.Inbox()[n.Priority] <- NewMessage(n)
	}
}

// feedAll feeds notes of one user and lane.
func feedAll(g *Gateway, userID string, p Priority, ids []string) {
	for _, id := range ids {
		feed(g, note(id, userID, p))
	}
}

// on is note with a payload of that channel.
func on(ch Channel, id, userID string, p Priority) *Notification {
	n := note(id, userID, p)
	switch ch {
	case ChannelTrade:
		n.Payload = OrderFilled{OrderID: id}
	case ChannelPosition:
		n.Payload = PositionUpdate{UserID: userID}
	case ChannelRisk:
		n.Payload = RiskAlert{UserID: userID}
	case ChannelSystem:
		n.Payload = SystemNotice{Title: id}
	}
	return n
}

// after and wanting are changes for join: the cursor that the session resumes
// behind, and its filter.
func after(c Cursor) func(*SessionConfig, *ledger) {
	return func(cfg *SessionConfig, _ *ledger) { cfg.After = c }
}

func wanting(channels ...Channel) func(*SessionConfig, *ledger) {
	return func(cfg *SessionConfig, _ *ledger) { cfg.Channels = append([]Channel{}, channels...) }
}

// took returns the IDs of a lane that a sink has taken, in order.
func took(sink *ledger, p Priority) (all []string) {
	for _, b := range sink.got() {
		for _, m := range b.ms {
			if m.priority == p {
				all = append(all, m.n.ID)
			}
		}
	}
	return all
}

// offline makes a user one who has been here: it returns the cursor of a session
// that has just begun and ended.
func offline(t testing.TB, g *Gateway, userID string) Cursor {
	t.Helper()
	s, _ := join(t, g, "offline", userID)
	require.NoError(t, s.Close())
	return s.Cursor()
}

// behind returns, lane by lane, what a session of userID gets that resumes
// behind a cursor, and closes it.
func behind(t testing.TB, g *Gateway, userID string, c Cursor, change ...func(*SessionConfig, *ledger)) []string {
	t.Helper()
	s, sink := join(t, g, "behind", userID, append(change, after(c))...)
	pass(time.Second)
	require.NoError(t, s.Close())
	<-s.Done()
	return slices.Concat(took(sink, P0), took(sink, P1), took(sink, P2), took(sink, P3))
}

// gone requires that a cursor is void.
func gone(t testing.TB, g *Gateway, userID string, c Cursor, channels ...Channel) {
	t.Helper()
	s, err := g.RegisterSession(SessionConfig{ID: "gone", UserID: userID, Channels: channels, After: c, Sink: SinkFunc(func(context.Context, []*Message) error {
		t.Error("pushed to")
		return nil
	})})
	require.ErrorIs(t, err, ErrCursorGone)
	require.Nil(t, s)
}

// told is a change for join: each Push returns what it gets from results, or
// the end of its session.
func told(results <-chan error) func(*SessionConfig, *ledger) {
	return hooked(func(ctx context.Context, _ []*Message) error {
		select {
		case err := <-results:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

func TestResume(t *testing.T) {
	t.Run("what was missed comes per lane in its order, then what is live", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			var want [NumPriorities][]string
			send := func(phase string) {
				for i := range 40 {
					for p := P0; p <= P3; p++ {
						n := note(fmt.Sprint(phase, i, p), "u", p)
						if i%7 == int(p) {
							n = notice(n.ID, p)
						}
						feed(g, n, note(n.ID, "somebody else", p))
						want[p] = append(want[p], n.ID)
					}
				}
				pass(time.Second)
			}
			s, first := join(t, g, "s", "u")
			send("before")
			require.NoError(t, s.Close())
			send("missed")
			_, second := join(t, g, "s", "u", after(s.Cursor()))
			pass(time.Second)
			send("live")
			for p := P0; p <= P3; p++ {
				require.Equal(t, want[p], append(took(first, p), took(second, p)...), "P%d", p)
			}
			for p, l := range g.Stats().Lanes {
				require.EqualValues(t, 40, l.Replayed, "P%d", p)
				require.EqualValues(t, 80, l.Enqueued, "P%d", p)
			}
		})
	})
	t.Run("what becomes live while the replay goes on comes behind it, once", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 95))
			pass(time.Second)
			next := 95
			_, sink := join(t, g, "s", "u", after(from), hooked(func(context.Context, []*Message) error {
				if next < 200 { // more than the batch takes away, so that the replay is chased
					for range 12 {
						next++
						feed(g, note(fmt.Sprint("m", next), "u", P1))
					}
					nap(time.Millisecond)
				}
				return nil
			}))
			pass(time.Minute)
			require.Equal(t, series("m", next), took(sink, P1))
		})
	})
	t.Run("a Push that failed is repeated, one that returned nil is not", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 4}, func(t *testing.T, g *Gateway) {
			fail := errors.New("fail")
			pushes := 0
			connect := func(c Cursor) (*Session, *ledger) {
				return join(t, g, "s", "u", after(c), hooked(func(context.Context, []*Message) error {
					if pushes++; pushes%3 == 0 {
						return fail
					}
					return nil
				}))
			}
			s, sink := connect(Cursor{})
			feedAll(g, "u", P2, series("m", 100))
			pass(time.Second)
			var got []string
			for s.Err() != nil {
				require.Equal(t, fail, s.Err())
				got = append(got, sink.ids()...)
				s, sink = connect(s.Cursor())
				pass(time.Second)
			}
			require.Equal(t, series("m", 100), append(got, sink.ids()...))
			require.Positive(t, g.Stats().Ended.Failed)
		})
	})
	t.Run("a batch of the replay gives every lane its share, P0 first", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			for p := P0; p <= P3; p++ {
				feedAll(g, "u", p, series("m", 50))
			}
			pass(time.Second)
			_, sink := join(t, g, "s", "u", after(from))
			pass(time.Second)
			var counts [NumPriorities]int
			for _, m := range sink.got()[0].ms { // a ledger insists on the order of the lanes
				counts[m.priority]++
			}
			require.Equal(t, [NumPriorities]int{7, 1, 1, 1}, counts)
		})
	})
	t.Run("two sessions of a user resume each behind its own cursor", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5}, func(t *testing.T, g *Gateway) {
			phone, before := join(t, g, "phone", "u")
			_, desk := join(t, g, "desk", "u")
			feedAll(g, "u", P1, series("a", 12))
			pass(time.Second)
			require.NoError(t, phone.Close())
			feedAll(g, "u", P1, series("b", 12))
			pass(time.Second)
			_, again := join(t, g, "phone", "u", after(phone.Cursor()))
			feedAll(g, "u", P1, series("c", 12))
			pass(time.Second)
			want := slices.Concat(series("a", 12), series("b", 12), series("c", 12))
			require.Equal(t, want, append(before.ids(), again.ids()...))
			require.Equal(t, want, desk.ids())
		})
	})
	t.Run("two sessions that resume behind one cursor both get everything", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 5}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 60))
			pass(time.Second)
			_, a := join(t, g, "a", "u", after(from), slowly(time.Millisecond))
			_, b := join(t, g, "b", "u", after(from), slowly(time.Millisecond))
			pass(time.Second)
			require.Equal(t, series("m", 60), a.ids())
			require.Equal(t, series("m", 60), b.ids())
		})
	})
	t.Run("a session resumes behind a cursor of one that lives", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u")
			feedAll(g, "u", P1, series("a", 3))
			pass(time.Second)
			from := s.Cursor()
			feedAll(g, "u", P1, series("b", 3))
			pass(time.Second)
			require.Equal(t, series("b", 3), behind(t, g, "u", from))
		})
	})
	inBubble(t, "a session registered before Run resumes as well", func(t *testing.T) {
		g := newGateway(t, "g", keeping(GatewayConfig{}))
		_, sink := join(t, g, "s", "u", after(offline(t, g, "u")))
		feedAll(g, "u", P1, series("m", 5))
		runGateway(t, g)
		pass(time.Second)
		require.Equal(t, series("m", 5), sink.ids())
	})
	inBubble(t, "what a Push of a ChannelSink had sent before it failed comes again", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, keeping(GatewayConfig{}))
		open := func(id string, capacity int, after Cursor) (*Session, <-chan *Message) {
			sink, ch := ChannelSink(capacity)
			s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: sink, After: after})
			require.NoError(t, err)
			return s, ch
		}
		s, ch := open("first", 3, Cursor{})
		publishTo(t, b, "u", P2, series("m", 5)...) // which share a batch
		pass(time.Second)
		require.Len(t, ch, 3, "of the five")
		require.NoError(t, s.Close())
		<-s.Done()
		var got []string
		for m := range ch {
			got = append(got, m.Notification().ID)
		}
		require.Equal(t, series("m", 3), got, "they can be read")
		require.Equal(t, GatewayLane{Received: 5, Enqueued: 5, DroppedEnded: 5}, lane(g, P2), "none of them was taken")

		s, ch = open("second", 9, s.Cursor())
		pass(time.Second)
		require.NoError(t, s.Close())
		<-s.Done()
		got = nil
		for m := range ch {
			got = append(got, m.Notification().ID)
		}
		require.Equal(t, series("m", 5), got)
	})
}

func TestResumeWithAFilter(t *testing.T) {
	t.Run("the filter of the new session decides on what is replayed", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 3}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			var risks, others []string
			for i := range 50 {
				ch := ChannelTrade + Channel(i%4)
				n := on(ch, fmt.Sprint("m", i), "u", P1)
				feed(g, n)
				if ch == ChannelRisk {
					risks = append(risks, n.ID)
				} else {
					others = append(others, n.ID)
				}
			}
			pass(time.Second)
			require.Equal(t, risks, behind(t, g, "u", from, wanting(ChannelRisk)))
			require.Equal(t, others, behind(t, g, "u", from, wanting(ChannelTrade, ChannelAccount, ChannelPosition)))

			s, sink := join(t, g, "none", "u", after(from), wanting())
			pass(time.Second)
			require.Empty(t, sink.ids())
			require.Empty(t, behind(t, g, "u", s.Cursor()), "what it did not want is behind its cursor")
		})
	})
	t.Run("a filter that is narrowed in the middle of a replay decides from there on", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 4}, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			var want []string
			for i := range 40 {
				ch := ChannelTrade + Channel(i%2)
				feed(g, on(ch, fmt.Sprint("m", i), "u", P1))
				if i < 4 || ch == ChannelTrade {
					want = append(want, fmt.Sprint("m", i))
				}
			}
			pass(time.Second)
			require.Equal(t, want, behind(t, g, "u", from, hooked(func(context.Context, []*Message) error {
				for s := range g.UserSessions("u") {
					s.Subscribe(ChannelTrade)
				}
				return nil
			})))
		})
	})
	t.Run("what was evicted is not missed if the filter rejects it", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			for i := range 100 { // of another channel, and to all: evicted many times over
				feed(g, on(ChannelAccount, fmt.Sprint("a", i), "u", P1), notice(fmt.Sprint("n", i), P1))
			}
			for _, id := range series("t", 3) {
				feed(g, on(ChannelTrade, id, "u", P1))
			}
			pass(time.Second)
			require.Equal(t, series("t", 3), behind(t, g, "u", from, wanting(ChannelTrade)))
			gone(t, g, "u", from, ChannelAccount)
			gone(t, g, "u", from, ChannelSystem)
		})
	})
	t.Run("what a replay rejected is behind its cursor, evicted or not", func(t *testing.T) {
		cfg := GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 4, HistoryTotal: 4}
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			join(t, g, "other", "other")
			s, sink := join(t, g, "s", "u")
			from := s.Cursor()
			feedAll(g, "other", P1, series("h", 4)) // from here on u's history keeps nothing
			feedAll(g, "u", P1, series("m", 5))
			pass(time.Second)
			require.Equal(t, series("m", 5), sink.ids())
			quiet, _ := join(t, g, "quiet", "u", after(from), wanting())
			pass(time.Second)
			require.Empty(t, behind(t, g, "u", quiet.Cursor()), "there was nothing to miss that it had not rejected")
		})
	})
	t.Run("a session whose filter rejects everything for long resumes behind its cursor", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			s, sink := join(t, g, "s", "u", wanting(ChannelRisk))
			for i := range 100 {
				for p := P0; p <= P3; p++ {
					feed(g, note(fmt.Sprint("m", p, i), "u", p), notice(fmt.Sprint("n", p, i), p), note(fmt.Sprint("o", p, i), "other", p))
				}
				if i%8 == 0 {
					pass(time.Second)
				}
			}
			pass(time.Second)
			require.NoError(t, s.Close())
			require.Equal(t, lanes[uint64](200), s.Cursor().seqs, "over all that was rejected")
			require.Empty(t, sink.ids())
			require.Empty(t, behind(t, g, "u", s.Cursor()), "there was nothing to miss")
		})
	})
}

// A channel that is added while a replay goes on counts from its addition.
func TestSubscribeDuringReplay(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 4, OutboxMessages: 8, HistoryMessages: 64}
	// begin resumes a session that wants trades alone, with more to be replayed
	// than a batch, and returns it while the first Push goes on.
	begin := func(t *testing.T, g *Gateway, others ...*Notification) (s *Session, sink *ledger, held gate) {
		t.Helper()
		from := offline(t, g, "u")
		for _, id := range series("t", 20) {
			feed(g, on(ChannelTrade, id, "u", P1))
		}
		feed(g, others...)
		pass(time.Second)
		held = newGate(t)
		s, sink = join(t, g, "s", "u", wanting(ChannelTrade), after(from), hooked(held.pass))
		pass(time.Second)
		return s, sink, held
	}
	adds := map[string]func(s *Session){
		"what is added": func(s *Session) { s.Subscribe(ChannelAccount, ChannelSystem) },
		"every channel": func(s *Session) { s.SubscribeAll() },
	}
	for name, add := range adds {
		t.Run(name+" is no reason to end, though what came of it before is no longer there", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				var all []*Notification
				for i := range 100 { // of which 64 are kept
					all = append(all, notice(fmt.Sprint("n", i), P1))
				}
				s, sink, held := begin(t, g, all...)
				add(s)
				held.open()
				pass(time.Second)
				require.NoError(t, s.Err())
				require.Equal(t, series("t", 20), sink.ids())
			})
		})
		t.Run(name+" counts from then on: what came of it before is not replayed, what comes is", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				s, sink, held := begin(t, g, on(ChannelAccount, "before", "u", P1), on(ChannelAccount, "before P3", "u", P3))
				feed(g, on(ChannelAccount, "before too", "u", P1), notice("before to all", P1))
				pass(time.Second)
				add(s)
				feed(g, on(ChannelTrade, "trade", "u", P1), on(ChannelAccount, "later", "u", P1), notice("notice", P1), on(ChannelAccount, "later P3", "u", P3))
				pass(time.Second)
				held.open()
				pass(time.Second)
				feed(g, on(ChannelAccount, "live", "u", P1))
				pass(time.Second)
				require.NoError(t, s.Err())
				require.Equal(t, append(series("t", 20), "trade", "later", "notice", "live"), took(sink, P1))
				require.Equal(t, []string{"later P3"}, took(sink, P3))
				require.Empty(t, behind(t, g, "u", s.Cursor()), "what it did not want is behind its cursor")
			})
		})
	}
	t.Run("a channel that is taken away and added again counts from the second addition", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			s, sink, held := begin(t, g)
			s.Unsubscribe(ChannelTrade)
			feed(g, on(ChannelTrade, "between", "u", P1))
			pass(time.Second)
			s.Subscribe(ChannelTrade)
			feed(g, on(ChannelTrade, "later", "u", P1))
			pass(time.Second)
			held.open()
			pass(time.Second)
			require.NoError(t, s.Err())
			require.Equal(t, append(series("t", 4), "later"), sink.ids(), "the first batch was on its way")
		})
	})
	t.Run("from inside each Push, as a client does that is told what to show", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			for _, id := range series("t", 12) {
				feed(g, on(ChannelTrade, id, "u", P1))
			}
			for i := range 200 {
				feed(g, on(ChannelAccount, fmt.Sprint("a", i), "u", P2), notice(fmt.Sprint("n", i), P1))
			}
			pass(time.Second)
			s, sink := join(t, g, "s", "u", wanting(ChannelTrade), after(from), hooked(func(context.Context, []*Message) error {
				for s := range g.UserSessions("u") {
					s.Subscribe(ChannelAccount, ChannelSystem)
				}
				return nil
			}))
			pass(time.Second)
			require.NoError(t, s.Err())
			require.Equal(t, series("t", 12), sink.take())
			feed(g, notice("notice", P1), on(ChannelAccount, "account", "u", P2))
			pass(time.Second)
			require.Equal(t, []string{"notice"}, took(sink, P1))
			require.Equal(t, []string{"account"}, took(sink, P2))
		})
	})
}

func TestResumeOfTheSlow(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 10, OutboxMessages: 20, HistoryMessages: 64, Pushers: 2}
	for _, row := range []struct {
		name   string
		result func(ctx context.Context) error
	}{
		{"has given up", context.Cause},
		{"has taken its batch", func(context.Context) error { return nil }},
	} {
		t.Run("a session that ended as slow gets what its outbox held, also if its Push "+row.name, func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				s, first := join(t, g, "s", "u", hooked(func(ctx context.Context, _ []*Message) error {
					<-ctx.Done()
					return row.result(ctx)
				}))
				n := 0
				for s.Err() == nil {
					n++
					feed(g, note(fmt.Sprint("m", n), "u", P1))
					if n%10 == 0 {
						pass(300 * time.Millisecond)
					}
				}
				require.Equal(t, ErrSlowConsumer, s.Err())
				require.Equal(t, context.Canceled, s.ctx.Err())
				<-s.Done()
				_, second := join(t, g, "s", "u", after(s.Cursor()))
				feedAll(g, "u", P1, []string{"live"})
				pass(time.Second)
				require.Equal(t, append(series("m", n), "live"), append(first.ids(), second.ids()...))
				require.EqualValues(t, 1, g.Stats().Ended.Slow)
			})
		})
	}
	t.Run("with 8 × OutboxMessages a session that a flood ended as slow gets what its outbox held", func(t *testing.T) {
		cfg := cfg
		cfg.InboxCapacity = 1
		cfg.HistoryMessages = 8*20 + 10 + 3 // and the batch in its Push, and what has come until it is back
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u", told(nil))
			from := s.Cursor()
			n := 0
			for s.Err() == nil {
				n++
				feed(g, note(fmt.Sprint("m", n), "u", P1)) // waits when the lane does
			}
			require.Equal(t, ErrSlowConsumer, s.Err())
			<-s.Done()
			require.Equal(t, from, s.Cursor())
			require.Greater(t, n, 8*20)
			require.LessOrEqual(t, n, cfg.HistoryMessages, "the Push has taken one to ten")
			require.Equal(t, series("m", n), behind(t, g, "u", s.Cursor()))
		})
	})
	t.Run("a replay of many times the outbox is nobody's slowness", func(t *testing.T) {
		cfg := cfg
		cfg.HistoryMessages = 2000
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 1000))
			pass(time.Second)
			s, sink := join(t, g, "s", "u", after(from), slowly(time.Second))
			for i := range 100 { // and what comes meanwhile is not either
				feed(g, note(fmt.Sprint("m", 1001+i), "u", P1))
				pass(time.Second / 2)
			}
			pass(time.Hour)
			require.NoError(t, s.Err())
			require.Equal(t, series("m", 1100), sink.ids())
			require.GreaterOrEqual(t, g.Stats().Lanes[P1].Replayed, uint64(1000))
		})
	})
	t.Run("a sink that is slow after the replay still ends as slow", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 10))
			pass(time.Second)
			s, _ := join(t, g, "s", "u", after(from), told(nil))
			pass(time.Second)
			feedAll(g, "u", P1, series("n", 21))
			pass(time.Second)
			require.Equal(t, ErrSlowConsumer, s.Err())
			require.Equal(t, from, s.Cursor())
		})
	})
	t.Run("what SlowDropOldest dropped is behind the cursor, and counted", func(t *testing.T) {
		cfg := cfg
		cfg.SlowPolicy = SlowDropOldest
		bubble(t, cfg, func(t *testing.T, g *Gateway) {
			held := newGate(t)
			s, sink := join(t, g, "s", "u", hooked(held.pass))
			feedAll(g, "u", P0, series("a", 1))
			pass(time.Second)
			feedAll(g, "u", P1, series("m", 30))
			pass(time.Second)
			require.Equal(t, uint64(10), s.Dropped())
			require.Zero(t, s.Cursor().seqs, "the Push that goes on may fail")
			held.open()
			pass(time.Second)
			require.Equal(t, series("m", 30)[10:], took(sink, P1))
			require.Equal(t, uint64(30), s.Cursor().seqs[P1])
			require.Empty(t, behind(t, g, "u", s.Cursor()))
		})
	})
}

// A replay and the eviction of what it is to bring.
func TestReplayAndEviction(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 10, OutboxMessages: 20, HistoryMessages: 64, Pushers: 2}
	for _, row := range []struct {
		name string
		make func(id string) *Notification
	}{
		{"the user's messages", func(id string) *Notification { return note(id, "u", P1) }},
		{"messages to all", func(id string) *Notification { return notice(id, P1) }},
	} {
		t.Run("a replay that the eviction of "+row.name+" overtakes ends as slow, with no hole before it", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				from := offline(t, g, "u")
				n := 0
				send := func(count int) {
					for range count {
						n++
						feed(g, row.make(fmt.Sprint("m", n)))
					}
				}
				send(60)
				pass(time.Second)
				s, sink := join(t, g, "s", "u", after(from), slowly(time.Second))
				pass(1500 * time.Millisecond) // in the second batch of ten
				send(60)
				pass(time.Second)
				<-s.Done()
				require.Equal(t, ErrSlowConsumer, s.Err())
				require.Equal(t, series("m", 20), sink.ids())
				require.Equal(t, uint64(20), s.Cursor().seqs[P1])
				gone(t, g, "u", s.Cursor())
				require.EqualValues(t, 1, g.Stats().Ended.Slow)
			})
		})
		t.Run("a replay that does not want "+row.name+" does not mind their eviction", func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, g *Gateway) {
				from := offline(t, g, "u")
				for _, id := range series("r", 60) {
					feed(g, on(ChannelRisk, id, "u", P0))
				}
				pass(time.Second)
				_, sink := join(t, g, "s", "u", after(from), wanting(ChannelRisk), slowly(time.Second))
				for i := range 500 {
					feed(g, row.make(fmt.Sprint("x", i)))
				}
				pass(time.Minute)
				require.Equal(t, series("r", 60), sink.ids())
			})
		})
	}
}

func TestGapDuringReplay(t *testing.T) {
	t.Run("a session to which something is being replayed ends with ErrGap, as all do", func(t *testing.T) {
		for range sized(40, 3) {
			bubble(t, GatewayConfig{BatchSize: 1, OutboxMessages: 1, HistoryMessages: 1024}, func(t *testing.T, g *Gateway) {
				users := series("u", sized(500, 200))
				var cursors []Cursor
				for _, u := range users {
					cursors = append(cursors, offline(t, g, u))
				}
				for _, id := range series("m", 1000) {
					feed(g, notice(id, P1))
				}
				pass(time.Second)
				held := newGate(t)
				var sessions []*Session
				for i, u := range users {
					s, _ := join(t, g, u, u, after(cursors[i]), hooked(held.pass))
					sessions = append(sessions, s)
				}
				pass(time.Second) // each is in its first Push
				held.open()
				g.Gap()
				for _, s := range sessions {
					<-s.Done()
					require.Equal(t, ErrGap, s.Err())
				}
				n := uint64(len(users))
				require.Equal(t, SessionEnds{Closed: n, Gap: n}, g.Stats().Ended)
			})
		}
	})
}

// In real time and with one thread, so that whoever does not let others run is
// seen.
func TestReplayGivesWay(t *testing.T) {
	noLeaks(t)
	procs := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	n := sized(200_000, 50_000)
	g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 1, HistoryMessages: n + 10, InboxCapacity: 4096}))
	runGateway(t, g)
	from := offline(t, g, "u")
	other := on(ChannelSystem, "not for this session", AllUsers, P3)
	feed(g, on(ChannelTrade, "t1", "u", P3))
	for range n {
		g.Inbox()[P3] <- NewMessage(other)
	}
	feed(g, on(ChannelTrade, "t2", "u", P3))
	eventually(t, "all are in the history", func() bool { return lane(g, P3).Received == uint64(n+2) })

	var mu sync.Mutex
	var order []string
	came := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	done := make(chan struct{}, 2)
	join(t, g, "other", "v", hooked(func(context.Context, []*Message) error {
		came("a P0 to all, in another session")
		done <- struct{}{}
		return nil
	}))
	join(t, g, "s", "u", after(from), wanting(ChannelTrade), hooked(func(_ context.Context, batch []*Message) error {
		id := batch[0].Notification().ID
		came(id)
		if id == "t1" { // between this and t2 is all that the filter rejects
			feed(g, notice("urgent", P0))
		} else {
			done <- struct{}{}
		}
		return nil
	}))
	<-done
	<-done
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"t1", "a P0 to all, in another session", "t2"}, order)
}
