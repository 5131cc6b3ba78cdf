// Package access is the room of those who use Steward: tenants, accounts, sessions of the console and
// API tokens. It finds out who makes a request (httpapi.Authenticator).
//
// # Who may what
//
// An account belongs to one tenant and has one role: viewer, operator, release-manager or admin, each
// including those before it. A selector narrows an account or a token to some of the tenant's devices.
// Whoever is narrowed can't manage accounts, so a scope can't be left by making a wider account; an
// admin account is never narrowed. An admin of the tenant "default" is an operator of the
// installation: they make tenants and may act in any of them, with the header Steward-Tenant or, in the
// console, by choosing one. Each tenant keeps at least one admin who can sign in, once it had one.
//
// A token acts for its account and never does more: its role is the lesser of the two, its devices
// those that both selectors match. A token made with a token expires with it at the latest, and is
// revoked with it.
//
// # What is stored
//
// Passwords as argon2id with OWASP's parameters of 19 MiB, two passes, one lane; a password stored with
// others is stored anew at the next sign-in. Of session cookies and tokens, which are 256 random bits,
// only the SHA-256: whoever reads the database can't sign in with what they find.
//
// A session ends after 12 hours without a request and after 7 days in any case. Signing in always makes
// a new one, and ends the one that the browser brought along.
//
// # How fast a change takes effect
//
// Lookups are cached in memory for at most 5 s. Any change of an account, a session or a token empties
// the cache of this node at its commit, so it takes effect here at once; on other nodes of the same
// database within those 5 s.
//
// # Guessing
//
// Failed sign-ins are limited per account and address (5, then one in 30 s), per account (50, then one
// in 20 s) and per address (30, then one in 10 s); IPv6 counts by /64. The counters live in the memory
// of each node. An unknown account takes the same time and gets the same answer as a wrong password.
// At most one failed sign-in per account and minute goes to the ledger, and no more than one in ten
// seconds altogether; the event says how many were left out.
package access
