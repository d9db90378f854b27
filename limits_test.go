package notification

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Numbers that are as large as they can be, and values that are not quite of
// the type that is expected.

// forEver is the longest time there is.
const forEver = time.Duration(math.MaxInt64)

// In real time, because the clock of a bubble is so far back that no sum of it
// and a duration overflows. Each test waits for events, and for so long that it
// means never; a Gateway that hangs is left where it is, because it would keep
// the test too.
func TestForEver(t *testing.T) {
	const never = 5 * time.Minute

	// gateway returns a Gateway that runs, with a session to fence with: when
	// fence returns, the reader has looked at what there is to do.
	gateway := func(t *testing.T, cfg GatewayConfig) (g *Gateway, fence func()) {
		t.Helper()
		g = newGateway(t, "g", cfg)
		done := start(context.Background(), g)
		t.Cleanup(func() {
			if t.Failed() {
				return
			}
			require.NoError(t, g.Shutdown(context.Background()))
			require.NoError(t, <-done)
		})
		came := make(chan struct{}, 1)
		join(t, g, "fence", "fence", hooked(func(context.Context, []*Message) error { came <- struct{}{}; return nil }))
		n := 0
		return g, func() {
			t.Helper()
			for range 3 {
				n++
				feed(g, note(fmt.Sprint("fence", n), "fence", P0))
				select {
				case <-came:
				case <-time.After(never):
					t.Fatal("nothing is delivered any more")
				}
			}
		}
	}

	t.Run("with a SweepInterval of it the Gateway delivers, and sweeps nobody", func(t *testing.T) {
		g, fence := gateway(t, GatewayConfig{SweepInterval: forEver, SessionTimeout: 1})
		s, _ := join(t, g, "s", "u")
		fence()
		fence()
		require.NoError(t, s.Err())
	})
	t.Run("with a SessionTimeout of it nobody is swept", func(t *testing.T) {
		g, fence := gateway(t, GatewayConfig{SweepInterval: time.Millisecond, SessionTimeout: forEver})
		s, _ := join(t, g, "s", "u")
		mine, _ := join(t, g, "mine", "u", func(cfg *SessionConfig, _ *ledger) { cfg.Timeout = forEver })
		brief, _ := join(t, g, "brief", "u", func(cfg *SessionConfig, _ *ledger) { cfg.Timeout = 1 })
		mine.Touch()
		<-brief.Done()
		fence()
		require.Equal(t, ErrSessionExpired, brief.Err())
		require.NoError(t, s.Err())
		require.NoError(t, mine.Err())
	})
	t.Run("with a HistoryTTL of it a user who is offline is remembered", func(t *testing.T) {
		g, fence := gateway(t, GatewayConfig{HistoryMessages: 1024, HistoryTTL: forEver})
		s, _ := join(t, g, "s", "u")
		require.NoError(t, s.Close())
		<-s.Done()
		fence()
		feed(g, note("missed", "u", P0))
		fence()
		got := make(chan string, 1)
		join(t, g, "again", "u", after(s.Cursor()),
			hooked(func(_ context.Context, batch []*Message) error { got <- batch[0].Notification().ID; return nil }))
		select {
		case id := <-got:
			require.Equal(t, "missed", id)
		case <-time.After(never):
			t.Fatal("it was not replayed")
		}
	})
	for p := P1; p <= P3; p++ {
		t.Run("with a MaxDelay of it a "+p.String()+" waits until something else makes its session due", func(t *testing.T) {
			var delays [NumPriorities]time.Duration
			delays[p] = forEver
			g, fence := gateway(t, GatewayConfig{MaxDelay: delays, BatchSize: 5})
			got := make(chan []string, 9)
			join(t, g, "s", "u", hooked(func(_ context.Context, batch []*Message) error { got <- ids(batch); return nil }))
			next := func() []string {
				t.Helper()
				select {
				case batch := <-got:
					return batch
				case <-time.After(never):
					t.Fatal("nothing came")
					return nil
				}
			}
			feed(g, note("waits", "u", p))
			fence()
			require.Empty(t, got)
			feed(g, note("urgent", "u", P0))
			require.Equal(t, []string{"urgent", "waits"}, next())
			feedAll(g, "u", p, series("m", 4))
			fence()
			require.Empty(t, got)
			feed(g, note("m5", "u", p))
			require.Equal(t, series("m", 5), next(), "as many as a batch holds")
		})
	}
	t.Run("with a StallTimeout of it a full receiver is waited for", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: forEver})
		runBroker(t, b)
		s, other := route(t, b, newStation("r", 1), "u"), route(t, b, newStation("other", 9), "v")
		publishTo(t, b, "u", P1, series("m", 3)...)
		for i := range 3 {
			publishTo(t, b, "v", P0, fmt.Sprint("fence", i))
			<-other.in[P0]
		}
		require.Zero(t, s.gaps.Load())
		for _, want := range series("m", 3) {
			select {
			case m := <-s.in[P1]:
				require.Equal(t, want, m.Notification().ID)
			case <-time.After(never):
				t.Fatal("it is not handed over")
			}
		}
		require.False(t, receiverStats(t, b, "r").Stuck)
	})
	t.Run("with a SlowAfter of it no Push is slow, whatever arrives and however often is swept", func(t *testing.T) {
		g, fence := gateway(t, GatewayConfig{BatchSize: 1, OutboxMessages: 2, SlowAfter: forEver, SweepInterval: time.Millisecond})
		held, inside := newGate(t), make(chan struct{}, 99)
		s, _ := join(t, g, "s", "u", hooked(func(ctx context.Context, batch []*Message) error {
			inside <- struct{}{}
			return held.pass(ctx, batch)
		}))
		feed(g, note("first", "u", P0))
		<-inside
		feedAll(g, "u", P1, series("m", 10))
		fence()
		for range 60 {
			brief, _ := join(t, g, "brief", "v", func(cfg *SessionConfig, _ *ledger) { cfg.Timeout = 1 })
			<-brief.Done()
		}
		feedAll(g, "u", P1, series("n", 2))
		fence()
		require.NoError(t, s.Err())
		held.open()
		eventually(t, "all are taken", func() bool { return lane(g, P1).Taken == 12 })
	})
}

