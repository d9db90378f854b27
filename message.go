package notification

import (
	"sync"
	"sync/atomic"
)

// A Message is an accepted Notification on its way: the same Message goes
// through lane, inbox, outbox and history to every receiver and session. It is
// safe for concurrent use.
type Message struct {
	// immutable after NewMessage
	n        *Notification
	entered  int64    // when Publish was called, as now tells it
	typ      Type     // copied, so that a caller who writes to n after Publish
	priority Priority // cannot send it into a lane or channel that does not exist
	invalid  bool     // made by NewMessage of what is not valid: a Gateway refuses it
	numbered bool     // it is the first field of a numbered

	encoded atomic.Bool // json is there
	json    string      // immutable once encoded, before that guarded by a lock of encoders; a string header is 8 bytes shorter than a slice's

	// How one of the Gateways that get it knew the user when the dispatcher looked,
	// so that it need not look again if he is still there; nil: it must. The
	// dispatcher writes it before it hands the Message to anybody. It keeps a user
	// alive, and no session or Gateway.
	user *user
}

// encoders are the locks under which Messages are encoded. One of its own, or a
// sync.Once, would not fit into a Message's 48 bytes. They are leaves.
var encoders [1024]sync.Mutex

// NewMessage makes a Message of n, for whoever feeds a Gateway's inbox without
// a Broker. It takes ownership of n; the time of entry is now. A Gateway refuses
// and counts a Message of which n is not valid (see Notification.Validate).
func NewMessage(n *Notification) *Message {
	t, err := n.check()
	if n == nil {
		n = new(Notification)
	}
	m := newMessage(n, t, now())
	m.invalid = err != nil
	return m
}

func newMessage(n *Notification, t Type, entered int64) *Message {
	return &Message{n: n, entered: entered, typ: t, priority: min(n.Priority, P3)}
}

// Notification returns the Notification: shared, read-only.
func (m *Message) Notification() *Notification { return m.n }

// JSON returns the Notification as Notification.AppendJSON writes it, encoded at
// most once however many ask and whoever asks first. The Message keeps the bytes,
// and they are shared: read-only.
func (m *Message) JSON() []byte {
	if !m.encoded.Load() {
		m.encode()
	}
	return bytesView(m.json) // read-only, as said above
}

func (m *Message) encode() {
	mu := &encoders[addressOf(m)>>4%uintptr(len(encoders))]
	mu.Lock()
	defer mu.Unlock()
	if !m.encoded.Load() {
		m.json = stringView(marshalJSON(m.n)) // nobody else's, and not written to again
		m.encoded.Store(true)
	}
}

// AppendJSON appends what JSON returns to dst, and keeps nothing of it; but what is
// for AllUsers, whose sessions are many, it encodes once as JSON does, and copies. It
// is for a sink that puts the text into a frame of its own: a history then keeps no
// text, which is more than the rest of a message, and the collector has less to do.
func (m *Message) AppendJSON(dst []byte) []byte {
	if m.n.UserID == AllUsers || m.encoded.Load() {
		return append(dst, m.JSON()...)
	}
	return m.n.AppendJSON(dst)
}
