package notification

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

// moment is the time of everything in these tests.
const moment = 1729468800123456789

// specimen returns a notification of type t that looks like one from an
// exchange, always the same.
func specimen(t Type) *Notification {
	n := &Notification{
		ID:        "5f1c7f3e-9a54-4d0f-8f5a-2d6f0b1c9e77",
		UserID:    "user_00042",
		Priority:  t.DefaultPriority(),
		Timestamp: moment,
		Source:    "MatchingEngine",
	}
	switch t {
	case TypeTradeExecuted:
		n.Payload = TradeExecuted{
			TradeID: "trade_0001", OrderID: "order_0001", ExchangeOrderID: "SHFE_00001", InstrumentID: "cu2512",
			Direction: "BUY", Offset: "OPEN", Price: 85230.5, Volume: 10, Commission: 12.785, FillType: "FULL", Timestamp: moment,
		}
	case TypeAccountUpdate:
		n.Source = "AccountSystem"
		n.Payload = AccountUpdate{
			UserID: "user_00042", Balance: 1000000.55, Available: 850000.25, Frozen: 1500, Margin: 148500.3,
			PositionProfit: -1250.75, CloseProfit: 320.5, RiskRatio: 0.1485, Timestamp: moment,
		}
	default:
		v := reflect.New(reflect.TypeOf(catalog[t].payload)).Elem()
		for i := range v.NumField() {
			switch f := v.Field(i); f.Kind() {
			case reflect.String:
				f.SetString(v.Type().Field(i).Name + " " + strconv.Itoa(i))
			case reflect.Float64:
				f.SetFloat(float64(i) * 1234.5625)
			case reflect.Int64:
				f.SetInt(moment + int64(i))
			case reflect.Uint32:
				f.SetUint(4000 + uint64(i))
			case reflect.Uint8:
				f.SetUint(uint64(i))
			}
		}
		n.Payload = v.Interface().(Payload)
		if t.Channel() == ChannelSystem {
			n.UserID, n.Source = AllUsers, "Operations"
		}
	}
	return n
}

// values are what withValues puts into the fields of a notification, by kind,
// each kind's over and over.
type values struct {
	strings []string
	floats  []float64
	int     int64
	uint32  uint32
	uint8   uint8
}

// withValues returns a notification of type t with these values in it; the ID
// and UserID stay those of specimen if ids is false.
func withValues(t Type, ids bool, vs values) *Notification {
	text, float := 0, 0
	nextText := func() string { text++; return vs.strings[(text-1)%len(vs.strings)] }
	n := specimen(t)
	if ids {
		n.ID, n.UserID = nextText(), nextText()
	}
	n.Source = nextText()
	n.Timestamp = vs.int
	v := reflect.New(reflect.TypeOf(n.Payload)).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(nextText())
		case reflect.Float64:
			f.SetFloat(vs.floats[float%len(vs.floats)])
			float++
		case reflect.Int64:
			f.SetInt(vs.int)
		case reflect.Uint32:
			f.SetUint(uint64(vs.uint32))
		case reflect.Uint8:
			f.SetUint(uint64(vs.uint8))
		}
	}
	n.Payload = v.Interface().(Payload)
	return n
}

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

// sameBits reports whether two notifications are equal, floats bit for bit.
func sameBits(a, b *Notification) bool {
	pa, pb := reflect.ValueOf(a.Payload), reflect.ValueOf(b.Payload)
	if pa.Type() != pb.Type() {
		return false
	}
	for i := range pa.NumField() {
		if f := pa.Field(i); f.Kind() == reflect.Float64 {
			if math.Float64bits(f.Float()) != math.Float64bits(pb.Field(i).Float()) {
				return false
			}
		} else if !f.Equal(pb.Field(i)) {
			return false
		}
	}
	x, y := *a, *b
	x.Payload, y.Payload = nil, nil
	return x == y
}

// eachType runs f once per type.
func eachType(t *testing.T, f func(t *testing.T, typ Type)) {
	for typ := Type(1); typ < numTypes; typ++ {
		t.Run(typ.String(), func(t *testing.T) { f(t, typ) })
	}
}

// underRace tells whether the race detector is on: it makes a sync.Pool forget
// at random.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}()

type embedsPayload struct{ AccountUpdate }

type liarPayload struct{}

func (liarPayload) Type() Type { return TypeAccountUpdate }

