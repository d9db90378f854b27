package notification

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// listen subscribes a channel to everything, which shows in what order the
// dispatcher takes messages.
func listen(t testing.TB, b *Broker, id string, capacity int, overflow Overflow) chan *Message {
	t.Helper()
	ch := make(chan *Message, capacity)
	require.NoError(t, b.SubscribeGlobal(id, ch, overflow))
	return ch
}

// poll takes what is in ch.
func poll(ch <-chan *Message) (got []*Message) {
	for {
		select {
		case m := <-ch:
			got = append(got, m)
		default:
			return got
		}
	}
}

// route registers s and routes users to it.
func route(t testing.TB, b *Broker, s *station, users ...string) *station {
	t.Helper()
	require.NoError(t, b.RegisterReceiver(s))
	for _, u := range users {
		require.NoError(t, b.Subscribe(u, s.id))
	}
	return s
}

func publish(t testing.TB, b *Broker, notes ...*Notification) {
	t.Helper()
	for _, n := range notes {
		require.NoError(t, b.Publish(n))
	}
}

func notes(userID string, p Priority, ids ...string) (all []*Notification) {
	for _, id := range ids {
		all = append(all, note(id, userID, p))
	}
	return all
}

func TestNewBroker(t *testing.T) {
	for _, cfg := range []BrokerConfig{
		{DedupSize: -1},
		{DedupSize: math.MaxInt},
		{QueueCapacity: [NumPriorities]int{P2: -1}},
		{StallTimeout: -1},
	} {
		t.Run(fmt.Sprintf("a config that cannot be is ErrInvalid: %+v", cfg), func(t *testing.T) {
			b, err := NewBroker(cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.Nil(t, b)
		})
	}
}

func TestPublish(t *testing.T) {
	inBubble(t, "a retry after a full queue is accepted, and delivered once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		all := listen(t, b, "all", 9, Wait)
		publish(t, b, note("1", "u", P2))
		err := b.Publish(note("2", "u", P2))
		require.ErrorIs(t, err, ErrQueueFull)
		require.ErrorContains(t, err, "P2")
		require.ErrorIs(t, b.Publish(note("2", "u", P2)), ErrQueueFull)
		runBroker(t, b)
		synctest.Wait()
		publish(t, b, note("2", "u", P2))
		synctest.Wait()
		publish(t, b, note("2", "u", P2))
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, ids(poll(all)))
		accounted(t, b, 5)
		require.EqualValues(t, 2, b.Stats().Lanes[P2].Rejected)
		require.EqualValues(t, 1, b.Stats().Deduplicated)
	})

	t.Run("of one ID published 64 times while its lane opens, one is accepted if any is", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for range sized(100, 30) {
				b := newBroker(t, BrokerConfig{DedupSize: 10, QueueCapacity: lanes(1)})
				all := listen(t, b, "all", 200, Wait)
				publish(t, b, note("filler", "u", P1))
				var accepted atomic.Int32
				var wg sync.WaitGroup
				begin := make(chan struct{})
				for range 64 {
					wg.Go(func() {
						<-begin
						if err := b.Publish(note("x", "u", P1)); err == nil {
							accepted.Add(1)
						} else if err.Error() != b.full[P1].Error() {
							t.Error(err)
						}
					})
				}
				close(begin)
				done := start(context.Background(), b)
				wg.Wait()
				calls := uint64(65)
				if accepted.Load() == 0 {
					require.EqualValues(t, 1, b.Stats().Lanes[P1].Published, "a refused one was queued all the same")
					require.NoError(t, b.PublishWait(t.Context(), note("x", "u", P1)))
					calls++
				}
				eventually(t, "Run has begun", b.begun)
				drain(t, b)
				require.NoError(t, <-done)
				require.Equal(t, []string{"filler", "x"}, ids(poll(all)))
				accounted(t, b, calls)
				conserved(t, b)
			}
		})
	})

	inBubble(t, "one ID in all four priorities is one delivery", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "all", 9, Wait)
		for p := P0; p <= P3; p++ {
			publish(t, b, note("x", "u", p), note("x", "v", p))
		}
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"x"}, ids(poll(all)))
		require.EqualValues(t, 7, b.Stats().Deduplicated)
	})

	t.Run("an ID is forgotten when DedupSize later ones were accepted, and not before", func(t *testing.T) {
		for _, size := range []int{1, 2, 3, 100} {
			b := newBroker(t, BrokerConfig{DedupSize: size})
			publish(t, b, notes("u", P1, series("", size+1)...)...)
			publish(t, b, note("2", "u", P1))
			require.EqualValues(t, 1, b.Stats().Deduplicated, "2 of %d", size)
			publish(t, b, note("1", "u", P1))
			require.EqualValues(t, 1, b.Stats().Deduplicated, "1 of %d", size)
			require.EqualValues(t, size+2, b.Stats().Lanes[P1].Published)
		}
	})

	t.Run("a repeat does not prolong an ID's stay", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 2})
		publish(t, b, notes("u", P1, "A", "B", "A", "C", "B")...)
		require.EqualValues(t, 2, b.Stats().Deduplicated, "the second A and the second B")
		publish(t, b, note("A", "u", P1))
		require.EqualValues(t, 4, b.Stats().Lanes[P1].Published, "A left when C came")
	})

	t.Run("a refused ID takes nobody's place in the window", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 2, QueueCapacity: [NumPriorities]int{P1: 2, P2: 5}})
		publish(t, b, notes("u", P1, "A", "B")...)
		for _, id := range series("x", 5) {
			require.ErrorIs(t, b.Publish(note(id, "u", P1)), ErrQueueFull)
		}
		publish(t, b, notes("u", P2, "A", "B")...)
		require.EqualValues(t, 2, b.Stats().Deduplicated)
	})

	t.Run("it looks for what is invalid, then closed, then a duplicate, then full", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		publish(t, b, note("x", "u", P1))
		publish(t, b, note("x", "u", P1)) // a duplicate, though the lane is full
		require.ErrorIs(t, b.Publish(note("y", "u", P1)), ErrQueueFull)
		require.ErrorIs(t, b.Shutdown(t.Context()), ErrClosed)
		require.ErrorIs(t, b.Publish(note("x", "u", P1)), ErrClosed)
		require.ErrorIs(t, b.Publish(note("", "u", P1)), ErrInvalid)
		require.ErrorIs(t, b.PublishWait(t.Context(), note("", "u", P1)), ErrInvalid)
		accounted(t, b, 6)
		conserved(t, b)
	})

	t.Run("what is invalid changes no state but its counter", func(t *testing.T) {
		account := AccountUpdate{UserID: "u"}
		for name, n := range map[string]*Notification{
			"Notification is nil":          nil,
			"ID is empty":                  note("", "u", P1),
			"ID has 257 bytes":             note(strings.Repeat("x", 257), "u", P1),
			"UserID is empty":              note("x", "", P1),
			"UserID has 257 bytes":         note("x", strings.Repeat("u", 257), P1),
			"Priority 4":                   note("x", "u", 4),
			"Priority 255":                 note("x", "u", 255),
			"Payload is nil":               {ID: "x", UserID: "u"},
			"Payload *":                    {ID: "x", UserID: "u", Payload: &account},
			"Payload *notification.Accoun": {ID: "x", UserID: "u", Payload: (*AccountUpdate)(nil)},
			"Payload struct":               {ID: "x", UserID: "u", Payload: struct{ AccountUpdate }{account}},
			"AllUsers":                     note("x", AllUsers, P1),
		} {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
			for _, publish := range []func(*Notification) error{
				b.Publish,
				func(n *Notification) error { return b.PublishWait(t.Context(), n) },
			} {
				err := publish(n)
				require.ErrorIs(t, err, ErrInvalid, name)
				require.ErrorContains(t, err, name)
			}
			s := b.Stats()
			require.EqualValues(t, 2, s.Invalid)
			for _, l := range s.Lanes {
				require.Equal(t, BrokerLane{Capacity: 1}, counters(l))
			}
			require.Zero(t, s.DedupSpan)
			publish(t, b, note("x", "u", P1))
			require.EqualValues(t, 1, b.Stats().Lanes[P1].Published, "the ID was not remembered")
		}
	})

	inBubble(t, "priority and type changed by the caller after Publish send nothing astray", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 9), "u")
		n := note("x", "u", P1)
		publish(t, b, n)
		n.Priority, n.Payload = 200, nil
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"x"}, ids(s.pollLane(P1)))
		conserved(t, b)
	})
}

