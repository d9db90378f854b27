package notification_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	. "github.com/qaexchange/notification"
)

// What one lane, one user or one notice costs the others, in real time. Each of
// these fails if somebody ended, or something was lost, that should not.

// burn uses a CPU for d, or waits for one.
func burn(d time.Duration) {
	for began := time.Now(); time.Since(began) < d; {
	}
}

// burning is a sink that encodes nothing and uses d of CPU for each Push.
func burning(d time.Duration) SinkFunc {
	return func(context.Context, []*Message) error { burn(d); return nil }
}

// sleeping is a sink whose Push takes d without a CPU.
func sleeping(d time.Duration) SinkFunc {
	return func(context.Context, []*Message) error { <-time.After(d); return nil }
}

// deadPeer is a sink that takes nothing.
func deadPeer(ctx context.Context, _ []*Message) error { <-ctx.Done(); return context.Cause(ctx) }

// join registers a session per user, named after it.
func (x *exchange) join(b *testing.B, sink SinkFunc, users ...string) {
	b.Helper()
	for _, user := range users {
		if _, err := x.gateway.RegisterSession(SessionConfig{ID: user, UserID: user, Sink: sink}); err != nil {
			b.Fatal(err)
		}
	}
}

// many returns name0 to nameN-1.
func many(name string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = name + strconv.Itoa(i)
	}
	return all
}

// unharmed fails unless the sessions that have ended are these, and nothing was
// lost for others.
func (x *exchange) unharmed(b *testing.B, ended SessionEnds) {
	b.Helper()
	st := x.gateway.Stats()
	if st.Ended != ended {
		b.Fatalf("sessions ended: %+v, should be %+v", st.Ended, ended)
	}
	for p, l := range st.Lanes {
		if n := l.DroppedSlow + l.Discarded; n > 0 {
			b.Fatalf("P%d: %d messages lost", p, n)
		}
		if ended == (SessionEnds{}) && l.DroppedEnded > 0 {
			b.Fatalf("P%d: %d messages lost with sessions that ended", p, l.DroppedEnded)
		}
	}
	for _, r := range x.Stats().Receivers {
		if r.Dropped > 0 {
			b.Fatalf("the Broker dropped %d messages for %q", r.Dropped, r.ID)
		}
	}
}

// lane is the latency of a lane since an earlier Stats.
func (x *exchange) lane(p Priority, since GatewayStats) Histogram {
	return x.gateway.Stats().Lanes[p].Latency.Sub(since.Lanes[p].Latency)
}

func toAll(title string, p Priority) *Notification {
	n := New(AllUsers, SystemNotice{Title: title, Content: "maintenance", Level: "INFO"}, "Operations")
	n.Priority = p
	return n
}

func alert(user string) *Notification {
	return New(user, RiskAlert{UserID: user, AlertType: "MARGIN", Severity: "HIGH", RiskRatio: 0.93}, "RiskControl")
}

func fill(user string) *Notification {
	return New(user, OrderFilled{OrderID: "order-1", InstrumentID: "SHFE.cu2501", FilledVolume: 1, AveragePrice: 50123.5}, "MatchingEngine")
}

func reportMax(b *testing.B, name string, h Histogram) {
	report(b, name, h)
	b.ReportMetric(float64(h.Max().Nanoseconds())/1e3, name+"-max-µs")
}

