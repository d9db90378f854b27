package main

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/promstats"
)

// A bus is what the exchange publishes to and its sessions are registered at: a
// Broker and a Gateway in memory, or a log on disk (see durable.go).
type bus interface {
	// Publish accepts n at once, or returns ErrQueueFull; PublishWait waits for room,
	// and PublishBatch accepts a prefix of ns and says why the next one was refused.
	Publish(n *notification.Notification) error
	PublishBatch(ns []*notification.Notification) (accepted int, err error)
	PublishWait(ctx context.Context, n *notification.Notification) error
	RegisterSession(cfg notification.SessionConfig) (*notification.Session, error)

	// stats is what a Broker and a Gateway have counted, or would have.
	stats() (notification.BrokerStats, notification.GatewayStats)
	collectors() []prometheus.Collector

	// The way down, in this order: what was accepted is on its way to the sessions
	// when publishing has ended, and with them when serving has.
	endPublishing(ctx context.Context) error
	endServing(ctx context.Context) error
}

// A memory is the bus in memory.
type memory struct {
	*notification.Broker
	gateway *notification.Gateway
	done    [2]chan error // what the Runs of broker and gateway returned
}

func newMemory(broker notification.BrokerConfig, gateway notification.GatewayConfig) (*memory, error) {
	b, err := notification.NewBroker(broker)
	if err != nil {
		return nil, err
	}
	g, err := notification.NewGateway("gateway-1", gateway)
	if err != nil {
		return nil, err
	}
	if err := b.RegisterGateway(g); err != nil {
		return nil, err
	}
	m := &memory{Broker: b, gateway: g}
	// The Runs end with Shutdown, which waits for them. They do not get the context
	// of a signal: that would stop at once instead of draining.
	for i, run := range []func(context.Context) error{b.Run, g.Run} {
		m.done[i] = make(chan error, 1)
		go func() { m.done[i] <- run(context.Background()) }()
	}
	return m, nil
}

func (m *memory) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	return m.gateway.RegisterSession(cfg)
}

func (m *memory) stats() (notification.BrokerStats, notification.GatewayStats) {
	return m.Broker.Stats(), m.gateway.Stats()
}

func (m *memory) collectors() []prometheus.Collector {
	return []prometheus.Collector{promstats.NewCollector(m.Broker, m.gateway)}
}

func (m *memory) endPublishing(ctx context.Context) error {
	return errors.Join(m.Broker.Shutdown(ctx), <-m.done[0])
}

func (m *memory) endServing(ctx context.Context) error {
	return errors.Join(m.gateway.Shutdown(ctx), <-m.done[1])
}
