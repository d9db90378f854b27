package notification

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// First a history by itself, without a Gateway; then its bounds as the users of
// a Gateway see them.

// A naiveStore is the model of a historyStore: it remembers everything there
// ever was, and whether it was evicted.
type naiveStore struct {
	st    *historyStore
	last  [NumPriorities]uint64
	all   *naiveHistory
	users []*naiveHistory
}

type naiveHistory struct {
	h       *history
	entries []naiveEntry
	from    [NumPriorities]uint64 // what has a number of at most this is lost
	closed  bool
}

type naiveEntry struct {
	sequenced
	evicted bool
}

func newNaiveStore(perLane, total int) *naiveStore {
	st := newHistoryStore(perLane, total, nil)
	return &naiveStore{st: st, all: &naiveHistory{h: st.all}}
}

func (n *naiveStore) newHistory() *naiveHistory {
	h := &naiveHistory{h: n.st.newHistory(), from: n.last}
	n.users = append(n.users, h)
	return h
}

// kept returns how many messages of the users are there.
func (n *naiveStore) kept() (kept int) {
	for _, h := range n.users {
		kept += h.len()
	}
	return kept
}

func (h *naiveHistory) len() (n int) {
	for p := P0; p <= P3; p++ {
		n += len(h.lane(p))
	}
	return n
}

// lane returns the entries of a lane that are there.
func (h *naiveHistory) lane(p Priority) (there []*naiveEntry) {
	for i := range h.entries {
		if e := &h.entries[i]; e.m.priority == p && !e.evicted {
			there = append(there, e)
		}
	}
	return there
}

// append does what historyStore.append should, and its caller: a message too
// many costs the oldest of its lane.
func (n *naiveStore) append(t *testing.T, h *naiveHistory, m *Message) {
	p := m.priority
	n.last[p]++
	there := h.lane(p)
	grown := !h.closed && len(there) < n.st.perLane
	if !h.closed {
		if !grown {
			there[0].evicted = true
		}
		h.entries = append(h.entries, naiveEntry{sequenced: sequenced{n.last[p], m}})
	}
	seq, over := n.st.append(h.h, m)
	require.Equal(t, n.last[p], seq)
	require.Equal(t, h != n.all && grown && n.kept() > int(n.st.total), over, "one must be evicted")
	if over {
		n.evictOldest(h, p)
	}
}

func (n *naiveStore) evictOldest(h *naiveHistory, p Priority) {
	if there := h.lane(p); len(there) > 0 {
		there[0].evicted = true
	}
	h.h.evictOldest(p)
}

func (n *naiveStore) evictUpTo(h *naiveHistory, seqs [NumPriorities]uint64) {
	h.forget(seqs)
	h.h.evictUpTo(seqs)
}

func (h *naiveHistory) forget(seqs [NumPriorities]uint64) {
	for i := range h.entries {
		e := &h.entries[i]
		e.evicted = e.evicted || e.seq <= seqs[e.m.priority]
	}
	for p, seq := range seqs {
		h.from[p] = max(h.from[p], seq)
	}
}

func (n *naiveStore) close(h *naiveHistory) {
	h.forget(n.last)
	h.closed = true
	h.h.close()
}

// lost reports whether something that at admits is no longer there.
func (h *naiveHistory) lost(at place) bool {
	for _, e := range h.entries {
		if e.evicted && e.seq > at.seqs[e.m.priority] && at.admits(e.sequenced) {
			return true
		}
	}
	for p, seq := range h.from { // there may have been anything
		for c := ChannelTrade; c < numChannels; c++ {
			if seq > at.seqs[p] && admits(at.filter, c) && (at.added == nil || seq > at.added[c][p]) {
				return true
			}
		}
	}
	return false
}

// behind returns what a replay of h has to bring in a lane, in order.
func (n *naiveStore) behind(h *naiveHistory, at place, p Priority) (wanted []sequenced) {
	for _, e := range slices.Concat(h.lane(p), n.all.lane(p)) {
		if e.seq > at.seqs[p] && at.admits(e.sequenced) {
			wanted = append(wanted, e.sequenced)
		}
	}
	slices.SortFunc(wanted, func(a, b sequenced) int { return cmp.Compare(a.seq, b.seq) })
	return wanted
}

