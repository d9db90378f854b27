package main

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
)

// python returns the types of the Python client, and the function that makes them
// of what json.loads returns.
func python(ps []payload) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	b.WriteString(pythonHead)
	line("")
	line("")
	line("class Channel(StrEnum):")
	line(`    """What a session subscribes to: each type of notification belongs to one."""`)
	line("")
	for _, c := range channels() {
		line("    %s = %s", upper(c), quote(c))
	}
	line("")
	line("")
	line("class MessageType(StrEnum):")
	line(`    """What happened, and thereby which payload a notification has."""`)
	line("")
	for _, p := range ps {
		line("    %s = %s", upper(p.wire), quote(p.wire))
	}
	for _, p := range ps {
		line("")
		line("")
		line("@dataclass(frozen=True, slots=True, kw_only=True)")
		line("class %s:", p.name)
		line(`    """%s"""`, p.doc)
		line("")
		line("    TYPE: ClassVar[MessageType] = MessageType.%s", upper(p.wire))
		line("    CHANNEL: ClassVar[Channel] = Channel.%s", upper(p.channel.String()))
		line("")
		for _, f := range p.fields {
			note := ""
			if f.doc != "" {
				note = "  # " + strings.TrimSuffix(f.doc, ".")
			}
			line("    %s: %s = %s%s", f.key, pythonType(f.kind), pythonZero(f.kind), note)
		}
	}
	b.WriteString(pythonUnknown)
	line("")
	line("")
	line("Payload: TypeAlias = (")
	for i, p := range ps {
		line("    %s%s", []string{"", "| "}[min(i, 1)], p.name)
	}
	line("    | UnknownPayload")
	line(")")
	line("")
	line("")
	line("@dataclass(frozen=True, slots=True, kw_only=True)")
	line("class Notification:")
	line(`    """What an exchange tells a user: match on the payload."""`)
	line("")
	for _, f := range envelope {
		line("    %s: %s  # %s", f.key, pythonTypeOf(f), strings.TrimSuffix(f.doc, "."))
	}
	line("    raw: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)  # all that came, unknown keys too")
	line("")
	line("    @property")
	line("    def channel(self) -> Channel | None:")
	line(`        """The channel of its type; None if the type is unknown here."""`)
	line("        payload = self.payload")
	line("        return None if isinstance(payload, UnknownPayload) else payload.CHANNEL")
	line("")
	line("")
	line("def notification(value: object) -> Notification:")
	line(`    """Makes a Notification of what json.loads returned for one.`)
	line("")
	line("    Unknown keys and types are no error: they are in raw and UnknownPayload. A key")
	line("    that is missing is zero, and null for a float is NaN. Raises ValueError, naming")
	line("    the key, for a value of the wrong kind. The value is kept as raw, not copied.")
	line(`    """`)
	line("    o = _Object(value)")
	line("    return Notification(")
	for _, f := range envelope {
		if f.key == "payload" {
			line("        payload=_payload(o),")
			continue
		}
		line("        %s=o.%s(%s),", f.key, pythonReader(f.kind), quote(f.key))
	}
	line("        raw=o.members,")
	line("    )")
	line("")
	line("")
	line("def _payload(o: _Object) -> Payload:")
	line(`    kind, value = o.string("message_type"), o.members.get("payload", {})`)
	line("    if read := _READERS.get(kind):")
	line("        return read(_Object(value))")
	line("    return UnknownPayload(type=kind, members=value if isinstance(value, Mapping) else {})")
	b.WriteString(pythonObject)
	for _, p := range ps {
		line("")
		line("")
		line("def _%s(p: _Object) -> %s:", p.wire, p.name)
		line("    return %s(", p.name)
		for _, f := range p.fields {
			line("        %s=p.%s(%s),", f.key, pythonReader(f.kind), quote(f.key))
		}
		line("    )")
	}
	line("")
	line("")
	line("_READERS: Mapping[str, Callable[[_Object], Payload]] = {")
	for _, p := range ps {
		line("    %s: _%s,", quote(p.wire), p.wire)
	}
	line("}")
	return b.Bytes()
}

// pythonTypeOf is the type of a key of the envelope.
func pythonTypeOf(f field) string {
	if f.key == "payload" {
		return "Payload"
	}
	return pythonType(f.kind)
}

func pythonType(k reflect.Kind) string {
	return map[string]string{"string": "str", "number": "float", "integer": "int"}[pythonReader(k)]
}

func pythonZero(k reflect.Kind) string {
	return map[string]string{"string": `""`, "number": "0.0", "integer": "0"}[pythonReader(k)]
}

// pythonReader is the method of _Object that reads a value.
func pythonReader(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "string"
	case reflect.Float64:
		return "number"
	case reflect.Int64, reflect.Uint32, reflect.Uint8:
		return "integer"
	}
	panic(fmt.Sprintf("schema: a %s, which the wire does not have", k))
}

const pythonHead = `# Generated from payload.go by go generate ./schema: do not edit.
"""The notifications of an exchange as dataclasses.

Floats are prices, volumes, amounts and ratios; NaN is null on the wire. Times are
Unix nanoseconds, as int.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, TypeAlias
`

const pythonUnknown = `

@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPayload:
    """The payload of a type that is newer than this file."""

    type: str
    members: Mapping[str, object] = field(default_factory=dict, hash=False)
`

const pythonObject = `

class _Object:
    """A JSON object whose values are read by the kind that they should have."""

    __slots__ = ("members",)

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"a notification and its payload are objects, not {type(value).__name__}")
        self.members: Mapping[str, object] = value

    def string(self, key: str) -> str:
        value = self.members.get(key, "")
        if isinstance(value, str):
            return value
        raise _wrong(key, value)

    def number(self, key: str) -> float:
        value = self.members.get(key, 0.0)
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer beyond every double
                return float(value)
        raise _wrong(key, value)

    def integer(self, key: str) -> int:
        value = self.members.get(key, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _wrong(key, value)


def _wrong(key: str, value: object) -> ValueError:
    return ValueError(f"{key} is a {type(value).__name__}")
`
