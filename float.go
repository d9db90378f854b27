package notification

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// A float is written as the shortest decimal that reads back as it, and as the
// nearest of those. Prices and balances are mostly decimals with few places, for
// which asDecimal finds it with one multiplication. Products and ratios of them
// have 16 or 17 digits: shortestFraction takes a second multiplication. For what
// is very small or large there is shortest. There are no loops and few branches:
// nobody can predict which digits a number has, and a wrong guess costs more than
// the arithmetic of both ways. The digits come from eightDigits, eight at a time.

// floatRoom is where writeFloat writes: 25 bytes for the longest text, and behind
// it what is touched by storing whole words. (An index with a mask never exceeds
// the mask, which only saves the bounds check.)
const floatRoom = 40

// appendFloat appends f as encoding/json does, or null if it has no such form.
func appendFloat(b []byte, f float64) []byte {
	n := len(b)
	if cap(b)-n < floatRoom {
		var t [floatRoom]byte
		return append(b, t[:writeFloat(&t, f)]...)
	}
	return b[:n+writeFloat((*[floatRoom]byte)(b[n:n+floatRoom]), f)]
}

// writeFloat writes f to t and returns how long the text is.
func writeFloat(t *[floatRoom]byte, f float64) int {
	t[0] = '-'
	w := math.Float64bits(f)
	i := int(w >> 63) // at 0 the text overwrites the sign; -0 keeps it
	w &^= 1 << 63
	const least, most = (1023 - 11) << 52, 0x42374876e8000000 // 2^-11 and 1e11
	if w-least < most-least {
		scale, rest := uint64(1e8), uint64(1)
		if w >= 0x416312d000000000 { // 1e7
			scale, rest = 1e4, 1e4
		}
		c, places := w&(1<<52-1)|1<<52, (1075-w>>52)&63 // the float is c/2^places
		whole, frac := c>>places, c<<((64-places)&63)
		if few, ok := asDecimal(frac, places, scale); ok {
			return writeDecimal(t, i, whole, few*rest, 0, 0)
		}
		if places <= 56 {
			high, low, last := shortestFraction(frac, places)
			return writeDecimal(t, i, whole, high, low, last)
		}
	}
	switch {
	case w == 0:
		t[i] = '0'
		return i + 1
	case w >= 0x7ff<<52:
		return copy(t[:], "null")
	}
	d, k := shortest(w)
	return writeDigits(t, i, d, k)
}

// asDecimal tells whether the shortest decimal that reads back as a float has no
// more places than scale has zeros, and returns them as a number of units of
// 1/scale. Behind the point the float is frac/2^64, and c/2^places as a whole, with
// c at least 2^52. It is at least 2^-11, and its product with scale at most 1e15.
//
// A multiplication finds the nearest decimal of that many places and how far off
// it is. If that is less than half of what is between two floats, the decimal reads
// back as this one; it is never just the half, since the middle of two floats has
// over 16 places. It has at most 15 digits, and no two decimals of at most 15
// digits read back as the same float64, so the shortest one, which has no more
// digits, is the same number. (Below a power of two the floats are twice as close.
// But from 2^-8 on powers of two have eight places themselves, and those before are
// far from any decimal of eight.)
func asDecimal(frac, places, scale uint64) (units uint64, ok bool) {
	units, off := bits.Mul64(frac, scale)
	half := scale << (63 - places)
	return units + off>>63, off+half < 2*half
}

// shortestFraction returns the places of the shortest decimal that reads back as
// a float, as two numbers of eight digits and a last digit. Behind the point the
// float is frac/2^64, and c/2^places as a whole, with c over 2^52 (powers of two
// are for asDecimal) and places from 16 to 56.
//
// It does what shortest does (see there), but has all bits: frac ends in at least
// eight zeros, so nothing is rounded. What reads back as the float is within
// half of 2^-places of it. Let 10^m be the lowest power of ten over 2^places, and
// take all times 10^m: then half is more than 1/2 and less than 5, so that the
// nearest integer, s or s + 1, is within it, and one multiple of ten at most,
// which is shorter. None is just half away: this would be the middle of two
// floats, which has places+1 places, more than m. Of two that are equally near the
// even one is taken. And rounding up never ends at 10^m, since the next whole
// number is a float itself.
func shortestFraction(frac, places uint64) (high, low, last uint64) {
	m := places*1233>>12 + 1 // 1233/2^12 is log10(2), rounded up, and close enough
	scale := tens[m]
	s, part := bits.Mul64(frac, scale)
	ten := s / 10
	last = s - 10*ten
	above := last<<60 | part>>4 // the multiple of ten below, in units of 2^-60
	half := scale << ((59 - places) & 63)
	if part+s&1 > 1<<63 {
		last++
	}
	if above < half {
		last = 0
	}
	if 10<<60-above < half {
		ten, last = ten+1, 0
	}
	d := (10*ten + last) * tens[(16-m)&15]
	if m == 17 {
		d = ten // 16 digits, and the last one is left
	} else {
		last = 0
	}
	return d / 1e8, d % 1e8, last
}

