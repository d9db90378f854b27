// Package wsgateway connects WebSocket clients to a notification.Gateway.
//
// A [Handler] is an http.Handler: it asks Authenticate who the client is,
// upgrades the connection, registers a session for it and writes what the
// Gateway pushes. The protocol, the close codes and what a client should do
// about each are in the README of this module.
//
// # Goroutines
//
// A connection costs one goroutine, which reads. The Gateway's pushers write,
// and the read deadline is the connection's only timer: it tells when a ping is
// due, when its answer is, when a frame that has begun must be there, when the
// credentials expire, and, set to the past, that the connection is to end.
// Handler.Shutdown waits for these goroutines. (When a session ends that was
// pushed to, one more lives for a microsecond: it cuts a write that blocks.)
//
// # What peers may do
//
// Anything. Every read and write has a deadline on the net.Conn itself, below
// the WebSocket library, so that neither it nor a peer that stalls, dribbles or
// lies about lengths can keep a goroutine or a descriptor. What comes before the
// upgrade is net/http's: give the http.Server a ReadHeaderTimeout.
package wsgateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
)

// Config configures a Handler. Authenticate is required; zero is the default
// for the others, negative is invalid.
type Config struct {
	// Authenticate tells who sends a request, before it is upgraded; an error is
	// answered with 401 and goes to Logger alone. It is the only source of the
	// user: nothing that a client says later changes it. It is called from many
	// goroutines at once and should heed the request's context.
	Authenticate func(*http.Request) (Identity, error)
	// OriginPatterns are the origins that browsers may connect from, beside the
	// host that they connect to: hosts, or scheme://host, as path.Match has
	// them, without regard to case. Others get 403. Default: none.
	OriginPatterns []string
	// PingInterval is how long a peer may be quiet before it is pinged; default
	// 20 s. It should be well below the Gateway's SessionTimeout.
	PingInterval time.Duration
	// PongTimeout is how long the answer to a ping may take, and how long a
	// frame or message that has begun may take to be complete; default 10 s.
	PongTimeout time.Duration
	// WriteTimeout is how long the peer may take to make room for a frame, or
	// for the frames of one batch; default 10 s. A peer that does not is gone at
	// the latest a second later.
	WriteTimeout time.Duration
	// ReadLimit is how many bytes a message from a client may have; default 4
	// KiB. Over it the connection ends with 1009.
	ReadLimit int64
	// CommandsPerSecond is how many commands, pings and pongs together a client
	// may send, on average and at once; default 10. Over it the connection ends
	// with 1008.
	CommandsPerSecond int
	// MaxConnections bounds the connections, upgrades under way included; over
	// it the answer is 503. Default 0: no bound.
	MaxConnections int
	// Logger gets, at Debug, why a connection was refused or ended, and above it
	// what the server does wrong; nil discards.
	Logger *slog.Logger
}

// Identity is what Authenticate found out.
type Identity struct {
	// UserID is whose notifications the connection gets. Nobody (empty) and
	// everybody (notification.AllUsers) are refused.
	UserID string
	// Expires is until when the credentials hold: then the connection ends with
	// 4401. Zero: for ever.
	Expires time.Time
}

func (c *Config) setDefaults() error {
	c.OriginPatterns = slices.Clone(c.OriginPatterns)
	c.PingInterval = cmp.Or(c.PingInterval, 20*time.Second)
	c.PongTimeout = cmp.Or(c.PongTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.ReadLimit = cmp.Or(c.ReadLimit, 4<<10)
	c.CommandsPerSecond = cmp.Or(c.CommandsPerSecond, 10)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Authenticate == nil {
		return fmt.Errorf("%w: Config.Authenticate is nil", notification.ErrInvalid)
	}
	for i, p := range c.OriginPatterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%w: Config.OriginPatterns[%d] %q: %w", notification.ErrInvalid, i, p, err)
		}
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"PingInterval", int64(c.PingInterval)},
		{"PongTimeout", int64(c.PongTimeout)},
		{"WriteTimeout", int64(c.WriteTimeout)},
		{"ReadLimit", c.ReadLimit},
		{"CommandsPerSecond", int64(c.CommandsPerSecond)},
		{"MaxConnections", int64(c.MaxConnections)},
	} {
		if f.value < 0 {
			return fmt.Errorf("%w: Config.%s %d is negative", notification.ErrInvalid, f.name, f.value)
		}
	}
	if c.ReadLimit > math.MaxInt32 {
		return fmt.Errorf("%w: Config.ReadLimit %d is over 2^31-1", notification.ErrInvalid, c.ReadLimit)
	}
	return nil
}

// A Handler upgrades requests to WebSockets and makes each a session of its
// Gateway. New makes one. All methods may be called at any time, from anywhere.
type Handler struct {
	// immutable after New
	gateway *notification.Gateway
	cfg     Config
	log     *slog.Logger
	idle    chan struct{} // closed when closing and active is 0

	mu      sync.Mutex
	closing bool               // guarded by mu: no more connections
	active  int                // guarded by mu: conns, and requests on the way to become one
	conns   map[*conn]struct{} // guarded by mu
}

