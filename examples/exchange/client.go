package main

import (
	"context"
	"math"
	"time"

	"github.com/qaexchange/notification"
)

// anyNumber stands for the number of a message that nobody has seen: whatever
// comes after it is right.
const anyNumber = math.MaxUint64

// A client is a member's program: it takes the JSON of what arrives and checks
// that each stream is whole and in order. It is the Sink of one session, which makes
// one call at a time, and after that may be what a flaky user's client calls: so it
// needs no lock; whoever reads its counters waits for their end.
type client struct {
	user    string
	session *notification.Session
	first   chan struct{} // if not nil, closed by the first Push, which then is the first use of it

	latency *latencies // if not nil, where its session's are recorded

	got   [notification.NumPriorities]uint64
	bytes uint64
	wrong uint64             // messages that were not the next of their stream
	own   [maxStreams]uint64 // the number of the last one in each stream
	all   [maxStreams]uint64 // the same for AllUsers
}

var _ notification.Sink = (*client)(nil)

// connect makes a session that goes on behind after, or begins now if that is
// zero. A session before it has ended.
func (c *client) connect(b bus, after notification.Cursor) error {
	s, err := b.RegisterSession(notification.SessionConfig{
		ID:      "desk-" + c.user,
		UserID:  c.user,
		Sink:    c,
		After:   after,
		Timeout: -1, // it is in this process: silence is no sign of death
	})
	if err == nil {
		c.session = s
	}
	return err
}

// restart forgets where the streams were: any number may come next.
func (c *client) restart() {
	for k := range maxStreams {
		c.own[k], c.all[k] = anyNumber, anyNumber
	}
}

// Push implements notification.Sink.
func (c *client) Push(_ context.Context, batch []*notification.Message) error {
	if c.first != nil {
		close(c.first)
		c.first = nil
	}
	now := time.Now()
	var room [1024]byte // few are longer
	for _, m := range batch {
		n := m.Notification()
		if c.latency != nil {
			c.latency[n.Priority].Record(now.Sub(time.Unix(0, n.Timestamp)))
		}
		c.take(n, len(m.AppendJSON(room[:0])))
	}
	return nil
}

// take checks one that has arrived, as so many bytes of JSON.
func (c *client) take(n *notification.Notification, bytes int) {
	c.got[n.Priority]++
	c.bytes += uint64(bytes)
	last := &c.own[streamOf[n.Type()]]
	if n.UserID == notification.AllUsers {
		last = &c.all[streamOf[n.Type()]]
	}
	number := numberOf(n.ID)
	if number != *last+1 && *last != anyNumber {
		c.wrong++
	}
	if number > *last || *last == anyNumber {
		*last = number
	}
}

// Close implements notification.Sink.
func (c *client) Close(error) {}

// bytes is how much JSON the clients have taken, once their sessions have ended.
func (x *exchange) bytes() (n uint64) {
	for _, m := range x.members {
		n += m.client.bytes
	}
	return n
}
