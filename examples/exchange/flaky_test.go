package main

import (
	"testing"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/notificationtest"
)

func TestFlock(t *testing.T) {
	gather := func(t *testing.T, total int) (*exchange, *flock) {
		cfg := options{flaky: 1}.gatewayConfig(nil)
		cfg.HistoryTotal = total
		x := inMemory(t, 2, notification.BrokerConfig{}, cfg)
		return x, newFlock(x, 1, 1)
	}
	home := func(f *flock) {
		for range f.wheel {
			f.comeBack()
		}
	}
	t.Run("who comes back in time finds everything, in order", func(t *testing.T) {
		x, f := gather(t, 1000)
		for range 3 {
			f.disconnect(x.members[0])
			f.disconnect(x.members[0]) // is away already
			for range 100 {
				x.publish(0, notification.AccountUpdate{})
				x.publish(0, notification.RiskAlert{})
				x.publish(everybody, notification.SystemNotice{})
			}
			home(f)
		}
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		rows, mismatches := x.final(x.snapshot(), false, f.gone)
		if len(mismatches) > 0 || f.whole != 3 || f.gone != 0 || f.err != nil {
			t.Error(mismatches, f.whole, f.gone, f.err)
		}
		for _, r := range rows {
			if r.Lost > 0 {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("who comes back too late is told, and the table says what was lost", func(t *testing.T) {
		x, f := gather(t, 1)
		next := notificationtest.Connect(t, x.gateway(), x.members[1].id)
		f.disconnect(x.members[0])
		for range 10 {
			x.publish(0, notification.AccountUpdate{})
		}
		// Within a lane the order is kept: when the next one has arrived, the
		// Gateway has dealt with those before it.
		x.publish(1, notification.AccountUpdate{})
		notificationtest.Require[notification.AccountUpdate](t, next, x.members[1].id, nil)
		home(f)
		if err := x.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		rows, mismatches := x.final(x.snapshot(), true, f.gone)
		if len(mismatches) > 0 || f.whole != 0 || f.gone != 1 || f.err != nil {
			t.Error(mismatches, f.whole, f.gone, f.err)
		}
		if r := rows[notification.P2]; r.Lost == 0 || len(r.Reasons) == 0 {
			t.Errorf("%+v", r)
		}
	})
}
