package notification_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/qaexchange/notification"
)

// BenchmarkGrowth is what registering, a broadcast, ending and a Gap cost for
// each of the sessions: the same, however many there are, of as many users or of
// one.
func BenchmarkGrowth(b *testing.B) {
	for _, users := range []string{"each its own", "one"} {
		for _, n := range []int{1_000, 100_000, 1_000_000} {
			b.Run(fmt.Sprintf("user=%s/sessions=%d", users, n), func(b *testing.B) {
				if testing.Short() && n > 100_000 {
					b.Skip("-short: a million sessions take a while")
				}
				var cost [4]time.Duration
				names := [4]string{"register", "broadcast", "end", "gap"}
				rounds := 0
				for b.Loop() {
					for i, d := range growth(b, n, users == "one") {
						cost[i] += d
					}
					rounds++
				}
				for i, d := range cost {
					b.ReportMetric(float64(d.Nanoseconds())/float64(rounds*n), names[i]+"-ns/session")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// growth does it once. A broadcast is over when the last sink has it; an end when
// Close has returned, and a Gap when it has.
func growth(b *testing.B, n int, oneUser bool) (cost [4]time.Duration) {
	x := newExchange(b, 0, GatewayConfig{})
	defer x.drain(b)
	var taken atomic.Int64
	all := make(chan struct{}, 1)
	sink := SinkFunc(func(_ context.Context, batch []*Message) error {
		if taken.Add(int64(len(batch))) == int64(n) {
			all <- struct{}{}
		}
		return nil
	})
	ids := make([]string, n)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	register := func() []*Session {
		sessions := make([]*Session, n)
		for i, id := range ids {
			user := id
			if oneUser {
				user = "u"
			}
			s, err := x.gateway.RegisterSession(SessionConfig{ID: id, UserID: user, Sink: sink})
			if err != nil {
				b.Fatal(err)
			}
			sessions[i] = s
		}
		return sessions
	}
	timed := func(i int, f func()) {
		runtime.GC()
		began := time.Now()
		f()
		cost[i] = time.Since(began)
	}
	var sessions []*Session
	timed(0, func() { sessions = register() })
	timed(1, func() {
		x.publish(b, &Notification{ID: "all", UserID: AllUsers, Priority: P0, Payload: SystemNotice{}})
		<-all
	})
	timed(2, func() {
		for i := range sessions { // in no order
			sessions[i*7919%n].Close()
		}
	})
	register()
	timed(3, x.gateway.Gap)
	if ended := x.gateway.Stats().Ended; ended.Closed != uint64(n) || ended.Gap != uint64(n) {
		b.Fatalf("%+v ended, not %d closed and %d by a gap", ended, n, n)
	}
	return cost
}
