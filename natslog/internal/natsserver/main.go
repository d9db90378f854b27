// Command natsserver is nats-server for the tests of natslog: with the same
// arguments and configuration files, and it ends when its standard input does, so
// that none outlives its test. It is a module of its own because whoever uses
// natslog needs no server.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	opts, err := server.ConfigureOptions(flag.NewFlagSet("natsserver", flag.ExitOnError), args, nil, nil, nil)
	if err != nil {
		return err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	if err := server.Run(s); err != nil { // returns once it has started
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(2) // as dead as by kill -9
	}()
	s.WaitForShutdown()
	return nil
}
