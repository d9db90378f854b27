package notification

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The read functions below read the value at s[i:] if it is of their kind and
// fits, and return the index behind it. If not, the index is zero, and what is
// there, or what is wrong with it, is for skip to say. The value is then what
// null stands for: NaN for a float, zero for all else.

// readString reads a string. It is a view of s, unless something in it stands
// for something else.
func readString(s string, i int) (v string, end int) {
	if peek(s, i) != '"' {
		return "", 0
	}
	i++
	end = plainEnd(s, i, notASCII)
	if peek(s, end) == '"' {
		return s[i:end], end + 1
	}
	end, err := stringEnd(s, end)
	if err != nil {
		return "", 0
	}
	return unquote(s[i : end-1]), end
}

// readFloat reads a number as the nearest float64.
func readFloat(s string, i int) (f float64, end int) {
	digit := i
	if peek(s, i) == '-' {
		digit++
	}
	m, point := digits(s, digit, 0)
	end = point
	if peek(s, point) == '.' {
		m, end = digits(s, point+1, m)
	}
	// Up to 19 digits there is no overflow. What is longer, has an exponent or
	// is no number is left to others.
	whole, places := point-digit, max(end-point-1, 0)
	if whole+places <= 19 && (whole == 1 || whole > 1 && s[digit] != '0') && end != point+1 && peek(s, end)|0x20 != 'e' {
		f = decimal(m, places)
		if digit > i {
			f = -f
		}
		return f, end
	}
	end, err := numberEnd(s, i)
	if err == nil {
		f, err = strconv.ParseFloat(s[i:end], 64)
	}
	if err != nil {
		return math.NaN(), 0
	}
	return f, end
}

// decimal returns the float64 nearest to m / 10^places, for up to 18 places.
//
// An m below 2^53 is exact as a float, a power of ten up to 10^22 is, and their
// quotient is rounded once (Clinger, How to Read Floating Point Numbers
// Accurately, 1990): prices and balances are mostly of that kind. For a larger m
// the quotient of the integers is taken to at least 63 bits. A float has 53, so
// the remainder matters only by being there or not: it is put into the last bit,
// and then, too, the only rounding is that to a float.
func decimal(m uint64, places int) float64 {
	ten := tens[places]
	if m < 1<<53 {
		return float64(m) / float64(ten)
	}
	mz, tz := bits.LeadingZeros64(m), bits.LeadingZeros64(ten)
	m <<= mz // m is now in [2^63, 2^64), and so is ten<<tz
	quo, rem := bits.Div64(m>>1, m<<63, ten<<tz)
	if rem != 0 {
		quo |= 1
	}
	return math.Ldexp(float64(quo), tz-mz-63)
}

// tens are the powers of ten.
var tens = [19]uint64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

// readInt reads a number without point and exponent.
func readInt(s string, i int) (v int64, end int) {
	if peek(s, i) == '-' {
		u, end := readUint(s, i+1, 1<<63)
		return -int64(u), end // -1<<63 is its own negative
	}
	u, end := readUint(s, i, math.MaxInt64)
	return int64(u), end
}

// readUint reads a number without sign, point and exponent, up to limit, which
// has at most 19 digits.
func readUint(s string, i int, limit uint64) (u uint64, end int) {
	u, end = digits(s, i, 0)
	n := end - i
	c := peek(s, end)
	if n == 0 || n > 19 || n > 1 && s[i] == '0' || u > limit || c == '.' || c|0x20 == 'e' {
		return 0, 0
	}
	return u, end
}

