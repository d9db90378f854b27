package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/qaexchange/notification"
)

// A display shows on the terminal what goes on: a block of lines that is written over
// each second, or a line every five seconds where that is not possible.
type display struct {
	all      *processes
	audience *audience
	began    time.Time
	terminal bool

	drawn    int   // lines to go up
	ticks    int   // refreshes so far
	received int64 // at the last refresh
}

func newDisplay(all *processes, a *audience) *display {
	info, err := os.Stdout.Stat()
	return &display{all: all, audience: a, began: time.Now(), terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (d *display) refresh() {
	received := d.audience.received.Load()
	rate := received - d.received
	d.received = received
	d.ticks++
	elapsed := time.Since(d.began).Round(time.Second)
	clients := fmt.Sprintf("%d of %d clients live, %d reconnects, %d resets, %d notifications, %d/s",
		d.audience.live.Load(), len(d.audience.members), d.audience.reconnects.Load(), d.audience.resets.Load(), received, rate)
	if !d.terminal {
		if d.ticks%5 == 0 {
			fmt.Printf("%4s  %s; %s\n", elapsed, clients, d.killed())
		}
		return
	}
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", d.drawn)
	}
	fmt.Fprintf(&b, "%s\n", elapsed)
	for _, p := range d.all.list {
		p.mu.Lock()
		state := "\x1b[32mup\x1b[0m  "
		if !p.ready {
			state = "\x1b[31mdown\x1b[0m"
		}
		name := p.role
		if p.role != "nats" {
			name += " " + p.args[0]
		}
		fmt.Fprintf(&b, "  %-12s %s  killed %d×, stopped %d×\n", name, state, p.killed, p.stopped)
		p.mu.Unlock()
	}
	fmt.Fprintf(&b, "  %s\n", clients)
	fmt.Fprintf(&b, "  publisher to client: P0 %s, P1 %s (p50 / p99)\n", d.latency(notification.P0), d.latency(notification.P1))
	d.drawn = strings.Count(b.String(), "\n")
	fmt.Print(b.String())
}

// latency is from the publisher's clock to the client's handler, what was missed
// meanwhile included.
func (d *display) latency(p notification.Priority) string {
	h := d.audience.latency[p].Snapshot()
	return fmt.Sprintf("%s / %s", round(h.Quantile(0.5)), round(h.Quantile(0.99)))
}

func round(d time.Duration) time.Duration {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

func (d *display) killed() string {
	var parts []string
	for _, role := range []string{"nats", "publisher", "edge"} {
		_, killed, stopped := d.all.counts(role)
		parts = append(parts, fmt.Sprintf("%s %d", role, killed+stopped))
	}
	return "killed: " + strings.Join(parts, ", ")
}

// table prints the verdict, and returns an error if anything is wrong.
func (d *display) table(v verdict) error {
	_, server, _ := d.all.counts("nats")
	_, publisher, _ := d.all.counts("publisher")
	_, edge, stopped := d.all.counts("edge")
	reconnects, resets := d.audience.reconnects.Load(), d.audience.resets.Load()
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range []struct {
		what  string
		count any
	}{
		{"NATS server killed", server},
		{"publishers killed", publisher},
		{"edges killed", edge},
		{"edges stopped", stopped},
		{"notifications published", v.published},
		{"delivered", v.delivered},
		{"reconnects", reconnects},
		{"resumed whole", reconnects - resets},
		{"resets", resets},
		{"lost", v.lost},
		{"repeated", v.repeated},
		{"out of order", v.disorder},
		{"P0, publisher to client, p50 / p99", d.latency(notification.P0)},
		{"P1", d.latency(notification.P1)},
	} {
		fmt.Fprintf(w, "%s\t%v\t\n", row.what, row.count)
	}
	_ = w.Flush()
	var errs []error
	if v.lost+v.repeated+v.strange+v.disorder > 0 || resets > 0 {
		errs = append(errs, fmt.Errorf("%d lost, %d repeated, %d that nobody published, %d out of order, %d resets", v.lost, v.repeated, v.strange, v.disorder, resets))
	}
	return errors.Join(append(errs, v.stopped...)...)
}
