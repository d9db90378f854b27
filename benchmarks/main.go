// Command benchmarks runs the same work through this library and through what
// one would use instead, side by side, and prints a table.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	sectionsFlag = choice("sections", "measure only these `sections`", namesOf(sections, func(s section) string { return s.name }))
	systemsFlag  = choice("systems", "compare only these `systems`", namesOf(contenders, func(c contender) string { return c.name }))
	rounds       = flag.Int("rounds", 0, "how often each is measured, in turns; the median is reported; 0: 3, and 10 with -compare")
	revision     = flag.String("compare", "", "instead of all that: compare this library with what it was in this git revision; exit status 1 if it is slower now")
	scale        = flag.Float64("scale", 1, "multiplies all durations")
	users        = flag.Int("users", 10_000, "receivers")
	window       = flag.Int("window", 10_000, "messages under way when publishing flat out")
	quick        = flag.Bool("quick", false, "a look at everything in half a minute; its figures mean little")
	jsonFile     = flag.String("json", "", "write each measurement as a line of JSON to this file")
	plotsDir     = flag.String("plots", "", "write plots to this directory")
	markdownFile = flag.String("markdown", "", "write the results to this file; in one with <!-- results --> they replace what stands up to <!-- /results -->")
	verbose      = flag.Bool("v", false, "print each measurement to standard error")
	child        = flag.String("job", "", "for the program itself: measure this one, as JSON, and print the outcome")
	traceDir     = flag.String("traces", "", "write an execution trace of each measurement to this directory, some 100 MB a second flat out: with -scale 0.1, say")
	profileDir   = flag.String("profiles", "", "write cpu, heap, mutex and block profiles of each measurement to this directory; what they measure is then distorted")
)

func namesOf[T any](all []T, name func(T) string) (names []string) {
	for _, x := range all {
		names = append(names, name(x))
	}
	return names
}

// choice makes a flag that takes some of the names that there are; all without it.
func choice(flagName, usage string, all []string) *[]string {
	chosen := all
	flag.Func(flagName, usage+", with commas: "+strings.Join(all, ","), func(s string) error {
		chosen = strings.Split(s, ",")
		for _, name := range chosen {
			if !slices.Contains(all, name) {
				return fmt.Errorf("there is no %q", name)
			}
		}
		return nil
	})
	return &chosen
}

