package link

import (
	"context"
	"crypto/x509"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

type deviceHandler func(w http.ResponseWriter, r *http.Request, d device.Device) error

// observe is around everything: deadlines, protocol number, panics and the access log.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := s.cfg.Now()
		a := &answer{ResponseWriter: w, ctl: http.NewResponseController(w)}
		_ = a.ctl.SetWriteDeadline(time.Time{}) // of the request before on this connection
		a.Header().Set(wire.ProtocolHeader, strconv.Itoa(wire.Protocol))
		body := newBody(a, r, s.cfg.BodyTimeout)
		who := &visitor{}
		r = r.WithContext(context.WithValue(r.Context(), visitorKey{}, who))
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler {
				s.cfg.Log.ErrorContext(r.Context(), "link: panic", "panic", p, "stack", string(debug.Stack()), "url.path", r.URL.Path)
			}
			s.log(r, a, who, s.cfg.Now().Sub(began))
			body.release()
			if p != nil {
				panic(http.ErrAbortHandler) // the connection or stream is cut; the stack is logged above
			}
		}()
		if err := checkProtocol(r.Header.Get(wire.ProtocolHeader)); err != nil {
			s.refuse(a, r, err)
			return
		}
		r.Body = body
		next.ServeHTTP(a, r)
	})
}

// checkProtocol refuses a speaker that is newer than this server; who names no number is a foreign
// client that speaks EST or OTLP only.
func checkProtocol(header string) error {
	if header == "" {
		return nil
	}
	n, err := strconv.Atoi(header)
	if err != nil || n < 1 {
		return badRequest("the header %s is a whole number from 1 on", wire.ProtocolHeader)
	}
	if n > wire.Protocol {
		return &fault.Error{Kind: errBadRequest, Code: wire.CodeProtocol,
			Detail: "this server speaks protocol " + strconv.Itoa(wire.Protocol) + ", the device " + header + ": update the server first"}
	}
	return nil
}

// visitor is filled in by known, for the access log.
type visitor struct{ device device.ID }

type visitorKey struct{}

// stranger serves paths that need no device certificate, within the address' rate.
func (s *Server) stranger(h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait := s.strange.take(r.RemoteAddr); wait > 0 {
			s.refuse(w, r, errTooMany(wait))
			return
		}
		if err := h(w, r); err != nil {
			s.refuse(w, r, err)
		}
	})
}

// known serves a device's own paths. keep is for the request that ends with the device's revocation:
// its answer still goes out.
func (s *Server) known(h deviceHandler, keep bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		if wait := s.doors.limited(c); wait > 0 {
			s.refuse(w, r, errTooMany(wait))
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		v := &visit{conn: c, cancel: cancel, keep: keep}
		d, err := s.admit(ctx, r, v)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		defer s.doors.leave(d.Num, v)
		if err := h(w, r.WithContext(ctx), d); err != nil {
			s.refuse(w, r, s.explain(ctx, r, err))
		}
	})
}

// admit identifies the device and notes the request. The answer of a revocation that came between the
// two is found by asking once more.
func (s *Server) admit(ctx context.Context, r *http.Request, v *visit) (device.Device, error) {
	for range 3 {
		began := time.Now() // as doors.revoke, which is not about the devices' time
		d, err := s.who.certificate(ctx, clientCertificate(r))
		if err != nil {
			if wait := s.strange.take(r.RemoteAddr); wait > 0 {
				return d, errTooMany(wait)
			}
			return d, err
		}
		if who, ok := ctx.Value(visitorKey{}).(*visitor); ok {
			who.device = d.ID
		}
		switch s.doors.enter(d.Num, v, began) {
		case admitted:
			return d, nil
		case tooMany:
			return d, fault.Later(fault.TooMany, wire.CodeTooMany, time.Second, "more than %d requests of this device at a time", s.cfg.Concurrent)
		}
	}
	return device.Device{}, fault.Later(fault.Unavailable, "", time.Second, "this device's certificates are changing")
}

// explain turns the end of a request by revocation into the refusal that a new request would get.
func (s *Server) explain(ctx context.Context, r *http.Request, err error) error {
	if context.Cause(ctx) != errRevokedNow {
		return err
	}
	if _, refusal := s.cfg.Identify(context.WithoutCancel(ctx), clientCertificate(r)); refusal != nil {
		return refusal
	}
	return err
}

// clientCertificate is what the peer has proven to have the key of, or nil.
func clientCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}
