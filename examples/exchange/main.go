// Exchange is a small exchange in one process: a matching engine, an account
// and a risk service, simulated or driven by recorded order flow, tell
// thousands of users through one Broker and one Gateway what happened.
//
//	go run ./examples/exchange
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
	"runtime/debug"
	"syscall"
	"time"

	"github.com/qaexchange/notification"
)

// drainTimeout is how long the drain may take.
const drainTimeout = 15 * time.Second

type options struct {
	users    int
	rate     float64
	replay   string
	speed    float64
	duration time.Duration
	seed     uint64
}

func parse(args []string, output io.Writer) (o options, err error) {
	f := flag.NewFlagSet("exchange", flag.ContinueOnError)
	f.SetOutput(output)
	f.IntVar(&o.users, "users", 10_000, "`number` of users, each with a session in this process")
	f.Float64Var(&o.rate, "rate", 10_000, "`messages` per second that the simulated market causes")
	f.StringVar(&o.replay, "replay", "", "drive it with recorded order flow instead: a CSV or CSV.gz `file` in the LOBSTER message format")
	f.Float64Var(&o.speed, "speed", 1, "with -replay, how many `times` faster than it was recorded; 0: as fast as it goes")
	f.DurationVar(&o.duration, "duration", 0, "end by itself after this `time`; 0: on Ctrl-C, or with the recording")
	f.Uint64Var(&o.seed, "seed", 1, "of the simulated market: the same seed, the same flow")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.users < 1 || o.users > 1_000_000:
		err = fmt.Errorf("-users %d is not within 1 and 1,000,000", o.users)
	case !(o.rate > 0) || o.rate > 1e7:
		err = fmt.Errorf("-rate %v is not within 0 and 10,000,000", o.rate)
	case !(o.speed >= 0) || math.IsInf(o.speed, 0):
		err = fmt.Errorf("-speed %v is not a number from 0", o.speed)
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
	x, err := newExchange(o.users, notification.BrokerConfig{Logger: log}, notification.GatewayConfig{Logger: log})
	if err != nil {
		return err
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}

	// The driver ends with ctx, or with the recording; watch waits for it.
	d := &driver{done: make(chan struct{})}
	if recorded != nil {
		r := newReplay(o.users, recorded, x.publish)
		d.events = len(recorded.events)
		fmt.Fprintf(stdout, "%s events of %s from %s, at %v times their pace, for %s users\n",
			count(d.events), recorded.instrument, o.replay, o.speed, count(o.users))
		go d.run(func() time.Duration { return r.run(ctx, o.speed, &d.played) })
	} else {
		e := newEngine(o.users, o.seed, x.publish)
		fmt.Fprintf(stdout, "a simulated market, %s messages a second for %s users; Ctrl-C ends it\n", count(o.rate), count(o.users))
		go d.run(func() time.Duration { return e.run(ctx, o.rate) })
	}
	watch(ctx, x, d, newScreen(stdout))

	// A driver that waits for room in a lane is let go after the time that the
	// drain has, and what it could not publish is counted.
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	defer context.AfterFunc(drain, x.stop)()
	<-d.done
	failed := x.drain(drain)

	s := x.snapshot()
	rows, mismatches := x.final(s, false)
	fmt.Fprintln(stdout)
	printTable(stdout, rows)
	return o.conclude(stdout, x, d, s, rows, mismatches, failed)
}

// conclude prints what the table does not say, and returns what went wrong.
func (o options) conclude(out io.Writer, x *exchange, d *driver, s snapshot, rows []laneReport, mismatches []string, failed error) error {
	fmt.Fprintf(out, "\n%s messages in %s pushes; %s bytes of JSON taken; at worst %s behind schedule\n",
		count(s.delivered()), count(s.gateway.Batches), count(x.bytes()), duration(d.behind))
	var lost, cut uint64
	for p, r := range rows {
		lost += r.Lost
		cut += x.cut[p].Load()
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
	var err error
	if lost > 0 {
		err = fmt.Errorf("%s messages were lost", count(lost))
	}
	for _, m := range mismatches {
		err = errors.Join(err, fmt.Errorf("does not add up: %s", m))
	}
	if err == nil && failed == nil {
		fmt.Fprintln(out, "every user saw every message once and in order, and every counter agrees")
	}
	return errors.Join(err, failed)
}
