package notification

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
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
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" // its workers are not ours
	if n := goroutines(before); code == 0 && n > before && !fuzzing {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, stacks())
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had
// a while to end.
func goroutines(want int) int {
	give := time.Now().Add(5 * time.Second)
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
	case <-time.After(time.Minute):
		t.Fatalf("waited in vain: %s\n%s", what, stacks())
	}
}

// eventually waits for what has no channel to wait on, outside of bubbles. How
// long that takes is not asserted: the bound is for what never comes.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(30 * time.Second); !holds(); {
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
func runBroker(t testing.TB, b *Broker) { run(t, b) }

// runGateway is runBroker for a Gateway.
func runGateway(t testing.TB, g *Gateway) { run(t, g) }

func run(t testing.TB, r runner) {
	done := start(context.Background(), r)
	t.Cleanup(func() {
		_ = r.Shutdown(canceled) // of a test that has shut it down itself: nothing
		require.NoError(t, <-done, "Run")
	})
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

func (s *station) pollLane(p Priority) (got []*Message) {
	for {
		select {
		case m := <-s.in[p]:
			got = append(got, m)
		default:
			return got
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

// conserved requires that what went in came out or was counted, at every stage.
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
		var got uint64
		for p, l := range gs.Lanes {
			require.Equal(t, l.Enqueued+l.Replayed, l.Taken+l.DroppedSlow+l.DroppedEnded+uint64(l.Pending), "gateway %q, P%d: Enqueued + Replayed = Taken + DroppedSlow + DroppedEnded + Pending", gs.ID, p)
			got += l.Received + l.Discarded + uint64(len(g.inbox[p]))
		}
		if there, ok := handed[gs.ID]; ok {
			require.Equal(t, there, got, "gateway %q: Handed = Received + Discarded + what its inbox holds", gs.ID)
		} else {
			departed += got
		}
	}
	require.LessOrEqual(t, departed, s.Departed.Handed, "gateways that left have at most what was handed to those that left")
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
	s := b.Stats()
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

// A machine is a runner for TestLifecycle.
type machine struct {
	runner
	// load gives it three messages of which it can deliver none before release
	// is called, or one at most (which stands in somebody's channel or Push).
	load func(t *testing.T) (release func())
}

func machines() map[string]func(t *testing.T) machine {
	return map[string]func(t *testing.T) machine{
		"Broker": func(t *testing.T) machine {
			b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
			return machine{b, func(t *testing.T) func() {
				s := newStation("r", 0)
				require.NoError(t, b.RegisterReceiver(s))
				require.NoError(t, b.Subscribe("u", "r"))
				for _, id := range series("m", 3) {
					require.NoError(t, b.Publish(note(id, "u", P1)))
				}
				open, over := make(chan struct{}), t.Context().Done()
				go func() { // ends with the test
					select {
					case <-open:
						stop := s.consume(func(*Message) {})
						<-over
						stop()
					case <-over:
					}
				}()
				return sync.OnceFunc(func() { close(open) })
			}}
		},
		"Gateway": func(t *testing.T) machine {
			g := newGateway(t, "g", GatewayConfig{BatchSize: 1, SessionTimeout: -1})
			return machine{g, func(t *testing.T) func() {
				open := make(chan struct{})
				_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(func(ctx context.Context, _ []*Message) error {
					select {
					case <-open:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})})
				require.NoError(t, err)
				for _, id := range series("m", 3) {
					g.Inbox()[P1] <- NewMessage(note(id, "u", P1))
				}
				return sync.OnceFunc(func() { close(open) })
			}}
		},
	}
}

func TestLifecycle(t *testing.T) {
	var errStop = errors.New("stop")

	table := []struct {
		name string
		f    func(t *testing.T, m machine)
	}{
		{"Shutdown before Run returns nil and Run is ErrClosed", func(t *testing.T, m machine) {
			require.NoError(t, m.Shutdown(t.Context()))
			require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
			require.NoError(t, m.Shutdown(t.Context()))
		}},
		{"Shutdown before Run has nothing to wait for, so that an ended ctx is no error", func(t *testing.T, m machine) {
			require.NoError(t, m.Shutdown(canceled))
		}},
		{"Shutdown before Run discards what waits and says so", func(t *testing.T, m machine) {
			m.load(t)
			require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed)
			require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed, "the second time too")
			require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
		}},
		{"a second Run is ErrRunning and the first goes on", func(t *testing.T, m machine) {
			done := start(t.Context(), m)
			synctest.Wait()
			require.ErrorIs(t, m.Run(t.Context()), ErrRunning)
			require.Empty(t, done)
			require.NoError(t, m.Shutdown(t.Context()))
			require.NoError(t, <-done)
		}},
		{"a Run after the end is ErrClosed, whatever ended the first", func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := start(ctx, m)
			cancel(errStop)
			require.ErrorIs(t, <-done, errStop)
			require.ErrorIs(t, m.Run(t.Context()), ErrClosed)
		}},
		{"of eight Runs at once one runs", func(t *testing.T, m machine) {
			results := make(chan error, 8)
			for range 8 {
				go func() { results <- m.Run(context.Background()) }()
			}
			synctest.Wait()
			require.Len(t, results, 7)
			for range 7 {
				require.ErrorIs(t, <-results, ErrRunning)
			}
			require.NoError(t, m.Shutdown(t.Context()))
			require.NoError(t, <-results)
		}},
		{"Shutdown of one that idles returns nil at once, and again", func(t *testing.T, m machine) {
			done := start(t.Context(), m)
			synctest.Wait()
			began := time.Now()
			require.NoError(t, m.Shutdown(t.Context()))
			require.NoError(t, <-done)
			require.NoError(t, m.Shutdown(t.Context()))
			require.NoError(t, m.Shutdown(canceled), "what is over needs no ctx")
			require.Zero(t, time.Since(began))
		}},
		{"eight Shutdowns at once all return nil when the drain is over", func(t *testing.T, m machine) {
			release := m.load(t)
			done := start(t.Context(), m)
			synctest.Wait()
			results := make(chan error, 8)
			for range 8 {
				go func() { results <- m.Shutdown(context.Background()) }()
			}
			pass(time.Second)
			require.Empty(t, results)
			release()
			for range 8 {
				require.NoError(t, <-results)
			}
			require.NoError(t, <-done)
		}},
		{"Run and Shutdown at once end, whichever comes first", func(t *testing.T, m machine) {
			done := start(t.Context(), m)
			require.NoError(t, m.Shutdown(t.Context()))
			if err := <-done; err != nil {
				require.ErrorIs(t, err, ErrClosed)
			}
		}},
		{"the end of Run's ctx stops it and its cause is what Run returns", func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := start(ctx, m)
			pass(time.Minute)
			require.Empty(t, done)
			cancel(errStop)
			require.Equal(t, errStop, <-done)
			require.NoError(t, m.Shutdown(t.Context()), "nothing was lost")
		}},
		{"a Run whose ctx has ended returns its cause", func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errStop)
			require.Equal(t, errStop, m.Run(ctx))
		}},
		{"a Shutdown after the end of Run's ctx tells that something was lost", func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancel(t.Context())
			m.load(t)
			done := start(ctx, m)
			synctest.Wait()
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
			require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed)
		}},
		{"the end of Run's ctx during a drain breaks it off", func(t *testing.T, m machine) {
			ctx, cancel := context.WithCancelCause(t.Context())
			m.load(t)
			done := start(ctx, m)
			synctest.Wait()
			down := make(chan error, 1)
			go func() { down <- m.Shutdown(context.Background()) }()
			pass(time.Minute)
			require.Empty(t, done)
			require.Empty(t, down)
			cancel(errStop)
			require.Equal(t, errStop, <-done)
			require.ErrorIs(t, <-down, ErrClosed)
		}},
		{"a drain that is held up for 3 s and goes on loses nothing", func(t *testing.T, m machine) {
			release := m.load(t)
			done := start(t.Context(), m)
			synctest.Wait()
			began := time.Now()
			time.AfterFunc(3*time.Second, release)
			require.NoError(t, m.Shutdown(t.Context()))
			require.Equal(t, 3*time.Second, time.Since(began))
			require.NoError(t, <-done)
		}},
		{"a drain that is held up for good ends at the deadline of Shutdown with its error", func(t *testing.T, m machine) {
			m.load(t)
			done := start(t.Context(), m)
			synctest.Wait()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			require.Equal(t, context.DeadlineExceeded, m.Shutdown(ctx))
			require.Equal(t, 2*time.Second, time.Since(began))
			require.NoError(t, <-done)
			require.ErrorIs(t, m.Shutdown(t.Context()), ErrClosed, "afterwards it is known what was lost")
		}},
		{"Shutdown with an ended ctx stops at once", func(t *testing.T, m machine) {
			m.load(t)
			done := start(t.Context(), m)
			synctest.Wait()
			began := time.Now()
			require.Equal(t, context.Canceled, m.Shutdown(canceled))
			require.NoError(t, <-done)
			require.Zero(t, time.Since(began))
		}},
		{"the first deadline of several Shutdowns ends the drain for all", func(t *testing.T, m machine) {
			m.load(t)
			done := start(t.Context(), m)
			synctest.Wait()
			patient := make(chan error, 1)
			go func() { patient <- m.Shutdown(context.Background()) }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.Equal(t, context.DeadlineExceeded, m.Shutdown(ctx))
			require.ErrorIs(t, <-patient, ErrClosed)
			require.NoError(t, <-done)
		}},
	}
	for _, name := range []string{"Broker", "Gateway"} {
		for _, row := range table {
			t.Run(name+"/"+row.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { row.f(t, machines()[name](t)) })
			})
		}
	}
	t.Run("New starts nothing", func(t *testing.T) {
		before := runtime.NumGoroutine()
		for _, m := range machines() {
			m(t)
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before)
	})
}
