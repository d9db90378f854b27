// Package mp has the two messages that section encodings compares, as one would
// declare them for MessagePack with github.com/tinylib/msgp. They are tuples,
// values without keys, which is the shorter and the quicker of its two forms.
package mp

//msgp:tuple Header Trade TradeExecuted Account AccountUpdate

// A Header is what every notification has.
type Header struct {
	MessageID string
	UserID    string
	Type      uint8
	Priority  uint8
	Timestamp int64
	Source    string
}

// A Trade is a notification with a TradeExecuted.
type Trade struct {
	Header  Header
	Payload TradeExecuted
}

// TradeExecuted has the fields of the library's.
type TradeExecuted struct {
	TradeID         string
	OrderID         string
	ExchangeOrderID string
	InstrumentID    string
	Direction       string
	Offset          string
	Price           float64
	Volume          float64
	Commission      float64
	FillType        string
	Timestamp       int64
}

// An Account is a notification with an AccountUpdate.
type Account struct {
	Header  Header
	Payload AccountUpdate
}

// AccountUpdate has the fields of the library's.
type AccountUpdate struct {
	UserID         string
	Balance        float64
	Available      float64
	Frozen         float64
	Margin         float64
	PositionProfit float64
	CloseProfit    float64
	RiskRatio      float64
	Timestamp      int64
}
