package notification

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
)

// An archive is a header, the payload's fields, then all strings one behind
// the other; ARCHIVE.md shows it byte by byte. Its strings have lengths and no
// offsets, so there is nothing that could overlap or leave a hole, and
// checking it is adding the lengths up.
const (
	archiveVersion = 1
	archiveMagic   = 'Q' | 'X'<<8 | 'N'<<16 | archiveVersion<<24

	// Where the header has what.
	archiveSize      = 4  // uint32: bytes in all
	archiveSource    = 8  // uint32: length of Source
	archiveID        = 12 // uint16: length of ID
	archiveUserID    = 14 // uint16: length of UserID
	archiveTimestamp = 16 // int64
	archiveType      = 24 // uint8
	archivePriority  = 25 // uint8
	archiveHeader    = 26

	// maxArchive bounds an archive, so that whoever reads them from a stream
	// knows after eight bytes whether to go on. That of a valid notification
	// is smaller: maxText, and some hundred bytes for all else.
	maxArchive = 2 << 20
)

// AppendBinary appends n as an archive, of at most 2 MiB, and returns the longer
// slice; it allocates only if b has no room. The error wraps ErrInvalid if n is
// not valid (see Validate), and b is returned as it was.
func (n *Notification) AppendBinary(b []byte) ([]byte, error) {
	t, text, err := n.measure()
	if err != nil {
		return b, err
	}
	l := &layouts[t]
	p := dataOf(n.Payload)
	size := l.prefix + len(n.ID) + len(n.UserID) + int(text) // under maxArchive: measure bounds all of it
	b = slices.Grow(b, size)
	d := b[len(b) : len(b)+size]
	binary.LittleEndian.PutUint32(d, archiveMagic)
	binary.LittleEndian.PutUint32(d[archiveSize:], uint32(size))
	binary.LittleEndian.PutUint32(d[archiveSource:], uint32(len(n.Source)))
	binary.LittleEndian.PutUint16(d[archiveID:], uint16(len(n.ID)))
	binary.LittleEndian.PutUint16(d[archiveUserID:], uint16(len(n.UserID)))
	binary.LittleEndian.PutUint64(d[archiveTimestamp:], uint64(n.Timestamp))
	d[archiveType] = byte(t)
	d[archivePriority] = byte(n.Priority)
	end := l.prefix
	end += copy(d[end:], n.ID)
	end += copy(d[end:], n.UserID)
	end += copy(d[end:], n.Source)
	l.store(d, end, p)
	return b[:len(b)+size], nil
}

// MarshalBinary returns what AppendBinary appends.
func (n *Notification) MarshalBinary() ([]byte, error) { return n.AppendBinary(nil) }

// UnmarshalBinary reads an archive into n, which keeps nothing of b. An error
// wraps ErrCorrupt and leaves n unchanged.
func (n *Notification) UnmarshalBinary(b []byte) error {
	a, err := OpenArchive(b)
	if err != nil {
		return err
	}
	*n = *a.Notification()
	return nil
}

// An Archive reads an archive in place, without allocating. It was checked as
// a whole by OpenArchive, so nothing can go wrong later. The zero Archive is
// empty: of no type.
//
// The strings that it returns lie in the buffer given to OpenArchive and are
// good while that is left unchanged; Notification returns a copy.
type Archive struct {
	data                string // the archive; aliases the buffer
	endID, endUser, end uint32 // where ID, UserID and Source end in data
	typ                 Type
}

