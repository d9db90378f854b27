package natslog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type numbers = [notification.NumPriorities]uint64

// A logged is an entry as the naive model of an index remembers it.
type logged struct {
	lane   notification.Priority
	number uint64
	n      *notification.Notification
}

// An indexModel feeds an index and remembers everything.
type indexModel struct {
	t     testing.TB
	index *index
	part  *partition
	seq   numbers
	ends  uint64 // what the stream's leader says
	all   []logged
	now   time.Time
	ids   int
}

func newIndexModel(t testing.TB, most int64) *indexModel {
	m := &indexModel{t: t, now: time.Unix(1_700_000_000, 0)}
	m.index = newIndex(most, func(context.Context, notification.Priority) (uint64, error) { return m.ends, nil })
	m.part = &partition{log: &Log{cfg: Config{Partitions: 1, DedupSize: 1 << 16}}, index: m.index}
	for p := range m.part.lanes {
		m.part.lanes[p].window = newWindow(1 << 16)
	}
	m.index.warm.Store(true)
	return m
}

// note returns a notification of which the channel is drawn, for a lane.
func (m *indexModel) note(user string, p notification.Priority) *notification.Notification {
	m.ids++
	payloads := []notification.Payload{notification.OrderFilled{OrderID: "o"}, notification.AccountUpdate{Balance: 1}, notification.SystemNotice{Content: "c"}}
	payload := payloads[rand.IntN(len(payloads))]
	if user == notification.AllUsers {
		payload = payloads[2]
	}
	n := notification.New(user, payload, "test")
	n.ID, n.Priority = fmt.Sprint("n", m.ids), p
	return n
}

// block makes the next one of a lane.
func (m *indexModel) block(p notification.Priority, ns ...*notification.Notification) block {
	m.seq[p]++
	m.now = m.now.Add(time.Second)
	b := block{seq: m.seq[p], stored: m.now, count: len(ns)}
	for i, n := range ns {
		var err error
		b.data, err = n.AppendBinary(b.data)
		require.NoError(m.t, err)
		m.all = append(m.all, logged{p, number(b.seq, i), n})
	}
	return b
}

// add adds the next block of a lane to the index.
func (m *indexModel) add(p notification.Priority, ns ...*notification.Notification) block {
	b := m.block(p, ns...)
	l := &m.part.lanes[p]
	m.part.place(p, b)
	m.index.add(p, b, l.placed)
	return b
}

// missed is what Missed should return, each lane by itself.
func (m *indexModel) missed(user string, channels []notification.Channel, after, upTo numbers) (lanes [notification.NumPriorities][]string) {
	for _, e := range m.all {
		mine := e.n.UserID == user || e.n.UserID == notification.AllUsers
		if mine && e.number > after[e.lane] && e.number <= upTo[e.lane] && (channels == nil || slices.Contains(channels, e.n.Payload.Type().Channel())) {
			lanes[e.lane] = append(lanes[e.lane], e.n.ID)
		}
	}
	return lanes
}

// kept is how many archives of a lane the index holds, and the number from which on.
func (m *indexModel) kept() (bytes int64, floor numbers) {
	for p := range m.index.lanes {
		l := &m.index.lanes[p]
		floor[p] = l.floor
		for i := range l.blocks {
			bytes += l.blocks[i].cost()
		}
	}
	return bytes, floor
}

