package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
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
)

// browse starts a browser without a window, or skips the test. What it reports
// as an error, a violation of the page's policy among them, fails the test.
func browse(t *testing.T) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		t.Skip("there is no Chromium on this machine: apt-get install chromium")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(program), chromedp.WindowSize(1440, 1100), chromedp.WSURLReadTimeout(patience))
	if os.Geteuid() == 0 { // Chromium has no sandbox for root
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)

	var mu sync.Mutex
	var complaints []string
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(func(e any) {
		var text string
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			text = e.ExceptionDetails.Text
			if e.ExceptionDetails.Exception != nil {
				text += " " + e.ExceptionDetails.Exception.Description
			}
		case *log.EventEntryAdded:
			// Answers that the page expects, and handles: it asks who it is
			// before the sign-in (401), a sign-in is refused (403), and the
			// exchange is gone at the end.
			expected := func(s string) bool { return strings.Contains(e.Entry.Text, s) }
			if e.Entry.Level == log.EntryLevelError && !slices.ContainsFunc([]string{"401", "403", "ERR_CONNECTION_REFUSED"}, expected) {
				text = e.Entry.Text + " " + e.Entry.URL
			}
		}
		if text != "" {
			mu.Lock()
			defer mu.Unlock()
			complaints = append(complaints, text)
		}
	}))
	t.Cleanup(cancel)
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range complaints {
			t.Error("the browser says:", c)
		}
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

