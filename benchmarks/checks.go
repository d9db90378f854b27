package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/qaexchange/notification"
)

// A finding is what an encoding does with input that is not as it should be. A
// decoder that looks at less has less to do, so its figures are to be read
// beside this.
type finding struct {
	Format   string `json:"format"`
	Encoding string `json:"encoding"`
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// The questions, which are the columns of the tables.
const (
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

// Values of which each breaks a document in which it stands.
var (
	brokenValues = []string{`01`, `+1`, `1.`, `.5`, `1e`, `-`, `0x1`, `nul`, `tru`, `NaN`, `'a'`, `"\q"`, `"\u12g4"`, "\"\x01\"", "\"\n\"", `[1,,2]`, `[1,]`, `{"a":1,}`, `{"a"}`, `{a:1}`, `[1}`}
	tooLarge     = []string{`"priority":300`, `"priority":-1`, `"priority":1.5`, `"timestamp":9223372036854775808`, `"price":1e400`}
)

// findings asks every encoding of a TradeExecuted.
func findings() (all []finding) {
	s := newSample(messageTrade, classes[0])
	document := string(s.all[0].AppendJSON(nil))
	user := s.all[0].UserID
	// with returns the document with something else in place of a member.
	with := func(key, member string) []byte {
		from := strings.Index(document, `"`+key+`":`)
		length := strings.IndexAny(document[from:], ",}")
		return []byte(document[:from] + member + document[from+length:])
	}
	for _, c := range jsonCodecs(s) {
		add := func(question, answer string) {
			all = append(all, finding{formatJSON, c.encoding, question, answer})
		}
		syntax, skipped := tally{}, tally{}
		for _, member := range []string{`"priority":1,`, `"priority" 1`, `"priority":`, `priority:1`} {
			syntax.add(outcomeOf(c, with("priority", member)), member)
		}
		for _, tail := range []string{`x`, `}`, `,`, `{}`} {
			syntax.add(outcomeOf(c, []byte(document+tail)), "…}"+tail)
		}
		for i := range len(document) - 1 {
			syntax.add(outcomeOf(c, []byte(document[:i])), "cut short")
		}
		for _, v := range brokenValues {
			if strings.HasPrefix(v, `"`) {
				syntax.add(outcomeOf(c, with("source", `"source":`+v)), v)
			} else {
				syntax.add(outcomeOf(c, with("price", `"price":`+v)), v)
			}
			skipped.add(outcomeOf(c, with("priority", `"priority":1,"extra":`+v)), v)
		}
		add(askSyntax, syntax.accepted())
		add(askSkipped, skipped.accepted())
		large := tally{}
		for _, member := range tooLarge {
			key, _, _ := strings.Cut(member[1:], `"`)
			large.add(outcomeOf(c, with(key, member)), member)
		}
		add(askRange, large.accepted())
		add(askUTF8, textOf(c, with("source", "\"source\":\"a\xffb\""), "a\xffb"))
		add(askSurrogate, textOf(c, with("source", `"source":"a\ud800b"`), "a\xed\xa0\x80b"))
		add(askStrings, memoryOf(c, []byte(document), user))
	}
	for _, c := range binaryCodecs(s) {
		add := func(question, answer string) {
			all = append(all, finding{formatBinary, c.encoding, question, answer})
		}
		message := c.encode(0)[0]
		cut, inverted := tally{}, tally{}
		for i := range message {
			cut.add(outcomeOf(c, message[:i:i]), "")
			b := bytes.Clone(message)
			b[i] ^= 0xff
			inverted.add(outcomeOf(c, b), "")
		}
		add(askCut, cut.shares())
		add(askInverted, inverted.shares())
		source := s.all[0].Source
		add(askUTF8, textOf(c, bytes.Replace(message, []byte(source), []byte("\xff"+source[1:]), 1), "\xff"+source[1:]))
		add(askStrings, memoryOf(c, message, user))
	}
	return all
}

// A tally is of outcomes, each with what led to it.
type tally map[string][]string

func (t tally) add(outcome, cause string) { t[outcome] = append(t[outcome], cause) }

// accepted lists what was not refused.
func (t tally) accepted() string {
	text := "all refused"
	if causes := append(t[accepted], t[panics]...); len(causes) > 0 {
		text = fmt.Sprintf("%q accepted", causes)
	}
	return text
}

// shares says how often it came to what.
func (t tally) shares() string {
	all := len(t[refused]) + len(t[accepted]) + len(t[panics])
	var parts []string
	for _, outcome := range []string{refused, accepted, panics} {
		if n := len(t[outcome]); n > 0 {
			parts = append(parts, fmt.Sprintf("%d of %d %s", n, all, outcome))
		}
	}
	return strings.Join(parts, ", ")
}

// outcomeOf decodes data, whose cap is its length, and reads all of it.
func outcomeOf(c codec, data []byte) string {
	_, outcome := attempt(c, data)
	return outcome
}

func attempt(c codec, data []byte) (n *notification.Notification, outcome string) {
	defer func() {
		if recover() != nil {
			outcome = panics
		}
	}()
	n, err := c.decode(data)
	if err != nil {
		return nil, refused
	}
	return n, accepted
}

// textOf says what becomes of a source that should not be as it is.
func textOf(c codec, data []byte, raw string) string {
	n, outcome := attempt(c, data)
	switch {
	case outcome != accepted:
		return outcome
	case n.Source == raw:
		return "kept"
	default:
		return fmt.Sprintf("read as %+q", n.Source)
	}
}

// memoryOf says whether a string that was decoded changes with the input.
func memoryOf(c codec, data []byte, user string) string {
	n, outcome := attempt(c, data)
	if outcome != accepted {
		return outcome
	}
	clear(data)
	if n.UserID != user {
		return "the input"
	}
	return "memory of their own"
}
