package access

import (
	"context"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// IssueToken makes an API token and returns its secret, which can't be shown again. It is for who asks,
// or, when an administrator asks, for an account of the tenant. Its role is at most that of both, its
// devices are among theirs.
func (s *Service) IssueToken(ctx context.Context, who httpapi.Principal, n NewToken) (t Token, secret string, err error) {
	return s.issueToken(ctx, who, n, nil)
}

func (s *Service) issueToken(ctx context.Context, who httpapi.Principal, n NewToken, done func(*sqldb.Tx, Token, string) error) (t Token, secret string, err error) {
	if err := n.check(); err != nil {
		return t, "", err
	}
	secret = newTokenSecret()
	err = s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		owner, err := tokenOwner(ctx, tx, who, n.Account)
		if err != nil {
			return change{}, err
		}
		if t, err = s.newToken(ctx, tx, who, owner, n); err != nil {
			return change{}, err
		}
		if err := insertToken(ctx, tx, t, hashSecret(secret)); err != nil {
			return change{}, err
		}
		if done != nil {
			if err := done(tx, t, secret); err != nil {
				return change{}, err
			}
		}
		return tokenChange(kindTokenCreated, t), nil
	})
	if err != nil {
		return Token{}, "", err
	}
	return t, secret, nil
}

// tokenOwner returns the account that a token is asked for.
func tokenOwner(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, id string) (Account, error) {
	if id == "" || id == who.Actor.ID {
		return readAccount(ctx, tx, "a.id = $1", who.Actor.ID)
	}
	if err := mayManage(who); err != nil {
		return Account{}, err
	}
	a, err := ownAccount(ctx, tx, who.Scope.Tenant, id)
	if err == nil && a.Disabled {
		return a, fault.New(fault.Conflict, "the account %s is disabled", a.Name)
	}
	return a, err
}

// newToken settles role, devices and end of a token.
func (s *Service) newToken(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, owner Account, n NewToken) (Token, error) {
	most := min(who.Role, owner.Role)
	if n.Role == httpapi.Nobody {
		n.Role = most
	}
	if n.Role > most {
		return Token{}, fault.Bad("body.role", "a token for %s can be %s at most", owner.Name, most)
	}
	now := s.clock()
	t := Token{
		ID: "tok-" + device.RandomName(10), Name: n.Name, Account: owner.ID, Owner: owner.Name, Role: n.Role,
		Selector: n.Selector, Created: now, Expires: now.Add(n.Life), tenant: owner.Tenant, parent: who.Token,
	}
	if who.Token != "" {
		parent, err := readToken(ctx, tx, who.Token)
		if err != nil {
			return Token{}, err
		}
		// The account's own selector applies anyway when the token is used.
		t.Selector = parent.Selector.And(n.Selector)
		if parent.Expires.Before(t.Expires) {
			t.Expires = parent.Expires
		}
	}
	if len(t.Selector.String()) > device.MaxSelectorBytes {
		return Token{}, fault.Bad("body.selector", "together with the selector of the token you use it is longer than %d bytes", device.MaxSelectorBytes)
	}
	count, err := tidyTokens(ctx, tx, owner.ID, now)
	if err != nil {
		return Token{}, err
	}
	if count >= maxTokensOfOne {
		return Token{}, fault.New(fault.Conflict, "%s has %d tokens already; revoke those that are not needed", owner.Name, count)
	}
	return t, nil
}

// tokenFacts is what the ledger keeps of a token.
type tokenFacts struct {
	Name     string    `json:"name"`
	Account  string    `json:"account"`
	Owner    string    `json:"account_name"`
	Role     string    `json:"role"`
	Selector string    `json:"selector,omitempty"`
	Expires  time.Time `json:"expires"`
}

func tokenChange(kind string, t Token) change {
	return change{kind: kind, tenant: t.tenant, subject: t.ID, data: tokenFacts{
		Name: t.Name, Account: t.Account, Owner: t.Owner, Role: t.Role.String(), Selector: t.Selector.String(), Expires: t.Expires}}
}

// Tokens lists the tokens of an account, or, when account is empty, those that who asks may revoke: of
// the whole tenant for administrators, else their own.
func (s *Service) Tokens(ctx context.Context, who httpapi.Principal, account string, page httpapi.PageIn) (list []Token, next string, err error) {
	f := tokenFilter{tenant: who.Scope.Tenant, account: account, limit: page.Limit + 1}
	if mayManage(who) != nil {
		if account != "" && account != who.Actor.ID {
			return nil, "", fault.New(fault.Forbidden, "only administrators see the tokens of others")
		}
		f.account = who.Actor.ID
	} else if account != "" && account != who.Actor.ID {
		if _, err := ownAccount(ctx, s.db, who.Scope.Tenant, account); err != nil {
			return nil, "", err
		}
	}
	var at tokenCursor
	if err := httpapi.DecodeCursor(page.Cursor, &at); err != nil {
		return nil, "", err
	}
	f.after = at.ID
	if list, err = listTokens(ctx, s.db, f); err != nil {
		return nil, "", err
	}
	if len(list) > page.Limit {
		list = list[:page.Limit]
		next = httpapi.EncodeCursor(tokenCursor{list[page.Limit-1].ID})
	}
	return list, next, nil
}

type tokenCursor struct {
	ID string `json:"i"`
}

// RevokeToken takes a token away, with those that were made with it: one's own, or as administrator one
// of the tenant.
func (s *Service) RevokeToken(ctx context.Context, who httpapi.Principal, id string) error {
	return s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		t, err := readToken(ctx, tx, id)
		if err != nil {
			return change{}, err
		}
		own := t.Account == who.Actor.ID
		if !own && (mayManage(who) != nil || t.tenant != who.Scope.Tenant) {
			return change{}, errNoToken
		}
		if _, err := deleteToken(ctx, tx, id); err != nil {
			return change{}, err
		}
		return tokenChange(kindTokenRevoked, t), nil
	})
}
