package notificationclient

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/qaexchange/notification"
)

// A Batch is what the server sent in one frame.
type Batch struct {
	// Notifications are at least one, those of P0 first.
	Notifications []Notification
	// Cursor is the place behind the batch: stored together with what the batch
	// leads to, in one transaction, it makes that exactly once even across a crash.
	// Empty if the server keeps no history.
	Cursor string
	// Replayed says that the notifications were missed, and are not new.
	Replayed bool
}

// A Notification is one that has arrived.
type Notification struct {
	// Payload is nil if the type is not known to this version of the library, or
	// the payload is not what it knows. The other fields are then as good as can be.
	notification.Notification
	// TypeName is the type's wire name, of an unknown type too.
	TypeName string
	// Raw is the JSON that came, of the whole notification.
	Raw json.RawMessage
}

// MarshalJSON returns Raw, so that nothing unknown is lost.
func (n Notification) MarshalJSON() ([]byte, error) { return n.Raw.MarshalJSON() }

// UnmarshalJSON takes any JSON. It keeps a copy.
func (n *Notification) UnmarshalJSON(text []byte) error {
	v := Notification{Raw: append(json.RawMessage(nil), text...)}
	v.decode()
	*n = v
	return nil
}

// decode fills in what Raw says.
func (n *Notification) decode() {
	if n.Notification.UnmarshalJSON(n.Raw) == nil && n.Payload != nil {
		n.TypeName = n.Type().String()
		return
	}
	// One by one: what does not fit leaves the others readable.
	var keys map[string]json.RawMessage
	_ = json.Unmarshal(n.Raw, &keys)
	for key, value := range map[string]any{
		"message_id":   &n.ID,
		"message_type": &n.TypeName,
		"user_id":      &n.UserID,
		"priority":     &n.Priority,
		"timestamp":    &n.Timestamp,
		"source":       &n.Source,
	} {
		_ = json.Unmarshal(keys[key], value)
	}
}

// A frame is what the server says. Which of the fields count depends on the action.
type frame struct {
	Action        string            `json:"action"` // empty: a batch
	Cursor        string            `json:"cursor"`
	Notifications []json.RawMessage `json:"notifications"`
	Dropped       uint64            `json:"dropped"`
	Resumed       bool              `json:"resumed"`
	HeartbeatMS   float64           `json:"heartbeat_ms"`
	Refresh       bool              `json:"refresh"`
	InMS          float64           `json:"in_ms"`
	ID            json.RawMessage   `json:"id"`
	Code          string            `json:"code"`
	Message       string            `json:"message"`
}

const (
	actionWelcome   = "welcome"
	actionReset     = "reset"
	actionLive      = "live"
	actionHeartbeat = "heartbeat"
	actionExpiring  = "expiring"
	actionOK        = "ok"
	actionError     = "error"
)

// parse reads a frame. One with an action that is not known here is whatever it
// likes, as long as it is an object of JSON; it is to be ignored.
func parse(text []byte) (f frame, err error) {
	err = json.Unmarshal(text, &f)
	var misfit *json.UnmarshalTypeError
	if errors.As(err, &misfit) {
		// What fits was read all the same, the action above all.
		switch f.Action {
		case "", actionWelcome, actionReset, actionLive, actionHeartbeat, actionExpiring, actionOK, actionError:
		default:
			return frame{Action: f.Action}, nil
		}
	}
	if err != nil {
		return frame{}, fmt.Errorf("a frame that cannot be read: %w", err)
	}
	return f, nil
}

// batch returns the notifications of a frame.
func (f *frame) batch(replayed bool) Batch {
	b := Batch{Notifications: make([]Notification, len(f.Notifications)), Cursor: f.Cursor, Replayed: replayed}
	for i, raw := range f.Notifications {
		b.Notifications[i].Raw = raw
		b.Notifications[i].decode()
	}
	return b
}
