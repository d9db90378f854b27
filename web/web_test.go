package web

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
)

func TestIdentity(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name  string
		id    Identity
		field string // empty: good
	}{
		{"a user without end", Identity{UserID: "alice"}, ""},
		{"a user until later", Identity{UserID: strings.Repeat("x", 256), Expires: now.Add(1)}, ""},
		{"nobody", Identity{}, "UserID"},
		{"everybody", Identity{UserID: notification.AllUsers}, "UserID"},
		{"an endless name", Identity{UserID: strings.Repeat("x", 257)}, "UserID"},
		{"a user until now", Identity{UserID: "alice", Expires: now}, "Expires"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.id.Check(now)
			if test.field == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, notification.ErrInvalid)
			require.ErrorContains(t, err, test.field)
		})
	}
}

func TestParseChannels(t *testing.T) {
	t.Run("names with commas between them, in any order", func(t *testing.T) {
		channels, err := ParseChannels("risk,trade")
		require.NoError(t, err)
		require.Equal(t, []notification.Channel{notification.ChannelRisk, notification.ChannelTrade}, channels)
	})
	t.Run("nothing is none, which is not nil", func(t *testing.T) {
		channels, err := ParseChannels("")
		require.NoError(t, err)
		require.Equal(t, []notification.Channel{}, channels)
	})
	t.Run("anything else is invalid", func(t *testing.T) {
		for _, list := range []string{",", "risk,", "Risk", "risk trade", "gossip"} {
			_, err := ParseChannels(list)
			require.ErrorIs(t, err, notification.ErrInvalid, list)
		}
	})
}

func TestCodeOf(t *testing.T) {
	for reason, code := range map[error]Code{
		notification.ErrSessionClosed:                              1000,
		notification.ErrGatewayClosed:                              1001,
		notification.ErrSinkPanic:                                  1011,
		errors.New("broken pipe"):                                  1011,
		notification.ErrSlowConsumer:                               4000,
		notification.ErrSessionExpired:                             4001,
		notification.ErrGap:                                        4100,
		notification.ErrSessionReplaced:                            4409,
		fmt.Errorf("wrapped: %w", notification.ErrSlowConsumer):    4000,
		fmt.Errorf("wrapped: %w", notification.ErrSessionReplaced): 4409,
	} {
		require.Equal(t, code, CodeOf(reason), "%v", reason)
	}
	require.Equal(t, "4409", CodeReplaced.String())
}

func TestTicketConfig(t *testing.T) {
	_, err := NewTickets(TicketConfig{TTL: -1})
	require.ErrorIs(t, err, notification.ErrInvalid)
	require.ErrorContains(t, err, "TTL")
	_, err = NewTickets(TicketConfig{MaxTickets: -1})
	require.ErrorIs(t, err, notification.ErrInvalid)
	require.ErrorContains(t, err, "MaxTickets")
}

func TestTickets(t *testing.T) {
	issue := func(t *testing.T, store TicketStore, user string) string {
		ticket, err := store.Issue(t.Context(), Identity{UserID: user})
		require.NoError(t, err)
		return ticket
	}
	stands := func(t *testing.T, cfg TicketConfig) *Tickets {
		store, err := NewTickets(cfg)
		require.NoError(t, err)
		return store
	}
	t.Run("a ticket is what it was issued for, once", func(t *testing.T) {
		store := stands(t, TicketConfig{})
		id := Identity{UserID: "alice", Expires: time.Now().Add(time.Hour)}
		ticket, err := store.Issue(t.Context(), id)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(ticket), 26, "128 bits in base32")
		got, err := store.Redeem(t.Context(), ticket)
		require.NoError(t, err)
		require.Equal(t, id, got)
		_, err = store.Redeem(t.Context(), ticket)
		require.ErrorIs(t, err, ErrTicket)
	})
	t.Run("one that was never issued is none", func(t *testing.T) {
		store := stands(t, TicketConfig{})
		for _, ticket := range []string{"", "nonsense"} {
			_, err := store.Redeem(t.Context(), ticket)
			require.ErrorIs(t, err, ErrTicket)
		}
	})
	t.Run("it is in the URL", func(t *testing.T) {
		require.Equal(t, "x", TicketOf(httptest.NewRequest("GET", "/ws?cursor=c&ticket=x", nil)))
		require.Empty(t, TicketOf(httptest.NewRequest("GET", "/ws", nil)))
	})
	t.Run("for nobody there is none", func(t *testing.T) {
		store := stands(t, TicketConfig{})
		for _, id := range []Identity{{}, {UserID: "*"}, {UserID: "alice", Expires: time.Unix(1, 0)}} {
			_, err := store.Issue(t.Context(), id)
			require.ErrorIs(t, err, notification.ErrInvalid)
		}
	})
	t.Run("it holds for its TTL and no longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := stands(t, TicketConfig{})
			early, late := issue(t, store, "alice"), issue(t, store, "alice")
			nap(30*time.Second - 1)
			_, err := store.Redeem(t.Context(), early)
			require.NoError(t, err)
			nap(time.Nanosecond)
			_, err = store.Redeem(t.Context(), late)
			require.ErrorIs(t, err, ErrTicket)
		})
	})
	t.Run("what has expired or was redeemed takes no room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := stands(t, TicketConfig{})
			for range 1000 {
				issue(t, store, "alice")
			}
			nap(30 * time.Second)
			for range 1000 {
				_, err := store.Redeem(t.Context(), issue(t, store, "alice"))
				require.NoError(t, err)
			}
			require.Empty(t, store.issued)
			require.Zero(t, store.order.Len())
		})
	})
	t.Run("over MaxTickets the oldest make room", func(t *testing.T) {
		store := stands(t, TicketConfig{MaxTickets: 2})
		first, second, third := issue(t, store, "a"), issue(t, store, "b"), issue(t, store, "c")
		_, err := store.Redeem(t.Context(), first)
		require.ErrorIs(t, err, ErrTicket)
		for _, ticket := range []string{second, third} {
			_, err = store.Redeem(t.Context(), ticket)
			require.NoError(t, err)
		}
	})
	t.Run("those that were redeemed take nobody's room", func(t *testing.T) {
		store := stands(t, TicketConfig{MaxTickets: 2})
		waits := issue(t, store, "alice")
		for range 10 {
			_, err := store.Redeem(t.Context(), issue(t, store, "bob"))
			require.NoError(t, err)
		}
		_, err := store.Redeem(t.Context(), waits)
		require.NoError(t, err)
	})
	t.Run("of many who redeem it at once, one succeeds", func(t *testing.T) {
		store := stands(t, TicketConfig{})
		for range 100 {
			ticket := issue(t, store, "alice")
			var won atomic.Int32
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					if _, err := store.Redeem(context.Background(), ticket); err == nil {
						won.Add(1)
					}
				})
			}
			all.Wait()
			require.EqualValues(t, 1, won.Load())
		}
	})
}

// nap sleeps in virtual time.
func nap(d time.Duration) { time.Sleep(d) }
