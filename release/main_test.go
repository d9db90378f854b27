package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// scratch makes a repository in small: a root, a module that requires it and
// another, some that are not released, a .ci/run that is green, and a remote.
func scratch(t *testing.T) release {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git, no release: ", err)
	}
	for _, env := range []string{"GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"} {
		t.Setenv(env, "nobody")
	}
	t.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	r := release{checkout(t.TempDir()), "v0.2.0", "2026-11-30", new(bytes.Buffer)}
	r.write(t, "go.mod", "module example.org/x\n\ngo 1.26.0\n")
	r.write(t, "a/go.mod", "module example.org/x/a\n\ngo 1.26.0\n\nrequire example.org/x v0.1.0\n\nreplace example.org/x => ../\n")
	r.write(t, "a/b/go.mod", "module example.org/x/a/b\n\ngo 1.26.0\n\nrequire (\n\texample.org/x v0.1.0\n\texample.org/x/a v0.1.0\n\texample.org/y v0.1.0\n)\n")
	r.write(t, "examples/go.mod", "module example.org/x/examples\n\ngo 1.26.0\n\nrequire example.org/x/a v0.1.0\n")
	r.write(t, "examples/more/go.mod", "module example.org/x/examples/more\n\ngo 1.26.0\n\nrequire example.org/x/a v0.1.0\n")
	r.write(t, "a/internal/server/go.mod", "module example.org/x/a/internal/server\n\ngo 1.26.0\n")
	r.write(t, "clients/go/go.mod", "module example.org/x/clients/go\n\ngo 1.26.0\n\nrequire example.org/x v0.1.0\n")
	r.write(t, "clients/conformance/go.mod", "module example.org/x/clients/conformance\n\ngo 1.26.0\n\nrequire example.org/x/clients/go v0.1.0\n")
	r.write(t, "a/testdata/server/go.mod", "module example.org/x/a/testdata/server\n\ngo 1.26.0\n\nrequire example.org/x v0.1.0\n")
	r.write(t, "CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\n### Fixed\n\n- It.\n\n## [0.1.0] - 2026-11-01\n\n- All.\n")
	r.write(t, "clients/typescript/package.json", "{\n  \"name\": \"@qaexchange/notification-client\",\n  \"version\": \"0.1.0\",\n  \"x\": {\n    \"version\": \"0.1.0\"\n  }\n}\n")
	r.write(t, "clients/typescript/package-lock.json", "{\n  \"name\": \"@qaexchange/notification-client\",\n  \"version\": \"0.1.0\",\n  \"\": {\n    \"name\": \"@qaexchange/notification-client\",\n    \"version\": \"0.1.0\"\n  }\n}\n")
	r.write(t, "clients/python/pyproject.toml", "[project]\nname = \"notification-client\"\nversion = \"0.1.0\"\n")
	r.write(t, ".ci/run", "#!/bin/sh\necho green\n")
	r.run(t, "init", "--quiet", "--initial-branch=main")
	r.run(t, "add", ".")
	r.run(t, "commit", "--quiet", "--message=All")
	r.run(t, "tag", "v0.1.0")
	r.run(t, "tag", "a/v0.1.0")
	remote := t.TempDir()
	r.run(t, "init", "--quiet", "--bare", remote)
	r.run(t, "remote", "add", "origin", remote)
	return r
}

func (c checkout) write(t *testing.T, name, text string) {
	require.NoError(t, os.MkdirAll(filepath.Dir(c.join(name)), 0o755))
	require.NoError(t, os.WriteFile(c.join(name), []byte(text), 0o755))
}

func (c checkout) read(t *testing.T, name string) string {
	b, err := os.ReadFile(c.join(name))
	require.NoError(t, err)
	return string(b)
}

func (c checkout) run(t *testing.T, args ...string) string {
	out, err := c.git(args...)
	require.NoError(t, err)
	return out
}

// state is all that a release may change.
func (r release) state(t *testing.T) string {
	return r.run(t, "log", "--format=%H") + r.run(t, "tag") + r.run(t, "status", "--porcelain", "--ignored")
}

