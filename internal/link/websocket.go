package link

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// MQTT over WebSocket (RFC 6455; MQTT 5, section 6), for networks that let nothing else pass. The frames
// are read and written here, and not by a library, since those keep two buffers and a goroutine for each
// connection, which is more than all the rest of an idle device.

// upgrade answers GET /mqtt and turns the connection into a session.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) error {
	key, err := checkUpgrade(r)
	if err != nil {
		return err
	}
	c := connOf(r.Context())
	if c == nil || r.ProtoMajor != 1 {
		return badRequest("WebSocket needs HTTP/1.1: offer no h2 in ALPN")
	}
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	t, ok := raw.(*tls.Conn)
	if !ok {
		_ = c.Close()
		return nil
	}
	if a, ok := w.(*answer); ok {
		a.status = http.StatusSwitchingProtocols // for the log; nothing more is written
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455, section 1.3
	_ = t.SetDeadline(time.Time{})
	_ = t.SetWriteDeadline(time.Now().Add(writeTime))
	_, err = io.WriteString(t, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\n"+
		"Sec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	if err != nil {
		_ = c.Close()
		return nil
	}
	ss := &session{s: s, conn: c, tls: t, stream: &webSocket{conn: t, early: leftOver(buffered)}, web: true}
	s.crew.do(func() { s.begin(ss) })
	return nil
}

// checkUpgrade checks the handshake (RFC 6455, section 4.2.1) and returns its key.
func checkUpgrade(r *http.Request) (key string, err error) {
	key = r.Header.Get("Sec-WebSocket-Key")
	nonce, err := base64.StdEncoding.DecodeString(key)
	switch {
	case !hasToken(r.Header["Upgrade"], "websocket") || !hasToken(r.Header["Connection"], "upgrade"):
		return "", badRequest("this path takes WebSocket only: Upgrade: websocket")
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		return "", badRequest("the WebSocket version is not 13")
	case err != nil || len(nonce) != 16:
		return "", badRequest("Sec-WebSocket-Key is not 16 bytes in base64")
	case !hasToken(r.Header["Sec-Websocket-Protocol"], wire.ALPNMQTT):
		return "", badRequest("the WebSocket subprotocol is not mqtt")
	}
	// A browser sends its user's certificate also for a page of somebody else's.
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
			return "", badRequest("a page of another origin may not speak for a device")
		}
	}
	return key, nil
}

func hasToken(values []string, token string) bool {
	return slices.ContainsFunc(strings.Split(strings.Join(values, ","), ","), func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), token) })
}

// leftOver is what net/http has read beyond the request.
func leftOver(b *bufio.ReadWriter) []byte {
	early := make([]byte, b.Reader.Buffered())
	n, _ := io.ReadFull(b.Reader, early) // it is buffered
	return early[:n]
}

// Frame types (RFC 6455, section 5.2).
const (
	opContinuation = 0x0
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa
)

const maxControlFrame = 125 // bytes

// webSocket is the stream of bytes within the frames. MQTT's packets don't care where a frame ends. One
// goroutine reads; writing is guarded, since the reader answers pings.
type webSocket struct {
	conn  io.ReadWriter // TLS
	early []byte        // read by net/http

	head  [14]byte // of the frame that is about to come
	have  int      // bytes of head
	left  int64    // of the current frame's payload
	mask  [4]byte
	at    int  // position in mask
	op    byte // of the current frame
	final bool
	begun bool // a message is under way: its last frame has not come
	note  []byte

	mu sync.Mutex
}

// empty tells whether nothing is held that was read from TLS.
func (w *webSocket) empty() bool { return len(w.early) == 0 }

func (w *webSocket) read(p []byte) (int, error) {
	if len(w.early) > 0 {
		n := copy(p, w.early)
		if w.early = w.early[n:]; len(w.early) == 0 {
			w.early = nil
		}
		return n, nil
	}
	return w.conn.Read(p)
}

