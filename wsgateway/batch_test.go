package wsgateway

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/door"
	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

// What notification.batch.v1 has beside batches, and what there is instead
// without it.

func TestLive(t *testing.T) {
	t.Run("live comes once: behind all that was replayed, before all that is new", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1 << 16}, Config{})
		c := s.dial("alice", true, "")
		cursor := c.frame().Cursor
		require.NoError(t, c.ws.CloseNow())
		s.noSession("alice")
		for range 20 {
			missed := map[string]bool{}
			for range 300 {
				missed[s.publish("alice", notification.OrderFilled{}).ID] = true
			}
			eventually(t, "all of it is with the Gateway", func() bool {
				p := notification.OrderFilled{}.Type().DefaultPriority()
				return s.gateway.Stats().Lanes[p].Received == s.broker.Stats().Lanes[p].Published
			})
			c := s.dial("alice", true, "cursor="+cursor)
			require.True(t, c.frame().Resumed)
			s.publish("alice", notification.RiskAlert{}) // while it replays, or after it
			lives := 0
			for seen := 0; seen < len(missed)+1; {
				f := c.frame()
				if f.Action == "live" {
					lives++
					require.GreaterOrEqual(t, seen, len(missed), "behind what was missed")
					continue
				}
				cursor = f.Cursor
				old, young := 0, 0
				for _, n := range f.Notifications {
					if seen++; missed[n.MessageID] {
						old++
					} else {
						young++
					}
				}
				require.Zero(t, lives*old, "nothing that was missed comes behind live")
			}
			if lives == 0 { // the new one was replayed too
				require.Equal(t, "live", c.frame().Action)
				lives++
			}
			require.Equal(t, 1, lives)
			require.NoError(t, c.ws.CloseNow())
			s.noSession("alice")
		}
	})
}

func TestHeartbeat(t *testing.T) {
	t.Run("a client that is sent nothing hears of the server all the same, again and again", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: 20 * time.Millisecond})
		c := s.dial("alice", true, "")
		welcome := c.frame()
		require.Equal(t, 20, welcome.HeartbeatMS)
		require.Equal(t, "live", c.beyondHeartbeats().Action)
		for range 5 {
			require.Equal(t, `{"action":"heartbeat","cursor":"`+welcome.Cursor+`"}`, c.hear())
		}
	})
	t.Run("pings, which no page sees, do not put it off", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{
			HeartbeatInterval: 200 * time.Millisecond, PingInterval: 10 * time.Millisecond, CommandsPerSecond: 1000,
		})
		c := s.dial("alice", true, "")
		require.Equal(t, "welcome", c.frame().Action)
		require.Equal(t, "live", c.beyondHeartbeats().Action)
		for range 2 {
			require.Equal(t, "heartbeat", c.frame().Action)
		}
	})
	t.Run("its time does not follow the wall clock, which may be set back", func(t *testing.T) {
		s := newSocket(&Config{}, new(door.Counters), nil)
		s.sent(time.Now())
		require.Contains(t, s.lastSent().String(), "m=", "a monotonic reading")
	})
	t.Run("without a subprotocol there are none", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Millisecond})
		quiet, witness := s.dial("alice", false, ""), s.dial("witness", true, "")
		for range 2 + 20 { // welcome, live, heartbeats
			witness.frame()
		}
		n := s.publish("alice", notification.OrderFilled{})
		require.Equal(t, n.ID, quiet.frame().MessageID)
	})
	t.Run("the cursors on the wire never go back, and each is good", func(t *testing.T) {
		// Heartbeats as often as can be, between batches.
		const total = 2000 // and there is room for them, so that nobody is slow
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1 << 16, OutboxMessages: total}, Config{HeartbeatInterval: 100 * time.Microsecond})
		c := s.dial("alice", true, "")
		var sending sync.WaitGroup
		var ids []string
		sending.Go(func() {
			for range total {
				n := notification.New("alice", notification.RiskAlert{}, "test")
				ids = append(ids, n.ID)
				if err := s.broker.Publish(n); err != nil {
					t.Error(err)
				}
				if len(ids)%50 == 0 {
					<-time.After(time.Millisecond)
				}
			}
		})
		type place struct {
			cursor string
			seen   int
		}
		last, err := notification.ParseCursor(c.frame().Cursor) // of the welcome
		require.NoError(t, err)
		var places []place
		heartbeats, seen := 0, 0
		for seen < total {
			f := c.frame()
			if f.Action == "live" {
				continue
			}
			cursor, err := notification.ParseCursor(f.Cursor)
			require.NoError(t, err)
			require.True(t, cursor.Covers(last), "%s after %s", cursor, last)
			last = cursor
			seen += len(f.Notifications)
			if f.Action == "heartbeat" {
				heartbeats++
				if heartbeats%10 == 1 {
					places = append(places, place{f.Cursor, seen})
				}
			}
		}
		sending.Wait()
		require.NotEmpty(t, places)
		require.NoError(t, c.ws.CloseNow())
		for _, p := range places {
			c := s.dial("alice", true, "cursor="+p.cursor)
			require.True(t, c.frame().Resumed)
			if p.seen == total {
				require.Equal(t, "live", c.frame().Action)
			} else {
				f := c.frame()
				for f.Action != "" {
					require.Equal(t, "heartbeat", f.Action) // before the first batch
					f = c.frame()
				}
				require.Equal(t, ids[p.seen], f.Notifications[0].MessageID)
			}
			require.NoError(t, c.ws.CloseNow())
		}
	})
	t.Run("not even between the write of a batch and the moment when its session has taken note of it", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{})
		c := s.dial("alice", true, "")
		require.Equal(t, "welcome", c.frame().Action)
		require.Equal(t, "live", c.frame().Action)
		s.publish("alice", notification.RiskAlert{})
		text := c.frame().Cursor
		raw, err := base64.RawURLEncoding.DecodeString(text)
		require.NoError(t, err)
		raw[17]++ // one more in P0
		ahead, err := notification.ParseCursor(base64.RawURLEncoding.EncodeToString(raw))
		require.NoError(t, err)
		conn := s.handler.door.All()[0]
		conn.sock.writing.Lock()
		conn.wire = ahead
		conn.sock.writing.Unlock()
		require.NoError(t, conn.heartbeat(time.Now()))
		require.Equal(t, ahead.String(), c.frame().Cursor)
	})
}

