package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// A driver is the goroutine in which the simulated market or the replay runs.
type driver struct {
	events int          // of the recording; 0 without one
	played atomic.Int64 // of those
	behind time.Duration
	done   chan struct{} // closed at the end, after behind is set
}

func (d *driver) run(f func() time.Duration) {
	defer close(d.done)
	d.behind = f()
}

func (d *driver) note() string {
	if d.events == 0 {
		return ""
	}
	return fmt.Sprintf("  played %d %%", 100*int(d.played.Load())/d.events)
}

// watch shows the exchange's progress, on the page too if there is one, until
// its driver is done or ctx ends.
func watch(ctx context.Context, x *exchange, d *driver, web *server, s *screen) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := x.snapshot()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.done:
			return
		case <-tick.C:
			next := x.snapshot()
			s.show(x, last, next, d.note())
			if web != nil {
				web.sample(last, next)
			}
			last = next
		}
	}
}
