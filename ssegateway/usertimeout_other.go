//go:build !linux

package ssegateway

import (
	"syscall"
	"time"
)

// UserTimeout is for the Control of a net.ListenConfig. On this system it does
// nothing; on Linux it finds peers that have vanished without a word.
func UserTimeout(time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return nil }
}
