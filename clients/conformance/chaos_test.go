package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

var (
	chaosFlag = flag.Duration("chaos", 10*time.Second, "how long the chaos lasts")
	usersFlag = flag.Int("users", 10, "how many users of each client")
)

// naiveUsers is enough for the naive client to go wrong.
const naiveUsers = 3

const perSecond = 1000 // notifications that are published

// A chaos is the real server with real clients, through bad weather: connections
// are cut in the middle of frames, stand still, are slow; the server is killed and
// started again, without anything that it knew; it stops for longer than a client
// waits; it tells of gaps; and credentials expire every few seconds. In the end each
// client's list, which is its snapshot and what came after that, must be the
// publishers' ledger: nothing lost, nothing twice, each lane in its order.
type chaos struct {
	t       *testing.T
	ledger  *ledger
	weather *weather
	rnd     *rand.Rand // of the events
	users   []chaosUser

	mu       sync.Mutex
	exchange *exchangeProcess // guarded by mu
}

type chaosUser struct {
	client   *readyClient
	name     string
	driver   driver
	observer *observer
}

func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("it lasts for a while")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NOTIFICATION_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("NOTIFICATION_SEED=%d: the same weather, at other moments", seed)
	w, err := newWeather(seed)
	require.NoError(t, err)
	t.Cleanup(w.close)
	c := &chaos{t: t, ledger: &ledger{streams: map[string]int{}}, weather: w, rnd: rand.New(rand.NewPCG(seed, 2))}
	c.restart()
	t.Cleanup(func() { c.exchange.kill() })
	snapshots := serveLedger(t, c.ledger)
	for _, r := range prepared(t) {
		if r.name != "typescript (undici)" { // there are enough of these
			c.begin(r, "http://"+snapshots)
		}
	}
	if len(c.users) == 0 {
		t.Skip("no client is here")
	}
	c.await("everybody is there", func(u chaosUser) bool { return u.observer.begun() })

	ctx, cancel := context.WithTimeout(context.Background(), *chaosFlag)
	defer cancel()
	var publishing sync.WaitGroup
	publishing.Go(func() { c.publish(ctx, rand.New(rand.NewPCG(seed, 3))) })
	c.happen(ctx)
	publishing.Wait()
	w.calm()
	c.await("everybody has everything", func(u chaosUser) bool { return len(u.observer.missing(c.ledger)) == 0 })
	c.stop()
	c.judge()
}

// serveLedger serves snapshots until the end of the test.
func serveLedger(t *testing.T, l *ledger) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: l, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return ln.Addr().String()
}

// begin starts the drivers of a client.
func (c *chaos) begin(r *readyClient, ledger string) {
	n := *usersFlag
	if r.fails {
		n = naiveUsers
	}
	for i := range n {
		user := fmt.Sprintf("%s%d", strings.Map(func(r rune) rune {
			if r < 'a' || r > 'z' {
				return -1
			}
			return r
		}, r.name), i)
		// Every other one may renew its credentials where it is, if it is a program:
		// what a page has for its next connect is a ticket.
		path, credentials := "plain", map[string]any{"ticket": user}
		if i%2 == 1 {
			path = "renewed"
			if r.lacks["headers"] == "" {
				credentials = map[string]any{"token": user}
			}
		}
		o := newObserver(user)
		d, err := r.start(func(line []byte) error { return o.hear(line, c.ledger) })
		require.NoError(c.t, err, r.name)
		c.t.Cleanup(d.kill)
		require.NoError(c.t, d.say(map[string]any{
			"url": "ws://" + c.weather.ln.Addr().String() + "/" + path + "?user=" + user, "credentials": []any{credentials},
			"channels": nil, "cursor": "", "snapshot_ms": 30 * (i % 3), "snapshot_url": ledger + "/?user=" + user,
			"handler_ms": i % 2, "handler_throws_at": 0, "backoff_base_ms": 20, "backoff_max_ms": 500,
			"watchdog_factor": 2.5, "stable_ms": 60000,
		}))
		c.users = append(c.users, chaosUser{r, user, d, o})
	}
}

// restart kills the exchange, if there is one, and starts another.
func (c *chaos) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exchange != nil {
		c.exchange.kill()
	}
	x, err := startExchange()
	require.NoError(c.t, err)
	c.exchange = x
	c.weather.target.Store(x.addr)
}

func (c *chaos) current() *exchangeProcess {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchange
}

