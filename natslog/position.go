package natslog

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/qaexchange/notification"
)

// A Position is a place in the log: for each stream the last archive that was
// read. It is the caller's to keep, beside what he made of the archives, as text: a
// hundred bytes or so per partition. It is bound to the log and to its epoch. The
// zero Position is before all that the log holds.
//
// It is a value, and safe for concurrent use.
type Position struct {
	epoch   uint64
	streams []streamPlace // partition by partition, lane by lane; shared, read-only
	// One stream is further than streams says: a Position per archive would
	// otherwise cost a copy of all.
	stream int
	place  streamPlace
}

// A streamPlace is a place in a stream.
type streamPlace struct {
	// number is that of the last entry that was read; that of the last one that a
	// block can have if the whole block was.
	number uint64
	stored int64 // when its block was stored, in Unix nanoseconds; 0 if it is not known
}

// lastOf is the place in a block when all of it was read, however many entries it
// has.
const lastOf = maxEntries - 1

func (p streamPlace) seq() uint64 { return p.number / maxEntries }

// whole reports whether nothing of the block is left to be read.
func (p streamPlace) whole() bool { return p.number%maxEntries == lastOf }

func (p streamPlace) known() known {
	if p.stored == 0 {
		return known{seq: p.seq()}
	}
	return known{p.seq(), time.Unix(0, p.stored)}
}

// next is the sequence of the first block that has something to be read.
func (p streamPlace) next() uint64 {
	if p.whole() {
		return p.seq() + 1
	}
	return max(p.seq(), 1)
}

// IsZero reports whether p is before all that the log holds.
func (p Position) IsZero() bool { return p.epoch == 0 }

// at returns the place in a stream.
func (p Position) at(stream int) streamPlace {
	if p.epoch != 0 && stream == p.stream {
		return p.place
	}
	return p.streams[stream]
}

// positionVersion is the first byte of a Position's text form.
const positionVersion = 1

// String returns the text form: letters, digits, - and _, and nothing for the zero
// Position.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	b := []byte{positionVersion}
	b = binary.LittleEndian.AppendUint64(b, p.epoch)
	for i := range p.streams {
		place := p.at(i)
		b = binary.AppendUvarint(b, place.number)
		b = binary.AppendVarint(b, place.stored)
	}
	// A place that is wrong looks like a log that lost its tail, and that is
	// everybody's affair. So a mistake in copying must not make one.
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParsePosition reads what String wrote; anything else is notification.ErrInvalid.
func ParsePosition(s string) (Position, error) {
	if s == "" {
		return Position{}, nil
	}
	bad := func() (Position, error) {
		return Position{}, fmt.Errorf("%w: position %.100q", notification.ErrInvalid, s)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 13 || b[0] != positionVersion {
		return bad()
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(b) != binary.LittleEndian.Uint32(sum) {
		return bad()
	}
	p := Position{epoch: binary.LittleEndian.Uint64(b[1:])}
	for b = b[9:]; len(b) > 0; {
		var place streamPlace
		var n, m int
		place.number, n = binary.Uvarint(b)
		if n > 0 {
			place.stored, m = binary.Varint(b[n:])
		}
		if n <= 0 || m <= 0 {
			return bad()
		}
		p.streams, b = append(p.streams, place), b[n+m:]
	}
	if p.epoch == 0 || len(p.streams) == 0 || len(p.streams)%notification.NumPriorities != 0 {
		return bad()
	}
	p.place = p.streams[0]
	return p, nil
}

// MarshalText is String.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePosition.
func (p *Position) UnmarshalText(b []byte) error {
	v, err := ParsePosition(string(b))
	if err == nil {
		*p = v
	}
	return err
}
