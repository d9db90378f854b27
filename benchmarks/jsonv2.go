//go:build go1.27 && goexperiment.jsonv2

package main

import (
	"bytes"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
)

// jsonV2 is encoding/json/v2, which Go has from 1.27 on. By its own defaults it
// escapes less than the others and refuses more; set as here it does what they
// do, but for the case of keys, which it has to find as it is.
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
