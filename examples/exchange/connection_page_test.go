package main

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	devtools "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const live = `document.body.dataset.connection === "live"`

// banner waits until the page says something above all else.
func banner(text string) step {
	return until(fmt.Sprintf(`!document.getElementById("banner").hidden && document.getElementById("banner-text").textContent === %q`, text))
}

// nothingOf waits until nothing of a user is in the page, in sight or not.
func nothingOf(user string) step {
	return until(fmt.Sprintf(`!document.documentElement.outerHTML.includes(%q) && !JSON.stringify(sessionStorage).includes(%q)`, user, user))
}

// TestPageIdentity: what one tab does to the sign-in, the other one says, and it never
// shows what is another's.
func TestPageIdentity(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		ctx := browse(t)
		x, web := serve(t)
		other := tab(t, ctx)
		tell := func(user int) {
			t.Helper()
			if _, err := x.send(user, rejected("R")); err != nil {
				t.Fatal(err)
			}
		}
		do(t, ctx, signInAt(web.addr, "?lang="+language, "u00002"), until(live))
		tell(1)
		do(t, ctx, until(`document.querySelector("#feed li[data-id^=u00002]") !== null`))
		// The other tab is signed in by the same cookie, until it signs in anew.
		do(t, other, chromedp.Navigate("http://"+web.addr+"/?lang="+language), until(live+` && document.getElementById("user").textContent === "u00002"`),
			until(`document.getElementById("banner").hidden`), click("#sign-out"), until(`!document.getElementById("sign-in").hidden`))
		do(t, ctx, until(`!document.getElementById("sign-in").hidden`), nothingOf("u00002"),
			banner(in(language, "You have signed out in another tab.", "您已在另一个标签页退出登录。")))
		do(t, other, chromedp.Evaluate[chromedp.Void](`document.getElementById("name").value = "u00003"`), click("#sign-in button"), until(live))
		do(t, ctx, until(live+` && document.getElementById("user").textContent === "u00003"`), nothingOf("u00002"),
			banner(in(language, "u00003 has signed in in another tab, so this page now shows what is u00003’s.", "另一个标签页已用 u00003 登录，本页现在显示 u00003 的内容。")))
		tell(1)
		tell(2)
		do(t, ctx, until(`document.querySelector("#feed li[data-id^=u00003]") !== null`), nothingOf("u00002"))
		// Who signs in over somebody is seen without a sign-out, too.
		do(t, other, chromedp.Evaluate[chromedp.Void](`fetch("api/session", { method: "POST", body: JSON.stringify({ user: "u00001" }) }).then((a) => { window.changed = a.ok; }), 0`),
			until(`window.changed`), chromedp.Reload(), until(live+` && document.getElementById("user").textContent === "u00001"`))
		do(t, ctx, until(live+` && document.getElementById("user").textContent === "u00001" && document.querySelector("[data-id^=u00003]") === null`))
	})
}

