package notification

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// byHand returns the reader of a Gateway that does not run, for a test that makes
// its steps one by one. Nothing that depends on time happens by itself.
func byHand(g *Gateway) *reader {
	r := g.reader
	r.clock = now()
	r.timersAt = never / 2
	return r
}

// pusherByHand returns a pusher whose steps the test makes. Nobody waits for it.
func pusherByHand(g *Gateway) *pusher {
	p := &pusher{g: g, shard: &g.shards[0]}
	g.pool.join([]*pusher{p}, g.reader.clock)
	g.pool.size--
	return p
}

// A writerFunc is an io.Writer.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestReaderTurns(t *testing.T) {
	t.Run("each lane has its turn of a slice, and what has arrived in P0 goes first", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{BatchSize: 1000, OutboxMessages: 10_000, MaxDelay: lanes(time.Hour)})
		join(t, g, "s", "u")
		for p := P1; p <= P3; p++ {
			for i := range 500 {
				g.inbox[p] <- NewMessage(note(fmt.Sprintf("%s-%d", p, i), "u", p))
			}
		}
		r := byHand(g)
		for round := 1; round <= 3; round++ {
			require.True(t, r.round())
			for p := P1; p <= P3; p++ {
				require.Equal(t, uint64(round*sliceSize), r.received[p].value(), "lane %s", p)
			}
		}
		for i := range 10 {
			g.inbox[P0] <- NewMessage(note(fmt.Sprintf("P0-%d", i), "u", P0))
		}
		require.Equal(t, 10, r.urgent())
		require.Equal(t, uint64(10), r.received[P0].value())
		require.Zero(t, r.urgent())
		discard(t, g)
	})
	t.Run("it yields after 80 messages to one session each, and after a P0 that wakes a pusher", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{MaxDelay: lanes(time.Hour)})
		join(t, g, "s", "u")
		r := byHand(g)
		read := func(p Priority, n int) (sinceYield int) {
			for i := range n {
				g.inbox[p] <- NewMessage(note(fmt.Sprint(p, i), "u", p))
				require.True(t, r.take(p))
			}
			return r.yield.messages
		}
		g.pool.idle = 1
		require.Equal(t, 158, read(P1, 79))
		require.Zero(t, read(P1, 1))
		require.Zero(t, read(P0, 1))
		require.Equal(t, 2, read(P0, 1), "the session is due already")
		discard(t, g)
	})
	t.Run("a P0 that arrives in the middle of another lane's turn is read before its next message", func(t *testing.T) {
		var g *Gateway
		// A session that ends is logged by the reader: a moment at which a test
		// can be sure to be in the middle of something.
		read := uint64(0)
		log := slog.New(slog.NewTextHandler(writerFunc(func([]byte) {
			g.inbox[P0] <- NewMessage(note("urgent", "u", P0))
			read = g.reader.received[P1].value()
		}), &slog.HandlerOptions{Level: slog.LevelDebug}))
		g = newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 1, Logger: log})
		s, _ := join(t, g, "slow", "slow")
		r := byHand(g)
		s.state, s.since = sessionRunning, r.clock-int64(time.Hour) // the second message is too much
		_, err := g.RegisterSession(SessionConfig{ID: "u", UserID: "u", Sink: SinkFunc(nil)})
		require.NoError(t, err)
		for i := range 60 {
			g.inbox[P1] <- NewMessage(note(strconv.Itoa(i), "slow", P1))
		}
		require.True(t, r.round())
		require.Equal(t, ErrSlowConsumer, s.Err())
		require.Equal(t, uint64(2), read)
		require.Equal(t, uint64(1), r.received[P0].value(), "in the same turn")
		require.Equal(t, uint64(60), r.received[P1].value())
		discard(t, g)
	})
	for name, n := range map[string]*Notification{"to all": notice("big", P1), "to a user with many sessions": note("big", "big", P1)} {
		t.Run("P0 and other lanes are read between two slices of a message "+name, func(t *testing.T) {
			g := newGateway(t, "g", GatewayConfig{InboxCapacity: 10, MaxDelay: lanes(time.Hour)})
			nop := SinkFunc(func(context.Context, []*Message) error { return nil })
			const sessions = 10_000
			for i := range sessions {
				_, err := g.RegisterSession(SessionConfig{ID: strconv.Itoa(i), UserID: "big", Sink: nop})
				require.NoError(t, err)
			}
			join(t, g, "single", "single")
			r := byHand(g)
			g.inbox[P1] <- NewMessage(n)
			require.True(t, r.take(P1))
			require.Equal(t, uint64(sliceSize), r.enqueued[P1].value())
			g.inbox[P0] <- NewMessage(note("urgent", "single", P0))
			g.inbox[P2] <- NewMessage(note("other lane", "single", P2))
			require.True(t, r.round())
			require.Equal(t, uint64(1), r.enqueued[P0].value(), "delivered")
			require.Equal(t, uint64(1), r.enqueued[P2].value(), "another lane goes on too")
			require.LessOrEqual(t, r.enqueued[P1].value(), uint64(3*sliceSize), "and the fan-out is far from its end")
			g.inbox[P1] <- NewMessage(note("behind it", "single", P1))
			for r.round() {
			}
			want := uint64(sessions)
			if n.UserID == AllUsers {
				want++
			}
			require.Equal(t, want+1, r.enqueued[P1].value(), "each session once")
			discard(t, g)
		})
	}
	t.Run("what is fed by hand and is not valid counts, and nothing else happens", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		s, _ := join(t, g, "s", "u")
		r := byHand(g)
		for _, m := range []*Message{
			nil,
			NewMessage(&Notification{ID: "x", UserID: "u", Priority: P1}),                                // no payload
			NewMessage(&Notification{UserID: "u", Priority: P1, Payload: AccountUpdate{}}),               // no ID
			NewMessage(&Notification{ID: "x", UserID: AllUsers, Priority: P1, Payload: AccountUpdate{}}), // for all
			NewMessage(note("another lane", "u", P2)),
		} {
			g.inbox[P1] <- m
		}
		for r.round() {
		}
		require.Equal(t, GatewayLane{Invalid: 5}, lane(g, P1))
		require.Zero(t, waits(s))
		discard(t, g)
	})
}

