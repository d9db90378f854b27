package notification

// A callTable says what each pusher does. It is guarded by pushPool.mu.
type callTable struct {
	pushers []*pusher // by slot; nil: the slot is free
	free    []int32   // slots
	calls   []call    // by slot
	running callList  // calls of sinks, the longest first
	ending  callList  // those whose session has ended, who ended first is first
}

// A call is what one pusher does, in a place of its own among the others': every
// Push moves calls in a list, and lists through the pushers themselves would send
// their cache lines from core to core.
//
// A list of calls is not one of sessions: a session may be due again, and have
// another pusher, before the first one is back.
type call struct {
	next, prev int32    // slots + 1; zero: none
	session    *Session // nil: none
}

// A callList is a list of calls, as slots + 1; zero: none.
type callList struct {
	first, last int32
	n           int
}

func (t *callTable) pushCall(l *callList, slot int32) {
	c := &t.calls[slot]
	if c.prev, c.next = l.last, 0; l.last != 0 {
		t.calls[l.last-1].next = slot + 1
	} else {
		l.first = slot + 1
	}
	l.last = slot + 1
	l.n++
}

func (t *callTable) removeCall(l *callList, slot int32) {
	c := &t.calls[slot]
	if c.prev != 0 {
		t.calls[c.prev-1].next = c.next
	} else {
		l.first = c.next
	}
	if c.next != 0 {
		t.calls[c.next-1].prev = c.prev
	} else {
		l.last = c.prev
	}
	l.n--
}

// enlist gives a pusher a slot.
func (t *callTable) enlist(p *pusher) {
	if n := len(t.free); n > 0 {
		p.slot, t.free = t.free[n-1], t.free[:n-1]
		t.pushers[p.slot] = p
		return
	}
	p.slot = int32(len(t.pushers))
	t.pushers, t.calls = append(t.pushers, p), append(t.calls, call{})
}

// discharge gives the slot of a pusher that goes to the next one.
func (t *callTable) discharge(p *pusher) {
	t.pushers[p.slot] = nil
	t.free = append(t.free, p.slot)
}

// start puts a call into the list of those that run.
func (t *callTable) start(p *pusher, s *Session) {
	t.calls[p.slot].session = s
	t.pushCall(&t.running, p.slot)
}

// stop takes the call of a pusher off its list, and returns its session; nil if
// it had none.
func (t *callTable) stop(p *pusher) *Session {
	s := t.calls[p.slot].session
	if s == nil {
		return nil
	}
	t.calls[p.slot].session = nil
	switch {
	case p.abandoned:
	case p.ending:
		t.removeCall(&t.ending, p.slot)
		p.ending = false
	default:
		t.removeCall(&t.running, p.slot)
	}
	return s
}
