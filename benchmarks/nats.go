package main

import (
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qaexchange/notification"
)

// natsCore is an embedded nats-server without JetStream. The services publish
// over one in-process connection, the process that holds the users' connections
// subscribes over another, a subject and a callback per user, as a WebSocket
// front end over NATS does; a connection per user would cost it a client of the
// server each.
type natsCore struct {
	encode   func(*notification.Notification) []byte
	server   *server.Server
	pub, sub *nats.Conn
}

func newNATS(opt options) system { return &natsCore{encode: opt.encode} }

func subject(user string) string { return "notify." + user }

func (c *natsCore) start(users []string, sink sink) error {
	var err error
	c.server, err = server.NewServer(&server.Options{DontListen: true, NoLog: true, NoSigs: true})
	if err != nil {
		return err
	}
	c.server.Start()
	if !c.server.ReadyForConnections(10 * time.Second) {
		return fmt.Errorf("nats-server is not ready")
	}
	if c.pub, err = nats.Connect("", nats.InProcessServer(c.server)); err != nil {
		return err
	}
	if c.sub, err = nats.Connect("", nats.InProcessServer(c.server)); err != nil {
		return err
	}
	for i, u := range users {
		if _, err := c.sub.Subscribe(subject(u), func(m *nats.Msg) { sink(i, m.Data) }); err != nil {
			return err
		}
	}
	return c.sub.Flush() // the server knows all subscriptions
}

func (c *natsCore) publish(n *notification.Notification) error {
	return c.pub.Publish(subject(n.UserID), c.encode(n))
}

func (c *natsCore) close() {
	c.pub.Close()
	c.sub.Close()
	c.server.Shutdown()
	c.server.WaitForShutdown()
}
