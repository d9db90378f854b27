package notification

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the tests of this package share. Those that depend on time run in a
// bubble of testing/synctest, where it is virtual and pass moves it; the others
// wait for events.

func TestMain(m *testing.M) {
	flag.Parse()
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // its workers are not ours, and would be waited for
	}
	if n := goroutines(before); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, stacks())
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had
// a while to end.
func goroutines(want int) int {
	give := time.Now().Add(time.Minute)
	for runtime.NumGoroutine() > want && time.Now().Before(give) {
		<-time.After(time.Millisecond)
	}
	return runtime.NumGoroutine()
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// noLeaks lets t fail if it leaves a goroutine behind. Call it first, so that it
// looks last. It is not for parallel tests, and bubbles need it not: they insist
// on it themselves.
func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if n := goroutines(before); n > before {
			t.Errorf("%d goroutines before, %d after:\n%s", before, n, stacks())
		}
	})
}

// pass lets d of a bubble's time pass, and what it sets going come to rest.
func pass(d time.Duration) {
	nap(d)
	synctest.Wait()
}

// nap takes d of a bubble's time: what a slow sink does, say.
func nap(d time.Duration) { time.Sleep(d) }

// inBubble runs f as a subtest with virtual time.
func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// finished waits for the goroutines of wg, for so long that it means never.
func finished(t testing.TB, what string, wg *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends with those of wg
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		t.Fatalf("waited in vain: %s\n%s", what, stacks())
	}
}

// eventually waits for what has no channel to wait on, outside of bubbles. How
// long that takes is not asserted: the bound is for what never comes.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(5 * time.Minute); !holds(); {
		if time.Now().After(give) {
			t.Fatalf("waited in vain: %s\n%s", what, stacks())
		}
		<-time.After(100 * time.Microsecond)
	}
}

// seed returns what a random test begins with: NOTIFICATION_SEED, or one of its
// own, which a failing test tells so that it can be run again with it.
func seed(t testing.TB) uint64 {
	s := rand.Uint64()
	if env := os.Getenv("NOTIFICATION_SEED"); env != "" {
		var err error
		s, err = strconv.ParseUint(env, 10, 64)
		require.NoError(t, err, "NOTIFICATION_SEED")
	}
	t.Logf("NOTIFICATION_SEED=%d", s)
	return s
}

// withProcs runs f with as many threads at GOMAXPROCS 1, 2 and 8: one shows who
// waits by spinning, eight on two cores who is preempted at the worst moment.
func withProcs(t *testing.T, f func(t *testing.T)) {
	for _, n := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("GOMAXPROCS %d", n), func(t *testing.T) {
			noLeaks(t)
			before := runtime.GOMAXPROCS(n)
			t.Cleanup(func() { runtime.GOMAXPROCS(before) })
			f(t)
		})
	}
}

// sized is a number of repetitions: under the race detector, which makes
// everything ten times slower, the second.
func sized(all, race int) int {
	if underRace {
		return race
	}
	return all
}

// heap returns how many bytes are reachable.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what a sync.Pool held survives the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// note returns a notification with just what the Broker looks at.
func note(id, userID string, p Priority) *Notification {
	return &Notification{ID: id, UserID: userID, Priority: p, Payload: AccountUpdate{UserID: userID}}
}

// notice is note for everybody.
func notice(id string, p Priority) *Notification {
	return &Notification{ID: id, UserID: AllUsers, Priority: p, Payload: SystemNotice{Title: id}}
}

// freshID returns an ID as New makes it.
func freshID() string { return New("", nil, "").ID }

// ids returns the IDs of messages, in their order.
func ids(messages []*Message) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.n.ID
	}
	return all
}

// series returns prefix1 to prefixN.
func series(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = prefix + strconv.Itoa(i+1)
	}
	return all
}

func newBroker(t testing.TB, cfg BrokerConfig) *Broker {
	t.Helper()
	b, err := NewBroker(cfg)
	require.NoError(t, err)
	return b
}

func newGateway(t testing.TB, id string, cfg GatewayConfig) *Gateway {
	t.Helper()
	g, err := NewGateway(id, cfg)
	require.NoError(t, err)
	return g
}

// patient is a SlowAfter for real time and sinks that are quick: on a busy machine
// one of them may be without a CPU for as long as the default, with the outbox full
// behind it.
const patient = time.Minute

