package notification

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// The files of testdata/archive are for whoever writes a reader of archives: each
// NAME.archive has its values beside it in NAME.json, and in refused each file
// begins with the number of the check, of those in ARCHIVE.md, that refuses it.
const (
	goldenArchives  = "testdata/archive"
	refusedArchives = "testdata/archive/refused"
	pythonReader    = "testdata/archive/read.py"
)

// archiveSpecimens are the notifications of the golden archives by file name.
func archiveSpecimens() map[string]*Notification {
	ns := map[string]*Notification{}
	for typ := Type(1); typ < numTypes; typ++ {
		ns[typ.String()] = specimen(typ)
	}
	bits := math.Float64frombits
	ns["strings-empty"] = withValues(TypeTradeExecuted, false, values{strings: []string{""}, floats: []float64{0}})
	ns["strings-empty"].ID, ns["strings-empty"].UserID = "i", "u"
	ns["strings-first-and-last-empty"] = withValues(TypeTradeExecuted, false, values{strings: []string{"", "", "a", "bc", "def"}, floats: []float64{1}})
	ns["strings-other-scripts"] = withValues(TypeRiskAlert, true, values{strings: []string{"资金不足", "naïve 🙂", "\x00\x1f\x7f", "\"\\</>&\u2028", "\ufffd"}, floats: []float64{1}})
	ns["strings-not-utf8"] = withValues(TypeSystemNotice, true, values{strings: []string{"id\xff", "\x80", "\xed\xa0\x80", "資\xe8\xb3", "\xc0\x80ok", "\xf8"}})
	ns["ids-longest"] = specimen(TypeOrderCanceled)
	ns["ids-longest"].ID, ns["ids-longest"].UserID = strings.Repeat("i", 256), strings.Repeat("é", 128)
	ns["floats-not-finite"] = withValues(TypeAccountUpdate, false, values{strings: []string{"NaN"}, floats: []float64{
		bits(0x7ff8_0000_dead_beef), bits(0xfff8_0000_0000_0001), bits(0x7ff0_0000_0000_0001), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), 0,
	}})
	ns["floats-extreme"] = withValues(TypePositionUpdate, false, values{strings: []string{"finite"}, floats: []float64{
		math.MaxFloat64, -math.SmallestNonzeroFloat64, bits(0x0010_0000_0000_0000), 1e21, 0.1 + 0.2, 1<<53 + 2,
	}})
	ns["integers-least"] = withValues(TypeMarketHalt, false, values{strings: []string{"least"}, int: math.MinInt64})
	ns["integers-greatest"] = withValues(TypeOrderRejected, false, values{strings: []string{"greatest"}, int: math.MaxInt64, uint32: math.MaxUint32})
	ns["bytes-greatest"] = withValues(TypeAccountOpen, false, values{strings: []string{"u8"}, floats: []float64{1}, int: -1, uint8: math.MaxUint8})
	for p := P0; p < NumPriorities; p++ {
		n := specimen(TypePositionProfit)
		n.Priority = p
		ns[fmt.Sprintf("priority-%d", p)] = n
	}
	return ns
}

