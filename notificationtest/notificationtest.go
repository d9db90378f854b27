// Package notificationtest helps to test services that publish notifications.
//
// A service under test takes three lines: a running pipeline, the service, and
// what it must have published.
//
//	p := notificationtest.NewPipeline(t, notificationtest.Config{})
//	NewRiskControl(p.Broker).Check("alice")
//	notificationtest.Require(t, p.Published, "alice", func(c notification.MarginCall) bool { return c.RequiredMargin == 1e6 })
//
// A Pipeline is a Broker and a Gateway in memory. Both are shut down at the end
// of the test, the Broker first, and the test fails if something was lost on the
// way or if the counters of their Stats do not add up. Start does the same for a
// Broker and Gateways that the test has made itself.
//
// A Recorder keeps what it gets. Pipeline.Published is one that gets all that the
// Broker accepts, for every user; Connect makes one that is the sink of a session,
// and so gets what this user's client would get: after the filter, in batches.
//
// # What has arrived, and what has not
//
// Require waits for a notification with this type of payload, for this user, of
// which a function says that it is the right one. It takes what it finds: the
// next Require wants another one. So a list of calls of Require and one of
// RequireNone after it say that exactly these arrived:
//
//	p.Shutdown(t)
//	notificationtest.RequireNone[notification.Payload](t, p.Published, "", nil) // no other type, no other user
//
// Absence can be seen only when no more can come. So RequireNone waits for the
// end of the recording; Pipeline.Shutdown, which delivers all that was accepted,
// brings it about. In a bubble of testing/synctest this is not necessary: there
// RequireNone waits until everything in the bubble is at rest. What only waits for
// time to pass, in a Delay say, has then not arrived.
//
// # Backpressure
//
// Recorder.Block, Delay and Fail make a sink that is stuck, slow or broken. With
// Published blocked and a small QueueCapacity, Publish soon returns ErrQueueFull;
// the example of Recorder.Block does that.
//
// # Time
//
// Everything here waits for events; nothing polls and nothing sleeps. What does
// not come within 30 seconds, or until shortly before the deadline of the test
// binary if that is sooner, fails the test. In a bubble the 30 seconds are the
// bubble's. A Pipeline or Recorder that is used in a bubble must be made in it,
// with the bubble's testing.T.
//
// # Concurrency
//
// Everything may be used from many goroutines at once. Functions that take a
// testing.TB call its FailNow, so they belong to the goroutine of the test, as
// FailNow does.
package notificationtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qaexchange/notification"
)

// Config configures a Pipeline. The zero value is the right one for most tests.
type Config struct {
	// Broker configures the Broker. A zero StallTimeout is an hour here, so that
	// neither a debugger nor a busy machine makes a receiver stuck.
	Broker notification.BrokerConfig
	// Gateway configures the Gateway. A zero in MaxDelay is no delay here, so
	// that everything arrives at once, and a zero SessionTimeout is for ever.
	Gateway notification.GatewayConfig
}

// A Pipeline is a running Broker with one running Gateway. The fields are
// read-only.
type Pipeline struct {
	Broker  *notification.Broker
	Gateway *notification.Gateway

	// Published gets each message that the Broker accepts, after the message was
	// handed to the Gateway. It is a global subscriber of the Broker with the
	// overflow Wait: while it is blocked, every lane of the Broker soon stands
	// still, and after StallTimeout it misses messages. It must not be made to
	// fail. Its recording ends when the Broker has stopped.
	Published *Recorder

	recorded <-chan struct{} // closed when Published has ended
}

// NewPipeline returns a Pipeline that runs until the end of the test. Then, or in
// Shutdown if that comes before, the test fails if one of the two lost something
// on the way down, or if RequireConserved would fail. A test that has failed
// already is ended at once, without these checks. It calls t.Fatal if cfg is
// invalid.
func NewPipeline(t testing.TB, cfg Config) *Pipeline {
	t.Helper()
	cfg.Broker.StallTimeout = cmp.Or(cfg.Broker.StallTimeout, time.Hour)
	cfg.Gateway.SessionTimeout = cmp.Or(cfg.Gateway.SessionTimeout, -1)
	for p, delay := range cfg.Gateway.MaxDelay {
		cfg.Gateway.MaxDelay[p] = cmp.Or(delay, -1)
	}
	b, err := notification.NewBroker(cfg.Broker)
	if err != nil {
		t.Fatalf("notificationtest: Config.Broker: %v", err)
	}
	g, err := notification.NewGateway("gateway", cfg.Gateway)
	if err != nil {
		t.Fatalf("notificationtest: Config.Gateway: %v", err)
	}
	published := make(chan *notification.Message, 64) // as few as possible that Block does not hold
	if err := errors.Join(b.RegisterGateway(g), b.SubscribeGlobal("notificationtest", published, notification.Wait)); err != nil {
		t.Fatalf("notificationtest: %v", err)
	}
	recorded := make(chan struct{})
	p := &Pipeline{Broker: b, Gateway: g, Published: NewRecorder(t), recorded: recorded}
	t.Cleanup(func() { <-recorded }) // runs after the clean-up of start, which stops the Broker
	stopped := start(t, b, g)
	go func() { // ends when the Broker has stopped; the clean-up waits for it
		defer close(recorded)
		p.Published.record(published, stopped)
	}()
	return p
}

