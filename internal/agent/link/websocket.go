package link

import (
	"bufio"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6455, section 4.2.2: a handshake's check, no security
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"steward/internal/wire"
)

// socket is the client's end of a WebSocket (RFC 6455) as a stream of bytes: MQTT's packets and the
// messages' borders don't coincide (MQTT 5, section 6). One goroutine reads while others write. Deadlines
// are those of the connection below, and a read that has timed out can be repeated.
type socket struct {
	net.Conn
	in   *bufio.Reader
	left int64 // bytes of the present frame's payload

	mu sync.Mutex // held while a frame is written
}

// Opcodes of frames (section 5.2).
const (
	opContinuation = 0x0
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa

	finalBit = 0x80
	maskBit  = 0x80
	// maxControl bounds the payload of a control frame (section 5.5).
	maxControl = 125
)

var errSocket = errors.New("websocket: the server breaks the protocol")

// openSocket asks the server to go over from HTTP/1.1 to MQTT in a WebSocket. A refusal is a *Problem.
func openSocket(conn net.Conn, host, agent string, now time.Time) (*socket, error) {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails since Go 1.24
	key := base64.StdEncoding.EncodeToString(nonce)
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n", wire.PathMQTT, host, agent, key, wire.ALPNMQTT)
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: conn, in: bufio.NewReaderSize(conn, 4<<10)}
	res, err := http.ReadResponse(s.in, &http.Request{Method: http.MethodGet})
	if err != nil {
		return nil, fmt.Errorf("answer to the WebSocket upgrade: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(res.Body, maxProblemBytes)) // what did not come is left out of the problem
		_ = res.Body.Close()
		return nil, problemOf(res, body, now)
	}
	// Section 4.1: without the right answer it is a cache or a server of something else.
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if res.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) || !strings.EqualFold(res.Header.Get("Sec-WebSocket-Protocol"), wire.ALPNMQTT) {
		return nil, fmt.Errorf("%w: the upgrade's answer is not for MQTT", errSocket)
	}
	return s, nil
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	for s.left == 0 {
		if err := s.frame(); err != nil {
			return 0, err
		}
	}
	n, err := s.in.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

// frame reads the next frame's header, and the whole frame when it is a control frame. The header is
// peeked at until it is complete, so that a deadline in its middle loses nothing.
func (s *socket) frame() error {
	head, err := s.in.Peek(2)
	if err != nil {
		return err
	}
	op, size, length := head[0]&0x0f, 2, int64(head[1]&0x7f)
	switch {
	case head[0]&0x70 != 0, head[1]&maskBit != 0: // extensions that were not agreed on; a server does not mask
		return errSocket
	case length == 126:
		size = 4
	case length == 127:
		size = 10
	}
	if head, err = s.in.Peek(size); err != nil {
		return err
	}
	switch size {
	case 4:
		length = int64(binary.BigEndian.Uint16(head[2:]))
	case 10:
		length = int64(binary.BigEndian.Uint64(head[2:]) & (1<<63 - 1))
	}
	if op == opBinary || op == opContinuation {
		_, err = s.in.Discard(size)
		s.left = length
		return err
	}
	return s.control(op, head[0]&finalBit != 0, size, length)
}

// control reads and answers a frame that carries no data.
func (s *socket) control(op byte, final bool, size int, length int64) error {
	if length > maxControl || !final || op < opClose {
		return errSocket
	}
	whole, err := s.in.Peek(size + int(length))
	if err != nil {
		return err
	}
	payload := append([]byte(nil), whole[size:]...)
	if _, err := s.in.Discard(len(whole)); err != nil {
		return err
	}
	switch op {
	case opPing:
		return s.send(opPong, payload)
	case opClose:
		_ = s.send(opClose, payload[:min(2, len(payload))]) // the connection ends either way
		return io.EOF
	case opPong:
		return nil
	}
	return errSocket
}

// Write sends one binary frame.
func (s *socket) Write(p []byte) (int, error) {
	if err := s.send(opBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes a frame, masked as a client's must be (section 5.3), with one call.
func (s *socket) send(op byte, payload []byte) error {
	frame := make([]byte, 0, 14+len(payload))
	frame = append(frame, finalBit|op)
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, maskBit|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, maskBit|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, maskBit|127), uint64(n))
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:])
	frame = append(frame, mask[:]...)
	start := len(frame)
	frame = append(frame, payload...)
	for i := range payload {
		frame[start+i] ^= mask[i%4]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Conn.Write(frame)
	return err
}

// Close says goodbye and closes.
func (s *socket) Close() error {
	_ = s.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.send(opClose, []byte{0x03, 0xe8}) // 1000, normal closure; a server that has gone knows
	return s.Conn.Close()
}
