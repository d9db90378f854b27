package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	notificationclient "github.com/qaexchange/notification/clients/go"
	"github.com/stretchr/testify/require"
)

func TestDurable(t *testing.T) {
	t.Run("every user sees every message, and every counter agrees", func(t *testing.T) {
		var out bytes.Buffer
		status := run(t.Context(), []string{"-addr=", "-admin=", "-users=100", "-rate=1000", "-duration=1500ms", "-flaky=0.5", "-durable=" + t.TempDir()}, &out, &out)
		require.Zero(t, status, out.String())
		require.Contains(t, out.String(), "every counter agrees")
	})
	t.Run("a folder that cannot be used is said", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		var out bytes.Buffer
		require.Equal(t, 1, run(t.Context(), []string{"-addr=", "-admin=", "-users=1", "-durable=" + file}, &out, &out))
		require.Contains(t, out.String(), file)
	})
	t.Run("killed and started again, its clients go on where they were", killed)
}

func killed(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: a program that is started four times")
	}
	dir := t.TempDir()
	// Each run has a port of its own: that of the one before may be somebody else's by
	// now. For the client they are the same exchange.
	const addr = "exchange.test"
	var (
		p     *process
		where atomic.Value // string: the address of the last run
	)
	start := func() {
		p = launch(t, dir, "-durable="+dir)
		where.Store(p.addr)
	}
	start()

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	network := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, where.Load().(string))
	}}
	browser := &http.Client{Jar: jar, Transport: network}
	r, err := browser.Post("http://"+addr+"/api/session", "application/json", strings.NewReader(`{"user":"u00003"}`))
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	require.Equal(t, http.StatusOK, r.StatusCode)

	var (
		mu        sync.Mutex
		last      = map[string]uint64{} // by stream
		got       int
		snapshots int
		wrong     []string
	)
	client, err := notificationclient.New(notificationclient.Config{
		URL: "ws://" + addr + "/ws", HTTPClient: browser, BackoffBase: 50 * time.Millisecond, BackoffCap: time.Second,
		Snapshot: func(context.Context, notificationclient.SnapshotReason) error {
			mu.Lock()
			defer mu.Unlock()
			snapshots++
			return nil
		},
		OnNotifications: func(_ context.Context, batch notificationclient.Batch) error {
			mu.Lock()
			defer mu.Unlock()
			for _, n := range batch.Notifications {
				stream, number := n.ID[:strings.LastIndexByte(n.ID, '-')], numberOf(n.ID)
				before, known := last[stream]
				if got > 0 && known && number != before+1 || number == 0 {
					wrong = append(wrong, fmt.Sprintf("%s after %d", n.ID, before))
				}
				last[stream] = number
				got++
			}
			return nil
		},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }() // ends with cancel, below
	// In the middle of it; as a crash, and as a supervisor does it.
	for _, end := range []func(*process, *testing.T){(*process).kill, (*process).stop, (*process).kill} {
		mu.Lock()
		streams, enough := len(last), got+100
		mu.Unlock()
		await(t, "100 more notifications, some of a new run", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return got >= enough && len(last) > streams
		})
		end(p, t)
		start()
	}
	mu.Lock()
	streams := len(last)
	mu.Unlock()
	await(t, "the last run", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(last) > streams
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, wrong)
	require.Equal(t, 1, snapshots, "the one at the beginning")
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(patience); !holds(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatalf("%s has not come", what)
		}
	}
}
