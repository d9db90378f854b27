package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestOutbox(t *testing.T) {
	name := filepath.Join(t.TempDir(), "outbox")
	mine, all := stream{notification.P1, "u00003"}, stream{notification.P3, notification.AllUsers}
	follow := &tail{name: name, said: make(map[stream]int)}
	require.NoError(t, follow.read(), "there is no file yet")
	write := func(to stream) string {
		t.Helper()
		b, err := openOutbox(name)
		require.NoError(t, err)
		defer b.file.Close()
		e, err := b.write(to)
		require.NoError(t, err)
		return e.id("0")
	}

	t.Run("the numbers of each stream go on after a restart", func(t *testing.T) {
		require.Equal(t, "u00003.0-trade-P1-1", write(mine))
		require.Equal(t, "all.0-system-P3-1", write(all))
		require.Equal(t, "u00003.0-trade-P1-2", write(mine))
		require.Equal(t, "u00003.0-risk-P0-1", write(stream{notification.P0, "u00003"}))
		require.Equal(t, "u00003.0-account-P2-1", write(stream{notification.P2, "u00003"}))
		entries, _, err := readOutbox(name)
		require.NoError(t, err)
		require.Equal(t, entry{n: 3, stream: mine, number: 2}, entries[2])
	})
	t.Run("who reads on counts each line once, and half of one not yet", func(t *testing.T) {
		require.NoError(t, follow.read())
		require.NoError(t, follow.read())
		require.Equal(t, 2, follow.said[mine])
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		defer f.Close()
		for _, part := range []string{"+3\n6 1 u0", "0003", "\n"} {
			require.Equal(t, 2, follow.said[mine])
			_, err := io.WriteString(f, part)
			require.NoError(t, err)
			require.NoError(t, follow.read())
		}
		require.Equal(t, 3, follow.said[mine])
		require.Equal(t, [notification.NumPriorities]int{1, 3, 1, 0}, follow.one)
		require.Equal(t, [notification.NumPriorities]int{0, 0, 0, 1}, follow.all)
	})
	t.Run("what is none is said", func(t *testing.T) {
		require.NoError(t, os.WriteFile(name, []byte("1 1\n"), 0o600))
		_, err := openOutbox(name)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, (&tail{name: name, said: make(map[stream]int)}).read(), name)
	})
}

func TestLoopback(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:8082": true, "[::1]:0": true, "localhost:8082": true, "127.1.2.3:1": true,
		":8082": false, "0.0.0.0:8082": false, "192.0.2.1:8082": false, "example.com:80": false, "127.0.0.1": false,
	} {
		require.Equal(t, ok, checkLoopback(addr) == nil, addr)
	}
}

func TestFront(t *testing.T) {
	var edges []*process
	var addrs []string
	var servers []*httptest.Server
	for _, name := range []string{"edge-0", "edge-1", "edge-2"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tellSession(w, r, name) }))
		defer s.Close()
		servers = append(servers, s)
		addrs = append(addrs, strings.TrimPrefix(s.URL, "http://"))
		edges = append(edges, &process{ready: true})
	}
	f, err := newFront("127.0.0.1:0", edges, addrs, 20, newStatistics(new(audience), func(int) string { return filepath.Join(t.TempDir(), "none") }))
	require.NoError(t, err)
	defer f.close()
	send := func(t *testing.T, method, path, body, user string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.addr+path, strings.NewReader(body))
		require.NoError(t, err)
		if user != "" {
			r.AddCookie(&http.Cookie{Name: cookieName, Value: user + ".32503680000"})
		}
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer, string(text)
	}
	edgeOf := func(t *testing.T, user string) int {
		t.Helper()
		answer, text := send(t, "GET", "/api/session", "", user)
		require.Equal(t, http.StatusOK, answer.StatusCode, text)
		var s struct {
			User, Edge string
			CanKill    bool
		}
		require.NoError(t, json.Unmarshal([]byte(text), &s))
		require.Equal(t, user, s.User)
		require.True(t, s.CanKill)
		return int(s.Edge[len("edge-")] - '0')
	}

	t.Run("all of a user's requests go to one edge", func(t *testing.T) {
		first := edgeOf(t, "u00001")
		require.NotEqual(t, first, edgeOf(t, "u00002"))
		for range 5 {
			require.Equal(t, first, edgeOf(t, "u00001"))
		}
	})
	t.Run("to another one when it is down, or does not answer, and stay there", func(t *testing.T) {
		before := edgeOf(t, "u00001")
		require.True(t, edges[before].claim())
		next := edgeOf(t, "u00001")
		require.NotEqual(t, before, next)
		edges[before].ready = true
		require.Equal(t, next, edgeOf(t, "u00001"))
		servers[next].Close()
		last := edgeOf(t, "u00001")
		require.NotEqual(t, next, last)
		require.Equal(t, last, edgeOf(t, "u00001"))
	})
	t.Run("with no edge up the answer is 503", func(t *testing.T) {
		for _, e := range edges {
			e.claim()
		}
		answer, text := send(t, "GET", "/api/session", "", "u00001")
		require.Equal(t, http.StatusServiceUnavailable, answer.StatusCode)
		require.Contains(t, text, "no edge is up")
	})
	t.Run("an edge that is down already is not killed, and nobody who is not signed in kills one", func(t *testing.T) {
		answer, _ := send(t, "POST", "/api/kill-edge", "", "u00001")
		require.Equal(t, http.StatusConflict, answer.StatusCode)
		answer, _ = send(t, "POST", "/api/kill-edge", "", "u00019")
		require.Equal(t, http.StatusConflict, answer.StatusCode)
		answer, _ = send(t, "POST", "/api/kill-edge", "", "")
		require.Equal(t, http.StatusUnauthorized, answer.StatusCode)
		r, err := http.NewRequest("POST", "http://"+f.addr+"/api/kill-edge", nil)
		require.NoError(t, err)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		answer, err = http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, http.StatusForbidden, answer.StatusCode)
	})
	t.Run("only who exists signs in, and the sign-in has an end", func(t *testing.T) {
		for user, status := range map[string]int{"u00001": 200, "u00020": 200, "u00021": 403, "u00000": 403, "u1": 403, "": 403, "*": 403} {
			answer, text := send(t, "POST", "/api/session", `{"user":"`+user+`"}`, "")
			require.Equal(t, status, answer.StatusCode, "%s: %s", user, text)
			if status == http.StatusOK {
				c := answer.Cookies()
				require.Len(t, c, 1)
				require.True(t, c[0].HttpOnly)
				require.WithinDuration(t, time.Now().Add(signInFor), c[0].Expires, signInFor/2)
			}
		}
		answer, _ := send(t, "POST", "/api/session", "nonsense", "")
		require.Equal(t, http.StatusBadRequest, answer.StatusCode)
		r, err := http.NewRequest("GET", "http://"+f.addr+"/api/streams", nil)
		require.NoError(t, err)
		for _, value := range []string{"", "u00001", "u00001.", "u00001.1"} {
			r.Header.Set("Cookie", cookieName+"="+value)
			answer, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			require.Equal(t, http.StatusUnauthorized, answer.StatusCode, value)
		}
	})
	t.Run("the numbers are those of the user and of everybody", func(t *testing.T) {
		_, text := send(t, "GET", "/api/streams", "", "u00007")
		var numbers map[string]int
		require.NoError(t, json.Unmarshal([]byte(text), &numbers))
		require.Len(t, numbers, 4*publishers)
		require.Contains(t, numbers, "u00007.1-account-P2")
		require.Contains(t, numbers, "all.0-system-P3")
	})
}
