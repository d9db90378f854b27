package natslog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
)

// A sender is the way into one stream: it sends a block until it is acknowledged,
// and then the next one. What the server has taken and not answered is sent again
// with the same Msg-Id, at once when the connection has come back, because a
// request that was under way when it broke is never answered.
type sender struct {
	// immutable
	backlog
	p        *Publisher
	lane     notification.Priority
	subject  string
	stream   string
	conn     *conn
	prefix   string        // of a Msg-Id, behind the run
	patience time.Duration // with a server, before another one is tried

	// owned by run
	id    string // of the run: 128 random bits
	count uint64 // of the Msg-Ids of this run
	inbox string
	acks  chan *nats.Msg
	timer *time.Timer
}

func newSender(p *Publisher, lane notification.Priority, partition int) *sender {
	s := &sender{
		p: p, lane: lane, conn: p.log.conn(lane), id: p.cfg.run,
		subject: p.log.subject(lane, partition), stream: p.log.stream(lane, partition),
		prefix:   "." + lane.String() + "." + strconv.Itoa(partition) + ".",
		patience: p.log.cfg.pace.withDefaults(p.log.cfg.Retention).elsewhere,
		// Room for the answers to what was sent often while the server stood still:
		// what does not fit is an answer that came before.
		acks: make(chan *nats.Msg, 64),
	}
	s.backlog.init(p, lane)
	return s
}

// run sends until it is drained or stopping.
func (s *sender) run() {
	s.timer = time.NewTimer(time.Hour)
	defer s.timer.Stop()
	s.inbox = s.conn.nc.NewInbox()
	sub, err := s.conn.nc.ChanSubscribe(s.inbox+".*", s.acks)
	if err != nil {
		s.lostConn(err)
	} else {
		defer sub.Unsubscribe() // an error means that the connection is gone
		for b := s.take(s.timer); b != nil && s.store(b); b = s.take(s.timer) {
			s.acknowledged(b)
		}
	}
	select {
	case <-s.p.life.stopping:
		<-s.p.life.settled // soon: Run counts what is left
		s.tellAbandoned()
	default: // drained: nothing is left
	}
}

// store returns true when b is in the log, false when the Publisher is stopping.
func (s *sender) store(b *batch) bool {
	msg := s.message(b)
	sent, wait, pause := 0, s.p.cfg.ackWait, firstPause
	var failing time.Time // since when; zero: it does not
	for {
		back := s.conn.reconnect() // before it is sent, so that none is missed
		a, err := s.attempt(msg, back, wait)
		if err == nil || !errors.Is(err, errUnsent) {
			sent++
		}
		switch {
		case err == nil && a.Duplicate && sent == 1:
			// Another block has this Msg-Id: b is not in the log.
			s.bump(&s.counts.collisions)
			s.p.cfg.Logger.Error("block was taken for another one, sending it under a new Msg-Id", "stream", s.stream, "id", msg.Header.Get(headerMsgID), "taken_for", a.Sequence)
			s.id, sent = newRun(), 0
			msg = s.message(b)
			continue
		case err == nil:
			if a.Duplicate {
				s.bump(&s.counts.recognized)
			}
			if !failing.IsZero() {
				s.recovered()
			}
			return true
		case errors.Is(err, errStopping):
			return false
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining):
			s.lostConn(err)
			return false
		}
		s.failed(err, failing.IsZero())
		if failing.IsZero() {
			failing = time.Now()
		} else if time.Since(failing) > s.patience {
			s.conn.elsewhere(s.patience) // this server may be cut off from the others
		}
		switch {
		case errors.Is(err, errBack): // at once
			continue
		case errors.Is(err, errSilent): // it has waited enough
			wait = min(2*wait, max(wait, lastWait))
			continue
		case errors.Is(err, errDisconnected): // until it is back; its handlers may tell that late
			s.timer.Reset(lastPause)
		default:
			s.timer.Reset(pause)
			pause = min(2*pause, lastPause)
		}
		select {
		case <-s.timer.C:
		case <-back:
		case <-s.p.life.stopping:
			return false
		}
	}
}

// message returns the message that stores b, as no block before.
func (s *sender) message(b *batch) *nats.Msg {
	s.count++
	count := strconv.FormatUint(s.count, 10)
	msg := newBlockMsg(s.subject, s.id+s.prefix+count, len(b.items), b.data)
	msg.Reply = s.inbox + "." + count // so that a late answer is not taken for that of the next block
	return msg
}

// An ack is what the server answers.
type ack struct {
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Error     *struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
}

// Why an attempt did not end with an acknowledgement, beside what the server says.
var (
	errUnsent       = errors.New("not sent")
	errDisconnected = fmt.Errorf("%w: there is no connection", errUnsent)
	errBack         = errors.New("the connection broke, and is back")
	errSilent       = errors.New("there is no answer")
	errStopping     = errors.New("stopping")
)

// attempt sends msg once and waits for the answer to this attempt or an earlier one.
func (s *sender) attempt(msg *nats.Msg, back <-chan struct{}, wait time.Duration) (ack, error) {
	if nc := s.conn.nc; !nc.IsConnected() && !nc.IsClosed() {
		return ack{}, errDisconnected
	}
	if err := s.conn.nc.PublishMsg(msg); err != nil {
		return ack{}, fmt.Errorf("%w: %w", errUnsent, err)
	}
	s.timer.Reset(wait)
	for {
		select {
		case m := <-s.acks:
			if m.Subject == msg.Reply {
				return s.answer(m)
			}
		case <-back:
			return ack{}, errBack
		case <-s.timer.C:
			return ack{}, errSilent
		case <-s.p.life.stopping:
			return ack{}, errStopping
		}
	}
}

// answer reads what the server said.
func (s *sender) answer(m *nats.Msg) (a ack, err error) {
	switch {
	case len(m.Data) == 0 && m.Header.Get("Status") == "503":
		return ack{}, errors.New("no server keeps the stream at present")
	case json.Unmarshal(m.Data, &a) != nil:
		return ack{}, fmt.Errorf("something else than JetStream answers: %q", m.Data[:min(len(m.Data), 64)])
	case a.Error != nil:
		return ack{}, fmt.Errorf("%s (%d)", a.Error.Description, a.Error.ErrCode)
	case a.Stream != s.stream:
		return ack{}, fmt.Errorf("another stream, %q, answers", a.Stream)
	}
	return a, nil
}

// lostConn ends the Publisher: without a connection there is nothing to wait for.
func (s *sender) lostConn(err error) {
	s.p.life.cut(fmt.Errorf("%w: the Log has no connection any more: %w", notification.ErrClosed, err))
}

// failed and recovered frame an episode of a block that is not acknowledged. There is
// one line for all streams, because they fail together.
func (s *sender) failed(err error, first bool) {
	s.mu.Lock()
	s.counts.failures++
	s.failure = err
	s.mu.Unlock()
	if first && s.p.failing.Add(1) == 1 {
		s.p.cfg.Logger.Warn("blocks are not acknowledged, sending them again", "stream", s.stream, "error", err)
	}
}

func (s *sender) recovered() {
	s.mu.Lock()
	s.failure = nil
	s.mu.Unlock()
	if s.p.failing.Add(-1) == 0 {
		s.p.cfg.Logger.Info("blocks are acknowledged again", "stream", s.stream)
	}
}
