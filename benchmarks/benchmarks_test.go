package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
)

// A comparison with a system that loses, mixes up or invents messages is none.
func TestEverySystemDeliversEachMessageToItsUserOnce(t *testing.T) {
	const users, messages = 50, 2_000
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			h := newHarnessOf(c, job{Users: users, Gateways: 2, Window: 1_000})
			var mu sync.Mutex
			got := make(map[string]received)
			err := h.sys.start(h.users, func(user int, data []byte) {
				r, err := parse(data)
				mu.Lock()
				if err != nil {
					t.Errorf("user %d got %q: %v", user, data, err)
				}
				if r.UserID != h.users[user] {
					t.Errorf("user %d got a message for %s", user, r.UserID)
				}
				if _, twice := got[r.MessageID]; twice {
					t.Errorf("user %d got %s twice", user, r.MessageID)
				}
				got[r.MessageID] = r
				mu.Unlock()
				h.receive(user, data)
			})
			if err != nil {
				t.Fatal(err)
			}
			sent := make(map[string]*notification.Notification)
			for i := range messages {
				n := h.mixed(i, h.pick(i))
				sent[n.ID] = n
				h.enter()
				h.publish(n)
			}
			if missing := h.drain(); missing != 0 {
				t.Errorf("%d of %d messages are missing", missing, messages)
			}
			h.sys.close()
			for id, n := range sent {
				var want received
				if err := json.Unmarshal(n.AppendJSON(nil), &want); err != nil {
					t.Fatal(err)
				}
				if g := got[id]; g.MessageID != want.MessageID || g.Type != want.Type || g.Priority != want.Priority || g.Timestamp != want.Timestamp || !bytes.Equal(g.Payload, want.Payload) {
					t.Fatalf("got  %+v\nwant %+v", g, want)
				}
			}
		})
	}
}

// received is the document, or centrifuge's push around it.
type received struct {
	MessageID string          `json:"message_id"`
	Type      string          `json:"message_type"`
	UserID    string          `json:"user_id"`
	Priority  int             `json:"priority"`
	Timestamp int64           `json:"timestamp"`
	Source    string          `json:"source"`
	Payload   json.RawMessage `json:"payload"`
}

func parse(data []byte) (r received, err error) {
	var push struct {
		Pub *struct {
			Data received `json:"data"`
		} `json:"pub"`
	}
	if err = json.Unmarshal(data, &push); err == nil && push.Pub != nil {
		return push.Pub.Data, nil
	}
	return r, json.Unmarshal(data, &r)
}

// The document is the library's, byte by byte, whoever makes it.
func TestAllEncodersMakeTheLibrarysDocument(t *testing.T) {
	h := &harness{users: userNames(3)}
	for i := range 60 {
		n := h.mixed(i, h.pick(i))
		for _, e := range []marshaler{ownEncoder, standardEncoder, bufferEncoder} {
			if want, got := n.AppendJSON(nil), e.encode(n); !bytes.Equal(want, got) {
				t.Fatalf("AppendJSON %s\n%s %s", want, e.name, got)
			}
		}
	}
}

// As both encoders make the same bytes, a row that encodes with the other one
// would go unnoticed. They differ in a NaN: this library's writes null, and
// encoding/json refuses it.
func TestEachSystemEncodesWithWhatItsNameSays(t *testing.T) {
	const messages = 100
	odd := func(user string) *notification.Notification {
		n := trade(user)
		p := n.Payload.(notification.TradeExecuted)
		p.Price = math.NaN()
		n.Payload = p
		return n
	}
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			standard := strings.HasSuffix(c.name, withStandard)
			func() {
				defer func() {
					if refused := recover() != nil; refused != standard {
						t.Errorf("its encoder refuses a NaN: %v", refused)
					}
				}()
				c.encoder.encode(odd("user-0"))
			}()

			var calls, nulls atomic.Int64
			encode := c.encoder.encode
			c.encoder.encode = func(n *notification.Notification) []byte {
				calls.Add(1)
				return encode(n)
			}
			message := odd
			if standard {
				message = trade
			}
			h := newHarnessOf(c, job{Users: 10})
			err := h.sys.start(h.users, func(user int, data []byte) {
				if bytes.Contains(data, []byte(`"price":null`)) {
					nulls.Add(1)
				}
				h.receive(user, data)
			})
			if err != nil {
				t.Fatal(err)
			}
			for i := range messages {
				h.enter()
				h.publish(message(h.users[h.pick(i)]))
			}
			if missing := h.drain(); missing != 0 {
				t.Errorf("%d messages are missing", missing)
			}
			h.sys.close()
			wantCalls, wantNulls := int64(messages), int64(messages)
			if c.name == libraryName {
				wantCalls = 0 // Message.JSON
			}
			if standard {
				wantNulls = 0
			}
			if calls.Load() != wantCalls || nulls.Load() != wantNulls {
				t.Errorf("%d calls of the encoder of its row and %d nulls for %d messages", calls.Load(), nulls.Load(), messages)
			}
		})
	}
}

