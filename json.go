package notification

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"sync"
	"unicode/utf8"
)

// AppendJSON appends n as one JSON object and returns the longer slice; it
// allocates only if b has no room. The result is valid JSON and valid UTF-8
// whatever n holds: bytes that are not UTF-8 become U+FFFD. It is byte for byte
// what encoding/json of Go 1.27 makes of the same values, except that NaN and
// the infinities, which that refuses, are null. A payload that is none of the
// payload structs is null, under an empty message_type; a nil n is null.
func (n *Notification) AppendJSON(b []byte) []byte {
	if n == nil {
		return append(b, "null"...)
	}
	l := &layouts[typeOf(n.Payload)]
	b = append(b, `{"message_id":"`...)
	b = appendString(b, n.ID)
	b = append(b, l.afterID...)
	b = appendString(b, n.UserID)
	b = append(b, `,"priority":`...)
	b = appendUint(b, uint64(n.Priority))
	b = append(b, `,"timestamp":`...)
	b = appendInt(b, n.Timestamp)
	b = append(b, `,"source":"`...)
	b = appendString(b, n.Source)
	b = append(b, l.afterSource...)
	b = l.appendJSON(b, dataOf(n.Payload))
	return append(b, l.end...)
}

// MarshalJSON returns what AppendJSON appends. It is a method of the value, so
// that encoding/json finds it wherever a Notification stands.
func (n Notification) MarshalJSON() ([]byte, error) { return marshalJSON(&n), nil }

// UnmarshalJSON reads what AppendJSON writes. Unknown keys are ignored,
// missing ones leave zero, null for a float is NaN. An error wraps ErrInvalid
// and leaves n unchanged: what is not JSON, a value that does not fit its
// field, a message_type that is missing or unknown, a priority over P3, a
// payload that is missing or says it is of another type. What Validate asks
// beyond that is left to Validate.
func (n *Notification) UnmarshalJSON(b []byte) error {
	if !json.Valid(b) {
		return fmt.Errorf("%w: %w", ErrInvalid, json.Unmarshal(b, new(any)))
	}
	b = bytes.TrimSpace(b)
	if string(b) == "null" {
		return nil // by convention changes nothing
	}
	var v Notification
	var typ string
	var head [len(headNames)][]byte
	if err := cmp.Or(
		members("notification", b, headNames[:], head[:]),
		decode("message_id", head[0], &v.ID),
		decode("message_type", head[1], &typ),
		decode("user_id", head[2], &v.UserID),
		decode("priority", head[3], (*uint8)(&v.Priority)),
		decode("timestamp", head[4], &v.Timestamp),
		decode("source", head[5], &v.Source),
	); err != nil {
		return err
	}
	t, err := ParseType(typ)
	switch payload := head[6]; {
	case typ == "":
		return fmt.Errorf("%w: message_type is missing", ErrInvalid)
	case err != nil:
		return fmt.Errorf("message_type: %w", err)
	case v.Priority >= NumPriorities:
		return fmt.Errorf("%w: priority %d is over %d", ErrInvalid, uint8(v.Priority), uint8(P3))
	case payload == nil || string(payload) == "null":
		return fmt.Errorf("%w: payload is missing", ErrInvalid)
	}
	l := &layouts[t]
	body, said := make([][]byte, len(l.names)), typ
	if err := cmp.Or(members("payload", head[6], l.names, body), decode("type", body[0], &said)); err != nil {
		return err
	}
	if said != typ {
		return fmt.Errorf("%w: payload is of type %q under message_type %q", ErrInvalid, clip(said), typ)
	}
	p := reflect.New(l.payload).Elem()
	for i, raw := range body[1:] {
		if err := decode(l.names[i+1], raw, p.Field(i).Addr().Interface()); err != nil {
			return err
		}
	}
	v.Payload = p.Interface().(Payload)
	*n = v
	return nil
}

// headNames are the keys that UnmarshalJSON knows outside the payload.
var headNames = [...]string{"message_id", "message_type", "user_id", "priority", "timestamp", "source", "payload"}

// members finds the values of names in a JSON object, of equal keys the last.
// b is valid JSON, without space around it: so each step below has something
// to step on.
func members(what string, b []byte, names []string, values [][]byte) error {
	if b[0] != '{' {
		return fmt.Errorf("%w: %s is no object", ErrInvalid, what)
	}
	for b = space(b[1:]); b[0] != '}'; b = space(b) {
		if b[0] == ',' {
			b = space(b[1:])
		}
		n := valueLen(b)
		key := b[1 : n-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			key = []byte(unquote(b[:n]))
		}
		b = space(space(b[n:])[1:]) // behind the colon
		n = valueLen(b)
		for i, name := range names {
			if string(key) == name {
				values[i] = b[:n]
			}
		}
		b = b[n:]
	}
	return nil
}

// space skips it.
func space(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// valueLen returns the length of the value that b, valid JSON, begins with.
func valueLen(b []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			// A literal, or, in an object or array, what stands between values.
			if depth > 0 {
				continue
			}
			if n := bytes.IndexAny(b[i:], ",]} \t\r\n"); n >= 0 {
				return i + n
			}
			return len(b)
		}
		if depth == 0 {
			return i + 1
		}
	}
}

// unquote returns what the JSON string raw says.
func unquote(raw []byte) (s string) {
	if inside := raw[1 : len(raw)-1]; bytes.IndexByte(inside, '\\') < 0 && utf8.Valid(inside) {
		return string(inside)
	}
	_ = json.Unmarshal(raw, &s) // it is valid
	return s
}

// decode stores what the JSON value raw says in the variable that dst points
// to; null and nil, for a missing one, change nothing, but null for a float is
// NaN. An error wraps ErrInvalid and names the key.
func decode(key string, raw []byte, dst any) error {
	if raw == nil {
		return nil
	}
	if f, ok := dst.(*float64); ok && raw[0] == 'n' {
		*f = math.NaN()
	}
	if raw[0] == 'n' {
		return nil
	}
	if s, ok := dst.(*string); ok {
		if raw[0] != '"' {
			return fmt.Errorf("%w: %s: %s is no string", ErrInvalid, key, clip(string(raw)))
		}
		*s = unquote(raw)
		return nil
	}
	var err error
	var u uint64
	switch dst := dst.(type) {
	case *float64:
		*dst, err = strconv.ParseFloat(string(raw), 64)
	case *int64:
		*dst, err = strconv.ParseInt(string(raw), 10, 64)
	case *uint32:
		u, err = strconv.ParseUint(string(raw), 10, 32)
		*dst = uint32(u)
	case *uint8:
		u, err = strconv.ParseUint(string(raw), 10, 8)
		*dst = uint8(u)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %s is no %T", ErrInvalid, key, clip(string(raw)), reflect.ValueOf(dst).Elem().Interface())
	}
	return nil
}

// scratch holds the buffers in which marshalJSON learns how long its result is.
var scratch = sync.Pool{New: func() any {
	b := make([]byte, 0, 1024)
	return &b
}}

// maxScratch keeps a rare huge message from occupying the pool for good.
const maxScratch = 64 << 10

// marshalJSON is AppendJSON into one allocation of the length it takes.
func marshalJSON(n *Notification) []byte {
	s := scratch.Get().(*[]byte)
	b := n.AppendJSON((*s)[:0])
	out := make([]byte, len(b))
	copy(out, b)
	if cap(b) <= maxScratch {
		*s = b
	}
	scratch.Put(s)
	return out
}
