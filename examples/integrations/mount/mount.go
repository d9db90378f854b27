// Package mount puts the WebSocket handler on a router that is there already,
// behind the middleware that it has.
package mount

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

// Mux returns a router of net/http with sockets, a wsgateway.Handler, beside
// what else the service has.
func Mux(sockets, orders http.Handler, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /notifications", sockets)
	// Whatever buffers the answer, a timeout or compression, belongs around the
	// routes that need it: nothing can be upgraded behind it.
	mux.Handle("GET /orders", http.TimeoutHandler(orders, 5*time.Second, "too slow"))
	return logged(log, mux)
}

// logged logs each request when it has been answered, which is at the upgrade
// for a WebSocket.
func logged(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		log.Info("request", "path", r.URL.Path, "status", rec.status)
	})
}

// A recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes status and passes it on.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController find what the embedded interface hides,
// Hijack above all. Without it every upgrade is answered with 501.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Chi is Mux for chi, whose own middleware passes Hijack on.
func Chi(sockets, orders http.Handler) http.Handler {
	router := chi.NewRouter()
	router.Use(middleware.RequestID, middleware.Logger, middleware.Recoverer)
	router.Method(http.MethodGet, "/notifications", sockets)
	router.Group(func(r chi.Router) {
		r.Use(middleware.Compress(5)) // not around the sockets
		r.Method(http.MethodGet, "/orders", orders)
	})
	return router
}
