package notification

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v3"
)

const (
	// sliceSize is how many sessions of a big fan-out, or messages of one lane,
	// the reader works off before it is another lane's turn. P0 is looked at
	// more often, before every message and every slice.
	sliceSize = 64

	// clockEvery is after how many messages the reader looks at the clock: a
	// delay may begin by the time of so many messages too early.
	clockEvery = 16

	// burst is how many times OutboxMessages may wait for a session whose sink
	// is not at fault, because it has not been asked yet.
	burst = 8

	// The reader stops reading while more than backlog times OutboxMessages
	// wait for a pusher, until half of it has gone: then the sessions are not
	// slow, we are, and the Broker's lanes are the place to wait in.
	backlog = 4

	// hoardLooks is how many users that are away a message looks at to find one
	// whose history makes room for it.
	hoardLooks = 8

	// A due session waits this long for one of the pushers that there are; then
	// they count as blocked and stand-ins are started.
	blockedAfter       = time.Millisecond
	blockedAfterUrgent = 100 * time.Microsecond

	// With MaxPushers all blocked for so long, waiting for them would hold up
	// everybody: the reader goes on, and the sessions' bounds decide.
	exhaustedAfter = 100 * time.Millisecond

	// Before a session with an overfull outbox is called slow, its running Push
	// gets a chance: the reader yields a few times, and if that was not enough
	// the Push has suspicion more. A quick sink needs it whose thread waits for a
	// CPU; meanwhile the outbox may grow as if the sink had not been asked yet.
	patienceYields = 512
	patience       = 200 * time.Microsecond
	suspicion      = 50 * time.Millisecond
)

// SlowPolicy says what happens when a session's outbox is full.
type SlowPolicy uint8

const (
	// SlowClose ends the session with ErrSlowConsumer: the client reconnects,
	// and knows that it must.
	SlowClose SlowPolicy = iota
	// SlowDropOldest drops the oldest message of the lowest lane and counts it.
	SlowDropOldest
)

// GatewayConfig configures a Gateway. The zero value is ready to use.
type GatewayConfig struct {
	// BatchSize is the most messages that a Push gets, and as many waiting make
	// a session due; default 100.
	BatchSize int
	// MaxDelay is how long a message may wait for others to share its batch;
	// default 0, 1 ms, 50 ms, 100 ms. Negative is 0: at once. P0 never waits.
	MaxDelay [NumPriorities]time.Duration
	// OutboxMessages is how many messages may wait for a session whose sink is
	// busy; default 1024, at least BatchSize. Eight times as many may wait for
	// one whose sink is idle, which is then not what they wait for.
	OutboxMessages int
	// SlowPolicy says what happens beyond that; default SlowClose.
	SlowPolicy SlowPolicy
	// SessionTimeout is how long a session may stay silent; default 5 min,
	// negative: for ever.
	SessionTimeout time.Duration
	// SweepInterval is how often the silent ones are looked for; default 30 s.
	SweepInterval time.Duration
	// MaxSessions and MaxSessionsPerUser bound the sessions; default 0, no bound.
	MaxSessions, MaxSessionsPerUser int
	// Pushers is how many goroutines push; default 2 × GOMAXPROCS at NewGateway.
	Pushers int
	// MaxPushers is how many there may be with the stand-ins for those whose
	// sink blocks; default 65,536, at least Pushers.
	MaxPushers int
	// InboxCapacity is how many messages each lane of the inbox holds; default
	// 1024.
	InboxCapacity int
	// HistoryMessages is how many messages of each lane are kept per user for
	// sessions that resume behind a Cursor, and how many to AllUsers once for
	// all; default 0: none, and no cursors. At least OutboxMessages, so that a
	// session that ended as slow finds what its outbox held. Give it room for the
	// batch that failed, and for what comes until the client is back: a multiple.
	HistoryMessages int
	// HistoryTTL is how long a user's history, and route, outlive the user's
	// last session; default 2 min.
	HistoryTTL time.Duration
	// HistoryTotal is how many messages are kept for all users together; default
	// 1,000,000. Beyond it the users without a session lose their history, who
	// has been away the longest first; with none of those left, whoever gets a
	// message loses the oldest of its lane.
	HistoryTotal int
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger
}

func (c *GatewayConfig) setDefaults() error {
	c.BatchSize = cmp.Or(c.BatchSize, 100)
	c.OutboxMessages = cmp.Or(c.OutboxMessages, max(1024, c.BatchSize))
	c.SessionTimeout = cmp.Or(c.SessionTimeout, 5*time.Minute)
	c.SweepInterval = cmp.Or(c.SweepInterval, 30*time.Second)
	c.Pushers = cmp.Or(c.Pushers, 2*runtime.GOMAXPROCS(0))
	c.MaxPushers = cmp.Or(c.MaxPushers, max(65_536, c.Pushers))
	c.InboxCapacity = cmp.Or(c.InboxCapacity, 1024)
	c.HistoryTTL = cmp.Or(c.HistoryTTL, 2*time.Minute)
	c.HistoryTotal = cmp.Or(c.HistoryTotal, 1_000_000)
	for p := range c.MaxDelay {
		c.MaxDelay[p] = max(cmp.Or(c.MaxDelay[p], [...]time.Duration{0, time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond}[p]), 0)
	}
	c.MaxDelay[P0] = 0
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, f := range []struct {
		name       string
		value, min int
	}{
		{"BatchSize", c.BatchSize, 1},
		{"OutboxMessages", c.OutboxMessages, c.BatchSize},
		{"MaxSessions", c.MaxSessions, 0},
		{"MaxSessionsPerUser", c.MaxSessionsPerUser, 0},
		{"Pushers", c.Pushers, 1},
		{"MaxPushers", c.MaxPushers, c.Pushers},
		{"InboxCapacity", c.InboxCapacity, 1},
		{"HistoryTotal", c.HistoryTotal, 1},
	} {
		if f.value < f.min || f.value > math.MaxInt32 {
			return fmt.Errorf("%w: %s %d is not within %d and 2^31-1", ErrInvalid, f.name, f.value, f.min)
		}
	}
	if c.HistoryMessages != 0 && c.HistoryMessages < c.OutboxMessages || c.HistoryMessages > math.MaxInt32 {
		return fmt.Errorf("%w: HistoryMessages %d is neither 0 nor within OutboxMessages %d and 2^31-1", ErrInvalid, c.HistoryMessages, c.OutboxMessages)
	}
	if c.HistoryTTL < 0 {
		return fmt.Errorf("%w: HistoryTTL %s is negative", ErrInvalid, c.HistoryTTL)
	}
	if c.SweepInterval < 0 {
		return fmt.Errorf("%w: SweepInterval %s is negative", ErrInvalid, c.SweepInterval)
	}
	if c.SlowPolicy > SlowDropOldest {
		return fmt.Errorf("%w: SlowPolicy %d is unknown", ErrInvalid, c.SlowPolicy)
	}
	return nil
}

