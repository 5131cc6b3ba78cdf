package access

import (
	"net/mail"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

// Tenant is one owner of devices.
type Tenant struct {
	ID      device.TenantID `json:"id"`
	Name    string          `json:"name" doc:"What people call it"`
	Created time.Time       `json:"created"`
}

// Account is a person, or a program that has tokens only.
type Account struct {
	ID         string          `json:"id"`
	Tenant     device.TenantID `json:"tenant"`
	Name       string          `json:"name" doc:"What one signs in with"`
	Email      string          `json:"email,omitempty"`
	Role       httpapi.Role    `json:"role"`
	Selector   device.Selector `json:"selector" doc:"Of the devices it may see; empty: all of the tenant"`
	Program    bool            `json:"program" doc:"Has no password, only tokens"`
	MustChange bool            `json:"must_change_password"`
	Disabled   bool            `json:"disabled"`
	Created    time.Time       `json:"created"`
	SignedIn   *time.Time      `json:"signed_in,omitempty" doc:"Last time"`
	Revision   int64           `json:"revision"`

	password string
}

// canSignIn tells whether the account counts as one that can administer its tenant.
func (a Account) canSignIn() bool { return !a.Disabled && !a.Program }

// NewAccount is what is asked for. An empty Password has one made.
type NewAccount struct {
	Name     string
	Email    string
	Role     httpapi.Role
	Selector device.Selector
	Program  bool
	Password string
}

// AccountChange names what is to change; nil leaves it.
type AccountChange struct {
	Email    *string
	Role     *httpapi.Role
	Selector *device.Selector
	Disabled *bool
}

// Token is an API token without its secret.
type Token struct {
	ID       string          `json:"id"`
	Name     string          `json:"name" doc:"What it is for"`
	Account  string          `json:"account" doc:"ID of the account that it acts for"`
	Owner    string          `json:"account_name"`
	Role     httpapi.Role    `json:"role"`
	Selector device.Selector `json:"selector" doc:"Narrows the account's own"`
	Created  time.Time       `json:"created"`
	Expires  time.Time       `json:"expires"`
	Used     *time.Time      `json:"used,omitempty" doc:"Last time, exact to the minute"`

	tenant device.TenantID // the account's
	parent string
}

// NewToken is what is asked for.
type NewToken struct {
	Account  string // ID; empty means who asks
	Name     string
	Role     httpapi.Role // Nobody means as much as is allowed
	Selector device.Selector
	Life     time.Duration // 0 means DefaultTokenLife
}

// Session is one sign-in of a browser.
type Session struct {
	ID      string // the beginning of the stored hash, to name it in a form
	Created time.Time
	Seen    time.Time
	Expires time.Time
	Address string
	Agent   string
	Current bool // the one that asks
}

// Limits of accounts, sessions and tokens.
const (
	MinPassword = 12 // characters
	MaxPassword = 256

	SessionIdle = 12 * time.Hour
	SessionLife = 7 * 24 * time.Hour

	DefaultTokenLife = 90 * 24 * time.Hour
	MaxTokenLife     = 5 * 365 * 24 * time.Hour

	maxNameBytes    = 64
	maxTokensOfOne  = 200 // per account
	maxSessionsEach = 50  // per account; the oldest goes
)

var accountPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._@+-]{0,62}[a-z0-9])?$`)

// normalName is how a name is stored and compared.
func normalName(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

// check puts the wishes into their normal form and names what is wrong.
func (n *NewAccount) check(at string) error {
	var e fault.Invalid
	n.Name = normalName(n.Name)
	n.Email = strings.TrimSpace(n.Email)
	if !accountPattern.MatchString(n.Name) {
		e.Add(at+"name", "use 1 to 64 letters, digits or inner . _ @ + -")
	}
	if n.Role < httpapi.Viewer || n.Role > httpapi.Admin {
		e.Add(at+"role", "want viewer, operator, release-manager or admin")
	}
	checkEmail(&e, at, n.Email)
	checkNarrow(&e, at, n.Role, n.Selector)
	switch {
	case n.Program && n.Password != "":
		e.Add(at+"password", "a program has no password; make a token for it")
	case n.Password != "":
		checkPassword(&e, at+"password", n.Password, n.Name)
	}
	return e.OrNil()
}

func checkEmail(e *fault.Invalid, at, email string) {
	if email == "" {
		return
	}
	if a, err := mail.ParseAddress(email); err != nil || a.Address != email || len(email) > 254 {
		e.Add(at+"email", "this is no e-mail address")
	}
}

// checkNarrow keeps admins from being narrowed: they could make a wider account for themselves.
func checkNarrow(e *fault.Invalid, at string, role httpapi.Role, sel device.Selector) {
	if role == httpapi.Admin && !sel.Empty() {
		e.Add(at+"selector", "an admin sees all devices of the tenant; choose another role or no selector")
	}
}

// checkPassword follows NIST SP 800-63B section 3.1.1.2: length counts, composition doesn't.
func checkPassword(e *fault.Invalid, at, password, name string) {
	switch n := utf8.RuneCountInString(password); {
	case n < MinPassword:
		e.Add(at, "use at least %d characters; some words in a row are fine", MinPassword)
	case len(password) > MaxPassword:
		e.Add(at, "use at most %d bytes", MaxPassword)
	case strings.Contains(strings.ToLower(password), name) && len(name) > 3:
		e.Add(at, "don't use the account's name in its password")
	case strings.Count(password, password[:1]) == len(password):
		e.Add(at, "use more than one character repeated")
	}
}

// check names what is wrong with the wishes.
func (n *NewToken) check() error {
	var e fault.Invalid
	n.Name = strings.TrimSpace(n.Name)
	if n.Name == "" || len(n.Name) > maxNameBytes {
		e.Add("body.name", "say in 1 to %d characters what the token is for", maxNameBytes)
	}
	if n.Life == 0 {
		n.Life = DefaultTokenLife
	}
	if n.Life < time.Minute || n.Life > MaxTokenLife {
		e.Add("body.expires_in_days", "want 1 to %d days", MaxTokenLife/(24*time.Hour))
	}
	return e.OrNil()
}

func checkTenant(id, name string) (Tenant, error) {
	var e fault.Invalid
	tenant, err := device.ParseTenantID(id)
	if err != nil {
		e.Add("body.id", "%s", err)
	}
	name = strings.TrimSpace(name)
	if name == "" {
		name = id
	}
	if len(name) > maxNameBytes {
		e.Add("body.name", "use at most %d bytes", maxNameBytes)
	}
	return Tenant{ID: tenant, Name: name}, e.OrNil()
}
