package notification

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// structs has for each type what takes its payload struct as a type argument.
var structs = map[Type]payloadStruct{
	TypeOrderAccepted:        structOf[OrderAccepted](),
	TypeOrderRejected:        structOf[OrderRejected](),
	TypeOrderPartiallyFilled: structOf[OrderPartiallyFilled](),
	TypeOrderFilled:          structOf[OrderFilled](),
	TypeOrderCanceled:        structOf[OrderCanceled](),
	TypeOrderExpired:         structOf[OrderExpired](),
	TypeTradeExecuted:        structOf[TradeExecuted](),
	TypeTradeCanceled:        structOf[TradeCanceled](),
	TypeAccountOpen:          structOf[AccountOpen](),
	TypeAccountUpdate:        structOf[AccountUpdate](),
	TypePositionUpdate:       structOf[PositionUpdate](),
	TypePositionProfit:       structOf[PositionProfit](),
	TypeRiskAlert:            structOf[RiskAlert](),
	TypeMarginCall:           structOf[MarginCall](),
	TypePositionLimit:        structOf[PositionLimit](),
	TypeSystemNotice:         structOf[SystemNotice](),
	TypeTradingSessionStart:  structOf[TradingSessionStart](),
	TypeTradingSessionEnd:    structOf[TradingSessionEnd](),
	TypeMarketHalt:           structOf[MarketHalt](),
}

type payloadStruct struct {
	open   func(Archive) (Payload, error)                             // PayloadAs
	field  func(name string, kind reflect.Kind) (archiveField, error) // NumberFieldOf, StringFieldOf
	assert func(Payload) Payload                                      // what a type assertion gives
	data   func(Payload) Payload                                      // what stands where dataOf says
	fields []archiveField                                             // all of them
}

// An archiveField is the method In of a field.
type archiveField func(Archive) (any, bool)

func structOf[T Payload]() payloadStruct {
	s := payloadStruct{
		open:   func(a Archive) (Payload, error) { return PayloadAs[T](a) },
		field:  fieldOf[T],
		assert: func(p Payload) Payload { return p.(T) },
		data:   func(p Payload) Payload { return *(*T)(dataOf(p)) },
	}
	for sf := range reflect.TypeFor[T]().Fields() {
		f, err := fieldOf[T](sf.Tag.Get("json"), sf.Type.Kind())
		if err != nil {
			panic(err)
		}
		s.fields = append(s.fields, f)
	}
	return s
}

func fieldOf[T Payload](name string, kind reflect.Kind) (archiveField, error) {
	switch kind {
	case reflect.String:
		f, err := StringFieldOf[T](name)
		return func(a Archive) (any, bool) { return f.In(a) }, err
	case reflect.Float64:
		return numberFieldOf[T, float64](name)
	case reflect.Int64:
		return numberFieldOf[T, int64](name)
	case reflect.Uint32:
		return numberFieldOf[T, uint32](name)
	default:
		return numberFieldOf[T, uint8](name)
	}
}

func numberFieldOf[T Payload, V Number](name string) (archiveField, error) {
	f, err := NumberFieldOf[T, V](name)
	return func(a Archive) (any, bool) { return f.In(a) }, err
}

// kinds are those that a field can have.
var kinds = []reflect.Kind{reflect.String, reflect.Float64, reflect.Int64, reflect.Uint32, reflect.Uint8}

// sameValue reports whether two fields are equal, floats bit for bit.
func sameValue(x, y any) bool {
	if f, ok := x.(float64); ok {
		g, ok := y.(float64)
		return ok && math.Float64bits(f) == math.Float64bits(g)
	}
	return x == y
}

// archive returns n's archive in a buffer without room to spare, so that a
// read or write behind it is seen.
func archive(t testing.TB, n *Notification) []byte {
	b, err := n.MarshalBinary()
	require.NoError(t, err)
	return slices.Clip(b)
}

