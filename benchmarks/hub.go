package main

import (
	"sync"
	"sync/atomic"

	"github.com/qaexchange/notification"
)

// hub is the chat examples': one goroutine owns the map of clients, takes what
// is published from a channel and passes it on; a client whose buffer is full
// is thrown out. The examples broadcast; here the message names one client. The
// hub's own channel is buffered, in the examples it is not: that is quicker.
type hub struct {
	encode  func(*notification.Notification) []byte
	inbox   chan *notification.Notification
	clients map[string]chan *notification.Notification // owned by run
	dropped atomic.Int64
	running sync.WaitGroup
}

func newHub(opt options) system { return &hub{encode: opt.encode} }

func (h *hub) start(users []string, sink sink) error {
	h.inbox = make(chan *notification.Notification, 1024)
	h.clients = make(map[string]chan *notification.Notification, len(users))
	for i, u := range users {
		send := make(chan *notification.Notification, sendBuffer)
		h.clients[u] = send
		h.running.Go(func() { // the write pump; ends when run closes send
			for n := range send {
				sink(i, h.encode(n))
			}
		})
	}
	h.running.Go(h.run) // ends when close closes inbox
	return nil
}

func (h *hub) run() {
	for n := range h.inbox {
		send, ok := h.clients[n.UserID]
		if !ok {
			h.dropped.Add(1)
			continue
		}
		select {
		case send <- n:
		default:
			h.dropped.Add(1)
			close(send)
			delete(h.clients, n.UserID)
		}
	}
	for _, send := range h.clients {
		close(send)
	}
}

func (h *hub) publish(n *notification.Notification) error {
	h.inbox <- n
	return nil
}

func (h *hub) close() {
	close(h.inbox)
	h.running.Wait()
}

func (h *hub) ended() string {
	if h.dropped.Load() == 0 {
		return ""
	}
	return "client thrown out"
}
