package notification

import (
	"iter"
	"math"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
)

// A historyStore is what a Gateway keeps for sessions that resume behind a
// Cursor: a history for each user, and one of what went to AllUsers, which is
// kept once for all. Every message that is kept gets the next sequence number of
// its lane, so that the two can be merged; with a Log every message has one.
//
// The outbox is not read from the history: it may grow to many times its bound
// while the history evicts, and without a history it must stand alone. What both
// hold is a pointer and a number per message.
type historyStore struct {
	// immutable
	perLane int   // messages of a lane in one history
	total   int64 // messages in the histories of all users
	log     Log   // nil: the reader gives the numbers
	all     *history

	// epoch is what cursors are bound to. It changes, under roster.mu, when
	// something is missing from the histories; with a Log when the Log's has.
	epoch atomic.Uint64
	last  [NumPriorities]atomic.Uint64 // the last number in each lane that has come through the reader
	kept  atomic.Int64                 // messages in the users' histories
	// offered is, with a Log, up to which number of each lane whoever was to be
	// offered something has been: the cursors of the others move on with it.
	offered [NumPriorities]atomic.Uint64
}

// A history is what is kept of one user's messages, or of those to AllUsers.
type history struct {
	// immutable
	store *historyStore
	// key binds cursors to the user, and to the time since the user became known:
	// what came while nobody knew the user has no number, so that the numbers of
	// a cursor from before cannot tell that it is missing.
	key uint64
	// epoch is whose numbers those are, with a Log. It is immutable in the history
	// of a user. That of all is guarded by all.mu, and so are writes to store.last
	// and store.offered, which are numbers of that epoch.
	epoch uint64

	mu    sync.Mutex
	begin [NumPriorities]uint64      // guarded by mu: what has a number up to this is not kept
	lanes [NumPriorities]historyLane // guarded by mu
}

// A historyLane is a ring that grows on demand.
type historyLane struct {
	ring     []sequenced
	first, n int
	// evicted holds, by channel, the highest number that is no longer there, so
	// that what a filter would not have passed is not missed.
	evicted [numChannels]uint64
}

func newHistoryStore(perLane, total int, log Log) *historyStore {
	st := &historyStore{perLane: perLane, total: int64(total), log: log}
	if log == nil {
		st.epoch.Store(rand.Uint64())
	} else {
		st.epoch.Store(log.Epoch())
	}
	st.all = st.newHistory()
	return st
}

// newHistory returns one that begins now: whatever was numbered before counts as
// evicted. With a Log it must begin again once its user is in the table.
func (st *historyStore) newHistory() *history {
	h := &history{store: st, key: rand.Uint64()}
	if st.log != nil {
		h.epoch = st.epoch.Load()
	}
	h.evictUpTo(st.ahead())
	return h
}

// ahead returns the last number in each lane of what the reader may still get for
// users that were not in the table when it was handed over.
func (st *historyStore) ahead() (seqs [NumPriorities]uint64) {
	if st.log == nil {
		return st.now()
	}
	return st.log.At()
}

// now returns the last number in each lane that has come through the reader.
func (st *historyStore) now() (seqs [NumPriorities]uint64) {
	for p := range seqs {
		seqs[p] = st.last[p].Load()
	}
	return seqs
}

// append gives m the next number of its lane and keeps it in h. over reports
// that the users' histories hold too much now: one message must be evicted. Only
// the reader calls it.
func (st *historyStore) append(h *history, m *Message) (seq uint64, over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seq = st.last[m.priority].Load() + 1
	over = h.add(seq, m)
	// Last, and under the lock: whoever has read a number finds its message in
	// the history, or still waits for the lock.
	st.last[m.priority].Store(seq)
	return seq, over
}

// keep is append for a message that has its number from the Log, in an epoch that
// may have ended since it was sent.
func (st *historyStore) keep(h *history, m *Message, seq, epoch uint64) (over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h != st.all {
		st.all.mu.Lock()
		defer st.all.mu.Unlock()
	}
	if h.epoch == epoch {
		over = h.add(seq, m)
	}
	st.passLocked(m.priority, seq, epoch)
	return over
}

// pass says that a message of the Log has been offered to all whom it is for.
func (st *historyStore) pass(p Priority, seq, epoch uint64) {
	st.all.mu.Lock()
	defer st.all.mu.Unlock()
	st.passLocked(p, seq, epoch)
	if st.all.epoch == epoch {
		st.offered[p].Store(max(seq, st.offered[p].Load()))
	}
}

// passLocked says that a message of the Log came through the reader. all.mu is
// held.
func (st *historyStore) passLocked(p Priority, seq, epoch uint64) {
	if st.all.epoch == epoch {
		st.last[p].Store(max(seq, st.last[p].Load()))
	}
}

