package natstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var built struct {
	once sync.Once
	dir  string // of the program; Main removes it
	err  error
}

// program returns the path of the server's program, which is compiled once per
// test binary.
func program(t testing.TB) string {
	t.Helper()
	built.once.Do(build)
	if errors.Is(built.err, fs.ErrNotExist) {
		t.Skipf("skipped: the program of the NATS server is in a checkout only: %v", built.err)
	}
	if built.err != nil {
		t.Fatalf("compiling the NATS server: %v", built.err)
	}
	return filepath.Join(built.dir, "natsserver")
}

func build() {
	run := func(dir, name string, args ...string) string {
		if built.err != nil {
			return ""
		}
		cmd := exec.CommandContext(context.Background(), name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// The module cache would not have it: it is a module that nobody gets.
	here := run("", "go", "list", "-f", "{{.Dir}}", "github.com/qaexchange/notification/natslog/internal/natstest")
	source := filepath.Join(filepath.Dir(here), "natsserver")
	if built.err == nil {
		_, built.err = os.Stat(source)
	}
	if built.err == nil {
		built.dir, built.err = os.MkdirTemp("", "natstest")
	}
	run(source, "env", "GOWORK=off", "go", "build", "-o", filepath.Join(built.dir, "natsserver"), ".")
}

// Main removes what was compiled, if anything was; call it when all tests have
// ended.
func Main(m *testing.M) int {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	return code
}
