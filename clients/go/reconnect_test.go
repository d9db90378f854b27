package notificationclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

func TestClose(t *testing.T) {
	const (
		stop = iota
		retry
		anew
	)
	for code, want := range map[int]int{
		1000: stop, 1002: stop, 1003: stop, 1007: stop, 1008: stop, 1009: stop,
		1001: retry, 1005: retry, 1010: retry, 1011: retry, 1012: retry, 1013: retry, 1014: retry, 3000: retry, 3999: retry,
		4000: retry, 4001: retry, 4057: retry, 4099: retry, 4200: retry, 4399: retry, 4500: retry, 4999: retry,
		4100: anew, 4101: anew, 4199: anew,
		4400: stop, 4402: stop, 4403: stop, 4409: stop, 4499: stop,
		4401: retry,
	} {
		t.Run(fmt.Sprintf("%d is dealt with by its range", code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t)
				s, v := e.connected(Config{})
				v.say(batch("c1", "n1"))
				v.close(code)
				switch want {
				case stop:
					err := s.stopped()
					require.Equal(t, &StopError{Reason: ReasonServer, Code: web.Code(code), Cursor: "c1"}, err)
					require.Equal(t, code == 4403, errors.Is(err, ErrForbidden))
					require.Equal(t, code == 4409, errors.Is(err, ErrReplaced))
					require.NotErrorIs(t, err, ErrCredentials)
					require.Equal(t, []string{"got n1", "cursor c1", fmt.Sprint("stopped server ", code)}, s.told())
					e.nobody()
				case retry:
					v = e.next()
					require.Equal(t, "c1", v.query.Get("cursor"))
					v.say(welcome("c1", true), batch("c2", "n2"))
					require.Equal(t, []string{"got n1", "cursor c1", fmt.Sprintf("waiting server %d 250ms", code),
						"connecting", "replaying", "got n2", "cursor c2"}, s.told())
				case anew:
					v = e.next()
					require.False(t, v.query.Has("cursor"))
					v.say(welcome("d0", false), batch("d1", "n2"))
					require.Equal(t, []string{"got n1", "cursor c1", "cursor ", fmt.Sprintf("waiting server %d 250ms", code),
						"connecting", "replaying", "snapshot gap", "cursor d0", "got n2", "cursor d1"}, s.told())
				}
			})
		})
	}
}

func TestHandshake(t *testing.T) {
	for status, want := range map[int]struct {
		stops bool
		code  web.Code
	}{
		400: {true, 4400}, 403: {true, 4403}, 404: {true, 0}, 410: {true, 0}, 426: {true, 0}, 429: {true, 0},
		421: {}, 500: {}, 501: {}, 502: {}, 503: {}, 504: {}, 599: {},
		200: {}, 204: {}, 304: {},
	} {
		t.Run(fmt.Sprintf("HTTP status %d", status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t)
				var refusing atomic.Bool
				refusing.Store(true)
				e.status = func(*http.Request) int {
					if refusing.Load() {
						return status
					}
					return 0
				}
				s := e.run(Config{Cursor: "c0"})
				if want.stops {
					err := s.stopped()
					require.ErrorContains(t, err, fmt.Sprintf("HTTP status %d", status))
					stop, _ := errors.AsType[*StopError](err)
					require.Equal(t, want.code, stop.Code)
					require.Equal(t, "c0", stop.Cursor)
					require.Equal(t, []string{"connecting", fmt.Sprint("stopped handshake ", int(want.code))}, s.told())
					return
				}
				require.Equal(t, []string{"connecting", "waiting handshake 0 250ms"}, s.told())
				refusing.Store(false)
				require.Equal(t, "c0", e.next().query.Get("cursor"))
			})
		})
	}
}

