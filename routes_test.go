package notification

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Routes by themselves, without a Broker.
func TestRoutesAlone(t *testing.T) {
	open := func() bool { return false }
	receive := func(id string) *receiver { return newReceiver(id, newStation(id, 1).Inbox()) }
	subscribe := func(id string) *receiver {
		r := receive(id)
		r.global = true
		return r
	}
	names := func(targets []*receiver) (ids []string) {
		for _, r := range targets {
			ids = append(ids, r.id)
		}
		return ids
	}

	t.Run("receivers and global subscribers are in tables of their own, each in the order of their IDs", func(t *testing.T) {
		table := newRoutes(open)
		for _, id := range []string{"b", "c", "a"} {
			require.NoError(t, table.add(receive(id)))
			require.NoError(t, table.add(subscribe(id)))
		}
		require.Equal(t, []string{"a", "b", "c"}, names(table.of(AllUsers).targets))
		require.Equal(t, []string{"a", "b", "c"}, names(*table.subscribers.Load()))
		r, ok := table.receiver("b")
		require.True(t, ok)
		require.True(t, table.remove(r))
		require.False(t, table.remove(r), "it is gone")
		_, ok = table.receiver("b")
		require.False(t, ok)
		require.Equal(t, []string{"a", "c"}, names(table.of(AllUsers).targets))
		require.Equal(t, []string{"a", "b", "c"}, names(*table.subscribers.Load()))
		r, ok = table.global("b")
		require.True(t, ok)
		require.True(t, table.remove(r))
		require.Equal(t, []string{"a", "c"}, names(*table.subscribers.Load()))
	})

	t.Run("a receiver that was replaced under its ID is not removed in the other's place", func(t *testing.T) {
		table := newRoutes(open)
		old, next := receive("r"), receive("r")
		require.NoError(t, table.add(old))
		require.ErrorIs(t, table.add(next), ErrReceiverExists)
		require.True(t, table.remove(old))
		require.NoError(t, table.add(next))
		require.False(t, table.remove(old))
		require.Equal(t, []*receiver{next}, table.of(AllUsers).targets)
	})

	t.Run("once the Broker closes nobody is added, and who is there may go", func(t *testing.T) {
		closed := false
		table := newRoutes(func() bool { return closed })
		r := receive("r")
		require.NoError(t, table.add(r))
		closed = true
		require.ErrorIs(t, table.add(receive("s")), ErrClosed)
		require.ErrorIs(t, table.add(subscribe("s")), ErrClosed)
		require.NoError(t, table.subscribe("u", "r", true))
		require.True(t, table.remove(r))
	})

	t.Run("the route of a user that has one receiver is shared with all such users", func(t *testing.T) {
		table := newRoutes(open)
		r, s := receive("r"), receive("s")
		require.NoError(t, table.add(r))
		require.NoError(t, table.add(s))
		require.NoError(t, table.subscribe("u", "r", true))
		require.NoError(t, table.subscribe("v", "r", true))
		require.Same(t, &r.sole[0], &table.of("u").targets[0])
		require.Same(t, &r.sole[0], &table.of("v").targets[0])
		require.NoError(t, table.subscribe("u", "s", true))
		require.Equal(t, []string{"r"}, names(table.of("v").targets))
		require.NoError(t, table.subscribe("u", "r", false))
		require.Same(t, &s.sole[0], &table.of("u").targets[0])
	})

	t.Run("the routes to one that has left stay until they are forgotten, and lead nowhere", func(t *testing.T) {
		table := newRoutes(open)
		r, s := receive("r"), receive("s")
		require.NoError(t, table.add(r))
		require.NoError(t, table.add(s))
		for _, u := range series("user", 500) {
			require.NoError(t, table.subscribe(u, "r", true))
		}
		require.NoError(t, table.subscribe("user1", "s", true))
		require.True(t, table.remove(r))
		require.Equal(t, []string{"r"}, names(table.of("user2").targets))
		require.True(t, r.left())
		require.False(t, r.enter())
		table.forget(r)
		require.Equal(t, 1, table.users.Size())
		require.Equal(t, []string{"s"}, names(table.of("user1").targets))
	})

	t.Run("what the dispatcher has looked up does not change under it", func(t *testing.T) {
		table := newRoutes(open)
		for _, id := range []string{"a", "b", "c", "d"} {
			require.NoError(t, table.add(receive(id)))
			require.NoError(t, table.subscribe("u", id, true))
		}
		seen, all := table.of("u").targets, table.of(AllUsers).targets
		for _, id := range []string{"b", "a"} {
			require.NoError(t, table.subscribe("u", id, false))
		}
		require.NoError(t, table.add(receive("e")))
		require.NoError(t, table.subscribe("u", "e", true))
		require.Equal(t, []string{"a", "b", "c", "d"}, names(seen))
		require.Equal(t, []string{"a", "b", "c", "d"}, names(all))
		require.ElementsMatch(t, []string{"c", "d", "e"}, names(table.of("u").targets))
	})

	t.Run("what those that left had counted is kept, with what was on its way to them", func(t *testing.T) {
		table := newRoutes(open)
		for _, r := range []*receiver{receive("r"), subscribe("r")} {
			require.NoError(t, table.add(r))
			r.handed.inc()
			r.dropped.inc()
			require.True(t, table.remove(r))
		}
		table.lost()
		var s BrokerStats
		table.stats(&s)
		require.Equal(t, BrokerStats{Departed: ReceiverStats{Handed: 2, Dropped: 3}}, s)
	})
}

