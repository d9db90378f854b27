//go:build goexperiment.jsonv2

package main

import (
	"bytes"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
)

// jsonV2 is encoding/json/v2, which is in Go from 1.27 on, and in 1.26 with an
// experiment. By its own defaults it escapes less and refuses more than the
// others; this is what they do.
var jsonV2 = []jsonLibrary{{
	name: "encoding/json/v2",
	reuse: func() func(any) ([]byte, error) {
		var b bytes.Buffer
		return func(v any) ([]byte, error) {
			b.Reset()
			err := jsonv2.MarshalWrite(&b, v, asTheOthers)
			return b.Bytes(), err
		}
	},
	marshal:   func(v any) ([]byte, error) { return jsonv2.Marshal(v, asTheOthers) },
	unmarshal: func(data []byte, v any) error { return jsonv2.Unmarshal(data, v, asTheOthers) },
}}

var asTheOthers = jsonv2.JoinOptions(jsontext.EscapeForHTML(true), jsontext.EscapeForJS(true),
	jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))
