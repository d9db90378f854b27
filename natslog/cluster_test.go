package natslog

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// replicated returns a Log of three replicas.
func replicated(t testing.TB, url, name string) *Log {
	return open(t, Config{URL: url, Name: name, Replicas: 3, pace: hurry})
}

// An election takes NATS 4 to 9 seconds when a leader is gone without a word, so
// each of these does.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: elections take seconds")
	}
	c := natstest.StartCluster(t, natstest.Config{})
	nc := c.Connect()
	l := replicated(t, c.URL, "log")
	stream := l.stream(notification.P1, 0)
	r := follow(t, l, nil)
	r.expect("warm")
	stored := 0
	more := func(n int) { // and all of it comes
		t.Helper()
		storeMany(t, nc, l, notification.P1, stored+1, stored+n)
		stored += n
		r.expect(list("warm", run(1, stored))...)
	}
	more(5)

	t.Run("another leader is noticed, and nothing else happens", func(t *testing.T) {
		for range 3 {
			before := r.f.counts.passes.Load()
			c.StepDown(nc, stream)
			natstest.Eventually(t, "a look at the stream", func() bool { return r.f.counts.passes.Load() > before })
			more(2)
		}
	})
	t.Run("a leader that is killed", func(t *testing.T) {
		old := c.Leader(nc, stream)
		old.Kill()
		more(5)
		old.Restart()
		c.Leader(nc, stream)
	})
	t.Run("a leader that is frozen, and the server that the reader is connected to with it", func(t *testing.T) {
		old := c.Leader(nc, stream)
		natstest.Eventually(t, "the reader is there", func() bool {
			if l.bulk.nc.ConnectedUrl() == old.URL {
				return true
			}
			_ = l.bulk.nc.ForceReconnect()
			return false
		})
		old.Freeze()
		nc := connectToOther(t, c, old)
		storeMany(t, nc, l, notification.P1, stored+1, stored+5)
		stored += 5
		r.expect(list("warm", run(1, stored))...)
		require.NotEqual(t, old.URL, l.bulk.nc.ConnectedUrl())
		old.Thaw()
		c.Leader(nc, stream)
		more(1)
	})
	require.Zero(t, r.f.counts.epochs.Load())

	t.Run("a tail that all servers lost", func(t *testing.T) {
		var copies []string
		for _, s := range c.Servers {
			s.Kill()
			copies = append(copies, s.CopyKilled())
		}
		for _, s := range c.Servers {
			s.Launch()
		}
		kept := stored
		more(10)
		for i, s := range c.Servers {
			s.Kill()
			s.SetBack(copies[i])
		}
		for _, s := range c.Servers {
			s.Launch()
		}
		natstest.Eventually(t, "another epoch", func() bool { return r.f.counts.epochs.Load() == 1 })
		require.EqualValues(t, 1, r.f.counts.lost.Load())
		store(t, nc, l, notification.P1, "new")
		said := list("warm", run(1, stored), "epoch", run(1, kept))
		got := r.until(len(said) + 2)
		require.Equal(t, said, got[:len(said)])
		natstest.Eventually(t, "what is new comes", func() bool { got = r.until(1); return got[len(got)-1] == fmt.Sprintf("%d:new", kept+2) })
	})
}

func connectToOther(t testing.TB, c *natstest.Cluster, than *natstest.Server) *nats.Conn {
	for _, s := range c.Servers {
		if s != than {
			return s.Connect()
		}
	}
	return nil
}

// A server that is cut off from the others keeps its clients. They must see that it
// has nothing new any more, and go to another.
func TestCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: elections take seconds")
	}
	c := natstest.StartApart(t, natstest.Config{})
	nc := c.Connect()
	l := replicated(t, c.URL, "log")
	stream := l.stream(notification.P1, 0)
	r := follow(t, l, nil)
	r.expect("warm")
	storeMany(t, nc, l, notification.P1, 1, 5)
	r.expect(list("warm", run(1, 5))...)

	old := c.Leader(nc, stream)
	natstest.Eventually(t, "the reader is at the leader", func() bool {
		if l.bulk.nc.ConnectedUrl() == old.URL {
			return true
		}
		_ = l.bulk.nc.ForceReconnect()
		return false
	})
	c.CutOff(old, true)
	storeMany(t, connectToOther(t, c, old), l, notification.P1, 6, 10)
	r.expect(list("warm", run(1, 10))...)
	c.CutOff(old, false)
	c.Leader(nc, stream)
	storeMany(t, nc, l, notification.P1, 11, 12)
	r.expect(list("warm", run(1, 12))...)
	require.Zero(t, r.f.counts.epochs.Load())
	require.Zero(t, r.f.counts.gaps.Load())
}
