package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qaexchange/notification"
)

// ops are the steps that a script may have. Each that needs the WebSocket upgrades
// if that has not been done; before it there may be "expect", "until", "mark" and
// one of the refusals.
var ops = map[string]func(c *conn, arg json.RawMessage) error{
	// Before the upgrade.
	"expect":         expect,
	"refuse":         refuse,
	"redirect":       redirect,
	"cut_handshake":  cutHandshake,
	"hold_handshake": holdHandshake,

	"upgrade_without_protocol": func(c *conn, _ json.RawMessage) error { return c.upgradeTo() },

	// What the server says.
	"welcome": welcome,
	"reset": func(c *conn, _ json.RawMessage) error {
		return c.write([]byte(`{"action":"reset","reason":"cursor_gone"}`))
	},
	"live":          func(c *conn, _ json.RawMessage) error { return c.write([]byte(`{"action":"live"}`)) },
	"heartbeat":     heartbeat,
	"heartbeats":    heartbeats,
	"notifications": notifications,
	"replay":        replay,
	"fragments":     fragments,
	"big":           big,
	"ok":            ok,
	"error":         refusal,
	"send":          send,
	"send_text":     sendText,
	"ping":          ping,
	"pings":         pings,

	// What it hears and waits for.
	"hear":  hear,
	"left":  left,
	"until": until,
	"mark":  mark,
	"pause": pause,

	// How it ends.
	"close":        closeCode,
	"close_empty":  func(c *conn, _ json.RawMessage) error { return c.closeWith(nil) },
	"cut":          func(c *conn, _ json.RawMessage) error { return c.cut() },
	"cut_in_frame": cutInFrame,
	"silence":      silence,
}

// expect compares the request: {"cursor":"c3","channels":"risk,trade","ticket":"t1",
// "authorization":"Bearer x"}. A list is one of them; null is absent; "" in channels
// is present and empty.
func expect(c *conn, arg json.RawMessage) error {
	want, err := decode(arg)
	if err != nil {
		return err
	}
	fields, ok := want.(map[string]any)
	if !ok {
		return errors.New("expect wants an object")
	}
	have := asked(c.request)
	for key, w := range fields {
		if key == "authorization" && c.run.page {
			w = nil // a page can set no header
		}
		if key == "channels" && w == "" {
			if have[key] != "" || have[key] == nil {
				return fmt.Errorf("it does not say channels=, but %v", have[key])
			}
			continue
		}
		if key == "channels" && w == nil && have[key] != nil {
			return fmt.Errorf("it says channels=%v, where none means all", have[key])
		}
		if !contains(have[key], w) {
			return fmt.Errorf("it says %s %v, not %v", key, have[key], w)
		}
	}
	return nil
}

// asked is what a request says; what is absent is nil.
func asked(r *http.Request) map[string]any {
	have := map[string]any{"cursor": nil, "channels": nil, "ticket": nil, "authorization": nil}
	q := r.URL.Query()
	for _, key := range []string{"cursor", "channels", "ticket"} {
		if values, ok := q[key]; ok {
			have[key] = strings.Join(values, " and ")
		}
	}
	if s, ok := have["channels"].(string); ok {
		names := strings.Split(s, ",")
		slices.Sort(names)
		have["channels"] = strings.Join(names, ",")
	}
	if s := r.Header.Get("Authorization"); s != "" {
		have["authorization"] = s
	}
	return have
}

func refuse(c *conn, arg json.RawMessage) error {
	var status int
	if err := json.Unmarshal(arg, &status); err != nil {
		return err
	}
	c.ending()
	c.answered = true
	http.Error(c.w, http.StatusText(status), status)
	return nil
}

// redirect leads to where the request came from, with a status: whoever follows it is
// the next connection, and has not waited.
func redirect(c *conn, arg json.RawMessage) error {
	c.w.Header().Set("Location", c.request.URL.String())
	return refuse(c, arg)
}

func cutHandshake(c *conn, _ json.RawMessage) error {
	nc, err := c.takeOver()
	if err != nil {
		return err
	}
	c.ending()
	return nc.Close()
}

// holdHandshake never answers. It ends when the client gives up.
func holdHandshake(c *conn, _ json.RawMessage) error {
	nc, err := c.takeOver()
	if err != nil {
		return err
	}
	c.awaitEnd(nc)
	return nc.Close()
}

