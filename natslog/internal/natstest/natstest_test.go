package natstest

import (
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// stream creates the stream x at a server.
func stream(t *testing.T, nc *nats.Conn, replicas int) jetstream.JetStream {
	js := JetStream(t, nc)
	Eventually(t, "a stream", func() bool { // a cluster's leader may not know all servers yet
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "x", Subjects: []string{"x"}, Replicas: replicas})
		return err == nil
	})
	return js
}

func last(t *testing.T, js jetstream.JetStream) uint64 {
	s, err := js.Stream(t.Context(), "x")
	require.NoError(t, err)
	return s.CachedInfo().State.LastSeq
}

func publish(t *testing.T, js jetstream.JetStream) uint64 {
	ack, err := js.Publish(t.Context(), "x", []byte("x"))
	require.NoError(t, err)
	return ack.Sequence
}

func TestServer(t *testing.T) {
	s := Start(t, Config{})
	js := stream(t, s.Connect(), 1)
	require.EqualValues(t, 1, publish(t, js))

	t.Run("what was acknowledged is there after a kill", func(t *testing.T) {
		s.Restart()
		require.EqualValues(t, 1, last(t, js))
	})
	t.Run("set back to a copy it has what the copy has, as often as you like", func(t *testing.T) {
		old := s.Copy()
		for range 2 {
			require.EqualValues(t, 2, publish(t, js))
			s.Kill()
			s.SetBack(old)
			s.Restart()
			require.EqualValues(t, 1, last(t, js))
		}
	})
	t.Run("frozen it keeps its connections and says nothing; thawed it answers", func(t *testing.T) {
		nc := s.Connect(nats.NoReconnect())
		s.Freeze()
		_, err := nc.Request("$JS.API.INFO", nil, 50*time.Millisecond)
		require.ErrorIs(t, err, nats.ErrTimeout)
		s.Thaw()
		_, err = nc.Request("$JS.API.INFO", nil, Patience)
		require.NoError(t, err)
		require.True(t, nc.IsConnected())
	})
	t.Run("a proxy is a way that can be cut and mended, and stalled", func(t *testing.T) {
		p := NewProxy(t, s.URL)
		down, up := make(chan struct{}, 100), make(chan struct{}, 100)
		nc := connect(t, p.URL, []nats.Option{
			nats.DisconnectErrHandler(func(*nats.Conn, error) { down <- struct{}{} }),
			nats.ReconnectHandler(func(*nats.Conn) { up <- struct{}{} }),
		})
		p.Cut()
		<-down
		require.EqualValues(t, 1, last(t, js), "others notice nothing")
		p.Mend()
		<-up
		p.Stall()
		_, err := nc.Request("$JS.API.INFO", nil, 50*time.Millisecond)
		require.ErrorIs(t, err, nats.ErrTimeout)
		p.Mend()
		_, err = nc.Request("$JS.API.INFO", nil, Patience)
		require.NoError(t, err)
	})
	t.Run("stopped in order it ends by itself", func(t *testing.T) {
		s.Stop()
		require.False(t, s.Runs())
		s.Restart()
	})
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: an election takes seconds")
	}
	c := StartCluster(t, Config{})
	nc := c.Connect()
	js := stream(t, nc, 3)
	require.EqualValues(t, 1, publish(t, js))
	require.NotSame(t, c.Leader(nc, "x"), c.StepDown(nc, "x"))
	require.EqualValues(t, 1, last(t, js))
}
