package natslog

import (
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// Which epoch it is depends on all streams, but one that is away, as it is for a while
// when the only server is down that has it, must not hold up the others.
func TestStreamOfOthersIsAway(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, Partitions: 2, pace: hurried})
	p := publisher(t, l, PublisherConfig{})
	user := "alice"
	away := 1 - partitionOf(user, 2)
	e := edge(t, l, "one", EdgeConfig{Partitions: []int{1 - away}})
	alice := newListener(t, user)
	require.NoError(t, alice.connect(e))

	require.NoError(t, l.bulk.js.DeleteStream(patient(t), l.stream(notification.P3, away)))
	// looks waits until all lanes have looked in vain, and more than once.
	looks := func() {
		t.Helper()
		ended := func() (n uint64, err error) {
			l.epochs.mu.Lock()
			defer l.epochs.mu.Unlock()
			return l.epochs.finished, l.epochs.err
		}
		from, _ := ended()
		natstest.Eventually(t, "the followers look", func() bool {
			n, err := ended()
			return n > from+8 && err != nil
		})
	}
	looks()
	require.NoError(t, p.PublishWait(patient(t), note("n1", user, notification.P0)))
	alice.want(1)

	t.Run("nor does it when the consumers are made anew", func(t *testing.T) {
		passes := e.partitions[0].lanes[notification.P0].follower.counts.passes.Load()
		require.NoError(t, l.urgent.nc.ForceReconnect())
		natstest.Eventually(t, "there is another consumer", func() bool {
			return e.partitions[0].lanes[notification.P0].follower.counts.passes.Load() > passes
		})
		require.NoError(t, p.PublishWait(patient(t), note("n2", user, notification.P0)))
		alice.want(2)
	})
	t.Run("and when it is made anew the numbering is another", func(t *testing.T) {
		before := e.Stats().Epoch
		open(t, Config{URL: s.URL, Partitions: 2})
		natstest.Eventually(t, "there is another epoch", func() bool {
			st := e.Stats()
			return st.Warm && st.Epoch != before
		})
		alice.loses()
	})
}
