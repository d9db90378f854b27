package natslog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// all is an array of this for each lane.
func all[T any](v T) (a [notification.NumPriorities]T) {
	for i := range a {
		a[i] = v
	}
	return a
}

// results collects what done was told.
type results struct {
	mu   sync.Mutex
	told []string
	more chan struct{}
}

func newResults() *results { return &results{more: make(chan struct{}, 1)} }

func (r *results) done(id string) func(error) {
	return func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil {
			id += ": " + err.Error()
		}
		r.told = append(r.told, id)
		rouse(r.more)
	}
}

// await waits until so many were told, and returns what.
func (r *results) await(t testing.TB, n int) []string {
	t.Helper()
	give := time.After(natstest.Patience)
	for {
		r.mu.Lock()
		told := append([]string(nil), r.told...)
		r.mu.Unlock()
		if len(told) >= n {
			return told
		}
		select {
		case <-r.more:
		case <-give:
			t.Fatalf("told of %d, not %d", len(told), n)
		}
	}
}

func TestPublisherConfig(t *testing.T) {
	s := natstest.Start(t, natstest.Config{MaxPayload: 64 << 10})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	for field, cfgs := range map[string][]PublisherConfig{
		"QueueCapacity[P2]": {{QueueCapacity: [4]int{0, 0, -1, 0}}, {QueueCapacity: [4]int{0, 0, 1<<27 + 1, 0}}},
		"BlockBytes":        {{BlockBytes: -1}, {BlockBytes: 1023}, {BlockBytes: 1<<20 + 1}},
	} {
		t.Run("a bad "+field+" is ErrInvalid and named", func(t *testing.T) {
			for _, cfg := range cfgs {
				_, err := l.NewPublisher(cfg)
				require.ErrorIs(t, err, notification.ErrInvalid)
				require.Contains(t, err.Error(), field)
			}
		})
	}

	t.Run("blocks over the server's max_payload are ErrConfig", func(t *testing.T) {
		_, err := l.NewPublisher(PublisherConfig{})
		require.ErrorIs(t, err, ErrConfig)
		require.Contains(t, err.Error(), "BlockBytes")
		require.Contains(t, err.Error(), "max_payload, 65536")
		_, err = l.NewPublisher(PublisherConfig{BlockBytes: 64<<10 - headerRoom})
		require.NoError(t, err)
	})

	t.Run("the zero value has the defaults of its documentation", func(t *testing.T) {
		var c PublisherConfig
		require.NoError(t, c.setDefaults(1<<20, 64<<20))
		require.Equal(t, [4]int{10_000, 50_000, 100_000, 50_000}, c.QueueCapacity)
		require.Equal(t, [4]time.Duration{0, time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond}, c.Linger)
		require.Equal(t, 256<<10, c.BlockBytes)
		c = PublisherConfig{Linger: all(-time.Second)}
		require.NoError(t, c.setDefaults(1<<20, 64<<20))
		require.Zero(t, c.Linger)
	})
}

