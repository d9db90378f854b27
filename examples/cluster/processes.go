package main

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A process is one of those that are killed and started again.
type process struct {
	role string
	args []string

	mu      sync.Mutex
	cmd     *exec.Cmd  // guarded by mu; nil: it does not run
	ready   bool       // guarded by mu: it does, and has said so
	exited  chan error // guarded by mu: what Wait of cmd returned
	killed  int        // guarded by mu
	stopped int        // guarded by mu: by a signal that it could prepare for
	failed  error      // guarded by mu: it ended by itself
}

// processes are all of them.
type processes struct{ list []*process }

// start starts a process and waits until it is ready.
func (ps *processes) start(role string, args ...string) (*process, error) {
	p := &process{role: role, args: args}
	ps.list = append(ps.list, p)
	return p, p.start()
}

// start runs this program again, in a role. A process says when it is ready, by a
// line on its standard output.
func (p *process) start() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, append([]string{p.role}, p.args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = apart()
	out, err := cmd.StdoutPipe() // closed by Wait
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	p.mu.Lock()
	p.cmd, p.exited = cmd, exited
	p.mu.Unlock()
	_, readErr := bufio.NewReader(out).ReadString('\n')
	go func() { // ends with the process
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.cmd == cmd { // nobody has asked for it
			p.failed = fmt.Errorf("%s %s ended by itself: %w", p.role, p.args[0], errors.Join(err, errors.New(cmd.ProcessState.String())))
		}
		exited <- err
	}()
	if readErr != nil {
		return fmt.Errorf("%s %s did not get ready: %w", p.role, p.args[0], readErr)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = p.cmd == cmd
	return nil
}

// end sends a signal and waits for the process to be gone.
func (p *process) end(sig syscall.Signal) error {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.cmd, p.ready = nil, false
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig) // it may have ended
	return <-exited
}

// finish asks it to end, and returns an error if it did so badly.
func (p *process) finish() error {
	if err := p.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s %s: %w", p.role, p.args[0], err)
	}
	return nil
}

// isReady reports whether it runs, and not only since a moment ago.
func (p *process) isReady() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready
}

// claim reports whether it is ready, and makes it the caller's to kill.
func (p *process) claim() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.ready
	p.ready = false
	return was
}

// kill ends it, with or without a warning, and starts it again a moment later.
func (p *process) kill(graceful bool) {
	p.mu.Lock()
	if graceful {
		p.stopped++
	} else {
		p.killed++
	}
	p.mu.Unlock()
	sig := syscall.SIGKILL
	if graceful {
		sig = syscall.SIGTERM
	}
	_ = p.end(sig)
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond) // as a supervisor takes
	if err := p.start(); err != nil {
		p.mu.Lock()
		p.failed = errors.Join(p.failed, err)
		p.mu.Unlock()
	}
}

// killOne picks one that is ready: to kill one that is being started would say nothing
// of it, and look as if it had failed. Edges go one in two times as they do when a new
// version is rolled out.
func (ps *processes) killOne() {
	p := ps.list[rand.IntN(len(ps.list))]
	if p.claim() {
		go p.kill(p.role == "edge" && rand.IntN(2) == 0) // ends when it is back; settle waits for that
	}
}

// settle returns when all are ready.
func (ps *processes) settle() {
	for _, p := range ps.list {
		for !p.isReady() && ps.failure() == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// finish ends all of a role.
func (ps *processes) finish(role string) error {
	var errs []error
	for _, p := range ps.list {
		if p.role == role {
			errs = append(errs, p.finish())
		}
	}
	return errors.Join(errs...)
}

// failure returns why one has ended by itself, or could not be started.
func (ps *processes) failure() error {
	for _, p := range ps.list {
		p.mu.Lock()
		err := p.failed
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// end kills whatever is left.
func (ps *processes) end() {
	for _, p := range ps.list {
		_ = p.end(syscall.SIGKILL)
	}
}

// counts returns how many of a role run, and how often one was killed or stopped.
func (ps *processes) counts(role string) (run, killed, stopped int) {
	for _, p := range ps.list {
		if p.role != role {
			continue
		}
		p.mu.Lock()
		if p.ready {
			run++
		}
		killed, stopped = killed+p.killed, stopped+p.stopped
		p.mu.Unlock()
	}
	return run, killed, stopped
}

// freePorts returns addresses on which nobody listens now. They are below those that
// the system gives to whoever asks for any, so that nobody takes one while its process
// is down.
func freePorts(n int) (addrs []string, err error) {
	for range 1000 {
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(10_000+rand.IntN(20_000))); err != nil {
			continue
		}
		defer l.Close() // not before all are found
		if addrs = append(addrs, l.Addr().String()); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, err
}
