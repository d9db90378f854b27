package main

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/performance"
)

// TestRenderer measures what the page costs a browser: the CPU time of the renderer's
// process and of its main thread, what is left in the heap of JavaScript after a
// collection, and the nodes of the document, for as long as it is told to:
//
//	EXCHANGE_RENDERER=10m go test -v -run Renderer ./exchange
//
// The tab is in front, and 10,000 users are told 10,000 messages a second.
func TestRenderer(t *testing.T) {
	text := os.Getenv("EXCHANGE_RENDERER")
	if text == "" {
		t.Skip("skipped: EXCHANGE_RENDERER does not say for how long to measure")
	}
	total, err := time.ParseDuration(text)
	const rounds = 10
	if err != nil || total < rounds*time.Second {
		t.Fatalf("EXCHANGE_RENDERER=%s is no duration of %d s or more: %v", text, rounds, err)
	}
	ctx := browse(t)
	_, web, stop := market(t, 10_000, 10_000)
	defer stop()
	do(t, ctx, signIn(web, "u00042"), until(liveFeed))
	call(t, ctx, performance.Enable, performance.EnableParams{})

	t.Logf("%s, %s, %d CPUs", value[string](t, ctx, `navigator.userAgent.match(/Chrome\/\S+/)[0]`), runtime.Version(), runtime.NumCPU())
	t.Log("minutes  process  main thread  script  style  layout  heap MB  nodes  listeners")
	read := func() map[string]float64 {
		call(t, ctx, heapprofiler.CollectGarbage, cdp.Empty{})
		m := map[string]float64{}
		for _, metric := range call(t, ctx, performance.GetMetrics, cdp.Empty{}).Metrics {
			m[metric.Name] = metric.Value
		}
		return m
	}
	first := read()
	var early map[string]float64 // when the page is full
	for from, round := first, 1; round <= rounds; round++ {
		select {
		case <-time.After(total / rounds):
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
		to := read()
		share := func(name string) float64 {
			return 100 * (to[name] - from[name]) / (to["Timestamp"] - from["Timestamp"])
		}
		t.Logf("%7.1f  %5.1f %%  %9.1f %%  %4.1f %%  %3.1f %%  %4.1f %%  %7.1f  %5.0f  %9.0f",
			(to["Timestamp"]-first["Timestamp"])/60, share("ProcessTime"), share("ThreadTime"), share("ScriptDuration"),
			share("RecalcStyleDuration"), share("LayoutDuration"), to["JSHeapUsedSize"]/1e6, to["Nodes"], to["JSEventListeners"])
		if round == rounds/2 {
			early = to
		}
		from = to
	}
	for _, name := range []string{"JSHeapUsedSize", "Nodes", "JSEventListeners"} {
		if last := read()[name]; last > 1.5*early[name] {
			t.Errorf("%s has grown from %.0f to %.0f in the second half", name, early[name], last)
		}
	}
}
