package natslog

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A tail that is lost is made here as a disk loses it: by a copy of the folder that
// is put back.

// reused returns words for blocks whose IDs are 100 and the sequence.
func reused(from, to int) []string {
	var words []string
	for i := from; i <= to; i++ {
		words = append(words, fmt.Sprintf("%d:%d", i, 100+i))
	}
	return words
}

func epochOf(t testing.TB, l *Log) uint64 {
	t.Helper()
	var e epoch
	natstest.Eventually(t, "the epoch is known", func() bool {
		var err error
		e, err = l.epochs.look(patient(t), l.bulk)
		return err == nil
	})
	return e.id
}

func TestLostTail(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	for _, c := range []struct {
		name        string
		reusedUpTo  int      // what is stored before the followers are back
		comesBefore []string // of the new epoch, what comes up to there, but for empty blocks
	}{
		{"of which no number was used again is seen by what is last", 10, list(run(1, 10), "warm")},
		{"of which some numbers were used again is seen by what is last", 15, list(run(1, 10), reused(11, 15), "warm")},
		{"of which all numbers were used again is seen by the time of a block", 20, list(run(1, 10), reused(11, 20), "warm")},
		{"whose numbers were used again and left behind is seen by the time of a block", 25, list(run(1, 10), reused(11, 25), "warm")},
	} {
		t.Run(c.name, func(t *testing.T) {
			way := natstest.NewProxy(t, s.URL)
			l := open(t, Config{URL: way.URL, Name: fmt.Sprintf("lost%d", c.reusedUpTo), pace: hurry})
			r := follow(t, l, nil)
			r.expect("warm")
			storeMany(t, nc, l, notification.P1, 1, 10)
			old := s.Copy()
			storeMany(t, nc, l, notification.P1, 11, 20)
			before := list("warm", run(1, 20))
			r.expect(before...)
			epoch := epochOf(t, l)

			way.Cut()
			s.Kill()
			s.SetBack(old)
			s.Restart()
			for i := 11; i <= c.reusedUpTo; i++ {
				store(t, nc, l, notification.P1, fmt.Sprint(100+i))
			}
			way.Mend()
			after := list(before, "epoch", c.comesBefore)
			r.expectFilled(after...)
			require.NotEqual(t, epoch, epochOf(t, l))
			require.EqualValues(t, 1, r.f.counts.lost.Load())
			require.Zero(t, r.f.counts.gaps.Load())

			// And then it goes on as ever.
			next := store(t, nc, l, notification.P1, "more")
			after = list(after, fmt.Sprintf("%d:more", next))
			r.expectFilled(after...)
			s.Restart()
			next = store(t, nc, l, notification.P1, "more")
			r.expectFilled(list(after, fmt.Sprintf("%d:more", next))...)
			require.EqualValues(t, 1, r.f.counts.epochs.Load())
		})
	}
}

func TestLostTailTwice(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	l := open(t, Config{URL: s.URL, pace: hurry})
	other := open(t, Config{URL: s.URL, pace: hurry})
	r := follow(t, l, nil)
	r.expect("warm")
	storeMany(t, nc, l, notification.P1, 1, 5)
	r.expect(list("warm", run(1, 5))...)
	require.Equal(t, epochOf(t, l), epochOf(t, other))
	seen := map[uint64]bool{epochOf(t, l): true}
	old := s.Copy()
	for i := range 3 {
		store(t, nc, l, notification.P1, "x")
		natstest.Eventually(t, "the follower has all", func() bool {
			st, err := l.bulk.state(t.Context(), l.stream(notification.P1, 0))
			return err == nil && r.f.counts.read.Load() == st.last && r.f.counts.epochs.Load() == uint64(i)
		})
		// The bucket is set back as well, and shows a value that was used before.
		s.Kill()
		s.SetBack(old)
		s.Restart()
		natstest.Eventually(t, "another epoch", func() bool { return r.f.counts.epochs.Load() == uint64(i+1) })
		require.False(t, seen[epochOf(t, l)], "an epoch is never used twice")
		seen[epochOf(t, l)] = true
		require.Equal(t, epochOf(t, l), epochOf(t, other), "all agree")
	}
}

// A leader that was deposed and does not know it yet says less than the next one.
func TestStaleLeaderIsNotBelieved(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	l := open(t, Config{URL: s.URL, pace: pace{request: natstest.Patience}})
	storeMany(t, nc, l, notification.P1, 1, 5)
	before := epochOf(t, l)
	f := l.newFollower(notification.P1, 0)
	f.epoch, _ = l.epochs.now()
	lost, err := f.lostTail(patient(t), f.epoch, known{seq: 5}, streamState{first: 1, last: 3})
	require.False(t, lost)
	require.ErrorIs(t, err, errAgain)
	require.Equal(t, before, epochOf(t, l))
	lost, err = f.lostTail(patient(t), f.epoch, known{seq: 100}, streamState{first: 1, last: 6})
	require.True(t, lost)
	require.NoError(t, err)
	require.NotEqual(t, before, epochOf(t, l))
}

