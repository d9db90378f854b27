package notification

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// A memoryLog is a log in memory: publishers append to it, and any number of
// edges read it, each a Gateway with its Log and its feeder. It keeps the seam
// honest and shows what a Log is asked for; package natslog has one in earnest.
//
// As there, what is published together in a lane is a block, and a number is that
// of the block times blockSize, and the place in it: numbers ascend, with holes.
type memoryLog struct {
	mu      sync.Mutex
	epoch   uint64                                     // guarded by mu
	stored  uint64                                     // guarded by mu: blocks so far, whatever became of them
	lanes   [NumPriorities]memoryLane                  // guarded by mu
	changed chan struct{}                              // guarded by mu: closed when there is more to read
	book    func(epoch uint64, p Priority, e logEntry) // immutable: told of each entry, with mu held; nil: nobody
}

type memoryLane struct {
	entries []logEntry
	block   uint64   // the last
	gone    logEntry // the last that is no longer kept
}

type logEntry struct {
	number uint64
	stored uint64 // which block it came in: that tells it from another that had its number
	n      *Notification
}

const blockSize = 1024

func newMemoryLog() *memoryLog { return &memoryLog{epoch: 1, changed: make(chan struct{})} }

// publish appends notifications, those of each lane as one block.
func (l *memoryLog) publish(notes ...*Notification) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stored++
	var n [NumPriorities]uint64
	for _, note := range notes {
		p := note.Priority
		lane := &l.lanes[p]
		if n[p] == 0 {
			lane.block++
		}
		e := logEntry{number: lane.block*blockSize + n[p], stored: l.stored, n: note}
		lane.entries = append(lane.entries, e)
		n[p]++
		if l.book != nil {
			l.book(l.epoch, p, e)
		}
	}
	l.change()
}

// change wakes the feeders. mu is held.
func (l *memoryLog) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns what is closed when there is more to read than there is now.
func (l *memoryLog) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// ends returns the last number of each lane.
func (l *memoryLog) ends() (numbers [NumPriorities]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range numbers {
		numbers[p] = l.lanes[p].end()
	}
	return numbers
}

func (l *memoryLane) end() uint64 {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].number
	}
	return l.gone.number
}

// place returns the last entry up to this number, the zero one if there never was
// any. It reports false if that is not known any more.
func (l *memoryLane) place(number uint64) (e logEntry, ok bool) {
	if n := len(l.entries) - len(l.behind(number)); n > 0 {
		return l.entries[n-1], true
	}
	return l.gone, number >= l.gone.number
}

// behind returns the entries with a number over this.
func (l *memoryLane) behind(number uint64) []logEntry {
	return l.entries[sort.Search(len(l.entries), func(i int) bool { return l.entries[i].number > number }):]
}

// trim removes the oldest of a lane, all but keep: its retention is over.
func (l *memoryLog) trim(p Priority, keep int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lane := &l.lanes[p]
	if n := len(lane.entries) - keep; n > 0 {
		lane.gone = lane.entries[n-1]
		lane.entries = slices.Clone(lane.entries[n:])
	}
}

// lose removes the last block of a lane, whose number will be used again: a disk
// has lost its end. A block of which something is trimmed is not there to be lost.
func (l *memoryLog) lose(p Priority) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lane := &l.lanes[p]
	if lane.gone.number/blockSize == lane.block {
		return
	}
	lane.entries = slices.DeleteFunc(lane.entries, func(e logEntry) bool { return e.number/blockSize == lane.block })
	lane.block--
}

// renew begins anew with nothing in the log, under other numbers.
func (l *memoryLog) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.lanes = [NumPriorities]memoryLane{}
	l.change()
}

// A memoryEdge is the Log of one Gateway, and its feeder.
type memoryEdge struct {
	// immutable
	log *memoryLog
	g   *Gateway

	mu    sync.Mutex
	epoch uint64                // guarded by mu
	at    [NumPriorities]uint64 // guarded by mu
	from  [NumPriorities]uint64 // guarded by mu: it cannot say what came up to this

	sent [NumPriorities]atomic.Uint64 // into the inbox
	asks atomic.Uint64                // calls of Missed

	// What a test wants to happen at that moment; nil: nothing.
	onAt     func()                          // At has read, and is about to return
	onFeed   func()                          // the feeder is about to read
	onRaised func(p Priority)                // a piece is in At, and the Gateway has not been asked for it
	onMissed func(ctx context.Context) error // Missed has its answer; an error is the answer then
}

// newMemoryEdge makes a Gateway that reads the log from its present end.
func newMemoryEdge(t testing.TB, l *memoryLog, id string, cfg GatewayConfig) *memoryEdge {
	t.Helper()
	e := &memoryEdge{log: l}
	e.adopt()
	cfg.Log = e
	e.g = newGateway(t, id, keeping(cfg))
	return e
}

// adopt goes to the end of the log's present epoch.
func (e *memoryEdge) adopt() {
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch = e.log.epoch
	for p := range e.at {
		e.at[p], e.from[p] = e.log.lanes[p].end(), 0
	}
}

func (e *memoryEdge) Epoch() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.epoch
}

func (e *memoryEdge) At() (at [NumPriorities]uint64) {
	e.mu.Lock()
	at = e.at
	e.mu.Unlock()
	if e.onAt != nil {
		e.onAt()
	}
	return at
}

