package notification

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

// A bareRoster is a roster without a reader, a pool or a Broker.
type bareRoster struct {
	*roster
	t testing.TB
}

func newBareRoster(t testing.TB, cfg GatewayConfig) bareRoster {
	return bareRoster{newRoster(&cfg, nil, make(chan struct{}, 1)), t}
}

// enter registers a new session of a user.
func (r bareRoster) enter(id, userID string) *Session {
	s := &Session{id: id, cancel: func(error) {}}
	require.NoError(r.t, r.register(s, userID, Cursor{}))
	return s
}

// enterMany registers n sessions, each of a user of its own.
func (r bareRoster) enterMany(n int) []*Session {
	all := make([]*Session, n)
	for i, id := range series("s", n) {
		all[i] = r.enter(id, id)
	}
	return all
}

// finish returns whom a walk still meets.
func (r bareRoster) finish(w *walk) (met []*Session) {
	var buf [sliceSize]*Session
	for {
		part := r.step(w, buf[:])
		met = append(met, part...)
		if len(part) < sliceSize {
			return met
		}
	}
}

func TestRoster(t *testing.T) {
	t.Run("a session is found by ID and user from register to remove", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		require.True(t, r.empty())
		s := r.enter("s", "u")
		found, ok := r.session("s")
		require.True(t, ok)
		require.Same(t, s, found)
		require.True(t, r.knows("u"))
		require.False(t, r.empty())
		r.remove(s, ErrSessionClosed)
		_, ok = r.session("s")
		require.False(t, ok)
		require.False(t, r.knows("u"))
		require.True(t, r.empty())
		require.Equal(t, sessionList{}, r.sessions)
		require.Zero(t, r.users.Size())
	})
	t.Run("few returns a user's sessions in the order of registration, if they fit", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		var want []*Session
		for i, id := range series("s", 10) {
			if s := r.enter(id, []string{"u", "v"}[i%2]); i%2 == 0 {
				want = append(want, s)
			}
		}
		r.remove(want[2], ErrSessionClosed)
		want = slices.Delete(want, 2, 3)
		u, _ := r.users.Load("u")
		got, ok := u.few(make([]*Session, 4))
		require.True(t, ok)
		require.Equal(t, want, got)
		_, ok = u.few(make([]*Session, 3))
		require.False(t, ok)
	})
	t.Run("excess names the oldest session of a user who has too many", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{MaxSessionsPerUser: 2})
		oldest := r.enter("a", "u")
		r.enter("b", "u")
		u, _ := r.users.Load("u")
		require.Nil(t, r.excess(u))
		r.enter("c", "u")
		require.Same(t, oldest, r.excess(u))
		r.remove(oldest, ErrSessionReplaced)
		require.Nil(t, r.excess(u))
	})
	t.Run("a closed one takes nobody", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		r.close()
		require.ErrorIs(t, r.register(&Session{id: "s"}, "u", Cursor{}), ErrClosed)
		require.False(t, r.knows("u"))
	})
	t.Run("each reason has its counter", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		for i, reason := range []error{
			ErrSessionClosed, ErrSessionExpired, ErrSessionReplaced, ErrSlowConsumer, ErrGap, ErrGatewayClosed,
			errors.New("broken pipe"), fmt.Errorf("%w: Push", ErrSinkPanic), fmt.Errorf("not ours: %w", ErrGap),
		} {
			r.remove(r.enter(strconv.Itoa(i), "u"), reason)
		}
		var st GatewayStats
		r.stats(&st)
		require.Equal(t, SessionEnds{Closed: 1, Expired: 1, Replaced: 1, Slow: 1, Gap: 1, Shutdown: 1, Failed: 3}, st.Ended)
	})
	t.Run("tell reports once that somebody came", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		require.False(t, r.tell())
		r.enter("s", "u")
		require.True(t, r.tell())
		require.False(t, r.tell())
	})
}

