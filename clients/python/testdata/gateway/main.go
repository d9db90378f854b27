// Gateway is what the tests of the Python client connect to: a real Broker, Gateway
// and wsgateway. It does what a line on stdin says, and answers with a line:
//
//	publish USER TYPE FROM TO   notifications with these numbers in their IDs; the answer
//	                            comes when the Gateway has them all
//	ticket USER                 for ?ticket=
//	gap                         something was lost, it says
//	cut                         every connection, as a network does
//
// Whoever has a token is who the token says: USER, or USER:MS for credentials that
// expire after so many milliseconds. It ends when stdin does.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/internal/settle"
	"github.com/qaexchange/notification/web"
	"github.com/qaexchange/notification/wsgateway"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "`address` to listen on")
	history := flag.Int("history", 16384, "`messages` that are kept per user, and that may wait for a client")
	flag.Parse()
	if err := run(*addr, *history); err != nil {
		log.Fatal(err)
	}
}

// A server is what the commands act on.
type server struct {
	broker  *notification.Broker
	gateway *notification.Gateway
	tickets *web.Tickets

	mu    sync.Mutex
	conns []net.Conn // guarded by mu: those that have become WebSockets
}

func run(addr string, history int) error {
	var s server
	var err error
	if s.broker, err = notification.NewBroker(notification.BrokerConfig{}); err != nil {
		return err
	}
	s.gateway, err = notification.NewGateway("g", notification.GatewayConfig{
		HistoryMessages: history, OutboxMessages: history, MaxSessionsPerUser: 1,
	})
	if err != nil {
		return err
	}
	if err := s.broker.RegisterGateway(s.gateway); err != nil {
		return err
	}
	if s.tickets, err = web.NewTickets(web.TicketConfig{}); err != nil {
		return err
	}
	sockets, err := wsgateway.New(s.gateway, wsgateway.Config{
		Authenticate: s.authenticate,
		Refresh: func(_ context.Context, _ wsgateway.Identity, token string) (wsgateway.Identity, error) {
			return believe(token)
		},
		HeartbeatInterval: 500 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	hs := &http.Server{Handler: sockets, ReadHeaderTimeout: time.Minute, ConnState: s.watch}
	var running sync.WaitGroup
	running.Go(func() { _ = s.broker.Run(context.Background()) })
	running.Go(func() { _ = s.gateway.Run(context.Background()) })
	running.Go(func() { _ = hs.Serve(ln) })

	fmt.Println(ln.Addr())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer, err := s.do(strings.Fields(lines.Text()))
		if err != nil {
			return err
		}
		fmt.Println(answer)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- hs.Shutdown(ctx) }() // waited for below
	err = errors.Join(s.broker.Shutdown(ctx), sockets.Shutdown(ctx), <-served, s.gateway.Shutdown(ctx))
	running.Wait()
	return err
}

func (s *server) do(words []string) (answer string, err error) {
	switch {
	case len(words) == 5 && words[0] == "publish":
		from, err := strconv.Atoi(words[3])
		to, err2 := strconv.Atoi(words[4])
		if err := errors.Join(err, err2); err != nil {
			return "", err
		}
		for i := from; i <= to; i++ {
			if err := s.broker.PublishWait(context.Background(), numbered(words[1], words[2], i)); err != nil {
				return "", err
			}
		}
		return "published", settle.Wait(context.Background(), s.broker, s.gateway, numbered(words[1], words[2], to).Priority)
	case len(words) == 2 && words[0] == "ticket":
		return s.tickets.Issue(context.Background(), wsgateway.Identity{UserID: words[1]})
	case len(words) == 1 && words[0] == "gap":
		s.gateway.Gap()
		return "told", nil
	case len(words) == 1 && words[0] == "cut":
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		s.conns = nil
		return "cut", nil
	}
	return "", fmt.Errorf("no command: %q", words)
}

func (s *server) watch(conn net.Conn, state http.ConnState) {
	if state == http.StateHijacked {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns = append(s.conns, conn)
	}
}

func (s *server) authenticate(r *http.Request) (wsgateway.Identity, error) {
	if ticket := web.TicketOf(r); ticket != "" {
		return s.tickets.Redeem(r.Context(), ticket)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return wsgateway.Identity{}, errors.New("no token")
	}
	return believe(token)
}

func believe(token string) (wsgateway.Identity, error) {
	user, ms, limited := strings.Cut(token, ":")
	switch {
	case user == "nobody":
		return wsgateway.Identity{}, errors.New("nobody")
	case user == "banned":
		return wsgateway.Identity{}, web.ErrForbidden
	case !limited:
		return wsgateway.Identity{UserID: user}, nil
	}
	n, err := strconv.Atoi(ms)
	return wsgateway.Identity{UserID: user, Expires: time.Now().Add(time.Duration(n) * time.Millisecond)}, err
}

// numbered is a notification that holds its number, and numbers that only an exact
// reader reads right.
func numbered(user, kind string, i int) *notification.Notification {
	at := 1_700_000_000_000_000_001 + int64(i)
	var payload notification.Payload = notification.TradeExecuted{TradeID: strconv.Itoa(i), Price: 0.1 * float64(i), Timestamp: at}
	if kind == "risk" {
		payload = notification.RiskAlert{UserID: user, Message: `"ü" 1700000000000000001,`, Timestamp: at}
	}
	n := notification.New(user, payload, "test")
	n.ID = cmp.Or(kind, "trade") + "-" + strconv.Itoa(i)
	n.Timestamp = at
	return n
}
