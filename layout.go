package notification

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"strings"
	"unsafe"
)

// A layout is what the encodings know of a Type. It is made of the payload
// struct's declaration, once, so that the four encodings cannot disagree with
// it or with each other.
type layout struct {
	payload reflect.Type
	keys    []string // of the payload's members in JSON, "type" and then the fields: quoted, with the colon
	fields  []field

	// What JSON has between the values of the header, the type's name included.
	afterID, afterSource, end string

	prefix  int      // bytes of an archive before its strings
	strings []uint32 // where the struct has its strings
	lengths []uint32 // where an archive has their lengths
}

// A field is one field of a payload struct. It is small, because every message
// goes through all those of its type.
type field struct {
	key    [maxKey]byte // what JSON has before the value, a string's opening quote included
	keyLen uint8
	kind   kind
	at     uint32 // in an archive: of the value, or of a string's length
	offset uint32 // in the struct
}

// maxKey bounds a field's key: copying an array of this size is two moves.
const maxKey = 32

// A kind is a field's type.
type kind uint8

const (
	kindString kind = iota
	kindFloat64
	kindInt64
	kindUint32
	kindUint8
)

// layouts by Type. That of the zero Type has no fields and makes JSON of what
// is no payload: an empty type, a null payload.
var layouts = makeLayouts()

func makeLayouts() (ls [numTypes]layout) {
	ls[0] = layout{afterID: `,"message_type":"","user_id":"`, afterSource: `,"payload":null`, end: `}`}
	for t := Type(1); t < numTypes; t++ {
		p := reflect.TypeOf(catalog[t].payload)
		if p == nil {
			continue // a constant without its line in catalog: a test says so
		}
		l := &ls[t]
		l.payload = p
		l.keys = []string{`"type":`}
		l.afterID = `,"message_type":"` + catalog[t].name + `","user_id":"`
		l.afterSource = `,"payload":{"type":"` + catalog[t].name + `"`
		l.end = `}}`
		l.prefix = archiveHeader
		for i := range p.NumField() {
			l.add(p.Field(i))
		}
	}
	return ls
}

// add appends a field of the struct. A declaration that the encodings cannot
// carry panics: it is a mistake in payload.go, and no program starts with it.
func (l *layout) add(sf reflect.StructField) {
	name := sf.Tag.Get("json")
	key := `,"` + name + `":`
	f := field{at: uint32(l.prefix), offset: uint32(sf.Offset)}
	switch sf.Type.Kind() {
	case reflect.String:
		f.kind, l.prefix = kindString, l.prefix+4
		key += `"`
		l.strings = append(l.strings, f.offset)
		l.lengths = append(l.lengths, f.at)
	case reflect.Float64:
		f.kind, l.prefix = kindFloat64, l.prefix+8
	case reflect.Int64:
		f.kind, l.prefix = kindInt64, l.prefix+8
	case reflect.Uint32:
		f.kind, l.prefix = kindUint32, l.prefix+4
	case reflect.Uint8:
		f.kind, l.prefix = kindUint8, l.prefix+1
	default:
		panic(fmt.Sprintf("notification: %s.%s is a %s, which has no encoding", l.payload, sf.Name, sf.Type))
	}
	if name == "" || len(key) > maxKey {
		panic(fmt.Sprintf("notification: %s.%s has no json name, or too long a one", l.payload, sf.Name))
	}
	f.keyLen = uint8(copy(f.key[:], key))
	if l.keys = append(l.keys, `"`+name+`":`); len(l.keys) > maxMembers {
		panic(fmt.Sprintf("notification: %s has too many fields", l.payload))
	}
	l.fields = append(l.fields, f)
}

// The walks: each goes once through the fields of the payload at p, in their
// order. All reads and writes through a payload's address are here, and what
// makes them sound is the same for each: p is what dataOf tells of a payload of
// the type that l was made of, so at f.offset there is a field of the type that
// f.kind names. (A float or an integer of eight bytes is moved as a uint64, which
// has the same size and alignment.)
//
// They are loops over the table with the codec's own code inside. Straight-line
// code for each type, behind a type switch, was tried and was slower.

