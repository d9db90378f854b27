package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog"
	"github.com/qaexchange/notification/natslog/embedded"
	"github.com/qaexchange/notification/wsgateway"
)

// ready tells the parent that the process can be relied upon.
func ready() { fmt.Println("ready") }

// within gives a step of the way down a time of its own.
func within(d time.Duration, shutdown func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return shutdown(ctx)
}

// runNATS is the log: it syncs before it acknowledges.
func runNATS(ctx context.Context, args []string) error {
	server, err := embedded.Start(embedded.Options{Dir: args[0], Listen: args[1], Logger: slog.Default()})
	if err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return within(settle, server.Shutdown)
}

// openLog opens the log, however long the server takes to be back.
func openLog(ctx context.Context, url string) (*natslog.Log, error) {
	for {
		log, err := natslog.Open(ctx, natslog.Config{URL: url, Logger: slog.Default()})
		if err == nil || ctx.Err() != nil || errors.Is(err, notification.ErrInvalid) || errors.Is(err, natslog.ErrConfig) {
			return log, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// runEdge is an edge: a door for clients, which opens when it is warm.
func runEdge(ctx context.Context, args []string) error {
	id, url, addr := args[0], args[1], args[2]
	log, err := openLog(ctx, url)
	if err != nil {
		return err
	}
	defer log.Close()
	edge, err := log.NewEdge("edge-"+id, natslog.EdgeConfig{Gateway: notification.GatewayConfig{Logger: slog.Default()}})
	if err != nil {
		return err
	}
	sockets, err := wsgateway.New(edge, wsgateway.Config{
		// What the URL says is believed: this is a demonstration.
		Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
			return wsgateway.Identity{UserID: r.URL.Query().Get("user")}, nil
		},
		HeartbeatInterval: 2 * time.Second,
		Logger:            slog.Default(),
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = edge.Run(context.Background()) }) // ends with Shutdown, below
	down := func() error {
		_ = within(3*time.Second, sockets.Shutdown) // who is cut off then goes on at another edge
		return within(settle, edge.Shutdown)
	}
	select {
	case <-edge.Ready():
	case <-ctx.Done():
		return down()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return errors.Join(err, down())
	}
	server := &http.Server{Handler: sockets, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	running.Go(func() { _ = server.Serve(l) }) // ends with Shutdown, below
	ready()
	<-ctx.Done()
	_ = within(5*time.Second, server.Shutdown)
	return down()
}

// runPublisher stands for a matching engine. What it has to say it writes into its
// outbox first, in the transaction that makes the trade, so to speak, and a mark when
// that is in the log. Started again it publishes once more what has no mark: with the
// same IDs, so that nobody gets it twice.
func runPublisher(ctx context.Context, args []string) error {
	name, url := args[0], args[1]
	users, err1 := strconv.Atoi(args[3])
	rate, err2 := strconv.Atoi(args[4])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	box, err := openOutbox(args[2])
	if err != nil {
		return err
	}
	defer box.file.Close()
	log, err := openLog(ctx, url)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := log.NewPublisher(natslog.PublisherConfig{Logger: slog.Default()})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = p.Run(context.Background()) }) // ends with Shutdown, below
	ready()
	for _, e := range box.open {
		box.publish(p, name, e)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began, said := time.Now(), 0; ctx.Err() == nil; {
		for due := int(time.Since(began).Seconds() * float64(rate)); said < due; said++ {
			e := entry{n: box.last + 1, lane: notification.P1, user: userName(rand.IntN(users))}
			switch r := rand.IntN(1000); {
			case r == 0:
				e.lane, e.user = notification.P3, notification.AllUsers
			case r < 20:
				e.lane = notification.P0
			case r < 200:
				e.lane = notification.P2
			}
			if err := box.write(e); err != nil {
				return err
			}
			box.publish(p, name, e)
		}
		<-tick.C
	}
	return within(settle, p.Shutdown) // until all of it is in the log
}

func userName(i int) string { return "user" + strconv.Itoa(i) }

// An entry is one notification in an outbox, the n-th.
type entry struct {
	n    int
	lane notification.Priority
	user string
}

// An outbox is a file of lines: "n lane user" for what is to be published, and "+n"
// when that is in the log.
type outbox struct {
	file *os.File
	open []entry // without a mark
	last int
}

func openOutbox(name string) (*outbox, error) {
	entries, done, err := readOutbox(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b := new(outbox)
	for _, e := range entries {
		b.last = e.n
		if !done[e.n] {
			b.open = append(b.open, e)
		}
	}
	b.file, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return b, err
}

// readOutbox returns all entries, in order, and which of them are in the log.
func readOutbox(name string) (entries []entry, done map[int]bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	done = make(map[int]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if mark, ok := strings.CutPrefix(lines.Text(), "+"); ok {
			n, err := strconv.Atoi(mark)
			if err != nil {
				return nil, nil, err
			}
			done[n] = true
			continue
		}
		var e entry
		if _, err := fmt.Sscan(lines.Text(), &e.n, (*uint8)(&e.lane), &e.user); err != nil {
			return nil, nil, fmt.Errorf("%s: %q: %w", name, lines.Text(), err)
		}
		entries = append(entries, e)
	}
	return entries, done, lines.Err()
}

// write is one call of the system each time: a process that is killed has written
// a line, or not.
func (b *outbox) write(e entry) error {
	b.last = e.n
	_, err := fmt.Fprintf(b.file, "%d %d %s\n", e.n, e.lane, e.user)
	return err
}

// publish waits for room, and no longer.
func (b *outbox) publish(p *natslog.Publisher, name string, e entry) {
	n := notification.New(e.user, payload(e), "publisher-"+name)
	n.ID, n.Priority = name+"-"+strconv.Itoa(e.n), e.lane
	for {
		err := p.Publish(n, func(err error) {
			if err == nil {
				_, err = fmt.Fprintf(b.file, "+%d\n", e.n)
			}
			if err != nil {
				slog.Error("a notification stays in the outbox", "n", e.n, "error", err)
			}
		})
		switch {
		case err == nil:
			return
		case !errors.Is(err, notification.ErrQueueFull):
			slog.Error("a notification stays in the outbox", "n", e.n, "error", err)
			return
		}
		time.Sleep(10 * time.Millisecond) // the server is away: the lane is full
	}
}

func payload(e entry) notification.Payload {
	id := strconv.Itoa(e.n)
	switch {
	case e.user == notification.AllUsers:
		return notification.SystemNotice{Title: "notice " + id, Content: "for everybody", Level: "info"}
	case e.lane == notification.P0:
		return notification.RiskAlert{UserID: e.user, AlertType: "margin", Severity: "high", Message: id, RiskRatio: 0.9}
	case e.lane == notification.P2:
		return notification.AccountUpdate{UserID: e.user, Balance: float64(e.n), Available: float64(e.n) / 2}
	}
	return notification.TradeExecuted{TradeID: id, OrderID: "o" + id, InstrumentID: "SHFE.cu2512", Direction: "BUY", Offset: "OPEN", Price: 50_000, Volume: 1}
}
