package notificationclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/qaexchange/notification/web"
)

// A Status is what a Client is doing.
type Status string

// The values of Status, in the order in which a client goes through them.
const (
	StatusConnecting Status = "connecting" // from the attempt to the welcome
	StatusReplaying  Status = "replaying"  // a snapshot is loaded, or what was missed arrives
	StatusLive       Status = "live"       // what arrives is new
	StatusWaiting    Status = "waiting"    // for the next attempt
	StatusStopped    Status = "stopped"    // for good
)

// A Reason tells why a client waits or has stopped.
type Reason string

// The values of Reason.
const (
	ReasonClosed      Reason = "closed"      // by the program: Shutdown, or the context of Run
	ReasonNetwork     Reason = "network"     // no connection, or it was lost
	ReasonWatchdog    Reason = "watchdog"    // nothing was heard for too long
	ReasonOverflow    Reason = "overflow"    // too much came while a snapshot was loaded
	ReasonServer      Reason = "server"      // the server closed: Code tells
	ReasonHandshake   Reason = "handshake"   // an HTTP status: Code tells it as a close code, if there is one
	ReasonCredentials Reason = "credentials" // the callback failed; waiting: they were expiring, and there are new ones
	ReasonHandler     Reason = "handler"     // OnNotifications or Snapshot returned an error
	ReasonProtocol    Reason = "protocol"    // what came is not the protocol
)

// A State is told to OnState.
type State struct {
	Status Status
	Reason Reason        // of StatusWaiting and StatusStopped
	Code   web.Code      // the close code, web.CodeAbnormal of ReasonNetwork, web.CodeNormal of ReasonClosed; 0: there was none
	Err    error         // what else is known of the reason; may be nil
	Retry  time.Duration // of StatusWaiting: until the next attempt
}

// String returns a line for people: "waiting 0.3s: server, close code 1001".
func (s State) String() string {
	var b strings.Builder
	b.WriteString(string(s.Status))
	if s.Status == StatusWaiting {
		fmt.Fprintf(&b, " %.1fs", s.Retry.Seconds())
	}
	if s.Reason != "" {
		b.WriteString(": " + explain(s.Reason, s.Code, s.Err))
	}
	return b.String()
}

func explain(reason Reason, code web.Code, err error) string {
	text := string(reason)
	if code != 0 {
		text += ", close code " + strconv.Itoa(int(code))
	}
	if err != nil {
		text += ": " + err.Error()
	}
	return text
}

// What a program may want to act on when Run has returned, for errors.Is. A
// *StopError has the rest.
var (
	// ErrCredentials: the server refused the credentials twice, or Credentials
	// returned an error.
	ErrCredentials = errors.New("notificationclient: credentials refused")
	// ErrForbidden: the credentials are good, and not good enough.
	ErrForbidden = errors.New("notificationclient: forbidden")
	// ErrReplaced: a newer session of the user took the place of this one. To
	// reconnect would take it back, and so on.
	ErrReplaced = errors.New("notificationclient: replaced by a newer session")
)

// A StopError is why Run returned by itself.
type StopError struct {
	Reason Reason
	Code   web.Code // the close code; 0: there was none
	Cursor string   // where another Client would go on
	Err    error    // the error of the callback, or what else is known; may be nil
}

// Error implements error.
func (e *StopError) Error() string {
	return "notificationclient: stopped: " + explain(e.Reason, e.Code, e.Err)
}

// Unwrap returns Err.
func (e *StopError) Unwrap() error { return e.Err }

// Is reports whether e is one of ErrCredentials, ErrForbidden, ErrReplaced.
func (e *StopError) Is(target error) bool {
	switch target {
	case ErrCredentials:
		return e.Reason == ReasonCredentials || e.Code == web.CodeCredentials
	case ErrForbidden:
		return e.Code == web.CodeForbidden
	case ErrReplaced:
		return e.Code == web.CodeReplaced
	}
	return false
}

// An ending is why a connection has ended, or was not made.
type ending struct {
	reason Reason
	code   web.Code
	err    error
	final  bool // stop, whatever the code
}

// A fate is what follows from an ending.
type fate int

const (
	fateRetry fate = iota // with the cursor
	fateAnew              // without: there is a gap
	fateRenew             // with the cursor and new credentials
	fateStop
)

// fate goes by the ranges of close codes, so that it is right for codes that do not
// exist yet.
func (e *ending) fate() fate {
	switch {
	case e.final:
		return fateStop
	case e.reason != ReasonServer && e.reason != ReasonHandshake:
		return fateRetry
	}
	switch e.code {
	case web.CodeNormal, web.CodeProtocol, 1003, web.CodeBadText, web.CodePolicy, web.CodeTooBig:
		return fateStop
	case web.CodeCredentials:
		return fateRenew
	}
	switch {
	case 4100 <= e.code && e.code <= 4199:
		return fateAnew
	case 4400 <= e.code && e.code <= 4499:
		return fateStop
	}
	return fateRetry
}