// renew begins anew in another epoch of the Log. roster.mu is held.
func (st *historyStore) renew(epoch uint64) {
	at := st.log.At()
	st.all.mu.Lock()
	defer st.all.mu.Unlock()
	st.all.epoch, st.all.lanes, st.all.begin = epoch, [NumPriorities]historyLane{}, [NumPriorities]uint64{}
	st.all.evictUpToLocked(at)
	for p := range st.last {
		st.last[p].Store(0)
		st.offered[p].Store(0)
	}
	st.epoch.Store(epoch)
}

// add keeps a message, and reports whether the users' histories hold too much
// now. mu is held.
func (h *history) add(seq uint64, m *Message) (over bool) {
	return seq > h.begin[m.priority] && h.push(seq, m) && h != h.store.all && h.store.kept.Add(1) > h.store.total
}

// push reports whether the history has grown, rather than lost its oldest. mu is
// held.
func (h *history) push(seq uint64, m *Message) (grown bool) {
	l := &h.lanes[m.priority]
	if grown = l.n < h.store.perLane; !grown {
		l.evict()
	}
	if l.n == len(l.ring) {
		ring := make([]sequenced, min(max(4, 2*len(l.ring)), h.store.perLane))
		for i := range l.n {
			ring[i] = *l.at(i)
		}
		l.ring, l.first = ring, 0
	}
	l.n++
	*l.at(l.n - 1) = sequenced{seq, m}
	return grown
}

// evictOldest makes room in the history of the user whose message was too much.
func (h *history) evictOldest(p Priority) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lanes[p].n > 0 {
		h.lanes[p].evict()
		h.store.kept.Add(-1)
	}
}

// evictUpTo drops what has a number of at most seqs, and keeps none of that from
// now on.
func (h *history) evictUpTo(seqs [NumPriorities]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.evictUpToLocked(seqs)
}

// evictUpToLocked is evictUpTo. mu is held.
func (h *history) evictUpToLocked(seqs [NumPriorities]uint64) {
	for p := range h.lanes {
		h.begin[p] = max(h.begin[p], seqs[p])
		l, before := &h.lanes[p], h.lanes[p].n
		if l.n > 0 && l.at(l.n-1).seq <= seqs[p] {
			*l = historyLane{evicted: l.evicted}
		}
		for l.n > 0 && l.at(0).seq <= seqs[p] {
			l.evict()
		}
		for c := range l.evicted {
			l.evicted[c] = max(l.evicted[c], seqs[p])
		}
		if h != h.store.all {
			h.store.kept.Add(int64(l.n - before))
		}
	}
}

// close drops everything and keeps nothing from now on: the user was forgotten,
// while a message was on its way here perhaps.
func (h *history) close() {
	var all [NumPriorities]uint64
	for p := range all {
		all[p] = math.MaxUint64
	}
	h.evictUpTo(all)
}

// from returns behind which number of each lane a session of h's user begins that
// does not resume.
func (h *history) from() (seqs [NumPriorities]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, seq := range h.store.now() {
		seqs[p] = max(seq, h.begin[p])
	}
	return seqs
}

func (h *history) len() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.lanes {
		n += h.lanes[p].n
	}
	return n
}

// at returns the i-th oldest.
func (l *historyLane) at(i int) *sequenced { return &l.ring[(l.first+i)%len(l.ring)] }

// after returns the index of the oldest with a number over seq.
func (l *historyLane) after(seq uint64) int {
	return sort.Search(l.n, func(i int) bool { return l.at(i).seq > seq })
}

// evict drops the oldest of a lane that has one.
func (l *historyLane) evict() {
	e := l.at(0)
	l.evicted[e.m.typ.Channel()] = e.seq
	*e = sequenced{}
	l.first = (l.first + 1) % len(l.ring)
	l.n--
}

// A place is how far a session has got in the histories, and what of them it
// wants.
type place struct {
	seqs   [NumPriorities]uint64
	filter uint32
	added  *additions // nil: every channel of filter from seqs on
	missed *missed    // nil: the histories have all of it
}

// missed is what a session missed and the histories no longer have: it came from
// the Log.
type missed struct {
	lanes [NumPriorities][]sequenced
	upTo  [NumPriorities]uint64 // what comes after is in the histories
}

// inHistory returns behind which number a lane is read from the histories.
func (at *place) inHistory(p Priority) uint64 {
	if at.missed == nil {
		return at.seqs[p]
	}
	return max(at.seqs[p], at.missed.upTo[p])
}

// additions says from which numbers on a channel counts that was added to the
// filter while a replay went on.
type additions [numChannels][NumPriorities]uint64

// admits reports whether e is wanted, and not from before its channel was added.
func (at *place) admits(e sequenced) bool {
	c := e.m.typ.Channel()
	return admits(at.filter, c) && (at.added == nil || e.seq > at.added[c][e.m.priority])
}

