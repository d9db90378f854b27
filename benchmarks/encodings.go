package main

import (
	"encoding/json"
	"flag"
	"math"
	"runtime"
	"testing"
	"time"

	flatbuffers "github.com/google/flatbuffers/go"
	"google.golang.org/protobuf/proto"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/fb"
	"github.com/qaexchange/notification/benchmarks/pb"
)

// An operation is one step of one encoding for one message.
type operation struct {
	Message  string  `json:"message"`
	Encoding string  `json:"encoding"`
	Step     string  `json:"step"`
	Nanos    float64 `json:"ns"`
	Allocs   int64   `json:"allocs"`
	Bytes    int     `json:"bytes,omitempty"`
}

// The steps. Encode is into a buffer that fits, where the encoding can; decode
// is what must happen before a field may be read, checks included; read is one
// number of the payload after that.
const (
	stepEncode = "encode"
	stepDecode = "open/decode"
	stepHeader = "timestamp"
	stepRead   = "payload number"
)

// A codec knows one encoding of one message. Each step is run n times, so that the loop stands beside the work and not a call.
type codec struct {
	message, encoding string
	size              int
	encode, decode    func(n int)
	header            func(n int) int64
	read              func(n int) float64
}

// encodings measures each step for about so long.
func encodings(each time.Duration) (ops []operation) {
	testing.Init()
	flag.Set("test.benchtime", each.String())
	for _, c := range codecs() {
		add := func(step string, size int, work func(n int)) {
			op := operation{c.message, c.encoding, step, math.Inf(1), 0, size}
			for range 3 { // the quickest: what took longer was something else
				r := testing.Benchmark(func(b *testing.B) {
					b.ReportAllocs()
					work(b.N)
				})
				op.Nanos, op.Allocs = min(op.Nanos, float64(r.T.Nanoseconds())/float64(r.N)), r.AllocsPerOp()
			}
			ops = append(ops, op)
		}
		add(stepEncode, c.size, c.encode)
		add(stepDecode, 0, c.decode)
		add(stepHeader, 0, func(n int) { runtime.KeepAlive(c.header(n)) })
		add(stepRead, 0, func(n int) { runtime.KeepAlive(c.read(n)) })
	}
	return ops
}

