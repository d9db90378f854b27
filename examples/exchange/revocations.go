package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Revocations are the tokens that were revoked before their time, each until that has
// come: more are not worth remembering, so that their number is bounded by how many
// sign in meanwhile. In a folder each is an empty file with time and ID as its name:
// to make one is one step for the file system, so that no crash leaves half of one,
// and several processes do not get in each other's way. They know of each other's
// when they start.
type revocations struct {
	dir string // immutable; empty: in memory alone

	mu      sync.Mutex
	until   map[string]time.Time // guarded by mu: by ID
	sweepAt int                  // guarded by mu: with so many it is time to forget
}

const leastSweep = 1000

func newRevocations(dir string) *revocations {
	return &revocations{dir: dir, until: make(map[string]time.Time), sweepAt: leastSweep}
}

// load reads the folder, and removes from it what is over.
func (r *revocations) load() error {
	files, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.mu.Lock()
	for _, f := range files {
		at, id, _ := strings.Cut(f.Name(), "-")
		if seconds, err := strconv.ParseInt(at, 10, 64); err == nil && id != "" { // others are not ours
			r.until[id] = time.Unix(seconds, 0)
		}
	}
	over := r.sweep(time.Now())
	r.mu.Unlock()
	r.remove(over)
	return err
}

// add revokes a token, for this process whatever happens, and on disk if the error
// is nil.
func (r *revocations) add(t token) error {
	var over []token
	r.mu.Lock()
	r.until[t.id] = t.expires
	if len(r.until) >= r.sweepAt {
		over = r.sweep(time.Now())
	}
	r.mu.Unlock() // whoever asks must not wait for the disk
	if r.dir == "" {
		return nil
	}
	r.remove(over)
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(r.file(t), nil, 0o600)
}

func (r *revocations) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.until[id]
	return ok
}

// sweep forgets what has expired by itself, and returns it. mu is held.
func (r *revocations) sweep(now time.Time) (over []token) {
	for id, until := range r.until {
		if !now.Before(until) {
			delete(r.until, id)
			over = append(over, token{id: id, expires: until})
		}
	}
	r.sweepAt = max(leastSweep, 2*len(r.until))
	return over
}

// remove takes off the disk what is over.
func (r *revocations) remove(over []token) {
	for _, t := range over {
		_ = os.Remove(r.file(t)) // or else at the next start
	}
}

func (r *revocations) file(t token) string {
	return filepath.Join(r.dir, strconv.FormatInt(t.expires.Unix(), 10)+"-"+t.id)
}
