// Package wsgateway connects WebSocket clients to a notification.Gateway.
//
// A [Handler] is an http.Handler: it checks the handshake and its origin, asks
// Authenticate who the client is, registers a session, upgrades the connection
// and writes what the Gateway pushes. What is published once the client has seen
// its connection open reaches it. The protocol, the close codes and what a client
// should do about each are in the README of this module.
//
// [New] makes a Handler of a Gateway and a Config that has Authenticate; it is
// mounted on a path, beside whatever else the http.Server has. The connections are
// the Handler's: [Handler.Shutdown] closes them, between the Shutdown of the Broker
// and that of the Gateway. What goes wrong with one is told to its client, counted in
// [Handler.Stats] and logged; no call returns it. The package example is a server
// with its client, and the way down.
//
// # Goroutines
//
// A connection costs one goroutine, which reads. The Gateway's pushers write,
// and the read deadline is the connection's only timer: it tells when a
// heartbeat or a ping is due, when the answer to a ping is, when a frame that has
// begun must be there, when the credentials expire, and, set to the past, that
// the connection is to end. Handler.Shutdown waits for these goroutines. Two more
// live for a while: one in a call of Config.Refresh, which the connection waits
// for; and, when a session ends that was pushed to, one that cuts a write that
// blocks, in a microsecond.
//
// # What peers may do
//
// Anything. Every read and write has a deadline on the net.Conn itself, below
// the WebSocket library, so that neither it nor a peer that stalls, dribbles or
// lies about lengths can keep a goroutine or a descriptor. What comes before the
// upgrade is net/http's: give the http.Server its deadlines, as README shows.
package wsgateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"
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
	// Authenticate tells who sends a request. It is the only source of the user:
	// nothing that a client says later changes it. It is called after handshake
	// and origin were found good, and before the upgrade. An error refuses the
	// request: with 403 and 4403 if it Is web.ErrForbidden, else with 401 and
	// 4401; its text goes to Logger alone, and must not quote credentials. It is
	// called from many goroutines at once and should heed the request's context.
	Authenticate func(*http.Request) (Identity, error)
	// Refresh tells whether token, which a client that is connected as id sends
	// before its credentials expire, extends them; nil: clients reconnect
	// instead. It returns the user as before, or the client is refused, and the
	// new Expires. An error leaves everything as it was; its text goes to Logger
	// alone, without the token if it quotes that whole. It has 5 s, until ctx
	// ends, and should heed that: until it returns the connection keeps its place.
	// One call at a time for a connection.
	Refresh func(ctx context.Context, id Identity, token string) (Identity, error)
	// OriginPatterns are the origins that browsers may connect from, beside the
	// host that they connect to: hosts, or scheme://host, as path.Match has
	// them, without regard to case. Others get 403. Default: none.
	OriginPatterns []string
	// HeartbeatInterval is how long nothing may be sent to a client of the batch
	// protocol before it gets a heartbeat; default 20 s. Pings and pongs are
	// nothing, because a page does not see them. A client that hears nothing for
	// 2.5 times as long reconnects.
	HeartbeatInterval time.Duration
	// PingInterval is how long a peer may be quiet before it is pinged; default
	// 20 s. It should be well below the Gateway's SessionTimeout.
	PingInterval time.Duration
	// PongTimeout is how long the answer to a ping may take, and how long a
	// frame or message that has begun may take to be complete; default 10 s. For
	// a ping, a pong or a close frame it is 4 s at most.
	PongTimeout time.Duration
	// WriteTimeout is how long the peer may take to make room for a frame, or
	// for the frames of one batch; default 10 s. A peer that does not is gone at
	// the latest a second later.
	WriteTimeout time.Duration
	// ReadLimit is how many bytes a message from a client may have; default 16
	// KiB, which has room for a token. Over it the connection ends with 1009.
	ReadLimit int64
	// CommandsPerSecond is how many commands, pings and pongs together a client
	// may send, on average and at once; default 10. Over it the connection ends
	// with 1008.
	CommandsPerSecond int
	// MaxConnections bounds the connections, upgrades under way included; over
	// it the answer is 503, unless the user has one here already: that one then
	// gives way. Default 0: no bound.
	MaxConnections int
	// Logger gets, at Debug, why a connection was refused or ended, and above it
	// that there is no room, and what the server does wrong; nil discards. No
	// token, ticket or URL is logged.
	Logger *slog.Logger
}

// Identity is what Authenticate found out. At Expires the connection ends with
// 4401.
type Identity = web.Identity

// Stats is what a Handler counts.
type Stats = web.Stats

