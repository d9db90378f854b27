package notification

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"
)

// A Payload is what a Notification says: one of the 19 structs below, as a
// value. Other implementations, pointers and structs that embed one compile,
// but are ErrInvalid.
type Payload interface {
	Type() Type
}

// catalog holds what is fixed per Type.
var catalog = [numTypes]struct {
	name     string // on the wire
	priority Priority
	channel  Channel
	payload  Payload // the zero struct: its fields are declared there and nowhere else
}{
	TypeOrderAccepted:        {"order_accepted", P1, ChannelTrade, OrderAccepted{}},
	TypeOrderRejected:        {"order_rejected", P0, ChannelTrade, OrderRejected{}},
	TypeOrderPartiallyFilled: {"order_partially_filled", P1, ChannelTrade, OrderPartiallyFilled{}},
	TypeOrderFilled:          {"order_filled", P1, ChannelTrade, OrderFilled{}},
	TypeOrderCanceled:        {"order_canceled", P1, ChannelTrade, OrderCanceled{}},
	TypeOrderExpired:         {"order_expired", P3, ChannelTrade, OrderExpired{}},
	TypeTradeExecuted:        {"trade_executed", P1, ChannelTrade, TradeExecuted{}},
	TypeTradeCanceled:        {"trade_canceled", P1, ChannelTrade, TradeCanceled{}},
	TypeAccountOpen:          {"account_open", P2, ChannelAccount, AccountOpen{}},
	TypeAccountUpdate:        {"account_update", P2, ChannelAccount, AccountUpdate{}},
	TypePositionUpdate:       {"position_update", P2, ChannelPosition, PositionUpdate{}},
	TypePositionProfit:       {"position_profit", P2, ChannelPosition, PositionProfit{}},
	TypeRiskAlert:            {"risk_alert", P0, ChannelRisk, RiskAlert{}},
	TypeMarginCall:           {"margin_call", P0, ChannelRisk, MarginCall{}},
	TypePositionLimit:        {"position_limit", P0, ChannelRisk, PositionLimit{}},
	TypeSystemNotice:         {"system_notice", P3, ChannelSystem, SystemNotice{}},
	TypeTradingSessionStart:  {"trading_session_start", P3, ChannelSystem, TradingSessionStart{}},
	TypeTradingSessionEnd:    {"trading_session_end", P3, ChannelSystem, TradingSessionEnd{}},
	TypeMarketHalt:           {"market_halt", P3, ChannelSystem, MarketHalt{}},
}

// OrderAccepted: the exchange took an order.
type OrderAccepted struct {
	OrderID         string  `json:"order_id"`
	ExchangeOrderID string  `json:"exchange_order_id"`
	InstrumentID    string  `json:"instrument_id"`
	Direction       string  `json:"direction"`
	Offset          string  `json:"offset"`
	Price           float64 `json:"price"`
	Volume          float64 `json:"volume"`
	OrderType       string  `json:"order_type"`
	FrozenMargin    float64 `json:"frozen_margin"`
	Timestamp       int64   `json:"timestamp"` // Unix nanoseconds
}

// OrderRejected: the exchange refused an order.
type OrderRejected struct {
	OrderID      string `json:"order_id"`
	InstrumentID string `json:"instrument_id"`
	Reason       string `json:"reason"`
	ErrorCode    uint32 `json:"error_code"`
	Timestamp    int64  `json:"timestamp"` // Unix nanoseconds
}

// OrderPartiallyFilled: a part of an order was filled and the rest stands.
type OrderPartiallyFilled struct {
	OrderID         string  `json:"order_id"`
	ExchangeOrderID string  `json:"exchange_order_id"`
	InstrumentID    string  `json:"instrument_id"`
	FilledVolume    float64 `json:"filled_volume"`
	RemainingVolume float64 `json:"remaining_volume"`
	AveragePrice    float64 `json:"average_price"`
	Timestamp       int64   `json:"timestamp"` // Unix nanoseconds
}

// OrderFilled: an order was filled to the end.
type OrderFilled struct {
	OrderID         string  `json:"order_id"`
	ExchangeOrderID string  `json:"exchange_order_id"`
	InstrumentID    string  `json:"instrument_id"`
	FilledVolume    float64 `json:"filled_volume"`
	AveragePrice    float64 `json:"average_price"`
	Timestamp       int64   `json:"timestamp"` // Unix nanoseconds
}

// OrderCanceled: what was left of an order was canceled.
type OrderCanceled struct {
	OrderID         string `json:"order_id"`
	ExchangeOrderID string `json:"exchange_order_id"`
	InstrumentID    string `json:"instrument_id"`
	Reason          string `json:"reason"`
	Timestamp       int64  `json:"timestamp"` // Unix nanoseconds
}

// OrderExpired: the time of an order ran out.
type OrderExpired struct {
	OrderID         string `json:"order_id"`
	ExchangeOrderID string `json:"exchange_order_id"`
	InstrumentID    string `json:"instrument_id"`
	Reason          string `json:"reason"`
	Timestamp       int64  `json:"timestamp"` // Unix nanoseconds
}

// TradeExecuted: an execution, with its price and commission.
type TradeExecuted struct {
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
	Timestamp       int64   `json:"timestamp"` // Unix nanoseconds
}

// TradeCanceled: an execution was taken back.
type TradeCanceled struct {
	TradeID         string `json:"trade_id"`
	OrderID         string `json:"order_id"`
	ExchangeOrderID string `json:"exchange_order_id"`
	InstrumentID    string `json:"instrument_id"`
	Reason          string `json:"reason"`
	Timestamp       int64  `json:"timestamp"` // Unix nanoseconds
}

