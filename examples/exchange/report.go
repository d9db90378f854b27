package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/qaexchange/notification"
)

// targets is what each lane's p99 must not exceed, from Publish to the sink.
var targets = [notification.NumPriorities]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 100 * time.Millisecond, time.Second,
}

// A snapshot is the exchange's counters at one moment.
type snapshot struct {
	at         time.Time
	broker     notification.BrokerStats
	gateway    notification.GatewayStats
	broadcasts uint64 // messages to everybody
}

func (x *exchange) snapshot() snapshot {
	s := snapshot{at: time.Now()}
	s.broker, s.gateway = x.bus.stats()
	if x.latency != nil {
		for p := range x.latency {
			s.gateway.Lanes[p].Latency = x.latency[p].Snapshot()
		}
	}
	for p := range x.many {
		s.broadcasts += x.many[p].Load()
	}
	return s
}

func (s snapshot) published() (n uint64) {
	for _, l := range s.broker.Lanes {
		n += l.Published
	}
	return n
}

func (s snapshot) delivered() (n uint64) {
	for _, l := range s.gateway.Lanes {
		n += l.Taken
	}
	return n
}

// handed is what the Broker has put into the Gateway's inbox.
func (s snapshot) handed() uint64 {
	n := s.broker.Departed.Handed
	for _, r := range s.broker.Receivers {
		n += r.Handed
	}
	return n
}

// inbox is what waits there, in all lanes together. The Broker is read before the
// Gateway, so that it is too small by what came out meanwhile.
func (s snapshot) inbox() int {
	n := int(s.handed())
	for _, l := range s.gateway.Lanes {
		n -= int(l.Received + l.Invalid + l.Discarded)
	}
	return max(n, 0)
}

// enqueued is what was put into outboxes: messages × sessions.
func (s snapshot) enqueued() (n uint64) {
	for _, l := range s.gateway.Lanes {
		n += l.Enqueued + l.Replayed
	}
	return n
}

func (s snapshot) pushes() uint64 { return s.gateway.Batches }

// queued is what waits in a lane of the Broker and behind it in the Gateway.
func (s snapshot) queued(p int) int {
	return s.broker.Lanes[p].Queued + s.gateway.Lanes[p].Pending
}

// lost lists the counters of a lane that count something lost on its way, as
// far as they are not zero. What waited for a session that ended is not lost
// yet: with a history, a session that resumes gets it.
func (s snapshot) lost(p int) (reasons []loss, total uint64) {
	b, g := s.broker.Lanes[p], s.gateway.Lanes[p]
	for _, c := range []struct {
		n     uint64
		what  string
		total *uint64
	}{
		{b.Unrouted, "unrouted", &total},
		{b.Discarded, "left in the broker", &total},
		{g.Discarded, "left in the gateway", &total},
		{g.NoSession, "without a session", &total},
		{g.DroppedSlow, "dropped from a slow session", &total},
		{g.DroppedEnded, "waiting when a session ended", new(uint64)},
	} {
		if c.n > 0 {
			reasons = append(reasons, loss{c.n, c.what})
			*c.total += c.n
		}
	}
	return reasons, total
}

// A loss is one counter's part of what was lost, in words that the page translates.
type loss struct {
	N    uint64 `json:"n"`
	What string `json:"what"`
}

// tooLate is a loss that only the clients know of.
const tooLate = "clients came back too late for the history"

func (l loss) String() string { return count(l.N) + " " + l.What }

