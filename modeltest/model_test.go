// Package modeltest compares the Broker and the Gateway with a naive model under
// random sequences of calls. It is a module of its own because the library
// itself should not depend on pgregory.net/rapid.
package modeltest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	. "github.com/qaexchange/notification"
)

// TestMain gives rapid longer sequences than its own, 30 calls, in which there are
// hardly ever many sessions with something waiting. Its flags still count.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.checks": "150", "rapid.steps": "150"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// check runs f in a bubble, where time is virtual, as one check of rapid. Rapid
// ends a check by a panic, which must not end the bubble: it comes back to the
// goroutine that rapid expects it on.
func check(t *testing.T, f func(rt *rapid.T)) {
	rapid.Check(t, func(rt *rapid.T) {
		var thrown any
		synctest.Test(t, func(*testing.T) {
			defer func() { thrown = recover() }()
			f(rt)
		})
		// Rapid takes two panics from one place for the same failure when it looks
		// for a shorter sequence: that it has run out of data is none.
		if fmt.Sprintf("%T", thrown) == "rapid.invalidData" {
			panic(thrown)
		}
		if thrown != nil {
			panic(thrown)
		}
	})
}

// conserved requires the equations that the documentation of the statistics
// promises to hold at rest.
func conserved(t require.TestingT, b *Broker, g *Gateway, calls uint64) {
	bs, gs := b.Stats(), g.Stats()
	sum := bs.Deduplicated + bs.Invalid + bs.RefusedClosed
	for p, l := range bs.Lanes {
		sum += l.Published + l.Rejected
		require.Equal(t, l.Published, l.Routed+l.Unrouted+l.Discarded+uint64(l.Queued), "P%d: Published = Routed + Unrouted + Discarded + Queued", p)
	}
	require.Equal(t, calls, sum, "calls = Published + Deduplicated + Rejected + Invalid + RefusedClosed")
	handed := uint64(0)
	for _, r := range bs.Receivers {
		if r.ID == g.ID() && !r.Global {
			handed = r.Handed
		}
	}
	got := uint64(0)
	for p, l := range gs.Lanes {
		balanced(t, p, l)
		got += l.Received + l.Invalid + l.Discarded + uint64(len(g.Inbox()[p]))
	}
	if got > 0 && handed == 0 { // it has left
		require.LessOrEqual(t, got, bs.Departed.Handed)
	} else {
		require.Equal(t, handed, got, "Handed = Received + Invalid + Discarded + what the inbox holds")
	}
}

// balanced is the part of conserved that a Gateway answers for alone.
func balanced(t require.TestingT, p int, l GatewayLane) {
	require.Equal(t, l.Enqueued+l.Replayed, l.Taken+l.DroppedSlow+l.DroppedEnded+uint64(l.Pending), "P%d: Enqueued + Replayed = Taken + DroppedSlow + DroppedEnded + Pending", p)
}

// A sink keeps what it gets and can be stalled.
type sink struct {
	mu     sync.Mutex
	got    []string
	gate   chan struct{} // nil: open
	fail   error         // what the next Push returns, once
	closes int
	reason error
}

func (s *sink) Push(ctx context.Context, batch []*Message) error {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fail; err != nil {
		s.fail = nil
		return err
	}
	for _, m := range batch {
		s.got = append(s.got, m.Notification().ID)
	}
	return nil
}

func (s *sink) Close(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closes++
	s.reason = reason
}

func (s *sink) stall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate == nil {
		s.gate = make(chan struct{})
	}
}

func (s *sink) unstall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

// What the model is configured with. No deadline ever falls together with a
// sweep: the sweeps are on the millisecond, everything else is off it.
const (
	bound      = 6         // BatchSize and OutboxMessages
	most       = 8 * bound // of P1 to P3 that may wait for a session, and of P0
	slowAfter  = 20 * time.Millisecond
	dedupSize  = 5
	perUser    = 2
	inAll      = 5
	timeout    = time.Second
	sweepEvery = 250 * time.Millisecond
	monitorCap = 3
)

var delays = [NumPriorities]time.Duration{0, time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond}