func TestReaderDebt(t *testing.T) {
	t.Run("over the limit a lane is not read, until half of it is left; other lanes are", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{OutboxMessages: 100, InboxCapacity: 10_000, MaxDelay: lanes(time.Duration(-1))})
		users := series("u", 200)
		for _, user := range users {
			join(t, g, user, user)
		}
		r := byHand(g)
		for i := range 10_000 {
			g.inbox[P1] <- NewMessage(note(fmt.Sprintf("m%d", i), users[i%len(users)], P1))
		}
		for r.round() {
		}
		require.Equal(t, uint64(4097), r.received[P1].value(), "one more than the limit")
		require.Equal(t, int64(4097), g.pool.debt[P1].Load())
		for _, p := range []Priority{P0, P2, P3} {
			g.inbox[p] <- NewMessage(note(p.String(), "u7", p))
		}
		require.True(t, r.round())
		for _, p := range []Priority{P0, P2, P3} {
			require.Equal(t, uint64(1), r.received[p].value(), "lane %s", p)
		}
		require.Equal(t, uint64(4097), r.received[P1].value())

		p := pusherByHand(g)
		g.pool.watched = true // it has told the reader that sessions wait
		for g.pool.debt[P1].Load() > 2048 {
			require.False(t, r.round(), "still more than half")
			require.False(t, roused(g.wake))
			p.serve(g.pool.next(p))
		}
		require.True(t, roused(g.wake), "the pusher that got it to half roused the reader")
		require.True(t, r.round())
		require.Greater(t, r.received[P1].value(), uint64(4097))
		discard(t, g)
	})
	inBubble(t, "a lane whose delays have ended is not read before they are let in, others are", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		s, _ := join(t, g, "s", "u")
		r := byHand(g)
		g.inbox[P3] <- NewMessage(note("a", "u", P3))
		require.True(t, r.round())
		nap(100 * time.Millisecond)
		r.clock = now()
		g.inbox[P3] <- NewMessage(note("b", "v", P3))
		g.inbox[P2] <- NewMessage(note("c", "v", P2))
		require.True(t, r.take(P3))
		require.Equal(t, sessionQueued, s.state)
		require.Equal(t, uint64(1), r.received[P3].value(), "b comes after those whose delay has ended")
		require.True(t, r.take(P2))
		require.True(t, r.take(P3))
		require.Equal(t, uint64(2), r.received[P3].value())
		discard(t, g)
	})
	inBubble(t, "no more delays are let in than the limit allows, whatever their number", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{OutboxMessages: 100})
		nop := SinkFunc(func(context.Context, []*Message) error { return nil })
		const sessions = 10_000
		for i := range sessions {
			_, err := g.RegisterSession(SessionConfig{ID: strconv.Itoa(i), UserID: strconv.Itoa(i), Sink: nop})
			require.NoError(t, err)
		}
		r := byHand(g)
		g.inbox[P3] <- NewMessage(notice("a", P3))
		for r.round() {
		}
		require.Equal(t, uint64(sessions), r.enqueued[P3].value())
		require.Zero(t, g.pool.debt[P3].Load(), "they wait for company")
		nap(100 * time.Millisecond)
		r.clock = now()
		r.expire(P3)
		require.Equal(t, int64(sliceSize), g.pool.debt[P3].Load(), "a slice at a time")
		for !g.pool.throttle(P3) {
			r.expire(P3)
		}
		require.Equal(t, int64(4097), g.pool.debt[P3].Load())

		g.inbox[P3] <- NewMessage(note("behind them", "0", P3))
		g.inbox[P2] <- NewMessage(note("another lane", "0", P2))
		require.True(t, r.round())
		require.Equal(t, uint64(1), r.received[P3].value(), "nothing new while some are late")
		require.Equal(t, uint64(1), r.received[P2].value())

		p := pusherByHand(g)
		for r.lanes[P3].delays.first != nil {
			p.serve(g.pool.next(p))
			r.expire(P3)
		}
		for r.round() {
		}
		require.Equal(t, uint64(2), r.received[P3].value())
		discard(t, g)
	})
}

