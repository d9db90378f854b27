package main

import (
	"debug/buildinfo"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
	xmodule "golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// This checkout. The go command keeps the result of a test until a file of the
// test's own module changes; after a change elsewhere, run these with -count=1.
const here = checkout("..")

func modulesHere(t *testing.T) []module {
	if _, err := here.git("rev-parse"); err != nil {
		t.Skip("only git knows what belongs to the modules: ", err)
	}
	ms, err := here.modules()
	require.NoError(t, err)
	return ms
}

func TestModules(t *testing.T) {
	ms := modulesHere(t)
	t.Run("those that are released require none that is not", func(t *testing.T) {
		require.NoError(t, obtainable(ms))
	})
	t.Run("those that are released have no command, which nobody could install", func(t *testing.T) {
		for _, m := range ms {
			if m.released() {
				require.Empty(t, here.commands(t, m, ms), m.path())
			}
		}
	})
	t.Run("all require one version of each other, which begins as the others do", func(t *testing.T) {
		version, err := required(ms)
		require.NoError(t, err)
		require.NoError(t, release{version: version}.follows(nil))
	})
	t.Run("each that another requires is replaced by its folder, for all work in this repository", func(t *testing.T) {
		for _, m := range ms {
			for _, r := range m.own(ms) {
				i := slices.IndexFunc(m.file.Replace, func(p *modfile.Replace) bool { return p.Old.Path == r.Mod.Path && p.Old.Version == "" })
				require.GreaterOrEqual(t, i, 0, "%s replaces no %s", m.goMod(), r.Mod.Path)
				folder := path.Join(m.dir, m.file.Replace[i].New.Path)
				require.True(t, slices.ContainsFunc(ms, func(o module) bool { return o.dir == folder && o.path() == r.Mod.Path }),
					"%s replaces %s by %s", m.goMod(), r.Mod.Path, folder)
			}
		}
	})
}

// commands returns the folders of m with a package main that is not internal.
func (c checkout) commands(t *testing.T, m module, ms []module) (folders []string) {
	names, err := c.files(m.dir)
	require.NoError(t, err)
	for _, name := range names {
		folder := path.Dir(name)
		inside := slices.ContainsFunc(ms, func(o module) bool { // of a module below m
			return len(o.dir) > len(m.dir) && strings.HasPrefix(path.Join(m.dir, folder)+"/", o.dir+"/")
		})
		parts := strings.Split(folder, "/")
		if inside || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || slices.Contains(folders, folder) ||
			slices.Contains(parts, "testdata") || slices.Contains(parts, "internal") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), c.join(path.Join(m.dir, name)), nil, parser.PackageClauseOnly)
		require.NoError(t, err)
		if file.Name.Name == "main" {
			folders = append(folders, folder)
		}
	}
	return folders
}

// TestDocumentation holds the lines "go get …" of all pages against the modules.
func TestDocumentation(t *testing.T) {
	ms := modulesHere(t)
	names, err := here.files(".")
	require.NoError(t, err)
	told := map[string][]string{} // by page, what it tells to get
	for _, name := range names {
		if path.Ext(name) != ".md" {
			continue
		}
		page, err := os.ReadFile(here.join(name))
		require.NoError(t, err)
		for _, line := range regexp.MustCompile(`(?m)^\s*go get ([^#\n]+)`).FindAllSubmatch(page, -1) {
			told[name] = append(told[name], strings.Fields(string(line[1]))...)
		}
	}
	t.Run("what a page tells to get is a module that is released", func(t *testing.T) {
		for page, args := range told {
			for _, arg := range args {
				name, _, _ := strings.Cut(arg, "@")
				require.True(t, slices.ContainsFunc(ms, func(m module) bool { return m.released() && m.path() == name }),
					"%s: go get %s", page, arg)
			}
		}
	})
	t.Run("the README of the root leads to that of each released module", func(t *testing.T) {
		page, err := os.ReadFile(here.join("README.md"))
		require.NoError(t, err)
		for _, m := range ms {
			if m.released() && m.dir != "." {
				require.Regexp(t, `(?m)^\| .*\(`+m.dir+`/README\.md\).*\| yes \|$`, string(page), m.dir)
			}
		}
	})
	t.Run("the README of each released module tells how to get it", func(t *testing.T) {
		for _, m := range ms {
			if m.released() {
				require.Contains(t, told[path.Join(m.dir, "README.md")], m.path())
			}
		}
	})
}

