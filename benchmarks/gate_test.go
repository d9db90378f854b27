package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// newRepository has one commit, of what the benchmarks are built of as the
// working tree has it.
func newRepository(t *testing.T) (root string) {
	t.Helper()
	for _, name := range []string{"git", "go"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	root = t.TempDir()
	sources, err := filepath.Glob("../*.go")
	check(err)
	for _, from := range append(sources, "../go.mod", "../go.sum") {
		if !strings.HasSuffix(from, "_test.go") {
			b := must(os.ReadFile(from))
			check(os.WriteFile(filepath.Join(root, filepath.Base(from)), b, 0o666))
		}
	}
	check(os.CopyFS(filepath.Join(root, "internal"), os.DirFS("../internal")))
	check(os.CopyFS(filepath.Join(root, "benchmarks"), os.DirFS(".")))
	runGit(t, root, "init", "-q")
	commitAll(t, root, "the library")
	return root
}

func runGit(t *testing.T, root string, args ...string) string {
	t.Helper()
	identity := []string{"-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"}
	out, err := output(command(t.Context(), root, "git", append(identity, args...)...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func commitAll(t *testing.T, root, message string) {
	t.Helper()
	runGit(t, root, "add", "-A")
	runGit(t, root, "commit", "-q", "-m", message)
}

// temporary makes a directory for what would be left behind, and a check that
// nothing is.
func temporary(t *testing.T) (left func() []string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir)
	return func() (names []string) {
		for _, e := range must(os.ReadDir(dir)) {
			names = append(names, e.Name())
		}
		return names
	}
}

func TestGate(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: two programs are built")
	}
	root := newRepository(t)
	left := temporary(t)
	// The working tree differs from its only commit.
	dirt := filepath.Join(root, "dirt.go")
	check(os.WriteFile(dirt, []byte("package notification\n"), 0o666))
	status := runGit(t, root, "status", "--porcelain")
	quick := []job{
		{Section: "flat", System: libraryName, Publishers: 2, Users: 10, Window: 1_000, Seconds: 0.01},
		{Section: "paced", System: libraryName, Rate: 10_000, Users: 10, Window: 1_000, Seconds: 0.01},
		{Section: "own encodings", System: libraryName, Seconds: 1e-4},
	}
	g := gate{root: root, revision: "HEAD", rounds: 2, jobs: quick, measured: func(outcome) {}, w: t.Output()}

	t.Run("a working tree with changes is measured beside its commit, round by round", func(t *testing.T) {
		figures, err := g.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"flat out, messages per second, publishers: 2", "flat out, CPU µs per message, publishers: 2",
			"P0 p50 µs at 10,000 messages per second", "P0 p99 µs at 10,000 messages per second",
			"JSON, into a buffer, TradeExecuted, round, ns", "JSON, decode, AccountUpdate, 16–17 digits, ns",
			"binary, encode, AccountUpdate, products, ns", "binary, open/decode, TradeExecuted, products, ns",
		} {
			if !slices.ContainsFunc(figures, func(f *figure) bool { return f.name == want }) {
				t.Errorf("there is no %q", want)
			}
		}
		for _, f := range figures {
			for _, values := range f.sides {
				if len(values) != g.rounds || slices.Min(values) <= 0 {
					t.Errorf("%s: %v", f.name, values)
				}
			}
		}
		if table := gateTable(figures, "HEAD"); len(table.rows) != len(figures) {
			t.Errorf("%d rows for %d figures", len(table.rows), len(figures))
		}
	})
	t.Run("the programs are over the library of the revision and that of the working tree, and an interrupt ends both", func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		long := g
		long.jobs = append(slices.Clone(quick[:1]), job{Section: "idle", System: libraryName, Users: 10, Seconds: 3_600})
		var libraries []string
		measured := 0
		long.measured = func(outcome) {
			if measured++; measured < 2 {
				return
			}
			programs := must(filepath.Glob(filepath.Join(os.TempDir(), "benchmarks-*", "side?.exe")))
			for _, program := range programs {
				for _, m := range must(buildinfo.ReadFile(program)).Deps {
					if m.Path == "github.com/qaexchange/notification" {
						libraries = append(libraries, m.Replace.Path)
						_, err := os.Stat(filepath.Join(m.Replace.Path, "dirt.go"))
						if inTree := err == nil; inTree != (m.Replace.Path == root) {
							t.Errorf("what only the working tree has is in %s: %v", m.Replace.Path, inTree)
						}
					}
				}
			}
			interrupt()
		}
		if _, err := long.run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if len(libraries) != 2 || libraries[0] == root || libraries[1] != root {
			t.Errorf("the programs are built over %q", libraries)
		}
	})
	t.Run("a revision that does not exist is refused", func(t *testing.T) {
		bad := g
		bad.revision = "--nonsense"
		if _, err := bad.run(t.Context()); err == nil || !strings.Contains(err.Error(), `no revision "--nonsense"`) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a revision with another API is refused", func(t *testing.T) {
		runGit(t, root, "rm", "-q", "--cached", "notification.go")
		runGit(t, root, "commit", "-q", "-m", "without notification.go")
		defer runGit(t, root, "reset", "-q", "HEAD~1")
		if _, err := g.run(t.Context()); err == nil || !strings.Contains(err.Error(), "the benchmarks do not compile with the library of HEAD") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a revision with another archive is compared in the rest", func(t *testing.T) {
		runGit(t, root, "stash", "push", "-q", "--include-untracked")
		for _, name := range must(filepath.Glob(filepath.Join(root, "*.go"))) {
			b := bytes.ReplaceAll(must(os.ReadFile(name)), []byte("NumberFieldOf"), []byte("NumberFieldThen"))
			check(os.WriteFile(name, b, 0o666))
		}
		commitAll(t, root, "another archive")
		runGit(t, root, "revert", "--no-edit", "HEAD")
		runGit(t, root, "stash", "pop", "-q")
		defer runGit(t, root, "reset", "-q", "HEAD~2")
		var told bytes.Buffer
		other := g
		other.revision, other.rounds, other.w = "HEAD~1", 1, &told
		figures, err := other.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		has := func(part string) bool {
			return slices.ContainsFunc(figures, func(f *figure) bool { return strings.Contains(f.name, part) })
		}
		if !has("flat out") || !has("P0 p99") || !has("decode") || has("binary") {
			t.Errorf("%d figures, binary ones among them: %v", len(figures), has("binary"))
		}
		if text := told.String(); !strings.HasPrefix(text, "the archive is not compared") || !strings.Contains(text, "NumberFieldOf") {
			t.Errorf("it says %q", text)
		}
	})
	if names := left(); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
	if now := runGit(t, root, "status", "--porcelain"); now != status {
		t.Errorf("the working tree is\n%s\nand was\n%s", now, status)
	}
	if trees := runGit(t, root, "worktree", "list"); strings.Count(trees, "\n") != 0 {
		t.Errorf("working trees:\n%s", trees)
	}
}

