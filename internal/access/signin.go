package access

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// SignIn is one attempt to sign in.
type SignIn struct {
	Name, Password string
	Client         netip.Addr
	Agent          string // the browser's User-Agent
	Previous       string // the session cookie that the browser brought along; ended
}

// errWrong is the same for an unknown name, a wrong password, a disabled account and a program.
var errWrong = fault.New(fault.Unauthorized, "the name or the password is wrong")

// maxAgentBytes bounds what is stored of a User-Agent.
const maxAgentBytes = 200

// SignIn checks name and password and begins a session. It returns the cookie's value. The account may
// have to change its password before anything else.
func (s *Service) SignIn(ctx context.Context, in SignIn) (secret string, a Account, err error) {
	a, err = s.check(ctx, in.Name, in.Password, in.Client)
	if err != nil {
		return "", Account{}, err
	}
	secret = newSessionSecret()
	err = s.write(ctx, actorOf(a), func(tx *sqldb.Tx) (change, error) {
		now := s.clock()
		// The account may have been disabled, or got another password, while this one was checked.
		n, err := tx.Exec(ctx, "UPDATE access_account SET signed_in = $1 WHERE id = $2 AND disabled = 0 AND password = $3",
			sqldb.Micros(now), a.ID, a.password)
		if err != nil {
			return change{}, err
		}
		if n == 0 {
			return change{}, errWrong
		}
		if in.Previous != "" {
			if _, err := deleteSession(ctx, tx, hashSecret(in.Previous)); err != nil {
				return change{}, err
			}
		}
		err = insertSession(ctx, tx, sessionRow{
			hash: hashSecret(secret), account: a.ID, tenant: string(a.Tenant), created: now,
			address: in.Client.String(), agent: clip(in.Agent, maxAgentBytes),
		})
		return change{kind: kindSignedIn, tenant: a.Tenant, subject: a.ID, data: map[string]string{"address": in.Client.String()}}, err
	})
	if err != nil {
		return "", Account{}, err
	}
	return secret, a, nil
}

// clip makes text of a caller fit to be stored: PostgreSQL takes neither NUL nor broken UTF-8.
func clip(text string, n int) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "")
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "")
	}
	return text
}

func actorOf(a Account) device.Actor {
	return device.Actor{Kind: device.ActorAccount, ID: a.ID, Name: a.Name}
}

// check finds the account of a name and password, within the limits of guessing.
func (s *Service) check(ctx context.Context, name, password string, client netip.Addr) (Account, error) {
	name = clip(normalName(name), maxNameBytes)
	try := newAttempt(name, client)
	known, err := readAccount(ctx, s.db, "a.name = $1", name)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return Account{}, err
	}
	if err := s.guesses.begin(try); err != nil {
		s.tellFailure(ctx, known, client, true)
		return Account{}, err
	}
	stored := known.password
	if !known.canSignIn() || known.ID == "" || len(password) > MaxPassword {
		stored = "" // takes as long and never matches
	}
	ok, old, err := s.hasher.verify(ctx, stored, password)
	if err != nil {
		return Account{}, err
	}
	if !ok {
		s.tellFailure(ctx, known, client, false)
		return Account{}, errWrong
	}
	s.guesses.right(try)
	if old {
		return s.rehash(ctx, known, password)
	}
	return known, nil
}

// rehash stores a password that was stored with other costs anew.
func (s *Service) rehash(ctx context.Context, a Account, password string) (Account, error) {
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return Account{}, err
	}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE access_account SET password = $1 WHERE id = $2 AND password = $3", hash, a.ID, a.password)
		return err
	})
	if err != nil {
		return Account{}, err
	}
	a.password = hash
	return a, nil
}

// failureFacts is what the ledger keeps of a failed sign-in. The name that was typed is kept only when
// it is an account's: people type passwords into the wrong field.
type failureFacts struct {
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
	Limited bool   `json:"limited,omitempty"`  // refused before the password was looked at
	LeftOut int64  `json:"left_out,omitempty"` // failures since the last event that have none
}

