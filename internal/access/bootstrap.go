package access

import (
	"context"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// firstAdmin is the name of the first administrator.
const firstAdmin = "admin"

// EnsureAdmin makes the tenant "default" and its first administrator with a random password, unless
// there is one; then it returns the name of the first of them and no password. Several nodes may call
// it at a time.
func (s *Service) EnsureAdmin(ctx context.Context) (name, password string, created bool, err error) {
	password = newPassword()
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return "", "", false, err
	}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		name, created, err = s.ensureAdmin(ctx, tx, hash)
		return err
	})
	if err != nil {
		return "", "", false, fmt.Errorf("make the first administrator: %w", err)
	}
	if !created {
		password = ""
	}
	return name, password, created, nil
}

func (s *Service) ensureAdmin(ctx context.Context, tx *sqldb.Tx, hash string) (name string, created bool, err error) {
	now := s.clock()
	fresh, err := insertTenant(ctx, tx, Tenant{ID: device.DefaultTenant, Name: "Default", Created: now})
	if err != nil {
		return "", false, err
	}
	if fresh {
		err := s.tell(ctx, tx, device.System("access"), change{kind: kindTenantCreated, tenant: device.DefaultTenant, subject: string(device.DefaultTenant)})
		if err != nil {
			return "", false, err
		}
	}
	if err := lockTenant(ctx, tx, device.DefaultTenant); err != nil {
		return "", false, err
	}
	known, err := readAccount(ctx, tx, `a.id = (SELECT id FROM access_account
		WHERE role = 'admin' AND disabled = 0 AND program = 0 AND tenant = $1 ORDER BY created, id LIMIT 1)`, device.DefaultTenant)
	if !errors.Is(err, fault.NotFound) {
		return known.Name, false, err
	}
	name = firstAdmin
	if _, err := readAccount(ctx, tx, "a.name = $1", name); err == nil {
		name += "-" + device.RandomName(5) // somebody else is called so
	}
	a := Account{ID: "acc-" + device.RandomName(10), Tenant: device.DefaultTenant, Name: name, Role: httpapi.Admin,
		Created: now, Revision: 1, password: hash}
	if err := insertAccount(ctx, tx, a); err != nil {
		return "", false, err
	}
	return name, true, s.tell(ctx, tx, device.System("access"), s.accountChange(kindAccountCreated, a))
}

// ResetPassword gives an account a fresh password that must be changed at the next sign-in, enables it
// and ends its sessions; for whoever has the server's machine (steward admin reset-password).
func (s *Service) ResetPassword(ctx context.Context, name string) (password string, err error) {
	password = newPassword()
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return "", err
	}
	err = s.write(ctx, device.System("access"), func(tx *sqldb.Tx) (change, error) {
		a, err := readAccount(ctx, tx, "a.name = $1", normalName(name))
		if err != nil {
			return change{}, fmt.Errorf("account %q: %w", name, err)
		}
		if a.Program {
			return change{}, fault.New(fault.Conflict, "%s is a program and has no password", a.Name)
		}
		a.Disabled = false
		if err := setPassword(ctx, tx, &a, hash, true); err != nil {
			return change{}, err
		}
		return s.accountChange(kindPasswordReset, a), nil
	})
	if err != nil {
		return "", err
	}
	return password, nil
}

// BootstrapToken replaces the token called tokenName of the account by a fresh one of the account's role
// that lasts as long as tokens may, and returns its secret: for DIR/bootstrap.json, which only who has
// the server's machine can read.
func (s *Service) BootstrapToken(ctx context.Context, account, tokenName string) (secret string, err error) {
	a, err := readAccount(ctx, s.db, "a.name = $1", normalName(account))
	if err != nil {
		return "", err
	}
	old, err := listTokens(ctx, s.db, tokenFilter{account: a.ID, limit: maxTokensOfOne + 1})
	if err != nil {
		return "", err
	}
	who := httpapi.Principal{Actor: actorOf(a), Role: a.Role, Scope: device.Scope{Tenant: a.Tenant, Selector: a.Selector}}
	for _, t := range old {
		if t.Name != tokenName {
			continue
		}
		if err := s.RevokeToken(ctx, who, t.ID); err != nil {
			return "", err
		}
	}
	_, secret, err = s.IssueToken(ctx, who, NewToken{Name: tokenName, Life: MaxTokenLife})
	return secret, err
}
