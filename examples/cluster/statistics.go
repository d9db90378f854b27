package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/exchange/page"
)

// A sample is one second of the page's plots.
type sample struct {
	Number     int                                 `json:"number"`
	At         int64                               `json:"at"`       // Unix milliseconds
	Sessions   int64                               `json:"sessions"` // of the audience
	Broadcasts int                                 `json:"broadcasts"`
	Published  float64                             `json:"published"` // per second
	Delivered  float64                             `json:"delivered"` // per second, to the audience
	Pending    [notification.NumPriorities]int     `json:"pending"`   // published, and not yet with the audience
	P50        [notification.NumPriorities]float64 `json:"p50"`       // milliseconds, 0 without messages
	P99        [notification.NumPriorities]float64 `json:"p99"`
}

// Statistics are what the page shows of the whole: the outboxes tell what was
// published, the audience what has come.
type statistics struct {
	audience *audience
	began    time.Time

	mu       sync.Mutex
	outboxes []*tail              // guarded by mu: by publisher
	samples  page.Samples[sample] // guarded by mu
	last     reading              // guarded by mu
}

// A reading is all counters at one moment.
type reading struct {
	at                    time.Time
	published, broadcasts int
	due                   [notification.NumPriorities]int // one for each client
	latency               [notification.NumPriorities]notification.Histogram
	received              int64
}

func newStatistics(a *audience, outbox func(int) string) *statistics {
	s := &statistics{audience: a, began: time.Now()}
	for i := range publishers {
		s.outboxes = append(s.outboxes, &tail{name: outbox(i), said: make(map[stream]int)})
	}
	s.last.at = s.began
	return s
}

// sample takes in the last second.
func (s *statistics) sample() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.read()
	if err != nil {
		return err
	}
	seconds := now.at.Sub(s.last.at).Seconds()
	n := sample{
		Number: s.samples.Next(), At: now.at.UnixMilli(), Sessions: s.audience.live.Load(),
		Broadcasts: now.broadcasts - s.last.broadcasts,
		Published:  math.Round(float64(now.published-s.last.published) / seconds),
		Delivered:  math.Round(float64(now.received-s.last.received) / seconds),
	}
	for p := range n.P50 {
		h := now.latency[p].Sub(s.last.latency[p])
		n.P50[p], n.P99[p] = page.Milliseconds(h.Quantile(0.5)), page.Milliseconds(h.Quantile(0.99))
		n.Pending[p] = max(0, now.due[p]-int(now.latency[p].Count()))
	}
	s.last = now
	s.samples.Add(n)
	return nil
}

// read reads all counters. mu is held.
func (s *statistics) read() (r reading, err error) {
	r.at, r.received = time.Now(), s.audience.received.Load()
	for p := range r.latency {
		r.latency[p] = s.audience.latency[p].Snapshot()
	}
	for _, o := range s.outboxes {
		if err := o.read(); err != nil {
			return r, err
		}
		for p := range r.due {
			r.published += o.one[p] + o.all[p]
			r.broadcasts += o.all[p]
			r.due[p] += o.one[p] + o.all[p]*len(s.audience.members)
		}
	}
	return r, nil
}

// tell answers with the samples after ?since=.
func (s *statistics) tell(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.Atoi(r.FormValue("since"))
	s.mu.Lock()
	answer := map[string]any{
		"phase": "running", "users": len(s.audience.members), "started": s.began.UnixMilli(), "now": time.Now().UnixMilli(),
		"samples": s.samples.Since(since),
	}
	s.mu.Unlock()
	page.Reply(w, http.StatusOK, answer)
}

// numbers returns how far the streams of a user, and those of everybody, have come:
// whoever has received so many without a gap has missed nothing.
func (s *statistics) numbers(user string) (map[string]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	numbers := make(map[string]int)
	for i, o := range s.outboxes {
		if err := o.read(); err != nil {
			return nil, err
		}
		for _, to := range []stream{{notification.P0, user}, {notification.P1, user}, {notification.P2, user}, {notification.P3, notification.AllUsers}} {
			numbers[to.id(strconv.Itoa(i))] = o.said[to]
		}
	}
	return numbers, nil
}

// A tail reads on in an outbox that somebody writes.
type tail struct {
	name string
	at   int64 // behind the last whole line
	said map[stream]int
	one  [notification.NumPriorities]int // for one user
	all  [notification.NumPriorities]int // for everybody
}

func (t *tail) read() error {
	f, err := os.Open(t.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its publisher has yet to start
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fresh, err := io.ReadAll(io.NewSectionReader(f, t.at, math.MaxInt64-t.at))
	if err != nil {
		return err
	}
	fresh = fresh[:bytes.LastIndexByte(fresh, '\n')+1]
	t.at += int64(len(fresh))
	for line := range bytes.Lines(fresh) {
		e, mark, err := parseLine(string(bytes.TrimSuffix(line, []byte("\n"))))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", t.name, err)
		case mark:
		case e.user == notification.AllUsers:
			t.said[e.stream]++
			t.all[e.lane]++
		default:
			t.said[e.stream]++
			t.one[e.lane]++
		}
	}
	return nil
}
