package examples

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A checker tells whether commands work. Folders are from the root of the
// repository, with slashes.
type checker struct {
	modules  map[string]string  // by path: the folder
	programs map[string]string  // by folder: what was built of it; nothing with -short
	helps    map[string]help    // by program and subcommand
	known    map[string]goFiles // by folder
}

// newChecker builds the programs that the commands run, all at once.
func newChecker(t *testing.T, all []command) *checker {
	t.Helper()
	c := &checker{map[string]string{}, map[string]string{}, map[string]help{}, map[string]goFiles{}}
	module := regexp.MustCompile(`(?m)^module (\S+)$`)
	walk(".", func(dir string) bool {
		if text, err := os.ReadFile(fromRoot(dir, "go.mod")); err == nil {
			c.modules[module.FindStringSubmatch(string(text))[1]] = dir
		}
		return true
	})
	if testing.Short() {
		t.Log("programs are not run: -short")
		return c
	}
	bin := t.TempDir()
	args := []string{"build", "-ldflags=-s -w", "-o", bin + string(filepath.Separator)}
	for _, cmd := range all {
		for _, dir := range cmd.dirs {
			if pkg := mainPackage(dir, cmd); pkg != "" && c.programs[pkg] == "" {
				c.programs[pkg] = filepath.Join(bin, path.Base(pkg))
				args = append(args, "./"+pkg)
			}
		}
	}
	if out, err := goTool(args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return c
}

// goTool is the go command in the root, and in the workspace, as pages have it.
func goTool(args ...string) ([]byte, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"))
	return cmd.CombinedOutput()
}

func fromRoot(names ...string) string {
	return filepath.Join("..", filepath.FromSlash(path.Join(names...)))
}

// walk calls f with dir and the folders below it, as far as f says that it goes on.
func walk(dir string, f func(dir string) bool) {
	_ = filepath.WalkDir(fromRoot(dir), func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("..", name)
		switch hidden := strings.HasPrefix(d.Name(), ".") && rel != "."; {
		case err != nil || !d.IsDir(): // another test may have taken it away
			return nil
		case hidden || d.Name() == "node_modules" || !f(filepath.ToSlash(rel)):
			return fs.SkipDir
		}
		return nil
	})
}

