package notification

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// recorded returns the Histogram of samples.
func recorded(samples ...time.Duration) Histogram {
	var r HistogramRecorder
	for _, d := range samples {
		r.Record(d)
	}
	return r.Snapshot()
}

// requireQuantiles compares h with the samples it is of: their quantiles by
// nearest rank, of which h's may be 6.25 % too high.
func requireQuantiles(t testing.TB, h Histogram, samples []time.Duration) {
	t.Helper()
	require.EqualValues(t, len(samples), h.Count())
	sorted := slices.Clone(samples)
	slices.Sort(sorted)
	for _, q := range []float64{-1, 0, 1e-9, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1, 2} {
		got := h.Quantile(q)
		if len(sorted) == 0 {
			require.Zero(t, got)
			continue
		}
		rank := int(math.Ceil(min(max(q, 0), 1) * float64(len(sorted))))
		exact := max(sorted[max(rank, 1)-1], 0)
		require.GreaterOrEqual(t, got, exact, "quantile %g of %d", q, len(sorted))
		require.LessOrEqual(t, got-exact, exact/16, "quantile %g of %d is %s", q, len(sorted), exact)
	}
}

// distributions draw latencies.
var distributions = map[string]func(r *rand.Rand) time.Duration{
	"constant":     func(*rand.Rand) time.Duration { return 1234567 },
	"zero":         func(*rand.Rand) time.Duration { return 0 },
	"tiny":         func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(40)) },
	"uniform":      func(r *rand.Rand) time.Duration { return time.Duration(r.Int64N(1 << 40)) },
	"hours":        func(r *rand.Rand) time.Duration { return time.Duration((1 + r.Float64()*100) * float64(time.Hour)) },
	"all octaves":  func(r *rand.Rand) time.Duration { return time.Duration(r.Uint64() >> (1 + r.IntN(63))) },
	"exponential":  func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * 1e6) },
	"powers of 2":  func(r *rand.Rand) time.Duration { return 1 << r.IntN(63) },
	"and negative": func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(2000) - 1000) },
}

func draw(r *rand.Rand, from func(r *rand.Rand) time.Duration, n int) []time.Duration {
	samples := make([]time.Duration, n)
	for i := range samples {
		samples[i] = from(r)
	}
	return samples
}