// AccountOpen: an account was opened.
type AccountOpen struct {
	AccountID   string  `json:"account_id"`
	UserID      string  `json:"user_id"`
	AccountName string  `json:"account_name"`
	InitCash    float64 `json:"init_cash"`
	AccountType uint8   `json:"account_type"`
	Timestamp   int64   `json:"timestamp"` // Unix nanoseconds
}

// AccountUpdate: the balance or margin of an account changed.
type AccountUpdate struct {
	UserID         string  `json:"user_id"`
	Balance        float64 `json:"balance"`
	Available      float64 `json:"available"`
	Frozen         float64 `json:"frozen"`
	Margin         float64 `json:"margin"`
	PositionProfit float64 `json:"position_profit"`
	CloseProfit    float64 `json:"close_profit"`
	RiskRatio      float64 `json:"risk_ratio"`
	Timestamp      int64   `json:"timestamp"` // Unix nanoseconds
}

// PositionUpdate: the volume or cost of a position changed.
type PositionUpdate struct {
	UserID       string  `json:"user_id"`
	InstrumentID string  `json:"instrument_id"`
	VolumeLong   float64 `json:"volume_long"`
	VolumeShort  float64 `json:"volume_short"`
	CostLong     float64 `json:"cost_long"`
	CostShort    float64 `json:"cost_short"`
	ProfitLong   float64 `json:"profit_long"`
	ProfitShort  float64 `json:"profit_short"`
	Timestamp    int64   `json:"timestamp"` // Unix nanoseconds
}

// PositionProfit: a position was marked to a settlement price.
type PositionProfit struct {
	UserID          string  `json:"user_id"`
	InstrumentID    string  `json:"instrument_id"`
	PositionProfit  float64 `json:"position_profit"`
	SettlementPrice float64 `json:"settlement_price"`
	Timestamp       int64   `json:"timestamp"` // Unix nanoseconds
}

// RiskAlert: a risk ratio crossed a threshold.
type RiskAlert struct {
	UserID     string  `json:"user_id"`
	AlertType  string  `json:"alert_type"`
	Severity   string  `json:"severity"`
	Message    string  `json:"message"`
	RiskRatio  float64 `json:"risk_ratio"`
	Suggestion string  `json:"suggestion"`
	Timestamp  int64   `json:"timestamp"` // Unix nanoseconds
}

// MarginCall: margin must be paid in by a deadline.
type MarginCall struct {
	UserID         string  `json:"user_id"`
	CurrentMargin  float64 `json:"current_margin"`
	RequiredMargin float64 `json:"required_margin"`
	Deadline       int64   `json:"deadline"` // Unix nanoseconds
	Message        string  `json:"message"`
	Timestamp      int64   `json:"timestamp"` // Unix nanoseconds
}

// PositionLimit: a position reached its limit.
type PositionLimit struct {
	UserID        string  `json:"user_id"`
	InstrumentID  string  `json:"instrument_id"`
	CurrentVolume float64 `json:"current_volume"`
	LimitVolume   float64 `json:"limit_volume"`
	Message       string  `json:"message"`
	Timestamp     int64   `json:"timestamp"` // Unix nanoseconds
}

// SystemNotice: an announcement of the exchange.
type SystemNotice struct {
	Title     string `json:"title"`
	Content   string `json:"content"`
	Level     string `json:"level"`
	Timestamp int64  `json:"timestamp"` // Unix nanoseconds
}

// TradingSessionStart: a trading session opened.
type TradingSessionStart struct {
	SessionID  string `json:"session_id"`
	TradingDay string `json:"trading_day"`
	Message    string `json:"message"`
	Timestamp  int64  `json:"timestamp"` // Unix nanoseconds
}

// TradingSessionEnd: a trading session closed.
type TradingSessionEnd struct {
	SessionID  string `json:"session_id"`
	TradingDay string `json:"trading_day"`
	Message    string `json:"message"`
	Timestamp  int64  `json:"timestamp"` // Unix nanoseconds
}

// MarketHalt: trading in an instrument stopped.
type MarketHalt struct {
	InstrumentID string `json:"instrument_id"`
	Reason       string `json:"reason"`
	ResumeAt     int64  `json:"resume_at"` // Unix nanoseconds
	Timestamp    int64  `json:"timestamp"` // Unix nanoseconds
}

// Type returns TypeOrderAccepted.
func (OrderAccepted) Type() Type { return TypeOrderAccepted }

// Type returns TypeOrderRejected.
func (OrderRejected) Type() Type { return TypeOrderRejected }

// Type returns TypeOrderPartiallyFilled.
func (OrderPartiallyFilled) Type() Type { return TypeOrderPartiallyFilled }

// Type returns TypeOrderFilled.
func (OrderFilled) Type() Type { return TypeOrderFilled }

// Type returns TypeOrderCanceled.
func (OrderCanceled) Type() Type { return TypeOrderCanceled }

// Type returns TypeOrderExpired.
func (OrderExpired) Type() Type { return TypeOrderExpired }

// Type returns TypeTradeExecuted.
func (TradeExecuted) Type() Type { return TypeTradeExecuted }

// Type returns TypeTradeCanceled.
func (TradeCanceled) Type() Type { return TypeTradeCanceled }

// Type returns TypeAccountOpen.
func (AccountOpen) Type() Type { return TypeAccountOpen }

// Type returns TypeAccountUpdate.
func (AccountUpdate) Type() Type { return TypeAccountUpdate }

// Type returns TypePositionUpdate.
func (PositionUpdate) Type() Type { return TypePositionUpdate }

// Type returns TypePositionProfit.
func (PositionProfit) Type() Type { return TypePositionProfit }

// Type returns TypeRiskAlert.
func (RiskAlert) Type() Type { return TypeRiskAlert }

// Type returns TypeMarginCall.
func (MarginCall) Type() Type { return TypeMarginCall }

// Type returns TypePositionLimit.
func (PositionLimit) Type() Type { return TypePositionLimit }