func TestTheTablesBeginWithThoseThatHaveTheSameEncoder(t *testing.T) {
	first := slices.IndexFunc(contenders, func(c contender) bool { return c.encoder.name == standardEncoder.name })
	for i, c := range contenders {
		if (c.encoder.name == standardEncoder.name) != (i >= first) {
			t.Errorf("%s is row %d, the first with encoding/json is row %d", c.name, i, first)
		}
	}
}

func TestFlatTables(t *testing.T) {
	var results []outcome
	add := func(system string, publishers int, perSecond, cpu float64) {
		results = append(results, outcome{job: job{Section: "flat", System: system, Publishers: publishers},
			PerSecond: perSecond, CPU: cpu, Allocs: 3, AllocBytes: 600, PeakRSS: 40})
	}
	add(libraryName, 1, 3_000, 2.5)
	add(libraryName, 2, 2_000, 3)
	add(libraryName, 16, 1_500, 3)
	add("map+channel", 1, 2_000, 3)
	add("map+channel", 2, 4_000, 3.5)
	add("hub", 1, 1_000, 4)
	add("hub", 2, 1_000, 4)
	add(floorName, 1, 9_000, 1)
	add(floorName, 2, 9_000, 1)
	add("hub"+withStandard, 1, 500, 5)
	add("hub"+withStandard, 2, 800, 5)
	add(floorName+withStandard, 1, 5_000, 2)
	add(floorName+withStandard, 2, 5_000, 2)
	for _, o := range results {
		if slices.Contains(buffered, o.System) && slices.Contains(flatPublishers, o.Publishers) {
			o.Section, o.Buffers, o.PerSecond, o.AllocBytes = "buffer", true, 2*o.PerSecond, 200
			results = append(results, o)
		}
	}
	for _, want := range []struct {
		name string
		make func([]outcome) (table, bool)
		rows []string
	}{
		{"one and two publishers stand side by side, each beside the fastest peer with its encoder", flatTable, []string{
			"notification|3,000|2,000|1.50|0.50|6.00|2.50|0",
			"map+channel|2,000|4,000|1.00|1.00|4.00|5.00|0",
			"hub|1,000|1,000|0.50|0.25|2.00|1.25|0",
			"direct|9,000|9,000|4.50|2.25|18.00|11.25|0",
			"hub (encoding/json)|500|800|1.00|1.00|1.00|1.00|0",
			"direct (encoding/json)|5,000|5,000|10.00|6.25|10.00|6.25|0",
		}},
		{"CPU is told over the floor with the same encoder", flatCostTable, []string{
			"notification|2.50|3.00|1.50|2.00|3.0|600|40",
			"map+channel|3.00|3.50|2.00|2.50|3.0|600|40",
			"hub|4.00|4.00|3.00|3.00|3.0|600|40",
			"direct|1.00|1.00|–|–|3.0|600|40",
			"hub (encoding/json)|5.00|5.00|3.00|3.00|3.0|600|40",
			"direct (encoding/json)|2.00|2.00|–|–|3.0|600|40",
		}},
		{"what is encoded into a buffer has a table of its own", bufferTable, []string{
			"notification|6,000|4,000|1.50|0.50|2.50|3.00|200",
			"map+channel|4,000|8,000|1.00|1.00|3.00|3.50|200",
			"hub|2,000|2,000|0.50|0.25|4.00|4.00|200",
			"direct|18,000|18,000|4.50|2.25|1.00|1.00|200",
		}},
		{"throughput with many publishers is told over that with one", manyTable, []string{
			"notification, msg/s|3,000|2,000|1,500", "notification, × 1|1.00|0.67|0.50", "notification, CPU µs/msg|2.50|3.00|3.00",
			"map+channel, msg/s|2,000|4,000|–", "map+channel, × 1|1.00|2.00|–", "map+channel, CPU µs/msg|3.00|3.50|–",
			"direct, msg/s|9,000|9,000|–", "direct, × 1|1.00|1.00|–", "direct, CPU µs/msg|1.00|1.00|–",
		}},
	} {
		t.Run(want.name, func(t *testing.T) {
			table, ok := want.make(results)
			if !ok {
				t.Fatal("there is no table")
			}
			for i, row := range table.rows {
				if len(row) != len(table.head) {
					t.Errorf("%d cells under %d heads: %q", len(row), len(table.head), row)
				}
				if got := strings.Join(row, "|"); i >= len(want.rows) || got != want.rows[i] {
					t.Errorf("row %d is %s", i, got)
				}
			}
			if len(table.rows) != len(want.rows) {
				t.Errorf("%d rows of %d", len(table.rows), len(want.rows))
			}
		})
	}
}

