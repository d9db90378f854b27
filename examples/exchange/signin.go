package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/qaexchange/notification/examples/exchange/page"
	"github.com/qaexchange/notification/wsgateway"
)

const (
	cookieName = "exchange_session"
	signInFor  = 8 * time.Hour
)

// authenticate tells both gateways whose connection a request makes. The connection
// ends when the token does, whose ID is a part of the answer: see guests.
func (s *server) authenticate(r *http.Request) (wsgateway.Identity, error) {
	t, _, err := s.identify(r)
	return wsgateway.Identity{UserID: nameTag(t), Expires: t.expires}, err
}

// identify returns the token that the request's cookie holds, and whose it is.
func (s *server) identify(r *http.Request) (t token, user int, err error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return t, 0, errToken
	}
	if t, err = s.keys.verify(cookie.Value, time.Now()); err != nil {
		return t, 0, err
	}
	user, err = s.x.find(t.user)
	return t, user, err
}

// find returns the member with this ID.
func (x *exchange) find(id string) (int, error) {
	if number, err := strconv.Atoi(strings.TrimPrefix(id, "u")); err == nil && number >= 1 && number <= len(x.members) && memberID(number-1) == id {
		return number - 1, nil
	}
	return 0, fmt.Errorf("there is no user %.20q", id)
}

// user is what only somebody who is signed in may ask.
func (s *server) user(next func(w http.ResponseWriter, r *http.Request, user int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, user, err := s.identify(r)
		if err != nil {
			page.Fail(w, http.StatusUnauthorized, err)
			return
		}
		next(w, r, user)
	}
}

// signIn makes a token for one of the users. This is where a real exchange asks
// its user directory; this one believes what it is told.
func (s *server) signIn(w http.ResponseWriter, r *http.Request) {
	if !s.signIns.allows(w, s.address(r)) {
		return
	}
	var asked struct {
		User string `json:"user"`
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTime)) // every connection here has one
	switch err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&asked); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		page.Fail(w, http.StatusRequestTimeout, errors.New("the request has not come"))
		return
	case err != nil:
		page.Fail(w, http.StatusBadRequest, errors.New(`not {"user":"…"}`))
		return
	}
	if _, err := s.x.find(asked.User); err != nil {
		page.Fail(w, http.StatusForbidden, err)
		return
	}
	// The browser forgets the token that it had, so that nobody can sign it out later.
	_ = s.revoke(r)
	expires := time.Now().Add(signInFor)
	s.setCookie(w, r, &http.Cookie{Value: s.keys.issue(asked.User, expires), Expires: expires})
	tellSession(w, token{user: asked.User, expires: expires})
}

// signOut takes the cookie away, and makes worthless what somebody may have copied of
// it: the token is refused from now on, and what was opened with it is closed.
func (s *server) signOut(w http.ResponseWriter, r *http.Request) {
	s.setCookie(w, r, &http.Cookie{MaxAge: -1})
	if err := s.revoke(r); err != nil {
		page.Fail(w, http.StatusInternalServerError, errors.New("signed out, but only until the exchange is started again"))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// revoke makes the token of a request worthless, if it has one. An error says that it
// will be good again after a restart.
func (s *server) revoke(r *http.Request) error {
	t, _, err := s.identify(r)
	if err != nil {
		return nil
	}
	err = s.keys.revoked.add(t)
	s.guests.signOut(t)
	if err != nil {
		s.log.Error("a token that was revoked will be good after a restart", "user", t.user, "error", err)
	}
	return err
}

// setCookie sets the cookie of the sign-in.
func (s *server) setCookie(w http.ResponseWriter, r *http.Request, c *http.Cookie) {
	c.Name, c.Path, c.HttpOnly, c.SameSite = cookieName, "/", true, http.SameSiteStrictMode
	c.Secure = r.TLS != nil || s.behindTLS && !strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "http")
	http.SetCookie(w, c)
}

func (s *server) whoAmI(w http.ResponseWriter, r *http.Request) {
	t, _, err := s.identify(r)
	if err != nil {
		page.Fail(w, http.StatusUnauthorized, err)
		return
	}
	tellSession(w, t)
}

// tellSession answers who is signed in and until when, and what time it is: the page
// measures latencies, and its clock may be another one.
func tellSession(w http.ResponseWriter, t token) {
	page.Reply(w, http.StatusOK, map[string]any{"user": t.user, "expires": t.expires.UnixMilli(), "now": time.Now().UnixMicro()})
}
