package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	notificationclient "github.com/qaexchange/notification/clients/go"
	"github.com/qaexchange/notification/wsgateway"
)

const (
	flakyTick = 10 * time.Millisecond
	flakyStay = 10 * time.Second // how long somebody stays connected, on average
	flakyAway = 3 * time.Second  // and is without a network at most
)

// A flock is the share of the members who have their notifications over WebSockets
// that keep breaking, from the client of this library. Each comes back behind its
// cursor and must then have seen everything: its numbers tell.
type flock struct {
	// immutable after newFlock
	birds   []*bird
	tokens  map[string]string // the member's ID of each
	web     *wsgateway.Handler
	http    *http.Server
	url     string
	stop    context.CancelFunc // ends the clients
	running sync.WaitGroup     // they, and the server
	rnd     *mathrand.Rand     // owned by run
	done    chan struct{}      // closed by run

	live        atomic.Int64
	changed     chan struct{} // capacity 1, rung when live has changed
	whole, gone atomic.Uint64 // times that somebody came back
}

// A bird is one of them.
type bird struct {
	f      *flock
	member *member
	token  string
	line   line
	net    *notificationclient.Client

	// owned by the client's Run
	begun, reset, isLive bool
}

// A line is somebody's network.
type line struct {
	mu    sync.Mutex
	conn  net.Conn  // guarded by mu: that was made last; nil once it was cut
	until time.Time // guarded by mu: there is no network until then
}

var errNoNetwork = errors.New("no network")

func (l *line) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	l.mu.Lock()
	down := time.Now().Before(l.until)
	l.mu.Unlock()
	if down {
		return nil, errNoNetwork
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.until) { // cut meanwhile
		c.Close()
		return nil, errNoNetwork
	}
	l.conn = c
	return c, nil
}

// cut takes the network away for a while.
func (l *line) cut(away time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Now().Add(away)
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// mend gives it back.
func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
}

// up reports whether there is a connection that was not cut.
func (l *line) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// newFlock lets the first members go on over WebSockets, from where they are. close
// ends that.
func newFlock(x *exchange, share float64, seed uint64) (*flock, error) {
	f := &flock{
		rnd: mathrand.New(mathrand.NewPCG(seed, 0xf1a)), tokens: make(map[string]string),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	var err error
	if f.web, err = wsgateway.New(x.bus, wsgateway.Config{Authenticate: f.authenticate}); err != nil {
		return nil, err
	}
	members := x.members[:int(share*float64(len(x.members)))]
	for _, m := range members {
		b := &bird{f: f, member: m, token: rand.Text()}
		f.birds = append(f.birds, b)
		f.tokens[b.token] = m.id
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	if len(members) == 0 {
		return f, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f.url = "ws://" + l.Addr().String()
	f.http = &http.Server{Handler: f.web, ReadHeaderTimeout: 5 * time.Second}
	f.running.Go(func() { f.http.Serve(l) }) // ends with close
	for _, b := range f.birds {
		if err := b.fly(ctx); err != nil {
			stop()
			return nil, errors.Join(err, f.close(ctx))
		}
	}
	return f, nil
}

func (f *flock) authenticate(r *http.Request) (wsgateway.Identity, error) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	id, ok := f.tokens[token]
	if !ok {
		return wsgateway.Identity{}, errToken
	}
	return wsgateway.Identity{UserID: id}, nil
}

// fly ends the member's session in this process and goes on over a WebSocket.
func (b *bird) fly(ctx context.Context) error {
	session := b.member.client.session
	session.Close()
	<-session.Done() // soon: the client's Push does not block
	var err error
	b.net, err = notificationclient.New(notificationclient.Config{
		URL: b.f.url,
		Credentials: func(context.Context, notificationclient.Why) (notificationclient.Credentials, error) {
			return notificationclient.Credentials{Token: b.token}, nil
		},
		HTTPClient:      &http.Client{Transport: &http.Transport{DialContext: b.line.dial, DisableKeepAlives: true}},
		Cursor:          session.Cursor().String(),
		OnNotifications: b.take,
		Snapshot:        b.load,
		OnState:         b.change,
		BackoffBase:     50 * time.Millisecond,
		BackoffCap:      500 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	b.f.running.Go(func() { b.net.Run(ctx) }) // ends with close
	return nil
}

func (b *bird) take(_ context.Context, batch notificationclient.Batch) error {
	for i := range batch.Notifications {
		n := &batch.Notifications[i]
		b.member.client.take(&n.Notification, len(n.Raw))
	}
	return nil
}

// load is where a real client loads a snapshot. What this one has missed is lost to
// it, and the table says so.
func (b *bird) load(context.Context, notificationclient.SnapshotReason) error {
	b.reset = true
	b.f.gone.Add(1)
	b.member.client.restart()
	return nil
}

func (b *bird) change(s notificationclient.State) {
	live := s.Status == notificationclient.StatusLive
	switch {
	case live && !b.isLive:
		if b.begun && !b.reset {
			b.f.whole.Add(1)
		}
		b.begun, b.reset = true, false
		b.f.live.Add(1)
	case !live && b.isLive:
		b.f.live.Add(-1)
	}
	b.isLive = live
	select {
	case b.f.changed <- struct{}{}:
	default:
	}
}

// run cuts lines until ctx ends.
func (f *flock) run(ctx context.Context) {
	defer close(f.done)
	tick := time.NewTicker(flakyTick)
	defer tick.Stop()
	owed := 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for owed += float64(len(f.birds)) * float64(flakyTick) / float64(flakyStay); owed >= 1; owed-- {
				f.birds[f.rnd.IntN(len(f.birds))].line.cut(time.Duration(f.rnd.Int64N(int64(flakyAway))))
			}
		}
	}
}

// home mends all lines, once run has ended, and waits until everybody is back and has
// what was missed. Of a line that was cut a moment ago neither its client nor the
// server may know yet: the one would not come back in time, and the other loses what
// it sends there on the way down.
func (f *flock) home(ctx context.Context) error {
	for _, b := range f.birds {
		b.line.mend()
	}
	for _, b := range f.birds {
		if err := poll(ctx, b.line.up); err != nil {
			return err
		}
	}
	if err := f.await(ctx, len(f.birds)); err != nil {
		return err
	}
	return poll(ctx, func() bool { return f.web.Stats().Connections == len(f.birds) })
}

// poll waits for what has no channel to wait on.
func poll(ctx context.Context, holds func() bool) error {
	for !holds() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// close waits until everybody has had all that there was before the Gateway said that
// it goes away, and ends the clients and their server.
func (f *flock) close(ctx context.Context) error {
	err := f.await(ctx, 0)
	f.stop()
	if f.http != nil {
		err = errors.Join(err, f.web.Shutdown(ctx), f.http.Close())
	}
	f.running.Wait()
	return err
}

// await waits until so many are live.
func (f *flock) await(ctx context.Context, live int) error {
	for f.live.Load() != int64(live) {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d flaky users are connected, and not %d: %w", f.live.Load(), len(f.birds), live, ctx.Err())
		}
	}
	return nil
}
