package notification

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Clients that resume while everything else goes on: they insist that nothing is
// missing, nothing comes twice, and at the end everything adds up.

// A tape says what was published at which place of each lane, so that nothing
// need be remembered to know what a session must have got between two cursors.
// Everybody on it is known to the Gateway from first to last, so that the
// numbers of the history are the places on the tape.
type tape struct {
	seed  uint64
	total uint64 // in each lane
}

var tapeUsers = []string{"u", "v", "w"}

func (a tape) at(p Priority, place uint64) (userID string, ch Channel) {
	h := (a.seed ^ place<<2 ^ uint64(p)) * 0x9e3779b97f4a7c15 // SplitMix64's finish
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	if h%10 == 0 || place == a.total {
		return AllUsers, ChannelSystem
	}
	return tapeUsers[h>>8%3], ChannelTrade + Channel(h>>16%5)
}

func (a tape) note(p Priority, place uint64) *Notification {
	userID, ch := a.at(p, place)
	n := on(ch, fmt.Sprint(uint8(p), "-", place), userID, p)
	n.Timestamp = int64(place)
	return n
}

// A chaos is a client whose connection ends at random points, in every way there
// is, and whose filter changes; it knows the tape and checks each batch.
type chaos struct {
	t      *testing.T
	g      *Gateway
	tape   tape
	userID string
	rng    *rand.Rand // owned by whoever runs: the loop between connections, Push during one
	over   <-chan struct{}

	at                      Cursor
	always, ever            uint32 // the channels that the filter admitted all the time, and at any time
	conns, resets, repeated int
	failed                  bool
	taken                   uint64
	behind                  [NumPriorities]atomic.Uint64 // up to where it has got, for those who publish
}

func (c *chaos) bad(format string, args ...any) {
	if !c.failed {
		c.failed = true
		c.t.Errorf("%s: %s", c.userID, fmt.Sprintf(format, args...))
	}
}

// check compares a batch with what the tape has between two cursors.
func (c *chaos) check(batch []*Message, to Cursor) {
	var lanes [NumPriorities][]uint64
	for _, m := range batch {
		lanes[m.priority] = append(lanes[m.priority], uint64(m.n.Timestamp))
	}
	for p, got := range lanes {
		for place := c.at.seqs[p] + 1; place <= to.seqs[p]; place++ {
			userID, ch := c.tape.at(Priority(p), place)
			mine := userID == c.userID || userID == AllUsers
			here := len(got) > 0 && got[0] == place
			switch {
			case here && (!mine || !admits(c.ever, ch)):
				c.bad("P%d: place %d, of %s for %s, is not for it", p, place, ch, userID)
			case !here && mine && admits(c.always, ch):
				c.bad("P%d: place %d is missing between %d and %d", p, place, c.at.seqs[p], to.seqs[p])
			}
			if here {
				got = got[1:]
			}
		}
		if len(got) > 0 {
			c.bad("P%d: place %d comes again or out of turn, between %d and %d", p, got[0], c.at.seqs[p], to.seqs[p])
		}
	}
	c.taken += uint64(len(batch))
	c.at = to
	for p, n := range to.seqs {
		c.behind[p].Store(n)
	}
}

func (c *chaos) filter() (channels []Channel, bits uint32) {
	if c.rng.IntN(3) == 0 {
		return nil, allChannels
	}
	for ch := ChannelTrade; ch < numChannels; ch++ {
		if c.rng.IntN(2) == 0 {
			channels = append(channels, ch)
		}
	}
	if channels == nil {
		channels = []Channel{ChannelRisk}
	}
	return channels, filterOf(channels)
}

// sink returns what takes one connection's batches.
func (c *chaos) sink(session func() *Session, calm bool) SinkFunc {
	return func(ctx context.Context, batch []*Message) error {
		s := session()
		fate := c.rng.IntN(60)
		if calm {
			fate = -1
		}
		if fate == 0 {
			c.repeated++
			return errors.New("dropped before the batch was taken")
		}
		if fate == 1 { // a reader that hangs until it is called slow; during a replay nobody would
			for polls := 0; polls < 50 && ctx.Err() == nil; polls++ {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Microsecond):
				}
			}
			if c.rng.IntN(2) == 0 {
				c.repeated++
				return errors.New("dropped after it had hung")
			}
		}
		c.check(batch, s.Cursor())
		switch fate {
		case 2:
			_ = s.Close()
		case 3:
			_ = c.g.UnregisterSession(s.ID())
		case 4:
			s.SubscribeAll()
		case 5:
			s.Unsubscribe(ChannelTrade + Channel(c.rng.IntN(5)))
		case 6: // narrows one that receives everything, and widens any other
			s.Subscribe(ChannelTrade + Channel(c.rng.IntN(5)))
		}
		bits := filterOf(s.Subscriptions())
		c.always &= bits
		c.ever |= bits
		if fate == 5 && bits == 0 { // nothing would come any more, the end of this connection included
			_ = s.Close()
		}
		return nil
	}
}

