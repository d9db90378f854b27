package main

import (
	"fmt"
	"math"
	"time"

	"github.com/qaexchange/notification"
)

const (
	marginRate    = 0.12 // of a position's cost
	commission    = 0.000_1
	alertRatio    = 0.8 // margin over equity from which the risk service warns
	callRatio     = 1.0 // and from which it calls for margin
	positionLimit = 2_000
)

// A ledger is the state behind the notifications: accounts, positions, and what
// an order's life does to them. Both drivers, the simulated market and the
// replay of a recorded one, act through it, so that a fill looks the same
// whichever caused it. One goroutine owns it.
type ledger struct {
	publish  func(user int, payload notification.Payload)
	accounts []account
	books    map[holding]*position
	trades   uint64
	lastFill *order
}

type account struct {
	balance, frozen, margin, closeProfit float64

	// What the risk service has said already: it speaks when a threshold is
	// crossed, not as long as it is.
	warned, called bool
}

type holding struct {
	user       int
	instrument string
}

type position struct {
	long, short, costLong, costShort float64
	limited                          bool // PositionLimit was said
}

// An order is one that stands, or one that was just done with.
type order struct {
	id         string
	user       int
	instrument string
	buy        bool
	price      float64
	volume     float64
	filled     float64
	value      float64 // Σ price × volume of its fills
	trade      string  // its last execution
}

func (o *order) left() float64 { return o.volume - o.filled }

func (o *order) exchangeID() string { return "X" + o.id }

func (o *order) direction() string {
	if o.buy {
		return "BUY"
	}
	return "SELL"
}

func (o *order) margin() float64 { return o.price * o.left() * marginRate }

func newLedger(users int, publish func(int, notification.Payload)) *ledger {
	l := &ledger{publish: publish, accounts: make([]account, users), books: make(map[holding]*position)}
	for i := range l.accounts {
		// Between 20,000 and 2,000,000, most of them small: some trade near
		// their margin, as some always do.
		l.accounts[i].balance = math.Round(20_000 * math.Pow(100, float64(hash(uint64(i))%1000)/1000))
	}
	return l
}

