package notification

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// A bareSession is a Session whose Gateway has a roster and a pool, but no reader
// and no pushers: the test does what those would.
type bareSession struct {
	*Session
	t testing.TB
	p *pusher
}

func newBareSession(t testing.TB, cfg GatewayConfig) bareSession {
	require.NoError(t, cfg.setDefaults())
	g := &Gateway{cfg: cfg, log: cfg.Logger, life: newLifecycle(), wake: make(chan struct{}, 1), shards: make([]shard, 1)}
	g.roster = newRoster(&g.cfg, nil, g.wake)
	g.reader = newReader(g)
	g.pool = newPushPool(0, 1, debtLimit(cfg.OutboxMessages), g.wake)
	p := &pusher{g: g, shard: &g.shards[0]}
	g.pool.join([]*pusher{p}, now())
	sc := SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(nil)}
	s := newSession(g, &sc)
	require.NoError(t, s.register(&sc))
	return bareSession{s, t, p}
}

// send offers a new message of a lane to the session.
func (s bareSession) send(p Priority) offer { return s.offer(NewMessage(note("m", "u", p)), 0, now()) }

// fill sends messages of a lane until there is no room.
func (s bareSession) fill(p Priority) {
	for i := 0; s.send(p) != offerNoRoom; i++ {
		require.Less(s.t, i, 100_000, "no end of it")
	}
}

// push takes the session off the pool, where it must be, and begins a Push.
func (s bareSession) push() delivery {
	require.Same(s.t, s.Session, s.g.pool.next(s.p))
	return s.begin(s.p, now())
}

// back ends a Push that took its batch.
func (s bareSession) back() {
	require.NoError(s.t, s.finish())
	s.release()
}

// release gives the pusher back, as if it had come for more.
func (s bareSession) release() {
	s.g.pool.stop(s.p)
	s.pusher = nil
}

// debts returns what the session owes according to the pool.
func (s bareSession) debts() (n [NumPriorities]int) {
	for p := range n {
		n[p] = int(s.g.pool.debt[p].Load())
	}
	return n
}

func TestSessionStates(t *testing.T) {
	inBubble(t, "a session goes from idle to queued, running, and back", func(t *testing.T) {
		s := newBareSession(t, GatewayConfig{})
		require.Equal(t, sessionIdle, s.state)
		require.Equal(t, offerFirst, s.send(P3))
		require.Equal(t, sessionIdle, s.state, "it waits for company")
		require.Equal(t, offerFirst, s.send(P0))
		require.Equal(t, sessionQueued, s.state)
		require.Equal(t, P0, s.lane)
		d := s.push()
		require.Equal(t, sessionRunning, s.state)
		require.Equal(t, actPush, d.act)
		require.Equal(t, [NumPriorities]int{P0: 1, P3: 1}, d.counts)
		s.back()
		require.Equal(t, sessionIdle, s.state)
	})
	inBubble(t, "what has come during Push and is due makes it queued again", func(t *testing.T) {
		s := newBareSession(t, GatewayConfig{})
		s.send(P0)
		s.push()
		s.send(P2)
		nap(50 * time.Millisecond)
		s.back()
		require.Equal(t, sessionQueued, s.state)
		require.Equal(t, P2, s.lane)
		require.Equal(t, [NumPriorities]int{P2: 1}, s.debts())
	})
	inBubble(t, "what has come during Push and waits for company does not", func(t *testing.T) {
		s := newBareSession(t, GatewayConfig{})
		s.send(P0)
		s.push()
		s.send(P2)
		nap(50*time.Millisecond - 1)
		s.back()
		require.Equal(t, sessionIdle, s.state)
		s.expire(P2, now())
		require.Equal(t, sessionIdle, s.state)
		nap(1)
		s.expire(P2, now())
		require.Equal(t, sessionQueued, s.state)
	})
	inBubble(t, "a higher lane promotes a queued one", func(t *testing.T) {
		s := newBareSession(t, GatewayConfig{BatchSize: 1})
		s.send(P3)
		require.Equal(t, P3, s.lane)
		s.send(P1)
		require.Equal(t, P1, s.lane)
		s.send(P2)
		require.Equal(t, P1, s.lane)
		require.Equal(t, [NumPriorities]int{P1: 1, P2: 1, P3: 1}, s.debts(), "each message in its own lane")
	})
	for name, end := range map[string]func(s bareSession){
		"idle":    func(bareSession) {},
		"queued":  func(s bareSession) { s.send(P0) },
		"running": func(s bareSession) { s.send(P0); s.push(); s.send(P3) },
	} {
		inBubble(t, "one that ends while it is "+name+" is queued to be closed, owes nothing and takes nothing", func(t *testing.T) {
			s := newBareSession(t, GatewayConfig{})
			end(s)
			was := s.state
			ended, orphaned := s.end(ErrSessionClosed, ErrSessionClosed)
			require.True(t, ended)
			require.False(t, orphaned, "there are pushers")
			require.Equal(t, [NumPriorities]int{}, s.debts())
			require.Zero(t, s.out.total)
			require.Equal(t, ErrSessionClosed, context.Cause(s.ctx))
			require.True(t, s.g.roster.empty())
			ended, _ = s.end(ErrGap, ErrGap)
			require.False(t, ended, "it has ended")
			require.Equal(t, offerNotMeant, s.send(P0))
			if was != sessionRunning {
				require.Equal(t, actNone, s.push().act)
			}
			require.Equal(t, ErrSessionClosed, s.finish())
			done := s.Done()
			s.closed()
			<-done
			require.Equal(t, sessionClosed, s.state)
			<-s.Done()
			require.Equal(t, ErrSessionClosed, s.Err())
		})
	}
	inBubble(t, "one that ends while there are no pushers is its caller's to close", func(t *testing.T) {
		for _, queued := range []bool{false, true} {
			s := newBareSession(t, GatewayConfig{})
			s.g.pool.opened = false
			if queued {
				s.send(P0)
			}
			ended, orphaned := s.end(ErrSessionClosed, ErrSessionClosed)
			require.True(t, ended)
			require.True(t, orphaned)
			require.True(t, s.g.pool.quiet())
			require.Equal(t, [NumPriorities]int{}, s.debts())
		}
	})
}

