package notification

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

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

// oneField is a payload that has least besides a field.
type oneField[V Number | string] struct {
	Value V `json:"value"`
}

func (oneField[V]) Type() Type { return 0 }

// onePointer is what no payload struct may be: an interface keeps the pointer in
// its word itself.
type onePointer struct {
	Text *string `json:"text"`
}

func (onePointer) Type() Type { return 0 }

func TestDataOf(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		t.Run("it points to what a type assertion gives", func(t *testing.T) {
			s := structs[typ]
			a, err := OpenArchive(archive(t, specimen(typ)))
			require.NoError(t, err)
			for _, p := range []Payload{
				specimen(typ).Payload,
				catalog[typ].payload,
				withValues(typ, false, values{strings: hostile, floats: extremes[1:2], int: -1, uint32: 7, uint8: 8}).Payload,
				reflect.ValueOf(specimen(typ).Payload).Interface().(Payload),
				a.Notification().Payload,
			} {
				require.Equal(t, s.assert(p), s.data(p))
				require.Equal(t, p, s.data(p))
			}
		})
	})
	t.Run("a struct of any field that add admits is behind a pointer", func(t *testing.T) {
		behindPointer(t, 85230.5)
		behindPointer(t, int64(moment))
		behindPointer(t, uint32(4003))
		behindPointer(t, uint8(7))
		behindPointer(t, "cu2512")
	})
	t.Run("a struct that would be kept in the word itself, add does not admit", func(t *testing.T) {
		text := "cu2512"
		p := onePointer{&text}
		require.Equal(t, unsafe.Pointer(&text), dataOf(p), "the compiler keeps it elsewhere now: the comment of dataOf is out of date")
		require.PanicsWithValue(t, "notification: notification.onePointer.Text is a *string, which has no encoding", func() {
			(&layout{payload: reflect.TypeOf(p)}).add(reflect.TypeOf(p).Field(0))
		})
	})
}

func behindPointer[V Number | string](t *testing.T, v V) {
	var p Payload = oneField[V]{v}
	require.Equal(t, v, (*oneField[V])(dataOf(p)).Value)
	require.NotPanics(t, func() { new(layout).add(reflect.TypeOf(p).Field(0)) })
}

func TestUnsafe(t *testing.T) {
	t.Run("all unsafe of the package stands in layout.go", func(t *testing.T) {
		paths, err := filepath.Glob("*.go")
		require.NoError(t, err)
		var with []string
		for _, path := range paths {
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			require.NoError(t, err)
			for _, imported := range f.Imports {
				if imported.Path.Value == `"unsafe"` && !strings.HasSuffix(path, "_test.go") {
					with = append(with, path)
				}
			}
		}
		require.Equal(t, []string{"layout.go"}, with)
	})
	t.Run("a view of bytes is the same bytes", func(t *testing.T) {
		b := []byte("archive")
		s := stringView(b)
		require.Equal(t, "archive", s)
		b[0] = 'A'
		require.Equal(t, "Archive", s)
		require.Same(t, &b[0], unsafe.StringData(s))
		require.Empty(t, stringView(nil))
		require.Empty(t, bytesView(""))
	})
	t.Run("what is appended to a view of a string is a copy", func(t *testing.T) {
		s := strings.Repeat("x", 10)
		part := s[:5]
		v := bytesView(part)
		require.Equal(t, len(v), cap(v))
		_ = append(v, 'y')
		require.Equal(t, "xxxxxxxxxx", s)
	})
}

func BenchmarkTypeOf(b *testing.B) {
	p := specimen(TypeTradeExecuted).Payload
	for b.Loop() {
		typeOf(p)
	}
}
