package notification

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// UnmarshalJSON reads what AppendJSON writes, with the keys in any order.
// Unknown keys are ignored, of equal ones the last counts, missing ones leave
// zero, null for a float is NaN. A document that is null changes nothing.
//
// An error wraps ErrInvalid and leaves n unchanged: what is not JSON, a value
// that does not fit its field, a message_type that is missing or unknown, a
// priority over P3, a payload that is missing or says it is of another type.
// The text names the key and tells where in b the mistake is, in bytes from 0.
// What Validate asks beyond that is left to Validate.
//
// n keeps nothing of b. ID and UserID share one allocation, Source and the
// payload's strings share another: strings.Clone keeps one of them alone.
func (n *Notification) UnmarshalJSON(b []byte) error {
	// The strings that are cut from s on the way are views of b too. b must not
	// change during the call, and none of them outlives it: own copies those that
	// n gets, and the text of an error is a copy.
	s := stringView(b)
	i := space(s, 0)
	if peek(s, i) != '{' {
		return readNull(s, i)
	}
	v, err := readNotification(s, i)
	if err == nil {
		*n = v
	}
	return err
}

// readNull reads a document that is no object. By convention null changes
// nothing; no other one is taken.
func readNull(s string, i int) error {
	end, err := skip(s, i, 0)
	if err == nil {
		err = readEnd(s, end)
	}
	if err == nil && s[i] != 'n' {
		err = fmt.Errorf("%w: notification is no object, at byte %d", ErrInvalid, i)
	}
	return err
}

// readEnd requires that nothing but white space is left.
func readEnd(s string, i int) error {
	if i = space(s, i); i < len(s) {
		return unexpected(s, i)
	}
	return nil
}

// The members outside the payload, in the order in which AppendJSON writes them.
const (
	headID = iota
	headType
	headUserID
	headPriority
	headTimestamp
	headSource
	headPayload
)

var (
	headKeys  = []string{`"message_id":`, `"message_type":`, `"user_id":`, `"priority":`, `"timestamp":`, `"source":`, `"payload":`}
	headKinds = [headPayload]kind{kindString, kindString, kindString, kindUint8, kindInt64, kindString}
)

// readNotification reads a document of which the object begins at s[i:].
func readNotification(s string, i int) (v Notification, err error) {
	start := i
	o := object{keys: headKeys, depth: 1}
	var typeName string
	var typ Type
	var unknown error
	var payload parsed
	for i++; ; {
		var k int
		if k, i, err = o.member(s, i); err != nil {
			return v, err
		}
		if k == noMember {
			break
		}
		end := 0
		switch k {
		case headID:
			v.ID, end = readString(s, i)
		case headType:
			typeName, end = readString(s, i)
			typ, unknown = ParseType(typeName)
		case headUserID:
			v.UserID, end = readString(s, i)
		case headPriority:
			var u uint64
			u, end = readUint(s, i, math.MaxUint8)
			v.Priority = Priority(u)
		case headTimestamp:
			v.Timestamp, end = readInt(s, i)
		case headSource:
			v.Source, end = readString(s, i)
		case headPayload:
			// A payload behind its type is read at once. One that cannot be
			// read, or not yet, is passed over and tried again when all members
			// are known: another type or another payload may follow.
			payload, end, _ = readPayload(s, i, typ)
		}
		if end == 0 || o.wrong != 0 {
			if end, err = o.pass(s, i, k, end); err != nil {
				return v, err
			}
		}
		i = end
	}
	// What is no JSON is said first, so that nobody looks for a member in it.
	if err := readEnd(s, i); err != nil {
		return v, err
	}
	switch at := &o.at; {
	case o.wrong&^(1<<headPayload) != 0: // the payload has its own turn, below
		k := bits.TrailingZeros(o.wrong)
		return v, misfit(s, at[k], headKeys[k], headKinds[k])
	case typeName == "":
		return v, fmt.Errorf("%w: message_type is missing, at byte %d", ErrInvalid, max(at[headType], start))
	case unknown != nil:
		return v, fmt.Errorf("message_type: %w, at byte %d", unknown, at[headType])
	case v.Priority >= NumPriorities:
		return v, fmt.Errorf("%w: priority %d is over %d, at byte %d", ErrInvalid, uint8(v.Priority), uint8(P3), at[headPriority])
	case at[headPayload] == 0:
		return v, fmt.Errorf("%w: payload is missing, at byte %d", ErrInvalid, start)
	case payload.typ != typ:
		if payload, _, err = readPayload(s, at[headPayload], typ); err != nil {
			return v, err
		}
	}
	v.own(payload)
	return v, nil
}

// parsed is a payload that was read. Its strings are views of the document.
type parsed struct {
	typ     Type    // zero: there is none
	payload Payload // nobody else has it yet
}

