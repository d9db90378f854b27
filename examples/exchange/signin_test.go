package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestKey(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a", "folder", "key")
	now := time.Now()

	t.Run("it is made once, whoever asks first, and for its owner alone", func(t *testing.T) {
		var opening sync.WaitGroup
		keys := make([]*signer, 8)
		for i := range keys {
			opening.Go(func() {
				var err error
				if keys[i], err = openSigner(name); err != nil {
					t.Error(err)
				}
			})
		}
		opening.Wait()
		if t.Failed() {
			return
		}
		text := keys[0].issue("u00001", now.Add(time.Hour))
		for _, s := range keys {
			if _, err := s.verify(text, now); err != nil {
				t.Error("there are two keys")
			}
		}
		info, err := os.Stat(name)
		if err != nil || info.Mode() != 0o600 {
			t.Error(info, err)
		}
		if files, err := os.ReadDir(filepath.Dir(name)); err != nil || len(files) != 1 {
			t.Error(files, err)
		}
	})
	t.Run("one that others can read is refused", func(t *testing.T) {
		require.NoError(t, os.Chmod(name, 0o640))
		_, err := openSigner(name)
		require.ErrorContains(t, err, "not 0600")
		require.NoError(t, os.Chmod(name, 0o600))
	})
	t.Run("what is none is refused, and left alone", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "letter")
		require.NoError(t, os.WriteFile(other, []byte("dear"), 0o600))
		_, err := openSigner(other)
		require.ErrorContains(t, err, "is not a key")
		_, err = openSigner(filepath.Join(other, "key"))
		require.ErrorContains(t, err, other)
		text, err := os.ReadFile(other)
		require.NoError(t, err)
		require.Equal(t, "dear", string(text))
	})
}

func TestRevocations(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	now := time.Now()
	s, err := openSigner(name)
	require.NoError(t, err)
	gone, stays := s.issue("u00001", now.Add(time.Hour)), s.issue("u00001", now.Add(time.Hour))
	revoke := func(text string) {
		t.Helper()
		got, err := s.verify(text, now)
		require.NoError(t, err)
		require.NoError(t, s.revoked.add(got))
	}
	revoke(gone)

	check := func(t *testing.T, s *signer) {
		t.Helper()
		_, err := s.verify(gone, now)
		require.ErrorIs(t, err, errToken)
		_, err = s.verify(stays, now)
		require.NoError(t, err)
	}
	t.Run("a token that was revoked is refused, and another of the user is not", func(t *testing.T) { check(t, s) })
	t.Run("a restart does not bring it back", func(t *testing.T) {
		again, err := openSigner(name)
		require.NoError(t, err)
		check(t, again)
	})
	t.Run("it is forgotten when it would have expired, on disk too", func(t *testing.T) {
		over := token{id: "OVER", user: "u00001", expires: now.Add(-time.Second)}
		require.NoError(t, s.revoked.add(over))
		require.FileExists(t, s.revoked.file(over))
		again, err := openSigner(name)
		require.NoError(t, err)
		require.False(t, again.revoked.has(over.id))
		require.NoFileExists(t, s.revoked.file(over))
		check(t, again)
	})
	t.Run("in memory there are no more than twice as many as hold", func(t *testing.T) {
		r := newRevocations("")
		require.NoError(t, r.add(token{id: "holds", expires: now.Add(time.Hour)}))
		for i := range 10 * leastSweep {
			require.NoError(t, r.add(token{id: strconv.Itoa(i), expires: now.Add(-time.Second)}))
		}
		require.Less(t, len(r.until), leastSweep+1)
		require.True(t, r.has("holds"))
	})
	t.Run("what cannot be kept is said, and refused all the same", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(name+".revoked"))
		require.NoError(t, os.WriteFile(name+".revoked", nil, 0o600)) // where the folder belongs
		_, web := serveWith(t, s, options{addr: "127.0.0.1:0"})
		cookie := enter(t, web, "u00002")
		answer, text := ask(t, web, "DELETE", "/api/session", "", cookie)
		require.Equal(t, http.StatusInternalServerError, answer.StatusCode, text)
		answer, _ = ask(t, web, "GET", "/api/session", "", cookie)
		require.Equal(t, http.StatusUnauthorized, answer.StatusCode)
		_, err := openSigner(name)
		require.Error(t, err)
	})
}

// patient is a context for whatever the test waits for next.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dial opens a WebSocket with a cookie, up to its welcome.
func dial(t *testing.T, web *server, cookie *http.Cookie) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), "ws://"+web.addr+"/ws", &websocket.DialOptions{
		Subprotocols: []string{"notification.batch.v1"},
		HTTPHeader:   http.Header{"Cookie": {cookie.Name + "=" + cookie.Value}},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.CloseNow() })
	_, frame, err := c.Read(patient(t))
	require.NoError(t, err)
	require.Contains(t, string(frame), `"welcome"`)
	return c
}

