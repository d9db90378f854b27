package natslog

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

var (
	chaosFor  = flag.Duration("chaos", 6*time.Second, "how long the chaos of TestChaos lasts at least; a second with -short")
	chaosSeed = flag.Uint64("seed", 0, "that of TestChaos; 0: another one each time")
)

// A chaos is a log whose server is killed, edges that end and come anew, publishers
// that repeat themselves and each other, and clients that go from edge to edge with
// their cursors. What the publishers were told is in the log is the truth: their
// ledgers say what each client must have.
type chaos struct {
	t      testing.TB
	server *natstest.Server
	cfg    Config
	users  []string
	over   chan struct{} // closed when nothing is killed any more
	calm   atomic.Bool

	edges [3]atomic.Pointer[Edge]

	mu     sync.Mutex
	ledger map[string][]string // guarded by mu: by publisher, lane and user: IDs in the log, in their order
	known  []*notification.Notification

	kills, ended, resumed, later, repeats, failed atomic.Int64
}

func TestChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := &chaos{
		t: t, server: natstest.Start(t, natstest.Config{}),
		over: make(chan struct{}), ledger: make(map[string][]string),
	}
	c.cfg = Config{URL: c.server.URL, Partitions: 3, DedupSize: 1 << 12, pace: hurried}
	for i := range 12 {
		c.users = append(c.users, fmt.Sprint("user", i))
	}
	open(t, c.cfg) // one that creates the streams, before the others come

	var edges, clients, publishers, killer sync.WaitGroup
	done := make(chan struct{})
	for i := range c.edges {
		r := rand.New(rand.NewPCG(r.Uint64(), 1))
		edges.Go(func() { c.edge(i, r, done) }) // ends with done; waited for below
	}
	list := make([]*hopper, 2*len(c.users))
	for i := range list {
		list[i] = &hopper{c: c, user: c.users[i/2], r: rand.New(rand.NewPCG(r.Uint64(), 2))}
	}
	for _, h := range list { // all begin at the beginning
		require.Eventually(t, h.connect, natstest.Patience, time.Millisecond)
	}
	for _, h := range list {
		clients.Go(func() { h.run(done) }) // ends with done; waited for below
	}
	killing := rand.New(rand.NewPCG(r.Uint64(), 3))
	killer.Go(func() { c.kill(killing) }) // ends with over; waited for below
	for i := range 2 {
		l := open(t, c.cfg)
		p := publisher(t, l, PublisherConfig{ackWait: time.Second})
		for lane := range notification.Priority(notification.NumPriorities) {
			r := rand.New(rand.NewPCG(r.Uint64(), 4))
			publishers.Go(func() { c.publish(p, i, lane, r) }) // ends with over; waited for below
		}
	}
	lasts := *chaosFor
	if testing.Short() {
		lasts = time.Second
	}
	time.Sleep(lasts)
	for give := time.Now().Add(natstest.Patience); !c.all() && time.Now().Before(give); { // a busy machine may need longer
		time.Sleep(10 * time.Millisecond)
	}
	close(c.over)
	publishers.Wait()
	killer.Wait()
	c.calm.Store(true)

	want := map[string][]string{} // by user, in no order
	total := 0
	for key, ids := range c.ledger {
		to := strings.Fields(key)[2]
		for _, user := range c.users {
			if to == user || to == notification.AllUsers {
				want[user] = append(want[user], ids...)
				total += 2 * len(ids)
			}
		}
	}
	for _, h := range list {
		require.Eventually(t, func() bool { return t.Failed() || h.has() >= len(want[h.user]) }, natstest.Patience, 10*time.Millisecond,
			"%s has not got all", h.user)
	}
	close(done)
	clients.Wait()
	edges.Wait()
	for _, h := range list {
		h.check(want[h.user])
	}
	t.Logf("%d notifications × clients; the server was killed %d times, %d edges ended, %d resumed, %d tried again, %d sinks failed, %d repeats were published",
		total, c.kills.Load(), c.ended.Load(), c.resumed.Load(), c.later.Load(), c.failed.Load(), c.repeats.Load())
	require.True(t, c.all())
}

// all reports whether there was some of everything.
func (c *chaos) all() bool {
	return c.kills.Load() > 0 && c.ended.Load() > 0 && c.resumed.Load() > 0 && c.repeats.Load() > 0
}

// pause waits a moment, and reports false when ch is closed.
func pause(ch <-chan struct{}, d time.Duration) bool {
	select {
	case <-ch:
		return false
	case <-time.After(d):
		return true
	}
}

func (c *chaos) kill(r *rand.Rand) {
	more := time.Duration(0) // a busy machine takes seconds to start a server, and one that is always killed before serves nobody
	for pause(c.over, more+time.Duration(500+r.IntN(2000))*time.Millisecond) {
		if !c.all() {
			more += 250 * time.Millisecond
		}
		c.server.Kill()
		c.kills.Add(1)
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond) // real servers are away for a while
		c.server.Launch()
	}
}

