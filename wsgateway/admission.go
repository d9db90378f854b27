package wsgateway

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// A refusal is an HTTP status in place of the 101.
type refusal struct {
	status int
	said   string // to the peer; empty: the status's text
	err    error  // for the log
}

func (f *refusal) text() string {
	if f.said != "" {
		return f.said
	}
	return http.StatusText(f.status)
}

// full is the refusal that lets a proxy try the next server.
func (h *Handler) full(why string) *refusal {
	h.fullLog.Note(h.log, "websockets refused with 503", why)
	return &refusal{status: http.StatusServiceUnavailable, said: why}
}

// admit is all that comes between a good handshake from a good origin and the
// 101: a place, the user, the query, the session. The session is registered
// before the 101 is sent, so that whoever sees its connection open misses nothing
// from then on; what is pushed meanwhile waits for the welcome.
func (h *Handler) admit(c *conn, r *http.Request) *refusal {
	if !h.door.Enter(c) {
		return h.full("no more connections")
	}
	c.entered = true
	who, err := h.cfg.Authenticate(r)
	if err == nil {
		err = who.Check(time.Now())
	}
	switch {
	case errors.Is(err, web.ErrForbidden):
		return h.refuse(c, endForbidden, &refusal{status: http.StatusForbidden, err: err})
	case err != nil:
		return h.refuse(c, endUnauthorized, &refusal{status: http.StatusUnauthorized, err: err})
	}
	c.user = who.UserID
	c.setExpires(who.Expires)
	switch giveWay, ok := h.door.Claim(c); {
	case !ok:
		return h.full("no more connections")
	case giveWay != nil:
		giveWay.end(endReplaced)
	}
	channels, after, err := parseQuery(r.URL)
	if err != nil {
		return h.refuse(c, endBadRequest, &refusal{status: http.StatusBadRequest, said: err.Error(), err: err})
	}
	return h.register(c, channels, after)
}

// refuse upgrades a connection of the batch protocol to tell it why it is
// refused, because a browser shows a page nothing of an HTTP status. There is
// room for few of these; the others get the status.
func (h *Handler) refuse(c *conn, e *ending, otherwise *refusal) *refusal {
	if !c.batches || !h.door.Refuse(c) {
		return otherwise
	}
	h.counts.Refused(otherwise.status)
	h.log.Debug("websocket refused by a close frame", "user", c.user, "code", int(e.code), "error", otherwise.err)
	c.refused = e
	return nil
}

// parseQuery reads ?channels= and ?cursor=.
func parseQuery(u *url.URL) (channels []notification.Channel, cursor string, err error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, "", errors.New("the query cannot be read")
	}
	if q.Has("channels") {
		if channels, err = web.ParseChannels(q.Get("channels")); err != nil {
			return nil, "", errors.New("channels: they are trade, account, position, risk and system")
		}
	}
	return channels, q.Get("cursor"), nil
}

// register makes the session of c and composes what it hears first.
func (h *Handler) register(c *conn, channels []notification.Channel, cursor string) *refusal {
	cfg := notification.SessionConfig{ID: rand.Text(), UserID: c.user, Sink: c, Channels: channels}
	gone := false
	var err error
	if cursor != "" {
		if cfg.After, err = notification.ParseCursor(cursor); err == nil {
			c.session, err = h.sessions.RegisterSession(cfg)
		}
		// A cursor that is none is as good as one that is gone: either way the
		// client has to load a snapshot.
		gone = errors.Is(err, notification.ErrInvalid) || errors.Is(err, notification.ErrCursorGone)
	}
	if gone && !c.batches { // where there is no reset
		return &refusal{status: http.StatusGone, said: "cursor gone: load a snapshot, connect without it", err: err}
	}
	if cursor == "" || gone {
		cfg.After = notification.Cursor{}
		c.session, err = h.sessions.RegisterSession(cfg)
	}
	switch {
	case err == nil:
	case errors.Is(err, notification.ErrTooManySessions):
		return h.full("no more sessions")
	case errors.Is(err, notification.ErrClosed):
		return h.full("going away")
	default:
		h.log.Error("websocket refused: no session", "user", c.user, "error", err)
		return &refusal{status: http.StatusInternalServerError, err: fmt.Errorf("no session: %w", err)}
	}
	c.session.Touch()
	if !c.batches {
		return nil
	}
	// Push waits for the welcome, and until it has returned the cursor that
	// others see does not move.
	c.wire = c.session.Cursor()
	c.hello = appendJSONFrame(nil, welcome{
		Action:      "welcome",
		SessionID:   c.session.ID(),
		Cursor:      c.wire.String(),
		Resumed:     cursor != "" && !gone,
		Channels:    c.session.Subscriptions(),
		HeartbeatMS: h.cfg.HeartbeatInterval.Milliseconds(),
		Refresh:     h.cfg.Refresh != nil,
	})
	if gone {
		c.hello = appendJSONFrame(c.hello, reset{Action: "reset", Reason: "cursor_gone"})
	}
	return nil
}
