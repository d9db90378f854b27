package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

// everybody as the user of a publish is notification.AllUsers.
const (
	everybody       = -1
	everybodyPrefix = "all"
)

// A stream is what somebody is told on one channel in one lane: within it the
// library keeps the order, so that consecutive numbers are enough to prove that
// nothing is missing and nothing came twice. Its number is the last part of a
// notification's ID, which makes a retry idempotent as well.
type stream struct {
	// mu makes "take the next number" and "enter the lane" one step. It is per
	// stream because a P1 that waits for room must not hold up a P0 of the user.
	mu   sync.Mutex
	last atomic.Uint64 // written under mu: the number of the last one accepted
}

// The streams of a user, in the order of the types that bring them up first.
const maxStreams = 8

var (
	streamNames []string                             // "trade-P1", …
	streamOf    [notification.TypeMarketHalt + 1]int // by Type
)

func init() {
	index := map[string]int{}
	for t := notification.TypeOrderAccepted; t <= notification.TypeMarketHalt; t++ {
		name := fmt.Sprintf("%s-%s", t.Channel(), t.DefaultPriority())
		i, ok := index[name]
		if !ok {
			i = len(streamNames)
			index[name] = i
			streamNames = append(streamNames, name)
		}
		streamOf[t] = i
	}
	if len(streamNames) > maxStreams {
		panic("maxStreams is too small")
	}
}

// A member is somebody with an account.
type member struct {
	id      string
	streams [maxStreams]stream
	client  *client
}

// An exchange is the whole process but its driver: a bus, and for each member a
// session in this process.
type exchange struct {
	// immutable after newExchange
	bus     bus
	run     string // part of every ID, where those of earlier runs are remembered; else empty
	members []*member
	started time.Time
	latency *latencies // with a log, behind which a Gateway does not know when Publish was called; else nil

	all  [maxStreams]stream                        // what AllUsers is told
	stop func()                                    // ends the waiting of publish
	ctx  context.Context                           // ended by stop
	one  [notification.NumPriorities]atomic.Uint64 // accepted for one member
	many [notification.NumPriorities]atomic.Uint64 // accepted for AllUsers
	full [notification.NumPriorities]atomic.Uint64 // the bus said ErrQueueFull, so PublishWait was called
	cut  [notification.NumPriorities]atomic.Uint64 // not accepted: the end came first
}

// latencies are from the call of Publish to the start of Push.
type latencies [notification.NumPriorities]notification.HistogramRecorder

// memberID returns the ID of the i-th member, from 0.
func memberID(i int) string { return fmt.Sprintf("u%05d", i+1) }

// newExchange registers a session for each of n members at a bus that runs. run is
// part of the IDs of what it publishes.
func newExchange(n int, bus bus, run string) (*exchange, error) {
	x := &exchange{bus: bus, run: run, members: make([]*member, n), started: time.Now()}
	if run != "" {
		x.latency = new(latencies)
	}
	x.ctx, x.stop = context.WithCancel(context.Background())
	for i := range x.members {
		m := &member{id: memberID(i)}
		m.client = &client{user: m.id, latency: x.latency}
		x.members[i] = m
		if err := m.client.connect(x.bus, notification.Cursor{}); err != nil {
			return nil, err
		}
	}
	// A Shutdown that comes before Run discards, and a goroutine's start cannot
	// be seen from outside; a delivery can. To wait for the last of so many also
	// keeps them from being what the first orders wait for.
	open := make(chan struct{})
	x.members[n-1].client.first = open // it has no Push before: nothing was published yet
	if _, err := x.send(everybody, tradingBegins()); err != nil {
		return nil, err
	}
	<-open
	return x, nil
}

// send tells a member, or everybody, and returns the notification's ID. A full
// lane makes it wait for room: whoever drives the exchange then falls behind
// its schedule, which the report shows, and nothing is lost. It gives up when
// the exchange ends.
func (x *exchange) send(user int, payload notification.Payload) (id string, err error) {
	n, s := x.compose(user, payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	x.identify(n, s.last.Load()+1)
	if err = x.bus.Publish(n); errors.Is(err, notification.ErrQueueFull) {
		err = x.wait(n)
	}
	if err != nil {
		x.cut[n.Priority].Add(1)
		return "", err
	}
	x.accepted(n, s)
	return n.ID, nil
}

// compose makes what send is to publish, without an ID, and finds its stream.
func (x *exchange) compose(user int, payload notification.Payload) (*notification.Notification, *stream) {
	t := payload.Type()
	to, s := notification.AllUsers, &x.all[streamOf[t]]
	if user != everybody {
		m := x.members[user]
		to, s = m.id, &m.streams[streamOf[t]]
	}
	return &notification.Notification{
		UserID:    to,
		Priority:  t.DefaultPriority(),
		Payload:   payload,
		Timestamp: time.Now().UnixNano(),
		Source:    source(t.Channel()),
	}, s
}

// identify gives n its number in its stream.
func (x *exchange) identify(n *notification.Notification, number uint64) {
	prefix := n.UserID
	if prefix == notification.AllUsers {
		prefix = everybodyPrefix
	}
	n.ID = string(strconv.AppendUint(append(x.streamID(prefix, streamOf[n.Type()]), '-'), number, 10))
}

// wait publishes n when its lane has room.
func (x *exchange) wait(n *notification.Notification) error {
	x.full[n.Priority].Add(1)
	return x.bus.PublishWait(x.ctx, n)
}

// accepted says that n, the next of its stream, was accepted. The stream's mu is held.
func (x *exchange) accepted(n *notification.Notification, s *stream) {
	s.last.Add(1)
	if n.UserID == notification.AllUsers {
		x.many[n.Priority].Add(1)
	} else {
		x.one[n.Priority].Add(1)
	}
}

// streamID returns "u00042-trade-P1", or with a run "u00042.dk2f9-trade-P1": what
// the IDs of a stream have before their number.
func (x *exchange) streamID(prefix string, k int) []byte {
	b := make([]byte, 0, 64)
	b = append(b, prefix...)
	if x.run != "" {
		b = append(b, '.')
		b = append(b, x.run...)
	}
	b = append(b, '-')
	return append(b, streamNames[k]...)
}

// numberOf returns the last part of a message's ID, 0 if it is none.
func numberOf(id string) uint64 {
	n, err := strconv.ParseUint(id[strings.LastIndexByte(id, '-')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// source names the service that tells about a channel.
func source(c notification.Channel) string {
	switch c {
	case notification.ChannelTrade:
		return "MatchingEngine"
	case notification.ChannelRisk:
		return "RiskControl"
	case notification.ChannelSystem:
		return "Exchange"
	}
	return "AccountSystem"
}

// pending returns how many messages wait in outboxes and running Pushes.
func (x *exchange) pending() (n int) {
	_, stats := x.bus.stats()
	for _, l := range stats.Lanes {
		n += l.Pending
	}
	return n
}

// drain delivers what was accepted and stops, against the direction in which
// messages go: nobody publishes any more, the sessions get what was accepted,
// browsers are told to go elsewhere while they are still served, and then
// serving ends.
func (x *exchange) drain(ctx context.Context, hangUp func(context.Context) error) error {
	err := x.bus.endPublishing(ctx)
	if hangUp != nil {
		// A Push to somebody who was hung up on is refused. It should not be so late
		// that the Gateway, on its way down, calls it lost.
		err = errors.Join(err, hangUp(ctx), poll(ctx, func() bool { return x.pending() == 0 }))
	}
	err = errors.Join(err, x.bus.endServing(ctx))
	x.stop()
	return err
}