func TestEveryTypeIsComplete(t *testing.T) {
	names := map[string]bool{}
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	design, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	eachType(t, func(t *testing.T, typ Type) {
		c := catalog[typ]
		require.NotNil(t, c.payload, "no line in catalog")
		require.Equal(t, typ, c.payload.Type(), "the payload says it is of another type")
		require.Equal(t, typ, typeOf(c.payload))

		require.Regexp(t, `^[a-z]+(_[a-z]+)*$`, c.name)
		require.False(t, names[c.name], "the wire name is taken")
		names[c.name] = true
		require.Less(t, c.priority, Priority(NumPriorities))
		require.True(t, c.channel.valid(), "no channel")

		p := reflect.TypeOf(c.payload)
		require.Len(t, layouts[typ].fields, p.NumField(), "a field without an encoding")
		for i, f := range layouts[typ].fields {
			require.EqualValues(t, p.Field(i).Offset, f.offset)
		}
		require.Contains(t, openAs, typ, "openAs in this file does not know it")
		for _, suffix := range []string{".json", ".hex"} {
			require.FileExists(t, golden(typ, suffix), "no golden file: run go test -run Golden -update")
		}

		var fields, kinds []string
		for i := range p.NumField() {
			f := p.Field(i)
			name, short := f.Tag.Get("json"), map[reflect.Kind]string{
				reflect.String: "s", reflect.Float64: "f", reflect.Int64: "i", reflect.Uint32: "u32", reflect.Uint8: "u8",
			}[f.Type.Kind()]
			fields, kinds = append(fields, name), append(kinds, name+" "+short)
		}
		row := fmt.Sprintf("| `%s` | `%s` | %s | %s | %s |\n", p.Name(), c.name, c.priority, c.channel, strings.Join(fields, ", "))
		require.Contains(t, string(readme), row, "README.md lacks this row")
		row = fmt.Sprintf("| %d | `%s` | %s |\n", uint8(typ), c.name, strings.Join(kinds, ", "))
		require.Contains(t, string(design), row, "DESIGN.md lacks this row")
	})
}

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

// hostile are strings that a careless encoder lets out of their quotes.
var hostile = []string{
	"", `"`, `\`, `\"`, `\\"`, `"},"admin":true,"x":"`, "\x00", "\x1f", "\x7f", "\b\f\n\r\t", "<script>&amp;</script>",
	"\u2028", "\u2029", "a\u2028b", "\u2027\u202a", "\xff", "\xc0\x80", "\xed\xa0\x80", "\xe2\x80", "\xf4\x90\x80\x80", "\ufffd", `\ufffd`, "a\xffb\xc3",
	"7 bytes", "8 bytes.", "9 bytes..", "sixteen bytes...", "平仓盈亏", "保证金不足，请追加", "🚀", "é", "\xc3", "x\xe4\xbf\x9d\xe8",
}

func TestCase30HostileStrings(t *testing.T) {
	check := func(t *testing.T, n *Notification) {
		t.Helper()
		requireJSON(t, n, false)
		var head map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(n.AppendJSON(nil), &head))
		require.Len(t, head, 7)
		var body map[string]any
		require.NoError(t, json.Unmarshal(head["payload"], &body))
		require.Len(t, body, reflect.TypeOf(n.Payload).NumField()+1)

		if n.Validate() != nil {
			return
		}
		b, err := n.AppendBinary(nil)
		require.NoError(t, err)
		var back Notification
		require.NoError(t, back.UnmarshalBinary(b))
		require.True(t, *n == back, "the archive is not exact")
	}
	eachType(t, func(t *testing.T, typ Type) {
		for _, s := range hostile {
			for _, s := range []string{s, "1234567" + s, "12345678" + s + "12345678"} {
				check(t, withValues(typ, true, values{strings: []string{s}, floats: []float64{1}}))
			}
		}
	})
	t.Run("bytes that are not UTF-8 become U+FFFD itself, and no escape", func(t *testing.T) {
		for s, want := range map[string]string{
			"\xff":              "\ufffd\"",
			"a\xffb\xc3":        "a\ufffdb\ufffd\"",
			"\xed\xa0\x80":      "\ufffd\ufffd\ufffd\"", // half of a surrogate pair
			"\ufffd":            "\ufffd\"",
			`\ufffd`:            `\\ufffd"`,
			"\\\xff":            "\\\\\ufffd\"",
			"\u2028\xff\u2029<": "\\u2028\ufffd\\u2029\\u003c\"",
		} {
			require.Equal(t, want, string(appendString(nil, s)))
			require.Equal(t, `"`+want, string(stdJSON(t, s)), "encoding/json")
		}
	})
	t.Run("in every place and every room", func(t *testing.T) {
		for _, s := range hostile {
			requireJSON(t, withValues(TypeTradeExecuted, true, values{strings: []string{"plain", s, "plainer"}, floats: []float64{1.5}}), true)
		}
	})
	t.Run("each byte in each place of a word", func(t *testing.T) {
		for c := range 256 {
			for length := 1; length < 20; length++ {
				for at := range length {
					s := bytes.Repeat([]byte{'x'}, length)
					s[at] = byte(c)
					want := stdJSON(t, string(s))
					require.Equal(t, string(want), `"`+string(appendString(nil, string(s))))
				}
			}
		}
	})
	t.Run("a mebibyte of each", func(t *testing.T) {
		for _, s := range hostile[1:] {
			s = strings.Repeat(s, 1<<20/len(s))
			want := stdJSON(t, s)
			n := specimen(TypeSystemNotice)
			n.Payload = SystemNotice{Content: s}
			require.True(t, bytes.Contains(n.AppendJSON(nil), want))
			b, err := n.AppendBinary(nil)
			require.NoError(t, err)
			a, err := OpenArchive(b)
			require.NoError(t, err)
			p, err := PayloadAs[SystemNotice](a)
			require.NoError(t, err)
			require.True(t, p.Content == s)
		}
	})
	t.Run("in every field at once, a mebibyte each", func(t *testing.T) {
		s := strings.Repeat(strings.Repeat("x", 504)+`"\<保`+"\xff\x00", 1<<11)
		requireJSON(t, withValues(TypeTradeExecuted, true, values{strings: []string{s}, floats: []float64{1}}), false)
	})
}

