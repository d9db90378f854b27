package questions

import (
	"math/big"
	"strconv"
)

// Exact returns the float64 nearest to a decimal of yours, such as "50100.25", and
// whether the decimal can be read back from it: whether the shortest text that
// stands for the float, which JSON has, is the same number.
func Exact(decimal string) (f float64, exact bool) {
	f, err := strconv.ParseFloat(decimal, 64)
	if err != nil {
		return f, false
	}
	want, ok := new(big.Rat).SetString(decimal)
	got, finite := new(big.Rat).SetString(strconv.FormatFloat(f, 'g', -1, 64))
	return f, ok && finite && want.Cmp(got) == 0
}
