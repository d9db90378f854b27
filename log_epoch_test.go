package notification

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Holes in a Log, and logs that begin anew.

func TestLogGap(t *testing.T) {
	t.Run("it ends every session and keeps the cursors", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			s, _ := join(t, a.g, "s", "u")
			l.say("u", P1, "m1")
			before := s.Cursor()
			l.say("u", P1, "m2")
			a.g.Gap()
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			for _, e := range []*memoryEdge{a, b} {
				require.Equal(t, []string{"m2"}, behind(t, e.g, "u", before))
				require.Empty(t, behind(t, e.g, "u", s.Cursor()))
			}
			_, sink := join(t, a.g, "again", "u", after(before))
			l.say("u", P1, "m3")
			require.Equal(t, []string{"m2", "m3"}, sink.ids())
		})
	})
	t.Run("GapUser ends one user's sessions, keeps their cursors, and lets the Log be asked for what was before", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			u, _ := join(t, a.g, "u", "u")
			twin, _ := join(t, a.g, "twin", "u")
			v, _ := join(t, a.g, "v", "v")
			before := u.Cursor()
			l.say("u", P1, "m1")
			a.g.GapUser("nobody")
			a.g.GapUser("u")
			<-u.Done()
			<-twin.Done()
			require.Equal(t, ErrGap, u.Err())
			require.Equal(t, ErrGap, twin.Err())
			require.NoError(t, v.Err())
			asked := a.asks.Load()
			require.Equal(t, []string{"m1"}, behind(t, a.g, "u", before))
			require.Greater(t, a.asks.Load(), asked, "the Log says whether it is all there")
			a.g.GapUser(AllUsers)
			<-v.Done()
			require.Equal(t, ErrGap, v.Err())
		})
	})
	t.Run("GapUser without a Log is Gap", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, "g", GatewayConfig{HistoryMessages: 1024})
			runGateway(t, g)
			v, _ := join(t, g, "v", "v")
			g.GapUser("u")
			<-v.Done()
			require.Equal(t, ErrGap, v.Err())
		})
	})
	t.Run("a hole is told to whoever is before it, and to nobody who is behind it", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			before := offline(t, a.g, "u")
			s, _ := join(t, a.g, "s", "u")
			far, _ := join(t, b.g, "far", "u")
			l.say("u", P1, "m1")
			for _, id := range series("hole", 10) {
				l.publish(note(id, "u", P1))
			}
			b.catchUp()
			pass(time.Second)
			l.trim(P1, 0) // before a has read it
			l.say("u", P1, "m2")
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			require.NoError(t, far.Err())
			for _, e := range []*memoryEdge{a, l.open("c", GatewayConfig{})} {
				gone(t, e.g, "u", before)
				gone(t, e.g, "u", s.Cursor())
				require.Empty(t, behind(t, e.g, "u", far.Cursor()))
			}
			far2 := far.Cursor()
			_, sink := join(t, a.g, "new", "u")
			l.say("u", P1, "m3")
			require.Equal(t, []string{"m3"}, sink.ids())
			require.Equal(t, []string{"m3"}, behind(t, a.g, "u", far2))
		})
	})
	t.Run("what is still in the inbox from before a hole is for nobody who begins behind it", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			e := newMemoryEdge(t, l.memoryLog, "e", GatewayConfig{}) // whose reader has yet to begin
			join(t, e.g, "old", "u")
			l.publish(note("before", "u", P1), notice("before to all", P1))
			e.catchUp()
			l.publish(note("hole", "u", P1), note("there", "w", P1))
			l.trim(P1, 1)
			l.edges = append(l.edges, e)
			e.catchUp()
			s, sink := join(t, e.g, "new", "u")
			require.EqualValues(t, 2*blockSize, s.Cursor().seqs[P1], "behind the hole")
			l.publish(note("after", "u", P1), notice("after to all", P1))
			e.catchUp()
			runGateway(t, e.g)
			pass(time.Second)
			require.Equal(t, []string{"after", "after to all"}, sink.ids())
		})
	})
}

