package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/qaexchange/notification"
)

// start runs an exchange of n members for a test that drives it by hand.
func start(t *testing.T, n int, broker notification.BrokerConfig) *exchange {
	t.Helper()
	return inMemory(t, n, broker, notification.GatewayConfig{})
}

func inMemory(t *testing.T, n int, broker notification.BrokerConfig, gateway notification.GatewayConfig) *exchange {
	t.Helper()
	b, err := newMemory(broker, gateway)
	if err != nil {
		t.Fatal(err)
	}
	x, err := newExchange(n, b, "")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// gateway returns that of an exchange in memory.
func (x *exchange) gateway() *notification.Gateway { return x.bus.(*memory).gateway }

func TestExchange(t *testing.T) {
	t.Run("what the engine publishes reaches the clients, whole and in order", func(t *testing.T) {
		x := start(t, 200, notification.BrokerConfig{})
		e := newEngine(200, 1, newBurst(x))
		for e.total < 30_000 {
			e.step()
		}
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		rows, mismatches := x.final(x.snapshot(), false, 0)
		if len(mismatches) > 0 {
			t.Error(mismatches)
		}
		var published uint64
		for _, r := range rows {
			published += r.Published
			if r.Lost != 0 || r.Delivered != r.Due {
				t.Errorf("%+v", r)
			}
		}
		if published != 1+e.total { // and the opening
			t.Errorf("published %d of %d", published, e.total)
		}
	})
	t.Run("a full lane is waited for, and nothing is lost", func(t *testing.T) {
		x := start(t, 10, notification.BrokerConfig{QueueCapacity: [4]int{1, 1, 1, 1}})
		e := newEngine(10, 1, newBurst(x))
		for e.total < 5_000 {
			e.step()
		}
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, mismatches := x.final(x.snapshot(), false, 0); len(mismatches) > 0 {
			t.Error(mismatches)
		}
		if x.full[notification.P1].Load() == 0 {
			t.Error("it never was full")
		}
	})
	t.Run("of a burst that comes too late nothing is accepted, and all is counted", func(t *testing.T) {
		x := start(t, 2, notification.BrokerConfig{})
		b := newBurst(x)
		b.publish(0, notification.SystemNotice{})
		b.flush()
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for user := range 2 {
			b.publish(user, notification.SystemNotice{})
			b.publish(user, notification.SystemNotice{})
		}
		b.flush()
		if n := x.cut[notification.P3].Load(); n != 4 {
			t.Errorf("%d of 4 are counted", n)
		}
		if n := x.members[0].streams[streamOf[notification.TypeSystemNotice]].last.Load(); n != 1 {
			t.Errorf("the last accepted is number %d", n)
		}
		if _, mismatches := x.final(x.snapshot(), false, 0); len(mismatches) > 0 {
			t.Error(mismatches)
		}
		if _, err := x.send(0, notification.SystemNotice{}); err == nil { // the burst has let go of the stream
			t.Error("accepted after the end")
		}
	})
	t.Run("a loss and a mismatch are found", func(t *testing.T) {
		x := start(t, 2, notification.BrokerConfig{})
		x.send(0, notification.SystemNotice{})
		x.send(everybody, notification.SystemNotice{})
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		s := x.snapshot()
		x.members[1].client.got[notification.P3]--
		if rows, mismatches := x.final(s, false, 0); len(mismatches) != 2 || rows[3].Lost != 1 {
			t.Error(rows, mismatches)
		}
		x.members[1].client.got[notification.P3]++
		x.members[0].client.own[streamOf[notification.TypeSystemNotice]]--
		if _, mismatches := x.final(s, false, 0); len(mismatches) != 1 {
			t.Error(mismatches)
		}
	})
	t.Run("a client notices what is missing or repeated", func(t *testing.T) {
		c := &client{user: "u"}
		for _, id := range []string{"u-risk-P0-1", "u-risk-P0-3", "u-risk-P0-3", "nonsense"} {
			n := notification.New("u", notification.RiskAlert{}, "test")
			n.ID = id
			c.Push(t.Context(), []*notification.Message{notification.NewMessage(n)})
		}
		if c.wrong != 3 {
			t.Errorf("noticed %d", c.wrong)
		}
	})
}

func TestRun(t *testing.T) {
	recording := filepath.Join(t.TempDir(), "test-flow.csv")
	if err := os.WriteFile(recording, []byte(flow), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		args   string
		status int
		want   string // a regular expression
	}{
		// The times leave a busy machine some seconds for what must have come by then: a
		// line of the progress, and users who have come back.
		{"the simulated market ends with -duration, and its table adds up", t.Context(),
			"-users 300 -rate 1000 -duration 5s", 0, `(?s)\d s  published .*P0 .*Every user saw every message once and in order`},
		{"a signal ends it as well", ended, "-users 10", 0, "every counter agrees"},
		{"a recording ends by itself", t.Context(), "-users 50 -speed 10 -replay " + recording, 0,
			`(?s)14 events of TEST .*P1 +14 +14 +14 +0 .*P3 +6 +300 +300 +0 `},
		{"users who lose their connection lose nothing else", t.Context(),
			"-users 100 -rate 1000 -duration 6s -flaky 0.8", 0, `80 flaky users came back [1-9][0-9]* times: [1-9][0-9]* whole, 0 too late(?s).*Every user saw every message`},
		{"a file that is not there is said", t.Context(), "-replay nowhere.csv", 1, "nowhere.csv: no such file"},
		{"a bad flag is said", t.Context(), "-users 0", 1, "-users 0 is not within"},
		{"so is a bad number", t.Context(), "-rate NaN", 1, "-rate NaN"},
		{"and an argument", t.Context(), "now", 1, `unexpected argument "now"`},
		{"help is no failure", t.Context(), "-h", 0, "-replay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			status := run(c.ctx, append([]string{"-addr=", "-admin="}, strings.Fields(c.args)...), &out, &out)
			if status != c.status || !regexp.MustCompile(c.want).Match(out.Bytes()) {
				t.Errorf("status %d\n%s", status, out.String())
			}
		})
	}
}