var (
	errUnknown = errors.New("this test knows no way to check it: teach it one, or say in its tables why it is not run")
	// A path within the repository: it has a slash, and no host in front.
	localPath   = regexp.MustCompile(`^(\.\.?|[\w-]+)/[\w./-]*$`)
	goVariables = []string{"GOTOOLCHAIN", "GOWORK", "GOFLAGS", "GOEXPERIMENT", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GODEBUG", "GOARCH", "GOOS", "CGO_ENABLED"}
)

// in reports why cmd does not work in dir.
func (c *checker) in(dir string, cmd command) error {
	for _, word := range cmd.args {
		file, _, _ := strings.Cut(strings.TrimSuffix(word, "/..."), "#")
		if _, err := os.Stat(fromRoot(dir, file)); err != nil && localPath.MatchString(file) {
			return err
		}
	}
	folders, err := c.program(dir, cmd)
	for _, assignment := range cmd.env {
		name, _, _ := strings.Cut(assignment, "=")
		if err == nil && !slices.Contains(goVariables, name) && !slices.ContainsFunc(folders, func(dir string) bool { return c.goFiles(dir).texts[name] }) {
			err = fmt.Errorf("nothing asks for %s", name)
		}
	}
	return err
}

// program is in without what all programs have in common. It returns the folders of
// the packages that cmd works on.
func (c *checker) program(dir string, cmd command) ([]string, error) {
	args := cmd.args[1:]
	switch cmd.args[0] {
	case "go":
		return c.goCommand(dir, cmd)
	case "npm":
		return nil, npm(dir, args)
	case "mypy":
		for _, a := range args {
			if _, err := os.Stat(fromRoot(dir, a)); err != nil && !strings.HasPrefix(a, "-") {
				return nil, err
			}
		}
		return nil, nil
	case "pip":
		if len(args) == 2 && args[0] == "install" {
			_, err := os.Stat(fromRoot(dir, args[1], "pyproject.toml"))
			return nil, err
		}
	case "apt", "apt-get":
		if len(args) == 2 && args[0] == "install" {
			script, err := os.ReadFile(fromRoot(".ci", "run"))
			if err == nil && !regexp.MustCompile(`(?m)\binstall .* `+regexp.QuoteMeta(args[1])+`$`).Match(script) {
				err = errors.New(".ci/run does not install it")
			}
			return nil, err
		}
	case "grep":
		grep := exec.Command("sh", "-c", cmd.text)
		grep.Dir = fromRoot(dir)
		out, err := grep.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return nil, err
	case ".ci/run":
		if len(args) == 0 {
			_, err := exec.LookPath(fromRoot(dir, ".ci", "run"))
			return nil, err
		}
	}
	return nil, errUnknown
}

func npm(dir string, args []string) error {
	if len(args) == 1 && args[0] == "ci" {
		_, err := os.Stat(fromRoot(dir, "package-lock.json"))
		return err
	}
	var pkg struct{ Scripts map[string]string }
	text, err := os.ReadFile(fromRoot(dir, "package.json"))
	if err == nil {
		err = json.Unmarshal(text, &pkg)
	}
	if err != nil || len(args) == 0 {
		return cmp.Or(err, errUnknown)
	}
	if script := args[len(args)-1]; pkg.Scripts[script] == "" || len(args) > 1 && args[0] != "run" {
		return fmt.Errorf("package.json has no script %s", script)
	}
	return nil
}

func (c *checker) goCommand(dir string, cmd command) ([]string, error) {
	if len(cmd.args) < 2 {
		return nil, errUnknown
	}
	args := cmd.args[2:]
	switch cmd.args[1] {
	case "run":
		pkg := mainPackage(dir, cmd)
		if pkg == "" {
			return nil, errors.New("there is no such program")
		}
		if c.programs[pkg] == "" {
			return []string{pkg}, nil // with -short
		}
		return []string{pkg}, c.takes(c.programs[pkg], args[1:])
	case "test":
		return c.goTest(dir, args)
	case "build", "vet":
		packages, err := interspersed(goFlags(), args)
		if err != nil {
			return nil, err
		}
		return c.packages(dir, packages)
	case "generate":
		folders, err := c.packages(dir, args)
		for _, folder := range folders {
			if out, err := goTool("generate", "-n", "./"+folder); err != nil || len(out) == 0 {
				return nil, fmt.Errorf("nothing is generated there: %v\n%s", err, out)
			}
		}
		return folders, err
	case "get": // the tests of release do
		for _, a := range args {
			if _, ok := c.modules[a]; !ok {
				return nil, fmt.Errorf("there is no module %s", a)
			}
		}
		return nil, nil
	}
	return nil, errUnknown
}

// mainPackage returns the folder of the program that cmd runs in dir, if it is one
// of this repository.
func mainPackage(dir string, cmd command) string {
	if len(cmd.args) < 3 || cmd.args[0] != "go" || cmd.args[1] != "run" || !strings.HasPrefix(cmd.args[2], ".") {
		return ""
	}
	pkg := path.Join(dir, cmd.args[2])
	if p, err := build.ImportDir(fromRoot(pkg), 0); err != nil || p.Name != "main" {
		return ""
	}
	return pkg
}

// takes reports why a program does not take these arguments. It is run with them and
// -h, which stands behind the flags: they are read before it.
func (c *checker) takes(program string, args []string) error {
	var sub []string
	if len(args) > 0 && regexp.MustCompile(`^[a-z]+$`).MatchString(args[0]) {
		sub, args = args[:1], args[1:]
	}
	h, err := c.help(program, sub)
	if err != nil {
		return err
	}
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	for name, isBool := range h.flags {
		if isBool {
			f.Bool(name, false, "")
		} else {
			f.String(name, "", "")
		}
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 && !strings.HasPrefix(h.text, "usage: ") {
		return fmt.Errorf("it takes no arguments: %q", f.Args())
	}
	flags := args[:len(args)-f.NArg()]
	_, err = run(program, slices.Concat(sub, flags, []string{"-h"}, f.Args()))
	return err
}

// flag reports whether a page may name a flag: it is of a program that some page runs,
// of go test, or of the tests beside the page.
func (c *checker) flag(page, name string) bool {
	known := testing.Short() || name == "h" || goFlags().Lookup(name) != nil || c.goFiles(path.Dir(page)).flags[name] != nil
	for _, program := range c.programs {
		h, _ := c.help(program, nil)
		_, has := h.flags[name]
		known = known || has
	}
	return known
}

// A help is what a program says with -h.
type help struct {
	text  string
	flags map[string]bool // whether they are without a value
}

func (c *checker) help(program string, sub []string) (help, error) {
	key := program + " " + strings.Join(sub, " ")
	if h, ok := c.helps[key]; ok {
		return h, nil
	}
	text, err := run(program, slices.Concat(sub, []string{"-h"}))
	h := help{text, map[string]bool{}}
	for _, m := range regexp.MustCompile(`(?m)^  -([\w-]+)(?: ([^\t\n]+))?`).FindAllStringSubmatch(text, -1) {
		h.flags[m[1]] = m[2] == ""
	}
	if err == nil {
		c.helps[key] = h
	}
	return h, err
}

func run(program string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// goTest reports why go test would run nothing with args.
func (c *checker) goTest(dir string, args []string) ([]string, error) {
	f := goFlags()
	for _, a := range args { // a flag of a package is read before the package
		folders, _ := c.packages(dir, []string{a})
		for _, folder := range folders {
			for name, kind := range c.goFiles(folder).flags {
				if f.Lookup(name) == nil {
					f.Var(kind(), name, "")
				}
			}
		}
	}
	patterns, err := interspersed(f, args)
	if err != nil {
		return nil, err
	}
	folders, err := c.packages(dir, patterns)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, folder := range folders {
		names = append(names, c.goFiles(folder).tests...)
	}
	set := map[string]string{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = f.Value.String() })
	for name, kinds := range map[string]string{"run": "Test|Example|Fuzz", "bench": "Benchmark", "fuzz": "Fuzz"} {
		pattern, ok := set[name]
		if !ok || name == "run" && pattern == "^$" && set["bench"]+set["fuzz"] != "" {
			continue
		}
		for part := range strings.SplitSeq(pattern, "|") {
			if strings.Contains(part, "/") {
				return nil, errUnknown
			}
			re, err := regexp.Compile(part)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(names, func(n string) bool { return re.MatchString(n) && regexp.MustCompile("^("+kinds+")").MatchString(n) }) {
				return nil, fmt.Errorf("-%s: nothing there matches %s", name, part)
			}
		}
	}
	return folders, nil
}

// goFlags returns flags of the go command: those of its tests are of the test that
// runs, of the others there are those that pages may want.
func goFlags() *flag.FlagSet {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	flag.VisitAll(func(own *flag.Flag) {
		if name, ok := strings.CutPrefix(own.Name, "test."); ok {
			f.Var(reflect.New(reflect.TypeOf(own.Value).Elem()).Interface().(flag.Value), name, "")
		}
	})
	f.Bool("race", false, "")
	f.String("tags", "", "")
	f.String("o", "", "")
	return f
}

// interspersed parses flags before, between and behind other arguments, which it
// returns.
func interspersed(f *flag.FlagSet, args []string) (others []string, err error) {
	for {
		if err := f.Parse(args); err != nil || f.NArg() == 0 {
			return others, err
		}
		others, args = append(others, f.Arg(0)), f.Args()[1:]
	}
}

// packages returns the folders of the packages that patterns match in dir, which
// must be some for each. No pattern is dir itself.
func (c *checker) packages(dir string, patterns []string) (folders []string, err error) {
	below := func(top string) {
		walk(top, func(dir string) bool {
			base := path.Base(dir)
			if _, err := os.Stat(fromRoot(dir, "go.mod")); dir != top && (err == nil || base == "testdata" || base[0] == '_') {
				return false
			}
			if c.goFiles(dir).name != "" {
				folders = append(folders, dir)
			}
			return true
		})
	}
	if len(patterns) == 0 {
		patterns = []string{"."}
	}
	for _, pattern := range patterns {
		before := len(folders)
		top, all := strings.CutSuffix(pattern, "/...")
		switch local := pattern[0] == '.'; {
		case pattern == "work":
			for _, module := range c.modules {
				below(module)
			}
		case local && all:
			below(path.Join(dir, top))
		case local && c.goFiles(path.Join(dir, pattern)).name != "":
			folders = append(folders, path.Join(dir, pattern))
		}
		if len(folders) == before {
			return nil, fmt.Errorf("there is no package %s", pattern)
		}
	}
	return folders, nil
}

// goFiles are what the Go files of a folder have.
type goFiles struct {
	name  string                       // of the package; empty: there is none
	tests []string                     // and benchmarks, examples, fuzz tests
	flags map[string]func() flag.Value // of its tests
	texts map[string]bool              // its literals
}

func (c *checker) goFiles(dir string) goFiles {
	if s, ok := c.known[dir]; ok {
		return s
	}
	s := goFiles{flags: map[string]func() flag.Value{}, texts: map[string]bool{}}
	p, err := build.ImportDir(fromRoot(dir), 0)
	if err == nil {
		s.name = p.Name
		tests := slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		for _, file := range slices.Concat(p.GoFiles, tests) {
			f, err := parser.ParseFile(token.NewFileSet(), fromRoot(dir, file), nil, parser.SkipObjectResolution)
			if err == nil {
				s.read(f, slices.Contains(tests, file))
			}
		}
	}
	c.known[dir] = s
	return s
}

func (s *goFiles) read(f *ast.File, isTest bool) {
	if isTest {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && regexp.MustCompile(`^(Test|Benchmark|Example|Fuzz)`).MatchString(fn.Name.Name) {
				s.tests = append(s.tests, fn.Name.Name)
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				s.texts[text] = true
			}
		case *ast.CallExpr:
			fn, _ := n.Fun.(*ast.SelectorExpr)
			if !isTest || fn == nil || len(n.Args) != 3 {
				break
			}
			name, _ := n.Args[0].(*ast.BasicLit)
			kind := flagKinds[fn.Sel.Name]
			if pkg, ok := fn.X.(*ast.Ident); ok && pkg.Name == "flag" && name != nil && kind != nil {
				if text, err := strconv.Unquote(name.Value); err == nil {
					s.flags[text] = kind
				}
			}
		}
		return true
	})
}

// flagKinds are the functions of package flag that tests make their flags with.
var flagKinds = map[string]func() flag.Value{
	"Bool":     aFlag(func(f *flag.FlagSet) { f.Bool("x", false, "") }),
	"Int":      aFlag(func(f *flag.FlagSet) { f.Int("x", 0, "") }),
	"Uint64":   aFlag(func(f *flag.FlagSet) { f.Uint64("x", 0, "") }),
	"Duration": aFlag(func(f *flag.FlagSet) { f.Duration("x", 0, "") }),
	"String":   aFlag(func(f *flag.FlagSet) { f.String("x", "", "") }),
}

func aFlag(add func(*flag.FlagSet)) func() flag.Value {
	return func() flag.Value {
		f := flag.NewFlagSet("", flag.ContinueOnError)
		add(f)
		return f.Lookup("x").Value
	}
}