// A Gateway owns the sessions of connected users: it filters by channel,
// batches per session, pushes, and ends sessions that are slow or silent.
// NewGateway makes one; Broker.RegisterGateway connects it.
//
// One goroutine, the reader, takes messages from the inbox to the outboxes and
// does all that depends on time; a few others, the pushers, take sessions that
// are due from a queue and call their sinks. So a session costs no goroutine,
// and only its own sink can hold it up.
type Gateway struct {
	// immutable after NewGateway
	id    string
	cfg   GatewayConfig
	log   *slog.Logger
	inbox [NumPriorities]chan *Message
	life  *lifecycle
	wake  chan struct{} // cap 1: rouses the reader

	// mu guards who is registered. Lock order: Gateway.mu, then Broker.regMu or
	// Session.mu, then a user's history.mu, then that of AllUsers; dueQueue.mu
	// last. Pushing takes Session.mu and under it the later ones, no more.
	mu          sync.Mutex
	closed      bool                 // guarded by mu: no more sessions
	byID        map[string]*Session  // guarded by mu
	first, last *Session             // guarded by mu: all sessions by serial
	serial      uint64               // guarded by mu: the last one given
	cursors     [numCursors]*Session // guarded by mu: where walks through the list go on
	link        *receiver            // guarded by mu: what we are to the Broker
	broker      *Broker              // guarded by mu
	left        bool                 // guarded by mu: a Broker, and no other has come since
	ended       SessionEnds          // guarded by mu
	run         uint64               // guarded by mu: what cursors are bound to; a Gap renews it
	away        userList             // guarded by mu: users without a session whose history is kept, who left first first
	hoarder     *user                // guarded by mu: of those, whom keep looks at next; nil: the first

	users *xsync.MapOf[string, *user] // changed under mu, read by the reader without
	due   dueQueue

	// atomic
	fresh       atomic.Bool  // a session was registered since the last Gap
	behind      atomic.Int64 // messages of sessions that wait for a pusher
	heldUp      atomic.Bool  // the reader reads only P0 until behind has halved
	hung        atomic.Uint64
	panicked    episode // of sinks
	leftBehind  episode // of sinks that hang
	shards      []shard // what pushers count
	droppedSlow [NumPriorities]atomic.Uint64
	droppedEnd  [NumPriorities]atomic.Uint64
	replayed    [NumPriorities]atomic.Uint64
	awayUntil   atomic.Int64 // when the first of away is to be forgotten
	kept        atomic.Int64 // messages in the users' histories
	abandoned   atomic.Int64 // pending messages of Pushes left behind: no drain waits for them
	replays     atomic.Int64 // sessions that the pushers have yet to replay something to

	everyone *history                     // of AllUsers; nil without HistoryMessages
	numbers  [NumPriorities]atomic.Uint64 // the last number given to a message that was kept; the reader gives them

	// written by the reader alone, atomic
	received, noSession, discarded, filtered, enqueued [NumPriorities]tally

	// owned by the reader
	clock     int64 // now, a little old
	turn      int   // messages and slices since the last yield
	fans      [NumPriorities]fanOut
	delays    [NumPriorities]delayList
	timer     *time.Timer
	suspects  []suspect // by at
	sweepAt   int64
	sweeping  bool   // a walk is under way
	quietFrom int64  // since when no pusher has come back
	returns   uint64 // of dueQueue, as it was then
}

// A user is somebody with sessions at a Gateway.
type user struct {
	id       string
	sessions atomic.Pointer[[]*Session] // copied on write under Gateway.mu, by serial
	history  *history                   // nil without HistoryMessages

	// guarded by Gateway.mu: its place in Gateway.away, and since when
	next, prev *user
	awaySince  int64 // 0 while it has a session
}

// A fanOut is a message on its way to more sessions than one slice holds. Its
// lane waits for it, so that the order is kept; others go on.
type fanOut struct {
	m        *Message
	number   uint64     // in the history
	sessions []*Session // what is left of the user's; unused for AllUsers
	limit    uint64     // the last session of AllUsers: later ones are not meant
}

// Walks through the list of all sessions: a fan-out to AllUsers per lane, and
// the sweep. endLocked moves a cursor off a session that leaves the list.
const (
	sweepCursor = NumPriorities
	numCursors  = NumPriorities + 1
)

// A shard counts what some of the pushers do, apart from the others' so that
// their caches need not agree on every message.
type shard struct {
	taken   [NumPriorities]atomic.Uint64
	batches atomic.Uint64
	latency [NumPriorities]recorder
	_       [64]byte
}

