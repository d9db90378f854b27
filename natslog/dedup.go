package natslog

import (
	"strings"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// A window recognizes the repeats of one stream: an entry is one if its ID stands,
// repeat or not, among the size entries before it. That is a function of the log
// alone: whoever has read at least size entries decides as everybody else does,
// wherever he began.
//
// The list alone would not do, though Add moves what is repeated to its front: it
// holds the last size IDs that differ, and with repeats in between those reach
// further back than size entries, for him who began earlier. So each ID is kept with
// its place. What stands within the last size entries is always held, because there
// are at most size IDs in between.
//
// It is not safe for concurrent use.
type window struct {
	size uint64
	seen uint64                         // entries so far
	last *simplelru.LRU[string, uint64] // ID → the place of its last entry, counted from 1
}

func newWindow(size int) *window {
	last, err := simplelru.NewLRU[string, uint64](size, nil)
	if err != nil {
		panic(err) // size is over 0: Config was checked
	}
	return &window{size: uint64(size), last: last}
}

// repeat takes the next entry of the stream and reports whether it is a repeat. It
// copies id.
func (w *window) repeat(id string) bool {
	w.seen++
	if at, ok := w.last.Peek(id); ok {
		w.last.Add(id, w.seen) // the key that is there stays, and is copied already
		return w.seen-at <= w.size
	}
	w.last.Add(strings.Clone(id), w.seen)
	return false
}

// pass takes the next entry of the stream, of which the ID cannot be told.
func (w *window) pass() { w.seen++ }

// passAll takes a message that is no block, for as many entries as its header says:
// who looks for where to begin has read no more of it, and must not count otherwise.
func (w *window) passAll(entries int) { w.seen += uint64(entries) }
