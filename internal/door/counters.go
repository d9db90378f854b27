package door

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// Counters are what a web.Stats is made of. The zero value is ready, for any
// number of writers and readers at once.
type Counters struct {
	Accepted, Origin, CursorGone   atomic.Uint64
	FramesIn, FramesOut, BytesIn   atomic.Uint64
	Commands, CommandErrors        atomic.Uint64
	badRequest, full, unauthorized atomic.Uint64
	forbidden, failed, elsewhere   atomic.Uint64
	bytesOut                       atomic.Uint64
	writes                         notification.HistogramRecorder

	mu     sync.Mutex
	closed map[web.Code]uint64 // guarded by mu
}

// Refused counts a request by the status that it got, or would have got.
func (n *Counters) Refused(status int) {
	switch status {
	case http.StatusUnauthorized:
		n.unauthorized.Add(1)
	case http.StatusForbidden:
		n.forbidden.Add(1)
	case http.StatusServiceUnavailable:
		n.full.Add(1)
	case http.StatusMisdirectedRequest:
		n.elsewhere.Add(1)
	case http.StatusGone:
		n.CursorGone.Add(1)
	case http.StatusInternalServerError, http.StatusNotImplemented:
		n.failed.Add(1)
	default:
		n.badRequest.Add(1)
	}
}

// Closed counts a connection that ended.
func (n *Counters) Closed(code web.Code) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed == nil {
		n.closed = make(map[web.Code]uint64)
	}
	n.closed[code]++
}

// Wrote counts a write.
func (n *Counters) Wrote(bytes int, took time.Duration) {
	n.bytesOut.Add(uint64(bytes))
	n.writes.Record(took)
}

// Snapshot leaves out what is counted while it reads, or part of it; but nobody is
// closed who was not accepted.
func (n *Counters) Snapshot() web.Stats {
	s := web.Stats{Closed: make(map[web.Code]uint64)}
	closed := uint64(0)
	n.mu.Lock()
	for code, count := range n.closed {
		s.Closed[code] = count
		closed += count
	}
	n.mu.Unlock()
	s.Accepted = n.Accepted.Load()
	s.Connections = int(s.Accepted - closed)
	s.Refused = web.Refusals{
		BadRequest: n.badRequest.Load(), Origin: n.Origin.Load(), Full: n.full.Load(), Credentials: n.unauthorized.Load(),
		Forbidden: n.forbidden.Load(), CursorGone: n.CursorGone.Load(), Elsewhere: n.elsewhere.Load(), Failed: n.failed.Load(),
	}
	s.FramesIn, s.FramesOut = n.FramesIn.Load(), n.FramesOut.Load()
	s.BytesIn, s.BytesOut = n.BytesIn.Load(), n.bytesOut.Load()
	s.Commands, s.CommandErrors = n.Commands.Load(), n.CommandErrors.Load()
	s.WriteLatency = n.writes.Snapshot()
	return s
}
