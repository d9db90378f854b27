package door

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification/web"
)

type guest struct {
	user  string
	heard time.Time
}

func (g *guest) User() string          { return g.user }
func (g *guest) LastActive() time.Time { return g.heard }

// arrive is a guest who has become a connection.
func arrive(t *testing.T, d *Door[*guest], user string, heard int64) *guest {
	g := &guest{user: user, heard: time.Unix(heard, 0)}
	require.True(t, d.Enter(g))
	giveWay, ok := d.Claim(g)
	require.True(t, ok)
	require.Nil(t, giveWay)
	require.True(t, d.Connected(g))
	return g
}

func TestDoor(t *testing.T) {
	t.Run("there is room for as many as there are places, and for who leaves another", func(t *testing.T) {
		d := New[*guest](2)
		first := arrive(t, d, "alice", 1)
		arrive(t, d, "bob", 1)
		carol := &guest{user: "carol"}
		require.True(t, d.Enter(carol), "to see who it is")
		_, ok := d.Claim(carol)
		require.False(t, ok)
		d.Leave(carol)
		d.Leave(first)
		arrive(t, d, "carol", 1)
	})
	t.Run("who has a connection already takes the place of the one that was not heard of for the longest", func(t *testing.T) {
		d := New[*guest](3)
		arrive(t, d, "alice", 20)
		oldest := arrive(t, d, "alice", 10)
		arrive(t, d, "bob", 1)
		back := &guest{user: "alice"}
		require.True(t, d.Enter(back))
		giveWay, ok := d.Claim(back)
		require.True(t, ok)
		require.Same(t, oldest, giveWay)
		all, beyond := d.Inside()
		require.Equal(t, 4, all)
		require.Equal(t, 1, beyond)
		d.Leave(oldest)
		d.Leave(back)
		arrive(t, d, "carol", 1)
	})
	t.Run("who gave way once does not give way again", func(t *testing.T) {
		d := New[*guest](1)
		old := arrive(t, d, "alice", 1)
		for range 2 {
			back := &guest{user: "alice", heard: time.Unix(2, 0)}
			require.True(t, d.Enter(back))
			giveWay, ok := d.Claim(back)
			if ok {
				require.Same(t, old, giveWay)
				require.True(t, d.Connected(back))
				old = back
			}
		}
	})
	t.Run("a place that has become free meanwhile is taken first", func(t *testing.T) {
		d := New[*guest](1)
		first := arrive(t, d, "alice", 1)
		second := &guest{user: "alice"}
		require.True(t, d.Enter(second))
		d.Leave(first)
		giveWay, ok := d.Claim(second)
		require.True(t, ok)
		require.Nil(t, giveWay)
	})
	t.Run("a hundred are beyond the limit, and no more", func(t *testing.T) {
		d := New[*guest](1)
		arrive(t, d, "alice", 1)
		for range maxBeyond {
			require.True(t, d.Enter(new(guest)))
		}
		require.False(t, d.Enter(new(guest)))
	})
	t.Run("who is told why it is refused has no place, and a hundred a second are", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := New[*guest](1)
			told := func() bool {
				g := new(guest)
				require.True(t, d.Enter(g))
				defer d.Leave(g)
				if !d.Refuse(g) {
					return false
				}
				_, beyond := d.Inside()
				require.Equal(t, 1, beyond)
				arrive(t, d, "alice", 1)
				for _, c := range d.All() {
					d.Leave(c)
				}
				return true
			}
			for range toldPerSecond {
				require.True(t, told())
			}
			require.False(t, told())
			nap(10 * time.Millisecond)
			require.True(t, told())
			require.False(t, told())
		})
	})
	t.Run("as many as can be told keep nobody out who comes back to a full house", func(t *testing.T) {
		d := New[*guest](1)
		old := arrive(t, d, "alice", 1)
		for range maxTold {
			g := new(guest)
			require.True(t, d.Enter(g))
			require.True(t, d.Refuse(g))
			require.True(t, d.Connected(g))
		}
		back := &guest{user: "alice"}
		require.True(t, d.Enter(back))
		giveWay, ok := d.Claim(back)
		require.True(t, ok)
		require.Equal(t, old, giveWay)
		require.False(t, d.Refuse(back), "nor is anybody else told")
	})
	t.Run("closed, it lets nobody in, returns the connections, and is idle when all have left", func(t *testing.T) {
		d := New[*guest](0)
		alice := arrive(t, d, "alice", 1)
		request := &guest{user: "bob"}
		require.True(t, d.Enter(request))
		require.False(t, d.Closing())
		require.Equal(t, []*guest{alice}, d.Close())
		require.True(t, d.Closing())
		require.False(t, d.Enter(new(guest)))
		require.False(t, d.Connected(request))
		require.ElementsMatch(t, []*guest{alice, request}, d.All())
		d.Leave(alice)
		select {
		case <-d.idle:
			t.Fatal("somebody is here")
		default:
		}
		d.Leave(request)
		<-d.idle
		require.Empty(t, d.Close(), "again")
	})
	t.Run("with nobody here it is idle at once", func(t *testing.T) {
		d := New[*guest](0)
		require.Empty(t, d.Close())
		<-d.idle
	})
}

