package notification

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// A Cursor is a place in what a user gets from a Gateway: for each lane a
// sequence number up to which everything was taken, or filtered away. It is bound
// to the Gateway, to its epoch (the time since its start, its last Gap or its
// last stay at a Broker), and to the user; that of a Gateway with a Log to the
// Log's epoch instead, so that it holds at every Gateway of that Log. Cursors
// compare with ==; the zero Cursor is no place.
type Cursor struct {
	epoch  uint64
	user   uint64 // the key of the user's history; with a Log its Seal
	seqs   [NumPriorities]uint64
	sealed bool // with a Log
}

// cursorVersion, or sealedVersion with a Log, is the first byte of a Cursor's text
// form.
const (
	cursorVersion = 1
	sealedVersion = cursorVersion | 0x80
)

// String returns the text form: opaque, safe in URLs, at most 80 bytes, empty
// for the zero Cursor.
func (c Cursor) String() string {
	if c == (Cursor{}) {
		return ""
	}
	b := []byte{cursorVersion}
	if c.sealed {
		b[0] = sealedVersion
	}
	b = binary.LittleEndian.AppendUint64(b, c.epoch)
	b = binary.LittleEndian.AppendUint64(b, c.user)
	for _, n := range c.seqs {
		b = binary.AppendUvarint(b, n)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads what String wrote; anything else is ErrInvalid.
func ParseCursor(s string) (Cursor, error) {
	var c Cursor
	if s == "" {
		return c, nil
	}
	bad := func() (Cursor, error) {
		return Cursor{}, fmt.Errorf("%w: cursor %q", ErrInvalid, clip(s))
	}
	if len(s) > 80 {
		return bad()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 17 || b[0] != cursorVersion && b[0] != sealedVersion {
		return bad()
	}
	c.sealed = b[0] == sealedVersion
	c.epoch, c.user = binary.LittleEndian.Uint64(b[1:]), binary.LittleEndian.Uint64(b[9:])
	b = b[17:]
	for p := range c.seqs {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return bad()
		}
		c.seqs[p], b = v, b[n:]
	}
	if len(b) > 0 || c.String() != s { // one text for one cursor
		return bad()
	}
	return c, nil
}

// Covers reports whether c is at o or behind it in every lane: whoever has all
// that leads to c has all that leads to o. Cursors of different users, Gateways
// or epochs do not cover each other. (Those of a Gateway with a Log do not tell
// their user: only RegisterSession does.)
func (c Cursor) Covers(o Cursor) bool {
	if c.epoch != o.epoch || c.sealed != o.sealed || !c.sealed && c.user != o.user {
		return false
	}
	for p := range c.seqs {
		if c.seqs[p] < o.seqs[p] {
			return false
		}
	}
	return true
}

// MarshalText is String.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseCursor.
func (c *Cursor) UnmarshalText(b []byte) error {
	v, err := ParseCursor(string(b))
	if err == nil {
		*c = v
	}
	return err
}
