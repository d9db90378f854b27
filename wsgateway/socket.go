package wsgateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A socket is the net.Conn under a WebSocket, with the deadlines that make every
// call on it return. The library reads through it; of writing it does nothing
// but close frames, because data, pings and pongs are sent here: a batch with
// one system call, without the library's write buffer per connection, and a
// ping without a goroutine that waits for its answer.
type socket struct {
	net.Conn      // immutable after Hijack
	cfg           *Config
	expires       time.Time // immutable; zero: never
	longestOnWire int       // immutable: bytes that a message may take with all its headers

	cause    atomic.Pointer[ending]    // why it ends, once it does
	writesBy atomic.Pointer[time.Time] // no write may take longer; nil: WriteTimeout

	// writing is held during a write, so that frames stay whole.
	writing sync.Mutex
	sealed  bool // guarded by writing: nothing but the close frame may be written, or nothing at all
	broken  bool // guarded by writing: a frame is incomplete, so the peer cannot understand another

	// owned by the reader: when what is due. Zero is never.
	armed  time.Time // the read deadline, as the kernel has it
	pingAt time.Time // quiet since PingInterval
	pongBy time.Time // a ping is unanswered
	restBy time.Time // a frame or message has begun
	onWire int       // its bytes so far
	closed bool      // sealed: the read deadline is final
}

func newSocket(cfg *Config, expires time.Time) *socket {
	return &socket{
		cfg: cfg, expires: expires,
		// A client may send its message a byte at a time, each in a frame with 6
		// bytes of header. Endless empty frames are not within ReadLimit's reach.
		longestOnWire: 7*int(cfg.ReadLimit) + 1024,
		pingAt:        time.Now().Add(cfg.PingInterval),
	}
}

var errSealed = errors.New("wsgateway: connection is closing")