func (c *chaos) connect(after Cursor, channels []Channel, sink func(func() *Session) SinkFunc) (*Session, error) {
	c.conns++
	ready := make(chan *Session, 1)
	s, err := c.g.RegisterSession(SessionConfig{
		ID: fmt.Sprintf("%p-%d", c, c.conns), UserID: c.userID, Channels: channels, After: after,
		Sink: sink(sync.OnceValue(func() *Session { return <-ready })),
	})
	ready <- s
	return s, err
}

// run goes on until the tape is over and everything has arrived.
func (c *chaos) run() {
	silent := func(func() *Session) SinkFunc { return nil }
	reset := func() {
		s, err := c.connect(Cursor{}, []Channel{}, silent)
		if err != nil {
			c.bad("cannot begin: %v", err)
			return
		}
		c.at = s.Cursor()
		c.check(nil, c.at)
		_ = s.Close()
	}
	reset()
	for calm := false; !c.failed; {
		select {
		case <-c.over:
			calm = true
		default:
		}
		var channels []Channel
		c.always = allChannels
		if !calm {
			channels, c.always = c.filter()
		}
		c.ever = c.always
		from := c.at
		s, err := c.connect(from, channels, func(session func() *Session) SinkFunc { return c.sink(session, calm) })
		if errors.Is(err, ErrCursorGone) {
			if !c.evicted(from) {
				c.bad("the cursor %v is said to be gone with nothing evicted behind it", from.seqs)
			}
			c.resets++
			reset()
			continue
		}
		if err != nil {
			c.bad("cannot resume: %v", err)
			return
		}
		if calm { // the last place of each lane is for everybody
			for s.Cursor().seqs != lanes(c.tape.total) && s.Err() == nil {
				runtime.Gosched()
			}
			_ = s.Close()
		} else {
			select {
			case <-s.Done():
			case <-c.over:
				_ = s.Close()
			}
		}
		<-s.Done()
		if end := s.Cursor(); c.rng.IntN(2) == 0 || calm { // over what it did not want
			c.check(nil, end)
		}
		if calm && s.Err() != ErrSlowConsumer && c.at.seqs == lanes(c.tape.total) {
			return
		}
	}
}

// evicted reports whether more of this user's messages, or of those to all, came
// behind a cursor than a history keeps.
func (c *chaos) evicted(from Cursor) bool {
	for p := P0; p <= P3; p++ {
		var mine, all int
		for place := from.seqs[p] + 1; place <= c.g.history.last[p].Load(); place++ {
			switch userID, _ := c.tape.at(p, place); userID {
			case c.userID:
				mine++
			case AllUsers:
				all++
			}
		}
		if max(mine, all) > c.g.cfg.HistoryMessages {
			return true
		}
	}
	return false
}