func TestReaderHold(t *testing.T) {
	// holding returns a reader with a notice in P3 that s2 of three sessions has no
	// room for.
	holding := func(t *testing.T) (g *Gateway, r *reader, s []*Session) {
		g = newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 2, InboxCapacity: 100, SlowAfter: time.Hour})
		for _, id := range series("s", 3) {
			session, _ := join(t, g, id, id)
			s = append(s, session)
		}
		r = byHand(g)
		for range 16 {
			g.inbox[P3] <- NewMessage(note("m", "s2", P3))
		}
		g.inbox[P3] <- NewMessage(notice("to all", P3))
		g.inbox[P3] <- NewMessage(note("behind it", "s1", P3))
		g.roster.first = s[0]
		for r.round() {
		}
		require.Equal(t, []int{1, 16, 0}, []int{waits(s[0]), waits(s[1]), waits(s[2])})
		require.Same(t, s[1], r.lanes[P3].hold)
		return g, r, s
	}
	// takes lets a pusher take one message of s.
	takes := func(g *Gateway, s *Session) {
		p := &pusher{g: g, shard: &g.shards[0]}
		g.pool.withdraw(s)
		p.serve(s)
	}
	inBubble(t, "the lane waits, the others go on, and each session has the message once", func(t *testing.T) {
		g, r, s := holding(t)
		require.False(t, r.take(P3))
		g.inbox[P2] <- NewMessage(note("another lane", "s1", P2))
		g.inbox[P0] <- NewMessage(note("urgent", "s2", P0))
		require.True(t, r.round())
		require.Equal(t, []int{2, 17, 0}, []int{waits(s[0]), waits(s[1]), waits(s[2])})
		takes(g, s[1]) // the P0
		takes(g, s[1])
		require.False(t, r.take(P3), "room for one")
		takes(g, s[1])
		require.True(t, r.take(P3), "room for OutboxMessages")
		require.Equal(t, []int{2, 15, 1}, []int{waits(s[0]), waits(s[1]), waits(s[2])})
		require.True(t, r.take(P3))
		require.Equal(t, []int{3, 15, 1}, []int{waits(s[0]), waits(s[1]), waits(s[2])})
		require.False(t, r.take(P3))
		discard(t, g)
	})
	inBubble(t, "it ends with the session, and the others of the slice go on", func(t *testing.T) {
		g, r, s := holding(t)
		roused(g.wake)
		require.NoError(t, s[1].Close())
		require.True(t, roused(g.wake))
		require.True(t, r.take(P3))
		require.Equal(t, []int{1, 0, 1}, []int{waits(s[0]), waits(s[1]), waits(s[2])})
		require.Nil(t, r.lanes[P3].m)
		require.Equal(t, uint64(16), lane(g, P3).DroppedEnded, "what was held was not enqueued")
		discard(t, g)
	})
	inBubble(t, "a session whose sink holds up others for more than 50 ms is slow", func(t *testing.T) {
		g, r, s := holding(t)
		s[1].mu.Lock()
		s[1].state, s[1].since = sessionRunning, now() // its sink takes what it was given, and no more
		s[1].mu.Unlock()
		nap(50 * time.Millisecond)
		r.clock = now()
		require.False(t, r.take(P3))
		require.NoError(t, s[1].Err())
		require.Equal(t, r.clock+1, r.lanes[P3].holdAt, "when to look again")
		nap(1)
		r.clock = now()
		require.True(t, r.take(P3))
		require.Equal(t, ErrSlowConsumer, s[1].Err())
		require.Equal(t, 1, waits(s[2]))
		discard(t, g)
	})
	inBubble(t, "while it is queued for a pusher, which is not its fault, it is not", func(t *testing.T) {
		g, r, s := holding(t)
		nap(time.Hour)
		r.clock = now()
		require.True(t, r.take(P3), "first those are let in whose delay has ended, held or not")
		require.False(t, r.take(P3))
		require.NoError(t, s[1].Err())
		require.Greater(t, r.lanes[P3].holdAt, never/2, "a pusher will rouse the reader")
		discard(t, g)
	})
	t.Run("a lane is contested for a second after a message for somebody else", func(t *testing.T) {
		var l readLane
		u, v := new(user), new(user)
		second := int64(time.Second)
		l.cameAt, l.otherAt = -second, -second
		l.came(u, 0)
		require.False(t, l.contested(1), "the first there ever was")
		l.came(u, 10)
		require.False(t, l.contested(10))
		l.came(v, 20)
		require.True(t, l.contested(20))
		l.came(v, 30)
		require.True(t, l.contested(10+second-1))
		require.False(t, l.contested(10+second), "the last of the other was at 10")
		l.came(nil, 40)
		require.True(t, l.contested(40+2*second), "a message to all is for others too")
		l.came(u, 50)
		l.shared = true
		require.True(t, l.contested(50+2*second), "and one for many sessions of a user")
	})
}

