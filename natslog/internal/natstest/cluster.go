package natstest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// A Cluster is three NATS servers that replicate to each other. It is for the
// goroutine of the test.
type Cluster struct {
	Servers [3]*Server
	URL     string // of all three

	t testing.TB
}

// StartCluster starts three servers and returns when JetStream answers at each,
// which takes some seconds: an election waits that long.
func StartCluster(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	return startCluster(t, cfg, nil)
}

// StartApart is StartCluster with a network for each server, so that one can be
// cut off from the others. It skips the test where that is not allowed, and says
// why.
func StartApart(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	return startCluster(t, cfg, newBridge(t))
}

func startCluster(t testing.TB, cfg Config, b *bridge) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	var hosts, routes, urls []string
	var clients, peers []int
	for i := range c.Servers {
		host := "127.0.0.1"
		if b != nil {
			host = b.address(i)
		}
		hosts, clients, peers = append(hosts, host), append(clients, freePort(t)), append(peers, freePort(t))
		routes = append(routes, fmt.Sprintf("%q", fmt.Sprintf("nats://%s:%d", host, peers[i])))
	}
	for i := range c.Servers {
		listen := hosts[i]
		if b != nil {
			listen = "0.0.0.0" // its address is there a moment after it was started
		}
		more := fmt.Sprintf("cluster {\n name: test\n listen: \"%s:%d\"\n cluster_advertise: \"%s:%d\"\n routes: [%s]\n}\n",
			listen, peers[i], hosts[i], peers[i], strings.Join(routes, ", "))
		s := newServer(t, fmt.Sprintf("s%d", i), listen, clients[i], cfg, more)
		s.URL = fmt.Sprintf("nats://%s:%d", hosts[i], clients[i])
		if b != nil {
			s.space = &space{b, i}
		}
		c.Servers[i] = s
		urls = append(urls, s.URL)
	}
	c.URL = strings.Join(urls, ",")
	for _, s := range c.Servers {
		s.start()
	}
	for _, s := range c.Servers {
		s.ready()
	}
	return c
}

// Connect returns a connection to any of the servers that lasts until the end of
// the test.
func (c *Cluster) Connect(options ...nats.Option) *nats.Conn {
	c.t.Helper()
	return connect(c.t, c.URL, options)
}

// Leader waits until the stream has a leader that has all replicas with it, and
// returns it.
func (c *Cluster) Leader(nc *nats.Conn, stream string) *Server {
	c.t.Helper()
	var leader *Server
	Eventually(c.t, "a leader of "+stream, func() bool {
		leader = nil
		info := c.info(nc, stream)
		for _, s := range c.Servers {
			if s.Name == info.Cluster.Leader {
				leader = s
			}
		}
		for _, r := range info.Cluster.Replicas {
			s := c.server(r.Name)
			if s == nil { // a leader that was just started does not know all names
				return false
			}
			if s.Runs() && !s.frozen && (!r.Current || r.Offline) {
				return false
			}
		}
		return leader != nil && leader.Runs() && !leader.frozen
	})
	return leader
}

func (c *Cluster) server(name string) *Server {
	for _, s := range c.Servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// StepDown lets the stream have another leader, and returns it. Whoever stepped down
// may be elected again, and the request may meet nobody: then it is made once more.
func (c *Cluster) StepDown(nc *nats.Conn, stream string) *Server {
	c.t.Helper()
	old := c.Leader(nc, stream)
	var leader *Server
	Eventually(c.t, "another leader of "+stream, func() bool {
		_, _ = nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, 10*time.Second)
		leader = c.Leader(nc, stream)
		return leader != old
	})
	return leader
}

type streamInfo struct {
	Cluster struct {
		Leader   string `json:"leader"`
		Replicas []struct {
			Name    string `json:"name"`
			Current bool   `json:"current"`
			Offline bool   `json:"offline"`
		} `json:"replicas"`
	} `json:"cluster"`
}

// info returns what the stream's leader says of it, or nothing.
func (c *Cluster) info(nc *nats.Conn, stream string) (info streamInfo) {
	reply, err := nc.Request("$JS.API.STREAM.INFO."+stream, nil, 2*time.Second)
	if err != nil || json.Unmarshal(reply.Data, &info) != nil {
		return streamInfo{}
	}
	return info
}
