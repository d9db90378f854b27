package main

import (
	"bytes"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/qaexchange/notification"
)

// A comparison with a system that loses, mixes up or invents messages is none.
func TestEverySystemDeliversEachMessageToItsUserOnce(t *testing.T) {
	const users, messages = 50, 2_000
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			h := &harness{users: userNames(users), sys: c.make(options{gateways: 2}), stalled: -1, window: 1_000}
			h.room.L = &h.mu
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

// The peers' document is the library's, byte by byte.
func TestPeersSendTheLibrarysDocument(t *testing.T) {
	h := &harness{users: userNames(3)}
	for i := range 60 {
		n := h.mixed(i, h.pick(i))
		if want, got := n.AppendJSON(nil), encode(n); !bytes.Equal(want, got) {
			t.Fatalf("AppendJSON %s\nencode     %s", want, got)
		}
	}
}

func TestEverySectionMeasuresEverySystem(t *testing.T) {
	for _, c := range contenders {
		for _, j := range []job{
			{Section: "flat", Publishers: 2, Seconds: 0.02},
			{Section: "paced", Rate: 2_000, Seconds: 0.05},
			{Section: "flood", Rate: 500, Seconds: 0.05},
			{Section: "memory"},
		} {
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
