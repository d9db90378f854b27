package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
)

// A stream is what one publisher says to one user in one lane. Within it the order is
// kept, so that its numbers tell whether something is missing.
type stream struct {
	lane notification.Priority
	user string
}

// id returns what the IDs of a publisher's stream have before their number:
// "u00042.0-trade-P1", or "all.0-system-P3" for everybody.
func (s stream) id(publisher string) string {
	user := s.user
	if user == notification.AllUsers {
		user = "all"
	}
	return user + "." + publisher + "-" + payload(entry{stream: s}).Type().Channel().String() + "-" + s.lane.String()
}

// An entry is one notification in an outbox, the n-th, and which of its stream.
type entry struct {
	n int
	stream
	number int
}

func (e entry) id(publisher string) string {
	return e.stream.id(publisher) + "-" + strconv.Itoa(e.number)
}

// An outbox is a file of lines: "n lane user" for what is to be published, and "+n"
// when that is in the log.
type outbox struct {
	file *os.File
	open []entry // without a mark
	last int
	said map[stream]int
}

func openOutbox(name string) (*outbox, error) {
	entries, done, err := readOutbox(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b := &outbox{said: make(map[stream]int)}
	for _, e := range entries {
		b.last = e.n
		b.said[e.stream] = e.number
		if !done[e.n] {
			b.open = append(b.open, e)
		}
	}
	b.file, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return b, err
}

// readOutbox returns all entries, in order, and which of them are in the log.
func readOutbox(name string) (entries []entry, done map[int]bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	done = make(map[int]bool)
	said := make(map[stream]int)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		e, mark, err := parseLine(lines.Text())
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		case mark:
			done[e.n] = true
		default:
			said[e.stream]++
			e.number = said[e.stream]
			entries = append(entries, e)
		}
	}
	return entries, done, lines.Err()
}

// parseLine reads a line of an outbox: a mark, or an entry without its number.
func parseLine(line string) (e entry, mark bool, err error) {
	if n, ok := strings.CutPrefix(line, "+"); ok {
		e.n, err = strconv.Atoi(n)
		return e, true, err
	}
	if _, err := fmt.Sscan(line, &e.n, (*uint8)(&e.lane), &e.user); err != nil {
		return e, false, fmt.Errorf("%q: %w", line, err)
	}
	return e, false, nil
}

// write is one call of the system each time: a process that is killed has written
// a line, or not.
func (b *outbox) write(to stream) (entry, error) {
	b.last++
	b.said[to]++
	e := entry{n: b.last, stream: to, number: b.said[to]}
	_, err := fmt.Fprintf(b.file, "%d %d %s\n", e.n, e.lane, e.user)
	return e, err
}

// publish waits for room, and no longer.
func (b *outbox) publish(p *natslog.Publisher, name string, e entry) {
	n := notification.New(e.user, payload(e), "publisher-"+name)
	n.ID, n.Priority = e.id(name), e.lane
	for {
		err := p.Publish(n, func(err error) {
			if err == nil {
				_, err = fmt.Fprintf(b.file, "+%d\n", e.n)
			}
			if err != nil {
				slog.Error("a notification stays in the outbox", "n", e.n, "error", err)
			}
		})
		switch {
		case err == nil:
			return
		case !errors.Is(err, notification.ErrQueueFull):
			slog.Error("a notification stays in the outbox", "n", e.n, "error", err)
			return
		}
		time.Sleep(10 * time.Millisecond) // the server is away: the lane is full
	}
}

// payload is what the n-th notification says, in words that the page knows.
func payload(e entry) notification.Payload {
	id := strconv.Itoa(e.n)
	switch {
	case e.user == notification.AllUsers:
		return notification.SystemNotice{Title: "Margin rates", Content: "Margin rates change with the next trading day.", Level: "info"}
	case e.lane == notification.P0:
		return notification.RiskAlert{UserID: e.user, AlertType: "risk_ratio", Severity: "high", Message: id, RiskRatio: 0.9, Suggestion: "reduce positions or pay in"}
	case e.lane == notification.P2:
		balance := float64(10_000 + e.n)
		return notification.AccountUpdate{UserID: e.user, Balance: balance, Available: balance / 2, Margin: balance / 2, RiskRatio: 0.5}
	}
	return notification.TradeExecuted{TradeID: id, OrderID: "o" + id, InstrumentID: "SHFE.cu2512", Direction: "BUY", Offset: "OPEN", Price: 50_000, Volume: 1}
}
