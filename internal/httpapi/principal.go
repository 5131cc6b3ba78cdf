package httpapi

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"steward/internal/device"
	"steward/internal/fault"
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

	Token        string // ID of the API token that was sent; empty with a session
	Installation bool   // an admin of the default tenant: may make tenants and act in any
}

// WholeTenant refuses somebody whose account or token is narrowed to some devices: what is asked for (in
// words: "the release repository") has no labels and concerns every device of the tenant.
func (p Principal) WholeTenant(what string) error {
	if p.Scope.Selector.Empty() {
		return nil
	}
	return fault.New(fault.Forbidden, "%s concerns the whole tenant, and you are limited to devices with %s", what, p.Scope.Selector)
}

// Schema lists the names for the OpenAPI document and lets a wrong one be refused with its location.
func (Role) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for r := Viewer; r <= Admin; r++ {
		s.Enum = append(s.Enum, r.String())
	}
	return s
}

// Authenticator finds out who makes a request, by API token (Authorization: Bearer) or by the
// console's session cookie; a request with an Authorization header is never judged by its cookie. It
// returns fault.Unauthorized when there is neither or it is not valid, fault.Forbidden when somebody
// known asks for a tenant that is not theirs. The room access implements it.
type Authenticator interface {
	Authenticate(r *http.Request) (Principal, error)
}
