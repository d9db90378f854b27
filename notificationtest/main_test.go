package notificationtest

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestMain(m *testing.M) {
	flag.Parse()
	before := runtime.NumGoroutine()
	code := m.Run()
	for give := time.Now().Add(time.Minute); code == 0 && runtime.NumGoroutine() > before; {
		if time.Now().After(give) {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines before the tests, more after:\n%s\n", before, stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
		<-time.After(time.Millisecond)
	}
	os.Exit(code)
}

// A fakeTB is a testing.TB that keeps what is reported, in place of failing.
type fakeTB struct {
	testing.TB // for what is not below

	// guarded by mu
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (t *fakeTB) Helper() {}

func (t *fakeTB) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *fakeTB) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.failures) > 0
}

func (t *fakeTB) Error(args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures = append(t.failures, fmt.Sprint(args...))
}

func (t *fakeTB) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }

func (t *fakeTB) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// failuresOf runs f as a test of its own, and its clean-ups, and returns what it
// reported.
func failuresOf(t *testing.T, f func(t testing.TB)) []string {
	t.Helper()
	fake := &fakeTB{TB: t}
	run(func() { f(fake) })
	for len(fake.cleanups) > 0 {
		last := len(fake.cleanups) - 1
		cleanup := fake.cleanups[last]
		fake.cleanups = fake.cleanups[:last]
		run(cleanup)
	}
	return fake.failures
}

// run runs f, which may end its goroutine.
func run(f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
}

// fails requires that f reports one failure, with these texts.
func fails(t *testing.T, f func(t testing.TB), texts ...string) {
	t.Helper()
	failures := failuresOf(t, f)
	require.Len(t, failures, 1)
	for _, text := range texts {
		require.Contains(t, failures[0], text)
	}
}

// everywhere runs f as two subtests, one of them in a bubble.
func everywhere(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, f)
	inBubble(t, name+", in a bubble", f)
}

func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func publish(t testing.TB, b *notification.Broker, userID string, payloads ...notification.Payload) {
	t.Helper()
	for _, p := range payloads {
		require.NoError(t, b.Publish(notification.New(userID, p, "test")))
	}
}

// trades returns as many payloads, with the IDs 1 to n.
func trades(n int) []notification.Payload {
	all := make([]notification.Payload, n)
	for i := range all {
		all[i] = notification.TradeExecuted{TradeID: strconv.Itoa(i + 1)}
	}
	return all
}

// payloadsOf returns what the messages say.
func payloadsOf(messages []*notification.Message) []notification.Payload {
	all := make([]notification.Payload, len(messages))
	for i, m := range messages {
		all[i] = m.Notification().Payload
	}
	return all
}

// messages makes messages for a Push by hand, with these priorities.
func messages(priorities ...notification.Priority) []*notification.Message {
	all := make([]*notification.Message, len(priorities))
	for i, p := range priorities {
		n := notification.New("alice", notification.TradeExecuted{TradeID: strconv.Itoa(i + 1)}, "test")
		n.Priority = p
		all[i] = notification.NewMessage(n)
	}
	return all
}

// lanes is a QueueCapacity, or the like, that is the same for every lane.
func lanes[T any](v T) (all [notification.NumPriorities]T) {
	copy(all[:], slices.Repeat([]T{v}, len(all)))
	return all
}
