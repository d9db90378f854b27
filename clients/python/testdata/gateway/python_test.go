package main

import (
	"os"
	"os/exec"
	"testing"
)

// TestPython runs the tests of the Python client, with every warning an error and
// asyncio's debug mode. They start what they need of this package themselves.
func TestPython(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: the Python client is tested without -short")
	}
	python := interpreter(t)
	cmd := exec.Command(python, "-W", "error", "-X", "dev", "-m", "unittest", "discover", "--verbose", "--start-directory", "tests", "--top-level-directory", ".")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "PYTHONPATH=src", "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// interpreter returns a Python that has what the client needs, or skips.
func interpreter(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} { // the first has Debian's packages
		if exec.Command(python, "-c", "import sys, websockets; sys.exit(sys.version_info < (3, 11))").Run() == nil {
			return python
		}
	}
	t.Skip("skipped: no python3 from 3.11 on has the package websockets here")
	return ""
}