// TestStranger depends on each released module as somebody else would: with the
// go command and an empty module, in a folder that knows nothing of this
// checkout, through a module proxy.
func TestStranger(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles everything once more: not with -short")
	}
	ms := modulesHere(t)
	version, err := required(ms)
	require.NoError(t, err)
	proxy := t.TempDir()
	here.proxy(t, proxy, version, ms)
	env := environment(t, proxy)

	for _, m := range ms {
		if !m.released() {
			continue
		}
		t.Run("the zip of "+m.path()+" is what the go command takes, with a licence", func(t *testing.T) {
			requireZip(t, proxy, xmodule.Version{Path: m.path(), Version: version})
		})
		t.Run("a program gets "+m.path()+", is built with it and runs", func(t *testing.T) {
			program, err := os.ReadFile(filepath.Join("testdata/stranger", m.dir, "main.go"))
			require.NoError(t, err, "each released module wants a program here that uses it and fails if it does not work")
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), program, 0o644))
			run := func(name string, args ...string) {
				cmd := exec.CommandContext(t.Context(), name, args...)
				cmd.Dir, cmd.Env = dir, append(env, "PWD="+dir)
				out, err := cmd.CombinedOutput()
				t.Logf("%s %s\n%s", name, strings.Join(args, " "), out)
				require.NoError(t, err)
			}
			run("go", "mod", "init", "stranger.example/program")
			run("go", append([]string{"get"}, imported(t, filepath.Join(dir, "main.go"), version, ms)...)...)
			run("go", "vet", ".")
			run("go", "build", "-o", "program", ".")
			run("./program")
			requireBuiltWith(t, filepath.Join(dir, "program"), m, version, ms)
		})
	}
}

// imported returns the modules of ms that a program imports, as go get takes them.
func imported(t *testing.T, program, version string, ms []module) (queries []string) {
	file, err := parser.ParseFile(token.NewFileSet(), program, nil, parser.ImportsOnly)
	require.NoError(t, err)
	for _, i := range file.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		provider := "" // the longest, for modules are in folders of others
		for _, m := range ms {
			if strings.HasPrefix(name+"/", m.path()+"/") && len(m.path()) > len(provider) {
				provider = m.path()
			}
		}
		if query := provider + "@" + version; provider != "" && !slices.Contains(queries, query) {
			queries = append(queries, query)
		}
	}
	return queries
}

// environment is that of somebody who has the go command and the proxy, and
// nothing of ours: a module cache of his own, because a version in the usual one
// would stay what it was at the first run, and no workspace. Modules of others
// come from the usual cache if they are there, so that nothing is asked of the
// network that has been asked before; for the same reason the sum database is off.
func environment(t *testing.T, proxy string) []string {
	ask := func(name string) string {
		out, err := exec.Command("go", "env", name).Output()
		require.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	file := func(dir string) string { return "file://" + filepath.ToSlash(dir) }
	return append(os.Environ(),
		"GOWORK=off",
		// It can be deleted, and what was compiled with another is found again.
		"GOFLAGS=-modcacherw -trimpath",
		"GOMODCACHE="+t.TempDir(),
		"GOPROXY="+file(proxy)+","+file(filepath.Join(ask("GOMODCACHE"), "cache", "download"))+","+ask("GOPROXY"),
		"GOSUMDB=off",
		"GOENV=off", "GOPRIVATE=", "GONOPROXY=", // so that nothing of ours goes past the proxy
	)
}

// requireZip reads the zip as the go command does when it has downloaded it.
func requireZip(t *testing.T, proxy string, v xmodule.Version) {
	escaped, err := xmodule.EscapePath(v.Path)
	require.NoError(t, err)
	name := filepath.Join(proxy, filepath.FromSlash(escaped), "@v", v.Version+".zip")
	checked, err := zip.CheckZip(v, name)
	require.NoError(t, err)
	require.NoError(t, checked.Err())
	require.Empty(t, checked.Omitted)
	require.NoError(t, zip.Unzip(t.TempDir(), v, name))
	prefix := v.Path + "@" + v.Version + "/"
	for _, file := range []string{"LICENSE", "README.md", "go.mod"} {
		require.Contains(t, checked.Valid, prefix+file)
	}
}

// requireBuiltWith reads in the program itself of what it was built: m is there,
// and what it has of this repository are versions with sums, and no folders.
func requireBuiltWith(t *testing.T, program string, m module, version string, ms []module) {
	info, err := buildinfo.ReadFile(program)
	require.NoError(t, err)
	var with []string
	for _, dep := range info.Deps {
		if slices.ContainsFunc(ms, func(o module) bool { return o.path() == dep.Path }) {
			require.Nil(t, dep.Replace, dep.Path)
			require.NotEmpty(t, dep.Sum, dep.Path)
			require.Equal(t, version, dep.Version, dep.Path)
			with = append(with, dep.Path)
		}
	}
	require.Contains(t, with, m.path())
}