// Read implements io.Reader. After errQuiet it goes on where it was.
func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.left == 0 || w.op != opBinary {
			if err := w.next(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := w.read(p[:min(int64(len(p)), w.left)])
		w.unmask(p[:n])
		if n > 0 {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func (w *webSocket) unmask(p []byte) {
	for i := range p {
		p[i] ^= w.mask[w.at&3]
		w.at++
	}
	w.left -= int64(len(p))
}

// next reads the rest of a control frame, or the head of the next frame.
func (w *webSocket) next() error {
	if w.left > 0 {
		return w.controlPayload()
	}
	if w.have == 0 && w.op >= opClose {
		w.op = opContinuation
	}
	for w.have < w.headSize() {
		n, err := w.read(w.head[w.have:w.headSize()])
		if w.have += n; err != nil && n == 0 {
			return err
		}
		if w.have >= 2 {
			if err := w.checkHead(); err != nil {
				return err
			}
		}
	}
	w.have = 0
	w.op, w.final, w.at = w.head[0]&0x0f, w.head[0]&0x80 != 0, 0
	switch size := int64(w.head[1] & 0x7f); size {
	case 126:
		w.left = int64(binary.BigEndian.Uint16(w.head[2:]))
		copy(w.mask[:], w.head[4:])
	case 127:
		w.left = int64(binary.BigEndian.Uint64(w.head[2:]))
		copy(w.mask[:], w.head[10:])
	default:
		w.left = size
		copy(w.mask[:], w.head[2:])
	}
	if w.left < 0 {
		return badFrame("a frame of more than 2^63 bytes")
	}
	if w.op >= opClose {
		w.note = w.note[:0]
		if w.left == 0 {
			return w.control()
		}
		return nil
	}
	w.begun = !w.final
	w.op = opBinary // of a continuation, too
	return nil
}

// headSize is how long the head is that has begun, as far as that is known.
func (w *webSocket) headSize() int {
	size := w.head[1] & 0x7f
	switch {
	case w.have < 2:
		return 2
	case size == 126:
		return 8
	case size == 127:
		return 14
	}
	return 6
}

func (w *webSocket) checkHead() error {
	op, size := w.head[0]&0x0f, w.head[1]&0x7f
	switch {
	case w.head[0]&0x70 != 0:
		return badFrame("a frame of an extension that was not agreed on")
	case w.head[1]&0x80 == 0:
		return badFrame("a frame without a mask")
	case op >= opClose && (size > maxControlFrame || w.head[0]&0x80 == 0):
		return badFrame("a control frame that is long or in pieces")
	case op == opContinuation && !w.begun, op == opBinary && w.begun:
		return badFrame("a frame out of its message's order")
	case op != opContinuation && op != opBinary && op != opClose && op != opPing && op != opPong:
		return badFrame("a frame that is not binary") // MQTT 5, section 6.0
	}
	return nil
}

func badFrame(what string) error {
	return &mqtt.PacketError{Code: mqtt.ProtocolError, Detail: "WebSocket: " + what}
}

func (w *webSocket) controlPayload() error {
	var b [maxControlFrame]byte
	n, err := w.read(b[:w.left])
	w.unmask(b[:n])
	w.note = append(w.note, b[:n]...)
	if n == 0 && err != nil {
		return err
	}
	if w.left > 0 {
		return nil
	}
	return w.control()
}

// control acts on a whole control frame.
func (w *webSocket) control() error {
	note := w.note
	w.note = nil
	switch w.op {
	case opPing:
		return w.frame(opPong, note)
	case opClose:
		_ = w.frame(opClose, note[:min(len(note), 2)])
		return io.EOF
	}
	return nil
}

// Write implements io.Writer: one binary frame.
func (w *webSocket) Write(p []byte) (int, error) {
	if err := w.frame(opBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *webSocket) frame(op byte, p []byte) error {
	b := make([]byte, 0, len(p)+10)
	b = append(b, 0x80|op)
	switch {
	case len(p) < 126:
		b = append(b, byte(len(p)))
	case len(p) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(len(p)))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.conn.Write(append(b, p...))
	return err
}
