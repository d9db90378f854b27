package natslog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// reader returns a Reader that is closed at the end of the test.
func reader(t testing.TB, l *Log, from Position) *Reader {
	t.Helper()
	r, err := l.NewReader(from)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// next returns the ID of the next archive, and the Position behind it, which it
// takes through its text.
func next(t testing.TB, r *Reader) (string, Position) {
	t.Helper()
	a, at, err := r.Next(patient(t))
	require.NoError(t, err)
	text, err := at.MarshalText()
	require.NoError(t, err)
	var read Position
	require.NoError(t, read.UnmarshalText(text))
	return a.ID(), read
}

// take returns the IDs of the next n archives, and the last Position.
func take(t testing.TB, r *Reader, n int) (ids []string, at Position) {
	t.Helper()
	for range n {
		var id string
		id, at = next(t, r)
		ids = append(ids, id)
	}
	return ids, at
}

// nothing checks that the Reader has nothing more to say. What is stored in each
// lane for that is what comes next.
func nothing(t testing.TB, nc *nats.Conn, l *Log, r *Reader) Position {
	t.Helper()
	want := map[string]bool{}
	for lane := range notification.Priority(notification.NumPriorities) {
		id := nats.NewInbox()
		store(t, nc, l, lane, id)
		want[id] = true
	}
	var at Position
	for range notification.NumPriorities {
		var id string
		id, at = next(t, r)
		require.True(t, want[id], id)
		delete(want, id)
	}
	return at
}

func TestReader(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	number := 0
	log := func(t *testing.T, cfg Config) *Log {
		number++
		cfg.URL, cfg.Name, cfg.pace = s.URL, fmt.Sprintf("log%d", number), hurry
		return open(t, cfg)
	}

	t.Run("it reads all lanes, each in order, from the oldest, and what comes later", func(t *testing.T) {
		l := log(t, Config{})
		want := map[notification.Priority][]string{}
		put := func(lane notification.Priority, id string) {
			store(t, nc, l, lane, id)
			want[lane] = append(want[lane], id)
		}
		for i := range 20 {
			put(notification.Priority(i%4), fmt.Sprint(i))
		}
		r := reader(t, l, Position{})
		got := map[notification.Priority][]string{}
		get := func(n int) {
			for range n {
				a, _, err := r.Next(patient(t))
				require.NoError(t, err)
				got[a.Priority()] = append(got[a.Priority()], a.ID())
			}
		}
		get(20)
		require.Equal(t, want, got)
		for i := 20; i < 30; i++ {
			put(notification.Priority(i%4), fmt.Sprint(i))
		}
		get(10)
		require.Equal(t, want, got)
	})
	t.Run("another Reader goes on at every Position, in the middle of a block as well", func(t *testing.T) {
		l := log(t, Config{})
		var all []string
		for i := range 5 {
			ids := []string{fmt.Sprint(i, "a"), fmt.Sprint(i, "b"), fmt.Sprint(i, "c")}
			store(t, nc, l, notification.P1, ids...)
			all = append(all, ids...)
		}
		r := reader(t, l, Position{})
		for i := range all {
			id, at := next(t, r)
			require.Equal(t, all[i], id)
			ids, _ := take(t, reader(t, l, at), len(all)-1-i)
			require.Equal(t, all[i+1:], append([]string{}, ids...))
		}
	})
	t.Run("a Position says of every stream where it is", func(t *testing.T) {
		l := log(t, Config{})
		for i := range 40 {
			store(t, nc, l, notification.Priority(i%4), fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))
		}
		seen := map[string]bool{}
		var at Position
		for range 80 { // a Reader for each
			r, err := l.NewReader(at)
			require.NoError(t, err)
			var id string
			id, at = next(t, r)
			require.False(t, seen[id])
			seen[id] = true
			require.NoError(t, r.Close())
		}
		require.Len(t, seen, 80)
		nothing(t, nc, l, reader(t, l, at))
	})
	t.Run("repeats are left out, also those of what came before the Position, and exactly within DedupSize", func(t *testing.T) {
		l := log(t, Config{DedupSize: 10})
		store(t, nc, l, notification.P1, "a", "b", "a", "c")           // 1 to 4
		store(t, nc, l, notification.P1, "b")                          // 5
		store(t, nc, l, notification.P1, "1", "2", "3", "4", "5", "6") // 6 to 11
		store(t, nc, l, notification.P1, "a", "c")                     // 12: ten after 3, so a repeat; 13: a repeat of 4
		store(t, nc, l, notification.P1, "7", "8")                     // 14, 15
		store(t, nc, l, notification.P1, "b")                          // 16: eleven after 5, so none
		want := []string{"a", "b", "c", "1", "2", "3", "4", "5", "6", "7", "8", "b"}
		r := reader(t, l, Position{})
		for i := range want {
			id, at := next(t, r)
			require.Equal(t, want[i], id)
			ids, _ := take(t, reader(t, l, at), len(want)-1-i)
			require.Equal(t, want[i+1:], append([]string{}, ids...))
		}
		nothing(t, nc, l, r)
	})
	t.Run("a message that is no block, and an archive of an unknown type, are errors behind which it goes on", func(t *testing.T) {
		l := log(t, Config{})
		js := natstest.JetStream(t, nc)
		store(t, nc, l, notification.P1, "1")
		storeData(t, js, &nats.Msg{Subject: l.subject(notification.P1, 0), Data: []byte("what?")})
		data, err := note("2", "alice", notification.P1).MarshalBinary()
		require.NoError(t, err)
		unknown := append([]byte{}, data...)
		unknown[archiveType] = 250
		storeData(t, js, newBlockMsg(l.subject(notification.P1, 0), "m", 2, append(unknown, data...)))
		r := reader(t, l, Position{})
		id, at := next(t, r)
		require.Equal(t, "1", id)
		for _, from := range []Position{at, {}} { // the second is this Reader
			r := r
			if !from.IsZero() {
				r = reader(t, l, from)
			}
			_, _, err = r.Next(patient(t))
			require.ErrorIs(t, err, notification.ErrCorrupt)
			require.ErrorContains(t, err, "message 2")
			_, at, err := r.Next(patient(t))
			require.ErrorIs(t, err, notification.ErrCorrupt)
			require.ErrorContains(t, err, "entry 0 of block 3")
			id, _ = next(t, r)
			require.Equal(t, "2", id)
			id, _ = next(t, reader(t, l, at))
			require.Equal(t, "2", id)
		}
	})
	t.Run("it misses and repeats nothing while the server is killed and a Publisher goes on", func(t *testing.T) {
		l := log(t, Config{})
		p := publisher(t, l, PublisherConfig{Linger: [notification.NumPriorities]time.Duration{-1, -1, -1, -1}})
		const n = 2000
		var publishing sync.WaitGroup
		publishing.Go(func() { // ends when all have been published; waited for below
			for i := range n {
				lane := notification.Priority(i % 4)
				for {
					err := p.PublishWait(context.Background(), note(fmt.Sprint(i), fmt.Sprint("user", i%7), lane))
					if err == nil {
						break
					}
				}
			}
		})
		r := reader(t, l, Position{})
		last := map[notification.Priority]int{}
		for i := range n {
			if i%500 == 250 {
				s.Restart()
			}
			a, at, err := r.Next(patient(t))
			require.NoError(t, err)
			var k int
			_, err = fmt.Sscan(a.ID(), &k)
			require.NoError(t, err)
			if was, any := last[a.Priority()]; any {
				require.Equal(t, was+4, k)
			} else {
				require.EqualValues(t, a.Priority(), k)
			}
			last[a.Priority()] = k
			if i%500 == 400 {
				r = reader(t, l, at)
			}
		}
		publishing.Wait()
		nothing(t, nc, l, r)
	})
}

