package natslog_test

import (
	"fmt"
	"log"
	"os"
	"slices"
	"testing"

	"github.com/qaexchange/notification/natslog/internal/natstest"
)

// startServer starts a NATS server for an example.
func startServer() (url string, stop func()) {
	t := new(example)
	return natstest.Start(t, natstest.Config{}).URL, t.end
}

// An example is the testing.TB that natstest wants, where there is none.
type example struct {
	testing.TB
	cleanups []func()
}

func (*example) Helper()                           {}
func (*example) Failed() bool                      { return false }
func (*example) Logf(format string, args ...any)   { log.Printf(format, args...) }
func (*example) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (*example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *example) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *example) TempDir() string {
	dir, err := os.MkdirTemp("", "natslog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *example) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}
