package natslog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
)

// What a stream's metadata say of it: BLOCK.md.
const (
	format = "1"

	metaFormat     = "notification-format"
	metaPartitions = "notification-partitions"
	metaDedupSize  = "notification-dedup-size"
)

// maxConsumers is over what any number of edges and readers needs. The default is
// the account's, and may be less.
const maxConsumers = 10_000

// streamConfig returns what the stream of a lane and partition is.
func (l *Log) streamConfig(lane notification.Priority, partition int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:         l.stream(lane, partition),
		Subjects:     []string{l.subject(lane, partition)},
		Description:  "notification: blocks of lane " + lane.String() + ", partition " + strconv.Itoa(partition),
		Storage:      jetstream.FileStorage,
		Retention:    jetstream.LimitsPolicy,
		Discard:      jetstream.DiscardOld,
		MaxAge:       l.cfg.Retention,
		MaxBytes:     l.cfg.MaxBytes,
		MaxMsgs:      -1,
		MaxMsgSize:   -1,
		MaxConsumers: maxConsumers,
		Duplicates:   l.cfg.duplicates,
		Replicas:     l.cfg.Replicas,
		// A hole would look like a loss.
		DenyDelete: true,
		DenyPurge:  true,
		// MaxMsgsPerSubject is MaxMsgs here; AllowDirect is off, because a replica
		// that lags would answer what only the leader knows.
		MaxMsgsPerSubject: -1,
		Metadata: map[string]string{
			metaFormat:     format,
			metaPartitions: strconv.Itoa(l.cfg.Partitions),
			metaDedupSize:  strconv.Itoa(l.cfg.DedupSize),
		},
	}
}

// openStreams creates the streams, or verifies those that are there.
func (l *Log) openStreams(ctx context.Context) error {
	// Partition by partition from 0, so that with another number of partitions the
	// first stream is found to differ before any is created.
	for partition := range l.cfg.Partitions {
		for lane := range notification.Priority(notification.NumPriorities) {
			if err := l.openStream(ctx, l.streamConfig(lane, partition)); err != nil {
				return err
			}
		}
	}
	if !l.syncs() {
		l.cfg.Logger.Warn("cannot tell whether the server syncs what it acknowledges: without sync_always a power failure loses up to sync_interval of it", "log", l.cfg.Name, "replicas", l.cfg.Replicas)
	}
	return nil
}

// openStream looks before it creates: who may only read and publish can open what
// is there.
func (l *Log) openStream(ctx context.Context, want jetstream.StreamConfig) error {
	s, err := l.bulk.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = l.bulk.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // by another process, right now
			s, err = l.bulk.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return fmt.Errorf("natslog: stream %s: %w", want.Name, err)
	}
	return verifyStream(s.CachedInfo().Config, want)
}

// verifyStream returns ErrConfig, naming the field, if a stream is not what it is to
// be. What it does not look at (placement, compression, republishing) is the
// operator's.
func verifyStream(have, want jetstream.StreamConfig) error {
	for _, f := range []struct {
		name       string // of the field of Config if it comes from there
		have, want any
	}{
		{"its " + metaFormat, have.Metadata[metaFormat], want.Metadata[metaFormat]},
		{"Partitions", have.Metadata[metaPartitions], want.Metadata[metaPartitions]},
		{"DedupSize", have.Metadata[metaDedupSize], want.Metadata[metaDedupSize]},
		{"Retention", have.MaxAge, want.MaxAge},
		{"MaxBytes", have.MaxBytes, want.MaxBytes},
		{"Replicas", have.Replicas, want.Replicas},
		{"its subjects", strings.Join(have.Subjects, " "), strings.Join(want.Subjects, " ")},
		{"its storage", have.Storage, want.Storage},
		{"its retention policy", have.Retention, want.Retention},
		{"its discard policy", have.Discard, want.Discard},
		{"its max_msgs", have.MaxMsgs, want.MaxMsgs},
		{"its max_msgs_per_subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject},
		{"its max_msg_size", have.MaxMsgSize, want.MaxMsgSize},
		{"its max_consumers", have.MaxConsumers, want.MaxConsumers},
		{"its duplicate_window", have.Duplicates, want.Duplicates},
		{"its deny_delete", have.DenyDelete, want.DenyDelete},
		{"its deny_purge", have.DenyPurge, want.DenyPurge},
		{"its no_ack", have.NoAck, want.NoAck},
		{"its sealed", have.Sealed, want.Sealed},
		{"its allow_direct", have.AllowDirect, want.AllowDirect},
		{"its allow_msg_ttl", have.AllowMsgTTL, want.AllowMsgTTL},
		{"its persist_mode", have.PersistMode, want.PersistMode},
		{"its mirror", have.Mirror != nil, false},
		{"its sources", len(have.Sources), 0},
		{"its subject_transform", have.SubjectTransform != nil, false},
	} {
		if f.have != f.want {
			return fmt.Errorf("%w: stream %s: %s is %v, not %v", ErrConfig, want.Name, f.name, f.have, f.want)
		}
	}
	return nil
}

// syncs reports whether it is known that the server has what it acknowledges on the
// disk. A server tells that to its system account alone; one in this process may say
// so itself.
func (l *Log) syncs() bool {
	s, ok := l.bulk.nc.Opts.InProcessServer.(interface{ SyncAlways() bool })
	return ok && s.SyncAlways()
}