// begun reports whether Run was called.
func (b *Broker) begun() bool {
	b.life.mu.Lock()
	defer b.life.mu.Unlock()
	return b.life.started
}

func TestLanes(t *testing.T) {
	inBubble(t, "exactly as many fit as QueueCapacity says, and come out in order, again and again", func(t *testing.T) {
		for _, capacity := range []int{1, 3, 10_000} {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(capacity), StallTimeout: time.Hour})
			for round := range 3 {
				for p := P0; p <= P3; p++ {
					want := series(fmt.Sprintf("%d-%s-", round, p), capacity)
					publish(t, b, notes("u", p, want...)...)
					require.ErrorIs(t, b.Publish(note("more", "u", p)), ErrQueueFull)
					require.Equal(t, capacity, b.Stats().Lanes[p].Queued)
					for _, id := range want {
						require.Equal(t, id, b.lanes[p].pop().n.ID)
					}
				}
			}
		}
	})

	t.Run("a lane with one less than fits on its way is never full", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			const capacity, publishers = 4, 8
			each := sized(5_000, 1_000)
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(capacity)})
			room := make(chan struct{}, capacity-1)
			stop := route(t, b, newStation("r", 1), "u").consume(func(*Message) { <-room })
			runBroker(t, b)
			var wg sync.WaitGroup
			for k := range publishers {
				wg.Go(func() {
					for i := range each {
						room <- struct{}{}
						if err := b.Publish(note(fmt.Sprint(k, "-", i), "u", P2)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			finished(t, "publishers", &wg)
			drain(t, b)
			stop()
			require.EqualValues(t, publishers*each, b.Stats().Lanes[P2].Routed)
			conserved(t, b)
		})
	})
}

func TestDispatch(t *testing.T) {
	inBubble(t, "P0 is taken first, the others in turns of RoundQuota", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{RoundQuota: [NumPriorities]int{P1: 3, P2: 2, P3: 1}})
		all := listen(t, b, "all", 99, Wait)
		publish(t, b, notes("u", P3, "D1", "D2", "D3")...)
		publish(t, b, notes("u", P2, "C1", "C2", "C3", "C4", "C5")...)
		publish(t, b, notes("u", P1, "B1", "B2", "B3", "B4", "B5")...)
		publish(t, b, notes("u", P0, "A1", "A2")...)
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, strings.Fields("A1 A2  B1 B2 B3 C1 C2 D1  B4 B5 C3 C4 D2  C5 D3"), ids(poll(all)))
	})

	inBubble(t, "the default quotas are 1000, 100 and 50", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "all", 9999, Wait)
		for p := P1; p <= P3; p++ {
			publish(t, b, notes("u", p, series(p.String()+"-", 2000)...)...)
		}
		runBroker(t, b)
		synctest.Wait()
		got := poll(all)
		for i, want := range []struct {
			p Priority
			n int
		}{{P1, 1000}, {P2, 100}, {P3, 50}, {P1, 1000}, {P2, 100}, {P3, 50}, {P2, 100}, {P3, 50}, {P2, 100}} {
			for _, m := range got[:want.n] {
				require.Equal(t, want.p, m.priority, "turn %d", i)
			}
			got = got[want.n:]
		}
	})

	inBubble(t, "a negative quota is all that waits when the turn comes", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{RoundQuota: lanes(-1)})
		all := listen(t, b, "all", 0, Wait)
		publish(t, b, notes("u", P1, "B1", "B2", "B3")...)
		publish(t, b, notes("u", P2, "C1", "C2")...)
		runBroker(t, b)
		synctest.Wait()
		publish(t, b, note("B4", "u", P1)) // during P1's turn, which it is too late for
		var got []string
		for range 6 {
			got = append(got, (<-all).n.ID)
		}
		require.Equal(t, strings.Fields("B1 B2 B3 C1 C2 B4"), got)
	})

	inBubble(t, "a P0 quota bounds how many P0s overtake each message of the others", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{RoundQuota: [NumPriorities]int{P0: 2}})
		all := listen(t, b, "all", 99, Wait)
		publish(t, b, notes("u", P0, series("A", 7)...)...)
		publish(t, b, notes("u", P1, "B1", "B2")...)
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, strings.Fields("A1 A2 B1 A3 A4 B2 A5 A6 A7"), ids(poll(all)))
	})

	inBubble(t, "under a P1 that never runs dry P2 and P3 get their quota of every round", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{RoundQuota: [NumPriorities]int{P1: 5, P2: 2, P3: 1}, QueueCapacity: lanes(20)})
		all := listen(t, b, "all", 0, Wait)
		serial := 0
		saturate := func() {
			for p := P1; p <= P3; p++ {
				for b.Stats().Lanes[p].Queued < 20 {
					serial++
					publish(t, b, note(strconv.Itoa(serial), "u", p))
				}
			}
		}
		saturate()
		runBroker(t, b)
		for range 200 {
			var round []Priority
			for range 8 {
				synctest.Wait()
				saturate()
				round = append(round, (<-all).priority)
			}
			require.Equal(t, []Priority{P1, P1, P1, P1, P1, P2, P2, P3}, round)
		}
	})

	inBubble(t, "under a P1 that never runs dry a P0 is the next to be taken", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "all", 0, Wait)
		publish(t, b, notes("u", P1, series("B", 1000)...)...)
		runBroker(t, b)
		for i := range 100 {
			synctest.Wait() // one P1 is in the dispatcher's hands
			publish(t, b, note(fmt.Sprint("A", i), "u", P0))
			// Both are on their way into one channel, and either may be first.
			first, second := <-all, <-all
			require.Equal(t, P0, min(first.priority, second.priority), "the P0 is among the next two")
			require.Equal(t, P1, max(first.priority, second.priority))
		}
	})

	t.Run("under a P1 flood P2 and P3 reach the sink and no gateway is called stuck", func(t *testing.T) {
		noLeaks(t)
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{Pushers: 2})
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

	t.Run("delivery order is the publishing order of each publisher, per lane and user", func(t *testing.T) {
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

	inBubble(t, "an idle Broker does nothing at all", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publish(t, b, note("x", "u", P1))
		synctest.Wait()
		// A loop that polled would be scheduled as often as its ticks fit into
		// an hour, of which the runtime counts every eighth.
		before := scheduled()
		pass(time.Hour)
		require.Less(t, scheduled()-before, uint64(100))
	})
}

// scheduled returns how many times goroutines have gone from runnable to
// running, or an eighth of it.
func scheduled() (n uint64) {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	for _, c := range sample[0].Value.Float64Histogram().Counts {
		n += c
	}
	return n
}

// Each of these would hang without the dispatcher's second look: it says that it
// sleeps, and looks once more. In all it is a million times, under the race
// detector 60,000.
func TestPublishAsTheDispatcherParks(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		rounds := sized(1_000_000, 60_000) / 3
		t.Run("it is delivered at once", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			all := listen(t, b, "all", 0, Wait)
			runBroker(t, b)
			r, never := rand.New(rand.NewPCG(seed(t), 0)), time.After(time.Minute)
			for i := range rounds {
				publish(t, b, note(strconv.Itoa(i), "u", Priority(i%NumPriorities)))
				select {
				case <-all:
				case <-never:
					t.Fatalf("round %d: asleep over %+v", i, b.Stats().Lanes)
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
			r, never := rand.New(rand.NewPCG(seed(t), 0)), time.After(time.Minute)
			for i := range rounds / 5 {
				publish(t, b, note(fmt.Sprint("B", i), "u", P1))
				for range r.IntN(1500) { // until about when it blocks
					spun.Add(1)
				}
				publish(t, b, note(fmt.Sprint("A", i), "u", P0))
				for _, ch := range []chan *Message{s.in[P0], s.in[P1]} {
					select {
					case <-ch:
					case <-never:
						t.Fatalf("round %d: asleep over %+v", i, b.Stats().Lanes)
					}
				}
			}
		})

		t.Run("a PublishWait as the lane runs empty is served", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
			runBroker(t, b)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r := rand.New(rand.NewPCG(seed(t), 0))
			for i := range rounds { // one publisher: nobody else comes to its rescue
				if err := b.PublishWait(ctx, note(strconv.Itoa(i), "u", P1)); err != nil {
					t.Fatalf("round %d: stranded: %v", i, err)
				}
				for range r.IntN(100) {
					spun.Add(1)
				}
			}
			drain(t, b)
			conserved(t, b)
		})
	})
}

// spun keeps the compiler from leaving out what only takes time.
var spun atomic.Int64