// perSecond is a rate between two snapshots.
func perSecond(from, to snapshot, of func(snapshot) uint64) float64 {
	seconds := to.at.Sub(from.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(of(to)-of(from)) / seconds
}

// recent is a lane's latencies between two snapshots.
func recent(from, to snapshot, p int) notification.Histogram {
	return to.gateway.Lanes[p].Latency.Sub(from.gateway.Lanes[p].Latency)
}

// A screen shows progress: on a terminal as one block that is drawn anew,
// elsewhere as a line each time.
type screen struct {
	out      io.Writer
	terminal bool
	lines    int // of the block that stands
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok {
		if i, err := f.Stat(); err == nil {
			s.terminal = i.Mode()&os.ModeCharDevice != 0
		}
	}
	return s
}

func (s *screen) show(x *exchange, from, to snapshot, note string) {
	head := fmt.Sprintf("%4.0f s  published %s/s  delivered %s/s  sessions %s%s",
		to.at.Sub(x.started).Seconds(), count(perSecond(from, to, snapshot.published)),
		count(perSecond(from, to, snapshot.delivered)), count(to.gateway.Sessions), note)
	if !s.terminal {
		var queues, p99 []string
		for p := range targets {
			queues = append(queues, count(to.queued(p)))
			p99 = append(p99, duration(recent(from, to, p).Quantile(0.99)))
		}
		fmt.Fprintf(s.out, "%s  queued %s  p99 %s\n", head, strings.Join(queues, "/"), strings.Join(p99, "/"))
		return
	}
	var b strings.Builder
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.lines)
	}
	fmt.Fprintf(&b, "%s\n\n", head)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "lane\tqueued\tof\tp50\tp99\ttarget\t\n")
	for p, target := range targets {
		h := recent(from, to, p)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", notification.Priority(p), count(to.queued(p)),
			count(to.broker.Lanes[p].Capacity), duration(h.Quantile(0.5)), duration(h.Quantile(0.99)), duration(target))
	}
	w.Flush()
	s.lines = strings.Count(b.String(), "\n")
	io.WriteString(s.out, b.String())
}

// What the final table comes to.
const (
	verdictWhole  = "Every user saw every message once and in order, and every counter agrees."
	verdictBroken = "Not every user saw every message."
)

// A laneReport is a line of the table.
type laneReport struct {
	Lane      string        `json:"lane"`
	Capacity  int           `json:"capacity"`
	Published uint64        `json:"published"` // messages
	Due       uint64        `json:"due"`       // message × member
	Delivered uint64        `json:"delivered"`
	Lost      uint64        `json:"lost"`
	Reasons   []loss        `json:"reasons,omitempty"`
	P50       time.Duration `json:"p50"`
	P99       time.Duration `json:"p99"`
	Handed    time.Duration `json:"handed"` // p99 until it is in the inbox, or with a log in that
	Max       time.Duration `json:"max"`
	Target    time.Duration `json:"target"`
	Held      bool          `json:"held"`
}

// live is the table while messages move: what was delivered and lost is what
// the Gateway has counted so far.
func (x *exchange) live(s snapshot) []laneReport {
	var rows []laneReport
	for p, target := range targets {
		h := s.gateway.Lanes[p].Latency
		r := laneReport{
			Lane:      notification.Priority(p).String(),
			Capacity:  s.broker.Lanes[p].Capacity,
			Published: s.broker.Lanes[p].Published,
			Due:       x.one[p].Load() + x.many[p].Load()*uint64(len(x.members)),
			Delivered: s.gateway.Lanes[p].Taken,
			P50:       h.Quantile(0.5), P99: h.Quantile(0.99), Max: h.Max(), Target: target,
			Handed: s.broker.Lanes[p].Latency.Quantile(0.99),
		}
		r.Reasons, r.Lost = s.lost(p)
		r.Held = r.P99 <= target
		rows = append(rows, r)
	}
	return rows
}

