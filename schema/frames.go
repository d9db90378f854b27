package main

import (
	"math"

	"github.com/qaexchange/notification"
)

// A frame is one kind of text frame of wsgateway, which writes them by hand and
// from types of its own: the tests hold this table to those.
type frame struct {
	name     string
	action   string // the value of its key action; empty: it has none
	plain    bool   // it is there without a subprotocol as well
	doc      string
	keys     []key // behind action
	examples []string
}

// A key is one of a frame.
type key struct {
	name     string
	optional bool
	schema   object
}

// subprotocol is what a client asks for that wants more than notifications.
const subprotocol = "notification.batch.v1"

// fromServer returns the frames that a server sends, but for the notification
// that is a frame by itself without a subprotocol.
func fromServer(r refs) []frame {
	cursor := key{"cursor", false, textual("Where the stream is behind this frame: opaque, safe in a URL. Keep it, in place of the one before, when the frame has been dealt with, and reconnect with it. Empty if the server keeps no history.")}
	list := key{"channels", false, object{
		{"description", "The channels that the session now has."},
		{"type", "array"}, {"items", r.to("Channel")}, {"uniqueItems", true},
	}}
	return []frame{
		{
			name: "Welcome", action: "welcome",
			doc: "Always the first frame.",
			keys: []key{
				{"session_id", false, append(textual("The session's ID, for logs."), member{"minLength", 1}, member{"maxLength", maxIDLen})},
				cursor,
				{"resumed", false, flag("Whether the stream goes on behind the cursor that was given. If not, it begins now: load a snapshot, and apply what follows on top.")},
				list,
				{"heartbeat_ms", false, milliseconds("The longest that nothing is sent. Reconnect when nothing was heard for 2.5 times as long.", 0)},
				{"refresh", false, flag("Whether the command authenticate works.")},
			},
			examples: []string{`{"action":"welcome","session_id":"3UZ2LKC7","cursor":"AQw3Zk8","resumed":true,"channels":["trade","risk"],"heartbeat_ms":20000,"refresh":false}`},
		},
		{
			name: "Reset", action: "reset",
			doc:      "The second frame, if the cursor that was given is gone: the session begins now. Load a snapshot.",
			keys:     []key{{"reason", false, object{{"type", "string"}, {"enum", []string{"cursor_gone"}}}}},
			examples: []string{`{"action":"reset","reason":"cursor_gone"}`},
		},
		{
			name: "Batch",
			doc:  "Notifications, those of priority 0 first. None mixes what is replayed and what is new.",
			keys: []key{
				cursor,
				{"notifications", false, object{{"type", "array"}, {"minItems", 1}, {"items", r.to("Notification")}}},
				{"dropped", true, object{
					{"description", "How many were dropped for this client since the batch before, because it was slow and the server's policy is to drop: load a snapshot."},
					{"type", "integer"}, {"format", "uint64"}, {"minimum", 1}, {"maximum", uint64(math.MaxUint64)},
				}},
			},
			examples: []string{
				`{"cursor":"AQw3Zk8","notifications":[` + example() + `]}`,
				`{"cursor":"AQw3Zk8","notifications":[` + example() + `],"dropped":3}`,
			},
		},
		{
			name: "Live", action: "live",
			doc:      "Once, when what was missed has been sent, at once if that is nothing: what follows is new.",
			examples: []string{`{"action":"live"}`},
		},
		{
			name: "Heartbeat", action: "heartbeat",
			doc:      "When nothing else was sent for heartbeat_ms. Its cursor is younger than the last: keep it as well.",
			keys:     []key{cursor},
			examples: []string{`{"action":"heartbeat","cursor":"AQw3Zk8"}`},
		},
		{
			name: "Expiring", action: "expiring",
			doc:      "A minute before the credentials expire, or at once if that is sooner. Then the connection ends with 4401, unless authenticate has extended them.",
			keys:     []key{{"in_ms", false, append(milliseconds("When.", 0), member{"maximum", 60_000})}},
			examples: []string{`{"action":"expiring","in_ms":60000}`},
		},
		{
			name: "Ok", action: "ok", plain: true,
			doc: "A command was done: authenticate, or one about channels that had an id.",
			keys: []key{
				echo, list,
				{"expires_in_ms", true, object{
					{"description", "Of authenticate: when the credentials expire now, in milliseconds. Absent: never."},
					{"type", "integer"}, {"format", "int64"},
				}},
			},
			examples: []string{
				`{"action":"ok","id":1,"channels":["trade","risk"]}`,
				`{"action":"ok","id":1,"channels":["trade","risk"],"expires_in_ms":900000}`,
			},
		},
		{
			name: "SubscriptionsResponse", action: "subscriptions_response", plain: true,
			doc:      "The answer to a get_subscriptions without an id.",
			keys:     []key{list},
			examples: []string{`{"action":"subscriptions_response","channels":["trade","risk"]}`},
		},
		{
			name: "Pong", action: "pong", plain: true,
			doc:      "The answer to ping.",
			keys:     []key{echo},
			examples: []string{`{"action":"pong","id":1}`, `{"action":"pong"}`},
		},
		{
			name: "Error", action: "error", plain: true,
			doc: "A command did nothing, and the session lives on.",
			keys: []key{
				echo,
				{"code", false, object{
					{"description", "Why. New ones may come: take one that you do not know for an error of that command."},
					{"type", "string"},
					{"enum", []string{"bad_json", "bad_id", "not_text", "unknown_action", "unknown_channel", "no_channels", "no_refresh", "no_token", "busy", "unauthorized", "another_user"}},
				}},
				{"message", false, append(textual("For people."), member{"minLength", 1})},
			},
			examples: []string{`{"action":"error","id":1,"code":"unknown_channel","message":"the channels are trade, account, position, risk and system"}`},
		},
	}
}

