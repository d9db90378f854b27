package notification

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"
	"weak"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/stretchr/testify/require"
)

// A dedupOracle runs a dedup beside an LRU that is never told to promote, which
// is the same thing made of other parts.
type dedupOracle struct {
	d    *dedup
	lru  *simplelru.LRU[string, int64]
	hash func(id string) uint32
	at   int64
}

func newDedupOracle(t testing.TB, size int, hash func(d *dedup) func(id string) uint32) *dedupOracle {
	lru, err := simplelru.NewLRU[string, int64](size, nil)
	require.NoError(t, err)
	d := newDedup(size)
	return &dedupOracle{d: d, lru: lru, hash: hash(d)}
}

// see does what Publish does with an ID.
func (o *dedupOracle) see(t testing.TB, id string) {
	h := o.hash(id)
	want := o.lru.Contains(id)
	if got := o.d.has(h, id); got != want {
		t.Fatalf("has(%#x, %q) is %t", h, id, got)
	}
	if want {
		return
	}
	o.at++
	o.lru.Add(id, o.at)
	o.d.add(h, id, o.at)
	if !o.d.has(h, id) {
		t.Fatalf("has(%#x, %q) is false right after add", h, id)
	}
}

// check compares all that can be compared, the index included.
func (o *dedupOracle) check(t testing.TB, universe []string) {
	for _, id := range universe {
		if want, got := o.lru.Contains(id), o.d.has(o.hash(id), id); got != want {
			t.Fatalf("has(%#x, %q) is %t", o.hash(id), id, got)
		}
	}
	_, want, wantOK := o.lru.GetOldest()
	at, ok := o.d.oldest()
	require.Equal(t, wantOK, ok)
	require.Equal(t, want, at, "oldest")
	used := 0
	for _, e := range o.d.index {
		if e != 0 {
			used++
		}
	}
	require.Equal(t, o.lru.Len(), used, "entries of the index")
	require.Equal(t, o.lru.Len(), o.d.count)
}

// hashes are ways to hash, most of them bad. The index is probed from the low
// bits on: those of one value make it a list, those around -1 make the probing
// wrap around, and the high bits are all that tells strangers apart.
var hashes = map[string]func(d *dedup) func(id string) uint32{
	"the hash":        func(d *dedup) func(string) uint32 { return d.hash },
	"one value":       func(*dedup) func(string) uint32 { return func(string) uint32 { return 0 } },
	"the last value":  func(*dedup) func(string) uint32 { return func(string) uint32 { return ^uint32(0) } },
	"three values":    func(d *dedup) func(string) uint32 { return func(id string) uint32 { return d.hash(id) % 3 } },
	"around the end":  func(d *dedup) func(string) uint32 { return func(id string) uint32 { return d.hash(id)%5 - 3 } },
	"only high bits":  func(d *dedup) func(string) uint32 { return func(id string) uint32 { return d.hash(id) << 28 } },
	"its own length":  func(*dedup) func(string) uint32 { return func(id string) uint32 { return uint32(len(id)) } },
	"clusters of ten": func(d *dedup) func(string) uint32 { return func(id string) uint32 { return d.hash(id) % 8 * 10 } },
}

