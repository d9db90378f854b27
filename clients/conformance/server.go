package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// A server plays scenarios at /s/NAME?user=USER. Each user goes through one by
// itself: the first connection gets its first script, the next one the second.
type server struct {
	addr      string
	http      *http.Server
	serving   sync.WaitGroup
	scenarios map[string]*scenario // by name; immutable

	byHand bool // a user that nobody has begun begins with the first request

	mu     sync.Mutex
	serial int             // guarded by mu
	runs   map[string]*run // guarded by mu: by user
}

// A run is one client, or two of one user, in one scenario.
type run struct {
	// immutable
	scenario *scenario
	user     string
	page     bool // the client can set no header
	byHand   bool // there is no driver that tells what happens
	journal  *journal
	ctx      context.Context // ends with the run, or with its first failure
	stop     context.CancelCauseFunc

	mu       sync.Mutex
	made     int            // guarded by mu: connections
	loads    int            // guarded by mu: snapshots that were asked for
	ended    bool           // guarded by mu: no connection is taken any more
	requests sync.WaitGroup // of the requests; Add with mu held and not ended
}

var (
	errEnded  = errors.New("the run has ended")
	errFailed = errors.New("the run has failed")
)

// serve starts a server. It runs until close.
func serve(addr string, all []*scenario, byHand bool, more http.Handler) (*server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &server{addr: ln.Addr().String(), scenarios: map[string]*scenario{}, byHand: byHand, runs: map[string]*run{}}
	for _, sc := range all {
		s.scenarios[sc.Name] = sc
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /s/{name}", s.serveConnection)
	mux.HandleFunc("GET /s/{name}/journal", s.serveJournal)
	mux.HandleFunc("GET /s/{name}/snapshot", s.serveSnapshot)
	if more != nil {
		mux.Handle("/", more)
	}
	// Requests that are cut off and given up are what this is about.
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.serving.Go(func() { _ = s.http.Serve(ln) })
	return s, nil
}

// close ends the server. The runs have ended.
func (s *server) close() {
	_ = s.http.Close()
	s.serving.Wait()
}

// begin makes a run of a scenario, which somebody has to end.
func (s *server) begin(parent context.Context, sc *scenario, page bool) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return s.beginLocked(parent, sc, "u"+strconv.Itoa(s.serial), page)
}

func (s *server) beginLocked(parent context.Context, sc *scenario, user string, page bool) *run {
	ctx, stop := context.WithCancelCause(parent)
	r := &run{scenario: sc, user: user, page: page, byHand: s.byHand, journal: newJournal(), ctx: ctx, stop: stop}
	s.runs[user] = r
	return r
}

// end ends a run and waits for its connections.
func (s *server) end(r *run) {
	s.mu.Lock()
	delete(s.runs, r.user)
	s.mu.Unlock()
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.stop(errEnded)
	r.requests.Wait()
}

func (s *server) url(r *run) string {
	return "ws://" + s.addr + "/s/" + r.scenario.Name + "?user=" + r.user
}

// snapshotURL is where a driver gets its snapshots, empty if from nowhere.
func (s *server) snapshotURL(r *run) string {
	if r.scenario.Gate == 0 {
		return ""
	}
	return "http://" + s.addr + "/s/" + r.scenario.Name + "/snapshot?user=" + r.user
}

// find returns the run of a request, and begins one if it is played by hand.
func (s *server) find(req *http.Request) (*run, error) {
	user, err := userOf(req.URL)
	if err != nil {
		return nil, err
	}
	sc := s.scenarios[req.PathValue("name")]
	if sc == nil {
		return nil, fmt.Errorf("there is no scenario %q", req.PathValue("name"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[user]
	if r == nil && s.byHand {
		r = s.beginLocked(context.Background(), sc, user, false)
	}
	if r == nil || r.scenario != sc {
		return nil, fmt.Errorf("user %q is not in scenario %q", user, sc.Name)
	}
	return r, nil
}

// serveConnection plays the next script of the request's run.
func (s *server) serveConnection(w http.ResponseWriter, req *http.Request) {
	r, err := s.find(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	number, ok := r.enter()
	if !ok {
		http.Error(w, errEnded.Error(), http.StatusServiceUnavailable)
		return
	}
	defer r.requests.Done()
	said := asked(req)
	said["connection"] = number
	r.journal.note("connected", said)
	if number > len(r.scenario.Connections) {
		r.fail("connection %d is one too many", number)
		http.Error(w, "one too many", http.StatusServiceUnavailable)
		return
	}
	if p := req.Header.Get("Sec-WebSocket-Protocol"); p != batchProtocol {
		r.fail("connection %d asks for the subprotocol %q", number, p)
	}
	c := &conn{run: r, number: number, w: w, request: req,
		frames: make(chan []byte, 1024), gone: make(chan struct{})}
	c.play(r.scenario.Connections[number-1])
}

// enter counts a connection, unless the run has ended.
func (r *run) enter() (number int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return 0, false
	}
	r.requests.Add(1)
	r.made++
	return r.made, true
}

// load counts a snapshot.
func (r *run) load() (number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loads++
	return r.loads
}

// fail notes what is wrong, and ends the run: what follows would only confuse.
func (r *run) fail(format string, args ...any) {
	r.journal.note("failed", map[string]any{"what": fmt.Sprintf(format, args...)})
	r.stop(errFailed)
}

// play goes through a script.
func (c *conn) play(s script) {
	defer c.end()
	for i, st := range s {
		if c.answered {
			c.run.fail("connection %d, step %d (%s): the request has been answered", c.number, i+1, st.op)
			return
		}
		if err := ops[st.op](c, st.arg); err != nil {
			// Once the run has ended, nothing that a client does is wrong.
			if c.run.ctx.Err() == nil && !c.run.scenario.Fewer {
				c.run.fail("connection %d, step %d (%s %s): %v", c.number, i+1, st.op, st.arg, err)
			}
			return
		}
	}
}

// serveSnapshot answers when the script says so.
func (s *server) serveSnapshot(w http.ResponseWriter, req *http.Request) {
	r, err := s.find(req)
	if err == nil && r.load() == r.scenario.Gate {
		err = r.journal.await(r.ctx, pattern{"server": "mark", "name": "snapshot"})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", "*") // pages ask as well
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{}") // the only error is a client that has left
}

// serveJournal tells what has happened to a user, and forgets it.
func (s *server) serveJournal(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	r := s.runs[req.URL.Query().Get("user")]
	s.mu.Unlock()
	if r == nil {
		http.Error(w, "there is no such user", http.StatusNotFound)
		return
	}
	s.end(r)
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, e := range r.journal.all() {
		_ = json.NewEncoder(w).Encode(e.fields) // the only error is a client that has left
	}
}