// wait starts a PublishWait that will have to wait, and returns its result.
func wait(ctx context.Context, b *Broker, n *Notification) <-chan error {
	result := make(chan error, 1)
	go func() { result <- b.PublishWait(ctx, n) }() // ends when served
	synctest.Wait()
	return result
}

func TestPublishWait(t *testing.T) {
	inBubble(t, "waiters are served in their order and before any flood of Publish", func(t *testing.T) {
		for _, capacity := range []int{1, 3} {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(capacity), StallTimeout: time.Hour})
			all := listen(t, b, "all", 0, Wait)
			publish(t, b, notes("u", P1, series("early", capacity)...)...)
			want := series("early", capacity)
			var results []<-chan error
			for _, id := range series("wait", 50) {
				results = append(results, wait(t.Context(), b, note(id, "u", P1)))
				want = append(want, id)
			}
			require.ErrorIs(t, b.Publish(note("flood", "u", P1)), ErrQueueFull)
			runBroker(t, b)
			var got []string
			refused := 0
			for len(got) < len(want) {
				synctest.Wait()
				if err := b.Publish(note("flood", "u", P1)); err != nil {
					require.ErrorIs(t, err, ErrQueueFull)
					refused++
				}
				m := <-all
				got = append(got, m.n.ID)
			}
			require.Equal(t, want, got)
			for _, r := range results {
				require.NoError(t, <-r)
			}
			require.Greater(t, refused, 40)
			require.Equal(t, "flood", (<-all).n.ID, "in the end there is room for it")
			drain(t, b)
			conserved(t, b)
		}
	})

	inBubble(t, "room made is a waiter's, even before it knows", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		publish(t, b, note("1", "u", P1))
		first := wait(t.Context(), b, note("2", "u", P1))
		b.lanes[P1].pop() // room that nobody was told of
		require.ErrorIs(t, b.Publish(note("3", "u", P1)), ErrQueueFull)
		require.NoError(t, <-first)
		require.Equal(t, "2", b.lanes[P1].pop().n.ID)
	})

	inBubble(t, "the end of its ctx is its error, counted once, and nothing is remembered", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		publish(t, b, note("1", "u", P1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		require.Equal(t, context.DeadlineExceeded, b.PublishWait(ctx, note("2", "u", P1)))
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, context.DeadlineExceeded, b.PublishWait(ctx, note("2", "u", P1)), "with a ctx that has ended")
		require.EqualValues(t, 2, b.Stats().Lanes[P1].Rejected)
		accounted(t, b, 3)
		all := listen(t, b, "all", 9, Wait)
		runBroker(t, b)
		synctest.Wait()
		require.NoError(t, b.PublishWait(ctx, note("2", "u", P1)), "if there is room nobody looks at ctx")
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, ids(poll(all)))
	})

	inBubble(t, "one that gives up in the middle holds up nobody behind it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		all := listen(t, b, "all", 9, Wait)
		publish(t, b, note("1", "u", P1))
		first := wait(t.Context(), b, note("2", "u", P1))
		ctx, cancel := context.WithCancel(t.Context())
		second := wait(ctx, b, note("3", "u", P1))
		third := wait(t.Context(), b, note("4", "u", P1))
		cancel()
		require.Equal(t, context.Canceled, <-second)
		runBroker(t, b)
		require.NoError(t, <-first)
		require.NoError(t, <-third)
		synctest.Wait()
		require.Equal(t, []string{"1", "2", "4"}, ids(poll(all)))
	})

	inBubble(t, "a waiter does not hold its ID: who comes first has it, and both calls succeed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: [NumPriorities]int{P1: 1, P2: 9}})
		all := listen(t, b, "all", 9, Wait)
		publish(t, b, note("1", "u", P1))
		first, second := wait(t.Context(), b, note("x", "u", P1)), wait(t.Context(), b, note("x", "u", P1))
		publish(t, b, note("x", "u", P2))
		require.EqualValues(t, 1, b.Stats().Lanes[P2].Published)
		runBroker(t, b)
		require.NoError(t, <-first)
		require.NoError(t, <-second)
		synctest.Wait()
		require.Equal(t, []string{"1", "x"}, ids(poll(all)))
		require.EqualValues(t, 2, b.Stats().Deduplicated)
		accounted(t, b, 4)
	})

	for name, stop := range map[string]func(b *Broker, cancel func()){
		"Shutdown":             func(b *Broker, _ func()) { go func() { _ = b.Shutdown(context.Background()) }() },
		"the end of Run's ctx": func(_ *Broker, cancel func()) { cancel() },
	} {
		inBubble(t, name+" wakes the waiters with ErrClosed", func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1), StallTimeout: time.Hour})
			all := listen(t, b, "all", 0, Wait)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := start(ctx, b)
			var results []<-chan error
			for _, id := range series("", 12) {
				for p := P1; p <= P3; p++ {
					results = append(results, wait(t.Context(), b, note(p.String()+id, "u", p)))
				}
			}
			stop(b, cancel)
			synctest.Wait()
			refused := 0
			for _, r := range results {
				if err := <-r; err != nil { // and none hangs
					require.ErrorIs(t, err, ErrClosed)
					refused++
				}
			}
			require.Equal(t, 32, refused, "all but the three that were queued and the one that was taken")
			require.EqualValues(t, refused, b.Stats().RefusedClosed)
			(&station{in: lanes(all)}).drainUntil(done)
			accounted(t, b, 36)
			conserved(t, b)
		})
	}

	t.Run("a PublishWait served as its ctx ends is in, one that failed is not", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			const publishers = 8
			each := sized(3_000, 500)
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(2), DedupSize: publishers * each})
			delivered := make(map[string]int)
			stop := route(t, b, newStation("r", 0), "u").consume(func(m *Message) { delivered[m.n.ID]++ })
			runBroker(t, b)
			accepted := make([]map[string]bool, publishers)
			s := seed(t)
			var wg sync.WaitGroup
			for k := range publishers {
				accepted[k] = make(map[string]bool)
				wg.Go(func() {
					r := rand.New(rand.NewPCG(s, uint64(k)))
					for i := range each {
						id := fmt.Sprint(k, "-", i)
						ctx, cancel := context.WithCancel(context.Background())
						wg.Go(func() {
							for range r.IntN(3) {
								runtime.Gosched()
							}
							cancel()
						})
						accepted[k][id] = b.PublishWait(ctx, note(id, "u", P1)) == nil
						<-ctx.Done()
					}
				})
			}
			finished(t, "publishers", &wg)
			drain(t, b)
			stop()
			for _, m := range accepted {
				for id, ok := range m {
					if (delivered[id] == 1) != ok || delivered[id] > 1 {
						t.Fatalf("%s: accepted is %t, delivered %d times", id, ok, delivered[id])
					}
				}
			}
			accounted(t, b, uint64(publishers*each))
			conserved(t, b)
		})
	})
}

// drainUntil takes what comes until done does.
func (s *station) drainUntil(done <-chan error) {
	for {
		select {
		case <-s.in[P0]:
		case <-s.in[P1]:
		case <-s.in[P2]:
		case <-s.in[P3]:
		case <-done:
			return
		}
	}
}

