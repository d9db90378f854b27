package notification

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
	"weak"

	"github.com/stretchr/testify/require"
)

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
			{"a duplicate type behind the payload", `{"message_type":"risk_alert","payload":{"reason":"r"},"message_type":"market_halt"}`, &Notification{Payload: MarketHalt{Reason: "r"}}, ""},
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
			{"10,000 levels, with those of a payload", `{` + head + `,"payload":{"x":` + deep[2:len(deep)-2] + `,` + body + `}}`, &want, ""},
			{"10,001 levels, with those of a payload", `{` + head + `,"payload":{"x":` + deep[1:len(deep)-1] + `,` + body + `}}`, nil, "depth"},
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
				n, err := requireRead(t, []byte(c.in))
				if c.want != nil {
					require.NoError(t, err)
					require.Equal(t, c.want, n)
					return
				}
				require.ErrorContains(t, err, c.says)
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

// requireRead asserts that UnmarshalJSON and the model agree on b, that an error
// tells where it is, and that the result has nothing of b in it. It returns the
// result, nil for a document that is null or not taken.
func requireRead(t testing.TB, b []byte) (*Notification, error) {
	t.Helper()
	b = bytes.Clone(b)
	before := *specimen(TypeMarketHalt)
	n := before
	err := n.UnmarshalJSON(b)
	want, ok := slowUnmarshalJSON(b)
	if !ok {
		require.Equal(t, before, n, "it changed")
		if string(bytes.TrimSpace(b)) == "null" {
			require.NoError(t, err)
			return nil, nil
		}
		require.ErrorIs(t, err, ErrInvalid, "%.1000q", b)
		require.Less(t, len(err.Error()), 300)
		at := byteOf(t, err)
		require.LessOrEqual(t, at, len(b))
		if !json.Valid(b) {
			require.True(t, viable(b[:at]), "JSON goes wrong before byte %d of %.1000q: %v", at, b, err)
			require.True(t, at == len(b) || !viable(b[:at+1]), "JSON goes wrong behind byte %d of %.1000q: %v", at, b, err)
		}
		return nil, err
	}
	require.NoError(t, err, "%.1000q", b)
	for i := range b {
		b[i] ^= 0xff
	}
	require.True(t, sameBits(want, &n), "%v\n%v", want, n)
	return &n, nil
}

var byteAtEnd = regexp.MustCompile(`, at byte (\d+)$`)

// byteOf returns where an error says that it is.
func byteOf(t testing.TB, err error) int {
	t.Helper()
	m := byteAtEnd.FindStringSubmatch(err.Error())
	require.NotNil(t, m, "no place: %v", err)
	at, err := strconv.Atoi(m[1])
	require.NoError(t, err)
	return at
}

// viable tells whether b is the beginning of a JSON document, or a whole one.
func viable(b []byte) bool {
	d := json.NewDecoder(bytes.NewReader(b))
	switch err := d.Decode(new(json.RawMessage)); err {
	case nil:
		return len(bytes.Trim(b[d.InputOffset():], " \t\r\n")) == 0
	default:
		return err == io.EOF || err == io.ErrUnexpectedEOF
	}
}

// A scribe writes JSON as no encoder does: white space wherever it may be, any
// character as an escape, members in any order and more than once, some that
// nobody knows, some with a value of another kind.
type scribe struct {
	*rand.Rand
	wrong int // one of so many values is another one
	b     []byte
}

func (w *scribe) one(n int) bool { return w.IntN(n) == 0 }

func (w *scribe) put(s string) {
	w.space()
	w.b = append(w.b, s...)
	w.space()
}

func (w *scribe) space() {
	for w.one(6) {
		w.b = append(w.b, " \t\r\n"[w.IntN(4)])
	}
}

