package notificationclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// batchProtocol is the subprotocol with a welcome, cursors and several
// notifications in a frame.
const batchProtocol = "notification.batch.v1"

const (
	// writeTimeout bounds a command. A server reads, so it takes an instant.
	writeTimeout = 10 * time.Second

	// defaultHeartbeat is assumed of a welcome that does not tell.
	defaultHeartbeat = 20 * time.Second

	// maxBuffer is how much of the memory for a frame is kept for the next one.
	maxBuffer = 128 << 10
)

// A conn is one connection. Its goroutine reads, answers pings (the library does
// it while it reads), notices silence, passes answers to whoever waits for them,
// and holds everything else for Run, in the order in which it came.
//
// The end is held too, behind what came before it: what has arrived is dealt with
// before the next connection says a cursor.
type conn struct {
	// immutable after newConn
	ws       *websocket.Conn
	said     string // the cursor that the handshake said
	open     context.Context
	cut      context.CancelFunc // ends open, and with it the reader and the connection
	wake     chan struct{}      // capacity 1, rung when next has something to return
	room     chan struct{}      // capacity 1, rung when a reader that waits for room should look again
	expiring chan time.Duration // capacity 1: the credentials expire in so long
	done     chan struct{}      // closed by the reader, at its end

	// owned by the reader
	watchdog *time.Timer
	silence  time.Duration // how long nothing may arrive
	factor   float64       // that over the heartbeat interval
	buffer   bytes.Buffer

	mu      sync.Mutex              // a leaf
	held    []frame                 // guarded by mu
	count   int                     // guarded by mu: notifications in held
	end     *ending                 // guarded by mu: the first is the one that counts
	lost    bool                    // guarded by mu: it is an end that nobody here has chosen
	loading context.CancelCauseFunc // guarded by mu: ends the snapshot that is being loaded; nil: none is
	ignore  bool                    // guarded by mu: nobody wants what arrives
	silent  bool                    // guarded by mu: the watchdog has cut it
	serial  uint64                  // guarded by mu: of the last command
	answers map[uint64]chan frame   // guarded by mu: who waits, by the command's id
	refresh bool                    // guarded by mu: the server takes authenticate
}

// dial connects. The error of a library may quote the URL, and so a ticket: it is
// not passed on as it is.
func (c *Client) dial(ctx context.Context, creds Credentials, cursor string, channels []notification.Channel) (*websocket.Conn, *ending) {
	target := *c.url
	query := target.Query()
	for _, own := range []string{"cursor", "channels", "ticket"} {
		query.Del(own)
	}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	if channels != nil {
		names := make([]string, len(channels))
		for i, ch := range channels {
			names[i] = ch.String()
		}
		query.Set("channels", strings.Join(names, ","))
	}
	header := c.cfg.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if creds.Ticket != "" {
		query.Set("ticket", creds.Ticket)
	}
	if creds.Token != "" {
		header.Set("Authorization", "Bearer "+creds.Token)
	}
	target.RawQuery = query.Encode()

	ws, response, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient: c.cfg.HTTPClient, HTTPHeader: header, Subprotocols: []string{batchProtocol},
	})
	switch {
	case err == nil && ws.Subprotocol() != batchProtocol:
		_ = ws.CloseNow()
		return nil, &ending{reason: ReasonProtocol, err: errors.New("the server does not speak " + batchProtocol)}
	case err == nil:
		ws.SetReadLimit(-1) // a batch is as large as its notifications
		return ws, nil
	case response != nil && response.StatusCode != http.StatusSwitchingProtocols:
		return nil, endingOfStatus(response.StatusCode)
	case response != nil:
		return nil, &ending{reason: ReasonProtocol, err: err}
	case ctx.Err() != nil:
		return nil, &ending{reason: ReasonNetwork, code: web.CodeAbnormal, err: errors.New("the handshake took too long")}
	}
	var quoting *url.Error
	if errors.As(err, &quoting) {
		err = quoting.Err
	}
	return nil, &ending{reason: ReasonNetwork, code: web.CodeAbnormal, err: err}
}

// endingOfStatus translates what a program sees where a page is told a close code.
func endingOfStatus(status int) *ending {
	e := &ending{reason: ReasonHandshake, err: fmt.Errorf("HTTP status %d", status)}
	switch status {
	case http.StatusUnauthorized:
		e.code = web.CodeCredentials
	case http.StatusForbidden:
		e.code = web.CodeForbidden
	case http.StatusBadRequest:
		e.code = web.CodeBadRequest
	case http.StatusMisdirectedRequest: // somebody else serves this user
	default:
		e.final = 400 <= status && status <= 499
	}
	return e
}

