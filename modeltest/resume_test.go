package modeltest

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	. "github.com/qaexchange/notification"
)

// What the model of a Gateway with history is configured with. A message is
// pushed at once, so that at rest a session has got to the end, and how long a
// user is offline is all that time decides on.
const (
	keeps = 5 // per user and lane, and of those to all
	ttl   = time.Second
)

// A place is a cursor and what it should mean.
type place struct {
	cursor Cursor
	epoch  int
	user   string
	life   int // of the user
	seqs   [NumPriorities]int
}

// An entry is a message that got a number.
type entry struct {
	id, user string
	channel  Channel
	seq      int
}

// A client is a session of the model.
type client struct {
	h        *Session
	sink     *sink
	channels []Channel // nil: every
	at       place
	failing  bool // its next Push fails
	want     [NumPriorities][]string
}

func (c *client) admits(ch Channel) bool { return c.channels == nil || slices.Contains(c.channels, ch) }

// An archive is a Broker and a Gateway with history, and what they should be.
type archive struct {
	b *Broker
	g *Gateway

	serial, epoch int
	attached      bool
	clients       []*client // that live
	places        []place   // cursors that somebody has kept
	life          map[string]int
	offline       map[string]time.Time // since when, of users who are known and have no session
	last          [NumPriorities]int
	entries       [NumPriorities][]entry // all there ever were
	unrouted      uint64
	failed, gaps  uint64
}

func (a *archive) online(user string) bool {
	return slices.ContainsFunc(a.clients, func(c *client) bool { return c.at.user == user })
}

func (a *archive) known(user string) bool {
	_, offline := a.offline[user]
	return offline || a.online(user)
}

// kept returns the entries of a lane that are to be there of a user, or of
// AllUsers.
func (a *archive) kept(user string, p Priority) (there []entry) {
	for _, e := range a.entries[p] {
		if e.user == user {
			there = append(there, e)
		}
	}
	return there[max(len(there)-keeps, 0):]
}

// missed returns what a session gets that resumes at a place, and whether that
// is possible without a hole.
func (a *archive) missed(at place, c *client) (ids [NumPriorities][]string, ok bool) {
	if at.epoch != a.epoch || !a.known(c.at.user) || at.user != c.at.user || at.life != a.life[c.at.user] {
		return ids, false
	}
	for p := P0; p <= P3; p++ {
		there := append(a.kept(at.user, p), a.kept(AllUsers, p)...)
		slices.SortFunc(there, func(x, y entry) int { return x.seq - y.seq })
		for _, e := range a.entries[p] {
			if e.seq <= at.seqs[p] || e.user != at.user && e.user != AllUsers || !c.admits(e.channel) {
				continue
			}
			if !slices.Contains(there, e) {
				return ids, false
			}
			ids[p] = append(ids[p], e.id)
		}
	}
	return ids, true
}

// end takes a client off, and remembers how far it had got.
func (a *archive) end(c *client) {
	a.clients = slices.DeleteFunc(a.clients, func(x *client) bool { return x == c })
	c.at.cursor = c.h.Cursor()
	a.places = append(a.places, c.at)
	if !a.online(c.at.user) {
		a.offline[c.at.user] = time.Now()
	}
}

// gap is what Gap does: nobody who is offline is known after it.
func (a *archive) gap() {
	a.epoch++
	clear(a.offline)
	for len(a.clients) > 0 {
		a.gaps++
		a.end(a.clients[0])
	}
}

func (a *archive) publish(rt *rapid.T, user string, ch Channel, p Priority) {
	a.serial++
	id := strconv.Itoa(a.serial)
	require.NoError(rt, a.b.Publish(&Notification{ID: id, UserID: user, Priority: p, Payload: payloads[ch]}))
	synctest.Wait()
	if !a.attached || user != AllUsers && !a.known(user) {
		a.unrouted++
		return
	}
	a.last[p]++
	a.entries[p] = append(a.entries[p], entry{id, user, ch, a.last[p]})
	for _, c := range slices.Clone(a.clients) {
		mine := c.at.user == user || user == AllUsers
		if mine && c.admits(ch) {
			if c.failing { // the others of this batch are none: it is behind all but this one
				c.at.seqs[p] = max(c.at.seqs[p], a.last[p]-1)
				a.failed++
				a.end(c)
				continue
			}
			c.want[p] = append(c.want[p], id)
		}
		if mine {
			c.at.seqs[p] = a.last[p]
		}
	}
}

