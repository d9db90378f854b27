package natslog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

var _ notification.Log = (*index)(nil)

// errCold: the edge has not read enough of the log yet.
var errCold = errors.New("natslog: the edge is warming up")

// An index holds the newest blocks of a partition in memory, and finds in them what
// a user missed: it is the notification.Log of an edge's Gateway. So a client that
// resumes costs the server nothing. (A consumer for each user on the server, with
// the user in the subject, takes milliseconds of its CPU and half a gigabyte for a
// million users.)
//
// Each lane is by itself, with a lock of its own, so that P0 does not wait for the
// block of another lane. What they share is the bound of their bytes: whoever goes
// over it drops the block that was stored first in any of them. So the lanes share
// the bytes in proportion to what they carry, all reach back to the same time, and
// edges of the same size to the same one.
type index struct {
	// immutable
	most int64 // bytes of archives kept in all lanes
	// ends returns the last sequence of a lane's stream, as its leader knows it.
	ends func(ctx context.Context, lane notification.Priority) (uint64, error)

	lanes [notification.NumPriorities]indexLane

	// atomic
	epoch atomic.Uint64
	size  atomic.Int64 // bytes of archives
	warm  atomic.Bool  // Missed may be asked
}

// An indexLane is what an index has of one stream: consecutive blocks.
type indexLane struct {
	// atomic
	at     atomic.Uint64 // the last number that was seen
	oldest atomic.Int64  // when blocks[0] was stored; MaxInt64 without one
	end    atomic.Uint64 // the last sequence of the stream, when its leader was last asked

	asking chan struct{} // holds a token while somebody asks the leader

	mu     sync.RWMutex
	blocks []indexBlock      // guarded by mu: oldest first
	first  uint64            // guarded by mu: the sequence of blocks[0], or of the block to come
	floor  uint64            // guarded by mu: all that has a higher number is in blocks, or is still to come
	before int64             // guarded by mu: when the block before blocks[0] was stored; 0 if that is not known
	users  map[string]uint64 // guarded by mu: the number of the last entry of each, and of AllUsers
}

type indexBlock struct {
	block
	entries []indexEntry // those that are for somebody
}

// An indexEntry is a link of the chain of one user's entries.
type indexEntry struct {
	prev  uint64 // the number of the one before it, which may be gone; 0: none
	at    uint32 // where its archive begins in the block's data
	place uint16 // in the block
}

// cost returns what a block counts of the index's bytes. One that is empty counts as
// well, or those that break the silence of a log to which nothing happens would be
// kept for ever.
func (b *block) cost() int64 { return int64(max(len(b.data), 128)) }

// A placed entry is one that is for somebody, with its number.
type placed struct {
	entry
	number uint64
}

func newIndex(most int64, ends func(context.Context, notification.Priority) (uint64, error)) *index {
	x := &index{most: most, ends: ends}
	for p := range x.lanes {
		x.lanes[p].asking = make(chan struct{}, 1)
	}
	x.reset(0) // which is no epoch
	return x
}

// reset forgets everything, and is cold in an epoch. Nothing else is called
// meanwhile but the methods of notification.Log.
func (x *index) reset(epoch uint64) {
	x.warm.Store(false)
	for p := range x.lanes {
		x.lanes[p].at.Store(0)
		x.lanes[p].end.Store(0)
		x.begin(notification.Priority(p), 1, block{})
	}
	x.epoch.Store(epoch)
}

// begin forgets a lane, of which the next block has this sequence, and raises At
// over all before it. Cursors at the end of the block before it are good if that is
// the one that is given, which has neither entries nor archives here.
func (x *index) begin(p notification.Priority, seq uint64, before block) {
	l := &x.lanes[p]
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.blocks {
		x.size.Add(-l.blocks[i].cost())
	}
	l.blocks, l.users = nil, make(map[string]uint64)
	l.first, l.floor, l.before = seq, endOf(seq-1), 0
	if before.seq != 0 && before.seq+1 == seq {
		l.floor, l.before = before.end(), before.stored.UnixNano()
	}
	l.oldest.Store(math.MaxInt64)
	l.at.Store(max(l.at.Load(), endOf(seq-1)))
}

// endOf returns the highest number that an entry of a block may have.
func endOf(seq uint64) uint64 { return number(seq, maxEntries-1) }

// end returns the number of the block's last entry, or of the place of the first if
// it has none.
func (b *block) end() uint64 { return number(b.seq, max(b.count, 1)-1) }

// add adds the next block of a lane, and then raises At over it. entries are those
// of it that are for somebody.
func (x *index) add(p notification.Priority, b block, entries []placed) {
	l := &x.lanes[p]
	l.mu.Lock()
	list := make([]indexEntry, len(entries))
	for i, e := range entries {
		user := e.user
		prev, known := l.users[user]
		list[i] = indexEntry{prev: prev, at: uint32(e.at), place: uint16(e.number % maxEntries)}
		if !known {
			user = strings.Clone(user) // the block must not stay for the key; a key that is there does
		}
		l.users[user] = e.number
	}
	if len(l.blocks) == 0 {
		l.oldest.Store(b.stored.UnixNano())
	}
	l.blocks = append(l.blocks, indexBlock{b, list})
	l.mu.Unlock()
	l.at.Store(endOf(b.seq))
	x.size.Add(b.cost())
	for x.size.Load() > x.most && x.evict() {
	}
}

