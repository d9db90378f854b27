package notification

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Clients that hop from one Gateway to another of a Log while everything else
// goes on: Gateways stop and come anew, feeders are late, the log forgets, loses
// its end, begins anew, and does not answer. They insist that nothing is missing,
// nothing comes twice and each lane is in order, and at the end everything adds
// up.

var logMessages = flag.Int("log.messages", 0, "how many notifications TestLogChaos publishes; default 400,000, under the race detector 60,000, with -short a tenth")

// A logLedger is what the publishers know: every entry there ever was. The log
// itself is not asked.
type logLedger struct {
	mu     sync.Mutex
	epochs map[uint64]*[NumPriorities][]logEntry // guarded by mu
	losses int                                   // guarded by mu: how often the log has lost its end
}

func (d *logLedger) add(epoch uint64, p Priority, e logEntry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lanes := d.epochs[epoch]
	if lanes == nil {
		lanes = new([NumPriorities][]logEntry)
		d.epochs[epoch] = lanes
	}
	lanes[p] = append(lanes[p], e)
}

// lose takes back what has a number over the last that the log still has.
func (d *logLedger) lose(epoch uint64, p Priority, last uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.losses++
	if lanes := d.epochs[epoch]; lanes != nil {
		lanes[p] = slices.Clone(lanes[p][:search(lanes[p], last)])
	}
}

// lost returns how often the log has lost its end.
func (d *logLedger) lost() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.losses
}

// search returns how many entries have a number up to this.
func search(entries []logEntry, number uint64) int {
	return sort.Search(len(entries), func(i int) bool { return entries[i].number > number })
}

// between returns the entries with a number over from and up to to.
func (d *logLedger) between(epoch uint64, p Priority, from, to uint64) []logEntry {
	d.mu.Lock()
	defer d.mu.Unlock()
	lanes := d.epochs[epoch]
	if lanes == nil || to <= from {
		return nil
	}
	return lanes[p][search(lanes[p], from):search(lanes[p], to)]
}

// stored returns, for each lane, which block the last entry up to a number came
// in.
func (d *logLedger) stored(epoch uint64, numbers [NumPriorities]uint64) (blocks [NumPriorities]uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if lanes := d.epochs[epoch]; lanes != nil {
		for p, number := range numbers {
			if i := search(lanes[p], number); i > 0 {
				blocks[p] = lanes[p][i-1].stored
			}
		}
	}
	return blocks
}

// A logChaos is a log, its edges, and who disturbs them.
type logChaos struct {
	t      *testing.T
	log    *memoryLog
	ledger *logLedger
	cfg    GatewayConfig
	over   chan struct{} // closed when nothing is published or disturbed any more

	publishing sync.RWMutex // held to write while nobody may publish

	mu      sync.Mutex
	rng     *rand.Rand    // guarded by mu
	edges   [3]*chaosEdge // guarded by mu: nil while one is down
	stopped []*memoryEdge // guarded by mu
	calm    atomic.Bool
}

// A chaosEdge is an edge that runs, and its feeder.
type chaosEdge struct {
	*memoryEdge
	run   <-chan error
	quit  chan struct{}
	fed   chan struct{} // closed when the feeder has stopped
	pause sync.Mutex    // held while the feeder is to be late
}

// chance returns true one time in n.
func (c *logChaos) chance(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n) == 0 && !c.calm.Load()
}

func (c *logChaos) start(i int) {
	e := &chaosEdge{memoryEdge: newMemoryEdge(c.t, c.log, fmt.Sprint("edge", i), c.cfg), quit: make(chan struct{}), fed: make(chan struct{})}
	if c.chance(3) {
		e.from = e.at // it has nothing from before
	}
	e.onFeed = func() {
		e.pause.Lock() // waits while somebody pauses it
		defer e.pause.Unlock()
	}
	e.onRaised = func(Priority) {
		if c.chance(4) {
			breather()
		}
	}
	e.onMissed = func(context.Context) error {
		switch {
		case c.chance(10):
			return errors.New("not now")
		case c.chance(10):
			breather()
		}
		return nil
	}
	e.run = start(context.Background(), e.g)
	for !begun(e.g.life) {
		runtime.Gosched() // stop must not overtake Run
	}
	go func() { e.memoryEdge.run(e.quit); close(e.fed) }() // ends with quit; stop waits for it
	c.mu.Lock()
	defer c.mu.Unlock()
	c.edges[i] = e
}

