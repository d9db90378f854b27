package main

import (
	"bytes"
	"math"
	"unsafe"

	flatbuffers "github.com/google/flatbuffers/go"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/fb"
)

// flatBuffers has no check to measure: its runtime for Go brings no verifier,
// and a corrupt buffer panics when it is read.
func flatBuffers[P notification.Payload](s sample, build func(*flatbuffers.Builder, *notification.Notification), number func([][]byte, int), payload func(*fb.Notification) P) codec {
	b := flatbuffers.NewBuilder(1024)
	data := encodeAll(func(i int) []byte {
		build(b, s.all[i])
		return b.FinishedBytes()
	})
	return codec{
		encoding: "FlatBuffers",
		bytes:    meanLen(func(i int) []byte { return data[i] }),
		loops: map[string]func(int){
			stepEncode: func(n int) {
				for i := range n {
					build(b, s.all[i%distinct])
				}
			},
			stepOpen: func(n int) {
				var root fb.Notification
				for i := range n {
					openFlat(&root, data[i%distinct])
				}
				kept = uint64(root.Priority())
			},
			stepNumber: func(n int) { number(data, n) },
			stepWhole: func(n int) {
				var root fb.Notification
				for i := range n {
					openFlat(&root, data[i%distinct])
					payload(&root)
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			build(b, n)
			return [][]byte{bytes.Clone(b.FinishedBytes())}, nil
		},
		decode: func(data []byte) (*notification.Notification, error) {
			var root fb.Notification
			openFlat(&root, data)
			return &notification.Notification{ID: text(root.MessageId()), UserID: text(root.UserId()), Priority: notification.Priority(root.Priority()),
				Timestamp: root.Timestamp(), Source: text(root.Source()), Payload: payload(&root)}, nil
		},
	}
}

func openFlat(root *fb.Notification, data []byte) {
	root.Init(data, flatbuffers.GetUOffsetT(data))
}

// text is a view of the buffer, as the strings of an Archive are.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func flatPrice(data [][]byte, n int) {
	sum := uint64(0)
	for i := range n {
		p := flatTradeTable(data[i%distinct])
		sum += math.Float64bits(p.Price())
	}
	kept = sum
}

func flatTradeTable(data []byte) (p fb.TradeExecuted) {
	var root fb.Notification
	openFlat(&root, data)
	var table flatbuffers.Table
	root.Payload(&table)
	p.Init(table.Bytes, table.Pos)
	return p
}

func flatBalance(data [][]byte, n int) {
	sum := uint64(0)
	for i := range n {
		p := flatAccountTable(data[i%distinct])
		sum += math.Float64bits(p.Balance())
	}
	kept = sum
}

func flatAccountTable(data []byte) (p fb.AccountUpdate) {
	var root fb.Notification
	openFlat(&root, data)
	var table flatbuffers.Table
	root.Payload(&table)
	p.Init(table.Bytes, table.Pos)
	return p
}

func flatTradePayload(root *fb.Notification) notification.TradeExecuted {
	p := flatTradeTable(root.Table().Bytes)
	return notification.TradeExecuted{TradeID: text(p.TradeId()), OrderID: text(p.OrderId()), ExchangeOrderID: text(p.ExchangeOrderId()),
		InstrumentID: text(p.InstrumentId()), Direction: text(p.Direction()), Offset: text(p.Offset()),
		Price: p.Price(), Volume: p.Volume(), Commission: p.Commission(), FillType: text(p.FillType()), Timestamp: p.Timestamp()}
}

func flatAccountPayload(root *fb.Notification) notification.AccountUpdate {
	p := flatAccountTable(root.Table().Bytes)
	return notification.AccountUpdate{UserID: text(p.UserId()), Balance: p.Balance(), Available: p.Available(), Frozen: p.Frozen(), Margin: p.Margin(),
		PositionProfit: p.PositionProfit(), CloseProfit: p.CloseProfit(), RiskRatio: p.RiskRatio(), Timestamp: p.Timestamp()}
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