// replay reads all there is behind a place, in batches of size, and compares.
func (n *naiveStore) replay(t *testing.T, h *naiveHistory, at place, size int, turn turns) {
	for all := false; !all; {
		before, counting := at, turn
		d, whole, lost := n.st.read(h.h, &at, make([]*Message, size), &turn)
		require.Equal(t, h.lost(before) || n.all.lost(before), lost, "lost")
		if lost {
			require.Equal(t, before, at, "nothing has changed")
			return
		}
		var wanted [NumPriorities][]sequenced
		var waiting [NumPriorities]int
		for p := P0; p <= P3; p++ {
			wanted[p] = n.behind(h, before, p)
			waiting[p] = len(wanted[p])
		}
		counts := counting.share(waiting, size)
		require.Equal(t, counts, d.counts, "each lane has its share")
		require.Equal(t, counts == waiting, whole, "whether that was all")
		var batch []*Message
		for p := P0; p <= P3; p++ {
			k := counts[p]
			to := at.seqs[p]
			for _, e := range wanted[p][:k] {
				batch = append(batch, e.m)
				require.LessOrEqual(t, e.seq, to, "the place is behind what was read")
			}
			if k < len(wanted[p]) {
				require.Less(t, to, wanted[p][k].seq, "and before what is to come")
			} else {
				require.Equal(t, n.last[p], to, "over what is not wanted too")
			}
		}
		require.Len(t, d.messages, len(batch))
		for i := range batch {
			require.Same(t, batch[i], d.messages[i])
		}
		all = whole
	}
}

func TestHistoryAgainstAModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 0))
	for range sized(300, 60) {
		n := newNaiveStore(1+rng.IntN(8), 1+rng.IntN(40))
		n.newHistory()
		any := func() *naiveHistory {
			if rng.IntN(3) == 0 {
				return n.all
			}
			return n.users[rng.IntN(len(n.users))]
		}
		place := func() (at place) {
			for p := range at.seqs {
				at.seqs[p] = n.last[p] - min(n.last[p], uint64(rng.IntN(12)))
				if rng.IntN(50) == 0 {
					at.seqs[p] = n.last[p] + 1
				}
			}
			if at.filter = everyChannel; rng.IntN(2) == 0 {
				at.filter = uint32(rng.IntN(allChannels+1)) &^ everyChannel
			}
			if rng.IntN(3) == 0 {
				at.added = new(additions)
				for c := ChannelTrade; c < numChannels; c++ {
					for p := range at.seqs {
						at.added[c][p] = uint64(rng.IntN(int(n.last[p]) + 1))
					}
				}
			}
			return at
		}
		for i := range 200 {
			switch rng.IntN(20) {
			case 0:
				n.newHistory()
			case 1:
				if h := any(); h != n.all {
					n.evictOldest(h, Priority(rng.IntN(NumPriorities)))
				}
			case 2:
				if rng.IntN(4) == 0 {
					n.evictUpTo(any(), place().notOver(n.last))
				}
			case 3:
				if h := any(); h != n.all && len(n.users) > 1 {
					n.close(h)
				}
			case 4, 5, 6:
				h, at := n.users[rng.IntN(len(n.users))], place()
				if h.closed { // nobody is sent there any more
					continue
				}
				future := at.notOver(n.last) != at.seqs
				require.Equal(t, !future && !h.lost(at) && !n.all.lost(at), n.st.resumable(h.h, &at))
				if !future {
					n.replay(t, h, at, 1+rng.IntN(12), turns(rng.IntN(10)))
				}
			default:
				n.append(t, any(), NewMessage(on(ChannelTrade+Channel(rng.IntN(5)), fmt.Sprint(i), "u", Priority(rng.IntN(NumPriorities)))))
			}
			require.Equal(t, n.last, n.st.now())
			require.EqualValues(t, n.kept(), n.st.kept.Load())
			for _, h := range append(n.users, n.all) {
				require.Equal(t, h.len(), h.h.len())
				for p := range h.h.lanes {
					require.LessOrEqual(t, len(h.h.lanes[p].ring), n.st.perLane)
				}
			}
		}
	}
}

// notOver returns the numbers of a place, or of a limit where that is less.
func (at place) notOver(limit [NumPriorities]uint64) (seqs [NumPriorities]uint64) {
	for p := range seqs {
		seqs[p] = min(at.seqs[p], limit[p])
	}
	return seqs
}

