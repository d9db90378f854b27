package natslog

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
)

// epochKey is the key of the only value in the bucket of a Log.
const epochKey = "epoch"

// afterDeletion is how long a bucket that was there is waited for before it is made
// anew. nats-server forgets a stream some milliseconds before it removes its folder,
// and takes that of one away that was created in between: nothing can be stored in it
// ever after.
const afterDeletion = time.Second

// maxLeft bounds how many values are remembered that were left behind.
const maxLeft = 64

// An epoch names a numbering of the log: the sequences of two epochs have nothing
// to do with each other.
type epoch struct {
	id      uint64               // a hash of the rest; not 0
	value   string               // of the bucket
	created map[string]time.Time // by stream
}

// epochs is where a Log decides which epoch it is, for all who read it here. An
// epoch is the value in a bucket and the times at which the streams were created.
// So it changes when somebody found that a stream has lost its tail, and writes
// another value; and when a stream, or the bucket, was made anew.
//
// The bucket may lose its own tail, together with the streams or alone, and then
// shows a value that was left behind. It names a numbering of which part is gone,
// so it is replaced, too: a value is never used twice. Who has just begun does not
// know that it is an old one; the numbers in his readers' hands then are told by
// the times of their blocks.
//
// It is safe for concurrent use.
type epochs struct {
	log  *Log
	turn chan struct{} // holds a token while somebody looks

	mu       sync.Mutex
	current  epoch         // guarded by mu; zero before the first look
	left     []string      // guarded by mu: values of earlier epochs, the last at the end
	changed  chan struct{} // guarded by mu: closed, and replaced, when current changes
	looked   time.Time     // guarded by mu: when the last look began that succeeded
	begun    uint64        // guarded by mu: how many looks there were, with the one that goes on
	finished uint64        // guarded by mu: the last that has ended
	err      error         // guarded by mu: how it ended
}

func newEpochs(l *Log) *epochs {
	return &epochs{log: l, turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

// now returns the epoch that was last seen, and a channel that is closed when
// another one is. It is zero before the first look.
func (e *epochs) now() (epoch, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current, e.changed
}

// look asks which epoch it is, through c. The answer is from a look that began after
// the call of look: what the caller does next meets this epoch, or one that changes
// from now on. Who comes while somebody looks waits for the next look, and all who
// wait share it, because after a reconnect all streams' readers come at once.
func (e *epochs) look(ctx context.Context, c *conn) (epoch, error) {
	e.mu.Lock()
	enough := e.begun + 1
	e.mu.Unlock()
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return epoch{}, ctx.Err()
	}

	e.mu.Lock()
	if e.finished >= enough {
		defer e.mu.Unlock()
		return e.current, e.err
	}
	e.begun++
	began, mine := time.Now(), e.begun
	current, left := e.current.value, slices.Clone(e.left)
	e.mu.Unlock()
	next, err := e.read(ctx, c, current, left)

	e.mu.Lock()
	defer e.mu.Unlock()
	if ctx.Err() == nil { // else it says nothing to others
		e.finished, e.err = mine, err
	}
	if err != nil {
		return epoch{}, err
	}
	e.looked = began
	if next.id != e.current.id {
		if e.current.id != 0 && e.current.value != next.value {
			e.left = append(e.left, e.current.value)
			e.left = e.left[max(0, len(e.left)-maxLeft):]
		}
		e.current = next
		close(e.changed)
		e.changed = make(chan struct{})
	}
	return next, nil
}

// glance is look for those who have no reason, and are content with a look of
// somebody else that is not older than that: it asks for each of the streams.
func (e *epochs) glance(ctx context.Context, c *conn, age time.Duration) (epoch, error) {
	e.mu.Lock()
	current, looked := e.current, e.looked
	e.mu.Unlock()
	if current.id != 0 && time.Since(looked) < age {
		return current, nil
	}
	return e.look(ctx, c)
}

// read reads the epoch from the servers, and sees to it that there is one.
func (e *epochs) read(ctx context.Context, c *conn, current string, left []string) (epoch, error) {
	value, err := e.value(ctx, c, current, left)
	if err != nil {
		return epoch{}, err
	}
	created, err := e.created(ctx, c)
	if err != nil {
		return epoch{}, err
	}
	return newEpoch(value, created), nil
}

func newEpoch(value string, created map[string]time.Time) epoch {
	h := fnv.New64a()
	h.Write([]byte(value))
	names := make([]string, 0, len(created))
	for name := range created {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h.Write([]byte(name))
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(created[name].UnixNano())))
	}
	return epoch{id: cmp.Or(h.Sum64(), 1), value: value, created: created}
}

