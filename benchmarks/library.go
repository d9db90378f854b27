package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/qaexchange/notification"
)

// library is this library with the defaults of its three configurations.
type library struct {
	broker   *notification.Broker
	gateways []*notification.Gateway
	running  sync.WaitGroup
	opt      options
}

func newLibrary(opt options) system { return &library{opt: opt} }

func (l *library) start(users []string, sink sink) error {
	var err error
	if l.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		return err
	}
	l.running.Go(func() { l.broker.Run(context.Background()) })
	for i := range l.opt.gateways {
		g, err := notification.NewGateway("gateway-"+strconv.Itoa(i), notification.GatewayConfig{})
		if err != nil {
			return err
		}
		if err := l.broker.RegisterGateway(g); err != nil {
			return err
		}
		l.gateways = append(l.gateways, g)
		l.running.Go(func() { g.Run(context.Background()) })
	}
	for i, u := range users {
		_, err := l.gateways[i%len(l.gateways)].RegisterSession(notification.SessionConfig{
			ID: u, UserID: u,
			Sink: notification.SinkFunc(func(_ context.Context, batch []*notification.Message) error {
				for _, m := range batch {
					sink(i, l.opt.text(m))
				}
				return nil
			}),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// publish does what Publish's documentation says to do about a full lane.
func (l *library) publish(n *notification.Notification) error {
	err := l.broker.Publish(n)
	if errors.Is(err, notification.ErrQueueFull) {
		err = l.broker.PublishWait(context.Background(), n)
	}
	return err
}

func (l *library) close() {
	l.broker.Shutdown(context.Background())
	for _, g := range l.gateways {
		g.Shutdown(context.Background())
	}
	l.running.Wait()
}

// ended tells how many sessions the library ended, and why: what a stalled
// receiver comes to.
func (l *library) ended() string {
	slow := uint64(0)
	for _, g := range l.gateways {
		slow += g.Stats().Ended.Slow
	}
	if slow == 0 {
		return ""
	}
	return fmt.Sprintf("%d session ended: slow", slow)
}