func TestDedup(t *testing.T) {
	for name, hash := range hashes {
		for _, size := range []int{1, 2, 3, 4, 5, 8, 33, 200} {
			t.Run(fmt.Sprintf("a window of %d is an LRU that never promotes, hashing by %s", size, name), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed(t), 0))
				o := newDedupOracle(t, size, hash)
				for _, spread := range []int{1, 2, 4} { // times the window: how many IDs there are
					universe := series("", size*spread+1)
					for range sized(40, 10) {
						for range size {
							o.see(t, universe[r.IntN(len(universe))])
						}
						o.check(t, universe)
					}
				}
			})
		}
	}

	t.Run("an ID leaves when as many later ones as fit were added", func(t *testing.T) {
		for _, size := range []int{1, 2, 3, 10_000} {
			d := newDedup(size)
			add := func(id string) { d.add(d.hash(id), id, 0) }
			has := func(id string) bool { return d.has(d.hash(id), id) }
			add("first")
			for i := range size - 1 {
				add(strconv.Itoa(i))
				require.True(t, has("first"), "%d of %d later", i+1, size)
			}
			add("last")
			require.False(t, has("first"))
			require.True(t, has("last"))
		}
	})

	t.Run("an ID is not what merely hashes like it", func(t *testing.T) {
		d := newDedup(4)
		d.add(7, "a", 0)
		require.False(t, d.has(7, "b"))
		require.False(t, d.has(7, ""))
		require.True(t, d.has(7, "a"))
		require.False(t, d.has(7+uint32(len(d.index)), "a"), "the same place of the index, another hash")
	})

	t.Run("looking up and adding allocate nothing, full or not", func(t *testing.T) {
		const runs = 1000
		d, universe := newDedup(runs/2), series("some-longer-identifier-", runs+1) // AllocsPerRun runs once more
		i := 0
		require.Zero(t, testing.AllocsPerRun(runs, func() {
			id := universe[i]
			i++
			if h := d.hash(id); !d.has(h, id) {
				d.add(h, id, 0)
			}
		}))
	})

	t.Run("an ID has up to 256 bytes, as whichever it comes", func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed(t), 0))
		for _, name := range []string{"the hash", "one value"} {
			o := newDedupOracle(t, 20, hashes[name])
			var universe []string
			for n := range 257 { // with each length twice, beside those that differ in the last byte
				universe = append(universe, strings.Repeat("x", n), strings.Repeat("x", max(n-1, 0))+"y")
			}
			universe = universe[2:] // none is empty
			for range sized(20, 4) {
				for range 200 {
					i := 2*shortID - 20 + r.IntN(40) // around where an ID becomes long
					if r.IntN(4) == 0 {
						i = r.IntN(len(universe))
					}
					o.see(t, universe[i])
				}
				o.check(t, universe)
			}
			long := 0
			for i, e := range o.d.ring {
				if e.n == isLong {
					long++
					require.Greater(t, len(o.d.long[i]), shortID)
				}
			}
			require.Len(t, o.d.long, long, "long IDs that are forgotten are kept")
		}
	})

	t.Run("it keeps nothing of an ID alive, nor of what that is a part of", func(t *testing.T) {
		d := newDedup(10)
		var gone [3]weak.Pointer[byte]
		for i, n := range []int{1, shortID, shortID + 1} {
			whole := strings.Repeat(strconv.Itoa(i), 1000)
			gone[i] = weak.Make(unsafe.StringData(whole))
			d.add(d.hash(whole[:n]), whole[:n], 0)
		}
		runtime.GC()
		for i, p := range gone {
			require.Nil(t, p.Value(), i)
		}
		require.Equal(t, 3, d.count)
		runtime.KeepAlive(d)
	})

	t.Run("an ID costs 64 bytes and another 16 to 32 of the index", func(t *testing.T) {
		require.EqualValues(t, 64, unsafe.Sizeof(dedupEntry{}))
		for _, size := range []int{1, 2, 3, 1000, 10_000, 16_384, 16_385} {
			perID := float64(len(newDedup(size).index)) * 8 / float64(size)
			require.GreaterOrEqual(t, perID, 16.0, size)
			require.LessOrEqual(t, perID, 32.0, size)
		}
	})

	t.Run("in the largest window every position has 32 bits", func(t *testing.T) {
		require.Less(t, uint64(maxDedup), uint64(1)<<32)
	})
}

// Under the race detector it is a million.
func TestTenMillionIDsLeaveTheHeapFlat(t *testing.T) {
	const kib = 1 << 10
	t.Run("a window that was full once does not grow", func(t *testing.T) {
		total := sized(10_000_000, 1_000_000)
		d := newDedup(10_000)
		var base int64
		buf := make([]byte, 0, 32)
		for i := range total {
			if i == 50_000 { // every slot has held an ID
				base = heap()
			}
			buf = strconv.AppendInt(append(buf[:0], "order-"...), int64(i), 10)
			id := string(buf)
			h := d.hash(id)
			if d.has(h, id) {
				t.Fatalf("%s was never there", id)
			}
			d.add(h, id, 0)
		}
		require.Less(t, heap()-base, int64(512*kib))
	})

	t.Run("nor does a Broker, after a tenth as many", func(t *testing.T) {
		noLeaks(t)
		total := sized(1_000_000, 100_000)
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		var base int64
		for i := range total {
			if i == 50_000 {
				eventually(t, "the lane is empty", func() bool { return b.Stats().Lanes[P1].Queued == 0 })
				base = heap()
			}
			require.NoError(t, b.PublishWait(t.Context(), note("order-"+strconv.Itoa(i), "u", P1)))
		}
		drain(t, b)
		require.Less(t, heap()-base, int64(512*kib))
		conserved(t, b)
		accounted(t, b, uint64(total))
	})
}

// FuzzDedup takes each byte of script for an ID; spread degrades the hash to so
// many values, ending at the index's end.
func FuzzDedup(f *testing.F) {
	f.Add(uint8(1), uint8(1), []byte("abacabb"))
	f.Add(uint8(2), uint8(1), []byte("abacbabcabdbacbdbaadbc"))
	f.Add(uint8(7), uint8(3), []byte("the quick brown fox jumps over the lazy dog and back again"))
	f.Add(uint8(40), uint8(0), []byte("\x00\x01\x02\x03\x04\x05\x06\x07\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Fuzz(func(t *testing.T, size, spread uint8, script []byte) {
		o := newDedupOracle(t, int(size)%100+1, func(d *dedup) func(string) uint32 {
			if spread == 0 {
				return d.hash
			}
			return func(id string) uint32 { return uint32(id[0])%uint32(spread) - uint32(spread)/2 }
		})
		var universe []string
		for i := range 256 {
			universe = append(universe, string([]byte{byte(i)}))
		}
		for i, c := range script {
			o.see(t, universe[c])
			if i%16 == 0 {
				o.check(t, universe)
			}
		}
		o.check(t, universe)
	})
}