// stop stops an edge, whose sessions end.
func (c *logChaos) stop(i int) {
	c.mu.Lock()
	e := c.edges[i]
	c.edges[i] = nil
	c.mu.Unlock()
	close(e.quit)
	<-e.fed
	ctx := context.Background()
	if c.chance(2) {
		ctx = canceled
	}
	_ = e.g.Shutdown(ctx) // what a client's fault drops is lost, and said to be
	if err := <-e.run; err != nil {
		c.t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = append(c.stopped, e.memoryEdge)
}

// edge returns one that runs.
func (c *logChaos) edge(rng *rand.Rand) *chaosEdge {
	for {
		c.mu.Lock()
		e := c.edges[rng.IntN(len(c.edges))]
		c.mu.Unlock()
		if e != nil {
			return e
		}
		runtime.Gosched()
	}
}

// disturb does something bad.
func (c *logChaos) disturb(rng *rand.Rand, counts map[string]int) {
	i, p := rng.IntN(len(c.edges)), Priority(rng.IntN(NumPriorities))
	c.mu.Lock()
	e := c.edges[i]
	c.mu.Unlock()
	what := ""
	switch n := rng.IntN(100); {
	case n < 30:
		what = "edges stopped"
		c.stop(i)
		breather()
		c.start(i)
	case n < 60:
		what = "feeders late"
		e.pause.Lock()
		for range rng.IntN(20) {
			breather()
		}
		if rng.IntN(3) == 0 {
			what = "feeders too late"
			c.log.trim(p, rng.IntN(20))
		}
		e.pause.Unlock()
	case n < 75:
		what = "lanes trimmed"
		c.log.trim(p, 1000+rng.IntN(1000))
	case n < 90:
		what = "gaps for nothing"
		e.g.Gap()
	case n < 95:
		what = "logs begun anew"
		c.log.renew()
	default:
		what = "ends lost, with every edge down"
		for i := range c.edges {
			c.stop(i)
		}
		c.publishing.Lock()
		c.log.lose(p)
		c.ledger.lose(c.log.epoch, p, c.log.ends()[p])
		c.log.publish(note("uses its number again", tapeUsers[rng.IntN(3)], p))
		c.publishing.Unlock()
		for i := range c.edges {
			c.start(i)
		}
	}
	counts[what]++
}

// A hopper is a client that connects somewhere, is cut off, and goes on somewhere
// else.
type hopper struct {
	t      *testing.T
	c      *logChaos
	userID string
	rng    *rand.Rand // owned by whoever runs: the loop between connections, Push during one

	at                           Cursor
	stored                       [NumPriorities]uint64 // which blocks are there
	always, ever                 uint32                // the channels that the filter admitted all the time, and at any time
	conns, gaps, tries, repeated int
	resets                       map[string]int
	taken                        uint64
	doubt                        error // nothing is wrong if the log has begun anew, of which it may hear late
	failed                       bool
	place                        [NumPriorities]atomic.Uint64 // at, for those who publish
	epoch                        atomic.Uint64
}

func (h *hopper) bad(format string, args ...any) {
	if h.doubt == nil {
		h.doubt = fmt.Errorf(format, args...)
	}
}

// settle lets the doubt be a failure unless the log has begun anew.
func (h *hopper) settle() {
	if h.doubt != nil && h.c.epoch() == h.at.epoch && !h.failed {
		h.failed = true
		h.t.Errorf("%s: %v", h.userID, h.doubt)
	}
	h.doubt = nil
}

func (c *logChaos) epoch() uint64 {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.log.epoch
}

// moveTo is where the client has got to.
func (h *hopper) moveTo(to Cursor) {
	h.at, h.stored = to, h.c.ledger.stored(to.epoch, to.seqs)
	h.epoch.Store(to.epoch)
	for p, n := range to.seqs {
		h.place[p].Store(n)
	}
}

// check compares a batch with what the ledger has between two cursors.
func (h *hopper) check(batch []*Message, to Cursor) {
	if to.epoch != h.at.epoch {
		h.bad("a session goes from epoch %d to %d", h.at.epoch, to.epoch)
		return
	}
	var lanes [NumPriorities][]*Message
	for _, m := range batch {
		lanes[m.priority] = append(lanes[m.priority], m)
	}
	for p, got := range lanes {
		if to.seqs[p] < h.at.seqs[p] {
			h.bad("P%d: the cursor goes back from %d to %d", p, h.at.seqs[p], to.seqs[p])
		}
		for _, e := range h.c.ledger.between(to.epoch, Priority(p), h.at.seqs[p], to.seqs[p]) {
			ch := e.n.Payload.Type().Channel()
			mine := e.n.UserID == h.userID || e.n.UserID == AllUsers
			here := len(got) > 0 && got[0].n == e.n
			switch {
			case here && (!mine || !admits(h.ever, ch)):
				h.bad("P%d: %d, of %s for %s, is not for it", p, e.number, ch, e.n.UserID)
			case !here && mine && admits(h.always, ch):
				h.bad("P%d: %d is missing between %d and %d", p, e.number, h.at.seqs[p], to.seqs[p])
			}
			if here {
				got = got[1:]
			}
		}
		if len(got) > 0 {
			h.bad("P%d: %d comes again or out of turn, between %d and %d", p, numberedOf(got[0]).number, h.at.seqs[p], to.seqs[p])
		}
	}
	h.taken += uint64(len(batch))
	h.moveTo(to)
}

func (h *hopper) filter() (channels []Channel, bits uint32) {
	if h.rng.IntN(3) == 0 {
		return nil, allChannels
	}
	for ch := ChannelTrade; ch < numChannels; ch++ {
		if h.rng.IntN(2) == 0 {
			channels = append(channels, ch)
		}
	}
	if channels == nil {
		channels = []Channel{ChannelRisk}
	}
	return channels, filterOf(channels)
}

// sink returns what takes one connection's batches.
func (h *hopper) sink(session func() *Session, calm bool) SinkFunc {
	return func(ctx context.Context, batch []*Message) error {
		s := session()
		fate := h.rng.IntN(30)
		if calm {
			fate = -1
		}
		switch fate {
		case 0:
			h.repeated++
			return errors.New("dropped before the batch was taken")
		case 1: // a reader that hangs until it is called slow
			for polls := 0; polls < 50 && ctx.Err() == nil; polls++ {
				breather()
			}
			if h.rng.IntN(2) == 0 {
				h.repeated++
				return errors.New("dropped after it had hung")
			}
		}
		h.check(batch, s.Cursor())
		switch fate {
		case 2, 3:
			_ = s.Close()
		case 4:
			s.SubscribeAll()
		case 5:
			s.Unsubscribe(ChannelTrade + Channel(h.rng.IntN(5)))
		case 6:
			s.Subscribe(ChannelTrade + Channel(h.rng.IntN(5)))
		}
		bits := filterOf(s.Subscriptions())
		h.always &= bits
		h.ever |= bits
		if bits == 0 { // nothing would come any more, the end of this connection included
			_ = s.Close()
		}
		return nil
	}
}

func (h *hopper) connect(g *Gateway, after Cursor, channels []Channel, sink func(func() *Session) SinkFunc) (*Session, error) {
	h.conns++
	ready := make(chan *Session, 1)
	s, err := g.RegisterSession(SessionConfig{
		ID: fmt.Sprintf("%p-%d", h, h.conns), UserID: h.userID, Channels: channels, After: after,
		Sink: sink(sync.OnceValue(func() *Session { return <-ready })),
	})
	ready <- s
	return s, err
}

// begin begins anew, somewhere, and is cut off before anything comes.
func (h *hopper) begin() {
	for {
		losses := h.c.ledger.lost()
		s, err := h.connect(h.c.edge(h.rng).g, Cursor{}, []Channel{}, func(func() *Session) SinkFunc { return nil })
		if errors.Is(err, ErrClosed) {
			continue
		}
		if err != nil {
			h.failed = true
			h.t.Errorf("%s: cannot begin: %v", h.userID, err)
			return
		}
		begun := h.unless(losses, func() {
			h.moveTo(s.Cursor())
			ends := h.c.log.ends() // after the cursor, which moves on
			for p, n := range h.at.seqs {
				if n > ends[p] {
					h.bad("P%d: it begins at %d, and what came after it to %d would be missing", p, n, ends[p])
				}
			}
		})
		_ = s.Close()
		<-s.Done()
		h.settle()
		if begun {
			return
		}
	}
}

// unless does something and reports true, unless the log has lost its end once
// more: then a cursor and the ledger are not of the same time.
func (h *hopper) unless(losses int, f func()) bool {
	h.c.publishing.RLock()
	defer h.c.publishing.RUnlock()
	if h.c.ledger.lost() != losses {
		return false
	}
	f()
	return true
}

// run goes on until nothing is published any more and everything has arrived.
func (h *hopper) run() {
	h.begin()
	for calm := false; !h.failed; {
		select {
		case <-h.c.over:
			calm = true
		default:
		}
		var channels []Channel
		h.always = allChannels
		if !calm {
			channels, h.always = h.filter()
		}
		h.ever = h.always
		e := h.c.edge(h.rng)
		from, stored, losses, known := h.at, h.stored, h.c.ledger.lost(), e.g.history.epoch.Load()
		s, err := h.connect(e.g, from, channels, func(session func() *Session) SinkFunc { return h.sink(session, calm) })
		switch {
		case errors.Is(err, ErrClosed):
			continue
		case errors.Is(err, ErrTryAgain):
			h.tries++
			breather()
			continue
		case errors.Is(err, ErrCursorGone):
			why := h.reason(e, from, known)
			h.resets[why]++
			if why == "" {
				h.bad("the cursor %+v is said to be gone for no reason: %v; stored %v now %v ends %v", from.seqs, err, h.stored, h.c.ledger.stored(from.epoch, from.seqs), h.c.log.ends())
			}
			h.settle()
			h.begin()
			continue
		case err != nil:
			h.failed = true
			h.t.Errorf("%s: cannot resume: %v", h.userID, err)
			return
		}
		h.unless(losses, func() {
			if h.c.ledger.stored(from.epoch, from.seqs) != stored {
				h.bad("it goes on behind what the log has lost")
			}
		})
		for calm && s.Err() == nil && s.Cursor().seqs != h.c.log.ends() {
			runtime.Gosched()
		}
		if !calm {
			select {
			case <-s.Done():
			case <-h.c.over:
			}
		}
		_ = s.Close()
		<-s.Done()
		if h.rng.IntN(2) == 0 || calm { // over what it did not want
			h.unless(losses, func() { h.check(nil, s.Cursor()) })
		}
		gap := s.Err() == ErrGap
		h.settle()
		if gap {
			h.gaps++
			if h.rng.IntN(2) == 0 || h.at.epoch != h.c.epoch() { // else it tries what it has
				h.begin()
			}
		}
		if calm && h.at.seqs == h.c.log.ends() && h.at.epoch == h.c.epoch() {
			return
		}
	}
}

// reason returns why a cursor may be gone at an edge whose Gateway knew of an epoch
// before it was asked. Whatever else it finds was so a moment before, or has become so
// since.
func (h *hopper) reason(e *chaosEdge, from Cursor, known uint64) string {
	epoch, _, begin := e.state()
	h.c.log.mu.Lock()
	ends := [NumPriorities]uint64{}
	trimmed := false
	for p := range ends {
		lane := &h.c.log.lanes[p]
		ends[p] = lane.end()
		trimmed = trimmed || from.seqs[p] < lane.gone.number
	}
	renewed := h.c.log.epoch != from.epoch
	h.c.log.mu.Unlock()
	late, many := false, 0
	for p := range ends {
		late = late || from.seqs[p] < begin[p]
		for _, e := range h.c.ledger.between(from.epoch, Priority(p), from.seqs[p], ends[p]) {
			if e.n.UserID == h.userID || e.n.UserID == AllUsers {
				many++
			}
		}
	}
	switch {
	case !from.sealed:
		return "its place was not known"
	case renewed || epoch != from.epoch || known != from.epoch:
		return "the log has begun anew"
	case trimmed:
		return "it was forgotten"
	case late:
		return "the edge has come later"
	case many > h.c.cfg.HistoryMessages:
		return "it is too much"
	case h.stored != h.c.ledger.stored(from.epoch, from.seqs):
		return "the log has lost it"
	}
	return ""
}

// publish publishes one block after the other.
func (c *logChaos) publish(rng *rand.Rand, total int, hoppers []*hopper) {
	users := append([]string{"stranger", "another", AllUsers}, tapeUsers...)
	for n := 0; n < total; {
		var block []*Notification
		for range 1 + rng.IntN(8) {
			userID, p := users[rng.IntN(len(users))], Priority(rng.IntN(NumPriorities))
			ch := ChannelTrade + Channel(rng.IntN(5))
			if userID == AllUsers {
				ch = ChannelSystem
			}
			block = append(block, on(ch, "m", userID, p))
		}
		n += len(block)
		c.publishing.RLock()
		c.log.publish(block...)
		c.publishing.RUnlock()
		for _, h := range hoppers { // not much faster than the slowest client, unless it waits for us to go on
			for polls := 0; polls < 20 && c.behind(h) > 1000; polls++ {
				breather()
			}
		}
	}
}

// behind returns how many entries a client has yet to see in the lane in which
// those are most.
func (c *logChaos) behind(h *hopper) (most int) {
	epoch, ends := h.epoch.Load(), c.log.ends()
	for p := P0; p <= P3; p++ {
		most = max(most, len(c.ledger.between(epoch, p, h.place[p].Load(), ends[p])))
	}
	return most
}

func TestLogChaos(t *testing.T) {
	noLeaks(t)
	start := seed(t)
	total := sized(400_000, 60_000)
	if testing.Short() {
		total /= 10
	}
	if *logMessages > 0 {
		total = *logMessages
	}
	c := &logChaos{
		t: t, log: newMemoryLog(), ledger: &logLedger{epochs: make(map[uint64]*[NumPriorities][]logEntry)},
		cfg:  GatewayConfig{BatchSize: 16, OutboxMessages: 512, HistoryMessages: 2048, SlowAfter: 2 * time.Millisecond, HistoryTTL: 5 * time.Millisecond},
		over: make(chan struct{}), rng: rand.New(rand.NewPCG(start, 1<<32)),
	}
	c.log.book = c.ledger.add
	for i := range c.edges {
		c.start(i)
	}
	var clients, publishers, others sync.WaitGroup
	var hoppers []*hopper
	for i, userID := range []string{"u", "u", "u", "v", "v", "w"} {
		hoppers = append(hoppers, &hopper{t: t, c: c, userID: userID, resets: make(map[string]int), rng: rand.New(rand.NewPCG(start, uint64(i)))})
		clients.Go(hoppers[i].run)
	}
	for i := range 2 {
		publishers.Go(func() { c.publish(rand.New(rand.NewPCG(start, uint64(100+i))), total/2, hoppers) })
	}
	published := make(chan struct{})
	counts := make(map[string]int)
	others.Go(func() {
		rng := rand.New(rand.NewPCG(start, 1000))
		for {
			select {
			case <-published:
				return
			case <-time.After(time.Duration(rng.IntN(int(10 * time.Millisecond)))):
				c.disturb(rng, counts)
			}
		}
	})
	publishers.Wait()
	close(published)
	others.Wait()
	c.calm.Store(true)
	for p := P0; p <= P3; p++ {
		c.log.publish(notice("last", p))
	}
	close(c.over)
	finished(t, "clients", &clients)
	for i := range c.edges {
		c.stop(i)
	}
	t.Logf("%v", counts)
	for _, h := range hoppers {
		t.Logf("%s: %d connections, begun anew because %v, %d gaps, %d tried again, %d batches repeated, %d messages taken", h.userID, h.conns, h.resets, h.gaps, h.tries, h.repeated, h.taken)
	}
	for _, e := range c.stopped {
		e.conserved(t)
		for p, l := range e.g.Stats().Lanes {
			require.Zero(t, l.Invalid, "P%d", p)
		}
	}
}