func TestWalk(t *testing.T) {
	t.Run("it meets everybody once, in the order of registration", func(t *testing.T) {
		for _, n := range []int{0, 1, sliceSize - 1, sliceSize, sliceSize + 1, 3*sliceSize + 5} {
			r := newBareRoster(t, GatewayConfig{})
			all := r.enterMany(n)
			var w walk
			r.begin(&w)
			require.Equal(t, len(all), len(r.finish(&w)))
			r.begin(&w)
			require.Equal(t, append([]*Session(nil), all...), r.finish(&w))
			require.Empty(t, r.walks)
		}
	})
	t.Run("a start that is not the first goes round", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		all := r.enterMany(150)
		for _, at := range []int{0, 1, 63, 64, 65, 149} {
			r.first = all[at]
			var w walk
			r.beginAnywhere(&w)
			require.Equal(t, slices.Concat(all[at:], all[:at]), r.finish(&w))
		}
	})
	t.Run("it leaves out who ended before its turn and who came after it began", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		all := r.enterMany(150)
		r.first = all[100]
		var w walk
		r.beginAnywhere(&w)
		var buf [sliceSize]*Session
		require.Equal(t, slices.Concat(all[100:], all[:14]), r.step(&w, buf[:]))
		gone := []int{100, 13, 14, 15, 50, 99} // the start, the last met, the next, the one after it, one between, the last
		for _, i := range gone {
			r.remove(all[i], ErrSessionClosed)
		}
		r.enter("late", "late")
		var want []*Session
		for i := 14; i < 100; i++ {
			if !slices.Contains(gone, i) {
				want = append(want, all[i])
			}
		}
		require.Equal(t, want, r.finish(&w))
	})
	t.Run("it ends when everybody has ended", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		all := r.enterMany(150)
		r.first = all[149]
		var w walk
		r.beginAnywhere(&w)
		for _, s := range all {
			r.remove(s, ErrGap)
		}
		r.enterMany(3)
		require.Empty(t, r.finish(&w))
		require.Empty(t, r.walks)
	})
	t.Run("one that is ended before its end is forgotten", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		r.enterMany(150)
		var w, other walk
		r.begin(&w)
		r.begin(&other)
		var buf [sliceSize]*Session
		r.step(&w, buf[:])
		r.endWalk(&w)
		require.Equal(t, []*walk{&other}, r.walks)
		for range r.iterate(r.begin) {
			break
		}
		require.Equal(t, []*walk{&other}, r.walks)
	})
}

func TestWalksAgainstModel(t *testing.T) {
	// An expected walk is whom it has still to meet.
	type expected struct {
		walk
		round bool
		start uint64              // the serial of the first that it met
		last  uint64              // and of the last
		left  map[*Session]string // present at the beginning, alive, not yet met
	}
	t.Run("walks of every kind meet each session once that was there and still is, whoever comes and goes meanwhile", func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed(t), 0))
		r := newBareRoster(t, GatewayConfig{})
		var living []*Session
		var walks []*expected
		var buf [sliceSize]*Session
		serial := 0
		begin := func() {
			e := &expected{left: make(map[*Session]string)}
			user := ""
			switch kind := random.IntN(3); kind {
			case 0:
				r.begin(&e.walk)
			case 1:
				e.round = true
				r.beginAnywhere(&e.walk)
			default:
				user = fmt.Sprintf("u%d", random.IntN(3))
				u, ok := r.users.Load(user)
				if !ok {
					return
				}
				r.beginOfUser(&e.walk, u)
			}
			for _, s := range living {
				if user == "" || s.user.id == user {
					e.left[s] = s.id
				}
			}
			walks = append(walks, e)
		}
		finished := 0
		for range sized(30_000, 6_000) {
			switch op := random.IntN(20); {
			case op < 7 && len(living) < 400:
				serial++
				living = append(living, r.enter(strconv.Itoa(serial), fmt.Sprintf("u%d", random.IntN(3))))
			case op < 13 && len(living) > 0:
				// At the ends, around the walks, and anywhere.
				i := random.IntN(len(living))
				switch random.IntN(4) {
				case 0:
					i = 0
				case 1:
					i = len(living) - 1
				case 2:
					if len(walks) > 0 {
						if next := walks[random.IntN(len(walks))].next; next != nil {
							i = slices.Index(living, next)
						}
					}
				}
				s := living[i]
				living = slices.Delete(living, i, i+1)
				r.remove(s, ErrSessionClosed)
				for _, e := range walks {
					delete(e.left, s)
				}
			case op < 15 && len(walks) < 5:
				begin()
			case len(walks) > 0:
				i := random.IntN(len(walks))
				e := walks[i]
				size := 1 + random.IntN(sliceSize)
				part := r.step(&e.walk, buf[:size])
				for _, s := range part {
					_, ok := e.left[s]
					require.True(t, ok, "met twice, or not meant")
					delete(e.left, s)
					if e.start == 0 {
						e.start = s.serial
					} else if e.round && s.serial < e.start {
						require.True(t, e.last >= e.start || s.serial > e.last, "the order of registration, once round")
					} else {
						require.Greater(t, s.serial, e.last, "the order of registration")
						require.False(t, e.round && e.last < e.start, "beyond the start")
					}
					e.last = s.serial
				}
				if len(part) < size {
					require.Empty(t, e.left, "not met")
					walks = slices.Delete(walks, i, i+1)
					finished++
				}
			}
			require.Len(t, r.walks, len(walks))
			require.Equal(t, len(living), r.sessions.n)
		}
		require.Greater(t, finished, 100)
	})
}

