// Package sbe is the two messages that section encodings compares in Simple
// Binary Encoding, by hand after version 1.0 of the FIX Trading Community's
// specification: a message header, a root block of fixed fields at fixed
// places, then the strings as variable data, in their order. All is
// little-endian, the specification's default.
//
//	header   blockLength, templateId, schemaId, version   uint16 each
//	block    timestamp int64, sent int64, priority uint8, then the doubles
//	data     a uint16 with the length before each string
//
// timestamp is the notification's, sent the payload's. The doubles are price,
// volume and commission; or balance, available, frozen, margin, position
// profit, close profit and risk ratio.
package sbe

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"unsafe"

	"github.com/qaexchange/notification"
)

const (
	schema, version = 1, 0

	// The templates.
	tradeExecuted = 1
	accountUpdate = 2

	// Where a message has what. Fields need no alignment: the specification pads
	// only where a schema asks for it.
	atTemplate  = 2
	atSchema    = 4
	header      = 8
	atTimestamp = header
	atSent      = header + 8
	atPriority  = header + 16
	atDoubles   = header + 17

	tradeBlock   = 17 + 3*8
	accountBlock = 17 + 7*8
	tradeTexts   = 10
	accountTexts = 4
)

// ErrMalformed is returned for what is no message of this schema.
var ErrMalformed = errors.New("sbe: malformed message")

// ErrPayload is returned for a payload that the schema does not have.
var ErrPayload = errors.New("sbe: neither a TradeExecuted nor an AccountUpdate")

// ErrLong is returned for a string of more than 65,535 bytes.
var ErrLong = errors.New("sbe: a string is too long")

// Append appends n, with a TradeExecuted or an AccountUpdate.
func Append(b []byte, n *notification.Notification) ([]byte, error) {
	switch p := n.Payload.(type) {
	case notification.TradeExecuted:
		texts := [tradeTexts]string{n.ID, n.UserID, n.Source, p.TradeID, p.OrderID, p.ExchangeOrderID, p.InstrumentID, p.Direction, p.Offset, p.FillType}
		d, ok := grow(&b, tradeBlock, texts[:])
		if !ok {
			return b, ErrLong
		}
		putHead(d, tradeBlock, tradeExecuted, n, p.Timestamp)
		putDouble(d, 0, p.Price)
		putDouble(d, 1, p.Volume)
		putDouble(d, 2, p.Commission)
		putTexts(d[header+tradeBlock:], texts[:])
		return b, nil
	case notification.AccountUpdate:
		texts := [accountTexts]string{n.ID, n.UserID, n.Source, p.UserID}
		d, ok := grow(&b, accountBlock, texts[:])
		if !ok {
			return b, ErrLong
		}
		putHead(d, accountBlock, accountUpdate, n, p.Timestamp)
		putDouble(d, 0, p.Balance)
		putDouble(d, 1, p.Available)
		putDouble(d, 2, p.Frozen)
		putDouble(d, 3, p.Margin)
		putDouble(d, 4, p.PositionProfit)
		putDouble(d, 5, p.CloseProfit)
		putDouble(d, 6, p.RiskRatio)
		putTexts(d[header+accountBlock:], texts[:])
		return b, nil
	}
	return b, ErrPayload
}

// grow makes b longer by a message, which it returns, unless a string is too
// long.
func grow(b *[]byte, block int, texts []string) (message []byte, ok bool) {
	size := header + block
	for _, s := range texts {
		if len(s) > math.MaxUint16 {
			return nil, false
		}
		size += 2 + len(s)
	}
	start := len(*b)
	*b = slices.Grow(*b, size)[:start+size]
	return (*b)[start:], true
}

func putHead(d []byte, block, template uint16, n *notification.Notification, sent int64) {
	_ = d[atDoubles]
	binary.LittleEndian.PutUint16(d, block)
	binary.LittleEndian.PutUint16(d[atTemplate:], template)
	binary.LittleEndian.PutUint16(d[atSchema:], schema)
	binary.LittleEndian.PutUint16(d[atSchema+2:], version)
	binary.LittleEndian.PutUint64(d[atTimestamp:], uint64(n.Timestamp))
	binary.LittleEndian.PutUint64(d[atSent:], uint64(sent))
	d[atPriority] = byte(n.Priority)
}

