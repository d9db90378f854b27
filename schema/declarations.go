package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/qaexchange/notification"
)

// A payload is the declaration of one payload struct.
type payload struct {
	name    string // in Go: "OrderAccepted"
	wire    string // "order_accepted"
	doc     string // a sentence: "The exchange took an order."
	channel notification.Channel
	lane    notification.Priority // what New gives
	fields  []field
}

// A field is a field of a payload struct, or a key of the envelope around it.
type field struct {
	key  string
	kind reflect.Kind
	doc  string // empty if the declaration has none
}

// payloads returns the payload structs, in the order of their types. The types
// and fields are those that the compiler sees; only the comments are read from
// the source.
func payloads() ([]payload, error) {
	docs, err := comments(filepath.Join(root, "payload.go"))
	if err != nil {
		return nil, err
	}
	var ps []payload
	for t := notification.Type(1); ; t++ {
		if _, err := t.MarshalText(); err != nil {
			return ps, oneKindEach(ps)
		}
		// What has nothing but a type is read as the struct of that type.
		var n notification.Notification
		if err := n.UnmarshalJSON(fmt.Appendf(nil, `{"message_type":%q,"payload":{"type":%[1]q}}`, t)); err != nil {
			return nil, err
		}
		s := reflect.TypeOf(n.Payload)
		p := payload{name: s.Name(), wire: t.String(), doc: docs[s.Name()], channel: t.Channel(), lane: t.DefaultPriority()}
		if p.doc == "" {
			return nil, fmt.Errorf("%s has no comment that begins with its name and a colon", s)
		}
		for f := range s.Fields() {
			p.fields = append(p.fields, field{f.Tag.Get("json"), f.Type.Kind(), docs[s.Name()+"."+f.Name]})
		}
		ps = append(ps, p)
	}
}

// envelope is what is around every payload, in the order of AppendJSON. The names
// are the wire's alone, so they are said here; the tests compare them with what
// AppendJSON writes.
var envelope = []field{
	{"message_id", reflect.String, "Unique: who gets a notification twice knows it by this."},
	{"message_type", reflect.String, "What happened, and thereby which payload this is."},
	{"user_id", reflect.String, `Whose notification it is; "*" for everybody, which only those of channel system may be.`},
	{"priority", reflect.Uint8, "The lane, 0 to 3: 0 overtakes all others."},
	{"timestamp", reflect.Int64, "Unix nanoseconds. When it happened."},
	{"source", reflect.String, `The service that says so, such as "MatchingEngine".`},
	{"payload", reflect.Struct, "The details."},
}

// The bounds of what Publish takes: maxIDLen and maxText of the root package,
// which count bytes. A string has at most as many characters, so they bound those
// as well.
const (
	maxIDLen = 256
	maxText  = 1 << 20
)

// bigKeys returns the keys of which the values are int64, each once.
func bigKeys(ps []payload) []string {
	var keys []string
	seen := map[string]bool{}
	for _, fields := range append([][]field{envelope}, fieldsOf(ps)...) {
		for _, f := range fields {
			if f.kind == reflect.Int64 && !seen[f.key] {
				seen[f.key] = true
				keys = append(keys, f.key)
			}
		}
	}
	return keys
}

// oneKindEach reports a key that is int64 in one place and something else in
// another: a client that reads JSON key by key could not know which is meant.
func oneKindEach(ps []payload) error {
	big := map[string]bool{}
	for _, key := range bigKeys(ps) {
		big[key] = true
	}
	for _, p := range ps {
		for _, f := range p.fields {
			if big[f.key] && f.kind != reflect.Int64 {
				return fmt.Errorf("%s.%s is a %s here and int64 elsewhere", p.name, f.key, f.kind)
			}
		}
	}
	return nil
}

func fieldsOf(ps []payload) (fields [][]field) {
	for _, p := range ps {
		fields = append(fields, p.fields)
	}
	return fields
}

// comments returns what the comments of a Go file say of its structs, under
// "Struct", and of their fields, under "Struct.Field".
func comments(name string) (map[string]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	docs := map[string]string{}
	for _, d := range f.Decls {
		d, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range d.Specs {
			s, ok := s.(*ast.TypeSpec)
			if !ok {
				continue
			}
			st, ok := s.Type.(*ast.StructType)
			if !ok {
				continue
			}
			if doc, found := strings.CutPrefix(sentence(d.Doc), s.Name.Name+": "); found {
				docs[s.Name.Name] = capital(doc)
			}
			for _, field := range st.Fields.List {
				doc := field.Doc
				if doc == nil {
					doc = field.Comment
				}
				for _, n := range field.Names {
					docs[s.Name.Name+"."+n.Name] = sentence(doc)
				}
			}
		}
	}
	return docs, nil
}

// sentence returns a comment as one line that ends like a sentence, empty if
// there is none.
func sentence(c *ast.CommentGroup) string {
	s := strings.Join(strings.Fields(c.Text()), " ")
	if s != "" && !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

func capital(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

// upper returns the name of a constant: "ORDER_ACCEPTED" for "order_accepted".
func upper(wire string) string { return strings.ToUpper(wire) }

// quote returns s as a string literal of JSON, TypeScript and Python alike, for
// text that has nothing but printable characters in it.
func quote(s string) string { return strconv.Quote(s) }
