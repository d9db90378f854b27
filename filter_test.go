package notification

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var everyChannelThereIs = []Channel{ChannelTrade, ChannelAccount, ChannelPosition, ChannelRisk, ChannelSystem}

func TestFilterAdmits(t *testing.T) {
	all := everyChannelThereIs
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
}

func TestFilterAgainstModel(t *testing.T) {
	t.Run("it is a set, or everything, under any sequence of changes", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		s := new(Session)
		s.SubscribeAll()
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
						for _, c := range everyChannelThereIs {
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
			for _, c := range everyChannelThereIs {
				if every || set[c] {
					want = append(want, c)
				}
			}
			require.Equal(t, want, s.Subscriptions())
		}
	})
	t.Run("changes from two goroutines lose none", func(t *testing.T) {
		for range 1000 {
			s := new(Session)
			s.SubscribeAll()
			done := make(chan struct{})
			go func() { s.Unsubscribe(ChannelRisk); close(done) }() // ends at once, and is waited for
			s.Unsubscribe(ChannelTrade)
			<-done
			require.Equal(t, []Channel{ChannelAccount, ChannelPosition, ChannelSystem}, s.Subscriptions())
		}
	})
}