func TestSessionAgainstModel(t *testing.T) {
	for policy, name := range map[SlowPolicy]string{SlowClose: "SlowClose", SlowDropOldest: "SlowDropOldest"} {
		inBubble(t, "under random offers, Pushes, delays and ends it does what the rules say/"+name, func(t *testing.T) {
			const bound, size = 8, 5
			random := rand.New(rand.NewPCG(seed(t), 0))
			cfg := GatewayConfig{OutboxMessages: bound, BatchSize: size, SlowPolicy: policy, SlowAfter: 20 * time.Millisecond}
			var slow, dropped, noRoom int
			for range sized(60, 15) {
				s := newBareSession(t, cfg)
				s.Unsubscribe(ChannelRisk)
				var model naiveOutbox
				var deadline [NumPriorities]int64
				var ts turns
				state, since, waited, lost := sessionIdle, int64(0), 0, uint64(0)
				due := func() bool {
					for p := P1; p <= P3; p++ {
						if len(model[p]) > 0 && deadline[p] <= now() {
							return true
						}
					}
					return len(model[P0]) > 0 || model.total() >= size
				}
				// Some sinks are quick, some slow, some do not come back.
				pushing, returning := 1+random.IntN(20), random.IntN(20)
				for range 600 {
					switch op := random.IntN(100); {
					case op < 50:
						p := Priority(random.IntN(4))
						n := note("m", "u", p)
						if op == 0 {
							n.Payload = RiskAlert{}
							require.Equal(t, offerFiltered, s.offer(NewMessage(n), 0, now()))
							break
						}
						m := NewMessage(n)
						got := s.offer(m, 0, now())
						lower := model.total() - len(model[P0])
						if p != P0 && lower >= 8*bound && !(policy == SlowDropOldest && state == sessionRunning) {
							require.Equal(t, offerNoRoom, got)
							noRoom++
							break
						}
						before := model.total()
						want := offerTaken
						if len(model[p]) == 0 {
							want = offerFirst
							deadline[p] = now() + int64(s.g.cfg.MaxDelay[p])
						}
						model[p] = append(model[p], sequenced{0, m})
						if state == sessionIdle && due() {
							state = sessionQueued
						}
						tooMuchP0 := p == P0 && len(model[P0]) > 8*bound
						tooLong := state == sessionRunning && model.total() > bound && now()-since >= int64(20*time.Millisecond)
						switch {
						case policy == SlowClose && (tooMuchP0 || tooLong):
							want = offerSlow
							slow++
						case policy == SlowDropOldest && (tooMuchP0 || state == sessionRunning && before >= max(bound, waited)):
							low := P3
							for len(model[low]) == 0 {
								low--
							}
							model[low] = model[low][1:]
							lost++
							dropped++
						}
						require.Equal(t, want, got)
					case op < 50+pushing && state == sessionQueued:
						d := s.push()
						require.Equal(t, actPush, d.act)
						var counts [NumPriorities]int
						for p := range model {
							counts[p] = len(model[p])
						}
						counts = ts.share(counts, size)
						require.Equal(t, counts, d.counts)
						var want []*Message
						for p, n := range counts {
							for _, m := range model[p][:n] {
								want = append(want, m.m)
							}
							model[p] = model[p][n:]
						}
						require.Equal(t, want, d.messages)
						state, since, waited = sessionRunning, now(), model.total()
					case op >= 70 && op < 70+returning && state == sessionRunning:
						s.back()
						if state = sessionIdle; due() {
							state = sessionQueued
						}
					case op < 95:
						nap(time.Duration(random.IntN(int(3 * time.Millisecond))))
					default:
						s.expire(P2, now())
						if state == sessionIdle && due() {
							state = sessionQueued
						}
					}
					require.Equal(t, state, s.state)
					model.same(t, &s.out)
					require.Equal(t, lost, s.Dropped())
					owed := [NumPriorities]int{}
					if state == sessionQueued {
						owed = s.out.counts()
						require.Equal(t, s.out.highest(), s.lane)
					}
					require.Equal(t, owed, s.debts(), "what waits of queued sessions, and of no others")
				}
				s.end(ErrSessionClosed, ErrSessionClosed)
				require.Equal(t, [NumPriorities]int{}, s.debts())
				noChunks(t, &s.out)
			}
			t.Logf("%d times slow, %d dropped, %d times no room", slow, dropped, noRoom)
			require.NotZero(t, noRoom)
			require.Equal(t, policy == SlowClose, slow > 0)
			require.Equal(t, policy == SlowDropOldest, dropped > 0)
		})
	}
}

