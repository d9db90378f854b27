package wsgateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
	"github.com/qaexchange/notification/web"
)

const (
	// grace is how long a write that is under way may still take when its
	// session has ended. The Gateway waits a second for Push before it calls the
	// sink hung.
	grace = 500 * time.Millisecond

	// closeTimeout is how long a peer has to answer our close frame, or
	// WriteTimeout if that is less.
	closeTimeout = 5 * time.Second

	// refusalTimeout is closeTimeout for who is refused.
	refusalTimeout = time.Second

	// warnBefore is how long before its credentials expire a client is told.
	warnBefore = time.Minute
)

// A conn is one WebSocket and the notification.Sink of its session.
//
// How one ends: somebody calls end, which notes why and wakes the reader; the
// reader, or its own failure, leads run to finish, which alone ends the session,
// says goodbye and closes the socket. So there is one place that closes, and it
// holds whoever began it.
type conn struct {
	// immutable once ready is closed
	h         *Handler
	user      string
	batches   bool // batchProtocol was agreed on
	sock      *socket
	ws        *websocket.Conn
	session   *notification.Session // nil if it was refused
	refused   *ending               // why it has no session
	abandoned bool                  // it was not upgraded

	ready chan struct{} // closed when the welcome is written, or it was abandoned

	entered bool     // owned by ServeHTTP: it has to leave h.door
	hello   [][]byte // owned by ServeHTTP, then by run: the frames that are sent first

	expires    atomic.Int64 // the credentials, in Unix nanoseconds; 0: never
	refreshing atomic.Bool
	refreshes  sync.WaitGroup // of at most one

	// owned by run's goroutine, in which the library calls pinged and ponged too
	budget      door.Bucket
	warned      int64              // for which expires the client was warned
	stopRefresh context.CancelFunc // of the last one

	// owned by Push and Live, of which there is one call at a time
	watching bool
	dropped  uint64 // of Session.Dropped, how many the client has been told of

	wire notification.Cursor // guarded by sock.writing: the last that was sent
}

func newConn(h *Handler) *conn {
	c := &conn{h: h, ready: make(chan struct{}), budget: door.NewBucket(h.cfg.CommandsPerSecond)}
	c.sock = newSocket(&h.cfg, &h.counts, c)
	return c
}

// User and LastActive are what h.door asks.
func (c *conn) User() string { return c.user }

func (c *conn) LastActive() time.Time {
	if c.session == nil { // it is told that it is refused
		return time.Time{}
	}
	return c.session.LastActive()
}

// end makes the connection end as e says, unless it is ending already. It does
// not wait.
func (c *conn) end(e *ending) { c.sock.end(e) }

// abandon gives back what a handshake held that came to nothing.
func (c *conn) abandon() {
	c.abandoned = true
	close(c.ready)
	if c.session != nil {
		_ = c.session.Close()
	}
	if c.sock.Conn != nil {
		_ = c.sock.Close()
	}
	if c.entered {
		c.h.door.Leave(c)
	}
}

// run is the connection's goroutine.
func (c *conn) run() {
	defer c.h.door.Leave(c)
	err := c.begin()
	for err == nil {
		err = c.read()
	}
	c.finish(err)
	c.refreshes.Wait()
}

// begin says what comes before the first batch.
func (c *conn) begin() (err error) {
	defer close(c.ready)
	if c.refused != nil {
		return c.refused
	}
	c.h.counts.Accepted.Add(1)
	for _, frame := range c.hello {
		if err = c.sock.send(frame); err != nil {
			break
		}
	}
	c.hello = nil
	return err
}

