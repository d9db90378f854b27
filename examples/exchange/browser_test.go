package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/internal/browser"
)

// browse starts a browser without a window, or skips the test, and returns its
// first tab. The browser ends with the test.
func browse(t *testing.T) context.Context {
	t.Helper()
	return tab(t, browser.Start(t, chromedp.WindowSize(1440, 1100)))
}

// tab opens another tab of the browser of ctx, in a window of its own, with the
// same cookies and storage.
func tab(t *testing.T, ctx context.Context, options ...chromedp.ContextOption) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(ctx, append(options, complaints(t))...)
	t.Cleanup(cancel)
	do(t, ctx)
	return ctx
}

// profile opens a tab with cookies and storage of its own, as another person has.
func profile(t *testing.T, ctx context.Context) context.Context {
	t.Helper()
	return tab(t, ctx, chromedp.WithNewBrowserContext())
}

// What the browser reports as an error, and the page expects and handles: it asks
// who it is before the sign-in (401), is refused, and loses the exchange.
var expected = []string{
	" 401", " 403", " 429", " 502", " 503",
	"ERR_CONNECTION_", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_SOCKET_NOT_CONNECTED",
	"Connection closed before receiving a handshake response",
}

// complaints has the test fail if a tab reports any other error, a violation of the
// page's policy among them.
func complaints(t *testing.T) chromedp.ContextOption {
	var mu sync.Mutex
	var all []string
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, text := range all {
			t.Error("the browser says:", text)
		}
	})
	return chromedp.WithListener(func(e any) {
		var text string
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			text = e.ExceptionDetails.Text
			if e.ExceptionDetails.Exception != nil {
				text += " " + e.ExceptionDetails.Exception.Description
			}
		case *log.EventEntryAdded:
			in := func(s string) bool { return strings.Contains(e.Entry.Text, s) }
			if e.Entry.Level == log.EntryLevelError && !slices.ContainsFunc(expected, in) {
				text = e.Entry.Text + " " + e.Entry.URL
			}
		}
		if text != "" {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, text)
		}
	})
}

type step = chromedp.Action[chromedp.Void]

// do takes steps in a tab.
func do(t *testing.T, ctx context.Context, steps ...step) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// until waits for a JavaScript expression to be true.
func until(expression string) step {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		poll := chromedp.Poll[bool](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(patience))
		_, err := poll(ctx, target)
		if err == nil {
			return nil
		}
		state, _ := chromedp.Evaluate[string](`document.body.dataset.connection + ": " + document.body.innerText.slice(0, 2000)`)(ctx, target)
		return fmt.Errorf("waiting for %s: %w\n%s", expression, err, state)
	})
}

// click is the script's click: the element need not be in sight.
func click(selector string) step {
	return chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector(%q).click()", selector))
}

// value is what an expression evaluates to.
func value[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatal(expression, err)
	}
	return v
}

// market is an exchange with a page and traffic, until stop.
func market(t *testing.T, users int, rate float64) (x *exchange, web *server, stop func()) {
	t.Helper()
	x = inMemory(t, users, notification.BrokerConfig{}, options{addr: "yes"}.gatewayConfig(nil))
	web, err := newServer(x, newSigner(), options{addr: "127.0.0.1:0"}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	web.tellTime = patience // the page may be slow to ask
	ctx, cancel := context.WithCancel(context.Background())
	d := &driver{done: make(chan struct{})}
	e := newEngine(users, 1, newBurst(x))
	go d.run(func() time.Duration { return e.run(ctx, rate) })
	watched := make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(watched)
		watch(ctx, x, d, web, newScreen(t.Output()))
	}()
	return x, web, func() {
		cancel()
		<-watched
		<-d.done
		web.drain()
		end, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// As web.hangUp, but a page may be slow to answer.
		hangUp := func(context.Context) error {
			return errors.Join(web.web.Shutdown(context.Background()), web.events.Shutdown(context.Background()))
		}
		if err := x.drain(end, hangUp); err != nil {
			t.Error(err)
		}
		rows, mismatches := x.final(x.snapshot(), true, 0)
		if len(mismatches) > 0 {
			t.Error(mismatches)
		}
		if err := web.close(end, rows, "The end."); err != nil {
			t.Error(err)
		}
	}
}

const liveFeed = `document.body.dataset.connection === "live" && document.querySelectorAll("#feed li[data-id]").length >= 3`

func signIn(web *server, user string) step { return signInAt(web.addr, "?lang=en", user) }

// signInAt is for a page with a query of its own, or seen through a relay.
func signInAt(addr, query, user string) step {
	return chromedp.Steps(
		chromedp.Navigate("http://"+addr+"/"+query),
		until(`!document.getElementById("sign-in").hidden`),
		enterAs(user),
	)
}

// enterAs fills in the form of the sign-in and sends it.
func enterAs(user string) step {
	return chromedp.Steps(
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.getElementById('name').value = %q", user)),
		click("#sign-in button"),
	)
}

// scheme has the system prefer "light" or "dark", and that nothing moves.
func scheme(name string) step {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: name},
				{Name: "prefers-reduced-motion", Value: "reduce"},
			},
		})
		return err
	})
}

// themed waits until the page has followed the system's scheme.
func themed(name string) step {
	return until(fmt.Sprintf(`document.documentElement.dataset.theme === %q`, name))
}

// speak has the page in a language.
func speak(code string) step {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		spoken := fmt.Sprintf(`document.documentElement.lang.startsWith(%q)`, code)
		if is, err := chromedp.Evaluate[bool](spoken)(ctx, target); err != nil || is {
			return err
		}
		return chromedp.Do(ctx, click("#language"), until(spoken))
	})
}

// phone makes the tab as wide as one, until chromedp.ResetViewport.
func phone() step {
	return chromedp.Steps(chromedp.EmulateViewport(375, 800, chromedp.EmulateScale(2)), until(`innerWidth === 375`))
}

// call is one of the DevTools protocol.
func call[P, R any](t *testing.T, ctx context.Context, command cdp.Command[P, R], params P) R {
	t.Helper()
	r, err := chromedp.Run(ctx, func(ctx context.Context, target *chromedp.Target) (R, error) {
		return cdp.Call(ctx, target, command, params)
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
