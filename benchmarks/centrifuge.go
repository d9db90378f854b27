package main

import (
	"bytes"
	"context"

	"github.com/centrifugal/centrifuge"

	"github.com/qaexchange/notification"
)

// centrifugeNode is an embedded centrifuge with its memory broker and default
// configuration. Each user is a client on a unidirectional JSON transport, which
// is what its server-sent events and HTTP streaming are, subscribed by the
// server to a personal channel.
type centrifugeNode struct {
	encode func(*notification.Notification) []byte
	node   *centrifuge.Node
	closes []centrifuge.ClientCloseFunc
}

func newCentrifuge(opt options) system { return &centrifugeNode{encode: opt.encode} }

func personal(user string) string { return "user:" + user }

func (c *centrifugeNode) start(users []string, sink sink) error {
	var err error
	if c.node, err = centrifuge.New(centrifuge.Config{}); err != nil {
		return err
	}
	c.node.OnConnecting(func(_ context.Context, e centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		user := e.Name
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: user},
			Subscriptions: map[string]centrifuge.SubscribeOptions{personal(user): {}},
		}, nil
	})
	if err := c.node.Run(); err != nil {
		return err
	}
	for i, u := range users {
		client, closeClient, err := centrifuge.NewClient(context.Background(), c.node, &transport{user: i, sink: sink})
		if err != nil {
			return err
		}
		c.closes = append(c.closes, closeClient)
		if err := client.ConnectNoErrorToDisconnect(centrifuge.ConnectRequest{Name: u}); err != nil {
			return err
		}
	}
	return nil
}

func (c *centrifugeNode) publish(n *notification.Notification) error {
	_, err := c.node.Publish(personal(n.UserID), c.encode(n))
	return err
}

func (c *centrifugeNode) close() {
	for _, f := range c.closes {
		f()
	}
	c.node.Shutdown(context.Background())
}

// transport is a connection whose other end is in this process.
type transport struct {
	user int
	sink sink
}

var _ centrifuge.Transport = (*transport)(nil)

func (*transport) Name() string                                { return "in-process" }
func (*transport) AcceptProtocol() string                      { return "" }
func (*transport) Protocol() centrifuge.ProtocolType           { return centrifuge.ProtocolTypeJSON }
func (*transport) ProtocolVersion() centrifuge.ProtocolVersion { return centrifuge.ProtocolVersion2 }
func (*transport) Unidirectional() bool                        { return true }
func (*transport) Emulation() bool                             { return false }
func (*transport) DisabledPushFlags() uint64                   { return 0 }
func (*transport) PingPongConfig() centrifuge.PingPongConfig   { return centrifuge.PingPongConfig{} }
func (*transport) Close(centrifuge.Disconnect) error           { return nil }

// publication is how a push with a message begins; others connect and ping.
var publication = []byte(`{"channel":`)

func (t *transport) Write(frame []byte) error {
	if bytes.HasPrefix(frame, publication) {
		t.sink(t.user, frame)
	}
	return nil
}

func (t *transport) WriteMany(frames ...[]byte) error {
	for _, f := range frames {
		t.Write(f)
	}
	return nil
}
