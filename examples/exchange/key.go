package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// openSigner returns a signer with the key in a file, which it makes if there is
// none: tokens of before a restart are good after it. What was revoked is kept in a
// folder beside it, and is known after a restart too.
func openSigner(name string) (*signer, error) {
	s := new(signer)
	if err := s.readKey(name); errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(name); err != nil {
			return nil, err
		}
		if err := s.readKey(name); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	s.revoked = newRevocations(name + ".revoked")
	return s, s.revoked.load()
}

func (s *signer) readKey(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("the key in %s can be used by others than its owner: its mode is %#o, not 0600", name, mode)
	}
	key, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if len(key) != len(s.key) {
		return fmt.Errorf("%s is not a key: it has %d bytes, not %d", name, len(key), len(s.key))
	}
	copy(s.key[:], key)
	return nil
}

// makeKey writes a new key, unless another process has been quicker: the file is
// there whole or not at all, and is never replaced.
func makeKey(name string) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".key") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	var key [sha256.Size]byte
	rand.Read(key[:])
	_, err = f.Write(key[:])
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
