package natslog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What only the leader of a stream knows: it is asked, and nobody else answers. A
// direct get, which any replica answers, would tell one that lags as the truth.

// A streamState is what the leader of a stream says of it.
type streamState struct {
	created     time.Time
	first, last uint64    // of an empty stream, first is last+1
	bytes       int64     // of blocks, with what the server needs to keep them
	lastStored  time.Time // when the last was stored, unless it is gone; by the server's clock
}

// api asks the JetStream API. An error wraps a *jetstream.APIError if that is what
// the answer was.
func (c *conn) api(ctx context.Context, what string, request, answer any) error {
	var data []byte
	if request != nil {
		data, _ = json.Marshal(request) // made of numbers and strings
	}
	reply, err := c.nc.RequestWithContext(ctx, "$JS.API."+what, data)
	if errors.Is(err, nats.ErrReconnectBufExceeded) { // nothing is kept to be sent later
		err = errors.New("there is no connection")
	}
	if err != nil {
		return fmt.Errorf("natslog: asking for %s: %w", what, err)
	}
	var refused struct {
		Error *jetstream.APIError `json:"error"`
	}
	err = errors.Join(json.Unmarshal(reply.Data, &refused), json.Unmarshal(reply.Data, answer))
	if err == nil && refused.Error != nil {
		err = refused.Error
	}
	if err != nil {
		return fmt.Errorf("natslog: asking for %s: %w", what, err)
	}
	return nil
}

// state returns the state of a stream.
func (c *conn) state(ctx context.Context, stream string) (streamState, error) {
	var info struct {
		Created time.Time `json:"created"`
		State   struct {
			Messages uint64    `json:"messages"`
			Bytes    int64     `json:"bytes"`
			First    uint64    `json:"first_seq"`
			Last     uint64    `json:"last_seq"`
			LastTime time.Time `json:"last_ts"`
		} `json:"state"`
	}
	if err := c.api(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return streamState{}, err
	}
	s := streamState{created: info.Created, first: info.State.First, last: info.State.Last, bytes: info.State.Bytes}
	if info.State.Messages == 0 {
		s.first = s.last + 1 // a stream that never had one says 0
	} else {
		s.lastStored = info.State.LastTime
	}
	return s, nil
}

// A storedMessage is one of a stream.
type storedMessage struct {
	Seq     uint64    `json:"seq"`
	Stored  time.Time `json:"time"`
	Headers []byte    `json:"hdrs"`
	Data    []byte    `json:"data"`
}

// get returns the message that a request of STREAM.MSG.GET asks for; false if there
// is none.
func (c *conn) get(ctx context.Context, stream string, request map[string]any) (storedMessage, bool, error) {
	var answer struct {
		Message storedMessage `json:"message"`
	}
	err := c.api(ctx, "STREAM.MSG.GET."+stream, request, &answer)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeMessageNotFound {
		return storedMessage{}, false, nil
	}
	return answer.Message, err == nil, err
}

// message returns the message with that sequence.
func (c *conn) message(ctx context.Context, stream string, seq uint64) (storedMessage, bool, error) {
	return c.get(ctx, stream, map[string]any{"seq": seq, "no_hdr": true})
}

// nextMessage returns the first message of the subject from that sequence on.
func (c *conn) nextMessage(ctx context.Context, stream, subject string, seq uint64) (storedMessage, bool, error) {
	return c.get(ctx, stream, map[string]any{"seq": seq, "next_by_subj": subject, "no_hdr": true})
}

// lastMessage returns the last message of the subject.
func (c *conn) lastMessage(ctx context.Context, stream, subject string) (storedMessage, bool, error) {
	return c.get(ctx, stream, map[string]any{"last_by_subj": subject})
}
