package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// The clients under test are those beside this folder, or in another checkout:
//
//	go test . -folder ~/notification/clients
var folderFlag = flag.String("folder", "", "the `folder` of the clients, if they are not beside this one")

func TestMain(m *testing.M) {
	if os.Getenv(exchangeEnv) != "" {
		os.Exit(exchange()) // we are the server of the chaos test
	}
	flag.Parse()
	// Runs wait for the most part of their time.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(8 * runtime.NumCPU()))
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if n := goroutines(before); code == 0 && n > before {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n%s\n", before, n, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// goroutines returns how many there are, once they are at most want or have had a
// while to end.
func goroutines(want int) int {
	for give := time.Now().Add(time.Minute); runtime.NumGoroutine() > want && time.Now().Before(give); {
		<-time.After(time.Millisecond)
	}
	return runtime.NumGoroutine()
}
