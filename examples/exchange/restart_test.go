package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// The test binary is the program itself if it is told so: the process under test is
// then built as the test is, with the race detector if that is on.
const asProgram = "EXCHANGE_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A process is the program, running.
type process struct {
	cmd  *exec.Cmd
	addr string        // of its page
	read chan struct{} // closed when its output has ended
}

// launch runs the program with a small market, until it says where its page is. home
// is where it keeps what it keeps for its user.
func launch(t *testing.T, home string, args ...string) *process {
	t.Helper()
	args = append([]string{"-users=20", "-rate=400", "-addr=127.0.0.1:0", "-admin="}, args...)
	p := &process{cmd: exec.Command(os.Args[0], args...), read: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asProgram+"=1", "HOME="+home, "XDG_CACHE_HOME="+home)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil { // the test has failed before its end
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	said := bufio.NewReader(out)
	for p.addr == "" {
		line, err := said.ReadString('\n')
		require.NoError(t, err, "it does not say where its page is")
		if url, found := strings.CutPrefix(line, "the page is at http://"); found {
			p.addr = strings.Trim(url, "/\n")
		}
	}
	go func() { // ends with the process
		defer close(p.read)
		_, _ = io.Copy(io.Discard, said)
	}()
	return p
}

// kill ends the process as a crash does.
func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	<-p.read
	require.Error(t, p.cmd.Wait())
}

// stop ends it as a supervisor does, and returns when it has drained.
func (p *process) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.read
	require.NoError(t, p.cmd.Wait())
}

// A doorway is an address that stays while processes come and go behind it: that of
// one that has ended may be somebody else's when the next one starts. While there is
// none, who comes is refused.
type doorway struct {
	addr string
	to   atomic.Pointer[string]
}

func newDoorway(t *testing.T, to *process) *doorway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d := &doorway{addr: l.Addr().String()}
	d.to.Store(&to.addr)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		running.Wait()
	})
	running.Go(func() { // ends with l
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { d.connect(ctx, client) }) // ends with either side, or ctx
		}
	})
	return d
}

func (d *doorway) connect(ctx context.Context, client net.Conn) {
	defer client.Close()
	_ = client.(*net.TCPConn).SetLinger(0) // so that nobody takes the end for an answer
	to := d.to.Load()
	if to == nil {
		return
	}
	server, err := net.Dial("tcp", *to)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})()
	done := make(chan struct{})
	go func() { // ends when either side has ended
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
	_ = client.Close()
	<-done
}

// TestSignInsOutliveTheProcess asks as a browser that keeps its cookie.
func TestSignInsOutliveTheProcess(t *testing.T) {
	home := t.TempDir()
	status := func(p *process, cookie *http.Cookie) int {
		t.Helper()
		answer, _ := ask(t, &server{site: &site{addr: p.addr}}, "GET", "/api/session", "", cookie)
		return answer.StatusCode
	}
	for _, c := range []struct {
		name string
		args []string
		kept int
	}{
		{"without a word about the key", nil, http.StatusOK},
		{"with a key of its own", []string{"-key=" + home + "/mine/key"}, http.StatusOK},
		{"on disk", []string{"-durable=" + home + "/log"}, http.StatusOK},
		{"without a key that is kept", []string{"-key="}, http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := launch(t, home, c.args...)
			web := &server{site: &site{addr: p.addr}}
			stays, leaves := enter(t, web, "u00003"), enter(t, web, "u00003")
			answer, text := ask(t, web, "DELETE", "/api/session", "", leaves)
			require.Equal(t, http.StatusNoContent, answer.StatusCode, text)
			p.kill(t)

			p = launch(t, home, c.args...)
			require.Equal(t, c.kept, status(p, stays))
			require.Equal(t, http.StatusUnauthorized, status(p, leaves), "signing out is not undone by a restart")
			p.stop(t)
		})
	}
	t.Run("with a key that cannot be used it does not start, and says why", func(t *testing.T) {
		file := home + "/letter"
		require.NoError(t, os.WriteFile(file, []byte("dear"), 0o600))
		cmd := exec.Command(os.Args[0], "-users=3", "-addr=127.0.0.1:0", "-admin=", "-key="+file)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		said, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(said), file+" is not a key")
	})
	t.Run("without a place for a key it starts all the same, and says what that means", func(t *testing.T) {
		file := home + "/no-folder"
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		cmd := exec.Command(os.Args[0], "-users=3", "-duration=1ms", "-addr=127.0.0.1:0", "-admin=")
		cmd.Env = append(os.Environ(), asProgram+"=1", "HOME="+file, "XDG_CACHE_HOME="+file)
		said, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", said)
		require.Contains(t, string(said), "signed in until this process ends")
	})
}