func TestWalkWhileSessionsComeAndGo(t *testing.T) {
	t.Run("with sessions that come and go on other goroutines a walk meets once those that stay", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			r := newBareRoster(t, GatewayConfig{})
			var stay []*Session
			for i := range 300 {
				s := r.enter(strconv.Itoa(i), "stays")
				if i%2 == 0 {
					stay = append(stay, s)
				}
			}
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for w := range 2 {
				wg.Go(func() {
					var s *Session
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						if s != nil {
							r.remove(s, ErrSessionClosed)
						}
						s = r.enter(fmt.Sprintf("%d-%d", w, i), fmt.Sprintf("comes and goes %d", w))
					}
				})
			}
			for range sized(2_000, 300) {
				var w walk
				r.beginAnywhere(&w)
				counts := make(map[*Session]int)
				for _, s := range r.finish(&w) {
					counts[s]++
					require.Equal(t, 1, counts[s])
				}
				for _, s := range stay {
					require.Equal(t, 1, counts[s])
				}
			}
			close(stop)
			wg.Wait()
		})
	})
}

func TestRandomStart(t *testing.T) {
	// even requires that each of n was chosen about as often, with six standard
	// deviations to spare.
	even := func(t *testing.T, counts map[string]int, n, draws int) {
		t.Helper()
		mean := float64(draws) / float64(n)
		for id, got := range counts {
			require.InDelta(t, mean, got, 6*math.Sqrt(mean), id)
		}
		require.Len(t, counts, n, "each at least once")
	}
	for _, n := range []int{2, 10, sliceSize, 2*sliceSize + 20} {
		t.Run(fmt.Sprintf("over many walks each of %d sessions is as often the first", n), func(t *testing.T) {
			r := newBareRoster(t, GatewayConfig{})
			r.enterMany(n)
			counts, behind := make(map[string]int), make(map[string]int)
			draws := 200 * n
			last := uint64(0)
			for range draws {
				var w walk
				r.beginAnywhere(&w)
				s := r.finish(&w)[0]
				counts[s.id]++
				behind[strconv.FormatUint((s.serial+uint64(n)-last)%uint64(n), 10)]++
				last = s.serial
			}
			even(t, counts, n, draws)
			even(t, behind, n, draws) // from one walk to the next
		})
	}
	t.Run("so is each for the first walk after registration", func(t *testing.T) {
		counts := make(map[string]int)
		for range 2000 {
			r := newBareRoster(t, GatewayConfig{})
			r.enterMany(10)
			var w walk
			r.beginAnywhere(&w)
			counts[r.finish(&w)[0].id]++
		}
		even(t, counts, 10, 2000)
	})
	t.Run("the end of the first leaves the walk to the others", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		all := r.enterMany(10)
		for len(all) > 1 {
			i := slices.Index(all, r.first)
			if i < 0 {
				i = len(all) - 1
				require.Nil(t, r.first, "never one that has ended")
			}
			r.remove(all[i], ErrSessionClosed)
			all = slices.Delete(all, i, i+1)
			var w walk
			r.beginAnywhere(&w)
			require.ElementsMatch(t, all, r.finish(&w))
		}
	})
}

func TestRegisterSession(t *testing.T) {
	t.Run("what cannot be is ErrInvalid, names the field and registers nothing", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		sink := SinkFunc(func(context.Context, []*Message) error { return nil })
		for field, cfg := range map[string]SessionConfig{
			"SessionConfig.ID is empty":            {UserID: "u", Sink: sink},
			"SessionConfig.ID has 257":             {ID: strings.Repeat("x", 257), UserID: "u", Sink: sink},
			"SessionConfig.UserID is empty":        {ID: "s", Sink: sink},
			"SessionConfig.UserID has 257":         {ID: "s", UserID: strings.Repeat("x", 257), Sink: sink},
			"SessionConfig.UserID is AllUsers":     {ID: "s", UserID: AllUsers, Sink: sink},
			"SessionConfig.Sink":                   {ID: "s", UserID: "u"},
			"SessionConfig.Channels[1]":            {ID: "s", UserID: "u", Sink: sink, Channels: []Channel{ChannelRisk, 6}},
			"SessionConfig.Channels[0] Channel(0)": {ID: "s", UserID: "u", Sink: sink, Channels: []Channel{0}},
		} {
			s, err := g.RegisterSession(cfg)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, field)
			require.Nil(t, s)
		}
		require.Zero(t, g.Stats().Sessions)
		require.Zero(t, g.Stats().Users)
	})
	inBubble(t, "after Shutdown began it is ErrClosed", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		require.NoError(t, g.Shutdown(t.Context()))
		_, err := g.RegisterSession(SessionConfig{ID: "a", UserID: "u", Sink: newLedger(t, g)})
		require.ErrorIs(t, err, ErrClosed)
	})
	inBubble(t, "what is published after it returned arrives", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		for i := range 1000 {
			user := strconv.Itoa(i)
			_, sink := join(t, g, user, user)
			publishTo(t, b, user, Priority(i%4), "m"+user)
			synctest.Wait()
			require.Len(t, sink.ids(), 1)
		}
	})
}

