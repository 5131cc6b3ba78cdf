// Package cli is the operator's command line. It speaks to a server through the public API only, so
// everything that it does a script can do too; the exceptions are the commands that are the server
// itself (server, demo) and those that work offline (verify, keys).
//
// Exit codes: 0 done · 1 failed · 2 wrong usage · 3 not found · 4 not allowed · 5 refused because of the
// input or the state of the thing · 6 server not reachable or not ready.
package cli