func TestRelease(t *testing.T) {
	r := scratch(t)
	require.NoError(t, r.make(context.Background(), false))
	out := r.out.(*bytes.Buffer).String()

	t.Run("the modules require the version of each other, and of others what they did", func(t *testing.T) {
		require.Equal(t, "module example.org/x/a\n\ngo 1.26.0\n\nrequire example.org/x v0.2.0\n\nreplace example.org/x => ../\n", r.read(t, "a/go.mod"))
		require.Equal(t, "module example.org/x/a/b\n\ngo 1.26.0\n\nrequire (\n\texample.org/x v0.2.0\n\texample.org/x/a v0.2.0\n\texample.org/y v0.1.0\n)\n", r.read(t, "a/b/go.mod"))
		require.Contains(t, r.read(t, "examples/go.mod"), "example.org/x/a v0.2.0")
		require.Contains(t, r.read(t, "a/testdata/server/go.mod"), "example.org/x v0.2.0")
	})
	t.Run("the clients that are no modules have the version, and what they use has its own", func(t *testing.T) {
		require.Equal(t, "{\n  \"name\": \"@qaexchange/notification-client\",\n  \"version\": \"0.2.0\",\n  \"x\": {\n    \"version\": \"0.1.0\"\n  }\n}\n", r.read(t, "clients/typescript/package.json"))
		require.Equal(t, 2, strings.Count(r.read(t, "clients/typescript/package-lock.json"), `"version": "0.2.0"`))
		require.Equal(t, "[project]\nname = \"notification-client\"\nversion = \"0.2.0\"\n", r.read(t, "clients/python/pyproject.toml"))
	})
	t.Run("what was unreleased is the section of the version", func(t *testing.T) {
		require.Equal(t, "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-11-30\n\n### Fixed\n\n- It.\n\n## [0.1.0] - 2026-11-01\n\n- All.\n", r.read(t, "CHANGELOG.md"))
	})
	t.Run("that is committed, and each released module has an annotated tag there", func(t *testing.T) {
		require.Empty(t, r.run(t, "status", "--porcelain"))
		require.Equal(t, "Release v0.2.0\n", r.run(t, "log", "-1", "--format=%s"))
		require.Equal(t, "a/b/v0.2.0 tag\na/v0.2.0 tag\nclients/go/v0.2.0 tag\nv0.2.0 tag\n",
			r.run(t, "tag", "--points-at=HEAD", "--format=%(refname:short) %(objecttype)"))
	})
	t.Run("nothing is pushed", func(t *testing.T) {
		require.Empty(t, r.run(t, "ls-remote", "origin"))
	})
	t.Run("the last line is the command that pushes it", func(t *testing.T) {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		push, found := strings.CutPrefix(lines[len(lines)-1], "git ")
		require.True(t, found, out)
		r.run(t, strings.Fields(push)...)
		refs := r.run(t, "ls-remote", "--refs", "origin")
		for _, ref := range []string{"refs/heads/main", "refs/tags/v0.2.0", "refs/tags/a/v0.2.0", "refs/tags/a/b/v0.2.0"} {
			require.Contains(t, refs, "\t"+ref+"\n")
		}
		require.NotContains(t, refs, "examples")
		require.NotContains(t, refs, "internal")
		require.NotContains(t, refs, "conformance")
		require.NotContains(t, refs, "testdata")
	})
	t.Run("a second time there is nothing to release", func(t *testing.T) {
		before := r.state(t)
		require.Error(t, r.make(context.Background(), false))
		require.Equal(t, before, r.state(t))
	})
}

func TestReleaseDry(t *testing.T) {
	r := scratch(t)
	before := r.state(t)
	require.NoError(t, r.make(context.Background(), true))
	require.Equal(t, before, r.state(t))
	require.Contains(t, r.out.(*bytes.Buffer).String(), "git push --atomic origin main v0.2.0 a/v0.2.0 a/b/v0.2.0 clients/go/v0.2.0\n")
}

func TestReleaseRefused(t *testing.T) {
	for _, c := range []struct {
		name, version string
		spoil         func(t *testing.T, r release)
		says          string
	}{
		{"a version of nothing", "v0.0.0", nil, `"v0.0.0" is no version`},
		{"a version without its v", "0.2.0", nil, `"0.2.0" is no version`},
		{"a version that is short", "v0.2", nil, `"v0.2" is no version`},
		{"a version that the modules' paths would have to name", "v2.0.0", nil, `"v2.0.0" is no version`},
		{"a version that exists", "v0.1.0", nil, "there is a/v0.1.0 already"},
		{"a version before one that exists", "v0.0.9", nil, "there is a/v0.1.0 already"},
		{"a file that is not committed", "v0.2.0", func(t *testing.T, r release) {
			r.write(t, "new.go", "package x\n")
		}, "the tree is not clean"},
		{"a commit on no branch", "v0.2.0", func(t *testing.T, r release) {
			r.run(t, "checkout", "--quiet", "--detach")
		}, "HEAD is on no branch"},
		{"a changelog that tells nothing", "v0.2.0", func(t *testing.T, r release) {
			r.write(t, "CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-01\n\n- All.\n")
			r.run(t, "commit", "--quiet", "--all", "--message=Silence")
		}, "CHANGELOG.md tells nothing"},
		{"a client without a version", "v0.2.0", func(t *testing.T, r release) {
			r.write(t, "clients/python/pyproject.toml", "[project]\nname = \"notification\"\nversion = \"0.1.0\"\n")
			r.run(t, "commit", "--quiet", "--all", "--message=Another name")
		}, "clients/python/pyproject.toml: no version"},
		{"a released module that requires one that is not", "v0.2.0", func(t *testing.T, r release) {
			r.write(t, "a/go.mod", "module example.org/x/a\n\ngo 1.26.0\n\nrequire example.org/x/examples v0.1.0\n")
			r.run(t, "commit", "--quiet", "--all", "--message=Inside out")
		}, "a/go.mod requires example.org/x/examples, which is not released"},
		{"a commit that is not green", "v0.2.0", func(t *testing.T, r release) {
			r.write(t, ".ci/run", "#!/bin/sh\nexit 1\n")
			r.run(t, "commit", "--quiet", "--all", "--message=Red")
		}, ".ci/run: exit status 1"},
	} {
		t.Run(c.name+" is refused, and nothing is changed", func(t *testing.T) {
			r := scratch(t)
			r.version = c.version
			if c.spoil != nil {
				c.spoil(t, r)
			}
			before := r.state(t)
			require.ErrorContains(t, r.make(context.Background(), false), c.says)
			require.Equal(t, before, r.state(t))
		})
	}
}

func TestRequired(t *testing.T) {
	t.Run("two versions are an error that names both", func(t *testing.T) {
		r := scratch(t)
		r.write(t, "a/go.mod", "module example.org/x/a\n\ngo 1.26.0\n\nrequire example.org/x v0.1.1\n")
		ms, err := r.modules()
		require.NoError(t, err)
		_, err = required(ms)
		require.ErrorContains(t, err, "a/go.mod requires v0.1.1, a/b/go.mod requires example.org/x@v0.1.0")
	})
}
