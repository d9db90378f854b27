package notification_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	. "github.com/qaexchange/notification"
)

// Every system under test serves this many users, each with one consumer that
// ends with the JSON of what it gets.
const benchUsers = 10_000

var benchNames = func() []string {
	names := make([]string, benchUsers)
	for i := range names {
		names[i] = "user-" + strconv.Itoa(i)
	}
	return names
}()

// trade is the message of the end-to-end benchmarks, made anew each time.
func trade(i int) *Notification {
	return New(benchNames[i%benchUsers], TradeExecuted{
		TradeID: "trade-000001", OrderID: "order-000001", ExchangeOrderID: "ex-000001", InstrumentID: "SHFE.cu2501",
		Direction: "BUY", Offset: "OPEN", Price: 50123.5, Volume: 3, Commission: 12.75, FillType: "FULL", Timestamp: 1_760_000_000_000_000_000,
	}, "MatchingEngine")
}

// cpu is the time that this process has spent on all cores.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// exchange is a Broker and a Gateway that run, with a session per user whose
// sink encodes and counts.
type exchange struct {
	*Broker
	gateway *Gateway
	got     atomic.Int64
	bytes   atomic.Int64
	ended   sync.WaitGroup
}

func newExchange(b *testing.B, users int, cfg GatewayConfig) *exchange {
	b.Helper()
	broker, err := NewBroker(BrokerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	gateway, err := NewGateway("gateway", cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		b.Fatal(err)
	}
	x := &exchange{Broker: broker, gateway: gateway}
	x.ended.Go(func() { broker.Run(context.Background()) })
	x.ended.Go(func() { gateway.Run(context.Background()) })
	for i := range users {
		name := "user-" + strconv.Itoa(i)
		sink := SinkFunc(func(_ context.Context, batch []*Message) error {
			n := 0
			for _, m := range batch {
				n += len(m.JSON())
			}
			x.bytes.Add(int64(n))
			x.got.Add(int64(len(batch)))
			return nil
		})
		if _, err := gateway.RegisterSession(SessionConfig{ID: name, UserID: name, Sink: sink}); err != nil {
			b.Fatal(err)
		}
	}
	return x
}

// drain returns when all is delivered and every goroutine gone.
func (x *exchange) drain(b *testing.B) {
	b.Helper()
	if err := errors.Join(x.Shutdown(context.Background()), x.gateway.Shutdown(context.Background())); err != nil {
		b.Fatal(err)
	}
	x.ended.Wait()
}

// publish retries while the lane is full: the flat-out benchmarks measure what
// gets through.
func (x *exchange) publish(b *testing.B, n *Notification) {
	if err := x.Publish(n); err != nil {
		if err = x.PublishWait(context.Background(), n); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublish is Publish alone, with distinct IDs: the notifications are
// made before, and more of them than the dedup window holds, so that each is
// new again when its turn comes.
func BenchmarkPublish(b *testing.B) {
	for _, publishers := range []int{1, 4} {
		b.Run(fmt.Sprintf("goroutines=%d", publishers), func(b *testing.B) {
			x := newExchange(b, 0, GatewayConfig{})
			const set = 1 << 15
			made := make([]*Notification, set*publishers)
			for i := range made {
				made[i] = trade(i)
			}
			runtime.GC()
			b.ReportAllocs()
			if publishers == 1 {
				i := 0
				for b.Loop() {
					x.publish(b, made[i%set])
					i++
				}
			} else {
				b.ResetTimer()
				var wg sync.WaitGroup
				for p := range publishers {
					wg.Go(func() {
						for i := range b.N / publishers {
							x.publish(b, made[p*set+i%set])
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())*float64(publishers)/float64(b.N), "ns/call")
			}
			x.drain(b)
		})
	}
}

// deliver measures the whole way: New, publish, and done when the last consumer
// holds its JSON.
func deliver(b *testing.B, publish func(n *Notification), drain func()) {
	runtime.GC()
	b.ReportAllocs()
	before := cpu()
	i := 0
	for b.Loop() {
		publish(trade(i))
		i++
	}
	start := time.Now()
	drain()
	rest := time.Since(start)
	b.ReportMetric(float64(i)/(b.Elapsed()+rest).Seconds(), "msg/s")
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(i), "cpu-µs/msg")
}

// BenchmarkDeliver is publish → JSON in the sink, flat out. Its baselines do
// the same work for as many users.
func BenchmarkDeliver(b *testing.B) {
	b.Run("notification", func(b *testing.B) {
		x := newExchange(b, benchUsers, GatewayConfig{})
		sent := int64(0)
		deliver(b, func(n *Notification) { sent++; x.publish(b, n) }, func() { x.drain(b) })
		if x.got.Load() != sent {
			b.Fatalf("%d of %d delivered", x.got.Load(), sent)
		}
	})

	// What one writes first: a buffered channel and a goroutine per user.
	b.Run("channel-per-user", func(b *testing.B) {
		var mu sync.RWMutex
		var wg sync.WaitGroup
		users := make(map[string]chan *Notification)
		for _, name := range benchNames {
			ch := make(chan *Notification, 64)
			users[name] = ch
			wg.Go(func() {
				for n := range ch {
					encode(b, n)
				}
			})
		}
		deliver(b, func(n *Notification) {
			mu.RLock()
			ch := users[n.UserID]
			mu.RUnlock()
			ch <- n
		}, func() {
			for _, ch := range users {
				close(ch)
			}
			wg.Wait()
		})
	})

	// The hub of the chat examples: one goroutine owns the map.
	b.Run("hub", func(b *testing.B) {
		var wg sync.WaitGroup
		users := make(map[string]chan *Notification)
		for _, name := range benchNames {
			ch := make(chan *Notification, 64)
			users[name] = ch
			wg.Go(func() {
				for n := range ch {
					encode(b, n)
				}
			})
		}
		hub := make(chan *Notification, 1024)
		wg.Go(func() {
			for n := range hub {
				users[n.UserID] <- n
			}
			for _, ch := range users {
				close(ch)
			}
		})
		deliver(b, func(n *Notification) { hub <- n }, func() { close(hub); wg.Wait() })
	})

	// The floor: no queue and no goroutine at all.
	b.Run("direct-encoding-json", func(b *testing.B) {
		deliver(b, func(n *Notification) { encode(b, n) }, func() {})
	})
}

// wire is what encoding/json makes the same document of.
type wire struct {
	MessageID   string `json:"message_id"`
	MessageType string `json:"message_type"`
	UserID      string `json:"user_id"`
	Priority    uint8  `json:"priority"`
	Timestamp   int64  `json:"timestamp"`
	Source      string `json:"source"`
	Payload     any    `json:"payload"`
}

type tradeWire struct {
	Type string `json:"type"`
	TradeExecuted
}

func encode(b *testing.B, n *Notification) {
	t := n.Type().String()
	if _, err := json.Marshal(wire{n.ID, t, n.UserID, uint8(n.Priority), n.Timestamp, n.Source, tradeWire{t, n.Payload.(TradeExecuted)}}); err != nil {
		b.Fatal(err)
	}
}

// mixed returns the i-th message of a load of 5 % P0, 60 % P1, 30 % P2, 5 % P3.
func mixed(i int) *Notification {
	user := benchNames[(i*7919)%benchUsers]
	switch k := i % 20; {
	case k == 0:
		return New(user, RiskAlert{UserID: user, AlertType: "MARGIN", Severity: "HIGH", Message: "margin is low", RiskRatio: 0.93}, "RiskControl")
	case k == 10:
		return New(user, OrderExpired{OrderID: "order-1", InstrumentID: "SHFE.cu2501", Reason: "end of day"}, "MatchingEngine")
	case k%10 < 4:
		return New(user, AccountUpdate{UserID: user, Balance: 1e6, Available: 9e5, Frozen: 1e5, RiskRatio: 0.1}, "AccountSystem")
	default:
		return trade(i * 7919)
	}
}

// paced calls publish at a rate for a while, in open loop: it does not wait for
// anything but the clock.
func paced(rate int, d time.Duration, publish func(i int)) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for i := 0; ; <-tick.C {
		elapsed := time.Since(start)
		for ; i < int(elapsed.Seconds()*float64(rate)); i++ {
			publish(i)
		}
		if elapsed > d {
			return
		}
	}
}

func report(b *testing.B, name string, h Histogram) {
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", .5}, {"p99", .99}, {"p99.9", .999}} {
		b.ReportMetric(float64(h.Quantile(q.q).Nanoseconds())/1e3, name+"-"+q.name+"-µs")
	}
}

// BenchmarkLatency is the latency from Publish to the start of Push, per lane,
// at a paced load.
func BenchmarkLatency(b *testing.B) {
	for _, rate := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			x := newExchange(b, benchUsers, GatewayConfig{})
			runtime.GC()
			for b.Loop() {
				paced(rate, 2*time.Second, func(i int) { x.publish(b, mixed(i)) })
			}
			x.drain(b)
			for p, l := range x.gateway.Stats().Lanes {
				report(b, Priority(p).String(), l.Latency)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkUrgentUnderFlood is the latency of 200 P0 a second while one
// publisher floods P1 as fast as it can.
func BenchmarkUrgentUnderFlood(b *testing.B) {
	x := newExchange(b, benchUsers, GatewayConfig{})
	runtime.GC()
	flooded := 0
	start := time.Now()
	for b.Loop() {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					x.publish(b, trade(flooded))
					flooded++
				}
			}
		})
		paced(200, 3*time.Second, func(i int) { x.publish(b, mixed(20*i)) })
		close(stop)
		wg.Wait()
	}
	took := time.Since(start)
	x.drain(b)
	report(b, "P0", x.gateway.Stats().Lanes[P0].Latency)
	b.ReportMetric(float64(flooded)/took.Seconds(), "P1-msg/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle is the CPU that 10,000 sessions cost while nothing happens.
func BenchmarkIdle(b *testing.B) {
	x := newExchange(b, benchUsers, GatewayConfig{})
	runtime.GC()
	before, start := cpu(), time.Now()
	for b.Loop() {
		<-time.After(5 * time.Second)
	}
	b.ReportMetric((cpu()-before).Seconds()/time.Since(start).Seconds()*100, "%core")
	b.ReportMetric(0, "ns/op")
	x.drain(b)
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // sync.Pool keeps for one collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkSessionMemory is the memory of an idle session, its share of the
// indexes included, at 100,000 sessions of as many users.
func BenchmarkSessionMemory(b *testing.B) {
	for b.Loop() {
		const sessions = 100_000
		before := heap()
		x := newExchange(b, sessions, GatewayConfig{})
		b.ReportMetric(float64(heap()-before)/sessions, "B/session")
		x.drain(b)
	}
}

// BenchmarkFullLanes is the heap with all four lanes full of AccountUpdates, and
// of an empty Broker.
func BenchmarkFullLanes(b *testing.B) {
	for b.Loop() {
		before := heap()
		broker, err := NewBroker(BrokerConfig{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB-empty")
		for p, l := range broker.Stats().Lanes {
			for i := range l.Capacity {
				user := benchNames[i%benchUsers]
				n := New(user, AccountUpdate{UserID: user, Balance: 1e6, Available: 9e5, Frozen: 1e5, Margin: 5e4, RiskRatio: 0.1}, "AccountSystem")
				n.Priority = Priority(p)
				if err := broker.Publish(n); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB-full")
		broker.Shutdown(context.Background())
	}
}
