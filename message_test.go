package notification

import (
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestMessage(t *testing.T) {
	t.Run("it is 48 bytes", func(t *testing.T) {
		if strconv.IntSize == 64 {
			require.EqualValues(t, 48, unsafe.Sizeof(Message{}))
		}
	})
	t.Run("JSON is encoded once, whoever asks first", func(t *testing.T) {
		n := specimen(TypeTradeExecuted)
		m := NewMessage(n)
		require.Same(t, n, m.Notification())
		got := make([][]byte, 16)
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() { got[i] = m.JSON() })
		}
		wg.Wait()
		for _, b := range got {
			require.Equal(t, string(n.AppendJSON(nil)), string(b))
			require.Same(t, &got[0][0], &b[0])
			require.Equal(t, len(b), cap(b))
		}
	})
	t.Run("JSON is one allocation, of the length it takes", func(t *testing.T) {
		if underRace {
			t.Skip("the race detector makes pools forget")
		}
		long := specimen(TypeSystemNotice)
		long.Payload = SystemNotice{Content: strings.Repeat("停市", 2000)}
		for _, n := range []*Notification{specimen(TypeAccountUpdate), specimen(TypeTradeExecuted), long} {
			ms := make([]Message, 200)
			i := 0
			require.EqualValues(t, 1, testing.AllocsPerRun(len(ms)-1, func() {
				ms[i].n = n
				ms[i].JSON()
				i++
			}))
		}
	})
	t.Run("AppendJSON appends the same, and keeps it only for AllUsers", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			n.UserID = "alice"
			m := NewMessage(n)
			require.Equal(t, "[ "+string(n.AppendJSON(nil)), string(m.AppendJSON([]byte("[ "))))
			require.False(t, m.encoded.Load())
			m.JSON()
			copy(bytesView(m.json), "kept") // nobody who encodes again has this
			require.Equal(t, "[ "+m.json, string(m.AppendJSON([]byte("[ "))))
		}
		n := specimen(TypeMarketHalt)
		n.UserID = AllUsers
		m := NewMessage(n)
		require.Equal(t, string(n.AppendJSON(nil)), string(m.AppendJSON(nil)))
		require.True(t, m.encoded.Load())
		copy(bytesView(m.json), "kept")
		require.Equal(t, m.json, string(m.AppendJSON(nil)))
	})
	t.Run("AppendJSON allocates nothing where there is room", func(t *testing.T) {
		m, room := NewMessage(specimen(TypeTradeExecuted)), make([]byte, 0, 1024)
		require.Zero(t, testing.AllocsPerRun(100, func() { m.AppendJSON(room) }))
	})
	t.Run("JSON and AppendJSON of many at once", func(t *testing.T) {
		for _, user := range []string{"alice", AllUsers} {
			n := specimen(TypeSystemNotice)
			n.UserID = user
			m, want := NewMessage(n), string(n.AppendJSON(nil))
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					got := m.AppendJSON(nil)
					if i%4 == 0 {
						got = m.JSON()
					}
					if string(got) != want {
						t.Errorf("%s, not %s", got, want)
					}
				})
			}
			wg.Wait()
		}
	})
	t.Run("a notification that is invalid, or changed since, does not break it", func(t *testing.T) {
		n := specimen(TypeTradeExecuted)
		m := NewMessage(n)
		n.Payload, n.Priority = nil, 77
		require.Equal(t, TypeTradeExecuted, m.typ)
		require.Equal(t, TypeTradeExecuted.DefaultPriority(), m.priority)
		require.False(t, m.invalid)
		require.True(t, json.Valid(m.JSON()))

		astray := specimen(TypeTradeExecuted)
		astray.Priority = 200
		for _, n := range []*Notification{nil, {}, astray} {
			m := NewMessage(n)
			require.True(t, m.invalid)
			require.LessOrEqual(t, m.priority, P3)
			require.True(t, json.Valid(m.JSON()))
		}
	})
}

func BenchmarkMessageJSON(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		for b.Loop() {
			m := Message{n: n}
			m.JSON()
		}
	})
}
