package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
)

// profile begins the profiles of a job, if they are asked for, and returns what
// ends them.
func profile(j job) (stop func(), err error) {
	if *profileDir == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(*profileDir, 0o777); err != nil {
		return nil, err
	}
	create := func(kind string) (*os.File, error) {
		name := fmt.Sprintf("%s-%s-%d-%d-%d-%d-%d.%s.prof", j.Section, strings.ReplaceAll(j.System, "/", "-"), j.Users, j.Gateways, j.Publishers, j.Rate, j.Round, kind)
		return os.Create(filepath.Join(*profileDir, name))
	}
	runtime.SetMutexProfileFraction(10)
	runtime.SetBlockProfileRate(10_000)
	cpu, err := create("cpu")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		cpu.Close()
		for _, kind := range []string{"allocs", "mutex", "block"} {
			if f, err := create(kind); err == nil {
				pprof.Lookup(kind).WriteTo(f, 0)
				f.Close()
			}
		}
	}, nil
}
