// Package examples holds programs to run and to copy from. Each has a folder of
// its own: exchange is a small exchange in one process, with a page to watch it.
package examples
