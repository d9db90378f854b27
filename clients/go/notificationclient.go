// Package notificationclient receives the notifications of an exchange over a
// WebSocket that may break at any time, each exactly once.
//
// A [Client] connects to a server of package wsgateway, hands over what arrives,
// and reconnects behind the last batch that was dealt with. What it is given are
// callbacks: one that takes a batch, and one that loads a snapshot when the stream
// begins anew.
//
// [New] makes a Client of a [Config]. [Client.Run] blocks: it connects, and comes back
// however often the connection breaks, until [Client.Shutdown], the end of its context,
// or a reason that no retry helps against, which it returns as a [*StopError].
//
// # Order
//
// OnNotifications, Snapshot, OnCursor and OnState are called one at a time, by the
// goroutine in Run, in the order in which the server said what leads to them. Only
// Credentials may be called meanwhile, by another goroutine, because credentials
// expire whatever else goes on.
//
// # What is promised
//
// While the client lives each notification is handed over once, in the order of
// its lane, with no hole: a batch is dealt with before its cursor is kept, and the
// next connection says that cursor. Whenever the server cannot go on there,
// Snapshot is called before anything that follows is handed over. Across a crash
// it is at least once, from the cursor that was stored last; exactly once if
// [Batch.Cursor] is stored together with what the batch led to.
//
// # Goroutines
//
// Run owns them all: one reads each connection, one more runs while credentials
// are renewed. When Run has returned they are gone. No callback runs under a lock.
package notificationclient

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/qaexchange/notification"
)

// Config configures a Client. URL and OnNotifications are required; zero is the
// default for the others, negative is invalid.
type Config struct {
	// URL is where to connect: ws, wss, http or https. The client adds cursor,
	// channels and ticket to its query, in place of those that are there.
	URL string
	// Credentials tells what to show. It is asked before each attempt, because a
	// ticket is good for one, and when the server says that they are about to
	// expire. An error stops the client; ctx ends with Shutdown. Nil: nothing is
	// shown but Header, and what the Jar of HTTPClient has.
	Credentials func(ctx context.Context, why Why) (Credentials, error)
	// Header is sent with each handshake.
	Header http.Header
	// HTTPClient makes the handshake; nil is http.DefaultClient. Its Transport
	// must speak HTTP/1.1, as net/http's does. It is copied, without its
	// CheckRedirect: a redirect is not followed, and is a failed attempt.
	HTTPClient *http.Client
	// Channels are what is wanted; nil: all, empty: none. See Client.Subscribe.
	Channels []notification.Channel

	// OnNotifications deals with a batch, which it may keep. An error stops the
	// client with its cursor before the batch. As long as it does not return the
	// client reads on, up to 10,000 notifications.
	OnNotifications func(ctx context.Context, batch Batch) error
	// Snapshot loads what the stream builds on, anew each time: see docs/snapshots.md.
	// What follows is handed over when it has returned, to be applied on top. An
	// error stops the client. ctx ends, with the reason as its cause, when the
	// snapshot is of no use any more: the connection was lost, or more than 10,000
	// notifications came meanwhile. Then its error is ignored, and it is called
	// again after the next welcome. Nil: there is nothing to load, and a loss does
	// not matter to what has come.
	Snapshot func(ctx context.Context, reason SnapshotReason) error
	// OnState is told each change of state, once. It should not block; nil: nobody is.
	OnState func(State)

	// Cursor is where to begin, as stored earlier. Empty: from now, with a snapshot.
	Cursor string
	// OnCursor is told each new cursor, to be stored for the next run: after
	// OnNotifications has returned, after Snapshot, and when the server says it
	// while nothing happens. Empty: the one stored must be dropped. It is called for
	// each batch, so it should be quick; nil: nobody is told.
	OnCursor func(cursor string)

	// The time before the n-th attempt after a loss, from 0, is drawn evenly from
	// [0, min(BackoffCap, BackoffBase × 2ⁿ)]; defaults 0.5 s and 30 s. A connection
	// that has lived for StableAfter, default 1 minute, sets n back to 0.
	BackoffBase, BackoffCap, StableAfter time.Duration
	// WatchdogFactor times the server's heartbeat interval is how long nothing may
	// arrive before the connection counts as lost, though it looks open; default
	// 2.5, at least 1. Pings and pongs are nothing: they may be a proxy's.
	WatchdogFactor float64
	// ConnectTimeout is how long the handshake may take, and then the welcome;
	// default 20 s each.
	ConnectTimeout time.Duration
}

