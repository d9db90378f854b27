package web

import (
	"errors"
	"strconv"

	"github.com/qaexchange/notification"
)

// A Code tells a client why its connection ends, and by its range what to do: it
// is the close code of a WebSocket.
//
//	1000                          stop
//	1002, 1003, 1007, 1008, 1009  a bug of the client: stop
//	4000 to 4099                  reconnect with the cursor
//	4100 to 4199                  drop the cursor, reconnect, load a snapshot
//	4400 to 4499 without 4401     stop
//	4401                          get new credentials, reconnect with the cursor
//	any other                     back off, reconnect with the cursor
//
// A second 4401 without a welcome in between means stop.
type Code int

// The codes that are in use. Those below 4000 are RFC 6455's.
const (
	CodeNormal      Code = 1000 // closed by the program
	CodeGoingAway   Code = 1001 // the server is going away
	CodeProtocol    Code = 1002 // what came was no WebSocket
	CodeNoStatus    Code = 1005 // the peer's close frame had no code
	CodeAbnormal    Code = 1006 // the connection was lost without a close frame
	CodeBadText     Code = 1007 // text that is not UTF-8
	CodePolicy      Code = 1008 // too many commands, or a message that was not finished in time
	CodeTooBig      Code = 1009 // a message over the limit
	CodeFailed      Code = 1011 // the server failed
	CodeTryAgain    Code = 1013 // no room, or going away
	CodeSlow        Code = 4000 // slow consumer
	CodeNotHeard    Code = 4001 // nothing was heard of the peer
	CodeGap         Code = 4100 // notifications may have been lost
	CodeBadRequest  Code = 4400 // the request cannot be understood
	CodeCredentials Code = 4401 // the credentials are missing, wrong, or have expired
	CodeForbidden   Code = 4403 // they are good, and not good enough
	CodeReplaced    Code = 4409 // a newer session of the user took its place
)

// String returns the number.
func (c Code) String() string { return strconv.Itoa(int(c)) }

// CodeOf returns the Code for the reason that ended a session: the one that its
// Sink.Close got.
func CodeOf(reason error) Code {
	for _, t := range []struct {
		reason error
		code   Code
	}{
		{notification.ErrSessionClosed, CodeNormal},
		{notification.ErrSessionExpired, CodeNotHeard},
		{notification.ErrSessionReplaced, CodeReplaced},
		{notification.ErrSlowConsumer, CodeSlow},
		{notification.ErrGap, CodeGap},
		{notification.ErrGatewayClosed, CodeGoingAway},
	} {
		if errors.Is(reason, t.reason) {
			return t.code
		}
	}
	return CodeFailed
}
