// Server is what the tests of the TypeScript client connect to: a real Broker,
// Gateway and wsgateway, with a way to publish, to cut and to sign in for whoever
// asks. It ends when its stdin does, so that it never outlives a test.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	files := flag.String("files", "", "`folder` to serve below /files/")
	flag.Parse()
	if err := run(*addr, *files); err != nil {
		log.Fatal(err)
	}
}

func run(addr, files string) error {
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		return err
	}
	gateway, err := notification.NewGateway("g", notification.GatewayConfig{HistoryMessages: 16_384, OutboxMessages: 16_384, MaxSessionsPerUser: 2})
	if err != nil {
		return err
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		return err
	}
	tickets, err := web.NewTickets(web.TicketConfig{})
	if err != nil {
		return err
	}
	sockets, err := wsgateway.New(gateway, wsgateway.Config{
		Authenticate: func(r *http.Request) (wsgateway.Identity, error) {
			if ticket := web.TicketOf(r); ticket != "" {
				return tickets.Redeem(r.Context(), ticket)
			}
			if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
				return verify(token)
			}
			cookie, err := r.Cookie("token")
			if err != nil {
				return wsgateway.Identity{}, err
			}
			return verify(cookie.Value)
		},
		Refresh: func(_ context.Context, _ wsgateway.Identity, token string) (wsgateway.Identity, error) {
			return verify(token)
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
	var cables cables

	mux := http.NewServeMux()
	mux.Handle("GET /notifications", sockets)
	mux.Handle("GET /files/", http.StripPrefix("/files/", http.FileServer(http.Dir(files))))
	mux.HandleFunc("POST /tickets", func(w http.ResponseWriter, r *http.Request) {
		who, err := verify(r.FormValue("token"))
		if err == nil {
			var ticket string
			ticket, err = tickets.Issue(r.Context(), who)
			_, _ = io.WriteString(w, ticket)
		}
		refuse(w, err)
	})
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.Atoi(r.FormValue("from"))
		to, _ := strconv.Atoi(r.FormValue("to"))
		for k := from; k <= to; k++ {
			if err := broker.PublishWait(r.Context(), numbered(r.FormValue("user"), r.FormValue("channel"), k)); err != nil {
				refuse(w, err)
				return
			}
		}
		refuse(w, settle.Wait(r.Context(), broker, gateway, numbered("", r.FormValue("channel"), to).Priority))
	})
	mux.HandleFunc("POST /cut", func(http.ResponseWriter, *http.Request) { cables.cut() })
	mux.HandleFunc("GET /sessions", func(w http.ResponseWriter, r *http.Request) {
		for s := range gateway.UserSessions(r.FormValue("user")) {
			fmt.Fprintln(w, s.ID(), s.Subscriptions())
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ConnState: cables.add}

	var running sync.WaitGroup
	running.Go(func() { _ = broker.Run(context.Background()) })
	running.Go(func() { _ = gateway.Run(context.Background()) })
	running.Go(func() { _ = server.Serve(ln) })

	fmt.Println(ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- server.Shutdown(ctx) }() // waited for below
	err = errors.Join(broker.Shutdown(ctx), sockets.Shutdown(ctx), <-served, gateway.Shutdown(ctx))
	running.Wait()
	return err
}

// verify takes a token for what it says: a user, and after a colon for how many
// milliseconds it holds from now.
func verify(token string) (wsgateway.Identity, error) {
	user, ms, limited := strings.Cut(token, ":")
	id := wsgateway.Identity{UserID: user}
	if limited {
		n, err := strconv.Atoi(ms)
		if err != nil {
			return id, errors.New("no token")
		}
		id.Expires = time.Now().Add(time.Duration(n) * time.Millisecond)
	}
	if user == "nobody" {
		return id, web.ErrForbidden
	}
	return id, nil
}

// numbered is a notification that says its number wherever it can.
func numbered(user, channel string, k int) *notification.Notification {
	at := 1_700_000_000_000_000_001 + 1_000_003*int64(k)
	var payload notification.Payload = notification.TradeExecuted{TradeID: strconv.Itoa(k), Price: float64(k) + 0.5, Timestamp: at + 1}
	if channel == "risk" {
		payload = notification.MarginCall{Message: strconv.Itoa(k), Deadline: at + 2, Timestamp: at + 1}
	}
	n := notification.New(user, payload, `a "test": 1700000000000000123,`)
	n.ID = cmp.Or(channel, "trade") + "-" + strconv.Itoa(k)
	n.Timestamp = at
	return n
}

func refuse(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
	}
}

// cables are the connections that have become WebSockets.
type cables struct {
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func (c *cables) add(conn net.Conn, state http.ConnState) {
	if state == http.StateHijacked {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.conns = append(c.conns, conn)
	}
}

// cut closes them below everything that could say so.
func (c *cables) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}
