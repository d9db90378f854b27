package notificationclient

import (
	"context"
	"fmt"
	"slices"

	"github.com/qaexchange/notification"
)

// everyChannel is what a filter that was never set lets through, as far as it is
// known here.
var everyChannel = []notification.Channel{
	notification.ChannelTrade, notification.ChannelAccount, notification.ChannelPosition,
	notification.ChannelRisk, notification.ChannelSystem,
}

func checkChannels(channels []notification.Channel) error {
	for _, ch := range channels {
		if !slices.Contains(everyChannel, ch) {
			return fmt.Errorf("%w: channel %d is unknown", notification.ErrInvalid, uint8(ch))
		}
	}
	return nil
}

// Subscribe adds channels to those wanted; if all were, these alone are. When it
// has returned nil, what is published on them from now on arrives; a snapshot of
// them should be loaded then. Without a connection, or if that is lost meanwhile,
// it is nil at once: the next connection says so, from the cursor on.
//
// It waits for the server's answer. An error is notification.ErrInvalid without
// channels or with one that does not exist; notification.ErrClosed when Run has
// returned; a *[CommandError] if the server refused, which leaves everything as it
// was; or ctx's, which leaves open whether the server has heard.
func (c *Client) Subscribe(ctx context.Context, channels ...notification.Channel) error {
	return c.change(ctx, "subscribe", channels, func(have []notification.Channel) []notification.Channel {
		return append(slices.Clone(have), slices.DeleteFunc(slices.Clone(channels), func(ch notification.Channel) bool {
			return slices.Contains(have, ch)
		})...)
	})
}

// Unsubscribe takes channels away from those wanted; from all, if all were. What
// already waits for the client still comes. For the rest it is as Subscribe.
func (c *Client) Unsubscribe(ctx context.Context, channels ...notification.Channel) error {
	return c.change(ctx, "unsubscribe", channels, func(have []notification.Channel) []notification.Channel {
		if have == nil {
			have = everyChannel
		}
		return slices.DeleteFunc(slices.Clone(have), func(ch notification.Channel) bool {
			return slices.Contains(channels, ch)
		})
	})
}

// change computes the channels anew and tells the server.
func (c *Client) change(ctx context.Context, action string, channels []notification.Channel, apply func([]notification.Channel) []notification.Channel) error {
	if len(channels) == 0 {
		return fmt.Errorf("%w: %s names no channels", notification.ErrInvalid, action)
	}
	if err := checkChannels(channels); err != nil {
		return err
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.turn }()
	select {
	case <-c.stopped:
		return fmt.Errorf("%w: Client", notification.ErrClosed)
	default:
	}
	c.mu.Lock()
	before, n := c.channels, c.current
	c.channels = apply(before)
	c.mu.Unlock()
	if n == nil {
		return nil
	}
	f, err := n.command(ctx, map[string]any{"action": action, "channels": channels})
	switch {
	case err == errConnectionEnded:
		return nil
	case err != nil:
		return err
	case f.Action == actionError:
		c.mu.Lock()
		c.channels = before
		c.mu.Unlock()
		return &CommandError{Code: f.Code, Message: f.Message}
	}
	return nil
}

// A CommandError is what the server answered to a command that it did not do.
type CommandError struct {
	Code    string // for programs: "unknown_channel"
	Message string // for people
}

// Error implements error.
func (e *CommandError) Error() string {
	return fmt.Sprintf("notificationclient: refused: %s: %s", e.Code, e.Message)
}
