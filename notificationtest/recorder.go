package notificationtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
)

// A Recorder is a notification.Sink that keeps what it gets, in the order in
// which it comes. A Push that fails leaves nothing behind.
//
// It insists on what notification.Sink promises, and reports with t.Error, of the
// t that it was made with: two calls of Push at once, a Push after Close, an empty
// batch, a batch in which a lower lane comes before a higher one, a Close during a
// Push, a second Close, a Close without a reason.
//
// A Recorder is the sink of one session; a second session wants another one.
type Recorder struct {
	t testing.TB // immutable

	// guarded by mu
	mu     sync.Mutex
	before func(ctx context.Context) error // what Push does first; nil: nothing
	pushes int                             // calls of Push that have not returned
	state
}

var _ notification.Sink = (*Recorder)(nil)

// A state is what a Recorder has got so far. A copy can be read without a lock.
type state struct {
	messages []*recorded // append-only
	closed   bool
	reason   error         // of Close
	changed  chan struct{} // closed when there is a newer state
}

// recorded is a message that a Recorder has.
type recorded struct {
	*notification.Message
	claimed atomic.Bool // Require has found it
}

// NewRecorder returns a Recorder for a session that the test registers itself.
func NewRecorder(t testing.TB) *Recorder {
	return &Recorder{t: t, state: state{changed: make(chan struct{})}}
}

// Connect registers a new session of a user with g and returns its sink. The
// session gets every channel, and what is published from now on; for a filter, a
// cursor or an ID of its own, give a NewRecorder to g.RegisterSession. It calls
// t.Fatal if RegisterSession returns an error.
func Connect(t testing.TB, g *notification.Gateway, userID string) *Recorder {
	t.Helper()
	r := NewRecorder(t)
	if _, err := g.RegisterSession(notification.SessionConfig{ID: rand.Text(), UserID: userID, Sink: r}); err != nil {
		t.Fatalf("notificationtest: a session of %q: %v", userID, err)
	}
	return r
}

