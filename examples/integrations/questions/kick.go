package questions

import (
	"net/http"
	"sync"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// Sessions is where sessions are made: a *notification.Gateway, or an edge of
// natslog.
type Sessions interface {
	RegisterSession(notification.SessionConfig) (*notification.Session, error)
}

// A Bar makes sessions, and keeps users out. One is given to each transport in
// place of the Gateway; those of one process share a Barred.
type Bar struct {
	Sessions Sessions
	Barred   *Barred
}

// Barred is who is kept out of a process. The zero value is ready.
type Barred struct {
	mu     sync.Mutex
	users  map[string]bool                             // guarded by mu: who is kept out
	living map[string]map[string]*notification.Session // guarded by mu: by user and session ID
}

// RegisterSession makes a session that Kick finds.
func (b *Bar) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	cfg.Sink = &leaving{cfg.Sink, b.Barred, cfg.UserID, cfg.ID}
	s, err := b.Sessions.RegisterSession(cfg)
	// Kick bars first and closes then, this registers first and looks then: one of
	// the two sees the other.
	if err == nil && b.Barred.enter(s) {
		_ = s.Close()
	}
	return s, err
}

// Kick ends all of a user's sessions, and every one that is made until Readmit.
func (b *Barred) Kick(userID string) {
	b.mu.Lock()
	if b.users == nil {
		b.users = make(map[string]bool)
	}
	b.users[userID] = true
	var sessions []*notification.Session
	for _, s := range b.living[userID] {
		sessions = append(sessions, s)
	}
	b.mu.Unlock()
	for _, s := range sessions {
		_ = s.Close()
	}
}

// Has reports whether a user is kept out: Authenticate and Refresh ask.
func (b *Barred) Has(userID string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.users[userID]
}

// Readmit lets a user in again.
func (b *Barred) Readmit(userID string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.users, userID)
}

// enter notes a session, unless it has ended, and reports whether its user is kept
// out. Its Sink.Close comes after Err is set, and so after this.
func (b *Barred) enter(s *notification.Session) (barred bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.Err() == nil {
		if b.living == nil {
			b.living = make(map[string]map[string]*notification.Session)
		}
		if b.living[s.UserID()] == nil {
			b.living[s.UserID()] = make(map[string]*notification.Session)
		}
		b.living[s.UserID()][s.ID()] = s
	}
	return b.users[s.UserID()]
}

// A leaving is a sink that says when its session is over. IDs must not be used
// twice; those of the transports are random.
type leaving struct {
	notification.Sink
	barred      *Barred
	userID, own string
}

func (l *leaving) Close(reason error) {
	l.barred.mu.Lock()
	delete(l.barred.living[l.userID], l.own)
	if len(l.barred.living[l.userID]) == 0 {
		delete(l.barred.living, l.userID)
	}
	l.barred.mu.Unlock()
	l.Sink.Close(reason)
}

// Live passes on what a Sink may be told.
func (l *leaving) Live() {
	if next, ok := l.Sink.(interface{ Live() }); ok {
		next.Live()
	}
}

// Authenticate is for the Config of a transport. A ticket that was issued before
// Kick is still there, for 30 s: who it is for is asked about after it was
// redeemed.
func Authenticate(tickets web.TicketStore, barred *Barred) func(*http.Request) (web.Identity, error) {
	return func(r *http.Request) (web.Identity, error) {
		id, err := tickets.Redeem(r.Context(), web.TicketOf(r))
		if err == nil && barred.Has(id.UserID) {
			err = web.ErrForbidden
		}
		return id, err
	}
}
