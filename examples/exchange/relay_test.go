package main

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	devtools "github.com/chromedp/cdproto/page"
)

// A relay is what stands between a browser and the server. It passes on what either
// of them says, or swallows it: then nothing tells them that the other is gone, for
// their connections stay open, and new ones are accepted.
type relay struct {
	addr string

	server  string // immutable
	running sync.WaitGroup

	missed chan struct{} // has one when somebody connected and spoke in vain

	mu     sync.Mutex
	deaf   bool              // guarded by mu: new connections are swallowed
	ended  bool              // guarded by mu
	relays map[*relayed]bool // guarded by mu
}

// A relayed connection that has lost one byte passes on none any more.
type relayed struct {
	browser, server net.Conn
	missed          chan struct{} // of the relay, if it was deaf from the beginning

	mu   sync.Mutex
	deaf bool // guarded by mu
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), server: server, missed: make(chan struct{}, 1), relays: map[*relayed]bool{}}
	r.running.Go(func() { // ends with the listener
		for {
			browser, err := l.Accept()
			if err != nil {
				return
			}
			r.running.Go(func() { r.relay(browser) })
		}
	})
	t.Cleanup(func() {
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		l.Close()
		r.hangUp()
		r.running.Wait()
	})
	return r
}

// relay returns when both have hung up.
func (r *relay) relay(browser net.Conn) {
	defer browser.Close()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer server.Close()
	c := &relayed{browser: browser, server: server}
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return
	}
	if r.deaf {
		c.deaf, c.missed = true, r.missed
	}
	r.relays[c] = true
	r.mu.Unlock()
	var way sync.WaitGroup
	way.Go(func() { c.pass(server, browser) })
	way.Go(func() { c.pass(browser, server) })
	way.Wait()
	r.mu.Lock()
	delete(r.relays, c)
	r.mu.Unlock()
}

// pass returns when from has hung up, and tells it to, unless it swallows.
func (c *relayed) pass(to, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		c.mu.Lock()
		if c.missed != nil && n > 0 {
			select {
			case c.missed <- struct{}{}:
			default:
			}
		}
		if !c.deaf {
			if err == nil {
				_, err = to.Write(b[:n])
			}
			if err != nil {
				to.Close()
			}
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// swallow has every byte swallowed that comes from now on.
func (r *relay) swallow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaf = true
	for c := range r.relays {
		c.mu.Lock()
		c.deaf = true
		c.mu.Unlock()
	}
}

// pass has new connections passed on.
func (r *relay) pass() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaf = false
}

// hangUp closes the connections that there are.
func (r *relay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.relays {
		c.browser.Close()
		c.server.Close()
	}
}

// For the page, before any script of its own: seen.green is for how long it was
// "live" after the last byte, in milliseconds, and seen.long whether that was too
// long. What is too long is measured by timers that are set after the page's own for
// the same message and so run after them, however busy the machine is. As the client
// they give it a moment when they are late.
const silence = `
const seen = window.seen = { heard: 0, green: 0, long: false };
{
	const live = () => document.body?.dataset.connection === "live";
	let last, timer, green = false;
	const heard = () => {
		last = performance.now();
		seen.heard++;
		clearTimeout(timer);
		const wait = ([ms, ...more]) => timer = setTimeout(() => {
			if (more.length) wait(more);
			else if (live()) seen.long = true;
		}, ms);
		wait([0, 2.5 * 20_000, 1_000, 1_000]);
	};
	const listened = (base, ...types) => class extends base {
		constructor(...args) {
			super(...args);
			for (const type of types) this.addEventListener(type, heard);
		}
	};
	WebSocket = listened(WebSocket, "message");
	EventSource = listened(EventSource, "message", "welcome", "reset", "live", "heartbeat");
	addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
		if (!live() && green) seen.green = performance.now() - last;
		green = live();
	}).observe(document.body, { attributes: true }));
}`

// TestSilence has every byte swallowed while the page is live: nothing tells it but
// the time.
func TestSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("a page that hears nothing takes 50 s to say so")
	}
	ctx := browse(t)
	_, web, stop := market(t, 20, 40)
	defer stop()
	type connected struct {
		ctx   context.Context
		query string
		relay *relay
	}
	pages := map[string]connected{
		"over a WebSocket":        {ctx, "?lang=en", newRelay(t, web.addr)},
		"over server-sent events": {profile(t, ctx), "?lang=en&events", newRelay(t, web.addr)},
	}
	defer func() {
		for _, p := range pages {
			p.relay.pass()
		}
	}()
	for _, p := range pages {
		call(t, p.ctx, devtools.AddScriptToEvaluateOnNewDocument, devtools.AddScriptToEvaluateOnNewDocumentParams{Source: silence})
		do(t, p.ctx, signInAt(p.relay.addr, p.query, "u00003"), until(liveFeed), until(`window.seen.heard > 3`))
	}
	for _, p := range pages {
		p.relay.swallow()
	}
	for name, p := range pages {
		t.Run(name+" it is not live for longer than 2.5 heartbeats", func(t *testing.T) {
			do(t, p.ctx, until(`window.seen.long || document.body.dataset.connection !== "live"`))
			if value[bool](t, p.ctx, `window.seen.long`) {
				t.Error("it is live")
			}
			t.Logf("%.1f s after the last byte", value[float64](t, p.ctx, `window.seen.green`)/1000)
		})
	}
	for name, p := range pages {
		t.Run(name+" it comes back after it has tried in vain, with nothing missing", func(t *testing.T) {
			select {
			case <-p.relay.missed:
			case <-time.After(patience):
				t.Fatal("it has not tried")
			}
			p.relay.pass()
			do(t, p.ctx, until(liveFeed), until(`document.getElementById("verdict").dataset.whole === "true"`))
			t.Log(value[string](t, p.ctx, `document.getElementById("verdict").textContent`))
		})
	}
}
