package natslog

import "context"

// openStreams creates the streams, or verifies those that are there.
func (l *Log) openStreams(ctx context.Context) error { return nil }