// digits reads decimal digits, m being what stands before them, and returns the
// index behind them. More than 19 in all overflow.
//
// It reads eight bytes at once. The digits among them go to the end of the word,
// behind zeros, and are then joined all at once: eight numbers of one digit, four
// of two, two of four (Lemire, Number Parsing at a Gigabyte per Second, 2021;
// eightDigits is the other direction).
func digits(s string, i int, m uint64) (u uint64, end int) {
	const ones = 0x0101010101010101
	for i+8 <= len(s) {
		w := le64(s, i) ^ zeros // a digit is now 0 to 9, anything else is more
		// What is more than 9 has its high bit, or gets it. A carry into the
		// next byte does no harm: only the lowest such byte counts.
		n := bits.TrailingZeros64((w|(w+(0x80-10)*ones))&(0x80*ones)) / 8
		w <<= 64 - 8*n
		w = (w*10 + w>>8) & 0x00ff_00ff_00ff_00ff
		w = (w*100 + w>>16) & 0x0000_ffff_0000_ffff
		w = (w*10_000 + w>>32) & 0xffff_ffff
		m = m*tens[n] + w
		i += n
		if n < 8 {
			return m, i
		}
	}
	for ; i < len(s) && s[i]-'0' <= 9; i++ {
		m = m*10 + uint64(s[i]-'0')
	}
	return m, i
}

// maxDepth is how many objects and arrays may be open at once, as in
// encoding/json.
const maxDepth = 10_000

// skip checks that a JSON value is at s[i:], with depth objects and arrays open
// around it, and returns the index behind it. It says what is wrong, and where.
func skip(s string, i, depth int) (end int, err error) {
	var few [64]byte
	open := few[:0] // the brackets that are open
	for {
		// Here a value begins, and ends if it is no object or array.
		switch c := peek(s, i); c {
		case '{', '[':
			if depth+len(open) >= maxDepth {
				return 0, fmt.Errorf("%w: the depth is over %d, at byte %d", ErrInvalid, maxDepth, i)
			}
			open = append(open, c)
			if i = space(s, i+1); peek(s, i) == c+2 { // the bracket that closes c
				break
			}
			if c == '{' {
				_, i, err = keyEnd(s, i)
			}
			if err != nil {
				return 0, err
			}
			continue
		case '"':
			i, err = stringEnd(s, i+1)
		case 't':
			i, err = literalEnd(s, i, "true")
		case 'f':
			i, err = literalEnd(s, i, "false")
		case 'n':
			i, err = literalEnd(s, i, "null")
		default:
			i, err = numberEnd(s, i)
		}
		if err != nil {
			return 0, err
		}
		// Here a value has ended, or is about to: it is followed by the
		// brackets that close others, then by a comma.
		for {
			if len(open) == 0 {
				return i, nil
			}
			last := open[len(open)-1]
			i = space(s, i)
			if peek(s, i) == last+2 {
				open = open[:len(open)-1]
				i++
				continue
			}
			if peek(s, i) != ',' {
				return 0, unexpected(s, i)
			}
			if i = space(s, i+1); last == '{' {
				_, i, err = keyEnd(s, i)
			}
			break
		}
		if err != nil {
			return 0, err
		}
	}
}

// keyEnd returns what is between the quotes of the key at s[i:], and the index
// of its value.
func keyEnd(s string, i int) (raw string, value int, err error) {
	if peek(s, i) != '"' {
		return "", 0, unexpected(s, i)
	}
	end, err := stringEnd(s, i+1)
	if err != nil {
		return "", 0, err
	}
	raw = s[i+1 : end-1]
	if i = space(s, end); peek(s, i) != ':' {
		return "", 0, unexpected(s, i)
	}
	return raw, space(s, i+1), nil
}

// stringEnd returns the index behind the string of which s[i:] is a part.
func stringEnd(s string, i int) (end int, err error) {
	for {
		i = plainEnd(s, i, 0)
		if peek(s, i) == '"' {
			return i + 1, nil
		}
		if peek(s, i) != '\\' {
			return 0, unexpected(s, i)
		}
		i++
		switch peek(s, i) {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i++
		case 'u':
			i++
			for end := i + 4; i < end; i++ {
				if c := peek(s, i); c-'0' > 9 && c|0x20-'a' > 5 {
					return 0, unexpected(s, i)
				}
			}
		default:
			return 0, unexpected(s, i)
		}
	}
}

// notASCII are the bits that tell of eight bytes which are not ASCII.
const notASCII = 0x8080808080808080