func TestIsSlow(t *testing.T) {
	cfg := GatewayConfig{BatchSize: 2, OutboxMessages: 4, SlowAfter: time.Second}
	// running returns a session that waits for a Push, and n messages behind it.
	running := func(t *testing.T, cfg GatewayConfig, n int) bareSession {
		s := newBareSession(t, cfg)
		s.send(P0)
		s.push()
		for i := range n {
			require.NotEqual(t, offerSlow, s.send(Priority(i%4)))
		}
		return s
	}
	inBubble(t, "with more than OutboxMessages behind a Push that has lasted SlowAfter, and not 1 ns before", func(t *testing.T) {
		s := running(t, cfg, 5)
		nap(time.Second - 1)
		require.False(t, s.slow(now()))
		require.Equal(t, offerTaken, s.send(P1))
		nap(1)
		require.True(t, s.slow(now()), "the sweep finds it")
		require.Equal(t, offerSlow, s.send(P1), "and so does what arrives")
	})
	inBubble(t, "OutboxMessages behind it are not too many", func(t *testing.T) {
		s := running(t, cfg, 3)
		nap(time.Hour)
		require.Equal(t, offerTaken, s.send(P1))
		require.False(t, s.slow(now()))
	})
	inBubble(t, "not while it waits for a pusher, however long", func(t *testing.T) {
		s := newBareSession(t, cfg)
		for range 32 {
			require.NotEqual(t, offerSlow, s.send(P1))
		}
		nap(time.Hour)
		require.False(t, s.slow(now()))
		s.push()
		require.False(t, s.slow(now()), "the Push has just begun")
	})
	inBubble(t, "not one whose Pushes return, however much waits", func(t *testing.T) {
		s := running(t, cfg, 30)
		for range 14 {
			nap(time.Second - 1)
			require.False(t, s.slow(now()))
			s.back()
			s.push()
		}
	})
	inBubble(t, "not one that has ended", func(t *testing.T) {
		s := running(t, cfg, 5)
		nap(time.Hour)
		s.end(ErrSessionClosed, ErrSessionClosed)
		require.False(t, s.slow(now()))
	})
	inBubble(t, "with SlowDropOldest too much P0 costs the lowest lane, while it waits for a pusher as well", func(t *testing.T) {
		drops := cfg
		drops.SlowPolicy = SlowDropOldest
		s := newBareSession(t, drops)
		s.send(P3)
		for range 32 {
			s.send(P0)
		}
		require.Zero(t, s.Dropped())
		require.Equal(t, [NumPriorities]int{P0: 32, P3: 1}, s.debts())
		require.Equal(t, offerTaken, s.send(P0))
		require.Equal(t, uint64(1), s.Dropped())
		require.Equal(t, [NumPriorities]int{P0: 33}, s.out.counts())
		require.Equal(t, s.out.counts(), s.debts())
		s.send(P0)
		require.Equal(t, [NumPriorities]int{P0: 33}, s.debts())
	})
	inBubble(t, "never with SlowDropOldest", func(t *testing.T) {
		drops := cfg
		drops.SlowPolicy = SlowDropOldest
		s := running(t, drops, 5)
		nap(time.Hour)
		require.False(t, s.slow(now()))
		require.NotEqual(t, offerSlow, s.send(P0))
		require.Equal(t, 4, s.out.total)
	})
}

