package notification

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Log is where the messages of a Gateway come from when several processes
// publish and several serve sessions: it numbers them, the same for all, and has
// those that a Gateway no longer has. Package natslog is one.
//
// Somebody feeds the Gateway out of it, with Messages of NewMessageAt, each lane
// in the order of its numbers. For each piece of the log the feeder first makes
// sure that Missed finds it, then raises At over it, then asks Gateway.Holds for
// each entry and sends those that are held: a user who comes in between is in the
// Gateway's table before At is read, and so gets it one way or the other. If the
// last entry of a piece was not sent, a Message of no Notification should be, with
// a number as high: with that the cursors of users move on to whom nothing
// happens. What is missing in the log it tells by raising At over it, and calling
// Gap then. When the numbers begin anew, it sends nothing more until Epoch has
// changed, At is what it is in the new epoch, and Gap was called. Others may call Gap
// meanwhile: whoever reads Epoch and then At must not get the At of an older epoch.
//
// The methods are called from any goroutine. Epoch, At and Seal are called with
// locks of the Gateway held: they must not wait, and call nothing of it.
type Log interface {
	// Epoch names the numbering: numbers of different epochs do not compare.
	Epoch() uint64

	// At returns the last number of each lane that the feeder has seen.
	At() [NumPriorities]uint64

	// Missed returns what was sent to the user, or to AllUsers, with a number over
	// after and at most upTo in its lane, if its channel is one of channels (nil:
	// all): Messages of NewMessageAt, each lane in order, at most so many. upTo
	// is not over At where it is over after; after may be, because another Gateway
	// of the Log may be ahead. An error that Is ErrCursorGone says that something of
	// it is no longer there, or that the log ends before after; any other that it
	// may succeed later.
	Missed(ctx context.Context, userID string, channels []Channel, after, upTo [NumPriorities]uint64, most int) ([]*Message, error)

	// Seal returns what tells this place of this user from the same numbers in a
	// log that has lost its end and used them again: a hash of the user and of
	// when each lane's entry was stored, say. It reports false for a place that is
	// not known any more, or not yet.
	Seal(userID string, numbers [NumPriorities]uint64) (uint64, bool)
}

// A numbered is a Message with its place in a Log.
type numbered struct {
	Message // first: see numberedOf
	number  uint64
	mark    mark
	epoch   uint64 // that begins with a fence
}

// A mark says what a Message without a Notification is.
type mark uint8

const (
	noMark   mark = iota // one with a Notification
	passMark             // the log has got so far
	fence                // what comes behind it is of another epoch
)

// NewMessageAt is NewMessage for whoever feeds a Gateway with a Log: number is
// that of n in its lane of the log, from 1. With a nil Notification the Message
// says only that the log has got so far, and goes into the lane of which that is
// true. Elsewhere the number means nothing.
func NewMessageAt(n *Notification, number uint64) *Message {
	m := &numbered{Message: Message{n: n, entered: now(), numbered: true}, number: number}
	t, err := n.check()
	if n == nil {
		m.n, m.mark = new(Notification), passMark
	}
	m.typ, m.priority, m.invalid = t, min(m.n.Priority, P3), err != nil
	return &m.Message
}

func (m *Message) isFence() bool {
	return m != nil && m.numbered && numberedOf(m).mark == fence
}

// follows reports whether a message may come next in a lane: it has a number of
// the Log over the last. Then that is its.
func (l *readLane) follows(m *Message) bool {
	n := numberedOf(m)
	if n == nil || n.number <= l.last {
		return false
	}
	l.last = n.number
	return true
}

// acceptMark is accept for a message without a Notification, and reports whether
// it is one.
func (r *reader) acceptMark(p Priority, m *Message) bool {
	if m == nil || !m.numbered || numberedOf(m).mark == noMark {
		return false
	}
	n, l := numberedOf(m), &r.lanes[p]
	switch {
	case n.mark == fence:
		l.epoch, l.last = n.epoch, 0
	case l.follows(m):
		r.received[p].inc()
		r.noSession[p].inc()
		r.g.history.pass(p, l.last, l.epoch)
	default:
		r.invalid[p].inc()
	}
	return true
}

// keep puts the message at the head of a lane into a history, and reports whether
// the users' hold too much now.
func (r *reader) keep(p Priority, h *history, m *Message) (over bool) {
	l := &r.lanes[p]
	if r.g.cfg.Log != nil {
		l.seq = l.last
		return r.g.history.keep(h, m, l.seq, l.epoch)
	}
	l.seq, over = r.g.history.append(h, m)
	return over
}

// renew tells the reader that what the inbox gets from now on is of another epoch
// of the Log. It does not wait: if a lane is full, its oldest make room, which are
// for sessions that are ended by the Gap.
func (r *reader) renew(epoch uint64) {
	for p, ch := range r.g.inbox {
		m := &numbered{Message: Message{n: new(Notification), invalid: true, numbered: true}, mark: fence, epoch: epoch}
		for sent := false; !sent; {
			select {
			case ch <- &m.Message:
				sent = true
			default:
				select {
				case old := <-ch:
					if !old.isFence() {
						r.discarded[p].Add(1)
					}
				default:
				}
			}
		}
	}
}