// lanes is a QueueCapacity, or the like, that is the same for every lane.
func lanes[T any](v T) [NumPriorities]T { return [NumPriorities]T{v, v, v, v} }

// A runner is a Broker or a Gateway.
type runner interface {
	Run(ctx context.Context) error
	Shutdown(ctx context.Context) error
}

// start starts r.Run and returns where its result comes.
func start(ctx context.Context, r runner) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }() // ends with Run; its result is read by whoever wants it
	return done
}

// runBroker starts b and at the end of the test stops it, at once if the test
// has not shut it down; its Run must return nil.
func runBroker(t testing.TB, b *Broker) { run(t, b, b.life) }

// runGateway is runBroker for a Gateway.
func runGateway(t testing.TB, g *Gateway) { run(t, g, g.life) }

func run(t testing.TB, r runner, l *lifecycle) {
	done := start(context.Background(), r)
	t.Cleanup(func() {
		_ = r.Shutdown(canceled) // of a test that has shut it down itself: nothing
		require.NoError(t, <-done, "Run")
	})
	for !begun(l) {
		runtime.Gosched() // a test that ends at once must not overtake Run
	}
}

func begun(l *lifecycle) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

// canceled is a ctx that has ended.
var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// drain shuts r down and requires that nothing was lost.
func drain(t testing.TB, r runner) {
	t.Helper()
	require.NoError(t, r.Shutdown(context.Background()))
}

// drainWithin is drain with a limit, for a drain that would never end if it
// failed.
func drainWithin(t testing.TB, r runner, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	require.NoError(t, r.Shutdown(ctx))
}

// inTheMiddle lets f run the next time that p is passed, between the steps of
// what races it.
func inTheMiddle(t testing.TB, p point, f func()) {
	t.Helper()
	var once sync.Once
	pause = func(passed point) {
		if passed == p {
			once.Do(f)
		}
	}
	t.Cleanup(func() { pause = nil })
}

// scheduled returns how many times goroutines have gone from runnable to
// running, or an eighth of it: that is what the runtime counts.
func scheduled() (n uint64) {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	for _, c := range sample[0].Value.Float64Histogram().Counts {
		n += c
	}
	return n
}

// An onRecord is a slog.Handler that calls a function, on the goroutine that
// logs.
type onRecord func(r slog.Record)

func (f onRecord) Enabled(context.Context, slog.Level) bool      { return true }
func (f onRecord) Handle(_ context.Context, r slog.Record) error { f(r); return nil }
func (f onRecord) WithAttrs([]slog.Attr) slog.Handler            { return f }
func (f onRecord) WithGroup(string) slog.Handler                 { return f }

// A station is a Receiver from which the test takes what arrives.
type station struct {
	id    string
	in    [NumPriorities]chan *Message
	gaps  atomic.Int32 // calls of Gap
	onGap func()       // what Gap does beside counting
}

func newStation(id string, capacity int) *station {
	s := &station{id: id}
	for p := range s.in {
		s.in[p] = make(chan *Message, capacity)
	}
	return s
}

func (s *station) ID() string { return s.id }

func (s *station) Inbox() (in Inbox) {
	for p, ch := range s.in {
		in[p] = ch
	}
	return in
}

func (s *station) Gap() {
	s.gaps.Add(1)
	if s.onGap != nil {
		s.onGap()
	}
}

// poll takes what is there, P0 first, and waits for nothing.
func (s *station) poll() (got []*Message) {
	for p := P0; p <= P3; p++ {
		got = append(got, s.pollLane(p)...)
	}
	return got
}

func (s *station) pollLane(p Priority) []*Message { return poll(s.in[p]) }

// offered takes the next message of a lane, which must be there, and waits for nothing.
// Without room for more than that pollLane may get the one behind it, too: whoever sends
// goes on meanwhile.
func (s *station) offered(t testing.TB, p Priority) string {
	t.Helper()
	select {
	case m := <-s.in[p]:
		return m.n.ID
	default:
		require.FailNow(t, "nothing is offered", "to %s in %s", s.id, p)
		return ""
	}
}

// fetch takes n messages of a lane, waiting for each, and gives up when the test
// ends.
func (s *station) fetch(t testing.TB, p Priority, n int) {
	for range n {
		select {
		case <-s.in[p]:
		case <-t.Context().Done():
			return
		}
	}
}

