package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A ledger is what the publishers have published: how many of each stream, which is
// a lane of a user, or of everybody. It outlives the exchange, and it is what
// snapshots are taken from. What is under way is in it already: nobody knows of a
// request to an exchange that was killed whether it came to anything.
type ledger struct {
	mu      sync.Mutex
	streams map[string]int // guarded by mu
}

// write makes the next posting of a stream.
func (l *ledger) write(p posting) posting {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams[p.stream()]++
	p.N = l.streams[p.stream()]
	return p
}

// snapshot is what a user has by now.
func (l *ledger) snapshot(user string) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Collect(func(yield func(string, int) bool) {
		for stream, n := range l.streams {
			if of(stream, user) && !yield(stream, n) {
				return
			}
		}
	})
}

func (l *ledger) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, streamed := range l.streams {
		n += streamed
	}
	return n
}

func of(stream, user string) bool {
	owner, _, _ := strings.Cut(stream, "-")
	return owner == user || owner == everybody
}

// ServeHTTP answers a snapshot: {"u1-P0":17,…}.
func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*") // pages ask as well
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(l.snapshot(r.URL.Query().Get("user"))) // the only error is a client that has left
}

// An observer follows what one driver tells, and holds it against the ledger. A
// snapshot is the list as it was at a moment behind the welcome. What the stream
// brings after that may be part of it, if it is from between the two; from then on
// each number of a stream follows the one before.
type observer struct {
	user string // immutable

	mu        sync.Mutex
	loading   bool           // guarded by mu, as all that follows
	loads     map[string]int // the ledger when the snapshot began: it is no older than the welcome
	have      map[string]int // by stream: the last one, from the snapshot or the stream; nil before there is either
	streamed  map[string]int // by stream: the last one that came since the snapshot
	wrong     []string
	taken     int
	snapshots map[string]int // by reason
	losses    map[string]int // by reason
	resumed   int
	welcomed  bool   // the last thing was a welcome
	end       string // the reason
	last      []string
}

func newObserver(user string) *observer {
	return &observer{user: user, snapshots: map[string]int{}, losses: map[string]int{}}
}

func (o *observer) hear(line []byte, l *ledger) error {
	v, err := decode(line)
	fields, ok := v.(map[string]any)
	if err != nil || !ok {
		return fmt.Errorf("no event: %.200q", line)
	}
	e := entry{fields: fields}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last = append(o.last, e.short()); len(o.last) > 40 {
		o.last = o.last[1:]
	}
	switch e.text("event") {
	case "state":
		switch e.text("state") {
		case "waiting":
			o.losses[e.text("reason")+" "+fmt.Sprint(fields["code"])]++
		case "replaying":
			o.resumed++ // until a snapshot proves the contrary
			o.welcomed = true
		case "live":
			o.welcomed = false
		}
	case "snapshot":
		o.snapshots[e.text("reason")]++
		if o.welcomed {
			o.resumed--
		}
		o.loading, o.loads = true, l.snapshot(o.user)
	case "snapshot_done":
		o.loading = false
		o.have, o.streamed = o.loads, map[string]int{}
		if body, ok := fields["body"].(map[string]any); ok {
			o.have = map[string]int{}
			for stream, n := range body {
				o.have[stream], _ = strconv.Atoi(fmt.Sprint(n))
			}
		}
	case "notification":
		o.take(e.text("message_id"))
	case "stopped":
		o.end = e.text("reason")
	}
	return nil
}

func (o *observer) take(id string) {
	o.taken++
	i := strings.LastIndexByte(id, '-')
	n, err := strconv.Atoi(id[i+1:])
	if err != nil || i < 0 {
		o.complain("%s is nothing that was published", id)
		return
	}
	stream := id[:i]
	last, came := o.streamed[stream]
	switch {
	case !of(stream, o.user):
		o.complain("%s is somebody else's", id)
	case o.loading:
		o.complain("%s comes while the snapshot is loaded", id)
	case o.have == nil:
		o.complain("%s comes before any snapshot", id)
	case came && n <= last:
		o.complain("%s comes behind %d: twice, or out of order", id, last)
	case came && n > last+1:
		o.complain("%s comes behind %d: some are lost", id, last)
	case !came && n > o.have[stream]+1:
		o.complain("%s comes behind a snapshot up to %d: some are lost", id, o.have[stream])
	}
	if o.streamed == nil {
		o.streamed, o.have = map[string]int{}, map[string]int{}
	}
	o.streamed[stream] = n
	o.have[stream] = max(o.have[stream], n)
}

// begun: it has a list.
func (o *observer) begun() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.have != nil
}

func (o *observer) complain(format string, args ...any) {
	o.wrong = append(o.wrong, fmt.Sprintf(format, args...)+"\n    behind "+strings.Join(o.last[max(0, len(o.last)-8):], "\n           "))
}

// missing compares the list with the ledger, once that is closed.
func (o *observer) missing(l *ledger) (missing []string) {
	want := l.snapshot(o.user)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, stream := range slices.Sorted(maps.Keys(want)) {
		if o.have[stream] != want[stream] {
			missing = append(missing, fmt.Sprintf("%s is at %d of %d", stream, o.have[stream], want[stream]))
		}
	}
	return missing
}
