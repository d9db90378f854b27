package notification

import (
	"iter"
	"math/rand/v2"
)

// A session is in two lists: of all sessions, and of its user's.
const (
	ofAll = iota
	ofUser
	numSessionLists
)

type sessionLink struct{ next, prev *Session }

// A sessionList holds sessions in the order of their registration.
type sessionList struct {
	first, last *Session
	n           int
}

func (l *sessionList) pushBack(s *Session, kind int) {
	if s.links[kind].prev = l.last; l.last != nil {
		l.last.links[kind].next = s
	} else {
		l.first = s
	}
	l.last = s
	l.n++
}

func (l *sessionList) remove(s *Session, kind int) {
	link := &s.links[kind]
	if link.prev != nil {
		link.prev.links[kind].next = link.next
	} else {
		l.first = link.next
	}
	if link.next != nil {
		link.next.links[kind].prev = link.prev
	} else {
		l.last = link.prev
	}
	*link = sessionLink{}
	l.n--
}

// A walk goes through a list of sessions in slices, while the list changes: it
// meets everybody once who was there when it began and is still there when its
// turn comes. A walk with a start that is not the list's first goes round.
type walk struct {
	kind  int
	next  *Session // guarded by roster.mu: nil at the end of the list
	limit uint64   // the last serial that is meant
	turn  uint64   // the serial of the start: after the end of the list it goes on from the first up to here; 0 once it has
	round *sessionList
	seen  int // sessions so far
}

// begin begins a walk through all sessions that there are now.
func (r *roster) begin(w *walk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.beginLocked(w, &r.sessions, ofAll)
}

// beginAnywhere is begin for AllUsers: the walk begins at a random session and
// goes round, so that it is not always the same who hear first.
func (r *roster) beginAnywhere(w *walk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.beginLocked(w, &r.sessions, ofAll)
	if r.first != nil && r.first != r.sessions.first {
		w.next, w.turn = r.first, r.first.serial
	}
}

// beginOfUser begins a walk through the sessions of a user.
func (r *roster) beginOfUser(w *walk, u *user) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.beginLocked(w, &u.sessions, ofUser)
}

func (r *roster) beginLocked(w *walk, l *sessionList, kind int) {
	*w = walk{kind: kind, next: l.first, limit: r.serial, round: l}
	r.walks = append(r.walks, w)
}

// step fills buf with the next sessions of a walk. Fewer than fit are the last,
// and end it.
func (r *roster) step(w *walk, buf []*Session) []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(buf) {
		if s := w.next; s != nil && s.serial <= w.limit {
			buf[n] = s
			n++
			w.next = s.links[w.kind].next
		} else if w.turn != 0 {
			w.next, w.limit, w.turn = w.round.first, w.turn-1, 0
		} else {
			r.endWalkLocked(w)
			break
		}
	}
	// The first of the next walk for AllUsers is one of those that this one has
	// met, each with the same chance.
	if w.seen += n; n > 0 && w.kind == ofAll && rand.IntN(w.seen) < n {
		r.first = buf[rand.IntN(n)]
	}
	return buf[:n]
}

// endWalk ends a walk before its end.
func (r *roster) endWalk(w *walk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endWalkLocked(w)
}

func (r *roster) endWalkLocked(w *walk) {
	for i := range r.walks {
		if r.walks[i] == w {
			last := len(r.walks) - 1
			r.walks[i], r.walks[last] = r.walks[last], nil
			r.walks = r.walks[:last]
			break
		}
	}
	w.next = nil
}

// iterate yields the sessions of a walk. No lock is held while it yields.
func (r *roster) iterate(begin func(w *walk)) iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		var w walk
		var buf [sliceSize]*Session
		begin(&w)
		if w.round == nil {
			return
		}
		defer r.endWalk(&w)
		for {
			part := r.step(&w, buf[:])
			for _, s := range part {
				if s.Err() == nil && !yield(s) {
					return
				}
			}
			if len(part) < sliceSize {
				return
			}
		}
	}
}
