package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// An entry is something that happened in a run: what a driver told, or what the
// server did and saw. Entries are JSON objects, so that one kind of pattern finds
// both:
//
//	{"driver":1,"event":"state","state":"live"}
//	{"server":"left","connection":1,"code":1000}
//	{"server":"mark","name":"held"}
type entry struct {
	at     time.Time
	fields map[string]any // numbers are json.Number
}

func (e entry) text(key string) string { s, _ := e.fields[key].(string); return s }

// number returns a number of the entry; what is none is -1.
func (e entry) number(key string) int64 {
	n, _ := e.fields[key].(json.Number)
	i, err := n.Int64()
	if err != nil {
		f, ferr := n.Float64() // 12.5 ms
		if ferr != nil {
			return -1
		}
		return int64(f)
	}
	return i
}

func (e entry) String() string {
	b, err := json.Marshal(e.fields) // its keys are sorted
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// short is the entry without the notification.
func (e entry) short() string {
	fields := maps.Clone(e.fields)
	delete(fields, "raw")
	return entry{fields: fields}.String()
}

// A journal is what happened in a run, in the order in which it got here. What one
// driver tells is in its order, and so is what the server does in one connection;
// between them there is none but what one of them has waited for.
type journal struct {
	mu      sync.Mutex
	entries []entry       // guarded by mu; only grows
	more    chan struct{} // guarded by mu: closed and replaced when an entry comes
}

func newJournal() *journal { return &journal{more: make(chan struct{})} }

// note adds an entry of the server.
func (j *journal) note(what string, more map[string]any) {
	fields := map[string]any{"server": what}
	for key, value := range more {
		b, err := json.Marshal(value)
		if err != nil {
			panic(err) // strings and numbers always can
		}
		if fields[key], err = decode(b); err != nil {
			panic(err)
		}
	}
	j.add(fields)
}

func (j *journal) add(fields map[string]any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry{time.Now(), fields})
	close(j.more)
	j.more = make(chan struct{})
}

func (j *journal) all() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// await waits for an entry that p matches, from the beginning of the run on.
func (j *journal) await(ctx context.Context, p pattern) error {
	for seen := 0; ; {
		j.mu.Lock()
		entries, more := j.entries[seen:], j.more
		seen = len(j.entries)
		j.mu.Unlock()
		if slices.ContainsFunc(entries, p.matches) {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %v: %w", p, context.Cause(ctx))
		}
	}
}

// A pattern is an object that an entry contains: each of its values is equal to
// the entry's. A list is one of its values, null is no value or an empty one.
type pattern map[string]any

func (p *pattern) UnmarshalJSON(b []byte) error {
	v, err := decode(b)
	if err != nil {
		return err
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("a pattern is an object, not %s", b)
	}
	*p = fields
	return nil
}

func (p pattern) String() string { return entry{fields: p}.String() }

func (p pattern) matches(e entry) bool { return contains(e.fields, map[string]any(p)) }

func contains(have, want any) bool {
	switch want := want.(type) {
	case nil:
		return have == nil || have == ""
	case []any:
		return slices.ContainsFunc(want, func(w any) bool { return contains(have, w) })
	case map[string]any:
		fields, ok := have.(map[string]any)
		if !ok {
			return false
		}
		for key, w := range want {
			if !contains(fields[key], w) {
				return false
			}
		}
		return true
	}
	return have == want
}

// decode reads JSON and keeps its numbers as they are written.
func decode(b []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one value: %s", b)
	}
	return v, nil
}
