//go:build amd64 || arm64

package main

import (
	"github.com/bytedance/sonic"
	"github.com/bytedance/sonic/encoder"
)

// sonicLibraries is empty for a Go version for which sonic has no code of its
// own: it would call encoding/json, and its rows would be a lie.
func sonicLibraries() []jsonLibrary {
	if sonic.APIKind != sonic.UseSonicJSON {
		return nil
	}
	return []jsonLibrary{
		{"sonic ConfigStd", sonicEscaped, sonic.ConfigStd.Marshal, sonic.ConfigStd.Unmarshal},
		{"sonic default", sonicPlain, sonic.ConfigDefault.Marshal, sonic.ConfigDefault.Unmarshal},
	}
}

func sonicPlain() func(any) ([]byte, error) {
	b := make([]byte, 0, 1024)
	return func(v any) ([]byte, error) {
		b = b[:0]
		err := encoder.EncodeInto(&b, v, 0)
		return b, err
	}
}

// sonicEscaped is ConfigStd's encoding, in which escaping is a second pass.
// EncodeInto with EscapeHTML would make a new buffer for it each time.
func sonicEscaped() func(any) ([]byte, error) {
	b, escaped := make([]byte, 0, 1024), make([]byte, 0, 1024)
	return func(v any) ([]byte, error) {
		b = b[:0]
		err := encoder.EncodeInto(&b, v, encoder.SortMapKeys|encoder.CompactMarshaler|encoder.ValidateString)
		escaped = encoder.HTMLEscape(escaped[:0], b)
		return escaped, err
	}
}
