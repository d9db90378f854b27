package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

const (
	maxGuests = 10_000 // of all users, over both transports
	maxTabs   = 20     // of one user
)

// Guests are the sessions of browsers. Both transports make theirs here, in place of
// the bus, so that there is one bound for both and one for each user, and so that
// signing out finds those of a token. (The Gateway's own MaxSessionsPerUser would
// count a user's session in this process as well, and end it, as the oldest.)
type guests struct {
	sessions wsgateway.Sessions // immutable
	revoked  *revocations       // immutable
	came     atomic.Bool        // somebody was let in

	mu     sync.Mutex
	all    int                 // guarded by mu: sessions, those under way included
	byUser map[string][]*guest // guarded by mu: by user, the oldest first
}

// A guest is one session, and the Sink of it, which says when it is over.
type guest struct {
	notification.Sink
	in          *guests
	user, token string
	session     *notification.Session // guarded by in.mu; nil before it is in byUser
	why         error                 // guarded by in.mu: if it was ended from here
}

func newGuests(sessions wsgateway.Sessions, revoked *revocations) *guests {
	return &guests{sessions: sessions, revoked: revoked, byUser: make(map[string][]*guest)}
}

// nameTag is the UserID of an Identity, which is all that a transport passes on of a
// request: the user, and by which token.
func nameTag(t token) string { return t.user + " " + t.id }

// RegisterSession makes the session of a name tag. A user who has maxTabs already
// loses the oldest.
func (gs *guests) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	user, id, _ := strings.Cut(cfg.UserID, " ")
	g := &guest{Sink: cfg.Sink, in: gs, user: user, token: id}
	cfg.UserID, cfg.Sink = user, g
	gs.mu.Lock()
	full := gs.all >= maxGuests
	if !full {
		gs.all++
	}
	gs.mu.Unlock()
	if full {
		return nil, fmt.Errorf("%w: %d of browsers", notification.ErrTooManySessions, maxGuests)
	}
	s, err := gs.sessions.RegisterSession(cfg)
	if err != nil {
		gs.mu.Lock()
		gs.all--
		gs.mu.Unlock()
		return nil, err
	}
	gs.came.Store(true)
	if oldest := gs.enter(g, s); oldest != nil {
		gs.end(notification.ErrSessionReplaced, oldest)
	}
	// end revokes first and looks for sessions then; this has made one first and looks
	// then whether it is revoked: one of the two sees the other.
	if gs.revoked.has(id) {
		gs.end(nil, g)
	}
	return s, nil
}

// enter notes a session, unless it has ended: its Close comes after Err is set, and
// so after this. It returns whom it is one too many for.
func (gs *guests) enter(g *guest, s *notification.Session) (oldest *guest) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if s.Err() != nil {
		return nil
	}
	g.session = s
	tabs := append(gs.byUser[g.user], g)
	gs.byUser[g.user] = tabs
	if len(tabs) > maxTabs {
		return tabs[len(tabs)-maxTabs-1]
	}
	return nil
}

// signOut ends the sessions of a token that was revoked.
func (gs *guests) signOut(t token) {
	gs.mu.Lock()
	theirs := slices.Clone(gs.byUser[t.user])
	gs.mu.Unlock()
	gs.end(nil, slices.DeleteFunc(theirs, func(g *guest) bool { return g.token != t.id })...)
}

// end ends sessions. Their clients are told why; nil: the program has closed them.
func (gs *guests) end(why error, ended ...*guest) {
	for _, g := range ended {
		gs.mu.Lock()
		s := g.session
		g.why = why
		gs.mu.Unlock()
		if s != nil {
			_ = s.Close() // it may have ended by itself
		}
	}
}

// Close implements notification.Sink.
func (g *guest) Close(reason error) {
	g.in.mu.Lock()
	g.in.all--
	tabs := slices.DeleteFunc(g.in.byUser[g.user], func(o *guest) bool { return o == g })
	if len(tabs) > 0 {
		g.in.byUser[g.user] = tabs
	} else {
		delete(g.in.byUser, g.user)
	}
	if g.why != nil && errors.Is(reason, notification.ErrSessionClosed) {
		reason = g.why
	}
	g.in.mu.Unlock()
	g.Sink.Close(reason)
}

// Live passes on what a Sink may be told.
func (g *guest) Live() {
	if next, ok := g.Sink.(interface{ Live() }); ok {
		next.Live()
	}
}
