package page

import (
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const most = 120_000 // bytes of all files

func TestHandler(t *testing.T) {
	h := Handler()
	get := func(path, encoding string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Accept-Encoding", encoding)
		h.ServeHTTP(w, r)
		return w
	}
	names, err := fs.Glob(files, "*")
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	total := 0
	for _, name := range append(names, "notification-client.js", "") {
		plain, zipped := get("/"+name, ""), get("/"+name, "gzip, br")
		if name != "" {
			total += zipped.Body.Len()
		}
		z, err := gzip.NewReader(zipped.Body)
		if err != nil {
			t.Fatal(name, err)
		}
		text, err := io.ReadAll(z)
		if err != nil || string(text) != plain.Body.String() || plain.Code != http.StatusOK || zipped.Header().Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: %d, %v, %v", name, plain.Code, zipped.Header(), err)
		}
		if kind := zipped.Header().Get("Content-Type"); kind == "" || strings.HasSuffix(name, ".js") != strings.Contains(kind, "javascript") {
			t.Errorf("%s is %q", name, kind)
		}
	}
	t.Log(total, "bytes")
	if total > most {
		t.Errorf("the page has %d bytes", total)
	}
	for _, path := range []string{"/page.go", "/nothing", "/index.html/"} {
		if w := get(path, "gzip"); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
