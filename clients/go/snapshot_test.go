package notificationclient

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSnapshot(t *testing.T) {
	const reset = `{"action":"reset","reason":"cursor_gone"}`
	for name, test := range map[string]func(*testing.T, *edge){
		"nothing that follows is handed over before it has returned, and the state goes on to be replaying": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.run(Config{Snapshot: func(context.Context, SnapshotReason) error {
				<-release
				return nil
			}})
			e.next().say(welcome("c0", false), live, batch("c1", "n1"))
			require.Equal(t, []string{"connecting", "replaying", "snapshot start"}, s.told())
			require.Empty(t, s.Cursor())
			close(release)
			require.Equal(t, []string{"cursor c0", "live", "got n1", "cursor c1"}, s.told())
		},
		"a cursor that is gone leads to one": func(t *testing.T, e *edge) {
			s := e.run(Config{Cursor: "old"})
			v := e.next()
			v.say(welcome("c0", false), reset, live)
			require.Equal(t, []string{"connecting", "replaying", "snapshot cursor_gone", "cursor c0", "live"}, s.told())
			v.cut()
			v = e.next()
			v.say(welcome("d0", false), reset, live)
			require.Equal(t, []string{"waiting network 1006 250ms", "connecting", "replaying", "snapshot cursor_gone", "cursor d0", "live"}, s.told())
		},
		"so does a reset behind a welcome that says otherwise": func(t *testing.T, e *edge) {
			s := e.run(Config{Cursor: "old"})
			e.next().say(welcome("old", true), reset, live, batch("c1", "n1"))
			require.Equal(t, []string{"connecting", "replaying", "snapshot cursor_gone", "live", "got n1", "cursor c1"}, s.told())
		},
		"what was dropped leads to one before the batch that says so": func(t *testing.T, e *edge) {
			s, v := e.connected(Config{})
			v.say(`{"cursor":"c1","notifications":[],"dropped":3}`, batch("c2", "n1"))
			require.Equal(t, []string{"snapshot gap", "cursor c1", "got n1", "cursor c2"}, s.told())
		},
		"a first attempt that fails does not make it another reason": func(t *testing.T, e *edge) {
			s := e.run(Config{})
			e.next().cut()
			e.next().say(welcome("c0", false))
			require.Contains(t, s.told(), "snapshot start")
		},
		"a connection that is lost meanwhile ends its context, and the next welcome leads to another": func(t *testing.T, e *edge) {
			calls := 0
			var cause error
			s := e.run(Config{Snapshot: func(ctx context.Context, _ SnapshotReason) error {
				if calls++; calls > 1 {
					return nil
				}
				<-ctx.Done()
				cause = context.Cause(ctx)
				return ctx.Err()
			}})
			v := e.next()
			v.say(welcome("c0", false), live, batch("c1", "n1"))
			require.Equal(t, []string{"connecting", "replaying", "snapshot start"}, s.told())
			v.close(1001)
			v = e.next()
			require.Equal(t, []string{"waiting server 1001 250ms", "connecting"}, s.told())
			require.ErrorContains(t, cause, "server, close code 1001")
			require.False(t, v.query.Has("cursor"), "what came was not dealt with")
			v.say(welcome("d0", false), live, batch("d1", "n1"))
			require.Equal(t, []string{"replaying", "snapshot start", "cursor d0", "live", "got n1", "cursor d1"}, s.told())
		},
		"one that is still owed is loaded even if the server goes on where the client was": func(t *testing.T, e *edge) {
			calls := 0
			s := e.run(Config{Cursor: "c0", Snapshot: func(ctx context.Context, _ SnapshotReason) error {
				if calls++; calls > 1 {
					return nil
				}
				<-ctx.Done()
				return nil
			}})
			v := e.next()
			v.say(welcome("c0", true), live, `{"cursor":"c1","notifications":[],"dropped":1}`, batch("c2", "n2"))
			s.told()
			v.cut()
			v = e.next()
			require.Equal(t, "c0", v.query.Get("cursor"))
			v.say(welcome("c0", true), live, batch("c2", "n2"))
			require.Equal(t, []string{"waiting network 1006 250ms", "connecting", "replaying", "snapshot gap", "live", "got n2", "cursor c2"}, s.told())
		},
		"none is loaded for a connection that is lost already": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s, v := e.connected(Config{OnNotifications: func(context.Context, Batch) error {
				<-release
				return nil
			}})
			v.say(batch("c1", "n1"), `{"cursor":"c2","notifications":[],"dropped":1}`, batch("c3", "n3"))
			v.close(1001)
			s.told()
			close(release)
			v = e.next()
			require.Equal(t, "c1", v.query.Get("cursor"))
			v.say(welcome("c1", true), batch("c3", "n3"))
			require.Equal(t, []string{"cursor c1", "waiting server 1001 250ms", "connecting", "replaying", "snapshot gap", "got n3", "cursor c3"}, s.told())
		},
		"without a callback what came before a loss is handed over: there was nothing to load": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.subscribe(Config{})
			s.cfg.Snapshot = nil
			tell := s.cfg.OnState
			s.cfg.OnState = func(st State) {
				if tell(st); st.Status == StatusReplaying {
					<-release
				}
			}
			s.start(t.Context())
			v := e.next()
			v.say(welcome("c0", false), batch("c1", "n1"), live, dropped("c2", "n2"))
			synctest.Wait()
			v.cut()
			require.Equal(t, []string{"connecting", "replaying"}, s.told())
			close(release)
			v = e.next()
			require.Equal(t, "c2", v.query.Get("cursor"))
			require.Equal(t, []string{"cursor c0", "got n1", "cursor c1", "live", "got n2", "cursor c2", "waiting network 1006 250ms", "connecting"}, s.told())
		},
		"a gap is the reason for one, though there was no welcome before it": func(t *testing.T, e *edge) {
			s := e.run(Config{Cursor: "c7"})
			e.next().close(4100)
			e.next().say(welcome("d0", false))
			require.Equal(t, []string{"connecting", "cursor ", "waiting server 4100 250ms", "connecting", "replaying", "snapshot gap", "cursor d0"}, s.told())
		},
		"10,000 notifications are held meanwhile": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.run(Config{Snapshot: func(context.Context, SnapshotReason) error {
				<-release
				return nil
			}})
			v := e.next()
			v.say(welcome("c0", false), live)
			for range 10 {
				v.say(batch("c1", make([]string, 1000)...))
			}
			require.Len(t, s.told(), 3)
			close(release)
			require.Len(t, s.told(), 2+10_000+1)
		},
		"one more, and it is given up with the connection, and begun anew": func(t *testing.T, e *edge) {
			calls := 0
			s := e.run(Config{Snapshot: func(ctx context.Context, _ SnapshotReason) error {
				if calls++; calls > 1 {
					return nil
				}
				<-ctx.Done()
				return errors.New("of no account")
			}})
			v := e.next()
			v.say(welcome("c0", false), live)
			for range 10 {
				v.say(batch("c1", make([]string, 1000)...))
			}
			require.Len(t, s.told(), 3)
			v.say(batch("c1", "n1"))
			v = e.next()
			require.False(t, v.query.Has("cursor"))
			v.say(welcome("d0", false))
			require.Equal(t, []string{"waiting overflow 0 250ms", "connecting", "replaying", "snapshot start", "cursor d0"}, s.told())
		},
		"a batch of more than 10,000 is no overflow by itself": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.run(Config{Snapshot: func(context.Context, SnapshotReason) error {
				<-release
				return nil
			}})
			e.next().say(welcome("c0", false), batch("c1", make([]string, maxHeld+1)...))
			s.told()
			close(release)
			require.Len(t, s.told(), 1+maxHeld+1+1)
		},
		"an error of it stops the client": func(t *testing.T, e *edge) {
			failure := errors.New("no account service")
			s := e.run(Config{Cursor: "old", Snapshot: func(context.Context, SnapshotReason) error { return failure }})
			v := e.next()
			v.say(welcome("c0", false))
			require.Equal(t, &StopError{Reason: ReasonHandler, Cursor: "old", Err: failure}, s.stopped())
			require.Equal(t, 1000, v.left())
		},
		"the client reads on meanwhile: it answers pings, and notices silence": func(t *testing.T, e *edge) {
			s := e.run(Config{Snapshot: func(ctx context.Context, _ SnapshotReason) error {
				<-ctx.Done()
				return nil
			}})
			v := e.next()
			v.say(`{"action":"welcome","cursor":"c0","resumed":false,"heartbeat_ms":1000}`, live)
			s.told()
			require.NoError(t, v.ws.Ping(t.Context()))
			<-time.After(2501 * time.Millisecond)
			require.Equal(t, []string{"waiting watchdog 0 250ms"}, s.told())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
}
