package notification

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// baseline is n as a struct whose JSON is made by encoding/json alone.
type baseline struct {
	ID        string `json:"message_id"`
	Type      string `json:"message_type"`
	UserID    string `json:"user_id"`
	Priority  uint8  `json:"priority"`
	Timestamp int64  `json:"timestamp"`
	Source    string `json:"source"`
	Payload   any    `json:"payload"`
}

// mirror returns the baseline of n: its payload's own fields behind the type,
// a float that JSON cannot say as nil.
func mirror(n *Notification) baseline {
	src := reflect.ValueOf(n.Payload)
	fields := []reflect.StructField{{Name: "WireType", Type: reflect.TypeFor[string](), Tag: `json:"type"`}}
	for i := range src.NumField() {
		f := src.Type().Field(i)
		f.Offset, f.Index = 0, nil
		if f.Type.Kind() == reflect.Float64 {
			f.Type = reflect.TypeFor[*float64]()
		}
		fields = append(fields, f)
	}
	dst := reflect.New(reflect.StructOf(fields)).Elem()
	dst.Field(0).SetString(n.Type().String())
	for i := range src.NumField() {
		if f := src.Field(i); f.Kind() != reflect.Float64 {
			dst.Field(i + 1).Set(f)
		} else if v := f.Float(); !math.IsNaN(v) && !math.IsInf(v, 0) {
			dst.Field(i + 1).Set(reflect.ValueOf(&v))
		}
	}
	return baseline{n.ID, n.Type().String(), n.UserID, uint8(n.Priority), n.Timestamp, n.Source, dst.Interface()}
}

// rawReplacement tells whether this toolchain's encoding/json is that of Go
// 1.27, which writes U+FFFD for bytes that are not UTF-8. Before, and without
// GOEXPERIMENT=jsonv2, it writes the escape of it.
var rawReplacement = func() bool {
	b, _ := json.Marshal("\xff")
	return string(b) == "\"\ufffd\""
}()

// stdJSON returns what encoding/json of Go 1.27 makes of v.
func stdJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	if rawReplacement {
		return b
	}
	out := b[:0]
	for rest := b; len(rest) > 0; {
		n := 1
		if rest[0] == '\\' {
			n = 2 // so that what is behind an escaped backslash is no escape
		}
		if after, ok := bytes.CutPrefix(rest, []byte(`\ufffd`)); ok {
			out, rest = append(out, "\ufffd"...), after
		} else {
			out, rest = append(out, rest[:n]...), rest[n:]
		}
	}
	return out
}

// requireJSON asserts that AppendJSON makes of n what encoding/json does, and
// again in buffers with any room from none to more than enough.
func requireJSON(t *testing.T, n *Notification, rooms bool) {
	t.Helper()
	want := stdJSON(t, mirror(n))
	got := n.AppendJSON(nil)
	if !bytes.Equal(want, got) {
		require.Equal(t, string(want), string(got))
	}
	require.True(t, json.Valid(got) && utf8.Valid(got))
	if !rooms {
		return
	}
	for room := 0; room < len(want)+70; room++ {
		buf := bytes.Repeat([]byte{'#'}, 3+room+40)
		got := n.AppendJSON(buf[: 3 : 3+room])
		require.Equal(t, "###"+string(want), string(got))
		require.Equal(t, strings.Repeat("#", 40), string(buf[3+room:]), "written behind the capacity")
	}
}

