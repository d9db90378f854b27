package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// patience is how long a run may take. It is for busy machines: nothing that is
// asserted depends on it.
const patience = 5 * time.Minute

// An outcome is what came of a scenario with a client.
type outcome struct {
	scenario *scenario
	client   string
	skipped  string   // why it was not run
	wrong    []string // what is not as it must be
	journal  []entry
}

func (o outcome) passed() bool { return o.skipped == "" && len(o.wrong) == 0 }

// story tells what happened, for whoever looks for a bug.
func (o outcome) story() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s with %s: %s\n", o.scenario.Name, o.client, o.scenario.Holds)
	for _, w := range o.wrong {
		fmt.Fprintf(&b, "  WRONG: %s\n", w)
	}
	for i, e := range o.journal {
		if i == 60 && len(o.journal) > 120 {
			fmt.Fprintf(&b, "  … %d more …\n", len(o.journal)-120)
		}
		if i >= 60 && i < len(o.journal)-60 {
			continue
		}
		fmt.Fprintf(&b, "  %7.3f %s\n", e.at.Sub(o.journal[0].at).Seconds(), e.short())
	}
	return b.String()
}

// play runs a scenario with a client. It returns when the drivers and the
// connections have ended.
func (s *server) play(ctx context.Context, sc *scenario, c *readyClient, patience time.Duration) outcome {
	o := outcome{scenario: sc, client: c.name}
	switch {
	case c.lacks[sc.Needs] != "":
		o.skipped = c.lacks[sc.Needs]
		return o
	case c.only != nil && len(named([]*scenario{sc}, c.only)) == 0:
		o.skipped = "it does not depend on the WebSocket"
		return o
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("more than %v", patience))
	defer cancel()
	r := s.begin(ctx, sc, c.lacks["headers"] != "")
	var sides sync.WaitGroup
	for i, side := range sc.sides() {
		sides.Go(func() { r.drive(i+1, c, side, side.line(s.url(r), s.snapshotURL(r))) })
	}
	sides.Wait()
	late := ctx.Err() != nil // not errFailed, which is the run's own
	s.end(r)
	o.journal = r.journal.all()
	if late {
		o.wrong = append(o.wrong, fmt.Sprintf("it has not ended after %v", patience))
	}
	o.wrong = append(o.wrong, r.judge(o.journal)...)
	return o
}

// drive runs one driver to its end.
func (r *run) drive(number int, c *readyClient, side *side, options map[string]any) {
	if number == 2 {
		if r.journal.await(r.ctx, pattern{"server": "mark", "name": "second"}) != nil {
			return
		}
	}
	d, err := c.start(func(line []byte) error {
		v, err := decode(line)
		fields, ok := v.(map[string]any)
		if err != nil || !ok {
			err := fmt.Errorf("driver %d does not tell an event in a line of JSON: %.200q", number, line)
			r.fail("%v", err)
			return err
		}
		fields["driver"] = decimal(number)
		r.journal.add(fields)
		return nil
	})
	if err != nil {
		r.fail("driver %d does not start: %v", number, err)
		return
	}
	stop := context.AfterFunc(r.ctx, d.kill)
	var telling sync.WaitGroup
	ctx, cancel := context.WithCancel(r.ctx)
	telling.Go(func() { r.tell(ctx, number, d, options, side.Commands) })
	err = d.wait()
	cancel()
	telling.Wait()
	if stop() && err != nil { // else it was killed
		r.fail("driver %d ends badly: %v", number, err)
	}
}

// tell says to a driver what it is to be told. An error in writing is one of
// a driver that has ended, which is judged by what it told.
func (r *run) tell(ctx context.Context, number int, d driver, options map[string]any, commands []command) {
	if d.say(options) != nil {
		return
	}
	for _, c := range commands {
		when := pattern{}
		for key, value := range c.When {
			when[key] = value
		}
		if when["event"] != nil {
			when["driver"] = decimal(number)
		}
		if c.When != nil && r.journal.await(ctx, when) != nil {
			return
		}
		if c.Say == nil {
			if d.hangUp() != nil {
				return
			}
		} else if d.say(c.Say) != nil {
			return
		}
	}
}

// A job is a scenario with a client.
type job struct {
	scenario *scenario
	client   *readyClient
}

// playAll plays all jobs, some at a time, and hands each outcome over as it comes,
// one at a time.
func (s *server) playAll(ctx context.Context, jobs []job, atOnce int, patience time.Duration, done func(*readyClient, outcome)) {
	work := make(chan job)
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for j := range work {
				o := s.play(ctx, j.scenario, j.client, j.client.patience(j.scenario, patience))
				mu.Lock()
				done(j.client, o)
				mu.Unlock()
			}
		})
	}
	for _, j := range jobs {
		work <- j
	}
	close(work)
	workers.Wait()
}

// patience is shorter where the naive client is expected to hang.
func (c *readyClient) patience(sc *scenario, patience time.Duration) time.Duration {
	if c.fails && sc.Naive != "" {
		return min(patience, 8*time.Second)
	}
	return patience
}

// verdict tells whether an outcome is as it should be: the naive client must fail
// where the scenario says so, and nowhere else.
func (c *client) verdict(o outcome) error {
	switch {
	case o.skipped != "":
		return nil
	case c.fails && o.scenario.Naive != "" && o.passed():
		return fmt.Errorf("%s passes %s, which it should not: %s", c.name, o.scenario.Name, o.scenario.Naive)
	case c.fails && o.scenario.Naive != "":
		return nil
	case !o.passed():
		return errors.New(o.story())
	}
	return nil
}
