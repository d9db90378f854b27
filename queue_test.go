package notification

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
	"weak"

	"github.com/stretchr/testify/require"
)

// A queueModel is what a queue is meant to be.
type queueModel struct {
	capacity int
	items    []*Message
}

func (m *queueModel) tryPush(x *Message) bool {
	if len(m.items) == m.capacity {
		return false
	}
	m.items = append(m.items, x)
	return true
}

func (m *queueModel) pop() *Message {
	if len(m.items) == 0 {
		return nil
	}
	x := m.items[0]
	m.items = m.items[1:]
	return x
}

// agree pushes or pops n times, in q and model alike.
func agree(t *testing.T, q *queue, model *queueModel, push bool, n int) {
	for range n {
		if push {
			m := new(Message)
			if want, got := model.tryPush(m), q.tryPush(m); got != want {
				t.Fatalf("tryPush is %t with %d of %d in it", got, len(model.items), model.capacity)
			}
		} else if want, got := model.pop(), q.pop(); got != want {
			t.Fatalf("pop is %p and not %p with %d left of %d", got, want, len(model.items), model.capacity)
		}
		if q.len() != len(model.items) {
			t.Fatalf("len is %d with %d in it", q.len(), len(model.items))
		}
	}
}

func TestQueue(t *testing.T) {
	for _, capacity := range []int{1, 3, 10_000} {
		t.Run(fmt.Sprintf("exactly %d fit, first in first out, wherever the ring begins", capacity), func(t *testing.T) {
			q, model := newQueue(capacity), &queueModel{capacity: capacity}
			for round := range 5 {
				agree(t, q, model, true, capacity+1) // the last finds it full
				agree(t, q, model, false, capacity+1)
				agree(t, q, model, true, min(round+1, capacity)) // the next round begins elsewhere
				agree(t, q, model, false, capacity)
			}
		})
		t.Run(fmt.Sprintf("a queue of %d is a slice under random operations", capacity), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed(t), 0))
			q, model := newQueue(capacity), &queueModel{capacity: capacity}
			for range 200 {
				agree(t, q, model, r.IntN(2) == 0, r.IntN(capacity+2))
			}
		})
	}

	t.Run("what was taken is not kept alive", func(t *testing.T) {
		q := newQueue(3)
		for range 5 {
			var taken [2]weak.Pointer[Message]
			for i := range taken {
				m := &Message{n: new(Notification)} // with a pointer, so that it is no part of a larger block
				taken[i] = weak.Make(m)
				require.True(t, q.tryPush(m))
			}
			for range taken {
				q.pop()
			}
			runtime.GC()
			for _, m := range taken {
				require.Nil(t, m.Value())
			}
		}
		runtime.KeepAlive(q)
	})

	t.Run("a slot is a pointer, and there are none to spare", func(t *testing.T) {
		least := uint64(math.MaxUint64) // the runtime may allocate something meanwhile
		for range 10 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			q := newQueue(10_000)
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
			runtime.KeepAlive(q)
		}
		require.Less(t, least, uint64(10_500*unsafe.Sizeof(uintptr(0))))
	})

	t.Run("the largest fits into the address space of every platform", func(t *testing.T) {
		const slot = unsafe.Sizeof(uintptr(0))
		require.LessOrEqual(t, uint64(maxQueue), uint64(1)<<31/uint64(slot))
	})

	t.Run("consumer and producers write to different cache lines", func(t *testing.T) {
		if unsafe.Sizeof(uintptr(0)) < 8 {
			t.Skip("the padding is for 64 bits")
		}
		var q queue
		require.Zero(t, unsafe.Offsetof(q.popped)%64)
		require.Zero(t, unsafe.Offsetof(q.pushed)%64)
		require.EqualValues(t, 3*64, unsafe.Sizeof(q), "a multiple of 64, so that the allocator aligns it to one")
	})

	t.Run("push and pop allocate nothing", func(t *testing.T) {
		q, m := newQueue(2), new(Message)
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			q.tryPush(m)
			q.pop()
		}))
	})
}

