package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strings"
)

// profile begins the profiles or the execution trace of a job, if they are asked
// for, and returns what ends them.
func profile(j job) (stop func(), err error) {
	if *traceDir != "" {
		f, err := create(*traceDir, j, "trace")
		if err != nil {
			return nil, err
		}
		if err := trace.Start(f); err != nil {
			return nil, err
		}
		return func() { trace.Stop(); f.Close() }, nil
	}
	if *profileDir == "" {
		return func() {}, nil
	}
	create := func(kind string) (*os.File, error) { return create(*profileDir, j, kind+".prof") }
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

// create makes a file for one of a job's profiles.
func create(dir string, j job, kind string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%s-%d-%d-%d-%d-%d.%s", j.Section, strings.ReplaceAll(j.System, "/", "-"), j.Users, j.Gateways, j.Publishers, j.Rate, j.Round, kind)
	return os.Create(filepath.Join(dir, name))
}
