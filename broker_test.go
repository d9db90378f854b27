package notification

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNewBroker(t *testing.T) {
	for name, cfg := range map[string]BrokerConfig{
		"DedupSize -1":         {DedupSize: -1},
		"DedupSize":            {DedupSize: math.MaxInt},
		"QueueCapacity[P2] -1": {QueueCapacity: [NumPriorities]int{P2: -1}},
		"QueueCapacity[P3]":    {QueueCapacity: [NumPriorities]int{P3: math.MaxInt}},
		"StallTimeout -1ns":    {StallTimeout: -1},
	} {
		t.Run("a config that cannot be is ErrInvalid, and the error names "+name, func(t *testing.T) {
			b, err := NewBroker(cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, name)
			require.Nil(t, b)
		})
	}

	t.Run("the zero config has the documented defaults", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		require.Equal(t, 10_000, b.cfg.DedupSize)
		require.Equal(t, [NumPriorities]int{10_000, 50_000, 100_000, 50_000}, b.cfg.QueueCapacity)
		require.Equal(t, [NumPriorities]int{-1, 1000, 100, 50}, b.cfg.RoundQuota)
		require.Equal(t, time.Second, b.cfg.StallTimeout)
		for p, l := range b.Stats().Lanes {
			require.Equal(t, BrokerLane{Capacity: b.cfg.QueueCapacity[p]}, counters(l))
		}
	})

	t.Run("what is set is kept, and the rest has its default", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 1, QueueCapacity: [NumPriorities]int{P1: 7}, RoundQuota: [NumPriorities]int{P2: -1}, StallTimeout: time.Hour})
		require.Equal(t, 1, b.cfg.DedupSize)
		require.Equal(t, [NumPriorities]int{10_000, 7, 100_000, 50_000}, b.cfg.QueueCapacity)
		require.Equal(t, [NumPriorities]int{-1, 1000, -1, 50}, b.cfg.RoundQuota)
		require.Equal(t, time.Hour, b.cfg.StallTimeout)
	})
}

func TestBrokerShutdown(t *testing.T) {
	inBubble(t, "from its beginning on everything new is refused with ErrClosed", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 0), "u")
		done := start(t.Context(), b)
		publishTo(t, b, "u", P1, "1", "2")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- b.Shutdown(context.Background()) }()
		refuses := func() {
			require.ErrorIs(t, b.Publish(note("x", "u", P1)), ErrClosed)
			require.ErrorIs(t, b.PublishWait(t.Context(), note("x", "u", P1)), ErrClosed)
			require.ErrorIs(t, b.RegisterReceiver(newStation("s", 1)), ErrClosed)
			require.ErrorIs(t, b.RegisterGateway(newGateway(t, "g", GatewayConfig{})), ErrClosed)
			require.ErrorIs(t, b.SubscribeGlobal("all", make(chan *Message), Wait), ErrClosed)
		}
		synctest.Wait()
		refuses()
		require.Equal(t, "1", (<-s.in[P1]).n.ID)
		require.Equal(t, "2", (<-s.in[P1]).n.ID)
		require.NoError(t, <-down)
		require.NoError(t, <-done)
		refuses()
		require.NoError(t, b.Subscribe("v", "r"), "tables may change")
		require.NoError(t, b.Unregister("r"))
		accounted(t, b, 6)
		conserved(t, b)
	})

	inBubble(t, "a receiver that pauses for longer than StallTimeout and goes on loses nothing", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("", 10)...)
		synctest.Wait()
		var got []string
		time.AfterFunc(3*time.Second, func() {
			for range 10 {
				got = append(got, (<-s.in[P1]).n.ID)
				nap(2 * time.Second)
			}
		})
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()))
		require.Equal(t, 19*time.Second, time.Since(began), "until the ninth was taken and the tenth had room")
		pass(time.Minute)
		require.Equal(t, series("", 10), got)
		require.Equal(t, progress{handed: 10}, progressOf(t, b, s))
	})

	inBubble(t, "a receiver that was stuck when it began is waited for as well", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: lanes(5)})
		s := route(t, b, newStation("r", 1), "u")
		blocked := route(t, b, newStation("q", 0), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2")
		pass(time.Second)
		publishTo(t, b, "v", P1, "3") // behind which the others are not dropped at once
		publishTo(t, b, "u", P1, "4", "5")
		time.AfterFunc(100*time.Millisecond, func() { <-blocked.in[P1] })
		time.AfterFunc(10*time.Second, func() { s.fetch(t, P1, 3) })
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, progress{gaps: 1, handed: 3, dropped: 1}, progressOf(t, b, s))
	})
}

