package notificationclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCredentials(t *testing.T) {
	const expiring = `{"action":"expiring","in_ms":60000}`
	refreshing := func(cursor string) string {
		return fmt.Sprintf(`{"action":"welcome","cursor":%q,"resumed":false,"heartbeat_ms":604800000,"refresh":true}`, cursor)
	}
	// tokens returns t1, t2, …
	tokens := func() func(context.Context, Why) (Credentials, error) {
		n := 0
		return func(context.Context, Why) (Credentials, error) {
			n++
			return Credentials{Token: fmt.Sprint("t", n)}, nil
		}
	}
	for name, test := range map[string]func(*testing.T, *edge){
		"a ticket stands in the query, once, and never the one before": func(t *testing.T, e *edge) {
			n := 0
			s := e.run(Config{Credentials: func(context.Context, Why) (Credentials, error) {
				n++
				return Credentials{Ticket: fmt.Sprint("t", n)}, nil
			}})
			for i := range 3 {
				v := e.next()
				require.Equal(t, []string{fmt.Sprint("t", i+1)}, v.query["ticket"])
				require.Empty(t, v.header.Get("Authorization"))
				v.say(welcome("c0", i > 0))
				s.told()
				v.cut()
			}
			s.told()
		},
		"a token stands in the header, beside what the program adds there, and never in the query": func(t *testing.T, e *edge) {
			e.run(Config{Credentials: tokens(), Header: http.Header{"X-Desk": {"7"}}})
			v := e.next()
			require.Equal(t, "Bearer t1", v.header.Get("Authorization"))
			require.Equal(t, "7", v.header.Get("X-Desk"))
			require.Equal(t, "v=7", v.query.Encode())
		},
		"an error of the callback stops the client": func(t *testing.T, e *edge) {
			failure := errors.New("no key")
			s := e.run(Config{Cursor: "c7", Credentials: func(context.Context, Why) (Credentials, error) { return Credentials{}, failure }})
			err := s.stopped()
			require.ErrorIs(t, err, failure)
			require.ErrorIs(t, err, ErrCredentials)
			require.Equal(t, []string{"connecting", "credentials start", "stopped credentials 0"}, s.told())
			require.Zero(t, e.handshakes())
		},
		"a ticket and a token are one too many": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: func(context.Context, Why) (Credentials, error) { return Credentials{"a", "b"}, nil }})
			require.ErrorIs(t, s.stopped(), ErrCredentials)
		},
		"those that have expired are asked for anew": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			for i := range 3 {
				v := e.next()
				require.Equal(t, fmt.Sprint("Bearer t", i+1), v.header.Get("Authorization"))
				v.say(welcome("c0", i > 0))
				s.told()
				v.close(4401)
				notes := s.told()
				require.Regexp(t, "^waiting server 4401 ", notes[0])
			}
			s.told()
		},
		"the second refusal without a welcome in between stops": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			e.next().close(4401)
			v := e.next()
			require.Equal(t, []string{"connecting", "credentials start", "waiting server 4401 250ms", "connecting", "credentials refused"}, s.told())
			v.cut() // this is no welcome
			v = e.next()
			require.Equal(t, []string{"waiting network 1006 500ms", "connecting", "credentials refused"}, s.told())
			v.close(4401)
			require.ErrorIs(t, s.stopped(), ErrCredentials)
			require.Equal(t, []string{"stopped server 4401"}, s.told())
		},
		"HTTP status 401 counts as well": func(t *testing.T, e *edge) {
			e.status = func(*http.Request) int { return 401 }
			s := e.run(Config{Credentials: tokens()})
			err := s.stopped()
			require.ErrorIs(t, err, ErrCredentials)
			require.Equal(t, []string{"connecting", "credentials start", "waiting handshake 4401 250ms", "connecting", "credentials refused", "stopped handshake 4401"}, s.told())
		},
		"a welcome forgives the first refusal": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			e.next().close(4401)
			v := e.next()
			v.say(welcome("c0", false))
			s.told()
			v.close(4401)
			e.next()
		},
		"what is expiring is renewed over the connection, where the server takes that": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			v := e.next()
			v.say(refreshing("c0"), live)
			notes := s.told()
			v.say(expiring)
			c := v.hear()
			require.Equal(t, "authenticate", c.Action)
			require.Equal(t, "t2", c.Token)
			v.say(fmt.Sprintf(`{"action":"ok","id":%s,"channels":[],"expires_in_ms":900000}`, c.ID), batch("c1", "n1"))
			require.Equal(t, []string{"connecting", "credentials start", "replaying", "snapshot start", "cursor c0", "live", "credentials expiring", "got n1", "cursor c1"}, append(notes, s.told()...))
			require.Equal(t, 1, e.handshakes())
		},
		"a refusal there leaves the connection alone until the server closes it": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			v := e.next()
			v.say(refreshing("c0"), expiring)
			v.say(fmt.Sprintf(`{"action":"error","id":%s,"code":"unauthorized","message":"no"}`, v.hear().ID), batch("c1", "n1"))
			s.told()
			v.close(4401)
			v = e.next()
			require.Equal(t, "Bearer t3", v.header.Get("Authorization"))
			require.Equal(t, "c1", v.query.Get("cursor"))
			require.Equal(t, []string{"waiting server 4401 250ms", "connecting", "credentials refused"}, s.told())
		},
		"an answer that does not come is not waited for for ever": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			v := e.next()
			v.say(refreshing("c0"), live, expiring)
			require.Equal(t, "t2", v.hear().Token)
			began := time.Now()
			v.say(expiring)
			require.Equal(t, "t3", v.hear().Token)
			require.Equal(t, answerTimeout, time.Since(began))
			s.told()
			require.Equal(t, 1, e.handshakes())
		},
		"elsewhere the client reconnects with them, behind its cursor": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			v := e.next()
			v.say(welcome("c0", false), live)
			v.say(batch("c1", "n1"))
			s.told()
			v.say(expiring)
			require.Equal(t, 1000, v.left())
			v = e.next()
			require.Equal(t, "Bearer t2", v.header.Get("Authorization"))
			require.Equal(t, "c1", v.query.Get("cursor"))
			v.say(welcome("c1", true), live)
			require.Equal(t, []string{"credentials expiring", "waiting credentials 0 250ms", "connecting", "replaying", "live"}, s.told())
			v.cut()
			require.Equal(t, "Bearer t3", e.next().header.Get("Authorization"), "each is for one attempt")
		},
		"a new ticket needs a new connection, whatever the server takes": func(t *testing.T, e *edge) {
			n := 0
			e.run(Config{Credentials: func(context.Context, Why) (Credentials, error) {
				n++
				return Credentials{Ticket: fmt.Sprint("t", n)}, nil
			}})
			v := e.next()
			v.say(refreshing("c0"), expiring)
			require.Equal(t, 1000, v.left())
			require.Equal(t, "t2", e.next().query.Get("ticket"))
		},
		"an error of the callback then stops the client as well": func(t *testing.T, e *edge) {
			failure := errors.New("no key")
			s := e.run(Config{Credentials: func(_ context.Context, why Why) (Credentials, error) {
				if why == WhyExpiring {
					return Credentials{}, failure
				}
				return Credentials{Token: "t1"}, nil
			}})
			v := e.next()
			v.say(refreshing("c0"), live, batch("c1", "n1"))
			s.told()
			v.say(expiring)
			require.Equal(t, &StopError{Reason: ReasonCredentials, Cursor: "c1", Err: failure}, s.stopped())
			require.Equal(t, 1000, v.left())
		},
		"they are renewed while a handler runs": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.run(Config{Credentials: tokens(), OnNotifications: func(context.Context, Batch) error {
				<-release
				return nil
			}})
			v := e.next()
			v.say(refreshing("c0"), batch("c1", "n1"), expiring)
			require.Equal(t, "authenticate", v.hear().Action)
			close(release)
			s.told()
		},
		"those that live for an instant are not renewed in a loop": func(t *testing.T, e *edge) {
			s := e.run(Config{Credentials: tokens()})
			v := e.next()
			v.say(refreshing("c0"), live)
			began := time.Now()
			for range 10 {
				v.say(`{"action":"expiring","in_ms":200}`)
				v.say(fmt.Sprintf(`{"action":"ok","id":%s,"channels":[]}`, v.hear().ID))
			}
			require.Equal(t, 9*time.Second, time.Since(began))
			s.told()
			require.Equal(t, 1, e.handshakes())
		},
		"those that live for half a minute last for half of that, over however many connections": func(t *testing.T, e *edge) {
			const expiring = `{"action":"expiring","in_ms":30000}`
			s := e.run(Config{Credentials: tokens()})
			began := time.Now()
			for i := range 10 {
				v := e.next()
				require.Equal(t, fmt.Sprint("Bearer t", i+1), v.header.Get("Authorization"))
				v.say(welcome("c0", i > 0), live, expiring)
				v.left()
				require.Contains(t, s.told(), "waiting credentials 0 250ms", "it is no loss, however often")
			}
			require.Equal(t, 9*15*time.Second, time.Since(began)) // the wait in between is a part of it
		},
		"what came before they were said to be expiring is handled, snapshot and all": func(t *testing.T, e *edge) {
			release := make(chan struct{})
			s := e.run(Config{Credentials: tokens(), Snapshot: func(ctx context.Context, _ SnapshotReason) error {
				<-release
				return ctx.Err()
			}})
			v := e.next()
			v.say(welcome("c0", false), batch("c1", "n1"), live)
			synctest.Wait()
			v.say(expiring)
			synctest.Wait()
			v.say(batch("c2", "n2")) // comes again
			require.Equal(t, []string{"connecting", "credentials start", "replaying", "snapshot start", "credentials expiring"}, s.told())
			close(release)
			require.Equal(t, 1000, v.left())
			require.Equal(t, "c1", e.next().query.Get("cursor"))
			require.Equal(t, []string{"cursor c0", "got n1", "cursor c1", "live", "waiting credentials 0 250ms", "connecting"}, s.told())
		},
		"no error quotes a ticket, a token or a cursor": func(t *testing.T, e *edge) {
			down := func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") }
			s := e.subscribe(Config{Cursor: "secret", Credentials: func(context.Context, Why) (Credentials, error) { return Credentials{Ticket: "secret"}, nil }})
			s.cfg.HTTPClient = &http.Client{Transport: roundTrip(down)}
			s.start(t.Context())
			s.told()
			require.EqualError(t, s.State().Err, "no route")
			require.Equal(t, "waiting 0.2s: network, close code 1006: no route", s.State().String())
			_, err := New(Config{URL: "ws://user:secret@host:badport/", OnNotifications: func(context.Context, Batch) error { return nil }})
			require.ErrorContains(t, err, "Config.URL is no URL")
			require.NotContains(t, err.Error(), "secret")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newEdge(t)) })
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
