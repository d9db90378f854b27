package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestLimits(t *testing.T) {
	_, web := serve(t)
	_, behind := serveWith(t, newSigner(), options{addr: "127.0.0.1:0", behindTLS: true})
	spend := func(l *limiter, key string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.buckets[key] = spent()
	}
	refused := func(t *testing.T, answer *http.Response, text string) {
		t.Helper()
		seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
		if answer.StatusCode != http.StatusTooManyRequests || err != nil || seconds < 1 || seconds > 3600 || !strings.Contains(text, fmt.Sprintf(`"retryAfter":%d`, seconds)) {
			t.Error(answer.Status, answer.Header, text)
		}
	}
	t.Run("a bucket is full at first, and gets one back in its time", func(t *testing.T) {
		l, now := newLimiter(time.Minute, 3), time.Now()
		for range 3 {
			require.Zero(t, l.take("a", now))
		}
		for range 3 { // asking costs nothing
			require.Equal(t, time.Minute, l.take("a", now))
		}
		require.Zero(t, l.take("b", now))
		require.Equal(t, time.Second, l.take("a", now.Add(59*time.Second)))
		require.Zero(t, l.take("a", now.Add(time.Minute)))
		require.NotZero(t, l.take("a", now.Add(time.Minute)))
	})
	t.Run("who has not been there for long is forgotten, and nobody else", func(t *testing.T) {
		l, now := newLimiter(time.Minute, 1), time.Now()
		for i := range 10 * leastSweep {
			l.take(strconv.Itoa(i), now.Add(time.Duration(i)*time.Second))
		}
		require.LessOrEqual(t, len(l.buckets), leastSweep)
		require.NotZero(t, l.take(strconv.Itoa(10*leastSweep-1), now.Add(10*leastSweep*time.Second)))
	})
	t.Run("margin calls are bounded for each user", func(t *testing.T) {
		spend(web.marginCalls, "u00001")
		answer, text := ask(t, web, "POST", "/api/margin-call", "", enter(t, web, "u00001"))
		refused(t, answer, text)
		answer, text = ask(t, web, "POST", "/api/margin-call", "", enter(t, web, "u00002"))
		require.Equal(t, http.StatusAccepted, answer.StatusCode, text)
	})
	t.Run("halts for each user and for all", func(t *testing.T) {
		spend(web.halts, "u00001")
		answer, text := ask(t, web, "POST", "/api/halt", "", enter(t, web, "u00001"))
		refused(t, answer, text)
		two, three := enter(t, web, "u00002"), enter(t, web, "u00003")
		answer, text = ask(t, web, "POST", "/api/halt", "", two)
		require.Equal(t, http.StatusAccepted, answer.StatusCode, text)
		spend(web.allHalts, "")
		answer, text = ask(t, web, "POST", "/api/halt", "", three)
		refused(t, answer, text)
	})
	t.Run("sign-ins for each address, which is the proxy's word only behind one", func(t *testing.T) {
		const user = `{"user":"u00001"}`
		spend(behind.signIns, "203.0.113.9")
		spend(behind.signIns, "2001:db8::/64")
		for from, status := range map[string]int{
			"203.0.113.9": 429, "198.51.100.1, 203.0.113.9": 429, "203.0.113.9, 198.51.100.1": 200, "198.51.100.1": 200,
			"::ffff:203.0.113.9": 429, "2001:db8::1": 429, "2001:db8::2:3": 429, "2001:db8:0:1::1": 200, "203.0.113.9:1234": 429, "[2001:db8::1]:1234": 429, "": 200, "nonsense": 200,
		} {
			answer, text := send(t, behind, "POST", "/api/session", user, http.Header{"X-Forwarded-For": {from}})
			if answer.StatusCode != status {
				t.Errorf("%q: %s %s", from, answer.Status, text)
			}
		}
		spend(web.signIns, "127.0.0.1")
		answer, text := send(t, web, "POST", "/api/session", user, http.Header{"X-Forwarded-For": {"198.51.100.1"}})
		refused(t, answer, text)
	})
	t.Run("the cookie is Secure behind a proxy that ends TLS, and nobody else is believed to be one", func(t *testing.T) {
		for _, c := range []struct {
			web    *server
			proto  string
			secure bool
		}{{web, "https", false}, {behind, "https", true}, {behind, "HTTPS", true}, {behind, "", true}, {behind, "http", false}} {
			answer, _ := send(t, c.web, "DELETE", "/api/session", "", http.Header{"X-Forwarded-Proto": {c.proto}})
			if got := answer.Cookies(); len(got) != 1 || got[0].Secure != c.secure {
				t.Errorf("behind one: %t, %q: %v", c.web.behindTLS, c.proto, got)
			}
		}
	})
	t.Run("who is one connection too many is hung up on, until another goes", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := openSite(&bounded{l, make(chan struct{}, 1)}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "in") }), patience, quiet)
		defer s.close(context.Background())
		get := func() (net.Conn, error) {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				return nil, err
			}
			if _, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err == nil {
				_, err = http.ReadResponse(bufio.NewReader(c), nil)
			}
			return c, err
		}
		first, err := get()
		require.NoError(t, err)
		second, err := get()
		require.Error(t, err)
		require.NoError(t, second.Close())
		require.NoError(t, first.Close())
		await(t, "a place", func() bool {
			c, err := get()
			if c != nil {
				_ = c.Close()
			}
			return err == nil
		})
	})
}

