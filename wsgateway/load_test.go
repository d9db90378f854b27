package wsgateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// The load test has its clients in a process of their own, this test binary
// again: so each process needs a descriptor per connection and no more, and what
// is measured here is the server.

// clientsEnv holds the order for the process of clients.
const clientsEnv = "WSGATEWAY_TEST_CLIENTS"

type order struct {
	Addr    string
	Clients int
	Bursts  int // as paced and burst publish them, each of burstSize
	Notices int // to AllUsers
	Batches bool
}

type report struct {
	Frames, Notifications                  int
	Missing, Repeated, Foreign, Disordered int
	P0                                     []time.Duration // p50, p99, max, of the paced part
	Error                                  string
}

// An order's life as its user sees it: what a burst is.
func burst(user string, n int) []*notification.Notification {
	payloads := []notification.Payload{
		notification.OrderAccepted{OrderID: "o-1", ExchangeOrderID: "x-1", InstrumentID: "cu2512", Direction: "BUY", Offset: "OPEN", Price: 75_000, Volume: 3},
		notification.TradeExecuted{TradeID: "t-1", OrderID: "o-1", ExchangeOrderID: "x-1", InstrumentID: "cu2512", Direction: "BUY", Price: 75_000, Volume: 3},
		notification.OrderFilled{OrderID: "o-1", ExchangeOrderID: "x-1", InstrumentID: "cu2512", FilledVolume: 3, AveragePrice: 75_000},
		notification.AccountUpdate{UserID: user, Balance: 1_000_000, Available: 800_000, RiskRatio: 0.2},
		notification.PositionUpdate{UserID: user, InstrumentID: "cu2512", VolumeLong: 3, CostLong: 225_000},
		notification.OrderExpired{OrderID: "o-0", InstrumentID: "cu2512"},
		notification.RiskAlert{UserID: user, AlertType: "margin", Severity: "warning", RiskRatio: 0.8},
	}
	all := make([]*notification.Notification, len(payloads))
	for i, p := range payloads {
		all[i] = notification.New(user, p, "test")
		all[i].ID = fmt.Sprintf("%s-%d", user, n*burstSize+i)
	}
	return all
}

const burstSize = 7

func TestTenThousandConnections(t *testing.T) {
	n := 10_000
	switch {
	case testing.Short():
		t.Skip("skipped because of -short")
	case underRace:
		n = 1000
		t.Log("1,000 connections in place of 10,000: the race detector is on")
	}
	raiseDescriptors(t, n+500)
	for _, batches := range []bool{true, false} {
		name := "one notification per frame"
		if batches {
			name = "batches"
		}
		t.Run(fmt.Sprintf("%d real connections lose nothing, with %s", n, name), func(t *testing.T) { load(t, n, batches) })
	}
}