func codecs() []codec {
	t := trade("user-1234")
	a := notification.New("user-1234", notification.AccountUpdate{UserID: "user-1234", Balance: 1e6, Available: 912_345.67, Frozen: 1e5,
		Margin: 5e4, PositionProfit: -1234.5, RiskRatio: 0.0877, Timestamp: 1_760_000_000_000_000_000}, "AccountSystem")
	return []codec{
		libraryJSON("TradeExecuted", t, func(n *notification.Notification) float64 { return n.Payload.(notification.TradeExecuted).Price }),
		standardJSON("TradeExecuted", t, tradePayload{"trade_executed", t.Payload.(notification.TradeExecuted)}, func(p *tradePayload) float64 { return p.Price }),
		archive("TradeExecuted", t, func(p notification.TradeExecuted) float64 { return p.Price }),
		protobuf("TradeExecuted", protoTrade(t), func(m *pb.Notification) float64 { return m.GetTradeExecuted().GetPrice() }),
		flatBuffers("TradeExecuted", t, flatTrade, func(table flatbuffers.Table) float64 {
			var p fb.TradeExecuted
			p.Init(table.Bytes, table.Pos)
			return p.Price()
		}),
		libraryJSON("AccountUpdate", a, func(n *notification.Notification) float64 { return n.Payload.(notification.AccountUpdate).RiskRatio }),
		standardJSON("AccountUpdate", a, accountPayload{"account_update", a.Payload.(notification.AccountUpdate)}, func(p *accountPayload) float64 { return p.RiskRatio }),
		archive("AccountUpdate", a, func(p notification.AccountUpdate) float64 { return p.RiskRatio }),
		protobuf("AccountUpdate", protoAccount(a), func(m *pb.Notification) float64 { return m.GetAccountUpdate().GetRiskRatio() }),
		flatBuffers("AccountUpdate", a, flatAccount, func(table flatbuffers.Table) float64 {
			var p fb.AccountUpdate
			p.Init(table.Bytes, table.Pos)
			return p.RiskRatio()
		}),
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// libraryJSON decodes into a Notification, whose payload is then a struct.
func libraryJSON(message string, n *notification.Notification, field func(*notification.Notification) float64) codec {
	data := n.AppendJSON(nil)
	var decoded notification.Notification
	check(decoded.UnmarshalJSON(data))
	return codec{message, "AppendJSON", len(data), func(times int) {
		buf := make([]byte, 0, 2*len(data))
		for range times {
			buf = n.AppendJSON(buf[:0])
		}
	}, func(times int) {
		for range times {
			var d notification.Notification
			check(d.UnmarshalJSON(data))
		}
	}, func(times int) (sum int64) {
		for range times {
			sum += decoded.Timestamp
		}
		return sum
	}, func(times int) (sum float64) {
		for range times {
			sum += field(&decoded)
		}
		return sum
	}}
}

func standardJSON[P any](message string, n *notification.Notification, p P, field func(*P) float64) codec {
	data := encode(n)
	var decoded document[P]
	check(json.Unmarshal(data, &decoded))
	return codec{message, "encoding/json", len(data), func(times int) {
		for range times {
			marshal(n, n.Type().String(), p)
		}
	}, func(times int) {
		for range times {
			var d document[P]
			check(json.Unmarshal(data, &d))
		}
	}, func(times int) (sum int64) {
		for range times {
			sum += decoded.Timestamp
		}
		return sum
	}, func(times int) (sum float64) {
		for range times {
			sum += field(&decoded.Payload)
		}
		return sum
	}}
}

func archive[P notification.Payload](message string, n *notification.Notification, field func(P) float64) codec {
	data := must(n.MarshalBinary())
	opened := must(notification.OpenArchive(data))
	return codec{message, "archive", len(data), func(times int) {
		buf := make([]byte, 0, 2*len(data))
		for range times {
			buf, _ = n.AppendBinary(buf[:0])
		}
	}, func(times int) {
		for range times {
			if _, err := notification.OpenArchive(data); err != nil {
				panic(err)
			}
		}
	}, func(times int) (sum int64) {
		for range times {
			sum += opened.Timestamp()
		}
		return sum
	}, func(times int) (sum float64) {
		for range times {
			p, _ := notification.PayloadAs[P](opened)
			sum += field(p)
		}
		return sum
	}}
}

func protobuf(message string, m *pb.Notification, field func(*pb.Notification) float64) codec {
	data := must(proto.Marshal(m))
	decoded := new(pb.Notification)
	check(proto.Unmarshal(data, decoded))
	return codec{message, "Protocol Buffers", len(data), func(times int) {
		buf := make([]byte, 0, 2*len(data))
		for range times {
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], m)
		}
	}, func(times int) {
		for range times {
			check(proto.Unmarshal(data, new(pb.Notification)))
		}
	}, func(times int) (sum int64) {
		for range times {
			sum += decoded.GetTimestamp()
		}
		return sum
	}, func(times int) (sum float64) {
		for range times {
			sum += field(decoded)
		}
		return sum
	}}
}

// flatBuffers has no check to measure: its Go runtime brings no verifier, and a
// corrupt buffer panics when it is read.
func flatBuffers(message string, n *notification.Notification, build func(*flatbuffers.Builder, *notification.Notification), field func(flatbuffers.Table) float64) codec {
	b := flatbuffers.NewBuilder(1024)
	build(b, n)
	data := append([]byte(nil), b.FinishedBytes()...)
	return codec{message, "FlatBuffers", len(data), func(times int) {
		for range times {
			build(b, n)
		}
	}, func(times int) {
		var root fb.Notification
		for range times {
			root.Init(data, flatbuffers.GetUOffsetT(data))
		}
		runtime.KeepAlive(root)
	}, func(times int) (sum int64) {
		var root fb.Notification
		root.Init(data, flatbuffers.GetUOffsetT(data))
		for range times {
			sum += root.Timestamp()
		}
		return sum
	}, func(times int) (sum float64) {
		var root fb.Notification
		root.Init(data, flatbuffers.GetUOffsetT(data))
		for range times {
			var table flatbuffers.Table
			root.Payload(&table)
			sum += field(table)
		}
		return sum
	}}
}

