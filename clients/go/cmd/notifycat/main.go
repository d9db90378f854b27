// Notifycat prints notifications: those that arrive over a WebSocket, until
// Ctrl-C, or those of a file of archives.
//
//	go run ./clients/go/cmd/notifycat 'ws://127.0.0.1:8080/notifications?user=alice'
//	go run ./clients/go/cmd/notifycat -archive FILE
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/qaexchange/notification"
)

const usage = `usage: notifycat [flags] URL
       notifycat [flags] -archive FILE

Prints notifications, one per line: when it happened, how late it is here, its
priority, type and user, and its payload. What happens to the connection is told
on stderr. A connection that is lost is made again, behind what was printed last.

A token stands in a file, or in the environment as NOTIFICATION_TOKEN.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// errUsage is an error of the command line, which was told already.
var errUsage = errors.New("usage")

// options are what the command line says.
type options struct {
	url     string
	archive string
	filter  filter
	json    bool
	quiet   bool
	color   string
	count   int

	header     http.Header
	tokenFile  string
	cursorFile string
}

// run is main with its surroundings as arguments. It returns the exit status: 0
// when all was printed or it was told to end, 1 for an error, 2 for a command line
// that is wrong.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(stderr, "notifycat:", err)
		}
		return 2
	}
	p := newPrinter(stdout, o)
	if o.archive != "" {
		err = o.decode(ctx, p, stdin, stderr)
	} else {
		err = o.watch(ctx, p, newTeller(stderr, o))
	}
	if err = cmp.Or(err, p.flush()); err != nil {
		fmt.Fprintln(stderr, "notifycat:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("notifycat", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		io.WriteString(stderr, usage)
		f.PrintDefaults()
	}
	o.header = http.Header{}
	f.StringVar(&o.archive, "archive", "", "print the archives of this `file` instead; - is stdin")
	f.Func("channel", "only these `channels`, with commas: trade, account, position, risk, system", each(func(name string) error {
		ch, err := notification.ParseChannel(name)
		o.filter.channels = append(o.filter.channels, ch)
		return err
	}))
	f.Func("type", "only these `types`, with commas: margin_call,order_filled", each(func(name string) error {
		_, err := notification.ParseType(name)
		o.filter.types = append(o.filter.types, name)
		return err
	}))
	f.Func("priority", "only these `priorities`, with commas: P0,P1", each(func(name string) error {
		if len(name) != 2 || name[0] != 'P' || name[1] < '0' || name[1] >= '0'+notification.NumPriorities {
			return fmt.Errorf("%q is none of P0, P1, P2, P3", name)
		}
		o.filter.priorities = append(o.filter.priorities, notification.Priority(name[1]-'0'))
		return nil
	}))
	f.StringVar(&o.filter.user, "user", "", "only what is for this `user`; * is what is for everybody")
	f.StringVar(&o.filter.text, "text", "", "only what has this `text` anywhere in its JSON")
	f.BoolVar(&o.json, "json", false, "print the JSON of each notification, as it came")
	f.BoolVar(&o.quiet, "q", false, "do not tell what happens to the connection")
	f.StringVar(&o.color, "color", "auto", "`when` to use colours: auto (on a terminal, unless NO_COLOR is set), always, never")
	f.IntVar(&o.count, "n", 0, "end after so `many`; 0: go on")
	f.Func("header", "send this `header` with each handshake, as \"Cookie: session=…\"; may be given several times", func(text string) error {
		name, value, ok := strings.Cut(text, ":")
		if !ok {
			return errors.New("there is no colon in it")
		}
		o.header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		return nil
	})
	f.StringVar(&o.tokenFile, "token-file", "", "send the token in this `file`, which is read anew for each connection")
	f.StringVar(&o.cursorFile, "cursor-file", "", "begin where this `file` says, and keep there how far it has got")
	if err := f.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = errUsage
		}
		return o, err
	}
	switch {
	case o.color != "auto" && o.color != "always" && o.color != "never":
		return o, fmt.Errorf("-color %q is none of auto, always, never", o.color)
	case o.count < 0:
		return o, fmt.Errorf("-n %d is negative", o.count)
	case o.archive != "" && f.NArg() > 0:
		return o, errors.New("-archive and a URL are one too many")
	case o.archive == "" && f.NArg() != 1:
		f.Usage()
		return o, errUsage
	}
	o.url = f.Arg(0)
	return o, nil
}

// each is a flag that is a list with commas.
func each(take func(string) error) func(string) error {
	return func(text string) error {
		for name := range strings.SplitSeq(text, ",") {
			if err := take(name); err != nil {
				return err
			}
		}
		return nil
	}
}
