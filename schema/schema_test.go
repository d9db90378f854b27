package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := generate()
	require.NoError(t, err)
	for _, f := range files {
		t.Run(f.name, func(t *testing.T) {
			got, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f.name)))
			require.NoError(t, err)
			require.Equal(t, string(f.text), string(got), "run go generate ./schema")
		})
	}
}

// structs returns the keys of the structs that a Go file declares, by the name of
// the struct. A key that may be left out ends with a question mark.
func structs(t *testing.T, name string) map[string][]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	keys := map[string][]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if st, ok := s.Type.(*ast.StructType); ok {
			for _, field := range st.Fields.List {
				if field.Tag == nil {
					continue
				}
				tag, err := strconv.Unquote(field.Tag.Value)
				require.NoError(t, err)
				key, option, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
				if option != "" {
					key += "?"
				}
				keys[s.Name.Name] = append(keys[s.Name.Name], key)
			}
		}
		return true
	})
	return keys
}

// TestEveryTypeAndField reads payload.go in another way than the generator does.
func TestEveryTypeAndField(t *testing.T) {
	declared := structs(t, "../payload.go")
	require.Len(t, declared, len(payloadTypes()))
	doc, api := read(t, "notification.schema.json"), read(t, "asyncapi.json")
	ts, err := os.ReadFile("../clients/typescript/src/notifications.ts")
	require.NoError(t, err)
	py, err := os.ReadFile("../clients/python/src/notification_client/notifications.py")
	require.NoError(t, err)
	block := func(text []byte, begin, line string) (keys []string) {
		_, rest, ok := strings.Cut(string(text), "\n"+begin+"\n")
		require.True(t, ok, begin)
		for l := range strings.SplitSeq(rest, "\n") {
			if m := regexp.MustCompile(line).FindStringSubmatch(l); m != nil {
				keys = append(keys, m[1])
			} else if l != "" && !strings.HasPrefix(l, " ") {
				return keys
			}
		}
		return keys
	}
	for name, keys := range declared {
		t.Run(name, func(t *testing.T) {
			with := append([]string{"type"}, keys...)
			for where, defs := range map[string]any{"JSON Schema": doc["$defs"], "AsyncAPI": api["components"].(map[string]any)["schemas"]} {
				s, ok := defs.(map[string]any)[name].(map[string]any)
				require.True(t, ok, where)
				require.ElementsMatch(t, with, sortedKeys(s["properties"]), where)
				require.ElementsMatch(t, with, s["required"], where)
				require.NotEmpty(t, s["description"], where)
				require.Contains(t, defs.(map[string]any), name+"Notification", where)
			}
			require.Equal(t, with, block(ts, "export interface "+name+" {", `^  (\w+): `))
			require.Equal(t, keys, block(py, "class "+name+":", `^    ([a-z_]+): `))
		})
	}
	t.Run("the one of all notifications", func(t *testing.T) {
		require.Len(t, doc["oneOf"], len(declared))
	})
	t.Run("the definitions of both documents are the same", func(t *testing.T) {
		schemas := api["components"].(map[string]any)["schemas"].(map[string]any)
		for name, s := range doc["$defs"].(map[string]any) {
			b, err := json.Marshal(s)
			require.NoError(t, err)
			there, err := json.Marshal(schemas[name])
			require.NoError(t, err)
			require.Equal(t, strings.ReplaceAll(string(b), "#/$defs/", "#/components/schemas/"), string(there))
		}
		require.Equal(t, doc["oneOf"] != nil, schemas["Notification"].(map[string]any)["oneOf"] != nil)
		require.Len(t, schemas["Notification"].(map[string]any)["oneOf"], len(declared))
	})
}

func TestEnvelope(t *testing.T) {
	n := notification.New("alice", notification.MarketHalt{}, "")
	tokens := json.NewDecoder(strings.NewReader(string(n.AppendJSON(nil))))
	var keys []string
	for depth := 0; ; {
		token, err := tokens.Token()
		if err != nil {
			break
		}
		switch v := token.(type) {
		case json.Delim:
			depth += map[json.Delim]int{'{': 1, '}': -1}[v]
		case string:
			if depth == 1 && slices.ContainsFunc(envelope, func(f field) bool { return f.key == v }) {
				keys = append(keys, v)
			}
		}
	}
	var declared []string
	for _, f := range envelope {
		declared = append(declared, f.key)
	}
	require.Equal(t, declared, keys)

	t.Run("the bounds are those of Validate", func(t *testing.T) {
		n := notification.New("alice", notification.MarketHalt{}, "")
		n.ID = strings.Repeat("x", maxIDLen)
		n.Source = strings.Repeat("x", maxText)
		require.NoError(t, n.Validate())
		n.Source += "x"
		require.ErrorContains(t, n.Validate(), "Source")
		n.ID += "x"
		require.ErrorContains(t, n.Validate(), "ID")
	})
}

