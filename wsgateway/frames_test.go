package wsgateway

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// A mark is where a frame ends in a stream.
type mark struct {
	at     int
	opcode byte
}

// A reading is what there is to know about the beginning of a stream.
type reading struct {
	ends  []mark
	begun bool // a frame or a message is incomplete
	code  int  // of the close frame that the stream deserves, 0: none
}

// readNaively is the watcher's reference. It has the beginning of the stream in
// one piece, and starts anew for each.
func readNaively(stream []byte, limit int) (r reading) {
	var (
		message []byte // payload of the frames of the current message
		kind    byte   // its opcode
		empty   int
	)
	for at := 0; at < len(stream); {
		r.begun = true
		b := stream[at:]
		fin, reserved, opcode := b[0]>>7 == 1, b[0]>>4&7, b[0]&15
		control := opcode >= 8
		switch {
		case reserved != 0, opcode >= 3 && opcode <= 7, opcode >= 11,
			control && !fin,
			opcode == 0 && kind == 0,
			(opcode == 1 || opcode == 2) && kind != 0:
			r.code = 1002
			return r
		}
		if len(b) < 2 {
			return r
		}
		if b[1] < 0x80 || control && b[1]&0x7f > 125 || opcode == 8 && b[1]&0x7f == 1 {
			r.code = 1002
			return r
		}
		length, header := uint64(b[1]&0x7f), 2
		switch length {
		case 126:
			if len(b) < 4 {
				return r
			}
			if length, header = uint64(binary.BigEndian.Uint16(b[2:])), 4; length < 126 {
				r.code = 1002
				return r
			}
		case 127:
			if len(b) < 10 {
				return r
			}
			if length, header = binary.BigEndian.Uint64(b[2:]), 10; length < 65536 || length >= 1<<63 {
				r.code = 1002
				return r
			}
		}
		if !control {
			if opcode != 0 {
				message, kind, empty = nil, opcode, 0
			}
			if length == 0 {
				empty++
			}
			if uint64(len(message))+length > uint64(limit) || empty > 100 {
				r.code = 1009
				return r
			}
		}
		if len(b) < header+4 {
			return r
		}
		mask, payload := b[header:header+4], b[header+4:]
		payload = bytes.Clone(payload[:min(uint64(len(payload)), length)])
		for i := range payload {
			payload[i] ^= mask[i%4]
		}
		whole := uint64(len(payload)) == length
		if !control {
			message = append(message, payload...)
		}
		switch {
		case opcode == 8:
			if len(payload) < 2 {
				break
			}
			if code := binary.BigEndian.Uint16(payload); code < 1000 || code >= 1015 && code < 3000 || code >= 5000 ||
				code == 1004 || code == 1005 || code == 1006 {
				r.code = 1002
				return r
			}
			if !beginsText(payload[2:], whole) {
				r.code = 1007
				return r
			}
		case !control && kind == 1:
			if !beginsText(message, whole && fin) {
				r.code = 1007
				return r
			}
		}
		if !whole {
			return r
		}
		if at += header + 4 + len(payload); !control && fin {
			message, kind = nil, 0
		}
		r.ends = append(r.ends, mark{at, opcode})
		r.begun = kind != 0
		if opcode == 8 {
			return r
		}
	}
	return r
}

// beginsText reports whether b is the beginning of a text, or a text if whole.
func beginsText(b []byte, whole bool) bool {
	for len(b) > 0 {
		if !whole && !utf8.FullRune(b) {
			return true
		}
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 {
			return false
		}
		b = b[size:]
	}
	return true
}

// watch gives the stream to a watcher, in pieces that end at cuts, and checks it
// against the reference.
func watch(t *testing.T, stream []byte, limit int, cuts []int) (code int) {
	t.Helper()
	cuts = append(slices.Clone(cuts), len(stream))
	w := watcher{limit: int64(limit)}
	var got reading
	good := 0
	for from := 0; from < len(stream) && w.bad == nil; {
		for cuts[0] <= from {
			cuts = cuts[1:]
		}
		n, opcode, whole := w.follow(stream[from:cuts[0]])
		from += n
		if good = from; whole {
			got.ends = append(got.ends, mark{from, opcode})
		}
		if w.bad == nil && !w.ended {
			require.Equal(t, readNaively(stream[:from], limit).begun, w.begun(), "after %x", stream[:from])
		}
	}
	if w.bad != nil {
		code = int(w.bad.code)
		n, _, _ := w.follow([]byte{0})
		require.Zero(t, n, "a byte after a violation")
		require.Zero(t, readNaively(stream[:good], limit).code, "it allows a byte too many of %x", stream)
		require.Equal(t, code, readNaively(stream[:good+1], limit).code, "after %x", stream[:good+1])
	}
	want := readNaively(stream[:good], limit)
	require.Zero(t, want.code, "it sees no violation in %x", stream)
	require.Equal(t, want.ends, got.ends, "of %x", stream)
	return code
}

