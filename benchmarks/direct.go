package main

import "github.com/qaexchange/notification"

// direct is the floor under every other system: the publisher encodes and calls
// the receiver. Nothing is queued, nobody is decoupled from anybody.
type direct struct {
	encode func(*notification.Notification) []byte
	users  map[string]int
	sink   sink
}

func newDirect(opt options) system { return &direct{encode: opt.encode} }

func (d *direct) start(users []string, sink sink) error {
	d.users, d.sink = indexOf(users), sink
	return nil
}

func (d *direct) publish(n *notification.Notification) error {
	d.sink(d.users[n.UserID], d.encode(n))
	return nil
}

func (d *direct) close() {}
