package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const batchProtocol = "notification.batch.v1"

// A conn is one attempt of a client to connect, and the WebSocket that may come of
// it. Its script runs in the goroutine of the request; another one reads.
type conn struct {
	// immutable
	run     *run
	number  int // 1 is the first of the run
	w       http.ResponseWriter
	request *http.Request

	// owned by the script
	wire     *wire           // nil until it is upgraded
	answered bool            // there is a status that is none of an upgrade
	lastID   json.RawMessage // of the last command that was heard
	ponged   chan struct{}   // the answer to the ping that is awaited
	frames   chan []byte     // what the client says
	gone     chan struct{}   // closed when the client can be heard no more
	reading  sync.WaitGroup

	code int // how the client went; owned by the reader until gone is closed: 1006 without a close frame
}

// A wire is the net.Conn below a WebSocket. The library reads through it, answers
// pings and close frames; the script writes to it whatever it wants to.
type wire struct {
	net.Conn

	mu     sync.Mutex
	silent bool      // guarded by mu: what is written is lost on the way, and so is the end
	wrote  time.Time // guarded by mu: before the last frame was written
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// Close is what the library calls.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		return nil
	}
	return w.Conn.Close()
}

func (w *wire) hush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
}

// sendLast writes one frame, and nothing after it: the library would answer the
// close frame that answers ours, and close the connection.
func (w *wire) sendLast(first byte, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		return
	}
	w.silent = true
	_, _ = w.Conn.Write(frame(first, payload))
}

// send writes one frame that the client can see. A client that has left does not get
// it, and whether the write can tell depends on which of the two was slower: it is no
// error. One that must not leave is found by what it does not say, and by the judge.
func (w *wire) send(first byte, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		return
	}
	w.wrote = time.Now()
	_, _ = w.Conn.Write(frame(first, payload))
}

func (w *wire) lastWrite() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrote
}

// The first byte of a frame.
const (
	fin          = 0x80
	continuation = 0
	textFrame    = 1
	closeFrame   = 8
	pingFrame    = 9
)

// frame is a frame from a server.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// An upgrader is the ResponseWriter that the library gets, so that it puts the
// WebSocket on our wire.
type upgrader struct {
	http.ResponseWriter
	wire *wire
}

func (u *upgrader) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	u.wire = &wire{Conn: nc}
	return u.wire, bufio.NewReadWriter(brw.Reader, bufio.NewWriter(u.wire)), nil
}

// upgrade makes the WebSocket, if that has not been done.
func (c *conn) upgrade() error {
	if c.wire != nil {
		return nil
	}
	return c.upgradeTo(batchProtocol)
}

func (c *conn) upgradeTo(protocols ...string) error {
	u := &upgrader{ResponseWriter: c.w}
	ws, err := websocket.Accept(u, c.request, &websocket.AcceptOptions{
		Subprotocols:       protocols,
		InsecureSkipVerify: true, // the page is not from here
		OnPongReceived: func(_ context.Context, p []byte) {
			if string(p) == awaitedPing {
				close(c.ponged) // there is one such ping at a time
			}
		},
	})
	if err != nil {
		return err
	}
	ws.SetReadLimit(1 << 20)
	c.wire = u.wire
	c.reading.Go(func() { c.read(ws) }) // ends with the wire, which end closes
	return nil
}

// read reads what the client says until it says nothing more.
func (c *conn) read(ws *websocket.Conn) {
	defer close(c.gone)
	for {
		kind, text, err := ws.Read(context.Background())
		if err != nil {
			c.code = int(websocket.CloseStatus(err))
			if c.code < 0 {
				c.code = int(websocket.StatusAbnormalClosure)
			}
			return
		}
		if kind != websocket.MessageText {
			c.run.fail("connection %d: the client sends a binary frame", c.number)
		}
		select {
		case c.frames <- text:
		default:
			c.run.fail("connection %d: the client sends more than any client has to say", c.number)
		}
	}
}

// write sends a text frame.
func (c *conn) write(text []byte) error {
	if err := c.upgrade(); err != nil {
		return err
	}
	c.wire.send(fin|textFrame, text)
	return nil
}

func (c *conn) writeJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.write(b)
}

// awaitGone waits until the client has sent a close frame, or its TCP connection
// has ended.
func (c *conn) awaitGone() error {
	if err := c.upgrade(); err != nil {
		return err
	}
	select {
	case <-c.gone:
		c.run.journal.note("left", map[string]any{"connection": c.number, "code": c.code})
		return nil
	case <-c.run.ctx.Done():
		return fmt.Errorf("the client did not leave: %w", context.Cause(c.run.ctx))
	}
}

// end closes the socket. One that is silent stays open as long as the run: the
// client must not need its end.
func (c *conn) end() {
	if c.wire == nil {
		return
	}
	c.wire.mu.Lock()
	silent := c.wire.silent
	c.wire.mu.Unlock()
	if silent {
		<-c.run.ctx.Done()
	}
	_ = c.wire.Conn.Close()
	c.reading.Wait()
	for len(c.frames) > 0 {
		c.run.journal.note("unheard", map[string]any{"connection": c.number, "frame": string(<-c.frames)})
	}
}

// cut ends the TCP connection without a word.
func (c *conn) cut() error {
	if err := c.upgrade(); err != nil {
		return err
	}
	c.ending()
	_ = c.wire.Conn.Close() // a client that has left meanwhile is found by what follows
	return nil
}

// ending notes that it is the server that ends the connection, before the client
// can know.
func (c *conn) ending() {
	c.run.journal.note("ending", map[string]any{"connection": c.number})
}

// closeWith sends a close frame and waits for the client's.
func (c *conn) closeWith(payload []byte) error {
	if err := c.upgrade(); err != nil {
		return err
	}
	c.ending()
	c.wire.sendLast(fin|closeFrame, payload)
	select {
	case <-c.gone:
	case <-time.After(5 * time.Second): // one that does not answer is lazy, not wrong
	case <-c.run.ctx.Done():
	}
	_ = c.wire.Conn.Close()
	return nil
}

// takeOver returns the TCP connection of a request that is not to be answered.
func (c *conn) takeOver() (net.Conn, error) {
	nc, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("the connection cannot be taken over: %w", err)
	}
	c.answered = true
	return nc, nil
}

// awaitEnd waits until the peer has closed nc, or the run ends.
func (c *conn) awaitEnd(nc net.Conn) {
	stop := context.AfterFunc(c.run.ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, _ = io.Copy(io.Discard, nc)
}