// These say most where an int has 32 bits: eight times OutboxMessages does not
// fit into one.
func TestHugeOutboxes(t *testing.T) {
	for _, n := range []int{1 << 28, 1<<31/8 - 1, 1<<30 - 1, 1 << 30, math.MaxInt32} {
		cfg := GatewayConfig{OutboxMessages: n, BatchSize: 10, InboxCapacity: 4096, Pushers: 1, MaxPushers: 1}
		inBubble(t, fmt.Sprintf("a session with OutboxMessages %d is not slow, and everything is read", n), func(t *testing.T) {
			g := newGateway(t, "g", cfg)
			runGateway(t, g)
			held := newGate(t)
			s, sink := join(t, g, "s", "u", hooked(held.pass))
			feed(g, note("first", "u", P0))
			synctest.Wait() // it is being pushed
			for p := P0; p <= P3; p++ {
				feedAll(g, "u", p, series(p.String(), 500))
			}
			pass(500 * time.Millisecond)
			require.NoError(t, s.Err())
			for p := P0; p <= P3; p++ {
				require.GreaterOrEqual(t, lane(g, p).Received, uint64(500), "P%d", p)
			}
			held.open()
			pass(time.Second)
			require.Len(t, sink.ids(), 2001)
			require.NoError(t, s.Err())
		})
		inBubble(t, fmt.Sprintf("SlowDropOldest with OutboxMessages %d drops nothing", n), func(t *testing.T) {
			cfg := cfg
			cfg.SlowPolicy = SlowDropOldest
			g := newGateway(t, "g", cfg)
			runGateway(t, g)
			held := newGate(t)
			s, sink := join(t, g, "s", "u", hooked(held.pass))
			feed(g, note("first", "u", P0))
			synctest.Wait()
			feedAll(g, "u", P3, series("m", 500))
			pass(500 * time.Millisecond)
			held.open()
			pass(time.Second)
			require.Zero(t, s.Dropped())
			require.Len(t, sink.ids(), 501)
		})
	}
	inBubble(t, "a history of 2^31-1 messages replays", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{OutboxMessages: 1 << 28, HistoryMessages: math.MaxInt32, HistoryTotal: math.MaxInt32})
		runGateway(t, g)
		from := offline(t, g, "u")
		feedAll(g, "u", P1, series("m", 500))
		pass(time.Second)
		require.Equal(t, series("m", 500), behind(t, g, "u", from))
	})
}

