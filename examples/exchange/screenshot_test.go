package main

import (
	"cmp"
	"context"
	"os"
	"testing"

	"github.com/chromedp/chromedp"
)

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
	do(t, ctx,
		scheme(cmp.Or(os.Getenv("EXCHANGE_SCHEME"), "light")),
		signIn(web, "u00042"), until(liveFeed),
		until(`document.querySelectorAll("#feed li[data-id]").length >= 40`),
		click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`),
		click("#margin-call"),
		until(`document.querySelector("#feed li.p0[data-type=margin_call]") !== null`),
		until(`(window.shoot ??= Date.now() + 15000) < Date.now()`),
	)
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