func TestRoutesModel(t *testing.T) {
	t.Run("a set of receivers per user says the same, whoever comes and goes", func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed(t), 0))
		table := newRoutes(func() bool { return false })
		model := make(map[string]map[string]bool) // user → receivers
		there := make(map[string]*receiver)
		users, receivers := series("u", 6), series("r", 5)
		for range sized(50_000, 5_000) {
			user, id := users[r.IntN(len(users))], receivers[r.IntN(len(receivers))]
			switch r.IntN(12) {
			case 0:
				n := newReceiver(id, newStation(id, 1).Inbox())
				if err := table.add(n); there[id] != nil {
					require.ErrorIs(t, err, ErrReceiverExists)
				} else {
					require.NoError(t, err)
					there[id] = n
				}
			case 1:
				if n := there[id]; n != nil {
					require.True(t, table.remove(n))
					table.forget(n)
					delete(there, id)
					for _, set := range model {
						delete(set, id)
					}
				}
			default:
				on := r.IntN(2) == 0
				if err := table.subscribe(user, id, on); there[id] == nil {
					require.ErrorIs(t, err, ErrUnknownReceiver)
					break
				}
				if model[user] == nil {
					model[user] = make(map[string]bool)
				}
				if delete(model[user], id); on {
					model[user][id] = true
				}
			}
			routed := 0
			for _, u := range users {
				if len(model[u]) > 0 {
					routed++
				}
				targets := table.of(u).targets
				require.Len(t, targets, len(model[u]))
				for _, n := range targets {
					require.True(t, model[u][n.id])
					require.Same(t, there[n.id], n)
				}
			}
			require.Equal(t, routed, table.users.Size())
			require.Len(t, table.of(AllUsers).targets, len(there))
		}
	})
}

