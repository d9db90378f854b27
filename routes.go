package notification

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v3"
)

// The routes of a Broker say who gets a message: the receivers of a user, all
// receivers, and the global subscribers. They change under a lock, and the
// dispatcher reads them without it: every slice in them is immutable.
type routes struct {
	mu        sync.Mutex
	closed    func() bool          // immutable: the Broker takes no more receivers
	receivers map[string]*receiver // guarded by mu: gateways and receivers
	globals   map[string]*receiver // guarded by mu
	departed  ReceiverStats        // guarded by mu
	leaving   map[*receiver]bool   // guarded by mu: off their table, not yet in departed

	// atomic
	all         atomic.Pointer[[]*receiver] // receivers, copied on write
	subscribers atomic.Pointer[[]*receiver] // globals, copied on write
	users       *xsync.MapOf[string, userRoute]
}

// A userRoute says who gets a user's messages.
type userRoute struct {
	targets []*receiver // immutable
	user    *user       // as one of the Gateways among them knew him last; nil if none did
}

func newRoutes(closed func() bool) *routes {
	t := &routes{
		closed:    closed,
		receivers: make(map[string]*receiver),
		globals:   make(map[string]*receiver),
		leaving:   make(map[*receiver]bool),
		users:     xsync.NewMapOf[string, userRoute](),
	}
	t.all.Store(new([]*receiver))
	t.subscribers.Store(new([]*receiver))
	return t
}

// of returns the route of a user, or of AllUsers.
func (t *routes) of(userID string) userRoute {
	if userID == AllUsers {
		return userRoute{targets: *t.all.Load()}
	}
	r, _ := t.users.Load(userID)
	return r
}

// add puts a receiver or global subscriber into its table.
func (t *routes) add(r *receiver) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed() {
		return fmt.Errorf("%w: no more receivers", ErrClosed)
	}
	table := t.table(r)
	if table[r.id] != nil {
		return fmt.Errorf("%w: %q", ErrReceiverExists, r.id)
	}
	table[r.id] = r
	t.publish(r.global)
	return nil
}

func (t *routes) table(r *receiver) map[string]*receiver {
	if r.global {
		return t.globals
	}
	return t.receivers
}

// publish shows a changed table to the dispatcher. mu is held.
func (t *routes) publish(global bool) {
	table, to := t.receivers, &t.all
	if global {
		table, to = t.globals, &t.subscribers
	}
	list := make([]*receiver, 0, len(table))
	for _, r := range table {
		list = append(list, r)
	}
	slices.SortFunc(list, func(x, y *receiver) int { return strings.Compare(x.id, y.id) })
	to.Store(&list)
}

// receiver returns the gateway or receiver with this ID.
func (t *routes) receiver(id string) (*receiver, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.receivers[id]
	return r, ok
}

// global returns the global subscriber with this ID.
func (t *routes) global(id string) (*receiver, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.globals[id]
	return r, ok
}

// remove takes r off its table, waits until nothing more is sent to it, and
// keeps its sums. It reports false if r is not there any longer. The users'
// routes to r stay, and lead nowhere, until they are removed one by one.
func (t *routes) remove(r *receiver) bool {
	t.mu.Lock()
	table := t.table(r)
	if table[r.id] != r {
		t.mu.Unlock()
		return false
	}
	delete(table, r.id)
	t.leaving[r] = true
	t.publish(r.global)
	t.mu.Unlock()
	r.leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.leaving, r)
	t.departed.add(r)
	return true
}

// forget removes the users' routes to r, which has left. Nobody waits for all of
// them: the lock is taken for one at a time.
func (t *routes) forget(r *receiver) {
	t.users.Range(func(userID string, to userRoute) bool {
		if slices.Contains(to.targets, r) {
			t.update(userID, r)
		}
		return true
	})
}

// subscribe routes a user to a receiver, or undoes that.
func (t *routes) subscribe(userID, receiverID string, on bool) error {
	if err := checkUser("UserID", userID); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.receivers[receiverID]
	if r == nil {
		return fmt.Errorf("%w: %q", ErrUnknownReceiver, receiverID)
	}
	if on {
		r.explicit[userID] = struct{}{}
	} else {
		delete(r.explicit, userID)
	}
	t.updateLocked(userID, r)
	return nil
}

// update is called after a Gateway has begun or ceased to know a user.
func (t *routes) update(userID string, r *receiver) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.updateLocked(userID, r)
}

// updateLocked makes the route of userID to r agree with why there is one:
// Subscribe, or a Gateway that knows the user. Whoever changes one of the two
// calls it after the change, so that the last call sees the last state of both.
// mu is held.
func (t *routes) updateLocked(userID string, r *receiver) {
	u := r.user(userID)
	_, want := r.explicit[userID]
	want = (want || u != nil) && !r.left()
	old, _ := t.users.Load(userID)
	to := userRoute{old.targets, u}
	switch was := slices.Index(old.targets, r); {
	case want == (was >= 0):
	case want && len(old.targets) == 0: // nearly every user: the slice is shared, and stays in the cache
		to.targets = r.sole
	case want:
		to.targets = append(slices.Clip(old.targets), r)
	case len(old.targets) == 1:
		to.targets = nil
	case len(old.targets) == 2:
		to.targets = old.targets[1-was].sole
	default:
		to.targets = slices.Concat(old.targets[:was], old.targets[was+1:])
	}
	for _, other := range to.targets {
		if to.user == nil {
			to.user = other.user(userID)
		}
	}
	if len(to.targets) == 0 {
		t.users.Delete(userID)
	} else {
		t.users.Store(userID, to)
	}
}

// lost counts a message that was on its way to a receiver that has left.
func (t *routes) lost() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.departed.Dropped++
}

// stats fills in what the routes count.
func (t *routes) stats(s *BrokerStats) {
	s.Users = t.users.Size()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, table := range []map[string]*receiver{t.receivers, t.globals} {
		for _, r := range table {
			rs := ReceiverStats{ID: r.id, Global: r.global, Handed: r.handed.value(), Dropped: r.dropped.value()}
			for p, ch := range r.inbox {
				// It may have recovered since the last message for it. A channel
				// without a buffer does not tell.
				drained := cap(ch) > 0 && len(ch) <= cap(ch)/2
				rs.Stuck = rs.Stuck || r.stuck[p].Load() && !drained && !r.patient()
			}
			s.Receivers = append(s.Receivers, rs)
		}
	}
	slices.SortFunc(s.Receivers, func(x, y ReceiverStats) int { return strings.Compare(x.ID, y.ID) })
	s.Departed = t.departed
	for r := range t.leaving {
		s.Departed.add(r)
	}
}
