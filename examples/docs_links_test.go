package examples

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocLinks: what a page links to is there, the section too.
func TestDocLinks(t *testing.T) {
	all := pagesByPath(t)
	links := 0
	for _, p := range all {
		for _, piece := range p.pieces {
			for _, l := range piece.links() {
				if strings.Contains(l, ":") {
					continue // of the web
				}
				links++
				if err := leads(all, p.path, l); err != nil {
					t.Errorf("%s: %s: %v", p.path, l, err)
				}
			}
			if referenceLink.MatchString(piece.text) && piece.kind == prose {
				t.Errorf("%s: this test knows nothing of such links: %s", p.path, piece.text)
			}
		}
	}
	if links < 250 {
		t.Errorf("only %d links were found", links)
	}
	t.Run("what leads nowhere is found", func(t *testing.T) {
		text := "# A `B`: *c_d*\n\n## 断线 [重连](x.md)（历史）\n## A B c_d\n# A\n```\n# no heading\n```\n"
		all := map[string]page{"docs/x.md": {"docs/x.md", pieces(text)}}
		for link, want := range map[string]bool{
			"x.md#a-b-c_d": true, "#a-b-c_d-1": true, "#断线-重连历史": true, "#a": true,
			"#A": false, "#a-b-c_d-2": false, "#no-heading": false, "#断线": false, "y.md": false,
			"../LICENSE": true, "../examples/": true, "../license": false, "../LICENSE#mit": false, "../../x": false,
		} {
			if err := leads(all, "docs/x.md", link); (err == nil) != want {
				t.Errorf("%s: %v", link, err)
			}
		}
	})
}

var (
	// A file of the repository, as code: by what it ends in, or by the folder it begins with.
	fileName = regexp.MustCompile(`^[\w./-]+\.(?:go|md|py|ts|mjs|json|ya?ml|conf|svg|proto|fbs|mod|work|toml)$|^(?:web|internal|clients|docs|release|natslog|wsgateway|ssegateway|promstats|examples|benchmarks|testdata|schema|modeltest|notificationtest)(?:/[\w./-]*)?$`)
	tagName  = regexp.MustCompile(`/v\d+\.\d+\.\d+$`)
	mdName   = regexp.MustCompile(`[\w./-]+\.md\b`)
)

// TestDocFiles: a file that a page names without a link is there, beside it or from
// the root, and so is a page that a comment in Go names.
func TestDocFiles(t *testing.T) {
	there := func(dir, file string) bool {
		return slices.ContainsFunc([]string{dir, "."}, func(dir string) bool {
			_, err := os.Stat(fromRoot(dir, file))
			return err == nil
		})
	}
	named := 0
	for _, p := range pages(t) {
		for _, piece := range p.pieces {
			for _, s := range piece.spans() {
				if !fileName.MatchString(s) || tagName.MatchString(s) {
					continue
				}
				if named++; !there(path.Dir(p.path), s) {
					t.Errorf("%s: there is no %s", p.path, s)
				}
			}
		}
	}
	walk(".", func(dir string) bool {
		files, _ := filepath.Glob(fromRoot(dir, "*.go"))
		for _, file := range files {
			for line := range strings.Lines(readFile(t, file)) {
				_, comment, _ := strings.Cut(line, "// ")
				for _, s := range mdName.FindAllString(comment, -1) {
					if named++; !there(dir, s) {
						t.Errorf("%s: there is no %s", file, s)
					}
				}
			}
		}
		return true
	})
	if named < 80 {
		t.Errorf("only %d files were named", named)
	}
}

// A link whose target stands elsewhere, or is HTML.
var referenceLink = regexp.MustCompile(`^\[[^\]]+\]: |<a |<img `)

// leads reports why a link of a page leads nowhere.
func leads(all map[string]page, from, link string) error {
	file, section, hasSection := strings.Cut(link, "#")
	target := path.Join(path.Dir(from), file)
	if file == "" {
		target = from
	}
	if strings.HasPrefix(target, "../") {
		return fmt.Errorf("it leads out of the repository")
	}
	if _, ok := all[target]; !ok {
		if _, err := os.Stat(fromRoot(target)); err != nil || !hasSection {
			return err
		}
		return fmt.Errorf("only pages have sections")
	}
	if anchors := all[target].anchors(); hasSection && !slices.Contains(anchors, section) {
		return fmt.Errorf("%s has %q", target, anchors)
	}
	return nil
}

var (
	linkText = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
	noSlug   = regexp.MustCompile(`[^\p{L}\p{M}\p{N}\p{Pc} -]`)
)

// anchors returns the names of the sections of a page, by the rules of GitHub: of the
// text that is shown letters, digits, hyphens and underscores, in lower case, with
// hyphens for blanks; and a number behind one that is there.
func (p page) anchors() (names []string) {
	taken := map[string]int{}
	for _, h := range p.pieces {
		if h.kind != heading {
			continue
		}
		slug := strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(linkText.ReplaceAllString(h.text, "$1")), ""), " ", "-")
		if n := taken[slug]; n > 0 {
			names = append(names, fmt.Sprintf("%s-%d", slug, n))
		} else {
			names = append(names, slug)
		}
		taken[slug]++
	}
	return names
}