func TestBrokerShutdownCutShort(t *testing.T) {
	inBubble(t, "with a receiver that takes nothing it returns at the deadline, and Stats tells what was left", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 2), "u")
		done := start(t.Context(), b)
		publishTo(t, b, "u", P1, series("", 10)...)
		publishTo(t, b, "u", P3, series("x", 5)...)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		require.Equal(t, context.DeadlineExceeded, b.Shutdown(ctx))
		require.Equal(t, 5*time.Second, time.Since(began))
		st := b.Stats()
		require.EqualValues(t, 7, st.Lanes[P1].Discarded)
		require.EqualValues(t, 2, st.Lanes[P3].Discarded)
		require.Zero(t, st.Lanes[P1].Queued)
		require.NoError(t, <-done)
		require.Equal(t, progress{gaps: 1, handed: 4, dropped: 2}, progressOf(t, b, s), "what stood at the head of each lane is dropped")
		conserved(t, b)
	})
}

// A load is what 32 publishers do until they are refused with ErrClosed: half of
// them with Publish, half with PublishWait.
type load struct {
	wg       sync.WaitGroup
	calls    atomic.Uint64
	accepted [32][]string // to be read when wg is done
}

func newLoad(t testing.TB, b *Broker) *load {
	l := new(load)
	for k := range l.accepted {
		publish := b.Publish
		if k%2 == 1 {
			publish = func(n *Notification) error { return b.PublishWait(context.Background(), n) }
		}
		l.wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprint(k, "-", i)
				l.calls.Add(1)
				switch err := publish(note(id, "u", Priority(i%NumPriorities))); {
				case err == nil:
					l.accepted[k] = append(l.accepted[k], id)
				case errors.Is(err, ErrClosed):
					return
				case errors.Is(err, ErrQueueFull) && k%2 == 0:
					runtime.Gosched()
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	return l
}

func TestBrokerEndsUnderLoad(t *testing.T) {
	for _, way := range []struct {
		name  string
		whole bool // nothing may be lost
		stop  func(b *Broker, cancel func()) error
	}{
		{"Shutdown drains", true, func(b *Broker, _ func()) error { return b.Shutdown(context.Background()) }},
		{"Shutdown has no time", false, func(b *Broker, _ func()) error { return b.Shutdown(canceled) }},
		{"the ctx of Run ends", false, func(_ *Broker, cancel func()) error { cancel(); return nil }},
		{"one Shutdown drains and another has no time", false, func(b *Broker, _ func()) error {
			other := make(chan error, 1)
			go func() { other <- b.Shutdown(canceled) }()
			return errors.Join(b.Shutdown(context.Background()), <-other)
		}},
		{"the ctx of Run ends during the drain", false, func(b *Broker, cancel func()) error { go cancel(); return b.Shutdown(context.Background()) }},
	} {
		t.Run("when "+way.name+", what was accepted is delivered or counted", func(t *testing.T) {
			withProcs(t, func(t *testing.T) {
				for range sized(15, 5) {
					b := newBroker(t, BrokerConfig{QueueCapacity: lanes(32), DedupSize: 100_000, StallTimeout: time.Hour}) // a consumer without a CPU is not stuck
					delivered := make(map[string]bool)
					stopConsumer := route(t, b, newStation("r", 2), "u").consume(func(m *Message) {
						if delivered[m.n.ID] {
							t.Errorf("%s came twice", m.n.ID)
						}
						delivered[m.n.ID] = true
					})
					ctx, cancel := context.WithCancel(context.Background())
					done := start(ctx, b)
					l := newLoad(t, b)
					eventually(t, "some hundred are delivered", func() bool { return b.Stats().Receivers[0].Handed > 300 })
					err := way.stop(b, cancel)
					finished(t, "publishers", &l.wg)
					ran := <-done
					cancel()
					stopConsumer()

					st := b.Stats()
					lost := st.Receivers[0].Dropped
					for _, l := range st.Lanes {
						lost += l.Discarded
						require.Zero(t, l.Queued)
					}
					all := slices.Concat(l.accepted[:]...)
					missing := 0
					for _, id := range all {
						if !delivered[id] {
							missing++
						}
					}
					require.Equal(t, len(all), len(delivered)+missing, "what came was accepted")
					require.EqualValues(t, lost, missing, "what did not come was counted")
					if way.whole {
						require.NoError(t, err)
						require.NoError(t, ran)
						require.Zero(t, lost)
					}
					accounted(t, b, l.calls.Load())
					conserved(t, b)
				}
			})
		})
	}
}

func TestGlobalSubscriberCallsBack(t *testing.T) {
	inBubble(t, "its consumer may publish, register and unregister receivers, and in the end unsubscribe itself", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "self", 0, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("", 100)...)
		for i := range 50 {
			m := <-all
			id := fmt.Sprint("again-", i)
			publishTo(t, b, m.n.UserID, Priority(i%NumPriorities), id)
			require.NoError(t, b.PublishWait(t.Context(), note(id, m.n.UserID, P1)))
			route(t, b, newStation(id, 1), "u", "v")
			require.NoError(t, b.Unsubscribe("v", id))
			require.NoError(t, b.SubscribeGlobal(id, make(chan *Message, 1), DropNewest))
			b.Stats()
			require.NoError(t, b.UnsubscribeGlobal(id))
			require.NoError(t, b.Unregister(id))
		}
		require.NoError(t, b.UnsubscribeGlobal("self"))
		close(all)
		synctest.Wait()
		require.Zero(t, b.Stats().Users)
		require.Zero(t, b.Stats().Lanes[P1].Queued)
		conserved(t, b)
	})
}

