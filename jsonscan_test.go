package notification

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// eachText calls f with all texts of up to length characters from an alphabet.
func eachText(alphabet string, length int, f func(s string)) {
	var extend func(b []byte)
	extend = func(b []byte) {
		f(string(b))
		for i := range len(alphabet) {
			if len(b) < length {
				extend(append(b, alphabet[i]))
			}
		}
	}
	extend(make([]byte, 0, length))
}

// isWhole tells whether end and err are those of a value that is all of s.
func isWhole(s string, end int, err error) bool { return err == nil && end == len(s) }

func TestSkip(t *testing.T) {
	check := func(s string) {
		end, err := skip(s, 0, 0)
		if isWhole(s, end, err) != (strings.TrimSpace(s) == s && json.Valid([]byte(s))) {
			t.Fatalf("%q: %d, %v", s, end, err)
		}
	}
	t.Run("it takes what encoding/json does, of all short texts", func(t *testing.T) {
		eachText(`{}[]",:1 a`, 5, check)
		eachText("\"\\u0aG/\x00\x1f\x7f\xff", 5, check)
		eachText("\"\\uD8\xc3\xa9", 5, func(s string) { check(`["\ud` + s + `"]`) })
		for _, literal := range []string{"true", "false", "null"} {
			for i := range literal {
				check(literal[:i])
				check(literal[:i] + "x" + literal[i+1:])
				check(literal[:i] + literal[i+1:])
			}
			check(literal)
			check(literal + "x")
		}
	})
	t.Run("it leaves what is behind the value", func(t *testing.T) {
		for _, s := range []string{`{"a":[1,{}]}`, `[]`, `"\""`, `-1.5e+7`, `0`, `true`} {
			end, err := skip(s+" ,x", 0, 0)
			require.NoError(t, err)
			require.Equal(t, len(s), end)
		}
	})
}

func TestReadNumbers(t *testing.T) {
	// The numbers are read at the end of the text and before something else,
	// since digits reads them in two ways.
	check := func(t testing.TB, s string) {
		for _, behind := range []string{"", ",\"12345678"} {
			valid := s != "" && strings.IndexByte("-0123456789", s[0]) >= 0 && json.Valid([]byte(s))
			end, err := numberEnd(s+behind, 0)
			if isWhole(s, end, err) != valid {
				t.Fatalf("%q: %d, %v", s+behind, end, err)
			}
			f, end := readFloat(s+behind, 0)
			want, err := strconv.ParseFloat(s, 64)
			if valid = valid && err == nil; valid != (end == len(s) && end > 0) || valid && math.Float64bits(f) != math.Float64bits(want) {
				t.Fatalf("%q is read as %v, %d", s+behind, f, end)
			}
			if end == 0 && !math.IsNaN(f) {
				t.Fatalf("%q is no float, and %v", s+behind, f)
			}
		}
	}
	t.Run("what is a number, and which, is as in encoding/json, for all short texts", func(t *testing.T) {
		eachText("-+0159.eE", 5, func(s string) { check(t, s) })
	})
	t.Run("decimals of every length are the nearest float", func(t *testing.T) {
		r := rand.New(rand.NewPCG(13, 14))
		for range 60_000 {
			s := strconv.FormatUint(r.Uint64()>>r.IntN(64), 10)
			for i := range r.IntN(20) {
				if i == 0 {
					s += "."
				}
				s += strconv.Itoa(r.IntN(10))
			}
			check(t, s)
			check(t, "-"+s)
		}
	})
	t.Run("the shortest decimal of a float is that float", func(t *testing.T) {
		r := rand.New(rand.NewPCG(15, 16))
		for range 60_000 {
			f := math.Float64frombits(r.Uint64())
			if r.IntN(4) > 0 { // one between 1e-6 and 1e6, which has no exponent
				f = (r.Float64() - 0.5) * math.Pow10(r.IntN(13)-5)
			}
			if !math.IsNaN(f) && !math.IsInf(f, 0) {
				check(t, string(appendFloat(nil, f)))
			}
		}
	})
	t.Run("halfway between two floats the even one is taken, a little beside it the nearer one", func(t *testing.T) {
		r := rand.New(rand.NewPCG(17, 18))
		for places := range 4 {
			for range 5000 {
				m := 1<<53 | r.Uint64()>>11 | 1 // a float's 53 bits, and a bit that is half of the last
				for _, m := range []uint64{m*tens[places] - 1, m * tens[places], m*tens[places] + 1} {
					s := strconv.FormatUint(m, 10)
					if places > 0 {
						s = s[:len(s)-places] + "." + s[len(s)-places:]
					}
					check(t, s)
				}
			}
		}
	})
	t.Run("integers are read where they fit, and not beside their range", func(t *testing.T) {
		for _, s := range []string{
			"", "-", "0", "-0", "00", "-00", "01", "7", "-7", "+7", "1.0", "1e0", "1E0", "-1.", "255", "256", "4294967295", "4294967296", "999999999999999999", "9223372036854775807",
			"9223372036854775808", "-9223372036854775808", "-9223372036854775809", "9999999999999999999", "18446744073709551615", "18446744073709551616", "99999999999999999999", "100000000000000000000000000",
		} {
			for _, behind := range []string{"", ",\"12345678"} {
				wantInt, err := strconv.ParseInt(s, 10, 64)
				i, end := readInt(s+behind, 0)
				if ok := err == nil && json.Valid([]byte(s)); ok {
					require.Equal(t, len(s), end, s)
					require.Equal(t, wantInt, i)
				} else {
					require.Zero(t, end, s)
					require.Zero(t, i, s)
				}
				for _, limit := range []uint64{math.MaxUint8, math.MaxUint32, math.MaxInt64} {
					want, err := strconv.ParseUint(s, 10, 64)
					u, end := readUint(s+behind, 0, limit)
					if ok := err == nil && want <= limit && json.Valid([]byte(s)); ok {
						require.Equal(t, len(s), end, s)
						require.Equal(t, want, u)
					} else {
						require.Zero(t, end, s)
						require.Zero(t, u, s)
					}
				}
			}
		}
	})
	t.Run("digits are joined whatever their number", func(t *testing.T) {
		r := rand.New(rand.NewPCG(19, 20))
		for length := range 20 {
			for range 100 {
				var s string
				for range length {
					s += strconv.Itoa(r.IntN(10))
				}
				want, _ := strconv.ParseUint("0"+s, 10, 64)
				for _, behind := range []string{"", ":", "/", ".12345678", "\xb0\xff12345678"} {
					u, end := digits(s+behind, 0, 0)
					require.Equal(t, length, end, s+behind)
					require.Equal(t, want, u)
				}
			}
		}
	})
}