// appendJSON appends the members of the payload, each behind its comma and key. A
// float, of which some payloads have seven, asks once for room for both.
func (l *layout) appendJSON(b []byte, p unsafe.Pointer) []byte {
	for i := range l.fields {
		f := &l.fields[i]
		v, n := unsafe.Add(p, f.offset), len(b)
		if f.kind == kindFloat64 && cap(b)-n >= maxKey+floatRoom {
			*(*[maxKey]byte)(b[n : n+maxKey]) = f.key
			n += int(f.keyLen)
			b = b[:n+writeFloat((*[floatRoom]byte)(b[n:n+floatRoom]), *(*float64)(v))]
			continue
		}
		if cap(b)-n >= maxKey {
			*(*[maxKey]byte)(b[n : n+maxKey]) = f.key
			b = b[:n+int(f.keyLen)]
		} else {
			b = append(b, f.key[:f.keyLen]...)
		}
		switch f.kind {
		case kindString:
			b = appendString(b, *(*string)(v))
		case kindFloat64:
			b = appendFloat(b, *(*float64)(v))
		case kindInt64:
			b = appendInt(b, *(*int64)(v))
		case kindUint32:
			b = appendUint(b, uint64(*(*uint32)(v)))
		case kindUint8:
			b = appendUint(b, uint64(*(*uint8)(v)))
		}
	}
	return b
}

// textLen returns how many bytes the payload's strings have together.
func (l *layout) textLen(p unsafe.Pointer) (n uint64) {
	for _, offset := range l.strings {
		n += uint64(len(*(*string)(unsafe.Add(p, offset))))
	}
	return n
}

// store writes the payload's fields into d, an archive, and its strings from end
// on, where d has room for them.
func (l *layout) store(d []byte, end int, p unsafe.Pointer) {
	for i := range l.fields {
		f := &l.fields[i]
		switch v := unsafe.Add(p, f.offset); f.kind {
		case kindString:
			s := *(*string)(v)
			binary.LittleEndian.PutUint32(d[f.at:], uint32(len(s)))
			end += copy(d[end:], s)
		case kindFloat64, kindInt64:
			binary.LittleEndian.PutUint64(d[f.at:], *(*uint64)(v))
		case kindUint32:
			binary.LittleEndian.PutUint32(d[f.at:], *(*uint32)(v))
		case kindUint8:
			d[f.at] = *(*uint8)(v)
		}
	}
}

// load fills the struct at p, which is a variable of l's type, with the values of
// an archive, its strings cut from texts. Lengths that do not fit can only be
// those of a buffer that changed after OpenArchive; they are clipped.
func (l *layout) load(p unsafe.Pointer, archive, texts string) {
	for i := range l.fields {
		f := &l.fields[i]
		switch v := unsafe.Add(p, f.offset); f.kind {
		case kindString:
			n := min(uint(le32(archive, int(f.at))), uint(len(texts)))
			*(*string)(v) = texts[:n]
			texts = texts[n:]
		case kindFloat64, kindInt64:
			*(*uint64)(v) = le64(archive, int(f.at))
		case kindUint32:
			*(*uint32)(v) = le32(archive, int(f.at))
		case kindUint8:
			*(*uint8)(v) = archive[f.at]
		}
	}
}

// readJSON reads the value at s[i:] into the field of the payload at p: it is one
// step of a walk in the order of the document. It returns what the read functions
// return, and a string is a view of s.
func (f *field) readJSON(p unsafe.Pointer, s string, i int) (end int) {
	switch v := unsafe.Add(p, f.offset); f.kind {
	case kindString:
		*(*string)(v), end = readString(s, i)
	case kindFloat64:
		*(*float64)(v), end = readFloat(s, i)
	case kindInt64:
		*(*int64)(v), end = readInt(s, i)
	case kindUint32:
		var u uint64
		u, end = readUint(s, i, math.MaxUint32)
		*(*uint32)(v) = uint32(u)
	case kindUint8:
		var u uint64
		u, end = readUint(s, i, math.MaxUint8)
		*(*uint8)(v) = uint8(u)
	}
	return end
}

