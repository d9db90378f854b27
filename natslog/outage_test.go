package natslog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A relay is a way to a server on which what the server says can be lost.
type relay struct {
	url  string
	mute atomic.Bool

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func newRelay(t *testing.T, serverURL string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relay{url: "nats://" + l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with the listener
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(serverURL, "nats://"))
			if err != nil {
				client.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, client, server)
			r.mu.Unlock()
			// Each ends when one of the two connections does, and closes both.
			wg.Go(func() { io.Copy(server, client); server.Close(); client.Close() })
			wg.Go(func() { io.Copy(unlessMute{r, client}, server); server.Close(); client.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.breakAll()
		wg.Wait()
	})
	return r
}

// breakAll ends all connections; new ones are welcome.
func (r *relay) breakAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

type unlessMute struct {
	r *relay
	w io.Writer
}

func (u unlessMute) Write(b []byte) (int, error) {
	if u.r.mute.Load() {
		return len(b), nil
	}
	return u.w.Write(b)
}

// stored waits until a stream holds so many blocks, by a way of its own.
func stored(t *testing.T, s *natstest.Server, stream string, n uint64) {
	t.Helper()
	js := natstest.JetStream(t, s.Connect())
	natstest.Eventually(t, "the block is stored", func() bool {
		st, err := js.Stream(patient(t), stream)
		return err == nil && st.CachedInfo().State.LastSeq >= n
	})
}

// delivered returns what a reader delivers of these IDs.
func delivered(all []string) (first []string) {
	w := newWindow(1 << 16)
	for _, id := range all {
		if !w.repeat(id) {
			first = append(first, id)
		}
	}
	return first
}

func TestAckLost(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("the block is sent again when the connection is back, and recognized", func(t *testing.T) {
		r := newRelay(t, s.URL)
		l := open(t, Config{URL: r.url, Name: "again", MaxBytes: 4 << 20})
		p := publisher(t, l, PublisherConfig{ackWait: time.Hour})
		require.NoError(t, p.PublishWait(patient(t), note("first", "alice", notification.P1)))
		r.mute.Store(true)
		errs := make(chan error, 1)
		go func() { errs <- p.PublishWait(patient(t), note("a", "alice", notification.P1)) }() // ends with the acknowledgement
		stored(t, s, l.stream(notification.P1, 0), 2)
		still(t, errs)
		r.mute.Store(false)
		r.breakAll()
		require.NoError(t, <-errs)
		require.NoError(t, p.PublishWait(patient(t), note("b", "alice", notification.P1)))
		require.Equal(t, []string{"first", "a", "b"}, ids(t, l, notification.P1, 0), "under another Msg-Id it would be stored twice")
		lane := p.Stats().Lanes[notification.P1]
		require.EqualValues(t, 1, lane.Recognized)
		require.Zero(t, lane.Collisions)
		require.NotZero(t, lane.Failures)
	})

	t.Run("the block is sent again on a connection that stands still", func(t *testing.T) {
		r := newRelay(t, s.URL)
		l := open(t, Config{URL: r.url, Name: "still", MaxBytes: 4 << 20, NATS: []nats.Option{nats.PingInterval(time.Hour)}})
		p := publisher(t, l, PublisherConfig{ackWait: 50 * time.Millisecond})
		r.mute.Store(true)
		errs := make(chan error, 1)
		go func() { errs <- p.PublishWait(patient(t), note("a", "alice", notification.P1)) }() // ends with the acknowledgement
		natstest.Eventually(t, "it was sent often", func() bool { return p.Stats().Lanes[notification.P1].Failures > 3 })
		stored(t, s, l.stream(notification.P1, 0), 1)
		r.mute.Store(false)
		require.NoError(t, <-errs)
		for i := range 100 { // the answers to all that was sent do not answer for what follows
			require.NoError(t, p.PublishWait(patient(t), note(fmt.Sprint(i), "alice", notification.P1)))
		}
		require.Len(t, ids(t, l, notification.P1, 0), 101)
		require.Zero(t, p.Stats().Lanes[notification.P1].Collisions)
	})

	t.Run("after the server's window it is stored twice, and a reader recognizes it", func(t *testing.T) {
		r := newRelay(t, s.URL)
		l := open(t, Config{URL: r.url, Name: "forgotten", MaxBytes: 4 << 20, duplicates: 200 * time.Millisecond, NATS: []nats.Option{nats.PingInterval(time.Hour)}})
		p := publisher(t, l, PublisherConfig{ackWait: time.Hour})
		r.mute.Store(true)
		errs := make(chan error, 1)
		go func() { errs <- p.PublishWait(patient(t), note("a", "alice", notification.P1)) }() // ends with the acknowledgement
		stored(t, s, l.stream(notification.P1, 0), 1)
		// A block that was stored after it is forgotten: so is it.
		js := natstest.JetStream(t, s.Connect())
		for tried, forgotten := 0, false; !forgotten; tried++ {
			ack, err := js.PublishMsg(patient(t), newBlockMsg(l.subject(notification.P1, 0), "probe", 0, nil))
			require.NoError(t, err)
			forgotten = tried > 0 && !ack.Duplicate
		}
		r.mute.Store(false)
		r.breakAll()
		require.NoError(t, <-errs)
		all := ids(t, l, notification.P1, 0)
		require.Equal(t, []string{"a", "a"}, all)
		require.Equal(t, []string{"a"}, delivered(all))
	})
}

func TestMsgID(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("a publisher that starts anew is not taken for the one before", func(t *testing.T) {
		cfg := Config{URL: s.URL, Name: "anew", MaxBytes: 4 << 20}
		var want []string
		for run := range 5 {
			l := open(t, cfg)
			p := publisher(t, l, PublisherConfig{})
			for i := range 3 {
				id := fmt.Sprint(run, "-", i)
				want = append(want, id)
				require.NoError(t, p.PublishWait(patient(t), note(id, "alice", notification.P1)))
			}
			require.NoError(t, p.Shutdown(patient(t)))
			require.Zero(t, p.Stats().Lanes[notification.P1].Collisions)
			require.Equal(t, want, ids(t, l, notification.P1, 0))
		}
	})

	t.Run("if it is taken for another all the same, that is seen, and nothing is lost", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "taken", MaxBytes: 4 << 20})
		var want []string
		for run := range 3 {
			p := publisher(t, l, PublisherConfig{run: "the same"})
			for i := range 3 {
				id := fmt.Sprint(run, "-", i)
				want = append(want, id)
				require.NoError(t, p.PublishWait(patient(t), note(id, "alice", notification.P1)))
			}
			require.EqualValues(t, min(run, 1), p.Stats().Lanes[notification.P1].Collisions, "one, for after that it has another name")
		}
		require.Equal(t, want, ids(t, l, notification.P1, 0))
	})

	t.Run("two publishers of one ID at once both succeed, and a reader delivers it once", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "both", MaxBytes: 4 << 20})
		a, b := publisher(t, l, PublisherConfig{}), publisher(t, l, PublisherConfig{})
		var wg sync.WaitGroup
		for _, p := range []*Publisher{a, b} {
			wg.Go(func() { // ends by itself
				for i := range 50 {
					if err := p.PublishWait(patient(t), note(fmt.Sprint(i), "alice", notification.P1)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		all := ids(t, l, notification.P1, 0)
		require.Len(t, all, 100)
		require.Len(t, delivered(all), 50)
	})
}

func TestServerKilled(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, Partitions: 2})
	p := publisher(t, l, PublisherConfig{BlockBytes: 2 << 10})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := make(map[string][]string) // by user and lane, in order
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, ids := range acknowledged {
			n += len(ids)
		}
		return n
	}
	for g := range 8 {
		wg.Go(func() { // ends with stop
			user, lane := fmt.Sprint("user", g/2), notification.Priority(g%4)
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprint(user, lane, i)
				err := p.PublishWait(patient(t), note(id, user, lane))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acknowledged[user+lane.String()] = append(acknowledged[user+lane.String()], id)
				mu.Unlock()
			}
		})
	}
	for range 4 {
		before := count()
		natstest.Eventually(t, "some more are acknowledged", func() bool { return count() > before+200 })
		s.Restart()
	}
	before := count()
	natstest.Eventually(t, "some more are acknowledged", func() bool { return count() > before+200 })
	stop()
	wg.Wait()
	s.Restart() // what was acknowledged last as well
	natstest.Eventually(t, "the connection is back", l.bulk.nc.IsConnected)

	got := make(map[string][]string)
	for lane := range notification.Priority(4) {
		for partition := range 2 {
			w := newWindow(1 << 16)
			for _, b := range read(t, l, lane, partition) {
				for _, e := range b.entries() {
					require.NoError(t, e.err)
					if !w.repeat(e.archive.ID()) {
						got[e.user+lane.String()] = append(got[e.user+lane.String()], e.archive.ID())
					}
				}
			}
		}
	}
	require.Equal(t, acknowledged, got, "each once, in order")
	for _, lane := range p.Stats().Lanes {
		require.Zero(t, lane.Collisions)
	}
}

