package notification

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v3"
)

// sliceSize is how many sessions, users or messages are worked off in one piece,
// before anybody else has a turn.
const sliceSize = 64

// A roster says who is registered at a Gateway: the sessions by ID, in the order
// of registration, and by user; the users, those included that are offline and
// whose history is kept; and the receiver that the Gateway is to its Broker.
type roster struct {
	// immutable
	cfg     *GatewayConfig
	history *historyStore // nil without a history
	wake    chan struct{} // rouses the reader

	// moving is full while the Gateway joins or leaves a Broker, so that one is done
	// when the next begins. It is a lock under which the Broker's dispatcher is
	// waited for, and a channel because a bubble knows who waits for that.
	moving chan struct{} // cap 1

	// mu is taken to register and to end a session, and by walks through all of
	// them; never to deliver a message to a user. Session.mu may be held; under
	// it come routes.mu, user.mu and the histories.
	mu       sync.Mutex
	closed   bool                // guarded by mu: no more sessions
	byID     map[string]*Session // guarded by mu
	sessions sessionList         // guarded by mu: all
	serial   uint64              // guarded by mu: the last one given
	walks    []*walk             // guarded by mu: that are under way
	first    *Session            // guarded by mu: whom the next walk for AllUsers begins with
	broker   *routes             // guarded by mu: whose receiver we are; nil without one
	receiver *receiver           // guarded by mu
	left     bool                // guarded by mu: a Broker, and none has come since
	stale    []staleRoutes       // guarded by mu: of receivers that we were
	ended    SessionEnds         // guarded by mu
	offline  userList            // guarded by mu: who left first is first
	evicting *user               // guarded by mu: of those, the first that may have something to evict; nil: the first of all

	users *xsync.MapOf[string, *user] // changed under mu, read by the reader without

	// atomic
	untold  atomic.Bool  // a session was registered since Gap was last called
	forgets atomic.Int64 // when the first of offline is to be forgotten
}

// staleRoutes are those of a receiver that has left its Broker.
type staleRoutes struct {
	broker   *routes
	receiver *receiver
}

func newRoster(cfg *GatewayConfig, history *historyStore, wake chan struct{}) *roster {
	r := &roster{
		cfg: cfg, history: history, wake: wake,
		moving: make(chan struct{}, 1),
		byID:   make(map[string]*Session),
		users:  xsync.NewMapOf[string, *user](),
	}
	r.forgets.Store(never)
	return r
}

// register puts a new session on the roster, behind cfg.After if that is not
// zero. Its caller holds s.mu: the reader may offer the first messages as soon
// as it sees s, and must find from which number on they are meant.
func (r *roster) register(s *Session, userID string, after Cursor) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.load(userID)
	if err := r.open(s); err != nil {
		return err
	}
	if after != (Cursor{}) && !(known && r.resumable(u, s, after)) {
		return goneError(userID)
	}
	if err := r.room(u); err != nil {
		return err
	}

	if !known {
		u = r.newUser(userID)
	} else if u.offline {
		r.unlistOffline(u)
	}
	r.serial++
	s.user, s.serial = u, r.serial
	r.byID[s.id] = s
	r.sessions.pushBack(s, ofAll)
	// Each of n sessions is the first of the next walk with the same chance
	// (Vitter's Algorithm R).
	if r.first == nil || rand.IntN(r.sessions.n) == 0 {
		r.first = s
	}
	u.mu.Lock()
	u.sessions.pushBack(s, ofUser)
	u.setOnly()
	u.mu.Unlock()
	if !known {
		r.store(u)
	}
	if !r.untold.Load() {
		r.untold.Store(true)
	}
	// What is numbered before this is in the history, or before our time; what is
	// numbered later is offered, because the reader looks for sessions after it
	// has numbered.
	if r.history != nil {
		s.resume.epoch = r.history.epoch.Load()
		s.resume.at.seqs = u.history.from()
		if after != (Cursor{}) {
			s.resume.at.seqs, s.resume.replaying = after.seqs, true
		}
	}
	return nil
}

