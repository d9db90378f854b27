package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A gate measures this library as the working tree has it beside what it was in
// a revision, and says what has become slower.
//
// Both sides are this program as the working tree has it, over another library
// each: two versions of the program would measure two things.
type gate struct {
	root     string // of the repository
	revision string
	rounds   int
	jobs     []job
	measured func(outcome) // is called with each
	w        io.Writer     // is told what cannot be compared
}

// The sides, of which all pairs are.
const (
	ofRevision = iota
	ofTree
)

// run leaves nothing behind, whether it is done, fails or ctx ends: the revision
// is written to a temporary directory, through an index of its own there, so
// that the repository does not learn of it.
func (g gate) run(ctx context.Context) (figures []*figure, err error) {
	dir, err := os.MkdirTemp("", "benchmarks-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	then := filepath.Join(dir, "library")
	if err := g.checkout(ctx, filepath.Join(dir, "index"), then); err != nil {
		return nil, err
	}
	programs, err := g.buildBoth(ctx, dir, then)
	if err != nil {
		return nil, err
	}
	for round := range g.rounds {
		for _, j := range g.jobs {
			j.Round = round
			var pair [2]outcome
			// Then, now, now, then: what changes steadily, as a machine that
			// grows warm or busy does, hurts both sides alike.
			for _, side := range [][2]int{{ofRevision, ofTree}, {ofTree, ofRevision}}[round%2] {
				if pair[side], err = measureIn(ctx, programs[side], j); err != nil {
					return nil, err
				}
				g.measured(pair[side])
			}
			figures = addPair(figures, pair)
		}
	}
	return figures, nil
}

// checkout writes the files of the revision to dir.
func (g gate) checkout(ctx context.Context, index, dir string) error {
	git := func(args ...string) (string, error) {
		cmd := command(ctx, g.root, "git", args...)
		cmd.Env = append(os.Environ(), "GIT_INDEX_FILE="+index)
		return output(cmd)
	}
	commit, err := git("rev-parse", "--verify", "--quiet", "--end-of-options", g.revision+"^{commit}")
	if err != nil {
		return fmt.Errorf("%s has no revision %q: %w", g.root, g.revision, err)
	}
	if _, err := git("read-tree", commit); err != nil {
		return err
	}
	_, err = git("checkout-index", "--all", "--prefix="+dir+string(filepath.Separator))
	return err
}

// buildBoth makes the program over the library of the revision and that of the
// working tree. If the former does not have all that the program calls, both are
// made without the archive, whose API is the youngest.
func (g gate) buildBoth(ctx context.Context, dir, then string) (programs [2]string, err error) {
	for side := range programs {
		programs[side] = filepath.Join(dir, fmt.Sprintf("side%d.exe", side))
	}
	tags := ""
	err = g.build(ctx, programs[ofRevision], then, tags)
	if err != nil && ctx.Err() == nil {
		tags = "noarchive"
		whole := err
		if err = g.build(ctx, programs[ofRevision], then, tags); err == nil {
			fmt.Fprintf(g.w, "the archive is not compared, as %s has another: %v\n", g.revision, whole)
		}
	}
	if err != nil {
		return programs, fmt.Errorf("the benchmarks do not compile with the library of %s, whose API may be another: %w", g.revision, err)
	}
	return programs, g.build(ctx, programs[ofTree], g.root, tags)
}

// build makes the program of the working tree over the library in a directory.
// The two sides have the same requirements, as far as the library of the
// revision does not ask for more.
func (g gate) build(ctx context.Context, program, library, tags string) error {
	benchmarks, mod := filepath.Join(g.root, "benchmarks"), program+".mod"
	for _, ext := range []string{".mod", ".sum"} {
		b, err := os.ReadFile(filepath.Join(benchmarks, "go"+ext))
		if err != nil {
			return err
		}
		if err := os.WriteFile(program+ext, b, 0o666); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"mod", "edit", "-replace=github.com/qaexchange/notification=" + library, mod},
		{"build", "-mod=mod", "-modfile=" + mod, "-tags=" + tags, "-buildvcs=false", "-o", program, "."},
	} {
		cmd := command(ctx, benchmarks, "go", args...)
		cmd.Env = append(os.Environ(), "GOWORK=off")
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return nil
}

// atMost bounds a measurement, which takes some seconds, or far more on a machine
// with much other work: a library that hangs is an error and no wait.
const atMost = 5 * time.Minute

func measureIn(ctx context.Context, program string, j job) (outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("more than %v", atMost))
	defer cancel()
	o, err := spawn(ctx, program, j)
	if ctx.Err() != nil {
		return o, fmt.Errorf("%s: %w", j.Section, context.Cause(ctx))
	}
	if lost := o.Lost + o.Refused; err == nil && lost > 0 {
		err = fmt.Errorf("%s: %d messages are lost", j.Section, lost)
	}
	return o, err
}

// command is one that ends when ctx does, and may clean up.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// output is what a command prints; an error has what it complains of.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), err
}

