package notification

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The end of a Gateway and of a Broker: what is taken, what is counted, and who
// waits for whom.

func TestGatewayDrain(t *testing.T) {
	inBubble(t, "it takes what the inbox holds while the Gateway is behind with all that it may owe", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{BatchSize: 1, Pushers: 1, MaxPushers: 1, InboxCapacity: 8000, MaxDelay: lanes(time.Duration(-1))})
		runGateway(t, g)
		var sinks []*ledger
		for _, u := range series("u", 10) {
			_, sink := join(t, g, u, u, slowly(time.Millisecond))
			sinks = append(sinks, sink)
		}
		for i := range 8000 {
			feed(g, note(fmt.Sprint("m", i), fmt.Sprint("u", i%10+1), P1))
		}
		synctest.Wait()
		require.Less(t, lane(g, P1).Received, uint64(8000), "it reads no more")
		began := time.Now()
		drainWithin(t, g, time.Hour)
		require.LessOrEqual(t, time.Since(began), 10*time.Second)
		for k, sink := range sinks {
			got := sink.ids()
			require.Len(t, got, 800)
			for i, id := range got {
				require.Equal(t, fmt.Sprint("m", i*10+k), id)
			}
		}
		require.Equal(t, GatewayLane{Received: 8000, Enqueued: 8000, Taken: 8000}, lane(g, P1))
	})

	t.Run("it takes what the inbox holds, however the reader and the pushers meet", func(t *testing.T) {
		users := series("u", 3000)
		withProcs(t, func(t *testing.T) {
			for range sized(20, 2) {
				n := 4 * len(users) // more than the Gateway may owe
				g := newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 1, Pushers: 2, InboxCapacity: n, MaxDelay: lanes(time.Duration(-1))})
				var got atomic.Int64
				count := SinkFunc(func(_ context.Context, batch []*Message) error { got.Add(int64(len(batch))); return nil })
				for _, u := range users {
					_, err := g.RegisterSession(SessionConfig{ID: u, UserID: u, Sink: count})
					require.NoError(t, err)
				}
				for i := range n {
					feed(g, note(fmt.Sprint("m", i), users[i%len(users)], P1))
				}
				done := start(context.Background(), g)
				for running := false; !running; running = lane(g, P1).Received > 0 {
					runtime.Gosched() // a Shutdown before Run would discard
				}
				require.NoError(t, g.Shutdown(context.Background()))
				require.NoError(t, <-done)
				require.EqualValues(t, n, got.Load())
				require.Equal(t, GatewayLane{Received: uint64(n), Enqueued: uint64(n), Taken: uint64(n)}, lane(g, P1))
			}
		})
	})

	inBubble(t, "it takes what waits for room behind a full outbox", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 10})
		runGateway(t, g)
		s, sink := join(t, g, "s", "u", slowly(10*time.Millisecond))
		feedAll(g, "u", P1, series("m", 200))
		synctest.Wait()
		drainWithin(t, g, time.Hour)
		require.Equal(t, series("m", 200), sink.ids())
		require.Equal(t, ErrGatewayClosed, s.Err())
		require.Equal(t, SessionEnds{Shutdown: 1}, g.Stats().Ended)
	})

	inBubble(t, "it goes on with fan-outs and replays to their end", func(t *testing.T) {
		g := newGateway(t, "g", keeping(GatewayConfig{BatchSize: 10, OutboxMessages: 100, HistoryMessages: 2000}))
		runGateway(t, g)
		from := offline(t, g, "u")
		feedAll(g, "u", P1, series("m", 1000))
		pass(time.Second)
		_, sink := join(t, g, "s", "u", after(from), slowly(time.Millisecond))
		var crowd []*ledger
		for _, id := range series("crowd", 500) {
			_, sink := join(t, g, id, id, slowly(time.Millisecond))
			crowd = append(crowd, sink)
		}
		pass(5 * time.Millisecond)
		require.Less(t, lane(g, P1).Replayed, uint64(1000), "the replay goes on")
		for _, id := range series("n", 20) {
			feed(g, notice(id, P3))
		}
		drainWithin(t, g, time.Hour)
		require.Equal(t, series("m", 1000), took(sink, P1))
		require.Equal(t, series("n", 20), took(sink, P3))
		for _, sink := range crowd {
			require.Equal(t, series("n", 20), sink.ids())
		}
		l := lane(g, P3)
		require.Equal(t, uint64(20*501), l.Taken)
		require.Equal(t, l.Taken, l.Enqueued+l.Replayed)
		require.Equal(t, SessionEnds{Closed: 1, Shutdown: 501}, g.Stats().Ended)
	})

	inBubble(t, "it waits for a Push that takes its time with a full outbox behind it", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{BatchSize: 10, OutboxMessages: 10})
		runGateway(t, g)
		s, sink := join(t, g, "s", "u", slowly(400*time.Millisecond))
		feedAll(g, "u", P1, series("m", 60))
		synctest.Wait()
		drainWithin(t, g, time.Hour)
		require.Equal(t, series("m", 60), sink.ids())
		require.Equal(t, ErrGatewayClosed, s.Err())
	})

	// 200 sessions were closed while in a Push that does not return, and were
	// abandoned a second later; another has a Push that goes on.
	for _, row := range []struct {
		name    string
		returns error
		lane    GatewayLane
	}{
		{"take their batch after all", nil, GatewayLane{Received: 201, Enqueued: 201, Taken: 201}},
		{"fail", errors.New("broken pipe"), GatewayLane{Received: 201, Enqueued: 201, Taken: 1, DroppedEnded: 200}},
	} {
		inBubble(t, "Pushes that were abandoned, return during it and "+row.name+" do not cut off one that goes on", func(t *testing.T) {
			for range sized(20, 5) {
				g := newGateway(t, "g", GatewayConfig{})
				done := start(context.Background(), g)
				late, held := newGate(t), newGate(t)
				for _, id := range series("s", 200) {
					join(t, g, id, id, hooked(func(context.Context, []*Message) error {
						<-late.ch
						return row.returns
					}))
					feed(g, note("for "+id, id, P0))
				}
				pass(time.Second) // each has a pusher
				for s := range g.Sessions() {
					require.NoError(t, s.Close())
				}
				pass(2 * time.Second)
				require.EqualValues(t, 200, g.Stats().Hung)
				for _, id := range series("idle", 2000) {
					_, err := g.RegisterSession(SessionConfig{ID: id, UserID: id, Sink: SinkFunc(late.deaf)})
					require.NoError(t, err)
				}
				s, sink := join(t, g, "healthy", "healthy", hooked(held.pass))
				feed(g, note("for healthy", "healthy", P0))
				synctest.Wait()
				down := make(chan error, 1)
				go func() { down <- g.Shutdown(context.Background()) }()
				pass(time.Second)
				require.Empty(t, down)
				go func() { // keeps the lock busy that the end of a session takes
					for range 50 {
						for range g.Sessions() {
						}
					}
				}()
				late.open()
				pass(time.Second)
				require.NoError(t, s.Err())
				require.Empty(t, down)
				held.open()
				if err := <-down; row.returns == nil {
					require.NoError(t, err, "all was taken")
				} else {
					require.ErrorIs(t, err, ErrClosed)
				}
				require.NoError(t, <-done)
				require.Equal(t, []string{"for healthy"}, sink.ids())
				require.Equal(t, row.lane, lane(g, P0))
				require.EqualValues(t, 200, g.Stats().Hung)
			}
		})
	}
}

