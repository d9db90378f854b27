package main

import (
	"fmt"
	"slices"
	"strings"
)

// encodingTables are those of section encodings, in their order.
var encodingTables = []func([]outcome) (table, bool){
	jsonTable("JSON, into a buffer", "encode into a buffer that is kept and fits", stepAppend),
	jsonTable("JSON, to new bytes", "MarshalJSON and the others' Marshal, which return a slice of their own", stepMarshal),
	jsonTable("JSON, decode", "UnmarshalJSON, and the others' Unmarshal into a struct whose payload is known before", stepUnmarshal),
	checksTable(checksEncode, "what becomes of values that JSON has no plain form for, found by trying",
		[]string{askMarkup, askUTF8, askNaN}),
	checksTable(checksDecode, "what becomes of a TradeExecuted that is not as it should be, found by trying",
		[]string{askSyntax, askSkipped, askRange, askUTF8, askSurrogate, askStrings}),
	binaryTable(messageTrade),
	binaryTable(messageAccount),
	checksTable(checksBinary, "what becomes of a TradeExecuted that is cut short, after each byte, and of one with a byte inverted, each in turn; of a string that is not UTF-8; found by trying, reading all of what is opened; no encoding has a checksum, so that not every inverted byte can be seen",
		[]string{askCut, askInverted, askUTF8, askStrings}),
}

const howToRead = "; the library's row is nanoseconds of CPU, each other the time over the library's in the same turn, median (min–max)"

// cost is one step of one encoding in all rounds and turns.
type cost struct {
	operation
	ratios []float64 // to the library's, turn by turn
}

// costs returns those of a step, for one message and class, in the order in
// which they were measured.
func costs(results []outcome, message, class, step string) (all []cost) {
	index := make(map[string]int)
	for _, o := range of(results, "encodings", nil) {
		var library []float64
		for _, op := range o.Ops {
			if op.Message != message || op.Class != class || op.Step != step {
				continue
			}
			if op.Encoding == libraryName {
				library = op.Nanos
			}
			i, known := index[op.Encoding]
			if !known {
				i = len(all)
				index[op.Encoding] = i
				all = append(all, cost{operation: op})
				all[i].Nanos = nil
			}
			for turn, nanos := range op.Nanos {
				all[i].Nanos = append(all[i].Nanos, nanos)
				all[i].ratios = append(all[i].ratios, nanos/library[turn])
			}
		}
	}
	return all
}

func (c cost) String() string {
	if c.Encoding == libraryName {
		_, ns, _ := spread(c.Nanos)
		return nanos(ns) + " ns"
	}
	low, middle, high := spread(c.ratios)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", middle, low, high)
}

func spread(values []float64) (low, middle, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[0], sorted[(len(sorted)-1)/2], sorted[len(sorted)-1]
}

// A row is a table's, before its cells are joined.
type row struct {
	encoding string
	cells    []string
	allocs   []string
}

// rowsOf has a row for each encoding and a cell for each of columns; all
// encodings take part in all of them.
func rowsOf(columns [][]cost) (rows []row) {
	for _, column := range columns {
		for i, c := range column {
			if i == len(rows) {
				rows = append(rows, row{encoding: c.Encoding})
			}
			rows[i].cells = append(rows[i].cells, c.String())
			rows[i].allocs = append(rows[i].allocs, fmt.Sprintf("%.0f", c.Allocs))
		}
	}
	return rows
}

func jsonTable(title, note, step string) func([]outcome) (table, bool) {
	return func(results []outcome) (t table, ok bool) {
		t = table{title: title, note: note + howToRead + "; allocations per message" + absentees(), head: []string{"library"}}
		var columns [][]cost
		for _, message := range []string{messageTrade, messageAccount} {
			for _, c := range classes {
				columns = append(columns, costs(results, message, c.name, step))
				t.head = append(t.head, message+", "+c.name)
			}
		}
		t.head = append(t.head, "allocs")
		for _, r := range rowsOf(columns) {
			allocs := r.allocs[0] + " / " + r.allocs[len(classes)] // of the one message and of the other
			t.add(append(append([]string{r.encoding}, r.cells...), allocs)...)
		}
		return t, len(t.rows) > 0
	}
}

func binaryTable(message string) func([]outcome) (table, bool) {
	steps := []string{stepEncode, stepOpen, stepNumber, stepWhole}
	return func(results []outcome) (t table, ok bool) {
		t = table{title: "Binary, " + message,
			note: "encode into a buffer that is kept and fits; open/decode is what must happen before a field is read, with every check the encoding has; then the reading of one number of the payload; and, from the bytes, the payload as a struct" + howToRead + "; allocations of the four",
			head: append(append([]string{"encoding", "bytes"}, steps...), "allocs")}
		var columns [][]cost
		for _, step := range steps {
			columns = append(columns, costs(results, message, classProducts, step))
		}
		for i, r := range rowsOf(columns) {
			t.add(append(append([]string{r.encoding, fmt.Sprintf("%.0f", columns[0][i].Bytes)}, r.cells...), strings.Join(r.allocs, " / "))...)
		}
		return t, len(t.rows) > 0
	}
}

func checksTable(title, note string, questions []string) func([]outcome) (table, bool) {
	return func(results []outcome) (t table, ok bool) {
		t = table{title: title, note: note, head: append([]string{"encoding"}, questions...)}
		for _, o := range of(results, "encodings", func(o outcome) bool { return o.Round == 0 }) {
			for _, f := range o.Findings {
				if f.Table != title {
					continue
				}
				if f.Question == questions[0] {
					t.add(f.Encoding)
				}
				last := len(t.rows) - 1
				t.rows[last] = append(t.rows[last], f.Answer)
			}
		}
		return t, len(t.rows) > 0
	}
}

func nanos(ns float64) string {
	if ns < 10 {
		return fmt.Sprintf("%.1f", ns)
	}
	return fmt.Sprintf("%.0f", ns)
}
