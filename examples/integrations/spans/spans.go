// Package spans makes a span of OpenTelemetry for each Push, from the moment in
// which the oldest of its notifications happened. Publish is left alone: the
// span is made where the batch is pushed, of times that the notifications carry.
package spans

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/qaexchange/notification"
)

// Sessions registers sessions at Gateway with their sinks wrapped by Sink:
// wsgateway.New takes it in place of the Gateway.
type Sessions struct {
	Gateway *notification.Gateway
	Tracer  trace.Tracer
}

// RegisterSession is the Gateway's.
func (s Sessions) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	if cfg.Sink != nil { // the Gateway says so
		cfg.Sink = Sink(cfg.Sink, s.Tracer)
	}
	return s.Gateway.RegisterSession(cfg)
}

// Sink returns next with a span around each Push. It starts at the oldest
// Timestamp of the batch, has an event when Push is called, and ends when that
// returns: what is before the event waited in this process, or on the way to it,
// and what is behind it was the client's.
func Sink(next notification.Sink, tracer trace.Tracer) notification.Sink {
	return &sink{next, tracer}
}

type sink struct {
	notification.Sink // for Close
	tracer            trace.Tracer
}

// Push passes the batch on, within the span.
func (s *sink) Push(ctx context.Context, batch []*notification.Message) error {
	now := time.Now()
	oldest, start := batch[0].Notification(), now
	for _, m := range batch {
		// A producer may have set any time, or none.
		if t := time.Unix(0, m.Notification().Timestamp); m.Notification().Timestamp > 0 && t.Before(start) {
			oldest, start = m.Notification(), t
		}
	}
	// No user: traces are kept elsewhere, and read by others.
	ctx, span := s.tracer.Start(ctx, "notification push", trace.WithTimestamp(start), trace.WithAttributes(
		attribute.Int("messaging.batch.message_count", len(batch)),
		attribute.String("notification.oldest.id", oldest.ID),
		attribute.String("notification.oldest.lane", oldest.Priority.String()),
	))
	defer span.End() // after a panic too
	span.AddEvent("push", trace.WithTimestamp(now))
	err := s.Sink.Push(ctx, batch)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}

// Live passes on what an embedded Sink would hide.
func (s *sink) Live() {
	if next, ok := s.Sink.(interface{ Live() }); ok {
		next.Live()
	}
}