// tellFailure puts a failed sign-in into the ledger, within limits. That it can't is logged only.
func (s *Service) tellFailure(ctx context.Context, a Account, client netip.Addr, limited bool) {
	key, tenant := a.ID, a.Tenant
	if a.ID == "" {
		key, tenant = httpapi.ClientNetwork(client), device.DefaultTenant
	}
	left, ok := s.guesses.mayTell(key)
	if !ok {
		return
	}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		return s.tellOnly(ctx, tx, device.System("access"), change{kind: kindSignInFailed, tenant: tenant, subject: a.ID,
			data: failureFacts{Name: a.Name, Address: client.String(), Limited: limited, LeftOut: left}})
	})
	if err != nil {
		s.log.ErrorContext(ctx, "failed sign-in not told to the ledger", "error", err)
	}
}

// SignOut ends the session of a cookie's value; one that is not there is fine.
func (s *Service) SignOut(ctx context.Context, secret string) error {
	hash := hashSecret(secret)
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		g, err := readSessionGrant(ctx, tx, hash)
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := deleteSession(ctx, tx, hash); err != nil {
			return err
		}
		return s.tell(ctx, tx, actorOf(g.account), change{kind: kindSignedOut, tenant: g.account.Tenant, subject: g.account.ID})
	})
}

// PasswordChange is what somebody asks for who knows their password.
type PasswordChange struct {
	Account string // ID
	Current string
	New     string
	Client  netip.Addr
	Agent   string
}

// ChangeOwnPassword changes the password of who knows the current one. It ends all sessions of the
// account and begins a new one, whose cookie it returns; tokens stay.
func (s *Service) ChangeOwnPassword(ctx context.Context, c PasswordChange) (secret string, err error) {
	a, err := readAccount(ctx, s.db, "a.id = $1", c.Account)
	if err != nil {
		return "", err
	}
	if a.Program {
		return "", fault.New(fault.Conflict, "%s is a program and has no password", a.Name)
	}
	a, err = s.check(ctx, a.Name, c.Current, c.Client)
	if errors.Is(err, errWrong) {
		return "", fault.Bad("current", "this is not your current password")
	}
	if err != nil {
		return "", err
	}
	var e fault.Invalid
	checkPassword(&e, "new", c.New, a.Name)
	if c.New == c.Current {
		e.Add("new", "choose another one than the current")
	}
	if err := e.OrNil(); err != nil {
		return "", err
	}
	hash, err := s.hasher.hash(ctx, c.New)
	if err != nil {
		return "", err
	}
	secret = newSessionSecret()
	err = s.write(ctx, actorOf(a), func(tx *sqldb.Tx) (change, error) {
		fresh, err := readAccount(ctx, tx, "a.id = $1", a.ID)
		if err != nil {
			return change{}, err
		}
		if fresh.password != a.password || fresh.Disabled {
			return change{}, fault.New(fault.Conflict, "the account was changed at the same time; sign in again")
		}
		if err := setPassword(ctx, tx, &fresh, hash, false); err != nil {
			return change{}, err
		}
		err = insertSession(ctx, tx, sessionRow{
			hash: hashSecret(secret), account: a.ID, tenant: string(a.Tenant), created: s.clock(),
			address: c.Client.String(), agent: clip(c.Agent, maxAgentBytes),
		})
		return change{kind: kindPasswordChanged, tenant: a.Tenant, subject: a.ID}, err
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}

// Sessions lists the sessions of an account; current is the cookie's value of the one that asks.
func (s *Service) Sessions(ctx context.Context, account, current string) ([]Session, error) {
	return listSessions(ctx, s.db, account, hashSecret(current), s.now())
}

// SignOutOthers ends all sessions of an account but the one of the cookie's value.
func (s *Service) SignOutOthers(ctx context.Context, who httpapi.Principal, current string) (n int64, err error) {
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		a, err := readAccount(ctx, tx, "a.id = $1", who.Actor.ID)
		if err != nil {
			return err
		}
		if n, err = deleteSessions(ctx, tx, a.ID, hashSecret(current)); err != nil || n == 0 {
			return err
		}
		return s.tell(ctx, tx, who.Actor, change{kind: kindSignedOut, tenant: a.Tenant, subject: a.ID, data: map[string]int64{"other_sessions": n}})
	})
	return n, err
}