func load(t *testing.T, n int, batches bool) {
	// Clients that wait for the others to connect do not answer pings meanwhile.
	s := serve(t, notification.GatewayConfig{}, Config{PongTimeout: 4 * patience})
	o := order{Addr: s.addr, Clients: n, Bursts: 3, Notices: 3, Batches: batches}
	before := memory()
	text, err := json.Marshal(o)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clientsEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // closing it tells the clients to give up
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { _ = stdin.Close(); _ = cmd.Wait() }()
	giveUp := time.AfterFunc(4*patience, func() { _ = stdin.Close() })
	defer giveUp.Stop()
	lines := bufio.NewScanner(stdout)
	require.True(t, lines.Scan(), "the clients do not come")
	require.Equal(t, "connected", lines.Text())
	require.Equal(t, n, s.gateway.Stats().Sessions)
	idle := memory()
	t.Logf("%d idle connections: heap and stacks %d bytes each, resident memory %d, %d goroutines",
		n, (idle.inUse-before.inUse)/n, (idle.resident-before.resident)/n, runtime.NumGoroutine())

	user := func(i int) string { return "user-" + strconv.Itoa(i) }
	published := 0
	publish := func(n *notification.Notification) {
		require.NoError(t, s.broker.PublishWait(context.Background(), n))
		published++
	}
	notice := func(k int) {
		n := notification.New(notification.AllUsers, notification.SystemNotice{Title: "notice"}, "test")
		n.ID = fmt.Sprintf("all-%d", k)
		publish(n)
	}
	// Paced: bursts that come along at about 700 a second, which is 5,000
	// notifications, for one user in five. What the other four miss of it comes
	// after it, so that all have the same in the end.
	const perTick = 7
	next := 0
	start := time.Now()
	for range time.Tick(10 * time.Millisecond) {
		for range perTick {
			if next < n/5 {
				for _, m := range burst(user(next*5), 0) {
					publish(m)
				}
				next++
			}
		}
		if next == n/5 {
			break
		}
	}
	t.Logf("paced: %.0f notifications per second", float64(published)/time.Since(start).Seconds())

	// Flat out: as fast as the Broker takes them.
	written := s.gateway.Stats().Batches
	start = time.Now()
	total := 0
	for i := range n {
		if i%5 != 0 {
			for _, m := range burst(user(i), 0) {
				publish(m)
			}
			total += burstSize
		}
	}
	notice(0)
	for b := 1; b < o.Bursts; b++ {
		for i := range n {
			for _, m := range burst(user(i), b) {
				publish(m)
			}
			total += burstSize
		}
		notice(b)
	}
	total += o.Notices * n
	eventually(t, "everything is written", func() bool {
		taken := uint64(0)
		for _, l := range s.gateway.Stats().Lanes {
			taken += l.Taken
		}
		return taken == uint64(n/5*burstSize+total) || s.gateway.Stats().Sessions < n
	})
	took := time.Since(start).Seconds()
	written = s.gateway.Stats().Batches - written
	t.Logf("flat out: %.0f notifications per second in %.0f writes, of %.1f each", float64(total)/took, float64(written)/took, float64(total)/float64(written))

	var r report
	require.True(t, lines.Scan(), "the clients do not report")
	require.NoError(t, json.Unmarshal(lines.Bytes(), &r))
	require.Empty(t, r.Error)
	want := n * (o.Bursts*burstSize + o.Notices)
	t.Logf("clients: %d notifications in %d frames, %.1f in each; P0 at the client, paced: p50 %s, p99 %s, max %s",
		r.Notifications, r.Frames, float64(r.Notifications)/float64(r.Frames), r.P0[0], r.P0[1], r.P0[2])
	require.Equal(t, want, r.Notifications)
	require.Zero(t, r.Missing)
	require.Zero(t, r.Repeated)
	require.Zero(t, r.Foreign)
	require.Zero(t, r.Disordered)

	_ = stdin.Close()
	require.NoError(t, cmd.Wait())
	s.noSessions()
	eventually(t, "every connection gone", func() bool { return taken(s) == 0 })
}

type usage struct{ inUse, resident int }

func memory() (u usage) {
	runtime.GC()         // so that the next one finds the pools' leavings
	debug.FreeOSMemory() // so that resident memory is comparable
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.inUse = int(m.HeapAlloc + m.StackInuse)
	status, _ := os.ReadFile("/proc/self/status")
	if _, rest, ok := strings.Cut(string(status), "VmRSS:"); ok {
		kb, _ := strconv.Atoi(strings.Fields(rest)[0])
		u.resident = kb << 10
	}
	return u
}

// raiseDescriptors makes room for want descriptors, or skips.
func raiseDescriptors(t *testing.T, want int) {
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if limit.Cur >= uint64(want) {
		return
	}
	before := limit
	limit.Cur = uint64(want)
	limit.Max = max(limit.Max, limit.Cur)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skipf("skipped: %d descriptors are needed, %d allowed, and raising that failed: %v", want, before.Cur, err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) })
}

