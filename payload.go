package notification

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
