package notificationclient_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// happenings makes up a history: what a few orders, positions and so on may go
// through, in the order in which it is published.
func happenings(rnd *rand.Rand, n int) (all []*notification.Notification) {
	now, orders, trades, sessions := int64(0), 0, 0, 0
	tell := func(p notification.Payload) {
		m := notification.New("alice", p, "test")
		m.ID = fmt.Sprint("m", len(all))
		all = append(all, m)
	}
	type life struct {
		id    string
		fills int
	}
	var standing []life
	open := []string{}
	instrument := func() string { return fmt.Sprint("i", rnd.IntN(3)) }
	volume := func() float64 { return float64(rnd.IntN(5)) }
	for len(all) < n {
		if rnd.IntN(3) > 0 { // else at the same time as what came before
			now++
		}
		switch rnd.IntN(14) {
		case 0, 1:
			orders++
			o := life{id: fmt.Sprint("o", orders)}
			if rnd.IntN(4) == 0 {
				tell(notification.OrderRejected{OrderID: o.id})
				break
			}
			tell(notification.OrderAccepted{OrderID: o.id, Volume: 10})
			standing = append(standing, o)
		case 2, 3, 4:
			if len(standing) == 0 {
				break
			}
			i := rnd.IntN(len(standing))
			o := &standing[i]
			end := true
			switch rnd.IntN(6) {
			case 0:
				tell(notification.OrderFilled{OrderID: o.id, FilledVolume: 10})
			case 1:
				tell(notification.OrderCanceled{OrderID: o.id})
			case 2:
				tell(notification.OrderExpired{OrderID: o.id})
			case 3:
				tell(notification.OrderRejected{OrderID: o.id}) // P0: it overtakes
			default:
				if end = o.fills == 9; !end {
					o.fills++
					tell(notification.OrderPartiallyFilled{OrderID: o.id, FilledVolume: float64(o.fills)})
				}
			}
			if end {
				standing = slices.Delete(standing, i, i+1)
			}
		case 5:
			trades++
			tell(notification.TradeExecuted{TradeID: fmt.Sprint("t", trades), Volume: volume(), Price: volume()})
		case 6:
			if trades > 0 {
				tell(notification.TradeCanceled{TradeID: fmt.Sprint("t", 1+rnd.IntN(trades))})
			}
		case 7:
			tell(notification.AccountUpdate{UserID: "alice", Balance: volume(), Timestamp: now})
		case 8:
			tell(notification.PositionUpdate{UserID: "alice", InstrumentID: instrument(), VolumeLong: volume(), Timestamp: now})
		case 9:
			tell(notification.PositionProfit{UserID: "alice", InstrumentID: instrument(), PositionProfit: volume(), Timestamp: now})
		case 10:
			tell(notification.MarginCall{UserID: "alice", RequiredMargin: volume(), Timestamp: now})
			tell(notification.RiskAlert{UserID: "alice", Message: instrument()})
		case 11:
			tell(notification.PositionLimit{UserID: "alice", InstrumentID: instrument(), CurrentVolume: volume(), Timestamp: now})
			tell(notification.AccountOpen{AccountID: instrument(), InitCash: 1})
		case 12:
			if sessions++; len(open) > 0 && rnd.IntN(2) == 0 {
				tell(notification.TradingSessionEnd{SessionID: open[0]})
				open = open[1:]
			} else {
				id := fmt.Sprint("s", sessions)
				tell(notification.TradingSessionStart{SessionID: id})
				open = append(open, id)
			}
		case 13:
			tell(notification.MarketHalt{InstrumentID: instrument(), ResumeAt: now + 5, Timestamp: now})
			tell(notification.SystemNotice{Title: instrument()})
		}
	}
	return all
}