// writeDecimal writes whole, below 1e11, a point and behind it the digits of high
// and low, eight each, and last, without zeros at the end, to t[i:]. It returns
// where the text ends.
func writeDecimal(t *[floatRoom]byte, i int, whole, high, low, last uint64) int {
	if whole >= 1e8 {
		text, n := trim(eightDigits(uint32(whole / 1e8)))
		binary.LittleEndian.PutUint64(t[i&31:], text)
		i += int(n)
		binary.LittleEndian.PutUint64(t[i&31:], eightDigits(uint32(whole%1e8))|zeros)
		i += 8
	} else {
		text, n := trim(eightDigits(uint32(whole)))
		binary.LittleEndian.PutUint64(t[i&31:], text)
		i += int(n)
	}
	if high|low|last == 0 {
		return i
	}
	t[i&31] = '.'
	w1 := eightDigits(uint32(high))
	binary.LittleEndian.PutUint64(t[(i+1)&31:], w1|zeros)
	if low|last == 0 {
		return i + 9 - bits.LeadingZeros64(w1)/8
	}
	w2 := eightDigits(uint32(low))
	binary.LittleEndian.PutUint64(t[(i+9)&31:], w2|zeros)
	t[(i+17)&31] = '0' + byte(last)
	if last != 0 {
		return i + 18
	}
	return i + 17 - bits.LeadingZeros64(w2)/8
}

// writeDigits writes d·10^k, with d over 0 and below 1e17, to t[i:] and returns
// where the text ends. It has an exponent below 1e-6 and from 1e21 on.
func writeDigits(t *[floatRoom]byte, i int, d uint64, k int) int {
	for d < 1e15 { // only for what is subnormal
		d, k = d*10, k-1
	}
	if more := d * 10; d < 1e16 {
		d = more
		k--
	}
	// Now d has 17 digits: one, and two words of eight.
	high, low := d/1e8, d%1e8
	first := '0' + byte(high/1e8)
	w1, w2 := eightDigits(uint32(high%1e8)), eightDigits(uint32(low))
	n := 9 - bits.LeadingZeros64(w1)/8 // digits without the zeros at the end
	if both := 17 - bits.LeadingZeros64(w2)/8; both > 9 {
		n = both
	}
	w1 |= zeros
	w2 |= zeros

	point, exp := 17+k, 0 // the point is behind so many digits
	if -6 < point && point <= 0 {
		binary.LittleEndian.PutUint64(t[i:], zeros&^(0xff<<8)|'.'<<8) // 0.000000
		i += 2 - point
		t[i&31] = first
		binary.LittleEndian.PutUint64(t[(i+1)&31:], w1)
		binary.LittleEndian.PutUint64(t[(i+9)&31:], w2)
		return i + n
	}
	if point < 0 || point > 21 {
		point, exp = 1, point-1
	}
	t[i] = first
	binary.LittleEndian.PutUint64(t[(i+1)&31:], w1)
	binary.LittleEndian.PutUint64(t[(i+9)&31:], w2)
	if point >= 17 {
		binary.LittleEndian.PutUint64(t[(i+17)&31:], zeros)
		return i + point
	}
	// What is behind the point is written once more, one place on: the 16 bytes
	// of w1 and w2 without those before it. (A shift by 64 or more gives 0, and a
	// negative count is a huge one.)
	before := 8 * uint(point-1)
	t[(i+point)&31] = '.'
	binary.LittleEndian.PutUint64(t[(i+point+1)&31:], w1>>before|w2<<(64-before)|w2>>(before-64))
	binary.LittleEndian.PutUint64(t[(i+point+9)&31:], w2>>before)
	if n <= point {
		i += point
	} else {
		i += n + 1
	}
	if exp == 0 {
		return i
	}
	t[i&31], t[(i+1)&31] = 'e', '+'
	if exp < 0 {
		t[(i+1)&31], exp = '-', -exp
	}
	text, digits := trim(eightDigits(uint32(exp)))
	binary.LittleEndian.PutUint64(t[(i+2)&31:], text)
	return i + 2 + int(digits)
}

