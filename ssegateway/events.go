package ssegateway

import (
	"encoding/json"
	"strconv"
	"sync"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// What the server says of itself. The README shows each.
type (
	welcome struct {
		SessionID   string                 `json:"session_id"`
		Cursor      string                 `json:"cursor"`
		Resumed     bool                   `json:"resumed"`
		Channels    []notification.Channel `json:"channels"`
		HeartbeatMS int64                  `json:"heartbeat_ms"`
	}
	closing struct {
		Code   web.Code `json:"code"`
		Reason string   `json:"reason"`
	}
)

// marshal is json.Marshal for what always can be.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// appendRetry appends for how long the client is to wait before it reconnects.
// It belongs to the event that follows.
func appendRetry(b []byte, milliseconds int64) []byte {
	return append(strconv.AppendInt(append(b, "retry: "...), milliseconds, 10), '\n')
}

// appendEvent appends an event with a name; without an id the client keeps the one
// before. data is JSON, which has no line ends.
func appendEvent(b []byte, name, id string, data []byte) []byte {
	b = append(append(append(b, "event: "...), name...), '\n')
	return append(append(appendData(b, id), data...), "\n\n"...)
}

// appendData appends what comes before an event's data. An event without a name is a
// message.
func appendData(b []byte, id string) []byte {
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	return append(b, "data: "...)
}

// appendBatch appends the events of a batch, and returns how many there are. Only
// the last one has the cursor: who is cut off before it gets all of the batch
// again, and loses nothing.
func appendBatch(b []byte, batch []*notification.Message, cursor string, dropped uint64, whole bool) ([]byte, int) {
	if whole {
		b = append(append(append(appendData(b, cursor), `{"cursor":"`...), cursor...), `","notifications":[`...)
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
		return append(b, "}\n\n"...), 1
	}
	n := len(batch)
	if dropped > 0 {
		b = append(strconv.AppendUint(append(b, "event: dropped\ndata: {\"dropped\":"...), dropped, 10), "}\n\n"...)
		n++
	}
	for i, m := range batch {
		id := ""
		if i == len(batch)-1 {
			id = cursor
		}
		b = append(m.AppendJSON(appendData(b, id)), "\n\n"...)
	}
	return b, n
}

// buffers holds the memory that events are built in, which is needed only while a
// Push runs. What an unusual batch made large is not kept.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const maxPooled = 128 << 10

func release(buf *[]byte) {
	if cap(*buf) <= maxPooled {
		buffers.Put(buf)
	}
}
