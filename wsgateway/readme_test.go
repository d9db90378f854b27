package wsgateway

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestREADME holds the frames that README shows to the types that are sent.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	type batch struct {
		Cursor        string            `json:"cursor"`
		Notifications []json.RawMessage `json:"notifications"`
		Dropped       int               `json:"dropped"`
	}
	fromServer := map[string]any{
		"welcome": new(welcome), "reset": new(reset), "live": new(live), "heartbeat": new(heartbeat), "expiring": new(expiring),
		"ok": new(answer), "subscriptions_response": new(answer), "pong": new(answer), "error": new(answer), "": new(batch),
	}
	fromClient := map[string]any{}
	for _, action := range []string{"subscribe", "unsubscribe", "unsubscribe_all", "get_subscriptions", "ping", "authenticate"} {
		fromClient[action] = new(command)
	}
	section := func(title string) string {
		_, rest, ok := strings.Cut(string(text), "\n### "+title+"\n")
		require.True(t, ok, title)
		rest, _, _ = strings.Cut(rest, "\n### ")
		return rest
	}
	for title, types := range map[string]map[string]any{"From the server": fromServer, "From the client": fromClient} {
		t.Run(title+": every frame is shown, and has the keys that it has on the wire", func(t *testing.T) {
			shown := map[string]bool{}
			for _, m := range regexp.MustCompile("(?m)^\\| `(\\{.*?\\})` \\|").FindAllStringSubmatch(section(title), -1) {
				example := strings.ReplaceAll(m[1], "[…]", "[{}]")
				var f struct{ Action string }
				require.NoError(t, json.Unmarshal([]byte(example), &f), example)
				require.Contains(t, types, f.Action, example)
				d := json.NewDecoder(bytes.NewReader([]byte(example)))
				d.DisallowUnknownFields()
				require.NoError(t, d.Decode(types[f.Action]), example)
				if title == "From the server" && f.Action != "" {
					again, err := json.Marshal(types[f.Action])
					require.NoError(t, err)
					require.JSONEq(t, example, string(again), "all its keys are shown")
				}
				shown[f.Action] = true
			}
			require.Len(t, shown, len(types))
		})
	}
	t.Run("every code of an error is named", func(t *testing.T) {
		var source []byte
		for _, file := range []string{"protocol.go", "refresh.go"} {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			source = append(source, b...)
		}
		codes := regexp.MustCompile(`failure\([^,]+, "([a-z_]+)"`).FindAllSubmatch(source, -1)
		require.Greater(t, len(codes), 8)
		for _, code := range codes {
			require.Contains(t, section("From the server"), "`"+string(code[1])+"`")
		}
	})
	t.Run("the deadlines of the server are those of the example", func(t *testing.T) {
		example, err := os.ReadFile("example_test.go")
		require.NoError(t, err)
		for _, line := range regexp.MustCompile(`(?m)^\t(\w+):\s+\d+ .*$`).FindAllString(string(text), -1) {
			require.Contains(t, string(example), strings.TrimSpace(line))
		}
	})
}
