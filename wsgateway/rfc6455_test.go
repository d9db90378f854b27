package wsgateway

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qaexchange/notification"
	"github.com/stretchr/testify/require"
)

// What RFC 6455 says about clients, with all that a browser never does.

const (
	rfcLimit = 70_000 // ReadLimit: room for a length in its longest form

	pingCommand  = `{"action":"ping"}`
	pongAnswer   = `1 {"action":"pong"`
	errorAnswer  = `1 {"action":"error"`
	noStatus     = 1005 // a close frame without a code
	sampleKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	sampleAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// An exchange is what a client sends after the handshake, and what it gets.
type exchange struct {
	name   string
	send   []byte
	hear   []string // opcode, space, and how the payload begins
	code   int      // of the close frame behind it; 0: the connection lives on
	reason string   // all of its reason
}

// clientFrame is a frame with a mask that is not zero.
func clientFrame(first byte, payload string, mask ...byte) []byte {
	if len(mask) == 0 {
		mask = []byte{0x37, 0xfa, 0x21, 0x3d}
	}
	b := appendHeader(nil, 0, len(payload))
	b[0], b[1] = first, b[1]|0x80
	b = append(b, mask...)
	for i := range len(payload) {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

// longForm is a frame whose length takes 2 or 8 bytes, needed or not.
func longForm(first byte, bytes int, length uint64, payload string) []byte {
	b := []byte{first, 0x80 | 126, 0, 0}
	if bytes == 2 {
		binary.BigEndian.PutUint16(b[2:], uint16(length))
	} else {
		b[1] = 0x80 | 127
		b = binary.BigEndian.AppendUint64(b[:2], length)
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

// closeFrame is one with a code and a reason.
func closeFrame(code int, reason string) []byte {
	return clientFrame(fin|opClose, string(binary.BigEndian.AppendUint16(nil, uint16(code)))+reason)
}

// pingOf is a ping command of n bytes.
func pingOf(n int) string { return pingCommand + strings.Repeat(" ", n-len(pingCommand)) }

// fragments is text in frames that end at cuts.
func fragments(text string, cuts ...int) (b []byte) {
	first, from := byte(opText), 0
	for _, cut := range cuts {
		b = append(b, clientFrame(first, text[from:cut])...)
		first, from = opContinuation, cut
	}
	return append(b, clientFrame(first|fin, text[from:])...)
}

func framing() (list []exchange) {
	add := func(name string, send []byte, code int, reason string, hear ...string) {
		list = append(list, exchange{name, send, hear, code, reason})
	}
	say := clientFrame(fin|opText, pingCommand)

	add("a text message is a command", say, 0, "", pongAnswer)
	add("a binary message is answered with an error", clientFrame(fin|opBinary, pingCommand), 0, "", errorAnswer)
	add("an empty text message is no command", clientFrame(fin|opText, ""), 0, "", errorAnswer)
	add("an empty binary message is no command", clientFrame(fin|opBinary, ""), 0, "", errorAnswer)
	add("two messages are answered in their order", slices.Concat(say, clientFrame(fin|opText, "x"), say), 0, "", pongAnswer, errorAnswer, pongAnswer)
	for _, opcode := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		add(fmt.Sprintf("the reserved opcode %d is 1002", opcode), clientFrame(fin|opcode, ""), 1002, "an unknown opcode")
	}
	for _, bit := range []byte{0x40, 0x20, 0x10} {
		add(fmt.Sprintf("the reserved bit %#x of a text frame is 1002", bit), clientFrame(fin|bit|opText, pingCommand), 1002, "a reserved bit is set")
		add(fmt.Sprintf("the reserved bit %#x of a ping is 1002", bit), clientFrame(fin|bit|opPing, ""), 1002, "a reserved bit is set")
		add(fmt.Sprintf("the reserved bit %#x of a continuation is 1002", bit), slices.Concat(clientFrame(opText, "{"), clientFrame(fin|bit, "}")), 1002, "a reserved bit is set")
	}
	for _, opcode := range []byte{opText, opBinary, opPing, opPong, opClose} {
		add(fmt.Sprintf("a frame with opcode %d and no mask is 1002", opcode), []byte{fin | opcode, 2, 3, 0xe8}, 1002, "a frame is not masked")
	}
	for _, opcode := range []byte{opPing, opPong, opClose} {
		add(fmt.Sprintf("a control frame with opcode %d that is not the last of its message is 1002", opcode), clientFrame(opcode, ""), 1002, "a control frame is fragmented")
		add(fmt.Sprintf("a control frame with opcode %d of 126 bytes is 1002", opcode), clientFrame(fin|opcode, strings.Repeat("x", 126)), 1002, "a control frame is too long")
		add(fmt.Sprintf("a control frame with opcode %d that claims 8 bytes of length is 1002", opcode), longForm(fin|opcode, 8, 1<<20, ""), 1002, "a control frame is too long")
	}

	add("a continuation of nothing is 1002", clientFrame(fin, pingCommand), 1002, "a continuation of nothing")
	add("a continuation of a message that is complete is 1002", slices.Concat(say, clientFrame(opContinuation, "x")), 1002, "a continuation of nothing", pongAnswer)
	add("a text message within a message is 1002", slices.Concat(clientFrame(opText, "{"), say), 1002, "a message within a message")
	add("a binary message within a message is 1002", slices.Concat(clientFrame(opText, "{"), clientFrame(opBinary, "")), 1002, "a message within a message")
	add("a message in two frames is one", fragments(pingCommand, 5), 0, "", pongAnswer)
	add("a message in frames of a byte is one", fragments(pingCommand, countTo(len(pingCommand))[1:]...), 0, "", pongAnswer)
	add("a message whose frames are nearly all empty is one", slices.Concat(clientFrame(opText, ""), bytes.Repeat(clientFrame(0, ""), 50), clientFrame(0, pingCommand), clientFrame(fin, "")), 0, "", pongAnswer)
	add("a message of many empty frames and nothing else is an empty one", slices.Concat(clientFrame(opText, ""), bytes.Repeat(clientFrame(0, ""), 50), clientFrame(fin, "")), 0, "", errorAnswer)
	add("endless empty frames are 1009", slices.Concat(clientFrame(opText, "x"), bytes.Repeat(clientFrame(0, ""), 1000)), 1009, "a message has over 100 empty frames")
	add("control frames between the frames of a message are answered before it",
		slices.Concat(clientFrame(opText, pingCommand[:3]), clientFrame(fin|opPing, "one"), clientFrame(0, pingCommand[3:6]), clientFrame(fin|opPong, "?"), clientFrame(fin|opPing, "two"), clientFrame(fin, pingCommand[6:])),
		0, "", "10 one", "10 two", pongAnswer)
	add("a close frame between the frames of a message ends it", slices.Concat(clientFrame(opText, "{"), closeFrame(1000, "")), 1000, "")
	add("a close frame in the middle of a rune ends it", slices.Concat(clientFrame(opText, "\xe2\x82"), closeFrame(1000, "")), 1000, "")

	for _, mask := range [][]byte{{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1}, {1, 0, 0, 0}, {'{', '"', 'a', 'c'}, {0x80, 0x81, 0x88, 0x89}} {
		add(fmt.Sprintf("the mask %x is taken off", mask), clientFrame(fin|opText, pingCommand, mask...), 0, "", pongAnswer)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 9 {
		mask := binary.BigEndian.AppendUint32(nil, r.Uint32())
		payload := "12345678"[:n]
		add(fmt.Sprintf("the mask of a payload of %d bytes is taken off", n), slices.Concat(clientFrame(fin|opPing, payload, mask...), say), 0, "", "10 "+payload, pongAnswer)
	}
	return list
}

func countTo(n int) (list []int) {
	for i := range n {
		list = append(list, i)
	}
	return list
}

func lengths() (list []exchange) {
	const shortest, limit = "a length is not in its shortest form", "a message is over 70000 bytes"
	for _, n := range []int{len(pingCommand), 125, 126, 127, 255, 256, 65534, 65535, 65536, rfcLimit} {
		list = append(list, exchange{fmt.Sprintf("a message of %d bytes arrives", n), clientFrame(fin|opText, pingOf(n)), []string{pongAnswer}, 0, ""})
	}
	for _, n := range []uint64{0, 17, 125} {
		payload := pingOf(max(int(n), 17))[:n]
		for _, b := range []int{2, 8} {
			list = append(list, exchange{fmt.Sprintf("a length of %d in %d bytes is 1002", n, b), longForm(fin|opText, b, n, payload), nil, 1002, shortest})
		}
	}
	for _, n := range []uint64{126, 65535} {
		list = append(list, exchange{fmt.Sprintf("a length of %d in 8 bytes is 1002", n), longForm(fin|opText, 8, n, pingOf(int(n))), nil, 1002, shortest})
	}
	for _, n := range []uint64{1 << 63, 1<<63 | 17, 1<<64 - 1} {
		list = append(list, exchange{fmt.Sprintf("a length of %#x is 1002", n), longForm(fin|opBinary, 8, n, ""), nil, 1002, "a length of 64 bits"})
	}
	for _, n := range []uint64{1 << 62, 1<<63 - 1, 1 << 32, rfcLimit + 1} {
		for _, opcode := range []byte{opText, opBinary} {
			list = append(list, exchange{fmt.Sprintf("a header with opcode %d that claims %d bytes is 1009, before any payload", opcode, n), longForm(fin|opcode, 8, n, ""), nil, 1009, limit})
		}
	}
	return append(list,
		exchange{"a message of a byte over ReadLimit is 1009", clientFrame(fin|opText, pingOf(rfcLimit+1)), nil, 1009, limit},
		exchange{"ReadLimit in many frames arrives", fragments(pingOf(rfcLimit), 1, 40_000, 69_999), []string{pongAnswer}, 0, ""},
		exchange{"a byte over ReadLimit in many frames is 1009", fragments(pingOf(rfcLimit+1), 1, 40_000, rfcLimit), nil, 1009, limit},
		exchange{"a continuation that claims to go over ReadLimit is 1009, before its payload", slices.Concat(clientFrame(opText, "x"), longForm(0, 8, rfcLimit, "")), nil, 1009, limit},
		exchange{"two messages of ReadLimit arrive", bytes.Repeat(clientFrame(fin|opText, pingOf(rfcLimit)), 2), []string{pongAnswer, pongAnswer}, 0, ""},
	)
}

func texts() (list []exchange) {
	inString := func(s string) string { return `{"action":"ping","x":"` + s + `"}` }
	for _, s := range []string{"ü", "€", "😀", "\u007f\u0080\u07ff\u0800", "\ud7ff\ue000\ufffd\uffff", "\U00010000\U0010ffff", "\ufeff"} {
		text := inString(s)
		list = append(list, exchange{fmt.Sprintf("the text %+q arrives", s), clientFrame(fin|opText, text), []string{pongAnswer}, 0, ""})
		list = append(list, exchange{fmt.Sprintf("the text %+q arrives in frames of a byte", s), fragments(text, countTo(len(text))[1:]...), []string{pongAnswer}, 0, ""})
	}
	list = append(list, exchange{"a ping in the middle of a rune does not disturb it",
		slices.Concat(clientFrame(opText, inString("€")[:23]), clientFrame(fin|opPing, "\xff"), clientFrame(fin, inString("€")[23:])), []string{"10 \xff", pongAnswer}, 0, ""})
	for name, s := range map[string]string{
		"a byte that none begins with":         "\xff",
		"a continuation byte alone":            "\x80",
		"a rune longer than need be":           "\xc0\xaf",
		"a rune longer than need be, of three": "\xe0\x80\xaf",
		"a rune longer than need be, of four":  "\xf0\x80\x80\xaf",
		"a surrogate":                          "\xed\xa0\x80",
		"a rune over U+10FFFF":                 "\xf4\x90\x80\x80",
		"a rune of five bytes":                 "\xf8\x88\x80\x80\x80",
		"a rune cut short":                     "\xe2\x82",
	} {
		for where, text := range map[string]string{"first": s + pingCommand, "in the middle": inString(s), "last": pingCommand + s} {
			list = append(list, exchange{name + ", " + where + ", is 1007", clientFrame(fin|opText, text), nil, 1007, "text is not UTF-8"})
		}
		text := inString(s)
		list = append(list, exchange{name + ", in frames of a byte, is 1007", fragments(text, countTo(len(text))[1:]...), nil, 1007, "text is not UTF-8"})
	}
	return append(list,
		exchange{"a rune cut short by the end of the message, in an empty frame, is 1007", slices.Concat(clientFrame(opText, "\xe2\x82"), clientFrame(fin, "")), nil, 1007, "text is not UTF-8"},
		exchange{"what is no UTF-8 is 1007 before the message is complete", clientFrame(opText, "\xff"), nil, 1007, "text is not UTF-8"},
		exchange{"a binary message need not be UTF-8", clientFrame(fin|opBinary, "\xff\xfe"), []string{errorAnswer}, 0, ""},
		exchange{"a ping need not be UTF-8", clientFrame(fin|opPing, "\xff\xfe"), []string{"10 \xff\xfe"}, 0, ""},
	)
}

func closings() (list []exchange) {
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		list = append(list, exchange{fmt.Sprintf("a close frame with %d is answered with it", code), closeFrame(code, ""), nil, code, ""})
	}
	for _, code := range []int{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535} {
		list = append(list, exchange{fmt.Sprintf("a close frame with %d is 1002", code), closeFrame(code, "bye"), nil, 1002, fmt.Sprint("close code ", code)})
	}
	long := strings.Repeat("é", 61) + "x" // 123 bytes
	return append(list,
		exchange{"a close frame without a code is answered without one", clientFrame(fin|opClose, ""), nil, noStatus, ""},
		exchange{"a close frame with half a code is 1002", clientFrame(fin|opClose, "\x03"), nil, 1002, "half a close code"},
		exchange{"a reason is echoed", closeFrame(1000, "bye"), nil, 1000, "bye"},
		exchange{"a reason of 123 bytes is echoed", closeFrame(1000, long), nil, 1000, long},
		exchange{"a reason of 124 bytes is 1002", closeFrame(1000, long+"x"), nil, 1002, "a control frame is too long"},
		exchange{"a reason that is not UTF-8 is 1007", closeFrame(1000, "b\xffe"), nil, 1007, "text is not UTF-8"},
		exchange{"a reason that is not UTF-8 in its last byte of 123 is 1007", closeFrame(1000, long[:122]+"\xe2"), nil, 1007, "text is not UTF-8"},
		exchange{"a reason that ends in a rune is 1007", closeFrame(1000, "bye \xe2\x82"), nil, 1007, "text is not UTF-8"},
		exchange{"a wrong code is 1002 even if the reason is not UTF-8", closeFrame(1005, "\xff"), nil, 1002, "close code 1005"},
		exchange{"what follows a close frame is ignored", slices.Concat(closeFrame(4321, ""), clientFrame(fin|opText, pingCommand), clientFrame(fin|opPing, "x"), closeFrame(1000, "")), nil, 4321, ""},
		exchange{"what follows a close frame may be nonsense", append(closeFrame(4321, ""), "\xff\xff\xff\xff\xff"...), nil, 4321, ""},
		exchange{"what comes before a violation is answered", slices.Concat(clientFrame(fin|opText, pingCommand), clientFrame(fin|opPing, "x"), closeFrame(0, "")), []string{pongAnswer, "10 x"}, 1002, "close code 0"},
		exchange{"what comes before a close frame is answered", slices.Concat(clientFrame(fin|opText, pingCommand), clientFrame(fin|opPing, "x"), closeFrame(1000, "")), []string{pongAnswer, "10 x"}, 1000, ""},
	)
}

func pingsAndPongs() []exchange {
	every := make([]byte, 125)
	for i := range every {
		every[i] = byte(i * 3)
	}
	return []exchange{
		{"an empty ping is answered with an empty pong", clientFrame(fin|opPing, ""), []string{"10 "}, 0, ""},
		{"a ping of 125 bytes is answered with them", clientFrame(fin|opPing, string(every)), []string{"10 " + string(every)}, 0, ""},
		{"pings are answered in their order", slices.Concat(clientFrame(fin|opPing, "a"), clientFrame(fin|opPing, "b"), clientFrame(fin|opPing, "")), []string{"10 a", "10 b", "10 "}, 0, ""},
		{"a pong that nobody asked for is ignored", clientFrame(fin|opPong, "x"), nil, 0, ""},
		{"a pong of 125 bytes that nobody asked for is ignored", clientFrame(fin|opPong, string(every)), nil, 0, ""},
	}
}

func TestRFC6455(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{ReadLimit: rfcLimit, CommandsPerSecond: 1 << 20, PingInterval: patience})
	inPieces := func(c net.Conn, b []byte) {
		for piece := range slices.Chunk(b, 1+len(b)/512) {
			if _, err := c.Write(piece); err != nil {
				return // the server has had enough
			}
		}
	}
	ways := []struct {
		name string
		send func(c net.Conn, request, frames []byte)
	}{
		{"in one piece", func(c net.Conn, request, frames []byte) {
			_, _ = c.Write(request)
			_, _ = c.Write(frames)
		}},
		{"in pieces", func(c net.Conn, request, frames []byte) {
			_, _ = c.Write(request)
			inPieces(c, frames)
		}},
		{"along with the handshake", func(c net.Conn, request, frames []byte) {
			_, _ = c.Write(append(request, frames...))
		}},
	}
	for part, list := range map[string][]exchange{"framing": framing(), "lengths": lengths(), "texts": texts(), "closing": closings(), "pings and pongs": pingsAndPongs()} {
		t.Run(part, func(t *testing.T) {
			for _, test := range list {
				for _, way := range ways {
					t.Run(test.name+", sent "+way.name, func(t *testing.T) {
						nc, err := net.Dial("tcp", s.addr)
						require.NoError(t, err)
						defer nc.Close()
						require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
						send := test.send
						if test.code != 0 { // and is not answered
							send = append(slices.Clone(send), clientFrame(fin|opPing, "too late")...)
						}
						way.send(nc, request("GET / HTTP/1.1"), send)
						c := &rawClient{t, nc, bufio.NewReader(nc)}
						resp, err := http.ReadResponse(c.r, nil)
						require.NoError(t, err)
						require.Equal(t, 101, resp.StatusCode)
						test.check(t, c)
					})
				}
			}
		})
	}
}

func (x *exchange) check(t *testing.T, c *rawClient) {
	for _, want := range x.hear {
		opcode, payload, err := c.read()
		require.NoError(t, err)
		got := fmt.Sprint(opcode, " ", string(payload))
		if opcode != opText {
			require.Equal(t, want, got)
		}
		require.True(t, strings.HasPrefix(got, want), "%q does not begin with %q", got, want)
	}
	if x.code == 0 {
		_, err := c.Write(clientFrame(fin|opPing, "alive?"))
		require.NoError(t, err)
	}
	opcode, payload, err := c.read()
	require.NoError(t, err)
	if x.code == 0 {
		require.Equal(t, "10 alive?", fmt.Sprint(opcode, " ", string(payload)))
		return
	}
	require.Equal(t, byte(opClose), opcode, "with %q", payload)
	if x.code == noStatus {
		require.Empty(t, payload)
	} else {
		require.GreaterOrEqual(t, len(payload), 2)
		require.Equal(t, x.code, int(binary.BigEndian.Uint16(payload)), "with %q", payload[2:])
		require.Equal(t, x.reason, string(payload[2:]))
	}
	_, _, err = c.read()
	require.Error(t, err, "nothing follows a close frame")
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server ends the stream")
}

// request is a handshake of the user alice, with these header fields in place of
// those of the same name. A field without a value is left out.
func request(line string, fields ...string) []byte {
	all := []string{"Host: localhost", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + sampleKey, "Authorization: Bearer alice"}
	name := func(field string) string {
		n, _, _ := strings.Cut(field, ":")
		return strings.ToLower(n)
	}
	all = slices.DeleteFunc(all, func(field string) bool {
		return slices.ContainsFunc(fields, func(f string) bool { return name(f) == name(field) })
	})
	b := []byte(line + "\r\n")
	for _, field := range append(all, fields...) {
		if !strings.HasSuffix(field, ":") {
			b = append(b, field+"\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

func TestHandshake(t *testing.T) {
	s := serve(t, notification.GatewayConfig{}, Config{})
	server := httptest.NewServer(s.handler) // it has no ReadHeaderTimeout: a busy machine may take its time
	defer server.Close()
	connect := func(t *testing.T) *rawClient {
		nc, err := net.Dial("tcp", server.Listener.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
		return &rawClient{t, nc, bufio.NewReader(nc)}
	}
	const get = "GET / HTTP/1.1"
	ok := map[string]string{"Sec-Websocket-Accept": sampleAccept, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-Websocket-Protocol": "", "Sec-Websocket-Extensions": ""}
	batches := map[string]string{"Sec-Websocket-Protocol": batchProtocol}
	for _, test := range []struct {
		name    string
		request []byte
		status  int
		header  map[string]string // among others; empty: absent
	}{
		{"is answered as the RFC has it", request(get), 101, ok},
		{"with another key has another answer", request(get, "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw=="), 101, map[string]string{"Sec-Websocket-Accept": "HSmrc0sMlYUkAGmm5OPpG2HaGWk="}},
		{"with spaces around its key is valid", request(get, "Sec-WebSocket-Key:   "+sampleKey+"  "), 101, ok},
		{"in lower case is valid", request(get, "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: "+sampleKey), 101, ok},
		{"in upper case is valid", request(get, "CONNECTION: UPGRADE", "UPGRADE: WEBSOCKET", "SEC-WEBSOCKET-VERSION: 13", "SEC-WEBSOCKET-KEY: "+sampleKey), 101, ok},
		{"with a list of Connection tokens is valid", request(get, "Connection: keep-alive, Upgrade"), 101, ok},
		{"with two Connection fields is valid", request(get, "Connection: keep-alive", "Connection: upgrade"), 101, ok},
		{"with a list of Upgrade tokens is valid", request(get, "Upgrade: h2c, websocket"), 101, ok},
		{"with a Content-Length of 0 is valid", request(get, "Content-Length: 0"), 101, ok},
		{"that offers extensions agrees on none", request(get, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"), 101, ok},
		{"that offers nonsense as an extension agrees on none", request(get, "Sec-WebSocket-Extensions: ;;,\"", "Sec-WebSocket-Extensions:  ,"), 101, ok},

		{"with our subprotocol alone agrees on it", request(get, "Sec-WebSocket-Protocol: "+batchProtocol), 101, batches},
		{"with our subprotocol first agrees on it", request(get, "Sec-WebSocket-Protocol: "+batchProtocol+", graphql-ws"), 101, batches},
		{"with our subprotocol last agrees on it", request(get, "Sec-WebSocket-Protocol: graphql-ws,"+batchProtocol), 101, batches},
		{"with our subprotocol in another field agrees on it", request(get, "Sec-WebSocket-Protocol: graphql-ws", "Sec-WebSocket-Protocol: mqtt, "+batchProtocol), 101, batches},
		{"with other subprotocols agrees on none", request(get, "Sec-WebSocket-Protocol: graphql-ws, notification.batch.v11"), 101, ok},

		{"without Upgrade is 426", request(get, "Upgrade:"), 426, map[string]string{"Upgrade": "websocket"}},
		{"that would upgrade to something else is 426", request(get, "Upgrade: h2c"), 426, map[string]string{"Upgrade": "websocket"}},
		{"without Connection is 426", request(get, "Connection:"), 426, map[string]string{"Upgrade": "websocket"}},
		{"with Connection: keep-alive alone is 426", request(get, "Connection: keep-alive"), 426, map[string]string{"Upgrade": "websocket"}},
		{"without a version is 426", request(get, "Sec-WebSocket-Version:"), 426, map[string]string{"Sec-Websocket-Version": "13", "Upgrade": "websocket"}},
		{"of version 8 is 426", request(get, "Sec-WebSocket-Version: 8"), 426, map[string]string{"Sec-Websocket-Version": "13"}},
		{"of version 14 is 426", request(get, "Sec-WebSocket-Version: 14"), 426, map[string]string{"Sec-Websocket-Version": "13"}},
		{"of version 013 is 426", request(get, "Sec-WebSocket-Version: 013"), 426, map[string]string{"Sec-Websocket-Version": "13"}},
		{"with a list of versions is 426", request(get, "Sec-WebSocket-Version: 13, 8"), 426, map[string]string{"Sec-Websocket-Version": "13"}},
		{"without a key is 400", request(get, "Sec-WebSocket-Key:"), 400, nil},
		{"with an empty key is 400", request(get, "Sec-WebSocket-Key: "), 400, nil},
		{"with a key that is not base64 is 400", request(get, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ!!"), 400, nil},
		{"with a key of 15 bytes is 400", request(get, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"), 400, nil},
		{"with a key of 17 bytes is 400", request(get, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE="), 400, nil},
		{"with its key twice is 400", request(get, "Sec-WebSocket-Key: "+sampleKey, "Sec-WebSocket-Key: "+sampleKey), 400, nil},
		{"of HTTP/1.0 is 426", request("GET / HTTP/1.0"), 426, nil},
		{"that is a POST is 405", request("POST / HTTP/1.1"), 405, nil},
		{"that is a HEAD is 405", request("HEAD / HTTP/1.1"), 405, nil},
		{"without Host is 400", request(get, "Host:"), 400, nil},
		{"with a body is 400", append(request(get, "Content-Length: 4"), "body"...), 400, map[string]string{"Connection": "close"}},
		{"with a body that does not come is 400", request(get, "Content-Length: 4"), 400, map[string]string{"Connection": "close"}},
		{"with a body in chunks is 400", append(request(get, "Transfer-Encoding: chunked"), "4\r\nbody\r\n0\r\n\r\n"...), 400, map[string]string{"Connection": "close"}},
		{"with chunks that do not come is 400", request(get, "Transfer-Encoding: chunked"), 400, map[string]string{"Connection": "close"}},
	} {
		t.Run("a handshake "+test.name, func(t *testing.T) {
			c := connect(t)
			_, err := c.Write(test.request)
			require.NoError(t, err)
			method, _, _ := strings.Cut(string(test.request), " ")
			resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
			require.NoError(t, err)
			require.Equal(t, test.status, resp.StatusCode)
			for name, value := range test.header {
				got := resp.Header.Get(name)
				if name == "Connection" && resp.Close {
					got = "close" // where ReadResponse keeps it
				}
				require.Equal(t, value, got, name)
			}
			if test.status == 101 {
				_, err := c.Write(clientFrame(fin|opPing, "hello"))
				require.NoError(t, err)
				for {
					opcode, payload, err := c.read()
					require.NoError(t, err)
					if opcode == opPong {
						require.Equal(t, "hello", string(payload))
						break
					}
				}
			}
		})
	}
	t.Run("a handshake that comes byte by byte is valid", func(t *testing.T) {
		c := connect(t)
		for _, b := range request(get) {
			_, err := c.Write([]byte{b})
			require.NoError(t, err)
		}
		_, err := c.Write(clientFrame(fin|opText, pingCommand))
		require.NoError(t, err)
		resp, err := http.ReadResponse(c.r, nil)
		require.NoError(t, err)
		require.Equal(t, 101, resp.StatusCode)
		(&exchange{hear: []string{pongAnswer}}).check(t, c)
	})
}
