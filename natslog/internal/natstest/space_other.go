//go:build !linux

package natstest

import (
	"syscall"
	"testing"
)

func attributes(bool) *syscall.SysProcAttr { return nil }

func awaitStop(testing.TB, int) {}

// Only Linux has networks that a process can make.

type bridge struct{}

func newBridge(t testing.TB) *bridge {
	t.Skip("skipped: a network for each server is made on Linux only")
	return nil
}

func (b *bridge) address(int) string { panic("there is no bridge") }

type space struct {
	b *bridge
	i int
}

func (s *space) enter(testing.TB, int) {}

// CutOff cuts a server off from the other two, or puts it back.
func (c *Cluster) CutOff(*Server, bool) {}
