package notification

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// manyFloats is for a longer look by hand:
// go test -run TestRandomFloats -timeout 0 -floats 100000000
var manyFloats = flag.Int("floats", 300_000, "how many floats TestRandomFloats compares")

// stdFloat appends f, which is finite, as encoding/json does, from what strconv
// makes of it.
func stdFloat(b []byte, f float64) []byte {
	if a := math.Abs(f); a == 0 || 1e-6 <= a && a < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); b[n-3] == '-' && b[n-2] == '0' {
		b = append(b[:n-2], b[n-1]) // e-09 is e-9
	}
	return b
}

// sameFloat asserts that f is written as encoding/json does.
func sameFloat(t *testing.T, f float64) {
	t.Helper()
	want := []byte("null")
	if !math.IsNaN(f) && !math.IsInf(f, 0) {
		want, _ = json.Marshal(f)
	}
	if got := appendFloat(make([]byte, 0, floatRoom), f); !bytes.Equal(want, got) {
		t.Fatalf("%x is written %s, not %s", f, got, want)
	}
}

// sameFloats asserts it of f and of the floats up to n steps away, and of their
// opposites.
func sameFloats(t *testing.T, f float64, n int) {
	t.Helper()
	w := math.Float64bits(math.Abs(f))
	for at := w - min(w, uint64(n)); at <= w+uint64(n); at++ {
		sameFloat(t, math.Float64frombits(at))
		sameFloat(t, math.Float64frombits(at|1<<63))
	}
}

func TestAppendFloat(t *testing.T) {
	t.Run("powers of two and their neighbours", func(t *testing.T) {
		for exp := -1074; exp < 1024; exp++ {
			sameFloats(t, math.Ldexp(1, exp), 4)
		}
	})
	t.Run("powers of ten, their multiples and their neighbours", func(t *testing.T) {
		for exp := -324; exp <= 308; exp++ {
			for digit := '1'; digit <= '9'; digit++ {
				f, _ := strconv.ParseFloat(string(digit)+"e"+strconv.Itoa(exp), 64)
				sameFloats(t, f, 3)
			}
		}
	})
	t.Run("the ends of every range: zero, subnormal, round, with an exponent, infinite, not a number", func(t *testing.T) {
		for _, f := range slices.Concat(extremes, []float64{
			0x1p-1022, 1e-6, 1e-5, 1e-4, 0x1p-11, 1e7, 1e8, 1e11, 1e15, 1e16, 1e17, 1e20, 1e21, math.MaxFloat64, math.Inf(1), math.NaN(),
		}) {
			sameFloats(t, f, 50)
		}
	})
	t.Run("subnormal floats of every length", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for w := range uint64(2000) {
			sameFloat(t, math.Float64frombits(w))
		}
		for range 50_000 {
			sameFloat(t, math.Float64frombits(r.Uint64()>>(12+r.IntN(52))))
		}
	})
	t.Run("integers and halves, quarters and eighths between them", func(t *testing.T) {
		for exp := range 64 {
			for n := -100.0; n <= 100; n++ {
				for _, part := range []float64{1, 2, 4, 8} {
					sameFloat(t, math.Ldexp(1, exp)+n/part)
				}
			}
		}
	})
	t.Run("the middle of two decimals, of places that are just enough or one less", func(t *testing.T) {
		r := rand.New(rand.NewPCG(9, 10))
		for places := 2; places <= 80; places++ {
			m := int(math.Ceil(float64(places) * math.Log10(2)))
			for range 500 {
				for zeros := places - m - 2; zeros <= places-m; zeros++ { // m+2 to m places
					c := float64((1<<52 | r.Uint64N(1<<52)) >> max(0, zeros) << max(0, zeros))
					sameFloat(t, math.Ldexp(c, -places))
				}
			}
		}
	})
	t.Run("decimals of 1 to 17 digits with any exponent, and their neighbours", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 60_000 {
			digits := strconv.FormatUint(r.Uint64N(1e17), 10)
			exp := -330 + r.IntN(630)
			if i%2 == 0 {
				exp = -20 + r.IntN(25)
			}
			f, _ := strconv.ParseFloat(digits[:min(len(digits), 1+r.IntN(17))]+"e"+strconv.Itoa(exp), 64)
			sameFloats(t, f, 1)
		}
	})
	t.Run("prices and what is computed of them", func(t *testing.T) {
		for _, k := range floatKinds {
			for _, f := range floatsOf(k.next, 50_000) {
				sameFloat(t, f)
				sameFloat(t, -f)
				sameFloat(t, math.Nextafter(f, 0))
				sameFloat(t, math.Nextafter(f, math.MaxFloat64))
			}
		}
	})
	t.Run("in any room, without a byte behind it and without garbage if it fits", func(t *testing.T) {
		for _, f := range append(extremes, -1.2345678901234567e-6, -1.2345678901234567e-300) {
			want := appendFloat(nil, f)
			for room := range 2 * floatRoom {
				all := bytes.Repeat([]byte{'#'}, 3+room+floatRoom)
				b := all[: 3 : 3+room]
				require.Equal(t, "###"+string(want), string(appendFloat(b, f)))
				require.Equal(t, bytes.Repeat([]byte{'#'}, floatRoom), all[3+room:])
				if room >= len(want) {
					require.Zero(t, testing.AllocsPerRun(1, func() { appendFloat(b, f) }))
				}
			}
		}
	})
}

