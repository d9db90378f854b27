package natslog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// seed returns what a random test begins with: NOTIFICATION_SEED, or one of its
// own, which a failing test tells so that it can be run again with it.
func seed(t testing.TB) *rand.Rand {
	s := rand.Uint64()
	if env := os.Getenv("NOTIFICATION_SEED"); env != "" {
		var err error
		s, err = strconv.ParseUint(env, 10, 64)
		require.NoError(t, err, "NOTIFICATION_SEED")
	}
	t.Logf("NOTIFICATION_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// A stream of so many IDs, in which many stand several times, some just within a
// window of size and some just outside.
func randomIDs(r *rand.Rand, n, size int) []string {
	all := make([]string, 0, n)
	for i := range n {
		switch back := 0; r.IntN(4) {
		case 0:
			back = 1 + r.IntN(2*size)
			if r.IntN(2) == 0 {
				back = size + r.IntN(3) - 1
			}
			if back > 0 && back <= i {
				all = append(all, all[i-back])
				continue
			}
			fallthrough
		default:
			all = append(all, fmt.Sprint("id-", i))
		}
	}
	return all
}

func TestWindow(t *testing.T) {
	r := seed(t)
	for _, size := range []int{1, 2, 3, 10, 100} {
		t.Run(fmt.Sprintf("of %d entries, it decides as one who looks them through", size), func(t *testing.T) {
			all := randomIDs(r, 20_000, size)
			w, repeats := newWindow(size), 0
			for i, id := range all {
				want := slices.Contains(all[max(0, i-size):i], id)
				require.Equal(t, want, w.repeat(id), "entry %d, %s", i, id)
				if want {
					repeats++
				}
			}
			require.NotZero(t, repeats)
		})
	}

	t.Run("who begins anywhere decides as all others from size entries on", func(t *testing.T) {
		const size = 50
		all := randomIDs(r, 10_000, size)
		w := newWindow(size)
		var want []bool
		for _, id := range all {
			want = append(want, w.repeat(id))
		}
		for range 20 {
			from := r.IntN(len(all) - size)
			late := newWindow(size)
			for i, id := range all[from:] {
				if got := late.repeat(id); i >= size {
					require.Equal(t, want[from+i], got, "entry %d, begun at %d", from+i, from)
				}
			}
		}
	})

	t.Run("it keeps nothing of the buffer that the ID lies in", func(t *testing.T) {
		w := newWindow(3)
		buf := []byte("a")
		require.False(t, w.repeat(string(buf)))
		buf[0] = 'b'
		require.True(t, w.repeat("a"))
	})
}

func BenchmarkWindow(b *testing.B) {
	w := newWindow(1 << 16)
	ids := make([]string, 1<<18)
	for i := range ids {
		ids[i] = fmt.Sprintf("trade-%016x", i)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w.repeat(ids[i&(1<<18-1)])
		i++
	}
}
