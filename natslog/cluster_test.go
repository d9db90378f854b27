package natslog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A cluster takes some seconds to start, and an election takes 4 to 9 when a leader
// is gone without a word, in which nothing happens. So these tests run side by side,
// behind the others.
func besideOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: elections take seconds")
	}
	t.Parallel()
}

// A trial is a cluster with a follower, and what was stored for it.
type trial struct {
	t      testing.TB
	c      *natstest.Cluster
	nc     *nats.Conn
	l      *Log
	stream string
	r      *recorder
	stored int
}

func newTrial(t testing.TB, c *natstest.Cluster) *trial {
	l := open(t, Config{URL: c.URL, Replicas: 3, pace: hurry})
	x := &trial{t: t, c: c, nc: c.Connect(), l: l, stream: l.stream(notification.P1, 0), r: follow(t, l, nil)}
	x.expect("warm")
	x.more(x.nc, 5)
	return x
}

// until is the recorder's untilFilled, without the blocks' sequences. Empty blocks come
// as often as elections take their time.
func (x *trial) until(n int) (said []string) {
	x.t.Helper()
	for _, event := range x.r.untilFilled(n) {
		seq, ids, isBlock := strings.Cut(event, ":")
		if !isBlock {
			ids = seq
		}
		said = append(said, ids)
	}
	return said
}

// expect is the recorder's, for the events that until returns.
func (x *trial) expect(words ...string) {
	x.t.Helper()
	require.Equal(x.t, words, x.until(len(words)))
}

// ordinals returns the IDs of the blocks that more stored.
func ordinals(from, to int) (ids []string) {
	for i := from; i <= to; i++ {
		ids = append(ids, fmt.Sprint(i))
	}
	return ids
}

// more stores n blocks and waits until they have come.
func (x *trial) more(nc *nats.Conn, n int) {
	x.t.Helper()
	storeMany(x.t, nc, x.l, notification.P1, x.stored+1, x.stored+n)
	x.stored += n
	x.expect(list("warm", ordinals(1, x.stored))...)
}

// goTo lets the follower be connected to a server.
func (x *trial) goTo(s *natstest.Server) {
	x.t.Helper()
	natstest.Eventually(x.t, "the follower is at "+s.Name, func() bool {
		if x.l.bulk.nc.ConnectedUrl() == s.URL {
			return true
		}
		_ = x.l.bulk.nc.ForceReconnect()
		return false
	})
}

// another returns a connection to another server.
func (x *trial) another(than *natstest.Server) *nats.Conn {
	x.t.Helper()
	for _, s := range x.c.Servers {
		if s != than {
			return s.Connect()
		}
	}
	return nil
}

// undisturbed checks that the epoch is what it was and nothing is missing.
func (x *trial) undisturbed() {
	x.t.Helper()
	require.Zero(x.t, x.r.f.counts.epochs.Load())
	require.Zero(x.t, x.r.f.counts.gaps.Load())
}

func TestLeaderChanges(t *testing.T) {
	besideOthers(t)
	x := newTrial(t, natstest.StartCluster(t, natstest.Config{}))
	t.Run("another leader is noticed, and nothing else happens", func(t *testing.T) {
		for range 3 {
			before := x.r.f.counts.passes.Load()
			x.c.StepDown(x.nc, x.stream)
			natstest.Eventually(t, "a look at the stream", func() bool { return x.r.f.counts.passes.Load() > before })
			x.more(x.nc, 2)
		}
		x.undisturbed()
	})
	t.Run("neither does when the leader is killed", func(t *testing.T) {
		old := x.c.Leader(x.nc, x.stream)
		old.Kill()
		x.more(x.nc, 5)
		old.Restart()
		x.c.Leader(x.nc, x.stream)
		x.more(x.nc, 1)
		x.undisturbed()
	})
}

func TestLeaderFreezes(t *testing.T) {
	besideOthers(t)
	x := newTrial(t, natstest.StartCluster(t, natstest.Config{}))
	old := x.c.Leader(x.nc, x.stream)
	x.goTo(old) // which answers nothing, and whose connections stay
	old.Freeze()
	x.more(x.another(old), 5)
	require.NotEqual(t, old.URL, x.l.bulk.nc.ConnectedUrl())
	old.Thaw()
	x.c.Leader(x.another(old), x.stream)
	x.more(x.nc, 1)
	x.undisturbed()
}

// A server that is cut off from the others keeps its clients, and its consumers go on
// with their heartbeats. The clients must see that it has nothing new any more, and go
// to another.
func TestLeaderIsCutOff(t *testing.T) {
	besideOthers(t)
	x := newTrial(t, natstest.StartApart(t, natstest.Config{}))
	old := x.c.Leader(x.nc, x.stream)
	x.goTo(old)
	x.c.CutOff(old, true)
	x.more(x.another(old), 5)
	require.NotEqual(t, old.URL, x.l.bulk.nc.ConnectedUrl())
	x.c.CutOff(old, false)
	x.c.Leader(x.another(old), x.stream)
	x.more(x.nc, 1)
	x.undisturbed()
}

func TestClusterLosesTail(t *testing.T) {
	besideOthers(t)
	c := natstest.StartCluster(t, natstest.Config{})
	x := newTrial(t, c)
	var copies []string
	for _, s := range c.Servers {
		s.Kill()
		copies = append(copies, s.CopyKilled())
	}
	for _, s := range c.Servers {
		s.Launch()
	}
	kept := x.stored
	x.more(x.nc, 10)
	for i, s := range c.Servers {
		s.Kill()
		s.SetBack(copies[i])
	}
	for _, s := range c.Servers {
		s.Launch()
	}
	natstest.Eventually(t, "another epoch", func() bool { return x.r.f.counts.epochs.Load() == 1 })
	require.EqualValues(t, 1, x.r.f.counts.lost.Load())
	said := list("warm", ordinals(1, x.stored), "epoch", ordinals(1, kept), "warm")
	x.expect(said...)
	store(t, x.nc, x.l, notification.P1, "new")
	x.expect(append(said, "new")...)
}
