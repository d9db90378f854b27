package natslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

func TestConfig(t *testing.T) {
	t.Run("the zero value has the defaults of its documentation", func(t *testing.T) {
		var c Config
		require.NoError(t, c.setDefaults())
		require.Equal(t, nats.DefaultURL, c.URL)
		require.Equal(t, "notification", c.Name)
		require.Equal(t, []any{1, 1, 15 * time.Minute, int64(256 << 20), 65_536, 2 * time.Minute},
			[]any{c.Partitions, c.Replicas, c.Retention, c.MaxBytes, c.DedupSize, c.duplicates})
	})

	for field, cfgs := range map[string][]Config{
		"Name":       {{Name: "a.b"}, {Name: "a b"}, {Name: "ä"}, {Name: strings.Repeat("a", 33)}, {Name: "a>"}, {Name: "*"}},
		"Partitions": {{Partitions: -1}, {Partitions: 65}},
		"Replicas":   {{Replicas: -1}, {Replicas: 6}},
		"Retention":  {{Retention: -1}, {Retention: 2*time.Minute - 1}},
		"MaxBytes":   {{MaxBytes: -1}, {MaxBytes: 4<<20 - 1}},
		"DedupSize":  {{DedupSize: -1}, {DedupSize: 1<<24 + 1}},
	} {
		t.Run("a bad "+field+" is ErrInvalid and named", func(t *testing.T) {
			for _, cfg := range cfgs {
				_, err := Open(t.Context(), cfg)
				require.ErrorIs(t, err, notification.ErrInvalid)
				require.Contains(t, err.Error(), field)
			}
		})
	}

	t.Run("an option of NATS that fails is the error of Open", func(t *testing.T) {
		bad := errors.New("bad option")
		_, err := Open(t.Context(), Config{NATS: []nats.Option{nil, func(*nats.Options) error { return bad }}})
		require.ErrorIs(t, err, bad)
	})
}

