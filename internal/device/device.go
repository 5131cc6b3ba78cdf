package device

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// TenantID names one owner of devices: lower case letters, digits and dashes, 1 to 40 bytes.
type TenantID string

// DefaultTenant is the tenant made at first start.
const DefaultTenant TenantID = "default"

var tenantPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// ParseTenantID checks the form of a tenant's name.
func ParseTenantID(s string) (TenantID, error) {
	if !tenantPattern.MatchString(s) {
		return "", fmt.Errorf("tenant %q: use 1 to 40 lower case letters, digits or inner dashes", s)
	}
	return TenantID(s), nil
}

// ID is the public name of a device for its whole life, e.g. "dev-0k3v9m2xq7ah5ptd". It is random:
// never derived from a MAC address, a serial number or a certificate, all of which may change.
type ID string

// idAlphabet is Crockford's base 32 in lower case: no i, l, o, u.
var idAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

const idPrefix = "dev-"

var idPattern = regexp.MustCompile(`^dev-[0-9a-hjkmnp-tv-z]{16}$`)

// NewID returns a fresh device ID with 80 random bits.
func NewID() ID { return ID(idPrefix + RandomName(10)) }

// RandomName returns n random bytes in Crockford's base 32, lower case. Rooms use it for the IDs of
// their own things, behind a prefix of their own ("ord-", "rel-").
func RandomName(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return idAlphabet.EncodeToString(b)
}

// ParseID checks the form of a device ID.
func ParseID(s string) (ID, error) {
	if !idPattern.MatchString(s) {
		return "", fmt.Errorf("device ID %q: want dev- and 16 characters", s)
	}
	return ID(s), nil
}

// MaxSerialBytes bounds a serial number.
const MaxSerialBytes = 64

var serialPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,63}$`)

// ParseSerial trims and checks a maker's serial number: 1 to 64 printable characters without spaces.
func ParseSerial(s string) (string, error) {
	s = strings.TrimSpace(s)
	if !serialPattern.MatchString(s) {
		return "", fmt.Errorf("serial number %q: use 1 to 64 letters, digits or . _ : / + -", s)
	}
	return s, nil
}

// Device is one physical unit. All rooms refer to it by Num inside the database and by ID outside.
type Device struct {
	Num        int64             `json:"-"` // short integer key inside one database, never shown
	ID         ID                `json:"id"`
	Tenant     TenantID          `json:"tenant"`
	Name       string            `json:"name,omitempty"`   // what people call it; may be empty
	Serial     string            `json:"serial,omitempty"` // maker's serial number; empty while ordered
	Model      string            `json:"model,omitempty"`  // ID of the hardware model; empty when not bought through Steward
	Stage      Stage             `json:"stage"`
	StageSince time.Time         `json:"stage_since"`
	Reason     string            `json:"stage_reason,omitempty"` // why it is in this stage
	Labels     map[string]string `json:"labels"`
	Created    time.Time         `json:"created"`
	Revision   int64             `json:"revision"` // grows with each change of this record; the ETag
}

// DisplayName is the name, else the serial number, else the ID.
func (d Device) DisplayName() string {
	switch {
	case d.Name != "":
		return d.Name
	case d.Serial != "":
		return d.Serial
	}
	return string(d.ID)
}

// Scope is the part of the fleet that somebody may see and touch: one tenant and, when Selector is
// not empty, only the devices it matches.
type Scope struct {
	Tenant   TenantID
	Selector Selector
}

// Allows tells whether d is within the scope.
func (s Scope) Allows(d Device) bool {
	return s.Tenant == d.Tenant && s.Selector.Matches(d.Labels)
}

// ActorKind tells what kind of party did something.
type ActorKind string

// The kinds of actors.
const (
	ActorAccount ActorKind = "account" // a person or a program with an account
	ActorDevice  ActorKind = "device"
	ActorSystem  ActorKind = "system" // Steward itself: timers, policies, guards
)

// Actor is who did something, as the ledger keeps it.
type Actor struct {
	Kind ActorKind `json:"kind"`
	ID   string    `json:"id"`             // account ID, device ID or the room's name
	Name string    `json:"name,omitempty"` // as people knew it at that time
}

// System returns the actor for what a room does by itself.
func System(room string) Actor { return Actor{Kind: ActorSystem, ID: room} }
