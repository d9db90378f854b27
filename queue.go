package notification

import "sync/atomic"

// A queue is one lane: a bounded ring of Messages with one consumer that takes
// no lock, and producers whom a mutex of their owner admits one at a time.
//
// It is Lamport's single-producer single-consumer ring. The usual many-producer
// ring (Vyukov's, which xsync has) is of no use here: accepting a message must
// check the dedup window, queue and remember in one step, so the producers meet
// at a mutex anyway, and behind it the simple ring is smaller (8 bytes a slot),
// exactly bounded, and has no slot that is claimed but not yet written.
type queue struct {
	slots []*Message // immutable after newQueue; a slot belongs to the producer from head on, to the consumer up to tail

	_    [40]byte // the consumer's cache line is not the producers'
	head atomic.Uint64
	read int // owned by the consumer: head modulo the capacity

	_     [48]byte
	tail  atomic.Uint64
	write int // guarded by the owner's mutex: tail modulo the capacity
}

func newQueue(capacity int) *queue { return &queue{slots: make([]*Message, capacity)} }

// tryPush reports whether there was room. Producers call it one at a time.
func (q *queue) tryPush(m *Message) bool {
	tail := q.tail.Load()
	if tail-q.head.Load() == uint64(len(q.slots)) {
		return false
	}
	q.slots[q.write] = m
	if q.write++; q.write == len(q.slots) {
		q.write = 0
	}
	q.tail.Store(tail + 1)
	return true
}

// pop returns nil when the queue is empty. Only the consumer calls it.
func (q *queue) pop() *Message {
	head := q.head.Load()
	if head == q.tail.Load() {
		return nil
	}
	m := q.slots[q.read]
	q.slots[q.read] = nil // the ring keeps nothing alive
	if q.read++; q.read == len(q.slots) {
		q.read = 0
	}
	q.head.Store(head + 1)
	return m
}

// len is exact for the consumer and for a producer whose turn it is, a moment
// old for everybody else.
func (q *queue) len() int {
	head := q.head.Load() // before tail: the other way round could be negative
	return int(min(q.tail.Load()-head, uint64(len(q.slots))))
}