// TestPageSignedOut: why somebody is signed out is said only if it is true, and
// nothing of him stays.
func TestPageSignedOut(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		ctx := browse(t)
		x, web := serve(t)
		f := newFront(t)
		f.show(web)
		load := chromedp.Navigate("http://" + f.addr + "/?lang=" + language)
		with := func(token string) step {
			return chromedp.Steps(load, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.cookie = "%s=%s; path=/; SameSite=Strict"`, cookieName, token)), load)
		}
		signedOut := until(`!document.getElementById("sign-in").hidden`)

		// A token that is revoked has not expired.
		token := web.keys.issue("u00002", time.Now().Add(time.Hour))
		do(t, ctx, with(token), until(live))
		r, err := http.NewRequestWithContext(t.Context(), "DELETE", "http://"+web.addr+"/api/session", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.AddCookie(&http.Cookie{Name: cookieName, Value: token})
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		do(t, ctx, signedOut, nothingOf("u00002"),
			banner(in(language, "The exchange does not know your sign-in any more. Please sign in again.", "您的登录已失效，请重新登录。")))

		// One that ends while somebody is there has. However slow the browser is,
		// sooner or later there is one that holds for long enough.
		const shown = `document.getElementById("user").textContent === "u00002"`
		for hold := 4 * time.Second; ; hold *= 2 {
			do(t, ctx, with(web.keys.issue("u00002", time.Now().Add(hold))), until(shown+` || !document.getElementById("sign-in").hidden`))
			do(t, ctx, signedOut)
			if value[bool](t, ctx, `!document.getElementById("banner").hidden`) {
				break
			}
		}
		do(t, ctx, nothingOf("u00002"), banner(in(language, "Your sign-in has expired. Please sign in again.", "登录已过期，请重新登录。")))

		// Who signs out himself leaves nothing.
		do(t, ctx, signInAt(f.addr, "?lang="+language, "u00002"), until(live))
		for range 3 {
			if _, err := x.send(1, rejected("R")); err != nil {
				t.Fatal(err)
			}
		}
		do(t, ctx, until(`document.getElementById("pinned-count").textContent === "3" && document.getElementById("urgent").textContent !== "" && document.title.startsWith("(3)")`),
			click("#sign-out"), signedOut, nothingOf("u00002"),
			until(`[..."feed pinned-list urgent verdict integrity user edge".split(" ")].every((id) => document.getElementById(id).textContent === "")`),
			until(`document.getElementById("pinned").hidden && document.getElementById("banner").hidden && !document.title.startsWith("(")`),
			until(`localStorage.getItem("exchange-user") === null`))

		// Nor does he if nobody hears it, but then that is said, and made good.
		do(t, ctx, signInAt(f.addr, "?lang="+language, "u00002"), until(live))
		f.behind.Store(nil)
		do(t, ctx, click("#sign-out"), signedOut, nothingOf("u00002"),
			banner(in(language, "The exchange could not be told that you have signed out. This page goes on trying; until then this browser is still signed in.", "退出登录的请求未能送达交易所。本页会继续重试；在成功之前，本浏览器仍处于登录状态。")))
		f.show(web)
		do(t, ctx, load, until(`localStorage.getItem("exchange-user") === null`), signedOut, nothingOf("u00002"))
	})
}

// TestPageRestart: an exchange that is started again has the page back by itself, in
// words that are true all the time.
func TestPageRestart(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		ctx := browse(t)
		f := newFront(t)
		var x *exchange
		var web *server
		keys := newSigner()
		started := 0
		start := func(o options) {
			t.Helper()
			o.addr = "127.0.0.1:0"
			o.users = 3
			var err error
			if x, err = o.open(t.Context(), quiet); err != nil {
				t.Fatal(err)
			}
			if web, err = newServer(x, keys, o, quiet); err != nil {
				t.Fatal(err)
			}
			started++
		}
		stop := func() {
			t.Helper()
			started--
			web.drain()
			end, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := x.drain(end, web.hangUp); err != nil {
				t.Error(err)
			}
			f.behind.Store(nil)
			web.tellTime = 0
			if err := web.close(end, nil, ""); err != nil {
				t.Error(err)
			}
		}
		defer func() {
			if started > 0 {
				stop()
			}
		}()
		publish := func(n int) {
			t.Helper()
			for range n {
				if _, err := x.send(1, orderOf("RB2701", "S1")); err != nil {
					t.Fatal(err)
				}
			}
		}
		o := options{durable: t.TempDir()}
		start(o)
		f.show(web)
		do(t, ctx, signInAt(f.addr, "?lang="+language, "u00002"), until(live))
		publish(3)
		do(t, ctx, listed(3), chromedp.Evaluate[chromedp.Void](`(() => {
			window.spoken = [], window.left = false;
			const status = document.getElementById("connection");
			new MutationObserver(() => spoken.push(status.textContent)).observe(status, { childList: true });
			new MutationObserver(() => { left ||= !document.getElementById("sign-in").hidden; }).observe(document.getElementById("sign-in"), { attributes: true });
		})()`))

		// It goes, gracefully: the page says that it does, and then what it knows.
		web.drain()
		do(t, ctx, until(fmt.Sprintf(`document.getElementById("connection").textContent.includes(%q)`, in(language, "the exchange is closing", "交易所正在关闭"))))
		stop()
		lost := `document.body.dataset.connection === "lost"`
		ago := in(language, `/^last heard \d+ s ago · next attempt in \d+ s$/`, `/^最近一次收到数据：\d+ 秒前 · \d+ 秒后重试$/`)
		do(t, ctx, until(lost+` && `+ago+`.test(document.getElementById("ago").textContent)`))
		// It can be tried at once, and the focus does not fall out of the page.
		do(t, ctx, pressed("#again", kb.Enter), until(`["state", "again"].includes(document.activeElement.id)`))

		// What is published before the page is back is what it has missed: with the
		// opening that makes six.
		start(o)
		publish(5)
		f.show(web)
		do(t, ctx, until(live), until(`document.getElementById("verdict").dataset.whole === "true"`),
			until(in(language, `/^Back after [\d.]+ s: 6 notifications were missed, and all 6 are here now, each once and in order\.$/`, `/^[\d.]+ 秒后恢复：期间错过 6 条通知，现已全部收到，不重不漏，顺序一致。$/`)+`.test(document.getElementById("verdict").textContent)`),
			until(`document.activeElement !== document.body && document.getElementById("banner").hidden`))

		// A restart without a history is a hole, and it is said that there is one.
		stop()
		start(options{})
		f.show(web)
		gone := in(language, "The exchange’s history does not go back to where this page was: what happened meanwhile is not shown. From here on everything is.", "交易所保留的历史不够久，无法从本页中断处续传：期间的通知未显示。从现在起一条不少。")
		do(t, ctx, until(live), banner(gone), until(fmt.Sprintf(`document.querySelector("#feed li.mark").textContent.includes(%q)`, gone)),
			until(`document.getElementById("verdict").dataset.whole === "false"`))

		if value[bool](t, ctx, `window.left`) {
			t.Error("it has asked for a sign-in")
		}
		// What counts seconds is not what is spoken.
		for _, text := range value[[]string](t, ctx, `window.spoken.filter((text) => /\d/.test(text))`) {
			t.Errorf("it has said %q", text)
		}
	})
}

// TestPageEdge: with several edges the page says at which one it is, and has a button
// that kills it.
func TestPageEdge(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		ctx := browse(t)
		_, web := serve(t)
		do(t, ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, devtools.AddScriptToEvaluateOnNewDocument, devtools.AddScriptToEvaluateOnNewDocumentParams{Source: `{
				const real = fetch;
				window.edge = "e1";
				fetch = async (path, options) => {
					if (path === "api/kill-edge") {
						window.edge = "e2";
						return Response.json({ edge: "e1" }, { status: 202 });
					}
					const answer = await real(path, options);
					if (path !== "api/session" || !answer.ok || options?.method === "DELETE") return answer;
					return Response.json({ ...await answer.json(), edge: window.edge, canKill: true });
				};
			}`})
			return err
		}), signInAt(web.addr, "?lang="+language, "u00002"), until(live))
		at := func(edge string) step {
			return until(fmt.Sprintf(`document.getElementById("edge").textContent === %q && document.getElementById("kill").textContent === %q`,
				in(language, "at edge ", "接入节点 ")+edge, in(language, "Kill edge ", "终止接入节点 ")+edge))
		}
		do(t, ctx, at("e1"), until(`!document.getElementById("kill").hidden && document.getElementById("halt").hidden`),
			click("#kill"), until(`window.edge === "e2"`), click("#cut"), until(live), at("e2"))
	})
}