func TestIndex(t *testing.T) {
	const most = 20_000
	m := newIndexModel(t, most)
	users := []string{"a", "b", "c", notification.AllUsers}
	refused := 0
	for round := range 3000 {
		p := notification.Priority(rand.IntN(notification.NumPriorities))
		ns := make([]*notification.Notification, rand.IntN(4))
		for i := range ns {
			ns[i] = m.note(users[rand.IntN(len(users))], p)
		}
		m.add(p, ns...)

		bytes, floor := m.kept()
		require.Equal(t, bytes, m.index.size.Load(), "the count is right")
		require.LessOrEqual(t, bytes, int64(most))
		at := m.index.At()
		var after, upTo numbers
		for p := range after {
			require.Equal(t, endOf(m.seq[p]), at[p])
			from := floor[p] - min(floor[p], 500) // now and then too far back
			after[p] = from + rand.Uint64N(at[p]-from+1)
			upTo[p] = after[p] + rand.Uint64N(at[p]-after[p]+1)
		}
		user := users[rand.IntN(3)]
		var channels []notification.Channel
		if rand.IntN(2) == 0 {
			channels = []notification.Channel{notification.ChannelTrade, notification.ChannelSystem}[:1+rand.IntN(2)]
		}
		list, err := m.index.Missed(t.Context(), user, channels, after, upTo, 1<<20)
		tooOld := false
		for p := range after {
			tooOld = tooOld || after[p] < floor[p] && after[p] < upTo[p]
		}
		if tooOld {
			refused++
			require.ErrorIs(t, err, notification.ErrCursorGone)
			continue
		}
		require.NoError(t, err)
		var got [notification.NumPriorities][]string
		for _, message := range list {
			n := message.Notification()
			got[n.Priority] = append(got[n.Priority], n.ID)
		}
		want := m.missed(user, channels, after, upTo)
		require.Equal(t, want, got, "round %d", round)
		if total := len(list); total > 0 {
			_, err = m.index.Missed(t.Context(), user, channels, after, upTo, total)
			require.NoError(t, err)
			_, err = m.index.Missed(t.Context(), user, channels, after, upTo, total-1)
			require.ErrorIs(t, err, notification.ErrCursorGone, "one more than it may be")
		}
	}
	require.NotZero(t, refused)
	for p := range m.index.lanes { // users of whom nothing is left leave no trace
		l := &m.index.lanes[p]
		for user, last := range l.users {
			require.Greater(t, last, l.floor, user)
		}
	}
}

func TestIndexShares(t *testing.T) {
	t.Run("the block that was stored first goes first, of whatever lane", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		for range 3 {
			for p := range notification.Priority(notification.NumPriorities) {
				m.add(p, m.note("u", p))
			}
		}
		for range 5 {
			require.True(t, m.index.evict())
		}
		for p := range m.index.lanes {
			want := uint64(2)
			if p == 0 {
				want = 3
			}
			require.Equal(t, want, m.index.lanes[p].first)
		}
		for range 7 {
			require.True(t, m.index.evict())
		}
		require.False(t, m.index.evict(), "nothing is left")
		require.Zero(t, m.index.size.Load())
		require.Empty(t, m.index.lanes[1].users)
	})
	t.Run("blocks without entries do not stay for ever", func(t *testing.T) {
		m := newIndexModel(t, 10_000)
		for range 1000 {
			m.add(notification.P3)
		}
		require.Less(t, len(m.index.lanes[notification.P3].blocks), 100)
	})
	t.Run("a cursor at the last entry of the block that went is good", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		m.add(notification.P1, m.note("u", notification.P1), m.note("u", notification.P1))
		m.add(notification.P1, m.note("u", notification.P1))
		m.index.evict()
		upTo := m.index.At()
		after := upTo
		for after[1] = number(1, 1); ; after[1]-- {
			list, err := m.index.Missed(t.Context(), "u", nil, after, upTo, 10)
			if after[1] == number(1, 0) {
				require.ErrorIs(t, err, notification.ErrCursorGone)
				break
			}
			require.NoError(t, err)
			require.Len(t, list, 1)
		}
	})
}

