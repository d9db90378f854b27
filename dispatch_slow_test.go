package notification

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A progress is what became of a receiver's messages.
type progress struct {
	stuck           bool
	gaps            int32
	handed, dropped uint64
}

func progressOf(t testing.TB, b *Broker, s *station) progress {
	t.Helper()
	r := receiverStats(t, b, s.id)
	return progress{r.Stuck, s.gaps.Load(), r.Handed, r.Dropped}
}

// StallTimeout is a second, the default, where nothing else is said.
func TestStallBudget(t *testing.T) {
	inBubble(t, "a receiver that takes a message per 0.9 s is stuck when that sums up to 1 s, and no longer when half empty", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("", 8)...)
		pass(900 * time.Millisecond)
		require.Equal(t, progress{handed: 4}, progressOf(t, b, s), "the fifth has waited for 0.9 s")
		require.Equal(t, "1", (<-s.in[P1]).n.ID)
		pass(100*time.Millisecond - 1)
		require.Equal(t, progress{handed: 5}, progressOf(t, b, s), "the sixth for almost 0.1 s")
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 5, dropped: 3}, progressOf(t, b, s), "6, and 7 and 8 without waiting")

		require.Equal(t, "2", (<-s.in[P1]).n.ID)
		publishTo(t, b, "u", P1, "9")
		synctest.Wait()
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 5, dropped: 4}, progressOf(t, b, s), "three of four are more than half")
		require.Equal(t, "3", (<-s.in[P1]).n.ID)
		publishTo(t, b, "u", P1, "10")
		synctest.Wait()
		require.Equal(t, progress{gaps: 1, handed: 6, dropped: 4}, progressOf(t, b, s), "two of four are half")

		publishTo(t, b, "u", P1, "11", "12") // 11 fits, 12 has the whole budget again
		pass(time.Second - 1)
		require.Equal(t, progress{gaps: 1, handed: 7, dropped: 4}, progressOf(t, b, s))
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 2, handed: 7, dropped: 5}, progressOf(t, b, s), "another episode, another Gap")
		require.Equal(t, strings.Fields("4 5 10 11"), ids(s.poll()))
		conserved(t, b)
	})

	inBubble(t, "a receiver that takes nothing, then everything, loses what came in between and is told once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 2), "u")
		runBroker(t, b)
		for episode := range int32(5) {
			for i := range 20 {
				publishTo(t, b, "u", P2, fmt.Sprint(episode, "-", i))
			}
			pass(time.Minute)
			require.Equal(t, episode+1, s.gaps.Load())
			require.True(t, receiverStats(t, b, "r").Stuck)
			require.Equal(t, []string{fmt.Sprint(episode, "-0"), fmt.Sprint(episode, "-1")}, ids(s.poll()))
		}
		publishTo(t, b, "u", P2, "x")
		synctest.Wait()
		require.Equal(t, progress{gaps: 5, handed: 11, dropped: 90}, progressOf(t, b, s))
		conserved(t, b)
	})

	inBubble(t, "a receiver that pauses for 0.9 s and then catches up is never stuck, however often", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		for i := range 100 {
			publishTo(t, b, "u", P1, series(fmt.Sprint(i, "-"), 5)...)
			pass(900 * time.Millisecond)
			n := len(s.poll())
			synctest.Wait()
			require.Equal(t, 5, n+len(s.poll()))
		}
		require.Equal(t, progress{handed: 500}, progressOf(t, b, s))
	})

	inBubble(t, "pauses add up until the inbox is half empty", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("", 20)...)
		for range 9 {
			pass(100 * time.Millisecond)
			<-s.in[P1]
		}
		pass(100*time.Millisecond - 1)
		require.Equal(t, progress{handed: 13}, progressOf(t, b, s))
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 13, dropped: 7}, progressOf(t, b, s))
	})

	inBubble(t, "a receiver without buffers has the budget as well, and is no longer stuck when somebody receives", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 0), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		pass(900 * time.Millisecond)
		<-s.in[P1]
		pass(100*time.Millisecond - 1)
		require.Equal(t, progress{handed: 1}, progressOf(t, b, s))
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 1, dropped: 2}, progressOf(t, b, s))
		stop := s.consume(func(*Message) {})
		synctest.Wait()
		publishTo(t, b, "u", P1, "4")
		synctest.Wait()
		require.Equal(t, progress{gaps: 1, handed: 2, dropped: 2}, progressOf(t, b, s))
		stop()
	})

	inBubble(t, "before a receiver is stuck there is a last try that waits for nothing", func(t *testing.T) {
		var stations []*station
		b := newBroker(t, BrokerConfig{Logger: slog.New(onRecord(func(r slog.Record) {
			if r.Level >= slog.LevelWarn { // the first of the two is stuck: now both have room
				for _, s := range stations {
					s.poll()
				}
			}
		}))})
		stations = []*station{route(t, b, newStation("r1", 1), "u"), route(t, b, newStation("r2", 1), "v")}
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2")
		publishTo(t, b, "v", P2, "3", "4")
		pass(time.Minute)
		x, y := receiverStats(t, b, "r1"), receiverStats(t, b, "r2")
		require.EqualValues(t, 1, x.Dropped+y.Dropped, "of the one, whichever it was")
		require.EqualValues(t, 3, x.Handed+y.Handed)
		require.EqualValues(t, 1, stations[0].gaps.Load()+stations[1].gaps.Load())
	})

	inBubble(t, "a log tells of each episode once, when it begins and when it ends", func(t *testing.T) {
		var log strings.Builder
		b := newBroker(t, BrokerConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		for i := range 3 {
			publishTo(t, b, "u", P1, series(fmt.Sprint(i, "-"), 9)...)
			pass(time.Minute)
			s.poll()
		}
		require.Equal(t, 3, strings.Count(log.String(), "receiver is stuck"))
		require.Equal(t, 2, strings.Count(log.String(), "receiver recovered"))
	})
}

