package httpapi

import (
	"fmt"
	"net/http"

	"steward/internal/device"
)

// Role is what somebody may do; each includes those before it.
type Role int

// The roles.
const (
	Nobody         Role = iota // not signed in
	Viewer                     // sees everything in their scope
	Operator                   // changes devices, orders, enrollment
	ReleaseManager             // also releases and assignments
	Admin                      // also accounts, tenants, authorities, policies
)

var roleNames = [...]string{"nobody", "viewer", "operator", "release-manager", "admin"}

func (r Role) String() string {
	if r < 0 || int(r) >= len(roleNames) {
		return fmt.Sprintf("role(%d)", int(r))
	}
	return roleNames[r]
}

// ParseRole reads the name that String writes.
func ParseRole(s string) (Role, error) {
	for r := Viewer; r <= Admin; r++ {
		if r.String() == s {
			return r, nil
		}
	}
	return Nobody, fmt.Errorf("role %q: want viewer, operator, release-manager or admin", s)
}

// MarshalText and UnmarshalText let a role stand in JSON by its name.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the form that MarshalText writes.
func (r *Role) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRole(string(text))
	return err
}

// Principal is who makes a request, what they may do and to which part of the fleet.
type Principal struct {
	Actor device.Actor
	Role  Role
	Scope device.Scope
}

// Authenticator finds out who makes a request, by API token (Authorization: Bearer) or by the
// console's session cookie. It returns fault.Unauthorized when there is neither or it is not valid.
// The room access implements it.
type Authenticator interface {
	Authenticate(r *http.Request) (Principal, error)
}
