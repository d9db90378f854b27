package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

// The server of the chaos test is a process of its own, this program once more,
// because it gets killed. It knows nothing that is worth keeping: the publishers
// have the ledger.

const exchangeEnv = "CONFORMANCE_EXCHANGE"

// A posting is one notification as the ledger has it: the n-th of its stream.
type posting struct {
	User string                `json:"user"`
	Lane notification.Priority `json:"lane"`
	N    int                   `json:"n"`
}

func (p posting) stream() string { return p.User + "-" + p.Lane.String() }

func (p posting) notification() *notification.Notification {
	id := fmt.Sprintf("%s-%d", p.stream(), p.N)
	var payload notification.Payload
	switch p.Lane {
	case notification.P0:
		payload = notification.RiskAlert{UserID: p.User, AlertType: "risk_ratio", Message: id, RiskRatio: 0.9, Timestamp: int64(p.N)}
	case notification.P1:
		payload = notification.TradeExecuted{TradeID: id, InstrumentID: "SHFE.cu2501", Price: 50_000, Volume: 1, Timestamp: int64(p.N)}
	case notification.P2:
		payload = notification.AccountUpdate{UserID: p.User, Balance: float64(p.N), Timestamp: int64(p.N)}
	default:
		payload = notification.SystemNotice{Title: id, Content: "通知", Timestamp: int64(p.N)}
	}
	user := p.User
	if user == everybody {
		user = notification.AllUsers
	}
	n := notification.New(user, payload, "chaos")
	n.ID = id
	return n
}

// everybody is the user of what is published to all.
const everybody = "all"

// exchange is that process. It serves until its stdin ends, or it is killed.
func exchange() int {
	if err := serveExchange(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func serveExchange() error {
	broker, err := notification.NewBroker(notification.BrokerConfig{DedupSize: 100_000})
	if err != nil {
		return err
	}
	// Small, so that some come back too late to resume.
	gateway, err := notification.NewGateway("gateway", notification.GatewayConfig{
		BatchSize: 50, OutboxMessages: 128, HistoryMessages: 256, HistoryTTL: 2 * time.Second, SweepInterval: 200 * time.Millisecond})
	if err != nil {
		return err
	}
	if err := broker.RegisterGateway(gateway); err != nil {
		return err
	}
	mux := http.NewServeMux()
	cfg := wsgateway.Config{
		Authenticate:      authenticate,
		OriginPatterns:    []string{"*"},
		HeartbeatInterval: 500 * time.Millisecond,
	}
	plain, err := wsgateway.New(gateway, cfg)
	if err != nil {
		return err
	}
	cfg.Refresh = func(_ context.Context, id wsgateway.Identity, token string) (wsgateway.Identity, error) {
		return identity(token)
	}
	renewed, err := wsgateway.New(gateway, cfg)
	if err != nil {
		return err
	}
	mux.Handle("GET /plain", plain)
	mux.Handle("GET /renewed", renewed)
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		var postings []posting
		if err := json.NewDecoder(r.Body).Decode(&postings); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, p := range postings {
			// One that was published before is recognized.
			if err := broker.PublishWait(r.Context(), p.notification()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
	})
	mux.HandleFunc("POST /gap", func(http.ResponseWriter, *http.Request) { gateway.Gap() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	// All of these end with the process.
	go func() { _ = broker.Run(context.Background()) }()
	go func() { _ = gateway.Run(context.Background()) }()
	go func() { _ = http.Serve(ln, mux) }()
	return nil
}

// authenticate takes a ticket or a token, which is the user's name. It is good for
// any number of connects: what must be new each time is told by the scenarios.
func authenticate(r *http.Request) (wsgateway.Identity, error) {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return identity(token)
	}
	return identity(r.URL.Query().Get("ticket"))
}

// identity holds for a few seconds, or for as much more than the minute in which a
// client is told of the end.
func identity(user string) (wsgateway.Identity, error) {
	if user == "" {
		return wsgateway.Identity{}, errors.New("no credentials")
	}
	lasts := 2*time.Second + rand.N(4*time.Second)
	if rand.N(2) == 0 {
		lasts += time.Minute
	}
	return wsgateway.Identity{UserID: user, Expires: time.Now().Add(lasts)}, nil
}

// An exchangeProcess is one life of that process.
type exchangeProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer // with it the process ends, even if we are killed
	addr  string
}

func startExchange() (*exchangeProcess, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), exchangeEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	x := &exchangeProcess{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if x.addr = strings.TrimSpace(line); err != nil {
		x.kill()
		return nil, fmt.Errorf("the exchange does not say where it is: %w", err)
	}
	return x, nil
}

func (x *exchangeProcess) kill() {
	_ = x.cmd.Process.Kill()
	_ = x.cmd.Wait() // it was killed, and says so
}

// publish publishes postings. After an error nobody knows which of them were taken.
func (x *exchangeProcess) publish(ctx context.Context, postings []posting) error {
	body, err := json.Marshal(postings)
	if err != nil {
		return err
	}
	return x.post(ctx, "/publish", body)
}

func (x *exchangeProcess) post(ctx context.Context, path string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // one that is stopped does not answer
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+x.addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s %w", path, resp.Status, text, err)
	}
	return nil
}
