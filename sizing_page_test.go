package notification

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What docs/sizing.md says beside its formulas: the plan that is worked out, the
// figures of other pages, names, links.

func number(t testing.TB, text string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(strings.NewReplacer(",", "", "_", "").Replace(text), 64)
	require.NoError(t, err)
	return v
}

func TestSizingPlan(t *testing.T) {
	p := sizingPage(t)
	_, section, ok := strings.Cut(p.text, "\n## An exchange of 100,000 users\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	g := given{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| ([\\d,]+) \\|.*\\|$").FindAllStringSubmatch(section, -1) {
		if _, formula := p.formulas[row[1]]; !formula {
			g[row[1]] = number(t, row[2])
		}
	}
	t.Run("each result is what the formulas come to", func(t *testing.T) {
		rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([\\d,.]+) \\|$").FindAllStringSubmatch(section, -1)
		require.Len(t, rows, 9)
		sum := 0.0
		for _, row := range rows {
			mb := p.eval(t, row[1], g) / 1e6
			digits := 0
			if mb < 1 {
				digits = 1
			}
			require.Equal(t, fmt.Sprintf("%.*f", digits, mb), strings.ReplaceAll(row[2], ",", ""), row[1])
			if row[1] == "live" {
				require.InDelta(t, sum, mb, 1, "the rows before it are all there is")
			}
			sum += mb
		}
	})
	t.Run("the configuration is that of the plan", func(t *testing.T) {
		_, code, _ := strings.Cut(section, "\n```go\n")
		code, _, _ = strings.Cut(code, "\n```")
		field := func(name string) float64 {
			m := regexp.MustCompile(`\b` + name + `:\s+([\d_]+)`).FindStringSubmatch(code)
			require.NotNil(t, m, name)
			return number(t, m[1])
		}
		for name, want := range map[string]float64{
			"DedupSize": g["DedupSize"], "HistoryTotal": g["HistoryTotal"], "MaxPushers": g["pushers"],
			"MaxSessions": g["sessions"], "MaxConnections": g["sessions"],
			"BatchSize": g["BatchSize"], "OutboxMessages": g["HistoryMessages"], "HistoryMessages": g["HistoryMessages"],
		} {
			require.Equal(t, want, field(name), name)
		}
		sum := 0.0
		for _, n := range strings.Split(regexp.MustCompile(`QueueCapacity: .*\{(.*)\}`).FindStringSubmatch(code)[1], ", ") {
			sum += number(t, n)
		}
		require.Equal(t, g["QueueCapacity"], sum)
	})
	t.Run("what the plan calls the default is", func(t *testing.T) {
		var cfg GatewayConfig
		require.NoError(t, cfg.setDefaults())
		require.EqualValues(t, g["InboxCapacity"], cfg.InboxCapacity)
	})
	t.Run("the history has room for all that users with sessions keep, and a quarter more", func(t *testing.T) {
		require.Equal(t, 1.25*p.eval(t, "filled", g), g["HistoryTotal"])
	})
}

// What the page says of a HistoryTotal that is too small.
func TestSizingOfHistoryTotal(t *testing.T) {
	const users, perLane = 20, 32
	for name, c := range map[string]struct {
		total int
		gone  bool
	}{
		"one that users with sessions fill makes a cursor void with the next message for anybody": {users * perLane / 2, true},
		"one that they cannot fill holds it for HistoryTTL":                                       {users * perLane, false},
	} {
		inBubble(t, name, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: perLane, OutboxMessages: perLane, HistoryMessages: perLane, HistoryTotal: c.total})
			var first *Session
			for i := range users {
				s, _ := join(t, g, fmt.Sprint("s", i), fmt.Sprint("u", i))
				if i == 0 {
					first = s
				}
			}
			for k := range perLane + 5 {
				for i := range users {
					publishTo(t, b, fmt.Sprint("u", i), P1, fmt.Sprint(k, "-", i))
				}
				pass(time.Second)
			}
			cursor := first.Cursor()
			require.NoError(t, first.Close())
			pass(time.Millisecond)
			publishTo(t, b, "u1", P1, "one more")
			pass(time.Second)
			_, err := g.RegisterSession(SessionConfig{ID: "again", UserID: "u0", Sink: discarding, After: cursor})
			if c.gone {
				require.ErrorIs(t, err, ErrCursorGone)
				require.Equal(t, users-1, g.Stats().Users)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

func TestSizingPage(t *testing.T) {
	p := sizingPage(t)
	read := func(t *testing.T, path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(b)
	}
	t.Run("figures and commands of other pages stand there", func(t *testing.T) {
		rows := regexp.MustCompile("(?m)^\\|[^|]+\\| ([^|]+) \\| `([^`]+)` \\| \\[\\w+\\]\\(([^)#]+)#[^)]+\\) \\|$").FindAllStringSubmatch(p.text, -1)
		require.Len(t, rows, 14)
		for _, row := range rows {
			source := read(t, filepath.Join("docs", row[3]))
			require.Contains(t, source, row[2], row[3])
			figures := regexp.MustCompile(`\d[\d.,]*\d|\d`).FindAllString(row[1], -1)
			require.NotEmpty(t, figures, row[0])
			for _, f := range figures {
				require.Regexp(t, `(^|[^\d.,])`+regexp.QuoteMeta(f)+`([^\d]|$)`, source, "%s of %s", f, row[0])
			}
		}
	})
	t.Run("every field of a configuration that it names exists", func(t *testing.T) {
		transport := read(t, "wsgateway/wsgateway.go")
		fields := regexp.MustCompile("`((?:\\w+\\.)?\\w*Config)\\.(\\w+)`").FindAllStringSubmatch(p.text, -1)
		require.Greater(t, len(fields), 10)
		for _, f := range fields {
			switch f[1] {
			case "BrokerConfig":
				_, ok := reflect.TypeFor[BrokerConfig]().FieldByName(f[2])
				require.True(t, ok, f[0])
			case "GatewayConfig":
				_, ok := reflect.TypeFor[GatewayConfig]().FieldByName(f[2])
				require.True(t, ok, f[0])
			default:
				require.Equal(t, "wsgateway.Config", f[1])
				require.Regexp(t, `(?m)^\t(\w+, )*`+f[2]+`\b`, transport, f[0])
			}
		}
	})
	t.Run("every counter and metric that is to be watched exists", func(t *testing.T) {
		_, section, ok := strings.Cut(p.text, "\n## What tells that the plan was wrong\n")
		require.True(t, ok)
		metrics, transports := read(t, "promstats/README.md"), read(t, "web/stats.go")
		rows := regexp.MustCompile("(?m)^\\| [^|]+ \\| (`[^|]+`) \\| (`[^|]+`) \\|").FindAllStringSubmatch(section, -1)
		require.Len(t, rows, 10)
		stats := map[string]bool{}
		for _, typ := range []reflect.Type{reflect.TypeFor[BrokerStats](), reflect.TypeFor[BrokerLane](), reflect.TypeFor[GatewayStats](), reflect.TypeFor[GatewayLane](), reflect.TypeFor[SessionEnds]()} {
			for i := range typ.NumField() {
				stats[typ.Field(i).Name] = true
			}
		}
		for _, row := range rows {
			for _, name := range regexp.MustCompile(`\w+`).FindAllString(row[1], -1) {
				require.True(t, stats[name] || regexp.MustCompile(`(?m)^\t`+name+`\b|, `+name+`\b`).MatchString(transports), name)
			}
			for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[2], -1) {
				require.Contains(t, metrics, name[0])
			}
		}
	})
}
