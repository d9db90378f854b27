package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// The event types of a LOBSTER message file.
const (
	eventSubmit        = 1
	eventPartialCancel = 2
	eventCancel        = 3
	eventExecution     = 4
	eventHidden        = 5 // the execution of an order that the book did not show
	eventCross         = 6 // an auction
	eventHalt          = 7 // price -1 halts, 0 resumes quoting, 1 resumes trading
)

// An event is one line of a recording.
type event struct {
	at    time.Duration // after midnight
	kind  uint8
	buy   bool
	order int64
	size  int32
	price int64 // × 10,000
}

// A recording is recorded order flow. It is read as a whole before anything is
// published: a bad line should be known before the market opens, and how large
// an order was that is older than the recording shows only in what follows.
type recording struct {
	instrument string
	events     []event
	older      map[int64]int64 // size of each order that is older than the recording, as far as it is seen
}

// openRecording reads a CSV file, plain or gzipped. Its name begins with the
// instrument's.
func openRecording(name string) (*recording, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := readRecording(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	base := filepath.Base(name)
	r.instrument = strings.ToUpper(base[:strings.IndexAny(base+".", "-_.")])
	if r.instrument == "" {
		r.instrument = "RECORDED"
	}
	return r, nil
}

func readRecording(in io.Reader) (*recording, error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	in = buffered
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, err
		}
		in = z
	}
	r := &recording{older: make(map[int64]int64)}
	submitted := make(map[int64]bool)
	lines := bufio.NewScanner(in)
	number := 0
	for lines.Scan() {
		number++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		e, err := parseEvent(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if n := len(r.events); n > 0 && e.at < r.events[n-1].at {
			return nil, fmt.Errorf("line %d: time %s is before that of the event above it, %s", number, e.at, r.events[n-1].at)
		}
		switch {
		case e.kind == eventSubmit:
			submitted[e.order] = true
		case e.kind <= eventExecution && !submitted[e.order]:
			r.older[e.order] += int64(e.size)
		}
		r.events = append(r.events, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("after line %d: %w", number, err)
	}
	if len(r.events) == 0 {
		return nil, errors.New("no events")
	}
	return r, nil
}

// parseEvent reads "34200.004241176,1,16113575,18,5853300,1".
func parseEvent(line string) (event, error) {
	var e event
	fields := strings.Split(line, ",")
	if len(fields) != 6 {
		return e, fmt.Errorf("%d fields instead of 6: time, type, order, size, price, direction", len(fields))
	}
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	seconds, err := strconv.ParseFloat(fields[0], 64)
	if err != nil || !(seconds >= 0 && seconds < 2*86400) {
		return e, fmt.Errorf("time %q is not in seconds after midnight", fields[0])
	}
	e.at = time.Duration(math.Round(seconds * 1e9))
	kind, err := strconv.ParseUint(fields[1], 10, 8)
	if err != nil || kind < eventSubmit || kind > eventHalt {
		return e, fmt.Errorf("type %q is not within 1 and 7", fields[1])
	}
	e.kind = uint8(kind)
	if e.order, err = strconv.ParseInt(fields[2], 10, 64); err != nil {
		return e, fmt.Errorf("order %q is not a number", fields[2])
	}
	size, err := strconv.ParseInt(fields[3], 10, 32)
	if err != nil || size <= 0 && e.kind != eventHalt {
		return e, fmt.Errorf("size %q is not a positive number", fields[3])
	}
	e.size = int32(size)
	if e.price, err = strconv.ParseInt(fields[4], 10, 64); err != nil || e.price < 0 && e.kind != eventHalt {
		return e, fmt.Errorf("price %q is not a number, times 10,000", fields[4])
	}
	switch fields[5] {
	case "1":
		e.buy = true
	case "-1":
	default:
		return e, fmt.Errorf("direction %q is neither 1 nor -1", fields[5])
	}
	return e, nil
}

// A replay drives the exchange with a recording.
type replay struct {
	*ledger
	*recording
	flush  func() // after each event
	users  int
	orders map[int64]*order // those that stand
	hidden int64            // orders that the book did not show have no ID: they are numbered
}

func newReplay(users int, r *recording, to publisher) *replay {
	return &replay{ledger: newLedger(users, to.publish), flush: to.flush, recording: r, users: users, orders: make(map[int64]*order)}
}

// run plays the recording at its own pace times speed, open loop as the
// simulated market does, or with speed 0 without a pace. It returns how far
// behind its schedule it was at worst, and keeps played up to date.
func (r *replay) run(ctx context.Context, speed float64, played *atomic.Int64) (behind time.Duration) {
	defer func() { r.ledger.publish(everybody, tradingEnds()); r.flush() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	start, first := time.Now(), r.events[0].at
	for i := range r.events {
		if speed > 0 {
			due := time.Duration(float64(r.events[i].at-first) / speed)
			if wait := due - time.Since(start); wait > 0 {
				timer.Reset(wait)
				select {
				case <-ctx.Done():
				case <-timer.C:
				}
			}
			behind = max(behind, time.Since(start)-due)
		}
		if ctx.Err() != nil {
			break
		}
		r.play(r.events[i])
		r.flush()
		played.Store(int64(i + 1))
	}
	return behind
}

// play does to the ledger what the event says.
func (r *replay) play(e event) {
	price := float64(e.price) / 10_000
	switch e.kind {
	case eventSubmit:
		o := r.order(e, int64(e.size))
		r.orders[e.order] = o
		r.accept(o)
	case eventPartialCancel, eventCancel:
		o := r.find(e)
		if e.kind == eventCancel || float64(e.size) >= o.left() {
			delete(r.orders, e.order)
			r.cancel(o, o.left(), "canceled by the user")
			return
		}
		r.cancel(o, float64(e.size), fmt.Sprintf("%d of %.0f canceled by the user", e.size, o.left()))
	case eventExecution:
		o := r.find(e)
		r.fill(o, price, float64(e.size))
		if o.left() <= 0 {
			delete(r.orders, e.order)
		}
	case eventHidden:
		r.hidden++
		e.order = -r.hidden
		r.fill(r.order(e, int64(e.size)), price, float64(e.size))
	case eventCross:
		r.notice(everybody, "Auction", fmt.Sprintf("%s: %d at %.4f", r.instrument, e.size, price))
	case eventHalt:
		switch e.price {
		case 0:
			r.notice(everybody, "Quoting resumes", r.instrument)
		case 1:
			r.notice(everybody, "Trading resumes", r.instrument)
		default:
			r.publish(everybody, marketHalt(r.instrument, "halted by the exchange", 0))
		}
	}
}

// find returns the order of an event. One that nobody submitted is older than
// the recording, and has the size of what the recording does to it.
func (r *replay) find(e event) *order {
	o := r.orders[e.order]
	if o == nil {
		o = r.order(e, max(r.older[e.order], int64(e.size)))
		r.orders[e.order] = o
	}
	return o
}

func (r *replay) order(e event, size int64) *order {
	id := "L" + strconv.FormatInt(e.order, 10)
	if e.order < 0 {
		id = "H" + strconv.FormatInt(-e.order, 10)
	}
	return &order{
		id: id, user: int(hash(uint64(e.order)) % uint64(r.users)), instrument: r.instrument,
		buy: e.buy, price: float64(e.price) / 10_000, volume: float64(size),
	}
}
