package notification

import (
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSweepsThatWereMissed(t *testing.T) {
	t.Run("they cost the reader nothing, however many", func(t *testing.T) {
		r := newGateway(t, "g", GatewayConfig{SweepInterval: 1}).reader
		began := now()
		r.sweepAt = began - int64(time.Minute) // of counting
		r.sweepSlice()
		require.Less(t, time.Duration(now()-began), 10*time.Second)
		require.Greater(t, r.sweepAt, began)
	})
	t.Run("the next one is at a multiple of the interval", func(t *testing.T) {
		r := newGateway(t, "g", GatewayConfig{SweepInterval: time.Hour}).reader
		began := now()
		r.sweepAt = began
		r.sweepSlice()
		require.Equal(t, began+int64(time.Hour), r.sweepAt)
		r.sweepAt = began - int64(150*time.Minute)
		r.sweepSlice()
		require.Equal(t, began+int64(30*time.Minute), r.sweepAt)
	})
}

func TestEndBeforeMaxDelay(t *testing.T) {
	t.Run("sessions that end while a message waits for company are let go of", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: [NumPriorities]time.Duration{P3: time.Duration(never)}, SessionTimeout: -1})
		var freed atomic.Int64
		n := 1_000
		for i := range n {
			id := strconv.Itoa(i)
			s, _ := join(t, g, id, id)
			runtime.AddCleanup(s, func(int) { freed.Add(1) }, 0)
			publishTo(t, b, id, P3, id)
		}
		eventually(t, "the messages wait", func() bool { return lane(g, P3).Enqueued == uint64(n) })
		for s := range g.Sessions() {
			require.NoError(t, s.Close())
		}
		eventually(t, "nearly all are gone", func() bool { runtime.GC(); return freed.Load() > int64(n-100) })
		_, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "m")
		eventually(t, "it waits", func() bool { return lane(g, P3).Enqueued == uint64(n+1) })
		publishTo(t, b, "u", P0, "takes it along")
		eventually(t, "the Gateway goes on", func() bool { return len(sink.ids()) == 2 })
	})
}