// evict drops the block that was stored first, and reports whether there was one.
func (x *index) evict() bool {
	l := &x.lanes[0]
	for p := range x.lanes {
		if o := &x.lanes[p]; o.oldest.Load() < l.oldest.Load() {
			l = o
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.blocks) == 0 {
		return false
	}
	b := &l.blocks[0]
	for i := range b.entries {
		e := &b.entries[i]
		user := b.open(e).user
		if l.users[user] == number(l.first, int(e.place)) { // nothing has come since
			delete(l.users, user)
		}
	}
	x.size.Add(-b.cost())
	l.floor, l.before = b.end(), b.stored.UnixNano()
	l.first++
	*b = indexBlock{}
	l.blocks = l.blocks[1:]
	l.oldest.Store(math.MaxInt64)
	if len(l.blocks) > 0 {
		l.oldest.Store(l.blocks[0].stored.UnixNano())
	}
	return true
}

// open returns what stands at an entry.
func (b *indexBlock) open(e *indexEntry) entry {
	found, _ := b.entry(int(e.at))
	return found
}

// Epoch implements notification.Log.
func (x *index) Epoch() uint64 { return x.epoch.Load() }

// At implements notification.Log.
func (x *index) At() (numbers [notification.NumPriorities]uint64) {
	for p := range x.lanes {
		numbers[p] = x.lanes[p].at.Load()
	}
	return numbers
}

// Missed implements notification.Log.
func (x *index) Missed(ctx context.Context, userID string, channels []notification.Channel, after, upTo [notification.NumPriorities]uint64, most int) ([]*notification.Message, error) {
	if !x.warm.Load() {
		return nil, errCold
	}
	var list []*notification.Message
	for i := range x.lanes {
		p, l := notification.Priority(i), &x.lanes[i]
		if after[p] > l.at.Load() {
			reaches, err := x.reaches(ctx, p, after[p])
			if err != nil {
				return nil, err
			}
			if !reaches {
				return nil, fmt.Errorf("%w: the log of %s ends before it", notification.ErrCursorGone, p)
			}
		}
		if after[p] >= upTo[p] {
			continue
		}
		lane, ok := l.missed(userID, channels, after[p], upTo[p], most-len(list))
		if !ok {
			return nil, fmt.Errorf("%w: %s: it is further back than the edge's backlog, more than %d messages, or of a type that is not known here", notification.ErrCursorGone, p, most)
		}
		list = append(list, lane...)
	}
	return list, nil
}

// reaches reports whether the log of a lane has this number, which is ahead of what
// was seen. After an edge was killed thousands come with such cursors at once, and
// the server drops all that it is asked when that is too much: one asks for all.
func (x *index) reaches(ctx context.Context, p notification.Priority, number uint64) (bool, error) {
	l := &x.lanes[p]
	if number <= endOf(l.end.Load()) {
		return true, nil
	}
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if number <= endOf(l.end.Load()) { // somebody has asked meanwhile
		return true, nil
	}
	last, err := x.ends(ctx, p)
	if err != nil {
		return false, err
	}
	l.end.Store(last)
	return number <= endOf(last), nil
}

// missed returns what a user was sent with a number over after and at most upTo. It
// reports false if some of that is no longer there, or if it is more than most.
func (l *indexLane) missed(userID string, channels []notification.Channel, after, upTo uint64, most int) ([]*notification.Message, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if after < l.floor {
		return nil, false
	}
	var list []*notification.Message
	own, all := l.users[userID], l.users[notification.AllUsers]
	for own > after || all > after { // backwards through both chains
		n := max(own, all)
		b := &l.blocks[n/maxEntries-l.first]
		i, _ := slices.BinarySearchFunc(b.entries, uint16(n%maxEntries), func(e indexEntry, place uint16) int {
			return int(e.place) - int(place)
		})
		e := &b.entries[i]
		if n == own {
			own = e.prev
		} else {
			all = e.prev
		}
		if n > upTo {
			continue
		}
		found := b.open(e)
		if found.err != nil {
			return nil, false // nobody can tell here what it is
		}
		a := found.archive
		if channels != nil && !slices.Contains(channels, a.Type().Channel()) {
			continue
		}
		if len(list) == most {
			return nil, false
		}
		list = append(list, notification.NewMessageAt(a.Notification(), n))
	}
	slices.Reverse(list)
	return list, true
}

// Seal implements notification.Log: FNV-1a, 64 bit, over the user and when the
// block of each number was stored. A log that has lost its end, and gives the same
// numbers again, stores other blocks under them, at another time.
func (x *index) Seal(userID string, numbers [notification.NumPriorities]uint64) (uint64, bool) {
	h := fnv1a(userID)
	for p, n := range numbers {
		stored, ok := x.lanes[p].stored(n / maxEntries)
		if !ok {
			return 0, false
		}
		for range 8 {
			h = (h ^ uint64(stored&0xff)) * fnvPrime
			stored >>= 8
		}
	}
	return h, true
}

// stored returns when the block with this sequence was stored, and false if that is
// not known. There is no block 0: it stands for the beginning of the log.
func (l *indexLane) stored(seq uint64) (int64, bool) {
	if seq == 0 {
		return 0, true
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch i := seq - l.first; {
	case seq >= l.first && i < uint64(len(l.blocks)):
		return l.blocks[i].stored.UnixNano(), true
	case seq+1 == l.first && l.before != 0:
		return l.before, true
	}
	return 0, false
}

// since returns when the oldest block was stored; zero without one.
func (l *indexLane) since() time.Time {
	at := l.oldest.Load()
	if at == math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, at)
}
