package examples

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// elsewhere are commands that a test runs where it has what they need: its folder
// and its name.
var elsewhere = map[string]string{
	"python3 -W error -X dev -m unittest discover -s tests -t .": "clients/python/testdata/gateway TestPython",
	"promtool test rules alerts_test.yml":                        "promstats TestPromtool", // and of natslogstats
	"mypy --strict":                                              "schema TestPython",
	"tsc --strict":                                               "schema TestToolsOfNode",
}

// notRun are the commands that no test runs, and why.
var notRun = map[string]string{
	"go get":                       mention,
	"go build":                     mention,
	"go doc":                       mention,
	"go generate":                  mention,
	"go build -modfile":            mention,
	"git tag -d":                   mention,
	"git reset":                    mention,
	"nats stream edit":             mention,
	"nats stream rm":               mention,
	"ulimit -n":                    mention,
	"kill -9":                      mention,
	"go get …":                     mention,
	"go install …@version":         "the page says that it is refused",
	"nats server report jetstream": "wants a server that has an account of the system's",
	"go list -m github.com/qaexchange/notification/wsgateway@v0.2.0":                                 "the version is of the future",
	"git push --atomic origin main v0.2.0 clients/go/v0.2.0 clients/typescript/v0.2.0 …":             "cut short; TestRelease of release runs the whole",
	"npx quicktype -s schema 'schema/notification.schema.json#/$defs/' -l java -o Notification.java": "quicktype is from the network",
	"npx quicktype -s schema 'schema/notification.schema.json#/$defs/' -l rust -o notification.rs":   "quicktype is from the network",
	"npm publish": "it publishes",
	"npm install @qaexchange/notification-client": "it is not in the registry yet",
}

const mention = "names a command, and gives none"

// TestDocCommands: every command of every page is one that works as it is written,
// or stands in one of the tables above.
//
// A program runs as the page says, but for -h behind its flags, so that each flag
// and its value is taken and nothing is begun. Of go test the package, each flag
// and its value are looked at, and that each pattern, and each part of it between
// bars, finds a test or a benchmark; running it is the business of go test itself.
func TestDocCommands(t *testing.T) {
	pages := pages(t)
	found := commands(pages)
	if len(found) < 80 {
		t.Errorf("only %d commands were found", len(found))
	}
	var wrong []command
	for _, w := range wrongCommands {
		c := commands([]page{{"README.md", pieces(w.page)}})
		if len(c) != 1 {
			t.Fatalf("%s: %d commands were found", w.page, len(c))
		}
		wrong = append(wrong, c[0])
	}
	check := newChecker(t, slices.Concat(found, wrong))
	t.Run("every command works as it is written, or is listed", func(t *testing.T) {
		unseen := map[string]bool{}
		for _, text := range slices.AppendSeq(slices.Collect(maps.Keys(notRun)), maps.Keys(elsewhere)) {
			unseen[text] = true
		}
		for _, c := range found {
			delete(unseen, c.text)
			if err := check.command(c); err != nil {
				t.Errorf("%s: %s: %v", c.page, c.text, err)
			}
		}
		for text := range unseen {
			t.Errorf("it is listed, and on no page: %s", text)
		}
	})
	t.Run("a flag that a page names is one of a program, or of the tests beside it", func(t *testing.T) {
		for _, page := range pages {
			for _, p := range page.pieces {
				for _, s := range p.spans() {
					if m := flagSpan.FindStringSubmatch(s); m != nil && !check.flag(page.path, m[1]) {
						t.Errorf("%s: there is no %s", page.path, s)
					}
				}
			}
		}
	})
	t.Run("what is wrong is found", func(t *testing.T) {
		for i, w := range wrongCommands {
			if w.runs && testing.Short() {
				continue
			}
			err := check.command(wrong[i])
			if w.says == "" && err != nil || w.says != "" && (err == nil || !strings.Contains(err.Error(), w.says)) {
				t.Errorf("%s: %v", w.page, err)
			}
		}
	})
}

