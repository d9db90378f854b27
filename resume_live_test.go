package notification

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A replayLedger is a ledger that notes how much had been replayed when Live was
// called.
type replayLedger struct {
	*ledger
	calls []int  // of Live: how many messages had been pushed; guarded by mu
	also  func() // what Live does beside that; nil: nothing; guarded by mu
}

func (l *replayLedger) Live() {
	l.mu.Lock()
	if l.inside {
		l.t.Error("Live during Push")
	}
	if l.closes > 0 {
		l.t.Error("Live after Close")
	}
	n := 0
	for _, b := range l.batches {
		n += len(b.ids)
	}
	l.calls = append(l.calls, n)
	also := l.also
	l.mu.Unlock()
	if also != nil {
		also()
	}
}

// onLive says what Live does from now on.
func (l *replayLedger) onLive(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.also = f
}

// called returns what calls holds.
func (l *replayLedger) called() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

// joinLive is join with a replayLedger.
func joinLive(t testing.TB, g *Gateway, id, userID string, c Cursor, change ...func(*SessionConfig, *ledger)) (*Session, *replayLedger) {
	t.Helper()
	var l *replayLedger
	s, _ := join(t, g, id, userID, append(change, after(c), func(cfg *SessionConfig, sink *ledger) {
		l = &replayLedger{ledger: sink}
		cfg.Sink = l
	})...)
	return s, l
}

func TestLiveAfterReplay(t *testing.T) {
	// missed returns a cursor of u from before these messages.
	missed := func(t *testing.T, g *Gateway, p Priority, ids []string) Cursor {
		t.Helper()
		from := offline(t, g, "u")
		feedAll(g, "u", p, ids)
		pass(time.Second)
		return from
	}

	t.Run("it is called once, when what was replayed has been pushed", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			_, sink := joinLive(t, g, "s", "u", missed(t, g, P1, series("m", 25)))
			pass(time.Second)
			require.Equal(t, []int{25}, sink.called())
			feedAll(g, "u", P1, series("n", 30))
			feedAll(g, "u", P0, series("o", 3))
			pass(time.Minute)
			require.Equal(t, []int{25}, sink.called())
			require.Len(t, sink.ids(), 58)
		})
	})
	t.Run("no batch mixes what is replayed and what is live, in no lane", func(t *testing.T) {
		for size := 1; size <= 16; size++ {
			bubble(t, GatewayConfig{BatchSize: size, MaxDelay: lanes(time.Duration(-1))}, func(t *testing.T, g *Gateway) {
				next := 25
				_, sink := joinLive(t, g, "s", "u", missed(t, g, P1, series("m", next)), hooked(func(context.Context, []*Message) error {
					if next < 60 { // a replay that is chased, and overtaken
						next++
						feed(g, note(fmt.Sprint("m", next), "u", P1), note(fmt.Sprint("p", next), "u", Priority(next%2*2)))
					}
					nap(time.Millisecond)
					return nil
				}))
				pass(time.Minute)
				require.Len(t, sink.called(), 1)
				var replayed, enqueued, taken uint64
				for _, l := range g.Stats().Lanes {
					replayed, enqueued, taken = replayed+l.Replayed, enqueued+l.Enqueued, taken+l.Taken
				}
				require.EqualValues(t, replayed, sink.called()[0], "all that was replayed came before it")
				require.Equal(t, taken-replayed, enqueued, "all that was live after it")
				var p1 []string
				for _, id := range sink.ids() {
					if id[0] == 'm' {
						p1 = append(p1, id)
					}
				}
				require.Equal(t, series("m", next), p1)
			})
		}
	})
	t.Run("it is called at once if there is nothing to replay, and before the first Push", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			_, sink := joinLive(t, g, "s", "u", missed(t, g, P1, nil))
			synctest.Wait()
			require.Equal(t, []int{0}, sink.called())
			feedAll(g, "u", P0, series("m", 3))
			pass(time.Second)
			require.Equal(t, []int{0}, sink.called())
			require.Equal(t, series("m", 3), sink.ids())
		})
	})
	t.Run("it is called at once if the filter rejects all that there is", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			_, sink := joinLive(t, g, "s", "u", missed(t, g, P1, series("m", 50)), wanting(ChannelRisk))
			synctest.Wait()
			require.Equal(t, []int{0}, sink.called())
			feed(g, on(ChannelRisk, "r", "u", P1))
			pass(time.Second)
			require.Equal(t, []string{"r"}, sink.ids())
			require.Equal(t, []int{0}, sink.called())
		})
	})
	t.Run("it is called at once for a session that does not resume", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			missed(t, g, P1, series("m", 3))
			_, sink := joinLive(t, g, "s", "u", Cursor{})
			synctest.Wait()
			require.Equal(t, []int{0}, sink.called())
			feedAll(g, "u", P0, series("n", 3))
			pass(time.Second)
			require.Equal(t, []int{0}, sink.called())
			require.Equal(t, series("n", 3), sink.ids())
		})
	})
	t.Run("no Push begins while it runs, and the cursor stands behind what was replayed", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			from := missed(t, g, P1, series("m", 15))
			held := newGate(t)
			var s *Session
			var inside Cursor
			s, sink := joinLive(t, g, "s", "u", from, slowly(time.Second))
			sink.onLive(func() { inside = s.Cursor(); <-held.ch })
			pass(5 * time.Second)
			require.Equal(t, []int{15}, sink.called())
			feedAll(g, "u", P0, series("n", 3))
			pass(5 * time.Second)
			require.Len(t, sink.ids(), 15)
			require.NoError(t, s.Err())
			held.open()
			pass(5 * time.Second)
			require.Equal(t, append(series("m", 15), series("n", 3)...), sink.ids())
			require.Equal(t, []int{15}, sink.called())
			require.Equal(t, series("n", 3), behind(t, g, "u", inside))
		})
	})
	t.Run("it is not called if the session ends before", func(t *testing.T) {
		bubble(t, GatewayConfig{BatchSize: 10}, func(t *testing.T, g *Gateway) {
			s, sink := joinLive(t, g, "s", "u", missed(t, g, P1, series("m", 15)), slowly(time.Second))
			pass(500 * time.Millisecond)
			require.NoError(t, s.Close())
			<-s.Done()
			pass(time.Minute)
			require.Empty(t, sink.called())
		})
	})
	t.Run("a sink without it is served as ever", func(t *testing.T) {
		bubble(t, GatewayConfig{}, func(t *testing.T, g *Gateway) {
			require.Equal(t, series("m", 15), behind(t, g, "u", missed(t, g, P1, series("m", 15))))
		})
	})
}
