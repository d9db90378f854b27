package notification

import (
	"sync"
	"sync/atomic"
)

// A handedOver is what the dispatcher was about to send when the Gateway left its
// Broker: at most one message a lane each time. The reader takes it when the inbox
// lane is empty, because it was sent last.
type handedOver struct {
	mu       sync.Mutex                // a leaf
	messages [NumPriorities][]*Message // guarded by mu
	closed   bool                      // guarded by mu: there is no reader any more

	some atomic.Bool // messages holds something
}

// put adds a message, or reports false if there is no reader that would take it.
func (h *handedOver) put(m *Message) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.messages[m.priority] = append(h.messages[m.priority], m)
	h.some.Store(true)
	return true
}

// take returns the next message of a lane, nil if there is none.
func (h *handedOver) take(p Priority) (m *Message) {
	if !h.some.Load() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if q := h.messages[p]; len(q) > 0 {
		m, h.messages[p] = q[0], q[1:]
	}
	left := 0
	for _, q := range h.messages {
		left += len(q)
	}
	h.some.Store(left > 0)
	return m
}

// drop empties it and returns how many that were in each lane. With last nothing
// is put in any more.
func (h *handedOver) drop(last bool) (n [NumPriorities]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.messages {
		n[p] = len(h.messages[p])
		h.messages[p] = nil
	}
	h.closed = h.closed || last
	h.some.Store(false)
	return n
}