// newConn makes a conn and starts its reader, which ends when the connection does,
// at the latest when ctx ends or cut is called; who waits for it waits for done.
func newConn(ctx context.Context, ws *websocket.Conn, cfg *Config, said string) *conn {
	n := &conn{
		ws: ws, said: said, factor: cfg.WatchdogFactor, silence: cfg.ConnectTimeout,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), expiring: make(chan time.Duration, 1),
		done: make(chan struct{}), answers: map[uint64]chan frame{},
	}
	n.open, n.cut = context.WithCancel(ctx)
	n.watchdog = time.AfterFunc(n.silence, func() {
		n.mu.Lock()
		n.silent = true
		n.mu.Unlock()
		n.cut()
	})
	go n.run()
	return n
}

// run is the reader.
func (n *conn) run() {
	defer close(n.done)
	defer func() { _ = n.ws.CloseNow() }()
	defer n.watchdog.Stop()
	defer n.cut()
	for {
		f, end := n.receive()
		if end != nil {
			n.finish(end)
			return
		}
		switch f.Action {
		case actionOK, actionError:
			n.answer(f)
		case actionExpiring:
			select {
			case n.expiring <- time.Duration(f.InMS * float64(time.Millisecond)):
			default: // it was said already
			}
		case actionWelcome:
			n.welcomed(f)
			n.hold(f)
		case "", actionReset, actionLive, actionHeartbeat:
			n.hold(f)
		}
	}
}

// receive waits for a frame. The watchdog runs only meanwhile: a reader that waits
// for room hears nothing, whatever the server does.
func (n *conn) receive() (frame, *ending) {
	n.watchdog.Reset(n.silence)
	kind, text, err := n.message()
	n.watchdog.Stop()
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.silent {
			return frame{}, &ending{reason: ReasonWatchdog, err: fmt.Errorf("nothing was heard for %s", n.silence)}
		}
		return frame{}, endingOfRead(err)
	}
	if kind != websocket.MessageText {
		return frame{}, &ending{reason: ReasonProtocol, err: errors.New("a frame that is no text")}
	}
	f, err := parse(text)
	if err != nil {
		return frame{}, &ending{reason: ReasonProtocol, err: err}
	}
	return f, nil
}

// message reads one message. The bytes are good until the next call.
func (n *conn) message() (websocket.MessageType, []byte, error) {
	if n.buffer.Cap() > maxBuffer {
		n.buffer = bytes.Buffer{}
	}
	n.buffer.Reset()
	kind, r, err := n.ws.Reader(n.open)
	if err == nil {
		_, err = n.buffer.ReadFrom(r)
	}
	return kind, n.buffer.Bytes(), err
}

// endingOfRead tells a close frame from a loss.
func endingOfRead(err error) *ending {
	var closed websocket.CloseError
	if !errors.As(err, &closed) {
		return &ending{reason: ReasonNetwork, code: web.CodeAbnormal, err: err}
	}
	e := &ending{reason: ReasonServer, code: web.Code(closed.Code)}
	if closed.Reason != "" {
		e.err = errors.New(closed.Reason)
	}
	return e
}

func (n *conn) welcomed(f frame) {
	heartbeat := float64(defaultHeartbeat)
	if f.HeartbeatMS > 0 {
		heartbeat = f.HeartbeatMS * float64(time.Millisecond)
	}
	n.silence = time.Duration(min(heartbeat*n.factor, float64(30*24*time.Hour)))
	n.mu.Lock()
	n.refresh = f.Refresh
	n.mu.Unlock()
}

// hold keeps f for Run. If there is no room it waits, unless a snapshot is being
// loaded, which it then gives up, with the connection; or an answer is waited for,
// which may be by the callback that ought to make room.
func (n *conn) hold(f frame) {
	for {
		n.mu.Lock()
		switch {
		case n.ignore || n.end != nil:
			n.mu.Unlock()
			return
		case n.count+len(f.Notifications) <= maxHeld || len(n.held) == 0 || len(n.answers) > 0 && n.loading == nil:
			n.held = append(n.held, f)
			n.count += len(f.Notifications)
			n.mu.Unlock()
			ring(n.wake)
			return
		case n.loading != nil:
			n.mu.Unlock()
			n.finish(&ending{reason: ReasonOverflow, err: fmt.Errorf("more than %d notifications came while the snapshot was loaded", maxHeld)})
			n.cut()
			return
		}
		n.mu.Unlock()
		select {
		case <-n.room:
		case <-n.open.Done():
			return
		}
	}
}

