package wsgateway

import (
	"errors"
	"net/http"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
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
	return &refusal{status: http.StatusServiceUnavailable, err: errors.New(why)}
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
	channels, after, err := door.ParseQuery(r.URL)
	if err != nil {
		return h.refuse(c, endBadRequest, &refusal{status: http.StatusBadRequest, said: err.Error(), err: err})
	}
	// Behind all that can be wrong with the request: nobody gives way to one that
	// is refused.
	switch giveWay, ok := h.door.Claim(c); {
	case !ok:
		return h.full("no more connections")
	case giveWay != nil:
		giveWay.end(endReplaced)
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

// register makes the session of c and composes what it hears first.
func (h *Handler) register(c *conn, channels []notification.Channel, cursor string) *refusal {
	var resumed bool
	var err error
	c.session, resumed, err = door.Register(h.sessions, notification.SessionConfig{UserID: c.user, Sink: c, Channels: channels}, cursor, c.batches)
	if err != nil {
		switch status := door.StatusOf(err); status {
		case http.StatusServiceUnavailable:
			return h.full(err.Error())
		case http.StatusMisdirectedRequest:
			return &refusal{status: status, said: "another server has this user", err: err}
		case http.StatusGone: // without a subprotocol there is no reset
			return &refusal{status: status, said: "cursor gone: load a snapshot, connect without it", err: err}
		default:
			h.log.Error("websocket refused: no session", "user", c.user, "error", err)
			return &refusal{status: status, err: err}
		}
	}
	c.session.Touch()
	if !c.batches {
		return nil
	}
	// Push waits for the welcome, and until it has returned the cursor that
	// others see does not move.
	c.wire = c.session.Cursor()
	c.hello = append(c.hello, appendJSONFrame(nil, welcome{
		Action:      "welcome",
		SessionID:   c.session.ID(),
		Cursor:      c.wire.String(),
		Resumed:     resumed,
		Channels:    c.session.Subscriptions(),
		HeartbeatMS: h.cfg.HeartbeatInterval.Milliseconds(),
		Refresh:     h.cfg.Refresh != nil,
	}))
	if cursor != "" && !resumed {
		c.hello = append(c.hello, appendJSONFrame(nil, reset{Action: "reset", Reason: "cursor_gone"}))
	}
	return nil
}