// gateJobs are what a gate measures of this library.
func gateJobs() []job {
	jobs := []job{
		{Section: "flat", Publishers: 1, Seconds: 1.2},
		{Section: "flat", Publishers: 2, Seconds: 1.2},
		{Section: "paced", Rate: 10_000, Seconds: 2.5},
		{Section: "own encodings", Seconds: 0.01},
	}
	for i := range jobs {
		j := &jobs[i]
		j.System, j.Users, j.Window = libraryName, *users, *window
		j.Seconds *= *scale
	}
	return jobs
}

// A figure has been measured on both sides, once in each round.
type figure struct {
	name  string
	more  bool // is better
	sides [2][]float64
}

// addPair adds what a job found on both sides.
func addPair(figures []*figure, pair [2]outcome) []*figure {
	for side, o := range pair {
		for _, f := range figuresOf(o) {
			i := slices.IndexFunc(figures, func(known *figure) bool { return known.name == f.name })
			if i < 0 {
				i = len(figures)
				figures = append(figures, &figure{name: f.name, more: f.more})
			}
			figures[i].sides[side] = append(figures[i].sides[side], f.value)
		}
	}
	return figures
}

// A reading is a figure of one side and one round.
type reading struct {
	name  string
	more  bool
	value float64
}

func figuresOf(o outcome) (all []reading) {
	switch o.Section {
	case "flat":
		with := fmt.Sprintf(", publishers: %d", o.Publishers)
		return []reading{
			{"flat out, messages per second" + with, true, o.PerSecond},
			{"flat out, CPU µs per message" + with, false, o.CPU},
			{"flat out, allocations per message" + with, false, o.Allocs},
		}
	case "paced":
		at := fmt.Sprintf(" µs at %s messages per second", thousands(float64(o.Rate)))
		return []reading{{"P0 p50" + at, false, o.FromCall[0].P50}, {"P0 p99" + at, false, o.FromCall[0].P99}}
	}
	for _, op := range o.Ops {
		_, ns, _ := spread(op.Nanos)
		all = append(all, reading{strings.Join([]string{op.Format, op.Step, op.Message, op.Class}, ", ") + ", ns", false, ns})
	}
	return all
}

// ratios are the working tree's figure over the revision's, round by round.
func (f *figure) ratios() []float64 {
	all := make([]float64, len(f.sides[ofTree]))
	for round, now := range f.sides[ofTree] {
		all[round] = now / f.sides[ofRevision][round]
	}
	return all
}

const (
	// tolerance is what a median may be off: below it are differences that come
	// of where the linker puts a function.
	tolerance = 0.05
	// enoughRounds is how many must agree. If nothing has changed, five agree on
	// "slower" in one case of 32, so that one of the thirty figures is likely to
	// be so; ten agree in one case of 1,024.
	enoughRounds = 8
)

// verdict is "slower" or "faster" if every round says so and the median is
// beyond the tolerance.
func (f *figure) verdict() string {
	low, middle, high := spread(f.ratios())
	if f.more {
		low, middle, high = 1/high, 1/middle, 1/low
	}
	switch {
	case len(f.sides[ofTree]) < enoughRounds:
		return "too few rounds"
	case low > 1 && middle > 1+tolerance:
		return slower
	case high < 1 && middle < 1/(1+tolerance):
		return "faster"
	}
	return "–"
}

const slower = "slower"

func gateTable(figures []*figure, revision string) table {
	t := table{title: "The working tree beside " + revision,
		note: fmt.Sprintf("medians of the rounds; the ratio is the working tree's figure over the revision's in the same round; slower and faster: in every round, and by more than %.0f %% in the median", tolerance*100),
		head: []string{"figure", "better is", "revision", "working tree", "ratio", "min–max", "verdict"}}
	for _, f := range figures {
		_, then, _ := spread(f.sides[ofRevision])
		_, now, _ := spread(f.sides[ofTree])
		low, middle, high := spread(f.ratios())
		t.add(f.name, either(f.more, "more", "less"), fmt.Sprintf("%.5g", then), fmt.Sprintf("%.5g", now),
			fmt.Sprintf("%.3f", middle), fmt.Sprintf("%.3f–%.3f", low, high), f.verdict())
	}
	return t
}

// errSlower is wrapped with the figures that are.
var errSlower = errors.New("slower than the revision")

func regressions(figures []*figure) error {
	var names []string
	for _, f := range figures {
		if f.verdict() == slower {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errSlower, strings.Join(names, "; "))
}

// compareRevision is the program with -compare.
func compareRevision(ctx context.Context, w io.Writer, revision string) error {
	root, err := output(command(ctx, ".", "git", "rev-parse", "--show-toplevel"))
	if err != nil {
		return err
	}
	g := gate{root: root, revision: revision, rounds: *rounds, jobs: gateJobs(), measured: logged, w: w}
	fmt.Fprint(w, machine())
	start := time.Now()
	figures, err := g.run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "took %s, load average at the end %s\n", time.Since(start).Round(time.Second), loadAverage())
	textTables(w, gateTable(figures, revision))
	return regressions(figures)
}
