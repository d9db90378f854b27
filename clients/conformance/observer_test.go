package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestObserver(t *testing.T) {
	l := &ledger{streams: map[string]int{"u-P1": 5, "u-P0": 2, "all-P3": 1, "other-P1": 9}}
	const (
		snapshot = "\n" + `{"event":"snapshot","reason":"start"}` + "\n" + `{"event":"snapshot_done","body":{"u-P1":3,"u-P0":2}}`
		welcome  = "\n" + `{"event":"state","state":"replaying"}`
	)
	take := func(ids ...string) (events string) {
		for _, id := range ids {
			events += "\n" + `{"event":"notification","message_id":"` + id + `"}`
		}
		return events
	}
	for name, c := range map[string]struct{ told, wrong, missing string }{
		"a list that becomes the ledger":              {welcome + snapshot + take("u-P1-4", "all-P3-1", "u-P1-5"), "", ""},
		"a stream that begins within the snapshot":    {welcome + snapshot + take("u-P1-2", "u-P1-3", "u-P1-4", "u-P1-5", "all-P3-1"), "", ""},
		"a snapshot without a body is the ledger":     {welcome + "\n" + `{"event":"snapshot"}` + "\n" + `{"event":"snapshot_done"}` + take("u-P1-5"), "", ""},
		"a list that lacks the end of a stream":       {welcome + snapshot + take("u-P1-4", "all-P3-1"), "", "u-P1 is at 4 of 5"},
		"a list that lacks a stream":                  {welcome + snapshot + take("u-P1-4", "u-P1-5"), "", "all-P3 is at 0 of 1"},
		"one that is lost behind the snapshot":        {welcome + snapshot + take("u-P1-5"), "u-P1-5 comes behind a snapshot up to 3", "all-P3"},
		"one that is lost in the stream":              {welcome + snapshot + take("u-P1-3", "u-P1-5"), "u-P1-5 comes behind 3: some are lost", "all-P3"},
		"one that comes twice":                        {welcome + snapshot + take("u-P1-4", "u-P1-4"), "twice, or out of order", "u-P1 is at 4"},
		"one that comes out of order":                 {welcome + snapshot + take("u-P1-4", "u-P1-5", "u-P1-4"), "u-P1-4 comes behind 5", "all-P3"},
		"one that is somebody else's":                 {welcome + snapshot + take("other-P1-1"), "somebody else's", ""},
		"one that was never published":                {welcome + snapshot + take("nonsense"), "nothing that was published", ""},
		"one before any snapshot":                     {welcome + take("u-P1-1"), "before any snapshot", ""},
		"one while the snapshot is loaded":            {welcome + "\n" + `{"event":"snapshot"}` + take("u-P1-1"), "while the snapshot is loaded", ""},
		"another snapshot begins the streams anew":    {welcome + snapshot + take("u-P1-4") + welcome + snapshot + take("u-P1-4", "u-P1-5", "all-P3-1"), "", ""},
		"a stream goes on behind a cut, without both": {welcome + snapshot + take("u-P1-4") + welcome + take("u-P1-5", "all-P3-1"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObserver("u")
			for event := range strings.SplitSeq(strings.TrimSpace(c.told), "\n") {
				require.NoError(t, o.hear([]byte(event), l))
			}
			wrong, missing := strings.Join(o.wrong, "\n"), strings.Join(o.missing(l), "\n")
			require.Contains(t, wrong, c.wrong)
			require.Contains(t, missing, c.missing)
			if c.wrong == "" {
				require.Empty(t, wrong)
				if c.missing == "" {
					require.Empty(t, missing)
				}
			}
		})
	}
	t.Run("what is no event is an error", func(t *testing.T) {
		require.Error(t, newObserver("u").hear([]byte("[]"), l))
	})
}