// BenchmarkNotice is the latency of 200 P0 a second, and of 5,500 P1 a second to
// one trader, in the three seconds in which a P3 notice goes to 100,000
// sessions, and without one.
func BenchmarkNotice(b *testing.B) {
	for _, sinks := range []struct {
		name string
		sink SinkFunc
	}{
		{"instant", func(context.Context, []*Message) error { return nil }},
		{"20µs-of-CPU", burning(20 * time.Microsecond)},
	} {
		for _, notices := range []int{0, 1} {
			b.Run(fmt.Sprintf("sinks=%s/notices=%d", sinks.name, notices), func(b *testing.B) {
				x := newExchange(b, 100, GatewayConfig{}) // those with a P0
				x.join(b, func(context.Context, []*Message) error { return nil }, "trader")
				x.join(b, sinks.sink, many("bystander-", 100_000)...)
				runtime.GC()
				before := x.gateway.Stats()
				for b.Loop() {
					for range notices {
						x.publish(b, toAll("to all", P3))
					}
					paced(5_700, 3*time.Second, func(i int) {
						if i%28 == 0 {
							x.publish(b, alert(benchNames[i%100]))
						} else {
							x.publish(b, fill("trader"))
						}
					})
				}
				p0, p1 := x.lane(P0, before), x.lane(P1, before)
				x.drain(b)
				x.lost(b)
				reportMax(b, "P0", p0)
				reportMax(b, "P1", p1)
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// lost is unharmed after a drain, which ends every session.
func (x *exchange) lost(b *testing.B) {
	b.Helper()
	x.unharmed(b, SessionEnds{Shutdown: x.gateway.Stats().Ended.Shutdown})
	for p, l := range x.gateway.Stats().Lanes {
		if l.DroppedEnded > 0 {
			b.Fatalf("P%d: %d messages lost with sessions that ended", p, l.DroppedEnded)
		}
	}
}

// BenchmarkDeadPeers is the latency of 1,000 P0 a second to 100 users while
// 20,000 peers that take nothing are all found to be slow at the same notice.
func BenchmarkDeadPeers(b *testing.B) {
	const peers = 20_000
	names := many("dead-", peers)
	for b.Loop() {
		x := newExchange(b, 100, GatewayConfig{BatchSize: 8, OutboxMessages: 8, SlowAfter: 500 * time.Millisecond, MaxDelay: [NumPriorities]time.Duration{-1, -1, -1, -1}})
		x.join(b, deadPeer, names...)
		x.publish(b, toAll("it stays in their Push", P3))
		until(b, "a pusher for each", func() bool { return x.gateway.Stats().Lanes[P3].Latency.Count() >= peers+100 })
		for range 8 { // as many as may wait
			x.publish(b, toAll("it waits", P3))
		}
		paced(1_000, 2*time.Second, func(i int) { // the last come after SlowAfter
			x.publish(b, alert(benchNames[i%100]))
		})
		x.unharmed(b, SessionEnds{})
		runtime.GC()
		before := x.gateway.Stats()
		x.publish(b, toAll("too much", P3))
		paced(1_000, 2*time.Second, func(i int) { x.publish(b, alert(benchNames[i%100])) })
		p0 := x.lane(P0, before)
		until(b, "their end", func() bool { return x.gateway.Stats().Ended.Slow == peers })
		x.unharmed(b, SessionEnds{Slow: peers})
		x.drain(b)
		reportMax(b, "P0", p0)
	}
	b.ReportMetric(0, "ns/op")
}

// until waits for what has no channel to wait on.
func until(b *testing.B, what string, holds func() bool) {
	b.Helper()
	for give := time.Now().Add(time.Minute); !holds(); <-time.After(time.Millisecond) {
		if time.Now().After(give) {
			b.Fatalf("waited in vain: %s", what)
		}
	}
}

// BenchmarkBusySinks is the latency of 200 P0 a second while one publisher
// floods P1 and each of its Pushes uses 20 µs of CPU.
func BenchmarkBusySinks(b *testing.B) {
	x := newExchange(b, 100, GatewayConfig{BatchSize: 1})
	traders := many("trader-", 1_000)
	x.join(b, burning(20*time.Microsecond), traders...)
	runtime.GC()
	before := x.gateway.Stats()
	flooded := 0
	for b.Loop() {
		stop := make(chan struct{})
		var flood sync.WaitGroup
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					x.publish(b, fill(traders[flooded%len(traders)]))
					flooded++
				}
			}
		})
		paced(200, 3*time.Second, func(i int) { x.publish(b, alert(benchNames[i%100])) })
		close(stop)
		flood.Wait()
	}
	p0 := x.lane(P0, before)
	x.drain(b)
	x.lost(b)
	reportMax(b, "P0", p0)
	b.ReportMetric(float64(flooded)/b.Elapsed().Seconds(), "P1-msg/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSleepingSinks is the latency of P1 to 5,000 users whose Pushes take
// 5 to 15 ms each, without a CPU, at a rate at which each is busy for a tenth of
// the time.
func BenchmarkSleepingSinks(b *testing.B) {
	x := newExchange(b, 0, GatewayConfig{})
	users := many("user-", 5_000)
	for i, user := range users {
		x.join(b, sleeping(time.Duration(5+i%11)*time.Millisecond), user)
	}
	rate := 50_000
	paced(rate, time.Second, func(i int) { x.publish(b, fill(users[i*7919%len(users)])) }) // the pool grows
	runtime.GC()
	before := x.gateway.Stats()
	for b.Loop() {
		paced(rate, 2*time.Second, func(i int) { x.publish(b, fill(users[i*7919%len(users)])) })
	}
	p1 := x.lane(P1, before)
	b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
	x.drain(b)
	x.lost(b)
	reportMax(b, "P1", p1)
	b.ReportMetric(0, "ns/op")
}

// BenchmarkUserWithManySessions is the latency of 200 P0 a second to others
// while 20 P1 a second go to a user with 10,000 sessions.
func BenchmarkUserWithManySessions(b *testing.B) {
	for _, sessions := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("sessions=%d", sessions), func(b *testing.B) {
			x := newExchange(b, 100, GatewayConfig{})
			for _, id := range many("big-", sessions) {
				sink := SinkFunc(func(_ context.Context, ms []*Message) error {
					for _, m := range ms {
						m.JSON()
					}
					return nil
				})
				if _, err := x.gateway.RegisterSession(SessionConfig{ID: id, UserID: "big", Sink: sink}); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			before := x.gateway.Stats()
			for b.Loop() {
				paced(220, 3*time.Second, func(i int) {
					if i%11 == 0 {
						x.publish(b, fill("big"))
					} else {
						x.publish(b, alert(benchNames[i%100]))
					}
				})
			}
			p0, p1 := x.lane(P0, before), x.lane(P1, before)
			x.drain(b)
			x.lost(b)
			reportMax(b, "P0", p0)
			reportMax(b, "P1", p1)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkManyUsers is how long others wait while a Gateway with 300,000 users
// is attached to a Broker, detached from it, or told of a gap: RegisterSession
// with Close, one a millisecond, and the latency of 200 P0 a second from another
// Gateway's sessions.
func BenchmarkManyUsers(b *testing.B) {
	const users = 300_000
	names := many("many-", users)
	for _, op := range []string{"attach", "detach", "Gap"} {
		b.Run(op, func(b *testing.B) {
			for b.Loop() {
				x := newExchange(b, 100, GatewayConfig{})
				g, err := NewGateway("many", GatewayConfig{})
				if err != nil {
					b.Fatal(err)
				}
				var running sync.WaitGroup
				running.Go(func() { g.Run(context.Background()) })
				if op != "attach" {
					if err := x.RegisterGateway(g); err != nil {
						b.Fatal(err)
					}
				}
				nothing := SinkFunc(func(context.Context, []*Message) error { return nil })
				for _, name := range names {
					if _, err := g.RegisterSession(SessionConfig{ID: name, UserID: name, Sink: nothing}); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				before := x.gateway.Stats()
				stop := make(chan struct{})
				var others sync.WaitGroup
				var waits []time.Duration
				others.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						case <-time.After(time.Millisecond):
						}
						began := time.Now()
						id := "new-" + strconv.Itoa(i)
						s, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: nothing})
						if err != nil {
							b.Error(err)
							return
						}
						s.Close()
						waits = append(waits, time.Since(began))
					}
				})
				others.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						case <-time.After(5 * time.Millisecond):
							x.publish(b, alert(benchNames[i%100]))
						}
					}
				})
				<-time.After(50 * time.Millisecond)
				began := time.Now()
				switch op {
				case "attach":
					err = x.RegisterGateway(g)
				case "detach":
					err = x.Unregister("many")
				case "Gap":
					g.Gap()
				}
				took := time.Since(began)
				<-time.After(50 * time.Millisecond)
				close(stop)
				others.Wait()
				if err != nil {
					b.Fatal(err)
				}
				if n := g.Stats().Ended.Gap; op == "Gap" && n < users || op != "Gap" && n > 0 {
					b.Fatalf("Gap has ended %d sessions", n)
				}
				if op == "attach" && x.Stats().Users < users {
					b.Fatalf("%d users are routed", x.Stats().Users)
				}
				p0 := x.lane(P0, before)
				x.unharmed(b, SessionEnds{})
				x.drain(b)
				if err := g.Shutdown(context.Background()); err != nil {
					b.Fatal(err)
				}
				running.Wait()
				slices.Sort(waits)
				b.ReportMetric(float64(took.Nanoseconds())/users, "ns/user")
				for name, at := range map[string]int{"p50": len(waits) / 2, "p99": len(waits) * 99 / 100, "max": len(waits) - 1} {
					b.ReportMetric(float64(waits[at].Nanoseconds())/1e3, "RegisterSession-"+name+"-µs")
				}
				reportMax(b, "P0", p0)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTimersUnderUrgentFlood is how late P2 is pushed after its delay of
// 50 ms while P0 comes as fast as the inbox takes it.
func BenchmarkTimersUnderUrgentFlood(b *testing.B) {
	g, err := NewGateway("g", GatewayConfig{})
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { g.Run(context.Background()) })
	var mu sync.Mutex
	var late []time.Duration
	const delay = 50 * time.Millisecond
	sink := SinkFunc(func(_ context.Context, ms []*Message) error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range ms {
			late = append(late, max(time.Duration(time.Now().UnixNano()-m.Notification().Timestamp)-delay, 0))
		}
		return nil
	})
	users := many("u", 100)
	for _, user := range users {
		if _, err := g.RegisterSession(SessionConfig{ID: user, UserID: user, Sink: sink}); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	sent := 0
	for b.Loop() {
		stop := make(chan struct{})
		var flood sync.WaitGroup
		for range 2 {
			flood.Go(func() {
				m := NewMessage(alert("nobody"))
				for {
					select {
					case g.Inbox()[P0] <- m:
					case <-stop:
						return
					}
				}
			})
		}
		paced(200, 3*time.Second, func(i int) {
			n := New(users[i%len(users)], AccountUpdate{UserID: users[i%len(users)], Balance: 1e6}, "AccountSystem")
			select {
			case g.Inbox()[P2] <- NewMessage(n):
				sent++
			default:
				b.Error("the reader does not take P2")
			}
		})
		close(stop)
		flood.Wait()
	}
	flooded := g.Stats().Lanes[P0].Received
	if err := g.Shutdown(context.Background()); err != nil {
		b.Fatal(err)
	}
	running.Wait()
	if len(late) != sent || g.Stats().Ended != (SessionEnds{Shutdown: uint64(len(users))}) {
		b.Fatalf("%d of %d delivered, sessions ended: %+v", len(late), sent, g.Stats().Ended)
	}
	slices.Sort(late)
	for name, at := range map[string]int{"p50": len(late) / 2, "p99": len(late) * 99 / 100, "max": len(late) - 1} {
		b.ReportMetric(float64(late[at].Nanoseconds())/1e3, "P2-late-"+name+"-µs")
	}
	b.ReportMetric(float64(flooded)/b.Elapsed().Seconds(), "P0-msg/s")
	b.ReportMetric(0, "ns/op")
}
