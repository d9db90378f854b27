package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/qaexchange/notification"
)

// An object is one of JSON whose members keep their order.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, quote(m.key)...), ':')
		v, err := marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(b, v...)
	}
	return append(b, '}'), nil
}

// marshal is json.Marshal without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// text returns a document as it is committed.
func text(o object) []byte {
	compact, err := marshal(o)
	if err != nil {
		panic(err) // strings, numbers and lists always can
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		panic(err) // it was written a moment ago
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// A refs makes a reference to a definition by its name: where the definitions
// are differs between a JSON Schema and an AsyncAPI document.
type refs string

func (r refs) to(name string) object { return object{{"$ref", string(r) + name}} }

// described is to, with a text of its own if there is one.
func (r refs) described(name, text string) object {
	if text == "" {
		return r.to(name)
	}
	return object{{"description", text}, {"allOf", []object{r.to(name)}}}
}

// nanoseconds is how the comment of a field begins that is a time.
const nanoseconds = "Unix nanoseconds."

func integer64() object {
	return object{{"type", "integer"}, {"format", "int64"}, {"minimum", int64(math.MinInt64)}, {"maximum", int64(math.MaxInt64)}}
}

// jsonSchema returns the JSON Schema of a notification.
func jsonSchema(ps []payload) object {
	const defs refs = "#/$defs/"
	return object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", "https://github.com/qaexchange/notification/schema/notification.schema.json"},
		{"title", "Notification"},
		{"description", "What an exchange tells a user, as notification.AppendJSON writes it. New types and new keys may come: ignore a key and skip a message_type that you do not know."},
		{"$comment", "Generated from payload.go by go generate ./schema: do not edit."},
		{"oneOf", oneOf(defs, ps)},
		{"$defs", definitions(defs, ps)},
	}
}

// oneOf refers to the notification of every type.
func oneOf(r refs, ps []payload) (all []object) {
	for _, p := range ps {
		all = append(all, r.to(p.name+"Notification"))
	}
	return all
}

// definitions returns the schemas that all others are made of. They keep to what
// JSON Schema 2020-12 and draft 07, which AsyncAPI builds on, have in common; and
// nothing stands beside a $ref, because draft 07 ignores it there.
func definitions(r refs, ps []payload) object {
	var types []string
	for _, p := range ps {
		types = append(types, p.wire)
	}
	defs := object{
		{"MessageType", object{
			{"title", "MessageType"},
			{"description", "What happened."},
			{"type", "string"},
			{"enum", types},
		}},
		{"Channel", object{
			{"title", "Channel"},
			{"description", "What a session subscribes to: each message_type belongs to one channel."},
			{"type", "string"},
			{"enum", channels()},
		}},
		{"Nanoseconds", append(object{
			{"title", "Nanoseconds"},
			{"description", "Unix nanoseconds, an int64. Those of today are above 2^53: a reader that keeps numbers as doubles, such as JSON.parse, changes nearly all of them, by up to 128 ns. Read it as a 64-bit integer or a BigInt, and order by the stream, never by this."},
		}, integer64()...)},
		{"Double", object{
			{"title", "Double"},
			{"description", "A price, volume, amount or ratio, an IEEE 754 double: the shortest decimal that reads back as the same. null: not a number, or infinite."},
			{"type", []string{"number", "null"}},
			{"format", "double"},
		}},
		{"Envelope", object{
			{"title", "Envelope"},
			{"description", "What every notification has beside its type and payload."},
			{"type", "object"},
			{"required", keys(common())},
			{"properties", envelopeProperties(r)},
		}},
	}
	for _, p := range ps {
		defs = append(defs,
			member{p.name + "Notification", notificationSchema(r, p)},
			member{p.name, payloadSchema(r, p)},
		)
	}
	return defs
}

// channels returns the names of all channels.
func channels() (names []string) {
	for c := notification.Channel(1); ; c++ {
		if _, err := c.MarshalText(); err != nil {
			return names
		}
		names = append(names, c.String())
	}
}

func keys(fields []field) (keys []string) {
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	return keys
}

// common is the envelope without what each type says for itself.
func common() (fields []field) {
	for _, f := range envelope {
		if f.key != "message_type" && f.key != "payload" {
			fields = append(fields, f)
		}
	}
	return fields
}

func envelopeProperties(r refs) (props object) {
	for _, f := range common() {
		s := object{{"description", f.doc}}
		switch f.key {
		case "message_id", "user_id":
			s = append(s, member{"type", "string"}, member{"minLength", 1}, member{"maxLength", maxIDLen})
		case "priority":
			s = append(s, member{"type", "integer"}, member{"minimum", 0}, member{"maximum", notification.NumPriorities - 1})
		default:
			s = fieldSchema(r, f)
		}
		props = append(props, member{f.key, s})
	}
	return props
}

// notificationSchema is the envelope with one type of payload in it.
func notificationSchema(r refs, p payload) object {
	props := object{
		{"message_type", object{{"type", "string"}, {"const", p.wire}}},
		{"payload", r.to(p.name)},
	}
	if p.channel != notification.ChannelSystem {
		props = append(props, member{"user_id", object{{"not", object{{"const", notification.AllUsers}}}}})
	}
	return object{
		{"title", p.name + "Notification"},
		{"description", fmt.Sprintf("%s Channel %s; priority %d, unless the service that published it chose another.", p.doc, p.channel, p.lane)},
		{"type", "object"},
		{"allOf", []object{r.to("Envelope"), {
			{"required", []string{"message_type", "payload"}},
			{"properties", props},
		}}},
	}
}

// payloadSchema is one payload struct.
func payloadSchema(r refs, p payload) object {
	props := object{{"type", object{
		{"description", "The same as message_type."},
		{"type", "string"},
		{"const", p.wire},
	}}}
	for _, f := range p.fields {
		props = append(props, member{f.key, fieldSchema(r, f)})
	}
	return object{
		{"title", p.name},
		{"description", p.doc},
		{"type", "object"},
		{"required", append([]string{"type"}, keys(p.fields)...)},
		{"properties", props},
	}
}

func fieldSchema(r refs, f field) object {
	var s object
	if f.doc != "" {
		s = object{{"description", f.doc}}
	}
	switch f.kind {
	case reflect.String:
		return append(s, member{"type", "string"}, member{"maxLength", maxText})
	case reflect.Float64:
		return r.described("Double", f.doc)
	case reflect.Int64:
		if rest, time := strings.CutPrefix(f.doc, nanoseconds); time {
			return r.described("Nanoseconds", strings.TrimSpace(rest))
		}
		return append(s, integer64()...)
	case reflect.Uint32:
		return append(s, member{"type", "integer"}, member{"format", "uint32"}, member{"minimum", 0}, member{"maximum", math.MaxUint32})
	case reflect.Uint8:
		return append(s, member{"type", "integer"}, member{"format", "uint8"}, member{"minimum", 0}, member{"maximum", math.MaxUint8})
	}
	panic(fmt.Sprintf("schema: %s is a %s, which the wire does not have", f.key, f.kind))
}
