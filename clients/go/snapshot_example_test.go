package notificationclient_test

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
)

// A book is what a client knows: loaded as a whole, and changed by what follows.
// docs/snapshots.md explains each line.
type book struct {
	orders    map[string]order                       // by order_id
	trades    map[string]trade                       // by trade_id
	opened    map[string]notification.AccountOpen    // by account_id
	account   notification.AccountUpdate             // of the one user
	positions map[string]notification.PositionUpdate // by instrument_id
	profits   map[string]notification.PositionProfit // by instrument_id
	limits    map[string]notification.PositionLimit  // by instrument_id
	call      notification.MarginCall
	read      map[string]string // alerts and notices, by message_id
	sessions  map[string]session
	halts     map[string]notification.MarketHalt // by instrument_id
}

type order struct {
	filled float64
	ended  bool
}

type trade struct {
	volume, price float64
	canceled      bool
}

type session struct{ ended bool }

func newBook() *book {
	return &book{
		orders: map[string]order{}, trades: map[string]trade{}, opened: map[string]notification.AccountOpen{},
		positions: map[string]notification.PositionUpdate{}, profits: map[string]notification.PositionProfit{},
		limits: map[string]notification.PositionLimit{}, read: map[string]string{},
		sessions: map[string]session{}, halts: map[string]notification.MarketHalt{},
	}
}

// clone is a snapshot of b.
func (b *book) clone() *book {
	c := *b
	c.orders, c.trades, c.opened = maps.Clone(b.orders), maps.Clone(b.trades), maps.Clone(b.opened)
	c.positions, c.profits, c.limits = maps.Clone(b.positions), maps.Clone(b.profits), maps.Clone(b.limits)
	c.read, c.sessions, c.halts = maps.Clone(b.read), maps.Clone(b.sessions), maps.Clone(b.halts)
	return &c
}

// apply takes what has arrived, or nothing of it if b knows better.
func (b *book) apply(n *notification.Notification) {
	switch p := n.Payload.(type) {
	case notification.OrderAccepted:
		b.step(p.OrderID, 0, false)
	case notification.OrderPartiallyFilled:
		b.step(p.OrderID, p.FilledVolume, false)
	case notification.OrderFilled:
		b.step(p.OrderID, p.FilledVolume, true)
	case notification.OrderCanceled:
		b.step(p.OrderID, 0, true)
	case notification.OrderExpired:
		b.step(p.OrderID, 0, true)
	case notification.OrderRejected:
		b.step(p.OrderID, 0, true)

	case notification.TradeExecuted:
		t := b.trades[p.TradeID] // it may have been taken back already
		t.volume, t.price = p.Volume, p.Price
		b.trades[p.TradeID] = t
	case notification.TradeCanceled:
		t := b.trades[p.TradeID]
		t.canceled = true
		b.trades[p.TradeID] = t

	case notification.AccountOpen:
		if _, known := b.opened[p.AccountID]; !known {
			b.opened[p.AccountID] = p
		}
	case notification.AccountUpdate:
		if p.Timestamp >= b.account.Timestamp {
			b.account = p
		}
	case notification.PositionUpdate:
		if p.Timestamp >= b.positions[p.InstrumentID].Timestamp {
			b.positions[p.InstrumentID] = p // one of no volume too: its timestamp is known then
		}
	case notification.PositionProfit:
		if p.Timestamp >= b.profits[p.InstrumentID].Timestamp {
			b.profits[p.InstrumentID] = p
		}

	case notification.RiskAlert:
		b.read[n.ID] = p.Message
	case notification.MarginCall:
		if p.Timestamp >= b.call.Timestamp {
			b.call = p
		}
	case notification.PositionLimit:
		if p.Timestamp >= b.limits[p.InstrumentID].Timestamp {
			b.limits[p.InstrumentID] = p
		}

	case notification.SystemNotice:
		b.read[n.ID] = p.Title
	case notification.TradingSessionStart:
		if _, known := b.sessions[p.SessionID]; !known {
			b.sessions[p.SessionID] = session{}
		}
	case notification.TradingSessionEnd:
		b.sessions[p.SessionID] = session{ended: true}
	case notification.MarketHalt:
		if p.Timestamp >= b.halts[p.InstrumentID].Timestamp {
			b.halts[p.InstrumentID] = p
		}
	}
}

// step is one in the life of an order, which only goes forward.
func (b *book) step(id string, filled float64, ended bool) {
	o := b.orders[id] // of an order that is not known yet: nothing is filled
	o.filled = max(o.filled, filled)
	o.ended = o.ended || ended
	b.orders[id] = o
}

// A client that keeps a state: the snapshot replaces it, what follows goes on top.
// docs/snapshots.md tells how for every type.
func Example_snapshot() {
	exchange, err := serve()
	if err != nil {
		panic(err)
	}
	defer exchange.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var known *book
	client, err := notificationclient.New(notificationclient.Config{
		URL:         exchange.http.URL,
		Credentials: signIn,
		Snapshot: func(context.Context, notificationclient.SnapshotReason) error {
			known = newBook() // what a request to the account service would return
			known.account = notification.AccountUpdate{UserID: "alice", Balance: 100, Timestamp: 20}
			// In the meantime:
			exchange.publish("alice", notification.AccountUpdate{UserID: "alice", Balance: 90, Timestamp: 10}) // is on its way, and older
			exchange.publish("alice", notification.AccountUpdate{UserID: "alice", Balance: 110, Timestamp: 30})
			return nil
		},
		OnNotifications: func(_ context.Context, batch notificationclient.Batch) error {
			for _, n := range batch.Notifications {
				known.apply(&n.Notification)
				if known.account.Timestamp == 30 {
					cancel()
				}
			}
			return nil
		},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(client.Run(ctx), known.account.Balance)
	// Output: context canceled 110
}
