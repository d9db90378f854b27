package natslog

import (
	"net/url"
	"os/exec"
	"strconv"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// A publisher in another language, written from BLOCK.md.
func TestForeignPublisher(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("skipped: there is no python3")
	}
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL, Partitions: 5, MaxBytes: 4 << 20})
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	publish := func(msgID string, ids ...string) string {
		cmd := exec.CommandContext(patient(t), python, append([]string{"testdata/publish.py", u.Hostname(), u.Port(), "5", "张三", msgID}, ids...)...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	partition := partitionOf("张三", 5)
	stream := "notification_P0_" + strconv.Itoa(partition)
	require.Equal(t, stream+" 1 new\n", publish("x.1", "a", "b"))
	require.Equal(t, stream+" 1 duplicate\n", publish("x.1", "a", "b"))
	require.Equal(t, stream+" 2 new\n", publish("x.2", "c"))
	require.Equal(t, []string{"a", "b", "c"}, ids(t, l, notification.P0, partition))
	for _, b := range read(t, l, notification.P0, partition) {
		for _, e := range b.entries() {
			require.Equal(t, "张三", e.user)
			p, err := notification.PayloadAs[notification.OrderRejected](e.archive)
			require.NoError(t, err)
			require.Equal(t, "资金不足", p.Reason)
		}
	}
}
