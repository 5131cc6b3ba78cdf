package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// tape is a connection whose other side has said everything already.
type tape struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)         { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *tape) SetWriteDeadline(_ time.Time) error { return nil }
func (c *tape) Close() error                       { return nil }

func play(data []byte) (*socket, *tape) {
	c := &tape{in: bytes.NewReader(data)}
	return &socket{Conn: c, in: bufio.NewReaderSize(c, 4<<10)}, c
}

// frameOf is a server's frame: not masked.
func frameOf(first byte, payload []byte) []byte {
	out := []byte{first}
	switch n := len(payload); {
	case n < 126:
		out = append(out, byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, 126), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, 127), uint64(n))
	}
	return append(out, payload...)
}

func TestFramesAreOneStreamWhateverTheirBorders(t *testing.T) {
	long, huge := bytes.Repeat([]byte("b"), 300), bytes.Repeat([]byte("c"), 70_000)
	var in, want []byte
	in = append(in, frameOf(opBinary, []byte("a"))...) // not final: goes on
	in = append(in, frameOf(finalBit|opPing, []byte("hello"))...)
	in = append(in, frameOf(finalBit|opContinuation, long)...)
	in = append(in, frameOf(finalBit|opPong, nil)...)
	in = append(in, frameOf(finalBit|opBinary, nil)...)
	in = append(in, frameOf(finalBit|opBinary, huge)...)
	in = append(in, frameOf(finalBit|opClose, []byte{3, 232, 'b', 'y', 'e'})...)
	want = append(append([]byte("a"), long...), huge...)
	s, c := play(in)
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	// The ping was answered with its own content, masked.
	sent := c.out.Bytes()
	if len(sent) < 11 || sent[0] != finalBit|opPong || sent[1] != maskBit|5 {
		t.Fatalf("% x", sent)
	}
	for i, b := range []byte("hello") {
		if sent[6+i]^sent[2+i%4] != b {
			t.Fatalf("pong % x", sent)
		}
	}
}

func TestBrokenFramesEndTheConnection(t *testing.T) {
	for name, in := range map[string][]byte{
		"masked":        {finalBit | opBinary, maskBit | 1, 0, 0, 0, 0, 'x'},
		"extension":     {finalBit | 0x40 | opBinary, 1, 'x'},
		"text":          frameOf(finalBit|1, []byte("x")),
		"long ping":     frameOf(finalBit|opPing, make([]byte, 200)),
		"cut ping":      frameOf(opPing, nil),
		"unknown":       frameOf(finalBit|0xb, []byte("x")),
		"reserved data": frameOf(finalBit|3, []byte("x")),
	} {
		s, _ := play(in)
		if _, err := io.ReadAll(s); !errors.Is(err, errSocket) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// slow gives one byte at a time and a timeout before each.
type slow struct {
	net.Conn
	data []byte
	turn bool
}

func (c *slow) Read(p []byte) (int, error) {
	if c.turn = !c.turn; c.turn {
		return 0, os.ErrDeadlineExceeded
	}
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	p[0], c.data = c.data[0], c.data[1:]
	return 1, nil
}

func TestDeadlineWithinAFrameLosesNothing(t *testing.T) {
	c := &slow{data: append(frameOf(finalBit|opBinary, bytes.Repeat([]byte("x"), 200)), frameOf(finalBit|opBinary, []byte("end"))...)}
	s := &socket{Conn: c, in: bufio.NewReaderSize(c, 4<<10)}
	var got []byte
	buf := make([]byte, 50)
	for {
		n, err := s.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			break
		}
	}
	if len(got) != 203 || !bytes.HasSuffix(got, []byte("end")) {
		t.Errorf("%d bytes", len(got))
	}
}

func FuzzSocket(f *testing.F) {
	f.Add(frameOf(finalBit|opBinary, []byte("abc")))
	f.Add(frameOf(finalBit|opPing, []byte("abc")))
	f.Add([]byte{finalBit | opBinary, 127, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, c := play(data)
		got, _ := io.ReadAll(s) // any error is as good as another
		if len(got) > len(data) || c.out.Len() > 2*len(data)+64 {
			t.Errorf("%d bytes made %d, and %d to send", len(data), len(got), c.out.Len())
		}
	})
}