// GapUser is Gap for one user, of whom something is missing: it ends the user's
// sessions with ErrGap. It is for whoever feeds a Gateway with a Log. Cursors stay
// valid, so Missed must return ErrCursorGone where it would have to skip what is
// missing. For AllUsers, and without a Log, it is Gap.
func (g *Gateway) GapUser(userID string) {
	if userID == AllUsers || g.cfg.Log == nil {
		g.Gap()
		return
	}
	if u, ok := g.roster.users.Load(userID); ok {
		u.history.evictUpTo(g.history.ahead())
	}
	for s := range g.UserSessions(userID) {
		g.end(s, ErrGap)
	}
}

const (
	// logWait is how long RegisterSession waits for a Log.
	logWait = 5 * time.Second
	// logPoll is how often it looks whether the Log has come up with a cursor that
	// is from a Gateway that was faster. That is rare, so a Log need not offer a
	// way to wait for it.
	logPoll = 5 * time.Millisecond
	// logTries is how often it asks the Log again because more has left the
	// histories meanwhile.
	logTries = 4
)

// registerBehind is register behind a cursor of the Log.
func (s *Session) registerBehind(cfg *SessionConfig) error {
	ctx, cancel := context.WithTimeout(context.Background(), logWait)
	defer cancel()
	for range logTries {
		upTo, err := s.g.roster.expect(s, cfg.UserID, cfg.After)
		if err != nil {
			return err
		}
		if s.resume.at.missed, err = s.g.missed(ctx, cfg, upTo); err != nil {
			return err
		}
		if err := s.register(cfg); !errors.Is(err, ErrCursorGone) {
			return err
		}
		// Something has left the histories since expect, or it was a Gap.
	}
	return fmt.Errorf("%w: user %q: the history evicts faster than the Log answers", ErrTryAgain, cfg.UserID)
}

// missed returns what the Log has behind cfg.After and up to upTo, or nil if that
// is nothing, when the Log has come up with cfg.After and has confirmed it.
func (g *Gateway) missed(ctx context.Context, cfg *SessionConfig, upTo [NumPriorities]uint64) (m *missed, err error) {
	log, after := g.cfg.Log, cfg.After.seqs
	behind := func(at [NumPriorities]uint64) bool { // the feeder, as far as at
		for p, n := range after {
			if n > at[p] {
				return true
			}
		}
		return false
	}
	if upTo != after || behind(log.At()) {
		most := g.cfg.HistoryMessages
		list, err := log.Missed(ctx, cfg.UserID, cfg.Channels, after, upTo, most+1)
		switch {
		case errors.Is(err, ErrCursorGone):
			return nil, fmt.Errorf("user %q: %w", cfg.UserID, err)
		case err != nil:
			return nil, fmt.Errorf("%w: user %q: %w", ErrTryAgain, cfg.UserID, err)
		case len(list) > most:
			return nil, fmt.Errorf("%w: more than HistoryMessages %d were missed", goneError(cfg.UserID), most)
		}
		if m, err = newMissed(list, after, upTo); err != nil {
			return nil, fmt.Errorf("%w: user %q: %w", ErrTryAgain, cfg.UserID, err)
		}
	}
	for behind(log.At()) {
		if log.Epoch() != cfg.After.epoch {
			return nil, goneError(cfg.UserID)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: user %q: the cursor is ahead of the Log here", ErrTryAgain, cfg.UserID)
		case <-g.life.draining:
			return nil, closedError()
		case <-g.life.stopping:
			return nil, closedError()
		case <-time.After(logPoll):
		}
	}
	if seal, ok := log.Seal(cfg.UserID, after); !ok || seal != cfg.After.user {
		return nil, goneError(cfg.UserID)
	}
	return m, nil
}

// newMissed sorts what Log.Missed has returned into lanes. It returns an error if
// that is not what was asked for.
func newMissed(list []*Message, after, upTo [NumPriorities]uint64) (*missed, error) {
	m := &missed{upTo: upTo}
	last := after
	for i, message := range list {
		if message == nil || !message.numbered || message.invalid {
			return nil, fmt.Errorf("%w: Log.Missed: message %d has no number, or is not valid", ErrInvalid, i)
		}
		p, n := message.priority, numberedOf(message).number
		if n <= last[p] || n > upTo[p] {
			return nil, fmt.Errorf("%w: Log.Missed: message %d of P%d has number %d, which is not over %d and up to %d", ErrInvalid, i, p, n, last[p], upTo[p])
		}
		last[p] = n
		m.lanes[p] = append(m.lanes[p], sequenced{n, message})
	}
	return m, nil
}
