// Driver is this client under the conformance runner: options and commands on
// stdin, what happens on stdout, a line of JSON each. The README of
// clients/conformance says which.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
	"github.com/qaexchange/notification/web"
)

type options struct {
	URL             string        `json:"url"`
	Credentials     []*credential `json:"credentials"`
	Channels        []string      `json:"channels"`
	Cursor          string        `json:"cursor"`
	SnapshotMS      float64       `json:"snapshot_ms"`
	SnapshotURL     string        `json:"snapshot_url"`
	HandlerMS       float64       `json:"handler_ms"`
	HandlerThrowsAt int           `json:"handler_throws_at"`
	BackoffBaseMS   float64       `json:"backoff_base_ms"`
	BackoffMaxMS    float64       `json:"backoff_max_ms"`
	WatchdogFactor  float64       `json:"watchdog_factor"`
	StableMS        float64       `json:"stable_ms"`
}

// A credential that is nil is an error of the callback.
type credential struct {
	Ticket string `json:"ticket"`
	Token  string `json:"token"`
}

type command struct {
	Do       string   `json:"do"`
	Channels []string `json:"channels"`
}

// fields is an event.
type fields map[string]any

var errThrown = errors.New("thrown, as asked for")

func main() {
	if err := drive(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "driver:", err)
		os.Exit(1)
	}
}

// A driver tells what its client does.
type driver struct {
	options options

	mu    sync.Mutex
	out   *bufio.Writer // guarded by mu
	asked int           // guarded by mu: calls of the credentials callback

	taken int // notifications that the handler was called with; owned by the client's Run
}

func drive(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	d := &driver{out: bufio.NewWriter(out)}
	if !lines.Scan() {
		return errors.New("no options")
	}
	if err := json.Unmarshal(lines.Bytes(), &d.options); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	cfg, err := d.config()
	if err != nil {
		return err
	}
	client, err := notificationclient.New(cfg)
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- client.Run(context.Background()) }() // ended by obey, or by itself
	// It may wait for a line for ever, after Run has returned; main does not wait
	// for it.
	go d.obey(client, lines)

	last := fields{"event": "stopped", "reason": notificationclient.ReasonClosed, "code": web.CodeNormal, "cursor": client.Cursor()}
	err = <-ran
	last["cursor"] = client.Cursor()
	if stop, ok := errors.AsType[*notificationclient.StopError](err); ok {
		last["reason"], last["code"] = stop.Reason, stop.Code
		fmt.Fprintln(os.Stderr, err)
	}
	d.tell(last)
	return nil
}

func milliseconds(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }

func channelsOf(names []string) ([]notification.Channel, error) {
	if names == nil {
		return nil, nil
	}
	channels := make([]notification.Channel, len(names))
	for i, name := range names {
		if err := channels[i].UnmarshalText([]byte(name)); err != nil {
			return nil, err
		}
	}
	return channels, nil
}

func (d *driver) config() (notificationclient.Config, error) {
	o := d.options
	channels, err := channelsOf(o.Channels)
	return notificationclient.Config{
		URL:             o.URL,
		Credentials:     d.credentials,
		Channels:        channels,
		OnNotifications: d.handle,
		Snapshot:        d.snapshot,
		OnState:         d.state,
		Cursor:          o.Cursor,
		OnCursor:        func(cursor string) { d.tell(fields{"event": "cursor", "cursor": cursor}) },
		BackoffBase:     milliseconds(o.BackoffBaseMS),
		BackoffCap:      milliseconds(o.BackoffMaxMS),
		StableAfter:     milliseconds(o.StableMS),
		WatchdogFactor:  o.WatchdogFactor,
	}, err
}

// tell writes a line.
func (d *driver) tell(event fields) {
	text, err := json.Marshal(event)
	if err != nil {
		panic(err) // strings, numbers, and JSON that was read always can
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out.Write(append(text, '\n'))
	d.out.Flush() // a runner that is gone ends stdin too
}

// obey does what the lines say. Their end is a stop.
func (d *driver) obey(client *notificationclient.Client, lines *bufio.Scanner) {
	for lines.Scan() {
		var c command
		err := json.Unmarshal(lines.Bytes(), &c)
		var channels []notification.Channel
		if err == nil {
			channels, err = channelsOf(c.Channels)
		}
		if err == nil {
			switch c.Do {
			case "stop":
				err = client.Shutdown(context.Background())
			case "subscribe":
				err = change(client.Subscribe, channels)
			case "unsubscribe":
				err = change(client.Unsubscribe, channels)
			default:
				err = fmt.Errorf("unknown command %q", c.Do)
			}
		}
		if err != nil {
			d.tell(fields{"event": "error", "message": err.Error()})
		}
	}
	_ = client.Shutdown(context.Background())
}

// change gives up when nobody answers, so that there can be another command.
func change(do func(context.Context, ...notification.Channel) error, channels []notification.Channel) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return do(ctx, channels...)
}

func (d *driver) credentials(_ context.Context, why notificationclient.Why) (notificationclient.Credentials, error) {
	d.tell(fields{"event": "credentials", "why": why})
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.options.Credentials
	if len(all) == 0 {
		return notificationclient.Credentials{}, nil
	}
	c := all[min(d.asked, len(all)-1)]
	d.asked++
	if c == nil {
		return notificationclient.Credentials{}, errThrown
	}
	return notificationclient.Credentials{Ticket: c.Ticket, Token: c.Token}, nil
}

func (d *driver) handle(ctx context.Context, batch notificationclient.Batch) error {
	for _, n := range batch.Notifications {
		d.taken++
		if d.taken == d.options.HandlerThrowsAt {
			return errThrown
		}
		if err := pause(ctx, d.options.HandlerMS); err != nil {
			return err
		}
		d.tell(fields{
			"event": "notification", "message_id": n.ID, "type": n.TypeName,
			"timestamp": strconv.FormatInt(n.Timestamp, 10), "raw": n.Raw,
		})
	}
	return nil
}

func (d *driver) snapshot(ctx context.Context, reason notificationclient.SnapshotReason) error {
	d.tell(fields{"event": "snapshot", "reason": reason})
	done := fields{"event": "snapshot_done"}
	_ = pause(ctx, d.options.SnapshotMS)
	if url := d.options.SnapshotURL; url != "" {
		body, err := fetch(ctx, url)
		if err != nil && ctx.Err() == nil {
			return err
		}
		done["body"] = body
	}
	d.tell(done)
	return nil
}

func fetch(ctx context.Context, url string) (json.RawMessage, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// pause waits, at the most until ctx ends.
func pause(ctx context.Context, ms float64) error {
	if ms <= 0 {
		return nil
	}
	timer := time.NewTimer(milliseconds(ms))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *driver) state(s notificationclient.State) {
	event := fields{"event": "state", "state": s.Status}
	if s.Reason != "" {
		event["reason"], event["code"] = s.Reason, s.Code
	}
	if s.Status == notificationclient.StatusWaiting {
		event["retry_ms"] = s.Retry.Milliseconds()
	}
	d.tell(event)
}
