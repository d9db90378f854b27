// Package notification tells the users of an exchange what happened to their
// orders, accounts, positions and risk.
//
// A notification goes one way: a service calls [Broker.Publish]; the [Broker]
// refuses what it has seen before, queues the rest in four priority lanes and
// hands each to the gateways and receivers of its user; a [Gateway] finds the
// user's sessions, filters by channel and batches; a [Session] hands its
// batches to a [Sink], which is a WebSocket, a Go channel or a function.
//
//	publishers ──Publish──▶ Broker ──Inbox──▶ Gateway ──▶ Session ──Push──▶ Sink
//	             dedup, 4 lanes               user → sessions  4-lane outbox
//	                 └──Go channel──▶ global subscribers (storage, monitoring)
//
// The caller's duties, in the order in which they come up: create a Broker and
// a Gateway, give each Run a goroutine, register the Gateway, register a
// Session per connection and only then load the snapshot that the session
// builds on; give a notification that may be published twice an ID of its own;
// do not touch a notification after Publish; watch Stats; on the way out shut
// down the Broker first and the Gateway after it. The package example is all
// of that in one page.
//
// Packages wsgateway and ssegateway have the sinks for browsers, natslog is a log
// that several processes share, promstats shows Stats to Prometheus, and
// notificationtest tests a service that publishes.
//
// # Lifecycle
//
// New… starts nothing. Run blocks, owns every goroutine it starts and returns
// when all of them are gone. Shutdown refuses new work, delivers what was
// accepted and returns nil only if nothing was lost on the way. Ending Run's
// context stops at once instead, and counts what was left; so Run should not
// be given the context that a signal ends. A Shutdown that comes before Run
// discards what is queued: a program that may end right after its start waits
// for the first delivery. All of them may be called at any time, any number of
// times, from any goroutine.
//
// # Ordering and loss
//
// Within a lane the order of publishing is kept, per user and overall, up to
// the sink. Across lanes there is none: a P0 overtakes everything that waits,
// at every stage, and P1, P2 and P3 share what it leaves, so that none of them
// starves another.
//
// A Publish that returned nil was accepted exactly once. What is lost later is
// lost at a place with a counter in [BrokerStats] or [GatewayStats], and never
// silently for the client: a session with a hole ends, with [ErrGap],
// [ErrSlowConsumer] or the error of its sink, and the client loads a snapshot
// or resumes from a [Cursor]. (A session that asked for [SlowDropOldest] lives
// on, and counts.)
//
// # Backpressure
//
// A message waits for one of three reasons. It waits for company (MaxDelay):
// nothing follows from that. The Gateway is late, because no pusher has come for
// it: then its lane fills, back through the inbox and the lane of the Broker,
// until Publish says [ErrQueueFull], with nothing remembered, so that a retry is
// a first publish ([Broker.PublishWait] waits for room instead); other lanes go
// on, and no session ends for it. The sink is busy: that concerns its session,
// which ends with [ErrSlowConsumer] when more than OutboxMessages wait behind a
// Push that has lasted SlowAfter; before that its own messages may hold up their
// lane, for others by 50 ms in a second at the most.
//
// # Concurrency
//
// Everything exported may be used from many goroutines at once, from inside
// Push too (Shutdown aside, which waits for Push). Of all that a program calls
// only Run, Shutdown and [Broker.PublishWait] wait, and [Gateway.RegisterSession]
// where it has to ask a [Log]. No user code runs under a lock of this package.
//
// # Errors
//
// What calls return is listed at [ErrInvalid], for [errors.Is]; each says which.
// Why a session ends is listed at [ErrSessionClosed], or is what its sink returned:
// Sink.Close is told, [Session.Err] returns it, [GatewayStats] counts it.
//
// # When not to use it
//
// A Broker lives in one process: it keeps nothing on disk and talks to no other
// machine. Where several processes publish or serve, or what was accepted must
// survive a crash, package natslog takes its place, or a broker of your own behind
// a [Receiver]. For chat rooms with presence and thousands of dynamic topics use a
// server such as centrifugo.
package notification

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/google/uuid"
)

// AllUsers as a Notification's UserID addresses every session of every user.
// It is valid with payloads of ChannelSystem only.
const AllUsers = "*"

