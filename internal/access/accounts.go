package access

import (
	"context"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Accounts lists the tenant's accounts by name, after the cursor; next is empty on the last page.
func (s *Service) Accounts(ctx context.Context, who httpapi.Principal, page httpapi.PageIn) (list []Account, next string, err error) {
	if err := mayManage(who); err != nil {
		return nil, "", err
	}
	var at accountCursor
	if err := httpapi.DecodeCursor(page.Cursor, &at); err != nil {
		return nil, "", err
	}
	list, err = listAccounts(ctx, s.db, who.Scope.Tenant, at.Name, page.Limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(list) > page.Limit {
		list = list[:page.Limit]
		next = httpapi.EncodeCursor(accountCursor{list[page.Limit-1].Name})
	}
	return list, next, nil
}

type accountCursor struct {
	Name string `json:"n"`
}

// Account returns one account of the tenant.
func (s *Service) Account(ctx context.Context, who httpapi.Principal, id string) (Account, error) {
	if err := mayManage(who); err != nil {
		return Account{}, err
	}
	return ownAccount(ctx, s.db, who.Scope.Tenant, id)
}

// CreateAccount makes an account in the tenant of who asks. password is the one that was made when none
// was given, and empty for programs; whoever gets it must change it at the first sign-in.
func (s *Service) CreateAccount(ctx context.Context, who httpapi.Principal, n NewAccount) (a Account, password string, err error) {
	return s.createAccount(ctx, who, n, nil)
}

// settle stores the answer of an API call in the transaction of the change; nil does nothing.
type settle func(tx *sqldb.Tx, a Account, password string) error

func (s *Service) createAccount(ctx context.Context, who httpapi.Principal, n NewAccount, done settle) (a Account, password string, err error) {
	if err := mayManage(who); err != nil {
		return a, "", err
	}
	if err := n.check("body."); err != nil {
		return a, "", err
	}
	password = n.Password
	if password == "" && !n.Program {
		password = newPassword()
	}
	hash := ""
	if password != "" {
		if hash, err = s.hasher.hash(ctx, password); err != nil {
			return a, "", err
		}
	}
	if n.Password != "" {
		password = "" // known to who gave it
	}
	a = Account{
		ID: "acc-" + device.RandomName(10), Tenant: who.Scope.Tenant, Name: n.Name, Email: n.Email, Role: n.Role,
		Selector: n.Selector, Program: n.Program, MustChange: !n.Program, Created: s.clock(), Revision: 1, password: hash,
	}
	err = s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		if err := insertAccount(ctx, tx, a); err != nil {
			return change{}, err
		}
		if done != nil {
			if err := done(tx, a, password); err != nil {
				return change{}, err
			}
		}
		return s.accountChange(kindAccountCreated, a), nil
	})
	if err != nil {
		return Account{}, "", err
	}
	return a, password, nil
}

// accountFacts is what the ledger keeps of an account.
type accountFacts struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Selector string `json:"selector,omitempty"`
	Program  bool   `json:"program,omitempty"`
}

func (s *Service) accountChange(kind string, a Account) change {
	return change{kind: kind, tenant: a.Tenant, subject: a.ID,
		data: accountFacts{Name: a.Name, Role: a.Role.String(), Selector: a.Selector.String(), Program: a.Program}}
}

// ChangeAccount changes what c names. ifMatch is the caller's If-Match, or empty. Disabling an account
// ends its sessions and deletes its tokens.
func (s *Service) ChangeAccount(ctx context.Context, who httpapi.Principal, id string, c AccountChange, ifMatch string) (Account, error) {
	var after Account
	err := s.changeAccount(ctx, who, id, ifMatch, func(tx *sqldb.Tx, a *Account) (kind string, err error) {
		before := *a
		if err := c.apply(a); err != nil {
			return "", err
		}
		kind = kindAccountChanged
		switch {
		case a.Disabled && !before.Disabled:
			kind = kindAccountDisabled
			if err := endAll(ctx, tx, a.ID); err != nil {
				return "", err
			}
		case !a.Disabled && before.Disabled:
			kind = kindAccountEnabled
		}
		if err := updateAccount(ctx, tx, *a); err != nil {
			return "", err
		}
		a.Revision++
		after = *a
		return kind, nil
	})
	return after, err
}