func TestHistogram(t *testing.T) {
	for name, from := range distributions {
		t.Run("a quantile is that of the sorted data or up to 6.25 % more: "+name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed(t), 0))
			for _, n := range []int{0, 1, 2, 3, 10, 999, 10_000} {
				samples := draw(r, from, n)
				h := recorded(samples...)
				requireQuantiles(t, h, samples)
				if n > 0 {
					require.Equal(t, max(slices.Max(samples), 0), h.Max())
					require.Equal(t, h.Max(), h.Quantile(1), "no quantile is over the largest")
				}
			}
		})
		t.Run("a difference is the Histogram of what came between: "+name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed(t), 0))
			var rec HistogramRecorder
			var earlier Histogram
			for _, n := range []int{0, 1, 5, 0, 3000, 50} {
				samples := draw(r, from, n)
				for _, d := range samples {
					rec.Record(d)
				}
				later := rec.Snapshot()
				requireQuantiles(t, later.Sub(earlier), samples)
				earlier = later
			}
		})
		t.Run("a sum is the Histogram of both: "+name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed(t), 0))
			x, y := draw(r, from, 1000), draw(r, distributions["all octaves"], 300)
			hx, hy := recorded(x...), recorded(y...)
			both := recorded(slices.Concat(x, y)...)
			require.Equal(t, both, hx.Add(hy))
			require.Equal(t, both, hy.Add(hx))
			requireQuantiles(t, hx.Add(hy).Sub(hy), x)
		})
	}

	t.Run("the zero value is empty", func(t *testing.T) {
		for _, h := range []Histogram{{}, recorded(), Histogram{}.Add(Histogram{}), Histogram{}.Sub(Histogram{}), recorded(5).Sub(recorded(5))} {
			require.Zero(t, h.Count())
			require.Zero(t, h.Max())
			for _, q := range []float64{0, 0.5, 1, math.NaN(), math.Inf(1), math.Inf(-1)} {
				require.Zero(t, h.Quantile(q))
			}
			for range h.Buckets() {
				t.Fatal("a bucket")
			}
		}
	})

	t.Run("the zero value is neutral", func(t *testing.T) {
		h := recorded(0, 1, 77, 12345, time.Second)
		for _, zero := range []Histogram{{}, recorded()} {
			require.Equal(t, h, h.Add(zero))
			require.Equal(t, h, zero.Add(h))
			require.Equal(t, h, h.Sub(zero))
		}
	})

	t.Run("a difference the wrong way round is empty and no panic", func(t *testing.T) {
		earlier := recorded(1, 2, 3)
		later := earlier.Add(recorded(1, 2, 3))
		require.Zero(t, earlier.Sub(later).Count())
		require.Zero(t, Histogram{}.Sub(later).Count())
	})

	t.Run("no method changes it", func(t *testing.T) {
		a, b := recorded(1, 20, 300), recorded(4000, 50000)
		wasA, wasB := slices.Clone(a.counts), slices.Clone(b.counts)
		a.Add(b)
		a.Sub(b)
		b.Sub(a)
		a.Quantile(0.5)
		for range a.Buckets() {
		}
		require.Equal(t, Histogram{wasA, 3, 300}, a)
		require.Equal(t, Histogram{wasB, 2, 50000}, b)
	})

	t.Run("a negative latency is none", func(t *testing.T) {
		h := recorded(-1, math.MinInt64, -time.Hour)
		require.EqualValues(t, 3, h.Count())
		require.Zero(t, h.Max())
		require.Zero(t, h.Quantile(1))
	})

	t.Run("a quantile of days is as exact as one of microseconds", func(t *testing.T) {
		day := 24 * time.Hour
		h := recorded(time.Microsecond, time.Hour, day, 10*day, 365*day)
		for i, want := range []time.Duration{time.Microsecond, time.Hour, day, 10 * day, 365 * day} {
			got := h.Quantile(float64(i+1) / 5)
			require.GreaterOrEqual(t, got, want)
			require.LessOrEqual(t, got, want+want/16)
		}
	})

	t.Run("the longest Duration there is has a bucket", func(t *testing.T) {
		h := recorded(1<<62, math.MaxInt64-1, math.MaxInt64)
		require.EqualValues(t, 3, h.Count())
		require.Equal(t, time.Duration(math.MaxInt64), h.Max())
		require.Equal(t, time.Duration(math.MaxInt64), h.Quantile(1))
		require.Less(t, h.Quantile(0), time.Duration(1<<62+1<<58))
	})

	t.Run("it takes 7.5 KiB", func(t *testing.T) {
		require.EqualValues(t, 7680+8, unsafe.Sizeof(HistogramRecorder{}))
	})

	t.Run("a quantile that is no number is some latency", func(t *testing.T) {
		got := recorded(10, 20).Quantile(math.NaN())
		require.Contains(t, []time.Duration{10, 20}, got)
	})

	t.Run("Buckets yields those that are not empty, in order, and all of it", func(t *testing.T) {
		h := recorded(3, 3, 0, math.MaxInt64, 1000, 1023, 1024)
		var bounds []time.Duration
		var counts []uint64
		for bound, n := range h.Buckets() {
			bounds, counts = append(bounds, bound), append(counts, n)
		}
		require.Equal(t, []time.Duration{0, 3, 1023, 1087, math.MaxInt64}, bounds)
		require.Equal(t, []uint64{1, 2, 2, 1, 1}, counts)
		for range h.Buckets() {
			break // and that is the end of it
		}
	})

	t.Run("the buckets are of at most 6.25 % and cover everything", func(t *testing.T) {
		require.Zero(t, bucketOf(0))
		for i := range numBuckets {
			top := bucketMax(i)
			require.Equal(t, i, bucketOf(top))
			if i < numBuckets-1 {
				require.Equal(t, i+1, bucketOf(top+1), "where one ends the next begins")
			}
			low := time.Duration(0)
			if i > 0 {
				low = bucketMax(i-1) + 1
			}
			require.LessOrEqual(t, top-low, low/16, "bucket %d", i)
		}
		require.Equal(t, time.Duration(math.MaxInt64), bucketMax(numBuckets-1))
		require.Equal(t, numBuckets-1, bucketOf(math.MaxInt64))
	})
}

func TestRecorder(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		const writers = 4
		each := sized(50_000, 10_000)
		var r HistogramRecorder
		var wg, reader sync.WaitGroup
		var over atomic.Bool
		reader.Go(func() {
			last := r.Snapshot()
			for !over.Load() {
				h := r.Snapshot()
				for i := range h.counts {
					if h.counts[i] < last.counts[i] {
						t.Errorf("bucket %d went back", i)
					}
				}
				if h.max < last.max {
					t.Error("the maximum went back")
				}
				last = h
			}
		})
		var want []time.Duration
		var mu sync.Mutex
		s := seed(t)
		for k := range writers {
			wg.Go(func() {
				samples := draw(rand.New(rand.NewPCG(s, uint64(k))), distributions["all octaves"], each)
				for _, d := range samples {
					r.Record(d)
				}
				mu.Lock()
				want = append(want, samples...)
				mu.Unlock()
			})
		}
		wg.Wait()
		over.Store(true)
		reader.Wait()
		h := r.Snapshot()
		requireQuantiles(t, h, want)
		require.Equal(t, slices.Max(want), h.Max())
	})

	t.Run("recording allocates nothing", func(t *testing.T) {
		var r HistogramRecorder
		require.Zero(t, testing.AllocsPerRun(100, func() { r.Record(12345) }))
	})
}

