package main

import (
	"bytes"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
)

// A job is one measurement, made by a process of its own: so that no system
// inherits another one's heap, goroutines or resident memory.
type job struct {
	Section    string  `json:"section"`
	System     string  `json:"system"`
	Round      int     `json:"round"`
	Users      int     `json:"users"`
	Publishers int     `json:"publishers,omitempty"`
	Gateways   int     `json:"gateways,omitempty"`
	Procs      int     `json:"gomaxprocs,omitempty"` // 0: all cores
	Rate       int     `json:"rate,omitempty"`       // messages per second
	Seconds    float64 `json:"for_seconds,omitempty"`
	Window     int     `json:"window,omitempty"`
	Buffers    bool    `json:"buffers,omitempty"` // receivers encode into memory that is used again
}

// An outcome is what a job found. Which fields mean something depends on the
// section.
type outcome struct {
	job
	Sent      int64 `json:"sent,omitempty"`
	Delivered int64 `json:"delivered,omitempty"`
	Refused   int64 `json:"refused,omitempty"`
	// Lost is what was accepted and never arrived; in section stalled without
	// what was for the stalled user.
	Lost    int64   `json:"lost,omitempty"`
	Unsent  int64   `json:"unsent,omitempty"` // because publish did not come back
	Ended   string  `json:"ended,omitempty"`
	Elapsed float64 `json:"elapsed_seconds,omitempty"` // first call to last arrival

	PerSecond   float64 `json:"messages_per_second,omitempty"`
	CPU         float64 `json:"cpu_us_per_message,omitempty"` // user and system, all included
	Allocs      float64 `json:"allocs_per_message,omitempty"`
	AllocBytes  float64 `json:"alloc_bytes_per_message,omitempty"`
	PeakRSS     float64 `json:"peak_rss_mib,omitempty"`
	RSS         float64 `json:"rss_mib,omitempty"`
	HeapPerUser float64 `json:"bytes_per_user,omitempty"` // heap and stacks
	RSSPerUser  float64 `json:"rss_bytes_per_user,omitempty"`
	IdleCPU     float64 `json:"idle_cpu_percent,omitempty"` // of one core
	Grown       float64 `json:"grown_mib,omitempty"`        // heap and stacks, beside before the load

	FromDue  [notification.NumPriorities]latency `json:"from_due"`
	FromCall [notification.NumPriorities]latency `json:"from_call"`
	All      latency                             `json:"all"`

	// Section encodings.
	Ops      []operation `json:"ops,omitempty"`
	Findings []finding   `json:"findings,omitempty"` // of round 0
}

