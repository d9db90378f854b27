package main

import (
	"sync"

	"github.com/qaexchange/notification"
)

// sendBuffer is a client's in gorilla/websocket's chat example, from which most
// hubs were copied.
const sendBuffer = 256

// channels is what one writes first: a map of buffered channels behind an
// RWMutex and a goroutine per user that encodes and writes. The encoding stands
// there because the write pumps of the examples call WriteJSON there, and
// because it is the quicker place: it runs on every core whoever publishes. A
// full channel refuses, since waiting for one user would stop the others.
type channels struct {
	encode  func(*notification.Notification) []byte
	mu      sync.RWMutex
	users   map[string]chan *notification.Notification // guarded by mu
	running sync.WaitGroup
}

func newChannels(opt options) system { return &channels{encode: opt.encode} }

func (c *channels) start(users []string, sink sink) error {
	c.users = make(map[string]chan *notification.Notification, len(users))
	for i, u := range users {
		ch := make(chan *notification.Notification, sendBuffer)
		c.users[u] = ch
		c.running.Go(func() { // ends when close closes ch
			for n := range ch {
				sink(i, c.encode(n))
			}
		})
	}
	return nil
}

func (c *channels) publish(n *notification.Notification) error {
	c.mu.RLock()
	ch := c.users[n.UserID]
	c.mu.RUnlock()
	select {
	case ch <- n:
		return nil
	default:
		return errFull
	}
}

func (c *channels) close() {
	c.mu.Lock()
	for _, ch := range c.users {
		close(ch)
	}
	c.mu.Unlock()
	c.running.Wait()
}
