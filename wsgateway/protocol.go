package wsgateway

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// batchProtocol is the subprotocol with a welcome, cursors and several
// notifications in a frame.
const batchProtocol = "notification.batch.v1"

// An ending is why a connection ends, as the peer is told.
type ending struct {
	code websocket.StatusCode
	text string
	by   time.Time // the handshake may take until then; zero: closeTimeout
}

func (e *ending) Error() string {
	return "wsgateway: closing with " + strconv.Itoa(int(e.code)) + ": " + e.text
}

var (
	endNormal       = newEnding(web.CodeNormal, "closed")
	endGoingAway    = newEnding(web.CodeGoingAway, "server going away")
	endProtocol     = newEnding(web.CodeProtocol, "protocol error")
	endLost         = newEnding(web.CodeAbnormal, "connection lost") // never sent
	endUTF8         = newEnding(web.CodeBadText, "text is not UTF-8")
	endFlood        = newEnding(web.CodePolicy, "too many commands")
	endDribble      = newEnding(web.CodePolicy, "message not finished in time")
	endTooBig       = newEnding(web.CodeTooBig, "message too big")
	endFailed       = newEnding(web.CodeFailed, "internal error")
	endSlow         = newEnding(web.CodeSlow, "slow consumer")
	endExpired      = newEnding(web.CodeNotHeard, "session expired")
	endSilent       = newEnding(web.CodeNotHeard, "no answer to a ping")
	endGap          = newEnding(web.CodeGap, "gap")
	endBadRequest   = newEnding(web.CodeBadRequest, "bad request")
	endCredentials  = newEnding(web.CodeCredentials, "credentials expired")
	endUnauthorized = newEnding(web.CodeCredentials, "unauthorized")
	endForbidden    = newEnding(web.CodeForbidden, "forbidden")
	endReplaced     = newEnding(web.CodeReplaced, "replaced by a newer session")
)

func newEnding(code web.Code, text string) *ending {
	return &ending{code: websocket.StatusCode(code), text: text}
}

// endingOf translates why a session ended.
func endingOf(reason error) *ending {
	code := websocket.StatusCode(web.CodeOf(reason))
	for _, e := range []*ending{endNormal, endGoingAway, endSlow, endExpired, endGap, endReplaced} {
		if e.code == code {
			return e
		}
	}
	return endFailed
}

// What the server says of itself. The README shows each.
type (
	welcome struct {
		Action      string                 `json:"action"`
		SessionID   string                 `json:"session_id"`
		Cursor      string                 `json:"cursor"`
		Resumed     bool                   `json:"resumed"`
		Channels    []notification.Channel `json:"channels"`
		HeartbeatMS int64                  `json:"heartbeat_ms"`
		Refresh     bool                   `json:"refresh"`
	}
	reset struct {
		Action string `json:"action"`
		Reason string `json:"reason"`
	}
	live struct {
		Action string `json:"action"`
	}
	heartbeat struct {
		Action string `json:"action"`
		Cursor string `json:"cursor"`
	}
	expiring struct {
		Action string `json:"action"`
		InMS   int64  `json:"in_ms"`
	}
)

// A command is what a client may say.
type command struct {
	Action   string          `json:"action"`
	ID       json.RawMessage `json:"id"`
	Channels []string        `json:"channels"`
	Token    string          `json:"token"`
}

// maxCommandID bounds what is echoed.
const maxCommandID = 64

// An answer is what a command leads to.
type answer struct {
	Action      string                 `json:"action"`
	ID          json.RawMessage        `json:"id,omitempty"`
	Code        string                 `json:"code,omitempty"`
	Message     string                 `json:"message,omitempty"`
	Channels    []notification.Channel `json:"channels,omitzero"`
	ExpiresInMS *int64                 `json:"expires_in_ms,omitempty"`
}

func failure(id json.RawMessage, code, message string) *answer {
	return &answer{Action: "error", ID: id, Code: code, Message: message}
}

