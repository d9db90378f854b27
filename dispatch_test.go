package notification

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A lone dispatcher has an admission and routes that the test made, and runs when
// the test calls it: no goroutine, and no time but that of the test.
type lone struct {
	*dispatcher
	t testing.TB
}

func newLone(t testing.TB, cfg BrokerConfig) lone {
	t.Helper()
	require.NoError(t, cfg.setDefaults())
	return lone{newDispatcher(&cfg, newLifecycle(), newAdmission(cfg.DedupSize, cfg.QueueCapacity), newRoutes(func() bool { return false })), t}
}

// admit queues messages for a user.
func (d lone) admit(userID string, p Priority, ids ...string) {
	d.t.Helper()
	for _, id := range ids {
		require.NoError(d.t, d.admission.admit(message(id, userID, p)))
	}
}

// receiver adds a receiver to the routes, with these users.
func (d lone) receiver(s *station, users ...string) *receiver {
	d.t.Helper()
	r := newReceiver(s.id, s.Inbox())
	r.gap = s.Gap
	require.NoError(d.t, d.routes.add(r))
	for _, u := range users {
		require.NoError(d.t, d.routes.subscribe(u, s.id, true))
	}
	return r
}

// global adds a global subscriber to the routes.
func (d lone) global(id string, capacity int, overflow Overflow) (*receiver, chan *Message) {
	d.t.Helper()
	ch := make(chan *Message, capacity)
	r := newReceiver(id, Inbox{ch, ch, ch, ch})
	r.global, r.overflow = true, overflow
	require.NoError(d.t, d.routes.add(r))
	return r, ch
}

func TestRounds(t *testing.T) {
	t.Run("P0 is taken first, the others in turns of RoundQuota", func(t *testing.T) {
		d := newLone(t, BrokerConfig{RoundQuota: [NumPriorities]int{P1: 3, P2: 2, P3: 1}})
		_, all := d.global("all", 99, Wait)
		d.admit("u", P3, "D1", "D2", "D3")
		d.admit("u", P2, "C1", "C2", "C3", "C4", "C5")
		d.admit("u", P1, "B1", "B2", "B3", "B4", "B5")
		d.admit("u", P0, "A1", "A2")
		for _, want := range []string{"A1 A2 B1 B2 B3 C1 C2 D1", "B4 B5 C3 C4 D2", "C5 D3", ""} {
			d.round()
			require.Equal(t, strings.Fields(want), ids(poll(all)))
		}
	})

	t.Run("under a P1 that never runs dry P2 and P3 get their quota of every round", func(t *testing.T) {
		d := newLone(t, BrokerConfig{RoundQuota: [NumPriorities]int{P1: 5, P2: 2, P3: 1}, QueueCapacity: lanes(20)})
		_, all := d.global("all", 99, Wait)
		serial := 0
		for range 200 {
			for p := P1; p <= P3; p++ {
				for d.admission.lanes[p].len() < 20 {
					serial++
					d.admit("u", p, strconv.Itoa(serial))
				}
			}
			d.round()
			var taken []Priority
			for _, m := range poll(all) {
				taken = append(taken, m.priority)
			}
			require.Equal(t, []Priority{P1, P1, P1, P1, P1, P2, P2, P3}, taken)
		}
	})

	t.Run("a negative quota is all that waits when the turn comes", func(t *testing.T) {
		d := newLone(t, BrokerConfig{RoundQuota: lanes(-1)})
		_, all := d.global("all", 99, Wait)
		during(d, P1, func() { d.admit("u", P1, "B4") }) // it is too late for the turn
		d.admit("v", P1, "B1")
		d.admit("u", P1, "B2", "B3")
		d.admit("u", P2, "C1", "C2")
		d.round()
		require.Equal(t, strings.Fields("B1 B2 B3 C1 C2"), ids(poll(all)))
		d.round()
		require.Equal(t, []string{"B4"}, ids(poll(all)))
	})

	t.Run("a P0 that comes during the turn of another lane is the next to be taken", func(t *testing.T) {
		for p := P1; p <= P3; p++ {
			d := newLone(t, BrokerConfig{})
			_, all := d.global("all", 99, Wait)
			during(d, p, func() { d.admit("u", P0, "A") })
			d.admit("v", p, "1")
			d.admit("u", p, "2", "3")
			d.round()
			require.Equal(t, strings.Fields("1 A 2 3"), ids(poll(all)))
		}
	})

	t.Run("a P0 quota bounds how many P0s overtake each message of the others", func(t *testing.T) {
		d := newLone(t, BrokerConfig{RoundQuota: [NumPriorities]int{P0: 2}})
		_, all := d.global("all", 99, Wait)
		d.admit("u", P0, series("A", 7)...)
		d.admit("u", P1, "B1", "B2")
		for d.round(); !d.admission.empty(); d.round() {
		}
		require.Equal(t, strings.Fields("A1 A2 B1 A3 A4 B2 A5 A6 A7"), ids(poll(all)))
	})

	t.Run("the default quotas are 1000, 100 and 50", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		_, all := d.global("all", 9999, Wait)
		for p := P1; p <= P3; p++ {
			d.admit("u", p, series(p.String()+"-", 2000)...)
		}
		for _, want := range [][NumPriorities]int{{P1: 1000, P2: 100, P3: 50}, {P1: 1000, P2: 100, P3: 50}, {P2: 100, P3: 50}} {
			d.round()
			got := poll(all)
			for p := P1; p <= P3; p++ {
				for _, m := range got[:want[p]] {
					require.Equal(t, p, m.priority)
				}
				got = got[want[p]:]
			}
			require.Empty(t, got)
		}
	})

	t.Run("a lane whose head has no room is passed over, and goes on where it stood", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		s := newStation("r", 1)
		r := d.receiver(s, "u")
		_, all := d.global("all", 99, Wait)
		d.admit("u", P1, "1", "2", "3")
		d.admit("v", P1, "4")
		d.admit("v", P2, "5")
		d.round()
		require.Equal(t, strings.Fields("1 5"), ids(poll(all)))
		require.Equal(t, "2", d.heads[P1].m.n.ID)
		require.True(t, d.heads[P1].waiting)
		require.Equal(t, 1, r.budget[P1].waiting)
		require.False(t, d.round(), "nothing was done")
		require.False(t, d.drained())
		for _, want := range series("", 3) {
			require.Equal(t, []string{want}, ids(s.poll()))
			d.round()
		}
		require.Equal(t, strings.Fields("2 3 4"), ids(poll(all)))
		require.Zero(t, r.budget[P1].waiting)
		require.Equal(t, receiverIdle, r.state.Load())
		require.Equal(t, [NumPriorities]head{}, d.heads)
	})
}