// finish says why the connection was lost, if nobody has said why it ends. A
// snapshot that is being loaded is then of no use any more, and neither is what it
// was to be loaded for.
func (n *conn) finish(end *ending) {
	n.mu.Lock()
	loading := n.loading
	if n.end != nil {
		loading = nil
	} else if n.end, n.lost = end, true; loading != nil {
		n.held, n.count = nil, 0
	}
	for id, answer := range n.answers {
		delete(n.answers, id)
		close(answer)
	}
	n.mu.Unlock()
	if loading != nil {
		loading(errors.New("notificationclient: connection lost: " + explain(end.reason, end.code, end.err)))
	}
	ring(n.wake)
	ring(n.room)
}

// leave ends the connection as soon as what has come was dealt with, a snapshot
// included. What comes after this will come again, behind the cursor.
func (n *conn) leave(end *ending) {
	n.mu.Lock()
	if n.end == nil {
		n.end = end
	}
	n.mu.Unlock()
	ring(n.wake)
	ring(n.room)
}

// next returns what came first and is still held; or why the connection has ended,
// if nothing is; or neither: then wake rings.
func (n *conn) next() (f frame, ok bool, end *ending) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.held) == 0 {
		return frame{}, false, n.end
	}
	f = n.held[0]
	n.held[0] = frame{} // it may be large
	n.held = n.held[1:]
	n.count -= len(f.Notifications)
	ring(n.room)
	return f, true, nil
}

// load begins the loading of a snapshot, which cancel ends if it is of no use any
// more. It reports false if the connection was lost, and there is no use in it.
func (n *conn) load(cancel context.CancelCauseFunc) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost {
		n.held, n.count = nil, 0
		return false
	}
	n.loading = cancel
	ring(n.room) // a reader that waits for room must not wait for a snapshot
	return true
}

// loaded ends it, and reports whether the connection is still there: what came
// meanwhile is held, and goes on top of the snapshot.
func (n *conn) loaded() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loading = nil
	return !n.lost
}

// hangUp closes the connection with a close frame, and waits for the reader's end.
// It takes some 10 s at most; if open ends, no longer than that.
func (n *conn) hangUp() {
	n.mu.Lock()
	n.held, n.count, n.ignore = nil, 0, true // the reader reads on, to the server's close frame
	n.mu.Unlock()
	ring(n.room)
	_ = n.ws.Close(websocket.StatusNormalClosure, "")
	n.cut()
	<-n.done
}

// refreshes reports whether the server takes new credentials over the connection.
func (n *conn) refreshes() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refresh
}

// command says something and returns the answer. The error is ctx's, or
// errConnectionEnded.
func (n *conn) command(ctx context.Context, fields map[string]any) (frame, error) {
	answer := make(chan frame, 1)
	n.mu.Lock()
	if n.end != nil {
		n.mu.Unlock()
		return frame{}, errConnectionEnded
	}
	n.serial++
	id := n.serial
	n.answers[id] = answer
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.answers, id)
		n.mu.Unlock()
	}()
	ring(n.room) // see hold

	fields["id"] = id
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings, lists of strings and a number always can
	}
	// A context that ends during a write would end the connection.
	bounded, cancel := context.WithTimeout(n.open, writeTimeout)
	defer cancel()
	if n.ws.Write(bounded, websocket.MessageText, text) != nil {
		return frame{}, errConnectionEnded
	}
	select {
	case f, ok := <-answer:
		if !ok {
			return frame{}, errConnectionEnded
		}
		return f, nil
	case <-ctx.Done():
		return frame{}, ctx.Err()
	}
}

var errConnectionEnded = errors.New("notificationclient: connection ended")

// answer passes f to whoever waits for it.
func (n *conn) answer(f frame) {
	var id uint64
	if json.Unmarshal(f.ID, &id) != nil {
		return // of no command of ours
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if answer, ok := n.answers[id]; ok {
		delete(n.answers, id)
		answer <- f // its capacity is 1, and it gets no other
	}
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