// load returns the user with this ID. One that is left over from another epoch of
// the Log is forgotten: the sessions that it still has are about to end by the
// Gap. mu is held.
func (r *roster) load(userID string) (u *user, known bool) {
	u, known = r.users.Load(userID)
	if known && r.outdated(u) {
		r.forget(u)
		return nil, false
	}
	return u, known
}

// outdated reports whether a user's history is from another epoch of the Log. mu
// is held.
func (r *roster) outdated(u *user) bool {
	return r.cfg.Log != nil && u.history.epoch != r.history.epoch.Load()
}

// open returns why s cannot be registered now, whoever else is. mu is held.
func (r *roster) open(s *Session) error {
	switch {
	case r.closed:
		return closedError()
	case r.byID[s.id] != nil:
		return fmt.Errorf("%w: %q", ErrSessionExists, s.id)
	}
	return nil
}

// room returns ErrTooManySessions if one more of u, which is nil for a user that
// is not known, would be too many. mu is held.
func (r *roster) room(u *user) error {
	replaces := u != nil && r.cfg.MaxSessionsPerUser > 0 && u.sessions.n >= r.cfg.MaxSessionsPerUser
	if !replaces && r.cfg.MaxSessions > 0 && len(r.byID) >= r.cfg.MaxSessions {
		return fmt.Errorf("%w: %d", ErrTooManySessions, r.cfg.MaxSessions)
	}
	return nil
}

func (r *roster) newUser(userID string) *user {
	u := &user{id: userID}
	u.home.Store(r)
	if r.history != nil {
		u.history = r.history.newHistory()
	}
	return u
}

// store puts a user into the table. mu is held.
func (r *roster) store(u *user) {
	r.users.Store(u.id, u)
	r.reroute(u.id)
	if r.cfg.Log != nil { // what was fed before has passed u by, and may have been indexed since newUser
		u.history.evictUpTo(r.history.ahead())
	}
}

// expect makes a user known who has missed something that must come from the Log,
// so that nothing more passes him by, and returns up to where it must, in each
// lane. The user is offline unless a session is registered then.
func (r *roster) expect(s *Session, userID string, after Cursor) (upTo [NumPriorities]uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.load(userID)
	if err = r.open(s); err == nil {
		err = r.room(u)
	}
	if err == nil && !(after.sealed && after.epoch == r.history.epoch.Load()) {
		err = goneError(userID)
	}
	if err != nil {
		return upTo, err
	}
	if !known {
		u = r.newUser(userID)
		r.store(u)
		r.listOffline(u)
	}
	return r.history.gone(u.history, &place{seqs: after.seqs, filter: s.filter.Load()}), nil
}

// resumable reports whether s can start behind a cursor: it is of this epoch and
// user, and nothing that the filter admits has left the history since, but for
// what s has from the Log. mu is held.
func (r *roster) resumable(u *user, s *Session, after Cursor) bool {
	return u.history != nil && after.epoch == r.history.epoch.Load() && after.sealed == (r.cfg.Log != nil) &&
		(after.sealed || after.user == u.history.key) && // the Seal was compared before
		r.history.resumable(u.history, &place{seqs: after.seqs, filter: s.filter.Load(), missed: s.resume.at.missed})
}

func closedError() error { return fmt.Errorf("%w: the Gateway takes no more sessions", ErrClosed) }

func goneError(userID string) error { return fmt.Errorf("%w: user %q", ErrCursorGone, userID) }

// remove takes a session off the roster, for a reason. Session.mu is held: this
// is a part of its end, so that the ID is free when the end is seen.
func (r *roster) remove(s *Session, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*r.ended.of(reason)++
	delete(r.byID, s.id)
	for _, w := range r.walks {
		if w.next == s {
			w.next = s.links[w.kind].next
		}
	}
	if r.first == s {
		r.first = s.links[ofAll].next
	}
	r.sessions.remove(s, ofAll)
	u := s.user
	u.mu.Lock()
	u.sessions.remove(s, ofUser)
	u.setOnly()
	u.mu.Unlock()
	switch {
	case u.sessions.n > 0:
	case u.history == nil || r.closed || r.outdated(u):
		r.forget(u)
	default:
		r.listOffline(u)
	}
}