var extremes = []float64{
	math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), 0, 1, -1, 9, 10, 99, 100, 1e-4, 1e-5, 1e-6, 9.999999e-7, 1e-7, 1e-8, 1.5e-9, 1e-10, 1e-100,
	1e7, 1e8, 99999999, 99999999.9999, 1e11, 99999999999.9999, 1e13, 1e15, 1e16, 1e20, 9.99e20, 1e21, 1e22, 1e300, -1e21, -1e-7,
	0.1, 0.2, 0.1 + 0.2, 0.3, 1.1, 2.675, 1.005, 0.00001234, 1234567.12345678, 9999999.99999999, 3.141592653589793, 1 / 3.0,
	math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, math.MaxInt64, math.MinInt64, 1 << 53, 1<<53 + 2, math.Nextafter(1, 2), math.Nextafter(100, 0),
	math.Float64frombits(0x7ff0000000000001), math.Float64frombits(0xfff8000000001234),
}

func TestCase31Numbers(t *testing.T) {
	t.Run("extreme floats are valid JSON, and exact in the archive", func(t *testing.T) {
		for _, f := range extremes {
			n := withValues(TypeAccountUpdate, false, values{strings: []string{"x"}, floats: []float64{f}, int: math.MaxInt64})
			requireJSON(t, n, true)
			b, err := n.AppendBinary(nil)
			require.NoError(t, err)
			var back Notification
			require.NoError(t, back.UnmarshalBinary(b))
			require.True(t, sameBits(n, &back))
		}
	})
	t.Run("extreme integers", func(t *testing.T) {
		for _, i := range []int64{0, 1, 9, 10, 99999999, 1e8, 1e8 + 1, 1e15, 1e16 - 1, 1e16, 1e16 + 1, math.MaxInt64, math.MinInt64, -1, -10, -1e8} {
			for _, typ := range []Type{TypeOrderRejected, TypeAccountOpen, TypeMarketHalt} {
				n := withValues(typ, false, values{strings: []string{"x"}, floats: []float64{1}, int: i, uint32: uint32(i), uint8: uint8(i)})
				requireJSON(t, n, true)
				b, err := n.AppendBinary(nil)
				require.NoError(t, err)
				var back Notification
				require.NoError(t, back.UnmarshalBinary(b))
				require.Equal(t, *n, back)
				require.NoError(t, back.UnmarshalJSON(n.AppendJSON(nil)))
				require.Equal(t, *n, back)
			}
		}
	})
	same := func(t *testing.T, f float64) {
		want, _ := json.Marshal(f)
		if got := appendFloat(make([]byte, 0, 32), f); string(got) != string(want) {
			t.Fatalf("%x is written %s, not %s", f, got, want)
		}
	}
	t.Run("decimals of every length, and their neighbours", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for range 100_000 {
			m := float64(r.Uint64() >> r.IntN(64))
			f := m / math.Pow10(r.IntN(13))
			same(t, f)
			same(t, -f)
			same(t, math.Nextafter(f, 0))
			same(t, math.Nextafter(f, math.Inf(1)))
		}
	})
	t.Run("any bits", func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for range 300_000 {
			if f := math.Float64frombits(r.Uint64()); !math.IsNaN(f) && !math.IsInf(f, 0) {
				same(t, f)
			}
		}
	})
	t.Run("eight digits at once are the digits one by one", func(t *testing.T) {
		for part := range uint32(1e4) {
			for _, u := range []uint32{part, part * 1e4, part*1e4 + 9999, 9999*1e4 + part, part*1e4 + (9999 - part)} {
				var b [8]byte
				binary.LittleEndian.PutUint64(b[:], eightDigits(u)|zeros)
				require.Equal(t, fmt.Sprintf("%08d", u), string(b[:]))
			}
		}
	})
	t.Run("unsigned integers of every length", func(t *testing.T) {
		for shift := range 64 {
			for _, u := range []uint64{1 << shift, 1<<shift - 1, math.MaxUint64 >> shift} {
				require.Equal(t, strconv.FormatUint(u, 10), string(appendUint(make([]byte, 0, 24), u)))
			}
		}
		for u := uint64(1); u < 1e19; u *= 10 {
			for _, u := range []uint64{u - 1, u, u + 1} {
				require.Equal(t, strconv.FormatUint(u, 10), string(appendUint(make([]byte, 0, 24), u)))
			}
		}
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

	t.Run("case 34", func(t *testing.T) {
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

// openAs is PayloadAs for each type.
var openAs = map[Type]func(Archive) (Payload, error){
	TypeOrderAccepted:        payloadAs[OrderAccepted],
	TypeOrderRejected:        payloadAs[OrderRejected],
	TypeOrderPartiallyFilled: payloadAs[OrderPartiallyFilled],
	TypeOrderFilled:          payloadAs[OrderFilled],
	TypeOrderCanceled:        payloadAs[OrderCanceled],
	TypeOrderExpired:         payloadAs[OrderExpired],
	TypeTradeExecuted:        payloadAs[TradeExecuted],
	TypeTradeCanceled:        payloadAs[TradeCanceled],
	TypeAccountOpen:          payloadAs[AccountOpen],
	TypeAccountUpdate:        payloadAs[AccountUpdate],
	TypePositionUpdate:       payloadAs[PositionUpdate],
	TypePositionProfit:       payloadAs[PositionProfit],
	TypeRiskAlert:            payloadAs[RiskAlert],
	TypeMarginCall:           payloadAs[MarginCall],
	TypePositionLimit:        payloadAs[PositionLimit],
	TypeSystemNotice:         payloadAs[SystemNotice],
	TypeTradingSessionStart:  payloadAs[TradingSessionStart],
	TypeTradingSessionEnd:    payloadAs[TradingSessionEnd],
	TypeMarketHalt:           payloadAs[MarketHalt],
}

func payloadAs[T Payload](a Archive) (Payload, error) { return PayloadAs[T](a) }

// archive returns n's archive in a buffer without room to spare, so that a
// read or write behind it is seen.
func archive(t testing.TB, n *Notification) []byte {
	b, err := n.MarshalBinary()
	require.NoError(t, err)
	return slices.Clip(b)
}

// slowArchive reads an archive from DESIGN.md's description of it, one value
// after the other: what OpenArchive is compared with.
func slowArchive(b []byte) (n *Notification, ok bool) {
	defer func() {
		if recover() != nil { // a slice that ends behind b
			n, ok = nil, false
		}
	}()
	whole := b
	take := func(count uint64) []byte { v := b[:count]; b = b[count:]; return v }
	number := func(width uint64) (v uint64) {
		for i, c := range take(width) {
			v |= uint64(c) << (8 * i)
		}
		return v
	}
	n = new(Notification)
	ok = string(take(3)) == "QXN" && number(1) == 1 && number(4) == uint64(len(whole))
	source, id, user := number(4), number(2), number(2)
	n.Timestamp = int64(number(8))
	typ := Type(number(1))
	n.Priority = Priority(number(1))
	p := reflect.New(reflect.TypeOf(catalog[typ].payload)).Elem()
	var texts []reflect.Value
	var lengths []uint64
	for i := range p.NumField() {
		switch f := p.Field(i); f.Kind() {
		case reflect.String:
			texts, lengths = append(texts, f), append(lengths, number(4))
		case reflect.Float64:
			f.SetFloat(math.Float64frombits(number(8)))
		case reflect.Int64:
			f.SetInt(int64(number(8)))
		case reflect.Uint32:
			f.SetUint(number(4))
		case reflect.Uint8:
			f.SetUint(number(1))
		}
	}
	n.ID, n.UserID, n.Source = string(take(id)), string(take(user)), string(take(source))
	for i, f := range texts {
		f.SetString(string(take(lengths[i])))
	}
	n.Payload = p.Interface().(Payload)
	return n, ok && len(b) == 0 && n.Validate() == nil
}

// requireArchive asserts that b opens if and only if it is an archive, that
// all ways of reading it agree, and that reading costs no more memory than b
// justifies.
func requireArchive(t testing.TB, b []byte) (ok bool) {
	t.Helper()
	want, ok := slowArchive(b)
	a, err := OpenArchive(b)
	if !ok {
		require.ErrorIs(t, err, ErrCorrupt)
		require.Zero(t, a)
		before := *specimen(TypeMarketHalt)
		n := before
		require.ErrorIs(t, n.UnmarshalBinary(b), ErrCorrupt)
		require.Equal(t, before, n, "a failed read changed it")
		return false
	}
	require.NoError(t, err)
	require.Equal(t, want.ID, a.ID())
	require.Equal(t, want.UserID, a.UserID())
	require.Equal(t, want.Source, a.Source())
	require.Equal(t, want.Type(), a.Type())
	require.Equal(t, want.Priority, a.Priority())
	require.Equal(t, want.Timestamp, a.Timestamp())
	p, err := openAs[a.Type()](a)
	require.NoError(t, err)
	direct := *want
	direct.Payload = p
	require.True(t, sameBits(want, &direct))
	n := a.Notification()
	require.True(t, sameBits(want, n))
	again, err := n.AppendBinary(nil)
	require.NoError(t, err)
	require.Equal(t, b, again, "one notification, two archives")
	return true
}

func TestArchive(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		n := specimen(typ)
		b := archive(t, n)
		t.Run("every field survives", func(t *testing.T) {
			require.True(t, requireArchive(t, b))
			var back Notification
			require.NoError(t, back.UnmarshalBinary(b))
			require.Equal(t, *n, back)
		})
		t.Run("it is appended behind what is there", func(t *testing.T) {
			got, err := n.AppendBinary([]byte("before"))
			require.NoError(t, err)
			require.Equal(t, "before"+string(b), string(got))
		})
		t.Run("as another type it is ErrInvalid", func(t *testing.T) {
			a, err := OpenArchive(b)
			require.NoError(t, err)
			for other, open := range openAs {
				if other != typ {
					_, err := open(a)
					require.ErrorIs(t, err, ErrInvalid)
					require.ErrorContains(t, err, typ.String())
				}
			}
		})
		t.Run("nothing allocates", func(t *testing.T) {
			buf := make([]byte, 0, len(b))
			var a Archive
			require.Zero(t, testing.AllocsPerRun(50, func() { buf, _ = n.AppendBinary(buf[:0]) }))
			require.Zero(t, testing.AllocsPerRun(50, func() { a, _ = OpenArchive(b) }))
			require.Zero(t, testing.AllocsPerRun(50, func() {
				_, _, _, _, _, _ = a.ID(), a.UserID(), a.Source(), a.Type(), a.Priority(), a.Timestamp()
			}))
		})
		t.Run("case 32: cut off anywhere it is ErrCorrupt", func(t *testing.T) {
			for end := range b {
				require.False(t, requireArchive(t, slices.Clip(b[:end])), "opened with %d bytes of %d", end, len(b))
			}
		})
		t.Run("case 32: with any bit flipped it is a value or ErrCorrupt", func(t *testing.T) {
			for i := range 8 * len(b) {
				c := bytes.Clone(b)
				c[i/8] ^= 1 << (i % 8)
				requireArchive(t, c)
			}
		})
		t.Run("case 32: with huge numbers anywhere it is a value or ErrCorrupt", func(t *testing.T) {
			for at := range b {
				for _, huge := range []uint64{0x7fff, 0x8000, 0xffff, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 63, 1<<63 - 1, math.MaxUint64} {
					width := 8 // or that of the length fields which it is huge for
					if huge <= 1<<16-1 {
						width = 2
					} else if huge <= 1<<32-1 {
						width = 4
					}
					var w [8]byte
					binary.LittleEndian.PutUint64(w[:], huge)
					c := bytes.Clone(b)
					copy(c[at:], w[:width])
					requireArchive(t, c)
				}
			}
		})
		t.Run("trailing bytes are ErrCorrupt", func(t *testing.T) {
			_, err := OpenArchive(append(bytes.Clone(b), 0))
			require.ErrorIs(t, err, ErrCorrupt)
			require.ErrorContains(t, err, "bytes where the header says")
			_, err = OpenArchive(append(bytes.Clone(b), b...))
			require.ErrorIs(t, err, ErrCorrupt)
		})
	})
	t.Run("PayloadAs allocates nothing", func(t *testing.T) {
		account, err := OpenArchive(archive(t, specimen(TypeAccountUpdate)))
		require.NoError(t, err)
		trade, err := OpenArchive(archive(t, specimen(TypeTradeExecuted)))
		require.NoError(t, err)
		end, err := OpenArchive(archive(t, specimen(TypeTradingSessionEnd)))
		require.NoError(t, err)
		require.Zero(t, testing.AllocsPerRun(50, func() {
			p, _ := PayloadAs[AccountUpdate](account)
			q, _ := PayloadAs[TradeExecuted](trade)
			r, _ := PayloadAs[TradingSessionEnd](end)
			if p.Balance == 0 || q.TradeID == "" || r.Message == "" {
				panic("empty")
			}
		}))
	})
	t.Run("it is smaller than the original's", func(t *testing.T) {
		require.LessOrEqual(t, len(archive(t, specimen(TypeAccountUpdate))), 170) // 288 there
		require.LessOrEqual(t, len(archive(t, specimen(TypeTradeExecuted))), 200) // 264 there
	})
	t.Run("it says what is wrong", func(t *testing.T) {
		b := archive(t, specimen(TypeAccountUpdate))
		change := func(at int, v ...byte) []byte { c := bytes.Clone(b); copy(c[at:], v); return c }
		for _, c := range []struct {
			b    []byte
			says string
		}{
			{nil, "0 bytes are less than a header, 26"},
			{b[:25], "25 bytes are less than a header, 26"},
			{change(0, '{'), `it begins with "{XN"`},
			{change(3, 0), "version 0 is unknown, this is version 1"},
			{change(3, 2), "version 2 is unknown, this is version 1"},
			{change(3, 255), "version 255 is unknown, this is version 1"},
			{change(4, 0, 0), "163 bytes where the header says 0"},
			{change(24, 0), "type 0 is unknown"},
			{change(24, 20), "type 20 is unknown"},
			{change(25, 4), "priority 4 is over 3"},
			{change(8, 0xff, 0xff, 0xff, 0xff), "163 bytes where the lengths of its strings make 4294967445"},
			{change(12, 0, 0, 46, 0), "ID has 0 bytes"},
			{change(12, 46, 0, 0, 0), "UserID has 0 bytes"},
		} {
			_, err := OpenArchive(c.b)
			require.ErrorIs(t, err, ErrCorrupt)
			require.ErrorContains(t, err, c.says)
		}
		c := b[:94]
		binary.LittleEndian.PutUint32(c[4:], 93)
		_, err := OpenArchive(c[:93])
		require.ErrorContains(t, err, "93 bytes are less than a account_update, 94")
	})
	t.Run("what Validate refuses is neither written nor opened", func(t *testing.T) {
		long := strings.Repeat("x", 257)
		for name, change := range map[string]func(*Notification){
			"ID is empty":         func(n *Notification) { n.ID = "" },
			"ID has 257":          func(n *Notification) { n.ID = long },
			"UserID is empty":     func(n *Notification) { n.UserID = "" },
			"UserID has 257":      func(n *Notification) { n.UserID = long },
			"UserID is AllUsers":  func(n *Notification) { n.UserID = AllUsers },
			"Priority 4":          func(n *Notification) { n.Priority = 4 },
			"Payload is nil":      func(n *Notification) { n.Payload = nil },
			"Payload *notificati": func(n *Notification) { n.Payload = (*AccountUpdate)(nil) },
		} {
			n := specimen(TypeAccountUpdate)
			change(n)
			b, err := n.AppendBinary([]byte("before"))
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, name)
			require.Equal(t, "before", string(b))
		}
		_, err := (*Notification)(nil).MarshalBinary()
		require.ErrorIs(t, err, ErrInvalid)

		b := archive(t, &Notification{ID: "i", UserID: "x", Payload: AccountUpdate{}})
		b[bytes.IndexByte(b, 'x')] = '*'
		_, err = OpenArchive(b)
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, "AllUsers")
	})
	t.Run("IDs of one and of 256 bytes", func(t *testing.T) {
		for _, id := range []string{"x", strings.Repeat("x", 256)} {
			n := &Notification{ID: id, UserID: id, Payload: AccountUpdate{}}
			require.True(t, requireArchive(t, archive(t, n)))
		}
	})
	t.Run("strings that make more than 2 GiB are ErrInvalid", func(t *testing.T) {
		if strconv.IntSize == 32 {
			t.Skip("needs address space")
		}
		zeroed := make([]byte, 300<<20) // never touched, so never backed by memory
		s := unsafe.String(unsafe.SliceData(zeroed), len(zeroed))
		n := withValues(TypeTradeExecuted, false, values{strings: []string{s}, floats: []float64{1}})
		b, err := n.AppendBinary(nil)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "bytes")
		require.Nil(t, b)
	})
	t.Run("case 33: the copy does not change with the buffer", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			b := archive(t, n)
			a, err := OpenArchive(b)
			require.NoError(t, err)
			c := a.Notification()
			var d Notification
			require.NoError(t, d.UnmarshalBinary(b))
			for i := range b {
				b[i] = 0xff
			}
			require.Equal(t, n, c)
			require.Equal(t, *n, d)
		}
	})
	t.Run("a buffer overwritten under an open archive makes nonsense and nothing worse", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for typ := Type(1); typ < numTypes; typ++ {
			b := archive(t, specimen(typ))
			a, err := OpenArchive(b)
			require.NoError(t, err)
			for range 100 {
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				require.NotPanics(t, func() {
					_, _, _, _, _ = a.ID(), a.UserID(), a.Source(), a.Priority(), a.Timestamp()
					_, err := openAs[typ](a)
					require.NoError(t, err)
					a.Notification()
				})
			}
		}
	})
	t.Run("the zero Archive is empty", func(t *testing.T) {
		var a Archive
		require.Zero(t, a.ID()+a.UserID()+a.Source())
		require.Zero(t, a.Type())
		require.Zero(t, a.Priority())
		require.Zero(t, a.Timestamp())
		require.Zero(t, *a.Notification())
		_, err := PayloadAs[AccountUpdate](a)
		require.ErrorIs(t, err, ErrInvalid)
	})
	t.Run("only the payload structs are payloads", func(t *testing.T) {
		a, err := OpenArchive(archive(t, specimen(TypeAccountUpdate)))
		require.NoError(t, err)
		_, err = PayloadAs[*AccountUpdate](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[embedsPayload](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[liarPayload](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[Payload](a)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "the archive holds a account_update, not a notification.Payload")
	})
	t.Run("case 32: no input makes it allocate more than twice its size and 64 KiB", func(t *testing.T) {
		big := specimen(TypeSystemNotice)
		big.Payload = SystemNotice{Content: strings.Repeat("x", 1<<20)}
		b := archive(t, big)
		for _, at := range []int{0, 3, 4, 8, 12, 14, 24, 25, 26, 30, 34, 38, 42, 1000} {
			for _, v := range []byte{0, 1, 0x80, 0xff} {
				c := bytes.Clone(b)
				c[at] = v
				var n Notification
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_ = n.UnmarshalBinary(c)
				runtime.ReadMemStats(&after)
				require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2*len(c)+64<<10))
			}
		}
	})
}