// A redirect leads to wherever the answer says, and the credentials would go along.
func TestRedirect(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprintf("HTTP status %d is not followed: the client backs off, and asks the same server again", status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t)
				var refusing atomic.Bool
				refusing.Store(true)
				e.status = func(r *http.Request) int {
					require.Equal(t, "edge", r.Host)
					if refusing.Load() {
						return status
					}
					return 0
				}
				e.location = "http://elsewhere/notifications"
				s := e.subscribe(Config{Cursor: "c0", Credentials: func(context.Context, Why) (Credentials, error) {
					return Credentials{Token: "t1"}, nil
				}})
				s.start(t.Context())
				require.Equal(t, []string{"connecting", "credentials start", "waiting handshake 0 250ms"}, s.told())
				require.Equal(t, 1, e.handshakes())
				require.ErrorContains(t, s.State().Err, fmt.Sprintf("HTTP status %d", status))
				refusing.Store(false)
				require.Equal(t, "c0", e.next().query.Get("cursor"))
			})
		})
	}
	t.Run("the HTTPClient that was given stays as it is", func(t *testing.T) {
		given := &http.Client{}
		_, err := New(Config{URL: "ws://edge/", HTTPClient: given, OnNotifications: func(context.Context, Batch) error { return nil }})
		require.NoError(t, err)
		require.Nil(t, given.CheckRedirect)
	})
}

