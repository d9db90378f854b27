package main

import (
	"context"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/examples/internal/browser"
	"github.com/qaexchange/notification/notificationtest"
)

// patience bounds what never comes.
const patience = browser.Patience

func TestFlock(t *testing.T) {
	gather := func(t *testing.T, total int) (*exchange, *flock) {
		cfg := options{flaky: 1}.gatewayConfig(nil)
		cfg.HistoryTotal = total
		x := inMemory(t, 2, notification.BrokerConfig{}, cfg)
		f, err := newFlock(x, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		return x, f
	}
	within := func(t *testing.T, wait func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// away takes the first one's network, until the Gateway has noticed.
	away := func(t *testing.T, x *exchange, f *flock) {
		t.Helper()
		f.birds[0].line.cut(time.Hour)
		within(t, func(ctx context.Context) error {
			return poll(ctx, func() bool { return f.live.Load() <= 1 && !connected(x, 0) })
		})
	}
	end := func(t *testing.T, x *exchange, f *flock) {
		t.Helper()
		within(t, f.home)
		within(t, func(ctx context.Context) error { return x.drain(ctx, nil) })
		within(t, f.close)
	}
	t.Run("who comes back in time finds everything, in order", func(t *testing.T) {
		x, f := gather(t, 1000)
		for range 3 {
			within(t, f.home)
			away(t, x, f)
			for range 100 {
				x.send(0, notification.AccountUpdate{})
				x.send(0, notification.RiskAlert{})
				x.send(everybody, notification.SystemNotice{})
			}
		}
		end(t, x, f)
		rows, mismatches := x.final(x.snapshot(), true, f.gone.Load())
		if whole, gone := f.whole.Load(), f.gone.Load(); len(mismatches) > 0 || whole != 3 || gone != 0 {
			t.Error(mismatches, whole, gone)
		}
		for _, r := range rows {
			if r.Lost > 0 {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("who was cut a moment ago is waited for", func(t *testing.T) {
		x, f := gather(t, 1000)
		within(t, f.home)
		f.birds[0].line.cut(0)
		within(t, f.home)
		if whole := f.whole.Load(); whole != 1 {
			t.Errorf("came back %d times", whole)
		}
		end(t, x, f)
	})
	t.Run("who comes back too late is told, and the table says what was lost", func(t *testing.T) {
		x, f := gather(t, 1)
		within(t, f.home)
		next := notificationtest.Connect(t, x.gateway(), x.members[1].id)
		away(t, x, f)
		for range 10 {
			x.send(0, notification.AccountUpdate{})
		}
		// Within a lane the order is kept: when the next one has arrived, the
		// Gateway has dealt with those before it.
		x.send(1, notification.AccountUpdate{})
		notificationtest.Require[notification.AccountUpdate](t, next, x.members[1].id, nil)
		end(t, x, f)
		rows, mismatches := x.final(x.snapshot(), true, f.gone.Load())
		if whole, gone := f.whole.Load(), f.gone.Load(); len(mismatches) > 0 || whole != 0 || gone != 1 {
			t.Error(mismatches, whole, gone)
		}
		if r := rows[notification.P2]; r.Lost == 0 || len(r.Reasons) == 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a line that was cut has no network until it is mended", func(t *testing.T) {
		var l line
		l.cut(time.Hour)
		if _, err := l.dial(t.Context(), "tcp", "127.0.0.1:1"); err != errNoNetwork {
			t.Error(err)
		}
		l.mend()
		if _, err := l.dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil || err == errNoNetwork {
			t.Error(err)
		}
	})
}

// connected reports whether a member has a session.
func connected(x *exchange, i int) bool {
	for range x.gateway().UserSessions(x.members[i].id) {
		return true
	}
	return false
}