// The epoch may be changed, and the answer that it was get lost: the tail was lost all
// the same, and once, however often the follower sees it.
func TestLostTailIsCountedOnce(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, pace: hurry})
	epochOf(t, l)
	require.NoError(t, l.bulk.js.DeleteKeyValue(patient(t), l.epochs.bucket())) // the epoch cannot be changed
	f := l.newFollower(notification.P1, 0)
	f.epoch, _ = l.epochs.now()
	for range 2 {
		lost, err := f.lostTail(patient(t), f.epoch, known{seq: 100}, streamState{first: 1, last: 6})
		require.False(t, lost)
		require.Error(t, err)
		require.NotErrorIs(t, err, errAgain)
	}
	require.EqualValues(t, 1, f.counts.lost.Load())
}

func TestEpochChanges(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	js := natstest.JetStream(t, nc)
	l := open(t, Config{URL: s.URL, pace: hurry})
	r := follow(t, l, nil)
	r.expect("warm")
	storeMany(t, nc, l, notification.P1, 1, 3)
	said := list("warm", run(1, 3))
	r.expect(said...)
	epoch := epochOf(t, l)

	t.Run("restarts do not change it", func(t *testing.T) {
		s.Restart()
		require.Equal(t, epoch, epochOf(t, l))
	})
	t.Run("another Log has the same", func(t *testing.T) {
		require.Equal(t, epoch, epochOf(t, open(t, Config{URL: s.URL})))
	})
	t.Run("a purge is refused", func(t *testing.T) {
		stream, err := js.Stream(t.Context(), l.stream(notification.P1, 0))
		require.NoError(t, err)
		require.Error(t, stream.Purge(t.Context()))
		require.Error(t, stream.DeleteMsg(t.Context(), 2))
	})
	t.Run("one of the streams that was deleted and created anew changes it for the readers of all", func(t *testing.T) {
		require.NoError(t, js.DeleteStream(t.Context(), l.stream(notification.P3, 0)))
		open(t, Config{URL: s.URL})
		said = list(said, "epoch", run(1, 3), "warm")
		r.expect(said...)
		require.NotEqual(t, epoch, epochOf(t, l))
	})
	t.Run("so does the stream itself, which begins at 1", func(t *testing.T) {
		require.NoError(t, js.DeleteStream(t.Context(), l.stream(notification.P1, 0)))
		open(t, Config{URL: s.URL})
		storeMany(t, nc, l, notification.P1, 1, 9)
		natstest.Eventually(t, "all is read", func() bool { return r.f.counts.read.Load() == 9 })
		require.EqualValues(t, 2, r.f.counts.epochs.Load())
		require.Zero(t, r.f.counts.gaps.Load())
	})
	t.Run("so does a bucket that was deleted", func(t *testing.T) {
		before := epochOf(t, l)
		require.NoError(t, js.DeleteKeyValue(t.Context(), l.epochs.bucket()))
		natstest.Eventually(t, "another epoch", func() bool { return r.f.counts.epochs.Load() == 3 })
		require.NotEqual(t, before, epochOf(t, l))
	})
	t.Run("so does a value that was deleted", func(t *testing.T) {
		before := epochOf(t, l)
		kv, err := js.KeyValue(t.Context(), l.epochs.bucket())
		require.NoError(t, err)
		require.NoError(t, kv.Delete(t.Context(), epochKey))
		natstest.Eventually(t, "another epoch", func() bool { return r.f.counts.epochs.Load() == 4 })
		require.NotEqual(t, before, epochOf(t, l))
	})
	t.Run("many who look at once look together", func(t *testing.T) {
		const n = 50
		ids := make(chan uint64, n)
		l.epochs.mu.Lock()
		before := l.epochs.begun
		l.epochs.mu.Unlock()
		l.epochs.turn <- struct{}{} // until all have come
		for range n {
			go func() { // ends with look
				e, _ := l.epochs.look(patient(t), l.bulk)
				ids <- e.id
			}()
		}
		<-time.After(50 * time.Millisecond) // those that come later only look once more
		<-l.epochs.turn
		want := epochOf(t, l)
		for range n {
			require.Equal(t, want, <-ids)
		}
		l.epochs.mu.Lock()
		defer l.epochs.mu.Unlock()
		require.Less(t, l.epochs.begun-before, uint64(n))
	})
}