func TestSessionIDs(t *testing.T) {
	inBubble(t, "an ID that lives is ErrSessionExists and the first session lives on", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessionsPerUser: 1})
		s, sink := join(t, g, "s", "u")
		for _, user := range []string{"u", "another"} {
			_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: user, Sink: newLedger(t, g)})
			require.ErrorIs(t, err, ErrSessionExists)
		}
		require.NoError(t, s.Err())
		publishTo(t, b, "u", P0, "a")
		publishTo(t, b, "another", P0, "b")
		synctest.Wait()
		require.Equal(t, []string{"a"}, sink.ids())
		require.Equal(t, uint64(1), b.Stats().Lanes[P0].Unrouted, "the refused one left no route")
	})
	inBubble(t, "the ID of a session that has ended is free at once, even while its Push runs", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		held := newGate(t)
		first, old := join(t, g, "s", "u", hooked(held.deaf))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, first.Close())
		second, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.Equal(t, []string{"b"}, sink.ids())
		require.Equal(t, ErrSessionClosed, first.Err())
		require.NoError(t, second.Err())
		found, ok := g.Session("s")
		require.True(t, ok)
		require.Same(t, second, found)
		held.open()
		<-first.Done()
		require.Equal(t, []string{"a"}, old.ids())
		require.NoError(t, second.Err(), "the end of the first is not the end of the second")
	})
}

func TestSessionLimits(t *testing.T) {
	inBubble(t, "one over MaxSessionsPerUser ends the user's oldest with ErrSessionReplaced", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessionsPerUser: 2})
		oldest, sinkA := join(t, g, "a", "u")
		older, _ := join(t, g, "b", "u")
		other, _ := join(t, g, "o", "other")
		newest, _ := join(t, g, "c", "u")
		<-oldest.Done()
		require.Equal(t, ErrSessionReplaced, oldest.Err())
		n, reason := sinkA.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionReplaced, reason)
		for _, s := range []*Session{older, other, newest} {
			require.NoError(t, s.Err())
		}
		require.Equal(t, uint64(1), g.Stats().Ended.Replaced)
		require.Equal(t, 3, g.Stats().Sessions)
		require.Equal(t, 2, g.Stats().Users)
		require.Equal(t, 2, b.Stats().Users)
	})
	inBubble(t, "over MaxSessions it is ErrTooManySessions, until one ends", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessions: 2})
		s, _ := join(t, g, "a", "u")
		join(t, g, "b", "v")
		_, err := g.RegisterSession(SessionConfig{ID: "c", UserID: "w", Sink: newLedger(t, g)})
		require.ErrorIs(t, err, ErrTooManySessions)
		require.Equal(t, 2, b.Stats().Users, "and no route is left")
		require.NoError(t, s.Close())
		join(t, g, "c", "w")
	})
	inBubble(t, "a user may replace his own session at MaxSessions", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{MaxSessions: 1, MaxSessionsPerUser: 1})
		s, _ := join(t, g, "a", "u")
		join(t, g, "b", "u")
		require.Equal(t, ErrSessionReplaced, s.Err())
		require.Equal(t, 1, g.Stats().Sessions)
	})
	t.Run("of many that register a user's sessions at once as many live as may", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			g := newGateway(t, "g", GatewayConfig{MaxSessionsPerUser: 3})
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := range 50 {
						_, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("%d-%d", w, i), UserID: "u", Sink: SinkFunc(nil)})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			st := g.Stats()
			require.Equal(t, 3, st.Sessions)
			require.Equal(t, SessionEnds{Replaced: 397}, st.Ended)
			discard(t, g)
		})
	})
}

func TestSessions(t *testing.T) {
	list := func(seq func(yield func(*Session) bool)) (all []string) {
		for s := range seq {
			all = append(all, s.ID())
		}
		return all
	}
	inBubble(t, "Session, Sessions and UserSessions tell of those that live, in the order of registration", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for i, id := range series("s", 6) {
			join(t, g, id, []string{"u", "v"}[i%2])
		}
		require.Equal(t, series("s", 6), list(g.Sessions()))
		require.Equal(t, []string{"s1", "s3", "s5"}, list(g.UserSessions("u")))
		for _, id := range []string{"s1", "s6", "s4"} { // the first, the last, one between
			require.NoError(t, g.UnregisterSession(id))
			require.ErrorIs(t, g.UnregisterSession(id), ErrUnknownSession)
			_, ok := g.Session(id)
			require.False(t, ok)
		}
		require.Equal(t, []string{"s2", "s3", "s5"}, list(g.Sessions()))
		require.Equal(t, []string{"s2"}, list(g.UserSessions("v")))
		require.Empty(t, list(g.UserSessions("nobody")))
	})
	inBubble(t, "who iterates holds no lock: sessions may be closed meanwhile", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for i, id := range series("s", 200) {
			join(t, g, id, []string{"u", "v"}[i%2])
		}
		for s := range g.Sessions() {
			require.NoError(t, s.Close())
			break
		}
		for s := range g.UserSessions("u") {
			require.NoError(t, s.Close())
		}
		require.Len(t, list(g.Sessions()), 100)
		for s := range g.Sessions() {
			require.NoError(t, s.Close())
		}
		require.Empty(t, list(g.Sessions()))
		require.Equal(t, SessionEnds{Closed: 200}, g.Stats().Ended)
	})
}

