package notification

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
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

// message returns what Publish makes of a notification.
func message(id, userID string, p Priority) *Message { return NewMessage(note(id, userID, p)) }

// An admission by itself, without a dispatcher: the test takes the messages off
// the lanes.
func TestAdmissionAlone(t *testing.T) {
	t.Run("exactly as many fit as the capacity says, and come out in order, again and again", func(t *testing.T) {
		for _, capacity := range []int{1, 3, 10_000} {
			a := newAdmission(10_000, lanes(capacity))
			for round := range 3 {
				for p := P0; p <= P3; p++ {
					want := series(fmt.Sprintf("%d-%s-", round, p), capacity)
					for _, id := range want {
						require.NoError(t, a.admit(message(id, "u", p)))
					}
					require.ErrorIs(t, a.admit(message("more", "u", p)), ErrQueueFull)
					require.Equal(t, capacity, admitted(a).Lanes[p].Queued)
					for _, id := range want {
						require.Equal(t, id, a.pop(p).n.ID)
					}
					require.Nil(t, a.pop(p))
				}
			}
		}
	})

	t.Run("a try that finds no room changes nothing", func(t *testing.T) {
		a := newAdmission(2, lanes(1))
		require.NoError(t, a.admit(message("1", "u", P1)))
		m := message("2", "u", P1)
		done, err := a.tryAdmit(m, a.seen.hash("2"), m.entered)
		require.False(t, done)
		require.NoError(t, err)
		s := admitted(a)
		require.Equal(t, BrokerLane{Queued: 1, Published: 1}, s.Lanes[P1])
		require.False(t, a.seen.has(a.seen.hash("2"), "2"))
	})

	inBubble(t, "the place that pop frees is a waiter's before pop has returned", func(t *testing.T) {
		a := newAdmission(9, lanes(1))
		require.NoError(t, a.admit(message("1", "u", P1)))
		waiter := make(chan error, 1)
		go func() { waiter <- a.admitWait(t.Context(), message("2", "u", P1)) }()
		synctest.Wait()
		require.Equal(t, "1", a.pop(P1).n.ID)
		require.Equal(t, 1, a.lanes[P1].len())
		require.Zero(t, a.waiting[P1].Load())
		require.ErrorIs(t, a.admit(message("3", "u", P1)), ErrQueueFull)
		require.NoError(t, <-waiter)
		require.Equal(t, "2", a.pop(P1).n.ID)
	})

	inBubble(t, "room that nobody was told of is a waiter's, and not that of the next Publish", func(t *testing.T) {
		a := newAdmission(9, lanes(1))
		require.NoError(t, a.admit(message("1", "u", P1)))
		waiter := make(chan error, 1)
		go func() { waiter <- a.admitWait(t.Context(), message("2", "u", P1)) }()
		synctest.Wait()
		a.lanes[P1].pop()
		require.ErrorIs(t, a.admit(message("3", "u", P1)), ErrQueueFull)
		require.NoError(t, <-waiter)
		require.Equal(t, "2", a.pop(P1).n.ID)
	})

	inBubble(t, "close answers everybody who waits, and what was accepted stays", func(t *testing.T) {
		a := newAdmission(9, lanes(1))
		waiters := make(chan error, 2*NumPriorities)
		for p := P0; p <= P3; p++ {
			require.NoError(t, a.admit(message(p.String(), "u", p)))
			for _, id := range series(p.String()+"-", 2) {
				go func() { waiters <- a.admitWait(t.Context(), message(id, "u", p)) }()
			}
		}
		synctest.Wait()
		require.Empty(t, waiters)
		require.False(t, a.empty())
		a.close()
		a.close()
		for range 2 * NumPriorities {
			require.ErrorIs(t, <-waiters, ErrClosed)
		}
		require.ErrorIs(t, a.admit(message("P0", "u", P0)), ErrClosed, "not even a repeat")
		require.ErrorIs(t, a.admitWait(t.Context(), message("P0", "u", P0)), ErrClosed)
		require.EqualValues(t, 2*NumPriorities+2, admitted(a).RefusedClosed)
		for p := P0; p <= P3; p++ {
			require.False(t, a.empty())
			require.Equal(t, p.String(), a.pop(p).n.ID)
		}
		require.True(t, a.empty())
	})

	inBubble(t, "the span of the window is the age of the oldest ID, from the time it was accepted", func(t *testing.T) {
		a := newAdmission(2, lanes(1))
		require.Zero(t, admitted(a).DedupSpan)
		require.NoError(t, a.admit(message("1", "u", P1)))
		waiter := make(chan error, 1)
		go func() { waiter <- a.admitWait(t.Context(), message("2", "u", P1)) }()
		pass(time.Second)
		require.Equal(t, time.Second, admitted(a).DedupSpan)
		a.pop(P1) // 2 has waited for a second, and is accepted now
		require.NoError(t, <-waiter)
		a.pop(P1)
		pass(time.Second)
		require.Equal(t, 2*time.Second, admitted(a).DedupSpan)
		require.NoError(t, a.admit(message("3", "u", P1)))
		require.Equal(t, time.Second, admitted(a).DedupSpan, "1 has left the window")
	})
}