// slowArchive reads an archive from ARCHIVE.md's description of it, one value
// after the other: what OpenArchive is compared with.
func slowArchive(b []byte) (n *Notification, ok bool) {
	defer func() {
		if recover() != nil { // a slice that ends behind b
			n, ok = nil, false
		}
	}()
	whole := b
	take := func(count uint64) []byte { v := b[:count]; b = b[count:]; return v }
	number := func(width uint64) (v uint64) {
		for i, c := range take(width) {
			v |= uint64(c) << (8 * i)
		}
		return v
	}
	n = new(Notification)
	ok = string(take(3)) == "QXN" && number(1) == 1 && number(4) == uint64(len(whole))
	source, id, user := number(4), number(2), number(2)
	n.Timestamp = int64(number(8))
	typ := Type(number(1))
	n.Priority = Priority(number(1))
	p := reflect.New(reflect.TypeOf(catalog[typ].payload)).Elem()
	var texts []reflect.Value
	var lengths []uint64
	for i := range p.NumField() {
		switch f := p.Field(i); f.Kind() {
		case reflect.String:
			texts, lengths = append(texts, f), append(lengths, number(4))
		case reflect.Float64:
			f.SetFloat(math.Float64frombits(number(8)))
		case reflect.Int64:
			f.SetInt(int64(number(8)))
		case reflect.Uint32:
			f.SetUint(number(4))
		case reflect.Uint8:
			f.SetUint(number(1))
		}
	}
	n.ID, n.UserID, n.Source = string(take(id)), string(take(user)), string(take(source))
	for i, f := range texts {
		f.SetString(string(take(lengths[i])))
	}
	n.Payload = p.Interface().(Payload)
	return n, ok && len(b) == 0 && n.Validate() == nil
}

// requireArchive asserts that b opens if and only if it is an archive, that
// all ways of reading it agree, and that reading costs no more memory than b
// justifies.
func requireArchive(t testing.TB, b []byte) (ok bool) {
	t.Helper()
	want, ok := slowArchive(b)
	a, err := OpenArchive(b)
	if !ok {
		require.ErrorIs(t, err, ErrCorrupt)
		require.Zero(t, a)
		before := *specimen(TypeMarketHalt)
		n := before
		require.ErrorIs(t, n.UnmarshalBinary(b), ErrCorrupt)
		require.Equal(t, before, n, "a failed read changed it")
		return false
	}
	require.NoError(t, err)
	require.Equal(t, want.ID, a.ID())
	require.Equal(t, want.UserID, a.UserID())
	require.Equal(t, want.Source, a.Source())
	require.Equal(t, want.Type(), a.Type())
	require.Equal(t, want.Priority, a.Priority())
	require.Equal(t, want.Timestamp, a.Timestamp())
	p, err := structs[a.Type()].open(a)
	require.NoError(t, err)
	for i, f := range structs[a.Type()].fields {
		v, ok := f(a)
		require.True(t, ok)
		require.True(t, sameValue(reflect.ValueOf(want.Payload).Field(i).Interface(), v), "field %d is %v", i, v)
	}
	direct := *want
	direct.Payload = p
	require.True(t, sameBits(want, &direct))
	n := a.Notification()
	require.True(t, sameBits(want, n))
	again, err := n.AppendBinary(nil)
	require.NoError(t, err)
	require.Equal(t, b, again, "one notification, two archives")
	return true
}