// NewGateway returns a Gateway that takes sessions at once and delivers when
// Run is called. An ID or a value of cfg that cannot be is ErrInvalid.
func NewGateway(id string, cfg GatewayConfig) (*Gateway, error) {
	if err := checkID("gateway ID", id); err != nil {
		return nil, err
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	g := &Gateway{
		id: id, cfg: cfg, log: cfg.Logger.With("gateway", id),
		life:   newLifecycle(),
		wake:   make(chan struct{}, 1),
		byID:   make(map[string]*Session),
		users:  xsync.NewMapOf[string, *user](),
		shards: make([]shard, min(cfg.Pushers, runtime.GOMAXPROCS(0))),
	}
	if cfg.HistoryMessages > 0 {
		g.run = rand.Uint64()
		g.everyone = newHistory(g)
	}
	g.awayUntil.Store(math.MaxInt64)
	g.due.init()
	for p := range g.inbox {
		g.inbox[p] = make(chan *Message, cfg.InboxCapacity)
		g.delays[p].lane = Priority(p)
	}
	return g, nil
}

// ID returns the Gateway's ID.
func (g *Gateway) ID() string { return g.id }

// Inbox returns the channels that a Broker, or whoever feeds the Gateway
// without one, sends to. They are never closed.
func (g *Gateway) Inbox() Inbox {
	var in Inbox
	for p, ch := range g.inbox {
		in[p] = ch
	}
	return in
}

// RegisterSession makes a session, which gets what is published from now on; so
// register first and load the snapshot after it. It is ErrInvalid for a cfg
// that cannot be, ErrSessionExists while a session with this ID lives,
// ErrTooManySessions with MaxSessions registered, ErrClosed once the Gateway
// shuts down. With cfg.After the session starts right behind that cursor; if
// that is no longer possible without a hole it is ErrCursorGone. A user that has MaxSessionsPerUser already loses the oldest, with
// ErrSessionReplaced.
func (g *Gateway) RegisterSession(cfg SessionConfig) (*Session, error) {
	if err := checkID("SessionConfig.ID", cfg.ID); err != nil {
		return nil, err
	}
	if err := checkUser("SessionConfig.UserID", cfg.UserID); err != nil {
		return nil, err
	}
	if cfg.Sink == nil {
		return nil, fmt.Errorf("%w: SessionConfig.Sink is nil", ErrInvalid)
	}
	for i, c := range cfg.Channels {
		if !c.valid() {
			return nil, fmt.Errorf("%w: SessionConfig.Channels[%d] %s is unknown", ErrInvalid, i, c)
		}
	}
	s, orphan, err := g.register(cfg)
	g.closeOrphans(orphan)
	return s, err
}

func (g *Gateway) register(cfg SessionConfig) (s, orphan *Session, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, fmt.Errorf("%w: gateway %q", ErrClosed, g.id)
	}
	if g.byID[cfg.ID] != nil {
		return nil, nil, fmt.Errorf("%w: %q", ErrSessionExists, cfg.ID)
	}
	u, known := g.users.Load(cfg.UserID)
	var siblings []*Session
	if known {
		siblings = *u.sessions.Load()
	}
	var after *[NumPriorities]uint64
	if cfg.After != (Cursor{}) {
		if !known || !g.resumable(u, cfg) {
			return nil, nil, fmt.Errorf("%w: user %q", ErrCursorGone, cfg.UserID)
		}
		after = &cfg.After.numbers
	}
	full := g.cfg.MaxSessionsPerUser > 0 && len(siblings) >= g.cfg.MaxSessionsPerUser
	if !full && g.cfg.MaxSessions > 0 && len(g.byID) >= g.cfg.MaxSessions {
		return nil, nil, fmt.Errorf("%w: %d", ErrTooManySessions, g.cfg.MaxSessions)
	}

	g.serial++
	s = &Session{
		g: g, id: cfg.ID, sink: cfg.Sink,
		timeout:   cmp.Or(cfg.Timeout, g.cfg.SessionTimeout),
		connected: time.Now().UnixNano(),
		serial:    g.serial,
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.heard.Store(now())
	s.filter.Store(everyChannel)
	if cfg.Channels != nil {
		s.filter.Store(filterOf(cfg.Channels))
	}
	if g.everyone != nil {
		s.resume = &resume{run: g.run}
	}
	if !known {
		u = &user{id: cfg.UserID}
		if g.cfg.HistoryMessages > 0 {
			u.history = newHistory(g)
		}
	} else if u.awaySince != 0 {
		g.unlistAway(u)
		g.watchAway()
	}
	s.user = u
	// The reader may offer the first messages as soon as it sees s: it must find
	// from which number on they are meant, so it waits. What is numbered before
	// we look is in the history, or before our time; what is numbered later is
	// offered, because the reader looks for sessions after it has numbered.
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append(slices.Clip(siblings), s) // a copy: the reader holds the old one
	u.sessions.Store(&list)
	g.byID[s.id] = s
	if s.prev = g.last; s.prev != nil {
		s.prev.next = s
	} else {
		g.first = s
	}
	g.last = s
	if !known {
		g.users.Store(u.id, u)
		g.reroute(u.id, held, 0)
	}
	if !g.fresh.Load() {
		g.fresh.Store(true)
	}
	if after != nil {
		s.resume.at, s.resume.replaying = *after, true
		g.startReplay(s)
	} else if s.resume != nil {
		for p := range s.resume.at {
			s.resume.at[p] = g.numbers[p].Load()
		}
	}
	if full { // only now, so that the user is routed throughout
		orphan = g.endLocked(siblings[0], ErrSessionReplaced)
	}
	return s, orphan, nil
}

// resumable reports whether a session can start behind cfg.After: it is of this
// run and user, and nothing that cfg's filter admits has left the history since.
// g.mu is held.
func (g *Gateway) resumable(u *user, cfg SessionConfig) bool {
	if u.history == nil || cfg.After.run != g.run || cfg.After.user != u.history.key {
		return false
	}
	filter := uint32(everyChannel)
	if cfg.Channels != nil {
		filter = filterOf(cfg.Channels)
	}
	u.history.mu.Lock()
	defer u.history.mu.Unlock()
	g.everyone.mu.Lock()
	defer g.everyone.mu.Unlock()
	for p, n := range cfg.After.numbers {
		if n > g.numbers[p].Load() || u.history.lost(p, filter, n) || g.everyone.lost(p, filter, n) {
			return false
		}
	}
	return true
}

// reroute tells the Broker whether we have a user. g.mu is held.
func (g *Gateway) reroute(userID string, add, remove uint8) {
	if g.broker == nil {
		return
	}
	g.broker.regMu.Lock()
	defer g.broker.regMu.Unlock()
	g.broker.reroute(userID, g.link, add, remove)
}

// attach is RegisterGateway. What was published since we left a Broker is in no
// history, so that nothing can be resumed from before.
func (g *Gateway) attach(b *Broker, r *receiver) error {
	again, err := g.join(b, r)
	if again {
		g.voidCursors()
	}
	return err
}

// join puts us on the Broker's tables, and reports whether we were on some
// before.
func (g *Gateway) join(b *Broker, r *receiver) (again bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false, fmt.Errorf("%w: gateway %q", ErrClosed, g.id)
	}
	if g.broker != nil && g.broker != b {
		return false, fmt.Errorf("%w: gateway %q belongs to another Broker", ErrInvalid, g.id)
	}
	b.regMu.Lock()
	defer b.regMu.Unlock()
	if err := b.addLocked(r); err != nil {
		return false, err
	}
	again, g.left = g.left, false
	g.broker, g.link = b, r
	g.users.Range(func(id string, _ *user) bool {
		b.reroute(id, r, held, 0)
		return true
	})
	return again, nil
}

// detach takes us off the Broker's tables; it reports false if we are no longer
// r there.
func (g *Gateway) detach(b *Broker, r *receiver) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link != r {
		return false
	}
	b.regMu.Lock()
	defer b.regMu.Unlock()
	g.users.Range(func(id string, _ *user) bool {
		b.reroute(id, r, 0, held)
		return true
	})
	b.dropRoutes(r)
	g.broker, g.link, g.left = nil, nil, true
	return true
}

// leave unregisters a Gateway that stops.
func (g *Gateway) leave() {
	g.mu.Lock()
	g.closed = true
	for g.away.first != nil { // nobody can resume any more
		g.forget(g.away.first)
	}
	b, r := g.broker, g.link
	g.mu.Unlock()
	if r == nil || !g.detach(b, r) {
		return
	}
	left := make(chan struct{})
	go func() { // ends when the dispatcher has let go of us
		b.depart(r)
		close(left)
	}()
	// The dispatcher lets go at once unless it is just serving a P0 to somebody
	// who does not take it. What it still sends stays in the inbox.
	select {
	case <-left:
	case <-g.life.stopping:
	}
}

// UnregisterSession ends a session with ErrSessionClosed. It is
// ErrUnknownSession if none that lives has this ID.
func (g *Gateway) UnregisterSession(sessionID string) error {
	s, ok := g.Session(sessionID)
	if !ok || !g.end(s, ErrSessionClosed) {
		return fmt.Errorf("%w: %q", ErrUnknownSession, clip(sessionID))
	}
	return nil
}

