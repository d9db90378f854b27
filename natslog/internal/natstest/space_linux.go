package natstest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// attributes lets the kernel kill a server whose test binary is gone, even one
// that is frozen, and gives it a network of its own if it shall have one. (The
// signal comes when the thread ends that started it; Go ends threads that a
// goroutine was locked to, and no test here locks one.)
func attributes(apart bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if apart {
		a.Cloneflags = syscall.CLONE_NEWNET
	}
	return a
}

// awaitStop waits until a process stands still, which it does a moment after it was
// told to.
func awaitStop(t testing.TB, pid int) {
	t.Helper()
	Eventually(t, "a process stands still", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, state, _ := strings.Cut(string(b), ") ")
		return err == nil && strings.HasPrefix(state, "T")
	})
}

// A bridge joins the networks of the servers and that of the test.
type bridge struct {
	name, prefix string
}

// newBridge skips the test if this process may not make networks.
func newBridge(t testing.TB) *bridge {
	t.Helper()
	n := rand.IntN(1 << 14) // several test binaries may do this at once
	b := &bridge{fmt.Sprintf("nt%d", n), fmt.Sprintf("10.%d.%d.", 192+n>>8, n&255)}
	for _, args := range [][]string{
		{"link", "add", b.name, "type", "bridge"},
		{"address", "add", b.prefix + "1/24", "dev", b.name},
		{"link", "set", b.name, "up"},
	} {
		if err := ip(args...); err != nil {
			b.remove()
			t.Skipf("skipped: this needs a network for each server: %v", err)
		}
	}
	t.Cleanup(b.remove) // runs after the servers have ended
	return b
}

func (b *bridge) remove() { _ = ip("link", "delete", b.name) }

func (b *bridge) address(i int) string { return fmt.Sprintf("%s%d", b.prefix, 2+i) }

// A space is the network of one server. It is gone with the server's process.
type space struct {
	b *bridge
	i int
}

func (s *space) link() string { return fmt.Sprintf("%s-%d", s.b.name, s.i) }

// enter connects the network of a process that has just been started.
func (s *space) enter(t testing.TB, pid int) {
	t.Helper()
	_ = ip("link", "delete", s.link()) // of a process killed a moment ago
	for _, err := range []error{
		ip("link", "add", s.link(), "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pid)),
		ip("link", "set", s.link(), "master", s.b.name, "up"),
		within(pid, "link", "set", "lo", "up"),
		within(pid, "address", "add", s.b.address(s.i)+"/24", "dev", "eth0"),
		within(pid, "link", "set", "eth0", "up"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// CutOff cuts a server off from the other two, or puts it back. The test reaches
// all three all the time. The cluster is one of StartApart.
func (c *Cluster) CutOff(server *Server, cut bool) {
	c.t.Helper()
	verb := "add"
	if !cut {
		verb = "delete"
	}
	for _, other := range c.Servers {
		if other == server {
			continue
		}
		if err := within(server.cmd.Process.Pid, "route", verb, "blackhole", other.space.b.address(other.space.i)+"/32"); err != nil {
			c.t.Fatal(err)
		}
	}
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// within is ip in the network of a process.
func within(pid int, args ...string) error {
	out, err := exec.Command("nsenter", append([]string{"--target", fmt.Sprint(pid), "--net", "ip"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("in the network of process %d: ip %s: %w: %s", pid, strings.Join(args, " "), err, out)
	}
	return nil
}