// agree requires that everything that can be seen is as the model says.
func (a *archive) agree(rt *rapid.T) {
	synctest.Wait()
	gs, bs := a.g.Stats(), a.b.Stats()
	got, unrouted, handed := uint64(0), uint64(0), bs.Departed.Handed
	for p, l := range gs.Lanes {
		balanced(rt, p, l)
		require.EqualValues(rt, a.last[p], l.Received, "P%d: each message that is received has a number", p)
		require.Zero(rt, l.Pending, "P%d", p)
		got += l.Received
		unrouted += bs.Lanes[p].Unrouted
	}
	for _, r := range bs.Receivers {
		handed += r.Handed
	}
	require.Equal(rt, handed, got, "Handed = Received, of all the times it was registered")
	require.Equal(rt, a.unrouted, unrouted)
	require.Equal(rt, len(a.clients), gs.Sessions)
	require.Equal(rt, a.gaps, gs.Ended.Gap)
	require.Equal(rt, a.failed, gs.Ended.Failed)
	require.Zero(rt, gs.Ended.Slow)
	known := 0
	for _, user := range []string{"u", "v", "w"} {
		require.Equal(rt, a.known(user), a.g.Holds(user), "user %s", user)
		if a.known(user) {
			known++
		}
	}
	require.Equal(rt, known, gs.Users)
	for _, c := range a.clients {
		require.NoError(rt, c.h.Err())
		c.sink.mu.Lock()
		got := slices.Clone(c.sink.got)
		c.sink.mu.Unlock()
		var lanes [NumPriorities][]string
		for _, id := range got {
			for p := range a.entries {
				if slices.ContainsFunc(a.entries[p], func(e entry) bool { return e.id == id }) {
					lanes[p] = append(lanes[p], id)
				}
			}
		}
		require.Equal(rt, c.want, lanes, "session %s got, by lane", c.h.ID())
	}
}

func (a *archive) connect(rt *rapid.T) {
	a.serial++
	c := &client{sink: new(sink), failing: rapid.IntRange(0, 5).Draw(rt, "fails if 0") == 0}
	if c.failing {
		c.sink.fail = errPipe
	}
	if rapid.Bool().Draw(rt, "filtered") {
		c.channels = append([]Channel{}, genChannels.Draw(rt, "channels")...)
	}
	c.at.user = genUser.Draw(rt, "user")
	cfg := SessionConfig{ID: "s" + strconv.Itoa(a.serial), UserID: c.at.user, Sink: c.sink, Channels: c.channels, Timeout: -1}
	resumes := len(a.places) > 0 && rapid.IntRange(0, 3).Draw(rt, "anew if 0") > 0
	var from place
	var missed [NumPriorities][]string
	ok := true
	if resumes {
		n := len(a.places)
		from = a.places[rapid.IntRange(max(n-4, 0), n-1).Draw(rt, "place")]
		if rapid.IntRange(0, 9).Draw(rt, "as somebody else if 0") > 0 {
			c.at.user, cfg.UserID = from.user, from.user
		}
		cfg.After = from.cursor
		missed, ok = a.missed(from, c)
	}
	var err error
	c.h, err = a.g.RegisterSession(cfg)
	synctest.Wait()
	if !ok {
		require.ErrorIs(rt, err, ErrCursorGone)
		require.Nil(rt, c.h)
		return
	}
	require.NoError(rt, err)
	user := c.at.user
	if !a.known(user) {
		a.life[user]++
	}
	delete(a.offline, user)
	a.clients = append(a.clients, c)
	c.at.epoch, c.at.life = a.epoch, a.life[user]
	n := 0
	for p := range missed {
		n += len(missed[p])
	}
	if c.failing && n > 0 { // in its first batch
		c.at.seqs = from.seqs
		a.failed++
		a.end(c)
		return
	}
	c.want, c.at.seqs = missed, a.last
}