func TestStallBudgetOfALane(t *testing.T) {
	inBubble(t, "the lanes of a receiver spend their budgets side by side, and each episode of each has a Gap", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 1), "u")
		runBroker(t, b)
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String(), 3)...)
		}
		pass(time.Second - 1)
		require.Equal(t, progress{handed: 4}, progressOf(t, b, s))
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 4, handed: 4, dropped: 8}, progressOf(t, b, s))
		require.Len(t, s.pollLane(P2), 1)
		publishTo(t, b, "u", P2, "x")
		synctest.Wait()
		require.True(t, receiverStats(t, b, "r").Stuck, "in three lanes still")
		require.Equal(t, []string{"x"}, ids(s.pollLane(P2)))
		require.Equal(t, time.Second, time.Since(began))
		conserved(t, b)
	})

	inBubble(t, "what one lane has spent is not missing in another", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("a", 6)...)
		pass(900 * time.Millisecond)
		<-s.in[P1] // which is not half empty: the sixth has 0.1 s
		publishTo(t, b, "u", P2, series("b", 5)...)
		pass(100*time.Millisecond - 1)
		require.Equal(t, ReceiverStats{ID: "r", Handed: 9}, receiverStats(t, b, "r"))
		pass(1)
		require.Equal(t, ReceiverStats{ID: "r", Stuck: true, Handed: 9, Dropped: 1}, receiverStats(t, b, "r"), "P1 alone")
		pass(900*time.Millisecond - 1)
		require.EqualValues(t, 1, receiverStats(t, b, "r").Dropped)
		pass(1)
		require.EqualValues(t, 2, receiverStats(t, b, "r").Dropped)
		require.EqualValues(t, 2, s.gaps.Load(), "an episode in each of two lanes")
	})

	inBubble(t, "each lane has the whole of its budget again once it is half empty, and not before", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 4), "u")
		runBroker(t, b)
		send := func(round, n int) {
			for p := P0; p <= P3; p++ {
				publishTo(t, b, "u", p, series(fmt.Sprintf("%s-%d-", p, round), n)...)
			}
			pass(900 * time.Millisecond)
		}
		take := func(n int) {
			for range n {
				for p := P0; p <= P3; p++ {
					require.NotEmpty(t, s.in[p], "%s", p)
					<-s.in[p]
				}
				synctest.Wait()
			}
		}
		send(0, 5) // the fifth waits
		take(3)
		for round := range 10 {
			send(round+1, 3) // two fit, the third waits
			take(3)
		}
		require.Equal(t, ReceiverStats{ID: "r", Handed: 4 * 35}, receiverStats(t, b, "r"))
		send(11, 4)
		take(1) // three of four are too many: the fourth has 0.1 s
		pass(100*time.Millisecond - 1)
		require.Equal(t, ReceiverStats{ID: "r", Handed: 4 * 38}, receiverStats(t, b, "r"))
		pass(1)
		require.Equal(t, ReceiverStats{ID: "r", Stuck: true, Handed: 4 * 38, Dropped: 4}, receiverStats(t, b, "r"))
	})

	inBubble(t, "receivers that are full in different lanes spend their budgets side by side", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		low := route(t, b, newStation("low", 0), "u")
		high := route(t, b, newStation("high", 0), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		pass(500 * time.Millisecond)
		publishTo(t, b, "v", P0, "2")
		pass(400 * time.Millisecond)
		require.Equal(t, "1", (<-low.in[P1]).n.ID)
		publishTo(t, b, "u", P1, "3")
		pass(100*time.Millisecond - 1)
		require.Equal(t, progress{handed: 1}, progressOf(t, b, low), "it has been waited for 0.9 s, and almost 0.1 s more")
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 1, dropped: 1}, progressOf(t, b, low))
		pass(500*time.Millisecond - 1)
		require.Equal(t, progress{}, progressOf(t, b, high))
		pass(1)
		require.Equal(t, progress{stuck: true, gaps: 1, dropped: 1}, progressOf(t, b, high))
	})

	inBubble(t, "a receiver that has spent its budget does not shorten that of the next receiver", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		route(t, b, newStation("a", 1), "u")
		second := route(t, b, newStation("b", 1), "v")
		runBroker(t, b)
		publishTo(t, b, "v", P1, "1")
		publishTo(t, b, "u", P1, "2", "3")
		publishTo(t, b, "v", P1, "4")
		pass(time.Second)
		require.True(t, receiverStats(t, b, "a").Stuck)
		pass(time.Second - 1)
		require.False(t, receiverStats(t, b, "b").Stuck)
		require.Equal(t, "1", (<-second.in[P1]).n.ID)
		synctest.Wait()
		require.Equal(t, []string{"4"}, ids(second.poll()))
		require.Zero(t, second.gaps.Load())
	})
}

