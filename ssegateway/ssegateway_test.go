package ssegateway

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

func TestNew(t *testing.T) {
	gateway, err := notification.NewGateway("gateway", notification.GatewayConfig{})
	require.NoError(t, err)
	for _, test := range []struct {
		name     string
		sessions Sessions
		cfg      Config
		field    string
	}{
		{"no Sessions", nil, Config{Authenticate: authenticate}, "Gateway"},
		{"a nil Gateway", (*notification.Gateway)(nil), Config{Authenticate: authenticate}, "Gateway"},
		{"no Authenticate", gateway, Config{}, "Authenticate"},
		{"a pattern that is none", gateway, Config{Authenticate: authenticate, OriginPatterns: []string{"*.example", "["}}, "OriginPatterns[1]"},
		{"a negative HeartbeatInterval", gateway, Config{Authenticate: authenticate, HeartbeatInterval: -1}, "HeartbeatInterval"},
		{"a negative WriteTimeout", gateway, Config{Authenticate: authenticate, WriteTimeout: -1}, "WriteTimeout"},
		{"a negative MaxConnections", gateway, Config{Authenticate: authenticate, MaxConnections: -1}, "MaxConnections"},
	} {
		t.Run(test.name+" is an error that names the field", func(t *testing.T) {
			h, err := New(test.sessions, test.cfg)
			require.Nil(t, h)
			require.ErrorIs(t, err, notification.ErrInvalid)
			require.ErrorContains(t, err, test.field)
		})
	}
	t.Run("the zero values are the documented defaults", func(t *testing.T) {
		h, err := New(gateway, Config{Authenticate: authenticate})
		require.NoError(t, err)
		require.Equal(t, 20*time.Second, h.cfg.HeartbeatInterval)
		require.Equal(t, 10*time.Second, h.cfg.WriteTimeout)
		require.Zero(t, h.cfg.MaxConnections)
		require.Empty(t, h.cfg.OriginPatterns)
	})
	t.Run("the configuration is copied", func(t *testing.T) {
		patterns := []string{"a.example"}
		h, err := New(gateway, Config{Authenticate: authenticate, OriginPatterns: patterns})
		require.NoError(t, err)
		patterns[0] = "b.example"
		require.Equal(t, []string{"a.example"}, h.cfg.OriginPatterns)
	})
}

