package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// axe returns the source of axe-core, installed as the lock file in testdata says, or
// skips the test.
func axe(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/axe")); err != nil {
		t.Fatal(err)
	}
	npm := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Skipf("skipped: npm ci: %v\n%s", err, out)
	}
	source, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	return string(source)
}

// violations are those of all rules that axe has in force, and of the smallest size
// of a target, which one has to ask for.
const violations = `axe.run({ resultTypes: ["violations"], rules: { "target-size": { enabled: true } } }).then(({ violations }) =>
	violations.map(({ id, help, nodes: [n, ...more] }) => id + ": " + help + ": " + n.target.join(" ") + " and " + more.length + " more\n" + n.html.slice(0, 200) + "\n" + n.failureSummary))`

// TestAxe looks at what the page may have to show, in both languages, light and
// dark, wide and narrow.
func TestAxe(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	source := axe(t)
	ctx := browse(t)
	_, web, stop := market(t, 20, 100)
	running := true
	r := newRelay(t, web.addr)
	defer func() {
		if running {
			r.pass()
			stop()
		}
	}()

	// What comes before is done again before each look, because it does not last.
	look := func(name string, before ...step) {
		for _, code := range []string{"en", "zh"} {
			for _, colors := range []string{"light", "dark"} {
				for _, width := range []string{"desktop", "phone"} {
					t.Run(strings.Join([]string{name, code, colors, width}, ", "), func(t *testing.T) {
						do(t, ctx, speak(code), scheme(colors), themed(colors))
						if width == "phone" {
							do(t, ctx, phone())
							defer do(t, ctx, chromedp.ResetViewport())
						}
						do(t, ctx, before...)
						found, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](violations, chromedp.EvalAwaitPromise))
						if err != nil {
							t.Fatal(err)
						}
						for _, f := range found {
							t.Error(f)
						}
					})
				}
			}
		}
	}

	do(t, ctx, chromedp.Navigate("http://"+r.addr), chromedp.Evaluate[chromedp.Void](source),
		until(`!document.getElementById("sign-in").hidden`))
	look("the sign-in")
	do(t, ctx, enterAs("u99999"), until(`document.getElementById("sign-in-error").textContent !== ""`))
	look("a refused sign-in")
	do(t, ctx, enterAs("u00003"), until(liveFeed))
	look("notifications as they come")
	do(t, ctx, click("#margin-call"), until(`!document.getElementById("pinned").hidden`))
	look("a P0 that nobody has acknowledged")
	const group = `document.querySelector("#feed > li.group details")`
	look("filters, and an open group", until(group+` !== null && (`+group+`.open = true)`))
	look("a cut connection", until(`document.body.dataset.connection === "live"`), click("#cut"))
	do(t, ctx, until(`document.body.dataset.connection === "live"`))
	r.swallow()
	r.hangUp()
	do(t, ctx, until(`document.body.dataset.connection !== "live"`))
	look("an exchange out of reach")
	r.pass()
	do(t, ctx, until(`document.body.dataset.connection === "live"`))
	running = false
	stop()
	do(t, ctx, until(`document.getElementById("final").textContent === "The end."`))
	look("the end")
}