type step = chromedp.Action[chromedp.Void]

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
	web, err := newServer(x, newSigner(), "127.0.0.1:0", quiet)
	if err != nil {
		t.Fatal(err)
	}
	web.hangUpTime, web.tellTime = patience, patience // the page may be slow to answer, and to ask
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
		if err := x.drain(end, web.hangUp); err != nil {
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

func signIn(web *server, user string) step { return signInAt(web, "/?lang=en", user) }

func signInAt(web *server, page, user string) step {
	return chromedp.Steps(
		chromedp.Navigate("http://"+web.addr+page),
		until(`!document.getElementById("sign-in").hidden`),
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.getElementById('name').value = %q", user)),
		click("#sign-in button"),
	)
}

// TestPage needs real time and a real browser.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	x, web, stop := market(t, 20, 400)
	running := true
	defer func() {
		if running {
			stop()
		}
	}()
	do := func(t *testing.T, steps ...step) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatal(err)
		}
	}
	// The browser's session, beside the one in this process.
	session := func() *notification.Session {
		for s := range x.gateway().UserSessions("u00003") {
			if !strings.HasPrefix(s.ID(), "desk-") {
				return s
			}
		}
		return nil
	}

	t.Run("a user that does not exist is refused", func(t *testing.T) {
		do(t, signIn(web, "u99999"), until(`document.getElementById("sign-in-error").textContent !== ""`))
	})
	t.Run("signing in shows the user's notifications as they come", func(t *testing.T) {
		do(t, signIn(web, "u00003"), until(liveFeed), until(`!document.getElementById("sign-out").hidden`))
		for _, id := range value[[]string](t, ctx, `[...document.querySelectorAll("#feed li[data-id]")].map((e) => e.dataset.id)`) {
			if !strings.HasPrefix(id, "u00003-") && !strings.HasPrefix(id, "all-") {
				t.Errorf("somebody else's: %s", id)
			}
		}
	})
	t.Run("narrowing the channels narrows the session at the server, and widening it begins anew", func(t *testing.T) {
		only := `[...document.querySelectorAll("#channels input")].every((e) => !e.disabled && e.checked === (e.value !== "trade" && e.value !== "account"))`
		do(t, click(`#channels input[value=trade]`), until(`!document.querySelector("#channels input").disabled`),
			click(`#channels input[value=account]`), until(only))
		want := []notification.Channel{notification.ChannelPosition, notification.ChannelRisk, notification.ChannelSystem}
		if got := session().Subscriptions(); !slices.Equal(got, want) {
			t.Errorf("the session has %v", got)
		}
		do(t, chromedp.Evaluate[chromedp.Void](`window.before = document.querySelector("#feed li[data-id]"), true`),
			until(`[...document.querySelectorAll("#feed li[data-id]")].indexOf(window.before) >= 3`))
		if others := value[int](t, ctx, `[...document.querySelectorAll("#feed li[data-id]")].slice(0, 3).filter((e) => /-(trade|account)-/.test(e.dataset.id)).length`); others > 0 {
			t.Errorf("%d of the last three were of other channels", others)
		}
	})
	t.Run("a P0 arrives at once and is announced", func(t *testing.T) {
		do(t, click("#margin-call"), until(`document.querySelector("#feed li.p0[data-type=margin_call]") !== null`),
			until(`document.getElementById("urgent").textContent !== ""`))
	})
	t.Run("a market halt reaches everybody", func(t *testing.T) {
		do(t, click("#halt"), until(`[...document.querySelectorAll("#feed li[data-type=market_halt]")].some((e) => e.innerText.includes("u00003"))`))
	})
	t.Run("a cut connection resumes behind its cursor with nothing missing, still narrowed", func(t *testing.T) {
		do(t, click("#cut"), until(`document.body.dataset.connection === "cut"`),
			until(`document.getElementById("verdict").dataset.whole !== ""`))
		verdict := value[string](t, ctx, `document.getElementById("verdict").textContent`)
		if !strings.Contains(verdict, "each once and in order") || strings.Contains(verdict, " all 0 ") {
			t.Error(verdict)
		}
		if got := session().Subscriptions(); len(got) != 3 {
			t.Errorf("the session has %v", got)
		}
		t.Log(verdict)
	})
	t.Run("all channels again, and again a cut without a gap", func(t *testing.T) {
		do(t, click(`#channels input[value=trade]`), until(`!document.querySelector("#channels input").disabled`),
			click(`#channels input[value=account]`), until(`[...document.querySelectorAll("#channels input")].every((e) => !e.disabled && e.checked)`),
			until(`document.querySelector("#feed li[data-type=account_update]") !== null`))
		do(t, click("#cut"), until(`document.body.dataset.connection === "cut"`),
			until(`document.getElementById("verdict").dataset.whole === "true"`))
		t.Log(value[string](t, ctx, `document.getElementById("verdict").textContent`))
	})
	t.Run("a page whose user has signed in as somebody else, in another tab, is that one's from the next connection on", func(t *testing.T) {
		do(t, chromedp.Evaluate[chromedp.Void](`fetch("api/session", { method: "POST", body: JSON.stringify({ user: "u00004" }) }).then((a) => { window.changed = a.ok; }), 0`),
			until(`window.changed`), click("#cut"), until(`document.getElementById("user").textContent === "u00004"`), until(liveFeed))
		if others := value[int](t, ctx, `[...document.querySelectorAll("#feed li[data-id]")].filter((e) => !/^(u00004|all)-/.test(e.dataset.id)).length`); others > 0 {
			t.Errorf("%d are not u00004's", others)
		}
	})
	t.Run("the check would have found something missing, and something twice", func(t *testing.T) {
		do(t, chromedp.Evaluate[chromedp.Void](`(async () => {
			const { Audit } = await import("/audit.js");
			const found = (floor, ...ids) => {
				const a = new Audit();
				a.settle({ "u-trade-P1": floor, "all-system-P3": 0 }, new Set(["trade", "system"]));
				for (const id of ids) a.take(id);
				return a.missing + "/" + a.twice;
			};
			window.found = [
				found(5, "u-trade-P1-4", "u-trade-P1-5", "all-system-P3-1", "u-trade-P1-6"), // some came before we asked
				found(5, "u-trade-P1-6", "u-trade-P1-8"),
				found(5, "u-trade-P1-8"),
				found(5, "u-trade-P1-6", "all-system-P3-1", "u-trade-P1-6", "all-system-P3-3"),
			].join(" ");
		})()`), until(`window.found === "0/0 1/0 2/0 1/1"`))
	})
	t.Run("the numbers of all streams were consecutive", func(t *testing.T) {
		text := value[string](t, ctx, `document.getElementById("integrity").textContent`)
		if !strings.Contains(text, "none missing, none twice") {
			t.Error(text)
		}
		t.Log(text)
	})
	t.Run("the plots and the table have something to show", func(t *testing.T) {
		do(t, until(`document.querySelectorAll("#latency path").length >= 8 && document.querySelectorAll("#lanes tr").length === 4`))
	})
	t.Run("it speaks Chinese, and is dark on demand", func(t *testing.T) {
		do(t, click("#language"), until(`document.documentElement.lang === "zh-CN" && document.title === "交易所通知" && location.search === "?lang=zh"`),
			click("#theme"), until(`["dark", "light"].includes(localStorage.getItem("theme"))`),
			click("#language"), until(`document.documentElement.lang === "en"`))
	})
	t.Run("it fits a phone", func(t *testing.T) {
		do(t, chromedp.EmulateViewport(375, 800, chromedp.EmulateScale(2)), until(`innerWidth === 375`))
		if width := value[int](t, ctx, `document.documentElement.scrollWidth`); width > 375 {
			t.Errorf("it is %d wide", width)
		}
		if path := os.Getenv("EXCHANGE_SCREENSHOT_PHONE"); path != "" {
			shoot(t, ctx, path)
		}
		do(t, chromedp.ResetViewport())
	})
	t.Run("at the end it shows the final table", func(t *testing.T) {
		running = false
		stop()
		do(t, until(`document.getElementById("table-title").textContent === "Final" && document.getElementById("final").textContent === "The end."`))
	})
}