// consume gives f each message, on a goroutine of its own, until it is told to
// stop; then what is there already is taken too.
func (s *station) consume(f func(m *Message)) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(done)
		for {
			select {
			case m := <-s.in[P0]:
				f(m)
				continue
			default:
			}
			select {
			case m := <-s.in[P0]:
				f(m)
			case m := <-s.in[P1]:
				f(m)
			case m := <-s.in[P2]:
				f(m)
			case m := <-s.in[P3]:
				f(m)
			case <-quit:
				for _, m := range s.poll() {
					f(m)
				}
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-done })
}

// route registers s and routes users to it.
func route(t testing.TB, b *Broker, s *station, users ...string) *station {
	t.Helper()
	require.NoError(t, b.RegisterReceiver(s))
	for _, u := range users {
		require.NoError(t, b.Subscribe(u, s.id))
	}
	return s
}

// listen subscribes a channel to everything, which shows in what order the
// dispatcher takes messages.
func listen(t testing.TB, b *Broker, id string, capacity int, overflow Overflow) chan *Message {
	t.Helper()
	ch := make(chan *Message, capacity)
	require.NoError(t, b.SubscribeGlobal(id, ch, overflow))
	return ch
}

// poll takes what is in ch, and waits for nothing.
func poll(ch <-chan *Message) (got []*Message) {
	for {
		select {
		case m, ok := <-ch:
			if !ok {
				return got
			}
			got = append(got, m)
		default:
			return got
		}
	}
}

// conserved requires that what went in came out or was counted, at every stage.
// It and accounted are where the equations between the counters stand.
// It holds at rest: after a Shutdown, or a synctest.Wait with nobody at work.
func conserved(t testing.TB, b *Broker, gateways ...*Gateway) {
	t.Helper()
	s := b.Stats()
	for p, l := range s.Lanes {
		require.Equal(t, l.Published, l.Routed+l.Unrouted+l.Discarded+uint64(l.Queued), "P%d: Published = Routed + Unrouted + Discarded + Queued: %+v", p, counters(l))
		require.Equal(t, l.Routed+l.Unrouted, l.Latency.Count(), "P%d: a latency for each message taken off the lane", p)
	}
	handed := make(map[string]uint64)
	for _, r := range s.Receivers {
		if !r.Global {
			handed[r.ID] = r.Handed
		}
	}
	var departed uint64
	for _, g := range gateways {
		gs := g.Stats()
		balanced(t, g)
		var got uint64
		for p, l := range gs.Lanes {
			got += l.Received + l.Invalid + l.Discarded + uint64(len(g.inbox[p]))
		}
		if there, ok := handed[gs.ID]; ok {
			require.Equal(t, there, got, "gateway %q: Handed = Received + Invalid + Discarded + what its inbox holds", gs.ID)
		} else {
			departed += got
		}
	}
	require.LessOrEqual(t, departed, s.Departed.Handed, "gateways that left have at most what was handed to those that left")
}

// balanced is the part of conserved that a Gateway answers for alone: what went
// into its outboxes came out of them or was counted.
func balanced(t testing.TB, g *Gateway) {
	t.Helper()
	for p, l := range g.Stats().Lanes {
		require.Equal(t, l.Enqueued+l.Replayed, l.Taken+l.DroppedSlow+l.DroppedEnded+uint64(l.Pending), "gateway %q, P%d: Enqueued + Replayed = Taken + DroppedSlow + DroppedEnded + Pending", g.ID(), p)
	}
}

// counters is l without its histogram, to print.
func counters(l BrokerLane) BrokerLane {
	l.Latency = Histogram{}
	return l
}

// accounted requires that each call of Publish or PublishWait shows in exactly
// one counter.
func accounted(t testing.TB, b *Broker, calls uint64) {
	t.Helper()
	accountedIn(t, b.Stats(), calls)
}

func accountedIn(t testing.TB, s BrokerStats, calls uint64) {
	t.Helper()
	sum := s.Deduplicated + s.Invalid + s.RefusedClosed
	for _, l := range s.Lanes {
		sum += l.Published + l.Rejected
	}
	require.Equal(t, calls, sum, "calls = Published + Deduplicated + Rejected + Invalid + RefusedClosed")
}

// receiverStats returns the entry of a gateway, receiver or global subscriber.
func receiverStats(t testing.TB, b *Broker, id string) ReceiverStats {
	t.Helper()
	for _, r := range b.Stats().Receivers {
		if r.ID == id {
			return r
		}
	}
	t.Fatalf("no receiver %q", id)
	return ReceiverStats{}
}