// closedWith reads until the connection is closed, and returns its code.
func closedWith(t *testing.T, c *websocket.Conn) websocket.StatusCode {
	t.Helper()
	for {
		if _, _, err := c.Read(patient(t)); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// follow opens a stream of events with a cookie, up to its welcome.
func follow(t *testing.T, web *server, cookie *http.Cookie) *bufio.Reader {
	t.Helper()
	r, err := http.NewRequestWithContext(patient(t), "GET", "http://"+web.addr+"/events", nil)
	require.NoError(t, err)
	r.AddCookie(cookie)
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	require.Equal(t, http.StatusOK, answer.StatusCode)
	events := bufio.NewReader(answer.Body)
	readTo(t, events, "welcome")
	return events
}

// readTo reads lines up to one with this text.
func readTo(t *testing.T, r *bufio.Reader, text string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err, "waiting for %s", text)
		if strings.Contains(line, text) {
			return
		}
	}
}

func TestSignOut(t *testing.T) {
	x, web := serve(t)
	one, other, somebody := enter(t, web, "u00001"), enter(t, web, "u00001"), enter(t, web, "u00002")
	gone, goneToo := dial(t, web, one), dial(t, web, one)
	goneAsWell := follow(t, web, one)
	stay, staysAsWell, theirs := dial(t, web, other), follow(t, web, other), dial(t, web, somebody)

	answer, _ := ask(t, web, "DELETE", "/api/session", "", one)
	require.Equal(t, http.StatusNoContent, answer.StatusCode)

	t.Run("it takes the cookie away", func(t *testing.T) {
		if c := answer.Cookies(); len(c) != 1 || c[0].MaxAge >= 0 {
			t.Error(c)
		}
	})
	t.Run("it closes what was opened with the token, over both transports", func(t *testing.T) {
		require.Equal(t, websocket.StatusNormalClosure, closedWith(t, gone))
		require.Equal(t, websocket.StatusNormalClosure, closedWith(t, goneToo))
		readTo(t, goneAsWell, "event: close")
		readTo(t, goneAsWell, `"code":1000`)
		_, err := io.Copy(io.Discard, goneAsWell)
		require.NoError(t, err)
	})
	t.Run("what the same user has opened with another token goes on, and so do others", func(t *testing.T) {
		id, err := x.send(everybody, marketHalt("ALL", "go on", 0))
		require.NoError(t, err)
		for _, c := range []*websocket.Conn{stay, theirs} {
			for frame := []byte(nil); !strings.Contains(string(frame), id); {
				_, frame, err = c.Read(patient(t))
				require.NoError(t, err)
			}
		}
		readTo(t, staysAsWell, id)
	})
	t.Run("a copy of the token is worth nothing any more", func(t *testing.T) {
		for _, request := range []string{"GET /api/session", "GET /api/streams", "POST /api/margin-call", "GET /events"} {
			method, path, _ := strings.Cut(request, " ")
			answer, text := ask(t, web, method, path, "", one)
			require.Equal(t, http.StatusUnauthorized, answer.StatusCode, "%s: %s", request, text)
		}
		c, _, err := websocket.Dial(t.Context(), "ws://"+web.addr+"/ws", &websocket.DialOptions{
			Subprotocols: []string{"notification.batch.v1"}, HTTPHeader: http.Header{"Cookie": {one.Name + "=" + one.Value}},
		})
		require.NoError(t, err)
		require.EqualValues(t, 4401, closedWith(t, c))
	})
	t.Run("to sign in again, as whoever it may be, signs out who was", func(t *testing.T) {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+web.addr+"/api/session", strings.NewReader(`{"user":"u00003"}`))
		require.NoError(t, err)
		r.AddCookie(other)
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, http.StatusOK, answer.StatusCode)
		require.Equal(t, websocket.StatusNormalClosure, closedWith(t, stay))
		readTo(t, staysAsWell, "event: close")
		answer, _ = ask(t, web, "GET", "/api/session", "", other)
		require.Equal(t, http.StatusUnauthorized, answer.StatusCode)
		answer, _ = ask(t, web, "GET", "/api/session", "", somebody)
		require.Equal(t, http.StatusOK, answer.StatusCode)
	})
	t.Run("to sign out without having signed in is no mistake", func(t *testing.T) {
		answer, _ := ask(t, web, "DELETE", "/api/session", "", nil)
		require.Equal(t, http.StatusNoContent, answer.StatusCode)
	})
}

// A meanwhile registers a session and does something before it says so.
type meanwhile struct {
	*notification.Gateway
	do func()
}

func (m meanwhile) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	s, err := m.Gateway.RegisterSession(cfg)
	m.do()
	return s, err
}

// A sink tells with what it was closed.
type sink struct{ closed chan error }