// A session of the model.
type session struct {
	id, user string
	h        *Session
	sink     *sink
	channels map[Channel]bool // nil: every
	never    bool             // it has no timeout
	touched  bool
	heard    time.Time
	stalled  bool
	running  bool
	since    time.Time               // when the running Push began
	push     [NumPriorities][]string // what it holds
	turn     int                     // of ten, in batches that do not hold all
	waiting  [NumPriorities][]string
	deadline [NumPriorities]time.Time
	got      []string
	dropped  uint64
	err      error
}

func (s *session) admits(c Channel) bool { return s.channels == nil || s.channels[c] }

func (s *session) total() (n int) {
	for _, lane := range s.waiting {
		n += len(lane)
	}
	return n
}

// take takes the next batch: all that waits, if that fits; otherwise of every ten
// slots one is P1's, one P2's and one P3's, if they have something, and the
// others go to the highest lane that has.
func (s *session) take() {
	all := s.total() <= bound
	for slots := bound; slots > 0 && s.total() > 0; slots-- {
		p := P0
		if !all {
			if own := Priority(max(s.turn-6, 0)); len(s.waiting[own]) > 0 {
				p = own
			}
			s.turn = (s.turn + 1) % 10
		}
		for len(s.waiting[p]) == 0 {
			p++
		}
		s.push[p] = append(s.push[p], s.waiting[p][0])
		s.waiting[p] = s.waiting[p][1:]
	}
}

// slow reports whether the sink is at fault.
func (s *session) slow(now time.Time) bool {
	return s.running && s.total() > bound && now.Sub(s.since) >= slowAfter
}

func (s *session) due(now time.Time) bool {
	if s.total() >= bound || len(s.waiting[P0]) > 0 {
		return true
	}
	for p, lane := range s.waiting {
		if len(lane) > 0 && !s.deadline[p].After(now) {
			return true
		}
	}
	return false
}

// A world is a Broker and a Gateway, and what they should be.
type world struct {
	b      *Broker
	g      *Gateway
	policy SlowPolicy

	sessions []*session // those that live, in the order of registration
	ended    []*session
	explicit map[string]bool
	window   []string // the last dedupSize IDs accepted
	serial   int
	sweepAt  time.Time
	monitor  chan *Message
	heard    []string // what is in monitor's channel
	closed   bool

	calls                                  uint64
	published, routed, unrouted            [NumPriorities]uint64
	repeated, invalid, refused             uint64
	lanes                                  [NumPriorities]GatewayLane
	batches, monitorHanded, monitorDropped uint64
	ends                                   SessionEnds
}

