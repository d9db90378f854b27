package wsgateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

// impatient is a configuration under which a test need not wait long.
var impatient = Config{PingInterval: 100 * time.Millisecond, PongTimeout: 200 * time.Millisecond, WriteTimeout: 500 * time.Millisecond, CommandsPerSecond: 1000}

// large fills the kernel's buffers soon.
var large = notification.OrderRejected{Reason: strings.Repeat("x", 512<<10)}

// tick calls f every d until it fails.
func tick(d time.Duration, f func() error) {
	for range time.Tick(d) {
		if f() != nil {
			return
		}
	}
}

func TestAStuckPeer(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("is gone within WriteTimeout and a second, and holds up nobody (TLS %v)", secure), func(t *testing.T) {
			noneHung(t, func() uint64 {
				ln := net.Listener(smallBuffers{listen(t)})
				if secure {
					ln = secureListener(t, ln)
				}
				cfg := impatient
				cfg.PingInterval = patience // it is the write that must be noticed
				s := serveOn(t, ln, notification.GatewayConfig{OutboxMessages: 1024}, cfg)
				stuck := dial(t, s, "stuck", secure)
				defer stuck.Close()
				session := s.session("stuck")
				lively := s.patient().dial("lively", false, "")
				s.session("lively")

				start := time.Now()
				for i := 0; session.Err() == nil; i++ {
					s.publish("stuck", large)
					n := s.publish("lively", notification.OrderRejected{})
					require.Equal(t, n.ID, lively.frame().MessageID, "held up")
					if i > 64 { // more than the kernel holds: the Gateway has it
						<-session.Done()
					}
				}
				<-session.Done()
				t.Logf("ended after %s with %v; WriteTimeout %s", time.Since(start).Round(time.Millisecond), session.Err(), cfg.WriteTimeout)
				s.noConnections()
				t.Logf("gone after %s", time.Since(start).Round(time.Millisecond))
				return s.gateway.Stats().Hung
			})
		})
	}
	t.Run("that ends for another reason meanwhile gives the Gateway its pusher back at once", func(t *testing.T) {
		cfg := impatient
		noneHung(t, func() uint64 {
			cfg.WriteTimeout, cfg.PingInterval = time.Hour, time.Hour
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 1, OutboxMessages: 1024}, cfg)
			stuck := dial(t, s, "stuck", false)
			defer stuck.Close()
			session := s.session("stuck")
			for range 64 {
				s.publish("stuck", large)
			}
			eventually(t, "a blocked Push", func() bool { return s.gateway.Stats().Lanes[notification.P0].Pending > 0 })
			require.NoError(t, session.Close())
			<-session.Done()
			eventually(t, "the connection gone", func() bool { return taken(s) == 0 })
			return s.gateway.Stats().Hung
		})
	})
	t.Run("that reads again in time is told 4000, and then nothing more", func(t *testing.T) {
		told := func() (code int) {
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 1, OutboxMessages: 16}, Config{WriteTimeout: patience, PingInterval: time.Hour})
			c := s.rawDial("slow")
			s.session("slow")
			for i := 0; s.gateway.Stats().Ended.Slow == 0; i++ {
				s.publish("slow", large)
				if i > 64 { // more than the kernel holds
					<-time.After(time.Millisecond)
				}
			}
			code, heard := c.goodbye()
			require.NotEmpty(t, heard)
			_ = c.Close()
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

// dial connects a user who will not read unless the test does.
func dial(t *testing.T, s *server, user string, secure bool) net.Conn {
	nc, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
	if secure {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true}) // the certificate is not what is tested
	}
	require.NoError(t, handshake(nc, bufio.NewReaderSize(nc, 16), user, "")) // reads hardly more than the answer
	return nc
}

func secureListener(t *testing.T, ln net.Listener) net.Listener {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
}

