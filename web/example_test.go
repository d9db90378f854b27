package web_test

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// A page gets a ticket with the cookie of its user, and connects with it: a browser
// can set no header on a WebSocket, and a URL is no place for what holds for long.
func Example() {
	tickets, err := web.NewTickets(web.TicketConfig{})
	if err != nil {
		log.Fatal(err)
	}
	issue := func(w http.ResponseWriter, r *http.Request) { // POST /tickets
		user, err := r.Cookie("user") // yours is signed
		if err != nil {
			http.Error(w, "sign in first", http.StatusUnauthorized)
			return
		}
		ticket, err := tickets.Issue(r.Context(), web.Identity{UserID: user.Value})
		if err != nil {
			http.Error(w, "", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, ticket)
	}
	authenticate := func(r *http.Request) (web.Identity, error) { // Config.Authenticate
		id, err := tickets.Redeem(r.Context(), web.TicketOf(r))
		if err == nil && id.UserID == "mallory" {
			err = web.ErrForbidden
		}
		return id, err
	}

	connect := func(user string) (url string) {
		page := httptest.NewRequest(http.MethodPost, "/tickets", nil)
		page.AddCookie(&http.Cookie{Name: "user", Value: user})
		answer := httptest.NewRecorder()
		issue(answer, page)
		return "/notifications?ticket=" + answer.Body.String()
	}
	url := connect("alice")
	id, err := authenticate(httptest.NewRequest(http.MethodGet, url, nil))
	fmt.Println(id.UserID, err)
	_, err = authenticate(httptest.NewRequest(http.MethodGet, url, nil))
	fmt.Println(errors.Is(err, web.ErrTicket), "it is good for once")
	_, err = authenticate(httptest.NewRequest(http.MethodGet, connect("mallory"), nil))
	fmt.Println(errors.Is(err, web.ErrForbidden))
	// Output:
	// alice <nil>
	// true it is good for once
	// true
}

// A transport of one's own closes its connection with what Sink.Close was told.
func ExampleCodeOf() {
	slow := fmt.Errorf("a write took 10 s: %w", notification.ErrSlowConsumer)
	fmt.Println(web.CodeOf(slow))
	fmt.Println(web.CodeOf(errors.New("disk full"))) // whatever it does not know
	// Output:
	// 4000
	// 1011
}