func golden(typ Type, suffix string) string {
	return filepath.Join("testdata", "golden", typ.String()+suffix)
}

// hexLines writes b the way it can be read: 16 bytes a line.
func hexLines(b []byte) string {
	var out strings.Builder
	for line := range slices.Chunk(b, 16) {
		fmt.Fprintf(&out, "% x\n", line)
	}
	return out.String()
}

func TestGolden(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		n := specimen(typ)
		for suffix, got := range map[string]string{".json": string(n.AppendJSON(nil)) + "\n", ".hex": hexLines(archive(t, n))} {
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden(typ, suffix)), 0o777))
				require.NoError(t, os.WriteFile(golden(typ, suffix), []byte(got), 0o666))
			}
			want, err := os.ReadFile(golden(typ, suffix))
			require.NoError(t, err)
			require.Equal(t, string(want), got, "the wire changed; if that is meant: another archive version, and go test -run Golden -update")
		}
		t.Run("the files of before can be read", func(t *testing.T) {
			text, err := os.ReadFile(golden(typ, ".hex"))
			require.NoError(t, err)
			b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			require.NoError(t, err)
			var back Notification
			require.NoError(t, back.UnmarshalBinary(b))
			require.Equal(t, *n, back)
			text, err = os.ReadFile(golden(typ, ".json"))
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &back))
			require.Equal(t, *n, back)
		})
	})
}

