package notification

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTypeOf(t *testing.T) {
	t.Run("it knows the payload structs and nothing else", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			require.Equal(t, typ, typeOf(specimen(typ).Payload))
		}
		require.Zero(t, typeOf(nil))
		require.Zero(t, typeOf(&AccountUpdate{}))
		require.Zero(t, typeOf((*AccountUpdate)(nil)))
		require.Zero(t, typeOf(embedsPayload{}))
		require.Zero(t, typeOf(&embedsPayload{}))
		require.Zero(t, typeOf(liarPayload{}))
	})
	t.Run("it does not matter how the interface was made", func(t *testing.T) {
		var x any = MarketHalt{}
		require.Equal(t, TypeMarketHalt, typeOf(x.(Payload)))
		require.Equal(t, TypeMarketHalt, typeOf(reflect.ValueOf(x).Interface().(Payload)))
		require.Equal(t, TypeMarketHalt, typeOf(reflect.New(reflect.TypeOf(x)).Elem().Interface().(Payload)))
	})
	t.Run("every slot of the table can be missed", func(t *testing.T) {
		empty := 0
		for _, w := range words {
			if w.word == 0 {
				empty++
			}
		}
		require.Equal(t, len(words)-int(numTypes)+1, empty)
		require.Greater(t, empty, len(words)/2, "searches get long: make it larger")
	})
}

func BenchmarkTypeOf(b *testing.B) {
	p := specimen(TypeTradeExecuted).Payload
	for b.Loop() {
		typeOf(p)
	}
}