// TestSIGTERM asks as a program that comes back.
func TestSIGTERM(t *testing.T) {
	home := t.TempDir()
	p := launch(t, home)
	web := &server{site: &site{addr: p.addr}}
	cookie := enter(t, web, "u00003")
	c, events := dial(t, web, cookie), follow(t, web, cookie)
	ended := make(chan websocket.StatusCode, 1)
	go func() { // ends with the process
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				ended <- websocket.CloseStatus(err)
				return
			}
		}
	}()
	p.stop(t)
	require.Equal(t, websocket.StatusGoingAway, <-ended, "the code that tells a client to come back")
	readTo(t, events, "event: close")
	readTo(t, events, `"code":1001`)
}

// TestRestart has a page live through restarts of its server.
func TestRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	browser := browse(t)
	// Whoever comes to a process that is stopping is let in, and told so; to the port of
	// one that was killed nobody may come, for it may be somebody else's.
	stop := func(t *testing.T, p *process, door *doorway) {
		p.stop(t)
		door.to.Store(nil)
	}
	kill := func(t *testing.T, p *process, door *doorway) {
		door.to.Store(nil)
		p.kill(t)
	}
	for _, c := range []struct {
		name    string
		query   string
		args    []string
		end     func(*testing.T, *process, *doorway)
		verdict string // of the page: it has all that it missed, or says that it has not
	}{
		{"stopped and started again, with a log on disk", "?lang=zh", []string{"-durable=" + t.TempDir()}, stop, "true"},
		{"killed and started again, with a log on disk", "?lang=en", []string{"-durable=" + t.TempDir()}, kill, "true"},
		{"killed and started again, with a log on disk, over server-sent events", "?lang=zh&events", []string{"-durable=" + t.TempDir()}, kill, "true"},
		{"stopped and started again, in memory", "?lang=en", nil, stop, "false"},
		{"killed and started again, in memory", "?lang=zh", nil, kill, "false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			p := launch(t, home, c.args...)
			door := newDoorway(t, p)
			ctx := profile(t, browser)
			do(t, ctx, signInAt(door.addr, c.query, "u00003"), until(liveFeed),
				// A reload would forget this, and being signed out would be seen.
				chromedp.Evaluate[chromedp.Void](`window.seen = "", new MutationObserver(() => {
					const form = document.getElementById("sign-in");
					if (!form.hidden) window.seen += document.body.innerText;
				}).observe(document.getElementById("sign-in"), { attributes: true })`))
			for range 2 {
				last := value[string](t, ctx, `document.querySelector("#feed li[data-id]").dataset.id`)
				do(t, ctx, chromedp.Evaluate[chromedp.Void](`document.getElementById("verdict").dataset.whole = "not yet"`))
				c.end(t, p, door)
				do(t, ctx, until(`document.body.dataset.connection !== "live"`))
				p = launch(t, home, c.args...)
				door.to.Store(&p.addr)
				do(t, ctx, until(liveFeed), until(`document.getElementById("user").textContent === "u00003"`),
					// Something new has come: with a log, of a run that the page has never seen.
					until(fmt.Sprintf(`document.querySelector("#feed li[data-id]").dataset.id !== %q`, last)))
				do(t, ctx, until(fmt.Sprintf(`document.getElementById("verdict").dataset.whole === %q`, c.verdict)))
				require.Empty(t, value[string](t, ctx, `window.seen`), "it was signed out")
			}
			p.stop(t)
		})
	}
}