// fromClient returns the commands, which are the same with the subprotocol and
// without it. Those of the second list in answers are an Error.
func fromClient(r refs) []frame {
	some := key{"channels", false, object{{"type", "array"}, {"items", r.to("Channel")}, {"minItems", 1}}}
	return []frame{
		{
			name: "Subscribe", action: "subscribe", plain: true,
			doc:      "Narrows a session that has every channel to these, and adds them to the channels of any other. It holds for what is routed after the answer; what already waits still comes.",
			keys:     []key{id, some},
			examples: []string{`{"action":"subscribe","id":1,"channels":["trade","risk"]}`},
		},
		{
			name: "Unsubscribe", action: "unsubscribe", plain: true,
			doc:      "Takes channels away, from every channel too. With the last one gone nothing arrives.",
			keys:     []key{id, some},
			examples: []string{`{"action":"unsubscribe","channels":["trade"]}`},
		},
		{
			name: "UnsubscribeAll", action: "unsubscribe_all", plain: true,
			doc:      "Removes the filter: every channel again.",
			keys:     []key{id},
			examples: []string{`{"action":"unsubscribe_all"}`},
		},
		{
			name: "GetSubscriptions", action: "get_subscriptions", plain: true,
			doc:      "Asks for the channels.",
			keys:     []key{id},
			examples: []string{`{"action":"get_subscriptions"}`},
		},
		{
			name: "Ping", action: "ping", plain: true,
			doc:      "For clients whose WebSocket cannot ping.",
			keys:     []key{id},
			examples: []string{`{"action":"ping","id":1}`},
		},
		{
			name: "Authenticate", action: "authenticate", plain: true,
			doc:      "Extends the credentials with a new token of the same user, if the welcome says refresh. One at a time.",
			keys:     []key{id, {"token", false, append(textual("The token."), member{"minLength", 1})}},
			examples: []string{`{"action":"authenticate","id":1,"token":"eyJhbGciOi"}`},
		},
	}
}

// answers are the frames that each command may lead to, by its name.
var answers = map[string][]string{
	"Subscribe":        {"Ok", "Error"},
	"Unsubscribe":      {"Ok", "Error"},
	"UnsubscribeAll":   {"Ok", "Error"},
	"GetSubscriptions": {"Ok", "SubscriptionsResponse", "Error"},
	"Ping":             {"Pong", "Error"},
	"Authenticate":     {"Ok", "Error"},
}

// id is what a command may carry, and echo what its answer has then. A string of
// 62 characters has 64 bytes with its quotes, if each is one byte.
var (
	id = key{"id", true, object{
		{"description", "Any JSON of at most 64 bytes, which the answer repeats. With one, every command about channels is answered by ok; null is the same as none."},
		{"type", []string{"string", "number", "boolean", "object", "array", "null"}}, {"maxLength", 62},
	}}
	echo = key{"id", true, object{
		{"description", "The id of the command; absent if it had none."},
		{"type", []string{"string", "number", "boolean", "object", "array"}}, {"maxLength", 62},
	}}
)

func textual(doc string) object { return object{{"description", doc}, {"type", "string"}} }

func flag(doc string) object { return object{{"description", doc}, {"type", "boolean"}} }

func milliseconds(doc string, least int) object {
	return object{{"description", doc + " In milliseconds."}, {"type", "integer"}, {"format", "int64"}, {"minimum", least}}
}

// schema returns the JSON Schema of a frame.
func (f frame) schema() object {
	required, props := []string{}, object{}
	if f.action != "" {
		required = append(required, "action")
		props = append(props, member{"action", object{{"type", "string"}, {"const", f.action}}})
	}
	for _, k := range f.keys {
		if !k.optional {
			required = append(required, k.name)
		}
		props = append(props, member{k.name, k.schema})
	}
	return object{{"title", f.name}, {"description", f.doc}, {"type", "object"}, {"required", required}, {"properties", props}}
}

// example is a notification as the documents show one.
func example() string {
	n := notification.Notification{
		ID: "trade-t1", UserID: "alice", Priority: notification.P1, Timestamp: 1729468800123456789, Source: "MatchingEngine",
		Payload: notification.TradeExecuted{
			TradeID: "t1", OrderID: "o-17", ExchangeOrderID: "x-4711", InstrumentID: "cu2512", Direction: "BUY", Offset: "OPEN",
			Price: 50100, Volume: 2, Commission: 12.5, FillType: "FULL", Timestamp: 1729468800123456789,
		},
	}
	return string(n.AppendJSON(nil))
}