func TestCloseWithNothingRunning(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, g *Gateway, s *Session){
		"Close":             func(t *testing.T, _ *Gateway, s *Session) { require.NoError(t, s.Close()) },
		"UnregisterSession": func(t *testing.T, g *Gateway, s *Session) { require.NoError(t, g.UnregisterSession(s.ID())) },
		"a RegisterSession that replaces it": func(t *testing.T, g *Gateway, s *Session) {
			join(t, g, "next", s.UserID())
		},
		"Gap": func(_ *testing.T, g *Gateway, _ *Session) { g.Gap() },
	} {
		inBubble(t, name+" does not wait for Sink.Close before Run: Done does", func(t *testing.T) {
			held := newGate(t)
			g := newGateway(t, "g", GatewayConfig{MaxSessionsPerUser: 1})
			s, sink := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
			began := time.Now()
			end(t, g, s)
			require.Zero(t, time.Since(began))
			require.Error(t, s.Err())
			pass(10 * time.Second)
			select {
			case <-s.Done():
				t.Error("Done is closed while Sink.Close goes on")
			default:
			}
			held.open()
			<-s.Done()
			closes, reason := sink.ended()
			require.Equal(t, 1, closes)
			require.Equal(t, s.Err(), reason)
			_ = g.Shutdown(t.Context())
		})
	}
}