// New returns a Handler for g. A nil Gateway, or a value of cfg that cannot be,
// is notification.ErrInvalid, and the error names the field.
func New(g *notification.Gateway, cfg Config) (*Handler, error) {
	if g == nil {
		return nil, fmt.Errorf("%w: Gateway is nil", notification.ErrInvalid)
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Handler{
		gateway: g, cfg: cfg, log: cfg.Logger,
		idle:  make(chan struct{}),
		conns: make(map[*conn]struct{}),
	}, nil
}

// ServeHTTP answers 503 over MaxConnections and after Shutdown began, 401 if
// Authenticate fails, 403 to a foreign origin, and another 4xx to what is no
// WebSocket handshake. Otherwise it upgrades the connection and returns: the
// connection lives on in a goroutine of its own, so that what net/http holds
// for a request, several kilobytes, is free again.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		http.Error(w, "no more connections", http.StatusServiceUnavailable)
		return
	}
	handedOver := false
	defer func() { // Authenticate may panic
		if !handedOver {
			h.leave(nil)
		}
	}()
	who, err := h.identify(r)
	if err != nil {
		h.log.Debug("websocket refused: credentials", "remote", r.RemoteAddr, "error", err)
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		return
	}
	if !canHijack(w) { // HTTP/2, or a middleware that hides it
		h.log.Warn("websocket refused: the ResponseWriter cannot be hijacked", "proto", r.Proto)
		http.Error(w, http.StatusText(http.StatusNotImplemented), http.StatusNotImplemented)
		return
	}
	c := newConn(h, who, r.URL.Query().Get("cursor"))
	ws, err := websocket.Accept(hijackWriter{w, c.sock}, r, &websocket.AcceptOptions{
		Subprotocols:   []string{batchProtocol},
		OriginPatterns: h.cfg.OriginPatterns,
		OnPingReceived: c.pinged,
		OnPongReceived: c.ponged,
	})
	if err != nil { // Accept has answered
		h.log.Debug("websocket refused", "remote", r.RemoteAddr, "user", who.UserID, "error", err)
		if c.sock.Conn != nil {
			_ = c.sock.Close()
		}
		return
	}
	ws.SetReadLimit(h.cfg.ReadLimit)
	c.ws, c.batches = ws, ws.Subprotocol() != ""
	handedOver = true
	if !h.add(c) {
		c.end(endGoingAway)
	}
	// Owned by h. It ends when the peer goes or c.end is called, at the latest
	// closeTimeout after that, and Shutdown waits for it.
	go c.run()
}

// identify is Authenticate, and what every Identity must fulfil.
func (h *Handler) identify(r *http.Request) (Identity, error) {
	who, err := h.cfg.Authenticate(r)
	switch {
	case err != nil:
		return Identity{}, err
	case who.UserID == "", who.UserID == notification.AllUsers, len(who.UserID) > 256:
		return Identity{}, fmt.Errorf("%w: Identity.UserID %.64q is nobody", notification.ErrInvalid, who.UserID)
	case !who.Expires.IsZero() && !time.Now().Before(who.Expires):
		return Identity{}, fmt.Errorf("%w: Identity.Expires %s has passed", notification.ErrInvalid, who.Expires)
	}
	return who, nil
}

// enter reserves a place, before the upgrade; leave gives it back.
func (h *Handler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing || h.cfg.MaxConnections > 0 && h.active >= h.cfg.MaxConnections {
		return false
	}
	h.active++
	return true
}

// add reports false if Shutdown will not see c any more.
func (h *Handler) add(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[c] = struct{}{}
	return !h.closing
}

func (h *Handler) leave(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
	h.active--
	if h.closing && h.active == 0 {
		close(h.idle)
	}
}

// defaultSpread is over how long Shutdown spreads its 1001s if its ctx has no
// deadline.
const defaultSpread = 10 * time.Second

// Shutdown refuses new connections and closes the others with 1001, spread
// evenly over three quarters of the time until ctx's deadline, or 10 s if it has
// none, so that the clients do not all come back at once. It returns nil as soon
// as all are gone. If ctx ends first it cuts the rest and returns ctx's error.
//
// Call it between the Shutdown of the Broker and that of the Gateway: while the
// Gateway lives, the connections that wait for their turn are still served.
// http.Server.Shutdown knows nothing of WebSockets and does not do this.
func (h *Handler) Shutdown(ctx context.Context) error {
	start := time.Now()
	spread, by := defaultSpread, time.Time{}
	if deadline, ok := ctx.Deadline(); ok {
		have := max(deadline.Sub(start), 0)
		// A peer that does not answer the last 1001 is cut a little before the
		// deadline, so that its goroutine is gone by then.
		spread, by = have*3/4, deadline.Add(-have/20)
	}

	h.mu.Lock()
	if !h.closing && h.active == 0 {
		close(h.idle)
	}
	h.closing = true
	conns := h.connections()
	h.mu.Unlock()
	if len(conns) > 0 {
		h.log.Info("closing websockets", "connections", len(conns), "over", spread)
	}

	end := *endGoingAway
	end.by = by
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for i, c := range conns {
		at := start.Add(time.Duration(float64(spread) * float64(i) / float64(len(conns))))
		if wait := time.Until(at); wait >= time.Millisecond {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-h.idle: // the peers went by themselves
			case <-ctx.Done():
			}
		}
		c.end(&end)
	}
	select {
	case <-h.idle:
		return nil
	case <-ctx.Done():
	}
	h.mu.Lock()
	conns = h.connections()
	h.mu.Unlock()
	for _, c := range conns {
		_ = c.sock.Close()
	}
	return context.Cause(ctx)
}

// connections copies them, so that the lock is free meanwhile. h.mu is held.
func (h *Handler) connections() []*conn {
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	return conns
}
