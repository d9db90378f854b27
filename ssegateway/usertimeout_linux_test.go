package ssegateway

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

func TestUserTimeout(t *testing.T) {
	t.Run("is what the connections have that a listener accepts", func(t *testing.T) {
		cfg := net.ListenConfig{Control: UserTimeout(1234 * time.Millisecond)}
		ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		out, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		defer out.Close()
		in, err := ln.Accept()
		require.NoError(t, err)
		defer in.Close()
		raw, err := in.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			ms, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
			require.NoError(t, err)
			require.Equal(t, 1234, ms)
		}))
	})
	t.Run("finds a peer whose network is gone, behind whom nobody else would look for long", func(t *testing.T) {
		host := namespace(t)
		with := serveOn(t, listenAt(t, host.addr, UserTimeout(time.Second)), notification.GatewayConfig{}, Config{HeartbeatInterval: 50 * time.Millisecond}, nil)
		without := serveOn(t, listenAt(t, host.addr, nil), notification.GatewayConfig{}, Config{HeartbeatInterval: 50 * time.Millisecond}, nil)
		for _, s := range []*server{with, without} {
			host.curl(t, "http://"+s.addr+"/?user=alice")
			s.session("alice")
			before := s.handler.Stats().FramesOut
			eventually(t, "heartbeats", func() bool { return s.handler.Stats().FramesOut > before+3 })
		}
		host.unplug(t)
		cut := time.Now()
		with.noStreams()
		t.Logf("found %s after the cut", time.Since(cut).Round(10*time.Millisecond))
		require.EqualValues(t, 1, with.handler.Stats().Closed[web.CodeAbnormal])
		require.Zero(t, with.gateway.Stats().Sessions)
		require.Equal(t, 1, without.handler.Stats().Connections, "the other one is half-open, and nobody knows")
	})
}

func listenAt(t *testing.T, addr string, control func(string, string, syscall.RawConn) error) net.Listener {
	t.Helper()
	ln, err := (&net.ListenConfig{Control: control}).Listen(context.Background(), "tcp", addr+":0")
	require.NoError(t, err)
	return ln
}

// A network is another host, as far as TCP can tell: a network namespace, with a
// cable to this one.
type network struct {
	name, addr string // addr: of our end of the cable
}

// namespace makes a network, or skips.
func namespace(t *testing.T) *network {
	t.Helper()
	program(t, "curl")
	ip := program(t, "ip")
	if os.Geteuid() != 0 {
		t.Skip("skipped: only root may make a network namespace")
	}
	id := os.Getpid()
	n := &network{name: fmt.Sprintf("sse-%d", id)}
	// 198.18.0.0/15 is for tests, not for any network that somebody uses.
	third, fourth := id>>6&255, id&63*4
	n.addr = fmt.Sprintf("198.18.%d.%d", third, fourth+1)
	ours, theirs := fmt.Sprintf("sa%d", id), fmt.Sprintf("sb%d", id)
	run := func(args ...string) error {
		out, err := exec.Command(ip, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	}
	t.Cleanup(func() {
		_ = run("link", "del", ours)
		_ = run("netns", "del", n.name)
	})
	for _, args := range [][]string{
		{"netns", "add", n.name},
		{"link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", n.name},
		{"addr", "add", n.addr + "/30", "dev", ours},
		{"link", "set", ours, "up"},
		{"-n", n.name, "addr", "add", fmt.Sprintf("198.18.%d.%d/30", third, fourth+2), "dev", theirs},
		{"-n", n.name, "link", "set", theirs, "up"},
	} {
		if err := run(args...); err != nil {
			t.Skipf("skipped: no network namespace can be made here: %v", err)
		}
	}
	return n
}

// curl opens a stream from there.
func (n *network) curl(t *testing.T, url string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.name, "curl", "--silent", "--no-buffer", "--output", "/dev/null", url)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// unplug takes the cable out at their end: nothing comes from there any more, no
// word of the end either.
func (n *network) unplug(t *testing.T) {
	t.Helper()
	theirs := "sb" + n.name[len("sse-"):]
	out, err := exec.Command("ip", "-n", n.name, "link", "set", theirs, "down").CombinedOutput()
	require.NoError(t, err, "%s", out)
}
