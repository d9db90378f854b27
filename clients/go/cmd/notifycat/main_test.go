package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
	"github.com/stretchr/testify/require"
)

// The tests run notifycat as a process, which is this one with another main, against
// a real server over sockets. They wait for what it says.

const (
	beNotifycat = "NOTIFYCAT_TEST_MAIN"
	patience    = 10 * time.Minute // of a whole process: some live for all of their test
)

func TestMain(m *testing.M) {
	if os.Getenv(beNotifycat) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A server tells alice.
type server struct {
	t       *testing.T
	url     string
	broker  *notification.Broker
	gateway *notification.Gateway
	handler *wsgateway.Handler

	mu    sync.Mutex
	conns []net.Conn // guarded by mu: that were accepted
	hold  bool       // guarded by mu: accept nothing
}

// Accept remembers the connections, to cut them.
func (s *server) Accept(ln net.Listener) (net.Conn, error) {
	c, err := ln.Accept()
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.hold {
			_ = c.Close()
		} else {
			s.conns = append(s.conns, c)
		}
	}
	return c, err
}

type listener struct {
	net.Listener
	server *server
}

func (l listener) Accept() (net.Conn, error) { return l.server.Accept(l.Listener) }

// cut ends all connections, and lets none in until let is called.
func (s *server) cut() (let func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = true
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hold = false
	}
}

func serve(t *testing.T) *server {
	s := &server{t: t}
	var err error
	s.broker, err = notification.NewBroker(notification.BrokerConfig{})
	require.NoError(t, err)
	s.gateway, err = notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024})
	require.NoError(t, err)
	require.NoError(t, s.broker.RegisterGateway(s.gateway))
	s.handler, err = wsgateway.New(s.gateway, wsgateway.Config{Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
		if r.Header.Get("Authorization") == "Bearer alice" || r.Header.Get("Cookie") == "session=alice" {
			return wsgateway.Identity{UserID: "alice"}, nil
		}
		return wsgateway.Identity{}, errors.New("who?")
	}})
	require.NoError(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.url = "ws://" + ln.Addr().String() + "/"
	web := &http.Server{Handler: s.handler}
	var running sync.WaitGroup
	running.Go(func() { _ = s.broker.Run(context.Background()) })
	running.Go(func() { _ = s.gateway.Run(context.Background()) })
	running.Go(func() { _ = web.Serve(listener{ln, s}) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = web.Close()
		_ = errors.Join(s.broker.Shutdown(ctx), s.handler.Shutdown(ctx), s.gateway.Shutdown(ctx))
		running.Wait()
	})
	return s
}

// publish tells of something that happened a minute ago.
func (s *server) publish(id string, payload notification.Payload) *notification.Notification {
	s.t.Helper()
	n := notification.New("alice", payload, "test")
	n.ID = id
	n.Timestamp = time.Now().Add(-time.Minute).UnixNano()
	require.NoError(s.t, s.broker.Publish(n))
	return n
}

// A process is a notifycat.
type process struct {
	t          *testing.T
	cmd        *exec.Cmd
	out, err   *bufio.Scanner
	outW, errW *os.File
	told       []string // on stderr, so far
}