// TestScreenshot writes the picture for the README, and only if it is told
// where to: EXCHANGE_SCREENSHOT=screenshot.png go test -run Screenshot
func TestScreenshot(t *testing.T) {
	path := os.Getenv("EXCHANGE_SCREENSHOT")
	if path == "" {
		t.Skip("EXCHANGE_SCREENSHOT does not name a file")
	}
	ctx := browse(t)
	_, web, stop := market(t, 1_000, 2_000)
	defer stop()
	scheme := cmp.Or(os.Getenv("EXCHANGE_SCHEME"), "light")
	if err := chromedp.Do(ctx,
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}),
		signIn(web, "u00042"), until(liveFeed),
		until(`document.querySelectorAll("#feed li[data-id]").length >= 40`),
		click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`),
		click("#margin-call"),
		until(`document.querySelector("#feed li.p0[data-type=margin_call]") !== null`),
		until(`(window.shoot ??= Date.now() + 15000) < Date.now()`),
	); err != nil {
		t.Fatal(err)
	}
	shoot(t, ctx, path)
}

func shoot(t *testing.T, ctx context.Context, path string) {
	t.Helper()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestPageOverEvents has the page use server-sent events in place of a WebSocket.
func TestPageOverEvents(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	_, web, stop := market(t, 20, 400)
	defer stop()
	do := func(t *testing.T, steps ...step) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the feed comes over a stream, and no WebSocket is opened", func(t *testing.T) {
		do(t, signInAt(web, "/?lang=en&events", "u00003"), until(liveFeed))
		if streams, sockets := web.events.Stats().Connections, web.web.Stats().Accepted; streams != 1 || sockets != 0 {
			t.Errorf("%d streams, %d WebSockets", streams, sockets)
		}
	})
	t.Run("narrowing the channels opens another stream behind the last event", func(t *testing.T) {
		do(t, click(`#channels input[value=trade]`), until(`!document.querySelector("#channels input").disabled && !document.querySelector("#channels input").checked`))
		if accepted := web.events.Stats().Accepted; accepted != 2 {
			t.Errorf("%d streams were opened", accepted)
		}
	})
	t.Run("a cut stream resumes behind its cursor with nothing missing", func(t *testing.T) {
		do(t, click("#cut"), until(`document.body.dataset.connection === "cut"`),
			until(`document.getElementById("verdict").dataset.whole === "true"`))
		t.Log(value[string](t, ctx, `document.getElementById("verdict").textContent`))
	})
}
