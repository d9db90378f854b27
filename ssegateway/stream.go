package ssegateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// grace is how long a write that is under way may still take when its stream is
// to end. The Gateway waits a second for Push before it calls the sink hung.
const grace = 500 * time.Millisecond

// An ending is why a stream ends, as the client is told.
type ending struct {
	code web.Code
	text string
}

// The endings of which nobody can be told.
var (
	lost = ending{web.CodeAbnormal, "connection lost"}
	slow = ending{web.CodeSlow, "slow consumer"}
)

var errEnded = errors.New("ssegateway: stream has ended")

// A stream is one answer that does not end, and the notification.Sink of its
// session.
//
// How one ends: somebody calls end, which notes why and wakes run. That ends the
// session, waits for it, says goodbye and returns from the request, after which
// nobody writes. So there is one place that ends, whoever began it.
type stream struct {
	// immutable once ready is closed
	h       *Handler
	w       http.ResponseWriter
	control *http.ResponseController
	user    string
	expires time.Time // zero: never
	batches bool      // ?batch=1
	session *notification.Session

	ready chan struct{} // closed when the welcome is written, or could not be

	once   sync.Once
	ended  chan struct{} // closed when the stream is to end
	reason ending        // immutable once ended is closed

	// owned by Push, of which there is one call at a time
	watching bool
	dropped  uint64 // of Session.Dropped, how many the client has been told of

	mu     sync.Mutex
	first  []byte              // guarded by mu: what is sent first, until it is
	broken bool                // guarded by mu: nothing may be written any more
	wire   notification.Cursor // guarded by mu: the last that was sent
	sent   time.Time           // guarded by mu: when the last write began

	// Deadlines are set by who ends the stream while another one writes; and only
	// while one does: w is net/http's again once the request has returned, and the
	// connection the next request's. Locked after mu.
	limit   sync.Mutex
	writing bool      // guarded by limit
	by      time.Time // guarded by limit: no write may take longer; zero: WriteTimeout
}

func newStream(h *Handler, w http.ResponseWriter) *stream {
	return &stream{
		h: h, w: w, control: http.NewResponseController(w),
		ready: make(chan struct{}), ended: make(chan struct{}),
	}
}

// User and LastActive are what the door asks.
func (s *stream) User() string          { return s.user }
func (s *stream) LastActive() time.Time { return s.session.LastActive() }

// end makes the stream end as e says, unless it is ending already. It does not
// wait, but a write that is under way has no more than grace.
func (s *stream) end(e ending) {
	s.once.Do(func() {
		s.reason = e
		close(s.ended)
		s.hurry()
	})
}

// hello composes what the client hears first. Push waits for it, and until it has
// returned the cursor that others see does not move.
func (s *stream) hello(resumed, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire = s.session.Cursor()
	s.first = appendRetry(nil, retry(retryAfter))
	s.first = appendEvent(s.first, "welcome", s.wire.String(), marshal(welcome{
		SessionID:   s.session.ID(),
		Cursor:      s.wire.String(),
		Resumed:     resumed,
		Channels:    s.session.Subscriptions(),
		HeartbeatMS: s.h.cfg.HeartbeatInterval.Milliseconds(),
	}))
	if gone {
		s.first = appendEvent(s.first, "reset", "", []byte(`{"reason":"cursor_gone"}`))
	}
}

// run streams until the end.
func (s *stream) run(r *http.Request) {
	s.h.counts.Accepted.Add(1)
	if !s.h.door.Connected(s) { // before anything is written, for which Shutdown may have no time
		s.end(ending{web.CodeGoingAway, "server going away"})
	}
	s.begin()
	beat := time.NewTimer(s.h.cfg.HeartbeatInterval)
	defer beat.Stop()
	expired := make(<-chan time.Time)
	if !s.expires.IsZero() {
		timer := time.NewTimer(time.Until(s.expires))
		defer timer.Stop()
		expired = timer.C
	}
	for over := false; !over; {
		select {
		case <-s.ended:
			over = true
		case <-r.Context().Done():
			s.lose()
		case <-expired:
			s.end(ending{web.CodeCredentials, "credentials expired"})
		case <-beat.C:
			beat.Reset(s.beat())
		}
	}
	s.finish()
}

// lose ends a stream whose request was cancelled: the peer is gone, or a write has
// failed, which cancels before it returns, and knows better why.
func (s *stream) lose() {
	s.hurry()
	s.mu.Lock() // until that write has returned
	defer s.mu.Unlock()
	s.end(lost)
}

