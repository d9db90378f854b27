// Command conformance runs the scenarios that every client must pass. See
// README.md.
//
//	go run ./clients/conformance [-client NAMES] [-scenario NAMES] [-v]
//	go run ./clients/conformance serve [-addr HOST:PORT]
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := errors.New("conformance: the only argument that there may be is serve")
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		err = serveByHand(ctx, os.Args[2:])
	} else if flags := parseFlags(); flag.NArg() == 0 {
		err = flags.run(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serveByHand plays the scenarios for clients that somebody tries by hand.
func serveByHand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	addr := flags.String("addr", "127.0.0.1:8090", "`address` to serve at")
	_ = flags.Parse(args) // it exits
	all, err := load()
	if err != nil {
		return err
	}
	s, err := serve(*addr, all, true, nil)
	if err != nil {
		return err
	}
	for _, sc := range all {
		fmt.Printf("%-32s %s\n", sc.Name, sc.Holds)
	}
	fmt.Printf("\nws://%s/s/NAME?user=ANY, each user begins at the first connection; what was seen of it is at /s/NAME/journal?user=ANY, which forgets the user\n", s.addr)
	<-ctx.Done()
	s.mu.Lock()
	runs := make([]*run, 0, len(s.runs))
	for _, r := range s.runs {
		runs = append(runs, r)
	}
	s.mu.Unlock()
	for _, r := range runs {
		s.end(r)
	}
	s.close()
	return nil
}

type options struct {
	clients, scenarios []string
	verbose            bool
	atOnce             int
	folder             string
	patience           time.Duration
}

func parseFlags() options {
	var o options
	words := func(to *[]string, names func() ([]string, error)) func(string) error {
		return func(s string) error {
			all, err := names()
			for w := range strings.SplitSeq(s, ",") {
				if err == nil && !slices.ContainsFunc(all, func(name string) bool { return strings.Contains(name, w) }) {
					err = fmt.Errorf("no name has %q in it", w)
				}
				*to = append(*to, w)
			}
			return err
		}
	}
	flag.Func("client", "only clients of these `names`, or parts of names, with commas", words(&o.clients, clientNames))
	flag.Func("scenario", "only scenarios of these `names`, or parts of names, with commas", words(&o.scenarios, scenarioNames))
	flag.BoolVar(&o.verbose, "v", false, "tell the story of each failure")
	flag.IntVar(&o.atOnce, "parallel", 8*runtime.NumCPU(), "how many `runs` at a time")
	flag.StringVar(&o.folder, "folder", "", "the `folder` of the clients, if they are not beside this one")
	flag.DurationVar(&o.patience, "patience", patience, "how long a run may take")
	flag.Parse()
	return o
}

func clientNames() (names []string, err error) {
	for _, c := range allClients {
		names = append(names, c.name)
	}
	return names, nil
}

func scenarioNames() (names []string, err error) {
	all, err := load()
	for _, sc := range all {
		names = append(names, sc.Name)
	}
	return names, err
}

// ownFolder is the folder of all clients: the parent of this source file's.
func ownFolder() (string, error) {
	for _, dir := range []string{".", "clients/conformance", "conformance"} {
		if _, err := os.Stat(filepath.Join(dir, "scenarios")); err == nil {
			return filepath.Abs(filepath.Join(dir, ".."))
		}
	}
	return "", errors.New("conformance: run it from the root of the repository or from clients/conformance")
}

// run runs what the flags say and prints the table. An error is one of an outcome
// that is not as it should be.
func (o options) run(ctx context.Context, out io.Writer) error {
	all, err := load()
	if err != nil {
		return err
	}
	all = named(all, o.scenarios)
	clients, absent, done, err := readyClients(o.folder, func(c client) bool {
		return len(o.clients) == 0 || slices.ContainsFunc(o.clients, func(w string) bool { return strings.Contains(c.name, w) })
	})
	if err != nil {
		return err
	}
	defer done()
	s, err := serve("127.0.0.1:0", all, false, nil)
	if err != nil {
		return err
	}
	defer s.close()
	var jobs []job
	for _, sc := range all {
		for _, c := range clients {
			jobs = append(jobs, job{sc, c})
		}
	}
	t := newTable(all, clients)
	bad := 0
	s.playAll(ctx, jobs, o.atOnce, o.patience, func(c *readyClient, outcome outcome) {
		t.put(outcome)
		if err := c.verdict(outcome); err != nil {
			bad++
		}
		if o.verbose && outcome.skipped == "" && !outcome.passed() {
			fmt.Fprintln(out, outcome.story())
		}
	})
	t.print(out)
	for _, reason := range absent {
		fmt.Fprintln(out, reason)
	}
	if bad > 0 {
		return fmt.Errorf("conformance: %d of %d runs are not as they should be", bad, len(jobs))
	}
	return ctx.Err()
}

// readyClients prepares the wanted clients. absent tells why some are not here; done
// removes what they have built.
func readyClients(dir string, wanted func(client) bool) (clients []*readyClient, absent []string, done func(), err error) {
	own, err := ownFolder()
	if err != nil {
		return nil, nil, nil, err
	}
	dir = cmp.Or(dir, own)
	build, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return nil, nil, nil, err
	}
	done = func() {
		for _, c := range clients {
			c.close()
		}
		_ = os.RemoveAll(build)
	}
	for _, c := range allClients {
		if !wanted(c) {
			continue
		}
		from := dir
		if c.fails {
			from = own
		}
		r, err := c.ready(from, build)
		switch {
		case errors.Is(err, errAbsent):
			absent = append(absent, fmt.Sprintf("%s: %v", c.name, err))
		case err != nil:
			done()
			return nil, nil, nil, fmt.Errorf("%s: %w", c.name, err)
		default:
			clients = append(clients, r)
		}
	}
	return clients, absent, done, nil
}
