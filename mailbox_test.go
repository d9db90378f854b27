package notification

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMailbox(t *testing.T) {
	t.Run("what was put first is taken first, as much as fits", func(t *testing.T) {
		var b mailbox[int]
		buf := make([]int, 2)
		require.Empty(t, b.take(buf))
		for i := range 5 {
			first, ok := b.put(i)
			require.Equal(t, i == 0, first)
			require.True(t, ok)
		}
		require.Equal(t, []int{0, 1}, b.take(buf))
		first, _ := b.put(5)
		require.False(t, first)
		require.Equal(t, []int{2, 3}, b.take(buf))
		require.True(t, b.some.Load())
		require.Equal(t, []int{4, 5}, b.take(buf))
		require.False(t, b.some.Load())
		require.Empty(t, b.take(buf))
		first, _ = b.put(6)
		require.True(t, first, "it was empty in between")
	})
	t.Run("what is dropped is counted, and a closed mailbox takes nothing", func(t *testing.T) {
		var b mailbox[string]
		b.put("a")
		b.put("b")
		require.Equal(t, 2, b.drop(false))
		first, ok := b.put("c")
		require.True(t, first)
		require.True(t, ok)
		require.Equal(t, 1, b.drop(true))
		_, ok = b.put("d")
		require.False(t, ok)
		require.Zero(t, b.drop(false))
		require.Empty(t, b.take(make([]string, 1)))
	})
}
