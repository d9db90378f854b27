package main

import (
	"bytes"
	"encoding/json"
	"io"
	"runtime"

	goccy "github.com/goccy/go-json"
	segmentio "github.com/segmentio/encoding/json"

	"github.com/qaexchange/notification"
)

// A jsonLibrary encodes and decodes pointers to structs.
type jsonLibrary struct {
	name string
	// reuse returns an encoder that keeps its buffer: what it returns is good
	// until the next call.
	reuse     func() func(v any) ([]byte, error)
	marshal   func(v any) ([]byte, error)
	unmarshal func(data []byte, v any) error
}

// jsonLibraries are set to the same guarantees where they have an option for
// it: < > & and the line separators escaped, what is not UTF-8 replaced, on both
// ways, strings that own their memory. sonic takes part with its default, too,
// as that is what its users call.
func jsonLibraries() []jsonLibrary {
	all := []jsonLibrary{{"encoding/json", throughWriter(func(w io.Writer) jsonEncoder { return json.NewEncoder(w) }), json.Marshal, json.Unmarshal}}
	all = append(all, jsonV2...)
	all = append(all, sonicLibraries()...)
	return append(all,
		jsonLibrary{"goccy/go-json", throughWriter(func(w io.Writer) jsonEncoder { return goccy.NewEncoder(w) }), goccy.Marshal, goccy.Unmarshal},
		jsonLibrary{"segmentio/encoding", segmentioAppend, segmentio.Marshal, segmentio.Unmarshal})
}

// absentees says who does not take part in this build, and why.
func absentees() (text string) {
	if len(jsonV2) == 0 {
		text += "; encoding/json/v2 takes part from Go 1.27 on, this is " + runtime.Version()
	}
	if len(sonicLibraries()) == 0 {
		text += "; sonic has no code of its own for " + runtime.Version() + " on " + runtime.GOARCH + " and is left out"
	}
	return text
}

type jsonEncoder interface{ Encode(v any) error }

// throughWriter is for those that have no append: an Encoder on a bytes.Buffer,
// both kept, which ends each document with a newline.
func throughWriter(newEncoder func(io.Writer) jsonEncoder) func() func(any) ([]byte, error) {
	return func() func(any) ([]byte, error) {
		var b bytes.Buffer
		e := newEncoder(&b)
		return func(v any) ([]byte, error) {
			b.Reset()
			err := e.Encode(v)
			return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
		}
	}
}

func segmentioAppend() func(any) ([]byte, error) {
	b := make([]byte, 0, 1024)
	return func(v any) (_ []byte, err error) {
		b, err = segmentio.Append(b[:0], v, segmentio.EscapeHTML|segmentio.SortMapKeys)
		return b, err
	}
}

// The payloads as one would declare them for any of these libraries.
type (
	plainTrade struct {
		Type            string  `json:"type"`
		TradeID         string  `json:"trade_id"`
		OrderID         string  `json:"order_id"`
		ExchangeOrderID string  `json:"exchange_order_id"`
		InstrumentID    string  `json:"instrument_id"`
		Direction       string  `json:"direction"`
		Offset          string  `json:"offset"`
		Price           float64 `json:"price"`
		Volume          float64 `json:"volume"`
		Commission      float64 `json:"commission"`
		FillType        string  `json:"fill_type"`
		Timestamp       int64   `json:"timestamp"`
	}
	plainAccount struct {
		Type           string  `json:"type"`
		UserID         string  `json:"user_id"`
		Balance        float64 `json:"balance"`
		Available      float64 `json:"available"`
		Frozen         float64 `json:"frozen"`
		Margin         float64 `json:"margin"`
		PositionProfit float64 `json:"position_profit"`
		CloseProfit    float64 `json:"close_profit"`
		RiskRatio      float64 `json:"risk_ratio"`
		Timestamp      int64   `json:"timestamp"`
	}
)

func plainTradeOf(p notification.TradeExecuted) plainTrade {
	return plainTrade{"trade_executed", p.TradeID, p.OrderID, p.ExchangeOrderID, p.InstrumentID, p.Direction, p.Offset,
		p.Price, p.Volume, p.Commission, p.FillType, p.Timestamp}
}