func TestDedupSpanOfAWaiter(t *testing.T) {
	inBubble(t, "an ID is as old as its acceptance, however long PublishWait waited", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{DedupSize: 1, QueueCapacity: lanes(1)})
		publishTo(t, b, "u", P1, "first")
		result := make(chan error, 1)
		go func() { result <- b.PublishWait(context.Background(), note("second", "u", P1)) }()
		pass(time.Hour)
		require.Equal(t, time.Hour, b.Stats().DedupSpan, "of the first")
		runBroker(t, b)
		require.NoError(t, <-result)
		require.Zero(t, b.Stats().DedupSpan, "of the second")
		pass(time.Minute)
		require.Equal(t, time.Minute, b.Stats().DedupSpan)
		require.NoError(t, b.Publish(note("second", "u", P1)))
		require.Equal(t, time.Minute, b.Stats().DedupSpan, "a repeat changes nothing")
	})
}

func TestCapacitiesThatCannotBe(t *testing.T) {
	sizes := []int{math.MaxInt}
	if strconv.IntSize == 64 {
		sizes = append(sizes, math.MaxInt/8+1, 1<<(strconv.IntSize-14)) // the last is 2^50
	}
	for _, n := range sizes {
		t.Run(fmt.Sprintf("a QueueCapacity of %d is ErrInvalid and named, in each lane", n), func(t *testing.T) {
			for p := range NumPriorities {
				var cfg BrokerConfig
				cfg.QueueCapacity[p] = n
				require.NotPanics(t, func() {
					_, err := NewBroker(cfg)
					require.ErrorIs(t, err, ErrInvalid)
					require.ErrorContains(t, err, "QueueCapacity")
				})
			}
		})
	}
}

func TestHugeBatches(t *testing.T) {
	t.Run("with a BatchSize of a million a pusher takes the memory that its batches need", func(t *testing.T) {
		noLeaks(t)
		before := heap()
		g := newGateway(t, "g", GatewayConfig{BatchSize: 1_000_000, Pushers: 16})
		runGateway(t, g)
		took := make(chan int, 100)
		for _, u := range series("u", 50) {
			_, err := g.RegisterSession(SessionConfig{ID: u, UserID: u, Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
				took <- len(batch)
				return nil
			})})
			require.NoError(t, err)
		}
		feed(g, notice("to all", P0))
		for range 50 {
			require.Equal(t, 1, <-took)
		}
		require.Less(t, heap()-before, int64(8<<20), "16 pushers with room for a million each would be 128 MiB")
	})
	inBubble(t, "a batch of thousands arrives in one piece", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{BatchSize: 1_000_000})
		runGateway(t, g)
		_, sink := join(t, g, "s", "u")
		feedAll(g, "u", P3, series("m", 5000))
		pass(time.Second)
		require.Equal(t, series("m", 5000), sink.ids())
		require.Len(t, sink.got(), 1)
	})
}

// A dressedGateway is a Receiver that is a Gateway in all but its type.
type dressedGateway struct {
	*Gateway
	name string
}

