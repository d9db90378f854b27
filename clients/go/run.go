package notificationclient

import (
	"context"
	"errors"
	"time"

	"github.com/qaexchange/notification/web"
)

// loop connects again and again, and returns why it stopped. soft is done when no
// callback may begin any more, hard when the one that runs should end.
func (c *Client) loop(soft, hard context.Context) *StopError {
	for losses := 0; ; losses++ {
		lived, end := c.session(soft, hard)
		if hard.Err() != nil || soft.Err() != nil && (end == nil || end.reason != ReasonHandler) {
			return &StopError{Reason: ReasonClosed, Code: web.CodeNormal, Cursor: c.Cursor()}
		}
		switch end.fate() {
		case fateAnew:
			c.owed = SnapshotGap
			c.keep("")
		case fateRenew:
			end.final = c.refused // the second time without a welcome in between
			c.refused = true
		}
		if end.fate() == fateStop {
			return &StopError{Reason: end.reason, Code: end.code, Cursor: c.Cursor(), Err: end.err}
		}
		if lived >= c.cfg.StableAfter {
			losses = 0
		}
		wait := c.backoff(losses)
		if end.reason == ReasonCredentials { // that was no loss, and renewals pause by themselves
			wait = c.backoff(0)
			losses--
		}
		c.setState(State{Status: StatusWaiting, Reason: end.reason, Code: end.code, Err: end.err, Retry: wait})
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-soft.Done():
			timer.Stop()
		}
	}
}

// backoff is the time before the attempt after n losses before.
func (c *Client) backoff(n int) time.Duration {
	most := c.cfg.BackoffBase
	for ; n > 0 && most < c.cfg.BackoffCap; n-- {
		most += min(most, c.cfg.BackoffCap-most) // doubled, up to the cap
	}
	return time.Duration(c.random() * float64(min(most, c.cfg.BackoffCap)))
}

// session is one attempt, and the connection if it comes to that. It returns how
// long the connection lived behind its welcome, and why it ended: nil if soft did.
func (c *Client) session(soft, hard context.Context) (lived time.Duration, end *ending) {
	if soft.Err() != nil {
		return 0, nil
	}
	c.setState(State{Status: StatusConnecting})
	n, end := c.connect(soft, hard)
	if n == nil {
		return 0, end
	}
	renewing := make(chan struct{})
	// It ends with the connection, and is waited for below.
	go func() {
		defer close(renewing)
		c.renewals(soft, n)
	}()
	// Whatever happens, a panic of a callback too, the two goroutines end.
	defer func() {
		c.mu.Lock()
		c.current = nil
		c.mu.Unlock()
		n.cut()
		<-n.done
		<-renewing
	}()
	welcomed, end := c.serve(soft, hard, n)
	if !welcomed.IsZero() {
		lived = time.Since(welcomed)
	}
	if hard.Err() == nil {
		n.hangUp()
	}
	return lived, end
}

// connect makes a connection. If there is none the ending says why: nil if soft
// is done.
func (c *Client) connect(soft, hard context.Context) (*conn, *ending) {
	creds, end := c.credentials(soft)
	if end != nil {
		return nil, end
	}
	// The turn is held until commands can follow: a change of the channels comes
	// either before they are said here, or over the connection.
	select {
	case c.turn <- struct{}{}:
	case <-soft.Done():
		return nil, nil
	}
	defer func() { <-c.turn }()
	c.mu.Lock()
	cursor, channels := c.cursor, c.channels
	c.mu.Unlock()
	dialing, cancel := context.WithTimeout(soft, c.cfg.ConnectTimeout)
	defer cancel()
	ws, end := c.dial(dialing, creds, cursor, channels)
	if end != nil {
		return nil, end
	}
	n := newConn(hard, ws, &c.cfg, cursor)
	c.mu.Lock()
	c.current = n
	c.mu.Unlock()
	return n, nil
}

// serve hands over what arrives until the connection ends. It returns when it was
// welcomed, the zero time if it was not, and why it ended: nil if soft did.
func (c *Client) serve(soft, hard context.Context, n *conn) (welcomed time.Time, end *ending) {
	resumed, replayed := false, true
	for soft.Err() == nil {
		f, ok, end := n.next()
		switch {
		case end != nil:
			return welcomed, end
		case !ok:
			select {
			case <-n.wake:
			case <-soft.Done():
			}
			continue
		case welcomed.IsZero() != (f.Action == actionWelcome):
			return welcomed, &ending{reason: ReasonProtocol, err: errors.New("a welcome that does not come first, and only once")}
		}
		switch f.Action {
		case actionWelcome:
			welcomed, resumed = time.Now(), f.Resumed
			end = c.welcomed(hard, n, f)
		case actionReset: // the welcome has said so, unless it was wrong
			if resumed {
				end = c.load(hard, n, SnapshotCursorGone)
			}
		case actionLive:
			if replayed {
				c.setState(State{Status: StatusLive})
			}
			replayed = false
		default: // a batch, or a heartbeat, which has none
			end = c.take(soft, hard, n, f, replayed)
		}
		if end != nil {
			return welcomed, end
		}
	}
	return welcomed, nil
}

// welcomed begins behind the cursor that the server goes on from, or with a
// snapshot.
func (c *Client) welcomed(ctx context.Context, n *conn, f frame) *ending {
	c.refused = false
	c.setState(State{Status: StatusReplaying})
	known := c.known
	c.known = true
	reason := c.owed
	if !f.Resumed && reason == "" {
		switch {
		case n.said != "":
			reason = SnapshotCursorGone
		case known: // the server keeps no history
			reason = SnapshotGap
		default:
			reason = SnapshotStart
		}
	}
	if reason == "" {
		return nil
	}
	end := c.load(ctx, n, reason)
	if end == nil && c.owed == "" && !f.Resumed {
		c.keep(f.Cursor)
	}
	return end
}

// load loads a snapshot. If the connection ends meanwhile the snapshot is still
// owed, and the next welcome leads to it. Where there is none, nothing is lost with
// the connection: what has come is as good as before.
func (c *Client) load(ctx context.Context, n *conn, reason SnapshotReason) *ending {
	if c.cfg.Snapshot == nil {
		c.owed = ""
		return nil
	}
	c.owed = reason
	loading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !n.load(cancel) {
		return nil
	}
	err := c.cfg.Snapshot(loading, reason)
	switch {
	case !n.loaded():
		return nil // why is the next that n has to say
	case err != nil:
		return &ending{reason: ReasonHandler, err: err, final: true}
	}
	c.owed = ""
	return nil
}

// take hands over a batch, and keeps its cursor when it has been dealt with. If soft
// is done behind the snapshot that comes first, it does neither.
func (c *Client) take(soft, hard context.Context, n *conn, f frame, replayed bool) *ending {
	if f.Dropped > 0 {
		if end := c.load(hard, n, SnapshotGap); end != nil || c.owed != "" || soft.Err() != nil {
			return end
		}
	}
	if len(f.Notifications) > 0 {
		if err := c.cfg.OnNotifications(hard, f.batch(replayed)); err != nil {
			return &ending{reason: ReasonHandler, err: err, final: true}
		}
	}
	if f.Cursor != "" {
		c.keep(f.Cursor)
	}
	return nil
}
