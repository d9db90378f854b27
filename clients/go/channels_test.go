package notificationclient

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestChannels(t *testing.T) {
	const (
		trade, account, risk, system = notification.ChannelTrade, notification.ChannelAccount, notification.ChannelRisk, notification.ChannelSystem
	)
	type channels = []notification.Channel
	// do calls Subscribe or Unsubscribe in a goroutine.
	do := func(f func(context.Context, ...notification.Channel) error, chs ...notification.Channel) chan error {
		done := make(chan error, 1)
		go func() { done <- f(context.Background(), chs...) }()
		return done
	}
	for name, test := range map[string]func(*testing.T, *edge){
		"those of Config are said at the connect": func(t *testing.T, e *edge) {
			e.run(Config{Channels: channels{trade, risk}})
			require.Equal(t, []string{"trade,risk"}, e.next().query["channels"])
		},
		"no channels are none, and not all": func(t *testing.T, e *edge) {
			e.run(Config{Channels: channels{}})
			require.Equal(t, []string{""}, e.next().query["channels"])
		},
		"Subscribe has returned when the server has answered, and the next connection says them": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{Channels: channels{trade}})
			done := do(s.Subscribe, risk, trade)
			c := v.hear()
			require.Equal(t, "subscribe", c.Action)
			require.Equal(t, []string{"risk", "trade"}, c.Channels)
			synctest.Wait()
			require.Empty(t, done)
			v.say(fmt.Sprintf(`{"action":"ok","id":%s,"channels":["trade","risk"]}`, c.ID))
			require.NoError(t, <-done)

			done = do(s.Unsubscribe, trade)
			c = v.hear()
			require.Equal(t, "unsubscribe", c.Action)
			v.say(fmt.Sprintf(`{"action":"ok","id":%s,"channels":["risk"]}`, c.ID))
			require.NoError(t, <-done)
			v.cut()
			require.Equal(t, "risk", e.next().query.Get("channels"))
		},
		"what the server refuses is not said": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{Channels: channels{trade}})
			done := do(s.Subscribe, risk)
			v.say(fmt.Sprintf(`{"action":"error","id":%s,"code":"unknown_channel","message":"what?"}`, v.hear().ID))
			require.Equal(t, &CommandError{"unknown_channel", "what?"}, <-done)
			v.cut()
			require.Equal(t, "trade", e.next().query.Get("channels"))
		},
		"a connection that is lost before the answer leads to one that says them": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{Channels: channels{trade}})
			done := do(s.Subscribe, risk)
			v.hear()
			v.cut()
			require.NoError(t, <-done)
			require.Equal(t, "trade,risk", e.next().query.Get("channels"))
		},
		"without a connection nothing is waited for": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			require.NoError(t, s.Subscribe(t.Context(), trade))
			require.NoError(t, s.Subscribe(t.Context(), risk, trade))
			require.NoError(t, s.Unsubscribe(t.Context(), trade))
			s.start(t.Context())
			require.Equal(t, "risk", e.next().query.Get("channels"))
		},
		"of all, one is taken away; of one, it is none": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			require.NoError(t, s.Unsubscribe(t.Context(), system))
			s.start(t.Context())
			v := e.next()
			require.Equal(t, "trade,account,position,risk", v.query.Get("channels"))
			v.cut()
			s.told()
			require.NoError(t, s.Unsubscribe(t.Context(), trade, account, notification.ChannelPosition, risk))
			require.Equal(t, []string{""}, e.next().query["channels"])
		},
		"one at a time is told to the server, in a handshake too": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{Channels: channels{}})
			first := do(s.Subscribe, trade)
			c := v.hear()
			second := do(s.Subscribe, risk)
			synctest.Wait()
			require.Empty(t, v.said)
			v.say(fmt.Sprintf(`{"action":"ok","id":%s}`, c.ID))
			require.NoError(t, <-first)
			v.say(fmt.Sprintf(`{"action":"ok","id":%s}`, v.hear().ID))
			require.NoError(t, <-second)
		},
		"ctx ends the waiting": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, s.Subscribe(ctx, trade), context.DeadlineExceeded)
			require.Equal(t, "subscribe", v.hear().Action)
			require.Equal(t, StatusLive, s.State().Status, "the connection is none the worse")
		},
		"what cannot be is refused here": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			require.ErrorIs(t, s.Subscribe(t.Context()), notification.ErrInvalid)
			require.ErrorIs(t, s.Unsubscribe(t.Context(), 0), notification.ErrInvalid)
			require.ErrorIs(t, s.Subscribe(t.Context(), 99), notification.ErrInvalid)
		},
		"after the end there is nobody to tell": func(t *testing.T, e *edge) {
			s, _ := e.connected(Config{})
			require.NoError(t, s.Shutdown(t.Context()))
			require.ErrorIs(t, s.Subscribe(t.Context(), trade), notification.ErrClosed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
}
