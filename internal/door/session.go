package door

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// Sessions is where sessions are made.
type Sessions interface {
	RegisterSession(notification.SessionConfig) (*notification.Session, error)
}

// ParseQuery reads ?channels= and ?cursor=. Its errors are for the peer.
func ParseQuery(u *url.URL) (channels []notification.Channel, cursor string, err error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, "", errors.New("the query cannot be read")
	}
	if q.Has("channels") {
		if channels, err = web.ParseChannels(q.Get("channels")); err != nil {
			return nil, "", errors.New("the channels are trade, account, position, risk and system")
		}
	}
	return channels, q.Get("cursor"), nil
}

// Register makes a session with a random ID that goes on behind cursor, or begins
// now if that is empty. If the cursor is gone, or is none, which comes to the same
// for the client, the session begins now, if orElse allows that; else the error Is
// notification.ErrCursorGone. It returns where the session really begins.
//
// The caller's Sink may be pushed to at once.
func Register(g Sessions, cfg notification.SessionConfig, cursor string, orElse bool) (s *notification.Session, resumed bool, err error) {
	cfg.ID = rand.Text()
	if cursor != "" {
		if cfg.After, err = notification.ParseCursor(cursor); err == nil {
			s, err = g.RegisterSession(cfg)
		} else {
			err = errors.Join(notification.ErrCursorGone, err)
		}
		if err == nil || !errors.Is(err, notification.ErrCursorGone) || !orElse {
			return s, err == nil, err
		}
		cfg.After = notification.Cursor{}
	}
	s, err = g.RegisterSession(cfg)
	return s, false, err
}

// StatusOf returns the HTTP status for an error of Register: 503 if there is no
// room here, or not yet, and perhaps elsewhere.
func StatusOf(err error) int {
	switch {
	case errors.Is(err, notification.ErrTooManySessions), errors.Is(err, notification.ErrClosed), errors.Is(err, notification.ErrTryAgain):
		return http.StatusServiceUnavailable
	case errors.Is(err, web.ErrElsewhere):
		return http.StatusMisdirectedRequest
	case errors.Is(err, notification.ErrCursorGone):
		return http.StatusGone
	}
	return http.StatusInternalServerError
}
