package natslog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// A pull asks for no more than this many messages and bytes, so that many are
	// what a stream costs in memory while its reader is busy with others. A round
	// trip more per MiB does not show.
	pullMessages = 256
	pullBytes    = 1 << 20

	// A pull ends by itself after so many heartbeats, so that one whose end was not
	// heard does not stay at the server.
	pullHeartbeats = 15

	// idleConsumer is how long the server keeps a consumer whose reader is gone. One
	// whose reader is only slow finds it gone and makes another.
	idleConsumer = time.Minute
)

// errPull: the consumer cannot go on; make another, after a look at the stream.
var errPull = errors.New("natslog: consumer ended")

// A puller is one consumer of JetStream: it reads a stream from a sequence on, in
// order, as far as the server and the connection keep to that; who reads must see
// for himself that there is no hole.
//
// It is a pull consumer without acknowledgements, in one server's memory. What was
// not asked for is not sent, so a slow reader holds up nobody, and the client
// library has nothing that it could drop as it does for a slow subscription. The
// library's own loop is not used because it goes on by itself after a reconnect,
// when first of all the stream must be looked at.
//
// It is not safe for concurrent use.
type puller struct {
	// immutable after pull
	c         *conn
	consumer  string // "stream.name"
	heartbeat time.Duration
	sub       *nats.Subscription
	msgs      chan *nats.Msg // what arrives, for accept

	// owned by the reader
	request     int    // counts the pulls
	reply       string // of the pull that runs; "" if none does
	count, size int    // what it has brought
	unbounded   bool   // the next message is larger than pullBytes
}

// pull makes a consumer that begins at a sequence.
func (c *conn) pull(ctx context.Context, stream string, from uint64, headersOnly bool, heartbeat time.Duration) (*puller, error) {
	p := &puller{c: c, heartbeat: heartbeat, msgs: make(chan *nats.Msg, pullMessages+2*pullHeartbeats)}
	var err error
	if p.sub, err = c.nc.ChanSubscribe(c.nc.NewInbox()+".*", p.msgs); err != nil {
		return nil, fmt.Errorf("natslog: %w", err)
	}
	consumer, err := c.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		AckPolicy:         jetstream.AckNonePolicy,
		HeadersOnly:       headersOnly,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: idleConsumer,
	})
	if err != nil {
		_ = p.sub.Unsubscribe()
		return nil, fmt.Errorf("natslog: consumer of %s: %w", stream, err)
	}
	p.consumer = stream + "." + consumer.CachedInfo().Name
	return p, nil
}

// close ends the consumer, and waits for nothing: the server forgets one that it
// does not hear of.
func (p *puller) close() {
	_ = p.sub.Unsubscribe()
	_ = p.c.nc.PublishRequest("$JS.API.CONSUMER.DELETE."+p.consumer, p.c.nc.NewInbox(), nil)
}

// ask sees to it that the server has been asked for messages.
func (p *puller) ask() error {
	if p.reply != "" {
		return nil
	}
	p.request++
	p.reply = p.sub.Subject[:len(p.sub.Subject)-1] + strconv.Itoa(p.request)
	p.count, p.size = 0, 0
	request := map[string]any{"batch": pullMessages, "max_bytes": pullBytes, "expires": pullHeartbeats * p.heartbeat, "idle_heartbeat": p.heartbeat}
	if p.unbounded {
		request["batch"] = 1
		delete(request, "max_bytes")
	}
	data, _ := json.Marshal(request) // made of numbers
	if err := p.c.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+p.consumer, p.reply, data); err != nil {
		return fmt.Errorf("natslog: %w", err)
	}
	return nil
}

// accept takes what came through msgs. It returns nil if that was no message of the
// stream but news of the pull, and an error that wraps errPull if that news is that
// it cannot go on. What is left of an earlier pull is passed over.
func (p *puller) accept(m *nats.Msg) (*nats.MsgMetadata, error) {
	if m.Reply != "" { // only messages of a stream have one
		meta, err := m.Metadata()
		if err != nil {
			return nil, fmt.Errorf("%w: %v", errPull, err)
		}
		p.count++
		p.size += m.Size()
		// What ends a pull by its own measure is not always told.
		if p.unbounded || p.count == pullMessages || p.size >= pullBytes {
			p.reply, p.unbounded = "", false
		}
		return meta, nil
	}
	status, text := m.Header.Get("Status"), m.Header.Get("Description")
	switch {
	case m.Subject != p.reply:
	case status == "100": // a heartbeat
	case status == "408", status == "409" && text == "Batch Completed":
		p.reply = ""
	case status == "409" && text == "Message Size Exceeds MaxBytes":
		p.reply = ""
		p.unbounded = p.count == 0
	default:
		return nil, fmt.Errorf("%w: %s %s", errPull, status, text)
	}
	return nil, nil
}
