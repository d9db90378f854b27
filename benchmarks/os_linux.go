package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what this process has spent on all cores, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentMemory and peakMemory are in bytes.
func residentMemory() float64 { return status("VmRSS:") }
func peakMemory() float64     { return status("VmHWM:") }

func status(key string) (bytes float64) {
	for line := range lines("/proc/self/status") {
		if rest, ok := strings.CutPrefix(line, key); ok {
			fmt.Sscanf(rest, "%f kB", &bytes)
			return bytes * 1024
		}
	}
	return 0
}

func cpuModel() string {
	for line := range lines("/proc/cpuinfo") {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown CPU"
}

func loadAverage() string {
	for line := range lines("/proc/loadavg") {
		return strings.Join(strings.Fields(line)[:3], " ")
	}
	return "unknown"
}

func lines(file string) func(func(string) bool) {
	return func(yield func(string) bool) {
		f, err := os.Open(file)
		if err != nil {
			return
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if !yield(s.Text()) {
				return
			}
		}
	}
}

// newSleeper returns a sleep that wakes within some microseconds. Go's own
// timers may be 1 ms late in an idle process, as the poller waits in whole
// milliseconds; a timerfd is an event that the poller waits for, the way a
// request from a socket is.
func newSleeper() (sleep func(time.Duration), done func()) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return time.Sleep, func() {}
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	var expirations [8]byte
	return func(d time.Duration) {
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))}
		if unix.TimerfdSettime(fd, 0, &spec, nil) == nil {
			f.Read(expirations[:])
		}
	}, func() { f.Close() }
}
