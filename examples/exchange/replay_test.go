package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/qaexchange/notification"
)

// flow has each kind of event, an order that is older than the recording (900)
// and one that the book did not show.
const flow = `34200.000000001,1,100,50,1000000,1
34200.1,4,100,20,1000000,1
34200.2,2,100,10,1000000,1
34200.3,4,100,20,1000000,1
34200.4,1,101,7,1001000,-1
34200.5,3,101,7,1001000,-1
34200.6,4,900,5,999000,-1
34200.7,2,900,4,999000,-1
34200.8,3,900,6,999000,-1
34200.9,5,0,30,1000500,1
34201,6,-1,500,1000500,1
34201.1,7,0,0,-1,-1
34201.2,7,0,0,0,-1
34201.3,7,0,0,1,-1
`

func TestReadRecording(t *testing.T) {
	t.Run("plain and gzipped are told apart by content", func(t *testing.T) {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write([]byte(flow))
		w.Close()
		for name, in := range map[string][]byte{"plain": []byte(flow), "gzipped": z.Bytes()} {
			r, err := readRecording(bytes.NewReader(in))
			if err != nil || len(r.events) != 14 {
				t.Errorf("%s: %v, %v", name, r, err)
			}
		}
	})
	t.Run("a gzipped file that ends early is an error", func(t *testing.T) {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write([]byte(flow))
		w.Close()
		if _, err := readRecording(bytes.NewReader(z.Bytes()[:z.Len()-9])); err == nil {
			t.Error("no error")
		}
	})
	t.Run("the fields are read exactly", func(t *testing.T) {
		got, err := parseEvent("34200.004241176,1,16113575,18,5853300,-1")
		want := event{at: 34200_004241176, kind: eventSubmit, order: 16113575, size: 18, price: 5853300}
		if err != nil || got != want {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("empty lines and carriage returns do no harm", func(t *testing.T) {
		r, err := readRecording(strings.NewReader("\n1,1,1,1,1,1\r\n\n2,3,1,1,1,1\n"))
		if err != nil || len(r.events) != 2 {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("a bad line is named, with what is wrong", func(t *testing.T) {
		for line, want := range map[string]string{
			"34200,1,5,1,1":            "line 2: 5 fields instead of 6",
			"soon,1,5,1,1,1":           `line 2: time "soon"`,
			"NaN,1,5,1,1,1":            `line 2: time "NaN"`,
			"99999999,1,5,1,1,1":       `line 2: time "99999999"`,
			"34200,8,5,1,1,1":          `line 2: type "8" is not within 1 and 7`,
			"34200,1,x,1,1,1":          `line 2: order "x"`,
			"34200,1,5,0,1,1":          `line 2: size "0"`,
			"34200,1,5,9999999999,1,1": `line 2: size "9999999999"`,
			"34200,1,5,1,-1,1":         `line 2: price "-1"`,
			"34200,1,5,1,1,0":          `line 2: direction "0"`,
			"34199,1,5,1,1,1":          "line 2: time 9h29m59s is before",
		} {
			_, err := readRecording(strings.NewReader("34200,1,4,1,1,1\n" + line + "\n"))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", line, err, want)
			}
		}
	})
	t.Run("nothing at all is an error", func(t *testing.T) {
		if _, err := readRecording(strings.NewReader("\n")); err == nil {
			t.Error("no error")
		}
	})
	t.Run("the file's name tells the instrument", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "aapl_2012-06-21_message.csv")
		if err := os.WriteFile(name, []byte(flow), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := openRecording(name); err != nil || r.instrument != "AAPL" {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// said is what was published, in order.
type said struct {
	users    []int
	payloads []notification.Payload
}

func (s *said) publish(user int, payload notification.Payload) {
	s.users, s.payloads = append(s.users, user), append(s.payloads, payload)
}

func (s *said) flush() {}

func TestReplay(t *testing.T) {
	r, err := readRecording(strings.NewReader(flow))
	if err != nil {
		t.Fatal(err)
	}
	r.instrument = "TEST"
	var s said
	var played atomic.Int64
	newReplay(10_000, r, &s).run(context.Background(), 0, &played)

	t.Run("each event becomes the matching types, with what follows a fill", func(t *testing.T) {
		var types []notification.Type
		for _, p := range s.payloads {
			types = append(types, p.Type())
		}
		fill := func(state notification.Type) []notification.Type {
			return []notification.Type{notification.TypeTradeExecuted, state, notification.TypeAccountUpdate, notification.TypePositionUpdate}
		}
		want := slices.Concat(
			[]notification.Type{notification.TypeOrderAccepted},
			fill(notification.TypeOrderPartiallyFilled),
			[]notification.Type{notification.TypeOrderCanceled},
			fill(notification.TypeOrderFilled),
			[]notification.Type{notification.TypeOrderAccepted, notification.TypeOrderCanceled},
			fill(notification.TypeOrderPartiallyFilled),
			[]notification.Type{notification.TypeOrderCanceled, notification.TypeOrderCanceled},
			fill(notification.TypeOrderFilled),
			[]notification.Type{
				notification.TypeSystemNotice, notification.TypeMarketHalt, notification.TypeSystemNotice,
				notification.TypeSystemNotice, notification.TypeTradingSessionEnd,
			})
		if !slices.Equal(types, want) {
			t.Errorf("got  %v\nwant %v", types, want)
		}
	})
	t.Run("a partial cancel makes the order smaller", func(t *testing.T) {
		p := s.payloads[2].(notification.OrderPartiallyFilled)
		f := s.payloads[7].(notification.OrderFilled)
		if p.FilledVolume != 20 || p.RemainingVolume != 30 || f.FilledVolume != 40 {
			t.Errorf("%+v, %+v", p, f)
		}
	})
	t.Run("an order that is older than the recording has the size that the recording shows", func(t *testing.T) {
		p := s.payloads[13].(notification.OrderPartiallyFilled)
		if p.OrderID != "L900" || p.FilledVolume != 5 || p.RemainingVolume != 10 {
			t.Errorf("%+v", p)
		}
	})
	t.Run("an order belongs to one user throughout, halts to everybody", func(t *testing.T) {
		owner := s.users[0]
		for i := 1; i <= 9; i++ {
			if s.users[i] != owner {
				t.Errorf("message %d went to %d, not %d", i, s.users[i], owner)
			}
		}
		for i, p := range s.payloads {
			if (p.Type().Channel() == notification.ChannelSystem) != (s.users[i] == everybody) {
				t.Errorf("%s went to %d", p.Type(), s.users[i])
			}
		}
	})
	t.Run("all of it was played", func(t *testing.T) {
		if played.Load() != 14 {
			t.Errorf("played %d", played.Load())
		}
	})
}
