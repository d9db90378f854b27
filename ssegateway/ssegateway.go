// Package ssegateway connects clients over server-sent events to a
// notification.Gateway.
//
// A [Handler] is an http.Handler for GET. With it
//
//	new EventSource("/events")
//
// is a client without a hole: the browser reconnects by itself and says, in
// Last-Event-ID, behind which notification. It needs nothing but HTTP, over any
// version and through every proxy. The events, what becomes of each refusal and
// the limits of EventSource are in the README of this module.
//
// [New] makes a Handler of a Gateway, which should have a history, and a Config that
// has Authenticate; it is mounted on a path. [Handler.ServeHTTP] blocks for as long as
// its stream lasts, so http.Server.Shutdown waits for the streams, which
// [Handler.Shutdown] ends, between the Shutdown of the Broker and that of the Gateway.
// What goes wrong with a stream is told to its client, counted in [Handler.Stats] and
// logged; no call returns it. The package example is a server with its client, and
// the way down.
//
// # Goroutines
//
// A stream costs the goroutine of its request, which net/http started: it sleeps
// until a heartbeat is due or the stream ends. The Gateway's pushers write.
//
// # What peers may do
//
// Nothing comes from the peer, so one that is gone is found by writing to it:
// every write has a deadline of its own, in place of the http.Server's. For
// connections whose peer vanished without a word see [UserTimeout].
package ssegateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
	"github.com/qaexchange/notification/web"
)

// Sessions is where sessions are made: a *notification.Gateway, a *natslog.Edge, or
// whatever chooses between several.
type Sessions interface {
	RegisterSession(notification.SessionConfig) (*notification.Session, error)
}

var _ Sessions = (*notification.Gateway)(nil)

// Config configures a Handler. Authenticate is required; zero is the default
// for the others, negative is invalid.
type Config struct {
	// Authenticate tells who sends a request, from a cookie or a ticket (package
	// web has a store), as EventSource sets no headers. An error refuses the
	// request: with 403 if it Is web.ErrForbidden, else with 401; its text goes
	// to Logger alone. It is called from many goroutines at once and should heed
	// the request's context.
	Authenticate func(*http.Request) (Identity, error)
	// OriginPatterns are the origins whose pages may open a stream, beside the
	// host itself: hosts, or scheme://host, as path.Match has them, without
	// regard to case. Others get 403. Default: none.
	OriginPatterns []string
	// HeartbeatInterval is how long nothing may be sent before there is a
	// heartbeat; default 20 s. It must be shorter than any proxy's patience, and
	// well below the Gateway's SessionTimeout: a stream is heard of when
	// something could be written to it.
	HeartbeatInterval time.Duration
	// WriteTimeout is how long the peer may take to make room for a batch;
	// default 10 s. A peer that does not is gone at the latest a second later.
	WriteTimeout time.Duration
	// MaxConnections bounds the streams, requests on their way included; over it
	// the answer is to come back later, unless the user has a stream here
	// already: that one then gives way. Default 0: no bound.
	MaxConnections int
	// Logger gets, at Debug, why a stream was refused or ended, and above it that
	// there is no room, and what the server does wrong; nil discards. No token,
	// ticket or URL is logged.
	Logger *slog.Logger
}

// Identity is what Authenticate found out. At Expires the stream ends.
type Identity = web.Identity

// Stats is what a Handler counts. A frame is an event; nothing comes in.
type Stats = web.Stats

func (c *Config) setDefaults() error {
	c.OriginPatterns = slices.Clone(c.OriginPatterns)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 20*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Authenticate == nil {
		return fmt.Errorf("%w: Config.Authenticate is nil", notification.ErrInvalid)
	}
	if err := door.CheckOrigins(c.OriginPatterns); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"HeartbeatInterval", int64(c.HeartbeatInterval)},
		{"WriteTimeout", int64(c.WriteTimeout)},
		{"MaxConnections", int64(c.MaxConnections)},
	} {
		if f.value < 0 {
			return fmt.Errorf("%w: Config.%s %d is negative", notification.ErrInvalid, f.name, f.value)
		}
	}
	return nil
}

// A Handler makes each request a session. New makes one. All methods may be
// called at any time, from anywhere.
type Handler struct {
	// immutable after New
	sessions Sessions
	cfg      Config
	log      *slog.Logger

	door    *door.Door[*stream]
	fullLog door.FullLog
	counts  door.Counters
}

// New returns a Handler that makes its sessions at g. A g that is nil, or a value
// of cfg that cannot be, is notification.ErrInvalid, and the error names the
// field.
func New(g Sessions, cfg Config) (*Handler, error) {
	if gateway, ok := g.(*notification.Gateway); g == nil || ok && gateway == nil {
		return nil, fmt.Errorf("%w: Gateway is nil", notification.ErrInvalid)
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Handler{sessions: g, cfg: cfg, log: cfg.Logger, door: door.New[*stream](cfg.MaxConnections)}, nil
}

// Stats returns what was counted so far. It may be called at any time, as often
// as one likes; it allocates a few kilobytes.
func (h *Handler) Stats() Stats { return h.counts.Snapshot() }

// Shutdown tells new requests to come back later and ends the streams, spread
// evenly over three quarters of the time until ctx's deadline, or 10 s if it has
// none. It returns nil as soon as all are gone. If ctx ends first it cuts the rest
// and returns ctx's error.
//
// Call it between the Shutdown of the Broker and that of the Gateway, and begin
// http.Server.Shutdown before it, which waits for the streams: see README.
func (h *Handler) Shutdown(ctx context.Context) error {
	return h.door.Shutdown(ctx,
		func(s *stream, _ time.Time) { s.end(ending{code: web.CodeGoingAway, text: "server going away"}) },
		func(s *stream) { s.cut() })
}

// ServeHTTP streams until the session ends, the client goes, or its credentials
// expire. What is refused, and how, is in README; it is refused in this order:
// a body, another method, a foreign origin, over MaxConnections or after Shutdown began,
// Authenticate, the query, no session.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.allowOrigin(w, r)
	s := newStream(h, w)
	// The server's deadlines are for requests that end: that of reading would
	// end this one, by its context. And a stream without deadlines of its own
	// would be anybody's to keep.
	if err := s.control.SetReadDeadline(time.Time{}); errors.Is(err, http.ErrNotSupported) || !canFlush(w) {
		h.counts.Refused(http.StatusNotImplemented)
		h.log.Warn("stream refused: the ResponseWriter has no deadlines, or no Flush; what wraps it needs an Unwrap method")
		http.Error(w, http.StatusText(http.StatusNotImplemented), http.StatusNotImplemented)
		return
	}
	switch {
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		// net/http would wait for the body, for as long as the peer likes.
		_ = s.control.SetReadDeadline(past)
		if r.ProtoMajor == 1 { // with HTTP/2 it would end the connection of others
			w.Header().Set("Connection", "close")
		}
		h.refuse(w, r, http.StatusBadRequest, "a stream has no body", nil)
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		h.refuse(w, r, http.StatusMethodNotAllowed, "", nil)
		return
	case !h.originAllowed(r):
		h.counts.Origin.Add(1)
		h.log.Debug("stream refused: origin", "remote", r.RemoteAddr)
		http.Error(w, "foreign origin", http.StatusForbidden)
		return
	}
	if !h.door.Enter(s) {
		h.later(w, http.StatusServiceUnavailable, "no more connections")
		return
	}
	defer h.door.Leave(s)
	if h.admit(s, w, r) {
		s.run(r)
	}
}

// canFlush tells what http.ResponseController.Flush would, and sends nothing.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Flusher, interface{ FlushError() error }:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}
