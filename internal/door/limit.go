package door

import (
	"log/slog"
	"sync"
	"time"
)

// A Bucket bounds how many of something there are per second, and at once. It has
// one owner.
type Bucket struct {
	rate, tokens float64
	at           time.Time
}

// NewBucket returns a full Bucket for so many per second.
func NewBucket(perSecond int) Bucket {
	return Bucket{rate: float64(perSecond), tokens: float64(perSecond), at: time.Now()}
}

// Take reports whether there is one left, and takes it.
func (b *Bucket) Take() bool {
	now := time.Now()
	b.tokens = min(b.tokens+b.rate*now.Sub(b.at).Seconds(), b.rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// logEvery is how often it is logged that there is no room.
const logEvery = time.Minute

// A FullLog writes a line about requests that found no room: one a minute at
// most, however many there are. The zero value is ready, for any number of
// goroutines.
type FullLog struct {
	mu    sync.Mutex
	last  time.Time // guarded by mu: of the last line
	muted int       // guarded by mu: requests since then
}

// Note logs, or counts for the next line.
func (f *FullLog) Note(log *slog.Logger, what, why string) {
	now := time.Now()
	f.mu.Lock()
	muted := f.muted
	quiet := !f.last.IsZero() && now.Sub(f.last) < logEvery
	if quiet {
		f.muted++
	} else {
		f.last, f.muted = now, 0
	}
	f.mu.Unlock()
	if !quiet {
		log.Warn(what, "reason", why, "refused since the last such line", muted)
	}
}