// maxHeld is how many notifications may wait for a callback to return. With more
// the client reads on when there is room again; but a snapshot that takes so long
// is given up, and so is the connection.
const maxHeld = 10_000

func (c *Config) setDefaults() error {
	c.Header = c.Header.Clone()
	c.Channels = slices.Clone(c.Channels)
	// A redirect would take the credentials wherever an answer says. No browser
	// follows one here either.
	once := *cmp.Or(c.HTTPClient, http.DefaultClient)
	once.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.HTTPClient = &once
	c.BackoffBase = cmp.Or(c.BackoffBase, 500*time.Millisecond)
	c.BackoffCap = cmp.Or(c.BackoffCap, 30*time.Second)
	c.StableAfter = cmp.Or(c.StableAfter, time.Minute)
	c.WatchdogFactor = cmp.Or(c.WatchdogFactor, 2.5)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 20*time.Second)
	if c.Credentials == nil {
		c.Credentials = func(context.Context, Why) (Credentials, error) { return Credentials{}, nil }
	}
	if c.OnState == nil {
		c.OnState = func(State) {}
	}
	if c.OnCursor == nil {
		c.OnCursor = func(string) {}
	}
	if c.OnNotifications == nil {
		return fmt.Errorf("%w: Config.OnNotifications is nil", notification.ErrInvalid)
	}
	if err := checkChannels(c.Channels); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"BackoffBase", c.BackoffBase}, {"BackoffCap", c.BackoffCap},
		{"StableAfter", c.StableAfter}, {"ConnectTimeout", c.ConnectTimeout},
	} {
		if f.value < 0 {
			return fmt.Errorf("%w: Config.%s %s is negative", notification.ErrInvalid, f.name, f.value)
		}
	}
	if !(c.WatchdogFactor >= 1) || math.IsInf(c.WatchdogFactor, 0) {
		return fmt.Errorf("%w: Config.WatchdogFactor %v is no number from 1", notification.ErrInvalid, c.WatchdogFactor)
	}
	return nil
}

// parseURL returns where to connect. The error does not quote the URL, which may
// hold a password.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: Config.URL is no URL", notification.ErrInvalid)
	case !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme):
		return nil, fmt.Errorf("%w: Config.URL has the scheme %q, and not ws, wss, http or https", notification.ErrInvalid, u.Scheme)
	case u.Host == "":
		return nil, fmt.Errorf("%w: Config.URL has no host", notification.ErrInvalid)
	}
	return u, nil
}

// Why the credentials are asked for.
type Why string

// The values of Why.
const (
	WhyStart    Why = "start"    // to connect, the first time or again
	WhyExpiring Why = "expiring" // those shown are about to expire
	WhyRefused  Why = "refused"  // those shown were refused or have expired
)

// Credentials are what the client shows: a ticket or a token, not both. The zero
// value is nothing, which leaves it to cookies.
type Credentials struct {
	Ticket string // good for one connection; it stands in the URL
	Token  string // "Authorization: Bearer …", never in the URL
}

// A SnapshotReason tells why a snapshot must be loaded.
type SnapshotReason string

// The values of SnapshotReason.
const (
	SnapshotStart      SnapshotReason = "start"       // the client begins without a cursor
	SnapshotCursorGone SnapshotReason = "cursor_gone" // what is behind the cursor is no longer there
	SnapshotGap        SnapshotReason = "gap"         // notifications were, or may have been, lost
)

// A Client is one subscriber. New makes one. All methods may be called at any
// time, any number of times, from any goroutine, but for what Shutdown says.
type Client struct {
	// immutable after New
	cfg     Config
	url     *url.URL
	random  func() float64 // uniform in [0, 1); replaced by tests
	stopped chan struct{}  // closed when Run has returned
	turn    chan struct{}  // capacity 1: who fills it may tell the server the channels

	mu       sync.Mutex             // a leaf
	begun    bool                   // guarded by mu: Run was called
	shutting bool                   // guarded by mu: Shutdown was called
	stop     context.CancelFunc     // guarded by mu: ends the waiting of Run
	cut      context.CancelFunc     // guarded by mu: ends the callback that runs, too
	state    State                  // guarded by mu
	cursor   string                 // guarded by mu; written by Run
	channels []notification.Channel // guarded by mu, replaced as a whole; nil: all
	current  *conn                  // guarded by mu: takes commands; nil: there is none
	renewed  *Credentials           // guarded by mu: for the next attempt; nil: ask

	renewedAt time.Time // guarded by mu: when credentials that were expiring were asked for last

	// owned by Run
	owed    SnapshotReason // a snapshot that must be loaded before anything else; "": none
	known   bool           // a server has welcomed this client before
	refused bool           // the credentials were refused, and there was no welcome since
}

// New returns a Client that begins with Run. A value of cfg that cannot be is
// notification.ErrInvalid, and the error names the field.
func New(cfg Config) (*Client, error) {
	u, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Client{
		cfg: cfg, url: u, random: rand.Float64, cursor: cfg.Cursor, channels: cfg.Channels,
		stopped: make(chan struct{}), turn: make(chan struct{}, 1),
	}, nil
}

// Run connects, and reconnects, until it is stopped. It returns nil after
// Shutdown; the cause of ctx if that ends, which also ends the context of the
// callback that runs, and is waited for; else a *[StopError]. A second Run is
// notification.ErrRunning, one after Shutdown notification.ErrClosed.
func (c *Client) Run(ctx context.Context) error {
	hard, cut := context.WithCancel(ctx)
	defer cut()
	soft, stop := context.WithCancel(hard)
	defer stop()
	c.mu.Lock()
	switch {
	case c.begun:
		c.mu.Unlock()
		return fmt.Errorf("%w: Client.Run", notification.ErrRunning)
	case c.shutting:
		c.mu.Unlock()
		return fmt.Errorf("%w: Client.Run after Shutdown", notification.ErrClosed)
	}
	c.begun, c.stop, c.cut = true, stop, cut
	c.mu.Unlock()
	defer close(c.stopped)

	stopped := c.loop(soft, hard)
	c.setState(State{Status: StatusStopped, Reason: stopped.Reason, Code: stopped.Code, Err: stopped.Err})
	if stopped.Reason != ReasonClosed {
		return stopped
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Shutdown ends Run: the callback that runs is waited for, none begins after it but
// OnCursor and OnState, and the connection is closed with 1000. It returns nil when
// Run has returned. If ctx ends first, the callback's context ends, the connection is
// cut, and Shutdown returns ctx's error at once. Before Run there is nothing to end.
//
// It waits for the callbacks, so they must not wait for it: OnNotifications and
// Snapshot return an error instead.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.shutting = true
	begun, stop, cut := c.begun, c.stop, c.cut
	c.mu.Unlock()
	if !begun {
		return nil
	}
	stop()
	select {
	case <-c.stopped:
		return nil
	case <-ctx.Done():
		cut()
		return ctx.Err()
	}
}

// State returns what OnState was told last; its zero value before Run.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Cursor returns the place behind the last batch that was dealt with: what OnCursor
// was told last, or Config.Cursor.
func (c *Client) Cursor() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cursor
}

// setState is called by Run alone.
func (c *Client) setState(s State) {
	c.mu.Lock()
	c.state = s
	c.mu.Unlock()
	c.cfg.OnState(s)
}

// keep makes cursor the one that the next connection says. It is called by Run
// alone.
func (c *Client) keep(cursor string) {
	c.mu.Lock()
	same := c.cursor == cursor
	c.cursor = cursor
	c.mu.Unlock()
	if !same {
		c.cfg.OnCursor(cursor)
	}
}
