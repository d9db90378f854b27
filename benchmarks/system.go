package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/qaexchange/notification"
)

// A system is one way of getting a notification to its user inside a process.
type system interface {
	// start makes a receiver for each user. Whoever receives calls sink with
	// the user's index and the JSON document, or bytes that contain it, at most
	// one call at a time per user.
	start(users []string, sink sink) error
	// publish hands n to the user that it names, the way a user of this system
	// would; it may block. errFull says that n was refused and is lost.
	publish(n *notification.Notification) error
	// close ends what start began. What has not arrived may be lost: the harness
	// has waited for it.
	close()
}

type sink func(user int, data []byte)

// A marshaler makes the JSON document of a notification. All make the same bytes.
type marshaler struct {
	name   string
	encode func(*notification.Notification) []byte
}

var (
	ownEncoder      = marshaler{"this library's", func(n *notification.Notification) []byte { return must(n.MarshalJSON()) }}
	standardEncoder = marshaler{"encoding/json", marshalStandard}
	bufferEncoder   = marshaler{"this library's, into a buffer", appendToBuffer} // of section buffer
)

// buffers hold documents until the receiver has seen them.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

const bufferSize = 1024 // no document is longer

func appendToBuffer(n *notification.Notification) []byte {
	return n.AppendJSON(buffers.Get().(*[bufferSize]byte)[:0])
}

// releaseBuffer takes back what appendToBuffer has made.
func releaseBuffer(data []byte) { buffers.Put((*[bufferSize]byte)(data[:bufferSize])) }

var errFull = errors.New("the receiver's queue is full")

// options are what only some systems can use.
type options struct {
	gateways int                                     // of the library, at least 1
	encode   func(*notification.Notification) []byte // of all but the library, which has its own
	text     func(*notification.Message) []byte      // the library's own
}

// A contender is a system that takes part, with an encoder.
type contender struct {
	name    string
	what    string
	encoder marshaler
	make    func(options) system
}

// peer says whether the library is compared with it; the floor is no peer.
func (c contender) peer() bool { return c.name != libraryName && !c.floor() }

func (c contender) floor() bool { return c.name == floorName || c.name == floorName+withStandard }

const (
	libraryName = "notification"
	floorName   = "direct"

	// withStandard ends the name of who encodes with encoding/json.
	withStandard = " (encoding/json)"
)

// contenders are in the order of the tables: first all with the same encoder,
// so that what is compared is how a message gets to its user; then some again
// with the encoder that one would take without this library.
var contenders = []contender{
	{libraryName, "this library: Broker, Gateway, a Session per user", ownEncoder, newLibrary},
	{"map+channel", "RWMutex, map, a buffered channel and a goroutine per user", ownEncoder, newChannels},
	{"hub", "the hub goroutine of the chat examples", ownEncoder, newHub},
	{"nats", "embedded nats-server, in-process connections, a subject per user", ownEncoder, newNATS},
	{"centrifuge", "embedded centrifuge, memory broker, a personal channel per user", ownEncoder, newCentrifuge},
	{"watermill", "watermill gochannel, a topic per user", ownEncoder, newWatermill},
	{floorName, "the floor: the receiver is called, no queue", ownEncoder, newDirect},
	{"map+channel" + withStandard, "the same with encoding/json", standardEncoder, newChannels},
	{"hub" + withStandard, "the same with encoding/json", standardEncoder, newHub},
	{floorName + withStandard, "the same with encoding/json", standardEncoder, newDirect},
}

func contenderNamed(name string) (contender, error) {
	for _, c := range contenders {
		if c.name == name {
			return c, nil
		}
	}
	return contender{}, fmt.Errorf("there is no system %q", name)
}

func userNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = "user-" + strconv.Itoa(i)
	}
	return names
}

func indexOf(users []string) map[string]int {
	index := make(map[string]int, len(users))
	for i, u := range users {
		index[u] = i
	}
	return index
}

// A document is what encoding/json makes the library's JSON of. It has tags and
// concrete payloads and no method, which is the quickest that encoding/json
// knows.
type document[P any] struct {
	MessageID   string `json:"message_id"`
	MessageType string `json:"message_type"`
	UserID      string `json:"user_id"`
	Priority    uint8  `json:"priority"`
	Timestamp   int64  `json:"timestamp"`
	Source      string `json:"source"`
	Payload     P      `json:"payload"`
}

// The payloads of the loads, with their type in front.
type (
	tradePayload struct {
		Type string `json:"type"`
		notification.TradeExecuted
	}
	accountPayload struct {
		Type string `json:"type"`
		notification.AccountUpdate
	}
	alertPayload struct {
		Type string `json:"type"`
		notification.RiskAlert
	}
	expiredPayload struct {
		Type string `json:"type"`
		notification.OrderExpired
	}
)

func marshalStandard(n *notification.Notification) []byte {
	switch t := n.Type().String(); p := n.Payload.(type) {
	case notification.TradeExecuted:
		return marshal(n, t, tradePayload{t, p})
	case notification.AccountUpdate:
		return marshal(n, t, accountPayload{t, p})
	case notification.RiskAlert:
		return marshal(n, t, alertPayload{t, p})
	case notification.OrderExpired:
		return marshal(n, t, expiredPayload{t, p})
	default:
		panic(fmt.Sprintf("no load sends a %T", p))
	}
}

func marshal[P any](n *notification.Notification, t string, p P) []byte {
	b, err := json.Marshal(&document[P]{n.ID, t, n.UserID, uint8(n.Priority), n.Timestamp, n.Source, p})
	if err != nil {
		panic(err) // only a NaN could, and no load sends one
	}
	return b
}
