package typescript

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/any", nil))
	if got := w.Header().Get("Content-Type"); got != "text/javascript; charset=utf-8" {
		t.Errorf("a browser does not run a module of type %q", got)
	}
	if !bytes.Equal(w.Body.Bytes(), JS) || !bytes.Contains(JS, []byte("notification.batch.v1")) {
		t.Errorf("that is not the client: %.100s", w.Body)
	}
}

// npm test has the same limit. This runs without npm.
func TestTheClientIsSmall(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(JS); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d with gzip", len(JS), b.Len())
	if b.Len() >= 6_000 {
		t.Errorf("%d bytes with gzip", b.Len())
	}
}

// TestNPM is npm ci, if what it installs is not there, and npm test. It is skipped,
// and says why, where there is no Node from 20 on, no npm, or no way to the packages.
func TestNPM(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: npm test starts servers and a Chromium")
	}
	version, err := exec.Command("node", "-p", "process.versions.node").Output()
	if err != nil {
		t.Skip("skipped: there is no node here")
	}
	major, _, _ := strings.Cut(string(version), ".")
	if n, err := strconv.Atoi(major); err != nil || n < 20 {
		t.Skipf("skipped: this node is %s, and 20 is the oldest that the client supports", strings.TrimSpace(string(version)))
	}
	npm := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "npm", args...)
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
		return cmd.CombinedOutput()
	}
	if out, err := npm("ls"); err != nil { // others may be using what is there
		t.Logf("npm ls: %v\n%s", err, out)
		if out, err := npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"); err != nil {
			t.Skipf("skipped: npm ci: %v\n%s", err, out)
		}
	}
	out, err := npm("test")
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
