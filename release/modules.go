package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

// unreleased are the folders of the modules that serve this repository alone, they
// and those below them. So does a module below a folder internal or testdata, which
// nobody else may import. Every other module is released: a new one needs no line
// here.
var unreleased = []string{"benchmarks", "clients/conformance", "clients/go/cmd", "examples", "modeltest", "release", "schema"}

// A module is one go.mod of a checkout.
type module struct {
	dir  string // relative to the checkout, with slashes; "." is the root
	file *modfile.File
}

func (m module) path() string  { return m.file.Module.Mod.Path }
func (m module) goMod() string { return path.Join(m.dir, "go.mod") }

func (m module) released() bool {
	folders := strings.Split(m.dir, "/")
	return !slices.Contains(folders, "internal") && !slices.Contains(folders, "testdata") &&
		!slices.ContainsFunc(unreleased, func(dir string) bool {
			return m.dir == dir || strings.HasPrefix(m.dir, dir+"/")
		})
}

// tag is where the go command looks for a version of m: a module in a folder has
// tags of its own, that begin with the folder.
func (m module) tag(version string) string { return path.Join(m.dir, version) }

// modules returns all modules of the checkout c, the root first. What git ignores
// is not part of it. What stands below a testdata is: it is built with what is beside
// it, and would not be if it required the version before.
func (c checkout) modules() ([]module, error) {
	files, err := c.files(".")
	if err != nil {
		return nil, err
	}
	var ms []module
	for _, name := range files {
		if path.Base(name) != "go.mod" {
			continue
		}
		text, err := os.ReadFile(c.join(name))
		if err != nil {
			return nil, err
		}
		file, err := modfile.Parse(name, text, nil)
		if err != nil {
			return nil, err
		}
		if file.Module == nil {
			return nil, fmt.Errorf("%s names no module", name)
		}
		ms = append(ms, module{dir: path.Dir(name), file: file})
	}
	slices.SortFunc(ms, func(a, b module) int { return strings.Compare(a.path(), b.path()) })
	return ms, nil
}

// own returns what m requires of the modules ms.
func (m module) own(ms []module) []*modfile.Require {
	var own []*modfile.Require
	for _, r := range m.file.Require {
		if slices.ContainsFunc(ms, func(o module) bool { return o.path() == r.Mod.Path }) {
			own = append(own, r)
		}
	}
	return own
}

// require writes the go.mod of m anew, with version for what it requires of ms.
func (c checkout) require(m module, version string, ms []module) error {
	for _, r := range m.own(ms) {
		if err := m.file.AddRequire(r.Mod.Path, version); err != nil {
			return err
		}
	}
	text, err := m.file.Format()
	if err != nil {
		return err
	}
	return os.WriteFile(c.join(m.goMod()), text, 0o644)
}

// required returns the version that the modules require of each other: the last
// one released or, before the first, the one to come. It stands in the go.mod
// files and nowhere else; that they agree is part of what is checked here.
func required(ms []module) (string, error) {
	version, where := "", ""
	for _, m := range ms {
		for _, r := range m.own(ms) {
			if version != "" && r.Mod.Version != version {
				return "", fmt.Errorf("%s requires %s, %s requires %s", where, version, m.goMod(), r.Mod)
			}
			version, where = r.Mod.Version, m.goMod()
		}
	}
	if version == "" {
		return "", fmt.Errorf("no module requires another")
	}
	return version, nil
}

// obtainable reports what of the released modules nobody else could get.
func obtainable(ms []module) error {
	for _, m := range ms {
		for _, r := range m.own(ms) {
			i := slices.IndexFunc(ms, func(o module) bool { return o.path() == r.Mod.Path })
			if m.released() && !ms[i].released() {
				return fmt.Errorf("%s requires %s, which is not released", m.goMod(), r.Mod.Path)
			}
		}
	}
	return nil
}

// A checkout is the root folder of a working tree.
type checkout string

func (c checkout) join(name string) string { return filepath.Join(string(c), filepath.FromSlash(name)) }

// files returns the files below dir that git knows or would add, relative to dir.
func (c checkout) files(dir string) ([]string, error) {
	out, err := checkout(c.join(dir)).git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
	if err != nil {
		return nil, err
	}
	var files []string
	for name := range strings.SplitSeq(strings.TrimSuffix(out, "\x00"), "\x00") {
		if _, err := os.Lstat(filepath.Join(c.join(dir), filepath.FromSlash(name))); err == nil { // else it was deleted
			files = append(files, name)
		}
	}
	return files, nil
}
