package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	notificationclient "github.com/qaexchange/notification/clients/go"
)

const (
	// goodbye is how long the way down may take.
	goodbye = 5 * time.Second

	// saveEvery is how often the cursor is kept at most. What was printed since is
	// printed again after a crash; on the way down it is kept once more.
	saveEvery = time.Second
)

// errEnough ends a batch of which only a part was to be printed.
var errEnough = errors.New("enough")

// watch prints what arrives until ctx ends or there is enough.
func (o options) watch(ctx context.Context, p *printer, t *teller) error {
	place, err := openPlace(o.cursorFile)
	if err != nil {
		return err
	}
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	client, err := notificationclient.New(notificationclient.Config{
		URL:         o.url,
		Header:      o.header,
		Channels:    o.filter.channels,
		Credentials: o.credentials,
		Cursor:      place.cursor,
		OnCursor:    place.move,
		OnNotifications: func(_ context.Context, batch notificationclient.Batch) error {
			now := time.Now()
			for i := range batch.Notifications {
				if p.left == 0 {
					return errEnough // the cursor stays before this batch, so nothing is left out next time
				}
				p.print(&batch.Notifications[i], now)
			}
			if p.left == 0 {
				enough()
			}
			// It is on its way before the cursor is kept.
			return errors.Join(p.flush(), place.err)
		},
		Snapshot: func(_ context.Context, reason notificationclient.SnapshotReason) error {
			if reason != notificationclient.SnapshotStart {
				t.tell(yellow, "some may be missing here: %s", reason)
			}
			return nil
		},
		OnState: func(s notificationclient.State) { t.tell(faint, "%s", s) },
	})
	if err != nil {
		return err
	}
	// It ends with ctx, and after it nobody waits for it: Run has returned.
	go func() {
		<-ctx.Done()
		down, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		_ = client.Shutdown(down)
	}()
	err = client.Run(context.Background())
	if errors.Is(err, errEnough) {
		err = nil
	}
	return errors.Join(err, place.save(client.Cursor()))
}

// credentials reads the token anew each time: somebody may have renewed it.
func (o options) credentials(context.Context, notificationclient.Why) (notificationclient.Credentials, error) {
	token := os.Getenv("NOTIFICATION_TOKEN")
	if o.tokenFile != "" {
		text, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return notificationclient.Credentials{}, err
		}
		token = string(text)
	}
	return notificationclient.Credentials{Token: strings.TrimSpace(token)}, nil
}

// A place is a file that holds a cursor; without a name it is nowhere.
type place struct {
	name   string
	cursor string
	saved  time.Time
	err    error // the first that came of saving
}

func openPlace(name string) (*place, error) {
	l := &place{name: name}
	if name == "" {
		return l, nil
	}
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l.cursor = strings.TrimSpace(string(text))
	return l, nil
}

// move is told each cursor, and saves one now and then.
func (l *place) move(cursor string) {
	if now := time.Now(); now.Sub(l.saved) >= saveEvery || cursor == "" {
		l.saved = now
		_ = l.save(cursor)
	}
}

// save replaces the file as a whole, so that it is never half of a cursor.
func (l *place) save(cursor string) error {
	if l.name == "" || l.err != nil {
		return l.err
	}
	f, err := os.CreateTemp(filepath.Dir(l.name), filepath.Base(l.name)+".*")
	if err == nil {
		_, err = fmt.Fprintln(f, cursor)
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), l.name)
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}
	l.err = err
	return err
}
