package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// prepared returns the clients that are here, and says in a skipped subtest of each
// other one why it is not.
func prepared(t *testing.T) []*readyClient {
	clients, absent, done, err := readyClients(*folderFlag, func(client) bool { return true })
	require.NoError(t, err)
	t.Cleanup(done)
	for _, reason := range absent {
		name, _, _ := strings.Cut(reason, ":")
		t.Run(name, func(t *testing.T) { t.Skip(reason) })
	}
	return clients
}

// TestScenarios is every scenario with every client. It needs real time and real
// sockets: nothing in it is asserted to be quick.
func TestScenarios(t *testing.T) {
	all, err := load()
	require.NoError(t, err)
	s, err := serve("127.0.0.1:0", all, false, nil)
	require.NoError(t, err)
	t.Cleanup(s.close)
	for _, c := range prepared(t) {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.name != "go" {
				t.Skip("with -short only the client in Go is asked")
			}
			for _, sc := range all {
				t.Run(sc.Name, func(t *testing.T) {
					t.Parallel()
					o := s.play(context.Background(), sc, c, c.patience(sc, patience))
					if o.skipped != "" {
						t.Skip(o.skipped)
					}
					require.NoError(t, c.verdict(o))
				})
			}
		})
	}
}

func TestScenarioFiles(t *testing.T) {
	all, err := load()
	require.NoError(t, err)
	t.Run("each says what must hold in a sentence", func(t *testing.T) {
		for _, sc := range all {
			require.Regexp(t, `^[A-Z].*\.$`, sc.Holds, sc.Name)
		}
	})
	t.Run("each ends: some command or some step of the server makes it", func(t *testing.T) {
		for _, sc := range all {
			for _, s := range sc.sides() {
				stops := s.Stopped["reason"] != "closed" || slices.ContainsFunc(s.Commands, func(c command) bool { return c.Say == nil || c.Say["do"] == "stop" })
				require.True(t, stops, sc.Name)
			}
		}
	})
	t.Run("what a scenario lacks or does not know is found when it is loaded", func(t *testing.T) {
		for text, says := range map[string]string{
			`{"name":"x","holds":"H."}`: "lacks",
			`{"name":"x","holds":"H.","stopped":{},"connections":[[{"dance":1}]]}`:                "no step",
			`{"name":"x","holds":"H.","stopped":{},"connections":[[{"live":null,"reset":null}]]}`: "a step is",
			`{"name":"x","holds":"H.","stopped":{},"surprise":1}`:                                 "unknown field",
			`{"name":"x","holds":"H.","stopped":{},"notifications":["1-x"]}`:                      "notifications",
			`{"name":"x","holds":"H.","stopped":[]}`:                                              "a pattern is",
		} {
			_, err := parse([]byte(text))
			require.ErrorContains(t, err, says, text)
		}
	})
	t.Run("a scenario for each value takes it everywhere, as a number where it stands alone", func(t *testing.T) {
		some, err := parse([]byte(`{"name":"close-$","each":[4100,"x"],"holds":"Close $.","stopped":{"code":"$"},"connections":[[{"close":"$"}]]}`))
		require.NoError(t, err)
		require.Len(t, some, 2)
		require.Equal(t, "close-4100", some[0].Name)
		require.Equal(t, "4100", string(some[0].Connections[0][0].arg))
		require.True(t, some[0].Stopped.matches(entry{fields: map[string]any{"code": decimal(4100)}}))
		require.True(t, some[1].Stopped.matches(entry{fields: map[string]any{"code": "x"}}))
	})
}
