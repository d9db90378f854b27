package natslog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
)

// BLOCK.md shows a block byte by byte.
const (
	maxEntries = 1024    // in a block: an entry's number has 10 bits for its place
	maxArchive = 2 << 20 // bytes, as ARCHIVE.md says

	headerMsgID   = nats.MsgIdHdr
	headerEntries = "Notification-Entries" // how many archives there are
	headerLayouts = "Notification-Layouts" // of types that a reader may not know: code=bytes before the ID

	// Where an archive has what, as ARCHIVE.md says.
	archiveSize   = 4  // uint32: bytes in all
	archiveID     = 12 // uint16: length of ID
	archiveUserID = 14 // uint16: length of UserID
	archiveType   = 24 // uint8
	archiveHeader = 26
)

// errBlock: a message of the log is no block.
var errBlock = errors.New("natslog: not a block")

// A block is one message of a stream: archives, end to end. It is a value, and
// aliases the message's data.
type block struct {
	seq     uint64    // in its stream; 0 before it is stored
	stored  time.Time // by the server's clock
	count   int       // entries
	data    []byte    // the archives
	layouts string    // the header of that name
}

// number returns the number in the log of entry i of the block with this sequence.
func number(seq uint64, i int) uint64 { return seq*maxEntries + uint64(i) }

// newBlockMsg returns the message that stores count archives, data, as a block.
func newBlockMsg(subject, msgID string, count int, data []byte) *nats.Msg {
	return &nats.Msg{
		Subject: subject,
		Header:  nats.Header{headerMsgID: {msgID}, headerEntries: {strconv.Itoa(count)}},
		Data:    data,
	}
}

// openBlock opens a message of a stream. It checks that data is as many archives as
// the header says, end to end, and leaves it to entries what is in them. An error
// wraps errBlock. data must not change as long as the block, or an archive from
// it, is in use.
func openBlock(seq uint64, stored time.Time, h nats.Header, data []byte) (block, error) {
	b := block{seq: seq, stored: stored, data: data, layouts: h.Get(headerLayouts)}
	var err error
	if b.count, err = entryCount(h); err != nil {
		return block{}, err
	}
	rest := data
	for i := range b.count {
		n, err := nextArchive(rest)
		if err != nil {
			return block{}, fmt.Errorf("%w: entry %d of %d: %w", errBlock, i, b.count, err)
		}
		rest = rest[n:]
	}
	if len(rest) > 0 {
		return block{}, fmt.Errorf("%w: %d bytes behind the last of %d entries", errBlock, len(rest), b.count)
	}
	return b, nil
}

// entryCount returns how many entries a block with this header has. An error wraps
// errBlock.
func entryCount(h nats.Header) (int, error) {
	text := h.Get(headerEntries)
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n > maxEntries {
		return 0, fmt.Errorf("%w: its header %s is %q", errBlock, headerEntries, text)
	}
	return int(n), nil
}

// nextArchive returns how many bytes the archive has that b begins with, whatever
// is in it.
func nextArchive(b []byte) (int, error) {
	if len(b) < archiveHeader {
		return 0, fmt.Errorf("%d bytes are less than the header of an archive", len(b))
	}
	if string(b[:3]) != "QXN" {
		return 0, fmt.Errorf("it begins with %q", b[:3])
	}
	n := binary.LittleEndian.Uint32(b[archiveSize:])
	if n < archiveHeader || n > maxArchive || int(n) > len(b) {
		return 0, fmt.Errorf("its size is %d, and %d bytes are left", n, len(b))
	}
	return int(n), nil
}

// An entry is one archive of a block.
type entry struct {
	archive notification.Archive // zero if err is set
	user    string               // its UserID, or AllUsers if err is set and it does not say whose it is; aliases the block
	at      int                  // where its archive begins in the block's data
	err     error                // wraps notification.ErrCorrupt: this reader does not know its type, say
}

// entries yields the block's entries with their numbers in the log.
func (b block) entries() iter.Seq2[uint64, entry] {
	return func(yield func(uint64, entry) bool) {
		at := 0
		for i := range b.count {
			e, next := b.entry(at)
			if !yield(number(b.seq, i), e) {
				return
			}
			at = next
		}
	}
}

// entry returns the one whose archive begins at an offset of data, and where the next
// one does.
func (b block) entry(at int) (e entry, next int) {
	next = at + int(binary.LittleEndian.Uint32(b.data[at+archiveSize:])) // openBlock checked it
	data := b.data[at:next:next]
	a, err := notification.OpenArchive(data)
	if err != nil {
		return entry{user: b.userOf(data), at: at, err: err}, next
	}
	return entry{archive: a, user: a.UserID(), at: at}, next
}

// userOf returns whose archive it is that notification does not open. The strings
// stand behind the payload's fields, and how many bytes those have depends on the
// type: of one that is new, the publisher says so in the header. Without it the
// archive may be anybody's.
func (b block) userOf(data []byte) string {
	for layout := range strings.SplitSeq(b.layouts, ",") {
		code, prefix, _ := strings.Cut(strings.TrimSpace(layout), "=")
		t, err1 := strconv.ParseUint(code, 10, 8)
		at, err2 := strconv.ParseUint(prefix, 10, 16)
		if err1 != nil || err2 != nil || byte(t) != data[archiveType] {
			continue
		}
		from := int(at) + int(binary.LittleEndian.Uint16(data[archiveID:]))
		to := from + int(binary.LittleEndian.Uint16(data[archiveUserID:]))
		if from < to && to <= len(data) {
			return string(data[from:to])
		}
	}
	return notification.AllUsers
}
