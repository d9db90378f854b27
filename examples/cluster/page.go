package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification/examples/exchange/page"
	"github.com/qaexchange/notification/wsgateway"
)

// The sign-in of the page is a cookie that is believed, as what the URL of the other
// clients says is: this is a demonstration. The exchange has one to copy.
const (
	cookieName = "cluster_session"
	signInFor  = 8 * time.Hour
)

var errSignedOut = errors.New("not signed in, or no longer")

// session returns what the cookie of a request says: "u00042.1700000000".
func session(r *http.Request) (user string, expires time.Time, err error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return "", expires, errSignedOut
	}
	user, at, _ := strings.Cut(cookie.Value, ".")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if expires = time.Unix(seconds, 0); err != nil || !time.Now().Before(expires) {
		return "", expires, errSignedOut
	}
	return user, expires, nil
}

// authenticate tells an edge who connects: somebody from the page, or from the
// audience.
func authenticate(r *http.Request) (wsgateway.Identity, error) {
	if user := r.URL.Query().Get("user"); user != "" {
		return wsgateway.Identity{UserID: user}, nil
	}
	user, expires, err := session(r)
	return wsgateway.Identity{UserID: user, Expires: expires}, err
}

// tellSession answers who is signed in, at which edge the question has arrived, and what
// time it is there.
func tellSession(w http.ResponseWriter, r *http.Request, edge string) {
	user, expires, err := session(r)
	if err != nil {
		page.Fail(w, http.StatusUnauthorized, err)
		return
	}
	page.Reply(w, http.StatusOK, map[string]any{"user": user, "expires": expires.UnixMilli(), "now": time.Now().UnixMicro(), "edge": edge, "canKill": true})
}

// A front serves the page. It stands for a load balancer that understands HTTP and
// sends all of a user's requests to one edge, for as long as that is there: the edge
// that answers who is signed in is then the one that the WebSocket is at.
type front struct {
	// immutable
	http   *http.Server
	to     *http.Transport
	addr   string
	served chan error // what Serve returned
	edges  []*process
	addrs  []string // of the edges
	users  int
	stats  *statistics

	mu    sync.Mutex
	of    map[string]int // guarded by mu: the edge of a user
	given int            // guarded by mu: the edge that was given last
}

func newFront(addr string, edges []*process, addrs []string, users int, stats *statistics) (*front, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	f := &front{to: new(http.Transport), addr: l.Addr().String(), served: make(chan error, 1), edges: edges, addrs: addrs, users: users, stats: stats, of: make(map[string]int)}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "edge"})
			r.Out.Host = r.In.Host // a page's Origin is compared with it
		},
		Transport: f,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			page.Fail(w, http.StatusServiceUnavailable, err)
		},
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", page.Handler())
	mux.Handle("GET /ws", proxy)
	mux.Handle("GET /api/session", proxy)
	mux.HandleFunc("POST /api/session", f.signIn)
	mux.HandleFunc("DELETE /api/session", f.signOut)
	mux.HandleFunc("GET /api/streams", f.streams)
	mux.HandleFunc("GET /api/stats", f.stats.tell)
	mux.HandleFunc("POST /api/kill-edge", f.kill)
	f.http = &http.Server{
		Handler:           page.Guard(mux),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
	}
	go func() { f.served <- f.http.Serve(l) }() // ends with close, which waits for it
	return f, nil
}

// checkLoopback refuses an address at which others than this machine could be: who
// gets there may kill edges.
func checkLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("-addr %s is not on the loopback interface: who gets to the page may kill edges", addr)
	}
	return nil
}

func (f *front) close() error {
	_ = f.http.Close()
	f.to.CloseIdleConnections()
	if err := <-f.served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// RoundTrip sends a request to its user's edge, and to the next one if that is gone.
// Only requests without a body come here.
func (f *front) RoundTrip(r *http.Request) (answer *http.Response, err error) {
	user, _, _ := session(r)
	for range f.edges {
		i, ok := f.edgeOf(user)
		if !ok {
			break
		}
		r.URL.Host = f.addrs[i]
		if answer, err = f.to.RoundTrip(r); err == nil || r.Context().Err() != nil { // who asked has gone: the edge is there
			return answer, err
		}
		f.mu.Lock()
		delete(f.of, user)
		f.mu.Unlock()
	}
	return nil, errors.Join(errors.New("no edge is up"), err)
}

// edgeOf returns the edge of a user: the same as before, if that is up, or the next
// one.
func (f *front) edgeOf(user string) (i int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i, ok := f.of[user]; ok && f.edges[i].isReady() {
		return i, true
	}
	for range f.edges {
		f.given = (f.given + 1) % len(f.edges)
		if f.edges[f.given].isReady() {
			f.of[user] = f.given
			return f.given, true
		}
	}
	return 0, false
}

func (f *front) signIn(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		User string `json:"user"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&asked); err != nil {
		page.Fail(w, http.StatusBadRequest, errors.New(`not {"user":"…"}`))
		return
	}
	number, err := strconv.Atoi(strings.TrimPrefix(asked.User, "u"))
	if err != nil || number < 1 || number > f.users || userName(number-1) != asked.User {
		page.Fail(w, http.StatusForbidden, fmt.Errorf("there is no user %.20q", asked.User))
		return
	}
	expires := time.Now().Add(signInFor)
	cookie := &http.Cookie{
		Name: cookieName, Value: asked.User + "." + strconv.FormatInt(expires.Unix(), 10),
		Path: "/", Expires: expires, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	http.SetCookie(w, cookie)
	edge := ""
	if i, ok := f.edgeOf(asked.User); ok {
		edge = edgeName(strconv.Itoa(i))
	}
	signedIn := &http.Request{Header: http.Header{"Cookie": {cookieName + "=" + cookie.Value}}}
	tellSession(w, signedIn, edge)
}

func (f *front) signOut(w http.ResponseWriter, _ *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.WriteHeader(http.StatusNoContent)
}

// streams tells how far the streams of a user have come in the outboxes.
func (f *front) streams(w http.ResponseWriter, r *http.Request) {
	user, _, err := session(r)
	if err != nil {
		page.Fail(w, http.StatusUnauthorized, err)
		return
	}
	numbers, err := f.stats.numbers(user)
	if err != nil {
		page.Fail(w, http.StatusInternalServerError, err)
		return
	}
	page.Reply(w, http.StatusOK, numbers)
}

// kill kills the user's edge, without a warning.
func (f *front) kill(w http.ResponseWriter, r *http.Request) {
	user, _, err := session(r)
	if err != nil {
		page.Fail(w, http.StatusUnauthorized, err)
		return
	}
	f.mu.Lock()
	i, ok := f.of[user]
	f.mu.Unlock()
	if !ok || !f.edges[i].claim() {
		page.Fail(w, http.StatusConflict, errors.New("you are at no edge now"))
		return
	}
	// Even if it is back before the user is: somebody wants to see another one.
	f.edgeOf(user)
	go f.edges[i].kill(false) // ends when it is back; settle waits for that
	page.Reply(w, http.StatusAccepted, map[string]any{"edge": edgeName(strconv.Itoa(i))})
}
