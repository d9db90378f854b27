package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/qaexchange/notification"
)

// A table has a title, a sentence on how to read it, a header and rows.
type table struct {
	title, note string
	head        []string
	rows        [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func textTables(w io.Writer, t table) {
	fmt.Fprintf(w, "\n%s\n%s\n", t.title, t.note)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(tw, strings.Join(row, "\t")+"\t")
	}
	tw.Flush()
}

func markdownTables(w io.Writer, t table) {
	fmt.Fprintf(w, "### %s\n\n%s\n\n| %s |\n|%s\n", t.title, t.note, strings.Join(t.head, " | "), "---|"+strings.Repeat("--:|", len(t.head)-1))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Fprintln(w)
}

// of returns the outcomes of a section that match.
func of(results []outcome, section string, match func(outcome) bool) (found []outcome) {
	for _, o := range results {
		if o.Section == section && (match == nil || match(o)) {
			found = append(found, o)
		}
	}
	return found
}

// median is that of one figure over the rounds; with an even number the lower
// of the two in the middle, which has happened.
func median(found []outcome, figure func(outcome) float64) float64 {
	if len(found) == 0 {
		return 0
	}
	all := make([]float64, len(found))
	for i, o := range found {
		all[i] = figure(o)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

// systemsIn are those that take part in found, in the order of the tables.
func systemsIn(found []outcome) (names []string) {
	for _, c := range contenders {
		if slices.ContainsFunc(found, func(o outcome) bool { return o.System == c.name }) {
			names = append(names, c.name)
		}
	}
	return names
}

// valuesIn are the values of one parameter, ascending.
func valuesIn(found []outcome, parameter func(outcome) int) (values []int) {
	for _, o := range found {
		if v := parameter(o); !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	slices.Sort(values)
	return values
}

func bySystem(found []outcome, name string) []outcome {
	return slices.DeleteFunc(slices.Clone(found), func(o outcome) bool { return o.System != name })
}

func perSecond(o outcome) float64 { return o.PerSecond }
func cpuEach(o outcome) float64   { return o.CPU }

func report(w io.Writer, results []outcome, write func(io.Writer, table)) {
	for _, make := range append([]func([]outcome) (table, bool){
		flatTable, flatCostTable, bufferTable, manyTable, callTable, dueTable, floodTable, idleTable, stalledTable, growthTable,
	}, encodingTables...) {
		if t, ok := make(results); ok {
			write(w, t)
		}
	}
}

// fewPublishers makes a cell for one publisher, and one for two.
func fewPublishers(all []outcome, cell func(found []outcome) string) (cells []string) {
	for _, p := range flatPublishers {
		cells = append(cells, cell(withPublishers(all, p)))
	}
	return cells
}

func speeds(all []outcome, name string) []string {
	return fewPublishers(all, func(found []outcome) string { return thousands(median(bySystem(found, name), perSecond)) })
}

func cpus(all []outcome, name string) []string {
	return fewPublishers(all, func(found []outcome) string { return fmt.Sprintf("%.2f", median(bySystem(found, name), cpuEach)) })
}

// timesFastest is against the fastest peer with an encoder.
func timesFastest(all []outcome, name, encoder string) []string {
	return fewPublishers(all, func(found []outcome) string {
		return times(median(bySystem(found, name), perSecond), fastestPeer(found, encoder))
	})
}

// flatTable has one and two publishers side by side: a way that is quick with
// one and stands in its own way with two would look well in the first alone.
func flatTable(results []outcome) (t table, ok bool) {
	all := of(results, "flat", nil)
	t = table{title: "Flat out",
		note: "publish → the receiver holds the JSON, as fast as it goes, one publisher and two; New and encoding included. Who has no encoder in its name encodes as this library does. × fastest peer: against the fastest of those with the same encoder; the library and the floor, direct, are no peers. × fastest (encoding/json): against the fastest peer with that encoder",
		head: []string{"system", "msg/s, 1 publisher", "msg/s, 2 publishers",
			"× fastest peer, 1", "× fastest peer, 2", "× fastest (encoding/json), 1", "× fastest (encoding/json), 2", "lost"}}
	for _, name := range systemsIn(all) {
		t.add(slices.Concat([]string{name}, speeds(all, name),
			timesFastest(all, name, encoderOf(name)), timesFastest(all, name, standardEncoder.name),
			[]string{lost(bySystem(all, name))})...)
	}
	return t, len(t.rows) > 0
}

// flatCostTable is what a message costs in the same measurements.
func flatCostTable(results []outcome) (t table, ok bool) {
	all := of(results, "flat", nil)
	t = table{title: "Flat out, what a message costs",
		note: "CPU is user and system of the whole process; over the floor: less that of direct with the same encoder, which makes, encodes and hands over the same messages; memory with one publisher",
		head: []string{"system", "CPU µs/msg, 1 publisher", "CPU µs/msg, 2 publishers", "over the floor, 1", "over the floor, 2", "allocs/msg", "B/msg", "peak RSS MiB"}}
	for _, name := range systemsIn(all) {
		overs := fewPublishers(all, func(found []outcome) string {
			floor := bySystem(found, floorOf(name))
			if len(floor) == 0 || name == floorOf(name) {
				return "–"
			}
			return fmt.Sprintf("%.2f", median(bySystem(found, name), cpuEach)-median(floor, cpuEach))
		})
		one := bySystem(withPublishers(all, 1), name)
		t.add(slices.Concat([]string{name}, cpus(all, name), overs, []string{
			fmt.Sprintf("%.1f", median(one, func(o outcome) float64 { return o.Allocs })),
			fmt.Sprintf("%.0f", median(one, func(o outcome) float64 { return o.AllocBytes })),
			fmt.Sprintf("%.0f", median(one, func(o outcome) float64 { return o.PeakRSS }))})...)
	}
	return t, len(t.rows) > 0
}

// bufferTable is for receivers that put the document into a frame of their own.
func bufferTable(results []outcome) (t table, ok bool) {
	all := of(results, "buffer", nil)
	t = table{title: "Flat out, into a buffer",
		note: "the same, but that each receiver encodes into memory that is used again, as transports do, and in place of new bytes",
		head: []string{"system", "msg/s, 1 publisher", "msg/s, 2 publishers", "× fastest peer, 1", "× fastest peer, 2", "CPU µs/msg, 1", "CPU µs/msg, 2", "B/msg"}}
	for _, name := range systemsIn(all) {
		bytes := median(bySystem(withPublishers(all, 1), name), func(o outcome) float64 { return o.AllocBytes })
		t.add(slices.Concat([]string{name}, speeds(all, name), timesFastest(all, name, ownEncoder.name), cpus(all, name),
			[]string{fmt.Sprintf("%.0f", bytes)})...)
	}
	return t, len(t.rows) > 0
}

// manyTable is the same as flatTable with more publishers than there are cores.
func manyTable(results []outcome) (t table, ok bool) {
	all := slices.DeleteFunc(of(results, "flat", nil), func(o outcome) bool { return !slices.Contains(scaling, o.System) })
	counts := valuesIn(all, func(o outcome) int { return o.Publishers })
	t = table{title: "Flat out, more publishers", note: "the same encoder for all; × 1: the throughput over that of the same system with one publisher",
		head: []string{"system, publishers"}}
	for _, p := range counts {
		t.head = append(t.head, fmt.Sprint(p))
	}
	for _, name := range systemsIn(all) {
		speeds, ratios, cpus := []string{name + ", msg/s"}, []string{name + ", × 1"}, []string{name + ", CPU µs/msg"}
		one := median(bySystem(withPublishers(all, 1), name), perSecond)
		for _, p := range counts {
			mine := bySystem(withPublishers(all, p), name)
			if len(mine) == 0 {
				speeds, ratios, cpus = append(speeds, "–"), append(ratios, "–"), append(cpus, "–")
				continue
			}
			speeds = append(speeds, thousands(median(mine, perSecond)))
			ratios = append(ratios, times(median(mine, perSecond), one))
			cpus = append(cpus, fmt.Sprintf("%.2f", median(mine, cpuEach)))
		}
		t.add(speeds...)
		t.add(ratios...)
		t.add(cpus...)
	}
	return t, len(t.rows) > 0
}

func withPublishers(found []outcome, publishers int) []outcome {
	return slices.DeleteFunc(slices.Clone(found), func(o outcome) bool { return o.Publishers != publishers })
}

// fastestPeer is the throughput of the fastest peer with an encoder, 0 if none
// takes part.
func fastestPeer(found []outcome, encoder string) (best float64) {
	for _, c := range contenders {
		if c.peer() && c.encoder.name == encoder {
			best = max(best, median(bySystem(found, c.name), perSecond))
		}
	}
	return best
}

func encoderOf(name string) string {
	c, _ := contenderNamed(name) // what was measured is one
	return c.encoder.name
}

// floorOf names the floor with the encoder of a system.
func floorOf(name string) string {
	if encoderOf(name) == standardEncoder.name {
		return floorName + withStandard
	}
	return floorName
}

// times is a ratio, where there is something to compare with.
func times(value, other float64) string {
	if other == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", value/other)
}

// lost sums over the rounds what did not arrive: of that no median is taken.
func lost(found []outcome) string {
	n := int64(0)
	for _, o := range found {
		n += o.Lost + o.Refused + o.Unsent
	}
	return fmt.Sprint(n)
}

func callTable(results []outcome) (table, bool) {
	return pacedTable(results, "Paced, from the call", "from the call of publish to the receiver holding the JSON: what the system adds, p50 / p99",
		func(o outcome) [notification.NumPriorities]latency { return o.FromCall })
}

func dueTable(results []outcome) (table, bool) {
	return pacedTable(results, "Paced, from the due time", "from when the message was due, open loop: a publisher that is held up does not hide it, p50 / p99",
		func(o outcome) [notification.NumPriorities]latency { return o.FromDue })
}

func pacedTable(results []outcome, title, note string, lanes func(outcome) [notification.NumPriorities]latency) (t table, ok bool) {
	all := of(results, "paced", nil)
	t = table{title: title, note: note + "; 5 % P0, 60 % P1, 30 % P2, 5 % P3",
		head: []string{"system", "msg/s", "P0", "P1", "P2", "P3", "CPU µs/msg", "lost"}}
	for _, rate := range valuesIn(all, func(o outcome) int { return o.Rate }) {
		found := of(all, "paced", func(o outcome) bool { return o.Rate == rate })
		for _, name := range systemsIn(found) {
			mine := bySystem(found, name)
			row := []string{name, thousands(float64(rate))}
			for p := range notification.NumPriorities {
				row = append(row, micros(median(mine, func(o outcome) float64 { return lanes(o)[p].P50 }))+" / "+
					micros(median(mine, func(o outcome) float64 { return lanes(o)[p].P99 })))
			}
			t.add(append(row, fmt.Sprintf("%.1f", median(mine, func(o outcome) float64 { return o.CPU })), lost(mine))...)
		}
	}
	return t, len(t.rows) > 0
}

func floodTable(results []outcome) (t table, ok bool) {
	all := of(results, "flood", nil)
	t = table{title: "P0 under a flood",
		note: "200 P0 a second, open loop, while one publisher floods P1; latency of the P0s",
		head: []string{"system", "p50 from call", "p99 from call", "p50 from due", "p99 from due", "max from due", "msg/s beside", "lost"}}
	for _, name := range systemsIn(all) {
		mine := bySystem(all, name)
		row := []string{name}
		for _, f := range []func(outcome) float64{
			func(o outcome) float64 { return o.FromCall[0].P50 }, func(o outcome) float64 { return o.FromCall[0].P99 },
			func(o outcome) float64 { return o.FromDue[0].P50 }, func(o outcome) float64 { return o.FromDue[0].P99 },
			func(o outcome) float64 { return o.FromDue[0].Max },
		} {
			row = append(row, micros(median(mine, f)))
		}
		t.add(append(row, thousands(median(mine, perSecond)), lost(mine))...)
	}
	return t, len(t.rows) > 0
}

func idleTable(results []outcome) (t table, ok bool) {
	all := slices.Concat(of(results, "idle", nil), of(results, "memory", nil))
	t = table{title: "Idle", note: "heap and stacks after a collection, and resident memory, per user; CPU while nothing happens, after that",
		head: []string{"system", "users", "bytes/user", "RSS bytes/user", "CPU % of a core"}}
	for _, n := range valuesIn(all, func(o outcome) int { return o.Users }) {
		found := slices.DeleteFunc(slices.Clone(all), func(o outcome) bool { return o.Users != n })
		for _, name := range systemsIn(found) {
			mine := bySystem(found, name)
			idle := "–"
			if mine[0].Section == "idle" {
				idle = fmt.Sprintf("%.3f", median(mine, func(o outcome) float64 { return o.IdleCPU }))
			}
			t.add(name, thousands(float64(n)), thousands(median(mine, func(o outcome) float64 { return o.HeapPerUser })),
				thousands(median(mine, func(o outcome) float64 { return o.RSSPerUser })), idle)
		}
	}
	return t, len(t.rows) > 0
}

func stalledTable(results []outcome) (t table, ok bool) {
	all := of(results, "stalled", nil)
	if len(all) == 0 {
		return t, false
	}
	t = table{title: "One stalled user",
		note: fmt.Sprintf("%d users, %s msg/s mixed, the receiver of one never comes back: what the others see, from the due time, and what piles up meanwhile", all[0].Users, thousands(float64(all[0].Rate))),
		head: []string{"system", "others P0 p50", "others P0 p99", "others P1 p99", "others lost", "refused", "never published", "memory grown MiB", "what happened"}}
	for _, name := range systemsIn(all) {
		o := bySystem(all, name)[0]
		t.add(name, micros(o.FromDue[0].P50), micros(o.FromDue[0].P99), micros(o.FromDue[1].P99),
			fmt.Sprint(o.Lost), fmt.Sprint(o.Refused), fmt.Sprint(o.Unsent), fmt.Sprintf("%.1f", o.Grown), cmp.Or(o.Ended, "–"))
	}
	return t, len(t.rows) > 0
}

func growthTable(results []outcome) (t table, ok bool) {
	all := of(results, "growth", nil)
	t = table{title: "Growth", note: fmt.Sprintf("this library flat out, one parameter varied, the others at %s users, 1 gateway, 1 publisher, all cores", thousands(float64(*users))),
		head: []string{"varied", "value", "msg/s", "CPU µs/msg", "allocs/msg", "peak RSS MiB"}}
	for _, g := range growing {
		for _, v := range g.values {
			found := of(all, "growth", func(o outcome) bool {
				for _, other := range growing {
					want := map[string]int{"users": *users, "gateways": 1, "GOMAXPROCS": 0}[other.name]
					if other.name == g.name {
						want = v
					}
					if *other.of(&o.job) != want {
						return false
					}
				}
				return true
			})
			if len(found) == 0 {
				continue
			}
			t.add(g.name, thousands(float64(v)), thousands(median(found, perSecond)),
				fmt.Sprintf("%.2f", median(found, func(o outcome) float64 { return o.CPU })),
				fmt.Sprintf("%.1f", median(found, func(o outcome) float64 { return o.Allocs })),
				fmt.Sprintf("%.0f", median(found, func(o outcome) float64 { return o.PeakRSS })))
		}
	}
	return t, len(t.rows) > 0
}

// micros prints a latency with a unit that suits it.
func micros(us float64) string {
	switch {
	case us == 0:
		return "–"
	case us < 1_000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 10_000:
		return fmt.Sprintf("%.1f ms", us/1e3)
	case us < 1e6:
		return fmt.Sprintf("%.0f ms", us/1e3)
	default:
		return fmt.Sprintf("%.1f s", us/1e6)
	}
}

// thousands groups digits.
func thousands(f float64) string {
	s := fmt.Sprintf("%.0f", f)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