// begin sends what comes before the first batch.
func (s *stream) begin() {
	defer close(s.ready)
	setHeader(s.w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(s.first, 1); err != nil {
		s.end(lost)
	}
	s.first = nil
}

// finish ends the session and says goodbye. When it has returned nobody writes:
// w is net/http's again.
func (s *stream) finish() {
	if s.reason.code != web.CodeSlow { // the Gateway ends it, for what Push returns
		_ = s.session.Close()
	}
	<-s.session.Done() // a Push that is under way takes no longer than grace
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hurry() // anew: with many streams that end it may have taken a while
	most := retryAfter
	if s.reason.code == web.CodeGoingAway {
		most = retryBusy
	}
	if s.reason != lost {
		_ = s.write(appendEvent(appendRetry(nil, retry(most)), "close", "", marshal(closing{s.reason.code, s.reason.text})), 1)
	}
	s.broken = true
	// net/http writes the end of the answer, for which it has no deadline.
	_ = s.control.SetWriteDeadline(time.Now().Add(grace))
	s.h.counts.Closed(s.reason.code)
	s.h.log.Debug("stream ended", "user", s.user, "code", int(s.reason.code), "reason", s.reason.text)
}

// beat sends a heartbeat if nothing was sent for its interval, and returns when to
// look again. The cursor must not be older than that of a batch that was written
// before: it is, between the writing and the moment when the session has taken
// note of it.
func (s *stream) beat() (next time.Duration) {
	interval := s.h.cfg.HeartbeatInterval
	if !s.mu.TryLock() {
		return interval // something is being written
	}
	defer s.mu.Unlock()
	if left := interval - time.Since(s.sent); left > 0 {
		return left
	}
	if cursor := s.session.Cursor(); cursor.Covers(s.wire) {
		s.wire = cursor
	}
	if s.write(appendEvent(nil, "heartbeat", s.wire.String(), []byte("{}")), 1) != nil {
		s.end(lost)
	}
	return interval
}

// write writes whole events, and has them sent. s.mu is held.
func (s *stream) write(events []byte, n int) error {
	if s.broken {
		return errEnded
	}
	start := time.Now()
	s.sent = start
	s.beginWrite(start.Add(s.h.cfg.WriteTimeout))
	_, err := s.w.Write(events)
	if err == nil {
		err = s.control.Flush()
	}
	s.endWrite()
	took := time.Since(start)
	if err != nil {
		s.broken = true
		if took >= s.h.cfg.WriteTimeout {
			return fmt.Errorf("ssegateway: %w: %w", notification.ErrSlowConsumer, err)
		}
		return err
	}
	s.session.Touch()
	s.h.counts.FramesOut.Add(uint64(n))
	s.h.counts.Wrote(len(events), took)
	return nil
}

// beginWrite sets the deadline of a write.
func (s *stream) beginWrite(by time.Time) {
	s.limit.Lock()
	defer s.limit.Unlock()
	s.writing = true
	if !s.by.IsZero() {
		by = s.by
	}
	_ = s.control.SetWriteDeadline(by)
}

// endWrite takes it back: with HTTP/2 a deadline that passes ends the stream, even
// if nothing is being written.
func (s *stream) endWrite() {
	s.limit.Lock()
	defer s.limit.Unlock()
	s.writing = false
	_ = s.control.SetWriteDeadline(time.Time{})
}

// hurry leaves a write that is under way, and any other, no more than grace.
func (s *stream) hurry() { s.writeBy(time.Now().Add(grace)) }

// cut ends the stream without a word.
func (s *stream) cut() {
	s.end(lost)
	s.writeBy(past)
}

// past is a deadline that has passed for good.
var past = time.Unix(1, 0)

func (s *stream) writeBy(by time.Time) {
	s.limit.Lock()
	defer s.limit.Unlock()
	if s.by == past {
		return
	}
	s.by = by
	if s.writing {
		_ = s.control.SetWriteDeadline(by)
	}
}

// Push writes a batch.
func (s *stream) Push(ctx context.Context, batch []*notification.Message) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !s.watching {
		// Close is called after Push has returned: too late for a Push that
		// blocks. Runs once, when the session ends, and returns at once.
		s.watching = true
		context.AfterFunc(ctx, s.hurry)
	}
	dropped := s.session.Dropped()
	cursor := s.session.Cursor()
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	var n int
	*buf, n = appendBatch((*buf)[:0], batch, cursor.String(), dropped-s.dropped, s.batches)
	s.dropped = dropped
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.write(*buf, n)
	switch {
	case err == nil:
		s.wire = cursor
	case errors.Is(err, notification.ErrSlowConsumer):
		s.end(slow)
	default:
		s.end(lost)
	}
	return err
}

// Live says that what was replayed has been sent.
func (s *stream) Live() {
	<-s.ready
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.write(appendEvent(nil, "live", "", []byte("{}")), 1) // whoever writes next finds out
}

// Close is the session's: it leaves the rest to run.
func (s *stream) Close(reason error) {
	s.end(ending{web.CodeOf(reason), endingText(reason)})
}

// endingText tells why a session ended without what is not for the client.
func endingText(reason error) string {
	switch web.CodeOf(reason) {
	case web.CodeFailed:
		return "internal error"
	case web.CodeGoingAway:
		return "server going away"
	case web.CodeReplaced:
		return "replaced by a newer session"
	case web.CodeSlow:
		return "slow consumer"
	case web.CodeNotHeard:
		return "session expired"
	case web.CodeGap:
		return "gap"
	}
	return "closed"
}
