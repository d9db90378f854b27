package notification

import "time"

// timersEvery is how long what depends on time may wait for a reader that is
// busy with messages.
const timersEvery = 250 * time.Microsecond

// timers does what else depends on time, a slice of each at a call.
func (r *reader) timers() {
	r.timersAt = r.clock
	r.tend(r.g.cfg.MaxPushers)
	r.unlistEnded()
	if r.draining {
		return
	}
	if r.clock >= r.g.roster.forgets.Load() {
		r.g.roster.forgetExpired(r.clock)
	}
	if r.clock >= r.sweepAt {
		r.sweepSlice()
	}
}

// tend looks after the pool: it starts pushers, abandons those whose call does
// not return, and with all of most in a call ends the session whose Push has
// lasted the longest, if that is SlowAfter.
func (r *reader) tend(most int) {
	d := r.g.pool.ask(r.clock, most)
	r.askAt = d.at
	if d.abandon {
		for _, s := range r.g.pool.abandon(r.clock - int64(abandonAfter)) {
			r.g.abandon(s)
		}
	}
	if d.pushers > 0 {
		r.g.startPushers(d.pushers, r.clock)
	}
	if s := d.longest; s != nil {
		since, ok := s.runs()
		switch at := addTime(since, r.g.cfg.SlowAfter); {
		case !ok:
			r.askAt = min(r.askAt, r.clock+int64(growAfter))
		case at <= r.clock:
			r.endSlow(s)
		default:
			r.askAt = min(r.askAt, at)
		}
	}
}

// sweepSlice ends the silent sessions, and those that are slow though nothing
// more comes for them.
func (r *reader) sweepSlice() {
	if !r.sweeping {
		r.g.roster.begin(&r.sweep)
		r.sweeping = true
	}
	var buf [sliceSize]*Session
	part := r.g.roster.step(&r.sweep, buf[:])
	at := now()
	for _, s := range part {
		if s.timeout > 0 && at-s.heard.Load() >= int64(s.timeout) {
			if r.g.end(s, ErrSessionExpired) {
				r.g.log.Debug("session ended: expired", "session", s.id, "user", s.user.id)
			}
		} else if s.slow(at) {
			r.endSlow(s)
		}
	}
	if len(part) < sliceSize {
		r.sweeping = false
		if every := int64(r.g.cfg.SweepInterval); r.sweepAt <= at { // those that were missed are not made up for
			r.sweepAt = addTime(r.sweepAt+(at-r.sweepAt)/every*every, r.g.cfg.SweepInterval)
		}
	}
}

// unlistEnded takes sessions that have ended off the delay lists, a slice at a
// call.
func (r *reader) unlistEnded() {
	var buf [sliceSize]*Session
	for _, s := range r.ended.take(buf[:]) {
		for p := range r.lanes {
			if l := &r.lanes[p].delays; l.has(s) {
				l.remove(s)
			}
		}
	}
}
