// Package page is the exchange's page: what a browser loads, and what it may do with
// that. What the page asks for, under api/, and where its notifications come from is
// the server's; what all such servers do in the same way is in answers.go.
package page

import (
	"embed"
	"net/http"

	"github.com/qaexchange/notification/clients/typescript"
)

// The page needs nothing but what is in this folder, and the client of this
// repository, and may not load anything else.
//
//go:embed *.html *.css *.js *.svg
var files embed.FS

// Policy is the Content-Security-Policy of all answers.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Handler serves the page's files.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.Handle("GET /notification-client.js", typescript.Handler())
	return mux
}

// Guard is for all that the page's server answers: it sets the headers that keep a
// browser from what the page does not do, and refuses other sites' pages what changes
// something, beside what the cookie's SameSite does.
func Guard(next http.Handler) http.Handler {
	safe := http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", Policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		safe.ServeHTTP(w, r)
	})
}
