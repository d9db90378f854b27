package main

import (
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/exchange/page"
)

// A sample is one second of the plots and of the picture of the inside. Rates are per
// second, depths as they were at its end.
type sample struct {
	Number     int                                 `json:"number"`
	At         int64                               `json:"at"` // Unix milliseconds
	Sessions   int                                 `json:"sessions"`
	Broadcasts uint64                              `json:"broadcasts"` // messages to everybody in this second
	Published  float64                             `json:"published"`
	Handed     float64                             `json:"handed"`    // to the inbox
	Enqueued   float64                             `json:"enqueued"`  // messages × sessions
	Pushes     float64                             `json:"pushes"`    // calls of a sink
	Delivered  float64                             `json:"delivered"` // messages × sessions
	Lanes      [notification.NumPriorities]int     `json:"lanes"`     // depth of each
	Inbox      int                                 `json:"inbox"`     // depth, of all lanes
	Pending    [notification.NumPriorities]int     `json:"pending"`   // in outboxes and in running Pushes
	P50        [notification.NumPriorities]float64 `json:"p50"`       // milliseconds, 0 without messages
	P99        [notification.NumPriorities]float64 `json:"p99"`
}

// stats tells the samples after ?since=, and the table. However many ask, the
// counters are read once a second.
func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.Atoi(r.FormValue("since"))
	s.mu.Lock()
	s.asked = time.Now()
	phase := s.phase
	answer := map[string]any{
		"phase":   phase,
		"users":   len(s.x.members),
		"started": s.x.started.UnixMilli(),
		"now":     time.Now().UnixMilli(),
		"samples": s.samples.Since(since),
		"table":   s.table,
		"verdict": s.verdict,
		"cpus":    runtime.GOMAXPROCS(0),
		"durable": s.x.run != "",
	}
	s.mu.Unlock()
	if n, ok := load(); ok {
		answer["load"] = n
	}
	page.Reply(w, http.StatusOK, answer)
	if phase == phaseFinished {
		s.toldOnce.Do(func() { close(s.told) })
	}
}

// sample takes in the last second.
func (s *server) sample(from, to snapshot) {
	rate := func(of func(snapshot) uint64) float64 { return math.Round(perSecond(from, to, of)) }
	n := sample{
		At: to.at.UnixMilli(), Sessions: to.gateway.Sessions, Inbox: to.inbox(),
		Broadcasts: to.broadcasts - from.broadcasts,
		Published:  rate(snapshot.published), Handed: rate(snapshot.handed), Enqueued: rate(snapshot.enqueued),
		Pushes: rate(snapshot.pushes), Delivered: rate(snapshot.delivered),
	}
	for p := range targets {
		h := recent(from, to, p)
		n.Lanes[p], n.Pending[p] = to.broker.Lanes[p].Queued, to.gateway.Lanes[p].Pending
		n.P50[p], n.P99[p] = page.Milliseconds(h.Quantile(0.5)), page.Milliseconds(h.Quantile(0.99))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n.Number = s.samples.Next()
	s.samples.Add(n)
	s.table = s.x.live(to)
}

// load is how many tasks wanted a CPU over the last minute, where that can be known.
func load() (float64, bool) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, false
	}
	one, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseFloat(one, 64)
	return n, err == nil
}
