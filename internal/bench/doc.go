// Package bench measures Steward as its users meet it: servers in processes of their own, the public API,
// and a fleet of light devices that speak the device contract over mutual TLS.
//
//	steward-bench enroll | idle | connect | reconnect | reports | change | mixed | reads | orders | size
//
//	bench ──starts──▶ steward-bench serve (one node or several)  ◀──MQTT, EST──┐
//	  └────starts──▶ steward-bench worker × --processes (package swarm) ───────┘
//
// Time on a shared machine says little, so each result counts the processor time that the servers' processes
// used (and PostgreSQL's, when they store there), and their memory, next to the wall clock. The load comes from
// other processes, which the kernel accounts for separately.
package bench
