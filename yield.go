package notification

import (
	"runtime"
	"time"
)

// A yielder lets the two loops that can keep a core busy, the dispatcher and a
// Gateway's reader, give it up from time to time: with every core taken, a P0
// would otherwise wait for a whole time slice of theirs, 10 ms.
//
// Whoever yields goes to the end of the scheduler's queue. Behind many busy
// pushers that is a long way, so a loop that had to wait for its core keeps it
// for a share of that time: it must not fall behind because others want much.
type yielder struct {
	every    int   // messages, at the least; a reader counts each session as well
	messages int   // since the last yield
	until    int64 // the core is kept until then
}

const (
	dispatchYield = 64
	// What a reader lets in has to last the pushers until it has a core again. With
	// 64 they ran out, went to sleep and left theirs idle: a fifth of two.
	readYield = 160
	// pushYield is how long a pusher keeps a core. With twice that the reader is
	// behind for longer, and less is done.
	pushYield = 25 * time.Microsecond

	keepShare = 16 // of the time that the last yield took, one in so many
)

// after is called after n messages.
func (y *yielder) after(n int) {
	if y.messages += n; y.messages < y.every {
		return
	}
	y.messages = 0
	before := now()
	if before < y.until {
		return
	}
	runtime.Gosched()
	at := now()
	y.until = at + (at-before)/keepShare
}

// hurry makes the next call of after yield, unless the core is kept.
func (y *yielder) hurry() { y.messages = y.every }
