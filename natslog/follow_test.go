package natslog

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// hurry is a pace at which a test is over soon. On a busy machine heartbeats may
// seem to be missing: then the stream is looked at once more, and nothing else
// happens.
var hurry = pace{heartbeat: 100 * time.Millisecond, check: 200 * time.Millisecond, quiet: time.Hour, elsewhere: time.Second}

// store stores a block with these IDs in a lane and returns its sequence, by a
// connection that the Log has nothing to do with.
func store(t testing.TB, nc *nats.Conn, l *Log, lane notification.Priority, ids ...string) uint64 {
	t.Helper()
	js := natstest.JetStream(t, nc)
	var data []byte
	for _, id := range ids {
		var err error
		data, err = note(id, "alice", lane).AppendBinary(data)
		require.NoError(t, err)
	}
	return storeData(t, js, newBlockMsg(l.subject(lane, 0), nats.NewInbox(), len(ids), data))
}

// storeData stores a message, and waits for servers that are away.
func storeData(t testing.TB, js jetstream.JetStream, m *nats.Msg) (seq uint64) {
	t.Helper()
	natstest.Eventually(t, "a block is stored", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		ack, err := js.PublishMsg(ctx, m)
		if err == nil {
			seq = ack.Sequence
		}
		return err == nil
	})
	return seq
}

// storeMany stores blocks of one entry, with the IDs from "<from>" to "<to>".
func storeMany(t testing.TB, nc *nats.Conn, l *Log, lane notification.Priority, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		store(t, nc, l, lane, fmt.Sprint(i))
	}
}

// A recorder runs a follower and keeps what it hands over. It is for the goroutine
// of the test.
type recorder struct {
	t testing.TB
	f *follower

	mu     sync.Mutex
	said   []string      // guarded by mu: the events in words
	epochs []uint64      // guarded by mu
	held   chan struct{} // guarded by mu: while it is not nil, handle waits until it is closed
	waits  bool          // guarded by mu: handle does
}

// follow runs a follower of P1 until the end of the test. from says where to begin
// in an epoch; nil is with the oldest.
func follow(t testing.TB, l *Log, from func(s streamState) place) *recorder {
	t.Helper()
	r := newRecorder(t, l, from)
	r.start()
	return r
}

// newRecorder returns one that does not run yet.
func newRecorder(t testing.TB, l *Log, from func(s streamState) place) *recorder {
	t.Helper()
	r := &recorder{t: t, f: l.newFollower(notification.P1, 0)}
	r.f.begin = func(_ context.Context, epoch uint64, s streamState) (place, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.epochs) > 0 {
			r.said = append(r.said, "epoch")
		}
		r.epochs = append(r.epochs, epoch)
		if from == nil {
			return place{}, nil
		}
		return from(s), nil
	}
	r.f.handle = func(ctx context.Context, e event) error {
		r.mu.Lock()
		held := r.held
		r.waits = held != nil
		r.mu.Unlock()
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.waits = false
		switch e.kind {
		case warmEvent:
			r.said = append(r.said, "warm")
		case gapEvent:
			r.said = append(r.said, fmt.Sprintf("gap %d-%d", e.from, e.to))
		case corruptEvent:
			r.said = append(r.said, fmt.Sprintf("%d is no block", e.block.seq))
		case blockEvent:
			word := fmt.Sprintf("%d:", e.block.seq)
			for _, entry := range e.block.entries() {
				word += entry.archive.ID()
			}
			r.said = append(r.said, word)
		}
		return nil
	}
	return r
}

// start runs the follower until the end of the test.
func (r *recorder) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = r.f.run(ctx) }) // ends with ctx
	r.t.Cleanup(func() { cancel(); running.Wait() })
}

// hold lets the follower's user be busy until release is called.
func (r *recorder) hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := make(chan struct{})
	r.held = held
	return func() {
		r.mu.Lock()
		r.held = nil
		r.mu.Unlock()
		close(held)
	}
}

// busy returns when the follower's user is, after hold.
func (r *recorder) busy() {
	r.t.Helper()
	natstest.Eventually(r.t, "the follower waits for its user", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.waits
	})
}