// admitted returns what an admission counts.
func admitted(a *admission) (s BrokerStats) {
	a.stats(&s)
	return s
}

// A naive admission: lists that are searched from end to end.
type admissionModel struct {
	size     int
	capacity int
	window   []string // oldest first
	lanes    [NumPriorities][]string
	waiting  [NumPriorities][]string
}

func (a *admissionModel) try(id string, p Priority) (done bool) {
	if slices.Contains(a.window, id) {
		return true
	}
	if len(a.lanes[p]) == a.capacity {
		return false
	}
	a.lanes[p] = append(a.lanes[p], id)
	if a.window = append(a.window, id); len(a.window) > a.size {
		a.window = a.window[1:]
	}
	return true
}

func (a *admissionModel) admit(id string, p Priority) error {
	if slices.Contains(a.window, id) {
		return nil
	}
	a.serve(p)
	if len(a.waiting[p]) > 0 || !a.try(id, p) {
		return ErrQueueFull
	}
	return nil
}

func (a *admissionModel) serve(p Priority) {
	for len(a.waiting[p]) > 0 && a.try(a.waiting[p][0], p) {
		a.waiting[p] = a.waiting[p][1:]
	}
}

func (a *admissionModel) pop(p Priority) (id string) {
	if len(a.lanes[p]) > 0 {
		id, a.lanes[p] = a.lanes[p][0], a.lanes[p][1:]
	}
	a.serve(p)
	return id
}

func TestAdmissionModel(t *testing.T) {
	for _, size := range []int{1, 3, 20} {
		inBubble(t, fmt.Sprintf("it does what lists that are searched would do, with a window of %d", size), func(t *testing.T) {
			const capacity = 3
			r := rand.New(rand.NewPCG(seed(t), 0))
			a, model := newAdmission(size, lanes(capacity)), &admissionModel{size: size, capacity: capacity}
			calls, answered := 0, make(chan error, 20_000)
			waiting := func() (n int) {
				for p := range model.waiting {
					n += len(model.waiting[p])
				}
				return n
			}
			for range sized(10_000, 2_000) {
				id, p := strconv.Itoa(r.IntN(30)), Priority(r.IntN(NumPriorities))
				switch r.IntN(4) {
				case 0:
					calls++
					require.ErrorIs(t, a.admit(message(id, "u", p)), model.admit(id, p))
				case 1:
					if waiting() > 10 {
						break
					}
					calls++
					if model.admit(id, p) != nil {
						model.waiting[p] = append(model.waiting[p], id)
					}
					go func() { answered <- a.admitWait(t.Context(), message(id, "u", p)) }()
					synctest.Wait()
				default:
					want := model.pop(p)
					if m := a.pop(p); m == nil {
						require.Empty(t, want)
					} else {
						require.Equal(t, want, m.n.ID)
					}
				}
				for p := range model.waiting {
					require.EqualValues(t, len(model.waiting[p]), a.waiting[p].Load())
					require.Equal(t, len(model.lanes[p]), a.lanes[p].len())
				}
			}
			refused := waiting()
			a.close()
			synctest.Wait()
			closed := 0
			for len(answered) > 0 {
				if err := <-answered; err != nil {
					require.ErrorIs(t, err, ErrClosed)
					closed++
				}
			}
			require.Equal(t, refused, closed)
			accountedIn(t, admitted(a), uint64(calls))
		})
	}
}