// Type returns TypeSystemNotice.
func (SystemNotice) Type() Type { return TypeSystemNotice }

// Type returns TypeTradingSessionStart.
func (TradingSessionStart) Type() Type { return TypeTradingSessionStart }

// Type returns TypeTradingSessionEnd.
func (TradingSessionEnd) Type() Type { return TypeTradingSessionEnd }

// Type returns TypeMarketHalt.
func (MarketHalt) Type() Type { return TypeMarketHalt }

// A layout is what the encodings know of a Type. It is made of the payload
// struct's declaration, once, so that the four encodings cannot disagree with
// it or with each other.
type layout struct {
	payload reflect.Type
	names   []string // of the payload's members in JSON: "type", then the fields
	fields  []field

	// What JSON has between the values of the header, the type's name included.
	afterID, afterSource, end string

	prefix  int      // bytes of an archive before its strings
	strings []uint32 // where the struct has its strings
	lengths []uint32 // where an archive has their lengths
}

// A field is one field of a payload struct. It is small, because every message
// goes through all those of its type.
type field struct {
	key    [maxKey]byte // what JSON has before the value, a string's opening quote included
	keyLen uint8
	kind   kind
	at     uint32 // in an archive: of the value, or of a string's length
	offset uint32 // in the struct
}

// maxKey bounds a field's key: copying an array of this size is two moves.
const maxKey = 32

// A kind is a field's type.
type kind uint8

const (
	kindString kind = iota
	kindFloat64
	kindInt64
	kindUint32
	kindUint8
)

// layouts by Type. That of the zero Type has no fields and makes JSON of what
// is no payload: an empty type, a null payload.
var layouts = makeLayouts()

func makeLayouts() (ls [numTypes]layout) {
	ls[0] = layout{afterID: `,"message_type":"","user_id":"`, afterSource: `,"payload":null`, end: `}`}
	for t := Type(1); t < numTypes; t++ {
		p := reflect.TypeOf(catalog[t].payload)
		if p == nil {
			continue // a constant without its line in catalog: a test says so
		}
		l := &ls[t]
		l.payload = p
		l.names = []string{"type"}
		l.afterID = `,"message_type":"` + catalog[t].name + `","user_id":"`
		l.afterSource = `,"payload":{"type":"` + catalog[t].name + `"`
		l.end = `}}`
		l.prefix = archiveHeader
		for i := range p.NumField() {
			l.add(p.Field(i))
		}
	}
	return ls
}

// add appends a field of the struct. A declaration that the encodings cannot
// carry panics: it is a mistake in this file, and no program starts with it.
func (l *layout) add(sf reflect.StructField) {
	name := sf.Tag.Get("json")
	key := `,"` + name + `":`
	f := field{at: uint32(l.prefix), offset: uint32(sf.Offset)}
	switch sf.Type.Kind() {
	case reflect.String:
		f.kind, l.prefix = kindString, l.prefix+4
		key += `"`
		l.strings = append(l.strings, f.offset)
		l.lengths = append(l.lengths, f.at)
	case reflect.Float64:
		f.kind, l.prefix = kindFloat64, l.prefix+8
	case reflect.Int64:
		f.kind, l.prefix = kindInt64, l.prefix+8
	case reflect.Uint32:
		f.kind, l.prefix = kindUint32, l.prefix+4
	case reflect.Uint8:
		f.kind, l.prefix = kindUint8, l.prefix+1
	default:
		panic(fmt.Sprintf("notification: %s.%s is a %s, which has no encoding", l.payload, sf.Name, sf.Type))
	}
	if name == "" || len(key) > maxKey {
		panic(fmt.Sprintf("notification: %s.%s has no json name, or too long a one", l.payload, sf.Name))
	}
	f.keyLen = uint8(copy(f.key[:], key))
	l.names = append(l.names, name)
	l.fields = append(l.fields, f)
}

// words finds the Type of an interface value by its type word: open
// addressing, a quarter full, the zero word ending a search. It follows from
// catalog, unlike a type switch, and is as fast.
var words = makeWords()

type wordTable [128]struct {
	word uintptr
	typ  Type
}

func makeWords() (ws wordTable) {
	for t := Type(1); t < numTypes; t++ {
		w := typeWord(catalog[t].payload)
		if w == 0 {
			continue
		}
		i := slot(w)
		for ws[i].word != 0 {
			i = (i + 1) % uintptr(len(ws))
		}
		ws[i].word, ws[i].typ = w, t
	}
	return ws
}

// slot mixes a type word, the address of a type descriptor: the low bits are
// alignment, so the high ones of a product with an odd number (2^64 divided by
// the golden ratio, Knuth's) choose among the 128.
func slot(w uintptr) uintptr { return uintptr(uint64(w) * 0x9e3779b97f4a7c15 >> (64 - 7)) }

// typeOf returns the Type of p, zero unless p is exactly one of the structs
// above. It compares dynamic types and does not call p.Type: a nil pointer
// would panic there, and a struct that embeds a payload would lie.
func typeOf(p Payload) Type {
	w := typeWord(p)
	i := slot(w)
	for words[i].word != w {
		if words[i].word == 0 {
			return 0
		}
		i = (i + 1) % uintptr(len(words))
	}
	return words[i].typ
}

// typeWord returns the first word of an empty interface: the address of its
// dynamic type's descriptor, zero for nil. A declared type has one descriptor,
// which neither moves nor goes away, and a type switch compares no more than
// this address either. It is compared only, never followed.
func typeWord(x any) uintptr { return *(*uintptr)(unsafe.Pointer(&x)) }

// dataOf returns the second word of an interface: for a payload the address of
// the struct that the interface holds. (An interface keeps a value in the word
// itself only if its type is a pointer at heart, which no type that add admits
// is.) Copying the struct out with a type assertion instead would need a second
// listing of the types. What is there may be read, as p's own type, and never
// written: interfaces share it. The pointer keeps it alive.
func dataOf(p Payload) unsafe.Pointer {
	return (*[2]unsafe.Pointer)(unsafe.Pointer(&p))[1]
}

