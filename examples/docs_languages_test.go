package examples

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocLanguages: a page and its translation say the same, as far as that can be
// seen: the same sections in the same order, and in each the same code, tables,
// names and links. Each leads to the other.
func TestDocLanguages(t *testing.T) {
	all := pagesByPath(t)
	n := 0
	for _, p := range all {
		if original, ok := strings.CutSuffix(p.path, ".zh-CN.md"); ok {
			n++
			for _, difference := range differences(all, all[original+".md"], p) {
				t.Errorf("%s: %s", p.path, difference)
			}
		}
	}
	if n < 3 {
		t.Errorf("only %d translations were found", n)
	}
	t.Run("what differs is found", func(t *testing.T) {
		const en = "# A\n\n[中文](a.zh-CN.md)\n\n## B\n\nSet `X` to 1, as [c](c.md#d) says.\n\n    go run . # starts it\n\n### C\n\n| `X` | 10,000 users\n|---|---|\n| `Y`, `Z` | 3 |\n"
		const zh = "# 甲\n\n[English](a.md)\n\n## 乙\n\n按 [c](c.zh-CN.md#丁) 把 `X` 设为一。\n\n    go run . # 启动\n\n### 丙\n\n| `X` | 10,000 个用户\n|---|---|\n| `Z`、`Y` | 3 |\n"
		differs := func(zh string) []string {
			all := map[string]page{"a.md": {"a.md", pieces(en)}, "a.zh-CN.md": {"a.zh-CN.md", pieces(zh)}, "c.md": {path: "c.md"}, "c.zh-CN.md": {path: "c.zh-CN.md"}}
			return differences(all, all["a.md"], all["a.zh-CN.md"])
		}
		if d := differs(zh); d != nil {
			t.Error(d)
		}
		for old, new := range map[string]string{
			"### 丙":                 "## 丙",
			"## 乙\n":                "",
			"按 [c]":                 "### 多\n\n按 [c]",
			"[English](a.md)":       "English",
			"go run .":              "go run ./x",
			"    go run . # 启动\n\n": "",
			"c.zh-CN.md#丁":          "c.md#d",
			"[c](c.zh-CN.md#丁)":     "",
			"把 `X`":                 "把 `x`",
			"| `X` |":               "| X |",
			"10,000 个":              "1,000 个",
			"| 3 |":                 "| 3 | |",
			"| `Z`、`Y` | 3 |\n":     "",
			"# 甲":                   "    go run .\n\n# 甲",
		} {
			if wrong := strings.Replace(zh, old, new, 1); wrong == zh || differs(wrong) == nil {
				t.Errorf("%q for %q was not found", new, old)
			}
		}
	})
}

// differences tells what a translation has otherwise than its original.
func differences(all map[string]page, original, translation page) (found []string) {
	if len(original.pieces) == 0 {
		return []string{"it is a translation of nothing"}
	}
	if !slices.Contains(original.links(), path.Base(translation.path)) || !slices.Contains(translation.links(), path.Base(original.path)) {
		found = append(found, "the two do not lead to each other")
	}
	ours, theirs := original.sections(all), translation.sections(all)
	for i := range min(len(ours), len(theirs)) {
		a, b := ours[i], theirs[i]
		if a.deep != b.deep {
			return append(found, fmt.Sprintf("%q stands where %q is in the original, another level", b.title, a.title))
		}
		for j := range max(len(a.has), len(b.has)) {
			var x, y string
			if j < len(a.has) {
				x = a.has[j]
			}
			if j < len(b.has) {
				y = b.has[j]
			}
			if x != y {
				found = append(found, fmt.Sprintf("%q has\n\t%s\nand %q\n\t%s", b.title, y, a.title, x))
				break // what is behind it may only have moved
			}
		}
	}
	if len(ours) != len(theirs) {
		found = append(found, fmt.Sprintf("it has %d sections, the original %d", len(theirs), len(ours)))
	}
	return found
}

func (p page) links() (all []string) {
	for _, piece := range p.pieces {
		all = append(all, piece.links()...)
	}
	return all
}

// A section is a heading and what stands below it that is in no language.
type section struct {
	title string
	deep  int
	has   []string // names and links, then code and rows in their order
}

var (
	comment = regexp.MustCompile(`(?m)(^|\s+)(//|#) .*$`)
	number  = regexp.MustCompile(`\d(?:[\d.,]*\d)?`)
	cellEnd = regexp.MustCompile(`([^\\])\|`)
)

func (p page) sections(all map[string]page) (sections []section) {
	s := section{}
	var words, blocks []string // of the section: those of its text in any order
	end := func() {
		slices.Sort(words)
		s.has = append(slices.Compact(words), blocks...)
		if s.deep > 0 || len(s.has) > 0 {
			sections = append(sections, s)
		}
		words, blocks = nil, nil
	}
	for _, piece := range p.pieces {
		switch piece.kind {
		case heading:
			end()
			s = section{title: piece.text, deep: piece.deep}
			words = append(words, piece.spans()...)
		case prose:
			words = append(words, piece.spans()...)
			words = append(words, p.leadsTo(all, piece)...)
		case indented, fence:
			blocks = append(blocks, piece.lang+"\n"+comment.ReplaceAllString(piece.text, ""))
		case row:
			var cells []string
			for cell := range strings.SplitSeq(cellEnd.ReplaceAllString(strings.TrimSuffix(strings.TrimPrefix(piece.text, "|"), "|"), "$1\n"), "\n") {
				in := piece
				in.text = cell
				plain := linkText.ReplaceAllString(codeSpan.ReplaceAllString(cell, ""), "")
				has := slices.Concat(in.spans(), p.leadsTo(all, in), number.FindAllString(plain, -1))
				slices.Sort(has)
				cells = append(cells, strings.Join(has, " "))
			}
			blocks = append(blocks, strings.Join(cells, " | "))
		}
	}
	end()
	return sections
}

// leadsTo returns the pages of the repository that a piece leads to, as the original
// is called. If there is a translation, a translation leads to that.
func (p page) leadsTo(all map[string]page, piece piece) (links []string) {
	for _, l := range piece.links() {
		target, _, _ := strings.Cut(l, "#")
		switch to := path.Join(path.Dir(p.path), target); {
		case target == "" || translated(p.path) == translated(to): // of the page itself, and to its other language
		case all[translated(to)].path != "" && strings.HasSuffix(p.path, ".zh-CN.md") && to != translated(to):
			links = append(links, "the English "+l)
		case strings.Contains(l, ":"):
			links = append(links, l)
		default:
			links = append(links, strings.Replace(to, ".zh-CN.md", ".md", 1))
		}
	}
	return links
}

// translated returns the path of the translation of a page.
func translated(page string) string {
	return strings.TrimSuffix(strings.TrimSuffix(page, ".md"), ".zh-CN") + ".zh-CN.md"
}