func TestAppendJSON(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		t.Run("it is what encoding/json makes of it, whatever the room", func(t *testing.T) {
			requireJSON(t, specimen(typ), true)
		})
		t.Run("it reads back as the same", func(t *testing.T) {
			n := specimen(typ)
			var got Notification
			require.NoError(t, json.Unmarshal(n.AppendJSON(nil), &got))
			require.Equal(t, *n, got)
		})
	})
	t.Run("MarshalJSON is found wherever a Notification stands", func(t *testing.T) {
		n := specimen(TypeRiskAlert)
		want := string(n.AppendJSON(nil))
		for _, v := range []any{n, *n, []any{*n}, map[string]Notification{"n": *n}, struct{ N Notification }{*n}} {
			got, err := json.Marshal(v)
			require.NoError(t, err)
			require.Contains(t, string(got), want)
		}
		got, err := n.MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	})
	t.Run("an invalid notification still makes valid JSON", func(t *testing.T) {
		for _, p := range []Payload{nil, &AccountUpdate{}, (*AccountUpdate)(nil), embedsPayload{}, liarPayload{}, AccountUpdate{}} {
			for _, priority := range []Priority{P0, P3, 4, 9, 10, 99, 200, 255} {
				n := &Notification{Priority: priority, Payload: p}
				got := n.AppendJSON(nil)
				require.True(t, json.Valid(got), "%s", got)
				var head map[string]json.RawMessage
				require.NoError(t, json.Unmarshal(got, &head))
				require.Len(t, head, 7)
				require.Equal(t, strconv.Itoa(int(priority)), string(head["priority"]))
				if typeOf(p) == 0 {
					require.Equal(t, `""`, string(head["message_type"]))
					require.Equal(t, "null", string(head["payload"]))
				}
			}
		}
		require.Equal(t, "null", string((*Notification)(nil).AppendJSON(nil)))
		require.NotPanics(t, func() { new(Notification).AppendJSON(nil) })
	})
	t.Run("into a buffer that fits it allocates nothing", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			for _, slack := range []int{0, 1, 40} {
				buf := make([]byte, 0, len(n.AppendJSON(nil))+slack)
				require.Zero(t, testing.AllocsPerRun(50, func() { buf = n.AppendJSON(buf[:0]) }))
			}
		}
	})
	t.Run("many goroutines may encode one notification", func(t *testing.T) {
		n := specimen(TypeTradeExecuted)
		want := string(n.AppendJSON(nil))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 100 {
					if string(n.AppendJSON(nil)) != want {
						t.Error("it differs")
					}
				}
			})
		}
		wg.Wait()
	})
}

// generic decodes JSON into maps, its numbers into their text.
func generic(t *testing.T, b []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	require.NoError(t, d.Decode(&v))
	return v
}

func FuzzAppendJSON(f *testing.F) {
	for i, s := range hostile {
		f.Add(uint8(i), s, "user_00042", "MatchingEngine", s, "BUY"+s, extremes[i], 85230.5, int64(moment), uint32(i)<<8, uint8(i))
	}
	f.Fuzz(func(t *testing.T, typ uint8, id, user, source, s1, s2 string, f1, f2 float64, i int64, u uint32, room uint8) {
		n := fuzzed(typ, id, user, source, s1, s2, f1, f2, i, u)
		want := stdJSON(t, mirror(n))
		got := n.AppendJSON(make([]byte, 0, max(0, len(want)-64+int(room))))
		if !bytes.Equal(want, got) {
			t.Fatalf("encoding/json makes\n%s\nAppendJSON\n%s", want, got)
		}
		var back Notification
		if err := back.UnmarshalJSON(got); n.Priority < NumPriorities {
			require.NoError(t, err)
			require.Equal(t, generic(t, want), generic(t, back.AppendJSON(nil)))
		} else {
			require.ErrorIs(t, err, ErrInvalid)
		}
	})
}

func BenchmarkAppendJSON(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		buf := make([]byte, 0, 1024)
		for b.Loop() {
			buf = n.AppendJSON(buf[:0])
		}
		b.ReportMetric(float64(len(buf)), "bytes")
	})
}

// BenchmarkEncodingJSON is what BenchmarkAppendJSON stands beside.
func BenchmarkEncodingJSON(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		m := withoutMethods(n)
		if want, _ := json.Marshal(m); string(want) != string(n.AppendJSON(nil)) {
			b.Fatalf("it encodes something else: %s", want)
		}
		for b.Loop() {
			if _, err := json.Marshal(m); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// withoutMethods returns what encoding/json makes the same of as AppendJSON of
// n: the same structs, their type in front, without this package's methods.
func withoutMethods(n *Notification) *baseline {
	m := &baseline{n.ID, n.Type().String(), n.UserID, uint8(n.Priority), n.Timestamp, n.Source, nil}
	switch p := n.Payload.(type) {
	case AccountUpdate:
		m.Payload = struct {
			Type string `json:"type"`
			AccountUpdate
		}{m.Type, p}
	case TradeExecuted:
		m.Payload = struct {
			Type string `json:"type"`
			TradeExecuted
		}{m.Type, p}
	}
	return m
}