func TestResumeChaos(t *testing.T) {
	noLeaks(t)
	start := seed(t)
	b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
	g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 64, OutboxMessages: 512, HistoryMessages: 2048, SlowAfter: 2 * time.Millisecond}))
	require.NoError(t, b.RegisterGateway(g))
	runGateway(t, g)
	runBroker(t, b)
	_, err := g.RegisterSession(SessionConfig{ID: "w", UserID: "w", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
	require.NoError(t, err)
	a := tape{seed: start, total: uint64(sized(1_000_000, 200_000)) / NumPriorities}
	over := make(chan struct{})
	var clients sync.WaitGroup
	var all []*chaos
	for i, userID := range []string{"u", "u", "v"} {
		s, err := g.RegisterSession(SessionConfig{ID: fmt.Sprint("first", i), UserID: userID, Channels: []Channel{}, Sink: SinkFunc(nil)})
		require.NoError(t, err)
		c := &chaos{t: t, g: g, tape: a, userID: userID, rng: rand.New(rand.NewPCG(start, uint64(i))), over: over}
		all = append(all, c)
		require.NoError(t, s.Close())
	}
	for _, c := range all {
		clients.Go(c.run)
	}
	var publishers sync.WaitGroup
	for p := P0; p <= P3; p++ {
		publishers.Go(func() {
			for place := uint64(1); place <= a.total; place++ {
				for _, c := range all { // not much faster than the slowest client, unless it waits for us to go on
					for polls := 0; place%256 == 0 && c.behind[p].Load()+5000 < place && polls < 20; polls++ {
						<-time.After(100 * time.Microsecond)
					}
				}
				if err := b.PublishWait(context.Background(), a.note(p, place)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	publishers.Wait()
	close(over)
	clients.Wait()
	t.Logf("sessions ended: %+v", g.Stats().Ended)
	for _, c := range all {
		t.Logf("%s: %d connections, %d begun anew, %d batches repeated, %d messages taken", c.userID, c.conns, c.resets, c.repeated, c.taken)
	}
	drain(t, b)
	drain(t, g)
	conserved(t, b, g)
	for p, l := range g.Stats().Lanes {
		require.Equal(t, a.total, l.Received, "P%d", p)
	}
}

// A follower reconnects all the time while somebody gets in its way. Of each
// stream, which is one lane of its user or of all, it must see every message
// from the first on that was published after it had begun, and none twice,
// unless it was told that it must begin anew.
type follower struct {
	t      *testing.T
	g      *Gateway
	f      *streams
	userID string
	rng    *rand.Rand
	quit   atomic.Bool // no more drops
	gaps   bool        // there are Gaps, of which it may hear late

	mu           sync.Mutex
	cursor       Cursor
	last         [2 * NumPriorities]uint64 // of the user's lanes, then of those to all
	floor        [2 * NumPriorities]uint64 // published before it had begun: may be missed, or still come
	conns, anew  int
	doubt        error // nothing is wrong if a Gap is what it hears next
	wrong, ended error
}

// A streams publishes numbered messages, a stream for each user and lane.
type streams struct {
	b         *Broker
	published map[string]*[NumPriorities]atomic.Uint64 // by user; read-only
}

func (f *streams) publish(userID string, p Priority) {
	n := f.published[userID][p].Add(1)
	m := on(ChannelSystem, fmt.Sprint(userID, "-", uint8(p), "-", n), userID, p)
	m.Timestamp = int64(n)
	_ = f.b.PublishWait(context.Background(), m)
}

func (w *follower) published() (n [2 * NumPriorities]uint64) {
	for p := range NumPriorities {
		n[p] = w.f.published[w.userID][p].Load()
		n[NumPriorities+p] = w.f.published[AllUsers][p].Load()
	}
	return n
}

func (w *follower) connect() *Session {
	w.conns++
	ready := make(chan *Session, 1)
	session := sync.OnceValue(func() *Session { return <-ready })
	cfg := SessionConfig{ID: fmt.Sprintf("%p-%d", w, w.conns), UserID: w.userID, After: w.cursor}
	cfg.Sink = SinkFunc(func(_ context.Context, batch []*Message) error {
		s := session()
		w.mu.Lock()
		defer w.mu.Unlock()
		fate := w.rng.IntN(16)
		if fate == 0 && !w.quit.Load() {
			return errors.New("dropped")
		}
		for _, m := range batch {
			i := int(m.priority)
			if m.n.UserID == AllUsers {
				i += NumPriorities
			}
			n := uint64(m.n.Timestamp)
			if n <= w.last[i] || n-1 > max(w.last[i], w.floor[i]) {
				w.doubt = cmp.Or(w.doubt, fmt.Errorf("stream %d: %d after %d, begun at %d", i, n, w.last[i], w.floor[i]))
			}
			w.last[i] = n
		}
		w.cursor = s.Cursor()
		if fate == 1 && !w.quit.Load() {
			_ = s.Close()
		}
		return nil
	})
	s, err := w.g.RegisterSession(cfg)
	if errors.Is(err, ErrCursorGone) {
		w.anew++
		w.cursor = Cursor{}
		w.mu.Lock()
		if w.gaps {
			w.doubt = nil
		}
		w.mu.Unlock()
		cfg.After = Cursor{}
		s, err = w.g.RegisterSession(cfg)
	}
	if err != nil {
		w.ended = err
		ready <- nil
		return nil
	}
	if cfg.After == (Cursor{}) {
		w.mu.Lock()
		w.floor = w.published() // what is published from here on must come
		w.cursor = s.Cursor()
		w.mu.Unlock()
	}
	ready <- s
	return s
}

// run reconnects until w.quit; then it waits for what was published last.
func (w *follower) run(over <-chan struct{}) {
	for {
		s := w.connect()
		if s == nil {
			return
		}
		select {
		case <-s.Done():
			w.mu.Lock()
			w.cursor = s.Cursor()
			w.mu.Unlock()
			if s.Err() == ErrGap { // to be told so is to begin anew
				w.cursor, w.doubt = Cursor{epoch: 1}, nil
			}
		case <-over:
			_ = s.Close()
			<-s.Done()
			w.wrong = cmp.Or(w.wrong, w.doubt)
			return
		}
	}
}

// breather lets others go on, for about as long as a few messages take.
func breather() { <-time.After(200 * time.Microsecond) }

func TestResumeRaces(t *testing.T) {
	rows := []struct {
		name  string
		cfg   GatewayConfig
		gaps  bool
		getIn func(t *testing.T, b *Broker, g *Gateway) // again and again
	}{
		{name: "other sessions of the user", cfg: GatewayConfig{MaxSessionsPerUser: 4}, getIn: func(t *testing.T, _ *Broker, g *Gateway) {
			for range 5 { // which replace those of the follower, too
				_, err := g.RegisterSession(SessionConfig{ID: freshID(), UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
				require.NoError(t, err)
			}
			breather()
		}},
		{name: "the expiry of its history", cfg: GatewayConfig{HistoryTTL: 20 * time.Microsecond}, getIn: func(*testing.T, *Broker, *Gateway) { breather() }},
		{name: "HistoryTotal", cfg: GatewayConfig{HistoryTotal: 40}, getIn: func(*testing.T, *Broker, *Gateway) { breather() }},
		{name: "Gap", gaps: true, getIn: func(_ *testing.T, _ *Broker, g *Gateway) { breather(); g.Gap() }},
		{name: "the Gateway's leaving the Broker and coming back", gaps: true, getIn: func(t *testing.T, b *Broker, g *Gateway) {
			breather()
			require.NoError(t, b.Unregister("g"))
			breather()
			require.NoError(t, b.RegisterGateway(g)) // which calls Gap: the sessions lived through it
		}},
		{name: "eviction", cfg: GatewayConfig{HistoryMessages: 16}, getIn: func(*testing.T, *Broker, *Gateway) { breather() }},
	}
	for _, row := range rows {
		t.Run("a reconnect that races publishing and "+row.name+" misses nothing unawares", func(t *testing.T) {
			follow(t, row.cfg, row.gaps, row.getIn)
		})
	}
}

// follow lets three followers reconnect while messages are published in every
// lane and getIn gets in their way, again and again.
func follow(t *testing.T, cfg GatewayConfig, gaps bool, getIn func(t *testing.T, b *Broker, g *Gateway)) {
	noLeaks(t)
	start := seed(t)
	cfg.BatchSize, cfg.OutboxMessages = 8, 16
	cfg.HistoryMessages = cmp.Or(cfg.HistoryMessages, 4096)
	b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
	g := newGateway(t, "g", keeping(cfg))
	require.NoError(t, b.RegisterGateway(g))
	runGateway(t, g)
	runBroker(t, b)
	f := &streams{b: b, published: map[string]*[NumPriorities]atomic.Uint64{"u": {}, "v": {}, AllUsers: {}}}
	over, done := make(chan struct{}), make(chan struct{})
	var clients, others sync.WaitGroup
	var all []*follower
	for i, userID := range []string{"u", "u", "v"} {
		w := &follower{t: t, g: g, f: f, userID: userID, rng: rand.New(rand.NewPCG(start, uint64(i))), gaps: gaps}
		all = append(all, w)
		clients.Go(func() { w.run(over) })
	}
	others.Go(func() { // ends with done
		for {
			select {
			case <-done:
				return
			default:
				getIn(t, b, g)
			}
		}
	})
	var publishers sync.WaitGroup
	for p := P0; p <= P3; p++ {
		publishers.Go(func() {
			for i := range sized(8000, 2000) {
				f.publish([]string{"u", "v", "u", AllUsers}[i%4], p)
				if i%50 == 0 {
					breather()
				}
			}
		})
	}
	publishers.Wait()
	close(done)
	others.Wait()
	for _, w := range all {
		w.quit.Store(true)
	}
	// Whoever lives now must get what is published now, with nothing missing
	// before it. Who is just being told that it must begin anew may miss it, so
	// the end is repeated until all have seen it.
	eventually(t, "everybody is at the end", func() bool {
		for userID := range f.published {
			for p := P0; p <= P3; p++ {
				f.publish(userID, p)
			}
		}
		for range 200 {
			there := true
			for _, w := range all {
				w.mu.Lock()
				there = there && (w.last == w.published() || w.wrong != nil)
				w.mu.Unlock()
			}
			if there {
				return true
			}
			<-time.After(100 * time.Microsecond)
		}
		return false
	})
	close(over)
	clients.Wait()
	for _, w := range all {
		t.Logf("%s: %d connections, %d begun anew", w.userID, w.conns, w.anew)
		require.NoError(t, w.wrong)
		require.NoError(t, w.ended)
	}
	drain(t, b)
	drain(t, g)
	conserved(t, b, g)
}

func TestResumeAndShutdown(t *testing.T) {
	t.Run("a Shutdown that returns nil has let every replay come to its end", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			for range sized(40, 10) {
				g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 4, OutboxMessages: 4}))
				run := start(context.Background(), g)
				from := offline(t, g, "u")
				feedAll(g, "u", P1, series("m", 200))
				eventually(t, "all is kept", func() bool { return g.history.kept.Load() == 200 })
				var sinks []*ledger
				for _, id := range series("s", 20) {
					_, sink := join(t, g, id, "u", after(from))
					sinks = append(sinks, sink)
				}
				drain(t, g)
				require.NoError(t, <-run)
				for _, sink := range sinks {
					require.Equal(t, series("m", 200), sink.ids())
				}
				balanced(t, g)
			}
		})
	})
	t.Run("a Shutdown that races reconnects ends them all", func(t *testing.T) {
		noLeaks(t)
		for range sized(200, 40) {
			g := newGateway(t, "g", keeping(GatewayConfig{}))
			run := start(context.Background(), g)
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 30))
			var clients sync.WaitGroup
			for i := range 3 {
				clients.Go(func() {
					for at := from; ; {
						s, err := g.RegisterSession(SessionConfig{ID: fmt.Sprint(i), UserID: "u", After: at, Sink: newLedger(t, g)})
						if err != nil {
							if !errors.Is(err, ErrClosed) {
								t.Error(err)
							}
							return
						}
						runtime.Gosched()
						_ = s.Close()
						<-s.Done()
						at = s.Cursor()
					}
				})
			}
			runtime.Gosched()
			_ = g.Shutdown(context.Background()) // what a client's Close drops is lost, and said to be
			finished(t, "clients", &clients)
			if err := <-run; err != nil { // it had not even begun
				require.ErrorIs(t, err, ErrClosed)
			}
			require.Zero(t, g.Stats().Users)
			balanced(t, g)
		}
	})
}