// start runs notifycat with a token, and with nothing else of this environment that
// it looks at.
func start(t *testing.T, stdin io.Reader, env []string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	p := &process{t: t, cmd: exec.Command(exe, args...)}
	p.cmd.Env = append([]string{beNotifycat + "=1", "NOTIFICATION_TOKEN=alice", "TZ=UTC", "TERM=xterm"}, env...)
	p.cmd.Stdin = stdin
	pipe := func() (*os.File, *bufio.Scanner) {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { _ = r.Close() })
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 4<<20)
		return w, lines
	}
	p.outW, p.out = pipe()
	p.errW, p.err = pipe()
	p.cmd.Stdout, p.cmd.Stderr = p.outW, p.errW
	require.NoError(t, p.cmd.Start())
	_, _ = p.outW.Close(), p.errW.Close() // the process has them
	overdue := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	t.Cleanup(func() {
		overdue.Stop()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

// line returns the next line of stdout.
func (p *process) line() string {
	p.t.Helper()
	require.True(p.t, p.out.Scan(), "no line: %v\n%s", p.out.Err(), strings.Join(p.told, "\n"))
	return p.out.Text()
}

// until reads stderr until a line matches.
func (p *process) until(pattern string) string {
	p.t.Helper()
	for p.err.Scan() {
		p.told = append(p.told, p.err.Text())
		if regexp.MustCompile(pattern).MatchString(p.err.Text()) {
			return p.err.Text()
		}
	}
	p.t.Fatalf("nothing like %q:\n%s", pattern, strings.Join(p.told, "\n"))
	return ""
}

// end waits for the end, and returns the exit status and what was left to read.
func (p *process) end() (status int, out, told string) {
	p.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p.err.Scan() {
			p.told = append(p.told, p.err.Text())
		}
	}()
	for p.out.Scan() {
		out += p.out.Text() + "\n"
	}
	<-done
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode(), out, strings.Join(p.told, "\n")
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

func TestWatch(t *testing.T) {
	t.Run("each notification is a line, with its age, and Ctrl-C ends it", func(t *testing.T) {
		s := serve(t)
		p := start(t, nil, nil, s.url)
		p.until("live$")
		s.publish("n1", notification.OrderRejected{OrderID: "o-17", Reason: "no funds", ErrorCode: 4003, Timestamp: 1729468800123456789})
		require.Regexp(t, `^\d\d:\d\d:\d\d\.\d{6} +\+1(\.\d+)?m P0 order_rejected +alice +order_id=o-17 instrument_id="" reason="no funds" error_code=4003 timestamp=2024-10-21T00:00:00.123456789Z$`, p.line())
		n := s.publish("n2", notification.MarginCall{UserID: "alice", Deadline: 1729468800000000000, Message: "资金不足"})
		require.Contains(t, p.line(), " current_margin=0 required_margin=0 deadline=2024-10-21T00:00:00Z message=资金不足 timestamp=0")
		s.publish("n3", notification.OrderFilled{OrderID: "o-18", Timestamp: n.Timestamp - 1})
		require.Regexp(t, ` average_price=0$`, p.line(), "its timestamp is that in front")
		p.signal(os.Interrupt)
		status, out, told := p.end()
		require.Zero(t, status, told)
		require.Empty(t, out)
		require.Regexp(t, `(?s)connecting.*replaying.*live.*stopped: closed, close code 1000$`, told)
	})
	t.Run("what somebody writes cannot tell the terminal to do something", func(t *testing.T) {
		s := serve(t)
		p := start(t, nil, nil, s.url)
		p.until("live$")
		s.publish("n1", notification.SystemNotice{Title: "\x1b[2J\a\u202e", Content: "a=b\nP0 margin_call", Level: ""})
		require.Regexp(t, ` title="\\x1b\[2J\\a\\u202e" content="a=b\\nP0 margin_call" level="" timestamp=0$`, p.line())
		p.signal(syscall.SIGTERM)
		status, _, told := p.end()
		require.Zero(t, status, told)
	})
	t.Run("-json is what came", func(t *testing.T) {
		s := serve(t)
		p := start(t, nil, nil, "-json", "-q", "-n=1", s.url)
		s.publish("n0", notification.OrderFilled{}) // perhaps too early
		n := s.publish("n1", notification.OrderFilled{OrderID: "<o>", AveragePrice: 0.1})
		go func() { // until it is there
			for range time.Tick(10 * time.Millisecond) {
				if s.broker.Publish(notification.New("alice", n.Payload, "test")) != nil {
					return
				}
			}
		}()
		line := p.line()
		var got notification.Notification
		require.NoError(t, got.UnmarshalJSON([]byte(line)))
		require.Equal(t, string(got.AppendJSON(nil)), line)
		status, out, told := p.end()
		require.Zero(t, status)
		require.Empty(t, out)
		require.Empty(t, told)
	})
	t.Run("only what is asked for is printed", func(t *testing.T) {
		s := serve(t)
		flags := [][]string{
			{"-channel=trade,risk"}, {"-type=order_filled,margin_call"}, {"-priority=P0,P2"}, {"-user=*"}, {"-text=needle"},
			{"-channel=trade", "-text=needle"}, {},
		}
		var ps []*process
		for _, f := range flags {
			p := start(t, nil, nil, append(append([]string{"-json"}, f...), s.url)...)
			p.until("live$")
			ps = append(ps, p)
		}
		s.publish("risk", notification.MarginCall{Message: "needle"})
		s.publish("trade", notification.OrderFilled{OrderID: "needle"})
		s.publish("trade2", notification.OrderAccepted{})
		s.publish("account", notification.AccountUpdate{})
		all := notification.New(notification.AllUsers, notification.MarketHalt{}, "test")
		all.ID = "all"
		require.NoError(t, s.broker.Publish(all))
		for i, want := range []string{"risk trade trade2", "risk trade", "account risk", "all", "risk trade", "trade", "account all risk trade trade2"} {
			got := map[string]bool{}
			for range len(strings.Fields(want)) {
				var n notification.Notification
				require.NoError(t, n.UnmarshalJSON([]byte(ps[i].line())))
				got[n.ID] = true
			}
			for id := range strings.FieldsSeq(want) {
				require.True(t, got[id], "%v: %v", flags[i], got)
			}
		}
		for i, p := range ps {
			p.signal(os.Interrupt)
			_, out, _ := p.end()
			require.Empty(t, out, flags[i])
		}
	})
	t.Run("a connection that is cut is made again, and nothing is missed or printed twice", func(t *testing.T) {
		s := serve(t)
		p := start(t, nil, nil, "-json", s.url)
		p.until("live$")
		number, rounds := 0, 5
		if testing.Short() {
			rounds = 2 // each waits for up to twice as long as the one before
		}
		for range rounds {
			var let func()
			for i := range 20 {
				if i == 10 {
					let = s.cut()
				}
				number++
				s.publish(fmt.Sprint("n", number), notification.OrderFilled{OrderID: fmt.Sprint(number)})
			}
			p.until("waiting")
			let()
			p.until("live$")
		}
		for i := range number {
			require.Contains(t, p.line(), fmt.Sprintf(`"message_id":"n%d"`, i+1))
		}
		p.signal(os.Interrupt)
		status, out, _ := p.end()
		require.Zero(t, status)
		require.Empty(t, out)
	})
	t.Run("-cursor-file goes on where the last run ended", func(t *testing.T) {
		s := serve(t)
		file := filepath.Join(t.TempDir(), "cursor")
		p := start(t, nil, nil, "-json", "-cursor-file", file, s.url)
		p.until("live$")
		s.publish("n1", notification.OrderFilled{})
		require.Contains(t, p.line(), `"n1"`)
		p.signal(os.Interrupt)
		status, _, told := p.end()
		require.Zero(t, status, told)

		for i := 2; i <= 6; i++ {
			s.publish(fmt.Sprint("n", i), notification.OrderFilled{})
		}
		// Who comes before the last is there gets a part of them, and the rest later.
		received := func() uint64 { return s.gateway.Stats().Lanes[notification.P1].Received }
		for late := time.Now().Add(patience); received() < 6; <-time.After(time.Millisecond) {
			require.True(t, time.Now().Before(late), "%d of 6 have arrived", received())
		}
		p = start(t, nil, nil, "-json", "-n=2", "-cursor-file", file, s.url)
		_, out, _ := p.end()
		require.Regexp(t, `^.*"n2".*\n.*"n3".*\n$`, out)
		// The five are one batch, of which a part was printed: it counts as not
		// printed.
		p = start(t, nil, nil, "-json", "-n=5", "-cursor-file", file, s.url)
		_, out, told = p.end()
		require.Regexp(t, `^.*"n2".*\n(.*\n){3}.*"n6".*\n$`, out)
		require.NotContains(t, told, "may be missing")
		p = start(t, nil, nil, "-json", "-cursor-file", file, s.url)
		p.until("live$")
		p.signal(os.Interrupt)
		_, out, _ = p.end()
		require.Empty(t, out)

		require.NoError(t, os.WriteFile(file, []byte("nonsense\n"), 0o600))
		p = start(t, nil, nil, "-cursor-file", file, s.url)
		p.until("some may be missing here: cursor_gone")
		p.until("live$")
		p.signal(os.Interrupt)
		p.end()
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(text), "nonsense")
		names, err := os.ReadDir(filepath.Dir(file))
		require.NoError(t, err)
		require.Len(t, names, 1)
	})
	t.Run("a cursor that cannot be kept ends it", func(t *testing.T) {
		s := serve(t)
		p := start(t, nil, nil, "-cursor-file", filepath.Join(t.TempDir(), "nowhere", "cursor"), s.url)
		p.until("live$")
		s.publish("n1", notification.OrderFilled{})
		status, _, told := p.end()
		require.Equal(t, 1, status)
		require.Contains(t, told, "no such file")
	})
	t.Run("tokens come from a file, cookies from a header", func(t *testing.T) {
		s := serve(t)
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte("alice\n"), 0o600))
		for _, args := range [][]string{{"-token-file", file}, {"-header", "Cookie: session=alice"}} {
			p := start(t, nil, []string{"NOTIFICATION_TOKEN="}, append(args, s.url)...)
			p.until("live$")
			p.signal(os.Interrupt)
			p.end()
		}
		p := start(t, nil, []string{"NOTIFICATION_TOKEN=mallory"}, s.url)
		status, _, told := p.end()
		require.Equal(t, 1, status)
		require.Contains(t, told, "notifycat: notificationclient: stopped: server, close code 4401: unauthorized")
		require.NotContains(t, told, "mallory")
		p = start(t, nil, nil, "-token-file", file+"-gone", s.url)
		status, _, told = p.end()
		require.Equal(t, 1, status)
		require.Contains(t, told, "no such file")
	})
	t.Run("a reader that goes away ends it", func(t *testing.T) {
		s := serve(t)
		exe, err := os.Executable()
		require.NoError(t, err)
		head := exec.Command("head", "-n", "1")
		cat := exec.Command(exe, "-json", s.url)
		cat.Env = []string{beNotifycat + "=1", "NOTIFICATION_TOKEN=alice"}
		r, w, err := os.Pipe()
		require.NoError(t, err)
		head.Stdin, cat.Stdout = r, w
		require.NoError(t, head.Start())
		require.NoError(t, cat.Start())
		_, _ = r.Close(), w.Close()
		overdue := time.AfterFunc(patience, func() { _ = cat.Process.Kill() })
		defer overdue.Stop()
		ended := make(chan error, 1)
		go func() { ended <- cat.Wait() }()
		for {
			select {
			case err := <-ended:
				require.Error(t, err)
				require.True(t, overdue.Stop(), "it was killed")
				_ = head.Wait()
				return
			case <-time.After(10 * time.Millisecond):
				s.broker.Publish(notification.New("alice", notification.OrderFilled{}, "test"))
			}
		}
	})
}

