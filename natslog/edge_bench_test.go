package natslog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// crowd is how many users there are, of which one in ten has a session.
const crowd = 1000

// A stopwatch is a sink that measures from the call of Publish to that of Push. The
// time stands in the ID.
type stopwatch struct {
	mu   sync.Mutex
	took []time.Duration
	n    atomic.Int64
}

func (w *stopwatch) Push(_ context.Context, batch []*notification.Message) error {
	at := time.Now().UnixNano()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range batch {
		if began, err := strconv.ParseInt(m.Notification().ID, 10, 64); err == nil && m.Notification().Priority == notification.P0 {
			w.took = append(w.took, time.Duration(at-began))
		}
	}
	w.n.Add(int64(len(batch)))
	return nil
}

func (w *stopwatch) Close(error) {}

// BenchmarkEdgeLatency is from the call of Publish of one P0 after the other, one in a
// millisecond, to the call of Push at an edge in the same process, alone and beside
// others' P1. The server is a process of its own.
func BenchmarkEdgeLatency(b *testing.B) {
	s := natstest.Start(b, natstest.Config{})
	for _, c := range []struct {
		name string
		rate int // of P1 per second; -1: as much as there can be
	}{{"alone", 0}, {"beside=10000", 10_000}, {"beside=50000", 50_000}, {"beside=all", -1}} {
		b.Run(c.name, func(b *testing.B) {
			cfg := Config{URL: s.URL, Name: "latency" + strconv.Itoa(c.rate+1), MaxBytes: 64 << 20}
			p := publisher(b, open(b, cfg), PublisherConfig{})
			e := edge(b, open(b, cfg), "edge", EdgeConfig{Backlog: 32 << 20})
			w := &stopwatch{}
			for i := range crowd / 10 {
				user := "user-" + strconv.Itoa(i)
				_, err := e.RegisterSession(notification.SessionConfig{ID: user, UserID: user, Sink: w})
				require.NoError(b, err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var flood sync.WaitGroup
			var flooded atomic.Int64
			flood.Go(func() { // ends with cancel; waited for below
				began := time.Now()
				for ctx.Err() == nil && c.rate != 0 {
					due := int64(time.Since(began).Seconds() * float64(c.rate))
					for (c.rate < 0 || flooded.Load() < due) && ctx.Err() == nil {
						n := sample(int(flooded.Load()), notification.P1)
						if p.Publish(n, nil) != nil {
							break // the lane is full
						}
						flooded.Add(1)
					}
					<-time.After(time.Millisecond)
				}
			})
			if c.rate != 0 {
				natstest.Eventually(b, "the flood has come", func() bool { return w.n.Load() > crowd/10 })
			}
			before, began := flooded.Load(), time.Now()
			tick := time.NewTicker(time.Millisecond)
			for i := range b.N {
				n := sample(i%(crowd/10), notification.P0)
				<-tick.C
				n.ID = strconv.FormatInt(time.Now().UnixNano(), 10)
				require.NoError(b, p.Publish(n, nil))
			}
			tick.Stop()
			natstest.Eventually(b, "all have come", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(w.took) >= b.N
			})
			b.StopTimer()
			b.ReportMetric(float64(flooded.Load()-before)/time.Since(began).Seconds(), "P1/s")
			cancel()
			flood.Wait()
			slices.Sort(w.took)
			b.ReportMetric(float64(w.took[len(w.took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(w.took[len(w.took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// blockOf returns a block of n entries, for so many users, with IDs that begin with a
// number.
func blockOf(b *testing.B, lane notification.Priority, seq uint64, n, users int, from int) block {
	made := block{seq: seq, stored: time.Now(), count: n}
	for i := range n {
		note := sample(0, lane)
		note.UserID, note.ID = "user-"+strconv.Itoa((from+i)%users), strconv.Itoa(from+i)+"-0123456789abcdef"
		var err error
		made.data, err = note.AppendBinary(made.data)
		require.NoError(b, err)
	}
	return made
}

// BenchmarkEdgeTakes is an edge that takes in blocks of 256 entries of users that have
// no session there: all but the network.
func BenchmarkEdgeTakes(b *testing.B) {
	for _, users := range []int{crowd, 1_000_000} {
		b.Run(fmt.Sprintf("strangers=%d", users), func(b *testing.B) {
			const entries = 256
			f := newFedPartition(b, notification.GatewayConfig{})
			f.index.most = 64 << 20
			f.part.log.cfg.DedupSize = 1 << 16
			f.part.lanes[notification.P1].window = newWindow(1 << 16)
			f.warm()
			f.run()
			bytes := 0
			b.ReportAllocs()
			for i := range b.N {
				b.StopTimer()
				made := blockOf(b, notification.P1, uint64(i+1), entries, users, i*entries)
				bytes = len(made.data) / entries
				b.StartTimer()
				require.NoError(b, f.part.take(context.Background(), notification.P1, made))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*entries), "ns/entry")
			b.ReportMetric(float64(bytes), "B/archive")
		})
	}
}

// BenchmarkEdgeWarmsUp is from Run until sessions may come, with as many entries in the
// log.
func BenchmarkEdgeWarmsUp(b *testing.B) {
	const entries = 200_000
	s := natstest.Start(b, natstest.Config{})
	cfg := Config{URL: s.URL}
	l := open(b, cfg)
	p := publisher(b, l, PublisherConfig{})
	var acknowledged sync.WaitGroup
	acknowledged.Add(entries)
	room := make(chan struct{}, 1)
	for i := range entries {
		for p.Publish(sample(i, notification.P1), func(error) { acknowledged.Done(); rouse(room) }) != nil {
			<-room
		}
	}
	acknowledged.Wait()
	b.ResetTimer()
	for range b.N {
		e, err := l.NewEdge("edge", EdgeConfig{})
		require.NoError(b, err)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(context.Background()) }() // ends with Shutdown, below
		<-e.Ready()
		b.StopTimer()
		require.EqualValues(b, entries, e.Stats().Streams[notification.P1].WarmedUp)
		require.NoError(b, e.Shutdown(patient(b)))
		<-ended
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N*entries)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkMissed is what the index finds for a user who has missed ten of 256,000
// entries.
func BenchmarkMissed(b *testing.B) {
	f := newFedPartition(b, notification.GatewayConfig{})
	f.index.most = 1 << 30
	f.warm()
	for i := range 1000 {
		require.NoError(b, f.part.take(context.Background(), notification.P1, blockOf(b, notification.P1, uint64(i+1), 256, 25_600, i*256)))
		f.seq[notification.P1]++
	}
	upTo := f.index.At()
	after := upTo
	after[notification.P1] = endOf(0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		list, err := f.index.Missed(context.Background(), "user-"+strconv.Itoa(i%25_600), nil, after, upTo, 100)
		if err != nil || len(list) != 10 {
			b.Fatal(len(list), err)
		}
	}
}

// BenchmarkResumes is ten thousand clients that come to another edge at once because
// theirs was killed, while 10,000 P1 a second go on, and what it costs the server.
func BenchmarkResumes(b *testing.B) {
	const clients = 10_000
	s := natstest.Start(b, natstest.Config{})
	cfg := Config{URL: s.URL}
	p := publisher(b, open(b, cfg), PublisherConfig{})
	stays := edge(b, open(b, cfg), "stays", EdgeConfig{})
	var before, during, calm, busy time.Duration
	for range b.N {
		b.StopTimer()
		killed, err := open(b, cfg).NewEdge("killed", EdgeConfig{})
		require.NoError(b, err)
		ctx, kill := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- killed.Run(ctx) }() // ends with kill; waited for below
		<-killed.Ready()
		sinks := make([]*stopwatch, clients)
		sessions := make([]*notification.Session, clients)
		for i := range sinks {
			user := "user-" + strconv.Itoa(i)
			sinks[i] = &stopwatch{}
			sessions[i], err = killed.RegisterSession(notification.SessionConfig{ID: user, UserID: user, Sink: sinks[i]})
			require.NoError(b, err)
		}
		load, stop := context.WithCancel(context.Background())
		var flood sync.WaitGroup
		flood.Go(func() { // ends with stop; waited for below
			for i := 0; load.Err() == nil; i++ {
				n := sample(0, notification.P1)
				n.UserID = "user-" + strconv.Itoa(i%clients)
				_ = p.Publish(n, nil)
				if i%10 == 0 {
					<-time.After(time.Millisecond)
				}
			}
		})
		natstest.Eventually(b, "all have got something", func() bool { return sinks[clients-1].n.Load() > 0 })
		at, took := cpuOf(b, s), time.Now()
		<-time.After(time.Second)
		before, calm = before+cpuOf(b, s)-at, calm+time.Since(took)
		kill()
		<-ended
		cursors := make([]notification.Cursor, clients)
		for i, session := range sessions {
			cursors[i] = session.Cursor()
		}
		at, took = cpuOf(b, s), time.Now()
		b.StartTimer()
		var coming sync.WaitGroup
		var next atomic.Int64
		again := make([]*notification.Session, clients)
		for range 200 { // connections are accepted one after the other, too
			coming.Go(func() { // ends when all have come; waited for below
				for i := next.Add(1) - 1; i < clients; i = next.Add(1) - 1 {
					user := "user-" + strconv.Itoa(int(i))
					err := notification.ErrTryAgain // as long as the edge is far behind the one that was killed
					for errors.Is(err, notification.ErrTryAgain) {
						again[i], err = stays.RegisterSession(notification.SessionConfig{ID: user, UserID: user, Sink: sinks[i], After: cursors[i]})
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		coming.Wait()
		b.StopTimer()
		during, busy = during+cpuOf(b, s)-at, busy+time.Since(took)
		stop()
		flood.Wait()
		for _, session := range again {
			_ = session.Close()
			<-session.Done()
		}
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/10000-resumes")
	b.ReportMetric(100*before.Seconds()/calm.Seconds(), "server-%-before")
	b.ReportMetric(100*during.Seconds()/busy.Seconds(), "server-%-during")
}

// cpuOf returns the processor time of a server, or 0 where that cannot be told.
func cpuOf(b *testing.B, s *natstest.Server) time.Duration {
	d, err := s.CPU()
	if err != nil {
		b.Log("the server's CPU is not known:", err)
	}
	return d
}