func TestScreen(t *testing.T) {
	x := start(t, 1, notification.BrokerConfig{})
	defer x.drain(t.Context(), nil)
	var out bytes.Buffer
	s := newScreen(&out)
	s.terminal = true
	now := x.snapshot()
	s.show(x, now, now, "")
	first := out.Len()
	s.show(x, now, now, "")
	if lines := strings.Count(out.String()[:first], "\n"); !strings.HasPrefix(out.String()[first:], "\x1b["+string(rune('0'+lines))+"A") {
		t.Errorf("the block of %d lines was not drawn anew:\n%q", lines, out.String())
	}
	if runtime.GOOS == "linux" && !strings.Contains(out.String(), "P0") {
		t.Error("no lanes")
	}
}

func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, flag := range []string{"addr", "admin"} {
		t.Run("the default of -"+flag+" is done without, and said", func(t *testing.T) {
			args := map[string]string{"addr": "-addr=127.0.0.1:0", "admin": "-admin=127.0.0.1:0", "key": "-key=" + filepath.Join(t.TempDir(), "key")}
			delete(args, flag)
			o, err := parse(append(slices.Collect(maps.Values(args)), "-users=3"), io.Discard)
			if err != nil || o.asked[flag] || flag == "addr" && o.addr != defaultAddr || flag == "admin" && o.admin != defaultAdmin {
				t.Fatalf("%+v, %v", o, err)
			}
			if flag == "addr" {
				o.addr = taken.Addr().String()
			} else {
				o.admin = taken.Addr().String()
			}
			var out bytes.Buffer
			if err := o.run(ended, &out, &out); err != nil || !strings.Contains(out.String(), "is in use, so nothing is served there; -"+flag+" chooses") {
				t.Error(err, out.String())
			}
			if n := strings.Count(out.String(), "at http://127.0.0.1:"); n != 1 {
				t.Errorf("%d are served\n%s", n, out.String())
			}
		})
		t.Run("a -"+flag+" that was asked for is a must", func(t *testing.T) {
			o, err := parse([]string{"-users=3", "-key=", "-addr=", "-admin=", "-" + flag + "=" + taken.Addr().String()}, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if err := o.run(ended, io.Discard, io.Discard); !errors.Is(err, syscall.EADDRINUSE) {
				t.Error(err)
			}
		})
	}
}
