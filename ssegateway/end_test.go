package ssegateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

func TestCloseCodes(t *testing.T) {
	stream := func(s *server) *stream {
		eventually(t, "a stream", func() bool { return len(s.handler.door.All()) > 0 })
		return s.handler.door.All()[0]
	}
	for _, test := range []struct {
		name    string
		gateway notification.GatewayConfig
		cause   func(t *testing.T, s *server)
		code    int
	}{
		{"1000 when the session is unregistered", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			require.NoError(t, s.gateway.UnregisterSession(s.session("alice").ID()))
		}, 1000},
		{"1001 when the Gateway shuts down", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			require.NoError(t, s.gateway.Shutdown(t.Context()))
		}, 1001},
		{"1001 when the Handler does", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			require.NoError(t, s.handler.Shutdown(t.Context()))
		}, 1001},
		{"1011 when the server failed", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			stream(s).Close(fmt.Errorf("%w: in a sink", notification.ErrSinkPanic))
		}, 1011},
		{"1011 for whatever else ended the session, with no word of it", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			stream(s).Close(errors.New("the reason"))
		}, 1011},
		{"4000 when it was slow", notification.GatewayConfig{}, func(t *testing.T, s *server) {
			stream(s).Close(fmt.Errorf("wrapped: %w", notification.ErrSlowConsumer))
			require.NoError(t, s.session("alice").Close()) // as the Gateway would have done before
		}, 4000},
		{"4001 when nothing could be written for too long", notification.GatewayConfig{SessionTimeout: 2 * time.Second, SweepInterval: 100 * time.Millisecond},
			func(*testing.T, *server) {}, 4001},
		{"4100 when there may be a gap", notification.GatewayConfig{}, func(t *testing.T, s *server) { s.gateway.Gap() }, 4100},
		{"4409 when a newer session takes its place", notification.GatewayConfig{MaxSessionsPerUser: 1}, func(t *testing.T, s *server) {
			s.open("user=alice", "").want("welcome")
		}, 4409},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, test.gateway, Config{HeartbeatInterval: time.Hour})
			c := s.begin("user=alice")
			test.cause(t, s)
			f := c.goodbye()
			require.Equal(t, test.code, f.Code)
			require.NotContains(t, f.Reason, "reason")
			require.NotEmpty(t, c.retry)
			eventually(t, "it is counted", func() bool { return s.handler.Stats().Closed[web.Code(test.code)] == 1 })
		})
	}
	t.Run("4401 when the credentials expire, however lively the stream is, and not before", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Millisecond})
		var expires time.Time
		var c *client
		for life := time.Second; c == nil; life *= 2 { // on a busy machine a request takes longer than that
			expires = time.Now().Add(life)
			resp := s.get("user=alice&until="+expires.UTC().Format(time.RFC3339Nano), nil)
			if resp.StatusCode == http.StatusOK {
				c = s.stream(resp, "")
			} else {
				require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
				_ = resp.Body.Close()
			}
		}
		require.Equal(t, 4401, c.goodbye().Code)
		require.False(t, time.Now().Before(expires), "too early")
	})
	t.Run("who goes without a word is counted as lost, and its session ends", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		s.begin("user=alice").close()
		s.noSession("alice")
		eventually(t, "it is counted", func() bool { return s.handler.Stats().Closed[web.CodeAbnormal] == 1 })
		require.Zero(t, s.handler.Stats().Connections)
	})
}

