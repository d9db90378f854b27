package main

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
)

// An audience is all clients, each a user with one connection.
type audience struct {
	members []*member
	cancel  context.CancelFunc
	running sync.WaitGroup

	latency    [notification.NumPriorities]notification.HistogramRecorder
	received   atomic.Int64
	live       atomic.Int64
	reconnects atomic.Int64
	resets     atomic.Int64
}

// A member is one client and what it has got.
type member struct {
	a      *audience
	user   string
	client *notificationclient.Client
	isLive bool // owned by the client's Run
	begun  bool // owned by the client's Run

	mu       sync.Mutex
	ids      []string       // guarded by mu
	last     map[string]int // guarded by mu: by stream: the number of the last that came
	disorder int            // guarded by mu
	stopped  error          // guarded by mu
}

func newAudience(n int, url string) *audience {
	ctx, cancel := context.WithCancel(context.Background())
	a := &audience{cancel: cancel}
	for i := range n {
		m := &member{a: a, user: userName(i), last: make(map[string]int)}
		client, err := notificationclient.New(notificationclient.Config{
			URL:             url + "/ws?user=" + m.user,
			OnNotifications: m.take,
			Snapshot:        m.snapshot,
			OnState:         m.change,
			BackoffBase:     100 * time.Millisecond,
			BackoffCap:      2 * time.Second,
		})
		if err != nil {
			panic(err) // the config is right
		}
		m.client = client
		a.members = append(a.members, m)
		a.running.Go(func() { // ends with cancel; close waits for it
			err := client.Run(ctx)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.stopped = err
		})
	}
	return a
}

func (a *audience) close() {
	a.cancel()
	a.running.Wait()
}

// take notes what has come.
func (m *member) take(_ context.Context, batch notificationclient.Batch) error {
	now := time.Now().UnixNano()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range batch.Notifications {
		id := strings.Clone(n.ID)
		m.ids = append(m.ids, id)
		dash := strings.LastIndexByte(id, '-')
		stream := id[:dash]
		at, _ := strconv.Atoi(id[dash+1:])
		if at < m.last[stream] {
			m.disorder++
		}
		m.last[stream] = at
		m.a.latency[n.Priority].Record(time.Duration(now - n.Timestamp))
	}
	m.a.received.Add(int64(len(batch.Notifications)))
	return nil
}

// snapshot is called once, at the beginning: each later call is a reset.
func (m *member) snapshot(_ context.Context, reason notificationclient.SnapshotReason) error {
	if reason != notificationclient.SnapshotStart {
		m.a.resets.Add(1)
	}
	return nil
}

func (m *member) change(s notificationclient.State) {
	live := s.Status == notificationclient.StatusLive
	switch {
	case live && !m.isLive:
		m.a.live.Add(1)
		if m.begun {
			m.a.reconnects.Add(1)
		}
		m.begun = true
	case !live && m.isLive:
		m.a.live.Add(-1)
	}
	m.isLive = live
}

// allLive waits until every client is.
func (a *audience) allLive(ctx context.Context) error {
	for a.live.Load() < int64(len(a.members)) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// A ledger is what each user must have: IDs, in no order.
type ledger map[string]map[string]bool

// readLedger reads the outboxes of publishers that have ended. All of it is in the
// log, or they would not have ended well.
func readLedger(name func(int) string) (ledger, error) {
	l := make(ledger)
	for i := range publishers {
		entries, _, err := readOutbox(name(i))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if l[e.user] == nil {
				l[e.user] = make(map[string]bool)
			}
			l[e.user][e.id(strconv.Itoa(i))] = true
		}
	}
	return l, nil
}

func (l ledger) due(user string) int { return len(l[user]) + len(l[notification.AllUsers]) }

// await waits until everybody has as much as there is.
func (a *audience) await(ctx context.Context, l ledger) {
	for _, m := range a.members {
		for m.has() < l.due(m.user) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	// What comes now is too much: repeats.
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

func (m *member) has() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ids)
}

// A verdict is what came, and what is wrong.
type verdict struct {
	published, delivered              int
	lost, repeated, strange, disorder int
	stopped                           []error // of clients that gave up
}

// judge compares what came with what had to.
func (a *audience) judge(l ledger) (v verdict) {
	for _, user := range l {
		v.published += len(user)
	}
	for _, m := range a.members {
		m.mu.Lock()
		ids := m.ids
		v.disorder += m.disorder
		if m.stopped != nil {
			v.stopped = append(v.stopped, m.stopped)
		}
		m.mu.Unlock()
		seen := make(map[string]bool, len(ids))
		good := 0
		for _, id := range ids {
			switch {
			case seen[id]:
				v.repeated++
			case l[m.user][id], l[notification.AllUsers][id]:
				good++
			default:
				v.strange++
			}
			seen[id] = true
		}
		v.delivered += good
		v.lost += l.due(m.user) - good
	}
	return v
}
