package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

// What the tests share: the committed documents, compiled by a validator that is
// not ours, and notifications of every type.

// patience bounds what never comes; no test asserts that something was quick.
const patience = 5 * time.Minute

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for give := time.Now().Add(patience); runtime.NumGoroutine() > before && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// read returns a committed document.
func read(t testing.TB, name string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return decode(t, b).(map[string]any)
}

// decode reads JSON with its numbers exact.
func decode(t testing.TB, text []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err, "%s", text)
	return v
}

// compile returns the schema at place, "#/$defs/Channel" say, of a document.
func compile(t testing.TB, doc any, draft *jsonschema.Draft, place string) *jsonschema.Schema {
	t.Helper()
	s, err := compiler(t, doc, draft).Compile("doc.json" + place)
	require.NoError(t, err)
	return s
}

func compiler(t testing.TB, doc any, draft *jsonschema.Draft) *jsonschema.Compiler {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(draft) // of what names none
	require.NoError(t, c.AddResource("doc.json", doc))
	return c
}

// closed makes an object with a key that is not declared invalid, in all of
// definitions. The documents themselves let readers ignore what is new; but what
// this release writes must all be in them.
func closed(t testing.TB, definitions any) {
	t.Helper()
	for name, s := range definitions.(map[string]any) {
		if s := s.(map[string]any); s["type"] == "object" && name != "Envelope" {
			s["unevaluatedProperties"] = false
		}
	}
}

// notifications returns the schema of a notification in which every key must be
// declared.
func notifications(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc := read(t, "notification.schema.json")
	closed(t, doc["$defs"])
	return compile(t, doc, jsonschema.Draft2020, "")
}

// A protocol validates the frames of wsgateway, in which every key must be
// declared.
type protocol map[string]*jsonschema.Schema

func frames(t testing.TB) protocol {
	t.Helper()
	doc := read(t, "asyncapi.json")
	schemas := doc["components"].(map[string]any)["schemas"]
	closed(t, schemas)
	p, c := protocol{}, compiler(t, doc, jsonschema.Draft2020)
	for name := range schemas.(map[string]any) {
		s, err := c.Compile("doc.json#/components/schemas/" + name)
		require.NoError(t, err)
		p[name] = s
	}
	return p
}

// payloadTypes returns all types.
func payloadTypes() (types []notification.Type) {
	for t := notification.Type(1); ; t++ {
		if _, err := t.MarshalText(); err != nil {
			return types
		}
		types = append(types, t)
	}
}

// newRand returns a source whose seed is printed with a failure.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("NOTIFICATION_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("NOTIFICATION_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

var (
	oddStrings = []string{"", "x", "cu2512", "资金不足", `"quoted"\`, "\x00\x1f\u2028", "\xff\xfe", "<script>", string(bytes.Repeat([]byte{'a'}, 300))}
	oddFloats  = []float64{0, math.Copysign(0, -1), 1, -1.5, 85230.5, 1e21, 1e-7, math.MaxFloat64, math.SmallestNonzeroFloat64, math.NaN(), math.Inf(1), math.Inf(-1)}
	oddInts    = []int64{0, 1, -1, 1729468800123456789, 1<<53 + 1, math.MaxInt64, math.MinInt64}
)

// random returns a valid notification of type typ with random values, the odd
// ones among them.
func random(t testing.TB, r *rand.Rand, typ notification.Type, user string) *notification.Notification {
	t.Helper()
	var n notification.Notification
	require.NoError(t, n.UnmarshalJSON(fmt.Appendf(nil, `{"message_type":%q,"payload":{"type":%[1]q}}`, typ)))
	v := reflect.New(reflect.TypeOf(n.Payload)).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(oddStrings[r.IntN(len(oddStrings))])
		case reflect.Float64:
			f.SetFloat(pick(r, oddFloats, r.NormFloat64()*1e6))
		case reflect.Int64:
			f.SetInt(pick(r, oddInts, int64(r.Uint64())))
		case reflect.Uint32, reflect.Uint8:
			f.SetUint(pick(r, []uint64{0, math.MaxUint8}, uint64(r.Uint32())) & (1<<f.Type().Bits() - 1))
		}
	}
	n = *notification.New(user, v.Interface().(notification.Payload), pick(r, oddStrings, "MatchingEngine"))
	n.ID += oddStrings[1+r.IntN(len(oddStrings)-2)]
	n.Priority = notification.Priority(r.IntN(notification.NumPriorities))
	n.Timestamp = pick(r, oddInts, n.Timestamp)
	if user == "" {
		n.UserID = pick(r, []string{"alice", "\xff", "用户"}, "bob")
	}
	if user == "" && typ.Channel() == notification.ChannelSystem && r.IntN(2) == 0 {
		n.UserID = notification.AllUsers
	}
	require.NoError(t, n.Validate())
	return &n
}

// pick returns one of odd or, as often as all of them together, usual.
func pick[T any](r *rand.Rand, odd []T, usual T) T {
	if r.IntN(2) == 0 {
		return usual
	}
	return odd[r.IntN(len(odd))]
}

// changed returns the JSON text after change has had it as a tree.
func changed(t testing.TB, text []byte, change func(root map[string]any)) any {
	t.Helper()
	tree := decode(t, text).(map[string]any)
	change(tree)
	b, err := json.Marshal(tree)
	require.NoError(t, err)
	return decode(t, b)
}

// sortedKeys returns the keys of an object.
func sortedKeys(v any) (keys []string) {
	for key := range v.(map[string]any) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