func TestPublish(t *testing.T) {
	inBubble(t, "a retry after a full queue is accepted, and delivered once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		all := listen(t, b, "all", 9, Wait)
		publishTo(t, b, "u", P2, "1")
		err := b.Publish(note("2", "u", P2))
		require.ErrorIs(t, err, ErrQueueFull)
		require.ErrorContains(t, err, "P2")
		require.ErrorIs(t, b.Publish(note("2", "u", P2)), ErrQueueFull)
		runBroker(t, b)
		synctest.Wait()
		publishTo(t, b, "u", P2, "2")
		synctest.Wait()
		publishTo(t, b, "u", P2, "2")
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, ids(poll(all)))
		accounted(t, b, 5)
		require.EqualValues(t, 2, b.Stats().Lanes[P2].Rejected)
		require.EqualValues(t, 1, b.Stats().Deduplicated)
	})

	inBubble(t, "one ID in all four priorities is one delivery", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "all", 9, Wait)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, "x")
			publishTo(t, b, "v", p, "x")
		}
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"x"}, ids(poll(all)))
		require.EqualValues(t, 7, b.Stats().Deduplicated)
	})

	t.Run("it looks for what is invalid, then closed, then a duplicate, then full", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		publishTo(t, b, "u", P1, "x")
		publishTo(t, b, "u", P1, "x") // a duplicate, though the lane is full
		require.ErrorIs(t, b.Publish(note("y", "u", P1)), ErrQueueFull)
		require.ErrorIs(t, b.Shutdown(t.Context()), ErrClosed)
		require.ErrorIs(t, b.Publish(note("x", "u", P1)), ErrClosed)
		require.ErrorIs(t, b.Publish(note("", "u", P1)), ErrInvalid)
		require.ErrorIs(t, b.PublishWait(t.Context(), note("", "u", P1)), ErrInvalid)
		accounted(t, b, 6)
		conserved(t, b)
	})

	inBubble(t, "a priority and payload that the caller changes after Publish change nothing", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 9), "u")
		n := note("x", "u", P1)
		require.NoError(t, b.Publish(n))
		n.Priority, n.Payload = 200, nil
		runBroker(t, b)
		synctest.Wait()
		require.Equal(t, []string{"x"}, ids(s.pollLane(P1)))
		conserved(t, b)
	})
}

func TestPublishInvalid(t *testing.T) {
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
			for _, call := range []func(*Notification) error{
				b.Publish,
				func(n *Notification) error { return b.PublishWait(t.Context(), n) },
			} {
				err := call(n)
				require.ErrorIs(t, err, ErrInvalid, name)
				require.ErrorContains(t, err, name)
			}
			s := b.Stats()
			require.EqualValues(t, 2, s.Invalid)
			for _, l := range s.Lanes {
				require.Equal(t, BrokerLane{Capacity: 1}, counters(l))
			}
			require.Zero(t, s.DedupSpan)
			publishTo(t, b, "u", P1, "x")
			require.EqualValues(t, 1, b.Stats().Lanes[P1].Published, "the ID was not remembered")
		}
	})
}

func TestDedupWindow(t *testing.T) {
	t.Run("an ID is forgotten when DedupSize later ones were accepted, and not before", func(t *testing.T) {
		for _, size := range []int{1, 2, 3, 100} {
			b := newBroker(t, BrokerConfig{DedupSize: size})
			publishTo(t, b, "u", P1, series("", size+1)...)
			publishTo(t, b, "u", P1, "2")
			require.EqualValues(t, 1, b.Stats().Deduplicated, "2 of %d", size)
			publishTo(t, b, "u", P1, "1")
			require.EqualValues(t, 1, b.Stats().Deduplicated, "1 of %d", size)
			require.EqualValues(t, size+2, b.Stats().Lanes[P1].Published)
		}
	})

	t.Run("a repeat does not keep an ID in the window", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 2})
		publishTo(t, b, "u", P1, "A", "B", "A", "C", "B")
		require.EqualValues(t, 2, b.Stats().Deduplicated, "the second A and the second B")
		publishTo(t, b, "u", P1, "A")
		require.EqualValues(t, 4, b.Stats().Lanes[P1].Published, "A left when C came")
	})

	t.Run("a refused ID takes nobody's place in the window", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 2, QueueCapacity: [NumPriorities]int{P1: 2, P2: 5}})
		publishTo(t, b, "u", P1, "A", "B")
		for _, id := range series("x", 5) {
			require.ErrorIs(t, b.Publish(note(id, "u", P1)), ErrQueueFull)
		}
		publishTo(t, b, "u", P2, "A", "B")
		require.EqualValues(t, 2, b.Stats().Deduplicated)
	})
}

