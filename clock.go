package notification

import "time"

// clockStart is the zero of now.
var clockStart = time.Now()

// now returns the monotonic time in nanoseconds since the start of the process:
// setting the wall clock moves nothing in this package.
func now() int64 { return int64(time.Since(clockStart)) }

// never is later than any time. Zero is not: a clock may be negative.
const never = int64(1<<63 - 1)

// addTime is at + d, or never.
func addTime(at int64, d time.Duration) int64 {
	if d > 0 && at > never-int64(d) {
		return never
	}
	return at + int64(d)
}

// until is how long it is to at, or as long as a Duration can be.
func until(at int64) time.Duration {
	clock := now()
	if clock < 0 && at > never+clock { // the difference overflows
		return time.Duration(never)
	}
	return time.Duration(at - clock)
}
