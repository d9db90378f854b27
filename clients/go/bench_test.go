package notificationclient

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// firehose serves a welcome and then the same batch, as fast as it is read.
func firehose(b *testing.B, size int) (url string, batch []byte) {
	batch = []byte(`{"cursor":"c1","notifications":[`)
	for i := range size {
		n := notification.New("user_00042", notification.AccountUpdate{
			UserID: "user_00042", Balance: 1_000_234.5678, Available: 900_123.25, Frozen: 100.5, Margin: 12_000.125,
			PositionProfit: -35.75, CloseProfit: 12.5, RiskRatio: 0.0123, Timestamp: 1729468800123456789,
		}, "AccountSystem")
		if i > 0 {
			batch = append(batch, ',')
		}
		batch = n.AppendJSON(batch)
	}
	batch = append(batch, `]}`...)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{batchProtocol}})
		if err != nil {
			return
		}
		defer func() { _ = ws.CloseNow() }()
		ctx := ws.CloseRead(context.Background())
		_ = ws.Write(ctx, websocket.MessageText, []byte(welcome("c0", true)))
		for ws.Write(ctx, websocket.MessageText, batch) == nil {
		}
	}))
	b.Cleanup(server.Close)
	return server.URL, batch
}

// BenchmarkStream is one client against a server that writes as fast as it can;
// an operation is one notification. "read" is the floor: the frames are read, and
// thrown away.
func BenchmarkStream(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("batch=%d/client", size), func(b *testing.B) {
			url, text := firehose(b, size)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			left := b.N
			c, err := New(Config{URL: url, OnNotifications: func(_ context.Context, batch Batch) error {
				if left -= len(batch.Notifications); left <= 0 {
					cancel()
				}
				return nil
			}})
			require.NoError(b, err)
			b.ReportAllocs()
			b.SetBytes(int64(len(text) / size))
			b.ResetTimer()
			require.ErrorIs(b, c.Run(ctx), context.Canceled)
		})
		b.Run(fmt.Sprintf("batch=%d/read", size), func(b *testing.B) {
			url, text := firehose(b, size)
			ws, _, err := websocket.Dial(context.Background(), url, &websocket.DialOptions{Subprotocols: []string{batchProtocol}})
			require.NoError(b, err)
			defer func() { _ = ws.CloseNow() }()
			ws.SetReadLimit(-1)
			b.ReportAllocs()
			b.SetBytes(int64(len(text) / size))
			b.ResetTimer()
			for left := b.N; left > 0; left -= size {
				if _, _, err := ws.Read(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdle tells what a client costs that has nothing to do: its goroutines,
// buffers and the rest. The server's side is taken off.
func BenchmarkIdle(b *testing.B) {
	const clients = 200
	memory := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapInuse + m.StackInuse)
	}
	idle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{batchProtocol}})
		if err != nil {
			return
		}
		defer func() { _ = ws.CloseNow() }()
		_ = ws.Write(context.Background(), websocket.MessageText, []byte(welcome("c0", true)))
		_ = ws.Write(context.Background(), websocket.MessageText, []byte(live))
		_, _, _ = ws.Read(context.Background())
	}))
	defer idle.Close()
	measure := func(connect func(ctx context.Context, up *sync.WaitGroup, ran *sync.WaitGroup)) float64 {
		before := memory()
		ctx, cancel := context.WithCancel(context.Background())
		var up, ran sync.WaitGroup
		for range clients {
			up.Add(1)
			connect(ctx, &up, &ran)
		}
		up.Wait()
		used := memory() - before
		cancel()
		ran.Wait()
		<-time.After(100 * time.Millisecond) // the server's side goes
		return used / clients
	}
	for b.Loop() {
		both := measure(func(ctx context.Context, up, ran *sync.WaitGroup) {
			c, err := New(Config{URL: idle.URL, OnNotifications: func(context.Context, Batch) error { return nil }, OnState: func(s State) {
				if s.Status == StatusLive {
					up.Done()
				}
			}})
			require.NoError(b, err)
			ran.Go(func() { _ = c.Run(ctx) })
		})
		bare := measure(func(ctx context.Context, up, ran *sync.WaitGroup) {
			ws, _, err := websocket.Dial(ctx, idle.URL, &websocket.DialOptions{Subprotocols: []string{batchProtocol}})
			require.NoError(b, err)
			for range 2 {
				_, _, err := ws.Read(ctx)
				require.NoError(b, err)
			}
			up.Done()
			ran.Go(func() {
				_, _, _ = ws.Read(ctx)
				_ = ws.CloseNow()
			})
		})
		b.ReportMetric(both, "B/client+server")
		b.ReportMetric(bare, "B/bare+server")
	}
}
