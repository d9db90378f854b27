package notification

import "sync"

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
