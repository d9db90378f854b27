// A program of somebody whose pages get the client from the server: serves it.
package main

import (
	"bytes"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/qaexchange/notification/clients/typescript"
)

func main() {
	w := httptest.NewRecorder()
	typescript.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/notification-client.js", nil))
	if w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte("notification.batch.v1")) {
		log.Fatalf("status %d: %.100s", w.Code, w.Body)
	}
}