// agrees requires that users are routed to g exactly while they have a session
// there or were subscribed, and that the indexes of its roster tell the same.
func agrees(t testing.TB, b *Broker, g *Gateway) {
	t.Helper()
	r := g.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	b.routes.mu.Lock()
	defer b.routes.mu.Unlock()
	want := make(map[string]bool)
	listed, ofUsers := 0, 0
	for s := r.sessions.first; s != nil; s = s.links[ofAll].next {
		listed++
		want[s.user.id] = true
		if r.byID[s.id] != s {
			t.Errorf("session %q is in the list, not in the index", s.id)
		}
		if u, ok := r.users.Load(s.user.id); !ok || u != s.user {
			t.Errorf("session %q is of a user who is not there", s.id)
		}
	}
	r.users.Range(func(id string, u *user) bool {
		n := 0
		for s := u.sessions.first; s != nil; s = s.links[ofUser].next {
			n++
			if s.user != u || r.byID[s.id] != s {
				t.Errorf("session %q is not user %q's", s.id, id)
			}
		}
		if n == 0 || n != u.sessions.n {
			t.Errorf("user %q has %d sessions, and says %d", id, n, u.sessions.n)
		}
		ofUsers += n
		return true
	})
	if listed != len(r.byID) || listed != r.sessions.n || listed != ofUsers {
		t.Errorf("sessions: %d in the list, which says %d, %d in the index, %d of users", listed, r.sessions.n, len(r.byID), ofUsers)
	}
	if n := r.users.Size(); n != len(want) {
		t.Errorf("%d users, %d of them with a session", n, len(want))
	}
	if r.receiver == nil {
		return
	}
	for user := range r.receiver.explicit {
		want[user] = true
	}
	routed := 0
	b.routes.users.Range(func(user string, route userRoute) bool {
		for _, to := range route.targets {
			if to == r.receiver {
				if routed++; !want[user] {
					t.Errorf("user %q is routed for no reason", user)
				}
			}
		}
		if u := route.user; slices.Contains(route.targets, r.receiver) && u == nil && want[user] && r.knows(user) {
			t.Errorf("the route of user %q does not name him", user)
		} else if u != nil && u.home.Load() == r {
			if now, _ := r.users.Load(user); now != u {
				t.Errorf("the route of user %q names one that is forgotten", user)
			}
		}
		return true
	})
	if routed != len(want) {
		t.Errorf("%d users routed, should be %d", routed, len(want))
	}
}

