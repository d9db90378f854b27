package notification

import "sync"

// An outbox is what waits for a session: four queues in chunks, none of which
// it holds on to when it is empty. Mostly one message waits, for a moment: that
// one stands in the outbox itself and needs no chunk.
type outbox struct {
	lanes [NumPriorities]outboxLane
	total int
	only  sequenced // the one that waits, in no chunk; none if more wait, or did since it was empty
}

type outboxLane struct {
	first, last *chunk
	n           int32
	read, write uint8 // the places in first and last
}

// A sequenced is a message with its place in the history, zero without one.
type sequenced struct {
	seq uint64
	m   *Message
}

// A chunk fills the 256-byte size class.
type chunk struct {
	next    *chunk
	entries [15]sequenced
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// push appends m to its lane and reports whether that was empty.
func (o *outbox) push(m *Message, seq uint64) (first bool) {
	l := &o.lanes[m.priority]
	first = l.n == 0
	l.n++
	if o.total++; o.total == 1 {
		o.only = sequenced{seq, m}
		return true
	}
	if o.only.m != nil {
		o.lanes[o.only.m.priority].append(o.only)
		o.only = sequenced{}
	}
	l.append(sequenced{seq, m})
	return first
}

// append puts e into the last chunk.
func (l *outboxLane) append(e sequenced) {
	if l.last == nil {
		l.first = chunks.Get().(*chunk)
		l.last, l.read, l.write = l.first, 0, 0
	} else if int(l.write) == len(l.last.entries) {
		l.last.next = chunks.Get().(*chunk)
		l.last, l.write = l.last.next, 0
	}
	l.last.entries[l.write] = e
	l.write++
}

// pop takes the oldest of a lane that is not empty.
func (o *outbox) pop(p Priority) *Message {
	l := &o.lanes[p]
	l.n--
	o.total--
	if m := o.only.m; m != nil {
		o.only = sequenced{}
		return m
	}
	c := l.first
	m := c.entries[l.read].m
	c.entries[l.read] = sequenced{} // a pooled chunk keeps nothing alive
	l.read++
	if l.n == 0 || int(l.read) == len(c.entries) {
		if l.first, l.read = c.next, 0; l.first == nil {
			l.last = nil
		}
		c.next = nil
		chunks.Put(c)
	}
	return m
}

// len returns how many wait in a lane.
func (o *outbox) len(p Priority) int { return int(o.lanes[p].n) }

// lower returns how many wait in P1 to P3 together.
func (o *outbox) lower() int64 { return int64(o.total) - int64(o.lanes[P0].n) }

// head returns the place of the oldest of a lane that is not empty.
func (o *outbox) head(p Priority) uint64 {
	if o.only.m != nil {
		return o.only.seq
	}
	l := &o.lanes[p]
	return l.first.entries[l.read].seq
}

// highest returns the highest lane that is not empty; P3 if all are.
func (o *outbox) highest() Priority {
	p := P0
	for p < P3 && o.lanes[p].n == 0 {
		p++
	}
	return p
}

// lowest returns the lowest lane that is not empty; P0 if all are.
func (o *outbox) lowest() Priority {
	p := P3
	for p > P0 && o.lanes[p].n == 0 {
		p--
	}
	return p
}

// counts returns how many wait in each lane.
func (o *outbox) counts() (n [NumPriorities]int) {
	for p := range n {
		n[p] = int(o.lanes[p].n)
	}
	return n
}

// A turns divides turns among the lanes: each goes to the highest lane that has
// something, but of every ten one to P1, one to P2 and one to P3 if it has
// something, so that none of them waits for ever. It is the count of ten, which
// goes on from batch to batch because a batch may be smaller than that.
type turns uint8

// next returns whose turn it is. has reports whether a lane has something; one
// of them must.
func (t *turns) next(waiting *[NumPriorities]int) Priority {
	p := P0
	if *t >= 7 && waiting[*t-6] > 0 {
		p = Priority(*t - 6)
	}
	for waiting[p] == 0 {
		p++
	}
	*t = (*t + 1) % 10
	return p
}

// share divides a batch of size slots.
func (t *turns) share(waiting [NumPriorities]int, size int) (counts [NumPriorities]int) {
	if waiting[P0]+waiting[P1]+waiting[P2]+waiting[P3] <= size {
		return waiting
	}
	for range size {
		p := t.next(&waiting)
		waiting[p]--
		counts[p]++
	}
	return counts
}