func TestSocket(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	s := newSocket(&Config{WriteTimeout: patience, PingInterval: patience, ReadLimit: 1}, new(door.Counters), nil)
	s.Conn = here
	go func() { _, _ = io.Copy(io.Discard, there) }() // ends when there is closed
	t.Run("after a close frame nothing is written", func(t *testing.T) {
		require.NoError(t, s.send([]byte("frame")))
		_, err := s.Write([]byte("close frame"))
		require.NoError(t, err)
		require.ErrorIs(t, s.send([]byte("frame")), errSealed)
	})
	t.Run("after half a frame not even a close frame is", func(t *testing.T) {
		require.True(t, s.seal(time.Unix(1, 0)))
		_, err := s.Write([]byte("late"))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		_, err = s.Write([]byte("close frame"))
		require.ErrorIs(t, err, errSealed)
		require.False(t, s.seal(time.Now().Add(patience)))
	})
	t.Run("a Close does not wait for a write that is stuck", func(t *testing.T) {
		stuck, nobody := net.Pipe()
		defer nobody.Close()
		s := newSocket(&Config{WriteTimeout: time.Hour, PingInterval: time.Hour}, new(door.Counters), nil)
		s.Conn = stuck
		failed := make(chan error)
		go func() { failed <- s.send([]byte("frame")) }()
		_, err := nobody.Read(make([]byte, 1)) // it has begun
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.Error(t, <-failed)
	})
	t.Run("whoever rouses the reader too late does not cut off the peer's close frame", func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		s := newSocket(&Config{}, new(door.Counters), nil)
		s.Conn = here
		s.end(endNormal)
		require.True(t, s.seal(time.Now().Add(patience)))
		s.poke()
		go func() { _, _ = there.Write([]byte("close frame")) }() // ends when it is read, or here closed
		defer here.Close()
		n, err := s.Read(make([]byte, 100))
		require.NoError(t, err)
		require.Equal(t, len("close frame"), n)
	})
	t.Run("a peer that violates the protocol gets the close frame, the end of the stream and no reset", func(t *testing.T) {
		ln := listen(t)
		defer ln.Close()
		peer, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		defer peer.Close()
		require.NoError(t, peer.SetDeadline(time.Now().Add(patience)))
		s := newConn(&Handler{cfg: Config{WriteTimeout: patience, PingInterval: patience, PongTimeout: patience, ReadLimit: 1}}).sock
		s.Conn, err = ln.Accept()
		require.NoError(t, err)
		defer s.Close()
		talked := make(chan error)
		go func() { // it does not stop for all that
			_, err := peer.Write(append(masked(fin|opPing, nil), make([]byte, 4<<20)...))
			talked <- errors.Join(err, peer.(*net.TCPConn).CloseWrite())
		}()
		good, err := io.ReadAll(s)
		require.Equal(t, masked(fin|opPing, nil), good)
		var e *ending
		require.ErrorAs(t, err, &e)
		require.EqualValues(t, 1002, e.code)
		_, again := s.Read(make([]byte, 1))
		require.Equal(t, err, again)
		require.True(t, s.seal(time.Now().Add(patience)))
		_, err = s.Write([]byte("close frame"))
		require.NoError(t, err)
		heard, err := io.ReadAll(peer)
		require.NoError(t, err)
		require.Equal(t, "close frame", string(heard))
		for _, r := range []io.Reader{s, s.Conn} { // nothing is left in the socket either
			n, err := r.Read(make([]byte, 1))
			require.Zero(t, n)
			require.ErrorIs(t, err, io.EOF)
		}
		require.NoError(t, <-talked)
	})
}

