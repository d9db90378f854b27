package notification

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"runtime"
	"sync/atomic"
	"time"
)

// SlowPolicy says what happens to a session whose sink does not keep up.
type SlowPolicy uint8

const (
	// SlowClose ends the session with ErrSlowConsumer: the client reconnects,
	// and knows that it must.
	SlowClose SlowPolicy = iota
	// SlowDropOldest ends nobody (but see SlowAfter): while a Push runs, each
	// message that finds OutboxMessages waiting (or as many as waited when that Push
	// began, if more) costs the oldest of the lowest lane, one for one, counted.
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
	// OutboxMessages is how many messages may wait for a session behind a Push
	// that does not return; default 1024, at least BatchSize. Up to eight times as
	// many wait while the sink is quick (and of P0 as many of its own); beyond
	// that the lane waits. A user with bursts and a slow line wants more.
	OutboxMessages int
	// SlowPolicy says what happens to a session that is slow; default SlowClose.
	SlowPolicy SlowPolicy
	// SlowAfter is how long one Push may last with a full outbox behind it, before
	// the session is slow; default 1 s. A Push that has lasted so long while all
	// MaxPushers are busy ends its session under either policy.
	SlowAfter time.Duration
	// SessionTimeout is how long a session may stay silent; default 5 min,
	// negative: for ever.
	SessionTimeout time.Duration
	// SweepInterval is how often the silent ones are looked for; default 30 s.
	SweepInterval time.Duration
	// MaxSessions and MaxSessionsPerUser bound the sessions; default 0, no bound.
	MaxSessions, MaxSessionsPerUser int
	// Pushers is how many goroutines push; default 2 × GOMAXPROCS at NewGateway.
	Pushers int
	// MaxPushers is how many there may be while sinks block; default 65,536, at
	// least Pushers.
	MaxPushers int
	// InboxCapacity is how many messages each lane of the inbox holds; default
	// 1024, at most 2^27. NewGateway takes 8 bytes for each.
	InboxCapacity int
	// HistoryMessages is how many messages of each lane are kept per user for
	// sessions that resume behind a Cursor, and how many to AllUsers once for
	// all; default 0: none, and no cursors. At least OutboxMessages. A session
	// that ended as slow finds all that its outbox held with 8 × OutboxMessages,
	// and more for what comes until the client is back.
	HistoryMessages int
	// HistoryTTL is how long a user's history, and route, outlive the user's
	// last session; default 2 min.
	HistoryTTL time.Duration
	// HistoryTotal is how many messages are kept for all users together; default
	// 1,000,000. Beyond it the users without a session lose their history, who
	// has been away the longest first; with none of those left, whoever gets a
	// message loses the oldest of its lane.
	HistoryTotal int
	// Log is what the messages come from that this Gateway is fed, with numbers
	// (NewMessageAt); it makes cursors good at every Gateway of the same Log. It
	// needs HistoryMessages. Nil: the Gateway numbers what a Broker, or whoever
	// feeds it, sends.
	Log Log
	// Logger gets what an operator must know; nil discards.
	Logger *slog.Logger
}

func (c *GatewayConfig) setDefaults() error {
	c.BatchSize = cmp.Or(c.BatchSize, 100)
	c.OutboxMessages = cmp.Or(c.OutboxMessages, max(1024, c.BatchSize))
	c.SlowAfter = cmp.Or(c.SlowAfter, time.Second)
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
	if c.InboxCapacity > maxQueue { // its memory is taken by NewGateway
		return fmt.Errorf("%w: InboxCapacity %d is over 2^27", ErrInvalid, c.InboxCapacity)
	}
	if c.HistoryMessages != 0 && c.HistoryMessages < c.OutboxMessages || c.HistoryMessages > math.MaxInt32 {
		return fmt.Errorf("%w: HistoryMessages %d is neither 0 nor within OutboxMessages %d and 2^31-1", ErrInvalid, c.HistoryMessages, c.OutboxMessages)
	}
	if c.Log != nil && c.HistoryMessages == 0 {
		return fmt.Errorf("%w: Log needs HistoryMessages, which is 0", ErrInvalid)
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"SlowAfter", c.SlowAfter},
		{"HistoryTTL", c.HistoryTTL},
		{"SweepInterval", c.SweepInterval},
	} {
		if f.value < 0 {
			return fmt.Errorf("%w: %s %s is negative", ErrInvalid, f.name, f.value)
		}
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
// The roster says who is registered. One goroutine, the reader, takes messages
// from the inbox to the outboxes of the sessions, past the history, and does all
// that depends on time. The pool holds the sessions that are due, and a few
// pushers take them and call their sinks. So a session costs no goroutine, and
// only its own sink can hold it up.
type Gateway struct {
	// immutable after NewGateway
	id      string
	cfg     GatewayConfig
	log     *slog.Logger
	inbox   [NumPriorities]chan *Message
	life    *lifecycle
	wake    chan struct{} // cap 1: rouses the reader
	roster  *roster
	history *historyStore // nil without HistoryMessages
	pool    *pushPool
	reader  *reader
	shards  []shard // what pushers count

	// atomic
	hung         atomic.Uint64
	panicked     episode // of sinks
	abandoned    episode // of sinks that do not return
	droppedSlow  [NumPriorities]atomic.Uint64
	droppedEnded [NumPriorities]atomic.Uint64
	replayed     [NumPriorities]atomic.Uint64
}

// NewGateway returns a Gateway that takes sessions at once and delivers when
// Run is called. It returns ErrInvalid if the ID is empty or too long or cfg is
// invalid; the text names the field.
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
		shards: make([]shard, min(cfg.Pushers, runtime.GOMAXPROCS(0))),
	}
	if cfg.HistoryMessages > 0 {
		g.history = newHistoryStore(cfg.HistoryMessages, cfg.HistoryTotal, cfg.Log)
	}
	for p := range g.inbox {
		g.inbox[p] = make(chan *Message, cfg.InboxCapacity)
	}
	g.roster = newRoster(&g.cfg, g.history, g.wake)
	g.pool = newPushPool(cfg.Pushers, cfg.MaxPushers, debtLimit(cfg.OutboxMessages), g.wake)
	g.reader = newReader(g)
	return g, nil
}

