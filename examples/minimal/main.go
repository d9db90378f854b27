// Minimal is a server to begin with: notifications in a browser, resumed after
// a cut, with metrics and an orderly way down.
//
//	go run ./examples/minimal
//
// Whoever connects names a user and is believed, which is for development only;
// authenticate is what has to be replaced.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/promstats"
	"github.com/qaexchange/notification/wsgateway"
)

//go:embed index.html
var page []byte

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` of the page and the WebSockets")
	metrics := flag.String("metrics", "127.0.0.1:8081", "`address` of /metrics")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if err := run(ctx, *addr, *metrics); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends or something fails, and drains.
func run(ctx context.Context, addr, metrics string) error {
	broker, err := notification.NewBroker(notification.BrokerConfig{Logger: slog.Default()})
	if err != nil {
		return err
	}
	// With a history, clients that reconnect resume behind their cursor.
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024, Logger: slog.Default()})
	if err != nil {
		return err
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		return err
	}
	sockets, err := wsgateway.New(gateway, wsgateway.Config{
		Authenticate:   authenticate,
		MaxConnections: 10_000,
		Logger:         slog.Default(),
	})
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(promstats.NewCollector(broker, gateway), promstats.NewTransportCollector("websocket", sockets))

	public := http.NewServeMux()
	public.Handle("GET /notifications", sockets)
	public.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(page) // the only error is a browser that has left
	})
	// Metrics tell what an exchange trades, so they have a listener of their
	// own, which the public network does not reach. A check of the remote
	// address would not do: behind a proxy everybody comes from the proxy.
	private := http.NewServeMux()
	private.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	site, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	meter, err := net.Listen("tcp", metrics)
	if err != nil {
		return errors.Join(err, site.Close())
	}
	server, meters := newServer(public), newServer(private)

	// Run has a context that never ends: that of a signal would throw away what
	// is under way, which Shutdown delivers.
	var running sync.WaitGroup
	failed := make(chan error, 4) // has room for all of them
	running.Go(func() { failed <- broker.Run(context.Background()) })
	running.Go(func() { failed <- gateway.Run(context.Background()) })
	running.Go(func() { failed <- server.Serve(site) })
	running.Go(func() { failed <- meters.Serve(meter) })

	fmt.Printf("open http://%s/, metrics are at http://%s/metrics, Ctrl-C ends it\n", site.Addr(), meter.Addr())
	producing, stop := context.WithCancel(ctx)
	defer stop()
	var producer sync.WaitGroup
	producer.Go(func() { produce(producing, broker) })
	select {
	case <-ctx.Done():
	case err = <-failed: // nothing returns before the way down, unless it failed
	}

	// The way down begins with whoever publishes. server.Shutdown closes the
	// listener at once, so that nobody new comes in, and then waits for requests.
	// One of those may wait for the handler (a stream of events would), so it is
	// begun before the handler's Shutdown and waited for after it. Of WebSockets
	// the server knows nothing.
	stop()
	producer.Wait()
	served := make(chan error, 1)
	go func() { served <- within(10*time.Second, server.Shutdown) }()
	err = errors.Join(err,
		within(10*time.Second, broker.Shutdown), // the Gateway gets what was accepted
		within(5*time.Second, sockets.Shutdown), // clients are sent away, spread over most of it
		<-served,
		within(10*time.Second, gateway.Shutdown),
		within(time.Second, meters.Shutdown), // last: the drain can be watched
	)
	running.Wait()
	return err
}

// newServer bounds what a client may take before its WebSocket begins, which
// has deadlines of its own.
func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
	}
}

// within gives a step of the way down a time of its own, so that one that takes
// all it has leaves the next no less.
func within(d time.Duration, shutdown func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return shutdown(ctx)
}

// authenticate believes what the URL says: FOR DEVELOPMENT ONLY. Check the
// cookie of your sign-in here, and return until when it holds.
func authenticate(r *http.Request) (wsgateway.Identity, error) {
	return wsgateway.Identity{UserID: r.URL.Query().Get("user")}, nil
}

// produce stands for the matching engine: a trade of alice's every second, until
// ctx ends.
func produce(ctx context.Context, broker *notification.Broker) {
	started := time.Now().Unix()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for i := 0; ; i++ {
		trade := notification.TradeExecuted{
			TradeID:      fmt.Sprintf("%d-%d", started, i),
			InstrumentID: "SHFE.cu2501", Direction: "BUY", Offset: "OPEN",
			Price: 50_000 + 10*float64(i%20), Volume: float64(1 + i%5),
			Timestamp: time.Now().UnixNano(),
		}
		n := notification.New("alice", trade, "MatchingEngine")
		n.ID = "trade-" + trade.TradeID // a retry would be recognized
		if err := broker.PublishWait(ctx, n); err != nil {
			slog.Error("a trade was not published", "trade", trade.TradeID, "error", err)
		}
		select {
		case <-second.C:
		case <-ctx.Done():
			return
		}
	}
}
