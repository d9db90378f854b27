package natslog

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write testdata anew")

// archives returns the archives of these IDs, end to end.
func archives(t testing.TB, user string, lane notification.Priority, ids ...string) []byte {
	t.Helper()
	var data []byte
	for _, id := range ids {
		n := note(id, user, lane)
		n.Timestamp = 1729468800123456789
		var err error
		data, err = n.AppendBinary(data)
		require.NoError(t, err)
	}
	return data
}

// reopen opens what a message has become on its way.
func reopen(m *nats.Msg, seq uint64) (block, error) {
	return openBlock(seq, time.Unix(1, 0), m.Header, m.Data)
}

func TestBlock(t *testing.T) {
	t.Run("what was put into a block comes out of it, with its number in the log", func(t *testing.T) {
		b, err := reopen(newBlockMsg("s", "id", 3, archives(t, "alice", notification.P1, "a", "b", "c")), 7)
		require.NoError(t, err)
		require.Equal(t, 3, b.count)
		var got []string
		for number, e := range b.entries() {
			require.NoError(t, e.err)
			require.Equal(t, "alice", e.user)
			got = append(got, fmt.Sprintf("%d %s", number, e.archive.ID()))
		}
		require.Equal(t, []string{"7168 a", "7169 b", "7170 c"}, got)
	})

	t.Run("whoever has found what he looked for may stop", func(t *testing.T) {
		b, err := reopen(newBlockMsg("s", "id", 2, archives(t, "alice", notification.P1, "a", "b")), 7)
		require.NoError(t, err)
		for range b.entries() {
			break
		}
	})

	t.Run("one without entries is a block", func(t *testing.T) {
		b, err := reopen(newBlockMsg("s", "id", 0, nil), 7)
		require.NoError(t, err)
		for range b.entries() {
			t.Error("there is none")
		}
	})

	t.Run("one of 1,024 entries is a block, and none has the number of another block's", func(t *testing.T) {
		one := archives(t, "alice", notification.P1, "a")
		b, err := reopen(newBlockMsg("s", "id", 1024, bytes.Repeat(one, 1024)), 7)
		require.NoError(t, err)
		last := uint64(0)
		for number := range b.entries() {
			last = number
		}
		require.Equal(t, number(8, 0)-1, last)
	})

	two := archives(t, "alice", notification.P1, "a", "b")
	size := len(two) / 2
	changed := func(at int, b byte) []byte {
		d := bytes.Clone(two)
		d[at] = b
		return d
	}
	for what, m := range map[string]*nats.Msg{
		"one without the header":              {Data: two},
		"one whose header is no number":       {Data: two, Header: nats.Header{headerEntries: {"two"}}},
		"one whose header is negative":        {Data: two, Header: nats.Header{headerEntries: {"-2"}}},
		"one of more than 1,024 entries":      newBlockMsg("s", "id", 1025, bytes.Repeat(two[:size], 1025)),
		"one with fewer entries than it says": newBlockMsg("s", "id", 3, two),
		"one with more entries than it says":  newBlockMsg("s", "id", 1, two),
		"one with data and no entries":        newBlockMsg("s", "id", 0, two),
		"one that is cut off":                 newBlockMsg("s", "id", 2, two[:len(two)-1]),
		"one with a byte too many":            newBlockMsg("s", "id", 2, append(bytes.Clone(two), 0)),
		"one of something else":               newBlockMsg("s", "id", 2, changed(size, 'q')),
		"one with a size under a header's":    newBlockMsg("s", "id", 2, changed(archiveSize, 25)),
		"one with a size over all":            newBlockMsg("s", "id", 2, changed(archiveSize+3, 1)),
	} {
		t.Run(what+" is refused", func(t *testing.T) {
			_, err := reopen(m, 7)
			require.ErrorIs(t, err, errBlock)
		})
	}
}

func TestBlockWithStrangeArchive(t *testing.T) {
	// A type that this reader does not know, whose user's name is where those of a
	// trade have it.
	data := archives(t, "alice", notification.P1, "a", "b", "c")
	size := len(data) / 3
	prefix := bytes.Index(data, []byte("aalice")) // ID, UserID
	data[size+archiveType] = 21
	open := func(layouts ...string) []entry {
		m := newBlockMsg("s", "id", 3, data)
		if layouts != nil {
			m.Header[headerLayouts] = layouts
		}
		b, err := reopen(m, 7)
		require.NoError(t, err)
		var es []entry
		for _, e := range b.entries() {
			es = append(es, e)
		}
		return es
	}

	t.Run("the entries around it are read", func(t *testing.T) {
		es := open()
		require.Equal(t, "a", es[0].archive.ID())
		require.ErrorIs(t, es[1].err, notification.ErrCorrupt)
		require.Equal(t, "c", es[2].archive.ID())
	})

	t.Run("the header says whose it is", func(t *testing.T) {
		require.Equal(t, "alice", open(fmt.Sprintf("20=58, 21=%d", prefix))[1].user)
	})

	for _, layouts := range []string{"", "20=58", "21", "21=", "21=x", "21=-1", "277=26", "21=65535", fmt.Sprint("21=", size-2), ",,=,"} {
		t.Run(fmt.Sprintf("with the header %q it may be anybody's", layouts), func(t *testing.T) {
			require.Equal(t, notification.AllUsers, open(layouts)[1].user)
		})
	}
}

