// Exchange is a small exchange in one process: a matching engine, an account
// and a risk service, simulated or driven by recorded order flow, tell
// thousands of users through one Broker and one Gateway what happened, or through
// a log on disk.
//
//	go run ./examples/exchange
//	go run ./examples/exchange -durable /var/lib/exchange
//	go run ./examples/exchange -replay aapl-2012-06-21.csv.gz -speed 60
//
// It shows its progress, and on Ctrl-C, after -duration or at the end of the
// recording it drains, prints what was published, delivered and lost and how
// long it took, and checks what the users saw against what the library counted.
// The exit status is 1 if something was lost or does not add up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/qaexchange/notification"
)

// drainTimeout is how long the drain may take.
const drainTimeout = time.Minute

type options struct {
	users    int
	rate     float64
	replay   string
	speed    float64
	duration time.Duration
	seed     uint64
	flaky    float64
	durable  string

	addr, admin, key string
	behindTLS        bool

	asked map[string]bool // flags that were given: they are no defaults
}

const (
	defaultAddr  = "127.0.0.1:8080"
	defaultAdmin = "127.0.0.1:8081"
)

func parse(args []string, output io.Writer) (o options, err error) {
	f := flag.NewFlagSet("exchange", flag.ContinueOnError)
	f.SetOutput(output)
	f.IntVar(&o.users, "users", 10_000, "`number` of users, each with a session in this process")
	f.Float64Var(&o.rate, "rate", 10_000, "`messages` per second that the simulated market causes")
	f.StringVar(&o.replay, "replay", "", "drive it with recorded order flow instead: a CSV or CSV.gz `file` in the LOBSTER message format")
	f.Float64Var(&o.speed, "speed", 1, "with -replay, how many `times` faster than it was recorded; 0: as fast as it goes")
	f.DurationVar(&o.duration, "duration", 0, "end by itself after this `time`; 0: on Ctrl-C, or with the recording")
	f.Uint64Var(&o.seed, "seed", 1, "of the simulated market: the same seed, the same flow")
	f.Float64Var(&o.flaky, "flaky", 0, "`share` of the users, 0 to 1, with a WebSocket that keeps breaking, about every 10 s for up to 3 s, and resumes")
	f.StringVar(&o.durable, "durable", "", "keep what is published in this `folder`, on disk before it is delivered: killed and started again, its clients go on where they were")
	f.StringVar(&o.addr, "addr", defaultAddr, "`address` of the page; empty: none")
	f.StringVar(&o.admin, "admin", defaultAdmin, "`address` of /metrics and /debug/pprof, which are not for everybody; empty: none")
	f.StringVar(&o.key, "key", "", "`file` with the key that signs the sign-ins, made if there is none; default: in the folder of -durable, else in the user's cache; empty: no file, they end with the process")
	f.BoolVar(&o.behindTLS, "behind-tls", false, "the page is behind a proxy that ends TLS, and says so in X-Forwarded-Proto and X-Forwarded-For")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.asked = make(map[string]bool)
	f.Visit(func(f *flag.Flag) { o.asked[f.Name] = true })
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.users < 1 || o.users > 1_000_000:
		err = fmt.Errorf("-users %d is not within 1 and 1,000,000", o.users)
	case !(o.rate > 0) || o.rate > 1e7:
		err = fmt.Errorf("-rate %v is not within 0 and 10,000,000", o.rate)
	case !(o.speed >= 0) || math.IsInf(o.speed, 0):
		err = fmt.Errorf("-speed %v is not a number from 0", o.speed)
	case !(o.flaky >= 0 && o.flaky <= 1):
		err = fmt.Errorf("-flaky %v is not within 0 and 1", o.flaky)
	case o.duration < 0:
		err = fmt.Errorf("-duration %s is negative", o.duration)
	}
	return o, err
}

func main() {
	// Half of a P0's tail is garbage collection; memory is not what is short
	// here. The environment's GOGC has the last word.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = o.run(ctx, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "exchange:", err)
		return 1
	}
	return 0
}

