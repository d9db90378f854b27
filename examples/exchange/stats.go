package main

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/qaexchange/notification"
)

const keepSamples = 180

// A sample is one second of the plots.
type sample struct {
	Number    int                                 `json:"number"`
	At        int64                               `json:"at"` // Unix milliseconds
	Sessions  int                                 `json:"sessions"`
	Published float64                             `json:"published"` // per second
	Delivered float64                             `json:"delivered"`
	Queued    [notification.NumPriorities]int     `json:"queued"`
	P50       [notification.NumPriorities]float64 `json:"p50"` // milliseconds, 0 without messages
	P99       [notification.NumPriorities]float64 `json:"p99"`
}

// stats tells the samples after ?since=, and the table. However many ask, the
// counters are read once a second.
func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.Atoi(r.FormValue("since"))
	s.mu.Lock()
	s.asked = time.Now()
	phase := s.phase
	fresh := min(max(s.number-since, 0), len(s.samples))
	answer := map[string]any{
		"phase":   phase,
		"users":   len(s.x.members),
		"started": s.x.started.UnixMilli(),
		"samples": append([]sample{}, s.samples[len(s.samples)-fresh:]...),
		"table":   s.table,
		"verdict": s.verdict,
	}
	s.mu.Unlock()
	reply(w, http.StatusOK, answer)
	if phase == phaseFinished {
		s.toldOnce.Do(func() { close(s.told) })
	}
}

// sample takes in the last second.
func (s *server) sample(from, to snapshot) {
	n := sample{
		At: to.at.UnixMilli(), Sessions: to.gateway.Sessions,
		Published: math.Round(perSecond(from, to, snapshot.published)),
		Delivered: math.Round(perSecond(from, to, snapshot.delivered)),
	}
	for p := range targets {
		h := recent(from, to, p)
		n.Queued[p] = to.queued(p)
		n.P50[p], n.P99[p] = milliseconds(h.Quantile(0.5)), milliseconds(h.Quantile(0.99))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	n.Number = s.number
	if len(s.samples) == keepSamples {
		s.samples = append(s.samples[:0], s.samples[1:]...)
	}
	s.samples = append(s.samples, n)
	s.table = s.x.live(to)
}

func milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }
