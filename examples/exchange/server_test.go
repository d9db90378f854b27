package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/exchange/page"
	"golang.org/x/time/rate"
)

var quiet = slog.New(slog.DiscardHandler)

func TestSigner(t *testing.T) {
	s, now := newSigner(), time.Unix(1_700_000_000, 0)
	text := s.issue("u00001", now.Add(time.Hour))

	t.Run("a token tells its user and time, and is unlike any other", func(t *testing.T) {
		got, err := s.verify(text, now)
		if got.user != "u00001" || !got.expires.Equal(now.Add(time.Hour)) || err != nil {
			t.Error(got, err)
		}
		other, err := s.verify(s.issue("u00001", now.Add(time.Hour)), now)
		if got.id == "" || got.id == other.id || err != nil {
			t.Error(got, other, err)
		}
	})
	t.Run("it ends at its time", func(t *testing.T) {
		if _, err := s.verify(text, now.Add(time.Hour)); err == nil {
			t.Error("it was accepted")
		}
	})
	t.Run("changing any byte of it makes it worthless", func(t *testing.T) {
		for i := range text {
			for _, c := range []byte("A.|~") {
				forged := []byte(text)
				if forged[i] == c {
					continue
				}
				forged[i] = c
				if _, err := s.verify(string(forged), now); err == nil {
					t.Errorf("%s was accepted", forged)
				}
			}
		}
	})
	t.Run("so does putting another user before the signature", func(t *testing.T) {
		body, mac, _ := strings.Cut(text, ".")
		b, err := base64.RawURLEncoding.DecodeString(body)
		if err != nil {
			t.Fatal(err)
		}
		forged := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(b), "u00001", "u00002", 1)))
		if _, err := s.verify(forged+"."+mac, now); err == nil {
			t.Error("it was accepted")
		}
	})
	t.Run("another process's key, and nonsense, are refused", func(t *testing.T) {
		for _, forged := range []string{newSigner().issue("u00001", now.Add(time.Hour)), "", ".", "a.b", text + ".", strings.Repeat("A", 5000)} {
			if _, err := s.verify(forged, now); err == nil {
				t.Errorf("%.40q was accepted", forged)
			}
		}
	})
}

// serve is an exchange of three members with a page and without traffic.
func serve(t *testing.T) (*exchange, *server) {
	t.Helper()
	return serveWith(t, newSigner(), options{addr: "127.0.0.1:0"})
}

func serveWith(t *testing.T, keys *signer, o options) (*exchange, *server) {
	t.Helper()
	x := inMemory(t, 3, notification.BrokerConfig{}, o.gatewayConfig(nil))
	web, err := newServer(x, keys, o, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		web.drain()
		if err := x.drain(t.Context(), web.hangUp); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		web.close(t.Context(), nil, "")
	})
	return x, web
}

// administer opens what is the operator's.
func administer(t *testing.T, x *exchange, web *server) *site {
	t.Helper()
	admin, err := openAdmin(x, web, "127.0.0.1:0", quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return admin
}

// spent is a bucket in which there is nothing for an hour.
func spent() *rate.Limiter {
	b := rate.NewLimiter(rate.Every(time.Hour), 1)
	b.Allow()
	return b
}

// ask makes a request and returns the answer and its body.
func ask(t *testing.T, web *server, method, path, body string, cookie *http.Cookie) (*http.Response, string) {
	t.Helper()
	header := http.Header{}
	if cookie != nil {
		header.Set("Cookie", cookie.Name+"="+cookie.Value)
	}
	return send(t, web, method, path, body, header)
}

// send is ask with any header.
func send(t *testing.T, web *server, method, path, body string, header http.Header) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+web.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(text)
}

// enter signs a user in and returns the cookie.
func enter(t *testing.T, web *server, user string) *http.Cookie {
	t.Helper()
	answer, text := ask(t, web, "POST", "/api/session", `{"user":"`+user+`"}`, nil)
	if answer.StatusCode != http.StatusOK || len(answer.Cookies()) != 1 {
		t.Fatal(answer.Status, text)
	}
	return answer.Cookies()[0]
}