func TestQueueStress(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		for _, capacity := range []int{1, 3, 1000} {
			t.Run(fmt.Sprintf("capacity %d keeps each producer's order and everything", capacity), func(t *testing.T) {
				const producers = 4
				each := sized(3_000, 1_000) + 20*capacity // a small one is a change of goroutines per message
				q := newQueue(capacity)
				var mu sync.Mutex
				var wg sync.WaitGroup
				for k := range producers {
					wg.Go(func() {
						for i := 0; i < each; {
							mu.Lock()
							ok := q.tryPush(&Message{n: &Notification{UserID: strconv.Itoa(k), Timestamp: int64(i)}})
							if length := q.len(); length < 0 || length > capacity {
								t.Errorf("len is %d of %d", length, capacity)
							}
							mu.Unlock()
							if ok {
								i++
							} else {
								runtime.Gosched()
							}
						}
					})
				}
				var over atomic.Bool
				wg.Go(func() { // an onlooker, as Stats is
					for !over.Load() {
						if length := q.len(); length < 0 || length > capacity {
							t.Errorf("len is %d of %d", length, capacity)
						}
						runtime.Gosched()
					}
				})
				next := make(map[string]int64)
				for taken := 0; taken < producers*each; {
					m := q.pop()
					if m == nil {
						runtime.Gosched()
						continue
					}
					require.Equal(t, next[m.n.UserID], m.n.Timestamp, "producer %s", m.n.UserID)
					next[m.n.UserID]++
					taken++
				}
				over.Store(true)
				wg.Wait()
				require.Nil(t, q.pop())
				require.Zero(t, q.len())
			})
		}
	})

	t.Run("with one less than fits on its way a push never finds it full", func(t *testing.T) {
		noLeaks(t)
		const capacity = 3
		q := newQueue(capacity)
		var mu sync.Mutex
		room := make(chan struct{}, capacity-1)
		each := sized(20_000, 5_000)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range each {
					room <- struct{}{}
					mu.Lock()
					if !q.tryPush(new(Message)) {
						t.Error("full with at most two of three in it")
					}
					mu.Unlock()
				}
			})
		}
		for taken := 0; taken < 8*each; {
			if q.pop() == nil {
				runtime.Gosched()
				continue
			}
			taken++
			<-room
		}
		wg.Wait()
	})
}

// FuzzQueue takes each byte of ops for up to 127 pushes, or, with its highest
// bit, pops.
func FuzzQueue(f *testing.F) {
	f.Add(uint16(1), []byte{1, 0x81, 2, 0x82})
	f.Add(uint16(3), []byte{4, 0x82, 2, 0x84, 1, 1, 1, 0x81, 3})
	f.Add(uint16(300), []byte{127, 127, 127, 0xff, 127, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, capacity uint16, ops []byte) {
		n := int(capacity)%512 + 1
		q, model := newQueue(n), &queueModel{capacity: n}
		for _, op := range ops {
			agree(t, q, model, op < 0x80, int(op&0x7f))
		}
	})
}

// BenchmarkQueue passes messages through a queue, and through what one would use
// instead, a buffered channel behind the same mutex.
func BenchmarkQueue(b *testing.B) {
	const capacity = 1024
	m := new(Message)
	q, ch := newQueue(capacity), make(chan *Message, capacity)
	channelPush := func(m *Message) bool {
		select {
		case ch <- m:
			return true
		default:
			return false
		}
	}
	channelPop := func() *Message {
		select {
		case m := <-ch:
			return m
		default:
			return nil
		}
	}
	for _, c := range []struct {
		name string
		push func(m *Message) bool
		pop  func() *Message
	}{{"queue", q.tryPush, q.pop}, {"channel", channelPush, channelPop}} {
		b.Run(c.name+"/one goroutine", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.push(m)
				c.pop()
			}
		})
		b.Run(c.name+"/from one goroutine to another", func(b *testing.B) {
			b.ReportAllocs()
			var mu sync.Mutex
			var wg sync.WaitGroup
			n := b.N
			b.ResetTimer()
			wg.Go(func() {
				for taken := 0; taken < n; {
					if c.pop() == nil {
						runtime.Gosched()
					} else {
						taken++
					}
				}
			})
			for pushed := 0; pushed < n; {
				mu.Lock()
				ok := c.push(m)
				mu.Unlock()
				if ok {
					pushed++
				} else {
					runtime.Gosched()
				}
			}
			wg.Wait()
		})
	}
}