// until waits until there are n events and returns them.
func (r *recorder) until(n int) []string {
	r.t.Helper()
	for give := time.Now().Add(natstest.Patience); ; <-time.After(time.Millisecond) {
		r.mu.Lock()
		said := append([]string(nil), r.said...)
		r.mu.Unlock()
		if len(said) >= n {
			return said
		}
		if time.Now().After(give) {
			r.t.Fatalf("waited in vain for %d events, there are %d: %q", n, len(said), said)
		}
	}
}

// expect waits until all that was handed over is this, and checks it. Anything that
// comes later is seen by the next expect.
func (r *recorder) expect(words ...string) {
	r.t.Helper()
	require.Equal(r.t, words, r.until(len(words)))
}

// untilFilled waits until there are n events other than empty blocks and returns them.
// A follower that finds a stream shorter than what it has read stores an empty block to
// learn whether it has asked a leader that was deposed, and another one if the answer is
// lost or late.
func (r *recorder) untilFilled(n int) (said []string) {
	r.t.Helper()
	for all := n; ; all++ {
		said = said[:0]
		for _, event := range r.until(all) {
			if !strings.HasSuffix(event, ":") {
				said = append(said, event)
			}
		}
		if len(said) >= n {
			return said
		}
	}
}

// expectFilled is expect for the events that untilFilled returns.
func (r *recorder) expectFilled(words ...string) {
	r.t.Helper()
	require.Equal(r.t, words, r.untilFilled(len(words)))
}

// run returns the words for blocks of one entry, "1:a1", where the ID of block seq
// is the number in the test's own count.
func run(from, to int) []string {
	var words []string
	for i := from; i <= to; i++ {
		words = append(words, fmt.Sprintf("%d:%d", i, i))
	}
	return words
}

func list(parts ...any) []string {
	var all []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all = append(all, p)
		case []string:
			all = append(all, p...)
		}
	}
	return all
}

var down = flag.Duration("down", time.Second, "how long the server is down in TestFollowOutage")

func TestFollowOutage(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, pace: hurry})
	p := publisher(t, l, PublisherConfig{})
	r := follow(t, l, nil)
	r.expect("warm")
	s.Kill()
	var waiting sync.WaitGroup
	const n = 100
	for i := 1; i <= n; i++ {
		waiting.Add(1)
		require.NoError(t, p.Publish(note(fmt.Sprint(i, ","), "alice", notification.P1), func(err error) {
			if err != nil {
				t.Error(err)
			}
			waiting.Done()
		}))
	}
	<-time.After(*down)
	s.Restart()
	waiting.Wait()
	var all, want string
	natstest.Eventually(t, "all has come", func() bool {
		said := r.until(2)[1:]
		all = ""
		for _, word := range said {
			_, ids, _ := strings.Cut(word, ":")
			all += ids
		}
		return strings.Count(all, ",") >= n
	})
	for i := 1; i <= n; i++ {
		want += fmt.Sprint(i, ",")
	}
	require.Equal(t, want, all)
}

