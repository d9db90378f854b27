package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// good is what a driver tells in the scenario below, and what the server sees.
const good = `
{"server":"connected","connection":1}
{"driver":1,"event":"state","state":"connecting"}
{"driver":1,"event":"credentials","why":"start"}
{"server":"welcome","connection":1,"cursor":"c0","resumed":false}
{"driver":1,"event":"state","state":"replaying"}
{"driver":1,"event":"snapshot","reason":"start"}
{"driver":1,"event":"snapshot_done"}
{"driver":1,"event":"notification","message_id":"n-1","timestamp":"1700000001048576000"}
{"driver":1,"event":"notification","message_id":"n-2","timestamp":"1700000002097152000"}
{"driver":1,"event":"cursor","cursor":"c2"}
{"server":"ending","connection":1}
{"driver":1,"event":"state","state":"waiting","reason":"network","code":1006,"retry_ms":0}
{"driver":1,"event":"state","state":"connecting"}
{"server":"connected","connection":2}
{"driver":1,"event":"state","state":"replaying"}
{"driver":1,"event":"notification","message_id":"n-3","timestamp":"1700000003145728000"}
{"driver":1,"event":"cursor","cursor":"c3"}
{"driver":1,"event":"stopped","reason":"closed","code":1000,"cursor":"c3"}
`

const judged = `{"name":"judged","holds":"H.","connections":[[],[]],
 "output":[{"message_id":"n-2"},{"state":"waiting","code":[1005,1006]},{"message_id":"n-3"}], "never":[{"why":"refused"}],
 "notifications":["1-3"],"snapshots":["start|gap"],"states":"connecting replaying live? waiting connecting replaying",
 "stopped":{"reason":"closed","cursor":"c3"}}`

func judgement(t *testing.T, story string) string {
	t.Helper()
	some, err := parse([]byte(judged))
	require.NoError(t, err)
	r := &run{scenario: some[0]}
	var journal []entry
	at := time.Now()
	for line := range strings.Lines(strings.TrimSpace(story)) {
		v, err := decode([]byte(line))
		require.NoError(t, err, line)
		at = at.Add(time.Millisecond)
		journal = append(journal, entry{at, v.(map[string]any)})
	}
	return strings.Join(r.judge(journal), "\n")
}

func TestJudge(t *testing.T) {
	t.Run("a run that is as it should be is not faulted", func(t *testing.T) {
		require.Empty(t, judgement(t, good))
	})
	without := func(line string) func(string) string {
		return func(s string) string {
			i := strings.Index(s, line)
			return s[:i] + s[i+strings.IndexByte(s[i:], '\n')+1:]
		}
	}
	replace := func(old, with string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, with, 1) }
	}
	const n2 = `{"driver":1,"event":"notification","message_id":"n-2","timestamp":"1700000002097152000"}` + "\n"
	for name, c := range map[string]struct {
		spoil func(string) string
		says  string
	}{
		"a notification that is missing": {without(n2), `from number 2 on they are "n-3", not "n-2 n-3"`},
		"one that comes twice":           {replace(n2, n2+n2), `from number 3 on they are "n-2 n-3", not "n-3"`},
		"one in the wrong place": {func(s string) string {
			return strings.Replace(without(n2)(s), `{"driver":1,"event":"stopped"`, n2+`{"driver":1,"event":"stopped"`, 1)
		}, "from number 2 on"},
		"a timestamp that went through a float":              {replace("1700000002097152000", "1700000002097152100"), "the timestamp of n-2"},
		"a timestamp that is a number":                       {replace(`"1700000002097152000"`, `1700000002097152000`), "the timestamp of n-2"},
		"one that is handed over while a snapshot is loaded": {without(`{"driver":1,"event":"snapshot_done"}`), "while the snapshot is loaded"},
		"a snapshot too many":                                {replace(`{"driver":1,"event":"cursor","cursor":"c3"}`, `{"driver":1,"event":"snapshot","reason":"gap"}`), "the snapshots are"},
		"a snapshot for another reason":                      {replace(`"reason":"start"`, `"reason":"cursor_gone"`), "the snapshots are"},
		"a snapshot that is missing":                         {without(`{"driver":1,"event":"snapshot"`), "snapshot_done without"},
		"a state that is told twice":                         {replace(`{"driver":1,"event":"snapshot_done"}`, `{"driver":1,"event":"snapshot_done"}`+"\n"+`{"driver":1,"event":"state","state":"replaying"}`), "the states are"},
		"a state that is missing":                            {without(`{"driver":1,"event":"state","state":"waiting"`), "the states are"},
		"a cursor before its batch":                          {func(s string) string { return replace(n2, `{"driver":1,"event":"cursor","cursor":"c2"}`+"\n"+n2)(s) }, "ahead of what was handled"},
		"a cursor that is ahead at the end":                  {replace(`"code":1000,"cursor":"c3"`, `"code":1000,"cursor":"c4"`), "ahead of what was handled"},
		"a wait over its bound":                              {replace(`"retry_ms":0`, `"retry_ms":22`), "not within [0, 20]"},
		"a wait without a number":                            {replace(`"retry_ms":0`, `"retry_ms":null`), "not within"},
		"an attempt before its time":                         {replace(`"retry_ms":0`, `"retry_ms":20`), "with retry_ms 20"},
		"something that must never be told":                  {replace(`"why":"start"`, `"why":"refused"`), `it tells {"driver":1,"event":"credentials"`},
		"something told in another order":                    {replace(`"code":1006`, `"code":1011`), "or not in order"},
		"a connection too many":                              {replace(`{"server":"connected","connection":2}`, `{"server":"connected","connection":2}`+"\n"+`{"server":"connected","connection":3}`), "3 connections were made, not 2"},
		"a connection that is missing":                       {without(`{"server":"connected","connection":2}`), "1 connections were made, not 2"},
		"no end":                                             {without(`{"driver":1,"event":"stopped"`), "it does not tell that it has stopped"},
		"something behind the end":                           {replace("\n"+`{"driver":1,"event":"stopped"`, "\n"+`{"driver":1,"event":"stopped","reason":"closed"}`+"\n"+`{"driver":1,"event":"stopped"`), "not the last line"},
		"another end":                                        {replace(`"reason":"closed"`, `"reason":"network"`), "it ends with"},
		"what the server found":                              {replace(`{"server":"ending","connection":1}`, `{"server":"failed","what":"it says cursor c9"}`), "it says cursor c9"},
	} {
		t.Run(name+" is found", func(t *testing.T) {
			spoiled := c.spoil(good)
			require.NotEqual(t, good, spoiled)
			require.Contains(t, judgement(t, spoiled), c.says)
		})
	}
}

