package grpcfeed

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/integrations/grpcfeed/feedpb"
)

// A service is a real server and a client of it, over a pipe.
type service struct {
	broker  *notification.Broker
	gateway *notification.Gateway
	server  *grpc.Server
	client  feedpb.FeedClient
	stopped bool
}

func start(t *testing.T, cfg notification.GatewayConfig) *service {
	t.Helper()
	s := new(service)
	var err error
	if s.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		t.Fatal(err)
	}
	if s.gateway, err = notification.NewGateway("gateway-1", cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.broker.RegisterGateway(s.gateway); err != nil {
		t.Fatal(err)
	}
	s.server = grpc.NewServer()
	feedpb.RegisterFeedServer(s.server, &Server{Gateway: s.gateway, Authenticate: authenticate})
	ln := bufconn.Listen(1 << 10)
	ended := make(chan error, 3)
	go func() { ended <- s.broker.Run(context.Background()) }() // all three end with stop,
	go func() { ended <- s.gateway.Run(context.Background()) }()
	go func() { ended <- s.server.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	s.client = feedpb.NewFeedClient(conn)
	t.Cleanup(func() {
		s.stop(t)
		for range 3 { // and are waited for
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// stop is the way down that Server describes.
func (s *service) stop(t *testing.T) {
	t.Helper()
	if s.stopped {
		return
	}
	s.stopped = true
	graceful := make(chan struct{})
	go func() { defer close(graceful); s.server.GracefulStop() }()
	ctx := context.Background()
	if err := errors.Join(s.broker.Shutdown(ctx), s.gateway.Shutdown(ctx)); err != nil {
		t.Error(err)
	}
	<-graceful
}

// awaitRest returns when every call that was cut has ended, and what was under way
// to it. On the way down that would count as lost.
func (s *service) awaitRest() {
	for busy := true; busy; {
		<-time.After(time.Millisecond)
		st := s.gateway.Stats()
		busy = st.Sessions > 0
		for _, lane := range st.Lanes {
			busy = busy || lane.Pending > 0
		}
	}
}

func authenticate(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if token := md.Get("authorization"); len(token) == 1 && token[0] == "alice's token" {
		return "alice", nil
	}
	return "", errors.New("no such token")
}

// call is alice's, with the cursor of the header.
func (s *service) call(t *testing.T, ctx context.Context, cursor string) (stream grpc.ServerStreamingClient[feedpb.Batch], first string, err error) {
	t.Helper()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "alice's token")
	stream, err = s.client.Notifications(ctx, &feedpb.Request{Cursor: cursor})
	if err != nil {
		t.Fatal(err)
	}
	header, err := stream.Header() // the snapshot would be loaded behind this
	if err != nil {
		return nil, "", err
	}
	if got := header.Get("cursor"); len(got) == 1 {
		return stream, got[0], nil
	}
	_, err = stream.Recv() // a call that was refused has a status and no header of ours
	return nil, "", err
}

func (s *service) publish(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		n := notification.New("alice", notification.OrderFilled{OrderID: id}, "MatchingEngine")
		n.ID = id
		if err := s.broker.Publish(n); err != nil {
			t.Fatal(err)
		}
	}
}

// receive reads until n notifications are there, and tells their IDs.
func receive(t *testing.T, stream grpc.ServerStreamingClient[feedpb.Batch], n int) (ids []string, cursor string) {
	t.Helper()
	for len(ids) < n {
		b, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range b.Notifications {
			var n notification.Notification
			if err := json.Unmarshal(text, &n); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, n.ID)
		}
		cursor = b.Cursor
	}
	return ids, cursor
}

func TestFeed(t *testing.T) {
	s := start(t, notification.GatewayConfig{HistoryMessages: 1024})

	t.Run("who has no token is refused", func(t *testing.T) {
		stream, err := s.client.Notifications(t.Context(), &feedpb.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "no such token") {
			t.Error(err)
		}
	})
	t.Run("a call that was cut goes on behind its cursor", func(t *testing.T) {
		ctx, cut := context.WithCancel(t.Context())
		stream, _, err := s.call(t, ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		s.publish(t, "one", "two")
		ids, cursor := receive(t, stream, 2)
		cut()
		s.awaitRest()
		s.publish(t, "three")
		ctx, cut = context.WithCancel(t.Context())
		defer s.awaitRest()
		defer cut()
		stream, _, err = s.call(t, ctx, cursor)
		if err != nil {
			t.Fatal(err)
		}
		s.publish(t, "four")
		more, _ := receive(t, stream, 2)
		if got := strings.Join(append(ids, more...), " "); got != "one two three four" {
			t.Error(got)
		}
	})
	t.Run("the cursor of the header is before everything that arrives", func(t *testing.T) {
		ctx, cut := context.WithCancel(t.Context())
		_, cursor, err := s.call(t, ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		s.publish(t, "five")
		cut() // with it on its way, perhaps
		ctx, cut = context.WithCancel(t.Context())
		defer s.awaitRest()
		defer cut()
		stream, _, err := s.call(t, ctx, cursor)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := receive(t, stream, 1); got[0] != "five" {
			t.Error(got)
		}
	})
	t.Run("a gap ends the call, and every cursor is gone", func(t *testing.T) {
		stream, cursor, err := s.call(t, t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s.gateway.Gap()
		if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
			t.Error(err)
		}
		if _, _, err := s.call(t, t.Context(), cursor); status.Code(err) != codes.OutOfRange {
			t.Error(err)
		}
		if _, _, err := s.call(t, t.Context(), "nonsense"); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
	t.Run("on the way down what was accepted arrives, and the call ends", func(t *testing.T) {
		stream, _, err := s.call(t, t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s.publish(t, "last")
		s.stop(t)
		if got, _ := receive(t, stream, 1); got[0] != "last" {
			t.Error(got)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	})
}

// TestSlow needs real time: SlowAfter of it.
func TestSlow(t *testing.T) {
	s := start(t, notification.GatewayConfig{BatchSize: 1, OutboxMessages: 4, SlowAfter: 20 * time.Millisecond})
	stream, _, err := s.call(t, t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var session *notification.Session
	for session = range s.gateway.UserSessions("alice") {
	}
	// It does not read, so that Send blocks once the windows are full.
	long := strings.Repeat("x", 64<<10)
	for session.Err() == nil {
		n := notification.New("alice", notification.RiskAlert{Message: long}, "RiskControl")
		if err := s.broker.PublishWait(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := session.Err(); !errors.Is(err, notification.ErrSlowConsumer) {
		t.Error(err)
	}
	<-session.Done() // the Send that was under way has ended with the call
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Aborted {
		t.Error(err)
	}
}
