package notification

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestType(t *testing.T) {
	t.Run("every type has a text form that is read back", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			got, err := ParseType(typ.String())
			require.NoError(t, err)
			require.Equal(t, typ, got)
			text, err := typ.MarshalText()
			require.NoError(t, err)
			require.Equal(t, typ.String(), string(text))
			var back Type
			require.NoError(t, back.UnmarshalText(text))
			require.Equal(t, typ, back)
		}
	})
	t.Run("the codes of the archive stand", func(t *testing.T) {
		require.EqualValues(t, 1, TypeOrderAccepted)
		require.EqualValues(t, 7, TypeTradeExecuted)
		require.EqualValues(t, 10, TypeAccountUpdate)
		require.EqualValues(t, 19, TypeMarketHalt)
	})
	t.Run("it stands in JSON as its name, as a value and as a key", func(t *testing.T) {
		b, err := json.Marshal(map[Type]Type{TypeRiskAlert: TypeMarginCall})
		require.NoError(t, err)
		require.Equal(t, `{"risk_alert":"margin_call"}`, string(b))
		var back map[Type]Type
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, map[Type]Type{TypeRiskAlert: TypeMarginCall}, back)
	})
	t.Run("one that does not exist has a String, no text, no channel, and the lowest priority", func(t *testing.T) {
		for _, typ := range []Type{0, numTypes, 255} {
			require.Equal(t, fmt.Sprintf("Type(%d)", uint8(typ)), typ.String())
			_, err := typ.MarshalText()
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, typ.Channel())
			require.Equal(t, P3, typ.DefaultPriority())
		}
	})
	t.Run("a name that does not exist is ErrInvalid and changes nothing", func(t *testing.T) {
		for _, s := range []string{"", "Order_Filled", "order_filled ", "OrderFilled", "Type(1)", strings.Repeat("x", 1<<16)} {
			_, err := ParseType(s)
			require.ErrorIs(t, err, ErrInvalid)
			require.Less(t, len(err.Error()), 200)
			typ := TypeOrderFilled
			require.ErrorIs(t, typ.UnmarshalText([]byte(s)), ErrInvalid)
			require.Equal(t, TypeOrderFilled, typ)
		}
	})
	t.Run("risk and rejections go first, announcements last", func(t *testing.T) {
		for typ, want := range map[Type]Priority{
			TypeOrderRejected: P0, TypeRiskAlert: P0, TypeMarginCall: P0, TypePositionLimit: P0,
			TypeOrderAccepted: P1, TypeOrderFilled: P1, TypeTradeExecuted: P1, TypeTradeCanceled: P1,
			TypeAccountUpdate: P2, TypePositionProfit: P2, TypeOrderExpired: P3, TypeMarketHalt: P3,
		} {
			require.Equal(t, want, typ.DefaultPriority(), typ)
		}
	})
}

func TestChannel(t *testing.T) {
	t.Run("every channel has a text form that is read back", func(t *testing.T) {
		for c := ChannelTrade; c < numChannels; c++ {
			got, err := ParseChannel(c.String())
			require.NoError(t, err)
			require.Equal(t, c, got)
			text, err := c.MarshalText()
			require.NoError(t, err)
			var back Channel
			require.NoError(t, back.UnmarshalText(text))
			require.Equal(t, c, back)
		}
	})
	t.Run("every channel has a type", func(t *testing.T) {
		seen := map[Channel]bool{}
		for typ := Type(1); typ < numTypes; typ++ {
			seen[typ.Channel()] = true
		}
		require.Len(t, seen, numChannels-1)
	})
	t.Run("one that does not exist has a String and no text", func(t *testing.T) {
		for _, c := range []Channel{0, numChannels, 255} {
			require.Equal(t, fmt.Sprintf("Channel(%d)", uint8(c)), c.String())
			_, err := c.MarshalText()
			require.ErrorIs(t, err, ErrInvalid)
		}
	})
	t.Run("a name that does not exist is ErrInvalid and changes nothing", func(t *testing.T) {
		for _, s := range []string{"", "Trade", "trade ", "trades"} {
			_, err := ParseChannel(s)
			require.ErrorIs(t, err, ErrInvalid)
			c := ChannelRisk
			require.ErrorIs(t, c.UnmarshalText([]byte(s)), ErrInvalid)
			require.Equal(t, ChannelRisk, c)
		}
	})
}

