package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

func decimal(n int) json.Number { return json.Number(strconv.Itoa(n)) }

// judge returns what is wrong with a run that has ended.
func (r *run) judge(journal []entry) []string {
	var wrong []string
	made := 0
	for _, e := range journal {
		switch {
		case e.text("server") == "failed":
			wrong = append(wrong, e.text("what"))
		case e.text("server") == "connected":
			made++
		}
	}
	if want := len(r.scenario.Connections); made != want && !(r.scenario.Fewer && made < want) {
		wrong = append(wrong, fmt.Sprintf("%d connections were made, not %d", made, want))
	}
	for i, side := range r.scenario.sides() {
		v := verdict{side: side, alone: len(r.scenario.sides()) == 1, journal: journal}
		for _, e := range journal {
			if e.fields["driver"] == decimal(i+1) {
				v.told = append(v.told, e)
			}
		}
		for _, check := range []func() string{
			v.ending, v.order, v.never, v.notifications, v.snapshots, v.states, v.cursors, v.backoff,
		} {
			if what := check(); what != "" {
				wrong = append(wrong, fmt.Sprintf("driver %d: %s", i+1, what))
			}
		}
		if r.scenario.Jitter {
			if what := v.jitter(); what != "" {
				wrong = append(wrong, what)
			}
		}
	}
	return wrong
}

// A verdict is made of what one driver told. Each of its checks returns what is
// wrong, empty if nothing is.
type verdict struct {
	side    *side
	alone   bool    // all connections are this driver's
	journal []entry // of all
	told    []entry // by this driver
}

// ending: the last line is how it stopped, and there is one.
func (v *verdict) ending() string {
	var stopped []int
	for i, e := range v.told {
		if e.text("event") == "stopped" {
			stopped = append(stopped, i)
		}
	}
	switch {
	case len(stopped) == 0:
		return "it does not tell that it has stopped"
	case len(stopped) > 1 || stopped[0] != len(v.told)-1:
		return "stopped is not the last line"
	}
	if last := v.told[stopped[0]]; !v.side.Stopped.matches(last) {
		return fmt.Sprintf("it ends with %v, not %v", last, v.side.Stopped)
	}
	return ""
}

// order: what must be told, in this order.
func (v *verdict) order() string {
	rest := v.told
	for _, p := range v.side.Output {
		i := slices.IndexFunc(rest, p.matches)
		if i < 0 {
			return fmt.Sprintf("it does not tell %v, or not in order", p)
		}
		rest = rest[i+1:]
	}
	return ""
}

func (v *verdict) never() string {
	for _, p := range v.side.Never {
		if i := slices.IndexFunc(v.told, p.matches); i >= 0 {
			return fmt.Sprintf("it tells %v", v.told[i])
		}
	}
	return ""
}