func TestArchive(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		n := specimen(typ)
		b := archive(t, n)
		t.Run("every field survives", func(t *testing.T) {
			require.True(t, requireArchive(t, b))
			var back Notification
			require.NoError(t, back.UnmarshalBinary(b))
			require.Equal(t, *n, back)
		})
		t.Run("it is appended behind what is there", func(t *testing.T) {
			got, err := n.AppendBinary([]byte("before"))
			require.NoError(t, err)
			require.Equal(t, "before"+string(b), string(got))
		})
		t.Run("as another type it is ErrInvalid", func(t *testing.T) {
			a, err := OpenArchive(b)
			require.NoError(t, err)
			for other, s := range structs {
				if other != typ {
					_, err := s.open(a)
					require.ErrorIs(t, err, ErrInvalid)
					require.ErrorContains(t, err, typ.String())
				}
			}
		})
		t.Run("nothing allocates", func(t *testing.T) {
			buf := make([]byte, 0, len(b))
			var a Archive
			require.Zero(t, testing.AllocsPerRun(50, func() { buf, _ = n.AppendBinary(buf[:0]) }))
			require.Zero(t, testing.AllocsPerRun(50, func() { a, _ = OpenArchive(b) }))
			require.Zero(t, testing.AllocsPerRun(50, func() {
				_, _, _, _, _, _ = a.ID(), a.UserID(), a.Source(), a.Type(), a.Priority(), a.Timestamp()
			}))
		})
	})
	t.Run("PayloadAs allocates nothing", func(t *testing.T) {
		account, err := OpenArchive(archive(t, specimen(TypeAccountUpdate)))
		require.NoError(t, err)
		trade, err := OpenArchive(archive(t, specimen(TypeTradeExecuted)))
		require.NoError(t, err)
		end, err := OpenArchive(archive(t, specimen(TypeTradingSessionEnd)))
		require.NoError(t, err)
		require.Zero(t, testing.AllocsPerRun(50, func() {
			p, _ := PayloadAs[AccountUpdate](account)
			q, _ := PayloadAs[TradeExecuted](trade)
			r, _ := PayloadAs[TradingSessionEnd](end)
			if p.Balance == 0 || q.TradeID == "" || r.Message == "" {
				panic("empty")
			}
		}))
	})
	t.Run("it is smaller than the original's", func(t *testing.T) {
		require.LessOrEqual(t, len(archive(t, specimen(TypeAccountUpdate))), 170) // 288 there
		require.LessOrEqual(t, len(archive(t, specimen(TypeTradeExecuted))), 200) // 264 there
	})
	t.Run("IDs may have one byte, and 256", func(t *testing.T) {
		for _, id := range []string{"x", strings.Repeat("x", 256)} {
			n := &Notification{ID: id, UserID: id, Payload: AccountUpdate{}}
			require.True(t, requireArchive(t, archive(t, n)))
		}
	})
	t.Run("the zero Archive is empty", func(t *testing.T) {
		var a Archive
		require.Zero(t, a.ID()+a.UserID()+a.Source())
		require.Zero(t, a.Type())
		require.Zero(t, a.Priority())
		require.Zero(t, a.Timestamp())
		require.Zero(t, *a.Notification())
		_, err := PayloadAs[AccountUpdate](a)
		require.ErrorIs(t, err, ErrInvalid)
	})
	t.Run("only the payload structs are payloads", func(t *testing.T) {
		a, err := OpenArchive(archive(t, specimen(TypeAccountUpdate)))
		require.NoError(t, err)
		_, err = PayloadAs[*AccountUpdate](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[embedsPayload](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[liarPayload](a)
		require.ErrorIs(t, err, ErrInvalid)
		_, err = PayloadAs[Payload](a)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "the archive holds a account_update, not a notification.Payload")
	})
}

