package questions

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

// late is a Gateway of which the Log does not answer: its error has this text.
type late struct{}

func (late) RegisterSession(cfg notification.SessionConfig) (*notification.Session, error) {
	return nil, fmt.Errorf("%w: user %q: timeout", notification.ErrTryAgain, cfg.UserID)
}

// What docs/questions.md says of one line that names a user only at times.
func TestReasonNamesTheUser(t *testing.T) {
	var log bytes.Buffer
	handler, err := wsgateway.New(late{}, wsgateway.Config{
		Authenticate: func(*http.Request) (wsgateway.Identity, error) { return wsgateway.Identity{UserID: "alice"}, nil },
		Logger:       slog.New(slog.NewTextHandler(&log, nil)), // Info and above
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	if _, answer, err := websocket.Dial(t.Context(), server.URL, nil); err == nil || answer.StatusCode != http.StatusServiceUnavailable {
		t.Fatal(answer, err)
	}
	server.Close() // waits for the request
	if err := handler.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); !strings.Contains(got, "websockets refused with 503") || !strings.Contains(got, "alice") {
		t.Error(got)
	}
}
