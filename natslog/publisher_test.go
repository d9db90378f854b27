package natslog

import (
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

func TestPublish(t *testing.T) {
	s := natstest.Start(t, natstest.Config{})
	l := open(t, Config{URL: s.URL})
	p := publisher(t, l, PublisherConfig{})
	require.NoError(t, p.PublishWait(patient(t), note("a", "alice", notification.P1)))
	require.Equal(t, []string{"a"}, ids(t, l, notification.P1, 0))
}
