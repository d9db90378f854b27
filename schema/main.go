// Command schema writes what other languages need to know of a notification, from
// the declarations of the root package:
//
//	go generate ./schema
//
// The files are a JSON Schema, an AsyncAPI document, and the types of the clients
// in TypeScript and Python. They are committed, and a test fails when one of them
// is not what this program would write.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
)

//go:generate go run .

// root is the folder of the root package, seen from that of this one, where
// go generate and go test run.
const root = ".."

// A file is one that is generated.
type file struct {
	name string // relative to root, with slashes
	text []byte
}

func main() {
	log.SetFlags(0)
	files, err := generate()
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		name := filepath.Join(root, filepath.FromSlash(f.name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(name, f.text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// generate returns all files as they should be.
func generate() ([]file, error) {
	ps, err := payloads()
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	codes, err := closeCodes()
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return []file{
		{"schema/notification.schema.json", text(jsonSchema(ps))},
		{"schema/asyncapi.json", text(asyncAPI(ps, codes))},
		{"clients/typescript/src/notifications.ts", typeScript(ps)},
		{"clients/python/src/notification_client/notifications.py", python(ps)},
	}, nil
}
