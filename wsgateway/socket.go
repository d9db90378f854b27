package wsgateway

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification/internal/door"
)

// timers are what is due beside the socket's own. The reader calls both.
type timers interface {
	next() time.Time          // zero: never
	fire(now time.Time) error // does what is due, if anything; an error ends the connection
}

// A socket is the net.Conn under a WebSocket, with the deadlines that make every
// call on it return. The library reads through it; of writing it does nothing
// but close frames, because data, pings and pongs are sent here: a batch with
// one system call, without the library's write buffer per connection, and a
// ping without a goroutine that waits for its answer.
type socket struct {
	net.Conn // immutable after Hijack
	cfg      *Config
	counts   *door.Counters
	protocol timers
	made     time.Time // immutable

	cause    atomic.Pointer[ending]    // why it ends, once it does
	poked    atomic.Bool               // what is due has changed
	sentAt   atomic.Int64              // when the last write that a page can see began, in nanoseconds since made
	writesBy atomic.Pointer[time.Time] // no write may take longer; nil: WriteTimeout

	// writing is held during a write, so that frames stay whole.
	writing sync.Mutex
	sealed  bool // guarded by writing: nothing but the close frame may be written, or nothing at all
	broken  bool // guarded by writing: a frame is incomplete, so the peer cannot understand another

	// rousing is held while the read deadline is set to the past by others than
	// the reader. It is taken behind writing.
	rousing sync.Mutex
	closed  bool // owned by the reader, which writes it with rousing held: the read deadline is final

	// owned by ServeHTTP, then by the reader
	frames watcher
	// When what is due. Zero is never.
	armed  time.Time // the read deadline, as the kernel has it
	pingAt time.Time // quiet since PingInterval
	pongBy time.Time // a ping is unanswered
	restBy time.Time // a frame or message has begun
}

func newSocket(cfg *Config, counts *door.Counters, protocol timers) *socket {
	now := time.Now()
	return &socket{
		cfg: cfg, counts: counts, protocol: protocol, made: now,
		frames: watcher{limit: cfg.ReadLimit},
		pingAt: now.Add(cfg.PingInterval),
	}
}

// controlTimeout is PongTimeout for a control frame, if it is less. The library
// has 5 s of its own for one, after which it closes the socket without a word.
const controlTimeout = 4 * time.Second

var errSealed = errors.New("wsgateway: connection is closing")

// end notes why the connection is to end, and rouses its reader. The first call
// counts.
func (s *socket) end(e *ending) {
	if s.cause.CompareAndSwap(nil, e) {
		s.hurry() // the reader may be writing
		s.rouse()
	}
}

// Read is the library's, always in the reader's goroutine. It returns a violation
// of the protocol behind the bytes that came before it, and then for ever.
func (s *socket) Read(p []byte) (int, error) {
	if s.frames.bad != nil {
		return 0, s.refuse()
	}
	if s.armed.IsZero() && !s.closed {
		s.arm()
	}
	for {
		n, err := s.Conn.Read(p)
		switch {
		case n > 0 && !s.closed:
			return s.arrived(p[:n])
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
	s.poked.Store(false)
	s.armed = s.pingAt
	for _, t := range []time.Time{s.pongBy, s.restBy, s.protocol.next()} {
		if !t.IsZero() && (s.armed.IsZero() || t.Before(s.armed)) {
			s.armed = t
		}
	}
	_ = s.SetReadDeadline(s.armed)
	// end and poke set the deadline to the past after they have stored why. If
	// that was undone just now, the reason is there to be seen.
	if s.cause.Load() != nil || s.poked.Load() {
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
	if err := s.protocol.fire(now); err != nil {
		return err
	}
	s.arm()
	return nil
}

// poke rouses the reader, because what next returns has changed.
func (s *socket) poke() {
	s.poked.Store(true)
	s.rouse()
}

// rouse makes a read return. Once the socket is sealed it does nothing: whoever
// comes so late would cut off the peer's close frame, which is being waited for.
func (s *socket) rouse() {
	s.rousing.Lock()
	defer s.rousing.Unlock()
	if !s.closed {
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
}

// lastSent returns when the last write that a page can see began, or the socket
// if there was none. It does not follow the wall clock, which may be set.
func (s *socket) lastSent() time.Time { return s.made.Add(time.Duration(s.sentAt.Load())) }

// sent notes what lastSent returns.
func (s *socket) sent(at time.Time) { s.sentAt.Store(int64(at.Sub(s.made))) }

// arrived follows the frames in p, and sets the clocks by them. It returns how
// many bytes of p come before a violation, and that.
func (s *socket) arrived(p []byte) (good int, err error) {
	s.counts.BytesIn.Add(uint64(len(p)))
	now := time.Now()
	for good < len(p) {
		if !s.frames.begun() {
			s.restBy = now.Add(s.cfg.PongTimeout)
		}
		n, opcode, whole := s.frames.follow(p[good:])
		good += n
		if s.frames.bad != nil {
			return good, s.frames.bad
		}
		if !whole {
			continue
		}
		s.pingAt = now.Add(s.cfg.PingInterval)
		if opcode == opPong {
			s.pongBy = time.Time{}
		}
		if !s.frames.begun() {
			s.restBy = time.Time{}
		}
	}
	if s.frames.have > 0 && s.frames.control() && s.frames.message == 0 {
		if by := now.Add(controlTimeout); by.Before(s.restBy) {
			s.restBy = by
		}
	}
	for _, t := range []time.Time{s.restBy, s.pingAt} { // pingAt: behind a pong, for which there was more time
		if !t.IsZero() && t.Before(s.armed) {
			s.arm()
		}
	}
	return good, nil
}

// refuse gives the library nothing more to read from a peer that has violated
// the protocol. Once the close frame is written it reads on without looking,
// until the peer goes or the deadline passes: if the socket were closed with
// bytes in it that nobody has read, the kernel would reset the connection, and
// the peer might never see the close frame.
func (s *socket) refuse() error {
	if !s.closed {
		return s.frames.bad
	}
	if _, err := io.Copy(io.Discard, s.Conn); err != nil {
		return err
	}
	return io.EOF
}

// send writes whole frames.
func (s *socket) send(frames []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sendLocked(frames)
}

// sendLocked is send for whoever holds s.writing.
func (s *socket) sendLocked(frames []byte) error {
	if s.sealed {
		return errSealed
	}
	return s.write(frames)
}

// Write is the library's: a close frame, after which nothing may follow. (Its
// buffer has room for one, so that it comes in one piece.) For a peer that has
// violated the protocol the stream ends behind it, because the close frame that
// answers ours will not be looked at.
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
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok && s.frames.bad != nil {
		_ = half.CloseWrite()
	}
	return len(p), nil
}

// write writes within WriteTimeout, or sooner if hurry or seal said so. Both
// store what they want before they set the deadline, so that it is seen here if
// it was overwritten. s.writing is held.
func (s *socket) write(p []byte) error {
	start := time.Now()
	if p[0]&0x8 == 0 { // pings and pongs are control frames: no page hears of them
		s.sent(start)
	}
	_ = s.SetWriteDeadline(start.Add(s.cfg.WriteTimeout))
	if by := s.writesBy.Load(); by != nil {
		_ = s.SetWriteDeadline(*by)
	}
	if _, err := s.Conn.Write(p); err != nil {
		s.sealed, s.broken = true, true
		return err
	}
	s.counts.FramesOut.Add(1)
	s.counts.Wrote(len(p), time.Since(start))
	return nil
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
	s.sealed = true
	s.writesBy.Store(&by)
	s.rousing.Lock()
	defer s.rousing.Unlock()
	s.closed = true
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
