package notification

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Where the cursor of a session stands whose messages come from a Log, and which
// cursors a Gateway with a Log takes.

func TestLogCursor(t *testing.T) {
	t.Run("inside Push it is behind the batch, outside behind the last that was taken, as a resume elsewhere shows", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			goOn := make(chan error)
			var s *Session
			var inside, aside Cursor
			s, _ = join(t, a.g, "s", "u", hooked(func(context.Context, []*Message) error {
				inside = s.Cursor()
				other := make(chan Cursor)
				go func() { other <- s.Cursor() }() // ends at once
				aside = <-other
				return <-goOn
			}))
			begin := s.Cursor()
			l.publish(note("m1", "u", P1), note("m2", "u", P1)) // company for each other: one batch
			l.catchUp()
			require.Equal(t, s.Cursor(), aside)
			require.Equal(t, series("m", 2), behind(t, b.g, "u", s.Cursor()))
			require.Equal(t, series("m", 2), behind(t, b.g, "u", begin))
			require.Empty(t, behind(t, b.g, "u", inside))
			l.say("u", P1, "m3") // waits
			require.Equal(t, series("m", 2), behind(t, b.g, "u", aside)[:2])
			first := inside
			goOn <- nil
			synctest.Wait() // the next Push goes on
			require.Equal(t, []string{"m3"}, behind(t, b.g, "u", s.Cursor()))
			require.Equal(t, []string{"m3"}, behind(t, b.g, "u", first))
			require.Empty(t, behind(t, b.g, "u", inside))
			goOn <- errors.New("fail")
			<-s.Done()
			require.Equal(t, []string{"m3"}, behind(t, b.g, "u", s.Cursor()), "that Push has failed")
		})
	})
	t.Run("a quiet one moves on in every lane with what others get, and with marks", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			join(t, a.g, "stranger", "v")
			s, _ := join(t, a.g, "s", "u", wanting(ChannelRisk))
			begin := s.Cursor()
			l.say("v", P0, series("held here", 5)...)
			l.say("w", P1, series("not held here", 5)...)
			l.publish(on(ChannelTrade, "filtered away", "u", P2), notice("and this", P3))
			l.catchUp()
			require.Equal(t, l.ends(), s.Cursor().seqs)
			require.True(t, s.Cursor().Covers(begin))
			for p := P0; p <= P3; p++ { // the retention of all that is over
				l.trim(p, 1)
			}
			require.Empty(t, behind(t, b.g, "u", s.Cursor()))
			gone(t, b.g, "u", begin)
			require.NoError(t, s.Close())
			<-s.Done()
			end := s.Cursor()
			l.say("v", P0, "after its end")
			require.Equal(t, end, s.Cursor())
		})
	})
	t.Run("it does not move over what waits, is being pushed, was not taken or is to be replayed", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			hour := [NumPriorities]time.Duration{0, time.Hour, time.Hour, time.Hour}
			a, b := l.open("a", GatewayConfig{MaxDelay: hour}), l.open("b", GatewayConfig{MaxDelay: hour, BatchSize: 1, OutboxMessages: 1})
			others := func() {
				for p := P0; p <= P3; p++ {
					l.say("w", p, "other")
				}
			}
			join(t, b.g, "stranger", "w")
			goOn := make(chan error)
			from := offline(t, a.g, "u")
			s, _ := join(t, a.g, "s", "u", after(from), told(goOn))
			synctest.Wait()
			l.say("u", P1, "m1")
			others()
			require.Equal(t, []string{"m1"}, behind(t, b.g, "u", s.Cursor()), "it waits")
			l.say("u", P0, "m2") // takes it along
			others()
			require.Equal(t, []string{"m2", "m1"}, behind(t, b.g, "u", s.Cursor()), "it is in the Push")
			l.say("u", P2, "m3")
			others()
			goOn <- nil
			pass(time.Second)
			require.Equal(t, []string{"m3"}, behind(t, b.g, "u", s.Cursor()), "it waits behind the Push")
			l.say("u", P0, "m4")
			others()
			goOn <- errors.New("fail")
			<-s.Done()
			others()
			require.Equal(t, []string{"m4", "m3"}, behind(t, b.g, "u", s.Cursor()), "the Push has failed")

			s, sink := join(t, b.g, "s", "u", after(from), told(goOn))
			for i := range 4 { // a batch is one message
				others()
				require.Equal(t, []string{"m2", "m4", "m1", "m3"}[i:], behind(t, a.g, "u", s.Cursor()))
				goOn <- nil
				pass(time.Second)
			}
			require.Len(t, sink.ids(), 4)
			others()
			require.Equal(t, l.ends(), s.Cursor().seqs)
		})
	})
	t.Run("it does not move over a message that waits for room in the outbox", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{BatchSize: 1, OutboxMessages: 1, HistoryMessages: 64, SlowAfter: time.Hour}), l.open("b", GatewayConfig{})
			quiet, _ := join(t, a.g, "quiet", "v")
			goOn := make(chan error)
			s, sink := join(t, a.g, "s", "u", told(goOn))
			begin := s.Cursor()
			l.say("u", P1, series("m", 1+outboxFactor+3)...) // one in Push, eight behind it, one held, two in the inbox
			l.say("w", P0, "other")
			require.NoError(t, s.Err())
			require.Equal(t, series("m", 12), behind(t, b.g, "u", s.Cursor()))
			require.EqualValues(t, (1+outboxFactor)*blockSize, quiet.Cursor().seqs[P1], "the tenth waits for room")
			close(goOn)
			pass(time.Second)
			require.Equal(t, series("m", 12), sink.ids())
			require.Equal(t, l.ends(), s.Cursor().seqs)
			require.True(t, s.Cursor().Covers(begin))
		})
	})
	t.Run("it never goes back, whoever asks and whenever, and nothing is lost or repeated behind any of it", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{BatchSize: 3}), l.open("b", GatewayConfig{})
			s, sink := join(t, a.g, "s", "u", slowly(time.Millisecond))
			seen := []Cursor{s.Cursor()}
			var want []string
			for i := range 100 {
				who := []string{"u", "w"}[i%3%2]
				l.publish(note(fmt.Sprint("m", i), who, Priority(i%NumPriorities)))
				if who == "u" {
					want = append(want, fmt.Sprint("m", i))
				}
				a.catchUp()
				pass(500 * time.Microsecond)
				c := s.Cursor()
				require.True(t, c.Covers(seen[len(seen)-1]))
				seen = append(seen, c)
			}
			l.catchUp()
			require.ElementsMatch(t, want, sink.ids())
			left := len(want)
			for _, c := range append(seen, s.Cursor()) {
				n := len(behind(t, b.g, "u", c))
				require.LessOrEqual(t, n, left)
				left = n
			}
			require.Zero(t, left)
		})
	})
	t.Run("what the Log no longer knows is a cursor that is gone, and not none: without one a client would begin anew and not know it", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a, b := l.open("a", GatewayConfig{}), l.open("b", GatewayConfig{})
			s, _ := join(t, a.g, "s", "u")
			l.publish(note("old", "w", P1))
			l.trim(P1, 0) // and the feeders have yet to see that
			c := s.Cursor()
			require.NotEmpty(t, c.String())
			for _, e := range []*memoryEdge{a, b} {
				gone(t, e.g, "u", c)
			}
			parsed, err := ParseCursor(c.String())
			require.NoError(t, err)
			require.Equal(t, c, parsed)
			g := newGateway(t, "g", keeping(GatewayConfig{}))
			runGateway(t, g)
			join(t, g, "s", "u")
			gone(t, g, "u", c)
			l.say("w", P1, "new")
			require.Equal(t, ErrGap, s.Err())
			s, _ = join(t, b.g, "s", "u")
			require.Empty(t, behind(t, a.g, "u", s.Cursor()))
		})
	})
}