// Session returns the living session with this ID.
func (g *Gateway) Session(sessionID string) (*Session, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, ok := g.byID[sessionID]
	return s, ok
}

// Sessions yields the sessions that live when the iteration begins, in the order
// of their registration. No lock is held meanwhile.
func (g *Gateway) Sessions() iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		g.mu.Lock()
		all := make([]*Session, 0, len(g.byID))
		for s := g.first; s != nil; s = s.next {
			all = append(all, s)
		}
		g.mu.Unlock()
		for _, s := range all {
			if !yield(s) {
				return
			}
		}
	}
}

// UserSessions yields a user's sessions as Sessions does.
func (g *Gateway) UserSessions(userID string) iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		u, ok := g.users.Load(userID)
		if !ok {
			return
		}
		for _, s := range *u.sessions.Load() {
			if !yield(s) {
				return
			}
		}
	}
}

// Gap ends every session with ErrGap. The Broker calls it when it had to drop
// messages for this Gateway; whoever feeds the inbox without a Broker may too.
func (g *Gateway) Gap() {
	g.log.Debug("gap: ending every session") // the Broker has said why, once
	g.voidCursors()
	g.endAll(ErrGap)
}

// voidCursors forgets all history, and makes every cursor there is of another
// run.
func (g *Gateway) voidCursors() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.everyone == nil {
		return
	}
	g.run = rand.Uint64()
	g.everyone.clear(false)
	g.users.Range(func(_ string, u *user) bool {
		u.history.clear(false)
		return true
	})
	for g.away.first != nil {
		g.forget(g.away.first)
	}
}

// endAll ends the sessions that live at the time of the call, in slices, so
// that the lock is free in between.
func (g *Gateway) endAll(reason error) {
	var orphans []*Session
	limit := uint64(0)
	for more := true; more; {
		g.mu.Lock()
		if limit == 0 {
			limit = g.serial
		}
		for range sliceSize {
			if more = g.first != nil && g.first.serial <= limit; !more {
				break
			}
			orphans = append(orphans, g.endLocked(g.first, reason))
		}
		g.mu.Unlock()
	}
	g.closeOrphans(orphans...)
}

// end ends a session and reports whether it still lived.
func (g *Gateway) end(s *Session, reason error) bool {
	g.mu.Lock()
	if g.byID[s.id] != s {
		g.mu.Unlock()
		return false
	}
	orphan := g.endLocked(s, reason)
	g.mu.Unlock()
	g.closeOrphans(orphan)
	return true
}

// endLocked ends a living session: no Push begins after it, the ID is free and
// the route gone. A pusher closes the sink, or, if none runs, the caller must:
// then it gets s back for closeOrphans. g.mu is held.
func (g *Gateway) endLocked(s *Session, reason error) (orphan *Session) {
	*g.ended.of(reason)++
	delete(g.byID, s.id)
	for i := range g.cursors {
		if g.cursors[i] == s {
			g.cursors[i] = s.next
		}
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		g.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		g.last = s.prev
	}
	s.next, s.prev = nil, nil
	siblings := *s.user.sessions.Load()
	if len(siblings) == 1 {
		if s.user.history == nil || g.closed {
			g.users.Delete(s.user.id)
			g.reroute(s.user.id, 0, held)
		} else {
			s.user.awaySince = now()
			g.away.pushBack(s.user)
			g.watchAway()
		}
	}
	i := slices.Index(siblings, s)
	rest := slices.Concat(siblings[:i], siblings[i+1:])
	s.user.sessions.Store(&rest)

	s.mu.Lock()
	if s.resume != nil {
		s.resume.at = s.position()
		g.endReplay(s.resume)
	}
	s.err = reason
	for p := range s.out.lanes {
		n := int(s.out.lanes[p].n)
		for range n {
			s.out.pop(Priority(p))
		}
		g.lose(&g.droppedEnd[p], n)
	}
	g.caughtUp(s.behind)
	s.behind = 0
	running, queued := s.running, s.queued
	switch {
	case running:
		g.observe(s) // its pusher closes it, if Push returns
	case !queued:
		if g.pushDue(s, false); !s.queued {
			orphan = s
		}
	}
	s.mu.Unlock()
	s.cancel(reason)
	return orphan
}

// watchAway tells the reader when the first user that is away is to be
// forgotten. g.mu is held.
func (g *Gateway) watchAway() {
	until := int64(math.MaxInt64)
	if g.away.first != nil {
		until = g.away.first.awaySince + int64(g.cfg.HistoryTTL)
	}
	if g.awayUntil.Swap(until) > until {
		g.rouse() // it sleeps longer
	}
}

// unlistAway takes a user off the list of those that are away. g.mu is held.
func (g *Gateway) unlistAway(u *user) {
	if g.hoarder == u {
		g.hoarder = u.next
	}
	g.away.remove(u)
}

// forget drops a user that is away, with history and route. g.mu is held.
func (g *Gateway) forget(u *user) {
	g.unlistAway(u)
	u.history.clear(true)
	g.users.Delete(u.id)
	g.reroute(u.id, 0, held)
	g.watchAway()
}

// forgetAway drops the users that have been away for HistoryTTL.
func (g *Gateway) forgetAway() {
	if g.clock < g.awayUntil.Load() || g.life.closing() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for range sliceSize {
		if u := g.away.first; u != nil && u.awaySince+int64(g.cfg.HistoryTTL) <= g.clock {
			g.forget(u)
		}
	}
}

