package examples

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qaexchange/notification"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// goBlocks returns the fenced blocks of Go in a page of Markdown.
func goBlocks(page string) (blocks []string) {
	for i, piece := range strings.Split(page, "\n```") {
		if code, ok := strings.CutPrefix(piece, "go\n"); ok && i%2 == 1 {
			blocks = append(blocks, code+"\n")
		}
	}
	return blocks
}

// isCutFrom reports whether the lines of block stand in source one behind the
// other, all of them indented by as much.
func isCutFrom(block, source string) bool {
	want, have := strings.Split(strings.TrimSuffix(block, "\n"), "\n"), strings.Split(source, "\n")
	for i := range len(have) - len(want) + 1 {
		indent, ok := strings.CutSuffix(have[i], want[0])
		if !ok || strings.Trim(indent, "\t") != "" {
			continue
		}
		if slices.EqualFunc(have[i:i+len(want)], want, func(h, w string) bool { return h == w && w == "" || h == indent+w }) {
			return true
		}
	}
	return false
}

func TestDocs(t *testing.T) {
	t.Run("the README's quick start is a program, and says what arrived", func(t *testing.T) {
		source := readFile(t, "quickstart/main.go")
		for page, heading := range map[string]string{"../README.md": "Quick start", "../README.zh-CN.md": "快速开始"} {
			_, section, _ := strings.Cut(readFile(t, page), "\n## "+heading+"\n")
			section, _, _ = strings.Cut(section, "\n## ")
			blocks := goBlocks(section)
			if len(blocks) != 1 || blocks[0] != source[strings.Index(source, "package main"):] {
				t.Errorf("%s and examples/quickstart/main.go differ; the page has\n%s", page, strings.Join(blocks, "\n"))
			}
		}
		said, err := exec.Command("go", "run", "./quickstart").Output()
		var n notification.Notification
		if err != nil || json.Unmarshal(said, &n) != nil || n.ID != "trade-t1-alice" || n.UserID != "alice" {
			t.Errorf("%s, %v", said, err)
		}
	})
	t.Run("what README says of the versions of Go is what is checked", func(t *testing.T) {
		checked := regexp.MustCompile(`(?m)^supported='go(1\.\d+)\.\d+ go(1\.\d+)\.\d+'`).FindStringSubmatch(readFile(t, "../.ci/run"))
		if checked == nil {
			t.Fatal(".ci/run does not say so")
		}
		for _, page := range []string{"../README.md", "../README.zh-CN.md"} {
			said := regexp.MustCompile(`(?m)^Go (1\.\d+)(?:, |、)(1\.\d+) · MIT `).FindStringSubmatch(readFile(t, page))
			if said == nil || !slices.Equal(said[1:], checked[1:]) {
				t.Errorf("%s has %q, .ci/run %q", page, said, checked)
			}
		}
		if !strings.HasPrefix(readFile(t, "../LICENSE"), "MIT License\n") || !strings.Contains(readFile(t, "../go.mod"), "\ngo "+checked[1]+".") {
			t.Error("another licence, or another Go in go.mod")
		}
	})
	t.Run("the notification in docs/types.md is one", func(t *testing.T) {
		_, block, _ := strings.Cut(readFile(t, "../docs/types.md"), "\n```json\n")
		block, _, _ = strings.Cut(block, "\n```\n")
		var n notification.Notification
		var want bytes.Buffer
		if err := errors.Join(json.Unmarshal([]byte(block), &n), json.Compact(&want, []byte(block))); err != nil {
			t.Fatal(err)
		}
		if got := n.AppendJSON(nil); string(got) != want.String() {
			t.Errorf("the library writes %s", got)
		}
	})
	t.Run("the Go of a page is cut from packages that compile", func(t *testing.T) {
		var sources []string
		err := filepath.WalkDir("integrations", func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				sources = append(sources, readFile(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for page, least := range map[string]int{"integrations": 8, "questions": 10} {
			blocks := goBlocks(readFile(t, "../docs/"+page+".md"))
			if len(blocks) < least {
				t.Errorf("%s: only %d blocks were found", page, len(blocks))
			}
			for _, b := range blocks {
				if !slices.ContainsFunc(sources, func(source string) bool { return isCutFrom(b, source) }) {
					t.Errorf("%s: this is in no source:\n%s", page, b)
				}
			}
		}
	})
	t.Run("what differs by a line or an indent is not cut from it", func(t *testing.T) {
		source := "a\n\tb\n\n\t\tc\nd\n"
		for block, want := range map[string]bool{"b\n\n\tc\n": true, "a\n": true, "b\nc\n": false, "b\n\nc\n": false, "c\n\td\n": false, "e\n": false} {
			if got := isCutFrom(block, source); got != want {
				t.Errorf("%q: %t", block, got)
			}
		}
	})
}