// end notes why the connection is to end, and rouses its reader. The first call
// counts.
func (s *socket) end(e *ending) {
	if s.cause.CompareAndSwap(nil, e) {
		s.hurry() // the reader may be writing
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
}

// Read is the library's, always in the reader's goroutine.
func (s *socket) Read(p []byte) (int, error) {
	if s.armed.IsZero() && !s.closed {
		s.arm()
	}
	for {
		n, err := s.Conn.Read(p)
		switch {
		case n > 0 && !s.closed:
			return n, s.arrived(n)
		case s.closed, !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		}
		if err := s.alarm(); err != nil {
			return 0, err
		}
	}
}

// arm sets the read deadline to what is due first.
func (s *socket) arm() {
	s.armed = s.pingAt
	for _, t := range []time.Time{s.pongBy, s.restBy, s.expires} {
		if !t.IsZero() && (s.armed.IsZero() || t.Before(s.armed)) {
			s.armed = t
		}
	}
	_ = s.SetReadDeadline(s.armed)
	// end sets the deadline to the past after it has stored the cause. If that
	// was undone just now, the cause is there to be seen.
	if s.cause.Load() != nil {
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
}

// alarm does what is due.
func (s *socket) alarm() error {
	if e := s.cause.Load(); e != nil {
		return e
	}
	now := time.Now()
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	switch {
	case due(s.expires):
		return endCredentials
	case due(s.restBy):
		return endDribble
	case due(s.pongBy):
		return endSilent
	case due(s.pingAt):
		s.pingAt, s.pongBy = time.Time{}, now.Add(s.cfg.PongTimeout)
		if err := s.send(appendHeader(nil, opPing, 0)); err != nil {
			return err
		}
	}
	s.arm()
	return nil
}

// arrived starts the clock of a frame at its first byte. If that came along with
// the end of the one before, it starts with the next byte; should none come, the
// peer cannot answer the next ping either.
func (s *socket) arrived(n int) error {
	if s.restBy.IsZero() {
		s.restBy = time.Now().Add(s.cfg.PongTimeout)
		if s.restBy.Before(s.armed) {
			s.arm()
		}
	}
	if s.onWire += n; s.onWire > s.longestOnWire {
		return endTooBig
	}
	return nil
}

// heard notes a whole frame: the peer is there. If it is not one in the middle
// of a message, nothing has begun.
func (s *socket) heard(whole bool) {
	s.pingAt = time.Now().Add(s.cfg.PingInterval)
	if whole {
		s.restBy, s.onWire = time.Time{}, 0
	}
}

func (s *socket) ponged() { s.pongBy = time.Time{} }

// send writes whole frames.
func (s *socket) send(frames []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.sealed {
		return errSealed
	}
	return s.write(frames)
}

// Write is the library's: a close frame, after which nothing may follow. (Its
// buffer has room for one, so that it comes in one piece.)
func (s *socket) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.broken {
		return 0, errSealed
	}
	s.sealed = true
	if err := s.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// write writes within WriteTimeout, or sooner if hurry or seal said so. Both
// store what they want before they set the deadline, so that it is seen here if
// it was overwritten. s.writing is held.
func (s *socket) write(p []byte) error {
	_ = s.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
	if by := s.writesBy.Load(); by != nil {
		_ = s.SetWriteDeadline(*by)
	}
	_, err := s.Conn.Write(p)
	if err != nil {
		s.sealed, s.broken = true, true
	}
	return err
}

// hurry leaves a write that is under way, and any other, no more than grace.
func (s *socket) hurry() {
	by := time.Now().Add(grace)
	if s.writesBy.CompareAndSwap(nil, &by) {
		_ = s.SetWriteDeadline(by)
	}
}

// seal lets nobody write any more but the library its close frame, and gives
// that and the reading of the answer until by. It reports false if the peer
// would not understand it. Only the reader calls it.
func (s *socket) seal(by time.Time) bool {
	s.hurry()
	s.writing.Lock() // no longer than grace
	defer s.writing.Unlock()
	s.sealed, s.closed = true, true
	s.writesBy.Store(&by)
	_ = s.SetDeadline(by)
	return !s.broken
}

// Close closes the descriptor at once. TLS is not asked, because its Close would
// wait for room to say so. What is left of a frame that was cut is thrown away,
// lest the kernel keep it for a peer that does not read. It does not wait for
// the lock: who holds it may be waiting for this.
func (s *socket) Close() error {
	raw := s.Conn
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	cut := true
	if s.writing.TryLock() {
		cut = s.broken
		s.writing.Unlock()
	}
	if tcp, ok := raw.(*net.TCPConn); ok && cut {
		_ = tcp.SetLinger(0)
	}
	return raw.Close()
}

// canHijack reports whether websocket.Accept will find a Hijacker in w. It finds
// one in hijackWriter, always, and would learn of a failure after the answer has
// begun.
func canHijack(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

// A hijackWriter puts the socket between the library and the net.Conn, so that
// the http.Server needs no ConnContext.
type hijackWriter struct {
	http.ResponseWriter
	sock *socket
}

// Hijack returns small buffers in place of net/http's of 4 KiB each: commands
// are short, and of writing the library does nothing but close frames.
func (w hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.sock.Conn = nc
	early, err := brw.Reader.Peek(brw.Reader.Buffered()) // what followed the handshake at once
	if err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	br := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(early)), w.sock), max(len(early), readBuffer))
	if _, err := br.Peek(len(early)); err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	return w.sock, bufio.NewReadWriter(br, bufio.NewWriterSize(w.sock, closeBuffer)), nil
}

// WriteHeaderNow is what the library calls for writers that put off their header
// until something is written, gin's above all: it must reach them.
func (w hijackWriter) WriteHeaderNow() {
	if lazy, ok := w.ResponseWriter.(interface{ WriteHeaderNow() }); ok {
		lazy.WriteHeaderNow()
	}
}

const (
	readBuffer  = 512
	closeBuffer = 128 // a control frame from a server has at most 127 bytes
)