func TestArchiveExampleInDesign(t *testing.T) {
	text, err := os.ReadFile("DESIGN.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## Archive layout\n")
	require.True(t, ok, "DESIGN.md has no section Archive layout")
	section, _, _ = strings.Cut(section, "\n## ")
	var b []byte
	for _, m := range regexp.MustCompile(`(?m)^ *(\d+)  ((?:[0-9a-f]{2} )+)`).FindAllStringSubmatch(section, -1) {
		require.Equal(t, strconv.Itoa(len(b)), m[1], "the offset before %s", m[2])
		line, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		require.NoError(t, err)
		b = append(b, line...)
	}
	n := &Notification{
		ID: "reject-17", UserID: "alice", Priority: P0, Timestamp: moment, Source: "RiskControl",
		Payload: OrderRejected{OrderID: "o-17", InstrumentID: "cu2512", Reason: "资金不足", ErrorCode: 4003, Timestamp: moment},
	}
	require.Equal(t, hexLines(archive(t, n)), hexLines(b))
	require.True(t, requireArchive(t, b))
}

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
	t.Run("a notification that is invalid, or changed since, does not break it", func(t *testing.T) {
		n := specimen(TypeTradeExecuted)
		n.Priority = 200
		m := NewMessage(n)
		n.Payload, n.Priority = nil, 77
		require.Equal(t, TypeTradeExecuted, m.typ)
		require.Equal(t, P3, m.priority)
		require.True(t, json.Valid(m.JSON()))
		require.Zero(t, NewMessage(&Notification{}).typ)
	})
}