func TestResumeHerd(t *testing.T) {
	noLeaks(t)
	h := newHerd(t, sized(10_000, 1500))
	h.leave(5)
	stop := h.traffic()
	h.back()
	stop()
	drain(t, h.b)
	drain(t, h.g)
	require.GreaterOrEqual(t, h.g.Stats().Lanes[P1].Replayed, uint64(5*len(h.users)))
	h.whole(t)
	conserved(t, h.b, h.g)
}

// A herd is many users whose connections all end at once and come back at once.
type herd struct {
	t       testing.TB
	b       *Broker
	g       *Gateway
	users   []string
	cursors []Cursor
	mu      []sync.Mutex
	seen    [][]uint64 // the Timestamps, by user, in the order of their coming
	sent    []uint64   // by user, the last Timestamp
}

func newHerd(t testing.TB, n int) *herd {
	h := &herd{t: t, users: make([]string, n), cursors: make([]Cursor, n), mu: make([]sync.Mutex, n), seen: make([][]uint64, n), sent: make([]uint64, n)}
	h.b = newBroker(t, BrokerConfig{StallTimeout: time.Hour})
	h.g = newGateway(t, "g", keeping(GatewayConfig{}))
	require.NoError(t, h.b.RegisterGateway(h.g))
	runGateway(t, h.g)
	runBroker(t, h.b)
	for i := range h.users {
		h.users[i] = fmt.Sprintf("user_%05d", i)
		h.register(i)
	}
	return h
}