func TestOrderUnderReconnects(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	proxy := natstest.NewProxy(t, s.URL)
	l := open(t, Config{URL: proxy.URL, Partitions: 2, MaxBytes: 64 << 20})
	p := publisher(t, l, PublisherConfig{BlockBytes: 2 << 10, QueueCapacity: all(50), ackWait: 200 * time.Millisecond})
	ctx, stop := context.WithCancel(t.Context())
	type key struct {
		user string
		lane notification.Priority
	}
	var mu sync.Mutex
	published, told := make(map[key][]string), make(map[key][]string)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() { // ends with stop
			own := make(map[key][]string)
			for i := 0; ctx.Err() == nil; i++ {
				k := key{fmt.Sprint("user", g), notification.Priority(i % 4)}
				if g == 0 {
					k.user = notification.AllUsers
				}
				id := fmt.Sprint(k.user, "-", i)
				err := p.Publish(note(id, k.user, k.lane), func(err error) {
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					told[k] = append(told[k], id)
					mu.Unlock()
				})
				switch {
				case errors.Is(err, notification.ErrQueueFull):
					<-time.After(time.Millisecond)
				case err != nil:
					t.Error(err)
				default:
					own[k] = append(own[k], id)
				}
			}
			mu.Lock()
			maps.Copy(published, own)
			mu.Unlock()
		})
	}
	for range 15 {
		before := p.Stats().Lanes[notification.P1].Blocks
		natstest.Eventually(t, "some more are acknowledged", func() bool { return p.Stats().Lanes[notification.P1].Blocks > before+5 })
		proxy.CloseConnections()
	}
	stop()
	wg.Wait()
	require.NoError(t, p.Shutdown(patient(t)))
	require.Equal(t, published, told)
	for partition := range 2 {
		got := make(map[key][]string)
		for lane := range notification.Priority(4) {
			for _, b := range read(t, l, lane, partition) {
				for _, e := range b.entries() {
					k := key{e.user, lane}
					got[k] = append(got[k], e.archive.ID())
				}
			}
		}
		for k, ids := range published {
			if k.user == notification.AllUsers || partitionOf(k.user, 2) == partition {
				require.Equal(t, ids, delivered(got[k]), "%v", k)
			}
		}
	}
}

