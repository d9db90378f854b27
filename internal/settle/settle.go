// Package settle tells tests when a Gateway has dealt with what was published.
package settle

import (
	"context"

	"github.com/qaexchange/notification"
)

// Wait returns when g has dealt with all that was published to b before in these
// lanes: nothing overtakes within a lane, so it has when each has brought one more, to
// a user that nobody else knows. It fails as PublishWait does, or if g ends its
// sessions meanwhile.
func Wait(ctx context.Context, b *notification.Broker, g *notification.Gateway, lanes ...notification.Priority) error {
	witness := notification.New("", notification.OrderFilled{}, "test").ID
	sink, told := notification.ChannelSink(len(lanes))
	session, err := g.RegisterSession(notification.SessionConfig{ID: witness, UserID: witness, Sink: sink})
	if err != nil {
		return err
	}
	defer func() {
		_ = session.Close() // it may have ended
		<-session.Done()
	}()
	for _, lane := range lanes {
		n := notification.New(witness, notification.OrderFilled{}, "test")
		n.Priority = lane
		if err := b.PublishWait(ctx, n); err != nil {
			return err
		}
	}
	for range lanes {
		if _, open := <-told; !open {
			return session.Err()
		}
	}
	return nil
}
