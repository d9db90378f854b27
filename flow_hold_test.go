package notification

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Defects that a hunt found in the freshly written Gateway.

func TestHoldOfTwoLanes(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "a session that holds up a lane that is its own as well costs the others of another lane 50 ms", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, OutboxMessages: 10, MaxDelay: lanes(time.Duration(-1)), SessionTimeout: -1})
		s, _ := join(t, g, "s", "u", hooked(napping(400*ms)))
		var watch stopwatch
		join(t, g, "other", "other", hooked(watch.look))
		publishTo(t, b, "u", P1, series("flood", 300)...) // alone in P1
		publishTo(t, b, "other", P2, "P2 is contested")
		synctest.Wait()
		publishTo(t, b, "u", P2, series("own", 5)...)
		for _, id := range series("m", 500) {
			require.NoError(t, b.Publish(stamped(note(id, "other", P2))))
			pass(ms)
		}
		require.Equal(t, ErrSlowConsumer, s.Err())
		require.LessOrEqual(t, watch.longest(P2), 75*ms)
	})
}

func TestHoldBesideASessionOfTheSameUser(t *testing.T) {
	ms := time.Millisecond
	for _, order := range [][]string{{"slow", "quick"}, {"quick", "slow"}} {
		inBubble(t, "of two sessions of a user a slow one holds up the quick one for 50 ms, whichever was there first/"+order[0], func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 1, OutboxMessages: 10, MaxDelay: lanes(time.Duration(-1)), SessionTimeout: -1})
			var watch stopwatch
			hooks := map[string]func(context.Context, []*Message) error{"slow": napping(400 * ms), "quick": watch.look}
			for _, id := range order {
				join(t, g, id, "u", hooked(hooks[id]))
			}
			for _, id := range series("m", 500) {
				require.NoError(t, b.Publish(stamped(note(id, "u", P1))))
				pass(ms)
			}
			require.Equal(t, SessionEnds{Slow: 1}, g.Stats().Ended)
			_, ok := g.Session("quick")
			require.True(t, ok)
			require.LessOrEqual(t, watch.longest(P1), 75*ms)
		})
	}
}

// A lively is a ledger with Live.
type lively struct {
	*ledger
	live func()
}

func (l lively) Live() { l.live() }

func withLive(live func()) func(*SessionConfig, *ledger) {
	return func(cfg *SessionConfig, sink *ledger) { cfg.Sink = lively{sink, live} }
}

func TestHoldDuringLive(t *testing.T) {
	inBubble(t, "a Live that does not return costs the others of a lane 50 ms, as a Push does", func(t *testing.T) {
		busy, held := newGate(t), newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{
			BatchSize: 1, OutboxMessages: 1, MaxDelay: lanes(time.Duration(-1)),
			SessionTimeout: -1, SlowAfter: time.Hour, Pushers: 2, MaxPushers: 2,
		})
		for _, id := range series("busy", 2) {
			join(t, g, id, id, hooked(busy.pass))
			publishTo(t, b, id, P0, id)
		}
		synctest.Wait()
		s, _ := join(t, g, "s", "u", withLive(func() { <-held.ch }))
		_, other := join(t, g, "other", "other")
		publishTo(t, b, "other", P1, "before them")
		synctest.Wait()
		publishTo(t, b, "u", P1, series("m", 9)...)
		publishTo(t, b, "other", P1, "behind them")
		synctest.Wait()
		require.Empty(t, other.ids())
		busy.open()
		pass(100 * time.Millisecond)
		require.Equal(t, ErrSlowConsumer, s.Err())
		require.Equal(t, []string{"before them", "behind them"}, other.ids())
	})
}
