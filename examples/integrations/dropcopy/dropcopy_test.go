package dropcopy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qaexchange/notification"
)

// record publishes ns through a Broker of their own into the copy at path.
func record(t *testing.T, path string, ns ...*notification.Notification) {
	t.Helper()
	broker, c := open(t, path)
	running := make(chan error, 1)
	go func() { running <- broker.Run(context.Background()) }() // ends with Shutdown, and is waited for
	for _, n := range ns {
		if err := broker.Publish(n); err != nil {
			t.Fatal(err)
		}
	}
	for handed := uint64(0); handed == 0; { // it runs: a Shutdown that comes before would discard
		<-time.After(time.Millisecond)
		for _, r := range broker.Stats().Receivers {
			handed += r.Handed
		}
	}
	if err := errors.Join(broker.Shutdown(t.Context()), <-running, c.Close()); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) (*notification.Broker, *Copy) {
	t.Helper()
	broker, err := notification.NewBroker(notification.BrokerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(broker, path)
	if err != nil {
		t.Fatal(err)
	}
	return broker, c
}

// read tells the IDs in a copy by lane.
func read(t *testing.T, path string) (ids [notification.NumPriorities][]string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for a, err := range Read(bufio.NewReader(file)) {
		if err != nil {
			t.Fatal(err)
		}
		n := a.Notification()
		ids[n.Priority] = append(ids[n.Priority], n.ID)
	}
	return ids
}

func named(id string, p notification.Payload) *notification.Notification {
	n := notification.New("alice", p, "MatchingEngine")
	n.ID = id
	return n
}

func TestCopy(t *testing.T) {
	t.Run("everything that was published is read back, within a lane in order", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "copy")
		var ns []*notification.Notification
		var want [notification.NumPriorities][]string
		for i := range 5000 {
			n := named(fmt.Sprint(i), []notification.Payload{
				notification.OrderFilled{OrderID: "o"}, notification.MarginCall{Message: "补足保证金"}, notification.AccountUpdate{Balance: float64(i)}, notification.SystemNotice{},
			}[i%4])
			ns = append(ns, n)
			want[n.Priority] = append(want[n.Priority], n.ID)
		}
		record(t, path, ns...)
		got := read(t, path)
		for p := range want {
			if !slices.Equal(got[p], want[p]) {
				t.Errorf("P%d: %d of %d, or another order", p, len(got[p]), len(want[p]))
			}
		}
	})
	t.Run("a copy that was cut anywhere goes on behind its last whole archive", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "copy")
		var whole []byte
		var ends []int
		for _, id := range []string{"first", "second"} {
			var err error
			if whole, err = named(id, notification.OrderFilled{OrderID: "o"}).AppendBinary(whole); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, len(whole))
		}
		for cut := range len(whole) + 1 {
			if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			_, c := open(t, path)
			c.messages <- notification.NewMessage(named("third", notification.OrderFilled{}))
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			want := []string{"first", "second", "third"}
			switch {
			case cut < ends[0]:
				want = want[2:]
			case cut < ends[1]:
				want = []string{"first", "third"}
			}
			if got := read(t, path)[notification.P1]; !slices.Equal(got, want) {
				t.Fatalf("cut at %d: %q", cut, got)
			}
		}
	})
	t.Run("a file that is no copy is left alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "copy")
		text := []byte("these are not the bytes that it is looking for")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		broker, err := notification.NewBroker(notification.BrokerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(broker, path); !errors.Is(err, notification.ErrCorrupt) {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%q, %v", got, err)
		}
		for _, err := range Read(bytes.NewReader(text)) {
			if !errors.Is(err, notification.ErrCorrupt) {
				t.Error(err)
			}
		}
	})
	t.Run("a reader that comes while it is written is told where it is cut", func(t *testing.T) {
		b, err := named("first", notification.OrderFilled{}).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var last error
		n := 0
		for _, last = range Read(bytes.NewReader(append(b, b[:20]...))) {
			n++
		}
		if n != 2 || last != io.ErrUnexpectedEOF {
			t.Error(n, last)
		}
	})
	t.Run("a disk that fails is an error, and the Broker goes on without it", func(t *testing.T) {
		broker, c := open(t, filepath.Join(t.TempDir(), "copy"))
		if err := c.file.Close(); err != nil { // every write fails from now on
			t.Fatal(err)
		}
		running := make(chan error, 1)
		go func() { running <- broker.Run(context.Background()) }() // ends with Shutdown, and is waited for
		if err := broker.Publish(named("first", notification.OrderFilled{})); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		if got := broker.Stats().Receivers; len(got) != 0 {
			t.Errorf("it is still subscribed: %+v", got)
		}
		if err := errors.Join(broker.Shutdown(t.Context()), <-running); err != nil {
			t.Error(err)
		}
		if err := c.Close(); !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
}
