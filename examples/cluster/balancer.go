package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A balancer stands for the load balancer: it hands connections to the edges in
// turn, to the next one if that does not answer, and knows nothing of users.
type balancer struct {
	listener net.Listener
	backends []string
	next     atomic.Uint32
	running  sync.WaitGroup
}

func newBalancer(backends []string) (*balancer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &balancer{listener: l, backends: backends}
	b.running.Go(b.serve) // ends with close, which waits for it
	return b, nil
}

func (b *balancer) addr() string { return b.listener.Addr().String() }

func (b *balancer) serve() {
	for {
		client, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.running.Go(func() { b.connect(client) }) // ends with the connection, which close ends
	}
}

func (b *balancer) connect(client net.Conn) {
	defer client.Close()
	for range b.backends {
		addr := b.backends[int(b.next.Add(1))%len(b.backends)]
		edge, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			continue
		}
		defer edge.Close()
		go func() { // ends when either side has; the two copies end each other
			_, _ = io.Copy(edge, client)
			_ = edge.Close()
		}()
		_, _ = io.Copy(client, edge)
		return
	}
}

// close ends the listener. The connections end with their clients.
func (b *balancer) close() {
	_ = b.listener.Close()
	b.running.Wait()
}