// during lets f run while a lane has its turn: when the dispatcher hands over the
// first message of "v", whose receiver has been stuck, it logs that.
func during(d lone, p Priority, f func()) {
	r := d.receiver(newStation("v's", 1), "v")
	r.stuck[p].Store(true)
	d.log = slog.New(onRecord(func(slog.Record) { f() }))
}

// What becomes of a message and one receiver, by itself.
func TestHandOver(t *testing.T) {
	for _, row := range []struct {
		name     string
		capacity int
		holds    int
		spent    bool
		stuck    bool
		gap      bool // a call of Gap goes on
		closing  bool
		want     outcome
		isStuck  bool
		calls    bool // Gap is called
	}{
		{name: "with room it is handed over", capacity: 2, holds: 1, want: handed},
		{name: "with room it is handed over, though the budget is spent", capacity: 2, holds: 1, spent: true, want: handed},
		{name: "without room it has to wait", capacity: 2, holds: 2, want: noRoom},
		{name: "without room and budget it is dropped, and Gap is called", capacity: 2, holds: 2, spent: true, want: dropped, isStuck: true, calls: true},
		{name: "without buffer and budget it is dropped", spent: true, want: dropped, isStuck: true, calls: true},
		{name: "one that is stuck and more than half full gets nothing", capacity: 4, holds: 3, stuck: true, want: dropped, isStuck: true},
		{name: "one that is stuck and half full has recovered", capacity: 4, holds: 2, stuck: true, want: handed},
		{name: "one that is stuck and half full gets nothing before Gap has returned", capacity: 4, holds: 2, stuck: true, gap: true, want: dropped, isStuck: true},
		{name: "during a drain nobody is given up", capacity: 2, holds: 2, spent: true, closing: true, want: noRoom},
		{name: "during a drain one that was stuck is waited for", capacity: 2, holds: 2, spent: true, stuck: true, closing: true, want: noRoom, isStuck: true},
		{name: "during a drain one that was stuck gets what fits", capacity: 4, holds: 3, spent: true, stuck: true, closing: true, want: handed},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, s := newLone(t, BrokerConfig{}), newStation("r", row.capacity)
			r := d.receiver(s, "u")
			for range row.holds {
				s.in[P1] <- message("before", "u", P1)
			}
			if row.spent {
				r.budget[P1].spent = time.Second
			}
			r.stuck[P1].Store(row.stuck)
			if row.gap {
				r.gaps.Add(1)
			}
			if row.closing {
				d.life.shut()
			}
			h := &d.heads[P1]
			d.begin(h, message("1", "u", P1))
			got := d.try(h, r)
			require.Equal(t, row.want, got)
			if got == handed {
				d.handed(h, r)
			}
			d.gaps.Wait()
			require.Equal(t, row.isStuck, r.stuck[P1].Load())
			require.Equal(t, row.calls, s.gaps.Load() == 1)
			holds := row.holds
			if row.want == handed {
				holds++
			}
			require.Len(t, s.in[P1], holds)
		})
	}

	t.Run("a send that finds it half empty gives it all of its budget again, another does not", func(t *testing.T) {
		d, s := newLone(t, BrokerConfig{}), newStation("r", 4)
		r := d.receiver(s, "u")
		r.budget[P1].spent = time.Millisecond
		for range 3 {
			s.in[P1] <- message("before", "u", P1)
		}
		d.admit("u", P1, "1")
		d.round()
		require.Equal(t, time.Millisecond, r.budget[P1].spent)
		s.poll()
		d.admit("u", P1, "2")
		d.round()
		require.Zero(t, r.budget[P1].spent)
	})

	inBubble(t, "a send that had to wait is charged, and gives nothing back", func(t *testing.T) {
		d, s := newLone(t, BrokerConfig{}), newStation("r", 1)
		r := d.receiver(s, "u")
		r.budget[P1].spent = time.Millisecond
		s.in[P1] <- message("before", "u", P1)
		d.admit("u", P1, "1", "2")
		d.round()
		nap(time.Second / 2)
		s.poll()
		d.round()
		require.Equal(t, time.Second/2+time.Millisecond, r.budget[P1].spent)
		require.Equal(t, []string{"1"}, ids(s.poll()))
		d.round()
		require.Equal(t, []string{"2"}, ids(s.poll()))
	})

	inBubble(t, "the latency of a message that was queued before Run counts from its Publish", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		listen(t, b, "all", 9, Wait)
		publishTo(t, b, "u", P1, "1")
		pass(time.Second)
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, time.Second, b.Stats().Lanes[P1].Latency.Max())
		publishTo(t, b, "u", P2, "2")
		synctest.Wait()
		require.Zero(t, b.Stats().Lanes[P2].Latency.Max())
	})

	t.Run("a Gateway whose Run is going is waited for though its budget is spent, and one that nobody runs is not", func(t *testing.T) {
		for _, running := range []bool{true, false} {
			d, s := newLone(t, BrokerConfig{}), newStation("g", 0)
			r := d.receiver(s, "u")
			r.gateway = newGateway(t, "g", GatewayConfig{})
			if running {
				require.NoError(t, r.gateway.life.start())
			}
			r.budget[P1].spent = time.Second
			d.begin(&d.heads[P1], message("1", "u", P1))
			got := d.try(&d.heads[P1], r)
			d.gaps.Wait()
			if running {
				require.Equal(t, noRoom, got)
				require.Zero(t, s.gaps.Load())
			} else {
				require.Equal(t, dropped, got)
				require.EqualValues(t, 1, s.gaps.Load())
			}
		}
	})

	t.Run("a global subscriber that drops the newest is never waited for, and never stuck", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		r, ch := d.global("few", 1, DropNewest)
		d.admit("u", P1, "1", "2", "3")
		d.round()
		require.Equal(t, []string{"1"}, ids(poll(ch)))
		require.EqualValues(t, 2, r.dropped.value())
		require.False(t, r.stuck[0].Load())
		d.admit("u", P1, "4")
		d.round()
		require.Equal(t, []string{"4"}, ids(poll(ch)))
	})

	inBubble(t, "to the one channel of a global subscriber P0 goes first, then who has waited the longest", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		r, ch := d.global("storage", 1, Wait)
		ch <- message("before", "u", P1)
		for _, p := range []Priority{P2, P3, P1, P0} {
			d.admit("u", p, p.String())
			d.round()
			nap(time.Millisecond)
		}
		require.Equal(t, NumPriorities, r.budget[0].waiting)
		require.Equal(t, "before", (<-ch).n.ID)
		for _, want := range []string{"P0", "P2", "P3", "P1"} {
			d.round()
			require.Equal(t, []string{want}, ids(poll(ch)))
		}
		require.Zero(t, r.budget[0].waiting)
	})

	t.Run("a message that comes lets a lane go first that waits for the same global subscriber", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		_, ch := d.global("storage", 1, Wait)
		ch <- message("before", "u", P1)
		d.admit("u", P3, "P3")
		require.False(t, d.round())
		require.Len(t, poll(ch), 1)
		d.admit("u", P1, "P1")
		for _, want := range []string{"P3", "P1"} {
			require.True(t, d.round())
			require.Equal(t, []string{want}, ids(poll(ch)))
		}
	})

	inBubble(t, "of the lanes that wait for a global subscriber none is given up before the first of them was tried", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		r, ch := d.global("storage", 2, Wait)
		ch <- message("before", "u", P1)
		ch <- message("before", "u", P1)
		for _, p := range []Priority{P3, P1} {
			d.admit("u", p, p.String())
			d.round()
			nap(time.Millisecond)
		}
		nap(time.Second) // the budget is spent, and as it is there is room again
		require.Len(t, poll(ch), 2)
		d.round()
		d.round()
		require.Equal(t, []string{"P3", "P1"}, ids(poll(ch)))
		require.Zero(t, r.dropped.value())
	})

	t.Run("one that leaves between the look-up and the hand-over misses it, counted", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		r := d.receiver(newStation("r", 9), "u")
		h := &d.heads[P1]
		d.begin(h, message("1", "u", P1))
		require.True(t, d.routes.remove(r))
		require.True(t, d.advance(h))
		var s BrokerStats
		d.routes.stats(&s)
		d.stats(&s)
		require.EqualValues(t, 1, s.Lanes[P1].Routed)
		require.Equal(t, ReceiverStats{Dropped: 1}, s.Departed)
	})

	t.Run("one that has left before the look-up is nobody's receiver", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		r := d.receiver(newStation("r", 9), "u")
		require.True(t, d.routes.remove(r))
		d.admit("u", P1, "1")
		d.round()
		var s BrokerStats
		d.routes.stats(&s)
		d.stats(&s)
		require.EqualValues(t, 1, s.Lanes[P1].Unrouted)
		require.Zero(t, s.Departed)
	})

	t.Run("of two that are routed the one that has left changes nothing for the other", func(t *testing.T) {
		d, s := newLone(t, BrokerConfig{}), newStation("s", 9)
		r := d.receiver(newStation("r", 9), "u")
		d.receiver(s, "u")
		require.True(t, d.routes.remove(r))
		d.admit("u", P1, "1")
		d.round()
		require.Equal(t, []string{"1"}, ids(s.poll()))
		require.EqualValues(t, 1, d.routed[P1].value())
		require.Zero(t, d.routes.departed)
		d.routes.forget(r)
		require.Len(t, d.routes.of("u").targets, 1, "the look-up has changed no route")
	})

	t.Run("at the end the head is dropped for those that have yet to get it, and lost for those that left", func(t *testing.T) {
		d, a, c := newLone(t, BrokerConfig{}), newStation("a", 0), newStation("c", 9)
		first, gone, last := d.receiver(a, "u"), d.receiver(newStation("b", 9), "u"), d.receiver(c, "u")
		everything, _ := d.global("all", 9, Wait)
		d.admit("u", P1, "1", "2")
		d.round()
		require.True(t, d.heads[P1].waiting)
		require.True(t, d.routes.remove(gone))
		d.life.cut(nil)
		require.True(t, d.settle())
		d.gaps.Wait()
		for _, r := range []*receiver{first, last, everything} {
			require.EqualValues(t, 1, r.dropped.value(), r.id)
			require.Zero(t, r.handed.value(), r.id)
			require.Equal(t, receiverIdle, r.state.Load(), r.id)
		}
		require.Equal(t, ReceiverStats{Dropped: 1}, d.routes.departed)
		require.EqualValues(t, 1, d.discarded[P1].value(), "2")
		require.EqualValues(t, 5, d.life.lost.Load())
		require.EqualValues(t, 1, a.gaps.Load())
		require.EqualValues(t, 1, c.gaps.Load())
	})
}