func TestCommandIDs(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{CommandsPerSecond: 1000})
	for _, id := range []string{`1`, `"a"`, `"<&>"`, `[1,"x"]`, `{"n":12345678901234567890}`, `1.50`, `"` + strings.Repeat("x", 62) + `"`} {
		t.Run("an id is echoed as it came: "+id[:min(len(id), 30)], func(t *testing.T) {
			c := s.dial("alice", false, "")
			for _, test := range []struct{ say, hear string }{
				{`{"action":"subscribe","channels":["risk"],"id":%s}`, `{"action":"ok","id":%s,"channels":["risk"]}`},
				{`{"id": %s ,"action":"subscribe","channels":["trade"]}`, `{"action":"ok","id":%s,"channels":["trade","risk"]}`},
				{`{"action":"unsubscribe","channels":["trade"],"id":%s}`, `{"action":"ok","id":%s,"channels":["risk"]}`},
				{`{"action":"unsubscribe_all","id":%s}`, `{"action":"ok","id":%s,"channels":["trade","account","position","risk","system"]}`},
				{`{"action":"get_subscriptions","id":%s}`, `{"action":"ok","id":%s,"channels":["trade","account","position","risk","system"]}`},
				{`{"action":"ping","id":%s}`, `{"action":"pong","id":%s}`},
				{`{"action":"sudo","id":%s}`, `{"action":"error","id":%s,"code":"unknown_action",`},
				{`{"action":"subscribe","id":%s}`, `{"action":"error","id":%s,"code":"no_channels",`},
				{`{"action":"subscribe","channels":["gossip"],"id":%s}`, `{"action":"error","id":%s,"code":"unknown_channel",`},
			} {
				c.say(fmt.Sprintf(test.say, id))
				require.True(t, strings.HasPrefix(c.hear(), fmt.Sprintf(test.hear, id)), test.say)
			}
		})
	}
	t.Run("one of more than 64 bytes is an error, and the command is not done", func(t *testing.T) {
		c := s.dial("alice", false, "")
		c.say(`{"action":"subscribe","channels":["risk"],"id":"` + strings.Repeat("x", 63) + `"}`)
		f := c.frame()
		require.Equal(t, "bad_id", f.Code)
		require.Empty(t, f.ID)
		c.say(`{"action":"get_subscriptions"}`)
		require.Len(t, c.frame().Channels, 5)
	})
	t.Run("null is none", func(t *testing.T) {
		c := s.dial("alice", false, "")
		c.say(`{"action":"subscribe","channels":["risk"],"id":null}`)
		c.say(`{"action":"ping","id":null}`)
		require.Equal(t, `{"action":"pong"}`, c.hear())
	})
	t.Run("what is routed after ok is filtered", func(t *testing.T) {
		c := s.dial("filter", true, "")
		require.Equal(t, "welcome", c.frame().Action)
		require.Equal(t, "live", c.frame().Action)
		c.say(`{"action":"subscribe","channels":["risk"],"id":1}`)
		require.Equal(t, "ok", c.frame().Action)
		s.publish("filter", notification.OrderFilled{})
		n := s.publish("filter", notification.MarginCall{})
		require.Equal(t, n.ID, c.frame().Notifications[0].MessageID)
	})
}