func TestSessionHold(t *testing.T) {
	ms := time.Millisecond
	cfg := GatewayConfig{BatchSize: 2, OutboxMessages: 4, SlowAfter: time.Hour}
	// holding returns a session with a Push that runs, no room, and a hold of P1.
	holding := func(t *testing.T, cfg GatewayConfig) bareSession {
		s := newBareSession(t, cfg)
		s.send(P0)
		s.push()
		s.fill(P1)
		require.Equal(t, 8*int64(cfg.OutboxMessages), s.out.lower())
		s.startHold(P1, now())
		return s
	}
	// stays requires that a hold goes on, and when to look at it again.
	stays := func(t *testing.T, s bareSession, contested bool, left time.Duration) {
		t.Helper()
		over, slow, l := s.held(P1, now(), contested)
		require.False(t, over)
		require.False(t, slow)
		require.Equal(t, left, l)
	}
	isSlow := func(t *testing.T, s bareSession, contested bool) {
		t.Helper()
		over, slow, _ := s.held(P1, now(), contested)
		require.False(t, over)
		require.True(t, slow)
	}
	inBubble(t, "without room a message changes nothing, and P0 has room of its own", func(t *testing.T) {
		s := holding(t, cfg)
		before := s.out.counts()
		for p := P1; p <= P3; p++ {
			require.Equal(t, offerNoRoom, s.send(p))
		}
		require.Equal(t, before, s.out.counts())
		for range 32 {
			require.NotEqual(t, offerNoRoom, s.send(P0))
		}
		require.Equal(t, offerSlow, s.send(P0), "as much as the others together, and no more")
	})
	inBubble(t, "it is over when OutboxMessages of room are free", func(t *testing.T) {
		s := holding(t, cfg)
		for _, over := range []bool{false, true} { // two are taken each time
			s.back()
			s.push()
			got, slow, _ := s.held(P1, now(), false)
			require.Equal(t, over, got)
			require.False(t, slow)
		}
		require.Zero(t, s.hold.lanes)
	})
	inBubble(t, "a Push that begins rouses the reader, and so does the end of the session", func(t *testing.T) {
		s := holding(t, cfg)
		roused(s.g.wake)
		s.back()
		s.push()
		require.True(t, roused(s.g.wake))
		s.end(ErrSessionClosed, ErrSessionClosed)
		require.True(t, roused(s.g.wake))
		over, slow, _ := s.held(P1, now(), true)
		require.True(t, over)
		require.False(t, slow)
	})
	inBubble(t, "others are held up for 50 ms of the sink's own time, then the session is slow", func(t *testing.T) {
		s := holding(t, cfg)
		stays(t, s, true, 50*ms+1)
		nap(20 * ms)
		stays(t, s, true, 30*ms+1)
		nap(30 * ms)
		stays(t, s, true, 1)
		nap(1)
		isSlow(t, s, true)
	})
	inBubble(t, "the time of Pushes that have returned counts, the time between them does not", func(t *testing.T) {
		s := holding(t, GatewayConfig{BatchSize: 1, OutboxMessages: 30, SlowAfter: time.Hour})
		for i := range 5 {
			nap(10 * ms) // in a Push
			s.back()
			nap(100 * ms) // it waits for a pusher
			s.push()
			stays(t, s, true, time.Duration(40-10*i)*ms+1)
		}
		nap(1)
		isSlow(t, s, true)
	})
	inBubble(t, "each second has 50 ms of its own", func(t *testing.T) {
		s := holding(t, cfg)
		for range 5 {
			nap(50 * ms)
			stays(t, s, true, 1)
			s.back()
			nap(950 * ms)
			s.push()
			stays(t, s, true, 50*ms+1)
			s.fill(P1)
		}
		nap(50*ms + 1)
		isSlow(t, s, true)
	})
	inBubble(t, "while nobody else wants to pass nothing is charged, but for SlowAfter", func(t *testing.T) {
		patient := cfg
		patient.SlowAfter = time.Second
		s := holding(t, patient)
		stays(t, s, false, time.Second)
		nap(999 * ms)
		stays(t, s, false, ms)
		nap(ms)
		isSlow(t, s, false)
	})
	inBubble(t, "with SlowDropOldest there is always room while a Push runs", func(t *testing.T) {
		drops := cfg
		drops.SlowPolicy = SlowDropOldest
		s := newBareSession(t, drops)
		s.fill(P1)
		require.Equal(t, sessionQueued, s.state)
		require.Zero(t, s.Dropped())
		s.startHold(P1, now())
		nap(time.Hour)
		over, slow, left := s.held(P1, now(), true)
		require.False(t, over)
		require.False(t, slow, "no Push runs")
		require.Equal(t, time.Duration(math.MaxInt64), left)
		s.push()
		over, slow, _ = s.held(P1, now(), true)
		require.True(t, over)
		require.False(t, slow)
	})
}