// endAll ends an account's sessions and deletes its tokens.
func endAll(ctx context.Context, tx *sqldb.Tx, account string) error {
	if _, err := deleteSessions(ctx, tx, account, ""); err != nil {
		return err
	}
	_, err := deleteTokensOf(ctx, tx, account)
	return err
}

func (c AccountChange) apply(a *Account) error {
	var e fault.Invalid
	if c.Email != nil {
		a.Email = *c.Email
		checkEmail(&e, "body.", a.Email)
	}
	if c.Role != nil {
		a.Role = *c.Role
	}
	if c.Selector != nil {
		a.Selector = *c.Selector
	}
	if c.Disabled != nil {
		a.Disabled = *c.Disabled
	}
	checkNarrow(&e, "body.", a.Role, a.Selector)
	return e.OrNil()
}

// DeleteAccount takes an account away with its sessions and tokens. The ledger keeps its name.
func (s *Service) DeleteAccount(ctx context.Context, who httpapi.Principal, id, ifMatch string) error {
	return s.changeAccount(ctx, who, id, ifMatch, func(tx *sqldb.Tx, a *Account) (string, error) {
		if err := endAll(ctx, tx, a.ID); err != nil {
			return "", err
		}
		_, err := tx.Exec(ctx, "DELETE FROM access_account WHERE id = $1", a.ID)
		return kindAccountDeleted, err
	})
}

// ResetAccountPassword gives an account of the tenant a fresh password, which must be changed at the
// next sign-in, and ends its sessions. Its tokens stay.
func (s *Service) ResetAccountPassword(ctx context.Context, who httpapi.Principal, id string) (password string, err error) {
	return s.resetPassword(ctx, who, id, nil)
}

func (s *Service) resetPassword(ctx context.Context, who httpapi.Principal, id string, done settle) (password string, err error) {
	password = newPassword()
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return "", err
	}
	err = s.changeAccount(ctx, who, id, "", func(tx *sqldb.Tx, a *Account) (string, error) {
		if a.Program {
			return "", fault.New(fault.Conflict, "%s is a program and has no password; make a token for it", a.Name)
		}
		if err := setPassword(ctx, tx, a, hash, true); err != nil {
			return "", err
		}
		if done != nil {
			if err := done(tx, *a, password); err != nil {
				return "", err
			}
		}
		return kindPasswordReset, nil
	})
	if err != nil {
		return "", err
	}
	return password, nil
}

// setPassword stores a password and ends the account's sessions.
func setPassword(ctx context.Context, tx *sqldb.Tx, a *Account, hash string, mustChange bool) error {
	a.password, a.MustChange = hash, mustChange
	if err := updateAccount(ctx, tx, *a); err != nil {
		return err
	}
	_, err := deleteSessions(ctx, tx, a.ID, "")
	return err
}

// changeAccount runs fn on an account of the tenant, holding the tenant's lock, and refuses what would
// leave the tenant without an administrator who can sign in.
func (s *Service) changeAccount(ctx context.Context, who httpapi.Principal, id, ifMatch string,
	fn func(tx *sqldb.Tx, a *Account) (kind string, err error)) error {
	if err := mayManage(who); err != nil {
		return err
	}
	return s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		if err := lockTenant(ctx, tx, who.Scope.Tenant); err != nil {
			return change{}, err
		}
		a, err := ownAccount(ctx, tx, who.Scope.Tenant, id)
		if err != nil {
			return change{}, err
		}
		if err := httpapi.CheckMatch(ifMatch, a.Revision); err != nil {
			return change{}, err
		}
		wasAdmin := a.Role == httpapi.Admin && a.canSignIn()
		kind, err := fn(tx, &a)
		if err != nil {
			return change{}, err
		}
		if wasAdmin {
			n, err := countAdmins(ctx, tx, a.Tenant)
			if err != nil {
				return change{}, err
			}
			if n == 0 {
				return change{}, fault.New(fault.Conflict,
					"%s is the last administrator of the tenant %s who can sign in; make another one first", a.Name, a.Tenant)
			}
		}
		return s.accountChange(kind, a), nil
	})
}
