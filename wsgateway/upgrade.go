package wsgateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

var errRefused = errors.New("wsgateway: refused")

// An upgrade is the ResponseWriter that websocket.Accept gets. It finds two
// moments that the library does not offer: just before the 101, when handshake
// and Origin are known to be right and everything can still be refused; and the
// hand-over of the net.Conn, under which it puts our socket, so that the
// http.Server needs no ConnContext.
type upgrade struct {
	http.ResponseWriter
	sock  *socket
	admit func() *refusal // called once, in place of the 101; nil: go on

	status  int      // what the library answered
	refusal *refusal // of admit; ServeHTTP sends it
}

// WriteHeader lets the 101 through if admit does. After a refusal Hijack fails,
// and what the library has to say about that is not sent.
func (u *upgrade) WriteHeader(status int) {
	if u.refusal != nil {
		return
	}
	if status == http.StatusSwitchingProtocols {
		if u.refusal = u.admit(); u.refusal != nil {
			return
		}
		// The http.Server's own deadline may have passed in Authenticate. The 101
		// would not get out then, and nobody would tell: frames without a handshake
		// would follow.
		_ = http.NewResponseController(u.ResponseWriter).SetWriteDeadline(time.Now().Add(u.sock.cfg.WriteTimeout))
	}
	u.status = status
	u.ResponseWriter.WriteHeader(status)
}

func (u *upgrade) Write(p []byte) (int, error) {
	if u.refusal != nil {
		return len(p), nil
	}
	return u.ResponseWriter.Write(p)
}

// WriteHeaderNow is what the library calls for writers that put off their header
// until something is written, gin's above all: it must reach them.
func (u *upgrade) WriteHeaderNow() {
	if lazy, ok := u.ResponseWriter.(interface{ WriteHeaderNow() }); ok && u.refusal == nil {
		lazy.WriteHeaderNow()
	}
}

// Hijack returns small buffers in place of net/http's of 4 KiB each: commands
// are short, and of writing the library does nothing but close frames.
func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if u.refusal != nil {
		return nil, nil, errRefused
	}
	nc, brw, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	u.sock.Conn = nc
	early, err := brw.Reader.Peek(brw.Reader.Buffered()) // what followed the handshake at once
	if err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	good, _ := u.sock.arrived(early) // Read will tell of a violation
	early = early[:good]
	br := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(early)), u.sock), max(len(early), readBuffer))
	if _, err := br.Peek(len(early)); err != nil {
		return nil, nil, errors.Join(err, nc.Close())
	}
	return u.sock, bufio.NewReadWriter(br, bufio.NewWriterSize(u.sock, closeBuffer)), nil
}

// clear takes back what the library has put into the header for a 101.
func (u *upgrade) clear() {
	for _, key := range []string{"Upgrade", "Connection", "Sec-Websocket-Accept", "Sec-Websocket-Protocol"} {
		u.Header().Del(key)
	}
}

// canHijack reports whether websocket.Accept will find a Hijacker in w. It finds
// one in upgrade, always, and would learn of a failure after the answer has
// begun.
func canHijack(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

const (
	readBuffer  = 512
	closeBuffer = 128 // a control frame from a server has at most 127 bytes
)
