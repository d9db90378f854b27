package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
)

// A filter tells what is printed. What is empty lets everything through.
type filter struct {
	channels   []notification.Channel
	types      []string
	priorities []notification.Priority
	user, text string
}

func (f *filter) admits(n *notificationclient.Notification) bool {
	// The channel of an unknown type is known to the server only, which has
	// filtered by it.
	known := n.Type() != 0
	return (f.channels == nil || !known || slices.Contains(f.channels, n.Type().Channel())) &&
		(f.types == nil || slices.Contains(f.types, n.TypeName)) &&
		(f.priorities == nil || slices.Contains(f.priorities, n.Priority)) &&
		(f.user == "" || f.user == n.UserID) &&
		(f.text == "" || bytes.Contains(n.Raw, []byte(f.text)))
}

// The colours, as SGR parameters.
const (
	red    = "1;31"
	yellow = "33"
	cyan   = "36"
	faint  = "2"
)

var colorOf = map[notification.Priority]string{notification.P0: red, notification.P2: cyan, notification.P3: faint}

// painted says whether out gets colours.
func painted(out io.Writer, when string) bool {
	if when != "auto" {
		return when == "always"
	}
	f, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func paint(on bool, color, text string) string {
	if !on || color == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// A printer prints notifications.
type printer struct {
	out    *bufio.Writer
	filter filter
	json   bool
	color  bool
	left   int // how many more to print; negative: any number
}

func newPrinter(out io.Writer, o options) *printer {
	p := &printer{out: bufio.NewWriter(out), filter: o.filter, json: o.json, color: painted(out, o.color), left: -1}
	if o.count > 0 {
		p.left = o.count
	}
	return p
}

func (p *printer) flush() error { return p.out.Flush() }

// print prints n if the filter admits it, with its age at now; a now of zero: it is
// an old one, of which the age says nothing.
func (p *printer) print(n *notificationclient.Notification, now time.Time) {
	if p.left == 0 || !p.filter.admits(n) {
		return
	}
	p.left--
	if p.json {
		p.out.Write(n.Raw)
		p.out.WriteByte('\n')
		return
	}
	at := time.Unix(0, n.Timestamp)
	late := ""
	if now.IsZero() {
		p.out.WriteString(at.Format("2006-01-02 15:04:05.000000"))
	} else {
		p.out.WriteString(at.Format("15:04:05.000000"))
		age := now.Sub(at)
		color := ""
		if age >= 10*time.Second {
			color = red
		} else if age >= time.Second {
			color = yellow
		}
		late = " " + paint(p.color, color, fmt.Sprintf("%8s", short(age)))
	}
	fmt.Fprintf(p.out, "%s %s %-10s%s\n", late,
		paint(p.color, colorOf[n.Priority], fmt.Sprintf("%s %-22s", n.Priority, safe(n.TypeName))), safe(n.UserID), payload(n))
}

// short writes a duration with three digits: "1.23ms".
func short(d time.Duration) string {
	text := "+"
	if d < 0 {
		text, d = "-", -d
	}
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if d >= unit.size {
			return text + strconv.FormatFloat(float64(d)/float64(unit.size), 'g', 3, 64) + unit.name
		}
	}
	return fmt.Sprintf("%s%dµs", text, d.Microseconds())
}

// payload writes the fields of the payload in the order in which they came, those of
// an unknown type too: " order_id=o-17 reason=\"no funds\"".
func payload(n *notificationclient.Notification) string {
	var whole struct {
		Payload json.RawMessage `json:"payload"`
	}
	if json.Unmarshal(n.Raw, &whole) != nil {
		return " " + safe(string(n.Raw))
	}
	d := json.NewDecoder(bytes.NewReader(whole.Payload))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	var b strings.Builder
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			break
		}
		name := key.(string)
		if name == "type" || name == "user_id" && string(value) == strconv.Quote(n.UserID) || name == "timestamp" && about(value, n.Timestamp) {
			continue // it stands in front
		}
		b.WriteString(" " + safe(name) + "=" + field(name, value))
	}
	return b.String()
}

// about reports whether a time is that of the notification, or less than a second off.
func about(value json.RawMessage, timestamp int64) bool {
	at, err := strconv.ParseInt(string(value), 10, 64)
	return err == nil && time.Unix(0, at).Sub(time.Unix(0, timestamp)).Abs() < time.Second
}

// field writes a value. Times are Unix nanoseconds.
func field(name string, value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil && value[0] == '"' {
		return safe(text)
	}
	switch name {
	case "timestamp", "deadline", "resume_at":
		if ns, err := strconv.ParseInt(string(value), 10, 64); err == nil && ns != 0 {
			return time.Unix(0, ns).Format("2006-01-02T15:04:05.999999999Z07:00")
		}
	}
	return safe(string(value))
}

// safe quotes what would not be one word, or would tell the terminal to do
// something: the text is somebody else's.
func safe(text string) string {
	plain := func(r rune) bool {
		return r != '"' && r != '=' && r != unicode.ReplacementChar && unicode.IsGraphic(r) && !unicode.IsSpace(r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return strconv.Quote(text)
}

// A teller tells on stderr what happens to the connection.
type teller struct {
	out   io.Writer
	quiet bool
	color bool
}

func newTeller(out io.Writer, o options) *teller {
	return &teller{out: out, quiet: o.quiet, color: painted(out, o.color)}
}

func (t *teller) tell(color, format string, args ...any) {
	if t.quiet {
		return
	}
	text := fmt.Sprintf("%s notifycat: ", time.Now().Format("15:04:05.000000")) + fmt.Sprintf(format, args...)
	fmt.Fprintln(t.out, paint(t.color, color, text))
}