func TestHistoryByItself(t *testing.T) {
	m := func(ch Channel, p Priority) *Message { return NewMessage(on(ch, "m", "u", p)) }
	t.Run("a ring takes no memory before there is a message, and none after the last was dropped", func(t *testing.T) {
		st := newHistoryStore(1000, 1000, nil)
		h := st.newHistory()
		require.Nil(t, h.lanes[P1].ring)
		for n := range 1000 {
			st.append(h, m(ChannelTrade, P1))
			require.LessOrEqual(t, len(h.lanes[P1].ring), max(4, 2*n))
		}
		require.Len(t, h.lanes[P1].ring, 1000)
		h.evictUpTo(st.now())
		require.Nil(t, h.lanes[P1].ring)
	})
	t.Run("a message to a closed history gets a number and is not kept", func(t *testing.T) {
		st := newHistoryStore(4, 4, nil)
		h := st.newHistory()
		st.append(h, m(ChannelTrade, P1))
		h.close()
		seq, over := st.append(h, m(ChannelTrade, P1))
		require.EqualValues(t, 2, seq)
		require.False(t, over)
		require.Zero(t, h.len())
		require.Zero(t, st.kept.Load())
	})
	t.Run("two histories of one user have keys that differ, because nobody kept what came in between", func(t *testing.T) {
		st := newHistoryStore(4, 4, nil)
		require.NotEqual(t, st.newHistory().key, st.newHistory().key)
	})
	for _, to := range []string{"the user", "all"} {
		t.Run("one read looks at a bounded number of messages to "+to+" that are not wanted", func(t *testing.T) {
			const unwanted = 3*replayScan + 10
			st := newHistoryStore(2*unwanted, 2*unwanted, nil)
			h := st.newHistory()
			in := h
			if to == "all" {
				in = st.all
			}
			for range unwanted {
				for p := P0; p <= P3; p++ {
					st.append(in, m(ChannelAccount, p))
				}
			}
			last := m(ChannelTrade, P2)
			st.append(h, last)
			at := place{filter: filterOf([]Channel{ChannelTrade})}
			var turn turns
			for i := range 3 {
				d, all, lost := st.read(h, &at, make([]*Message, 10), &turn)
				require.False(t, lost)
				require.False(t, all)
				require.Equal(t, actNone, d.act)
				require.Equal(t, lanes(uint64((i+1)*replayScan)), at.seqs)
			}
			d, all, lost := st.read(h, &at, make([]*Message, 10), &turn)
			require.False(t, lost)
			require.True(t, all)
			require.Equal(t, []*Message{last}, d.messages)
			require.Equal(t, st.now(), at.seqs)
		})
	}
}

// One goroutine appends, as the reader does; others read and evict.
func TestHistoryRaces(t *testing.T) {
	withProcs(t, func(t *testing.T) {
		st := newHistoryStore(64, 200, nil)
		h := st.newHistory()
		total := uint64(sized(100_000, 20_000))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				var turn turns
				buf := make([]*Message, 7)
				at := place{filter: everyChannel, seqs: st.now()}
				for at.seqs[P1] < total {
					seq := at.seqs[P1]
					d, _, lost := st.read(h, &at, buf, &turn)
					if lost {
						at.seqs = st.now()
					}
					for _, m := range d.messages {
						if seq++; uint64(m.n.Timestamp) != seq {
							t.Errorf("%d in place of %d", m.n.Timestamp, seq)
							return
						}
					}
					if !lost && at.seqs[P1] != seq {
						t.Errorf("the place is %d after message %d", at.seqs[P1], seq)
						return
					}
					if len(d.messages) == 0 {
						runtime.Gosched()
					}
				}
			})
		}
		wg.Go(func() {
			for i := 0; st.now()[P1] < total; i++ {
				switch h.evictOldest(P1); i % 64 {
				case 0:
					h.evictUpTo(st.now())
				case 1:
					st.newHistory().close()
				}
				runtime.Gosched()
			}
		})
		for i := range total {
			n := note("m", "u", P1)
			n.Timestamp = int64(i + 1)
			to := h
			if i%3 == 0 {
				to = st.all
			}
			if _, over := st.append(to, NewMessage(n)); over {
				h.evictOldest(P1)
			}
		}
		finished(t, "readers and evictions", &wg)
		require.EqualValues(t, h.len(), st.kept.Load())
	})
}