func TestRing(t *testing.T) {
	t.Run("only who publishes into a lane that the dispatcher sleeps for wakes it, once", func(t *testing.T) {
		d := newLone(t, BrokerConfig{})
		d.ring(P1)
		require.Empty(t, d.wake, "it is awake")
		d.asleep.Store(1<<P0 | 1<<P2)
		d.ring(P1)
		require.Empty(t, d.wake, "P1 has a head that waits")
		d.ring(P2)
		require.Len(t, d.wake, 1)
		d.ring(P0)
		require.Len(t, d.wake, 1)
		require.Zero(t, d.asleep.Load())
	})

	inBubble(t, "a publish between the dispatcher's saying that it sleeps and its second look is delivered", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r := route(t, b, newStation("r", 9), "u")
		inTheMiddle(t, parking, func() { // without the ring: as if that came a moment before
			require.NoError(t, b.admission.admit(message("1", "u", P2)))
		})
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"1"}, ids(r.poll()))
	})

	inBubble(t, "an idle Broker does nothing at all", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "x")
		synctest.Wait()
		// A loop that polled would be scheduled as often as its ticks fit into
		// an hour, of which the runtime counts every eighth.
		before := scheduled()
		pass(time.Hour)
		require.Less(t, scheduled()-before, uint64(100))
	})

	inBubble(t, "the dispatcher sleeps while lanes stand still", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: 24 * time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 2)...)
		}
		pass(time.Second)
		before := scheduled()
		pass(time.Hour)
		require.Less(t, scheduled()-before, uint64(100))
		require.False(t, receiverStats(t, b, "r").Stuck)
		s.poll()
	})
}

