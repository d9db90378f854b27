package notification

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// A naiveOutbox is an outbox made of slices.
type naiveOutbox [NumPriorities][]sequenced

func (o *naiveOutbox) total() (n int) {
	for _, lane := range o {
		n += len(lane)
	}
	return n
}

// same requires that an outbox tells the same as the naive one.
func (o *naiveOutbox) same(t *testing.T, got *outbox) {
	t.Helper()
	require.Equal(t, o.total(), got.total)
	require.Equal(t, int64(o.total()-len(o[P0])), got.lower())
	highest, lowest := P3, P0
	for p := P0; p <= P3; p++ {
		n := len(o[p])
		require.Equal(t, n, got.len(p))
		require.Equal(t, n, got.counts()[p])
		if n > 0 {
			require.Equal(t, o[p][0].seq, got.head(p))
			highest, lowest = min(highest, p), p
		}
	}
	require.Equal(t, highest, got.highest())
	require.Equal(t, lowest, got.lowest())
	noChunks(t, got)
}

func TestOutbox(t *testing.T) {
	t.Run("it agrees with four slices under random pushes and pops, and an empty lane holds no chunk", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		var o outbox
		var model naiveOutbox
		model.same(t, &o)
		for i := range sized(100_000, 20_000) {
			p := Priority(random.IntN(4))
			// In waves, so that it grows over many chunks and runs empty again.
			if push := random.IntN(100) < 50+45*((i/500)%2*2-1); push || model.total() == 0 {
				m := sequenced{random.Uint64(), NewMessage(note(strconv.Itoa(i), "u", p))}
				require.Equal(t, len(model[p]) == 0, o.push(m.m, m.seq), "the first of its lane")
				model[p] = append(model[p], m)
			} else {
				for len(model[p]) == 0 {
					p = Priority(random.IntN(4))
				}
				require.Same(t, model[p][0].m, o.pop(p))
				model[p] = model[p][1:]
			}
			model.same(t, &o)
		}
	})
	t.Run("a chunk keeps no message alive that was taken", func(t *testing.T) {
		var o outbox
		for _, id := range series("m", 20) {
			o.push(NewMessage(note(id, "u", P1)), 0)
		}
		c := o.lanes[P1].first
		for range 10 {
			o.pop(P1)
		}
		for i := range 10 {
			require.Equal(t, sequenced{}, c.entries[i])
		}
		require.NotNil(t, c.entries[10].m)
	})
	t.Run("a chunk fills the size class that it is made for", func(t *testing.T) {
		if strconv.IntSize == 64 {
			require.LessOrEqual(t, unsafe.Sizeof(chunk{}), uintptr(256))
			require.Greater(t, unsafe.Sizeof(chunk{}), uintptr(240), "the next smaller class")
		}
	})
	t.Run("a push and a pop allocate nothing once the chunks are there", func(t *testing.T) {
		if underRace {
			t.Skip("the race detector lets a sync.Pool forget")
		}
		var o outbox
		m := NewMessage(note("m", "u", P1))
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			for range 40 {
				o.push(m, 0)
			}
			for range 40 {
				o.pop(P1)
			}
		}))
	})
}

func TestTurnsOfABatch(t *testing.T) {
	t.Run("of any ten turns one goes to each lane that waits, the others to the highest", func(t *testing.T) {
		for mask := 1; mask < 16; mask++ {
			var waiting [NumPriorities]int
			highest, others := P3, 0
			for p := P3; p < NumPriorities; p-- {
				if mask>>p&1 == 1 {
					waiting[p] = 1 << 20
					highest = p
					others++
				}
			}
			others-- // lanes below the highest
			var given []Priority
			var ts turns
			for range 100 {
				given = append(given, ts.next(&waiting))
			}
			for at := 0; at+10 <= len(given); at++ {
				var counts [NumPriorities]int
				for _, p := range given[at : at+10] {
					counts[p]++
				}
				for p := range counts {
					switch {
					case waiting[p] == 0:
						require.Zero(t, counts[p])
					case Priority(p) == highest:
						require.Equal(t, 10-others, counts[p], "%04b from turn %d", mask, at)
					default:
						require.Equal(t, 1, counts[p], "%04b from turn %d", mask, at)
					}
				}
			}
		}
	})
	t.Run("share gives away what next gives, slot by slot, and everything if it fits", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		var shared, single turns
		for range 10_000 {
			var waiting [NumPriorities]int
			total := 0
			for p := range waiting {
				waiting[p] = random.IntN(4) * random.IntN(30)
				total += waiting[p]
			}
			size := 1 + random.IntN(40)
			got := shared.share(waiting, size)
			if total <= size {
				require.Equal(t, waiting, got)
				continue
			}
			var want [NumPriorities]int
			for range size {
				p := single.next(&waiting)
				waiting[p]--
				want[p]++
			}
			require.Equal(t, want, got)
			require.Equal(t, single, shared, "the count of ten goes on from batch to batch")
		}
	})
	t.Run("batches of one give each lane its turn as well", func(t *testing.T) {
		waiting := [NumPriorities]int{100, 100, 100, 100}
		var ts turns
		var sum [NumPriorities]int
		for range 50 {
			for p, n := range ts.share(waiting, 1) {
				sum[p] += n
				waiting[p] -= n
			}
		}
		require.Equal(t, [NumPriorities]int{35, 5, 5, 5}, sum)
	})
}