// fuzzed makes a notification of a fuzzer's values.
func fuzzed(typ uint8, id, user, source, s1, s2 string, f1, f2 float64, i int64, u uint32) *Notification {
	n := withValues(Type(typ%(uint8(numTypes)-1))+1, false, values{strings: []string{s1, s2, source}, floats: []float64{f1, f2}, int: i, uint32: u, uint8: uint8(u)})
	n.ID, n.UserID, n.Source, n.Priority = id, user, source, Priority(u>>8&7)
	return n
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

func FuzzOpenArchive(f *testing.F) {
	for typ := Type(1); typ < numTypes; typ++ {
		b, err := specimen(typ).MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = slices.Clip(bytes.Clone(b))
		if !requireArchive(t, b) {
			return
		}
		a, err := OpenArchive(b)
		require.NoError(t, err)
		n := a.Notification()
		want := n.AppendJSON(nil)
		for i := range b {
			b[i] ^= 0xff
		}
		require.Equal(t, string(want), string(n.AppendJSON(nil)), "the copy shares memory with the buffer")
	})
}

func FuzzArchiveRoundTrip(f *testing.F) {
	for i, s := range hostile {
		f.Add(uint8(i), "id-"+s, "user_00042", "MatchingEngine", s, "BUY"+s, extremes[i], 85230.5, int64(moment), uint32(i))
	}
	f.Fuzz(func(t *testing.T, typ uint8, id, user, source, s1, s2 string, f1, f2 float64, i int64, u uint32) {
		n := fuzzed(typ, id, user, source, s1, s2, f1, f2, i, u)
		b, err := n.AppendBinary(nil)
		if n.Validate() != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Empty(t, b)
			return
		}
		require.NoError(t, err)
		var back Notification
		require.NoError(t, back.UnmarshalBinary(b))
		require.True(t, sameBits(n, &back))
		require.True(t, requireArchive(t, b))
	})
}