// ID returns the Gateway's ID.
func (g *Gateway) ID() string { return g.id }

// isGateway tells a type that embeds a Gateway from other Receivers.
func (g *Gateway) isGateway() {}

// Inbox returns the channels that a Broker, or whoever feeds the Gateway
// without one, sends to: each Message into the lane of its priority. They are never
// closed, and full when the Gateway is late.
func (g *Gateway) Inbox() Inbox {
	var in Inbox
	for p, ch := range g.inbox {
		in[p] = ch
	}
	return in
}

// Gap ends every session with ErrGap and makes every cursor void; with a Log only
// when that has another epoch. The Broker calls it when something accepted will
// not arrive; whoever feeds the inbox without a Broker may too. It works in
// slices, and returns when it is done.
func (g *Gateway) Gap() {
	g.log.Debug("gap: ending every session") // the Broker has said why, once
	g.roster.void(g.reader.renew)
	g.endAll(ErrGap)
}

// RegisterSession makes a session, which gets what is published from now on; so
// register first and load the snapshot after it. It returns ErrInvalid if cfg is
// invalid, ErrSessionExists while a session with this ID lives,
// ErrTooManySessions with MaxSessions registered, ErrClosed once the Gateway
// shuts down. With cfg.After the session starts right behind that cursor, or the
// error is ErrCursorGone if that is no longer possible without a hole. A user that
// has MaxSessionsPerUser already loses the oldest, with ErrSessionReplaced. After
// an error nothing was registered, and the sink is not called, Close included.
//
// With cfg.After at a Gateway with a Log it may ask that for what was missed, and
// wait for it: 5 s at most, then the error is ErrTryAgain, as it is if the Log
// fails.
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
	s := newSession(g, &cfg)
	register := s.register
	if g.cfg.Log != nil && cfg.After != (Cursor{}) {
		register = s.registerBehind
	}
	if err := register(&cfg); err != nil {
		s.cancel(err)
		return nil, err
	}
	for {
		oldest := g.roster.excess(s.user)
		if oldest == nil {
			return s, nil
		}
		g.end(oldest, ErrSessionReplaced)
	}
}

// UnregisterSession ends a session with ErrSessionClosed. It returns
// ErrUnknownSession if none that lives has this ID.
func (g *Gateway) UnregisterSession(sessionID string) error {
	s, ok := g.Session(sessionID)
	if !ok || !g.end(s, ErrSessionClosed) {
		return fmt.Errorf("%w: %q", ErrUnknownSession, clip(sessionID))
	}
	return nil
}

// Session returns the living session with this ID.
func (g *Gateway) Session(sessionID string) (*Session, bool) { return g.roster.session(sessionID) }

// Holds reports whether messages of this user are to come here: it has a session,
// or history to be resumed. It is true for AllUsers.
func (g *Gateway) Holds(userID string) bool { return userID == AllUsers || g.roster.knows(userID) }

// Sessions yields the sessions that are there when the iteration begins, in the
// order of their registration, without those that have ended when their turn
// comes. No lock is held meanwhile.
func (g *Gateway) Sessions() iter.Seq[*Session] {
	return g.roster.iterate(g.roster.begin)
}

// UserSessions yields a user's sessions as Sessions does.
func (g *Gateway) UserSessions(userID string) iter.Seq[*Session] {
	return g.roster.iterate(func(w *walk) {
		if u, ok := g.roster.users.Load(userID); ok {
			g.roster.beginOfUser(w, u)
		}
	})
}

// attach is RegisterGateway. What was published since the Gateway left a Broker
// has passed its sessions by.
func (g *Gateway) attach(t *routes, r *receiver) error {
	dropped := false
	again, err := g.roster.join(t, r, func() { dropped = g.reader.dropHanded() })
	if again || dropped {
		g.Gap()
	}
	return err
}

// detach is Unregister; it reports false if the Gateway is no longer r there.
func (g *Gateway) detach(r *receiver) bool {
	defer g.roster.forgetRoutes()
	return g.roster.leave(r)
}