func TestColor(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "archive")
	b, err := notification.New("alice", notification.MarginCall{}, "test").MarshalBinary()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(archive, b, 0o600))
	const painted = "\x1b[1;31mP0 margin_call"
	for name, c := range map[string]struct {
		env  []string
		args []string
		want bool
	}{
		"always":                         {nil, []string{"-color=always"}, true},
		"always, whatever NO_COLOR says": {[]string{"NO_COLOR=1"}, []string{"-color=always"}, true},
		"not where there is no terminal": {nil, nil, false},
		"never":                          {nil, []string{"-color=never"}, false},
		"JSON has none":                  {nil, []string{"-color=always", "-json"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, out, told := start(t, nil, c.env, append(c.args, "-archive", archive)...).end()
			require.Empty(t, told)
			require.Equal(t, c.want, strings.Contains(out, painted), "%q", out)
		})
	}
	t.Run("on a terminal, unless NO_COLOR is set", func(t *testing.T) {
		script, err := exec.LookPath("script")
		if err != nil {
			t.Skip("no script, no terminal: ", err)
		}
		exe, err := os.Executable()
		require.NoError(t, err)
		for env, want := range map[string]bool{"NO_COLOR=": true, "NO_COLOR=1": false, "TERM=dumb": false} {
			cmd := exec.Command(script, "-qec", fmt.Sprintf("'%s' -archive '%s'", exe, archive), "/dev/null")
			cmd.Env = append(os.Environ(), beNotifycat+"=1", "NO_COLOR=", "TERM=xterm", env)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Equal(t, want, bytes.Contains(out, []byte(painted)), "%s: %q", env, out)
		}
	})
}

