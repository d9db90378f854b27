package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/qaexchange/notification"
	notificationclient "github.com/qaexchange/notification/clients/go"
)

// Of the layout in ARCHIVE.md: what stands in front of each archive, and what it
// may be.
const (
	headBytes  = 8
	minArchive = 26
	maxArchive = 2 << 20
)

// decode prints the archives of a file that stand one behind the other. One that
// cannot be read, of a newer version say, is told and passed over, as long as it
// says where the next one begins; the error is then that there was one.
func (o options) decode(ctx context.Context, p *printer, stdin io.Reader, stderr io.Writer) error {
	in := stdin
	if o.archive != "-" {
		f, err := os.Open(o.archive)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	r := bufio.NewReader(in)
	var buf []byte
	unreadable := 0
	for at := int64(0); p.left != 0 && ctx.Err() == nil; at += int64(len(buf)) {
		head, err := r.Peek(headBytes)
		switch {
		case err == io.EOF && len(head) == 0:
			return passedOver(unreadable)
		case err == io.EOF:
			return fmt.Errorf("at byte %d: it ends within an archive", at)
		case err != nil:
			return err
		}
		size := binary.LittleEndian.Uint32(head[4:])
		if string(head[:3]) != "QXN" || size < minArchive || size > maxArchive {
			return fmt.Errorf("at byte %d: %w: this is none", at, notification.ErrCorrupt)
		}
		if cap(buf) < int(size) {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(r, buf); errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("at byte %d: it ends within an archive", at)
		} else if err != nil {
			return err
		}
		a, err := notification.OpenArchive(buf)
		if err != nil {
			fmt.Fprintf(stderr, "notifycat: at byte %d: %v\n", at, err)
			unreadable++
			continue
		}
		text, err := a.Notification().MarshalJSON()
		if err != nil {
			return err
		}
		var n notificationclient.Notification
		if err := n.UnmarshalJSON(text); err != nil {
			return err
		}
		p.print(&n, time.Time{})
	}
	return passedOver(unreadable)
}

func passedOver(n int) error {
	if n > 0 {
		return fmt.Errorf("%d archives could not be read", n)
	}
	return nil
}
