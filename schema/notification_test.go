package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func TestEveryNotificationIsValid(t *testing.T) {
	s := notifications(t)
	r := newRand(t)
	api := read(t, "asyncapi.json")
	asAsyncAPI := compile(t, api, jsonschema.Draft7, "#/components/schemas/Notification")
	for _, typ := range payloadTypes() {
		t.Run(typ.String(), func(t *testing.T) {
			for range 100 {
				v := decode(t, random(t, r, typ, "").AppendJSON(nil))
				require.NoError(t, s.Validate(v))
				require.NoError(t, asAsyncAPI.Validate(v))
			}
			golden, err := os.ReadFile(filepath.Join(root, "testdata", "golden", typ.String()+".json"))
			require.NoError(t, err)
			require.NoError(t, s.Validate(decode(t, golden)))
		})
	}
}

// TestWhatIsWrongIsRefused changes one thing in what is valid.
func TestWhatIsWrongIsRefused(t *testing.T) {
	s := notifications(t)
	r := newRand(t)
	number := func(text string) any { return json.Number(text) }
	byKind := map[string][]any{
		"string":  {number("1"), nil, true, []any{}},
		"number":  {"1", true, map[string]any{}},
		"integer": {"1", nil, number("1.5")},
	}
	tooMuch := map[string][]any{
		"int64":  {number("9223372036854775808"), number("-9223372036854775809")},
		"uint32": {number("4294967296"), number("-1")},
		"uint8":  {number("256"), number("-1")},
	}
	ps, err := payloads()
	require.NoError(t, err)
	for i, p := range ps {
		t.Run(p.name, func(t *testing.T) {
			good := random(t, r, notification.Type(i+1), "alice").AppendJSON(nil)
			refused := func(what string, change func(n, payload map[string]any)) {
				t.Helper()
				v := changed(t, good, func(n map[string]any) { change(n, n["payload"].(map[string]any)) })
				require.Error(t, s.Validate(v), "%s: %v", what, v)
			}
			for _, f := range p.fields {
				refused("without "+f.key, func(_, payload map[string]any) { delete(payload, f.key) })
				for _, v := range slices.Concat(byKind[pythonReader(f.kind)], tooMuch[f.kind.String()]) {
					refused(f.key, func(_, payload map[string]any) { payload[f.key] = v })
				}
			}
			refused("a key more in the payload", func(_, payload map[string]any) { payload["more"] = 1 })
			refused("a key more", func(n, _ map[string]any) { n["more"] = 1 })
			for _, f := range envelope {
				refused("without "+f.key, func(n, _ map[string]any) { delete(n, f.key) })
				refused(f.key+" is null", func(n, _ map[string]any) { n[f.key] = nil })
			}
			other := ps[(i+1)%len(ps)].wire
			refused("another message_type", func(n, _ map[string]any) { n["message_type"] = other })
			refused("another type", func(_, payload map[string]any) { payload["type"] = other })
			refused("no type", func(_, payload map[string]any) { delete(payload, "type") })
			refused("an unknown type", func(n, payload map[string]any) { n["message_type"], payload["type"] = "order_eaten", "order_eaten" })
			refused("a priority over 3", func(n, _ map[string]any) { n["priority"] = 4 })
			refused("a negative priority", func(n, _ map[string]any) { n["priority"] = -1 })
			for _, key := range []string{"message_id", "user_id"} {
				refused(key+" is empty", func(n, _ map[string]any) { n[key] = "" })
				refused(key+" is too long", func(n, _ map[string]any) { n[key] = strings.Repeat("x", maxIDLen+1) })
			}
			refused("a source that is too long", func(n, _ map[string]any) { n["source"] = strings.Repeat("x", maxText+1) })
			toAll := changed(t, good, func(n map[string]any) { n["user_id"] = notification.AllUsers })
			require.Equal(t, p.channel == notification.ChannelSystem, s.Validate(toAll) == nil, "to everybody: %v", toAll)
		})
	}
}

// TestReadersMayIgnoreWhatIsNew: the document as it is published says no word
// against keys that come with a later release.
func TestReadersMayIgnoreWhatIsNew(t *testing.T) {
	doc := read(t, "notification.schema.json")
	s := compile(t, doc, jsonschema.Draft2020, "")
	v := changed(t, []byte(example()), func(n map[string]any) {
		n["new"] = 1
		n["payload"].(map[string]any)["new"] = 1
	})
	require.NoError(t, s.Validate(v))
}

// again returns JSON text of a notification as AppendJSON writes it.
func again(t *testing.T, text string) string {
	t.Helper()
	var n notification.Notification
	require.NoError(t, n.UnmarshalJSON([]byte(text)))
	return string(n.AppendJSON(nil))
}