func TestReaderGap(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	number := 0
	log := func(t *testing.T) *Log {
		number++
		return open(t, Config{URL: s.URL, Name: fmt.Sprintf("log%d", number), MaxBytes: 4 << 20, pace: hurry})
	}
	// fill lets a stream lose all that it has, and returns what is the first then.
	fill := func(t *testing.T, l *Log, lane notification.Priority) uint64 {
		m := newBlockMsg(l.subject(lane, 0), "", 0, nil)
		m.Header.Del(headerMsgID)
		m.Header.Set("Padding", string(make([]byte, 60<<10)))
		js := natstest.JetStream(t, nc)
		for range 80 {
			storeData(t, js, m)
		}
		state, err := l.bulk.state(t.Context(), l.stream(lane, 0))
		require.NoError(t, err)
		return state.first
	}

	t.Run("what is gone by size is ErrGap, as often as one asks, and the Position with it leads on behind it", func(t *testing.T) {
		l := log(t)
		for lane := range notification.Priority(4) {
			store(t, nc, l, lane, fmt.Sprint("1", lane))
			store(t, nc, l, lane, fmt.Sprint("2", lane))
		}
		_, at := take(t, reader(t, l, Position{}), 8)
		store(t, nc, l, notification.P2, "3")
		first := fill(t, l, notification.P1)
		store(t, nc, l, notification.P1, "behind")

		r := reader(t, l, at)
		got := map[string]bool{}
		var gone Position
		for {
			a, at, err := r.Next(patient(t))
			if err != nil {
				require.ErrorIs(t, err, notification.ErrGap)
				require.ErrorContains(t, err, fmt.Sprintf("blocks 3 to %d of %s are gone", first-1, l.stream(notification.P1, 0)))
				gone = at
				break
			}
			got[a.ID()] = true
		}
		_, again, err := r.Next(patient(t))
		require.ErrorIs(t, err, notification.ErrGap)
		require.Equal(t, gone.String(), again.String())
		r = reader(t, l, gone)
		for len(got) < 2 {
			id, _ := next(t, r)
			require.False(t, got[id])
			got[id] = true
		}
		require.Equal(t, map[string]bool{"3": true, "behind": true}, got)
		nothing(t, nc, l, r)
	})
	t.Run("a block that went when half of it was read is ErrGap", func(t *testing.T) {
		l := log(t)
		store(t, nc, l, notification.P1, "a", "b")
		_, at := next(t, reader(t, l, Position{}))
		first := fill(t, l, notification.P1)
		_, gone, err := reader(t, l, at).Next(patient(t))
		require.ErrorIs(t, err, notification.ErrGap)
		require.ErrorContains(t, err, fmt.Sprintf("blocks 1 to %d of", first-1))
		nothing(t, nc, l, reader(t, l, gone))
	})
	t.Run("what went before the zero Position is none", func(t *testing.T) {
		l := log(t)
		store(t, nc, l, notification.P1, "gone")
		fill(t, l, notification.P1)
		nothing(t, nc, l, reader(t, l, Position{}))
	})
	t.Run("neither is a block that was read and is gone, if nothing is behind it", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "age", Retention: 2 * time.Minute, pace: hurry})
		store(t, nc, l, notification.P1, "1")
		_, at := next(t, reader(t, l, Position{}))
		// As if the two minutes were over.
		js := natstest.JetStream(t, nc)
		cfg := l.streamConfig(notification.P1, 0)
		cfg.MaxAge, cfg.Duplicates = 100*time.Millisecond, 100*time.Millisecond
		_, err := js.UpdateStream(t.Context(), cfg)
		require.NoError(t, err)
		natstest.Eventually(t, "the block has aged away", func() bool {
			state, err := l.bulk.state(t.Context(), cfg.Name)
			return err == nil && state.first == 2
		})
		cfg.MaxAge = 2 * time.Minute
		_, err = js.UpdateStream(t.Context(), cfg)
		require.NoError(t, err)
		nothing(t, nc, l, reader(t, l, at))
	})
	t.Run("a Position of another epoch is ErrGap, and the zero Position comes with it", func(t *testing.T) {
		l := log(t)
		store(t, nc, l, notification.P1, "1")
		r := reader(t, l, Position{})
		_, at := next(t, r)
		require.NoError(t, l.epochs.lost(patient(t), l.bulk, epoch{value: func() string { e, _ := l.epochs.now(); return e.value }()}))
		for _, r := range []*Reader{r, reader(t, l, at)} {
			_, gone, err := r.Next(patient(t))
			require.ErrorIs(t, err, notification.ErrGap)
			require.True(t, gone.IsZero())
		}
		id, _ := next(t, reader(t, l, Position{}))
		require.Equal(t, "1", id)
	})
	t.Run("a Position of another number of partitions is ErrInvalid", func(t *testing.T) {
		l := log(t)
		_, err := l.NewReader(Position{epoch: 1, streams: make([]streamPlace, 8)})
		require.ErrorIs(t, err, notification.ErrInvalid)
	})
}

