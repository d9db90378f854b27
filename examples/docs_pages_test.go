package examples

import (
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A page is a file of Markdown, in pieces.
type page struct {
	path   string // from the root of the repository, with slashes
	pieces []piece
}

// A piece is a paragraph, a list, a row of a table, a heading, or a block of code.
type piece struct {
	kind kind
	text string // of a heading without its number signs, of code without fence and indent
	lang string // of fenced code
	deep int    // of a heading: 1 is the highest
}

type kind int

const (
	prose kind = iota
	row
	heading
	indented
	fence
)

// pages reads all pages of the repository.
func pages(t *testing.T) (all []page) {
	t.Helper()
	walk(".", func(dir string) bool {
		files, _ := filepath.Glob(fromRoot(dir, "*.md"))
		for _, file := range files {
			all = append(all, page{path.Join(dir, filepath.Base(file)), pieces(readFile(t, file))})
		}
		return true
	})
	if len(all) < 25 {
		t.Fatalf("only %d pages were found", len(all))
	}
	return all
}

func pagesByPath(t *testing.T) map[string]page {
	t.Helper()
	all := map[string]page{}
	for _, p := range pages(t) {
		all[p.path] = p
	}
	return all
}

var (
	fenceLine   = regexp.MustCompile("^ *```+ *(\\S*)[^`]*$")
	headingLine = regexp.MustCompile(`^(#{1,6}) +(.*?)(?: +#+)? *$`)
)

// pieces cuts a page. It knows the Markdown that the pages are written in and no
// other: no headings by underlining, no fences of tildes.
func pieces(text string) (all []piece) {
	var open *piece // what the next line may belong to
	end := func() { open = nil }
	add := func(p piece) {
		all = append(all, p)
		open = &all[len(all)-1]
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		inFence := open != nil && open.kind == fence
		isIndented := strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "\t")
		switch m := fenceLine.FindStringSubmatch(line); {
		case m != nil && inFence:
			end()
		case inFence:
			open.text += line + "\n"
		case m != nil:
			add(piece{kind: fence, lang: m[1]})
		case strings.TrimSpace(line) == "":
			if open != nil && open.kind == indented {
				open.text += "\n" // a block goes on behind an empty line
			} else {
				end()
			}
		case isIndented && open != nil && open.kind == indented:
			open.text += strings.TrimSpace(line) + "\n"
		case isIndented && open == nil:
			add(piece{kind: indented, text: strings.TrimSpace(line) + "\n"})
		case headingLine.MatchString(line):
			m := headingLine.FindStringSubmatch(line)
			add(piece{kind: heading, text: m[2], deep: len(m[1])})
			end()
		case strings.HasPrefix(line, "|"):
			add(piece{kind: row, text: line})
			end()
		case open == nil || open.kind != prose:
			add(piece{kind: prose, text: line})
		default:
			open.text += " " + strings.TrimSpace(line)
		}
	}
	return all
}

// spans returns the code within a piece of prose.
func (p piece) spans() (all []string) {
	if p.kind == indented || p.kind == fence {
		return nil
	}
	for _, m := range codeSpan.FindAllStringSubmatch(p.text, -1) {
		all = append(all, strings.ReplaceAll(m[1], `\|`, "|"))
	}
	return all
}

var linkTarget = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// links returns what a piece of prose links to, pictures too.
func (p piece) links() (all []string) {
	if p.kind == indented || p.kind == fence {
		return nil
	}
	for _, m := range linkTarget.FindAllStringSubmatch(codeSpan.ReplaceAllString(p.text, ""), -1) {
		all = append(all, m[1])
	}
	return all
}