// lost reports whether something behind at that it admits is no longer there. mu
// is held.
func (h *history) lost(at *place) bool {
	for p := range h.lanes {
		if h.lostUpTo(at, Priority(p)) > at.inHistory(Priority(p)) {
			return true
		}
	}
	return false
}

// lostUpTo returns the highest number in a lane of what at admits that is no
// longer there. mu is held.
func (h *history) lostUpTo(at *place, p Priority) (upTo uint64) {
	for c := ChannelTrade; c < numChannels; c++ {
		seq := h.lanes[p].evicted[c]
		if seq > upTo && admits(at.filter, c) && (at.added == nil || seq > at.added[c][p]) {
			upTo = seq
		}
	}
	return upTo
}

// resumable reports whether a session of h's user can start at this place
// without a hole.
func (st *historyStore) resumable(h *history, at *place) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	st.all.mu.Lock()
	defer st.all.mu.Unlock()
	for p, seq := range at.seqs {
		if st.log == nil && seq > st.last[p].Load() { // another Gateway of a Log may be faster
			return false
		}
	}
	return !h.lost(at) && !st.all.lost(at)
}

// gone returns up to where the histories no longer have all that at admits,
// behind at in each lane.
func (st *historyStore) gone(h *history, at *place) (upTo [NumPriorities]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st.all.mu.Lock()
	defer st.all.mu.Unlock()
	for p := range upTo {
		lane := Priority(p)
		upTo[p] = max(at.seqs[p], h.lostUpTo(at, lane), st.all.lostUpTo(at, lane))
	}
	return upTo
}

// replayScan bounds how many entries of each lane one batch of a replay looks
// at, twice at most: the histories are locked meanwhile.
const replayScan = 1024

// read fills buf with the next of what stands behind at, moves at, and reports
// whether that was all. lost reports that the next is no longer there; then
// nothing has changed. A batch may be empty though there is more: it has looked
// at replayScan entries that at does not admit.
//
// The reader appends a message first and offers it to the sessions then, and
// read holds the locks of both histories: what is appended later is offered to a
// session that takes it; what was appended before, and has yet to be offered, is
// not new to the session then.
func (st *historyStore) read(h *history, at *place, buf []*Message, t *turns) (d delivery, all, lost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st.all.mu.Lock()
	defer st.all.mu.Unlock()
	if h.epoch != st.all.epoch || h.lost(at) || st.all.lost(at) {
		return d, false, true
	}
	var waiting [NumPriorities]int // up to a batch, and one to know that there is more
	for p := range waiting {
		looked := 0
		for e := range st.behind(h, at, Priority(p)) {
			if looked++; looked > replayScan || waiting[p] > len(buf) {
				break
			}
			if at.admits(e) {
				waiting[p]++
			}
		}
	}
	d = delivery{act: actPush, replayed: true, messages: buf[:0], counts: t.share(waiting, len(buf))}
	all = true
	for p := range d.counts {
		left, looked, whole := d.counts[p], 0, true
		for e := range st.behind(h, at, Priority(p)) {
			looked++
			wanted := at.admits(e)
			if looked > replayScan || wanted && left == 0 {
				all, whole = false, false
				break
			}
			if wanted {
				left--
				d.messages = append(d.messages, e.m)
			}
			at.seqs[p] = e.seq
		}
		if whole { // over what was evicted, too, that the filter does not admit
			at.seqs[p] = max(at.inHistory(Priority(p)), st.last[p].Load())
		}
	}
	if len(d.messages) == 0 {
		d.act = actNone
	}
	return d, all, false
}

// behind yields, in order, what stands behind at in a lane. The locks of both
// histories are held.
func (st *historyStore) behind(h *history, at *place, p Priority) iter.Seq[sequenced] {
	kept := merged(&h.lanes[p], &st.all.lanes[p], at.inHistory(p))
	if at.missed == nil {
		return kept
	}
	list := at.missed.lanes[p]
	taken := sort.Search(len(list), func(i int) bool { return list[i].seq > at.seqs[p] })
	clear(list[:taken]) // keep no message alive
	list = list[taken:]
	at.missed.lanes[p] = list
	return func(yield func(sequenced) bool) {
		for _, e := range list {
			if !yield(e) {
				return
			}
		}
		for e := range kept {
			if !yield(e) {
				return
			}
		}
	}
}

// merged yields, in order, what two lanes hold over number seq.
func merged(a, b *historyLane, seq uint64) iter.Seq[sequenced] {
	return func(yield func(sequenced) bool) {
		i, j := a.after(seq), b.after(seq)
		for i < a.n || j < b.n {
			var e sequenced
			if j == b.n || i < a.n && a.at(i).seq < b.at(j).seq {
				e = *a.at(i)
				i++
			} else {
				e = *b.at(j)
				j++
			}
			if !yield(e) {
				return
			}
		}
	}
}