func TestRouting(t *testing.T) {
	inBubble(t, "first the user's receivers, then the global subscribers, each once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r1, r2, r3 := newStation("r1", 9), newStation("r2", 9), newStation("r3", 9)
		for _, s := range []*station{r1, r2, r3} {
			route(t, b, s)
		}
		for range 3 {
			require.NoError(t, b.Subscribe("u", "r1"))
			require.NoError(t, b.Subscribe("u", "r2"))
		}
		all := listen(t, b, "all", 9, Wait)
		runBroker(t, b)
		publish(t, b, note("1", "u", P1), note("2", "nobody", P1))
		synctest.Wait()
		x, y, z := r1.poll(), r2.poll(), poll(all)
		require.Equal(t, []string{"1"}, ids(x))
		require.Equal(t, []string{"1"}, ids(y))
		require.Empty(t, r3.poll())
		require.Equal(t, []string{"1", "2"}, ids(z))
		require.Same(t, x[0], y[0], "one message for all")
		require.Same(t, x[0], z[0])
		s := b.Stats().Lanes[P1]
		require.EqualValues(t, 1, s.Routed)
		require.EqualValues(t, 1, s.Unrouted)
	})

	inBubble(t, "a receiver that is full comes before a global subscriber", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("z", 0), "u")
		all := listen(t, b, "a", 9, Wait)
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		synctest.Wait()
		require.Empty(t, all)
		<-s.in[P1]
		synctest.Wait()
		require.Len(t, all, 1)
	})

	inBubble(t, "Unsubscribe undoes any number of Subscribes, one receiver at a time", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		stations := []*station{newStation("r0", 9), newStation("r1", 9), newStation("r2", 9)}
		for _, s := range stations {
			route(t, b, s, "u", "u")
		}
		runBroker(t, b)
		serial := 0
		expect := func(who ...int) {
			t.Helper()
			serial++
			publish(t, b, note(strconv.Itoa(serial), "u", P1))
			synctest.Wait()
			var got []int
			for i, s := range stations {
				for range s.poll() {
					got = append(got, i)
				}
			}
			require.Equal(t, who, got)
		}
		expect(0, 1, 2)
		require.NoError(t, b.Unsubscribe("u", "r1"))
		require.NoError(t, b.Unsubscribe("u", "r1"))
		expect(0, 2)
		require.NoError(t, b.Unsubscribe("u", "r0"))
		expect(2)
		require.NoError(t, b.Subscribe("u", "r1"))
		expect(1, 2)
		require.NoError(t, b.Unregister("r2"))
		expect(1)
		require.NoError(t, b.Unsubscribe("u", "r1"))
		expect()
		require.Zero(t, b.Stats().Users)
	})

	inBubble(t, "AllUsers goes to every gateway and receiver, with users or without", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		publish(t, b, notice("1", P3))
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Lanes[P3].Unrouted)
		r1, r2 := route(t, b, newStation("r1", 9), "u"), route(t, b, newStation("r2", 9))
		g := newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		all := listen(t, b, "all", 9, Wait)
		publish(t, b, notice("2", P3))
		synctest.Wait()
		for _, got := range [][]*Message{r1.poll(), r2.poll(), poll(g.inbox[P3]), poll(all)} {
			require.Equal(t, []string{"2"}, ids(got))
		}
		require.EqualValues(t, 1, b.Stats().Lanes[P3].Routed)
	})

	t.Run("what cannot be registered is refused, and by name", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		route(t, b, newStation("r", 1))
		ch := listen(t, b, "all", 1, Wait)
		holed := func(p Priority) *station {
			s := newStation("holed", 1)
			s.in[p] = nil
			return s
		}
		long := strings.Repeat("x", 257)
		other := newBroker(t, BrokerConfig{})
		taken := newGateway(t, "g", GatewayConfig{})
		require.NoError(t, other.RegisterGateway(taken))
		for _, row := range []struct {
			want error
			says string
			err  error
		}{
			{ErrInvalid, "nil", b.RegisterReceiver(nil)},
			{ErrInvalid, "nil", b.RegisterGateway(nil)},
			{ErrInvalid, "nil", b.RegisterReceiver((*Gateway)(nil))},
			{ErrInvalid, "receiver ID is empty", b.RegisterReceiver(newStation("", 1))},
			{ErrInvalid, "receiver ID has 257 bytes", b.RegisterReceiver(newStation(long, 1))},
			{ErrInvalid, "Inbox[P0]", b.RegisterReceiver(holed(P0))},
			{ErrInvalid, "Inbox[P3]", b.RegisterReceiver(holed(P3))},
			{ErrReceiverExists, `"r"`, b.RegisterReceiver(newStation("r", 1))},
			{ErrReceiverExists, `"r"`, b.RegisterGateway(newGateway(t, "r", GatewayConfig{}))},
			{ErrInvalid, "another Broker", b.RegisterGateway(taken)},
			{ErrInvalid, "another Broker", b.RegisterReceiver(taken)},
			{ErrReceiverExists, `"g"`, other.RegisterReceiver(taken)},
			{ErrInvalid, "subscriber ID is empty", b.SubscribeGlobal("", ch, Wait)},
			{ErrInvalid, "subscriber ID has 257 bytes", b.SubscribeGlobal(long, ch, Wait)},
			{ErrInvalid, "nil", b.SubscribeGlobal("x", nil, Wait)},
			{ErrInvalid, "Overflow 2", b.SubscribeGlobal("x", ch, Wait+1)},
			{ErrReceiverExists, `"all"`, b.SubscribeGlobal("all", ch, Wait)},
			{ErrInvalid, "UserID is empty", b.Subscribe("", "r")},
			{ErrInvalid, "UserID has 257 bytes", b.Subscribe(long, "r")},
			{ErrInvalid, "AllUsers", b.Subscribe(AllUsers, "r")},
			{ErrInvalid, "AllUsers", b.Unsubscribe(AllUsers, "r")},
			{ErrUnknownReceiver, `"all"`, b.Subscribe("u", "all")},
			{ErrUnknownReceiver, `"x"`, b.Unsubscribe("u", "x")},
			{ErrUnknownReceiver, `"all"`, b.Unregister("all")},
			{ErrUnknownReceiver, `"r"`, b.UnsubscribeGlobal("r")},
		} {
			require.ErrorIs(t, row.err, row.want)
			require.ErrorContains(t, row.err, row.says)
		}
		require.NoError(t, b.SubscribeGlobal("r", ch, Wait), "subscribers have names of their own")
		require.Len(t, b.Stats().Receivers, 3)
		require.Zero(t, b.Stats().Users)
	})

	inBubble(t, "an ID may return after Unregister, and no route of the first reaches it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		old := route(t, b, newStation("r", 9), "u", "v")
		route(t, b, newStation("other", 9), "v")
		require.ErrorIs(t, b.RegisterReceiver(newStation("r", 9)), ErrReceiverExists)
		require.NoError(t, b.Unregister("r"))
		again := route(t, b, newStation("r", 9), "w")
		publish(t, b, note("1", "u", P1), note("2", "v", P1), note("3", "w", P1))
		synctest.Wait()
		require.Empty(t, old.poll())
		require.Equal(t, []string{"3"}, ids(again.poll()))
		require.EqualValues(t, 1, b.Stats().Lanes[P1].Unrouted)
		require.Equal(t, 2, b.Stats().Users, "v and w")
	})

	inBubble(t, "a Gateway may go to another Broker when it has left the first", func(t *testing.T) {
		b1, b2 := newBroker(t, BrokerConfig{}), newBroker(t, BrokerConfig{})
		g := newGateway(t, "g", GatewayConfig{})
		sink, ch := ChannelSink(9)
		_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: sink})
		require.NoError(t, err)
		runBroker(t, b1)
		runBroker(t, b2)
		runGateway(t, g)
		require.NoError(t, b1.RegisterGateway(g))
		require.NoError(t, b1.Unregister("g"))
		require.ErrorIs(t, b1.Unregister("g"), ErrUnknownReceiver)
		require.NoError(t, b2.RegisterGateway(g))
		publish(t, b1, note("1", "u", P0))
		publish(t, b2, note("2", "u", P0))
		synctest.Wait()
		require.Equal(t, []string{"2"}, ids(poll(ch)))
		require.Zero(t, b1.Stats().Users)
		require.Equal(t, 1, b2.Stats().Users)
	})

	t.Run("the tables hold no trace of users and receivers that are gone", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		for i := range 100 {
			route(t, b, newStation(fmt.Sprint("r", i), 1), series("user", 50)...)
			listen(t, b, fmt.Sprint("all", i), 1, DropNewest)
		}
		for i := range 100 {
			if i%2 == 0 { // some leave before their users, some after
				for _, u := range series("user", 50) {
					require.NoError(t, b.Unsubscribe(u, fmt.Sprint("r", i)))
				}
			}
			require.NoError(t, b.Unregister(fmt.Sprint("r", i)))
			require.NoError(t, b.UnsubscribeGlobal(fmt.Sprint("all", i)))
		}
		require.Zero(t, b.users.Size())
		require.Empty(t, b.receivers)
		require.Empty(t, b.globals)
		require.Empty(t, *b.everyone.Load())
		require.Empty(t, *b.globally.Load())
	})
}

