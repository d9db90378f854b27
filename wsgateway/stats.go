package wsgateway

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// counters are what Stats is made of. The zero value is ready, for any number of
// writers and readers at once.
type counters struct {
	accepted                            atomic.Uint64
	badRequest, origin, full, gone      atomic.Uint64
	unauthorized, forbidden, failed     atomic.Uint64
	framesIn, framesOut, bytesIn, bytes atomic.Uint64
	commands, commandErrors             atomic.Uint64
	writes                              notification.HistogramRecorder

	mu     sync.Mutex
	closed map[web.Code]uint64 // guarded by mu
}

// refused counts a request by the status that it got, or would have got.
func (n *counters) refused(status int) {
	switch status {
	case http.StatusUnauthorized:
		n.unauthorized.Add(1)
	case http.StatusForbidden:
		n.forbidden.Add(1)
	case http.StatusServiceUnavailable:
		n.full.Add(1)
	case http.StatusGone:
		n.gone.Add(1)
	case http.StatusInternalServerError, http.StatusNotImplemented:
		n.failed.Add(1)
	default:
		n.badRequest.Add(1)
	}
}

// close counts a connection that ended as e says, or with the peer's close frame
// if it has a code (else negative).
func (n *counters) close(e *ending, peer websocket.StatusCode) {
	code := web.Code(e.code)
	if e == endNormal && peer >= 0 {
		if code = web.Code(peer); code >= 3000 { // the peer's own, which could be anything
			code = 0
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed == nil {
		n.closed = make(map[web.Code]uint64)
	}
	n.closed[code]++
}

// wrote counts a write.
func (n *counters) wrote(bytes int, took time.Duration) {
	n.framesOut.Add(1)
	n.bytes.Add(uint64(bytes))
	n.writes.Record(took)
}

// snapshot leaves out what is counted while it reads, or part of it; but never is
// somebody closed who was not accepted.
func (n *counters) snapshot() Stats {
	s := Stats{Closed: make(map[web.Code]uint64)}
	closed := uint64(0)
	n.mu.Lock()
	for code, count := range n.closed {
		s.Closed[code] = count
		closed += count
	}
	n.mu.Unlock()
	s.Accepted = n.accepted.Load()
	s.Connections = int(s.Accepted - closed)
	s.Refused = web.Refusals{
		BadRequest: n.badRequest.Load(), Origin: n.origin.Load(), Full: n.full.Load(), Credentials: n.unauthorized.Load(),
		Forbidden: n.forbidden.Load(), CursorGone: n.gone.Load(), Failed: n.failed.Load(),
	}
	s.FramesIn, s.FramesOut = n.framesIn.Load(), n.framesOut.Load()
	s.BytesIn, s.BytesOut = n.bytesIn.Load(), n.bytes.Load()
	s.Commands, s.CommandErrors = n.commands.Load(), n.commandErrors.Load()
	s.WriteLatency = n.writes.Snapshot()
	return s
}