// keep numbers m and puts it into a history, that of a user or of AllUsers.
func (g *Gateway) keep(h *history, u *user, m *Message) (number uint64) {
	h.mu.Lock()
	p := m.priority
	number = g.numbers[p].Load() + 1
	grown := !h.over && h.push(number, m)
	g.numbers[p].Store(number)
	h.mu.Unlock()
	if u == nil || !grown || g.kept.Add(1) <= int64(g.cfg.HistoryTotal) {
		return number
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept.Load() <= int64(g.cfg.HistoryTotal) { // a Gap came in between
		return number
	}
	// Who is away gives way, but for those who have nothing to give; and one
	// message pays for a few looks only.
	for range hoardLooks {
		if g.hoarder == nil {
			g.hoarder = g.away.first
		}
		u := g.hoarder
		if u == nil {
			break
		}
		g.hoarder = u.next
		if u.history.len() > 0 {
			g.forget(u)
			return number
		}
	}
	h.mu.Lock()
	h.evict(p)
	h.mu.Unlock()
	g.kept.Add(-1)
	return number
}

// observe lets the reader look after a session that has ended while user code
// runs. It may be asleep, with nothing else to wake it up.
func (g *Gateway) observe(s *Session) {
	if g.due.watch(s) {
		g.rouse()
	}
}

// lose counts messages × sessions that were enqueued in vain.
func (g *Gateway) lose(counter *atomic.Uint64, n int) {
	if n == 0 {
		return
	}
	counter.Add(uint64(n))
	if g.life.closing() {
		g.life.lost.Add(uint64(n))
	}
}

// of returns the counter for a reason.
func (e *SessionEnds) of(reason error) *uint64 {
	switch reason {
	case ErrSessionClosed:
		return &e.Closed
	case ErrSessionExpired:
		return &e.Expired
	case ErrSessionReplaced:
		return &e.Replaced
	case ErrSlowConsumer:
		return &e.Slow
	case ErrGap:
		return &e.Gap
	case ErrGatewayClosed:
		return &e.Shutdown
	}
	return &e.Failed
}

// closeOrphans closes the sinks of sessions that ended while no pusher ran, and
// waits for that, though not for long. No lock is held.
func (g *Gateway) closeOrphans(orphans ...*Session) {
	done := make(chan struct{})
	n := 0
	for _, s := range orphans {
		if s != nil {
			n++
			go func() { // ends when Close does; its own goroutine because Close may end it
				defer func() { done <- struct{}{} }()
				(&pusher{g: g}).closeSink(s)
			}()
		}
	}
	if n == 0 {
		return
	}
	late := time.NewTimer(straggle)
	defer late.Stop()
	for ; n > 0; n-- {
		select {
		case <-done:
		case <-late.C:
			g.hung.Add(uint64(n))
			if muted, ok := g.leftBehind.begin(); ok {
				g.log.Error("sink left behind: Push or Close does not return", "sessions", n, "waited", straggle, "muted", muted)
			}
			go func() { // ends with the last of those Closes
				for range n {
					<-done
				}
			}()
			return
		}
	}
}

// Run delivers until Shutdown has drained the Gateway, and returns nil then, or
// until ctx ends, and returns its cause; then what its inbox holds is Discarded.
// Either way every session ends with ErrGatewayClosed and the Gateway leaves its
// Broker. A second Run is ErrRunning, one after the end ErrClosed.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.life.start(); err != nil {
		return err
	}
	g.timer = time.NewTimer(time.Hour)
	defer g.timer.Stop()
	unwatch := context.AfterFunc(ctx, func() { g.life.cut(context.Cause(ctx)); g.rouse() })
	defer unwatch()

	g.log.Info("gateway running")
	g.clock = now()
	g.sweepAt = g.clock + int64(g.cfg.SweepInterval)
	g.due.open(g.cfg.Pushers)
	for range g.cfg.Pushers {
		g.startPusher()
	}
	g.read()
	g.settle()
	// The pushers close the sinks. Who has not returned after straggle is left
	// behind, and the last one that comes back rouses us.
	for g.due.close() {
		g.sleep(false) // before watch: whom that leaves behind may have been the last
		g.clock = now()
		g.watch(math.MaxInt) // sinks are only closed now, and must be
	}
	g.log.Info("gateway stopped", "lost", g.life.lost.Load(), "hung", g.hung.Load())
	return g.life.finish()
}

// settle ends the sessions and counts what is left as discarded. Only Run calls
// it, or Shutdown if there never was and never will be a Run.
func (g *Gateway) settle() {
	g.leave()
	g.endAll(ErrGatewayClosed)
	for p, ch := range g.inbox {
		for n := len(ch); n > 0; n-- {
			select {
			case <-ch:
				g.discarded[p].inc()
				g.life.lost.Add(1)
			default:
			}
		}
		if f := &g.fans[p]; f.m != nil { // some sessions have it, the others have ended
			*f = fanOut{}
			g.life.lost.Add(1)
		}
	}
	g.life.settle()
}

// Shutdown refuses new sessions, takes what the inbox holds, makes everything
// due, waits until the sinks have taken it, ends the sessions with
// ErrGatewayClosed and returns nil if all of it was taken. If ctx ends first, it
// stops at once and returns ctx's error; otherwise, if something was lost, the
// error wraps ErrClosed. Shut the Broker down before. It may be called any
// number of times; before Run it discards, and Run is ErrClosed. From inside
// Push it would wait for itself.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	if g.life.shut() {
		g.settle()
		g.life.finish()
	}
	g.rouse()
	return g.life.wait(ctx, g.rouse)
}

// rouse makes the reader look around.
func (g *Gateway) rouse() {
	select {
	case g.wake <- struct{}{}:
	default: // it has been told
	}
}

// read is the reader's loop.
func (g *Gateway) read() {
	draining := false
	for !g.life.stopped() {
		g.clock = now()
		if g.life.closing() && !draining {
			draining = true
			g.leave() // nothing more comes from the Broker
		}
		if draining {
			g.clock = math.MaxInt64 // everything is due
		}
		g.expire()
		g.judge()
		g.forgetAway()
		g.watch(g.cfg.MaxPushers)
		g.sweep()
		if g.round() {
			continue
		}
		// In this order: what is replayed is pending before its replay is over.
		if draining && g.replays.Load() == 0 && g.pending() <= int(g.abandoned.Load()) && g.due.empty() {
			g.life.lost.Add(uint64(max(g.pending(), 0))) // with Pushes that were left behind
			return
		}
		g.sleep(true)
	}
}

// pending is what waits in outboxes and running Pushes.
func (g *Gateway) pending() (sum int) {
	for p := range g.inbox {
		sum += g.pendingIn(p)
	}
	return sum
}

func (g *Gateway) pendingIn(p int) int {
	out := g.droppedSlow[p].Load() + g.droppedEnd[p].Load() // before in: the other way round could be negative
	for i := range g.shards {
		out += g.shards[i].taken[p].Load()
	}
	return int(g.enqueued[p].value() + g.replayed[p].Load() - out)
}

// round gives each lane its turn and reports whether there was anything to do.
func (g *Gateway) round() bool {
	before := g.turn
	g.urgent()
	for p := P1; p <= P3 && !g.overloaded(); p++ {
		for range sliceSize {
			if g.life.stopped() || !g.take(p) || g.fans[p].m != nil {
				break
			}
			g.urgent()
		}
	}
	return g.turn != before
}

// urgent takes what has arrived in P0.
func (g *Gateway) urgent() {
	for !g.life.stopped() && g.take(P0) {
	}
}

// take works off the next message of a lane, or the next slice of one.
func (g *Gateway) take(p Priority) bool {
	if g.fans[p].m != nil {
		g.fan(p)
	} else {
		select {
		case m := <-g.inbox[p]:
			g.accept(m)
		default:
			return false
		}
	}
	g.tick()
	return true
}

// tick is due after every message and every slice.
func (g *Gateway) tick() {
	g.turn++
	if g.turn%clockEvery == 0 && !g.life.closing() {
		g.clock = now()
	}
	if g.turn%yieldEvery == 0 {
		runtime.Gosched()
	}
}

// overloaded reports whether the pushers are so far behind that only P0 is
// read.
func (g *Gateway) overloaded() bool {
	limit := int64(backlog * g.cfg.OutboxMessages)
	if g.heldUp.Load() {
		limit /= 2
	}
	over := g.behind.Load() > limit && !(g.clock-g.quietFrom > int64(exhaustedAfter) && g.due.exhausted(g.cfg.MaxPushers))
	if over != g.heldUp.Load() {
		g.heldUp.Store(over)
		// caughtUp lowers behind before it looks at heldUp: either it sees that
		// it must rouse us, or we see here what it has done.
		if over && g.behind.Load() <= limit/2 {
			g.heldUp.Store(false)
			return false
		}
	}
	return over
}