// An outage of a few seconds is no other than one of ten.
func TestServerDown(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	var log strings.Builder
	p := publisher(t, l, PublisherConfig{QueueCapacity: all(100), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r := newResults()
	var want []string
	s.Kill()
	var full error
	natstest.Eventually(t, "the lane is full", func() bool {
		id := fmt.Sprint(len(want))
		full = p.Publish(note(id, "alice", notification.P1), r.done(id))
		if full == nil {
			want = append(want, id)
		}
		return full != nil
	})
	require.ErrorIs(t, full, notification.ErrQueueFull)
	require.Len(t, want, 100)
	require.ErrorIs(t, p.PublishWait(patient(t), note("x", "alice", notification.P1)), notification.ErrQueueFull)
	natstest.Eventually(t, "it is known that the server is gone", func() bool { return p.Stats().Lanes[notification.P1].Failures > 0 })
	still(t, r.more)
	require.NotZero(t, p.Stats().Lanes[notification.P1].Stalled)
	s.Restart()
	require.Equal(t, want, r.await(t, 100))
	require.Equal(t, want, ids(t, l, notification.P1, 0))
	require.Zero(t, p.Stats().Lanes[notification.P1].Stalled)
	require.NoError(t, p.Shutdown(patient(t)))
	// One line for each episode, which a block has one of at most, and not for each attempt.
	warned := strings.Count(log.String(), "level=WARN")
	require.NotZero(t, warned)
	require.Equal(t, warned, strings.Count(log.String(), "blocks are acknowledged again"), log.String())
	require.LessOrEqual(t, uint64(warned), p.Stats().Lanes[notification.P1].Blocks, log.String())
}

func TestServerFrozen(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	p := publisher(t, l, PublisherConfig{ackWait: 20 * time.Millisecond})
	require.NoError(t, p.PublishWait(patient(t), note("a", "alice", notification.P1)))
	s.Freeze()
	errs := make(chan error, 1)
	go func() { errs <- p.PublishWait(patient(t), note("b", "alice", notification.P1)) }() // ends with the thaw
	natstest.Eventually(t, "it was sent often", func() bool { return p.Stats().Lanes[notification.P1].Failures > 5 })
	still(t, errs)
	s.Thaw()
	require.NoError(t, <-errs)

	// The answers to all that was sent have come, and are none to what follows.
	require.NoError(t, l.bulk.nc.FlushWithContext(patient(t)))
	s.Freeze()
	go func() { errs <- p.PublishWait(patient(t), note("c", "alice", notification.P1)) }() // ends with the thaw
	still(t, errs)
	s.Thaw()
	require.NoError(t, <-errs)
	require.Equal(t, []string{"a", "b", "c"}, ids(t, l, notification.P1, 0))
}

// What the server answers when it cannot store a block.
func TestServerRefuses(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	p := publisher(t, l, PublisherConfig{})
	nc := s.Connect()
	js := natstest.JetStream(t, nc)
	stream := l.stream(notification.P1, 0)
	require.NoError(t, js.DeleteStream(patient(t), stream))
	r := newResults()
	require.NoError(t, p.Publish(note("a", "alice", notification.P1), r.done("a")))
	failures := func() uint64 { return p.Stats().Lanes[notification.P1].Failures }
	natstest.Eventually(t, "nobody is there to answer", func() bool { return failures() > 1 })

	// In place of the stream, one that says what JetStream says at bad times.
	answers := []string{
		`{"error":{"code":503,"err_code":10023,"description":"insufficient resources"},"stream":"notification_P1_0","seq":0}`,
		`{"error":{"code":503,"err_code":10077,"description":"no space left on device"},"stream":"notification_P1_0","seq":0}`,
		`{"error":{"code":429,"err_code":10167,"description":"too many requests"},"stream":"notification_P1_0","seq":0}`,
		`{"error":{"code":503,"err_code":10158,"description":"duplicate message id is in process"},"stream":"notification_P1_0","seq":0}`,
		`{"stream":"somebody_elses","seq":5}`,
		`something else`,
		``,
	}
	var mu sync.Mutex
	seen := make(map[string]bool)
	i := 0
	sub, err := nc.Subscribe(l.subject(notification.P1, 0), func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		seen[m.Header.Get(headerMsgID)] = true
		m.Respond([]byte(answers[min(i, len(answers)-1)]))
		i++
	})
	require.NoError(t, err)
	natstest.Eventually(t, "all of it was answered", func() bool { mu.Lock(); defer mu.Unlock(); return i > len(answers) })
	require.NoError(t, sub.Unsubscribe())
	still(t, r.more)
	require.EqualValues(t, 1, p.Stats().Lanes[notification.P1].Queued)
	open(t, Config{URL: s.URL, MaxBytes: 4 << 20}) // creates the stream anew
	require.Equal(t, []string{"a"}, r.await(t, 1))
	require.Equal(t, []string{"a"}, ids(t, l, notification.P1, 0))
	mu.Lock() // the last that was answered may be so still
	defer mu.Unlock()
	require.Len(t, seen, 1, "always the same Msg-Id")
	require.Zero(t, p.Stats().Lanes[notification.P1].Collisions)
}

// A publisher that is killed when some partitions have what is for AllUsers.
func TestAllUsersKilledInBetween(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	cfg := Config{URL: s.URL, Partitions: 3, MaxBytes: 4 << 20}
	l := open(t, cfg)
	js := natstest.JetStream(t, s.Connect())
	require.NoError(t, js.DeleteStream(patient(t), l.stream(notification.P3, 1)))
	p, err := l.NewPublisher(PublisherConfig{})
	require.NoError(t, err)
	ctx, kill := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }() // ends with kill
	r := newResults()
	require.NoError(t, p.Publish(note("a", notification.AllUsers, notification.P3), r.done("a")))
	stored(t, s, l.stream(notification.P3, 0), 1)
	stored(t, s, l.stream(notification.P3, 2), 1)
	still(t, r.more)
	kill()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, []string{"a: " + errOnItsWay.Error()}, r.await(t, 1))
	require.EqualValues(t, 1, p.Stats().Lanes[notification.P3].Uncertain)
	conserved(t, p)
	require.NoError(t, l.bulk.nc.FlushWithContext(patient(t))) // what it sent last is not for the stream to come

	l = open(t, cfg)
	p = publisher(t, l, PublisherConfig{})
	require.NoError(t, p.PublishWait(patient(t), note("a", notification.AllUsers, notification.P3)))
	for partition, want := range []int{2, 1, 2} {
		all := ids(t, l, notification.P3, partition)
		require.Len(t, all, want)
		require.Equal(t, []string{"a"}, delivered(all))
	}
}