func (e *memoryEdge) raise(p Priority, number uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at[p] = number
}

// state returns what Missed and Seal go by.
func (e *memoryEdge) state() (epoch uint64, at, from [NumPriorities]uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.epoch, e.at, e.from
}

func (e *memoryEdge) Missed(ctx context.Context, userID string, channels []Channel, after, upTo [NumPriorities]uint64, most int) ([]*Message, error) {
	e.asks.Add(1)
	list, err := e.missed(userID, channels, after, upTo, most)
	if e.onMissed != nil {
		err = errors.Join(err, e.onMissed(ctx))
	}
	return list, err
}

func (e *memoryEdge) missed(userID string, channels []Channel, after, upTo [NumPriorities]uint64, most int) (list []*Message, err error) {
	epoch, _, from := e.state()
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	if epoch != e.log.epoch {
		return nil, errors.New("the log begins anew")
	}
	for p := range after {
		lane := &e.log.lanes[p]
		switch {
		case after[p] > lane.end():
			return nil, fmt.Errorf("%w: P%d ends at %d, before %d", ErrCursorGone, p, lane.end(), after[p])
		case after[p] < upTo[p] && after[p] < max(lane.gone.number, from[p]):
			return nil, fmt.Errorf("%w: P%d begins behind %d, after %d", ErrCursorGone, p, max(lane.gone.number, from[p]), after[p])
		}
		for _, entry := range lane.behind(after[p]) {
			switch n := entry.n; {
			case entry.number > upTo[p] || len(list) == most:
			case n.UserID != userID && n.UserID != AllUsers:
			case channels == nil || slices.Contains(channels, n.Payload.Type().Channel()):
				list = append(list, NewMessageAt(n, entry.number))
			}
		}
	}
	return list, nil
}

// Seal hashes the user and what is at the place or was the last before it.
func (e *memoryEdge) Seal(userID string, numbers [NumPriorities]uint64) (uint64, bool) {
	epoch, at, _ := e.state()
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	h := fnv.New64a()
	_, _ = h.Write([]byte(userID))
	for p, number := range numbers {
		entry, ok := e.log.lanes[p].place(number)
		if !ok || epoch != e.log.epoch || number > at[p] {
			return 0, false
		}
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, entry.stored))
	}
	return h.Sum64(), true
}

// pieceSize is how many entries the feeder takes at a time.
const pieceSize = 16

// feed feeds the next piece of each lane and reports whether there was one. It
// waits while the inbox is full, until quit.
func (e *memoryEdge) feed(quit <-chan struct{}) (more bool) {
	if e.onFeed != nil {
		e.onFeed()
	}
	for p := range NumPriorities {
		piece, gone, ok := e.read(Priority(p))
		switch {
		case !ok:
			e.adopt()
			e.g.Gap()
			return true
		case gone > 0: // the feeder was too slow
			e.raise(Priority(p), gone)
			e.g.Gap()
			more = true
		case len(piece) > 0:
			e.feedPiece(Priority(p), piece, quit)
			more = true
		}
	}
	return more
}

// read returns what is next in a lane, or up to where that is gone. It reports
// false if the log has begun anew.
func (e *memoryEdge) read(p Priority) (piece []logEntry, gone uint64, ok bool) {
	epoch, at, _ := e.state()
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	lane := &e.log.lanes[p]
	if epoch != e.log.epoch {
		return nil, 0, false
	}
	if lane.gone.number > at[p] {
		return nil, lane.gone.number, true
	}
	piece = lane.behind(at[p])
	return slices.Clone(piece[:min(len(piece), pieceSize)]), 0, true
}

func (e *memoryEdge) feedPiece(p Priority, piece []logEntry, quit <-chan struct{}) {
	last := piece[len(piece)-1].number
	e.raise(p, last) // Missed finds it: it is in the log
	if e.onRaised != nil {
		e.onRaised(p)
	}
	held := false
	for _, entry := range piece {
		held = e.g.Holds(entry.n.UserID)
		if held && !e.send(p, NewMessageAt(entry.n, entry.number), quit) {
			return // nothing may come behind what is missing
		}
	}
	if !held { // so that the cursors of all move on
		e.send(p, NewMessageAt(nil, last), quit)
	}
}

// send reports false if quit came first.
func (e *memoryEdge) send(p Priority, m *Message, quit <-chan struct{}) bool {
	select {
	case e.g.Inbox()[p] <- m:
		e.sent[p].Add(1)
		return true
	case <-quit:
		return false
	}
}

// catchUp feeds all that there is.
func (e *memoryEdge) catchUp() {
	for e.feed(nil) {
	}
}

// run feeds until quit.
func (e *memoryEdge) run(quit <-chan struct{}) {
	for {
		changed := e.log.wait()
		for e.feed(quit) {
			select {
			case <-quit:
				return
			default:
			}
		}
		select {
		case <-changed:
		case <-quit:
			return
		}
	}
}

// conserved requires that all that was fed was counted, at rest.
func (e *memoryEdge) conserved(t testing.TB) {
	t.Helper()
	balanced(t, e.g)
	for p, l := range e.g.Stats().Lanes {
		require.Equal(t, e.sent[p].Load(), l.Received+l.Invalid+l.Discarded+uint64(len(e.g.inbox[p])), "P%d: sent = Received + Invalid + Discarded + what the inbox holds", p)
	}
}
