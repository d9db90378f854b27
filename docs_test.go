package notification

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

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