func TestSealedCursors(t *testing.T) {
	t.Run("a log that has lost its end and used the numbers again is recognized, at Gateways that know nothing of it", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			s, _ := join(t, a.g, "s", "u")
			l.say("u", P1, "m1")
			good := s.Cursor()
			l.say("u", P1, "m2")
			bad := s.Cursor()
			l.lose(P1)
			l.publish(note("another with its number", "u", P1))
			require.Equal(t, l.ends(), bad.seqs)
			b := l.open("b", GatewayConfig{})
			gone(t, b.g, "u", bad)
			require.Equal(t, []string{"another with its number"}, behind(t, b.g, "u", good))
			l.edges = l.edges[1:] // a believes in what was lost
			l.say("u", P1, "m3")
			gone(t, b.g, "u", bad)
		})
	})
	t.Run("that of another user is gone, though its numbers are the same", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			u, _ := join(t, a.g, "u", "u")
			v, _ := join(t, a.g, "v", "v")
			l.say("u", P1, "m1")
			require.Equal(t, u.Cursor().seqs, v.Cursor().seqs)
			require.NotEqual(t, u.Cursor(), v.Cursor())
			gone(t, a.g, "v", u.Cursor())
			require.Empty(t, behind(t, a.g, "v", v.Cursor()))
		})
	})
	t.Run("with and without a Log they are not taken for each other", func(t *testing.T) {
		withLog(t, func(t *testing.T, l *logTest) {
			a := l.open("a", GatewayConfig{})
			g := newGateway(t, "g", keeping(GatewayConfig{}))
			runGateway(t, g)
			with, without := offline(t, a.g, "u"), offline(t, g, "u")
			gone(t, g, "u", with)
			gone(t, a.g, "u", without)
			mixed := without
			mixed.sealed = true
			gone(t, g, "u", mixed)
			mixed = with
			mixed.sealed = false
			gone(t, a.g, "u", mixed)
			require.False(t, with.Covers(mixed))
			require.False(t, mixed.Covers(with))
		})
	})
	t.Run("Covers compares places, whatever the seals are", func(t *testing.T) {
		c := Cursor{epoch: 1, user: 2, seqs: [NumPriorities]uint64{5, 5, 5, 5}, sealed: true}
		later := Cursor{epoch: 1, user: 3, seqs: [NumPriorities]uint64{5, 6, 5, 5}, sealed: true}
		aside := Cursor{epoch: 1, user: 4, seqs: [NumPriorities]uint64{6, 5, 5, 5}, sealed: true}
		other := Cursor{epoch: 2, user: 2, seqs: [NumPriorities]uint64{9, 9, 9, 9}, sealed: true}
		require.True(t, c.Covers(c))
		require.True(t, later.Covers(c))
		require.False(t, c.Covers(later))
		require.False(t, later.Covers(aside))
		require.False(t, aside.Covers(later))
		require.False(t, other.Covers(c))
		require.False(t, c.Covers(other))
	})
	t.Run("their text is read back, and told from that of others", func(t *testing.T) {
		c := Cursor{epoch: 1<<64 - 1, user: 1<<64 - 1, seqs: lanes[uint64](1<<64 - 1), sealed: true}
		require.LessOrEqual(t, len(c.String()), 80)
		parsed, err := ParseCursor(c.String())
		require.NoError(t, err)
		require.Equal(t, c, parsed)
		c.sealed = false
		require.NotEqual(t, parsed.String(), c.String())
	})
}
