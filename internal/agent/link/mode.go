package link

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Mode is how messages may travel.
type Mode string

// The modes. Enrollment, renewal, artifacts, TUF metadata and statements of disposal always travel by
// HTTPS.
const (
	// ModeAuto stays connected by MQTT unless that doesn't pay (see LongPace) or can't be had.
	ModeAuto Mode = "auto"
	// ModeMQTT stays connected whatever the interval, and does without HTTPS for messages.
	ModeMQTT Mode = "mqtt"
	// ModeHTTPS never uses MQTT.
	ModeHTTPS Mode = "https"
)

var modes = []Mode{ModeAuto, ModeMQTT, ModeHTTPS}

// ParseMode reads a mode; "" is ModeAuto.
func ParseMode(s string) (Mode, error) {
	if s == "" {
		return ModeAuto, nil
	}
	if m := Mode(s); slices.Contains(modes, m) {
		return m, nil
	}
	return "", fmt.Errorf("link %.40q: want auto, mqtt or https", s)
}

// The ways that messages can travel, the best first.
const (
	ViaMQTT      = "mqtt"    // ALPN "mqtt" on the link's port
	ViaWebSocket = "mqtt+ws" // MQTT in a WebSocket, for networks that let nothing but HTTPS through
	ViaHTTPS     = "https"   // long poll
)

// LongPace is the report interval from which a connection that stays open costs more than it gives. With
// such an interval the device asks after each report and is not connected in between.
const LongPace = 15 * time.Minute

// ErrUnasked: at this pace the server was not asked; the time that was to be waited has passed.
var ErrUnasked = errors.New("the server was not asked")

// Way tells how messages travel now.
type Way struct {
	Via string // one of the Via constants; "" while the device tries to connect
	// Why says what keeps the device from a better way, or from any; "" with ViaMQTT.
	Why string
}

// lostError says that there is no connection just now, or that it was lost meanwhile, and when the next
// attempt is made, if that is known.
type lostError struct {
	cause error
	next  time.Time
}

func (e *lostError) Error() string {
	if e.cause == nil {
		return "not connected yet"
	}
	return "not connected: " + e.cause.Error()
}

func (e *lostError) Unwrap() error { return e.cause }

// retryAfter makes who waits come back when the next attempt has been made.
func (e *lostError) retryAfter() time.Duration { return max(0, time.Until(e.next)) }