func (o options) run(ctx context.Context, stdout, stderr io.Writer) error {
	var recorded *recording
	if o.replay != "" {
		var err error
		if recorded, err = openRecording(o.replay); err != nil {
			return err
		}
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	keys, err := o.openKeys(stdout)
	if err != nil {
		return err
	}
	x, err := o.open(ctx, log)
	if err != nil {
		return err
	}
	web, err := openOn(o, "addr", o.addr, stdout, func() (*server, error) { return newServer(x, keys, o, log) })
	if err != nil {
		return err
	}
	if web != nil {
		fmt.Fprintf(stdout, "the page is at http://%s/\n", web.addr)
	}
	admin, err := openOn(o, "admin", o.admin, stdout, func() (*site, error) { return openAdmin(x, web, o.admin, log) })
	if err != nil {
		return err
	}
	if admin != nil {
		fmt.Fprintf(stdout, "metrics and profiles are at http://%s/\n", admin.addr)
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}

	// The driver ends with ctx, or with the recording; watch waits for it, and
	// then the flock is told to come home.
	d := &driver{done: make(chan struct{})}
	if recorded != nil {
		r := newReplay(o.users, recorded, newBurst(x))
		d.events = len(recorded.events)
		fmt.Fprintf(stdout, "%s events of %s from %s, at %v times their pace, for %s users\n",
			count(d.events), recorded.instrument, o.replay, o.speed, count(o.users))
		go d.run(func() time.Duration { return r.run(ctx, o.speed, &d.played) })
	} else {
		e := newEngine(o.users, o.seed, newBurst(x))
		fmt.Fprintf(stdout, "a simulated market, %s messages a second for %s users; Ctrl-C ends it\n", count(o.rate), count(o.users))
		go d.run(func() time.Duration { return e.run(ctx, o.rate) })
	}
	f, err := newFlock(x, o.flaky, o.seed)
	if err != nil {
		return err
	}
	flocking, calm := context.WithCancel(context.Background())
	defer calm()
	go f.run(flocking) // waited for below
	watch(ctx, x, d, web, newScreen(stdout))

	// A driver that waits for room in a lane is let go after the time that the
	// drain has, and what it could not publish is counted.
	var hangUp func(context.Context) error
	if web != nil {
		web.drain()
		hangUp = web.hangUp
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	defer context.AfterFunc(drain, x.stop)()
	<-d.done
	calm()
	<-f.done
	failed := errors.Join(f.home(drain), x.drain(drain, hangUp), f.close(drain))

	s := x.snapshot()
	// What was written to a connection that broke is Taken, and was not seen.
	others := web != nil && web.guests.came.Load() || o.flaky > 0
	rows, mismatches := x.final(s, others, f.gone.Load())
	fmt.Fprintln(stdout)
	printTable(stdout, rows)
	fmt.Fprintln(stdout)
	verdict, err := o.conclude(stdout, x, d, f, s, rows, mismatches)
	fmt.Fprintln(stdout, verdict)
	if web != nil {
		failed = errors.Join(failed, web.close(drain, rows, verdict))
	}
	if admin != nil { // it has shown the drain as well
		failed = errors.Join(failed, admin.close(drain))
	}
	return errors.Join(err, failed)
}

// openOn opens what serves on the address of a flag; nil: nothing does. A default that
// is in use must not keep the exchange from running: nobody has asked for it.
func openOn[T any](o options, flag, addr string, stdout io.Writer, open func() (*T, error)) (*T, error) {
	if addr == "" {
		return nil, nil
	}
	t, err := open()
	if errors.Is(err, syscall.EADDRINUSE) && !o.asked[flag] {
		fmt.Fprintf(stdout, "%s is in use, so nothing is served there; -%s chooses another address\n", addr, flag)
		return nil, nil
	}
	return t, err
}

// openKeys returns what signs the tokens. Unless told otherwise it keeps the key, so
// that who is signed in stays so when the exchange is started again.
func (o options) openKeys(stdout io.Writer) (*signer, error) {
	switch {
	case o.addr == "", o.asked["key"] && o.key == "": // nobody signs in, or nobody is to stay
		return newSigner(), nil
	case o.asked["key"]:
		return openSigner(o.key)
	case o.durable != "":
		return openSigner(filepath.Join(o.durable, "key"))
	}
	dir, err := os.UserCacheDir()
	if err == nil {
		var s *signer
		if s, err = openSigner(filepath.Join(dir, "notification-exchange", "key")); err == nil {
			return s, nil
		}
	}
	fmt.Fprintf(stdout, "who signs in is signed in until this process ends, because there is no key: %v; -key chooses a file\n", err)
	return newSigner(), nil
}

// open returns an exchange with its bus.
func (o options) open(ctx context.Context, log *slog.Logger) (*exchange, error) {
	if o.durable == "" {
		b, err := newMemory(notification.BrokerConfig{Logger: log}, o.gatewayConfig(log))
		if err != nil {
			return nil, err
		}
		return newExchange(o.users, b, "")
	}
	b, err := newDurable(ctx, o.durable, o.gatewayConfig(log), log)
	if err != nil {
		return nil, err
	}
	return newExchange(o.users, b, newRun())
}

// gatewayConfig turns on the history for those who can come back: flaky users
// of this process, and browsers. It is bounded by a total, some 900 bytes for
// each message: without flaky users nobody is away without another session
// here, so that 20 s of the default rate do.
func (o options) gatewayConfig(log *slog.Logger) notification.GatewayConfig {
	cfg := notification.GatewayConfig{Logger: log}
	if o.addr != "" || o.flaky > 0 || o.durable != "" {
		cfg.HistoryMessages = 1024
		cfg.HistoryTotal = 200_000
	}
	if o.flaky > 0 {
		cfg.HistoryTotal = 2_000_000
	}
	return cfg
}

// conclude prints what the table does not say. It returns its last line, and
// what went wrong.
func (o options) conclude(out io.Writer, x *exchange, d *driver, f *flock, s snapshot, rows []laneReport, mismatches []string) (verdict string, err error) {
	var all, cut uint64
	for p, r := range rows {
		all += r.Delivered
		cut += x.cut[p].Load()
	}
	fmt.Fprintf(out, "%s messages in %s pushes, %s MB of JSON; at worst %s behind schedule\n",
		count(all), count(s.gateway.Batches), count(x.bytes()/1e6), duration(d.behind))
	if others := s.delivered() - all; others > 0 {
		fmt.Fprintf(out, "%s more to browsers, or to connections that broke\n", count(others))
	}
	var lost uint64
	for p, r := range rows {
		lost += r.Lost
		if n := x.full[p].Load(); n > 0 {
			fmt.Fprintf(out, "%s was full %s times, and PublishWait waited\n", r.Lane, count(n))
		}
		for _, reason := range r.Reasons {
			fmt.Fprintf(out, "%s: %s\n", r.Lane, reason)
		}
	}
	if cut > 0 {
		fmt.Fprintf(out, "%s were not accepted, because the exchange was closing\n", count(cut))
	}
	if o.flaky > 0 {
		whole, gone := f.whole.Load(), f.gone.Load()
		fmt.Fprintf(out, "%s flaky users came back %s times: %s whole, %s too late for the history\n",
			count(len(f.birds)), count(whole+gone), count(whole), count(gone))
	}
	if slices.ContainsFunc(rows, func(r laneReport) bool { return !r.Held }) {
		fmt.Fprintf(out, "a target was missed: %s\n", explain())
	}
	if lost > 0 {
		err = fmt.Errorf("%s messages were lost", count(lost))
	}
	for _, m := range mismatches {
		err = errors.Join(err, fmt.Errorf("does not add up: %s", m))
	}
	if err != nil {
		return verdictBroken, err
	}
	return verdictWhole, nil
}

// explain says what a missed target may come from that is not the library's.
func explain() string {
	why := fmt.Sprintf("this machine has %d CPUs", runtime.GOMAXPROCS(0))
	if n, ok := load(); ok {
		why += fmt.Sprintf(", and over the last minute %.2f tasks wanted one", n)
	}
	return why
}