func TestRouting(t *testing.T) {
	inBubble(t, "first the user's receivers, then the global subscribers, each once", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		r1, r2, r3 := newStation("r1", 9), newStation("r2", 9), newStation("r3", 9)
		for _, s := range []*station{r1, r2, r3} {
			route(t, b, s)
		}
		for range 3 {
			require.NoError(t, b.Subscribe("u", "r1"))
			require.NoError(t, b.Subscribe("u", "r2"))
		}
		all := listen(t, b, "all", 9, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		publishTo(t, b, "nobody", P1, "2")
		synctest.Wait()
		x, y, z := r1.poll(), r2.poll(), poll(all)
		require.Equal(t, []string{"1"}, ids(x))
		require.Equal(t, []string{"1"}, ids(y))
		require.Empty(t, r3.poll())
		require.Equal(t, []string{"1", "2"}, ids(z))
		require.Same(t, x[0], y[0], "one message for all")
		require.Same(t, x[0], z[0])
		s := b.Stats().Lanes[P1]
		require.EqualValues(t, 1, s.Routed)
		require.EqualValues(t, 1, s.Unrouted)
	})

	inBubble(t, "a receiver that is full comes before a global subscriber", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		s := route(t, b, newStation("z", 0), "u")
		all := listen(t, b, "a", 9, Wait)
		runBroker(t, b)
		publishTo(t, b, "u", P1, "1")
		synctest.Wait()
		require.Empty(t, all)
		<-s.in[P1]
		synctest.Wait()
		require.Len(t, all, 1)
	})

	inBubble(t, "AllUsers goes to every gateway and receiver, with users or without", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		require.NoError(t, b.Publish(notice("1", P3)))
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Lanes[P3].Unrouted)
		r1, r2 := route(t, b, newStation("r1", 9), "u"), route(t, b, newStation("r2", 9))
		g := newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b.RegisterGateway(g))
		all := listen(t, b, "all", 9, Wait)
		require.NoError(t, b.Publish(notice("2", P3)))
		synctest.Wait()
		for _, got := range [][]*Message{r1.poll(), r2.poll(), poll(g.inbox[P3]), poll(all)} {
			require.Equal(t, []string{"2"}, ids(got))
		}
		require.EqualValues(t, 1, b.Stats().Lanes[P3].Routed)
	})
}

func TestSubscribe(t *testing.T) {
	inBubble(t, "Unsubscribe undoes any number of Subscribes, one receiver at a time", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		stations := []*station{newStation("r0", 9), newStation("r1", 9), newStation("r2", 9)}
		for _, s := range stations {
			route(t, b, s, "u", "u")
		}
		runBroker(t, b)
		serial := 0
		expect := func(who ...int) {
			t.Helper()
			serial++
			publishTo(t, b, "u", P1, strconv.Itoa(serial))
			synctest.Wait()
			var got []int
			for i, s := range stations {
				for range s.poll() {
					got = append(got, i)
				}
			}
			require.Equal(t, who, got)
		}
		expect(0, 1, 2)
		require.NoError(t, b.Unsubscribe("u", "r1"))
		require.NoError(t, b.Unsubscribe("u", "r1"))
		expect(0, 2)
		require.NoError(t, b.Unsubscribe("u", "r0"))
		expect(2)
		require.NoError(t, b.Subscribe("u", "r1"))
		expect(1, 2)
		require.NoError(t, b.Unregister("r2"))
		expect(1)
		require.NoError(t, b.Unsubscribe("u", "r1"))
		expect()
		require.Zero(t, b.Stats().Users)
	})

	inBubble(t, "an ID may return after Unregister, and no route of the first reaches it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		runBroker(t, b)
		old := route(t, b, newStation("r", 9), "u", "v")
		route(t, b, newStation("other", 9), "v")
		require.ErrorIs(t, b.RegisterReceiver(newStation("r", 9)), ErrReceiverExists)
		require.NoError(t, b.Unregister("r"))
		again := route(t, b, newStation("r", 9), "w")
		publishTo(t, b, "u", P1, "1")
		publishTo(t, b, "v", P1, "2")
		publishTo(t, b, "w", P1, "3")
		synctest.Wait()
		require.Empty(t, old.poll())
		require.Equal(t, []string{"3"}, ids(again.poll()))
		require.EqualValues(t, 1, b.Stats().Lanes[P1].Unrouted)
		require.Equal(t, 2, b.Stats().Users, "v and w")
	})

	t.Run("the tables hold no trace of users and receivers that are gone", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		for i := range 100 {
			route(t, b, newStation(fmt.Sprint("r", i), 1), series("user", 50)...)
			listen(t, b, fmt.Sprint("all", i), 1, DropNewest)
		}
		for i := range 100 {
			if i%2 == 0 { // some leave before their users, some after
				for _, u := range series("user", 50) {
					require.NoError(t, b.Unsubscribe(u, fmt.Sprint("r", i)))
				}
			}
			require.NoError(t, b.Unregister(fmt.Sprint("r", i)))
			require.NoError(t, b.UnsubscribeGlobal(fmt.Sprint("all", i)))
		}
		require.Zero(t, b.routes.users.Size())
		require.Empty(t, b.routes.receivers)
		require.Empty(t, b.routes.globals)
		require.Empty(t, *b.routes.all.Load())
		require.Empty(t, *b.routes.subscribers.Load())
	})
}

