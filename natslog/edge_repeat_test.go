package natslog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// What edges decide on repeats, wherever in the log they begin.

// keeping returns an Edge that runs and is warm. It begins so far back in the log as
// is right for a Backlog of so many bytes, however few that are, and keeps all that
// comes later.
func keeping(t testing.TB, l *Log, id string, bytes int64) *Edge {
	t.Helper()
	e, err := l.NewEdge(id, EdgeConfig{})
	require.NoError(t, err)
	for _, p := range e.partitions {
		p.backlog = bytes
	}
	launch(t, e)
	return e
}

// missed returns the IDs of what an edge has for a user behind a number of P1, and
// false if it does not reach back so far.
func missed(t testing.TB, e *Edge, user string, after uint64) ([]string, bool) {
	t.Helper()
	x := e.partitions[0].index
	from, upTo := x.At(), x.At()
	from[notification.P1] = after
	list, err := x.Missed(t.Context(), user, nil, from, upTo, 1<<30)
	if err != nil {
		require.ErrorIs(t, err, notification.ErrCursorGone)
		return nil, false
	}
	ids := []string{}
	for _, m := range list {
		ids = append(ids, m.Notification().ID)
	}
	return ids, true
}

// hasRead waits until an edge has read P1 up to a block.
func hasRead(t testing.TB, e *Edge, seq uint64) {
	t.Helper()
	natstest.Eventually(t, "the edge has read all", func() bool {
		return e.partitions[0].index.At()[notification.P1] == endOf(seq)
	})
}

// Edges that begin at different places of a log full of repeats decide alike on all
// that they keep. It fails if the window of one is shorter than that of another, if
// repeats do not refresh it, if one begins to warm up later than DedupSize entries
// before what it keeps, and if one keeps what it only has read to warm up.
func TestEdgesDecideAlike(t *testing.T) {
	const size, users = 40, 3
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, DedupSize: size, pace: hurried})
	js := natstest.JetStream(t, s.Connect())
	serial, last := 0, uint64(0)
	recent := []string{"first"}
	grow := func(blocks int) {
		for range blocks {
			var data []byte
			n := rand.IntN(5)
			for range n {
				user := fmt.Sprint("user", rand.IntN(users))
				if rand.IntN(10) == 0 {
					user = notification.AllUsers
				}
				id := recent[len(recent)-1-rand.IntN(min(len(recent), size+10))] // about as far back as the window is long
				if rand.IntN(3) > 0 {
					serial++
					id = fmt.Sprint("n", serial)
				}
				recent = append(recent, id)
				var err error
				data, err = note(id, user, notification.P1).AppendBinary(data)
				require.NoError(t, err)
			}
			last = storeData(t, js, newBlockMsg(l.subject(notification.P1, 0), nats.NewInbox(), n, data))
		}
	}
	first := keeping(t, l, "first", 64<<20) // has all from the beginning, and decides on all of it
	grow(50)
	edges := []*Edge{keeping(t, l, "all", 64<<20)}
	for i := range 6 {
		grow(60)
		edges = append(edges, keeping(t, l, fmt.Sprint("edge", i), int64(1000+rand.IntN(6000))))
	}
	grow(100)
	hasRead(t, first, last)
	compared := 0
	for _, e := range edges {
		hasRead(t, e, last)
		reaches := false
		for seq := uint64(1); seq <= last; seq += 1 + rand.Uint64N(6) {
			for u := range users {
				user := fmt.Sprint("user", u)
				got, ok := missed(t, e, user, endOf(seq-1))
				reaches = reaches || ok
				require.Equal(t, reaches, ok, "%s: from one block on it has all", e.id)
				if ok {
					want, _ := missed(t, first, user, endOf(seq-1))
					require.Equal(t, want, got, "%s, %s, behind block %d", e.id, user, seq-1)
					compared++
				}
			}
		}
		require.True(t, reaches, e.id)
	}
	require.Greater(t, compared, 200)
	require.Greater(t, first.Stats().Streams[notification.P1].Repeats, uint64(100))
}

// The last entry of which an edge that begins late must know is DedupSize before
// what it keeps.
func TestEdgeWarmsUp(t *testing.T) {
	const size = 10
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	for _, c := range []struct {
		name     string
		distance int // of the repeat from the first
		want     []string
	}{
		{"a repeat of what stands DedupSize before it is recognized by who keeps the repeat alone", size, []string{"x", "last"}},
		{"what stands further back is delivered again, by all", size + 1, []string{"x", "x", "last"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t, Config{URL: s.URL, Name: fmt.Sprint("at", c.distance), DedupSize: size, pace: hurried})
			first := keeping(t, l, "first", 1<<20)
			for i := range 5 {
				store(t, nc, l, notification.P1, fmt.Sprint("before", i))
			}
			store(t, nc, l, notification.P1, "x")
			for i := range c.distance - 1 {
				store(t, nc, l, notification.P1, fmt.Sprint("between", i))
			}
			again := store(t, nc, l, notification.P1, "x")
			last := store(t, nc, l, notification.P1, "last")
			late := keeping(t, l, "late", bytesOf(t, l, again, last))
			hasRead(t, first, last)
			require.EqualValues(t, again, late.partitions[0].lanes[notification.P1].from)
			got, ok := missed(t, late, "alice", endOf(again-1))
			require.True(t, ok)
			require.Equal(t, c.want[1:], got)
			got, ok = missed(t, late, "alice", number(again-1, 0))
			require.True(t, ok, "a cursor behind the last entry of the block before it is good")
			require.Equal(t, c.want[1:], got)
			_, ok = missed(t, late, "alice", endOf(again-2))
			require.False(t, ok, "that is not what it keeps")
			got, ok = missed(t, first, "alice", endOf(5))
			require.True(t, ok)
			require.Equal(t, c.want[0], got[0])
			require.Equal(t, c.want[1:], got[c.distance:])
		})
	}
}

