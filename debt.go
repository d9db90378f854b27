package notification

import "sync/atomic"

// The debts of a Gateway are, in each lane, the messages of sessions that are
// due: they wait for a pusher and for nothing else. While the debt of a lane is
// over the limit, until half of that, the lane is throttled: the reader lets no
// more of it in.
type debts struct {
	// immutable
	limit int64
	wake  chan struct{} // rouses the reader

	// atomic
	debt      [NumPriorities]atomic.Int64
	throttled [NumPriorities]atomic.Bool
}

// debtLimit is how many messages of a lane may wait for a pusher.
func debtLimit(outbox int) int64 { return max(4*int64(outbox), 4096) }

// owe changes the debt of a lane by n messages.
func (d *debts) owe(p Priority, n int) {
	if n == 0 {
		return
	}
	// Either this sees that the lane is throttled, and rouses the reader, or the
	// reader sees the new debt when it has said that it is.
	if left := d.debt[p].Add(int64(n)); n < 0 && d.throttled[p].Load() && left <= d.limit/2 {
		rouse(d.wake)
	}
}

// oweAll is owe for every lane.
func (d *debts) oweAll(counts [NumPriorities]int, sign int) {
	for p, n := range counts {
		d.owe(Priority(p), sign*n)
	}
}

// throttle reports whether the reader must let no more of a lane in. Only the
// reader calls it.
func (d *debts) throttle(p Priority) bool {
	was := d.throttled[p].Load()
	limit := d.limit
	if was {
		limit /= 2
	}
	over := d.debt[p].Load() > limit
	if over == was {
		return over
	}
	d.throttled[p].Store(over)
	if over && d.debt[p].Load() <= d.limit/2 { // see owe
		d.throttled[p].Store(false)
		return false
	}
	return over
}