func TestVerdict(t *testing.T) {
	eight := func(v float64) []float64 { return slices.Repeat([]float64{v}, 8) }
	for _, c := range []struct {
		name string
		figure
		want string
	}{
		{"more time in every round is slower", figure{sides: [2][]float64{eight(100), eight(110)}}, slower},
		{"less time in every round is faster", figure{sides: [2][]float64{eight(110), eight(100)}}, "faster"},
		{"fewer messages per second in every round is slower", figure{more: true, sides: [2][]float64{eight(110), eight(100)}}, slower},
		{"more messages per second in every round is faster", figure{more: true, sides: [2][]float64{eight(100), eight(110)}}, "faster"},
		{"one round that says otherwise is doubt", figure{sides: [2][]float64{eight(100), {120, 120, 99, 120, 120, 120, 120, 120}}}, "–"},
		{"a difference within the tolerance is none", figure{sides: [2][]float64{eight(100), eight(104)}}, "–"},
		{"rounds are compared one by one", figure{sides: [2][]float64{{100, 200, 300, 400, 500, 600, 700, 800}, {110, 220, 330, 440, 550, 660, 770, 880}}}, slower},
		{"seven rounds prove nothing", figure{sides: [2][]float64{eight(100)[:7], eight(200)[:7]}}, "too few rounds"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.verdict(); got != c.want {
				t.Errorf("%s, ratios %v", got, c.ratios())
			}
			c.figure.name = "it"
			err := regressions([]*figure{{name: "another", sides: [2][]float64{eight(1), eight(1)}}, &c.figure})
			if (c.want == slower) != errors.Is(err, errSlower) {
				t.Errorf("the gate says %v", err)
			}
			if err != nil && !strings.HasSuffix(err.Error(), ": it") {
				t.Errorf("the gate names others: %v", err)
			}
		})
	}
}

func TestGateMeasuresWithOneAndTwoPublishers(t *testing.T) {
	var publishers []int
	for _, j := range gateJobs() {
		if j.Section == "flat" {
			publishers = append(publishers, j.Publishers)
		}
		if j.System != libraryName {
			t.Errorf("it measures %s", j.System)
		}
	}
	if !slices.Equal(publishers, []int{1, 2}) {
		t.Errorf("publishers: %v", publishers)
	}
}
