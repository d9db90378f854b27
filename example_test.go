package notification_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/qaexchange/notification"
)

// start runs a Broker and a Gateway that belong together, and returns how to
// stop them: the Broker first, so that the Gateway gets what is under way.
func start(broker *notification.Broker, gateway *notification.Gateway) (stop func() error) {
	if err := broker.RegisterGateway(gateway); err != nil {
		panic(err)
	}
	var running sync.WaitGroup
	running.Go(func() { broker.Run(context.Background()) })
	running.Go(func() { gateway.Run(context.Background()) })
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := errors.Join(broker.Shutdown(ctx), gateway.Shutdown(ctx))
		running.Wait()
		return err
	}
}

// setup makes both with their defaults.
func setup() (*notification.Broker, *notification.Gateway) {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		panic(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		panic(err)
	}
	return broker, gateway
}

// The whole way: a broker, a gateway, a session, a trade, and the end.
func Example() {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		panic(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{})
	if err != nil {
		panic(err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		panic(err)
	}
	var running sync.WaitGroup
	running.Go(func() { broker.Run(context.Background()) })
	running.Go(func() { gateway.Run(context.Background()) })

	// A session for each connection. The sink would write to a socket.
	delivered := make(chan struct{})
	_, err = gateway.RegisterSession(notification.SessionConfig{
		ID: "connection-1", UserID: "alice",
		Sink: notification.SinkFunc(func(ctx context.Context, batch []*notification.Message) error {
			for _, m := range batch {
				n := m.Notification()
				fmt.Println(n.Type(), n.Priority, n.Payload.(notification.TradeExecuted).Price)
			}
			close(delivered)
			return nil
		}),
	})
	if err != nil {
		panic(err)
	}

	// The matching engine publishes.
	trade := notification.New("alice", notification.TradeExecuted{
		TradeID: "t1", OrderID: "o1", InstrumentID: "SHFE.cu2501", Direction: "BUY", Price: 50100, Volume: 2,
	}, "MatchingEngine")
	if err := broker.Publish(trade); err != nil {
		panic(err)
	}

	<-delivered

	// On the way out: the broker first, then the gateway, each with all it has.
	if err := broker.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	if err := gateway.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	running.Wait()
	// Output: trade_executed P1 50100
}

// A producer that may publish an event twice gives it an ID of its own: the
// second time does nothing, and says nil all the same.
func ExampleBroker_Publish_retry() {
	broker, gateway := setup()
	stop := start(broker, gateway)
	sink, messages := notification.ChannelSink(16)
	if _, err := gateway.RegisterSession(notification.SessionConfig{ID: "s1", UserID: "alice", Sink: sink}); err != nil {
		panic(err)
	}
	for range 3 {
		n := notification.New("alice", notification.TradeExecuted{TradeID: "t1"}, "MatchingEngine")
		n.ID = "trade-t1"
		fmt.Println(broker.Publish(n))
	}
	<-messages
	if err := stop(); err != nil {
		panic(err)
	}
	stats := broker.Stats()
	fmt.Println("published", stats.Lanes[notification.P1].Published, "deduplicated", stats.Deduplicated)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// published 1 deduplicated 2
}

// A full lane refuses, and remembers nothing: the retry is a first publish.
// PublishWait waits for room instead.
func ExampleBroker_Publish_queueFull() {
	broker, err := notification.NewBroker(notification.BrokerConfig{QueueCapacity: [4]int{1, 1, 1, 1}})
	if err != nil {
		panic(err)
	}
	first := notification.New("alice", notification.OrderFilled{OrderID: "o1"}, "MatchingEngine")
	second := notification.New("alice", notification.OrderFilled{OrderID: "o2"}, "MatchingEngine")
	fmt.Println(broker.Publish(first))
	fmt.Println(errors.Is(broker.Publish(second), notification.ErrQueueFull))

	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	fmt.Println(broker.PublishWait(ctx, second)) // nothing runs that would make room
	// Output:
	// <nil>
	// true
	// context deadline exceeded
}

// A matching engine has bursts. What a full lane refuses is published later: the
// rest of the batch is untouched.
func ExampleBroker_PublishBatch() {
	broker, err := notification.NewBroker(notification.BrokerConfig{QueueCapacity: [notification.NumPriorities]int{1, 2, 1, 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	var burst []*notification.Notification
	for _, id := range []string{"t1", "t2", "t3"} {
		n := notification.New("alice", notification.TradeExecuted{TradeID: id}, "MatchingEngine")
		n.ID = "trade-" + id
		burst = append(burst, n)
	}
	accepted, err := broker.PublishBatch(burst)
	fmt.Println(accepted, errors.Is(err, notification.ErrQueueFull))
	burst = burst[accepted:] // to be published again when there is room
	fmt.Println(burst[0].ID)
	// Output:
	// 2 true
	// trade-t3
}

// ChannelSink receives without a callback.
func ExampleChannelSink() {
	broker, gateway := setup()
	stop := start(broker, gateway)
	sink, messages := notification.ChannelSink(16)
	session, err := gateway.RegisterSession(notification.SessionConfig{ID: "s1", UserID: "alice", Sink: sink})
	if err != nil {
		panic(err)
	}
	n := notification.New("alice", notification.MarginCall{UserID: "alice", RequiredMargin: 1e6, Message: "pay in by noon"}, "RiskControl")
	n.ID, n.Timestamp = "call-1", 1_760_000_000_000_000_000
	if err := broker.Publish(n); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", (<-messages).JSON())
	session.Close()
	_, open := <-messages
	fmt.Println("open:", open)
	if err := stop(); err != nil {
		panic(err)
	}
	// Output:
	// {"message_id":"call-1","message_type":"margin_call","user_id":"alice","priority":0,"timestamp":1760000000000000000,"source":"RiskControl","payload":{"type":"margin_call","user_id":"alice","current_margin":0,"required_margin":1000000,"deadline":0,"message":"pay in by noon","timestamp":0}}
	// open: false
}

// A sink that writes a line for each notification, with one call for a batch, and keeps
// none of the text.
func ExampleMessage_AppendJSON() {
	broker, gateway := setup()
	stop := start(broker, gateway)
	w := bufio.NewWriter(os.Stdout) // a connection
	written := make(chan struct{})
	lines := notification.SinkFunc(func(_ context.Context, batch []*notification.Message) error {
		defer close(written)
		for _, m := range batch {
			line := append(m.AppendJSON(w.AvailableBuffer()), '\n')
			if _, err := w.Write(line); err != nil {
				return err // and the session ends with it
			}
		}
		return w.Flush()
	})
	_, err := gateway.RegisterSession(notification.SessionConfig{ID: "s1", UserID: "alice", Sink: lines})
	if err != nil {
		panic(err)
	}
	n := notification.New("alice", notification.OrderCanceled{OrderID: "order-1"}, "MatchingEngine")
	n.ID, n.Timestamp = "cancel-1", 1_760_000_000_000_000_000
	if err := broker.Publish(n); err != nil {
		panic(err)
	}
	<-written
	if err := stop(); err != nil {
		panic(err)
	}
	// Output:
	// {"message_id":"cancel-1","message_type":"order_canceled","user_id":"alice","priority":1,"timestamp":1760000000000000000,"source":"MatchingEngine","payload":{"type":"order_canceled","order_id":"order-1","exchange_order_id":"","instrument_id":"","reason":"","timestamp":0}}
}

// A session receives every channel until it names some.
func ExampleSession_Subscribe() {
	_, gateway := setup()
	sink, _ := notification.ChannelSink(16)
	session, err := gateway.RegisterSession(notification.SessionConfig{ID: "s1", UserID: "alice", Sink: sink})
	if err != nil {
		panic(err)
	}
	fmt.Println(session.Subscriptions())
	session.Subscribe(notification.ChannelTrade, notification.ChannelRisk)
	fmt.Println(session.Subscriptions())
	session.Unsubscribe(notification.ChannelTrade)
	fmt.Println(session.Subscriptions())
	session.SubscribeAll()
	fmt.Println(session.Subscriptions())
	// Output:
	// [trade account position risk system]
	// [trade risk]
	// [risk]
	// [trade account position risk system]
}

// A global subscriber sees what everybody gets: Wait for storage, which must
// have all of it, DropNewest for monitoring, which must delay nobody.
func ExampleBroker_SubscribeGlobal() {
	broker, gateway := setup()
	stored := make(chan *notification.Message, 128)
	if err := broker.SubscribeGlobal("storage", stored, notification.Wait); err != nil {
		panic(err)
	}
	stop := start(broker, gateway)
	for _, user := range []string{"alice", "bob"} {
		if err := broker.Publish(notification.New(user, notification.OrderFilled{OrderID: "order-of-" + user}, "MatchingEngine")); err != nil {
			panic(err)
		}
	}
	for range 2 {
		n := (<-stored).Notification()
		fmt.Println(n.UserID, n.Payload.(notification.OrderFilled).OrderID)
	}
	if err := stop(); err != nil {
		panic(err)
	}
	close(stored) // nothing is sent after Run has returned
	// Output:
	// alice order-of-alice
	// bob order-of-bob
}

// Shutdown delivers what was accepted. Its context is the only limit: with it
// run out, what is left is discarded and counted.
func ExampleBroker_Shutdown() {
	broker, gateway := setup()
	stop := start(broker, gateway)
	var got int
	delivering := make(chan struct{})
	_, err := gateway.RegisterSession(notification.SessionConfig{
		ID: "s1", UserID: "alice",
		Sink: notification.SinkFunc(func(_ context.Context, batch []*notification.Message) error {
			if got == 0 {
				close(delivering)
			}
			got += len(batch)
			return nil
		}),
	})
	if err != nil {
		panic(err)
	}
	for range 1000 {
		if err := broker.Publish(notification.New("alice", notification.AccountUpdate{UserID: "alice"}, "AccountSystem")); err != nil {
			panic(err)
		}
	}
	<-delivering // both run
	fmt.Println(stop(), got)
	fmt.Println(broker.Publish(notification.New("alice", notification.AccountUpdate{}, "AccountSystem")))
	// Output:
	// <nil> 1000
	// notification: closed
}

// A client that reconnects goes on behind its cursor and misses nothing. If what
// it missed is no longer there, it learns that, loads a snapshot and starts from
// now.
func ExampleSession_Cursor() {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		panic(err)
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{HistoryMessages: 1024})
	if err != nil {
		panic(err)
	}
	stop := start(broker, gateway)
	publish := func(order string) {
		if err := broker.Publish(notification.New("alice", notification.OrderFilled{OrderID: order}, "MatchingEngine")); err != nil {
			panic(err)
		}
	}
	connect := func(id string, after notification.Cursor) (*notification.Session, <-chan *notification.Message, error) {
		sink, messages := notification.ChannelSink(16)
		session, err := gateway.RegisterSession(notification.SessionConfig{ID: id, UserID: "alice", Sink: sink, After: after})
		return session, messages, err
	}

	first, messages, err := connect("connection-1", notification.Cursor{})
	if err != nil {
		panic(err)
	}
	publish("order-1")
	fmt.Println((<-messages).Notification().Payload)
	first.Close() // the connection breaks
	<-first.Done()
	text := first.Cursor().String() // what the client has kept

	publish("order-2") // nobody is there

	cursor, err := notification.ParseCursor(text)
	if err != nil {
		panic(err)
	}
	_, messages, err = connect("connection-2", cursor)
	if err != nil {
		panic(err)
	}
	fmt.Println((<-messages).Notification().Payload)

	gateway.Gap() // something was lost on the way here: every cursor is void
	_, _, err = connect("connection-3", cursor)
	fmt.Println(errors.Is(err, notification.ErrCursorGone))
	if err := stop(); err != nil {
		panic(err)
	}
	// Output:
	// {order-1   0 0 0}
	// {order-2   0 0 0}
	// true
}

// A risk desk goes through a stream of archives for accounts that are far below
// their margin. It reads one number of each, and more only of those that matter.
func ExampleNumberFieldOf() {
	currentMargin, err := notification.NumberFieldOf[notification.MarginCall, float64]("current_margin")
	if err != nil {
		panic(err)
	}
	userID, err := notification.StringFieldOf[notification.MarginCall]("user_id")
	if err != nil {
		panic(err)
	}

	var stream bytes.Buffer // a file or a connection
	for _, p := range []notification.Payload{
		notification.MarginCall{UserID: "alice", CurrentMargin: 81_000, RequiredMargin: 90_000},
		notification.AccountUpdate{UserID: "alice", Margin: 81_000},
		notification.MarginCall{UserID: "bob", CurrentMargin: 12_500, RequiredMargin: 90_000},
	} {
		b, err := notification.New("desk", p, "RiskControl").MarshalBinary()
		if err != nil {
			panic(err)
		}
		stream.Write(b)
	}

	const largest = 2 << 20 // bytes of an archive
	r := bufio.NewReader(&stream)
	for {
		start, err := r.Peek(8) // the last four are the size of the whole
		if err == io.EOF && len(start) == 0 {
			break
		}
		if err != nil {
			panic(err)
		}
		size := binary.LittleEndian.Uint32(start[4:])
		if size > largest {
			panic("this is no archive")
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(r, b); err != nil {
			panic(err)
		}
		a, err := notification.OpenArchive(b)
		if err != nil {
			panic(err)
		}
		if margin, ok := currentMargin.In(a); ok && margin < 50_000 {
			user, _ := userID.In(a)
			fmt.Println(user, margin)
		}
	}
	// Output: bob 12500
}