// A hand-over is in progress when Unregister comes: these receivers take
// nothing.
func TestUnregisterDuringHandOver(t *testing.T) {
	inBubble(t, "a receiver's is broken off and counted, and its channels may be closed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		other := route(t, b, newStation("s", 9), "v")
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		publish(t, b, note("4", "v", P1))
		synctest.Wait()
		require.Empty(t, other.in[P1])
		began := time.Now()
		require.NoError(t, b.Unregister("r"))
		for _, ch := range s.in {
			close(ch)
		}
		synctest.Wait()
		require.Equal(t, []string{"4"}, ids(other.poll()))
		require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		require.EqualValues(t, 2, b.Stats().Lanes[P1].Unrouted, "2 and 3 had nowhere to go")
		require.Zero(t, time.Since(began))
		conserved(t, b)
	})

	inBubble(t, "the counters of one that is leaving are those of the departed already", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		synctest.Wait()
		r := b.receivers["r"]
		require.True(t, r.enter()) // a hand-over that goes on for as long as this test likes
		left := make(chan error, 1)
		go func() { left <- b.Unregister("r") }()
		synctest.Wait()
		require.Empty(t, left)
		require.Empty(t, b.Stats().Receivers)
		require.Equal(t, ReceiverStats{Handed: 1}, b.Stats().Departed)
		r.exit()
		require.NoError(t, <-left)
		require.Equal(t, ReceiverStats{Handed: 1}, b.Stats().Departed)
		require.Len(t, s.poll(), 1)
	})

	inBubble(t, "a global subscriber's as well", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		ch := listen(t, b, "all", 0, Wait)
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		synctest.Wait()
		require.NoError(t, b.UnsubscribeGlobal("all"))
		close(ch)
		require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		require.ErrorIs(t, b.UnsubscribeGlobal("all"), ErrUnknownReceiver)
		synctest.Wait()
		require.Zero(t, b.Stats().Lanes[P1].Queued)
	})

	inBubble(t, "one that left while the message was on its way to it misses it, counted", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		first, second := route(t, b, newStation("r1", 0), "u"), route(t, b, newStation("r2", 9), "u")
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		synctest.Wait() // for the first
		require.NoError(t, b.Unregister("r2"))
		for _, ch := range second.in {
			close(ch)
		}
		<-first.in[P1]
		synctest.Wait()
		require.Equal(t, ReceiverStats{Dropped: 1}, b.Stats().Departed)
		require.EqualValues(t, 1, receiverStats(t, b, "r1").Handed)
		conserved(t, b)
	})

	inBubble(t, "of a P0 within the hand-over of another message both are", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		synctest.Wait()
		publish(t, b, note("2", "u", P0))
		synctest.Wait()
		require.NoError(t, b.Unregister("r"))
		for _, ch := range s.in {
			close(ch)
		}
		synctest.Wait()
		require.Equal(t, ReceiverStats{Dropped: 2}, b.Stats().Departed)
		conserved(t, b)
	})

	inBubble(t, "of two Unregisters one did it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		synctest.Wait()
		results := make(chan error, 2)
		for range 2 {
			go func() { results <- b.Unregister("r") }()
		}
		x, y := <-results, <-results
		if x == nil {
			x, y = y, x
		}
		require.ErrorIs(t, x, ErrUnknownReceiver)
		require.NoError(t, y)
		require.EqualValues(t, 1, b.Stats().Departed.Dropped)
	})

	inBubble(t, "after Run nothing is sent, whatever was in progress", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		s := route(t, b, newStation("r", 0), "u")
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		for _, ch := range s.in {
			close(ch)
		}
		synctest.Wait()
		require.EqualValues(t, 1, receiverStats(t, b, "r").Dropped)
		require.EqualValues(t, 2, b.Stats().Lanes[P1].Discarded)
		conserved(t, b)
		require.NoError(t, b.Unregister("r"), "which has nobody to wait for")
	})

	t.Run("thousands of receivers come, go and close their channels under a flood", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(64)})
			runBroker(t, b)
			var over atomic.Bool
			var wg sync.WaitGroup
			for k := range 2 {
				wg.Go(func() {
					for i := 0; !over.Load(); i++ {
						if b.Publish(note(fmt.Sprint(k, "-", i), fmt.Sprint("u", i%4), Priority(i%NumPriorities))) != nil {
							runtime.Gosched()
						}
					}
				})
			}
			var taken atomic.Uint64
			var comers sync.WaitGroup
			s := seed(t)
			for k := range 4 { // each user has one receiver at a time
				comers.Go(func() {
					r := rand.New(rand.NewPCG(s, uint64(k)))
					for range sized(500, 100) {
						s := newStation(fmt.Sprint("r", k), r.IntN(3))
						if err := b.RegisterReceiver(s); err != nil {
							t.Error(err)
						}
						if err := b.Subscribe(fmt.Sprint("u", k), s.id); err != nil {
							t.Error(err)
						}
						for range r.IntN(4) {
							select {
							case <-s.in[P1]:
							case <-s.in[P2]:
							case <-s.in[P3]:
							case <-s.in[P0]:
							}
							taken.Add(1)
						}
						if err := b.Unregister(s.id); err != nil {
							t.Error(err)
						}
						for _, ch := range s.in {
							close(ch)
							for range ch {
								taken.Add(1)
							}
						}
					}
				})
			}
			finished(t, "receivers", &comers)
			over.Store(true)
			finished(t, "publishers", &wg)
			drain(t, b)
			st := b.Stats()
			require.Equal(t, taken.Load(), st.Departed.Handed)
			var routed uint64
			for _, l := range st.Lanes {
				routed += l.Routed
			}
			require.Equal(t, routed, st.Departed.Handed+st.Departed.Dropped, "nobody had two receivers")
			conserved(t, b)
		})
	})
}

// A judgement is what became of a receiver.
type judgement struct {
	stuck           bool
	gaps            int32
	handed, dropped uint64
}

func judged(t testing.TB, b *Broker, s *station) judgement {
	t.Helper()
	r := receiverStats(t, b, s.id)
	return judgement{r.Stuck, s.gaps.Load(), r.Handed, r.Dropped}
}

