package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/qaexchange/notification/promstats"
)

// A site is an http.Server that serves on an address, with a time for everything
// that a client may make it wait for.
type site struct {
	http   *http.Server
	addr   string
	served chan error // what Serve returned
}

func openSite(l net.Listener, handler http.Handler, answer time.Duration, log *slog.Logger) *site {
	s := &site{
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      answer,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
		addr:   l.Addr().String(),
		served: make(chan error, 1),
	}
	go func() { s.served <- s.http.Serve(l) }() // ends with close, which waits for it
	return s
}

func (s *site) close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// openAdmin serves what is for the operator alone, on a listener of its own: metrics
// tell what is traded, a profile what is in memory, and behind a proxy on this machine
// everybody's address is this machine's. web is nil if there is no page.
func openAdmin(x *exchange, web *server, addr string, log *slog.Logger) (*site, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(x.bus.collectors()...)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if web != nil {
		registry.MustRegister(promstats.NewTransportCollector("websocket", web.web), promstats.NewTransportCollector("sse", web.events))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "/metrics\n/debug/pprof/\n")
	})
	return openSite(l, mux, 2*time.Minute, log), nil // a CPU profile takes 30 s
}
