package main

import (
	"runtime"
	"slices"
	"time"

	"github.com/qaexchange/notification"
)

// A contest is what one row of figures is made of: some codecs that do the same
// steps for the same messages.
type contest struct {
	format, message, class string
	steps                  []string
	codecs                 func() []codec // made when their turn comes, so that no heap holds them all
}

const (
	formatJSON   = "JSON"
	formatBinary = "binary"
)

// The steps.
const (
	// JSON.
	stepAppend    = "into a buffer" // that is kept and fits
	stepMarshal   = "to new bytes"
	stepUnmarshal = "decode"
	// Binary.
	stepEncode = "encode"        // into a buffer that is kept and fits
	stepOpen   = "open/decode"   // what must happen before a field may be read, checks included
	stepNumber = "one number"    // of the payload, after that
	stepWhole  = "whole payload" // from the bytes to the struct that the application works with
)

// A codec is one encoding of a sample.
type codec struct {
	encoding string
	bytes    float64 // a message, on average
	// loops has for each step that the encoding knows a loop of n operations
	// over the sample, again and again: so the loop stands beside the work, and
	// a step of a nanosecond is not hidden behind a call.
	loops map[string]func(n int)
	// encode returns n in each way that the encoding has; decode reads one of
	// them. They are for the tests and the checks.
	encode func(n *notification.Notification) ([][]byte, error)
	decode func([]byte) (*notification.Notification, error)
}

// contests are all of section encodings. What the numbers are is no matter to
// a binary encoding, which moves eight bytes.
func contests() (all []contest) {
	for _, message := range []string{messageTrade, messageAccount} {
		for _, c := range classes {
			s := newSample(message, c)
			all = append(all, contest{formatJSON, message, c.name, []string{stepAppend, stepMarshal, stepUnmarshal},
				func() []codec { return jsonCodecs(s) }})
			if c.name == classProducts {
				all = append(all, contest{formatBinary, message, c.name, []string{stepEncode, stepOpen, stepNumber, stepWhole},
					func() []codec { return binaryCodecs(s) }})
			}
		}
	}
	return all
}

// An operation is what one step of one codec took: nanoseconds of CPU, for each
// turn.
type operation struct {
	Format   string    `json:"format"`
	Message  string    `json:"message"`
	Class    string    `json:"class"`
	Encoding string    `json:"encoding"`
	Step     string    `json:"step"`
	Nanos    []float64 `json:"ns"`
	Allocs   float64   `json:"allocs"`
	Bytes    float64   `json:"bytes"`
}

// turnsEach is how often each codec has its turn within a process.
const turnsEach = 7

// encodings measures each step for some turns, of about so long, with those
// encodings that take part.
func encodings(turns int, each time.Duration, takesPart func(encoding string) bool) (ops []operation) {
	for _, c := range contests() {
		codecs := slices.DeleteFunc(c.codecs(), func(c codec) bool { return !takesPart(c.encoding) })
		for _, step := range c.steps {
			ops = append(ops, c.measure(codecs, step, turns, each)...)
		}
	}
	return ops
}

// measure gives the codecs turns: a machine that is busy with something else for
// a while is so for all of them, and the ratio of two in one turn hardly
// notices.
func (c contest) measure(codecs []codec, step string, turns int, each time.Duration) (ops []operation) {
	var loops []func(int)
	var times []int
	for _, codec := range codecs {
		loop := codec.loops[step]
		if loop == nil {
			continue
		}
		n, allocs := calibrate(loop, each)
		loops, times = append(loops, loop), append(times, n)
		ops = append(ops, operation{Format: c.format, Message: c.message, Class: c.class,
			Encoding: codec.encoding, Step: step, Allocs: allocs, Bytes: codec.bytes})
	}
	for turn := range turns {
		for i := range loops {
			k := (i + turn) % len(loops) // each follows each
			runtime.GC()                 // nobody pays for the garbage of the one before
			start := spent()
			loops[k](times[k])
			ops[k].Nanos = append(ops[k].Nanos, float64(spent()-start)/float64(times[k]))
		}
	}
	return ops
}

// calibrate finds how many operations take so long and counts allocations.
func calibrate(loop func(int), each time.Duration) (n int, allocs float64) {
	loop(distinct) // what is made once, by a first use, is made
	var before, after runtime.MemStats
	for n = distinct; ; n *= 2 {
		runtime.ReadMemStats(&before)
		start := spent()
		loop(n)
		took := spent() - start
		runtime.ReadMemStats(&after)
		if took >= each {
			return n, float64(after.Mallocs-before.Mallocs) / float64(n)
		}
	}
}

// spent is CPU of the whole process, so that a collector that works on another
// core is counted, and whoever else wants this one is not. Where that is not to
// be had it is time.
func spent() time.Duration {
	if cpu := cpuTime(); cpu != 0 {
		return cpu
	}
	return time.Duration(now())
}

// kept takes what loops of cheap steps find, which must not be optimized away.
var kept uint64

// meanLen is of what make returns for each message.
func meanLen(make func(i int) []byte) float64 {
	sum := 0
	for i := range distinct {
		sum += len(make(i))
	}
	return float64(sum) / distinct
}

// encodeAll makes one slab of all messages, and what of it each one is: so they
// lie side by side, as in a file or a socket's buffer, for every encoding.
func encodeAll(make func(i int) []byte) (all [][]byte) {
	var slab []byte
	ends := []int{0}
	for i := range distinct {
		slab = append(slab, make(i)...)
		ends = append(ends, len(slab))
	}
	for i := range distinct {
		all = append(all, slab[ends[i]:ends[i+1]:ends[i+1]])
	}
	return all
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