func TestHistoryConfig(t *testing.T) {
	overInt32 := int(int64(math.MaxInt32) + int64(math.MaxInt>>32&1)) // one more, where an int holds it
	for _, row := range []struct {
		name string
		cfg  GatewayConfig
		ok   bool
	}{
		{"none is the default", GatewayConfig{}, true},
		{"as many as the outbox holds", GatewayConfig{OutboxMessages: 500, HistoryMessages: 500}, true},
		{"one fewer than the outbox holds", GatewayConfig{OutboxMessages: 500, HistoryMessages: 499}, false},
		{"one fewer than the outbox holds by default", GatewayConfig{HistoryMessages: 1023}, false},
		{"a negative number", GatewayConfig{HistoryMessages: -1}, false},
		{"more than a ring can have", GatewayConfig{HistoryMessages: overInt32}, math.MaxInt == math.MaxInt32},
		{"a negative total", GatewayConfig{HistoryTotal: -1}, false},
		{"a total of one", GatewayConfig{HistoryTotal: 1}, true},
		{"a negative TTL", GatewayConfig{HistoryTTL: -1}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := NewGateway("g", row.cfg)
			if row.ok {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrInvalid)
			}
		})
	}
	inBubble(t, "without history there are no cursors, none is taken, and no user outlives its sessions", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{SessionTimeout: -1})
		with := newGateway(t, "g", keeping(GatewayConfig{}))
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		feedAll(g, "u", P0, series("m", 3))
		feed(g, notice("n", P0))
		pass(time.Second)
		require.Equal(t, append(series("m", 3), "n"), sink.ids())
		require.Zero(t, s.Cursor())
		require.Nil(t, s.resume)
		require.Nil(t, g.history)
		require.Nil(t, s.user.history)
		for _, c := range []Cursor{{epoch: 1}, {user: 1}, offline(t, with, "u")} {
			gone(t, g, "u", c)
		}
		require.NoError(t, s.Close())
		require.Zero(t, s.Cursor())
		require.Zero(t, g.Stats().Users)
		for p, l := range g.Stats().Lanes {
			require.Zero(t, l.Replayed, "P%d", p)
		}
		feedAll(g, "u", P0, series("m", 3))
		pass(time.Second)
		require.EqualValues(t, 3, g.Stats().Lanes[P0].NoSession)
	})
}

// small is the configuration with which bounds are reached soon.
var small = GatewayConfig{BatchSize: 2, OutboxMessages: 4, HistoryMessages: 8}

func TestHistoryMessages(t *testing.T) {
	t.Run("it bounds what is kept of each user in each lane", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			for p := P0; p <= P3; p++ {
				feedAll(g, "u", p, series("m", 8))
			}
			pass(time.Second)
			require.EqualValues(t, 32, g.history.kept.Load())
			require.Equal(t, slices.Repeat(series("m", 8), NumPriorities), behind(t, g, "u", from))
			for p := P0; p <= P3; p++ { // one more in any lane is one too many for this cursor
				feedAll(g, "u", p, []string{"m9"})
				pass(time.Second)
				require.EqualValues(t, 32, g.history.kept.Load())
				gone(t, g, "u", from)
				from.seqs[p]++
				require.Len(t, behind(t, g, "u", from), 32)
			}
		})
	})
	t.Run("it bounds what is kept of that to all, once for all", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			users := series("u", 50)
			var cursors []Cursor
			for _, u := range users {
				cursors = append(cursors, offline(t, g, u))
			}
			for _, id := range series("n", 8) {
				feed(g, notice(id, P3))
			}
			pass(time.Second)
			require.Zero(t, g.history.kept.Load())
			require.Equal(t, 8, g.history.all.len())
			require.Len(t, g.history.all.lanes[P3].ring, 8)
			for i, u := range users[:25] {
				require.Equal(t, series("n", 8), behind(t, g, u, cursors[i]))
			}
			feed(g, notice("n9", P3))
			pass(time.Second)
			require.Equal(t, 8, g.history.all.len())
			for i, u := range users[25:] {
				gone(t, g, u, cursors[25+i])
			}
		})
	})
}

// heldOf returns how many messages of a user are kept.
func heldOf(g *Gateway, userID string) int {
	u, _ := g.roster.users.Load(userID)
	return u.history.len()
}