func (p plainTrade) back() notification.TradeExecuted {
	return notification.TradeExecuted{TradeID: p.TradeID, OrderID: p.OrderID, ExchangeOrderID: p.ExchangeOrderID, InstrumentID: p.InstrumentID,
		Direction: p.Direction, Offset: p.Offset, Price: p.Price, Volume: p.Volume, Commission: p.Commission, FillType: p.FillType, Timestamp: p.Timestamp}
}

func plainAccountOf(p notification.AccountUpdate) plainAccount {
	return plainAccount{"account_update", p.UserID, p.Balance, p.Available, p.Frozen, p.Margin,
		p.PositionProfit, p.CloseProfit, p.RiskRatio, p.Timestamp}
}

func (p plainAccount) back() notification.AccountUpdate {
	return notification.AccountUpdate{UserID: p.UserID, Balance: p.Balance, Available: p.Available, Frozen: p.Frozen, Margin: p.Margin,
		PositionProfit: p.PositionProfit, CloseProfit: p.CloseProfit, RiskRatio: p.RiskRatio, Timestamp: p.Timestamp}
}

// jsonCodecs are the library and its peers. All decode the library's documents.
func jsonCodecs(s sample) []codec {
	documents := encodeAll(func(i int) []byte { return s.all[i].AppendJSON(nil) })
	all := []codec{libraryJSON(s, documents)}
	for _, lib := range jsonLibraries() {
		if s.message == messageTrade {
			all = append(all, peerJSON(lib, s, documents, plainTradeOf, plainTrade.back))
		} else {
			all = append(all, peerJSON(lib, s, documents, plainAccountOf, plainAccount.back))
		}
	}
	return all
}

func libraryJSON(s sample, documents [][]byte) codec {
	return codec{
		encoding: libraryName,
		bytes:    meanLen(func(i int) []byte { return documents[i] }),
		loops: map[string]func(int){
			stepAppend: func(n int) {
				b := make([]byte, 0, 1024)
				for i := range n {
					b = s.all[i%distinct].AppendJSON(b[:0])
				}
			},
			stepMarshal: func(n int) {
				for i := range n {
					must(s.all[i%distinct].MarshalJSON())
				}
			},
			stepUnmarshal: func(n int) {
				for i := range n {
					var d notification.Notification
					check(d.UnmarshalJSON(documents[i%distinct]))
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			marshaled, err := n.MarshalJSON()
			return [][]byte{n.AppendJSON(nil), marshaled}, err
		},
		decode: func(data []byte) (*notification.Notification, error) {
			n := new(notification.Notification)
			return n, n.UnmarshalJSON(data)
		},
	}
}

// peerJSON encodes documents that exist and decodes into one whose payload is
// known before: finding it out, and refusing what fits no type, is left to its
// user, and not measured.
func peerJSON[T any, P notification.Payload](lib jsonLibrary, s sample, documents [][]byte, plain func(P) T, back func(T) P) codec {
	documentOf := func(n *notification.Notification) *document[T] {
		return &document[T]{n.ID, n.Type().String(), n.UserID, uint8(n.Priority), n.Timestamp, n.Source, plain(n.Payload.(P))}
	}
	values := make([]*document[T], distinct)
	for i, n := range s.all {
		values[i] = documentOf(n)
	}
	reuse := lib.reuse()
	return codec{
		encoding: lib.name,
		bytes:    meanLen(func(i int) []byte { return must(reuse(values[i])) }),
		loops: map[string]func(int){
			stepAppend: func(n int) {
				for i := range n {
					must(reuse(values[i%distinct]))
				}
			},
			stepMarshal: func(n int) {
				for i := range n {
					must(lib.marshal(values[i%distinct]))
				}
			},
			stepUnmarshal: func(n int) {
				for i := range n {
					check(lib.unmarshal(documents[i%distinct], new(document[T])))
				}
			},
		},
		encode: func(n *notification.Notification) ([][]byte, error) {
			reused, err := reuse(documentOf(n))
			if err != nil {
				return nil, err
			}
			reused = bytes.Clone(reused)
			marshaled, err := lib.marshal(documentOf(n))
			return [][]byte{reused, marshaled}, err
		},
		decode: func(data []byte) (*notification.Notification, error) {
			d := new(document[T])
			if err := lib.unmarshal(data, d); err != nil {
				return nil, err
			}
			return &notification.Notification{ID: d.MessageID, UserID: d.UserID, Priority: notification.Priority(d.Priority),
				Timestamp: d.Timestamp, Source: d.Source, Payload: back(d.Payload)}, nil
		},
	}
}