// In real time, because in virtual time no Push is in want of a CPU, and none is
// given a little more time. What is measured is CPU, which a busy machine can
// only make less.
func TestGatewayEndSleeps(t *testing.T) {
	noLeaks(t)
	spent := func() time.Duration {
		var u syscall.Rusage
		require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	held, inside := newGate(t), make(chan struct{})
	g := newGateway(t, "g", GatewayConfig{BatchSize: 1, OutboxMessages: 1})
	done := start(context.Background(), g)
	s, _ := join(t, g, "s", "u", hooked(func(ctx context.Context, batch []*Message) error {
		close(inside)
		return held.deaf(ctx, batch)
	}))
	feed(g, note("first", "u", P0))
	<-inside
	feedAll(g, "u", P0, series("m", 5))
	eventually(t, "all are read", func() bool { return lane(g, P0).Received == 6 })
	before := spent()
	require.Error(t, g.Shutdown(canceled))
	require.NoError(t, <-done) // a second later: the Push is abandoned
	require.Less(t, spent()-before, 150*time.Millisecond, "CPU")
	require.EqualValues(t, 1, g.Stats().Hung)
	held.open()
	<-s.Done()
}

func TestBrokerDrain(t *testing.T) {
	inBubble(t, "with a Gateway that nobody runs it returns at the deadline, and Stats tells what was left", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 2})
		require.NoError(t, b.RegisterGateway(g))
		s, _ := join(t, g, "s", "u")
		done := start(context.Background(), b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 10)...)
		}
		synctest.Wait()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, b.Shutdown(ctx))
		require.Equal(t, 5*time.Second, time.Since(began), "StallTimeout is no limit then")
		require.NoError(t, <-done)
		r := receiverStats(t, b, "g")
		require.EqualValues(t, 8, r.Handed)
		var discarded uint64
		for p, l := range b.Stats().Lanes {
			require.Zero(t, l.Queued, "P%d", p)
			discarded += l.Discarded
		}
		require.EqualValues(t, 32, r.Dropped+discarded)
		require.LessOrEqual(t, r.Dropped, uint64(4), "what stood at the head of each lane")
		synctest.Wait()
		require.Equal(t, ErrGap, s.Err())
		conserved(t, b, g)
		require.ErrorIs(t, b.Shutdown(t.Context()), ErrClosed)
		require.ErrorIs(t, g.Shutdown(t.Context()), ErrClosed)
		conserved(t, b, g)
	})

	inBubble(t, "a Gateway that is run 3 s later gets everything", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{InboxCapacity: 2})
		require.NoError(t, b.RegisterGateway(g))
		s, sink := join(t, g, "s", "u")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 10)...)
		}
		synctest.Wait()
		began := time.Now()
		over := start(t.Context(), runLater{g, 3 * time.Second})
		drainWithin(t, b, time.Hour)
		require.Equal(t, 3*time.Second, time.Since(began))
		drainWithin(t, g, time.Hour)
		require.NoError(t, <-over)
		require.Len(t, sink.ids(), 40)
		require.Equal(t, ErrGatewayClosed, s.Err())
		conserved(t, b, g)
	})
}

// runLater is a runner whose Run begins after a while.
type runLater struct {
	runner
	after time.Duration
}

func (r runLater) Run(ctx context.Context) error { nap(r.after); return r.runner.Run(ctx) }