// excess returns the oldest session of a user who has more than may be.
func (r *roster) excess(u *user) *Session {
	if r.cfg.MaxSessionsPerUser == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if u.sessions.n > r.cfg.MaxSessionsPerUser {
		return u.sessions.first
	}
	return nil
}

// close refuses sessions from now on, and forgets the users that are offline:
// nobody can resume any more.
func (r *roster) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.forgetOffline(never)
}

func (r *roster) session(id string) (*Session, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.byID[id]
	return s, ok
}

// empty reports whether there is no session. It is final once close was called.
func (r *roster) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byID) == 0
}

// knows reports whether messages of this user are to come here.
func (r *roster) knows(userID string) bool {
	_, ok := r.users.Load(userID)
	return ok
}

// addressee returns whose message m is, nil if that is nobody here.
func (r *roster) addressee(m *Message) *user {
	if u := m.user; u != nil && u.home.Load() == r {
		return u
	}
	u, _ := r.users.Load(m.n.UserID)
	return u
}

// tell reports whether a session was registered that has not been told of a gap,
// and takes it that all are told now.
func (r *roster) tell() bool { return r.untold.Load() && r.untold.CompareAndSwap(true, false) }

// stats fills in what the roster counts.
func (r *roster) stats(st *GatewayStats) {
	st.Users = r.users.Size()
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Sessions, st.Ended = len(r.byID), r.ended
}

// reroute tells the Broker that a user has come or gone. mu is held.
func (r *roster) reroute(userID string) {
	if r.receiver != nil {
		r.broker.update(userID, r.receiver)
	}
}

// join puts the Gateway on the Broker's tables, and reports whether it was on
// some before. If so it calls back before anything is sent to it.
func (r *roster) join(t *routes, rc *receiver, back func()) (again bool, err error) {
	if again, err = r.enter(t, rc, back); err != nil {
		return false, err
	}
	r.users.Range(func(id string, _ *user) bool {
		t.update(id, rc)
		return true
	})
	return again, nil
}

// enter is join without the users.
func (r *roster) enter(t *routes, rc *receiver, back func()) (again bool, err error) {
	r.moving <- struct{}{}
	defer func() { <-r.moving }()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		err = fmt.Errorf("%w: gateway %q", ErrClosed, rc.id)
	case r.receiver != nil && r.broker != t:
		err = fmt.Errorf("%w: gateway %q belongs to another Broker", ErrInvalid, rc.id)
	default:
		if r.left {
			back()
		}
		err = t.add(rc)
	}
	if err != nil {
		return false, err
	}
	again, r.left = r.left, false
	r.broker, r.receiver = t, rc
	return again, nil
}

// leave takes the Gateway off the Broker's tables, and reports whether it was
// there: as rc, or as whatever receiver it is if rc is nil. When it returns,
// nothing more is sent to it, whoever else has called it. The users' routes are
// still to be removed.
func (r *roster) leave(rc *receiver) bool {
	r.moving <- struct{}{}
	defer func() { <-r.moving }()
	r.mu.Lock()
	t, was := r.broker, r.receiver
	if was == nil || rc != nil && rc != was {
		r.mu.Unlock()
		return false
	}
	r.broker, r.receiver, r.left = nil, nil, true
	if r.history != nil { // whatever comes for our users now, we do not see
		r.history.epoch.Store(rand.Uint64())
	}
	r.mu.Unlock()
	t.remove(was)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = append(r.stale, staleRoutes{t, was}) // not before: a route that is removed earlier may come back
	return true
}

// forgetRoutes removes the users' routes to receivers that we were.
func (r *roster) forgetRoutes() {
	r.mu.Lock()
	stale := r.stale
	r.stale = nil
	r.mu.Unlock()
	for _, o := range stale {
		o.broker.forget(o.receiver)
	}
}

