package web

import "github.com/qaexchange/notification"

// Stats is what a transport counts, since it was made but for Connections. At
// rest
//
//	Accepted = Connections + ΣClosed
type Stats struct {
	Connections int    // open now
	Accepted    uint64 // requests that became a connection with a session
	Refused     Refusals
	Closed      map[Code]uint64 // connections that ended, by the code that either side sent first; a peer's own codes, 3000 and more, under 0

	FramesIn, FramesOut     uint64 // messages and control frames; out: a batch is one
	BytesIn, BytesOut       uint64 // behind the handshake, below TLS's encryption
	Commands, CommandErrors uint64 // what clients said, and how much of it was answered with an error

	WriteLatency notification.Histogram // of one write to a connection, until the kernel had taken it
}

// Refusals counts requests that were refused, by reason.
type Refusals struct {
	BadRequest  uint64 // no handshake, a body, a query that cannot be understood
	Origin      uint64 // from a foreign page
	Full        uint64 // over MaxConnections or the Gateway's MaxSessions, shutting down, or its log has to be waited for
	Credentials uint64 // missing, wrong, expired
	Forbidden   uint64 // good, and not good enough
	CursorGone  uint64 // without a subprotocol there is no reset
	Elsewhere   uint64 // another server has this user
	Failed      uint64 // what the server does wrong: it cannot be upgraded here, or no session
}
