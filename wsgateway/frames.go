package wsgateway

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// The opcodes that only clients send.
const (
	opContinuation = 0
	opBinary       = 2
	opClose        = 8
)

const (
	maxControl = 125 // bytes of payload that RFC 6455, 5.5 leaves a control frame

	// maxEmpty is how many frames of a message may be empty. The others are
	// bounded by ReadLimit, because each has a byte at least.
	maxEmpty = 100
)

// A watcher follows the frames of a client through the bytes that arrive, in
// whatever pieces they arrive, and checks them against RFC 6455. It stands
// before the library because that takes what it should not (a length that is
// longer than need be, a close reason that is not UTF-8), waits for a payload of
// any size that a header claims, and does not tell when a frame begins. Nothing
// is kept but where in a frame, a message and a rune the stream is; what follows
// a violation never gets to the library.
type watcher struct {
	limit int64 // immutable: bytes that a message may have

	// The current frame. None has begun if have is 0.
	header [14]byte // as far as it has arrived
	have   int      // that many bytes of it
	length int64    // of the payload
	at     int64    // bytes of the payload that have arrived

	// The current message. Control frames may come between its frames.
	message byte  // its opcode; 0: none has begun
	size    int64 // payload that its frames have announced
	empty   int   // frames without payload

	// What is read of a payload: text, and the code and the reason of a close
	// frame.
	code   uint16
	letter [utf8.UTFMax]byte // a rune that has begun
	part   int               // that many bytes of it

	bad   *ending // the first violation
	ended bool    // a close frame has arrived: the rest is of no account
}

// begun reports whether a frame or a message is incomplete.
func (w *watcher) begun() bool { return w.have > 0 || w.message != 0 }

// follow goes through p to the end of a frame, or of p. It returns how many
// bytes of p the library may have, and which frame ends with the last of them,
// if any. The byte that is wrong, if there is one, is not among them; so the
// library never sees the whole of a frame that is wrong.
func (w *watcher) follow(p []byte) (n int, opcode byte, whole bool) {
	if w.bad != nil {
		return 0, 0, false
	}
	if w.ended {
		return len(p), 0, false
	}
	for ; n < len(p) && w.have < w.headerLength(); n++ {
		w.header[w.have] = p[n]
		w.have++
		if w.bad = w.checkHeader(); w.bad != nil {
			return n, 0, false
		}
	}
	if w.have < w.headerLength() {
		return n, 0, false
	}
	arrived := p[n:][:min(int64(len(p)-n), w.length-w.at)]
	if w.opcode() == opClose || !w.control() && w.message == opText {
		mask := w.header[w.have-4:]
		for i, b := range arrived {
			at := w.at + int64(i)
			if w.bad = w.checkPayload(at, b^mask[at%4]); w.bad != nil {
				return n + i, 0, false
			}
		}
	}
	w.at += int64(len(arrived))
	n += len(arrived)
	if w.at < w.length {
		return n, 0, false
	}
	opcode = w.opcode()
	if w.bad = w.endFrame(); w.bad != nil {
		return n - 1, 0, false // a frame ends with a byte of p
	}
	return n, opcode, true
}

func (w *watcher) opcode() byte  { return w.header[0] & 0xf }
func (w *watcher) control() bool { return w.header[0]&0x8 != 0 }
func (w *watcher) fin() bool     { return w.header[0]&0x80 != 0 }

// form is the second byte without its mask bit: the length up to 125; 126 if that
// is in the next 2 bytes, 127 if it is in the next 8.
func (w *watcher) form() byte { return w.header[1] & 0x7f }

// headerLength returns how long the header is, as far as that is known.
func (w *watcher) headerLength() int {
	switch {
	case w.have < 2:
		return 2
	case w.form() < 126:
		return 2 + 4
	case w.form() == 126:
		return 2 + 2 + 4
	}
	return 2 + 8 + 4
}

