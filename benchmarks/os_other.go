//go:build !linux

package main

import (
	"runtime"
	"time"
)

// Elsewhere the program runs and compares throughput, allocations and heap; CPU
// time and resident memory are not measured and latencies are as coarse as the
// timers.

func cpuTime() time.Duration  { return 0 }
func residentMemory() float64 { return 0 }
func peakMemory() float64     { return 0 }
func cpuModel() string        { return runtime.GOARCH }
func loadAverage() string     { return "unknown" }

func newSleeper() (sleep func(time.Duration), done func()) { return time.Sleep, func() {} }
