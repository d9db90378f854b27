package notification

import (
	"hash/maphash"
	"math"
	"strings"
)

// A dedup remembers the last n accepted IDs, exactly: an ID leaves when n later
// ones have been added, and looking one up changes nothing.
//
// It is a ring in the order of acceptance with an open-addressed index over it
// (linear probing; Knuth's algorithm R closes the hole that a deletion leaves,
// so that there are no tombstones to clean up). A window that never promotes
// needs no LRU list: this one allocates nothing after newDedup and never rehashes,
// so no Publish pays for another's growth. (IDs of over 51 bytes do: they are in a
// map.) It has copies of the IDs, because a string would keep alive what it is a part of, and without pointers
// the garbage collector has nothing to do with it. Its cost is 64 bytes per ID of the
// window, a cache line, and 16 to 32 for the index.
type dedup struct {
	seed  maphash.Seed
	ring  []dedupEntry
	long  map[int]string // IDs that are too long for their entry, by position in ring
	next  int            // where the next ID goes: the oldest, once the ring is full
	count int            // how many of ring are in use
	index []uint64       // hash<<32 | position in ring + 1; zero is free. Its length is a power of two, at least twice the ring's
}

type dedupEntry struct {
	at   int64  // when it was accepted
	hash uint32 // so that forgetting an ID does not read its bytes again
	n    uint8  // of id; isLong: it is in dedup.long
	id   [shortID]byte
}

const (
	shortID = 51 // fills the cache line, and holds a UUID and a prefix
	isLong  = 255
)

// maxDedup is the largest window that may be configured: 10 GiB, and less where an
// address has 32 bits. The index holds positions of 32 bits, and a larger window is
// a mistake in a configuration.
const maxDedup = min(1<<27, math.MaxInt>>7)

// newDedup makes a window of size IDs, 1 to maxDedup.
func newDedup(size int) *dedup {
	n := 4
	for n < 2*size {
		n *= 2
	}
	return &dedup{seed: maphash.MakeSeed(), ring: make([]dedupEntry, size), long: make(map[int]string), index: make([]uint64, n)}
}

// hash is what has and add want beside id. It needs no lock.
func (d *dedup) hash(id string) uint32 { return uint32(maphash.String(d.seed, id)) }

// has reports whether id is among the last len(ring) that were added.
func (d *dedup) has(h uint32, id string) bool {
	mask := uint32(len(d.index) - 1)
	for i := h & mask; d.index[i] != 0; i = (i + 1) & mask {
		if s := d.index[i]; uint32(s>>32) == h && d.is(int(uint32(s)-1), id) {
			return true
		}
	}
	return false
}

// is reports whether the ring's entry at pos is id.
func (d *dedup) is(pos int, id string) bool {
	e := &d.ring[pos]
	if e.n == isLong {
		return d.long[pos] == id
	}
	return string(e.id[:e.n]) == id
}

// add remembers id, which must not be there, and forgets the oldest if the
// window is full.
func (d *dedup) add(h uint32, id string, at int64) {
	if d.count == len(d.ring) {
		d.forget(d.next)
	} else {
		d.count++
	}
	e := &d.ring[d.next]
	e.at, e.hash, e.n = at, h, uint8(len(id))
	if len(id) <= shortID {
		copy(e.id[:], id)
	} else {
		e.n = isLong
		d.long[d.next] = strings.Clone(id)
	}
	mask := uint32(len(d.index) - 1)
	i := h & mask
	for d.index[i] != 0 {
		i = (i + 1) & mask
	}
	d.index[i] = uint64(h)<<32 | uint64(d.next+1)
	if d.next++; d.next == len(d.ring) {
		d.next = 0
	}
}

// forget takes the ring's entry at pos out of the index.
func (d *dedup) forget(pos int) {
	if d.ring[pos].n == isLong {
		delete(d.long, pos)
	}
	mask := uint32(len(d.index) - 1)
	hole := d.ring[pos].hash & mask
	for uint32(d.index[hole])-1 != uint32(pos) {
		hole = (hole + 1) & mask
	}
	// What stands behind the hole moves into it unless that would put it before
	// its home, where a probe would not look.
	for i := (hole + 1) & mask; d.index[i] != 0; i = (i + 1) & mask {
		home := uint32(d.index[i]>>32) & mask
		if (i-home)&mask >= (i-hole)&mask {
			d.index[hole] = d.index[i]
			hole = i
		}
	}
	d.index[hole] = 0
}

// oldest returns when the oldest ID remembered was accepted.
func (d *dedup) oldest() (at int64, ok bool) {
	if d.count == 0 {
		return 0, false
	}
	pos := 0
	if d.count == len(d.ring) {
		pos = d.next
	}
	return d.ring[pos].at, true
}