// Who begins late looks for where to begin in the headers. One that lies must not make
// edges differ.
func TestEdgesDecideAlikeBehindNoBlock(t *testing.T) {
	const size = 10
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	js := natstest.JetStream(t, nc)
	for _, c := range []struct {
		says string // the header of the message between two that are alike
		want []string
	}{
		{"9", []string{"x", "last"}},
		{"8", []string{"last"}},
		{"1025", []string{"last"}},
	} {
		t.Run("it says that it has "+c.says, func(t *testing.T) {
			l := open(t, Config{URL: s.URL, Name: "says" + c.says, DedupSize: size, pace: hurried})
			first := keeping(t, l, "first", 1<<20)
			for i := range 2 * size {
				store(t, nc, l, notification.P1, fmt.Sprint("before", i))
			}
			store(t, nc, l, notification.P1, "x")
			lie := newBlockMsg(l.subject(notification.P1, 0), nats.NewInbox(), 0, []byte("no archive"))
			lie.Header.Set(headerEntries, c.says)
			storeData(t, js, lie)
			store(t, nc, l, notification.P1, "y")
			again := store(t, nc, l, notification.P1, "x")
			last := store(t, nc, l, notification.P1, "last")
			late := keeping(t, l, "late", bytesOf(t, l, again, last))
			require.EqualValues(t, again, late.partitions[0].lanes[notification.P1].from)
			hasRead(t, first, last)
			for _, e := range []*Edge{first, late} {
				got, ok := missed(t, e, "alice", endOf(again-1))
				require.True(t, ok)
				require.Equal(t, c.want, got, e.id)
			}
		})
	}
}

// bytesOf returns a backlog with which an edge that begins now keeps the blocks from
// one on.
func bytesOf(t testing.TB, l *Log, from, last uint64) int64 {
	t.Helper()
	var bytes int64
	for p := range notification.Priority(notification.NumPriorities) {
		state, err := l.conn(p).state(t.Context(), l.stream(p, 0))
		require.NoError(t, err)
		bytes += state.bytes
	}
	return int64(float64(bytes) / 1.25 * (float64(last-from+1) + 0.5) / float64(last))
}

// What clients get of repeats.
func TestEdgeRepeats(t *testing.T) {
	const size = 10
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, DedupSize: size, pace: hurried})
	p := publisher(t, l, PublisherConfig{})
	other := publisher(t, open(t, Config{URL: s.URL, DedupSize: size, pace: hurried}), PublisherConfig{})
	e := edge(t, l, "one", EdgeConfig{})
	alice := newListener(t, "alice")
	require.NoError(t, alice.connect(e))
	begin := alice.cursor
	var want []string
	say := func(p *Publisher, id string) {
		require.NoError(t, p.PublishWait(patient(t), note(id, "alice", notification.P1)))
	}
	fill := func(n int) {
		for range n {
			id := fmt.Sprint("n", len(want))
			say(p, id)
			want = append(want, id)
		}
	}
	fill(1)
	say(p, "n0")
	say(other, "n0") // another process says it, too
	fill(size - 1)
	say(other, "n0") // DedupSize behind the last time it was said
	fill(size)
	say(other, "n0") // and one more
	want = append(want, "n0")
	fill(2)
	require.Equal(t, want, alice.want(len(want)))
	t.Run("who resumes, anywhere, gets the same", func(t *testing.T) {
		for _, e := range []*Edge{e, edge(t, l, "two", EdgeConfig{})} {
			again := newListener(t, "alice")
			again.cursor = begin
			again.resumes(e)
			require.Equal(t, want, again.want(len(want)))
		}
	})
	t.Run("one ID in two lanes is delivered in both", func(t *testing.T) {
		require.NoError(t, p.PublishWait(patient(t), note("n0", "alice", notification.P2)))
		require.Equal(t, "n0", alice.want(len(want) + 1)[len(want)])
	})
}

// A server whose streams have all aged away while nobody was there.
func TestEdgeAfterSilence(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, duplicates: 100 * time.Millisecond, pace: hurried})
	p := publisher(t, l, PublisherConfig{})
	for lane := range notification.Priority(notification.NumPriorities) {
		require.NoError(t, p.PublishWait(patient(t), note("old", "alice", lane)))
		ctx, cancel := context.WithTimeout(t.Context(), natstest.Patience)
		defer cancel()
		cfg := l.streamConfig(lane, 0)
		cfg.MaxAge = 200 * time.Millisecond
		_, err := l.bulk.js.UpdateStream(ctx, cfg)
		require.NoError(t, err)
		natstest.Eventually(t, "the stream is empty", func() bool {
			state, err := l.conn(lane).state(ctx, l.stream(lane, 0))
			return err == nil && state.first > state.last
		})
		cfg.MaxAge = l.cfg.Retention
		_, err = l.bulk.js.UpdateStream(ctx, cfg)
		require.NoError(t, err)
	}
	one, two := edge(t, l, "one", EdgeConfig{}), edge(t, l, "two", EdgeConfig{})
	alice := newListener(t, "alice")
	require.NoError(t, alice.connect(one))
	alice.leave()
	require.NoError(t, p.PublishWait(patient(t), note("new", "alice", notification.P1)))
	alice.resumes(two) // the place of one who has got nothing yet is good at another edge
	require.Equal(t, []string{"new"}, alice.want(1))
}