// eachTimed runs f for the two types that the exchange sends most.
func eachTimed(b *testing.B, f func(b *testing.B, n *Notification)) {
	for _, typ := range []Type{TypeAccountUpdate, TypeTradeExecuted} {
		b.Run(reflect.TypeOf(catalog[typ].payload).Name(), func(b *testing.B) {
			b.ReportAllocs()
			f(b, specimen(typ))
		})
	}
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

// BenchmarkEncodingJSON is what BenchmarkAppendJSON stands beside: the same
// structs, their type in front, without this package's methods.
func BenchmarkEncodingJSON(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		m := baseline{n.ID, n.Type().String(), n.UserID, uint8(n.Priority), n.Timestamp, n.Source, nil}
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
		if want, _ := json.Marshal(&m); string(want) != string(n.AppendJSON(nil)) {
			b.Fatalf("it encodes something else: %s", want)
		}
		for b.Loop() {
			if _, err := json.Marshal(&m); err != nil {
				b.Fatal(err)
			}
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

func BenchmarkArchiveEncode(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		buf := make([]byte, 0, 1024)
		var err error
		for b.Loop() {
			if buf, err = n.AppendBinary(buf[:0]); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(buf)), "bytes")
	})
}

func BenchmarkArchiveOpen(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		buf := archive(b, n)
		for b.Loop() {
			if _, err := OpenArchive(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkArchiveField(b *testing.B) {
	a, err := OpenArchive(archive(b, specimen(TypeTradeExecuted)))
	require.NoError(b, err)
	b.Run("ID", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.ID()
		}
	})
	b.Run("UserID", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.UserID()
		}
	})
	b.Run("Timestamp", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.Timestamp()
		}
	})
}

func BenchmarkArchivePayloadAs(b *testing.B) {
	b.Run("AccountUpdate", func(b *testing.B) { benchmarkPayloadAs[AccountUpdate](b, TypeAccountUpdate) })
	b.Run("TradeExecuted", func(b *testing.B) { benchmarkPayloadAs[TradeExecuted](b, TypeTradeExecuted) })
}

func benchmarkPayloadAs[T Payload](b *testing.B, typ Type) {
	b.ReportAllocs()
	a, err := OpenArchive(archive(b, specimen(typ)))
	require.NoError(b, err)
	for b.Loop() {
		if _, err := PayloadAs[T](a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkArchiveNotification(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		a, err := OpenArchive(archive(b, n))
		require.NoError(b, err)
		for b.Loop() {
			a.Notification()
		}
	})
}

func BenchmarkTypeOf(b *testing.B) {
	p := specimen(TypeTradeExecuted).Payload
	for b.Loop() {
		typeOf(p)
	}
}