// checkHeader checks what the last byte of the header has told.
func (w *watcher) checkHeader() *ending {
	switch {
	case w.have == 1:
		return w.beginFrame()
	case w.have == 2:
		return w.checkForm()
	case w.have == 4 && w.form() == 126:
		return w.checkLength(uint64(binary.BigEndian.Uint16(w.header[2:])), 126)
	case w.have == 10 && w.form() == 127:
		return w.checkLength(binary.BigEndian.Uint64(w.header[2:]), 1<<16)
	}
	return nil
}

func (w *watcher) beginFrame() *ending {
	w.at, w.length = 0, 0
	switch opcode := w.opcode(); {
	case w.header[0]&0x70 != 0:
		return endProtocol.because("a reserved bit is set")
	case opcode == opClose, opcode == opPing, opcode == opPong:
		if !w.fin() {
			return endProtocol.because("a control frame is fragmented")
		}
		if opcode == opClose {
			w.part = 0 // the text that it may interrupt will not be continued
		}
	case opcode == opContinuation:
		if w.message == 0 {
			return endProtocol.because("a continuation of nothing")
		}
	case opcode == opText, opcode == opBinary:
		if w.message != 0 {
			return endProtocol.because("a message within a message")
		}
		w.message, w.size, w.empty = opcode, 0, 0
	default:
		return endProtocol.because("an unknown opcode")
	}
	return nil
}

func (w *watcher) checkForm() *ending {
	switch {
	case w.header[1]&0x80 == 0:
		return endProtocol.because("a frame is not masked")
	case w.control() && w.form() > maxControl:
		return endProtocol.because("a control frame is too long")
	case w.opcode() == opClose && w.form() == 1:
		return endProtocol.because("half a close code")
	case w.form() < 126:
		return w.checkLength(uint64(w.form()), 0)
	}
	return nil
}

// checkLength checks a length, of which least is the smallest in its form.
func (w *watcher) checkLength(length, least uint64) *ending {
	switch {
	case length < least:
		return endProtocol.because("a length is not in its shortest form")
	case length > math.MaxInt64:
		return endProtocol.because("a length of 64 bits")
	}
	w.length = int64(length)
	if w.control() {
		return nil
	}
	if w.length > w.limit-w.size {
		return endTooBig.because("a message is over " + strconv.FormatInt(w.limit, 10) + " bytes")
	}
	w.size += w.length
	if w.length == 0 {
		w.empty++
	}
	if w.empty > maxEmpty {
		return endTooBig.because("a message has over " + strconv.Itoa(maxEmpty) + " empty frames")
	}
	return nil
}

// checkPayload checks byte b, the i-th of a text or close frame, without its
// mask.
func (w *watcher) checkPayload(i int64, b byte) *ending {
	if w.opcode() == opClose && i < 2 {
		w.code = w.code<<8 | uint16(b)
		if i == 1 && !mayClose(websocket.StatusCode(w.code)) {
			return endProtocol.because("close code " + strconv.Itoa(int(w.code)))
		}
		return nil
	}
	if w.part == 0 && b < utf8.RuneSelf {
		return nil
	}
	w.letter[w.part] = b
	w.part++
	if r := w.letter[:w.part]; utf8.FullRune(r) {
		w.part = 0
		if !utf8.Valid(r) {
			return endUTF8
		}
	}
	return nil
}

// mayClose reports whether code may stand in a close frame: RFC 6455, 7.4, and
// those that IANA has added to it since, up to 1014.
func mayClose(code websocket.StatusCode) bool {
	switch code {
	case 1004, websocket.StatusNoStatusRcvd, websocket.StatusAbnormalClosure:
		return false
	}
	return 1000 <= code && code <= 1014 || 3000 <= code && code <= 4999
}

// endFrame goes on behind the last byte of a frame.
func (w *watcher) endFrame() *ending {
	w.have = 0
	w.ended = w.opcode() == opClose
	last := w.fin() && !w.control()
	if (w.ended || last) && w.part > 0 {
		return endUTF8
	}
	if last {
		w.message = 0
	}
	return nil
}

// because returns an ending like e that tells the peer what it was.
func (e *ending) because(what string) *ending {
	because := *e
	because.text = what
	return &because
}
