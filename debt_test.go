package notification

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDebts(t *testing.T) {
	t.Run("a lane is throttled over the limit, until half of it is left", func(t *testing.T) {
		q, wake := barePool(1, 100)
		q.owe(P1, 100)
		require.False(t, q.throttle(P1), "at the limit")
		q.owe(P1, 1)
		require.True(t, q.throttle(P1))
		require.False(t, q.throttle(P2), "each lane by itself")
		q.owe(P1, -50)
		require.True(t, q.throttle(P1), "51 are left")
		require.False(t, roused(wake))
		q.owe(P1, -1)
		require.True(t, roused(wake), "the reader sleeps, and is to go on")
		require.False(t, q.throttle(P1))
		q.owe(P1, 50)
		require.False(t, q.throttle(P1), "at the limit again")
	})
	t.Run("a debt that is paid while the lane is not throttled rouses nobody", func(t *testing.T) {
		q, wake := barePool(1, 100)
		q.owe(P1, 90)
		q.owe(P1, -80)
		require.False(t, roused(wake))
	})
	t.Run("oweAll changes each lane by its own count", func(t *testing.T) {
		q, _ := barePool(1, 100)
		q.oweAll([NumPriorities]int{1, 2, 3, 4}, 1)
		q.oweAll([NumPriorities]int{0, 1, 0, 4}, -1)
		for p, want := range [NumPriorities]int64{1, 1, 3, 0} {
			require.Equal(t, want, q.debt[p].Load())
		}
	})
	t.Run("the reader hears of it, however payment and throttling race", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed(t), 0))
			work, paid := make(chan *pushPool), make(chan struct{})
			go func() { // ends with work
				for q := range work {
					q.owe(P1, -60)
					paid <- struct{}{}
				}
			}()
			defer close(work)
			for range sized(100_000, 10_000) {
				q, wake := barePool(1, 100)
				q.owe(P1, 101)
				work <- q
				for n := random.IntN(200); n > 0 && q.debt[P1].Load() > 100; n-- {
				}
				throttled := q.throttle(P1)
				<-paid
				if throttled {
					require.True(t, roused(wake), "it would sleep for good")
					require.False(t, q.throttle(P1))
				}
			}
		})
	})
	t.Run("the limit is 4 × OutboxMessages, and at least 4,096", func(t *testing.T) {
		require.Equal(t, int64(4096), debtLimit(1))
		require.Equal(t, int64(4096), debtLimit(1024))
		require.Equal(t, int64(4100), debtLimit(1025))
	})
}
