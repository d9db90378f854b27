package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/clients/typescript"
	"github.com/qaexchange/notification/promstats"
	"github.com/qaexchange/notification/ssegateway"
	"github.com/qaexchange/notification/wsgateway"
)

const (
	cookieName = "exchange_session"
	signInFor  = 8 * time.Hour
	hangUpTime = 3 * time.Second
	tellTime   = 2 * time.Second
	haltEvery  = time.Second // a halt is a message to everybody

	maxConnections = 10_000
)

// The page needs nothing but what is in this folder, and the client of this
// repository, and may not load anything else.
//
//go:embed page
var page embed.FS

const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// The phases of a server.
const (
	phaseRunning  = "running"
	phaseDraining = "draining"
	phaseFinished = "finished"
)

// A server shows the exchange to browsers and to those who operate it.
type server struct {
	// immutable after newServer
	x      *exchange
	keys   *signer
	web    *wsgateway.Handler
	events *ssegateway.Handler
	http   *http.Server
	addr   string
	served chan error // what Serve returned

	// immutable once somebody is let in
	hangUpTime time.Duration // over which connections are ended
	tellTime   time.Duration // how long close waits for a page that is looking

	guests atomic.Bool // somebody was let in to /ws

	mu       sync.Mutex
	phase    string        // guarded by mu
	samples  []sample      // guarded by mu: the last keepSamples
	number   int           // guarded by mu: of the last sample
	table    []laneReport  // guarded by mu
	verdict  string        // guarded by mu: of the final table
	lastHalt time.Time     // guarded by mu
	asked    time.Time     // guarded by mu: when somebody last asked for stats
	told     chan struct{} // closed when somebody was told of the end
	toldOnce sync.Once
}

// newServer listens on addr and serves until close.
func newServer(x *exchange, keys *signer, addr string, log *slog.Logger) (*server, error) {
	s := &server{x: x, keys: keys, phase: phaseRunning, served: make(chan error, 1), told: make(chan struct{}), hangUpTime: hangUpTime, tellTime: tellTime}
	var err error
	s.web, err = wsgateway.New(x.bus, wsgateway.Config{Authenticate: s.authenticate, MaxConnections: maxConnections, Logger: log})
	if err != nil {
		return nil, err
	}
	s.events, err = ssegateway.New(x.bus, ssegateway.Config{Authenticate: s.authenticate, MaxConnections: maxConnections, Logger: log})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s.addr = l.Addr().String()
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // a CPU profile takes 30 s
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go func() { s.served <- s.http.Serve(l) }() // ends with close, which waits for it
	return s, nil
}

func (s *server) handler() http.Handler {
	files, err := fs.Sub(page, "page")
	if err != nil {
		panic(err) // the folder's name is a constant
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.x.bus.collectors()...)
	registry.MustRegister(
		promstats.NewTransportCollector("websocket", s.web),
		promstats.NewTransportCollector("sse", s.events),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.Handle("GET /notification-client.js", typescript.Handler())
	mux.Handle("GET /ws", s.web)
	mux.Handle("GET /events", s.events)
	mux.HandleFunc("GET /api/session", s.user(s.whoAmI))
	mux.HandleFunc("POST /api/session", s.signIn)
	mux.HandleFunc("DELETE /api/session", s.signOut)
	mux.HandleFunc("GET /api/streams", s.user(s.streams))
	mux.HandleFunc("POST /api/margin-call", s.user(s.marginCall))
	mux.HandleFunc("POST /api/halt", s.user(s.halt))
	mux.HandleFunc("GET /api/stats", s.stats)

	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /debug/pprof/", local(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/cmdline", local(pprof.Cmdline))
	mux.HandleFunc("GET /debug/pprof/profile", local(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/symbol", local(pprof.Symbol))
	mux.HandleFunc("POST /debug/pprof/symbol", local(pprof.Symbol))
	mux.HandleFunc("GET /debug/pprof/trace", local(pprof.Trace))

	// What changes something is refused to other sites' pages, beside what the
	// cookie's SameSite does.
	safe := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		safe.ServeHTTP(w, r)
	})
}

