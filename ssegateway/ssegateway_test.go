package ssegateway

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestStream(t *testing.T) {
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{})
	c := s.open("user=alice", "")
	hello := c.want("welcome")
	require.NotEmpty(t, hello.ID)
	require.Equal(t, hello.ID, hello.frame(t).Cursor)
	c.want("live")
	n := s.publish("alice", notification.RiskAlert{})
	e := c.want("")
	require.Equal(t, string(n.AppendJSON(nil)), e.Data)
	require.NotEqual(t, hello.ID, e.ID)
	c.close()
	s.noSession("alice")
	missed := s.publish("alice", notification.RiskAlert{})
	c = s.open("user=alice", e.ID)
	require.True(t, c.want("welcome").frame(t).Resumed)
	require.Equal(t, missed.ID, c.want("").frame(t).MessageID)
	c.want("live")
}
