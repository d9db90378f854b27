package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/qaexchange/notification"
)

const (
	flakyTick = 10 * time.Millisecond
	flakyStay = 10 * time.Second // how long somebody stays connected, on average
	flakyAway = 300              // and away at most, in ticks
)

// A flock is the share of the members whose connections keep breaking. Each
// comes back where it was, behind its session's cursor, and must then have seen
// everything: the client's numbers tell.
type flock struct {
	x       *exchange
	rnd     *rand.Rand
	members []*member
	away    map[*member]bool
	wheel   [flakyAway + 1][]*member // who comes back, by tick
	tick    int
	done    chan struct{} // closed by run

	// read by others after done
	whole, gone uint64
	err         error
}

func newFlock(x *exchange, share float64, seed uint64) *flock {
	f := &flock{x: x, rnd: rand.New(rand.NewPCG(seed, 0xf1a)), away: make(map[*member]bool), done: make(chan struct{})}
	f.members = x.members[:int(share*float64(len(x.members)))]
	return f
}

// run disconnects and resumes until ctx ends; then everybody comes back.
func (f *flock) run(ctx context.Context) {
	defer close(f.done)
	tick := time.NewTicker(flakyTick)
	defer tick.Stop()
	owed := 0.0
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			f.comeBack()
			for owed += float64(len(f.members)) * float64(flakyTick) / float64(flakyStay); owed >= 1; owed-- {
				f.disconnect(f.members[f.rnd.IntN(len(f.members))])
			}
		}
	}
	for range f.wheel {
		f.comeBack()
	}
}

func (f *flock) disconnect(m *member) {
	if f.away[m] {
		return
	}
	m.client.session.Close()
	<-m.client.session.Done() // soon: the client's Push does not block
	f.away[m] = true
	slot := (f.tick + 1 + f.rnd.IntN(flakyAway)) % len(f.wheel)
	f.wheel[slot] = append(f.wheel[slot], m)
}

// comeBack resumes those whose time it is.
func (f *flock) comeBack() {
	f.tick = (f.tick + 1) % len(f.wheel)
	for _, m := range f.wheel[f.tick] {
		delete(f.away, m)
		err := m.client.connect(f.x.bus, m.client.session.Cursor())
		switch {
		case err == nil:
			f.whole++
		case errors.Is(err, notification.ErrCursorGone):
			// A real client loads a snapshot now. What it has missed is lost to
			// it, and the table says so.
			f.gone++
			m.client.restart()
			err = m.client.connect(f.x.bus, notification.Cursor{})
			f.err = errors.Join(f.err, err)
		default:
			f.err = errors.Join(f.err, err)
		}
	}
	f.wheel[f.tick] = f.wheel[f.tick][:0]
}
