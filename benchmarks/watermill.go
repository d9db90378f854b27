package main

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/qaexchange/notification"
)

// goChannel is watermill's in-process Pub/Sub as configured by its zero Config:
// a topic per user, the notification's ID as the message's, and an Ack as soon
// as the receiver has it.
type goChannel struct {
	encode  func(*notification.Notification) []byte
	pubsub  *gochannel.GoChannel
	running sync.WaitGroup
}

func newWatermill(opt options) system { return &goChannel{encode: opt.encode} }

func (g *goChannel) start(users []string, sink sink) error {
	g.pubsub = gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	for i, u := range users {
		messages, err := g.pubsub.Subscribe(context.Background(), u)
		if err != nil {
			return err
		}
		g.running.Go(func() { // ends when Close closes the channel
			for m := range messages {
				sink(i, m.Payload)
				m.Ack()
			}
		})
	}
	return nil
}

func (g *goChannel) publish(n *notification.Notification) error {
	return g.pubsub.Publish(n.UserID, message.NewMessage(n.ID, g.encode(n)))
}

func (g *goChannel) close() {
	g.pubsub.Close()
	g.running.Wait()
}