func TestAHoleIsNeverSilent(t *testing.T) {
	t.Run("without a subprotocol a drop ends the connection with 4000", func(t *testing.T) {
		// Without pings, which would come between what was dropped and what is read.
		s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8, SlowPolicy: notification.SlowDropOldest}, Config{WriteTimeout: patience, PingInterval: time.Hour})
		nc, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		defer nc.Close()
		require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
		c := &rawClient{t, nc, bufio.NewReader(nc)}
		require.NoError(t, handshake(nc, c.r, "alice", ""))
		session := s.session("alice")
		sent, reason := 0, strings.Repeat("x", 512<<10)
		eventually(t, "drops", func() bool { // none as long as Push has yet to begin, or the kernel to be full
			for range 8 {
				s.publish("alice", notification.OrderRejected{Reason: reason})
				sent++
			}
			return session.Dropped() > 0
		})
		code, heard := c.goodbye()
		require.Equal(t, 4000, code)
		require.Less(t, len(heard), sent)
		s.noSessions()
		ended := s.gateway.Stats().Ended
		require.EqualValues(t, 1, ended.Slow)
		require.Zero(t, ended.Failed)
	})
}

// refreshed is a Config whose Refresh believes "USER until TIME", and waits for
// the channel or for the end of its time if the token says so.
func refreshed(release <-chan struct{}) Config {
	return Config{CommandsPerSecond: 1000, Refresh: func(ctx context.Context, id Identity, token string) (Identity, error) {
		switch token {
		case "wait": // however long that is
			<-release
			return id, nil
		case "hang":
			<-ctx.Done()
			return Identity{}, context.Cause(ctx)
		case "panic":
			panic("at the disco")
		case "secret-and-wrong", `secret"and'wrong`:
			return Identity{}, fmt.Errorf("cannot parse %q", token)
		}
		user, until, _ := strings.Cut(token, " until ")
		if until == "" {
			return Identity{UserID: user}, nil
		}
		expires, err := time.Parse(time.RFC3339Nano, until)
		return Identity{UserID: user, Expires: expires}, err
	}}
}

