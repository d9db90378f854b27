//go:build !noarchive

package main

import (
	"math"

	"github.com/qaexchange/notification"
)

// archiveCodecs has one, the library's binary encoding.
func archiveCodecs(s sample) []codec {
	if s.message == messageTrade {
		return []codec{archive(s, archivePrice, notification.PayloadAs[notification.TradeExecuted])}
	}
	return []codec{archive(s, archiveBalance, notification.PayloadAs[notification.AccountUpdate])}
}

func archive[P notification.Payload](s sample, number func([]notification.Archive, int), payloadAs func(notification.Archive) (P, error)) codec {
	data := encodeAll(func(i int) []byte { return must(s.all[i].MarshalBinary()) })
	opened := make([]notification.Archive, distinct)
	for i := range opened {
		opened[i] = must(notification.OpenArchive(data[i]))
	}
	return codec{
		encoding: libraryName,
		bytes:    meanLen(func(i int) []byte { return data[i] }),
		loops: map[string]func(int){
			stepEncode: func(n int) {
				b := make([]byte, 0, 1024)
				for i := range n {
					b = must(s.all[i%distinct].AppendBinary(b[:0]))
				}
			},
			stepOpen: func(n int) {
				sum := uint64(0)
				for i := range n {
					a, err := notification.OpenArchive(data[i%distinct])
					check(err)
					sum += uint64(a.Type())
				}
				kept = sum
			},
			stepNumber: func(n int) { number(opened, n) },
			stepWhole: func(n int) {
				for i := range n {
					a, err := notification.OpenArchive(data[i%distinct])
					check(err)
					must(payloadAs(a))
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			appended, err := n.AppendBinary(nil)
			return [][]byte{appended}, err
		},
		decode: func(b []byte) (*notification.Notification, error) {
			a, err := notification.OpenArchive(b)
			if err != nil {
				return nil, err
			}
			p, err := payloadAs(a)
			return &notification.Notification{ID: a.ID(), UserID: a.UserID(), Priority: a.Priority(), Timestamp: a.Timestamp(), Source: a.Source(), Payload: p}, err
		},
	}
}

var (
	priceField   = must(notification.NumberFieldOf[notification.TradeExecuted, float64]("price"))
	balanceField = must(notification.NumberFieldOf[notification.AccountUpdate, float64]("balance"))
)

func archivePrice(opened []notification.Archive, n int) {
	sum := uint64(0)
	for i := range n {
		price, ok := priceField.In(opened[i%distinct])
		if !ok {
			panic("an archive of another type")
		}
		sum += math.Float64bits(price)
	}
	kept = sum
}

func archiveBalance(opened []notification.Archive, n int) {
	sum := uint64(0)
	for i := range n {
		balance, ok := balanceField.In(opened[i%distinct])
		if !ok {
			panic("an archive of another type")
		}
		sum += math.Float64bits(balance)
	}
	kept = sum
}