func TestAddressee(t *testing.T) {
	known := func(g *Gateway, userID string) *user {
		u, _ := g.roster.users.Load(userID)
		return u
	}
	t.Run("a route names the user as one of its Gateways knows him, if one does", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		g, h := newGateway(t, "g", GatewayConfig{}), newGateway(t, "h", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runGateway(t, g)
		require.NoError(t, b.Subscribe("u", "g"))
		require.Nil(t, b.routes.of("u").user, "g does not know him")
		first, _ := join(t, g, "1", "u")
		require.Same(t, first.user, b.routes.of("u").user)
		join(t, h, "1", "u")
		require.NoError(t, b.RegisterGateway(h))
		runGateway(t, h)
		require.Same(t, known(h, "u"), b.routes.of("u").user)
		require.NoError(t, first.Close())
		require.Same(t, known(h, "u"), b.routes.of("u").user, "of which g has nothing to say")
		second, _ := join(t, g, "2", "u")
		require.NotSame(t, first.user, second.user)
		require.Same(t, second.user, b.routes.of("u").user)
		require.NoError(t, second.Close())
		require.Same(t, known(h, "u"), b.routes.of("u").user, "g has forgotten him")
		third, _ := join(t, g, "3", "u")
		require.Same(t, third.user, b.routes.of("u").user)
		require.NoError(t, b.Unregister("g"))
		require.Same(t, known(h, "u"), b.routes.of("u").user)
		require.NoError(t, b.RegisterGateway(g)) // which ends its sessions by a Gap
		fourth, _ := join(t, g, "4", "u")
		require.Same(t, fourth.user, b.routes.of("u").user)
		require.NoError(t, b.Unregister("h"))
		require.Same(t, fourth.user, b.routes.of("u").user)
		require.NoError(t, b.RegisterGateway(h))
		require.NoError(t, b.Subscribe("v", "h"))
		require.NoError(t, b.Subscribe("v", "h"))
		require.Nil(t, b.routes.of("v").user)
		drain(t, b)
	})
	t.Run("who is named and known is not looked up", func(t *testing.T) {
		r := newBareRoster(t, GatewayConfig{})
		u := r.enter("s", "u").user
		m := NewMessage(note("m", "u", P1))
		require.Same(t, u, r.addressee(m))
		r.users.Delete("u") // so that looking would find nobody
		require.Nil(t, r.addressee(m))
		m.user = u
		require.Same(t, u, r.addressee(m))
	})
	t.Run("a Message that is kept keeps a user, and no Gateway", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		kept := make(chan *Message, 2)
		require.NoError(t, b.SubscribeGlobal("keep", kept, Wait))
		var m *Message
		gone := func() weak.Pointer[Gateway] {
			g := newGateway(t, "g", GatewayConfig{HistoryMessages: 1024})
			require.NoError(t, b.RegisterGateway(g))
			done := start(context.Background(), g) // and not runGateway, whose Cleanup keeps g
			for !begun(g.life) {
				runtime.Gosched()
			}
			_, err := g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(func(context.Context, []*Message) error { return nil })})
			require.NoError(t, err)
			require.NoError(t, b.Publish(notice("all", P1)))
			publishTo(t, b, "u", P1, "m")
			<-kept
			m = <-kept // g has it too: global subscribers come last
			drain(t, g)
			require.NoError(t, <-done)
			return weak.Make(g)
		}()
		require.NotNil(t, m.user)
		require.Zero(t, m.user.history.store.all.len())
		for range 100 {
			if gone.Value() != nil {
				runtime.GC()
			}
		}
		require.Nil(t, gone.Value())
		runtime.KeepAlive(m)
		drain(t, b)
	})
	t.Run("who was forgotten on the way is looked up again", func(t *testing.T) {
		g := newGateway(t, "g", GatewayConfig{})
		runGateway(t, g)
		first, missed := join(t, g, "1", "u")
		require.NoError(t, first.Close())
		_, sink := join(t, g, "2", "u")
		m := NewMessage(note("m", "u", P1))
		m.user = first.user // as it was when the dispatcher looked
		g.Inbox()[P1] <- m
		drain(t, g)
		require.Equal(t, []string{"m"}, sink.ids())
		require.Empty(t, missed.ids())
	})
	t.Run("a Message that goes on to another Gateway finds the user there", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		other := newGateway(t, "other", GatewayConfig{})
		runGateway(t, other)
		_, here := join(t, g, "1", "u")
		_, there := join(t, other, "1", "u")
		passed := make(chan *Message, 1)
		require.NoError(t, b.SubscribeGlobal("pass", passed, Wait))
		publishTo(t, b, "u", P1, "m")
		m := <-passed
		require.Same(t, known(g, "u"), m.user)
		other.Inbox()[P1] <- m
		drain(t, other) // while g still knows him
		drain(t, b)
		drain(t, g)
		require.Equal(t, []string{"m"}, here.ids())
		require.Equal(t, []string{"m"}, there.ids())
	})
}

func TestRoutesOfSessions(t *testing.T) {
	t.Run("a user is routed exactly while there is a session or a subscription, however they race", func(t *testing.T) {
		rounds := sized(1_000_000, 30_000) / 3
		t.Logf("%d rounds with each number of threads", rounds)
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			sink := SinkFunc(func(context.Context, []*Message) error { return nil })
			register := func(id string) *Session {
				s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: sink})
				require.NoError(t, err)
				return s
			}
			// routed requires that there is a route or not, and of what Subscribe knows.
			routed := func(want, explicit bool) {
				t.Helper()
				targets := b.routes.of("u").targets
				require.Equal(t, want, len(targets) == 1)
				require.LessOrEqual(t, len(targets), 1)
				r, _ := b.routes.receiver("g")
				b.routes.mu.Lock()
				defer b.routes.mu.Unlock()
				_, ok := r.explicit["u"]
				require.Equal(t, explicit, ok)
			}
			last := register("0")
			var begin, end sync.WaitGroup
			work := make([]chan func(), 2)
			for i := range work {
				work[i] = make(chan func(), 1)
				end.Go(func() {
					for f := range work[i] {
						f()
						begin.Done()
					}
				})
			}
			for i := range rounds {
				explicit := i%4 < 2
				begin.Add(2)
				ending := last
				work[0] <- func() { ending.Close() }
				work[1] <- func() {
					if explicit {
						_ = b.Subscribe("u", "g")
					} else {
						_ = b.Unsubscribe("u", "g")
					}
				}
				if i%3 == 0 { // nobody comes in its place
					begin.Wait()
					routed(explicit, explicit) // without a session
					last = register(strconv.Itoa(i + 1))
				} else {
					last = register(strconv.Itoa(i + 1))
					begin.Wait()
				}
				routed(true, explicit)
			}
			for _, w := range work {
				close(w)
			}
			end.Wait()
			last.Close()
			_ = b.Unsubscribe("u", "g")
			agrees(t, b, g)
			require.Zero(t, b.Stats().Users)
		})
	})
}