// readPayload reads the value at s[i:] as a payload of type t, which may be zero
// for no type, and returns the index behind it.
func readPayload(s string, i int, t Type) (v parsed, end int, err error) {
	switch {
	case t == 0:
		return parsed{}, 0, nil
	case peek(s, i) == 'n':
		return parsed{}, 0, fmt.Errorf("%w: payload is missing, at byte %d", ErrInvalid, i)
	case peek(s, i) != '{':
		return parsed{}, 0, fmt.Errorf("%w: payload is no object, at byte %d", ErrInvalid, i)
	}
	l := &layouts[t]
	o := object{keys: l.keys, depth: 2}
	var said string
	payload, p := newPayload(t)
	for i++; ; {
		var k int
		if k, i, err = o.member(s, i); err != nil {
			return parsed{}, 0, err
		}
		if k == noMember {
			break
		}
		end := 0
		if k == 0 {
			said, end = readString(s, i)
		} else if k < len(o.keys) {
			end = l.fields[k-1].readJSON(p, s, i)
		}
		if end == 0 || o.wrong != 0 {
			if end, err = o.pass(s, i, k, end); err != nil {
				return parsed{}, 0, err
			}
		}
		i = end
	}
	if o.wrong != 0 {
		k := bits.TrailingZeros(o.wrong)
		kind := kindString
		if k > 0 {
			kind = l.fields[k-1].kind
		}
		return parsed{}, 0, misfit(s, o.at[k], o.keys[k], kind)
	}
	if name := catalog[t].name; o.at[0] != 0 && s[o.at[0]] != 'n' && said != name {
		return parsed{}, 0, fmt.Errorf("%w: payload is of type %q under message_type %q, at byte %d", ErrInvalid, clip(said), name, o.at[0])
	}
	return parsed{t, payload}, i, nil
}

// own gives n its payload and, in place of views of the document, strings in two
// allocations. The first is the one that lives on: the ID in the dedup window,
// which must not keep a long text alive.
func (n *Notification) own(v parsed) {
	l, p := &layouts[v.typ], dataOf(v.payload)
	var ids, texts strings.Builder
	ids.Grow(len(n.ID) + len(n.UserID))
	ids.WriteString(n.ID)
	ids.WriteString(n.UserID)
	n.ID, n.UserID = ids.String()[:len(n.ID)], ids.String()[len(n.ID):]
	texts.Grow(len(n.Source) + int(l.textLen(p)))
	texts.WriteString(n.Source)
	n.Source = texts.String()
	l.own(p, &texts)
	n.Payload = v.payload
}

// An object is what is known of an object whose members are being read.
type object struct {
	keys  []string // of the members that are wanted: quoted, with the colon
	depth int      // how many objects are open, this one included
	more  bool     // there was a member before
	next  int      // the likely next: the one behind that which was last

	// Of each wanted member's last value: where it begins, zero for none, and
	// whether it does not fit. That is no error before the object ends, because
	// another one may follow.
	at    [maxMembers]int
	wrong uint
}

// maxMembers bounds the members of an object that can be wanted. No payload has
// more, see add.
const maxMembers = 16

// noMember is, in place of a member's number, the end of the object.
const noMember = -1

// member goes from s[i:], which is behind the opening brace or a value, to the
// next member's value. It returns the member's number, which is noMember at the
// end of the object and len(o.keys) for one that is not wanted, and the index
// of its value or, at the end, behind the brace.
//
// The keys that are wanted are expected in their order, which is that of
// AppendJSON and of most other encoders: that takes one comparison. Any other
// order is as good, and slower.
func (o *object) member(s string, i int) (k, value int, err error) {
	i = space(s, i)
	switch c := peek(s, i); {
	case c == '}':
		return noMember, i + 1, nil
	case !o.more:
		o.more = true
	case c == ',':
		i = space(s, i+1)
	default:
		return 0, 0, unexpected(s, i)
	}
	if k = o.next; k < len(o.keys) && strings.HasPrefix(s[i:], o.keys[k]) {
		value = space(s, i+len(o.keys[k]))
	} else if k, value, err = o.find(s, i); k == len(o.keys) || err != nil {
		return k, value, err
	}
	o.next, o.at[k] = k+1, value
	return k, value, nil
}

// find is member for any key, which begins at s[i:].
func (o *object) find(s string, i int) (k, value int, err error) {
	raw, value, err := keyEnd(s, i)
	if err != nil {
		return 0, 0, err
	}
	name := raw
	if strings.IndexByte(raw, '\\') >= 0 {
		name = unquote(raw)
	}
	for k, key := range o.keys {
		if key[1:len(key)-2] == name {
			return k, value, nil
		}
	}
	return len(o.keys), value, nil
}

// pass notes whether the value at s[i:] of member k fits, end being zero if it
// could not be read, and returns the index behind it. While everything fits there
// is nothing to note.
func (o *object) pass(s string, i, k, end int) (int, error) {
	if k < len(o.keys) {
		o.wrong &^= 1 << k
		if end == 0 && peek(s, i) != 'n' {
			o.wrong |= 1 << k
		}
	}
	if end != 0 {
		return end, nil
	}
	return skip(s, i, o.depth)
}

// misfit says that the value at s[at:], which is valid JSON, is none of this kind.
func misfit(s string, at int, key string, k kind) error {
	end, _ := skip(s, at, 0)
	return fmt.Errorf("%w: %s: %s is no %s, at byte %d", ErrInvalid, key[1:len(key)-2], clip(s[at:end]), kindNames[k], at)
}

var kindNames = [...]string{kindString: "string", kindFloat64: "float64", kindInt64: "int64", kindUint32: "uint32", kindUint8: "uint8"}
