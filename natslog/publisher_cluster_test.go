package natslog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// Whatever happens to the leader of a stream, what is published arrives, each once
// and in order; nobody has to say so to the Publisher.
func TestPublisherWithThreeServers(t *testing.T) {
	besideOthers(t)
	c := natstest.StartCluster(t, natstest.Config{})
	l := open(t, Config{URL: c.URL, Replicas: 3, pace: pace{elsewhere: time.Second}})
	p := publisher(t, l, PublisherConfig{})
	ctx, stop := context.WithCancel(t.Context())
	var done atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() { // ends with stop
			for i := 0; ctx.Err() == nil; i++ {
				if err := p.PublishWait(context.Background(), note(fmt.Sprint(i), fmt.Sprint("user", g), notification.P1)); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	goOn := func(what string) {
		t.Helper()
		before, began := done.Load(), time.Now()
		natstest.Eventually(t, "more is acknowledged", func() bool { return done.Load() > before+100 })
		t.Logf("%s: went on after %s", what, time.Since(began).Round(time.Millisecond))
	}
	stream := l.stream(notification.P1, 0)
	goOn("at first")
	nc := c.Connect()
	for range 3 {
		c.StepDown(nc, stream)
		goOn("another leader")
	}

	leader := c.Leader(nc, stream)
	leader.Kill()
	goOn("the leader was killed")
	leader.Restart()

	// Connected to the leader, which answers nothing and whose connections stay.
	leader = c.Leader(nc, stream)
	natstest.Eventually(t, "the publisher is at the leader", func() bool {
		if l.bulk.nc.ConnectedUrl() == leader.URL {
			return true
		}
		_ = l.bulk.nc.ForceReconnect()
		return false
	})
	leader.Freeze()
	goOn("the leader was frozen")
	leader.Thaw()

	stop()
	wg.Wait()
	c.Leader(nc, stream)
	next := make(map[string]int)
	for _, id := range delivered(pairs(t, l)) {
		var user string
		var i int
		_, err := fmt.Sscan(id, &user, &i)
		require.NoError(t, err)
		require.Equal(t, next[user], i, user)
		next[user]++
	}
	n := 0
	for _, i := range next {
		n += i
	}
	require.EqualValues(t, done.Load(), n)
	require.Zero(t, p.Stats().Lanes[notification.P1].Collisions)
}

// pairs returns user and ID of all in the stream of P1.
func pairs(t *testing.T, l *Log) (all []string) {
	for _, b := range read(t, l, notification.P1, 0) {
		for _, e := range b.entries() {
			all = append(all, e.user+" "+e.archive.ID())
		}
	}
	return all
}
