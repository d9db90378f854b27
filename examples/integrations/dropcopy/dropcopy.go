// Package dropcopy keeps a copy of every notification in a file: archives, one
// behind the other.
package dropcopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/qaexchange/notification"
)

const (
	id = "drop-copy" // of the global subscriber

	// room is how many messages may wait while the disk is busy. One channel
	// takes all lanes, so when it is full a P0 waits as well: for StallTimeout
	// at most, after which the Broker drops for the copy, counts and logs that.
	room = 1 << 16

	// group is how many bytes are written and synced at once, or a little more.
	group = 1 << 20

	maxArchive = 2 << 20 // as ARCHIVE.md has it
)

// A Copy is a file that is being written. Open makes one.
type Copy struct {
	broker   *notification.Broker
	file     *os.File
	messages chan *notification.Message
	done     chan struct{} // closed when the file is written no more
	err      error         // why; set before done is closed
}

// Open begins a copy, or goes on with the one at path: an archive at its end that
// is not whole, because the machine went down, is cut off. It is to be called
// before the Broker runs, so that nothing is missed.
func Open(broker *notification.Broker, path string) (*Copy, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	c := &Copy{broker: broker, file: file, messages: make(chan *notification.Message, room), done: make(chan struct{})}
	if err := c.begin(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	go c.run() // ends with Close, which waits for it, or when it cannot write
	return c, nil
}

func (c *Copy) begin() error {
	var end int64
	for b, err := range archives(c.file) {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s at %d: %w", c.file.Name(), end, err)
		}
		end += int64(len(b))
	}
	if err := c.file.Truncate(end); err != nil {
		return err
	}
	if _, err := c.file.Seek(end, io.SeekStart); err != nil {
		return err
	}
	// The file's name is as lasting as its bytes only once the folder is synced.
	dir, err := os.Open(filepath.Dir(c.file.Name()))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return err
	}
	return c.broker.SubscribeGlobal(id, c.messages, notification.Wait)
}

// run writes until the channel is closed. If it cannot, it unsubscribes, so that
// the Broker does not wait for a copy that nobody makes.
func (c *Copy) run() {
	defer close(c.done)
	if c.err = c.write(); c.err != nil {
		c.err = errors.Join(c.err, c.broker.UnsubscribeGlobal(id))
	}
}

// write syncs what waits in one group, and takes more when that is on the disk:
// a slow disk makes the groups larger, an idle one makes them one message.
func (c *Copy) write() (err error) {
	var buf []byte
	for m := range c.messages {
		if buf, err = m.Notification().AppendBinary(buf[:0]); err != nil {
			return err
		}
		for range len(c.messages) { // they are there, and nobody else takes them
			if len(buf) >= group {
				break
			}
			m := <-c.messages
			if buf, err = m.Notification().AppendBinary(buf); err != nil {
				return err
			}
		}
		if _, err := c.file.Write(buf); err != nil {
			return err
		}
		if err := c.file.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// Done is closed when nothing more is written: after Close, or because it failed.
func (c *Copy) Done() <-chan struct{} { return c.done }

// Close ends the copy, and returns nil if all that the Broker handed over is on
// the disk. It is to be called once, after the Shutdown of the Broker.
func (c *Copy) Close() error {
	err := c.broker.UnsubscribeGlobal(id)
	if errors.Is(err, notification.ErrUnknownReceiver) {
		err = nil // run has done it
	}
	close(c.messages) // nobody sends any more
	<-c.done
	return errors.Join(err, c.err, c.file.Close())
}

// Read yields the notifications of a copy, within a lane in the order of
// publishing. Each is good until the next: Archive.Notification makes a copy.
// The last error is io.ErrUnexpectedEOF if the copy ends within an archive, as
// one does that is being written, or wraps notification.ErrCorrupt.
func Read(r io.Reader) iter.Seq2[notification.Archive, error] {
	return func(yield func(notification.Archive, error) bool) {
		for b, err := range archives(r) {
			var a notification.Archive
			if err == nil {
				a, err = notification.OpenArchive(b)
			}
			if !yield(a, err) || err != nil {
				return
			}
		}
	}
}

// archives yields the bytes of one archive after the other, good until the next,
// and stops at an error.
func archives(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var b []byte
		for {
			b = slices.Grow(b[:0], 8)[:8]
			if _, err := io.ReadFull(r, b); err != nil {
				if err != io.EOF {
					yield(nil, err)
				}
				return
			}
			size := binary.LittleEndian.Uint32(b[4:])
			if size < 8 || size > maxArchive {
				yield(nil, fmt.Errorf("%w: a size of %d bytes", notification.ErrCorrupt, size))
				return
			}
			b = slices.Grow(b, int(size)-8)[:size]
			if _, err := io.ReadFull(r, b[8:]); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				yield(nil, err)
				return
			}
			if !yield(b, nil) {
				return
			}
		}
	}
}