// notifications: each that there must be, once, in order, with its numbers exact,
// and none while a snapshot is loaded.
func (v *verdict) notifications() string {
	want, err := v.side.ids()
	if err != nil {
		return err.Error()
	}
	loading := false
	var got []string
	for _, e := range v.told {
		switch e.text("event") {
		case "snapshot":
			loading = true
		case "snapshot_done":
			loading = false
		case "notification":
			id := e.text("message_id")
			got = append(got, id)
			if loading {
				return id + " is handed over while the snapshot is loaded"
			}
			n, err := strconv.Atoi(strings.TrimPrefix(id, "n-"))
			if err != nil {
				continue // the scenario's own
			}
			if at := strconv.FormatInt(timestampOf(n), 10); e.text("timestamp") != at {
				return fmt.Sprintf("the timestamp of %s is %v, not %s", id, e.fields["timestamp"], at)
			}
		}
	}
	if slices.Equal(got, want) {
		return ""
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	next := func(ids []string) string { return strings.Join(ids[i:min(len(ids), i+5)], " ") }
	return fmt.Sprintf("the %d notifications are not the %d that there should be; from number %d on they are %q, not %q",
		len(got), len(want), i+1, next(got), next(want))
}

// snapshots: their reasons. Each that began has ended, but perhaps the last.
func (v *verdict) snapshots() string {
	var got []string
	open := false
	for _, e := range v.told {
		switch e.text("event") {
		case "snapshot":
			if open {
				return "two snapshots are loaded at once"
			}
			open = true
			got = append(got, e.text("reason"))
		case "snapshot_done":
			if !open {
				return "snapshot_done without a snapshot"
			}
			open = false
		}
	}
	ok := len(got) == len(v.side.Snapshots)
	for i := 0; ok && i < len(got); i++ {
		ok = slices.Contains(strings.Split(v.side.Snapshots[i], "|"), got[i])
	}
	if !ok {
		return fmt.Sprintf("the snapshots are %q, not %q", got, v.side.Snapshots)
	}
	return ""
}

// states: each change once.
func (v *verdict) states() string {
	var got []string
	for _, e := range v.told {
		if s := e.text("state"); e.text("event") == "state" && s != "stopped" {
			got = append(got, s)
		}
	}
	rest := got
	for _, want := range strings.Fields(v.side.States) {
		want, optional := strings.CutSuffix(want, "?")
		if len(rest) > 0 && rest[0] == want {
			rest = rest[1:]
		} else if !optional {
			return fmt.Sprintf("the states are %q, not %q", strings.Join(got, " "), v.side.States)
		}
	}
	if len(rest) > 0 {
		return fmt.Sprintf("the states are %q, not %q", strings.Join(got, " "), v.side.States)
	}
	return ""
}

// cursors: none is ahead of what the handler has taken, or what a snapshot covers.
func (v *verdict) cursors() string {
	have := coveredBy(fmt.Sprint(v.side.Options["cursor"]))
	for _, e := range v.journal { // a snapshot covers what the welcome says
		if e.text("server") == "welcome" && e.fields["resumed"] == false {
			have = max(have, coveredBy(e.text("cursor")))
		}
	}
	for _, e := range v.told {
		switch e.text("event") {
		case "notification":
			if n, err := strconv.Atoi(strings.TrimPrefix(e.text("message_id"), "n-")); err == nil {
				have = max(have, n)
			}
		case "cursor", "stopped":
			if n := coveredBy(e.text("cursor")); n > have {
				return fmt.Sprintf("%v is ahead of what was handled", e)
			}
		}
	}
	return ""
}

// waits returns the waits that were told, with the bound of each in milliseconds.
func (v *verdict) waits() (ms, bounds []float64) {
	base, most := v.side.option("backoff_base_ms"), v.side.option("backoff_max_ms")
	bound := base
	for _, e := range v.journal {
		switch {
		case e.text("server") == "mark" && e.text("name") == "stable": // it has lived for long enough
			bound = base
		case e.text("event") == "state" && e.text("state") == "waiting" && slices.ContainsFunc(v.told, func(o entry) bool { return o.at.Equal(e.at) }):
			n, _ := e.fields["retry_ms"].(json.Number)
			f, err := n.Float64()
			if err != nil {
				f = -1
			}
			ms, bounds = append(ms, f), append(bounds, min(bound, most))
			bound *= 2
		}
	}
	return ms, bounds
}

// backoff: each wait is within its bound, and no attempt comes before its time.
func (v *verdict) backoff() string {
	ms, bounds := v.waits()
	for i := range ms {
		if ms[i] < 0 || ms[i] > bounds[i]+1 { // it may have been rounded up
			return fmt.Sprintf("wait %d is retry_ms %v, not within [0, %v]", i+1, ms[i], bounds[i])
		}
	}
	// What ended before a wait, as far as it was the server that ended it, and what
	// came after it: if there was a wait between any two connections.
	ended := map[int64]time.Time{}
	var began []time.Time
	for _, e := range v.journal {
		switch e.text("server") {
		case "connected":
			began = append(began, e.at)
		case "ending":
			ended[e.number("connection")] = e.at
		}
	}
	if !v.alone || len(ms) != len(began)-1 {
		return ""
	}
	for i := range ms {
		end, ok := ended[int64(i+1)]
		// A timer may be early by a fraction of its unit.
		if after := began[i+1].Sub(end); ok && after < time.Duration((ms[i]-5)*float64(time.Millisecond)) {
			return fmt.Sprintf("connection %d comes %v after the end of the one before, with retry_ms %v", i+2, after, ms[i])
		}
	}
	return ""
}

// jitter: the waits are spread over what they may be. With 24 of them, uniform, the
// mean is outside of these bounds once in a hundred thousand runs.
func (v *verdict) jitter() string {
	ms, bounds := v.waits()
	sum := 0.0
	for i := range ms {
		sum += ms[i] / bounds[i]
	}
	if mean := sum / float64(max(1, len(ms))); len(ms) < 24 || mean < 0.24 || mean > 0.76 {
		return fmt.Sprintf("%d waits are at %.2f of their bounds on average, which should be near 0.5: %v", len(ms), mean, ms)
	}
	return ""
}