func TestStream(t *testing.T) {
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: time.Minute})
	c := s.open("user=alice", "")
	t.Run("the answer is a stream that nobody keeps or holds back", func(t *testing.T) {
		require.Equal(t, "no-store", c.resp.Header.Get("Cache-Control"))
		require.Equal(t, "no", c.resp.Header.Get("X-Accel-Buffering"))
		require.Empty(t, c.resp.Header.Get("Content-Encoding"))
	})
	hello := c.want("welcome")
	t.Run("it begins with a welcome that has an id, and live", func(t *testing.T) {
		f := hello.frame(t)
		require.NotEmpty(t, hello.ID)
		require.Equal(t, hello.ID, f.Cursor)
		require.Equal(t, s.session("alice").ID(), f.SessionID)
		require.False(t, f.Resumed)
		require.Equal(t, []string{"trade", "account", "position", "risk", "system"}, f.Channels)
		require.Equal(t, 60_000, f.HeartbeatMS)
		require.Equal(t, "{}", c.want("live").Data)
	})
	var last event
	t.Run("a notification is an event as AppendJSON has it, with an id", func(t *testing.T) {
		n := s.publish("alice", notification.RiskAlert{Message: "two\nlines,\rand \"more\""})
		last = c.want("")
		require.Equal(t, string(n.AppendJSON(nil)), last.Data)
		require.NotEqual(t, hello.ID, last.ID)
	})
	t.Run("what others get does not come", func(t *testing.T) {
		s.publish("bob", notification.RiskAlert{})
		n := s.publish(notification.AllUsers, notification.MarketHalt{})
		last = c.want("")
		require.Equal(t, n.ID, last.frame(t).MessageID)
	})
	c.close()
	s.noSession("alice")
	t.Run("behind Last-Event-ID it has what was missed, then live", func(t *testing.T) {
		missed := s.publish("alice", notification.RiskAlert{})
		s.routed()
		c := s.open("user=alice", last.ID)
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, missed.ID, c.want("").frame(t).MessageID)
		c.want("live")
		c.close()
		s.noSession("alice")
	})
	t.Run("the id of the welcome is good before the first notification", func(t *testing.T) {
		c := s.open("user=carol", "")
		id := c.want("welcome").ID
		c.close()
		s.noSession("carol")
		n := s.publish("carol", notification.RiskAlert{})
		s.routed()
		c = s.open("user=carol", id)
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, n.ID, c.want("").frame(t).MessageID)
	})
	t.Run("?cursor= is as good, and Last-Event-ID counts more", func(t *testing.T) {
		c := s.open("user=dave", "")
		early := c.want("welcome").ID
		c.want("live")
		first := s.publish("dave", notification.RiskAlert{})
		late := c.want("").ID
		c.close()
		s.noSession("dave")
		second := s.publish("dave", notification.RiskAlert{})
		s.routed()
		c = s.open("user=dave&cursor="+early, "")
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, first.ID, c.want("").frame(t).MessageID)
		require.Equal(t, second.ID, c.want("").frame(t).MessageID)
		c.close()
		c = s.open("user=dave&cursor="+early, late)
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, second.ID, c.want("").frame(t).MessageID)
	})
	for name, cursor := range map[string]string{
		"is nonsense": "nonsense", "is another user's": last.ID, "is no text": "\xff\xfe", "is endless": strings.Repeat("A", 4096),
	} {
		t.Run("a cursor that "+name+" gets a welcome, a reset, live, and then what is new", func(t *testing.T) {
			c := s.open("user=eve", cursor)
			welcome := c.want("welcome")
			require.False(t, welcome.frame(t).Resumed)
			require.NotEqual(t, cursor, welcome.ID)
			require.Equal(t, `{"reason":"cursor_gone"}`, c.want("reset").Data)
			require.Equal(t, welcome.ID, c.want("live").ID)
			n := s.publish("eve", notification.RiskAlert{})
			require.Equal(t, n.ID, c.want("").frame(t).MessageID)
			c.close()
			s.noSession("eve")
		})
	}
	t.Run("without a history every cursor is gone, and no event has an id", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		c := s.open("user=alice&cursor=AQAAAAAAAAAAAAAAAAAAAAAAAAAA", "")
		require.Empty(t, c.want("welcome").ID)
		c.want("reset")
		c.want("live")
		s.publish("alice", notification.RiskAlert{})
		require.Empty(t, c.want("").ID)
	})
}

func TestNothingIsMissedAfterOpen(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	for i := range 400 {
		user := fmt.Sprint("user-", i)
		c := s.open("user="+user, "") // returns with the answer's header
		n := s.publish(user, notification.OrderFilled{})
		c.want("welcome")
		for e := c.hear(); ; e = c.hear() {
			if e.Name == "" {
				require.Equal(t, n.ID, e.frame(t).MessageID)
				break
			}
		}
		c.close()
	}
}

func TestLive(t *testing.T) {
	t.Run("live comes once: behind all that was replayed, before all that is new", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1 << 16}, Config{})
		c := s.open("user=alice", "")
		cursor := c.want("welcome").ID
		c.close()
		s.noSession("alice")
		for range 20 {
			missed := map[string]bool{}
			for range 300 {
				missed[s.publish("alice", notification.OrderFilled{}).ID] = true
			}
			s.routed()
			c := s.open("user=alice", cursor)
			require.True(t, c.want("welcome").frame(t).Resumed)
			s.publish("alice", notification.RiskAlert{}) // while it replays, or after it
			lives, old := 0, 0
			for seen := 0; seen < len(missed)+1 || lives == 0; {
				e := c.hear()
				if e.Name == "live" {
					lives++
					require.Equal(t, len(missed), old, "behind what was missed")
					continue
				}
				require.Empty(t, e.Name)
				seen++
				if missed[e.frame(t).MessageID] {
					old++
					require.Zero(t, lives, "what was missed comes before live")
				}
			}
			require.Equal(t, 1, lives)
			n := s.publish("alice", notification.RiskAlert{})
			require.Equal(t, n.ID, c.hear().frame(t).MessageID, "no second one")
			cursor = c.lastID
			c.close()
			s.noSession("alice")
		}
	})
}

// batches is a Gateway whose messages of P1 wait for each other.
func batches(size int) notification.GatewayConfig {
	g := notification.GatewayConfig{HistoryMessages: 1 << 14, BatchSize: size}
	g.MaxDelay[notification.P1] = time.Hour
	return g
}

func TestBatches(t *testing.T) {
	publish := func(s *server, n int) (ids []string) {
		for range n {
			ids = append(ids, s.publish("alice", notification.OrderFilled{}).ID)
		}
		return ids
	}
	t.Run("only the last event of a batch has an id, and who is cut inside gets the batch again", func(t *testing.T) {
		s := serve(t, batches(5), Config{})
		for cut := range 6 {
			const user = "alice"
			c := s.open("user="+user, "")
			hello := c.want("welcome")
			c.want("live")
			ids := publish(s, 5)
			// Or a part of it would be replayed, and the rest wait for company.
			eventually(t, "all of it is with the Gateway", func() bool {
				return s.gateway.Stats().Lanes[notification.P1].Received == s.broker.Stats().Lanes[notification.P1].Published
			})
			for i := range cut {
				e := c.want("")
				require.Equal(t, ids[i], e.frame(t).MessageID)
				require.Equal(t, i == 4, e.ID != hello.ID, "event %d", i)
			}
			lastID := c.lastID
			c.close()
			s.noSession(user)
			c = s.open("user="+user, lastID)
			require.True(t, c.want("welcome").frame(t).Resumed)
			want := ids
			if cut == 5 {
				want = publish(s, 5)
			}
			// What the Broker still had at the reconnect comes behind live, so live may stand anywhere.
			var again []string
			for len(again) < len(want) {
				if e := c.hear(); e.Name != "live" {
					again = append(again, e.frame(t).MessageID)
				}
			}
			require.Equal(t, want, again, "cut behind %d", cut)
			c.close()
			s.noSession(user)
		}
	})
	t.Run("with ?batch=1 a batch is one event with one id", func(t *testing.T) {
		s := serve(t, batches(5), Config{})
		c := s.begin("user=alice&batch=1")
		ids := publish(s, 5)
		e := c.want("")
		f := e.frame(t)
		require.Equal(t, e.ID, f.Cursor)
		var got []string
		for _, n := range f.Notifications {
			got = append(got, n.MessageID)
		}
		require.Equal(t, ids, got)
		require.NotContains(t, e.Data, "dropped")
		publish(s, 5)
		require.NotEqual(t, e.ID, c.want("").ID)
	})
	t.Run("events, bytes and writes are counted", func(t *testing.T) {
		s := serve(t, batches(5), Config{HeartbeatInterval: time.Hour})
		c := s.begin("user=alice")
		publish(s, 5)
		for range 5 {
			c.want("")
		}
		// A write is counted when it has returned, which the client need not wait for.
		eventually(t, "five events more than welcome and live, in a write more", func() bool {
			stats := s.handler.Stats()
			return stats.FramesOut == 7 && stats.WriteLatency.Count() == 3
		})
		stats := s.handler.Stats()
		require.Equal(t, 1, stats.Connections)
		require.EqualValues(t, 1, stats.Accepted)
		require.Greater(t, stats.BytesOut, uint64(5*100))
		require.Zero(t, stats.FramesIn)
		c.close()
		eventually(t, "who was accepted is closed", func() bool {
			stats := s.handler.Stats()
			return stats.Connections == 0 && stats.Closed[web.CodeAbnormal] == 1
		})
	})
	t.Run("whatever else batch is gets 400", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{}, Config{})
		for _, v := range []string{"2", "true", "1&batch=2x%zz"} {
			require.Equal(t, 400, s.status("user=alice&batch="+v, nil), v)
		}
		s.begin("user=alice&batch=0")
	})
	// Of messages that nobody has encoded before, so the events are all that there is of
	// their text.
	t.Run("events are composed without allocation", func(t *testing.T) {
		const runs = 20
		buf := make([]byte, 0, 4096)
		for _, whole := range []bool{false, true} {
			var fresh []*notification.Message
			for range runs + 1 { // one more to begin with
				fresh = append(fresh, notification.NewMessage(notification.New("a", notification.OrderFilled{}, "")))
			}
			i := 0
			require.Zero(t, testing.AllocsPerRun(runs, func() { _, _ = appendBatch(buf, fresh[i:i+1], "cursor", 3, whole); i++ }))
		}
	})
}

func TestChannels(t *testing.T) {
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{})
	publish := func(user string) (risk string) {
		s.publish(user, notification.OrderFilled{})
		return s.publish(user, notification.MarginCall{}).ID
	}
	// until returns the notifications before one of the system channel.
	until := func(c *client, user string) (ids []string) {
		last := s.publish(user, notification.TradingSessionEnd{}).ID
		for {
			e := c.hear()
			if e.Name != "" {
				continue
			}
			if e.frame(t).MessageID == last {
				return ids
			}
			ids = append(ids, e.frame(t).MessageID)
		}
	}
	t.Run("those that are named are in the welcome, and filter from the first event", func(t *testing.T) {
		c := s.open("user=alice&channels=risk,system", "")
		require.Equal(t, []string{"risk", "system"}, c.want("welcome").frame(t).Channels)
		risk := publish("alice")
		require.Equal(t, []string{risk}, until(c, "alice"))
	})
	t.Run("a replay is filtered too", func(t *testing.T) {
		c := s.open("user=bob&channels=risk,system", "")
		cursor := c.want("welcome").ID
		c.close()
		s.noSession("bob")
		risk := publish("bob")
		s.routed()
		c = s.open("user=bob&channels=risk,system", cursor)
		require.True(t, c.want("welcome").frame(t).Resumed)
		require.Equal(t, []string{risk}, until(c, "bob"))
	})
	t.Run("an empty list is none", func(t *testing.T) {
		require.Equal(t, []string{}, s.open("user=carol&channels=", "").want("welcome").frame(t).Channels)
	})
	t.Run("an unknown one is 400", func(t *testing.T) {
		for _, list := range []string{"gossip", "risk,gossip", "risk,", ",", "Risk", "risk+trade", "%zz"} {
			require.Equal(t, 400, s.status("user=eve&channels="+list, nil), list)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	t.Run("a client that is sent nothing hears of the server all the same, again and again", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: 20 * time.Millisecond})
		c := s.open("user=alice", "")
		hello := c.want("welcome")
		require.Equal(t, 20, hello.frame(t).HeartbeatMS)
		require.Equal(t, "live", c.hear().Name)
		for range 5 {
			require.Equal(t, event{Name: "heartbeat", Data: "{}", ID: hello.ID}, c.want("heartbeat"))
		}
	})
	t.Run("its id passes what was meant for others, so that a quiet client's cursor stays young", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: 10 * time.Millisecond})
		c := s.open("user=alice&channels=", "")
		hello := c.want("welcome")
		s.publish("alice", notification.RiskAlert{}) // which the filter keeps away
		eventually(t, "a younger cursor", func() bool {
			e, ok := c.next()
			require.True(t, ok)
			return e.Name == "heartbeat" && e.ID != hello.ID
		})
	})
	t.Run("the cursors on the wire never go back, and each is good", func(t *testing.T) {
		// Heartbeats as often as can be, between batches.
		const total = 2000 // and there is room for them, so that nobody is slow
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1 << 16, OutboxMessages: total}, Config{HeartbeatInterval: 100 * time.Microsecond})
		c := s.open("user=alice&batch=1", "")
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
		last, err := notification.ParseCursor(c.want("welcome").ID)
		require.NoError(t, err)
		var places []place
		heartbeats, seen := 0, 0
		for seen < total {
			e, ok := c.next()
			require.True(t, ok)
			cursor, err := notification.ParseCursor(e.ID)
			require.NoError(t, err)
			require.True(t, cursor.Covers(last), "%s after %s", cursor, last)
			last = cursor
			seen += len(e.frame(t).Notifications)
			if e.Name == "heartbeat" {
				if heartbeats++; heartbeats%10 == 1 {
					places = append(places, place{e.ID, seen})
				}
			}
		}
		sending.Wait()
		require.NotEmpty(t, places)
		c.close()
		s.noSession("alice")
		for _, p := range places[:min(len(places), 50)] {
			c := s.open("user=alice&batch=1", p.cursor)
			require.True(t, c.want("welcome").frame(t).Resumed)
			if e := c.hear(); p.seen == total {
				require.Equal(t, "live", e.Name)
			} else {
				require.Equal(t, ids[p.seen], e.frame(t).Notifications[0].MessageID)
			}
			c.close()
		}
	})
	t.Run("not even between the write of a batch and the moment when its session has taken note of it", func(t *testing.T) {
		s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: time.Hour})
		c := s.begin("user=alice")
		s.publish("alice", notification.RiskAlert{})
		raw, err := base64.RawURLEncoding.DecodeString(c.want("").ID)
		require.NoError(t, err)
		raw[17]++ // one more in P0
		ahead, err := notification.ParseCursor(base64.RawURLEncoding.EncodeToString(raw))
		require.NoError(t, err)
		stream := s.handler.door.All()[0]
		stream.mu.Lock()
		stream.wire, stream.sent = ahead, time.Now().Add(-2*time.Hour)
		stream.mu.Unlock()
		stream.beat()
		require.Equal(t, ahead.String(), c.want("heartbeat").ID)
	})
}

