package main

import (
	"errors"
	"slices"

	"github.com/qaexchange/notification"
)

// A publisher takes what a driver has to tell: what one event causes is published,
// and then flushed.
type publisher interface {
	publish(user int, payload notification.Payload)
	flush()
}

// A burst is a driver's publisher. What one event causes goes to the bus in one
// call: a few notifications mostly, hundreds when a market maker replaces its
// quotes. One goroutine owns it, and an exchange has one driver: a burst holds
// several streams at once, which two could not. Whoever sends something else in one of
// them waits until all of the burst is accepted.
type burst struct {
	x       *exchange
	list    []*notification.Notification
	streams []*stream // of list
	held    []held    // each of those once
}

// A held is a stream of which mu is held.
type held struct {
	*stream
	number uint64 // of the last one in the burst
}

func newBurst(x *exchange) *burst { return &burst{x: x} }

func (b *burst) publish(user int, payload notification.Payload) {
	n, s := b.x.compose(user, payload)
	i := slices.IndexFunc(b.held, func(h held) bool { return h.stream == s })
	if i < 0 {
		s.mu.Lock()
		i, b.held = len(b.held), append(b.held, held{s, s.last.Load()})
	}
	b.held[i].number++
	b.x.identify(n, b.held[i].number)
	b.list, b.streams = append(b.list, n), append(b.streams, s)
}

// flush is send for all of the burst. What is not accepted is counted, and there is
// some only when the exchange ends.
func (b *burst) flush() {
	list, streams := b.list, b.streams
	for len(list) > 0 {
		accepted, err := b.x.bus.PublishBatch(list)
		if errors.Is(err, notification.ErrQueueFull) {
			if err = b.x.wait(list[accepted]); err == nil {
				accepted++
			}
		}
		for i, n := range list[:accepted] {
			b.x.accepted(n, streams[i])
		}
		list, streams = list[accepted:], streams[accepted:]
		if err != nil {
			for _, n := range list {
				b.x.cut[n.Priority].Add(1)
			}
			break
		}
	}
	for _, h := range b.held {
		h.mu.Unlock()
	}
	clear(b.list) // keep nothing alive
	b.list, b.streams, b.held = b.list[:0], b.streams[:0], b.held[:0]
}