// OpenArchive checks that b is one whole archive, nothing before it and
// nothing behind, of a notification that is valid, and opens it in place. An
// error wraps ErrCorrupt and says what is wrong.
//
// Archives may follow each other in a stream: bytes 4 to 7 are the size of the
// whole, little-endian, and one over 2 MiB is no archive.
//
// The Archive aliases b: b must not change as long as the Archive, or a string
// from it or from PayloadAs, is in use, and is kept from the garbage collector
// for so long. Whoever reuses b takes a copy out first: Archive.Notification,
// or strings.Clone for a single string.
func OpenArchive(b []byte) (Archive, error) {
	if len(b) < archiveHeader {
		return Archive{}, corrupt("%d bytes are less than a header, %d", len(b), archiveHeader)
	}
	// Nobody writes to b: that is the rule above, which the caller keeps. If it
	// is broken strings change, but each read stays within them, being checked
	// once more.
	s := stringView(b)
	if le32(s, 0) != archiveMagic {
		if le32(s, 0)<<8 != archiveMagic<<8&math.MaxUint32 {
			return Archive{}, corrupt("it begins with %q", s[:3])
		}
		return Archive{}, corrupt("version %d is unknown, this is version %d", s[3], archiveVersion)
	}
	size := le32(s, archiveSize)
	if size > maxArchive {
		return Archive{}, corrupt("a size of %d bytes is over %d", size, maxArchive)
	}
	if uint64(size) != uint64(len(s)) {
		return Archive{}, corrupt("%d bytes where the header says %d", len(s), size)
	}
	t := Type(s[archiveType])
	if !t.valid() {
		return Archive{}, corrupt("type %d is unknown", uint8(t))
	}
	if s[archivePriority] >= NumPriorities {
		return Archive{}, corrupt("priority %d is over %d", s[archivePriority], uint8(P3))
	}
	l := &layouts[t]
	if len(s) < l.prefix {
		return Archive{}, corrupt("%d bytes are less than a %s, %d", len(s), t, l.prefix)
	}
	id, user := uint64(s[archiveID])|uint64(s[archiveID+1])<<8, uint64(s[archiveUserID])|uint64(s[archiveUserID+1])<<8
	end := uint64(l.prefix) + id + user + uint64(le32(s, archiveSource))
	all := end // cannot overflow: it is the sum of a few numbers of 32 bits
	for _, at := range l.lengths {
		all += uint64(le32(s, int(at)))
	}
	if all != uint64(len(s)) {
		return Archive{}, corrupt("%d bytes where the lengths of its strings make %d", len(s), all)
	}
	a := Archive{data: s, endID: uint32(l.prefix) + uint32(id), endUser: uint32(l.prefix) + uint32(id) + uint32(user), end: uint32(end), typ: t}
	switch text := all - uint64(l.prefix) - id - user; {
	case text > maxText:
		return Archive{}, corrupt("Source and the payload's strings have %d bytes together, over %d", text, maxText)
	case id-1 >= maxIDLen:
		return Archive{}, corrupt("ID has %d bytes, not 1 to %d", id, maxIDLen)
	case user-1 >= maxIDLen:
		return Archive{}, corrupt("UserID has %d bytes, not 1 to %d", user, maxIDLen)
	case a.UserID() == AllUsers && t.Channel() != ChannelSystem:
		return Archive{}, corrupt("UserID is AllUsers with a %s", t)
	}
	return a, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// ID returns Notification.ID; it aliases the buffer.
func (a Archive) ID() string { return a.data[layouts[a.typ].prefix:a.endID] }

// Type returns the payload's type.
func (a Archive) Type() Type { return a.typ }

// UserID returns Notification.UserID; it aliases the buffer.
func (a Archive) UserID() string { return a.data[a.endID:a.endUser] }

// Priority returns Notification.Priority.
func (a Archive) Priority() Priority {
	if a.typ == 0 {
		return 0
	}
	return Priority(a.data[archivePriority])
}

// Timestamp returns Notification.Timestamp, in Unix nanoseconds.
func (a Archive) Timestamp() int64 {
	if a.typ == 0 {
		return 0
	}
	return int64(le64(a.data, archiveTimestamp))
}

// Source returns Notification.Source; it aliases the buffer.
func (a Archive) Source() string { return a.data[a.endUser:a.end] }

// PayloadAs returns the payload of a as a value, without allocating, or an
// error that wraps ErrInvalid if T is not the struct of a.Type().
//
// The strings of the value alias the buffer given to OpenArchive and are good
// while that is left unchanged; strings.Clone keeps one for longer.
func PayloadAs[T Payload](a Archive) (T, error) {
	var none T
	if t := typeOf(none); t == 0 || t != a.typ {
		return none, fmt.Errorf("%w: the archive holds a %s, not a %s", ErrInvalid, a.typ, reflect.TypeFor[T]())
	}
	return loadAs[T](&layouts[a.typ], a.data, a.data[a.end:]), nil
}

// A Number is what a field of a payload is that is no string.
type Number interface {
	float64 | int64 | uint32 | uint8
}

// A NumberField reads one number of the payloads of one type where it lies in
// an archive, without the rest of the payload and without allocating. It is
// made once, when a program starts, and holds the number's offset. It is
// comparable, and safe for concurrent use. The zero NumberField is in no archive.
type NumberField[V Number] struct {
	typ Type
	at  uint32
}

// NumberFieldOf returns the field of the payload struct P that has this name in
// JSON and is a V: NumberFieldOf[MarginCall, float64]("current_margin"). An error
// wraps ErrInvalid: P is none of the payload structs, has no such field, or has
// one that is no V.
func NumberFieldOf[P Payload, V Number](name string) (NumberField[V], error) {
	typ, at, err := findField[P, V](name)
	return NumberField[V]{typ, at}, err
}

// In returns the field's value in a; false if a holds another type, or none, as the
// zero Archive does.
func (f NumberField[V]) In(a Archive) (v V, ok bool) {
	if f.typ != a.typ || f.typ == 0 {
		return v, false
	}
	// The compiler copies no bytes here, because nothing writes to them or keeps
	// them. It inlines all of this, and then, knowing V, leaves nothing of the
	// switch but one load. A case for strings would be too much for it to inline,
	// and a call takes twice the time: hence StringField.
	b := []byte(a.data[f.at:])
	switch p := any(&v).(type) {
	case *float64:
		*p = math.Float64frombits(binary.LittleEndian.Uint64(b))
	case *int64:
		*p = int64(binary.LittleEndian.Uint64(b))
	case *uint32:
		*p = binary.LittleEndian.Uint32(b)
	case *uint8:
		*p = b[0]
	}
	return v, true
}

// A StringField is what a NumberField is, for a string. A string has no fixed
// offset: it is found by adding up the lengths of those before it.
type StringField struct {
	typ   Type
	index uint8 // among the strings of the payload
}

// StringFieldOf returns the string of the payload struct P that has this name in
// JSON: StringFieldOf[MarginCall]("user_id"). An error wraps ErrInvalid: P is none
// of the payload structs, has no such field, or has one that is no string.
func StringFieldOf[P Payload](name string) (StringField, error) {
	typ, at, err := findField[P, string](name)
	if err != nil {
		return StringField{}, err
	}
	return StringField{typ, uint8(slices.Index(layouts[typ].lengths, at))}, nil
}

// In returns the field's value in a; false if a holds another type, or none, as the
// zero Archive does. The string aliases the buffer given to OpenArchive and is good
// while that is left unchanged.
func (f StringField) In(a Archive) (string, bool) {
	if f.typ != a.typ || f.typ == 0 {
		return "", false
	}
	return f.cut(a.data, a.end), true
}

// cut returns the field's string of an archive whose Source ends at end. A buffer
// that changed after OpenArchive has lengths that do not fit; they are clipped.
func (f StringField) cut(archive string, end uint32) string {
	lengths := layouts[f.typ].lengths
	start := uint64(end)
	for _, at := range lengths[:f.index] {
		start += uint64(le32(archive, int(at)))
	}
	rest := archive[min(start, uint64(len(archive))):]
	return rest[:min(uint(le32(archive, int(lengths[f.index]))), uint(len(rest)))]
}

// findField returns where an archive has the field of P with this name in JSON,
// or a string's length, if it is a V.
func findField[P Payload, V Number | string](name string) (Type, uint32, error) {
	var none P
	t := typeOf(none)
	if t == 0 {
		return 0, 0, fmt.Errorf("%w: %s is none of the payload structs", ErrInvalid, reflect.TypeFor[P]())
	}
	l := &layouts[t]
	for i, f := range l.fields {
		sf := l.payload.Field(i)
		if sf.Tag.Get("json") != name {
			continue
		}
		if sf.Type.Kind() != reflect.TypeFor[V]().Kind() {
			return 0, 0, fmt.Errorf("%w: %s.%s is a %s, not a %s", ErrInvalid, t, name, sf.Type, reflect.TypeFor[V]())
		}
		return t, f.at, nil
	}
	return 0, 0, fmt.Errorf("%w: a %s has no field %q", ErrInvalid, t, clip(name))
}

// Notification returns a copy that owns its memory.
func (a Archive) Notification() *Notification {
	if a.typ == 0 {
		return &Notification{}
	}
	// Two copies hold all strings. The first is the one that lives on: the ID
	// in the dedup window, which must not keep a long text alive.
	l := &layouts[a.typ]
	ids, texts := strings.Clone(a.data[l.prefix:a.endUser]), strings.Clone(a.data[a.endUser:])
	id, source := a.endID-uint32(l.prefix), a.end-a.endUser
	payload, p := newPayload(a.typ)
	l.load(p, a.data, texts[source:])
	return &Notification{
		ID:        ids[:id],
		UserID:    ids[id:],
		Priority:  a.Priority(),
		Payload:   payload,
		Timestamp: a.Timestamp(),
		Source:    texts[:source],
	}
}
