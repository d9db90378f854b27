package notification

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// hostile are strings that a careless encoder lets out of their quotes.
var hostile = []string{
	"", `"`, `\`, `\"`, `\\"`, `"},"admin":true,"x":"`, "\x00", "\x1f", "\x7f", "\b\f\n\r\t", "<script>&amp;</script>",
	"\u2028", "\u2029", "a\u2028b", "\u2027\u202a", "\xff", "\xc0\x80", "\xed\xa0\x80", "\xe2\x80", "\xf4\x90\x80\x80", "\ufffd", `\ufffd`, "a\xffb\xc3",
	"7 bytes", "8 bytes.", "9 bytes..", "sixteen bytes...", "平仓盈亏", "保证金不足，请追加", "🚀", "é", "\xc3", "x\xe4\xbf\x9d\xe8",
}

func TestHostileStrings(t *testing.T) {
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
	t.Run("a hostile string is escaped in every place and every room", func(t *testing.T) {
		for _, s := range hostile {
			requireJSON(t, withValues(TypeTradeExecuted, true, values{strings: []string{"plain", s, "plainer"}, floats: []float64{1.5}}), true)
		}
	})
	t.Run("each byte is written as encoding/json does, in each place of a word", func(t *testing.T) {
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
	t.Run("a mebibyte of each hostile string is JSON, and exact in the archive", func(t *testing.T) {
		for _, s := range hostile[1:] {
			s = strings.Repeat(s, 1<<20/len(s))
			want := stdJSON(t, s)
			n := specimen(TypeSystemNotice)
			n.Source, n.Payload = "", SystemNotice{Content: s}
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
	t.Run("hostile strings in every field at once are escaped, a mebibyte each", func(t *testing.T) {
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

func TestNumbers(t *testing.T) {
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
	t.Run("extreme integers survive JSON and archive", func(t *testing.T) {
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
	t.Run("eight digits at once are the digits one by one", func(t *testing.T) {
		for part := range uint32(1e4) {
			for _, u := range []uint32{part, part * 1e4, part*1e4 + 9999, 9999*1e4 + part, part*1e4 + (9999 - part)} {
				var b [8]byte
				binary.LittleEndian.PutUint64(b[:], eightDigits(u)|zeros)
				require.Equal(t, fmt.Sprintf("%08d", u), string(b[:]))
			}
		}
	})
	t.Run("unsigned integers of every length are written as strconv does", func(t *testing.T) {
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