func TestOthersOfAFullReceiver(t *testing.T) {
	inBubble(t, "the other receivers wait for it once, and those of P0 not at all", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		bad := route(t, b, newStation("bad", 1), "u")
		good := route(t, b, newStation("good", 99), "u", "v")
		all := listen(t, b, "all", 99, Wait)
		runBroker(t, b)
		began := time.Now()
		publishTo(t, b, "u", P1, "1", "2")
		publishTo(t, b, "v", P1, "3", "4")
		synctest.Wait()
		require.Equal(t, []string{"1"}, ids(good.poll()), "2 waits for the other")
		publishTo(t, b, "v", P0, "5", "6")
		publishTo(t, b, "u", P0, "7")
		synctest.Wait()
		require.Equal(t, []string{"7"}, ids(bad.pollLane(P0)), "its own P0 lane is another one")
		require.NoError(t, b.Publish(notice("8", P0)))
		synctest.Wait()
		require.Equal(t, []string{"8"}, ids(bad.pollLane(P0)))
		require.Equal(t, strings.Fields("5 6 7 8"), ids(good.poll()))
		require.Zero(t, time.Since(began))
		require.Equal(t, strings.Fields("1 5 6 7 8"), ids(poll(all)))
		pass(time.Second)
		publishTo(t, b, "u", P1, series("x", 50)...)
		synctest.Wait()
		require.Len(t, good.poll(), 53)
		require.Equal(t, time.Second, time.Since(began), "and nothing is ever waited for again")
		require.False(t, receiverStats(t, b, "good").Stuck)
	})

	inBubble(t, "a full P0 lane holds up P0 for no more than the budget, and no other lane", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		bad := route(t, b, newStation("bad", 1), "u")
		good := route(t, b, newStation("good", 99), "v")
		runBroker(t, b)
		publishTo(t, b, "u", P0, "1", "2", "3")
		publishTo(t, b, "u", P1, "4")
		publishTo(t, b, "v", P0, "5")
		synctest.Wait()
		require.Equal(t, []string{"4"}, ids(bad.pollLane(P1)))
		pass(time.Second - 1)
		require.Empty(t, good.poll())
		pass(1)
		require.Equal(t, []string{"5"}, ids(good.poll()))
		require.Equal(t, progress{stuck: true, gaps: 1, handed: 2, dropped: 2}, progressOf(t, b, bad))
		require.Equal(t, []string{"1"}, ids(bad.poll()))
		require.False(t, receiverStats(t, b, "bad").Stuck, "what is half empty again is not")
	})

	inBubble(t, "a receiver that is stuck holds up nobody in any lane", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		stuck := route(t, b, newStation("stuck", 0), "u")
		good := route(t, b, newStation("good", 999), "u", "v")
		runBroker(t, b)
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, "first "+p.String())
		}
		pass(time.Second)
		require.True(t, receiverStats(t, b, "stuck").Stuck)
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series("u"+p.String(), 50)...)
			publishTo(t, b, "v", p, series("v"+p.String(), 50)...)
		}
		synctest.Wait()
		require.Len(t, good.poll(), 404)
		require.Zero(t, time.Since(began))
		require.Empty(t, stuck.poll())
		conserved(t, b)
	})
}

