package questions

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

func portPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/from-qaexchange-rs.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// TestPort holds what docs/from-qaexchange-rs.md says of differences to the library.
func TestPort(t *testing.T) {
	page := portPage(t)
	t.Run("a document of the Rust program is read, and written the same", func(t *testing.T) {
		_, doc, _ := strings.Cut(page, "```json\n")
		doc, _, _ = strings.Cut(doc, "\n```")
		var n notification.Notification
		if err := json.Unmarshal([]byte(doc), &n); err != nil {
			t.Fatal(err)
		}
		if got := string(n.AppendJSON(nil)); got != doc {
			t.Errorf("%s\n%s", got, doc)
		}
	})
	t.Run("where the texts differ", func(t *testing.T) {
		for _, c := range []struct{ value, want string }{
			{"\"\\\n", `\"\\\n`}, {"<>&", `\u003c\u003e\u0026`}, {"\xff", "\ufffd"},
		} {
			if got := string(notification.New("alice", notification.SystemNotice{Title: c.value}, "").AppendJSON(nil)); !strings.Contains(got, `"title":"`+c.want+`"`) {
				t.Error(got)
			}
		}
		for want, f := range map[string]float64{"null": math.NaN(), "1e-7": 1e-7, "1e+21": 1e21, "1": 1} {
			if got := string(notification.New("alice", notification.AccountUpdate{Balance: f}, "").AppendJSON(nil)); !strings.Contains(got, `"balance":`+want+`,`) {
				t.Error(got)
			}
		}
	})
	t.Run("the priorities that differ", func(t *testing.T) {
		rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| \\(none\\) \\| P\\d \\| (P\\d)").FindAllStringSubmatch(page, -1)
		if len(rows) != 3 {
			t.Fatal(rows)
		}
		for _, row := range rows {
			if typ, err := notification.ParseType(row[1]); err != nil || typ.DefaultPriority().String() != row[2] {
				t.Error(row, typ.DefaultPriority(), err)
			}
		}
	})
	t.Run("filters, and what is there twice", func(t *testing.T) {
		p := notificationtest.NewPipeline(t, notificationtest.Config{})
		alice := notificationtest.NewRecorder(t)
		cfg := notification.SessionConfig{ID: "s1", UserID: "alice", Sink: alice}
		s, err := p.Gateway.RegisterSession(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, again := p.Gateway.RegisterSession(cfg)
		for err, want := range map[error]error{
			again:                               notification.ErrSessionExists,
			p.Gateway.UnregisterSession("s2"):   notification.ErrUnknownSession,
			p.Broker.RegisterGateway(p.Gateway): notification.ErrReceiverExists,
			p.Broker.Unregister("nobody"):       notification.ErrUnknownReceiver,
			p.Broker.Subscribe("a", "nobody"):   notification.ErrUnknownReceiver,
			p.Broker.Publish(&notification.Notification{ID: "1", UserID: "alice", Priority: 4, Payload: notification.RiskAlert{}}): notification.ErrInvalid,
		} {
			if !errors.Is(err, want) {
				t.Errorf("%v, not %v", err, want)
			}
		}
		for range 2 {
			if err := p.Broker.Subscribe("alice", p.Gateway.ID()); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Broker.Publish(notification.New("alice", notification.RiskAlert{}, "")); err != nil {
			t.Fatal(err)
		}
		alice.Wait(t, 1) // from here on there are moments in which it would not arrive
		if len(s.Subscriptions()) != 5 || !s.IsSubscribed(notification.ChannelRisk) {
			t.Error(s.Subscriptions())
		}
		s.Subscribe(notification.ChannelTrade)
		s.Unsubscribe(notification.ChannelTrade)
		if got := s.Subscriptions(); len(got) != 0 {
			t.Error("the last one gone:", got)
		}
		s.SubscribeAll()
		if len(s.Subscriptions()) != 5 {
			t.Error(s.Subscriptions())
		}
		p.Shutdown(t)
		if got := types(alice.Messages()); !slices.Equal(got, []string{"risk_alert"}) {
			t.Error(got)
		}
	})
}

// TestPlainFrames sends what the page says that clients send, without a subprotocol.
func TestPlainFrames(t *testing.T) {
	const every = `"channels":["trade","account","position","risk","system"]}`
	answers := map[string]string{ // "": none
		"subscribe": "", "unsubscribe": "", "unsubscribe_all": "",
		"get_subscriptions": `{"action":"subscriptions_response",` + every,
		"ping":              `{"action":"pong"}`,
		"authenticate":      `{"action":"error","code":"no_refresh"`,
	}
	d := open(t)
	dial := func() *websocket.Conn {
		ws, _, err := websocket.Dial(t.Context(), d.url+"?ticket="+d.ticket(t, "alice"), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ws.CloseNow() })
		return ws
	}
	say := func(ws *websocket.Conn, frame string) {
		t.Helper()
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `(\\{\"action\":\"(\\w+)\".*?\\})` \\| ").FindAllStringSubmatch(portPage(t), -1)
	if len(rows) != len(answers) {
		t.Fatal(rows)
	}
	for _, row := range rows {
		want, ok := answers[row[2]]
		if !ok {
			t.Errorf("%s is none of them", row[1])
		}
		ws := dial()
		say(ws, row[1])
		if want != "" {
			hear(t, ws, want)
		}
		say(ws, `{"action":"something else"}`) // and the session lives
		hear(t, ws, `"code":"unknown_action"`)
		if row[2] == "unsubscribe" { // from everything too
			say(ws, `{"action":"get_subscriptions"}`)
			hear(t, ws, `"channels":["trade","position","risk","system"]`)
		}
		say(ws, `{"action":"subscribe","channels":["trade","orderbook"]}`)
		hear(t, ws, `"code":"unknown_channel"`)
	}
	ws := dial()
	n := notification.New("alice", notification.TradeExecuted{TradeID: "t1"}, "MatchingEngine")
	if err := d.Broker.Publish(n); err != nil {
		t.Fatal(err)
	}
	hear(t, ws, string(n.AppendJSON(nil)))
}
