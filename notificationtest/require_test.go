package notificationtest

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

// A call on "alice" or "bob" for an amount, and how to look for it.
func call(amount float64) notification.MarginCall {
	return notification.MarginCall{RequiredMargin: amount}
}

func of(amount float64) func(notification.MarginCall) bool {
	return func(c notification.MarginCall) bool { return c.RequiredMargin == amount }
}

func TestRequire(t *testing.T) {
	everywhere(t, "it finds by type, user and payload, and returns the notification", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		publish(t, p.Broker, "bob", call(1), call(2))
		publish(t, p.Broker, "alice", notification.RiskAlert{}, call(1))
		n := notification.New("alice", call(2), "RiskControl")
		n.ID = "call-2"
		require.NoError(t, p.Broker.Publish(n))
		require.Equal(t, n, Require(t, p.Published, "alice", of(2)))
		require.Equal(t, "bob", Require(t, p.Published, "bob", of(2)).UserID)
		Require(t, p.Published, "", of(1))
		Require(t, p.Published, "", of(1))
		Require[notification.RiskAlert](t, p.Published, "alice", nil)
	})
	everywhere(t, "the interface Payload stands for every type", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		publish(t, p.Broker, notification.AllUsers, notification.SystemNotice{Title: "closed"})
		n := Require(t, p.Published, notification.AllUsers, func(p notification.Payload) bool { return p.Type().Channel() == notification.ChannelSystem })
		require.Equal(t, notification.SystemNotice{Title: "closed"}, n.Payload)
	})
	everywhere(t, "it takes the oldest first, and each once", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		publish(t, p.Broker, "alice", trades(3)...)
		for _, want := range trades(3) {
			require.Equal(t, want, Require[notification.TradeExecuted](t, p.Published, "alice", nil).Payload)
		}
		require.Len(t, p.Published.Messages(), 3, "Messages has all of them")
	})
	everywhere(t, "of many at once each finds another one", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		found := make(chan *notification.Notification, 8)
		var wg sync.WaitGroup
		for range cap(found) {
			wg.Go(func() { found <- Require[notification.TradeExecuted](t, p.Published, "alice", nil) })
		}
		publish(t, p.Broker, "alice", trades(cap(found))...)
		wg.Wait()
		close(found)
		seen := map[*notification.Notification]bool{}
		for n := range found {
			seen[n] = true
		}
		require.Len(t, seen, cap(found))
	})
	inBubble(t, "it waits, and asks about each message once", func(t *testing.T) {
		r := NewRecorder(t)
		for i := range 3 {
			time.AfterFunc(time.Duration(i)*time.Second, func() {
				_ = r.Push(t.Context(), []*notification.Message{notification.NewMessage(notification.New("alice", call(float64(i)), "test"))})
			})
		}
		asked := 0
		start := time.Now()
		Require(t, r, "alice", func(c notification.MarginCall) bool { asked++; return c.RequiredMargin == 2 })
		require.Equal(t, 2*time.Second, time.Since(start))
		require.Equal(t, 3, asked)
	})

	for name, look := range map[string]func(t testing.TB, r *Recorder){
		"another payload": func(t testing.TB, r *Recorder) { Require(t, r, "alice", of(2)) },
		"another type":    func(t testing.TB, r *Recorder) { Require[notification.RiskAlert](t, r, "alice", nil) },
		"another user":    func(t testing.TB, r *Recorder) { Require(t, r, "carol", of(1)) },
		"everybody":       func(t testing.TB, r *Recorder) { Require(t, r, notification.AllUsers, of(1)) },
		"one more of the same": func(t testing.TB, r *Recorder) {
			Require(t, r, "alice", of(1))
			Require(t, r, "alice", of(1))
		},
	} {
		inBubble(t, "it fails the test after 30 s if there is none for "+name, func(t *testing.T) {
			start := time.Now()
			fails(t, func(t testing.TB) {
				p := NewPipeline(t, Config{})
				publish(t, p.Broker, "alice", call(1))
				look(t, p.Published)
			}, "within 30s", `"required_margin":1`)
			require.Equal(t, 30*time.Second, time.Since(start))
		})
	}
	t.Run("it says what it was looking for, and what was found before", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			publish(t, p.Broker, "alice", call(1), call(2))
			p.Shutdown(t)
			Require(t, p.Published, "alice", of(1))
			Require(t, p.Published, "alice", of(1))
		}, `no notification.MarginCall for "alice" that matches came before the recording ended`, `(found before) {"message_id"`)
	})
	t.Run("the end of the recording fails the test at once", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			r := NewRecorder(t)
			r.Close(notification.ErrGap)
			Require(t, r, "alice", of(1))
		}, notification.ErrGap.Error(), "Recorded: nothing")
	})
}