// publish publishes until ctx ends. What is in the ledger is repeated until an
// exchange has taken it.
func (c *chaos) publish(ctx context.Context, rnd *rand.Rand) {
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	begun := time.Now()
	for ctx.Err() == nil {
		var postings []posting
		owed := perSecond*int(time.Since(begun)/time.Millisecond)/1000 - c.ledger.total()
		for range min(owed, 500) { // and the rest later
			p := posting{User: c.users[rnd.IntN(len(c.users))].name, Lane: notification.Priority(rnd.IntN(int(notification.NumPriorities)))}
			if rnd.IntN(100) == 0 {
				p.User, p.Lane = everybody, notification.P3
			}
			postings = append(postings, c.ledger.write(p))
		}
		for err := errors.New("not yet"); err != nil; {
			if err = c.current().publish(context.Background(), postings); err != nil {
				<-ticks.C // it is being started again
			}
		}
		<-ticks.C
	}
}

// happen makes things happen to the exchange until ctx ends.
func (c *chaos) happen(ctx context.Context) {
	events := []string{"kill", "gap", "stop"}
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2*time.Second + time.Duration(c.rnd.Int64N(int64(2*time.Second)))):
		}
		event := events[c.rnd.IntN(len(events))]
		if i < len(events) {
			event = events[i] // each at least once, if there is time
		}
		c.t.Logf("%s, with %d in the ledger", event, c.ledger.total())
		switch event {
		case "kill":
			c.restart()
		case "gap":
			if err := c.current().post(ctx, "/gap", nil); err != nil {
				c.t.Log(err)
			}
		case "stop": // for longer than a client waits
			p := c.current().cmd.Process
			_ = p.Signal(syscall.SIGSTOP)
			<-time.After(2 * time.Second)
			_ = p.Signal(syscall.SIGCONT)
		}
	}
}

// await waits until it holds of everybody but naive clients. What does not come is
// left to the judge.
func (c *chaos) await(what string, holds func(u chaosUser) bool) {
	for give := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
		i := slices.IndexFunc(c.users, func(u chaosUser) bool { return !u.client.fails && !holds(u) })
		if i < 0 {
			return
		}
		if time.Now().After(give) {
			c.t.Errorf("waited in vain: %s, but %s", what, c.users[i].name)
			return
		}
	}
}

func (c *chaos) stop() {
	for _, u := range c.users {
		if err := u.driver.say(map[string]any{"do": "stop"}); err != nil && !u.client.fails {
			c.t.Errorf("%s cannot be told to stop: %v", u.name, err)
		}
	}
	for _, u := range c.users {
		kill := time.AfterFunc(patience, u.driver.kill)
		if err := u.driver.wait(); err != nil && !u.client.fails {
			c.t.Errorf("%s ends badly: %v", u.name, err)
		}
		kill.Stop()
	}
}

// judge holds each list against the ledger, and tells what it all was.
func (c *chaos) judge() {
	total := c.ledger.total()
	c.t.Logf("%d notifications; %d connections, of which %d were cut, %d stood still, %d were slow",
		total, c.weather.accepted.Load(), c.weather.cut.Load(), c.weather.stood.Load(), c.weather.slow.Load())
	type sum struct {
		users, taken, resumed, complaints int
		snapshots, losses                 map[string]int
	}
	sums := map[string]*sum{}
	for _, u := range c.users {
		o := u.observer
		s := sums[u.client.name]
		if s == nil {
			s = &sum{snapshots: map[string]int{}, losses: map[string]int{}}
			sums[u.client.name] = s
		}
		missing := o.missing(c.ledger)
		s.users++
		s.taken += o.taken
		s.resumed += o.resumed
		s.complaints += len(o.wrong) + len(missing)
		for reason, n := range o.snapshots {
			s.snapshots[reason] += n
		}
		for reason, n := range o.losses {
			s.losses[reason] += n
		}
		if u.client.fails {
			continue
		}
		for _, what := range o.wrong[:min(3, len(o.wrong))] {
			c.t.Errorf("%s: %s", u.name, what)
		}
		if len(missing) > 0 {
			c.t.Errorf("%s lacks what the ledger has: %s\n%s", u.name, strings.Join(missing, ", "), strings.Join(o.last, "\n"))
		}
		if o.end != "closed" {
			c.t.Errorf("%s has stopped by itself: %s\n%s", u.name, o.end, strings.Join(o.last, "\n"))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		s := sums[name]
		c.t.Logf("%s: %d users took %d, resumed %d times, loaded snapshots %v, lost connections %v; %d complaints", name, s.users, s.taken, s.resumed, s.snapshots, s.losses, s.complaints)
	}
	// In a few seconds it may be lucky; that its list is looked at as well as the others'
	// is what TestObserver shows.
	if s := sums["naive"]; s != nil && s.complaints == 0 && *chaosFlag >= time.Minute {
		c.t.Error("the naive client comes through all of it, so that this test finds nothing")
	}
}
