package access

import (
	"context"
	"net/http"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Routes adds the room's operations to the API.
func (s *Service) Routes(a *httpapi.API) {
	op := func(id, method, path, summary string, role httpapi.Role) httpapi.Op {
		return httpapi.Op{ID: id, Method: method, Path: path, Summary: summary, Tag: "access", Role: role}
	}
	httpapi.Register(a, op("whoami", http.MethodGet, "/whoami", "Show who you are and what you may", httpapi.Viewer), s.serveWhoami)

	login := op("log-in", http.MethodPost, "/login", "Get an API token for a name and a password", httpapi.Nobody)
	login.Detail = "For the command line on a person's machine; programs should have a token of their own account. " +
		"Failed attempts are limited per account and address."
	login.Status = http.StatusCreated
	httpapi.Register(a, login, s.serveLogIn)

	httpapi.Register(a, op("list-accounts", http.MethodGet, "/accounts", "List the tenant's accounts", httpapi.Admin), s.serveAccounts)
	create := op("create-account", http.MethodPost, "/accounts", "Make an account", httpapi.Admin)
	create.Detail = "Without a password one is made and returned, once. It must be changed at the first sign-in."
	create.Status = http.StatusCreated
	httpapi.Register(a, create, s.serveCreateAccount)
	httpapi.Register(a, op("get-account", http.MethodGet, "/accounts/{id}", "Show an account", httpapi.Admin), s.serveAccount)
	change := op("change-account", http.MethodPatch, "/accounts/{id}", "Change role, devices, e-mail address, or disable", httpapi.Admin)
	change.Detail = "Disabling ends the account's sessions and deletes its tokens at once. The last administrator of a tenant stays one."
	httpapi.Register(a, change, s.serveChangeAccount)
	httpapi.Register(a, op("delete-account", http.MethodDelete, "/accounts/{id}", "Delete an account with its sessions and tokens", httpapi.Admin), s.serveDeleteAccount)
	httpapi.Register(a, op("reset-account-password", http.MethodPost, "/accounts/{id}/password", "Give an account a fresh password", httpapi.Admin), s.serveResetPassword)

	httpapi.Register(a, op("list-tokens", http.MethodGet, "/tokens", "List API tokens: your own, as admin the tenant's", httpapi.Viewer), s.serveTokens)
	issue := op("create-token", http.MethodPost, "/tokens", "Make an API token", httpapi.Viewer)
	issue.Detail = "The secret is in this answer and nowhere else; send an Idempotency-Key to be able to ask for it again."
	issue.Status = http.StatusCreated
	httpapi.Register(a, issue, s.serveCreateToken)
	httpapi.Register(a, op("delete-token", http.MethodDelete, "/tokens/{id}", "Revoke an API token and those made with it", httpapi.Viewer), s.serveDeleteToken)

	httpapi.Register(a, op("list-tenants", http.MethodGet, "/tenants", "List the tenants in which you may act", httpapi.Viewer), s.serveTenants)
	tenant := op("create-tenant", http.MethodPost, "/tenants", "Make a tenant", httpapi.Admin)
	tenant.Detail = "For administrators of the tenant default. Make its first administrator with the header " + TenantHeader + "."
	tenant.Status = http.StatusCreated
	httpapi.Register(a, tenant, s.serveCreateTenant)
}

type whoami struct {
	Account      string          `json:"account" doc:"ID of the account"`
	Name         string          `json:"name"`
	Role         httpapi.Role    `json:"role"`
	Tenant       device.TenantID `json:"tenant" doc:"In which this request acted"`
	Selector     device.Selector `json:"selector" doc:"Of the devices you may see; empty: all"`
	Token        string          `json:"token,omitempty" doc:"ID of the token that was sent"`
	Installation bool            `json:"installation" doc:"May make tenants and act in any"`
}

func (s *Service) serveWhoami(_ context.Context, who httpapi.Principal, _ *struct{}) (*struct{ Body whoami }, error) {
	return &struct{ Body whoami }{whoami{
		Account: who.Actor.ID, Name: who.Actor.Name, Role: who.Role, Tenant: who.Scope.Tenant,
		Selector: who.Scope.Selector, Token: who.Token, Installation: who.Installation,
	}}, nil
}

// issuedToken is a token with its secret.
type issuedToken struct {
	Token
	Secret string `json:"secret" doc:"Send it as Authorization: Bearer …; it can't be shown again"`
}

type logInIn struct {
	Body struct {
		Name     string `json:"name" minLength:"1" maxLength:"64"`
		Password string `json:"password" minLength:"1" maxLength:"256"`
		Token    string `json:"token_name,omitempty" maxLength:"64" doc:"What the token is for"`
		Days     int    `json:"expires_in_days,omitempty" minimum:"1" maximum:"90" default:"1"`
	}
}

func (s *Service) serveLogIn(ctx context.Context, _ httpapi.Principal, in *logInIn) (*struct{ Body issuedToken }, error) {
	a, err := s.check(ctx, in.Body.Name, in.Body.Password, httpapi.ClientAddr(ctx))
	if err != nil {
		return nil, err
	}
	if a.MustChange {
		return nil, fault.New(fault.Forbidden, "the password of %s must be changed first; sign in to the console", a.Name)
	}
	if in.Body.Token == "" {
		in.Body.Token = "command line"
	}
	who := httpapi.Principal{Actor: actorOf(a), Role: a.Role, Scope: device.Scope{Tenant: a.Tenant, Selector: a.Selector}}
	t, secret, err := s.IssueToken(ctx, who, NewToken{Name: in.Body.Token, Life: days(in.Body.Days)})
	return &struct{ Body issuedToken }{issuedToken{t, secret}}, err
}

func days(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

type accountOut struct {
	ETag string `header:"ETag"`
	Body Account
}

func outOf(a Account) *accountOut { return &accountOut{httpapi.ETag(a.Revision), a} }

func (s *Service) serveAccounts(ctx context.Context, who httpapi.Principal, in *struct{ httpapi.PageIn }) (*struct{ Body httpapi.List[Account] }, error) {
	list, next, err := s.Accounts(ctx, who, in.PageIn)
	return &struct{ Body httpapi.List[Account] }{httpapi.List[Account]{Items: list, Next: next}}, err
}

// AccountIn names an account and the revision that is meant.
type AccountIn struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
}

func (s *Service) serveAccount(ctx context.Context, who httpapi.Principal, in *struct {
	ID string `path:"id" maxLength:"40"`
}) (*accountOut, error) {
	a, err := s.Account(ctx, who, in.ID)
	return outOf(a), err
}

type createAccountIn struct {
	Body struct {
		Name     string          `json:"name" minLength:"1" maxLength:"64" doc:"What one signs in with; unique in the installation"`
		Email    string          `json:"email,omitempty" maxLength:"254"`
		Role     httpapi.Role    `json:"role"`
		Selector device.Selector `json:"selector,omitempty" doc:"Narrows the account to some devices"`
		Program  bool            `json:"program,omitempty" doc:"It has tokens only, no password"`
		Password string          `json:"password,omitempty" maxLength:"256"`
	}
}

// madeAccount is an account with the password that was made for it.
type madeAccount struct {
	Account
	Password string `json:"password,omitempty" doc:"The one that was made; it can't be shown again"`
}

type madeAccountOut struct {
	ETag string `header:"ETag"`
	Body madeAccount
}

func (s *Service) serveCreateAccount(ctx context.Context, who httpapi.Principal, in *createAccountIn) (*madeAccountOut, error) {
	b := in.Body
	a, password, err := s.createAccount(ctx, who,
		NewAccount{Name: b.Name, Email: b.Email, Role: b.Role, Selector: b.Selector, Program: b.Program, Password: b.Password},
		func(tx *sqldb.Tx, a Account, password string) error {
			return httpapi.Settle(ctx, tx, madeAccount{a, password})
		})
	return &madeAccountOut{httpapi.ETag(a.Revision), madeAccount{a, password}}, err
}

func (s *Service) serveChangeAccount(ctx context.Context, who httpapi.Principal, in *struct {
	AccountIn
	Body struct {
		Email    *string          `json:"email,omitempty" maxLength:"254"`
		Role     *httpapi.Role    `json:"role,omitempty"`
		Selector *device.Selector `json:"selector,omitempty"`
		Disabled *bool            `json:"disabled,omitempty"`
	}
}) (*accountOut, error) {
	a, err := s.ChangeAccount(ctx, who, in.ID, AccountChange(in.Body), in.IfMatch)
	return outOf(a), err
}

func (s *Service) serveDeleteAccount(ctx context.Context, who httpapi.Principal, in *AccountIn) (*struct{}, error) {
	return nil, s.DeleteAccount(ctx, who, in.ID, in.IfMatch)
}

type passwordBody struct {
	Password string `json:"password" doc:"It can't be shown again and must be changed at the first sign-in"`
}

func (s *Service) serveResetPassword(ctx context.Context, who httpapi.Principal, in *struct {
	ID string `path:"id" maxLength:"40"`
}) (*struct{ Body passwordBody }, error) {
	password, err := s.resetPassword(ctx, who, in.ID, func(tx *sqldb.Tx, _ Account, password string) error {
		return httpapi.Settle(ctx, tx, passwordBody{password})
	})
	return &struct{ Body passwordBody }{passwordBody{password}}, err
}

func (s *Service) serveTokens(ctx context.Context, who httpapi.Principal, in *struct {
	httpapi.PageIn
	Account string `query:"account" maxLength:"40" doc:"ID of an account; only its tokens"`
}) (*struct{ Body httpapi.List[Token] }, error) {
	list, next, err := s.Tokens(ctx, who, in.Account, in.PageIn)
	return &struct{ Body httpapi.List[Token] }{httpapi.List[Token]{Items: list, Next: next}}, err
}

func (s *Service) serveCreateToken(ctx context.Context, who httpapi.Principal, in *struct {
	Body struct {
		Name     string          `json:"name" minLength:"1" maxLength:"64" doc:"What it is for"`
		Account  string          `json:"account,omitempty" maxLength:"40" doc:"ID of the account that it acts for; yours when empty"`
		Role     *httpapi.Role   `json:"role,omitempty" doc:"At most yours and the account's; that when empty"`
		Selector device.Selector `json:"selector,omitempty" doc:"Narrows it to some of the devices"`
		Days     int             `json:"expires_in_days,omitempty" minimum:"1" maximum:"1825" default:"90"`
	}
}) (*struct{ Body issuedToken }, error) {
	n := NewToken{Account: in.Body.Account, Name: in.Body.Name, Selector: in.Body.Selector, Life: days(in.Body.Days)}
	if in.Body.Role != nil {
		n.Role = *in.Body.Role
	}
	t, secret, err := s.issueToken(ctx, who, n, func(tx *sqldb.Tx, t Token, secret string) error {
		return httpapi.Settle(ctx, tx, issuedToken{t, secret})
	})
	return &struct{ Body issuedToken }{issuedToken{t, secret}}, err
}

func (s *Service) serveDeleteToken(ctx context.Context, who httpapi.Principal, in *struct {
	ID string `path:"id" maxLength:"40"`
}) (*struct{}, error) {
	return nil, s.RevokeToken(ctx, who, in.ID)
}

func (s *Service) serveTenants(ctx context.Context, who httpapi.Principal, in *struct{ httpapi.PageIn }) (*struct{ Body httpapi.List[Tenant] }, error) {
	list, next, err := s.Tenants(ctx, who, in.PageIn)
	return &struct{ Body httpapi.List[Tenant] }{httpapi.List[Tenant]{Items: list, Next: next}}, err
}

func (s *Service) serveCreateTenant(ctx context.Context, who httpapi.Principal, in *struct {
	Body struct {
		ID   string `json:"id" minLength:"1" maxLength:"40"`
		Name string `json:"name,omitempty" maxLength:"64" doc:"What people call it; the id when empty"`
	}
}) (*struct{ Body Tenant }, error) {
	t, err := s.CreateTenant(ctx, who, in.Body.ID, in.Body.Name)
	return &struct{ Body Tenant }{t}, err
}
