package main

import (
	"errors"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/pb"
)

// A protoRuntime is a way to encode and decode the messages of package pb.
type protoRuntime struct {
	append    func(b []byte, m *pb.Notification) ([]byte, error)
	unmarshal func(b []byte, m *pb.Notification) error
}

var google = protoRuntime{
	func(b []byte, m *pb.Notification) ([]byte, error) { return proto.MarshalOptions{}.MarshalAppend(b, m) },
	func(b []byte, m *pb.Notification) error { return proto.Unmarshal(b, m) },
}

// vtproto is the generated code of vtprotobuf, which writes from the end, into
// exactly the room that it has asked for.
func vtproto(unmarshal func(*pb.Notification, []byte) error) protoRuntime {
	return protoRuntime{
		func(b []byte, m *pb.Notification) ([]byte, error) {
			size := m.SizeVT()
			if cap(b) < size {
				b = make([]byte, size)
			}
			_, err := m.MarshalToSizedBufferVT(b[:size])
			return b[:size], err
		},
		func(b []byte, m *pb.Notification) error { return unmarshal(m, b) },
	}
}

var errPayload = errors.New("the payload is of another type, or missing")

func protobuf[P notification.Payload](name string, rt protoRuntime, s sample, message func(*notification.Notification) *pb.Notification, number func([]*pb.Notification, int), back func(*pb.Notification) (P, error)) codec {
	messages := make([]*pb.Notification, distinct)
	for i, n := range s.all {
		messages[i] = message(n)
	}
	data := encodeAll(func(i int) []byte { return must(rt.append(nil, messages[i])) })
	return codec{
		encoding: name,
		bytes:    meanLen(func(i int) []byte { return data[i] }),
		loops: map[string]func(int){
			stepEncode: func(n int) {
				b := make([]byte, 0, 1024)
				for i := range n {
					b = must(rt.append(b[:0], messages[i%distinct]))
				}
			},
			stepOpen: func(n int) {
				for i := range n {
					check(rt.unmarshal(data[i%distinct], new(pb.Notification)))
				}
			},
			stepNumber: func(n int) { number(messages, n) },
			stepWhole: func(n int) {
				for i := range n {
					m := new(pb.Notification)
					check(rt.unmarshal(data[i%distinct], m))
					must(back(m))
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			b, err := rt.append(nil, message(n))
			return [][]byte{b}, err
		},
		decode: func(b []byte) (*notification.Notification, error) {
			m := new(pb.Notification)
			if err := rt.unmarshal(b, m); err != nil {
				return nil, err
			}
			p, err := back(m)
			return &notification.Notification{ID: m.GetMessageId(), UserID: m.GetUserId(), Priority: notification.Priority(m.GetPriority()),
				Timestamp: m.GetTimestamp(), Source: m.GetSource(), Payload: p}, err
		},
	}
}

func protoPrice(messages []*pb.Notification, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(messages[i%distinct].GetTradeExecuted().GetPrice())
	}
	kept = sum
}

func protoBalance(messages []*pb.Notification, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(messages[i%distinct].GetAccountUpdate().GetBalance())
	}
	kept = sum
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

func protoTradePayload(m *pb.Notification) (notification.TradeExecuted, error) {
	p := m.GetTradeExecuted()
	if p == nil {
		return notification.TradeExecuted{}, errPayload
	}
	return notification.TradeExecuted{
		TradeID: p.TradeId, OrderID: p.OrderId, ExchangeOrderID: p.ExchangeOrderId, InstrumentID: p.InstrumentId,
		Direction: p.Direction, Offset: p.Offset, Price: p.Price, Volume: p.Volume, Commission: p.Commission,
		FillType: p.FillType, Timestamp: p.Timestamp,
	}, nil
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

func protoAccountPayload(m *pb.Notification) (notification.AccountUpdate, error) {
	p := m.GetAccountUpdate()
	if p == nil {
		return notification.AccountUpdate{}, errPayload
	}
	return notification.AccountUpdate{
		UserID: p.UserId, Balance: p.Balance, Available: p.Available, Frozen: p.Frozen, Margin: p.Margin,
		PositionProfit: p.PositionProfit, CloseProfit: p.CloseProfit, RiskRatio: p.RiskRatio, Timestamp: p.Timestamp,
	}, nil
}