func TestHistoryTotal(t *testing.T) {
	bounded := func(total int) GatewayConfig {
		cfg := small
		cfg.HistoryTotal = total
		return cfg
	}
	// goOffline lets a user leave, who misses six messages then.
	goOffline := func(t *testing.T, g *Gateway, userID string) Cursor {
		t.Helper()
		c := offline(t, g, userID)
		pass(time.Second)
		feedAll(g, userID, P1, series("m", 6))
		pass(time.Second)
		return c
	}
	t.Run("with too much, who went offline first is forgotten first", func(t *testing.T) {
		bubble(t, bounded(24), func(t *testing.T, g *Gateway) {
			_, stay := join(t, g, "stay", "stay")
			feedAll(g, "stay", P1, series("m", 6))
			c, a, b := goOffline(t, g, "c"), goOffline(t, g, "a"), goOffline(t, g, "b")
			require.EqualValues(t, 24, g.history.kept.Load())
			require.Equal(t, 4, g.Stats().Users)

			feedAll(g, "a", P1, []string{"m7"})
			pass(time.Second)
			require.EqualValues(t, 19, g.history.kept.Load(), "c's are gone")
			require.Equal(t, 3, g.Stats().Users)
			gone(t, g, "c", c)
			require.Equal(t, series("m", 7), behind(t, g, "a", a), "and leaves again, so that now b is the first")

			feedAll(g, "stay", P2, series("n", 6))
			pass(time.Second)
			require.EqualValues(t, 19, g.history.kept.Load(), "b's are gone")
			gone(t, g, "b", b)
			require.Equal(t, series("m", 7), behind(t, g, "a", a))
			require.Equal(t, append(series("m", 6), series("n", 6)...), stay.ids())
		})
	})
	t.Run("with nobody offline, who gets a message loses the oldest of its lane", func(t *testing.T) {
		bubble(t, bounded(24), func(t *testing.T, g *Gateway) {
			s, _ := join(t, g, "s", "u")
			other, _ := join(t, g, "other", "v")
			from, all := s.Cursor(), other.Cursor()
			feedAll(g, "v", P1, series("m", 8))
			feedAll(g, "u", P1, series("m", 8))
			feedAll(g, "u", P2, series("m", 3))
			feedAll(g, "u", P3, series("m", 5))
			pass(time.Second)
			require.EqualValues(t, 24, g.history.kept.Load())
			feedAll(g, "u", P3, []string{"m6"})
			pass(time.Second)
			require.EqualValues(t, 24, g.history.kept.Load())
			require.Equal(t, 16, heldOf(g, "u"))
			require.Equal(t, series("m", 8), behind(t, g, "v", all), "nobody else lost anything")
			gone(t, g, "u", from)
			from.seqs[P3]++
			require.Len(t, behind(t, g, "u", from), 16)
		})
	})
	t.Run("a user who gets a message is forgotten as well if it is the first", func(t *testing.T) {
		bubble(t, bounded(4), func(t *testing.T, g *Gateway) {
			from := offline(t, g, "u")
			feedAll(g, "u", P1, series("m", 5))
			pass(time.Second)
			require.Zero(t, g.history.kept.Load())
			require.Zero(t, g.Stats().Users)
			gone(t, g, "u", from)
		})
	})
	t.Run("a million accounts that reconnect cannot take more", func(t *testing.T) {
		const total = 1000
		bubble(t, bounded(total), func(t *testing.T, g *Gateway) {
			for i := range sized(1_000_000, 50_000) {
				user := fmt.Sprint("u", i)
				from := register(t, g, user, Cursor{})
				feed(g, note(fmt.Sprint("m", i), user, P1))
				if i%97 == 0 {
					synctest.Wait()
					register(t, g, user, from)
				}
				if kept := g.history.kept.Load(); kept > total+1 {
					t.Fatalf("%d messages are kept, over %d", kept, total)
				}
			}
			synctest.Wait()
			var sum, rings int
			for _, u := range g.roster.users.Range {
				sum += u.history.len()
				for p := range u.history.lanes {
					rings += len(u.history.lanes[p].ring)
				}
			}
			require.EqualValues(t, sum, g.history.kept.Load(), "the count is right")
			require.LessOrEqual(t, sum, total)
			require.LessOrEqual(t, rings, 4*total, "four places for one message at worst")
			require.LessOrEqual(t, g.Stats().Users, total+1)
			pass(2 * time.Minute)
			forgotten(t, g)
		})
	})
}

