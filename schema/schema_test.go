package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := generate()
	require.NoError(t, err)
	for _, f := range files {
		t.Run(f.name, func(t *testing.T) {
			got, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f.name)))
			require.NoError(t, err)
			require.Equal(t, string(f.text), string(got), "run go generate ./schema")
		})
	}
}
