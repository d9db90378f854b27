package natslog

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// A server's clock jumps, forwards and back, so that blocks are stored before those
// that they follow, or at the same time: which block goes first is another matter
// then, and nothing else.
func TestIndexWhenClockJumps(t *testing.T) {
	const most = 10_000
	m := newIndexModel(t, most)
	users := []string{"a", "b", notification.AllUsers}
	type place struct {
		numbers numbers
		seal    uint64
	}
	places := []place{}
	kept := 0
	for range 2000 {
		switch rand.IntN(10) {
		case 0:
			m.now = m.now.Add(time.Duration(rand.Int64N(int64(2*time.Hour))) - time.Hour)
		case 1:
			m.now = m.now.Add(-time.Second) // add makes that none
		}
		p := notification.Priority(rand.IntN(notification.NumPriorities))
		ns := make([]*notification.Notification, rand.IntN(4))
		for i := range ns {
			ns[i] = m.note(users[rand.IntN(len(users))], p)
		}
		m.add(p, ns...)
		bytes, floor := m.kept()
		require.Equal(t, bytes, m.index.size.Load())
		require.LessOrEqual(t, bytes, int64(most))

		at := m.index.At()
		seal, ok := m.index.Seal("a", at)
		require.True(t, ok, "where the log ends is always a place")
		places = append(places, place{at, seal})
		from := places[len(places)-1-rand.IntN(min(len(places), 300))]
		list, err := m.index.Missed(t.Context(), "a", nil, from.numbers, at, 1<<20)
		gone := false
		for p := range floor {
			gone = gone || from.numbers[p] < floor[p] && from.numbers[p] < at[p]
		}
		if gone {
			require.ErrorIs(t, err, notification.ErrCursorGone)
			continue
		}
		require.NoError(t, err)
		var got [notification.NumPriorities][]string
		for _, message := range list {
			n := message.Notification()
			got[n.Priority] = append(got[n.Priority], n.ID)
		}
		require.Equal(t, m.missed("a", nil, from.numbers, at), got)
		seal, ok = m.index.Seal("a", from.numbers)
		require.True(t, ok)
		require.Equal(t, from.seal, seal)
		kept++
	}
	require.Greater(t, kept, 100)
}