// TestRetry draws as many times as it takes to see nearly all of the range.
func TestRetry(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	const n = 200
	draw := func(one func() *client) (all []int) {
		for range n {
			ms, err := strconv.Atoi(one().retry)
			require.NoError(t, err)
			all = append(all, ms)
		}
		slices.Sort(all)
		return all
	}
	within := func(t *testing.T, all []int, least, most int) {
		t.Helper()
		width := most - least
		require.GreaterOrEqual(t, all[0], least)
		require.Less(t, all[n-1], most)
		// Each has 0.75^200 to fail by chance, which is 10^-25.
		require.Less(t, all[0], least+width/4)
		require.GreaterOrEqual(t, all[n-1], most-width/4)
	}
	t.Run("each stream has its own, between 0.5 and 3 s", func(t *testing.T) {
		within(t, draw(func() *client {
			c := s.open("user=alice", "")
			c.want("welcome")
			c.close()
			return c
		}), 500, 3000)
	})
	t.Run("and up to 10 s when the server goes down or is full", func(t *testing.T) {
		clients := make([]*client, n)
		for i := range clients {
			clients[i] = s.begin(fmt.Sprint("user=user-", i))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second) // a quarter of it is for a busy machine
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(ctx) }() // waited for below
		within(t, draw(func() *client {
			c := clients[0]
			clients = clients[1:]
			require.Equal(t, 1001, c.goodbye().Code)
			return c
		}), 500, 10_000)
		require.NoError(t, <-done)
		within(t, draw(func() *client {
			c := s.open("user=alice", "")
			require.Equal(t, 1013, c.goodbye().Code)
			return c
		}), 500, 10_000)
	})
}

func TestAStuckPeer(t *testing.T) {
	t.Run("is gone within WriteTimeout and a second, and holds up nobody", func(t *testing.T) {
		noneHung(t, func() uint64 {
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{}, Config{WriteTimeout: 500 * time.Millisecond}, nil)
			s.rawOpen("user=stuck")
			session := s.session("stuck")
			lively := s.patient().begin("user=lively")
			for range 64 {
				s.publish("stuck", large)
				n := s.publish("lively", notification.OrderRejected{})
				require.Equal(t, n.ID, lively.hear().frame(t).MessageID, "held up")
			}
			<-session.Done()
			require.ErrorIs(t, session.Err(), notification.ErrSlowConsumer) // and not what the failed write made of the request
			s.noStreams()
			require.EqualValues(t, 1, s.handler.Stats().Closed[web.CodeSlow])
			return s.gateway.Stats().Hung
		})
	})
	t.Run("that ends for another reason meanwhile gives the Gateway its pusher back at once", func(t *testing.T) {
		noneHung(t, func() uint64 {
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 1}, Config{WriteTimeout: time.Hour}, nil)
			s.rawOpen("user=stuck")
			session := s.session("stuck")
			for range 64 {
				s.publish("stuck", large)
			}
			eventually(t, "a blocked Push", func() bool { return s.gateway.Stats().Lanes[notification.P0].Pending > 0 })
			require.NoError(t, session.Close())
			<-session.Done()
			s.noStreams()
			return s.gateway.Stats().Hung
		})
	})
	t.Run("that a heartbeat is stuck at ends when it is to", func(t *testing.T) {
		s, stuck := serveStuck(t, time.Minute)
		s.begin("user=alice")
		stuck.on.Store(true)
		<-stuck.blocked
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, s.handler.Shutdown(ctx), "it need not be cut")
		require.Zero(t, taken(s))
	})
	t.Run("that reads again in time is told 4000, and then nothing more", func(t *testing.T) {
		told := func() int {
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 1, OutboxMessages: 16}, Config{WriteTimeout: patience}, nil)
			nc := s.rawOpen("user=slow")
			s.session("slow")
			for i := 0; s.gateway.Stats().Ended.Slow == 0; i++ {
				s.publish("slow", large)
				if i > 64 { // more than the kernel holds
					<-time.After(time.Millisecond)
				}
			}
			code := s.readRaw(nc).goodbye().Code // which ends with the stream, so nothing follows
			s.noStreams()
			return code
		}
		code := 0
		for range 10 { // a busy machine may read too late, and is told nothing
			if code = told(); code != 0 {
				break
			}
		}
		require.Equal(t, 4000, code)
	})
}

// A stuckWriter takes nothing once it is on, until it has a deadline that is less
// than limit away.
type stuckWriter struct {
	http.ResponseWriter
	limit            time.Duration
	on               atomic.Bool
	once             sync.Once
	blocked, hurried chan struct{}
}

func (w *stuckWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *stuckWriter) Write(p []byte) (int, error) {
	if !w.on.Load() {
		return w.ResponseWriter.Write(p)
	}
	close(w.blocked)
	<-w.hurried
	return 0, os.ErrDeadlineExceeded
}

