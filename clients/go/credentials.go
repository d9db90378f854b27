package notificationclient

import (
	"context"
	"errors"
	"time"
)

// renewPause is the least time between two renewals: what lives for less than a
// minute is said to expire at once, again and again, over each new connection.
const renewPause = time.Second

// answerTimeout is how long the answer to authenticate is waited for. While it is,
// the reader waits for nothing else.
const answerTimeout = 30 * time.Second

// credentials returns what the next attempt shows.
func (c *Client) credentials(ctx context.Context) (Credentials, *ending) {
	c.mu.Lock()
	renewed := c.renewed
	c.renewed = nil
	c.mu.Unlock()
	switch {
	case renewed != nil:
		return *renewed, nil
	case c.refused:
		return c.ask(ctx, WhyRefused)
	}
	return c.ask(ctx, WhyStart)
}

func (c *Client) ask(ctx context.Context, why Why) (Credentials, *ending) {
	creds, err := c.cfg.Credentials(ctx, why)
	if err == nil && creds.Ticket != "" && creds.Token != "" {
		err = errors.New("Credentials has a Ticket and a Token")
	}
	if err != nil {
		return Credentials{}, &ending{reason: ReasonCredentials, err: err, final: true}
	}
	return creds, nil
}

// renewals renews credentials as often as the server says that they are expiring,
// until the connection ends. The first time that is at once, later after half of
// their life.
func (c *Client) renewals(ctx context.Context, n *conn) {
	for {
		var in time.Duration
		select {
		case in = <-n.expiring:
		case <-n.open.Done():
			return
		}
		c.mu.Lock()
		pause := time.NewTimer(time.Until(c.renewedAt.Add(max(renewPause, in/2))))
		c.mu.Unlock()
		select {
		case <-pause.C:
		case <-n.open.Done():
			pause.Stop()
			return
		}
		c.mu.Lock()
		c.renewedAt = time.Now()
		c.mu.Unlock()
		c.renew(ctx, n)
	}
}

// renew gets new credentials and shows them: over the connection if the server
// takes them there, else by reconnecting.
func (c *Client) renew(ctx context.Context, n *conn) {
	creds, end := c.ask(ctx, WhyExpiring)
	switch {
	case end != nil:
		n.leave(end)
	case creds.Token != "" && n.refreshes():
		// A refusal changes nothing: the connection lives until it is closed with
		// 4401, which asks for credentials once more.
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		_, _ = n.command(ctx, map[string]any{"action": "authenticate", "token": creds.Token})
	default:
		c.mu.Lock()
		c.renewed = &creds
		c.mu.Unlock()
		n.leave(&ending{reason: ReasonCredentials})
	}
}
