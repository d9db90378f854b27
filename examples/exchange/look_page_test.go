package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/qaexchange/notification"
)

// everything has the page show one of each type, a burst, and what is urgent.
func (d *desk) everything() step {
	id := memberID(d.user)
	l := newLedger(3, func(user int, payload notification.Payload) {
		if user == everybody {
			_, _ = d.x.send(everybody, payload) // the exchange is there until the test has ended
		} else {
			d.publish(payload)
		}
	})
	o := &order{id: "S9", user: d.user, instrument: "CU2701", price: 81_340, volume: 4}
	l.accept(o)
	l.alert(d.user)
	l.notice(d.user, "Statement", "Your daily statement is ready.")
	l.notice(d.user, "Margin rates", "Margin rates change with the next trading day.")
	d.publish(
		rejected("S1"), fillOf("RB2701", "S2", 4), fillOf("RB2701", "S2", 3), orderOf("SC2612", "S3"),
		notification.OrderFilled{OrderID: "S2", InstrumentID: "RB2701", FilledVolume: 3, AveragePrice: 3186.5, Timestamp: now()},
		notification.OrderCanceled{OrderID: "S4", InstrumentID: "IF2612", Reason: "quote replaced", Timestamp: now()},
		notification.OrderExpired{OrderID: "S5", InstrumentID: "IF2612", Reason: "good for the day", Timestamp: now()},
		notification.TradeExecuted{TradeID: "T1", OrderID: "S2", InstrumentID: "RB2701", Direction: "SELL", Price: 3186.5, Volume: 2, Timestamp: now()},
		notification.TradeCanceled{TradeID: "T1", OrderID: "S6", InstrumentID: "AU2612", Reason: "erroneous price", Timestamp: now()},
		notification.AccountOpen{AccountID: id + "-7", UserID: id, AccountName: "futures", InitCash: 50_000, Timestamp: now()},
		notification.AccountUpdate{UserID: id, Balance: 50_000, Available: 40_000.5, RiskRatio: 0.2, Timestamp: now()},
		notification.PositionUpdate{UserID: id, InstrumentID: "CU2701", VolumeLong: 4, ProfitLong: -31.5, Timestamp: now()},
		notification.PositionProfit{UserID: id, InstrumentID: "AU2612", PositionProfit: 12, SettlementPrice: 788, Timestamp: now()},
		notification.MarginCall{UserID: id, CurrentMargin: 18_250, RequiredMargin: 25_000, Deadline: time.Now().Add(time.Hour).UnixNano(), Timestamp: now()},
		notification.PositionLimit{UserID: id, InstrumentID: "CU2701", CurrentVolume: 400, LimitVolume: 300, Timestamp: now()},
		tradingBegins(), tradingEnds(),
		marketHalt("ALL", "asked for by u00002", time.Minute), marketHalt("IF2612", "volatility interruption", time.Minute),
	)
	return listed(d.sent)
}

// none waits until an expression lists nothing, which is soon if all is well.
func none(t *testing.T, ctx context.Context, what, expression string) {
	t.Helper()
	err := chromedp.Do(ctx, until(`(window.listed = `+expression+`).length === 0`))
	if err == nil {
		return
	}
	for _, text := range value[[]string](t, ctx, `window.listed`) {
		t.Errorf("%s: %s", what, text)
	}
}

