package natslog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// How the lanes of a partition come from one epoch into the next, without a server:
// the test says which epoch it is, and calls begin as followers do.

const lanesOf = notification.NumPriorities

// becomes makes another epoch the one that was last seen.
func (f *fedPartition) becomes(id uint64) {
	e := f.part.log.epochs
	e.mu.Lock()
	defer e.mu.Unlock()
	e.current = epoch{id: id}
	close(e.changed)
	e.changed = make(chan struct{})
}

// halts lets a lane come to begin in an epoch. What begin returns arrives in the
// channel.
func (f *fedPartition) halts(ctx context.Context, p notification.Priority, id uint64) <-chan error {
	done := make(chan error, 1)
	go func() { // ends when all lanes have come, ctx ends or the epoch changes: the test waits for it
		_, err := f.part.begin(ctx, p, id, streamState{first: 1})
		done <- err
	}()
	return done
}

// waits returns when a lane waits in begin for the others.
func (f *fedPartition) waits(p notification.Priority, id uint64) {
	require.Eventually(f.t, func() bool {
		f.part.mu.Lock()
		defer f.part.mu.Unlock()
		return f.part.arrived[p] == id
	}, time.Minute, time.Millisecond)
}

// begins returns when the table is that of an epoch, and all lanes may go on.
func (f *fedPartition) begins(id uint64) {
	require.Eventually(f.t, func() bool {
		f.part.mu.Lock()
		defer f.part.mu.Unlock()
		return f.index.Epoch() == id
	}, time.Minute, time.Millisecond)
}

// An endsWhenAsked ends when somebody asks for Done, and does something before.
type endsWhenAsked struct {
	context.Context
	before func()
}

func (c endsWhenAsked) Done() <-chan struct{} {
	c.before()
	ended := make(chan struct{})
	close(ended)
	return ended
}

func (endsWhenAsked) Err() error { return context.Canceled }

// renew lets all lanes begin in another epoch.
func (f *fedPartition) renew(id uint64) {
	f.becomes(id)
	var done [lanesOf]<-chan error
	for p := range notification.Priority(lanesOf) {
		done[p] = f.halts(f.t.Context(), p, id)
	}
	for _, ch := range done {
		require.NoError(f.t, <-ch)
	}
	f.seq = numbers{}
}