func TestServer(t *testing.T) {
	x, web := serve(t)

	t.Run("the cookie is out of reach of scripts and other sites, and ends", func(t *testing.T) {
		c := enter(t, web, "u00001")
		if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || time.Until(c.Expires) > signInFor {
			t.Errorf("%+v", c)
		}
		tls := httptest.NewTLSServer(web.handler())
		defer tls.Close()
		answer, err := tls.Client().Post(tls.URL+"/api/session", "application/json", strings.NewReader(`{"user":"u00001"}`))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if c := answer.Cookies()[0]; !c.Secure {
			t.Errorf("over TLS: %+v", c)
		}
	})
	t.Run("nobody gets in as somebody who does not exist", func(t *testing.T) {
		for _, user := range []string{"", "*", "u00000", "u00004", "u1", "u+0001", "desk-u00001"} {
			if answer, text := ask(t, web, "POST", "/api/session", `{"user":"`+user+`"}`, nil); answer.StatusCode != http.StatusForbidden {
				t.Errorf("%q: %s %s", user, answer.Status, text)
			}
		}
		if answer, _ := ask(t, web, "POST", "/api/session", "nonsense", nil); answer.StatusCode != http.StatusBadRequest {
			t.Error(answer.Status)
		}
	})
	t.Run("without a sign-in nothing about users is told, and nothing is caused", func(t *testing.T) {
		forged := &http.Cookie{Name: cookieName, Value: newSigner().issue("u00001", time.Now().Add(time.Hour))}
		for _, request := range []string{"GET /api/session", "GET /api/streams", "POST /api/margin-call", "POST /api/halt"} {
			method, path, _ := strings.Cut(request, " ")
			for _, cookie := range []*http.Cookie{nil, forged} {
				if answer, text := ask(t, web, method, path, "", cookie); answer.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s: %s %s", request, answer.Status, text)
				}
			}
		}
		for _, header := range []http.Header{nil, {"Cookie": {forged.String()}}} {
			c, answer, err := websocket.Dial(t.Context(), "ws://"+web.addr+"/ws", &websocket.DialOptions{HTTPHeader: header})
			if err == nil {
				c.CloseNow()
			}
			if answer == nil || answer.StatusCode != http.StatusUnauthorized {
				t.Errorf("GET /ws: %v, %v", answer, err)
			}
		}
	})
	t.Run("another site's page is refused", func(t *testing.T) {
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+web.addr+"/api/halt", nil)
		r.AddCookie(enter(t, web, "u00001"))
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusForbidden {
			t.Error(answer.Status)
		}
	})
	t.Run("a user gets what is for him and for everybody, and nobody else's", func(t *testing.T) {
		cookies := map[string]*http.Cookie{"u00001": enter(t, web, "u00001"), "u00002": enter(t, web, "u00002")}
		conns := map[string]*websocket.Conn{}
		for user, cookie := range cookies {
			// The query asks for another user: the token decides.
			c, _, err := websocket.Dial(t.Context(), "ws://"+web.addr+"/ws?user=u00003&user_id=u00003", &websocket.DialOptions{
				Subprotocols: []string{"notification.batch.v1"},
				HTTPHeader:   http.Header{"Cookie": {cookie.String()}},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			conns[user] = c
			if _, frame, err := c.Read(t.Context()); err != nil || !strings.Contains(string(frame), `"welcome"`) {
				t.Fatal(string(frame), err)
			}
		}
		for user := range 3 {
			for range 5 {
				x.send(user, notification.AccountUpdate{UserID: memberID(user)})
			}
			x.send(user, marginCall(user, 1, 2, "first"))
		}
		x.send(everybody, marketHalt("ALL", "last", 0))
		for user, c := range conns {
			own, all := 0, 0
			for all == 0 || own < 6 {
				_, frame, err := c.Read(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var batch struct {
					Notifications []notification.Notification `json:"notifications"`
				}
				if err := json.Unmarshal(frame, &batch); err != nil {
					t.Fatal(err)
				}
				for _, n := range batch.Notifications {
					switch n.UserID {
					case user:
						own++
					case notification.AllUsers:
						all++
					default:
						t.Fatalf("%s got %s", user, n.ID)
					}
				}
			}
		}
		t.Run("and the server tells how far his streams are", func(t *testing.T) {
			_, text := ask(t, web, "GET", "/api/streams", "", cookies["u00002"])
			var numbers map[string]uint64
			if err := json.Unmarshal([]byte(text), &numbers); err != nil {
				t.Fatal(err)
			}
			if numbers["u00002-account-P2"] != 5 || numbers["u00002-risk-P0"] != 1 || numbers["all-system-P3"] != 2 {
				t.Error(numbers)
			}
			for key := range numbers {
				if !strings.HasPrefix(key, "u00002-") && !strings.HasPrefix(key, "all-") {
					t.Errorf("somebody else's %s", key)
				}
			}
		})
	})
	t.Run("the buttons cause what they say, and a halt only once a second", func(t *testing.T) {
		cookie := enter(t, web, "u00003")
		if answer, text := ask(t, web, "POST", "/api/margin-call", "", cookie); answer.StatusCode != http.StatusAccepted || !strings.Contains(text, "u00003-risk-P0-2") {
			t.Error(answer.Status, text)
		}
		if answer, text := ask(t, web, "POST", "/api/halt", "", cookie); answer.StatusCode != http.StatusAccepted || !strings.Contains(text, "all-system-P3-3") {
			t.Error(answer.Status, text)
		}
		web.allHalts.mu.Lock()
		if web.allHalts.buckets[""] == nil {
			t.Error("it is not remembered")
		}
		web.allHalts.buckets[""] = spent() // a second may be over before the next request
		web.allHalts.mu.Unlock()
		if answer, text := ask(t, web, "POST", "/api/halt", "", cookie); answer.StatusCode != http.StatusTooManyRequests {
			t.Error(answer.Status, text)
		}
	})
	t.Run("the page loads nothing from elsewhere, and says so to the browser", func(t *testing.T) {
		for _, path := range []string{"/", "/app.js", "/style.css", "/text.js", "/audit.js", "/events.js", "/plot.js", "/inside.js", "/overview.js", "/overview.css", "/notification-client.js", "/icon.svg"} {
			answer, text := ask(t, web, "GET", path, "", nil)
			if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Security-Policy") != page.Policy {
				t.Errorf("%s: %s %v", path, answer.Status, answer.Header)
			}
			text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "")
			if strings.Contains(text, "//www.") || strings.Contains(text, "https://") || strings.Contains(text, " style=") || strings.Contains(text, " onclick=") {
				t.Errorf("%s refers elsewhere, or has what the policy forbids", path)
			}
		}
		for _, path := range []string{"/nothing", "/page.go"} {
			if answer, _ := ask(t, web, "GET", path, "", nil); answer.StatusCode != http.StatusNotFound {
				t.Error(path, answer.Status)
			}
		}
	})
	t.Run("the stats tell only the samples that are new", func(t *testing.T) {
		s := x.snapshot()
		for range page.KeepSamples + 5 {
			web.sample(s, s)
		}
		for since, want := range map[string]int{"0": page.KeepSamples, "182": 3, "185": 0, "999": 0, "x": page.KeepSamples} {
			_, text := ask(t, web, "GET", "/api/stats?since="+since, "", nil)
			var stats struct {
				Samples []sample
				Table   []laneReport
			}
			if err := json.Unmarshal([]byte(text), &stats); err != nil || len(stats.Samples) != want || len(stats.Table) != 4 {
				t.Errorf("since %s: %d samples, %v", since, len(stats.Samples), err)
			}
		}
	})
	t.Run("metrics and profiles are for the operator, on a listener of their own", func(t *testing.T) {
		admin := administer(t, x, web)
		for path, want := range map[string]string{
			"/metrics":                       "notification_broker_published_total",
			"/debug/pprof/goroutine?debug=1": "goroutine profile",
			"/debug/pprof/cmdline":           os.Args[0],
			"/debug/pprof/profile?seconds=1": "",
		} {
			if answer, text := ask(t, web, "GET", path, "", nil); answer.StatusCode != http.StatusNotFound {
				t.Errorf("the page's listener has %s: %s\n%.300s", path, answer.Status, text)
			}
			answer, err := http.Get("http://" + admin.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK || err != nil || !strings.Contains(string(text), want) {
				t.Errorf("%s: %s, %v\n%.300s", path, answer.Status, err, text)
			}
		}
		if answer, err := http.Get("http://" + admin.addr + "/api/stats"); err != nil || answer.Body.Close() != nil || answer.StatusCode != http.StatusNotFound {
			t.Error("the operator's listener has what is the page's:", answer, err)
		}
	})
	t.Run("it is alive throughout, and not ready while it drains", func(t *testing.T) {
		for _, phase := range []struct {
			ready int
			next  func()
		}{{http.StatusOK, web.drain}, {http.StatusServiceUnavailable, func() {}}} {
			if answer, _ := ask(t, web, "GET", "/healthz", "", nil); answer.StatusCode != http.StatusOK {
				t.Error(answer.Status)
			}
			if answer, _ := ask(t, web, "GET", "/readyz", "", nil); answer.StatusCode != phase.ready {
				t.Error(answer.Status)
			}
			phase.next()
		}
	})
}

func TestHangUp(t *testing.T) {
	_, web := serve(t)
	web.hangUpTime = time.Millisecond
	cookie := enter(t, web, "u00001")
	for range 3 {
		dial(t, web, cookie) // and does not read what the server says at the end
	}
	t.Run("who does not answer is cut, which is no failure", func(t *testing.T) {
		if err := web.hangUp(t.Context()); err != nil {
			t.Error(err)
		}
		await(t, "the end of all connections", func() bool { return web.web.Stats().Connections == 0 })
	})
}