func TestBodies(t *testing.T) {
	x := inMemory(t, 3, notification.BrokerConfig{}, notification.GatewayConfig{})
	web, err := newServer(x, newSigner(), options{addr: "127.0.0.1:0"}, quiet)
	require.NoError(t, err)
	defer func() {
		web.drain()
		require.NoError(t, x.drain(context.Background(), web.hangUp))
		require.NoError(t, web.close(context.Background(), nil, ""))
	}()
	cookie := enter(t, web, "u00001")
	web.bodyTime = 10 * time.Millisecond // from now on it is too short for one that comes as well
	for request, status := range map[string]int{
		"GET /": 400, "GET /api/stats": 400, "GET /api/session": 400, "DELETE /api/session": 400, "POST /api/margin-call": 400,
		"POST /api/halt": 400, "GET /healthz": 400, "GET /ws": 400, "GET /events": 400, "POST /api/session": 408,
	} {
		t.Run(request+" with a body that does not come is answered, and hung up on", func(t *testing.T) {
			c, err := net.Dial("tcp", web.addr)
			require.NoError(t, err)
			defer c.Close()
			fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: %s\r\nCookie: %s=%s\r\nContent-Length: 30\r\n\r\n", request, web.addr, cookie.Name, cookie.Value)
			from := bufio.NewReader(c)
			answer, err := http.ReadResponse(from, nil)
			require.NoError(t, err)
			require.Equal(t, status, answer.StatusCode)
			_, err = io.Copy(io.Discard, answer.Body)
			require.NoError(t, err)
			_, err = from.ReadByte()
			require.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
		})
	}
}

// TestBehindTLS has the page behind a proxy that ends TLS, and a browser's idea of
// cookies.
func TestBehindTLS(t *testing.T) {
	_, web := serveWith(t, newSigner(), options{addr: "127.0.0.1:0", behindTLS: true})
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: web.addr})
		r.SetXForwarded()
		r.Out.Host = r.In.Host // a page's Origin is compared with it
	}}
	front := httptest.NewTLSServer(proxy)
	defer front.Close()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := front.Client()
	browser.Jar = jar

	answer, err := browser.Post(front.URL+"/api/session", "application/json", strings.NewReader(`{"user":"u00002"}`))
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusOK, answer.StatusCode)
	site, err := url.Parse(front.URL)
	require.NoError(t, err)
	require.Len(t, jar.Cookies(site), 1)
	require.True(t, answer.Cookies()[0].Secure)

	c, _, err := websocket.Dial(patient(t), strings.Replace(front.URL, "https", "wss", 1)+"/ws", &websocket.DialOptions{
		HTTPClient: browser, Subprotocols: []string{"notification.batch.v1"}, HTTPHeader: http.Header{"Origin": {front.URL}},
	})
	require.NoError(t, err)
	defer c.CloseNow()
	_, frame, err := c.Read(patient(t))
	require.NoError(t, err)
	require.Contains(t, string(frame), `"welcome"`)

	r, err := http.NewRequestWithContext(t.Context(), "DELETE", front.URL+"/api/session", nil)
	require.NoError(t, err)
	answer, err = browser.Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, websocket.StatusNormalClosure, closedWith(t, c))
	require.Empty(t, jar.Cookies(site))
}
