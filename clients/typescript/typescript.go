// Package typescript holds the built client of this folder, so that a server in Go
// serves it to its pages from its own binary:
//
//	mux.Handle("GET /notification-client.js", typescript.Handler())
//
// and a page of it begins with
//
//	import { connect } from "/notification-client.js";
//
// The README of the folder tells what the client does. Nothing here needs npm.
package typescript

import (
	"bytes"
	_ "embed"
	"net/http"
	"time"
)

// JS is the client, one module of JavaScript. Read-only.
//
//go:embed dist/notification-client.js
var JS []byte

// Handler serves JS to GET and HEAD, in parts too, whatever the path. It sets no
// Cache-Control: a path that names the version may be cached for ever.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(JS))
	})
}