func TestOpen(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})

	t.Run("each lane of each partition has a stream as the package says", func(t *testing.T) {
		open(t, Config{URL: s.URL, Name: "made", Partitions: 2, Retention: 5 * time.Minute, MaxBytes: 5 << 20, DedupSize: 77})
		js := natstest.JetStream(t, s.Connect())
		for _, lane := range []string{"P0", "P1", "P2", "P3"} {
			for _, partition := range []string{"0", "1"} {
				stream, err := js.Stream(patient(t), "made_"+lane+"_"+partition)
				require.NoError(t, err)
				c := stream.CachedInfo().Config
				require.Equal(t, []string{"made." + lane + "." + partition}, c.Subjects)
				require.Equal(t, jetstream.FileStorage, c.Storage)
				require.Equal(t, jetstream.LimitsPolicy, c.Retention)
				require.Equal(t, jetstream.DiscardOld, c.Discard)
				require.Equal(t, 5*time.Minute, c.MaxAge)
				require.EqualValues(t, 5<<20, c.MaxBytes)
				require.Equal(t, 2*time.Minute, c.Duplicates)
				require.True(t, c.DenyDelete)
				require.True(t, c.DenyPurge)
				require.False(t, c.AllowDirect)
				require.Equal(t, 10_000, c.MaxConsumers)
				require.Equal(t, 1, c.Replicas)
				require.Equal(t, "1", c.Metadata["notification-format"])
				require.Equal(t, "2", c.Metadata["notification-partitions"])
				require.Equal(t, "77", c.Metadata["notification-dedup-size"])
				require.Error(t, stream.Purge(patient(t)))
				require.Error(t, stream.DeleteMsg(patient(t), 1))
			}
		}
	})

	t.Run("a second Open finds what the first has made", func(t *testing.T) {
		cfg := Config{URL: s.URL, Name: "twice", MaxBytes: 4 << 20}
		open(t, cfg)
		open(t, cfg)
	})

	t.Run("of many at once all find the same", func(t *testing.T) {
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for range 8 {
			wg.Go(func() { // ends with Open
				l, err := Open(patient(t), Config{URL: s.URL, NATS: patiently, Name: "at-once", Partitions: 3, MaxBytes: 4 << 20})
				if err == nil {
					err = l.Close()
				}
				errs <- err
			})
		}
		wg.Wait()
		for range 8 {
			require.NoError(t, <-errs)
		}
	})

	was := Config{URL: s.URL, NATS: patiently, Name: "was", Partitions: 2, MaxBytes: 4 << 20}
	open(t, was)
	for field, change := range map[string]func(*Config){
		"Partitions":              func(c *Config) { c.Partitions = 1 },
		"Partitions is 2, not 4":  func(c *Config) { c.Partitions = 4 },
		"DedupSize":               func(c *Config) { c.DedupSize = 5 },
		"Retention":               func(c *Config) { c.Retention = time.Hour },
		"MaxBytes":                func(c *Config) { c.MaxBytes = 5 << 20 },
		"Replicas":                func(c *Config) { c.Replicas = 3 },
		"duplicate_window is 2m0": func(c *Config) { c.duplicates = time.Minute },
	} {
		t.Run("another "+field+" is ErrConfig and named", func(t *testing.T) {
			cfg := was
			change(&cfg)
			_, err := Open(patient(t), cfg)
			require.ErrorIs(t, err, ErrConfig)
			require.Contains(t, err.Error(), field)
			require.Contains(t, err.Error(), "was_P0_0")
		})
	}

	t.Run("with another number of partitions nothing is created", func(t *testing.T) {
		js := natstest.JetStream(t, s.Connect())
		_, err := js.Stream(patient(t), "was_P0_2")
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	})

	t.Run("a stream that somebody else has changed is ErrConfig, and what was changed is named", func(t *testing.T) {
		js := natstest.JetStream(t, s.Connect())
		i := 0
		for field, change := range map[string]func(*jetstream.StreamConfig){
			"discard policy":      func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew },
			"max_msgs":            func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 },
			"max_msg_size":        func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
			"allow_direct":        func(c *jetstream.StreamConfig) { c.AllowDirect = true },
			"no_ack":              func(c *jetstream.StreamConfig) { c.NoAck = true },
			"subjects":            func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, c.Name+".more") },
			"notification-format": func(c *jetstream.StreamConfig) { c.Metadata["notification-format"] = "2" },
			"allow_msg_ttl":       func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true },
		} {
			i++
			cfg := Config{URL: s.URL, NATS: patiently, Name: fmt.Sprint("changed", i), MaxBytes: 4 << 20}
			l := open(t, cfg)
			c := l.streamConfig(notification.P2, 0)
			change(&c)
			_, err := js.UpdateStream(patient(t), c)
			require.NoError(t, err, field)
			_, err = Open(patient(t), cfg)
			require.ErrorIs(t, err, ErrConfig, field)
			require.Contains(t, err.Error(), field)
		}
	})

	t.Run("a stream in memory, or of somebody else, is ErrConfig", func(t *testing.T) {
		js := natstest.JetStream(t, s.Connect())
		_, err := js.CreateStream(patient(t), jetstream.StreamConfig{Name: "alien_P0_0", Subjects: []string{"alien.P0.0"}, Storage: jetstream.MemoryStorage})
		require.NoError(t, err)
		_, err = Open(patient(t), Config{URL: s.URL, NATS: patiently, Name: "alien"})
		require.ErrorIs(t, err, ErrConfig)
	})

	t.Run("a subject that another stream has is an error", func(t *testing.T) {
		js := natstest.JetStream(t, s.Connect())
		_, err := js.CreateStream(patient(t), jetstream.StreamConfig{Name: "greedy", Subjects: []string{"taken.>"}})
		require.NoError(t, err)
		_, err = Open(patient(t), Config{URL: s.URL, NATS: patiently, Name: "taken"})
		require.ErrorContains(t, err, "taken_P0_0")
	})

	t.Run("a server without room for MaxBytes is an error that names the stream", func(t *testing.T) {
		_, err := Open(patient(t), Config{URL: s.URL, NATS: patiently, Name: "huge", MaxBytes: 1 << 40})
		require.ErrorContains(t, err, "huge_P0_0")
	})

	t.Run("a server that is not there is an error", func(t *testing.T) {
		_, err := Open(patient(t), Config{URL: "nats://127.0.0.1:1"}) // a port that nobody is given by the system
		require.ErrorIs(t, err, nats.ErrNoServers)
	})

	t.Run("a server that does not answer is ctx's error", func(t *testing.T) {
		mute, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer mute.Close()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // ends with the first that comes
			if c, err := mute.Accept(); err == nil {
				defer c.Close()
			}
			cancel()
		}()
		_, err = Open(ctx, Config{URL: "nats://" + mute.Addr().String()})
		require.ErrorIs(t, err, context.Canceled)
	})

	t.Run("Close may be called twice", func(t *testing.T) {
		l := open(t, Config{URL: s.URL, Name: "twice", MaxBytes: 4 << 20})
		require.NoError(t, l.Close())
		require.NoError(t, l.Close())
	})
}

// A honest server says whether it syncs.
type honest struct {
	url   string
	syncs bool
}

func (h honest) InProcessConn() (net.Conn, error) {
	return net.Dial("tcp", strings.TrimPrefix(h.url, "nats://"))
}
func (h honest) SyncAlways() bool { return h.syncs }

func TestOpenWarns(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	logged := func(options ...nats.Option) string {
		var log bytes.Buffer
		open(t, Config{URL: s.URL, NATS: options, MaxBytes: 4 << 20, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		return log.String()
	}
	t.Run("of a server that does not tell whether it syncs", func(t *testing.T) {
		require.Contains(t, logged(), "sync_always")
	})
	t.Run("of one in this process that does not sync", func(t *testing.T) {
		require.Contains(t, logged(nats.InProcessServer(honest{s.URL, false})), "sync_always")
	})
	t.Run("not of one that does", func(t *testing.T) {
		require.Empty(t, logged(nats.InProcessServer(honest{s.URL, true})))
	})
}

func TestReconnectHandler(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	proxy := natstest.NewProxy(t, s.URL)
	back := make(chan struct{}, 10)
	l := open(t, Config{URL: proxy.URL, NATS: []nats.Option{
		nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }),
		nats.MaxReconnects(1), nats.ReconnectBufSize(1 << 20),
	}})
	again := l.bulk.reconnect()
	proxy.CloseConnections()
	<-again // the Log's own
	<-back  // the caller's: of two connections
	<-back
	require.Equal(t, -1, l.bulk.nc.Opts.MaxReconnect, "it comes back for ever, whatever the caller says")
}