func TestSectionFlatHasManyPublishersForThoseThatScale(t *testing.T) {
	i := slices.IndexFunc(sections, func(s section) bool { return s.name == "flat" })
	got := make(map[string][]int)
	for _, group := range sections[i].groups(0, []string{libraryName, "map+channel", "hub", floorName, "hub" + withStandard}) {
		for _, j := range group {
			got[j.System] = append(got[j.System], j.Publishers)
		}
	}
	few, many := []int{1, 2}, []int{1, 2, 4, 8, 16}
	want := map[string][]int{libraryName: many, "map+channel": many, "hub": few, floorName: many, "hub" + withStandard: few}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("publishers: %v", got)
	}
}

func TestEverySectionMeasuresEverySystem(t *testing.T) {
	for _, c := range contenders {
		for _, j := range []job{
			{Section: "flat", Publishers: 2, Seconds: 0.02},
			{Section: "buffer", Publishers: 2, Seconds: 0.02, Buffers: true},
			{Section: "paced", Rate: 2_000, Seconds: 0.05},
			{Section: "flood", Rate: 500, Seconds: 0.05},
			{Section: "memory"},
		} {
			if j.Buffers && !slices.Contains(buffered, c.name) {
				continue
			}
			j.System, j.Users, j.Window = c.name, 100, 2_000
			t.Run(c.name+"/"+j.Section, func(t *testing.T) {
				o, err := measure(j)
				if err != nil {
					t.Fatal(err)
				}
				if o.Lost != 0 || o.Refused != 0 || o.Sent != o.Delivered {
					t.Errorf("%+v", o)
				}
				if j.Section != "memory" && o.PerSecond == 0 {
					t.Errorf("nothing was measured: %+v", o)
				}
				if j.Section == "paced" && (o.FromDue[0].Count == 0 || o.FromDue[0].P99 < o.FromCall[0].P50) {
					t.Errorf("latencies: %+v", o)
				}
			})
		}
	}
}

func TestReport(t *testing.T) {
	var results []outcome
	for round := range 3 {
		for _, c := range contenders {
			o := outcome{job: job{Section: "flat", System: c.name, Round: round, Publishers: 1, Users: 10}, PerSecond: float64(100 * (round + 1)), CPU: 1}
			results = append(results, o)
			o.Section, o.Rate = "paced", 1_000
			o.FromDue[0] = latency{10, 1, 2, 3, 4, 5}
			results = append(results, o)
		}
	}
	var b bytes.Buffer
	report(&b, results, textTables)
	if !bytes.Contains(b.Bytes(), []byte("200")) {
		t.Errorf("the median of 100, 200 and 300 is not in\n%s", &b)
	}
	dir := t.TempDir()
	if err := plots(dir, results); err != nil {
		t.Fatal(err)
	}
}

// The benchmarks are the flat-out section for those who have tools for go test;
// the program measures more, and each system in a process of its own.
func BenchmarkDeliver(b *testing.B) {
	for _, c := range contenders {
		b.Run(c.name, func(b *testing.B) {
			h, err := newHarness(job{System: c.name, Users: 10_000, Window: 10_000})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			before, start := cpuTime(), time.Now()
			i := 0
			for b.Loop() {
				h.enter()
				h.publish(trade(h.users[h.pick(i)]))
				i++
			}
			if missing := h.drain(); missing != 0 {
				b.Fatalf("%d messages are missing", missing)
			}
			b.ReportMetric(float64(i)/time.Since(start).Seconds(), "msg/s")
			b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/1e3/float64(i), "cpu-µs/msg")
			h.sys.close()
		})
	}
}