func TestArchiveField(t *testing.T) {
	open := func(t testing.TB, n *Notification) Archive {
		a, err := OpenArchive(archive(t, n))
		require.NoError(t, err)
		return a
	}
	eachType(t, func(t *testing.T, typ Type) {
		p := reflect.TypeOf(catalog[typ].payload)
		t.Run("every field is read, whatever stands before it", func(t *testing.T) {
			for _, vs := range []values{
				{strings: []string{""}, floats: []float64{math.Copysign(0, -1), math.Inf(-1)}, int: math.MinInt64, uint32: 1 << 31, uint8: 1 << 7},
				{strings: []string{"a", "", "bcd", "\xff"}, floats: extremes, int: math.MaxInt64, uint32: math.MaxUint32, uint8: math.MaxUint8},
				{strings: []string{strings.Repeat("x", 300), "y"}, floats: []float64{math.Float64frombits(0x7ff0_0000_0000_0001)}},
			} {
				n := withValues(typ, false, vs)
				for i, f := range structs[typ].fields {
					v, ok := f(open(t, n))
					require.True(t, ok)
					require.True(t, sameValue(reflect.ValueOf(n.Payload).Field(i).Interface(), v), "%s is %v", p.Field(i).Name, v)
				}
			}
		})
		t.Run("an archive of another type does not have it", func(t *testing.T) {
			for other := range structs {
				a := open(t, specimen(other))
				for _, f := range structs[typ].fields {
					v, ok := f(a)
					require.Equal(t, other == typ, ok)
					if !ok {
						require.Zero(t, v)
					}
				}
			}
			for _, f := range structs[typ].fields {
				v, ok := f(Archive{})
				require.False(t, ok)
				require.Zero(t, v)
			}
		})
		t.Run("as another kind it is ErrInvalid, and does not read", func(t *testing.T) {
			a := open(t, specimen(typ))
			for sf := range p.Fields() {
				name := sf.Tag.Get("json")
				for _, kind := range kinds {
					f, err := structs[typ].field(name, kind)
					_, ok := f(a)
					require.Equal(t, kind == sf.Type.Kind(), ok)
					if kind == sf.Type.Kind() {
						require.NoError(t, err)
						continue
					}
					require.ErrorIs(t, err, ErrInvalid)
					require.ErrorContains(t, err, typ.String()+"."+name+" is a "+sf.Type.Kind().String()+", not a "+kind.String())
				}
			}
		})
		t.Run("of another name it is ErrInvalid, and does not read", func(t *testing.T) {
			a := open(t, specimen(typ))
			for _, name := range []string{"", "type", "priority", p.Field(0).Name, p.Field(0).Tag.Get("json") + " "} {
				for _, kind := range kinds {
					f, err := structs[typ].field(name, kind)
					require.ErrorIs(t, err, ErrInvalid)
					require.ErrorContains(t, err, "a "+typ.String()+` has no field "`+name+`"`)
					_, ok := f(a)
					require.False(t, ok)
				}
			}
		})
	})
	t.Run("reading allocates nothing", func(t *testing.T) {
		long := strings.Repeat("x", 1000) // more than the compiler would copy to the stack
		rejected := open(t, withValues(TypeOrderRejected, false, values{strings: []string{long}, uint32: 4003, int: moment}))
		account := open(t, withValues(TypeAccountOpen, false, values{strings: []string{long}, floats: []float64{1.5}, uint8: 3}))
		reason, err := StringFieldOf[OrderRejected]("reason")
		require.NoError(t, err)
		code, err := NumberFieldOf[OrderRejected, uint32]("error_code")
		require.NoError(t, err)
		at, err := NumberFieldOf[OrderRejected, int64]("timestamp")
		require.NoError(t, err)
		cash, err := NumberFieldOf[AccountOpen, float64]("init_cash")
		require.NoError(t, err)
		kind, err := NumberFieldOf[AccountOpen, uint8]("account_type")
		require.NoError(t, err)
		require.Zero(t, testing.AllocsPerRun(50, func() {
			s, _ := reason.In(rejected)
			u, _ := code.In(rejected)
			i, _ := at.In(rejected)
			f, _ := cash.In(account)
			b, _ := kind.In(account)
			if s != long || u != 4003 || i != moment || f != 1.5 || b != 3 {
				panic("another value")
			}
		}))
	})
	t.Run("the zero field is in no archive", func(t *testing.T) {
		for _, a := range []Archive{{}, open(t, specimen(TypeOrderAccepted)), open(t, specimen(TypeMarketHalt))} {
			_, ok := NumberField[float64]{}.In(a)
			require.False(t, ok)
			_, ok = NumberField[uint8]{}.In(a)
			require.False(t, ok)
			_, ok = StringField{}.In(a)
			require.False(t, ok)
		}
	})
	t.Run("fields are equal if they are the same", func(t *testing.T) {
		f, err := NumberFieldOf[MarginCall, float64]("current_margin")
		require.NoError(t, err)
		again, err := NumberFieldOf[MarginCall, float64]("current_margin")
		require.NoError(t, err)
		other, err := NumberFieldOf[MarginCall, float64]("required_margin")
		require.NoError(t, err)
		require.True(t, f == again)
		require.False(t, f == other)
	})
	t.Run("what is no payload struct has no fields", func(t *testing.T) {
		_, err := StringFieldOf[*AccountUpdate]("user_id")
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "*notification.AccountUpdate is none of the payload structs")
		_, err = StringFieldOf[embedsPayload]("user_id")
		require.ErrorIs(t, err, ErrInvalid)
		_, err = NumberFieldOf[liarPayload, float64]("balance")
		require.ErrorIs(t, err, ErrInvalid)
		_, err = NumberFieldOf[Payload, float64]("balance")
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "notification.Payload is none of the payload structs")
	})
	t.Run("a long name is clipped", func(t *testing.T) {
		_, err := StringFieldOf[MarginCall](strings.Repeat("x", 1<<20))
		require.ErrorIs(t, err, ErrInvalid)
		require.Less(t, len(err.Error()), 200)
	})
}

