package main

import (
	"fmt"
	"io"
	"strings"
)

// A table is scenario × client.
type table struct {
	scenarios []*scenario
	clients   []*readyClient
	cells     map[string]string // by scenario and client
	passed    map[string]int    // by client
	played    map[string]int
}

func newTable(scenarios []*scenario, clients []*readyClient) *table {
	return &table{scenarios, clients, map[string]string{}, map[string]int{}, map[string]int{}}
}

func (t *table) put(o outcome) {
	cell := "ok"
	switch {
	case o.skipped != "":
		cell = "-"
	case !o.passed():
		cell = "FAILS"
	}
	if o.skipped == "" {
		t.played[o.client]++
	}
	if o.passed() {
		t.passed[o.client]++
	}
	t.cells[o.scenario.Name+"\x00"+o.client] = cell
}

func (t *table) print(out io.Writer) {
	const first = 32
	line := func(name string, cell func(c *readyClient) string) {
		var b strings.Builder
		fmt.Fprintf(&b, "%-*s", first, name)
		for _, c := range t.clients {
			fmt.Fprintf(&b, "  %-*s", max(6, len(c.name)), cell(c))
		}
		fmt.Fprintln(out, strings.TrimRight(b.String(), " "))
	}
	line("", func(c *readyClient) string { return c.name })
	for _, sc := range t.scenarios {
		line(sc.Name, func(c *readyClient) string { return t.cells[sc.Name+"\x00"+c.name] })
	}
	line("", func(c *readyClient) string { return fmt.Sprintf("%d/%d", t.passed[c.name], t.played[c.name]) })
}
