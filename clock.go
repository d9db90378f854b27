package notification

import "time"

// clockStart is the zero of now.
var clockStart = time.Now()

// now returns the monotonic time in nanoseconds since the start of the process:
// setting the wall clock moves nothing in this package.
func now() int64 { return int64(time.Since(clockStart)) }