func TestStreamFull(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	p := publisher(t, l, PublisherConfig{ackWait: time.Hour}) // that the server is slow is no failure
	n := note("", "alice", notification.P1)
	n.Source = strings.Repeat("x", 100<<10)
	for i := range 100 {
		n.ID = fmt.Sprint(i)
		require.NoError(t, p.PublishWait(patient(t), n))
	}
	js := natstest.JetStream(t, s.Connect())
	stream, err := js.Stream(patient(t), l.stream(notification.P1, 0))
	require.NoError(t, err)
	state := stream.CachedInfo().State
	require.EqualValues(t, 100, state.LastSeq)
	require.Greater(t, state.FirstSeq, uint64(50), "the oldest have gone")
	require.Zero(t, p.Stats().Lanes[notification.P1].Failures)
}

// What the server does not take is refused.
func TestMaxPayload(t *testing.T) {
	s := natstest.Start(t, natstest.Config{MaxPayload: 64 << 10})
	l := open(t, Config{URL: s.URL, MaxBytes: 4 << 20})
	p := publisher(t, l, PublisherConfig{BlockBytes: 32 << 10})
	n := note("a", "alice", notification.P1)
	n.Source = strings.Repeat("x", 64<<10)
	require.ErrorIs(t, p.Publish(n, nil), notification.ErrInvalid)
	require.ErrorContains(t, p.PublishWait(patient(t), n), "65024")
	n.Source = strings.Repeat("x", 63<<10)
	require.NoError(t, p.PublishWait(patient(t), n))
	n.UserID, n.Payload = notification.AllUsers, notification.SystemNotice{Content: strings.Repeat("x", 64<<10)}
	require.ErrorIs(t, p.Publish(n, nil), notification.ErrInvalid)
	require.EqualValues(t, 3, p.Stats().Invalid)
}