func (w *stuckWriter) SetWriteDeadline(at time.Time) error {
	if w.on.Load() && !at.IsZero() && time.Until(at) < w.limit {
		w.once.Do(func() { close(w.hurried) })
	}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

// serveStuck serves one stream, with heartbeats, through a stuckWriter.
func serveStuck(t *testing.T, limit time.Duration) (*server, *stuckWriter) {
	stuck := &stuckWriter{limit: limit, blocked: make(chan struct{}), hurried: make(chan struct{})}
	return serveOn(t, listen(t), notification.GatewayConfig{}, Config{WriteTimeout: time.Hour, HeartbeatInterval: 10 * time.Millisecond}, func(h *http.Server) {
		inner := h.Handler
		h.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			stuck.ResponseWriter = w
			inner.ServeHTTP(stuck, r)
		})
	}), stuck
}

// A recordingConn notes under which deadline it was written to last.
type recordingConn struct {
	net.Conn
	ended chan time.Time // the deadline under which the end of an answer was written

	mu       sync.Mutex
	deadline time.Time // guarded by mu
}

func (c *recordingConn) SetWriteDeadline(at time.Time) error {
	c.mu.Lock()
	c.deadline = at
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(at)
}

func (c *recordingConn) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, []byte("0\r\n\r\n")) {
		c.mu.Lock()
		c.ended <- c.deadline
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

type recordingListener struct {
	net.Listener
	conns chan *recordingConn
}

func (l recordingListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &recordingConn{Conn: nc, ended: make(chan time.Time, 10)}
	l.conns <- c
	return c, nil
}

func TestTheEnd(t *testing.T) {
	t.Run("net/http writes the end of the answer under a deadline, and the connection is as good as new", func(t *testing.T) {
		ln := recordingListener{listen(t), make(chan *recordingConn, 10)}
		s := serveOn(t, ln, notification.GatewayConfig{}, Config{}, nil) // without a WriteTimeout of the http.Server
		c := s.begin("user=alice")
		s.handler.door.All()[0].Close(notification.ErrSessionClosed)
		require.Equal(t, 1000, c.goodbye().Code)
		conn := <-ln.conns
		require.False(t, (<-conn.ended).IsZero())
		s.noStreams()
		<-time.After(2 * grace) // when that deadline has passed
		require.Equal(t, 401, s.status("", nil))
		require.Empty(t, ln.conns, "over the same connection")
	})
	t.Run("whoever ends a stream that has ended touches nothing of net/http's", func(t *testing.T) {
		// The race detector watches, and HTTP/2's ResponseWriter is nil inside by then.
		for _, protocol := range []string{"HTTP/1", "HTTP/2"} {
			s := serveOn(t, listen(t), notification.GatewayConfig{}, Config{}, func(h *http.Server) { h.Protocols = h2c(protocol == "HTTP/2") })
			hc := httpClient(t, protocol == "HTTP/2")
			for i := range 50 {
				resp, err := s.tryGet(hc, "user=alice", nil)
				require.NoError(t, err)
				c := s.stream(resp, "")
				c.want("welcome")
				old := s.handler.door.All()[0]
				var ending sync.WaitGroup
				for range 4 {
					ending.Go(old.cut)
					ending.Go(old.hurry)
					ending.Go(func() { old.Close(notification.ErrGap) })
					ending.Go(func() { _ = s.broker.Publish(notification.New("alice", notification.RiskAlert{}, "test")) })
				}
				if i%2 == 0 {
					c.close()
				}
				c.goodbye()
				ending.Wait()
				s.noStreams()
				old.cut()
				old.hurry()
				old.Live()
				require.Error(t, old.Push(t.Context(), nil))
			}
		}
	})
	t.Run("goroutines and descriptors are back at what they were", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Millisecond})
		s.begin("user=alice").close()
		s.noStreams()
		http.DefaultClient.CloseIdleConnections()
		threads, files := runtime.NumGoroutine(), descriptors(t)
		for range 5 {
			var all []*client
			for i := range 40 {
				all = append(all, s.begin(fmt.Sprint("user=user-", i)))
			}
			for i, c := range all {
				if i%2 == 0 {
					c.close()
				} else {
					require.NoError(t, s.session(fmt.Sprint("user-", i)).Close())
				}
			}
			for i, c := range all {
				if i%2 == 1 {
					require.Equal(t, 1000, c.goodbye().Code)
					c.close()
				}
			}
			s.noStreams()
		}
		http.DefaultClient.CloseIdleConnections()
		require.LessOrEqual(t, goroutines(threads), threads)
		eventually(t, "no descriptor is left", func() bool { return descriptors(t) <= files })
	})
}

