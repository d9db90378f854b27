//go:build !go1.27 || !goexperiment.jsonv2

package main

// jsonV2 is empty: this build of Go has no encoding/json/v2.
var jsonV2 []jsonLibrary