// local refuses everybody who is not on this machine: a profile tells what is
// in memory, and to take one costs CPU.
func local(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			http.Error(w, "from this machine only", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

// authenticate tells both gateways whose connection a request makes.
// The connection ends when the token does.
func (s *server) authenticate(r *http.Request) (wsgateway.Identity, error) {
	user, expires, err := s.identify(r)
	if err != nil {
		return wsgateway.Identity{}, err
	}
	s.guests.Store(true)
	return wsgateway.Identity{UserID: s.x.members[user].id, Expires: expires}, nil
}

// identify returns the member whose token the request's cookie holds.
func (s *server) identify(r *http.Request) (user int, expires time.Time, err error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return 0, expires, errToken
	}
	id, expires, err := s.keys.verify(cookie.Value, time.Now())
	if err != nil {
		return 0, expires, err
	}
	user, err = s.x.find(id)
	return user, expires, err
}

// find returns the member with this ID.
func (x *exchange) find(id string) (int, error) {
	if number, err := strconv.Atoi(strings.TrimPrefix(id, "u")); err == nil && number >= 1 && number <= len(x.members) && memberID(number-1) == id {
		return number - 1, nil
	}
	return 0, fmt.Errorf("there is no user %.20q", id)
}

// user is what only somebody who is signed in may ask.
func (s *server) user(next func(w http.ResponseWriter, r *http.Request, user int, expires time.Time)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, expires, err := s.identify(r)
		if err != nil {
			fail(w, http.StatusUnauthorized, err)
			return
		}
		next(w, r, user, expires)
	}
}

// signIn makes a token for one of the users. This is where a real exchange asks
// its user directory; this one believes what it is told.
func (s *server) signIn(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		User string `json:"user"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&asked); err != nil {
		fail(w, http.StatusBadRequest, errors.New(`not {"user":"…"}`))
		return
	}
	user, err := s.x.find(asked.User)
	if err != nil {
		fail(w, http.StatusForbidden, err)
		return
	}
	expires := time.Now().Add(signInFor)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: s.keys.issue(asked.User, expires), Path: "/", Expires: expires,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	s.whoAmI(w, r, user, expires)
}

// signOut takes the cookie away. A token that somebody has copied holds until
// it expires.
func (s *server) signOut(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Path: "/", MaxAge: -1,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) whoAmI(w http.ResponseWriter, _ *http.Request, user int, expires time.Time) {
	reply(w, http.StatusOK, map[string]any{"user": s.x.members[user].id, "expires": expires.UnixMilli()})
}

// streams tells up to which number each of the user's streams was published.
// Whoever has received those numbers without a gap has missed nothing.
func (s *server) streams(w http.ResponseWriter, _ *http.Request, user int, _ time.Time) {
	numbers := map[string]uint64{}
	m := s.x.members[user]
	for k := range streamNames {
		numbers[string(s.x.streamID(m.id, k))] = m.streams[k].last.Load()
		numbers[string(s.x.streamID(everybodyPrefix, k))] = s.x.all[k].last.Load()
	}
	reply(w, http.StatusOK, numbers)
}

func (s *server) marginCall(w http.ResponseWriter, _ *http.Request, user int, _ time.Time) {
	s.cause(w, user, marginCall(user, 18_250, 25_000, "asked for on the page"))
}

func (s *server) halt(w http.ResponseWriter, _ *http.Request, user int, _ time.Time) {
	s.mu.Lock()
	soon := time.Since(s.lastHalt) < haltEvery
	if !soon {
		s.lastHalt = time.Now()
	}
	s.mu.Unlock()
	if soon {
		fail(w, http.StatusTooManyRequests, errors.New("one halt a second is enough"))
		return
	}
	s.cause(w, everybody, marketHalt("ALL", "asked for by "+s.x.members[user].id, time.Minute))
}

// cause publishes what somebody asked for on the page.
func (s *server) cause(w http.ResponseWriter, user int, payload notification.Payload) {
	id, err := s.x.send(user, payload)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, http.StatusAccepted, map[string]any{"id": id})
}

// ready is for whoever routes users here: not while it drains.
func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	phase := s.phase
	s.mu.Unlock()
	if phase != phaseRunning {
		http.Error(w, phase, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ready\n")
}

// drain says that the exchange takes nobody new.
func (s *server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = phaseDraining
}

// hangUp ends the connections, spread over hangUpTime so that a herd would not
// come back at once.
func (s *server) hangUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.hangUpTime)
	defer cancel()
	events := make(chan error, 1)
	go func() { events <- s.events.Shutdown(ctx) }()
	return errors.Join(s.web.Shutdown(ctx), <-events)
}

// close shows the final table to whoever is looking, and ends the server.
func (s *server) close(ctx context.Context, rows []laneReport, verdict string) error {
	s.mu.Lock()
	s.phase, s.table, s.verdict = phaseFinished, rows, verdict
	looking := time.Since(s.asked) < time.Second+s.tellTime
	s.mu.Unlock()
	if looking { // a page asks once a second
		select {
		case <-s.told:
		case <-time.After(s.tellTime):
		case <-ctx.Done():
		}
	}
	err := s.http.Shutdown(ctx)
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func fail(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": err.Error()})
}

func reply(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer) // the only error is a client that has left
}