func protoTrade(n *notification.Notification) *pb.Notification {
	p := n.Payload.(notification.TradeExecuted)
	return &pb.Notification{
		MessageId: n.ID, UserId: n.UserID, Priority: uint32(n.Priority), Timestamp: n.Timestamp, Source: n.Source,
		Payload: &pb.Notification_TradeExecuted{TradeExecuted: &pb.TradeExecuted{
			TradeId: p.TradeID, OrderId: p.OrderID, ExchangeOrderId: p.ExchangeOrderID, InstrumentId: p.InstrumentID,
			Direction: p.Direction, Offset: p.Offset, Price: p.Price, Volume: p.Volume, Commission: p.Commission,
			FillType: p.FillType, Timestamp: p.Timestamp,
		}},
	}
}

func protoAccount(n *notification.Notification) *pb.Notification {
	p := n.Payload.(notification.AccountUpdate)
	return &pb.Notification{
		MessageId: n.ID, UserId: n.UserID, Priority: uint32(n.Priority), Timestamp: n.Timestamp, Source: n.Source,
		Payload: &pb.Notification_AccountUpdate{AccountUpdate: &pb.AccountUpdate{
			UserId: p.UserID, Balance: p.Balance, Available: p.Available, Frozen: p.Frozen, Margin: p.Margin,
			PositionProfit: p.PositionProfit, CloseProfit: p.CloseProfit, RiskRatio: p.RiskRatio, Timestamp: p.Timestamp,
		}},
	}
}

func flatTrade(b *flatbuffers.Builder, n *notification.Notification) {
	p := n.Payload.(notification.TradeExecuted)
	b.Reset()
	id, order, exchange, instrument := b.CreateString(p.TradeID), b.CreateString(p.OrderID), b.CreateString(p.ExchangeOrderID), b.CreateString(p.InstrumentID)
	direction, offset, fill := b.CreateString(p.Direction), b.CreateString(p.Offset), b.CreateString(p.FillType)
	fb.TradeExecutedStart(b)
	fb.TradeExecutedAddTradeId(b, id)
	fb.TradeExecutedAddOrderId(b, order)
	fb.TradeExecutedAddExchangeOrderId(b, exchange)
	fb.TradeExecutedAddInstrumentId(b, instrument)
	fb.TradeExecutedAddDirection(b, direction)
	fb.TradeExecutedAddOffset(b, offset)
	fb.TradeExecutedAddPrice(b, p.Price)
	fb.TradeExecutedAddVolume(b, p.Volume)
	fb.TradeExecutedAddCommission(b, p.Commission)
	fb.TradeExecutedAddFillType(b, fill)
	fb.TradeExecutedAddTimestamp(b, p.Timestamp)
	flatRoot(b, n, fb.PayloadTradeExecuted, fb.TradeExecutedEnd(b))
}

func flatAccount(b *flatbuffers.Builder, n *notification.Notification) {
	p := n.Payload.(notification.AccountUpdate)
	b.Reset()
	user := b.CreateString(p.UserID)
	fb.AccountUpdateStart(b)
	fb.AccountUpdateAddUserId(b, user)
	fb.AccountUpdateAddBalance(b, p.Balance)
	fb.AccountUpdateAddAvailable(b, p.Available)
	fb.AccountUpdateAddFrozen(b, p.Frozen)
	fb.AccountUpdateAddMargin(b, p.Margin)
	fb.AccountUpdateAddPositionProfit(b, p.PositionProfit)
	fb.AccountUpdateAddCloseProfit(b, p.CloseProfit)
	fb.AccountUpdateAddRiskRatio(b, p.RiskRatio)
	fb.AccountUpdateAddTimestamp(b, p.Timestamp)
	flatRoot(b, n, fb.PayloadAccountUpdate, fb.AccountUpdateEnd(b))
}

func flatRoot(b *flatbuffers.Builder, n *notification.Notification, t fb.Payload, payload flatbuffers.UOffsetT) {
	id, user, source := b.CreateString(n.ID), b.CreateString(n.UserID), b.CreateString(n.Source)
	fb.NotificationStart(b)
	fb.NotificationAddMessageId(b, id)
	fb.NotificationAddUserId(b, user)
	fb.NotificationAddPriority(b, byte(n.Priority))
	fb.NotificationAddTimestamp(b, n.Timestamp)
	fb.NotificationAddSource(b, source)
	fb.NotificationAddPayloadType(b, t)
	fb.NotificationAddPayload(b, payload)
	b.Finish(fb.NotificationEnd(b))
}