func TestLogThatBeginsAnew(t *testing.T) {
	t.Run("every session ends, every cursor is void, and lower numbers than before are delivered", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			was := offline(t, b.g, "u")
			s, _ := join(t, a.g, "s", "u")
			for p := P0; p <= P3; p++ {
				l.say("u", p, series("old", 20)...)
				l.publish(notice("old to all", p))
			}
			l.catchUp()
			l.renew()
			l.publish(note("before they know", "u", P1))
			l.catchUp()
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			for _, e := range []*memoryEdge{a, b, l.open("c", GatewayConfig{})} {
				gone(t, e.g, "u", was)
				gone(t, e.g, "u", s.Cursor())
			}
			s, sink := join(t, a.g, "s", "u")
			from := s.Cursor()
			require.Equal(t, l.ends(), from.seqs)
			for p := P0; p <= P3; p++ {
				l.publish(note("new", "u", p), notice("new to all", p))
			}
			l.catchUp()
			want := slices.Repeat([]string{"new", "new to all"}, NumPriorities)
			for _, ids := range [][]string{sink.ids(), behind(t, a.g, "u", from), behind(t, b.g, "u", from)} {
				require.ElementsMatch(t, want, ids)
			}
		})
	})
	t.Run("a Gateway that has yet to learn of it refuses its cursors, and then takes them", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			l.renew()
			a.catchUp()
			from := offline(t, a.g, "u")
			l.publish(note("m", "u", P1))
			gone(t, b.g, "u", from)
			l.catchUp()
			require.Equal(t, []string{"m"}, behind(t, b.g, "u", from))
		})
	})
	t.Run("another's Gap while it does leaves nothing of the old numbers behind", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			l.say("u", P1, series("old", 20)...)
			l.renew()
			a.onAt = sync.OnceFunc(a.adopt)
			a.g.Gap()
			a.g.Gap() // of the feeder, which has adopted the new epoch meanwhile
			_, sink := join(t, a.g, "s", "u", after(offline(t, a.g, "u")))
			l.say("u", P1, "m1")
			l.say("u", P1, "m2")
			require.Equal(t, []string{"m1", "m2"}, sink.ids())
		})
	})
	t.Run("whoever registers between the end of an epoch and the Gap is told of that", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			from := offline(t, a.g, "u")
			l.say("u", P1, series("old", 3)...)
			l.renew()
			l.publish(note("m", "u", P1))
			a.adopt()
			s, _ := join(t, a.g, "s", "u")
			_, err := tryJoin(t, a.g, "v", from)
			require.ErrorIs(t, err, ErrCursorGone)
			a.g.Gap()
			<-s.Done()
			require.Equal(t, ErrGap, s.Err())
			gone(t, a.g, "u", s.Cursor())
		})
	})
}