// However it ends, each call of Publish and each message is in exactly one
// counter, and what was accepted came once or is counted as lost.
func TestEverythingIsCounted(t *testing.T) {
	type both struct {
		b      *Broker
		g      *Gateway
		cancel func() // the ctx of both Runs
	}
	ways := []struct {
		name  string
		whole bool // nothing may be lost
		stop  func(x both) error
	}{
		{"the Broker drains, then the Gateway", true, func(x both) error {
			return errors.Join(x.b.Shutdown(context.Background()), x.g.Shutdown(context.Background()))
		}},
		{"the Gateway drains first", false, func(x both) error {
			return errors.Join(x.g.Shutdown(context.Background()), x.b.Shutdown(context.Background()))
		}},
		{"both drain at once", false, func(x both) error {
			other := make(chan error, 1)
			go func() { other <- x.g.Shutdown(context.Background()) }()
			return errors.Join(x.b.Shutdown(context.Background()), <-other)
		}},
		{"the ctx of Run ends", false, func(x both) error { x.cancel(); return nil }},
		{"Shutdown has no time", false, func(x both) error { return errors.Join(x.b.Shutdown(canceled), x.g.Shutdown(canceled)) }},
		{"the Gateway is unregistered, then both drain", false, func(x both) error {
			return errors.Join(x.b.Unregister("g"), x.b.Shutdown(context.Background()), x.g.Shutdown(context.Background()))
		}},
	}
	const users, publishers, most = 6, 8, 3000
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			withProcs(t, func(t *testing.T) {
				from := seed(t)
				for round := range sized(5, 1) {
					b := newBroker(t, BrokerConfig{QueueCapacity: lanes(64)})
					g := newGateway(t, "g", GatewayConfig{BatchSize: 4, InboxCapacity: 8, SlowAfter: patient})
					require.NoError(t, b.RegisterGateway(g))
					var sinks []*ledger
					for _, u := range series("u", users) {
						_, sink := join(t, g, u, u, hooked(func(context.Context, []*Message) error { runtime.Gosched(); return nil }))
						sinks = append(sinks, sink)
					}
					ctx, cancel := context.WithCancel(context.Background())
					ranB, ranG := start(ctx, b), start(ctx, g)

					var calls atomic.Uint64
					var accepted [publishers]map[string]bool // the value: for one user
					var wg sync.WaitGroup
					for k := range publishers {
						accepted[k] = make(map[string]bool)
						r := rand.New(rand.NewPCG(from, uint64(round*publishers+k)))
						wg.Go(func() {
							for i := range most {
								n := note(fmt.Sprint(k, "-", i), fmt.Sprint("u", r.IntN(users)+1), Priority(r.IntN(NumPriorities)))
								if r.IntN(20) == 0 {
									n = notice(n.ID, n.Priority)
								}
								publish := b.Publish
								if r.IntN(2) == 0 {
									publish = func(n *Notification) error { return b.PublishWait(context.Background(), n) }
								}
								calls.Add(1)
								switch err := publish(n); {
								case err == nil:
									accepted[k][n.ID] = n.UserID != AllUsers
								case errors.Is(err, ErrClosed):
									return
								case !errors.Is(err, ErrQueueFull):
									t.Error(err)
									return
								}
							}
						})
					}
					eventually(t, "some hundred are delivered", func() bool { return g.Stats().Batches > 50 })
					err := way.stop(both{b, g, cancel})
					finished(t, "publishers", &wg)
					errB, errG := <-ranB, <-ranG
					cancel()

					came := make(map[string]int)
					total := uint64(0)
					for _, sink := range sinks {
						for _, id := range sink.ids() {
							came[id]++
							total++
						}
					}
					all := make(map[string]int) // the most that may come
					for _, part := range accepted {
						for id, single := range part {
							if all[id] = users; single {
								all[id] = 1
							}
						}
					}
					for id, n := range came {
						if n > all[id] {
							t.Fatalf("%s came %d times, not %d", id, n, all[id])
						}
					}
					accounted(t, b, calls.Load())
					conserved(t, b, g)
					var taken uint64
					for p, l := range g.Stats().Lanes {
						taken += l.Taken
						require.Zero(t, l.Pending, "P%d", p)
						require.Zero(t, b.Stats().Lanes[p].Queued, "P%d", p)
					}
					require.Equal(t, taken, total)
					require.Zero(t, g.Stats().Sessions)
					if way.whole {
						require.NoError(t, err)
						require.NoError(t, errB)
						require.NoError(t, errG)
						for id, n := range all {
							if came[id] != n {
								t.Fatalf("%s came %d times, not %d", id, came[id], n)
							}
						}
					}
				}
			})
		})
	}
}