func TestArchiveCorrupt(t *testing.T) {
	eachType(t, func(t *testing.T, typ Type) {
		b := archive(t, specimen(typ))
		t.Run("cut off anywhere it is ErrCorrupt", func(t *testing.T) {
			for end := range b {
				require.False(t, requireArchive(t, slices.Clip(b[:end])), "opened with %d bytes of %d", end, len(b))
			}
		})
		t.Run("with any bit flipped it is a value or ErrCorrupt", func(t *testing.T) {
			for i := range 8 * len(b) {
				c := bytes.Clone(b)
				c[i/8] ^= 1 << (i % 8)
				requireArchive(t, c)
			}
		})
		t.Run("with huge numbers anywhere it is a value or ErrCorrupt", func(t *testing.T) {
			for at := range b {
				for _, huge := range []uint64{0x7fff, 0x8000, 0xffff, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 63, 1<<63 - 1, math.MaxUint64} {
					width := 8 // or that of the length fields which it is huge for
					if huge <= 1<<16-1 {
						width = 2
					} else if huge <= 1<<32-1 {
						width = 4
					}
					var w [8]byte
					binary.LittleEndian.PutUint64(w[:], huge)
					c := bytes.Clone(b)
					copy(c[at:], w[:width])
					requireArchive(t, c)
				}
			}
		})
		t.Run("trailing bytes are ErrCorrupt", func(t *testing.T) {
			_, err := OpenArchive(append(bytes.Clone(b), 0))
			require.ErrorIs(t, err, ErrCorrupt)
			require.ErrorContains(t, err, "bytes where the header says")
			_, err = OpenArchive(append(bytes.Clone(b), b...))
			require.ErrorIs(t, err, ErrCorrupt)
		})
	})
	t.Run("it says what is wrong", func(t *testing.T) {
		b := archive(t, specimen(TypeAccountUpdate))
		change := func(at int, v ...byte) []byte { c := bytes.Clone(b); copy(c[at:], v); return c }
		for _, c := range []struct {
			b    []byte
			says string
		}{
			{nil, "0 bytes are less than a header, 26"},
			{b[:25], "25 bytes are less than a header, 26"},
			{change(0, '{'), `it begins with "{XN"`},
			{change(3, 0), "version 0 is unknown, this is version 1"},
			{change(3, 2), "version 2 is unknown, this is version 1"},
			{change(3, 255), "version 255 is unknown, this is version 1"},
			{change(4, 0, 0), "163 bytes where the header says 0"},
			{change(24, 0), "type 0 is unknown"},
			{change(24, byte(numTypes)), fmt.Sprintf("type %d is unknown", numTypes)},
			{change(25, 4), "priority 4 is over 3"},
			{change(8, 0xff, 0xff, 0xff, 0xff), "163 bytes where the lengths of its strings make 4294967445"},
			{change(12, 0, 0, 46, 0), "ID has 0 bytes"},
			{change(12, 46, 0, 0, 0), "UserID has 0 bytes"},
		} {
			_, err := OpenArchive(c.b)
			require.ErrorIs(t, err, ErrCorrupt)
			require.ErrorContains(t, err, c.says)
		}
		c := b[:94]
		binary.LittleEndian.PutUint32(c[4:], 93)
		_, err := OpenArchive(c[:93])
		require.ErrorContains(t, err, "93 bytes are less than a account_update, 94")
	})
	t.Run("no input makes it allocate more than twice its size and 64 KiB", func(t *testing.T) {
		big := specimen(TypeSystemNotice)
		big.Source, big.Payload = "", SystemNotice{Content: strings.Repeat("x", 1<<20)}
		b := archive(t, big)
		for _, at := range []int{0, 3, 4, 8, 12, 14, 24, 25, 26, 30, 34, 38, 42, 1000} {
			for _, v := range []byte{0, 1, 0x80, 0xff} {
				c := bytes.Clone(b)
				c[at] = v
				var n Notification
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_ = n.UnmarshalBinary(c)
				runtime.ReadMemStats(&after)
				require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2*len(c)+64<<10))
			}
		}
	})
}

