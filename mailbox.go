package notification

import (
	"sync"
	"sync/atomic"
)

// A mailbox holds what others have for a reader, in the order in which it came,
// until the reader has gone. Its lock is a leaf.
type mailbox[T any] struct {
	mu     sync.Mutex
	list   []T  // guarded by mu
	closed bool // guarded by mu: nobody takes anything any more

	some atomic.Bool // list holds something
}

// put adds v, and reports whether it is the first there; ok is false, and nothing
// was added, once the mailbox is closed.
func (b *mailbox[T]) put(v T) (first, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false, false
	}
	b.list = append(b.list, v)
	return !b.some.Swap(true), true
}

// take moves the oldest into buf, as many as fit, and returns them.
func (b *mailbox[T]) take(buf []T) []T {
	if !b.some.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := copy(buf, b.list)
	clear(b.list[:n]) // keep nothing alive
	if b.list = b.list[n:]; len(b.list) == 0 {
		b.list = nil
		b.some.Store(false)
	}
	return buf[:n]
}

// drop empties the mailbox and returns how many that were. With last it is closed.
func (b *mailbox[T]) drop(last bool) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, b.list = len(b.list), nil
	b.closed = b.closed || last
	b.some.Store(false)
	return n
}
