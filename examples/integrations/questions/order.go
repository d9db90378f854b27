// Package questions has the code of docs/questions.md: what an exchange writes
// around the library where the answer to a question is "not here, do this". It is
// to be copied.
package questions

import (
	"fmt"
	"time"

	"github.com/qaexchange/notification"
)

// Step makes the notification of the step-th event of an order. All steps go
// through one lane, so that they arrive as they happened: by default a rejection
// would overtake in P0, and an expiry come last in P3.
func Step(userID, orderID string, step int, p notification.Payload) *notification.Notification {
	n := notification.New(userID, p, "MatchingEngine")
	n.ID = fmt.Sprintf("order-%s-%d", orderID, step) // message_id on the wire
	n.Priority = notification.P1
	return n
}

// Halt makes the notification for everybody that trading in an instrument has
// stopped. until is the zero time if that is not known.
func Halt(instrument, reason string, now, until time.Time) *notification.Notification {
	halt := notification.MarketHalt{InstrumentID: instrument, Reason: reason, Timestamp: now.UnixNano()}
	if !until.IsZero() {
		halt.ResumeAt = until.UnixNano()
	}
	n := notification.New(notification.AllUsers, halt, "Exchange")
	n.ID = fmt.Sprintf("halt-%s-%d", instrument, halt.Timestamp)
	n.Priority = notification.P0 // the type's own is P3
	return n
}