func (h *herd) register(i int) {
	s, err := h.g.RegisterSession(SessionConfig{ID: h.users[i], UserID: h.users[i], After: h.cursors[i], Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
		h.mu[i].Lock()
		defer h.mu[i].Unlock()
		for _, m := range batch {
			if m.priority == P1 {
				h.seen[i] = append(h.seen[i], uint64(m.n.Timestamp))
			}
		}
		return nil
	})})
	if err != nil {
		h.t.Error(err)
		return
	}
	h.cursors[i] = s.Cursor()
}

// publish gives user i its next message.
func (h *herd) publish(i int) {
	h.sent[i]++
	n := on(ChannelTrade, freshID(), h.users[i], P1)
	n.Timestamp = int64(h.sent[i])
	if err := h.b.PublishWait(context.Background(), n); err != nil {
		h.t.Error(err)
	}
}

// leave ends the session of every user, and each misses n messages.
func (h *herd) leave(n int) {
	for _, userID := range h.users {
		for s := range h.g.UserSessions(userID) {
			_ = s.Close()
			<-s.Done()
		}
	}
	for range n {
		for i := range h.users {
			h.publish(i)
		}
	}
	eventually(h.t, "all is kept", func() bool { return h.g.history.kept.Load() >= int64(n*len(h.users)) })
}