func (sink) Push(context.Context, []*notification.Message) error { return nil }
func (s sink) Close(reason error)                                { s.closed <- reason }

func TestGuests(t *testing.T) {
	x, web := serve(t)
	register := func(gs *guests, id string, t token) (sink, error) {
		s := sink{make(chan error, 1)}
		_, err := gs.RegisterSession(notification.SessionConfig{ID: id, UserID: nameTag(t), Sink: s})
		return s, err
	}
	tok := token{id: "T", user: "u00001", expires: time.Now().Add(time.Hour)}

	t.Run("who signs out while a connection is made has none afterwards", func(t *testing.T) {
		revoked := newRevocations("")
		var gs *guests
		gs = newGuests(meanwhile{x.gateway(), func() {
			if err := revoked.add(tok); err != nil {
				t.Error(err)
			}
			gs.signOut(tok)
		}}, revoked)
		s, err := register(gs, "late", tok)
		require.NoError(t, err)
		require.ErrorIs(t, <-s.closed, notification.ErrSessionClosed)
		require.Zero(t, gs.all)
		require.Empty(t, gs.byUser)
	})
	t.Run("with one tab too many the oldest ends, and is told that it was replaced; the desk stays", func(t *testing.T) {
		cookie := enter(t, web, "u00001")
		var tabs []*websocket.Conn
		for range maxTabs + 1 {
			tabs = append(tabs, dial(t, web, cookie))
		}
		require.EqualValues(t, 4409, closedWith(t, tabs[0]))
		id, err := x.send(0, marginCall(0, 1, 2, "still here"))
		require.NoError(t, err)
		for _, c := range tabs[1:] {
			for frame := []byte(nil); !strings.Contains(string(frame), id); {
				_, frame, err = c.Read(patient(t))
				require.NoError(t, err)
			}
		}
		_, there := x.gateway().Session("desk-u00001")
		require.True(t, there)
		for _, c := range tabs {
			_ = c.CloseNow()
		}
		await(t, "the end of all tabs", func() bool {
			web.guests.mu.Lock()
			defer web.guests.mu.Unlock()
			return web.guests.all == 0 && len(web.guests.byUser) == 0
		})
	})
	t.Run("over the bound for all nobody gets in, by either transport", func(t *testing.T) {
		cookie := enter(t, web, "u00002")
		fill := func(n int) {
			web.guests.mu.Lock()
			defer web.guests.mu.Unlock()
			web.guests.all += n
		}
		fill(maxGuests)
		_, answer, err := websocket.Dial(t.Context(), "ws://"+web.addr+"/ws", &websocket.DialOptions{HTTPHeader: http.Header{"Cookie": {cookie.Name + "=" + cookie.Value}}})
		require.Error(t, err)
		require.Equal(t, http.StatusServiceUnavailable, answer.StatusCode)
		_, text := ask(t, web, "GET", "/events", "", cookie)
		require.Contains(t, text, `"code":1013`)
		fill(-maxGuests)
		dial(t, web, cookie)
	})
	t.Run("one that the bus refuses takes no place", func(t *testing.T) {
		gs := newGuests(x.gateway(), newRevocations(""))
		_, err := register(gs, "", tok)
		require.ErrorIs(t, err, notification.ErrInvalid)
		require.Zero(t, gs.all)
	})
}

// TestPageSignedOutElsewhere has a token revoked that a page is open with: nothing in
// its browser tells it, but the end of its connection.
func TestPageSignedOutElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	browser := browse(t)
	_, web, stop := market(t, 20, 400)
	defer stop()
	do(t, browser, chromedp.Navigate("http://"+web.addr+"/")) // it waits for the end, see leave
	for query, says := range map[string]string{
		"?lang=en": "The exchange does not know your sign-in any more", "?lang=zh": "您的登录已失效",
		"?lang=en&events": "The exchange does not know your sign-in any more",
	} {
		t.Run(query, func(t *testing.T) {
			ctx := profile(t, browser)
			do(t, ctx, signInAt(web.addr, query, "u00003"), until(liveFeed))
			var stolen *http.Cookie
			do(t, ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
				got, err := cdp.Call(ctx, target, network.GetCookies, network.GetCookiesParams{})
				if err == nil && len(got.Cookies) == 1 {
					stolen = &http.Cookie{Name: got.Cookies[0].Name, Value: got.Cookies[0].Value}
				}
				return err
			}))
			require.NotNil(t, stolen)
			answer, text := ask(t, web, "DELETE", "/api/session", "", stolen)
			require.Equal(t, http.StatusNoContent, answer.StatusCode, text)
			do(t, ctx, until(`!document.getElementById("sign-in").hidden && document.querySelector("#feed li") === null`),
				until(fmt.Sprintf(`document.getElementById("banner-text").textContent.startsWith(%q)`, says)))
			leave(t, ctx)
		})
	}
}