// waitFor starts a PublishWait that will have to wait, and returns its result.
func waitFor(ctx context.Context, b *Broker, n *Notification) <-chan error {
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
			publishTo(t, b, "u", P1, series("early", capacity)...)
			want := series("early", capacity)
			var results []<-chan error
			for _, id := range series("wait", 50) {
				results = append(results, waitFor(t.Context(), b, note(id, "u", P1)))
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

	inBubble(t, "one that gives up in the middle holds up nobody behind it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		all := listen(t, b, "all", 9, Wait)
		publishTo(t, b, "u", P1, "1")
		first := waitFor(t.Context(), b, note("2", "u", P1))
		ctx, cancel := context.WithCancel(t.Context())
		second := waitFor(ctx, b, note("3", "u", P1))
		third := waitFor(t.Context(), b, note("4", "u", P1))
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
		publishTo(t, b, "u", P1, "1")
		first, second := waitFor(t.Context(), b, note("x", "u", P1)), waitFor(t.Context(), b, note("x", "u", P1))
		publishTo(t, b, "u", P2, "x")
		require.EqualValues(t, 1, b.Stats().Lanes[P2].Published)
		runBroker(t, b)
		require.NoError(t, <-first)
		require.NoError(t, <-second)
		synctest.Wait()
		require.Equal(t, []string{"1", "x"}, ids(poll(all)))
		require.EqualValues(t, 2, b.Stats().Deduplicated)
		accounted(t, b, 4)
	})

	inBubble(t, "a lane that runs empty between a waiter's look and its joining strands nobody", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		r := route(t, b, newStation("r", 9), "u")
		publishTo(t, b, "u", P1, "1")
		inTheMiddle(t, joining, func() {
			runBroker(t, b)
			for b.admission.lanes[P1].len() > 0 {
				runtime.Gosched()
			}
		})
		require.NoError(t, b.PublishWait(t.Context(), note("2", "u", P1)))
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, ids(r.poll()))
	})
}

func TestPublishWaitEnds(t *testing.T) {
	inBubble(t, "the end of its ctx is its error, counted once, and nothing is remembered", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
		publishTo(t, b, "u", P1, "1")
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
					results = append(results, waitFor(t.Context(), b, note(p.String()+id, "u", p)))
				}
			}
			stop(b, cancel)
			synctest.Wait()
			refused := 0
			for _, r := range results {
				if err := <-r; err != nil { // and each has one
					require.ErrorIs(t, err, ErrClosed)
					refused++
				}
			}
			require.Equal(t, 30, refused, "all but those that were queued and those at the head of a lane, three each")
			require.EqualValues(t, refused, b.Stats().RefusedClosed)
			for running := true; running; {
				select {
				case <-all:
				case <-done:
					running = false
				}
			}
			accounted(t, b, 36)
			conserved(t, b)
		})
	}

	inBubble(t, "what comes between Shutdown's refusal and its drain is refused, and the drain misses nothing", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r := route(t, b, newStation("r", 9), "u")
		inTheMiddle(t, closing, func() {
			require.ErrorIs(t, b.Publish(note("2", "u", P3)), ErrClosed)
			require.ErrorIs(t, b.PublishWait(t.Context(), note("2", "u", P3)), ErrClosed)
		})
		runBroker(t, b)
		publishTo(t, b, "u", P3, "1")
		synctest.Wait()
		drain(t, b)
		require.Equal(t, []string{"1"}, ids(r.poll()))
		accounted(t, b, 3)
	})
}

// spun keeps the compiler from leaving out what only takes time.
var spun atomic.Int64

