package natslog

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// What runs in parallel here are tests of clusters, which wait for elections.
	_ = flag.Set("test.parallel", "8")
	before := runtime.NumGoroutine()
	code := natstest.Main(m)
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // its workers are not ours, and would be waited for
	}
	if n := goroutines(before); code == 0 && n > before {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had a
// while to end.
func goroutines(want int) int {
	for give := time.Now().Add(natstest.Patience); runtime.NumGoroutine() > want && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	return runtime.NumGoroutine()
}

// patient returns a ctx for what must come.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), natstest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// patiently is for a Log that is opened without open: a busy machine answers a
// handshake later than in the two seconds that a connection waits by default.
var patiently = []nats.Option{nats.Timeout(natstest.Patience)}

// open opens a Log for the test, of one partition unless cfg says otherwise. If the
// servers are away, it tries again.
func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	var l *Log
	natstest.Eventually(t, "the log is open", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var err error
		if l, err = Open(ctx, cfg); !unreachable(err) {
			require.NoError(t, err)
		}
		return err == nil
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// unreachable reports whether an error of Open says that servers are not there, or not yet:
// a busy machine answers a handshake later than in the two seconds that a connection
// waits, a cluster may be without a leader, and a leader that has just been elected
// without some of the servers.
func unreachable(err error) bool {
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) {
		const noSuitablePeers = 10005
		return refused.Code == 503 || refused.ErrorCode == noSuitablePeers
	}
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
		return true
	}
	for _, target := range []error{nats.ErrTimeout, nats.ErrNoServers, nats.ErrNoResponders, nats.ErrDisconnected, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded, io.EOF} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// publisher returns a Publisher of l that runs until the end of the test.
func publisher(t testing.TB, l *Log, cfg PublisherConfig) *Publisher {
	t.Helper()
	p, err := l.NewPublisher(cfg)
	require.NoError(t, err)
	start(t, p)
	return p
}

// start runs p until the end of the test, where its equations must hold.
func start(t testing.TB, p *Publisher) {
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(context.Background()) }) // ends with Shutdown
	natstest.Eventually(t, "it runs", func() bool { return running(p.life) })
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.Shutdown(ctx)
		wg.Wait()
		conserved(t, p)
	})
}

func running(l *lifecycle) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

// conserved checks the equation of a Publisher at rest.
func conserved(t testing.TB, p *Publisher) {
	t.Helper()
	for lane, l := range p.Stats().Lanes {
		require.Equal(t, l.Accepted, l.Acknowledged+l.Withdrawn+l.Discarded+l.Uncertain+uint64(l.Queued), "lane %s: %+v", notification.Priority(lane), l)
	}
}

// note returns a notification with this ID.
func note(id, user string, lane notification.Priority) *notification.Notification {
	n := notification.New(user, notification.TradeExecuted{TradeID: id, OrderID: "o-1", InstrumentID: "cu2512", Direction: "BUY", Price: 50100, Volume: 2}, "MatchingEngine")
	if user == notification.AllUsers {
		n.Payload = notification.SystemNotice{Title: id, Content: "…", Level: "info"}
	}
	n.ID, n.Priority = id, lane
	return n
}

// read returns the blocks of a stream from the server itself, by a way of its own.
func read(t testing.TB, l *Log, lane notification.Priority, partition int) []block {
	t.Helper()
	// ask waits for a leader. All blocks together may take longer than anything else.
	ask := func(question func(ctx context.Context) error) {
		t.Helper()
		natstest.Eventually(t, "the stream has a leader", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			return question(ctx) == nil
		})
	}
	var s jetstream.Stream
	ask(func(ctx context.Context) (err error) {
		s, err = l.bulk.js.Stream(ctx, l.stream(lane, partition))
		return err
	})
	state := s.CachedInfo().State
	var bs []block
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		var m *jetstream.RawStreamMsg
		ask(func(ctx context.Context) (err error) {
			m, err = s.GetMsg(ctx, seq)
			require.NotErrorIs(t, err, jetstream.ErrMsgNotFound)
			return err
		})
		b, err := openBlock(m.Sequence, m.Time, m.Header, m.Data)
		require.NoError(t, err)
		bs = append(bs, b)
	}
	return bs
}

// ids returns the IDs in a stream, in its order.
func ids(t testing.TB, l *Log, lane notification.Priority, partition int) []string {
	t.Helper()
	var all []string
	for _, b := range read(t, l, lane, partition) {
		for _, e := range b.entries() {
			require.NoError(t, e.err)
			all = append(all, e.archive.ID())
		}
	}
	return all
}
