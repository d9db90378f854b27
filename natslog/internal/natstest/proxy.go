package natstest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
)

// A Proxy is a way to a server that can be cut, while the server and everybody
// who takes another way notice nothing. It is safe for concurrent use.
type Proxy struct {
	URL string

	listener net.Listener
	target   string
	serving  sync.WaitGroup

	mu    sync.Mutex
	cut   bool                      // guarded by mu
	stall chan struct{}             // guarded by mu; not nil while stalled: closed to go on
	conns map[net.Conn]bool         // guarded by mu; both ends of each connection
	ended bool                      // guarded by mu
	drop  func(subject string) bool // guarded by mu; may be nil
}

// NewProxy returns a way to the server at that URL, open until the end of the test.
func NewProxy(t testing.TB, serverURL string) *Proxy {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{URL: "nats://" + l.Addr().String(), listener: l, target: u.Host, conns: map[net.Conn]bool{}}
	p.serving.Go(p.serve) // ends when the listener is closed
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		p.Mend()
		p.CloseConnections()
		p.serving.Wait()
	})
	return p
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.cut || p.ended
		p.mu.Unlock()
		if refuse {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		if p.cut || p.ended {
			p.mu.Unlock()
			_, _ = client.Close(), server.Close()
			continue
		}
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		// Each ends when one of the two connections does, and closes both.
		p.serving.Go(func() { p.copy(server, client, nil) })
		p.serving.Go(func() { p.copy(client, server, bufio.NewReader(server)) })
	}
}

// copy passes on what comes; from a server message by message, which frames reads.
func (p *Proxy) copy(to, from net.Conn, frames *bufio.Reader) {
	buf := make([]byte, 32<<10)
	for {
		var b []byte
		var subject string
		var err error
		if frames != nil {
			b, subject, err = frame(frames)
		} else {
			var n int
			n, err = from.Read(buf)
			b = buf[:n]
		}
		p.mu.Lock()
		stall, drop := p.stall, p.drop
		p.mu.Unlock()
		if stall != nil {
			<-stall
		}
		if subject != "" && drop != nil && drop(subject) {
			continue
		}
		if _, failed := to.Write(b); failed != nil || err != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
	p.mu.Lock()
	delete(p.conns, to)
	delete(p.conns, from)
	p.mu.Unlock()
}

// frame reads one line of a server, with the message behind it if there is one,
// whose subject it returns.
func frame(r *bufio.Reader) (b []byte, subject string, err error) {
	if b, err = r.ReadBytes('\n'); err != nil {
		return b, "", err
	}
	words := bytes.Fields(b)
	if len(words) < 4 || string(words[0]) != "MSG" && string(words[0]) != "HMSG" {
		return b, "", nil
	}
	size, err := strconv.Atoi(string(words[len(words)-1]))
	if err != nil {
		return b, "", err
	}
	line := len(b)
	b = append(b, make([]byte, size+len("\r\n"))...)
	n, err := io.ReadFull(r, b[line:])
	return b[:line+n], string(words[1]), err
}

// Drop lets the proxy drop the messages to clients for which the function says so,
// by their subject, as a client does that is slow. nil: none. The function is called
// by one goroutine per connection.
func (p *Proxy) Drop(which func(subject string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop = which
}

// Cut ends all connections and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	p.CloseConnections()
}

// Stall keeps all connections and lets nothing through: what a switch does that
// lost its power.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stall == nil && !p.ended {
		p.stall = make(chan struct{})
	}
}

// Mend undoes Cut and Stall. What was under way in a stall arrives.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	if p.stall != nil {
		close(p.stall)
		p.stall = nil
	}
}

// CloseConnections ends those that there are; new ones are welcome.
func (p *Proxy) CloseConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}