// maxIDLen bounds Notification.ID and UserID, and the IDs of sessions and
// receivers, in bytes: the dedup window and the indexes hold them.
const maxIDLen = 256

// maxText bounds Notification.Source and the payload's strings, in bytes
// together: lanes, outboxes and histories count messages, and what they can take
// of memory is their number times this.
const maxText = 1 << 20

// The errors of this package. Each method says which it returns; all are
// wrapped with what was wrong and are meant for errors.Is.
var (
	// ErrInvalid: an argument cannot be used; the text names the field.
	ErrInvalid = errors.New("notification: invalid")
	// ErrClosed: the Broker or Gateway is shutting down or has stopped.
	ErrClosed = errors.New("notification: closed")
	// ErrRunning: Run was called a second time.
	ErrRunning = errors.New("notification: already running")
	// ErrQueueFull: the lane has no room. Nothing was remembered: publish again later.
	ErrQueueFull = errors.New("notification: queue full")
	// ErrReceiverExists: the ID is taken among gateways and receivers, or among global subscribers.
	ErrReceiverExists = errors.New("notification: receiver exists")
	// ErrUnknownReceiver: no gateway, receiver or global subscriber has this ID.
	ErrUnknownReceiver = errors.New("notification: unknown receiver")
	// ErrSessionExists: a living session of the Gateway has this ID.
	ErrSessionExists = errors.New("notification: session exists")
	// ErrUnknownSession: no living session of the Gateway has this ID.
	ErrUnknownSession = errors.New("notification: unknown session")
	// ErrTooManySessions: the Gateway holds MaxSessions already.
	ErrTooManySessions = errors.New("notification: too many sessions")
	// ErrCursorGone: something behind the cursor is no longer there; load a
	// snapshot and register without a cursor.
	ErrCursorGone = errors.New("notification: cursor gone")
	// ErrTryAgain: the Gateway's Log did not answer in time, or not yet; the cursor
	// may still be good: register again later, here or elsewhere.
	ErrTryAgain = errors.New("notification: try again")
	// ErrCorrupt: the bytes are not an archive, or not a whole one.
	ErrCorrupt = errors.New("notification: corrupt archive")
)

// Why a session ended, beside the errors of its own sink.
var (
	// ErrSessionClosed: by Session.Close or Gateway.UnregisterSession.
	ErrSessionClosed = errors.New("notification: session closed")
	// ErrSessionExpired: nothing was heard of it for its timeout.
	ErrSessionExpired = errors.New("notification: session expired")
	// ErrSessionReplaced: a newer session of the user took its place.
	ErrSessionReplaced = errors.New("notification: session replaced")
	// ErrSlowConsumer: its sink did not keep up, or what was still to be replayed
	// to it has left the history.
	ErrSlowConsumer = errors.New("notification: slow consumer")
	// ErrGap: messages on their way to this session may have been lost.
	ErrGap = errors.New("notification: gap")
	// ErrSinkPanic: Push panicked or ended its goroutine.
	ErrSinkPanic = errors.New("notification: sink panic")
	// ErrGatewayClosed: the Gateway shut down or was stopped.
	ErrGatewayClosed = errors.New("notification: gateway closed")
)

// A Priority is a lane. P0 overtakes the others everywhere; they share.
type Priority uint8

// The priorities. The targets are from Publish to the start of Push.
const (
	P0 Priority = iota // risk and rejections: at once, target < 1 ms
	P1                 // executions and order states: target < 5 ms
	P2                 // balances and positions: target < 100 ms
	P3                 // announcements: target < 1 s

	NumPriorities = 4
)

// String returns "P0" to "P3".
func (p Priority) String() string {
	if p >= NumPriorities {
		return fmt.Sprintf("Priority(%d)", uint8(p))
	}
	return [NumPriorities]string{"P0", "P1", "P2", "P3"}[p]
}

// A Channel is what a session subscribes to. The zero Channel is none.
type Channel uint8

// The channels.
const (
	ChannelTrade    Channel = iota + 1 // orders and executions
	ChannelAccount                     // balances
	ChannelPosition                    // positions and their profit
	ChannelRisk                        // alerts, margin calls, limits
	ChannelSystem                      // announcements, trading sessions, halts

	numChannels = 6
)

var channelNames = [numChannels]string{"", "trade", "account", "position", "risk", "system"}