func TestIndexesAgree(t *testing.T) {
	t.Run("Subscribe, Unsubscribe and Close racing pushes leave indexes and gauges that agree", func(t *testing.T) {
		withProcs(t, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{BatchSize: 3, OutboxMessages: 10_000, MaxDelay: lanes(time.Duration(-1))})
			s := seed(t)
			var wg sync.WaitGroup
			for w := range 4 {
				random := rand.New(rand.NewPCG(s, uint64(w)))
				wg.Go(func() {
					for i := range sized(3_000, 500) {
						user := fmt.Sprintf("u%d", random.IntN(5))
						switch random.IntN(6) {
						case 0:
							_, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("%d-%d", w, i), UserID: user, Sink: newLedger(t, g)})
							if err != nil {
								t.Error(err)
							}
						case 1:
							for s := range g.UserSessions(user) {
								s.Close()
								break
							}
						case 2:
							for s := range g.UserSessions(user) {
								s.Subscribe(ChannelTrade)
								s.SubscribeAll()
							}
						case 3:
							_ = b.Subscribe(user, "g")
						case 4:
							_ = b.Unsubscribe(user, "g")
						case 5:
							_ = b.Publish(note(fmt.Sprintf("m%d-%d", w, i), user, Priority(random.IntN(4))))
							_ = b.Publish(notice(fmt.Sprintf("n%d-%d", w, i), Priority(random.IntN(4))))
						}
					}
				})
			}
			wg.Wait()
			agrees(t, b, g)
			drain(t, b)
			st := g.Stats()
			require.Equal(t, g.roster.serial, uint64(st.Sessions)+st.Ended.Closed+st.Ended.Slow)
		})
	})
}

func TestGatewayOfManyBrokers(t *testing.T) {
	inBubble(t, "a Gateway moves from one Broker to another, and its sessions learn that they missed something", func(t *testing.T) {
		b1, b2, g := newBroker(t, BrokerConfig{}), newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b1.RegisterGateway(g))
		runBroker(t, b1)
		runBroker(t, b2)
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		require.NoError(t, b1.Subscribe("v", "g"))
		require.ErrorIs(t, b2.RegisterGateway(g), ErrInvalid, "it belongs to another")
		publishTo(t, b1, "u", P0, "one")
		synctest.Wait()
		require.NoError(t, b1.Unregister("g"))
		require.Zero(t, b1.Stats().Users)
		require.NoError(t, s.Err())
		publishTo(t, b1, "u", P0, "nowhere")
		require.NoError(t, b2.RegisterGateway(g))
		require.Equal(t, ErrGap, s.Err())
		require.Zero(t, b2.Stats().Users, "subscriptions were the first Broker's")
		_, again := join(t, g, "s", "u")
		join(t, g, "t", "w")
		require.Equal(t, 2, b2.Stats().Users)
		publishTo(t, b2, "u", P0, "two")
		synctest.Wait()
		require.Equal(t, []string{"one"}, sink.ids())
		require.Equal(t, []string{"two"}, again.ids())
		agrees(t, b2, g)
		require.Zero(t, b1.Stats().Users)
		require.Equal(t, uint64(1), b1.Stats().Lanes[P0].Unrouted)
		require.Equal(t, uint64(1), receiverStats(t, b2, "g").Handed)
		drain(t, b1)
		drain(t, b2)
		drain(t, g)
		conserved(t, b1)
		conserved(t, b2)
		require.Equal(t, b1.Stats().Departed.Handed+b2.Stats().Departed.Handed, lane(g, P0).Received)
	})
	inBubble(t, "a Gateway that waited with its sessions for its first Broker has missed nothing", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		runBroker(t, b)
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		require.NoError(t, b.RegisterGateway(g))
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.NoError(t, s.Err())
		require.Equal(t, []string{"a"}, sink.ids())
		agrees(t, b, g)
	})
	inBubble(t, "Unregister of a Gateway ends nobody's session, RegisterGateway anew ends all with ErrGap", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		runBroker(t, b)
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		publishTo(t, b, "u", P3, "on its way")
		synctest.Wait()
		require.NoError(t, b.Unregister("g"))
		require.ErrorIs(t, b.Unregister("g"), ErrUnknownReceiver)
		pass(time.Second)
		require.NoError(t, s.Err())
		require.Equal(t, []string{"on its way"}, sink.ids())
		g.Inbox()[P0] <- NewMessage(note("without a Broker", "u", P0))
		synctest.Wait()
		require.Equal(t, []string{"on its way", "without a Broker"}, sink.ids())
		require.NoError(t, b.RegisterGateway(g))
		require.Equal(t, ErrGap, s.Err())
		_, sink = join(t, g, "s", "u")
		publishTo(t, b, "u", P0, "again")
		synctest.Wait()
		require.Equal(t, []string{"again"}, sink.ids())
	})
}