// randomFrame is more often right than not, given what came before it.
func randomFrame(r *rand.Rand, within bool) (frame []byte, open bool) {
	opcode := []byte{opText, opText, opBinary, opPing, opPong}[r.IntN(5)]
	if within && opcode < 8 {
		opcode = opContinuation
	}
	first := opcode | fin
	if opcode < 8 && r.IntN(3) == 0 {
		first &^= fin
	}
	var payload []byte
	switch r.IntN(6) {
	case 0:
	case 1:
		payload = make([]byte, r.IntN(125))
	case 2:
		payload = []byte("ü€😀\ufffd")[:r.IntN(12)]
	default:
		payload = []byte("text")[:r.IntN(5)]
	}
	if opcode < 8 && r.IntN(8) == 0 {
		payload = make([]byte, []int{125, 126, 200, 65535, 65536}[r.IntN(5)])
	}
	if r.IntN(12) == 0 {
		first = fin | opClose
		payload = binary.BigEndian.AppendUint16(nil, []uint16{1000, 1001, 1014, 3000, 4999, 1005, 1015, 2999, 5000, 999}[r.IntN(10)])
		payload = append(payload, "why? ü€😀"[:r.IntN(15)]...)
	}
	mask := binary.BigEndian.AppendUint32(nil, r.Uint32())
	frame = appendHeader(nil, 0, len(payload))
	frame[0], frame[1] = first, frame[1]|0x80
	frame = append(frame, mask...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	if r.IntN(24) == 0 {
		frame[r.IntN(min(len(frame), 12))] ^= 1 << r.IntN(8)
	}
	return frame, first&0xf < 8 && first&fin == 0 || first&0xf >= 8 && within
}

func TestWatcher(t *testing.T) {
	t.Run("finds in any pieces what the reference finds in one", func(t *testing.T) {
		r := rand.New(rand.NewPCG(6455, 13))
		seen := map[int]int{}
		for range 2000 {
			var stream []byte
			within := false
			for range 1 + r.IntN(8) {
				var frame []byte
				frame, within = randomFrame(r, within)
				stream = append(stream, frame...)
			}
			var cuts []int
			switch r.IntN(3) {
			case 0: // all at once
			case 1:
				for range r.IntN(9) {
					cuts = append(cuts, r.IntN(len(stream)))
				}
				slices.Sort(cuts)
			case 2:
				for i := range min(len(stream), 300) {
					cuts = append(cuts, i)
				}
			}
			seen[watch(t, stream, 1+r.IntN(1000)*r.IntN(100), cuts)]++
		}
		t.Log("streams by the code that they deserve:", seen)
		for _, code := range []int{0, 1002, 1007, 1009} {
			require.Greater(t, seen[code], 20, "streams that deserve %d", code)
		}
	})
	t.Run("allows as many empty frames as it says, and one more is 1009", func(t *testing.T) {
		stream := slices.Concat(masked(opText, nil), bytes.Repeat(masked(0, nil), maxEmpty-1))
		require.Zero(t, watch(t, stream, 0, nil))
		require.Equal(t, 1009, watch(t, append(stream, masked(fin, nil)...), 0, nil))
		require.Zero(t, watch(t, append(stream, masked(fin, []byte("x"))...), 1, nil))
		require.Zero(t, watch(t, bytes.Repeat(masked(fin|opText, nil), 2*maxEmpty), 0, nil), "each is a message")
	})
	t.Run("does not look at what follows a close frame", func(t *testing.T) {
		require.Zero(t, watch(t, append(masked(fin|opClose, nil), "\xff\xff\xff"...), 10, nil))
	})
	t.Run("allocates nothing until there is a violation", func(t *testing.T) {
		stream := slices.Concat(masked(opText, []byte("ü")), masked(fin|opPing, nil), masked(fin, []byte("€")), masked(fin|opBinary, make([]byte, 200)))
		w := watcher{limit: 1000}
		require.Zero(t, testing.AllocsPerRun(100, func() {
			for from := 0; from < len(stream); {
				n, _, _ := w.follow(stream[from:])
				from += n
			}
		}))
		require.Nil(t, w.bad)
		require.False(t, w.begun())
	})
}

func FuzzWatcher(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(1))
	f.Add(slices.Concat(masked(opText, []byte("x\xe2\x82")), masked(fin|opPing, []byte("hello")), masked(fin, []byte("\xac"))), uint16(10), uint8(3))
	f.Add(masked(fin|opClose, []byte("\x03\xe8bye")), uint16(0), uint8(7))
	f.Add([]byte{fin | opText, 0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, uint16(0xffff), uint8(1))
	f.Add([]byte{fin | opBinary, 0x80 | 126, 0, 126, 1, 2, 3, 4}, uint16(200), uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, limit uint16, step uint8) {
		if len(stream) > 1000 {
			t.Skip("the reference reads everything anew for each frame")
		}
		var cuts []int
		for i := 0; step > 0 && i < len(stream); i += int(step) {
			cuts = append(cuts, i)
		}
		watch(t, stream, int(limit), cuts)
	})
}

func BenchmarkWatcher(b *testing.B) {
	for _, payload := range []string{`{"action":"ping"}`, string(bytes.Repeat([]byte("x"), 4000))} {
		b.Run(fmt.Sprint(len(payload)), func(b *testing.B) {
			stream := masked(fin|opText, []byte(payload))
			w := watcher{limit: 1 << 20}
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = w.follow(stream)
			}
		})
	}
}