func TestMaxDelay(t *testing.T) {
	ms := time.Millisecond
	for _, row := range []struct {
		name     string
		given    [NumPriorities]time.Duration
		expected [NumPriorities]time.Duration
	}{
		{"by default", [NumPriorities]time.Duration{}, [NumPriorities]time.Duration{0, ms, 50 * ms, 100 * ms}},
		{"as configured", [NumPriorities]time.Duration{ms, 7 * ms, 3, time.Hour}, [NumPriorities]time.Duration{0, 7 * ms, 3, time.Hour}},
		{"negative is at once", lanes(-time.Second), [NumPriorities]time.Duration{}},
	} {
		for p, want := range row.expected {
			inBubble(t, fmt.Sprintf("a lone message waits MaxDelay exactly/%s/P%d %s", row.name, p, want), func(t *testing.T) {
				b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: row.given, SessionTimeout: -1})
				_, sink := join(t, g, "s", "u")
				for _, id := range series("m", 3) { // the second and third time too
					pass(17 * time.Microsecond)
					published := time.Now()
					publishTo(t, b, "u", Priority(p), id)
					if want > 0 {
						pass(want - 1)
						require.Empty(t, sink.ids(), "1 ns before")
						pass(1)
					}
					synctest.Wait()
					require.Len(t, sink.got(), 1)
					require.Equal(t, want, sink.got()[0].at.Sub(published))
					require.Equal(t, []string{id}, sink.take())
				}
			})
		}
	}
}

func TestSharedBatches(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "what follows within MaxDelay shares the batch of the first", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P2, "a")
		pass(49 * ms)
		publishTo(t, b, "u", P2, "b")
		publishTo(t, b, "u", P3, "c")
		pass(ms)
		require.Len(t, sink.got(), 1)
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
	})
	inBubble(t, "the lane with the nearest deadline decides", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "c")
		pass(60 * ms)
		publishTo(t, b, "u", P2, "b")
		pass(39 * ms)
		require.Empty(t, sink.ids())
		pass(ms)
		require.Equal(t, []string{"b", "c"}, sink.ids(), "P3 has waited 100 ms, P2 40 ms")
	})
	inBubble(t, "a message that came after its lane had been emptied has a delay of its own", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P2, "a")
		pass(10 * ms)
		publishTo(t, b, "u", P0, "now")
		synctest.Wait()
		require.Equal(t, []string{"now", "a"}, sink.take())
		pass(10 * ms)
		publishTo(t, b, "u", P2, "b")
		pass(50*ms - 1)
		require.Empty(t, sink.take(), "neither at the deadline of the first nor before its own")
		pass(1)
		require.Equal(t, []string{"b"}, sink.take())
	})
	inBubble(t, "a session that was first in line is not once its delay begins anew", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, renewed := join(t, g, "a", "a")
		_, other := join(t, g, "b", "b")
		publishTo(t, b, "a", P2, "a1")
		pass(10 * ms)
		publishTo(t, b, "a", P0, "a2") // takes a1 along
		pass(5 * ms)
		publishTo(t, b, "b", P2, "b1")
		pass(5 * ms)
		publishTo(t, b, "a", P2, "a3")
		pass(45 * ms)
		require.Equal(t, []string{"b1"}, other.ids())
		require.NotContains(t, renewed.ids(), "a3")
		pass(5 * ms)
		require.Contains(t, renewed.ids(), "a3")
	})
	inBubble(t, "a P0 goes at once and takes along whatever waits", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u")
		for p := P3; p > P0; p-- {
			publishTo(t, b, "u", p, p.String())
		}
		synctest.Wait() // a P0 would overtake them on the way as well
		publishTo(t, b, "u", P0, "P0")
		synctest.Wait()
		require.Equal(t, [][]string{{"P0", "P1", "P2", "P3"}}, [][]string{sink.got()[0].ids})
	})
}