func TestSilence(t *testing.T) {
	t.Run("a peer that does not answer a ping is gone", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, impatient)
		c := s.rawDial("half-open")
		code, heard := c.goodbye()
		require.Equal(t, []byte{opPing}, heard)
		require.Equal(t, 4001, code)
		s.noSessions()
	})
	t.Run("also if it is written to all the time", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, impatient)
		c := s.rawDial("half-open")
		session := s.session("half-open")
		go tick(time.Millisecond, func() error { // ends with the session; the test waits for it
			_ = s.broker.Publish(notification.New("half-open", notification.OrderFilled{}, "test"))
			return session.Err()
		})
		code, heard := c.goodbye()
		require.Contains(t, heard, byte(opPing))
		require.Equal(t, 4001, code)
		<-session.Done()
	})
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("a peer that answers lives on, and is heard of (TLS %v)", secure), func(t *testing.T) {
			ln := listen(t)
			if secure {
				ln = secureListener(t, ln)
			}
			cfg := impatient
			cfg.PongTimeout = patience // TestAnAnswerInTime has the exact time
			s := serveOn(t, ln, notification.GatewayConfig{}, cfg)
			nc := dial(t, s, "alive", secure)
			defer nc.Close()
			c := &rawClient{t, nc, bufio.NewReader(nc)}
			session := s.session("alive")
			for range 4 {
				opcode, payload, err := c.read()
				require.NoError(t, err)
				require.Equal(t, byte(opPing), opcode)
				before := session.LastActive()
				_, err = c.Write(masked(fin|opPong, payload))
				require.NoError(t, err)
				eventually(t, "Touch", func() bool { return session.LastActive().After(before.Add(time.Millisecond)) })
			}
			s.gateway.Gap()
			code, _ := c.goodbye()
			require.Equal(t, 4100, code)
		})
	}
	t.Run("a peer that speaks is not pinged", func(t *testing.T) {
		cfg := Config{PingInterval: time.Second, PongTimeout: patience, CommandsPerSecond: 1000}
		s := serve(t, notification.GatewayConfig{}, cfg)
		c := s.rawDial("speaks")
		spoke := time.Now()
		for range time.Tick(cfg.PingInterval / 10) {
			late := time.Since(spoke) >= cfg.PingInterval/2 // on a busy machine
			spoke = time.Now()
			_, err := c.Write(masked(fin|opText, []byte(`{"action":"ping"}`)))
			require.NoError(t, err)
			opcode, _, err := c.read()
			require.NoError(t, err)
			for opcode == opPing {
				require.True(t, late || time.Since(spoke) >= cfg.PingInterval/2, "it has just spoken")
				opcode, _, err = c.read()
				require.NoError(t, err)
			}
			require.Equal(t, byte(opText), opcode)
			if time.Since(s.session("speaks").ConnectedAt()) > 2*cfg.PingInterval {
				break
			}
		}
	})
}

// TestAnAnswerInTime has virtual time, and a pipe for a network.
func TestAnAnswerInTime(t *testing.T) {
	t.Run("a pong, at once or in the last moment, ends the wait for it, and the next ping comes PingInterval later; a moment after that is too late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			defer there.Close()
			defer here.Close()
			s := newConn(&Handler{cfg: impatient}).sock
			s.Conn = here
			ended := make(chan error, 1)
			go func() { // ends with the last ping
				_, err := io.Copy(io.Discard, s)
				ended <- err
			}()
			ping := func() {
				begun := time.Now()
				_, err := io.ReadFull(there, make([]byte, 2))
				require.NoError(t, err)
				require.Equal(t, impatient.PingInterval, time.Since(begun))
			}
			for i := range 10 {
				ping()
				<-time.After(time.Duration(i%2) * (impatient.PongTimeout - 1))
				_, err := there.Write(masked(fin|opPong, nil))
				require.NoError(t, err)
				synctest.Wait()
				require.Empty(t, ended)
			}
			ping()
			<-time.After(impatient.PongTimeout)
			require.ErrorIs(t, <-ended, endSilent)
		})
	})
}