func TestAdmissionRaces(t *testing.T) {
	t.Run("of one ID published 64 times while its lane opens, one is accepted if any is", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for range sized(100, 30) {
				b := newBroker(t, BrokerConfig{DedupSize: 10, QueueCapacity: lanes(1)})
				all := listen(t, b, "all", 200, Wait)
				publishTo(t, b, "u", P1, "filler")
				var accepted atomic.Int32
				var wg sync.WaitGroup
				begin := make(chan struct{})
				for range 64 {
					wg.Go(func() {
						<-begin
						if err := b.Publish(note("x", "u", P1)); err == nil {
							accepted.Add(1)
						} else if err.Error() != b.admission.full[P1].Error() {
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
				eventually(t, "Run has begun", b.life.running)
				drain(t, b)
				require.NoError(t, <-done)
				require.Equal(t, []string{"filler", "x"}, ids(poll(all)))
				accounted(t, b, calls)
				conserved(t, b)
			}
		})
	})

	t.Run("a lane with one less than fits on its way is never full", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			const capacity, publishers = 4, 8
			each := sized(5_000, 1_000)
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(capacity), StallTimeout: time.Hour}) // a consumer without a CPU is not stuck
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

	t.Run("a PublishWait served as its ctx ends is in, one that failed is not", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			const publishers = 8
			each := sized(3_000, 500)
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(2), DedupSize: publishers * each, StallTimeout: time.Hour})
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

	t.Run("a PublishWait as its lane runs empty is served", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
			runBroker(t, b)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			never := time.AfterFunc(5*time.Minute, cancel)
			defer never.Stop()
			r := rand.New(rand.NewPCG(seed(t), 0))
			for i := range sized(1_000_000, 60_000) / 3 { // one publisher: no other call makes up for it
				never.Reset(5 * time.Minute) // of this round: how long all of them take is the machine's
				if err := b.PublishWait(ctx, note(strconv.Itoa(i), "u", P1)); err != nil {
					t.Fatalf("round %d: nobody served it: %v", i, err)
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

func TestPublishBatch(t *testing.T) {
	// batch returns a note to "u" for each ID.
	batch := func(p Priority, ids ...string) (ns []*Notification) {
		for _, id := range ids {
			ns = append(ns, note(id, "u", p))
		}
		return ns
	}
	inBubble(t, "it is accepted whole and in its order, a repeat as if it were new", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1000), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "m7")
		ids7 := series("m", 200)
		n, err := b.PublishBatch(batch(P1, ids7...))
		require.NoError(t, err)
		require.Equal(t, 200, n)
		synctest.Wait()
		want := append([]string{"m7"}, slices.DeleteFunc(ids7, func(id string) bool { return id == "m7" })...)
		require.Equal(t, want, ids(s.pollLane(P1)))
		accounted(t, b, 201)
		conserved(t, b)
	})
	for _, row := range []struct {
		name string
		fill int // of a lane of 100
		bad  int // the index of one that is not valid; -1: none
		want int
		err  error
	}{
		{"an empty batch is accepted", 0, -1, 0, nil},
		{"a full lane ends it, and the rest is untouched", 0, -1, 100, ErrQueueFull},
		{"one that is not valid ends it", 0, 70, 70, ErrInvalid},
		{"of two reasons the first in the batch counts", 50, 70, 50, ErrQueueFull},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(100)})
			publishTo(t, b, "u", P2, series("before", row.fill)...)
			var ns []*Notification
			if row.err != nil {
				ns = batch(P2, series("m", 150)...)
			}
			if row.bad >= 0 {
				ns[row.bad].Priority = 9
			}
			n, err := b.PublishBatch(ns)
			require.Equal(t, row.want, n)
			if row.err == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, row.err)
			accounted(t, b, uint64(row.fill+row.want+1))
			st := b.Stats()
			require.Equal(t, uint64(row.fill+row.want), st.Lanes[P2].Published)
			require.Equal(t, errors.Is(row.err, ErrInvalid), st.Invalid == 1)

			n, err = b.PublishBatch(ns[row.want:]) // the one that was refused is refused again, and was not remembered
			require.Zero(t, n)
			require.ErrorIs(t, err, row.err)
		})
	}
	t.Run("after Shutdown has begun nothing is accepted", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		drain(t, b)
		n, err := b.PublishBatch(batch(P0, "a", "b"))
		require.Zero(t, n)
		require.ErrorIs(t, err, ErrClosed)
		accounted(t, b, 1)
	})
	t.Run("batches of many publishers are accepted in the order of each", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			s := route(t, b, newStation("r", 100_000), "u")
			runBroker(t, b)
			var publishers sync.WaitGroup
			for k := range 4 {
				publishers.Go(func() {
					for i := range 20 {
						n, err := b.PublishBatch(batch(P1, series(fmt.Sprintf("%d-%d-", k, i), 100)...))
						if n != 100 || err != nil {
							t.Errorf("%d accepted: %v", n, err)
						}
					}
				})
			}
			publishers.Wait()
			drain(t, b)
			var got [4][]string
			for _, id := range ids(s.pollLane(P1)) {
				got[id[0]-'0'] = append(got[id[0]-'0'], id)
			}
			for k := range got {
				var want []string
				for i := range 20 {
					want = append(want, series(fmt.Sprintf("%d-%d-", k, i), 100)...)
				}
				require.Equal(t, want, got[k])
			}
			conserved(t, b)
		})
	})
}
