package natslog

import (
	"context"
	"fmt"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A stuck sink does not return from Push.
type stuck struct {
	entered chan struct{} // rung by Push
	free    chan struct{} // Push waits for it, whatever its ctx says
}

func (s *stuck) Push(context.Context, []*notification.Message) error {
	rouse(s.entered)
	<-s.free
	return nil
}

func (s *stuck) Close(error) {}

// A Gateway gives a Push that does not return a second before it abandons it. So
// Shutdown has waited for it if it was abandoned in every attempt.
func TestEdgeShutdownDoesNotWaitForSinks(t *testing.T) {
	l := open(t, Config{URL: natstest.Start(t, natstest.Config{}).URL, pace: hurried})
	p := publisher(t, l, PublisherConfig{})
	for i := range 5 {
		e, err := l.NewEdge("one", EdgeConfig{})
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(context.Background()) }() // ends with Shutdown; waited for below
		sink := &stuck{make(chan struct{}, 1), make(chan struct{})}
		natstest.Eventually(t, "the session is registered", func() bool {
			_, err := e.RegisterSession(notification.SessionConfig{ID: "s", UserID: "alice", Sink: sink})
			return err == nil
		})
		require.NoError(t, p.PublishWait(patient(t), note(fmt.Sprint("n", i), "alice", notification.P0)))
		select {
		case <-sink.entered:
		case <-patient(t).Done():
			t.Fatal("it does not come")
		}
		require.ErrorIs(t, e.Shutdown(canceled()), context.Canceled)
		hung := e.Stats().Gateways[0].Hung
		close(sink.free)
		require.NoError(t, <-ended)
		if hung == 0 {
			return
		}
	}
	t.Fatal("Shutdown has waited until the Push was abandoned")
}
