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

func TestUnmarshalJSON(t *testing.T) {
	const (
		head = `"message_id":"m","message_type":"market_halt","user_id":"*","priority":3,"timestamp":7,"source":"s"`
		body = `"type":"market_halt","instrument_id":"i","reason":"r","resume_at":8,"timestamp":9`
	)
	want := Notification{ID: "m", UserID: "*", Priority: P3, Timestamp: 7, Source: "s", Payload: MarketHalt{InstrumentID: "i", Reason: "r", ResumeAt: 8, Timestamp: 9}}

	t.Run("null for a float is NaN", func(t *testing.T) {
		n := specimen(TypeAccountUpdate)
		p := n.Payload.(AccountUpdate)
		p.RiskRatio, p.Margin = math.Inf(1), math.NaN()
		n.Payload = p
		var got Notification
		require.NoError(t, got.UnmarshalJSON(n.AppendJSON(nil)))
		q := got.Payload.(AccountUpdate)
		require.True(t, math.IsNaN(q.RiskRatio) && math.IsNaN(q.Margin))
		require.Equal(t, p.Balance, q.Balance)
	})
	t.Run("null for the whole changes nothing", func(t *testing.T) {
		n := want
		require.NoError(t, json.Unmarshal([]byte(" null "), &n))
		require.NoError(t, n.UnmarshalJSON([]byte("null")))
		require.Equal(t, want, n)
	})

	t.Run("what is JSON and fits is read, all else is ErrInvalid and changes nothing", func(t *testing.T) {
		type test struct {
			name, in string
			want     *Notification // nil: an error
			says     string
		}
		with := func(f func(*Notification)) *Notification {
			n := want
			f(&n)
			return &n
		}
		deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
		deepObject := strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
		for _, c := range []test{
			{"as written", `{` + head + `,"payload":{` + body + `}}`, &want, ""},
			{"with white space and another order", " {\n\"payload\" : {" + body + "\t},\r\n" + head + "} ", &want, ""},
			{"an unknown key", `{"x":[1,{"y":null}],` + head + `,"payload":{"z":{},` + body + `}}`, &want, ""},
			{"keys are case sensitive", `{` + head + `,"SOURCE":"t","payload":{` + body + `,"REASON":"q"}}`, &want, ""},
			{"a duplicate key: the last counts", `{` + head + `,"priority":1,"payload":{` + body + `,"reason":"q"}}`, with(func(n *Notification) {
				n.Priority = P1
				p := n.Payload.(MarketHalt)
				p.Reason = "q"
				n.Payload = p
			}), ""},
			{"a duplicate type of another type", `{` + head + `,"message_type":"risk_alert","payload":{` + body + `}}`, nil, "risk_alert"},
			{"missing keys", `{"message_type":"market_halt","payload":{}}`, &Notification{Payload: MarketHalt{}}, ""},
			{"null for strings and integers", `{"message_id":null,"message_type":"market_halt","priority":null,"payload":{"reason":null,"resume_at":null}}`, &Notification{Payload: MarketHalt{}}, ""},
			{"escapes", `{"message_id":"\u0041\ud83d\ude80\ud800","message_type":"market\u005fhalt","payload":{"\u0072eason":"\"\\\/"}}`, &Notification{ID: "A🚀\ufffd", Payload: MarketHalt{Reason: `"\/`}}, ""},
			{"a missing payload", `{` + head + `}`, nil, "payload is missing"},
			{"a null payload", `{` + head + `,"payload":null}`, nil, "payload is missing"},
			{"a missing type", `{"payload":{` + body + `}}`, nil, "message_type is missing"},
			{"a null type", `{"message_type":null,"payload":{` + body + `}}`, nil, "message_type is missing"},
			{"an unknown type", `{"message_type":"market_crash","payload":{}}`, nil, `"market_crash" is unknown`},
			{"an empty type", `{"message_type":"","payload":{}}`, nil, "message_type"},
			{"a type of another case", `{"message_type":"MARKET_HALT","payload":{}}`, nil, "message_type"},
			{"a number for the type", `{"message_type":19,"payload":{}}`, nil, "message_type"},
			{"a payload of another type", `{` + head + `,"payload":{"type":"risk_alert"}}`, nil, `"risk_alert" under message_type "market_halt"`},
			{"a payload of an unknown type", `{` + head + `,"payload":{"type":"nothing"}}`, nil, "nothing"},
			{"priority 4", `{` + head + `,"priority":4,"payload":{` + body + `}}`, nil, "priority 4"},
			{"priority 255", `{` + head + `,"priority":255,"payload":{` + body + `}}`, nil, "priority 255"},
			{"priority 256", `{` + head + `,"priority":256,"payload":{` + body + `}}`, nil, "priority"},
			{"priority -1", `{` + head + `,"priority":-1,"payload":{` + body + `}}`, nil, "priority"},
			{"priority 1.5", `{` + head + `,"priority":1.5,"payload":{` + body + `}}`, nil, "priority"},
			{"priority P1", `{` + head + `,"priority":"P1","payload":{` + body + `}}`, nil, "priority"},
			{"a string for an integer", `{` + head + `,"payload":{` + body + `,"resume_at":"8"}}`, nil, "resume_at"},
			{"an integer over its range", `{` + head + `,"timestamp":9223372036854775808,"payload":{` + body + `}}`, nil, "timestamp"},
			{"a number for a string", `{` + head + `,"payload":{` + body + `,"reason":1}}`, nil, "reason"},
			{"an object for a string", `{` + head + `,"source":{},"payload":{` + body + `}}`, nil, "source"},
			{"an array for the payload", `{` + head + `,"payload":[]}`, nil, "payload"},
			{"a string for a float", `{"message_type":"account_update","payload":{"balance":"1"}}`, nil, "balance"},
			{"a float over its range", `{"message_type":"account_update","payload":{"balance":1e999}}`, nil, "balance"},
			{"an uint32 over its range", `{"message_type":"order_rejected","payload":{"error_code":4294967296}}`, nil, "error_code"},
			{"an uint8 over its range", `{"message_type":"account_open","payload":{"account_type":256}}`, nil, "account_type"},
			{"10,000 levels of arrays", `{` + head + `,"x":` + deep + `,"payload":{` + body + `}}`, nil, "depth"},
			{"10,000 levels of objects", deepObject, nil, "message_type is missing"},
			{"10,000 levels for a string", `{` + head + `,"source":` + deep[1:len(deep)-1] + `,"payload":{` + body + `}}`, nil, ""},
			{"an array", `[]`, nil, ""},
			{"a string", `"x"`, nil, ""},
			{"a number", `1`, nil, ""},
			{"nothing", ``, nil, ""},
			{"half an object", `{` + head, nil, ""},
			{"two objects", `{` + head + `,"payload":{` + body + `}}{}`, nil, ""},
			{"invalid UTF-8", "{\"message_id\":\"a\xff\",\"message_type\":\"market_halt\",\"payload\":{}}", &Notification{ID: "a\ufffd", Payload: MarketHalt{}}, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				before := *specimen(TypeTradeExecuted)
				n := before
				err := n.UnmarshalJSON([]byte(c.in))
				_, ok := slowUnmarshalJSON([]byte(c.in))
				require.Equal(t, c.want != nil, ok, "the model disagrees")
				if c.want != nil {
					require.NoError(t, err)
					require.Equal(t, *c.want, n)
					return
				}
				require.ErrorIs(t, err, ErrInvalid)
				require.ErrorContains(t, err, c.says)
				require.Equal(t, before, n, "a failed read changed it")
				require.Less(t, len(err.Error()), 300)
			})
		}
	})
}

