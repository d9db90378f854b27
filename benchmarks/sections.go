package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/qaexchange/notification"
)

const mib = 1 << 20

// measure does a job in this process.
func measure(j job) (outcome, error) {
	o := outcome{job: j}
	switch j.Section {
	case "own encodings":
		o.Ops = encodings(turnsEach, o.length(), func(encoding string) bool { return encoding == libraryName })
		return o, nil
	case "encodings":
		o.Ops = encodings(turnsEach, o.length(), func(string) bool { return true })
		if j.Round == 0 {
			o.Findings = findings()
		}
		return o, nil
	}
	before, rssBefore := memory(), residentMemory()
	h, err := newHarness(j)
	if err != nil {
		return o, err
	}
	switch j.Section {
	case "flat", "buffer", "growth":
		h.measureFlat(&o)
	case "paced":
		h.warm()
		h.measurePaced(&o)
	case "flood":
		h.warm()
		h.measureFlood(&o)
	case "stalled":
		h.warm()
		h.measureStalled(&o)
	case "idle", "memory":
		o.HeapPerUser = (memory() - before) / float64(j.Users)
		o.RSSPerUser = (residentMemory() - rssBefore) / float64(j.Users)
		h.measureIdle(&o)
	default:
		err = fmt.Errorf("there is no section %q", j.Section)
	}
	if p := h.publishError.Load(); p != nil {
		err = errors.Join(err, *p)
	}
	return o, err
}

func (o *outcome) length() time.Duration { return time.Duration(o.Seconds * float64(time.Second)) }

func (h *harness) measureFlat(o *outcome) {
	h.warm()
	runtime.GC()
	sent, delivered := h.sent.Load(), h.delivered.Load()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, start := cpuTime(), time.Now()
	h.flatOut(max(o.Publishers, 1), o.length())
	o.Elapsed = time.Since(start).Seconds()
	cpu = cpuTime() - cpu
	runtime.ReadMemStats(&after)
	o.RSS, o.PeakRSS = residentMemory()/mib, peakMemory()/mib
	o.Sent, o.Delivered, o.Refused = h.sent.Load()-sent, h.delivered.Load()-delivered, h.refused.Load()
	o.Lost = o.Sent - o.Delivered
	n := float64(max(o.Delivered, 1))
	o.PerSecond = n / o.Elapsed
	o.CPU = float64(cpu.Nanoseconds()) / 1e3 / n
	o.Allocs = float64(after.Mallocs-before.Mallocs) / n
	o.AllocBytes = float64(after.TotalAlloc-before.TotalAlloc) / n
}

func (h *harness) measurePaced(o *outcome) {
	runtime.GC()
	base, arrived := h.sent.Load(), h.delivered.Load()
	h.time(int(float64(o.Rate) * o.Seconds))
	cpu, start := cpuTime(), time.Now()
	h.openLoop(o.Rate, h.mixed)
	o.Lost = h.drain()
	o.Elapsed = time.Since(start).Seconds()
	o.CPU = float64((cpuTime() - cpu).Nanoseconds()) / 1e3 / float64(len(h.timed))
	o.Sent, o.Delivered, o.Refused = h.sent.Load()-base, h.delivered.Load()-arrived, h.refused.Load()
	o.PerSecond = float64(o.Delivered) / o.Elapsed
	h.latencies(o, func(int) bool { return true })
}

// measureFlood is 200 P0 a second beside one publisher of P1 that does not pause.
func (h *harness) measureFlood(o *outcome) {
	runtime.GC()
	base, arrived := h.sent.Load(), h.delivered.Load()
	h.time(int(float64(o.Rate) * o.Seconds))
	start := time.Now()
	over := make(chan struct{})
	go func() { // ends with the open loop, which ends
		defer close(over)
		defer h.halt()
		h.openLoop(o.Rate, func(_, user int) *notification.Notification { return alert(h.users[user]) })
	}()
	h.flatOut(1, time.Hour)
	<-over
	o.Lost = h.drain()
	o.Elapsed = time.Since(start).Seconds()
	o.Sent, o.Delivered, o.Refused = h.sent.Load()-base, h.delivered.Load()-arrived, h.refused.Load()
	o.PerSecond = float64(o.Delivered) / o.Elapsed
	h.latencies(o, func(int) bool { return true })
}

// measureStalled is a paced load with one receiver that never comes back. What
// the others have not got when all is quiet they do not get beside it; then it
// is released, so that the process can end.
func (h *harness) measureStalled(o *outcome) {
	before := memory()
	refused := h.refused.Load()
	h.time(int(float64(o.Rate) * o.Seconds))
	h.stalled = len(h.users) / 2 // nothing is under way, so no receiver reads it now
	over := make(chan struct{})
	go func() { // ends by itself, or with release if publish hangs on the stalled user
		defer close(over)
		h.openLoop(o.Rate, h.mixed)
	}()
	hangs := false
	select {
	case <-over:
	case <-time.After(o.length() + patience):
		h.stop.Store(true)
		hangs = true
	}
	h.quiesce()
	cut := now()
	o.Grown = (memory() - before) / mib
	o.Refused = h.refused.Load() - refused
	if e, ok := h.sys.(interface{ ended() string }); ok {
		o.Ended = e.ended()
	}
	if hangs {
		o.Ended = "the publisher hangs"
	}
	close(h.release)
	<-over

	others := func(seq int) bool {
		return h.called[seq] != 0 && int(h.timedUser[seq]) != h.stalled && h.done[seq].Load() <= cut
	}
	for seq := range h.timed {
		switch {
		case h.called[seq] == 0:
			o.Unsent++
		case int(h.timedUser[seq]) != h.stalled:
			o.Sent++
			if d := h.done[seq].Load(); d != 0 && d <= cut {
				o.Delivered++
			}
		}
	}
	o.Lost = o.Sent - o.Delivered
	h.latencies(o, others)
}

// quiesce returns when nothing has arrived for a while.
func (h *harness) quiesce() {
	for last := int64(-1); last != h.delivered.Load(); <-time.After(300 * time.Millisecond) {
		last = h.delivered.Load()
	}
}

func (h *harness) measureIdle(o *outcome) {
	cpu, start := cpuTime(), time.Now()
	if o.Seconds > 0 {
		<-time.After(o.length())
		o.IdleCPU = (cpuTime() - cpu).Seconds() / time.Since(start).Seconds() * 100
	}
}
