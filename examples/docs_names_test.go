package examples

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// names are the exported names of packages, by package: "Broker", "Broker.Publish",
// "BrokerLane.Queued"; those of the root are there without its name, too.
type names map[string]map[string]bool

// declared reads the packages in these folders, without their tests.
func declared(t *testing.T, dirs ...string) names {
	t.Helper()
	all := names{}
	for _, dir := range dirs {
		for _, file := range sources(t, dir) {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if all[f.Name.Name] == nil {
				all[f.Name.Name] = map[string]bool{}
			}
			for _, d := range f.Decls {
				declare(all[f.Name.Name], d)
			}
		}
	}
	return all
}

// sources returns the Go files of a folder, without tests.
func sources(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || files == nil {
		t.Fatal(dir, err)
	}
	return slices.DeleteFunc(files, func(file string) bool { return strings.HasSuffix(file, "_test.go") })
}

func declare(into map[string]bool, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			into[d.Name.Name] = true
			break
		}
		typ := d.Recv.List[0].Type
		if star, ok := typ.(*ast.StarExpr); ok {
			typ = star.X
		}
		if index, ok := typ.(*ast.IndexExpr); ok {
			typ = index.X
		}
		into[typ.(*ast.Ident).Name+"."+d.Name.Name] = true
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range s.Names {
					into[name.Name] = true
				}
			case *ast.TypeSpec:
				into[s.Name.Name] = true
				var fields *ast.FieldList
				switch t := s.Type.(type) {
				case *ast.StructType:
					fields = t.Fields
				case *ast.InterfaceType:
					fields = t.Methods
				default:
					continue
				}
				for _, field := range fields.List {
					for _, name := range field.Names {
						into[s.Name.Name+"."+name.Name] = true
					}
				}
			}
		}
	}
}

// have reports whether a name as pages write it is declared: with its package, but
// for the root's, and with its type, or a member of any type without.
func (all names) have(name string) bool {
	pkg, rest, _ := strings.Cut(name, ".")
	if declared, ok := all[pkg]; ok {
		return declared[rest]
	}
	if all["notification"][name] {
		return true
	}
	return !strings.Contains(name, ".") && slices.ContainsFunc(slices.Collect(maps.Values(all)), func(declared map[string]bool) bool {
		return slices.ContainsFunc(slices.Collect(maps.Keys(declared)), func(d string) bool { return strings.HasSuffix(d, "."+name) })
	})
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	// A name that Go exports, with whatever call or literal is behind it.
	exported = regexp.MustCompile(`^((?:[a-z]+\.)?[A-Z]\w*(?:\.[A-Z]\w*)*)(?:[({].*)?$`)
	fenced   = regexp.MustCompile("(?ms)^```.*?^```$")
)

