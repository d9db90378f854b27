package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// build compiles the program, which starts itself in other roles.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cluster")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: six processes, of which some are killed in eight seconds")
	}
	out, err := exec.Command(build(t), "-duration", "8s", "-every", "800ms", "-clients", "40", "-rate", "100", "-dir", t.TempDir()).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)
	count := func(what string) int {
		m := regexp.MustCompile(what + `\s+(\d+)`).FindSubmatch(out)
		require.NotNil(t, m, "%s in %s", what, out)
		n, err := strconv.Atoi(string(m[1]))
		require.NoError(t, err)
		return n
	}
	for _, none := range []string{"resets", "lost", "repeated", "out of order"} {
		require.Zero(t, count(none), none)
	}
	require.NotZero(t, count("delivered"))
	require.NotZero(t, count("NATS server killed")+count("publishers killed")+count("edges killed")+count("edges stopped"))
}

func TestJudge(t *testing.T) {
	l := ledger{"user0": {"0-1": true, "0-2": true}, "*": {"1-1": true}}
	judge := func(ids ...string) string {
		a := &audience{members: []*member{{user: "user0", ids: ids}}}
		v := a.judge(l)
		return fmt.Sprint(v.lost, v.repeated, v.strange)
	}
	for want, ids := range map[string][]string{
		"0 0 0": {"0-1", "1-1", "0-2"},
		"1 0 0": {"0-1", "1-1"},
		"0 1 0": {"0-1", "1-1", "0-2", "0-1"},
		"1 0 1": {"0-1", "1-1", "0-3"},
	} {
		require.Equal(t, want, judge(ids...))
	}
}