func TestRegisterRefuses(t *testing.T) {
	t.Run("what cannot be registered is refused, and the error names it", func(t *testing.T) {
		b := newBroker(t, BrokerConfig{})
		route(t, b, newStation("r", 1))
		ch := listen(t, b, "all", 1, Wait)
		holed := func(p Priority) *station {
			s := newStation("holed", 1)
			s.in[p] = nil
			return s
		}
		long := strings.Repeat("x", 257)
		other := newBroker(t, BrokerConfig{})
		taken := newGateway(t, "g", GatewayConfig{})
		require.NoError(t, other.RegisterGateway(taken))
		for _, row := range []struct {
			want error
			says string
			err  error
		}{
			{ErrInvalid, "nil", b.RegisterReceiver(nil)},
			{ErrInvalid, "nil", b.RegisterGateway(nil)},
			{ErrInvalid, "nil", b.RegisterReceiver((*Gateway)(nil))},
			{ErrInvalid, "receiver ID is empty", b.RegisterReceiver(newStation("", 1))},
			{ErrInvalid, "receiver ID has 257 bytes", b.RegisterReceiver(newStation(long, 1))},
			{ErrInvalid, "Inbox[P0]", b.RegisterReceiver(holed(P0))},
			{ErrInvalid, "Inbox[P3]", b.RegisterReceiver(holed(P3))},
			{ErrReceiverExists, `"r"`, b.RegisterReceiver(newStation("r", 1))},
			{ErrReceiverExists, `"r"`, b.RegisterGateway(newGateway(t, "r", GatewayConfig{}))},
			{ErrInvalid, "another Broker", b.RegisterGateway(taken)},
			{ErrInvalid, "another Broker", b.RegisterReceiver(taken)},
			{ErrReceiverExists, `"g"`, other.RegisterReceiver(taken)},
			{ErrInvalid, "subscriber ID is empty", b.SubscribeGlobal("", ch, Wait)},
			{ErrInvalid, "subscriber ID has 257 bytes", b.SubscribeGlobal(long, ch, Wait)},
			{ErrInvalid, "nil", b.SubscribeGlobal("x", nil, Wait)},
			{ErrInvalid, "Overflow 2", b.SubscribeGlobal("x", ch, Wait+1)},
			{ErrReceiverExists, `"all"`, b.SubscribeGlobal("all", ch, Wait)},
			{ErrInvalid, "UserID is empty", b.Subscribe("", "r")},
			{ErrInvalid, "UserID has 257 bytes", b.Subscribe(long, "r")},
			{ErrInvalid, "AllUsers", b.Subscribe(AllUsers, "r")},
			{ErrInvalid, "AllUsers", b.Unsubscribe(AllUsers, "r")},
			{ErrUnknownReceiver, `"all"`, b.Subscribe("u", "all")},
			{ErrUnknownReceiver, `"x"`, b.Unsubscribe("u", "x")},
			{ErrUnknownReceiver, `"all"`, b.Unregister("all")},
			{ErrUnknownReceiver, `"r"`, b.UnsubscribeGlobal("r")},
		} {
			require.ErrorIs(t, row.err, row.want)
			require.ErrorContains(t, row.err, row.says)
		}
		require.NoError(t, b.SubscribeGlobal("r", ch, Wait), "subscribers have names of their own")
		require.Len(t, b.Stats().Receivers, 3)
		require.Zero(t, b.Stats().Users)
	})
}

