package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/qaexchange/notification"
)

// mix is each lane's share of the messages that the simulated market causes.
var mix = [notification.NumPriorities]float64{0.05, 0.60, 0.30, 0.05}

// standing is how many orders the simulated book holds once it has filled.
const standing = 20_000

var instruments = []struct {
	id    string
	price float64
}{
	{"IF2612", 4012.4}, {"AU2612", 788.2}, {"CU2701", 81_340}, {"RB2701", 3186}, {"SC2612", 512.7},
}

// An engine is a simulated market: orders come, trade, are canceled and expire,
// singly and in bursts, and the account, risk and system services comment.
//
// It tells stories rather than drawing types: a fill is a trade, an order's
// state, an account and a position. Which story comes next is up to the lane
// that is furthest behind its share of the mix, so that the mix holds whatever
// the stories consist of. The same seed tells the same stories.
type engine struct {
	*ledger
	flush  func() // at the end of each story
	rnd    *rand.Rand
	sent   [notification.NumPriorities]uint64
	total  uint64
	prices []float64
	open   []*order
	orders uint64
	turns  [notification.NumPriorities]uint64 // stories told per lane
}

func newEngine(users int, seed uint64, to publisher) *engine {
	e := &engine{rnd: rand.New(rand.NewPCG(seed, seed))}
	e.ledger = newLedger(users, func(user int, payload notification.Payload) {
		e.sent[payload.Type().DefaultPriority()]++
		e.total++
		to.publish(user, payload)
	})
	e.flush = to.flush
	for _, i := range instruments {
		e.prices = append(e.prices, i.price)
	}
	return e
}

// run tells rate messages a second, open loop: the schedule does not wait for
// the exchange, so what the exchange delays is caught up with, not left out. It
// returns how far behind its schedule it was at worst.
func (e *engine) run(ctx context.Context, rate float64) (behind time.Duration) {
	defer func() { e.ledger.publish(everybody, tradingEnds()); e.flush() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ctx.Err() == nil; {
		elapsed := time.Since(start)
		due := uint64(elapsed.Seconds() * rate)
		if e.total < due {
			behind = max(behind, elapsed-time.Duration(float64(e.total)/rate*float64(time.Second)))
		}
		for e.total < due && ctx.Err() == nil {
			e.step()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return behind
}

// step tells the next story.
func (e *engine) step() {
	lane, worst := notification.P1, 0.0
	for p, share := range mix {
		if owed := share*float64(e.total+1) - float64(e.sent[p]); owed > worst {
			lane, worst = notification.Priority(p), owed
		}
	}
	e.turns[lane]++
	switch turn := e.turns[lane]; lane {
	case notification.P0:
		e.warn(turn)
	case notification.P1:
		e.trade(turn)
	case notification.P2:
		e.mark(turn)
	case notification.P3:
		e.announce(turn)
	}
	e.flush()
}

// warn is a story of the risk checks.
func (e *engine) warn(turn uint64) {
	user := e.anybody()
	switch i := e.instrument(); turn % 20 {
	case 3, 8, 13, 18:
		e.alert(user)
	case 5:
		e.callMargin(user, "margin is below the maintenance requirement")
	case 10, 15:
		e.limit(user, instruments[i].id, positionLimit)
	default:
		e.reject(e.newOrder(user, i), "insufficient margin", 31)
	}
}

// trade is a story of the order book.
func (e *engine) trade(turn uint64) {
	switch {
	case turn%2000 == 1000:
		e.quote(50 + e.rnd.IntN(350))
	case turn%500 == 250 && e.lastFill != nil:
		o := e.lastFill
		e.ledger.publish(o.user, notification.TradeCanceled{
			TradeID: o.trade, OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
			Reason: "erroneous price", Timestamp: now(),
		})
	case len(e.open) == 0 || e.rnd.IntN(2*standing) > len(e.open)+standing/2:
		o := e.newOrder(e.anybody(), e.instrument())
		e.open = append(e.open, o)
		e.accept(o)
	case e.rnd.IntN(2) == 0:
		o := e.take()
		e.cancel(o, o.left(), "canceled by the user")
	default:
		i := e.rnd.IntN(len(e.open))
		o := e.open[i]
		volume := 1 + float64(e.rnd.IntN(int(o.left())))
		if volume == o.left() {
			e.remove(i)
		}
		e.fill(o, o.price, volume)
	}
}

// quote is a burst: a market maker pulls n quotes at one instant and places new
// ones. The schedule then pauses until the average rate is right again.
func (e *engine) quote(n int) {
	user, i := e.rnd.IntN(min(20, len(e.accounts))), e.instrument()
	for range n {
		o := e.newOrder(user, i)
		e.accept(o)
		e.cancel(o, o.left(), "quote replaced")
	}
}

// mark is a story of the account service: positions are marked to the price,
// cash moves, accounts open.
func (e *engine) mark(turn uint64) {
	user, i := e.anybody(), e.instrument()
	switch {
	case turn%1000 == 500:
		e.ledger.publish(user, notification.AccountOpen{
			AccountID: fmt.Sprintf("%s-%d", memberID(user), turn), UserID: memberID(user),
			AccountName: "futures", InitCash: 50_000, AccountType: 1, Timestamp: now(),
		})
	case turn%2 == 0:
		e.updateAccount(user)
	default:
		profit := 0.0
		if p := e.books[holding{user, instruments[i].id}]; p != nil {
			profit = e.prices[i]*(p.long-p.short) - p.costLong + p.costShort
		}
		e.ledger.publish(user, notification.PositionProfit{
			UserID: memberID(user), InstrumentID: instruments[i].id,
			PositionProfit: profit, SettlementPrice: e.prices[i], Timestamp: now(),
		})
	}
}

// announce is a story without hurry. To tell everybody is rare: it is as many
// deliveries as there are users.
func (e *engine) announce(turn uint64) {
	switch {
	case turn%1000 == 300:
		e.ledger.publish(everybody, marketHalt(instruments[e.instrument()].id, "volatility interruption", time.Minute))
	case turn%1000 == 800:
		e.notice(everybody, "Margin rates", "Margin rates change with the next trading day.")
	case turn%10 == 5 || len(e.open) == 0:
		e.notice(e.anybody(), "Statement", "Your daily statement is ready.")
	default:
		e.expire(e.take())
	}
}

func (e *engine) anybody() int { return e.rnd.IntN(len(e.accounts)) }

// instrument picks one and moves its price.
func (e *engine) instrument() int {
	i := e.rnd.IntN(len(instruments))
	e.prices[i] *= 1 + (e.rnd.Float64()-0.5)/5000
	return i
}

func (e *engine) newOrder(user, i int) *order {
	e.orders++
	price := float64(int(e.prices[i]*(1+(e.rnd.Float64()-0.5)/100)*10)) / 10
	return &order{
		id: fmt.Sprintf("S%d", e.orders), user: user, instrument: instruments[i].id,
		buy: e.rnd.IntN(2) == 0, price: price, volume: float64(1 + e.rnd.IntN(10)),
	}
}

// take removes an order from the book and returns it.
func (e *engine) take() *order {
	i := e.rnd.IntN(len(e.open))
	o := e.open[i]
	e.remove(i)
	return o
}

func (e *engine) remove(i int) {
	last := len(e.open) - 1
	e.open[i] = e.open[last]
	e.open[last] = nil
	e.open = e.open[:last]
}