func TestBatchSize(t *testing.T) {
	ms := time.Millisecond
	for _, size := range []int{1, 3, 10} {
		inBubble(t, fmt.Sprintf("BatchSize %d messages are due at once, one fewer are not", size), func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: size, MaxDelay: lanes(time.Hour), SessionTimeout: -1})
			_, sink := join(t, g, "s", "u")
			all := series("m", size)
			publishTo(t, b, "u", P3, all[:size-1]...)
			pass(time.Minute)
			require.Empty(t, sink.ids())
			publishTo(t, b, "u", P3, all[size-1])
			synctest.Wait()
			require.Len(t, sink.got(), 1)
			require.Equal(t, all, sink.ids())
		})
	}
	inBubble(t, "the size counts over all lanes", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3, MaxDelay: lanes(time.Hour), SessionTimeout: -1})
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "c")
		publishTo(t, b, "u", P2, "b")
		publishTo(t, b, "u", P1, "a")
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "c"}, sink.ids())
	})
	inBubble(t, "what a full batch leaves over waits no longer than MaxDelay", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 4, MaxDelay: lanes(50 * ms)})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "first")
		synctest.Wait()
		publishTo(t, b, "u", P1, series("m", 9)...) // while Push runs
		pass(ms)
		held.open()
		synctest.Wait()
		require.Equal(t, append([]string{"first"}, series("m", 8)...), sink.ids(), "two full ones, and one is left")
		pass(49 * ms)
		require.Equal(t, append([]string{"first"}, series("m", 9)...), sink.ids())
	})
	inBubble(t, "what came while Push ran and is overdue goes when it returns", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		_, sink := join(t, g, "s", "u", hooked(held.pass))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		publishTo(t, b, "u", P3, "b")
		pass(time.Second)
		held.open()
		synctest.Wait()
		require.Equal(t, []string{"a", "b"}, sink.ids())
	})
}

func TestBatchesAtRest(t *testing.T) {
	ms := time.Millisecond
	inBubble(t, "size and time at the same instant: each message once, and nothing is left to do", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3})
		s, sink := join(t, g, "s", "u")
		for i := range 500 {
			p := Priority(1 + random.IntN(3))
			all := series(fmt.Sprintf("m%d-", i), 3+random.IntN(3))
			publishTo(t, b, "u", p, all[0], all[1])
			nap(g.cfg.MaxDelay[p]) // without a Wait: the timer of the reader fires now
			publishTo(t, b, "u", p, all[2:]...)
			pass(100 * ms)
			require.Equal(t, all, sink.take())
		}
		for p := range g.reader.lanes {
			require.Nil(t, g.reader.lanes[p].delays.first, "the delays of lane %d", p)
		}
		require.Equal(t, demand{at: never}, g.pool.ask(now(), g.cfg.MaxPushers), "nothing to look after")
		idleAndEmpty(t, s)
	})
	inBubble(t, "Batches and Latency tell of each Push and each message", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		join(t, g, "s", "u")
		publishTo(t, b, "u", P2, series("m", 250)...)
		pass(50 * ms)
		st := g.Stats()
		require.Equal(t, uint64(3), st.Batches)
		require.Equal(t, uint64(250), st.Lanes[P2].Latency.Count())
		require.Equal(t, 50*ms, st.Lanes[P2].Latency.Max())
	})
}

