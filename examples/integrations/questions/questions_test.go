package questions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

// patience bounds what never comes; no test asserts that something was quick.
const patience = 5 * time.Minute

// types returns what arrived, in its order.
func types(ms []*notification.Message) (all []string) {
	for _, m := range ms {
		all = append(all, m.Notification().Type().String())
	}
	return all
}

// deliver publishes before anything runs, so that all of it waits at once, and
// returns in which order alice gets it.
func deliver(t *testing.T, ns ...*notification.Notification) []*notification.Message {
	t.Helper()
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		t.Fatal(err)
	}
	alice := notificationtest.Connect(t, gateway, "alice")
	for _, n := range ns {
		if err := broker.Publish(n); err != nil {
			t.Fatal(err)
		}
	}
	notificationtest.Start(t, broker, gateway)
	return alice.Wait(t, len(ns))
}

func TestOrder(t *testing.T) {
	accepted, rejected := notification.OrderAccepted{OrderID: "o1"}, notification.OrderRejected{OrderID: "o1"}
	expired, canceled := notification.OrderExpired{OrderID: "o2"}, notification.OrderCanceled{OrderID: "o3"}
	t.Run("by default what is urgent overtakes, and what is not comes last", func(t *testing.T) {
		got := types(deliver(t, notification.New("alice", expired, ""), notification.New("alice", accepted, ""), notification.New("alice", rejected, "")))
		if !slices.Equal(got, []string{"order_rejected", "order_accepted", "order_expired"}) {
			t.Error(got)
		}
	})
	t.Run("in one lane everything comes in the order of publishing", func(t *testing.T) {
		ms := deliver(t, Step("alice", "o2", 1, expired), Step("alice", "o1", 1, accepted), Step("alice", "o3", 1, canceled), Step("alice", "o1", 2, rejected))
		if got := types(ms); !slices.Equal(got, []string{"order_expired", "order_accepted", "order_canceled", "order_rejected"}) {
			t.Error(got)
		}
		if id := ms[3].Notification().ID; id != "order-o1-2" {
			t.Error(id)
		}
	})
	t.Run("the steps of an order share a lane by themselves but for two", func(t *testing.T) {
		for typ := notification.TypeOrderAccepted; typ <= notification.TypeTradeCanceled; typ++ {
			want := notification.P1
			switch typ {
			case notification.TypeOrderRejected:
				want = notification.P0
			case notification.TypeOrderExpired:
				want = notification.P3
			}
			if typ.DefaultPriority() != want {
				t.Error(typ, typ.DefaultPriority())
			}
		}
	})
}