func TestTraps(t *testing.T) {
	for _, test := range []struct {
		name  string
		send  func(c *rawClient)
		codes []int // 0: the connection ends without a close frame that the peer could expect
	}{
		{"a frame header that promises a payload which never comes", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText, 0x80 | 100, 0, 0, 0, 0})
		}, []int{1008}},
		{"half a frame header", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText})
		}, []int{1008}},
		{"half a ping", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opPing, 0x80 | 10, 0, 0, 0, 0, 'x'})
		}, []int{1008}},
		{"half a frame that came along with a whole one", func(c *rawClient) {
			_, _ = c.Write(append(masked(fin|opPing, nil), fin|opText))
		}, []int{1008}},
		{"a message whose first frame came along with a whole one", func(c *rawClient) {
			_, _ = c.Write(append(masked(fin|opPing, nil), masked(opText, []byte("x"))...))
		}, []int{1008}},
		{"half a close frame", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | 8, 0x80 | 2, 0, 0, 0, 0, 3})
		}, []int{1008}},
		{"a message that drips", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText, 0x80 | 100, 0, 0, 0, 0})
			tick(10*time.Millisecond, func() error { _, err := c.Write([]byte{'x'}); return err })
		}, []int{1008, 0}},
		{"a message that drips in frames, with every ping answered", func(c *rawClient) {
			_, _ = c.Write(masked(opText, []byte("x")))
			tick(10*time.Millisecond, func() error {
				_, err := c.Write(append(masked(0, []byte("x")), masked(fin|opPong, nil)...))
				return err
			})
		}, []int{1008, 0}},
		{"endless empty frames of a message", func(c *rawClient) {
			b := slices.Repeat(masked(0, nil), 1000)
			// In one piece, or a busy machine lets the message take too long, which is 1008.
			_, err := c.Write(append(masked(opText, []byte("x")), b...))
			for err == nil {
				_, err = c.Write(b)
			}
		}, []int{1009, 0}},
		{"a flood of pings", func(c *rawClient) {
			for range 100 {
				if _, err := c.Write(slices.Repeat(masked(fin|opPing, []byte("ping")), 100)); err != nil {
					return
				}
			}
		}, []int{1008, 0}},
		{"a flood of pongs", func(c *rawClient) {
			for range 100 {
				if _, err := c.Write(slices.Repeat(masked(fin|opPong, nil), 100)); err != nil {
					return
				}
			}
		}, []int{1008, 0}},
		{"a frame without a mask", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText, 2, '{', '}'})
		}, []int{1002}},
		{"a length of 2^63", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		}, []int{1002}},
		{"a length of 2^62", func(c *rawClient) {
			_, _ = c.Write([]byte{fin | opText, 0x80 | 127, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		}, []int{1009}},
		{"an unknown opcode", func(c *rawClient) { _, _ = c.Write(masked(fin|3, nil)) }, []int{1002}},
		{"reserved bits", func(c *rawClient) { _, _ = c.Write(masked(fin|0x70|opText, []byte("{}"))) }, []int{1002}},
		{"a continuation of nothing", func(c *rawClient) { _, _ = c.Write(masked(fin, []byte("x"))) }, []int{1002}},
		{"a new message within a message", func(c *rawClient) {
			_, _ = c.Write(append(masked(opText, []byte("x")), masked(fin|opText, []byte("x"))...))
		}, []int{1002}},
		{"a close frame with a code that is none", func(c *rawClient) { _, _ = c.Write(masked(fin|8, []byte{0, 1})) }, []int{1002}},
		{"a write half that is closed", func(c *rawClient) { _ = c.Conn.(*net.TCPConn).CloseWrite() }, []int{0}},
	} {
		t.Run(test.name+" ends the connection, by its deadline", func(t *testing.T) {
			t.Parallel()
			cfg := impatient
			cfg.CommandsPerSecond, cfg.ReadLimit = 200, 4<<10
			cfg.PingInterval = patience
			s := serve(t, notification.GatewayConfig{}, cfg)
			c := s.rawDial("mallory")
			s.session("mallory")
			var sending sync.WaitGroup
			sending.Go(func() { test.send(c) })
			code, _ := c.goodbye()
			_ = c.Close()
			sending.Wait()
			require.Contains(t, test.codes, code)
			s.noSessions()
			eventually(t, "the connection gone", func() bool { return taken(s) == 0 })
		})
		t.Run(test.name+" does not keep the server from closing", func(t *testing.T) {
			t.Parallel()
			s := serve(t, notification.GatewayConfig{}, Config{WriteTimeout: 500 * time.Millisecond})
			c := s.rawDial("mallory")
			session := s.session("mallory")
			var sending sync.WaitGroup
			sending.Go(func() { test.send(c) })
			sending.Go(func() { _, _ = io.Copy(io.Discard, c.r) })
			_ = session.Close()
			<-session.Done()
			eventually(t, "the connection gone", func() bool { return taken(s) == 0 })
			sending.Wait()
		})
	}
}