func TestPartition(t *testing.T) {
	t.Run("it is that of BLOCK.md", func(t *testing.T) {
		text, err := os.ReadFile("BLOCK.md")
		require.NoError(t, err)
		rows := 0
		for line := range strings.Lines(string(text)) {
			var user string
			var hash uint64
			var of4, of64 int
			fields := strings.Fields(strings.NewReplacer("|", " ", "`", " ").Replace(line))
			if len(fields) != 4 {
				continue
			}
			user = fields[0]
			if n, _ := fmt.Sscanf(strings.Join(fields[1:], " "), "%x %d %d", &hash, &of4, &of64); n != 3 {
				continue
			}
			require.Equal(t, of4, partitionOf(user, 4), user)
			require.Equal(t, of64, partitionOf(user, 64), user)
			require.EqualValues(t, hash%(1<<31-1), partitionOf(user, 1<<31-1), user)
			rows++
		}
		require.Equal(t, 4, rows)
	})

	t.Run("users are spread evenly", func(t *testing.T) {
		var users [8]int
		for i := range 80_000 {
			users[partitionOf(fmt.Sprint("user-", i), 8)]++
		}
		for _, n := range users {
			require.InDelta(t, 10_000, n, 1000)
		}
	})
}

// goldens are the messages in testdata/block: as they stand on the wire behind the
// line of HPUB, header and data.
func goldens(t *testing.T) map[string]*nats.Msg {
	const run = "000102030405060708090a0b0c0d0e0f"
	two := archives(t, "alice", notification.P1, "trade-1", "trade-2")
	unknown := newBlockMsg("notification.P1.3", run+".P1.3.2", 2, bytes.Clone(two))
	unknown.Header.Set(headerLayouts, fmt.Sprintf("20=58,21=%d", bytes.Index(two, []byte("trade-1alice"))))
	unknown.Data[len(two)/2+archiveType] = 21
	return map[string]*nats.Msg{
		"two":     newBlockMsg("notification.P1.3", run+".P1.3.1", 2, two),
		"all":     newBlockMsg("notification.P3.0", run+".P3.0.1", 1, archives(t, notification.AllUsers, notification.P3, "halt-1")),
		"empty":   newBlockMsg("notification.P1.3", "any.unlike.others", 0, nil),
		"unknown": unknown,
	}
}

func TestBlockGolden(t *testing.T) {
	for name, m := range goldens(t) {
		t.Run(name+" is what it was", func(t *testing.T) {
			file := filepath.Join("testdata", "block", name+".hpub")
			var wire bytes.Buffer
			wire.WriteString("NATS/1.0\r\n")
			for _, h := range []string{headerMsgID, headerEntries, headerLayouts} {
				if m.Header.Get(h) != "" {
					fmt.Fprintf(&wire, "%s: %s\r\n", h, m.Header.Get(h))
				}
			}
			wire.WriteString("\r\n")
			wire.Write(m.Data)
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, wire.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), wire.String(), "the format is public: what was stored must be read")

			head, data, ok := bytes.Cut(want, []byte("\r\n\r\n"))
			require.True(t, ok)
			h, err := nats.DecodeHeadersMsg(append(head, "\r\n\r\n"...))
			require.NoError(t, err)
			b, err := openBlock(1, time.Time{}, h, data)
			require.NoError(t, err)
			got := ""
			for number, e := range b.entries() {
				if e.err != nil {
					got += fmt.Sprintf("%d somebody's, %s's\n", number, e.user)
				} else {
					got += fmt.Sprintf("%d %s of %s\n", number, e.archive.ID(), e.user)
				}
			}
			require.Equal(t, map[string]string{
				"two":     "1024 trade-1 of alice\n1025 trade-2 of alice\n",
				"all":     "1024 halt-1 of *\n",
				"empty":   "",
				"unknown": "1024 trade-1 of alice\n1025 somebody's, alice's\n",
			}[name], got)
		})
	}
}

func FuzzBlock(f *testing.F) {
	var two []byte
	for _, id := range []string{"a", "b"} {
		two, _ = note(id, "alice", notification.P1).AppendBinary(two)
	}
	f.Add("2", "", two)
	f.Add("2", "21=98", two)
	f.Add("0", "", []byte{})
	f.Fuzz(func(t *testing.T, count, layouts string, data []byte) {
		b, err := openBlock(3, time.Time{}, nats.Header{headerEntries: {count}, headerLayouts: {layouts}}, data)
		if err != nil {
			require.ErrorIs(t, err, errBlock)
			return
		}
		n, size := 0, 0
		for at, e := range b.entries() {
			require.Equal(t, number(3, n), at)
			require.NotEmpty(t, e.user)
			size += int(binary.LittleEndian.Uint32(data[size+archiveSize:]))
			n++
		}
		require.Equal(t, b.count, n)
		require.Equal(t, len(data), size)
	})
}