func TestBatchOrder(t *testing.T) {
	for _, size := range []int{1, 3, 10, 100} {
		inBubble(t, fmt.Sprintf("P0 first, publish order in each lane, one slot in ten for each that waits/BatchSize %d", size), func(t *testing.T) {
			const each = 200
			held := newGate(t)
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: size, OutboxMessages: 4*each + 1})
			_, sink := join(t, g, "s", "u", hooked(held.pass))
			publishTo(t, b, "u", P0, "first")
			synctest.Wait()
			for p := P3; p < NumPriorities; p-- {
				publishTo(t, b, "u", p, series(p.String()+"-", each)...)
			}
			pass(time.Second)
			held.open()
			pass(time.Second)
			got := sink.ids()[1:]
			require.Len(t, got, 4*each)
			var left [NumPriorities]int
			for p := range left {
				left[p] = each
			}
			var seen []Priority
			for _, id := range got {
				var p Priority
				var n int
				_, err := fmt.Sscanf(id, "P%d-%d", &p, &n)
				require.NoError(t, err)
				require.Equal(t, each-left[p]+1, n, "%s: the order of lane %s", id, p)
				left[p]--
				seen = append(seen, p)
			}
			// The slots are counted in the order in which they are given away: a
			// batch is sorted, so only its bounds are windows of that order.
			window := max(10, size)
			if window%size != 0 {
				window = 10 * size
			}
			var gone [NumPriorities]int
			for at := 0; at+window <= len(seen); at += window {
				var counts [NumPriorities]int
				for _, p := range seen[at : at+window] {
					counts[p]++
				}
				for p := range counts {
					if gone[p] += counts[p]; gone[p] < each {
						require.GreaterOrEqual(t, counts[p], window/10, "lane %d in slots %d to %d: %v", p, at, at+window, counts)
					}
				}
				if gone[P0] < each {
					require.Equal(t, window-3*(window/10), counts[P0], "the rest is P0's: %v", counts)
				}
			}
		})
	}
}

func TestFanOut(t *testing.T) {
	inBubble(t, "AllUsers reaches every session whose filter admits it, in each lane once", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var sinks []*ledger
		for i := range 300 {
			_, sink := join(t, g, strconv.Itoa(i), fmt.Sprintf("u%d", i%200), func(cfg *SessionConfig, _ *ledger) {
				if i%3 == 0 {
					cfg.Channels = []Channel{ChannelTrade}
				}
			})
			sinks = append(sinks, sink)
		}
		for p := P0; p <= P3; p++ {
			require.NoError(t, b.Publish(notice(p.String(), p)))
		}
		pass(time.Second)
		for i, sink := range sinks {
			if i%3 == 0 {
				require.Empty(t, sink.ids())
			} else {
				require.ElementsMatch(t, []string{"P0", "P1", "P2", "P3"}, sink.ids(), "each lane begins with somebody else")
			}
		}
		for p := P0; p <= P3; p++ {
			require.Equal(t, GatewayLane{Received: 1, Filtered: 100, Enqueued: 200, Taken: 200}, lane(g, p))
		}
	})
	inBubble(t, "AllUsers to nobody counts as NoSession", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		require.NoError(t, b.Publish(notice("a", P1)))
		synctest.Wait()
		require.Equal(t, GatewayLane{Received: 1, NoSession: 1}, lane(g, P1))
		require.NoError(t, b.Subscribe("u", "g"))
		publishTo(t, b, "u", P1, "b")
		synctest.Wait()
		require.Equal(t, GatewayLane{Received: 2, NoSession: 2}, lane(g, P1))
	})
	inBubble(t, "the order of a lane is kept between fan-outs and what follows them", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{OutboxMessages: 4096})
		var sinks []*ledger
		for i := range 500 { // of one user: more than a slice
			_, sink := join(t, g, strconv.Itoa(i), "u")
			sinks = append(sinks, sink)
		}
		var want []string
		for i := range 200 {
			id := strconv.Itoa(i)
			if want = append(want, id); i%3 == 0 {
				require.NoError(t, b.Publish(notice(id, P2)))
			} else {
				publishTo(t, b, "u", P2, id)
			}
		}
		pass(time.Second)
		for _, sink := range sinks {
			require.Equal(t, want, sink.ids())
		}
	})
}