// value returns the value of the bucket, from its leader. If there is none, or it is
// one of those that were left, it writes another. current is the last that was seen,
// or empty.
func (e *epochs) value(ctx context.Context, c *conn, current string, left []string) (string, error) {
	deleted := current != "" // if it is not there
	for range 10 {           // others write, too
		m, found, err := c.lastMessage(ctx, e.stream(), e.subject())
		if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeStreamNotFound {
			if deleted {
				deleted = false
				select {
				case <-time.After(afterDeletion):
				case <-ctx.Done():
					return "", ctx.Err()
				}
			} else if err := e.create(ctx, c); err != nil {
				return "", err
			}
			continue
		}
		if err != nil {
			return "", err
		}
		value := string(m.Data)
		if found && value != "" && !slices.Contains(left, value) { // a key that was deleted has no value
			return value, nil
		}
		if err := e.write(ctx, c, m.Seq); err != nil {
			return "", err
		}
	}
	return "", errors.New("natslog: the epoch changes all the time")
}

func (e *epochs) bucket() string  { return e.log.cfg.Name + "_epoch" }
func (e *epochs) stream() string  { return "KV_" + e.bucket() }
func (e *epochs) subject() string { return "$KV." + e.bucket() + "." + epochKey }

func (e *epochs) create(ctx context.Context, c *conn) error {
	_, err := c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket:      e.bucket(),
		Description: "notification: names the numbering of the log " + e.log.cfg.Name,
		History:     1,
		Storage:     jetstream.FileStorage,
		Replicas:    e.log.cfg.Replicas,
	})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) { // made by another process, and changed by an operator
		return fmt.Errorf("natslog: bucket %s: %w", e.bucket(), err)
	}
	return nil
}

// write writes a new value, unless somebody else has since the revision. Nil says
// that one of the two has happened.
func (e *epochs) write(ctx context.Context, c *conn, revision uint64) error {
	_, err := c.js.Publish(ctx, e.subject(), []byte(rand.Text()), jetstream.WithExpectLastSequencePerSubject(revision))
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return nil
	}
	if err != nil {
		return fmt.Errorf("natslog: writing a new epoch: %w", err)
	}
	return nil
}

// created returns when each of the streams was created.
func (e *epochs) created(ctx context.Context, c *conn) (map[string]time.Time, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	names := make(chan string)
	type answer struct {
		name string
		s    streamState
		err  error
	}
	answers := make(chan answer)
	var asking sync.WaitGroup
	for range 16 { // a cluster answers these one by one for each stream, but many streams at once
		asking.Go(func() { // ends when names is closed; waited for below
			for name := range names {
				s, err := c.state(ctx, name)
				answers <- answer{name, s, err}
			}
		})
	}
	go func() { // ends with the last answer, for which created waits
		for partition := range e.log.cfg.Partitions {
			for lane := range notification.Priority(notification.NumPriorities) {
				names <- e.log.stream(lane, partition)
			}
		}
		close(names)
		asking.Wait()
		close(answers)
	}()
	created := map[string]time.Time{}
	var first error
	for a := range answers {
		created[a.name] = a.s.created
		if a.err != nil && first == nil {
			first = a.err
			cancel() // the others need not be waited for
		}
	}
	return created, first
}

// goesOn reports whether it is known that the bucket still has the value of an epoch.
func (e *epochs) goesOn(ctx context.Context, c *conn, in epoch) bool {
	m, found, err := c.lastMessage(ctx, e.stream(), e.subject())
	return err == nil && found && string(m.Data) == in.value
}

// lost says that a stream lost its tail in an epoch: the value is replaced, unless
// that has happened already. The next look finds it.
func (e *epochs) lost(ctx context.Context, c *conn, in epoch) error {
	m, found, err := c.lastMessage(ctx, e.stream(), e.subject())
	if err != nil || found && string(m.Data) != in.value {
		return err
	}
	return e.write(ctx, c, m.Seq)
}

func (e epoch) String() string { return strconv.FormatUint(e.id, 16) }
