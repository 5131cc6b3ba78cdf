package link

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"unsafe"
)

// A connection that is through with its handshake keeps in crypto/tls what nobody here asks for any more:
// the parsed certificate of the peer (6 KiB), the buffers of the handshake (3 KiB) and, after a large
// packet, one of up to 33 KiB. That is most of what an idle device costs, and there is no call that lets go
// of it. So it is dropped here by the fields' names, each only when it has the type that is expected; with
// a Go that has changed them nothing happens but that devices cost more, and TestSlimConnection fails.
//
// None of these fields has a part in encrypting or decrypting records. A buffer is dropped only when it is
// empty, as crypto/tls leaves it between two records.

// tlsFields are the places of fields within a tls.Conn; 0 for one that isn't there.
type tlsFields struct {
	peerCertificates, verifiedChains uintptr
	rawInput, hand, input            uintptr
}

var tlsLayout = layoutOf(reflect.TypeFor[tls.Conn]())

func layoutOf(t reflect.Type) tlsFields {
	at := func(name string, want reflect.Type) uintptr {
		if f, ok := t.FieldByName(name); ok && f.Type == want {
			return f.Offset
		}
		return 0
	}
	return tlsFields{
		peerCertificates: at("peerCertificates", reflect.TypeFor[[]*x509.Certificate]()),
		verifiedChains:   at("verifiedChains", reflect.TypeFor[[][]*x509.Certificate]()),
		rawInput:         at("rawInput", reflect.TypeFor[bytes.Buffer]()),
		hand:             at("hand", reflect.TypeFor[bytes.Buffer]()),
		input:            at("input", reflect.TypeFor[bytes.Reader]()),
	}
}

func fieldOf[T any](c *tls.Conn, offset uintptr) *T {
	if offset == 0 || c == nil {
		return nil
	}
	return (*T)(unsafe.Add(unsafe.Pointer(c), offset))
}

// slimPeer drops the peer's certificates. Whoever needs them has taken them from ConnectionState before.
func slimPeer(c *tls.Conn) {
	if f := fieldOf[[]*x509.Certificate](c, tlsLayout.peerCertificates); f != nil {
		*f = nil
	}
	if f := fieldOf[[][]*x509.Certificate](c, tlsLayout.verifiedChains); f != nil {
		*f = nil
	}
}

// slimBuffers drops empty buffers, and tells whether nothing is buffered at all: then the next byte is
// still in the socket. Only the goroutine that reads may call it.
func slimBuffers(c *tls.Conn) (empty bool) {
	raw, hand, in := fieldOf[bytes.Buffer](c, tlsLayout.rawInput), fieldOf[bytes.Buffer](c, tlsLayout.hand), fieldOf[bytes.Reader](c, tlsLayout.input)
	if raw == nil || hand == nil || in == nil || in.Len() > 0 {
		return false
	}
	if hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
	if raw.Len() > 0 {
		return false
	}
	*raw = bytes.Buffer{}
	in.Reset(nil) // it has pointed into raw
	return true
}