func TestPublish(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	name := 0
	// fresh returns a Log that nobody else has.
	fresh := func(t *testing.T, partitions int) *Log {
		name++
		return open(t, Config{URL: s.URL, Name: fmt.Sprint("n", name), Partitions: partitions, MaxBytes: 16 << 20})
	}

	t.Run("what PublishWait has returned nil for is in its stream", func(t *testing.T) {
		l := fresh(t, 4)
		p := publisher(t, l, PublisherConfig{ackWait: time.Hour}) // that the server is slow is no failure
		for i := range 20 {
			id, user, lane := fmt.Sprint("n", i), fmt.Sprint("user", i), notification.Priority(i%4)
			require.NoError(t, p.PublishWait(patient(t), note(id, user, lane)))
			require.Contains(t, ids(t, l, lane, partitionOf(user, 4)), id)
		}
		lane := p.Stats().Lanes[notification.P3]
		require.EqualValues(t, 5, lane.Acknowledged)
		require.EqualValues(t, 5, lane.Blocks)
		require.EqualValues(t, 5, lane.Latency.Count())
		require.Zero(t, lane.Failures)
		require.Empty(t, lane.Failure)
	})

	t.Run("done is told in the order of publishing, which is that of the log, each once", func(t *testing.T) {
		l := fresh(t, 1)
		p := publisher(t, l, PublisherConfig{BlockBytes: 1 << 10})
		r, want := newResults(), []string(nil)
		for i := range 1000 {
			id := fmt.Sprint("n", i)
			want = append(want, id)
			require.NoError(t, p.Publish(note(id, "alice", notification.P2), r.done(id)))
		}
		require.Equal(t, want, r.await(t, 1000))
		require.Equal(t, want, ids(t, l, notification.P2, 0))
		require.NoError(t, p.Shutdown(patient(t)))
		require.Len(t, r.await(t, 0), 1000)
	})

	t.Run("nobody need be told", func(t *testing.T) {
		l := fresh(t, 2)
		p := publisher(t, l, PublisherConfig{})
		require.NoError(t, p.Publish(note("a", "alice", notification.P1), nil))
		require.NoError(t, p.Publish(note("b", notification.AllUsers, notification.P1), nil))
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, []string{"a", "b"}, append(ids(t, l, notification.P1, partitionOf("alice", 2)), "b")[:2])
	})

	t.Run("Publish keeps nothing of the notification", func(t *testing.T) {
		l := fresh(t, 1)
		p, err := l.NewPublisher(PublisherConfig{})
		require.NoError(t, err)
		n := note("a", "alice", notification.P1)
		require.NoError(t, p.Publish(n, nil))
		n.ID = "b"
		require.NoError(t, p.Publish(n, nil))
		start(t, p)
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, []string{"a", "b"}, ids(t, l, notification.P1, 0))
	})

	t.Run("what waits shares a block, of 1,024 at the most", func(t *testing.T) {
		l := fresh(t, 1)
		p, err := l.NewPublisher(PublisherConfig{BlockBytes: 1 << 20})
		require.NoError(t, err)
		for i := range 2500 {
			require.NoError(t, p.Publish(note(fmt.Sprint(i), "alice", notification.P1), nil))
		}
		start(t, p)
		require.NoError(t, p.Shutdown(patient(t)))
		var counts []int
		for _, b := range read(t, l, notification.P1, 0) {
			counts = append(counts, b.count)
		}
		require.Equal(t, []int{1024, 1024, 452}, counts)
		require.EqualValues(t, 3, p.Stats().Lanes[notification.P1].Blocks)
	})

	t.Run("no block is over BlockBytes but an archive that is, which is one of its own", func(t *testing.T) {
		l := fresh(t, 1)
		p, err := l.NewPublisher(PublisherConfig{BlockBytes: 1 << 10})
		require.NoError(t, err)
		large := note("large", "alice", notification.P1)
		large.Source = strings.Repeat("x", 5<<10)
		var want []string
		for i := range 40 {
			n := note(fmt.Sprint("n", i), "alice", notification.P1)
			if i%10 == 5 {
				n.Source = large.Source
			}
			want = append(want, n.ID)
			require.NoError(t, p.Publish(n, nil))
		}
		start(t, p)
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, want, ids(t, l, notification.P1, 0))
		larger := 0
		for _, b := range read(t, l, notification.P1, 0) {
			if len(b.data) > 1<<10 {
				require.Equal(t, 1, b.count)
				larger++
			}
		}
		require.Equal(t, 4, larger)
	})

	t.Run("what is not valid is ErrInvalid, and what follows is not harmed", func(t *testing.T) {
		l := fresh(t, 2)
		p := publisher(t, l, PublisherConfig{})
		never := func(error) { t.Error("done was called") }
		bad := []*notification.Notification{nil, {}, note("", "alice", notification.P1), note("a", "", notification.P1), note("a", "alice", 4)}
		forAll := note("a", "alice", notification.P1)
		forAll.UserID = notification.AllUsers
		for _, n := range append(bad, forAll) {
			require.ErrorIs(t, p.Publish(n, never), notification.ErrInvalid)
			require.ErrorIs(t, p.PublishWait(patient(t), n), notification.ErrInvalid)
			require.ErrorIs(t, p.PublishWait(canceled(), n), notification.ErrInvalid)
		}
		require.NoError(t, p.PublishWait(patient(t), note("b", "alice", notification.P1)))
		st := p.Stats()
		require.EqualValues(t, 18, st.Invalid)
		require.EqualValues(t, 1, st.Lanes[notification.P1].Accepted)
		require.Zero(t, st.Lanes[notification.P1].Queued)
	})

	t.Run("an ID that is published twice at once is in the log twice, and recognized", func(t *testing.T) {
		l := fresh(t, 1)
		p := publisher(t, l, PublisherConfig{})
		for range 2 {
			require.NoError(t, p.Publish(note("a", "alice", notification.P1), nil))
		}
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, []string{"a", "a"}, ids(t, l, notification.P1, 0))
	})

	t.Run("done may publish", func(t *testing.T) {
		l := fresh(t, 1)
		p := publisher(t, l, PublisherConfig{})
		r := newResults()
		require.NoError(t, p.Publish(note("a", "alice", notification.P1), func(error) {
			if err := p.Publish(note("b", "alice", notification.P1), r.done("b")); err != nil {
				t.Error(err)
			}
		}))
		require.Equal(t, []string{"b"}, r.await(t, 1))
	})

	t.Run("a lane that waits for company takes what fills its block at once", func(t *testing.T) {
		l := fresh(t, 1)
		p := publisher(t, l, PublisherConfig{Linger: all(time.Hour)})
		r := newResults()
		require.NoError(t, p.Publish(note("first", "alice", notification.P1), r.done("first")))
		for i := range 2 * maxEntries {
			require.NoError(t, p.Publish(note(fmt.Sprint(i), "alice", notification.P1), nil))
		}
		require.Equal(t, []string{"first"}, r.await(t, 1))
	})

	t.Run("a lane that waits for company gets what came in Linger into one block", func(t *testing.T) {
		l := fresh(t, 1)
		p := publisher(t, l, PublisherConfig{Linger: all(time.Hour)})
		for i := range 10 {
			require.NoError(t, p.Publish(note(fmt.Sprint(i), "alice", notification.P1), nil))
		}
		require.NoError(t, p.Shutdown(patient(t)), "a drain does not wait for company")
		require.Len(t, read(t, l, notification.P1, 0), 1)
	})
}

