package notificationtest

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
)

// Require waits until r has a notification for the user whose payload is a P and
// for which match returns true, and returns it: shared, read-only. Of several it
// takes the oldest that no Require has taken before. It calls t.Fatal, with a list
// of what r has, if none comes in time or before the recording ends.
//
// The user is that of the notification: what is for everybody is for
// notification.AllUsers. An empty userID stands for every user, a nil match for
// every payload of the type, and the interface notification.Payload as P for
// every type. match is called at most once for each message.
func Require[P notification.Payload](t testing.TB, r *Recorder, userID string, match func(P) bool) *notification.Notification {
	t.Helper()
	var found *notification.Notification
	next := 0
	s, why := r.await(t, func(s state) bool {
		for ; next < len(s.messages); next++ {
			if m := s.messages[next]; fits(m, userID, match) && m.claimed.CompareAndSwap(false, true) {
				found = m.Notification()
				return true
			}
		}
		return false
	})
	if why != "" {
		t.Fatalf("notificationtest: no %s came %s. Recorded:%s", wanted(userID, match), why, list(s.messages))
	}
	return found
}

// RequireNone requires that r has nothing that Require would find, and that
// nothing more can come. In a bubble of testing/synctest it waits until everything
// there is at rest; elsewhere it waits for the end of the recording, so call
// Pipeline.Shutdown before. It calls t.Fatal, with a list of what there is, or if
// the recording does not end. What a Require has taken does not count.
func RequireNone[P notification.Payload](t testing.TB, r *Recorder, userID string, match func(P) bool) {
	t.Helper()
	if !rest() {
		if _, why := r.await(t, func(s state) bool { return s.closed }); why != "" {
			t.Fatalf("notificationtest: no %s has come so far, but the recording did not end %s: call Pipeline.Shutdown first",
				wanted(userID, match), why)
		}
	}
	var found []*recorded
	for _, m := range r.now().messages {
		if fits(m, userID, match) {
			found = append(found, m)
		}
	}
	if len(found) > 0 {
		t.Fatalf("notificationtest: %d times %s came:%s", len(found), wanted(userID, match), list(found))
	}
}

// fits reports whether m is what a Require looks for.
func fits[P notification.Payload](m *recorded, userID string, match func(P) bool) bool {
	n := m.Notification()
	p, ok := n.Payload.(P)
	return ok && (userID == "" || n.UserID == userID) && !m.claimed.Load() && (match == nil || match(p))
}

func wanted[P notification.Payload](userID string, match func(P) bool) string {
	s := reflect.TypeFor[P]().String()
	if userID != "" {
		s += fmt.Sprintf(" for %q", userID)
	}
	if match != nil {
		s += " that matches"
	}
	return s
}

// RequireConserved requires of the Stats of b and of gateways that what went in
// came out or was counted as lost; it calls t.Fatal with each equation that does
// not hold:
//
//	Published             = Routed + Unrouted + Discarded + Queued                    for each lane of b
//	Handed to the gateway = ΣReceived + ΣInvalid + ΣDiscarded + what its inbox holds  for each gateway
//	Enqueued + Replayed   = Taken + DroppedSlow + DroppedEnded + Pending              for each lane of each gateway
//
// They hold at rest: after Shutdown, or in a bubble of testing/synctest after its
// Wait. What was handed to a Gateway that has left b is known only as part of
// BrokerStats.Departed, and is checked as far as that tells. How often Publish was
// called only the caller knows; compare it with the sum of Published, Deduplicated,
// Rejected, Invalid and RefusedClosed.
//
// b may be nil if the test feeds the gateways itself.
func RequireConserved(t testing.TB, b *notification.Broker, gateways ...*notification.Gateway) {
	t.Helper()
	var stats notification.BrokerStats
	if b != nil {
		stats = b.Stats()
	}
	if broken := imbalances(b != nil, stats, accountsOf(gateways)); len(broken) > 0 {
		t.Fatalf("notificationtest: %s", strings.Join(broken, "\n"))
	}
}

// An account is what is known about a Gateway.
type account struct {
	notification.GatewayStats
	inbox int // messages that its inbox holds
}

func accountsOf(gateways []*notification.Gateway) (all []account) {
	for _, g := range gateways {
		a := account{GatewayStats: g.Stats()}
		for _, lane := range g.Inbox() {
			a.inbox += len(lane)
		}
		all = append(all, a)
	}
	return all
}

// imbalances returns the equations that do not hold, in words. Without a Broker
// there are only those of the gateways.
func imbalances(broker bool, b notification.BrokerStats, gateways []account) (broken []string) {
	add := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	for p, l := range b.Lanes {
		if l.Published != l.Routed+l.Unrouted+l.Discarded+uint64(l.Queued) {
			add("Broker, P%d: Published %d is not Routed %d + Unrouted %d + Discarded %d + Queued %d",
				p, l.Published, l.Routed, l.Unrouted, l.Discarded, l.Queued)
		}
	}
	handed := make(map[string]uint64)
	for _, r := range b.Receivers {
		if !r.Global {
			handed[r.ID] = r.Handed
		}
	}
	var earlier uint64 // handed to gateways before they left, perhaps to come back
	for _, g := range gateways {
		var received, invalid, discarded uint64
		for p, l := range g.Lanes {
			if l.Enqueued+l.Replayed != l.Taken+l.DroppedSlow+l.DroppedEnded+uint64(l.Pending) {
				add("Gateway %q, P%d: Enqueued %d + Replayed %d is not Taken %d + DroppedSlow %d + DroppedEnded %d + Pending %d",
					g.ID, p, l.Enqueued, l.Replayed, l.Taken, l.DroppedSlow, l.DroppedEnded, l.Pending)
			}
			received += l.Received
			invalid += l.Invalid
			discarded += l.Discarded
		}
		got, listed := received+invalid+discarded+uint64(g.inbox), handed[g.ID]
		switch {
		case !broker:
		case got < listed, got > listed && b.Departed.Handed == 0:
			add("Gateway %q: Handed %d is not Received %d + Invalid %d + Discarded %d + %d in its inbox", g.ID, listed, received, invalid, discarded, g.inbox)
		default:
			earlier += got - listed
		}
	}
	if earlier > b.Departed.Handed {
		add("Gateways got %d messages more than they were handed; those that left were handed %d", earlier, b.Departed.Handed)
	}
	return broken
}
