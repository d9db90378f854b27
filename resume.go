package notification

import "runtime"

// A resume is what a session of a Gateway with a history has beside the others.
// It is guarded by Session.mu.
type resume struct {
	epoch     uint64                // of the history, for the cursor
	at        place                 // up to where messages were replayed, offered or filtered away; at the end: the cursor
	before    [NumPriorities]uint64 // the cursor before the running Push
	caller    uint64                // the goroutine of that Push
	pushing   bool                  // that Push has not returned
	failed    bool                  // that Push failed
	replaying bool                  // the next batch comes from the history
}

// isNew reports whether a message is still to come for the session, which is
// then up to it. While a replay goes on, nothing is: the replay reads it from
// the history. mu is held.
func (s *Session) isNew(p Priority, seq uint64, clock int64) bool {
	if s.resume.replaying {
		if p == P0 && s.state == sessionQueued {
			s.promote(P0, clock)
		}
		return false
	}
	return seq > s.resume.at.seqs[p]
}

// replay is begin for a session that has not caught up with the history. mu is
// held.
func (s *Session) replay(p *pusher) delivery {
	r, st := s.resume, s.g.history
	r.at.filter = s.filter.Load()
	d, all, lost := st.read(s.user.history, &r.at, p.room(min(s.g.cfg.BatchSize, replayScan)), &s.turns)
	if lost {
		if r.epoch != st.epoch.Load() { // a Gap has emptied the histories, and will end the session
			return delivery{act: actEnd, reason: ErrGap}
		}
		return delivery{act: actEnd, reason: ErrSlowConsumer}
	}
	if all {
		r.replaying, r.at.added, r.at.missed = false, nil, nil
	}
	for p, n := range d.counts {
		if n > 0 {
			s.g.replayed[p].Add(uint64(n))
		}
	}
	return d
}

// add notes from where on the channels count that a change of the filter adds.
func (r *resume) add(old, changed uint32, now [NumPriorities]uint64) {
	for c := ChannelTrade; c < numChannels; c++ {
		if admits(changed, c) && !admits(old, c) {
			if r.at.added == nil {
				r.at.added = new(additions)
			}
			r.at.added[c] = now
		}
	}
}

// position returns the place of the cursor behind the running Push, or else
// behind the last that took its batch. mu is held.
func (s *Session) position() (seqs [NumPriorities]uint64) {
	r := s.resume
	if r.failed {
		return r.before
	}
	seqs = r.at.seqs
	for p := range s.out.lanes {
		switch {
		case s.out.lanes[p].n > 0:
			seqs[p] = s.out.head(Priority(p)) - 1
		case s.err == nil && !r.replaying:
			// What of it was for s has come before it was counted as offered, and would
			// be in the outbox.
			seqs[p] = max(seqs[p], s.g.history.offered[p].Load())
		}
	}
	return seqs
}

// Cursor returns where the session has got to. Inside Push that is behind this
// batch; from any other goroutine it is behind the last batch whose Push returned
// nil, at first the place of registration. With a Log it moves on with what that
// has for others, too. It is the zero Cursor if the Gateway keeps no history, and
// one that is gone if its Log does not know the place any more. While a Push runs
// it takes some microseconds, to find out on which goroutine it is called.
func (s *Session) Cursor() Cursor {
	if s.resume == nil {
		return Cursor{}
	}
	s.mu.Lock()
	pushing, caller := s.resume.pushing, s.resume.caller
	s.mu.Unlock()
	inside := pushing && caller == goroutineID()
	s.mu.Lock()
	c := Cursor{epoch: s.resume.epoch, user: s.user.history.key, seqs: s.position()}
	if s.resume.pushing && !inside {
		c.seqs = s.resume.before
	}
	s.mu.Unlock()
	if log := s.g.cfg.Log; log != nil {
		if seal, ok := log.Seal(s.user.id, c.seqs); ok {
			c.user, c.sealed = seal, true
		} // else it is nobody's: who comes with it must learn that it is gone
	}
	return c
}

// pushed says that Push has returned, and whether it took its batch. mu is held.
func (r *resume) pushed(taken bool) {
	if r != nil {
		r.pushing = false
		r.failed = r.failed || !taken
	}
}

// goroutineID returns the number of the calling goroutine. The runtime tells it
// in the first line of a stack trace only: "goroutine 18 [running]:".
func goroutineID() (id uint64) {
	var buf [40]byte
	line := buf[len("goroutine "):runtime.Stack(buf[:], false)]
	for _, c := range line {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + uint64(c-'0')
	}
	return id
}
