package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/qaexchange/notification/examples/internal/browser"
	"github.com/stretchr/testify/require"
)

// TestPage has a page live through the death of its edge.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: six processes, and a browser")
	}
	ctx := browser.Open(t)
	program := build(t)
	cmd := exec.Command(program, "-addr", "127.0.0.1:0", "-duration", "0", "-every", "0", "-clients", "20", "-rate", "200", "-dir", t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test has failed before its end
			_ = cmd.Process.Signal(syscall.SIGTERM) // it has processes to end
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	})
	said := bufio.NewReader(out)
	var url string
	for found := false; !found; url = strings.TrimSpace(url) {
		line, err := said.ReadString('\n')
		require.NoError(t, err)
		url, found = strings.CutPrefix(line, "the page is at ")
	}
	rest := make(chan string, 1)
	go func() { // ends with the process
		text, _ := io.ReadAll(said)
		rest <- string(text)
	}()

	until := func(expression string) {
		t.Helper()
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(browser.Patience)))
		if err != nil {
			seen, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.dataset.connection + ": " + document.body.innerText`))
			t.Fatalf("waiting for %s: %v\n%s", expression, err, seen)
		}
	}
	text := func(id string) string {
		t.Helper()
		s, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf("document.getElementById(%q).textContent", id)))
		require.NoError(t, err)
		return s
	}
	click := func(selector string) {
		t.Helper()
		require.NoError(t, chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector(%q).click()", selector))))
	}
	const live = `document.body.dataset.connection === "live" && document.querySelectorAll("#feed li[data-id]").length >= 3`
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(url+"?lang=en")))
	until(`!document.getElementById("sign-in").hidden`)
	require.NoError(t, chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void](`document.getElementById("name").value = "u00003"`)))
	click("#sign-in button")
	until(live)

	for _, language := range []string{"English", "中文"} {
		t.Run("its edge is killed, and it goes on at another one with nothing missing, in "+language, func(t *testing.T) {
			if text("language") == language {
				click("#language")
			}
			until(fmt.Sprintf(`document.getElementById("language").textContent !== %q`, language)) // it loads its words
			before := text("edge")
			require.Regexp(t, `edge-[012]$`, before)
			require.Contains(t, text("kill"), before[strings.LastIndex(before, "edge-"):])
			require.NoError(t, chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void](`window.killed = 0, document.getElementById("verdict").dataset.whole = ""`)))
			// A page that is not connected at the moment does nothing, so it is told again.
			until(fmt.Sprintf(`document.getElementById("edge").textContent !== %q || (Date.now() - (window.killed ?? 0) > 5000 &&
				(window.killed = Date.now(), document.getElementById("kill").click()), false)`, before))
			until(live)
			until(`(window.whole = document.getElementById("verdict").dataset.whole) !== ""`)
			whole, err := chromedp.Run(ctx, chromedp.Evaluate[string](`window.whole`))
			require.NoError(t, err)
			require.Equal(t, "true", whole, text("verdict"))
			t.Log(text("verdict"))
		})
	}
	t.Run("what a cluster has not is not shown, and the plots are", func(t *testing.T) {
		until(`["margin-call", "halt"].every((id) => document.getElementById(id).hidden)`)
		until(`document.getElementById("inside").closest("section").hidden && document.getElementById("lanes").closest("section").hidden`)
		until(`document.querySelectorAll("#latency path").length > 0 && document.querySelectorAll("#rate path").length > 0`)
	})
	t.Run("at the end nobody else has missed anything either", func(t *testing.T) {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		table := <-rest
		require.NoError(t, cmd.Wait(), table)
		require.Regexp(t, `edges killed +[2-9]`, table)
		require.Regexp(t, `lost +0\n`, table)
	})
}