// The receivers' StallTimeout is a second, the default.
func TestSlowReceiver(t *testing.T) {
	const tick = 900 * time.Millisecond

	inBubble(t, "one that takes a message per 0.9 s is stuck when that sums up to 1 s, and back when half empty", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		publish(t, b, notes("u", P1, series("", 8)...)...)
		pass(tick)
		require.Equal(t, judgement{handed: 4}, judged(t, b, s), "the fifth has waited for 0.9 s")
		require.Equal(t, "1", (<-s.in[P1]).n.ID)
		pass(100*time.Millisecond - 1)
		require.Equal(t, judgement{handed: 5}, judged(t, b, s), "the sixth for almost 0.1 s")
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 5, dropped: 3}, judged(t, b, s), "6, and 7 and 8 without waiting")

		require.Equal(t, "2", (<-s.in[P1]).n.ID)
		publish(t, b, note("9", "u", P1))
		synctest.Wait()
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 5, dropped: 4}, judged(t, b, s), "three of four are more than half")
		require.Equal(t, "3", (<-s.in[P1]).n.ID)
		publish(t, b, note("10", "u", P1))
		synctest.Wait()
		require.Equal(t, judgement{gaps: 1, handed: 6, dropped: 4}, judged(t, b, s), "two of four are half")

		publish(t, b, notes("u", P1, "11", "12")...) // 11 fits, 12 has the whole budget again
		pass(time.Second - 1)
		require.Equal(t, judgement{gaps: 1, handed: 7, dropped: 4}, judged(t, b, s))
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 2, handed: 7, dropped: 5}, judged(t, b, s), "another episode, another Gap")
		require.Equal(t, strings.Fields("4 5 10 11"), ids(s.poll()))
		conserved(t, b)
	})

	inBubble(t, "one that takes nothing, then everything, loses what came in between and is told once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 2), "u")
		runBroker(t, b)
		for episode := range int32(5) {
			for i := range 20 {
				publish(t, b, note(fmt.Sprint(episode, "-", i), "u", P2))
			}
			pass(time.Minute)
			require.Equal(t, episode+1, s.gaps.Load())
			require.True(t, receiverStats(t, b, "r").Stuck)
			require.Equal(t, []string{fmt.Sprint(episode, "-0"), fmt.Sprint(episode, "-1")}, ids(s.poll()))
		}
		publish(t, b, note("x", "u", P2))
		synctest.Wait()
		require.Equal(t, judgement{gaps: 5, handed: 11, dropped: 90}, judged(t, b, s))
		conserved(t, b)
	})

	inBubble(t, "one that pauses for 0.9 s and then catches up is never stuck, however often", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		for i := range 100 {
			publish(t, b, notes("u", P1, series(fmt.Sprint(i, "-"), 5)...)...)
			pass(tick)
			n := len(s.poll())
			synctest.Wait()
			require.Equal(t, 5, n+len(s.poll()))
		}
		require.Equal(t, judgement{handed: 500}, judged(t, b, s))
	})

	inBubble(t, "pauses add up until it is half empty", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		publish(t, b, notes("u", P1, series("", 20)...)...)
		for range 9 {
			pass(100 * time.Millisecond)
			<-s.in[P1]
		}
		pass(100*time.Millisecond - 1)
		require.Equal(t, judgement{handed: 13}, judged(t, b, s))
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 13, dropped: 7}, judged(t, b, s))
	})

	inBubble(t, "one without buffers has the budget as well, and is back when somebody receives", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		pass(tick)
		<-s.in[P1]
		pass(100*time.Millisecond - 1)
		require.Equal(t, judgement{handed: 1}, judged(t, b, s))
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 1, dropped: 2}, judged(t, b, s))
		stop := s.consume(func(*Message) {})
		synctest.Wait()
		publish(t, b, note("4", "u", P1))
		synctest.Wait()
		require.Equal(t, judgement{gaps: 1, handed: 2, dropped: 2}, judged(t, b, s))
		stop()
	})

	inBubble(t, "the others wait for it once, and P0 not at all", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		bad := route(t, b, newStation("bad", 1), "u")
		good := route(t, b, newStation("good", 99), "u", "v")
		all := listen(t, b, "all", 99, Wait)
		runBroker(t, b)
		began := time.Now()
		publish(t, b, notes("u", P1, "1", "2")...)
		publish(t, b, notes("v", P1, "3", "4")...)
		synctest.Wait()
		require.Equal(t, []string{"1"}, ids(good.poll()), "2 waits for the other")
		publish(t, b, notes("v", P0, "5", "6")...)
		publish(t, b, note("7", "u", P0))
		synctest.Wait()
		require.Equal(t, []string{"7"}, ids(bad.pollLane(P0)), "its own P0 lane is another one")
		publish(t, b, notice("8", P0))
		synctest.Wait()
		require.Equal(t, []string{"8"}, ids(bad.pollLane(P0)))
		require.Equal(t, strings.Fields("5 6 7 8"), ids(good.poll()))
		require.Zero(t, time.Since(began))
		require.Equal(t, strings.Fields("1 5 6 7 8"), ids(poll(all)))
		pass(time.Second)
		publish(t, b, notes("u", P1, series("x", 50)...)...)
		synctest.Wait()
		require.Len(t, good.poll(), 53)
		require.Equal(t, time.Second, time.Since(began), "and nothing is ever waited for again")
		require.False(t, receiverStats(t, b, "good").Stuck)
	})

	inBubble(t, "while a P0 lane of one is full its other lanes and receivers wait for no more than the budget", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		bad := route(t, b, newStation("bad", 1), "u")
		good := route(t, b, newStation("good", 99), "v")
		runBroker(t, b)
		publish(t, b, notes("u", P0, "1", "2", "3")...)
		publish(t, b, note("4", "u", P1), note("5", "v", P0))
		pass(time.Second - 1)
		require.Empty(t, good.poll())
		pass(1)
		require.Equal(t, []string{"5"}, ids(good.poll()))
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 2, dropped: 2}, judged(t, b, bad))
		require.Equal(t, strings.Fields("1 4"), ids(bad.poll()), "the lanes have budgets of their own")
		require.False(t, receiverStats(t, b, "bad").Stuck, "what is half empty again is not")
	})

	inBubble(t, "each lane has a budget, and each episode of each a Gap", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publish(t, b, notes("u", p, series(p.String(), 3)...)...)
		}
		pass(4*time.Second - 1)
		require.EqualValues(t, 3, s.gaps.Load())
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 4, handed: 4, dropped: 8}, judged(t, b, s))
		require.Len(t, s.pollLane(P2), 1)
		publish(t, b, note("x", "u", P2))
		synctest.Wait()
		require.True(t, receiverStats(t, b, "r").Stuck, "in three lanes still")
		require.Equal(t, []string{"x"}, ids(s.pollLane(P2)))
		require.Equal(t, 4*time.Second, time.Since(began))
	})

	inBubble(t, "what a P0 waits for meanwhile is not charged to it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		slow := route(t, b, newStation("slow", 0), "u")
		stuck := route(t, b, newStation("stuck", 0), "v")
		runBroker(t, b)
		publish(t, b, note("1", "u", P1))
		pass(500 * time.Millisecond)
		publish(t, b, note("2", "v", P0))
		pass(time.Second)
		require.Equal(t, judgement{stuck: true, gaps: 1, dropped: 1}, judged(t, b, stuck))
		pass(100 * time.Millisecond)
		require.Equal(t, "1", (<-slow.in[P1]).n.ID)
		publish(t, b, note("3", "u", P1))
		pass(400*time.Millisecond - 1)
		require.Equal(t, judgement{handed: 1}, judged(t, b, slow), "it has been waited for 0.6 s, and almost 0.4 s more")
		pass(1)
		require.Equal(t, judgement{stuck: true, gaps: 1, handed: 1, dropped: 1}, judged(t, b, slow))
	})

	inBubble(t, "before it is judged there is one last try", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1), "u")
		r, m := b.receivers["r"], NewMessage(note("1", "u", P1))
		require.True(t, b.judge(r, m, s.in[P1], P1))
		require.Equal(t, []string{"1"}, ids(s.poll()))
		require.Equal(t, judgement{}, judged(t, b, s))
	})

	inBubble(t, "a log tells of each episode once, when it begins and when it ends", func(t *testing.T) {
		var log strings.Builder
		b := newBroker(t, BrokerConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		for i := range 3 {
			publish(t, b, notes("u", P1, series(fmt.Sprint(i, "-"), 9)...)...)
			pass(time.Minute)
			s.poll()
		}
		require.Equal(t, 3, strings.Count(log.String(), "receiver is stuck"))
		require.Equal(t, 2, strings.Count(log.String(), "receiver recovered"))
	})

	inBubble(t, "a global subscriber that drops the newest never delays anybody", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		monitor, idle := listen(t, b, "monitor", 3, DropNewest), listen(t, b, "idle", 0, DropNewest)
		all := listen(t, b, "storage", 99, Wait)
		runBroker(t, b)
		began := time.Now()
		publish(t, b, notes("u", P1, series("", 50)...)...)
		synctest.Wait()
		require.Len(t, poll(all), 50)
		require.Equal(t, []string{"1", "2", "3"}, ids(poll(monitor)))
		require.Empty(t, idle)
		require.Equal(t, ReceiverStats{ID: "monitor", Global: true, Handed: 3, Dropped: 47}, receiverStats(t, b, "monitor"))
		require.Equal(t, ReceiverStats{ID: "idle", Global: true, Dropped: 50}, receiverStats(t, b, "idle"))
		publish(t, b, note("x", "u", P1))
		synctest.Wait()
		require.Equal(t, []string{"x"}, ids(poll(monitor)))
		require.Zero(t, time.Since(began))
	})

	inBubble(t, "a global subscriber that is waited for has one budget for all lanes", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "storage", 2, Wait)
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		publish(t, b, notes("u", P2, "4", "5")...)
		pass(tick)
		require.Equal(t, "1", (<-all).n.ID)
		pass(100 * time.Millisecond) // which 4 waited for
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Stuck: true, Handed: 3, Dropped: 2}, receiverStats(t, b, "storage"))
		require.Equal(t, []string{"2", "3"}, ids(poll(all)))
		publish(t, b, note("6", "u", P3))
		synctest.Wait()
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Handed: 4, Dropped: 2}, receiverStats(t, b, "storage"))
	})

	inBubble(t, "a P0 does not overtake itself: it has its place at a full global subscriber", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "storage", 0, Wait)
		s := route(t, b, newStation("r", 9), "u")
		runBroker(t, b)
		publish(t, b, notes("u", P0, series("A", 3)...)...)
		for _, want := range series("A", 3) {
			synctest.Wait()
			require.Equal(t, []string{want}, ids(s.poll()), "each goes to everybody before the next does")
			require.Equal(t, want, (<-all).n.ID)
		}
	})
}

