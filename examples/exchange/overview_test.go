package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/exchange/page"
)

// An exhibit is an exchange without traffic, of which the page shows what tell says:
// a test's own numbers, at a test's own times.
type exhibit struct {
	web  *server
	last snapshot
}

// exhibits returns one whose clock is an hour ahead: the plots end with the newest
// sample then, however long the browser takes.
func exhibits(t *testing.T) *exhibit {
	_, web := serve(t)
	return &exhibit{web: web, last: snapshot{at: time.Now().Add(time.Hour).Truncate(time.Second)}}
}

// tell adds a sample that is so much later, of what change makes of the last one.
func (e *exhibit) tell(later time.Duration, change func(s *snapshot)) {
	to := e.last
	to.at = to.at.Add(later)
	to.broker.Receivers = slices.Clone(to.broker.Receivers)
	change(&to)
	e.web.sample(e.last, to)
	e.last = to
}

// steady adds samples of as many seconds, with 100 messages of P1 in each.
func (e *exhibit) steady(seconds int) {
	for range seconds {
		e.tell(time.Second, func(s *snapshot) {
			s.broker.Lanes[notification.P1].Published += 100
			s.gateway.Lanes[notification.P1].Taken += 100
		})
	}
}

func took(d time.Duration) notification.Histogram {
	var r notification.HistogramRecorder
	r.Record(d)
	return r.Snapshot()
}

// open opens the page, and has it speak lang: the page needs nobody to be signed in.
func open(addr, lang string) step {
	return chromedp.Steps(chromedp.Navigate("http://"+addr+"/?lang="+lang), until(`document.querySelectorAll("#lanes tr").length === 4`))
}

func text(id string) string { return fmt.Sprintf("document.getElementById(%q).textContent", id) }

// latin lists the words of an element that are no Chinese, nor the name of something.
func latin(selector string) string {
	return fmt.Sprintf(`(document.querySelector(%q).innerText.match(/[A-Za-z]{2,}/g) ?? []).filter((w) =>
		!["ms", "Broker", "Gateway", "Publish", "WebSocket", "SSE", "CPU", "Stats", "Sink"].includes(w))`, selector)
}

func TestDepths(t *testing.T) {
	x := start(t, 20, notification.BrokerConfig{})
	e := newEngine(20, 1, newBurst(x))
	for e.total < 10_000 {
		e.step()
	}
	if _, err := x.send(everybody, tradingEnds()); err != nil {
		t.Fatal(err)
	}
	if err := x.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s := x.snapshot()
	t.Run("at rest nothing waits, and what went in came out", func(t *testing.T) {
		for p := range targets {
			if s.queued(p) != 0 {
				t.Errorf("%d wait in lane %d", s.queued(p), p)
			}
		}
		if s.inbox() != 0 || s.handed() != s.published() || s.enqueued() != s.delivered() || s.pushes() == 0 {
			t.Errorf("inbox %d, handed %d of %d, enqueued %d of %d, pushes %d", s.inbox(), s.handed(), s.published(), s.enqueued(), s.delivered(), s.pushes())
		}
		if s.broadcasts < 2 || s.delivered() != s.published()+19*s.broadcasts {
			t.Errorf("%d broadcasts among %d published and %d delivered", s.broadcasts, s.published(), s.delivered())
		}
	})
	t.Run("what the inbox was handed and has not given away yet is in it", func(t *testing.T) {
		s.broker.Departed.Handed += 7
		if s.inbox() != 7 {
			t.Error(s.inbox())
		}
		s.gateway.Lanes[notification.P2].Received += 9 // read later
		if s.inbox() != 0 {
			t.Error(s.inbox())
		}
	})
}

// An aged is a bus that publishes what was composed an hour ago.
type aged struct{ *memory }

func (a aged) Publish(n *notification.Notification) error {
	n.Timestamp -= int64(time.Hour)
	return a.memory.Publish(n)
}

