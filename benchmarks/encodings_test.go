package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A comparison of encodings that carry different things is none.
func TestEveryEncodingCarriesTheSameValues(t *testing.T) {
	for _, c := range contests() {
		s := newSample(c.message, classes[slices.IndexFunc(classes, func(k class) bool { return k.name == c.class })])
		for _, codec := range c.codecs() {
			t.Run(strings.Join([]string{c.format, c.message, c.class, codec.encoding}, "/"), func(t *testing.T) {
				for i, want := range s.all {
					encoded, err := codec.encode(want)
					if err != nil {
						t.Fatalf("message %d: %v", i, err)
					}
					for _, data := range encoded {
						if document := want.AppendJSON(nil); c.format == formatJSON && !bytes.Equal(data, document) {
							t.Fatalf("message %d is\n%s\nand in the library's words\n%s", i, data, document)
						}
						got, err := codec.decode(data)
						if err != nil {
							t.Fatalf("message %d: %v", i, err)
						}
						if *got != *want {
							t.Fatalf("message %d is\n%+v\nof\n%+v", i, *got, *want)
						}
					}
				}
				for _, step := range c.steps {
					loop := codec.loops[step]
					if loop == nil {
						t.Fatalf("there is no step %q", step)
					}
					loop(distinct + 1)
				}
			})
		}
	}
}

// The numbers that a sample promises are those that it has.
func TestClassesAreWhatTheyAreCalled(t *testing.T) {
	long := make(map[string]int)
	for _, c := range classes {
		for _, n := range newSample(messageTrade, c).all {
			var d document[plainTrade]
			if err := jsonLibraries()[0].unmarshal(n.AppendJSON(nil), &d); err != nil {
				t.Fatal(err)
			}
			for _, f := range []float64{d.Payload.Price, d.Payload.Volume, d.Payload.Commission} {
				if digits(f) >= 16 {
					long[c.name]++
				}
			}
		}
	}
	if n := long["round"]; n != 0 {
		t.Errorf("%d round numbers have 16 digits and more", n)
	}
	if n := long[classProducts]; n == 0 || n == 3*distinct {
		t.Errorf("%d of %d products have 16 digits and more, want some", n, 3*distinct)
	}
	if n := long["16–17 digits"]; n != 3*distinct {
		t.Errorf("%d of %d numbers have 16 digits and more", n, 3*distinct)
	}
}

func TestNumberLoopsReadTheNumber(t *testing.T) {
	for _, message := range []string{messageTrade, messageAccount} {
		var want uint64
		for _, codec := range binaryCodecs(newSample(message, classes[0])) {
			kept = 0
			codec.loops[stepNumber](distinct)
			if want == 0 {
				want = kept
			}
			if kept != want || kept == 0 {
				t.Errorf("%s: %s reads other numbers than the library", message, codec.encoding)
			}
		}
	}
}

// What the documentation of the library says of its checks is what the tables
// say, and the tables can tell who has none: FlatBuffers.
func TestFindings(t *testing.T) {
	answers := make(map[[3]string]string)
	for _, f := range findings() {
		t.Logf("%s, %s, %s: %s", f.Table, f.Encoding, f.Question, f.Answer)
		answers[[3]string{f.Table, f.Encoding, f.Question}] = f.Answer
	}
	for _, want := range []finding{
		{checksEncode, libraryName, askMarkup, "escaped"},
		{checksEncode, libraryName, askUTF8, "replaced"},
		{checksEncode, libraryName, askNaN, "null"},
		{checksEncode, "encoding/json", askMarkup, "escaped"},
		{checksEncode, "encoding/json", askNaN, refused},
		{checksDecode, libraryName, askSyntax, "all refused"},
		{checksDecode, libraryName, askSkipped, "all refused"},
		{checksDecode, libraryName, askRange, "all refused"},
		{checksDecode, libraryName, askUTF8, "replaced"},
		{checksDecode, libraryName, askSurrogate, "replaced"},
		{checksDecode, libraryName, askStrings, "memory of their own"},
		{checksDecode, "encoding/json", askSyntax, "all refused"},
		{checksDecode, "encoding/json", askSkipped, "all refused"},
		{checksBinary, libraryName, askCut, "207 refused"},
		{checksBinary, "SBE", askCut, "190 refused"},
		{checksBinary, libraryName, askStrings, "the input"},
		{checksBinary, "FlatBuffers", askCut, "3 accepted, 341 panics"},
		{checksBinary, "protobuf", askUTF8, refused},
	} {
		if got := answers[[3]string{want.Table, want.Encoding, want.Question}]; got != want.Answer {
			t.Errorf("%s, %s, %s: %q, want %q", want.Table, want.Encoding, want.Question, got, want.Answer)
		}
	}
	for _, encoding := range []string{libraryName, "SBE", "protobuf"} {
		if got := answers[[3]string{checksBinary, encoding, askInverted}]; !strings.Contains(got, accepted) || strings.Contains(got, panics) {
			t.Errorf("%s with a byte inverted: %s", encoding, got)
		}
	}
}

func TestEncodingsAreMeasuredAndReported(t *testing.T) {
	o := outcome{job: job{Section: "encodings"}, Ops: encodings(1, time.Nanosecond, func(string) bool { return true }), Findings: findings()}
	var b bytes.Buffer
	report(&b, []outcome{o, o}, markdownTables)
	for _, want := range []string{"JSON, into a buffer", "JSON, to new bytes", "JSON, decode", "Binary, TradeExecuted", "Binary, AccountUpdate",
		checksEncode, checksDecode, checksBinary} {
		if !strings.Contains(b.String(), "### "+want+"\n") {
			t.Errorf("there is no table %q", want)
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "| "+libraryName+" |") && strings.Contains(line, " (1.00") {
			t.Errorf("the library's row is a ratio: %s", line)
		}
	}
	// Each row has as many cells as its head.
	cells := 0
	for line := range strings.Lines(b.String()) {
		switch n := strings.Count(line, "|"); {
		case n == 0:
			cells = 0
		case cells == 0:
			cells = n
		case n != cells:
			t.Errorf("%d cells under a head of %d: %s", n, cells, line)
		}
	}
}

func TestRatiosAreOfTheSameTurn(t *testing.T) {
	op := func(encoding string, nanos ...float64) operation {
		return operation{Format: formatJSON, Message: messageTrade, Class: "round", Encoding: encoding, Step: stepAppend, Nanos: nanos}
	}
	results := []outcome{
		{job: job{Section: "encodings"}, Ops: []operation{op(libraryName, 100, 1000), op("peer", 300, 3000)}},
		{job: job{Section: "encodings", Round: 1}, Ops: []operation{op(libraryName, 10), op("peer", 50)}},
	}
	all := costs(results, messageTrade, "round", stepAppend)
	if got, want := fmt.Sprint(all[0], " ", all[1]), "100 ns 3.00 (3.00–5.00)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The benchmarks are section encodings for those who have tools for go test.
func BenchmarkEncodings(b *testing.B) {
	for _, c := range contests() {
		for _, codec := range c.codecs() {
			for _, step := range c.steps {
				b.Run(strings.Join([]string{c.format, c.message, c.class, step, codec.encoding}, "/"), func(b *testing.B) {
					b.ReportAllocs()
					codec.loops[step](b.N)
				})
			}
		}
	}
}