func TestRandomFloats(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var got, want [64]byte
	for range *manyFloats {
		f := math.Float64frombits(r.Uint64())
		if r.Uint32()%2 == 0 { // half of them where prices are: from 1e-6 to 1e21 or so
			f = math.Copysign(math.Ldexp(math.Abs(math.Float64frombits(math.Float64bits(f)&^(0x7ff<<52)|1023<<52)), r.IntN(92)-21), f)
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		if got, want := appendFloat(got[:0], f), stdFloat(want[:0], f); !bytes.Equal(got, want) {
			t.Fatalf("%x is written %s, not %s", f, got, want)
		}
	}
}

func FuzzFloat(f *testing.F) {
	for _, v := range extremes {
		f.Add(math.Float64bits(v))
	}
	f.Fuzz(func(t *testing.T, w uint64) { sameFloat(t, math.Float64frombits(w)) })
}

func TestPowers(t *testing.T) {
	for k := minPower; k <= maxPower; k++ {
		x := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(k, -k))), nil)
		if k < 0 {
			x.Quo(new(big.Int).Lsh(big.NewInt(1), uint(x.BitLen())+127), x)
		}
		if n := x.BitLen() - 128; n >= 0 {
			x.Rsh(x, uint(n))
		} else {
			x.Lsh(x, uint(-n))
		}
		x.Add(x, big.NewInt(1))
		p := powers[k-minPower]
		got := new(big.Int).SetUint64(p.high)
		got.Add(got.Lsh(got, 64), new(big.Int).SetUint64(p.low))
		require.Zero(t, x.Cmp(got), "10^%d is %x, not %x", k, got, x)
	}
}

// floatKinds are the floats of an exchange, by how hard they are to write.
var floatKinds = []struct {
	name string
	next func(r *rand.Rand) float64
}{
	{"round", func(r *rand.Rand) float64 {
		switch r.IntN(4) {
		case 0:
			return 100 + float64(r.IntN(400_000))/5 // a price with a tick of 0.2
		case 1:
			return float64(1 + r.IntN(500)) // a volume
		case 2:
			return float64(r.IntN(1e9)-1e8) / 100 // an amount of money
		default:
			return float64(r.IntN(1e4)) / 1e4 // a ratio
		}
	}},
	{"products", func(r *rand.Rand) float64 { // price × volume × a rate
		price, volume := 100+float64(r.IntN(400_000))/5, float64(1+r.IntN(500))
		return price * volume * 0.0001
	}},
	{"digits17", func(r *rand.Rand) float64 { return r.Float64() * math.Pow10(r.IntN(9)) }},
}

// floatsOf returns n of a kind, the same each time.
func floatsOf(next func(r *rand.Rand) float64, n int) []float64 {
	r := rand.New(rand.NewPCG(7, 8))
	fs := make([]float64, n)
	for i := range fs {
		fs[i] = next(r)
	}
	return fs
}

// inTurns times two ways to do the same n things, a few in the one way, those in
// the other, the next few and so on, and reports the medians of both and of how
// many times as long the other takes: what else the machine does seldom falls
// into so short a turn.
func inTurns(b *testing.B, n, few int, this func(i int), name string, other func(i int)) {
	var these, others, ratios []float64
	for at := 0; b.Loop(); at = (at + few) % n {
		start := time.Now()
		for i := range few {
			this(at + i)
		}
		middle := time.Now()
		for i := range few {
			other(at + i)
		}
		a, z := float64(middle.Sub(start)), float64(time.Since(middle))
		these, others, ratios = append(these, a/float64(few)), append(others, z/float64(few)), append(ratios, z/a)
	}
	median := func(xs []float64) float64 {
		slices.Sort(xs)
		return xs[len(xs)/2]
	}
	b.ReportMetric(median(these), "ns/op")
	b.ReportMetric(median(others), name+"-ns/op")
	b.ReportMetric(median(ratios), "×"+name)
}

// BenchmarkAppendFloat is beside strconv, over so many floats that no branch
// predictor learns them.
func BenchmarkAppendFloat(b *testing.B) {
	for _, kind := range floatKinds {
		b.Run(kind.name, func(b *testing.B) {
			fs := floatsOf(kind.next, 1<<14)
			buf := make([]byte, 0, 64)
			inTurns(b, len(fs), 1<<10, func(i int) { buf = appendFloat(buf[:0], fs[i]) },
				"strconv", func(i int) { buf = stdFloat(buf[:0], fs[i]) })
		})
	}
}

// BenchmarkAppendJSONFloats is beside encoding/json, over messages that all
// differ in their floats.
func BenchmarkAppendJSONFloats(b *testing.B) {
	const n = 1 << 10
	for _, typ := range []Type{TypeAccountUpdate, TypeTradeExecuted} {
		for _, kind := range floatKinds {
			b.Run(typ.String()+"/"+kind.name, func(b *testing.B) {
				fs := floatsOf(kind.next, 8*n)
				ours, theirs := make([]*Notification, n), make([]*baseline, n)
				for i := range n {
					f := fs[8*i:]
					m := specimen(typ)
					switch p := m.Payload.(type) {
					case AccountUpdate:
						p.Balance, p.Available, p.Frozen, p.Margin = f[0], f[1], f[2], f[3]
						p.PositionProfit, p.CloseProfit, p.RiskRatio = f[4], f[5], f[6]
						m.Payload = p
					case TradeExecuted:
						p.Price, p.Volume, p.Commission = f[0], f[1], f[2]
						m.Payload = p
					}
					ours[i], theirs[i] = m, withoutMethods(m)
				}
				buf := make([]byte, 0, 1024)
				inTurns(b, n, 1<<5, func(i int) { buf = ours[i].AppendJSON(buf[:0]) },
					"encoding/json", func(i int) { _, _ = json.Marshal(theirs[i]) })
			})
		}
	}
}