// A log that lost its tail when nobody read it: only the Position knows.
func TestReaderLostTail(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	for _, c := range []struct {
		name string
		upTo int
	}{
		{"behind whose end the Position is", 3},
		{"whose last block is the one after it", 6},
		{"in which the Position's block is another one", 9},
	} {
		t.Run("a log "+c.name+" is ErrGap, and nothing of it was returned before", func(t *testing.T) {
			name := fmt.Sprintf("log%d", c.upTo)
			l := open(t, Config{URL: s.URL, Name: name})
			storeMany(t, nc, l, notification.P1, 1, 3)
			old := s.Copy()
			storeMany(t, nc, l, notification.P1, 4, 6)
			r, err := l.NewReader(Position{})
			require.NoError(t, err)
			_, at := take(t, r, 6)
			require.NoError(t, r.Close())
			require.NoError(t, l.Close())
			s.Kill()
			s.SetBack(old)
			s.Restart()
			for i := 4; i <= c.upTo; i++ {
				store(t, nc, l, notification.P1, fmt.Sprint(100+i))
			}

			again := open(t, Config{URL: s.URL, Name: name, pace: hurry})
			_, zero, err := reader(t, again, at).Next(patient(t))
			require.ErrorIs(t, err, notification.ErrGap)
			require.True(t, zero.IsZero())
			// Those of others who were further behind are no good either: the numbering is
			// another one.
			r = reader(t, again, zero)
			ids, _ := take(t, r, c.upTo)
			require.Equal(t, "1", ids[0])
			nothing(t, nc, again, r)
		})
	}
}