// Each of these would wait for ever without the dispatcher's second look: it says
// that it sleeps, and looks once more. In all it is a million times, under the
// race detector 60,000.
func TestPublishAsTheDispatcherParks(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		rounds := sized(1_000_000, 60_000) / 3
		t.Run("a message as it parks is delivered at once", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			all := listen(t, b, "all", 0, Wait)
			runBroker(t, b)
			r, never := rand.New(rand.NewPCG(seed(t), 0)), time.NewTimer(0)
			for i := range rounds {
				publishTo(t, b, "u", Priority(i%NumPriorities), strconv.Itoa(i))
				never.Reset(2 * time.Minute) // of this round: how long all of them take is the machine's
				select {
				case <-all:
				case <-never.C:
					t.Fatalf("round %d: it sleeps over %+v", i, b.Stats().Lanes)
				}
				for range r.IntN(300) { // until about when it parks
					spun.Add(1)
				}
			}
		})

		t.Run("a P0 as it begins to wait for a full inbox is delivered at once", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			s := route(t, b, newStation("r", 0), "u")
			runBroker(t, b)
			r, never := rand.New(rand.NewPCG(seed(t), 0)), time.NewTimer(0)
			for i := range rounds / 5 {
				publishTo(t, b, "u", P1, fmt.Sprint("B", i))
				for range r.IntN(1500) { // until about when it blocks
					spun.Add(1)
				}
				publishTo(t, b, "u", P0, fmt.Sprint("A", i))
				never.Reset(2 * time.Minute)
				for _, ch := range []chan *Message{s.in[P0], s.in[P1]} {
					select {
					case <-ch:
					case <-never.C:
						t.Fatalf("round %d: it sleeps over %+v", i, b.Stats().Lanes)
					}
				}
			}
		})
	})
}