func TestRequireNone(t *testing.T) {
	everywhere(t, "after Shutdown it tells that there was nothing, or nothing else", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		publish(t, p.Broker, "alice", call(1))
		Require(t, p.Published, "alice", of(1))
		Require(t, alice, "alice", of(1))
		p.Shutdown(t)
		for _, r := range []*Recorder{p.Published, alice} {
			RequireNone(t, r, "alice", of(2))
			RequireNone[notification.RiskAlert](t, r, "alice", nil)
			RequireNone[notification.MarginCall](t, r, "bob", nil)
			RequireNone[notification.Payload](t, r, "", nil)
		}
	})
	inBubble(t, "in a bubble there is no need for a Shutdown, as it waits for what is under way", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		RequireNone[notification.Payload](t, p.Published, "", nil)
		go publish(t, p.Broker, "alice", call(1))
		fails(t, func(t testing.TB) { RequireNone(t, p.Published, "alice", of(1)) })
	})
	t.Run("it waits for the end of the recording", func(t *testing.T) {
		p := NewPipeline(t, Config{})
		alice := Connect(t, p.Gateway, "alice")
		go p.Gateway.Gap()
		RequireNone[notification.Payload](t, alice, "", nil)
	})
	t.Run("without an end it fails the test, as more may come", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			p := NewPipeline(t, Config{})
			RequireNone[notification.Payload](deadlineTB{t, time.Now().Add(time.Millisecond)}, p.Published, "", nil)
		}, "call Pipeline.Shutdown first")
	})
	for name, look := range map[string]func(t testing.TB, r *Recorder){
		"the payload": func(t testing.TB, r *Recorder) { RequireNone(t, r, "alice", of(1)) },
		"the type":    func(t testing.TB, r *Recorder) { RequireNone[notification.MarginCall](t, r, "alice", nil) },
		"the user":    func(t testing.TB, r *Recorder) { RequireNone[notification.Payload](t, r, "alice", nil) },
		"everything":  func(t testing.TB, r *Recorder) { RequireNone[notification.Payload](t, r, "", nil) },
		"one more than was required": func(t testing.TB, r *Recorder) {
			Require(t, r, "alice", of(1))
			RequireNone(t, r, "alice", of(1))
		},
	} {
		t.Run("it fails the test if there is one that fits "+name, func(t *testing.T) {
			fails(t, func(t testing.TB) {
				p := NewPipeline(t, Config{})
				publish(t, p.Broker, "alice", call(1), call(1))
				p.Shutdown(t)
				look(t, p.Published)
			}, "times notification.", `"required_margin":1`)
		})
	}
}

