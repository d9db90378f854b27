package notification

import (
	"math"
	"time"
)

// A hold is what a session costs others while a message for it waits at the head
// of its lane, because the outbox has no room.
type hold struct {
	lanes  uint8         // a bit for each lane that is held
	from   int64         // since when the sink's own time has not been charged
	busy   time.Duration // the sink's own time since from, in Pushes that have returned
	second int64         // when the second began in which spent counts
	spent  time.Duration // of the sink's own time, while others wanted to pass
}

// holdBudget is how much of its sink's own time a session may hold up a lane in
// any second in which others' messages come through it.
const holdBudget = 50 * time.Millisecond

// startHold says that a message for the session waits at the head of lane p. Only
// the reader calls it.
func (s *Session) startHold(p Priority, clock int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold == nil {
		s.hold = &hold{second: clock}
	}
	if s.hold.lanes == 0 {
		s.hold.from, s.hold.busy = clock, 0
	}
	s.hold.lanes |= 1 << p
}

// hasRoom reports whether what is held may come in: one message at a time would
// wake the reader for each. mu is held.
func (s *Session) hasRoom() bool {
	return s.out.lower() <= (outboxFactor-1)*int64(s.g.cfg.OutboxMessages) ||
		s.g.cfg.SlowPolicy == SlowDropOldest && s.state == sessionRunning
}

// held looks after the hold of lane p. It reports whether that is over, because
// there is room or the session has ended, or for how long others may still be
// held up. contested says that others' messages come through the lane; slow, that
// the session has held them up for too long. Only the reader calls it.
func (s *Session) held(p Priority, clock int64, contested bool) (over, slow bool, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hold
	if s.err != nil {
		return true, false, 0
	}
	own := h.busy
	if s.state == sessionRunning {
		own += time.Duration(max(clock-max(s.since, h.from), 0))
	}
	h.from, h.busy = clock, 0
	if clock-h.second >= int64(time.Second) {
		h.second, h.spent = clock, 0
	}
	left = math.MaxInt64
	if contested && s.g.cfg.SlowPolicy == SlowClose {
		h.spent += own
		if h.spent > holdBudget {
			return false, true, 0
		}
		if s.state == sessionRunning {
			left = holdBudget - h.spent + 1
		}
	}
	if s.hasRoom() {
		h.lanes &^= 1 << p
		return true, false, 0
	}
	if s.isSlow(clock) {
		return false, true, 0
	}
	if s.state == sessionRunning {
		left = min(left, time.Duration(addTime(s.since-clock, s.g.cfg.SlowAfter)))
	}
	return false, false, left
}