func TestFollow(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	nc := s.Connect()
	name := 0
	// log returns a Log of its own on the server, or on the way to it.
	log := func(t *testing.T, url string) *Log {
		name++
		return open(t, Config{URL: url, Name: fmt.Sprintf("log%d", name), pace: hurry})
	}
	// listening returns one of which the followers look only when heartbeats are missing.
	listening := func(t *testing.T, url string) *Log {
		l := log(t, url)
		l.cfg.pace.check = time.Hour
		return l
	}

	t.Run("what is there and what comes is handed over in order, and said to be warm in between", func(t *testing.T) {
		l := log(t, s.URL)
		storeMany(t, nc, l, notification.P1, 1, 3)
		r := follow(t, l, nil)
		r.expect(list(run(1, 3), "warm")...)
		storeMany(t, nc, l, notification.P1, 4, 5)
		r.expect(list(run(1, 3), "warm", run(4, 5))...)
		natstest.Eventually(t, "no lag", func() bool { return r.f.lag() == 0 })
	})
	t.Run("a stream without a block is warm at once", func(t *testing.T) {
		follow(t, log(t, s.URL), nil).expect("warm")
	})
	t.Run("it goes on after a server was killed and started again", func(t *testing.T) {
		l := log(t, s.URL)
		storeMany(t, nc, l, notification.P1, 1, 2)
		r := follow(t, l, nil)
		r.expect(list(run(1, 2), "warm")...)
		for i := 3; i <= 5; i++ {
			s.Restart()
			storeMany(t, nc, l, notification.P1, i, i)
		}
		r.expect(list(run(1, 2), "warm", run(3, 5))...)
	})
	t.Run("it goes on after a server stood still", func(t *testing.T) {
		l := listening(t, s.URL)
		r := follow(t, l, nil)
		r.expect("warm")
		storeMany(t, nc, l, notification.P1, 1, 1)
		r.expect(list("warm", run(1, 1))...)
		before := r.f.counts.silent.Load()
		s.Freeze()
		natstest.Eventually(t, "the heartbeats are missed", func() bool { return r.f.counts.silent.Load() > before })
		s.Thaw()
		storeMany(t, nc, l, notification.P1, 2, 3)
		r.expect(list("warm", run(1, 3))...)
	})
	t.Run("it goes on after the connection was cut", func(t *testing.T) {
		way := natstest.NewProxy(t, s.URL)
		l := log(t, way.URL)
		r := follow(t, l, nil)
		r.expect("warm")
		for i := 1; i <= 3; i++ {
			way.Cut()
			storeMany(t, nc, l, notification.P1, i, i)
			way.Mend()
			r.expect(list("warm", run(1, i))...)
		}
	})
	t.Run("it goes on after a way that let nothing through", func(t *testing.T) {
		way := natstest.NewProxy(t, s.URL)
		l := listening(t, way.URL)
		r := follow(t, l, nil)
		r.expect("warm")
		storeMany(t, nc, l, notification.P1, 1, 1)
		r.expect(list("warm", run(1, 1))...)
		before := r.f.counts.silent.Load()
		way.Stall()
		storeMany(t, nc, l, notification.P1, 2, 3)
		natstest.Eventually(t, "the heartbeats are missed", func() bool { return r.f.counts.silent.Load() > before })
		way.Mend()
		r.expect(list("warm", run(1, 3))...)
	})
	t.Run("it goes on after its consumer was deleted", func(t *testing.T) {
		l := log(t, s.URL)
		r := follow(t, l, nil)
		r.expect("warm")
		js := natstest.JetStream(t, nc)
		stream, err := js.Stream(t.Context(), l.stream(notification.P1, 0))
		require.NoError(t, err)
		deleted := 0
		natstest.Eventually(t, "a consumer that can be deleted", func() bool {
			for name := range stream.ConsumerNames(t.Context()).Name() {
				if stream.DeleteConsumer(t.Context(), name) == nil {
					deleted++
				}
			}
			return deleted > 0
		})
		storeMany(t, nc, l, notification.P1, 1, 1)
		r.expect(list("warm", run(1, 1))...)
	})
	t.Run("what did not arrive is read again", func(t *testing.T) {
		way := natstest.NewProxy(t, s.URL)
		l := listening(t, way.URL)
		l.cfg.pace.heartbeat = time.Minute // nothing but what comes behind it tells that something is missing
		r := follow(t, l, nil)
		r.expect("warm")
		var mu sync.Mutex
		dropped := 0
		way.Drop(func(subject string) bool {
			mu.Lock()
			defer mu.Unlock()
			if subject == l.subject(notification.P1, 0) && dropped < 3 {
				dropped++
				return true
			}
			return false
		})
		storeMany(t, nc, l, notification.P1, 1, 10)
		r.expect(list("warm", run(1, 10))...)
		require.NotZero(t, r.f.counts.holes.Load())
		require.Zero(t, r.f.counts.gaps.Load())
	})
	t.Run("questions that are not answered take away no consumer that brings something, and hold up nothing", func(t *testing.T) {
		way := natstest.NewProxy(t, s.URL)
		l := log(t, way.URL)
		l.cfg.pace.heartbeat, l.cfg.pace.check, l.cfg.pace.request = time.Minute, 50*time.Millisecond, 5*time.Second
		r := follow(t, l, nil)
		r.expect("warm")
		store(t, nc, l, notification.P1, "1")
		r.expect(list("warm", run(1, 1))...)
		var unanswered atomic.Int64
		way.Drop(func(subject string) bool {
			inbox, found := strings.CutPrefix(subject, "_INBOX.")
			_, token, _ := strings.Cut(inbox, ".")
			if !found || len(token) < 8 { // what is said of a pull has its number there
				return false
			}
			unanswered.Add(1)
			return true
		})
		n := 1
		for unanswered.Load() < 2 {
			n++
			store(t, nc, l, notification.P1, fmt.Sprint(n))
			r.expect(list("warm", run(1, n))...)
		}
		require.EqualValues(t, 1, r.f.counts.passes.Load())
		way.Drop(nil)
		store(t, nc, l, notification.P1, fmt.Sprint(n+1))
		r.expect(list("warm", run(1, n+1))...)
	})
	t.Run("a block may be larger than a pull", func(t *testing.T) {
		l := listening(t, s.URL)
		l.cfg.pace.heartbeat = time.Minute // large blocks may take longer than the hurried one
		js := natstest.JetStream(t, nc)
		store := func(size int) { // once, even if the answer takes longer than storeData waits
			storeData(t, js, &nats.Msg{Subject: l.subject(notification.P1, 0), Header: nats.Header{headerMsgID: {nats.NewInbox()}}, Data: make([]byte, size)})
		}
		for _, size := range []int{100, pullBytes / 2, pullBytes, 7 << 20, 100, 2 * pullBytes, 2 * pullBytes, 100} {
			store(size)
		}
		r := follow(t, l, nil)
		r.expect("1 is no block", "2 is no block", "3 is no block", "4 is no block", "5 is no block", "6 is no block", "7 is no block", "8 is no block", "warm")
		require.EqualValues(t, 1, r.f.counts.passes.Load())
		store(7 << 20)
		r.until(10)
		before := r.f.counts.passes.Load()
		s.Restart()
		natstest.Eventually(t, "a look at a stream whose last block is large", func() bool { return r.f.counts.passes.Load() > before })
	})
	t.Run("a reader that is slow makes it wait, and costs no more memory than a pull", func(t *testing.T) {
		l := log(t, s.URL)
		js := natstest.JetStream(t, nc)
		const n = 40 // of 64 KiB: more than a pull, less than a stream may have
		for range n {
			_, err := js.PublishMsgAsync(&nats.Msg{Subject: l.subject(notification.P1, 0), Data: make([]byte, 64<<10)})
			require.NoError(t, err)
		}
		<-js.PublishAsyncComplete()
		r := newRecorder(t, l, nil)
		release := r.hold()
		r.start()
		stream, err := js.Stream(t.Context(), l.stream(notification.P1, 0))
		require.NoError(t, err)
		delivered := func() (most uint64) {
			for info := range stream.ListConsumers(t.Context()).Info() {
				most = max(most, info.Delivered.Stream)
			}
			return most
		}
		natstest.Eventually(t, "a pull is full", func() bool { return delivered() >= 15 })
		require.Less(t, delivered(), uint64(18))
		release()
		r.until(n + 1)
		require.Zero(t, r.f.counts.holes.Load())
	})
	t.Run("it begins so far before what is wanted that there are enough entries", func(t *testing.T) {
		l := log(t, s.URL)
		for i := range 100 {
			store(t, nc, l, notification.P1, fmt.Sprint(i), "+")
		}
		for _, c := range []struct {
			wanted       uint64
			warm, begins int
		}{
			{101, 0, 0}, {101, 1, 100}, {101, 2, 100}, {101, 3, 99}, {101, 128, 37}, {101, 130, 36}, {101, 200, 1}, {101, 1000, 1},
			{51, 10, 46}, {51, 100, 1}, {1, 10, 1}, {2, 10, 1},
		} {
			r := follow(t, l, func(streamState) place { return place{next: c.wanted, warm: c.warm} })
			if c.begins == 0 {
				r.expect("warm")
			} else {
				require.Equal(t, fmt.Sprintf("%d:%d+", c.begins, c.begins-1), r.until(1)[0], "%+v", c)
			}
		}
	})
}