func TestGap(t *testing.T) {
	inBubble(t, "one that blocks holds up nobody, and is not called a second time meanwhile", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		release, running := make(chan struct{}), 0
		s.onGap = func() {
			running++
			require.Equal(t, 1, running)
			<-release
			running--
		}
		route(t, b, s, "u")
		all := listen(t, b, "all", 99, Wait)
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		publish(t, b, notes("u", P2, "4", "5", "6")...)
		pass(2 * time.Second)
		require.Len(t, poll(all), 6)
		require.EqualValues(t, 1, s.gaps.Load(), "P2's waits for P1's")
		require.Equal(t, strings.Fields("1 4"), ids(s.poll()))
		publish(t, b, note("7", "u", P1))
		synctest.Wait()
		require.Empty(t, s.poll(), "until everybody was told, what comes is part of the hole")
		release <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 2, s.gaps.Load())
		release <- struct{}{}
		synctest.Wait()
		publish(t, b, note("8", "u", P1))
		synctest.Wait()
		require.Equal(t, []string{"8"}, ids(s.poll()))
	})

	inBubble(t, "one that panics is logged, and the next is called all the same", func(t *testing.T) {
		var log strings.Builder
		b := newBroker(t, BrokerConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s := newStation("r", 1)
		s.onGap = func() { panic("gap of sighs") }
		route(t, b, s, "u")
		runBroker(t, b)
		for i := range int32(2) {
			publish(t, b, notes("u", P1, fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))...)
			pass(time.Second)
			require.Equal(t, i+1, s.gaps.Load())
			s.poll()
		}
		require.Equal(t, 2, strings.Count(log.String(), "gap of sighs"))
	})

	inBubble(t, "one that does not return is left behind by Run after a second", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		release := make(chan struct{})
		defer close(release)
		s.onGap = func() { <-release }
		route(t, b, s, "u")
		done := start(t.Context(), b)
		publish(t, b, notes("u", P1, "1", "2")...)
		pass(time.Second)
		require.EqualValues(t, 1, s.gaps.Load())
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()), "what was dropped before it is not its loss")
		require.NoError(t, <-done)
		require.Equal(t, time.Second, time.Since(began))
	})

	inBubble(t, "it may unregister its own receiver", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := newStation("r", 1)
		s.onGap = func() { require.NoError(t, b.Unregister("r")) }
		route(t, b, s, "u")
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2", "3")...)
		pass(time.Second)
		st := b.Stats()
		require.Empty(t, st.Receivers)
		require.EqualValues(t, 1, st.Departed.Handed)
		require.EqualValues(t, 2, st.Departed.Dropped+st.Lanes[P1].Unrouted, "3 was perhaps in time to be dropped too")
		conserved(t, b)
	})

	inBubble(t, "a Gateway's ends its sessions with ErrGap, those that come during the episode too", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 1}) // whose Run is never called
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		register := func(id string) *Session {
			s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
			require.NoError(t, err)
			return s
		}
		first := register("first")
		publish(t, b, notes("u", P1, "1", "2")...)
		pass(time.Second - 1)
		require.NoError(t, first.Err())
		pass(1)
		require.Equal(t, ErrGap, first.Err())
		second := register("second")
		synctest.Wait()
		require.NoError(t, second.Err(), "nothing that it should have had is missing yet")
		publish(t, b, note("3", "u", P1))
		synctest.Wait()
		require.Equal(t, ErrGap, second.Err())
		require.EqualValues(t, 2, g.Stats().Ended.Gap)
		conserved(t, b, g)
	})
}

func TestBrokerShutdown(t *testing.T) {
	inBubble(t, "from its beginning on everything new is ErrClosed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 0), "u")
		done := start(t.Context(), b)
		publish(t, b, notes("u", P1, "1", "2")...)
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- b.Shutdown(context.Background()) }()
		refuses := func() {
			require.ErrorIs(t, b.Publish(note("x", "u", P1)), ErrClosed)
			require.ErrorIs(t, b.PublishWait(t.Context(), note("x", "u", P1)), ErrClosed)
			require.ErrorIs(t, b.RegisterReceiver(newStation("s", 1)), ErrClosed)
			require.ErrorIs(t, b.RegisterGateway(newGateway(t, "g", GatewayConfig{})), ErrClosed)
			require.ErrorIs(t, b.SubscribeGlobal("all", make(chan *Message), Wait), ErrClosed)
		}
		synctest.Wait()
		refuses()
		require.Equal(t, "1", (<-s.in[P1]).n.ID)
		require.Equal(t, "2", (<-s.in[P1]).n.ID)
		require.NoError(t, <-down)
		require.NoError(t, <-done)
		refuses()
		require.NoError(t, b.Subscribe("v", "r"), "tables may change")
		require.NoError(t, b.Unregister("r"))
		accounted(t, b, 6)
		conserved(t, b)
	})

	inBubble(t, "a receiver that pauses for longer than StallTimeout and goes on loses nothing", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publish(t, b, notes("u", P1, series("", 10)...)...)
		synctest.Wait()
		var got []string
		time.AfterFunc(3*time.Second, func() {
			for range 10 {
				got = append(got, (<-s.in[P1]).n.ID)
				pass(2 * time.Second)
			}
		})
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()))
		require.Equal(t, 19*time.Second, time.Since(began), "until the ninth was taken and the tenth had room")
		pass(time.Minute)
		require.Equal(t, series("", 10), got)
		require.Equal(t, judgement{handed: 10}, judged(t, b, s))
	})

	inBubble(t, "one that was stuck when it began is waited for as well", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(5)})
		s := route(t, b, newStation("r", 1), "u")
		blocked := route(t, b, newStation("q", 0), "v") // keeps the dispatcher busy meanwhile
		runBroker(t, b)
		publish(t, b, notes("u", P1, "1", "2")...)
		pass(time.Second)
		publish(t, b, note("3", "v", P2))
		synctest.Wait()
		publish(t, b, notes("u", P1, "4", "5")...)
		time.AfterFunc(100*time.Millisecond, func() { <-blocked.in[P2] })
		time.AfterFunc(10*time.Second, func() { s.consumeFor(t, 3) })
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, judgement{gaps: 1, handed: 3, dropped: 1}, judged(t, b, s))
	})

	inBubble(t, "with a receiver that takes nothing it is back at the deadline and Stats tells what was left", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 2), "u")
		done := start(t.Context(), b)
		publish(t, b, notes("u", P1, series("", 10)...)...)
		publish(t, b, notes("u", P3, series("x", 5)...)...)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		require.Equal(t, context.DeadlineExceeded, b.Shutdown(ctx))
		require.Equal(t, 5*time.Second, time.Since(began))
		st := b.Stats()
		require.EqualValues(t, 7, st.Lanes[P1].Discarded)
		require.EqualValues(t, 5, st.Lanes[P3].Discarded)
		require.Zero(t, st.Lanes[P1].Queued)
		require.Equal(t, judgement{handed: 2, dropped: 1}, judged(t, b, s))
		require.NoError(t, <-done)
		conserved(t, b)
	})

	t.Run("during publishing, what was accepted is delivered or counted", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for name, stop := range map[string]func(b *Broker, cancel func()) error{
				"a drain":            func(b *Broker, _ func()) error { return b.Shutdown(context.Background()) },
				"an ended ctx":       func(b *Broker, _ func()) error { return b.Shutdown(canceled) },
				"Run's ctx ends":     func(_ *Broker, cancel func()) error { cancel(); return nil },
				"two at once":        func(b *Broker, _ func()) error { go b.Shutdown(canceled); return b.Shutdown(context.Background()) },
				"a drain, then ends": func(b *Broker, cancel func()) error { go cancel(); return b.Shutdown(context.Background()) },
			} {
				for range sized(15, 5) {
					b := newBroker(t, BrokerConfig{QueueCapacity: lanes(32), DedupSize: 100_000})
					delivered := make(map[string]bool)
					stopConsumer := route(t, b, newStation("r", 2), "u").consume(func(m *Message) {
						if delivered[m.n.ID] {
							t.Errorf("%s came twice", m.n.ID)
						}
						delivered[m.n.ID] = true
					})
					ctx, cancel := context.WithCancel(context.Background())
					done := start(ctx, b)
					var calls atomic.Uint64
					accepted := make([][]string, 32)
					var wg sync.WaitGroup
					for k := range 32 {
						wg.Go(func() {
							for i := 0; ; i++ {
								id := fmt.Sprint(k, "-", i)
								var err error
								if calls.Add(1); k%2 == 0 {
									err = b.Publish(note(id, "u", Priority(i%NumPriorities)))
								} else {
									err = b.PublishWait(context.Background(), note(id, "u", Priority(i%NumPriorities)))
								}
								switch {
								case err == nil:
									accepted[k] = append(accepted[k], id)
								case strings.Contains(err.Error(), ErrClosed.Error()):
									return
								case k%2 == 1:
									t.Error(err)
								default:
									runtime.Gosched()
								}
							}
						})
					}
					eventually(t, "some hundred are delivered", func() bool {
						return b.Stats().Receivers[0].Handed > 300
					})
					err := stop(b, cancel)
					finished(t, "publishers", &wg)
					ran := <-done
					cancel()
					stopConsumer()
					st := b.Stats()
					lost := st.Receivers[0].Dropped
					for _, l := range st.Lanes {
						lost += l.Discarded
						require.Zero(t, l.Queued)
					}
					all := slices.Concat(accepted...)
					missing := 0
					for _, id := range all {
						if !delivered[id] {
							missing++
						}
					}
					require.Equal(t, len(all), len(delivered)+missing, "what came was accepted")
					require.EqualValues(t, lost, missing, "accepted = delivered + counted, after %s", name)
					if name == "a drain" {
						require.NoError(t, err)
						require.NoError(t, ran)
						require.Zero(t, st.Receivers[0].Dropped)
					}
					accounted(t, b, calls.Load())
					conserved(t, b)
				}
			}
		})
	})
}

