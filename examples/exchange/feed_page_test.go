package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/qaexchange/notification"
)

// languages are those of the page, by what it is asked for.
var languages = []string{"en", "zh"}

// inEachLanguage runs a test of the page, which needs a browser and real time, in both.
func inEachLanguage(t *testing.T, f func(t *testing.T, language string)) {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	for _, language := range languages {
		t.Run(language, func(t *testing.T) { f(t, language) })
	}
}

// in picks what the page says in a language.
func in(language, english, chinese string) string {
	if language == "zh" {
		return chinese
	}
	return english
}

// A desk is a page in a tab of its own at which somebody has signed in, at an exchange
// without traffic but what the test publishes.
type desk struct {
	x    *exchange
	web  *server
	user int
	sent int
}

func openDesk(t *testing.T, language string) (*desk, func(...step)) {
	t.Helper()
	ctx := browse(t)
	x, web := serve(t)
	d := &desk{x: x, web: web, user: 1}
	do(t, ctx, signInAt(web.addr, "?lang="+language, memberID(d.user)), until(`document.body.dataset.connection === "live"`))
	return d, func(steps ...step) {
		t.Helper()
		do(t, ctx, steps...)
	}
}

// publish publishes for the desk's user, all in one burst.
func (d *desk) publish(payloads ...notification.Payload) {
	b := newBurst(d.x)
	for _, p := range payloads {
		b.publish(d.user, p)
	}
	b.flush()
	d.sent += len(payloads)
}

// listed waits until the list holds n messages.
func listed(n int) step {
	return until(fmt.Sprintf(`[...document.querySelectorAll("#feed > li[data-count]")].reduce((n, li) => n + Number(li.dataset.count), 0) === %d`, n))
}

// pressed puts the focus on an element and presses keys.
func pressed(selector, keys string) step {
	return chromedp.Steps(
		until(fmt.Sprintf(`document.querySelector(%q)?.focus(), document.activeElement === document.querySelector(%q)`, selector, selector)),
		chromedp.KeyEvent(keys))
}

func orderOf(instrument, id string) notification.OrderAccepted {
	return notification.OrderAccepted{OrderID: id, ExchangeOrderID: "X" + id, InstrumentID: instrument, Direction: "BUY", Offset: "OPEN", Price: 3186.5, Volume: 9, OrderType: "LIMIT", Timestamp: now()}
}

func fillOf(instrument, id string, left float64) notification.OrderPartiallyFilled {
	return notification.OrderPartiallyFilled{OrderID: id, ExchangeOrderID: "X" + id, InstrumentID: instrument, FilledVolume: 1, RemainingVolume: left, AveragePrice: 3186.5, Timestamp: now()}
}

func rejected(id string) notification.OrderRejected {
	return notification.OrderRejected{OrderID: id, InstrumentID: "IF2612", Reason: "insufficient margin", ErrorCode: 31, Timestamp: now()}
}

