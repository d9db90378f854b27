package wsgateway

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
)

// batchProtocol is the subprotocol with a welcome, cursors and several
// notifications in a frame.
const batchProtocol = "notification.batch.v1"

// The close codes of our own; the README says what a client should do about
// each.
const (
	statusSlowConsumer websocket.StatusCode = 4000
	statusExpired      websocket.StatusCode = 4001
	statusReplaced     websocket.StatusCode = 4002
	statusGap          websocket.StatusCode = 4003
	statusCredentials  websocket.StatusCode = 4401
)

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
	endNormal      = &ending{code: websocket.StatusNormalClosure, text: "closed"}
	endGoingAway   = &ending{code: websocket.StatusGoingAway, text: "server going away"}
	endBusy        = &ending{code: websocket.StatusTryAgainLater, text: "too many sessions"}
	endProtocol    = &ending{code: websocket.StatusProtocolError, text: "protocol error"}
	endUTF8        = &ending{code: websocket.StatusInvalidFramePayloadData, text: "text is not UTF-8"}
	endFlood       = &ending{code: websocket.StatusPolicyViolation, text: "too many commands"}
	endDribble     = &ending{code: websocket.StatusPolicyViolation, text: "message not finished in time"}
	endTooBig      = &ending{code: websocket.StatusMessageTooBig, text: "message too big"}
	endFailed      = &ending{code: websocket.StatusInternalError, text: "internal error"}
	endSlow        = &ending{code: statusSlowConsumer, text: "slow consumer"}
	endExpired     = &ending{code: statusExpired, text: "session expired"}
	endSilent      = &ending{code: statusExpired, text: "no answer to a ping"}
	endReplaced    = &ending{code: statusReplaced, text: "replaced by a newer session"}
	endGap         = &ending{code: statusGap, text: "gap"}
	endCredentials = &ending{code: statusCredentials, text: "credentials expired"}
)

// endingOf translates why a session ended.
func endingOf(reason error) *ending {
	for _, t := range []struct {
		reason error
		end    *ending
	}{
		{notification.ErrSessionClosed, endNormal},
		{notification.ErrSessionExpired, endExpired},
		{notification.ErrSessionReplaced, endReplaced},
		{notification.ErrSlowConsumer, endSlow},
		{notification.ErrGap, endGap},
		{notification.ErrGatewayClosed, endGoingAway},
	} {
		if errors.Is(reason, t.reason) {
			return t.end
		}
	}
	return endFailed
}

// A command is what a client may say.
type command struct {
	Action   string   `json:"action"`
	Channels []string `json:"channels"`
}

// A reply is what we say beside notifications.
type reply struct {
	Action    string                 `json:"action"`
	SessionID string                 `json:"session_id,omitempty"`
	Cursor    *string                `json:"cursor,omitempty"`
	Channels  []notification.Channel `json:"channels,omitzero"`
	Reason    string                 `json:"reason,omitempty"`
	Code      string                 `json:"code,omitempty"`
	Message   string                 `json:"message,omitempty"`
}

func failure(code, message string) *reply {
	return &reply{Action: "error", Code: code, Message: message}
}

// execute does what a text message asks for and returns the answer, nil if
// there is none. A command with something wrong in it does nothing at all.
func execute(s *notification.Session, text []byte) *reply {
	var cmd command
	if err := json.Unmarshal(text, &cmd); err != nil {
		return failure("bad_json", "a command is a JSON object with an action, and channels as a list of strings")
	}
	switch cmd.Action {
	case "subscribe", "unsubscribe":
		if len(cmd.Channels) == 0 {
			return failure("no_channels", cmd.Action+" names no channels")
		}
		channels := make([]notification.Channel, len(cmd.Channels))
		for i, name := range cmd.Channels {
			if err := channels[i].UnmarshalText([]byte(name)); err != nil {
				return failure("unknown_channel", "the channels are trade, account, position, risk and system")
			}
		}
		if cmd.Action == "subscribe" {
			s.Subscribe(channels...)
		} else {
			s.Unsubscribe(channels...)
		}
		return nil
	case "unsubscribe_all":
		s.SubscribeAll()
		return nil
	case "get_subscriptions":
		return &reply{Action: "subscriptions_response", Channels: s.Subscriptions()}
	case "ping":
		return &reply{Action: "pong"}
	}
	return failure("unknown_action", "the actions are subscribe, unsubscribe, unsubscribe_all, get_subscriptions and ping")
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

// appendReply appends r as a frame.
func appendReply(b []byte, r *reply) []byte {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and channels always can
	}
	return append(appendHeader(b, opText, len(text)), text...)
}

// appendSingles appends a frame for each message.
func appendSingles(b []byte, batch []*notification.Message) []byte {
	for _, m := range batch {
		text := m.JSON()
		b = append(appendHeader(b, opText, len(text)), text...)
	}
	return b
}

// appendBatch appends one frame for all messages. The header comes first and
// holds the length, so that is added up before: cheaper than to move the text.
func appendBatch(b []byte, batch []*notification.Message, cursor string, dropped uint64) []byte {
	const open, list = `{"cursor":"`, `","notifications":[`
	end := `]}`
	if dropped > 0 {
		end = `],"dropped":` + strconv.FormatUint(dropped, 10) + `}`
	}
	length := len(open) + len(cursor) + len(list) + len(batch) - 1 + len(end)
	for _, m := range batch {
		length += len(m.JSON())
	}
	b = appendHeader(b, opText, length)
	b = append(append(append(b, open...), cursor...), list...)
	for i, m := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, m.JSON()...)
	}
	return append(b, end...)
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

// A bucket bounds how many commands come per second, and at once.
type bucket struct {
	rate, tokens float64
	at           time.Time
}

func newBucket(perSecond int) bucket {
	return bucket{rate: float64(perSecond), tokens: float64(perSecond), at: time.Now()}
}

func (b *bucket) take() bool {
	now := time.Now()
	b.tokens = min(b.tokens+b.rate*now.Sub(b.at).Seconds(), b.rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
