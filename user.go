package notification

import (
	"sync"
	"sync/atomic"
)

// A user is somebody with sessions at a Gateway, or with a history.
type user struct {
	// immutable
	id      string
	history *history // nil without a history

	// atomic
	only atomic.Pointer[Session] // the one session, if there is one: nearly every user has
	home atomic.Pointer[roster]  // which has the user in its table; nil before it is forgotten there

	mu       sync.Mutex
	sessions sessionList // changed under roster.mu and mu, read under either

	// guarded by roster.mu: its place in roster.offline, and since when
	next, prev *user
	offline    bool
	since      int64
}

// setOnly is due when the sessions have changed. mu is held.
func (u *user) setOnly() {
	if u.sessions.n == 1 {
		u.only.Store(u.sessions.first)
	} else {
		u.only.Store(nil)
	}
}

// few returns the sessions of a user if they are at most len(buf).
func (u *user) few(buf []*Session) (sessions []*Session, ok bool) {
	if s := u.only.Load(); s != nil {
		buf[0] = s
		return buf[:1], true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions.n > len(buf) {
		return nil, false
	}
	sessions = buf[:0]
	for s := u.sessions.first; s != nil; s = s.links[ofUser].next {
		sessions = append(sessions, s)
	}
	return sessions, true
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
	u.next, u.prev = nil, nil
}