// TestDoorModel does what comes, and counts along.
func TestDoorModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const places = 5
	d := New[*guest](places)
	requests, connections := map[*guest]bool{}, map[*guest]bool{}
	some := func(from map[*guest]bool) *guest {
		for g := range from {
			return g
		}
		return nil
	}
	for range 20_000 {
		switch rnd.IntN(4) {
		case 0:
			if g := (&guest{user: fmt.Sprint(rnd.IntN(4)), heard: time.Unix(rnd.Int64N(9), 0)}); d.Enter(g) {
				requests[g] = true
			}
		case 1:
			if g := some(requests); g != nil {
				delete(requests, g)
				giveWay, ok := d.Claim(g)
				if !ok {
					d.Leave(g)
					break
				}
				if giveWay != nil {
					require.Equal(t, g.user, giveWay.user)
					require.True(t, connections[giveWay])
				}
				require.True(t, d.Connected(g))
				connections[g] = true
			}
		case 2:
			if g := some(requests); g != nil {
				delete(requests, g)
				d.Refuse(g)
				d.Leave(g)
			}
		case 3:
			if g := some(connections); g != nil {
				delete(connections, g)
				d.Leave(g)
			}
		}
		all, beyond := d.Inside()
		require.Equal(t, len(requests)+len(connections), all)
		require.LessOrEqual(t, all-beyond, places)
		require.LessOrEqual(t, beyond, maxBeyond+maxTold)
		require.Len(t, d.All(), len(connections))
	}
	d.Close()
	for _, those := range []map[*guest]bool{requests, connections} {
		for g := range those {
			d.Leave(g)
		}
	}
	<-d.idle
	require.Zero(t, d.taken)
}

func TestFullLog(t *testing.T) {
	t.Run("is one line a minute, with how many there were since", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var text bytes.Buffer
			log := slog.New(slog.NewTextHandler(&text, nil))
			var f FullLog
			for range 20 {
				f.Note(log, "refused", "no room")
			}
			require.Equal(t, 1, strings.Count(text.String(), "no room"))
			nap(logEvery)
			f.Note(log, "refused", "no room")
			require.Equal(t, 2, strings.Count(text.String(), "no room"))
			require.Contains(t, text.String(), `"refused since the last such line"=19`)
		})
	})
}

func TestCounters(t *testing.T) {
	var n Counters
	for status, times := range map[int]int{400: 1, 405: 1, 426: 1, 401: 2, 403: 3, 410: 4, 421: 9, 500: 5, 501: 1, 503: 7} {
		for range times {
			n.Refused(status)
		}
	}
	n.Origin.Add(8)
	n.Accepted.Add(3)
	n.Closed(web.CodeGap)
	n.Closed(web.CodeGap)
	n.Wrote(100, time.Second)
	s := n.Snapshot()
	require.Equal(t, web.Refusals{BadRequest: 3, Credentials: 2, Forbidden: 3, CursorGone: 4, Elsewhere: 9, Failed: 6, Full: 7, Origin: 8}, s.Refused)
	require.Equal(t, 1, s.Connections)
	require.Equal(t, map[web.Code]uint64{web.CodeGap: 2}, s.Closed)
	require.EqualValues(t, 100, s.BytesOut)
	require.EqualValues(t, 1, s.WriteLatency.Count())
}

// nap sleeps in virtual time.
func nap(d time.Duration) { time.Sleep(d) }