func TestFullLanes(t *testing.T) {
	for p := P0; p <= P3; p++ {
		inBubble(t, fmt.Sprintf("a full %s of one receiver stands still, and its other lanes and those of everybody go on", p), func(t *testing.T) {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			full := route(t, b, newStation("full", 1), "u")
			good := route(t, b, newStation("good", 9), "v")
			runBroker(t, b)
			began := time.Now()
			publishTo(t, b, "u", p, "first", "second")
			publishTo(t, b, "v", p, "behind")
			synctest.Wait()
			for q := P0; q <= P3; q++ {
				if q != p {
					publishTo(t, b, "u", q, "u"+q.String())
					publishTo(t, b, "v", q, "v"+q.String())
					synctest.Wait()
					require.Equal(t, []string{"u" + q.String()}, ids(full.pollLane(q)))
					require.Equal(t, []string{"v" + q.String()}, ids(good.pollLane(q)))
				}
			}
			require.Empty(t, good.in[p], "it stands behind the second")
			require.Equal(t, "first", (<-full.in[p]).n.ID)
			synctest.Wait()
			require.Equal(t, []string{"second"}, ids(full.pollLane(p)))
			require.Equal(t, []string{"behind"}, ids(good.pollLane(p)))
			require.Zero(t, time.Since(began))
			conserved(t, b)
		})
	}

	inBubble(t, "all four lanes may stand still at once, and each goes on by itself and in its order", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String()+"-", 3)...)
		}
		for _, p := range []Priority{P3, P1, P0, P2} {
			for _, want := range series(p.String()+"-", 3) {
				synctest.Wait()
				require.Equal(t, want, s.offered(t, p))
			}
		}
		synctest.Wait()
		conserved(t, b)
	})

	inBubble(t, "two receivers that are full in different lanes do not wait for each other", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		low, high := route(t, b, newStation("low", 0), "u"), route(t, b, newStation("high", 0), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P2, "a", "b")
		synctest.Wait()
		publishTo(t, b, "v", P0, "c", "d")
		for _, want := range []string{"a", "b"} {
			synctest.Wait()
			require.Equal(t, want, low.offered(t, P2))
		}
		for _, want := range []string{"c", "d"} {
			synctest.Wait()
			require.Equal(t, want, high.offered(t, P0))
		}
		synctest.Wait()
		conserved(t, b)
	})

	inBubble(t, "a message goes to all its receivers before the next of its lane, however long the first takes", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		slow, quick := route(t, b, newStation("a", 0), "u"), route(t, b, newStation("b", 9), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2")
		publishTo(t, b, "u", P3, "x")
		synctest.Wait()
		before := ids(quick.pollLane(P1))
		require.NotContains(t, before, "2")
		require.Equal(t, "1", slow.offered(t, P1))
		synctest.Wait()
		require.Equal(t, "x", slow.offered(t, P3))
		synctest.Wait()
		require.Equal(t, "2", slow.offered(t, P1))
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, append(before, ids(quick.pollLane(P1))...))
		require.Equal(t, []string{"x"}, ids(quick.pollLane(P3)))
	})

	inBubble(t, "with a quota of all that waits, a drain goes on with lanes that stood still", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{RoundQuota: lanes(-1)})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 5)...)
		}
		synctest.Wait()
		time.AfterFunc(time.Minute, func() {
			for _, p := range []Priority{P3, P2, P1, P0} {
				s.fetch(t, p, 5)
			}
		})
		began := time.Now()
		drainWithin(t, b, time.Hour)
		require.Equal(t, time.Minute, time.Since(began))
		conserved(t, b)
	})
}

