package main

import (
	"math"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/pb"
	"github.com/qaexchange/notification/benchmarks/sbe"
)

// binaryCodecs are the archive and its peers. Each encodes from the values that
// its users hold: a Notification, or a message of its own, which exists.
func binaryCodecs(s sample) []codec {
	if s.message == messageTrade {
		return append(archiveCodecs(s),
			simpleBinary(s, sbePrice, sbe.Message.Trade),
			flatBuffers(s, flatTrade, flatPrice, flatTradePayload),
			protobuf("vtprotobuf", vtproto((*pb.Notification).UnmarshalVT), s, protoTrade, protoPrice, protoTradePayload),
			protobuf("vtprotobuf unsafe", vtproto((*pb.Notification).UnmarshalVTUnsafe), s, protoTrade, protoPrice, protoTradePayload),
			protobuf("protobuf", google, s, protoTrade, protoPrice, protoTradePayload),
			messagePack(s, messagePackTrade, messagePackPrice, messagePackTradeParts))
	}
	return append(archiveCodecs(s),
		simpleBinary(s, sbeBalance, sbe.Message.Account),
		flatBuffers(s, flatAccount, flatBalance, flatAccountPayload),
		protobuf("vtprotobuf", vtproto((*pb.Notification).UnmarshalVT), s, protoAccount, protoBalance, protoAccountPayload),
		protobuf("vtprotobuf unsafe", vtproto((*pb.Notification).UnmarshalVTUnsafe), s, protoAccount, protoBalance, protoAccountPayload),
		protobuf("protobuf", google, s, protoAccount, protoBalance, protoAccountPayload),
		messagePack(s, messagePackAccount, messagePackBalance, messagePackAccountParts))
}

// The reading of one number is written out once for each encoding and message,
// as a user would: a call through a function value would cost more than it does.
// Adding the bits up and not the numbers keeps the loop from waiting for itself.

func simpleBinary[P notification.Payload](s sample, number func([]sbe.Message, int), payload func(sbe.Message) P) codec {
	data := encodeAll(func(i int) []byte { return must(sbe.Append(nil, s.all[i])) })
	opened := make([]sbe.Message, distinct)
	for i := range opened {
		opened[i] = must(sbe.Open(data[i]))
	}
	return codec{
		encoding: "SBE",
		bytes:    meanLen(func(i int) []byte { return data[i] }),
		loops: map[string]func(int){
			stepEncode: func(n int) {
				b := make([]byte, 0, 1024)
				for i := range n {
					b = must(sbe.Append(b[:0], s.all[i%distinct]))
				}
			},
			stepOpen: func(n int) {
				sum := uint64(0)
				for i := range n {
					m, err := sbe.Open(data[i%distinct])
					check(err)
					sum += uint64(m.Priority())
				}
				kept = sum
			},
			stepNumber: func(n int) { number(opened, n) },
			stepWhole: func(n int) {
				for i := range n {
					m, err := sbe.Open(data[i%distinct])
					check(err)
					payload(m)
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			b, err := sbe.Append(nil, n)
			return [][]byte{b}, err
		},
		decode: func(b []byte) (*notification.Notification, error) {
			m, err := sbe.Open(b)
			if err != nil {
				return nil, err
			}
			return m.Notification(), nil
		},
	}
}

func sbePrice(opened []sbe.Message, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(opened[i%distinct].Price())
	}
	kept = sum
}

func sbeBalance(opened []sbe.Message, n int) {
	sum := uint64(0)
	for i := range n {
		sum += math.Float64bits(opened[i%distinct].Balance())
	}
	kept = sum
}
