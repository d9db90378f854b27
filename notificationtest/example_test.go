package notificationtest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

// A RiskControl is a service under test.
type RiskControl struct{ broker *notification.Broker }

// Check tells a user whose account is short of margin.
func (s RiskControl) Check(userID string, balance, required float64) error {
	if balance >= required {
		return nil
	}
	n := notification.New(userID, notification.MarginCall{UserID: userID, CurrentMargin: balance, RequiredMargin: required}, "RiskControl")
	n.ID = "margin-call-" + userID
	return s.broker.Publish(n)
}

// A T stands in for the testing.T that an example does not have: it prints
// what fails. A test has no need of it.
type T struct {
	testing.TB
	cleanups []func()
}

func (*T) Helper()                           {}
func (*T) Failed() bool                      { return false }
func (*T) Error(args ...any)                 { fmt.Println(args...) }
func (*T) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (*T) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *T) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *T) end() {
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		cleanup := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		cleanup()
	}
}

// A service is given the Broker of a Pipeline, and must have published.
func Example() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	service := RiskControl{p.Broker}
	if err := service.Check("alice", 400, 1000); err != nil {
		t.Fatalf("%v", err)
	}
	n := notificationtest.Require(t, p.Published, "alice", func(c notification.MarginCall) bool { return c.RequiredMargin == 1000 })
	fmt.Println(n.ID, n.Priority)
	// Output: margin-call-alice P0
}

// Exactly these notifications, and no others: with each one taken by a Require,
// nothing is left.
func ExampleRequireNone() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	service := RiskControl{p.Broker}
	for user, balance := range map[string]float64{"alice": 400, "bob": 5000, "carol": 999} {
		if err := service.Check(user, balance, 1000); err != nil {
			t.Fatalf("%v", err)
		}
	}
	notificationtest.Require[notification.MarginCall](t, p.Published, "alice", nil)
	notificationtest.Require[notification.MarginCall](t, p.Published, "carol", nil)
	p.Shutdown(t) // now nothing more can come
	notificationtest.RequireNone[notification.Payload](t, p.Published, "", nil)
	fmt.Println(len(p.Published.Messages()), "messages")
	// Output: 2 messages
}

// What a client gets: here of the channel that it has subscribed to.
func ExampleNewRecorder() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	alice := notificationtest.NewRecorder(t)
	_, err := p.Gateway.RegisterSession(notification.SessionConfig{
		ID: "connection-1", UserID: "alice", Sink: alice,
		Channels: []notification.Channel{notification.ChannelRisk},
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, payload := range []notification.Payload{
		notification.OrderFilled{OrderID: "o1"},
		notification.MarginCall{Message: "pay in by noon"},
	} {
		if err := p.Broker.Publish(notification.New("alice", payload, "test")); err != nil {
			t.Fatalf("%v", err)
		}
	}
	fmt.Println(alice.Wait(t, 1)[0].Notification().Payload.(notification.MarginCall).Message)
	p.Shutdown(t)
	notificationtest.RequireNone[notification.OrderFilled](t, alice, "alice", nil)
	// Output: pay in by noon
}

// How does a service take it that a queue is full? Nobody takes what it publishes
// until release is called.
func ExampleRecorder_Block() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	p := notificationtest.NewPipeline(t, notificationtest.Config{
		Broker: notification.BrokerConfig{QueueCapacity: [notification.NumPriorities]int{1, 1, 1, 1}},
	})
	_, release := p.Published.Block()
	service := RiskControl{p.Broker}
	published := 0
	var err error
	for err == nil {
		if err = service.Check(fmt.Sprint("user-", published), 0, 1000); err == nil {
			published++
		}
	}
	fmt.Println(errors.Is(err, notification.ErrQueueFull))

	release()
	p.Shutdown(t)
	fmt.Println(len(p.Published.Messages()) == published)
	// Output:
	// true
	// true
}

// A client that is stuck, with its Broker and Gateway configured as in production.
func ExampleStart() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{MaxSessionsPerUser: 1})
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		t.Fatalf("%v", err)
	}
	notificationtest.Start(t, broker, gateway)

	first := notificationtest.Connect(t, gateway, "alice")
	blocked, _ := first.Block()
	if err := broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: "o1"}, "test")); err != nil {
		t.Fatalf("%v", err)
	}
	<-blocked // its Push does not return
	second := notificationtest.Connect(t, gateway, "alice")
	fmt.Println(first.WaitClose(t))

	if err := broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: "o2"}, "test")); err != nil {
		t.Fatalf("%v", err)
	}
	fmt.Println(notificationtest.Require[notification.OrderFilled](t, second, "alice", nil).Payload.(notification.OrderFilled).OrderID)
	// Output:
	// notification: session replaced
	// o2
}

// After a run that loses on purpose, each loss must show in a counter.
func ExampleRequireConserved() {
	t := new(T) // in a test: its testing.T
	defer t.end()

	p := notificationtest.NewPipeline(t, notificationtest.Config{})
	alice := notificationtest.Connect(t, p.Gateway, "alice")
	alice.Fail(errors.New("connection reset"))
	if err := p.Broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: "o1"}, "test")); err != nil {
		t.Fatalf("%v", err)
	}
	fmt.Println(alice.WaitClose(t))
	p.Shutdown(t)
	notificationtest.RequireConserved(t, p.Broker, p.Gateway)
	fmt.Println("lost:", p.Gateway.Stats().Lanes[notification.P1].DroppedEnded)
	// Output:
	// connection reset
	// lost: 1
}
