package main

import (
	"encoding/json"
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

	// command starts the driver, in dir. It may build what it needs, in build, which
	// is empty and lasts as long as the runner. An error that Is errAbsent
	// says what of its toolchain is not here.
	command func(dir, build string) ([]string, error)
	// module, in place of a command, is the path in dir of what a page in Chromium
	// imports.
	module string
	// lacks is what its WebSocket has not, of what scenarios need.
	lacks map[string]string
	// only are parts of the names of the scenarios that it is asked, if not all.
	only []string
	// fails: it is held to fail where the scenarios say so.
	fails bool
}

var errAbsent = errors.New("skipped")

// allClients are those that there are. A folder that is not there is skipped.
var allClients = []client{
	{name: "typescript", dir: "typescript", command: typescript},
	{name: "typescript (undici)", dir: "typescript", command: typescriptNative, lacks: blind, only: transport},
	{name: "typescript (Chromium)", dir: "typescript", module: "conformance/drive.mjs", lacks: page},
	{name: "go", dir: "go", command: goDriver},
	{name: "python", dir: "python", command: python},
	{name: "naive", dir: "conformance/naive", command: naive, lacks: page, fails: true},
}

// transport are the scenarios that depend on the WebSocket that a client stands on.
var transport = []string{"hello", "cut", "silence", "pings", "close-", "stop-", "http", "token", "ticket-odd", "4401-at", "no-subprotocol", "big", "fragments", "flood"}

// The WebSocket of browsers tells nothing of a handshake that failed, and sends no
// header but its own. That of Node is made after it, and sends headers.
var (
	blind = map[string]string{"status": "it does not see the HTTP status"}
	page  = map[string]string{"status": blind["status"], "headers": "it can set no header"}
)

func naive(string, string) ([]string, error) {
	node, err := program("node")
	if err != nil {
		return nil, err
	}
	// Node 20 has WebSocket only if it is asked; later ones take the flag as well.
	return []string{node, "--experimental-websocket", "--no-warnings", "driver.mjs"}, nil
}

// typescript connects with the package ws. What there is of the client is built; ws
// is all that is missing, if it is not there from working on the client.
func typescript(dir, build string) ([]string, error) {
	node, err := program("node")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "ws")); err == nil {
		return []string{node, filepath.Join(dir, "conformance/driver.mjs")}, nil
	}
	npm, err := program("npm")
	if err != nil {
		return nil, err
	}
	var wants struct {
		DevDependencies map[string]string `json:"devDependencies"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err == nil {
		err = json.Unmarshal(text, &wants)
	}
	if err != nil {
		return nil, err
	}
	for _, part := range []string{"dist", "conformance"} {
		if err := os.CopyFS(filepath.Join(build, part), os.DirFS(filepath.Join(dir, part))); err != nil {
			return nil, err
		}
	}
	err = prepare(build, npm, "install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline",
		"ws@"+wants.DevDependencies["ws"])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAbsent, err)
	}
	return []string{node, filepath.Join(build, "conformance/driver.mjs")}, nil
}

// typescriptNative connects with the WebSocket of Node itself, which is another one.
func typescriptNative(string, string) ([]string, error) {
	node, err := program("node")
	if err != nil {
		return nil, err
	}
	return []string{node, "--experimental-websocket", "--no-warnings", "conformance/driver.mjs", "native"}, nil
}

func goDriver(dir, build string) ([]string, error) {
	goTool, err := program("go")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(build, "driver")
	return []string{path}, prepare(dir, goTool, "build", "-o", path, "./internal/driver")
}

func python(string, string) ([]string, error) {
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
	cmd.Env = append(os.Environ(), "GOWORK=off") // a client stands by itself
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
	r := &readyClient{client: c, dir: dir}
	var err error
	if c.module != "" {
		r.browser, err = startBrowser(dir, c.module)
		return r, err
	}
	build, err = os.MkdirTemp(build, "") // of its own
	if err != nil {
		return nil, err
	}
	r.command, err = c.command(dir, build)
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
