package main

import (
	"errors"
	"math"

	"github.com/tinylib/msgp/msgp"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/mp"
)

var errTrailing = errors.New("bytes behind the message")

// messagePack is the generated code of msgp. Only the check for bytes behind the
// message is added: it leaves that to its caller.
func messagePack[T any, P notification.Payload, M interface {
	*T
	msgp.Marshaler
	msgp.Unmarshaler
}](s sample, message func(mp.Header, P) *T, number func([]*T, int), parts func(*T) (mp.Header, P)) codec {
	messageOf := func(n *notification.Notification) *T {
		return message(mp.Header{MessageID: n.ID, UserID: n.UserID, Type: uint8(n.Type()), Priority: uint8(n.Priority),
			Timestamp: n.Timestamp, Source: n.Source}, n.Payload.(P))
	}
	messages := make([]*T, distinct)
	for i, n := range s.all {
		messages[i] = messageOf(n)
	}
	open := func(b []byte, m *T) error {
		rest, err := M(m).UnmarshalMsg(b)
		if err == nil && len(rest) > 0 {
			err = errTrailing
		}
		return err
	}
	data := encodeAll(func(i int) []byte { return must(M(messages[i]).MarshalMsg(nil)) })
	return codec{
		encoding: "MessagePack",
		bytes:    meanLen(func(i int) []byte { return data[i] }),
		loops: map[string]func(int){
			stepEncode: func(n int) {
				b := make([]byte, 0, 1024)
				for i := range n {
					b = must(M(messages[i%distinct]).MarshalMsg(b[:0]))
				}
			},
			stepOpen: func(n int) {
				for i := range n {
					check(open(data[i%distinct], new(T)))
				}
			},
			stepNumber: func(n int) { number(messages, n) },
			stepWhole: func(n int) {
				for i := range n {
					m := new(T)
					check(open(data[i%distinct], m))
					parts(m)
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			b, err := M(messageOf(n)).MarshalMsg(nil)
			return [][]byte{b}, err
		},
		decode: func(b []byte) (*notification.Notification, error) {
			m := new(T)
			if err := open(b, m); err != nil {
				return nil, err
			}
			h, p := parts(m)
			return &notification.Notification{ID: h.MessageID, UserID: h.UserID, Priority: notification.Priority(h.Priority),
				Timestamp: h.Timestamp, Source: h.Source, Payload: p}, nil
		},
	}
}

// The structs have the library's fields in the library's order, so a conversion
// is all it takes.

func messagePackTrade(h mp.Header, p notification.TradeExecuted) *mp.Trade {
	return &mp.Trade{Header: h, Payload: mp.TradeExecuted(p)}
}

func messagePackTradeParts(m *mp.Trade) (mp.Header, notification.TradeExecuted) {
	return m.Header, notification.TradeExecuted(m.Payload)
}

func messagePackPrice(messages []*mp.Trade, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(messages[i%distinct].Payload.Price)
	}
	kept = sum
}

func messagePackAccount(h mp.Header, p notification.AccountUpdate) *mp.Account {
	return &mp.Account{Header: h, Payload: mp.AccountUpdate(p)}
}

func messagePackAccountParts(m *mp.Account) (mp.Header, notification.AccountUpdate) {
	return m.Header, notification.AccountUpdate(m.Payload)
}

func messagePackBalance(messages []*mp.Account, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(messages[i%distinct].Payload.Balance)
	}
	kept = sum
}