// refusedSpecimens are archives with one thing wrong, by file name. What check 6
// refuses has more than a mebibyte: another test makes it.
func refusedSpecimens(t testing.TB) map[string][]byte {
	b := archive(t, specimen(TypeOrderRejected)) // ID 36, UserID 10 and Source 14 bytes; its strings 9, 14, 8
	put := func(change func(b []byte)) []byte { c := bytes.Clone(b); change(c); return c }
	at := func(offset int, v ...byte) []byte { return put(func(b []byte) { copy(b[offset:], v) }) }
	sized := func(b []byte) []byte { binary.LittleEndian.PutUint32(b[4:], uint32(len(b))); return b }
	ids := func(id, user string) []byte {
		head := at(12, byte(len(id)), byte(len(id)>>8), byte(len(user)), byte(len(user)>>8))
		return sized(slices.Concat(head[:50], []byte(id+user), head[50+46:]))
	}
	next := fmt.Sprintf("4-type-%d", numTypes) // of a type that may come
	return map[string][]byte{
		"1-empty":              {},
		"1-header-cut-off":     b[:25],
		"1-size-and-no-more":   b[:8],
		"1-other-magic":        at(0, '{'),
		"1-magic-in-lowercase": at(0, 'q', 'x', 'n'),
		"2-version-0":          at(3, 0),
		"2-version-2":          at(3, 2),
		"3-a-byte-cut-off":     b[:len(b)-1],
		"3-a-byte-more":        append(bytes.Clone(b), 0),
		"3-two-archives":       slices.Concat(b, b),
		"3-size-0":             at(4, 0, 0, 0, 0),
		"3-size-over-2-MiB":    at(4, 1, 0, 32, 0),
		"3-size-greatest":      at(4, 0xff, 0xff, 0xff, 0xff),
		"4-type-0":             at(24, 0),
		next:                   at(24, byte(numTypes)),
		"4-priority-4":         at(25, 4),
		"4-fields-cut-off":     sized(bytes.Clone(b[:49])),
		"5-a-length-too-long":  at(34, 9),
		"5-a-length-too-short": at(8, 13),
		"5-a-hole":             sized(append(bytes.Clone(b), 0)),
		// 2^32 bytes too many: Source has 2^32 - 1 - 14 more, order_id 15 more.
		"5-an-overflow": put(func(b []byte) {
			binary.LittleEndian.PutUint32(b[8:], math.MaxUint32)
			binary.LittleEndian.PutUint32(b[26:], 9+15)
		}),
		"7-id-empty":     ids("", "user"),
		"7-id-257":       ids(strings.Repeat("i", 257), "user"),
		"7-userid-empty": ids("id", ""),
		"7-userid-257":   ids("id", strings.Repeat("u", 257)),
		"7-all-users":    ids("id", "*"),
	}
}

