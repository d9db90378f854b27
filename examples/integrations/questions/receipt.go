package questions

import (
	"fmt"
	"sync"
	"time"

	"github.com/qaexchange/notification"
)

// Calls are the margin calls that were issued and not confirmed. It stands for a
// table in a database.
type Calls struct {
	mu   sync.Mutex
	open map[string]issued // guarded by mu: by the notification's ID
}

type issued struct {
	userID string
	call   notification.MarginCall
}

// Issue notes that a call wants an answer, and makes its notification. A second
// one for the same call has the same ID: it is recognized as a repeat.
func (c *Calls) Issue(userID string, call notification.MarginCall) *notification.Notification {
	n := notification.New(userID, call, "RiskControl")
	n.ID = fmt.Sprintf("margin-call-%s-%d", userID, call.Timestamp)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[string]issued)
	}
	c.open[n.ID] = issued{userID, call}
	return n
}

// Confirm is what POST /margin-calls/{message_id}/receipt does, and userID is whose
// credentials that request has. It reports false if nothing is open for them.
func (c *Calls) Confirm(userID, id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.open[id]; !ok || i.userID != userID {
		return false
	}
	delete(c.open, id)
	return true
}

// Unconfirmed returns whom to reach in another way, by telephone say, because
// their deadline comes before at.
func (c *Calls) Unconfirmed(at time.Time) (userIDs []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.open {
		if i.call.Deadline < at.UnixNano() {
			userIDs = append(userIDs, i.userID)
		}
	}
	return userIDs
}