func TestAViolationUnderTLS(t *testing.T) {
	s := serveOn(t, secureListener(t, listen(t)), notification.GatewayConfig{}, Config{})
	nc := dial(t, s, "mallory", true)
	defer nc.Close()
	c := &rawClient{t, nc, bufio.NewReader(nc)}
	_, err := c.Write(append(masked(fin|opPing, nil), []byte{fin | opText, 0}...))
	require.NoError(t, err)
	t.Run("is told, and then the stream ends as TLS has it", func(t *testing.T) {
		opcode, _, err := c.read()
		require.NoError(t, err)
		require.Equal(t, byte(opPong), opcode)
		opcode, payload, err := c.read()
		require.NoError(t, err)
		require.Equal(t, byte(opClose), opcode)
		require.Equal(t, "\x03\xeaa frame is not masked", string(payload))
		_, _, err = c.read()
		require.Equal(t, io.EOF, err)
	})
}

func TestAHalfFrameAlongWithTheHandshake(t *testing.T) {
	cfg := impatient
	cfg.PingInterval = patience
	s := serve(t, notification.GatewayConfig{}, cfg)
	nc, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	defer nc.Close()
	require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
	_, err = nc.Write(append(request("GET / HTTP/1.1"), fin|opText))
	require.NoError(t, err)
	c := &rawClient{t, nc, bufio.NewReader(nc)}
	resp, err := http.ReadResponse(c.r, nil)
	require.NoError(t, err)
	require.Equal(t, 101, resp.StatusCode)
	t.Run("ends the connection by its deadline", func(t *testing.T) {
		code, _ := c.goodbye()
		require.Equal(t, 1008, code)
	})
}

// TestHalfAControlFrame has a PongTimeout above the library's own for control
// frames.
func TestHalfAControlFrame(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{WriteTimeout: time.Second})
	c := s.rawDial("mallory")
	_, err := c.Write([]byte{fin | opPing, 0x80 | 10, 0, 0, 0, 0, 'x'})
	require.NoError(t, err)
	t.Run("is told so, before the library gives up", func(t *testing.T) {
		code, _ := c.goodbye()
		s.noConnections()
		if code == 0 { // a busy machine may be slower than the library: then it says what happened
			require.Equal(t, map[web.Code]uint64{web.CodeAbnormal: 1}, s.handler.Stats().Closed)
			return
		}
		require.Equal(t, 1008, code)
	})
}

