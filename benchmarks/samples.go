package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/qaexchange/notification"
)

// distinct is how many messages each loop of section encodings takes in turn.
// A single one, over and over, would teach the branch predictor its digits and
// lengths, which no real stream does. It is a power of two: the remainder is
// then an AND.
const distinct = 512

// A class is a kind of number: what writing and reading it as text costs
// depends on how many digits it has. All float64s of a message are of its class.
type class struct {
	name string
	draw func(*rand.Rand) float64
}

const classProducts = "products"

var classes = []class{
	// Prices and balances: whole, in fifths, cents or hundredths of a percent.
	{"round", func(r *rand.Rand) float64 {
		return float64(1+r.IntN(100_000_000)) / []float64{1, 5, 100, 10_000}[r.IntN(4)]
	}},
	// price × volume × rate, as commissions and margins are. Some end where the
	// decimal product does, some in the 16th or 17th digit.
	{classProducts, func(r *rand.Rand) float64 {
		return float64(1+r.IntN(500_000)) / 5 * float64(1+r.IntN(100)) * 0.0001
	}},
	// As averages and ratios come out of a division.
	{"16–17 digits", func(r *rand.Rand) float64 {
		for {
			if f := 1e6 * r.Float64(); digits(f) >= 16 {
				return f
			}
		}
	}},
}

// digits is how many the shortest decimal that reads back as f has.
func digits(f float64) int {
	mantissa, _, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	return len(strings.ReplaceAll(mantissa, ".", ""))
}

// A sample is distinct messages of one type with numbers of one class.
type sample struct {
	message, class string
	all            []*notification.Notification
}

const (
	messageTrade   = "TradeExecuted"
	messageAccount = "AccountUpdate"
)

// newSample makes the same messages whenever it is called with the same names.
func newSample(message string, c class) sample {
	s := sample{message, c.name, make([]*notification.Notification, distinct)}
	r := rand.New(rand.NewPCG(uint64(len(message)), 27))
	either := func(of ...string) string { return of[r.IntN(len(of))] }
	number := func() float64 { return c.draw(r) }
	for i := range s.all {
		n := &notification.Notification{
			ID:        fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<12), r.Uint64N(1<<48)),
			UserID:    "user-" + strconv.Itoa(r.IntN(100_000)),
			Timestamp: 1_760_000_000_000_000_000 + r.Int64N(1e15),
		}
		if message == messageTrade {
			n.Source, n.Priority = "MatchingEngine", notification.P1
			n.Payload = notification.TradeExecuted{
				TradeID: "trade-" + strconv.Itoa(r.IntN(1e7)), OrderID: "order-" + strconv.Itoa(r.IntN(1e7)),
				ExchangeOrderID: "ex-" + strconv.Itoa(r.IntN(1e9)),
				InstrumentID:    either("SHFE.cu2501", "CFFEX.IF2412", "DCE.m2505", "CZCE.SR505"),
				Direction:       either("BUY", "SELL"), Offset: either("OPEN", "CLOSE", "CLOSETODAY"),
				Price: number(), Volume: number(), Commission: number(),
				FillType: either("FULL", "PARTIAL"), Timestamp: n.Timestamp - r.Int64N(1e6),
			}
		} else {
			n.Source, n.Priority = "AccountSystem", notification.P2
			n.Payload = notification.AccountUpdate{
				UserID: n.UserID, Balance: number(), Available: number(), Frozen: number(), Margin: number(),
				PositionProfit: -number(), CloseProfit: number(), RiskRatio: number(), Timestamp: n.Timestamp - r.Int64N(1e6),
			}
		}
		s.all[i] = n
	}
	return s
}