// A text is Source or a string of the payload, under the name that errors give it.
type text struct {
	name string
	set  func(string)
}

// texts returns those of n.
func texts(n *Notification) []text {
	all := []text{{"Source", func(s string) { n.Source = s }}}
	for i, sf := range slices.Collect(reflect.TypeOf(n.Payload).Fields()) {
		if sf.Type.Kind() == reflect.String {
			all = append(all, text{"Payload." + sf.Name, func(s string) {
				p := reflect.New(reflect.TypeOf(n.Payload)).Elem()
				p.Set(reflect.ValueOf(n.Payload))
				p.Field(i).SetString(s)
				n.Payload = p.Interface().(Payload)
			}})
		}
	}
	return all
}

// longer returns an archive with a byte more in its last string and all else right.
func longer(b []byte) []byte {
	lengths := layouts[b[archiveType]].lengths
	last := lengths[len(lengths)-1]
	b = append(bytes.Clone(b), 'x')
	binary.LittleEndian.PutUint32(b[archiveSize:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[last:], binary.LittleEndian.Uint32(b[last:])+1)
	return b
}

func TestArchiveLimits(t *testing.T) {
	t.Run("what Validate refuses is neither written nor opened", func(t *testing.T) {
		long := strings.Repeat("x", 257)
		for name, change := range map[string]func(*Notification){
			"ID is empty":         func(n *Notification) { n.ID = "" },
			"ID has 257":          func(n *Notification) { n.ID = long },
			"UserID is empty":     func(n *Notification) { n.UserID = "" },
			"UserID has 257":      func(n *Notification) { n.UserID = long },
			"UserID is AllUsers":  func(n *Notification) { n.UserID = AllUsers },
			"Priority 4":          func(n *Notification) { n.Priority = 4 },
			"Payload is nil":      func(n *Notification) { n.Payload = nil },
			"Payload *notificati": func(n *Notification) { n.Payload = (*AccountUpdate)(nil) },
		} {
			n := specimen(TypeAccountUpdate)
			change(n)
			b, err := n.AppendBinary([]byte("before"))
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, name)
			require.Equal(t, "before", string(b))
		}
		_, err := (*Notification)(nil).MarshalBinary()
		require.ErrorIs(t, err, ErrInvalid)

		b := archive(t, &Notification{ID: "i", UserID: "x", Payload: AccountUpdate{}})
		b[bytes.IndexByte(b, 'x')] = '*'
		_, err = OpenArchive(b)
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, "AllUsers")
	})
	t.Run("a mebibyte of text is an archive, wherever it stands, and not a byte more", func(t *testing.T) {
		id, full := strings.Repeat("x", maxIDLen), strings.Repeat("s", maxText)
		for typ := Type(1); typ < numTypes; typ++ {
			n := withValues(typ, false, values{strings: []string{""}, floats: []float64{1}})
			n.ID, n.UserID = id, id
			for _, in := range texts(n) {
				in.set(full)
				b := archive(t, n)
				require.Less(t, len(b), maxText+1<<10, "all but the text has less than 1 KiB")
				a, err := OpenArchive(b)
				require.NoError(t, err)
				require.True(t, sameBits(n, a.Notification()))

				_, err = OpenArchive(longer(b))
				require.ErrorIs(t, err, ErrCorrupt)
				require.ErrorContains(t, err, "Source and the payload's strings have 1048577 bytes together, over 1048576")
				in.set(full + "s")
				b, err = n.AppendBinary(nil)
				require.ErrorIs(t, err, ErrInvalid)
				require.ErrorContains(t, err, in.name+" has 1048577 bytes")
				require.Nil(t, b)
				in.set("")
			}
		}
	})
	t.Run("nor a byte more of many strings together", func(t *testing.T) {
		n := &Notification{ID: "i", UserID: "u", Source: "s", Payload: SystemNotice{Title: "t", Content: strings.Repeat("x", maxText-2)}}
		b := archive(t, n)
		require.True(t, requireArchive(t, b))
		require.False(t, requireArchive(t, longer(b)))
		n.Source = "ss"
		_, err := n.AppendBinary(nil)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "Payload.Content has 1048574 bytes")
	})
	t.Run("IDs of 256 bytes are an archive, and not a byte more", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			for at, set := range map[int]*string{archiveID: &n.ID, archiveUserID: &n.UserID} {
				before := *set
				*set = strings.Repeat("x", maxIDLen)
				b := archive(t, n)
				require.True(t, requireArchive(t, b))
				*set += "x"
				_, err := n.AppendBinary(nil)
				require.ErrorIs(t, err, ErrInvalid)
				*set = before

				// The string behind it begins a byte later: the sum stays right.
				b = slices.Insert(b, layouts[typ].prefix, 'x')
				binary.LittleEndian.PutUint32(b[archiveSize:], uint32(len(b)))
				binary.LittleEndian.PutUint16(b[at:], maxIDLen+1)
				_, err = OpenArchive(b)
				require.ErrorIs(t, err, ErrCorrupt)
				require.ErrorContains(t, err, "has 257 bytes")
			}
		}
	})
	t.Run("a size over 2 MiB is ErrCorrupt, whether the bytes are there or not", func(t *testing.T) {
		b := archive(t, specimen(TypeSystemNotice))
		large := append(bytes.Clone(b), make([]byte, 2<<20+1-len(b))...)
		for _, b := range [][]byte{b, large} {
			binary.LittleEndian.PutUint32(b[4:], 2<<20+1)
			_, err := OpenArchive(b)
			require.ErrorIs(t, err, ErrCorrupt)
			require.ErrorContains(t, err, "a size of 2097153 bytes is over 2097152")
		}
		// 2 MiB are not too many yet, and there is no text for so many.
		exact := large[:2<<20]
		binary.LittleEndian.PutUint32(exact[4:], 2<<20)
		_, err := OpenArchive(exact)
		require.ErrorContains(t, err, "2097152 bytes where the lengths of its strings make")
	})
}

