package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A driver is a client's program while it runs. The README tells what goes in and
// out.
type driver interface {
	// say writes a line to stdin. An error is one of a driver that has ended.
	say(line map[string]any) error
	// hangUp is the end of stdin.
	hangUp() error
	// wait waits until the driver has ended and all it told has been heard. An
	// error is one of how it ended; it holds what went to stderr.
	wait() error
	// kill ends it. wait returns soon.
	kill()
}

// A process is a driver that is a program.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer // of cmd until it has ended

	hearing sync.WaitGroup
	bad     error // owned by the hearing goroutine, then by wait
}

// startProcess starts a program in a folder. hear is called with each line that it
// writes, from one goroutine.
func startProcess(dir string, command []string, hear func(line []byte) error) (driver, error) {
	p := &process{cmd: exec.Command(command[0], command[1:]...)}
	p.cmd.Dir = dir
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it may have children
	p.cmd.WaitDelay = 10 * time.Second
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.hearing.Go(func() { p.bad = hearLines(stdout, hear) }) // ends with the process
	return p, nil
}

func hearLines(stdout io.Reader, hear func(line []byte) error) error {
	r := bufio.NewReader(stdout)
	var bad error
	for {
		line, err := r.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 && bad == nil {
			bad = hear(line)
		}
		if err != nil {
			return bad
		}
	}
}

func (p *process) say(line map[string]any) error {
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	_, err = p.stdin.Write(append(b, '\n'))
	return err
}

func (p *process) hangUp() error { return p.stdin.Close() }

func (p *process) wait() error {
	p.hearing.Wait() // before cmd.Wait, which closes the pipe
	err := errors.Join(p.bad, p.cmd.Wait())
	if text := strings.TrimSpace(p.stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%w; on stderr: %s", err, text)
	}
	return err
}

func (p *process) kill() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