// A latency is in microseconds.
type latency struct {
	Count int     `json:"n"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

func latencyOf(nanos []int64) latency {
	if len(nanos) == 0 {
		return latency{}
	}
	slices.Sort(nanos)
	at := func(q float64) float64 {
		return float64(nanos[max(int(math.Ceil(q*float64(len(nanos))))-1, 0)]) / 1e3
	}
	return latency{len(nanos), at(.5), at(.9), at(.99), at(.999), at(1)}
}

// A harness runs one system.
type harness struct {
	users []string
	sys   system

	stalled int           // the user whose receiver blocks, -1: nobody
	release chan struct{} // closed: it blocks no longer

	// By sequence number, which a timed message carries as its timestamp. Each
	// element is written once: by the generator before publish, by the receiver
	// at the end.
	timed        []notification.Priority
	due, called  []int64
	done         []atomic.Int64
	timedUser    []int32
	window       int64
	sent         atomic.Int64 // accepted, or about to be
	delivered    atomic.Int64
	refused      atomic.Int64
	stop         atomic.Bool
	waiters      atomic.Int32
	mu           sync.Mutex
	room         sync.Cond
	publishError atomic.Pointer[error]
}

// wakeEvery is after how many arrivals a publisher that waits for the window is
// told: not for each, which would cost every system a lock per message.
const wakeEvery = 256

func newHarness(j job) (*harness, error) {
	c, err := contenderNamed(j.System)
	if err != nil {
		return nil, err
	}
	h := newHarnessOf(c, j)
	receive := h.receive
	if j.Buffers {
		receive = func(user int, data []byte) {
			h.receive(user, data)
			releaseBuffer(data)
		}
	}
	return h, h.sys.start(h.users, receive)
}

// newHarnessOf does not start the system yet.
func newHarnessOf(c contender, j job) *harness {
	opt := options{gateways: max(j.Gateways, 1), encode: c.encoder.encode, text: (*notification.Message).JSON}
	if j.Buffers {
		// Which is what Message.AppendJSON does, and older revisions do not have.
		opt.encode = bufferEncoder.encode
		opt.text = func(m *notification.Message) []byte { return bufferEncoder.encode(m.Notification()) }
	}
	h := &harness{
		users: userNames(j.Users), sys: c.make(opt),
		stalled: -1, release: make(chan struct{}), window: int64(max(j.Window, 4*wakeEvery)),
	}
	h.room.L = &h.mu
	return h
}

// receive is every system's receiver.
func (h *harness) receive(user int, data []byte) {
	if user == h.stalled {
		<-h.release
	}
	if len(h.done) > 0 {
		if seq, ok := sequence(data); ok && seq < len(h.done) {
			h.done[seq].Store(now())
		}
	}
	if n := h.delivered.Add(1); n%wakeEvery == 0 && h.waiters.Load() > 0 {
		h.mu.Lock()
		h.room.Broadcast()
		h.mu.Unlock()
	}
}

var timestampKey = []byte(`"timestamp":`)

// sequence reads the document's timestamp, which a timed message carries its
// number in: the first of that name, as the payload's comes later. Others carry
// the time, which is larger than any number.
func sequence(data []byte) (int, bool) {
	i := bytes.Index(data, timestampKey)
	if i < 0 {
		return 0, false
	}
	seq := 0
	for _, c := range data[i+len(timestampKey):] {
		if c < '0' || c > '9' {
			return seq, true
		}
		seq = seq*10 + int(c-'0')
	}
	return 0, false
}

var epoch = time.Now()

func now() int64 { return int64(time.Since(epoch)) }

// publish counts what the system says.
func (h *harness) publish(n *notification.Notification) {
	if err := h.sys.publish(n); err != nil {
		h.sent.Add(-1)
		h.refused.Add(1)
		if err != errFull {
			failed := err // apart, so that err need not be on the heap each time
			h.publishError.CompareAndSwap(nil, &failed)
		}
	}
}

// enter waits while the window is full. Flat out every system gets the same
// window of messages under way, because some would otherwise queue until the
// memory ends and others stop their publisher much earlier: what is compared is
// how fast they deliver, not how much they pile up.
func (h *harness) enter() {
	if h.sent.Add(1)-h.delivered.Load() <= h.window {
		return
	}
	h.waiters.Add(1)
	h.mu.Lock()
	for h.sent.Load()-h.delivered.Load() > h.window/2 && !h.stop.Load() {
		h.room.Wait()
	}
	h.mu.Unlock()
	h.waiters.Add(-1)
}

// halt ends flatOut.
func (h *harness) halt() {
	h.stop.Store(true)
	h.mu.Lock()
	h.room.Broadcast()
	h.mu.Unlock()
}

// pick scatters the messages over the users, so that neighbours in time are not
// neighbours in memory.
func (h *harness) pick(i int) int { return int(uint64(i) * 7919 % uint64(len(h.users))) }

// flatOut publishes trades for a while from some goroutines and returns when
// the last has been delivered.
func (h *harness) flatOut(publishers int, d time.Duration) {
	h.stop.Store(false)
	timer := time.AfterFunc(d, h.halt)
	defer timer.Stop()
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() { // ends with halt
			for i := p * len(h.users) / publishers; !h.stop.Load(); i++ {
				h.enter()
				h.publish(trade(h.users[h.pick(i)]))
			}
		})
	}
	wg.Wait()
	h.drain()
}

// warm lets every user get something, so that stacks, buffers and maps have
// their size.
func (h *harness) warm() {
	for i := range max(len(h.users), 5_000) {
		h.enter()
		h.publish(trade(h.users[h.pick(i)]))
	}
	h.drain()
}

const (
	// lostAfter is how long nothing may arrive before the rest counts as lost: a busy
	// machine may well do something else for seconds.
	lostAfter = 30 * time.Second
	// patience is how much longer than its load a publisher may take that does not hang.
	patience = 3 * time.Second
)

// drain returns when all has arrived that was sent, or nothing has for long,
// and tells how many are missing.
func (h *harness) drain() (missing int64) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for last, at := h.delivered.Load(), time.Now(); ; <-tick.C {
		delivered := h.delivered.Load()
		if missing = h.sent.Load() - delivered; missing <= 0 {
			return 0
		}
		if delivered != last {
			last, at = delivered, time.Now()
		} else if time.Since(at) > lostAfter {
			return missing
		}
	}
}

// time makes room for so many timed messages.
func (h *harness) time(n int) {
	h.timed = make([]notification.Priority, n)
	h.timedUser = make([]int32, n)
	h.due, h.called, h.done = make([]int64, n), make([]int64, n), make([]atomic.Int64, n)
}

// openLoop publishes one message after the other when it is due, whatever
// becomes of those before: it never waits for an answer, and one that it is late
// with keeps its due time. Latency from there therefore holds what a generator
// that waits would leave out (coordinated omission).
func (h *harness) openLoop(rate int, make func(i, user int) *notification.Notification) {
	sleep, done := newSleeper()
	defer done()
	interval := int64(time.Second) / int64(rate)
	start := now()
	for i := range h.timed {
		due := start + int64(i)*interval
		for wait := due - now(); wait > 0; wait = due - now() {
			sleep(time.Duration(wait))
		}
		if h.stop.Load() {
			return
		}
		user := h.pick(i)
		n := make(i, user)
		n.Timestamp = int64(i)
		h.timed[i], h.timedUser[i], h.due[i] = n.Priority, int32(user), due
		h.called[i] = now()
		h.sent.Add(1)
		h.publish(n)
	}
}

// latencies fills in what the timed messages found; count says whose.
func (h *harness) latencies(o *outcome, count func(seq int) bool) {
	var fromDue, fromCall [notification.NumPriorities][]int64
	var all []int64
	for seq := range h.done {
		done := h.done[seq].Load()
		if done == 0 || !count(seq) {
			continue
		}
		p := h.timed[seq]
		fromDue[p] = append(fromDue[p], done-h.due[seq])
		fromCall[p] = append(fromCall[p], done-h.called[seq])
		all = append(all, done-h.due[seq])
	}
	for p := range fromDue {
		o.FromDue[p], o.FromCall[p] = latencyOf(fromDue[p]), latencyOf(fromCall[p])
	}
	o.All = latencyOf(all)
}

// trade is the message of the flat-out loads: a fresh ID each, made inside the
// loop for every system alike.
func trade(user string) *notification.Notification {
	return notification.New(user, notification.TradeExecuted{
		TradeID: "trade-000001", OrderID: "order-000001", ExchangeOrderID: "ex-000001", InstrumentID: "SHFE.cu2501",
		Direction: "BUY", Offset: "OPEN", Price: 50123.5, Volume: 3, Commission: 12.75, FillType: "FULL", Timestamp: 1_760_000_000_000_000_000,
	}, "MatchingEngine")
}

// alert is a P0.
func alert(user string) *notification.Notification {
	return notification.New(user, notification.RiskAlert{UserID: user, AlertType: "MARGIN", Severity: "HIGH",
		Message: "margin is low", RiskRatio: 0.93, Suggestion: "deposit", Timestamp: 1_760_000_000_000_000_000}, "RiskControl")
}

// mixed is the i-th message of a load of 5 % P0, 60 % P1, 30 % P2 and 5 % P3.
// The pattern shifts from one tour of the users to the next, so that each user
// gets all four.
func (h *harness) mixed(i, user int) *notification.Notification {
	name := h.users[user]
	switch k := (i + i/len(h.users)) % 20; {
	case k == 0:
		return alert(name)
	case k == 10:
		return notification.New(name, notification.OrderExpired{OrderID: "order-000001", ExchangeOrderID: "ex-000001",
			InstrumentID: "SHFE.cu2501", Reason: "end of day", Timestamp: 1_760_000_000_000_000_000}, "MatchingEngine")
	case k%10 >= 7:
		return notification.New(name, notification.AccountUpdate{UserID: name, Balance: 1e6, Available: 912_345.67, Frozen: 1e5,
			Margin: 5e4, PositionProfit: -1234.5, RiskRatio: 0.0877, Timestamp: 1_760_000_000_000_000_000}, "AccountSystem")
	default:
		return trade(name)
	}
}

// memory is the heap in use and the stacks after a collection.
func memory() float64 {
	runtime.GC()
	runtime.GC() // a sync.Pool keeps for one collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}
