package natslog

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// The server is a process of its own, on the same machine, and writes to the disk
// that holds os.TempDir. Commands and figures: SIZING.md.

// sample is a notification of some 200 bytes.
func sample(i int, lane notification.Priority) *notification.Notification {
	n := notification.New("user-"+strconv.Itoa(i%1000), notification.TradeExecuted{
		TradeID: "t-1234567", OrderID: "o-7654321", ExchangeOrderID: "x-7654321", InstrumentID: "cu2512", Direction: "BUY", Offset: "OPEN",
		Price: 50100, Volume: 2, Commission: 1.25, FillType: "PARTIAL", Timestamp: time.Now().UnixNano(),
	}, "MatchingEngine")
	n.Priority = lane
	return n
}

// BenchmarkPublishWait is acknowledged publishing by callers that each wait for one
// notification before the next: to one server, and to three that all have it, on the
// same machine and disk.
func BenchmarkPublishWait(b *testing.B) {
	for _, synced := range []bool{false, true} {
		for _, replicas := range []int{1, 3} {
			config := natstest.Config{SyncAlways: synced}
			var url string
			if replicas == 1 {
				url = natstest.Start(b, config).URL
			} else {
				url = natstest.StartCluster(b, config).URL
			}
			benchmarkPublishWait(b, fmt.Sprintf("synced=%t/replicas=%d", synced, replicas), Config{URL: url, Replicas: replicas, MaxBytes: 64 << 20})
		}
	}
}

func benchmarkPublishWait(b *testing.B, name string, cfg Config) {
	for _, callers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) {
			l := open(b, cfg)
			p := publisher(b, l, PublisherConfig{Linger: [notification.NumPriorities]time.Duration{-1, -1, -1, -1}})
			took := make([]time.Duration, 0, 1<<20)
			var mu sync.Mutex
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for c := range callers {
				wg.Go(func() { // ends when nothing is left
					var own []time.Duration
					for i := c; left.Add(-1) >= 0; i++ {
						began := time.Now()
						if err := p.PublishWait(context.Background(), sample(i, notification.P1)); err != nil {
							b.Error(err)
							return
						}
						own = append(own, time.Since(began))
					}
					mu.Lock()
					took = append(took, own...)
					mu.Unlock()
				})
			}
			wg.Wait()
			b.StopTimer()
			report(b, took)
			st := p.Stats().Lanes[notification.P1]
			b.ReportMetric(float64(st.Acknowledged)/float64(st.Blocks), "msgs/block")
		})
	}
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	if len(took) == 0 {
		return
	}
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "msgs/s")
}

// BenchmarkPublish is publishing flat out, with blocks of a size: one goroutine, as
// much as the lane holds.
func BenchmarkPublish(b *testing.B) {
	archive, err := sample(100, notification.P1).MarshalBinary()
	require.NoError(b, err)
	for _, synced := range []bool{false, true} {
		s := natstest.Start(b, natstest.Config{SyncAlways: synced})
		for _, v := range []struct{ entries, streams int }{{1024, 1}, {1024, 4}, {256, 1}, {256, 4}, {64, 1}, {16, 1}} {
			b.Run(fmt.Sprintf("synced=%t/entries=%d/streams=%d", synced, v.entries, v.streams), func(b *testing.B) {
				l := open(b, Config{URL: s.URL, Partitions: v.streams, Name: "of-" + strconv.Itoa(v.streams), MaxBytes: 64 << 20})
				p := publisher(b, l, PublisherConfig{BlockBytes: v.entries * (len(archive) + 2)})
				var acknowledged sync.WaitGroup
				room := make(chan struct{}, 1)
				done := func(err error) {
					if err != nil {
						b.Error(err)
					}
					acknowledged.Done()
					rouse(room)
				}
				ns := make([]*notification.Notification, 4096)
				for i := range ns {
					ns[i] = sample(i, notification.P1)
				}
				b.ReportAllocs()
				b.ResetTimer()
				acknowledged.Add(b.N)
				for i := range b.N {
					for p.Publish(ns[i%len(ns)], done) != nil {
						<-room
					}
				}
				acknowledged.Wait()
				b.StopTimer()
				st := p.Stats().Lanes[notification.P1]
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
				b.ReportMetric(float64(st.Acknowledged)/float64(st.Blocks), "msgs/block")
				require.EqualValues(b, b.N, st.Acknowledged)
			})
		}
	}
}

// BenchmarkSingly is what one would do without blocks: each notification is a message
// of JetStream with a Msg-Id, published asynchronously. With retries it keeps no order.
func BenchmarkSingly(b *testing.B) {
	for _, synced := range []bool{false, true} {
		s := natstest.Start(b, natstest.Config{SyncAlways: synced})
		b.Run(fmt.Sprintf("synced=%t", synced), func(b *testing.B) {
			l := open(b, Config{URL: s.URL, MaxBytes: 64 << 20})
			js, err := jetstream.New(l.bulk.nc, jetstream.WithPublishAsyncMaxPending(1024))
			require.NoError(b, err)
			ns := make([]*notification.Notification, 4096)
			for i := range ns {
				ns[i] = sample(i, notification.P1)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				data, err := ns[i%len(ns)].MarshalBinary()
				require.NoError(b, err)
				_, err = js.PublishMsgAsync(newBlockMsg(l.subject(notification.P1, 0), strconv.Itoa(i)+b.Name()+strconv.Itoa(b.N), 1, data), jetstream.WithStallWait(time.Minute))
				require.NoError(b, err)
			}
			<-js.PublishAsyncComplete()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}