// descriptors returns how many are open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("skipped: no list of descriptors here: %v", err)
	}
	return len(entries)
}

func TestShutdown(t *testing.T) {
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("without streams it is done at once, as often as it is called", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		for range 3 {
			require.NoError(t, s.handler.Shutdown(within(patience)))
		}
	})
	t.Run("its ends are spread over the time, who waits is served, and http.Server.Shutdown that began before ends too", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Hour})
		const n = 100
		const window = 16 * time.Second // a quarter of it is for a busy machine
		ends, served := make(chan time.Time, n), make(chan struct{}, n)
		var reading sync.WaitGroup
		for i := range n {
			c := s.begin(fmt.Sprint("user=user-", i))
			reading.Go(func() { // ends with the stream
				last := event{}
				for e, ok := c.next(); ok; e, ok = c.next() {
					if last = e; e.Name == "" {
						served <- struct{}{}
					}
				}
				if last.Name != "close" {
					t.Errorf("the last event is %v", last)
				}
				ends <- time.Now()
			})
		}
		ctx := within(window)
		down, done := make(chan error, 1), make(chan error, 1)
		go func() { down <- s.http.Shutdown(within(patience)) }() // waited for below
		eventually(t, "nobody comes in", func() bool {
			nc, err := net.Dial("tcp", s.addr)
			if err == nil {
				_ = nc.Close()
			}
			return err != nil
		})
		go func() { done <- s.handler.Shutdown(ctx) }() // waited for below
		first := <-ends
		s.publish(notification.AllUsers, notification.MarketHalt{})
		last := first
		for range n - 1 {
			last = <-ends
		}
		require.NoError(t, <-done)
		require.NoError(t, <-down)
		reading.Wait()
		require.NotEmpty(t, served)
		require.GreaterOrEqual(t, last.Sub(first), window/2)
		t.Logf("%d streams ended over %s; %d were served meanwhile", n, last.Sub(first).Round(time.Millisecond), len(served))
		require.Zero(t, s.gateway.Stats().Sessions)
	})
	t.Run("peers that read nothing do not hold it up", func(t *testing.T) {
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 1}, Config{WriteTimeout: time.Hour}, nil)
		for i := range 10 {
			user := fmt.Sprint("user-", i)
			s.rawOpen("user=" + user)
			s.session(user)
			for range 16 {
				s.publish(user, large)
			}
		}
		require.NoError(t, s.handler.Shutdown(within(16*time.Second)))
		require.Zero(t, taken(s))
	})
	t.Run("when its ctx ends it cuts the rest and says so", func(t *testing.T) {
		s, stuck := serveStuck(t, 0)
		s.begin("user=alice")
		stuck.on.Store(true)
		ctx, cancel := context.WithCancelCause(context.Background())
		enough := errors.New("enough")
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(ctx) }() // waited for below
		<-stuck.blocked                                 // at its goodbye
		cancel(enough)
		require.ErrorIs(t, <-done, enough)
		s.noStreams()
	})
	t.Run("a request on its way meanwhile is told to come back", func(t *testing.T) {
		asked, answer := make(chan struct{}), make(chan struct{})
		s := serve(t, notification.GatewayConfig{}, Config{Authenticate: func(r *http.Request) (Identity, error) {
			close(asked)
			<-answer
			return authenticate(r)
		}})
		code := make(chan int, 1)
		go func() { code <- s.open("user=alice", "").goodbye().Code }() // waited for below
		<-asked
		done := make(chan error, 1)
		go func() { done <- s.handler.Shutdown(within(patience)) }() // waited for below
		eventually(t, "closing", s.handler.door.Closing)
		close(answer)
		require.Equal(t, 1001, <-code)
		require.NoError(t, <-done)
	})
}
