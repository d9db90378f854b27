package natslog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// hurried is a pace for tests: what takes seconds by default takes tenths.
var hurried = pace{heartbeat: 200 * time.Millisecond, check: 500 * time.Millisecond}

// edge returns an Edge that runs and is warm, until the end of the test.
func edge(t testing.TB, l *Log, id string, cfg EdgeConfig) *Edge {
	t.Helper()
	e, err := l.NewEdge(id, cfg)
	require.NoError(t, err)
	launch(t, e)
	return e
}

// launch runs an Edge until the end of the test, and returns when it is warm.
func launch(t testing.TB, e *Edge) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }() // ended by Shutdown, which the cleanup waits for
	t.Cleanup(func() {
		_ = e.Shutdown(patient(t))
		require.NoError(t, <-ended)
		conservedEdge(t, e)
	})
	select {
	case <-e.Ready():
	case <-patient(t).Done():
		t.Fatal("the edge does not get warm")
	}
}

// conservedEdge checks the equations of an Edge that is at rest.
func conservedEdge(t testing.TB, e *Edge) {
	t.Helper()
	st := e.Stats()
	for _, s := range st.Streams {
		require.Equal(t, s.Entries, s.Repeats+s.Misplaced+s.WarmedUp+s.Strangers+s.Unknown+s.Sent+s.Cut, "%+v", s)
		i := len(st.Gateways) * 0
		for j, p := range e.partitions {
			if p.number == s.Partition {
				i = j
			}
		}
		l := st.Gateways[i].Lanes[s.Lane]
		require.Equal(t, s.Sent+s.Marks, l.Received+l.Invalid+l.Discarded, "%+v %+v", s, l)
	}
}

// A listener is a client that keeps its cursor.
type listener struct {
	t      testing.TB
	user   string
	mu     sync.Mutex
	ids    []string
	cursor notification.Cursor
	some   chan struct{}
	s      *notification.Session
	free   chan struct{} // not nil: Push returns when it is closed; set before connect
}

func newListener(t testing.TB, user string) *listener {
	return &listener{t: t, user: user, some: make(chan struct{}, 1)}
}

func (c *listener) Push(ctx context.Context, batch []*notification.Message) error {
	if c.free != nil {
		select {
		case <-c.free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range batch {
		c.ids = append(c.ids, m.Notification().ID)
	}
	c.cursor = c.s.Cursor()
	rouse(c.some)
	return nil
}

func (c *listener) Close(error) { rouse(c.some) }

// connect registers a session at an edge behind the cursor.
func (c *listener) connect(e *Edge) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	after := c.cursor
	s, err := e.RegisterSession(notification.SessionConfig{ID: fmt.Sprint(c.user, time.Now().UnixNano()), UserID: c.user, Sink: c, After: after})
	if err != nil {
		return err
	}
	c.s = s
	if after == (notification.Cursor{}) {
		c.cursor = s.Cursor()
		require.NotZero(c.t, c.cursor)
	}
	return nil
}

// leave ends the session and returns when nothing more comes of it.
func (c *listener) leave() {
	_ = c.s.Close()
	<-c.s.Done()
}

// resumes registers a session behind the cursor, as a client does that tries again
// when it is told to: the edge may be seconds behind the one that the cursor is from.
func (c *listener) resumes(e *Edge) {
	c.t.Helper()
	var err error
	natstest.Eventually(c.t, c.user+" may come", func() bool {
		err = c.connect(e)
		return !errors.Is(err, notification.ErrTryAgain)
	})
	require.NoError(c.t, err)
}

// loses waits until the session ends with ErrGap.
func (c *listener) loses() {
	c.t.Helper()
	select {
	case <-c.s.Done():
		require.ErrorIs(c.t, c.s.Err(), notification.ErrGap)
	case <-patient(c.t).Done():
		c.t.Fatalf("the session of %s does not end", c.user)
	}
}

// gone checks that the cursor is no longer good at an edge, and makes it none.
func (c *listener) gone(e *Edge) {
	c.t.Helper()
	var err error
	natstest.Eventually(c.t, "an answer", func() bool {
		err = c.connect(e)
		return !errors.Is(err, notification.ErrTryAgain)
	})
	require.ErrorIs(c.t, err, notification.ErrCursorGone)
	c.cursor = notification.Cursor{}
}

// want waits until so many have come and returns all.
func (c *listener) want(n int) []string {
	c.t.Helper()
	ctx := patient(c.t)
	for {
		c.mu.Lock()
		ids := c.ids
		c.mu.Unlock()
		if len(ids) >= n {
			return ids
		}
		select {
		case <-c.some:
		case <-ctx.Done():
			c.t.Fatalf("%d of %d have come", len(ids), n)
		}
	}
}

func TestEdge(t *testing.T) {
	server := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: server.URL, Partitions: 2, pace: hurried})
	p := publisher(t, l, PublisherConfig{})
	serial := 0
	publish := func(user string, n int) (ids []string) {
		for range n {
			serial++
			id := fmt.Sprint("n", serial)
			require.NoError(t, p.PublishWait(patient(t), note(id, user, notification.P1)))
			ids = append(ids, id)
		}
		return ids
	}
	publish("alice", 3)
	one := edge(t, l, "one", EdgeConfig{})
	two := edge(t, l, "two", EdgeConfig{})
	alice := newListener(t, "alice")
	require.NoError(t, alice.connect(one))
	want := publish("alice", 5)
	require.Equal(t, want, alice.want(5))
	for i := range 6 {
		alice.leave()
		want = append(want, publish("alice", 3)...)
		publish("bob", 2)
		alice.resumes([]*Edge{two, one}[i%2])
		want = append(want, publish("alice", 2)...)
		require.Equal(t, want, alice.want(len(want)))
	}
	alice.leave()
}