func TestPartitionHalts(t *testing.T) {
	const P0, P1, P2, P3 = notification.P0, notification.P1, notification.P2, notification.P3
	t.Run("the lanes halt one by one, and nothing is cleared before the last has", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.becomes(8)
		var done [lanesOf]<-chan error
		for _, p := range []notification.Priority{P2, P0, P3} {
			done[p] = f.halts(t.Context(), p, 8)
			f.waits(p, 8)
		}
		f.feed(t.Context(), P1, note("a", "alice", P1)) // the lane that still reads
		require.EqualValues(t, 7, f.index.Epoch())
		require.True(t, f.index.warm.Load())
		for _, p := range []notification.Priority{P2, P0, P3} {
			select {
			case err := <-done[p]:
				t.Fatal("it has not waited", p, err)
			default:
			}
		}
		done[P1] = f.halts(t.Context(), P1, 8)
		for _, ch := range done {
			require.NoError(t, <-ch)
		}
		require.EqualValues(t, 8, f.index.Epoch())
		require.False(t, f.index.warm.Load())
		require.Equal(t, numbers{endOf(0), endOf(0), endOf(0), endOf(0)}, f.index.At())
	})
	t.Run("those who wait for an epoch that is over go to look again, and come with the next", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.warm()
		f.becomes(8)
		var done [lanesOf]<-chan error
		for _, p := range []notification.Priority{P0, P1, P2} {
			done[p] = f.halts(t.Context(), p, 8)
			f.waits(p, 8)
		}
		f.becomes(9)
		for _, p := range []notification.Priority{P0, P1, P2} {
			require.ErrorIs(t, <-done[p], errAgain)
		}
		require.ErrorIs(t, <-f.halts(t.Context(), P3, 8), errAgain, "one that comes with it when it is over")
		require.EqualValues(t, 7, f.index.Epoch())
		f.renew(9)
		require.EqualValues(t, 9, f.index.Epoch())
	})
	t.Run("one whose ctx ends is not waited with, and may come again", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.becomes(8)
		ctx, cancel := context.WithCancel(t.Context())
		gone := f.halts(ctx, P0, 8)
		var done [lanesOf]<-chan error
		for _, p := range []notification.Priority{P1, P2} {
			done[p] = f.halts(t.Context(), p, 8)
			f.waits(p, 8)
		}
		f.waits(P0, 8)
		cancel()
		require.ErrorIs(t, <-gone, context.Canceled)
		done[P3] = f.halts(t.Context(), P3, 8)
		f.waits(P3, 8)
		require.EqualValues(t, 7, f.index.Epoch(), "P0 may still be at work")
		done[P0] = f.halts(t.Context(), P0, 8)
		for _, ch := range done {
			require.NoError(t, <-ch)
		}
		require.EqualValues(t, 8, f.index.Epoch())
	})
	t.Run("one whose ctx ends just as the last comes begins with the others, who read already", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		for id := uint64(8); id < 28; id++ { // begin sees one or the other first, by chance
			f.becomes(id)
			var done [lanesOf]<-chan error
			for _, p := range []notification.Priority{P0, P1} {
				done[p] = f.halts(t.Context(), p, id)
				f.waits(p, id)
			}
			done[P2] = f.halts(endsWhenAsked{t.Context(), func() { done[P3] = f.halts(t.Context(), P3, id); f.begins(id) }}, P2, id)
			for _, p := range []notification.Priority{P2, P0, P1, P3} {
				require.NoError(t, <-done[p], p)
			}
		}
	})
	t.Run("a lane that waits for room in the inbox lets go; who was connected learns of the gap, and nobody gets anything of the epoch before", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{InboxCapacity: 2})
		f.warm()
		f.becomes(7)
		alice := f.connect("alice", notification.Cursor{})
		old := alice.Cursor()
		var done [lanesOf]<-chan error
		fed := make(chan struct{})
		go func() { // ends when the epoch does; waited for below
			defer close(fed)
			f.feed(t.Context(), P1, note("a", "alice", P1), note("b", "alice", P1), note("c", "alice", P1))
		}()
		require.Eventually(t, func() bool { return f.part.lanes[P1].counts.sent.Load() == 1 }, time.Minute, time.Millisecond)
		f.becomes(8)
		for _, p := range []notification.Priority{P0, P2, P3} {
			done[p] = f.halts(t.Context(), p, 8)
			f.waits(p, 8)
		}
		<-fed
		<-alice.Done()
		require.ErrorIs(t, alice.Err(), notification.ErrGap)
		require.EqualValues(t, 2, f.part.lanes[P1].counts.cut.Load())
		bob := f.connect("bob", notification.Cursor{})
		f.feed(t.Context(), P1, note("d", "bob", P1)) // which had arrived before the lane saw that the epoch is over
		<-bob.Done()
		require.ErrorIs(t, bob.Err(), notification.ErrGap)
		done[P1] = f.halts(t.Context(), P1, 8)
		for _, ch := range done {
			require.NoError(t, <-ch)
		}
		_, err := f.part.registerSession(notification.SessionConfig{ID: "x", UserID: "alice", After: old, Sink: notification.SinkFunc(nil)})
		require.ErrorIs(t, err, notification.ErrTryAgain, "it is cold")
		f.seq = numbers{}
		f.warm()
		f.run()
		_, err = f.part.registerSession(notification.SessionConfig{ID: "x", UserID: "alice", After: old, Sink: notification.SinkFunc(nil)})
		require.ErrorIs(t, err, notification.ErrCursorGone)
		f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P1, note("e", "alice", P1)) // whose number is that of a
		f.wants("alice", "e")
		require.Empty(t, f.sink["bob"])
	})
	t.Run("what stands in a full inbox is discarded and counted, and does not hold up the next epoch", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{InboxCapacity: 3})
		f.warm()
		f.connect("alice", notification.Cursor{})
		for p := range notification.Priority(lanesOf) {
			f.feed(t.Context(), p, note(fmt.Sprint("n", p), "alice", p), note(fmt.Sprint("o", p), "alice", p))
			require.Len(t, f.part.inbox[p], 3, "they stand behind where the first epoch begins")
		}
		f.renew(8)
		f.renew(9)
		f.warm()
		f.run()
		f.connect("alice", notification.Cursor{})
		f.feed(t.Context(), P2, note("new", "alice", P2))
		f.wants("alice", "new")
		for p := range notification.Priority(lanesOf) {
			l, c := f.part.gateway.Stats().Lanes[p], &f.part.lanes[p].counts
			require.Equal(t, c.sent.Load()+c.marks.Load(), l.Received+l.Invalid+l.Discarded, "%d: %+v", p, l)
			require.EqualValues(t, 1, l.Discarded)
		}
	})
}