// hash spreads consecutive numbers (the finalizer of SplitMix64): an order
// belongs to the user that its ID hashes to, in every run.
func hash(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func now() int64 { return time.Now().UnixNano() }

// accept takes an order into the book.
func (l *ledger) accept(o *order) {
	l.accounts[o.user].frozen += o.margin()
	l.publish(o.user, notification.OrderAccepted{
		OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
		Direction: o.direction(), Offset: l.offset(o), Price: o.price, Volume: o.volume,
		OrderType: "LIMIT", FrozenMargin: o.margin(), Timestamp: now(),
	})
}

// offset says whether an order would close what its user holds.
func (l *ledger) offset(o *order) string {
	if p := l.books[holding{o.user, o.instrument}]; p != nil && (o.buy && p.short > 0 || !o.buy && p.long > 0) {
		return "CLOSE"
	}
	return "OPEN"
}

// cancel takes volume out of the book, or all that is left of the order.
func (l *ledger) cancel(o *order, volume float64, reason string) {
	l.release(o, volume)
	l.publish(o.user, notification.OrderCanceled{
		OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
		Reason: reason, Timestamp: now(),
	})
}

// expire takes the order out of the book at the end of its time.
func (l *ledger) expire(o *order) {
	l.release(o, o.left())
	l.publish(o.user, notification.OrderExpired{
		OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
		Reason: "good for the day", Timestamp: now(),
	})
}

func (l *ledger) release(o *order, volume float64) {
	volume = min(volume, o.left())
	a := &l.accounts[o.user]
	a.frozen = max(0, a.frozen-o.price*volume*marginRate)
	o.volume -= volume
}

// reject refuses an order.
func (l *ledger) reject(o *order, reason string, code uint32) {
	l.publish(o.user, notification.OrderRejected{
		OrderID: o.id, InstrumentID: o.instrument, Reason: reason, ErrorCode: code, Timestamp: now(),
	})
}

// fill executes volume of an order: the trade, the order's new state, and what
// follows from it for the account and the position, and for the risk service.
func (l *ledger) fill(o *order, price, volume float64) {
	offset := l.offset(o)
	volume = min(volume, o.left())
	a := &l.accounts[o.user]
	a.frozen = max(0, a.frozen-o.price*volume*marginRate)
	o.filled += volume
	o.value += price * volume
	l.trades++
	o.trade = fmt.Sprintf("T%d", l.trades)
	l.lastFill = o
	fee := price * volume * commission
	a.balance -= fee

	fill := "FULL"
	if o.left() > 0 {
		fill = "PARTIAL"
	}
	l.publish(o.user, notification.TradeExecuted{
		TradeID: o.trade, OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
		Direction: o.direction(), Offset: offset, Price: price, Volume: volume,
		Commission: fee, FillType: fill, Timestamp: now(),
	})
	if o.left() > 0 {
		l.publish(o.user, notification.OrderPartiallyFilled{
			OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
			FilledVolume: o.filled, RemainingVolume: o.left(), AveragePrice: o.value / o.filled, Timestamp: now(),
		})
	} else {
		l.publish(o.user, notification.OrderFilled{
			OrderID: o.id, ExchangeOrderID: o.exchangeID(), InstrumentID: o.instrument,
			FilledVolume: o.filled, AveragePrice: o.value / o.filled, Timestamp: now(),
		})
	}
	p := l.settle(o, price, volume)
	l.updateAccount(o.user)
	l.updatePosition(o.user, o.instrument, p, price)
	l.checkRisk(o.user, o.instrument, p)
}

// settle moves a fill into the position: what can be closed is closed, the rest
// opens.
func (l *ledger) settle(o *order, price, volume float64) *position {
	key := holding{o.user, o.instrument}
	p := l.books[key]
	if p == nil {
		p = &position{}
		l.books[key] = p
	}
	a := &l.accounts[o.user]
	a.margin -= (p.costLong + p.costShort) * marginRate
	against, cost, sign := &p.long, &p.costLong, 1.0
	same, sameCost := &p.short, &p.costShort
	if o.buy {
		against, cost, sign = &p.short, &p.costShort, -1.0
		same, sameCost = &p.long, &p.costLong
	}
	if closed := min(*against, volume); closed > 0 {
		entry := *cost / *against
		profit := (price - entry) * closed * sign
		a.closeProfit += profit
		a.balance += profit
		*against -= closed
		*cost -= entry * closed
		volume -= closed
	}
	*same += volume
	*sameCost += price * volume
	a.margin = max(0, a.margin+(p.costLong+p.costShort)*marginRate)
	return p
}

// riskRatio is infinite, and valid, for an account that has nothing left.
func (a *account) riskRatio() float64 { return a.margin / max(0, a.balance) }

func (l *ledger) updateAccount(user int) {
	a := &l.accounts[user]
	l.publish(user, notification.AccountUpdate{
		UserID: memberID(user), Balance: a.balance, Available: a.balance - a.margin - a.frozen,
		Frozen: a.frozen, Margin: a.margin, CloseProfit: a.closeProfit,
		RiskRatio: a.riskRatio(), Timestamp: now(),
	})
}

func (l *ledger) updatePosition(user int, instrument string, p *position, price float64) {
	l.publish(user, notification.PositionUpdate{
		UserID: memberID(user), InstrumentID: instrument,
		VolumeLong: p.long, VolumeShort: p.short, CostLong: p.costLong, CostShort: p.costShort,
		ProfitLong: price*p.long - p.costLong, ProfitShort: p.costShort - price*p.short, Timestamp: now(),
	})
}

// checkRisk is the risk service's look at an account after a fill.
func (l *ledger) checkRisk(user int, instrument string, p *position) {
	a := &l.accounts[user]
	ratio := a.riskRatio()
	switch {
	case ratio < alertRatio:
		a.warned, a.called = false, false
	case ratio >= callRatio && !a.called:
		a.called, a.warned = true, true
		l.callMargin(user, "margin is above equity")
	case ratio >= alertRatio && !a.warned:
		a.warned = true
		l.alert(user)
	}
	if volume := max(p.long, p.short); volume < positionLimit {
		p.limited = false
	} else if !p.limited {
		p.limited = true
		l.limit(user, instrument, volume)
	}
}

func (l *ledger) alert(user int) {
	ratio := l.accounts[user].riskRatio()
	l.publish(user, notification.RiskAlert{
		UserID: memberID(user), AlertType: "risk_ratio", Severity: "warning",
		Message:   fmt.Sprintf("risk ratio %.0f %%", ratio*100),
		RiskRatio: ratio, Suggestion: "reduce positions or pay in", Timestamp: now(),
	})
}

func (l *ledger) callMargin(user int, message string) {
	a := &l.accounts[user]
	l.publish(user, marginCall(user, max(0, a.balance), a.margin, message))
}

func marginCall(user int, current, required float64, message string) notification.MarginCall {
	return notification.MarginCall{
		UserID: memberID(user), CurrentMargin: current, RequiredMargin: required,
		Deadline: time.Now().Add(30 * time.Minute).UnixNano(), Message: message, Timestamp: now(),
	}
}

func (l *ledger) limit(user int, instrument string, volume float64) {
	l.publish(user, notification.PositionLimit{
		UserID: memberID(user), InstrumentID: instrument, CurrentVolume: volume,
		LimitVolume: positionLimit, Message: "position limit reached", Timestamp: now(),
	})
}

// tradingBegins is the first message of an exchange, tradingEnds the last of
// its driver.
func tradingBegins() notification.TradingSessionStart {
	day := tradingDay()
	return notification.TradingSessionStart{SessionID: "day-" + day, TradingDay: day, Message: "trading begins", Timestamp: now()}
}

func tradingEnds() notification.TradingSessionEnd {
	day := tradingDay()
	return notification.TradingSessionEnd{SessionID: "day-" + day, TradingDay: day, Message: "trading ends", Timestamp: now()}
}

func tradingDay() string { return time.Now().Format("2006-01-02") }

func (l *ledger) notice(user int, title, content string) {
	l.publish(user, notification.SystemNotice{Title: title, Content: content, Level: "info", Timestamp: now()})
}

func marketHalt(instrument, reason string, resume time.Duration) notification.MarketHalt {
	h := notification.MarketHalt{InstrumentID: instrument, Reason: reason, Timestamp: now()}
	if resume > 0 {
		h.ResumeAt = time.Now().Add(resume).UnixNano()
	}
	return h
}