// happen is apply for the exchange itself, which knows of each thing as it happens, in
// order, and has nothing to compare.
func (b *book) happen(n *notification.Notification) {
	switch p := n.Payload.(type) {
	case notification.AccountUpdate:
		b.account = p
	case notification.PositionUpdate:
		b.positions[p.InstrumentID] = p
	case notification.PositionProfit:
		b.profits[p.InstrumentID] = p
	case notification.PositionLimit:
		b.limits[p.InstrumentID] = p
	case notification.MarginCall:
		b.call = p
	case notification.MarketHalt:
		b.halts[p.InstrumentID] = p
	case notification.OrderAccepted:
		b.orders[p.OrderID] = order{}
	case notification.OrderPartiallyFilled:
		b.orders[p.OrderID] = order{filled: p.FilledVolume}
	case notification.TradeExecuted:
		b.trades[p.TradeID] = trade{volume: p.Volume, price: p.Price}
	case notification.TradingSessionStart:
		b.sessions[p.SessionID] = session{}
	default: // an end, or something of which there is only one
		b.apply(n)
	}
}

// back tells what of b is older than it was in before: nothing may be.
func (b *book) back(before *book) string {
	for id, o := range before.orders {
		if now := b.orders[id]; now.filled < o.filled || o.ended && !now.ended {
			return "order " + id
		}
	}
	for id, t := range before.trades {
		if t.canceled && !b.trades[id].canceled {
			return "trade " + id
		}
	}
	for id, s := range before.sessions {
		if s.ended && !b.sessions[id].ended {
			return "session " + id
		}
	}
	for id, p := range before.positions {
		if b.positions[id].Timestamp < p.Timestamp {
			return "position " + id
		}
	}
	for id, p := range before.profits {
		if b.profits[id].Timestamp < p.Timestamp {
			return "profit " + id
		}
	}
	for id, p := range before.limits {
		if b.limits[id].Timestamp < p.Timestamp {
			return "limit " + id
		}
	}
	for id, p := range before.halts {
		if b.halts[id].Timestamp < p.Timestamp {
			return "halt " + id
		}
	}
	if b.account.Timestamp < before.account.Timestamp || b.call.Timestamp < before.call.Timestamp {
		return "account"
	}
	return ""
}

// TestSnapshotRules is docs/snapshots.md put to the test: whenever a client comes,
// however long its snapshot takes, and however the lanes overtake each other, what it
// knows never goes back, and in the end it is what the exchange knows.
func TestSnapshotRules(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	seen := map[notification.Type]bool{}
	for range 3000 {
		all := happenings(rnd, 5+rnd.IntN(80))
		came := rnd.IntN(len(all))               // the first that is published behind the welcome
		loaded := came + rnd.IntN(len(all)-came) // and the first behind the snapshot
		exchange, snapshot := newBook(), (*book)(nil)
		for i, n := range all {
			if i == loaded {
				snapshot = exchange.clone()
			}
			exchange.happen(n)
			seen[n.Type()] = true
		}
		// Of each lane some may have been on their way when the client came.
		var lanes [notification.NumPriorities][]*notification.Notification
		var late [notification.NumPriorities]int
		for lane := range late {
			late[lane] = came - rnd.IntN(came+1)
		}
		for i, n := range all {
			if i >= late[n.Priority] {
				lanes[n.Priority] = append(lanes[n.Priority], n)
			}
		}
		client, left := snapshot, len(all)
		for left > 0 {
			left = 0
			lane := rnd.IntN(len(lanes))
			if some := lanes[lane]; len(some) > 0 {
				before := client.clone()
				client.apply(some[0])
				require.Empty(t, client.back(before))
				lanes[lane] = some[1:]
			}
			for _, some := range lanes {
				left += len(some)
			}
		}
		require.Equal(t, exchange, client)
	}
	require.Equal(t, fmt.Sprintf("Type(%d)", len(seen)+1), notification.Type(len(seen)+1).String(), "every type came, and there are no more")
}

func TestSnapshotPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/snapshots.md")
	require.NoError(t, err)
	source, err := os.ReadFile("snapshot_example_test.go")
	require.NoError(t, err)
	flat := func(s string) string { return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(s, "") }
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	require.Len(t, blocks, 4)
	for _, b := range blocks {
		require.True(t, strings.Contains(flat(string(source)), flat(b[1])), "this is not in the test:\n%s", b[1])
	}
}