// TestPageUrgent: what is urgent stays until somebody has acknowledged it.
func TestPageUrgent(t *testing.T) {
	const (
		first = `document.querySelector("#pinned-list li:first-child")`
		count = `document.querySelectorAll("#pinned-list li").length`
	)
	inEachLanguage(t, func(t *testing.T, language string) {
		d, do := openDesk(t, language)
		var urgent []notification.Payload
		for i := range 7 {
			urgent = append(urgent, rejected(fmt.Sprintf("R%d", i)))
		}
		d.publish(urgent...)
		// The oldest are shown, how many more there are is said, and it is spoken.
		do(until(count+` === 5 && `+first+`.innerText.includes("R0")`),
			until(fmt.Sprintf(`document.getElementById("pinned-more").textContent.startsWith(%q)`, in(language, "And 2 more, the latest: Order rejected", "另有 2 条，最新一条：订单被拒"))),
			until(fmt.Sprintf(`document.getElementById("urgent").textContent.includes(%q)`, in(language, "Order rejected", "订单被拒"))),
			until(`document.title.startsWith("(7) ")`))
		// Neither a flood nor a filter moves them away.
		for i := range 6 {
			var flood []notification.Payload
			for j := range 500 {
				flood = append(flood, orderOf(fmt.Sprintf("I%d", i*500+j), "F"))
			}
			d.publish(flood...)
			do(until(fmt.Sprintf(`document.getElementById("received").textContent.includes((%d).toLocaleString("en"))`, d.sent)))
		}
		do(until(`document.querySelector("#feed > li.p0") === null`), click(`#lane-filter input[value="0"]`),
			until(count+` === 5 && `+first+`.innerText.includes("R0")`))
		// Acknowledged with the keyboard, the focus stays where the next one is, and
		// with none left it goes to the list.
		do(pressed(`#pinned-list li:nth-child(2) button`, kb.Enter),
			until(`document.activeElement === document.querySelector("#pinned-list li:nth-child(2) button") && `+
				`document.querySelector("#pinned-list li:nth-child(2)").innerText.includes("R2")`),
			pressed(`#acknowledge-all`, kb.Enter),
			until(`document.getElementById("pinned").hidden && document.activeElement.id === "feed-title" && !document.title.startsWith("(")`))
		// A page that is loaded again has what was not acknowledged, and nothing else.
		d.publish(rejected("K1"), rejected("K2"))
		do(until(count+` === 2`), click(`#pinned-list li:first-child button`), until(count+` === 1`),
			chromedp.Reload(), until(`document.body.dataset.connection === "live"`), until(count+` === 1 && `+first+`.innerText.includes("K2")`))
		d.publish(rejected("K3"))
		do(until(count + ` === 2 && document.querySelector("#pinned-list li:last-child").innerText.includes("K3")`))
	})
}

// TestPageGroups: what a burst says of an order is a row.
func TestPageGroups(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		d, do := openDesk(t, language)
		burst := []notification.Payload{orderOf("RB2701", "S1")}
		for i := range 300 {
			burst = append(burst, fillOf("RB2701", "S1", float64(300-i)))
		}
		d.publish(burst...)
		// What comes a second later begins a new row, so there may be a few.
		do(listed(len(burst)), until(`document.querySelectorAll("#feed > li").length < 150`),
			until(fmt.Sprintf(`document.querySelector("#feed > li.group").innerText.includes(%q)`, in(language, "Partially filled ×", "部分成交 ×"))))
		const group, open = `document.querySelector("#feed > li.group")`, `document.querySelector("#feed > li.group details")`
		do(pressed("#feed > li.group summary", kb.Enter), until(open+`.open && `+open+`.querySelectorAll("ol li").length >= Math.min(100, Number(`+group+`.dataset.count))`))
		// It grows while it is open and has the focus, in the other language too.
		d.publish(rejected("S2"))
		do(click("#language"), until(open+`.open && document.activeElement !== document.body && `+
			fmt.Sprintf(`document.querySelector("#feed > li.group").innerText.includes(%q)`, in(language, "部分成交 ×", "Partially filled ×"))))
		do(pressed("#feed > li.group summary", kb.Enter), until(`!`+open+`.open && `+open+`.querySelectorAll("ol li").length === 0`))
	})
}

// TestPageFilters: by lane, by instrument and by text.
func TestPageFilters(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		d, do := openDesk(t, language)
		for i := range 4 {
			d.publish(orderOf("RB2701", fmt.Sprintf("A%d", i)), orderOf("CU2701", fmt.Sprintf("B%d", i)), rejected(fmt.Sprintf("C%d", i)))
		}
		d.publish(marketHalt("ALL", "asked for on the page", time.Minute))
		choose := func(instrument string) step {
			return chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`(() => { const s = document.getElementById("instrument"); s.value = %q; s.dispatchEvent(new Event("change")); })()`, instrument))
		}
		search := func(text string) step {
			return chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`(() => { const s = document.getElementById("text"); s.value = %q; s.dispatchEvent(new Event("input")); })()`, text))
		}
		says := func(n int) step {
			return until(fmt.Sprintf(`document.getElementById("shown").textContent === %q`, in(language, fmt.Sprintf("The filter shows %d of the last 13.", n), fmt.Sprintf("最近 13 条中有 %d 条符合筛选条件。", n))))
		}
		do(listed(13), until(`document.getElementById("shown").textContent === ""`))
		do(click(`#lane-filter input[value="0"]`), listed(9), says(9), click(`#lane-filter input[value="3"]`), listed(8))
		do(choose("RB2701"), listed(4), says(4), search("a2"), listed(1), says(1))
		d.publish(orderOf("RB2701", "A9")) // does not match
		d.publish(orderOf("RB2701", "A2"))
		do(listed(2), search(""), listed(6), choose(""), click(`#lane-filter input[value="0"]`), click(`#lane-filter input[value="3"]`), listed(15))
		// What concerns the whole market concerns each instrument.
		do(choose("CU2701"), listed(5), search(in(language, "market halt", "暂停交易")), listed(1))
		do(search("no such thing"), listed(0), until(fmt.Sprintf(`!document.getElementById("empty").hidden && document.getElementById("empty").textContent === %q`, in(language, "Nothing matches the filter.", "没有符合筛选条件的通知。"))))
	})
}

