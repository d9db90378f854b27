package main

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
)

// typeScript returns the types of the TypeScript client: what its parser makes of
// a notification, with each int64 as a bigint.
func typeScript(ps []payload) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	line("// Generated from payload.go by go generate ./schema: do not edit.")
	line("//")
	line("// The notifications of an exchange as the client hands them over: an int64 is a")
	line("// bigint, and null stands for a number that is not one.")
	line("")
	line("/** What a session subscribes to: each type of notification belongs to one. */")
	line("export type Channel = %s;", union(channels()))
	line("")
	line("/** The lane: 0 overtakes all others. */")
	line("export type Priority = 0 | 1 | 2 | 3;")
	for _, p := range ps {
		line("")
		line("/** %s */", p.doc)
		line("export interface %s {", p.name)
		line("  /** The same as message_type. */")
		line("  type: %s;", quote(p.wire))
		for _, f := range p.fields {
			if f.doc != "" {
				line("  /** %s */", f.doc)
			}
			line("  %s: %s;", f.key, tsType(f.kind))
		}
		line("}")
	}
	line("")
	line("/** The payload of each type of notification. */")
	line("export interface Payloads {")
	for _, p := range ps {
		line("  %s: %s;", p.wire, p.name)
	}
	line("}")
	line("")
	line("/** What happened. */")
	line("export type MessageType = keyof Payloads;")
	line("")
	line("/** What every notification has, whatever its type. A server that is older than")
	line(" *  this file may leave out a key that is newer than it: that means zero. A newer")
	line(" *  one may send keys that are not here. */")
	line("export interface Envelope<T extends string, P> {")
	for _, f := range envelope {
		line("  /** %s */", f.doc)
		line("  %s: %s;", f.key, tsTypeOf(f))
	}
	line("}")
	line("")
	line("/** A notification of the types that this file knows: a switch over message_type")
	line(" *  narrows the payload. */")
	line("export type Notification<T extends MessageType = MessageType> = { [K in T]: Envelope<K, Payloads[K]> }[T];")
	line("")
	line("/** A notification of a type that is newer than this file. */")
	line("export type UnknownNotification = Envelope<string, Record<string, unknown>>;")
	line("")
	line("/** Whatever may come. */")
	line("export type AnyNotification = Notification | UnknownNotification;")
	line("")
	line("/** The channel of each type. */")
	line("export const channelOf: Readonly<Record<MessageType, Channel>> = {")
	for _, p := range ps {
		line("  %s: %s,", p.wire, quote(p.channel.String()))
	}
	line("};")
	line("")
	line("/** Reports whether a notification is of a type that this file knows. */")
	line("export function isKnown(n: AnyNotification): n is Notification {")
	line("  return Object.hasOwn(channelOf, n.message_type);")
	line("}")
	line("")
	line("/** The keys, in the envelope or a payload, whose values are int64 on the wire and")
	line(" *  bigint here, also where they are small enough for a number. */")
	line("export const bigintKeys: ReadonlySet<string> = new Set([%s]);", strings.Join(quoted(bigKeys(ps)), ", "))
	return b.Bytes()
}

// tsTypeOf is the type of a key of the envelope.
func tsTypeOf(f field) string {
	switch f.key {
	case "message_type":
		return "T"
	case "payload":
		return "P"
	case "priority":
		return "Priority"
	}
	return tsType(f.kind)
}

func tsType(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "string"
	case reflect.Float64:
		return "number | null" // null: not a number
	case reflect.Int64:
		return "bigint"
	case reflect.Uint32, reflect.Uint8:
		return "number"
	}
	panic(fmt.Sprintf("schema: a %s, which the wire does not have", k))
}

func quoted(names []string) (quotes []string) {
	for _, name := range names {
		quotes = append(quotes, quote(name))
	}
	return quotes
}

func union(names []string) string { return strings.Join(quoted(names), " | ") }
