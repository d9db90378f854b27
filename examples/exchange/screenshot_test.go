package main

import (
	"bytes"
	"cmp"
	"context"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestScreenshots writes the pictures of the README into the folder that it is told:
//
//	EXCHANGE_SCREENSHOTS=screenshots go test -run Screenshots ./exchange
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("EXCHANGE_SCREENSHOTS")
	if dir == "" {
		t.Skip("skipped: EXCHANGE_SCREENSHOTS does not name a folder")
	}
	ctx := browse(t)
	_, web, stop := market(t, 1_000, 2_000)
	defer stop()
	do(t, ctx, scheme("light"), signIn(web, "u00042"), until(liveFeed),
		click("#cut"), until(`document.getElementById("verdict").dataset.whole === "true"`),
		until(`(window.shoot ??= Date.now() + 60000) < Date.now()`), // the plots have something to show
		until(`document.getElementById("pinned").hidden || document.getElementById("acknowledge-all").click()`),
		click("#margin-call"), until(`!document.getElementById("pinned").hidden`))
	desktop := chromedp.EmulateViewport(1440, 1630)
	for _, picture := range []struct {
		name, language, scheme string
		width                  step
	}{
		{"desktop.png", "en", "light", desktop},
		{"desktop.zh-CN.png", "zh", "dark", desktop},
		{"phone.png", "en", "dark", phone()},
		{"phone.zh-CN.png", "zh", "light", phone()},
	} {
		do(t, ctx, speak(picture.language), scheme(picture.scheme), themed(picture.scheme), picture.width)
		shoot(t, ctx, filepath.Join(dir, picture.name))
	}
}

// A picture in the repository is there for good.
const pictureBytes = 200_000

// shoot writes what the tab shows.
func shoot(t *testing.T, ctx context.Context, path string) {
	t.Helper()
	shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, paletted(full)); err != nil {
		t.Fatal(err)
	}
	if b.Len() > pictureBytes {
		t.Errorf("%s has %d bytes", path, b.Len())
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// paletted leaves an image the 256 colours that most of it has, which is what a page
// looks like whose other colours are the edges of letters.
func paletted(m image.Image) image.Image {
	counts := map[color.Color]int{}
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			counts[m.At(x, y)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int { return cmp.Compare(counts[b], counts[a]) })
	p := image.NewPaletted(m.Bounds(), colors[:min(len(colors), 256)])
	draw.Draw(p, p.Bounds(), m, m.Bounds().Min, draw.Src)
	return p
}
