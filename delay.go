package notification

import (
	"sync"
	"sync/atomic"
)

// A delayList holds the sessions in which a message of one lane waits for
// company, in the order of their deadlines: the delay is the same for all, so who
// comes last goes to the back. The links are in the sessions, so that each is in
// it once.
type delayList struct {
	lane        Priority
	first, last *Session
}

type delayLink struct {
	next, prev *Session
}

// moveBack puts s, whose deadline is new, at the end.
func (l *delayList) moveBack(s *Session) {
	if l.has(s) { // a Push took the message that was waited for
		l.remove(s)
	}
	d := &s.delays[l.lane]
	d.prev = l.last
	if l.last != nil {
		l.last.delays[l.lane].next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *delayList) has(s *Session) bool { return s.delays[l.lane].prev != nil || l.first == s }

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

// endedSessions are those that have ended and are still in a delay list, which
// only the reader may change: MaxDelay may be for ever, and they would be kept
// alive.
type endedSessions struct {
	mu     sync.Mutex // a leaf
	list   []*Session // guarded by mu
	closed bool       // guarded by mu: there is no reader any more

	some atomic.Bool // list holds something
}

// add reports whether the reader must be roused.
func (e *endedSessions) add(s *Session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.list = append(e.list, s)
	return !e.some.Swap(true)
}

// take moves sessions into buf, and returns them.
func (e *endedSessions) take(buf []*Session) []*Session {
	if !e.some.Load() {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	left := max(len(e.list)-len(buf), 0)
	n := copy(buf, e.list[left:])
	clear(e.list[left:])
	if e.list = e.list[:left]; left == 0 {
		e.list = nil
		e.some.Store(false)
	}
	return buf[:n]
}

func (e *endedSessions) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed, e.list = true, nil
	e.some.Store(false)
}