func TestGap(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	js := natstest.JetStream(t, nc)
	t.Run("what went by size while it was to be read is a gap, and all behind it comes", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "size", MaxBytes: 4 << 20, pace: hurry})
		big := func(seq int) {
			m := newBlockMsg(l.subject(notification.P1, 0), fmt.Sprint("m", seq), 0, nil)
			m.Header.Set("Padding", string(make([]byte, 32<<10)))
			require.EqualValues(t, seq, storeData(t, js, m))
		}
		r := follow(t, l, nil)
		r.expect("warm")
		big(1)
		r.expect("warm", "1:")
		release := r.hold()
		const last = 300 // of which some 125 are kept
		big(2)
		r.busy()
		for seq := 3; seq <= last; seq++ {
			big(seq)
		}
		state, err := l.bulk.state(t.Context(), l.stream(notification.P1, 0))
		require.NoError(t, err)
		release()
		natstest.Eventually(t, "all is read", func() bool { return r.f.counts.read.Load() == last })
		said := r.until(1)
		// Those that had arrived before they went come, too.
		from := int(state.first - r.f.counts.gaps.Load())
		require.Greater(t, from, 2)
		require.Less(t, from, 100)
		want := []string{"warm"}
		for seq := 1; seq < from; seq++ {
			want = append(want, fmt.Sprintf("%d:", seq))
		}
		want = append(want, fmt.Sprintf("gap %d-%d", from, state.first-1))
		for seq := state.first; seq <= last; seq++ {
			want = append(want, fmt.Sprintf("%d:", seq))
		}
		require.Equal(t, want, said)
	})
	t.Run("so is what went before it was read for the first time, if it was wanted", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "size", MaxBytes: 4 << 20, pace: hurry})
		state, err := l.bulk.state(t.Context(), l.stream(notification.P1, 0))
		require.NoError(t, err)
		gap := fmt.Sprintf("gap 2-%d", state.first-1)
		require.Equal(t, gap, follow(t, l, func(streamState) place { return place{next: 2} }).until(1)[0])
		require.Equal(t, gap, follow(t, l, func(streamState) place { return place{next: 2, warm: 100} }).until(1)[0])
		first := fmt.Sprintf("%d:", state.first)
		require.Equal(t, first, follow(t, l, nil).until(1)[0])
		require.Equal(t, first, follow(t, l, func(s streamState) place { return place{next: s.last, warm: 1 << 20} }).until(1)[0])
	})
	t.Run("a hole in the stream itself is one, too", func(t *testing.T) {
		// Streams of ours deny it; this one was made by somebody else.
		l := open(t, Config{URL: s.URL, Name: "holes", pace: hurry})
		require.NoError(t, js.DeleteStream(t.Context(), l.stream(notification.P1, 0)))
		cfg := l.streamConfig(notification.P1, 0)
		cfg.DenyDelete = false
		stream, err := js.CreateStream(t.Context(), cfg)
		require.NoError(t, err)
		storeMany(t, nc, l, notification.P1, 1, 9)
		for _, seq := range []uint64{3, 5, 6} {
			require.NoError(t, stream.DeleteMsg(t.Context(), seq))
		}
		r := follow(t, l, nil)
		said := list(run(1, 2), "gap 3-3", run(4, 4), "gap 5-6", run(7, 9), "warm")
		r.expect(said...)
		storeMany(t, nc, l, notification.P1, 10, 14)
		r.expect(list(said, run(10, 14))...)
	})
}

func TestQuiet(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	quick := hurry
	quick.quiet = 150 * time.Millisecond
	l := open(t, Config{URL: s.URL, pace: quick})
	other := open(t, Config{URL: s.URL, pace: quick})
	store(t, nc, l, notification.P1, "1")
	a, b := follow(t, l, nil), follow(t, other, nil)
	for _, r := range []*recorder{a, b} {
		// It is warm when it has read what there was when it began, which may be some of
		// the other's blocks.
		said := slices.DeleteFunc(r.until(6), func(word string) bool { return word == "warm" })
		require.Equal(t, "1:1", said[0])
		for i, word := range said[1:] {
			require.Equal(t, fmt.Sprintf("%d:", i+2), word)
		}
	}
	blocks := read(t, l, notification.P1, 0)
	require.GreaterOrEqual(t, a.f.counts.empty.Load()+b.f.counts.empty.Load(), uint64(4))
	for i := 1; i < len(blocks); i++ {
		require.Zero(t, blocks[i].count)
		// Two readers that are late have stored one block.
		require.GreaterOrEqual(t, blocks[i].stored.Sub(blocks[i-1].stored), quick.quiet)
	}
}