func TestReadString(t *testing.T) {
	same := func(t testing.TB, raw string) {
		for _, behind := range []string{"", ",12345678"} {
			var want string
			err := json.Unmarshal([]byte(raw), &want)
			got, end := readString(raw+behind, 0)
			if ok := err == nil && raw[0] == '"'; ok != (end == len(raw)) || ok && got != want || !ok && end != 0 {
				t.Fatalf("%q is read as %q, %d, not %q, %v", raw+behind, got, end, want, err)
			}
		}
	}
	t.Run("each byte is read as encoding/json does, in each place of a word", func(t *testing.T) {
		for c := range 256 {
			for length := 1; length < 18; length++ {
				for at := range length {
					b := []byte(`"` + strings.Repeat("x", length) + `"`)
					if b[1+at] = byte(c); c != '"' {
						same(t, string(b))
					}
				}
			}
		}
	})
	t.Run("each escape is read as encoding/json does", func(t *testing.T) {
		for c := range 256 {
			if c != 'u' {
				same(t, `"12345678\`+string(rune(c))+`x"`)
			}
		}
		for r := range 1 << 16 {
			same(t, fmt.Sprintf(`"\u%04x"`, r))
		}
		for _, s := range []string{
			`\ud83d\ude80`, `\uD83D\uDE80`, `\ud83d`, `\ude80`, `\ud83dx`, `\ud83d\n`, `\ud83d\u0041`, `\ud83d\ud83d\ude80`, `\ude80\ud83d`, `\ud83d\ud83d`, `\ud83d\u`, `\ud83d\ude8`, `\`, `\u`, `\ud8`,
		} {
			same(t, `"`+s+`"`)
		}
	})
	t.Run("each character is read as itself", func(t *testing.T) {
		for r := range rune(0x11_0000) {
			if r%7 == 0 || r < 1<<11 {
				if v, end := readString(`"`+string(r)+`,"`, 0); r >= ' ' && r != '"' && r != '\\' {
					require.Equal(t, string(r)+",", v)
					require.NotZero(t, end)
				}
			}
		}
	})
	t.Run("a plain string is a view", func(t *testing.T) {
		s := `"plain, é and 保证金"`
		require.Zero(t, testing.AllocsPerRun(50, func() {
			if v, _ := readString(s, 0); v != s[1:len(s)-1] {
				t.Error(v)
			}
		}))
	})
}