// void makes every cursor there is invalid, and lets go of what was kept for
// them. Nobody waits for all users: the locks are taken for one at a time. With a
// Log cursors stay valid, unless it has another epoch: then void calls renewed
// with that, before any session can be registered in it.
func (r *roster) void(renewed func(epoch uint64)) {
	if r.history == nil {
		return
	}
	r.mu.Lock() // a session that resumes has its cursor checked and its epoch set in one piece
	switch log := r.cfg.Log; {
	case log == nil:
		r.history.epoch.Store(rand.Uint64())
	case log.Epoch() != r.history.epoch.Load():
		r.history.renew(log.Epoch())
		renewed(r.history.epoch.Load())
	}
	// Not before: that might be the At of an older epoch, and nothing of this one would
	// be kept up to there.
	upTo := r.history.ahead()
	r.mu.Unlock()
	r.history.all.evictUpTo(upTo)
	at := now()
	r.users.Range(func(_ string, u *user) bool {
		u.history.evictUpTo(upTo)
		return true
	})
	r.forgetOffline(at)
}

// listOffline puts a user without sessions on the list of those. mu is held.
func (r *roster) listOffline(u *user) {
	u.offline, u.since = true, now()
	r.offline.pushBack(u)
	r.scheduleForget()
}

// unlistOffline takes a user off the list of those that are offline. mu is held.
func (r *roster) unlistOffline(u *user) {
	if r.evicting == u {
		r.evicting = u.next
	}
	r.offline.remove(u)
	u.offline = false
	r.scheduleForget()
}

// forget drops a user without sessions, with history and route. mu is held.
func (r *roster) forget(u *user) {
	if u.offline {
		r.unlistOffline(u)
	}
	if u.history != nil {
		u.history.close()
	}
	u.home.Store(nil)                           // before the table says so
	if now, _ := r.users.Load(u.id); now == u { // else one of another epoch of the Log has its place
		r.users.Delete(u.id)
	}
	r.reroute(u.id)
}

// scheduleForget tells the reader when the first user that is offline is to be
// forgotten. mu is held.
func (r *roster) scheduleForget() {
	until := never
	if r.offline.first != nil {
		until = addTime(r.offline.first.since, r.cfg.HistoryTTL)
	}
	if r.forgets.Swap(until) > until {
		rouse(r.wake) // it sleeps longer
	}
}

// forgetExpired drops the users that have been offline for HistoryTTL, a slice
// at a call.
func (r *roster) forgetExpired(clock int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range sliceSize {
		if u := r.offline.first; u != nil && addTime(u.since, r.cfg.HistoryTTL) <= clock {
			r.forget(u)
		}
	}
}

// forgetOffline drops the users that have been offline since at or longer.
func (r *roster) forgetOffline(at int64) {
	for more := true; more; {
		r.mu.Lock()
		for range sliceSize {
			if u := r.offline.first; u != nil && u.since <= at {
				r.forget(u)
			} else {
				more = false
			}
		}
		r.mu.Unlock()
	}
}

// evictOffline makes room for a message in the histories, and reports whether it
// did: of the users that are offline the one that left first is forgotten, but
// for those that have nothing to give. One message must not pay for many, so it
// looks at a slice of them at the most.
func (r *roster) evictOffline() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.history.kept.Load() <= r.history.total { // a Gap came in between
		return true
	}
	for range sliceSize {
		if r.evicting == nil {
			r.evicting = r.offline.first
		}
		u := r.evicting
		if u == nil {
			return false
		}
		r.evicting = u.next
		if u.history.len() > 0 {
			r.forget(u)
			return true
		}
	}
	return false
}

// keptOffline says that a message was kept for a user without sessions: if
// evictOffline has passed the user by, it turns back.
func (r *roster) keptOffline(u *user) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u.offline && r.evicting != nil && u.since <= r.evicting.since {
		r.evicting = u
	}
}

// of returns the counter for a reason.
func (e *SessionEnds) of(reason error) *uint64 {
	switch {
	case reason == ErrSessionClosed:
		return &e.Closed
	case reason == ErrSessionExpired:
		return &e.Expired
	case reason == ErrSessionReplaced:
		return &e.Replaced
	case reason == ErrSlowConsumer:
		return &e.Slow
	case reason == ErrGap:
		return &e.Gap
	case reason == ErrGatewayClosed:
		return &e.Shutdown
	}
	return &e.Failed
}
