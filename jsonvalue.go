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

// appendFloat appends f as encoding/json does, or null if it has no such form.
//
// Prices and balances are mostly decimals with few places, and for those the
// shortest decimal that reads back as f, which is what must be written, is
// found without a search. If m/1e4 with an integer m below 1e15 is f, then the
// decimal m·10⁻⁴ reads back as f, since both divide exactly and round once. It
// has at most 15 digits, and no two decimals of at most 15 digits read back as
// the same float64, so the shortest one, which has no more digits, is the same
// number. The product that finds m may be rounded; only the division decides.
func appendFloat(b []byte, f float64) []byte {
	a := math.Abs(f)
	if a < 1e11 && cap(b)-len(b) >= 32 {
		if m := int64(a*1e4 + 0.5); float64(m)/1e4 == a {
			return appendDecimal(b, f, uint64(m)/1e4, uint64(m)%1e4*1e4)
		}
		if a < 1e7 {
			if m := int64(a*1e8 + 0.5); m >= 100 && float64(m)/1e8 == a { // below 1e-6 there is an exponent
				return appendDecimal(b, f, uint64(m)/1e8, uint64(m)%1e8)
			}
		}
	}
	if a < 1e21 && a >= 1e-6 || a == 0 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	if !(a <= math.MaxFloat64) {
		return append(b, "null"...)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09 is written e-9
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// appendDecimal appends f, of which whole, below 1e11, stands before the
// point, and frac are the eight places behind it, without the zeros at their
// end. b must have room for 32 bytes. (The index never exceeds 13, so that the
// masks change nothing: they save the bounds checks.)
func appendDecimal(b []byte, f float64, whole, frac uint64) []byte {
	n := len(b)
	d := (*[32]byte)(b[n : n+32])
	d[0] = '-'
	i := uint(math.Float64bits(f) >> 63) // -0 included
	if whole < 1e8 {
		w, digits := trim(eightDigits(uint32(whole)))
		binary.LittleEndian.PutUint64(d[i&15:], w)
		i += digits
	} else {
		w, digits := trim(eightDigits(uint32(whole / 1e8)))
		binary.LittleEndian.PutUint64(d[i&15:], w)
		i += digits
		binary.LittleEndian.PutUint64(d[i&15:], eightDigits(uint32(whole%1e8))|zeros)
		i += 8
	}
	if frac != 0 {
		w := eightDigits(uint32(frac))
		d[i&15] = '.'
		binary.LittleEndian.PutUint64(d[(i+1)&15:], w|zeros)
		i += 9 - uint(bits.LeadingZeros64(w))/8
	}
	return b[:n+int(i)]
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
// 1/10, rounded up, in units of 2^-20 and 2^-10: exact for what can occur.
func eightDigits(u uint32) uint64 {
	v := uint64(u/1e4) | uint64(u%1e4)<<32
	q := v * 10486 >> 20 & 0x7f_0000_007f
	v = q | (v-100*q)<<16
	q = v * 103 >> 10 & 0xf_000f_000f_000f
	return q | (v-10*q)<<8
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