// TestDocNames: what a page writes as a name of Go is one.
func TestDocNames(t *testing.T) {
	all := declared(t, "..", "../web", "../wsgateway", "../ssegateway", "../notificationtest", "../natslog", "integrations/questions")
	for page, least := range map[string]int{
		"README": 30, "docs/types": 20, "docs/configuration": 25, "docs/resuming": 15, "docs/operating": 60, "docs/questions": 60, "docs/from-qaexchange-rs": 150,
	} {
		text := fenced.ReplaceAllString(readFile(t, "../"+page+".md"), "")
		n, rust := 0, -1 // in which column the other program's names are; -1: in no table
		for line := range strings.Lines(text) {
			if page == "docs/from-qaexchange-rs" {
				line, rust = withoutRust(line, rust)
			}
			for _, span := range codeSpan.FindAllStringSubmatch(line, -1) {
				name := exported.FindStringSubmatch(span[1])
				if name == nil {
					continue
				}
				n++
				if !all.have(name[1]) {
					t.Errorf("%s: there is no %s", page, span[1])
				}
			}
		}
		if n < least {
			t.Errorf("%s: only %d names were found", page, n)
		}
	}
	for name, want := range map[string]bool{
		"Broker.Publish": true, "Publish": true, "BrokerLane.Queued": true, "Sink.Close": true, "ErrGap": true, "TypeMarketHalt": true,
		"web.Tickets.Issue": true, "wsgateway.Config.PingInterval": true, "P0": true, "Barred.Kick": false, "questions.Barred.Kick": true,
		"Broker.Queued": false, "Publishing": false, "web.Broker": false, "Tickets.Issue": false, "nowhere.Broker": false,
	} {
		if all.have(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

// withoutRust cuts what is of Rust out of a line of a table, up to its column,
// which the table's first line tells: the one with Rust above it, or the first.
func withoutRust(line string, rust int) (string, int) {
	if !strings.HasPrefix(line, "|") {
		return line, -1
	}
	cells := strings.Split(strings.Trim(line, "|\n"), "|")
	if rust < 0 {
		rust = max(0, slices.IndexFunc(cells, func(cell string) bool { return strings.Contains(cell, "Rust") }))
	}
	return strings.Join(cells[min(rust+1, len(cells)):], "|"), rust
}

// TestPortIsWhole: every public function of the other program that its design
// document or its source has is in a table of its page.
func TestPortIsWhole(t *testing.T) {
	page := readFile(t, "../docs/from-qaexchange-rs.md")
	var left []string
	for _, row := range regexp.MustCompile(`(?m)^\| (.*)$`).FindAllStringSubmatch(page, -1) {
		cells := strings.Split(row[1], " | ")
		left = append(left, cells[:min(2, len(cells))]...)
	}
	said := strings.Join(left, "\n")
	for _, name := range strings.Fields(`
		message_id message_type user_id priority payload timestamp source
		Notification::new with_priority to_json to_rkyv_bytes from_rkyv_bytes from_rkyv_bytes_unchecked from_archived
		default_priority channel() as_str payload.user_id payload.to_json
		register_gateway unregister_gateway subscribe( unsubscribe( subscribe_global unsubscribe_global publish(
		is_duplicate route_notification start_priority_processor get_stats clear_dedup_cache
		register_session unregister_session subscribe_channel( subscribe_channels unsubscribe_channel unsubscribe_all
		get_subscriptions is_subscribed start_notification_pusher push_notification push_batch start_heartbeat_checker gateway_id
		session_id sender subscriptions connected_at last_active batch_size batch_interval_ms
		messages_sent messages_deduplicated messages_dropped active_users active_gateways queue_sizes
		messages_pushed messages_failed active_sessions
		auth subscribe unsubscribe submit_order cancel_order query_order query_account query_position ping
		auth_response order_response trade order_status account_update order_book ticker query_response error pong`) {
		if !regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `(\b|[^\w]|$)`).MatchString(said) {
			t.Errorf("%s is not there", name)
		}
	}
}

// TestDocLogs: the lines that docs/questions.md lists are those that name a person
// at Info and above.
func TestDocLogs(t *testing.T) {
	line := regexp.MustCompile(`(?m)[lL]og(?:ger)?\.(?:Info|Warn|Error)\("([^"]+)".*"(?:user|session|other|remote)"`)
	want := map[string]bool{"websockets refused with 503": true, "streams refused": true} // in an error's text
	for _, dir := range []string{"..", "../web", "../wsgateway", "../ssegateway", "../internal/door", "../natslog", "../natslog/embedded"} {
		for _, file := range sources(t, dir) {
			for _, m := range line.FindAllStringSubmatch(readFile(t, file), -1) {
				want[m[1]] = true
			}
		}
	}
	_, section, _ := strings.Cut(readFile(t, "../docs/questions.md"), "\n## What is logged about whom?\n")
	section, _, _ = strings.Cut(section, "\n## ")
	got := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:Info|Warn|Error) \\|").FindAllStringSubmatch(section, -1) {
		got[row[1]] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("the page has %v, the source %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// TestDocOperating: the lines of the log that operators find on their pages are those
// that are written, at their levels.
func TestDocOperating(t *testing.T) {
	call := regexp.MustCompile(`[lL]og(?:ger)?\.(Debug|Info|Warn|Error)\((\w*)(?:"([^"]+)")?`)
	note := regexp.MustCompile(`fullLog\.Note\(h\.log, "([^"]+)"`)
	library := []string{"..", "../web", "../wsgateway", "../ssegateway", "../internal/door"}
	for page, of := range map[string]struct {
		heading string
		dirs    []string
		least   int
	}{
		"../docs/operating.md":       {"Log lines", library, 29},
		"../docs/operating.zh-CN.md": {"日志", library, 29},
		"../natslog/OPERATING.md":    {"Log lines", []string{"../natslog"}, 14},
	} {
		want := map[string]string{}
		for _, dir := range of.dirs {
			for _, file := range sources(t, dir) {
				text := readFile(t, file)
				for _, m := range call.FindAllStringSubmatch(text, -1) {
					if m[3] != "" {
						want[m[3]] = m[1]
					} else if m[2] != "what" { // FullLog's, which note finds
						t.Errorf("%s: what does %s write?", file, m[0])
					}
				}
				for _, m := range note.FindAllStringSubmatch(text, -1) {
					want[m[1]] = "Warn"
				}
			}
		}
		_, section, _ := strings.Cut(readFile(t, page), "\n## "+of.heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		got := map[string]string{}
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\|").FindAllStringSubmatch(section, -1) {
			got[row[1]] = row[2]
		}
		if !maps.Equal(got, want) || len(want) < of.least {
			t.Errorf("%s has %q, the source %q", page, got, want)
		}
	}
}

// TestDocAlerts: docs/operating.md says of every alert where to go on, and its metrics
// are some.
func TestDocAlerts(t *testing.T) {
	metrics := readFile(t, "../promstats/README.md")
	want := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+- alert: (\w+)$`).FindAllStringSubmatch(readFile(t, "../promstats/alerts.yml"), -1) {
		want[m[1]] = true
	}
	for path, head := range map[string]string{"../docs/operating.md": "| alert | section |", "../docs/operating.zh-CN.md": "| 告警 | 小节 |"} {
		page := readFile(t, path)
		_, table, _ := strings.Cut(page, "\n"+head+"\n")
		table, _, _ = strings.Cut(table, "\n\n")
		got := map[string]bool{}
		for _, name := range regexp.MustCompile(`Notification[A-Z]\w+`).FindAllString(table, -1) {
			got[name] = true
		}
		if !maps.Equal(got, want) || len(want) < 8 {
			t.Errorf("%s has %v, alerts.yml %v", path, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		named := regexp.MustCompile("`(notification_[a-z_]+)`").FindAllStringSubmatch(page, -1)
		if len(named) < 15 {
			t.Errorf("%s: only %d metrics were found", path, len(named))
		}
		for _, m := range named {
			if !strings.Contains(metrics, "| "+m[0]+" |") {
				t.Errorf("%s: there is no metric %s", path, m[1])
			}
		}
	}
}