func main() {
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "benchmarks: what is %q?\n", flag.Arg(0))
		os.Exit(2)
	}
	if *child != "" {
		if err := work(*child); err != nil {
			fmt.Fprintln(os.Stderr, "benchmarks:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *quick {
		*rounds, *scale = 1, min(*scale, 0.1)
	}
	err := error(nil)
	if *revision != "" {
		*rounds = cmp.Or(*rounds, 10)
		err = compareRevision(ctx, os.Stdout, *revision)
	} else {
		*rounds = cmp.Or(*rounds, 3)
		err = compare(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// work is the process of one job.
func work(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	stop, err := profile(j)
	if err != nil {
		return err
	}
	o, err := measure(j)
	stop()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// spawn does a job in a process of its own, of this program or of another that
// takes the same jobs.
func spawn(ctx context.Context, program string, j job) (o outcome, err error) {
	text, err := json.Marshal(j)
	if err != nil {
		return o, err
	}
	cmd := exec.CommandContext(ctx, program, "-job", string(text), "-profiles", *profileDir, "-traces", *traceDir)
	cmd.Env = os.Environ()
	if j.Procs > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GOMAXPROCS=%d", j.Procs))
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return o, fmt.Errorf("%s: %w\n%s", text, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return o, json.Unmarshal(out, &o)
}

// A section makes its jobs for one round. Those of a group run at the same time:
// only what costs nothing while it is measured may share the machine.
type section struct {
	name   string
	rounds bool // more than one
	groups func(round int, systems []string) [][]job
}

func each(systems []string, make func(system string) []job) (groups [][]job) {
	for _, s := range systems {
		for _, j := range make(s) {
			j.System = s
			groups = append(groups, []job{j})
		}
	}
	return groups
}

var sections = []section{
	{"flat", true, func(_ int, systems []string) [][]job {
		return each(systems, func(system string) (jobs []job) {
			publishers := flatPublishers
			if slices.Contains(scaling, system) {
				publishers = slices.Concat(publishers, manyPublishers)
			}
			for _, p := range publishers {
				jobs = append(jobs, job{Users: *users, Publishers: p, Seconds: 1.2, Window: *window})
			}
			return jobs
		})
	}},
	{"buffer", true, func(_ int, systems []string) [][]job {
		return each(slices.DeleteFunc(slices.Clone(systems), func(s string) bool { return !slices.Contains(buffered, s) }), func(string) (jobs []job) {
			for _, p := range flatPublishers {
				jobs = append(jobs, job{Users: *users, Publishers: p, Seconds: 1.2, Window: *window, Buffers: true})
			}
			return jobs
		})
	}},
	{"paced", true, func(_ int, systems []string) [][]job {
		return each(systems, func(string) []job {
			return []job{
				{Users: *users, Rate: 1_000, Seconds: 2.5, Window: *window},
				{Users: *users, Rate: 10_000, Seconds: 1, Window: *window},
				{Users: *users, Rate: 50_000, Seconds: 0.8, Window: *window},
			}
		})
	}},
	{"flood", true, func(_ int, systems []string) [][]job {
		return each(systems, func(string) []job { return []job{{Users: *users, Rate: 200, Seconds: 2, Window: *window}} })
	}},
	{"idle", false, func(_ int, systems []string) [][]job {
		var idle []job
		var many [][]job
		for _, s := range systems {
			// The floor has nothing that could idle, and no encoder works here.
			if s != floorName && encoderOf(s) == ownEncoder.name {
				idle = append(idle, job{System: s, Users: *users, Seconds: 20})
				if !*quick {
					many = append(many, []job{{Section: "memory", System: s, Users: 10 * *users}})
				}
			}
		}
		return append([][]job{idle}, many...)
	}},
	{"stalled", false, func(_ int, systems []string) [][]job {
		return each(systems, func(string) []job { return []job{{Users: 100, Rate: 30_000, Seconds: 4, Window: *window}} })
	}},
	{"growth", true, func(_ int, systems []string) [][]job {
		if !slices.Contains(systems, libraryName) {
			return nil
		}
		base := job{Users: *users, Publishers: 1, Gateways: 1, Seconds: 0.5, Window: *window}
		return each([]string{libraryName}, func(string) (jobs []job) {
			for _, n := range growing {
				for _, value := range n.values {
					j := base
					*n.of(&j) = value
					jobs = append(jobs, j)
				}
			}
			return jobs
		})
	}},
	{"encodings", true, func(int, []string) [][]job {
		return [][]job{{{System: libraryName, Seconds: 0.01}}}
	}},
}

// Section flat measures every system with flatPublishers, and those in scaling
// with manyPublishers, too. Section buffer measures those in buffered: whose
// documents nobody has any more once the receiver has seen them.
var (
	flatPublishers = []int{1, 2}
	manyPublishers = []int{4, 8, 16}
	scaling        = []string{libraryName, "map+channel", floorName}
	buffered       = []string{libraryName, "map+channel", "hub", floorName}
)

// growing is what section growth varies, one at a time.
var growing = []struct {
	name   string
	values []int
	of     func(*job) *int
}{
	{"users", []int{100, 1_000, 10_000, 100_000}, func(j *job) *int { return &j.Users }},
	{"gateways", []int{1, 2, 4, 8}, func(j *job) *int { return &j.Gateways }},
	{"GOMAXPROCS", []int{1, 2}, func(j *job) *int { return &j.Procs }},
}

func compare(ctx context.Context) error {
	systems := slices.DeleteFunc(namesOf(contenders, func(c contender) string { return c.name }), func(name string) bool {
		return !slices.Contains(*systemsFlag, name)
	})
	self, err := os.Executable()
	if err != nil {
		return err
	}
	header := machine()
	fmt.Print(header)
	start := time.Now()
	var results []outcome
	for _, s := range sections {
		if !slices.Contains(*sectionsFlag, s.name) {
			continue
		}
		n := *rounds
		if !s.rounds {
			n = 1
		}
		for round := range n {
			for _, group := range s.groups(round, systems) {
				found, err := together(ctx, self, s.name, round, group)
				if err != nil {
					return err
				}
				results = append(results, found...)
			}
		}
	}
	fmt.Printf("took %s, load average at the end %s\n", time.Since(start).Round(time.Second), loadAverage())
	report(os.Stdout, results, textTables)
	return save(header, results)
}

// together runs a group of jobs at the same time.
func together(ctx context.Context, program, section string, round int, group []job) ([]outcome, error) {
	found, errs := make([]outcome, len(group)), make([]error, len(group))
	var wg sync.WaitGroup
	for i, j := range group {
		if j.Section == "" {
			j.Section = section
		}
		j.Round = round
		j.Seconds *= *scale
		wg.Go(func() { found[i], errs[i] = spawn(ctx, program, j) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, err
		}
		logged(found[i])
	}
	return found, nil
}

// logged prints an outcome if that is asked for.
func logged(o outcome) {
	if *verbose {
		json.NewEncoder(os.Stderr).Encode(o)
	}
}

func save(header string, results []outcome) error {
	if *jsonFile != "" {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.Encode(map[string]any{"header": strings.Split(strings.TrimSpace(header), "\n"), "at": time.Now()})
		for _, o := range results {
			e.Encode(o)
		}
		if err := os.WriteFile(*jsonFile, b.Bytes(), 0o666); err != nil {
			return err
		}
	}
	if *plotsDir != "" {
		if err := plots(*plotsDir, results); err != nil {
			return err
		}
	}
	if *markdownFile != "" {
		return saveMarkdown(*markdownFile, header, results)
	}
	return nil
}

const (
	resultsBegin = "<!-- results -->\n"
	resultsEnd   = "<!-- /results -->"
)

func saveMarkdown(file, header string, results []outcome) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n```\n%s```\n\n", resultsBegin, header)
	report(&b, results, markdownTables)
	io.WriteString(&b, resultsEnd)
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if before, rest, ok := bytes.Cut(old, []byte(resultsBegin)); ok {
		_, after, ok := bytes.Cut(rest, []byte(resultsEnd))
		if !ok {
			return fmt.Errorf("%s: %s without %s", file, strings.TrimSpace(resultsBegin), resultsEnd)
		}
		return os.WriteFile(file, slices.Concat(before, b.Bytes(), after), 0o666)
	}
	b.WriteByte('\n')
	return os.WriteFile(file, b.Bytes(), 0o666)
}

// machine is what a figure must be published with.
func machine() string {
	var b strings.Builder
	fmt.Fprintf(&b, "machine   %s, %d cores, %s/%s, load average %s\n", cpuModel(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, loadAverage())
	fmt.Fprintf(&b, "go        %s, GOMAXPROCS %d\n", runtime.Version(), runtime.GOMAXPROCS(0))
	fmt.Fprintf(&b, "modules   %s\n", strings.Join(versions(), ", "))
	fmt.Fprintf(&b, "commit    %s\n", commit())
	fmt.Fprintf(&b, "command   benchmarks %s\n", strings.Join(os.Args[1:], " "))
	return b.String()
}

func versions() (list []string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return []string{"unknown"}
	}
	for _, m := range info.Deps {
		switch m.Path {
		case "github.com/centrifugal/centrifuge", "github.com/nats-io/nats-server/v2", "github.com/nats-io/nats.go",
			"github.com/ThreeDotsLabs/watermill",
			"github.com/bytedance/sonic", "github.com/goccy/go-json", "github.com/segmentio/encoding",
			"google.golang.org/protobuf", "github.com/planetscale/vtprotobuf", "github.com/google/flatbuffers", "github.com/tinylib/msgp":
			name := strings.TrimPrefix(m.Path, "github.com/")
			list = append(list, name+" "+m.Version)
		}
	}
	return list
}

// commit is that of the working directory, which is where go run is called.
func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	id := strings.TrimSpace(string(out))
	// Sources and dependencies; the README that the results go into is neither.
	status, err := exec.Command("git", "status", "--porcelain", "--", ":/*.go", ":/*.mod").Output()
	if err != nil || len(bytes.TrimSpace(status)) > 0 {
		id += " with changes"
	}
	return id
}