func TestRegisteredAgain(t *testing.T) {
	for name, missed := range map[string]bool{"something was published in between": true, "nothing was published": false} {
		inBubble(t, "a Gateway that comes back ends its sessions with ErrGap: "+name, func(t *testing.T) {
			b, g := pair(t, BrokerConfig{}, GatewayConfig{})
			before, sink := join(t, g, "before", "u")
			publishTo(t, b, "u", P0, "1")
			synctest.Wait()
			require.NoError(t, b.Unregister("g"))
			during, _ := join(t, g, "during", "u")
			if missed {
				publishTo(t, b, "u", P0, "2")
			}
			synctest.Wait()
			require.NoError(t, before.Err(), "until then sessions live on")
			require.NoError(t, during.Err())
			require.NoError(t, b.RegisterGateway(g))
			<-before.Done()
			<-during.Done()
			require.Equal(t, ErrGap, before.Err())
			require.Equal(t, ErrGap, during.Err())
			require.Equal(t, SessionEnds{Gap: 2}, g.Stats().Ended)
			require.Equal(t, []string{"1"}, sink.ids())

			after, sink := join(t, g, "after", "u")
			publishTo(t, b, "u", P0, "3")
			synctest.Wait()
			require.Equal(t, []string{"3"}, sink.ids())
			require.NoError(t, after.Err())
		})
	}

	inBubble(t, "a Gateway that goes to another Broker ends its sessions with ErrGap", func(t *testing.T) {
		b1, b2, g := newBroker(t, BrokerConfig{}), newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		require.NoError(t, b1.RegisterGateway(g))
		runBroker(t, b1)
		runBroker(t, b2)
		runGateway(t, g)
		s, _ := join(t, g, "s", "u")
		require.NoError(t, b1.Unregister("g"))
		require.ErrorIs(t, b1.Unregister("g"), ErrUnknownReceiver)
		require.NoError(t, b2.RegisterGateway(g))
		<-s.Done()
		require.Equal(t, ErrGap, s.Err())
		_, sink := join(t, g, "s", "u")
		publishTo(t, b1, "u", P0, "1")
		publishTo(t, b2, "u", P0, "2")
		synctest.Wait()
		require.Equal(t, []string{"2"}, sink.ids())
		require.Zero(t, b1.Stats().Users)
		require.Equal(t, 1, b2.Stats().Users)
	})

	inBubble(t, "a Gateway that is registered for the first time has missed nothing", func(t *testing.T) {
		b, g := newBroker(t, BrokerConfig{}), newGateway(t, "g", GatewayConfig{})
		runBroker(t, b)
		runGateway(t, g)
		s, sink := join(t, g, "s", "u")
		require.NoError(t, b.RegisterGateway(g))
		publishTo(t, b, "u", P0, "1")
		synctest.Wait()
		require.NoError(t, s.Err())
		require.Equal(t, []string{"1"}, sink.ids())
	})

	inBubble(t, "a Gateway that was refused is not one that comes back", func(t *testing.T) {
		b, g := pair(t, BrokerConfig{}, GatewayConfig{})
		s, _ := join(t, g, "s", "u")
		require.ErrorIs(t, b.RegisterGateway(g), ErrReceiverExists)
		require.ErrorIs(t, newBroker(t, BrokerConfig{}).RegisterGateway(g), ErrInvalid)
		synctest.Wait()
		require.NoError(t, s.Err())
	})
}
