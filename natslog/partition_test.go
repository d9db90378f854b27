package natslog

import (
	"context"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A fedPartition is one that is fed by hand, without a server.
type fedPartition struct {
	*indexModel
	sink map[string]chan string // by user: IDs that were pushed
}

func newFedPartition(t testing.TB, config notification.GatewayConfig) *fedPartition {
	l := &Log{cfg: Config{Partitions: 1, DedupSize: 100}}
	require.NoError(t, l.cfg.setDefaults())
	l.urgent, l.bulk = new(conn), new(conn)
	l.epochs = newEpochs(l)
	config.HistoryMessages = 1 << 12
	p, err := newPartition(l, 0, 1<<20, "test/0", config)
	require.NoError(t, err)
	f := &fedPartition{
		indexModel: &indexModel{t: t, index: p.index, part: p, now: time.Unix(1_700_000_000, 0)},
		sink:       map[string]chan string{},
	}
	p.mu.Lock()
	p.restart(7)
	p.mu.Unlock()
	return f
}

// run runs the Gateway until the end of the test.
func (f *fedPartition) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with cancel, which the cleanup calls and waits for
		defer close(ended)
		_ = f.part.gateway.Run(ctx)
	}()
	f.t.Cleanup(func() { cancel(); <-ended })
}

// warm lets all lanes catch up at the beginning of the log.
func (f *fedPartition) warm() {
	for p := range notification.Priority(notification.NumPriorities) {
		f.caughtUp(p)
	}
}

// caughtUp lets a lane catch up.
func (f *fedPartition) caughtUp(p notification.Priority) {
	f.part.lanes[p].follower.next = f.seq[p] + 1
	require.NoError(f.t, f.part.handle(f.t.Context(), p, event{kind: warmEvent}))
}

// feed lets a lane read the next block.
func (f *fedPartition) feed(ctx context.Context, p notification.Priority, ns ...*notification.Notification) {
	_ = f.part.take(ctx, p, f.block(p, ns...))
}

func (f *fedPartition) connect(user string, after notification.Cursor) *notification.Session {
	ids := make(chan string, 100)
	f.sink[user] = ids
	s, err := f.part.registerSession(notification.SessionConfig{
		ID: user, UserID: user, After: after,
		Sink: notification.SinkFunc(func(_ context.Context, batch []*notification.Message) error {
			for _, m := range batch {
				ids <- m.Notification().ID
			}
			return nil
		}),
	})
	require.NoError(f.t, err)
	return s
}

func (f *fedPartition) wants(user string, ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		select {
		case got := <-f.sink[user]:
			require.Equal(f.t, id, got)
		case <-patient(f.t).Done():
			f.t.Fatalf("%s has not come", id)
		}
	}
}

func TestPartitionOfEdge(t *testing.T) {
	const P1 = notification.P1
	t.Run("who comes while a block is fed gets it from the index, or is asked for", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{InboxCapacity: 2})
		f.warm()
		_ = f.connect("alice", notification.Cursor{})
		bob := f.connect("bob", notification.Cursor{})
		cursor := bob.Cursor()
		require.NotZero(t, cursor)
		// At a Gateway that bob has not been to; nobody reads the inbox yet.
		f = newFedPartition(t, notification.GatewayConfig{InboxCapacity: 2})
		f.warm()
		_ = f.connect("alice", notification.Cursor{})
		var ns []*notification.Notification
		for _, user := range []string{"bob", "alice", "alice", "alice", "bob"} {
			ns = append(ns, note(string(rune('a'+len(ns))), user, P1))
		}
		fed := make(chan struct{})
		go func() { // ends when the Gateway reads; waited for below
			defer close(fed)
			f.feed(context.Background(), P1, ns...)
		}()
		natstest.Eventually(t, "bob was asked for, and the third of alice waits for room", func() bool { return len(f.part.inbox[P1]) == 2 })
		_ = f.connect("bob", cursor)
		f.run()
		<-fed
		f.wants("bob", "a", "e")
		f.wants("alice", "b", "c", "d")
		f.feed(t.Context(), P1, note("f", "bob", P1))
		f.wants("bob", "f")
	})
	t.Run("cold, it lets nobody in and feeds nothing; warm with the last lane", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.feed(t.Context(), P1, note("a", "alice", P1))
		for p := range notification.Priority(notification.NumPriorities) {
			_, err := f.part.registerSession(notification.SessionConfig{ID: "x", UserID: "alice", Sink: notification.SinkFunc(nil)})
			require.ErrorIs(t, err, notification.ErrTryAgain)
			f.caughtUp(p)
		}
		f.run()
		f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("b", "alice", P1))
		f.wants("alice", "b")
	})
	t.Run("repeats and what is misplaced are not delivered", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.run()
		f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("a", "alice", P1), note("a", "alice", P1), note("b", "alice", notification.P2), note("c", "alice", P1))
		f.feed(t.Context(), P1, note("a", "alice", P1), note("d", "alice", P1))
		f.wants("alice", "a", "c", "d")
		require.EqualValues(t, 2, f.part.lanes[P1].counts.repeats.Load())
		require.EqualValues(t, 1, f.part.lanes[P1].counts.misplaced.Load())
	})
	t.Run("an archive that cannot be read ends its user's sessions alone", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.run()
		alice, bob := f.connect("alice", notification.Cursor{}), f.connect("bob", notification.Cursor{})
		before := alice.Cursor()
		b := f.block(P1, note("a", "alice", P1))
		b.data[archiveType] = 77
		b.layouts = "77=86" // as those of a trade
		require.NoError(t, f.part.take(t.Context(), P1, b))
		<-alice.Done()
		require.ErrorIs(t, alice.Err(), notification.ErrGap)
		require.NoError(t, bob.Err())
		_, err := f.part.registerSession(notification.SessionConfig{ID: "again", UserID: "alice", After: before, Sink: notification.SinkFunc(nil)})
		require.ErrorIs(t, err, notification.ErrCursorGone, "it is not passed over")
		f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("b", "alice", P1))
		f.wants("alice", "b")
		require.EqualValues(t, 1, f.part.lanes[P1].counts.unknown.Load())
	})
	t.Run("blocks that are gone end the sessions, and void cursors from before them alone", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.run()
		alice := f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("a", "alice", P1))
		f.wants("alice", "a")
		before := alice.Cursor()
		f.seq[P1] += 3
		require.NoError(t, f.part.handle(t.Context(), P1, event{kind: gapEvent, from: f.seq[P1] - 2, to: f.seq[P1]}))
		<-alice.Done()
		require.ErrorIs(t, alice.Err(), notification.ErrGap)
		_, err := f.part.registerSession(notification.SessionConfig{ID: "again", UserID: "alice", After: before, Sink: notification.SinkFunc(nil)})
		require.ErrorIs(t, err, notification.ErrCursorGone)
		alice = f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("b", "alice", P1))
		f.wants("alice", "b")
		cursor := alice.Cursor()
		require.NoError(t, alice.Close())
		<-alice.Done()
		f.feed(t.Context(), P1, note("c", "alice", P1))
		f.connect("alice", cursor)
		f.wants("alice", "c")
	})
	t.Run("a quiet user's cursor moves on", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.run()
		alice := f.connect("alice", notification.Cursor{})
		first := alice.Cursor()
		for range 3 {
			f.feed(t.Context(), P1, note("x", "somebody", P1))
			f.feed(t.Context(), notification.P3)
		}
		require.Eventually(t, func() bool { c := alice.Cursor(); return c != first && c.Covers(first) }, time.Minute, time.Millisecond)
	})
}