// AppendJSON appends n as one JSON object and returns the longer slice; it
// allocates only if b has no room. The result is valid JSON and valid UTF-8
// whatever n holds: bytes that are not UTF-8 become U+FFFD. It is byte for byte
// what encoding/json of Go 1.27 makes of the same values, except that NaN and
// the infinities, which that refuses, are null. A payload that is none of the
// payload structs is null, under an empty message_type; a nil n is null.
func (n *Notification) AppendJSON(b []byte) []byte {
	if n == nil {
		return append(b, "null"...)
	}
	l := &layouts[typeOf(n.Payload)]
	b = append(b, `{"message_id":"`...)
	b = appendString(b, n.ID)
	b = append(b, l.afterID...)
	b = appendString(b, n.UserID)
	b = append(b, `,"priority":`...)
	b = appendUint(b, uint64(n.Priority))
	b = append(b, `,"timestamp":`...)
	b = appendInt(b, n.Timestamp)
	b = append(b, `,"source":"`...)
	b = appendString(b, n.Source)
	b = append(b, l.afterSource...)
	// Each read below is of a field that the struct behind p declares with
	// this type at this offset: l is the layout of n.Payload's own type.
	p := dataOf(n.Payload)
	for i := range l.fields {
		f := &l.fields[i]
		if n := len(b); cap(b)-n >= maxKey {
			*(*[maxKey]byte)(b[n : n+maxKey]) = f.key
			b = b[:n+int(f.keyLen)]
		} else {
			b = append(b, f.key[:f.keyLen]...)
		}
		switch v := unsafe.Add(p, f.offset); f.kind {
		case kindString:
			b = appendString(b, *(*string)(v))
		case kindFloat64:
			b = appendFloat(b, *(*float64)(v))
		case kindInt64:
			b = appendInt(b, *(*int64)(v))
		case kindUint32:
			b = appendUint(b, uint64(*(*uint32)(v)))
		case kindUint8:
			b = appendUint(b, uint64(*(*uint8)(v)))
		}
	}
	return append(b, l.end...)
}

// MarshalJSON returns what AppendJSON appends. It is a method of the value, so
// that encoding/json finds it wherever a Notification stands.
func (n Notification) MarshalJSON() ([]byte, error) { return marshalJSON(&n), nil }

// UnmarshalJSON reads what AppendJSON writes. Unknown keys are ignored,
// missing ones leave zero, null for a float is NaN. An error wraps ErrInvalid
// and leaves n unchanged: what is not JSON, a value that does not fit its
// field, a message_type that is missing or unknown, a priority over P3, a
// payload that is missing or says it is of another type. What Validate asks
// beyond that is left to Validate.
func (n *Notification) UnmarshalJSON(b []byte) error {
	if !json.Valid(b) {
		return fmt.Errorf("%w: %w", ErrInvalid, json.Unmarshal(b, new(any)))
	}
	b = bytes.TrimSpace(b)
	if string(b) == "null" {
		return nil // by convention changes nothing
	}
	var v Notification
	var typ string
	var head [len(headNames)][]byte
	if err := cmp.Or(
		members("notification", b, headNames[:], head[:]),
		decode("message_id", head[0], &v.ID),
		decode("message_type", head[1], &typ),
		decode("user_id", head[2], &v.UserID),
		decode("priority", head[3], (*uint8)(&v.Priority)),
		decode("timestamp", head[4], &v.Timestamp),
		decode("source", head[5], &v.Source),
	); err != nil {
		return err
	}
	t, err := ParseType(typ)
	switch payload := head[6]; {
	case typ == "":
		return fmt.Errorf("%w: message_type is missing", ErrInvalid)
	case err != nil:
		return fmt.Errorf("message_type: %w", err)
	case v.Priority >= NumPriorities:
		return fmt.Errorf("%w: priority %d is over %d", ErrInvalid, uint8(v.Priority), uint8(P3))
	case payload == nil || string(payload) == "null":
		return fmt.Errorf("%w: payload is missing", ErrInvalid)
	}
	l := &layouts[t]
	body, said := make([][]byte, len(l.names)), typ
	if err := cmp.Or(members("payload", head[6], l.names, body), decode("type", body[0], &said)); err != nil {
		return err
	}
	if said != typ {
		return fmt.Errorf("%w: payload is of type %q under message_type %q", ErrInvalid, clip(said), typ)
	}
	p := reflect.New(l.payload).Elem()
	for i, raw := range body[1:] {
		if err := decode(l.names[i+1], raw, p.Field(i).Addr().Interface()); err != nil {
			return err
		}
	}
	v.Payload = p.Interface().(Payload)
	*n = v
	return nil
}

// headNames are the keys that UnmarshalJSON knows outside the payload.
var headNames = [...]string{"message_id", "message_type", "user_id", "priority", "timestamp", "source", "payload"}

// members finds the values of names in a JSON object, of equal keys the last.
// b is valid JSON, without space around it: so each step below has something
// to step on.
func members(what string, b []byte, names []string, values [][]byte) error {
	if b[0] != '{' {
		return fmt.Errorf("%w: %s is no object", ErrInvalid, what)
	}
	for b = space(b[1:]); b[0] != '}'; b = space(b) {
		if b[0] == ',' {
			b = space(b[1:])
		}
		n := valueLen(b)
		key := b[1 : n-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			key = []byte(unquote(b[:n]))
		}
		b = space(space(b[n:])[1:]) // behind the colon
		n = valueLen(b)
		for i, name := range names {
			if string(key) == name {
				values[i] = b[:n]
			}
		}
		b = b[n:]
	}
	return nil
}

