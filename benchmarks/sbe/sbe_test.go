package sbe_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/benchmarks/sbe"
)

func update() *notification.Notification {
	return &notification.Notification{ID: "n", UserID: "user", Source: "s", Priority: notification.P2, Timestamp: 1,
		Payload: notification.AccountUpdate{UserID: "user", Balance: 1.5, RiskRatio: 0.25, Timestamp: 2}}
}

func encoded(t *testing.T, n *notification.Notification) []byte {
	t.Helper()
	b, err := sbe.Append(nil, n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAMessageBeginsWithTheHeaderOfTheSpecification(t *testing.T) {
	b := encoded(t, update())
	// blockLength 73, templateId 2, schemaId 1, version 0, then the timestamp.
	if want := []byte{73, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}; !slices.Equal(b[:16], want) {
		t.Errorf("it begins with %v, want %v", b[:16], want)
	}
}

func TestABlockOfALaterVersionIsSkipped(t *testing.T) {
	b := encoded(t, update())
	b = slices.Insert(b, 8+73, 7, 7, 7, 7)
	b[0] += 4
	m, err := sbe.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Notification(); *got != *update() {
		t.Errorf("got %+v", *got)
	}
}

func TestAStringThatIsTooLongIsRefused(t *testing.T) {
	n := update()
	n.Source = strings.Repeat("x", 1<<16)
	b, err := sbe.Append([]byte("before"), n)
	if !errors.Is(err, sbe.ErrLong) || string(b) != "before" {
		t.Errorf("got %q, %v", b, err)
	}
	n.Source = n.Source[1:]
	m, err := sbe.Open(encoded(t, n))
	if err != nil || m.Notification().Source != n.Source {
		t.Errorf("65,535 bytes: %v", err)
	}
}

func TestAnotherPayloadIsRefused(t *testing.T) {
	n := update()
	n.Payload = notification.SystemNotice{}
	if _, err := sbe.Append(nil, n); !errors.Is(err, sbe.ErrPayload) {
		t.Errorf("got %v", err)
	}
}