// traffic goes on until it is told to stop.
func (h *herd) traffic() (stop func()) {
	quit := make(chan struct{})
	var publisher sync.WaitGroup
	publisher.Go(func() { // ends with stop, which waits for it
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			h.publish(i * 7919 % len(h.users))
			if i%100 == 0 {
				_ = h.b.PublishWait(context.Background(), notice(freshID(), P3))
			}
			if i%10 == 0 {
				_ = h.b.PublishWait(context.Background(), note(freshID(), h.users[i%len(h.users)], P0))
			}
			if i%32 == 0 { // some ten thousand a second, not all there is
				<-time.After(time.Millisecond)
			}
		}
	})
	return func() { close(quit); publisher.Wait() }
}

// back lets all resume, eight at a time, and returns when nothing waits.
func (h *herd) back() {
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := c; i < len(h.users); i += 8 {
				h.register(i)
			}
		})
	}
	clients.Wait()
}

// whole requires that every user has got all that was published, in order.
func (h *herd) whole(t testing.TB) {
	t.Helper()
	for i, seen := range h.seen {
		require.Len(t, seen, int(h.sent[i]), "user %d", i)
		for n, at := range seen {
			require.EqualValues(t, n+1, at, "user %d", i)
		}
	}
}

// BenchmarkResumeHerd lets 10,000 users come back at once, each to 20 messages,
// and tells how long a P0 takes meanwhile, for a user who was there all the time
// and for all, those included who have yet to come back, which is what theirs
// waits for. Beside it stands how long it took just before, while the 200,000
// messages were published flat out.
func BenchmarkResumeHerd(b *testing.B) {
	var before, during, all Histogram
	for b.Loop() {
		b.StopTimer()
		h := newHerd(b, 10_000)
		var phases [2]HistogramRecorder
		var phase atomic.Int32
		_, err := h.g.RegisterSession(SessionConfig{ID: "there", UserID: "there", Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
			for _, m := range batch {
				phases[phase.Load()].Record(time.Duration(now() - m.entered))
			}
			return nil
		})})
		require.NoError(b, err)
		quit := make(chan struct{})
		var probe sync.WaitGroup
		probe.Go(func() { // ends with quit
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				case <-time.After(time.Millisecond):
				}
				_ = h.b.PublishWait(context.Background(), note(freshID(), "there", P0))
				if phase.Load() == 1 {
					_ = h.b.PublishWait(context.Background(), note(freshID(), h.users[i%len(h.users)], P0))
				}
			}
		})
		h.leave(20)
		phase.Store(1)
		was := h.g.Stats().Lanes[P0].Latency
		b.StartTimer()
		h.back()
		want := uint64(20 * len(h.users))
		eventually(b, "all is replayed", func() bool {
			l := h.g.Stats().Lanes[P1]
			return l.Replayed >= want && l.Pending == 0
		})
		b.StopTimer()
		close(quit)
		probe.Wait()
		drain(b, h.b)
		drain(b, h.g)
		h.whole(b)
		before, during = before.Add(phases[0].Snapshot()), during.Add(phases[1].Snapshot())
		all = all.Add(h.g.Stats().Lanes[P0].Latency.Sub(was))
		b.StartTimer()
	}
	b.ReportMetric(float64(during.Quantile(0.5))/1e3, "P0-p50-µs")
	b.ReportMetric(float64(during.Quantile(0.99))/1e3, "P0-p99-µs")
	b.ReportMetric(float64(all.Quantile(0.99))/1e3, "P0-p99-all-µs")
	b.ReportMetric(float64(before.Quantile(0.99))/1e3, "P0-p99-before-µs")
}