func (w *world) find(id string) *session {
	for _, s := range w.sessions {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (w *world) of(user string) (all []*session) {
	for _, s := range w.sessions {
		if s.user == user {
			all = append(all, s)
		}
	}
	return all
}

// offer is what a session does with a message.
func (w *world) offer(s *session, id string, p Priority, c Channel) {
	if !s.admits(c) {
		w.lanes[p].Filtered++
		return
	}
	w.lanes[p].Enqueued++
	if len(s.waiting[p]) == 0 {
		s.deadline[p] = time.Now().Add(delays[p])
	}
	s.waiting[p] = append(s.waiting[p], id)
	w.fire(s, time.Now())
	switch {
	case w.policy == SlowClose:
		if s.slow(time.Now()) || len(s.waiting[P0]) > most {
			w.end(s, ErrSlowConsumer, &w.ends.Slow)
		}
	case s.running && s.total() > bound:
		low := P3
		for len(s.waiting[low]) == 0 {
			low--
		}
		s.waiting[low] = s.waiting[low][1:]
		s.dropped++
		w.lanes[low].DroppedSlow++
	}
}

// fire begins a Push if one is due, and ends it unless the sink is stalled.
func (w *world) fire(s *session, now time.Time) {
	if s.running || !s.due(now) {
		return
	}
	s.running, s.since = true, now
	s.take()
	if !s.stalled {
		w.finish(s, now)
	}
}

// finish is the return of a Push.
func (w *world) finish(s *session, now time.Time) {
	for p, ids := range s.push {
		s.got = append(s.got, ids...)
		w.lanes[p].Taken += uint64(len(ids))
	}
	w.batches++
	s.running, s.push = false, [NumPriorities][]string{}
	if !s.touched {
		s.heard = now
	}
	w.fire(s, now)
}

func (w *world) end(s *session, reason error, counter *uint64) {
	*counter++
	s.err = reason
	for p := range s.waiting {
		w.lanes[p].DroppedEnded += uint64(len(s.waiting[p]) + len(s.push[p]))
		s.waiting[p] = nil
	}
	s.push = [NumPriorities][]string{}
	w.sessions = slices.DeleteFunc(w.sessions, func(x *session) bool { return x == s })
	w.ended = append(w.ended, s)
}

// pass lets time pass, in the model and in the bubble.
func (w *world) pass(d time.Duration) {
	until := time.Now().Add(d)
	for !w.closed {
		next, first := w.sweepAt, (*session)(nil)
		for _, s := range w.sessions {
			for p, lane := range s.waiting {
				if len(lane) > 0 && !s.running && s.deadline[p].Before(next) {
					next, first = s.deadline[p], s
				}
			}
		}
		if next.After(until) {
			break
		}
		if first != nil {
			w.fire(first, next)
			continue
		}
		for _, s := range slices.Clone(w.sessions) {
			if !s.never && next.Sub(s.heard) >= timeout {
				w.end(s, ErrSessionExpired, &w.ends.Expired)
			} else if w.policy == SlowClose && s.slow(next) {
				w.end(s, ErrSlowConsumer, &w.ends.Slow)
			}
		}
		w.sweepAt = next.Add(sweepEvery)
	}
	time.Sleep(d)
	synctest.Wait()
}

// room reports whether a message for a user finds room in every outbox: what
// happens without is for TestConservation.
func (w *world) room(user string) bool {
	for _, s := range w.sessions {
		if (s.user == user || user == AllUsers) && s.total()-len(s.waiting[P0]) >= most {
			return false
		}
	}
	return true
}

// some publishes up to n messages to a user, while there is room.
func (w *world) some(rt *rapid.T, user string, n int) {
	for ; n > 0 && w.room(user); n-- {
		w.serial++
		w.publish(rt, &Notification{ID: strconv.Itoa(w.serial), UserID: user, Priority: genLane.Draw(rt, "lane"), Payload: AccountUpdate{}}, ChannelAccount)
	}
}

// publish publishes and says what should come of it.
func (w *world) publish(t *rapid.T, n *Notification, channel Channel) {
	w.calls++
	err := w.b.Publish(n)
	synctest.Wait()
	p := n.Priority
	switch {
	case n.Validate() != nil:
		w.invalid++
		require.ErrorIs(t, err, ErrInvalid)
		return
	case w.closed:
		w.refused++
		require.ErrorIs(t, err, ErrClosed)
		return
	}
	require.NoError(t, err)
	if slices.Contains(w.window, n.ID) {
		w.repeated++
		return
	}
	if w.window = append(w.window, n.ID); len(w.window) > dedupSize {
		w.window = w.window[1:]
	}
	w.published[p]++
	here := w.of(n.UserID)
	switch {
	case n.UserID == AllUsers:
		here = slices.Clone(w.sessions)
		w.routed[p]++
		w.lanes[p].Received++
	case len(here) > 0 || w.explicit[n.UserID]:
		w.routed[p]++
		w.lanes[p].Received++
	default:
		w.unrouted[p]++
	}
	if len(here) == 0 && (n.UserID == AllUsers || w.explicit[n.UserID]) {
		w.lanes[p].NoSession++
	}
	for _, s := range here {
		w.offer(s, n.ID, p, channel)
	}
	if len(w.heard) < monitorCap {
		w.heard = append(w.heard, n.ID)
		w.monitorHanded++
	} else {
		w.monitorDropped++
	}
}

// agree requires that everything that can be seen is as the model says.
func (w *world) agree(t *rapid.T) {
	synctest.Wait()
	conserved(t, w.b, w.g, w.calls)
	bs, gs := w.b.Stats(), w.g.Stats()
	for p := range bs.Lanes {
		l := bs.Lanes[p]
		require.Equal(t, w.published[p], l.Published, "Published P%d", p)
		require.Equal(t, w.routed[p], l.Routed, "Routed P%d", p)
		require.Equal(t, w.unrouted[p], l.Unrouted, "Unrouted P%d", p)
		require.Zero(t, l.Queued)

		want, got := w.lanes[p], gs.Lanes[p]
		want.Pending = int(want.Enqueued - want.Taken - want.DroppedSlow - want.DroppedEnded)
		got.Latency = Histogram{}
		require.Equal(t, want, got, "P%d of the Gateway", p)
	}
	require.Equal(t, []uint64{w.repeated, w.invalid, w.refused}, []uint64{bs.Deduplicated, bs.Invalid, bs.RefusedClosed}, "Deduplicated, Invalid, RefusedClosed")
	require.Equal(t, w.ends, gs.Ended)
	require.Equal(t, w.batches, gs.Batches)
	require.Zero(t, gs.Hung)
	users := make(map[string]bool)
	for _, s := range w.sessions {
		users[s.user] = true
	}
	require.Equal(t, len(w.sessions), gs.Sessions)
	require.Equal(t, len(users), gs.Users)
	for user := range w.explicit {
		users[user] = true
	}
	require.Equal(t, len(users), bs.Users, "users that are routed")
	if !w.closed {
		for _, r := range bs.Receivers {
			if r.Global {
				require.Equal(t, ReceiverStats{ID: "monitor", Global: true, Handed: w.monitorHanded, Dropped: w.monitorDropped}, r)
			}
		}
	}
	require.Len(t, w.monitor, len(w.heard))

	var there []string
	for s := range w.g.Sessions() {
		there = append(there, s.ID())
	}
	var want []string
	for _, s := range w.sessions {
		want = append(want, s.id)
	}
	require.Equal(t, want, there, "those that live, in the order of registration")
	for _, s := range slices.Concat(w.sessions, w.ended) {
		s.sink.mu.Lock()
		got, closes, reason := slices.Clone(s.sink.got), s.sink.closes, s.sink.reason
		s.sink.mu.Unlock()
		require.Equal(t, s.got, got, "what session %s got", s.id)
		require.Equal(t, s.dropped, s.h.Dropped())
		if s.err == nil {
			require.NoError(t, s.h.Err(), "session %s", s.id)
			require.Zero(t, closes)
			require.True(t, s.heard.Equal(s.h.LastActive()), "when session %s was heard", s.id)
			var channels []Channel
			for c := ChannelTrade; c <= ChannelSystem; c++ {
				if s.admits(c) {
					channels = append(channels, c)
				}
			}
			require.ElementsMatch(t, channels, s.h.Subscriptions())
		} else {
			require.ErrorIs(t, s.h.Err(), s.err, "session %s", s.id)
			require.Equal(t, 1, closes)
			require.ErrorIs(t, reason, s.err)
			select {
			case <-s.h.Done():
			default:
				require.Fail(t, "session "+s.id+" has ended and is not done")
			}
		}
	}
}

// payloads has one of each channel.
var payloads = map[Channel]Payload{
	ChannelTrade: TradeExecuted{}, ChannelAccount: AccountUpdate{}, ChannelPosition: PositionUpdate{},
	ChannelRisk: RiskAlert{}, ChannelSystem: SystemNotice{},
}

var (
	genUser     = rapid.SampledFrom([]string{"u", "v", "w"})
	genLane     = rapid.SampledFrom([]Priority{P0, P1, P2, P3})
	genChannel  = rapid.SampledFrom([]Channel{ChannelTrade, ChannelAccount, ChannelPosition, ChannelRisk, ChannelSystem})
	genChannels = rapid.SliceOfN(genChannel, 0, 3)
)

func TestModel(t *testing.T) {
	check(t, func(rt *rapid.T) {
		w := &world{
			policy:   rapid.SampledFrom([]SlowPolicy{SlowClose, SlowDropOldest}).Draw(rt, "policy"),
			explicit: make(map[string]bool),
			monitor:  make(chan *Message, monitorCap),
		}
		var err error
		w.b, err = NewBroker(BrokerConfig{DedupSize: dedupSize})
		require.NoError(rt, err)
		w.g, err = NewGateway("g", GatewayConfig{
			BatchSize: bound, OutboxMessages: bound, MaxDelay: delays, SlowPolicy: w.policy, SlowAfter: slowAfter,
			SessionTimeout: timeout, SweepInterval: sweepEvery, MaxSessions: inAll, MaxSessionsPerUser: perUser,
			Pushers: inAll, // a stalled one keeps nobody waiting for a stand-in
		})
		require.NoError(rt, err)
		require.NoError(rt, w.b.RegisterGateway(w.g))
		require.NoError(rt, w.b.SubscribeGlobal("monitor", w.monitor, DropNewest))
		results := make(chan error, 2)
		go func() { results <- w.b.Run(context.Background()) }() // ends with Shutdown below
		go func() { results <- w.g.Run(context.Background()) }() // ends with Shutdown below
		w.sweepAt = time.Now().Add(sweepEvery)
		synctest.Wait()
		defer func() { // whatever happened: the bubble must be empty
			at, cancel := context.WithCancel(context.Background())
			cancel()
			_ = w.b.Shutdown(at)
			_ = w.g.Shutdown(at)
			<-results
			<-results
		}()
		w.pass(time.Microsecond) // off the millisecond, where the sweeps are

		one := func(rt *rapid.T) *session {
			if len(w.sessions) == 0 {
				rt.Skip("no session")
			}
			return rapid.SampledFrom(w.sessions).Draw(rt, "session")
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": w.agree,
			"publish": func(rt *rapid.T) {
				c, user := genChannel.Draw(rt, "channel"), genUser.Draw(rt, "user")
				if !w.room(user) {
					rt.Skip("no room")
				}
				w.serial++
				w.publish(rt, &Notification{ID: strconv.Itoa(w.serial), UserID: user, Priority: genLane.Draw(rt, "lane"), Payload: payloads[c]}, c)
			},
			"publish some": func(rt *rapid.T) {
				w.some(rt, genUser.Draw(rt, "user"), rapid.IntRange(2, 10).Draw(rt, "n"))
			},
			"publish some behind a Push that does not return": func(rt *rapid.T) {
				s := one(rt)
				s.sink.stall()
				s.stalled = true
				w.some(rt, s.user, rapid.IntRange(bound, 3*bound).Draw(rt, "n"))
				if rapid.Bool().Draw(rt, "for long") {
					w.pass(slowAfter)
					w.some(rt, s.user, 2)
				}
			},
			"publish again": func(rt *rapid.T) {
				id, user := strconv.Itoa(max(w.serial-rapid.IntRange(0, 8).Draw(rt, "back"), 1)), genUser.Draw(rt, "user")
				if !w.room(user) {
					rt.Skip("no room")
				}
				w.publish(rt, &Notification{ID: id, UserID: user, Priority: genLane.Draw(rt, "lane"), Payload: AccountUpdate{}}, ChannelAccount)
			},
			"publish to all": func(rt *rapid.T) {
				if !w.room(AllUsers) {
					rt.Skip("no room")
				}
				w.serial++
				w.publish(rt, &Notification{ID: strconv.Itoa(w.serial), UserID: AllUsers, Priority: genLane.Draw(rt, "lane"), Payload: SystemNotice{}}, ChannelSystem)
			},
			"publish what is invalid": func(rt *rapid.T) {
				w.publish(rt, rapid.SampledFrom([]*Notification{
					{UserID: "u", Payload: AccountUpdate{}}, {ID: "x", Payload: AccountUpdate{}}, {ID: "x", UserID: "u"},
					{ID: "x", UserID: "u", Priority: 4, Payload: AccountUpdate{}}, {ID: "x", UserID: AllUsers, Payload: AccountUpdate{}},
				}).Draw(rt, "notification"), 0)
			},
			"subscribe": func(rt *rapid.T) {
				user := genUser.Draw(rt, "user")
				err := w.b.Subscribe(user, "g")
				if w.closed {
					require.ErrorIs(rt, err, ErrUnknownReceiver)
					return
				}
				require.NoError(rt, err)
				w.explicit[user] = true
			},
			"unsubscribe": func(rt *rapid.T) {
				user := genUser.Draw(rt, "user")
				err := w.b.Unsubscribe(user, "g")
				if w.closed {
					require.ErrorIs(rt, err, ErrUnknownReceiver)
					return
				}
				require.NoError(rt, err)
				delete(w.explicit, user)
			},
			"register": func(rt *rapid.T) {
				s := &session{
					id:   "s" + strconv.Itoa(rapid.IntRange(1, 7).Draw(rt, "id")),
					user: genUser.Draw(rt, "user"), sink: new(sink), heard: time.Now(),
					never: rapid.Bool().Draw(rt, "never"),
				}
				cfg := SessionConfig{ID: s.id, UserID: s.user, Sink: s.sink}
				if s.never {
					cfg.Timeout = -1
				}
				if rapid.Bool().Draw(rt, "filtered") {
					cfg.Channels = genChannels.Draw(rt, "channels")
					s.channels = make(map[Channel]bool)
					for _, c := range cfg.Channels {
						s.channels[c] = true
					}
				}
				var err error
				s.h, err = w.g.RegisterSession(cfg)
				siblings := w.of(s.user)
				switch {
				case w.closed:
					require.ErrorIs(rt, err, ErrClosed)
					return
				case w.find(s.id) != nil:
					require.ErrorIs(rt, err, ErrSessionExists)
					return
				case len(siblings) < perUser && len(w.sessions) == inAll:
					require.ErrorIs(rt, err, ErrTooManySessions)
					return
				}
				require.NoError(rt, err)
				w.sessions = append(w.sessions, s)
				if len(siblings) == perUser {
					w.end(siblings[0], ErrSessionReplaced, &w.ends.Replaced)
				}
			},
			"close": func(rt *rapid.T) {
				s := one(rt)
				if rapid.Bool().Draw(rt, "by ID") {
					require.NoError(rt, w.g.UnregisterSession(s.id))
					require.ErrorIs(rt, w.g.UnregisterSession(s.id), ErrUnknownSession)
				} else {
					require.NoError(rt, s.h.Close())
				}
				w.end(s, ErrSessionClosed, &w.ends.Closed)
			},
			"touch": func(rt *rapid.T) {
				s := one(rt)
				s.h.Touch()
				s.touched, s.heard = true, time.Now()
			},
			"narrow": func(rt *rapid.T) {
				s, some := one(rt), genChannels.Draw(rt, "channels")
				s.h.Subscribe(some...)
				for _, c := range some {
					if s.channels == nil {
						s.channels = make(map[Channel]bool)
					}
					s.channels[c] = true
				}
			},
			"widen": func(rt *rapid.T) {
				s := one(rt)
				s.h.SubscribeAll()
				s.channels = nil
			},
			"take away": func(rt *rapid.T) {
				s, some := one(rt), genChannels.Draw(rt, "channels")
				s.h.Unsubscribe(some...)
				for _, c := range some {
					if s.channels == nil {
						s.channels = make(map[Channel]bool)
						for c := range payloads {
							s.channels[c] = true
						}
					}
					delete(s.channels, c)
				}
			},
			"stall": func(rt *rapid.T) {
				s := one(rt)
				s.sink.stall()
				s.stalled = true
			},
			"unstall": func(rt *rapid.T) {
				s := one(rt)
				s.sink.unstall()
				s.stalled = false
				synctest.Wait()
				if s.running {
					w.finish(s, time.Now())
				}
			},
			"listen": func(rt *rapid.T) {
				if len(w.heard) == 0 {
					rt.Skip("nothing there")
				}
				require.Equal(rt, w.heard[0], (<-w.monitor).Notification().ID)
				w.heard = w.heard[1:]
			},
			"a little time": func(rt *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 40).Draw(rt, "ms")) * time.Millisecond)
			},
			"much time": func(rt *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 15).Draw(rt, "tenths")) * 100 * time.Millisecond)
			},
			"gap": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "one in ten") > 0 {
					rt.Skip("not now")
				}
				w.g.Gap()
				for len(w.sessions) > 0 {
					w.end(w.sessions[0], ErrGap, &w.ends.Gap)
				}
			},
			"shut down": func(rt *rapid.T) {
				if !w.closed && rapid.IntRange(0, 29).Draw(rt, "one in thirty") > 0 {
					rt.Skip("not now")
				}
				require.NoError(rt, w.b.Shutdown(context.Background()))
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				err := w.g.Shutdown(ctx)
				if w.closed {
					return
				}
				w.closed = true
				clear(w.explicit)
				lost := false
				for len(w.sessions) > 0 {
					s := w.sessions[0]
					for p := range s.deadline { // all is due
						s.deadline[p] = time.Time{}
					}
					w.fire(s, time.Now())
					lost = lost || s.running
					w.end(s, ErrGatewayClosed, &w.ends.Shutdown)
				}
				if lost {
					require.Equal(rt, context.DeadlineExceeded, err)
				} else {
					require.NoError(rt, err)
				}
			},
		})
	})
}

