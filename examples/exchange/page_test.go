package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/qaexchange/notification"
)

// settled is when the server has confirmed the channels.
const settled = `document.getElementById("channels").getAttribute("aria-busy") === "false"`

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
		do(t, ctx, signIn(web, "u99999"), until(`document.getElementById("sign-in-error").textContent !== ""`))
	})
	t.Run("signing in shows the user's notifications as they come", func(t *testing.T) {
		do(t, ctx, signIn(web, "u00003"), until(liveFeed), until(`!document.getElementById("sign-out").hidden`))
		for _, id := range value[[]string](t, ctx, `[...document.querySelectorAll("#feed li[data-id]")].map((e) => e.dataset.id)`) {
			if !strings.HasPrefix(id, "u00003-") && !strings.HasPrefix(id, "all-") {
				t.Errorf("somebody else's: %s", id)
			}
		}
	})
	t.Run("narrowing the channels narrows the session at the server, and widening it begins anew", func(t *testing.T) {
		only := settled + ` && [...document.querySelectorAll("#channels input")].every((e) => e.checked === (e.value !== "trade" && e.value !== "account"))`
		do(t, ctx, click(`#channels input[value=trade]`), until(settled),
			click(`#channels input[value=account]`), until(only))
		want := []notification.Channel{notification.ChannelPosition, notification.ChannelRisk, notification.ChannelSystem}
		if got := session().Subscriptions(); !slices.Equal(got, want) {
			t.Errorf("the session has %v", got)
		}
		// What was on its way to the page when the session was narrowed came as well.
		do(t, ctx, until(`(() => {
			const newest = [...document.querySelectorAll("#feed li[data-id]")].slice(0, 10);
			return newest.length === 10 && !newest.some((e) => /-(trade|account)-/.test(e.dataset.id));
		})()`))
	})
	t.Run("a P0 arrives at once and is announced", func(t *testing.T) {
		do(t, ctx, click("#margin-call"), until(`document.querySelector("#feed li.p0[data-type=margin_call]") !== null`),
			until(`document.getElementById("urgent").textContent !== ""`))
	})
	t.Run("a market halt reaches everybody", func(t *testing.T) {
		do(t, ctx, click("#halt"), until(`[...document.querySelectorAll("#feed li[data-type=market_halt]")].some((e) => e.innerText.includes("u00003"))`))
	})
	t.Run("a cut connection resumes behind its cursor with nothing missing, still narrowed", func(t *testing.T) {
		do(t, ctx, click("#cut"), until(`document.getElementById("verdict").dataset.whole !== ""`))
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
		do(t, ctx, click(`#channels input[value=trade]`), until(settled),
			click(`#channels input[value=account]`), until(settled+` && [...document.querySelectorAll("#channels input")].every((e) => e.checked)`),
			until(`document.querySelector("#feed li[data-type=account_update]") !== null`))
		do(t, ctx, click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`))
		t.Log(value[string](t, ctx, `document.getElementById("verdict").textContent`))
	})
	t.Run("a page whose user has signed in as somebody else, in another tab, is that one's from the next connection on", func(t *testing.T) {
		do(t, ctx, chromedp.Evaluate[chromedp.Void](`fetch("api/session", { method: "POST", body: JSON.stringify({ user: "u00004" }) }).then((a) => { window.changed = a.ok; }), 0`),
			until(`window.changed`), click("#cut"), until(`document.getElementById("user").textContent === "u00004"`), until(liveFeed))
		if others := value[int](t, ctx, `[...document.querySelectorAll("#feed li[data-id]")].filter((e) => !/^(u00004|all)-/.test(e.dataset.id)).length`); others > 0 {
			t.Errorf("%d are not u00004's", others)
		}
	})
	t.Run("the check would have found something missing, and something twice", func(t *testing.T) {
		do(t, ctx, chromedp.Evaluate[chromedp.Void](`(async () => {
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
		do(t, ctx, until(`document.getElementById("integrity").textContent !== ""`))
		text := value[string](t, ctx, `document.getElementById("integrity").textContent`)
		if !strings.Contains(text, "none missing, none twice") {
			t.Error(text)
		}
		t.Log(text)
	})
	t.Run("the plots and the table have something to show", func(t *testing.T) {
		do(t, ctx, until(`document.querySelectorAll("#latency path").length >= 8 && document.querySelectorAll("#lanes tr").length === 4`))
	})
	t.Run("it speaks Chinese, and is dark on demand", func(t *testing.T) {
		do(t, ctx, click("#language"), until(`document.documentElement.lang === "zh-CN" && document.title.endsWith("交易所通知") && location.search === "?lang=zh"`),
			click("#theme"), until(`["dark", "light"].includes(localStorage.getItem("theme"))`),
			click("#language"), until(`document.documentElement.lang === "en"`))
	})
	t.Run("it fits a phone", func(t *testing.T) {
		do(t, ctx, phone())
		if width := value[int](t, ctx, `document.documentElement.scrollWidth`); width > 375 {
			t.Errorf("it is %d wide", width)
		}
		do(t, ctx, chromedp.ResetViewport())
	})
	t.Run("at the end it shows the final table", func(t *testing.T) {
		running = false
		stop()
		do(t, ctx, until(`document.getElementById("table-title").textContent === "Final" && document.getElementById("final").textContent === "The end."`))
	})
}

// TestPageOverEvents has the page use server-sent events in place of a WebSocket.
func TestPageOverEvents(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	_, web, stop := market(t, 20, 400)
	defer stop()
	t.Run("the feed comes over a stream, and no WebSocket is opened", func(t *testing.T) {
		do(t, ctx, signInAt(web.addr, "?lang=en&events", "u00003"), until(liveFeed))
		if streams, sockets := web.events.Stats().Accepted, web.web.Stats().Accepted; streams == 0 || sockets != 0 {
			t.Errorf("%d streams, %d WebSockets", streams, sockets)
		}
	})
	t.Run("narrowing the channels opens another stream behind the last event", func(t *testing.T) {
		do(t, ctx, click(`#channels input[value=trade]`), until(settled+` && !document.querySelector("#channels input").checked`))
		if accepted := web.events.Stats().Accepted; accepted < 2 {
			t.Errorf("%d streams were opened", accepted)
		}
	})
	t.Run("a cut stream resumes behind its cursor with nothing missing", func(t *testing.T) {
		do(t, ctx, click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`))
		t.Log(value[string](t, ctx, `document.getElementById("verdict").textContent`))
	})
}

// leave has tabs show something else: the exchange ends several connections one after the
// other, and takes all its time for that. One tab should stay: the exchange waits for it.
func leave(t *testing.T, tabs ...context.Context) {
	t.Helper()
	for _, ctx := range tabs {
		do(t, ctx, chromedp.Navigate("about:blank"))
	}
}

// TestTabs has two people at one page, and one of them twice.
func TestTabs(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	_, web, stop := market(t, 20, 400)
	defer stop()
	again, other := tab(t, ctx), profile(t, ctx)
	defer leave(t, again, other)
	do(t, ctx, signIn(web, "u00003"), until(liveFeed))
	do(t, again, chromedp.Navigate("http://"+web.addr+"/?lang=en"), until(`document.getElementById("user").textContent === "u00003"`), until(liveFeed))
	do(t, other, signIn(web, "u00004"), until(liveFeed), until(`document.getElementById("user").textContent === "u00004"`))
	do(t, ctx, click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`),
		until(`document.getElementById("user").textContent === "u00003"`))
}