func TestGlobalSubscriberThatDropsTheNewest(t *testing.T) {
	inBubble(t, "it delays nobody in any lane, full or without a buffer", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 999), "u")
		few, none, all := make(chan *Message, 3), make(chan *Message), make(chan *Message, 999)
		require.NoError(t, b.SubscribeGlobal("few", few, DropNewest))
		require.NoError(t, b.SubscribeGlobal("none", none, DropNewest))
		require.NoError(t, b.SubscribeGlobal("storage", all, Wait))
		runBroker(t, b)
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series(p.String()+"-", 50)...)
			synctest.Wait()
		}
		synctest.Wait()
		require.Len(t, s.poll(), 200)
		require.Len(t, all, 200)
		require.Equal(t, ReceiverStats{ID: "few", Global: true, Handed: 3, Dropped: 197}, receiverStats(t, b, "few"))
		require.Equal(t, ReceiverStats{ID: "none", Global: true, Dropped: 200}, receiverStats(t, b, "none"))
		require.Zero(t, time.Since(began))
		require.Equal(t, series("P0-", 3), ids(poll(few)), "the first three")
		publishTo(t, b, "u", P3, "again")
		synctest.Wait()
		require.Equal(t, []string{"again"}, ids(poll(few)))
		poll(all)
	})

	inBubble(t, "it drops while the lane of a receiver stands still", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		full := route(t, b, newStation("full", 0), "u")
		listen(t, b, "none", 0, DropNewest)
		runBroker(t, b)
		publishTo(t, b, "u", P3, "1")
		synctest.Wait()
		for p := P0; p <= P2; p++ {
			publishTo(t, b, "v", p, series(p.String(), 5)...)
		}
		synctest.Wait()
		require.EqualValues(t, 15, receiverStats(t, b, "none").Dropped)
		require.Len(t, full.poll(), 1)
		synctest.Wait()
		require.EqualValues(t, 16, receiverStats(t, b, "none").Dropped)
	})
}

