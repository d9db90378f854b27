package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	xmodule "golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// proxy fills dir with version of the released modules of c, laid out as the go
// command asks a module proxy for them, with what it is made of now.
func (c checkout) proxy(t *testing.T, dir, version string, ms []module) {
	for _, m := range ms {
		if !m.released() {
			continue
		}
		v := xmodule.Version{Path: m.path(), Version: version}
		escaped, err := xmodule.EscapePath(m.path())
		require.NoError(t, err)
		in := filepath.Join(dir, filepath.FromSlash(escaped), "@v")
		require.NoError(t, os.MkdirAll(in, 0o755))

		info, err := json.Marshal(struct {
			Version string
			Time    time.Time
		}{version, time.Now().UTC()})
		require.NoError(t, err)
		goMod, err := os.ReadFile(c.join(m.goMod()))
		require.NoError(t, err)
		var archive bytes.Buffer
		require.NoError(t, zip.Create(&archive, v, c.zipped(t, m)))
		for name, text := range map[string][]byte{
			"list":            []byte(version + "\n"),
			version + ".info": info,
			version + ".mod":  goMod,
			version + ".zip":  archive.Bytes(),
		} {
			require.NoError(t, os.WriteFile(filepath.Join(in, name), text, 0o644))
		}
	}
}

// zipped returns what the zip of m is made of: its files (zip.Create leaves out
// those of modules below it) and, as the go command does it for a module in a
// folder without a licence of its own, the LICENSE of the root.
func (c checkout) zipped(t *testing.T, m module) []zip.File {
	names, err := c.files(m.dir)
	require.NoError(t, err)
	var files []zip.File
	licensed := false
	for _, name := range names {
		files = append(files, diskFile{name, filepath.Join(c.join(m.dir), filepath.FromSlash(name))})
		licensed = licensed || name == "LICENSE"
	}
	if !licensed {
		files = append(files, diskFile{"LICENSE", c.join("LICENSE")})
	}
	return files
}

// A diskFile is a zip.File.
type diskFile struct{ name, from string }

func (f diskFile) Path() string                 { return f.name }
func (f diskFile) Lstat() (os.FileInfo, error)  { return os.Lstat(f.from) }
func (f diskFile) Open() (io.ReadCloser, error) { return os.Open(f.from) }
