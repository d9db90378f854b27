package notificationclient

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	page := string(text)
	t.Run("its program is that of Example, but for where it connects", func(t *testing.T) {
		source, err := os.ReadFile("example_test.go")
		require.NoError(t, err)
		example := regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(string(source), "")
		example = strings.ReplaceAll(example, "exchange.http.URL", `"wss://exchange.example/notifications"`)
		blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(page, -1)
		require.Len(t, blocks, 1)
		for _, piece := range strings.Split(blocks[0][1], "…\n") {
			piece = strings.TrimSuffix(regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(piece, ""), "})\n")
			require.Contains(t, example, piece)
		}
	})
	t.Run("every field of Config is explained, and no other", func(t *testing.T) {
		_, section, _ := strings.Cut(page, "## What the application gives")
		section, _, _ = strings.Cut(section, "\n## ")
		told := map[string]bool{}
		for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(section, -1) {
			for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[1], -1) {
				told[name[1]] = true
			}
		}
		have := map[string]bool{}
		for f := range reflect.TypeFor[Config]().Fields() {
			have[f.Name] = true
		}
		require.Equal(t, have, told)
	})
	t.Run("every state and every reason to stop is there", func(t *testing.T) {
		for _, s := range []Status{StatusConnecting, StatusReplaying, StatusLive, StatusWaiting, StatusStopped} {
			require.Contains(t, page, "| `"+string(s)+"` |")
		}
		for _, r := range []Reason{ReasonHandler, ReasonCredentials, ReasonServer, ReasonHandshake} {
			require.Contains(t, page, "`"+string(r)+"`")
		}
	})
}