func (w *scribe) string(s string) {
	escape := w.one(4)
	out := []byte{'"'}
	for _, r := range s {
		if r >= ' ' && r != '"' && r != '\\' && (!escape || w.one(3)) {
			out = utf8.AppendRune(out, r)
		} else if r <= math.MaxUint16 {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04X\u%04x`, high, low)
		}
	}
	if escape && w.one(20) {
		out = append(out, []string{`\ud800`, `\udc00x`, `\ud800\ud800\udc00`, `\ud83d\u0041`, `\b\f\n\r\t\/\"\\`, "\xff", "\xed\xa0\x80"}[w.IntN(7)]...)
	}
	w.put(string(append(out, '"')))
}

// any writes a value of any kind.
func (w *scribe) any(depth int) {
	numbers := []string{
		"0", "-0", "7", "-1", "3", "255", "256", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
		"18446744073709551616", "1.0", "1e3", "1E+2", "0.5e-7", "-1.5", "1e400", "-1e-400", "9007199254740993", "0.1000000000000000055511151231257827", "12345678901234567890123",
	}
	switch w.IntN(5 + min(depth, 2)) {
	case 0:
		w.put(numbers[w.IntN(len(numbers))])
	case 1:
		w.string(hostile[w.IntN(len(hostile))])
	case 2:
		w.put([]string{"true", "false", "null"}[w.IntN(3)])
	case 3:
		w.put("[]")
	case 4:
		w.put("{}")
	case 5:
		w.put("[")
		for w.one(2) {
			w.any(depth - 1)
			w.put(",")
		}
		w.any(depth - 1)
		w.put("]")
	case 6:
		w.put("{")
		for w.one(2) {
			w.member("a", func() { w.any(depth - 1) })
			w.put(",")
		}
		w.member(hostile[w.IntN(len(hostile))], func() { w.any(depth - 1) })
		w.put("}")
	}
}

func (w *scribe) member(key string, value func()) {
	w.string(key)
	w.put(":")
	value()
}

// rewrite writes raw, which is JSON, in its own way.
func (w *scribe) rewrite(raw json.RawMessage) {
	if raw[0] == '"' {
		var s string
		_ = json.Unmarshal(raw, &s)
		w.string(s)
		return
	}
	if raw[0] != '{' {
		w.put(string(raw))
		return
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	_, _ = d.Token()
	var members []func()
	for d.More() {
		key, _ := d.Token()
		var value json.RawMessage
		_ = d.Decode(&value)
		members = append(members, func() {
			for w.one(20) {
				w.member(key.(string), func() { w.any(2) }) // another one follows
				w.put(",")
			}
			for w.one(20) {
				w.member([]string{"", "x", "SOURCE", "payload_", "typ"}[w.IntN(5)], func() { w.any(3) })
				w.put(",")
			}
			w.member(key.(string), func() {
				switch {
				case w.one(w.wrong):
					w.any(1)
				case w.one(40):
					w.put("null")
				default:
					w.rewrite(value)
				}
			})
		})
	}
	if w.one(2) {
		w.Shuffle(len(members), func(i, k int) { members[i], members[k] = members[k], members[i] })
	}
	if w.one(10) {
		members = members[1:]
	}
	w.put("{")
	for i, write := range members {
		if i > 0 {
			w.put(",")
		}
		write()
	}
	w.put("}")
}

func TestUnmarshalJSONAsTheModel(t *testing.T) {
	// tally makes sure that the documents are of both kinds.
	type tally struct{ taken, refused int }
	check := func(t *testing.T, c *tally, b []byte) {
		if n, _ := requireRead(t, b); n != nil {
			c.taken++
		} else {
			c.refused++
		}
	}
	t.Run("JSON as no encoder writes it", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		var c tally
		for i := range 8000 {
			n := fuzzed(uint8(i), hostile[r.IntN(len(hostile))], "user", "source", hostile[r.IntN(len(hostile))], "BUY", extremes[r.IntN(len(extremes))], r.Float64(), r.Int64(), r.Uint32())
			w := scribe{Rand: r, wrong: []int{10, 1000}[i%2]}
			w.rewrite(n.AppendJSON(nil))
			check(t, &c, w.b)
		}
		require.Greater(t, c.taken, 1600)
		require.Greater(t, c.refused, 1600)
	})
	t.Run("a document with some bytes changed", func(t *testing.T) {
		r := rand.New(rand.NewPCG(7, 8))
		var c tally
		for i := range 8000 {
			b := specimen(Type(i%int(numTypes-1) + 1)).AppendJSON(nil)
			for range 1 + r.IntN(2) {
				at := r.IntN(len(b))
				switch r.IntN(3) {
				case 0:
					b[at] = `"\{}[]:,0-+.eEntfu /`[r.IntN(20)]
				case 1:
					b[at] ^= 1 << r.IntN(8)
				case 2:
					b = slices.Delete(b, at, min(at+1+r.IntN(4), len(b)))
				}
			}
			check(t, &c, b)
		}
		require.Greater(t, c.taken, 800)
		require.Greater(t, c.refused, 800)
	})
	eachType(t, func(t *testing.T, typ Type) {
		t.Run("a beginning of a document ends too early, where it ends", func(t *testing.T) {
			b := specimen(typ).AppendJSON(nil)
			for end := range b {
				n, err := requireRead(t, b[:end])
				require.Nil(t, n)
				require.Equal(t, end, byteOf(t, err))
			}
		})
	})
}

func TestUnmarshalJSONPlace(t *testing.T) {
	// The place is where the marker ^ stands in the document, without it.
	for name, in := range map[string]string{
		"no JSON":                           `{"message_id":^x}`,
		"no JSON behind something wrong":    `{"priority":-1,^}`,
		"no JSON behind the document":       `{"message_type":"none"} ^{}`,
		"a control character in a string":   "{\"x\":\"1234567890^\n\"}",
		"an escape that does not exist":     `{"x":"\^x"}`,
		"an escape that is cut":             `{"x":"\u12^"}`,
		"a number that begins with 0":       `{"x":0^1}`,
		"no object":                         ` ^[]`,
		"a value that does not fit":         `{"message_type":"market_halt", "priority": ^1.5, "payload":{}}`,
		"the last of equal keys":            `{"priority":"a","priority":^"b"}`,
		"a value in a payload":              `{"message_type":"market_halt","payload":{"reason":^[1]}}`,
		"in a payload before its type":      `{"payload":{"reason":^[1]},"message_type":"market_halt"}`,
		"an unknown type":                   `{"message_type": ^"none","payload":{}}`,
		"a missing type: the object":        ` ^{"payload":{}}`,
		"an empty type":                     `{"message_type":^""}`,
		"a priority that is too high":       `{"priority":^4,"message_type":"market_halt","payload":{}}`,
		"a payload of another type":         `{"message_type":"market_halt","payload":{"reason":"r","type":^"risk_alert"}}`,
		"a missing payload: the object":     `^{"message_type":"market_halt"}`,
		"a payload that is null":            `{"message_type":"market_halt","payload": ^null}`,
		"a payload that is no object":       `{"message_type":"market_halt","payload":^"x"}`,
		"a bracket too deep":                `{"x":` + strings.Repeat("[", maxDepth-1) + `^[`,
		"a bracket too deep in the payload": `{"message_type":"market_halt","payload":{"x":` + strings.Repeat("[", maxDepth-2) + `^[`,
		"the end":                           `{"x":"^`,
	} {
		t.Run(name, func(t *testing.T) {
			before, after, found := strings.Cut(in, "^")
			require.True(t, found)
			n, err := requireRead(t, []byte(before+after))
			require.Nil(t, n)
			require.Equal(t, len(before), byteOf(t, err), "%v", err)
		})
	}
	t.Run("a million brackets are refused as ten thousand are", func(t *testing.T) {
		err := new(Notification).UnmarshalJSON(bytes.Repeat([]byte("["), 1<<20))
		require.Equal(t, maxDepth, byteOf(t, err))
	})
}

func TestUnmarshalJSONMemory(t *testing.T) {
	allocs := func(b []byte) int {
		var n Notification
		return int(testing.AllocsPerRun(50, func() {
			if err := n.UnmarshalJSON(b); err != nil {
				t.Error(err)
			}
		}))
	}
	t.Run("it allocates the payload, and twice for all strings", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			b := specimen(typ).AppendJSON(nil)
			var spaced bytes.Buffer
			require.NoError(t, json.Indent(&spaced, b, "", "\t"))
			var members map[string]json.RawMessage
			require.NoError(t, json.Unmarshal(b, &members))
			turned := fmt.Appendf(nil, `{"payload":%s,"source":%s,"user_id":%s,"message_id":%s,"message_type":%s}`,
				members["payload"], members["source"], members["user_id"], members["message_id"], members["message_type"])
			for _, b := range [][]byte{b, spaced.Bytes(), turned} {
				require.Equal(t, 3, allocs(b), "%s", b)
			}
		}
	})
	t.Run("a string with an escape costs one more", func(t *testing.T) {
		const document = `{"message_id":"%s","message_type":"market_halt","source":"s","payload":{}}`
		require.Equal(t, 3, allocs(fmt.Appendf(nil, document, "A é 保")))
		require.Equal(t, 4, allocs(fmt.Appendf(nil, document, `\u0041`)))
	})
	t.Run("the ID does not keep the texts alive", func(t *testing.T) {
		n := specimen(TypeSystemNotice)
		n.Payload = SystemNotice{Content: strings.Repeat("x", 1<<20)}
		var back Notification
		require.NoError(t, back.UnmarshalJSON(n.AppendJSON(nil)))
		texts := weak.Make(unsafe.StringData(back.Source))
		back.Source, back.Payload = "", nil
		runtime.GC()
		require.Nil(t, texts.Value())
		require.Equal(t, n.ID, back.ID)
	})
}

