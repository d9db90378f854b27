package questions

import (
	"context"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
	"github.com/qaexchange/notification/web"
	"github.com/qaexchange/notification/wsgateway"
)

// A door is a server that Bar guards.
type door struct {
	*notificationtest.Pipeline
	barred  Barred
	tickets *web.Tickets
	url     string
}

func open(t *testing.T) *door {
	t.Helper()
	d := &door{Pipeline: notificationtest.NewPipeline(t, notificationtest.Config{})}
	var err error
	if d.tickets, err = web.NewTickets(web.TicketConfig{TTL: patience}); err != nil {
		t.Fatal(err)
	}
	handler, err := wsgateway.New(&Bar{Sessions: d.Gateway, Barred: &d.barred}, wsgateway.Config{Authenticate: Authenticate(d.tickets, &d.barred)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(func() { // before the server, and before the Gateway
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = handler.Shutdown(ctx) // there are clients here that do not read
	})
	d.url = server.URL
	return d
}

func (d *door) ticket(t *testing.T, user string) string {
	t.Helper()
	ticket, err := d.tickets.Issue(t.Context(), web.Identity{UserID: user})
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func (d *door) dial(t *testing.T, ticket string) *websocket.Conn {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), d.url+"?ticket="+ticket, &websocket.DialOptions{Subprotocols: []string{"notification.batch.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	return ws
}

// code reads until the server closes, and returns why.
func code(t *testing.T, ws *websocket.Conn) web.Code {
	t.Helper()
	for {
		if _, _, err := ws.Read(t.Context()); err != nil {
			return web.Code(websocket.CloseStatus(err))
		}
	}
}

// hear reads the first frame.
func hear(t *testing.T, ws *websocket.Conn, want string) {
	t.Helper()
	if _, text, err := ws.Read(t.Context()); err != nil || !strings.Contains(string(text), want) {
		t.Fatalf("%s, %v", text, err)
	}
}

func TestKick(t *testing.T) {
	t.Run("every connection of the user ends, and none begins", func(t *testing.T) {
		d := open(t)
		two := []*websocket.Conn{d.dial(t, d.ticket(t, "alice")), d.dial(t, d.ticket(t, "alice"))}
		bob := d.dial(t, d.ticket(t, "bob"))
		for _, ws := range append(two, bob) {
			hear(t, ws, "welcome")
		}
		before := d.ticket(t, "alice")
		d.barred.Kick("alice")
		for _, ws := range two {
			if got := code(t, ws); got != web.CodeNormal {
				t.Error(got)
			}
		}
		if got := code(t, d.dial(t, before)); got != web.CodeForbidden {
			t.Errorf("a ticket from before: %s", got)
		}
		if err := d.Broker.Publish(notification.New("bob", notification.SystemNotice{Title: "still here"}, "")); err != nil {
			t.Fatal(err)
		}
		for heard := false; !heard; {
			_, text, err := bob.Read(t.Context())
			if err != nil {
				t.Fatal("bob: ", err)
			}
			heard = strings.Contains(string(text), "still here")
		}
		d.barred.Readmit("alice")
		hear(t, d.dial(t, d.ticket(t, "alice")), "welcome")
	})
	t.Run("whoever registers meanwhile does not stay", func(t *testing.T) {
		p := notificationtest.NewPipeline(t, notificationtest.Config{})
		var barred Barred
		bar := &Bar{Sessions: p.Gateway, Barred: &barred}
		var joining sync.WaitGroup
		var mu sync.Mutex
		var sessions []*notification.Session
		for i := range 4 {
			joining.Go(func() {
				for j := range 250 {
					s, err := bar.RegisterSession(notification.SessionConfig{
						ID: strconv.Itoa(i) + "/" + strconv.Itoa(j), UserID: "alice", Sink: notificationtest.NewRecorder(t),
					})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					sessions = append(sessions, s)
					mu.Unlock()
				}
			})
		}
		barred.Kick("alice")
		joining.Wait()
		for _, s := range sessions {
			if s.Err() == nil {
				t.Fatal(s.ID(), " stayed")
			}
			<-s.Done()
		}
		barred.mu.Lock()
		defer barred.mu.Unlock()
		if len(barred.living) != 0 {
			t.Error(barred.living)
		}
	})
}

// What docs/questions.md says of Push, Cursor and Touch as proofs.
func TestNoProof(t *testing.T) {
	d := open(t)
	ws := d.dial(t, d.ticket(t, "alice")) // and it never reads
	if err := d.Broker.Publish(notification.New("alice", notification.MarginCall{UserID: "alice", RequiredMargin: 1e6}, "RiskControl")); err != nil {
		t.Fatal(err)
	}
	taken := func() uint64 { return d.Gateway.Stats().Lanes[notification.P0].Taken }
	for late := time.Now().Add(patience); taken() == 0; <-time.After(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("Push did not return, though the kernel had room")
		}
	}
	_ = ws.CloseNow() // nobody has seen it
	if d.Gateway.Stats().Lanes[notification.P0].Taken != 1 {
		t.Error("it was taken back")
	}
}

func TestNothingOfTheApplications(t *testing.T) {
	d := open(t)
	ws := d.dial(t, d.ticket(t, "alice"))
	hear(t, ws, "welcome")
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(`{"action":"received","message_id":"margin-call-alice-1"}`)); err != nil {
		t.Fatal(err)
	}
	for {
		_, text, err := ws.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), `"code":"unknown_action"`) {
			return
		}
	}
}