// consumeFor takes n messages, waiting for each.
func (s *station) consumeFor(t testing.TB, n int) {
	for range n {
		select {
		case <-s.in[P0]:
		case <-s.in[P1]:
		case <-s.in[P2]:
		case <-s.in[P3]:
		case <-time.After(time.Hour):
			t.Error("nothing came for an hour")
		}
	}
}

func TestGlobalSubscriberCallsBack(t *testing.T) {
	inBubble(t, "its consumer may publish, register and unregister, itself at last", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "self", 0, Wait)
		runBroker(t, b)
		publish(t, b, notes("u", P1, series("", 100)...)...)
		for i := range 50 {
			m := <-all
			id := fmt.Sprint("again-", i)
			publish(t, b, note(id, m.n.UserID, Priority(i%NumPriorities)))
			require.NoError(t, b.PublishWait(t.Context(), note(id, m.n.UserID, P1)))
			route(t, b, newStation(id, 1), "u", "v")
			require.NoError(t, b.Unsubscribe("v", id))
			require.NoError(t, b.SubscribeGlobal(id, make(chan *Message, 1), DropNewest))
			b.Stats()
			require.NoError(t, b.UnsubscribeGlobal(id))
			require.NoError(t, b.Unregister(id))
		}
		require.NoError(t, b.UnsubscribeGlobal("self"))
		close(all)
		synctest.Wait()
		require.Zero(t, b.Stats().Users)
		require.Zero(t, b.Stats().Lanes[P1].Queued)
		conserved(t, b)
	})
}

// What each goroutine does follows from the seed; when, from the scheduler, so
// that a failure may take a few runs to come again.
func TestChaos(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		s := seed(t)
		b := newBroker(t, BrokerConfig{
			DedupSize: 500, QueueCapacity: [NumPriorities]int{8, 64, 32, 1},
			RoundQuota: [NumPriorities]int{P0: 5, P1: 7, P2: 3, P3: -1}, StallTimeout: 2 * time.Millisecond,
		})
		g := newGateway(t, "gateway", GatewayConfig{Pushers: 2, InboxCapacity: 8, BatchSize: 5, OutboxMessages: 20})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		runGateway(t, g)

		const workers, users = 8, 5
		var calls, taken, pushed atomic.Uint64
		steps := sized(4_000, 800)
		var wg sync.WaitGroup
		for k := range workers {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(s, uint64(k)))
				anyUser := func() string { return fmt.Sprint("user", r.IntN(users)) }
				mine := fmt.Sprint("receiver", k)
				var station *station
				var stop func()
				for i := range steps {
					switch r.IntN(20) {
					case 0: // a receiver of our own comes, or goes and closes its channels
						if station == nil {
							station = newStation(mine, r.IntN(4))
							if err := b.RegisterReceiver(station); err != nil {
								t.Error(err)
							}
							lazy := r.IntN(3) == 0
							stop = station.consume(func(*Message) {
								taken.Add(1)
								if lazy {
									<-time.After(time.Millisecond)
								}
							})
						} else {
							if err := b.Unregister(mine); err != nil {
								t.Error(err)
							}
							stop()
							for _, ch := range station.in {
								close(ch)
							}
							station = nil
						}
					case 1:
						_ = b.Subscribe(anyUser(), fmt.Sprint("receiver", r.IntN(workers)))
					case 2:
						_ = b.Unsubscribe(anyUser(), fmt.Sprint("receiver", r.IntN(workers)))
					case 3:
						id := fmt.Sprint("global", r.IntN(3))
						ch := make(chan *Message, r.IntN(3))
						if b.SubscribeGlobal(id, ch, Overflow(r.IntN(2))) == nil {
							for range r.IntN(5) {
								runtime.Gosched()
							}
							taken.Add(uint64(len(poll(ch))))
							if err := b.UnsubscribeGlobal(id); err != nil {
								t.Error(err)
							}
							close(ch)
							for range ch {
								taken.Add(1)
							}
						}
					case 4:
						session := fmt.Sprint("session", r.IntN(users))
						_, err := g.RegisterSession(SessionConfig{ID: session, UserID: anyUser(), Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
							pushed.Add(uint64(len(batch)))
							return nil
						})})
						if err != nil {
							_ = g.UnregisterSession(session)
						}
					case 5:
						b.Stats()
						g.Stats()
					case 6:
						calls.Add(1)
						_ = b.Publish(note("", anyUser(), P1))
					case 7:
						calls.Add(1)
						ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(200))*time.Microsecond)
						_ = b.PublishWait(ctx, note(fmt.Sprint(k, "-", i), anyUser(), Priority(r.IntN(NumPriorities))))
						cancel()
					case 8:
						calls.Add(1)
						_ = b.Publish(notice(fmt.Sprint("all", k, "-", i), Priority(r.IntN(NumPriorities))))
					default: // now and then what somebody else has published
						calls.Add(1)
						_ = b.Publish(note(fmt.Sprint(r.IntN(workers), "-", max(0, i-r.IntN(10))), anyUser(), Priority(r.IntN(NumPriorities))))
					}
				}
				if station != nil {
					if err := b.Unregister(mine); err != nil {
						t.Error(err)
					}
					stop()
				}
			})
		}
		finished(t, "chaos", &wg)
		drain(t, b)
		drain(t, g)

		st, gs := b.Stats(), g.Stats()
		accounted(t, b, calls.Load())
		conserved(t, b, g)
		var received, sunk uint64
		for _, l := range gs.Lanes {
			received += l.Received + l.Discarded
			sunk += l.Taken
		}
		require.Empty(t, st.Receivers)
		require.Equal(t, st.Departed.Handed, taken.Load()+received, "handed to those that left = what they took")
		require.Equal(t, sunk, pushed.Load(), "taken = what the sinks saw")
		require.Zero(t, b.users.Size())
	})
}

// at lets f run the next time that p is passed, in the middle of what races it.
func at(t testing.TB, p point, f func()) {
	t.Helper()
	var once sync.Once
	pause = func(passed point) {
		if passed == p {
			once.Do(f)
		}
	}
	t.Cleanup(func() { pause = nil })
}

func TestInTheMiddle(t *testing.T) {
	inBubble(t, "a publish between the dispatcher's saying that it sleeps and its second look is delivered", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r := route(t, b, newStation("r", 9), "u")
		at(t, parking, func() {
			b.mu.Lock() // Publish without the ring: as if that came a moment before
			defer b.mu.Unlock()
			_, err := b.tryAccept(newMessage(note("1", "u", P2), TypeOrderFilled, now()), b.seen.hash("1"))
			require.NoError(t, err)
		})
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"1"}, ids(r.poll()))
	})
	inBubble(t, "a lane that runs empty between a waiter's look and its joining strands nobody", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: [NumPriorities]int{1, 1, 1, 1}})
		r := route(t, b, newStation("r", 9), "u")
		publish(t, b, note("1", "u", P1))
		at(t, joining, func() {
			runBroker(t, b)
			for b.lanes[P1].len() > 0 {
				runtime.Gosched()
			}
		})
		require.NoError(t, b.PublishWait(t.Context(), note("2", "u", P1)))
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, ids(r.poll()))
	})
	inBubble(t, "what comes between Shutdown's refusal and its drain is refused, and the drain is whole", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r := route(t, b, newStation("r", 9), "u")
		at(t, closing, func() {
			require.ErrorIs(t, b.Publish(note("2", "u", P3)), ErrClosed)
			require.ErrorIs(t, b.PublishWait(t.Context(), note("2", "u", P3)), ErrClosed)
		})
		runBroker(t, b)
		publish(t, b, note("1", "u", P3))
		synctest.Wait()
		drain(t, b)
		require.Equal(t, []string{"1"}, ids(r.poll()))
		accounted(t, b, 3)
	})
}
