package web

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/qaexchange/notification"
)

// ErrTicket is the error for a ticket that was never issued, was redeemed
// already, or has expired: which of them is not told.
var ErrTicket = errors.New("web: no such ticket")

// TicketParam is the parameter of a URL that holds a ticket.
const TicketParam = "ticket"

// A TicketStore issues tickets: for a browser, which can set no header on a
// WebSocket or an EventSource, and must not put into a URL, which proxies log,
// what holds for long. A page asks its server for a ticket, over a request with
// the usual credentials, and connects with ?ticket= at once.
//
// A ticket is redeemed once, at most. [Tickets] keeps them in memory; for several
// processes behind one address, implement this over a store that they share: an
// atomic get-and-delete with an expiry is enough.
//
// Both methods are called from many goroutines at once. They may block as long as
// ctx lets them.
type TicketStore interface {
	// Issue returns a new ticket for id, safe in a URL and not to be guessed.
	Issue(ctx context.Context, id Identity) (string, error)
	// Redeem returns what the ticket was issued for, and forgets it. An error
	// that Is ErrTicket means that there is none.
	Redeem(ctx context.Context, ticket string) (Identity, error)
}

var _ TicketStore = (*Tickets)(nil)

// TicketOf returns the ticket in r's URL, empty if there is none.
func TicketOf(r *http.Request) string { return r.URL.Query().Get(TicketParam) }

// TicketConfig configures Tickets. Zero is the default, negative is invalid.
type TicketConfig struct {
	// TTL is how long a ticket holds; default 30 s.
	TTL time.Duration
	// MaxTickets bounds how many wait to be redeemed; default 100,000, some 20 MB. The
	// oldest make room for new ones, so that the store cannot be made to refuse;
	// bound how often a user may ask, or one makes it forget everybody's.
	MaxTickets int
}

// Tickets is a TicketStore in memory, for one process. NewTickets makes one. No
// goroutine runs for it: what has expired goes when the next one is issued.
type Tickets struct {
	// immutable after NewTickets
	ttl time.Duration
	max int

	mu     sync.Mutex
	issued map[string]*list.Element // guarded by mu: by ticket
	order  list.List                // guarded by mu: of issued, in the order in which they expire
}

type issued struct {
	ticket string
	id     Identity
	at     time.Time
}

// NewTickets returns an empty store. A negative value is notification.ErrInvalid,
// and the error names the field.
func NewTickets(cfg TicketConfig) (*Tickets, error) {
	if cfg.TTL < 0 {
		return nil, fmt.Errorf("%w: TicketConfig.TTL %s is negative", notification.ErrInvalid, cfg.TTL)
	}
	if cfg.MaxTickets < 0 {
		return nil, fmt.Errorf("%w: TicketConfig.MaxTickets %d is negative", notification.ErrInvalid, cfg.MaxTickets)
	}
	return &Tickets{
		ttl:    cmp.Or(cfg.TTL, 30*time.Second),
		max:    cmp.Or(cfg.MaxTickets, 100_000),
		issued: make(map[string]*list.Element),
	}, nil
}

// Issue implements TicketStore. The ticket has 128 random bits and more. An id
// for which no session can be made is notification.ErrInvalid.
func (t *Tickets) Issue(_ context.Context, id Identity) (string, error) {
	now := time.Now()
	if err := id.Check(now); err != nil {
		return "", err
	}
	ticket := rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	for oldest := t.order.Front(); oldest != nil && (t.order.Len() >= t.max || t.expired(oldest, now)); oldest = t.order.Front() {
		t.forget(oldest)
	}
	t.issued[ticket] = t.order.PushBack(issued{ticket, id, now})
	return ticket, nil
}

// Redeem implements TicketStore. It does not block.
func (t *Tickets) Redeem(_ context.Context, ticket string) (Identity, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.issued[ticket]
	if !ok || t.expired(found, now) {
		return Identity{}, ErrTicket
	}
	return t.forget(found).id, nil
}

// expired reports whether a ticket has expired.
func (t *Tickets) expired(e *list.Element, now time.Time) bool {
	return now.Sub(e.Value.(issued).at) >= t.ttl
}

// forget takes a ticket away. t.mu is held.
func (t *Tickets) forget(e *list.Element) issued {
	found := t.order.Remove(e).(issued)
	delete(t.issued, found.ticket)
	return found
}