func TestBrokerStats(t *testing.T) {
	t.Run("a new Broker has counted nothing", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{QueueCapacity: [NumPriorities]int{1, 2, 3, 4}})
		s := b.Stats()
		for p, l := range s.Lanes {
			require.Equal(t, BrokerLane{Capacity: p + 1}, counters(l))
			require.Zero(t, l.Latency.Count())
		}
		require.Zero(t, s.DedupSpan)
		require.Zero(t, s.Users)
		require.Empty(t, s.Receivers)
	})

	t.Run("a snapshot does not change with the Broker, nor the Broker with it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			runBroker(t, b)
			require.NoError(t, b.RegisterReceiver(newStation("r", 9)))
			require.NoError(t, b.Subscribe("u", "r"))
			require.NoError(t, b.Publish(note("1", "u", P1)))
			synctest.Wait()
			s := b.Stats()
			require.NoError(t, b.Publish(note("2", "u", P1)))
			synctest.Wait()
			require.EqualValues(t, 1, s.Lanes[P1].Latency.Count())
			require.EqualValues(t, 1, s.Receivers[0].Handed)
			s.Receivers[0].ID, s.Receivers[0].Handed = "x", 99
			require.EqualValues(t, 2, receiverStats(t, b, "r").Handed)
		})
	})

	t.Run("DedupSpan is the age of the oldest ID remembered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{DedupSize: 3})
			for i, id := range series("", 3) {
				require.NoError(t, b.Publish(note(id, "u", P1)))
				require.Equal(t, time.Duration(i)*time.Second, b.Stats().DedupSpan)
				pass(time.Second)
			}
			require.Equal(t, 3*time.Second, b.Stats().DedupSpan)
			require.NoError(t, b.Publish(note("1", "u", P1)), "a repeat")
			require.Equal(t, 3*time.Second, b.Stats().DedupSpan)
			require.NoError(t, b.Publish(note("4", "u", P1)), "which forgets 1")
			require.Equal(t, 2*time.Second, b.Stats().DedupSpan)
		})
	})

	t.Run("Latency is from Publish until handed over, the wait for room included", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{QueueCapacity: lanes(1)})
			require.NoError(t, b.Publish(note("1", "u", P2)))
			pass(time.Second)
			done := make(chan error, 1)
			go func() { done <- b.PublishWait(t.Context(), note("2", "u", P2)) }()
			pass(3 * time.Second)
			runBroker(t, b)
			require.NoError(t, <-done)
			synctest.Wait()
			h := b.Stats().Lanes[P2].Latency
			require.EqualValues(t, 2, h.Count())
			require.InEpsilon(t, 3*time.Second, h.Quantile(0.5), 1.0/16)
			require.Equal(t, 4*time.Second, h.Max())
		})
	})

	t.Run("Users, receivers and those that departed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker(t, BrokerConfig{})
			runBroker(t, b)
			for _, id := range []string{"c", "a"} {
				require.NoError(t, b.RegisterReceiver(newStation(id, 9)))
			}
			require.NoError(t, b.SubscribeGlobal("b", make(chan *Message, 1), DropNewest))
			require.NoError(t, b.Subscribe("u", "a"))
			require.NoError(t, b.Subscribe("u", "c"))
			require.NoError(t, b.Subscribe("v", "c"))
			for i, user := range []string{"u", "v", "w"} {
				require.NoError(t, b.Publish(note(fmt.Sprint(i), user, P1)))
			}
			synctest.Wait()
			s := b.Stats()
			require.Equal(t, 2, s.Users)
			require.Equal(t, []ReceiverStats{{ID: "a", Handed: 1}, {ID: "b", Global: true, Handed: 1, Dropped: 2}, {ID: "c", Handed: 2}}, s.Receivers)
			require.EqualValues(t, 2, s.Lanes[P1].Routed)
			require.EqualValues(t, 1, s.Lanes[P1].Unrouted, "a global subscriber is no route")

			require.NoError(t, b.Unregister("c"))
			require.NoError(t, b.UnsubscribeGlobal("b"))
			s = b.Stats()
			require.Equal(t, 1, s.Users)
			require.Equal(t, []ReceiverStats{{ID: "a", Handed: 1}}, s.Receivers)
			require.Equal(t, ReceiverStats{Handed: 3, Dropped: 2}, s.Departed)
			conserved(t, b)
		})
	})
}