func TestSessionOfAGateway(t *testing.T) {
	inBubble(t, "it tells who and since when it is", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		began := time.Now()
		s, _ := join(t, g, "s", "u")
		require.Equal(t, "s", s.ID())
		require.Equal(t, "u", s.UserID())
		require.True(t, began.Equal(s.ConnectedAt()))
		require.True(t, began.Equal(s.LastActive()))
		require.Zero(t, s.Dropped())
		require.NoError(t, s.Err())
		pass(time.Second)
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		require.True(t, began.Add(time.Second).Equal(s.LastActive()), "a Push that returned nil")
		pass(time.Second)
		s.Touch()
		require.True(t, began.Add(2*time.Second).Equal(s.LastActive()))
		pass(time.Second)
		publishTo(t, b, "u", P0, "b")
		synctest.Wait()
		require.True(t, began.Add(2*time.Second).Equal(s.LastActive()), "Touch alone, from the first on")
		require.True(t, began.Equal(s.ConnectedAt()))
	})
	inBubble(t, "Close ends it once, drops what waits and counts it, and is nil however often it is called", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, sink := join(t, g, "s", "u")
		other, _ := join(t, g, "t", "u")
		publishTo(t, b, "u", P3, "a", "b")
		synctest.Wait()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				require.NoError(t, s.Close())
				_ = g.UnregisterSession("s")
			})
		}
		wg.Wait()
		<-s.Done()
		require.Equal(t, ErrSessionClosed, s.Err())
		n, reason := sink.ended()
		require.Equal(t, 1, n)
		require.Equal(t, ErrSessionClosed, reason)
		require.Empty(t, sink.ids())
		require.Equal(t, GatewayLane{Received: 2, Enqueued: 4, DroppedEnded: 2, Pending: 2}, lane(g, P3))
		require.Equal(t, uint64(1), g.Stats().Ended.Closed)
		require.NoError(t, other.Err())
		require.Equal(t, 1, b.Stats().Users)
		require.NoError(t, s.Close(), "long after")
		s.Touch()
		s.Subscribe(ChannelRisk)
		require.Equal(t, ErrSessionClosed, s.Err())
	})
	inBubble(t, "ctx of a running Push ends when the session does, with its reason as the cause", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		var cause error
		s, sink := join(t, g, "s", "u", hooked(func(ctx context.Context, _ []*Message) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}))
		publishTo(t, b, "u", P0, "a")
		pass(time.Minute)
		require.NoError(t, g.UnregisterSession("s"))
		<-s.Done()
		require.Equal(t, ErrSessionClosed, cause)
		require.Equal(t, []string{"a"}, sink.ids())
		require.Equal(t, GatewayLane{Received: 1, Enqueued: 1, Taken: 1}, lane(g, P0), "what a Push took is taken, even if its session ended meanwhile")
	})
	inBubble(t, "Close waits for nobody, not for a Push that does not return either", func(t *testing.T) {
		held := newGate(t)
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, _ := join(t, g, "s", "u", hooked(held.deaf), func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		publishTo(t, b, "u", P0, "a")
		synctest.Wait()
		began := time.Now()
		require.NoError(t, s.Close())
		require.Zero(t, time.Since(began))
		require.Equal(t, ErrSessionClosed, s.Err(), "it has ended all the same")
		held.open()
		<-s.Done()
	})
	inBubble(t, "Done waits for Close, the ID does not", func(t *testing.T) {
		held := newGate(t)
		_, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, _ := join(t, g, "s", "u", func(_ *SessionConfig, sink *ledger) { sink.shut = func(error) { <-held.ch } })
		require.NoError(t, s.Close())
		synctest.Wait()
		select {
		case <-s.Done():
			t.Fatal("Close has not returned")
		default:
		}
		join(t, g, "s", "u")
		held.open()
		<-s.Done()
		<-s.Done()
	})
	t.Run("of a Gateway that does not run it ends as well", func(t *testing.T) {
		noLeaks(t)
		g := newGateway(t, "g", GatewayConfig{})
		for _, end := range []func(s *Session){
			func(s *Session) { require.NoError(t, s.Close()) },
			func(s *Session) { require.NoError(t, g.UnregisterSession(s.ID())) },
			func(*Session) { g.Gap() },
			func(*Session) { require.NoError(t, g.Shutdown(t.Context())) },
		} {
			s, sink := join(t, g, "s", "u")
			end(s)
			<-s.Done()
			n, reason := sink.ended()
			require.Equal(t, 1, n)
			require.Equal(t, s.Err(), reason)
		}
		require.Equal(t, SessionEnds{Closed: 2, Gap: 1, Shutdown: 1}, g.Stats().Ended)
	})
}