// own puts copies of the payload's strings in their place, one behind the other
// in the memory of b, which should have room for all.
func (l *layout) own(p unsafe.Pointer, b *strings.Builder) {
	for _, offset := range l.strings {
		s := (*string)(unsafe.Add(p, offset))
		start := b.Len()
		b.WriteString(*s)
		*s = b.String()[start:]
	}
}

// newPayload returns a zero payload of type t, in one allocation, and what dataOf
// tells of it. The struct may be written as long as nobody else has the payload.
// (Made by reflect alone, the interface would hold a copy of the struct.)
func newPayload(t Type) (Payload, unsafe.Pointer) {
	payload, p := catalog[t].payload, reflect.New(layouts[t].payload).UnsafePointer()
	(*[2]unsafe.Pointer)(unsafe.Pointer(&payload))[1] = p
	return payload, p
}

// loadAs returns the payload of an archive as a value; its strings are cut from
// texts. T must be the type that l was made of.
func loadAs[T Payload](l *layout, archive, texts string) (v T) {
	l.load(unsafe.Pointer(&v), archive, texts)
	return v
}

// words finds the Type of an interface value by its type word: open
// addressing, a quarter full, the zero word ending a search. It follows from
// catalog, unlike a type switch, and is as fast.
var words = makeWords()

type wordTable [128]struct {
	word uintptr
	typ  Type
}

func makeWords() (ws wordTable) {
	for t := Type(1); t < numTypes; t++ {
		w := typeWord(catalog[t].payload)
		if w == 0 {
			continue
		}
		i := slot(w)
		for ws[i].word != 0 {
			i = (i + 1) % uintptr(len(ws))
		}
		ws[i].word, ws[i].typ = w, t
	}
	return ws
}

// slot mixes a type word, the address of a type descriptor: the low bits are
// alignment, so the high ones of a product with an odd number (2^64 divided by
// the golden ratio, Knuth's) choose among the 128.
func slot(w uintptr) uintptr { return uintptr(uint64(w) * 0x9e3779b97f4a7c15 >> (64 - 7)) }

// typeOf returns the Type of p, zero unless p is exactly one of the structs
// in catalog. It compares dynamic types and does not call p.Type: a nil pointer
// would panic there, and a struct that embeds a payload would lie.
func typeOf(p Payload) Type {
	w := typeWord(p)
	i := slot(w)
	for words[i].word != w {
		if words[i].word == 0 {
			return 0
		}
		i = (i + 1) % uintptr(len(words))
	}
	return words[i].typ
}

// typeWord returns the first word of an empty interface: the address of its
// dynamic type's descriptor, zero for nil. A declared type has one descriptor,
// which neither moves nor goes away, and a type switch compares no more than
// this address either. It is compared only, never followed.
func typeWord(x any) uintptr { return *(*uintptr)(unsafe.Pointer(&x)) }

// dataOf returns the second word of an interface: for a payload the address of
// the struct that the interface holds. (An interface keeps a value in the word
// itself only if its type is a pointer at heart, which no type that add admits
// is.) Copying the struct out with a type assertion instead would need a second
// listing of the types. What is there may be read, as p's own type, and never
// written: interfaces share it. The pointer keeps it alive.
func dataOf(p Payload) unsafe.Pointer {
	return (*[2]unsafe.Pointer)(unsafe.Pointer(&p))[1]
}

// numberedOf returns what m is the first field of. Only NewMessageAt and the
// Gateway set Message.numbered, in the Message of a numbered, which begins at the
// same address; the pointer keeps the whole of it alive.
func numberedOf(m *Message) *numbered {
	if !m.numbered {
		return nil
	}
	return (*numbered)(unsafe.Pointer(m))
}

// addressOf returns where m is, to spread Messages over something by. One that
// several goroutines have is on the heap and does not move. It is never followed.
func addressOf(m *Message) uintptr { return uintptr(unsafe.Pointer(m)) }

// stringView returns b's bytes as a string without copying them: b's address with
// b's length, so no read leaves b, and the string keeps b alive. A string must not
// change, so nobody may write to b as long as the string, or a part of it, is in
// use: each caller says why that is so.
func stringView(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesView returns the bytes of s as a slice without copying them. Nobody may
// write to them: each caller passes that on. The slice has no room behind its
// bytes, so append makes a copy.
func bytesView(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