// Shutdown shuts down the Broker and then the Gateway, and returns when
// everything that was accepted has arrived and every recording has ended. It
// reports with t.Error what NewPipeline tells. After it, Publish returns
// ErrClosed. A Recorder that is blocked must be released before. To call it again
// does nothing.
func (p *Pipeline) Shutdown(t testing.TB) {
	t.Helper()
	if problems := shutdown(patience(t), p.Broker, p.Gateway); len(problems) > 0 {
		t.Errorf("notificationtest: %s", strings.Join(problems, "\n"))
		return // Published may be blocked until the end of the test
	}
	<-p.recorded
}

// Start runs a Broker and Gateways that the caller has made and registered, until
// the end of the test. Then it shuts them down, the Broker first, with the checks
// of NewPipeline. It returns when they run. The test may shut them down earlier.
//
// b may be nil: the gateways then get what the test sends to their inboxes.
func Start(t testing.TB, b *notification.Broker, gateways ...*notification.Gateway) {
	t.Helper()
	start(t, b, gateways...)
}

// A runner is a Broker or a Gateway.
type runner interface {
	Run(ctx context.Context) error
	Shutdown(ctx context.Context) error
}

// start is Start. The channel is closed when the Run of b has returned.
func start(t testing.TB, b *notification.Broker, gateways ...*notification.Gateway) (stopped <-chan struct{}) {
	t.Helper()
	var all []runner
	if b != nil {
		all = append(all, b)
	}
	for _, g := range gateways {
		all = append(all, g)
	}
	done := make([]chan struct{}, len(all)) // each closed when a Run has returned
	returned := make([]error, len(all))     // what it returned; written before that
	for i := range all {
		done[i] = make(chan struct{})
	}
	begun := 0
	t.Cleanup(func() {
		t.Helper()
		failed, limit := t.Failed(), patience(t)
		if failed {
			limit = 0 // nobody wants to wait, or to read what follows from the failure
		}
		problems := shutdown(limit, b, gateways...)
		for i := range begun {
			<-done[i]
			if err := returned[i]; err != nil {
				problems = append(problems, fmt.Sprintf("Run of %T returned %v", all[i], err))
			}
		}
		if len(problems) > 0 && !failed {
			t.Errorf("notificationtest: %s", strings.Join(problems, "\n"))
		}
	})
	for i, r := range all {
		// Of two calls of Run one returns ErrRunning, when the other one has
		// begun. Without that the Shutdown of a short test could come before
		// Run, and discard what the test has published.
		results := make(chan error, 2)
		for range 2 {
			go func() { results <- r.Run(context.Background()) }() // ends with Run
		}
		if err := <-results; !errors.Is(err, notification.ErrRunning) {
			t.Fatalf("notificationtest: Run of %T returned %v", r, err)
		}
		go func() { // ends with the other Run; the clean-up waits for it
			returned[i] = <-results
			close(done[i])
		}()
		begun++
	}
	if b != nil {
		stopped = done[0]
	}
	return stopped
}

// shutdown ends b and the gateways, for which they have so long, and returns what
// was lost on the way and what does not add up. It may be called any number of
// times.
func shutdown(limit time.Duration, b *notification.Broker, gateways ...*notification.Gateway) (problems []string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	end := func(name string, r runner) {
		if err := r.Shutdown(ctx); err != nil {
			problems = append(problems, fmt.Sprintf("Shutdown of %s returned: %v", name, err))
		}
	}
	var stats notification.BrokerStats
	if b != nil {
		end("the Broker", b)
		stats = b.Stats() // now: a Gateway that stops leaves the list of receivers
	}
	for _, g := range gateways {
		end(fmt.Sprintf("Gateway %q", g.ID()), g)
	}
	return append(problems, imbalances(b != nil, stats, accountsOf(gateways))...)
}

// patience is how long to wait for what may never come: long for a busy machine,
// and not beyond the deadline of the test binary, which tells less.
func patience(t testing.TB) (d time.Duration) {
	d = 30 * time.Second
	defer func() { _ = recover() }() // Deadline panics in a bubble
	if t, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if end, ok := t.Deadline(); ok {
			d = min(d, time.Until(end)*9/10)
		}
	}
	return d
}

// rest waits until everything in the bubble of testing/synctest is at rest. It
// reports false, at once, outside of a bubble.
func rest() (bubble bool) {
	defer func() { _ = recover() }() // outside of a bubble Wait panics
	synctest.Wait()
	return true
}
