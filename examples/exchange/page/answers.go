package page

import (
	"encoding/json"
	"math"
	"net/http"
	"time"
)

// Reply answers what the page has asked for under api/.
func Reply(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the only error is a client that has left
}

// Fail is Reply with what went wrong.
func Fail(w http.ResponseWriter, status int, err error) {
	Reply(w, status, map[string]string{"error": err.Error()})
}

// KeepSamples is how many seconds the plots can show.
const KeepSamples = 180

// Samples are the last KeepSamples of the plots' samples, numbered from 1. They are
// not safe for concurrent use.
type Samples[S any] struct {
	last   []S
	number int // of the newest
}

// Next returns the number of the sample that is added next.
func (s *Samples[S]) Next() int { return s.number + 1 }

// Add adds the newest.
func (s *Samples[S]) Add(sample S) {
	s.number++
	if len(s.last) == KeepSamples {
		s.last = append(s.last[:0], s.last[1:]...)
	}
	s.last = append(s.last, sample)
}

// Since returns a copy of those that are left with a number over this: of api/stats
// the page asks for what it does not have.
func (s *Samples[S]) Since(number int) []S {
	fresh := min(max(s.number-number, 0), len(s.last))
	return append([]S{}, s.last[len(s.last)-fresh:]...)
}

// Milliseconds is a duration as the page has it, to the microsecond.
func Milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }
