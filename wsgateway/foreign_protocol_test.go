package wsgateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
	"github.com/stretchr/testify/require"
)

// The protocol as clients see it that know nothing of this package: what of it
// their libraries, and a browser above all, let through.

func TestForeignClients(t *testing.T) {
	eachForeigner(t, func(t *testing.T, f *foreigner, status bool) {
		for _, scenario := range []struct {
			name string
			run  func(*testing.T, *foreigner)
		}{
			{"a welcome comes first, live once, then what is published", foreignWelcome},
			{"what is published right after open arrives, with batches", func(t *testing.T, f *foreigner) { foreignOpen(t, f, true) }},
			{"what is published right after open arrives, with one notification per frame", func(t *testing.T, f *foreigner) { foreignOpen(t, f, false) }},
			{"without a subprotocol nothing comes but notifications and answers", foreignPlain},
			{"a client goes on behind its cursor, without a hole or a repeat", foreignResume},
			{"a cursor that is none, or is gone, gets a reset behind the welcome", foreignReset},
			{"the query's channels filter from the first frame, a replay too", foreignChannels},
			{"a command with an id is answered, with that id", foreignCommands},
			{"a quiet client hears heartbeats, and their cursors can be resumed from", foreignHeartbeat},
			{"authenticate renews the credentials of this user and of no other", foreignAuthenticate},
			{"without Refresh authenticate is an error", foreignNoRefresh},
			{"a client is told before its credentials expire, and closed with 4401 when they do", foreignExpiry},
			{"a ticket lets in once", foreignTicket},
			{"a client that was frozen for too long goes on where it was", foreignFrozen},
			{"a slow client of batches gets everything with its cursor", foreignSlow},
			{"a slow client without subprotocol is closed with 4000 rather than have a hole", foreignHole},
		} {
			t.Run(scenario.name, func(t *testing.T) { scenario.run(t, f) })
		}
		t.Run("a refusal can be read", func(t *testing.T) { foreignRefusals(t, f, status) })
		if f.name == chromium { // programs have no origin
			t.Run("a page of another origin is refused before it is asked who it is", func(t *testing.T) {
				s := serve(t, notification.GatewayConfig{}, Config{Authenticate: func(*http.Request) (Identity, error) {
					t.Error("it is asked")
					return Identity{}, nil
				}})
				for _, batches := range []bool{true, false} {
					code, _ := f.connect(t, s.url(""), "alice", batches).goodbye()
					require.Equal(t, 1006, code)
				}
			})
		}
		for _, end := range foreignEnds {
			t.Run(fmt.Sprint(end.code, " ", end.name), func(t *testing.T) {
				s := serveForeigners(t, end.gateway, Config{})
				c := f.connect(t, s.url(""), "alice", true)
				c.begin()
				end.cause(t, s, f)
				code, _ := c.goodbye()
				require.Equal(t, end.code, code)
			})
		}
	})
}

var foreignEnds = []struct {
	code    int
	name    string
	gateway notification.GatewayConfig
	cause   func(*testing.T, *server, *foreigner)
}{
	{1000, "when the program closes the session", notification.GatewayConfig{}, func(t *testing.T, s *server, _ *foreigner) {
		require.NoError(t, s.session("alice").Close())
	}},
	{1001, "when the Handler shuts down", notification.GatewayConfig{}, func(t *testing.T, s *server, _ *foreigner) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		require.NoError(t, s.handler.Shutdown(ctx))
	}},
	{1001, "when the Gateway shuts down", notification.GatewayConfig{}, func(t *testing.T, s *server, _ *foreigner) {
		require.NoError(t, s.gateway.Shutdown(t.Context()))
	}},
	{4100, "when there may be a gap", notification.GatewayConfig{}, func(_ *testing.T, s *server, _ *foreigner) {
		s.gateway.Gap()
	}},
	{4409, "when a newer session of the user takes its place", notification.GatewayConfig{MaxSessionsPerUser: 1}, func(t *testing.T, s *server, f *foreigner) {
		f.connect(t, s.url(""), "alice", true).begin()
	}},
}

func foreignWelcome(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{HeartbeatInterval: 12345 * time.Millisecond})
	c := f.connect(t, s.url(""), "alice", true)
	require.Equal(t, event{ID: c.id, Event: "open", Text: batchProtocol}, c.event())
	welcome := c.hear()
	session := s.session("alice")
	require.Equal(t, `{"action":"welcome","session_id":"`+session.ID()+`","cursor":"`+session.Cursor().String()+
		`","resumed":false,"channels":["trade","account","position","risk","system"],"heartbeat_ms":12345,"refresh":false}`, welcome.text)
	require.Equal(t, `{"action":"live"}`, c.hear().text)
	for range 3 {
		n := s.publish("alice", notification.TradeExecuted{TradeID: "ü\xff\"", Price: 1.5})
		batch := c.hear()
		require.NotEmpty(t, batch.Cursor)
		require.Equal(t, `{"cursor":"`+batch.Cursor+`","notifications":[`+string(n.AppendJSON(nil))+`]}`, batch.text)
	}
	require.Equal(t, `{"action":"pong","id":1}`, c.answer(`{"action":"ping","id":1}`).text, "nothing else was sent")
}

func foreignOpen(t *testing.T, f *foreigner, batches bool) {
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	s := serveForeigners(t, notification.GatewayConfig{}, Config{})
	for i := range rounds {
		user := fmt.Sprint("user-", i)
		c := f.connect(t, s.url(""), user, batches).opened()
		n := s.publish(user, notification.MarginCall{})
		for batches && c.hear().Action != "live" {
		}
		m := c.hear()
		require.Contains(t, m.text, `"message_id":"`+n.ID+`"`, "round %d", i)
		c.close()
	}
}

func foreignPlain(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{HeartbeatInterval: time.Millisecond})
	c := f.connect(t, s.url(""), "alice", false)
	require.Equal(t, event{ID: c.id, Event: "open"}, c.event())
	for range 3 {
		n := s.publish("alice", notification.TradeExecuted{TradeID: "ü\xff\"", Price: 1.5})
		require.Equal(t, string(n.AppendJSON(nil)), c.frame().text)
	}
	c.say(`{"action":"ping"}`)
	require.Equal(t, `{"action":"pong"}`, c.frame().text)
	c.say(`{"action":"subscribe","channels":["risk"],"id":"x"}`)
	require.Equal(t, `{"action":"ok","id":"x","channels":["risk"]}`, c.frame().text)
}

func foreignResume(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{BatchSize: 7, OutboxMessages: 1 << 12}, Config{})
	const each = 300
	publish := func() (ids []string) {
		for range each {
			ids = append(ids, s.publish("alice", notification.OrderFilled{}).ID)
		}
		return ids
	}
	c := f.connect(t, s.url(""), "alice", true)
	welcome := c.begin()
	all := publish()
	seen := c.until(all[each-1]) // a batch may not end with it, so that more was seen
	require.Equal(t, all, seen.ids)
	require.Empty(t, seen.live)
	c.close()
	s.noSessions()

	away := publish()
	all = append(all, away...)
	s.routed()
	c = f.connect(t, s.url("cursor="+seen.cursor), "alice", true).opened()
	all = append(all, publish()...) // while the replay goes on, or after it
	again := c.hear()
	require.Equal(t, "welcome", again.Action)
	require.True(t, *again.Resumed)
	require.Equal(t, seen.cursor, again.Cursor)
	require.NotEqual(t, welcome.SessionID, again.SessionID)
	rest := c.until(all[len(all)-1])
	require.Equal(t, all, append(seen.ids, rest.ids...))
	if len(rest.live) == 0 { // the replay went on for as long as there was something new
		require.Equal(t, `{"action":"live"}`, c.hear().text)
	} else {
		require.Len(t, rest.live, 1)
		require.GreaterOrEqual(t, rest.live[0], len(away), "live came before what was missed")
	}
	n := s.publish("alice", notification.OrderFilled{})
	rest = c.until(n.ID)
	require.Equal(t, delivery{[]string{n.ID}, rest.cursor, nil}, rest)

	// With nothing to replay it is live at once.
	c.close()
	s.noSessions()
	c = f.connect(t, s.url("cursor="+rest.cursor), "alice", true)
	require.True(t, *c.begin().Resumed)
	n = s.publish("alice", notification.OrderFilled{})
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
}

func foreignReset(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{})
	c := f.connect(t, s.url(""), "alice", true)
	gone := c.begin().Cursor
	s.gateway.Gap()
	c.goodbye()
	others := f.connect(t, s.url(""), "mallory", true).begin().Cursor
	for _, cursor := range []string{gone, others, "nonsense", "%00"} {
		c := f.connect(t, s.url("cursor="+cursor), "alice", true).opened()
		welcome := c.hear()
		require.Equal(t, "welcome", welcome.Action)
		require.False(t, *welcome.Resumed)
		require.NotEqual(t, cursor, welcome.Cursor)
		require.Equal(t, `{"action":"reset","reason":"cursor_gone"}`, c.hear().text)
		require.Equal(t, `{"action":"live"}`, c.hear().text)
		n := s.publish("alice", notification.OrderFilled{})
		require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
		c.close()
	}
}

func foreignChannels(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{})
	// one publishes one of each channel, and returns the IDs of trade and risk.
	one := func() (trade, risk string) {
		trade = s.publish("alice", notification.OrderFilled{}).ID
		s.publish("alice", notification.AccountUpdate{})
		s.publish("alice", notification.PositionUpdate{})
		risk = s.publish("alice", notification.RiskAlert{}).ID
		s.publish("alice", notification.SystemNotice{})
		return trade, risk
	}
	ids := func(c *foreignSocket) (ids []string) {
		for len(ids) < 2 {
			m := c.hear()
			if m.MessageID != "" {
				ids = append(ids, m.MessageID)
			}
			for _, n := range m.Notifications {
				ids = append(ids, n.MessageID)
			}
		}
		slices.Sort(ids)
		return ids
	}
	sorted := func(ids ...string) []string { slices.Sort(ids); return ids }

	c := f.connect(t, s.url("channels=trade,risk"), "alice", true)
	welcome := c.begin()
	require.Equal(t, []string{"trade", "risk"}, welcome.Channels)
	plain := f.connect(t, s.url("channels=trade,risk"), "alice", false).opened()
	trade, risk := one()
	require.Equal(t, sorted(trade, risk), ids(c))
	require.Equal(t, sorted(trade, risk), ids(plain))
	for _, c := range []*foreignSocket{c, plain} {
		require.Equal(t, "pong", c.answer(`{"action":"ping"}`).Action, "no other channel came")
		c.close()
	}

	trade2, _ := one()
	s.routed()
	c = f.connect(t, s.url("channels=trade&cursor="+welcome.Cursor), "alice", true).opened()
	again := c.hear()
	require.True(t, *again.Resumed)
	require.Equal(t, []string{"trade"}, again.Channels)
	require.Equal(t, []string{trade, trade2}, c.until(trade2).ids)
	require.Equal(t, "live", c.hear().Action)
	c.close()

	c = f.connect(t, s.url("channels="), "alice", true)
	require.Contains(t, c.begin().text, `"channels":[]`)
	one()
	s.routed() // a new filter holds for what is still to come
	require.Equal(t, `{"action":"ok","id":1,"channels":["risk"]}`, c.answer(`{"action":"subscribe","channels":["risk"],"id":1}`).text)
	_, risk = one()
	require.Equal(t, []string{risk}, c.until(risk).ids)
}

func foreignCommands(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{CommandsPerSecond: 1 << 20})
	long := `"` + strings.Repeat("x", 62) + `"` // 64 bytes
	c := f.connect(t, s.url(""), "alice", true)
	c.begin()
	for _, test := range []struct{ say, hear string }{
		{`{"action":"ping","id":"a"}`, `{"action":"pong","id":"a"}`},
		{`{"action":"ping","id":7}`, `{"action":"pong","id":7}`},
		{`{"action":"ping","id":` + long + `}`, `{"action":"pong","id":` + long + `}`},
		{`{"action":"ping"}`, `{"action":"pong"}`},
		{`{"action":"subscribe","channels":["risk","trade"],"id":1.50}`, `{"action":"ok","id":1.50,"channels":["trade","risk"]}`},
		{`{"action":"unsubscribe","channels":["trade"],"id":{"n":[1,"ü"]}}`, `{"action":"ok","id":{"n":[1,"ü"]},"channels":["risk"]}`},
		{`{"action":"get_subscriptions","id":2}`, `{"action":"ok","id":2,"channels":["risk"]}`},
		{`{"action":"get_subscriptions"}`, `{"action":"subscriptions_response","channels":["risk"]}`},
		{`{"action":"unsubscribe","channels":["risk"],"id":3}`, `{"action":"ok","id":3,"channels":[]}`},
		{`{"action":"unsubscribe_all","id":4}`, `{"action":"ok","id":4,"channels":["trade","account","position","risk","system"]}`},
	} {
		require.Equal(t, test.hear, c.answer(test.say).text)
	}
	for _, test := range []struct{ say, id, code string }{
		{`{"action":"sudo","id":"a"}`, `"a"`, "unknown_action"},
		{`{"action":"subscribe","channels":["gossip"],"id":{"a":1}}`, `{"a":1}`, "unknown_channel"},
		{`{"action":"subscribe","id":5}`, `5`, "no_channels"},
		{`{"action":"sudo"}`, "", "unknown_action"},
		{`nonsense`, "", "bad_json"},
	} {
		m := c.answer(test.say)
		require.Equal(t, "error", m.Action, m.text)
		require.Equal(t, test.id, string(m.ID), m.text)
		require.Equal(t, test.code, m.Code, m.text)
	}
	m := c.answer(`{"action":"ping","id":` + long[:63] + `x"}`) // 65 bytes
	require.Equal(t, "error", m.Action, m.text)
	require.Empty(t, m.ID, m.text)

	// The filter holds for what is published after the answer.
	c.answer(`{"action":"subscribe","channels":["risk"],"id":6}`)
	s.publish("alice", notification.OrderFilled{})
	n := s.publish("alice", notification.RiskAlert{})
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
}

func foreignHeartbeat(t *testing.T, f *foreigner) {
	// A history so short that a cursor is soon gone.
	s := serveForeigners(t, notification.GatewayConfig{BatchSize: 1, OutboxMessages: 2, HistoryMessages: 2}, Config{HeartbeatInterval: 20 * time.Millisecond})
	c := f.connect(t, s.url("channels=risk"), "alice", true)
	welcome := c.begin()
	require.EqualValues(t, 20, welcome.Heartbeat)
	for range 10 { // which the filter hides
		s.publish("alice", notification.OrderFilled{})
	}
	session := s.session("alice")
	s.routed()
	cursor := session.Cursor().String()
	require.NotEqual(t, welcome.Cursor, cursor)
	for m := welcome; m.Cursor != cursor; {
		m = c.frame()
		require.Equal(t, `{"action":"heartbeat","cursor":"`+m.Cursor+`"}`, m.text)
	}
	c.close()
	s.noSessions()
	c = f.connect(t, s.url("channels=risk&cursor="+cursor), "alice", true)
	require.True(t, *c.begin().Resumed, "the heartbeat kept the cursor young")
	n := s.publish("alice", notification.RiskAlert{})
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
}

// refresh believes whom foreignIdentity does, if it is still the same user.
func refresh(_ context.Context, _ Identity, token string) (Identity, error) { return believe(token) }

func foreignAuthenticate(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{Refresh: refresh})
	var (
		c       *foreignSocket
		expires time.Time
		heard   []message // up to the answer
		actions []string  // of heard
	)
	// On a busy machine so short a life is over before the client says anything.
	for life := 3 * time.Second; !slices.Contains(actions, "ok"); life *= 2 {
		c = f.connect(t, s.url(""), "alice for "+life.String(), true).opened()
		expires = time.Now().Add(life) // or a little before
		c.say(`{"action":"authenticate","token":"alice for 1h","id":1}`)
		heard, actions = nil, nil
		for !slices.Contains(actions, "ok") {
			e := c.event()
			if e.Event == "close" {
				require.Equal(t, 4401, e.Code)
				break
			}
			heard = append(heard, c.parse(e))
			actions = append(actions, heard[len(heard)-1].Action)
		}
	}
	require.Equal(t, "welcome", actions[0])
	require.True(t, *heard[0].Refresh)
	require.Contains(t, actions, "expiring", "it is less than a minute, so that is said at once")
	if !slices.Contains(actions, "live") {
		require.Equal(t, "live", c.hear().Action)
	}
	m := heard[len(heard)-1]
	require.Equal(t, "1", string(m.ID))
	require.InDelta(t, time.Hour.Milliseconds(), m.ExpiresIn, float64(patience.Milliseconds()))
	require.LessOrEqual(t, m.ExpiresIn, time.Hour.Milliseconds())
	for _, token := range []string{"mallory for 1h", "nobody", "alice for ever"} {
		m := c.answer(`{"action":"authenticate","token":"` + token + `","id":"` + token + `"}`)
		require.Equal(t, "error", m.Action, m.text)
		require.Equal(t, `"`+token+`"`, string(m.ID))
		require.NotEmpty(t, m.Code)
	}
	<-time.After(time.Until(expires)) // when the old ones would have ended it
	require.Equal(t, "pong", c.answer(`{"action":"ping"}`).Action)
	n := s.publish("alice", notification.RiskAlert{})
	s.publish("mallory", notification.RiskAlert{})
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)

	// The new ones end it too.
	c.say(`{"action":"authenticate","token":"alice for 1s","id":2}`) // whose answer it may overtake
	code, _ := c.goodbye()
	require.Equal(t, 4401, code)
}

func foreignNoRefresh(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{})
	c := f.connect(t, s.url(""), "alice", true)
	require.False(t, *c.begin().Refresh)
	m := c.answer(`{"action":"authenticate","token":"alice","id":1}`)
	require.Equal(t, "error", m.Action, m.text)
	require.Equal(t, "1", string(m.ID))
	require.Equal(t, "pong", c.answer(`{"action":"ping"}`).Action)
}

func foreignExpiry(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{})
	c := f.connect(t, s.url(""), "alice for 5s", true).opened()
	var actions []string
	for range 3 {
		m := c.hear()
		actions = append(actions, m.Action)
		if m.Action == "expiring" {
			require.Positive(t, m.In)
			require.LessOrEqual(t, m.In, int64(5000))
		}
	}
	require.Equal(t, "welcome", actions[0])
	require.ElementsMatch(t, []string{"welcome", "live", "expiring"}, actions)
	code, _ := c.goodbye()
	require.Equal(t, 4401, code)

	// Without a subprotocol only the end is told.
	c = f.connect(t, s.url(""), "alice for 3s", false).opened()
	e := c.event()
	require.Equal(t, "close", e.Event, e.Text)
	require.Equal(t, 4401, e.Code)
}

func foreignTicket(t *testing.T, f *foreigner) {
	tickets, err := web.NewTickets(web.TicketConfig{})
	require.NoError(t, err)
	s := serveForeigners(t, notification.GatewayConfig{}, Config{Authenticate: func(r *http.Request) (Identity, error) {
		return tickets.Redeem(r.Context(), web.TicketOf(r))
	}})
	ticket, err := tickets.Issue(t.Context(), Identity{UserID: "alice"})
	require.NoError(t, err)
	c := f.connect(t, s.url("ticket="+ticket), "", true)
	c.begin()
	n := s.publish("alice", notification.RiskAlert{})
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
	code, _ := f.connect(t, s.url("ticket="+ticket), "", true).goodbye()
	require.Equal(t, 4401, code)
}

func foreignFrozen(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{PingInterval: 100 * time.Millisecond, PongTimeout: 6 * time.Second})
	c := f.connect(t, s.url(""), "alice", true)
	cursor := c.begin().Cursor
	f.freeze(t)
	s.noSessions()
	n := s.publish("alice", notification.RiskAlert{})
	f.thaw(t)
	code, _ := c.goodbye()
	require.Contains(t, []int{4001, 1006}, code) // it may have been waited for in vain to answer the close
	c = f.connect(t, s.url("cursor="+cursor), "alice", true).opened()
	require.True(t, *c.hear().Resumed)
	require.Equal(t, []string{n.ID}, c.until(n.ID).ids)
}

// flood publishes until it is enough, and more than the kernel holds for a client
// that does not read.
func flood(t *testing.T, s *server, enough func() bool) (ids []string) {
	eventually(t, "the client is slow", func() bool {
		ids = append(ids, s.publish("alice", notification.OrderRejected{Reason: strings.Repeat("x", 256<<10)}).ID)
		return enough()
	})
	return ids
}

func foreignSlow(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8, HistoryMessages: 1 << 12, SlowAfter: 10 * time.Millisecond}, Config{PingInterval: time.Hour})
	c := f.connect(t, s.url(""), "alice", true)
	cursor := c.begin().Cursor
	f.freeze(t)
	ids := flood(t, s, func() bool { return s.gateway.Stats().Ended.Slow == 1 })
	f.thaw(t)
	var got []string
	for {
		e := c.event()
		if e.Event == "close" {
			// Who does not read on at once is cut in the middle of a frame.
			require.Contains(t, []int{4000, 1006}, e.Code)
			break
		}
		m := c.parse(e)
		for _, n := range m.Notifications {
			got = append(got, n.MessageID)
		}
		if m.Action == "" {
			cursor = m.Cursor
		}
	}
	c = f.connect(t, s.url("cursor="+cursor), "alice", true).opened()
	require.True(t, *c.hear().Resumed)
	if len(got) < len(ids) {
		got = append(got, c.until(ids[len(ids)-1]).ids...)
	}
	require.Equal(t, ids, got)
}

func foreignHole(t *testing.T, f *foreigner) {
	s := serveForeigners(t, notification.GatewayConfig{BatchSize: 4, OutboxMessages: 8, HistoryMessages: 8, SlowPolicy: notification.SlowDropOldest}, Config{WriteTimeout: patience, PingInterval: time.Hour})
	c := f.connect(t, s.url(""), "alice", false).opened()
	session := s.session("alice")
	f.freeze(t)
	ids := flood(t, s, func() bool { return session.Dropped() > 0 })
	f.thaw(t)
	for {
		e := c.event()
		if e.Event == "close" {
			require.Equal(t, 4000, e.Code)
			break
		}
		m := c.parse(e)
		require.Equal(t, ids[0], m.MessageID, "what came has no hole")
		ids = ids[1:]
	}
	require.NotEmpty(t, ids)
	eventually(t, "it counts as slow", func() bool { return s.gateway.Stats().Ended.Slow == 1 })
}

func foreignRefusals(t *testing.T, f *foreigner, status bool) {
	s := serveForeigners(t, notification.GatewayConfig{}, Config{MaxConnections: 1})
	// refused tells how a connection ended that was never a session.
	refused := func(url, user string, batches bool) event {
		t.Helper()
		c := f.connect(t, url, user, batches)
		e := c.event()
		if e.Event == "open" {
			e = c.event()
		}
		require.Equal(t, "close", e.Event, e.Text)
		return e
	}
	// answered is for an HTTP status: a browser makes 1006 of every one.
	answered := func(e event, want string) {
		t.Helper()
		require.Equal(t, 1006, e.Code)
		if status {
			require.Contains(t, e.Text, want)
		}
	}
	for _, user := range []string{"nobody", notification.AllUsers} {
		require.Equal(t, 4401, refused(s.url(""), user, true).Code)
		answered(refused(s.url(""), user, false), "401")
	}
	require.Equal(t, 4400, refused(s.url("channels=trade,gossip"), "alice", true).Code)
	answered(refused(s.url("channels=trade,gossip"), "alice", false), "400")
	require.Equal(t, 4403, refused(s.url(""), "banned", true).Code)
	answered(refused(s.url(""), "banned", false), "403")
	answered(refused(s.url("cursor=nonsense"), "alice", false), "410") // there is no reset to say it
	s.noConnections()

	first := f.connect(t, s.url(""), "alice", true)
	first.begin()
	answered(refused(s.url(""), "bob", true), "503")
	first.close()
	s.noSessions()
}
