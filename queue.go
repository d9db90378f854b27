package notification

import "github.com/puzpuzpuz/xsync/v3"

// A queue is one lane: a bounded ring of Messages with one consumer that takes
// no lock, and producers whom a mutex of their owner admits one at a time.
//
// It is xsync's single-producer single-consumer ring, and not the many-producer
// one that xsync has as well. To accept a message is to look into the dedup
// window, to queue and to remember in one step, so the producers meet at a mutex
// anyway; and behind a mutex the many-producer ring has two faults. It reports
// "full" to a producer that only lost a race for a slot, so a message would be
// refused although there is room. And a slot that a producer has claimed and not
// yet written looks empty to the consumer, with all that is queued behind it.
// This ring has neither: its producer and its consumer never wait for each other,
// and it holds exactly its capacity, in 8 bytes a slot.
//
// The ring does not know how many it holds, so the queue counts what goes in and
// what comes out. Each count has one writer, and a cache line of its own.
type queue struct {
	// immutable after newQueue
	ring     *xsync.SPSCQueueOf[*Message]
	capacity uint64

	_      [48]byte
	popped tally // written by the consumer, after it took the message

	_      [56]byte
	pushed tally // written under the owner's mutex, after the message is in the ring
	_      [56]byte
}

// maxQueue is the largest capacity that a lane may be configured with: its slots
// take 1 GiB then, and the messages in them far more.
const maxQueue = 1 << 27

// newQueue makes a queue of exactly capacity messages, 1 to maxQueue.
func newQueue(capacity int) *queue {
	return &queue{ring: xsync.NewSPSCQueueOf[*Message](capacity), capacity: uint64(capacity)}
}

// tryPush puts m in and reports true, or reports false if the queue holds its
// capacity. It never blocks. Producers call it one at a time.
func (q *queue) tryPush(m *Message) bool {
	if !q.ring.TryEnqueue(m) {
		return false
	}
	q.pushed.inc()
	return true
}

// pop takes the oldest Message out; the queue keeps nothing of it alive. It
// returns nil when the queue is empty. Only the consumer calls it.
func (q *queue) pop() *Message {
	m, ok := q.ring.TryDequeue()
	if !ok {
		return nil
	}
	q.popped.inc()
	return m
}

// len returns how many Messages the queue holds, 0 to its capacity. It counts a
// tryPush or pop as soon as that has returned; one that is going on may be counted
// or not. So to the consumer more than 0 means that pop finds something, and what
// a producer pushed is seen by whoever it wakes after that.
func (q *queue) len() int {
	popped, pushed := q.popped.value(), q.pushed.value()
	if pushed < popped { // a message was taken out before its push was counted
		return 0
	}
	return int(min(pushed-popped, q.capacity)) // more: a pop is not counted, or was counted after the first load
}
