package main

import "syscall"

// apart keeps Ctrl-C from the processes, which the parent ends, and ends them with
// the parent, however that goes.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
