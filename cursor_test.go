package notification

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// cursors are some, from the least to the greatest.
var cursors = []Cursor{
	{},
	{epoch: 1},
	{user: 1},
	{seqs: [NumPriorities]uint64{0, 0, 0, 1}},
	{epoch: 1 << 63, user: 77, seqs: [NumPriorities]uint64{1, 127, 128, 1 << 40}},
	{epoch: math.MaxUint64, user: math.MaxUint64, seqs: lanes[uint64](math.MaxUint64)},
}

func TestCursorText(t *testing.T) {
	t.Run("every cursor is read back as it was written", func(t *testing.T) {
		for _, c := range cursors {
			text := c.String()
			require.LessOrEqual(t, len(text), 80)
			require.False(t, strings.ContainsAny(text, "+/=& %"), "it goes into a URL as it is: %s", text)
			back, err := ParseCursor(text)
			require.NoError(t, err)
			require.Equal(t, c, back)
			raw, err := c.MarshalText()
			require.NoError(t, err)
			require.Equal(t, text, string(raw))
			back = Cursor{epoch: 99}
			require.NoError(t, back.UnmarshalText(raw))
			require.Equal(t, c, back)
		}
	})
	t.Run("the zero Cursor is the empty text", func(t *testing.T) {
		require.Empty(t, Cursor{}.String())
		c, err := ParseCursor("")
		require.NoError(t, err)
		require.Zero(t, c)
	})
	t.Run("it is a string in JSON", func(t *testing.T) {
		type hello struct {
			Cursor Cursor `json:"cursor"`
		}
		for _, c := range cursors {
			b, err := json.Marshal(hello{c})
			require.NoError(t, err)
			require.Equal(t, `{"cursor":"`+c.String()+`"}`, string(b))
			var back hello
			require.NoError(t, json.Unmarshal(b, &back))
			require.Equal(t, c, back.Cursor)
		}
		require.ErrorIs(t, json.Unmarshal([]byte(`{"cursor":"x"}`), &hello{}), ErrInvalid)
	})
}

func TestCursorTextThatIsNone(t *testing.T) {
	good := cursors[4].String()
	encode := base64.RawURLEncoding.EncodeToString
	head := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte{cursorVersion}, 5), 6)
	bad := map[string]string{
		"garbage":                           "not a cursor",
		"one character":                     "A",
		"of another version":                encode(append([]byte{cursorVersion + 1}, append(head[1:], 1, 2, 3, 4)...)),
		"without its numbers":               encode(head),
		"with a lane too few":               encode(append(slices.Clip(head), 1, 2, 3)),
		"with a lane too many":              encode(append(slices.Clip(head), 1, 2, 3, 4, 5)),
		"with a number that does not end":   encode(append(slices.Clip(head), 1, 2, 3, 0x80)),
		"with a number over 64 bits":        encode(append(slices.Clip(head), 1, 2, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2)),
		"with a number longer than need be": encode(append(slices.Clip(head), 1, 2, 3, 0x84, 0)),
		"of zero, written out":              encode(append(append([]byte{cursorVersion}, make([]byte, 16)...), 0, 0, 0, 0)),
		"with a line break":                 good[:8] + "\n" + good[8:],
		"with a carriage return at the end": good + "\r",
		"with padding":                      encode(append(slices.Clip(head), 1, 2, 3, 4, 0x81)) + "=",
		"in the alphabet that URLs spoil":   strings.Repeat("+/", 10) + good,
		"with bits set that say nothing":    strings.TrimSuffix(encode(append(slices.Clip(head), 1, 2, 3, 0x80, 1)), "Q") + "R",
		"with a zero byte":                  good + "\x00",
		"with a space before it":            " " + good,
		"that is no UTF-8":                  "\xff\xfe" + good,
		"of 81 bytes":                       strings.Repeat("A", 81),
		"of a megabyte":                     strings.Repeat("A", 1<<20),
	}
	for i := 1; i < len(good); i++ {
		bad[fmt.Sprintf("cut after %d characters", i)] = good[:i]
	}
	for name, text := range bad {
		t.Run("a text "+name+" is ErrInvalid", func(t *testing.T) {
			c, err := ParseCursor(text)
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, c)
			require.Less(t, len(err.Error()), 400, "it does not repeat all that was sent")
			before := Cursor{epoch: 3}
			c = before
			require.ErrorIs(t, c.UnmarshalText([]byte(text)), ErrInvalid)
			require.Equal(t, before, c, "a failed read changes nothing")
		})
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add("A")
	for _, c := range cursors {
		f.Add(c.String())
	}
	g, err := NewGateway("g", GatewayConfig{HistoryMessages: 1024})
	require.NoError(f, err)
	_, err = g.RegisterSession(SessionConfig{ID: "s", UserID: "u", Sink: SinkFunc(nil)})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCursor(text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, c)
			return
		}
		require.Equal(t, text, c.String(), "one text for one cursor")
		if c == (Cursor{}) {
			return
		}
		_, err = g.RegisterSession(SessionConfig{ID: "t", UserID: "u", Sink: SinkFunc(nil), After: c})
		require.ErrorIs(t, err, ErrCursorGone)
		require.Equal(t, 1, g.Stats().Sessions)
	})
}

func TestCursorCovers(t *testing.T) {
	c := Cursor{epoch: 1, user: 2, seqs: [NumPriorities]uint64{5, 5, 5, 5}}
	with := func(change func(*Cursor)) Cursor {
		o := c
		change(&o)
		return o
	}
	t.Run("a cursor covers itself and every one that is behind it in no lane", func(t *testing.T) {
		require.True(t, c.Covers(c))
		require.True(t, Cursor{}.Covers(Cursor{}))
		for p := range c.seqs {
			further := with(func(o *Cursor) { o.seqs[p]++ })
			require.True(t, further.Covers(c), "lane %d", p)
			require.False(t, c.Covers(further), "lane %d", p)
		}
	})
	t.Run("two that are ahead of each other in different lanes do not cover each other", func(t *testing.T) {
		o := with(func(o *Cursor) { o.seqs[P0]++; o.seqs[P3]-- })
		require.False(t, c.Covers(o))
		require.False(t, o.Covers(c))
	})
	t.Run("nor do those of another user or another epoch", func(t *testing.T) {
		for _, o := range []Cursor{with(func(o *Cursor) { o.user = 3 }), with(func(o *Cursor) { o.epoch = 7 }), {}} {
			require.False(t, c.Covers(o))
			require.False(t, o.Covers(c))
		}
	})
}
