// Package browser starts Chromium for the tests of the examples.
package browser

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Patience is how long a test waits for what must happen.
const Patience = 5 * time.Minute

// Start prepares a browser without a window, which starts with the first tab
// (chromedp.NewContext) of the context that it returns and ends with the test. Where
// there is none it skips the test.
func Start(t *testing.T, options ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	names := []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}
	i := slices.IndexFunc(names, func(name string) bool { _, err := exec.LookPath(name); return err == nil })
	if i < 0 {
		t.Skip("there is no Chromium on this machine: apt-get install chromium")
	}
	all := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(names[i]), chromedp.WSURLReadTimeout(Patience))
	if os.Geteuid() == 0 { // Chromium has no sandbox for root
		all = append(all, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(all, options...)...)
	t.Cleanup(cancel)
	return ctx
}

// Open starts a browser with one tab.
func Open(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(Start(t))
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}
