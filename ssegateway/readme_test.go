package ssegateway

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func readme(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	return string(text)
}

// block returns a block of code of README: the first in this language that has
// some text.
func block(t testing.TB, language, has string) string {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(readme(t), -1) {
		if strings.Contains(m[1], has) {
			return m[1]
		}
	}
	t.Fatalf("README has no %s with %q", language, has)
	return ""
}

// TestREADME holds the events that README shows to what is sent.
func TestREADME(t *testing.T) {
	keys := func(t *testing.T, text string) (all []string) {
		var object map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &object), text)
		for key := range object {
			all = append(all, key)
		}
		return all
	}
	// What is sent, as a client sees it.
	s := serve(t, notification.GatewayConfig{HistoryMessages: 1024}, Config{HeartbeatInterval: 10 * time.Millisecond})
	sent := map[string]event{}
	c := s.open("user=alice", "nonsense")
	for len(sent) < 4 {
		e, ok := c.next()
		require.True(t, ok)
		sent[e.Name] = e
	}
	require.NoError(t, s.session("alice").Close())
	for e, ok := c.next(); ok; e, ok = c.next() {
		sent[e.Name] = e
	}
	withID := map[string]bool{"welcome": sent["welcome"].ID != "", "heartbeat": true, "": true}
	batch := []*notification.Message{notification.NewMessage(notification.New("alice", notification.RiskAlert{}, ""))}
	text, _ := appendBatch(nil, batch, "AQw3", 3, false)
	dropped, _, _ := strings.Cut(string(text), "\n\n")
	name, data, _ := strings.Cut(strings.TrimPrefix(dropped, "event: "), "\ndata: ")
	sent[name] = event{Name: name, Data: data}
	text, _ = appendBatch(nil, batch, "AQw3", 0, true)
	_, data, _ = strings.Cut(string(text), "data: ")
	sent[""] = event{Data: strings.TrimSpace(data), ID: "AQw3"}

	_, section, ok := strings.Cut(readme(t), "\n| event | data | when |\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n\n")
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| (?:`(\\w+)`|\\(none\\))([^|]*?) \\| `(\\{.*?\\})` \\|").FindAllStringSubmatch(section, -1) {
		name, with, example := m[1], m[2], strings.ReplaceAll(m[3], "[…]", "[{}]")
		t.Run("the event is shown with the keys that it has on the wire: "+name, func(t *testing.T) {
			e, ok := sent[name]
			require.True(t, ok, "nothing sends it")
			require.ElementsMatch(t, keys(t, e.Data), keys(t, example))
			if name != "" {
				require.Equal(t, withID[name], strings.Contains(with, "`id`"), "whether it has an id")
			}
		})
		shown[name] = true
	}
	t.Run("every event is shown", func(t *testing.T) {
		for name := range sent {
			require.True(t, shown[name], name)
		}
	})
	t.Run("the deadlines of the server are those of the example", func(t *testing.T) {
		example, err := os.ReadFile("example_test.go")
		require.NoError(t, err)
		lines := regexp.MustCompile(`(?m)^\t(\w+):\s+\S+.*$`).FindAllString(readme(t), -1)
		require.Greater(t, len(lines), 4)
		for _, line := range lines {
			if field, _, _ := strings.Cut(strings.TrimSpace(line), ":"); field != "Handler" && field != "Authenticate" {
				require.Contains(t, string(example), strings.TrimSpace(line))
			}
		}
	})
	t.Run("every code that ends a stream is named", func(t *testing.T) {
		for _, code := range []string{"1000", "1001", "1011", "1013", "4000", "4001", "4100", "4401", "4409"} {
			require.Contains(t, readme(t), code)
		}
	})
}
