// Package bench measures Steward as its users meet it: a server in a process of its own, the public API,
// and devices that run the agent's code over mutual TLS.
//
//	steward-bench reads | orders | idle | enroll | change | size
//
// Time on a shared machine says little, so each result counts the processor time that the server's process
// used (and PostgreSQL's processes, when it stores there), and its memory, next to the wall clock. The
// load comes from this process, which the kernel accounts for separately.
package bench
