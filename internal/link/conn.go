package link

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is one TCP connection. num is its device, 0 until a request has been identified; speaks is
// until when an answer may be on its way that must arrive; strangeOf is its address until num is known.
// doors' lock guards these.
//
// mode, place and until belong to the goroutine that reads; it hands them on with the connection.
type conn struct {
	net.Conn
	raw   syscall.RawConn // nil where the system has none
	doors *doors
	mode  readMode
	place *place    // within the handshake: its turn to compute
	until time.Time // in mode patient: when the rest of a packet must have come

	parting atomic.Bool // a session says goodbye and closes it in a moment

	once      sync.Once
	num       int64
	speaks    time.Time
	later     *time.Timer
	strangeOf netip.Addr
}

// readMode says what Read does when nothing has come yet.
type readMode byte

const (
	blocking readMode = iota // it waits, as of every net.Conn; net/http's way
	quiet                    // it returns errQuiet at once, so that the goroutine can end
	patient                  // it waits until conn.until: a packet has begun
)

// errQuiet is an error that crypto/tls takes for passing: the connection can be read again afterwards.
var errQuiet net.Error = quietError{}

type quietError struct{}

func (quietError) Error() string   { return "nothing to read yet" }
func (quietError) Timeout() bool   { return true }
func (quietError) Temporary() bool { return true }

func newConn(c net.Conn, d *doors) *conn {
	own := &conn{Conn: c, doors: d}
	if tcp, ok := c.(*net.TCPConn); ok && canTry {
		if raw, err := tcp.SyscallConn(); err == nil {
			own.raw = raw
		}
	}
	return own
}

func (c *conn) Read(p []byte) (int, error) {
	if c.raw == nil || (c.mode == blocking && c.place == nil) {
		if c.mode == patient {
			_ = c.Conn.SetReadDeadline(c.until)
		}
		return c.Conn.Read(p)
	}
	n, err := c.try(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && c.mode != blocking {
		// The deadline of the silence before. A packet has come in time, or is about to be missed.
		_ = c.Conn.SetReadDeadline(time.Time{})
		n, err = c.try(p)
	}
	if err != errQuiet || c.mode == quiet {
		return n, err
	}
	if c.mode == patient {
		_ = c.Conn.SetReadDeadline(c.until)
	}
	if c.place != nil { // others may compute while this one waits for its peer
		c.place.leave()
		defer c.place.enter()
	}
	return c.Conn.Read(p)
}

// try reads what has come, or returns errQuiet.
func (c *conn) try(p []byte) (n int, err error) {
	waited := c.raw.Read(func(fd uintptr) bool {
		n, err = readNow(fd, p)
		return true
	})
	switch {
	case waited != nil:
		return 0, waited
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return max(n, 0), err
}

// wait returns when something can be read, when the read deadline has passed or when the connection is
// closed. Unlike a Read it needs so little stack that a waiting goroutine stays at the smallest.
func (c *conn) wait() error {
	looked := false // the system tells only of what comes after the first look
	return c.raw.Read(func(fd uintptr) bool {
		if looked {
			return true
		}
		looked = true
		return readable(fd)
	})
}

// Close is also what net/http calls; the TCP connection goes at once, without TLS's farewell, which a
// peer that doesn't read could hold up.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		c.doors.remove(c)
		err = c.Conn.Close()
	})
	return err
}

// closeSoon is called with doors' lock held.
func (c *conn) closeSoon() {
	if c.later == nil {
		c.later = time.AfterFunc(lastWord, func() { _ = c.Close() })
	}
}

type connKey struct{}

// connContext lets a request find its connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if own := connUnder(c); own != nil {
		return context.WithValue(ctx, connKey{}, own)
	}
	return ctx
}

func connUnder(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		own, _ := t.NetConn().(*conn)
		return own
	}
	return nil
}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}
