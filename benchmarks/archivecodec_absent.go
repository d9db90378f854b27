//go:build noarchive

package main

// archiveCodecs is empty: -compare builds both sides so if the library of the
// revision does not have the archive as it is today.
func archiveCodecs(sample) []codec { return nil }