// large fills the kernel's buffers soon.
var large = notification.OrderRejected{Reason: strings.Repeat("x", 512<<10)}

func TestDropped(t *testing.T) {
	for _, query := range []string{"", "&batch=1"} {
		t.Run("every notification is delivered or told as dropped"+strings.ReplaceAll(query, "&", ", with ?"), func(t *testing.T) {
			s := serveOn(t, smallBuffers{listen(t)}, notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8, SlowPolicy: notification.SlowDropOldest},
				Config{WriteTimeout: patience}, nil)
			nc := s.rawOpen("user=alice" + query)
			session := s.session("alice")
			sent, reason := 0, strings.Repeat("x", 128<<10)
			eventually(t, "drops", func() bool { // none as long as Push has yet to begin, or the kernel to be full
				for range 8 {
					s.publish("alice", notification.OrderRejected{Reason: reason})
					sent++
				}
				return session.Dropped() >= 10
			})
			last := s.publish("alice", notification.OrderRejected{Reason: "last"})
			sent++
			c := s.readRaw(nc)
			c.want("welcome")
			delivered, dropped := 0, 0
			for done := false; !done; {
				e := c.hear()
				f := e.frame(t)
				require.Equal(t, e.Name == "dropped" || query != "" && e.Name == "" && f.Dropped > 0, f.Dropped > 0)
				dropped += f.Dropped
				if f.MessageID != "" {
					delivered++
				}
				delivered += len(f.Notifications)
				done = f.MessageID == last.ID
				for _, n := range f.Notifications {
					done = done || n.MessageID == last.ID
				}
			}
			require.Equal(t, sent, delivered+dropped)
			require.GreaterOrEqual(t, dropped, 10)
		})
	}
}

func TestTheServersDeadlines(t *testing.T) {
	const deadline = 3 * time.Second // has room for a request on a busy machine
	t.Run("those of reading, writing and idleness do not cut a stream", func(t *testing.T) {
		s := serveOn(t, listen(t), notification.GatewayConfig{}, Config{HeartbeatInterval: 50 * time.Millisecond}, func(h *http.Server) {
			h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout, h.IdleTimeout = deadline, deadline, deadline, deadline
		})
		c := s.open("user=alice", "")
		for over := time.Now().Add(2 * deadline); time.Now().Before(over); {
			_, ok := c.next()
			require.True(t, ok)
		}
		n := s.publish("alice", notification.RiskAlert{})
		e := c.hear()
		for e.Name == "live" { // of which the loop may have seen nothing
			e = c.hear()
		}
		require.Equal(t, n.ID, e.frame(t).MessageID)
	})
	t.Run("not even one without heartbeats", func(t *testing.T) {
		s := serveOn(t, listen(t), notification.GatewayConfig{}, Config{HeartbeatInterval: time.Hour}, func(h *http.Server) {
			h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout, h.IdleTimeout = deadline, deadline, deadline, deadline
		})
		c := s.begin("user=alice")
		<-time.After(2 * deadline) // nothing is to happen
		n := s.publish("alice", notification.RiskAlert{})
		require.Equal(t, n.ID, c.want("").frame(t).MessageID)
	})
}

func TestTouch(t *testing.T) {
	g := notification.GatewayConfig{SessionTimeout: 6 * time.Second, SweepInterval: 100 * time.Millisecond}
	t.Run("a stream whose heartbeats are taken is heard of, a frozen one is not", func(t *testing.T) {
		s := serveOn(t, smallBuffers{listen(t)}, g, Config{HeartbeatInterval: 20 * time.Millisecond, WriteTimeout: time.Hour}, nil)
		lively := s.open("user=lively", "")
		var reading sync.WaitGroup
		reading.Go(func() {
			for ok := true; ok; {
				_, ok = lively.next()
			}
		})
		session := s.session("lively")
		frozen := s.rawOpen("user=frozen")
		dead := s.session("frozen")
		for range 64 {
			s.publish("frozen", large)
		}
		<-dead.Done()
		require.ErrorIs(t, dead.Err(), notification.ErrSessionExpired)
		eventually(t, "its place is free", func() bool { return taken(s) == 1 })
		require.NoError(t, session.Err(), "SessionTimeout has passed for it too, since it came")
		_ = frozen.Close()
		lively.close()
		reading.Wait()
	})
}