// register is offline behind a cursor, for what happens very often: its sink
// keeps nothing, because nothing comes.
func register(t testing.TB, g *Gateway, userID string, after Cursor) Cursor {
	s, err := g.RegisterSession(SessionConfig{ID: "s", UserID: userID, Channels: []Channel{}, Sink: SinkFunc(nil), After: after})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	return s.Cursor()
}

// forgotten requires that the indexes of g hold no user any more.
func forgotten(t testing.TB, g *Gateway) {
	t.Helper()
	st := g.Stats()
	require.Zero(t, st.Users)
	require.Zero(t, st.Sessions)
	require.Zero(t, g.history.kept.Load())
	require.Equal(t, userList{}, g.roster.offline)
	require.Equal(t, sessionList{}, g.roster.sessions)
	require.Equal(t, never, g.roster.forgets.Load(), "the reader waits for nobody")
}

func TestHistoryTTL(t *testing.T) {
	minute := small
	minute.HistoryTTL = time.Minute
	inBubble(t, "the route stays exactly that long after the user's last session has ended", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, keeping(minute))
		s, _ := join(t, g, "s", "u")
		other, _ := join(t, g, "other", "u")
		pass(time.Hour)
		require.NoError(t, s.Close())
		pass(time.Hour)
		require.Equal(t, 1, b.Stats().Users, "the last session counts")
		require.NoError(t, other.Close())
		pass(time.Minute - time.Nanosecond)
		publishTo(t, b, "u", P0, "m1")
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Lanes[P0].Routed)
		require.EqualValues(t, 1, g.history.kept.Load())
		require.Equal(t, 1, g.Stats().Users)
		require.Zero(t, g.Stats().Sessions)
		require.Zero(t, g.Stats().Lanes[P0].NoSession)

		s, sink := join(t, g, "s", "u", after(other.Cursor()))
		pass(time.Hour)
		require.Equal(t, []string{"m1"}, sink.ids(), "it was in time")
		require.NoError(t, s.Close())
		pass(time.Minute - time.Nanosecond)
		require.Equal(t, 1, b.Stats().Users, "the time begins again")
		pass(time.Nanosecond)
		publishTo(t, b, "u", P0, "m2")
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Lanes[P0].Unrouted)
		forgotten(t, g)
		require.Zero(t, b.Stats().Users)
		gone(t, g, "u", s.Cursor())
		join(t, g, "anew", "u")
	})
	t.Run("of ten thousand users each is forgotten when its own time has come", func(t *testing.T) {
		bubble(t, minute, func(t *testing.T, g *Gateway) {
			const users = 10_000
			for i := range users {
				user := fmt.Sprint("u", i)
				register(t, g, user, Cursor{})
				feed(g, note(fmt.Sprint("m", i), user, P1))
				if i%100 == 99 {
					nap(time.Millisecond)
				}
			}
			synctest.Wait()
			require.EqualValues(t, users, g.history.kept.Load())
			pass(time.Minute - 101*time.Millisecond)
			for i := range 100 {
				pass(time.Millisecond)
				require.Equal(t, users-100*(i+1), g.Stats().Users)
				require.EqualValues(t, users-100*(i+1), g.history.kept.Load())
			}
			forgotten(t, g)
		})
	})
	t.Run("a user who is back is not forgotten with those who left later", func(t *testing.T) {
		bubble(t, minute, func(t *testing.T, g *Gateway) {
			from := offline(t, g, "a")
			offline(t, g, "b")
			pass(time.Second)
			_, sink := join(t, g, "s", "a", after(from))
			pass(time.Minute - time.Second)
			require.Equal(t, 1, g.Stats().Users)
			feedAll(g, "a", P0, series("m", 2))
			pass(time.Hour)
			require.Equal(t, series("m", 2), sink.ids())
		})
	})
	t.Run("a cursor that is refused does not make it longer", func(t *testing.T) {
		bubble(t, minute, func(t *testing.T, g *Gateway) {
			bad := offline(t, g, "u")
			bad.epoch++
			pass(time.Minute - time.Nanosecond)
			gone(t, g, "u", bad)
			pass(time.Nanosecond)
			require.Zero(t, g.Stats().Users)
		})
	})
}