func TestFanOutWhileSessionsComeAndGo(t *testing.T) {
	t.Run("a session that registers during a fan-out to all is not meant, one that ends is left out", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{MaxDelay: lanes(time.Hour)})
		var sessions []*Session
		for _, id := range series("s", 300) {
			s, _ := join(t, g, id, id)
			sessions = append(sessions, s)
		}
		g.inbox[P3] <- NewMessage(notice("a", P3))
		g.inbox[P2] <- NewMessage(notice("b", P2)) // two walks at once
		r := byHand(g)
		for _, p := range []Priority{P3, P2} {
			g.roster.first = sessions[0] // where the walk begins
			require.True(t, r.take(p))
		}
		for _, i := range []int{0, 63, 64, 65, 150, 299} { // passed, last passed, next, behind it, far, last
			require.NoError(t, sessions[i].Close())
		}
		late, _ := join(t, g, "late", "late")
		for r.round() {
		}
		for i, s := range sessions {
			if s.Err() == nil {
				require.Equal(t, 2, waits(s), "session %d", i)
			} else {
				require.Zero(t, waits(s))
			}
		}
		require.Zero(t, waits(late))
		for _, p := range []Priority{P2, P3} {
			l := lane(g, p)
			require.Equal(t, uint64(296), l.Enqueued, "300, without the four that ended before their turn")
			require.Equal(t, uint64(2), l.DroppedEnded)
			require.Equal(t, 294, l.Pending)
		}
		discard(t, g)
	})
	t.Run("all sessions end during a fan-out to all", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{MaxDelay: lanes(time.Hour)})
		for _, id := range series("s", 300) {
			join(t, g, id, id)
		}
		g.inbox[P3] <- NewMessage(notice("a", P3))
		r := byHand(g)
		require.True(t, r.take(P3))
		g.Gap()
		for r.round() {
		}
		require.Nil(t, r.lanes[P3].m)
		require.False(t, r.lanes[P3].walking)
		require.Empty(t, r.lanes[P3].rest)
		require.Empty(t, g.roster.walks)
		require.Equal(t, uint64(64), lane(g, P3).DroppedEnded)
		discard(t, g)
	})
}

// sweptAt lets time pass up to a sweep, every 10 s, and requires that s lives up
// to it, and is expired then.
func sweptAt(t *testing.T, s *Session, sweep int, began time.Time) {
	t.Helper()
	pass(time.Until(began.Add(time.Duration(sweep)*10*time.Second)) - 1)
	require.NoError(t, s.Err(), "1 ns before the sweep")
	pass(1)
	require.Equal(t, ErrSessionExpired, s.Err())
}

func TestSweep(t *testing.T) {
	cfg := GatewayConfig{SessionTimeout: 25 * time.Second, SweepInterval: 10 * time.Second}
	inBubble(t, "a silent session ends at the first sweep after its timeout", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		began := time.Now()
		s, sink := join(t, g, "s", "u")
		sweptAt(t, s, 3, began)
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionExpired, reason)
		require.Equal(t, uint64(1), g.Stats().Ended.Expired)
	})
	for _, row := range []struct {
		touched time.Duration
		sweep   int
	}{
		{3 * time.Second, 3}, {5*time.Second - 1, 3}, {5 * time.Second, 3}, {5*time.Second + 1, 4}, {29 * time.Second, 6}, {30*time.Second - 1, 6},
	} {
		inBubble(t, fmt.Sprintf("a session touched at %s ends at sweep %d, with traffic or without", row.touched, row.sweep), func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, cfg)
			began := time.Now()
			s, _ := join(t, g, "s", "u")
			busy, sink := join(t, g, "busy", "v")
			pass(time.Until(began.Add(row.touched)))
			s.Touch()
			busy.Touch()
			require.Equal(t, time.Now(), s.LastActive())
			for at := began.Add(row.touched); at.Before(began.Add(time.Duration(row.sweep)*10*time.Second - time.Second)); at = at.Add(time.Second) {
				pass(time.Until(at))
				publishTo(t, b, "v", P0, at.String())
			}
			require.Equal(t, began.Add(row.touched), busy.LastActive().Round(0), "being pushed to is no sign of life")
			sweptAt(t, s, row.sweep, began)
			require.Equal(t, ErrSessionExpired, busy.Err())
			require.NotEmpty(t, sink.ids())
		})
	}
	inBubble(t, "Touch within the timeout keeps a session for ever", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		s, _ := join(t, g, "s", "u")
		for range 100 {
			pass(24 * time.Second)
			s.Touch()
		}
		require.NoError(t, s.Err())
	})
}