// space skips it.
func space(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// valueLen returns the length of the value that b, valid JSON, begins with.
func valueLen(b []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			// A literal, or, in an object or array, what stands between values.
			if depth > 0 {
				continue
			}
			if n := bytes.IndexAny(b[i:], ",]} \t\r\n"); n >= 0 {
				return i + n
			}
			return len(b)
		}
		if depth == 0 {
			return i + 1
		}
	}
}

// unquote returns what the JSON string raw says.
func unquote(raw []byte) (s string) {
	if inside := raw[1 : len(raw)-1]; bytes.IndexByte(inside, '\\') < 0 && utf8.Valid(inside) {
		return string(inside)
	}
	_ = json.Unmarshal(raw, &s) // it is valid
	return s
}

// decode stores what the JSON value raw says in the variable that dst points
// to; null and nil, for a missing one, change nothing, but null for a float is
// NaN. An error wraps ErrInvalid and names the key.
func decode(key string, raw []byte, dst any) error {
	if raw == nil {
		return nil
	}
	if f, ok := dst.(*float64); ok && raw[0] == 'n' {
		*f = math.NaN()
	}
	if raw[0] == 'n' {
		return nil
	}
	if s, ok := dst.(*string); ok {
		if raw[0] != '"' {
			return fmt.Errorf("%w: %s: %s is no string", ErrInvalid, key, clip(string(raw)))
		}
		*s = unquote(raw)
		return nil
	}
	var err error
	var u uint64
	switch dst := dst.(type) {
	case *float64:
		*dst, err = strconv.ParseFloat(string(raw), 64)
	case *int64:
		*dst, err = strconv.ParseInt(string(raw), 10, 64)
	case *uint32:
		u, err = strconv.ParseUint(string(raw), 10, 32)
		*dst = uint32(u)
	case *uint8:
		u, err = strconv.ParseUint(string(raw), 10, 8)
		*dst = uint8(u)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %s is no %T", ErrInvalid, key, clip(string(raw)), reflect.ValueOf(dst).Elem().Interface())
	}
	return nil
}

// scratch holds the buffers in which marshalJSON learns how long its result is.
var scratch = sync.Pool{New: func() any {
	b := make([]byte, 0, 1024)
	return &b
}}

// maxScratch keeps a rare huge message from occupying the pool for good.
const maxScratch = 64 << 10

// marshalJSON is AppendJSON into one allocation of the length it takes.
func marshalJSON(n *Notification) []byte {
	s := scratch.Get().(*[]byte)
	b := n.AppendJSON((*s)[:0])
	out := make([]byte, len(b))
	copy(out, b)
	if cap(b) <= maxScratch {
		*s = b
	}
	scratch.Put(s)
	return out
}

// The append functions below have a fast way, for what a notification mostly
// holds, that stores whole words and so needs some room behind the value, and
// a general way that needs none. Fuzzing holds both to encoding/json.

// appendString appends s as the inside of a JSON string and its closing quote.
func appendString(b []byte, s string) []byte {
	if special(s) {
		return appendEscaped(b, s)
	}
	b = append(b, s...)
	return append(b, '"')
}

// special reports whether s has bytes that cannot stand in a JSON string as
// they are, or that encoding/json escapes all the same.
func special(s string) bool {
	const spaces = 0x2020202020202020
	n := len(s)
	switch {
	case n >= 8:
		last := le64(s, n-8) // overlaps the word before it
		for ; len(s) > 8; s = s[8:] {
			if specialWord(le64(s, 0)) {
				return true
			}
		}
		return specialWord(last)
	case n >= 4:
		return specialWord(uint64(le32(s, 0)) | uint64(le32(s, n-4))<<32)
	case n > 0: // the first, the middle and the last are all there are
		return specialWord(uint64(s[0]) | uint64(s[n/2])<<8 | uint64(s[n-1])<<16 | spaces<<24&math.MaxUint64)
	}
	return false
}

// specialWord is special for the eight bytes in w: control characters, ", \,
// what is not ASCII, and <, > and &, which encoding/json escapes for the sake
// of HTML.
//
// A byte below k loses its high bit's zero when k is subtracted, a byte equal
// to k when 1 is subtracted after xor with k; a borrow from a neighbour can
// only come from one that was found itself. " and & differ in one bit, < and >
// in another: setting that bit makes two tests of four.
func specialWord(w uint64) bool {
	const ones = 0x0101010101010101
	return (w|
		(w-' '*ones)|
		((w|4*ones)^'&'*ones-ones)|
		((w|2*ones)^'>'*ones-ones)|
		(w^'\\'*ones-ones))&(0x80*ones) != 0
}

// plain tells of one byte what specialWord tells of eight.
var plain = func() (p [256]bool) {
	for c := range p {
		p[c] = c >= ' ' && c < utf8.RuneSelf && !strings.ContainsRune(`"\<>&`, rune(c))
	}
	return p
}()

// appendEscaped is appendString for any string and any room.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		size := 1
		if c >= utf8.RuneSelf {
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			// The line separators U+2028 and U+2029 end a line in JavaScript.
			if (r != utf8.RuneError || size != 1) && r != '\u2028' && r != '\u2029' {
				i += size
				continue
			}
			b = append(b, s[done:i]...)
			if size == 1 {
				b = append(b, "\ufffd"...) // the character itself, which needs no escape
			} else {
				b = append(b, `\u202`...)
				b = append(b, hex[r&0xf])
			}
		} else {
			b = append(b, s[done:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			}
		}
		i += size
		done = i
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}

