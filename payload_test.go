package notification

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite testdata/golden and testdata/archive")

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
	page, err := os.ReadFile("docs/types.md")
	require.NoError(t, err)
	layout, err := os.ReadFile("ARCHIVE.md")
	require.NoError(t, err)
	python, err := os.ReadFile(pythonReader)
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
		require.Contains(t, structs, typ, "structs in archive_test.go does not know it")
		require.FileExists(t, golden(typ), "no golden file: run go test -run Golden -update")

		var fields, kinds []string
		for i := range p.NumField() {
			f := p.Field(i)
			name, short := f.Tag.Get("json"), map[reflect.Kind]string{
				reflect.String: "s", reflect.Float64: "f", reflect.Int64: "i", reflect.Uint32: "u32", reflect.Uint8: "u8",
			}[f.Type.Kind()]
			fields, kinds = append(fields, name), append(kinds, name+" "+short)
		}
		row := fmt.Sprintf("| `%s` | `%s` | %s | %s | %s |\n", p.Name(), c.name, c.priority, c.channel, strings.Join(fields, ", "))
		require.Contains(t, string(page), row, "docs/types.md lacks this row")
		row = fmt.Sprintf("| %d | `%s` | %s |\n", uint8(typ), c.name, strings.Join(kinds, ", "))
		require.Contains(t, string(layout), row, "ARCHIVE.md lacks this row")
		row = fmt.Sprintf("    %d: _type(%q, %q),\n", uint8(typ), c.name, strings.Join(kinds, ", "))
		require.Contains(t, string(python), row, "%s lacks this row", pythonReader)
	})
}

func golden(typ Type) string { return filepath.Join("testdata", "golden", typ.String()+".json") }

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
		got := string(n.AppendJSON(nil)) + "\n"
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(golden(typ)), 0o777))
			require.NoError(t, os.WriteFile(golden(typ), []byte(got), 0o666))
		}
		want, err := os.ReadFile(golden(typ))
		require.NoError(t, err)
		require.Equal(t, string(want), got, "the wire changed")
		t.Run("the file of before can be read", func(t *testing.T) {
			var back Notification
			require.NoError(t, json.Unmarshal(want, &back))
			require.Equal(t, *n, back)
		})
	})
}

// fuzzed makes a notification of a fuzzer's values.
func fuzzed(typ uint8, id, user, source, s1, s2 string, f1, f2 float64, i int64, u uint32) *Notification {
	n := withValues(Type(typ%(uint8(numTypes)-1))+1, false, values{strings: []string{s1, s2, source}, floats: []float64{f1, f2}, int: i, uint32: u, uint8: uint8(u)})
	n.ID, n.UserID, n.Source, n.Priority = id, user, source, Priority(u>>8&7)
	return n
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
