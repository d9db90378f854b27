package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Weather is what is between clients and server: a TCP proxy that cuts connections
// in the middle of frames, lets them stand still, and delays them, until it is calm.
type weather struct {
	ln     net.Listener
	target atomic.Value  // string: where the server is
	calmed chan struct{} // closed by calm

	mu    sync.Mutex
	rnd   *rand.Rand        // guarded by mu
	conns map[net.Conn]bool // guarded by mu: of both sides

	running sync.WaitGroup
	ctx     context.Context // ends with close
	stop    context.CancelFunc

	accepted, cut, stood, slow atomic.Int64
}

func newWeather(seed uint64) (*weather, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &weather{ln: ln, rnd: rand.New(rand.NewPCG(seed, 1)), conns: map[net.Conn]bool{}, calmed: make(chan struct{})}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.running.Go(w.accept) // ends with close
	return w, nil
}

func (w *weather) close() {
	w.stop()
	_ = w.ln.Close()
	w.clear()
	w.running.Wait()
}

// clear ends all connections.
func (w *weather) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
}

// calm: whatever stands still is cut, and nothing happens any more to what comes.
func (w *weather) calm() {
	close(w.calmed)
	w.clear()
}

func (w *weather) isCalm() bool {
	select {
	case <-w.calmed:
		return true
	default:
		return false
	}
}

func (w *weather) accept() {
	for {
		c, err := w.ln.Accept()
		if err != nil {
			return
		}
		w.accepted.Add(1)
		w.running.Go(func() { w.carry(c) }) // ends when either side does, or with close
	}
}

// track lets clear find a connection; false: it is too late for it.
func (w *weather) track(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *weather) untrack(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close()
}

// A fate is what happens to a connection, after some bytes from the server.
type fate struct {
	after int64 // bytes; negative: nothing happens
	stand bool  // it stands still; else it is cut
	slow  bool  // what comes is broken into pieces, each of which waits
}

func (w *weather) fate() fate {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := fate{after: -1}
	switch n := w.rnd.IntN(20); {
	case w.isCalm():
	case n < 9:
		f.after = w.rnd.Int64N(60_000)
	case n < 13:
		f.after, f.stand = w.rnd.Int64N(60_000), true
	case n < 16:
		f.after, f.slow = w.rnd.Int64N(30_000), true
	}
	return f
}

// carry carries one connection.
func (w *weather) carry(client net.Conn) {
	if !w.track(client) {
		return
	}
	defer w.untrack(client)
	target, _ := w.target.Load().(string)
	server, err := net.Dial("tcp", target)
	if err != nil || !w.track(server) {
		return
	}
	defer w.untrack(server)
	gone := make(chan struct{})
	w.running.Go(func() { // ends with either connection, which the deferred calls see to
		defer close(gone)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	})
	f := w.fate()
	if f.slow {
		w.slow.Add(1)
	}
	if !errors.Is(w.down(client, server, f), errStand) {
		return
	}
	w.stood.Add(1)
	select { // both sides believe that the other one is there
	case <-gone:
	case <-w.calmed:
	case <-w.ctx.Done():
	}
}

var (
	errStand = errors.New("it stands still")
	errCut   = errors.New("it is cut")
)

// down carries what the server sends.
func (w *weather) down(client, server net.Conn, f fate) error {
	buf := make([]byte, 4096)
	for {
		n, err := server.Read(buf)
		rest := buf[:n]
		for len(rest) > 0 {
			piece := len(rest)
			if f.slow {
				piece = min(piece, 1+int(f.after%200))
				<-time.After(2 * time.Millisecond)
			}
			if f.after >= 0 && f.after < int64(piece) {
				_, _ = client.Write(rest[:f.after])
				if f.stand {
					return errStand
				}
				w.cut.Add(1)
				return errCut
			}
			if f.after >= 0 {
				f.after -= int64(piece)
			}
			if _, err := client.Write(rest[:piece]); err != nil {
				return err
			}
			rest = rest[piece:]
		}
		if err != nil {
			return err
		}
	}
}