// caughtUp says that a pusher has taken on n messages that waited for one.
func (g *Gateway) caughtUp(n int) {
	if n == 0 {
		return
	}
	if left := g.behind.Add(-int64(n)); g.heldUp.Load() && left <= int64(backlog*g.cfg.OutboxMessages/2) {
		g.rouse()
	}
}

// accept takes a message off the inbox.
func (g *Gateway) accept(m *Message) {
	p := m.priority
	g.received[p].inc()
	var number uint64
	if m.n.UserID == AllUsers {
		if g.everyone != nil {
			number = g.keep(g.everyone, nil, m)
		}
		g.mu.Lock()
		g.cursors[p] = g.first
		g.fans[p] = fanOut{m: m, number: number, limit: g.serial}
		if g.first == nil && g.everyone == nil {
			g.noSession[p].inc()
		}
		g.mu.Unlock()
		g.fan(p)
		return
	}
	u, ok := g.users.Load(m.n.UserID)
	if !ok {
		g.noSession[p].inc()
		return
	}
	if u.history != nil {
		number = g.keep(u.history, u, m)
	}
	sessions := *u.sessions.Load()
	if len(sessions) > sliceSize {
		g.fans[p] = fanOut{m: m, number: number, sessions: sessions}
		g.fan(p)
		return
	}
	for _, s := range sessions {
		g.offer(s, m, number)
	}
}

// fan works off one slice of a lane's fan-out.
func (g *Gateway) fan(p Priority) {
	f := &g.fans[p]
	var some [sliceSize]*Session
	part := f.sessions
	if f.sessions == nil {
		part = g.walk(int(p), f.limit, some[:])
	} else if len(part) > sliceSize {
		part = part[:sliceSize]
	}
	for _, s := range part {
		g.offer(s, f.m, f.number)
	}
	if f.sessions != nil {
		f.sessions = f.sessions[len(part):]
	}
	if len(f.sessions) == 0 && (f.limit == 0 || len(part) < sliceSize) {
		*f = fanOut{}
	}
}

// walk fills some with the next sessions of a walk, up to serial limit. Fewer
// than fit are the last.
func (g *Gateway) walk(cursor int, limit uint64, some []*Session) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	s := g.cursors[cursor]
	for ; s != nil && s.serial <= limit && n < len(some); s = s.next {
		some[n] = s
		n++
	}
	g.cursors[cursor] = s
	return some[:n]
}

// offer puts m into the outbox of s if the filter admits it.
func (g *Gateway) offer(s *Session, m *Message, number uint64) {
	p := m.priority
	admitted := admits(s.filter.Load(), m.typ.Channel())
	if !admitted && s.resume == nil {
		g.filtered[p].inc()
		return
	}
	s.mu.Lock()
	if s.err != nil || s.resume != nil && !g.isNew(s, m, number) {
		s.mu.Unlock()
		return
	}
	if !admitted {
		g.filtered[p].inc()
		s.mu.Unlock()
		return
	}
	g.enqueued[p].inc()
	if s.out.push(m, number) && g.cfg.MaxDelay[p] > 0 {
		s.deadline[p] = g.clock + int64(g.cfg.MaxDelay[p])
		g.delays[p].moveBack(s)
	} else if g.cfg.MaxDelay[p] == 0 {
		s.deadline[p] = math.MinInt64
	}
	if s.running {
		s.arrived++
	} else if s.queued {
		s.behind++
		g.behind.Add(1)
		if p == P0 {
			g.due.promote(s)
		}
	} else if p == P0 || s.isDue(g.clock) {
		g.enqueue(s)
	}
	if s.overfull() {
		g.overflow(s)
		return
	}
	s.mu.Unlock()
}

// isNew reports whether a numbered message is still to come for a session that
// can be resumed, which is then up to it. While a replay goes on, nothing is: the
// replay reads it from the history. s.mu is held.
func (g *Gateway) isNew(s *Session, m *Message, number uint64) bool {
	r, p := s.resume, m.priority
	if r.replaying {
		switch {
		case s.running:
		case !s.queued: // it was registered before Run
			g.startReplay(s)
		case p == P0:
			g.due.promote(s)
		}
		return false
	}
	if number <= r.at[p] {
		return false
	}
	r.at[p] = number
	return true
}

// startReplay makes a session due that is to be replayed to. A drain waits for
// it: between two batches it has nothing pending, and may be in no queue either.
// s.mu is held.
func (g *Gateway) startReplay(s *Session) {
	g.replays.Add(1)
	g.enqueue(s)
	if s.resume.counted = s.queued; !s.queued { // before Run: nothing can have been missed yet
		g.replays.Add(-1)
	}
}

// endReplay is due when a replay is over, or its session. s.mu is held.
func (g *Gateway) endReplay(r *resume) {
	r.replaying = false
	if r.counted {
		r.counted = false
		g.replays.Add(-1)
	}
}

// enqueue puts an idle session into the queue of those that are due. s.mu is
// held.
func (g *Gateway) enqueue(s *Session) {
	if g.pushDue(s, s.out.lanes[P0].n > 0); s.queued {
		s.behind = s.out.total
		g.behind.Add(int64(s.behind))
	}
}

// pushDue gives s to the pushers, if there are any. s.mu is held.
func (g *Gateway) pushDue(s *Session, urgent bool) {
	var unwatched bool
	if s.queued, unwatched = g.due.push(s, urgent); unwatched {
		g.rouse() // they may all be blocked, and the reader asleep
	}
}

// overfull reports whether more waits than may: burst times the bound as long
// as the sink is not the reason, the bound while it is. What waited already
// when the running Push began is no fault of the sink's. s.mu is held.
func (s *Session) overfull() bool {
	bound := s.g.cfg.OutboxMessages
	return s.out.total > burst*bound || s.running && s.out.total > bound && s.arrived > bound
}