// end ends a session and reports whether it still lived.
func (g *Gateway) end(s *Session, reason error) bool { return g.endAs(s, reason, reason) }

// endAs is end for a reason that counts as another one. Nothing of reason is
// called: it may be an error of the sink's, with methods that are user code.
func (g *Gateway) endAs(s *Session, reason, as error) bool {
	ended, orphaned := s.end(reason, as)
	if orphaned {
		g.closeAlone(s)
	}
	return ended
}

// endAll ends the sessions that live at the time of the call, one by one.
func (g *Gateway) endAll(reason error) {
	for s := range g.Sessions() {
		g.end(s, reason)
	}
}

// Run delivers until Shutdown has drained the Gateway, and returns nil then, or
// until ctx ends, and returns its cause; then what its inbox holds is Discarded.
// Either way every session ends with ErrGatewayClosed and the Gateway leaves its
// Broker. A second Run returns ErrRunning, one after the end ErrClosed.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.life.start(); err != nil {
		return err
	}
	unwatch := context.AfterFunc(ctx, func() { g.life.cut(context.Cause(ctx)); rouse(g.wake) })
	defer unwatch()

	g.log.Info("gateway running")
	g.startPushers(g.cfg.Pushers, now())
	g.reader.run()
	g.finish()
	return g.life.finish()
}

// finish is the end of Run, or what Shutdown does if there never was one: it
// leaves the Broker, ends the sessions, counts what is left and waits for the
// pushers.
func (g *Gateway) finish() {
	g.leave()
	g.endAll(ErrGatewayClosed)
	g.reader.settle()
	g.life.settle()
	g.roster.forgetRoutes()
	g.reader.awaitPushers()
	for p := range NumPriorities { // what is in a Push that was abandoned
		g.life.lose(g.pending(Priority(p)))
	}
	if g.history != nil {
		g.history.all.close() // whoever keeps a Message may keep a user, and him a history
	}
	g.log.Info("gateway stopped", "lost", g.life.lost.Load(), "hung", g.hung.Load())
}

// leave takes no more sessions and unregisters the Gateway. What the dispatcher
// is about to send comes into the inbox; nothing comes after it.
func (g *Gateway) leave() {
	g.roster.close()
	g.roster.leave(nil)
}

// Shutdown refuses new sessions, takes what the inbox holds, makes everything
// due, waits until the sinks have taken it, ends the sessions with
// ErrGatewayClosed and returns nil if all of it was taken. If ctx ends first, it
// stops at once and returns ctx's error; otherwise, if something was lost, the
// error wraps ErrClosed: what was on its way to a client that has just left, say.
// Shut the Broker down before. It may be called any number of times; before Run it
// discards, and Run returns ErrClosed. From inside Push it would wait for itself.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.roster.close()
	if g.life.shut() {
		if g.roster.empty() {
			g.finish()
			g.life.finish()
		} else {
			go func() { // ends soon after the last Close; wait waits for it
				g.startPushers(g.cfg.Pushers, now())
				g.finish()
				g.life.finish()
			}()
		}
	}
	rouse(g.wake)
	return g.life.wait(ctx, func() { rouse(g.wake) })
}

// lose counts messages × sessions that were enqueued in vain.
func (g *Gateway) lose(counter *atomic.Uint64, n int) {
	if n > 0 {
		counter.Add(uint64(n))
		g.life.lose(n)
	}
}

// abandon says that a call of s's sink no longer counts.
func (g *Gateway) abandon(s *Session) {
	g.hung.Add(1)
	if muted, ok := g.abandoned.begin(); ok {
		g.log.Error("sink abandoned: Push or Close does not return", "session", s.id, "waited", abandonAfter, "muted", muted)
	}
}

// Stats returns a snapshot. It takes some microseconds, and the lock that
// registering takes for a moment.
func (g *Gateway) Stats() GatewayStats {
	st := GatewayStats{ID: g.id, Hung: g.hung.Load()}
	g.roster.stats(&st)
	g.reader.stats(&st)
	for p := range st.Lanes {
		l := &st.Lanes[p]
		l.Replayed = g.replayed[p].Load()
		l.DroppedSlow, l.DroppedEnded = g.droppedSlow[p].Load(), g.droppedEnded[p].Load()
		for i := range g.shards {
			l.Taken += g.shards[i].taken[p].Load()
			l.Latency = l.Latency.Add(g.shards[i].latency[p].Snapshot())
		}
		l.Pending = g.pending(Priority(p))
	}
	for i := range g.shards {
		st.Batches += g.shards[i].batches.Load()
	}
	return st
}

// pending returns how many messages of a lane wait in outboxes and running
// Pushes.
func (g *Gateway) pending(p Priority) int {
	out := g.droppedSlow[p].Load() + g.droppedEnded[p].Load() // before in: the other way round could be negative
	for i := range g.shards {
		out += g.shards[i].taken[p].Load()
	}
	return max(int(g.reader.enqueued[p].value()+g.replayed[p].Load()-out), 0)
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