// edge runs one edge after the other, each with connections of its own.
func (c *chaos) edge(i int, r *rand.Rand, done <-chan struct{}) {
	for n := 0; ; n++ {
		ctx, cancel := context.WithCancel(context.Background())
		l, err := Open(ctx, c.cfg)
		if err != nil { // the server is away
			cancel()
			if !pause(done, 10*time.Millisecond) {
				return
			}
			continue
		}
		e, err := l.NewEdge(fmt.Sprintf("edge%d.%d", i, n), EdgeConfig{Gateway: notification.GatewayConfig{OutboxMessages: 256, BatchSize: 16, HistoryMessages: 1 << 16}})
		if !errors.Is(err, nil) {
			panic(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }() // ends with cancel or Shutdown; waited for below
		c.edges[i].Store(e)
		live := time.Duration(500+r.IntN(3000)) * time.Millisecond
		goOn := true
		for more := true; more; {
			goOn = pause(done, live)
			more = goOn && c.calm.Load()
		}
		if goOn && r.IntN(2) == 0 || !goOn {
			sctx, stop := context.WithTimeout(context.Background(), natstest.Patience)
			_ = e.Shutdown(sctx) // it may lose what a sink refuses, and says so
			stop()
		}
		cancel()
		<-ended
		conservedEdge(c.t, e)
		_ = l.Close()
		c.ended.Add(1)
		if !goOn {
			return
		}
	}
}

// publish publishes to one lane, one after the other, until each is in the log.
func (c *chaos) publish(p *Publisher, no int, lane notification.Priority, r *rand.Rand) {
	for n := 0; pause(c.over, 0); n++ {
		user := c.users[r.IntN(len(c.users))]
		if lane == notification.P3 && r.IntN(10) == 0 {
			user = notification.AllUsers
		}
		batch := 1 + r.IntN(20)
		var waiting sync.WaitGroup
		for i := range batch { // several are on their way at once, in their order
			m := note(fmt.Sprintf("%d-%d-%d-%d", no, lane, n, i), user, lane)
			key := fmt.Sprint(no, " ", lane, " ", user)
			waiting.Add(1)
			for {
				err := p.Publish(m, func(err error) {
					defer waiting.Done()
					if err != nil {
						c.t.Error(err)
					}
					c.mu.Lock()
					defer c.mu.Unlock()
					c.ledger[key] = append(c.ledger[key], m.ID)
					if len(c.known) < 1000 {
						c.known = append(c.known, m)
					} else {
						c.known[r.IntN(1000)] = m
					}
				})
				if err == nil {
					break
				}
				time.Sleep(time.Millisecond) // the lane is full: the server is away
			}
		}
		waiting.Wait()
		if r.IntN(4) == 0 { // once more, or what somebody else said
			c.mu.Lock()
			m := c.known[len(c.known)-1-r.IntN(min(len(c.known), 50))]
			c.mu.Unlock()
			c.repeats.Add(1)
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(20))*time.Millisecond)
			_ = p.PublishWait(ctx, m) // it may be too late for that, or in the log once more
			cancel()
		}
	}
}

// A hopper is a client that goes from edge to edge.
type hopper struct {
	c    *chaos
	user string

	mu     sync.Mutex
	r      *rand.Rand // guarded by mu
	s      *notification.Session
	ids    []string
	cursor notification.Cursor
	begun  bool
}

func (h *hopper) Push(_ context.Context, batch []*notification.Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.c.calm.Load() && h.r.IntN(200) == 0 {
		h.c.failed.Add(1)
		return errors.New("the client is not well")
	}
	for _, m := range batch {
		h.ids = append(h.ids, m.Notification().ID)
	}
	h.cursor = h.s.Cursor()
	return nil
}

func (h *hopper) Close(error) {}

func (h *hopper) has() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ids)
}

// connect tries one edge, and reports whether it has a session there.
func (h *hopper) connect() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.c.edges[h.r.IntN(len(h.c.edges))].Load()
	if e == nil {
		return false
	}
	s, err := e.RegisterSession(notification.SessionConfig{ID: fmt.Sprint(h.user, h.r.Uint64()), UserID: h.user, Sink: h, After: h.cursor})
	switch {
	case err == nil:
	case errors.Is(err, notification.ErrTryAgain), errors.Is(err, notification.ErrClosed):
		h.c.later.Add(1)
		return false
	default:
		h.c.t.Errorf("%s: %v", h.user, err)
		return false
	}
	h.s = s
	if !h.begun {
		h.begun, h.cursor = true, s.Cursor()
		if h.cursor == (notification.Cursor{}) {
			h.c.t.Errorf("%s has no cursor", h.user)
		}
	} else {
		h.c.resumed.Add(1)
	}
	return true
}

func (h *hopper) run(done <-chan struct{}) {
	for {
		h.mu.Lock()
		s, stay := h.s, time.Duration(h.r.IntN(400))*time.Millisecond
		h.mu.Unlock()
		if h.c.calm.Load() {
			stay = time.Hour
		}
		select {
		case <-s.Done():
		case <-time.After(stay):
		case <-done:
			_ = s.Close()
			<-s.Done()
			return
		}
		_ = s.Close()
		<-s.Done()
		if errors.Is(s.Err(), notification.ErrGap) {
			h.c.t.Errorf("%s: %v", h.user, s.Err())
		}
		for !h.connect() {
			if h.c.t.Failed() || !pause(done, time.Millisecond) {
				return
			}
		}
	}
}

// check compares what came with the ledgers.
func (h *hopper) check(want []string) {
	t := h.c.t
	got := slices.Clone(h.ids)
	slices.Sort(got)
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		var lost, extra []string
		for _, id := range want {
			if _, ok := slices.BinarySearch(got, id); !ok {
				lost = append(lost, id)
			}
		}
		for i, id := range got {
			if _, ok := slices.BinarySearch(want, id); !ok || i > 0 && got[i-1] == id {
				extra = append(extra, id)
			}
		}
		t.Errorf("%s: %d of %d; lost %v, repeated or strange %v", h.user, len(got), len(want), lost, extra)
	}
	for key, ids := range h.c.ledger {
		part := strings.Fields(key)
		if part[2] != h.user && part[2] != notification.AllUsers {
			continue
		}
		mine := map[string]bool{}
		for _, id := range ids {
			mine[id] = true
		}
		var order []string
		for _, id := range h.ids {
			if mine[id] {
				order = append(order, id)
			}
		}
		require.Equal(t, ids, order, "%s: the order of publisher %s in lane %s", h.user, part[0], part[1])
	}
}