func TestArchiveMemory(t *testing.T) {
	t.Run("the copy does not change with the buffer", func(t *testing.T) {
		for typ := Type(1); typ < numTypes; typ++ {
			n := specimen(typ)
			b := archive(t, n)
			a, err := OpenArchive(b)
			require.NoError(t, err)
			c := a.Notification()
			var d Notification
			require.NoError(t, d.UnmarshalBinary(b))
			for i := range b {
				b[i] = 0xff
			}
			require.Equal(t, n, c)
			require.Equal(t, *n, d)
		}
	})
	t.Run("a buffer overwritten under an open archive makes nonsense and nothing worse", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for typ := Type(1); typ < numTypes; typ++ {
			b := archive(t, specimen(typ))
			a, err := OpenArchive(b)
			require.NoError(t, err)
			for range 100 {
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				require.NotPanics(t, func() {
					_, _, _, _, _ = a.ID(), a.UserID(), a.Source(), a.Priority(), a.Timestamp()
					_, err := structs[typ].open(a)
					require.NoError(t, err)
					for _, f := range structs[typ].fields {
						_, ok := f(a)
						require.True(t, ok)
					}
					a.Notification()
				})
			}
		}
	})
}

func TestArchiveExample(t *testing.T) {
	text, err := os.ReadFile("ARCHIVE.md")
	require.NoError(t, err)
	var b []byte
	for _, m := range regexp.MustCompile(`(?m)^ *(\d+)  ((?:[0-9a-f]{2} )+)`).FindAllStringSubmatch(string(text), -1) {
		require.Equal(t, strconv.Itoa(len(b)), m[1], "the offset before %s", m[2])
		line, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		require.NoError(t, err)
		b = append(b, line...)
	}
	n := &Notification{
		ID: "reject-17", UserID: "alice", Priority: P0, Timestamp: moment, Source: "RiskControl",
		Payload: OrderRejected{OrderID: "o-17", InstrumentID: "cu2512", Reason: "资金不足", ErrorCode: 4003, Timestamp: moment},
	}
	require.Equal(t, hexLines(archive(t, n)), hexLines(b))
	require.True(t, requireArchive(t, b))
}

