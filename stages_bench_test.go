package notification

import (
	"context"
	"strconv"
	"testing"
	"time"
)

// BenchmarkStages is what each stage of the way costs a message if it has a core for
// itself: one stage after the other works off the same 4,000 messages, for 4,000 of
// 10,000 users, while no other goroutine runs. A stage that is one goroutine gets no
// more done than that however many cores there are; between cores it costs more.
func BenchmarkStages(b *testing.B) {
	const users, burst = 10_000, 4_000
	br, g := newBroker(b, BrokerConfig{}), newGateway(b, "g", GatewayConfig{InboxCapacity: burst, Pushers: 1, MaxPushers: 1})
	if err := br.RegisterGateway(g); err != nil {
		b.Fatal(err)
	}
	taken := 0
	sink := SinkFunc(func(_ context.Context, batch []*Message) error {
		for _, m := range batch {
			taken += len(m.JSON())
		}
		return nil
	})
	for i := range users {
		id := strconv.Itoa(i)
		if _, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: sink}); err != nil {
			b.Fatal(err)
		}
	}
	p := &pusher{g: g}
	g.pool.join([]*pusher{p}, now())
	p.shard = &g.shards[0]

	stages := []struct {
		name string
		work func()
	}{
		{"new", nil},
		{"publish", nil},
		{"dispatch", func() {
			for br.dispatch.round() {
			}
		}},
		{"read", func() {
			for g.reader.round() {
			}
			g.reader.clock = now() + int64(g.cfg.MaxDelay[P1])
			for g.reader.round() {
			}
		}},
		{"push", func() {
			for g.pool.n > 0 {
				p.serve(g.pool.next(p))
			}
		}},
	}
	made := make([]*Notification, burst)
	next := 0
	stages[0].work = func() {
		for i := range made {
			made[i] = New(strconv.Itoa(next%users), TradeExecuted{
				TradeID: "trade-000001", OrderID: "order-000001", ExchangeOrderID: "ex-000001", InstrumentID: "SHFE.cu2501",
				Direction: "BUY", Offset: "OPEN", Price: 50123.5, Volume: float64(i), Commission: 12.75, FillType: "FULL", Timestamp: int64(next),
			}, "MatchingEngine")
			next += 7919
		}
	}
	stages[1].work = func() {
		for _, n := range made {
			if err := br.Publish(n); err != nil {
				b.Fatal(err)
			}
		}
	}
	spent := make([]time.Duration, len(stages))
	rounds := 0
	for b.Loop() {
		for i, s := range stages {
			start := time.Now()
			s.work()
			spent[i] += time.Since(start)
		}
		rounds++
	}
	if got := lane(g, P1).Taken; got != uint64(rounds*burst) {
		b.Fatalf("%d of %d messages taken", got, rounds*burst)
	}
	for i, s := range stages {
		b.ReportMetric(float64(spent[i].Nanoseconds())/float64(rounds*burst), s.name+"-ns/msg")
	}
	b.ReportMetric(0, "ns/op")
}