// While a lane reads, nobody clears the table under it, whatever the epochs do, and
// whoever lets go in the middle; and when they have come to rest, all lanes are in
// the last one. It fails if a lane that was sent away is still counted as halted, or
// if one returns that the others have not waited for.
func TestPartitionHaltsAtRandom(t *testing.T) {
	f := newFedPartition(t, notification.GatewayConfig{})
	f.becomes(7)
	last := uint64(7)
	var over atomic.Bool
	var in [lanesOf]atomic.Uint64 // the epoch that each lane reads
	var lanes sync.WaitGroup
	var begun atomic.Int64
	stop, cancel := context.WithCancel(context.Background())
	for p := range notification.Priority(lanesOf) {
		r := rand.New(rand.NewPCG(uint64(p), 1))
		lanes.Go(func() { // ends with stop; waited for below
			for stop.Err() == nil {
				now, changed := f.part.log.epochs.now()
				ctx, end := stop, func() {}
				if !over.Load() && r.IntN(4) == 0 { // the connection breaks, say
					ctx, end = context.WithTimeout(stop, time.Duration(r.IntN(200))*time.Microsecond)
				}
				_, err := f.part.begin(ctx, p, now.id, streamState{first: 1})
				end()
				if err != nil {
					if !errors.Is(err, errAgain) && ctx.Err() == nil {
						t.Error(err)
					}
					continue
				}
				begun.Add(1)
				if got := f.index.Epoch(); got != now.id {
					t.Errorf("P%d begins epoch %d in a table of %d", p, now.id, got)
					return
				}
				in[p].Store(now.id)
				_ = f.part.take(stop, p, block{seq: 1, stored: time.Unix(1, 0)})
				if r.IntN(2) == 0 {
					time.Sleep(time.Duration(r.IntN(100)) * time.Microsecond) // it reads
				}
				if got := f.index.Epoch(); got != now.id {
					t.Errorf("P%d reads epoch %d, and the table was cleared for %d", p, now.id, got)
					return
				}
				select {
				case <-changed:
				case <-stop.Done():
				}
			}
		})
	}
	for began := time.Now(); time.Since(began) < time.Second && !t.Failed(); {
		last++
		f.becomes(last)
		for range rand.IntN(3) {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
	}
	over.Store(true)
	for p := range in {
		require.Eventually(t, func() bool { return t.Failed() || in[p].Load() == last }, time.Minute, time.Millisecond, "P%d", p)
	}
	cancel()
	lanes.Wait()
	require.Greater(t, begun.Load(), int64(2*lanesOf))
	t.Logf("%d epochs, %d times a lane began in one", last-7, begun.Load())
}

// A logHandler calls a function for each line of a log.
type logHandler struct {
	slog.Handler
	line func(text string)
}

func (h logHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h logHandler) Handle(_ context.Context, r slog.Record) error {
	h.line(r.Message)
	return nil
}

func TestPartitionGetsWarm(t *testing.T) {
	const P1 = notification.P1
	t.Run("a session that was let in just before the log began anew learns of the gap when it is warm", func(t *testing.T) {
		f := newFedPartition(t, notification.GatewayConfig{})
		f.run()
		s, err := f.part.gateway.RegisterSession(notification.SessionConfig{ID: "alice", UserID: "alice", Sink: notification.SinkFunc(nil)})
		require.NoError(t, err) // which is what registerSession does once it has seen that it was warm
		f.feed(t.Context(), P1, note("a", "alice", P1))
		f.warm()
		<-s.Done()
		require.ErrorIs(t, s.Err(), notification.ErrGap)
	})
	t.Run("a lane that has caught up feeds from the moment on in which sessions may begin", func(t *testing.T) {
		var f *fedPartition
		f = newFedPartition(t, notification.GatewayConfig{Logger: slog.New(logHandler{line: func(text string) {
			if f != nil && strings.HasPrefix(text, "gap") { // the last lane has caught up, and another reads on
				f.feed(t.Context(), P1, note("a", "bob", P1))
			}
		}})})
		f.warm()
		require.EqualValues(t, 1, f.part.lanes[P1].counts.strangers.Load())
		require.Zero(t, f.part.lanes[P1].counts.warming.Load())
	})
}