// A command is what a page tells to type.
type command struct {
	page string
	text string   // one blank between words, no comment
	env  []string // the variables before it
	args []string // its words, the program first
	dirs []string // where it may have to be typed: the folder of the page, those of pages that its row or paragraph links to, the root
}

// What a command begins with, behind variables. In a block of shell every line is one.
var (
	program = regexp.MustCompile(`^(?:[A-Z][A-Z0-9_]*=\S* )*(?:go [a-z]+|git|make|bash|sh|sudo|export [A-Z]\S*|cd|kill|ulimit|grep|curl|wget|docker|kubectl|systemctl|nats|node|npm|npx|tsc|python3?|pip3?|mypy|apt|apt-get|brew|promtool|prometheus|nginx|openssl|\.ci/run|\./\S+)(?: |$)`)
	// A flag by itself, perhaps with the name of its value.
	flagSpan = regexp.MustCompile(`^-([a-z][a-z-]*)(?: [A-Z]+)?$`)
	shells   = []string{"sh", "bash", "shell", "console"}
)

func commands(pages []page) (all []command) {
	for _, page := range pages {
		for _, p := range page.pieces {
			dirs := []string{path.Dir(page.path)}
			for _, l := range p.links() {
				target, _, _ := strings.Cut(l, "#")
				if path.Ext(target) == ".md" && !strings.Contains(target, ":") {
					dirs = append(dirs, path.Dir(path.Join(path.Dir(page.path), target)))
				}
			}
			dirs = append(dirs, ".")
			add := func(text string) {
				for _, c := range parsed(text) {
					c.page, c.dirs = page.path, dirs
					all = append(all, c)
				}
			}
			shell := slices.Contains(shells, p.lang)
			if p.kind == indented || p.kind == fence && (p.lang == "" || shell) {
				for line := range strings.Lines(strings.ReplaceAll(p.text, "\\\n", " ")) {
					line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "$ "))
					if program.MatchString(line) || shell && line != "" && line[0] != '#' {
						add(line)
					}
				}
			}
			for _, s := range p.spans() {
				switch {
				case strings.HasPrefix(s, "-bench ") || strings.HasPrefix(s, "-run "):
					add("go test " + s + " .")
				case (s == ".ci/run" || strings.Contains(s, " ")) && program.MatchString(s):
					add(s)
				}
			}
		}
	}
	return all
}

// parsed takes a line of shell apart, as far as pages go: quotes, comments, and what
// stands between two commands.
func parsed(line string) (all []command) {
	var c command
	var word, text strings.Builder
	begun, quote := false, rune(0)
	endWord := func() {
		if !begun {
			return
		}
		if len(c.args) == 0 && regexp.MustCompile(`^[A-Z][A-Z0-9_]*=`).MatchString(word.String()) {
			c.env = append(c.env, word.String())
		} else {
			c.args = append(c.args, word.String())
		}
		word.Reset()
		begun = false
	}
	endCommand := func() {
		endWord()
		if c.args != nil {
			c.text = strings.Join(strings.Fields(text.String()), " ")
			all = append(all, c)
		}
		c = command{}
		text.Reset()
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '#' && !begun:
			endCommand()
			return all
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ' || r == '\t':
			endWord()
		case r == '&' || r == ';' || r == '|':
			endCommand()
			continue
		default:
			word.WriteRune(r)
			begun = true
		}
		text.WriteRune(r)
	}
	endCommand()
	return all
}

// command reports why cmd does not work in any of its folders.
func (c *checker) command(cmd command) error {
	if why, ok := elsewhere[cmd.text]; ok {
		dir, name, _ := strings.Cut(why, " ")
		if !slices.Contains(c.goFiles(dir).tests, name) {
			return fmt.Errorf("there is no %s in %s", name, dir)
		}
		return nil
	}
	if notRun[cmd.text] != "" {
		return nil
	}
	var all error
	for _, dir := range slices.Compact(cmd.dirs) {
		err := c.in(dir, cmd)
		if err == nil {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("in %s: %w", dir, err))
	}
	return all
}

