package notificationclient

import (
	"context"
	"errors"
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestConfig(t *testing.T) {
	good := func() Config {
		return Config{URL: "wss://host/notifications", OnNotifications: func(context.Context, Batch) error { return nil }}
	}
	for field, spoil := range map[string]func(*Config){
		"URL is no URL":       func(c *Config) { c.URL = "ws://%" },
		"URL has the scheme":  func(c *Config) { c.URL = "ftp://host/" },
		"URL has no host":     func(c *Config) { c.URL = "ws:/notifications" },
		"OnNotifications":     func(c *Config) { c.OnNotifications = nil },
		"channel 9":           func(c *Config) { c.Channels = []notification.Channel{9} },
		"BackoffBase":         func(c *Config) { c.BackoffBase = -1 },
		"BackoffCap":          func(c *Config) { c.BackoffCap = -1 },
		"StableAfter":         func(c *Config) { c.StableAfter = -1 },
		"ConnectTimeout":      func(c *Config) { c.ConnectTimeout = -1 },
		"WatchdogFactor 0.5":  func(c *Config) { c.WatchdogFactor = 0.5 },
		"WatchdogFactor NaN":  func(c *Config) { c.WatchdogFactor = math.NaN() },
		"WatchdogFactor +Inf": func(c *Config) { c.WatchdogFactor = math.Inf(1) },
	} {
		t.Run(field+" is refused", func(t *testing.T) {
			cfg := good()
			spoil(&cfg)
			_, err := New(cfg)
			require.ErrorIs(t, err, notification.ErrInvalid)
			require.ErrorContains(t, err, field)
		})
	}
	t.Run("the defaults are those that are documented", func(t *testing.T) {
		c, err := New(good())
		require.NoError(t, err)
		require.Equal(t, []any{500 * time.Millisecond, 30 * time.Second, time.Minute, 2.5, 20 * time.Second, http.DefaultClient.Transport},
			[]any{c.cfg.BackoffBase, c.cfg.BackoffCap, c.cfg.StableAfter, c.cfg.WatchdogFactor, c.cfg.ConnectTimeout, c.cfg.HTTPClient.Transport})
		require.Zero(t, c.State())
		for range 1000 {
			require.GreaterOrEqual(t, c.backoff(0), time.Duration(0))
			require.Less(t, c.backoff(0), 500*time.Millisecond)
			require.Less(t, c.backoff(100), 30*time.Second)
		}
	})
	t.Run("what the caller changes later changes nothing", func(t *testing.T) {
		cfg := good()
		cfg.Header, cfg.Channels = http.Header{"A": {"1"}}, []notification.Channel{notification.ChannelRisk}
		c, err := New(cfg)
		require.NoError(t, err)
		cfg.Header.Set("A", "2")
		cfg.Channels[0] = notification.ChannelTrade
		require.Equal(t, "1", c.cfg.Header.Get("A"))
		require.Equal(t, notification.ChannelRisk, c.channels[0])
	})
}

// TestLifecycle ends a client in each of its states, in each way.
func TestLifecycle(t *testing.T) {
	hang := func(ctx context.Context) { <-ctx.Done() }
	states := map[string]func(e *edge) *subscriber{
		"while it asks for credentials": func(e *edge) *subscriber {
			return e.subscribe(Config{Credentials: func(ctx context.Context, _ Why) (Credentials, error) {
				hang(ctx)
				return Credentials{}, ctx.Err()
			}})
		},
		"in the handshake": func(e *edge) *subscriber {
			e.status = func(r *http.Request) int {
				hang(r.Context())
				return 500
			}
			return e.subscribe(Config{})
		},
		"before the welcome": func(e *edge) *subscriber { return e.subscribe(Config{}) },
		"while it waits": func(e *edge) *subscriber {
			e.status = func(*http.Request) int { return 503 }
			return e.subscribe(Config{BackoffBase: time.Hour, BackoffCap: time.Hour})
		},
		"while it is live": func(e *edge) *subscriber {
			s := e.subscribe(Config{})
			go func() { e.next().say(welcome("c0", false), live) }()
			return s
		},
	}
	for name, begin := range states {
		t.Run("Shutdown "+name+" ends Run with nil", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := begin(newEdge(t))
				s.start(t.Context())
				s.told()
				began := time.Now()
				for range 2 {
					require.NoError(t, s.Shutdown(t.Context()))
				}
				require.NoError(t, s.stopped())
				require.Zero(t, time.Since(began))
				require.Equal(t, State{Status: StatusStopped, Reason: ReasonClosed, Code: 1000}, s.State())
			})
		})
		t.Run("the end of Run's context "+name+" ends it with the cause", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := begin(newEdge(t))
				cause := errors.New("enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				s.start(ctx)
				s.told()
				cancel(cause)
				require.Equal(t, cause, s.stopped())
				require.Equal(t, State{Status: StatusStopped, Reason: ReasonClosed, Code: 1000}, s.State())
			})
		})
	}
	for name, test := range map[string]func(*testing.T, *edge){
		"Shutdown before Run leaves nothing to run": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			require.NoError(t, s.Shutdown(t.Context()))
			require.ErrorIs(t, s.Run(t.Context()), notification.ErrClosed)
			require.NoError(t, s.Shutdown(t.Context()))
			require.Zero(t, e.handshakes())
		},
		"a second Run is an error, and the first goes on": func(t *testing.T, e *edge) {
			s, _ := e.connected(Config{})
			require.ErrorIs(t, s.Run(t.Context()), notification.ErrRunning)
			s.told()
			require.Equal(t, StatusLive, s.State().Status)
			require.NoError(t, s.Shutdown(t.Context()))
			require.ErrorIs(t, s.Run(t.Context()), notification.ErrRunning)
		},
		"a Run whose context has ended connects nowhere": func(t *testing.T, e *edge) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			s := e.subscribe(Config{})
			require.ErrorIs(t, s.Run(ctx), context.Canceled)
			require.Zero(t, e.handshakes())
			require.Equal(t, []string{"stopped closed 1000"}, s.told())
		},
		"Shutdown waits for the handler, whose batch counts, and closes with 1000": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{OnNotifications: func(ctx context.Context, _ Batch) error {
				<-release
				return ctx.Err()
			}})
			v.say(batch("c1", "n1"), batch("c2", "n2"))
			s.told()
			done := make(chan error, 1)
			go func() { done <- s.Shutdown(context.Background()) }()
			<-time.After(time.Hour)
			require.Empty(t, done)
			close(release)
			require.NoError(t, <-done)
			require.Equal(t, []string{"cursor c1", "stopped closed 1000"}, s.told())
			require.Equal(t, 1000, v.left())
		},
		"Shutdown waits for the snapshot of what was dropped, and the batch that says so is left to the next run": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{Snapshot: func(ctx context.Context, reason SnapshotReason) error {
				if reason == SnapshotGap {
					<-release
				}
				return ctx.Err()
			}})
			v.say(dropped("c1", "n1"), batch("c2", "n2"))
			require.Equal(t, []string{"snapshot gap"}, s.told())
			done := make(chan error, 1)
			go func() { done <- s.Shutdown(context.Background()) }()
			synctest.Wait()
			close(release)
			require.NoError(t, <-done)
			require.Equal(t, []string{"stopped closed 1000"}, s.told(), "no callback begins, and no cursor moves")
			require.Equal(t, "c0", s.Cursor())
			require.Equal(t, 1000, v.left())
		},
		"an error of that handler is still told": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{OnNotifications: func(context.Context, Batch) error {
				<-release
				return errors.New("disk full")
			}})
			v.say(batch("c1", "n1"))
			s.told()
			done := make(chan error, 1)
			go func() { done <- s.Shutdown(context.Background()) }()
			synctest.Wait()
			close(release)
			require.NoError(t, <-done)
			require.ErrorContains(t, s.stopped(), "disk full")
			require.Equal(t, "c0", s.Cursor())
		},
		"a Shutdown whose context ends first ends the handler's, and is back": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{OnNotifications: func(ctx context.Context, _ Batch) error {
				<-ctx.Done()
				<-time.After(time.Hour) // it does not heed it at once
				return ctx.Err()
			}})
			v.say(batch("c1", "n1"))
			s.told()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
			require.NoError(t, s.stopped(), "Run owns the callback, so it waits")
			require.Equal(t, time.Hour+time.Second, time.Since(began))
			require.Equal(t, "c0", s.Cursor(), "the batch was not dealt with")
		},
		"a batch that the handler finished though the context of Run ended counts": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{OnNotifications: func(ctx context.Context, _ Batch) error {
				<-ctx.Done()
				return nil
			}})
			ctx, cancel := context.WithCancel(t.Context())
			s.start(ctx)
			e.next().say(welcome("c0", false), batch("c1", "n1"), batch("c2", "n2"))
			s.told()
			cancel()
			require.ErrorIs(t, s.stopped(), context.Canceled)
			require.Equal(t, []string{"cursor c1", "stopped closed 1000"}, s.told())
		},
		"a server that does not answer the closing handshake holds Shutdown up for its context at most": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{})
			s.start(t.Context())
			v := e.next()
			v.say(welcome("c0", false))
			s.told()
			v.raw.stuck.Store(true)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
			require.NoError(t, s.stopped())
			v.cut()
		},
		"a panic of a callback leaves no goroutine behind": func(t *testing.T, e *edge) {
			s := e.subscribe(Config{OnNotifications: func(context.Context, Batch) error { panic("oh") }})
			go func() { e.next().say(welcome("c0", false), batch("c1", "n1")) }()
			require.Panics(t, func() { _ = s.Run(t.Context()) })
			require.NoError(t, s.Shutdown(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
}