func TestResumeModel(t *testing.T) {
	check(t, func(rt *rapid.T) {
		a := &archive{attached: true, life: make(map[string]int), offline: make(map[string]time.Time)}
		var err error
		a.b, err = NewBroker(BrokerConfig{})
		require.NoError(rt, err)
		batch := rapid.IntRange(1, keeps).Draw(rt, "batch")
		a.g, err = NewGateway("g", GatewayConfig{
			BatchSize: batch, OutboxMessages: keeps, HistoryMessages: keeps, HistoryTTL: ttl,
			MaxDelay: [NumPriorities]time.Duration{-1, -1, -1, -1}, Pushers: 2,
		})
		require.NoError(rt, err)
		require.NoError(rt, a.b.RegisterGateway(a.g))
		results := make(chan error, 2)
		go func() { results <- a.b.Run(context.Background()) }() // ends with Shutdown below
		go func() { results <- a.g.Run(context.Background()) }() // ends with Shutdown below
		synctest.Wait()
		defer func() { // whatever happened: the bubble must be empty
			at, cancel := context.WithCancel(context.Background())
			cancel()
			_ = a.b.Shutdown(at)
			_ = a.g.Shutdown(at)
			<-results
			<-results
		}()
		one := func(rt *rapid.T) *client {
			if len(a.clients) == 0 {
				rt.Skip("no session")
			}
			return rapid.SampledFrom(a.clients).Draw(rt, "session")
		}
		rarely := func(rt *rapid.T) {
			if rapid.IntRange(0, 14).Draw(rt, "one in fifteen") > 0 {
				rt.Skip("not now")
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": a.agree,
			"publish": func(rt *rapid.T) {
				a.publish(rt, genUser.Draw(rt, "user"), genChannel.Draw(rt, "channel"), genLane.Draw(rt, "lane"))
			},
			"publish some": func(rt *rapid.T) {
				user, p := genUser.Draw(rt, "user"), genLane.Draw(rt, "lane")
				for range rapid.IntRange(2, keeps+2).Draw(rt, "n") {
					a.publish(rt, user, genChannel.Draw(rt, "channel"), p)
				}
			},
			"publish to all": func(rt *rapid.T) { a.publish(rt, AllUsers, ChannelSystem, genLane.Draw(rt, "lane")) },
			"connect":        a.connect,
			"connect again":  a.connect,
			"close": func(rt *rapid.T) {
				c := one(rt)
				require.NoError(rt, c.h.Close())
				a.end(c)
			},
			"keep a cursor": func(rt *rapid.T) {
				c := one(rt)
				at := c.at
				at.cursor = c.h.Cursor()
				a.places = append(a.places, at)
			},
			"change the filter": func(rt *rapid.T) {
				c, channels := one(rt), genChannels.Draw(rt, "channels")
				c.h.SubscribeAll()
				if c.channels = nil; len(channels) > 0 {
					c.h.Subscribe(channels...)
					c.channels = channels
				}
			},
			"time": func(rt *rapid.T) {
				time.Sleep(time.Duration(rapid.IntRange(1, 8).Draw(rt, "tenths")) * ttl / 10)
				synctest.Wait()
				for user, since := range a.offline {
					if time.Since(since) >= ttl {
						delete(a.offline, user)
					}
				}
			},
			"gap": func(rt *rapid.T) {
				rarely(rt)
				a.g.Gap()
				a.gap()
			},
			"leave the Broker": func(rt *rapid.T) {
				if !a.attached {
					rt.Skip("it has")
				}
				rarely(rt)
				require.NoError(rt, a.b.Unregister("g"))
				a.attached = false
				a.epoch++
			},
			"come back": func(rt *rapid.T) {
				if a.attached {
					rt.Skip("it is there")
				}
				require.NoError(rt, a.b.RegisterGateway(a.g))
				a.attached = true
				a.gap()
			},
		})
	})
}
