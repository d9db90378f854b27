package spans

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

var _ wsgateway.Sessions = Sessions{}

// A probe is a sink that tells what was called.
type probe struct {
	fail   error
	traced chan bool // of each Push, whether its context has a span
	live   chan struct{}
	closed chan error
}

func newProbe(fail error) *probe {
	return &probe{fail, make(chan bool, 8), make(chan struct{}), make(chan error, 1)}
}

func (p *probe) Push(ctx context.Context, _ []*notification.Message) error {
	p.traced <- trace.SpanFromContext(ctx).IsRecording()
	return p.fail
}
func (p *probe) Live()              { close(p.live) }
func (p *probe) Close(reason error) { p.closed <- reason }

func TestSink(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test")
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan error, 1)
	go func() { running <- gateway.Run(context.Background()) }() // ends with Shutdown, and is waited for
	sessions := Sessions{gateway, tracer}
	feed := gateway.Inbox()

	t.Run("a session without a sink is refused as ever", func(t *testing.T) {
		if _, err := sessions.RegisterSession(notification.SessionConfig{ID: "none", UserID: "alice"}); !errors.Is(err, notification.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("Live, Close and the span's context come through", func(t *testing.T) {
		p := newProbe(errors.New("the network is down"))
		if _, err := sessions.RegisterSession(notification.SessionConfig{ID: "bob", UserID: "bob", Sink: p}); err != nil {
			t.Fatal(err)
		}
		<-p.live
		feed[notification.P0] <- notification.NewMessage(notification.New("bob", notification.MarginCall{}, "test"))
		if !<-p.traced {
			t.Error("Push has no span in its context")
		}
		if err := <-p.closed; err != p.fail {
			t.Error(err)
		}
		// Close comes after Push has returned, and with it the span has ended.
		spans := recorder.Ended()
		if len(spans) != 1 || spans[0].Status() != (sdktrace.Status{Code: codes.Error, Description: "the network is down"}) {
			t.Errorf("%+v", spans)
		}
		recorder.Reset()
	})
	t.Run("a span starts when the oldest happened, and says when it was pushed", func(t *testing.T) {
		p := newProbe(nil)
		wrapped := Sink(p, tracer)
		happened := time.Unix(time.Now().Unix()-1, 500)
		older := notification.New("alice", notification.AccountUpdate{}, "test")
		older.ID, older.Timestamp = "older", happened.UnixNano()
		untimed := notification.New("alice", notification.OrderFilled{}, "test")
		untimed.Timestamp = 0
		batch := []*notification.Message{
			notification.NewMessage(notification.New("alice", notification.MarginCall{}, "test")),
			notification.NewMessage(older), notification.NewMessage(untimed),
		}
		before := time.Now()
		if err := wrapped.Push(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		spans := recorder.Ended()
		if len(spans) != 1 {
			t.Fatalf("%d spans", len(spans))
		}
		s := spans[0]
		if s.Name() != "notification push" || !s.StartTime().Equal(happened) || s.EndTime().Before(before) || s.Status().Code != codes.Unset {
			t.Errorf("%s from %s to %s, %+v", s.Name(), s.StartTime(), s.EndTime(), s.Status())
		}
		if e := s.Events(); len(e) != 1 || e[0].Name != "push" || e[0].Time.Before(before) {
			t.Errorf("%+v", e)
		}
		got := attribute.NewSet(s.Attributes()...)
		want := attribute.NewSet(attribute.Int("messaging.batch.message_count", 3),
			attribute.String("notification.oldest.id", "older"), attribute.String("notification.oldest.lane", "P2"))
		if !got.Equals(&want) {
			t.Errorf("%v", s.Attributes())
		}
	})
	if err := errors.Join(gateway.Shutdown(t.Context()), <-running); err != nil {
		t.Error(err)
	}
}