// appendFloat appends f as encoding/json does, or null if it has no such form.
//
// Prices and balances are mostly decimals with few places, and for those the
// shortest decimal that reads back as f, which is what must be written, is
// found without a search. If m/1e4 with an integer m below 1e15 is f, then the
// decimal m·10⁻⁴ reads back as f, since both divide exactly and round once. It
// has at most 15 digits, and no two decimals of at most 15 digits read back as
// the same float64, so the shortest one, which has no more digits, is the same
// number. The product that finds m may be rounded; only the division decides.
func appendFloat(b []byte, f float64) []byte {
	a := math.Abs(f)
	if a < 1e11 && cap(b)-len(b) >= 32 {
		if m := int64(a*1e4 + 0.5); float64(m)/1e4 == a {
			return appendDecimal(b, f, uint64(m)/1e4, uint64(m)%1e4*1e4)
		}
		if a < 1e7 {
			if m := int64(a*1e8 + 0.5); m >= 100 && float64(m)/1e8 == a { // below 1e-6 there is an exponent
				return appendDecimal(b, f, uint64(m)/1e8, uint64(m)%1e8)
			}
		}
	}
	if a < 1e21 && a >= 1e-6 || a == 0 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	if !(a <= math.MaxFloat64) {
		return append(b, "null"...)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09 is written e-9
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// appendDecimal appends f, of which whole, below 1e11, stands before the
// point, and frac are the eight places behind it, without the zeros at their
// end. b must have room for 32 bytes. (The index never exceeds 13, so that the
// masks change nothing: they save the bounds checks.)
func appendDecimal(b []byte, f float64, whole, frac uint64) []byte {
	n := len(b)
	d := (*[32]byte)(b[n : n+32])
	d[0] = '-'
	i := uint(math.Float64bits(f) >> 63) // -0 included
	if whole < 1e8 {
		w, digits := trim(eightDigits(uint32(whole)))
		binary.LittleEndian.PutUint64(d[i&15:], w)
		i += digits
	} else {
		w, digits := trim(eightDigits(uint32(whole / 1e8)))
		binary.LittleEndian.PutUint64(d[i&15:], w)
		i += digits
		binary.LittleEndian.PutUint64(d[i&15:], eightDigits(uint32(whole%1e8))|zeros)
		i += 8
	}
	if frac != 0 {
		w := eightDigits(uint32(frac))
		d[i&15] = '.'
		binary.LittleEndian.PutUint64(d[(i+1)&15:], w|zeros)
		i += 9 - uint(bits.LeadingZeros64(w))/8
	}
	return b[:n+int(i)]
}

// appendInt appends i.
func appendInt(b []byte, i int64) []byte {
	if i < 0 {
		return strconv.AppendInt(b, i, 10)
	}
	return appendUint(b, uint64(i))
}

// appendUint appends u, eight digits at a time.
func appendUint(b []byte, u uint64) []byte {
	n := len(b)
	if u < 10 {
		return append(b, '0'+byte(u))
	}
	if cap(b)-n < 24 {
		return strconv.AppendUint(b, u, 10)
	}
	d := (*[24]byte)(b[n : n+24])
	if u < 1e8 {
		w, digits := trim(eightDigits(uint32(u)))
		binary.LittleEndian.PutUint64(d[:], w)
		return b[:n+int(digits)]
	}
	var i uint
	high, low := u/1e8, uint32(u%1e8)
	if high < 1e8 {
		w, digits := trim(eightDigits(uint32(high)))
		binary.LittleEndian.PutUint64(d[:], w)
		i = digits
	} else {
		w, digits := trim(eightDigits(uint32(high / 1e8)))
		binary.LittleEndian.PutUint64(d[:], w)
		binary.LittleEndian.PutUint64(d[digits&15:], eightDigits(uint32(high%1e8))|zeros)
		i = digits + 8
	}
	binary.LittleEndian.PutUint64(d[i&15:], eightDigits(low)|zeros)
	return b[:n+int(i)+8]
}

// zeros is "00000000": or'ed with digits it makes them text.
const zeros = 0x3030303030303030

// trim makes text of eight digits without the zeros before the first other
// one, and tells how many are left: one of zero, too.
func trim(w uint64) (text uint64, digits uint) {
	skip := uint(bits.TrailingZeros64(w|1<<56)) / 8
	return (w | zeros) >> (skip * 8 & 63), 8 - skip
}

// eightDigits returns the eight decimal digits of u, which is below 1e8, the
// first in the lowest byte. It divides all parts at once: one number of eight
// digits, two of four, four of two, eight of one. The factors are 1/100 and
// 1/10, rounded up, in units of 2^-20 and 2^-10: exact for what can occur.
func eightDigits(u uint32) uint64 {
	v := uint64(u/1e4) | uint64(u%1e4)<<32
	q := v * 10486 >> 20 & 0x7f_0000_007f
	v = q | (v-100*q)<<16
	q = v * 103 >> 10 & 0xf_000f_000f_000f
	return q | (v-10*q)<<8
}

// le64 returns the eight bytes of s at i; the compiler makes it one load.
func le64(s string, i int) uint64 {
	s = s[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// le32 returns the four bytes of s at i.
func le32(s string, i int) uint32 {
	s = s[i : i+4]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

// An archive is a header, the payload's fields, then all strings one behind
// the other; DESIGN.md shows it byte by byte. Its strings have lengths and no
// offsets, so there is nothing that could overlap or leave a hole, and
// checking it is adding the lengths up.
const (
	archiveVersion = 1
	archiveMagic   = 'Q' | 'X'<<8 | 'N'<<16 | archiveVersion<<24

	// Where the header has what.
	archiveSize      = 4  // uint32: bytes in all
	archiveSource    = 8  // uint32: length of Source
	archiveID        = 12 // uint16: length of ID
	archiveUserID    = 14 // uint16: length of UserID
	archiveTimestamp = 16 // int64
	archiveType      = 24 // uint8
	archivePriority  = 25 // uint8
	archiveHeader    = 26

	// maxArchive is a size that an int holds on every platform.
	maxArchive = math.MaxInt32
)

// AppendBinary appends n as an archive and returns the longer slice; it
// allocates only if b has no room. The error wraps ErrInvalid if n is not
// valid (see Validate) or takes more than 2 GiB, and b is returned as it was.
func (n *Notification) AppendBinary(b []byte) ([]byte, error) {
	t, err := n.check()
	if err != nil {
		return b, err
	}
	l := &layouts[t]
	// Each read through p is of a field that the struct declares with this
	// type, or one of the same size, at this offset: l is the layout of
	// n.Payload's own type.
	p := dataOf(n.Payload)
	size := uint64(l.prefix) + uint64(len(n.ID)) + uint64(len(n.UserID)) + uint64(len(n.Source))
	for _, offset := range l.strings {
		size += uint64(len(*(*string)(unsafe.Add(p, offset))))
	}
	if size > maxArchive {
		return b, fmt.Errorf("%w: an archive of %d bytes, over %d", ErrInvalid, size, maxArchive)
	}
	b = slices.Grow(b, int(size))
	d := b[len(b) : len(b)+int(size)]
	binary.LittleEndian.PutUint32(d, archiveMagic)
	binary.LittleEndian.PutUint32(d[archiveSize:], uint32(size))
	binary.LittleEndian.PutUint32(d[archiveSource:], uint32(len(n.Source)))
	binary.LittleEndian.PutUint16(d[archiveID:], uint16(len(n.ID)))
	binary.LittleEndian.PutUint16(d[archiveUserID:], uint16(len(n.UserID)))
	binary.LittleEndian.PutUint64(d[archiveTimestamp:], uint64(n.Timestamp))
	d[archiveType] = byte(t)
	d[archivePriority] = byte(n.Priority)
	end := l.prefix
	end += copy(d[end:], n.ID)
	end += copy(d[end:], n.UserID)
	end += copy(d[end:], n.Source)
	for i := range l.fields {
		f := &l.fields[i]
		switch v := unsafe.Add(p, f.offset); f.kind {
		case kindString:
			s := *(*string)(v)
			binary.LittleEndian.PutUint32(d[f.at:], uint32(len(s)))
			end += copy(d[end:], s)
		case kindFloat64, kindInt64:
			binary.LittleEndian.PutUint64(d[f.at:], *(*uint64)(v))
		case kindUint32:
			binary.LittleEndian.PutUint32(d[f.at:], *(*uint32)(v))
		case kindUint8:
			d[f.at] = *(*uint8)(v)
		}
	}
	return b[:len(b)+int(size)], nil
}

// MarshalBinary returns what AppendBinary appends.
func (n *Notification) MarshalBinary() ([]byte, error) { return n.AppendBinary(nil) }

// UnmarshalBinary reads an archive into n, which keeps nothing of b. An error
// wraps ErrCorrupt and leaves n unchanged.
func (n *Notification) UnmarshalBinary(b []byte) error {
	a, err := OpenArchive(b)
	if err != nil {
		return err
	}
	*n = *a.Notification()
	return nil
}

// An Archive reads an archive in place, without allocating. It was checked as
// a whole by OpenArchive, so nothing can go wrong later. The zero Archive is
// empty: of no type.
//
// The strings that it returns lie in the buffer given to OpenArchive and are
// good while that is left unchanged; Notification returns a copy.
type Archive struct {
	data                string // the archive; aliases the buffer
	endID, endUser, end uint32 // where ID, UserID and Source end in data
	typ                 Type
}

// OpenArchive checks that b is one whole archive, nothing before it and
// nothing behind, of a notification that is valid, and opens it in place. An
// error wraps ErrCorrupt and says what is wrong.
//
// The Archive aliases b: b must not change as long as the Archive, or a string
// from it or from PayloadAs, is in use, and is kept from the garbage collector
// for so long. Whoever reuses b takes a copy out first: Archive.Notification,
// or strings.Clone for a single string.
func OpenArchive(b []byte) (Archive, error) {
	if len(b) < archiveHeader {
		return Archive{}, corrupt("%d bytes are less than a header, %d", len(b), archiveHeader)
	}
	// The string is a view of b, with b's address and length. It is sound by
	// the rule above, which is the caller's to keep; if it is broken strings
	// change, but each read stays within them, being checked once more.
	s := unsafe.String(unsafe.SliceData(b), len(b))
	if le32(s, 0) != archiveMagic {
		if le32(s, 0)<<8 != archiveMagic<<8&math.MaxUint32 {
			return Archive{}, corrupt("it begins with %q", s[:3])
		}
		return Archive{}, corrupt("version %d is unknown, this is version %d", s[3], archiveVersion)
	}
	if size := le32(s, archiveSize); uint64(size) != uint64(len(s)) {
		return Archive{}, corrupt("%d bytes where the header says %d", len(s), size)
	}
	t := Type(s[archiveType])
	if !t.valid() {
		return Archive{}, corrupt("type %d is unknown", uint8(t))
	}
	if s[archivePriority] >= NumPriorities {
		return Archive{}, corrupt("priority %d is over %d", s[archivePriority], uint8(P3))
	}
	l := &layouts[t]
	if len(s) < l.prefix {
		return Archive{}, corrupt("%d bytes are less than a %s, %d", len(s), t, l.prefix)
	}
	id, user := uint64(s[archiveID])|uint64(s[archiveID+1])<<8, uint64(s[archiveUserID])|uint64(s[archiveUserID+1])<<8
	end := uint64(l.prefix) + id + user + uint64(le32(s, archiveSource))
	all := end // cannot overflow: it is the sum of a few numbers of 32 bits
	for _, at := range l.lengths {
		all += uint64(le32(s, int(at)))
	}
	if all != uint64(len(s)) {
		return Archive{}, corrupt("%d bytes where the lengths of its strings make %d", len(s), all)
	}
	a := Archive{data: s, endID: uint32(l.prefix) + uint32(id), endUser: uint32(l.prefix) + uint32(id) + uint32(user), end: uint32(end), typ: t}
	switch {
	case id-1 >= maxIDLen:
		return Archive{}, corrupt("ID has %d bytes, not 1 to %d", id, maxIDLen)
	case user-1 >= maxIDLen:
		return Archive{}, corrupt("UserID has %d bytes, not 1 to %d", user, maxIDLen)
	case a.UserID() == AllUsers && t.Channel() != ChannelSystem:
		return Archive{}, corrupt("UserID is AllUsers with a %s", t)
	}
	return a, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// ID returns Notification.ID; it aliases the buffer.
func (a Archive) ID() string { return a.data[layouts[a.typ].prefix:a.endID] }

// Type returns the payload's type.
func (a Archive) Type() Type { return a.typ }

// UserID returns Notification.UserID; it aliases the buffer.
func (a Archive) UserID() string { return a.data[a.endID:a.endUser] }

// Priority returns Notification.Priority.
func (a Archive) Priority() Priority {
	if a.typ == 0 {
		return 0
	}
	return Priority(a.data[archivePriority])
}

// Timestamp returns Notification.Timestamp, in Unix nanoseconds.
func (a Archive) Timestamp() int64 {
	if a.typ == 0 {
		return 0
	}
	return int64(le64(a.data, archiveTimestamp))
}

// Source returns Notification.Source; it aliases the buffer.
func (a Archive) Source() string { return a.data[a.endUser:a.end] }

// PayloadAs returns the payload of a as a value, without allocating, or an
// error that wraps ErrInvalid if T is not the struct of a.Type().
//
// The strings of the value alias the buffer given to OpenArchive and are good
// while that is left unchanged; strings.Clone keeps one for longer.
func PayloadAs[T Payload](a Archive) (T, error) {
	var v T
	if t := typeOf(v); t == 0 || t != a.typ {
		return v, fmt.Errorf("%w: the archive holds a %s, not a %s", ErrInvalid, a.typ, reflect.TypeFor[T]())
	}
	// v is the struct that the layout of a.typ was made of.
	layouts[a.typ].load(unsafe.Pointer(&v), a.data, a.data[a.end:])
	return v, nil
}

// Notification returns a copy that owns its memory.
func (a Archive) Notification() *Notification {
	if a.typ == 0 {
		return &Notification{}
	}
	// Two copies hold all strings. The first is the one that lives on: the ID
	// in the dedup window, which must not keep a long text alive.
	l := &layouts[a.typ]
	ids, texts := strings.Clone(a.data[l.prefix:a.endUser]), strings.Clone(a.data[a.endUser:])
	id, source := a.endID-uint32(l.prefix), a.end-a.endUser
	p := reflect.New(l.payload)
	l.load(p.UnsafePointer(), a.data, texts[source:]) // p is of the type that l was made of
	return &Notification{
		ID:        ids[:id],
		UserID:    ids[id:],
		Priority:  a.Priority(),
		Payload:   p.Elem().Interface().(Payload),
		Timestamp: a.Timestamp(),
		Source:    texts[:source],
	}
}

// load fills the struct at p, which must be of the type that l was made of,
// with the values of an archive, its strings cut from texts. Lengths that do
// not fit can only be those of a buffer that changed after OpenArchive; they
// are clipped.
func (l *layout) load(p unsafe.Pointer, archive, texts string) {
	for i := range l.fields {
		f := &l.fields[i]
		switch v := unsafe.Add(p, f.offset); f.kind {
		case kindString:
			n := min(uint(le32(archive, int(f.at))), uint(len(texts)))
			*(*string)(v) = texts[:n]
			texts = texts[n:]
		case kindFloat64, kindInt64:
			*(*uint64)(v) = le64(archive, int(f.at))
		case kindUint32:
			*(*uint32)(v) = le32(archive, int(f.at))
		case kindUint8:
			*(*uint8)(v) = archive[f.at]
		}
	}
}

// epoch is the zero of now.
var epoch = time.Now()

// now is the monotonic time in nanoseconds: setting the wall clock moves
// nothing in this package.
func now() int64 { return int64(time.Since(epoch)) }

// A Message is an accepted Notification on its way: the same Message goes
// through lane, inbox, outbox and history to every receiver and session. It is
// safe for concurrent use.
type Message struct {
	// immutable after NewMessage
	n        *Notification
	entered  int64    // when Publish was called, as now tells it
	typ      Type     // copied, so that a caller who writes to n after Publish
	priority Priority // cannot send it into a lane or channel that does not exist

	once sync.Once
	json string // guarded by once; a string header is 8 bytes shorter than a slice's
}

// NewMessage makes a Message of n, for whoever feeds a Gateway's inbox without
// a Broker. It takes ownership of n, which should be valid (see
// Notification.Validate); the time of entry is now.
func NewMessage(n *Notification) *Message {
	return newMessage(n, typeOf(n.Payload), now())
}

func newMessage(n *Notification, t Type, entered int64) *Message {
	return &Message{n: n, entered: entered, typ: t, priority: min(n.Priority, P3)}
}

// Notification returns the Notification: shared, read-only.
func (m *Message) Notification() *Notification { return m.n }

// JSON returns the Notification as AppendJSON writes it, encoded at most once
// however many ask and whoever asks first. The bytes are shared: read-only.
func (m *Message) JSON() []byte {
	m.once.Do(func() {
		// A view of b, which is nobody else's and is not written to again.
		b := marshalJSON(m.n)
		m.json = unsafe.String(unsafe.SliceData(b), len(b))
	})
	// The same bytes as a slice of which append makes a copy: it has no room.
	return unsafe.Slice(unsafe.StringData(m.json), len(m.json))
}