// execute does what a message asks for and returns the answer, nil if there is
// none. A command with something wrong in it does nothing at all.
func (c *conn) execute(isText bool, text []byte) *answer {
	if !isText {
		return failure(nil, "not_text", "commands are text messages")
	}
	var cmd command
	if err := json.Unmarshal(text, &cmd); err != nil {
		return failure(nil, "bad_json", "a command is a JSON object with an action, and channels as a list of strings")
	}
	if len(cmd.ID) > maxCommandID {
		return failure(nil, "bad_id", "an id has at most 64 bytes")
	}
	if string(cmd.ID) == "null" {
		cmd.ID = nil
	}
	s := c.session
	switch cmd.Action {
	case "subscribe", "unsubscribe":
		if len(cmd.Channels) == 0 {
			return failure(cmd.ID, "no_channels", cmd.Action+" names no channels")
		}
		channels := make([]notification.Channel, len(cmd.Channels))
		for i, name := range cmd.Channels {
			if err := channels[i].UnmarshalText([]byte(name)); err != nil {
				return failure(cmd.ID, "unknown_channel", "the channels are trade, account, position, risk and system")
			}
		}
		if cmd.Action == "subscribe" {
			s.Subscribe(channels...)
		} else {
			s.Unsubscribe(channels...)
		}
	case "unsubscribe_all":
		s.SubscribeAll()
	case "get_subscriptions":
		if cmd.ID == nil {
			return &answer{Action: "subscriptions_response", Channels: s.Subscriptions()}
		}
	case "ping":
		return &answer{Action: "pong", ID: cmd.ID}
	case "authenticate":
		return c.authenticate(cmd.ID, cmd.Token)
	default:
		return failure(cmd.ID, "unknown_action", "the actions are subscribe, unsubscribe, unsubscribe_all, get_subscriptions, ping and authenticate")
	}
	if cmd.ID == nil {
		return nil
	}
	return &answer{Action: "ok", ID: cmd.ID, Channels: s.Subscriptions()}
}

// The opcodes that we write ourselves.
const (
	opText = 1
	opPing = 9
	opPong = 10
)

// appendHeader appends the header of a whole frame from server to client.
func appendHeader(b []byte, opcode byte, length int) []byte {
	b = append(b, 0x80|opcode)
	switch {
	case length < 126:
		return append(b, byte(length))
	case length < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 126), uint16(length))
	}
	return binary.BigEndian.AppendUint64(append(b, 127), uint64(length))
}

// appendJSONFrame appends v as a frame of JSON. What came from the client stays
// as it was: nothing is escaped for HTML.
func appendJSONFrame(b []byte, v any) []byte {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // strings, numbers, channels, and JSON that was read always can
	}
	line := bytes.TrimSuffix(text.Bytes(), []byte("\n"))
	return append(appendHeader(b, opText, len(line)), line...)
}

// appendSingles appends a frame for each message.
func appendSingles(b []byte, batch []*notification.Message) []byte {
	for _, m := range batch {
		start := len(b)
		b = endFrame(m.AppendJSON(beginFrame(b)), start)
	}
	return b
}

// appendBatch appends one frame for all messages.
func appendBatch(b []byte, batch []*notification.Message, cursor string, dropped uint64) []byte {
	start := len(b)
	b = append(beginFrame(b), `{"cursor":"`...)
	b = append(append(b, cursor...), `","notifications":[`...)
	for i, m := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		b = m.AppendJSON(b)
	}
	b = append(b, ']')
	if dropped > 0 {
		b = strconv.AppendUint(append(b, `,"dropped":`...), dropped, 10)
	}
	return endFrame(append(b, '}'), start)
}

// usualHeader is the length of a header of 126 to 65,535 bytes of text.
const usualHeader = 4

// beginFrame leaves room for the header of a text frame, which holds the length of
// what is still to be appended.
func beginFrame(b []byte) []byte { return append(b, make([]byte, usualHeader)...) }

// endFrame writes the header of the frame that began at start. If it takes another
// room than was left, the text is moved.
func endFrame(b []byte, start int) []byte {
	var place [10]byte
	header := appendHeader(place[:0], opText, len(b)-start-usualHeader)
	if len(header) != usualHeader {
		return slices.Replace(b, start, start+usualHeader, header...)
	}
	copy(b[start:], header)
	return b
}

// buffers holds the memory that frames are built in, which is needed only while
// a Push runs. What an unusual batch made large is not kept.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const maxPooled = 128 << 10

func release(buf *[]byte) {
	if cap(*buf) <= maxPooled {
		buffers.Put(buf)
	}
}