func TestGlobalSubscriberThatIsWaitedFor(t *testing.T) {
	inBubble(t, "it has one budget for all lanes", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "storage", 2, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1", "2", "3")
		pass(1) // 3 has waited the longest
		publishTo(t, b, "u", P2, "4", "5")
		pass(900*time.Millisecond - 1)
		require.Equal(t, "1", (<-all).n.ID)
		pass(100 * time.Millisecond) // which 4 waited for
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Stuck: true, Handed: 3, Dropped: 2}, receiverStats(t, b, "storage"))
		require.Equal(t, []string{"2", "3"}, ids(poll(all)))
		publishTo(t, b, "u", P3, "6")
		synctest.Wait()
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Handed: 4, Dropped: 2}, receiverStats(t, b, "storage"))
	})

	inBubble(t, "a full one holds up P0 too, for StallTimeout at most", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("r", 999), "u")
		listen(t, b, "storage", 0, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, series("a", 3)...)
		pass(500 * time.Millisecond)
		publishTo(t, b, "u", P0, series("b", 3)...)
		pass(time.Second)
		require.Equal(t, series("b", 3), ids(s.pollLane(P0)))
		pass(time.Second)
		require.Len(t, s.pollLane(P1), 3)
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Stuck: true, Dropped: 6}, receiverStats(t, b, "storage"))
		began := time.Now()
		for p := P0; p <= P3; p++ {
			publishTo(t, b, "u", p, series("c"+p.String(), 20)...)
		}
		synctest.Wait()
		require.Len(t, s.poll(), 80, "nobody waits for it any more")
		require.Zero(t, time.Since(began))
		conserved(t, b)
	})

	inBubble(t, "the first that one gets that was full is a P0", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{StallTimeout: time.Hour})
		all := listen(t, b, "storage", 0, Wait)
		runBroker(t, b)
		for _, p := range []Priority{P3, P1, P2, P0} {
			publishTo(t, b, "u", p, p.String()+"a", p.String()+"b")
			synctest.Wait()
		}
		var got []string
		for range 8 {
			synctest.Wait()
			got = append(got, ids(poll(all))...)
		}
		require.Equal(t, []string{"P0a", "P0b"}, got[:2])
		require.ElementsMatch(t, []string{"P1a", "P1b", "P2a", "P2b", "P3a", "P3b"}, got[2:])
		for _, p := range []string{"P1", "P2", "P3"} {
			require.Less(t, slices.Index(got, p+"a"), slices.Index(got, p+"b"), "each lane in its order")
		}
	})

	inBubble(t, "P0s keep their order at one that is full", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := listen(t, b, "storage", 0, Wait)
		s := route(t, b, newStation("r", 9), "u")
		runBroker(t, b)
		publishTo(t, b, "u", P0, series("A", 3)...)
		for _, want := range series("A", 3) {
			synctest.Wait()
			require.Equal(t, []string{want}, ids(s.poll()), "each goes to everybody before the next does")
			require.Equal(t, want, (<-all).n.ID)
		}
	})
}

func TestBudgetOfGlobals(t *testing.T) {
	inBubble(t, "a storage that empties its channel ten times a second is not stuck, however many lanes wait for it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := make(chan *Message, 100)
		require.NoError(t, b.SubscribeGlobal("storage", all, Wait))
		runBroker(t, b)
		const n = 2500
		for i := range n {
			publishTo(t, b, "u", P1, fmt.Sprint("a", i))
			publishTo(t, b, "u", P2, fmt.Sprint("b", i))
			publishTo(t, b, "u", P3, fmt.Sprint("c", i))
		}
		got := 0
		for range 100 {
			pass(100 * time.Millisecond)
			got += len(ids(poll(all)))
		}
		require.Equal(t, ReceiverStats{ID: "storage", Global: true, Handed: 3 * n}, receiverStats(t, b, "storage"))
		require.Equal(t, 3*n, got)
	})
}

func TestLastTryOfALaneThatYields(t *testing.T) {
	inBubble(t, "a message that let another lane go first is not dropped before it was tried", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		all := make(chan *Message, 2)
		r := newReceiver("storage", Inbox{all, all, all, all})
		r.global, r.overflow = true, Wait
		d := b.dispatch
		m1, m2 := NewMessage(note("1", "u", P1)), NewMessage(note("2", "u", P2))
		h1, h2 := &d.heads[P1], &d.heads[P2]
		all <- m1
		all <- m1
		h2.m, h2.targets = m2, []*receiver{r}
		require.False(t, d.hand(h2, r), "full")
		nap(time.Millisecond)
		h1.m, h1.targets = m1, []*receiver{r}
		require.False(t, d.hand(h1, r), "full")
		nap(time.Second) // the budget is spent
		poll(all)        // and at that moment there is room
		require.False(t, d.hand(h1, r), "the other has waited for longer")
		require.True(t, d.hand(h2, r))
		require.True(t, d.hand(h1, r))
		require.Zero(t, r.dropped.value())
	})
}