// TestPageLanguages: both say everything, and each in its own words.
func TestPageLanguages(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	x, web := serve(t)
	// What is in sight and was not written for the reader of this language: of names,
	// units and products there is but one.
	const foreign = `(() => {
		const chinese = document.documentElement.lang === "zh-CN";
		const names = /\b(Broker|Gateway|Publish|Stats|WebSocket|SSE|CPU|English|min)\b/g;
		const found = new Set();
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		for (let node; (node = walker.nextNode());) {
			const e = node.parentElement;
			if (e.closest("script, noscript, option") || e.id === "language" || !e.checkVisibility()) continue;
			if (chinese ? /[A-Za-z]{3,}/.test(node.data.replace(names, "")) : /\p{Script=Han}/u.test(node.data)) found.add(node.data);
		}
		for (const e of document.querySelectorAll("[aria-label]")) {
			if (chinese ? /[A-Za-z]{3,}/.test(e.ariaLabel.replace(names, "")) : /\p{Script=Han}/u.test(e.ariaLabel)) found.add(e.ariaLabel);
		}
		return [...found];
	})()`
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			ctx := profile(t, ctx)
			check := func() {
				t.Helper()
				none(t, ctx, "it says", foreign)
			}
			do(t, ctx, chromedp.Navigate("http://"+web.addr+"/?lang="+language), until(`!document.getElementById("sign-in").hidden`),
				until(`document.querySelectorAll("#intro p").length === 3 && [...document.querySelectorAll("#intro p")].every((p) => p.checkVisibility() && p.textContent.length > 30)`),
				until(`document.getElementById("range").textContent !== ""`))
			check()
			do(t, ctx, signInAt(web.addr, "?lang="+language, "u00002"), until(live))
			d := &desk{x: x, web: web, user: 1}
			do(t, ctx, d.everything(), until(`document.getElementById("integrity").textContent !== "" && document.getElementById("pinned-more").textContent !== ""`),
				click("#feed > li.group summary"), until(`document.querySelector("#feed details[open] li") !== null`))
			check()
			do(t, ctx, click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`))
			check()
		})
	}
	t.Run("what one of them says, the other one says too, and no part says over another", func(t *testing.T) {
		do(t, ctx, chromedp.Navigate("http://"+web.addr+"/?lang=en"), chromedp.Evaluate[chromedp.Void](`(async () => {
			const text = await import("/text.js"), { overview } = await import("/overview_text.js");
			const keys = (o) => Object.keys(o).filter((k) => k !== "phrase" && k !== "verdicts").sort().map((k) =>
				k + (typeof o[k] === "object" ? "{" + (Array.isArray(o[k]) ? o[k].length : keys(o[k])) + "}" : typeof o[k] === "function" ? "()" : ""));
			const said = {}, over = [];
			for (const code of ["en", "zh"]) {
				await text.speak(code);
				said[code] = keys(text.t);
				for (const k of Object.keys(overview[code])) if (overview[code][k] !== text.t[k]) over.push(k);
			}
			const only = (a, b) => said[a].filter((k) => !said[b].includes(k)).map((k) => a + ": " + k);
			window.differs = [...only("en", "zh"), ...only("zh", "en"), ...over];
		})()`), until(`window.differs !== undefined`))
		for _, key := range value[[]string](t, ctx, `window.differs`) {
			t.Error(key)
		}
	})
	t.Run("a lane and a channel are two things", func(t *testing.T) {
		ctx := profile(t, ctx)
		do(t, ctx, signInAt(web.addr, "?lang=zh", "u00003"), until(live),
			until(`document.querySelector("#lane-filter legend").textContent === "优先级队列" && document.querySelector("#channels legend").textContent === "频道"`),
			until(`!document.body.innerText.includes("通道")`))
	})
}

// TestPageFocus: whatever one does, the focus is somewhere.
func TestPageFocus(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	x, web := serve(t)
	is := func(selector string) step {
		return until(fmt.Sprintf(`document.activeElement === document.querySelector(%q) && document.activeElement.checkVisibility()`, selector))
	}
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			ctx := profile(t, ctx)
			do(t, ctx, chromedp.Navigate("http://"+web.addr+"/?lang="+language), until(`!document.getElementById("sign-in").hidden`),
				chromedp.Evaluate[chromedp.Void](`document.getElementById("name").value = "u00002"`),
				pressed("#name", kb.Enter), until(live), is("#feed-title"))
			d := &desk{x: x, web: web, user: 1}
			do(t, ctx, d.everything())
			for _, toggle := range []string{"#language", "#theme", "#pause", "#language", "#theme", "#pause", "#feed > li.group summary"} {
				do(t, ctx, pressed(toggle, kb.Enter), is(toggle))
			}
			// While the server has yet to confirm it, and afterwards.
			for range 2 {
				do(t, ctx, pressed(`#channels input[value=trade]`, " "), is(`#channels input[value=trade]`), until(settled), is(`#channels input[value=trade]`))
			}
			do(t, ctx, pressed(`#lane-filter input[value="1"]`, " "), is(`#lane-filter input[value="1"]`), pressed(`#lane-filter input[value="1"]`, " "), listed(d.sent))
			// A button that has nothing to do is still where it was.
			do(t, ctx, pressed("#cut", kb.Enter), until(`document.getElementById("verdict").dataset.whole === "true"`), is("#cut"))
			do(t, ctx, pressed("#sign-out", kb.Enter), until(`!document.getElementById("sign-in").hidden`), is("#name"))
		})
	}
}

