package ssegateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
	"github.com/qaexchange/notification/web"
)

// An EventSource reconnects by itself, and that only after a 200: every other
// status is final for it. So who may come back later is told so in a stream that
// ends, and who may not by a status.

// Reconnecting is spread over this, because EventSource has no jitter: after an
// ordinary end, and when a whole server's streams end or find no room.
const (
	retryAfter  = 3 * time.Second
	retryBusy   = 10 * time.Second
	retryAtOnce = 500 * time.Millisecond // the least
)

// retry returns a random time in milliseconds, from retryAtOnce up to most.
func retry(most time.Duration) int64 {
	return (retryAtOnce + rand.N(most-retryAtOnce)).Milliseconds()
}

// refuse answers with a status, which is final.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, status int, said string, err error) bool {
	h.counts.Refused(status)
	h.log.Debug("stream refused", "remote", r.RemoteAddr, "status", status, "error", err)
	if said == "" {
		said = http.StatusText(status)
	}
	http.Error(w, said, status)
	return false
}

// later answers with a stream that tells to come back, in place of a status.
func (h *Handler) later(w http.ResponseWriter, status int, why string) bool {
	h.counts.Refused(status)
	h.fullLog.Note(h.log, "streams refused", why)
	setHeader(w)
	_, _ = fmt.Fprintf(w, "retry: %d\nevent: close\ndata: {\"code\":%d,\"reason\":\"try again later\"}\n\n", retry(retryBusy), web.CodeTryAgain)
	return false
}

func setHeader(w http.ResponseWriter) {
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no") // nginx would hold events back
}

// admit makes the session of s, or answers and returns false.
func (h *Handler) admit(s *stream, w http.ResponseWriter, r *http.Request) bool {
	who, err := h.cfg.Authenticate(r)
	if err == nil {
		err = who.Check(time.Now())
	}
	switch {
	case errors.Is(err, web.ErrForbidden):
		return h.refuse(w, r, http.StatusForbidden, "", err)
	case err != nil:
		return h.refuse(w, r, http.StatusUnauthorized, "", err)
	}
	s.user, s.expires = who.UserID, who.Expires
	channels, cursor, err := door.ParseQuery(r.URL)
	if err == nil {
		s.batches, err = parseBatch(r.URL)
	}
	if err != nil {
		return h.refuse(w, r, http.StatusBadRequest, err.Error(), err)
	}
	// Behind all that can be wrong with the request: nobody gives way to one that
	// is refused.
	switch giveWay, ok := h.door.Claim(s); {
	case !ok:
		return h.later(w, http.StatusServiceUnavailable, "no more connections")
	case giveWay != nil:
		giveWay.end(ending{code: web.CodeReplaced, text: "replaced by a newer session"})
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		cursor = id // it is younger than what the page's URL says
	}
	var resumed bool
	s.session, resumed, err = door.Register(h.sessions, notification.SessionConfig{UserID: s.user, Sink: s, Channels: channels}, cursor, true)
	if err != nil {
		switch status := door.StatusOf(err); status {
		case http.StatusServiceUnavailable, http.StatusMisdirectedRequest: // another server may be asked next
			return h.later(w, status, err.Error())
		default:
			h.log.Error("stream refused: no session", "user", s.user, "error", err)
			return h.refuse(w, r, status, "", err)
		}
	}
	s.hello(resumed, cursor != "" && !resumed)
	return true
}

// parseBatch reads ?batch=.
func parseBatch(u *url.URL) (bool, error) {
	switch u.Query().Get("batch") {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, errors.New("batch is 0 or 1")
}

// originAllowed reports whether a page of the request's origin may open a stream.
// A page of another site can make a browser send a request without an Origin, for
// an image, say, whose answer it does not get to see: Sec-Fetch-Site tells.
// Programs send neither.
func (h *Handler) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		site := r.Header.Get("Sec-Fetch-Site")
		return site == "" || site == "same-origin" || site == "none"
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && (strings.EqualFold(u.Host, r.Host) || h.listed(u))
}

// listed reports whether OriginPatterns has the origin. An opaque one ("null") is
// nobody's, and in no list.
func (h *Handler) listed(origin *url.URL) bool {
	if origin.Host == "" {
		return false
	}
	for _, pattern := range h.cfg.OriginPatterns {
		target := origin.Host
		if strings.Contains(pattern, "://") {
			target = origin.Scheme + "://" + origin.Host
		}
		if ok, _ := path.Match(strings.ToLower(pattern), strings.ToLower(target)); ok { // New has checked the pattern
			return true
		}
	}
	return false
}

// allowOrigin lets pages of other origins read the answer, refusals too, if they
// are listed.
func (h *Handler) allowOrigin(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if u, err := url.Parse(origin); origin != "" && err == nil && h.listed(u) {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Set("Access-Control-Allow-Credentials", "true")
	}
}
