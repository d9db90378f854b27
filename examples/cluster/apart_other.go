//go:build !linux

package main

import "syscall"

// apart does nothing here: Ctrl-C reaches the processes, too, and one that is left
// behind by a parent that was killed must be ended by hand.
func apart() *syscall.SysProcAttr { return nil }
