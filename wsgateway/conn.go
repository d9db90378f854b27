package wsgateway

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
)

const (
	// grace is how long a write that is under way may still take when its
	// session has ended. The Gateway waits a second for Push before it calls the
	// sink hung.
	grace = 500 * time.Millisecond

	// closeTimeout is how long a peer has to answer our close frame, or
	// WriteTimeout if that is less.
	closeTimeout = 5 * time.Second
)

// A conn is one WebSocket and the notification.Sink of its session.
//
// How one ends: somebody calls end, which notes why and wakes the reader; the
// reader, or its own failure, leads run to finish, which alone ends the session,
// says goodbye and closes the socket. So there is one place that closes, and it
// holds whoever began it.
type conn struct {
	// immutable after ServeHTTP
	h       *Handler
	who     Identity
	after   string // the cursor that the client came with
	sock    *socket
	ws      *websocket.Conn
	batches bool // batchProtocol was agreed on

	ready chan struct{} // closed when session is set and the welcome is written

	session *notification.Session // immutable once ready is closed

	// owned by run's goroutine, in which the library calls pinged and ponged too
	budget    bucket
	inMessage bool // between the first and the last frame of a message

	// owned by Push, of which there is one at a time
	watching bool
	dropped  uint64 // of Session.Dropped, how many the client has been told of
}

func newConn(h *Handler, who Identity, after string) *conn {
	return &conn{
		h: h, who: who, after: after,
		sock:   newSocket(&h.cfg, who.Expires),
		ready:  make(chan struct{}),
		budget: newBucket(h.cfg.CommandsPerSecond),
	}
}

// end makes the connection end as e says, unless it is ending already. It does
// not wait.
func (c *conn) end(e *ending) { c.sock.end(e) }

// run is the connection's goroutine.
func (c *conn) run() {
	defer c.h.leave(c)
	err := c.register()
	for err == nil {
		err = c.read()
	}
	c.finish(err)
}

// register makes the session and says welcome.
func (c *conn) register() error {
	defer close(c.ready)
	cfg := notification.SessionConfig{ID: rand.Text(), UserID: c.who.UserID, Sink: c}
	var frames []byte
	var err error
	cursor := c.after
	if cursor != "" {
		if cfg.After, err = notification.ParseCursor(cursor); err == nil {
			c.session, err = c.h.gateway.RegisterSession(cfg)
		}
		// A cursor that is none is as good as one that is gone: either way the
		// client has to load a snapshot.
		if errors.Is(err, notification.ErrInvalid) || errors.Is(err, notification.ErrCursorGone) {
			frames = appendReply(frames, &reply{Action: "reset", Reason: "cursor_gone"})
			cursor = ""
		}
	}
	if cursor == "" {
		// A running Push has moved the cursor on before the client has the
		// batch, and the welcome must not promise it. So no Push may come before
		// we have looked: nothing passes the filter until then.
		cfg.After, cfg.Channels = notification.Cursor{}, []notification.Channel{}
		if c.session, err = c.h.gateway.RegisterSession(cfg); err == nil {
			cursor = c.session.Cursor().String()
			c.session.SubscribeAll()
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, notification.ErrTooManySessions):
		return endBusy
	case errors.Is(err, notification.ErrClosed):
		return endGoingAway
	default:
		c.h.log.Error("websocket refused: no session", "user", c.who.UserID, "error", err)
		return endFailed
	}
	c.session.Touch()
	if c.batches {
		frames = appendReply(frames, &reply{Action: "welcome", SessionID: c.session.ID(), Cursor: &cursor})
	}
	if len(frames) == 0 {
		return nil
	}
	return c.sock.send(frames)
}

// read reads a message and does what it says.
func (c *conn) read() error {
	// No deadline in the context: the socket has its own, and one here would
	// cost the library a timer for every frame.
	kind, r, err := c.ws.Reader(context.Background())
	if err != nil {
		return err
	}
	c.inMessage = true
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	c.inMessage = false
	c.heard()
	if !c.budget.take() {
		return endFlood
	}
	var answer *reply
	switch {
	case kind != websocket.MessageText:
		answer = failure("not_text", "commands are text messages")
	case !utf8.Valid(text): // the library does not look
		return endUTF8
	default:
		answer = execute(c.session, text)
	}
	if answer == nil {
		return nil
	}
	return c.sock.send(appendReply(nil, answer))
}

// heard notes that a whole message or control frame has arrived.
func (c *conn) heard() {
	c.session.Touch()
	c.sock.heard(!c.inMessage)
}

// pinged is called by the library for a ping. It always returns false, so that
// the library does not answer: it would do so without a limit, and give up on a
// slow peer sooner than WriteTimeout.
func (c *conn) pinged(_ context.Context, payload []byte) bool {
	if c.sock.cause.Load() != nil {
		return false
	}
	c.heard()
	if !c.budget.take() {
		c.end(endFlood)
		return false
	}
	pong := append(appendHeader(nil, opPong, len(payload)), payload...)
	if c.sock.send(pong) != nil {
		c.end(endFailed)
	}
	return false
}

// ponged is called by the library for a pong, ours or one that nobody asked for.
func (c *conn) ponged(context.Context, []byte) {
	if c.sock.cause.Load() != nil {
		return
	}
	c.heard()
	c.sock.ponged()
	if !c.budget.take() {
		c.end(endFlood)
	}
}

// finish ends the session and closes the socket, with a close frame if the peer
// can still understand one. It takes no longer than grace and closeTimeout.
func (c *conn) finish(err error) {
	e := c.sock.cause.Load()
	if e == nil && !errors.As(err, &e) {
		switch {
		case errors.Is(err, websocket.ErrMessageTooBig):
			e = endTooBig
		case websocket.CloseStatus(err) >= 0, errors.Is(err, io.EOF):
			e = endNormal // the peer went
		default:
			e = endProtocol
		}
	}
	c.end(e) // from here on whatever else comes is too late
	if c.session != nil {
		_ = c.session.Close()
	}
	wait := min(closeTimeout, c.h.cfg.WriteTimeout)
	if e == endSilent {
		wait = min(wait, grace)
	}
	by := time.Now().Add(wait)
	if !e.by.IsZero() && e.by.Before(by) {
		by = e.by
	}
	if c.sock.seal(by) {
		// It waits for the peer's close frame, whatever the peer sends instead,
		// and the socket's deadline is what ends that.
		_ = c.ws.Close(e.code, e.text)
	}
	_ = c.ws.CloseNow()
	c.h.log.Debug("websocket ended", "user", c.who.UserID, "code", int(e.code), "reason", e.text, "error", err)
}

// Push writes a batch, with one call to the socket.
func (c *conn) Push(ctx context.Context, batch []*notification.Message) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !c.watching {
		// Close is called after Push has returned: too late for a Push that
		// blocks. Runs once, when the session ends, and returns at once.
		c.watching = true
		context.AfterFunc(ctx, c.sock.hurry)
	}
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	if c.batches {
		dropped := c.session.Dropped()
		*buf = appendBatch((*buf)[:0], batch, c.session.Cursor().String(), dropped-c.dropped)
		c.dropped = dropped
	} else {
		*buf = appendSingles((*buf)[:0], batch)
	}
	return c.sock.send(*buf)
}

// Close is the session's: it leaves the rest to run.
func (c *conn) Close(reason error) { c.end(endingOf(reason)) }
