package ssegateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// h2c has HTTP/2 without TLS, which is the same for a Handler.
func h2c(on bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(!on)
	p.SetUnencryptedHTTP2(on)
	return p
}

// httpClient is a client with connections of its own.
func httpClient(t testing.TB, http2 bool) *http.Client {
	transport := &http.Transport{Protocols: h2c(http2), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A countingListener counts who comes.
type countingListener struct {
	net.Listener
	came *atomic.Int32
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.came.Add(1)
	}
	return c, err
}

// serveHTTP2 returns a function that opens streams, all over one connection or two.
func serveHTTP2(t *testing.T, g notification.GatewayConfig, cfg Config, deadline time.Duration) (s *server, open func(query string) *http.Response, came *atomic.Int32) {
	came = new(atomic.Int32)
	s = serveOn(t, countingListener{listen(t), came}, g, cfg, func(h *http.Server) {
		h.Protocols = h2c(true)
		h.ReadTimeout, h.WriteTimeout = deadline, deadline
	})
	hc := httpClient(t, true)
	return s, func(query string) *http.Response {
		t.Helper()
		resp, err := s.tryGet(hc, query, nil)
		require.NoError(t, err)
		require.Equal(t, 2, resp.ProtoMajor)
		return resp
	}, came
}

func TestHTTP2(t *testing.T) {
	t.Run("many streams go over one connection, resume and end", func(t *testing.T) {
		s, open, came := serveHTTP2(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: time.Hour}, 0)
		const n = 100
		all := make([]*client, n)
		for i := range all {
			all[i] = s.stream(open(fmt.Sprint("user=user-", i)), "")
			all[i].want("welcome")
			all[i].want("live")
		}
		conns := came.Load()
		require.LessOrEqual(t, conns, int32(2), "the client may dial a second one before it knows the first")
		for i, c := range all {
			own := s.publish(fmt.Sprint("user-", i), notification.RiskAlert{})
			require.Equal(t, own.ID, c.want("").frame(t).MessageID)
		}
		everybody := s.publish(notification.AllUsers, notification.MarketHalt{})
		for _, c := range all {
			require.Equal(t, everybody.ID, c.want("").frame(t).MessageID)
		}
		all[0].close()
		s.noSession("user-0")
		missed := s.publish("user-0", notification.RiskAlert{})
		s.routed()
		c := s.stream(open("user=user-0&cursor="+all[0].lastID), "")
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, missed.ID, c.want("").frame(t).MessageID)
		require.NoError(t, s.gateway.UnregisterSession(s.session("user-1").ID()))
		require.Equal(t, 1000, all[1].goodbye().Code)
		require.Equal(t, conns, came.Load())
	})
	t.Run("the server's deadlines, and WriteTimeout, do not end a stream that is quiet", func(t *testing.T) {
		const deadline = 3 * time.Second // has room for a request on a busy machine
		s, open, _ := serveHTTP2(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Hour, WriteTimeout: deadline}, deadline)
		c := s.stream(open("user=alice"), "")
		c.want("welcome")
		c.want("live")
		<-time.After(2 * deadline) // nothing is to happen
		n := s.publish("alice", notification.RiskAlert{})
		require.Equal(t, n.ID, c.want("").frame(t).MessageID)
	})
	t.Run("a stream that is not read ends by WriteTimeout, and does no harm to the others of its connection", func(t *testing.T) {
		noneHung(t, func() uint64 {
			s, open, came := serveHTTP2(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Hour, WriteTimeout: 3 * time.Second}, 0)
			stuck := open("user=stuck")
			defer stuck.Body.Close()
			session := s.session("stuck")
			lively := s.stream(open("user=lively"), "")
			lively.want("welcome")
			lively.want("live")
			conns := came.Load()
			for range 4 {
				s.publish("stuck", large)
				n := s.publish("lively", notification.RiskAlert{})
				require.Equal(t, n.ID, lively.want("").frame(t).MessageID, "held up")
			}
			<-session.Done()
			require.ErrorIs(t, session.Err(), notification.ErrSlowConsumer)
			eventually(t, "its place is free", func() bool { return taken(s) == 1 })
			require.EqualValues(t, 1, s.handler.Stats().Closed[web.CodeSlow])
			n := s.publish("lively", large)
			require.Equal(t, n.ID, lively.want("").frame(t).MessageID)
			another := open("user=another")
			defer another.Body.Close()
			require.Equal(t, conns, came.Load())
			return s.gateway.Stats().Hung
		})
	})
	t.Run("one that is stuck and is to end leaves at once", func(t *testing.T) {
		noneHung(t, func() uint64 {
			s, open, _ := serveHTTP2(t, notification.GatewayConfig{BatchSize: 1}, Config{HeartbeatInterval: time.Hour, WriteTimeout: time.Hour}, 0)
			stuck := open("user=stuck")
			defer stuck.Body.Close()
			session := s.session("stuck")
			for range 4 {
				s.publish("stuck", large)
			}
			eventually(t, "a blocked Push", func() bool { return s.gateway.Stats().Lanes[notification.P0].Pending > 0 })
			require.NoError(t, session.Close())
			s.noStreams()
			return s.gateway.Stats().Hung
		})
	})
	t.Run("a body gets 400 without the end of the connection that others use", func(t *testing.T) {
		s, _, came := serveHTTP2(t, notification.GatewayConfig{}, Config{}, 0)
		hc := httpClient(t, true)
		first, err := s.tryGet(hc, "user=alice", nil)
		require.NoError(t, err)
		defer first.Body.Close()
		warm, err := s.tryGet(hc, "user=alice", nil)
		require.NoError(t, err)
		defer warm.Body.Close()
		conns := came.Load() // 2 if the client dialed another one before it knew the first
		for range 3 {
			resp, err := hc.Post("http://"+s.addr, "text/plain", strings.NewReader("x"))
			require.NoError(t, err)
			_, _ = io.Copy(io.Discard, resp.Body) // or the client would reset the stream
			_ = resp.Body.Close()
			require.Equal(t, 400, resp.StatusCode)
		}
		second, err := s.tryGet(hc, "user=bob", nil)
		require.NoError(t, err)
		defer second.Body.Close()
		require.Equal(t, conns, came.Load())
	})
}