func TestJitter(t *testing.T) {
	waits := func(ms ...string) string {
		side := &side{Options: map[string]any{"backoff_base_ms": 10.0, "backoff_max_ms": 10.0}}
		v := verdict{side: side}
		at := time.Now()
		for range 8 {
			for _, s := range ms {
				fields, err := decode([]byte(`{"driver":1,"event":"state","state":"waiting","retry_ms":` + s + `}`))
				require.NoError(t, err)
				at = at.Add(1)
				v.told = append(v.told, entry{at, fields.(map[string]any)})
			}
		}
		v.journal = v.told
		return v.jitter()
	}
	require.Empty(t, waits("1", "9", "4.5", "6"))
	require.Contains(t, waits("10", "10", "10"), "at 1.00 of their bounds")
	require.Contains(t, waits("0", "1", "2"), "at 0.10 of their bounds")
	require.Contains(t, waits("5", "5"), "16 waits", "too few to judge")
}

func TestPattern(t *testing.T) {
	read := func(s string) map[string]any {
		v, err := decode([]byte(s))
		require.NoError(t, err)
		return v.(map[string]any)
	}
	have := entry{fields: read(`{"event":"notification","raw":{"a":1,"b":["x"]},"n":9223372036854775807,"empty":""}`)}
	for p, want := range map[string]bool{
		`{}`:                               true,
		`{"event":"notification"}`:         true,
		`{"event":["x","notification"]}`:   true,
		`{"event":"x"}`:                    false,
		`{"raw":{"a":1}}`:                  true,
		`{"raw":{"a":2}}`:                  false,
		`{"raw":{"c":1}}`:                  false,
		`{"n":9223372036854775807}`:        true,
		`{"n":9223372036854775808}`:        false,
		`{"n":"9223372036854775807"}`:      false,
		`{"missing":null,"empty":null}`:    true,
		`{"event":null}`:                   false,
		`{"missing":[null,"x"]}`:           true,
		`{"event":{"deep":"not a thing"}}`: false,
	} {
		require.Equal(t, want, pattern(read(p)).matches(have), p)
	}
}

func TestJournal(t *testing.T) {
	j := newJournal()
	j.note("mark", map[string]any{"name": "early"})
	require.NoError(t, j.await(t.Context(), pattern{"name": "early"}), "what has happened already is found")
	found := make(chan error)
	go func() { found <- j.await(t.Context(), pattern{"server": "left", "code": decimal(1000)}) }() // ends with the note below
	j.note("left", map[string]any{"code": 1001})
	j.note("left", map[string]any{"code": 1000})
	require.NoError(t, <-found)
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errEnded)
	require.ErrorIs(t, j.await(ended, pattern{"name": "never"}), errEnded)
}