func TestOrder(t *testing.T) {
	t.Run("each publisher's messages arrive in the order of publishing, per lane and user", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			const publishers, users, receivers = 8, 6, 3
			each := sized(5_000, 1_000)
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(16), StallTimeout: time.Hour})
			type stream struct {
				publisher, user string
				p               Priority
			}
			inOrder := func() (func(m *Message), func() int) { // each for one goroutine
				last, n := make(map[stream]int64), 0
				return func(m *Message) {
					k := stream{m.n.Source, m.n.UserID, m.priority}
					if m.n.Timestamp <= last[k] {
						t.Errorf("%v: %d after %d", k, m.n.Timestamp, last[k])
					}
					last[k] = m.n.Timestamp
					n++
				}, func() int { return n }
			}
			var stops []func()
			var counts []func() int
			for i := range receivers {
				f, n := inOrder()
				s := newStation(fmt.Sprint("r", i), i) // unbuffered, too
				require.NoError(t, b.RegisterReceiver(s))
				for u := range users {
					if u%receivers == i || u == 0 { // one user has three receivers
						require.NoError(t, b.Subscribe(fmt.Sprint("u", u), s.id))
					}
				}
				stops, counts = append(stops, s.consume(f)), append(counts, n)
			}
			all := listen(t, b, "all", 2, Wait)
			f, n := inOrder()
			global := &station{in: lanes(all)}
			stops, counts = append(stops, global.consume(f)), append(counts, n)
			runBroker(t, b)

			s := seed(t)
			var wg sync.WaitGroup
			for k := range publishers {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(s, uint64(k)))
					for i := range each {
						n := note(fmt.Sprint(k, "-", i), fmt.Sprint("u", r.IntN(users)), Priority(r.IntN(NumPriorities)))
						n.Source, n.Timestamp = strconv.Itoa(k), int64(i+1)
						if err := b.PublishWait(context.Background(), n); err != nil {
							t.Error(err)
						}
					}
				})
			}
			finished(t, "publishers", &wg)
			drain(t, b)
			for _, stop := range stops {
				stop()
			}
			st := b.Stats()
			for i, r := range st.Receivers { // all, r0, r1, r2
				require.EqualValues(t, r.Handed, counts[(i+receivers)%(receivers+1)](), r.ID)
				require.Zero(t, r.Dropped)
			}
			require.EqualValues(t, publishers*each, counts[receivers]())
			accounted(t, b, uint64(publishers*each))
			conserved(t, b)
		})
	})

	inBubble(t, "while P1 never runs dry a P0 is among the next two that arrive", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "all", 0, Wait)
		publishTo(t, b, "u", P1, series("B", 1000)...)
		runBroker(t, b)
		for i := range 100 {
			synctest.Wait() // one P1 is at the head of its lane
			publishTo(t, b, "u", P0, fmt.Sprint("A", i))
			// Both are on their way into one channel, and either may be first.
			first, second := <-all, <-all
			require.Equal(t, P0, min(first.priority, second.priority), "the P0 is among the next two")
			require.Equal(t, P1, max(first.priority, second.priority))
		}
	})

	t.Run("under a P1 flood P0, P2 and P3 reach the sink and the Gateway is not stuck", func(t *testing.T) {
		noLeaks(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 2, SlowAfter: patient})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		runGateway(t, g)
		var got [NumPriorities]atomic.Int64
		for _, u := range series("user", 20) {
			_, err := g.RegisterSession(SessionConfig{ID: u, UserID: u, Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
				for _, m := range batch {
					got[m.priority].Add(1)
				}
				return nil
			})})
			require.NoError(t, err)
		}
		var over atomic.Bool
		var wg sync.WaitGroup
		for k := range 2 {
			wg.Go(func() {
				for i := 0; !over.Load(); i++ {
					if err := b.PublishWait(context.Background(), note(fmt.Sprint("flood", k, "-", i), fmt.Sprint("user", i%20+1), P1)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		const each = 200
		for i := range each {
			for _, p := range []Priority{P0, P2, P3} {
				require.NoError(t, b.PublishWait(t.Context(), note(fmt.Sprint(p, "-", i), fmt.Sprint("user", i%20+1), p)))
			}
		}
		for _, p := range []Priority{P0, P2, P3} {
			eventually(t, p.String()+" has arrived while P1 goes on", func() bool { return got[p].Load() == each })
		}
		require.False(t, receiverStats(t, b, "g").Stuck)
		over.Store(true)
		finished(t, "the flood", &wg)
		drain(t, b)
		drain(t, g)
		conserved(t, b, g)
		st := b.Stats()
		require.Equal(t, st.Lanes[P1].Published, uint64(got[P1].Load()))
		require.EqualValues(t, got[P0].Load()+got[P1].Load()+got[P2].Load()+got[P3].Load(), st.Departed.Handed)
	})
}