func TestAuthenticate(t *testing.T) {
	in := func(d time.Duration) string { return " until " + time.Now().Add(d).Format(time.RFC3339Nano) }
	say := func(c *client, id int, token string) {
		text, err := json.Marshal(map[string]any{"action": "authenticate", "id": id, "token": token})
		require.NoError(t, err)
		c.say(string(text))
	}
	release := make(chan struct{})
	var log lockedBuffer
	cfg := refreshed(release)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := serve(t, notification.GatewayConfig{}, cfg)
	connect := func(user string) *client {
		c := s.dial(user, true, "")
		f := c.frame()
		require.Equal(t, "welcome", f.Action)
		require.True(t, f.Refresh)
		return c
	}
	answer := func(c *client) frame {
		for {
			if f := c.frame(); f.Action == "ok" || f.Action == "error" || f.Action == "pong" {
				return f
			}
		}
	}
	t.Run("new credentials extend the connection", func(t *testing.T) {
		c := connect("alice" + in(patience))
		say(c, 1, "alice"+in(time.Hour))
		f := answer(c)
		require.Equal(t, "ok", f.Action)
		require.Equal(t, "1", string(f.ID))
		require.Len(t, f.Channels, 5)
		require.NotNil(t, f.ExpiresInMS)
		require.InDelta(t, time.Hour.Milliseconds(), *f.ExpiresInMS, float64(patience.Milliseconds()))
		conn := s.handler.door.All()[0]
		require.Nil(t, conn.sock.cause.Load())
		require.Greater(t, time.Until(time.Unix(0, conn.expires.Load())), 50*time.Minute)
		require.NoError(t, c.ws.CloseNow())
		s.noConnections()
	})
	t.Run("or shorten it, or let it live for ever", func(t *testing.T) {
		c := connect("bob" + in(time.Hour))
		say(c, 1, "bob")
		f := answer(c)
		require.Equal(t, "ok", f.Action)
		require.Nil(t, f.ExpiresInMS)
		// On a busy machine so short a life is over before it is looked at, or
		// before the answer is written.
		code := websocket.StatusCode(-1)
		for life := 300 * time.Millisecond; code < 0; life *= 2 {
			say(c, 2, "bob"+in(life))
			for f := (frame{}); code < 0 && f.Action != "error"; {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				_, text, err := c.ws.Read(ctx)
				cancel()
				if err != nil {
					code = websocket.CloseStatus(err)
					require.NotEqual(t, websocket.StatusCode(-1), code, err)
					break
				}
				if f = parse(t, text); f.Action == "error" {
					require.Equal(t, "unauthorized", f.Code)
				}
			}
		}
		require.Equal(t, 4401, int(code))
	})
	t.Run("another user's, wrong, expired, none and a panic are errors, and the connection lives on", func(t *testing.T) {
		c := connect("carol" + in(time.Hour))
		for token, code := range map[string]string{
			"mallory": "another_user", "secret-and-wrong": "unauthorized", "carol" + in(-time.Second): "unauthorized",
			"*": "unauthorized", "": "no_token", "panic": "unauthorized",
		} {
			say(c, 7, token)
			f := answer(c)
			require.Equal(t, "error", f.Action, token)
			require.Equal(t, code, f.Code, token)
			require.Equal(t, "7", string(f.ID))
		}
		n := s.publish("carol", notification.RiskAlert{})
		require.Equal(t, n.ID, c.batch().Notifications[0].MessageID)
	})
	t.Run("what an error quotes of a token is not logged", func(t *testing.T) {
		c := connect("erin")
		for _, token := range []string{"secret-and-wrong", `secret"and'wrong`} {
			say(c, 1, token)
			require.Equal(t, "unauthorized", answer(c).Code)
		}
		require.Contains(t, log.String(), `cannot parse \"(the token)\"`)
		require.NotContains(t, log.String(), "secret")
	})
	t.Run("one at a time, and commands are answered meanwhile", func(t *testing.T) {
		c := connect("dave")
		say(c, 1, "wait")
		say(c, 2, "dave")
		f := answer(c)
		require.Equal(t, "busy", f.Code)
		require.Equal(t, "2", string(f.ID))
		c.say(`{"action":"ping","id":3}`)
		require.Equal(t, "pong", answer(c).Action)
		release <- struct{}{}
		f = answer(c)
		require.Equal(t, "ok", f.Action)
		require.Equal(t, "1", string(f.ID))
		say(c, 4, "dave")
		require.Equal(t, "ok", answer(c).Action)
	})
	t.Run("a connection that ends does not wait for it", func(t *testing.T) {
		c := connect("eve")
		say(c, 1, "hang")
		c.say(`{"action":"ping"}`)
		require.Equal(t, "pong", answer(c).Action)
		require.NoError(t, c.ws.CloseNow())
		s.noSession("eve")
	})
	t.Run("without Refresh it is an error, and the welcome says so", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		c := s.dial("alice", true, "")
		require.False(t, c.frame().Refresh)
		say(c, 1, "alice")
		require.Equal(t, "no_refresh", answer(c).Code)
	})
}