func TestPriority(t *testing.T) {
	t.Run("it has a String, valid or not", func(t *testing.T) {
		require.Equal(t, "P0 P1 P2 P3 Priority(4) Priority(255)", fmt.Sprint(P0, " ", P1, " ", P2, " ", P3, " ", Priority(4), " ", Priority(255)))
	})
	t.Run("it is a number in JSON", func(t *testing.T) {
		b, err := json.Marshal(P2)
		require.NoError(t, err)
		require.Equal(t, "2", string(b))
	})
}

var sunk *Notification // so that the compiler must make what is assigned to it

func TestNew(t *testing.T) {
	t.Run("it fills in what follows from the payload and the moment", func(t *testing.T) {
		before := time.Now().UnixNano()
		n := New("alice", RiskAlert{RiskRatio: 0.95}, "RiskControl")
		require.Equal(t, "alice", n.UserID)
		require.Equal(t, RiskAlert{RiskRatio: 0.95}, n.Payload)
		require.Equal(t, TypeRiskAlert, n.Type())
		require.Equal(t, P0, n.Priority)
		require.Equal(t, "RiskControl", n.Source)
		require.GreaterOrEqual(t, n.Timestamp, before)
		require.LessOrEqual(t, n.Timestamp, time.Now().UnixNano())
		require.NoError(t, n.Validate())
	})
	t.Run("its ID is a random UUID", func(t *testing.T) {
		for range 1000 {
			id := New("alice", AccountUpdate{}, "").ID
			u, err := uuid.Parse(id)
			require.NoError(t, err)
			require.Equal(t, id, u.String())
			require.Equal(t, uuid.Version(4), u.Version())
			require.Equal(t, uuid.RFC4122, u.Variant())
		}
	})
	t.Run("its IDs are unique, from many goroutines too", func(t *testing.T) {
		ids := make([][]string, 8)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				for range 20_000 {
					ids[i] = append(ids[i], freshID())
				}
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, some := range ids {
			for _, id := range some {
				require.False(t, seen[id])
				seen[id] = true
			}
		}
	})
	t.Run("every bit of the ID but six is random", func(t *testing.T) {
		var ones, zeros uuid.UUID
		for range 200 {
			u := uuid.MustParse(freshID())
			for i, b := range u {
				ones[i] |= b
				zeros[i] |= ^b
			}
		}
		fixed := 0
		for i := range ones {
			for bit := range 8 {
				if (ones[i]&zeros[i])>>bit&1 == 0 {
					fixed++
				}
			}
		}
		require.Equal(t, 6, fixed)
	})
	t.Run("it is one allocation", func(t *testing.T) {
		var payload Payload = AccountUpdate{}
		require.EqualValues(t, 1, testing.AllocsPerRun(100, func() { sunk = New("alice", payload, "AccountSystem") }))
	})
	t.Run("its ID outlives it, and changes to it", func(t *testing.T) {
		n := New("alice", AccountUpdate{}, "")
		id, text := n.ID, strings.Clone(n.ID)
		copied := *n
		*n = Notification{}
		n = nil
		runtime.GC()
		require.Equal(t, text, id)
		require.Equal(t, text, copied.ID)
	})
	t.Run("it checks nothing: Validate does", func(t *testing.T) {
		n := New("", nil, "")
		require.Equal(t, P3, n.Priority)
		require.Zero(t, n.Type())
		require.ErrorIs(t, n.Validate(), ErrInvalid)
	})
}

