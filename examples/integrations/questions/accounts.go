package questions

import (
	"context"
	"sync"

	"github.com/qaexchange/notification"
)

// ForEach makes the notification of one event of an account for each login that
// may see it. The Broker knows repeats by their ID alone, whoever they are for: so
// each has an ID of its own.
func ForEach(logins []string, id string, p notification.Payload, source string) []*notification.Notification {
	var ns []*notification.Notification
	for _, login := range logins {
		n := notification.New(login, p, source)
		n.ID = id + "/" + login
		ns = append(ns, n)
	}
	return ns
}

// A Desk gets what happens to the accounts that it watches. It is a
// notification.Receiver.
type Desk struct {
	id    string
	lanes [notification.NumPriorities]chan *notification.Message
	gap   chan struct{}
	told  sync.Once
}

func (d *Desk) ID() string { return d.id }

func (d *Desk) Inbox() (inbox notification.Inbox) {
	for p, lane := range d.lanes {
		inbox[p] = lane
	}
	return inbox
}

// Gap says that something was dropped: this Desk is over.
func (d *Desk) Gap() { d.told.Do(func() { close(d.gap) }) }

// Watch registers a Desk for these accounts, then loads the snapshot and shows
// what follows, until ctx ends or there is a gap: its error is
// notification.ErrGap then, and the caller calls it again. While load or show
// takes its time, room more messages of each lane may wait; beyond that the Desk
// holds up the Broker, for StallTimeout, and has a gap.
func Watch(ctx context.Context, b *notification.Broker, id string, accounts []string, room int, load func(), show func(*notification.Message)) error {
	d := &Desk{id: id, gap: make(chan struct{})}
	for p := range d.lanes {
		d.lanes[p] = make(chan *notification.Message, room)
	}
	if err := b.RegisterReceiver(d); err != nil {
		return err
	}
	defer b.Unregister(id)
	for _, account := range accounts {
		if err := b.Subscribe(account, id); err != nil {
			return err
		}
	}
	load() // behind the last Subscribe: what happens from now on arrives
	for {
		m, err := d.next(ctx)
		if err != nil {
			return err
		}
		show(m)
	}
}

// next returns what comes next, P0 first. Behind a gap there is nothing: the next
// snapshot has it.
func (d *Desk) next(ctx context.Context) (*notification.Message, error) {
	select {
	case <-d.gap:
		return nil, notification.ErrGap
	default:
	}
	for _, lane := range d.lanes {
		select {
		case m := <-lane:
			return m, nil
		default:
		}
	}
	select {
	case m := <-d.lanes[notification.P0]:
		return m, nil
	case m := <-d.lanes[notification.P1]:
		return m, nil
	case m := <-d.lanes[notification.P2]:
		return m, nil
	case m := <-d.lanes[notification.P3]:
		return m, nil
	case <-d.gap:
		return nil, notification.ErrGap
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Readdress makes a Message for a desk's own login of one for an account, to be
// sent to the inbox of a Gateway that has no Broker. The payloads of orders and
// trades do not name the account, so source does.
func Readdress(m *notification.Message, login string) *notification.Message {
	n := *m.Notification() // a copy: that one is shared
	n.UserID, n.Source = login, n.Source+" for "+n.UserID
	return notification.NewMessage(&n)
}