// A caller calls a Broker and a Gateway at random. What it does follows from its
// seed; when, from the scheduler, so that a failure may take a few runs to come
// again.
type caller struct {
	t testing.TB
	r *rand.Rand
	k int
	b *Broker
	g *Gateway

	station *station // its own, while it is registered
	stop    func()   // its consumer

	// atomic, of all callers
	*callerCounts
}

type callerCounts struct{ calls, taken, pushed atomic.Uint64 }

const (
	callers     = 8
	callerUsers = 5
)

func (c *caller) user() string { return fmt.Sprint("user", c.r.IntN(callerUsers)) }

func (c *caller) priority() Priority { return Priority(c.r.IntN(NumPriorities)) }

func (c *caller) id() string { return fmt.Sprint("receiver", c.k) }

func (c *caller) check(err error) {
	if err != nil {
		c.t.Error(err)
	}
}

// come registers a receiver of its own, which is quick or lazy.
func (c *caller) come() {
	c.station = newStation(c.id(), c.r.IntN(4))
	c.check(c.b.RegisterReceiver(c.station))
	lazy := c.r.IntN(3) == 0
	c.stop = c.station.consume(func(*Message) {
		c.taken.Add(1)
		if lazy {
			<-time.After(time.Millisecond)
		}
	})
}

// leave unregisters it, takes what is there and closes its channels.
func (c *caller) leave() {
	c.check(c.b.Unregister(c.id()))
	c.stop()
	for _, ch := range c.station.in {
		close(ch)
	}
	c.station = nil
}

