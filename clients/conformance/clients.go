package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A client is a row of the table below.
type client struct {
	name string
	dir  string // relative to the folder clients

	// command starts the driver, in dir. It may build what it needs, below build,
	// which is empty and lasts as long as the runner. An error that Is errAbsent
	// says what of its toolchain is not here.
	command func(dir, build string) ([]string, error)
	// module is the path in dir of the module that a page imports; with it the
	// client runs in Chromium, and command only has to prepare it.
	module string
	// fails: it is held to fail where the scenarios say so.
	fails bool
}

var errAbsent = errors.New("skipped")

// allClients are those that there are. A folder that is not there is skipped.
var allClients = []client{
	{name: "typescript", dir: "typescript", command: typescript},
	{name: "typescript in Chromium", dir: "typescript", command: typescript, module: "conformance/drive.mjs"},
	{name: "go", dir: "go", command: goDriver},
	{name: "python", dir: "python", command: python},
	{name: "naive", dir: "conformance/naive", command: naive, fails: true},
	{name: "naive in Chromium", dir: "conformance/naive", command: naive, module: "drive.mjs", fails: true},
}

func naive(string, string) ([]string, error) {
	node, err := program("node")
	if err != nil {
		return nil, err
	}
	// Node 20 has WebSocket only if it is asked; later ones take the flag as well.
	return []string{node, "--experimental-websocket", "--no-warnings", "driver.mjs"}, nil
}

func typescript(dir, _ string) ([]string, error) {
	node, err := program("node")
	if err != nil {
		return nil, err
	}
	return []string{node, "--no-warnings", "conformance/driver.mjs"}, nil
}

func goDriver(dir, build string) ([]string, error) {
	goTool, err := program("go")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(build, "driver")
	return []string{path}, prepare(dir, goTool, "build", "-o", path, "./internal/driver")
}

func python(dir, _ string) ([]string, error) {
	for _, name := range []string{"/usr/bin/python3", "python3"} { // the first has Debian's packages
		if exec.Command(name, "-c", "import websockets").Run() == nil {
			return []string{name, "conformance/driver.py"}, nil
		}
	}
	return nil, fmt.Errorf("%w: no python3 here has the package websockets", errAbsent)
}

// program returns the path of the first of the programs that is here.
func program(names ...string) (string, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: there is no %s here", errAbsent, strings.Join(names, ", nor "))
}

func prepare(dir string, command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return nil
}

// A ready client can be started.
type readyClient struct {
	client
	dir     string
	command []string
	browser *browser // nil: it is a program
}

// ready prepares a client. folder is that of all clients.
func (c client) ready(folder, build string) (*readyClient, error) {
	dir := filepath.Join(folder, filepath.FromSlash(c.dir))
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%w: there is no folder %s", errAbsent, c.dir)
	}
	command, err := c.command(dir, build)
	if err != nil {
		return nil, err
	}
	r := &readyClient{client: c, dir: dir, command: command}
	if c.module != "" {
		r.browser, err = startBrowser(dir, c.module)
	}
	return r, err
}

// start starts a driver.
func (c *readyClient) start(hear func(line []byte) error) (driver, error) {
	if c.browser != nil {
		return c.browser.start(hear)
	}
	return startProcess(c.dir, c.command, hear)
}

func (c *readyClient) close() {
	if c.browser != nil {
		c.browser.close()
	}
}