// welcome may be told what to say differently.
func welcome(c *conn, arg json.RawMessage) error {
	frame := map[string]any{
		"action": "welcome", "session_id": "s" + strconv.Itoa(c.number), "cursor": "c0", "resumed": false,
		"channels": []string{"trade", "account", "position", "risk", "system"}, "heartbeat_ms": 20000, "refresh": false,
	}
	if err := json.Unmarshal(arg, &frame); err != nil {
		return err
	}
	c.run.journal.note("welcome", map[string]any{"connection": c.number, "cursor": frame["cursor"], "resumed": frame["resumed"]})
	return c.writeJSON(frame)
}

func heartbeat(c *conn, arg json.RawMessage) error {
	var cursor string
	if err := json.Unmarshal(arg, &cursor); err != nil {
		return err
	}
	return c.writeJSON(map[string]string{"action": "heartbeat", "cursor": cursor})
}

// every calls f each so many milliseconds: so many times, or if that is 0 until the
// client has left.
func every(c *conn, ms, times int, f func() error) error {
	if err := c.upgrade(); err != nil {
		return err
	}
	tick := time.NewTicker(time.Duration(ms) * time.Millisecond)
	defer tick.Stop()
	for i := 0; times == 0 || i < times; i++ {
		select {
		case <-tick.C:
		case <-c.gone:
			if times == 0 {
				return nil
			}
			return errors.New("the client has left")
		case <-c.run.ctx.Done():
			return context.Cause(c.run.ctx)
		}
		if err := f(); err != nil && times > 0 {
			return err
		}
	}
	return nil
}

func heartbeats(c *conn, arg json.RawMessage) error {
	var a struct {
		EveryMS int `json:"every_ms"`
		Times   int
		Cursor  string
	}
	if err := strict(arg, &a); err != nil {
		return err
	}
	beat := json.RawMessage(strconv.Quote(a.Cursor))
	return every(c, a.EveryMS, a.Times, func() error { return heartbeat(c, beat) })
}

func idOf(n int) string { return "n-" + strconv.Itoa(n) }

// cursorOf is the cursor behind the notifications up to n. What is behind a point is
// the server's: c3.1 is younger than c3, and covers the same.
func cursorOf(n int) string { return "c" + strconv.Itoa(n) }

// coveredBy is the inverse of cursorOf; -1 if it is no such cursor.
func coveredBy(cursor string) int {
	digits, found := strings.CutPrefix(cursor, "c")
	digits, _, _ = strings.Cut(digits, ".")
	n, err := strconv.Atoi(digits)
	if err != nil || !found {
		return -1
	}
	return n
}

// notificationOf is the n-th of a run, as a real server would send it.
func notificationOf(n int) *notification.Notification {
	at := timestampOf(n)
	var p notification.Payload
	switch n % 4 {
	case 0:
		p = notification.AccountUpdate{UserID: "u", Balance: 1e6 + float64(n)/8, Available: 5e5, Margin: 1e5, RiskRatio: 0.25, Timestamp: at}
	case 1:
		p = notification.TradeExecuted{TradeID: "t" + strconv.Itoa(n), OrderID: "o" + strconv.Itoa(n), InstrumentID: "SHFE.cu2501",
			Direction: "BUY", Offset: "OPEN", Price: 50_000 + float64(n), Volume: 1, FillType: "FULL", Timestamp: at}
	case 2:
		p = notification.OrderAccepted{OrderID: "o" + strconv.Itoa(n), InstrumentID: "DCE.i2505", Direction: "SELL", Offset: "CLOSE",
			Price: 801.5, Volume: 2, OrderType: "LIMIT", Timestamp: at}
	default:
		p = notification.RiskAlert{UserID: "u", AlertType: "risk_ratio", Severity: "warning", Message: "保证金 \"80 %\"", RiskRatio: 0.8, Timestamp: at}
	}
	one := notification.New("u", p, "conformance")
	one.ID, one.Timestamp = idOf(n), at
	return one
}

// timestampOf is a number that JavaScript has as well, which most are not: that is
// the subject of one scenario.
func timestampOf(n int) int64 { return 1700000000000000000 + 1000<<20*int64(n) }