// TestFramesAreThoseOfWsgateway holds the table of frames to the source of
// wsgateway: every type, key and code there is in it, and none more.
func TestFramesAreThoseOfWsgateway(t *testing.T) {
	declared := structs(t, "../wsgateway/protocol.go")
	keysOf := func(f frame) (keys []string) {
		if f.action != "" {
			keys = append(keys, "action")
		}
		for _, k := range f.keys {
			name := k.name
			if k.optional {
				name += "?"
			}
			keys = append(keys, name)
		}
		return keys
	}
	answer := map[string]bool{}
	for _, f := range fromServer("") {
		switch keys, own := declared[f.action]; {
		case own:
			require.Equal(t, keys, keysOf(f), f.name)
			delete(declared, f.action)
		case f.plain:
			for _, key := range keysOf(f) {
				answer[strings.TrimSuffix(key, "?")] = true
			}
		default:
			require.Equal(t, "Batch", f.name, "a frame that wsgateway has no type for")
		}
	}
	command := map[string]bool{}
	var actions []string
	for _, f := range fromClient("") {
		actions = append(actions, f.action)
		for _, key := range keysOf(f) {
			command[strings.TrimSuffix(key, "?")] = true
		}
	}
	for name, seen := range map[string]map[string]bool{"answer": answer, "command": command} {
		for _, key := range declared[name] {
			key = strings.TrimSuffix(key, "?")
			require.True(t, seen[key], "%s.%s", name, key)
			delete(seen, key)
		}
		require.Empty(t, seen, name)
		delete(declared, name)
	}
	delete(declared, "ending") // says nothing in JSON
	require.Empty(t, declared, "types of wsgateway without a frame")

	var source []byte
	for _, name := range []string{"protocol.go", "refresh.go"} {
		b, err := os.ReadFile("../wsgateway/" + name)
		require.NoError(t, err)
		source = append(source, b...)
	}
	found := func(pattern string) (all []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(source, -1) {
			all = append(all, string(m[1]))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	require.ElementsMatch(t, found(`failure\([^,]+, "([a-z_]+)"`), errorCodes(t))
	var handled []string
	for _, line := range found(`(?m)^\tcase ("[a-z_", ]+"):$`) {
		for name := range strings.SplitSeq(line, ", ") {
			handled = append(handled, strings.Trim(name, `"`))
		}
	}
	require.ElementsMatch(t, handled, actions)
	require.Equal(t, []string{subprotocol}, found(`batchProtocol = "([^"]+)"`))
}

// errorCodes returns the codes that an Error may have.
func errorCodes(t *testing.T) (codes []string) {
	t.Helper()
	properties := read(t, "asyncapi.json")["components"].(map[string]any)["schemas"].(map[string]any)["Error"].(map[string]any)["properties"]
	for _, code := range properties.(map[string]any)["code"].(map[string]any)["enum"].([]any) {
		codes = append(codes, code.(string))
	}
	return codes
}

func TestMetaSchema(t *testing.T) {
	meta := compile(t, map[string]any{"$ref": "https://json-schema.org/draft/2020-12/schema"}, jsonschema.Draft2020, "")
	doc := read(t, "notification.schema.json")
	require.Equal(t, "https://json-schema.org/draft/2020-12/schema", doc["$schema"])
	require.NoError(t, meta.Validate(doc))

	t.Run("it is one that can say no", func(t *testing.T) {
		doc["$defs"].(map[string]any)["Channel"].(map[string]any)["type"] = "text"
		require.Error(t, meta.Validate(doc))
	})
	t.Run("the schemas of the AsyncAPI document are good in draft 07 as well", func(t *testing.T) {
		api := read(t, "asyncapi.json")
		draft7 := compile(t, map[string]any{"$ref": "http://json-schema.org/draft-07/schema#"}, jsonschema.Draft7, "")
		for name, s := range api["components"].(map[string]any)["schemas"].(map[string]any) {
			require.NoError(t, meta.Validate(s), name)
			require.NoError(t, draft7.Validate(s), name)
		}
	})
	t.Run("every keyword is one that both drafts know, and nothing stands beside a reference", func(t *testing.T) {
		known := strings.Fields("title description type format enum const required properties items oneOf anyOf allOf not minimum maximum minLength maxLength minItems uniqueItems $ref")
		var walk func(where string, s map[string]any)
		walk = func(where string, s map[string]any) {
			if _, ok := s["$ref"]; ok {
				require.Len(t, s, 1, where)
			}
			for keyword, v := range s {
				require.Contains(t, known, keyword, where)
				switch v := v.(type) {
				case []any:
					for i, e := range v {
						if e, ok := e.(map[string]any); ok {
							walk(fmt.Sprintf("%s/%s/%d", where, keyword, i), e)
						}
					}
				case map[string]any:
					if keyword != "properties" {
						walk(where+"/"+keyword, v)
						continue
					}
					for key, e := range v {
						walk(where+"/"+key, e.(map[string]any))
					}
				}
			}
		}
		for name, s := range read(t, "asyncapi.json")["components"].(map[string]any)["schemas"].(map[string]any) {
			walk(name, s.(map[string]any))
		}
	})
}