func TestSessionMemory(t *testing.T) {
	t.Run("a Session stays within the 480-byte size class", func(t *testing.T) {
		if strconv.IntSize != 64 {
			t.Skip("the claim is about 64 bits")
		}
		require.LessOrEqual(t, unsafe.Sizeof(Session{}), uintptr(480))
	})
	t.Run("100,000 idle sessions, indexes included, take at most 1 KiB each and no goroutine", func(t *testing.T) {
		if underRace {
			t.Skip("the race detector's own memory is many times that")
		}
		const n = 100_000
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		sink := SinkFunc(func(context.Context, []*Message) error { return nil })
		idle, before := runtime.NumGoroutine(), heap()
		for i := range n {
			_, err := g.RegisterSession(SessionConfig{ID: fmt.Sprintf("session-%08d", i), UserID: fmt.Sprintf("user-%08d", i), Sink: sink})
			require.NoError(t, err)
		}
		for p := P0; p <= P3; p++ { // each has had something, and has nothing any more
			require.NoError(t, b.Publish(notice(p.String(), p)))
		}
		eventually(t, "all have all four", func() bool {
			for p := P0; p <= P3; p++ {
				if lane(g, p).Taken != n {
					return false
				}
			}
			return true
		})
		each := (heap() - before) / n
		t.Logf("%d bytes each", each)
		require.LessOrEqual(t, each, int64(1024))
		require.LessOrEqual(t, goroutines(idle+8), idle+8, "those that the pool had more go again")
		runtime.KeepAlive(g)
	})
}