// slowUnmarshalJSON is UnmarshalJSON by way of encoding/json and maps.
func slowUnmarshalJSON(b []byte) (n *Notification, ok bool) {
	var head, body map[string]json.RawMessage
	if json.Unmarshal(b, &head) != nil || head == nil {
		return nil, false
	}
	n = new(Notification)
	var typ, said Type
	into := func(object map[string]json.RawMessage, name string, dst any) bool {
		raw, found := object[name]
		return !found || json.Unmarshal(raw, dst) == nil
	}
	if !into(head, "message_id", &n.ID) || !into(head, "message_type", &typ) || !into(head, "user_id", &n.UserID) ||
		!into(head, "priority", &n.Priority) || !into(head, "timestamp", &n.Timestamp) || !into(head, "source", &n.Source) ||
		!into(head, "payload", &body) || body == nil || !into(body, "type", &said) ||
		typ == 0 || n.Priority >= NumPriorities || said != 0 && said != typ {
		return nil, false
	}
	p := reflect.New(reflect.TypeOf(catalog[typ].payload)).Elem()
	for i := range p.NumField() {
		name := p.Type().Field(i).Tag.Get("json")
		if p.Field(i).Kind() == reflect.Float64 && string(body[name]) == "null" {
			p.Field(i).SetFloat(math.NaN())
		} else if !into(body, name, p.Field(i).Addr().Interface()) {
			return nil, false
		}
	}
	n.Payload = p.Interface().(Payload)
	return n, true
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

func FuzzUnmarshalJSON(f *testing.F) {
	for typ := Type(1); typ < numTypes; typ++ {
		f.Add(specimen(typ).AppendJSON(nil))
	}
	f.Add([]byte(`{"message_type":"account_update","payload":{"balance":null,"x":[[]]},"payload":{"type":"account_update"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := *specimen(TypeMarketHalt)
		n := before
		err := n.UnmarshalJSON(b)
		want, ok := slowUnmarshalJSON(b)
		if !ok {
			require.Equal(t, before, n, "it changed")
			if string(bytes.TrimSpace(b)) == "null" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrInvalid)
			}
			return
		}
		require.NoError(t, err)
		require.True(t, sameBits(want, &n), "%v\n%v", want, n)
		require.True(t, n.Type().valid())
		require.Less(t, n.Priority, Priority(NumPriorities))
		again := n.AppendJSON(nil)
		var back Notification
		require.NoError(t, back.UnmarshalJSON(again))
		require.Equal(t, string(again), string(back.AppendJSON(nil)))
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

func BenchmarkUnmarshalJSON(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		text := n.AppendJSON(nil)
		var back Notification
		for b.Loop() {
			if err := back.UnmarshalJSON(text); err != nil {
				b.Fatal(err)
			}
		}
	})
}
