package notification

import "context"

// A Sink takes the batches of one session. It may also have a method Live(),
// which is called once, between two Pushes, when what was replayed to the
// session has been pushed; at once if there was nothing to replay. No batch
// mixes what is replayed and what is live. A panic in Live ends the session as
// one in Push does.
type Sink interface {
	// Push takes a batch: never empty, at most BatchSize messages, P0 first.
	// The slice is valid during the call, the messages for good. It may block;
	// there is one call at a time, and ctx ends when the session does. An error
	// ends the session with that error (one that Is ErrSlowConsumer counts as
	// slow), and so does a panic, with ErrSinkPanic.
	Push(ctx context.Context, batch []*Message) error
	// Close is called once, after the last Push has returned, with the reason
	// for which the session ended.
	Close(reason error)
}

// A liveSink wants to know when the replay is over.
type liveSink interface{ Live() }

// SinkFunc is a Sink whose Close does nothing.
type SinkFunc func(ctx context.Context, batch []*Message) error

// Push calls f.
func (f SinkFunc) Push(ctx context.Context, batch []*Message) error { return f(ctx, batch) }

// Close does nothing.
func (f SinkFunc) Close(error) {}

// ChannelSink returns a Sink that sends each message to the channel, which it
// returns too and closes at the end; what was sent before can still be read.
// While the channel is full Push waits, and the session's outbox fills. If the
// session ends in the middle of a batch, that batch counts as not taken: what of
// it was sent comes again to a session that resumes.
func ChannelSink(capacity int) (Sink, <-chan *Message) {
	ch := make(chan *Message, max(capacity, 0))
	return channelSink(ch), ch
}

type channelSink chan *Message

func (c channelSink) Push(ctx context.Context, batch []*Message) error {
	for _, m := range batch {
		select {
		case c <- m:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (c channelSink) Close(error) { close(c) }