// plainEnd returns the index of the first byte in s[i:] that does not stand for
// itself in a string: a quote, a backslash, a control character, and, if stop is
// notASCII and not 0, what is not ASCII. It is len(s) if there is none.
func plainEnd(s string, i int, stop uint64) int {
	const ones = 0x0101010101010101
	for i+8 <= len(s) {
		// As in specialWord, and the lowest byte that is found is found rightly.
		w := le64(s, i)
		if found := ((w-' '*ones)|(w^'"'*ones-ones)|(w^'\\'*ones-ones))&^w&notASCII | w&stop; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
		i += 8
	}
	for i < len(s) && s[i] >= ' ' && s[i] != '"' && s[i] != '\\' && uint64(s[i])&stop&0x80 == 0 {
		i++
	}
	return i
}

// numberEnd returns the index behind the number at s[i:].
func numberEnd(s string, i int) (end int, err error) {
	if peek(s, i) == '-' {
		i++
	}
	if peek(s, i) == '0' {
		i++
	} else if i, err = digitsEnd(s, i); err != nil {
		return 0, err
	}
	if peek(s, i) == '.' {
		if i, err = digitsEnd(s, i+1); err != nil {
			return 0, err
		}
	}
	if peek(s, i)|0x20 != 'e' {
		return i, nil
	}
	i++
	if c := peek(s, i); c == '+' || c == '-' {
		i++
	}
	return digitsEnd(s, i)
}

// digitsEnd returns the index behind the digits at s[i:]; one there must be.
func digitsEnd(s string, i int) (end int, err error) {
	if _, end = digits(s, i, 0); end == i {
		return 0, unexpected(s, i)
	}
	return end, nil
}

// literalEnd returns the index behind the literal, which s[i:] must begin with.
func literalEnd(s string, i int, literal string) (end int, err error) {
	for k := range len(literal) {
		if peek(s, i+k) != literal[k] {
			return 0, unexpected(s, i+k)
		}
	}
	return i + len(literal), nil
}

// unquote returns what raw, the inside of a valid JSON string, stands for. As in
// encoding/json a byte that is not UTF-8 is U+FFFD, and half of a surrogate pair.
func unquote(raw string) string {
	if strings.IndexByte(raw, '\\') < 0 && utf8.ValidString(raw) {
		return raw
	}
	var b strings.Builder
	b.Grow(len(raw))
	for {
		plain := plainEnd(raw, 0, notASCII)
		b.WriteString(raw[:plain])
		if raw = raw[plain:]; raw == "" {
			return b.String()
		}
		r, size := utf8.DecodeRuneInString(raw)
		if r == '\\' {
			r, size = unescape(raw)
		}
		b.WriteRune(r)
		raw = raw[size:]
	}
}

// unescape returns the character that the escape at the beginning of raw stands
// for, and the escape's length.
func unescape(raw string) (r rune, size int) {
	switch c := raw[1]; c {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r = hexRune(raw[2:6])
		if !utf16.IsSurrogate(r) {
			return r, 6
		}
		if len(raw) >= 12 && raw[6] == '\\' && raw[7] == 'u' {
			if r = utf16.DecodeRune(r, hexRune(raw[8:12])); r != utf8.RuneError {
				return r, 12
			}
		}
		return utf8.RuneError, 6
	default:
		return rune(c), 2
	}
}

// hexRune returns the number that four hexadecimal digits make.
func hexRune(digits string) (r rune) {
	for i := range len(digits) {
		c := digits[i]
		r = r<<4 | rune(c&0xf+c>>6*9) // A is 0x41, a is 0x61
	}
	return r
}

// space returns the index of the first byte in s[i:] that is no white space.
func space(s string, i int) int {
	for i < len(s) && s[i] <= ' ' && (s[i] == ' ' || s[i] == '\n' || s[i] == '\r' || s[i] == '\t') {
		i++
	}
	return i
}

// peek returns the byte at i. At the end of s it is zero, which JSON has nowhere.
func peek(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// unexpected is the error of a document that is no JSON from byte i on.
func unexpected(s string, i int) error {
	if i >= len(s) {
		return fmt.Errorf("%w: the JSON ends too early, at byte %d", ErrInvalid, len(s))
	}
	return fmt.Errorf("%w: %q is no JSON here, at byte %d", ErrInvalid, s[i:i+1], i)
}
