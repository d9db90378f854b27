// Command cluster shows notifications that survive everything: a NATS server, two
// publishers and three edges, each a process of its own, and a thousand clients
// behind a load balancer. Every few seconds one of the processes is killed. At the
// end each client must have every notification of its user once, in order.
//
//	go run ./examples/cluster -duration 60s
//	go run ./examples/cluster -addr 127.0.0.1:8082 -duration 0 -every 0
//
// The second one has a page, which shows at which edge it is, and kills that if told
// to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// The roles of the processes that this one starts: each is this program again.
var roles = map[string]func(ctx context.Context, args []string) error{
	"nats":      runNATS,
	"publisher": runPublisher,
	"edge":      runEdge,
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
		return roles[os.Args[1]](ctx, os.Args[2:])
	}
	var c config
	flag.DurationVar(&c.duration, "duration", time.Minute, "for how long things are killed; 0: until Ctrl-C")
	flag.DurationVar(&c.every, "every", 3*time.Second, "how often; 0: never")
	flag.IntVar(&c.clients, "clients", 1000, "clients, each a user")
	flag.IntVar(&c.rate, "rate", 1000, "notifications that each publisher publishes in a second")
	flag.StringVar(&c.addr, "addr", "", "loopback `address` of a page for a browser; default: none")
	flag.StringVar(&c.dir, "dir", "", "where everything is stored; default: a temporary folder")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("what is %q?", flag.Arg(0))
	case c.duration < 0, c.every < 0:
		return errors.New("-duration and -every must not be negative")
	case c.clients <= 0, c.rate <= 0:
		return errors.New("-clients and -rate must be over 0")
	}
	if c.addr != "" {
		if err := checkLoopback(c.addr); err != nil {
			return err
		}
	}
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "cluster")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		c.dir = dir
	}
	return c.run(ctx)
}

// A config is what the command line says.
type config struct {
	duration, every time.Duration
	clients, rate   int
	addr, dir       string
}

const (
	publishers = 2
	numEdges   = 3
	// settle is how long what was published may take to the last client, once
	// nothing is killed any more, and how long a process may take to end in order.
	settle = 3 * time.Minute
)

// run starts everything, lets the killer loose and judges.
func (c *config) run(ctx context.Context) error {
	ports, err := freePorts(1 + numEdges)
	if err != nil {
		return err
	}
	url := "nats://" + ports[0]
	var all processes
	defer all.end()
	server, err := all.start("nats", filepath.Join(c.dir, "nats"), ports[0])
	if err != nil {
		return err
	}
	balancer, err := newBalancer(ports[1:])
	if err != nil {
		return err
	}
	defer balancer.close()
	var edges []*process
	for i, addr := range ports[1:] {
		edge, err := all.start("edge", strconv.Itoa(i), url, addr)
		if err != nil {
			return err
		}
		edges = append(edges, edge)
	}
	audience := newAudience(c.clients, "ws://"+balancer.addr())
	defer audience.close()
	fmt.Printf("%d clients connect…\n", c.clients)
	if err := audience.allLive(ctx); err != nil {
		return errors.Join(err, all.failure())
	}
	for i := range publishers {
		if _, err := all.start("publisher", strconv.Itoa(i), url, c.outbox(i), strconv.Itoa(c.clients), strconv.Itoa(c.rate)); err != nil {
			return err
		}
	}

	var stats *statistics // of the page
	if c.addr != "" {
		stats = newStatistics(audience, c.outbox)
		front, err := newFront(c.addr, edges, ports[1:], c.clients, stats)
		if err != nil {
			return err
		}
		defer front.close()
		fmt.Printf("the page is at http://%s/\n", front.addr)
	}
	show := newDisplay(&all, audience)
	var end, kill <-chan time.Time // nil: never
	if c.duration > 0 {
		end = time.After(c.duration)
	}
	if c.every > 0 {
		every := time.NewTicker(c.every)
		defer every.Stop()
		kill = every.C
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
		case <-end:
			going = false
		case <-kill:
			all.killOne()
		case <-second.C:
			show.refresh()
			if stats != nil {
				if err := stats.sample(); err != nil {
					return err
				}
			}
		}
		if err := all.failure(); err != nil {
			return err
		}
	}

	// Whatever is down comes back; publishers finish what their outboxes hold.
	all.settle()
	if err := all.finish("publisher"); err != nil {
		return err
	}
	ledger, err := readLedger(c.outbox)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	audience.await(wait, ledger)
	show.refresh()
	verdict := audience.judge(ledger)
	audience.close()
	if err := errors.Join(all.finish("edge"), server.finish()); err != nil {
		return err
	}
	return show.table(verdict)
}

func (c *config) outbox(i int) string {
	return filepath.Join(c.dir, fmt.Sprintf("publisher-%d.outbox", i))
}