// valuesJSON writes a notification's values, all of them exactly. What JSON cannot
// hold is an object: a string that is not UTF-8 {"hex": its bytes}, a float that is
// -0, infinite or NaN {"bits": its 64 bits}.
func valuesJSON(t testing.TB, n *Notification) []byte {
	text := func(v any) string {
		switch x := v.(type) {
		case string:
			if !utf8.ValidString(x) {
				v = map[string]string{"hex": hex.EncodeToString([]byte(x))}
			}
		case float64:
			if math.IsNaN(x) || math.IsInf(x, 0) || x == 0 && math.Signbit(x) {
				v = map[string]string{"bits": fmt.Sprintf("%016x", math.Float64bits(x))}
			}
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		require.NoError(t, e.Encode(v))
		return strings.TrimSuffix(b.String(), "\n")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"type\": %s,\n  \"id\": %s,\n  \"user_id\": %s,\n  \"source\": %s,\n  \"priority\": %d,\n  \"timestamp\": %d,\n  \"payload\": {",
		text(n.Type().String()), text(n.ID), text(n.UserID), text(n.Source), n.Priority, n.Timestamp)
	comma := ""
	for sf, v := range reflect.ValueOf(n.Payload).Fields() {
		fmt.Fprintf(&b, "%s\n    %q: %s", comma, sf.Tag.Get("json"), text(v.Interface()))
		comma = ","
	}
	b.WriteString("\n  }\n}\n")
	return b.Bytes()
}

// fromValues reads what valuesJSON writes, and insists that nothing is missing or
// too much.
func fromValues(t testing.TB, b []byte) *Notification {
	t.Helper()
	var v struct {
		Type      string                     `json:"type"`
		ID        json.RawMessage            `json:"id"`
		UserID    json.RawMessage            `json:"user_id"`
		Source    json.RawMessage            `json:"source"`
		Priority  *Priority                  `json:"priority"`
		Timestamp *int64                     `json:"timestamp"`
		Payload   map[string]json.RawMessage `json:"payload"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&v), "%s", b)
	read := func(raw json.RawMessage, kind reflect.Kind) any {
		var odd struct{ Hex, Bits string }
		if bytes.HasPrefix(raw, []byte("{")) {
			require.NoError(t, json.Unmarshal(raw, &odd))
		}
		var x any
		var err error
		switch {
		case kind == reflect.String && odd.Hex != "":
			var b []byte
			b, err = hex.DecodeString(odd.Hex)
			x = string(b)
		case kind == reflect.String:
			var s *string // so that a null is seen
			if err = json.Unmarshal(raw, &s); err == nil {
				x = *s
			}
		case kind == reflect.Float64 && odd.Bits != "":
			var u uint64
			u, err = strconv.ParseUint(odd.Bits, 16, 64)
			x = math.Float64frombits(u)
		case kind == reflect.Float64:
			x, err = strconv.ParseFloat(string(raw), 64)
		case kind == reflect.Int64:
			x, err = strconv.ParseInt(string(raw), 10, 64)
		case kind == reflect.Uint32:
			var u uint64
			u, err = strconv.ParseUint(string(raw), 10, 32)
			x = uint32(u)
		default:
			var u uint64
			u, err = strconv.ParseUint(string(raw), 10, 8)
			x = uint8(u)
		}
		require.NoError(t, err, "%s", raw)
		return x
	}
	typ, err := ParseType(v.Type)
	require.NoError(t, err)
	p := reflect.New(layouts[typ].payload).Elem()
	require.Len(t, v.Payload, p.NumField())
	for i := range p.NumField() {
		raw, ok := v.Payload[p.Type().Field(i).Tag.Get("json")]
		require.True(t, ok, "%s is missing", p.Type().Field(i).Name)
		p.Field(i).Set(reflect.ValueOf(read(raw, p.Field(i).Kind())))
	}
	return &Notification{
		ID: read(v.ID, reflect.String).(string), UserID: read(v.UserID, reflect.String).(string), Source: read(v.Source, reflect.String).(string),
		Priority: *v.Priority, Timestamp: *v.Timestamp, Payload: p.Interface().(Payload),
	}
}

// compareGolden requires that the file at path has these bytes, or makes it so
// with -update.
func compareGolden(t testing.TB, path string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o777))
		require.NoError(t, os.WriteFile(path, got, 0o666))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run go test -run Golden -update")
	require.Equal(t, hexLines(want), hexLines(got), "%s: the wire changed; if that is meant: another archive version, and go test -run Golden -update", path)
}

func TestGoldenArchives(t *testing.T) {
	for name, n := range archiveSpecimens() {
		t.Run(name, func(t *testing.T) {
			b := archive(t, n)
			compareGolden(t, filepath.Join(goldenArchives, name+".archive"), b)
			compareGolden(t, filepath.Join(goldenArchives, name+".json"), valuesJSON(t, n))
			require.True(t, requireArchive(t, b))
			require.True(t, sameBits(n, fromValues(t, valuesJSON(t, n))), "the JSON does not have all values")
			var back Notification
			require.NoError(t, back.UnmarshalBinary(b))
			require.True(t, sameBits(n, &back))
		})
	}
	for name, b := range refusedSpecimens(t) {
		t.Run(name+" is refused", func(t *testing.T) {
			compareGolden(t, filepath.Join(refusedArchives, name+".archive"), b)
			require.False(t, requireArchive(t, b))
		})
	}
	t.Run("no file is left that nothing compares", func(t *testing.T) {
		var want []string
		for name := range archiveSpecimens() {
			want = append(want, name+".archive", name+".json")
		}
		require.ElementsMatch(t, append(want, "read.py", "refused"), files(t, goldenArchives))
		want = nil
		for name := range refusedSpecimens(t) {
			want = append(want, name+".archive")
		}
		require.ElementsMatch(t, want, files(t, refusedArchives))
	})
	t.Run("every check has a file that it refuses, or a test of its own", func(t *testing.T) {
		checks := map[byte]bool{'6': true}
		for name := range refusedSpecimens(t) {
			checks[name[0]] = true
		}
		require.ElementsMatch(t, []byte("1234567"), slices.Collect(maps.Keys(checks)))
	})
}

func files(t testing.TB, dir string) (names []string) {
	es, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// A reader written from ARCHIVE.md alone, in another language, reads what the
// page promises.
func TestPythonReader(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3 on this machine: apt-get install python3")
	}
	// run returns the reader's lines of output and whether it refused nothing.
	run := func(t *testing.T, stdin []byte, args ...string) ([][]byte, bool) {
		cmd := exec.Command(python, append([]string{"-I", "-B", pythonReader}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		err := cmd.Run()
		require.Empty(t, said.String())
		if out.Len() == 0 {
			return nil, err == nil
		}
		return bytes.Split(bytes.TrimSuffix(out.Bytes(), []byte("\n")), []byte("\n")), err == nil
	}
	names := slices.Sorted(maps.Keys(archiveSpecimens()))
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(goldenArchives, name+".archive"))
	}
	requireGolden := func(t *testing.T, lines [][]byte) {
		require.Len(t, lines, len(names))
		for i, name := range names {
			want, err := os.ReadFile(filepath.Join(goldenArchives, name+".json"))
			require.NoError(t, err)
			require.True(t, sameBits(fromValues(t, want), fromValues(t, lines[i])), "%s: it reads %s", name, lines[i])
		}
	}
	requireRefused := func(t *testing.T, line []byte, check int) {
		var r struct {
			Check   int
			Corrupt string
		}
		require.NoError(t, json.Unmarshal(line, &r))
		require.Equal(t, check, r.Check, "%s", line)
		require.NotEmpty(t, r.Corrupt)
	}
	t.Run("it reads every value of every golden archive", func(t *testing.T) {
		lines, ok := run(t, nil, paths...)
		require.True(t, ok)
		requireGolden(t, lines)
	})
	t.Run("it refuses what is no archive, each for its own reason", func(t *testing.T) {
		names := slices.Sorted(maps.Keys(refusedSpecimens(t)))
		var paths []string
		for _, name := range names {
			paths = append(paths, filepath.Join(refusedArchives, name+".archive"))
		}
		lines, ok := run(t, nil, paths...)
		require.False(t, ok)
		require.Len(t, lines, len(names))
		for i, name := range names {
			requireRefused(t, lines[i], int(name[0]-'0'))
		}
	})
	t.Run("it reads a mebibyte of text, and not a byte more", func(t *testing.T) {
		n := &Notification{ID: "i", UserID: "u", Source: "s", Payload: SystemNotice{Title: "t", Content: strings.Repeat("x", maxText-2)}}
		b := archive(t, n)
		lines, ok := run(t, b)
		require.True(t, ok)
		require.Len(t, lines, 1)
		require.True(t, sameBits(n, fromValues(t, lines[0])))
		lines, ok = run(t, longer(b))
		require.False(t, ok)
		require.Len(t, lines, 1)
		requireRefused(t, lines[0], 6)
	})
	t.Run("it reads archives one behind the other", func(t *testing.T) {
		var stream []byte
		for _, name := range names {
			stream = append(stream, archive(t, archiveSpecimens()[name])...)
		}
		lines, ok := run(t, stream)
		require.True(t, ok)
		requireGolden(t, lines)
		lines, ok = run(t, nil)
		require.True(t, ok)
		require.Empty(t, lines)
	})
	t.Run("it refuses a stream that ends within an archive", func(t *testing.T) {
		b := archive(t, specimen(TypeMarginCall))
		for _, cut := range []struct{ end, check int }{{1, 1}, {7, 1}, {8, 1}, {26, 3}, {len(b) - 1, 3}} {
			lines, ok := run(t, append(bytes.Clone(b), b[:cut.end]...))
			require.False(t, ok)
			require.Len(t, lines, 2)
			requireRefused(t, lines[1], cut.check)
		}
	})
	t.Run("eight bytes of a stream are enough to refuse it", func(t *testing.T) {
		for start, check := range map[string]int{
			"QXN\x01\x01\x00\x20\x00": 3, // 2 MiB and a byte
			"QXN\x01\xff\xff\xff\xff": 3,
			"QXN\x01\x00\x00\x00\x00": 1, // fewer than the header has
			"QXN\x01\x08\x00\x00\x00": 1,
			"QXN\x02\x1a\x00\x00\x00": 2,
			"GET / HT":                1,
		} {
			cmd := exec.Command(python, "-I", "-B", pythonReader)
			stdin, err := cmd.StdinPipe() // stays open, and nothing more comes
			require.NoError(t, err)
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = stdin.Write([]byte(start))
			require.NoError(t, err)
			line, err := bufio.NewReader(stdout).ReadBytes('\n')
			require.NoError(t, err)
			requireRefused(t, line, check)
			require.Error(t, cmd.Wait())
		}
	})
}
