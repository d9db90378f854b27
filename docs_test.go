package notification

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// docs/snapshots.md says of every type how it goes together with a snapshot, in
// words of its own fields.
func TestSnapshotsPage(t *testing.T) {
	text, err := os.ReadFile("docs/snapshots.md")
	require.NoError(t, err)
	rows := map[string][]string{} // by wire name: the cells behind it
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (.*) \\|$").FindAllStringSubmatch(string(text), -1) {
		require.NotContains(t, rows, row[1], "two rows")
		rows[row[1]] = strings.Split(row[2], " | ")
	}
	word := regexp.MustCompile("`([^`]+)`")
	eachType(t, func(t *testing.T, typ Type) {
		cells, ok := rows[typ.String()]
		require.True(t, ok, "docs/snapshots.md has no row for it")
		require.Len(t, cells, 4)
		require.Contains(t, []string{"absolute", "step", "event"}, cells[0])
		fields := map[string]bool{"message_id": true}
		p := reflect.TypeOf(catalog[typ].payload)
		for i := range p.NumField() {
			fields[p.Field(i).Tag.Get("json")] = true
		}
		for i, cell := range cells[1:] {
			for _, w := range word.FindAllStringSubmatch(cell, -1) {
				_, err := ParseType(w[1]) // other types may be spoken of
				require.True(t, fields[w[1]] || i > 0 && err == nil, "%q is no field of it", w[1])
			}
		}
		key := word.FindAllStringSubmatch(cells[1], -1)
		require.NotEmpty(t, key, "no key")
		if cells[0] == "absolute" {
			require.Contains(t, cells[3], "`timestamp`", "an absolute one must be told from an older one")
			require.True(t, fields["timestamp"])
		}
		delete(rows, typ.String())
	})
	require.Empty(t, rows, "rows of no type")
}

// docs/configuration.md has a row for every field of a Config, with its default, and
// for nothing else.
func TestConfigurationPage(t *testing.T) {
	text, err := os.ReadFile("docs/configuration.md")
	require.NoError(t, err)
	var broker BrokerConfig
	require.NoError(t, broker.setDefaults())
	var gateway GatewayConfig
	require.NoError(t, gateway.setDefaults())
	require.Equal(t, 2*runtime.GOMAXPROCS(0), gateway.Pushers)
	for _, cfg := range []any{broker, gateway, SessionConfig{}} {
		v := reflect.ValueOf(cfg)
		_, section, ok := strings.Cut(string(text), "\n## "+v.Type().Name()+"\n")
		require.True(t, ok, v.Type())
		section, _, _ = strings.Cut(section, "\n## ")
		rows := map[string]string{} // by field, its default
		for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| ([^|]+) \\| [^|]+ \\|$").FindAllStringSubmatch(section, -1) {
			require.NotContains(t, rows, row[1], "two rows")
			rows[row[1]] = row[2]
		}
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			require.Contains(t, rows, name, v.Type())
			if v.Type() != reflect.TypeFor[SessionConfig]() && name != "Pushers" {
				require.Equal(t, inWords(v.Field(i).Interface()), rows[name], "%s.%s", v.Type(), name)
			}
			delete(rows, name)
		}
		require.Empty(t, rows, "rows of no field of %s", v.Type())
	}
}

// inWords is how a page writes a default.
func inWords(v any) string {
	switch v := v.(type) {
	case int:
		if v < 0 {
			return "all"
		}
		text := strconv.Itoa(v)
		if v >= 10_000 {
			for i := len(text) - 3; i > 0; i -= 3 {
				text = text[:i] + "," + text[i:]
			}
		}
		return text
	case time.Duration:
		switch {
		case v == 0:
			return "0"
		case v%time.Minute == 0:
			return fmt.Sprintf("%d min", v/time.Minute)
		case v%time.Second == 0:
			return fmt.Sprintf("%d s", v/time.Second)
		}
		return fmt.Sprintf("%d ms", v/time.Millisecond)
	case [NumPriorities]int:
		return lanesInWords(v)
	case [NumPriorities]time.Duration:
		return lanesInWords(v)
	case SlowPolicy:
		return map[SlowPolicy]string{SlowClose: "`SlowClose`", SlowDropOldest: "`SlowDropOldest`"}[v]
	}
	return "none" // a Logger, a Log
}

func lanesInWords[T any](v [NumPriorities]T) string {
	var words []string
	for _, x := range v {
		words = append(words, inWords(x))
	}
	return strings.Join(words, ", ")
}