func TestHalt(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	alice := notificationtest.Connect(t, p.Gateway, "alice")
	trader := notificationtest.NewRecorder(t)
	_, err := p.Gateway.RegisterSession(notification.SessionConfig{
		ID: "s1", UserID: "bob", Sink: trader, Channels: []notification.Channel{notification.ChannelTrade, notification.ChannelRisk},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a retry is recognized
		if err := p.Broker.Publish(Halt("cu2501", "limit up", now, time.Time{})); err != nil {
			t.Fatal(err)
		}
	}
	n := notificationtest.Require(t, alice, notification.AllUsers, func(h notification.MarketHalt) bool { return h.InstrumentID == "cu2501" && h.ResumeAt == 0 })
	if n.Priority != notification.P0 || n.Type().DefaultPriority() != notification.P3 {
		t.Error(n.Priority, n.Type().DefaultPriority())
	}
	p.Shutdown(t)
	if got := len(alice.Messages()); got != 1 {
		t.Errorf("alice got %d", got)
	}
	if got := types(trader.Messages()); got != nil {
		t.Errorf("whoever did not ask for system got %s, in whatever lane", got)
	}
	if until := Halt("cu2501", "", now, now.Add(time.Hour)).Payload.(notification.MarketHalt).ResumeAt; until != now.Add(time.Hour).UnixNano() {
		t.Error(until)
	}
}

// A P0 for one waits until a P0 for everybody, which was published before it, was
// offered to all.
func TestHaltHoldsUpP0(t *testing.T) {
	const users = 300
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		t.Fatal(err)
	}
	for i := range users {
		notificationtest.Connect(t, gateway, fmt.Sprint("user-", i))
	}
	offered := make(chan uint64, 1)
	_, err = gateway.RegisterSession(notification.SessionConfig{
		ID: "alice's", UserID: "alice", Channels: []notification.Channel{notification.ChannelRisk},
		Sink: notification.SinkFunc(func(context.Context, []*notification.Message) error {
			offered <- gateway.Stats().Lanes[notification.P0].Enqueued
			return nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*notification.Notification{
		Halt("cu2501", "", time.Now(), time.Time{}), notification.New("alice", notification.MarginCall{}, "RiskControl"),
	} {
		if err := broker.Publish(n); err != nil {
			t.Fatal(err)
		}
	}
	notificationtest.Start(t, broker, gateway)
	if got := <-offered; got < users { // her own may not be counted yet
		t.Errorf("the margin call came when %d had been offered something", got)
	}
}

func TestCalls(t *testing.T) {
	var calls Calls
	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	alice := notificationtest.Connect(t, p.Gateway, "alice")
	deadline := time.Unix(1_800_000_000, 0)
	call := notification.MarginCall{UserID: "alice", RequiredMargin: 1e6, Deadline: deadline.UnixNano(), Timestamp: 1}
	for range 2 {
		if err := p.Broker.Publish(calls.Issue("alice", call)); err != nil {
			t.Fatal(err)
		}
	}
	id := notificationtest.Require[notification.MarginCall](t, alice, "alice", nil).ID
	if late := calls.Unconfirmed(deadline.Add(1)); !slices.Equal(late, []string{"alice"}) {
		t.Error(late)
	}
	if late := calls.Unconfirmed(deadline); late != nil {
		t.Error("there is time left, and already", late)
	}
	if calls.Confirm("bob", id) || calls.Confirm("alice", "another") || calls.Confirm("", "another") {
		t.Error("somebody else confirmed it")
	}
	if !calls.Confirm("alice", id) || calls.Confirm("alice", id) || calls.Unconfirmed(deadline.Add(1)) != nil {
		t.Error("it was not confirmed once")
	}
	p.Shutdown(t)
	notificationtest.RequireNone[notification.Payload](t, alice, "", nil)
}

func TestAccounts(t *testing.T) {
	t.Run("an ID is known whoever it was for", func(t *testing.T) {
		p := notificationtest.NewPipeline(t, notificationtest.Config{})
		for _, user := range []string{"alice", "bob"} {
			n := notification.New(user, notification.TradeExecuted{TradeID: "t1"}, "MatchingEngine")
			n.ID = "trade-t1"
			if err := p.Broker.Publish(n); err != nil {
				t.Fatal(err)
			}
		}
		p.Shutdown(t)
		if s := p.Broker.Stats(); s.Deduplicated != 1 || len(p.Published.Messages()) != 1 {
			t.Error(s.Deduplicated)
		}
	})
	t.Run("each login gets its own, and the payload says whose account it is", func(t *testing.T) {
		p := notificationtest.NewPipeline(t, notificationtest.Config{})
		alice, bob := notificationtest.Connect(t, p.Gateway, "alice"), notificationtest.Connect(t, p.Gateway, "bob")
		for range 2 {
			ns := ForEach([]string{"alice", "bob"}, "account-7-1", notification.AccountUpdate{UserID: "account-7"}, "AccountSystem")
			if n, err := p.Broker.PublishBatch(ns); n != 2 || err != nil {
				t.Fatal(n, err)
			}
		}
		p.Shutdown(t)
		for login, r := range map[string]*notificationtest.Recorder{"alice": alice, "bob": bob} {
			notificationtest.Require(t, r, login, func(u notification.AccountUpdate) bool { return u.UserID == "account-7" })
			notificationtest.RequireNone[notification.Payload](t, r, "", nil)
		}
	})
}

func TestDesk(t *testing.T) {
	broker, err := notification.NewBroker(notification.BrokerConfig{StallTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	// The desk's own Gateway has no Broker, and its users are desks.
	gateway, err := notification.NewGateway("desks", notification.GatewayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	notificationtest.Start(t, broker)
	notificationtest.Start(t, nil, gateway)
	screen := notificationtest.Connect(t, gateway, "risk-desk")

	publish := func(user, id string) {
		t.Helper()
		n := notification.New(user, notification.OrderAccepted{OrderID: "o1"}, "MatchingEngine")
		n.ID = id
		if err := broker.PublishWait(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loaded, over := make(chan bool), make(chan error)
	read := make(chan bool, 100) // how often show may return
	watch := func() {
		over <- Watch(ctx, broker, "risk-desk", []string{"alice", "bob"}, 2, func() { loaded <- true }, func(m *notification.Message) {
			gateway.Inbox()[m.Notification().Priority] <- Readdress(m, "risk-desk")
			<-read
		})
	}
	go watch() // each ends by itself, and is waited for
	<-loaded
	publish("carol", "c1")
	publish("alice", "a1")
	n := notificationtest.Require[notification.OrderAccepted](t, screen, "risk-desk", nil)
	if n.ID != "a1" || n.Source != "MatchingEngine for alice" {
		t.Errorf("%+v", n)
	}
	for i := range 9 { // one is shown, two wait, and then its budget is spent
		publish("bob", string(rune('1'+i)))
	}
	dropped := func() uint64 { return broker.Stats().Receivers[0].Dropped }
	// All seven: what was still on its way would be for the next desk.
	for late := time.Now().Add(patience); dropped() < 7; <-time.After(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the desk is waited for")
		}
	}
	for range 9 {
		read <- true
	}
	if err := <-over; !errors.Is(err, notification.ErrGap) {
		t.Fatal(err)
	}
	for len(read) > 0 {
		<-read
	}
	go watch()
	<-loaded
	publish("alice", "a2")
	read <- true
	for notificationtest.Require[notification.OrderAccepted](t, screen, "risk-desk", nil).ID != "a2" {
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestDecimals holds the table of docs/questions.md to what the library writes.
func TestDecimals(t *testing.T) {
	page, err := os.ReadFile("../../../docs/questions.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([-0-9.e]+)` \\| `([-0-9.e+]+)` \\| (yes|no)\\b.*\\|$").FindAllStringSubmatch(string(page), -1)
	if len(rows) < 6 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		f, exact := Exact(row[1])
		if exact != (row[3] == "yes") {
			t.Errorf("%s: %t", row[1], exact)
		}
		n := notification.New("alice", notification.AccountUpdate{Balance: f}, "")
		if want := `"balance":` + row[2] + `,`; !strings.Contains(string(n.AppendJSON(nil)), want) {
			t.Errorf("%s: there is no %s in %s", row[1], want, n.AppendJSON(nil))
		}
		b, err := n.AppendBinary(nil)
		var back notification.Notification
		if err != nil || back.UnmarshalBinary(b) != nil || math.Float64bits(back.Payload.(notification.AccountUpdate).Balance) != math.Float64bits(f) {
			t.Errorf("%s: the archive has %v, %v", row[1], back.Payload, err)
		}
		if json.Unmarshal(n.AppendJSON(nil), &back) != nil || math.Float64bits(back.Payload.(notification.AccountUpdate).Balance) != math.Float64bits(f) {
			t.Errorf("%s: JSON has %v", row[1], back.Payload)
		}
	}
	for _, bad := range []string{"", "ten", "1e400"} {
		if _, exact := Exact(bad); exact {
			t.Errorf("%q is exact", bad)
		}
	}
}