func TestPublishForAllUsers(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("each partition gets a copy, and done is told when all have it", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Partitions: 5, MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{})
		r := newResults()
		require.NoError(t, p.Publish(note("a", notification.AllUsers, notification.P3), r.done("a")))
		require.Equal(t, []string{"a"}, r.await(t, 1))
		require.NoError(t, p.PublishWait(patient(t), note("b", notification.AllUsers, notification.P3)))
		for partition := range 5 {
			require.Equal(t, []string{"a", "b"}, ids(t, l, notification.P3, partition))
		}
		lane := p.Stats().Lanes[notification.P3]
		require.EqualValues(t, 2, lane.Accepted)
		require.EqualValues(t, 2, lane.Acknowledged)
	})

	t.Run("two publishing at once have the same order in all partitions", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "same", Partitions: 3, MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{})
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() { // ends by itself
				for i := range 200 {
					if err := p.Publish(note(fmt.Sprint(g, "-", i), notification.AllUsers, notification.P3), nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, p.Shutdown(patient(t)))
		first := ids(t, l, notification.P3, 0)
		require.Len(t, first, 800)
		for partition := 1; partition < 3; partition++ {
			require.Equal(t, first, ids(t, l, notification.P3, partition))
		}
	})

	t.Run("done is told in their order, also if a partition is late to tell the first", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "late", Partitions: 2, MaxBytes: 4 << 20})
		p, err := l.NewPublisher(PublisherConfig{}) // nobody runs it: the test is both senders
		require.NoError(t, err)
		first, second := p.senders[notification.P3][partitionOf("alice", 2)], p.senders[notification.P3][1-partitionOf("alice", 2)]
		take := func(s *sender) *batch {
			s.mu.Lock()
			defer s.mu.Unlock()
			b := s.queue[0]
			s.queue = s.queue[1:]
			s.seal(b)
			s.sent = b
			return b
		}
		r := newResults()
		held, release := make(chan struct{}), make(chan struct{})
		require.NoError(t, p.Publish(note("alice", "alice", notification.P3), func(error) { close(held); <-release }))
		require.NoError(t, p.Publish(note("a", notification.AllUsers, notification.P3), r.done("a")))
		second.acknowledged(take(second))
		require.NoError(t, p.Publish(note("b", notification.AllUsers, notification.P3), r.done("b")))
		var telling sync.WaitGroup
		all := take(first)
		telling.Go(func() { first.acknowledged(all) }) // ends with release
		<-held
		second.acknowledged(take(second)) // all copies of both are in the log now
		require.EqualValues(t, 3, p.Stats().Lanes[notification.P3].Acknowledged)
		require.Empty(t, r.told)
		close(release)
		telling.Wait()
		require.Equal(t, []string{"a", "b"}, r.told)
		require.NoError(t, p.Shutdown(patient(t)))
		conserved(t, p)
	})

	t.Run("the copies do not fit beside what is large", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "large", Partitions: 2, MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{BlockBytes: 1 << 10, Linger: all(time.Hour)})
		for i := range 50 {
			require.NoError(t, p.Publish(note(fmt.Sprint("u", i), fmt.Sprint("user", i), notification.P3), nil))
			require.NoError(t, p.Publish(note(fmt.Sprint("all", i), notification.AllUsers, notification.P3), nil))
		}
		require.NoError(t, p.Shutdown(patient(t)))
		n := 0
		for partition := range 2 {
			for _, b := range read(t, l, notification.P3, partition) {
				require.LessOrEqual(t, len(b.data), 1<<10)
				n += b.count
			}
		}
		require.Equal(t, 150, n)
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// cutOff returns a Publisher that runs, behind a proxy that has been cut after it
// connected: what is published waits.
func cutOff(t *testing.T, s *natstest.Server, name string, partitions int, cfg PublisherConfig) (*Publisher, *Log, *natstest.Proxy) {
	t.Helper()
	proxy := natstest.NewProxy(t, s.URL)
	l := open(t, Config{URL: proxy.URL, Name: name, Partitions: partitions, MaxBytes: 4 << 20})
	p := publisher(t, l, cfg)
	proxy.Cut()
	natstest.Eventually(t, "the connections notice", func() bool { return !l.urgent.nc.IsConnected() && !l.bulk.nc.IsConnected() })
	return p, l, proxy
}

