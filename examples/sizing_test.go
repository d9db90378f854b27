package examples

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/wsgateway"
)

// planned is the configuration that docs/sizing.md works out.
func planned(authenticate func(*http.Request) (wsgateway.Identity, error)) error {
	broker, err := notification.NewBroker(notification.BrokerConfig{
		DedupSize:     1_500_000,
		QueueCapacity: [notification.NumPriorities]int{10_000, 150_000, 100_000, 50_000},
	})
	if err != nil {
		return err
	}
	gateway, err := notification.NewGateway("gateway-1", notification.GatewayConfig{
		MaxSessions:        120_000,
		MaxSessionsPerUser: 4,
		MaxPushers:         20_000,
		BatchSize:          32,
		OutboxMessages:     32,
		HistoryMessages:    32,
		HistoryTTL:         2 * time.Minute,
		HistoryTotal:       8_000_000,
	})
	if err != nil {
		return err
	}
	sockets, err := wsgateway.New(gateway, wsgateway.Config{
		Authenticate:   authenticate,
		MaxConnections: 120_000,
		WriteTimeout:   10 * time.Second,
	})
	if err != nil {
		return err
	}
	if sockets.Stats().Connections != 0 {
		return errors.New("there are connections before anybody came")
	}
	return broker.RegisterGateway(gateway)
}

func TestSizing(t *testing.T) {
	t.Run("the configuration of docs/sizing.md is one, and stands here", func(t *testing.T) {
		nobody := func(*http.Request) (wsgateway.Identity, error) { return wsgateway.Identity{}, errors.New("nobody") }
		if err := planned(nobody); err != nil {
			t.Error(err)
		}
		blocks := goBlocks(readFile(t, "../docs/sizing.md"))
		if len(blocks) != 1 || !isCutFrom(blocks[0], readFile(t, "sizing_test.go")) {
			t.Error("docs/sizing.md has another")
		}
	})
}