func TestArchive(t *testing.T) {
	names, err := filepath.Glob("../../../../testdata/archive/*.archive")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	var all []byte
	var ids []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		a, err := notification.OpenArchive(b)
		require.NoError(t, err)
		ids = append(ids, string(a.Notification().AppendJSON(nil)))
		all = append(all, b...)
	}
	one, err := notification.New("bob", notification.OrderFilled{OrderID: "o-1"}, "test").MarshalBinary()
	require.NoError(t, err)
	decode := func(b []byte, args ...string) (int, string, string) {
		return start(t, bytes.NewReader(b), nil, append(args, "-archive", "-")...).end()
	}
	t.Run("all that ARCHIVE.md has to try a reader with", func(t *testing.T) {
		status, out, told := decode(all, "-json")
		require.Zero(t, status, told)
		require.Equal(t, strings.Join(ids, "\n")+"\n", out)
		status, out, told = decode(all)
		require.Zero(t, status, told)
		require.Equal(t, len(ids), strings.Count(out, "\n"), "each is a line")
	})
	t.Run("a line has the day, and no age", func(t *testing.T) {
		_, out, _ := decode(one, "-user=bob")
		require.Regexp(t, `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} P1 order_filled +bob +order_id=o-1 .* timestamp=0\n$`, out)
		_, out, _ = decode(one, "-user=alice")
		require.Empty(t, out)
	})
	t.Run("-n ends it", func(t *testing.T) {
		status, out, _ := decode(bytes.Repeat(one, 5), "-n=2")
		require.Zero(t, status)
		require.Equal(t, 2, strings.Count(out, "\n"))
	})
	t.Run("one of a newer version is told, and passed over", func(t *testing.T) {
		newer := bytes.Clone(one)
		newer[3] = 99
		status, out, told := decode(append(append(bytes.Clone(one), newer...), one...))
		require.Equal(t, 1, status)
		require.Equal(t, 2, strings.Count(out, "\n"))
		require.Contains(t, told, fmt.Sprintf("at byte %d: ", len(one)))
		require.Contains(t, told, "1 archives could not be read")
	})
	t.Run("what ends in the middle, or is none, is told with its place", func(t *testing.T) {
		for _, cut := range []int{1, 7, 8, 25, len(one) - 1} {
			status, out, told := decode(append(bytes.Clone(one), one[:cut]...))
			require.Equal(t, 1, status)
			require.Equal(t, 1, strings.Count(out, "\n"))
			require.Contains(t, told, fmt.Sprintf("at byte %d: it ends within an archive", len(one)))
		}
		status, _, told := decode([]byte("this is text, and no archive at all"))
		require.Equal(t, 1, status)
		require.Contains(t, told, "at byte 0: ")
		for _, size := range []byte{0, 25} { // would not get on
			small := bytes.Clone(one)
			copy(small[4:], []byte{size, 0, 0, 0})
			status, _, told = decode(small)
			require.Equal(t, 1, status)
			require.Contains(t, told, "at byte 0: ")
		}
		huge := bytes.Clone(one)
		huge[7] = 0x7f
		status, _, told = decode(huge)
		require.Equal(t, 1, status)
		require.Contains(t, told, "at byte 0: ")
	})
	t.Run("an empty file has none", func(t *testing.T) {
		status, out, told := decode(nil)
		require.Zero(t, status)
		require.Empty(t, out+told)
	})
	t.Run("a file that is not there is told", func(t *testing.T) {
		status, _, told := start(t, nil, nil, "-archive", "nowhere").end()
		require.Equal(t, 1, status)
		require.Contains(t, told, "nowhere")
	})
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"-h", 0, "usage: notifycat"},
		{"", 2, "usage: notifycat"},
		{"ws://a ws://b", 2, "usage: notifycat"},
		{"-channel=orders ws://a", 2, `"orders" is unknown`},
		{"-type=order_filled,x ws://a", 2, `"x" is unknown`},
		{"-priority=P4 ws://a", 2, `"P4" is none of`},
		{"-color=blue ws://a", 2, `"blue" is none of`},
		{"-n=-1 ws://a", 2, "-1 is negative"},
		{"-header=x ws://a", 2, "no colon"},
		{"-archive=f ws://a", 2, "one too many"},
		{"ftp://a", 1, `scheme "ftp"`},
	} {
		t.Run("notifycat "+c.args, func(t *testing.T) {
			status, out, told := start(t, nil, nil, strings.Fields(c.args)...).end()
			require.Equal(t, c.status, status)
			require.Empty(t, out)
			require.Contains(t, told, c.says)
		})
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "+0µs", 999: "+0µs", 1500: "+1µs", 1234567: "+1.23ms", -1234567: "-1.23ms", 59 * time.Second: "+59s", 90 * time.Second: "+1.5m", 36 * time.Hour: "+36h",
	} {
		require.Equal(t, want, short(d))
	}
}
