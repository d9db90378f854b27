package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

//go:embed page.html
var pageHTML []byte

//go:embed frame.html
var frameHTML string

// A browser is a Chromium with one page, in which every run of a client is a frame.
// The page talks to us through a WebSocket.
type browser struct {
	cmd     *exec.Cmd
	pipe    []*os.File
	profile string
	http    *http.Server
	running sync.WaitGroup  // the server, and the goroutine that reads what the page tells
	control *websocket.Conn // immutable once the page is there
	ctx     context.Context // ends with close
	cancel  context.CancelFunc

	mu     sync.Mutex
	serial int                     // guarded by mu
	runs   map[int]*frameInBrowser // guarded by mu
	gone   error                   // guarded by mu: nothing more will be told
}

// startBrowser starts a Chromium for the client in dir, whose page imports module.
func startBrowser(dir, module string) (*browser, error) {
	path, err := program("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &browser{runs: map[int]*frameInBrowser{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	controls := make(chan *websocket.Conn, 1)
	mux := http.NewServeMux()
	html := func(text []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write(text) // the only error is a browser that has left
		}
	}
	mux.HandleFunc("/page.html", html(pageHTML))
	mux.HandleFunc("/frame.html", html([]byte(strings.ReplaceAll(frameHTML, "MODULE", module))))
	mux.Handle("/client/", http.StripPrefix("/client/", modules(http.FileServer(http.Dir(dir)))))
	mux.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		if ws, err := websocket.Accept(w, r, nil); err == nil {
			ws.SetReadLimit(-1)
			controls <- ws
		}
	})
	b.http = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	b.running.Go(func() { _ = b.http.Serve(ln) }) // ends with close
	if err := b.launch(path, "http://"+ln.Addr().String()+"/page.html"); err != nil {
		b.close()
		return nil, err
	}
	select {
	case b.control = <-controls:
	case <-time.After(patience):
		b.close()
		return nil, errors.New("the page does not come up in Chromium")
	}
	b.running.Go(b.listen) // ends with the page, or close
	return b, nil
}

// modules gives scripts the type that a browser insists on, whatever this machine
// knows of .mjs.
func modules(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".mjs") || strings.HasSuffix(r.URL.Path, ".js") {
			w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		}
		h.ServeHTTP(w, r)
	})
}

func (b *browser) launch(path, page string) error {
	var err error
	if b.profile, err = os.MkdirTemp("", "conformance-chromium"); err != nil {
		return err
	}
	// The pipe ends with us, even if we are killed, and Chromium with the pipe.
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	nothing, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return errors.Join(err, theirs.Close(), ours.Close())
	}
	b.pipe = []*os.File{theirs, ours, nothing}
	args := []string{"--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions",
		"--disable-background-timer-throttling", "--remote-debugging-pipe", "--user-data-dir=" + b.profile}
	if os.Geteuid() == 0 { // it has no sandbox for root
		args = append(args, "--no-sandbox")
	}
	b.cmd = exec.Command(path, append(args, page)...)
	b.cmd.ExtraFiles = []*os.File{theirs, nothing}          // 3, which it reads, and 4, which it writes to
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	return b.cmd.Start()
}

// close ends Chromium and everything that was for it.
func (b *browser) close() {
	b.cancel()
	if b.control != nil {
		_ = b.control.CloseNow()
	}
	if b.cmd != nil && b.cmd.Process != nil {
		_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		_ = b.cmd.Wait()
	}
	for _, f := range b.pipe {
		_ = f.Close()
	}
	_ = b.http.Close()
	b.running.Wait()
	// A Chromium that is killed may leave a process that still writes there for a
	// moment.
	for give := time.Now().Add(time.Minute); os.RemoveAll(b.profile) != nil && time.Now().Before(give); {
		<-time.After(10 * time.Millisecond)
	}
}

// What goes to the page and comes from it.
type order struct {
	Run   int            `json:"run"`
	Start bool           `json:"start,omitempty"`
	Line  map[string]any `json:"line,omitempty"`
	End   bool           `json:"end,omitempty"`
	Kill  bool           `json:"kill,omitempty"`
}

type told struct {
	Run   int             `json:"run"`
	Event json.RawMessage `json:"event"`
	Exit  *string         `json:"exit"`
}

func (b *browser) order(o order) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone != nil {
		return b.gone
	}
	return b.control.Write(b.ctx, websocket.MessageText, text)
}

// listen hands what the page tells to the runs.
func (b *browser) listen() {
	for {
		_, text, err := b.control.Read(b.ctx)
		var t told
		if err == nil {
			err = json.Unmarshal(text, &t)
		}
		b.mu.Lock()
		if err != nil {
			b.gone = fmt.Errorf("the page tells nothing more: %w", err)
			for _, f := range b.runs {
				f.end(b.gone)
			}
			b.mu.Unlock()
			return
		}
		f := b.runs[t.Run]
		b.mu.Unlock()
		switch {
		case f == nil: // it was killed
		case t.Exit != nil && *t.Exit != "":
			f.end(errors.New(*t.Exit))
		case t.Exit != nil:
			f.end(nil)
		default:
			f.tell(t.Event)
		}
	}
}

// A frameInBrowser is a driver that is a frame of the page.
type frameInBrowser struct {
	b    *browser
	run  int
	hear func(line []byte) error

	mu    sync.Mutex
	ended bool  // guarded by mu: nothing is heard any more
	err   error // guarded by mu until done is closed
	done  chan struct{}
}

func (b *browser) start(hear func(line []byte) error) (driver, error) {
	b.mu.Lock()
	b.serial++
	f := &frameInBrowser{b: b, run: b.serial, hear: hear, done: make(chan struct{})}
	b.runs[f.run] = f
	b.mu.Unlock()
	if err := b.order(order{Run: f.run, Start: true}); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *frameInBrowser) tell(event []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended && f.err == nil {
		f.err = f.hear(event)
	}
}

// end ends the driver as far as we are concerned.
func (f *frameInBrowser) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return
	}
	f.ended = true
	f.err = errors.Join(f.err, err)
	close(f.done)
}

func (f *frameInBrowser) say(line map[string]any) error {
	return f.b.order(order{Run: f.run, Line: line})
}

func (f *frameInBrowser) hangUp() error { return f.b.order(order{Run: f.run, End: true}) }

func (f *frameInBrowser) wait() error {
	<-f.done
	f.b.mu.Lock()
	delete(f.b.runs, f.run)
	f.b.mu.Unlock()
	return f.err
}

func (f *frameInBrowser) kill() {
	_ = f.b.order(order{Run: f.run, Kill: true}) // else the page is gone, and the frame with it
	f.end(errors.New("killed"))
}