var errPipe = errors.New("broken pipe")

// A bridge is a Receiver that can be stalled.
type bridge struct {
	id string
	in [NumPriorities]chan *Message
}

func (r *bridge) ID() string { return r.id }
func (r *bridge) Inbox() (in Inbox) {
	for p, ch := range r.in {
		in[p] = ch
	}
	return in
}
func (r *bridge) Gap() {}

// TestConservation goes where no model can follow: everybody stalls, bursts are
// published faster than they are dispatched, sinks fail, and the end comes in
// any order. Nothing may be uncounted and no order broken.
func TestConservation(t *testing.T) {
	check(t, func(rt *rapid.T) {
		b, err := NewBroker(BrokerConfig{
			DedupSize: 50, QueueCapacity: [NumPriorities]int{3, 4, 5, 6}, StallTimeout: 100 * time.Millisecond,
			RoundQuota: [NumPriorities]int{-1, rapid.IntRange(1, 5).Draw(rt, "quota"), 2, 1},
		})
		require.NoError(rt, err)
		g, err := NewGateway("g", GatewayConfig{
			BatchSize: rapid.IntRange(1, 4).Draw(rt, "batch"), OutboxMessages: 4, InboxCapacity: rapid.IntRange(1, 3).Draw(rt, "inbox"),
			SlowPolicy: rapid.SampledFrom([]SlowPolicy{SlowClose, SlowDropOldest}).Draw(rt, "policy"),
			Pushers:    1, MaxPushers: rapid.IntRange(1, 3).Draw(rt, "pushers"), SessionTimeout: 5 * time.Second, SweepInterval: time.Second,
			MaxSessionsPerUser: 3,
		})
		require.NoError(rt, err)
		require.NoError(rt, b.RegisterGateway(g))
		storage := make(chan *Message, 2)
		require.NoError(rt, b.SubscribeGlobal("storage", storage, Wait))
		far := &bridge{id: "far"}
		for p := range far.in {
			far.in[p] = make(chan *Message, 1)
		}
		require.NoError(rt, b.RegisterReceiver(far))
		results, quit := make(chan error, 2), make(chan struct{})
		go func() { results <- b.Run(context.Background()) }() // ends with Shutdown below
		go func() { results <- g.Run(context.Background()) }() // ends with Shutdown below
		var sinks []*sink
		stallFar, stallStorage := make(chan bool), make(chan bool)
		consume := func(stall <-chan bool, in ...<-chan *Message) { // ends with quit
			in = append(in, make([]<-chan *Message, 4-len(in))...)
			from := slices.Clone(in)
			for {
				select {
				case <-from[0]:
				case <-from[1]:
				case <-from[2]:
				case <-from[3]:
				case stalled := <-stall:
					if from = make([]<-chan *Message, 4); !stalled {
						from = slices.Clone(in)
					}
				case <-quit:
					return
				}
			}
		}
		go consume(stallFar, far.in[0], far.in[1], far.in[2], far.in[3])
		go consume(stallStorage, storage)
		defer func() { // whatever happened: the bubble must be empty
			at, cancel := context.WithCancel(context.Background())
			cancel()
			for _, s := range sinks {
				s.unstall()
			}
			_ = b.Shutdown(at)
			_ = g.Shutdown(at)
			<-results
			<-results
			close(quit)
		}()
		calls, serial := uint64(0), 0
		rest := func(rt *rapid.T) {
			time.Sleep(3 * time.Second) // every budget there is
			synctest.Wait()
			conserved(rt, b, g, calls)
			for _, s := range sinks {
				s.mu.Lock()
				got := slices.Clone(s.got)
				s.mu.Unlock()
				last := make(map[string]int)
				for _, id := range got {
					var lane, n int
					_, err := fmt.Sscanf(id, "%d-%d", &lane, &n)
					require.NoError(rt, err)
					key := strconv.Itoa(lane)
					require.Greater(rt, n, last[key], "the order of lane %s: %v", key, got)
					last[key] = n
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": rest,
			"burst": func(rt *rapid.T) {
				var wg sync.WaitGroup
				for range rapid.IntRange(1, 30).Draw(rt, "n") {
					serial++
					calls++
					p := genLane.Draw(rt, "lane")
					n := &Notification{ID: fmt.Sprintf("%d-%d", p, serial), UserID: genUser.Draw(rt, "user"), Priority: p, Payload: AccountUpdate{}}
					if rapid.IntRange(0, 5).Draw(rt, "one in six to all") == 0 {
						n.UserID, n.Payload = AllUsers, MarketHalt{}
					}
					switch rapid.IntRange(0, 5).Draw(rt, "how") {
					case 0:
						n.ID = fmt.Sprintf("%d-%d", p, max(serial-1, 1)) // perhaps again
						if err := b.Publish(n); err != nil && !errors.Is(err, ErrQueueFull) && !errors.Is(err, ErrClosed) {
							require.NoError(rt, err)
						}
					case 1:
						synctest.Wait()
						ctx, cancel := context.WithTimeout(context.Background(), time.Second)
						wg.Go(func() {
							defer cancel()
							_ = b.PublishWait(ctx, n)
						})
						synctest.Wait() // so that the next one comes after it
					default:
						_ = b.Publish(n)
					}
				}
				wg.Wait()
			},
			"register": func(rt *rapid.T) {
				s := new(sink)
				_, err := g.RegisterSession(SessionConfig{ID: "s" + strconv.Itoa(rapid.IntRange(1, 6).Draw(rt, "id")), UserID: genUser.Draw(rt, "user"), Sink: s})
				if err == nil {
					sinks = append(sinks, s)
				} else if !errors.Is(err, ErrSessionExists) {
					require.ErrorIs(rt, err, ErrClosed)
				}
			},
			"close": func(rt *rapid.T) { _ = g.UnregisterSession("s" + strconv.Itoa(rapid.IntRange(1, 6).Draw(rt, "id"))) },
			"subscribe": func(rt *rapid.T) {
				_ = b.Subscribe(genUser.Draw(rt, "user"), rapid.SampledFrom([]string{"g", "far"}).Draw(rt, "to"))
			},
			"unsubscribe": func(rt *rapid.T) {
				_ = b.Unsubscribe(genUser.Draw(rt, "user"), rapid.SampledFrom([]string{"g", "far"}).Draw(rt, "to"))
			},
			"sink": func(rt *rapid.T) {
				if len(sinks) == 0 {
					rt.Skip("none")
				}
				s := rapid.SampledFrom(sinks).Draw(rt, "sink")
				switch rapid.IntRange(0, 3).Draw(rt, "what") {
				case 0, 1:
					s.stall()
				case 2:
					s.unstall()
				case 3:
					s.mu.Lock()
					s.fail = errPipe
					s.mu.Unlock()
				}
			},
			"bridge":  func(rt *rapid.T) { stallFar <- rapid.Bool().Draw(rt, "stalled") },
			"storage": func(rt *rapid.T) { stallStorage <- rapid.Bool().Draw(rt, "stalled") },
			"gap":     func(*rapid.T) { g.Gap() },
			"shut down": func(rt *rapid.T) {
				if rapid.IntRange(0, 19).Draw(rt, "one in twenty") > 0 {
					rt.Skip("not now")
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				if rapid.Bool().Draw(rt, "the Broker") {
					_ = b.Shutdown(ctx)
				} else {
					_ = g.Shutdown(ctx)
				}
			},
		})
		// In the end everybody wakes up, and nothing is left anywhere.
		stallFar <- false
		stallStorage <- false
		for _, s := range sinks {
			s.unstall()
		}
		_ = b.Shutdown(context.Background())
		_ = g.Shutdown(context.Background())
		rest(rt)
		for p, l := range g.Stats().Lanes {
			require.Zero(rt, l.Pending, "P%d", p)
			require.Zero(rt, b.Stats().Lanes[p].Queued, "P%d", p)
		}
		for _, s := range sinks {
			s.mu.Lock()
			require.Equal(rt, 1, s.closes)
			s.mu.Unlock()
		}
		require.Zero(rt, g.Stats().Sessions)
		require.Zero(rt, g.Stats().Users)
	})
}
