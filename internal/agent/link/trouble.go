package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// errUnfit: what answers on this way is not MQTT.
var errUnfit = errors.New("this way does not work")

// trouble is what came of an attempt to connect.
type trouble int

const (
	unreachable trouble = iota // the network or the server fails, whatever the way: try again later
	doubtful                   // it may be the way, or the server that is starting
	unfit                      // the way can't work: take another
	unwanted                   // the server does not want this device: ask why by HTTPS
)

// attemptError is a failed attempt.
type attemptError struct {
	kind trouble
	via  string
	err  error
}

func (e *attemptError) Error() string {
	return map[string]string{ViaMQTT: "MQTT: ", ViaWebSocket: "MQTT in a WebSocket: "}[e.via] + e.err.Error()
}

func (e *attemptError) Unwrap() error { return e.err }

// kindOf judges the error of connectBy.
func kindOf(err error) trouble {
	var (
		lost    *unreachableError
		reason  *mqtt.ReasonError
		packet  *mqtt.PacketError
		problem *Problem
		remote  *net.OpError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.Is(err, errNoPath), errors.Is(err, errUnfit), errors.Is(err, errSocket), errors.As(err, &packet):
		return unfit
	case errors.As(err, &lost), errors.As(err, &verify), errors.As(err, &record), errors.As(err, &invalid):
		return unreachable // HTTPS would fail in the same way
	case errors.As(err, &reason):
		return kindOfReason(reason.Reason)
	case errors.As(err, &problem):
		return kindOfStatus(problem.Status)
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert; package tls keeps its number to itself
		if strings.Contains(err.Error(), "no application protocol") { // RFC 7301, section 3.2
			return unfit
		}
		return unwanted
	}
	return doubtful
}

func kindOfReason(r mqtt.Reason) trouble {
	switch r {
	case mqtt.UnsupportedVersion, mqtt.ProtocolError, mqtt.MalformedPacket, mqtt.ImplementationError, mqtt.TopicFilterInvalid, mqtt.WildcardsNotSupported:
		return unfit
	case mqtt.NotAuthorized, mqtt.BadUserOrPassword, mqtt.BadAuthentication, mqtt.Banned, mqtt.ClientIDInvalid, mqtt.QuotaExceeded, mqtt.SessionTakenOver:
		return unwanted
	}
	return unreachable // busy, starting, shutting down
}

func kindOfStatus(status int) trouble {
	switch status {
	case 401, 403:
		return unwanted
	case 429, 500, 502, 503, 504:
		return unreachable
	}
	return unfit
}

// problemIn is the refusal that CONNACK names by its code, or nil.
func problemIn(err error) error {
	var reason *mqtt.ReasonError
	if !errors.As(err, &reason) {
		return nil
	}
	code := mqtt.Property(reason.UserProperties, wire.UserPropertyCode)
	if code == "" {
		return nil
	}
	return problemFrom(wire.Problem{Status: http.StatusForbidden, Code: code, Title: reason.Reason.String(), Detail: reason.Text})
}

// windowOf reads wire.UserPropertyReconnect, at most an hour.
func windowOf(list []mqtt.UserProperty) int64 {
	n, err := strconv.ParseInt(mqtt.Property(list, wire.UserPropertyReconnect), 10, 32)
	if err != nil {
		return 0
	}
	return min(max(0, n), 3600)
}

func windowIn(err error) time.Duration {
	var reason *mqtt.ReasonError
	if !errors.As(err, &reason) {
		return 0
	}
	return time.Duration(windowOf(reason.UserProperties)) * time.Second
}

// jitter returns a wait of 0 to the doubling bound of the back-off, or to the window if that is longer.
func (b *Backoff) jitter(window time.Duration) time.Duration {
	bound := max(b.bound(), window)
	return rand.N(bound + 1)
}