// A Gateway behind a log counts from when it got a message; the page, from Publish.
func TestLatency(t *testing.T) {
	for run, least := range map[string]time.Duration{"": 0, "run": time.Hour} {
		b, err := newMemory(notification.BrokerConfig{}, notification.GatewayConfig{})
		if err != nil {
			t.Fatal(err)
		}
		x, err := newExchange(3, aged{b}, run)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		h := x.snapshot().gateway.Lanes[tradingBegins().Type().DefaultPriority()].Latency
		if h.Count() != 3 || h.Quantile(0) < least || h.Max() > least+time.Hour {
			t.Errorf("run %q: %d latencies, from %s to %s", run, h.Count(), h.Quantile(0), h.Max())
		}
	}
}

// TestOverview needs a real browser.
func TestOverview(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	for _, lang := range []struct {
		code, now, silent, silentFor, everybody, target, reason, before, unrouted, held, scrolls, lanes string
	}{
		{"en", "now", "nothing heard", "nothing was heard for 60 s", "to all 3", "target 1 ms",
			"One message in a hundred took 40 ms or longer; the target is 1 ms.", "before the inbox, in the lane (30 ms)", "for nobody who is routed 3", "no: 40 × the target", "The table goes on to the right", "Lanes"},
		{"zh", "现在", "没有数据", "有 60 秒没有数据", "发给全体 3 人", "目标 1 ms",
			"每百条中有一条耗时达到或超过 40 ms，目标是 1 ms。", "进入接收队列之前，即在优先级队列中（30 ms）", "没有路由 3", "否：目标的 40 倍", "表格右侧还有内容", "优先级队列"},
	} {
		t.Run(lang.code, func(t *testing.T) {
			t.Run("the axis ends with now, and no line goes across what was not heard", func(t *testing.T) {
				e := exhibits(t)
				e.steady(20)
				e.tell(time.Minute, func(*snapshot) {})
				e.steady(20)
				do(t, ctx, open(e.web.addr, lang.code))
				for _, plot := range []string{"latency", "rate", "queue"} {
					if axis := value[string](t, ctx, fmt.Sprintf(`[...document.querySelectorAll("#%s .time")].at(-1).textContent`, plot)); axis != lang.now {
						t.Errorf("%s ends with %q", plot, axis)
					}
					if said := value[string](t, ctx, fmt.Sprintf(`document.querySelector("#%s .silent").textContent`, plot)); said != lang.silent {
						t.Errorf("%s: %q", plot, said)
					}
					if alt := value[string](t, ctx, fmt.Sprintf(`document.getElementById(%q).getAttribute("aria-label")`, plot)); !strings.Contains(alt, lang.silentFor) {
						t.Errorf("%s: %q", plot, alt)
					}
				}
				if pieces := value[int](t, ctx, `document.querySelector("#rate .delivered .line").getAttribute("d").split("M").length - 1`); pieces != 2 {
					t.Errorf("the line has %d pieces", pieces)
				}
			})
			t.Run("a message to everybody is marked where Delivered jumps", func(t *testing.T) {
				e := exhibits(t)
				e.steady(5)
				e.tell(time.Second, func(s *snapshot) {
					s.broadcasts++
					s.gateway.Lanes[notification.P3].Taken += 10_000
				})
				do(t, ctx, open(e.web.addr, lang.code))
				if marks := value[int](t, ctx, `document.querySelectorAll("#rate .mark").length`); marks != 1 {
					t.Errorf("%d marks", marks)
				}
				if key := value[string](t, ctx, text("rate-key")); !strings.Contains(key, lang.everybody+" 1") || !strings.Contains(key, "10,000") {
					t.Error(key)
				}
			})
			t.Run("why a target was missed is said in words beside it", func(t *testing.T) {
				e := exhibits(t)
				e.tell(time.Second, func(s *snapshot) {
					s.gateway.Lanes[notification.P0].Latency = s.gateway.Lanes[notification.P0].Latency.Add(took(40 * time.Millisecond))
					s.broker.Lanes[notification.P0] = notification.BrokerLane{Published: 1, Latency: took(30 * time.Millisecond)}
					s.broker.Lanes[notification.P2].Unrouted = 3
				})
				do(t, ctx, open(e.web.addr, lang.code))
				reasons := value[string](t, ctx, text("reasons"))
				for _, want := range []string{lang.reason, lang.before, lang.unrouted} {
					if !strings.Contains(reasons, want) {
						t.Errorf("%q is not in %q", want, reasons)
					}
				}
				if held := value[string](t, ctx, `document.querySelector("#lanes .p0").lastElementChild.textContent`); held != lang.held {
					t.Error(held)
				}
				if key := value[string](t, ctx, text("latency-key")); !strings.Contains(key, lang.target) {
					t.Error(key)
				}
			})
			t.Run("values at a time are read with the pointer and with the keyboard", func(t *testing.T) {
				e := exhibits(t)
				first := e.last.at
				for i := range 150 {
					e.tell(time.Second, func(s *snapshot) { s.broker.Lanes[notification.P1].Published += 1000 + uint64(i) })
				}
				do(t, ctx, open(e.web.addr, lang.code), chromedp.Evaluate[chromedp.Void](`void import("/text.js").then((m) => { window.clock = m.clock; })`), until(`window.clock !== undefined`))
				// shows is whether all says what second i had.
				shows := func(i int) string {
					return fmt.Sprintf(`(() => {
						const value = (%d).toLocaleString(), time = window.clock(%d);
						return document.querySelector("#rate-key .published b").textContent === value &&
							document.getElementById("moment-text").textContent === time && document.querySelectorAll(".plots svg .read").length === 3 &&
							document.getElementById("moment").ariaValueText.includes(time) && document.getElementById("moment").ariaValueText.includes(value);
					})()`, 1000+i, first.Add(time.Duration(i+1)*time.Second).UnixMilli())
				}
				live := fmt.Sprintf(`%s === %q && document.querySelector("#rate-key .published b").textContent === "1,149"`, text("moment-text"), lang.now)

				middle := value[[]float64](t, ctx, `(() => {
					const svg = document.getElementById("rate");
					svg.scrollIntoView({ block: "center" });
					const b = svg.getBoundingClientRect();
					return [b.left + b.width / 2, b.top + b.height / 2];
				})()`)
				do(t, ctx, until(live), chromedp.MouseEvent(chromedp.MouseMoved, middle[0], middle[1]), until(text("moment-text")+` !== "`+lang.now+`"`))
				i := value[int](t, ctx, `Number(document.getElementById("moment").value)`) - int(first.Unix()) - 1
				if i < 60 || i > 120 {
					t.Errorf("the middle of the plot is second %d", i)
				}
				do(t, ctx, until(shows(i)), chromedp.MouseEvent(chromedp.MouseMoved, 1, 1), until(live))

				do(t, ctx, chromedp.Evaluate[chromedp.Void](`document.getElementById("moment").focus()`),
					chromedp.KeyEvent(kb.ArrowLeft), until(shows(148)), chromedp.KeyEvent(kb.ArrowLeft), until(shows(147)))
				e.tell(time.Second, func(s *snapshot) { s.broker.Lanes[notification.P1].Published += 2000 })
				do(t, ctx, until(fmt.Sprintf(`document.getElementById("moment").max === "%d"`, e.last.at.Unix())), until(shows(147)),
					chromedp.KeyEvent(kb.End), until(text("moment-text")+` === "`+lang.now+`"`),
					until(`document.querySelector("#rate-key .published b").textContent === "2,000"`))
			})
			t.Run("the picture shows what waits where, and what goes on", func(t *testing.T) {
				e := exhibits(t)
				e.tell(time.Second, func(s *snapshot) {
					s.broker.Lanes[notification.P1] = notification.BrokerLane{Published: 12_345, Queued: 17, Capacity: 50_000}
					s.broker.Receivers = []notification.ReceiverStats{{Handed: 12_000}}
					s.gateway = notification.GatewayStats{Sessions: 4_321, Batches: 100}
					s.gateway.Lanes[notification.P1] = notification.GatewayLane{Received: 11_995, Enqueued: 24_000, Taken: 20_000, Pending: 4_000}
				})
				do(t, ctx, open(e.web.addr, lang.code))
				parts := value[[]string](t, ctx, `[...document.querySelectorAll("#parts li")].map((e) => e.innerText)`)
				for i, want := range []string{"12,345", "P1 17", "5", "P1 4,000", "100", "4,321"} {
					if len(parts) != 6 || !strings.Contains(parts[i], want) {
						t.Errorf("%q is not in part %d of %q", want, i, parts)
					}
				}
				if len(parts) != 6 || !strings.HasPrefix(parts[1], lang.lanes) {
					t.Errorf("%q", parts)
				}
				drawn := value[string](t, ctx, `[...document.querySelectorAll("#inside text")].map((e) => e.textContent).join("|")`)
				for _, want := range []string{"2 " + lang.lanes, "|17|", "|5|", "|4,000|", "|200|", "|4,321|", "|100/"} {
					if !strings.Contains(drawn, want) {
						t.Errorf("%q is not in %q", want, drawn)
					}
				}
				bars := `[...document.querySelectorAll("#inside .depth")].map((e) => Number(e.getAttribute("width")))`
				if w := value[[]float64](t, ctx, bars); len(w) != 9 || w[0] != 0 || !(w[1] > w[0]) || !(w[6] > w[1]) {
					t.Errorf("%v", w) // P0 and P1 of the lanes; P1 of the sessions
				}
				e.tell(time.Second, func(s *snapshot) { s.broker.Lanes[notification.P0].Queued = 9_000 })
				do(t, ctx, until(fmt.Sprintf(`(%s)[0] > (%s)[6]`, bars, bars)))
				if moving := value[int](t, ctx, `document.getAnimations().filter((a) => a.effect.target.closest(".inside, .plots, .table")).length`); moving != 0 {
					t.Errorf("%d animations", moving)
				}
			})
			t.Run("on a phone nothing sticks out, and the table says that it scrolls", func(t *testing.T) {
				e := exhibits(t)
				e.steady(3)
				do(t, ctx, chromedp.EmulateViewport(1440, 1100), open(e.web.addr, lang.code), until(`document.getElementById("table-hint").hidden`),
					chromedp.EmulateViewport(360, 800), until(`innerWidth === 360 && !document.getElementById("table-hint").hidden`))
				if width := value[int](t, ctx, `document.documentElement.scrollWidth`); width > 360 {
					t.Errorf("it is %d wide", width)
				}
				if hint := value[string](t, ctx, text("table-hint")); !strings.HasPrefix(hint, lang.scrolls) {
					t.Error(hint)
				}
				if out := value[[]string](t, ctx, `[...document.querySelectorAll("#inside text, .plots svg text")].filter((e) => {
					const r = e.getBoundingClientRect(), of = e.ownerSVGElement.getBoundingClientRect();
					return r.left < of.left - 1 || r.right > of.right + 1;
				}).map((e) => e.textContent)`); len(out) > 0 {
					t.Errorf("outside of the picture: %q", out)
				}
				do(t, ctx, chromedp.Evaluate[chromedp.Void](`document.getElementById("table-scroll").focus()`),
					until(`document.activeElement.id === "table-scroll"`), chromedp.KeyEvent(kb.ArrowRight),
					until(`document.getElementById("table-scroll").scrollLeft > 0`),
					until(`Math.abs(document.querySelector("#lanes th").getBoundingClientRect().left - document.getElementById("table-scroll").getBoundingClientRect().left) < 1`),
					chromedp.ResetViewport())
			})
		})
	}
	t.Run("with a log, a target is missed because of the disk", func(t *testing.T) {
		e := exhibits(t)
		e.web.x.run = "run"
		e.tell(time.Second, func(s *snapshot) {
			s.broker.Lanes[notification.P0] = notification.BrokerLane{Published: 1, Latency: took(3 * time.Millisecond)}
			s.gateway.Lanes[notification.P0].Latency = took(4 * time.Millisecond)
		})
		for lang, want := range map[string]string{"en": "on the disk before it is delivered, which took 3 ms.", "zh": "写入耗时 3 ms。"} {
			do(t, ctx, open(e.web.addr, lang))
			if reasons := value[string](t, ctx, text("reasons")); !strings.Contains(reasons, want) {
				t.Error(reasons)
			}
			note := value[string](t, ctx, text("inside-note"))
			if log := map[string]string{"en": "there is a log", "zh": "有一份消息日志"}[lang]; !strings.Contains(note, log) {
				t.Error(note)
			}
		}
	})
	t.Run("of several processes it shows what is known, and no inside", func(t *testing.T) {
		mux := http.NewServeMux()
		mux.Handle("GET /", page.Guard(page.Handler()))
		mux.HandleFunc("GET /api/session", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
		mux.HandleFunc("GET /api/stats", func(w http.ResponseWriter, _ *http.Request) {
			page.Reply(w, http.StatusOK, map[string]any{"phase": phaseRunning, "users": 9, "started": 1, "now": time.Now().UnixMilli(), "samples": []any{map[string]any{
				"number": 1, "at": time.Now().UnixMilli(), "sessions": 9, "broadcasts": 0, "published": 12, "delivered": 34, "pending": []int{0, 5, 0, 0}, "p50": []int{0, 1, 0, 0}, "p99": []int{0, 2, 0, 0},
			}}})
		})
		s := httptest.NewServer(mux)
		defer s.Close()
		for lang, caption := range map[string]string{"en": "Published, and not yet received", "zh": "已发布、尚未收到的消息"} {
			do(t, ctx, chromedp.Navigate(s.URL+"/?lang="+lang), until(`document.querySelector("#rate-key .delivered b")?.textContent === "34"`),
				until(fmt.Sprintf(`%s === %q && document.querySelector("#queue-key .p1 b").textContent === "5"`, text("queue-caption"), caption)),
				until(`!document.getElementById("inside").checkVisibility() && !document.getElementById("lanes").checkVisibility()`))
		}
	})
	t.Run("in Chinese nothing is English", func(t *testing.T) {
		e := exhibits(t)
		e.tell(time.Second, func(s *snapshot) {
			s.broadcasts++
			for p := range targets {
				s.broker.Lanes[p] = notification.BrokerLane{Published: 1, Unrouted: 1, Discarded: 1, Latency: took(time.Second)}
				s.gateway.Lanes[p] = notification.GatewayLane{Discarded: 1, NoSession: 1, DroppedSlow: 1, DroppedEnded: 1, Latency: took(3 * time.Second)}
			}
		})
		e.web.mu.Lock()
		e.web.table[0].Reasons = append(e.web.table[0].Reasons, loss{1, tooLate})
		e.web.mu.Unlock()
		for _, verdict := range []string{verdictWhole, verdictBroken} {
			e.web.mu.Lock()
			e.web.verdict = verdict
			e.web.mu.Unlock()
			do(t, ctx, open(e.web.addr, "zh"))
			for _, selector := range []string{".plots", ".inside", ".table"} {
				if words := value[[]string](t, ctx, latin(selector)); len(words) > 0 {
					t.Errorf("%s says %q", selector, words)
				}
			}
			if n := value[int](t, ctx, `document.getElementById("final").textContent.length`); n == 0 {
				t.Error("no verdict")
			}
		}
	})
	t.Run("text and lines stand out from what is behind them, light and dark", func(t *testing.T) {
		e := exhibits(t)
		e.steady(20)
		e.tell(time.Minute, func(s *snapshot) { s.broadcasts++ })
		e.steady(20)
		for _, theme := range []string{"light", "dark"} {
			do(t, ctx, scheme(theme), open(e.web.addr, "en"), until(fmt.Sprintf("document.documentElement.dataset.theme === %q", theme)))
			if faint := value[[]string](t, ctx, `(() => {
				const rgb = (text) => text.match(/[\d.]+/g).map(Number);
				const light = (text) => {
					const [r, g, b] = rgb(text).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
					return 0.2126 * r + 0.7152 * g + 0.0722 * b;
				};
				const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
				const style = (e) => getComputedStyle(e);
				const found = [];
				const check = (selector, of, behind, least) => {
					const all = document.querySelectorAll(selector);
					if (!all.length) found.push("no " + selector);
					for (const e of all) {
						const c = contrast(of(e), behind);
						if (!(c >= least)) found.push(selector + " " + e.textContent + " " + e.parentNode.getAttribute("class") + ": " + c.toFixed(2));
					}
				};
				const card = style(document.querySelector(".plots")).backgroundColor, box = style(document.querySelector("#inside .box")).fill;
				check(".plots svg text", (e) => style(e).fill, card, 4.5);
				check(".silent text", (e) => style(e).fill, style(document.querySelector(".silent rect")).fill, 4.5);
				check(".plots svg .line, .plots svg .target", (e) => style(e).stroke, card, 3);
				check(".plots svg .mark", (e) => style(e).stroke, card, 3);
				check("#inside text", (e) => style(e).fill, box, 4.5);
				check("#inside text.value", (e) => style(e).fill, card, 4.5);
				check("#inside .depth, #inside .most, #inside .tip", (e) => style(e).fill, box, 3);
				check("#inside .box", (e) => style(e).stroke, card, 3);
				check("#inside .depth", (e) => style(e).fill, style(document.querySelector("#inside .room")).fill, 3);
				return found;
			})()`); len(faint) > 0 {
				t.Errorf("%s: %s", theme, strings.Join(faint, "\n"))
			}
		}
	})
}

// TestOverviewAway needs a real browser, and real time.
func TestOverviewAway(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	ctx := browse(t)
	for _, c := range []struct{ lang, away, ended, soFar, asOf, final, silent string }{
		{"en", `/^The exchange does not answer\. .* \d\d:\d\d:\d\d/`, `/^The exchange ended at \d\d:\d\d:\d\d/`, "So far", `/^As of \d\d:\d\d:\d\d$/`, "Final", "nothing heard"},
		{"zh", `/^交易所没有响应。.* \d\d:\d\d:\d\d/`, `/^交易所已于 \d\d:\d\d:\d\d 关闭/`, "截至目前", `/^截至 \d\d:\d\d:\d\d$/`, "最终结果", "没有数据"},
	} {
		for _, silent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s: an exchange that is away, silent %t, is said to be, and shown when it is back", c.lang, silent), func(t *testing.T) {
				f, before, after := newFront(t), exhibits(t), exhibits(t)
				f.silent.Store(silent)
				before.steady(20)
				f.show(before.web)
				do(t, ctx, open(f.addr, c.lang), until(text("away")+` === ""`), until(text("table-title")+fmt.Sprintf(" === %q", c.soFar)))

				f.behind.Store(nil)
				do(t, ctx, until(c.away+".test("+text("away")+")"), until(c.asOf+".test("+text("table-title")+")"), until(text("headline")+` === ""`))

				// It is started again: its samples begin with 1, after a while.
				after.last.at = before.last.at.Add(time.Minute)
				after.steady(5)
				f.show(after.web)
				do(t, ctx, until(text("away")+` === ""`), until(text("table-title")+fmt.Sprintf(" === %q", c.soFar)), until(text("headline")+` !== ""`),
					until(`document.querySelector("#rate .delivered .line").getAttribute("d").split("M").length - 1 === 2`),
					until(fmt.Sprintf(`document.querySelector("#rate .silent").textContent === %q`, c.silent)))
			})
		}
		t.Run(c.lang+": an exchange that has ended leaves its last table, and is shown when it is started again", func(t *testing.T) {
			f, before, after := newFront(t), exhibits(t), exhibits(t)
			before.steady(5)
			f.show(before.web)
			do(t, ctx, open(f.addr, c.lang))
			before.web.mu.Lock()
			before.web.phase, before.web.verdict = phaseFinished, verdictWhole
			before.web.mu.Unlock()
			do(t, ctx, until(text("table-title")+fmt.Sprintf(" === %q", c.final)), until(text("final")+` !== ""`))
			f.behind.Store(nil)
			do(t, ctx, until(c.ended+".test("+text("away")+")"))
			if title := value[string](t, ctx, text("table-title")); title != c.final {
				t.Error(title)
			}
			after.steady(5)
			f.show(after.web)
			do(t, ctx, until(text("away")+` === ""`), until(text("table-title")+fmt.Sprintf(" === %q", c.soFar)), until(text("final")+` === ""`))
		})
	}
}