var wrongCommands = []struct {
	page string
	says string // what is wrong; empty: nothing
	runs bool   // the program
}{
	{"    go run ./examples/minimal -addr 127.0.0.1:0 # as it is\n", "", true},
	{"    go run ./examples/minimal -adr 127.0.0.1:0\n", "-adr", true},
	{"    go run ./examples/minimal 127.0.0.1:0\n", "takes no arguments", true},
	{"    go run ./examples/exchange -users many\n", `invalid value "many"`, true},
	{"    go run ./examples/exchange -replay\n", "needs an argument", true},
	{"    go run ./clients/conformance serve -addr :0\n", "", true},
	{"    go run ./clients/conformance server\n", "serve", true},
	{"    go run ./clients/go/cmd/notifycat -json 'ws://x'\n", "", true},
	{"    go run ./clients/conformance -scenario cut,gup\n", `"gup"`, true},
	{"    go run ./benchmarks -sections flat,flud\n", `"flud"`, true},
	{"    go run ./benchmarks quick\n", "quick", true},
	{"    go run ./release -m v0.2.0\n", "-m", true},
	{"    go run ./examples/maximal\n", "maximal", false},
	{"    go run ./web\n", "no such program", false},
	{"    go run ./benchmarks -markdown docs/nowhere.md\n", "docs/nowhere.md", false},
	{"Try `go test -run Resume -count 2 .`.\n", "", false},
	{"Try `go test -run 'Resume|Nowhere' .`.\n", "nothing there matches Nowhere", false},
	{"Try `go test -run Stages .`.\n", "nothing there matches Stages", false},
	{"| a | `go test -run '^$' -bench 'Stages\\|Publish' .` |\n", "", false},
	{"| a | `go test -run '^$' -bench Nowhere .` |\n", "nothing there matches Nowhere", false},
	{"| [b](natslog/README.md) | `go test -run Permissions .` |\n", "", false},
	{"    go test -run '^$' .\n", "nothing there matches", false},
	{"    go test -run ( .\n", "error parsing", false},
	{"    go test -benchtme 3x .\n", "-benchtme", false},
	{"    go test -count twice .\n", `"twice"`, false},
	{"    go test ./clients/conformance -chaos 10m -v\n", "", false},
	{"    go test ./clients/conformance -chaos ten\n", `"ten"`, false},
	{"    go test ./wsgateway -chaos 10m\n", "-chaos", false},
	{"    go test ./nowhere\n", "nowhere", false},
	{"    go test ./docs\n", "no package ./docs", false},
	{"    go test -race work\n", "", false},
	{"    go tset .\n", "teach it", false},
	{"    EXCHANGE_RENDERER=10m go test ./examples/exchange\n", "", false},
	{"    EXCHANGE_COLOUR=dark go test ./examples/exchange\n", "EXCHANGE_COLOUR", false},
	{"    go generate ./schema\n", "", false},
	{"    go generate ./web\n", "nothing is generated", false},
	{"    go get github.com/qaexchange/notification/wsgateways\n", "no module", false},
	{"    npm run dist\n", "package.json", false},
	{"| [c](clients/typescript/README.md) | `npm run dist` |\n", "no script dist", false},
	{"    curl --fail http://127.0.0.1:8080/healthz\n", "teach it", false},
	{"```sh\nmade all\n```\n", "teach it", false},
	{"    .ci/run fast\n", "teach it", false},
	{"    grep -n nothing-of-the-kind *.mod\n", "exit status 1", false},
	{"    apt install python4\n", "does not install", false},
	{"    pip install ./clients/go\n", "pyproject.toml", false},
}