func TestReaderEnds(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, pace: hurry})
	t.Run("a Next ends with its ctx, and the next one goes on", func(t *testing.T) {
		r := reader(t, l, Position{})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_, _, err := r.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		nothing(t, s.Connect(), l, r)
	})
	t.Run("a Next that waits ends with Close, and so does every later one", func(t *testing.T) {
		r := reader(t, l, Position{})
		take(t, r, 4)
		ended := make(chan error)
		go func() { // ends with Next
			_, _, err := r.Next(context.Background())
			ended <- err
		}()
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-ended, notification.ErrClosed)
		_, _, err := r.Next(patient(t))
		require.ErrorIs(t, err, notification.ErrClosed)
		require.NoError(t, r.Close())
	})
	t.Run("one that was never read is closed, too", func(t *testing.T) {
		r, err := l.NewReader(Position{})
		require.NoError(t, err)
		require.NoError(t, r.Close())
		_, _, err = r.Next(patient(t))
		require.ErrorIs(t, err, notification.ErrClosed)
	})
	t.Run("it ends when the Log is closed", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, pace: hurry})
		r := reader(t, l, Position{})
		take(t, r, 4)
		require.NoError(t, l.Close())
		_, _, err := r.Next(patient(t))
		require.ErrorIs(t, err, notification.ErrClosed)
	})
}

func TestPosition(t *testing.T) {
	p := Position{epoch: 1 << 63, streams: []streamPlace{{number(5, 7), 1}, {number(1<<50, lastOf), 1 << 62}, {number(0, lastOf), 0}, {0, 0}}, stream: 1, place: streamPlace{number(1<<50+1, 0), 1}}
	t.Run("its text is read as what it says", func(t *testing.T) {
		read, err := ParsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p.String(), read.String())
		for i := range p.streams {
			require.Equal(t, p.at(i), read.at(i))
		}
		require.Regexp(t, "^[A-Za-z0-9_-]+$", p.String())
	})
	t.Run("the zero Position is the empty text", func(t *testing.T) {
		require.Empty(t, Position{}.String())
		read, err := ParsePosition("")
		require.NoError(t, err)
		require.True(t, read.IsZero())
	})
	t.Run("a text that was changed anywhere is ErrInvalid", func(t *testing.T) {
		text := p.String()
		for i := range text {
			for _, c := range "Aa0" {
				changed := text[:i] + string(c) + text[i+1:]
				if changed == text {
					continue
				}
				_, err := ParsePosition(changed)
				require.ErrorIs(t, err, notification.ErrInvalid, changed)
			}
			_, err := ParsePosition(text[:i])
			require.True(t, i == 0 || errors.Is(err, notification.ErrInvalid))
		}
	})
}
