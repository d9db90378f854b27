package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
	"github.com/qaexchange/notification/promstats/natslogstats"
)

// A durable is the bus on disk: a NATS server in this process, with a folder of its
// own. What was published is there after a crash, and whoever was connected goes on
// where he was: the log, the key that signs the tokens and the users are the same.
// The market is not: a new run begins with new books, and its notifications have the
// run in their IDs, or they would be taken for repeats.
type durable struct {
	server    *embedded.Server
	log       *natslog.Log
	publisher *natslog.Publisher
	edge      *natslog.Edge
	done      [2]chan error // what the Runs of publisher and edge returned
}

// newDurable starts the server, and returns when the edge is warm.
func newDurable(ctx context.Context, dir string, gateway notification.GatewayConfig, logger *slog.Logger) (_ *durable, err error) {
	d := new(durable)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end(ctx))
		}
	}()
	if d.server, err = embedded.Start(embedded.Options{Dir: filepath.Join(dir, "log"), Logger: logger}); err != nil {
		return nil, err
	}
	if d.log, err = natslog.Open(ctx, natslog.Config{NATS: d.server.NATS(), Logger: logger}); err != nil {
		return nil, err
	}
	if d.publisher, err = d.log.NewPublisher(natslog.PublisherConfig{Logger: logger}); err != nil {
		return nil, err
	}
	if d.edge, err = d.log.NewEdge("exchange", natslog.EdgeConfig{Gateway: gateway}); err != nil {
		return nil, err
	}
	// As in newMemory.
	for i, run := range []func(context.Context) error{d.publisher.Run, d.edge.Run} {
		d.done[i] = make(chan error, 1)
		go func() { d.done[i] <- run(context.Background()) }()
	}
	select {
	case <-d.edge.Ready():
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Publish does not wait for the disk: whether n has got there is counted.
func (d *durable) Publish(n *notification.Notification) error { return d.publisher.Publish(n, nil) }

// PublishBatch is Publish for each: the publisher makes blocks of them.
func (d *durable) PublishBatch(ns []*notification.Notification) (accepted int, err error) {
	for accepted < len(ns) && err == nil {
		if err = d.Publish(ns[accepted]); err == nil {
			accepted++
		}
	}
	return accepted, err
}

// PublishWait waits for room, which there is when the server has taken a block.
func (d *durable) PublishWait(ctx context.Context, n *notification.Notification) error {
	for {
		if err := d.publisher.Publish(n, nil); !errors.Is(err, notification.ErrQueueFull) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func (d *durable) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	return d.edge.RegisterSession(cfg)
}

// stats tells what a Broker and a Gateway would have counted. The Gateway is told
// that the log goes on by messages that are for nobody: they are not lost.
func (d *durable) stats() (b notification.BrokerStats, g notification.GatewayStats) {
	edge := d.edge.Stats()
	g = edge.Gateways[0]
	handed := notification.ReceiverStats{ID: edge.ID}
	for _, s := range edge.Streams {
		g.Lanes[s.Lane].NoSession -= s.Marks
		handed.Handed += s.Sent + s.Marks
	}
	b.Receivers = []notification.ReceiverStats{handed}
	for p, l := range d.publisher.Stats().Lanes {
		b.Lanes[p] = notification.BrokerLane{
			Queued: l.Queued, Capacity: l.Capacity,
			Published: l.Accepted, Rejected: l.Rejected, Routed: l.Acknowledged, Discarded: l.Withdrawn + l.Discarded + l.Uncertain,
			Latency: l.Latency,
		}
	}
	return b, g
}

func (d *durable) collectors() []prometheus.Collector {
	return []prometheus.Collector{natslogstats.NewPublisherCollector(d.publisher), natslogstats.NewEdgeCollector(d.edge)}
}

// endPublishing returns when all is in the log, and the edge has read it.
func (d *durable) endPublishing(ctx context.Context) error {
	err := errors.Join(d.publisher.Shutdown(ctx), <-d.done[0])
	for lag := uint64(1); lag > 0 && ctx.Err() == nil; {
		if lag = d.unread(); lag > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return err
}

// unread is how many notifications of this run the edge has yet to read.
func (d *durable) unread() uint64 {
	var acknowledged, read uint64
	for _, l := range d.publisher.Stats().Lanes {
		acknowledged += l.Acknowledged
	}
	for _, s := range d.edge.Stats().Streams {
		read += s.Entries - s.WarmedUp
	}
	return acknowledged - min(read, acknowledged)
}

func (d *durable) endServing(ctx context.Context) error {
	return errors.Join(d.edge.Shutdown(ctx), <-d.done[1], d.end(ctx))
}

// end closes what there is of log and server.
func (d *durable) end(ctx context.Context) (err error) {
	if d.log != nil {
		err = d.log.Close()
	}
	if d.server != nil {
		err = errors.Join(err, d.server.Shutdown(ctx))
	}
	return err
}

// newRun names a run of the exchange, unlike any before.
func newRun() string { return strconv.FormatInt(time.Now().UnixNano(), 36) }