// TestPageFlood: however much comes, the page holds a bounded part of it.
func TestPageFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	d, do := openDesk(t, "en")
	const rounds, round = 40, 500
	for i := range rounds {
		var burst []notification.Payload
		for j := range round / 2 {
			burst = append(burst, orderOf(fmt.Sprintf("I%d", (i*round+j)%997), "F"), rejected("R"))
		}
		d.publish(burst...)
		do(until(fmt.Sprintf(`document.getElementById("received").textContent === (%d).toLocaleString("en") + " received"`, d.sent)))
	}
	do(until(`document.getElementById("pinned-count").textContent === "10,000"`),
		until(`document.querySelectorAll("#feed > li").length <= 300 && document.querySelectorAll("#pinned-list > li").length <= 5`),
		until(`document.getElementsByTagName("*").length < 3000`))
	do(click("#acknowledge-all"), until(`document.getElementById("pinned").hidden`))
	// While it is paused, nothing moves, and what is counted is what is to come.
	do(click("#pause"), until(`document.getElementById("pause").textContent === "Continue"`),
		chromedp.Evaluate[chromedp.Void](`window.before = document.querySelector("#feed > li"), true`))
	d.publish(orderOf("Z1", "P1"), orderOf("Z2", "P2"))
	do(until(`document.getElementById("pause").textContent === "Continue (2 new)" && document.querySelector("#feed > li") === window.before`),
		click("#pause"), until(`document.querySelector("#feed > li").dataset.id !== window.before.dataset.id && document.getElementById("pause").textContent === "Pause"`))
}

// TestPageLatency: each message says how long it took, and the page what is known of
// the two clocks.
func TestPageLatency(t *testing.T) {
	inEachLanguage(t, func(t *testing.T, language string) {
		d, do := openDesk(t, language)
		d.publish(rejected("L1"))
		do(listed(1), until(`/^(< )?[\d.,]+ (µs|ms|s)$/.test(document.querySelector("#feed > li .took").textContent)`),
			until(`/^(< )?[\d.,]+ (µs|ms|s)$/.test(document.querySelector("#pinned-list > li .took").textContent)`),
			until(fmt.Sprintf(`document.getElementById("took").textContent.startsWith(%q)`, in(language, "latency of the last 1: p50 ", "最近 1 条的延迟：p50 "))),
			until(fmt.Sprintf(`document.getElementById("clocks").textContent.includes(%q)`, in(language, "the two clocks agree to within ", "两边的时钟相差不超过 "))))
		do(chromedp.Evaluate[chromedp.Void](`(async () => {
			const { Clock } = await import("/latency.js");
			const at = (time, ahead) => performance.timeOrigin + time + ahead;
			const ns = (ms) => BigInt(Math.round(ms * 1000)) * 1000n;
			// Asked at 1000, answered at 1004; the message was 2 ms under way, and came at 1010.
			const found = (ahead) => {
				const c = new Clock();
				const before = c.known;
				c.compare(1000, 1004, at(1001, ahead));
				const ms = c.took(ns(at(1008, ahead)), 1010);
				return [before, c.known, Math.abs(c.difference - ahead) <= c.error, Math.abs(ms - 2) <= c.error, c.error < 5, ms >= 0].join();
			};
			// A clock that is set is found out.
			const c = new Clock();
			c.compare(1000, 1004, at(1001, 0));
			c.compare(2000, 2004, at(2001, 5000));
			window.found = [found(0), found(7200000), found(-86400000), Math.abs(c.difference - 5000) < 5].join(" ");
		})()`), until(`window.found === "false,true,true,true,true,true false,true,true,true,true,true false,true,true,true,true,true true"`))
	})
}
