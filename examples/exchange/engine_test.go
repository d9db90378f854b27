package main

import (
	"math"
	"reflect"
	"testing"

	"github.com/qaexchange/notification"
)

func TestEngine(t *testing.T) {
	var s said
	e := newEngine(1000, 7, &s)
	s.publish(everybody, tradingBegins()) // as newExchange does
	for e.total < 100_000 {
		e.step()
	}
	s.publish(everybody, tradingEnds()) // as run does

	t.Run("all 19 types occur, and all are valid", func(t *testing.T) {
		seen := map[notification.Type]int{}
		for i, p := range s.payloads {
			seen[p.Type()]++
			user := notification.AllUsers
			if s.users[i] != everybody {
				user = memberID(s.users[i])
			}
			if err := notification.New(user, p, "test").Validate(); err != nil {
				t.Fatal(err)
			}
		}
		for typ := notification.TypeOrderAccepted; typ <= notification.TypeMarketHalt; typ++ {
			if seen[typ] == 0 {
				t.Errorf("no %s", typ)
			}
		}
		t.Log(seen)
	})
	t.Run("the lanes have their shares", func(t *testing.T) {
		for p, share := range mix {
			if got := float64(e.sent[p]) / float64(e.total); math.Abs(got-share) > 0.01 {
				t.Errorf("%s has %.3f, not %.2f", notification.Priority(p), got, share)
			}
		}
	})
	t.Run("there are bursts for one user", func(t *testing.T) {
		longest, run := 0, 0
		for i := 1; i < len(s.users); i++ {
			if run++; s.users[i] != s.users[i-1] {
				run = 0
			}
			longest = max(longest, run)
		}
		if longest < 100 {
			t.Errorf("the longest is %d", longest)
		}
	})
	t.Run("volumes add up", func(t *testing.T) {
		for _, p := range s.payloads {
			if f, ok := p.(notification.OrderPartiallyFilled); ok && !(f.FilledVolume > 0 && f.RemainingVolume > 0) {
				t.Fatalf("%+v", f)
			}
			if f, ok := p.(notification.OrderFilled); ok && !(f.FilledVolume > 0) {
				t.Fatalf("%+v", f)
			}
		}
	})
	t.Run("the same seed tells the same stories", func(t *testing.T) {
		var again said
		e := newEngine(1000, 7, &again)
		again.publish(everybody, tradingBegins())
		for e.total < 10_000 {
			e.step()
		}
		if !reflect.DeepEqual(again.users, s.users[:len(again.users)]) {
			t.Error("another user")
		}
		for i, p := range again.payloads {
			if p.Type() != s.payloads[i].Type() {
				t.Fatalf("message %d is %s, not %s", i, p.Type(), s.payloads[i].Type())
			}
		}
	})
}

func TestLedger(t *testing.T) {
	t.Run("buying and selling the same volume leaves the profit and no position", func(t *testing.T) {
		var s said
		l := newLedger(1, s.publish)
		before := l.accounts[0].balance
		buy := &order{id: "1", instrument: "X", buy: true, price: 100, volume: 10}
		l.accept(buy)
		l.fill(buy, 100, 10)
		sell := &order{id: "2", instrument: "X", price: 110, volume: 10}
		l.accept(sell)
		l.fill(sell, 110, 10)

		a := l.accounts[0]
		if a.closeProfit != 100 || a.margin != 0 || a.frozen != 0 {
			t.Errorf("%+v", a)
		}
		fees := (1000 + 1100) * commission
		if math.Abs(a.balance-before-100+fees) > 1e-6 {
			t.Errorf("balance moved by %v", a.balance-before)
		}
		p := s.payloads[len(s.payloads)-1].(notification.PositionUpdate)
		if p.VolumeLong != 0 || p.VolumeShort != 0 || p.CostLong != 0 || p.CostShort != 0 {
			t.Errorf("%+v", p)
		}
	})
	t.Run("the risk service speaks when a threshold is crossed, once", func(t *testing.T) {
		var s said
		l := newLedger(1, s.publish)
		l.accounts[0].balance = 1000
		for range 20 {
			o := &order{id: "1", instrument: "X", buy: true, price: 100, volume: 5}
			l.fill(o, 100, 5)
		}
		calls := map[notification.Type]int{}
		for _, p := range s.payloads {
			calls[p.Type()]++
		}
		if calls[notification.TypeRiskAlert] != 1 || calls[notification.TypeMarginCall] != 1 {
			t.Error(calls)
		}
	})
}
