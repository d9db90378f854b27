// Package examples holds programs to run and to copy from. Each has a folder of
// its own: quickstart is the README's, minimal a server to begin with, exchange a
// small exchange in one process, with a page to watch it; integrations, a module
// of its own, is how the library meets others.
package examples