// shortest returns d and k, so that d·10^k is the shortest decimal that reads
// back as the float with the bits w, which is over 0 and finite, and the nearest
// of those. d may end in zeros. It is Schubfach: Raffaello Giulietti, "The
// Schubfach way to render doubles", 2020, revised 2021.
//
// The float is c·2^q. What reads back as it lies between the middles to its two
// neighbours. Of the powers of ten no longer than this interval let 10^k be the
// longest: then a multiple of 10^k lies in it, and of 10^(k+1) one at most. If
// there is that one, it is the shortest; if not, it is the nearer of the two
// multiples of 10^k around the float, if that lies in the interval, or the other.
// So everything is divided by 10^k. It is multiplied by 4 before, which makes
// integers of the middles, and rounded to odd after: then it compares with even
// integers as it did unrounded.
func shortest(w uint64) (d uint64, k int) {
	c, q := w&(1<<52-1), int(w>>52)
	below, narrow := uint64(2), 0
	if c == 0 && q > 1 { // a power of two: the neighbour below is half as far
		below, narrow = 1, 524031
	}
	if q == 0 {
		q = 1
	} else {
		c |= 1 << 52
	}
	q -= 1075
	// k is floor(log10(2^q)), or of 3/4·2^q, and h has floor(log2(10^by)) in it: the
	// factors are log10(2) and log10(4/3) in units of 2^-22, log2(10) in 2^-19.
	k = (q*1262611 - narrow) >> 22
	by := -k
	h := uint(q+by*1741647>>19+1) & 63 // 1 to 4
	p := &powers[by-minPower]
	v := p.times(4 * c << h)
	odd := c & 1 // then the middles read back as the neighbours
	low := p.times((4*c-below)<<h) + odd
	high := p.times((4*c+2)<<h) - odd

	s := v / 4
	d = s
	if v&3+s&1 > 2 { // more than a half, or a half and s is odd
		d = s + 1
	}
	if low > 4*s {
		d = s + 1
	}
	ten := s / 10 * 10
	if 4*(ten+10) <= high {
		d = ten + 10
	}
	if low <= 4*ten {
		d = ten
	}
	return d, k
}

// A power is a power of ten over the power of two that leaves it 128 bits,
// rounded down, and 1 more.
type power struct{ high, low uint64 }

// times returns p·x/2^128 rounded to odd: down, and if that is not exact the
// last bit is set. p is too large by at most 1, so the product by at most x: if
// it should be exact, the 64 bits behind the result are 0. If it should not, they
// are not, as Giulietti proves for every x that shortest has.
func (p *power) times(x uint64) uint64 {
	carry, _ := bits.Mul64(p.low, x)
	high, low := bits.Mul64(p.high, x)
	low, carry = bits.Add64(low, carry, 0)
	high += carry
	if low != 0 {
		high |= 1
	}
	return high
}

// powers are 10^minPower to 10^maxPower, all that shortest needs. Making them
// takes some 10 µs when a program starts, a twentieth of what math/big would
// take; 10 KB of generated constants would be one more thing to keep right.
var powers = makePowers()

const minPower, maxPower = -292, 324

// makePowers multiplies and divides by ten in 192 bits. A step loses less than
// one unit in the last of them, which leaves the first 128 right even after 324
// steps: a test compares them with those of math/big.
func makePowers() (ps [maxPower - minPower + 1]power) {
	set := func(k int, x [3]uint64) {
		low, carry := bits.Add64(x[1], 1, 0)
		ps[k-minPower] = power{x[0] + carry, low}
	}
	x := [3]uint64{1 << 63} // the highest word first, its highest bit set
	for k := range maxPower + 1 {
		set(k, x)
		var over uint64
		for i := 2; i >= 0; i-- {
			high, low := bits.Mul64(x[i], 10)
			var carry uint64
			x[i], carry = bits.Add64(low, over, 0)
			over = high + carry
		}
		n := bits.Len64(over)
		x = [3]uint64{over<<(64-n) | x[0]>>n, x[0]<<(64-n) | x[1]>>n, x[1]<<(64-n) | x[2]>>n}
	}
	x = [3]uint64{1 << 63}
	for k := -1; k >= minPower; k-- {
		n := 4 // so many bits to the left, and the quotient has its highest bit set
		if x[0]>>60 >= 10 {
			n = 3
		}
		over := x[0] >> (64 - n)
		x = [3]uint64{x[0]<<n | x[1]>>(64-n), x[1]<<n | x[2]>>(64-n), x[2] << n}
		for i := range x {
			x[i], over = bits.Div64(over, x[i], 10)
		}
		set(k, x)
	}
	return ps
}
