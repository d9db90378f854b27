package notification

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The append functions below write one value as encoding/json does. They have a
// fast way, for what a notification mostly holds, that stores whole words and so
// needs some room behind the value, and a general way that needs none. Fuzzing
// holds both to encoding/json.

// appendString appends s as the inside of a JSON string and its closing quote.
func appendString(b []byte, s string) []byte {
	if special(s) {
		return appendEscaped(b, s)
	}
	b = append(b, s...)
	return append(b, '"')
}

// special reports whether s has bytes that cannot stand in a JSON string as
// they are, or that encoding/json escapes all the same.
func special(s string) bool {
	const spaces = 0x2020202020202020
	n := len(s)
	switch {
	case n >= 8:
		last := le64(s, n-8) // overlaps the word before it
		for ; len(s) > 8; s = s[8:] {
			if specialWord(le64(s, 0)) {
				return true
			}
		}
		return specialWord(last)
	case n >= 4:
		return specialWord(uint64(le32(s, 0)) | uint64(le32(s, n-4))<<32)
	case n > 0: // the first, the middle and the last are all there are
		return specialWord(uint64(s[0]) | uint64(s[n/2])<<8 | uint64(s[n-1])<<16 | spaces<<24&math.MaxUint64)
	}
	return false
}

// specialWord is special for the eight bytes in w: control characters, ", \,
// what is not ASCII, and <, > and &, which encoding/json escapes for the sake
// of HTML.
//
// A byte below k loses its high bit's zero when k is subtracted, a byte equal
// to k when 1 is subtracted after xor with k; a borrow from a neighbour can
// only come from one that was found itself. " and & differ in one bit, < and >
// in another: setting that bit makes two tests of four.
func specialWord(w uint64) bool {
	const ones = 0x0101010101010101
	return (w|
		(w-' '*ones)|
		((w|4*ones)^'&'*ones-ones)|
		((w|2*ones)^'>'*ones-ones)|
		(w^'\\'*ones-ones))&(0x80*ones) != 0
}

// plain tells of one byte what specialWord tells of eight.
var plain = func() (p [256]bool) {
	for c := range p {
		p[c] = c >= ' ' && c < utf8.RuneSelf && !strings.ContainsRune(`"\<>&`, rune(c))
	}
	return p
}()

// appendEscaped is appendString for any string and any room.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		size := 1
		if c >= utf8.RuneSelf {
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			// The line separators U+2028 and U+2029 end a line in JavaScript.
			if (r != utf8.RuneError || size != 1) && r != '\u2028' && r != '\u2029' {
				i += size
				continue
			}
			b = append(b, s[done:i]...)
			if size == 1 {
				b = append(b, "\ufffd"...) // the character itself, which needs no escape
			} else {
				b = append(b, `\u202`...)
				b = append(b, hex[r&0xf])
			}
		} else {
			b = append(b, s[done:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			}
		}
		i += size
		done = i
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}

// appendInt appends i.
func appendInt(b []byte, i int64) []byte {
	if i < 0 {
		return strconv.AppendInt(b, i, 10)
	}
	return appendUint(b, uint64(i))
}

// appendUint appends u, eight digits at a time.
func appendUint(b []byte, u uint64) []byte {
	n := len(b)
	if u < 10 {
		return append(b, '0'+byte(u))
	}
	if cap(b)-n < 24 {
		return strconv.AppendUint(b, u, 10)
	}
	d := (*[24]byte)(b[n : n+24])
	if u < 1e8 {
		w, digits := trim(eightDigits(uint32(u)))
		binary.LittleEndian.PutUint64(d[:], w)
		return b[:n+int(digits)]
	}
	var i uint
	high, low := u/1e8, uint32(u%1e8)
	if high < 1e8 {
		w, digits := trim(eightDigits(uint32(high)))
		binary.LittleEndian.PutUint64(d[:], w)
		i = digits
	} else {
		w, digits := trim(eightDigits(uint32(high / 1e8)))
		binary.LittleEndian.PutUint64(d[:], w)
		binary.LittleEndian.PutUint64(d[digits&15:], eightDigits(uint32(high%1e8))|zeros)
		i = digits + 8
	}
	binary.LittleEndian.PutUint64(d[i&15:], eightDigits(low)|zeros)
	return b[:n+int(i)+8]
}

// zeros is "00000000": or'ed with digits it makes them text.
const zeros = 0x3030303030303030

// trim makes text of eight digits without the zeros before the first other
// one, and tells how many are left: one of zero, too.
func trim(w uint64) (text uint64, digits uint) {
	skip := uint(bits.TrailingZeros64(w|1<<56)) / 8
	return (w | zeros) >> (skip * 8 & 63), 8 - skip
}

// eightDigits returns the eight decimal digits of u, which is below 1e8, the
// first in the lowest byte. It divides all parts at once: one number of eight
// digits, two of four, four of two, eight of one. The factors are 1/100 and
// 1/10, rounded up, in units of 2^-20 and 2^-10: exact for what can occur. A part
// v becomes its quotient q and, so many bits further up, its rest: both at once,
// q + (v-100·q)<<16 is v<<16 - q·(100<<16-1).
func eightDigits(u uint32) uint64 {
	v := uint64(u)<<32 - uint64(u/1e4)*(1e4<<32-1)
	q := v * 10486 >> 20 & 0x7f_0000_007f
	v = v<<16 - q*(100<<16-1)
	q = v * 103 >> 10 & 0xf_000f_000f_000f
	return v<<8 - q*(10<<8-1)
}

// le64 returns the eight bytes of s at i; the compiler makes it one load.
func le64(s string, i int) uint64 {
	s = s[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// le32 returns the four bytes of s at i.
func le32(s string, i int) uint32 {
	s = s[i : i+4]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}