// final is the table after drain, from what the clients themselves have seen,
// and everything in it that does not add up. guests says that there were other
// sessions beside the clients', gone how many clients were told that the
// history did not reach back to where they had been.
func (x *exchange) final(s snapshot, guests bool, gone uint64) (rows []laneReport, mismatches []string) {
	wrong := func(format string, args ...any) {
		mismatches = append(mismatches, fmt.Sprintf(format, args...))
	}
	var seen [notification.NumPriorities]uint64
	var disorder uint64
	for _, m := range x.members {
		for p, n := range m.client.got {
			seen[p] += n
		}
		disorder += m.client.wrong
	}

	rows = x.live(s)
	var lost, taken uint64
	for p := range rows {
		r, b, g := &rows[p], s.broker.Lanes[p], s.gateway.Lanes[p]
		r.Delivered, r.Lost = seen[p], r.Due-seen[p]
		if r.Lost == 0 {
			r.Reasons = nil
		} else if gone > 0 {
			r.Reasons = append(r.Reasons, loss{gone, tooLate})
		}
		lost += r.Lost
		taken += g.Received + g.Discarded
		if accepted := x.one[p].Load() + x.many[p].Load(); accepted != b.Published {
			wrong("%s: %d accepted by Publish, but Published %d", r.Lane, accepted, b.Published)
		}
		if b.Published != b.Routed+b.Unrouted+b.Discarded+uint64(b.Queued) {
			wrong("%s: Published %d is not Routed %d + Unrouted %d + Discarded %d + Queued %d",
				r.Lane, b.Published, b.Routed, b.Unrouted, b.Discarded, b.Queued)
		}
		if g.Enqueued+g.Replayed != g.Taken+g.DroppedSlow+g.DroppedEnded+uint64(g.Pending) {
			wrong("%s: Enqueued %d + Replayed %d is not Taken %d + DroppedSlow %d + DroppedEnded %d + Pending %d",
				r.Lane, g.Enqueued, g.Replayed, g.Taken, g.DroppedSlow, g.DroppedEnded, g.Pending)
		}
		if g.Taken < seen[p] || g.Taken > seen[p] && !guests {
			wrong("%s: the clients saw %d, but Taken %d", r.Lane, seen[p], g.Taken)
		}
		if r.Due < seen[p] || r.Lost > 0 && len(r.Reasons) == 0 {
			wrong("%s: %d were due and %d seen, and no counter says why", r.Lane, r.Due, seen[p])
		}
	}
	handed := s.broker.Departed.Handed
	for _, r := range s.broker.Receivers {
		handed += r.Handed
	}
	if handed != taken {
		wrong("%d were handed to the gateway, which received %d", handed, taken)
	}
	if lost == 0 {
		if disorder > 0 {
			wrong("%d messages came out of order or twice", disorder)
		}
		mismatches = append(mismatches, x.incomplete()...)
	}
	return rows, mismatches
}

// incomplete names the first client whose streams do not end where those of the
// publishers do.
func (x *exchange) incomplete() []string {
	for _, m := range x.members {
		for k, name := range streamNames {
			if got, last := m.client.own[k], m.streams[k].last.Load(); got != last && got != anyNumber {
				return []string{fmt.Sprintf("%s has %s up to %d of %d", m.id, name, got, last)}
			}
			if got, last := m.client.all[k], x.all[k].last.Load(); got != last && got != anyNumber {
				return []string{fmt.Sprintf("%s has %s for everybody up to %d of %d", m.id, name, got, last)}
			}
		}
	}
	return nil
}

// printTable prints the final table.
func printTable(out io.Writer, rows []laneReport) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "lane\tpublished\tdue\tdelivered\tlost\tp50\tp99\tmax\ttarget\theld\t\n")
	for _, r := range rows {
		held := "yes"
		switch {
		case r.P99 > r.Target:
			held = "NO"
		case r.Delivered == 0:
			held = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Lane, count(r.Published), count(r.Due),
			count(r.Delivered), count(r.Lost), duration(r.P50), duration(r.P99), duration(r.Max), duration(r.Target), held)
	}
	w.Flush()
}

// count formats a number with separators.
func count[N int | uint64 | float64](n N) string {
	s := fmt.Sprintf("%.0f", float64(n))
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// duration formats with three digits.
func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