// read reads a message and does what it says.
func (c *conn) read() error {
	// No deadline in the context: the socket has its own, and one here would
	// cost the library a timer for every frame.
	kind, r, err := c.ws.Reader(context.Background())
	if err != nil {
		return err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	c.heard()
	if !c.budget.Take() {
		return endFlood
	}
	c.h.counts.Commands.Add(1)
	return c.answer(c.execute(kind == websocket.MessageText, text))
}

// answer sends what a command leads to; nil: nothing.
func (c *conn) answer(a *answer) error {
	if a == nil {
		return nil
	}
	if a.Action == "error" {
		c.h.counts.CommandErrors.Add(1)
	}
	return c.sock.send(appendJSONFrame(nil, a))
}

// heard notes that a whole message or control frame has arrived.
func (c *conn) heard() {
	c.h.counts.FramesIn.Add(1)
	c.session.Touch()
}

// pinged is called by the library for a ping. It always returns false, so that
// the library does not answer: it would do so without a limit, and give up on a
// slow peer sooner than WriteTimeout.
func (c *conn) pinged(_ context.Context, payload []byte) bool {
	if c.sock.cause.Load() != nil {
		return false
	}
	c.heard()
	if !c.budget.Take() {
		c.end(endFlood)
		return false
	}
	pong := append(appendHeader(nil, opPong, len(payload)), payload...)
	if c.sock.send(pong) != nil {
		c.end(endLost)
	}
	return false
}

// ponged is called by the library for a pong, ours or one that nobody asked for.
func (c *conn) ponged(context.Context, []byte) {
	if c.sock.cause.Load() != nil {
		return
	}
	c.heard()
	if !c.budget.Take() {
		c.end(endFlood)
	}
}

// lastNano is the last time that Unix nanoseconds reach, in the year 2262. Who
// says 9999 means for ever.
var lastNano = time.Unix(0, math.MaxInt64)

// setExpires changes when the credentials expire; the zero time is never.
func (c *conn) setExpires(t time.Time) {
	if t.IsZero() || t.After(lastNano) {
		c.expires.Store(0)
	} else {
		c.expires.Store(t.UnixNano())
	}
}

// next returns when the protocol has something to do, zero for never. The socket
// asks, in the reader's goroutine.
func (c *conn) next() (at time.Time) {
	if expires := c.expires.Load(); expires != 0 {
		at = time.Unix(0, expires)
		if c.batches && c.warned != expires {
			at = at.Add(-warnBefore)
		}
	}
	if c.batches {
		if beat := c.sock.lastSent().Add(c.h.cfg.HeartbeatInterval); at.IsZero() || beat.Before(at) {
			at = beat
		}
	}
	return at
}

// fire does what is due.
func (c *conn) fire(now time.Time) error {
	if expires := c.expires.Load(); expires != 0 {
		left := time.Unix(0, expires).Sub(now)
		if left <= 0 {
			return endCredentials
		}
		if c.batches && c.warned != expires && left <= warnBefore {
			c.warned = expires
			if err := c.sock.send(appendJSONFrame(nil, expiring{"expiring", left.Milliseconds()})); err != nil {
				return err
			}
		}
	}
	if c.batches && now.Sub(c.sock.lastSent()) >= c.h.cfg.HeartbeatInterval {
		return c.heartbeat(now)
	}
	return nil
}

// heartbeat tells a client that nothing was for it, and a young cursor. The
// cursor must not be older than that of a batch that was written before: it is,
// between the writing and the moment when the session has taken note of it.
func (c *conn) heartbeat(now time.Time) error {
	if !c.sock.writing.TryLock() {
		c.sock.sent(now) // something is being written
		return nil
	}
	defer c.sock.writing.Unlock()
	if cursor := c.session.Cursor(); cursor.Covers(c.wire) {
		c.wire = cursor
	}
	return c.sock.sendLocked(appendJSONFrame(nil, heartbeat{"heartbeat", c.wire.String()}))
}

// finish ends the session and closes the socket, with a close frame if the peer
// can still understand one. It takes no longer than grace and closeTimeout.
func (c *conn) finish(err error) {
	e := c.sock.cause.Load()
	if e == nil && !errors.As(err, &e) {
		e = endingOfRead(err)
	}
	c.end(e) // from here on whatever else comes is too late
	if c.stopRefresh != nil {
		c.stopRefresh()
	}
	if c.session != nil {
		_ = c.session.Close()
	}
	wait := min(closeTimeout, c.h.cfg.WriteTimeout)
	switch e {
	case endSilent:
		wait = min(wait, grace)
	case c.refused:
		wait = min(wait, refusalTimeout)
	}
	by := time.Now().Add(wait)
	if !e.by.IsZero() && e.by.Before(by) {
		by = e.by
	}
	if c.sock.seal(by) && e != endLost {
		// It waits for the peer's close frame, whatever the peer sends instead,
		// and the socket's deadline is what ends that.
		_ = c.ws.Close(e.code, e.text)
	}
	_ = c.ws.CloseNow()
	if c.refused == nil {
		c.h.counts.Closed(closeCode(e, websocket.CloseStatus(err)))
	}
	c.h.log.Debug("websocket ended", "user", c.user, "code", int(e.code), "reason", e.text, "error", err)
}

// closeCode returns what is counted for a connection that ended as e says, or with
// the peer's close frame if that has a status, else it is negative.
func closeCode(e *ending, peer websocket.StatusCode) web.Code {
	switch {
	case e != endNormal || peer < 0:
		return web.Code(e.code)
	case peer >= 3000: // the peer's own, which could be anything
		return 0
	}
	return web.Code(peer)
}

// endingOfRead tells of a failed read how the connection ends.
func endingOfRead(err error) *ending {
	var broken *net.OpError
	switch {
	case websocket.CloseStatus(err) >= 0:
		return endNormal // the peer went
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errSealed), errors.As(err, &broken):
		return endLost
	case errors.Is(err, context.DeadlineExceeded): // the library's, which has closed the socket
		return endLost
	}
	return endProtocol
}