func TestRosterForgets(t *testing.T) {
	t.Run("a million users come and go, at most a hundred at once, and leave nothing", func(t *testing.T) {
		n := sized(1_000_000, 50_000)
		t.Logf("%d users", n)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{MaxDelay: lanes(time.Duration(-1))})
		var taken atomic.Int64
		sink := SinkFunc(func(_ context.Context, ms []*Message) error { taken.Add(int64(len(ms))); return nil })
		come := func(from, to int) {
			var there [100]*Session
			for i := from; i < to; i++ {
				if s := there[i%100]; s != nil {
					s.Close()
				}
				s, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("s%d", i), UserID: fmt.Sprintf("u%d", i), Sink: sink})
				require.NoError(t, err)
				there[i%100] = s
				if i%10 == 0 {
					require.NoError(t, b.PublishWait(t.Context(), note(fmt.Sprintf("m%d", i), fmt.Sprintf("u%d", i-i%7), Priority(i/10%4))))
				}
			}
			for _, s := range there {
				s.Close()
			}
			eventually(t, "every Close", func() bool {
				g.pool.mu.Lock()
				defer g.pool.mu.Unlock()
				return g.pool.quietLocked() && g.pool.idle == g.pool.size && b.Stats().Lanes[P0].Queued == 0
			})
		}
		come(0, 20_000) // the dedup window is full, and the tables have their size
		before := heap()
		come(20_000, 20_000+n)
		eventually(t, "nothing is queued", func() bool {
			s := b.Stats()
			return s.Lanes[P0].Queued+s.Lanes[P1].Queued+s.Lanes[P2].Queued+s.Lanes[P3].Queued == 0
		})
		grown := heap() - before
		t.Logf("%d bytes more", grown)
		require.Less(t, grown, int64(8<<20))
		require.NotZero(t, taken.Load())
		agrees(t, b, g)
		st := g.Stats()
		require.Zero(t, st.Sessions)
		require.Zero(t, st.Users)
		require.Zero(t, b.Stats().Users)
		require.Equal(t, uint64(n+20_000), st.Ended.Closed)
	})
}

func TestManySessionsOfOneUser(t *testing.T) {
	t.Run("registering and ending four times as many costs four times as much", func(t *testing.T) {
		noLeaks(t)
		// What is counted is memory that was allocated: unlike time it is the same
		// on a busy machine, and whoever copies lists pays for it.
		cost := func(n int) (bytes uint64) {
			_, g := pair(t, BrokerConfig{}, GatewayConfig{SessionTimeout: -1})
			nothing := SinkFunc(func(context.Context, []*Message) error { return nil })
			names := series("s", n)
			sessions := make([]*Session, n)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for i, id := range names {
				s, err := g.RegisterSession(SessionConfig{ID: id, UserID: "u", Sink: nothing})
				require.NoError(t, err)
				sessions[i] = s
			}
			for i := 0; i < n; i += 2 {
				require.NoError(t, sessions[(i*7919)%n].Close())
			}
			g.Gap()
			require.Zero(t, g.Stats().Sessions)
			require.Zero(t, g.Stats().Users)
			runtime.ReadMemStats(&after)
			require.Equal(t, uint64(n), g.Stats().Ended.Closed+g.Stats().Ended.Gap)
			return after.TotalAlloc - before.TotalAlloc
		}
		cost(100) // what is made once
		small, big := cost(1_000), cost(4_000)
		require.Less(t, float64(big)/float64(small), 8.0, "%d bytes for 1,000, %d for 4,000", small, big)
	})
}

func TestRegisterBesideTraffic(t *testing.T) {
	t.Run("a user with sessions registers more while something comes that their filter rejects", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{HistoryMessages: 2000, MaxSessionsPerUser: 8})
		none := func(cfg *SessionConfig, _ *ledger) { cfg.Channels = []Channel{} }
		join(t, g, "first", "u", none)
		var over atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; !over.Load(); i++ {
				_ = b.Publish(note(strconv.Itoa(i), "u", P1))
				if i%16 == 0 {
					runtime.Gosched()
				}
			}
		})
		for _, id := range series("s", 1_000) {
			join(t, g, id, "u", none)
		}
		over.Store(true)
		finished(t, "the publisher", &wg)
	})
}

func TestIterationLeavesOutTheEnded(t *testing.T) {
	inBubble(t, "a session that has ended when its turn comes is not yielded", func(t *testing.T) {
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		for _, id := range series("s", 5) {
			join(t, g, id, "u")
		}
		var got []string
		for s := range g.Sessions() {
			got = append(got, s.ID())
			_ = g.UnregisterSession("s2")
		}
		require.Equal(t, []string{"s1", "s3", "s4", "s5"}, got)
		got = nil
		for s := range g.UserSessions("u") {
			got = append(got, s.ID())
			_ = g.UnregisterSession("s4")
		}
		require.Equal(t, []string{"s1", "s3", "s5"}, got)
	})
}
