package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/exchange/page"
	"github.com/qaexchange/notification/ssegateway"
	"github.com/qaexchange/notification/wsgateway"
)

const (
	hangUpTime = 3 * time.Second
	tellTime   = 2 * time.Second
	bodyTime   = 5 * time.Second

	// The sockets of guests, and those of requests and of who is on his way in.
	maxConnections = maxGuests + 2_000
)

// The phases of a server.
const (
	phaseRunning  = "running"
	phaseDraining = "draining"
	phaseFinished = "finished"
)

// A server shows the exchange to browsers, and to whoever routes them here.
type server struct {
	*site

	// immutable after newServer
	x         *exchange
	keys      *signer
	guests    *guests
	web       *wsgateway.Handler
	events    *ssegateway.Handler
	behindTLS bool
	log       *slog.Logger

	// immutable once somebody is let in
	hangUpTime time.Duration // over which connections are ended
	tellTime   time.Duration // how long close waits for a page that is looking
	bodyTime   time.Duration // how long the body of a request may take

	// How often one may sign in, from one address; and cause something, as one user,
	// which of a halt, a message to everybody, all together may not do more often.
	signIns, marginCalls, halts, allHalts *limiter

	mu       sync.Mutex
	phase    string               // guarded by mu
	samples  page.Samples[sample] // guarded by mu
	table    []laneReport         // guarded by mu
	verdict  string               // guarded by mu: of the final table
	asked    time.Time            // guarded by mu: when somebody last asked for stats
	told     chan struct{}        // closed when somebody was told of the end
	toldOnce sync.Once
}

// newServer listens on o.addr and serves until close.
func newServer(x *exchange, keys *signer, o options, log *slog.Logger) (*server, error) {
	s := &server{
		x: x, keys: keys, guests: newGuests(x.bus, keys.revoked), behindTLS: o.behindTLS, log: log,
		hangUpTime: hangUpTime, tellTime: tellTime, bodyTime: bodyTime,
		signIns:     newLimiter(time.Second, 30),
		marginCalls: newLimiter(time.Second, 10),
		halts:       newLimiter(5*time.Second, 5),
		allHalts:    newLimiter(time.Second, 1),
		phase:       phaseRunning, told: make(chan struct{}),
	}
	var err error
	s.web, err = wsgateway.New(s.guests, wsgateway.Config{Authenticate: s.authenticate, MaxConnections: maxGuests, Logger: log})
	if err != nil {
		return nil, err
	}
	s.events, err = ssegateway.New(s.guests, ssegateway.Config{Authenticate: s.authenticate, MaxConnections: maxGuests, Logger: log})
	if err != nil {
		return nil, err
	}
	// A stream of events whose client has vanished without a word is noticed by this.
	listen := net.ListenConfig{Control: ssegateway.UserTimeout(10 * time.Second)}
	l, err := listen.Listen(context.Background(), "tcp", o.addr)
	if err != nil {
		return nil, err
	}
	s.site = openSite(&bounded{l, make(chan struct{}, maxConnections)}, s.handler(), 10*time.Second, log)
	return s, nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /ws", s.web)
	mux.Handle("GET /events", s.events)
	mux.HandleFunc("POST /api/session", s.signIn)
	for pattern, handler := range map[string]http.Handler{
		"GET /":                 page.Handler(),
		"GET /api/session":      http.HandlerFunc(s.whoAmI),
		"DELETE /api/session":   http.HandlerFunc(s.signOut),
		"GET /api/streams":      s.user(s.streams),
		"POST /api/margin-call": s.user(s.marginCall),
		"POST /api/halt":        s.user(s.halt),
		"GET /api/stats":        http.HandlerFunc(s.stats),
		"GET /healthz":          http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }),
		"GET /readyz":           http.HandlerFunc(s.ready),
	} {
		mux.Handle(pattern, bodiless(handler))
	}
	return page.Guard(mux)
}

// bodiless refuses a request with a body, of which net/http would read the most part
// before it answers, for as long as its client lets it wait.
func bodiless(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // every connection here has one
			w.Header().Set("Connection", "close")
			page.Fail(w, http.StatusBadRequest, errors.New("such a request has no body"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// streams tells up to which number each of the user's streams was published.
// Whoever has received those numbers without a gap has missed nothing.
func (s *server) streams(w http.ResponseWriter, _ *http.Request, user int) {
	numbers := map[string]uint64{}
	m := s.x.members[user]
	for k := range streamNames {
		numbers[string(s.x.streamID(m.id, k))] = m.streams[k].last.Load()
		numbers[string(s.x.streamID(everybodyPrefix, k))] = s.x.all[k].last.Load()
	}
	page.Reply(w, http.StatusOK, numbers)
}

func (s *server) marginCall(w http.ResponseWriter, _ *http.Request, user int) {
	if s.marginCalls.allows(w, s.x.members[user].id) {
		s.cause(w, user, marginCall(user, 18_250, 25_000, "asked for on the page"))
	}
}

func (s *server) halt(w http.ResponseWriter, _ *http.Request, user int) {
	if id := s.x.members[user].id; s.halts.allows(w, id) && s.allHalts.allows(w, "") {
		s.cause(w, everybody, marketHalt("ALL", "asked for by "+id, time.Minute))
	}
}

// cause publishes what somebody asked for on the page.
func (s *server) cause(w http.ResponseWriter, user int, payload notification.Payload) {
	id, err := s.x.send(user, payload)
	if err != nil {
		page.Fail(w, http.StatusServiceUnavailable, err)
		return
	}
	page.Reply(w, http.StatusAccepted, map[string]any{"id": id})
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
// come back at once. Who has not answered by then is cut, as a browser may be that is
// busy with something else.
func (s *server) hangUp(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, s.hangUpTime)
	defer cancel()
	events := make(chan error, 1)
	go func() { events <- s.events.Shutdown(limit) }()
	err := errors.Join(s.web.Shutdown(limit), <-events)
	if limit.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
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
	return s.site.close(ctx)
}