// TestHostileConnections sends everything at once.
func TestHostileConnections(t *testing.T) {
	const n = 500
	cfg := impatient
	cfg.PingInterval, cfg.PongTimeout, cfg.CommandsPerSecond = 500*time.Millisecond, 2*time.Second, 10
	ln := listen(t)
	s := newServer(t, ln, notification.GatewayConfig{}, cfg)
	s.headers = time.Second
	s.listen(ln)
	t.Cleanup(s.atRest)
	other := s.patient() // for the honest client
	require.NoError(t, s.dial("first", false, "").ws.CloseNow())
	eventually(t, "all that serves, and nobody else", func() bool { return s.gateway.Stats().Ended.Closed == 1 && taken(s) == 0 })
	fds, routines := descriptors(t), runtime.NumGoroutine()
	start := time.Now()

	garbage := func(c net.Conn, size int) error {
		_, err := io.CopyN(c, rand.Reader, int64(size))
		return err
	}
	// Before the upgrade, then after it.
	early := []func(c net.Conn){
		func(c net.Conn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: web")) },
		func(c net.Conn) {},
		func(c net.Conn) { _ = garbage(c, 4096) },
		func(c net.Conn) {
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\n"))
			tick(10*time.Millisecond, func() error { _, err := c.Write([]byte("X: y\r\n")); return err })
		},
	}
	late := []func(c *rawClient){
		func(c *rawClient) {}, // never answers a ping
		func(c *rawClient) { _, _ = c.Write([]byte{fin | opText, 0x80 | 126, 0xff, 0xff, 0, 0, 0, 0}) },
		func(c *rawClient) { _, _ = c.Write([]byte{fin | opText, 0x80 | 127, 0, 0, 0, 1}) },
		func(c *rawClient) { _, _ = c.Write([]byte{fin | opText, 5, 'h', 'e', 'l', 'l', 'o'}) },
		func(c *rawClient) { _ = garbage(c, 64<<10) },
		func(c *rawClient) {
			for garbage(c, 4096) == nil {
			}
		},
		func(c *rawClient) { _ = c.Conn.(*net.TCPConn).SetLinger(0); _ = c.Close() },
		func(c *rawClient) { _ = c.Conn.(*net.TCPConn).CloseWrite() },
		func(c *rawClient) {
			_, err := c.Write(masked(opText, []byte("x")))
			for err == nil {
				_, err = c.Write(masked(0, nil))
			}
		},
		func(c *rawClient) {
			for err := error(nil); err == nil; {
				_, err = c.Write(masked(fin|opPing, []byte("ping")))
			}
		},
		func(c *rawClient) {
			tick(10*time.Millisecond, func() error { _, err := c.Write([]byte{0}); return err })
		},
	}
	var attacks sync.WaitGroup
	for i := range n {
		attacks.Go(func() {
			if i%5 == 0 {
				c, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				early[i/5%len(early)](c)
				untilClosed(t, c)
				return
			}
			var c *rawClient
			eventually(t, "a connection", func() (ok bool) { // the server cuts a handshake that a busy machine makes slow
				var err error
				c, err = s.tryRawDial(fmt.Sprint("mallory-", i))
				return err == nil
			})
			defer c.Close()
			late[i%len(late)](c)
			untilClosed(t, c)
		})
	}
	honest := other.dial("alice", false, "")
	heard := make(chan string, n) // it reads all the time, and so answers pings
	go func() {                   // ends with the connection
		defer close(heard)
		for {
			_, text, err := honest.ws.Read(context.Background())
			if err != nil {
				return
			}
			heard <- string(text)
		}
	}()
	s.session("alice")
	done := make(chan struct{})
	go func() { attacks.Wait(); close(done) }()
	served := 0
	for range time.Tick(10 * time.Millisecond) {
		m := s.publish("alice", notification.RiskAlert{})
		require.Equal(t, m.ID, parse(t, []byte(<-heard)).MessageID)
		s.publish(notification.AllUsers, notification.SystemNotice{})
		<-heard
		served++
		select {
		case <-done:
		default:
			continue
		}
		break
	}
	t.Logf("%d attacks were over after %s; an honest client was served %d times meanwhile", n, time.Since(start).Round(time.Millisecond), served)
	require.NoError(t, honest.ws.CloseNow())
	for range heard {
	}
	s.noConnections()
	stats := s.handler.Stats()
	closed := uint64(0)
	for _, n := range stats.Closed {
		closed += n
	}
	require.Zero(t, stats.Connections)
	require.Equal(t, stats.Accepted, closed, "who was accepted has ended, as something: %v", stats.Closed)
	eventually(t, "no goroutine left behind", func() bool { return runtime.NumGoroutine() <= routines })
	eventually(t, "no descriptor left behind", func() bool { return descriptors(t) <= fds })
}

// untilClosed reads until the server has closed the connection.
func untilClosed(t *testing.T, c net.Conn) {
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the server does not close the connection")
	}
}

func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd to count descriptors in:", err)
	}
	return len(entries)
}
