// Package swarm is many devices in few processes: each speaks the device contract as real ones do, by
// EST over HTTPS to enroll and by MQTT over mutual TLS from then on, with a key, a certificate, a session
// ticket and an address of its own, in a few KiB and one goroutine.
//
//	Crew (the bench's process) ──JSON lines──▶ worker process ──▶ Squad ──▶ devices ──TLS──▶ server
//
// A Crew starts worker processes of this same program, gives each its share of the devices, sends them
// orders, and merges what they have measured. One process holds as many connections as the system lets it
// open files; that is why there are several.
//
// A device does by itself what the contract asks of it: it connects again after a lost connection within
// the time that the server has told, takes desired states, fetches their documents, reports that it
// has accepted them, and answers commands. Orders only add load to that.
package swarm