// Each row brings messages to a place from which they may come late. The numbers
// are the same in every epoch.
func TestMessagesOfAnOlderEpoch(t *testing.T) {
	stuck := GatewayConfig{BatchSize: 1, OutboxMessages: 1}
	for _, row := range []struct {
		name     string
		cfg      GatewayConfig
		epochs   int
		sessions int  // of u, whose Push does not return
		messages int  // to u and to all, in each lane
		reads    bool // before the next epoch begins
	}{
		{name: "in the inbox", epochs: 1, messages: 5},
		{name: "of several epochs in the inbox", epochs: 4, messages: 5, sessions: 2},
		{name: "in an inbox that is full", epochs: 1, cfg: GatewayConfig{InboxCapacity: 10}, messages: 5},
		{name: "in an inbox that has room for one", epochs: 1, cfg: GatewayConfig{InboxCapacity: 1}, messages: 0, sessions: 1},
		{name: "in the outboxes", epochs: 3, sessions: 2, messages: 5, reads: true},
		{name: "at the heads of the lanes", cfg: stuck, epochs: 3, sessions: 1, messages: 20, reads: true},
		{name: "on their way to many sessions", cfg: stuck, epochs: 3, sessions: 3*sliceSize + 1, messages: 20, reads: true},
	} {
		t.Run("what is "+row.name+" is not delivered in the next epoch, and what is of that is", func(t *testing.T) {
			withLog(t, func(t *testing.T, l *logTest) {
				e := newMemoryEdge(t, l.memoryLog, "e", row.cfg)
				if row.reads {
					runGateway(t, e.g)
				}
				var early *ledger // of the session that whoever is told first begins at once
				for epoch := range row.epochs {
					begin := sync.OnceFunc(func() {
						early = newLedger(t, e.g)
						_, err := e.g.RegisterSession(SessionConfig{ID: fmt.Sprint("early", epoch), UserID: "u", Sink: early})
						require.NoError(t, err)
					})
					for i := range row.sessions {
						join(t, e.g, fmt.Sprint(epoch, "-", i), "u", hooked(newGate(t).pass), func(_ *SessionConfig, sink *ledger) {
							sink.shut = func(error) { begin() }
						})
					}
					for range row.messages {
						for p := P1; p <= P3; p++ { // too many P0s would end a session
							l.publish(note("old", "u", p), notice("old to all", p))
						}
					}
					e.catchUp()
					synctest.Wait() // no time passes, in which they would be called slow
					l.renew()
					e.catchUp()
					synctest.Wait()
				}
				s, sink := join(t, e.g, "s", "u")
				from := s.Cursor()
				if !row.reads {
					runGateway(t, e.g)
				}
				for p := P0; p <= P3; p++ {
					l.publish(note("new", "u", p), notice("new to all", p))
				}
				e.catchUp()
				pass(time.Second)
				want := slices.Repeat([]string{"new", "new to all"}, NumPriorities)
				require.ElementsMatch(t, want, sink.ids())
				require.ElementsMatch(t, want, behind(t, e.g, "u", from))
				if row.sessions > 0 {
					require.ElementsMatch(t, want, early.ids())
				}
				require.Equal(t, uint64(row.epochs*row.sessions), e.g.Stats().Ended.Gap-uint64(row.epochs-1)*min(uint64(row.sessions), 1))
				e.conserved(t)
			})
		})
	}
}

func TestReaderRenew(t *testing.T) {
	t.Run("the fence is the last in each lane, whatever had to make room, and waits for nobody", func(t *testing.T) {
		for _, capacity := range []int{1, 2, 3, 8} {
			l := newMemoryLog()
			e := newMemoryEdge(t, l, "e", GatewayConfig{InboxCapacity: capacity})
			for i := range 2 {
				for p, ch := range e.g.inbox {
					for len(ch) < capacity-p%2 { // some lanes are full
						ch <- NewMessageAt(note("m", "u", Priority(p)), uint64(len(ch)+1))
					}
				}
				epoch := uint64(5 + i)
				e.g.reader.renew(epoch)
				for p, ch := range e.g.inbox {
					var all []*Message
					for len(ch) > 0 {
						all = append(all, <-ch)
					}
					last := all[len(all)-1]
					require.True(t, last.isFence())
					require.Equal(t, epoch, numberedOf(last).epoch)
					for _, m := range all[:len(all)-1] {
						require.False(t, m.isFence())
					}
					lost := i + 1
					if p%2 == 1 { // had room
						lost = 0
					}
					require.EqualValues(t, lost, e.g.Stats().Lanes[p].Discarded, "P%d", p)
				}
			}
			discard(t, e.g)
		}
	})
	t.Run("a Gap in a new epoch comes to its end before Run and after it", func(t *testing.T) {
		l := newMemoryLog()
		e := newMemoryEdge(t, l, "e", GatewayConfig{InboxCapacity: 1})
		for range 3 {
			l.renew()
			e.catchUp()
		}
		drain(t, e.g)
		for range 3 {
			l.renew()
			e.catchUp()
		}
	})
}

