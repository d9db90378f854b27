package notificationclient

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

func TestNotification(t *testing.T) {
	t.Run("every type arrives as its payload, and as it came", func(t *testing.T) {
		names, err := filepath.Glob("../../testdata/golden/*.json")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("Type(%d)", len(names)+1), notification.Type(len(names)+1).String(), "a file for each type there is")
		for _, name := range names {
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			text = []byte(strings.TrimSpace(string(text)))
			var want notification.Notification
			require.NoError(t, json.Unmarshal(text, &want))
			var got Notification
			require.NoError(t, json.Unmarshal(text, &got))
			require.Equal(t, want, got.Notification, name)
			require.Equal(t, strings.TrimSuffix(filepath.Base(name), ".json"), got.TypeName)
			again, err := json.Marshal(got)
			require.NoError(t, err)
			require.Equal(t, string(text), string(again))
		}
	})
	for name, c := range map[string]struct {
		text string
		want Notification
	}{
		"a type that is not known is handed over raw, with all that is known of it": {
			`{"message_id":"m","message_type":"order_dreamt","user_id":"u","priority":2,"timestamp":1700000000000000123,"source":"s","payload":{"type":"order_dreamt","x":9007199254740993},"more":1}`,
			Notification{TypeName: "order_dreamt", Notification: notification.Notification{ID: "m", UserID: "u", Priority: 2, Timestamp: 1700000000000000123, Source: "s"}},
		},
		"so is a payload that is not what is known": {
			`{"message_id":"m","message_type":"order_filled","user_id":"u","priority":2,"timestamp":5,"source":"s","payload":{"type":"order_filled","filled_volume":"many"}}`,
			Notification{TypeName: "order_filled", Notification: notification.Notification{ID: "m", UserID: "u", Priority: 2, Timestamp: 5, Source: "s"}},
		},
		"a field that does not fit leaves the others": {
			`{"message_id":7,"message_type":"new","user_id":"u","priority":999,"timestamp":5,"source":"s"}`,
			Notification{TypeName: "new", Notification: notification.Notification{UserID: "u", Timestamp: 5, Source: "s"}},
		},
		"null is nothing":  {`null`, Notification{}},
		"a number is none": {`7`, Notification{}},
	} {
		t.Run(name, func(t *testing.T) {
			var got Notification
			require.NoError(t, got.UnmarshalJSON([]byte(c.text)))
			require.Nil(t, got.Payload)
			c.want.Raw = json.RawMessage(c.text)
			require.Equal(t, c.want, got)
			again, err := json.Marshal(got)
			require.NoError(t, err)
			require.Equal(t, c.text, string(again))
		})
	}
	t.Run("one unknown notification among others costs none of them", func(t *testing.T) {
		f, err := parse([]byte(`{"cursor":"c","notifications":[{"message_type":"new","message_id":"1"},` +
			`{"message_id":"2","message_type":"market_halt","user_id":"*","priority":3,"timestamp":1,"source":"s","payload":{"type":"market_halt","reason":"r"}}]}`))
		require.NoError(t, err)
		b := f.batch(true)
		require.True(t, b.Replayed)
		require.Equal(t, "c", b.Cursor)
		require.Equal(t, "1", b.Notifications[0].ID)
		require.Equal(t, notification.MarketHalt{Reason: "r"}, b.Notifications[1].Payload)
	})
}