func TestValidate(t *testing.T) {
	valid := func() *Notification { return New("alice", AccountUpdate{}, "AccountSystem") }
	long, mebibyte := strings.Repeat("x", 257), strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name   string
		change func(*Notification)
		says   string // empty: valid
	}{
		{"as New makes it", func(*Notification) {}, ""},
		{"an ID of the producer's", func(n *Notification) { n.ID = "trade-17" }, ""},
		{"an ID of 256 bytes", func(n *Notification) { n.ID = long[1:] }, ""},
		{"a user ID of 256 bytes", func(n *Notification) { n.UserID = long[1:] }, ""},
		{"another priority than its type's", func(n *Notification) { n.Priority = P0 }, ""},
		{"no source, no timestamp", func(n *Notification) { n.Source, n.Timestamp = "", 0 }, ""},
		{"all users with a system payload", func(n *Notification) { n.UserID, n.Payload = AllUsers, MarketHalt{} }, ""},
		{"one user with a system payload", func(n *Notification) { n.Payload = SystemNotice{} }, ""},
		{"an empty ID", func(n *Notification) { n.ID = "" }, "ID is empty"},
		{"an ID of 257 bytes", func(n *Notification) { n.ID = long }, "ID has 257 bytes"},
		{"an empty user ID", func(n *Notification) { n.UserID = "" }, "UserID is empty"},
		{"a user ID of 257 bytes", func(n *Notification) { n.UserID = long }, "UserID has 257 bytes"},
		{"priority 4", func(n *Notification) { n.Priority = 4 }, "Priority 4"},
		{"priority 255", func(n *Notification) { n.Priority = 255 }, "Priority 255"},
		{"no payload", func(n *Notification) { n.Payload = nil }, "Payload is nil"},
		{"a pointer to a payload", func(n *Notification) { n.Payload = &AccountUpdate{} }, "Payload *notification.AccountUpdate"},
		{"a nil pointer to a payload", func(n *Notification) { n.Payload = (*AccountUpdate)(nil) }, "Payload *notification.AccountUpdate"},
		{"a struct that embeds a payload", func(n *Notification) { n.Payload = embedsPayload{} }, "Payload notification.embedsPayload"},
		{"somebody else's payload", func(n *Notification) { n.Payload = liarPayload{} }, "Payload notification.liarPayload"},
		{"all users with an account", func(n *Notification) { n.UserID = AllUsers }, "UserID is AllUsers"},
		{"a source of a mebibyte", func(n *Notification) { n.Source, n.Payload = mebibyte, AccountUpdate{} }, ""},
		{"a mebibyte of text in all", func(n *Notification) {
			n.Source, n.Payload = "s", RiskAlert{UserID: "u", Severity: mebibyte[2:]}
		}, ""},
		{"a source of a byte more", func(n *Notification) { n.Source = mebibyte + "x" }, "Source has 1048577 bytes, and Source and the payload's strings have 1048577 together, over 1048576"},
		{"a payload's string of a byte more", func(n *Notification) { n.Source, n.Payload = "", SystemNotice{Content: mebibyte + "x"} }, "Payload.Content has 1048577 bytes"},
		{"a mebibyte and a byte of text in all", func(n *Notification) {
			n.Source, n.Payload = "s", RiskAlert{UserID: "u", Severity: mebibyte[1:]}
		}, "Payload.Severity has 1048575 bytes, and Source and the payload's strings have 1048577 together"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := valid()
			c.change(n)
			before := *n
			err := n.Validate()
			require.Equal(t, before, *n)
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, c.says)
			require.Less(t, len(err.Error()), 200)
		})
	}
	t.Run("a nil notification is ErrInvalid", func(t *testing.T) {
		require.ErrorIs(t, (*Notification)(nil).Validate(), ErrInvalid)
	})
	t.Run("every type is valid, and floats that are no numbers", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			require.NoError(t, specimen(typ).Validate())
			require.NoError(t, withValues(typ, false, values{strings: []string{""}, floats: extremes}).Validate())
		}
	})
	t.Run("AllUsers is valid with the types of the system only", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			n.UserID = AllUsers
			require.Equal(t, typ.Channel() == ChannelSystem, n.Validate() == nil)
		}
	})
	t.Run("the length of all text is exact, also where it has more than 32 bits", func(t *testing.T) {
		if underRace {
			t.Skip("the race detector has memory of its own for each byte")
		}
		zeroed := make([]byte, 512<<20) // never touched, so never backed by memory
		s := unsafe.String(unsafe.SliceData(zeroed), len(zeroed))
		n := withValues(TypeTradeExecuted, false, values{strings: []string{s}, floats: []float64{1}})
		require.ErrorContains(t, n.Validate(), "Source has 536870912 bytes, and Source and the payload's strings have 4294967296 together")
		b, err := n.AppendBinary(nil)
		require.ErrorIs(t, err, ErrInvalid)
		require.Nil(t, b)
	})
	t.Run("a valid notification allocates nothing to check", func(t *testing.T) {
		n := valid()
		require.Zero(t, testing.AllocsPerRun(50, func() { _ = n.Validate() }))
	})
}

func TestErrors(t *testing.T) {
	all := []error{
		ErrInvalid, ErrClosed, ErrRunning, ErrQueueFull, ErrReceiverExists, ErrUnknownReceiver, ErrSessionExists,
		ErrUnknownSession, ErrTooManySessions, ErrCursorGone, ErrCorrupt,
		ErrSessionClosed, ErrSessionExpired, ErrSessionReplaced, ErrSlowConsumer, ErrGap, ErrSinkPanic, ErrGatewayClosed,
	}
	seen := map[string]bool{}
	for _, err := range all {
		require.True(t, strings.HasPrefix(err.Error(), "notification: "))
		require.False(t, seen[err.Error()], "two errors with one text")
		seen[err.Error()] = true
	}
}

func BenchmarkValidate(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		for b.Loop() {
			if err := n.Validate(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