func FuzzUnmarshalJSON(f *testing.F) {
	for typ := Type(1); typ < numTypes; typ++ {
		f.Add(specimen(typ).AppendJSON(nil))
	}
	f.Add([]byte(`{"message_type":"account_update","payload":{"balance":null,"x":[[]]},"payload":{"type":"account_update"}}`))
	r := rand.New(rand.NewPCG(9, 10))
	for i := range 2 * int(numTypes) {
		w := scribe{Rand: r, wrong: 1000}
		w.rewrite(specimen(Type(i%int(numTypes-1) + 1)).AppendJSON(nil))
		f.Add(w.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _ := requireRead(t, b)
		if n == nil {
			return
		}
		require.True(t, n.Type().valid())
		require.Less(t, n.Priority, Priority(NumPriorities))
		again := n.AppendJSON(nil)
		var back Notification
		require.NoError(t, back.UnmarshalJSON(again))
		require.Equal(t, string(again), string(back.AppendJSON(nil)))
	})
}

// eachRead runs f for the two types that the exchange sends most, with the JSON
// of messages that differ in every value.
func eachRead(b *testing.B, f func(b *testing.B, n *Notification, texts [][]byte)) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		r := rand.New(rand.NewPCG(11, 12))
		texts := make([][]byte, 256)
		for i := range texts {
			cents := func() float64 { return float64(r.Int64N(1e8)>>r.IntN(24)) / 100 }
			vs := values{int: moment + r.Int64N(1e15), floats: []float64{cents(), cents() / 100, -cents(), cents(), float64(r.IntN(1000)), cents(), cents()}}
			for _, prefix := range []string{"Source", "user_", "order_", "SHFE_", "cu", "", "x"} {
				vs.strings = append(vs.strings, prefix+strconv.Itoa(r.IntN(1e6)))
			}
			v := withValues(n.Type(), false, vs)
			v.ID = freshID()
			texts[i] = v.AppendJSON(nil)
		}
		f(b, n, texts)
	})
}

func BenchmarkUnmarshalJSON(b *testing.B) {
	eachRead(b, func(b *testing.B, _ *Notification, texts [][]byte) {
		i := 0
		for b.Loop() {
			if err := new(Notification).UnmarshalJSON(texts[i%len(texts)]); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// BenchmarkUnmarshalEncodingJSON is what BenchmarkUnmarshalJSON stands beside:
// into structs that say before what the payload is.
func BenchmarkUnmarshalEncodingJSON(b *testing.B) {
	eachRead(b, func(b *testing.B, n *Notification, texts [][]byte) {
		made := func() any { return new(document[AccountUpdate]) }
		if n.Type() == TypeTradeExecuted {
			made = func() any { return new(document[TradeExecuted]) }
		}
		i := 0
		for b.Loop() {
			if err := json.Unmarshal(texts[i%len(texts)], made()); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// document is baseline with a payload of one type.
type document[P Payload] struct {
	baseline
	Payload P `json:"payload"` // in place of baseline's
}