// taken waits until the block of a stream is on its way.
func taken(t *testing.T, p *Publisher, lane notification.Priority, partition int) {
	t.Helper()
	natstest.Eventually(t, "a block is on its way", func() bool {
		q := &p.senders[lane][partition].backlog
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.sent != nil
	})
}

func TestPublishWait(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("a ctx that has ended sends nothing", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "ended", MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{})
		require.Equal(t, context.Canceled, p.PublishWait(canceled(), note("a", "alice", notification.P1)))
		require.NoError(t, p.Shutdown(patient(t)))
		require.Empty(t, ids(t, l, notification.P1, 0))
		require.EqualValues(t, 1, p.Stats().Lanes[notification.P1].Withdrawn)
	})

	t.Run("its ctx ends before it joins a block: ctx's error, and nothing is sent", func(t *testing.T) {
		p, l, proxy := cutOff(t, s, "before", 2, PublisherConfig{QueueCapacity: all(3)})
		alice := partitionOf("alice", 2)
		require.NoError(t, p.Publish(note("first", "alice", notification.P1), nil))
		taken(t, p, notification.P1, alice)
		for i, user := range []string{"alice", notification.AllUsers} {
			if user == notification.AllUsers { // the other partition would take its copy
				require.NoError(t, p.Publish(note("other", other("alice", 2), notification.P1), nil))
				taken(t, p, notification.P1, 1-alice)
			}
			for j := range 10 { // more than the lane holds: each leaves its place
				ctx, cancel := context.WithCancel(t.Context())
				errs := make(chan error, 1)
				go func() { errs <- p.PublishWait(ctx, note(fmt.Sprint("w", j), user, notification.P1)) }() // ends with cancel
				natstest.Eventually(t, "it waits", func() bool { return p.Stats().Lanes[notification.P1].Queued == 2+i })
				cancel()
				require.Equal(t, context.Canceled, <-errs)
			}
		}
		require.NoError(t, p.Publish(note("last", "alice", notification.P1), nil))
		proxy.Mend()
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, []string{"first", "last"}, ids(t, l, notification.P1, alice))
		require.Len(t, ids(t, l, notification.P1, 1-alice), 1)
		require.EqualValues(t, 20, p.Stats().Lanes[notification.P1].Withdrawn)
	})

	t.Run("its ctx ends with its block on its way: ErrUncertain with ctx's error, and it may be in the log", func(t *testing.T) {
		for _, user := range []string{"alice", notification.AllUsers} {
			p, l, proxy := cutOff(t, s, "after-"+strings.Trim(user, "*"), 2, PublisherConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			errs := make(chan error, 1)
			go func() { errs <- p.PublishWait(ctx, note("a", user, notification.P1)) }() // ends with cancel
			taken(t, p, notification.P1, partitionOf("alice", 2))
			cancel()
			err := <-errs
			require.ErrorIs(t, err, ErrUncertain)
			require.ErrorIs(t, err, context.Canceled)
			proxy.Mend()
			require.NoError(t, p.Shutdown(patient(t)))
			require.Equal(t, []string{"a"}, ids(t, l, notification.P1, partitionOf("alice", 2)))
			require.EqualValues(t, 1, p.Stats().Lanes[notification.P1].Acknowledged)
		}
	})

	t.Run("a full lane is ErrQueueFull at once, and other lanes are not", func(t *testing.T) {
		p, l, proxy := cutOff(t, s, "full", 3, PublisherConfig{QueueCapacity: all(5)})
		for i := range 5 {
			require.NoError(t, p.Publish(note(fmt.Sprint(i), fmt.Sprint("user", i), notification.P1), nil))
		}
		require.ErrorIs(t, p.PublishWait(patient(t), note("x", "alice", notification.P1)), notification.ErrQueueFull)
		require.ErrorIs(t, p.Publish(note("x", "alice", notification.P1), nil), notification.ErrQueueFull)
		require.ErrorIs(t, p.Publish(note("x", notification.AllUsers, notification.P1), nil), notification.ErrQueueFull)
		require.NoError(t, p.Publish(note("y", "alice", notification.P0), nil))
		lane := p.Stats().Lanes[notification.P1]
		require.EqualValues(t, 3, lane.Rejected)
		require.Equal(t, lane.Capacity, lane.Queued)
		proxy.Mend()
		require.NoError(t, p.Shutdown(patient(t)))
		n := 0
		for partition := range 3 {
			n += len(ids(t, l, notification.P1, partition))
		}
		require.Equal(t, 5, n)
	})

	t.Run("callers who give up again and again take no memory", func(t *testing.T) {
		p, l, proxy := cutOff(t, s, "again", 1, PublisherConfig{})
		require.NoError(t, p.Publish(note("first", "alice", notification.P1), nil))
		taken(t, p, notification.P1, 0)
		var want []string
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for j := range 500 {
				wg.Go(func() { // ends with cancel
					if err := p.PublishWait(ctx, note(fmt.Sprint("w", i, "-", j), "alice", notification.P1)); !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
			id := fmt.Sprint("stays", i)
			want = append(want, id)
			require.NoError(t, p.Publish(note(id, "alice", notification.P1), nil))
			natstest.Eventually(t, "all wait", func() bool { return p.Stats().Lanes[notification.P1].Queued == 1+500+len(want) })
			cancel()
			wg.Wait()
		}
		q := &p.senders[notification.P1][0].backlog
		q.mu.Lock()
		items := 0
		for _, b := range q.queue {
			items += len(b.items)
		}
		q.mu.Unlock()
		require.Less(t, items, 2*maxEntries+1000)
		proxy.Mend()
		require.NoError(t, p.Shutdown(patient(t)))
		require.Equal(t, append([]string{"first"}, want...), ids(t, l, notification.P1, 0))
	})
}

// other returns a user of another partition.
func other(user string, partitions int) string {
	for i := 0; ; i++ {
		if o := fmt.Sprint("other", i); partitionOf(o, partitions) != partitionOf(user, partitions) {
			return o
		}
	}
}

func TestPublishAllocations(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	p, err := l.NewPublisher(PublisherConfig{QueueCapacity: all(1 << 20)})
	require.NoError(t, err)
	n, done := note("a", "alice", notification.P1), func(error) {}
	require.Zero(t, testing.AllocsPerRun(10_000, func() {
		if p.Publish(n, done) != nil {
			t.Error("refused")
		}
	}), "what batches need is shared by all in them")
	require.ErrorIs(t, p.Shutdown(t.Context()), notification.ErrClosed)
}