// batch is a frame with the notifications from one to another.
func batch(from, to int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"cursor":%q,"notifications":[`, cursorOf(to))
	for n := from; n <= to; n++ {
		if n > from {
			b.WriteByte(',')
		}
		b.Write(notificationOf(n).AppendJSON(nil))
	}
	b.WriteString("]}")
	return b.Bytes()
}

// notifications sends them in one batch, or in several of a size.
func notifications(c *conn, arg json.RawMessage) error {
	var a struct{ From, To, Batch int }
	if err := strict(arg, &a); err != nil {
		return err
	}
	if a.Batch == 0 {
		a.Batch = a.To
	}
	for n := a.From; n <= a.To; n += a.Batch {
		if err := c.write(batch(n, min(n+a.Batch-1, a.To))); err != nil {
			return err
		}
	}
	return nil
}

// replay sends what is behind the cursor that the client says, up to a
// notification.
func replay(c *conn, arg json.RawMessage) error {
	var to int
	if err := json.Unmarshal(arg, &to); err != nil {
		return err
	}
	said, _ := asked(c.request)["cursor"].(string)
	after := coveredBy(said)
	if after < 0 || after > to {
		return fmt.Errorf("it says cursor %q", said)
	}
	if after == to {
		return nil
	}
	return c.write(batch(after+1, to))
}

// fragments sends a batch in three frames, with a ping in between.
func fragments(c *conn, arg json.RawMessage) error {
	var a struct{ From, To int }
	if err := strict(arg, &a); err != nil {
		return err
	}
	if err := c.upgrade(); err != nil {
		return err
	}
	text := batch(a.From, a.To)
	third := len(text) / 3
	c.wire.send(textFrame, text[:third])
	c.wire.send(continuation, text[third:2*third])
	c.wire.send(fin|pingFrame, []byte("between"))
	c.wire.send(fin|continuation, text[2*third:])
	return nil
}

// big sends a notification of so many bytes.
func big(c *conn, arg json.RawMessage) error {
	var a struct{ N, Bytes int }
	if err := strict(arg, &a); err != nil {
		return err
	}
	one := notification.New("u", notification.SystemNotice{Title: "big", Content: strings.Repeat("大 ", a.Bytes/4), Timestamp: timestampOf(a.N)}, "conformance")
	one.ID, one.Timestamp = idOf(a.N), timestampOf(a.N)
	return c.write([]byte(fmt.Sprintf(`{"cursor":%q,"notifications":[%s]}`, cursorOf(a.N), one.AppendJSON(nil))))
}

// ok and refusal answer the last command that was heard.
func ok(c *conn, arg json.RawMessage) error { return c.answer("ok", arg) }

func refusal(c *conn, arg json.RawMessage) error { return c.answer("error", arg) }

func (c *conn) answer(action string, arg json.RawMessage) error {
	frame := map[string]any{"action": action}
	if err := json.Unmarshal(arg, &frame); err != nil {
		return err
	}
	if c.lastID != nil {
		frame["id"] = c.lastID
	} else if action == "ok" && frame["expires_in_ms"] == nil {
		return nil // nobody asked
	}
	return c.writeJSON(frame)
}

// send sends JSON as it stands in the scenario, without the spaces.
func send(c *conn, arg json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Compact(&b, arg); err != nil {
		return err
	}
	return c.write(b.Bytes())
}

func sendText(c *conn, arg json.RawMessage) error {
	var text string
	if err := json.Unmarshal(arg, &text); err != nil {
		return err
	}
	return c.write([]byte(text))
}

// awaitedPing is the payload of the ping whose answer is waited for.
const awaitedPing = "ping"

// ping pings and waits for the pong.
func ping(c *conn, arg json.RawMessage) error {
	if err := c.upgrade(); err != nil {
		return err
	}
	c.ponged = make(chan struct{})
	c.wire.send(fin|pingFrame, []byte(awaitedPing))
	select {
	case <-c.ponged:
		return nil
	case <-c.gone:
		return errors.New("the client has left instead of answering a ping")
	case <-c.run.ctx.Done():
		return fmt.Errorf("no answer to a ping: %w", context.Cause(c.run.ctx))
	}
}

// pings pings, and sends nothing else, until the client leaves.
func pings(c *conn, arg json.RawMessage) error {
	var ms int
	if err := json.Unmarshal(arg, &ms); err != nil {
		return err
	}
	if err := c.upgrade(); err != nil {
		return err
	}
	return every(c, ms, 0, func() error {
		c.wire.mu.Lock() // not send: a ping is nothing that a page could see
		defer c.wire.mu.Unlock()
		_, err := c.wire.Conn.Write(frame(fin|pingFrame, nil))
		return err
	})
}

// hear waits for the client's next command, which has these fields. The order of
// channels is of no account. Pings of the client are answered.
func hear(c *conn, arg json.RawMessage) error {
	want, err := decode(arg)
	if err != nil {
		return err
	}
	if err := c.upgrade(); err != nil {
		return err
	}
	for {
		select {
		case text := <-c.frames:
			c.run.journal.note("heard", map[string]any{"connection": c.number, "frame": string(text)})
			var command struct {
				Action string
				ID     json.RawMessage
			}
			if err := json.Unmarshal(text, &command); err != nil {
				return fmt.Errorf("the client says %s: %w", text, err)
			}
			c.lastID = command.ID
			if command.Action == "ping" {
				if err := c.answer("pong", json.RawMessage("null")); err != nil {
					return err
				}
				continue
			}
			have, err := decode(text)
			if err != nil {
				return err
			}
			if !contains(sorted(have), sorted(want)) {
				return fmt.Errorf("the client says %s, not %s", text, arg)
			}
			return nil
		case <-c.gone:
			return fmt.Errorf("the client has left, with %d, without saying %s", c.code, arg)
		case <-c.run.ctx.Done():
			return fmt.Errorf("the client does not say %s: %w", arg, context.Cause(c.run.ctx))
		}
	}
}

// sorted joins the channels of a command: in a pattern a list means one of its
// values.
func sorted(v any) any {
	fields, ok := v.(map[string]any)
	if !ok {
		return v
	}
	list, ok := fields["channels"].([]any)
	if !ok {
		return v
	}
	var names []string
	for _, c := range list {
		names = append(names, fmt.Sprint(c))
	}
	slices.Sort(names)
	fields["channels"] = strings.Join(names, ",")
	return fields
}

// left waits until the client leaves: {"code":1000}, {"not_before_ms":500} after the
// last frame that it got, or null.
func left(c *conn, arg json.RawMessage) error {
	var a struct {
		Code        int
		NotBeforeMS int `json:"not_before_ms"`
	}
	if string(arg) != "null" {
		if err := strict(arg, &a); err != nil {
			return err
		}
	}
	if err := c.awaitGone(); err != nil {
		return err
	}
	if a.Code != 0 && a.Code != c.code {
		return fmt.Errorf("the client leaves with %d, not %d", c.code, a.Code)
	}
	// A timer may be early by a fraction of its unit.
	if quiet := time.Since(c.wire.lastWrite()); quiet < time.Duration(a.NotBeforeMS-5)*time.Millisecond {
		return fmt.Errorf("the client leaves after %v of silence, before %d ms", quiet, a.NotBeforeMS)
	}
	return nil
}

// until waits for an entry in the journal. Of a client that is tried by hand there
// is none.
func until(c *conn, arg json.RawMessage) error {
	var p pattern
	if err := json.Unmarshal(arg, &p); err != nil {
		return err
	}
	if c.run.byHand && p["event"] != nil {
		return pause(c, json.RawMessage("1000"))
	}
	return c.run.journal.await(c.run.ctx, p)
}

func mark(c *conn, arg json.RawMessage) error {
	var name string
	if err := json.Unmarshal(arg, &name); err != nil {
		return err
	}
	c.run.journal.note("mark", map[string]any{"name": name})
	return nil
}

func pause(c *conn, arg json.RawMessage) error {
	var ms int
	if err := json.Unmarshal(arg, &ms); err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		return nil
	case <-c.run.ctx.Done():
		return context.Cause(c.run.ctx)
	}
}

func closeCode(c *conn, arg json.RawMessage) error {
	var code uint16
	if err := json.Unmarshal(arg, &code); err != nil {
		return err
	}
	return c.closeWith(append(binary.BigEndian.AppendUint16(nil, code), "because"...))
}

// cutInFrame ends the connection in the middle of a batch.
func cutInFrame(c *conn, arg json.RawMessage) error {
	var a struct{ From, To int }
	if err := strict(arg, &a); err != nil {
		return err
	}
	if err := c.upgrade(); err != nil {
		return err
	}
	whole := frame(fin|textFrame, batch(a.From, a.To))
	if _, err := c.wire.Write(whole[:len(whole)/2]); err != nil {
		return err
	}
	return c.cut()
}

// silence: the connection stays open, and nothing comes out of it any more.
func silence(c *conn, _ json.RawMessage) error {
	if err := c.upgrade(); err != nil {
		return err
	}
	c.wire.hush()
	return nil
}

// userOf is whose run a request belongs to.
func userOf(u *url.URL) (string, error) {
	users := u.Query()["user"]
	if len(users) != 1 || users[0] == "" {
		return "", fmt.Errorf("the query %q names not one user: what the URL had must stay there", u.RawQuery)
	}
	return users[0], nil
}
