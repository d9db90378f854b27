package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/qaexchange/notification"
)

// A finding is what an encoding does with what is not as it should be. Who
// looks at less has less to do, so the figures are to be read beside this.
type finding struct {
	Table    string `json:"table"`
	Encoding string `json:"encoding"`
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// The tables of findings.
const (
	checksEncode = "JSON, what the encoders do"
	checksDecode = "JSON, what the decoders check"
	checksBinary = "Binary, what opening checks"
)

// The questions, which are the columns of the tables.
const (
	askMarkup    = "<, U+2028"
	askNaN       = "NaN"
	askSyntax    = "broken syntax"
	askSkipped   = "the same under an unknown key"
	askRange     = "out of range"
	askUTF8      = "not UTF-8"
	askSurrogate = "half a surrogate pair"
	askStrings   = "strings lie in"
	askCut       = "cut short"
	askInverted  = "a byte inverted"
)

const (
	refused  = "refused"
	accepted = "accepted"
	panics   = "panics"
)

// broken are values of which none may stand in a document.
var broken = []struct{ what, value string }{
	{"malformed number", `01`}, {"malformed number", `+1`}, {"malformed number", `1.`}, {"malformed number", `.5`},
	{"malformed number", `1e`}, {"malformed number", `-`}, {"malformed number", `0x1`},
	{"malformed literal", `nul`}, {"malformed literal", `tru`}, {"malformed literal", `NaN`},
	{"single quotes", `'a'`}, {"unknown escape", `"\q"`}, {"malformed \\u", `"\u12g4"`},
	{"control character", "\"\x01\""}, {"control character", "\"\n\""},
	{"malformed array", `[1,,2]`}, {"malformed array", `[1,]`}, {"malformed array", `[1}`},
	{"malformed object", `{"a":1,}`}, {"malformed object", `{"a"}`}, {"malformed object", `{a:1}`},
}

// tooLarge are members whose field cannot hold their value.
var tooLarge = []string{`"priority":300`, `"priority":-1`, `"priority":1.5`, `"timestamp":9223372036854775808`, `"price":1e400`}

// findings asks every encoding of a TradeExecuted.
func findings() (all []finding) {
	s := newSample(messageTrade, classes[0])
	for _, c := range jsonCodecs(s) {
		all = append(all, encoderFindings(c, *s.all[0])...)
		all = append(all, decoderFindings(c, s.all[0])...)
	}
	for _, c := range binaryCodecs(s) {
		all = append(all, binaryFindings(c, s.all[0])...)
	}
	return all
}

func encoderFindings(c codec, n notification.Notification) []finding {
	p := n.Payload.(notification.TradeExecuted)
	p.Price = math.NaN()
	n.Payload = p
	number := written(c, &n, func(b []byte) string {
		if !bytes.Contains(b, []byte(`"price":null`)) {
			return "not JSON"
		}
		return "null"
	})
	p.Price = 1
	n.Payload = p
	n.Source = "<\u2028"
	markup := written(c, &n, func(b []byte) string {
		return either(bytes.Contains(b, []byte(n.Source)), "as they are", "escaped")
	})
	n.Source = "a\xffb"
	text := written(c, &n, func(b []byte) string { return either(utf8.Valid(b), "replaced", "kept") })
	return []finding{{checksEncode, c.encoding, askMarkup, markup}, {checksEncode, c.encoding, askUTF8, text}, {checksEncode, c.encoding, askNaN, number}}
}

// written says what each way to encode n makes of it.
func written(c codec, n *notification.Notification, what func([]byte) string) string {
	encoded, err := c.encode(n)
	if err != nil {
		return refused
	}
	var answers []string
	for _, b := range encoded {
		answers = append(answers, what(b))
	}
	return strings.Join(slices.Compact(answers), ", ")
}

func either(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

func decoderFindings(c codec, n *notification.Notification) []finding {
	document := string(n.AppendJSON(nil))
	// with returns the document with something else in place of a member.
	with := func(key, member string) []byte {
		from := strings.Index(document, `"`+key+`":`)
		length := strings.IndexAny(document[from:], ",}")
		return []byte(document[:from] + member + document[from+length:])
	}
	syntax, skipped, large := tally{}, tally{}, tally{}
	for _, member := range []string{`"priority":1,`, `"priority" 1`, `"priority":`, `priority:1`} {
		syntax.add(attempt(c, with("priority", member)), "malformed object")
	}
	for _, tail := range []string{`x`, `}`, `,`, `{}`} {
		syntax.add(attempt(c, []byte(document+tail)), "more behind the end")
	}
	for i := range len(document) {
		syntax.add(attempt(c, []byte(document[:i])), "cut short")
	}
	for _, b := range broken {
		if strings.HasPrefix(b.value, `"`) {
			syntax.add(attempt(c, with("source", `"source":`+b.value)), b.what)
		} else {
			syntax.add(attempt(c, with("price", `"price":`+b.value)), b.what)
		}
		skipped.add(attempt(c, with("priority", `"priority":1,"extra":`+b.value)), b.what)
	}
	for _, member := range tooLarge {
		key, _, _ := strings.Cut(member[1:], `"`)
		large.add(attempt(c, with(key, member)), member)
	}
	return []finding{
		{checksDecode, c.encoding, askSyntax, syntax.accepted()},
		{checksDecode, c.encoding, askSkipped, skipped.accepted()},
		{checksDecode, c.encoding, askRange, large.accepted()},
		{checksDecode, c.encoding, askUTF8, sourceRead(c, with("source", "\"source\":\"a\xffb\""), "a\xffb")},
		{checksDecode, c.encoding, askSurrogate, sourceRead(c, with("source", `"source":"a\ud800b"`), "a\xed\xa0\x80b")},
		{checksDecode, c.encoding, askStrings, stringsIn(c, []byte(document), n.UserID)},
	}
}

func binaryFindings(c codec, n *notification.Notification) []finding {
	message := must(c.encode(n))[0]
	cut, inverted := tally{}, tally{}
	for i := range message {
		cut.add(attempt(c, message[:i:i]), "")
		b := bytes.Clone(message)
		b[i] ^= 0xff
		inverted.add(attempt(c, b), "")
	}
	raw := "\xff" + n.Source[1:]
	return []finding{
		{checksBinary, c.encoding, askCut, cut.shares()},
		{checksBinary, c.encoding, askInverted, inverted.shares()},
		{checksBinary, c.encoding, askUTF8, sourceRead(c, bytes.Replace(message, []byte(n.Source), []byte(raw), 1), raw)},
		{checksBinary, c.encoding, askStrings, stringsIn(c, message, n.UserID)},
	}
}

// A trial is what decoding came to.
type trial struct {
	outcome string
	n       *notification.Notification // if it was accepted
}

// attempt decodes data and reads all of it.
func attempt(c codec, data []byte) (t trial) {
	defer func() {
		if recover() != nil {
			t = trial{outcome: panics}
		}
	}()
	n, err := c.decode(data)
	if err != nil {
		return trial{outcome: refused}
	}
	return trial{accepted, n}
}

// A tally has for each outcome what led to it.
type tally map[string][]string

func (t tally) add(of trial, cause string) { t[of.outcome] = append(t[of.outcome], cause) }

// accepted lists what was not refused.
func (t tally) accepted() string {
	causes := slices.Concat(t[accepted], t[panics])
	if len(causes) == 0 {
		return "all refused"
	}
	slices.Sort(causes)
	return "not refused: " + strings.Join(slices.Compact(causes), ", ")
}

// shares says how often it came to what.
func (t tally) shares() string {
	var parts []string
	for _, outcome := range []string{refused, accepted, panics} {
		if n := len(t[outcome]); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, outcome))
		}
	}
	return strings.Join(parts, ", ")
}

// sourceRead says what becomes of a source that should not be as it is.
func sourceRead(c codec, data []byte, raw string) string {
	switch t := attempt(c, data); {
	case t.outcome != accepted:
		return t.outcome
	case t.n.Source == raw:
		return "kept"
	case strings.ContainsRune(t.n.Source, utf8.RuneError):
		return "replaced"
	default:
		return fmt.Sprintf("read as %+q", t.n.Source)
	}
}

// stringsIn says whether a string that was decoded changes with the input.
func stringsIn(c codec, data []byte, user string) string {
	t := attempt(c, data)
	if t.outcome != accepted {
		return t.outcome
	}
	clear(data)
	return either(t.n.UserID == user, "memory of their own", "the input")
}