func TestIndexRefuses(t *testing.T) {
	t.Run("whoever asks before it is warm", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		m.index.reset(2)
		_, err := m.index.Missed(t.Context(), "u", nil, numbers{}, numbers{}, 1)
		require.ErrorIs(t, err, errCold)
		require.NotErrorIs(t, err, notification.ErrCursorGone)
		require.EqualValues(t, 2, m.index.Epoch())
	})
	t.Run("a cursor behind which the log has ended, not one that another edge was faster with", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		m.add(notification.P2, m.note("u", notification.P2))
		after := m.index.At()
		after[2] = number(5, 0)
		m.ends = 4
		_, err := m.index.Missed(t.Context(), "u", nil, after, after, 1)
		require.ErrorIs(t, err, notification.ErrCursorGone)
		m.ends = 5
		_, err = m.index.Missed(t.Context(), "u", nil, after, after, 1)
		require.NoError(t, err)
	})
	t.Run("without asking the server for each of a thousand that another edge was faster with", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		after := m.index.At()
		after[2] = number(5, 0)
		m.ends = 5
		var asked atomic.Int32
		ends := m.index.ends
		m.index.ends = func(ctx context.Context, p notification.Priority) (uint64, error) {
			asked.Add(1)
			return ends(ctx, p)
		}
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { // ends by itself; waited for below
				_, err := m.index.Missed(t.Context(), "u", nil, after, after, 1)
				assert.NoError(t, err)
			})
		}
		all.Wait()
		require.EqualValues(t, 1, asked.Load())
		m.index.reset(2)
		m.index.warm.Store(true)
		_, err := m.index.Missed(t.Context(), "u", nil, after, after, 1)
		require.NoError(t, err)
		require.EqualValues(t, 2, asked.Load(), "in another epoch it is asked again")
	})
	t.Run("to pass over an archive of an unknown type", func(t *testing.T) {
		m := newIndexModel(t, 1<<20)
		before := m.index.At()
		b := m.add(notification.P1, m.note("u", notification.P1), m.note("v", notification.P1))
		b.data = slices.Clone(b.data)
		b.data[archiveType] = 77
		b.layouts = "77=" + fmt.Sprint(len(b.data)) // whose it is cannot be told: everybody's
		m.index.begin(notification.P1, 1, block{})
		l := &m.part.lanes[1]
		l.window = newWindow(10)
		m.part.place(notification.P1, b)
		require.Len(t, l.placed, 2)
		m.index.add(notification.P1, b, l.placed)
		for _, user := range []string{"u", "v"} {
			_, err := m.index.Missed(t.Context(), user, nil, before, m.index.At(), 10)
			require.ErrorIs(t, err, notification.ErrCursorGone)
		}
	})
}

func TestSeal(t *testing.T) {
	m := newIndexModel(t, 1<<20)
	begin := m.index.At()
	first, ok := m.index.Seal("u", begin)
	require.True(t, ok, "the beginning of the log is a place")
	for range 3 {
		m.add(notification.P1, m.note("u", notification.P1))
	}
	seal := func(user string, n uint64) uint64 {
		at := begin
		at[1] = n
		s, ok := m.index.Seal(user, at)
		require.True(t, ok)
		return s
	}
	t.Run("it is the same within a block, and another elsewhere", func(t *testing.T) {
		require.Equal(t, seal("u", number(2, 0)), seal("u", endOf(2)))
		require.NotEqual(t, seal("u", number(2, 0)), seal("u", number(3, 0)))
		require.NotEqual(t, seal("u", number(2, 0)), seal("v", number(2, 0)))
		require.NotEqual(t, first, seal("u", number(2, 0)))
	})
	t.Run("it is another if the block was stored at another time", func(t *testing.T) {
		before := seal("u", number(3, 0))
		again := newIndexModel(t, 1<<20)
		again.now = again.now.Add(time.Nanosecond)
		for range 3 {
			again.add(notification.P1, again.note("u", notification.P1))
		}
		at := begin
		at[1] = number(3, 0)
		after, ok := again.index.Seal("u", at)
		require.True(t, ok)
		require.NotEqual(t, before, after)
	})
	t.Run("a place that is not known has none", func(t *testing.T) {
		at := begin
		at[1] = number(4, 0)
		_, ok := m.index.Seal("u", at)
		require.False(t, ok, "not yet")
		at[1] = number(1, 0)
		want, ok := m.index.Seal("u", at)
		require.True(t, ok)
		m.index.evict()
		s, ok := m.index.Seal("u", at)
		require.True(t, ok, "the last that went is remembered")
		require.Equal(t, want, s)
		m.index.evict()
		_, ok = m.index.Seal("u", at)
		require.False(t, ok, "no longer")
	})
}