// Push writes a batch, with one call to the socket.
func (c *conn) Push(ctx context.Context, batch []*notification.Message) error {
	if err := c.awaitReady(ctx); err != nil {
		return err
	}
	if !c.watching {
		// Close is called after Push has returned: too late for a Push that
		// blocks. Runs once, when the session ends, and returns at once.
		c.watching = true
		context.AfterFunc(ctx, c.sock.hurry)
	}
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	dropped := c.session.Dropped()
	var cursor notification.Cursor
	switch {
	case c.batches:
		cursor = c.session.Cursor()
		*buf = appendBatch((*buf)[:0], batch, cursor.String(), dropped-c.dropped)
		c.dropped = dropped
	case dropped > 0: // there is no frame that could tell, and a hole must not be silent
		return fmt.Errorf("wsgateway: %w: %d dropped", notification.ErrSlowConsumer, dropped)
	default:
		*buf = appendSingles((*buf)[:0], batch)
	}
	c.sock.writing.Lock()
	defer c.sock.writing.Unlock()
	err := c.sock.sendLocked(*buf)
	switch {
	case err == nil:
		c.wire = cursor
		if !c.batches {
			c.h.counts.FramesOut.Add(uint64(len(batch) - 1)) // the socket has counted one
		}
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("wsgateway: %w: %w", notification.ErrSlowConsumer, err)
	default:
		c.end(endLost)
	}
	return err
}

// Live says that what was replayed has been sent.
func (c *conn) Live() {
	if c.awaitReady(context.Background()) == nil && c.batches {
		_ = c.sock.send(appendJSONFrame(nil, live{"live"})) // whoever reads or writes next finds out
	}
}

// awaitReady waits until the client has been welcomed: a session is pushed to
// from the moment in which it is registered, which is before the upgrade.
func (c *conn) awaitReady(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if c.abandoned {
		return errSealed
	}
	return nil
}

// Close is the session's: it leaves the rest to run.
func (c *conn) Close(reason error) {
	if c.awaitReady(context.Background()) == nil {
		c.end(endingOf(reason))
	}
}