func TestReconnect(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *edge){
		"the time before an attempt is drawn from twice as much each time, up to the cap": func(t *testing.T, e *edge) {
			e.status = func(*http.Request) int { return 503 }
			s := e.run(Config{})
			var waits []time.Duration
			for range 9 {
				s.told()
				waits = append(waits, s.State().Retry)
				<-time.After(s.State().Retry)
			}
			const ms = time.Millisecond
			require.Equal(t, []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 15000 * ms, 15000 * ms, 15000 * ms}, waits)
			s.told()
			require.Equal(t, 10, e.handshakes())
		},
		"a welcome does not begin the back-off anew, a minute of life does": func(t *testing.T, e *edge) {
			s := e.run(Config{})
			lose := func(after time.Duration) string {
				v := e.next()
				v.say(welcome("c0", s.Cursor() != ""))
				<-time.After(after)
				v.cut()
				notes := s.told()
				return notes[len(notes)-1]
			}
			require.Equal(t, "waiting network 1006 250ms", lose(0))
			require.Equal(t, "waiting network 1006 500ms", lose(time.Second))
			require.Equal(t, "waiting network 1006 1s", lose(59*time.Second))
			require.Equal(t, "waiting network 1006 250ms", lose(time.Minute))
			require.Equal(t, "waiting network 1006 500ms", lose(0))
		},
		"the least and the most of a wait are its bounds": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{BackoffBase: 1 << 62, BackoffCap: 1<<63 - 1})
			for n, most := range map[int]time.Duration{0: 1 << 62, 1: 1<<63 - 1, 2: 1<<63 - 1, 1e6: 1<<63 - 1} {
				s.random = func() float64 { return 0 }
				require.Zero(t, s.backoff(n))
				s.random = func() float64 { return 0.25 }
				require.InDelta(t, float64(most)/4, float64(s.backoff(n)), 1e4)
			}
		},
		"silence ends a connection that looks open": func(t *testing.T, e *edge) {
			s := e.run(Config{})
			v := e.next()
			began := time.Now()
			v.say(`{"action":"welcome","cursor":"c0","resumed":true,"heartbeat_ms":4000}`, live)
			for range 3 {
				<-time.After(9999 * time.Millisecond)
				v.say(heartbeat("c0"))
			}
			s.told()
			e.next()
			require.Equal(t, 3*9999*time.Millisecond+10*time.Second+250*time.Millisecond, time.Since(began))
			require.Equal(t, []string{"waiting watchdog 0 250ms", "connecting"}, s.told())
		},
		"pings are answered, and are no sign of life": func(t *testing.T, e *edge) {
			s := e.run(Config{WatchdogFactor: 3})
			v := e.next()
			began := time.Now()
			v.say(`{"action":"welcome","cursor":"c0","resumed":true,"heartbeat_ms":1000}`, live)
			s.told()
			for range 4 {
				require.NoError(t, v.ws.Ping(t.Context()))
				<-time.After(700 * time.Millisecond)
			}
			e.next()
			require.Equal(t, 3250*time.Millisecond, time.Since(began))
			require.Equal(t, []string{"waiting watchdog 0 250ms", "connecting"}, s.told())
		},
		"who reads nothing because the handler is slow hears no silence": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{OnNotifications: func(context.Context, Batch) error {
				<-release
				return nil
			}})
			ids := make([]string, maxHeld)
			go func() {
				for range 4 { // one is handled, one held, one waits for room, one is not read
					v.say(batch("c1", ids...))
				}
			}()
			<-time.After(100 * 24 * time.Hour)
			require.Equal(t, StatusLive, s.State().Status)
			close(release)
			<-time.After(time.Second)
			require.Len(t, s.told(), 4*maxHeld+1)
			require.Equal(t, 1, e.handshakes())
		},
		"a server that never welcomes is left": func(t *testing.T, e *edge) {
			s := e.run(Config{})
			began := time.Now()
			e.next()
			e.next()
			require.Equal(t, 20*time.Second+250*time.Millisecond, time.Since(began))
			require.Equal(t, []string{"connecting", "waiting watchdog 0 250ms", "connecting"}, s.told())
		},
		"a handshake that is never answered is given up": func(t *testing.T, e *edge) {
			hang := make(chan struct{})
			e.status = func(r *http.Request) int {
				<-r.Context().Done()
				<-hang
				return 500
			}
			s := e.run(Config{ConnectTimeout: 3 * time.Second})
			<-time.After(3*time.Second + time.Millisecond)
			require.Equal(t, []string{"connecting", "waiting network 1006 250ms"}, s.told())
			close(hang)
		},
		"a frame that is cut in the middle is not handed over": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			whole := batch("c1", "n1")
			v.say(whole)
			s.told()
			half := append([]byte{0x81, 126, byte(len(whole) >> 8), byte(len(whole))}, whole[:len(whole)-1]...)
			_, err := v.raw.Write(half)
			require.NoError(t, err)
			v.cut()
			v = e.next()
			require.Equal(t, "c1", v.query.Get("cursor"))
			require.Equal(t, []string{"waiting network 1006 250ms", "connecting"}, s.told())
		},
		"a server that cannot be reached is tried again": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			var up atomic.Bool
			s.cfg.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, a, b string) (net.Conn, error) {
				if !up.Load() {
					return nil, errors.New("no route")
				}
				return e.pipes.dial(ctx, a, b)
			}}}
			s.start(t.Context())
			require.Equal(t, []string{"connecting", "waiting network 1006 250ms"}, s.told())
			require.EqualError(t, s.State().Err, "no route")
			up.Store(true)
			e.next()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
	for name, frames := range map[string][]string{
		"what is no JSON":                {welcome("c0", false), `{"cursor":"c1"`},
		"what is no object":              {welcome("c0", false), `["c1"]`},
		"what is JSON, and no batch":     {welcome("c0", false), `{"cursor":7,"notifications":[]}`},
		"a batch that is no list":        {welcome("c0", false), `{"cursor":"c1","notifications":{}}`},
		"a first frame that is a batch":  {batch("c1", "n1")},
		"a second welcome":               {welcome("c0", false), welcome("c0", false)},
		"a heartbeat before any welcome": {heartbeat("c1")},
		"a welcome that cannot be read":  {`{"action":"welcome","cursor":{}}`},
		"an action that is no text":      {welcome("c0", false), `{"action":5}`},
		"an empty frame":                 {welcome("c0", false), ``},
		"two documents in a frame":       {welcome("c0", false), heartbeat("c1") + heartbeat("c2")},
	} {
		t.Run(name+" is a bug of the server: reconnect with the cursor", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t)
				s := e.run(Config{})
				v := e.next()
				for _, f := range frames {
					v.say(f)
					synctest.Wait() // so that the snapshot is not overtaken
				}
				want := ""
				if len(frames) == 2 {
					want = "c0"
				}
				v = e.next()
				require.Equal(t, want, v.query.Get("cursor"))
				notes := s.told()
				require.Equal(t, "waiting protocol 0 250ms", notes[len(notes)-2])
				require.NotContains(t, notes, "got n1")
			})
		})
	}
	t.Run("a server that does not speak the subprotocol is tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newEdge(t)
			s := e.subscribe(Config{Header: http.Header{}})
			s.cfg.HTTPClient = &http.Client{Transport: stripped{s.cfg.HTTPClient.Transport}}
			s.start(t.Context())
			require.Equal(t, []string{"connecting", "waiting protocol 0 250ms"}, s.told())
		})
	})
}

// stripped takes the subprotocol from the handshake.
type stripped struct{ http.RoundTripper }

func (s stripped) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Del("Sec-WebSocket-Protocol")
	return s.RoundTripper.RoundTrip(r)
}