func TestEmbeddedGateway(t *testing.T) {
	inBubble(t, "RegisterReceiver of a struct that embeds one routes its users, or is ErrInvalid", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		runBroker(t, b)
		runGateway(t, g)
		_, sink := join(t, g, "s", "u")
		if err := b.RegisterReceiver(dressedGateway{g, "dressed"}); err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Empty(t, b.Stats().Receivers)
			require.NoError(t, b.RegisterGateway(g), "nothing was registered")
		}
		_, other := join(t, g, "t", "v")
		publishTo(t, b, "u", P0, "to u")
		publishTo(t, b, "v", P0, "to v")
		synctest.Wait()
		require.Equal(t, []string{"to u"}, sink.ids())
		require.Equal(t, []string{"to v"}, other.ids())
		require.Zero(t, b.Stats().Lanes[P0].Unrouted)
		conserved(t, b, g)
	})
}

func TestFedByHand(t *testing.T) {
	for name, bad := range map[string]*Notification{
		"an AccountUpdate to AllUsers":   {ID: "bad", UserID: AllUsers, Priority: P2, Payload: AccountUpdate{UserID: "victim", Balance: 1}},
		"a TradeExecuted to AllUsers":    {ID: "bad", UserID: AllUsers, Priority: P2, Payload: TradeExecuted{TradeID: "1"}},
		"a notification without an ID":   {UserID: "u", Priority: P2, Payload: AccountUpdate{UserID: "u"}},
		"a notification without a user":  {ID: "bad", Priority: P2, Payload: AccountUpdate{UserID: "u"}},
		"a notification to a long user":  {ID: "bad", UserID: string(make([]byte, 257)), Priority: P2, Payload: AccountUpdate{UserID: "u"}},
		"a notification with a pointer":  {ID: "bad", UserID: "u", Priority: P2, Payload: &AccountUpdate{UserID: "u"}},
		"a notification without payload": {ID: "bad", UserID: "u", Priority: P2},
	} {
		inBubble(t, name+" in an inbox goes to nobody and is counted", func(t *testing.T) {
			g := newGateway(t, "g", GatewayConfig{HistoryMessages: 1024})
			runGateway(t, g)
			s, sink := join(t, g, "s", "u")
			_, other := join(t, g, "t", "v")
			cursor := s.Cursor()
			var m *Message
			require.NotPanics(t, func() { m = NewMessage(bad) })
			g.Inbox()[P2] <- m
			feed(g, note("good", "u", P2), notice("notice", P2))
			pass(time.Second)
			require.Equal(t, []string{"good", "notice"}, sink.ids())
			require.Equal(t, []string{"notice"}, other.ids())
			l := lane(g, P2)
			require.EqualValues(t, 2, l.Received)
			require.EqualValues(t, 3, l.Enqueued)
			require.Contains(t, fmt.Sprintf("%+v", l), " Invalid:1 ")

			_, again := join(t, g, "again", "u", after(cursor))
			pass(time.Second)
			require.Equal(t, []string{"good", "notice"}, again.ids(), "the history has not kept it")
		})
	}
}

func TestSizesThat32BitsCannotAddress(t *testing.T) {
	t.Run("no size that is accepted panics, with addresses of 32 bits either", func(t *testing.T) { // with GOARCH=386
		for _, cfg := range []BrokerConfig{{QueueCapacity: [NumPriorities]int{1 << 30, 1, 1, 1}}, {DedupSize: math.MaxInt>>6 + 1}} {
			require.NotPanics(t, func() {
				_, err := NewBroker(cfg)
				require.ErrorIs(t, err, ErrInvalid)
			})
		}
	})
}

func TestInboxesThatCannotBe(t *testing.T) {
	t.Run("an InboxCapacity beyond what a lane of the Broker may have is ErrInvalid and named", func(t *testing.T) {
		for _, n := range []int{maxQueue + 1, 1 << 30, 1<<31 - 1} {
			_, err := NewGateway("g", GatewayConfig{InboxCapacity: n})
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, "InboxCapacity")
		}
	})
}
