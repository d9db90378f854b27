package notificationclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
	"github.com/stretchr/testify/require"
)

// An exchange is a real server, Broker, Gateway and Handler, that tells alice
// numbers: each lane has its own, from 1. Its state is how far it has come.
type exchange struct {
	t        *testing.T
	listen   func() net.Listener
	listener net.Listener

	mu      sync.Mutex
	broker  *notification.Broker // guarded by mu, as all below
	gateway *notification.Gateway
	handler *wsgateway.Handler
	server  *http.Server
	running sync.WaitGroup
	state   [notification.NumPriorities]uint64
}

var lanes = [notification.NumPriorities]notification.Payload{
	notification.RiskAlert{}, notification.OrderFilled{}, notification.AccountUpdate{}, notification.SystemNotice{},
}

func newExchange(t *testing.T, listen func() net.Listener) *exchange {
	x := &exchange{t: t, listen: listen}
	x.start()
	return x
}

func (x *exchange) start() {
	var err error
	x.mu.Lock()
	defer x.mu.Unlock()
	x.broker, err = notification.NewBroker(notification.BrokerConfig{})
	require.NoError(x.t, err)
	x.gateway, err = notification.NewGateway("gateway", notification.GatewayConfig{HistoryMessages: 1024})
	require.NoError(x.t, err)
	require.NoError(x.t, x.broker.RegisterGateway(x.gateway))
	x.handler, err = wsgateway.New(x.gateway, wsgateway.Config{
		Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
			if r.Header.Get("Authorization") != "Bearer alice" {
				return wsgateway.Identity{}, errors.New("who?")
			}
			return wsgateway.Identity{UserID: "alice"}, nil
		},
	})
	require.NoError(x.t, err)
	x.server = &http.Server{Handler: x.handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	x.listener = x.listen()
	x.running.Go(func() { _ = x.broker.Run(context.Background()) })
	x.running.Go(func() { _ = x.gateway.Run(context.Background()) })
	x.running.Go(func() { _ = x.server.Serve(x.listener) })
}

func (x *exchange) stop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = x.server.Close() // the WebSockets are not its own any more
	// Who is cut off in the middle misses what was on its way, which they say.
	_ = x.broker.Shutdown(ctx)
	_ = x.handler.Shutdown(ctx)
	_ = x.gateway.Shutdown(ctx)
	require.NoError(x.t, ctx.Err())
	x.running.Wait()
}

// tell publishes the next number of a lane. The state changes first, as that of a
// service does: whoever loads it after a notification has it in there.
func (x *exchange) tell(lane int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.state[lane]++
	n := notification.New("alice", lanes[lane], "test")
	n.ID = fmt.Sprintf("%d-%d", lane, x.state[lane])
	require.NoError(x.t, x.broker.PublishWait(context.Background(), n))
}

func (x *exchange) snapshot() [notification.NumPriorities]uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state
}

func (x *exchange) gap() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gateway.Gap()
}

// A ledger is alice's program: it knows how far each lane has come from snapshots
// and from what arrives, and that both agree.
type ledger struct {
	mu        sync.Mutex
	state     [notification.NumPriorities]uint64
	seen      map[string]bool
	taken     int
	snapshots map[SnapshotReason]int
	wrong     []string
}

func newLedger() *ledger {
	return &ledger{seen: map[string]bool{}, snapshots: map[SnapshotReason]int{}}
}

func (l *ledger) load(state [notification.NumPriorities]uint64, reason SnapshotReason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snapshots[reason]++
	for lane, n := range state {
		if n < l.state[lane] {
			l.wrong = append(l.wrong, fmt.Sprintf("a snapshot of lane %d with %d behind %d", lane, n, l.state[lane]))
		}
	}
	l.state = state
}

func (l *ledger) take(b Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range b.Notifications {
		var lane int
		var number uint64
		if _, err := fmt.Sscanf(n.ID, "%d-%d", &lane, &number); err != nil || l.seen[n.ID] || int(n.Priority) != lane {
			l.wrong = append(l.wrong, "twice, or nonsense: "+n.ID)
			continue
		}
		l.seen[n.ID] = true
		l.taken++
		switch last := &l.state[lane]; {
		case number <= *last: // the snapshot has it
		case number == *last+1:
			*last = number
		default:
			l.wrong = append(l.wrong, fmt.Sprintf("%s behind %d", n.ID, *last))
		}
	}
}

// A line is the network of one client.
type line struct {
	dial func(context.Context, string, string) (net.Conn, error)
	mu   sync.Mutex
	conn net.Conn
	left int // bytes until it is cut; negative: it is not
}

func (l *line) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := l.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.left = c, -1
	return &cable{c, l}, nil
}

// cut ends the connection once so many more bytes have arrived.
func (l *line) cut(after int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = after
	if after == 0 && l.conn != nil {
		_ = l.conn.Close()
	}
}

type cable struct {
	net.Conn
	line *line
}

