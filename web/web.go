// Package web has what the transports to browsers share: who somebody is, the
// channels and the ticket in a URL, the codes with which a connection is closed,
// and what is counted of it. The transports are packages wsgateway and ssegateway,
// each a module of its own.
//
// Who runs one writes a function that returns an [Identity], or an error that may be
// [ErrForbidden], and may let [Tickets] do it, as the example shows. Who writes a
// client looks at [Code]. Nothing here runs in the background.
package web

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qaexchange/notification"
)

// ErrForbidden is what Authenticate wraps in its error when it knows who asks and
// refuses all the same: 403 and [CodeForbidden] in place of 401 and
// [CodeCredentials], which make a client ask for new credentials.
var ErrForbidden = errors.New("web: forbidden")

// ErrElsewhere: another server has this user. Who makes sessions for a part of the
// users, as an edge of natslog does, wraps it in the error of RegisterSession: 421,
// or another try.
var ErrElsewhere = errors.New("web: another server has this user")

// An Identity is what the check of credentials found out.
type Identity struct {
	// UserID is whose notifications the connection gets. Nobody (empty) and
	// everybody (notification.AllUsers) are refused.
	UserID string
	// Expires is until when the credentials hold. Zero: for ever.
	Expires time.Time
}

// maxUserID is the root package's bound.
const maxUserID = 256

// Check returns an error that wraps notification.ErrInvalid and names the field
// if no session can be made for id at the time now: because it is nobody's, or
// has expired.
func (id Identity) Check(now time.Time) error {
	switch {
	case id.UserID == "", id.UserID == notification.AllUsers, len(id.UserID) > maxUserID:
		return fmt.Errorf("%w: Identity.UserID %.64q is nobody", notification.ErrInvalid, id.UserID)
	case !id.Expires.IsZero() && !now.Before(id.Expires):
		return fmt.Errorf("%w: Identity.Expires %s has passed", notification.ErrInvalid, id.Expires.Format(time.RFC3339))
	}
	return nil
}

// ParseChannels reads the names of channels with commas between them, as
// ?channels= has them. The empty string is no channel: an empty list, which is
// not nil. An unknown name is notification.ErrInvalid.
func ParseChannels(list string) ([]notification.Channel, error) {
	channels := []notification.Channel{}
	if list == "" {
		return channels, nil
	}
	for name := range strings.SplitSeq(list, ",") {
		ch, err := notification.ParseChannel(name)
		if err != nil {
			return nil, err
		}
		channels = append(channels, ch)
	}
	return channels, nil
}