func TestHistoryEnds(t *testing.T) {
	t.Run("with a Gap, at once", func(t *testing.T) {
		bubble(t, small, func(t *testing.T, g *Gateway) {
			offline(t, g, "u")
			join(t, g, "v", "v")
			feedAll(g, "u", P1, series("m", 3))
			feedAll(g, "v", P1, series("m", 3))
			feed(g, notice("n", P1))
			pass(time.Second)
			require.EqualValues(t, 6, g.history.kept.Load())
			g.Gap()
			pass(time.Second)
			require.Zero(t, g.history.kept.Load())
			require.Zero(t, g.history.all.len())
			pass(2 * time.Minute)
			forgotten(t, g)
		})
	})
	t.Run("with a Gap that overtakes a message on its way into it", func(t *testing.T) {
		g := newGateway(t, "g", keeping(small))
		offline(t, g, "u")
		u, _ := g.roster.users.Load("u") // as the reader does, just before
		g.Gap()
		g.history.append(u.history, NewMessage(note("m", "u", P1)))
		require.Zero(t, g.history.kept.Load())
	})
	inBubble(t, "with Shutdown, and nobody stays in the indexes", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, keeping(small))
		offline(t, g, "u")
		join(t, g, "v", "v")
		publishTo(t, b, "u", P1, "m")
		synctest.Wait()
		drain(t, b)
		drain(t, g)
		require.Zero(t, b.Stats().Users)
		forgotten(t, g)
	})
}

// BenchmarkHistoryMemory tells what a message that is kept costs, all included:
// the notification, its strings, its encoding if there is one, and its place.
func BenchmarkHistoryMemory(b *testing.B) {
	for _, users := range []int{100, 10_000, 100_000} {
		for _, encoded := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d users, JSON %t", users, encoded), func(b *testing.B) {
				const kept = 100_000
				for b.Loop() {
					g := newGateway(b, "g", GatewayConfig{HistoryMessages: 1024, HistoryTotal: kept})
					ids := series("user_", users)
					for _, id := range ids {
						register(b, g, id, Cursor{})
					}
					before := heap()
					for i := range kept {
						n := New(ids[i%users], AccountUpdate{UserID: ids[i%users], Balance: 1e6, Available: 9e5, Margin: 1e5, Timestamp: int64(i)}, "AccountSystem")
						m := NewMessage(n)
						if encoded {
							m.JSON()
						}
						g.reader.accept(m.priority, m)
					}
					require.EqualValues(b, kept, g.history.kept.Load())
					b.ReportMetric(float64(heap()-before)/kept, "B/msg")
					runtime.KeepAlive(g)
				}
			})
		}
	}
}

// BenchmarkHistoryOff and BenchmarkHistoryOn stand side by side: the same way,
// from New to the JSON in the sink, for 10,000 users.
func BenchmarkHistoryOff(b *testing.B) { benchmarkHistory(b, 0) }
func BenchmarkHistoryOn(b *testing.B)  { benchmarkHistory(b, 1024) }

func benchmarkHistory(b *testing.B, messages int) {
	br := newBroker(b, BrokerConfig{StallTimeout: time.Hour})
	g := newGateway(b, "g", GatewayConfig{HistoryMessages: messages})
	require.NoError(b, br.RegisterGateway(g))
	runGateway(b, g)
	runBroker(b, br)
	var size atomic.Int64
	users := series("user_", 10_000)
	for _, u := range users {
		_, err := g.RegisterSession(SessionConfig{ID: u, UserID: u, Sink: SinkFunc(func(_ context.Context, batch []*Message) error {
			n := 0
			for _, m := range batch {
				n += len(m.JSON())
			}
			size.Add(int64(n))
			return nil
		})})
		require.NoError(b, err)
	}
	b.ReportAllocs()
	began, n := time.Now(), 0
	for b.Loop() {
		if err := br.PublishWait(context.Background(), New(users[n*7919%len(users)], AccountUpdate{Balance: 1e6, Available: 9e5, Margin: 1e5}, "AccountSystem")); err != nil {
			b.Fatal(err)
		}
		n++
	}
	drain(b, br)
	drain(b, g)
	b.ReportMetric(float64(time.Since(began))/float64(n), "ns/msg") // until the last one is in its sink
	b.ReportMetric(float64(size.Load())/float64(n), "JSON-B/msg")
}