// TestPageLook: both themes, at a desk and on a phone.
func TestPageLook(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	x, web := serve(t)
	// What can be pressed is large enough for a finger.
	const small = `[...document.querySelectorAll("button, select, summary, a, input:not([type=checkbox]), label:has(input[type=checkbox])")]
		.filter((e) => e.checkVisibility()).map((e) => [e, e.getBoundingClientRect()])
		.filter(([, r]) => r.width < 44 || r.height < 44)
		.map(([e, r]) => (e.id || e.outerHTML.slice(0, 60)) + " " + r.width + "×" + r.height)`
	// What is out of sight has a hint.
	const outside = `[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest(".unseen, #table-scroll, svg"))
		.filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 || (getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1))
		.map((e) => e.id || e.outerHTML.slice(0, 80))`
	// A text has 4.5:1 to what is behind it, and the edge of what can be pressed 3:1.
	const pale = `(() => {
		const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
		const rgba = (color) => {
			canvas.clearRect(0, 0, 1, 1);
			canvas.fillStyle = color;
			canvas.fillRect(0, 0, 1, 1);
			return canvas.getImageData(0, 0, 1, 1).data;
		};
		const behind = (e) => {
			for (; e; e = e.parentElement) {
				const color = rgba(getComputedStyle(e).backgroundColor);
				if (color[3] === 255) return color;
			}
			return rgba("white");
		};
		const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
			const v = c[i] / 255;
			return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		}, 0);
		const contrast = (a, b) => {
			const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
			return (x + 0.05) / (y + 0.05);
		};
		const found = new Set();
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		for (let node; (node = walker.nextNode());) {
			const e = node.parentElement;
			if (!node.data.trim() || e.closest("svg, option, noscript, [aria-disabled=true]") || !e.checkVisibility()) continue;
			const c = contrast(rgba(getComputedStyle(e).color), behind(e));
			if (c < 4.5) found.add(c.toFixed(2) + " " + node.data);
		}
		for (const e of document.querySelectorAll("button:not(.quiet, [aria-disabled=true]), select, input:not([type=checkbox], [type=range]), label:has(input[type=checkbox])")) {
			if (!e.checkVisibility()) continue;
			const c = contrast(rgba(getComputedStyle(e).borderTopColor), behind(e.parentElement));
			if (c < 3) found.add(c.toFixed(2) + " edge of " + (e.id || e.textContent));
		}
		return [...found];
	})()`
	for _, language := range languages {
		for _, theme := range []string{"light", "dark"} {
			t.Run(language+" "+theme, func(t *testing.T) {
				ctx := profile(t, ctx)
				d := &desk{x: x, web: web, user: 1}
				check := func(what string) {
					t.Helper()
					for _, size := range []struct {
						name string
						step step
					}{{"at a desk", chromedp.EmulateViewport(1440, 1100)}, {"on a phone", phone()}} {
						do(t, ctx, size.step, until(`document.documentElement.scrollWidth <= innerWidth`))
						for wrong, expression := range map[string]string{"is small": small, "is outside": outside, "is pale": pale} {
							none(t, ctx, what+", "+size.name+", "+wrong, expression)
						}
					}
				}
				do(t, ctx, scheme(theme), chromedp.Navigate("http://"+web.addr+"/?lang="+language), until(`!document.getElementById("sign-in").hidden`), themed(theme))
				check("signed out")
				do(t, ctx, signInAt(web.addr, "?lang="+language, "u00002"), until(live))
				do(t, ctx, d.everything(), click("#feed > li.group summary"), click("#pause"))
				check("signed in")
			})
		}
	}
}

// TestPageBytes: all that a browser loads to show the page, in either language.
func TestPageBytes(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	const most = 120_000
	ctx := browse(t)
	_, web := serve(t)
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			do(t, ctx, signInAt(web.addr, "?lang="+language, "u00002"), until(live))
			loaded := value[map[string]int](t, ctx, `Object.fromEntries(performance.getEntries().filter((e) => ["navigation", "resource"].includes(e.entryType) && !e.name.includes("/api/"))
				.map((e) => [new URL(e.name).pathname, e.decodedBodySize]))`)
			all := 0
			for _, bytes := range loaded {
				all += bytes
			}
			t.Logf("%d bytes: %v", all, loaded)
			if all > most {
				t.Errorf("the page has %d bytes", all)
			}
			for _, part := range []string{"/", "/app.js", "/notification-client.js", "/overview.js", "/style.css", "/" + language + ".js"} {
				if loaded[part] == 0 {
					t.Errorf("%s is not there", part)
				}
			}
		})
		do(t, ctx, click("#sign-out"), until(`!document.getElementById("sign-in").hidden`))
	}
}
