package ssegateway

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, which package syscall does not
// name: for how many milliseconds written data may stay unacknowledged.
const tcpUserTimeout = 18

// UserTimeout is for the Control of a net.ListenConfig: connections that it
// accepts end when what was written to them has not been acknowledged for d. So a
// peer that has vanished without a word is found after the next heartbeat and d,
// and not when the kernel's buffer is full, a quarter of an hour later perhaps.
// On other systems than Linux it does nothing. It sees the next hop only: behind
// a proxy, that is the proxy.
func UserTimeout(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		ctl := c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
		})
		if ctl != nil {
			return ctl
		}
		return err
	}
}