// overflow deals with an overfull session. It takes over s.mu.
func (g *Gateway) overflow(s *Session) {
	if s.running && s.doubt != convicted && s.out.total <= burst*g.cfg.OutboxMessages {
		if s.doubt == suspected {
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		waited := g.yieldTo(s)
		s.mu.Lock()
		if s.err != nil || !s.overfull() {
			s.mu.Unlock()
			return
		}
		// A clock that stands still, as in tests, has nothing to wait for. And a
		// session that is to live on and lose some is not wronged by much.
		if waited && g.cfg.SlowPolicy == SlowClose {
			s.doubt = suspected
			g.suspects = append(g.suspects, suspect{s, s.pushes, now() + int64(suspicion)})
			s.mu.Unlock()
			return
		}
	}
	g.sentence(s)
}

// yieldTo lets a Push that only wants a CPU return, and reports whether time
// has passed.
func (g *Gateway) yieldTo(s *Session) bool {
	since := now()
	for range patienceYields {
		runtime.Gosched()
		s.mu.Lock()
		back := !s.running
		s.mu.Unlock()
		if back || now()-since > int64(patience) {
			break
		}
	}
	return now() != since
}

// A suspect is a session whose outbox ran over during a Push.
type suspect struct {
	s    *Session
	push uint32 // which one
	at   int64  // when it is slow if that still runs
}

// judge looks after the suspects whose time has come.
func (g *Gateway) judge() {
	for len(g.suspects) > 0 && g.suspects[0].at <= now() {
		s, push := g.suspects[0].s, g.suspects[0].push
		g.suspects[0] = suspect{}
		if g.suspects = g.suspects[1:]; len(g.suspects) == 0 {
			g.suspects = nil
		}
		s.mu.Lock()
		if s.err == nil && s.running && s.pushes == push && s.overfull() {
			g.sentence(s)
		} else {
			s.mu.Unlock()
		}
	}
}

// sentence does with a slow session what the policy says. It takes over s.mu.
func (g *Gateway) sentence(s *Session) {
	s.doubt = convicted
	if g.cfg.SlowPolicy == SlowClose {
		s.mu.Unlock()
		if g.end(s, ErrSlowConsumer) {
			g.log.Debug("session ended: slow consumer", "session", s.id, "user", s.user.id)
		}
		return
	}
	for s.overfull() {
		p := s.out.lowest()
		s.out.pop(p)
		s.dropped++
		g.lose(&g.droppedSlow[p], 1)
		if s.behind > 0 {
			s.behind--
			g.caughtUp(1)
		}
	}
	s.mu.Unlock()
}

// expire makes the sessions due whose oldest message has waited MaxDelay.
func (g *Gateway) expire() {
	for p := range g.delays {
		l := &g.delays[p]
		for s := l.first; s != nil && s.deadline[p] <= g.clock; s = l.first {
			l.remove(s)
			s.mu.Lock()
			// A Push may have taken the message long since, and a later one may
			// wait, with its own deadline.
			if s.err == nil && !s.queued && !s.running && s.isDue(g.clock) {
				g.enqueue(s)
			}
			s.mu.Unlock()
		}
	}
}

// sweep ends the silent sessions when it is time, a slice at a call.
func (g *Gateway) sweep() {
	if g.clock < g.sweepAt || g.life.closing() {
		return
	}
	g.mu.Lock()
	if !g.sweeping {
		g.cursors[sweepCursor], g.sweeping = g.first, true
	}
	g.mu.Unlock()
	var some [sliceSize]*Session
	part := g.walk(sweepCursor, math.MaxUint64, some[:])
	at := now()
	for _, s := range part {
		if s.timeout > 0 && at-s.heard.Load() >= int64(s.timeout) {
			if g.end(s, ErrSessionExpired) {
				g.log.Debug("session ended: expired", "session", s.id, "user", s.user.id)
			}
		}
	}
	if len(part) < sliceSize {
		g.sweeping = false
		for g.sweepAt <= at {
			g.sweepAt += int64(g.cfg.SweepInterval)
		}
	}
}

// sleep waits for the next message, if it may be read, or the next thing to do.
func (g *Gateway) sleep(reading bool) {
	most := g.cfg.MaxPushers
	if !reading {
		most = math.MaxInt
	}
	next := g.nextWatch(most)
	if len(g.suspects) > 0 {
		next = min(next, g.suspects[0].at)
	}
	if reading && !g.life.closing() {
		next = min(next, g.sweepAt, g.awayUntil.Load())
		for p := range g.delays {
			if s := g.delays[p].first; s != nil {
				next = min(next, s.deadline[p])
			}
		}
	}
	var in [NumPriorities]chan *Message
	if reading {
		in = g.inbox
		if g.heldUp.Load() {
			in = [NumPriorities]chan *Message{P0: g.inbox[P0]}
		}
	}
	if next != math.MaxInt64 {
		g.timer.Reset(time.Duration(next - now()))
	} else {
		g.timer.Stop()
	}
	var m *Message
	select {
	case m = <-in[P0]:
	case m = <-in[P1]:
	case m = <-in[P2]:
	case m = <-in[P3]:
	case <-g.wake:
	case <-g.timer.C:
	}
	if m != nil {
		if !g.life.closing() {
			g.clock = now()
		}
		g.accept(m)
		g.tick()
	}
}

// watch starts stand-ins when sessions are due and every pusher seems blocked,
// and leaves those behind that have not returned straggle after their session
// ended.
func (g *Gateway) watch(most int) {
	clock := g.clock
	if g.life.closing() {
		clock = now()
	}
	left := g.due.abandon(clock - int64(straggle))
	for _, s := range left {
		g.hung.Add(1)
		s.mu.Lock()
		s.abandoned = s.pushing
		g.abandoned.Add(int64(s.abandoned))
		s.mu.Unlock()
		if muted, ok := g.leftBehind.begin(); ok {
			g.log.Error("sink left behind: Push or Close does not return", "session", s.id, "waited", straggle, "muted", muted)
		}
	}
	n, urgent, returns := g.due.waiting()
	if n == 0 || returns != g.returns {
		g.returns, g.quietFrom = returns, clock
		return
	}
	wait := blockedAfter
	if urgent {
		wait = blockedAfterUrgent
	}
	if clock-g.quietFrom < int64(wait) {
		return
	}
	// Nobody has come back: blocked, or without a CPU? If others want this one
	// too, yielding takes its time; then ever longer quiet is asked for, lest a
	// busy machine be given more and more goroutines.
	before := now()
	for range 4 {
		runtime.Gosched()
	}
	after := now()
	if _, _, returns = g.due.waiting(); returns != g.returns {
		g.returns, g.quietFrom = returns, after
		return
	}
	pool := g.due.size()
	if after-before > int64(100*time.Microsecond) && after-g.quietFrom < int64(10*time.Millisecond)*int64(pool)/int64(g.cfg.Pushers) {
		return
	}
	if more := g.due.grow(min(n, pool, most-pool)); more > 0 {
		for range more {
			g.startPusher()
		}
		g.quietFrom = after
	}
}

// nextWatch is when watch should be called next, if nothing happens before.
func (g *Gateway) nextWatch(most int) int64 {
	next := g.due.abandonAt(int64(straggle))
	if n, urgent, _ := g.due.waiting(); n > 0 {
		wait := blockedAfter
		if urgent {
			wait = blockedAfterUrgent
		}
		if g.due.size() >= most {
			wait = exhaustedAfter // nothing to start: the question is only whether to read on
		}
		next = min(next, max(g.quietFrom+int64(wait)+1, now()+int64(wait)/2))
	}
	return next
}

// Stats returns a snapshot. It takes some microseconds, and the lock that
// registering takes for a moment.
func (g *Gateway) Stats() GatewayStats {
	st := GatewayStats{ID: g.id, Hung: g.hung.Load(), Users: g.users.Size()}
	g.mu.Lock()
	st.Sessions, st.Ended = len(g.byID), g.ended
	g.mu.Unlock()
	for p := range st.Lanes {
		l := &st.Lanes[p]
		l.Pending = max(g.pendingIn(p), 0)
		l.Received, l.NoSession, l.Discarded = g.received[p].value(), g.noSession[p].value(), g.discarded[p].value()
		l.Filtered, l.Enqueued = g.filtered[p].value(), g.enqueued[p].value()
		l.Replayed = g.replayed[p].Load()
		l.DroppedSlow, l.DroppedEnded = g.droppedSlow[p].Load(), g.droppedEnd[p].Load()
		for i := range g.shards {
			l.Taken += g.shards[i].taken[p].Load()
			l.Latency = l.Latency.Add(g.shards[i].latency[p].snapshot())
		}
	}
	for i := range g.shards {
		st.Batches += g.shards[i].batches.Load()
	}
	return st
}

// An episode keeps a storm of one condition from becoming a storm of log lines:
// one a minute says how many were muted since the last. Atomic.
type episode struct {
	last  atomic.Int64
	muted atomic.Uint64
}

// begin reports whether to log, and how many were not since it last said so.
func (e *episode) begin() (muted uint64, ok bool) {
	at, last := now(), e.last.Load()
	if last != 0 && at-last < int64(time.Minute) || !e.last.CompareAndSwap(last, at) {
		e.muted.Add(1)
		return 0, false
	}
	return e.muted.Swap(0), true
}

// A delayList holds the sessions in which a message of one lane waits, in the
// order of their deadlines: the delay is the same for all, so who comes last
// goes to the back. The links are in the sessions, so that each is in it once.
type delayList struct {
	lane        Priority
	first, last *Session
}

type delayLink struct {
	next, prev *Session
}

// moveBack puts s, whose deadline is new, at the end.
func (l *delayList) moveBack(s *Session) {
	d := &s.delays[l.lane]
	if d.prev != nil || l.first == s { // a Push took the message that was waited for
		l.remove(s)
	}
	d.prev = l.last
	if l.last != nil {
		l.last.delays[l.lane].next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *delayList) remove(s *Session) {
	d := &s.delays[l.lane]
	if d.prev != nil {
		d.prev.delays[l.lane].next = d.next
	} else {
		l.first = d.next
	}
	if d.next != nil {
		d.next.delays[l.lane].prev = d.prev
	} else {
		l.last = d.prev
	}
	*d = delayLink{}
}

// A history is what is kept of one user's messages, or of those to AllUsers,
// for sessions that resume. The outbox is not read from it: it may grow to eight
// times its bound while the history evicts, and without history it must stand
// alone; what both hold is a pointer and a number per message.
type history struct {
	// immutable
	g *Gateway
	// key binds cursors to the user, and to the time since the user became known:
	// what came while nobody knew the user had no number, so that the numbers of
	// a cursor from before cannot tell that it is missing.
	key uint64

	mu    sync.Mutex
	lanes [NumPriorities]historyLane // guarded by mu
	over  bool                       // guarded by mu: the user was forgotten, while the reader was on its way here perhaps
}

// A historyLane is a ring that grows up to HistoryMessages.
type historyLane struct {
	ring     []numbered
	first, n int
	// gone holds, by channel, the highest number that is no longer there, so
	// that what a filter would not have passed is not missed.
	gone [numChannels]uint64
}

type numbered struct {
	number uint64
	m      *Message
}

// newHistory returns one that begins now: all that was numbered before is gone.
func newHistory(g *Gateway) *history {
	h := &history{g: g, key: rand.Uint64()}
	h.clear(false)
	return h
}

// push reports whether the history has grown, rather than lost its oldest.
// h.mu is held.
func (h *history) push(number uint64, m *Message) (grown bool) {
	l := &h.lanes[m.priority]
	grown = true
	if l.n == h.g.cfg.HistoryMessages {
		h.evict(m.priority)
		grown = false
	}
	if l.n == len(l.ring) {
		ring := make([]numbered, min(max(4, 2*len(l.ring)), h.g.cfg.HistoryMessages))
		for i := range l.n {
			ring[i] = *l.at(i)
		}
		l.ring, l.first = ring, 0
	}
	l.n++
	*l.at(l.n - 1) = numbered{number, m}
	return grown
}

// at returns the i-th oldest.
func (l *historyLane) at(i int) *numbered { return &l.ring[(l.first+i)%len(l.ring)] }

// after returns the index of the oldest with a number over n.
func (l *historyLane) after(n uint64) int {
	return sort.Search(l.n, func(i int) bool { return l.at(i).number > n })
}

func (h *history) len() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.lanes {
		n += h.lanes[p].n
	}
	return n
}

// evict drops the oldest of a lane that has one. h.mu is held.
func (h *history) evict(p Priority) {
	l := &h.lanes[p]
	e := l.at(0)
	l.gone[e.m.typ.Channel()] = e.number
	*e = numbered{}
	l.first = (l.first + 1) % len(l.ring)
	l.n--
}

// clear drops everything, and over says that nothing is kept from now on.
func (h *history) clear(over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = over
	for p := range h.lanes {
		l := &h.lanes[p]
		if h != h.g.everyone {
			h.g.kept.Add(-int64(l.n))
		}
		*l = historyLane{}
		for c := range l.gone {
			l.gone[c] = h.g.numbers[p].Load()
		}
	}
}

// lost reports whether something over number n that filter admits is gone. h.mu
// is held.
func (h *history) lost(lane int, filter uint32, n uint64) bool {
	for c, gone := range h.lanes[lane].gone {
		if gone > n && admits(filter, Channel(c)) {
			return true
		}
	}
	return false
}

// missed yields, in order, what two lanes hold over number n.
func missed(a, b *historyLane, n uint64) iter.Seq[numbered] {
	return func(yield func(numbered) bool) {
		i, j := a.after(n), b.after(n)
		for i < a.n || j < b.n {
			var e numbered
			if j == b.n || i < a.n && a.at(i).number < b.at(j).number {
				e = *a.at(i)
				i++
			} else {
				e = *b.at(j)
				j++
			}
			if !yield(e) {
				return
			}
		}
	}
}

// A userList is a list of users through their links.
type userList struct{ first, last *user }

func (l *userList) pushBack(u *user) {
	u.prev, u.next = l.last, nil
	if l.last != nil {
		l.last.next = u
	} else {
		l.first = u
	}
	l.last = u
}

func (l *userList) remove(u *user) {
	if u.prev != nil {
		u.prev.next = u.next
	} else {
		l.first = u.next
	}
	if u.next != nil {
		u.next.prev = u.prev
	} else {
		l.last = u.prev
	}
	u.next, u.prev, u.awaySince = nil, nil, 0
}