func TestHistoryOfALog(t *testing.T) {
	at := func(n uint64) [NumPriorities]uint64 { return lanes(n) }
	begin := func(t *testing.T) (*historyStore, *history) {
		l := newMemoryLog()
		for range 10 {
			l.publish(note("m", "u", P0), note("m", "u", P1), note("m", "u", P2), note("m", "u", P3))
		}
		e := &memoryEdge{log: l}
		e.adopt()
		st := newHistoryStore(4, 100, e)
		return st, st.newHistory()
	}
	const now = 10 * blockSize
	message := func(id string) *Message { return newMessage(note(id, "u", P1), TypeAccountUpdate, 0) }
	kept := func(h *history) (numbers []uint64) {
		for i := range h.lanes[P1].n {
			numbers = append(numbers, h.lanes[P1].at(i).seq)
		}
		return numbers
	}
	t.Run("it begins at At, and keeps what comes with a higher number", func(t *testing.T) {
		st, h := begin(t)
		require.Equal(t, at(now), h.from())
		require.False(t, st.keep(h, message("old"), now, 1))
		require.Empty(t, kept(h))
		require.Equal(t, [NumPriorities]uint64{P1: now}, st.now())
		st.keep(h, message("m1"), now+5, 1)
		st.keep(h, message("m2"), now+9, 1)
		require.Equal(t, []uint64{now + 5, now + 9}, kept(h))
		require.EqualValues(t, now+9, st.last[P1].Load())
		require.EqualValues(t, 2, st.kept.Load())
		require.Equal(t, [NumPriorities]uint64{now, now + 9, now, now}, h.from())
	})
	t.Run("what is of another epoch is not kept, and moves nothing", func(t *testing.T) {
		st, h := begin(t)
		st.keep(h, message("m"), now+5, 2)
		st.keep(st.all, message("m"), now+5, 2)
		st.pass(P1, now+5, 2)
		require.Empty(t, kept(h))
		require.Empty(t, kept(st.all))
		require.Zero(t, st.now())
		require.Zero(t, st.offered[P1].Load())
	})
	t.Run("what is not kept moves on what is offered, what is kept not yet", func(t *testing.T) {
		st, h := begin(t)
		st.keep(h, message("m"), now+5, 1)
		require.Zero(t, st.offered[P1].Load())
		st.pass(P1, now+5, 1)
		st.pass(P2, now+7, 1)
		require.EqualValues(t, now+5, st.offered[P1].Load())
		require.EqualValues(t, now+7, st.offered[P2].Load())
		require.Equal(t, [NumPriorities]uint64{0, now + 5, now + 7, 0}, st.now())
	})
	t.Run("what has left it is said for each lane, as far as it is wanted and behind the place", func(t *testing.T) {
		st, h := begin(t)
		none, all := uint32(0), uint32(everyChannel)
		trade := filterOf([]Channel{ChannelTrade})
		require.Equal(t, at(7), st.gone(h, &place{seqs: at(7), filter: none}))
		require.Equal(t, at(now), st.gone(h, &place{seqs: at(7), filter: all}))
		require.Equal(t, at(now+1), st.gone(h, &place{seqs: at(now + 1), filter: all}))
		for i := range uint64(6) { // of which four are kept
			st.keep(h, message("m"), now+1+i, 1)
		}
		require.Equal(t, [NumPriorities]uint64{now, now + 2, now, now}, st.gone(h, &place{seqs: at(7), filter: all}))
		require.Equal(t, at(now), st.gone(h, &place{seqs: at(7), filter: trade}))
		require.Equal(t, [NumPriorities]uint64{now + 1, now + 2, now + 1, now + 1}, st.gone(h, &place{seqs: at(now + 1), filter: all}))
	})
	t.Run("it can be resumed behind what was missed, if nothing has left it since", func(t *testing.T) {
		st, h := begin(t)
		place := func(after, upTo uint64) *place {
			return &place{seqs: at(after), filter: everyChannel, missed: &missed{upTo: at(upTo)}}
		}
		require.True(t, st.resumable(h, place(7, now)))
		require.False(t, st.resumable(h, place(7, now-1)))
		require.True(t, st.resumable(h, place(now+100, 0)), "another Gateway may be faster")
		for i := range uint64(5) {
			st.keep(h, message("m"), now+1+i, 1)
		}
		require.False(t, st.resumable(h, place(7, now)))
		require.True(t, st.resumable(h, place(7, now+1)))
	})
	t.Run("a history of another epoch is lost to whoever reads it", func(t *testing.T) {
		st, h := begin(t)
		st.log.(*memoryEdge).log.renew()
		st.log.(*memoryEdge).adopt()
		st.renew(2)
		require.Zero(t, st.now())
		require.Zero(t, st.newHistory().from())
		_, _, lost := st.read(h, &place{seqs: at(now), filter: everyChannel}, make([]*Message, 4), new(turns))
		require.True(t, lost)
	})
}
