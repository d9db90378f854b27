// Package grpcfeed makes a server stream of gRPC a session of a Gateway.
package grpcfeed

import (
	"context"
	"crypto/rand"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/integrations/grpcfeed/feedpb"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative feedpb/feed.proto

// A Server serves feedpb.Feed. Give the grpc.Server keepalive parameters: they
// are what finds a client that is gone, and no session times out here.
//
// On the way down begin grpc.Server.GracefulStop, so that nobody new comes in,
// shut down the Broker and the Gateway, which ends every stream, and wait for
// GracefulStop then.
type Server struct {
	feedpb.UnimplementedFeedServer
	Gateway *notification.Gateway
	// Authenticate tells who calls, by the metadata or the certificate in ctx.
	Authenticate func(ctx context.Context) (userID string, err error)
}

// Notifications is a session for as long as the call lasts.
func (s *Server) Notifications(req *feedpb.Request, stream grpc.ServerStreamingServer[feedpb.Batch]) error {
	user, err := s.Authenticate(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, "credentials are missing or wrong")
	}
	var after notification.Cursor
	if req.Cursor != "" {
		if after, err = notification.ParseCursor(req.Cursor); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
	sink := &sink{stream: stream, ready: make(chan struct{}), over: make(chan struct{})}
	session, err := s.Gateway.RegisterSession(notification.SessionConfig{
		ID: rand.Text(), UserID: user, Sink: sink, After: after, Timeout: -1,
	})
	if err != nil {
		return ended(err)
	}
	defer session.Close()
	if err := stream.SendHeader(metadata.Pairs("cursor", session.Cursor().String())); err != nil {
		return err
	}
	sink.session = session
	close(sink.ready)
	select {
	case <-sink.over:
		return ended(session.Err())
	case <-session.Done(): // there never was a Push
		return ended(session.Err())
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
}

// A sink is a stream as a notification.Sink.
//
// Send knows no context: while the client does not read, only the end of the
// call ends it. Session.Done would come too late for that, behind the Push that
// it is to end, so over is closed as soon as the session ends.
type sink struct {
	stream  grpc.ServerStreamingServer[feedpb.Batch]
	ready   chan struct{}         // closed when the header is out and session is set
	over    chan struct{}         // closed when the session ends, if it was pushed to
	session *notification.Session // immutable once ready is closed
	pushed  bool                  // owned by Push, of which there is one at a time
}

// Push sends a batch.
func (s *sink) Push(ctx context.Context, batch []*notification.Message) error {
	select {
	case <-s.ready: // nothing may be sent before the header
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !s.pushed {
		s.pushed = true
		context.AfterFunc(ctx, func() { close(s.over) }) // ctx is the session's
	}
	b := &feedpb.Batch{Cursor: s.session.Cursor().String()}
	for _, m := range batch {
		b.Notifications = append(b.Notifications, m.JSON()) // shared by all sessions, read-only
	}
	return s.stream.Send(b)
}

// Close leaves it to Notifications to end the call.
func (s *sink) Close(error) {}

// ended is why there is no session, as a client can act on it.
func ended(err error) error {
	for _, c := range []struct {
		is   error
		code codes.Code
	}{
		{notification.ErrCursorGone, codes.OutOfRange},       // load a snapshot, call without a cursor
		{notification.ErrGap, codes.DataLoss},                // the same
		{notification.ErrSlowConsumer, codes.Aborted},        // call again, with the cursor
		{notification.ErrClosed, codes.Unavailable},          // the same, a little later
		{notification.ErrGatewayClosed, codes.Unavailable},   // the same
		{notification.ErrTooManySessions, codes.Unavailable}, // the same
	} {
		if errors.Is(err, c.is) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}