// listen has a global subscriber for a moment, if nobody else has that ID.
func (c *caller) listen() {
	id, ch := fmt.Sprint("global", c.r.IntN(3)), make(chan *Message, c.r.IntN(3))
	if c.b.SubscribeGlobal(id, ch, Overflow(c.r.IntN(2))) != nil {
		return
	}
	for range c.r.IntN(5) {
		runtime.Gosched()
	}
	c.taken.Add(uint64(len(poll(ch))))
	c.check(c.b.UnsubscribeGlobal(id))
	close(ch)
	c.taken.Add(uint64(len(poll(ch))))
}

// session registers a session, or ends the one that has its ID.
func (c *caller) session() {
	id := fmt.Sprint("session", c.r.IntN(callerUsers))
	_, err := c.g.RegisterSession(SessionConfig{ID: id, UserID: c.user(), Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
		c.pushed.Add(uint64(len(batch)))
		return nil
	})})
	if err != nil {
		_ = c.g.UnregisterSession(id)
	}
}

// publish publishes something: now and then what somebody else has published.
func (c *caller) publish(i int) {
	c.calls.Add(1)
	_ = c.b.Publish(note(fmt.Sprint(c.r.IntN(callers), "-", max(0, i-c.r.IntN(10))), c.user(), c.priority()))
}

func (c *caller) publishWait(i int) {
	c.calls.Add(1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.r.IntN(200))*time.Microsecond)
	defer cancel()
	_ = c.b.PublishWait(ctx, note(fmt.Sprint(c.k, "-", i), c.user(), c.priority()))
}

func (c *caller) step(i int) {
	switch c.r.IntN(20) {
	case 0:
		if c.station == nil {
			c.come()
		} else {
			c.leave()
		}
	case 1:
		_ = c.b.Subscribe(c.user(), fmt.Sprint("receiver", c.r.IntN(callers)))
	case 2:
		_ = c.b.Unsubscribe(c.user(), fmt.Sprint("receiver", c.r.IntN(callers)))
	case 3:
		c.listen()
	case 4:
		c.session()
	case 5:
		c.b.Stats()
		c.g.Stats()
	case 6:
		c.calls.Add(1)
		_ = c.b.Publish(note("", c.user(), P1))
	case 7:
		c.publishWait(i)
	case 8:
		c.calls.Add(1)
		_ = c.b.Publish(notice(fmt.Sprint("all", c.k, "-", i), c.priority()))
	default:
		c.publish(i)
	}
}

func TestBrokerUnderRandomCalls(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		s := seed(t)
		b := newBroker(t, BrokerConfig{
			DedupSize: 500, QueueCapacity: [NumPriorities]int{8, 64, 32, 1},
			RoundQuota: [NumPriorities]int{P0: 5, P1: 7, P2: 3, P3: -1}, StallTimeout: 2 * time.Millisecond,
		})
		g := newGateway(t, "gateway", GatewayConfig{Pushers: 2, InboxCapacity: 8, BatchSize: 5, OutboxMessages: 20})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		runGateway(t, g)

		var wg sync.WaitGroup
		counts := new(callerCounts)
		for k := range callers {
			wg.Go(func() {
				c := &caller{t: t, r: rand.New(rand.NewPCG(s, uint64(k))), k: k, b: b, g: g, callerCounts: counts}
				for i := range sized(4_000, 800) {
					c.step(i)
				}
				if c.station != nil {
					c.leave()
				}
			})
		}
		finished(t, "callers", &wg)
		drain(t, b)
		drain(t, g)

		accounted(t, b, counts.calls.Load())
		conserved(t, b, g)
		var received, taken uint64
		for _, l := range g.Stats().Lanes {
			received += l.Received + l.Discarded
			taken += l.Taken
		}
		st := b.Stats()
		require.Empty(t, st.Receivers)
		require.Equal(t, st.Departed.Handed, counts.taken.Load()+received, "what was handed to those that left is what they took")
		require.Equal(t, taken, counts.pushed.Load(), "what was taken is what the sinks saw")
		require.Zero(t, b.routes.users.Size())
	})
}