func TestSweepOfUntouched(t *testing.T) {
	cfg := GatewayConfig{SessionTimeout: 25 * time.Second, SweepInterval: 10 * time.Second}
	inBubble(t, "one never touched is kept by each Push that returned nil, and by nothing else", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, cfg)
		began := time.Now()
		kept, _ := join(t, g, "kept", "kept")
		filtered, _ := join(t, g, "filtered", "kept", func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{} })
		held := newGate(t)
		blocked, _ := join(t, g, "blocked", "kept", hooked(held.pass))
		for i := range 100 {
			pass(9 * time.Second)
			publishTo(t, b, "kept", P0, strconv.Itoa(i))
			if i == 0 {
				for _, s := range []*Session{filtered, blocked} {
					require.NoError(t, s.Err())
				}
			}
		}
		synctest.Wait()
		require.NoError(t, kept.Err())
		require.Equal(t, ErrSessionExpired, filtered.Err())
		require.Equal(t, ErrSessionExpired, blocked.Err())
		last := began.Add(900 * time.Second)
		require.Equal(t, last, kept.LastActive().Round(0))
		sweptAt(t, kept, 93, began)
	})
	inBubble(t, "with a negative timeout, of the gateway or of the session, it is never swept", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1})
		timeout := func(d time.Duration) func(*SessionConfig, *ledger) {
			return func(cfg *SessionConfig, _ *ledger) { cfg.Timeout = d }
		}
		byGateway, _ := join(t, g, "a", "u")
		own, _ := join(t, g, "b", "u", timeout(time.Hour))
		_, g2 := pair(t, BrokerConfig{}, GatewayConfig{})
		bySession, _ := join(t, g2, "a", "u", timeout(-1))
		byDefault, _ := join(t, g2, "b", "u")
		pass(5 * time.Minute)
		require.Equal(t, ErrSessionExpired, byDefault.Err())
		require.NoError(t, own.Err())
		pass(100 * time.Hour)
		require.NoError(t, byGateway.Err())
		require.NoError(t, bySession.Err())
		require.Equal(t, ErrSessionExpired, own.Err(), "its own timeout counts, not the gateway's")
	})
	inBubble(t, "a sweep finds all that are silent, however many, at one moment", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, cfg)
		var silent, loud []*Session
		for i := range 1000 {
			s, _ := join(t, g, strconv.Itoa(i), strconv.Itoa(i%300))
			if i%5 == 0 {
				loud = append(loud, s)
			} else {
				silent = append(silent, s)
			}
		}
		pass(20 * time.Second)
		for _, s := range loud {
			s.Touch()
		}
		pass(10*time.Second - 1)
		require.Equal(t, 1000, g.Stats().Sessions)
		pass(1)
		require.Equal(t, len(loud), g.Stats().Sessions)
		for _, s := range silent {
			require.Equal(t, ErrSessionExpired, s.Err())
		}
	})
}

func TestWallClock(t *testing.T) {
	t.Run("the wall clock is asked for what is shown only, so that setting it moves nothing", func(t *testing.T) {
		// A reading of time.Now is compared with the wall clock by whoever drops
		// its monotonic part. So: only now, which subtracts two monotonic
		// readings, may decide anything.
		require.Contains(t, clockStart.String(), " m=", "clockStart has a monotonic reading, and so has a difference to it")
		shown := map[string]bool{
			"clock.go: ": true, "clock.go: now": true, // what all others ask
			"notification.go: New":   true, // Timestamp
			"session.go: newSession": true, "session.go: ConnectedAt": true, "session.go: LastActive": true,
		}
		files, err := filepath.Glob("*.go")
		require.NoError(t, err)
		found := 0
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, d := range parsed.Decls {
				name := ""
				if f, ok := d.(*ast.FuncDecl); ok {
					name = f.Name.Name
				}
				ast.Inspect(d, func(n ast.Node) bool {
					if s, ok := n.(*ast.SelectorExpr); ok {
						if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Unix"}, s.Sel.Name) {
							found++
							require.True(t, shown[file+": "+name], "%s: %s asks for time.%s", file, name, s.Sel.Name)
						}
					}
					return true
				})
			}
		}
		require.GreaterOrEqual(t, found, len(shown))
	})
}

func TestIdle(t *testing.T) {
	inBubble(t, "ten idle seconds wake nobody", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for i := range 10_000 {
			id := strconv.Itoa(i)
			_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
			require.NoError(t, err)
		}
		require.NoError(t, b.Publish(notice("a", P3)))
		pass(time.Second)
		require.Equal(t, uint64(10_000), lane(g, P3).Taken)
		before := scheduled()
		pass(10 * time.Second)
		require.Less(t, scheduled()-before, uint64(100), "a look around every millisecond would be more than 1,000")
		require.Equal(t, demand{at: never}, g.pool.ask(now(), g.cfg.MaxPushers), "nothing to look after")
	})
}
