package notification

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