// clients is the main function of the process of clients.
func clients() int {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(clientsEnv)), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	all := make([]*loadClient, o.Clients)
	connected := make(chan struct{})
	var connecting, reading sync.WaitGroup
	var failed atomic.Pointer[error]
	turns := make(chan struct{}, 32) // as many handshakes at once
	for i := range all {
		c := &loadClient{prefix: "user-" + strconv.Itoa(i) + "-", paced: i%5 == 0, o: &o}
		all[i] = c
		connecting.Add(1)
		reading.Go(func() {
			turns <- struct{}{}
			err := c.connect("user-" + strconv.Itoa(i))
			<-turns
			connecting.Done()
			if err == nil {
				<-connected
				err = c.receive()
			}
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	connecting.Wait()
	if err := failed.Load(); err != nil {
		fmt.Println((*err).Error())
		return 1
	}
	close(connected)
	fmt.Println("connected")
	done := make(chan struct{})
	go func() { reading.Wait(); close(done) }()
	over := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(over) }()
	select {
	case <-done:
	case <-over:
		for _, c := range all {
			_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		}
		<-done
	}
	r := report{P0: make([]time.Duration, 3)}
	if err := failed.Load(); err != nil {
		r.Error = (*err).Error()
	}
	var p0 []time.Duration
	for _, c := range all {
		r.Frames += c.frames
		r.Notifications += c.got
		r.Missing += max(o.Bursts*burstSize+o.Notices-c.got, 0)
		r.Repeated += c.repeated
		r.Foreign += c.foreign
		r.Disordered += c.disordered
		p0 = append(p0, c.p0...)
	}
	if slices.Sort(p0); len(p0) > 0 {
		r.P0 = []time.Duration{p0[len(p0)/2], p0[len(p0)*99/100], p0[len(p0)-1]}
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	<-over
	return 0
}

// A loadClient reads notifications with little CPU, which the server needs.
type loadClient struct {
	o      *order
	prefix string // of the IDs that are its own
	paced  bool   // its first burst is
	nc     net.Conn
	r      *bufio.Reader

	seen, seenAll                              uint64 // bit n for the notification with this number
	last                                       [notification.NumPriorities]int
	frames, got, repeated, foreign, disordered int
	p0                                         []time.Duration
}

func (c *loadClient) connect(user string) (err error) {
	if c.nc, err = net.Dial("tcp", c.o.Addr); err != nil {
		return err
	}
	c.r = bufio.NewReader(c.nc)
	protocol := ""
	if c.o.Batches {
		protocol = batchProtocol
	}
	if err := handshake(c.nc, c.r, user, protocol); err != nil {
		return err
	}
	if c.o.Batches {
		for range 2 { // welcome, live
			_, _, err = readFrame(c.r, nil)
		}
		return err
	}
	// Otherwise an answer does.
	if _, err = c.nc.Write(masked(fin|opText, []byte(`{"action":"ping"}`))); err != nil {
		return err
	}
	_, _, err = readFrame(c.r, nil)
	return err
}

// receive reads until it has everything.
func (c *loadClient) receive() error {
	for p := range c.last {
		c.last[p] = -1
	}
	want := c.o.Bursts*burstSize + c.o.Notices
	var buf []byte
	for c.got < want {
		opcode, payload, err := readFrame(c.r, buf)
		if err != nil {
			return fmt.Errorf("%s has %d of %d: %w", c.prefix, c.got, want, err)
		}
		buf = payload[:0]
		switch opcode {
		case opText:
			now := time.Now().UnixNano()
			c.frames++
			if err := c.count(payload, now); err != nil {
				return err
			}
		case opPing:
			if _, err := c.nc.Write(masked(fin|opPong, nil)); err != nil {
				return err
			}
		case 8:
			return fmt.Errorf("%s closed with %d after %d of %d", c.prefix, binary.BigEndian.Uint16(payload), c.got, want)
		}
	}
	return nil
}

// count counts the notifications of a frame.
func (c *loadClient) count(frame []byte, now int64) error {
	field := func(name string, end byte) (value []byte) {
		if _, rest, ok := bytes.Cut(frame, []byte(name)); ok {
			value, frame, _ = bytes.Cut(rest, []byte{end})
		}
		return value
	}
	for {
		id := field(`{"message_id":"`, '"')
		if id == nil {
			return nil
		}
		priority, err1 := strconv.Atoi(string(field(`"priority":`, ',')))
		at, err2 := strconv.ParseInt(string(field(`"timestamp":`, ',')), 10, 64)
		bits := &c.seen
		number, own := bytes.CutPrefix(id, []byte(c.prefix))
		if !own {
			if number, own = bytes.CutPrefix(id, []byte("all-")); !own {
				c.foreign++
				continue
			}
			bits = &c.seenAll
		}
		n, err3 := strconv.Atoi(string(number))
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		c.got++
		if *bits&(1<<n) != 0 {
			c.repeated++
		}
		*bits |= 1 << n
		if bits == &c.seen {
			if n <= c.last[priority] {
				c.disordered++
			}
			c.last[priority] = n
			if priority == 0 && n < burstSize && c.paced {
				c.p0 = append(c.p0, time.Duration(now-at))
			}
		}
	}
}
