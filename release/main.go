// Command release makes a version of every module of this repository that others
// may depend on:
//
//	go run ./release [-n] v0.2.0
//
// It checks what a release needs, lets every go.mod require the new version of
// the other modules, dates the changelog, runs .ci/run, commits, and tags. With
// -n it only checks and says what it would do. It never pushes: a version that
// has been pushed cannot be taken back, so a person does that, with the command
// that it prints. If anything fails, the checkout is as it was.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

func main() {
	dry := flag.Bool("n", false, "check, and say what would be done")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: go run ./release [-n] vX.Y.Z")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	top, err := checkout(".").git("rev-parse", "--show-toplevel")
	if err == nil {
		r := release{checkout(strings.TrimSpace(top)), flag.Arg(0), time.Now().UTC().Format(time.DateOnly), os.Stdout}
		err = r.make(ctx, *dry)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A release is a version in the making.
type release struct {
	checkout
	version string
	date    string
	out     io.Writer
}

// make does it all, or with dry set only what changes nothing.
func (r release) make(ctx context.Context, dry bool) error {
	ms, err := r.modules()
	if err != nil {
		return err
	}
	branch, err := r.ready(ms)
	if err != nil {
		return err
	}
	var tags []string
	for _, m := range ms {
		if m.released() {
			tags = append(tags, m.tag(r.version))
		}
	}
	if !dry {
		if err := r.commit(ctx, ms); err != nil {
			return errors.Join(err, r.restore())
		}
		for _, tag := range tags {
			if _, err := r.git("tag", "-a", "-m", "See CHANGELOG.md.", tag); err != nil {
				return err
			}
		}
	} else {
		fmt.Fprintf(r.out, "Ready. Without -n this runs .ci/run, commits %s and tags it. Then:\n", r.version)
	}
	// All or nothing: a module must not be there without those that it requires.
	fmt.Fprintf(r.out, "git push --atomic origin %s %s\n", branch, strings.Join(tags, " "))
	return nil
}

// ready reports everything that stands in the way of the release, and on which
// branch it is made.
func (r release) ready(ms []module) (branch string, err error) {
	tags, err := r.git("tag", "--list")
	if err != nil {
		return "", err
	}
	status, err := r.git("status", "--porcelain")
	if err != nil {
		return "", err
	}
	branch, err = r.git("branch", "--show-current")
	if err != nil {
		return "", err
	}
	var wrong []error
	if status != "" {
		wrong = append(wrong, fmt.Errorf("the tree is not clean:\n%s", status))
	}
	if branch == "" {
		wrong = append(wrong, errors.New("HEAD is on no branch"))
	}
	for _, name := range clientPackages {
		_, err := r.versioned(name)
		wrong = append(wrong, err)
	}
	_, err = r.changelog()
	wrong = append(wrong, err, r.follows(strings.Fields(tags)), obtainable(ms))
	return strings.TrimSpace(branch), errors.Join(wrong...)
}

// follows checks that the version may come after the tags that there are. The
// paths of the modules have no /v2, so there is none of that, and v0.0.0 stands
// for no version in many a go.mod.
func (r release) follows(tags []string) error {
	v := r.version
	if semver.Canonical(v) != v || semver.Compare(v, "v0.0.0") <= 0 || semver.Compare(v, "v2.0.0-0") >= 0 {
		return fmt.Errorf("%q is no version between v0.0.0 and v2.0.0", v)
	}
	for _, tag := range tags {
		if old := tag[strings.LastIndex(tag, "/")+1:]; semver.IsValid(old) && semver.Compare(v, old) <= 0 {
			return fmt.Errorf("there is %s already", tag)
		}
	}
	return nil
}

// commit makes the commit that is tagged, if it is green.
func (r release) commit(ctx context.Context, ms []module) error {
	for _, m := range ms {
		if err := r.require(m, r.version, ms); err != nil {
			return err
		}
	}
	for _, name := range clientPackages {
		text, err := r.versioned(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.join(name), text, 0o644); err != nil {
			return err
		}
	}
	text, err := r.changelog()
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.join("CHANGELOG.md"), []byte(text), 0o644); err != nil {
		return err
	}
	ci := exec.CommandContext(ctx, r.join(".ci/run"))
	ci.Dir, ci.Stdout, ci.Stderr = string(r.checkout), r.out, r.out
	ci.Cancel = func() error { return ci.Process.Signal(os.Interrupt) } // it has a tree to leave as it was
	if err := ci.Run(); err != nil {
		return fmt.Errorf(".ci/run: %w", err)
	}
	_, err = r.git("commit", "--all", "--message", "Release "+r.version)
	return err
}

// restore undoes what commit wrote: before it, the tree was clean.
func (r release) restore() error {
	_, err := r.git("reset", "--hard")
	return err
}

// clientPackages are where the clients that are no modules of Go have their version:
// behind their name.
var clientPackages = []string{"clients/typescript/package.json", "clients/typescript/package-lock.json", "clients/python/pyproject.toml"}

var clientVersion = regexp.MustCompile(`(\bname"?(?:: | = )"(?:@qaexchange/)?notification-client",?\n\s*"?version"?(?:: | = )")[^"]*`)

// versioned returns the text of one of clientPackages with the version.
func (r release) versioned(name string) ([]byte, error) {
	text, err := os.ReadFile(r.join(name))
	if err == nil && !clientVersion.Match(text) {
		err = fmt.Errorf("%s: no version of the client is there", name)
	}
	return clientVersion.ReplaceAll(text, []byte("${1}"+strings.TrimPrefix(r.version, "v"))), err
}

// changelog returns the text of CHANGELOG.md in which what is unreleased has
// become the section of the version.
func (r release) changelog() (string, error) {
	b, err := os.ReadFile(r.join("CHANGELOG.md"))
	if err != nil {
		return "", err
	}
	const unreleased = "\n## [Unreleased]\n"
	before, after, found := strings.Cut(string(b), unreleased)
	section, _, _ := strings.Cut(after, "\n## [")
	if !found || !strings.Contains(section, "\n- ") {
		return "", errors.New("CHANGELOG.md tells nothing under ## [Unreleased]")
	}
	return before + unreleased + fmt.Sprintf("\n## [%s] - %s\n", strings.TrimPrefix(r.version, "v"), r.date) + after, nil
}

// git runs git in the checkout and returns what it prints.
func (c checkout) git(args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = string(c)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}