func (c *cable) Read(p []byte) (int, error) {
	c.line.mu.Lock()
	left := c.line.left
	c.line.mu.Unlock()
	if left >= 0 {
		p = p[:min(len(p), max(left, 1))]
	}
	n, err := c.Conn.Read(p)
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if c.line.conn == c.Conn && c.line.left >= 0 {
		if c.line.left -= n; c.line.left <= 0 {
			_ = c.Conn.Close()
			return 0, io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// client is one of alice's over l. slow takes its time, now and then.
func (x *exchange) client(l *line, book *ledger, tick time.Duration, slow func(context.Context)) *Client {
	client, err := New(Config{
		BackoffBase: tick, BackoffCap: 10 * tick,
		URL:         "ws://exchange/",
		HTTPClient:  &http.Client{Transport: &http.Transport{DialContext: l.connect, DisableKeepAlives: true}},
		Credentials: func(context.Context, Why) (Credentials, error) { return Credentials{Token: "alice"}, nil },
		OnNotifications: func(ctx context.Context, b Batch) error {
			slow(ctx)
			book.take(b)
			return nil
		},
		Snapshot: func(ctx context.Context, reason SnapshotReason) error {
			slow(ctx)
			state := x.snapshot()
			slow(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			book.load(state, reason)
			return nil
		},
	})
	require.NoError(x.t, err)
	return client
}

// chaos lets everything go wrong for a while, and then nothing, until the client
// knows all that the exchange does.
func chaos(t *testing.T, x *exchange, dial func(context.Context, string, string) (net.Conn, error), rounds int, tick time.Duration) {
	seed := rand.Uint64()
	if text, ok := os.LookupEnv("NOTIFICATION_SEED"); ok {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("NOTIFICATION_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex // slow is called from elsewhere
	slow := func(ctx context.Context) {
		mu.Lock()
		wait := time.Duration(0)
		if rnd.IntN(50) == 0 {
			wait = time.Duration(rnd.Int64N(int64(20 * tick)))
		}
		mu.Unlock()
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	l, book := &line{dial: dial}, newLedger()
	client := x.client(l, book, tick, slow)
	ran := make(chan error, 1)
	go func() { ran <- client.Run(context.Background()) }() // ended by Shutdown below

	cuts := 0
	for range rounds {
		for range draw(30) {
			x.tell(draw(len(lanes)))
		}
		switch draw(100) {
		case 0:
			x.stop()
			x.start()
		case 1:
			x.gap()
		case 2, 3, 4, 5:
			l.cut(0)
			cuts++
		case 6, 7, 8, 9:
			l.cut(draw(3000))
			cuts++
		}
		<-time.After(time.Duration(draw(int(2 * tick))))
	}
	l.cut(-1)
	deadline := time.Now().Add(10 * time.Minute)
	for {
		book.mu.Lock()
		done := book.state == x.snapshot()
		book.mu.Unlock()
		if done {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the client knows %v of %v", book.state, x.snapshot())
		}
		<-time.After(tick)
	}
	require.NoError(t, client.Shutdown(context.Background()))
	require.NoError(t, <-ran)
	require.Empty(t, book.wrong)
	t.Logf("%v published, %d taken, %d cuts, snapshots %v", x.snapshot(), book.taken, cuts, book.snapshots)
	require.NotZero(t, book.snapshots[SnapshotGap]+book.snapshots[SnapshotCursorGone], "nothing went wrong, so nothing was shown")
}

func TestChaos(t *testing.T) {
	t.Run("hours of a real server, in virtual time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var current *pipes
			x := newExchange(t, func() net.Listener {
				mu.Lock()
				defer mu.Unlock()
				current = newPipes()
				return current
			})
			defer x.stop()
			chaos(t, x, func(ctx context.Context, network, addr string) (net.Conn, error) {
				mu.Lock()
				p := current
				mu.Unlock()
				return p.dial(ctx, network, addr)
			}, 3000, time.Second)
		})
	})
	t.Run("a minute's worth over real sockets, in real time", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes some seconds: not with -short")
		}
		var mu sync.Mutex
		addr := ""
		x := newExchange(t, func() net.Listener {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			addr = ln.Addr().String()
			return ln
		})
		defer x.stop()
		chaos(t, x, func(ctx context.Context, network, _ string) (net.Conn, error) {
			mu.Lock()
			to := addr
			mu.Unlock()
			return new(net.Dialer).DialContext(ctx, network, to)
		}, 600, 5*time.Millisecond)
	})
}

// TestGateway is what only a real server can show.
func TestGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		x := newExchange(t, func() net.Listener { return p })
		defer x.stop()
		book := newLedger()
		client := x.client(&line{dial: p.dial}, book, time.Second, func(context.Context) {})
		ran := make(chan error, 1)
		go func() { ran <- client.Run(t.Context()) }()
		synctest.Wait()
		require.Equal(t, StatusLive, client.State().Status)

		require.NoError(t, client.Subscribe(t.Context(), notification.ChannelRisk))
		for lane := range lanes {
			x.tell(lane)
		}
		<-time.After(time.Minute) // and heartbeats keep it alive
		synctest.Wait()
		require.Equal(t, 1, book.taken)
		var refused *CommandError
		require.ErrorAs(t, client.change(t.Context(), "nonsense", []notification.Channel{1}, slices.Clone), &refused)
		require.Equal(t, "unknown_action", refused.Code)
		require.NoError(t, client.Unsubscribe(t.Context(), notification.ChannelRisk))
		x.tell(0)
		<-time.After(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, book.taken)
		require.Equal(t, StatusLive, client.State().Status, "%+v", client.State())

		require.NoError(t, client.Shutdown(t.Context()))
		require.NoError(t, <-ran)
	})
}
