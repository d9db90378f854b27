package main

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

//go:embed scenarios
var files embed.FS

// A scenario is what one client has to live through, and what must come of it. The
// README tells what a file of them looks like.
type scenario struct {
	Name  string `json:"name"`
	Holds string `json:"holds"` // what must hold, in a sentence

	Each  []any  `json:"each"`  // the scenario once for each, which takes the place of "$"
	Needs string `json:"needs"` // what not every WebSocket has: "status" or "headers"
	Naive string `json:"naive"` // why the naive client fails it; empty: it passes

	Connections []script `json:"connections"`
	Gate        int      `json:"gate"`   // the snapshot of this number takes until the mark "snapshot"; 1 is the first
	Fewer       bool     `json:"fewer"`  // it may end before all of the connections were made
	Jitter      bool     `json:"jitter"` // there are enough waits to judge how they are distributed
	side
	Second *side `json:"second"` // another driver of the same user, started at the mark "second"
}

// A side is one driver: what it is told, and what it must tell.
type side struct {
	Options  map[string]any `json:"options"`
	Commands []command      `json:"commands"`

	Output        []pattern `json:"output"`        // in this order, with anything between
	Never         []pattern `json:"never"`         // of what it tells
	Notifications []string  `json:"notifications"` // all of them, in this order: "1-6", or an ID
	Snapshots     []string  `json:"snapshots"`     // the reasons of all of them: "start", "start|gap"
	States        string    `json:"states"`        // all of them; one with "?" may be left out
	Stopped       pattern   `json:"stopped"`
}

// A command is a line for the driver's stdin, or its end. Each waits for the one
// before.
type command struct {
	When pattern        `json:"when"` // nil: at once
	Say  map[string]any `json:"say"`  // nil: the end of stdin
}

// A script is what the server does in one connection.
type script []step

// A step is one of the steps in steps.go: {"close":4100}, or "live" for
// {"live":null}.
type step struct {
	op  string
	arg json.RawMessage
}

func (s *step) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &s.op); err == nil {
		s.arg = json.RawMessage("null")
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil || len(fields) != 1 {
		return fmt.Errorf("a step is a name or an object with one, not %s", b)
	}
	for s.op, s.arg = range fields {
	}
	return nil
}

// load reads all scenarios, each only as valid as that can be seen without
// playing it.
func load() ([]*scenario, error) {
	names, err := fs.Glob(files, "scenarios/*.json")
	if err != nil {
		return nil, err
	}
	var all []*scenario
	taken := map[string]bool{}
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var raw []json.RawMessage
		if err := json.Unmarshal(text, &raw); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, r := range raw {
			some, err := parse(r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %.200s", name, err, r)
			}
			for _, sc := range some {
				if taken[sc.Name] {
					return nil, fmt.Errorf("%s: there are two of %q", name, sc.Name)
				}
				taken[sc.Name] = true
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

// parse reads a scenario, which is several if it has "each".
func parse(text []byte) ([]*scenario, error) {
	var sc scenario
	if err := strict(text, &sc); err != nil {
		return nil, err
	}
	if sc.Each == nil {
		return []*scenario{&sc}, sc.complete()
	}
	var all []*scenario
	for _, value := range sc.Each {
		// "$" stands for the value, and a text with a $ in it for the text with
		// the value in it.
		plain := fmt.Sprint(value)
		b, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		one := strings.ReplaceAll(strings.ReplaceAll(string(text), `"$"`, string(b)), "$", plain)
		var sc scenario
		if err := strict([]byte(one), &sc); err != nil {
			return nil, err
		}
		if err := sc.complete(); err != nil {
			return nil, err
		}
		all = append(all, &sc)
	}
	return all, nil
}

// complete checks what can be checked, and repeats what is to be repeated.
func (sc *scenario) complete() error {
	if sc.Name == "" || sc.Holds == "" || sc.Stopped == nil {
		return fmt.Errorf("%q lacks a name, what holds, or how it stops", sc.Name)
	}
	var scripts []script
	for _, s := range sc.Connections {
		times := 1
		if len(s) > 0 && s[0].op == "repeat" {
			if err := json.Unmarshal(s[0].arg, &times); err != nil {
				return err
			}
			s = s[1:]
		}
		for _, st := range s {
			if ops[st.op] == nil {
				return fmt.Errorf("there is no step %q", st.op)
			}
		}
		for range times {
			scripts = append(scripts, s)
		}
	}
	sc.Connections = scripts
	for _, s := range sc.sides() {
		if _, err := s.ids(); err != nil {
			return err
		}
	}
	return nil
}

func (sc *scenario) sides() []*side {
	if sc.Second != nil {
		return []*side{&sc.side, sc.Second}
	}
	return []*side{&sc.side}
}

// ids returns the IDs of all the notifications that the driver must tell of.
func (s *side) ids() ([]string, error) {
	var ids []string
	for _, some := range s.Notifications {
		from, to, found := strings.Cut(some, "-")
		first, err := strconv.Atoi(from)
		if err != nil || !found {
			ids = append(ids, some)
			continue
		}
		last, err := strconv.Atoi(to)
		if err != nil {
			return nil, fmt.Errorf("notifications %q: %w", some, err)
		}
		for n := first; n <= last; n++ {
			ids = append(ids, idOf(n))
		}
	}
	return ids, nil
}

// line is the first line of a driver's stdin. snapshot is where to get one, if not
// from nowhere.
func (s *side) line(url, snapshot string) map[string]any {
	options := map[string]any{
		"url": url, "channels": nil, "cursor": "",
		"snapshot_ms": 0, "handler_ms": 0, "handler_throws_at": 0,
		"backoff_base_ms": 20, "backoff_max_ms": 100, "watchdog_factor": 2.5, "stable_ms": 60000,
	}
	if snapshot != "" {
		options["snapshot_url"] = snapshot
	}
	maps.Copy(options, s.Options)
	return options
}

// option returns an option that is a number.
func (s *side) option(name string) float64 {
	switch v := s.line("", "")[name].(type) {
	case int:
		return float64(v)
	case float64:
		return v
	}
	return 0
}

// strict decodes JSON that has no fields but those of v.
func strict(text []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// named returns the scenarios whose name contains one of the words; all if there
// are none.
func named(all []*scenario, words []string) []*scenario {
	return slices.DeleteFunc(slices.Clone(all), func(sc *scenario) bool {
		return len(words) > 0 && !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(sc.Name, w) })
	})
}