func FuzzOpenArchive(f *testing.F) {
	for typ := Type(1); typ < numTypes; typ++ {
		b, err := specimen(typ).MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = slices.Clip(bytes.Clone(b))
		if !requireArchive(t, b) {
			return
		}
		a, err := OpenArchive(b)
		require.NoError(t, err)
		n := a.Notification()
		want := n.AppendJSON(nil)
		for i := range b {
			b[i] ^= 0xff
		}
		require.Equal(t, string(want), string(n.AppendJSON(nil)), "the copy shares memory with the buffer")
	})
}

func FuzzArchiveRoundTrip(f *testing.F) {
	for i, s := range hostile {
		f.Add(uint8(i), "id-"+s, "user_00042", "MatchingEngine", s, "BUY"+s, extremes[i], 85230.5, int64(moment), uint32(i))
	}
	f.Fuzz(func(t *testing.T, typ uint8, id, user, source, s1, s2 string, f1, f2 float64, i int64, u uint32) {
		n := fuzzed(typ, id, user, source, s1, s2, f1, f2, i, u)
		b, err := n.AppendBinary(nil)
		if n.Validate() != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Empty(t, b)
			return
		}
		require.NoError(t, err)
		var back Notification
		require.NoError(t, back.UnmarshalBinary(b))
		require.True(t, sameBits(n, &back))
		require.True(t, requireArchive(t, b))
	})
}

func BenchmarkArchiveEncode(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		buf := make([]byte, 0, 1024)
		var err error
		for b.Loop() {
			if buf, err = n.AppendBinary(buf[:0]); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(buf)), "bytes")
	})
}

func BenchmarkArchiveOpen(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		buf := archive(b, n)
		for b.Loop() {
			if _, err := OpenArchive(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkArchiveHeader(b *testing.B) {
	a, err := OpenArchive(archive(b, specimen(TypeTradeExecuted)))
	require.NoError(b, err)
	b.Run("ID", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.ID()
		}
	})
	b.Run("UserID", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.UserID()
		}
	})
	b.Run("Timestamp", func(b *testing.B) {
		b.ReportAllocs()
		a := a
		for b.Loop() {
			a.Timestamp()
		}
	})
}

// BenchmarkArchiveField is one field of a payload: a number, the first string and
// the last one, with six before it. PayloadAs beside them reads all fields.
func BenchmarkArchiveField(b *testing.B) {
	a, err := OpenArchive(archive(b, specimen(TypeTradeExecuted)))
	require.NoError(b, err)
	price, err := NumberFieldOf[TradeExecuted, float64]("price")
	require.NoError(b, err)
	first, err := StringFieldOf[TradeExecuted]("trade_id")
	require.NoError(b, err)
	last, err := StringFieldOf[TradeExecuted]("fill_type")
	require.NoError(b, err)
	other, err := NumberFieldOf[MarginCall, float64]("current_margin")
	require.NoError(b, err)
	b.Run("float", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := price.In(a); !ok {
				b.Fatal("it is not there")
			}
		}
	})
	b.Run("first string", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := first.In(a); !ok {
				b.Fatal("it is not there")
			}
		}
	})
	b.Run("last string", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := last.In(a); !ok {
				b.Fatal("it is not there")
			}
		}
	})
	b.Run("another type's", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := other.In(a); ok {
				b.Fatal("it is there")
			}
		}
	})
	b.Run("PayloadAs", func(b *testing.B) { benchmarkPayloadAs[TradeExecuted](b, TypeTradeExecuted) })
}

func BenchmarkArchivePayloadAs(b *testing.B) {
	b.Run("AccountUpdate", func(b *testing.B) { benchmarkPayloadAs[AccountUpdate](b, TypeAccountUpdate) })
	b.Run("TradeExecuted", func(b *testing.B) { benchmarkPayloadAs[TradeExecuted](b, TypeTradeExecuted) })
}

func benchmarkPayloadAs[T Payload](b *testing.B, typ Type) {
	b.ReportAllocs()
	a, err := OpenArchive(archive(b, specimen(typ)))
	require.NoError(b, err)
	for b.Loop() {
		if _, err := PayloadAs[T](a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkArchiveNotification(b *testing.B) {
	eachTimed(b, func(b *testing.B, n *Notification) {
		a, err := OpenArchive(archive(b, n))
		require.NoError(b, err)
		for b.Loop() {
			a.Notification()
		}
	})
}