// Push keeps the batch and returns nil. It blocks or fails if the Recorder was
// told to, and then returns the cause of ctx if ctx ends first.
func (r *Recorder) Push(ctx context.Context, batch []*notification.Message) error {
	r.mu.Lock()
	switch {
	case r.pushes > 0:
		r.t.Error("notificationtest: two calls of Push at once")
	case r.closed:
		r.t.Error("notificationtest: a Push after Close")
	case len(batch) == 0:
		r.t.Error("notificationtest: an empty batch")
	case !slices.IsSortedFunc(batch, func(a, b *notification.Message) int {
		return int(a.Notification().Priority) - int(b.Notification().Priority)
	}):
		r.t.Errorf("notificationtest: a batch that does not begin with the highest lane:%s", list(wrap(batch)))
	}
	r.pushes++
	before := r.before
	r.mu.Unlock()

	var err error
	if before != nil {
		err = before(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushes--
	if err == nil {
		r.messages = append(r.messages, wrap(batch)...)
		r.change()
	}
	return err
}

// Close ends the recording.
func (r *Recorder) Close(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		r.t.Error("notificationtest: a second Close")
	case r.pushes > 0:
		r.t.Error("notificationtest: a Close during a Push")
	case reason == nil:
		r.t.Error("notificationtest: a Close without a reason")
	}
	r.closed, r.reason = true, reason
	r.change()
}

// change wakes those who wait. The caller holds mu.
func (r *Recorder) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Messages returns what the Recorder has, in the order in which it came. The
// slice is the caller's, the messages are shared.
func (r *Recorder) Messages() []*notification.Message {
	return unwrap(r.now().messages)
}

// Wait waits until the Recorder has at least n messages, and returns all that it
// has, as Messages does. It calls t.Fatal if they do not come.
func (r *Recorder) Wait(t testing.TB, n int) []*notification.Message {
	t.Helper()
	s, why := r.await(t, func(s state) bool { return len(s.messages) >= n })
	if why != "" {
		t.Fatalf("notificationtest: %d messages, not %d, came %s:%s", len(s.messages), n, why, list(s.messages))
	}
	return unwrap(s.messages)
}

// WaitClose waits for the end of the recording, and returns the reason for which
// the session ended: notification.ErrSlowConsumer, say. For Pipeline.Published it
// is notification.ErrClosed. It calls t.Fatal if the end does not come.
func (r *Recorder) WaitClose(t testing.TB) error {
	t.Helper()
	s, why := r.await(t, func(s state) bool { return s.closed })
	if why != "" {
		t.Fatalf("notificationtest: the recording did not end %s", why)
	}
	return s.reason
}

// Block makes Push wait, from its next call on, until release is called, its
// session ends or the test does. The channel is closed when a Push waits. What
// Push waits with counts as recorded only when it goes on. To call release again
// does nothing. Block, Delay and Fail replace each other.
func (r *Recorder) Block() (blocked <-chan struct{}, release func()) {
	in, out := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(in) })
	release = sync.OnceFunc(func() { close(out) })
	r.t.Cleanup(release) // runs before the clean-up that shuts down, if that was registered earlier
	r.do(func(ctx context.Context) error {
		enter()
		select {
		case <-out:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return in, release
}

// Delay makes each Push take d, from its next call on; zero: no time. Block, Delay
// and Fail replace each other.
func (r *Recorder) Delay(d time.Duration) {
	r.do(func(ctx context.Context) error {
		if d <= 0 {
			return nil
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// Fail makes Push return err, from its next call on, which ends the session with
// err. Block, Delay and Fail replace each other.
func (r *Recorder) Fail(err error) {
	r.do(func(context.Context) error { return err })
}

func (r *Recorder) do(before func(ctx context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = before
}

// record records what comes from a global subscription, until the Broker has
// stopped: nothing is sent after that.
func (r *Recorder) record(ch <-chan *notification.Message, stopped <-chan struct{}) {
	push := func(m *notification.Message) {
		if err := r.Push(context.Background(), []*notification.Message{m}); err != nil {
			r.t.Errorf("notificationtest: Published must not fail: %v", err)
		}
	}
	for {
		select {
		case m := <-ch:
			push(m)
		case <-stopped:
			for len(ch) > 0 {
				push(<-ch)
			}
			r.Close(notification.ErrClosed)
			return
		}
	}
}

// now returns the state of now.
func (r *Recorder) now() state {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// await waits until done reports true of the state: of the present one and then
// of each newer one. It returns the last one, and why it gave up: the time is over
// or the recording is. No lock is held while done runs.
func (r *Recorder) await(t testing.TB, done func(state) bool) (s state, why string) {
	limit := patience(t)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s = r.now()
		if done(s) {
			return s, ""
		}
		if s.closed {
			return s, fmt.Sprintf("before the recording ended (%v)", s.reason)
		}
		select {
		case <-s.changed:
		case <-timer.C:
			return s, fmt.Sprintf("within %s", limit)
		}
	}
}

func wrap(messages []*notification.Message) []*recorded {
	all := make([]*recorded, len(messages))
	for i, m := range messages {
		all[i] = &recorded{Message: m}
	}
	return all
}

func unwrap(messages []*recorded) []*notification.Message {
	all := make([]*notification.Message, len(messages))
	for i, m := range messages {
		all[i] = m.Message
	}
	return all
}

// list is what a failure tells about messages: the last of them, one on a line.
func list(messages []*recorded) string {
	const most = 20
	if len(messages) == 0 {
		return " nothing"
	}
	var b strings.Builder
	if more := len(messages) - most; more > 0 {
		fmt.Fprintf(&b, "\n\t%d more", more)
		messages = messages[more:]
	}
	for _, m := range messages {
		b.WriteString("\n\t")
		if m.claimed.Load() {
			b.WriteString("(found before) ")
		}
		b.Write(m.JSON())
	}
	return b.String()
}