func TestExpiring(t *testing.T) {
	until := func(d time.Duration) string {
		return "alice until " + time.Now().Add(d).Format(time.RFC3339Nano)
	}
	t.Run("a client is told once, a minute before its credentials expire or at once", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: 10 * time.Millisecond})
		c := s.dial(until(30*time.Second), true, "")
		told := 0
		for beats := 0; beats < 5; {
			switch f := c.frame(); f.Action {
			case "expiring":
				told++
				require.NotNil(t, f.InMS)
				require.Greater(t, *f.InMS, 0)
				require.LessOrEqual(t, *f.InMS, 30_000)
			case "heartbeat":
				beats++
			}
		}
		require.Equal(t, 1, told)
	})
	t.Run("and again when they were extended and that ends too", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, refreshed(nil))
		c := s.dial(until(30*time.Second), true, "")
		for told := 0; told < 2; {
			if f := c.frame(); f.Action == "expiring" {
				if told++; told == 1 {
					c.say(`{"action":"authenticate","token":"` + until(20*time.Second) + `"}`)
				}
			}
		}
	})
	t.Run("whose credentials hold until the year 9999 is told nothing", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: 10 * time.Millisecond})
		c := s.dial("alice until 9999-12-31T23:59:59Z", true, "")
		require.Equal(t, "welcome", c.frame().Action)
		require.Equal(t, "live", c.beyondHeartbeats().Action)
		require.Equal(t, "heartbeat", c.frame().Action)
	})
	t.Run("not before, and not without a subprotocol", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{HeartbeatInterval: 10 * time.Millisecond})
		early := s.dial(until(time.Hour), true, "")
		for range 5 {
			require.NotEqual(t, "expiring", early.frame().Action)
		}
		plain := s.dial(until(30*time.Second), false, "")
		plain.say(`{"action":"ping"}`)
		require.Equal(t, `{"action":"pong"}`, plain.hear())
	})
}

func TestStats(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	require.Equal(t, Stats{Closed: map[web.Code]uint64{}}, withoutLatency(s.handler.Stats()))
	c := s.dial("alice", true, "")
	c.frame()
	c.frame()
	for _, command := range []string{`{"action":"ping"}`, `{"action":"sudo"}`} {
		c.say(command)
		c.frame()
	}
	n := s.publish("alice", notification.RiskAlert{})
	require.Equal(t, n.ID, c.frame().Notifications[0].MessageID)
	plain := s.dial("bob", false, "")
	var last *notification.Notification
	for range 10 {
		last = s.publish("bob", notification.OrderFilled{})
	}
	for plain.frame().MessageID != last.ID {
	}
	t.Run("frames, bytes, commands and writes are counted", func(t *testing.T) {
		eventually(t, "the last write", func() bool { return s.handler.Stats().FramesOut == 5+10 })
		stats := s.handler.Stats()
		require.Equal(t, 2, stats.Connections)
		require.EqualValues(t, 2, stats.FramesIn)
		require.EqualValues(t, 2, stats.Commands)
		require.EqualValues(t, 1, stats.CommandErrors)
		require.Greater(t, stats.BytesIn, uint64(30))
		require.Greater(t, stats.BytesOut, uint64(10*len(last.AppendJSON(nil))))
		require.GreaterOrEqual(t, stats.WriteLatency.Count(), uint64(6))
	})
	t.Run("the frame of a reset too", func(t *testing.T) {
		before := s.handler.Stats().FramesOut
		c := s.dial("carol", true, "cursor=nonsense")
		for _, action := range []string{"welcome", "reset", "live"} {
			require.Equal(t, action, c.frame().Action)
		}
		eventually(t, "three frames", func() bool { return s.handler.Stats().FramesOut == before+3 })
		require.NoError(t, c.ws.CloseNow())
		s.noSession("carol")
	})
	t.Run("refusals by reason", func(t *testing.T) {
		for user, query := range map[string]string{"": "", "carol": "channels=gossip"} {
			_, _, err := s.tryDial(user, false, query, nil)
			require.Error(t, err)
		}
		_, _, err := s.tryDial("alice", false, "", map[string][]string{"Origin": {"https://foe.example"}})
		require.Error(t, err)
		_, _, err = s.tryDial("alice", false, "cursor=nonsense", nil)
		require.Error(t, err)
		require.Equal(t, web.Refusals{BadRequest: 1, Origin: 1, Credentials: 1, CursorGone: 1}, s.handler.Stats().Refused)
	})
	t.Run("and who was accepted is connected or closed", func(t *testing.T) {
		require.NoError(t, c.ws.Close(4321, "mine"))
		require.NoError(t, plain.ws.CloseNow())
		s.noConnections()
		stats := s.handler.Stats()
		require.EqualValues(t, 3, stats.Accepted)
		require.Zero(t, stats.Connections)
		require.Equal(t, map[web.Code]uint64{0: 1, web.CodeAbnormal: 2}, stats.Closed)
	})
}

func withoutLatency(s Stats) Stats {
	s.WriteLatency = notification.Histogram{}
	return s
}