func (c *Config) setDefaults() error {
	c.OriginPatterns = slices.Clone(c.OriginPatterns)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 20*time.Second)
	c.PingInterval = cmp.Or(c.PingInterval, 20*time.Second)
	c.PongTimeout = cmp.Or(c.PongTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.ReadLimit = cmp.Or(c.ReadLimit, 16<<10)
	c.CommandsPerSecond = cmp.Or(c.CommandsPerSecond, 10)
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

// A Handler upgrades requests to WebSockets and makes each a session. New makes
// one. All methods may be called at any time, from anywhere.
type Handler struct {
	// immutable after New
	sessions Sessions
	cfg      Config
	log      *slog.Logger

	door    *door.Door[*conn]
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
	return &Handler{sessions: g, cfg: cfg, log: cfg.Logger, door: door.New[*conn](cfg.MaxConnections)}, nil
}

// Stats returns what was counted so far. It may be called at any time, as often
// as one likes; it allocates a few kilobytes.
func (h *Handler) Stats() Stats { return h.counts.Snapshot() }

// ServeHTTP upgrades the connection and returns: the connection lives on in a
// goroutine of its own, so that what net/http holds for a request, several
// kilobytes, is free again. What is refused, and how, is in README; it is
// refused in this order: what is no handshake, a foreign origin, over
// MaxConnections or after Shutdown began, Authenticate, the query, no session.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		h.refuseBody(w)
		return
	}
	if r.Header.Get("Sec-WebSocket-Version") != "13" {
		h.refuseVersion(w)
		return
	}
	if !canHijack(w) { // HTTP/2, or a middleware that hides it
		h.counts.Refused(http.StatusNotImplemented)
		h.log.Warn("websocket refused: the ResponseWriter cannot be hijacked", "proto", r.Proto)
		http.Error(w, http.StatusText(http.StatusNotImplemented), http.StatusNotImplemented)
		return
	}
	c := newConn(h)
	u := &upgrade{ResponseWriter: w, sock: c.sock}
	u.admit = func() *refusal {
		c.batches = u.Header().Get("Sec-Websocket-Protocol") != ""
		return h.admit(c, r)
	}
	upgraded := false
	defer func() { // Authenticate may panic
		if !upgraded {
			c.abandon()
		}
	}()
	ws, err := websocket.Accept(u, r, &websocket.AcceptOptions{
		Subprotocols:   []string{batchProtocol},
		OriginPatterns: h.cfg.OriginPatterns,
		OnPingReceived: c.pinged,
		OnPongReceived: c.ponged,
	})
	switch {
	case u.refusal != nil:
		h.log.Debug("websocket refused", "remote", r.RemoteAddr, "user", c.user, "status", u.refusal.status, "error", u.refusal.err)
		h.counts.Refused(u.refusal.status)
		u.clear()
		http.Error(w, u.refusal.text(), u.refusal.status)
		return
	case err != nil: // Accept has answered
		h.log.Debug("websocket refused", "remote", r.RemoteAddr, "user", c.user, "status", u.status, "error", err)
		if u.status == http.StatusForbidden {
			h.counts.Origin.Add(1)
		} else {
			h.counts.Refused(u.status)
		}
		return
	}
	upgraded = true
	ws.SetReadLimit(-1) // the socket sees to it
	c.ws = ws
	if !h.door.Connected(c) {
		c.end(endGoingAway)
	}
	// Owned by h. It ends when the peer goes or c.end is called, at the latest
	// closeTimeout after that, and Shutdown waits for it.
	go c.run()
}

// refuseBody answers a handshake with a body. net/http would read the body
// before it goes on, for as long as the peer likes.
func (h *Handler) refuseBody(w http.ResponseWriter) {
	h.counts.Refused(http.StatusBadRequest)
	_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // one that cannot has no socket to hold
	w.Header().Set("Connection", "close")
	http.Error(w, "a handshake has no body", http.StatusBadRequest)
}

// refuseVersion answers a handshake of a version that is not ours, as RFC 6455,
// 4.4 has it. (The library says 400.)
func (h *Handler) refuseVersion(w http.ResponseWriter) {
	h.counts.Refused(http.StatusUpgradeRequired)
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "websocket")
	w.Header().Set("Sec-WebSocket-Version", "13")
	http.Error(w, "the version of the WebSocket protocol is 13", http.StatusUpgradeRequired)
}

// Shutdown refuses new connections and closes the others with 1001, spread
// evenly over three quarters of the time until ctx's deadline, or 10 s if it has
// none, so that the clients do not all come back at once. It returns nil as soon
// as all are gone. If ctx ends first it cuts the rest and returns ctx's error.
//
// Call it between the Shutdown of the Broker and that of the Gateway: while the
// Gateway lives, the connections that wait for their turn are still served.
// http.Server.Shutdown knows nothing of WebSockets and does not do this.
func (h *Handler) Shutdown(ctx context.Context) error {
	return h.door.Shutdown(ctx, func(c *conn, by time.Time) {
		end := *endGoingAway
		end.by = by
		c.end(&end)
	}, func(c *conn) { _ = c.sock.Close() })
}
