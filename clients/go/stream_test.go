package notificationclient

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStream(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *edge){
		"what arrives is handed over in order, and its cursor is kept afterwards": func(t *testing.T, e *edge) {
			s := e.run(Config{})
			v := e.next()
			require.Equal(t, "v=7", v.query.Encode(), "the query of the URL, and nothing that was not asked for")
			v.say(welcome("c0", false), live, batch("c1", "n1", "n2"), batch("c2", "n3"), heartbeat("c2"), heartbeat("c3"))
			require.Equal(t, []string{
				"connecting", "replaying", "snapshot start", "cursor c0", "live",
				"got n1", "got n2", "cursor c1", "got n3", "cursor c2", "cursor c3",
			}, s.told())
			require.Equal(t, "c3", s.Cursor())
			require.Equal(t, StatusLive, s.State().Status)
		},
		"a client with a cursor goes on behind it, without a snapshot": func(t *testing.T, e *edge) {
			s := e.run(Config{Cursor: "c7"})
			v := e.next()
			require.Equal(t, "c7", v.query.Get("cursor"))
			v.say(welcome("c7", true), batch("c8", "n1"), live, batch("c9", "n2"))
			require.Equal(t, []string{"connecting", "replaying", "got n1", "cursor c8", "live", "got n2", "cursor c9"}, s.told())
		},
		"what was missed is marked, and what is new is not": func(t *testing.T, e *edge) {
			var replayed []bool
			s := e.run(Config{Cursor: "c7", OnNotifications: func(_ context.Context, b Batch) error {
				replayed = append(replayed, b.Replayed)
				return nil
			}})
			e.next().say(welcome("c7", true), batch("c8", "n1"), live, batch("c9", "n2"))
			s.told()
			require.Equal(t, []bool{true, false}, replayed)
		},
		"a batch without notifications moves the cursor": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			v.say(batch("c1"))
			require.Equal(t, []string{"cursor c1"}, s.told())
		},
		"a server without a history has no cursors": func(t *testing.T, e *edge) {
			s := e.run(Config{Cursor: "old"})
			v := e.next()
			v.say(welcome("", false), `{"action":"reset","reason":"cursor_gone"}`, live, batch("", "n1"), heartbeat(""))
			require.Equal(t, []string{"connecting", "replaying", "snapshot cursor_gone", "cursor ", "live", "got n1"}, s.told())
			v.cut()
			v = e.next()
			require.False(t, v.query.Has("cursor"))
			v.say(welcome("", false), live)
			require.Equal(t, []string{"waiting network 1006 250ms", "connecting", "replaying", "snapshot gap", "live"}, s.told())
		},
		"the cursor is not kept before the handler has returned, and the batch in hand is finished before the next connection": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{OnNotifications: func(context.Context, Batch) error {
				<-release
				return nil
			}})
			v.say(batch("c1", "n1"), batch("c2", "n2"))
			v.cut()
			require.Equal(t, []string{"got n1"}, s.told())
			require.Equal(t, "c0", s.Cursor())
			<-time.After(time.Hour)
			require.Equal(t, 1, e.handshakes())
			close(release)
			v = e.next()
			require.Equal(t, "c2", v.query.Get("cursor"))
			require.Equal(t, []string{"cursor c1", "got n2", "cursor c2", "waiting network 1006 250ms", "connecting"}, s.told())
		},
		"a handler that fails stops the client with the cursor before its batch": func(t *testing.T, e *edge) {
			failure := errors.New("disk full")
			s, v := e.connected(Config{OnNotifications: func(_ context.Context, b Batch) error {
				if b.Cursor == "c2" {
					return failure
				}
				return nil
			}})
			v.say(batch("c1", "n1"), batch("c2", "n2"))
			err := s.stopped()
			require.ErrorIs(t, err, failure)
			require.Equal(t, &StopError{Reason: ReasonHandler, Cursor: "c1", Err: failure}, err)
			require.Equal(t, []string{"got n1", "cursor c1", "got n2", "stopped handler 0"}, s.told())
			require.Equal(t, 1000, v.left())
			e.nobody()
		},
		"frames, fields and answers that are not known are ignored": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			v.say(`{"action":"dance","cursor":7,"notifications":{}}`, `{"action":"live","tempo":[]}`, `{"action":"ok","id":77}`,
				`{"action":"error","code":"x","message":"y"}`, `{"action":"pong","id":"a"}`, `{}`, `{"cursor":"c1","notifications":[],"more":{}}`)
			require.Equal(t, []string{"cursor c1"}, s.told())
		},
		"a large frame is a frame": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			ids := make([]string, 9999)
			for i := range ids {
				ids[i] = "a rather long ID, so that the frame has some megabytes"
			}
			v.say(batch("c1", ids...))
			notes := s.told()
			require.Len(t, notes, len(ids)+1)
			require.Equal(t, "cursor c1", notes[len(ids)])
		},
		"a handler that takes its time is waited for, though the server sends far more than is held": func(t *testing.T, e *edge) {
			total := 0
			s, v := e.connected(Config{OnNotifications: func(_ context.Context, b Batch) error {
				<-time.After(time.Minute)
				total += len(b.Notifications)
				return nil
			}})
			ids := make([]string, 1000)
			for range 50 {
				v.say(batch("c1", ids...))
			}
			<-time.After(time.Hour)
			s.told()
			require.Equal(t, 50_000, total)
			require.Equal(t, StatusLive, s.State().Status)
			require.Equal(t, 1, e.handshakes())
		},
		"a handler that changes the channels gets its answer, though there is no room": func(t *testing.T, e *edge) {
			var s *subscriber
			first := true
			s, v := e.connected(Config{OnNotifications: func(ctx context.Context, _ Batch) error {
				if !first {
					return nil
				}
				first = false
				<-time.After(time.Minute) // until the reader waits for room
				return s.Subscribe(ctx, 1)
			}})
			ids := make([]string, 1000)
			var said string
			go func() {
				said = v.hear().Action
				for range 20 {
					v.say(batch("c2", ids...))
				}
				v.say(`{"action":"ok","id":1}`, batch("c3"))
			}()
			for range 11 {
				v.say(batch("c1", ids...))
			}
			<-time.After(time.Hour)
			s.told()
			require.Equal(t, "subscribe", said)
			require.Equal(t, "c3", s.Cursor())
			require.Equal(t, 1, e.handshakes())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
}
