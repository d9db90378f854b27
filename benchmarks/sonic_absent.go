//go:build !amd64 && !arm64

package main

// sonicLibraries is empty: sonic has no code of its own for this machine, and
// does not even build where an int has 32 bits.
func sonicLibraries() []jsonLibrary { return nil }
