package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests here let programs of others judge what is generated.

// program returns the path of a program, or skips.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("skipped: there is no %s here", name)
	}
	return path
}

// run runs a program in a folder to its end, with all the processes that it
// starts, and returns what it prints.
func run(t *testing.T, dir, stdin, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = patience // what was printed may be read late
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// copyTo copies a file into a folder.
func copyTo(t *testing.T, dir, name string) {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(name)), text, 0o600))
}

// npm returns a folder of its own with the packages that package.json names, or
// skips if they cannot be had.
func npm(t *testing.T) (dir, node string) {
	t.Helper()
	node, npm := program(t, "node"), program(t, "npm")
	dir = t.TempDir()
	copyTo(t, dir, "package.json")
	copyTo(t, dir, "package-lock.json")
	out, errs, err := run(t, dir, "", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
	if regexp.MustCompile(`EUSAGE|EINTEGRITY|EJSONPARSE`).MatchString(errs) {
		t.Fatalf("package-lock.json is not right: %s%s", out, errs)
	}
	if err != nil {
		t.Skipf("skipped: npm ci: %v\n%s%s", err, out, errs)
	}
	return dir, node
}

func TestToolsOfNode(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped because of -short")
	}
	t.Parallel()
	dir, node := npm(t)
	t.Run("the parser of AsyncAPI", func(t *testing.T) {
		document, err := os.ReadFile("asyncapi.json")
		require.NoError(t, err)
		copyTo(t, dir, "asyncapi.json")
		copyTo(t, dir, "testdata/asyncapi.mjs")
		args := []string{"asyncapi.mjs", "asyncapi.json"}
		for name, change := range map[string][2]string{
			"message that is nowhere":                 {`"$ref": "#/channels/batch/messages/Live"`, `"$ref": "#/channels/batch/messages/Dead"`},
			"kind that JSON does not have":            {`"type": "boolean"`, `"type": "truth"`},
			"operation that nobody can carry out":     {`"action": "receive"`, `"action": "obey"`},
			"schema that is not there":                {`"$ref": "#/components/schemas/Double"`, `"$ref": "#/components/schemas/Triple"`},
			"binding of a method that is no GET":      {`"method": "GET"`, `"method": "PUT"`},
			"message with a key that is not AsyncAPI": {`"summary"`, `"summery"`},
		} {
			bad := strings.Replace(string(document), change[0], change[1], 1)
			require.NotEqual(t, string(document), bad, name)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(bad), 0o600))
			args = append(args, name)
		}
		out, errs, err := run(t, dir, "", node, args...)
		require.NoError(t, err, "%s%s", out, errs)
		judged := 0
		for line := range strings.Lines(out) {
			var v struct {
				File       string
				Operations int
				Remarks    []struct {
					Severity int
					Code     string
				}
			}
			require.NoError(t, json.Unmarshal([]byte(line), &v), line)
			judged++
			wrong := 0
			for _, remark := range v.Remarks {
				if remark.Severity < 2 {
					wrong++
				} else {
					require.Equal(t, "asyncapi-latest-version", remark.Code, line) // 3.0.0 is what most tools read
				}
			}
			if v.File == "asyncapi.json" {
				require.Zero(t, wrong, line)
				require.Positive(t, v.Operations)
			} else {
				require.Positive(t, wrong, "a %s is not refused", v.File)
			}
		}
		require.Equal(t, len(args)-1, judged)
	})
	t.Run("the validator of the README", func(t *testing.T) {
		readme, err := os.ReadFile("README.md")
		require.NoError(t, err)
		_, code, _ := strings.Cut(string(readme), "```js\n")
		code, _, found := strings.Cut(code, "```")
		require.True(t, found)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "validate.mjs"), []byte(code), 0o600))
		copyTo(t, dir, "notification.schema.json")
		var good strings.Builder
		r := newRand(t)
		for _, typ := range payloadTypes() {
			for range 20 {
				good.Write(append(random(t, r, typ, "").AppendJSON(nil), '\n'))
			}
		}
		out, errs, err := run(t, dir, good.String(), node, "validate.mjs")
		require.NoError(t, err, "%s", errs)
		require.Empty(t, out+errs)
		out, errs, err = run(t, dir, strings.Replace(example(), `"price":50100`, `"price":"50100"`, 1), node, "validate.mjs")
		require.NoError(t, err, "%s", errs)
		require.Contains(t, out, "price")
	})
	t.Run("the compiler of TypeScript", func(t *testing.T) {
		alone := t.TempDir() // where no other package's types are found
		copyTo(t, alone, "package.json")
		copyTo(t, alone, "../clients/typescript/src/notifications.ts")
		copyTo(t, alone, "testdata/use.ts")
		tsc := filepath.Join(dir, "node_modules", "typescript", "bin", "tsc")
		out, errs, err := run(t, alone, "", node, tsc, "--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes",
			"--verbatimModuleSyntax", "--erasableSyntaxOnly", "--skipLibCheck", "--lib", "es2022", "--target", "es2022", "--module", "nodenext", "use.ts")
		require.NoError(t, err, "%s%s", out, errs)
		out, errs, err = run(t, alone, "", node, "use.js")
		require.NoError(t, err, "%s%s", out, errs)
		var told struct {
			ChannelOf  map[string]string
			BigintKeys []string
		}
		require.NoError(t, json.Unmarshal([]byte(out), &told))
		ps, err := payloads()
		require.NoError(t, err)
		require.Len(t, told.ChannelOf, len(ps))
		for _, p := range ps {
			require.Equal(t, p.channel.String(), told.ChannelOf[p.wire])
		}
		require.Equal(t, []string{"timestamp", "deadline", "resume_at"}, told.BigintKeys)
	})
}

const pythonTypes = "../clients/python/src/notification_client/notifications.py"

func TestPython(t *testing.T) {
	t.Parallel()
	t.Run("what the types hold is what was sent", func(t *testing.T) {
		var python string
		for _, name := range []string{"python3", "/usr/bin/python3"} {
			if exec.Command(name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))").Run() == nil {
				python = name
				break
			}
		}
		if python == "" {
			t.Skip("skipped: there is no Python 3.11 here, nor a newer one")
		}
		dir := t.TempDir()
		copyTo(t, dir, pythonTypes)
		copyTo(t, dir, "testdata/roundtrip.py")
		r := newRand(t)
		var sent []string
		for _, typ := range payloadTypes() {
			for range 20 {
				sent = append(sent, string(random(t, r, typ, "").AppendJSON(nil)))
			}
		}
		out, errs, err := run(t, dir, strings.Join(sent, "\n")+"\n", python, "roundtrip.py")
		require.NoError(t, err, "%s", errs)
		got := strings.Split(strings.TrimSpace(out), "\n")
		require.Len(t, got, len(sent))
		for i := range sent {
			// json.loads takes -0 for the integer, which has no sign.
			want := regexp.MustCompile(`:-0([,}])`).ReplaceAllString(sent[i], ":0$1")
			require.Equal(t, want, again(t, got[i]))
		}
	})
	t.Run("mypy --strict", func(t *testing.T) {
		mypy := program(t, "mypy")
		dir := t.TempDir()
		copyTo(t, dir, pythonTypes)
		copyTo(t, dir, "testdata/roundtrip.py")
		out, errs, err := run(t, dir, "", mypy, "--strict", "--python-version", "3.11", "--cache-dir", t.TempDir(), "notifications.py", "roundtrip.py")
		require.NoError(t, err, "%s%s", out, errs)
	})
}
