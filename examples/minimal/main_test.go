package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/internal/browser"
)

// The test binary is the program itself if it is told so: the process under
// test is then built as the test is, with the race detector if that is on.
const asProgram = "MINIMAL_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A process is the program, running.
type process struct {
	cmd           *exec.Cmd
	page, metrics string       // what it has printed
	log           *lockedBytes // standard error
}

// lockedBytes is a log that can be read while it is written.
type lockedBytes struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

func (l *lockedBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBytes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// start runs the program with ports of its own until it says where it is.
func start(t *testing.T) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], "-addr=127.0.0.1:0", "-metrics=127.0.0.1:0"), log: new(lockedBytes)}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil { // the test has failed before its end
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the program's log:\n%s", p.log)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	urls := regexp.MustCompile(`http://\S+[^\s,]`).FindAllString(line, -1)
	if err != nil || len(urls) != 2 {
		t.Fatalf("%q, %v", line, err)
	}
	p.page, p.metrics = urls[0], urls[1]
	return p
}

// A client is a WebSocket of the page's kind.
type client struct {
	t  *testing.T
	ws *websocket.Conn
}

// connect dials as the page does; cursor may be empty.
func (p *process) connect(t *testing.T, user, cursor string) *client {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), strings.Replace(p.page, "http", "ws", 1)+"notifications?user="+user+"&cursor="+cursor,
		&websocket.DialOptions{Subprotocols: []string{"notification.batch.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	return &client{t, ws}
}

// batch reads up to the next batch, and tells its cursor.
func (c *client) batch() (ns []*notification.Notification, cursor string) {
	c.t.Helper()
	for {
		_, text, err := c.ws.Read(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		var frame struct {
			Action        string                       `json:"action"`
			Cursor        string                       `json:"cursor"`
			Notifications []*notification.Notification `json:"notifications"`
		}
		if err := json.Unmarshal(text, &frame); err != nil {
			c.t.Fatalf("%s: %v", text, err)
		}
		switch {
		case frame.Action == "reset":
			c.t.Fatalf("something was missed: %s", text)
		case len(frame.Notifications) > 0:
			return frame.Notifications, frame.Cursor
		}
	}
}

// number is which trade of the program's it was.
func number(t *testing.T, n *notification.Notification) (i int) {
	t.Helper()
	var started int64
	if _, err := fmt.Sscanf(n.ID, "trade-%d-%d", &started, &i); err != nil || n.UserID != "alice" || n.Type() != notification.TypeTradeExecuted {
		t.Fatalf("%v: %+v", err, n)
	}
	return i
}

func ask(t *testing.T, url string) (status int, body string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// TestProgram needs real sockets and a process of its own.
func TestProgram(t *testing.T) {
	p := start(t)
	alice := p.connect(t, "alice", "")
	ns, cursor := alice.batch()
	last := number(t, ns[len(ns)-1])

	t.Run("a client that was cut misses nothing", func(t *testing.T) {
		second := p.connect(t, "alice", "") // it tells when there is something to miss
		if err := alice.ws.CloseNow(); err != nil {
			t.Fatal(err)
		}
		for {
			if ns, _ := second.batch(); number(t, ns[len(ns)-1]) > last {
				break
			}
		}
		ns, _ := p.connect(t, "alice", cursor).batch()
		if got := number(t, ns[0]); got != last+1 {
			t.Errorf("after %d comes %d", last, got)
		}
	})
	t.Run("the metrics have a listener of their own, and count", func(t *testing.T) {
		status, body := ask(t, p.metrics)
		if status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		for _, want := range []string{
			`notification_broker_published_total{lane="P1"}`,
			`notification_gateway_taken_total{gateway="gateway-1",lane="P1"}`,
		} {
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(want) + ` [1-9]`).MatchString(body) {
				t.Errorf("nothing was counted for %s in\n%s", want, body)
			}
		}
		if status, _ := ask(t, p.page+"metrics"); status != http.StatusNotFound {
			t.Errorf("the public listener answers %d", status)
		}
	})
	t.Run("who names nobody is refused", func(t *testing.T) {
		c := p.connect(t, "", "")
		if _, text, err := c.ws.Read(t.Context()); websocket.CloseStatus(err) != 4401 {
			t.Errorf("%s, %v", text, err)
		}
	})
	t.Run("on SIGTERM it sends its clients away, loses nothing and ends with 0", func(t *testing.T) {
		c := p.connect(t, "alice", "")
		c.batch()
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil {
			_, _, err = c.ws.Read(t.Context())
		}
		if code := websocket.CloseStatus(err); code != websocket.StatusGoingAway {
			t.Errorf("closed with %d: %v", code, err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		for _, want := range []string{"broker stopped lost=0\n", "gateway stopped gateway=gateway-1 lost=0 "} {
			if log := p.log.String(); !strings.Contains(log, want) {
				t.Errorf("no %q in\n%s", want, log)
			}
		}
	})
}

func TestAddressInUse(t *testing.T) {
	p := start(t)
	taken := strings.TrimSuffix(strings.TrimPrefix(p.page, "http://"), "/")
	for _, args := range [][]string{{"-addr=" + taken}, {"-addr=127.0.0.1:0", "-metrics=" + taken}} {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		said, err := cmd.CombinedOutput()
		var status *exec.ExitError
		if !errors.As(err, &status) || status.ExitCode() != 1 || !strings.Contains(string(said), "address already in use") {
			t.Errorf("%v: %v\n%s", args, err, said)
		}
	}
}

// TestPage needs real time and a real browser.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browser.Open(t)
	p := start(t)
	until := func(t *testing.T, expression string) {
		t.Helper()
		poll := chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(browser.Patience))
		_, err := chromedp.Run(ctx, poll)
		for err != nil && strings.Contains(err.Error(), "Cannot find context") {
			_, err = chromedp.Run(ctx, poll) // it had begun on the page before
		}
		if err != nil {
			seen, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
			t.Fatalf("waiting for %s: %v\n%s", expression, err, seen)
		}
	}
	t.Run("it shows the first notification, and the next", func(t *testing.T) {
		if err := chromedp.Do(ctx, chromedp.Navigate(p.page)); err != nil {
			t.Fatal(err)
		}
		until(t, `document.getElementById("state").textContent === "live" && document.querySelectorAll("li").length >= 2`)
		first, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.querySelector("li:last-child").textContent`))
		if err != nil || !strings.HasPrefix(first, "P1 trade_executed {") {
			t.Errorf("%q, %v", first, err)
		}
	})
	t.Run("another user sees none of it", func(t *testing.T) {
		if err := chromedp.Do(ctx, chromedp.Navigate(p.page+"?user=bob")); err != nil {
			t.Fatal(err)
		}
		until(t, `document.getElementById("state").textContent === "live"`)
		alice := p.connect(t, "alice", "")
		for range 2 { // the first of them has had time to come to bob as well
			alice.batch()
		}
		if n, err := chromedp.Run(ctx, chromedp.Evaluate[int](`document.querySelectorAll("li").length`)); err != nil || n != 0 {
			t.Errorf("bob has %d, %v", n, err)
		}
	})
	t.Run("it says so when the server goes, and tries again", func(t *testing.T) {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		until(t, `/connecting again/.test(document.getElementById("state").textContent)`)
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}
