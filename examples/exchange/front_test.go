package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
)

// A front is an address at which an exchange is, or another one, or none.
type front struct {
	addr    string
	behind  atomic.Pointer[string] // the address of the exchange; nil: it is away
	silent  atomic.Bool            // while it is away, requests are not refused but left to wait
	release chan struct{}
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{release: make(chan struct{})}
	const behind = "Behind"
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: r.In.Header.Get(behind)})
			r.Out.Host = r.In.Host // a page's Origin is compared with it
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addr := f.behind.Load()
		if addr == nil {
			if f.silent.Load() {
				select {
				case <-r.Context().Done():
				case <-f.release:
				}
			}
			http.Error(w, "nobody is here", http.StatusServiceUnavailable)
			return
		}
		r.Header.Set(behind, *addr)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		close(f.release)
		s.CloseClientConnections()
		s.Close()
	})
	f.addr = s.Listener.Addr().String()
	return f
}

func (f *front) show(web *server) { f.behind.Store(&web.site.addr) }
