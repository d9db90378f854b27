package natslog

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A server whose disk is full says nothing, and goes on saying nothing when there is
// room again, until it is started anew. Nothing that it acknowledged is lost, and
// what waited gets in.
func TestDiskFull(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	s.Stop()
	mount := func(options string) ([]byte, error) {
		return exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", s.Dir).CombinedOutput()
	}
	require.NoError(t, os.MkdirAll(s.Dir, 0o755))
	if out, err := mount("size=24m"); err != nil {
		t.Skipf("skipped: a small disk needs the right to mount one: %v %s", err, out)
	}
	t.Cleanup(func() {
		s.Kill()
		out, err := exec.Command("umount", s.Dir).CombinedOutput()
		require.NoError(t, err, string(out))
	})
	s.Restart()
	l := open(t, Config{URL: s.URL, MaxBytes: 64 << 20})
	p := publisher(t, l, PublisherConfig{QueueCapacity: all(20)})
	r := newResults()
	n := note("", "alice", notification.P1)
	n.Source = strings.Repeat("x", 200<<10)
	var want []string
	var acknowledged, failures uint64
	natstest.Eventually(t, "the disk is full", func() bool {
		n.ID = fmt.Sprint(len(want))
		if p.Publish(n, r.done(n.ID)) == nil {
			want = append(want, n.ID)
		}
		lane := p.Stats().Lanes[notification.P1]
		if lane.Acknowledged > acknowledged { // the server is slow now and then
			acknowledged, failures = lane.Acknowledged, lane.Failures
		}
		return lane.Failures > failures+3 // which takes seven seconds
	})
	require.Equal(t, errSilent.Error(), p.Stats().Lanes[notification.P1].Failure)
	require.Less(t, len(r.await(t, 0)), len(want))

	out, err := mount("remount,size=256m")
	require.NoError(t, err, string(out))
	s.Restart()
	require.Equal(t, want, r.await(t, len(want)))
	require.Equal(t, want, delivered(ids(t, l, notification.P1, 0)))
}