func TestRequireConserved(t *testing.T) {
	everywhere(t, "it holds at rest, whatever was lost", func(t *testing.T) {
		p := NewPipeline(t, Config{Gateway: notification.GatewayConfig{BatchSize: 1, OutboxMessages: 4, SlowPolicy: notification.SlowDropOldest, HistoryMessages: 16}})
		first, second := Connect(t, p.Gateway, "alice"), Connect(t, p.Gateway, "alice")
		blocked, release := first.Block()
		publish(t, p.Broker, "alice", trades(64)...)
		<-blocked
		p.Published.Wait(t, 64)
		p.Gateway.Gap()
		first.WaitClose(t)
		second.WaitClose(t)
		release()
		publish(t, p.Broker, "bob", trades(3)...)
		p.Shutdown(t)
		RequireConserved(t, p.Broker, p.Gateway)
		RequireConserved(t, p.Broker)
		RequireConserved(t, nil, p.Gateway)
	})
	t.Run("what the Broker has not handed over fails the test", func(t *testing.T) {
		fails(t, func(t testing.TB) {
			b, err := notification.NewBroker(notification.BrokerConfig{})
			require.NoError(t, err)
			g, err := notification.NewGateway("g", notification.GatewayConfig{})
			require.NoError(t, err)
			require.NoError(t, b.RegisterGateway(g))
			RequireConserved(t, b, g)
			g.Inbox()[notification.P0] <- messages(notification.P0)[0]
			RequireConserved(t, nil, g)
			RequireConserved(t, b, g)
		}, `Gateway "g": Handed 0 is not Received 0 + Invalid 0 + Discarded 0 + 1 in its inbox`)
	})

	// A library that counts wrong is not at hand, but its Stats are.
	broker := notification.BrokerStats{Receivers: []notification.ReceiverStats{{ID: "g", Handed: 3}, {ID: "g", Global: true, Handed: 4}}}
	broker.Lanes[notification.P1] = notification.BrokerLane{Published: 10, Routed: 1, Unrouted: 2, Discarded: 3, Queued: 4}
	gateway := account{GatewayStats: notification.GatewayStats{ID: "g"}, inbox: 1}
	gateway.Lanes[notification.P2] = notification.GatewayLane{Received: 1, Discarded: 1,
		Enqueued: 11, Replayed: 4, Taken: 1, DroppedSlow: 2, DroppedEnded: 5, Pending: 7}
	require.Empty(t, imbalances(true, broker, []account{gateway}))
	for _, test := range []struct {
		name, want string
		change     func(b *notification.BrokerLane, g *notification.GatewayLane)
	}{
		{"Published", "Published 11 is not Routed 1 + Unrouted 2 + Discarded 3 + Queued 4", func(b *notification.BrokerLane, _ *notification.GatewayLane) { b.Published++ }},
		{"Routed", "Broker, P1", func(b *notification.BrokerLane, _ *notification.GatewayLane) { b.Routed++ }},
		{"Unrouted", "Broker, P1", func(b *notification.BrokerLane, _ *notification.GatewayLane) { b.Unrouted++ }},
		{"Discarded of a Broker", "Broker, P1", func(b *notification.BrokerLane, _ *notification.GatewayLane) { b.Discarded++ }},
		{"Queued", "Broker, P1", func(b *notification.BrokerLane, _ *notification.GatewayLane) { b.Queued++ }},
		{"Received", `Gateway "g": Handed 3`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Received++ }},
		{"Received, one too few,", `Gateway "g": Handed 3`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Received-- }},
		{"Invalid of a Gateway", `Gateway "g": Handed 3`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Invalid++ }},
		{"Discarded of a Gateway", `Gateway "g": Handed 3`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Discarded++ }},
		{"Enqueued", "Enqueued 12 + Replayed 4 is not Taken 1 + DroppedSlow 2 + DroppedEnded 5 + Pending 7", func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Enqueued++ }},
		{"Replayed", `Gateway "g", P2`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Replayed++ }},
		{"Taken", `Gateway "g", P2`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Taken++ }},
		{"DroppedSlow", `Gateway "g", P2`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.DroppedSlow++ }},
		{"DroppedEnded", `Gateway "g", P2`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.DroppedEnded++ }},
		{"Pending", `Gateway "g", P2`, func(_ *notification.BrokerLane, g *notification.GatewayLane) { g.Pending++ }},
	} {
		t.Run(test.name+" that is one off is found", func(t *testing.T) {
			b, g := broker, gateway
			test.change(&b.Lanes[notification.P1], &g.Lanes[notification.P2])
			got := imbalances(true, b, []account{g})
			require.Len(t, got, 1)
			require.Contains(t, got[0], test.want)
		})
	}
	t.Run("Departed accounts for what gateways got before they left, and for no more", func(t *testing.T) {
		b := broker
		b.Receivers = nil
		b.Departed.Handed = 3
		require.Empty(t, imbalances(true, b, []account{gateway}))
		b.Departed.Handed = 2
		require.Len(t, imbalances(true, b, []account{gateway}), 1)
		b.Departed.Handed = 7
		other := gateway
		other.ID = "h"
		require.Empty(t, imbalances(true, b, []account{gateway, other}))
		b.Departed.Handed = 5
		require.Len(t, imbalances(true, b, []account{gateway, other}), 1)
	})
	t.Run("Departed does not hide what was lost since", func(t *testing.T) {
		b := broker
		b.Departed.Handed = 100
		b.Receivers = []notification.ReceiverStats{{ID: "g", Handed: 4}}
		require.Len(t, imbalances(true, b, []account{gateway}), 1)
	})
	t.Run("without a Broker nothing is said about what was handed over", func(t *testing.T) {
		require.Empty(t, imbalances(false, notification.BrokerStats{}, []account{gateway}))
		g := gateway
		g.Lanes[notification.P2].Taken++
		require.Len(t, imbalances(false, notification.BrokerStats{}, []account{g}), 1)
	})
}