func (c Channel) valid() bool { return c > 0 && c < numChannels }

// String returns the wire name, as ParseChannel reads it.
func (c Channel) String() string {
	if !c.valid() {
		return fmt.Sprintf("Channel(%d)", uint8(c))
	}
	return channelNames[c]
}

// ParseChannel returns the Channel with this wire name, or ErrInvalid.
func ParseChannel(s string) (Channel, error) {
	for c := ChannelTrade; c < numChannels; c++ {
		if channelNames[c] == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("%w: channel %q is unknown", ErrInvalid, clip(s))
}

// MarshalText returns the wire name, or ErrInvalid for a value that has none.
func (c Channel) MarshalText() ([]byte, error) {
	if !c.valid() {
		return nil, fmt.Errorf("%w: channel %d is unknown", ErrInvalid, uint8(c))
	}
	return []byte(channelNames[c]), nil
}

// UnmarshalText is ParseChannel.
func (c *Channel) UnmarshalText(b []byte) error {
	v, err := ParseChannel(string(b))
	if err == nil {
		*c = v
	}
	return err
}

// A Type says what happened, and thereby which struct the payload is. The zero
// Type is invalid.
type Type uint8

// The types, in the order of the archive's codes: append only.
const (
	TypeOrderAccepted Type = iota + 1
	TypeOrderRejected
	TypeOrderPartiallyFilled
	TypeOrderFilled
	TypeOrderCanceled
	TypeOrderExpired
	TypeTradeExecuted
	TypeTradeCanceled
	TypeAccountOpen
	TypeAccountUpdate
	TypePositionUpdate
	TypePositionProfit
	TypeRiskAlert
	TypeMarginCall
	TypePositionLimit
	TypeSystemNotice
	TypeTradingSessionStart
	TypeTradingSessionEnd
	TypeMarketHalt

	numTypes
)

func (t Type) valid() bool { return t > 0 && t < numTypes }

// String returns the wire name in snake case, as ParseType reads it.
func (t Type) String() string {
	if !t.valid() {
		return fmt.Sprintf("Type(%d)", uint8(t))
	}
	return catalog[t].name
}

// ParseType returns the Type with this wire name, or ErrInvalid.
func ParseType(s string) (Type, error) {
	for t := Type(1); t < numTypes; t++ {
		if catalog[t].name == s {
			return t, nil
		}
	}
	return 0, fmt.Errorf("%w: type %q is unknown", ErrInvalid, clip(s))
}

// MarshalText returns the wire name, or ErrInvalid for a value that has none.
func (t Type) MarshalText() ([]byte, error) {
	if !t.valid() {
		return nil, fmt.Errorf("%w: type %d is unknown", ErrInvalid, uint8(t))
	}
	return []byte(catalog[t].name), nil
}

// UnmarshalText is ParseType.
func (t *Type) UnmarshalText(b []byte) error {
	v, err := ParseType(string(b))
	if err == nil {
		*t = v
	}
	return err
}

// DefaultPriority returns the priority that New gives; P3 for an invalid Type.
func (t Type) DefaultPriority() Priority {
	if !t.valid() {
		return P3
	}
	return catalog[t].priority
}

// Channel returns the channel that sessions subscribe to for it; zero for an
// invalid Type.
func (t Type) Channel() Channel {
	if !t.valid() {
		return 0
	}
	return catalog[t].channel
}

// A Notification is one event for one user, or for AllUsers.
type Notification struct {
	// ID is unique and the key of deduplication. A producer that may publish
	// the same event twice derives it from the event, "trade-"+tradeID say:
	// that makes the retry idempotent. At most 256 bytes.
	ID string
	// UserID is the recipient, at most 256 bytes, or AllUsers.
	UserID string
	// Priority is the lane.
	Priority Priority
	// Payload is one of the 19 payload structs, as a value. Its strings and
	// Source have at most 1 MiB together.
	Payload Payload
	// Timestamp is when it happened, in Unix nanoseconds.
	Timestamp int64
	// Source names the service that says so: "MatchingEngine", "RiskControl".
	Source string
}

// New returns a Notification of now with a fresh UUID as its ID and the
// default priority of its payload's type. It checks nothing: Publish does. The ID's
// bytes lie in the Notification; whoever keeps an ID for much longer keeps a
// strings.Clone of it.
func New(userID string, payload Payload, source string) *Notification {
	x := new(withID)
	x.setID()
	x.UserID = userID
	x.Priority = typeOf(payload).DefaultPriority()
	x.Payload = payload
	x.Timestamp = time.Now().UnixNano()
	x.Source = source
	return &x.Notification
}

// A withID is a Notification and the bytes of its ID, in one allocation.
type withID struct {
	Notification
	id [36]byte
}

// setID sets a random UUID, version 4. It must be unique, not secret, so it
// comes from the runtime's ChaCha8 generator, seeded by the operating system,
// at a tenth of what reading crypto/rand for every notification costs.
func (x *withID) setID() {
	var u uuid.UUID
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		u[i], u[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	u[6] = u[6]&0x0f | 0x40    // version 4
	u[8] = u[8]&0x3f | 0x80    // the variant of RFC 9562
	text, _ := u.MarshalText() // never fails, and is inlined: text is on the stack
	copy(x.id[:], text)
	x.ID = stringView(x.id[:]) // nobody has x.id, and it is not written to again
}

// Type returns the payload's type; zero if the payload is none of the 19
// structs.
func (n *Notification) Type() Type { return typeOf(n.Payload) }

// Validate reports whether Publish would take n: an error wraps ErrInvalid and
// names the field. A NaN or an infinite float in the payload is valid.
func (n *Notification) Validate() error {
	_, err := n.check()
	return err
}

// check is Validate and tells the type it found on the way.
func (n *Notification) check() (Type, error) {
	t, _, err := n.measure()
	return t, err
}

// measure is check and tells how many bytes Source and the payload's strings
// have together.
func (n *Notification) measure() (t Type, text uint64, err error) {
	if n == nil {
		return 0, 0, fmt.Errorf("%w: Notification is nil", ErrInvalid)
	}
	if err := checkID("ID", n.ID); err != nil {
		return 0, 0, err
	}
	if err := checkID("UserID", n.UserID); err != nil {
		return 0, 0, err
	}
	if n.Priority >= NumPriorities {
		return 0, 0, fmt.Errorf("%w: Priority %d is over P3", ErrInvalid, uint8(n.Priority))
	}
	if n.Payload == nil {
		return 0, 0, fmt.Errorf("%w: Payload is nil", ErrInvalid)
	}
	t = typeOf(n.Payload)
	if t == 0 {
		return 0, 0, fmt.Errorf("%w: Payload %T is none of the payload structs", ErrInvalid, n.Payload)
	}
	if n.UserID == AllUsers && catalog[t].channel != ChannelSystem {
		return 0, 0, fmt.Errorf("%w: UserID is AllUsers with a Payload of channel %s, not system", ErrInvalid, catalog[t].channel)
	}
	text = uint64(len(n.Source)) + layouts[t].textLen(dataOf(n.Payload))
	if text > maxText {
		field, length := n.longest()
		return 0, 0, fmt.Errorf("%w: %s has %d bytes, and Source and the payload's strings have %d together, over %d", ErrInvalid, field, length, text, maxText)
	}
	return t, text, nil
}

// longest returns the name and the length of the longest string among Source and
// those of the payload, which must be one of the payload structs.
func (n *Notification) longest() (field string, length int) {
	field, length = "Source", len(n.Source)
	for f, v := range reflect.ValueOf(n.Payload).Fields() {
		if v.Kind() == reflect.String && v.Len() > length {
			field, length = "Payload."+f.Name, v.Len()
		}
	}
	return field, length
}

// checkID wraps ErrInvalid, naming field, for an ID that is empty or too long.
func checkID(field, id string) error {
	if id == "" {
		return fmt.Errorf("%w: %s is empty", ErrInvalid, field)
	}
	if len(id) > maxIDLen {
		return fmt.Errorf("%w: %s has %d bytes, over %d", ErrInvalid, field, len(id), maxIDLen)
	}
	return nil
}

// checkUser is checkID for somebody who can have a session or a route.
func checkUser(field, id string) error {
	if id == AllUsers {
		return fmt.Errorf("%w: %s is AllUsers", ErrInvalid, field)
	}
	return checkID(field, id)
}

// clip shortens what somebody else sent for the text of an error.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