func putDouble(d []byte, i int, f float64) {
	binary.LittleEndian.PutUint64(d[atDoubles+8*i:], math.Float64bits(f))
}

func putTexts(d []byte, texts []string) {
	for _, s := range texts {
		binary.LittleEndian.PutUint16(d, uint16(len(s)))
		d = d[2+copy(d[2:], s):]
	}
}

// A Message reads a message in place: what it returns aliases the buffer.
type Message struct {
	data []byte
	text int // where the strings begin
}

// Open checks the header and that the block and all strings lie within b, which
// they fill. A longer block than is known is skipped, as the specification wants
// it for later versions. UTF-8 is not checked.
func Open(b []byte) (Message, error) {
	if len(b) < header || binary.LittleEndian.Uint16(b[atSchema:]) != schema {
		return Message{}, ErrMalformed
	}
	known, texts := tradeBlock, tradeTexts
	switch binary.LittleEndian.Uint16(b[atTemplate:]) {
	case tradeExecuted:
	case accountUpdate:
		known, texts = accountBlock, accountTexts
	default:
		return Message{}, ErrMalformed
	}
	block := int(binary.LittleEndian.Uint16(b))
	if block < known {
		return Message{}, ErrMalformed
	}
	at := header + block
	for range texts {
		if len(b)-at < 2 {
			return Message{}, ErrMalformed
		}
		at += 2 + int(binary.LittleEndian.Uint16(b[at:]))
	}
	if at != len(b) {
		return Message{}, ErrMalformed
	}
	return Message{b, header + block}, nil
}

// Timestamp is the notification's.
func (m Message) Timestamp() int64 { return int64(binary.LittleEndian.Uint64(m.data[atTimestamp:])) }

// Sent is the payload's timestamp.
func (m Message) Sent() int64 { return int64(binary.LittleEndian.Uint64(m.data[atSent:])) }

// Priority is the notification's.
func (m Message) Priority() uint8 { return m.data[atPriority] }

// Price is a TradeExecuted's.
func (m Message) Price() float64 { return m.double(0) }

// Balance is an AccountUpdate's.
func (m Message) Balance() float64 { return m.double(0) }

func (m Message) double(i int) float64 {
	return math.Float64frombits(binary.LittleEndian.Uint64(m.data[atDoubles+8*i:]))
}

// texts reads the variable data one after the other, which is the only way to
// it that the encoding has.
type texts []byte

func (m Message) texts() texts { return m.data[m.text:] }

func (t *texts) next() string {
	n := int(binary.LittleEndian.Uint16(*t))
	s := (*t)[2 : 2+n]
	*t = (*t)[2+n:]
	return unsafe.String(unsafe.SliceData(s), n)
}

// Notification returns the notification around the payload.
func (m Message) Notification() *notification.Notification {
	t := m.texts()
	n := &notification.Notification{ID: t.next(), UserID: t.next(), Source: t.next(),
		Priority: notification.Priority(m.Priority()), Timestamp: m.Timestamp()}
	if m.data[atTemplate] == tradeExecuted {
		n.Payload = m.Trade()
	} else {
		n.Payload = m.Account()
	}
	return n
}

// Trade returns the payload of a TradeExecuted.
func (m Message) Trade() (p notification.TradeExecuted) {
	t := m.texts()
	for range 3 { // those of the notification
		t.next()
	}
	p.TradeID, p.OrderID, p.ExchangeOrderID, p.InstrumentID = t.next(), t.next(), t.next(), t.next()
	p.Direction, p.Offset, p.FillType = t.next(), t.next(), t.next()
	p.Price, p.Volume, p.Commission, p.Timestamp = m.double(0), m.double(1), m.double(2), m.Sent()
	return p
}

// Account returns the payload of an AccountUpdate.
func (m Message) Account() (p notification.AccountUpdate) {
	t := m.texts()
	for range 3 { // those of the notification
		t.next()
	}
	p.UserID = t.next()
	p.Balance, p.Available, p.Frozen, p.Margin = m.double(0), m.double(1), m.double(2), m.double(3)
	p.PositionProfit, p.CloseProfit, p.RiskRatio, p.Timestamp = m.double(4), m.double(5), m.double(6), m.Sent()
	return p
}
